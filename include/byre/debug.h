/* SPDX-License-Identifier: MIT
 *
 * debug.h: requests that stand still at a moment of one's choice, for tests. The image lies over a filter blkdebug (byre(1), FAULTS ON PURPOSE).
 *
 * All: -ENOTSUP: there is no such filter below the image. Any thread. What stands keeps all that it holds, so a call that needs that waits, too.
 */
#ifndef BYRE_DEBUG_H
#define BYRE_DEBUG_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The next request whose event this is stands still; it is known by `tag`. Where several are set for an event, they stop the same one, and each is to be
 * resumed. Closing the image removes them all. -ENOENT: there is no event of this name. */
BYRE_EXPORT BYRE_MUST_USE int byre_debug_break(struct byre_image *image, const char *event, const char *tag);
/* No request comes to stand by this tag any more (NULL: by any), those that do go on, and whoever waits for one no longer does. -ENOENT: none would have. */
BYRE_EXPORT BYRE_MUST_USE int byre_debug_remove(struct byre_image *image, const char *tag);
/* The first request that stands by this tag goes on. -ENOENT: none does. */
BYRE_EXPORT BYRE_MUST_USE int byre_debug_resume(struct byre_image *image, const char *tag);
/* Waits until a request stands by this tag, however long that takes. -ECANCELED: another thread has called byre_debug_remove for it (also where that
 * found no breakpoint). */
BYRE_EXPORT BYRE_MUST_USE int byre_debug_wait(struct byre_image *image, const char *tag);

#ifdef __cplusplus
}
#endif

#endif
