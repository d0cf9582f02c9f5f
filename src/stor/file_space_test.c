/* SPDX-License-Identifier: MIT
 *
 * file_space_test.c: zeroing, discarding, allocating, copying and finding data in regular files.
 *
 * Purpose      Facts are taken from the file itself (stat, SEEK_HOLE, bytes), not from the store under test.
 * Tests        file_ops.c, file_extent.c. FEATURES 3.012, 3.016, 11.024
 */
#include "stor/stor_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stor/file_priv.h"

enum { MIB = 1 << 20, PAGE = 4096 };

static struct stor *make(struct co *co, const char *path, bool direct, uint64_t filled)
{
    struct stor_file_opts o = { .create = true, .truncate_to_zero = true, .direct = direct, .discard = true };
    struct stor *s = NULL;
    uint8_t *b = malloc(filled + 1);
    CHECK_EQ(stor_file_open(co, path, &o, &s, NULL), 0);
    memset(b, 0x5a, filled);
    CHECK_EQ(stor_write_buf(co, s, b, filled, 0, 0), 0);
    CHECK_EQ(stor_flush(co, s), 0);
    free(b);
    return s;
}

static uint64_t blocks_of(struct stor *s)
{
    struct stat st;
    CHECK_EQ(fsync(file_of(s)->fd), 0);
    CHECK_EQ(stat(s->name, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static uint64_t size_of(struct stor *s)
{
    struct stat st;
    CHECK_EQ(stat(s->name, &st), 0);
    return (uint64_t)st.st_size;
}

/* Is [off, off+len) all `byte`, by a descriptor of our own? */
static bool holds(struct stor *s, uint64_t off, uint64_t len, uint8_t byte)
{
    uint8_t *b = malloc(len);
    int fd = open(s->name, O_RDONLY);
    bool ok = pread(fd, b, len, (off_t)off) == (ssize_t)len;
    for (uint64_t i = 0; ok && i < len; i++)
        ok = b[i] == byte;
    close(fd);
    free(b);
    return ok;
}

static void zero_inside(struct co *co, void *arg)
{
    bool direct = *(bool *)arg;
    struct stor *s = make(co, t_path("zero"), direct, MIB + 100);
    CHECK_EQ(stor_zero(co, s, 1000, 200000, 0), 0);
    CHECK(holds(s, 0, 1000, 0x5a) && holds(s, 1000, 200000, 0) && holds(s, 201000, MIB + 100 - 201000, 0x5a));
    CHECK_EQ(size_of(s), MIB + 100);
    CHECK(blocks_of(s) >= MIB);           /* without UNMAP the space stays */
    CHECK_EQ(stor_zero(co, s, 0, 512 * 1024, STOR_UNMAP), 0);
    CHECK(blocks_of(s) <= MIB / 2 + 64 * 1024);
    CHECK(holds(s, 0, 512 * 1024, 0));
    CHECK_EQ(size_of(s), MIB + 100);
    CHECK_EQ(stor_zero(co, s, MIB, 100, STOR_UNMAP), 0);
    CHECK_EQ(size_of(s), MIB + 100);
    CHECK(holds(s, MIB, 100, 0) && holds(s, MIB - 1, 1, 0x5a));
    stor_close(co, s);
}

static void zero_past_end(struct co *co, void *arg)
{
    bool direct = *(bool *)arg;
    struct stor *s = make(co, t_path("zero"), direct, 10000);
    CHECK_EQ(stor_zero(co, s, 9000, 5001, 0), 0);
    CHECK_EQ(size_of(s), 14001);
    CHECK(holds(s, 8999, 1, 0x5a) && holds(s, 9000, 5001, 0));
    CHECK_EQ(stor_zero(co, s, 20000, 300001, STOR_UNMAP), 0);
    CHECK_EQ(size_of(s), 320001);
    CHECK(blocks_of(s) <= 64 * 1024);     /* growing with UNMAP allocates next to nothing */
    CHECK_EQ(stor_zero(co, s, 320001, MIB, 0), 0);
    CHECK_EQ(size_of(s), 320001 + MIB);
    CHECK(blocks_of(s) >= MIB);
    CHECK(holds(s, 9000, 311001 + MIB, 0));
    stor_close(co, s);
}

/* Every way of zeroing gives the same bytes and length, whichever calls the file system lacks. */
static void zero_fallbacks(struct co *co, void *arg)
{
    bool direct = *(bool *)arg;
    static const unsigned lacks[] = {
        0, FILE_NO_ZERO_RANGE, FILE_NO_PUNCH, FILE_NO_ALLOCATE, FILE_NO_ZERO_RANGE | FILE_NO_PUNCH,
        FILE_NO_ZERO_RANGE | FILE_NO_ALLOCATE, FILE_NO_ZERO_RANGE | FILE_NO_PUNCH | FILE_NO_ALLOCATE,
    };
    static const uint64_t range[][2] = { { 5000, 70000 }, { 90000, 20000 }, { 100000, 8192 }, { 150000, 99 } };
    for (unsigned i = 0; i < sizeof lacks / sizeof lacks[0]; i++)
        for (unsigned k = 0; k < 8; k++) {
            struct stor *s = make(co, t_path("fallback"), direct, 100000);
            uint64_t off = range[k / 2][0], len = range[k / 2][1], end = max_u64(100000, off + len);
            file_set_lacks(file_of(s), lacks[i]);
            CHECK_EQ(stor_zero(co, s, off, len, k % 2 ? STOR_UNMAP : 0), 0);
            CHECK_EQ(size_of(s), end);
            uint64_t data = min_u64(off, 100000);
            CHECK(holds(s, 0, data, 0x5a) && holds(s, data, off - data, 0) && holds(s, off, len, 0));
            if (off + len < 100000)
                CHECK(holds(s, off + len, 100000 - off - len, 0x5a));
            stor_close(co, s);
        }
    struct stor *s = make(co, t_path("fallback"), direct, 100000);
    file_set_lacks(file_of(s), FILE_NO_ZERO_RANGE | FILE_NO_PUNCH);
    CHECK_EQ(stor_zero(co, s, 0, 65536, STOR_NO_FALLBACK), -ENOTSUP);
    CHECK(holds(s, 0, 100000, 0x5a));
    stor_close(co, s);
}

/* Zeroing past the end beside writes further out never cuts them off. */
struct grow { struct stor *s; unsigned id; };
static void grow_beside(struct co *co, void *arg)
{
    const struct grow *g = arg;
    uint8_t b[PAGE];
    memset(b, 0x33, sizeof b);
    for (unsigned i = g->id; i < 200; i += 8) {
        if (i % 2)
            CHECK_EQ(stor_zero(co, g->s, (uint64_t)i * PAGE, PAGE, i % 4 == 1 ? STOR_UNMAP : 0), 0);
        else
            CHECK_EQ(stor_write_buf(co, g->s, b, PAGE, (uint64_t)i * PAGE, 0), 0);
    }
}

struct open_arg { bool direct; struct stor *s; };
static void open_co(struct co *co, void *arg)
{
    struct open_arg *a = arg;
    a->s = make(co, t_path("grow"), a->direct, 0);
}
static void close_co(struct co *co, void *arg) { stor_close(co, arg); }

static void test_growing_together(void **state)
{
    for (unsigned direct = 0; direct < 2; direct++) {
        struct open_arg o = { direct, NULL };
        struct grow g[8];
        void *args[8];
        t_run(0, open_co, &o);
        for (unsigned i = 0; i < 8; i++) {
            g[i] = (struct grow){ o.s, i };
            args[i] = &g[i];
        }
        t_run_many(8, grow_beside, args);
        assert_int_equal(size_of(o.s), 200 * PAGE);
        for (unsigned i = 0; i < 200; i++)
            assert_true(holds(o.s, (uint64_t)i * PAGE, PAGE, i % 2 ? 0 : 0x33));
        t_run(1, close_co, o.s);
    }
}

static void discard(struct co *co, void *arg)
{
    struct stor *s = make(co, t_path("discard"), *(bool *)arg, MIB);
    CHECK_EQ(stor_discard(co, s, 0, MIB / 2), 0);
    CHECK(blocks_of(s) <= MIB / 2 + 16 * 1024);
    CHECK_EQ(size_of(s), MIB);
    CHECK_EQ(stor_discard(co, s, MIB / 2, 1ull << 40), 0);   /* past the end: what is inside */
    CHECK_EQ(size_of(s), MIB);
    CHECK_EQ(blocks_of(s), 0);
    s->discard_ok = false;
    CHECK_EQ(stor_write_buf(co, s, "x", 1, 0, 0), 0);
    CHECK_EQ(stor_discard(co, s, 0, MIB), 0);
    CHECK(holds(s, 0, 1, 'x'));
    stor_close(co, s);
}

static void preallocate(struct co *co, void *arg)
{
    struct stor *s = make(co, t_path("prealloc"), *(bool *)arg, 1000);
    uint64_t bytes;
    CHECK_EQ(stor_preallocate(co, s, 0, MIB), 0);
    CHECK_EQ(size_of(s), MIB);
    CHECK(blocks_of(s) >= MIB);
    CHECK_EQ(stor_allocated(co, s, &bytes), 0);
    CHECK_EQ(bytes, blocks_of(s));
    CHECK(holds(s, 0, 1000, 0x5a) && holds(s, 1000, MIB - 1000, 0));
    stor_close(co, s);
}

/* Walks the store's extents and compares them with lseek of another descriptor. */
static void compare_extents(struct co *co, struct stor *s, uint64_t step)
{
    int fd = open(s->name, O_RDONLY);
    uint64_t size = size_of(s);
    struct stor_extent e;
    for (uint64_t pos = 0; pos < size + 10000;) {
        uint64_t ask = min_u64(step, size + 10000 - pos);
        if (!CHECK_EQ(stor_extent(co, s, pos, ask, &e), 0) || !CHECK(e.off == pos && e.len > 0 && e.len <= ask))
            break;
        off_t data = lseek(fd, (off_t)pos, SEEK_DATA);
        bool is_data = pos < size && data == (off_t)pos;
        CHECK_EQ(e.content, is_data ? STOR_DATA : STOR_HOLE);
        off_t next = is_data ? lseek(fd, (off_t)pos, SEEK_HOLE) : data;
        uint64_t end = next < 0 ? UINT64_MAX : (uint64_t)next;
        if (is_data)
            end = round_up(end, s->lim.block);
        CHECK_EQ(pos + e.len, min_u64(end, pos + ask));
        pos += e.len;
    }
    close(fd);
}

static void extents(struct co *co, void *arg)
{
    struct stor *s = make(co, t_path("extents"), *(bool *)arg, 3 * 65536 + 77);
    struct stor_extent e;
    CHECK_EQ(stor_zero(co, s, 65536, 65536, STOR_UNMAP), 0);
    CHECK_EQ(stor_truncate(co, s, MIB + 5), 0);
    compare_extents(co, s, UINT32_MAX);
    compare_extents(co, s, 10000);
    /* The kept extent of data goes when its space does. */
    CHECK_EQ(stor_extent(co, s, 0, 100, &e), 0);
    CHECK(e.content == STOR_DATA && file_of(s)->extent.end == 65536);
    CHECK_EQ(stor_zero(co, s, 0, 16384, STOR_UNMAP), 0);
    CHECK_EQ(stor_extent(co, s, 0, MIB, &e), 0);
    CHECK(e.content == STOR_HOLE && e.len == 16384);
    compare_extents(co, s, 5000);
    CHECK_EQ(stor_extent(co, s, 2 * 65536, MIB, &e), 0);
    CHECK_EQ(e.content, STOR_DATA);
    CHECK_EQ(stor_truncate(co, s, 2 * 65536), 0);
    CHECK_EQ(stor_extent(co, s, 2 * 65536, MIB, &e), 0);
    CHECK(e.content == STOR_HOLE && e.len == MIB);
    file_set_lacks(file_of(s), FILE_NO_SEEK);
    CHECK_EQ(stor_extent(co, s, 0, MIB, &e), 0);
    CHECK(e.content == STOR_DATA && e.len == MIB);
    stor_close(co, s);
}

static void copy(struct co *co, void *arg)
{
    bool direct = *(bool *)arg;
    struct stor *a = make(co, t_path("copy-a"), direct, MIB), *b = make(co, t_path("copy-b"), direct, 0), *m;
    uint64_t done = 0;
    CHECK_EQ(stor_mem_new(co, "m", MIB, &m), 0);
    while (done < MIB) {
        int64_t n = stor_copy(co, b, 8192 + done, a, done, MIB - done);
        if (!CHECK(n > 0))
            break;
        done += (uint64_t)n;
    }
    CHECK_EQ(size_of(b), 8192 + MIB);
    CHECK(holds(b, 0, 8192, 0) && holds(b, 8192, MIB, 0x5a));
    CHECK_EQ(stor_copy(co, b, 0, a, 2 * MIB, 4096), 0);
    CHECK_EQ(stor_copy(co, b, 0, m, 0, 4096), -ENOTSUP);
    CHECK_EQ(stor_copy(co, m, 0, a, 0, 4096), -ENOTSUP);
    CHECK_EQ(stor_copy(co, b, 0, a, UINT64_MAX, 2), -EINVAL);
    stor_close(co, a);
    stor_close(co, b);
    stor_close(co, m);
}

/* What is lent can be copied from when its owner has closed it, and holds no lock any more. */
static void lent(struct co *co, void *arg)
{
    struct stor *a = make(co, t_path("lent-a"), false, MIB), *b = make(co, t_path("lent-b"), false, 0), *again, *m;
    struct byre_err err = { 0 };
    CHECK_EQ(stor_mem_new(co, "m", MIB, &m), 0);
    CHECK(!stor_lend(m));
    stor_close(co, m);
    CHECK_EQ(stor_lock(co, a, STOR_PERM_WRITE, STOR_PERM_READ, &err), 0);
    CHECK_EQ(stor_file_open(co, t_path("lent-a"), &(struct stor_file_opts){ 0 }, &again, NULL), 0);
    CHECK(stor_lock(co, again, STOR_PERM_WRITE, STOR_PERM_READ, &err) < 0);
    CHECK(stor_lend(a) && stor_lend(a));
    stor_close(co, a);
    CHECK_EQ(stor_lock(co, again, STOR_PERM_WRITE, STOR_PERM_READ, &err), 0);
    stor_give_back(co, a);
    CHECK(stor_copy(co, b, 0, a, 0, PAGE) == PAGE);
    stor_give_back(co, a);
    CHECK(holds(b, 0, PAGE, 0x5a));
    stor_close(co, again);
    stor_close(co, b);
}

static void test_lent(void **state) { t_run(0, lent, NULL); t_run(1, lent, NULL); }

/* FEATURES 3.020: pages are counted by one call; where that is not to be had, up to the first that are found. */
static void cached_pages(struct co *co, void *arg)
{
    struct stor *s = make(co, t_path("cached"), false, 0);
    uint8_t *b = calloc(1, MIB);
    CHECK_EQ(stor_truncate(co, s, UINT64_C(1) << 36), 0);
    CHECK_EQ(stor_write_buf(co, s, b, MIB, 100 * MIB, 0), 0);
    CHECK_EQ(stor_cached(co, s), MIB);
    CHECK_EQ(stor_write_buf(co, s, b, MIB, UINT64_C(1) << 35, 0), 0);
    if (!file_lacks(file_of(s), FILE_NO_CACHESTAT))
        CHECK_EQ(stor_cached(co, s), 2 * MIB);
    file_set_lacks(file_of(s), FILE_NO_CACHESTAT);
    CHECK_EQ(stor_cached(co, s), MIB);
    free(b);
    stor_close(co, s);
}

static void test_cached(void **state) { t_run(0, cached_pages, NULL); }

#define BOTH(fn)                                                    \
    static void test_##fn(void **state)                             \
    {                                                               \
        bool direct[2] = { false, true };                           \
        t_run(0, fn, &direct[0]);                                   \
        t_run(1, fn, &direct[1]);                                   \
    }
BOTH(zero_inside)
BOTH(zero_past_end)
BOTH(zero_fallbacks)
BOTH(discard)
BOTH(preallocate)
BOTH(extents)
BOTH(copy)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_inside), cmocka_unit_test(test_zero_past_end), cmocka_unit_test(test_zero_fallbacks),
        cmocka_unit_test(test_growing_together), cmocka_unit_test(test_discard), cmocka_unit_test(test_preallocate),
        cmocka_unit_test(test_extents), cmocka_unit_test(test_copy), cmocka_unit_test(test_lent), cmocka_unit_test(test_cached),
    };
    return T_MAIN("file-space", tests);
}
