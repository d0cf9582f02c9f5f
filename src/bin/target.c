/* SPDX-License-Identifier: MIT
 *
 * target.c: the image that convert and dd write.
 *
 * Purpose      Create, open, close; and no half-written file that looks complete.
 * Owns         struct target
 * Invariants   I1 after a failure a file made here is removed, a file that was there before has length 0, a device, an
 *                 export of a server and a target that was not made here are left as they are
 * Concurrency  main thread
 * Failure      told on standard error
 * Tests        tests/cli/convert_test.py, dd_test.py
 */
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

static int make(struct run *r, const struct target_opts *o, struct target *t)
{
    struct byre_err err;
    struct byre_create_opts c = byre_create_opts_init();
    const char *path = strncmp(o->name, "file:", 5) == 0 ? o->name + 5 : o->name;
    c.flags = BYRE_CREATE_SIZE | BYRE_CREATE_SIZE_WINS | BYRE_CREATE_WRITABLE;
    c.format = o->format;
    c.size = o->size;
    c.options = o->options ? (const char *const *)o->options->items : NULL;
    c.option_count = o->options ? (unsigned)o->options->count : 0;
    c.backing_file = o->backing;
    c.backing_format = o->backing_format;
    t->path = strdup(path);
    if (!t->path)
        return run_fail(r, "no memory");
    t->fixed = is_device(path) || byre_name_is_remote(r->ctx, o->name);
    t->existed = access(path, F_OK) == 0;
    if (byre_create(r->ctx, o->name, &c, &err))
        return run_fail(r, "%s: error while %s: %s", o->name, o->what, RUN_TEXT(&err));
    t->made = true;
    const char *format = o->format ? o->format : "raw";
    t->reads_zero = strcmp(format, "luks") != 0 && (!t->fixed || strcmp(format, "raw") != 0);
    return 0;
}

/* The secret that the options of creation name, which opens the image too; owned by the caller. NULL: none. */
static char *secret_of(const struct opt_list *l)
{
    char *found = NULL, *key, *value;
    for (size_t i = 0; l && i < l->count; i++)
        for (const char *text = l->items[i]; opt_list_next(&text, &key, &value) > 0; free(key), free(value))
            if (value && (strcmp(key, "encrypt.key-secret") == 0 || strcmp(key, "key-secret") == 0)) {
                free(found);
                found = strdup(value);
            }
    return found;
}

int target_open(struct run *r, const struct target_opts *o, struct target *t)
{
    AUTOFREE char *secret = o->no_create ? NULL : secret_of(o->options);
    struct open_args a = { .name = o->name, .format = o->image_opts ? NULL : o->format ? o->format : "raw", .image_opts = o->image_opts, .cache = o->cache, .key_secret = secret };
    if (!o->no_create && make(r, o, t))
        return 1;
    t->image = run_open(r, &a);
    return !t->image;
}

int target_close(struct run *r, struct target *t, int code)
{
    run_close(r, t->image, &code);
    if (code && t->made && t->path && !t->fixed) {
        int rc = t->existed ? truncate(t->path, 0) : unlink(t->path);
        if (rc)
            run_fail(r, "%s: holds an incomplete image and cannot be %s", t->path, t->existed ? "cut" : "removed");
    }
    free(t->path);
    *t = (struct target){ 0 };
    return code;
}
