/* SPDX-License-Identifier: MIT
 *
 * map.h: where is the content of an image?
 */
#ifndef BYRE_MAP_H
#define BYRE_MAP_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    BYRE_MAP_PRESENT = 1u << 0,      /* some layer holds this range */
    BYRE_MAP_ZERO = 1u << 1,         /* reads as zeros */
    BYRE_MAP_DATA = 1u << 2,         /* bytes are stored */
    BYRE_MAP_COMPRESSED = 1u << 3,
    BYRE_MAP_OFFSET = 1u << 4,       /* `offset` and `filename` are known */
};

struct byre_extent {
    size_t struct_size;
    uint64_t start, len;             /* bytes of the image */
    uint64_t offset;                 /* bytes, in the file of the layer that answers */
    unsigned flags;                  /* BYRE_MAP_* */
    unsigned depth;                  /* 0: the image itself, 1: its backing image, ... */
    const char *filename;            /* of the layer that answers; valid until byre_close */
};
BYRE_DEFINE_INIT(byre_extent)

/* byre_map flags: TOP: the image alone, without its backing chain. */
enum { BYRE_MAP_TOP = 1u << 0 };

/* The longest range from off on, at most len, to which one answer applies. off + len must lie inside the image, len > 0. */
BYRE_EXPORT BYRE_MUST_USE int byre_map(struct byre_image *image, uint64_t off, uint64_t len, unsigned flags, struct byre_extent *ret);

#ifdef __cplusplus
}
#endif
#endif
