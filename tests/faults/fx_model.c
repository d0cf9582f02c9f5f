/* SPDX-License-Identifier: MIT
 *
 * fx_model.c: which values may a sector have?
 *
 * Purpose      Follows requests that may fail: a failed one leaves each of its sectors old or new.
 * Owns         Nothing.
 * Invariants   now is part of crash. A flush that succeeded makes crash what now was when it was issued, and what was
 *              issued since.
 * Order, Concurrency, Failure  None: it only watches.
 * Tests        test_faults.py: a world that lies about a flush is found out (lie=).
 */
#include <string.h>

#include "base/assert.h"
#include "fx.h"

void fx_issue(struct fx_model *m, uint64_t off, uint64_t len, unsigned version)
{
    uint64_t bit = 1ull << version;
    for (uint64_t i = off / CX_SECTOR; i < (off + len) / CX_SECTOR; i++) {
        m->now[i] |= bit;
        m->crash[i] |= bit;
        m->ever[i] |= bit;
        for (struct fx_flush *f = m->flushes; f; f = f->next)
            f->now[i] |= bit;
    }
}

void fx_done(struct fx_model *m, uint64_t off, uint64_t len, unsigned version)
{
    for (uint64_t i = off / CX_SECTOR; i < (off + len) / CX_SECTOR; i++)
        m->now[i] = 1ull << version;
}

void fx_moved(struct fx_model *m, uint64_t from, uint64_t off, uint64_t len, bool done)
{
    for (uint64_t i = 0; i < len / CX_SECTOR; i++) {
        uint64_t at = off / CX_SECTOR + i, was = m->now[from / CX_SECTOR + i], set = (was & 1) | (was & ((1u << FX_MOVED_MAX) - 2)) << FX_MOVED;
        ASSERT(!(was >> FX_MOVED_MAX));
        m->now[at] = set | (done ? 0 : m->now[at]);
        m->crash[at] |= set;
        m->ever[at] |= set;
        for (struct fx_flush *f = m->flushes; f; f = f->next)
            f->now[at] |= set;
    }
}

void fx_flush_begin(struct fx_model *m, struct fx_flush *f)
{
    memcpy(f->now, m->now, sizeof f->now);
    f->sizes = m->now_sizes;
    f->next = m->flushes;
    m->flushes = f;
}

void fx_flush_end(struct fx_model *m, struct fx_flush *f, bool good)
{
    struct fx_flush **p = &m->flushes;
    while (*p != f)
        p = &(*p)->next;
    *p = f->next;
    if (!good)
        return;
    memcpy(m->crash, f->now, sizeof m->crash);
    m->crash_sizes = f->sizes;
}

void fx_keys_issue(struct fx_model *m, unsigned on_the_way)
{
    m->keys_now |= on_the_way;
    m->keys_crash |= on_the_way;
    m->keys_ever |= on_the_way;
}

/* A change of keys is durable when it has succeeded. */
void fx_keys_done(struct fx_model *m, unsigned keys)
{
    m->keys_now = m->keys_crash = 1u << keys;
}

unsigned fx_size_issue(struct fx_model *m, uint64_t bytes)
{
    unsigned id = m->size_count++;
    ASSERT(id < sizeof m->size / sizeof m->size[0]);
    uint64_t old = m->size[id - 1];
    m->size[id] = bytes;
    m->now_sizes |= 1ull << id;
    m->crash_sizes |= 1ull << id;
    m->ever_sizes |= 1ull << id;
    for (uint64_t i = old / CX_SECTOR; i < bytes / CX_SECTOR; i++)
        m->now[i] = m->crash[i] = m->ever[i] = 1;     /* what is gained reads zero */
    return id;
}

/* A resize makes durable what came before it. */
void fx_size_done(struct fx_model *m, unsigned id)
{
    m->now_sizes = m->crash_sizes = 1ull << id;
    memcpy(m->crash, m->now, sizeof m->crash);
}
