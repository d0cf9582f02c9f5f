/* SPDX-License-Identifier: MIT
 *
 * create_test.c: options of images as JSON, by the rows of the command line (FEATURES 1.147); and a store that a job can be stopped at.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/test.h"
#include "job/create_opts.h"
#include "job/stepped.h"

/* ---- options ---- */

static int take(const char *format, const char *text, struct fmt_create_opts *fo, uint64_t *seen, struct byre_err *err)
{
    static const char *const skip[] = { "driver", "file", NULL };
    const struct opt_row *rows = fmt_create_rows(format, true);
    json_t *o = json_loads(text, JSON_ALLOW_NUL, NULL);
    assert_non_null(o);
    *fo = (struct fmt_create_opts){ 0 };
    *seen = 0;
    *err = (struct byre_err){ 0 };
    int r = opt_defaults(rows, fo, err);
    assert_int_equal(r, 0);
    r = create_opts_take(o, skip, rows, fo, seen, err);
    json_decref(o);
    return r;
}

/* Every option of creation can be said in JSON, by a name with dashes, and means the row of that name: none is parsed a second time. */
static void every_row(void **state)
{
    static const char *const formats[] = { "raw", "qcow2", "qed", "luks" };
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        const struct opt_row *rows = fmt_create_rows(formats[i], true);
        for (const struct opt_row *row = rows; row->name; row++) {
            char name[CREATE_OPT_NAME_MAX], *dot, *in = NULL, *key = name;
            snprintf(name, sizeof name, "%s", row->name);
            if ((dot = strchr(name, '.'))) {
                *dot = 0;
                in = name;
                key = dot + 1;
            }
            for (char *c = key; *c; c++)
                *c = *c == '_' ? '-' : *c;
            assert_ptr_equal(create_opt_row(rows, in, key), row);
        }
        assert_null(create_opt_row(rows, NULL, "odd"));
        assert_null(create_opt_row(rows, "odd", "size"));
    }
    assert_ptr_equal(create_opt_row(fmt_create_rows("qcow2", true), NULL, "version"), opt_find(fmt_create_rows("qcow2", true), "compat"));
    assert_null(create_opt_row(fmt_create_rows("qcow2", true), NULL, "a-name-that-is-longer-than-any-option-of-any-format-could-ever-come-to-be"));
    assert_ptr_equal(create_opt_row(fmt_amend_rows("qcow2"), "encrypt", "new-secret"), opt_find(fmt_amend_rows("qcow2"), "encrypt.new-secret"));
    assert_ptr_equal(create_opt_row(fmt_amend_rows("luks"), NULL, "state"), opt_find(fmt_amend_rows("luks"), "state"));
}

static void values(void **state)
{
    struct fmt_create_opts fo;
    struct byre_err err;
    uint64_t seen;
    const struct opt_row *rows = fmt_create_rows("qcow2", true);
    assert_int_equal(take("qcow2", "{\"driver\":\"qcow2\",\"file\":{\"size\":1},\"size\":1048576,\"cluster-size\":4096,\"version\":\"v2\",\"lazy-refcounts\":true,\"extended-l2\":false,"
                          "\"backing-file\":\"a,b=c\",\"preallocation\":\"falloc\",\"encrypt\":{\"format\":\"luks\",\"key-secret\":\"k\",\"iter-time\":7}}", &fo, &seen, &err), 0);
    assert_true(fo.size == 1048576 && fo.cluster_size == 4096 && fo.version == 2 && fo.lazy_refcounts && !fo.extended_l2 && fo.refcount_bits == 16);
    assert_int_equal(fo.prealloc, FMT_PREALLOC_FALLOC);
    assert_string_equal(fo.backing_file, "a,b=c");           /* a value is never taken apart */
    assert_string_equal(fo.encrypt.format, "luks");
    assert_string_equal(fo.encrypt.key_secret, "k");
    assert_int_equal(fo.encrypt.iter_time_ms, 7);
    assert_true(opt_seen(rows, seen, "size") && opt_seen(rows, seen, "extended_l2") && !opt_seen(rows, seen, "refcount_bits"));
    opt_fini(rows, &fo);
}

static void refused(void **state)
{
    static const struct { const char *text, *says; } bad[] = {
        { "{\"odd\":1}", "odd" }, { "{\"encrypt\":{\"odd\":1}}", "encrypt.odd" }, { "{\"size\":-1}", "-1" }, { "{\"size\":1.5}", "size" }, { "{\"size\":null}", "size" },
        { "{\"size\":[1]}", "size" }, { "{\"preallocation\":\"odd\"}", "odd" }, { "{\"backing-file\":\"a\\u0000b\"}", "backing_file" }, { "{\"lazy-refcounts\":3}", "3" },
        { "{\"refcount-bits\":4294967296}", "4294967296" }, { "{\"encrypt\":{\"key-secret\":{\"deeper\":1}}}", "key-secret" }, { "{\"size\":{\"size\":1}}", "size.size" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct fmt_create_opts fo;
        struct byre_err err;
        uint64_t seen;
        assert_true(take("qcow2", bad[i].text, &fo, &seen, &err) < 0);
        if (!strstr(err.text, bad[i].says))
            fail_msg("%s: %s", bad[i].text, err.text);
        opt_fini(fmt_create_rows("qcow2", true), &fo);
    }
}

/* ---- a store that a job can be stopped at ---- */

struct stop { struct rt *rt; struct jobs js; bool done; unsigned cancel_at, asked; int result; struct stor *below; bool touched; };

static int write_all(struct co *co, struct job *job, struct byre_err *err)
{
    struct stop *t = job->opaque;
    struct stor *s;
    uint8_t page[512] = { 7 };
    int r = stepped_new(job, stor_share(t->below), &s);
    assert_int_equal(r, 0);
    for (t->asked = 0; !r && t->asked < 6; t->asked++) {
        if (t->asked == t->cancel_at)
            assert_int_equal(job_do(job, JOB_CANCEL, err), 0);
        r = t->asked == 0 ? stor_truncate(co, s, 8192) : t->asked == 1 ? stor_write_buf(co, s, page, sizeof page, 512, 0) : t->asked == 2 ? stor_zero(co, s, 0, 512, 0)
          : t->asked == 3 ? stor_flush(co, s) : t->asked == 4 ? stor_write_buf(co, s, page, sizeof page, 0, 0) : stor_preallocate(co, s, 0, 4096);
        if (t->asked == 5 && r == -ENOTSUP)
            r = 0;                           /* memory has none */
    }
    t->result = r;
    t->touched = stepped_touched(s);
    stor_close(co, s);
    return r;
}

static const struct job_kind write_kind = { .type = "write", .run = write_all };

static void stop_co(struct co *co, void *arg)
{
    struct stop *t = arg;
    struct job *job;
    struct byre_err err;
    uint64_t len;
    for (t->cancel_at = 0; t->cancel_at <= 6; t->cancel_at++) {
        assert_int_equal(stor_mem_new(co, "m", 0, &t->below), 0);
        assert_int_equal(job_start(&t->js, &write_kind, &(struct job_opts){ .id = "w", .keep_concluded = true, .opaque = t }, &job, &err), 0);
        while (job->status != JOB_CONCLUDED)
            co_yield(co);
        assert_int_equal(t->result, t->cancel_at < 6 ? -EIO : 0);      /* I1 of stepped.c */
        assert_int_equal(t->asked, t->cancel_at < 6 ? t->cancel_at + 1 : 6);     /* nothing after it */
        assert_true(t->touched == (t->cancel_at > 0));
        assert_int_equal(stor_length(co, t->below, &len), 0);
        assert_int_equal(len, t->cancel_at > 0 ? 8192 : 0);
        assert_int_equal(job_do(job, JOB_DISMISS, &err), 0);
        stor_close(co, t->below);
    }
    jobs_stop(co, &t->js);
    t->done = true;
}

static bool stop_done(void *arg) { return ((struct stop *)arg)->done; }

static void stepped(void **state)
{
    struct stop t = { 0 };
    struct byre_err err;
    assert_int_equal(rt_new(&(struct rt_opts){ .loops = 1, .manual = true }, &t.rt, &err), 0);
    jobs_init(&t.js, rt_loop_at(t.rt, 0));
    assert_int_equal(rt_spawn_on(rt_loop_at(t.rt, 0), stop_co, &t), 0);
    rt_loop_run(rt_loop_at(t.rt, 0), stop_done, &t);
    rt_free(t.rt);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_row), cmocka_unit_test(values), cmocka_unit_test(refused), cmocka_unit_test(stepped) };
    return cmocka_run_group_tests_name("job-create", tests, NULL, NULL);
}
