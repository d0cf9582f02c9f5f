/* SPDX-License-Identifier: MIT
 *
 * trace.h: what happened in one recorded run: every operation that changed a simulated file, and every promise made to
 * the guest, on one clock of stamps.
 *
 * Storage model
 *   An operation is PENDING from its issue until a flush makes it durable. A flush makes durable only what had
 *   completed before the flush was issued, and only when it ends well; a failed flush leaves what it covered pending
 *   for ever. Length changes, also those implied by a write past the end, are operations of their own.
 * Concurrency  One thread. All memory belongs to the trace and is given back as a whole.
 */
#ifndef SIM_TRACE_H
#define SIM_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"

#define SIM_NEVER UINT64_MAX

enum sim_op_kind { SIM_WRITE, SIM_ZERO, SIM_PUNCH, SIM_LEN, SIM_FLUSH };

struct sim_op {
    enum sim_op_kind kind;
    uint32_t file;
    bool meta;                       /* not guest data, as far as its first sector tells */
    bool fua;
    bool lost;                       /* covered by a failed flush: never durable */
    bool failed;                     /* the call failed; what it may have changed stays possible */
    uint64_t first;                  /* first sector */
    uint32_t count;                  /* sectors; SIM_LEN and SIM_FLUSH: 0 */
    uint64_t len;                    /* SIM_LEN: new length in bytes */
    uint8_t *data;                   /* whole sectors as they lay in the page cache at the effect; NULL: zeros */
    struct hash128 *hash;            /* sim_sector_hash of each */
    uint64_t issued, effect, done, durable;   /* stamps; SIM_NEVER: has not happened */
};

enum sim_note_kind {
    SIM_N_WRITE, SIM_N_ZERO, SIM_N_DISCARD,      /* a guest request was issued: off, len, gen; id = request */
    SIM_N_CLONE,                                 /* the same: [off, off + len) becomes what lies from `from` on */
    SIM_N_CLOSED,                                /* the image was closed well, in a run with clones */
    SIM_N_ACK, SIM_N_FAIL,                       /* request id ended */
    SIM_N_SEEN,                                  /* what a discard (id) left was read: gens */
    SIM_N_FLUSH,                                 /* a guest flush was issued: id */
    SIM_N_FLUSH_ACK,
    SIM_N_RESIZE, SIM_N_RESIZE_ACK, SIM_N_RESIZE_FAIL,   /* id; len = new size in bytes */
    SIM_N_SNAP_CREATE, SIM_N_SNAP_APPLY, SIM_N_SNAP_DELETE,   /* id = number of the snapshot; CREATE: gens and len = what it holds */
    SIM_N_SNAP_ACK, SIM_N_SNAP_FAIL,             /* the operation on id ended */
    SIM_N_AMEND, SIM_N_AMEND_END,                /* options are changed, which may change tables of snapshots */
    SIM_N_KEYS, SIM_N_KEYS_ACK,                  /* key slots change: gen = what of sim_key_changes; an ack: it is done */
    SIM_N_BITMAP, SIM_N_BITMAP_ACK, SIM_N_BITMAP_FAIL,   /* id; gen = letter of the action, off = slot, len = slot of the source */
    SIM_N_EVENT,                                 /* an operator was told something; what, knows who judges */
};

struct sim_note {
    enum sim_note_kind kind;
    uint32_t id, gen;
    uint64_t stamp, off, len, from;  /* bytes */
    uint32_t *gens;                  /* SIM_N_SEEN, SIM_N_SNAP_CREATE: one per sector */
};

struct sim_trace {
    struct sim_op **ops;
    size_t op_count, op_cap;
    struct sim_note *notes;
    size_t note_count, note_cap;
    void *chunks;                    /* arena */
};

void sim_trace_init(struct sim_trace *t);
void sim_trace_fini(struct sim_trace *t);
void *sim_trace_alloc(struct sim_trace *t, size_t bytes);       /* zeroed */
struct sim_op *sim_trace_op(struct sim_trace *t, enum sim_op_kind kind, uint32_t file, uint64_t stamp);
struct sim_note *sim_trace_note(struct sim_trace *t, enum sim_note_kind kind, uint64_t stamp);
/* A flush of `file` that was issued at `issued` ended at `stamp`. */
void sim_trace_flushed(struct sim_trace *t, uint32_t file, uint64_t issued, uint64_t stamp, bool ok);
/* Digest of everything in it: the same seed must give the same. */
struct hash128 sim_trace_hash(const struct sim_trace *t);

#endif
