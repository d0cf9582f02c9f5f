/* SPDX-License-Identifier: MIT
 *
 * q2_marks.h: a set of host clusters, one bit each, with memory only where there is one. Pure. When memory runs out it
 * says of every cluster that it is in the set: its users do less with those that are.
 */
#ifndef Q2_MARKS_H
#define Q2_MARKS_H

#include <stdbool.h>
#include <stdint.h>

struct q2_marks { uint64_t **chunks; uint64_t chunk_count; bool all; };       /* all zeros: empty */

void q2_marks_fini(struct q2_marks *m);                                        /* empty again */
void q2_marks_add(struct q2_marks *m, uint64_t first, uint64_t n);
bool q2_marks_has(const struct q2_marks *m, uint64_t c);
bool q2_marks_next(const struct q2_marks *m, uint64_t from, uint64_t *ret);    /* the first one from there on; not when all are in it */
uint64_t q2_marks_bytes(const struct q2_marks *m);

#endif
