/* SPDX-License-Identifier: MIT
 *
 * nbd_log.c: changes that an NBD server has acknowledged, and has not yet made durable.
 *
 * Purpose      A server that goes away may have lost them, and does not say so when it is back. Whoever goes on as if nothing had
 *              happened shows the guest old data and breaks the order that images rely on. So either they are done again, in their
 *              order, before anything else; or it is known that something may be missing, and the store ends.
 * Owns         The entries, with copies of what was written.
 * Invariants   I1  Entries are in the order in which the server acknowledged them; one that was acknowledged before another was sent
 *                  stands in front of it.
 *              I2  An entry stays until a flush that was sent after its acknowledgement has succeeded. That holds for durable writes
 *                  (FUA) too: an older one that is repeated must not undo them.
 *                  Where the server has no flush, its answer is all there is: nothing is kept.
 *              I3  Without copies (keeps is false, or no memory) there is still the count.
 * Order        "Acknowledged" is not durable; only a flush is.
 * Concurrency  Any loop; `lock` is held for list work only, never while something is copied, sent or freed.
 * Failure      No memory for a copy, or a server that refuses to make durable what there are too many copies of, makes a gap: what was lost then is
 *              lost for good (NBDC_FOR_GOOD).
 * Tests        tests/interop/test_nbd_client.py, test_nbd_client_return.py
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "stor/nbd_priv.h"

#define WEIGHT_MIN 4096u                  /* of an entry: its repetition costs a round trip, however short it is */

struct nbdc_entry {
    struct list_node link;
    enum nbdc_what what;
    uint32_t flags;
    uint64_t seq, off, len;
    uint8_t data[];                       /* WRITE: len bytes */
};

void nbdc_log_init(struct nbdc_log *l, bool is_volatile, bool keeps)
{
    *l = (struct nbdc_log){ .is_volatile = is_volatile, .keeps = is_volatile && keeps };
    list_init(&l->entries);
    pthread_mutex_init(&l->lock, NULL);
}

static void free_all(struct list *entries)
{
    struct list_node *at;
    while ((at = list_pop_front(entries)))
        free(CONTAINER_OF(at, struct nbdc_entry, link));
}

void nbdc_log_fini(struct nbdc_log *l)
{
    free_all(&l->entries);
    pthread_mutex_destroy(&l->lock);
}

static bool changes(const struct nbdc_req *r)
{
    return r->what == NBDC_WRITE || r->what == NBDC_ZERO || r->what == NBDC_TRIM;
}

static uint64_t weight(const struct nbdc_entry *e)
{
    return sizeof *e + max_u64(WEIGHT_MIN, e->what == NBDC_WRITE ? e->len : 0);
}

void nbdc_log_prepare(struct nbdc_log *l, struct nbdc_req *r)
{
    if (!l->keeps || !changes(r) || r->entry)
        return;
    uint64_t bytes = r->what == NBDC_WRITE ? r->len : 0;
    struct nbdc_entry *e = malloc(sizeof *e + bytes);
    if (!e)
        return;
    *e = (struct nbdc_entry){ .what = r->what, .flags = r->flags & ~LIBNBD_CMD_FLAG_FAST_ZERO, .off = r->off, .len = r->len };
    if (bytes)
        memcpy(e->data, r->buf, bytes);
    r->entry = e;
}

void nbdc_log_drop(struct nbdc_log *l, struct nbdc_req *r)
{
    free(r->entry);
    r->entry = NULL;
}

static void acknowledged(struct nbdc_log *l, struct nbdc_req *r)
{
    struct nbdc_entry *e = r->entry;
    r->entry = NULL;
    pthread_mutex_lock(&l->lock);
    bool alone = l->acked == l->durable && (r->flags & LIBNBD_CMD_FLAG_FUA);      /* I2: no older one can undo it */
    uint64_t seq = ++l->acked;
    if (alone) {
        l->durable = seq;
    } else if (e) {
        e->seq = seq;
        list_push_back(&l->entries, &e->link);
        l->bytes += weight(e);
    } else {
        l->gap = seq;
    }
    pthread_mutex_unlock(&l->lock);
    if (alone)
        free(e);
}

/* The lock is held. */
static void take_out(struct nbdc_log *l, uint64_t seq, struct list *gone)
{
    for (struct list_node *at; (at = list_first(&l->entries));) {
        struct nbdc_entry *e = CONTAINER_OF(at, struct nbdc_entry, link);
        if (e->seq > seq)
            break;
        list_remove(at);
        list_push_back(gone, at);
        l->bytes -= weight(e);
    }
}

/* All up to seq is durable. */
static void covered(struct nbdc_log *l, uint64_t seq)
{
    struct list gone;
    list_init(&gone);
    pthread_mutex_lock(&l->lock);
    l->durable = max_u64(l->durable, seq);
    take_out(l, l->durable, &gone);
    pthread_mutex_unlock(&l->lock);
    free_all(&gone);
}

/* The server refuses to make durable what there are too many copies of: they go. A gap, until a flush that succeeds has covered it. */
static void give_up(struct nbdc_log *l, uint64_t seq)
{
    struct list gone;
    list_init(&gone);
    pthread_mutex_lock(&l->lock);
    if (seq > l->durable)
        l->gap = max_u64(l->gap, seq);
    take_out(l, seq, &gone);
    pthread_mutex_unlock(&l->lock);
    free_all(&gone);
}

void nbdc_log_ended(struct nbdc_log *l, struct nbdc_req *r)
{
    if (r->what == NBDC_FLUSH && r->result == 0)
        covered(l, r->upto);
    else if (r->what == NBDC_FLUSH && r->own)
        give_up(l, r->upto);
    else if (changes(r) && r->result == 0 && !r->repeated && l->is_volatile)
        acknowledged(l, r);
    else
        nbdc_log_drop(l, r);
}

uint64_t nbdc_log_acked(struct nbdc_log *l)
{
    pthread_mutex_lock(&l->lock);
    uint64_t seq = l->acked;
    pthread_mutex_unlock(&l->lock);
    return seq;
}

bool nbdc_log_is_full(struct nbdc_log *l)
{
    if (!l->keeps)
        return false;
    pthread_mutex_lock(&l->lock);
    bool full = l->bytes > NBDC_LOG_BYTES;
    pthread_mutex_unlock(&l->lock);
    return full;
}

enum nbdc_loss nbdc_log_loss(struct nbdc_log *l)
{
    pthread_mutex_lock(&l->lock);
    enum nbdc_loss loss = l->acked == l->durable ? NBDC_NOTHING : l->gap > l->durable ? NBDC_FOR_GOOD : NBDC_REPEATABLE;
    pthread_mutex_unlock(&l->lock);
    return loss;
}

static int send_one(struct co *co, struct nbdc_conn *c, struct nbdc_req *r)
{
    atomic_fetch_add(&c->load, 1);
    nbdc_conn_do(co, c, r);
    return r->result;
}

/* Nobody else changes the list: no connection is in use, so nothing is acknowledged. One after the other, for entries may overlap. */
int nbdc_log_repeat(struct co *co, struct nbdc_log *l, struct nbdc_conn *c)
{
    l->repeated_ns = rt_now(co_loop(co));
    LIST_FOR(at, &l->entries) {
        struct nbdc_entry *e = CONTAINER_OF(at, struct nbdc_entry, link);
        struct nbdc_req r = { .what = e->what, .flags = e->flags, .off = e->off, .len = e->len, .buf = e->data, .repeated = true };
        int result = send_one(co, c, &r);
        if (result)
            return result;
        l->repeated_ns = rt_now(co_loop(co));
    }
    struct nbdc_req flush = { .what = NBDC_FLUSH, .upto = nbdc_log_acked(l) };
    return send_one(co, c, &flush);
}
