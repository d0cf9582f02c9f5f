/* SPDX-License-Identifier: MIT
 *
 * timer.c: the timers of one loop.
 *
 * Purpose      A pairing heap of nodes that live in the frames of waiting coroutines: arm O(1), take and disarm
 *              O(log n) amortised, no allocation.
 * Owns         nothing; the heap holds pointers to armed timers
 * Invariants   I1 no node is due before its parent; ties go by seq, so equal times fire in arming order
 *              I2 armed == linked into the heap
 * Concurrency  the loop only
 * Failure      none
 * Tests        timer_test.c
 */
#include "rt/rt_priv.h"

static bool before(const struct rt_timer *a, const struct rt_timer *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

/* Joins two heaps (roots without siblings; either may be NULL). */
static struct rt_timer *meld(struct rt_timer *a, struct rt_timer *b)
{
    if (!a || !b)
        return a ? a : b;
    if (before(b, a)) {
        struct rt_timer *t = a;
        a = b;
        b = t;
    }
    b->prev = a;
    b->next = a->child;
    if (a->child)
        a->child->prev = b;
    a->child = b;
    return a;
}

/* Joins a list of siblings into one heap: pairs from left to right, then the pairs from right to left. */
static struct rt_timer *meld_children(struct rt_timer *first)
{
    struct rt_timer *pairs = NULL, *root = NULL;
    while (first) {
        struct rt_timer *a = first, *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b)
            b->next = b->prev = NULL;
        a = meld(a, b);
        a->next = pairs;
        pairs = a;
    }
    while (pairs) {
        struct rt_timer *rest = pairs->next;
        pairs->next = NULL;
        root = meld(root, pairs);
        pairs = rest;
    }
    return root;
}

void rt_timer_arm(struct rt_timers *h, struct rt_timer *t, uint64_t at_ns, void (*fire)(struct rt_timer *t))
{
    *t = (struct rt_timer){ .at_ns = at_ns, .seq = h->seq++, .fire = fire, .armed = true };
    h->root = meld(h->root, t);
}

void rt_timer_disarm(struct rt_timers *h, struct rt_timer *t)
{
    if (!t->armed)
        return;
    t->armed = false;
    struct rt_timer *below = meld_children(t->child);
    t->child = NULL;
    if (t == h->root) {
        h->root = below;
        return;
    }
    if (t->prev->child == t)
        t->prev->child = t->next;
    else
        t->prev->next = t->next;
    if (t->next)
        t->next->prev = t->prev;
    h->root = meld(h->root, below);
}

struct rt_timer *rt_timer_take_due(struct rt_timers *h, uint64_t now_ns)
{
    struct rt_timer *t = h->root;
    if (!t || t->at_ns > now_ns)
        return NULL;
    rt_timer_disarm(h, t);
    return t;
}

/* ---- for the layers above ---- */

void rt_timer_start(struct rt_loop *loop, struct rt_timer *t, uint64_t at_ns, void (*fire)(struct rt_timer *t))
{
    ASSERT_LOOP(loop);
    ASSERT(!t->armed);
    rt_timer_arm(&loop->timers, t, at_ns, fire);
}

void rt_timer_stop(struct rt_loop *loop, struct rt_timer *t)
{
    ASSERT_LOOP(loop);
    rt_timer_disarm(&loop->timers, t);
}
