/* SPDX-License-Identifier: MIT
 *
 * qed_header.h: the header of a QED image, parsed and checked. Pure.
 */
#ifndef QED_HEADER_H
#define QED_HEADER_H

#include <stddef.h>

#include "base/err.h"
#include "fmt/qed/qed_geom.h"

struct qed_header {
    uint32_t cluster_size, table_size, header_clusters;
    uint64_t features, compat, autoclear;
    uint64_t l1_off, size;
    uint32_t backing_off, backing_len;            /* 0, 0: none */
    char *backing_name;                           /* owned; NULL: none */
};
void qed_header_fini(struct qed_header *h);

/* Parses and checks everything but the backing name. file_bytes: the length of the file. name: for messages. BAD_FORMAT: no
 * QED image; QED_FEATURE: it needs what is not known; QED_HEADER: a field is out of range. *ret untouched on failure. */
MUST_USE int qed_header_parse(const uint8_t *buf, size_t len, uint64_t file_bytes, const char *name, struct qed_header *ret, struct byre_err *err);
/* Takes the backing name, read from h->backing_off by the caller. */
MUST_USE int qed_header_take_name(struct qed_header *h, const uint8_t *bytes, const char *name, struct byre_err *err);
/* As fmt_ops.peek. */
struct fmt_peek;
MUST_USE int qed_peek(const uint8_t *buf, size_t len, uint64_t file_bytes, struct fmt_peek *ret);
struct qed_geom qed_header_geom(const struct qed_header *h);
/* The 64 bytes of the header. The name is written by the caller, at backing_off. */
void qed_header_emit(const struct qed_header *h, struct qed_disk_header *ret);
/* Where in the first cluster a name of any length has a place of whole sectors: none of them the first, or one of the name of h. Bytes. */
#define QED_SECTOR_BYTES 512u
#define QED_NAME_ROOM 1024u
uint32_t qed_header_name_place(const struct qed_header *h);

#endif
