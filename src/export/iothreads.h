/* SPDX-License-Identifier: MIT
 *
 * iothreads.h: loops that have names, for exports that are to be served by a certain thread (FEATURES 3.076, 10.025).
 *
 *     iothreads_init -> iothread_add ... iothread_del ... -> iothreads_fini
 *
 * A node is served by any loop, so that nothing moves when an export gets a loop of its own: its clients' requests are carried out there. What changes
 * tables of an image still happens on the image's home loop.
 *
 * Concurrency  Home loop.
 */
#ifndef EXPORT_IOTHREADS_H
#define EXPORT_IOTHREADS_H

#include "base/err.h"
#include "base/list.h"
#include "rt/loop.h"
#include "rt/sync.h"

/* Values that the peer's iothread has. They are kept and shown; a loop here waits in the kernel and does not poll before, so none changes anything. */
enum iothread_number { IOTHREAD_POLL_MAX_NS, IOTHREAD_POLL_GROW, IOTHREAD_POLL_SHRINK, IOTHREAD_AIO_MAX_BATCH, IOTHREAD_POOL_MIN, IOTHREAD_POOL_MAX, IOTHREAD_NUMBERS };
struct iothread_values { int64_t of[IOTHREAD_NUMBERS]; };
#define IOTHREAD_VALUES_DEFAULT { { [IOTHREAD_POLL_MAX_NS] = 32768, [IOTHREAD_POOL_MAX] = 64 } }
extern const char *const iothread_names[IOTHREAD_NUMBERS];      /* "poll-max-ns" ... */
MUST_USE int iothread_check(const struct iothread_values *v, struct byre_err *err);

struct iothread {
    struct list_node link;
    char *id;
    struct rt_loop *loop;
    struct iothread_values values;
};

struct iothreads {
    struct list named, idle;             /* idle: loops whose name is gone; they wait for the next one */
    struct co_mutex starting;            /* one loop at a time (rt_loop_more) */
};

void iothreads_init(struct iothreads *set);
void iothreads_fini(struct iothreads *set);      /* the loops end with the runtime */
/* EXISTS; LIMIT: no loop is left. Suspends. */
MUST_USE int iothread_add(struct co *co, struct iothreads *set, const char *id, const struct iothread_values *v, struct byre_err *err);
void iothread_del(struct iothreads *set, struct iothread *io);   /* nobody names it */
struct iothread *iothread_find(struct iothreads *set, const char *id);                  /* NULL: none */
struct iothread *iothread_next(struct iothreads *set, struct iothread *prev);           /* iterate; prev NULL: the first */

#endif
