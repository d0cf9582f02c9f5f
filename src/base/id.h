/* SPDX-License-Identifier: MIT
 *
 * id.h: the rule for names that users give to nodes, jobs, exports and secrets, as the peer has it.
 */
#ifndef BASE_ID_H
#define BASE_ID_H

#include <stdbool.h>
#include <stddef.h>

/* A letter, then letters, digits, '-', '.' and '_'; 1 to max bytes. ASCII, whatever the locale. */
bool id_is_good(const char *id, size_t max);

#endif
