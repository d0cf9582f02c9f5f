/* SPDX-License-Identifier: MIT
 *
 * q2_ondisk.h: the bytes of a qcow2 file, and nothing else. Source: the qcow2 specification (interop/qcow2).
 * All integers are big endian. Masks are used by q2_geom.h's decoders only.
 */
#ifndef Q2_ONDISK_H
#define Q2_ONDISK_H

#include "base/assert.h"
#include "base/endian.h"

#define Q2_MAGIC 0x514649fbu

struct q2_disk_header {          /* "Header" */
    be32 magic, version;
    be64 backing_off;
    be32 backing_len, cluster_bits;
    be64 size;
    be32 crypt_method, l1_size;
    be64 l1_off;
    be64 rt_off;
    be32 rt_clusters, nb_snapshots;
    be64 snapshots_off;          /* version 2 ends behind this: 72 bytes */
    be64 incompat, compat, autoclear;
    be32 refcount_order, header_len;
    uint8_t compression_type, pad[7];
};
DISK_SIZE(struct q2_disk_header, 112);
DISK_OFF(struct q2_disk_header, size, 24);
DISK_OFF(struct q2_disk_header, l1_size, 36);
DISK_OFF(struct q2_disk_header, l1_off, 40);
DISK_OFF(struct q2_disk_header, rt_off, 48);
DISK_OFF(struct q2_disk_header, rt_clusters, 56);
DISK_OFF(struct q2_disk_header, nb_snapshots, 60);
DISK_OFF(struct q2_disk_header, snapshots_off, 64);
DISK_OFF(struct q2_disk_header, incompat, 72);
DISK_OFF(struct q2_disk_header, compat, 80);
DISK_OFF(struct q2_disk_header, autoclear, 88);
DISK_OFF(struct q2_disk_header, refcount_order, 96);
DISK_OFF(struct q2_disk_header, header_len, 100);
DISK_OFF(struct q2_disk_header, compression_type, 104);
#define Q2_HEADER_V2_BYTES 72u
#define Q2_HEADER_V3_MIN 104u

#define Q2_INCOMPAT_DIRTY (1ull << 0)
#define Q2_INCOMPAT_CORRUPT (1ull << 1)
#define Q2_INCOMPAT_DATA_FILE (1ull << 2)
#define Q2_INCOMPAT_COMPRESSION (1ull << 3)
#define Q2_INCOMPAT_EXT_L2 (1ull << 4)
#define Q2_INCOMPAT_KNOWN 0x1full
#define Q2_COMPAT_LAZY (1ull << 0)
#define Q2_COMPAT_KNOWN 0x1ull
#define Q2_AUTOCLEAR_BITMAPS (1ull << 0)
#define Q2_AUTOCLEAR_RAW_DATA (1ull << 1)
#define Q2_AUTOCLEAR_SETTLED (1ull << 58)        /* ours: beside the next one: no flag of a single owner is missing */
#define Q2_AUTOCLEAR_CLONES (1ull << 59)         /* ours: places of the disk may share clusters, and flags of single owners be missing (q2_clone.c) */
#define Q2_AUTOCLEAR_GENERATION (1ull << 60)     /* ours: who has opened the image for writing since knows of the number in Q2_EXT_SUPERSETS (D9) */
#define Q2_AUTOCLEAR_SUPERSETS (1ull << 61)      /* ours: extension Q2_EXT_SUPERSETS is true (D9) */
#define Q2_AUTOCLEAR_FRONTIER (1ull << 62)       /* ours: extension Q2_EXT_FRONTIER is true (DESIGN D4, D9) */

struct q2_disk_ext { be32 type, len; };           /* "Header extensions": data follows, padded to 8 */
#define Q2_EXT_END 0u
#define Q2_EXT_BACKING_FORMAT 0xe2792acau
#define Q2_EXT_FEATURE_NAMES 0x6803f857u
#define Q2_EXT_BITMAPS 0x23852875u
#define Q2_EXT_CRYPTO 0x0537be77u
#define Q2_EXT_DATA_FILE 0x44415441u
#define Q2_EXT_FRONTIER 0x62797265u               /* ours ("byre"): be64 start, be64 end of the frontier, bytes */
#define Q2_EXT_PARTIAL 0x6279726fu                /* ours ("byro"): name of the image through which alone this one makes sense (commit); behind a
                                                     line feed, unless an older program wrote it, that image's token */
#define Q2_EXT_TOKEN 0x62797274u                  /* ours ("byrt"): what this image is called by others of which the above is true, 32 hex digits */
#define Q2_TOKEN_BYTES 32u
#define Q2_EXT_SUPERSETS 0x62797262u              /* ours ("byrb"): be32 count, be32 generation (0: none). Of the first `count` entries of the
                                                     bitmap directory those in use hold at least the bits that they should. The generation is another one
                                                     after each opening in which a bitmap has recorded something */
#define Q2_EXT_PADDING 0x62797270u                /* ours ("byrp"): room that another extension has left behind */

struct q2_disk_feature_name { uint8_t type, bit, name[46]; };
DISK_SIZE(struct q2_disk_feature_name, 48);

struct q2_disk_bitmaps_ext { be32 count, reserved; be64 dir_bytes, dir_off; };
DISK_SIZE(struct q2_disk_bitmaps_ext, 24);

struct q2_disk_bitmap_entry {                      /* "Bitmap directory"; then extra, name, pad to 8 */
    be64 table_off;
    be32 table_entries, flags;
    uint8_t type, granularity_bits;
    be16 name_len;
    be32 extra_len;
};
DISK_SIZE(struct q2_disk_bitmap_entry, 24);
#define Q2_BITMAP_IN_USE 1u
#define Q2_BITMAP_AUTO 2u
#define Q2_BITMAP_EXTRA_OK 4u

struct q2_disk_snapshot {                          /* "Snapshots"; then extra, id, name, pad to 8 */
    be64 l1_off;
    be32 l1_size;
    be16 id_len, name_len;
    be32 date_sec, date_nsec;
    be64 vm_clock_ns;
    be32 vm_state_size, extra_len;
};
DISK_SIZE(struct q2_disk_snapshot, 40);

/* L1, L2, refcount table and bitmap table entries */
#define Q2_L1E_OFF 0x00fffffffffffe00ull
#define Q2_L2E_OFF 0x00fffffffffffe00ull
#define Q2_E_COPIED (1ull << 63)
#define Q2_E_COMPRESSED (1ull << 62)
#define Q2_E_ZERO 1ull
#define Q2_RTE_OFF 0xfffffffffffffe00ull
#define Q2_BME_OFF 0x00fffffffffffe00ull

#endif
