/* SPDX-License-Identifier: MIT
 *
 * run.c: what all subcommands need: messages, a context, words that mean numbers, opening and closing.
 *
 * Purpose      The edge: the only place that turns errors of the library into text on standard error
 * Owns         r->ctx
 * Invariants   I1 a function that says "told already" has printed exactly one message
 * Concurrency  main thread
 * Failure      exit codes are the caller's
 * Tests        tests/cli
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "bin/bin.h"
#include "lib/lib_inside.h"

static void say(struct run *r, const char *fmt, va_list ap)
{
    fflush(stdout);
    fprintf(stderr, "%s: ", r->prog);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

int run_fail(struct run *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(r, fmt, ap);
    va_end(ap);
    return 1;
}

int run_fail_err(struct run *r, const struct byre_err *err)
{
    return run_fail(r, "%s", RUN_TEXT(err));
}

const char *run_text(const struct byre_err *err, struct run_text *t)
{
    const char *more = "", *sep = "";
    if (err->reason && strcmp(err->reason, "LOCKED") == 0) {
        more = " (another program holds a lock on the image)";
    } else if (err->reason && strcmp(err->reason, "IO") == 0 && err->code && !strstr(err->text, strerror(-err->code))) {
        sep = ": ";
        more = strerror(-err->code);
    }
    snprintf(t->text, sizeof t->text, "%s%s%s", err->text, sep, more);
    return t->text;
}

int run_usage(struct run *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(r, fmt, ap);
    va_end(ap);
    if (r->peer)
        fprintf(stderr, "Try '%s --help' for more information\n", r->prog);
    else
        fprintf(stderr, "Try '%s %s --help' for more information\n", r->prog, r->cmd ? r->cmd->name : "");
    return r->cmd && r->cmd->usage_exit ? r->cmd->usage_exit : 1;
}

void run_warn(struct run *r, const char *fmt, ...)
{
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fflush(stdout);
    fprintf(stderr, "%s: warning: %s\n", r->prog, text);
}

static void on_warning(void *arg, const char *text)
{
    run_warn(arg, "%s", text);
}

/* Hands the objects of the command line to the context, and forgets the words: they may hold secrets. */
static bool add_objects(struct run *r)
{
    struct byre_err err;
    struct opt_list *l = &((struct common *)r->opts)->objects;
    bool good = true;
    for (size_t i = 0; i < l->count; i++) {
        if (good && byre_object_add(r->ctx, l->items[i], &err)) {
            run_fail_err(r, &err);
            good = false;
        }
        explicit_bzero(l->items[i], strlen(l->items[i]));
    }
    return good;
}

bool run_ctx(struct run *r, unsigned threads, int backend)
{
    struct byre_err err;
    struct byre_ctx_opts o = byre_ctx_opts_init();
    o.loops = threads;
    o.flags = (threads ? 0 : BYRE_CTX_CALLER_RUNS) | (run_records(r) ? BYRE_CTX_RECORD_OVERLAYS : 0) | (r->more_loops ? LIB_CTX_MORE_LOOPS : 0);
    o.registry = run_registry();
    o.backend = backend;
    o.policy = r->strict ? BYRE_POLICY_STRICT : BYRE_POLICY_ECOSYSTEM;
    o.warn = on_warning;
    o.warn_arg = r;
    if (byre_ctx_new(&o, &r->ctx, &err)) {
        run_fail_err(r, &err);
        return false;
    }
    return add_objects(r);
}

void run_fini(struct run *r)
{
    byre_ctx_free(r->ctx);
    r->ctx = NULL;
}

void run_put_text(FILE *f, const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            fprintf(f, "\\x%02x", (unsigned)(unsigned char)*s);
        else
            fputc(*s, f);
}

int run_finish_output(struct run *r, int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    fprintf(stderr, "%s: cannot write to standard output\n", r->prog);
    return code ? code : 1;
}

int run_cache(struct run *r, const char *word, int fallback, const char *what)
{
    int mode = word ? byre_cache_parse(word) : fallback;
    if (mode >= 0)
        return mode;
    run_fail(r, "Invalid %s option: %s (expected none, writeback, writethrough, directsync or unsafe)", what, word);
    return -1;
}

int run_backend(struct run *r, const char *aio, int cache, const char *direct)
{
    if (!aio || strcmp(aio, "io_uring") == 0)
        return BYRE_BACKEND_AUTO;
    if (strcmp(aio, "threads") == 0)
        return BYRE_BACKEND_THREADS;
    if (strcmp(aio, "native") == 0 && (cache == BYRE_CACHE_NONE || cache == BYRE_CACHE_DIRECTSYNC))
        return BYRE_BACKEND_AUTO;
    if (strcmp(aio, "native") == 0)
        run_fail(r, "aio=native needs direct I/O (%s)", direct);
    else
        run_fail(r, "Invalid aio option: %s", aio);
    return -1;
}

int run_discard_mode(struct run *r, const char *word)
{
    if (strcmp(word, "unmap") == 0 || strcmp(word, "on") == 0)
        return BYRE_OPEN_DISCARD;
    return strcmp(word, "ignore") && strcmp(word, "off") ? (run_fail(r, "Invalid discard option: %s", word), -1) : 0;
}

int run_output(struct run *r, const char *word)
{
    if (!word || strcmp(word, "human") == 0)
        return 0;
    if (strcmp(word, "json") == 0)
        return 1;
    run_fail(r, "--output takes 'human' or 'json', not '%s'", word);
    return -1;
}

bool run_size(struct run *r, const char *word, const char *what, uint64_t *ret)
{
    int e = size_parse(word, ret);
    if (e == 0 && *ret < UINT64_C(1) << 63)
        return true;
    if (e == -EINVAL)
        run_fail(r, "Invalid %s '%s': a size is a number and one of the suffixes k, M, G, T, P, E", what, word);
    else
        run_fail(r, "Invalid %s '%s': it must be between 0 and 9223372036854775807", what, word);
    return false;
}

void run_warn_guessed_raw(const struct byre_image *image)
{
    if (!byre_is_probed(image) || byre_is_read_only(image) || strcmp(byre_format(image), "raw") != 0)
        return;
    fflush(stdout);
    fprintf(stderr, "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
                    "         Writes that would make its first block look like a format are refused. Give -f raw to allow them.\n",
            byre_filename(image));
}

/* What -l names. The two strings are owned. */
struct picked { const char *any; char *id, *name; };

static int pick_one(struct run *r, struct picked *p, char *key, char **value)
{
    char **to = !strcmp(key, "snapshot.id") ? &p->id : !strcmp(key, "snapshot.name") ? &p->name : NULL;
    if (!to || !*value)
        return run_fail(r, "Invalid parameter '%s' of a snapshot: snapshot.id=ID and snapshot.name=NAME are known", key);
    free(*to);
    *to = *value;
    *value = NULL;
    return 0;
}

/* 1: told already. */
static int pick_snapshot(struct run *r, const char *text, struct picked *p)
{
    int code = 0;
    if (!text || strncmp(text, "snapshot.", 9) != 0) {
        p->any = text;
        return 0;
    }
    while (!code) {
        char *key = NULL, *value = NULL;
        int got = opt_list_next(&text, &key, &value);
        code = got < 0 ? run_fail(r, "the parameters of a snapshot cannot be read: %s", strerror(-got)) : got ? pick_one(r, p, key, &value) : 0;
        free(key);
        free(value);
        if (got <= 0)
            break;
    }
    return code;
}

struct byre_image *run_open(struct run *r, const struct open_args *a)
{
    struct byre_err err;
    struct byre_image *image;
    struct byre_open_opts o = byre_open_opts_init();
    struct picked p = { NULL, NULL, NULL };
    if (a->image_opts && a->format) {
        run_fail(r, "--image-opts and --format are mutually exclusive");
        return NULL;
    }
    o.flags = a->flags | (a->image_opts ? BYRE_OPEN_IMAGE_OPTS : 0);
    o.cache = a->cache;
    o.format = a->format;
    o.key_secret = a->key_secret;
    o.recorded_by = a->recorded_by;
    int code = pick_snapshot(r, a->snapshot, &p);
    o.snapshot = p.any;
    o.snapshot_id = p.id;
    o.snapshot_name = p.name;
    if (!code && byre_open(r->ctx, a->name, &o, &image, &err))
        code = run_fail(r, "Could not open '%s': %s", a->name, RUN_TEXT(&err));
    free(p.id);
    free(p.name);
    if (code)
        return NULL;
    if (a->warn_raw && !a->quiet)
        run_warn_guessed_raw(image);
    return image;
}

void run_close(struct run *r, struct byre_image *image, int *code)
{
    if (!image)
        return;
    char *name = strdup(byre_filename(image));
    int e = byre_close(image);
    if (e < 0) {
        run_fail(r, "%s: closing failed: %s", name ? name : "image", strerror(-e));
        if (!*code)
            *code = 1;
    }
    free(name);
}

static void put_stdout(void *arg, const char *text)
{
    fputs(text, stdout);
}

const struct opt_out run_stdout = { put_stdout, NULL };

void run_help(const struct run *r)
{
    const struct cmd *c = r->cmd;
    printf("usage: %s %s [options] %s\n%s.\n\n", r->prog, c->name, c->synopsis, c->summary);
    opt_doc_help(c->rows, &run_stdout);
}
