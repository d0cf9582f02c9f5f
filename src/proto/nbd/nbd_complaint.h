/* SPDX-License-Identifier: MIT
 *
 * nbd_complaint.h: the answer of an NBD server that refuses a request and says why (a chunk of a structured reply, or of an extended one). Pure.
 */
#ifndef PROTO_NBD_COMPLAINT_H
#define PROTO_NBD_COMPLAINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/nbd/nbd_wire.h"

#define NBDP_COMPLAINT_MAX (sizeof(struct nbd_wire_chunk_ext) + 4 + 2 + NBD_STRING_MAX + 8)      /* bytes of one, with its head */
#define NBDP_COMPLAINT_TEXT_MAX 256u

/* text: printable ASCII, cut where it is longer; other bytes are '?'. off: that the error is about. */
struct nbdp_complaint { uint64_t cookie, off; bool has_off; char text[NBDP_COMPLAINT_TEXT_MAX]; };

/* Does an answer that is a complaint begin with these bytes? 0: no. Else how many bytes it takes; *ret is filled in once so many are there, and left alone
 * before. With too few bytes to tell, more than there are. */
size_t nbdp_complaint_parse(const void *buf, size_t have, struct nbdp_complaint *ret);

#endif
