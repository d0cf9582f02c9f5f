/* SPDX-License-Identifier: MIT
 *
 * qed_open.c: fuzz target for everything that reads a QED file's structure: header, tables, check, map.
 *
 * Purpose      Takes the input as a whole image in memory; parses, opens, describes, checks twice, maps from end to end.
 * Input        The bytes of an image, at most 4 MiB.
 * Invariants   I1 Nothing is written; a check tells the same numbers twice.
 *              I2 An extent lies in what was asked for; data lie in the file, behind the header, as whole clusters.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/qed_open)
 */
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_image.h"
#include "rt/loop.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (4u << 20)

static struct { const uint8_t *bytes; uint64_t len; } disk;

static int64_t disk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t n = off < disk.len ? min_u64(v.len_bytes, disk.len - off) : 0;
    if (n)
        iov_from_buf(v, disk.bytes + off, n);
    return (int64_t)n;
}

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags) { ASSERT(!"I1"); }
static int disk_truncate(struct co *co, struct stor *s, uint64_t len) { ASSERT(!"I1"); }

static int disk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = disk.len;
    return 0;
}

/* Zeros of whole 512-byte blocks are a hole: the check may then skip them. */
static int disk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    uint64_t end = off;
    while (end < off + len && (end >= disk.len || mem_is_zero(disk.bytes + end, min_u64(512, disk.len - end))))
        end += 512;
    *ret_e = end > off ? (struct stor_extent){ STOR_HOLE, off, min_u64(end - off, len) } : (struct stor_extent){ STOR_DATA, off, min_u64(512, len) };
    return 0;
}

static int disk_flush(struct co *co, struct stor *s) { ASSERT(!"I1"); }

static void disk_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(s);
}

static const struct stor_ops disk_ops = {
    .name = "memory", .preadv = disk_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .truncate = disk_truncate, .length = disk_length,
    .extent = disk_extent, .close = disk_close,
};

static struct fmt_image *open_image(struct co *co, const struct fmt_open_opts *o)
{
    struct stor *s = calloc(1, sizeof *s);
    struct fmt_image *im;
    ASSERT(s && !stor_init(s, &disk_ops, "fuzz"));
    s->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    s->traits.regular = true;
    if (!fmt_qed_ops.open(co, s, o, &im, NULL))
        return im;
    disk_close(co, s);
    return NULL;
}

static void parse_only(const uint8_t *data, size_t size)
{
    struct qed_header h;
    struct qed_disk_header d;
    if (qed_header_parse(data, size, size, "fuzz", &h, NULL))
        return;
    struct qed_geom g = qed_header_geom(&h);
    ASSERT(h.size <= g.size_max && qed_l1_used(&g, h.size) <= g.entries && h.l1_off + g.table_bytes <= size);
    qed_header_emit(&h, &d);
    ASSERT(!memcmp(&d, data, h.features & QED_F_BACKING ? 64 : 56));
}

static void describe(struct co *co)
{
    struct fmt_image *im = open_image(co, &(struct fmt_open_opts){ .info_only = true });
    struct fmt_info i;
    if (!im)
        return;
    if (!im->ops->info(co, im, &i, NULL))
        fmt_info_fini(&i);
    im->ops->close(co, im);
}

static void map_all(struct co *co)
{
    struct fmt_image *im = open_image(co, &(struct fmt_open_opts){ .read_only = true });
    if (!im)
        return;
    const struct qed_geom *g = &qed_of(im)->g;
    uint64_t at = 0;
    for (int n = 0; n < 4096 && at < im->size; n++) {
        struct fmt_extent e = { 0 };
        epoch_token t = epoch_enter(im->epoch, co_loop(co));
        int r = im->ops->map(co, im, at, im->size - at, &e);
        epoch_leave(im->epoch, co_loop(co), t);
        if (r) {
            at = round_down(at, g->cluster_size) + g->cluster_size;
            continue;
        }
        ASSERT(e.len && e.len <= im->size - at && e.has_host == (e.kind == FMT_DATA) && !e.writable);         /* I2 */
        ASSERT(!e.has_host || (e.host >= g->header_bytes && range_inside(e.host, e.len, disk.len) && (e.host - at) % g->cluster_size == 0));
        at += e.len;
    }
    im->ops->close(co, im);
}

static bool run_check(struct co *co, struct fmt_check_result *ret)
{
    struct fmt_image *im = open_image(co, &(struct fmt_open_opts){ .check_mode = true, .read_only = true });
    if (!im)
        return false;
    int r = im->ops->check(co, im, &(struct fmt_check_opts){ 0 }, ret, NULL);
    im->ops->close(co, im);
    return !r;
}

static bool done;

static void run(struct co *co, void *arg)
{
    struct fmt_check_result first = { 0 }, again = { 0 };
    describe(co);
    map_all(co);
    bool ok = run_check(co, &first);
    ASSERT(run_check(co, &again) == ok && !memcmp(&first, &again, sizeof first));                          /* I1 */
    done = true;
}

static bool stop(void *arg) { return done; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct rt *rt;
    struct rt_opts o = { .loops = 1, .manual = true, .cpu_workers = 1, .backend = RT_BACKEND_THREADS };
    if (size > INPUT_MAX)
        return 0;
    if (!rt)
        ASSERT(!rt_new(&o, &rt, NULL));
    parse_only(data, size);
    disk.bytes = data;
    disk.len = size;
    done = false;
    ASSERT(!rt_spawn_on(rt_loop_at(rt, 0), run, NULL));
    rt_loop_run(rt_loop_at(rt, 0), stop, NULL);
    return 0;
}
