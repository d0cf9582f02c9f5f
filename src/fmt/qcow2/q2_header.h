/* SPDX-License-Identifier: MIT
 *
 * q2_header.h: is this image acceptable, and what does its header say? Parsing and emitting are pure; changing
 * a header on disk goes sector by sector (Q18).
 */
#ifndef Q2_HEADER_H
#define Q2_HEADER_H

#include <stddef.h>

#include "base/err.h"
#include "fmt/qcow2/q2_geom.h"

struct q2_unknown_ext { uint32_t type, len; uint8_t *data; };   /* kept byte for byte (1.022) */

struct q2_header {
    uint32_t version, cluster_bits, crypt_method, refcount_order, header_len;
    uint64_t size;
    uint32_t l1_size; uint64_t l1_off;
    uint64_t rt_off; uint32_t rt_clusters;
    uint32_t nb_snapshots; uint64_t snapshots_off;
    uint64_t incompat, compat, autoclear;
    uint8_t compression_type;                 /* 0 zlib, 1 zstd */
    uint8_t pad[7];                           /* bytes 105..111, kept as found (1.002) */
    char *backing_name, *backing_format, *data_file;       /* NULL = absent */
    bool has_bitmaps;                         /* the extension is there (trust it only with the autoclear bit) */
    uint32_t bitmap_count; uint64_t bitmap_dir_off, bitmap_dir_bytes;
    uint32_t bitmaps_ext_off, bitmaps_ext_len;   /* byte offset of the extension's data in the file, 0 = none; its length as found */
    bool has_crypto; uint64_t crypto_off, crypto_len;
    bool has_frontier; uint64_t frontier_start, frontier_end; uint32_t frontier_ext_off;   /* ours; valid only with its autoclear bit */
    bool has_supersets; uint32_t superset_count, superset_ext_off;   /* ours; valid only with its autoclear bit */
    uint32_t generation;                      /* in the same extension, valid whether the bit is there or not (q2_generation.c); 0: none */
    struct q2_unknown_ext *unknown; size_t unknown_count;
    uint8_t *tail_bytes; uint32_t tail_len;   /* header bytes past the fields we know (1.002) */
    char *unknown_feature;                    /* name (from the table) of the first unknown incompatible bit, if any */
};

/* Parses the first `len` bytes of the file (at least min(cluster, file length)). file_bytes: length of the file.
 * name: for messages. check_mode: accept what a repair can mend (refcount table missing or outside). */
MUST_USE int q2_header_parse(const uint8_t *buf, size_t len, uint64_t file_bytes, bool check_mode, const char *name, struct q2_header *ret, struct byre_err *err);
/* q2_peek.c: as fmt_ops.peek. */
struct fmt_peek;
MUST_USE int q2_peek(const uint8_t *buf, size_t len, uint64_t file_bytes, struct fmt_peek *ret);
void q2_header_fini(struct q2_header *h);
/* Can the image be read and written (not only reported)? Pure. */
MUST_USE int q2_header_supported(const struct q2_header *h, const char *name, struct byre_err *err);
/* Is a name stored in an image acceptable as text: no NUL, no control bytes? Pure. */
bool q2_name_ok(const uint8_t *p, size_t len);
/* Bytes of the whole first cluster (buf has cluster_size bytes, zeroed by the call). Order 1.016; the feature name
 * table last so that the other extensions stay put (Q18). reserve_frontier: room for our extension (version 3).
 * -ENOSPC: does not fit; buf is then unspecified. Pure. */
MUST_USE int q2_header_emit(const struct q2_header *h, bool reserve_frontier, uint8_t *buf, size_t buf_bytes, struct byre_err *err);
/* The same with a choice. name_off: where the backing name goes, behind the extensions; 0: right there. */
struct q2_header_layout { bool frontier, names; uint32_t name_off; };
MUST_USE int q2_header_emit_as(const struct q2_header *h, const struct q2_header_layout *l, uint8_t *buf, size_t buf_bytes, struct byre_err *err);
/* What the extensions Q2_EXT_PARTIAL and Q2_EXT_TOKEN say (owned; NULL: nothing). A mark that makes no sense names "another image". */
struct q2_parts { char *name, *through, *own; };
MUST_USE int q2_header_parts(const struct q2_header *h, struct q2_parts *ret);
void q2_parts_fini(struct q2_parts *p);
/* Which bytes of a first cluster mean something: [0, ext_end) and the backing name. Pure; survives every value. */
struct q2_header_use { uint64_t ext_end, name_off, name_end; };
struct q2_header_use q2_header_used(const uint8_t *buf, size_t buf_bytes);

#endif
