/* SPDX-License-Identifier: MIT
 *
 * amend.c: changing options of an image, as a job.
 *
 * Purpose      Parses the options by the rows of the format and hands them to the graph.
 * Owns         struct amend_job
 * Invariants   I1 every option is known and its value is acceptable before the job begins
 * Concurrency  the job runs on the home loop
 * Failure      names the image, the option and the value
 * Tests        tests/cli/amend_test.py
 */
#include "base/list.h"
#include "base/opt.h"
#include "fmt/create_rows.h"
#include "lib/lib_priv.h"

struct amend_job {
    struct byre_job job;
    struct byre_image *image;
    const struct opt_row *rows;
    uint64_t seen;
    bool force;
    struct fmt_create_opts fo;
};

static bool is_given(void *arg, const char *option)
{
    struct amend_job *a = arg;
    return opt_find(a->rows, option) && opt_seen(a->rows, a->seen, option);
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct amend_job *a = arg;
    lib_job_progress(&a->job, done, total);
}

static int amend_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct amend_job *a = CONTAINER_OF(job, struct amend_job, job);
    struct fmt_amend_opts fa = { .o = &a->fo, .given = is_given, .arg = a, .force = a->force, .progress = on_progress, .progress_arg = a };
    int r = graph_amend(co, a->image->node, &fa, err);
    if (r)
        return r;
    r = graph_flush(co, a->image->node);
    return r ? byre_fail_code(err, IO, r, "%s: what was changed could not be made durable", graph_filename(a->image->node)) : 0;
}

static void amend_fini(struct byre_job *job)
{
    struct amend_job *a = CONTAINER_OF(job, struct amend_job, job);
    opt_fini(a->rows, &a->fo);
    atomic_fetch_sub(&a->image->users, 1);
}

/* An option of creation that cannot be changed later is told as that. */
static int parse(struct amend_job *a, const struct byre_amend_opts *o, struct byre_err *err)
{
    struct byre_err why = { 0 };
    const struct opt_row *all = fmt_create_rows(byre_format(a->image), false);
    for (unsigned i = 0; i < o->option_count; i++) {
        const char *list = o->options[i];
        char *key, *value;
        while (opt_list_next(&list, &key, &value) > 0) {
            bool later = !opt_find(a->rows, key) && opt_find(all, key);
            int r = later ? byre_fail(err, BAD_OPTION, "'%s' can be given when an image is made, and not changed later", key) : 0;
            free(key);
            free(value);
            if (r)
                return r;
        }
        int r = opt_parse_list(a->rows, &a->fo, o->options[i], &a->seen, &why);
        if (r) {
            if (err)
                *err = why;
            return r;
        }
    }
    return 0;
}

int byre_amend_start(struct byre_image *image, const struct byre_amend_opts *opts, struct byre_job **ret_job, struct byre_err *err)
{
    struct byre_amend_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    const struct opt_row *rows = fmt_amend_rows(byre_format(image));
    if (!rows)
        return byre_fail(err, NOT_SUPPORTED, "%s: options of %s images cannot be changed", byre_filename(image), byre_format(image));
    if (o.flags & ~(unsigned)BYRE_AMEND_FORCE || image->check_mode)
        return byre_fail(err, BAD_ARGUMENT, "an image is amended that was not opened for checking, with flags that are known");
    struct amend_job *a = calloc(1, sizeof *a);
    if (!a)
        return byre_fail(err, NOMEM, "no memory to amend an image");
    a->job.run = amend_run;
    a->job.fini = amend_fini;
    a->image = image;
    a->rows = rows;
    a->force = o.flags & BYRE_AMEND_FORCE;
    a->fo.secrets = image->ctx->secrets;
    r = parse(a, &o, err);
    if (r) {
        opt_fini(rows, &a->fo);
        free(a);
        return r;
    }
    atomic_fetch_add(&image->users, 1);
    return lib_job_start(&a->job, image->ctx, ret_job, err);
}

int byre_amend_help(const char *format, void (*put)(void *arg, const char *text), void *arg)
{
    if (!fmt_by_name(format))
        return -ENOENT;
    const struct opt_row *rows = fmt_amend_rows(format);
    if (!rows)
        return -ENOTSUP;
    opt_doc_keys(rows, &(struct opt_out){ put, arg });
    return 0;
}
