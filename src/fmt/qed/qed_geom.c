/* SPDX-License-Identifier: MIT
 *
 * qed_geom.c: geometry of a QED image.
 *
 * Purpose      Derives everything that follows from three header fields.
 * Owns         Nothing.
 * Invariants   I1 No sum or product overflows for any geometry that the format allows (64 MiB clusters, tables of 16).
 * Order        None: no I/O.
 * Concurrency  Pure functions.
 * Failure      None; geometry out of range is the caller's mistake.
 * Tests        qed_header_test.c
 */
#include "fmt/qed/qed_geom.h"

#define SIZE_LIMIT ((uint64_t)INT64_MAX & ~511ull)

bool qed_cluster_size_ok(uint64_t v) { return is_pow2(v) && v >= 1ull << QED_CLUSTER_BITS_MIN && v <= 1ull << QED_CLUSTER_BITS_MAX; }

bool qed_table_size_ok(uint64_t v) { return is_pow2(v) && v <= QED_TABLE_SIZE_MAX; }        /* 1 is fine, although the peer refuses it */

struct qed_geom qed_geom_make(uint64_t cluster_size, uint32_t table_size, uint32_t header_clusters)
{
    ASSERT(qed_cluster_size_ok(cluster_size) && qed_table_size_ok(table_size));
    struct qed_geom g = { .cluster_size = cluster_size, .table_clusters = table_size };
    g.cluster_bits = (uint32_t)__builtin_ctzll(cluster_size);
    g.header_bytes = max_u64(header_clusters, 1) * cluster_size;
    g.table_bytes = table_size * cluster_size;
    g.entries = g.table_bytes / 8;
    g.l2_span = g.entries * cluster_size;
    g.size_max = g.entries > SIZE_LIMIT / g.l2_span ? SIZE_LIMIT : g.entries * g.l2_span;
    return g;
}
