/* SPDX-License-Identifier: MIT
 *
 * iothreads.c: loops that have names (FEATURES 3.076).
 *
 * Purpose      Objects of the type iothread: each a loop of its own, that works for nobody but the exports that name it.
 * Owns         the objects; not the loops, which are the runtime's
 * Invariants   I1 a loop belongs to one object, named or idle
 * Order        a thread does not end with its object: who was served there may have left messages on the way. It loses its name and sleeps, and the
 *              next object gets it
 * Concurrency  home loop; threads are started on the blocking pool, one at a time
 * Failure      an object that could not be made has left nothing but, at most, an idle loop
 * Tests        tests/daemon/iothread_test.py, rt/rt_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "export/iothreads.h"

#define IDLE_NAME "byre-idle"

const char *const iothread_names[IOTHREAD_NUMBERS] = {
    [IOTHREAD_POLL_MAX_NS] = "poll-max-ns", [IOTHREAD_POLL_GROW] = "poll-grow", [IOTHREAD_POLL_SHRINK] = "poll-shrink",
    [IOTHREAD_AIO_MAX_BATCH] = "aio-max-batch", [IOTHREAD_POOL_MIN] = "thread-pool-min", [IOTHREAD_POOL_MAX] = "thread-pool-max",
};

int iothread_check(const struct iothread_values *v, struct byre_err *err)
{
    for (unsigned i = 0; i < IOTHREAD_NUMBERS; i++)
        if (v->of[i] < 0)
            return byre_fail(err, BAD_OPTION, "%s value must be in range [0, %" PRId64 "], not %" PRId64, iothread_names[i], INT64_MAX, v->of[i]);
    if (!v->of[IOTHREAD_POOL_MAX] || v->of[IOTHREAD_POOL_MIN] > v->of[IOTHREAD_POOL_MAX])
        return byre_fail(err, BAD_OPTION, "bad thread-pool-min/thread-pool-max values: %" PRId64 " and %" PRId64 "; at least one thread, and not fewer than the minimum",
                         v->of[IOTHREAD_POOL_MIN], v->of[IOTHREAD_POOL_MAX]);
    return 0;
}

void iothreads_init(struct iothreads *set)
{
    *set = (struct iothreads){ 0 };
    list_init(&set->named);
    list_init(&set->idle);
}

static struct iothread *first_of(struct list *l)
{
    return list_empty(l) ? NULL : CONTAINER_OF(list_first(l), struct iothread, link);
}

static void free_all(struct list *l)
{
    for (struct iothread *io; (io = first_of(l));) {
        list_remove(&io->link);
        free(io->id);
        free(io);
    }
}

void iothreads_fini(struct iothreads *set)
{
    free_all(&set->named);
    free_all(&set->idle);
}

struct iothread *iothread_next(struct iothreads *set, struct iothread *prev)
{
    struct list_node *n = prev ? list_next(&set->named, &prev->link) : list_first(&set->named);
    return n ? CONTAINER_OF(n, struct iothread, link) : NULL;
}

struct iothread *iothread_find(struct iothreads *set, const char *id)
{
    struct iothread *io = iothread_next(set, NULL);
    while (io && strcmp(io->id, id))
        io = iothread_next(set, io);
    return io;
}

struct starting { struct rt *rt; struct rt_loop *loop; };

static int64_t start_blocking(void *arg)
{
    struct starting *s = arg;
    return rt_loop_more(s->rt, &s->loop);
}

/* One more idle loop. */
static int start_idle(struct co *co, struct iothreads *set, struct byre_err *err)
{
    struct starting s = { .rt = rt_of(co_loop(co)) };
    struct iothread *io = calloc(1, sizeof *io);
    int64_t r = io ? rt_blocking(co, start_blocking, &s) : -ENOMEM;
    if (r) {
        free(io);
        return r == -ENOSPC ? byre_fail(err, LIMIT, "no thread is left for an iothread object: the program has %u in all", rt_loop_slots(s.rt))
                            : byre_fail_code(err, SYSTEM, (int)r, "a thread for an iothread object cannot start: %s", strerror((int)-r));
    }
    io->loop = s.loop;
    list_push_back(&set->idle, &io->link);
    return 0;
}

static int add_locked(struct co *co, struct iothreads *set, const char *id, const struct iothread_values *v, struct byre_err *err)
{
    if (iothread_find(set, id))
        return byre_fail(err, EXISTS, "there is an object '%s' already", id);
    int r = list_empty(&set->idle) ? start_idle(co, set, err) : 0;
    if (r)
        return r;
    struct iothread *io = first_of(&set->idle);
    io->id = strdup(id);
    if (!io->id)
        return byre_fail(err, NOMEM, "no memory for an iothread object");
    io->values = *v;
    list_remove(&io->link);
    list_push_back(&set->named, &io->link);
    rt_loop_name(io->loop, id);
    return 0;
}

int iothread_add(struct co *co, struct iothreads *set, const char *id, const struct iothread_values *v, struct byre_err *err)
{
    int r = iothread_check(v, err);
    if (r)
        return r;
    co_lock(co, &set->starting);
    r = add_locked(co, set, id, v, err);
    co_unlock(&set->starting);
    return r;
}

void iothread_del(struct iothreads *set, struct iothread *io)
{
    list_remove(&io->link);
    free(io->id);
    io->id = NULL;
    rt_loop_name(io->loop, IDLE_NAME);
    list_push_back(&set->idle, &io->link);
}
