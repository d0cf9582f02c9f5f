/* SPDX-License-Identifier: MIT
 *
 * graph_priv.h: the inside of graph/. Private to this folder.
 *
 *   graph.c    the graph, the list of nodes, node life, resize
 *   open.c     opening an image and its chain; probing; locks; policy
 *   active.c   nodes that leave their files to another process for a while (active.h)
 *   mode.c     a node that is in use is opened for writing, for reading, or with other options
 *   rebase.c   another backing chain, and its name; marks
 *   names.c    what a file name means: plain, file:; names relative to an overlay
 *   names_json.c json:{}
 *   names_run.c options that only qcow2 knows
 *   names_nbd.c disks of NBD servers
 *   nested.c   names that nest nodes
 *   names_node.c options of nodes of any format, and of raw ones
 *   chain.c    which layer answers for this offset?
 *   index.c    the same for immutable layers, remembered
 *   read.c     reads, and pieces in flight at the same time
 *   write.c    writes: in place or begin, fill, write, commit
 *   encode.c   compressed writes
 *   fill.c     what surrounds a first write
 *   ride.c     small writes that go along with it
 *   zero.c     zero and discard: the aligned middle, the edges, the fallback
 *   offload.c  copies made by the kernel
 *   clone.c    copies inside one disk: clusters are shared
 *   status.c   block status
 *   data.c     the external data file of an image
 *   drain.c    the gate that requests pass, and closing it
 *   watch.c    who sees the changes of a disk
 *   bitmap.c   dirty bitmaps
 *   bitmap_save.c  changes of theirs that are undone, or stored at once
 *   bitmap_revert.c  what they say when all of the content is another
 *   state.c    the VM state behind the disk
 *   stats.c    what was asked, and how long it took (stats.h); recent.c: in the last few seconds
 *   perm.c     users of a node and their conflicts
 *   node_stor.c  a node as a byte store, for those who make an image in it
 *   filter.c   filters and attachments: nodes that pass requests on; top.c: those that do nothing else, for a job
 *   tray.c     attachments whose node may be taken out (tray.h)
 *   side.c     nodes that a request goes to beside its chain
 *   reach.c    does one node lie above another, do its requests come there? (reach.h)
 *   under.c    the node below a format, as its store (under.h)
 *   runtime.c  other nodes under the same users, while they use them
 * Told by headers of their own: blockdev.h (blockdev.c, blockdev_reopen.c, snapshot.c), live.h (live.c, absent.c), making.h (making.c), runtime.h (threshold.c),
 * filters.h (filters.c, compress.c, cor.c, prealloc.c), blkdebug.h (blkdebug.c, blkdebug_rules.c, blkdebug_opts.c), cbw.h (cbw.c, cbw_copy.c, cbw_view.c), throttle.h (throttle.c).
 *
 * Invariants (those of graph.h and runtime.h, and)
 *   G1  n->im stays the same as long as somebody is inside a section of n's gate, or holds n's `whole`.
 *   G2  n stays as long as somebody has a reference (refs), or looks at it (graph_look_begin). Who gives the last reference back closes it; it is
 *       `ending` meanwhile, and nobody begins to look at it.
 *   G3  What is marked "home" is read and changed on the home loop alone and, where no lock is named below, by code that does not suspend in between:
 *       that is all that keeps coroutines there from one another.
 *   G4  An edge (backing, file, side) is one reference of the child and one use among its users. Of a node that is open only backing changes.
 * Concurrency  Which loop, which lock (their order: docs/internals/concurrency.md):
 *   any loop, at any time           what is atomic, and what is constant while the node is open
 *   any loop, inside the gate       im, backing, tray_open, read_only, detect: changed when nobody is inside. tracked, watches: what was taken out of them is
 *                                   freed when all who were inside have left
 *   edges_mx, and drained           backing, frozen edges, what a filter stands over
 *   shut, and `whole`               im, and what came with it (how, seen, discard, writethrough, detect); its size, options, snapshots; the list im->bitmaps
 *   `listing`                       bitmaps_listed, and the bits of a bitmap while it is loaded
 *   `locking` of the store's owner  what its file is locked for: from the sum of what its nodes want (lock_perm, data_perm, keep) to the answer
 *   index_mx                        index_fences, index_next; who takes an index away
 *   ride_lock (a thread's mutex)    rides
 *   home                            the rest: names, lists, users, refs, drains, looks, marks
 * Failure      Each function says; a node that could not be opened has left nothing.
 */
#ifndef GRAPH_PRIV_H
#define GRAPH_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/list.h"
#include "graph/fill.h"
#include "graph/graph.h"
#include "graph/reach.h"
#include "graph/runtime.h"
#include "graph/stats.h"
#include "rt/sync.h"

#define SECTOR 512u
#define ZERO_PAGE_BYTES 65536u

struct graph {
    struct rt_loop *home;
    struct graph_opener opener;
    enum graph_policy policy;
    unsigned max_depth;
    struct secret_set *secrets;
    struct tls_set *tls;
    struct fdsets *passed;
    struct pr_set *prs;
    void (*warn)(void *arg, const char *text);
    void *warn_arg;
    void (*linked)(struct co *co, void *arg, const char *overlay, const char *backing);
    void *linked_arg;
    graph_corrupted_fn *corrupted;      /* NULL: nobody wants to know */
    void *corrupted_arg;
    struct list nodes;
    struct list throttles;              /* throttle.c */
    struct list unders;                 /* under.c */
    struct list makings;                /* making.c */
    graph_io_error_fn *io_error_fn;     /* stats.c; NULL: nobody wants to know */
    void *io_error_arg;
    graph_threshold_fn *threshold_fn;   /* threshold.c; NULL: nobody wants to know */
    void *threshold_arg;
    unsigned next_name;
    unsigned drain_round;
    uint64_t next_serial;
    unsigned sides, walk_round, rest_round;      /* nodes that have a side; reach.c */
    unsigned stills;                    /* of all nodes */
    struct co_mutex index_mx;           /* docs/internals/concurrency.md, as the two below: of the nodes' index_next, and whose holder's indexes nobody takes away */
    struct co_mutex edges_mx;           /* one change of edges at a time */
    struct co_group partings;           /* parting.c; mode_settle */
    int parting_error;
    _Atomic bool parting;               /* the end has begun */
    struct graph_haste *hastes;         /* haste.c, as what follows */
    bool in_haste;
    uint64_t patience;                  /* how long a server may be silent that nobody else is in a hurry with; 0: for ever. From graph_parting on */
    const struct co *edges_by;          /* who holds it, to be compared only */
    unsigned edges_depth;
    unsigned resizes;                   /* one within the other */
    struct co_mutex options_mx;         /* one list of nodes that get other options at a time (blockdev_reopen.c) */
    _Atomic unsigned listeners;         /* images whose file wants to know what they do (under.c) */
    _Atomic unsigned waiting;           /* somebody waits for requests to end (watch.c) */
    uint64_t index_limit;               /* bytes that all indexes may take; 0: there are none */
    _Atomic uint64_t index_bytes;
};

enum { RECURSE_UNKNOWN, RECURSE_NO, RECURSE_YES };

struct gate_waiter;

/* Bitmaps that record. Replaced as a whole, when drained (bitmap.c). */
struct tracked { unsigned count; struct dirty *bits[]; };

/* What goes on being locked whatever the node wants now, until nobody holds it any more. */
struct lock_keep { unsigned holds, perm, unshared, data_perm, data_unshared; };

/* active.c: how it is to be open when it is active again. */
struct node_awake { bool read_only, discard; };

struct node_stats;
struct graph_node {
    /* constant while open */
    struct list_node link;
    struct graph *g;
    char name[GRAPH_NAME_MAX + 1];
    char file_name[GRAPH_NAME_MAX + 1], data_name[GRAPH_NAME_MAX + 1];      /* of the nodes of its files, "": not named */
    char *filename;                     /* path as the opener takes it */
    char *key_secret;                   /* id of the passphrase that opened it; NULL: none */
    char *backing_filename;             /* resolved name of the recorded backing file; NULL: none */
    char *data_filename;                /* of the external data file, or of the header, as it was opened; NULL: none */
    struct fmt_image *im;
    struct graph_node *backing;         /* changes only under drain */
    bool is_raw, read_only, probed;
    bool is_view;                       /* shows an internal snapshot or a part of its file, not the disk: never shared as a backing layer */
    bool guard_first;                   /* probed raw, writable: the first sector must not become a format's (FEATURES 3.027) */
    bool writethrough, discard, force_share, no_backing;
    enum graph_detect detect;           /* writes of nothing but zeros become requests for zeros */
    bool has_identity;
    bool ready;                         /* its whole chain is open: others may share it */
    uint64_t serial, below_serial;      /* home: its own, never given twice; of the image below that its header means (recorded.c N2). 0: of none */
    uint64_t id_a, id_b;
    bool has_data_identity;
    uint64_t data_a, data_b;
    struct stor_seen seen, data_seen;   /* its files, when they had been locked and nothing of them was read (mode.c) */
    struct stor_seen looked_at;         /* of a file: before it was opened anew (mode_look_at_sharers) */
    unsigned lock_perm, lock_shared;    /* what this node wants of the lock of its store (open.c I6) */
    unsigned data_perm, data_shared;    /* the same for its other file (fmt_image.second) */
    bool no_lock;
    bool stable;                        /* its locks deny others both writing and resizing, whatever the format, and of its other file, too */
    struct lock_keep keep;              /* mode.c: what is held beside that while the image becomes another one */
    struct co_mutex locking;            /* of a node with a store of its own: the locks of the store change (open.c I6) */
    struct graph_user backing_use;      /* this node's use of `backing` */
    /* gate (drain.c) */
    struct epoch *gate;                 /* a section = a request inside */
    _Atomic bool gated;
    _Atomic bool hasty;                 /* haste.c: of a filter, see there */
    _Atomic(struct tracked *) tracked;  /* bitmap.c; NULL: none records */
    _Atomic(struct graph_watch *) watches;      /* watch.c; NULL: nobody watches */
    /* home loop only */
    bool bitmaps_listed;                /* im->bitmaps holds those of the image */
    struct dirty_budget bitmap_budget;  /* of those made here */
    struct graph_bitmaps_saved *bitmaps_saved;      /* bitmap_save.c; NULL: changes are not undone */
    unsigned bitmap_batch;              /* > 0: changes of persistent bitmaps are not stored yet */
    struct fmt_bitmap *bitmaps_gone;    /* in no list any more; the format may follow them until it has stored, or is closed (bitmap_save.c) */
    unsigned refs;                      /* openers and overlays */
    bool ending;                        /* the last of them has gone */
    bool parting;                       /* parting.c flushes it */
    struct co_waitq let_go;             /* who came by while it ended has gone as well */
    unsigned looks;                     /* who describes it (graph_look_begin), and */
    struct co_waitq looked;             /* ... has ended */
    struct co_mutex listing;            /* the image's bitmaps are listed or stored, or one of them is loaded; taken behind `whole` */
    unsigned drains, drain_round;
    unsigned stills;                    /* graph_still_begin */
    unsigned shuts;                     /* graph_shut_begin (drain.c) */
    struct gate_waiter *waiters;
    struct graph_user *users;
    struct co_mutex whole;              /* drained as well: one change of the image's structure at a time (size, options, snapshots, bitmaps) */
    struct co_mutex first_sector;       /* writes to the first sector of a guarded node */
    struct fill_costs fill;             /* fill.c */
    pthread_mutex_t ride_lock;          /* ride.c */
    _Atomic(struct ride *) rides;       /* copies that take other writes along. Changed under ride_lock */
    _Atomic(struct chain_index *) index;        /* of this node and those below it; NULL: none */
    unsigned index_fences;              /* home: changes of this node's mapping in progress */
    struct graph_node *index_next;      /* home: list of those whom a change concerns */
    _Atomic int recurse;                /* status.c: does the file know more than the format? */
    _Atomic bool alone;                 /* what is written is to hide whatever comes to lie below: zeros too (zero.c) */
    bool auto_read_only;                /* home: opened for writing when somebody writes (graph_writer_comes) */
    bool for_writer;                    /* home: it was opened for writing here, and is open for reading again when nobody writes any more (mode.c M7) */
    bool discarded;                     /* home: for_writer: it passed discards on before */
    bool going_back;                    /* home: just now. Edges are held */
    bool settling;                      /* home: mode_settle sees to that */
    bool stays_told;                    /* home: it has been warned of that it cannot */
    unsigned leaving;                   /* home: so many who wrote to it make it durable, to see to that themselves (graph_writer_gone) */
    unsigned wanted;                    /* home: so many are about to write (graph_await_writer) */
    bool inactive;                      /* home: active.c, as what follows. Others change its file */
    bool turning;                       /* it becomes active, or ceases to be */
    struct node_awake awake;            /* while it is inactive */
    char *was_backing;                  /* what it recorded of its backing file when it ceased to be active; NULL: nothing */
    bool going;                         /* marks of one call */
    unsigned parents;
    struct node_how *how;               /* what opened it (mode.c); NULL until it is open */
    struct node_stats *stats;           /* stats.c */
    /* runtime.h */
    const struct filter_ops *flt;       /* NULL: an image. Constant */
    void *flt_arg;
    unsigned take_perm, deny_perm;      /* STOR_PERM_* that a filter asks for, and does not let others have, by itself (blkdebug.c) */
    unsigned frozen;                    /* home: the edge to `backing` must stay */
    const void *promised;               /* home: who is going to lead the edge to `backing` elsewhere (graph_promise); NULL: nobody */
    bool lenient;                       /* home: an image that nobody looked at when it came to lie over a node that others write (perm.c, I2) */
    struct threshold *threshold;        /* home: threshold.c; NULL: it never had one */
    bool implicit;                      /* a filter that a command of another name has put there */
    bool inner;                         /* its gate is never closed (struct graph_attach_opts), but: */
    bool under;                         /* a format's store (under.c), whose gate graph_shut_begin closes */
    bool undisturbed;                   /* home: nobody has written its file since it was opened, but it is opened again with that (mode.c) */
    bool tray_open;                     /* of an attachment: it answers nothing. Changes only under drain, as backing (tray.c) */
    bool of_job;                        /* a job has put it there and takes it away: no edge to it or from it may be frozen. Constant */
    bool owned;                         /* home: the user's, until blockdev-del */
    bool is_file;                       /* a bare file or device: a format may lie over it */
    struct graph_node *file;            /* the bare file whose store it shares, or the node that is its store (under.c); NULL: neither. Constant while open */
    struct graph_user file_use;
    struct graph_node *data_node;       /* the node that is its external data file, or its header (data.c); NULL: that is no node. Constant while open */
    bool has_header;                    /* it is a header. Constant */
    struct graph_user data_use;
    struct graph_node *side;            /* requests for this node go there as well (side.c); with a reference. NULL: none */
    struct graph_user side_use;
    struct graph_node *walk_next;       /* home: reach.c, as what follows */
    unsigned walk_seen, walk_queued, rest_seen;
    struct graph_node *end_next;        /* home: node_unref */
};

extern const uint8_t graph_zero_page[ZERO_PAGE_BYTES];

/* An image is about to do this with its file, or files (stor/event.h). */
static inline void node_event(struct co *co, const struct graph_node *n, enum stor_event_kind what) { stor_event(co, n->im->store, what); }
static inline int image_flush(struct co *co, struct graph_node *n)
{
    node_event(co, n, STOR_EV_FLUSH_TO_OS);
    return n->im->ops->flush(co, n->im);
}

/* ---- graph.c ---- */
/* A node with a free name ("" is made up), in the list, without image. */
MUST_USE int node_new(struct graph *g, const char *name, struct graph_node **ret_n, struct byre_err *err);
/* Names the files of n (NULL: not named). */
MUST_USE int node_name_files(struct graph_node *n, const char *file, const char *data, struct byre_err *err);
/* Takes n out of the list and frees it; its image is closed and its backing link cut. */
void node_free(struct graph_node *n);
/* Drops one reference of n and, while they become unused, of the nodes below it. First error of closing. */
int node_unref(struct co *co, struct graph_node *n);
/* graph_resize for one of its users (NULL: for nobody of them). */
MUST_USE int node_resize(struct co *co, struct graph_node *n, const struct graph_user *self, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err);
/* For the store over n: its length, from inside a request of what lies above; only_grow: if it is shorter. -errno. Home. */
MUST_USE int node_set_length(struct co *co, struct graph_node *n, uint64_t size, bool only_grow);
/* Drains n, formats over it too, and holds its `whole` (graph_hold_image): nobody is inside its image but the caller, who may change it. */
void node_whole_begin(struct co *co, struct graph_node *n);
void node_whole_end(struct graph_node *n);
/* The same, for a change that needs an image open for writing: refused when it has become read-only by then (mode.c). end after begin, also when
 * that was refused; what filters over it show follows. */
MUST_USE int node_change_begin(struct co *co, struct graph_node *n, struct byre_err *err);
void node_change_end(struct graph_node *n);
/* Iterates all nodes, attachments too. */
struct graph_node *node_next(struct graph *g, struct graph_node *prev);
/* Which node keeps a snapshot of what n shows, or in it (runtime.c). NULL: none. */
const struct graph_node *node_snapshot_keeper(const struct graph_node *n);
/* ---- filter.c ---- */
bool node_is_hidden(const struct graph_node *n);
/* ---- side.c ---- */
/* n's requests go to `to` as well, as `use` says, from now on until n ends. n is new. */
MUST_USE int side_set(struct graph_node *n, struct graph_node *to, const struct graph_user *use, struct byre_err *err);
/* ---- requests inside a section of a gate at or above n: as graph_*, whatever n is ---- */
MUST_USE int node_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off);
MUST_USE int node_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags);       /* write.c */
MUST_USE int node_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags);        /* zero.c */
MUST_USE int node_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);                     /* zero.c */
MUST_USE int node_flush(struct co *co, struct graph_node *n);                                                   /* write.c */
MUST_USE int node_status(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len, struct graph_status *ret);   /* status.c */

/* ---- names.c ---- */
enum name_tri { NAME_UNSET, NAME_NO, NAME_YES };
/* What a name says of the encryption of one layer. */
struct name_crypt { char *key_secret, *format; bool nested; /* written "encrypt.key-secret", not "key-secret" */ };
#define NAME_CRYPT_MAX 8
/* What it says about the opening of a qcow2 image (names_run.c). */
struct name_runtime {
    unsigned seen;              /* which of the sizes */
    uint64_t total, l2, counts;
    uint64_t interval; bool interval_said;
    uint32_t l2_entry;          /* bytes; 0: not said */
    enum name_tri pass_request, pass_snapshot, pass_other, no_unref, lazy;
    unsigned overlap_set, overlap_on, overlap_off;       /* FMT_OVERLAP_*: of the word (0: none was given), of single checks */
};
/* What it says about the node, its file and, when it is raw, which part of the file it shows (names_node.c). */
struct name_node {
    char *file_name, *data_name;        /* names of the nodes of the files; owned. NULL: not said */
    char *pr_manager;                   /* id; owned. NULL: none */
    const char *file_only;              /* an option that only a file has stands at the format; NULL: none does */
    bool native_aio;
    bool keep_cache;                    /* drop-cache=off (active.c) */
    bool check_cache;                   /* x-check-cache-dropped=on */
    enum graph_detect detect;
    struct fmt_window window;
};
/* What a name says. Owned strings; name_ref_fini frees. */
struct name_ref {
    char *path;                 /* for the opener */
    struct name_nbd *nbd;       /* it is an export of an NBD server, and path its URI; NULL: it is a file, or: */
    bool null;                  /* it keeps nothing (null-co://) */
    char *format;               /* NULL: the name does not say */
    char *data_path;            /* external data file that is to be used; NULL: the one that the image records, or: */
    char *data_ref;             /* "data-file" is the name of a node, or, where has_header is set, "header" is; NULL: neither */
    bool has_header;
    char *node_name;            /* NULL: the name does not say */
    bool as_file;               /* the bare file was asked for: raw, not guessed */
    bool no_backing;            /* "backing": null */
    char *file_ref;             /* "file" is the name of a node; NULL: it is not */
    enum name_tri active;
    bool file_inactive;         /* its file was asked to be */
    enum name_tri read_only, direct, no_flush, discard, locking, force_share;
    struct name_crypt crypt[NAME_CRYPT_MAX];   /* of this layer, of the one below it, ... */
    struct name_runtime run;
    struct name_node node;
};
void name_ref_fini(struct name_ref *ref);
/* text: as the user or an overlay's header gives it. overlay: path that relative names are relative to, NULL for
 * the working directory. Strict policy takes the user's text literally, and of an overlay only plain paths. */
MUST_USE int name_parse(enum graph_policy policy, const char *text, const char *overlay, struct name_ref *ret, struct byre_err *err);
/* Does it lead to what a client has passed (stor/fdset.h)? Clients decide who gets that: a header, which anybody may have written, must not. */
bool name_is_passed(const struct name_ref *ref);
struct json_t;
MUST_USE int name_take_size(const char *key, const struct json_t *v, uint64_t *ret, struct byre_err *err);
/* 1: the option is one of these, and taken; 0: it is none. */
MUST_USE int name_runtime_option(struct name_runtime *run, const char *key, const struct json_t *v, struct byre_err *err);
/* Do they fit together? */
MUST_USE int name_runtime_settle(const struct name_runtime *run, struct byre_err *err);
void name_runtime_apply(const struct name_runtime *run, struct fmt_open_opts *fo);
/* ---- names_nbd.c: disks of NBD servers ---- */
/* Where it is; NULL: it is a file. */
const struct stor_nbd_opts *name_nbd(const struct name_ref *ref);
/* The name is one of PROTOCOL:... that stor_nbd_is_name knows. */
MUST_USE int name_nbd_parse(const char *text, struct name_ref *ret, struct byre_err *err);
/* The name is one that stor_null_is_name knows. */
MUST_USE int name_parse_null(const char *text, struct name_ref *ret, struct byre_err *err);
/* 1: the option (without "file.") is one of these, and taken; 0: it is none. */
MUST_USE int name_nbd_option(struct name_nbd **nbd, const char *key, const char *leaf, const struct json_t *v, struct byre_err *err);
/* All options are there: they become ref->path. filename: a URI beside them; NULL: none. */
MUST_USE int name_nbd_settle(struct name_ref *ref, const char *filename, struct byre_err *err);
void name_nbd_free(struct name_nbd *nbd);
void name_node_fini(struct name_node *o);
/* 1: the option is one of these, and taken; 0: it is none. */
MUST_USE int name_node_option(struct name_node *o, const char *key, const struct json_t *v, struct byre_err *err);
MUST_USE int name_node_settle(const struct name_node *o, bool bare_file, struct byre_err *err);
/* Is it a file or a device of this machine? */
bool name_driver_is_file(const char *driver);
/* The part of name_parse for json:{...}. */
MUST_USE int name_parse_json(const char *text, struct name_ref *ret, struct byre_err *err);
/* What stands behind json:, if it is an object of bounded length and depth. */
MUST_USE int name_json_load(const char *text, struct json_t **ret_root, struct byre_err *err);
/* ---- nested.c ---- */
/* Does this name, of the form json: or blkdebug:, nest nodes? */
bool name_nests(const char *filename);
bool name_may_nest(const char *name);                            /* is it of such a form? */
/* graph_open of such a name whose options nest nodes. 1: it is open; 0: it nests none. */
MUST_USE int graph_open_nested(struct co *co, struct graph *g, const struct graph_open_opts *o, struct graph_node **ret_n, struct byre_err *err);
/* blockdev.c: the options that may hold a node; the last is NULL. */
extern const char *const blockdev_children[];
/* Is it the name of a disk of zeros? driver may be NULL. */
bool blockdev_is_null(const char *driver);
/* Must this child be a node of its own? A plain file without a name is part of its format's node. */
bool blockdev_needs_node(const struct json_t *parent, const char *key, const struct json_t *child);
/* The node of these options, which are changed, opened as `top` says, to which the options of the disk itself are added. */
MUST_USE int blockdev_open(struct co *co, struct graph *g, struct json_t *root, const struct graph_open_opts *top, struct graph_node **ret_n, struct byre_err *err);

/* ---- open.c ---- */
/* How a node was opened, beside what the node itself says: its name, what names further up have said of its encryption, cache mode. */
struct node_how { struct name_ref ref; char *encrypt_format; bool direct, no_flush; uint64_t cache_bytes; };
void node_how_free(struct node_how *how);
/* Opens store and image of n again, as n->read_only says: n->im is the new one, or, on failure, as it was. */
MUST_USE int node_open_again(struct co *co, struct graph_node *n, const struct fmt_ops *ops, struct byre_err *err);
/* What lies below n changes: first writes of n count on nothing but what is there now. */
void node_set_below(struct graph_node *n);
/* With `backing` below top, does every layer that makes sense only below a certain image lie below that? (fmt_image.partial) */
MUST_USE int check_parts(const struct graph_node *top, const struct graph_node *backing, struct byre_err *err);
/* n begins to use n->backing. */
MUST_USE int node_use_backing(struct graph_node *n, struct byre_err *err);
extern const struct graph_opener graph_file_opener;
/* Bytes of a file that are looked at to guess its format. */
#define PROBE_BYTES 512u
/* (Re)takes the locks of n; extra is added to the permissions held. Cannot fail where nothing is wanted that is not held. */
MUST_USE int node_lock(struct co *co, struct graph_node *n, unsigned extra, struct byre_err *err);
/* The same for a store that is n's, or is about to be, in the place of `old` (NULL: of none). */
MUST_USE int store_lock(struct co *co, struct graph_node *n, struct stor *s, struct stor *old, struct byre_err *err);
MUST_USE int data_lock(struct co *co, struct graph_node *n, struct stor *data, unsigned extra, struct byre_err *err);
/* What n wants when it is open for reading, or for writing: lock_perm and lock_shared. deny: of a raw image that is not `stable`. */
void locks_of(struct graph_node *n, unsigned deny);
void data_locks_of(struct graph_node *n);
/* What node_open_again denies others where the image is raw. */
#define REOPEN_DENY (STOR_PERM_WRITE | STOR_PERM_RESIZE)
/* ---- recorded.c ---- */
/* The path without links, malloc'd, of a worker thread: a file server that hangs holds up only who asks. NULL: nothing is there, or no memory. Suspends. */
char *graph_real_path(struct co *co, const char *path);
/* What lies below n has changed, or what it records: do they mean the same? Suspends. */
void node_note_below(struct co *co, struct graph_node *n);
/* Does n show what a name shows that leads to its file: its own data, and below it the images that headers record? */
bool node_is_as_recorded(struct graph_node *n);
/* ---- data.c ---- */
/* What open_data of struct fmt_host gets. */
struct data_ask { struct graph_node *n, *top; const struct graph_open_opts *o; const char *path; struct stor **of_node; bool look, direct, no_flush; };
/* Was n given no external data file but the one that its header records? Suspends. */
bool data_is_recorded(struct co *co, struct graph_node *n);
/* The node `name` as the data file of n, which gets the reference and the use when it is opened for the first time; locked. */
MUST_USE int data_from_node(struct co *co, struct graph_node *n, const char *name, struct stor **ret_s, struct byre_err *err);
int data_open(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err);
/* STOR_PERM_* that n wants of its other file when it is open in this way. A header that can only be read does not keep n from being
 * written: its key slots stay what they are. */
unsigned data_perm_of(const struct graph_node *n, bool read_only);
/* Is the file with this identity the data file of n? */
static inline bool data_is(const struct graph_node *n, bool has, uint64_t a, uint64_t b)
{
    return n->has_data_identity && has && n->data_a == a && n->data_b == b;
}

/* ---- drain.c ---- */
MUST_USE int gate_init(struct graph_node *n);
void gate_fini(struct graph_node *n);                       /* nobody inside */
void gate_wait_open(struct co *co, struct graph_node *n);   /* slow path of gate_enter */
void gate_empty(struct co *co, struct graph_node *n);       /* waits until nobody is inside; home */
void gates_empty(struct co *co, struct graph_node *n);      /* until nobody of now is inside n or a node above it; home */
void gates_update(struct graph *g);                         /* after a change of drains or of edges; home */
/* ---- haste.c ---- */
void hastes_update(struct graph *g);                        /* as that, which calls it */
void hastes_forget(struct graph_node *n);                   /* n ends; home */
bool graph_is_hasty(const struct graph_node *n);            /* must a filter let requests go on that it only holds up? Any loop */

static inline epoch_token gate_enter(struct co *co, struct graph_node *n)
{
    const struct rt_loop *loop = co_loop(co);
    for (;;) {
        epoch_token t = epoch_enter(n->gate, loop);
        if (LIKELY(!atomic_load_explicit(&n->gated, memory_order_acquire)))
            return t;
        epoch_leave(n->gate, loop, t);
        gate_wait_open(co, n);
    }
}
static inline void gate_leave(struct co *co, struct graph_node *n, epoch_token t)
{
    epoch_leave(n->gate, co_loop(co), t);
}

/* ---- watch.c ---- */
/* Does somebody watch n? Asked inside the gate; if so, the change goes by watch_run: ch as the watchers see it. */
static inline bool is_watched(const struct graph_node *n)
{
    return UNLIKELY(atomic_load_explicit(&n->watches, memory_order_acquire) != NULL);
}
/* Around a change of n's length; end after begin, also when that failed, or was not reached. `who` tells changes apart: one that is refused may meet
 * another that is under way. home */
MUST_USE int watches_resize_begin(struct co *co, struct graph_node *n, const void *who, uint64_t size, struct byre_err *err);
void watches_resized(struct graph_node *n, uint64_t size);
void watches_resize_end(struct co *co, struct graph_node *n, const void *who, bool done);
/* Does somebody count on being asked? Other ways to change the length are refused then. */
MUST_USE int watches_allow(const struct graph_node *n, const char *what, struct byre_err *err);
MUST_USE int watch_run(struct co *co, struct graph_change *ch, int (*run)(struct co *co, void *arg), void *arg);

/* ---- chain.c ---- */
/* One piece of a request and what answers it. While `held`, an epoch section of layer->im is open. */
struct piece {
    struct graph_node *layer;     /* NULL: no layer has it, zeros */
    struct fmt_extent e;          /* DATA, ENCODED: from layer; else kind ZERO */
    uint64_t pos, len;            /* guest range */
    unsigned depth;
    bool past_end;                /* zeros because a layer ends here; `layer` is the one that ends */
    bool held;
    epoch_token tok;
};

/* Layers that are known to be absent up to an offset: spares asking them again for the next piece. */
#define CHAIN_MEMO 24
struct chain_memo {
    uint64_t absent_to[CHAIN_MEMO];
    bool reading;                 /* bytes are wanted: a filter that wants to see reads answers for what lies below it */
};

/* Finds what answers from pos on, at most up to end, in the layers from n down to (excluding) bottom. With bottom
 * given, "no layer has it" comes back as kind ABSENT. The piece is held when it is DATA or ENCODED. Suspends. */
MUST_USE int chain_find(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t pos, uint64_t end,
                        struct chain_memo *memo, struct piece *p);
/* The plain walk, which chain_find and index.c go by: no memo, no index; "no layer has it" is kind ABSENT. */
MUST_USE int chain_walk(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t pos, uint64_t end, struct piece *p);
/* Longer ranges are walked, whatever indexes there are. */
#define CHAIN_WIDE (64ull << 20)
static inline void piece_release(struct co *co, struct piece *p)
{
    if (p->held) {
        p->held = false;
        epoch_leave(p->layer->im->epoch, co_loop(co), p->tok);
    }
}

/* ---- index.c ---- */
struct chain_index;
/* Makes an index of n and the fixed layers below it, if there are two or more and there is memory. Home. */
void index_attach(struct graph_node *n);
void index_detach(struct co *co, struct graph_node *n);          /* nobody is inside; home */
/* Takes the indexes away that begin at n or above. Nobody is inside; when it returns, and until the caller suspends, there is none. */
void indexes_drop(struct co *co, struct graph_node *n);
/* Makes those that pay, below writable nodes above n. */
void indexes_make(struct graph_node *n);
/* Which covered layer answers for [p->pos, end), as chain_walk would say it; depth counts from the index's own node on.
 * p->pos: inside that node's size. The piece is held when it is DATA or ENCODED. Suspends. */
MUST_USE int index_find(struct co *co, struct chain_index *ix, uint64_t end, struct piece *p);
struct graph_node *index_below(const struct chain_index *ix);    /* first layer that is not covered; NULL: none */
struct graph_node *index_last(const struct chain_index *ix);
unsigned index_layers(const struct chain_index *ix);
struct index_stats { unsigned layers; uint64_t fills, bytes; };  /* for tests. layers 0: no index; bytes: of the whole graph */
struct index_stats index_stats(const struct graph_node *n);
uint64_t index_limit_of(uint64_t asked);

/* ---- read.c ---- */
/* From the mapping of n alone, at any offset of it; what is not there is zeros. */
MUST_USE int state_read(struct co *co, struct graph_node *n, struct iov v, uint64_t pos);
/* The same as graph_read without checks and without passing the gate. Bytes past the end of n are zeros. */
MUST_USE int chain_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off);

/* Pieces of one request that run at the same time, on the loop of the request. */
#define FAN_WIDTH 8
struct fan { unsigned free_mask; int error; struct co_waitq q; };
static inline void fan_init(struct fan *f) { *f = (struct fan){ .free_mask = (1u << FAN_WIDTH) - 1 }; }
unsigned fan_take(struct co *co, struct fan *f);            /* a free slot; suspends until there is one */
void fan_done(struct fan *f, unsigned slot, int error);     /* the first error stays */
int fan_wait(struct co *co, struct fan *f);                 /* until all slots are free; the first error */

/* ---- write.c ---- */
/* One contiguous host range that may be written now: in place, inside a section, or begun. */
struct write_piece {
    bool in_place;
    epoch_token tok;              /* in_place: a section of the image is open */
    uint64_t pos, len, host;
    struct fmt_write w;           /* not in_place */
};
/* Decides what happens to the beginning of [pos, end). piece_drop gives it up again, piece_done ends it: commit. */
MUST_USE int piece_plan(struct co *co, struct graph_node *n, uint64_t pos, uint64_t end, struct write_piece *p);
void piece_drop(struct co *co, struct graph_node *n, struct write_piece *p);
MUST_USE int piece_done(struct co *co, struct graph_node *n, struct write_piece *p);
/* The same as graph_write without checks, gate, guard and flush. flags: STOR_FUA (raw only) or 0. */
MUST_USE int chain_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags);
/* Writes zero bytes over a range. */
MUST_USE int chain_write_zeros(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
/* 0, or why a change of [off, off+len) is not let in; 1: nothing to do. After 0 whatever changes guest data is followed by
 * change_end, also when it failed: a part of it may have been done. */
MUST_USE int change_begin(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
static inline void change_end(struct graph_node *n, uint64_t off, uint64_t len)
{
    const struct tracked *t = atomic_load_explicit(&n->tracked, memory_order_acquire);
    for (unsigned i = 0; UNLIKELY(t != NULL) && i < t->count; i++)
        dirty_set(t->bits[i], off, len);
}

/* Runs a change that touches the first sector of a guarded node alone: what(arg) is called when the sector that
 * would result is harmless, else -EPERM. v: the bytes that would be written at off < 512. */
struct guarded { struct graph_node *n; struct iov v; uint64_t off; int (*what)(struct co *co, void *arg); void *arg; };
MUST_USE int guard_first_sector(struct co *co, struct guarded *gd);

/* ---- encode.c ---- */
/* The same as graph_write with GRAPH_COMPRESS, without checks of permission, gate and flush. */
MUST_USE int chain_write_compressed(struct co *co, struct graph_node *n, struct iov v, uint64_t off);

/* ---- fill.c ---- */
struct rider;
/* Writes v into a new cluster, and what must surround it there (w->fill). All of it is with the store when it returns 0. ret_riders: other writes may
 * go along, which then wait for ride_end, also when this fails; NULL: none may. */
MUST_USE int fill_write(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v, struct rider **ret_riders);

/* ---- ride.c ---- */
/* A write that goes along with a copy; in the frame of its coroutine. */
struct rider { struct rider *next; const struct iov *v; uint64_t off; bool done; struct co_xevent over; };
/* A copy that takes others along: those that lie in [from, to) of the guest. */
struct ride { struct ride *next; uint64_t from, to; struct rider *first, **last; };
void ride_open(struct graph_node *n, struct ride *d, const struct fmt_write *w);
/* Lets those get on who are ready to. [*lo, *hi) of the guest, which the copy itself writes, grows by what adjoins it on board. Suspends. */
void ride_call(struct co *co, struct graph_node *n, struct ride *d, uint64_t *lo, uint64_t *hi);
/* Nobody gets on any more. Who is on board. */
struct rider *ride_close(struct graph_node *n, struct ride *d);
/* Puts their bytes into buf, which begins at guest offset off. */
void ride_put(const struct rider *list, uint8_t *buf, uint64_t off);
/* result 0: their bytes are written and linked. Else each goes by himself. The list is gone. */
void ride_end(struct rider *list, int result);
/* true: v is written, with a copy. false: there is none for it. Suspends. */
MUST_USE bool ride_along(struct co *co, struct graph_node *n, const struct iov *v, uint64_t off);

/* ---- zero.c ---- */
/* The same as graph_zero without checks, gate, guard and flush. flags: GRAPH_UNMAP, GRAPH_NO_FALLBACK. */
MUST_USE int zero_range(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags);

/* ---- threshold.c ---- */
void threshold_free(struct co *co, struct graph_node *n);        /* nobody is inside */
void threshold_follow(struct graph_node *n);                     /* its image is another one */

/* ---- bitmap.c ---- */
/* After the image was opened: those of a writable one begin to record. */
MUST_USE int bitmaps_attach(struct co *co, struct graph_node *n, struct byre_err *err);
/* Nobody is inside, the image is closed; list: what im->bitmaps was. */
void bitmaps_free(struct graph_node *n, struct fmt_bitmap *list);
void bitmaps_list_free(struct fmt_bitmap *list);                 /* of which none records */
/* Drained. Every bitmap for a disk of another size, prepared first; then one of the two. */
struct bitmaps_resize;
MUST_USE int bitmaps_resize_begin(struct co *co, struct graph_node *n, uint64_t size, bool hold, struct bitmaps_resize **ret, struct byre_err *err);
void bitmaps_resize_end(struct co *co, struct graph_node *n, struct bitmaps_resize *z, bool done);
/* im->bitmaps is the whole list from now on. */
MUST_USE int bitmaps_list(struct co *co, struct graph_node *n, struct byre_err *err);
/* All persistent ones, durably (fmt.h, bitmaps_sync). Drained, node->whole held. */
MUST_USE int bitmaps_store(struct co *co, struct graph_node *n, struct byre_err *err);
/* Room for `more` recording bitmaps than there are bitmaps now (NULL: no memory); then, drained, those that record are what requests
 * set bits in. Publishing takes t over. */
struct tracked *bitmaps_tracked(const struct graph_node *n, unsigned more);
void bitmaps_publish(struct graph_node *n, struct tracked *t);

/* ---- bitmap_save.c: where bits and bitmaps go that may come back ---- */
struct grave;
MUST_USE int saved_grave(struct graph_node *n, struct grave **ret);                  /* before the change. -ENOMEM */
void saved_bury(struct graph_node *n, struct grave *g, struct dirty *bits);         /* frees them when there is no need to keep them */
bool saved_take(struct graph_node *n, struct fmt_bitmap *b);                         /* false: it is the caller's to free */
/* The node becomes `size` bytes long, and so does what may come back. First copies are made (*ret NULL: nothing is remembered); then, when it has the
 * length, swap is told of each bitmap of the list before it gets other bits, and done puts the rest in place (z NULL: it did not get that length). stored: the
 * image keeps bitmaps of the list, so it is to be stored at the end of the list in both cases. */
struct saved_resize;
MUST_USE int saved_resize_begin(struct graph_node *n, uint64_t size, struct saved_resize **ret, struct byre_err *err);
void saved_resize_swap(struct graph_node *n, struct fmt_bitmap *b, struct dirty *bits);
void saved_resize_done(struct graph_node *n, struct saved_resize *z, bool stored);
void saved_resize_free(struct saved_resize *z);                                      /* NULL ok */
/* ---- bitmap_revert.c ---- */
/* Drained, around a change of all that the disk holds, which becomes `size` bytes long: every bitmap, whether it records or not, is
 * all dirty, durably, before it; afterwards too, or, when nothing was touched, as it was. *ret NULL: there are none. */
struct bitmaps_revert;
MUST_USE int bitmaps_revert_begin(struct co *co, struct graph_node *n, uint64_t size, struct bitmaps_revert **ret, struct byre_err *err);
void bitmaps_revert_end(struct co *co, struct graph_node *n, struct bitmaps_revert *z, bool touched);

/* ---- perm.c ---- */
/* Would an action that needs `perm` conflict with a user of n other than `self` (may be NULL)? */
MUST_USE int perm_check(struct graph_node *n, const struct graph_user *self, unsigned perm, const char *who, struct byre_err *err);
/* Could u use n, beside all its users but `leaving` (may be NULL)? */
MUST_USE int users_fit(struct graph_node *n, const struct graph_user *u, const struct graph_user *leaving, struct byre_err *err);
void user_link(struct graph_node *n, struct graph_user *u);      /* it does */
void users_settle(struct graph_node *n);                         /* n's users are others: what filters ask for below, and whether anybody writes */
/* ---- runtime.c ---- */
/* May `backing` (NULL: nothing) come to lie below n? */
MUST_USE int check_below_of(struct graph_node *n, struct graph_node *backing, struct byre_err *err);
/* Drained: the same, and it is durable. Suspends. */
MUST_USE int edge_prepare(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err);
/* Does it answer nothing, because its tray is open, or empty? Inside a section of its gate (tray.c). */
bool tray_is_silent(const struct graph_node *n);
/* Of an attachment that is shut, when users_fit (tray.c). What it had keeps its reference, which is the caller's now. */
struct graph_node *edge_to_medium(struct graph_node *a, struct graph_node *to);
/* Then, when users_fit and there is no index: it does. */
void edge_to_backing(struct co *co, struct graph_node *n, struct graph_node *backing);
/* ---- rebase.c ---- */
/* Could `backing` lie below n (graph.h I1)? */
MUST_USE int check_chain(const struct graph_node *n, const struct graph_node *backing, struct byre_err *err);

#endif
