/* SPDX-License-Identifier: MIT
 *
 * buf_test.c: buffers that are kept, and for how long.
 */
#include "rt/rt_priv.h"
#include "rt/rt_test.h"

#define KIB 1024u
#define MIB (1024u * KIB)

#ifdef RT_ASAN
#define KEPT(bytes) 0u
#else
#define KEPT(bytes) ((size_t)(bytes))
#endif

static void reused(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    char *a = rt_buf_get(loop, MIB), *b = rt_buf_get(loop, 600 * KIB);
    ASSERT(a && b && a != b && !((uintptr_t)a % 4096) && !((uintptr_t)b % 4096));
    memset(a, 1, MIB);
    memset(b, 2, 600 * KIB);
    ASSERT(a[0] == 1 && a[MIB - 1] == 1);
    rt_buf_put(loop, a, MIB);
    ASSERT(rt_bufs_kept(loop) == KEPT(MIB));
    char *c = rt_buf_get(loop, MIB / 2 + 1);             /* of the same class */
    ASSERT(!KEPT(1) || c == a);
    ASSERT(rt_bufs_kept(loop) == 0);
    memset(c, 3, MIB);
    ASSERT(b[0] == 2 && b[600 * KIB - 1] == 2);
    char *d = rt_buf_get(loop, MIB / 2);                 /* of another */
    ASSERT(d && d != a && d != b);
    rt_buf_put(loop, b, 600 * KIB);
    rt_buf_put(loop, c, MIB / 2 + 1);
    rt_buf_put(loop, d, MIB / 2);
    rt_buf_put(loop, NULL, MIB);
    ASSERT(rt_bufs_kept(loop) == KEPT(MIB * 5 / 2));
}

/* What is too small, or too large, is freed; and all of it stays below its bound. */
static void bounded(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    static const size_t sizes[] = { 0, 1, 4096, 128 * KIB - 1, 4 * MIB + 1, 64 * MIB };
    char *p[20];
    size_t before = rt_bufs_kept(loop);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        p[0] = rt_buf_get(loop, sizes[i]);
        ASSERT(p[0]);
        rt_buf_put(loop, p[0], sizes[i]);
    }
    ASSERT(rt_bufs_kept(loop) == before);
    for (int i = 0; i < 20; i++) {
        p[i] = rt_buf_get(loop, 4 * MIB);
        ASSERT(p[i]);
        memset(p[i], i, 4 * MIB);
    }
    for (int i = 0; i < 20; i++)
        rt_buf_put(loop, p[i], 4 * MIB);
    ASSERT(rt_bufs_kept(loop) <= 64 * MIB);
    ASSERT(!KEPT(1) || rt_bufs_kept(loop) > 59 * MIB);
}

/* What nobody takes goes, what somebody needs again and again stays; then nothing wakes the loop any more. */
static void idle_goes(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    char *a = rt_buf_get(loop, MIB), *b = rt_buf_get(loop, MIB);
    ASSERT(a && b);
    rt_buf_put(loop, b, MIB);
    rt_buf_put(loop, a, MIB);
    while (rt_bufs_kept(loop) > MIB) {                   /* one is in use all the time */
        char *c = rt_buf_get(loop, MIB);
        OK(co_sleep(co, 20 * MS));
        rt_buf_put(loop, c, MIB);
        ASSERT(!KEPT(1) || rt_bufs_kept(loop) >= MIB);
    }
    while (rt_bufs_kept(loop))
        OK(co_sleep(co, 20 * MS));
    OK(co_sleep(co, MS));
    ASSERT(!loop->bufs.timer.armed && !loop->timers.root);
}

ON_BOTH(reused)
ON_BOTH(bounded)
ON_BOTH(idle_goes)

int main(void)
{
    const struct CMUnitTest tests[] = { BOTH(reused), BOTH(bounded), BOTH(idle_goes) };
    return cmocka_run_group_tests_name("rt-buf", tests, NULL, NULL);
}
