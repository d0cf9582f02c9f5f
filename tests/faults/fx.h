/* SPDX-License-Identifier: MIT
 *
 * fx.h: fault loops (RG7, RG8). A scenario is a list of steps; the last of them run while the n-th call
 * of one kind fails, or the n-th allocation. Afterwards the fault is gone, and the image, what was acknowledged, and the
 * memory are looked at.
 *
 * Concurrency  One thread.
 */
#ifndef FX_H
#define FX_H

#include "cx_snapshot.h"
#include "cx_work.h"
#include "sim/fx_alloc.h"
#include "fx_luks.h"
#include "rt/sync.h"

#define FX_SECTORS 1024u
#define FX_STEPS 24u
#define FX_BITMAPS 2u
#define FX_CLONE_BY 8u                   /* clusters */

/* ---- scenarios (fx_scenes.c) ---- */

enum fx_do { FX_END, FX_CREATE, FX_OPEN_RO, FX_OPEN_RW, FX_READ, FX_WRITE, FX_PACK /* a compressed write */, FX_ZERO, FX_UNMAP, FX_DISCARD, FX_CLONE /* to the place FX_CLONE_BY clusters behind */, FX_FLUSH, FX_GROW, FX_SHRINK, FX_AMEND, FX_CHECK, FX_REPAIR, FX_SCRUB /* beside what runs together with it */, FX_COMPACT,
             FX_KEEP, FX_APPLY, FX_DROP /* snapshot number `at`: made, applied, deleted */, FX_BITMAP /* action `at` of fx_steps.c on bitmaps */, FX_KEY /* change `at` of key slots, fx_steps.c */, FX_STATE /* the VM state is written */, FX_CLOSE, FX_FAULTS /* from here on faults happen */, FX_DO_KINDS };
struct fx_step {
    enum fx_do what;
    unsigned at, at_sectors, len, len_sectors;   /* clusters and sectors; cut to the disk. GROW: len sixteenths of the size more; SHRINK: to len.
                                                    AMEND: at 0: version len; at 1: reference counts of len bits. OPEN_RW: at 1: at once, also when it was not closed cleanly */
    bool together;                                /* runs at the same time as the step before; must not touch its sectors */
};
enum fx_damage { FX_SOUND, FX_LEAKY, FX_LOW_COUNT, FX_DIRTY, FX_UNCLEAN /* dirty, and a count too low */ };
struct fx_scene {
    const char *name, *on;               /* names of geometries, one blank between two and at both ends */
    unsigned filled;                     /* clusters written before, from cluster 0 on (every second one: half) */
    bool half;
    enum fx_damage damage;
    struct fx_step steps[FX_STEPS];
};
extern const struct fx_scene fx_scenes[];
extern const struct cx_geometry fx_geometries[];
extern const char *const fx_do_names[FX_DO_KINDS];

/* ---- what may be there (fx_model.c): sets of versions, one bit each. Bit 0 zeros, bit 1 from the beginning; bit FX_MOVED + v what was
 * written as version v, FX_CLONE_BY clusters in front (no scenario moves it twice) ---- */
#define FX_MOVED 32u
#define FX_MOVED_MAX 27u                 /* versions that can be moved: those of steps, and what was there */

struct fx_flush { struct fx_flush *next; uint64_t now[FX_SECTORS], sizes; };      /* a flush on its way */
/* A snapshot: what it must hold, and whether it may be there: bits FX_ABSENT, FX_THERE. */
enum { FX_ABSENT = 1u, FX_THERE = 2u };
struct fx_snap { struct cx_snap s; unsigned now, crash, ever; uint64_t holds[FX_SECTORS], sizes; };
struct fx_model {
    struct fx_snap snap[CX_SNAPS_MAX]; unsigned snap_count;
    uint64_t now[FX_SECTORS];            /* what a read may show */
    uint64_t crash[FX_SECTORS];          /* what may be there after a power cut */
    uint64_t ever[FX_SECTORS];           /* all that was ever there or asked for */
    uint64_t size[8]; unsigned size_count;
    uint64_t now_sizes, crash_sizes, ever_sizes;     /* sets of indices into size */
    unsigned keys_now, keys_crash, keys_ever;   /* sets of what opens the image: bit 1 << FX_KEY_A, FX_KEY_B, or both */
    struct fx_flush *flushes;
};
void fx_issue(struct fx_model *m, uint64_t off, uint64_t len, unsigned version);
void fx_done(struct fx_model *m, uint64_t off, uint64_t len, unsigned version);
/* What [from, from + len) may hold comes to off; with `done` nothing else is there any more. */
void fx_moved(struct fx_model *m, uint64_t from, uint64_t off, uint64_t len, bool done);
void fx_flush_begin(struct fx_model *m, struct fx_flush *f);
void fx_flush_end(struct fx_model *m, struct fx_flush *f, bool good);
void fx_keys_issue(struct fx_model *m, unsigned on_the_way);     /* bits: each may be seen from now on */
void fx_keys_done(struct fx_model *m, unsigned keys);
unsigned fx_size_issue(struct fx_model *m, uint64_t bytes);
void fx_size_done(struct fx_model *m, unsigned id);

/* ---- one case: scenario and geometry; one fault ---- */

enum fx_kind { FX_K_ALLOC = CX_F_KINDS, FX_K_KINDS };           /* the others are enum cx_fault_kind */
enum fx_how { FX_ERROR, FX_LATE, FX_SHORT, FX_NOTHING };
struct fx_fault { unsigned kind; enum fx_how how; int error; bool forever; uint64_t nth; };   /* nth 0: no fault */

struct fx_case {
    const struct fx_scene *scene;
    struct cx_geometry g;
    struct cx_bytes start, start_data;   /* the file, and "data" */
    struct cx_model *values;             /* names the content of sectors */
    struct fx_model first;
    uint64_t size, seed;                 /* seed: of the scheduler */
    unsigned lies;                       /* of the store (cx_world.h): the loops must notice */
};

struct fx_run {
    struct cx_world *w;
    struct fx_case *c;
    struct fx_fault fault;
    struct fx_model m;
    bool amend_failed;
    struct co_group group;
    uint64_t calls[FX_K_KINDS];
    uint64_t hits, opening_hits, session_hits;       /* of the fault; before and when the image was opened */
    unsigned steps_failed;
    bool closed_well;                    /* nothing is open, and the last close said 0 */
    bool created;
    bool snap_cut;                       /* an operation on a snapshot failed, and what it had done could not be taken back */
    bool clone_cut;                      /* a clone failed: counts that it had raised may leak, with flags beside them */
    bool mended;                         /* the last repair said that nothing is left to do */
    struct { bool known; uint64_t base[FX_SECTORS]; } bitmap[FX_BITMAPS];      /* records since sectors held what is in base (sets of versions) */
    bool applied;                        /* a snapshot was */
    bool bad;
    char why[400];
};

/* fx_steps.c. At any point of it the fault may strike. */
void fx_steps_run(struct co *co, struct fx_run *r);
uint64_t fx_hits(const struct fx_run *r);
MUST_USE int fx_write_version(struct co *co, struct fx_run *r, uint64_t off, uint64_t len, unsigned version);
void fx_read_judged(struct co *co, struct fx_run *r, const uint64_t *set, const char *when);
/* fx_bitmap.c. P4: a bitmap that claims to know misses nothing that has changed; now: the file is what the run has left. The image is
 * open. */
void fx_bitmaps_start(struct fx_run *r);
MUST_USE int fx_bitmap_do(struct co *co, struct fx_run *r, unsigned action, struct byre_err *err);
void fx_bitmaps_judged(struct co *co, struct fx_run *r, bool now, const char *when);
MUST_USE int fx_close(struct co *co, struct fx_run *r);
MUST_USE int fx_create(struct co *co, struct cx_world *w, const struct cx_geometry *g, struct byre_err *err);
void fx_bad(struct fx_run *r, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* fx_run.c. false: the case cannot be made. */
bool fx_case_make(struct fx_case *c, struct cx_world *w, const struct fx_scene *s, const struct cx_geometry *g);
void fx_case_free(struct fx_case *c);
/* One run and its verification. false: nothing can run any more; the world is lost. */
bool fx_run_one(struct fx_run *r, struct cx_world *w, struct fx_case *c, const struct fx_fault *f);

/* fx_verify.c: after a run. */
void fx_verify(struct fx_run *r);

#endif
