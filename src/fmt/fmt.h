/* SPDX-License-Identifier: MIT
 *
 * fmt.h: image formats. A format answers two questions about a guest range, "where is it?" and "make it
 * writable", and keeps its own metadata. It never moves guest data itself, never opens another file and never
 * recurses into a backing image: graph/ does that with the answers.
 *
 * How a read goes (graph/):
 *     t = epoch_enter(im->epoch, loop); map(); read im->data at the host offset; epoch_leave()
 * How a write goes (graph/):
 *     t = epoch_enter(); map();  writable in place?  -> write im->data at the host offset; epoch_leave(); done
 *     else epoch_leave(); write_begin(); fill and write the clusters it names; write_commit()  (or write_abort())
 *
 * Invariants
 *   I1  A host range answered by map() stays what it was until the caller leaves the epoch section it was in
 *       when it called (DESIGN D3): neither handed out again, nor punched, nor cut off.
 *   I2  Between write_begin() and write_commit()/write_abort() no other write, zero or discard changes the
 *       mapping of that guest range, and map() goes on answering the old mapping.
 *   I3  write_commit() cannot fail for want of memory or space: write_begin() made all of it ready.
 *   I4  write_begin(), write_encoded(), zero(), discard(), clone(), flush(), resize() are never called inside an epoch section of the image.
 * Order        A commit only changes memory; what reaches the disk before what is decided in meta/ alone (D5).
 *              flush() returns after everything acknowledged before its call is durable.
 * Concurrency  map, read_encoded, encode, write_*, zero, discard, clone, flush: from any loop, all at the same time.
 *              open, close, resize, snapshot, check, info: on the home loop; resize, snapshot and close with requests drained.
 */
#ifndef FMT_FMT_H
#define FMT_FMT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/dirty.h"
#include "base/err.h"
#include "base/iov.h"
#include "fmt/secret.h"
#include "rt/epoch.h"
#include "rt/loop.h"
#include "stor/event.h"

struct fmt_image;

enum fmt_kind {
    FMT_ABSENT,       /* not in this layer: the backing image answers, or zeros where there is none */
    FMT_ZERO,         /* reads zeros, hides the backing image */
    FMT_DATA,         /* plain bytes at `host` of im->data */
    FMT_ENCODED,      /* compressed, or encrypted in the old way: bytes only through read_encoded() */
};

struct fmt_extent {
    enum fmt_kind kind;
    bool writable;            /* DATA: may be overwritten in place */
    bool has_host;            /* `host` is valid (DATA; ZERO and ABSENT with space kept) */
    uint64_t len;             /* bytes from the asked offset for which all of this holds; > 0, <= asked length */
    uint64_t host;            /* byte offset in im->data of the asked guest offset. ENCODED: of the compressed bytes in the store */
    uint64_t enc_len;         /* ENCODED: length in the store (upper bound) */
    uint64_t enc_guest;       /* ENCODED: guest offset where the cluster begins */
    bool encrypted;           /* ENCODED: not compressed, but encrypted in a way that needs read_encoded() */
};

enum fmt_fill {
    FMT_FILL_NONE,            /* head and tail already read as zeros on the host: write the data alone */
    FMT_FILL_ZERO,            /* head and tail must become zeros */
    FMT_FILL_READ,            /* head and tail must get the guest's present content (read it through the chain) */
};

#define FMT_FILL_SMALL_BYTES 16384u        /* zeros of up to so many bytes are always written with the data: no call is as cheap */

/* One allocating write in progress: one contiguous host range. Lives in the caller's frame. */
struct fmt_write {
    uint64_t off, len;        /* guest range that may be written now: starts at the asked offset, never longer than asked. len 0: the
                                 mapping has become writable in place; nothing is held, start again with map() */
    uint64_t host;            /* byte offset in im->data for `off` */
    uint64_t head, tail;      /* bytes before `off` and behind off+len that must be filled; they lie at host-head and host+len */
    enum fmt_fill fill;
    void *priv;               /* the format's */
};

/* How clusters are compressed. Zeros: the format's own choice. A level beyond what the method has is its highest. */
struct fmt_encoding {
    unsigned level;
    bool small_window;        /* deflate only: matches reach back 4 KiB at most, for readers that keep no more */
    bool leave_zeros;         /* clusters of zeros are not compressed: len 0, the caller has other ways to write them */
};
/* count clusters of `encode_bytes` at `in`. Cluster i becomes len[i] bytes at out + i * encode_bytes; 0: it does not become smaller. */
struct fmt_encode { const void *in; void *out; uint32_t *len; unsigned count; };

enum {
    FMT_ZERO_UNMAP = 1u << 0,
    FMT_ZERO_ABSENT = 1u << 1,             /* only what is ABSENT; raw formats have nothing of that kind */
    FMT_ZERO_SLOW = 1u << 2,               /* better than to write zeros: see STOR_SLOW */
};

enum fmt_prealloc { FMT_PREALLOC_OFF, FMT_PREALLOC_METADATA, FMT_PREALLOC_FALLOC, FMT_PREALLOC_FULL };

struct fmt_snapshot_info {
    char *id, *name;                       /* owned by the fmt_info */
    uint64_t vm_state_size, disk_size, vm_clock_ns, icount;
    uint32_t date_sec, date_nsec;
    bool has_icount;
};
/* Which snapshot? By id and name (whichever is given, both if both are), or by `any`: that is taken as an id if there is
 * one, else as a name; the other way round with any_name_first. Of several that fit the first in the table. */
struct fmt_snapshot_pick { const char *id, *name, *any; bool any_name_first; };
enum fmt_snapshot_op { FMT_SNAPSHOT_CREATE, FMT_SNAPSHOT_APPLY, FMT_SNAPSHOT_DELETE };
struct fmt_snapshot_req {
    enum fmt_snapshot_op op;
    struct fmt_snapshot_pick pick;         /* APPLY, DELETE */
    const char *name;                      /* CREATE; may be empty, may be there already unless `unique` */
    bool unique;
    uint32_t date_sec, date_nsec;          /* CREATE */
    /* APPLY: called when it is known what is applied, and before anything changes; size: of the disk afterwards. Without it an
     * image with persistent bitmaps is refused. *touched (may be NULL): the disk may have become the snapshot, whatever is returned. */
    int (*before)(struct co *co, void *arg, uint64_t size, struct byre_err *err);
    void *arg;
    bool *touched;
};
/* What info shows of an encrypted image. Strings are constants. */
struct fmt_crypt_info {
    const char *format;                    /* "luks", "aes"; the fields below: LUKS only */
    const char *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash_alg, *hash_alg;   /* "aes-256", "xts", ...; NULL: none */
    char uuid[41];
    uint64_t payload_offset, master_key_iters;
    bool detached;                         /* the header is in a file of its own */
    struct { bool active; uint64_t iters, key_offset, stripes; } slots[8];
};
struct fmt_bitmap_info { char *name; uint32_t granularity; bool in_use, auto_on; };

/* What `info` and the graph want to know. Filled by ops->info; fmt_info_fini frees. */
struct fmt_info {
    uint64_t virtual_size, cluster_size;   /* cluster_size 0: none */
    bool dirty, corrupt;
    char *backing_name, *backing_format;   /* as stored; NULL = none */
    uint64_t vm_state_offset;              /* guest offset where VM state is kept; 0 = format has none */
    /* qcow2 */
    bool is_qcow2, lazy_refcounts, extended_l2, has_data_file, data_file_raw, encrypted;
    unsigned version, refcount_bits;
    const char *compression;               /* "zlib", "zstd" */
    char *data_file;
    struct fmt_snapshot_info *snapshots; size_t snapshot_count;
    struct fmt_bitmap_info *bitmaps; size_t bitmap_count;    /* without the damaged ones: */
    size_t bitmaps_damaged;
    uint32_t bitmaps_outdated;             /* in an image that a program has written which knows nothing of them */
    uint32_t generation; bool others_wrote; /* see docs/man/byre-info.1; 0: it has none */
    struct fmt_crypt_info *crypt;          /* owned; NULL: not encrypted */
};
void fmt_info_fini(struct fmt_info *info);
void fmt_snapshot_fini(struct fmt_snapshot_info *s);
static inline bool fmt_snapshot_picks(const struct fmt_snapshot_pick *p) { return p->id || p->name || p->any; }

/* Result of a check, in the peer's terms (FEATURES 5.018). */
struct fmt_check_result {
    uint64_t corruptions, leaks, check_errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    uint64_t image_end_offset;
    bool has_stats;
};
enum { FMT_FIX_LEAKS = 1u << 0, FMT_FIX_ERRORS = 1u << 1 };
/* One finding, told as it is found (from the home loop; must not suspend). id is stable, e.g. "Q2_LEAK". */
typedef void fmt_finding_fn(void *arg, bool fixed, const char *id, const char *text);
struct fmt_check_opts {
    unsigned fix;                          /* FMT_FIX_* */
    fmt_finding_fn *finding; void *arg;    /* may be NULL */
    void (*progress)(void *arg, uint64_t done, uint64_t total);   /* may be NULL */
    /* Between steps of a few milliseconds; in a check without `fix` and a scrub. In a scrub it may suspend as long as it likes. < 0: it ends with that. May be NULL */
    int (*step)(struct co *co, void *arg);
    /* scrub only: does `step` stand still for nobody knows how long, because somebody has paused it? May be NULL: never */
    bool (*stands)(void *arg);
};

/* Damage that was met in use. fatal: every request is refused from now on, and the image is marked where its format has a mark. */
struct fmt_corruption { const char *text; uint64_t off, bytes; bool has_place, fatal; };     /* host bytes that it is about */

/* Kinds of metadata that guest writes are kept away from (FEATURES 1.111), as bits of fmt_open_opts.overlap_check. */
enum {
    FMT_OVERLAP_HEADER = 1u << 0, FMT_OVERLAP_ACTIVE_L1 = 1u << 1, FMT_OVERLAP_ACTIVE_L2 = 1u << 2, FMT_OVERLAP_REFCOUNT_TABLE = 1u << 3,
    FMT_OVERLAP_REFCOUNT_BLOCK = 1u << 4, FMT_OVERLAP_SNAPSHOT_TABLE = 1u << 5, FMT_OVERLAP_INACTIVE_L1 = 1u << 6, FMT_OVERLAP_INACTIVE_L2 = 1u << 7,
    FMT_OVERLAP_BITMAP_DIRECTORY = 1u << 8,
    FMT_OVERLAP_CONSTANT = FMT_OVERLAP_HEADER | FMT_OVERLAP_ACTIVE_L1 | FMT_OVERLAP_REFCOUNT_TABLE | FMT_OVERLAP_SNAPSHOT_TABLE | FMT_OVERLAP_BITMAP_DIRECTORY,
    FMT_OVERLAP_CACHED = FMT_OVERLAP_CONSTANT | FMT_OVERLAP_ACTIVE_L2 | FMT_OVERLAP_REFCOUNT_BLOCK | FMT_OVERLAP_INACTIVE_L1,
    FMT_OVERLAP_ALL = FMT_OVERLAP_CACHED | FMT_OVERLAP_INACTIVE_L2,
    FMT_OVERLAP_GIVEN = 1u << 31,          /* else the default, CACHED */
};

/* Compaction of an image that is in use. */
struct fmt_compact_opts {
    bool look_for_zeros;                   /* all data is read: clusters that hold zeros alone give their space up */
    void *arg;
    void (*progress)(void *arg, uint64_t done, uint64_t total);      /* bytes; may be NULL */
    /* Between steps of a few milliseconds: `bytes` were read or moved. May suspend as long as it likes. < 0: it ends with that,
     * and what was moved stays moved. May be NULL. */
    int (*step)(struct co *co, void *arg, uint64_t bytes);
};
struct fmt_compact_result {
    uint64_t moved, zeroed;                /* bytes of clusters */
    uint64_t length_before, length_after;  /* bytes of the file, */
    uint64_t allocated_before, allocated_after;    /* and what it occupies */
};

/* What an image may ask of whoever opens it. */
struct fmt_host {
    /* The external data file: `name` as the image records it, NULL when it records none; the opener's own choice wins. It comes
     * opened and locked; the image closes it. */
    int (*open_data)(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err);
    void *arg;
    bool *kept;                            /* creation over a detached luks header: set when the file holds a whole header, the old or the new
                                            * one, also if creation fails: it is not to be emptied then. May be NULL */
    bool has_header;                       /* luks: the opener has a store for its header, which open_data (name: NULL) hands out */
};

enum fmt_key_state { FMT_KEY_UNSET, FMT_KEY_ACTIVE, FMT_KEY_INACTIVE };

/* A named dirty bitmap of a disk: in memory only, or kept in the image (persistent). The lists belong to the node that has
 * the image; all of it is the home loop's, but for the bits of `bits`, which requests set from any loop. */
struct fmt_bitmap {
    struct fmt_bitmap *next;
    char *name;
    unsigned granularity_bits;
    bool persistent;
    bool enabled;                          /* records changes */
    bool inconsistent;                     /* in use by somebody who did not end well: what it says is worth nothing */
    const char *bad;                       /* its entry in the image is damaged: why; NULL: it is sound */
    bool changed;                          /* content differs from what the image holds, other than by recording */
    uint32_t slot;                         /* the format's */
    unsigned busy;                         /* users that nobody may disturb: jobs, exports */
    struct dirty *bits;                    /* NULL: not loaded */
    struct dirty *since;                   /* records as `bits` does, from when a job began that has to do with this one; NULL: there is none */
};

/* Regions of the disk that may be changed at once; before another is changed, the format is asked (bitmap_enter). */
struct fmt_ahead { unsigned region_bits; uint64_t regions; _Atomic uint64_t entered[]; };
static inline bool fmt_ahead_entered(const struct fmt_ahead *a, uint64_t off, uint64_t len)
{
    for (uint64_t r = off >> a->region_bits; len && r <= (off + len - 1) >> a->region_bits && r < a->regions; r++)
        if (!(atomic_load_explicit(&a->entered[r / 64], memory_order_acquire) >> (r % 64) & 1))
            return false;
    return true;
}

/* The part of its file that a raw image shows (FEATURES 3.026). */
struct fmt_window {
    bool on;
    uint64_t off;                          /* where it begins */
    bool fixed;                            /* it has `size` bytes, a multiple of 512, and keeps them; else it goes to the end */
    uint64_t size;
};

struct fmt_open_opts {
    bool read_only;
    bool check_mode;                       /* opened for check/repair: tolerate what repair mends (dirty, corrupt, refcount table) */
    bool info_only;                        /* metadata is only reported: nothing that info does not print is loaded */
    uint64_t cache_bytes;                  /* metadata cache budget; 0 = default: small, and larger where it is seen to be too small */
    uint64_t cache_clean_ms;               /* cached tables that were not used for so long are dropped; 0 = never (1.127) */
    bool below;                            /* a layer below another one */
    uint64_t frontier_bytes;               /* step of the zeroed frontier (D4); 0 = default, UINT64_MAX = off */
    struct fmt_snapshot_pick snapshot;     /* show this internal snapshot, with its size; read-only. All NULL: the disk itself */
    bool discard_no_punch;                 /* freed clusters are not punched in the file */
    bool snapshots_no_punch;               /* nor what a snapshot gives up that is deleted or set back to (pass-discard-snapshot) */
    bool tables_no_punch;                  /* nor freed tables (pass-discard-other) */
    bool discard_no_unref;                 /* discard gives back the bytes of a cluster, and keeps the cluster (1.129) */
    uint32_t l2_entry_bytes;               /* unit in which mapping tables are cached: a power of two; 0 = default */
    bool unclean_ok;                       /* an image that was not closed cleanly may be served at once: the caller then runs
                                            * ops->scrub. Else it is repaired before open returns */
    signed char lazy_refcounts;            /* 1: on, -1: off, 0: as the image says */
    const struct fmt_host *host;           /* used during the call only; NULL: images that need it are refused */
    bool no_data;                          /* guest data is not read or written: an encrypted image needs no secret */
    struct secret_set *secrets;            /* passphrases by id; used during the call only. NULL: none */
    const char *key_secret;                /* id of the passphrase; NULL: none */
    const char *encrypt_format;            /* what the opener says it is ("luks", "aes"); NULL: nothing */
    struct fmt_window window;              /* raw only; others ignore it */
    unsigned overlap_check;                /* FMT_OVERLAP_* with _GIVEN; 0 = default */
    /* Home loop, must not suspend: damage was met. At most once. May be NULL */
    void (*corrupted)(void *arg, const struct fmt_corruption *c); void *corrupted_arg;
    /* The same, at a close that succeeds: space that nothing uses is still counted, and found by the next check. May be NULL */
    void (*leaked)(void *arg, uint64_t bytes);     /* arg: corrupted_arg */
    /* The same, when bitmaps are listed: the image holds so many that it does not stand for any more, because a program has written it that
     * does not know of them. May be NULL */
    void (*outdated)(void *arg, uint32_t bitmaps); /* arg: corrupted_arg */
    uint64_t bitmap_region_bytes;          /* what a write marks ahead in persistent bitmaps, a power of two; 0 = default */
};

struct fmt_encrypt {
    char *format, *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash_alg, *hash_alg, *key_secret;
    uint64_t iter_time_ms;
    bool legacy;
    bool detached;                         /* luks: only a header is made (FEATURES 3.062) */
    /* for amend: key slots (FEATURES 1.074) */
    enum fmt_key_state state;
    uint32_t keyslot;
    char *new_secret, *old_secret, *secret;        /* ids; secret: opens a key slot, where it is not what the image was opened with */
};

/* Creation options: one struct for every format, filled from the option rows of create_rows.c by base/opt. */
struct fmt_create_opts {
    uint64_t size;                         /* virtual size in bytes, already rounded up to 512 */
    char *backing_file, *backing_fmt;
    uint64_t cluster_size;                 /* 0 = default */
    unsigned version;                      /* qcow2: 2 or 3 */
    unsigned refcount_bits;
    bool lazy_refcounts, extended_l2, data_file_raw, nocow;
    char *data_file, *compression_type;
    struct fmt_encrypt encrypt;
    struct secret_set *secrets;            /* for encrypt.key_secret; not owned */
    const struct fmt_host *host;           /* open_data: makes data_file, empty and open for writing */
    enum fmt_prealloc prealloc;
    uint64_t extent_size_hint, table_size;
    char *format;                          /* amend: the format that the image becomes */
};

struct fmt_measure { uint64_t required, fully_allocated, bitmaps; bool has_bitmaps; };

/* What changes in an image: options of creation, as far as they were stated. */
struct fmt_amend_opts {
    const struct fmt_create_opts *o;
    bool (*given)(void *arg, const char *option); void *arg;      /* was the option of this name stated? */
    bool force;                            /* what may lose something is wanted all the same */
    bool rebase;                           /* backing_file and backing_fmt (NULL: none) may be changed, and nothing else is */
    bool dry_run;                          /* with rebase: only says whether they could be */
    const char *partial;                   /* with rebase: nothing is changed but that the image says of itself that it makes sense through this one
                                            * only (fmt_image.partial). NULL: it is not about that */
    const char *partial_token;             /* beside it; may be NULL */
    const char *token;                     /* with rebase: nothing is changed but the image's own token, if it has none yet: 32 hex digits */
    void (*progress)(void *arg, uint64_t done, uint64_t total); void *progress_arg;   /* may be NULL */
    /* Sets another size: the graph's part of it included. */
    int (*resize)(struct co *co, void *arg, uint64_t size, struct byre_err *err); void *resize_arg;
};

/* What the first bytes of an image say about other files, read without opening it: by those who look at many (src/tree). */
struct fmt_peek {
    uint64_t size;                         /* of the disk, bytes */
    uint32_t snapshots;
    uint64_t name_off; uint32_t name_len;  /* where in the file the name of the backing file stands; name_len 0: it has none */
    char *backing_format, *data_file;      /* owned (fmt_peek_fini); NULL: not stated */
    bool has_data_file;                    /* its guest data lies in another file */
};
void fmt_peek_fini(struct fmt_peek *p);

struct fmt_ops {
    const char *name;                      /* "qcow2" */
    /* Score 0..100 from the first bytes of a file (no I/O). */
    int (*probe)(const uint8_t *buf, size_t len);
    /* buf: the first len bytes of a file of file_bytes. 0: *ret is filled; > 0: so many bytes are needed (more than len, and the file has
     * them); -EINVAL: the header is damaged; -ENOMEM. Pure. NULL: images of the format name no other files. */
    int (*peek)(const uint8_t *buf, size_t len, uint64_t file_bytes, struct fmt_peek *ret);
    /* The image takes the store over on success only. Runs on `home`. */
    int (*open)(struct co *co, struct stor *store, const struct fmt_open_opts *o, struct fmt_image **ret_im, struct byre_err *err);
    int (*map)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
    /* What map() would say, from what is in memory: never suspends, asks no store, reports no damage. Any loop, in a section of the image.
     * -EAGAIN: only map() can say. NULL: it always is so. */
    int (*map_at_hand)(struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e);
    int (*read_encoded)(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v);
    /* Compresses on the CPU pool; looks at nothing in the image that changes. NULL: the format does not compress.
     * Only where encode_bytes is not 0. */
    int (*encode)(struct co *co, struct fmt_image *im, const struct fmt_encoding *how, const struct fmt_encode *e);
    /* Makes the n clusters from `off` on (aligned) what enc[i] decodes to, whatever they were. All of it: allocation, data
     * and entries. -EFBIG: cannot be said in a compressed entry, nothing was done; write the clusters plain. */
    int (*write_encoded)(struct co *co, struct fmt_image *im, uint64_t off, const struct iovec *enc, unsigned n);
    /* NULL, with all that changes an image: the format can only be read; open() refuses to open for writing. */
    int (*write_begin)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w);
    int (*write_commit)(struct co *co, struct fmt_image *im, struct fmt_write *w);   /* consumes w, success or not */
    void (*write_abort)(struct co *co, struct fmt_image *im, struct fmt_write *w);
    /* off and off+len are multiples of `granule` (or the end of the image). -ENOTSUP: write zeros instead; when the range
     * holds whole clusters and parts of others, a part may be zero then. */
    int (*zero)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags);
    int (*discard)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len);
    /* [dst, dst + len) becomes what [src, src + len) is, without a byte being copied: the two share clusters. All of it is whole clusters, and
     * the ranges do not overlap. Bytes done (> 0, from the beginning); 0: the first cluster is to be copied; -ENOTSUP: this image cannot.
     * As a write, durable behind the next flush. NULL: the format cannot. */
    int64_t (*clone)(struct co *co, struct fmt_image *im, uint64_t src, uint64_t dst, uint64_t len);
    int (*flush)(struct co *co, struct fmt_image *im);
    /* Drained. Growing: makes im->size the new one in memory only; the graph then zeroes what a backing image or the
     * rest of the old last cluster would show in [old, new), and calls resize_commit. Shrinking: all is done here. */
    int (*resize)(struct co *co, struct fmt_image *im, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err);
    /* keep: makes the new size durable; else (zeroing failed) the old one is back. NULL: resize was all. */
    int (*resize_commit)(struct co *co, struct fmt_image *im, bool keep, struct byre_err *err);
    /* Internal snapshots: all of it or nothing, durable when it returns 0 (P3). APPLY may change im->size. *ret (may be NULL;
     * fmt_snapshot_fini): the snapshot that was made, applied or deleted. Drained. NULL: the format has none. */
    int (*snapshot)(struct co *co, struct fmt_image *im, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err);
    /* Home, drained. NULL: nothing can be changed. All that can be known before is refused before anything is changed; each change is
     * whole or not there, whatever happens. */
    int (*amend)(struct co *co, struct fmt_image *im, const struct fmt_amend_opts *a, struct byre_err *err);
    /* Home, drained: every guest byte becomes ABSENT, and the space is given back; bitmaps do not notice. Durable when it returns 0. A
     * crash leaves any part of it. NULL: the format cannot, or has no backing image. */
    int (*make_empty)(struct co *co, struct fmt_image *im, struct byre_err *err);
    /* off and off + len as for zero. All that is whole in the range becomes ABSENT and gives its space back, beside reads; nobody writes to
     * the image meanwhile. Bitmaps do not notice. Durable when it returns 0, unless it is `later`: then behind the next flush. A crash
     * leaves any part of it. NULL: the format cannot. */
    int (*forget)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, bool later);
    /* Bytes at the end of the file that are there for clusters to come: holes, most likely, that no entry names. NULL: none. */
    uint64_t (*reserved)(struct co *co, struct fmt_image *im);
    int (*info)(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err);
    int (*check)(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
    /* Check of an image that is in use, on the home loop, beside requests; NULL: the format has none. fix: FMT_FIX_LEAKS or 0;
     * an unclean image is made clean whatever fix says. Damage is counted in ret and left as it is. One at a time, and
     * over before close; resize is refused meanwhile. -EBUSY: one runs. */
    int (*scrub)(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err);
    /* Home: nobody runs a scrub that requests may be waiting for; they go on as they can, or fail. NULL: none ever waits. */
    void (*no_scrub)(struct fmt_image *im);
    /* Moves data from the end of the file into its holes and gives the rest back to the host, on the home loop, beside requests; NULL:
     * the format has none. One at a time, over before close; no scrub, snapshot, resize or amend meanwhile. ret: also when it fails. */
    int (*compact)(struct co *co, struct fmt_image *im, const struct fmt_compact_opts *o, struct fmt_compact_result *ret, struct byre_err *err);
    /* Flushes, ends cleanly, frees im and closes the store. The first error is returned; the image is gone all the same. */
    int (*close)(struct co *co, struct fmt_image *im);
    /* Writes a fresh image into an empty store (length 0 or a device). store NULL: only says whether the options will do. */
    int (*create)(struct co *co, struct stor *store, const struct fmt_create_opts *o, struct byre_err *err);
    /* ---- persistent bitmaps (all NULL: the format keeps none). Home loop, but bitmap_enter. ---- */
    /* The bitmaps that the image holds, as a list that the caller owns from now on (im->bitmaps). Once, right after open. When
     * the image is writable, those that record are loaded and im->ahead is set. */
    int (*bitmaps_open)(struct co *co, struct fmt_image *im, struct byre_err *err);
    /* Reads the content of one (b->bits). One that was read, of an image open for reading: is it still what the image holds? If not it is
     * inconsistent from now on, and its bits stay. */
    int (*bitmap_load)(struct co *co, struct fmt_image *im, struct fmt_bitmap *b, struct byre_err *err);
    /* Drained. Makes the persistent ones of im->bitmaps, and nothing else, what the image holds: durable when it returns 0,
     * as before when not. What is no longer in the list must stay allocated until it has returned. */
    int (*bitmaps_sync)(struct co *co, struct fmt_image *im, struct byre_err *err);
    /* Could all persistent ones that are sound be kept on a disk of `size` bytes? NULL: whenever they are. -E2BIG */
    int (*bitmaps_fit)(struct fmt_image *im, uint64_t size, struct byre_err *err);
    /* Drained, before a resize: should it not end well, no bitmap claims to fit. bitmaps_sync must follow. */
    int (*bitmaps_resizing)(struct co *co, struct fmt_image *im, struct byre_err *err);
    /* Any loop, outside epoch sections of the image: returns when [off, off+len) may be changed, because whatever happens
     * the bitmaps will not have missed it. */
    int (*bitmap_enter)(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len);
    /* Any loop: where the VM state begins, in the guest's address space: behind all that the disk can use of its tables. map and read_encoded
     * answer there too (absent: zeros, whatever lies below). NULL: the format keeps none. */
    uint64_t (*state_at)(const struct fmt_image *im);
    /* Home, drained: mappings up to `end`, which lies behind the disk, can be made from now on; NULL: the state is only read. -EFBIG, -EBUSY,
     * -ENOTSUP: not in this image. */
    int (*state_room)(struct co *co, struct fmt_image *im, uint64_t end);
    /* Sizes for `o` when data_bytes of guest data (in whole clusters, counted by the caller) are written. */
    int (*measure)(const struct fmt_create_opts *o, uint64_t data_clusters_bytes, struct fmt_measure *ret, struct byre_err *err);
};

/* Common head of every open image; formats embed it first. */
struct fmt_image {
    const struct fmt_ops *ops;
    struct stor *store;                    /* the image's own file: metadata */
    struct stor *data;                     /* where plain guest data lies: `store`, a store that decrypts what is in it, or an external data file */
    struct stor *second;                   /* the image's other file, as open_data handed it out: external data, or a header. NULL: it has one file */
    struct rt_loop *home;
    struct epoch *epoch;
    _Atomic uint64_t size;                 /* virtual size in bytes; changes only in resize */
    uint32_t granule;                      /* alignment of zero and discard: cluster or subcluster size; 1 for raw */
    uint32_t cluster;                      /* unit of allocation: cluster size; 1 for raw */
    uint32_t encode_bytes;                 /* what encode() takes: a cluster; 0: this image does not hold compressed clusters */
    bool read_only;
    bool data_raw;                         /* the external data file is a raw image of its own, and stays one */
    bool encrypted;                        /* host offsets say nothing to others; `data` decrypts */
    bool weak_cipher;                      /* the user should be warned (legacy AES) */
    struct dirty_budget *bitmap_budget;    /* of the bits loaded for the owner, who keeps it longer than the image; NULL: no limit */
    struct fmt_bitmap *bitmaps;            /* home loop; closing the image stores the persistent ones, and leaves the list alone */
    _Atomic(struct fmt_ahead *) ahead;     /* NULL: every region may be changed. Replaced only when drained */
    _Atomic bool unclean;                  /* not closed cleanly, and not looked through yet: run ops->scrub */
    char *partial;                         /* what lies below it has been replaced by what this image shows: it must not be opened as a disk of
                                            * its own, but is what it was below this image. NULL: it is whole */
    char *partial_token;                   /* the token of that image, which is recognised by it and not by its name. NULL: by the name */
    char *token;                           /* its own, for images of which that is true. NULL: it has none */
    bool has_backing;                      /* a backing name is recorded (graph sets below_zero when it is not opened) */
    /* Set by graph before the first write: nothing below can supply non-zero bytes at or behind this guest
     * offset (0: no backing image at all; UINT64_MAX: unknown). Lets allocations skip copy-on-write. */
    _Atomic uint64_t below_zero_from;
};

extern const struct fmt_ops fmt_raw_ops, fmt_qcow2_ops, fmt_luks_ops, fmt_qed_ops;
/* NULL when unknown. fmt_nth: iterates, NULL at the end. */
const struct fmt_ops *fmt_by_name(const char *name);
const struct fmt_ops *fmt_nth(unsigned i);
/* Best probe among all formats; raw when none answers. */
const struct fmt_ops *fmt_probe(const uint8_t *buf, size_t len);
/* Name of the format that the ecosystem's programs would see in a file that begins like this, whether or not we
 * read it ("vmdk"); NULL: none. buf: at least the first 512 bytes, or the whole file. */
const char *fmt_signature(const uint8_t *buf, size_t len);

#endif
