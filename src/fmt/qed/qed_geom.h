/* SPDX-License-Identifier: MIT
 *
 * qed_geom.h: the arithmetic of a QED image: sizes, indexes, limits and what a table entry says. Pure.
 */
#ifndef QED_GEOM_H
#define QED_GEOM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "fmt/qed/qed_ondisk.h"

struct qed_geom {
    uint32_t cluster_bits;
    uint32_t table_clusters;
    uint64_t cluster_size;
    uint64_t header_bytes;                        /* where regular clusters begin */
    uint64_t table_bytes, entries;                /* of the L1 table and of each L2 table; entries is a power of two */
    uint64_t l2_span;                             /* guest bytes below one L2 table, at most 2^53 */
    uint64_t size_max;                            /* largest virtual size; a multiple of 512 below 2^63 */
};

/* cluster_size, table_size: powers of two in range. header_clusters: as in the header; 0 counts as 1, for the header is there. */
struct qed_geom qed_geom_make(uint64_t cluster_size, uint32_t table_size, uint32_t header_clusters);
bool qed_cluster_size_ok(uint64_t v);
bool qed_table_size_ok(uint64_t v);

static inline uint64_t qed_l1_index(const struct qed_geom *g, uint64_t guest) { return guest / g->l2_span; }
static inline uint64_t qed_l2_index(const struct qed_geom *g, uint64_t guest) { return guest >> g->cluster_bits & (g->entries - 1); }
static inline uint64_t qed_in_cluster(const struct qed_geom *g, uint64_t guest) { return guest & (g->cluster_size - 1); }
/* L1 entries that a disk of this size uses: at most 2^21 (size_max and the size of a table both bound it). */
static inline uint64_t qed_l1_used(const struct qed_geom *g, uint64_t size) { return div_up(size, g->l2_span); }

/* Whole clusters in a file: what lies behind them belongs to nobody (2.021). */
static inline uint64_t qed_file_end(const struct qed_geom *g, uint64_t file_bytes) { return round_down(file_bytes, g->cluster_size); }

enum qed_entry { QED_ABSENT, QED_ZERO, QED_POINTER, QED_BAD };
/* An entry of an L2 table in host order. file_end: of qed_file_end; a cluster must lie before it. */
static inline enum qed_entry qed_entry_kind(const struct qed_geom *g, uint64_t v, uint64_t file_end)
{
    if (v == 0)
        return QED_ABSENT;
    if (v == 1)
        return QED_ZERO;
    return is_aligned(v, g->cluster_size) && v >= g->header_bytes && range_inside(v, g->cluster_size, file_end) ? QED_POINTER : QED_BAD;
}
/* Of the L1 table: the whole L2 table must lie in the file; there is no zero table. */
static inline enum qed_entry qed_table_kind(const struct qed_geom *g, uint64_t v, uint64_t file_end)
{
    if (v == 0)
        return QED_ABSENT;
    return is_aligned(v, g->cluster_size) && v >= g->header_bytes && range_inside(v, g->table_bytes, file_end) ? QED_POINTER : QED_BAD;
}

#endif
