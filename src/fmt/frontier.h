/* SPDX-License-Identifier: MIT
 *
 * frontier.h: by how much, and how, an image file is made longer ahead of what is written (DESIGN D4). What formats share.
 */
#ifndef FMT_FRONTIER_H
#define FMT_FRONTIER_H

#include <errno.h>

#include "base/checked.h"
#include "stor/stor.h"

#define FRONTIER_STEP_BYTES_MIN (32ull << 20)
/* A growth begins when half a step is left: together they stay below what P1 allows, 64 MiB or 1 % of the file. */
#define FRONTIER_STEP_BYTES_MAX (40ull << 20)
#define FRONTIER_STEP_FILE_PART 160u
#define FRONTIER_STEP_CLUSTERS_MIN 16u
#define FRONTIER_STEP_CLUSTERS_MAX 8192u

/* Clusters of a step. wanted_bytes: fmt_open_opts.frontier_bytes. */
static inline uint64_t frontier_step(uint64_t wanted_bytes, uint64_t file_bytes, uint64_t cluster_size)
{
    if (wanted_bytes && wanted_bytes != UINT64_MAX)
        return max_u64(wanted_bytes / cluster_size, 1);
    uint64_t bytes = max_u64(max_u64(FRONTIER_STEP_BYTES_MIN, min_u64(file_bytes, FRONTIER_STEP_BYTES_MAX)), file_bytes / FRONTIER_STEP_FILE_PART);
    return min_u64(max_u64(bytes / cluster_size, FRONTIER_STEP_CLUSTERS_MIN), FRONTIER_STEP_CLUSTERS_MAX);
}

/* Direct writes into a hole cost a file system an allocation each, which it does one after the other and waits for;
 * into space that is allocated and unwritten they start at once and are merged. Buffered writes gain nothing. */
MUST_USE static inline int frontier_extend(struct co *co, struct stor *s, uint64_t len, uint64_t want)
{
    int r = s->traits.direct ? stor_preallocate(co, s, len, want - len) : -ENOTSUP;
    return r == -ENOTSUP || r == -ENOSPC || r == -EDQUOT ? stor_truncate(co, s, want) : r;
}

static inline bool frontier_no_space(int r) { return r == -ENOSPC || r == -EFBIG || r == -EDQUOT; }

#endif
