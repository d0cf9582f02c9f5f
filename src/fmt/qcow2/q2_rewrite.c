/* SPDX-License-Identifier: MIT
 *
 * q2_rewrite.c: another header cluster, switched to in one sector.
 *
 * Purpose     Changes what lies in extensions and names, or moves them (another version), where single fields do not do.
 * Owns        Three buffers of one cluster during the call.
 * Invariants  X1  What the old header means is not touched before the first sector is the new one, what the new one means not
 *                 afterwards: behind the first sector no byte means something else to the one than to the other.
 *             X2  Of all layouts the first that allows this is taken. If it leaves out the table of feature names, a second
 *                 step adds it where the first has made room.
 * Order       Q18, Q20: sectors behind the first | META_B_SWITCH_BEFORE | first sector | META_B_SWITCH_AFTER.
 * Concurrency Home loop, at rest (q2_rest).
 * Failure     -ENOSPC, -ENOMEM: nothing is changed. -EIO: old or new; q2_reload tells which.
 * Tests       tests/cli/amend_test.py, crash explorer (amend), tests/faults
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_image.h"

#define SECTOR 512u

/* Puts what b means behind the first sector over a. false: a means something else in one of these bytes (X1). */
static bool overlay(uint8_t *a, const struct q2_header_use *old, const uint8_t *b, uint64_t from, uint64_t to)
{
    from = max_u64(from, SECTOR);
    for (uint64_t i = from; i < to; i++) {
        bool meant = i < old->ext_end || (i >= old->name_off && i < old->name_end);
        if (meant && a[i] != b[i])
            return false;
        a[i] = b[i];
    }
    return true;
}

/* mid: `old` with everything in it that `new` means behind the first sector. */
static bool can_switch(const uint8_t *old, const uint8_t *new, uint8_t *mid, uint64_t bytes)
{
    struct q2_header_use a = q2_header_used(old, bytes), b = q2_header_used(new, bytes);
    memcpy(mid, old, bytes);
    return overlay(mid, &a, new, 0, b.ext_end) && overlay(mid, &a, new, b.name_off, b.name_end);
}

/* Where a backing name may go: behind the extensions, where it is, behind everything. */
static uint32_t name_place(unsigned i, const struct q2_header_use *old)
{
    uint64_t end = max_u64(old->ext_end, old->name_end);
    return i == 0 ? 0 : (uint32_t)(i == 1 ? old->name_off : round_up(end, 8));
}

static bool choose(const struct q2_header *h, const uint8_t *old, uint8_t *new, uint8_t *mid, uint64_t bytes, bool names_only, bool *ret_names)
{
    struct q2_header_use use = q2_header_used(old, bytes);
    for (unsigned i = 0; i < (names_only ? 6 : 12); i++) {
        struct q2_header_layout l = { .names = i < 6, .frontier = h->version >= 3 && i / 3 % 2 == 0, .name_off = name_place(i % 3, &use) };
        *ret_names = l.names;
        if (i % 3 && (!h->backing_name || !l.name_off))
            continue;
        if (q2_header_emit_as(h, &l, new, bytes, NULL) == 0 && can_switch(old, new, mid, bytes))
            return true;
    }
    return false;
}

/* Writes the sectors behind the first that differ. */
static int write_rest(struct co *co, struct q2_image *q, const uint8_t *have, const uint8_t *want, bool *ret_any)
{
    int r = 0;
    for (uint64_t at = SECTOR; r == 0 && at < q->g.cluster_size; at += SECTOR) {
        if (memcmp(have + at, want + at, SECTOR) == 0)
            continue;
        r = meta_write_now(co, q->meta, want + at, SECTOR, at);
        *ret_any = true;
    }
    return r;
}

static int switch_to(struct co *co, struct q2_image *q, uint8_t *old, const uint8_t *new, const uint8_t *mid)
{
    bool any = false;
    int r = write_rest(co, q, old, mid, &any);
    if (r == 0 && any)
        r = meta_barrier(co, q->meta, META_B_SWITCH_BEFORE);
    if (r == 0)
        r = q2_header_put_first(co, q, new, old, META_B_SWITCH_AFTER);
    if (r == 0)
        r = write_rest(co, q, mid, new, &any);               /* what is left of the old one means nothing any more */
    memcpy(old, new, q->g.cluster_size);
    return r;
}

/* Three headers in one piece of memory, which `old` owns: there now, to be there, between the two. */
struct plan { uint8_t *old, *new, *mid; bool names; };

static int make_plan(struct co *co, const struct q2_image *q, const struct q2_header *h, struct plan *p, struct byre_err *err)
{
    uint64_t bytes = q->g.cluster_size;
    struct iovec slot;
    *p = (struct plan){ 0 };
    if (posix_memalign((void **)&p->old, 4096, max_u64(3 * bytes, 4096)))
        return byre_fail(err, NOMEM, "%s: no memory for the header", q->name);
    p->new = p->old + bytes;
    p->mid = p->new + bytes;
    int r = stor_read(co, q->im.store, iov_one(&slot, p->old, bytes), 0);
    if (r < 0)
        r = byre_fail_code(err, IO, r, "%s: the header cannot be read: %s", q->name, strerror(-r));
    else if (!choose(h, p->old, p->new, p->mid, bytes, false, &p->names))
        r = byre_fail(err, NO_SPACE, "%s: the new header does not fit its cluster of %" PRIu64 " bytes, or cannot be switched to in one step; shorten the names in it", q->name, bytes);
    if (r < 0)
        free(p->old);
    return r;
}

int q2_header_fits(struct co *co, const struct q2_image *q, const struct q2_header *h, struct byre_err *err)
{
    struct plan p;
    int r = make_plan(co, q, h, &p, err);
    if (r == 0)
        free(p.old);
    return r;
}

int q2_header_rewrite(struct co *co, struct q2_image *q, const struct q2_header *h, struct byre_err *err)
{
    struct plan p;
    int r = make_plan(co, q, h, &p, err);
    if (r < 0)
        return r;
    r = switch_to(co, q, p.old, p.new, p.mid);
    if (r == 0 && !p.names && h->version >= 3 && choose(h, p.old, p.new, p.mid, q->g.cluster_size, true, &p.names))
        r = switch_to(co, q, p.old, p.new, p.mid);                /* X2 */
    free(p.old);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the header cannot be written: %s", q->name, strerror(-r)) : 0;
}
