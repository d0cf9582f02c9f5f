/* SPDX-License-Identifier: MIT
 *
 * stream_test.c: when is the disk told to begin, and what stays in memory?
 *
 * Tests        stor_stream, file_ops.c
 */
#include "stor/stor_test.h"

#include "stor/file_priv.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic unsigned started;

int __wrap_sync_file_range(int fd, off_t off, off_t len, unsigned flags);
int __wrap_sync_file_range(int fd, off_t off, off_t len, unsigned flags)
{
    CHECK(fd >= 0 && off == 0 && len == 0 && flags == SYNC_FILE_RANGE_WRITE);
    atomic_fetch_add(&started, 1);
    return -1;                           /* nobody may care */
}

#define WRITTEN (UINT64_C(20) << 20)

/* What is written, and how. */
struct way { struct stor_file_opts o; bool on, no_dontcache; uint32_t piece; };

/* Does the kernel know such writes on this file system? */
static bool knows_dontcache(void)
{
    char b[4096] = { 0 };
    int fd = open(t_path("stream-asked"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    struct iovec v = { b, sizeof b };
    ssize_t n = pwritev2(fd, &v, 1, 0, 0x80);
    close(fd);
    return n == sizeof b;
}

/* Pages of the file that are in memory. */
static unsigned resident(void)
{
    static unsigned char page[WRITTEN / 4096];
    unsigned n = 0;
    int fd = open(t_path("stream"), O_RDONLY | O_CLOEXEC);
    void *map = mmap(NULL, WRITTEN, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(fd >= 0 && map != MAP_FAILED);
    CHECK_EQ(mincore(map, WRITTEN, page), 0);
    for (unsigned i = 0; i < WRITTEN / 4096; i++)
        n += page[i] & 1;
    munmap(map, WRITTEN);
    close(fd);
    return n;
}

/* How often the disk was told to begin. */
static unsigned starts(struct co *co, struct way w)
{
    struct stor_file_opts o = w.o;
    struct stor *s = NULL;
    struct byre_err err = { 0 };
    uint8_t *buf = NULL, got[4096];
    CHECK_EQ(posix_memalign((void **)&buf, 4096, 1 << 20), 0);
    o.create = o.truncate_to_zero = true;
    CHECK_EQ(stor_file_open(co, t_path("stream"), &o, &s, &err), 0);
    atomic_store(&started, 0);
    stor_stream(s, true);
    stor_stream(s, w.on);
    if (w.no_dontcache)
        file_set_lacks(file_of(s), FILE_NO_DONTCACHE);
    for (uint64_t at = 0; at < WRITTEN; at += w.piece) {
        memset(buf, (int)(at >> 20) + 1, w.piece);
        CHECK_EQ(stor_write_buf(co, s, buf, w.piece, at, 0), 0);
    }
    CHECK_EQ(stor_flush(co, s), 0);
    CHECK_EQ(stor_read_exact(co, s, got, sizeof got, 19 << 20), 0);
    CHECK(got[0] == 20 && got[4095] == 20);
    stor_close(co, s);
    free(buf);
    return atomic_load(&started);
}

static void body(struct co *co, void *arg)
{
    enum { BIG = 1 << 20, SMALL = 32 << 10 };
    CHECK_EQ(starts(co, (struct way){ .on = true, .no_dontcache = true, .piece = BIG }), 2);         /* at 8 and 16 MiB */
    CHECK_EQ(starts(co, (struct way){ .on = true, .piece = SMALL }), 2);
    CHECK_EQ(starts(co, (struct way){ .piece = BIG }), 0);
    CHECK_EQ(starts(co, (struct way){ .o = { .no_flush = true }, .on = true, .piece = BIG }), 0);
    CHECK_EQ(starts(co, (struct way){ .o = { .direct = true }, .on = true, .piece = BIG }), 0);
}

/* Pieces of a copy leave the page cache; small ones, and what is no copy, stay. Kernels that cannot do it start the disk instead. */
static void pages_body(struct co *co, void *arg)
{
    enum { ALL = WRITTEN / 4096 };
    bool knows = knows_dontcache();
    CHECK_EQ(starts(co, (struct way){ .piece = 1 << 20 }), 0);
    CHECK(resident() > ALL / 2);
    CHECK_EQ(starts(co, (struct way){ .on = true, .piece = 64 << 10 }), 2);      /* as a guest's first write into a cluster */
    CHECK(resident() > ALL / 2);
    CHECK_EQ(starts(co, (struct way){ .on = true, .piece = 1 << 20 }), knows ? 0 : 2);
    for (unsigned i = 0; knows && i < 60000 && resident() > ALL / 2; i++)
        (void)co_sleep(co, 1000000);     /* the kernel drops them when they are written, and soon after that */
    CHECK(!knows || resident() <= ALL / 2);
}

static void test_stream(void **state) { t_run(0, body, NULL); }
static void test_pages(void **state) { t_run(0, pages_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_stream), cmocka_unit_test(test_pages) };
    return T_MAIN("stor stream", tests);
}
