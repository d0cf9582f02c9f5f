/* SPDX-License-Identifier: MIT
 *
 * qed_fix.c: fuzz target for what changes a QED file of which every byte may be hostile: repair, then the upgrade to qcow2.
 *
 * Purpose      Takes the input as a whole image in memory; repairs it, looks at what is left, repairs it again, upgrades it, checks it as qcow2.
 * Input        The bytes of an image, at most 1 MiB.
 * Invariants   I1 A repair that ends well leaves no error and no leak; a second one writes nothing.
 *              I2 A repaired image can be upgraded, as far as the disk below has room, and is sound then.
 *              I3 The file never grows past DISK_MAX: there is no space then, and the repair says so.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/qed_fix)
 */
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_image.h"
#include "rt/loop.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (1u << 20)
#define DISK_MAX (8u << 20)

static struct { uint8_t bytes[DISK_MAX]; uint64_t len, changes; } disk;

static int64_t disk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t n = off < disk.len ? min_u64(v.len_bytes, disk.len - off) : 0;
    if (n)
        iov_from_buf(v, disk.bytes + off, n);
    return (int64_t)n;
}

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    if (!range_inside(off, v.len_bytes, DISK_MAX))                                   /* I3 */
        return -ENOSPC;
    iov_to_buf(v, disk.bytes + off, v.len_bytes);
    disk.len = max_u64(disk.len, off + v.len_bytes);
    disk.changes++;
    return (int64_t)v.len_bytes;
}

static int disk_truncate(struct co *co, struct stor *s, uint64_t len)
{
    if (len > DISK_MAX)
        return -ENOSPC;
    if (len < disk.len)
        memset(disk.bytes + len, 0, disk.len - len);
    disk.len = len;
    disk.changes++;
    return 0;
}

static int disk_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    if (off < disk.len)
        memset(disk.bytes + off, 0, min_u64(len, disk.len - off));
    disk.changes++;
    return 0;
}

static int disk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = disk.len;
    return 0;
}

static int disk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    uint64_t end = off;
    while (end < off + len && (end >= disk.len || mem_is_zero(disk.bytes + end, min_u64(512, disk.len - end))))
        end += 512;
    *ret_e = end > off ? (struct stor_extent){ STOR_HOLE, off, min_u64(end - off, len) } : (struct stor_extent){ STOR_DATA, off, min_u64(512, len) };
    return 0;
}

static int disk_flush(struct co *co, struct stor *s) { return 0; }

static void disk_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(s);
}

static const struct stor_ops disk_ops = {
    .name = "memory", .preadv = disk_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .truncate = disk_truncate, .length = disk_length,
    .zero = disk_zero, .extent = disk_extent, .close = disk_close,
};

static struct fmt_image *open_image(struct co *co, const struct fmt_ops *ops, bool check_mode)
{
    struct stor *s = calloc(1, sizeof *s);
    struct fmt_image *im;
    ASSERT(s && !stor_init(s, &disk_ops, "fuzz"));
    s->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    s->traits.regular = s->traits.can_zero = true;
    if (!ops->open(co, s, &(struct fmt_open_opts){ .check_mode = check_mode }, &im, NULL))
        return im;
    disk_close(co, s);
    return NULL;
}

static int run_check(struct co *co, const struct fmt_ops *ops, unsigned fix, struct fmt_check_result *ret)
{
    struct fmt_image *im = open_image(co, ops, true);
    *ret = (struct fmt_check_result){ 0 };
    if (!im)
        return -EINVAL;
    int r = im->ops->check(co, im, &(struct fmt_check_opts){ .fix = fix }, ret, NULL);
    int closed = im->ops->close(co, im);
    return r < 0 ? r : closed;
}

static bool given(void *arg, const char *option) { return !strcmp(option, "format") || (arg && !strcmp(option, "backing_fmt")); }

static int upgrade(struct co *co)
{
    struct fmt_image *im = open_image(co, &fmt_qed_ops, false);
    if (!im)
        return -EINVAL;
    const struct qed_header *h = &qed_of(im)->h;
    bool named = im->has_backing && !(h->features & QED_F_BACKING_RAW);
    struct fmt_create_opts o = { .format = (char *)"qcow2", .backing_fmt = (char *)"raw" };
    struct fmt_amend_opts a = { .o = &o, .given = given, .arg = named ? &named : NULL, .force = true };
    int r = im->ops->amend(co, im, &a, NULL);
    int closed = im->ops->close(co, im);
    return r < 0 ? r : closed;
}

static bool done;

static void run(struct co *co, void *arg)
{
    const unsigned all = FMT_FIX_LEAKS | FMT_FIX_ERRORS;
    struct fmt_check_result res;
    if (run_check(co, &fmt_qed_ops, all, &res) == 0) {
        ASSERT(run_check(co, &fmt_qed_ops, 0, &res) == 0 && !res.corruptions && !res.leaks && !res.check_errors);      /* I1 */
        uint64_t changes = disk.changes;
        ASSERT(run_check(co, &fmt_qed_ops, all, &res) == 0 && disk.changes == changes);
        int r = upgrade(co);
        ASSERT(r == 0 || r == -ENOSPC || r == -EINVAL);
        if (r == 0)                                                                                               /* I2 */
            ASSERT(run_check(co, &fmt_qcow2_ops, 0, &res) == 0 && !res.corruptions && !res.leaks && !res.check_errors);
    }
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
    memset(disk.bytes, 0, disk.len);
    memcpy(disk.bytes, data, size);
    disk.len = size;
    disk.changes = 0;
    done = false;
    ASSERT(!rt_spawn_on(rt_loop_at(rt, 0), run, NULL));
    rt_loop_run(rt_loop_at(rt, 0), stop, NULL);
    return 0;
}
