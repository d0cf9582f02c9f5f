/* SPDX-License-Identifier: MIT
 *
 * frees.c: space that lost its last pointer in memory, on its way to being free.
 *
 * Purpose     Holds each freed thing until the unlinking is durable and no request can still see it (I5, Q9, D3).
 * Owns        Two stations: waiting for a pass (frees_new, or the running pass), waiting for a grace period (epoch).
 * Invariants  I5 of meta.h. F1: frees_waiting counts both stations.
 * Order       a pass that froze after queueing ended well  ->  grace period  ->  release().
 * Concurrency Home loop. meta_settle suspends and must not be called inside an epoch section.
 * Failure     A failed pass puts its frees back in the first station. Nothing is ever lost: at worst it waits.
 * Tests       meta_test.c, crash explorer (discard racing with rewrite), mutants MUT_FREE_*.
 */
#include <string.h>

#include "base/checked.h"
#include "meta/meta_priv.h"

static void grace_over(struct epoch_cb *cb)
{
    struct meta_free *f = (struct meta_free *)((char *)cb - offsetof(struct meta_free, grace));
    struct meta *m = f->owner;
    m->frees_waiting--;
    f->release(f);
    co_wake_all(&m->frees_q);
}

static void to_grace(struct meta *m, struct meta_free *f)
{
    f->next = NULL;
    if (MUTANT(MUT_FREE_SKIP_GRACE))
        grace_over(&f->grace);
    else
        epoch_defer(m->o.epoch, &f->grace, grace_over);
}

void meta_defer_free(struct meta *m, struct meta_free *f, void (*release)(struct meta_free *f), void (*abandon)(struct meta_free *f))
{
    f->abandon = abandon;
    f->owner = m;
    f->release = release;
    f->next = NULL;
    m->frees_waiting++;
    if (MUTANT(MUT_FREE_SKIP_DURABLE)) {
        to_grace(m, f);
        return;
    }
    *m->frees_new_tail = f;
    m->frees_new_tail = &f->next;
}

struct meta_free *meta_frees_take_(struct meta *m)
{
    struct meta_free *list = m->frees_new;
    m->frees_new = NULL;
    m->frees_new_tail = &m->frees_new;
    return list;
}

void meta_frees_durable_(struct meta *m, struct meta_free *list)
{
    for (struct meta_free *f = list, *next; f; f = next) {
        next = f->next;
        to_grace(m, f);
    }
    co_wake_all(&m->frees_q);
}

void meta_frees_back_(struct meta *m, struct meta_free *list)
{
    if (!list)
        return;
    struct meta_free **tail = &list;
    while (*tail)
        tail = &(*tail)->next;
    *tail = m->frees_new;
    if (!m->frees_new)
        m->frees_new_tail = tail;
    m->frees_new = list;
    co_wake_all(&m->frees_q);                    /* meta_settle: another pass is needed */
}

uint64_t meta_frees_waiting(const struct meta *m) { return m->frees_waiting; }

int meta_settle_step(struct co *co, struct meta *m)
{
    if (!m->frees_waiting)
        return 0;
    if (m->frees_new)
        return meta_flush(co, m);
    co_wait(co, &m->frees_q);
    return m->failed && m->frees_new ? m->failed : 0;
}

int meta_settle(struct co *co, struct meta *m)
{
    int r = 0;
    while (r == 0 && m->frees_waiting)
        r = meta_settle_step(co, m);
    return r;
}

void meta_abandon(struct co *co, struct meta *m)
{
    do {
        while (m->runner || m->kicked)
            co_yield(co);
        epoch_drain(co, m->o.epoch);             /* those in grace are released as usual, which may dirty more than a pass waits for */
    } while (m->runner || m->kicked);
    struct meta_free *list = meta_frees_take_(m);
    for (struct meta_free *f = list, *next; f; f = next) {
        next = f->next;
        m->frees_waiting--;
        f->abandon(f);
    }
    for (struct meta_region *r = m->regions; r; r = r->next) {
        memset(r->dirty, 0, round_up(r->bytes / 512, 64) / 8);
        r->dirty_count = 0;
    }
    meta_forget_all(m);
}
