/* SPDX-License-Identifier: MIT
 *
 * meta.h: the metadata cache of an image and the only place that decides what reaches the disk before what
 * (DESIGN D5). Knows nothing of qcow2 or QED: blocks have an offset, a kind with a validator, and a rank.
 *
 * Model
 *   Blocks of one size (a slice of a table) are cached by host offset. Small tables that live whole in memory
 *   (an L1 table) are REGIONS. Changes are made in memory on the home loop and become durable in PASSES.
 *   A pass freezes: at one instant it copies every dirty sector of every dirty block and region into its own
 *   buffers, then writes the copies rank by rank, lowest first, with a barrier between two ranks where one is
 *   needed, and a last barrier. Passes run one at a time; everybody who waits for a flush shares the next one.
 *
 * Invariants
 *   I1  Only the home loop changes a block or region. Other loops read: words are _Atomic, in disk order.
 *   I2  A pass writes what was true at its freeze, of all ranks: a pointer never reaches the disk in an earlier
 *       or the same epoch as the count or table it relies on, unless that was marked independent (Q23).
 *   I3  A block is loaded and valid (its validator accepted it), or it is not in the cache.
 *   I4  A dirty block is never evicted; an evicted block is freed after a grace period.
 *   I5  A deferred free is released only after (a) a pass that froze at or after its queueing has ended well and
 *       (b) a grace period of the image's epoch has gone by since (a). The format then punches, and hands the
 *       space out only when the punch has completed (c). Together: Q9, D3.
 *   I6  After a failed barrier nothing is written any more: every later pass fails (RG27).
 *   I7  Nothing else in the image's process calls stor_flush on the store, or on the data store.
 *   I8  Two words that make one entry are changed by meta_set_pair and read by meta_pair: a reader on another loop sees
 *       both old or both new (D2).
 *   I9  With a data store: DATA_TABLES and FINAL make it durable first, then the store; no other barrier touches it.
 * Order        Ranks: data and copy-on-write < counts < tables < roots. Barriers are named (enum meta_barrier).
 * Concurrency  All calls on the home loop, except meta_peek (any loop, inside an epoch section of the image).
 * Failure      A failed write of a pass marks its sectors dirty again and fails everybody who waited; a later pass retries.
 */
#ifndef META_META_H
#define META_META_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/endian.h"
#include "base/err.h"
#include "rt/epoch.h"
#include "rt/sync.h"
#include "stor/event.h"

struct meta;

enum meta_rank { META_COUNTS, META_TABLES, META_ROOTS, META_RANKS };

/* Every barrier has a name; mutants drop them by name (RG4). X(name, the rules that it serves, where it stands: "no barrier ..." is its mutant).
 * The table Barriers of docs/internals/ordering.md says the same (lint refs). */
#define META_BARRIER_ROWS(X) \
    X(DATA_TABLES, "Q1 Q2 Q4 Q5 Q11 Q21 Q24 Q27 E1 E3", "behind data and counts, before tables (of qcow2 also roots) that point there") \
    X(TABLES_ROOTS, "E2 E3", "behind tables, before roots that point there") \
    X(FINAL, "P2 Q9 Q21", "at the end of a pass: the guest's flush, and what frees wait for") \
    X(GROW_COUNTS, "Q6 D4", "behind file length, counts and new refcount blocks, before the table that finds them") \
    X(GROW_ROOT, "Q6", "behind refcount table entries, before anything uses what they describe") \
    X(SWITCH_BEFORE, "Q7 Q8 Q17 Q18 Q20", "behind a new structure, before the header sector that switches to it") \
    X(SWITCH_AFTER, "Q7 Q8 Q18 Q20", "behind that sector, before the old structure is freed") \
    X(HEADER, "Q12 Q16 Q17 Q18 Q19 Q20 Q22 Q26 Q27 E1 E4 E6", "behind a header sector (marks, size, generation), key slots, or a backing name outside the first sector") \
    X(REPAIR, "P5", "between steps of repair") \
    X(SNAP_CREATE, "Q13", "behind counts, flags, copied L1 and snapshot table, before the header names that table") \
    X(SNAP_APPLY, "Q14", "behind counts, flags and the new L1, before the header names it") \
    X(SNAP_DELETE, "Q15", "behind the shorter snapshot table, before the header names it") \
    X(SNAP_SWITCHED, "Q13 Q14 Q15", "behind a header switched for snapshots, before anything of the old is given up") \
    X(BITMAPS, "Q16 Q17 P4", "behind bits of persistent bitmaps, before the guest's write they cover and the table or flag that makes them count") \
    X(CUT, "Q24", "behind refcount table entries that go, before the blocks that they named are cut off") \
    X(EXPAND, "Q25", "behind clusters of zeros and their counts, before tables of snapshots name them") \
    X(EXPANDED, "Q25", "behind those tables, before what they named loses its owners")

enum meta_barrier {
#define X(name, rules, text) META_B_##name,
    META_BARRIER_ROWS(X)
#undef X
    META_B_COUNT
};

/* A kind of block. validate: words in disk order just read from `off`; false = corrupt, not cached (-EUCLEAN). */
struct meta_kind {
    const char *name;
    enum meta_rank rank;
    bool (*validate)(void *arg, uint64_t off, const void *data, uint32_t bytes);
    void *arg;
    enum stor_event_kind on_load, on_write;  /* what is told in front of it (stor/event.h) */
};

enum { META_USED_CLOCK = 1, META_USED_CLEAN = 2, META_USED = 3 };       /* taken away by who looks for room, and by the sweep (clean.c) */

struct meta_block {
    _Atomic(struct meta_block *) hash_next;
    uint64_t off;                            /* host offset */
    const struct meta_kind *kind;
    _Atomic uint64_t *words;                 /* block_bytes/8 words in disk order */
    _Atomic uint8_t used;                    /* META_USED_*, set by readers */
    /* home loop only */
    _Atomic uint32_t seq;                    /* odd while a pair changes; readers of pairs look at it twice */
    uint32_t pins;
    uint64_t dirty_sectors;                  /* bit per dirty_unit bytes */
    struct meta_block *dirty_next, *dirty_prev, *all_next, *all_prev;
    struct epoch_cb reclaim;
    struct meta *owner;
    struct meta_chunk *chunk;                /* where its memory lies (slab.h) */
};

/* A table that is whole in memory. The owner embeds it. */
struct meta_region {
    enum meta_rank rank;
    uint64_t off;                            /* host offset of words[0] */
    _Atomic uint64_t *words;
    uint64_t bytes;
    uint64_t *dirty;                         /* bit per 512 bytes; owned by meta after meta_region_add */
    uint64_t dirty_count;
    enum stor_event_kind on_write;
    struct meta_region *next;
};

/* Space that was unlinked and waits for I5. release() runs on the home loop, must not suspend. */
struct meta_free {
    struct meta_free *next;
    uint64_t pass;                           /* pass that makes the unlinking durable */
    struct epoch_cb grace;
    void (*release)(struct meta_free *f);
    void (*abandon)(struct meta_free *f);    /* the image closes after a failure: give the memory back, change nothing */
    struct meta *owner;
};

struct meta_opts {
    struct stor *store;
    struct stor *data;                       /* holds guest data when it is another file than `store`; else NULL (Q21) */
    struct rt_loop *home;
    struct epoch *epoch;
    uint32_t block_bytes;                    /* 512..65536, power of two */
    uint64_t budget_bytes;                   /* clean + dirty blocks; at least 8 blocks are kept */
    uint64_t budget_max_bytes;               /* how far that may grow by itself (clean.c); below budget_bytes: not at all */
    uint64_t clean_ns;                       /* what was not used for so long is dropped; 0: nothing is */
    bool read_only;
    /* Runs on the home loop at the start of every pass, before the freeze (not allowed to suspend). May be NULL. */
    void (*before_freeze)(void *arg); void *arg;
};
MUST_USE int meta_new(const struct meta_opts *o, struct meta **ret_m);
/* From now on nothing is written: every pass, barrier and write fails with `error` (Q22). */
void meta_stop(struct meta *m, int error);
/* Is nothing written any more, by I6 or because somebody stopped it? */
bool meta_stopped(const struct meta *m);
/* After a failure, before meta_free_all: drops all dirt and all frees that wait (abandon() instead of release()). */
void meta_abandon(struct co *co, struct meta *m);
/* No block pinned, no dirt that matters, no free waiting; frees everything. Waits for grace periods. */
void meta_free_all(struct co *co, struct meta *m);

/* ---- blocks ---- */
/* Any loop, inside an epoch section: the block if cached, else NULL. */
struct meta_block *meta_peek(struct meta *m, uint64_t off);
/* Home: loads if needed and pins. -EIO: unreadable. -EUCLEAN: refused by the validator, or cached as another kind: two
 * structures claim the place. -ESTALE: the space was forgotten meanwhile; look up again where the block is. Suspends. */
MUST_USE int meta_get(struct co *co, struct meta *m, const struct meta_kind *k, uint64_t off, struct meta_block **ret_b);
void meta_put(struct meta *m, struct meta_block *b);
/* Home: does the cache hold, or is it reading, a block of this range? Space that is free by its count never is. */
bool meta_cached(const struct meta *m, uint64_t off, uint64_t len);
/* Forget the cached blocks of freed space; their dirt is dropped. false: one of them is pinned, so something uses the
 * space all the same (corruption); nothing was forgotten. */
MUST_USE bool meta_forget(struct meta *m, uint64_t off, uint64_t len);

/* For tests and figures. Home. bytes: memory of blocks, those included that wait for their grace period or to be used again. */
struct meta_stats { uint64_t blocks, limit, bytes, loads, evicted, cleaned; };
struct meta_stats meta_stats(const struct meta *m);

/* Forget every block, dirt included (nothing pinned, no pass running): what is on disk is the truth again. */
void meta_forget_all(struct meta *m);

static inline uint64_t meta_word(const struct meta_block *b, uint32_t i) { return be64_word(atomic_load_explicit(&b->words[i], memory_order_acquire)); }
/* Sets word i, given as it lies on disk, and marks its sector dirty. Home. */
void meta_put_word(struct meta *m, struct meta_block *b, uint32_t i, uint64_t disk_word);
/* The same of a big-endian word in host order. */
static inline void meta_set_word(struct meta *m, struct meta_block *b, uint32_t i, uint64_t value) { meta_put_word(m, b, i, be64_word(value)); }
/* Words i and i + 1, i even, as one entry. Any loop. */
static inline void meta_pair(const struct meta_block *b, uint32_t i, uint64_t *ret_a, uint64_t *ret_b)
{
    for (;;) {                               /* the writer is between two stores at most (D2) */
        uint32_t seq = atomic_load_explicit(&b->seq, memory_order_acquire);
        uint64_t a = atomic_load_explicit(&b->words[i], memory_order_acquire);
        uint64_t c = atomic_load_explicit(&b->words[i + 1], memory_order_acquire);
        if (!(seq & 1) && seq == atomic_load_explicit(&b->seq, memory_order_relaxed)) {
            *ret_a = be64_word(a);
            *ret_b = be64_word(c);
            return;
        }
    }
}
/* Home. */
void meta_set_pair(struct meta *m, struct meta_block *b, uint32_t i, uint64_t x, uint64_t y);
/* Marks bytes [from, to) of the block dirty after the caller changed them. */
void meta_dirty(struct meta *m, struct meta_block *b, uint32_t from, uint32_t to);

void meta_region_add(struct meta *m, struct meta_region *r);            /* r->dirty allocated by the caller: bytes/512/64 words, zeroed */
void meta_region_remove(struct meta *m, struct meta_region *r);         /* its dirt is dropped */
void meta_region_put(struct meta *m, struct meta_region *r, uint64_t i, uint64_t disk_word);
static inline void meta_region_set(struct meta *m, struct meta_region *r, uint64_t i, uint64_t value) { meta_region_put(m, r, i, be64_word(value)); }

/* Lazy counts (Q12): while on, passes leave blocks of rank META_COUNTS in memory, unless the cache is full of them; a crash
 * leaves any of them old. For the time in which the disk says durably that counts are not to be trusted. Nothing else
 * changes: in particular the data barrier is issued as before. */
void meta_set_lazy_counts(struct meta *m, bool on);

/* ---- dependencies of the next pass (Q1..Q5, Q23) ---- */
/* A table entry was set that relies on data or counts which are not yet durable. */
void meta_need_data_barrier(struct meta *m);
/* A root entry was set that relies on a table which is not yet durable. */
void meta_need_table_barrier(struct meta *m);
void meta_defer_free(struct meta *m, struct meta_free *f, void (*release)(struct meta_free *f), void (*abandon)(struct meta_free *f));

/* ---- passes ---- */
/* Everything that was done before the call is durable when it returns 0. Shares passes. Suspends. */
MUST_USE int meta_flush(struct co *co, struct meta *m);
/* Number of the pass that will make durable what is dirty now, and whether it, or a later one, has ended well. */
uint64_t meta_next_pass(const struct meta *m);
bool meta_pass_durable(const struct meta *m, uint64_t number);
bool meta_is_clean(const struct meta *m);       /* any loop: nothing dirty, no pass running: data alone may be made durable */
/* Waits until every deferred free queued so far was released, running passes as needed. Suspends; outside epoch sections. */
MUST_USE int meta_settle(struct co *co, struct meta *m);
/* One step of the same: a pass if some free waits for one, else waits until one moves on. Suspends; outside epoch sections. */
MUST_USE int meta_settle_step(struct co *co, struct meta *m);
/* Number of frees that wait; barriers issued so far by name (for tests, bench and limits). */
uint64_t meta_frees_waiting(const struct meta *m);
uint64_t meta_barriers(const struct meta *m, enum meta_barrier b);

/* ---- ordered steps outside passes: growth, header switches, repair ---- */
/* Holds passes off and excludes other structural changes. */
void meta_struct_begin(struct co *co, struct meta *m);
void meta_struct_end(struct meta *m);
/* Writes now (not through the cache; cached blocks of that range must have been forgotten or be equal). */
MUST_USE int meta_write_now(struct co *co, struct meta *m, const void *buf, uint64_t len, uint64_t off);
MUST_USE int meta_barrier(struct co *co, struct meta *m, enum meta_barrier which);
/* A pass while the structural lock is held by the caller. */
MUST_USE int meta_pass_locked(struct co *co, struct meta *m);
/* Writes the dirty counts alone, without a barrier: always safe, because counts are raised before and lowered after. */
MUST_USE int meta_counts_locked(struct co *co, struct meta *m);

#endif
