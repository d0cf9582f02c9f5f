/* SPDX-License-Identifier: MIT
 *
 * fdset.h: sets of open files that others have passed to this process (FEATURES 3.023). A file name /dev/fdset/N means the files of set N: whoever
 * opens it gets the one whose access mode fits, without a look at any path. stor_file_open does, where its options name the sets.
 *
 * Invariants
 *   I1  A set is there as long as it has a descriptor, or a store that was opened from it is open.
 *   I2  What is removed from a set is its remover's; stores that were opened from it keep their own descriptor of the same open file.
 *   I3  A descriptor is closed by whoever owns it, on every path: what is given to fdset_add or passed_socket_offer is owned from then on; when they
 *       fail, it is still the caller's.
 * Concurrency  Any thread. What closes a descriptor may block, for as long as a server or a peer takes: that is fdsets_free alone. Opening a store
 *              from a set: file_priv.h.
 */
#ifndef STOR_FDSET_H
#define STOR_FDSET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define FDSETS_FDS_MAX 256u              /* descriptors in all sets */
#define FDSET_OPAQUE_MAX 4096u           /* bytes of a text that describes one */

struct fdsets;
struct rt_loop;
MUST_USE int fdsets_new(struct fdsets **ret_s);
/* Hands over to rt/closer.h what the sets have: whoever ends does not wait for it. On that loop. */
void fdsets_empty(struct fdsets *s, struct rt_loop *loop);
void fdsets_free(struct fdsets *s);      /* closes what is left; no store of them is open. NULL ok */

/* Does the name mean a set, whether or not there is one? */
bool fdset_is_name(const char *name);

/* id NULL: the lowest number that no set has. A set that is not there is made. opaque (may be NULL) is copied. */
struct fdset_new { const int64_t *id; const char *opaque; int fd; };
MUST_USE int fdset_add(struct fdsets *s, const struct fdset_new *what, int64_t *ret_id, struct byre_err *err);
/* fd negative: all of them. They are the caller's from now on. NOT_FOUND: there is no such set, or no such descriptor in it. */
struct fdset_removed { unsigned count; int fds[FDSETS_FDS_MAX]; };
MUST_USE int fdset_remove(struct fdsets *s, int64_t id, int fd, struct fdset_removed *ret, struct byre_err *err);

/* Sockets that nodes to come are to use. *ret_key, which the caller frees, is `name` and a number that no other one ever has: so nobody takes one that
 * was meant for somebody else. It is taken once. */
MUST_USE int passed_socket_offer(struct fdsets *s, const char *name, int fd, char **ret_key, struct byre_err *err);
/* It is the caller's again; false: somebody has taken it. */
MUST_USE bool passed_socket_withdraw(struct fdsets *s, const char *key, int *ret_fd);
/* The caller's from now on. NOT_FOUND: there is none. */
MUST_USE int passed_socket_take(struct fdsets *s, const char *key, int *ret_fd, struct byre_err *err);

/* Every set, the highest number first, each followed by its descriptors in the order in which they came. Called with the sets locked. */
struct fdset_teller {
    void (*set)(void *arg, int64_t id);
    void (*fd)(void *arg, int fd, const char *opaque);      /* opaque NULL: there is none */
    void *arg;
};
void fdsets_tell(struct fdsets *s, const struct fdset_teller *t);

#endif
