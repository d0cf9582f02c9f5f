/* SPDX-License-Identifier: MIT
 *
 * info.c: what an image says about itself.
 *
 * Purpose      Gathers the answers of format, store and graph into one struct that the caller frees.
 * Owns         struct info (public part first) and every string in it
 * Invariants   I1 strings of the public part point into the private part
 * Concurrency  any foreign thread; the question runs on the home loop
 * Failure      *ret_info untouched
 * Tests        tests/cli/info_test.py
 */
#include "base/list.h"
#include "lib/lib_priv.h"

struct info {
    struct byre_info pub;
    struct fmt_info fmt;             /* owns most strings */
    char *filename, *full_backing;
    struct byre_snapshot_info *snapshots;
    const struct byre_snapshot_info **snapshot_list;
    struct byre_crypt_info crypt;
    struct byre_bitmap_info *bitmaps;
    const struct byre_bitmap_info **bitmap_list;
};

struct asking { struct byre_image *image; struct info *info; struct byre_err *err; };

static int ask_co(struct co *co, void *arg)
{
    struct asking *a = arg;
    struct graph_node *n = a->image->node;
    struct fmt_image *im = graph_image(n);
    int r = im->ops->info(co, im, &a->info->fmt, a->err);
    if (!r)
        a->info->pub.has_actual_size = stor_allocated(co, graph_store(n), &a->info->pub.actual_size) == 0;
    return r;
}

static int take_snapshots(struct info *in)
{
    size_t n = in->fmt.snapshot_count;
    in->snapshots = calloc(n + 1, sizeof *in->snapshots);
    in->snapshot_list = calloc(n + 1, sizeof *in->snapshot_list);
    if (!in->snapshots || !in->snapshot_list)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        const struct fmt_snapshot_info *s = &in->fmt.snapshots[i];
        in->snapshots[i] = (struct byre_snapshot_info){
            .id = s->id, .name = s->name, .vm_state_size = s->vm_state_size, .disk_size = s->disk_size, .vm_clock_ns = s->vm_clock_ns,
            .icount = s->icount, .date_sec = s->date_sec, .date_nsec = s->date_nsec, .has_icount = s->has_icount };
        in->snapshot_list[i] = &in->snapshots[i];
    }
    in->pub.snapshots = in->snapshot_list;
    in->pub.snapshot_count = n;
    return 0;
}

static int take_bitmaps(struct info *in)
{
    size_t n = in->fmt.bitmap_count;
    in->bitmaps = calloc(n + 1, sizeof *in->bitmaps);
    in->bitmap_list = calloc(n + 1, sizeof *in->bitmap_list);
    if (!in->bitmaps || !in->bitmap_list)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        const struct fmt_bitmap_info *b = &in->fmt.bitmaps[i];
        in->bitmaps[i] = (struct byre_bitmap_info){ .name = b->name, .granularity = b->granularity, .in_use = b->in_use, .auto_on = b->auto_on };
        in->bitmap_list[i] = &in->bitmaps[i];
    }
    in->pub.bitmaps = in->bitmap_list;
    in->pub.bitmap_count = n;
    in->pub.bitmaps_damaged = in->fmt.bitmaps_damaged;
    return 0;
}

static void take_scalars(struct info *in, struct graph_node *n)
{
    const struct fmt_info *f = &in->fmt;
    struct byre_info *p = &in->pub;
    p->filename = in->filename;
    p->format = graph_format(n)->name;
    p->virtual_size = f->virtual_size;
    p->cluster_size = f->cluster_size;
    p->dirty = f->dirty;
    p->corrupt = f->corrupt;
    p->encrypted = f->encrypted;
    p->backing_filename = f->backing_name;
    p->backing_format = f->backing_format;
    p->full_backing_filename = in->full_backing;
    p->vm_state_offset = f->vm_state_offset;
    p->is_qcow2 = f->is_qcow2;
    p->version = (int)f->version;
    p->lazy_refcounts = f->lazy_refcounts;
    p->extended_l2 = f->extended_l2;
    p->has_data_file = f->has_data_file;
    p->data_file_raw = f->data_file_raw;
    p->refcount_bits = f->refcount_bits;
    p->compression = f->compression;
    p->data_file = f->data_file;
    p->generation = f->generation;
    p->others_wrote = f->others_wrote;
    p->bitmaps_outdated = f->bitmaps_outdated;
}

static void take_crypt(struct info *in)
{
    const struct fmt_crypt_info *c = in->fmt.crypt;
    if (!c)
        return;
    in->crypt = (struct byre_crypt_info){
        .format = c->format, .cipher_alg = c->cipher_alg, .cipher_mode = c->cipher_mode, .ivgen_alg = c->ivgen_alg,
        .ivgen_hash_alg = c->ivgen_hash_alg, .hash_alg = c->hash_alg, .uuid = c->uuid, .payload_offset = c->payload_offset,
        .master_key_iters = c->master_key_iters, .detached = c->detached };
    for (unsigned i = 0; i < 8; i++)
        in->crypt.slots[i] = (struct byre_key_slot){ c->slots[i].active, c->slots[i].iters, c->slots[i].key_offset, c->slots[i].stripes };
    in->pub.crypt = &in->crypt;
}

static int dup_name(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return from && !*to ? -ENOMEM : 0;
}

void byre_info_free(struct byre_info *info)
{
    if (!info)
        return;
    struct info *in = CONTAINER_OF(info, struct info, pub);
    fmt_info_fini(&in->fmt);
    free(in->filename);
    free(in->full_backing);
    free(in->snapshots);
    free(in->snapshot_list);
    free(in->bitmaps);
    free(in->bitmap_list);
    free(in);
}

int byre_info_get(struct byre_image *image, struct byre_info **ret_info, struct byre_err *err)
{
    struct info *in = calloc(1, sizeof *in);
    if (!in)
        return byre_fail(err, NOMEM, "no memory for a description");
    struct asking a = { image, in, err };
    int r = lib_call(image->ctx, lib_home(image->ctx), ask_co, &a);
    if (!r && (dup_name(&in->filename, graph_filename(image->node)) || dup_name(&in->full_backing, graph_backing_filename(image->node)) ||
               take_snapshots(in) || take_bitmaps(in)))
        r = byre_fail(err, NOMEM, "no memory for a description");
    if (r) {
        byre_info_free(&in->pub);
        return r;
    }
    take_scalars(in, image->node);
    take_crypt(in);
    *ret_info = &in->pub;
    return 0;
}
