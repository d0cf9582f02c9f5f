/* SPDX-License-Identifier: MIT
 *
 * image.c: opening and closing images, and blocking requests.
 *
 * Purpose      The face of a graph node towards callers that block.
 * Owns         struct byre_image
 * Invariants   I1 an image is closed only when no queue, job or export uses it (asserted)
 *              I2 a request that does not lie inside the image never reaches the graph
 * Concurrency  requests from any number of foreign threads; open, resize and close run on the home loop
 * Failure      open leaves nothing behind; close returns the first error, the image is gone all the same
 * Tests        lib_test.c, tests/lib
 */
#include "graph/blockdev.h"
#include "lib/lib_priv.h"

#include "base/checked.h"
#include "lib/image_opts.h"

struct graph_node *lib_image_node(struct byre_image *image)
{
    return image->node;
}

int lib_image_attach(struct byre_image *image, struct graph_node **ret_a, struct byre_err *err)
{
    return graph_attach(image->node, &(struct graph_attach_opts){ .who = "the device", .shared = STOR_PERM_ALL, .idle = true }, ret_a, err);
}

void lib_ctx_parting(struct byre_ctx *ctx)
{
    graph_parting(ctx->graph);
}

void lib_ctx_flush_soon(struct byre_ctx *ctx)
{
    graph_flush_soon(ctx->graph);
}

int lib_ctx_close_nodes(struct co *co, struct byre_ctx *ctx)
{
    return graph_blockdev_close_all(co, ctx->graph);
}

void lib_image_detach(struct co *co, struct graph_node *a)
{
    (void)graph_detach(co, a);                   /* whoever owns the node closes it after this, and tells */
}

/* ---- open and close ---- */
#define CACHE_CLEAN_MS 600000u   /* cache-clean-interval, unless it is said (FEATURES 1.127) */

struct opening { struct byre_image *image; struct graph_open_opts go; bool copy_on_read; struct byre_err *err; };

static int open_co(struct co *co, void *arg)
{
    struct opening *op = arg;
    struct byre_image *image = op->image;
    int r = graph_open(co, image->ctx->graph, &op->go, &image->node, op->err);
    if (r)
        return r;
    image->reader = image->node;
    r = op->copy_on_read ? graph_copy_on_read(co, image->node, &image->reader, op->err) : 0;
    if (r)
        (void)!graph_close(co, image->node);     /* nobody has written to it */
    return r;
}

static int graph_opts_of(const struct byre_open_opts *o, struct graph_open_opts *go, struct byre_err *err)
{
    unsigned known = (BYRE_OPEN_STABLE_TOP << 1) - 1;
    if ((o->flags & ~known) || o->cache < 0 || o->cache > BYRE_CACHE_UNSAFE || o->lazy_refcounts < 0 ||
        o->lazy_refcounts > BYRE_LAZY_OFF)
        return byre_fail(err, BAD_ARGUMENT, "an option of opening is out of range");
    *go = (struct graph_open_opts){
        .format = o->format, .node_name = o->node_name, .backing_names = o->backing_names, .data_file = o->data_file,
        .read_only = o->flags & BYRE_OPEN_READ_ONLY, .force_share = o->flags & BYRE_OPEN_FORCE_SHARE,
        .no_backing = o->flags & BYRE_OPEN_NO_BACKING, .no_lock = o->flags & BYRE_OPEN_NO_LOCK,
        .discard = o->flags & BYRE_OPEN_DISCARD, .refuse_probed_raw = o->flags & BYRE_OPEN_REFUSE_GUESSED_RAW,
        .direct = o->cache == BYRE_CACHE_NONE || o->cache == BYRE_CACHE_DIRECTSYNC,
        .writethrough = o->cache == BYRE_CACHE_WRITETHROUGH || o->cache == BYRE_CACHE_DIRECTSYNC,
        .no_flush = o->cache == BYRE_CACHE_UNSAFE,
        .key_secret = o->key_secret,
        .detect = o->flags & BYRE_OPEN_DETECT_UNMAP ? GRAPH_DETECT_UNMAP : o->flags & BYRE_OPEN_DETECT_ZEROES ? GRAPH_DETECT_ON : GRAPH_DETECT_OFF,
        .deny = o->flags & BYRE_OPEN_STABLE_TOP ? STOR_PERM_WRITE | STOR_PERM_RESIZE : 0,
        .stable = o->flags & BYRE_OPEN_STABLE,
        .fmt = { .check_mode = o->flags & BYRE_OPEN_CHECK, .info_only = o->flags & BYRE_OPEN_INFO,
                 .no_data = o->flags & (BYRE_OPEN_CHECK | BYRE_OPEN_INFO | BYRE_OPEN_NO_DATA),
                 .cache_bytes = o->cache_bytes, .cache_clean_ms = CACHE_CLEAN_MS, .frontier_bytes = o->frontier_bytes,
                 .discard_no_punch = !(o->flags & BYRE_OPEN_DISCARD), .unclean_ok = o->flags & BYRE_OPEN_SERVE_UNCLEAN,
                 .lazy_refcounts = o->lazy_refcounts == BYRE_LAZY_ON ? 1 : o->lazy_refcounts == BYRE_LAZY_OFF ? -1 : 0,
                 .snapshot = { .any = o->snapshot, .id = o->snapshot_id, .name = o->snapshot_name } },
    };
    if (o->snapshot && (o->snapshot_id || o->snapshot_name))
        return byre_fail(err, BAD_ARGUMENT, "a snapshot is picked in two ways at once");
    return 0;
}

int byre_open(struct byre_ctx *ctx, const char *name, const struct byre_open_opts *opts, struct byre_image **ret_image, struct byre_err *err)
{
    struct byre_open_opts o;
    struct opening op = { .err = err };
    AUTOFREE char *made = NULL;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (!r && (o.flags & BYRE_OPEN_IMAGE_OPTS))
        r = ctx->policy == GRAPH_STRICT ? byre_fail(err, NOT_SUPPORTED, "'%s': lists of node options need the ecosystem policy", name)
                                        : image_opts_to_name(name, &o, &made, err);
    if (!r)
        r = graph_opts_of(&o, &op.go, err);
    if (r)
        return r;
    op.go.filename = made ? made : name;
    op.go.overlay = o.recorded_by && strrchr(o.recorded_by, '/') ? strrchr(o.recorded_by, '/') + 1 : o.recorded_by;       /* without its folder, where nothing is looked for */
    op.image = calloc(1, sizeof *op.image);
    if (!op.image)
        return byre_fail(err, NOMEM, "no memory for an image");
    op.image->ctx = ctx;
    op.image->check_mode = o.flags & BYRE_OPEN_CHECK;
    op.copy_on_read = o.flags & BYRE_OPEN_COPY_ON_READ;
    r = lib_call(ctx, lib_home(ctx), open_co, &op);
    if (r) {
        free(op.image);
        return r;
    }
    atomic_fetch_add(&ctx->users, 1);
    *ret_image = op.image;
    return 0;
}

static int close_co(struct co *co, void *arg)
{
    struct byre_image *image = arg;
    (void)!graph_debug_remove(image->node, NULL);        /* or what the close writes would stand, and nobody let it go on */
    int r = image->reader != image->node ? graph_close(co, image->reader) : 0, r2 = graph_close(co, image->node);
    return r ? r : r2;
}

int byre_close(struct byre_image *image)
{
    if (!image)
        return 0;
    INV(I1, atomic_load(&image->users) == 0);
    int r = lib_ctx_call(image->ctx, close_co, image);
    atomic_fetch_sub(&image->ctx->users, 1);
    free(image);
    return r;
}

/* ---- description ---- */
uint64_t byre_size(const struct byre_image *image)
{
    return graph_length(image->node);
}

const char *byre_format(const struct byre_image *image)
{
    return graph_format(image->node)->name;
}

const char *byre_filename(const struct byre_image *image)
{
    return graph_filename(image->node);
}

int byre_is_probed(const struct byre_image *image)
{
    return graph_probed(image->node);
}

int byre_is_unclean(const struct byre_image *image)
{
    return atomic_load(&graph_image(image->node)->unclean);
}

int byre_is_read_only(const struct byre_image *image)
{
    return graph_read_only(image->node);
}

/* ---- requests ---- */
struct io { struct graph_node *node; struct iov v; uint64_t off, len, src; unsigned flags; };

static int io_check(const struct byre_image *image, uint64_t off, uint64_t len)
{
    return range_inside(off, len, graph_length(image->node)) ? 0 : -EIO;
}

static int flags_check(unsigned flags, unsigned allowed)
{
    return flags & ~allowed ? -EINVAL : 0;
}

static int read_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_read(co, io->node, io->v, io->off);
}

static int read_state_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_read_state(co, io->node, io->v, io->off);
}

static int write_state_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_write_state(co, io->node, io->v, io->off);
}

static int write_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_write(co, io->node, io->v, io->off, io->flags);
}

static int zero_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_zero(co, io->node, io->off, io->len, io->flags);
}

static int discard_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_discard(co, io->node, io->off, io->len);
}

static int clone_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_clone(co, io->node, io->src, io->off, io->len);
}

static int flush_co(struct co *co, void *arg)
{
    struct io *io = arg;
    return graph_flush(co, io->node);
}

static int run_io(struct byre_image *image, int (*fn)(struct co *co, void *arg), struct io *io)
{
    io->node = fn == read_co ? image->reader : image->node;
    return lib_call(image->ctx, lib_next_loop(image->ctx), fn, io);
}

_Static_assert((int)BYRE_FUA == (int)GRAPH_FUA && (int)BYRE_UNMAP == (int)GRAPH_UNMAP && (int)BYRE_NO_FALLBACK == (int)GRAPH_NO_FALLBACK &&
               (int)BYRE_COMPRESS == (int)GRAPH_COMPRESS, "the same bits");

static int transfer(struct byre_image *image, struct iov v, uint64_t off, unsigned flags, int (*fn)(struct co *co, void *arg))
{
    struct io io = { .v = v, .off = off, .flags = flags };
    int r = io_check(image, off, v.len_bytes);
    if (!r)
        r = flags_check(flags, BYRE_FUA | BYRE_COMPRESS);
    return r || !v.len_bytes ? r : run_io(image, fn, &io);
}

int byre_read(struct byre_image *image, void *buf, size_t len, uint64_t off)
{
    struct iovec slot;
    return transfer(image, iov_one(&slot, buf, len), off, 0, read_co);
}

int byre_read_state(struct byre_image *image, void *buf, size_t len, uint64_t off)
{
    struct iovec slot;
    struct io io = { .v = iov_one(&slot, buf, len), .off = off };
    return run_io(image, read_state_co, &io);
}

int byre_write_state(struct byre_image *image, const void *buf, size_t len, uint64_t off)
{
    struct iovec slot;
    struct io io = { .v = iov_one(&slot, buf, len), .off = off };
    return run_io(image, write_state_co, &io);
}

int byre_readv(struct byre_image *image, const struct iovec *iov, unsigned iov_count, uint64_t off)
{
    return transfer(image, iov_of(iov, iov_count), off, 0, read_co);
}

int byre_write(struct byre_image *image, const void *buf, size_t len, uint64_t off, unsigned flags)
{
    struct iovec slot;
    return transfer(image, iov_one(&slot, buf, len), off, flags, write_co);
}

int byre_writev(struct byre_image *image, const struct iovec *iov, unsigned iov_count, uint64_t off, unsigned flags)
{
    return transfer(image, iov_of(iov, iov_count), off, flags, write_co);
}

int byre_zero(struct byre_image *image, uint64_t off, uint64_t len, unsigned flags)
{
    struct io io = { .off = off, .len = len, .flags = flags };
    int r = io_check(image, off, len);
    if (!r)
        r = flags_check(flags, BYRE_FUA | BYRE_UNMAP | BYRE_NO_FALLBACK);
    return r || !len ? r : run_io(image, zero_co, &io);
}

int byre_discard(struct byre_image *image, uint64_t off, uint64_t len)
{
    struct io io = { .off = off, .len = len };
    int r = io_check(image, off, len);
    return r || !len ? r : run_io(image, discard_co, &io);
}

int byre_clone(struct byre_image *image, uint64_t src, uint64_t dst, uint64_t len)
{
    struct io io = { .src = src, .off = dst, .len = len };
    int r = io_check(image, src, len);
    if (!r)
        r = io_check(image, dst, len);
    return r || !len ? r : run_io(image, clone_co, &io);
}

int byre_flush(struct byre_image *image)
{
    struct io io = { 0 };
    return run_io(image, flush_co, &io);
}

struct resizing { struct graph_node *node; uint64_t size; int prealloc; struct byre_err *err; };

static int resize_co(struct co *co, void *arg)
{
    struct resizing *rs = arg;
    return graph_resize(co, rs->node, rs->size, (enum fmt_prealloc)rs->prealloc, rs->err);
}

int byre_resize(struct byre_image *image, uint64_t size, int prealloc, struct byre_err *err)
{
    struct resizing rs = { image->node, size, prealloc, err };
    if (prealloc < 0 || prealloc > BYRE_PREALLOC_FULL)
        return byre_fail(err, BAD_ARGUMENT, "the preallocation mode is out of range");
    return lib_call(image->ctx, lib_home(image->ctx), resize_co, &rs);
}
