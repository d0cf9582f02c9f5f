/* SPDX-License-Identifier: MIT
 *
 * image_json.c: ImageInfo and BlockDeviceInfo of the QMP schema.
 *
 * Purpose      Describes nodes in the words that QMP clients know.
 * Owns         nothing
 * Invariants   I1 members that the schema calls mandatory are always there
 *              I2 a node that is being described is not closed, nor opened in another way, and its bitmaps stay: other clients may want all of that
 * Concurrency  home loop; suspends in asking format and store
 * Failure      NULL with *err, or NULL when memory ran out
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "graph/blockdev.h"
#include "graph/fill.h"
#include "graph/runtime.h"
#include "stor/nbd.h"

/* Sets a member; v is taken over. A failure is remembered by dropping the object. */
static void set(json_t **o, const char *key, json_t *v)
{
    if (*o && (!v || json_object_set_new(*o, key, v))) {
        json_decref(*o);
        *o = NULL;
    } else if (!*o) {
        json_decref(v);
    }
}

static void set_str(json_t **o, const char *key, const char *s)
{
    if (s) {
        json_t *v = json_string(s);
        set(o, key, v ? v : json_string("?"));      /* bytes that are no UTF-8 */
    }
}

static json_t *snapshots_json(const struct fmt_info *f)
{
    json_t *a = json_array();
    for (size_t i = 0; i < f->snapshot_count; i++) {
        const struct fmt_snapshot_info *s = &f->snapshots[i];
        json_t *o = json_object();
        set_str(&o, "id", s->id);
        set_str(&o, "name", s->name);
        set(&o, "vm-state-size", json_integer((json_int_t)s->vm_state_size));
        set(&o, "date-sec", json_integer(s->date_sec));
        set(&o, "date-nsec", json_integer(s->date_nsec));
        set(&o, "vm-clock-sec", json_integer((json_int_t)(s->vm_clock_ns / 1000000000u)));
        set(&o, "vm-clock-nsec", json_integer((json_int_t)(s->vm_clock_ns % 1000000000u)));
        if (s->has_icount)
            set(&o, "icount", json_integer((json_int_t)s->icount));
        if (!o || json_array_append_new(a, o)) {
            json_decref(a);
            return NULL;
        }
    }
    return a;
}

static json_t *bitmaps_json(const struct fmt_info *f)
{
    json_t *a = json_array();
    for (size_t i = 0; i < f->bitmap_count; i++) {
        const struct fmt_bitmap_info *b = &f->bitmaps[i];
        json_t *flags = json_array(), *o = json_object();
        if (b->in_use)
            json_array_append_new(flags, json_string("in-use"));
        if (b->auto_on)
            json_array_append_new(flags, json_string("auto"));
        set_str(&o, "name", b->name);
        set(&o, "granularity", json_integer(b->granularity));
        set(&o, "flags", flags);
        if (!o || json_array_append_new(a, o)) {
            json_decref(a);
            return NULL;
        }
    }
    return a;
}

static json_t *qcow2_json(const struct fmt_info *f)
{
    json_t *d = json_object();
    set_str(&d, "compat", f->version == 2 ? "0.10" : "1.1");
    set_str(&d, "compression-type", f->compression);
    set(&d, "refcount-bits", json_integer(f->refcount_bits));
    if (f->has_data_file)
        set_str(&d, "data-file", f->data_file);
    if (f->version >= 3) {
        set(&d, "lazy-refcounts", json_boolean(f->lazy_refcounts));
        set(&d, "corrupt", json_boolean(f->corrupt));
        set(&d, "extended-l2", json_boolean(f->extended_l2));
        if (f->has_data_file)
            set(&d, "data-file-raw", json_boolean(f->data_file_raw));
        if (f->bitmap_count)
            set(&d, "bitmaps", bitmaps_json(f));
        if (f->generation) {
            set(&d, "x-generation", json_integer(f->generation));
            set(&d, "x-written-by-others", json_boolean(f->others_wrote));
        }
        if (f->bitmaps_outdated)
            set(&d, "x-bitmaps-outdated", json_integer(f->bitmaps_outdated));
    }
    return json_pack("{s:s,s:o}", "type", "qcow2", "data", d);
}

static const char *file_driver(struct graph_node *n)
{
    const struct stor *s = graph_store(n);
    return !strcmp(s->ops->name, "null") ? "null-co" : stor_is_nbd(s) ? "nbd" : s->traits.regular ? "file" : "host_device";
}

/* What image_json asks for. A filter has the store of the image below it, which may be another one, or none, by the time that there is an answer. */
static int ask_image(struct co *co, struct graph_node *n, struct fmt_info *f, bool *ret_known, uint64_t *ret_bytes, struct byre_err *err)
{
    struct graph_node *image = graph_skip_filters(n);
    if (!image || (image != n && !graph_look_begin(image)))
        return graph_image(n)->ops->info(co, graph_image(n), f, err);
    graph_hold_image(co, image);
    int r = graph_image(n)->ops->info(co, graph_image(n), f, err);
    *ret_known = !r && stor_allocated(co, graph_store(image), ret_bytes) == 0;
    if (image != n && graph_format(image) != &fmt_raw_ops)
        f->cluster_size = graph_image(image)->cluster;
    graph_release_image(image);
    if (image != n)
        graph_look_end(image);
    return r;
}

/* ImageInfo of one layer, without its backing image. */
static json_t *image_json(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct fmt_info f = { 0 };
    uint64_t bytes = 0;
    bool known = false;
    if (ask_image(co, n, &f, &known, &bytes, err))
        return NULL;
    json_t *o = json_object();
    set(&o, "virtual-size", json_integer((json_int_t)graph_length(n)));
    set_str(&o, "filename", graph_filename(n));
    set_str(&o, "format", graph_is_bare_file(n) ? file_driver(n) : graph_format(n)->name);
    if (known)
        set(&o, "actual-size", json_integer((json_int_t)bytes));
    if (f.cluster_size)
        set(&o, "cluster-size", json_integer((json_int_t)f.cluster_size));
    if (graph_format(n) != &fmt_raw_ops || !strcmp(file_driver(n), "file") || !strcmp(file_driver(n), "host_device"))
        set(&o, "dirty-flag", json_boolean(f.dirty));        /* others below have nothing to say of it */
    if (f.encrypted)
        set(&o, "encrypted", json_true());
    set_str(&o, "backing-filename", f.backing_name);
    set_str(&o, "backing-filename-format", f.backing_format);
    set_str(&o, "full-backing-filename", graph_backing_filename(n));
    if (f.snapshot_count)
        set(&o, "snapshots", snapshots_json(&f));
    if (f.is_qcow2)
        set(&o, "format-specific", qcow2_json(&f));
    else if (graph_is_bare_file(n) && !strcmp(file_driver(n), "file"))
        set(&o, "format-specific", json_pack("{s:s,s:{}}", "type", "file", "data"));
    fmt_info_fini(&f);
    return o;
}

/* The layers of a chain as it is at one moment. Jobs take layers out of it, and others delete nodes, while this looks: the nodes stay (I2). */
struct layers { size_t count; struct graph_node *n[]; };

static struct layers *layers_take(struct graph_node *top, bool flat)
{
    size_t count = 0;
    for (struct graph_node *n = top; n; n = flat ? NULL : graph_backing(n))
        count++;
    struct layers *l = calloc(1, sizeof *l + count * sizeof l->n[0]);
    for (struct graph_node *n = top; l && n && graph_look_begin(n); n = flat ? NULL : graph_backing(n))
        l->n[l->count++] = n;
    return l;
}

static void layers_let(struct layers *l)
{
    while (l->count)
        graph_look_end(l->n[--l->count]);
    free(l);
}

/* The image and, nested, what lies below it; in a loop from the bottom up, so that depth costs no stack. */
static json_t *chain_json(struct co *co, struct graph_node *top, bool flat, struct byre_err *err)
{
    struct layers *l = layers_take(top, flat);
    json_t *below = NULL;
    bool failed = !l;
    for (size_t i = l ? l->count : 0; i-- > 0 && !failed;) {
        json_t *o = image_json(co, l->n[i], err);
        if (below)
            set(&o, "backing-image", below);
        failed = !o;
        below = o;
    }
    if (l)
        layers_let(l);
    return below;
}

static void set_common(json_t **o, struct graph_node *n, bool writethrough)
{
    static const char *const detect[] = { [GRAPH_DETECT_OFF] = "off", [GRAPH_DETECT_ON] = "on", [GRAPH_DETECT_UNMAP] = "unmap" };
    static const char *const zeros[] = { "bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr" };
    char said[STOR_NBD_COMPLAINT_MAX];
    struct stor *s = graph_is_filter(n) ? NULL : graph_store(n);             /* a filter keeps nothing: that is of the image below */
    for (size_t i = 0; i < sizeof zeros / sizeof zeros[0]; i++)
        set(o, zeros[i], json_integer(0));
    set(o, "write_threshold", json_integer((json_int_t)graph_write_threshold(n)));
    set(o, "ro", json_boolean(graph_meant_read_only(n)));
    set(o, "encrypted", json_false());
    set(o, "detect_zeroes", json_string(detect[graph_detect_zeroes(n)]));
    set(o, "active", json_boolean(graph_is_active(n)));
    set(o, "cache", json_pack("{s:b,s:b,s:b}", "no-flush", s && s->no_flush, "direct", s && s->traits.direct, "writeback", !writethrough));
    set_str(o, "file", graph_filename(n));
    set_str(o, "x-byre-complaint", s && stor_nbd_complaint(s, 0, 0, said) ? said : NULL);
}

/* Our own member: how the rest of a new cluster is zeroed where it is not known to be zero already, and why. */
static json_t *first_writes_json(const struct graph_node *n)
{
    const struct fill_costs *c = graph_fill_costs(n);
    uint32_t cluster = graph_image((struct graph_node *)(uintptr_t)n)->granule;
    if (cluster <= FILL_SMALL_BYTES)
        return json_pack("{s:s}", "x-choice", "merge");
    struct fill_estimate e = fill_estimate(c, 0, 4096, cluster - 4096);
    const char *choice = !e.known ? "measure" : e.merged_ns <= e.split_ns ? "merge" : "zero-range";
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "x-choice", choice, "x-merge-ns", (json_int_t)e.merged_ns, "x-zero-range-ns", (json_int_t)e.split_ns,
                     "x-zero-call-ns", (json_int_t)atomic_load(&c->zero_ns), "x-write-ns", (json_int_t)atomic_load(&c->write_ns),
                     "x-write-mib-ns", (json_int_t)atomic_load(&c->mib_ns), "x-merged", (json_int_t)atomic_load(&c->merged), "x-zeroed", (json_int_t)atomic_load(&c->split));
}

/* FEATURES 1.106. What cannot be read counts nothing. */
static json_t *bitmaps_held_json(struct co *co, struct graph_node *n)
{
    struct fmt_bitmap *b;
    if (graph_bitmaps(co, n, &b, NULL) || !b)
        return NULL;
    json_t *all = json_array();
    for (; b; b = b->next) {
        bool sound = graph_bitmap_load(co, n, b, NULL) == 0;
        json_t *o = json_pack("{s:s,s:b,s:b,s:I,s:b,s:I}", "name", b->name, "recording", sound && b->enabled, "persistent", b->persistent,
                              "count", sound ? (json_int_t)dirty_count(b->bits) : (json_int_t)0, "busy", b->busy != 0, "granularity", (json_int_t)1 << b->granularity_bits);
        if (!sound)
            set(&o, "inconsistent", json_true());
        json_array_append_new(all, o);
    }
    return all;
}

static json_t *dirty_bitmaps_json(struct co *co, struct graph_node *n)
{
    if (graph_is_filter(n))
        return NULL;                             /* they are the image's, where it is described */
    graph_hold_image(co, n);                     /* no bitmap is removed meanwhile */
    json_t *all = bitmaps_held_json(co, n);
    graph_release_image(n);
    return all;
}

json_t *device_json(struct co *co, const struct device_json *d, struct byre_err *err)
{
    json_int_t depth = 0;
    for (struct graph_node *n = d->node; !d->flat && graph_backing(n); n = graph_skip_implicit(graph_backing(n)))
        depth++;
    json_t *image = chain_json(co, d->node, d->flat, err);
    if (!image)
        return NULL;
    json_t *o = json_object();
    set(&o, "image", image);
    set_str(&o, "node-name", graph_node_name(d->node));
    set_str(&o, "drv", graph_is_bare_file(d->node) ? file_driver(d->node) : graph_format(d->node)->name);
    set_str(&o, "backing_file", graph_backing_filename(d->node));
    set(&o, "backing_file_depth", json_integer(depth));
    if (!graph_read_only(d->node) && !graph_is_filter(d->node))
        set(&o, "x-first-writes", first_writes_json(d->node));
    set_common(&o, d->node, d->writethrough);
    json_t *bitmaps = dirty_bitmaps_json(co, d->node);
    if (bitmaps)
        set(&o, "dirty-bitmaps", bitmaps);
    return o;
}

static json_t *file_held_json(struct co *co, const struct device_json *d, struct byre_err *err)
{
    char name[GRAPH_NAME_MAX + 8];
    struct stor *s = graph_store(d->node);
    uint64_t len, bytes;
    int r = stor_length(co, s, &len);
    if (r) {
        (void)byre_fail_code(err, IO, r, "%s: cannot get the length", graph_filename(d->node));
        return NULL;
    }
    const char *drv = file_driver(d->node);
    json_t *image = json_object();
    set(&image, "virtual-size", json_integer((json_int_t)len));
    set_str(&image, "filename", graph_filename(d->node));
    set_str(&image, "format", drv);
    if (!strcmp(drv, "file") || !strcmp(drv, "host_device"))
        set(&image, "dirty-flag", json_false());
    if (stor_allocated(co, s, &bytes) == 0)
        set(&image, "actual-size", json_integer((json_int_t)bytes));
    if (!strcmp(drv, "file"))
        set(&image, "format-specific", json_pack("{s:s,s:{}}", "type", "file", "data"));
    if (graph_file_node_name(d->node))
        snprintf(name, sizeof name, "%s", graph_file_node_name(d->node));
    else
        snprintf(name, sizeof name, "%s-file", graph_node_name(d->node));
    json_t *o = json_object();
    set(&o, "image", image);
    set_str(&o, "node-name", name);
    set_str(&o, "drv", drv);
    set(&o, "backing_file_depth", json_integer(0));
    set_common(&o, d->node, d->writethrough);
    set_str(&o, "detect_zeroes", "off");         /* that is the image's matter */
    return o;
}

json_t *file_node_json(struct co *co, const struct device_json *d, struct byre_err *err)
{
    graph_hold_image(co, d->node);               /* and with it its store */
    json_t *o = file_held_json(co, d, err);
    graph_release_image(d->node);
    return o;
}
