/* SPDX-License-Identifier: MIT
 *
 * image.c: lays out the initial images.
 *
 * Purpose      Deterministic qcow2 files for each geometry, rich in what can go wrong.
 * Owns         struct sim_image's arrays.
 * Invariants   B1  The image passes a check without a finding: counts are made from the references laid out.
 *              B2  Free clusters between used ones hold old guest bytes of another place (SIM_GEN_JUNK).
 * Order        None.
 * Concurrency  One thread.
 * Failure      Asserts: the input is the table of geometries below.
 * Tests        tests/crash: every geometry is checked by the engine, by audit.c and by the peer before it is used
 */
#include "sim/image.h"

#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "fmt/qcow2/q2_header.h"
#include "sim/luks.h"
#include "sim/mem.h"
#include "sim/model.h"

#define K 1024ull
#define M (1024ull * K)

static const struct sim_geom geoms[] = {
    { .name = "c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 184 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .clean = true, .windows = 1, .zeros = true, .frontier = 6 * K, .no_holes = true, .beyond = true, .floor = 7500 },
    { .name = "c512-backing", .version = 3, .cluster_bits = 9, .refcount_order = 3, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .backing = 96 * K, .zeros = true, .frontier = 4 * K, .floor = 7500 },
    { .name = "c512-rt", .version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 64 * K, .size_max = 96 * K,
      .window = { { 0, 96 * K } }, .windows = 1, .snapshot = true, .fill_to = 2 * M - 3 * K, .frontier = 2 * K,
      .one_write_space = true, .no_holes = true, .floor = 4000 },
    { .name = "c512-block", .version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 64 * K, .size_max = 96 * K,
      .window = { { 0, 96 * K } }, .windows = 1, .snapshot = true, .fill_to = 256 * K - 2 * K, .frontier = 2 * K,
      .one_write_space = true, .no_holes = true, .floor = 7500 },
    { .name = "c512-v2", .version = 2, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .backing = 192 * K, .frontier = 4 * K, .floor = 7500 },
    { .name = "c512-snap", .version = 3, .cluster_bits = 9, .refcount_order = 2, .size = 128 * K, .size_max = 160 * K,
      .window = { { 0, 160 * K } }, .clean = true, .windows = 1, .snapshot = true, .zeros = true, .frontier = 4 * K, .one_write_space = true,
      .floor = 7500 },
    { .name = "c4k", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 2 * M + 60 * K, .size_max = 4 * M + 128 * K,
      .window = { { 0, 128 * K }, { 2 * M - 64 * K, 192 * K }, { 4 * M - 64 * K, 192 * K } }, .clean = true, .windows = 3, .zeros = true, .frontier = 32 * K,
      .no_holes = true, .beyond = true, .floor = 7500 },
    { .name = "c4k-rc1", .version = 3, .cluster_bits = 12, .refcount_order = 0, .size = 256 * K, .size_max = 384 * K,
      .window = { { 0, 384 * K } }, .windows = 1, .backing = 200 * K, .packs = true, .frontier = 16 * K, .block = 512, .floor = 7500 },
    { .name = "c4k-comp", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .compressed = true, .packs = true, .snapshot = true, .zeros = true, .frontier = 32 * K, .one_write_space = true,
      .floor = 7500 },
    { .name = "c4k-comp1", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .compressed = true, .packs = true, .zeros = true, .frontier = 16 * K, .no_holes = true, .floor = 7500 },
    { .name = "c512-comp", .version = 3, .cluster_bits = 9, .refcount_order = 3, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .backing = 64 * K, .compressed = true, .packs = true, .zeros = true, .frontier = 4 * K, .floor = 7500 },
    { .name = "c64k-zstd", .version = 3, .cluster_bits = 16, .refcount_order = 4, .size = 1 * M, .size_max = 1280 * K,
      .window = { { 0, 1280 * K } }, .windows = 1, .compressed = true, .packs = true, .zstd = true, .frontier = 256 * K, .no_holes = true, .floor = 7500 },
    { .name = "c4k-bitmap", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .bitmap = true, .bitmaps = true, .bitmap_region = 32 * K, .zeros = true, .frontier = 32 * K,
      .one_write_space = true, .floor = 7500 },
    { .name = "c4k-first", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .bitmaps = true, .bitmap_region = 64 * K, .other_ext = 344, .frontier = 16 * K, .no_holes = true,
      .floor = 7500 },
    { .name = "c4k-across", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .bitmap = true, .bitmaps = true, .bitmap_region = 32 * K, .header_tail = 376, .frontier = 32 * K,
      .one_write_space = true, .floor = 4000 },
    { .name = "c4k-across-full", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .bitmap = true, .bitmaps = true, .bitmap_region = 32 * K, .header_tail = 376, .other_ext = 2900,
      .header_full = true, .frontier = 32 * K, .one_write_space = true, .floor = 3000 },
    { .name = "c512-bitmap", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 2 * M + 60 * K, .size_max = 4 * M + 64 * K,
      .window = { { 0, 64 * K }, { 2 * M - 32 * K, 96 * K }, { 4 * M - 32 * K, 96 * K } }, .windows = 3, .bitmap = true, .bitmaps = true,
      .bitmap_region = 32 * K, .zeros = true, .frontier = 6 * K, .floor = 7500 },
    { .name = "c64k-v2", .version = 2, .cluster_bits = 16, .refcount_order = 4, .size = 1 * M, .size_max = 1280 * K,
      .window = { { 0, 1280 * K } }, .windows = 1, .backing = 512 * K, .frontier = 256 * K, .floor = 7500 },
    { .name = "c64k-rc64", .version = 3, .cluster_bits = 16, .refcount_order = 6, .size = 1 * M, .size_max = 1280 * K,
      .window = { { 0, 1280 * K } }, .windows = 1, .zeros = true, .frontier = 256 * K, .no_punch = true, .no_holes = true, .floor = 7500 },
    { .name = "c4k-luks", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .backing = 200 * K, .zeros = true, .luks = true, .frontier = 32 * K, .floor = 7500 },
    { .name = "c512-luks", .version = 2, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .luks = true, .frontier = 4 * K, .block = 4096, .floor = 4000 },
    { .name = "c512-hurt", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 128 * K,
      .window = { { 0, 128 * K } }, .windows = 1, .zeros = true, .frontier = 4 * K, .one_write_space = true, .hurt = true, .floor = 1500 },
    { .name = "c4k-hurt", .version = 2, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 256 * K, .snapshot = true, .frontier = 32 * K, .one_write_space = true, .hurt = true,
      .floor = 1500 },
    { .name = "lazy-c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .zeros = true, .frontier = 4 * K, .lazy = true, .floor = 5000 },
    { .name = "lazy-c4k", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .backing = 200 * K, .compressed = true, .zeros = true, .frontier = 16 * K, .lazy = true,
      .no_zero_growth = true, .floor = 5000 },
    { .name = "amend-c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 64 * K, .size_max = 96 * K,
      .window = { { 0, 96 * K } }, .windows = 1, .backing = 40 * K, .zeros = true, .frontier = 4 * K, .amend = true, .floor = 3000 },
    { .name = "amend-c4k-v2", .version = 2, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 256 * K, .snapshot = true, .frontier = 16 * K, .amend = true, .one_write_space = true,
      .floor = 3000 },
    { .name = "amend-c4k-snap", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 256 * K, .snapshot = true, .zeros = true, .frontier = 16 * K, .amend = true,
      .one_write_space = true, .floor = 3000 },
    { .name = "c4k-keep", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .backing = 200 * K, .zeros = true, .frontier = 16 * K, .keep = true, .floor = 3000 },
    { .name = "c512-data", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .data_file = true, .zeros = true, .frontier = 4 * K, .state = true, .floor = 5000 },
    { .name = "c4k-data", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K + 1536, .size_max = 384 * K,
      .window = { { 0, 384 * K } }, .windows = 1, .data_file = true, .backing = 200 * K, .zeros = true, .frontier = 16 * K, .floor = 5000 },
    { .name = "c4k-dataraw", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 384 * K,
      .window = { { 0, 384 * K } }, .windows = 1, .data_file = true, .data_raw = true, .frontier = 16 * K, .floor = 5000 },
    { .name = "c64k-sub", .version = 3, .cluster_bits = 16, .refcount_order = 4, .size = 1 * M, .size_max = 1280 * K, .sub = true,
      .window = { { 0, 1280 * K } }, .windows = 1, .zeros = true, .frontier = 256 * K, .no_holes = true, .beyond = true, .floor = 4000 },
    { .name = "c32k-sub-backing", .version = 3, .cluster_bits = 15, .refcount_order = 4, .size = 640 * K, .size_max = 768 * K, .sub = true,
      .window = { { 0, 768 * K } }, .windows = 1, .backing = 300 * K, .zeros = true, .frontier = 128 * K, .floor = 4000 },
    { .name = "c32k-sub-snap", .version = 3, .cluster_bits = 15, .refcount_order = 3, .size = 512 * K, .size_max = 512 * K, .sub = true,
      .window = { { 0, 512 * K } }, .windows = 1, .backing = 512 * K, .zeros = true, .compressed = true, .snapshot = true, .frontier = 128 * K,
      .one_write_space = true, .floor = 4000 },
    { .name = "c32k-sub-data", .version = 3, .cluster_bits = 15, .refcount_order = 4, .size = 640 * K + 1536, .size_max = 768 * K, .sub = true,
      .window = { { 0, 768 * K } }, .windows = 1, .data_file = true, .backing = 300 * K, .zeros = true, .frontier = 128 * K, .floor = 3000 },
    { .name = "c16k-sub-l1", .version = 3, .cluster_bits = 14, .refcount_order = 4, .size = 16 * M - 32 * K, .size_max = 16 * M + 128 * K, .sub = true,
      .window = { { 0, 256 * K }, { 16 * M - 192 * K, 320 * K } }, .windows = 2, .zeros = true, .frontier = 64 * K, .block = 512,
      .floor = 2000 },
    { .name = "scrub-c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 160 * K,
      .window = { { 0, 160 * K } }, .windows = 1, .zeros = true, .frontier = 4 * K, .one_write_space = true, .scrub = true, .lazy = true, .floor = 5000 },
    { .name = "scrub-c4k", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .clean = true, .windows = 1, .backing = 200 * K, .snapshot = true, .compressed = true, .zeros = true, .frontier = 16 * K,
      .one_write_space = true, .scrub = true, .floor = 5000 },
    { .name = "unclean-c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 160 * K,
      .window = { { 0, 160 * K } }, .windows = 1, .zeros = true, .frontier = 4 * K, .one_write_space = true, .scrub = true, .unclean = true, .lazy = true,
      .floor = 5000 },
    { .name = "unclean-c4k", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 200 * K, .snapshot = true, .zeros = true, .frontier = 16 * K, .one_write_space = true,
      .scrub = true, .unclean = true, .floor = 5000 },
    { .name = "scrub-c32k-sub", .version = 3, .cluster_bits = 15, .refcount_order = 4, .size = 512 * K, .size_max = 512 * K, .sub = true,
      .window = { { 0, 512 * K } }, .windows = 1, .backing = 300 * K, .zeros = true, .compressed = true, .frontier = 128 * K, .one_write_space = true,
      .scrub = true, .lazy = true, .floor = 3000 },
    { .name = "scrub-c4k-bitmap", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .bitmap = true, .bitmaps = true, .bitmap_region = 32 * K, .zeros = true, .frontier = 32 * K,
      .one_write_space = true, .scrub = true, .lazy = true, .floor = 3000 },
    { .name = "unclean-c512-bitmap", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 160 * K,
      .window = { { 0, 160 * K } }, .windows = 1, .bitmap = true, .bitmaps = true, .bitmap_region = 32 * K, .zeros = true, .frontier = 6 * K,
      .one_write_space = true, .scrub = true, .unclean = true, .lazy = true, .floor = 3000 },
    { .name = "unclean-c512-data", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 160 * K,
      .window = { { 0, 160 * K } }, .windows = 1, .data_file = true, .zeros = true, .frontier = 4 * K, .one_write_space = true, .scrub = true,
      .unclean = true, .lazy = true, .floor = 3000 },
    { .name = "unclean-c512-device", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 160 * K,
      .window = { { 0, 160 * K } }, .windows = 1, .zeros = true, .frontier = 4 * K, .one_write_space = true, .scrub = true, .unclean = true, .lazy = true,
      .device = 512 * K, .floor = 3000 },
    { .name = "scrub-c4k-device", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 200 * K, .snapshot = true, .compressed = true, .bitmap = true, .bitmap_region = 32 * K, .zeros = true,
      .frontier = 16 * K, .one_write_space = true, .scrub = true, .lazy = true, .device = 2 * M, .floor = 3000 },
    { .name = "scrub-c512-rt", .version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 64 * K, .size_max = 96 * K,
      .window = { { 0, 96 * K } }, .windows = 1, .snapshot = true, .fill_to = 2 * M - 3 * K, .frontier = 2 * K, .one_write_space = true,
      .scrub = true, .floor = 3000 },
    { .name = "unclean-c512-rt", .version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 64 * K, .size_max = 96 * K,
      .window = { { 0, 96 * K } }, .windows = 1, .snapshot = true, .fill_to = 2 * M - 3 * K, .frontier = 2 * K, .one_write_space = true,
      .scrub = true, .unclean = true, .lazy = true, .floor = 3000 },
    { .name = "scrub-c4k-across", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .bitmap = true, .bitmaps = true, .bitmap_region = 32 * K, .header_tail = 376, .frontier = 32 * K,
      .one_write_space = true, .scrub = true, .floor = 3000 },
    { .name = "compact-c512", .version = 3, .cluster_bits = 9, .refcount_order = 6, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .backing = 64 * K, .zeros = true, .frontier = 4 * K, .compact = true, .floor = 4000 },
    { .name = "compact-c4k-comp", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .clean = true, .windows = 1, .snapshot = true, .compressed = true, .packs = true, .zeros = true, .frontier = 16 * K,
      .one_write_space = true, .compact = true, .floor = 4000 },
    { .name = "compact-c4k-luks", .version = 3, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 320 * K,
      .window = { { 0, 320 * K } }, .windows = 1, .zeros = true, .luks = true, .frontier = 16 * K, .compact = true, .lazy = true, .floor = 3000 },
    { .name = "compact-c512-v2", .version = 2, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .backing = 96 * K, .frontier = 4 * K, .compact = true, .floor = 3000 },
    { .name = "compact-c32k-sub", .version = 3, .cluster_bits = 15, .refcount_order = 4, .size = 640 * K, .size_max = 768 * K, .sub = true,
      .window = { { 0, 768 * K } }, .windows = 1, .backing = 300 * K, .zeros = true, .frontier = 128 * K, .compact = true, .floor = 3000 },
    { .name = "state-c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 64 * K, .size_max = 96 * K,
      .window = { { 0, 96 * K } }, .windows = 1, .backing = 96 * K, .zeros = true, .frontier = 4 * K, .state = true, .floor = 3000 },
    { .name = "c512-4kblock", .version = 3, .cluster_bits = 9, .refcount_order = 5, .size = 128 * K, .size_max = 192 * K,
      .window = { { 0, 192 * K } }, .windows = 1, .zeros = true, .frontier = 8 * K, .block = 4096, .no_zero_growth = true, .no_zero = true,
      .floor = 7500 },
    { .name = "chain-c512", .version = 3, .cluster_bits = 9, .refcount_order = 4, .size = 128 * K, .size_max = 128 * K,
      .window = { { 0, 128 * K } }, .windows = 1, .backing = 96 * K, .zeros = true, .frontier = 4 * K, .one_write_space = true, .chain = true, .floor = 3000 },
    { .name = "chain-c4k-v2", .version = 2, .cluster_bits = 12, .refcount_order = 4, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 200 * K, .compressed = true, .frontier = 16 * K, .one_write_space = true, .chain = true, .floor = 3000 },
    { .name = "chain-c32k-sub", .version = 3, .cluster_bits = 15, .refcount_order = 4, .size = 512 * K, .size_max = 512 * K, .sub = true,
      .window = { { 0, 512 * K } }, .windows = 1, .backing = 300 * K, .zeros = true, .frontier = 128 * K, .one_write_space = true, .chain = true, .floor = 2000 },
    { .name = "qed-4k", .table = 2, .cluster_bits = 12, .size = 4 * M + 128 * K, .size_max = 8 * M + 64 * K,
      .window = { { 0, 128 * K }, { 4 * M - 32 * K, 96 * K }, { 8 * M - 32 * K, 96 * K } }, .windows = 3, .zeros = true, .frontier = 32 * K, .floor = 3000 },
    { .name = "qed-4k-backing", .table = 1, .cluster_bits = 12, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 200 * K, .zeros = true, .clean = true, .frontier = 16 * K, .no_zero_growth = true, .one_write_space = true,
      .floor = 3000 },
    { .name = "qed-8k-t16", .table = 16, .cluster_bits = 13, .size = 128 * M + 64 * K, .size_max = 128 * M + 64 * K,
      .window = { { 0, 256 * K }, { 128 * M - 64 * K, 128 * K } }, .windows = 2, .backing = 100 * K, .zeros = true, .frontier = 64 * K, .block = 512,
      .one_write_space = true, .floor = 500 },
    { .name = "qed-64k", .table = 4, .cluster_bits = 16, .size = 1 * M, .size_max = 1280 * K,
      .window = { { 0, 1280 * K } }, .windows = 1, .frontier = 256 * K, .floor = 3000 },
    { .name = "qed-2m", .table = 1, .cluster_bits = 21, .size = 16 * M, .size_max = 16 * M,
      .window = { { 0, 16 * M } }, .windows = 1, .zeros = true, .frontier = 4 * M, .one_write_space = true, .floor = 100 },
    { .name = "qed-scrub", .table = 2, .cluster_bits = 12, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .backing = 200 * K, .zeros = true, .frontier = 16 * K, .one_write_space = true, .scrub = true,
      .floor = 2000 },
    { .name = "qed-fill", .table = 2, .cluster_bits = 12, .size = 4 * M + 64 * K, .size_max = 4 * M + 64 * K,
      .window = { { 0, 96 * K }, { 4 * M - 32 * K, 96 * K } }, .windows = 2, .zeros = true, .clean = true, .frontier = 16 * K, .one_write_space = true, .scrub = true,
      .tail = true, .floor = 2000 },
    { .name = "qed-unclean", .table = 1, .cluster_bits = 12, .size = 256 * K, .size_max = 256 * K,
      .window = { { 0, 256 * K } }, .windows = 1, .zeros = true, .frontier = 16 * K, .one_write_space = true, .scrub = true, .unclean = true,
      .floor = 2000 },
    { .name = "qed-unclean-tail", .table = 2, .cluster_bits = 12, .size = 4 * M + 64 * K, .size_max = 4 * M + 64 * K,
      .window = { { 0, 96 * K }, { 4 * M - 32 * K, 96 * K } }, .windows = 2, .zeros = true, .frontier = 16 * K, .one_write_space = true, .scrub = true,
      .unclean = true, .tail = true, .floor = 1500 },
    { .name = "qed-chain", .table = 1, .cluster_bits = 12, .size = 64 * K, .size_max = 64 * K,
      .window = { { 0, 64 * K } }, .windows = 1, .backing = 40 * K, .zeros = true, .frontier = 16 * K, .one_write_space = true, .chain = true, .floor = 2000 },
    { .name = "qed-chain-tail", .table = 2, .cluster_bits = 12, .size = 64 * K, .size_max = 64 * K,
      .window = { { 0, 64 * K } }, .windows = 1, .backing = 28 * K, .zeros = true, .frontier = 16 * K, .one_write_space = true,
      .chain = true, .tail = true, .floor = 1000 },
};

const struct sim_geom *sim_geom_nth(unsigned i) { return i < sizeof geoms / sizeof geoms[0] ? &geoms[i] : NULL; }

const struct sim_geom *sim_geom_find(const char *name)
{
    for (unsigned i = 0; sim_geom_nth(i); i++)
        if (!strcmp(geoms[i].name, name))
            return &geoms[i];
    return NULL;
}

/* ---- builder ---- */

struct build {
    const struct sim_geom *g;
    struct sim_disk *d, *data;           /* data: the external data file; NULL: none */
    struct sim_image *im;
    uint64_t cs, next;                   /* bytes of a cluster; next free host cluster */
    uint32_t *refs;
    uint64_t refs_cap;
    struct lk_xform *x;                  /* NULL: not encrypted */
    uint64_t placed;                     /* data clusters so far, to sprinkle holes */
    uint64_t comp_at, comp_end;          /* where the next compressed bytes go */
};

static void put(struct build *b, uint64_t off, const void *buf, uint64_t len)
{
    int r = sim_disk_write(b->d, off, buf, len);
    ASSERT(r == 0);
}

static void put64(struct build *b, uint64_t off, uint64_t v)
{
    be64 x;
    be64_put(&x, v);
    put(b, off, &x, 8);
}

static void ref(struct build *b, uint64_t cluster)
{
    if (cluster >= b->refs_cap) {
        uint64_t cap = max_u64(2 * b->refs_cap, cluster + 1024);
        b->refs = sim_mem_realloc(b->refs, cap * sizeof *b->refs);
        memset(b->refs + b->refs_cap, 0, (cap - b->refs_cap) * sizeof *b->refs);
        b->refs_cap = cap;
    }
    b->refs[cluster]++;
}

static uint64_t take(struct build *b, uint64_t n)
{
    uint64_t c = b->next;
    b->next += n;
    return c;
}

/* B2 */
static void leave_hole(struct build *b, uint64_t clusters)
{
    uint8_t sector[SIM_SECTOR];
    uint64_t at = take(b, clusters) * b->cs;
    for (uint64_t i = 0; i < clusters * b->cs; i += SIM_SECTOR) {
        sim_sector_fill(sector, SIM_GEN_JUNK, 100000 + (at + i) / SIM_SECTOR);
        put(b, at + i, sector, sizeof sector);
    }
}

/* In the external data file, at the guest's offset, as far as the disk goes. */
static uint64_t data_file_cluster(struct build *b, uint64_t guest, uint32_t gen)
{
    uint8_t sector[SIM_SECTOR];
    for (uint64_t i = guest; i < min_u64(guest + b->cs, b->g->size); i += SIM_SECTOR) {
        sim_sector_fill(sector, gen, gen == SIM_GEN_JUNK ? 100000 + i / SIM_SECTOR : i / SIM_SECTOR);
        int r = sim_disk_write(b->data, i, sector, sizeof sector);
        ASSERT(r == 0);
    }
    return guest;
}

/* An L2 entry; bits: the second half of an extended one. */
struct entry { uint64_t e, bits; };

static uint64_t entry_bytes(const struct build *b) { return b->g->sub ? 16 : 8; }

static void put_entry(struct build *b, uint64_t l2, uint64_t i, struct entry x)
{
    put64(b, l2 + i * entry_bytes(b), x.e);
    if (b->g->sub)
        put64(b, l2 + i * 16 + 8, x.bits);
}

/* Sectors of these subclusters hold what nobody may read. */
static void put_junk(struct build *b, uint64_t host, uint32_t subclusters)
{
    uint8_t sector[SIM_SECTOR];
    for (uint64_t i = 0; i < b->cs; i += SIM_SECTOR) {
        sim_sector_fill(sector, SIM_GEN_JUNK, 100000 + (host + i) / SIM_SECTOR);
        if (!(subclusters >> (i * 32 / b->cs) & 1))
            continue;
        if (!b->data)
            put(b, host + i, sector, sizeof sector);
        else if (host + i < b->g->size && sim_disk_write(b->data, host + i, sector, sizeof sector) < 0)
            ASSERT(false);
    }
}

static uint64_t data_cluster(struct build *b, uint64_t guest, uint32_t gen)
{
    uint8_t sector[SIM_SECTOR];
    if (b->data)
        return data_file_cluster(b, guest, gen);
    if (b->placed % 7 == 3 && !b->g->no_holes)
        leave_hole(b, 1);
    if (b->placed % 40 == 20 && !b->g->no_holes)
        leave_hole(b, 5);
    b->placed++;
    uint64_t c = take(b, 1);
    ref(b, c);
    for (uint64_t i = 0; i < b->cs; i += SIM_SECTOR) {
        sim_sector_fill(sector, gen, (guest + i) / SIM_SECTOR);
        if (b->x)
            lk_encrypt(b->x, sector, sizeof sector, (c * b->cs + i) / SIM_SECTOR);
        put(b, c * b->cs + i, sector, sizeof sector);
    }
    return c * b->cs;
}

static size_t compress(const struct build *b, const uint8_t *plain, uint8_t *out)
{
    if (b->g->zstd) {
        size_t n = ZSTD_compress(out, b->cs / 2, plain, b->cs, 3);
        return ZSTD_isError(n) ? 0 : n;
    }
    struct libdeflate_compressor *z = libdeflate_alloc_compressor(6);
    size_t n = libdeflate_deflate_compress(z, plain, b->cs, out, b->cs / 2);
    libdeflate_free_compressor(z);
    return n;
}

/* Several compressed clusters share host clusters, none crosses into the next. */
static uint64_t compressed_cluster(struct build *b, uint64_t guest, uint32_t gen)
{
    uint8_t *plain = sim_mem_alloc(b->cs), *out = sim_mem_alloc(b->cs);
    for (uint64_t i = 0; i < b->cs; i += SIM_SECTOR)
        sim_sector_fill(plain + i, gen, (guest + i) / SIM_SECTOR);
    size_t n = compress(b, plain, out);
    ASSERT(n);
    if (b->comp_at + n > b->comp_end) {
        b->comp_at = take(b, 1) * b->cs;
        b->comp_end = b->comp_at + b->cs;
    }
    put(b, b->comp_at, out, n);
    ref(b, b->comp_at / b->cs);
    unsigned x = 62 - (b->g->cluster_bits - 8);
    uint64_t extra = (b->comp_at + n - 1) / SIM_SECTOR - b->comp_at / SIM_SECTOR;
    uint64_t e = 1ull << 62 | extra << x | b->comp_at;
    b->comp_at += n;
    sim_mem_free(plain);
    sim_mem_free(out);
    return e;
}

#define COPIED (1ull << 63)

/* The entry of one guest cluster, by its number: a pattern that has every kind next to every other. */
static uint64_t entry_of(struct build *b, uint64_t guest, uint32_t gen)
{
    const struct sim_geom *g = b->g;
    uint64_t i = guest / b->cs, first = guest / SIM_SECTOR, per = b->cs / SIM_SECTOR, e = 0;
    uint32_t holds = b->im->gens[first];                 /* as below so far */
    bool none = false;
    switch ((i + i / 8) % 8) {
    case 0: case 2: case 7:
        e = data_cluster(b, guest, gen) | COPIED;
        holds = gen;
        break;
    case 3:
        none = !g->zeros;
        e = g->zeros ? 1 : 0;
        holds = 0;
        break;
    case 4:
        e = g->compressed ? compressed_cluster(b, guest, gen) : data_cluster(b, guest, gen) | COPIED;
        holds = gen;
        break;
    case 6:
        none = !g->zeros;
        e = g->zeros ? data_cluster(b, guest, SIM_GEN_JUNK) | COPIED | 1 : 0;
        holds = 0;
        break;
    default:
        none = true;
    }
    if (none && g->compact && i % 5 == 1) {      /* zeros, written out */
        none = false;
        e = data_cluster(b, guest, 0) | COPIED;
        holds = 0;
    }
    if (none && g->data_raw) {           /* a raw image of its own: every cluster is mapped */
        none = false;
        e = data_cluster(b, guest, 0) | COPIED;
        holds = 0;
    }
    if (none && b->data)                 /* B2: old bytes where nothing is mapped */
        (void)data_cluster(b, guest, SIM_GEN_JUNK);
    for (uint64_t s = first; !none && s < first + per && s < b->im->sectors; s++)
        b->im->gens[s] = s * SIM_SECTOR < g->size ? holds : 0;
    return e;
}

/* The same with subclusters. The kinds alternate inside clusters too. */
static struct entry entry_of_sub(struct build *b, uint64_t guest, uint32_t gen)
{
    static const struct { uint32_t alloc, zero; } bits[8] = {
        { ~0u, 0 }, { 0, 0 }, { 0x0f0ff0f3, 0x00f00f00 }, { 0, 0xfff0000f }, { 0xffff, 0 }, { 0, 0 }, { 0, 0x00ffffff }, { 0xfffffff0, 0xf },
    };
    const struct sim_geom *g = b->g;
    uint64_t i = guest / b->cs, first = guest / SIM_SECTOR, per = b->cs / SIM_SECTOR;
    unsigned kind = (i + i / 8) % 8;
    struct entry x = { 0, (uint64_t)bits[kind].zero << 32 | bits[kind].alloc };
    uint32_t alloc = bits[kind].alloc, zero = bits[kind].zero;
    if (kind == 4 && g->compressed) {
        x = (struct entry){ compressed_cluster(b, guest, gen), 0 };
        alloc = ~0u;
    } else if (alloc || kind == 6) {
        uint64_t host = data_cluster(b, guest, gen);
        put_junk(b, host, ~alloc);
        x.e = host | COPIED;
    } else if (b->data) {                /* B2: old bytes where nothing is mapped */
        put_junk(b, guest, ~0u);
    }
    for (uint64_t s = 0; s < per && first + s < b->im->sectors; s++) {
        uint32_t bit = 1u << (s * 32 / per);
        bool shows = (first + s) * SIM_SECTOR < g->size;
        if ((alloc | zero) & bit)
            b->im->gens[first + s] = shows && alloc & bit ? gen : 0;
    }
    return x;
}

/* Is this guest cluster among those that hold something in the beginning (the first half of each window)? */
static bool populated(const struct sim_geom *g, uint64_t guest)
{
    for (unsigned i = 0; i < g->windows; i++)
        if (guest >= g->window[i].off && guest < g->window[i].off + g->window[i].len / 2 && guest < g->size)
            return true;
    return (g->beyond && guest >= g->size) || g->data_raw;
}

struct tables { uint64_t l1_off, l1_entries, span; uint64_t *l1; };

static void active_tables(struct build *b, struct tables *t)
{
    const struct sim_geom *g = b->g;
    t->span = b->cs * (b->cs / entry_bytes(b));
    t->l1_entries = div_up(g->size, t->span);
    uint64_t c = take(b, div_up(t->l1_entries * 8, b->cs));
    t->l1_off = c * b->cs;
    t->l1 = sim_mem_alloc(t->l1_entries * 8);
    for (; c < b->next; c++)
        ref(b, c);
    for (uint64_t k = 0; k < t->l1_entries; k++) {
        uint64_t l2 = 0;
        for (uint64_t guest = k * t->span; guest < min_u64((k + 1) * t->span, g->beyond ? g->size_max : g->size); guest += b->cs) {
            if (!populated(g, guest))
                continue;
            if (!l2) {
                l2 = take(b, 1) * b->cs;
                ref(b, l2 / b->cs);
            }
            put_entry(b, l2, (guest - k * t->span) / b->cs, g->sub ? entry_of_sub(b, guest, SIM_GEN_FIRST) : (struct entry){ entry_of(b, guest, SIM_GEN_FIRST), 0 });
        }
        t->l1[k] = l2 ? l2 | COPIED : 0;
    }
}

/* ---- snapshot: even tables are shared whole, odd ones only some clusters ---- */

static uint64_t get64(const struct build *b, uint64_t off)
{
    be64 x;
    sim_disk_read(b->d, off, &x, 8);
    return be64_get(&x);
}

static struct entry get_entry(const struct build *b, uint64_t l2, uint64_t i)
{
    return (struct entry){ get64(b, l2 + i * entry_bytes(b)), b->g->sub ? get64(b, l2 + i * 16 + 8) : 0 };
}

/* One more owner for what an entry names; the entry without COPIED. */
static uint64_t share(struct build *b, uint64_t e)
{
    uint64_t host = e & 0x00fffffffffffe00ull;
    if (e >> 62 & 1)
        ref(b, (e & ((1ull << (62 - (b->g->cluster_bits - 8))) - 1)) / b->cs);
    else if (host)
        ref(b, host / b->cs);
    return e & ~COPIED;
}

static void snap_gens(struct build *b, uint64_t guest, uint32_t gen, bool copy)
{
    for (uint64_t s = guest / SIM_SECTOR; s < (guest + b->cs) / SIM_SECTOR && s < b->im->sectors; s++)
        b->im->snap[s] = copy ? b->im->gens[s] : gen;
}

static uint64_t snapshot_table(struct build *b, const struct tables *t, uint64_t k)
{
    uint64_t l2 = t->l1[k] & ~COPIED;
    if (!l2)
        return 0;
    bool shared = k % 2 == 0 && t->l1_entries > 1 && !b->g->fill_to;
    uint64_t own = shared ? l2 : take(b, 1) * b->cs;
    ref(b, own / b->cs);
    for (uint64_t i = 0; i < b->cs / entry_bytes(b); i++) {
        struct entry x = get_entry(b, l2, i);
        uint64_t guest = k * t->span + i * b->cs;
        if ((!x.e && !x.bits) || guest >= b->g->size)
            continue;
        if (!shared && i % 3 == 0) {     /* was rewritten since: the snapshot has the older cluster alone */
            put_entry(b, own, i, (struct entry){ data_cluster(b, guest, SIM_GEN_SNAPSHOT) | COPIED, 0xffffffff });
            snap_gens(b, guest, SIM_GEN_SNAPSHOT, false);
            continue;
        }
        x.e = share(b, x.e);
        put_entry(b, l2, i, x);
        put_entry(b, own, i, x);
        snap_gens(b, guest, 0, true);
    }
    if (shared)
        return l2;
    return own | COPIED;
}

/* Clusters that only the snapshot names, up to fill_to: the file is long and dense. Their bytes are zeros. */
static void fill(struct build *b, uint64_t *l1, uint64_t first_entry, uint64_t entries)
{
    for (uint64_t k = first_entry; k < entries && b->next * b->cs < b->g->fill_to; k++) {
        uint64_t l2 = take(b, 1) * b->cs;
        ref(b, l2 / b->cs);
        l1[k] = l2 | COPIED;
        for (uint64_t i = 0; i < b->cs / 8 && b->next * b->cs < b->g->fill_to; i++) {
            uint64_t c = take(b, 1);
            ref(b, c);
            put64(b, l2 + i * 8, c * b->cs | COPIED);
        }
    }
}

static uint64_t snapshot(struct build *b, struct tables *t)
{
    uint64_t entries = max_u64(t->l1_entries, b->g->fill_to ? b->cs / 8 + t->l1_entries : 0);
    uint64_t *l1 = sim_mem_alloc(entries * 8);
    b->im->snap = sim_mem_alloc(b->im->sectors * sizeof(uint32_t));
    for (uint64_t s = 0; s < b->im->sectors; s++)
        b->im->snap[s] = s * SIM_SECTOR < b->g->size ? (b->im->below ? b->im->below[s] : 0) : SIM_GEN_NONE;
    for (uint64_t k = 0; k < t->l1_entries; k++) {
        l1[k] = snapshot_table(b, t, k);
        if (l1[k] && !(l1[k] & COPIED))
            t->l1[k] &= ~COPIED;
    }
    fill(b, l1, t->l1_entries, entries);
    uint64_t at = take(b, div_up(entries * 8, b->cs)), table = take(b, 1);
    for (uint64_t c = at; c < b->next; c++)
        ref(b, c);
    for (uint64_t k = 0; k < entries; k++)
        put64(b, at * b->cs + k * 8, l1[k]);
    sim_mem_free(l1);
    struct q2_disk_snapshot s = { 0 };
    uint8_t tail[24] = { 0 };
    be64_put(&s.l1_off, at * b->cs);
    be32_put(&s.l1_size, (uint32_t)entries);
    be16_put(&s.id_len, 1);
    be16_put(&s.name_len, 2);
    be32_put(&s.date_sec, 1700000000);
    be32_put(&s.extra_len, 16);
    b->im->snap_size = max_u64(b->g->size, b->g->fill_to ? entries * t->span : 0);
    be64_put((be64 *)(tail + 8), b->im->snap_size);
    memcpy(tail + 16, "1s1", 3);
    put(b, table * b->cs, &s, sizeof s);
    put(b, table * b->cs + sizeof s, tail, sizeof tail);
    return table * b->cs;
}

/* ---- bitmap: one, enabled, with a set bit ---- */

static void bitmap(struct build *b, struct q2_header *h)
{
    unsigned granularity = b->g->cluster_bits == 9 ? 9 : 12;
    uint64_t entries = div_up(div_up(b->g->size, 1ull << granularity), b->cs * 8), data = take(b, 1), table = take(b, 1), dir = take(b, 1);
    uint8_t bits[SIM_SECTOR] = { 1 }, name[8] = "bitmap";
    struct q2_disk_bitmap_entry e = { 0 };
    ref(b, data);
    ref(b, table);
    ref(b, dir);
    put(b, data * b->cs, bits, sizeof bits);
    put64(b, table * b->cs, data * b->cs);
    be64_put(&e.table_off, table * b->cs);
    be32_put(&e.table_entries, (uint32_t)entries);
    be32_put(&e.flags, Q2_BITMAP_AUTO);
    e.type = 1;
    e.granularity_bits = (uint8_t)granularity;
    be16_put(&e.name_len, 6);
    put(b, dir * b->cs, &e, sizeof e);
    put(b, dir * b->cs + sizeof e, name, sizeof name);
    h->has_bitmaps = true;
    h->bitmap_count = 1;
    h->bitmap_dir_off = dir * b->cs;
    h->bitmap_dir_bytes = sizeof e + 8;
    h->autoclear = Q2_AUTOCLEAR_BITMAPS;
}

/* ---- counts and header ---- */

static void put_count(struct build *b, uint64_t block, uint64_t i, uint64_t v)
{
    unsigned order = b->g->refcount_order;
    uint8_t byte;
    if (order < 3) {
        unsigned bits = 1u << order, per = 8 / bits;
        sim_disk_read(b->d, block + i / per, &byte, 1);
        byte |= (uint8_t)(v << (i % per * bits));
        put(b, block + i / per, &byte, 1);
        return;
    }
    for (unsigned n = 1u << (order - 3), k = 0; k < n; k++) {
        byte = (uint8_t)(v >> (8 * (n - 1 - k)));
        put(b, block + i * n + k, &byte, 1);
    }
}

static void counts(struct build *b, uint64_t rt, uint64_t blocks_at, uint64_t blocks)
{
    uint64_t per = b->cs * 8 >> b->g->refcount_order;
    for (uint64_t k = 0; k < blocks; k++)
        put64(b, rt + k * 8, (blocks_at + k) * b->cs);
    for (uint64_t c = 0; c < b->next; c++)
        if (b->refs[c])
            put_count(b, (blocks_at + c / per) * b->cs, c % per, b->refs[c]);
}

static void header(struct build *b, const struct q2_header *h)
{
    uint8_t *buf = sim_mem_alloc(b->cs);
    int r = q2_header_emit(h, true, buf, b->cs, NULL);
    ASSERT(r == 0);
    put(b, 0, buf, b->cs);
    sim_mem_free(buf);
}

/* Enough blocks for the file as it will be, found by trying. */
static void luks_area(struct build *b, struct q2_header *h)
{
    uint8_t area[SIM_LUKS_BYTES];
    uint64_t first = take(b, div_up(sizeof area, b->cs));
    sim_luks_area(area);
    put(b, first * b->cs, area, sizeof area);
    for (uint64_t c = first; c < b->next; c++)
        ref(b, c);
    h->crypt_method = 2;
    h->has_crypto = true;
    h->crypto_off = first * b->cs;
    h->crypto_len = sizeof area;
}

static uint64_t lay_out(struct build *b, uint64_t blocks)
{
    const struct sim_geom *g = b->g;
    struct q2_header h = { .version = g->version, .cluster_bits = g->cluster_bits, .refcount_order = g->version == 2 ? 4 : g->refcount_order,
        .header_len = g->version == 2 ? 72 : 112, .size = g->size };
    struct tables t;
    static uint8_t other[4096];
    struct q2_unknown_ext ext = { 0x12345678u, g->other_ext, other };
    if (g->header_tail) {
        h.tail_bytes = other;
        h.tail_len = g->header_tail;
        h.header_len += g->header_tail;
    }
    if (g->other_ext) {
        h.unknown = &ext;
        h.unknown_count = 1;
    }
    b->next = 1;
    ref(b, 0);
    uint64_t rt = take(b, 1), at = take(b, blocks);
    for (uint64_t c = rt; c < b->next; c++)
        ref(b, c);
    if (g->luks)
        luks_area(b, &h);
    active_tables(b, &t);
    if (g->snapshot) {
        h.snapshots_off = snapshot(b, &t);
        h.nb_snapshots = 1;
    }
    if (g->bitmap)
        bitmap(b, &h);
    for (uint64_t k = 0; k < t.l1_entries; k++)
        put64(b, t.l1_off + k * 8, t.l1[k]);
    sim_mem_free(t.l1);
    uint64_t per = b->cs * 8 >> g->refcount_order, need = div_up(b->next, per);
    if (need > blocks)
        return need;
    if (b->d->len < b->next * b->cs && sim_disk_set_len(b->d, b->next * b->cs) < 0)
        return 0;
    counts(b, rt * b->cs, at, need);
    h.l1_off = t.l1_off;
    h.l1_size = (uint32_t)t.l1_entries;
    h.rt_off = rt * b->cs;
    h.rt_clusters = 1;
    h.backing_name = g->backing ? (char *)SIM_BASE_NAME : NULL;
    h.backing_format = g->backing ? (char *)"raw" : NULL;
    h.compat = g->lazy ? Q2_COMPAT_LAZY : 0;
    if ((g->hurt || g->unclean) && g->version == 3)
        h.incompat = Q2_INCOMPAT_DIRTY;
    if (g->data_file) {
        h.data_file = (char *)SIM_DATA_NAME;
        h.incompat |= Q2_INCOMPAT_DATA_FILE;
        h.autoclear |= g->data_raw ? Q2_AUTOCLEAR_RAW_DATA : 0;
    }
    if (g->zstd) {
        h.incompat |= Q2_INCOMPAT_COMPRESSION;
        h.compression_type = 1;
    }
    if (g->sub)
        h.incompat |= Q2_INCOMPAT_EXT_L2;
    header(b, &h);
    return blocks;
}

static void build_below(struct sim_world *w, const struct sim_geom *g, struct sim_image *im)
{
    struct sim_file *f = sim_world_file(w, SIM_BASE_NAME);
    uint8_t sector[SIM_SECTOR];
    im->below = sim_mem_alloc(im->sectors * sizeof(uint32_t));
    for (uint64_t s = 0; s < g->backing / SIM_SECTOR; s++) {
        uint32_t gen = s / 24 % 3 == 2 ? 0 : SIM_GEN_BELOW;          /* with stretches of zeros */
        sim_sector_fill(sector, gen, s);
        int r = sim_disk_write(&f->disk, s * SIM_SECTOR, sector, sizeof sector);
        ASSERT(r == 0);
        if (s < im->sectors)
            im->below[s] = gen;
    }
}

/* The same as the backing image here, zeros there, and longer or shorter. */
static void build_other(struct sim_world *w, const struct sim_geom *g, const struct sim_image *im)
{
    struct sim_file *f = sim_world_file(w, SIM_OTHER_NAME);
    uint8_t sector[SIM_SECTOR];
    for (uint64_t s = 0; s < g->size / SIM_SECTOR - 21; s++) {
        uint32_t gen = s / 13 % 3 == 0 ? im->below[s] : s / 13 % 3 == 1 ? SIM_GEN_OTHER : 0;
        sim_sector_fill(sector, gen, s);
        int r = sim_disk_write(&f->disk, s * SIM_SECTOR, sector, sizeof sector);
        ASSERT(r == 0);
    }
}

static void start_gens(struct sim_image *im)
{
    for (uint64_t s = 0; s < im->sectors; s++)
        im->gens[s] = im->below && s * SIM_SECTOR < im->g->size ? im->below[s] : 0;
}

/* ---- damage: what a repair can mend without losing a guest byte ---- */

/* Some L2 entry that maps a cluster: its offset in the file, 0: none. */
static uint64_t some_entry(struct build *b, struct prng *p)
{
    uint64_t l1 = get64(b, 40), entries = div_up(b->g->size, b->cs * (b->cs / 8));
    for (unsigned tries = 0; tries < 200; tries++) {
        uint64_t l2 = get64(b, l1 + prng_below(p, entries) * 8) & 0x00fffffffffffe00ull;
        uint64_t at = l2 + prng_below(p, b->cs / 8) * 8;
        if (l2 && (get64(b, at) & 0x00fffffffffffe00ull) && !(get64(b, at) >> 62 & 1))
            return at;
    }
    return 0;
}

static void hurt_one(struct build *b, struct prng *p, uint64_t blocks)
{
    uint64_t per = b->cs * 8 >> b->g->refcount_order, blocks_at = 2, entry = some_entry(b, p), c = b->data ? prng_below(p, b->next) : (get64(b, entry) & 0x00fffffffffffe00ull) / b->cs;
    uint64_t count_at = (blocks_at + c / per) * b->cs + c % per * 2, spare = (blocks_at + prng_below(p, blocks)) * b->cs + prng_below(p, per) * 2;
    uint8_t v[2] = { 0, 0 };
    if (!entry)
        return;
    switch (prng_below(p, 7)) {
    case 0:                              /* a count is lost */
        put(b, count_at, v, 2);
        break;
    case 1:                              /* a whole sector of counts is lost */
        sim_disk_zero(b->d, round_down(count_at, SIM_SECTOR), SIM_SECTOR);
        break;
    case 2:                              /* a count is too high, the flag says otherwise */
        v[1] = 5;
        put(b, count_at, v, 2);
        break;
    case 3:                              /* leaks */
        v[1] = 1;
        if (spare + 2 <= b->d->len && get64(b, round_down(spare, 8)) == 0)
            put(b, spare, v, 2);
        break;
    case 4:                              /* COPIED is missing */
        if (!b->data)                    /* there the flag is a part of what an entry says */
            put64(b, entry, get64(b, entry) & ~COPIED);
        break;
    case 5:                              /* a refcount block is not found */
        put64(b, b->cs + prng_below(p, blocks) * 8, 0);
        break;
    case 6:                              /* a table entry makes no sense */
        put64(b, b->cs + prng_below(p, blocks) * 8, (b->next + 100 + prng_below(p, 100)) * b->cs);
        break;
    }
}

static void hurt(struct build *b, uint64_t seed, uint64_t blocks)
{
    struct prng p;
    prng_init(&p, seed);
    for (uint64_t n = 1 + prng_below(&p, 4); n > 0; n--)
        hurt_one(b, &p, blocks);
}

/* Somebody else's old bytes, of which none is zero. */
static void rest_of_device(struct build *b)
{
    uint8_t sector[SIM_SECTOR];
    ASSERT(!b->g->device || b->next * b->cs <= b->g->device / 2);
    for (uint64_t at = b->next * b->cs; at < b->g->device; at += SIM_SECTOR) {
        sim_sector_fill(sector, SIM_GEN_JUNK, 100000 + at / SIM_SECTOR);
        put(b, at, sector, sizeof sector);
    }
}

void sim_image_build(struct sim_world *w, const struct sim_geom *g, uint64_t seed, struct sim_image *im)
{
    struct sim_file *f = sim_world_file(w, SIM_DISK_NAME);
    *im = (struct sim_image){ .g = g, .sectors = g->size_max / SIM_SECTOR };
    im->gens = sim_mem_alloc(im->sectors * sizeof(uint32_t));
    if (g->block) {
        f->lim.block = f->lim.mem_align = g->block;
        f->traits.direct = true;                     /* only direct I/O has blocks: space ahead is then preallocated */
    }
    f->traits.regular = !g->device;
    f->traits.zero_growth = f->traits.zero_crash = !g->no_zero_growth && !g->device;
    f->traits.can_punch = !g->no_punch;
    f->traits.can_zero = !g->no_zero;
    if (g->backing)
        build_below(w, g, im);
    if (g->chain)
        build_other(w, g, im);
    if (g->table) {
        start_gens(im);
        sim_disk_reset(&f->disk);
        sim_qed_build(&f->disk, im);
        return;
    }
    struct sim_file *data = g->data_file ? sim_world_file(w, SIM_DATA_NAME) : NULL;
    if (data && sim_disk_set_len(&data->disk, g->size) < 0)
        abort();
    for (uint64_t blocks = 1, need;; blocks = need) {
        struct build b = { .g = g, .d = &f->disk, .data = data ? &data->disk : NULL, .im = im, .cs = 1ull << g->cluster_bits };
        start_gens(im);
        sim_disk_reset(&f->disk);
        if (g->luks)
            b.x = sim_luks_key();
        need = lay_out(&b, blocks);
        lk_xform_free(b.x);
        if (need == blocks && (g->hurt || g->unclean))
            hurt(&b, seed, blocks);
        if (need == blocks)
            rest_of_device(&b);
        sim_mem_free(b.refs);
        if (need == blocks)
            break;
        sim_mem_free(im->snap);
        im->snap = NULL;
    }
}

void sim_image_fini(struct sim_image *im)
{
    sim_mem_free(im->gens);
    sim_mem_free(im->below);
    sim_mem_free(im->snap);
    *im = (struct sim_image){ 0 };
}
