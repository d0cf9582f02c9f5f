/* SPDX-License-Identifier: MIT
 *
 * qed_image.h: the inside of an open QED image.
 *
 *   qed_geom.c     arithmetic
 *   qed_header.c   the header, parsed and checked
 *   qed_driver.c   opening, describing, flushing and closing
 *   qed_map.c      where is this guest range?
 *   qed_tables.c   where do tables lie?
 *   qed_mark.c     the header while the image is open; the need-check mark
 *   qed_alloc.c    which clusters may I have?
 *   qed_write.c    make this guest range writable
 *   qed_zero.c     zero and discard
 *   qed_resize.c   another size
 *   qed_scrub.c    the check of an image that is in use   qed_fill.c: its holes are filled
 *   qed_walk.c     all entries of all tables, read ahead
 *   qed_owned.c    which clusters have an owner?
 *   qed_check.c    which rules does an image break?
 *   qed_repair.c   what makes it sound again?   qed_edit.c: how that is written   qed_shorten.c: no clusters without an owner
 *   qed_upgrade.c  a qcow2 image in its place     qed_rebase.c: another backing file   qed_empty.c: nothing of its own any more
 *   qed_create.c   writing a fresh image
 *
 * Concurrency  Any loop: what is atomic, tables that the cache or the list of tables holds (inside an epoch section), and what is constant while the image
 *              is open. All else: home loop. locks keeps entries of guest ranges apart, l1_locks the making of tables, a.mx growth and cuts, mark.mx
 *              the mark, header_mx the header; their order: docs/internals/concurrency.md.
 */
#ifndef QED_IMAGE_H
#define QED_IMAGE_H

#include "base/rset.h"
#include "fmt/fmt.h"
#include "fmt/qed/qed_header.h"
#include "fmt/streams.h"
#include "meta/meta.h"
#include "rt/sync.h"

#define QED_SLICE_BYTES 4096u                     /* unit in which L2 tables are cached; every table is a multiple of it */
#define QED_SLICE_ENTRIES (QED_SLICE_BYTES / 8)

/* Clusters by their number in the file. Each is in one state: in use (an entry names it, or a write that has begun holds it), in
 * `spare`, or behind `next`. */
struct qed_alloc {
    uint64_t next;                                /* nothing from here on has ever been used */
    uint64_t end;                                 /* the file has so many whole clusters */
    uint64_t zero_from;                           /* from here on they read zero when first taken */
    uint64_t settled_to;                          /* below this the length is durable */
    struct { uint64_t end, pass; } unsettled;     /* up to here it is when this pass has ended well; end 0: nothing */
    uint64_t step_max;                            /* clusters; becomes less when space is short */
    struct rset spare;                            /* in front of `next`, named by nothing, content unknown */
    uint64_t told;                                /* so many of them may stay lost without the mark, at most: a scrub has told of them */
    uint64_t taken;                               /* how often clusters were handed out */
    struct co_mutex mx;                           /* over growth and cutting: they suspend */
    struct co_group behind;                       /* growths in the background */
    bool growing_behind, closing;
    bool overlong;                                /* the file may reach behind `end`: a change of its length failed */
    int grow_error;
};

/* The need-check mark and who relies on it (qed_mark.c). */
struct qed_mark {
    bool set;                                     /* on the disk, durably */
    unsigned changers;                            /* operations under way that rely on it */
    uint64_t count;                               /* operations so far */
    struct co_mutex mx;
    struct rt_task idle;                          /* takes it away after a while */
    bool idle_runs;
    bool keep;                                    /* damage was found, or clusters were lost: the mark stays until a scrub finds nothing wrong */
};

struct qed_tables;

struct qed_image {
    struct fmt_image im;                          /* first */
    char *name;                                   /* for messages */
    struct qed_header h;
    struct qed_geom g;
    _Atomic uint64_t file_end;                    /* whole clusters of the file. Grows with it; read-only: when somebody else writes behind (force-share) */
    struct meta *meta;
    struct meta_kind kind_l2;
    _Atomic(_Atomic uint64_t *) l1;               /* the entries that the size uses, in disk order; another array only when drained */
    uint64_t l1_entries;
    /* writing; home loop */
    bool info_only;
    uint64_t frontier_bytes;                      /* fmt_open_opts */
    struct meta_region l1_region;
    uint64_t *l1_dirty;
    struct co_range_locks locks;                  /* guest ranges whose entries change */
    struct co_range_locks l1_locks;               /* indexes of L1 entries that get a table */
    struct co_mutex header_mx;
    struct qed_mark mark;
    struct qed_alloc a;
    struct fmt_streams streams;
    /* qed_scrub.c */
    bool unclean;                                 /* not looked through yet: no table changes (im.unclean) */
    bool given_up;                                /* with it: nobody does that */
    bool scrubbing;
    const char *changing;                         /* "resized", "emptied", "upgraded": that is being done to the whole, and no scrub begins; NULL */
    struct co_waitq held;                         /* who waits for the end of being unclean */
    /* qed_tables.c */
    _Atomic(struct qed_tables *) tables;          /* NULL: not opened for writing */
    void (*corrupted)(void *arg, const struct fmt_corruption *c);
    void *corrupted_arg;
    bool told;
    /* qed_fill.c */
    bool filling;
    _Atomic uint64_t hold_from, hold_end;         /* bytes of the file in which no write begins in place; end 0: none */
    struct co_waitq unheld;                       /* who waits for the end of that */
};

static inline struct qed_image *qed_of(struct fmt_image *im) { return (struct qed_image *)im; }
static inline bool qed_writable(const struct qed_image *q) { return !q->im.read_only && !q->info_only; }

/* ---- qed_map.c ---- */
int qed_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
int qed_map_at_hand(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
/* Home: the pinned slice of `guest`, and the index of its entry in it. *ret_b NULL: there is no table. -EUCLEAN: a bad entry. */
MUST_USE int qed_slice_get(struct co *co, struct qed_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index);
/* Home: the same; a missing table is made. The need-check mark is set. */
MUST_USE int qed_slice_own(struct co *co, struct qed_image *q, uint64_t guest, struct meta_block **ret_b, uint32_t *ret_index);
static inline uint64_t qed_entry(const struct meta_block *b, uint64_t i) { return le64_word(atomic_load_explicit(&b->words[i], memory_order_acquire)); }
/* Home: sets an entry of a pinned slice. */
void qed_entry_set(struct qed_image *q, struct meta_block *b, uint32_t i, uint64_t v);
/* Any loop, in an epoch section and in front of the look at entries: an entry that is read behind an empty answer is the one that was there
 * before a hold, which then waits for this section, or the one that was put in its place. At home: whenever. */
struct qed_held { uint64_t from, end; };
static inline struct qed_held qed_held_now(const struct qed_image *q)
{
    struct qed_held h = { .end = atomic_load_explicit(&q->hold_end, memory_order_acquire) };
    if (h.end)
        h.from = atomic_load_explicit(&q->hold_from, memory_order_acquire);
    return h;
}
static inline bool qed_held_has(const struct qed_held *h, uint64_t host) { return host < h->end && host >= h->from; }
static inline uint64_t qed_slice_span(const struct qed_image *q) { return (uint64_t)QED_SLICE_ENTRIES << q->g.cluster_bits; }
static inline enum qed_entry qed_kind(const struct qed_image *q, uint64_t v) { return qed_entry_kind(&q->g, v, atomic_load_explicit(&q->file_end, memory_order_relaxed)); }

/* ---- qed_tables.c ---- */
/* Makes the list from the L1 table in memory. Home, outside epoch sections. -ENOMEM: the old one stays. Suspends. */
MUST_USE int qed_tables_note(struct co *co, struct qed_image *q);
void qed_tables_fini(struct qed_image *q);
/* Does a table lie at byte `host` of the file? *len bytes from there on are looked at, and cut to those of which the answer holds. Any loop,
 * inside an epoch section, or at home. */
bool qed_hits_table(const struct qed_image *q, uint64_t host, uint64_t *len);
static inline bool qed_names_table(const struct qed_image *q, uint64_t v)
{
    uint64_t len = q->g.cluster_size;
    bool at = qed_hits_table(q, v, &len);
    return at || len < q->g.cluster_size;
}
/* Home: does another table share clusters with the one at off? */
bool qed_table_shared(const struct qed_image *q, uint64_t off);
/* Home: damage was met by a request that changes something. Told once. */
void qed_tell(struct qed_image *q, uint64_t host, uint64_t bytes, const char *what);

/* ---- qed_mark.c. Home loop. ---- */
/* Before a change that may allocate: the mark, durable (E1). Each success is followed by one qed_mark_exit. Suspends. */
MUST_USE int qed_mark_enter(struct co *co, struct qed_image *q);
void qed_mark_exit(struct qed_image *q);
/* Tables durable, the unused end of the file cut off, then the mark away (E4). 1: somebody relies on it, or a scrub runs. Suspends. */
MUST_USE int qed_mark_leave(struct co *co, struct qed_image *q);
/* The mark is there: it is taken away when nothing relies on it for a while. */
void qed_mark_watch(struct qed_image *q);
/* The idle watch ends; afterwards none is started. */
void qed_mark_stop(struct co *co, struct qed_image *q);
/* One field of the header, on the disk, durably, and then in q->h (K5 of qed_mark.c). On failure the old one in both, or nothing is written any more.
 * The mark: for a repair of the whole; requests enter and leave. Autoclear bits: all of them are unknown (2.008). */
MUST_USE int qed_put_mark(struct co *co, struct qed_image *q, bool set);
MUST_USE int qed_clear_autoclear(struct co *co, struct qed_image *q);
MUST_USE int qed_set_size(struct co *co, struct qed_image *q, uint64_t size);
MUST_USE int qed_set_l1(struct co *co, struct qed_image *q, uint64_t off);
/* The name of the backing file, which was judged; NULL: none. raw: what it is shall not be guessed. */
MUST_USE int qed_set_backing(struct co *co, struct qed_image *q, const char *name, bool raw);

/* ---- qed_alloc.c. Home loop. ---- */
/* known_zero: reads zero as long as nobody writes it. settled: the length of the file is durable. */
struct qed_run { uint64_t off, count; bool known_zero, settled; };
/* May an entry that points to r go without the barrier behind data, if the guest had zeros there (Q23)? */
static inline bool qed_run_independent(const struct qed_image *q, const struct qed_run *r)
{
    return r->known_zero && r->settled && q->im.store->traits.zero_crash;
}
void qed_alloc_init(struct qed_image *q, uint64_t file_bytes);
void qed_alloc_fini(struct qed_image *q);
uint64_t qed_reserved(struct co *co, struct fmt_image *im);      /* any loop */
/* 1..want clusters in a row; with `whole` all of them. The mark is set. -ENOSPC, -EFBIG. Suspends. */
MUST_USE int qed_alloc_take(struct co *co, struct qed_image *q, uint64_t want, bool whole, struct qed_run *ret);
/* Takes back what nothing ever named, with nothing in flight on it. */
void qed_alloc_return(struct qed_image *q, const struct qed_run *r);
/* Clusters that may be used and do not lie at the end of the file. */
uint64_t qed_holes(const struct qed_image *q);
/* Would some of them be lost if the image were closed, and nobody was told? Sure when the end was cut off just now. */
bool qed_alloc_owes(const struct qed_image *q);
/* Somebody was told of all there are. */
void qed_alloc_told(struct qed_image *q);
/* Clusters that nothing names, nor did in any epoch section that is still open, may be used. Without memory they are lost, and the mark stays. */
void qed_alloc_offer(struct qed_image *q, uint64_t first, uint64_t n);
/* Cuts off the file behind what is in use. No write holds clusters. No barrier. Suspends. */
MUST_USE int qed_alloc_cut(struct co *co, struct qed_image *q);
/* Waits for what works behind, and starts nothing any more. */
void qed_alloc_stop(struct co *co, struct qed_image *q);

/* ---- qed_write.c, qed_zero.c, qed_resize.c ---- */
int qed_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w);
int qed_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w);
void qed_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w);
int qed_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags);
int qed_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len);
int qed_resize(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err);
int qed_resize_commit(struct co *co, struct fmt_image *im, bool keep, struct byre_err *err);
/* Reads the L1 table for a disk of this size into a fresh array; *ret_dirty: its map of dirt, NULL when the image is read-only. */
MUST_USE int qed_l1_read(struct co *co, struct qed_image *q, uint64_t size, _Atomic uint64_t **ret_l1, uint64_t **ret_dirty);
/* Puts it in place of the old one; drained. */
void qed_l1_install(struct qed_image *q, uint64_t size, _Atomic uint64_t *l1, uint64_t *dirty);

/* ---- qed_scrub.c. Home loop. ---- */
int qed_scrub(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
void qed_no_scrub(struct fmt_image *im);
/* Waits while the image is unclean and somebody will look it through. -EIO: nobody does. Suspends. */
MUST_USE int qed_unclean_wait(struct co *co, struct qed_image *q);
/* -EBUSY: a scrub runs, or the image is unclean. */
MUST_USE int qed_scrub_excludes(const struct qed_image *q, const char *what, struct byre_err *err);


int qed_check(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
/* qed_rebase.c: another backing file. */
int qed_rebase(struct co *co, struct qed_image *q, const struct fmt_amend_opts *a, struct byre_err *err);
int qed_make_empty(struct co *co, struct fmt_image *im, struct byre_err *err);
/* qed_upgrade.c: becomes a qcow2 image; close it then. */
int qed_amend(struct co *co, struct fmt_image *im, const struct fmt_amend_opts *a, struct byre_err *err);
int qed_create(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err);

#endif
