/* SPDX-License-Identifier: MIT
 *
 * model.h: what a guest may find on its disk after a crash: for each sector the set of legal values.
 *
 * A value is a GENERATION: every guest write has one of its own, 0 is zeros. A written sector carries its generation
 * and its guest sector number, so that a stale or misplaced sector is recognised for what it is.
 *
 * Rules (P2)
 *   M1  A request's value becomes possible when the request is issued.
 *   M2  When a flush is acknowledged, a value goes out that was overwritten for certain: some other request was issued
 *       after the value's own had ended, and ended well before the flush was issued.
 *   M3  A discard makes zeros, or what the backing image holds, possible and makes nothing impossible, until somebody
 *       has read what it left (SIM_N_SEEN): from then on it is a write of that.
 *   M4  The size is the old or the new one while a resize is under way, the new one from its acknowledgement. What is
 *       cut off and comes back by growing reads zeros.
 *   M5  A snapshot is there or not while it is made or deleted, and holds what the disk held when it was made, to the sector
 *       (P3). While one is applied the disk is wholly as before, with the old size, or wholly as the snapshot.
 *   M7  A clone may bring what its source could hold at any time between its issue and its end, each sector for itself. From then on
 *       until a close, and from any later request until a close, a flag of a single owner may be missing, while the disk says so (Q27).
 *   M6  Key slots: the passphrases that open an image are those of before or of behind a change while it runs, those of behind it
 *       from its acknowledgement.
 * Concurrency  One thread.
 */
#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "sim/bitmaps.h"
#include "sim/trace.h"

#define SIM_GEN_NONE UINT32_MAX          /* not a legal content at all */
/* A value is a generation, and how far a clone has moved what was written: so a sector may hold what was written for another one, and
 * only that one. Bytes that were never moved have their generation as value. */
#define SIM_GEN_BITS 12u
static inline uint32_t sim_gen_of(uint32_t value) { return value & ((1u << SIM_GEN_BITS) - 1); }
/* What `value` becomes `by` sectors further on; zeros are zeros everywhere. */
static inline uint32_t sim_gen_moved(uint32_t value, int64_t by)
{
    return value && value != SIM_GEN_NONE ? value + ((uint32_t)by << SIM_GEN_BITS) : value;
}

enum sim_sector_kind { SIM_SECTOR_ZERO, SIM_SECTOR_GUEST, SIM_SECTOR_OTHER };
void sim_sector_fill(uint8_t *p, uint32_t gen, uint64_t sector);       /* gen 0: zeros */
enum sim_sector_kind sim_sector_parse(const uint8_t *p, uint32_t *ret_gen, uint64_t *ret_sector);
/* Generation of a sector read at guest sector `sector`; SIM_GEN_NONE: neither zeros nor written for this place. */
uint32_t sim_sector_gen(const uint8_t *p, uint64_t sector);

struct sim_val { uint32_t gen, req; bool strong; };
struct sim_cell { struct sim_val *v; uint32_t n, cap; };
struct sim_req { uint64_t issued, ended; bool ok; enum sim_note_kind kind; uint64_t off, len, from; uint32_t gen; };

#define SIM_SNAPS_MAX 5u                 /* number 0: the one of the initial image; the last one: made by verify */
enum sim_snap_state { SIM_SNAP_NONE, SIM_SNAP_THERE, SIM_SNAP_COMING, SIM_SNAP_GOING };
/* gens: one per sector of the model, SIM_GEN_NONE where nobody knows; kept, not copied. */
struct sim_snap { enum sim_snap_state state; uint64_t size; const uint32_t *gens; };

struct sim_model {
    uint64_t sectors;                    /* cells */
    struct sim_cell *cells;
    struct sim_req *reqs;
    size_t req_cap;
    uint32_t req_count;                  /* ids are below; 0 = the beginning */
    uint64_t size, size_alt;             /* bytes; alt = size when no resize is open */
    bool resized;                        /* some resize was issued: verify growing back */
    struct sim_snap snap[SIM_SNAPS_MAX];
    const struct sim_snap *applying;     /* may have become the disk; NULL: none */
    bool snapped;                        /* an operation on snapshots was begun */
    bool loose;                          /* counts and COPIED flags may still be those of an operation that was cut short */
    bool shares;                         /* M7: a flag may be missing, if the disk says so (sim_audit_flags_missing) */
    bool cloned;                         /* M7: clusters may be shared, since a clone */
    unsigned clones_open;                /* under way */
    unsigned keys;                       /* an encrypted image: one bit for each set of passphrases (sim/luks.h) that may open it */
    const uint32_t *below;               /* generations of the backing image; NULL: none */
    struct sim_bm bm[SIM_BITMAPS];
    uint64_t generation;                 /* of the disk when it began (sim_audit_generation) */
    uint64_t *gone;                      /* by sector: when it was last cut off; 0: never */
    struct hash128 sum;                  /* of all sets */
    uint64_t unflushed, settling;        /* bytes of requests that no acknowledged flush covers, or only the last one (leak bound) */
};

/* sectors: of the largest size that any resize will make. below: one per sector or NULL; kept, not copied. */
void sim_model_init(struct sim_model *m, uint64_t sectors, const uint32_t *below);
void sim_model_fini(struct sim_model *m);
/* Forgets all: each sector has the one value gens[i]; what lies behind size reads zero when it appears. */
void sim_model_start(struct sim_model *m, uint64_t size, const uint32_t *gens);
/* Behind start: a snapshot that is there. */
void sim_model_has(struct sim_model *m, unsigned number, uint64_t size, const uint32_t *gens);
/* Behind start: which sets of passphrases may open it. */
void sim_model_keys(struct sim_model *m, unsigned keys);
/* Is an operation on snapshots under way, or was one cut short? */
bool sim_model_loose(const struct sim_model *m);
void sim_model_apply(struct sim_model *m, const struct sim_note *n);
bool sim_model_allows(const struct sim_model *m, uint64_t sector, uint32_t gen);
/* May a read that was issued at `issued` and has just ended have found this? */
bool sim_model_live(const struct sim_model *m, uint64_t sector, uint32_t gen, uint64_t issued);
/* The values that a read issued now may find, at most max: how many. A read that is under way for long may find one that a
 * flush has ruled out for everybody who comes later. */
uint32_t sim_model_list(const struct sim_model *m, uint64_t sector, uint64_t now, uint32_t *out, uint32_t max);
/* "0 3 7": for messages. */
void sim_model_describe(const struct sim_model *m, uint64_t sector, char *buf, size_t bytes);

#endif
