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
#include "memory.h"
#include "one_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (4u << 20)

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags) { ASSERT(!"I1"); }
static int disk_truncate(struct co *co, struct stor *s, uint64_t len) { ASSERT(!"I1"); }
static int disk_flush(struct co *co, struct stor *s) { ASSERT(!"I1"); }

static const struct stor_ops disk_ops = {
    .name = "memory", .preadv = memory_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .truncate = disk_truncate, .length = memory_length,
    .extent = memory_extent, .close = memory_close,
};

static struct fmt_image *open_image(struct co *co, const struct fmt_open_opts *o) { return memory_open(co, &disk_ops, &fmt_qed_ops, o); }

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

/* From every beginning of it, the names that it tells of lie inside the file. */
static void peek(const uint8_t *data, size_t size)
{
    struct fmt_peek p;
    for (size_t len = size; ; len = len / 2) {
        if (!qed_peek(data, len, size, &p)) {
            ASSERT(p.name_len <= QED_NAME_MAX && p.name_off <= size && p.name_len <= size - p.name_off);
            fmt_peek_fini(&p);
        }
        if (!len)
            break;
    }
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

static void run(struct co *co, void *arg)
{
    struct fmt_check_result first = { 0 }, again = { 0 };
    describe(co);
    map_all(co);
    bool ok = run_check(co, &first);
    ASSERT(run_check(co, &again) == ok && !memcmp(&first, &again, sizeof first));                          /* I1 */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > INPUT_MAX)
        return 0;
    parse_only(data, size);
    peek(data, size);
    memory_load(data, size, INPUT_MAX);
    one_run(run, NULL);
    return 0;
}
