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
#include "memory.h"
#include "one_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (1u << 20)
#define DISK_MAX (8u << 20)

static int disk_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    if (off < disk.len)
        memset(disk.bytes + off, 0, min_u64(len, disk.len - off));
    disk.changes++;
    return 0;
}

static const struct stor_ops disk_ops = {
    .name = "memory", .preadv = memory_preadv, .pwritev = memory_pwritev, .flush = memory_flush, .truncate = memory_truncate, .length = memory_length,
    .zero = disk_zero, .extent = memory_extent, .close = memory_close,
};

static struct fmt_image *open_image(struct co *co, const struct fmt_ops *ops, bool check_mode)
{
    return memory_open(co, &disk_ops, ops, &(struct fmt_open_opts){ .check_mode = check_mode });
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
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > INPUT_MAX)
        return 0;
    memory_load(data, size, DISK_MAX);
    one_run(run, NULL);
    return 0;
}
