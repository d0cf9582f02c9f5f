/* SPDX-License-Identifier: MIT
 *
 * clean.c: the size of the cache follows its use.
 *
 * Purpose     Drops blocks that were not used for a while (FEATURES 1.127) and gives their memory back; lets the cache grow
 *             where it is seen to be too small.
 * Owns        The timer, the place of the sweep, the bit META_USED_CLEAN of every block; the marks of evicted blocks.
 * Invariants  G1  A sweep takes the bit from every block, and drops those that it had taken it from before: a block leaves between
 *                 one and two intervals after its last use.
 *             G2  Only what is clean and pinned by nobody is dropped, through the grace period as ever (I4).
 *             G3  The timer runs only while the cache holds something that it may come to drop: what is used, pinned or dirty
 *                 now. What is idle and cannot be dropped starts it again when it is put back or clean. An idle cache has none.
 *             G4  A turn of the loop is given to SWEEP_BLOCKS blocks or TRIM_CHUNKS chunks at most.
 *             G5  The cache grows by a block, up to budget_max_bytes, when one is read that it has had and given up for lack of
 *                 room: reading once, however much, leaves it as it is. A sweep takes back what was not needed.
 * Order       None: nothing is written here.
 * Concurrency Home loop.
 * Failure     Without memory for the marks the cache keeps its first size.
 * Tests       clean_test.c, crash explorer (geometries with .clean; mutant CLEAN_DIRTY), tests/cli/clean_test.py
 */
#include <stdlib.h>

#include "base/checked.h"
#include "base/hash.h"
#include "meta/meta_priv.h"

#define SWEEP_BLOCKS 1024u
#define TRIM_CHUNKS 16u
#define STEP_NS UINT64_C(1000000)
#define GRACE_NS UINT64_C(10000000)
#define GRACE_TRIES 100u

enum { IDLE, WAITS, SWEEPS, GRACE, TRIMS };

static void on_time(struct rt_timer *t);

static void wake_in(struct meta *m, uint64_t ns)
{
    rt_timer_start(m->o.home, &m->clean_timer, rt_now(m->o.home) + ns, on_time);
}

void meta_clean_want_(struct meta *m)
{
    if (!m->o.clean_ns)
        return;
    m->clean_again = true;
    if (m->clean_state != IDLE)
        return;
    m->clean_state = WAITS;
    wake_in(m, m->o.clean_ns);
}

void meta_clean_stop_(struct meta *m)
{
    rt_timer_stop(m->o.home, &m->clean_timer);
    m->clean_state = IDLE;
}

/* false: all have been looked at. */
static bool sweep(struct meta *m)
{
    for (unsigned n = 0; n < SWEEP_BLOCKS && m->sweep_left && m->sweep; n++) {
        struct meta_block *b = m->sweep;
        m->sweep = b->all_next;
        m->sweep_left--;
        if (atomic_fetch_and_explicit(&b->used, (uint8_t)~META_USED_CLEAN, memory_order_relaxed) & META_USED_CLEAN) {
            m->clean_again = true;                   /* G3 */
        } else if (!b->pins && (!b->dirty_sectors || MUTANT(MUT_CLEAN_DIRTY))) {
            meta_block_clean_(m, b);                 /* it is */
            meta_evict_(m, b);                       /* G2; if it was the last, m->sweep is NULL now */
            m->stats.cleaned++;
        }
    }
    return m->sweep_left && m->sweep;
}

static void end(struct meta *m)
{
    m->sweep = NULL;
    m->limit = max_u64(m->limit_min, min_u64(m->limit, m->blocks));              /* G5 */
    m->clean_state = IDLE;
    if (m->clean_again)
        meta_clean_want_(m);
}

static void on_time(struct rt_timer *t)
{
    struct meta *m = CONTAINER_OF(t, struct meta, clean_timer);
    switch (m->clean_state) {
    case WAITS:
        m->clean_state = SWEEPS;
        m->clean_again = false;
        m->sweep = m->all;
        m->sweep_left = m->blocks;
        m->grace_tries = 0;
        /* fallthrough */
    case SWEEPS:
        if (sweep(m))
            return wake_in(m, STEP_NS);              /* G4 */
        m->clean_state = GRACE;
        /* fallthrough */
    case GRACE:
        if (m->reclaiming && m->grace_tries++ < GRACE_TRIES)
            return wake_in(m, GRACE_NS);
        m->clean_state = TRIMS;
        m->trim_left = m->slab.partial_count;
        /* fallthrough */
    case TRIMS:
        meta_slab_trim(&m->slab, min_u64(m->trim_left, TRIM_CHUNKS));
        m->trim_left -= min_u64(m->trim_left, TRIM_CHUNKS);
        if (m->trim_left)
            return wake_in(m, STEP_NS);
        return end(m);
    default:
        UNREACHABLE();
    }
}

/* ---- growing ---- */

static uint32_t *mark_of(const struct meta *m, uint64_t off, uint32_t *ret_mark)
{
    uint64_t k = hash_mix64(off / m->o.block_bytes);
    *ret_mark = (uint32_t)(k >> 32) | 1;             /* 0: none */
    return &m->marks[k & m->marks_mask];
}

void meta_mark_evicted_(struct meta *m, uint64_t off)
{
    uint32_t mark;
    if (m->limit_max == m->limit_min)
        return;
    if (!m->marks) {
        uint64_t n = 64;
        while (n < m->limit_max)
            n *= 2;
        m->marks = calloc(n, sizeof *m->marks);
        if (!m->marks)
            return;
        m->marks_mask = n - 1;
    }
    uint32_t *at = mark_of(m, off, &mark);
    *at = mark;
}

void meta_grow_for_(struct meta *m, uint64_t off)
{
    uint32_t mark, *at;
    if (!m->marks)
        return;
    at = mark_of(m, off, &mark);
    if (*at != mark)
        return;
    *at = 0;
    m->limit += m->blocks + m->loading >= m->limit && m->limit < m->limit_max;
}
