/* SPDX-License-Identifier: MIT
 *
 * q2_snap_create.c: a new internal snapshot.
 *
 * Purpose      Every table and cluster of the disk gets one more owner; a copy of the L1 table and an entry in the snapshot
 *              table name them.
 * Owns         Nothing beyond the call.
 * Invariants   C1  A crash shows the image without the snapshot, or with it and as it was (P3).
 *              C2  Before the header names the snapshot, no entry of the disk says COPIED any more of what it shares.
 *              C3  Space behind the end of the disk, left by an interrupted shrink or held by a VM's state, does not belong
 *                  to the snapshot.
 * Order        Q13: counts up, COPIED cleared in L2 tables and in the L1 table, copied L1, new snapshot table, in any order
 *              | META_B_SNAP_CREATE | header bytes 60..71 | META_B_SNAP_SWITCHED | the old snapshot table is dropped.
 * Concurrency  q2_snap.c N1.
 * Failure      Before the switch everything is taken back as far as it can be written.
 * Tests        q2_snap_test.c, crash explorer, tests/interop/test_snapshots.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_snap_priv.h"

/* One more than the largest number among the ids (1.087). */
static char *next_id(const struct q2_snapshot_scan *list)
{
    uint64_t max = 0;
    char text[24];
    for (uint32_t i = 0; i < list->count; i++) {
        char *end;
        uint64_t v = strtoull(list->snapshots[i].id, &end, 10);
        if (v < UINT64_MAX)
            max = max_u64(max, v);
    }
    snprintf(text, sizeof text, "%" PRIu64, max + 1);
    return strdup(text);
}

/* The list with the new one at its end; only the array belongs to the caller. */
static int longer_list(const struct q2_snap *s, struct q2_snapshot_scan *ret)
{
    *ret = (struct q2_snapshot_scan){ .count = s->old.count + 1 };
    ret->snapshots = calloc(ret->count, sizeof *ret->snapshots);
    if (!ret->snapshots)
        return -ENOMEM;
    if (s->old.count)
        memcpy(ret->snapshots, s->old.snapshots, s->old.count * sizeof *ret->snapshots);
    ret->snapshots[s->old.count] = s->made;
    return 0;
}

static int check_name(const struct q2_snap *s)
{
    const struct fmt_snapshot_req *rq = s->rq;
    if (!q2_snapshot_text_ok(rq->name, false))
        return byre_fail(s->err, BAD_ARGUMENT, "%s: the name of a snapshot is at most 255 bytes of UTF-8 without control characters", s->q->name);
    if (rq->unique && !rq->name[0])
        return byre_fail(s->err, BAD_ARGUMENT, "%s: a snapshot needs a name", s->q->name);
    for (uint32_t i = 0; rq->unique && i < s->old.count; i++)
        if (!strcmp(s->old.snapshots[i].name, rq->name))
            return byre_fail(s->err, EXISTS, "%s: there is a snapshot with the name '%s' already", s->q->name, rq->name);
    return 0;
}

/* L1 entries of the disk, and behind it those of the VM state as far as there is one (FEATURES 1.058). */
static uint64_t entries_of(const struct q2_image *q)
{
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    uint64_t disk = min_u64(q->h.l1_size, q2_l1_entries(&q->g, q->h.size)), n = min_u64(q->h.l1_size, l1->entries);
    while (n > disk && !atomic_load_explicit(&l1->words[n - 1], memory_order_relaxed))
        n--;
    return max_u64(n, disk);
}

int q2_snap_create_plan(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    struct q2_snapshot_scan list;
    (void)co;
    int r = check_name(s);
    if (r < 0)
        return r;
    if (s->old.count >= Q2_SNAPSHOTS_MAX)
        return byre_fail(s->err, LIMIT, "%s: there are %" PRIu32 " snapshots already, as many as an image can have", q->name, s->old.count);
    s->entries = entries_of(q);
    s->made = (struct q2_snapshot){ .l1_size = (uint32_t)s->entries, .id = next_id(&s->old), .name = strdup(s->rq->name), .date_sec = s->rq->date_sec,
        .date_nsec = s->rq->date_nsec, .disk_size = q->h.size, .has_disk_size = true };
    s->it = &s->made;
    if (!s->made.id || !s->made.name || longer_list(s, &list) < 0)
        return byre_fail(s->err, NOMEM, "%s: no memory for a snapshot", q->name);
    s->table_bytes = q2_snapshots_emit(&list, &q->g, NULL);
    s->l1_bytes = s->entries * 8;
    free(list.snapshots);
    if (s->table_bytes > Q2_SNAPSHOT_TABLE_MAX)
        return byre_fail(s->err, LIMIT, "%s: the snapshot table would be longer than 64 MiB", q->name);
    return 0;
}

/* ---- doing it ---- */

/* The active L1 table on the disk: as it is in memory, or without COPIED in the entries that are shared. */
static int write_active_l1(struct co *co, struct q2_snap *s, bool shared)
{
    struct q2_image *q = s->q;
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    uint64_t *words = q2_snap_words(l1->entries);
    if (!words)
        return -ENOMEM;
    q2_snap_active_words(q, words, l1->entries);
    if (shared)
        memcpy(words, s->words, s->entries * 8);
    int r = l1->entries ? meta_write_now(co, q->meta, words, q2_snap_words_bytes(l1->entries), q->h.l1_off) : 0;
    free(words);
    return r;
}

/* Nothing points to what was made: the old state comes back. */
static void take_back(struct co *co, struct q2_snap *s, bool flags)
{
    struct q2_image *q = s->q;
    int r = q2_shift_undo(co, &s->shift);
    if (flags && r == 0)
        r = q2_shift_look(co, &s->shift);
    if (flags && r == 0)
        r = q2_tree_flag(co, q, &s->mine, &s->shift.state);
    if (flags && r == 0)
        r = write_active_l1(co, s, false);
    (void)r;                                   /* counts stay too high, flags are missing: safe (N3 of q2_snap.c), and repair mends it */
    meta_forget_all(q->meta);
}

static int look(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    s->words = q2_snap_words(s->entries);
    if (!s->words)
        return -ENOMEM;
    q2_snap_active_words(q, s->words, s->entries);
    int r = q2_tree_init(&s->mine, &q->g, s->file_bytes, s->words, s->entries);
    if (r == 0)
        r = q2_tree_count(co, q, &s->mine, &s->shift.gain);
    for (uint64_t i = 0; i < s->entries; i++)
        s->words[i] &= ~be64_word(Q2_E_COPIED);
    return r == 0 ? q2_snap_check(co, s) : r;
}

static int write_table(struct co *co, struct q2_snap *s)
{
    struct q2_snapshot_scan list;
    s->made.l1_off = q2_run_off(s->q, &s->l1);
    int r = longer_list(s, &list);
    if (r == 0)
        r = q2_snap_write_table(co, s, &list);
    free(list.snapshots);
    return r;
}

/* Everything in front of the barrier. */
static int prepare(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    int r = MUTANT(MUT_SNAP_COUNT_LATE) ? 0 : q2_shift_up(co, &s->shift);
    if (r == 0 && !MUTANT(MUT_SNAP_KEEP_COPIED))
        r = q2_tree_unflag(co, q, &s->mine);
    if (r == 0)
        r = write_active_l1(co, s, !MUTANT(MUT_SNAP_L1_COPIED));
    if (r == 0 && s->entries)
        r = meta_write_now(co, q->meta, s->words, q2_snap_words_bytes(s->entries), q2_run_off(q, &s->l1));
    if (r == 0)
        r = write_table(co, s);
    return r < 0 ? r : meta_barrier(co, q->meta, META_B_SNAP_CREATE);
}

/* The same in memory. */
static void commit(struct q2_snap *s)
{
    struct q2_image *q = s->q;
    const struct q2_l1 *l1 = atomic_load_explicit(&q->l1, memory_order_relaxed);
    for (uint64_t i = 0; i < s->entries && !MUTANT(MUT_SNAP_L1_COPIED); i++)
        atomic_store_explicit(&l1->words[i], s->words[i], memory_order_release);
    if (!MUTANT(MUT_SNAP_CACHE_STAYS))
        meta_forget_all(q->meta);
}

int q2_snap_create(struct co *co, struct q2_snap *s)
{
    int r = look(co, s);
    if (r < 0)
        return q2_snap_fail(s, r, "reading tables");
    r = prepare(co, s);
    if (r == 0)
        r = q2_snap_switch_table(co, s, s->old.count + 1);
    if (r < 0) {
        take_back(co, s, true);
        return q2_snap_fail(s, r, "writing tables");
    }
    if (MUTANT(MUT_SNAP_COUNT_LATE))
        r = q2_shift_up(co, &s->shift);
    commit(s);
    return r;
}
