/* SPDX-License-Identifier: MIT
 *
 * q2_geom.h: what follows from the header (immutable while open) and the only place that knows the masks of
 * table entries. Pure: no I/O, nothing suspends. Hostile bytes give errors, never asserts.
 */
#ifndef Q2_GEOM_H
#define Q2_GEOM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "fmt/qcow2/q2_ondisk.h"

/* Limits: a file beyond them is refused (SECURITY.md) */
#define Q2_CLUSTER_BITS_MIN 9u
#define Q2_CLUSTER_BITS_MAX 21u
#define Q2_L1_BYTES_MAX (32u << 20)
#define Q2_RT_BYTES_MAX (8u << 20)
#define Q2_SNAPSHOTS_MAX 65536u
#define Q2_SNAPSHOT_TABLE_MAX (64u << 20)
#define Q2_SNAPSHOT_EXTRA_MAX 1024u
#define Q2_BITMAPS_MAX 65535u
#define Q2_BITMAP_DIR_MAX (64u << 20)
#define Q2_NAME_MAX 1023u
#define Q2_EXTENSIONS_MAX 64u

#define Q2_SUBCLUSTERS 32u                 /* per cluster, with extended L2 entries */
#define Q2_SUB_ALL 0xffffffffu
#define Q2_EXT_L2_BITS_MIN 14u             /* smallest clusters that may have subclusters */

/* Kinds of number that must not be mixed. */
typedef struct { uint64_t v; } q2_goff;      /* guest byte offset */
typedef struct { uint64_t v; } q2_hoff;      /* host byte offset */

struct q2_geom {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t cluster_size;
    uint32_t l2_entry_bytes;                  /* 8; 16 with extended L2 */
    uint32_t l2_bits;                         /* log2 of entries per L2 table */
    uint32_t sub_bits;                        /* log2 of bytes per subcluster; cluster_bits without extended L2 */
    uint32_t refcount_order, refcount_bits;
    uint64_t refcount_max;
    uint32_t block_bits;                      /* log2 of refcounts per refcount block */
    uint32_t csize_shift;                     /* compressed descriptor: x of the specification */
    uint64_t csize_mask, coff_mask;
    bool zero_clusters;                       /* version 3 */
    bool ext_l2;
    bool data_file;                           /* guest data lies in another file, at the guest's offsets (1.078); set by the reader of the header */
};

/* version 2/3, cluster_bits 9..21 and refcount_order 0..6 already checked (else asserts). */
struct q2_geom q2_geom_make(uint32_t version, uint32_t cluster_bits, uint32_t refcount_order, bool ext_l2);

static inline uint64_t q2_l1_index(const struct q2_geom *g, uint64_t guest) { return guest >> (g->cluster_bits + g->l2_bits); }
static inline uint64_t q2_l2_index(const struct q2_geom *g, uint64_t guest) { return (guest >> g->cluster_bits) & ((1ull << g->l2_bits) - 1); }
static inline uint64_t q2_l2_span(const struct q2_geom *g) { return 1ull << (g->cluster_bits + g->l2_bits); }   /* guest bytes per L2 table */
static inline uint64_t q2_in_cluster(const struct q2_geom *g, uint64_t off) { return off & (g->cluster_size - 1); }
/* L1 entries that a disk of `size` bytes needs. */
static inline uint64_t q2_l1_entries(const struct q2_geom *g, uint64_t size) { return div_up(size, q2_l2_span(g)); }

enum q2_kind { Q2_UNALLOCATED, Q2_ZERO_PLAIN, Q2_ZERO_ALLOC, Q2_NORMAL, Q2_COMPRESSED };

/* With extended L2 the kind tells of the host cluster only: UNALLOCATED (there is none), NORMAL or COMPRESSED; what the
 * guest reads tell the bits, one per subcluster. alloc: its bytes are in the host cluster. zero: it reads zeros. Neither:
 * the layer below answers, whether there is a host cluster or not. Compressed: both 0. Without extended L2: both 0. */
struct q2_l2e {
    enum q2_kind kind;
    bool copied;
    uint32_t alloc, zero;
    uint64_t host;            /* NORMAL, ZERO_ALLOC: cluster offset; COMPRESSED: byte offset */
    uint64_t comp_bytes;      /* COMPRESSED: bytes from `host` to the end of the last 512-byte sector named */
};
/* false: reserved bits, unaligned offset, or a flag that this version does not have (raw is in host order). */
bool q2_l2e_decode(const struct q2_geom *g, uint64_t raw, struct q2_l2e *ret);
/* Is it a standard entry (with or without the zero flag) whose host offset, 0 for none, is all there is to it? Short form
 * of the decoder for passes over whole tables: false says nothing but "look closely". */
static inline bool q2_l2e_plain(const struct q2_geom *g, uint64_t raw, uint64_t *ret_host)
{
    uint64_t odd = ~(Q2_L2E_OFF | Q2_E_COPIED | (g->zero_clusters && !g->ext_l2 ? Q2_E_ZERO : 0)) | (Q2_L2E_OFF & (g->cluster_size - 1));
    *ret_host = raw & Q2_L2E_OFF;
    return !(raw & odd);
}
uint64_t q2_l2e_encode(const struct q2_geom *g, const struct q2_l2e *e);
/* The same for an extended entry: raw is its first half, bits its second (1.040). false also for bits that contradict one
 * another: a subcluster both allocated and zero, allocated without a host cluster, or any bit of a compressed cluster. */
bool q2_l2x_decode(const struct q2_geom *g, uint64_t raw, uint64_t bits, struct q2_l2e *ret);
uint64_t q2_l2x_encode(const struct q2_geom *g, const struct q2_l2e *e, uint64_t *ret_bits);
static inline bool q2_entry_empty(const struct q2_l2e *e) { return e->kind == Q2_UNALLOCATED && !e->copied && !e->zero; }
/* What the guest reads in subcluster i of an entry that is not compressed, and for how many from there on (> 0). */
enum q2_sub { Q2_SUB_ABSENT, Q2_SUB_ZERO, Q2_SUB_DATA };
enum q2_sub q2_sub_state(const struct q2_l2e *e, uint32_t i, uint32_t *ret_run);
/* Subclusters that the guest bytes [from, to) of a cluster touch, and those that lie in them whole. from < to. */
uint32_t q2_sub_touched(const struct q2_geom *g, uint64_t from, uint64_t to);
uint32_t q2_sub_inside(const struct q2_geom *g, uint64_t from, uint64_t to);

struct q2_l1e { uint64_t l2_off; bool copied; };   /* l2_off 0: no table */
bool q2_l1e_decode(const struct q2_geom *g, uint64_t raw, struct q2_l1e *ret);
static inline uint64_t q2_l1e_encode(uint64_t l2_off, bool copied) { return l2_off | (l2_off && copied ? Q2_E_COPIED : 0); }
/* Refcount table entry -> offset of the block (0: none). false: reserved bits or unaligned. */
bool q2_rte_decode(const struct q2_geom *g, uint64_t raw, uint64_t *ret_off);

/* Refcount i of a block in disk order (any width; sub-byte widths pack from the low bits up). */
uint64_t q2_refcount_get(const struct q2_geom *g, const void *block, uint64_t i);
void q2_refcount_put(const struct q2_geom *g, void *block, uint64_t i, uint64_t value);

/* Is [off, off + entries*entry_bytes) an acceptable table: aligned, not over max_bytes, below 2^56, no overflow? */
bool q2_table_ok(const struct q2_geom *g, uint64_t off, uint64_t entries, uint32_t entry_bytes, uint64_t max_bytes);

#endif
