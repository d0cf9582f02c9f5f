/* SPDX-License-Identifier: MIT
 *
 * q2_tool.c: a test tool that drives the qcow2 module without graph, library and command line.
 *
 *     q2-tool create FILE NAME=VALUE ...       size cluster_size version refcount_bits lazy_refcounts backing_file
 *                                              backing_fmt compression_type preallocation (off metadata falloc full) ...
 *     q2-tool measure NAME=VALUE ...           and data=BYTES
 *     q2-tool check [-r leaks|all] FILE        JSON like the peer's on stdout, findings on stderr; exit 0, 1, 2, 3
 *     q2-tool info FILE                        JSON
 *
 * Exit 1 with one line on stderr when something fails.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_out.h"
#include "base/size.h"
#include "fmt/fmt.h"
#include "rt/loop.h"
#include "stor/stor.h"

struct job {
    int argc;
    char **argv;
    int code;
    bool done;
    struct byre_err err;
};

static int fail(const struct byre_err *err)
{
    fprintf(stderr, "q2-tool: %s: %s\n", err->reason ? err->reason : "?", err->text);
    return 1;
}

static bool on(const char *v) { return !strcmp(v, "on") || !strcmp(v, "1"); }

static int parse_prealloc(const char *v, enum fmt_prealloc *ret)
{
    static const char *const names[] = { "off", "metadata", "falloc", "full" };
    for (int i = 0; i < 4; i++)
        if (!strcmp(v, names[i])) {
            *ret = (enum fmt_prealloc)i;
            return 0;
        }
    return -1;
}

static int parse_option(struct fmt_create_opts *o, uint64_t *data, char *arg)
{
    char *v = strchr(arg, '=');
    uint64_t n = 0;
    if (!v)
        return -1;
    *v++ = 0;
    int number = size_parse(v, &n);
    if (!strcmp(arg, "size"))
        o->size = n;
    else if (!strcmp(arg, "data"))
        *data = n;
    else if (!strcmp(arg, "cluster_size"))
        o->cluster_size = n;
    else if (!strcmp(arg, "version"))
        o->version = (unsigned)n;
    else if (!strcmp(arg, "refcount_bits"))
        o->refcount_bits = (unsigned)n;
    else
        number = 0;
    if (number)
        return -1;
    if (!strcmp(arg, "lazy_refcounts"))
        o->lazy_refcounts = on(v);
    else if (!strcmp(arg, "extended_l2"))
        o->extended_l2 = on(v);
    else if (!strcmp(arg, "data_file"))
        o->data_file = v;
    else if (!strcmp(arg, "data_file_raw"))
        o->data_file_raw = on(v);
    else if (!strcmp(arg, "encrypt.format"))
        o->encrypt.format = v;
    else if (!strcmp(arg, "backing_file"))
        o->backing_file = v;
    else if (!strcmp(arg, "backing_fmt"))
        o->backing_fmt = v;
    else if (!strcmp(arg, "compression_type"))
        o->compression_type = v;
    else if (!strcmp(arg, "preallocation"))
        return parse_prealloc(v, &o->prealloc);
    return 0;
}

static int do_create(struct co *co, struct job *j)
{
    struct fmt_create_opts o = { 0 };
    uint64_t data = 0;
    for (int i = 3; i < j->argc; i++)
        if (parse_option(&o, &data, j->argv[i]))
            return fprintf(stderr, "q2-tool: bad option %s\n", j->argv[i]), 1;
    struct stor *s;
    struct stor_file_opts so = { .create = true, .truncate_to_zero = true };
    if (stor_file_open(co, j->argv[2], &so, &s, &j->err))
        return fail(&j->err);
    int rc = fmt_qcow2_ops.create(co, s, &o, &j->err);
    stor_close(co, s);
    return rc ? fail(&j->err) : 0;
}

static void print(struct json_out *j)
{
    if (!json_out_error(j))
        puts(j->text);
    json_out_fini(j);
}

static int do_measure(struct job *j)
{
    struct fmt_create_opts o = { 0 };
    struct fmt_measure m;
    uint64_t data = 0;
    for (int i = 2; i < j->argc; i++)
        if (parse_option(&o, &data, j->argv[i]))
            return fprintf(stderr, "q2-tool: bad option %s\n", j->argv[i]), 1;
    if (fmt_qcow2_ops.measure(&o, data, &m, &j->err))
        return fail(&j->err);
    struct json_out out;
    json_out_init(&out, true);
    jo_open_obj(&out, NULL);
    jo_u64(&out, "required", m.required);
    jo_u64(&out, "fully-allocated", m.fully_allocated);
    jo_close(&out);
    print(&out);
    return 0;
}

static int open_image(struct co *co, struct job *j, const char *path, const struct fmt_open_opts *o, struct fmt_image **ret)
{
    struct stor *s;
    struct stor_file_opts so = { .read_only = o->read_only };
    int rc = stor_file_open(co, path, &so, &s, &j->err);
    if (rc)
        return rc;
    rc = fmt_qcow2_ops.open(co, s, o, ret, &j->err);
    if (rc)
        stor_close(co, s);
    return rc;
}

static void finding(void *arg, bool fixed, const char *id, const char *text)
{
    unsigned *count = arg;
    if (++*count <= 400)
        fprintf(stderr, "%s %s: %s\n", fixed ? "fixed" : "found", id, text);
}

static void put_nonzero(struct json_out *j, const char *key, uint64_t v)
{
    if (v)
        jo_u64(j, key, v);
}

static int do_check(struct co *co, struct job *j)
{
    unsigned fix = 0, told = 0;
    int at = 2;
    if (j->argc > 4 && !strcmp(j->argv[2], "-r")) {
        fix = !strcmp(j->argv[3], "all") ? FMT_FIX_LEAKS | FMT_FIX_ERRORS : FMT_FIX_LEAKS;
        at = 4;
    }
    struct fmt_image *im;
    struct fmt_open_opts o = { .read_only = !fix, .check_mode = true };
    if (open_image(co, j, j->argv[at], &o, &im))
        return fail(&j->err);
    struct fmt_check_opts c = { .fix = fix, .finding = finding, .arg = &told };
    struct fmt_check_result r = { 0 };
    int rc = im->ops->check(co, im, &c, &r, &j->err);
    int closed = im->ops->close(co, im);
    if (rc)
        return fail(&j->err);
    if (closed)
        return fprintf(stderr, "q2-tool: close: %s\n", strerror(-closed)), 1;
    struct json_out out;
    json_out_init(&out, true);
    jo_open_obj(&out, NULL);
    jo_u64(&out, "image-end-offset", r.image_end_offset);
    jo_u64(&out, "check-errors", r.check_errors);
    put_nonzero(&out, "corruptions", r.corruptions);
    put_nonzero(&out, "leaks", r.leaks);
    put_nonzero(&out, "corruptions-fixed", r.corruptions_fixed);
    put_nonzero(&out, "leaks-fixed", r.leaks_fixed);
    put_nonzero(&out, "total-clusters", r.total_clusters);
    put_nonzero(&out, "allocated-clusters", r.allocated_clusters);
    put_nonzero(&out, "fragmented-clusters", r.fragmented_clusters);
    put_nonzero(&out, "compressed-clusters", r.compressed_clusters);
    jo_close(&out);
    print(&out);
    return r.check_errors ? 1 : r.corruptions ? 2 : r.leaks ? 3 : 0;
}

static void put_lists(struct json_out *j, const struct fmt_info *i)
{
    jo_open_arr(j, "snapshots");
    for (size_t n = 0; n < i->snapshot_count; n++) {
        const struct fmt_snapshot_info *s = &i->snapshots[n];
        jo_open_obj(j, NULL);
        jo_str(j, "id", s->id);
        jo_str(j, "name", s->name);
        jo_u64(j, "date-sec", s->date_sec);
        jo_u64(j, "date-nsec", s->date_nsec);
        jo_u64(j, "vm-state-size", s->vm_state_size);
        jo_u64(j, "vm-clock-ns", s->vm_clock_ns);
        jo_u64(j, "disk-size", s->disk_size);
        jo_close(j);
    }
    jo_close(j);
    jo_open_arr(j, "bitmaps");
    for (size_t n = 0; n < i->bitmap_count; n++) {
        jo_open_obj(j, NULL);
        jo_str(j, "name", i->bitmaps[n].name);
        jo_u64(j, "granularity", i->bitmaps[n].granularity);
        jo_bool(j, "in-use", i->bitmaps[n].in_use);
        jo_bool(j, "auto", i->bitmaps[n].auto_on);
        jo_close(j);
    }
    jo_close(j);
}

static int do_info(struct co *co, struct job *j)
{
    struct fmt_image *im;
    struct fmt_open_opts o = { .read_only = true, .info_only = true };
    if (open_image(co, j, j->argv[2], &o, &im))
        return fail(&j->err);
    struct fmt_info i;
    int rc = im->ops->info(co, im, &i, &j->err);
    int closed = im->ops->close(co, im);
    if (rc || closed)
        return fail(&j->err);
    struct json_out out;
    json_out_init(&out, true);
    jo_open_obj(&out, NULL);
    jo_u64(&out, "virtual-size", i.virtual_size);
    jo_u64(&out, "cluster-size", i.cluster_size);
    jo_u64(&out, "vm-state-offset", i.vm_state_offset);
    jo_bool(&out, "dirty", i.dirty);
    jo_bool(&out, "corrupt", i.corrupt);
    jo_bool(&out, "lazy-refcounts", i.lazy_refcounts);
    jo_bool(&out, "extended-l2", i.extended_l2);
    jo_bool(&out, "encrypted", i.encrypted);
    jo_u64(&out, "version", i.version);
    jo_u64(&out, "refcount-bits", i.refcount_bits);
    jo_str(&out, "compression-type", i.compression);
    jo_str(&out, "backing-name", i.backing_name);
    jo_str(&out, "backing-format", i.backing_format);
    jo_str(&out, "data-file", i.data_file);
    put_lists(&out, &i);
    jo_close(&out);
    print(&out);
    fmt_info_fini(&i);
    return 0;
}

static void run(struct co *co, void *arg)
{
    struct job *j = arg;
    const char *what = j->argv[1];
    if (!strcmp(what, "create"))
        j->code = do_create(co, j);
    else if (!strcmp(what, "measure"))
        j->code = do_measure(j);
    else if (!strcmp(what, "check"))
        j->code = do_check(co, j);
    else if (!strcmp(what, "info"))
        j->code = do_info(co, j);
    j->done = true;
}

static bool stop(void *arg) { return ((struct job *)arg)->done; }

int main(int argc, char **argv)
{
    struct job j = { .argc = argc, .argv = argv, .code = 64 };
    if (argc < 3) {
        fprintf(stderr, "usage: q2-tool create|measure|check|info ...\n");
        return 64;
    }
    struct rt *rt;
    struct rt_opts o = { .loops = 1, .manual = true, .cpu_workers = 1 };
    if (rt_new(&o, &rt, &j.err))
        return fail(&j.err);
    if (rt_spawn_on(rt_loop_at(rt, 0), run, &j))
        return 1;
    rt_loop_run(rt_loop_at(rt, 0), stop, &j);
    rt_free(rt);
    return j.code;
}
