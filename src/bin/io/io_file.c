/* SPDX-License-Identifier: MIT
 *
 * io_file.c: open, close, reopen (FEATURES 6.014, 6.018).
 *
 * Purpose      Which image the shell works on, and how it is opened.
 * Owns         s->image, s->how
 * Invariants   I1 reopen closes the image before it opens it anew (the lock cannot be held twice); when that fails, the old way is
 *                 tried again, and without success there no image is open
 * Concurrency  main thread
 * Failure      1: told already
 * Tests        tests/cli/io_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "bin/io/io.h"

void io_open_fini(struct io_open *how)
{
    free(how->name);
    free(how->format);
    *how = (struct io_open){ 0 };
}

bool io_open_copy(struct io_open *to, const struct io_open *from)
{
    *to = *from;
    to->name = strdup(from->name);
    to->format = from->format ? strdup(from->format) : NULL;
    if (to->name && (to->format || !from->format))
        return true;
    io_open_fini(to);
    return false;
}

int io_backend(struct run *r, const char *aio, bool native, int cache)
{
    return run_backend(r, aio ? aio : native ? "native" : NULL, cache, "-t none");
}

int io_image_open(struct io_shell *s, const struct io_open *how)
{
    struct byre_err err;
    struct byre_open_opts o = byre_open_opts_init();
    struct io_open copy;
    if (!io_open_copy(&copy, how))
        return run_fail(s->r, "no memory");
    o.flags = (how->read_only ? BYRE_OPEN_READ_ONLY : 0) | (how->force_share ? BYRE_OPEN_FORCE_SHARE : 0) |
              (how->discard ? BYRE_OPEN_DISCARD : 0) | (how->image_opts ? BYRE_OPEN_IMAGE_OPTS : 0) | (how->copy_on_read ? BYRE_OPEN_COPY_ON_READ : 0);
    o.cache = how->cache;
    o.format = how->format;
    if (byre_open(s->r->ctx, how->name, &o, &s->image, &err)) {
        io_open_fini(&copy);
        return run_fail(s->r, "can't open device %s: %s", how->name, RUN_TEXT(&err));
    }
    run_warn_guessed_raw(s->image);
    io_open_fini(&s->how);
    s->how = copy;
    return 0;
}

int io_image_close(struct io_shell *s)
{
    int code = 0;
    if (!s->image)
        return 0;
    if (s->breaks)
        (void)!byre_debug_remove(s->image, NULL);          /* whether there were any is nobody's question */
    s->breaks = false;
    io_aio_close(s);
    run_close(s->r, s->image, &code);
    s->image = NULL;
    return code;
}

static int run_close_cmd(struct io_shell *s, const void *opts, int argc, char **argv)
{
    return io_image_close(s);
}

/* ---- open ---- */
struct open_opts { bool read_only, nocache, force_share, native, copy_on_read; char *cache, *discard, *aio; struct opt_list options; };

static const struct opt_row open_rows[] = {
    { .short_name = 'r', .type = OPT_BOOL, OPT_AT(struct open_opts, read_only), .help = "read-only" },
    { .short_name = 's', .type = OPT_BOOL, .flags = OPT_LATER, .help = "changes go to a temporary file" },
    { .short_name = 'C', .type = OPT_BOOL, OPT_AT(struct open_opts, copy_on_read), .help = "keep what is read from the backing image" },
    { .short_name = 'n', .type = OPT_BOOL, OPT_AT(struct open_opts, nocache), .help = "short for -t none" },
    { .short_name = 'U', .type = OPT_BOOL, OPT_AT(struct open_opts, force_share), .help = "even though another program writes to it (read-only)" },
    { .short_name = 'k', .type = OPT_BOOL, OPT_AT(struct open_opts, native), .help = "same as -i native" },
    { .short_name = 'i', .type = OPT_STR, OPT_AT(struct open_opts, aio), .arg = "MODE", .help = "threads, native (needs -n) or io_uring; the program's own -i decides" },
    { .short_name = 't', .type = OPT_STR, OPT_AT(struct open_opts, cache), .arg = "MODE", .help = "cache mode" },
    { .short_name = 'd', .type = OPT_STR, OPT_AT(struct open_opts, discard), .arg = "MODE", .help = "ignore (off) or unmap (on) [unmap]" },
    { .short_name = 'o', .type = OPT_LIST, OPT_AT(struct open_opts, options), .arg = "OPTIONS", .help = "node options: driver=qcow2,file.filename=x" },
    OPT_END
};

/* "a,b" and the path as one list of node options; owned by the caller. */
static char *join_options(const struct opt_list *l, const char *path)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f)
        return NULL;
    for (size_t i = 0; i < l->count; i++)
        fprintf(f, "%s%s", i ? "," : "", l->items[i]);
    if (path)
        fputs(",file.filename=", f);
    for (; path && *path; path++) {
        if (*path == ',')
            fputc(',', f);
        fputc(*path, f);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

static int parse_discard(struct io_shell *s, const char *word, bool *ret)
{
    if (!word)
        return 0;
    if (strcmp(word, "unmap") == 0 || strcmp(word, "on") == 0)
        *ret = true;
    else if (strcmp(word, "ignore") == 0 || strcmp(word, "off") == 0)
        *ret = false;
    else
        return run_fail(s->r, "Invalid discard option: %s", word);
    return 0;
}

static int run_open_cmd(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct open_opts *o = opts;
    struct io_open how = { .read_only = o->read_only, .force_share = o->force_share, .image_opts = o->options.count > 0, .discard = true,
        .copy_on_read = o->copy_on_read };
    if (s->image)
        return run_fail(s->r, "file open already, try 'help close'");
    how.cache = run_cache(s->r, o->cache, o->nocache ? BYRE_CACHE_NONE : BYRE_CACHE_WRITEBACK, "cache");
    if (how.cache < 0 || io_backend(s->r, o->aio, o->native, how.cache) < 0 || parse_discard(s, o->discard, &how.discard))
        return 1;
    if (!argc && !o->options.count)
        return run_fail(s->r, "a path or -o is needed");
    AUTOFREE char *joined = o->options.count ? join_options(&o->options, argc ? argv[0] : NULL) : NULL;
    how.name = joined ? joined : argc ? argv[0] : NULL;
    if (!how.name)
        return run_fail(s->r, "no memory");
    return io_image_open(s, &how);
}

/* ---- reopen ---- */
struct reopen_opts { bool read_only, writable; char *cache; struct opt_list options; };

static const struct opt_row reopen_rows[] = {
    { .short_name = 'r', .type = OPT_BOOL, OPT_AT(struct reopen_opts, read_only), .help = "read-only" },
    { .short_name = 'w', .type = OPT_BOOL, OPT_AT(struct reopen_opts, writable), .help = "for writing" },
    { .short_name = 'c', .type = OPT_STR, OPT_AT(struct reopen_opts, cache), .arg = "MODE", .help = "cache mode" },
    { .short_name = 'o', .type = OPT_LIST, OPT_AT(struct reopen_opts, options), .arg = "OPTIONS", .help = "node options" },
    OPT_END
};

/* The options of -o go into the list by which the image is opened. */
static int add_options(struct io_shell *s, const struct opt_list *l, struct io_open *how)
{
    if (!l->count)
        return 0;
    struct opt_list head = { 0 };
    int rc = how->image_opts ? opt_list_add(&head, how->name) : opt_list_add(&head, "");
    for (size_t i = 0; !rc && i < l->count; i++)
        rc = opt_list_add(&head, l->items[i]);
    char *driver = NULL;
    if (!rc && !how->image_opts) {           /* the list has to say what was known before */
        rc = asprintf(&driver, "driver=%s", byre_format(s->image)) < 0 ? -ENOMEM : 0;
        if (!rc) {
            free(head.items[0]);
            head.items[0] = driver;
        }
    }
    char *text = rc ? NULL : join_options(&head, how->image_opts ? NULL : byre_filename(s->image));
    opt_list_fini(&head);
    if (!text)
        return run_fail(s->r, "no memory");
    free(how->name);
    free(how->format);
    how->name = text;
    how->format = NULL;
    how->image_opts = true;
    return 0;
}

/* "read-only" among the options of -o decides as -r and -w do. */
static bool options_read_only(const struct opt_list *l, bool before)
{
    for (size_t i = 0; i < l->count; i++) {
        const char *text = l->items[i];
        char *key, *value;
        while (opt_list_next(&text, &key, &value) > 0) {
            if (strcmp(key, "read-only") == 0)
                before = !value || strcmp(value, "on") == 0;
            free(key);
            free(value);
        }
    }
    return before;
}

static int reopen(struct io_shell *s, const struct io_open *next)
{
    struct io_open old;
    if (!io_open_copy(&old, &s->how))
        return run_fail(s->r, "no memory");
    int code = io_image_close(s);
    if (!code && io_image_open(s, next)) {
        (void)io_image_open(s, &old);
        code = 1;
    }
    io_open_fini(&old);
    return code;
}

static int run_reopen(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct reopen_opts *o = opts;
    struct io_open next;
    if (o->read_only && o->writable)
        return run_fail(s->r, "Only one -r/-w option may be given");
    int cache = run_cache(s->r, o->cache, s->how.cache, "cache");
    if (cache < 0)
        return 1;
    if (!io_open_copy(&next, &s->how))
        return run_fail(s->r, "no memory");
    next.cache = cache;
    next.read_only = options_read_only(&o->options, o->read_only || (!o->writable && s->how.read_only));
    int code = add_options(s, &o->options, &next);
    if (!code)
        code = reopen(s, &next);
    io_open_fini(&next);
    return code;
}

const struct io_cmd io_cmd_open = { "open", "o", "[-rCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]", "open an image",
    "Example: 'open -n -o driver=raw /tmp/data' opens a raw file without the host's cache.", open_rows, sizeof(struct open_opts), 0, 1, IO_NO_FILE, run_open_cmd };
const struct io_cmd io_cmd_close = { "close", "c", "", "close the image", NULL, NULL, 0, 0, 0, 0, run_close_cmd };
const struct io_cmd io_cmd_reopen = { "reopen", NULL, "[-r|-w] [-c cache] [-o options]", "open the image again, with other options",
    "Example: 'reopen -r' makes it read-only.", reopen_rows, sizeof(struct reopen_opts), 0, 0, 0, run_reopen };
