/* SPDX-License-Identifier: MIT
 *
 * graph.h: nodes and edges; opening chains; the generic read, write, zero, discard, flush and status of a disk.
 *
 * A node is one image (a format over a store, which may be another node) with at most one backing node. A disk is its topmost node. Reads
 * walk the chain in a loop, never by recursion: each piece that a layer does not hold is asked of the next one.
 * Nodes that are no images (filters, attachments), and edges that change while a disk is in use: runtime.h.
 *
 * Invariants
 *   I1  The chain below a node has no cycle and at most max_depth nodes (RG22).
 *   I2  What lies past the end of a shorter layer reads zeros, never the layers below it (FEATURES 11.008).
 *   I3  A request that was let in is finished or failed before graph_drain_begin returns.
 *   I4  Only a node opened for writing is ever written; what lies below is open for reading, until somebody comes to write (graph_make_writable,
 *       graph_writer_comes; mode.c M7).
 * Concurrency  Requests from any loop. graph_open, graph_close, graph_resize and drain on the graph's home loop.
 * Failure      As fmt.h and stor.h; a failed request has changed at most the sectors it names.
 */
#ifndef GRAPH_GRAPH_H
#define GRAPH_GRAPH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/iov.h"
#include "fmt/fmt.h"
#include "rt/loop.h"

struct dirty;
struct graph;
struct graph_node;

#define GRAPH_DEPTH_DEFAULT 256
#define GRAPH_NAME_MAX 31

/* How names become stores. The default opener opens files and devices; the simulator brings its own. */
struct graph_opener {
    int (*open)(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err);
    bool (*identity)(void *arg, const struct stor *s, uint64_t *ret_a, uint64_t *ret_b);
    int (*keep_name)(struct co *co, void *arg, const char *name);      /* the file is durably where its name says. NULL: it always is */
    int (*random)(void *arg, void *p, size_t bytes);      /* random bytes for what images are called by. NULL: the system's */
    void *arg;
};

enum graph_policy { GRAPH_ECOSYSTEM, GRAPH_STRICT };      /* DESIGN D8 */

struct graph_opts {
    const struct graph_opener *opener;      /* NULL = files */
    enum graph_policy policy;
    unsigned max_depth;                     /* 0 = GRAPH_DEPTH_DEFAULT */
    struct secret_set *secrets;             /* passphrases of encrypted images; not owned, outlives the graph. NULL: none */
    struct tls_set *tls;                    /* credentials of TLS, the same */
    struct fdsets *passed;                  /* open files that others passed, the same (stor/fdset.h) */
    struct pr_set *prs;                     /* managers of persistent reservations, the same (stor/pr.h) */
    void (*warn)(void *arg, const char *text);   /* warnings (missing backing format, ...); may be NULL */
    void *warn_arg;
    /* Home loop: an image has been given another backing file, durably. Names as graph_filename and graph_backing_filename have
     * them, to be copied before it suspends. NULL: nobody wants to know */
    void (*linked)(struct co *co, void *arg, const char *overlay, const char *backing);
    void *linked_arg;
    uint64_t index_bytes;                   /* memory for what is remembered of immutable layers (D6); 0 = 32 MiB, UINT64_MAX = none */
};
/* home: on this loop its nodes are opened, changed and closed. -ENOMEM. */
MUST_USE int graph_new(struct rt_loop *home, const struct graph_opts *o, struct graph **ret_g, struct byre_err *err);
void graph_free(struct graph *g);           /* all nodes closed */
struct secret_set *graph_secrets(const struct graph *g);
struct fdsets *graph_passed(const struct graph *g);

enum graph_detect { GRAPH_DETECT_OFF, GRAPH_DETECT_ON, GRAPH_DETECT_UNMAP };      /* detect-zeroes (FEATURES 3.067) */

struct graph_open_opts {
    const char *filename;                   /* plain path, file:PATH, or json:{...} as the peer accepts (ecosystem policy) */
    const char *overlay;                    /* a relative name is seen from this image; NULL: from the working directory */
    const char *format;                     /* NULL = probe */
    const char *node_name;                  /* NULL = made up ("#block0") */
    const char *data_file;                  /* path of the external data file; NULL = what the image records */
    const char *backing_names;              /* "disk0-b": the backing nodes become disk0-b1, disk0-b2, ...; NULL = made up */
    bool read_only;
    bool force_share;                       /* -U: no lock against writers (read-only) */
    bool no_backing;                        /* do not open the backing chain: absent ranges read zero */
    bool no_lock;
    bool share;                             /* read_only: a layer of another chain that shows the same image is taken, not opened again */
    bool direct, no_flush, writethrough;    /* cache modes (FEATURES 3.066) */
    bool discard;                           /* discard=unmap: punch freed space */
    bool inactive;                          /* opened as a node that is not active (active.c): without locks, for reading; the rest is how it is to be later */
    bool node_refs;                         /* the name comes from the user, and its "file" may be the name of a node (blockdev.h) */
    enum graph_detect detect;               /* of the top image, unless its name says it */
    bool refuse_probed_raw;                 /* serve: a disk probed as raw is never opened read-write */
    const char *key_secret;                 /* id of the passphrase of the top image; NULL: what the name says */
    unsigned deny;                          /* STOR_PERM_* that other processes may not have while a raw image is open: of the top image alone.
                                               Formats with metadata always deny both */
    bool stable;                            /* other processes may write or resize no file of the chain, raw layers and external data files
                                               included (sources of convert) */
    struct fmt_open_opts fmt;               /* cache sizes, check_mode, snapshot, ... (read_only is taken from above) */
};
/* Opens an image and its backing chain. On failure nothing is left open. Suspends; home loop. */
MUST_USE int graph_open(struct co *co, struct graph *g, const struct graph_open_opts *o, struct graph_node **ret_n, struct byre_err *err);
/* The store alone that a name of the user means, for those who make images there. */
MUST_USE int graph_store_open(struct co *co, struct graph *g, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err);
/* The node as a store, for one who makes an image in it: all that is asked of the store is asked of the node. Nobody else writes to the node
 * or resizes it meanwhile, here or in other processes: refused when somebody does, or might. Home loop only, and closed there; holds the node. */
MUST_USE int graph_node_store(struct co *co, struct graph_node *n, const char *who, struct stor **ret_s, struct byre_err *err);
struct stor_nbd_opts;
/* What a name of a user's means that is one of a disk on an NBD server; otherwise BAD_ARGUMENT. stor_nbd_opts_fini frees it. */
MUST_USE int graph_name_nbd(const char *name, struct stor_nbd_opts *ret, struct byre_err *err);
enum graph_policy graph_policy_of(const struct graph *g);
/* Does the name, under this policy, mean an export of a server, or nothing that is kept (null-co://), rather than a file of this machine? */
bool graph_name_is_remote(enum graph_policy policy, const char *name);
/* Where the file lies that is made for a new image of this name: *ret_path points into `name`; NULL: it is remote, and there already. Names under which
 * no image can be made (json:, blkdebug:, a protocol that is not known) are refused before anything is touched. Any thread, no I/O. */
MUST_USE int graph_name_to_make(enum graph_policy policy, const char *name, const char **ret_path, struct byre_err *err);
/* The file that a name found in the image `overlay` (NULL: of the user) means, and the external data file that the name states (NULL: none). 0: *ret_path
 * and *ret_data are owned by the caller; 1: it is no file of this machine; else as graph_open fails. Any thread, no I/O. */
MUST_USE int graph_name_file(enum graph_policy policy, const char *name, const char *overlay, char **ret_path, char **ret_data, struct byre_err *err);
/* For those who make images that have a backing file: calls `linked` of struct graph_opts. backing NULL: there is none. */
void graph_tell_linked(struct co *co, struct graph *g, const char *overlay, const char *backing);
/* The same, by the name that the new image records. */
void graph_tell_recorded(struct co *co, struct graph *g, const char *overlay, const char *backing);
/* Flushes and closes the node and every backing node that nobody else uses. Returns the first error; gone all the same. */
int graph_close(struct co *co, struct graph_node *n);

/* ---- description (any loop; constant while open unless stated) ---- */
const char *graph_node_name(const struct graph_node *n);
const char *graph_file_node_name(const struct graph_node *n);  /* of the node of its file, as it was given; NULL: it was not */
const char *graph_filename(const struct graph_node *n);
const struct fmt_ops *graph_format(const struct graph_node *n);
struct fmt_image *graph_image(struct graph_node *n);          /* for check, info and tests; another one after a change of mode: hold it (graph_hold_image) */
struct stor *graph_store(struct graph_node *n);
const char *graph_data_filename(const struct graph_node *n);  /* file in which plain guest data lies: the image's own, or its external data file */
struct graph_node *graph_backing(const struct graph_node *n);  /* NULL: none */
/* Is the file with this identity (stor_file_identity) one of n's chain, or an external data file of it? Home loop. */
bool graph_has_file(const struct graph_node *n, uint64_t a, uint64_t b);
const char *graph_backing_filename(const struct graph_node *n); /* resolved full name of the recorded backing file, NULL: none */
struct fill_costs;
const struct fill_costs *graph_fill_costs(const struct graph_node *n);   /* what first writes cost on this disk (fill.h); changes all the time */
bool graph_read_only(const struct graph_node *n);
/* Does the file that graph_filename names, opened in n's format, show what n, or what it filters, shows? Else NOT_SUPPORTED; instead: what the user
 * is to do. For all who record that name. Suspends; the caller holds n. */
MUST_USE int graph_name_check(struct co *co, struct graph_node *n, const char *instead, struct byre_err *err);
/* For those who are to see all that is written to n. -EPERM: an image over it, a bare file, writes past it; what: "a bitmap". */
MUST_USE int graph_need_seen(const struct graph_node *n, const char *what, struct byre_err *err);
/* For those who put another node into n's place at the end. -EPERM: n is the file of an image. */
MUST_USE int graph_need_root(const struct graph_node *n, struct byre_err *err);
enum graph_detect graph_detect_zeroes(const struct graph_node *n);
bool graph_probed(const struct graph_node *n);                 /* the format was guessed */
/* The longest request that all stores and filters below n take at once; longer ones are cut. 0: any. Home loop. */
uint64_t graph_max_transfer(const struct graph_node *n);
uint64_t graph_length(const struct graph_node *n);             /* bytes, rounded up to 512; changes by resize */
struct graph_node *graph_find(struct graph *g, const char *node_name);
struct graph_node *graph_next(struct graph *g, struct graph_node *prev);   /* iterate all nodes */

/* ---- requests: any loop, suspend, 0 or -errno ---- */
enum { GRAPH_FUA = 1u << 0, GRAPH_UNMAP = 1u << 1, GRAPH_NO_FALLBACK = 1u << 2, GRAPH_COMPRESS = 1u << 3 };
MUST_USE int graph_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off);
/* Reads the VM state of the first image among n, what it filters, and what its file lies in, whose format keeps one; addressed from 0, and what was never
 * saved is zeros, whatever backing images hold. -ENOTSUP: none does; -EIO: past what can be addressed. */
MUST_USE int graph_read_state(struct co *co, struct graph_node *n, struct iov v, uint64_t off);
/* Writes it. No request runs meanwhile. -EFBIG: past what the format can address; -EBUSY: not now (a scrub runs); -EPERM: read-only. */
MUST_USE int graph_write_state(struct co *co, struct graph_node *n, struct iov v, uint64_t off);
/* With GRAPH_COMPRESS: whole clusters (the last one of the disk may be short), else -EINVAL; -ENOTSUP: the format or the
 * image does not compress. What does not become smaller is stored plain. */
MUST_USE int graph_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags);
/* The range reads zeros when it returns 0. NO_FALLBACK: -ENOTSUP where bytes would have to be written. A part of it may when it fails. */
MUST_USE int graph_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags);
/* A byte of the range reads as zero then, or as it did. Nothing when the node was not opened with discard. */
MUST_USE int graph_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
MUST_USE int graph_flush(struct co *co, struct graph_node *n);

/* A compressed write in two steps: the first takes the time and changes nothing, the second writes all of it or a part, in whole
 * clusters. Ranges as above; the bytes of v must be those that were compressed. */
struct graph_encoded;
MUST_USE int graph_encode(struct co *co, struct graph_node *n, const struct fmt_encoding *how, struct iov v, uint64_t off, struct graph_encoded **ret_e);
MUST_USE int graph_write_encoded(struct co *co, struct graph_node *n, const struct graph_encoded *e, struct iov v, uint64_t off);
void graph_encoded_free(struct graph_encoded *e);

/* [dst, dst + len) becomes what [src, src + len) is: clusters are shared where the format can, the rest is copied. The ranges may overlap. To
 * all who look it is a write of the target. */
MUST_USE int graph_clone(struct co *co, struct graph_node *n, uint64_t src, uint64_t dst, uint64_t len);

/* A node over `below` by which reads keep what they bring from its backing image (FEATURES 3.058). READ_ONLY. It has one reference, and one of below. */
MUST_USE int graph_copy_on_read(struct co *co, struct graph_node *below, struct graph_node **ret_n, struct byre_err *err);

/* Lets the kernel copy the beginning of a range from one disk to another. Bytes copied (> 0, maybe fewer than asked), or
 * -ENOTSUP: the bytes are not plain on both sides, or the stores cannot; use read and write. -EBUSY: this time. */
MUST_USE int64_t graph_copy(struct co *co, struct graph_node *dst, uint64_t dst_off, struct graph_node *src, uint64_t src_off, uint64_t len);
/* The same from raw layers of the source alone, for who holds something that a request inside may wait for, and sees to it that nobody changes the
 * range: it does not wait at the source's gate (-ENOTSUP while it is closed), nor is it inside while the kernel copies. */
MUST_USE int64_t graph_copy_now(struct co *co, struct graph_node *dst, uint64_t dst_off, struct graph_node *src, uint64_t src_off, uint64_t len);

struct graph_status {
    uint64_t len;                /* bytes from off for which this holds, > 0 */
    bool present;                /* some layer answers: data or a zero cluster */
    bool past_end;               /* the layer below `node` ends before this range: reads zeros, hides all that lies deeper (I2) */
    bool data, zero;             /* as `map`: data = bytes are stored; zero = reads as zeros */
    bool compressed;
    bool has_offset; uint64_t offset;         /* host offset in the file of `node` */
    unsigned note;               /* STOR_NOTE_x: what a map is to show instead; decides nothing */
    unsigned depth;              /* 0 = top layer */
    struct graph_node *node;     /* layer that answers (deepest that was asked when none does) */
};
/* Status of [off, off+len) down to (excluding) `bottom` (NULL = whole chain). Neighbours are merged up to len. */
MUST_USE int graph_status(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len, struct graph_status *ret);
/* The same of the whole chain for a bounded amount of work: the maps of the layers are asked *looks times at most (> 0), so neighbours may be left
 * unmerged. *looks becomes how often they were asked. */
MUST_USE int graph_status_some(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned *looks, struct graph_status *ret);
/* Requests that wait for the server of n's file or of its external data file, below filters too, are given up (stor/nbd.h). Nothing for files. Home loop. */
void graph_abandon(struct graph_node *n);
/* What an NBD server that supplies a part of n's disk said last of a request that it refused, if its number was `error` (0: any). false: nothing.
 * since_ns: when the request began that failed with `error`; an older answer has nothing to do with it. Home loop, or while edges stay as they are. */
#define GRAPH_COMPLAINT_MAX 400
bool graph_complaint(const struct graph_node *n, int error, uint64_t since_ns, char ret[GRAPH_COMPLAINT_MAX]);
/* They are given up when one waits and no answer has come for `ns` (stor_nbd_hurry). Home loop. */
void graph_hurry(struct graph_node *n, uint64_t ns);
/* As graph_close. Nobody is in a hurry any more as far as others have the nodes, but for the end of all (graph_parting). */
int graph_close_hurried(struct co *co, struct graph_node *n);
/* graph_hurry of all nodes, which are about to be closed. */
void graph_hurry_all(struct graph *g, uint64_t ns);
/* At most max such answers, one behind the other: how many (at least 1), or -errno. Cheaper than asking for each. */
MUST_USE int graph_status_list(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len,
                               struct graph_status *list, unsigned max);
MUST_USE int graph_resize(struct co *co, struct graph_node *n, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err);
struct graph_user;
/* The same of the node that u uses, whose other users put up with it. Edges are held by somebody who waits for this, and who may let them before it
 * has ended: it takes none. u stays until then. Suspends. */
MUST_USE int graph_resize_for(struct co *co, struct graph_user *u, uint64_t size, struct byre_err *err);
/* Before edges are taken for a resize: those who follow n's length tell whether they can, as far as that may take long. It changes nothing. Suspends. */
MUST_USE int graph_resize_ahead(struct co *co, struct graph_node *n, struct byre_err *err);

/* Creates, applies or deletes an internal snapshot (struct fmt_snapshot_req), drained. Applying needs a node that nobody else
 * wants unchanged. *ret (may be NULL): see fmt.h. */
MUST_USE int graph_snapshot(struct co *co, struct graph_node *n, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err);
/* Between the two the node's image is not opened in another way, and nothing of its structure changes: for those who look at it and suspend. */
void graph_hold_image(struct co *co, struct graph_node *n);
void graph_release_image(struct graph_node *n);
/* Between the two n is not closed, whoever gives it back or deletes it: for those who go through nodes, look and suspend. It is no reference, and
 * nobody is told that the node is in use. false: it is being closed, and is not to be looked at. */
MUST_USE bool graph_look_begin(struct graph_node *n);
void graph_look_end(struct graph_node *n);
/* Changes options of an image that is open for writing (fmt.h); `a` without resize. Home loop. */
MUST_USE int graph_amend(struct co *co, struct graph_node *n, struct fmt_amend_opts *a, struct byre_err *err);

/* ---- changes of a chain (mode.c, rebase.c): home loop; each drains ---- */
/* Opens the backing node n of `overlay` for writing: others of this graph must allow it, and then nobody else opens it. It stays so
 * until nobody writes any more (graph_writer_gone). The caller holds edges until one of its users says that he writes, or it is kept so (graph_keep_writable).
 * What is written to it must not show through `overlay`, or be what it shows there anyway. */
MUST_USE int graph_make_writable(struct co *co, struct graph_node *n, struct graph_node *overlay, struct byre_err *err);
/* The same, to change nothing but what the image says of itself. */
MUST_USE int graph_make_header_writable(struct co *co, struct graph_node *n, struct byre_err *err);
/* n, or what it filters, has auto-read-only and is open for reading: somebody is about to write to it, and it is opened for that. 0 when there is nothing
 * to do, too. What was opened so goes back to reading when its last writer has gone. */
MUST_USE int graph_writer_comes(struct co *co, struct graph_node *n, struct byre_err *err);
/* From one to the other somebody is about to write to n: what was opened for that stays so. For those who suspend between graph_writer_comes and the moment
 * when they use n. The first returns what the second takes. */
struct graph_node *graph_await_writer(struct graph_node *n);
void graph_await_end(struct co *co, struct graph_node *image);
/* Somebody who may have written has gone. If he was the last, what graph_make_writable, graph_make_header_writable or graph_writer_comes has opened is open
 * for reading again when this returns; when that fails, which is warned of, behind the next one, and when something is in its way, behind that. */
void graph_writer_gone(struct co *co, struct graph_node *n);
/* It does not go back: it is a disk now, or about to be closed. */
void graph_keep_writable(struct graph_node *n);
/* Open for reading, whoever opened it: nobody writes to it. It stays open for writing when this fails, unless that was at the very end. */
MUST_USE int graph_make_read_only(struct co *co, struct graph_node *n, struct byre_err *err);
/* The image records another backing file (NULL: none), and `backing` (NULL: none) is what lies below n from now on, whatever it holds; it
 * gets a reference of its own. Durable when it returns 0. */
struct graph_name {
    const char *file, *format;
    uint64_t longest;                       /* not 0: refused (BUSY, -EBUSY) when the image has become longer than this */
};
MUST_USE int graph_rebase(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err);
/* Says what graph_rebase would refuse, before anything is done for it. */
MUST_USE int graph_rebase_check(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err);
/* on: what is written to n is to hide whatever comes to lie below it, zeros too. Until graph_rebase has succeeded, or off. */
void graph_stand_alone(struct graph_node *n, bool on);
/* The layer below `top` that this name means: as recorded in the layer above it, as seen from there, or of the same file. NULL: none. */
struct graph_node *graph_layer(struct co *co, struct graph_node *top, const char *name);
/* Nothing is in this layer any more, and the space is given back: for an image whose content lies below as well. Durable when it
 * returns 0; a part may have gone when it fails. */
MUST_USE int graph_make_empty(struct co *co, struct graph_node *n, struct byre_err *err);

/* No new request is let in at n, or at a node above it whose requests would come to n; those inside have ended when it returns. Nests. Home loop.
 * Which of the three ways holds off whom: a table at the head of drain.c. */
void graph_drain_begin(struct co *co, struct graph_node *n);
void graph_drain_end(struct graph_node *n);
/* The same, and images that have n, or a node above n, as their file (under.c) are drained, too: no guest's request reaches n, on whatever way. What such
 * a format writes of its own accord may. */
void graph_still_begin(struct co *co, struct graph_node *n);
void graph_still_end(struct graph_node *n);
/* As drain, but what formats over n ask of it waits, too, even what they write of their own accord: nothing inside may wait for one (graph_rests_on, reach.h). */
void graph_shut_begin(struct co *co, struct graph_node *n);
void graph_shut_end(struct graph_node *n);

/* ---- dirty bitmaps (FEATURES 9.076): home loop. Changes drain the node; those of persistent bitmaps are durable when the
 * call returns 0, and have not happened when it fails. ---- */
struct graph_bitmap_spec { const char *name; uint64_t granularity; bool persistent, disabled; };   /* granularity: bytes, 0 = default */
MUST_USE int graph_bitmap_add(struct co *co, struct graph_node *n, const struct graph_bitmap_spec *s, struct byre_err *err);
MUST_USE int graph_bitmap_remove(struct co *co, struct graph_node *n, const char *name, struct byre_err *err);
MUST_USE int graph_bitmap_clear(struct co *co, struct graph_node *n, const char *name, struct byre_err *err);
/* Says what `content` says (NULL: nothing), of the same disk, from now on. */
MUST_USE int graph_bitmap_set(struct co *co, struct graph_node *n, const char *name, const struct dirty *content, struct byre_err *err);
/* The same for one who holds b (graph_bitmap_hold), so that it is there, loaded, and nobody else's all the time. */
MUST_USE int graph_bitmap_set_held(struct co *co, struct graph_node *n, struct fmt_bitmap *b, const struct dirty *content, struct byre_err *err);
MUST_USE int graph_bitmap_enable(struct co *co, struct graph_node *n, const char *name, bool on, struct byre_err *err);
/* Adds what the sources hold, all of them or none. Their nodes may be others, of the same size. */
struct graph_bitmap_ref { struct graph_node *node; const char *name; };
MUST_USE int graph_bitmap_merge(struct co *co, struct graph_node *n, const char *name, const struct graph_bitmap_ref *src, unsigned count, struct byre_err *err);
/* Between the two nothing is stored; then everything at once. */
void graph_bitmap_batch_begin(struct graph_node *n);
MUST_USE int graph_bitmap_batch_end(struct co *co, struct graph_node *n, struct byre_err *err);
/* Several changes of n's bitmaps that are one: save; changes, of which nothing is stored; then keep and done, or undo. Keep stores them at once, and
 * when that of another node fails, undo takes them back all the same. n is drained all the time, and nobody else changes its bitmaps
 * (graph_edges_hold). */
struct graph_bitmaps_saved;
MUST_USE int graph_bitmaps_save(struct co *co, struct graph_node *n, struct graph_bitmaps_saved **ret, struct byre_err *err);
MUST_USE int graph_bitmaps_keep(struct co *co, struct graph_bitmaps_saved *s, struct byre_err *err);
void graph_bitmaps_done(struct graph_bitmaps_saved *s);
void graph_bitmaps_undo(struct co *co, struct graph_bitmaps_saved *s);
/* *ret_b NULL: there is none of that name. Valid while nobody removes it: hold it to be sure. */
MUST_USE int graph_bitmap_find(struct co *co, struct graph_node *n, const char *name, struct fmt_bitmap **ret_b, struct byre_err *err);
/* The list (ret_b->next goes on). */
MUST_USE int graph_bitmaps(struct co *co, struct graph_node *n, struct fmt_bitmap **ret_b, struct byre_err *err);
/* b->bits is there when it returns 0. */
MUST_USE int graph_bitmap_load(struct co *co, struct graph_node *n, struct fmt_bitmap *b, struct byre_err *err);
/* A job begins that will have to do with b, which is loaded and held: what is written from now on is recorded aside as well. Then one of: b is
 * what was written since, and `left`; or b is as if there had been no job. What the image holds of it follows with the next change of bitmaps, or
 * when it is closed: until then it is more, so a crash costs nothing but a larger copy. Nothing suspends between the change and the return. */
MUST_USE int graph_bitmap_follow(struct co *co, struct graph_node *n, struct fmt_bitmap *b, struct byre_err *err);
MUST_USE int graph_bitmap_settle(struct co *co, struct graph_node *n, struct fmt_bitmap *b, const struct dirty *left, struct byre_err *err);
void graph_bitmap_unfollow(struct co *co, struct graph_node *n, struct fmt_bitmap *b);
static inline void graph_bitmap_hold(struct fmt_bitmap *b) { b->busy++; }
void graph_bitmap_release(struct graph_node *n, struct fmt_bitmap *b);           /* of the image n */

/* Who is told of damage that images of the graph meet (beside graph_opts.warn): on the home loop, must not suspend. NULL: nobody. */
typedef void graph_corrupted_fn(void *arg, const struct graph_node *n, const struct fmt_corruption *c);
void graph_watch_corruption(struct graph *g, graph_corrupted_fn *fn, void *arg);
/* Tells the graph's user (graph_opts.warn). */
PRINTF_LIKE(2, 3) void graph_warn(const struct graph_node *n, const char *fmt, ...);

/* ---- watching the changes of a disk (watch.c) ----
 * A watcher stands around every write, zero and discard of one node, on the loop of the request: it may do something before the
 * change, wait, refuse it, and do something after it with its result. It calls graph_change_go exactly once, unless it refuses.
 * The node is an image: requests pass through filters and attachments without looking for watchers there.
 * While nobody watches it costs one load; never memory. Several watchers stand around one another, the latest outermost.
 * A request that waits in a watcher holds up whoever drains the node, adds or removes a watcher: those who wait long must look at
 * graph_draining. Structural changes (snapshots, make_empty; size, unless `follows`) are not seen: keep them out by a graph_user. */
enum graph_change_kind { GRAPH_CHANGE_WRITE, GRAPH_CHANGE_ZERO, GRAPH_CHANGE_DISCARD };
struct graph_watch;
struct graph_change {
    struct graph_node *node;
    enum graph_change_kind kind;
    uint64_t off, len;                      /* inside the disk, len > 0. A discard may touch less */
    const struct iov *v;                    /* of a write: its bytes, until the outermost watcher has returned; else NULL */
    unsigned flags;                         /* GRAPH_* of the request */
    struct graph_watch *next;               /* watch.c, as what follows */
    int (*run)(struct co *co, void *arg);
    void *arg;
};
/* One who goes along with changes of the disk's length (graph_resize), on the home loop: begin, before it, may refuse; now, when it has just
 * changed, drained, must not suspend; end, whether or not it came to that. Edges are held from begin to end (runtime.h), and the watcher stays. None of
 * these may wait for ever, therefore. ahead (may be NULL): graph_resize_ahead; the watcher stays. */
struct graph_watch_size {
    int (*ahead)(struct co *co, struct graph_watch *w, struct byre_err *err);
    int (*begin)(struct co *co, struct graph_watch *w, uint64_t size, struct byre_err *err);
    void (*now)(struct graph_watch *w, uint64_t size);
    void (*end)(struct co *co, struct graph_watch *w, bool done);
};
struct graph_watch {
    const struct graph_watch_size *follows; /* NULL: keep the length as it is, by a graph_user */
    const void *following;                  /* whom; watch.c, as what follows */
    unsigned aheads;
    int (*change)(struct co *co, struct graph_watch *w, struct graph_change *ch);   /* 0 or -errno: what the request answers */
    struct graph_node *node;                /* watch.c, as what follows */
    _Atomic(struct graph_watch *) link;
};
/* The change itself, seen by the watchers further in. When it failed, a part of it may have been done. */
MUST_USE int graph_change_go(struct co *co, struct graph_change *ch);
/* Reads from ch->node, inside the disk, for a watcher: a request of its own would wait for a gate that waits for this one. */
MUST_USE int graph_change_read(struct co *co, const struct graph_change *ch, struct iov v, uint64_t off);
/* Home loop, never inside a request. When add returns, every change that is not seen by w has ended; until remove returns w
 * may be called. Neither drains: requests go on. */
void graph_watch_add(struct co *co, struct graph_node *n, struct graph_watch *w);
void graph_watch_remove(struct co *co, struct graph_watch *w);
/* Does somebody wait for requests to end, perhaps for those inside n? Any loop; who sleeps in a watcher asks again and again. */
bool graph_draining(const struct graph_node *n);
/* ---- haste (haste.c): no limit of a throttle group holds up who is on his way out ----
 * From begin to end requests that go through n, or below it, stand in no bucket. `may` comes before; it keeps the node from nothing, and both begin
 * and end do nothing when it has gone. A zeroed one: as if it had. Home loop, all. */
struct graph_haste { struct graph_haste *next; struct graph_node *node; bool begun; };
void graph_haste_may(struct graph_haste *h, struct graph_node *n);
void graph_haste_begin(struct graph_haste *h);
void graph_haste_end(struct graph_haste *h);
/* Is n drained, or a node below it: do new requests for it wait? Any loop. */
bool graph_is_gated(const struct graph_node *n);
struct graph *graph_of(const struct graph_node *n);
/* One more opener of n: graph_close gives it back. Home loop. */
void graph_ref(struct graph_node *n);

/* Around a change of where the bytes of [off, off + len) of n are, while others may lie over n (D6): after begin no new
 * request goes by the old mapping, and those that do are inside a section of n's image; what is read between the two is
 * not remembered. Nests. Never inside a section; the space that the old mapping names is to be freed as ever. Home loop. */
void graph_mapping_change_begin(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);
void graph_mapping_change_end(struct graph_node *n);

/* ---- permissions (FEATURES 11.002): who uses a node, for what, and what it lets others do ---- */
struct graph_user {
    struct graph_user *next;
    const char *who;
    unsigned perm, shared;
    struct graph_node *node;
    bool moving;                            /* runtime.c */
    bool idle;                              /* may use a node that is not active: what it would change is put aside meanwhile (active.c) */
    unsigned asleep;
};
MUST_USE int graph_user_add(struct graph_node *n, struct graph_user *u, struct byre_err *err);   /* refused: names both users */
void graph_user_remove(struct graph_user *u);

/* ---- blkdebug.c: breakpoints of the first filter blkdebug at or below n, below formats too (FEATURES 3.053) ---- */
/* The next request whose event this is stands still, under the name `tag`. -ENOTSUP, as of all: there is no such filter. -ENOENT: no such event. Home, all. */
MUST_USE int graph_debug_break(struct graph_node *n, const char *event, const char *tag);
/* None stops there any more, those that stand go on, and who waits for one is told so. tag NULL: whatever theirs is. -ENOENT: none would have stopped. */
MUST_USE int graph_debug_remove(struct graph_node *n, const char *tag);
/* The first one goes on. -ENOENT: none stands. */
MUST_USE int graph_debug_resume(struct graph_node *n, const char *tag);
/* Until one stands there. -ECANCELED: the tag was removed. Suspends. */
MUST_USE int graph_debug_wait(struct co *co, struct graph_node *n, const char *tag);

#endif
