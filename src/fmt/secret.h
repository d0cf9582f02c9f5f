/* SPDX-License-Identifier: MIT
 *
 * secret.h: memory for keys, and the passphrases that a program was given, by name.
 *
 * Memory of secret_new is kept out of swap (as far as the limit of locked memory allows), out of core dumps and out of
 * children, and is wiped when it is freed.
 */
#ifndef FMT_SECRET_H
#define FMT_SECRET_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Zeroed memory, whole pages. NULL: none. secret_free: NULL ok. */
void *secret_new(size_t bytes);
void secret_free(void *p);
/* Overwrites bytes in a way that the compiler does not leave out: for what keys leave behind on stacks. */
void secret_wipe(void *p, size_t bytes);
/* Fills with random bytes of the system. -EIO. May block for a moment at boot. */
MUST_USE int secret_random(void *p, size_t bytes);
/* Constant time for one length. */
int secret_differs(const void *a, const void *b, size_t bytes);

#define SECRET_ID_MAX 128u
#define SECRET_BYTES_MAX (16u << 20)     /* what a secret file may hold */

struct secret { size_t len; const uint8_t *bytes; };     /* immutable; lives until its last put */
struct secret_set;

MUST_USE int secret_set_new(struct secret_set **ret_set);
void secret_set_free(struct secret_set *set);             /* NULL ok; secrets that are held stay */
/* Copies bytes. -EEXIST, -EINVAL (name), -E2BIG, -ENOMEM. Any thread, like the two below. */
MUST_USE int secret_set_add(struct secret_set *set, const char *id, const void *bytes, size_t len);
MUST_USE int secret_set_remove(struct secret_set *set, const char *id);     /* -ENOENT */
/* NULL: there is none of that name (or set is NULL). Give it back by secret_put. */
struct secret *secret_get(struct secret_set *set, const char *id);
void secret_put(struct secret *s);                        /* NULL ok */

#endif
