/* SPDX-License-Identifier: MIT
 *
 * info.h: what an image says about itself.
 */
#ifndef BYRE_INFO_H
#define BYRE_INFO_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

struct byre_snapshot_info {
    const char *id, *name;
    uint64_t vm_state_size, disk_size, vm_clock_ns, icount;
    uint32_t date_sec, date_nsec;
    int has_icount;
};

/* Strings are NULL where there is nothing to say. Offsets and sizes are bytes. */
struct byre_key_slot { int active; uint64_t iters, key_offset, stripes; };
struct byre_crypt_info {
    const char *format;                      /* "luks", "aes" (then nothing else is known) */
    const char *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash_alg, *hash_alg, *uuid;
    uint64_t payload_offset, master_key_iters;
    struct byre_key_slot slots[8];
    int detached;                            /* 1: the header is in a file of its own */
};

struct byre_bitmap_info { const char *name; uint32_t granularity; int in_use, auto_on; };

/* Made by the library: members may be added at the end. Strings are NULL where there is nothing to say. */
struct byre_info {
    const char *filename, *format;
    uint64_t virtual_size;                   /* bytes */
    uint64_t actual_size; int has_actual_size;   /* bytes occupied on disk */
    uint64_t cluster_size;                   /* bytes; 0: none */
    int dirty, corrupt, encrypted;
    const char *backing_filename;            /* as recorded */
    const char *backing_format;
    const char *full_backing_filename;       /* as it would be opened */
    uint64_t vm_state_offset;                /* guest offset; 0: none */
    const struct byre_snapshot_info *const *snapshots; size_t snapshot_count;
    int is_qcow2;                            /* 1: those below hold */
    int version;                             /* 2 or 3 */
    int lazy_refcounts, extended_l2, has_data_file, data_file_raw;
    unsigned refcount_bits;
    const char *compression, *data_file;
    const struct byre_bitmap_info *const *bitmaps; size_t bitmap_count;    /* without damaged ones */
    size_t bitmaps_damaged;
    const struct byre_crypt_info *crypt;     /* any format; NULL: not encrypted */
    uint32_t generation;                     /* another one after each opening in which a bitmap has recorded something; 0: none */
    int others_wrote;                        /* 1: since then a program has opened the image for writing that does not know of generations */
    uint32_t bitmaps_outdated;               /* bitmaps that say nothing any more, because a program wrote the image that does not know of them */
};

BYRE_EXPORT BYRE_MUST_USE int byre_info_get(struct byre_image *image, struct byre_info **ret_info, struct byre_err *err);
BYRE_EXPORT void byre_info_free(struct byre_info *info);       /* NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
