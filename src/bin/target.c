/* SPDX-License-Identifier: MIT
 *
 * target.c: the image that convert and dd write.
 *
 * Purpose      Create, open, close; and no half-written file that looks complete.
 * Owns         struct target
 * Invariants   I1 after a failure a file made here is removed, a file that was there before has length 0, a device, an
 *                 export of a server and a target that was not made here are left as they are. The same holds of its external
 *                 data file. Of a name that is a link it is the file that goes, and the link stays
 *              I2 nothing is removed or cut but the very file that was made or emptied here, and not while somebody else has a lock on it
 * Concurrency  main thread
 * Failure      told on standard error
 * Tests        tests/cli/convert_test.py, dd_test.py
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/target.h"

bool target_wants_help(const struct opt_list *l)
{
    for (size_t i = 0; i < l->count; i++)
        if (strcmp(l->items[i], "help") == 0 || strcmp(l->items[i], "?") == 0)
            return true;
    return false;
}

int target_help(struct run *r, const char *format, bool with_file)
{
    if (byre_format_backing(format) == -ENOENT)
        return run_fail(r, "Unknown file format '%s'", format);
    if (with_file)
        printf("Supported options:\n");
    else
        printf("Supported %s options:\n", format);
    int rc = byre_create_help(format, with_file, run_stdout.put, run_stdout.arg);
    if (!with_file)
        printf("\nThe file below has options too: name a file to see them.\n");
    return rc ? 1 : 0;
}

static bool is_device(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode));
}

/* The last value that the options of creation give to one of two keys; owned by the caller. NULL: none. */
static char *option_of(const struct opt_list *l, const char *a, const char *b)
{
    char *found = NULL, *key, *value;
    for (size_t i = 0; l && i < l->count; i++)
        for (const char *text = l->items[i]; opt_list_next(&text, &key, &value) > 0; free(key), free(value))
            if (value && (strcmp(key, a) == 0 || strcmp(key, b) == 0)) {
                free(found);
                found = strdup(value);
            }
    return found;
}

/* What is there under this name before anything is made. The name may say "file:": that of an image once, that of a data file as often as it likes, as the
 * library takes them; with --strict it is a part of the name. */
static int look_at(struct run *r, const char *name, bool once, struct target_file *f)
{
    for (bool more = !r->strict; more && strncmp(name, "file:", 5) == 0; more = !once)
        name += 5;
    f->path = strdup(name);
    f->fixed = is_device(name);
    f->existed = access(name, F_OK) == 0;
    return f->path ? 0 : run_fail(r, "no memory");
}

/* It is made now: the file itself, where the name was that of a link. */
static void follow(struct target_file *f)
{
    char *real = f->path ? realpath(f->path, NULL) : NULL;
    if (!real)
        return;
    free(f->path);
    f->path = real;
    struct stat st;
    f->known = stat(real, &st) == 0;
    f->dev = f->known ? st.st_dev : 0;
    f->ino = f->known ? st.st_ino : 0;
}

static int make(struct run *r, const struct target_opts *o, struct target *t)
{
    struct byre_err err;
    struct byre_create_opts c = byre_create_opts_init();
    AUTOFREE char *data = option_of(o->options, "data_file", "data_file");
    c.flags = BYRE_CREATE_SIZE | BYRE_CREATE_SIZE_WINS | BYRE_CREATE_WRITABLE;
    c.format = o->format;
    c.size = o->size;
    c.options = o->options ? (const char *const *)o->options->items : NULL;
    c.option_count = o->options ? (unsigned)o->options->count : 0;
    c.backing_file = o->backing;
    c.backing_format = o->backing_format;
    if (look_at(r, o->name, true, &t->file) || (data && look_at(r, data, false, &t->data)))
        return 1;
    t->file.fixed |= byre_name_is_remote(r->ctx, o->name) != 0;
    if (byre_create(r->ctx, o->name, &c, &err))
        return run_fail(r, "%s: error while %s: %s", o->name, o->what, RUN_TEXT(&err));
    t->made = true;
    follow(&t->file);
    follow(&t->data);
    const char *format = o->format ? o->format : "raw";
    t->reads_zero = strcmp(format, "luks") != 0 && (!t->file.fixed || strcmp(format, "raw") != 0);
    return 0;
}

int target_open(struct run *r, const struct target_opts *o, struct target *t)
{
    AUTOFREE char *secret = o->no_create ? NULL : option_of(o->options, "encrypt.key-secret", "key-secret");
    struct open_args a = { .name = o->name, .format = o->image_opts ? NULL : o->format ? o->format : "raw", .image_opts = o->image_opts, .cache = o->cache, .key_secret = secret };
    if (!o->no_create && make(r, o, t))
        return 1;
    t->image = run_open(r, &a);
    return !t->image;
}

/* Ours until fd is closed: images are locked byte by byte. A file system without locks knows nobody. */
static bool lock_all(int fd)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    return fcntl(fd, F_OFD_SETLK, &l) == 0 || (errno != EAGAIN && errno != EACCES);
}

/* I2 */
static void clean_up(struct run *r, const struct target_file *f)
{
    const char *verb = f->existed ? "cut" : "removed";
    struct stat st;
    if (!f->path || f->fixed || !f->known)
        return;
    int fd = open(f->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno == ENOENT)
        return;
    if (fd < 0 || fstat(fd, &st))
        run_fail(r, "%s: holds an incomplete image and cannot be %s: %s", f->path, verb, strerror(errno));
    else if (st.st_dev != f->dev || st.st_ino != f->ino)
        run_fail(r, "%s: is another file than the one that was made, and stays", f->path);
    else if (!lock_all(fd))
        run_fail(r, "%s: holds an incomplete image and is not %s: another program has opened it", f->path, verb);
    else if (f->existed ? ftruncate(fd, 0) : unlink(f->path))
        run_fail(r, "%s: holds an incomplete image and cannot be %s: %s", f->path, verb, strerror(errno));
    if (fd >= 0)
        close(fd);
}

int target_close(struct run *r, struct target *t, int code)
{
    run_close(r, t->image, &code);
    if (code && t->made) {
        clean_up(r, &t->file);
        clean_up(r, &t->data);
    }
    free(t->file.path);
    free(t->data.path);
    *t = (struct target){ 0 };
    return code;
}
