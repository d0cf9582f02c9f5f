/* SPDX-License-Identifier: MIT
 *
 * closer.h: closing descriptors that came from others.
 *
 * A close may take as long as its peer or its server likes: of a socket that lingers, of a file on a server that does not answer, and of a unix
 * socket in which such a descriptor lies unread. Who does that on a loop stops all whom the loop serves; who does it on the blocking pool takes a
 * thread from those who read images. So there are threads for nothing else, a few, and the end of the runtime does not wait for them.
 *
 * Concurrency: rt_close_fds and rt_close_soon on a loop.
 */
#ifndef RT_CLOSER_H
#define RT_CLOSER_H

#include "rt/co.h"

#define RT_CLOSERS_MAX 16u                    /* threads; what is to be closed while all of them stand still waits for one */
#define RT_CLOSE_PATIENCE_NS UINT64_C(5000000000)

/* Closes all of them, which are nobody's from now on. Waits until that is done, but not longer than the patience, and not in a coroutine that is
 * cancelled or whose deadline has passed: then it is done later. Suspends. */
void rt_close_fds(struct co *co, const int *fds, unsigned count);
/* The same for one that nobody waits for. Does not suspend. */
void rt_close_soon(struct rt_loop *loop, int fd);

#endif
