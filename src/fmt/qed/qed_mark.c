/* SPDX-License-Identifier: MIT
 *
 * qed_mark.c: the header while the image is open, and the need-check mark in it (FEATURES 2.006, 2.008, 2.012).
 *
 * Purpose      Says on the disk that clusters may be lost, as long as they may; changes the header, one sector at a time.
 * Owns         q->mark; the header on disk.
 * Invariants   K1  While an allocating change is under way, or may not be durable yet, the mark is set, durably (E1).
 *              K2  It goes away only when all tables are durable and the file ends where what is in use ends (E4): an image without
 *                  it has no cluster that this opening has lost, but those that a scrub could not put to use, and has told of.
 *              K4  The mark of an image that is not proved sound stays (qed_scrub.c L4), as long as nobody has looked through it.
 *              K5  A change of the header begins with what the header says in memory and ends there; no other comes between.
 *              K3  What the header says in memory is what it says on the disk, or nothing is written any more.
 * Order        mark | META_B_HEADER | first growth of the file, first changed entry.
 *              cut, tables | META_B_FINAL | mark away | META_B_HEADER.
 * Concurrency  Home loop. Setting and clearing exclude one another (mark.mx); requests run beside both.
 * Failure      enter: nothing is changed by the caller. leave: the mark stays, which is always right.
 * Tests        qed_write_test.c, tests/interop/test_qed_write.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/mutant.h"
#include "fmt/qed/qed_image.h"

#define IDLE_NS 5000000000ull                     /* without an allocating change, before the mark goes away */

/* ---- the header ---- */

/* Is there a name, and does it lie in the first sector, behind the fields? */
static bool name_is_near(const struct qed_header *h)
{
    return h->backing_name && h->backing_off >= sizeof(struct qed_disk_header) && (uint64_t)h->backing_off + h->backing_len <= QED_SECTOR_BYTES;
}

/* A write of the sector failed: it may be old or new there. Back to the old one, durably; else nothing is written any more (K3). */
static void header_back(struct co *co, struct qed_image *q, const void *sector, int error)
{
    int r = meta_write_now(co, q->meta, sector, QED_SECTOR_BYTES, 0);
    if (r == 0)
        r = meta_barrier(co, q->meta, META_B_HEADER);
    if (r < 0)
        meta_stop(q->meta, error);
}

/* The sector with *h in it, and the name when it lies there. The bytes around them stay. */
static int write_header(struct co *co, struct qed_image *q, const struct qed_header *h)
{
    AUTOFREE uint8_t *old = aligned_alloc(QED_SECTOR_BYTES, 2 * QED_SECTOR_BYTES);
    if (!old)
        return -ENOMEM;
    uint8_t *new = old + QED_SECTOR_BYTES;
    int r = stor_read_exact(co, q->im.store, old, QED_SECTOR_BYTES, 0);
    if (r == 0) {
        memcpy(new, old, QED_SECTOR_BYTES);
        qed_header_emit(h, (struct qed_disk_header *)new);
        if (name_is_near(h))
            memcpy(new + h->backing_off, h->backing_name, h->backing_len);
        r = meta_write_now(co, q->meta, new, QED_SECTOR_BYTES, 0);
        if (r < 0)
            header_back(co, q, old, r);
    }
    if (MUTANT(MUT_QED_MARK_UNORDERED) && h->features & QED_F_NEED_CHECK)
        return r;
    return r < 0 ? r : meta_barrier(co, q->meta, META_B_HEADER);
}

/* K5: a copy to change, until header_give. */
static struct qed_header header_take(struct co *co, struct qed_image *q)
{
    co_lock(co, &q->header_mx);
    return q->h;
}

static int header_give(struct co *co, struct qed_image *q, const struct qed_header *h)
{
    int r = write_header(co, q, h);
    if (r == 0)
        q->h = *h;
    co_unlock(&q->header_mx);
    return r;
}

int qed_put_mark(struct co *co, struct qed_image *q, bool set)
{
    struct qed_header h = header_take(co, q);
    h.features = set ? h.features | QED_F_NEED_CHECK : h.features & ~QED_F_NEED_CHECK;
    return header_give(co, q, &h);
}

int qed_clear_autoclear(struct co *co, struct qed_image *q)
{
    if (!q->h.autoclear)
        return 0;
    struct qed_header h = header_take(co, q);
    h.autoclear = 0;
    return header_give(co, q, &h);
}

int qed_set_size(struct co *co, struct qed_image *q, uint64_t size)
{
    struct qed_header h = header_take(co, q);
    h.size = size;
    return header_give(co, q, &h);
}

int qed_set_l1(struct co *co, struct qed_image *q, uint64_t off)
{
    struct qed_header h = header_take(co, q);
    h.l1_off = off;
    return header_give(co, q, &h);
}

/* A name of this length in its place: behind the fields where the first sector has room, so that one write changes both; else in sectors that
 * nobody reads before that write (E6). */
static int place_name(struct co *co, struct qed_image *q, struct qed_header *h)
{
    h->backing_off = sizeof(struct qed_disk_header);
    if (name_is_near(h))
        return 0;
    h->backing_off = qed_header_name_place(&q->h);
    AUTOFREE uint8_t *buf = aligned_alloc(QED_SECTOR_BYTES, QED_NAME_ROOM);
    if (!buf)
        return -ENOMEM;
    memset(buf, 0, QED_NAME_ROOM);
    memcpy(buf, h->backing_name, h->backing_len);
    int r = meta_write_now(co, q->meta, buf, QED_NAME_ROOM, h->backing_off);
    return r < 0 || MUTANT(MUT_QED_NAME_LATE) ? r : meta_barrier(co, q->meta, META_B_HEADER);
}

int qed_set_backing(struct co *co, struct qed_image *q, const char *name, bool raw)
{
    char *mine = name ? strdup(name) : NULL;
    if (name && !mine)
        return -ENOMEM;
    struct qed_header h = header_take(co, q);
    char *old = h.backing_name;
    h.features &= ~(QED_F_BACKING | QED_F_BACKING_RAW);
    h.features |= name ? QED_F_BACKING | (raw ? QED_F_BACKING_RAW : 0) : 0;
    h.backing_name = mine;
    h.backing_len = name ? (uint32_t)strlen(name) : 0;
    h.backing_off = 0;
    int r = name ? place_name(co, q, &h) : 0;
    if (r < 0)
        co_unlock(&q->header_mx);
    else
        r = header_give(co, q, &h);
    free(r < 0 ? mine : old);
    return r;
}

/* ---- the mark ---- */

static void idle_co(struct co *co, void *arg)
{
    struct qed_image *q = arg;
    struct qed_mark *k = &q->mark;
    uint64_t seen = k->count;
    while (k->set && !k->keep && co_sleep(co, IDLE_NS) != -ECANCELED) {
        if (k->count == seen && !qed_alloc_owes(q) && qed_mark_leave(co, q) < 0)
            break;                                /* it stays set; closing tries again */
        seen = k->count;
    }
    k->idle_runs = false;
}

void qed_mark_watch(struct qed_image *q)
{
    struct qed_mark *k = &q->mark;
    if (k->idle_runs || q->a.closing)
        return;
    k->idle_runs = true;
    if (rt_task_start(q->im.home, &k->idle, idle_co, q) < 0)
        k->idle_runs = false;                     /* then closing does it */
}

int qed_mark_enter(struct co *co, struct qed_image *q)
{
    struct qed_mark *k = &q->mark;
    int r = qed_unclean_wait(co, q);
    if (r < 0)
        return r;
    k->changers++;                                /* first: who is about to clear the mark leaves it, or clears it and we set it again */
    k->count++;
    if (!k->set) {
        co_lock(co, &k->mx);
        if (!k->set) {
            r = qed_put_mark(co, q, true);
            k->set = r == 0;
        }
        co_unlock(&k->mx);
    }
    if (r < 0)
        k->changers--;
    else
        qed_mark_watch(q);
    return r;
}

void qed_mark_exit(struct qed_image *q)
{
    INV(K1, q->mark.changers > 0 && q->mark.set);
    q->mark.changers--;
}

int qed_mark_leave(struct co *co, struct qed_image *q)
{
    struct qed_mark *k = &q->mark;
    co_lock(co, &k->mx);
    int r = k->changers || q->scrubbing ? 1 : 0;
    if (r == 0 && k->set && !q->unclean) {
        k->set = false;                           /* who wants it from here on waits for mx */
        r = MUTANT(MUT_QED_CLEAN_EARLY) ? qed_put_mark(co, q, false) : 0;
        if (r == 0)
            r = qed_alloc_cut(co, q);
        if (r == 0)
            r = meta_flush(co, q->meta);
        bool stays = k->keep || qed_alloc_owes(q);
        if (r == 0 && !stays)
            r = qed_put_mark(co, q, false);
        k->set = r < 0 || stays;
    }
    co_unlock(&k->mx);
    return r;
}

void qed_mark_stop(struct co *co, struct qed_image *q)
{
    ASSERT(q->a.closing);
    if (!q->mark.idle_runs)
        return;
    rt_cancel(&q->mark.idle);
    rt_task_join(co, &q->mark.idle);
}
