/* SPDX-License-Identifier: MIT
 *
 * qed_ondisk.h: the bytes of a QED file, and nothing else. Source: the QED specification (interop/qed_spec).
 * All integers are little endian. Values of table entries are known to qed_geom.h only.
 */
#ifndef QED_ONDISK_H
#define QED_ONDISK_H

#include "base/assert.h"
#include "base/endian.h"

#define QED_MAGIC 0x00444551u                     /* "QED\0" */

struct qed_disk_header {
    le32 magic, cluster_size, table_size, header_size;      /* bytes; clusters; clusters */
    le64 features, compat, autoclear;
    le64 l1_off, image_size;                                /* bytes */
    le32 backing_off, backing_len;                          /* bytes from the start of the file; bytes, no NUL */
};
DISK_SIZE(struct qed_disk_header, 64);
DISK_OFF(struct qed_disk_header, features, 16);
DISK_OFF(struct qed_disk_header, l1_off, 40);
DISK_OFF(struct qed_disk_header, image_size, 48);
DISK_OFF(struct qed_disk_header, backing_off, 56);

#define QED_F_BACKING (1ull << 0)
#define QED_F_NEED_CHECK (1ull << 1)
#define QED_F_BACKING_RAW (1ull << 2)             /* the backing file is raw: its format is not to be guessed */
#define QED_F_KNOWN 7ull

#define QED_CLUSTER_BITS_MIN 12u
#define QED_CLUSTER_BITS_MAX 26u
#define QED_TABLE_SIZE_MAX 16u
#define QED_NAME_MAX 1023u

#endif
