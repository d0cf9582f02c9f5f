/* SPDX-License-Identifier: MIT
 *
 * q2_ext.h: adding a header extension to an image that exists, and moving one, so that the image opens at every tear (Q18).
 */
#ifndef Q2_EXT_H
#define Q2_EXT_H

#include <stdint.h>

#include "base/err.h"

struct co;

struct q2_ext { uint32_t type, len; const void *data; };

/* Writes the 512-byte sectors [from, to) of buf (bytes of the first cluster) and makes them durable. May suspend. */
typedef int q2_ext_put(struct co *co, void *arg, const uint8_t *buf, uint32_t from, uint32_t to);

/* Adds e, which must not be there yet, to the header in buf: `bytes` of the first cluster as they are on the disk (a
 * multiple of 512), accepted by q2_header_parse. Whatever part of a put() reaches the disk, the header says the same as
 * before or the new extension as well; the table of feature names may be missing. *ret_off: where its data lies. -ENOSPC: no
 * room, -EEXIST: it is there; nothing was changed. Else what put() returned, and buf is unspecified. */
MUST_USE int q2_ext_add(struct co *co, uint8_t *buf, uint32_t bytes, const struct q2_ext *e, q2_ext_put *put, void *arg, uint32_t *ret_off);

/* Moves the extension of this type, and those behind it, so that its data lies in one sector, if that is possible at all. Buffer, tears
 * and failures as for q2_ext_add; what lay at or behind `from` lies `by` bytes further. -ENOENT: there is none. */
struct q2_ext_moved { uint32_t from, by; };
MUST_USE int q2_ext_move(struct co *co, uint8_t *buf, uint32_t bytes, uint32_t type, q2_ext_put *put, void *arg, struct q2_ext_moved *ret);

#endif
