/* SPDX-License-Identifier: MIT
 *
 * replay_main.c: runs a fuzz target over files and folders given as arguments, once each: the regression test of every
 * corpus, with any compiler.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long played;

static int play_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st)) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        if (f)
            fclose(f);
        return 1;
    }
    size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size ? size : 1);      /* exactly as long as the input: checkers see every overrun */
    int r = !data || fread(data, 1, size, f) != size;
    if (r)
        fprintf(stderr, "%s: cannot be read whole\n", path);
    else
        (void)LLVMFuzzerTestOneInput(data, size);
    played += !r;
    free(data);
    fclose(f);
    return r;
}

static int play_folder(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return errno == ENOTDIR ? play_file(path) : (fprintf(stderr, "%s: %s\n", path, strerror(errno)), 1);
    int bad = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char file[4096];
        if (e->d_name[0] == '.')
            continue;
        if ((size_t)snprintf(file, sizeof file, "%s/%s", path, e->d_name) >= sizeof file)
            bad = 1;
        else
            bad |= play_file(file);
    }
    closedir(d);
    return bad;
}

int main(int argc, char **argv)
{
    int bad = 0;
    for (int i = 1; i < argc; i++)
        bad |= play_folder(argv[i]);
    printf("%lu inputs played\n", played);
    if (!played)
        fprintf(stderr, "nothing to play\n");
    return bad || !played;
}
