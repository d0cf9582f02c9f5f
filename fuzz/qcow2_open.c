/* SPDX-License-Identifier: MIT
 *
 * qcow2_open.c: fuzz target for everything that reads a qcow2 file's structure: header, tables, check, repair, map.
 *
 * Purpose      Takes the input as a whole image in memory; parses, opens, checks, repairs twice, maps and reads a little.
 * Input        The bytes of an image, at most 4 MiB.
 * Invariants   I1 Nothing but repair writes; a check tells the same numbers twice.
 *              I2 Repair ends, makes nothing worse, and a second repair changes nothing (P5).
 *              I3 The file grows by the size of its own tables at most (SECURITY.md), never by what it claims.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/qcow2_open)
 */
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_image.h"
#include "one_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (4u << 20)
#define CAP (32u << 20)

/* ---- a store in memory that outlives its image ---- */

static struct { uint8_t *bytes; uint64_t len, writes; } disk;

static int64_t disk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t n = off < disk.len ? min_u64(v.len_bytes, disk.len - off) : 0;
    if (n)
        iov_from_buf(v, disk.bytes + off, n);
    return (int64_t)n;
}

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    disk.writes++;
    if (!range_inside(off, v.len_bytes, CAP))
        return -ENOSPC;
    iov_to_buf(v, disk.bytes + off, v.len_bytes);
    disk.len = max_u64(disk.len, off + v.len_bytes);
    return (int64_t)v.len_bytes;
}

static int disk_truncate(struct co *co, struct stor *s, uint64_t len)
{
    disk.writes++;
    if (len > CAP)
        return -ENOSPC;
    if (len < disk.len)
        memset(disk.bytes + len, 0, disk.len - len);
    disk.len = len;
    return 0;
}

static int disk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = disk.len;
    return 0;
}

static int disk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    *ret_e = (struct stor_extent){ STOR_DATA, off, len };
    return 0;
}

static int disk_flush(struct co *co, struct stor *s) { return 0; }
static int disk_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len) { return -ENOTSUP; }
static int disk_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags) { return -ENOTSUP; }

static void disk_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(s);
}

static const struct stor_ops disk_ops = {
    .name = "memory", .preadv = disk_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .zero = disk_zero, .discard = disk_discard,
    .truncate = disk_truncate, .length = disk_length, .extent = disk_extent, .close = disk_close,
};

static struct stor *disk_open(void)
{
    struct stor *s = calloc(1, sizeof *s);
    ASSERT(s && !stor_init(s, &disk_ops, "fuzz"));
    s->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    s->traits.regular = true;
    return s;
}

static struct fmt_image *open_image(struct co *co, const struct fmt_open_opts *o)
{
    struct stor *s = disk_open();
    struct fmt_image *im;
    if (!fmt_qcow2_ops.open(co, s, o, &im, NULL))
        return im;
    disk_close(co, s);
    return NULL;
}

/* ---- what is done with the input ---- */

static void parse_only(const uint8_t *data, size_t size)
{
    for (int mode = 0; mode < 2; mode++) {
        struct q2_header h;
        if (q2_header_parse(data, size, size, mode, "fuzz", &h, NULL))
            continue;
        struct q2_geom g = q2_geom_make(h.version, h.cluster_bits, h.refcount_order, h.incompat & Q2_INCOMPAT_EXT_L2);
        ASSERT(q2_l1_entries(&g, h.size) <= h.l1_size && h.l1_size <= Q2_L1_BYTES_MAX / 8);
        (void)!q2_header_supported(&h, "fuzz", NULL);
        q2_header_fini(&h);
    }
}

/* Opens read-only as a user would: describes, maps, unpacks a few clusters. */
static void look(struct co *co)
{
    struct fmt_open_opts info = { .info_only = true, .read_only = true }, plain = { .read_only = true };
    struct fmt_image *im = open_image(co, &info);
    struct fmt_info i;
    if (im && !im->ops->info(co, im, &i, NULL))
        fmt_info_fini(&i);
    if (im)
        im->ops->close(co, im);
    im = open_image(co, &plain);
    if (!im)
        return;
    uint64_t at = 0;
    uint8_t buf[64];
    struct iovec v;
    for (int n = 0; n < 64 && at < im->size; n++) {
        struct fmt_extent e = { 0 };
        if (im->ops->map(co, im, at, im->size - at, &e))
            break;
        ASSERT(e.len && e.len <= im->size - at);
        if (e.kind == FMT_ENCODED)
            (void)!im->ops->read_encoded(co, im, &e, at, iov_one(&v, buf, min_u64(e.len, sizeof buf)));
        at += e.len;
    }
    im->ops->close(co, im);
}

static bool run_check(struct co *co, unsigned fix, struct fmt_check_result *ret)
{
    struct fmt_open_opts o = { .check_mode = true, .read_only = !fix };
    struct fmt_check_opts c = { .fix = fix };
    struct fmt_image *im = open_image(co, &o);
    if (!im)
        return false;
    int rc = im->ops->check(co, im, &c, ret, NULL);
    int closed = im->ops->close(co, im);
    return !rc && !closed;
}

static void check_and_repair(struct co *co, uint64_t size)
{
    struct fmt_check_result before = { 0 }, again = { 0 }, after = { 0 }, last = { 0 };
    disk.writes = 0;
    bool ok = run_check(co, 0, &before);
    ASSERT(run_check(co, 0, &again) == ok && !memcmp(&before, &again, sizeof before));     /* I1 */
    ASSERT(!disk.writes);
    if (!ok || !run_check(co, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &after))
        return;
    ASSERT(after.check_errors <= before.check_errors);
    uint32_t bits = be32_get(&((struct q2_disk_header *)disk.bytes)->cluster_bits);
    ASSERT(disk.len <= 2 * size + (16ull << bits));                                        /* I3 */
    uint8_t *copy = malloc(disk.len);
    uint64_t len = disk.len;
    ASSERT(copy);
    memcpy(copy, disk.bytes, len);
    ASSERT(run_check(co, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &last));                          /* I2 */
    ASSERT(last.corruptions == after.corruptions && last.leaks == after.leaks);
    ASSERT(disk.len == len && !memcmp(copy, disk.bytes, len));
    free(copy);
}

static void run(struct co *co, void *arg)
{
    uint64_t size = disk.len;
    look(co);
    check_and_repair(co, size);
    look(co);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > INPUT_MAX)
        return 0;
    if (!disk.bytes)
        disk.bytes = calloc(1, CAP);
    ASSERT(disk.bytes);
    parse_only(data, size);
    memset(disk.bytes, 0, disk.len);
    memcpy(disk.bytes, data, size);
    disk.len = size;
    one_run(run, NULL);
    return 0;
}
