/* SPDX-License-Identifier: MIT
 *
 * q2_oom_test.c: memory and storage that fail at every place of check, repair, info and create, once and from then on.
 *
 * Purpose      Each call answers success or an error; nothing leaks (address sanitizer); a repair that met a failure
 *              leaves nothing more dangerous than there was and can be done again.
 * Owns         Images of the fuzz corpus in memory.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        q2_check.c, q2_repair.c, q2_rebuild.c, q2_walk.c, pieces.c, q2_snapshot.c, q2_bitmap.c, q2_info.c, q2_create.c
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_image.h"

/* ---- allocations (linked with --wrap) ---- */

static _Atomic bool armed, for_ever;
static _Atomic long until_failure;

static bool fails_now(void)
{
    if (!atomic_load(&armed))
        return false;
    long n = atomic_fetch_sub(&until_failure, 1);
    return n == 0 || (n < 0 && atomic_load(&for_ever));
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
int __real_posix_memalign(void **p, size_t a, size_t n);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);

void *__wrap_malloc(size_t n) { return fails_now() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t m) { return fails_now() ? NULL : __real_calloc(n, m); }
void *__wrap_realloc(void *p, size_t n) { return fails_now() ? NULL : __real_realloc(p, n); }
int __wrap_posix_memalign(void **p, size_t a, size_t n) { return fails_now() ? ENOMEM : __real_posix_memalign(p, a, n); }
char *__wrap_strdup(const char *s) { return fails_now() ? NULL : __real_strdup(s); }
char *__wrap_strndup(const char *s, size_t n) { return fails_now() ? NULL : __real_strndup(s, n); }

/* ---- reads that fail ---- */

static long reads_left = -1;           /* reads that still succeed; < 0: all do */
static bool reads_fail_on, read_failed;

static int fail_reads(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'R' || reads_left < 0)
        return 0;
    if (reads_left > 0) {
        reads_left--;
        return 0;
    }
    if (!reads_fail_on)
        reads_left = -1;
    read_failed = true;
    return -EIO;
}

/* ---- images ---- */

static const char *const seeds[] = {
    "refcount-16", "bitmaps", "v2", "damage-refblock_random", "damage-rt_gone", "damage-snapshot_extra_none", "damage-l2_garbage",
    "damage-snapshot_l1_outside", "damage-bitmap_entry_outside", "damage-refcount_zero", "damage-l1_outside",
};
static uint8_t *seed;
static uint64_t seed_len;

static void load_seed(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", SEEDS, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    seed = __real_malloc(1 << 20);
    seed_len = fread(seed, 1, 1 << 20, f);
    fclose(f);
    assert_true(seed_len > 1024);
}

static void put_disk(void)
{
    disk_reset();
    memcpy(disk.bytes, seed, seed_len);
    memcpy(disk.durable, seed, seed_len);
    disk.len = disk.durable_len = seed_len;
    disk.hook = fail_reads;
}

struct outcome { int open, work, close; unsigned danger; struct fmt_check_result res; };

static void count_danger(void *arg, bool fixed, const char *id, const char *text)
{
    unsigned *n = arg;
    *n += !fixed && (!strcmp(id, "Q2_REFCOUNT_LOW") || (!strcmp(id, "Q2_COPIED") && strstr(text, "COPIED is set")));
}

static void arm(long n, bool on)
{
    atomic_store(&until_failure, n);
    atomic_store(&for_ever, on);
    atomic_store(&armed, n >= 0);
}

/* Opens, does one thing, closes; the allocation number `oom` fails (< 0: none). */
static struct outcome use(struct co *co, bool info, unsigned fix, long oom, bool on)
{
    struct outcome o = { 0 };
    struct fmt_open_opts how = { .read_only = !fix, .check_mode = true };
    struct stor *s = disk_open(!fix);
    struct fmt_image *im = NULL;
    struct fmt_info i;
    arm(oom, on);
    o.open = fmt_qcow2_ops.open(co, s, &how, &im, NULL);
    if (o.open) {
        arm(-1, false);
        stor_close(co, s);
        return o;
    }
    struct fmt_check_opts c = { .fix = fix, .finding = count_danger, .arg = &o.danger };
    if (info) {
        o.work = im->ops->info(co, im, &i, NULL);
        if (!o.work)
            fmt_info_fini(&i);
    } else {
        o.work = im->ops->check(co, im, &c, &o.res, NULL);
    }
    o.close = im->ops->close(co, im);
    arm(-1, false);
    return o;
}

/* Nothing fails any more: is the disk as good as before at least, and can it be repaired? */
static void look_after(struct co *co, unsigned danger, const char *what, long n)
{
    reads_left = -1;
    struct outcome now = use(co, false, 0, -1, false);
    if (!CHECK(!now.open && !now.work && now.danger <= danger))
        fprintf(stderr, "%s at %ld: open %d, check %d, %u dangers, %u before\n", what, n, now.open, now.work, now.danger, danger);
    struct outcome done = use(co, false, FMT_FIX_LEAKS | FMT_FIX_ERRORS, -1, false);
    if (!CHECK(!done.open && !done.work && !done.close && !done.res.leaks))
        fprintf(stderr, "%s at %ld: repair %d, %d leaks\n", what, n, done.work, (int)done.res.leaks);
}

/* ---- scenarios ---- */

static unsigned danger_before(struct co *co)
{
    put_disk();
    reads_left = -1;
    struct outcome o = use(co, false, 0, -1, false);
    CHECK(!o.open && !o.work && !o.close);
    return o.danger;
}

static void no_memory(struct co *co, void *arg)
{
    load_seed(arg);
    unsigned danger = danger_before(co);
    for (int on = 0; on < 2; on++)
        for (int what = 0; what < 3; what++) {
            bool failed = true;
            long n = 0;
            for (; failed && n < 4000 && !atomic_load(&t_failures); n += 1 + n / 60) {
                put_disk();
                struct outcome o = use(co, what == 0, what == 2 ? FMT_FIX_LEAKS | FMT_FIX_ERRORS : 0, n, on);
                failed = o.open || o.work || o.close;
                if (what == 2)
                    look_after(co, danger, arg, n);
            }
            CHECK(!failed && n > 5);
        }
    free(seed);
}

static void no_reads(struct co *co, void *arg)
{
    load_seed(arg);
    unsigned danger = danger_before(co);
    for (int on = 0; on < 2; on++)
        for (int what = 0; what < 3; what++) {
            reads_fail_on = on;
            for (long n = 0; n < 400 && !atomic_load(&t_failures); n++) {
                put_disk();
                reads_left = n;
                read_failed = false;
                struct outcome o = use(co, what == 0, what == 2 ? FMT_FIX_LEAKS | FMT_FIX_ERRORS : 0, -1, false);
                bool met = read_failed;
                /* A check that could not read something must not call the image clean. */
                if (met && what == 1 && !o.open && !o.work && !CHECK(o.res.check_errors || o.res.corruptions || o.res.leaks))
                    fprintf(stderr, "%s: failed read %ld is not told\n", (const char *)arg, n);
                if (what == 2)
                    look_after(co, danger, arg, n);
                if (!met)
                    break;
            }
        }
    reads_left = -1;
    free(seed);
}

static void create(struct co *co, void *arg)
{
    struct fmt_create_opts o = { .size = 1 << 20, .cluster_size = 4096, .backing_file = (char *)"base", .backing_fmt = (char *)"raw", .compression_type = (char *)"zstd" };
    bool failed = true;
    for (long n = 0; failed && n < 100; n++) {
        struct fmt_create_opts copy = o;
        struct stor *s = NULL;
        CHECK_EQ(stor_mem_new(co, "new", 0, &s), 0);
        arm(n, n & 1);
        int rc = fmt_qcow2_ops.create(co, s, &copy, NULL);
        arm(-1, false);
        CHECK(rc == 0 || rc == -ENOMEM);
        failed = rc != 0;
        stor_close(co, s);
    }
    CHECK(!failed);
}

static void test_no_memory(void **state)
{
    for (size_t i = 0; i < sizeof seeds / sizeof seeds[0]; i++)
        t_run(0, no_memory, (void *)(uintptr_t)seeds[i]);
}

static void test_no_reads(void **state)
{
    for (size_t i = 0; i < sizeof seeds / sizeof seeds[0]; i++)
        t_run(0, no_reads, (void *)(uintptr_t)seeds[i]);
}

static void test_create(void **state) { t_run(0, create, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_memory, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_no_reads, disk_setup, disk_teardown),
        cmocka_unit_test(test_create),
    };
    return T_MAIN("q2_oom", tests);
}
