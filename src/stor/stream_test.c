/* SPDX-License-Identifier: MIT
 *
 * stream_test.c: when is the disk told to begin?
 *
 * Tests        stor_stream, file_ops.c
 */
#include "stor/stor_test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

static _Atomic unsigned started;

int __wrap_sync_file_range(int fd, off_t off, off_t len, unsigned flags);
int __wrap_sync_file_range(int fd, off_t off, off_t len, unsigned flags)
{
    CHECK(fd >= 0 && off == 0 && len == 0 && flags == SYNC_FILE_RANGE_WRITE);
    atomic_fetch_add(&started, 1);
    return -1;                           /* nobody may care */
}

static unsigned starts(struct co *co, struct stor_file_opts o, bool on)
{
    struct stor *s = NULL;
    struct byre_err err = { 0 };
    uint8_t *buf = NULL, got[4096];
    CHECK_EQ(posix_memalign((void **)&buf, 4096, 1 << 20), 0);
    o.create = o.truncate_to_zero = true;
    CHECK_EQ(stor_file_open(co, t_path("stream"), &o, &s, &err), 0);
    atomic_store(&started, 0);
    stor_stream(s, true);
    stor_stream(s, on);
    for (unsigned i = 0; i < 20; i++) {
        memset(buf, (int)i + 1, 1 << 20);
        CHECK_EQ(stor_write_buf(co, s, buf, 1 << 20, (uint64_t)i << 20, 0), 0);
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
    CHECK_EQ(starts(co, (struct stor_file_opts){ 0 }, true), 2);         /* at 8 and 16 MiB */
    CHECK_EQ(starts(co, (struct stor_file_opts){ 0 }, false), 0);
    CHECK_EQ(starts(co, (struct stor_file_opts){ .no_flush = true }, true), 0);
    CHECK_EQ(starts(co, (struct stor_file_opts){ .direct = true }, true), 0);
}

static void test_stream(void **state) { t_run(0, body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_stream) };
    return T_MAIN("stor stream", tests);
}
