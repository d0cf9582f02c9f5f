/* SPDX-License-Identifier: MIT
 *
 * buf.c: large buffers of a loop, kept for the next one who needs such a buffer.
 *
 * Purpose      Fresh memory of some size comes from the kernel page by page, zeroed; for copies of clusters that costs more than the copy.
 *              Who gives a buffer back leaves it here, and what nobody took for a second goes back to the kernel.
 * Owns         struct rt_bufs: a list for each power of two from BUF_LEAST to BUF_MOST bytes
 * Invariants   I1  At most KEPT_MOST bytes lie here, and none in a simulation or under the address sanitizer: there each use has
 *                  memory of its own, so that a use after rt_buf_put is found.
 *              I2  low of a list is the least number that it had since the last tick: so many were not needed.
 *              I3  The timer runs as long as a list is not empty; nothing wakes a loop that keeps nothing.
 * Concurrency  the loop only
 * Failure      rt_buf_get: NULL; rt_buf_put does not fail
 * Tests        buf_test.c
 */
#include <stdlib.h>

#include "base/checked.h"
#include "rt/rt_priv.h"

#define BUF_ALIGN 4096u
#define BUF_LEAST (128u << 10)                   /* below, the allocator of the C library keeps what is freed */
#define BUF_MOST (BUF_LEAST << (RT_BUF_CLASSES - 1))
#define KEPT_MOST (64u << 20)                   /* 64 requests in flight, each of which copies a cluster of 1 MiB */
#define TICK_NS 1000000000u

#ifdef RT_ASAN
#define KEEPS false
#else
#define KEEPS true
#endif

struct rt_buf { struct rt_buf *next; };

/* RT_BUF_CLASSES: of a size that is not kept. */
static unsigned class_of(size_t bytes)
{
    unsigned k = 0;
    while (k < RT_BUF_CLASSES && bytes > (size_t)BUF_LEAST << k)
        k++;
    return bytes >= BUF_LEAST ? k : RT_BUF_CLASSES;
}

static void *take(struct rt_bufs *b, unsigned k)
{
    struct rt_buf *p = b->of[k].first;
    b->of[k].first = p->next;
    b->of[k].count--;
    if (b->of[k].low > b->of[k].count)
        b->of[k].low = b->of[k].count;
    b->bytes -= (size_t)BUF_LEAST << k;
    return p;
}

void *rt_buf_get(struct rt_loop *loop, size_t bytes)
{
    ASSERT_LOOP(loop);
    unsigned k = class_of(bytes);
    if (k < RT_BUF_CLASSES && loop->bufs.of[k].first)
        return take(&loop->bufs, k);
    size_t whole = k < RT_BUF_CLASSES ? (size_t)BUF_LEAST << k : round_up(bytes ? bytes : 1, BUF_ALIGN);
    return aligned_alloc(BUF_ALIGN, whole);
}

static void tick(struct rt_timer *t)
{
    struct rt_bufs *b = CONTAINER_OF(t, struct rt_bufs, timer);
    for (unsigned k = 0; k < RT_BUF_CLASSES; k++) {
        for (unsigned n = b->of[k].low; n; n--)
            free(take(b, k));
        b->of[k].low = b->of[k].count;           /* I2 */
    }
    if (b->bytes)
        rt_timer_start(b->loop, t, rt_now(b->loop) + TICK_NS, tick);
}

void rt_buf_put(struct rt_loop *loop, void *buf, size_t bytes)
{
    ASSERT_LOOP(loop);
    struct rt_bufs *b = &loop->bufs;
    unsigned k = class_of(bytes);
    if (!buf)
        return;
    if (!KEEPS || loop->rt->sim || k == RT_BUF_CLASSES || b->bytes + ((size_t)BUF_LEAST << k) > KEPT_MOST) {      /* I1 */
        free(buf);
        return;
    }
    struct rt_buf *p = buf;
    p->next = b->of[k].first;
    b->of[k].first = p;
    b->of[k].count++;
    b->bytes += (size_t)BUF_LEAST << k;
    if (!b->timer.armed) {
        b->loop = loop;
        rt_timer_start(loop, &b->timer, rt_now(loop) + TICK_NS, tick);
    }
}

size_t rt_bufs_kept(const struct rt_loop *loop)
{
    return loop->bufs.bytes;
}

void rt_bufs_fini(struct rt_loop *loop)
{
    for (unsigned k = 0; k < RT_BUF_CLASSES; k++)
        while (loop->bufs.of[k].first)
            free(take(&loop->bufs, k));
    rt_timer_disarm(&loop->timers, &loop->bufs.timer);
}
