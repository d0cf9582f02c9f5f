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
#include "memory.h"
#include "one_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (4u << 20)
#define CAP (32u << 20)

/* Nothing is known of holes. */
static int disk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    *ret_e = (struct stor_extent){ STOR_DATA, off, len };
    return 0;
}

static const struct stor_ops disk_ops = {
    .name = "memory", .preadv = memory_preadv, .pwritev = memory_pwritev, .flush = memory_flush, .truncate = memory_truncate, .length = memory_length,
    .extent = disk_extent, .close = memory_close,
};

static struct fmt_image *open_image(struct co *co, const struct fmt_open_opts *o) { return memory_open(co, &disk_ops, &fmt_qcow2_ops, o); }

/* ---- what is done with the input ---- */

/* From every beginning of it: the names that it tells of lie inside the file, and what it asks for is there. */
static void peek(const uint8_t *data, size_t size)
{
    struct fmt_peek p;
    for (size_t len = size; ; len = len / 2) {
        int r = q2_peek(data, len, size, &p);
        ASSERT(r <= 0 || ((size_t)r > len && (size_t)r <= size));
        if (!r) {
            ASSERT(p.name_off <= size && p.name_len <= size - p.name_off);
            fmt_peek_fini(&p);
        }
        if (!len)
            break;
    }
}

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
    disk.changes = 0;
    bool ok = run_check(co, 0, &before);
    ASSERT(run_check(co, 0, &again) == ok && !memcmp(&before, &again, sizeof before));     /* I1 */
    ASSERT(!disk.changes);
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
    parse_only(data, size);
    peek(data, size);
    memory_load(data, size, CAP);
    one_run(run, NULL);
    return 0;
}
