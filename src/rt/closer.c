/* SPDX-License-Identifier: MIT
 *
 * closer.c: closing descriptors that came from others.
 *
 * Purpose      A queue of descriptors, and threads of its own that close them (closer.h says why).
 * Owns         descriptors from the call until they are closed; the threads
 * Invariants   I1 what was handed over is closed exactly once, also when the runtime has ended meanwhile
 *              I2 the end waits for no close: a thread that is inside one, or is about to begin one, is let go, and ends by itself. The others are joined,
 *                 so that a process that goes on has nothing of the runtime left as soon as nothing is left to close
 *              I3 no message is posted, and none is on its way into the inbox, once rt_closer_end has begun: a loop may go behind it
 *              I4 an errand for which somebody waits is freed by its loop; one that nobody waits for, or for which nobody waits any more when it is
 *                 done, by the thread
 * Concurrency  `lock` guards all of struct rt_closer, and `done` and `left` of an errand; it is a leaf, and held for no system call but the wakeup of a loop.
 *              What lies beside these in an errand belongs to the loop of who waits
 * Failure      no memory, or no thread at all: closed here and now, by the loop. The simulator has no threads, and closes there as well
 * Tests        closer_test.c, tests/daemon/fdset_test.py
 */
#include "rt/closer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rt/rt_priv.h"

struct errand {
    struct errand *next;
    struct rt_loop *loop;                /* of who waits; NULL: nobody ever did */
    struct rt_msg msg;
    struct co_waitq q;
    bool arrived;                        /* msg has */
    bool done, left;                     /* closed; nobody waits any more */
    unsigned count;
    int fds[];
};

struct slot { struct rt_closer *c; pthread_t thread; bool busy; };

struct rt_closer {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct errand *head, *tail;
    unsigned queued, idle, started;
    unsigned refs;                       /* threads, and the runtime */
    bool ended;
    struct slot slots[RT_CLOSERS_MAX];
};

static void close_all(const int *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        (void)close(fds[i]);             /* whatever it says, the descriptor is free */
}

/* ---- the threads ---- */

/* lock held; gives it back */
static void leave_unlock(struct rt_closer *c)
{
    bool last = --c->refs == 0;
    pthread_mutex_unlock(&c->lock);
    if (!last)
        return;
    pthread_cond_destroy(&c->more);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

/* lock held. I3, I4 */
static void finish_locked(struct errand *e)
{
    e->done = true;
    if (e->loop && !e->left)
        rt_post(e->loop, &e->msg);
    else
        free(e);
}

static void *closer_main(void *arg)
{
    struct slot *s = arg;
    struct rt_closer *c = s->c;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->head && !c->ended) {
            c->idle++;
            pthread_cond_wait(&c->more, &c->lock);
            c->idle--;
        }
        struct errand *e = c->head;
        if (!e)
            break;
        c->head = e->next;
        c->queued--;
        s->busy = true;
        pthread_mutex_unlock(&c->lock);
        close_all(e->fds, e->count);
        pthread_mutex_lock(&c->lock);
        s->busy = false;
        finish_locked(e);
    }
    leave_unlock(c);
    return NULL;
}

/* lock held */
static void start_one_locked(struct rt_closer *c)
{
    if (c->started == RT_CLOSERS_MAX)
        return;
    struct slot *s = &c->slots[c->started];
    s->c = c;
    bool runs = rt_worker_start(&s->thread, closer_main, s);
    c->started += runs;
    c->refs += runs;
}

/* false: there is no thread, and none is to be had. */
static bool push(struct rt_closer *c, struct errand *e)
{
    pthread_mutex_lock(&c->lock);
    ASSERT(!c->ended);
    if (c->queued >= c->idle)
        start_one_locked(c);
    bool taken = c->started;
    if (taken) {
        e->next = NULL;
        if (c->head)
            c->tail->next = e;
        else
            c->head = e;
        c->tail = e;
        c->queued++;
        pthread_cond_signal(&c->more);
    }
    pthread_mutex_unlock(&c->lock);
    return taken;
}

/* ---- life ---- */

int rt_closer_new(struct rt_closer **ret_c)
{
    struct rt_closer *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    if (pthread_mutex_init(&c->lock, NULL)) {
        free(c);
        return -ENOMEM;
    }
    if (pthread_cond_init(&c->more, NULL)) {
        pthread_mutex_destroy(&c->lock);
        free(c);
        return -ENOMEM;
    }
    c->refs = 1;
    *ret_c = c;
    return 0;
}

void rt_closer_end(struct rt_closer *c)
{
    pthread_t idle[RT_CLOSERS_MAX];
    unsigned n = 0;
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->ended = true;
    for (unsigned i = 0; i < c->started; i++) {
        if (c->head || c->slots[i].busy)
            pthread_detach(c->slots[i].thread);      /* I2 */
        else
            idle[n++] = c->slots[i].thread;
    }
    pthread_cond_broadcast(&c->more);
    pthread_mutex_unlock(&c->lock);
    for (unsigned i = 0; i < n; i++)
        pthread_join(idle[i], NULL);
    pthread_mutex_lock(&c->lock);
    leave_unlock(c);
}

/* ---- on a loop ---- */

static struct errand *errand_new(const int *fds, unsigned count)
{
    struct errand *e = malloc(sizeof *e + count * sizeof *fds);
    if (!e)
        return NULL;
    *e = (struct errand){ .count = count };
    memcpy(e->fds, fds, count * sizeof *fds);
    return e;
}

static void arrived(struct rt_msg *m)
{
    struct errand *e = CONTAINER_OF(m, struct errand, msg);
    e->arrived = true;
    if (e->left)                         /* on this loop alone it becomes true */
        free(e);
    else
        (void)co_wake_all(&e->q);
}

/* e is freed, or left to others (I4). */
static void wait_for(struct co *co, struct rt_closer *c, struct errand *e)
{
    while (!e->arrived && !co_wait_cancellable(co, &e->q))
        ;
    if (e->arrived) {
        free(e);
        return;
    }
    pthread_mutex_lock(&c->lock);
    e->left = true;
    pthread_mutex_unlock(&c->lock);
}

static void wait_patiently(struct co *co, struct rt_closer *c, struct errand *e)
{
    uint64_t before = co_set_deadline(co, 0), until = rt_now(co_loop(co)) + RT_CLOSE_PATIENCE_NS;
    (void)co_set_deadline(co, before && before < until ? before : until);
    wait_for(co, c, e);
    (void)co_set_deadline(co, before);
}

void rt_close_fds(struct co *co, const int *fds, unsigned count)
{
    struct rt_closer *c = co->loop->rt->closer;
    struct errand *e = count && c ? errand_new(fds, count) : NULL;
    if (e) {
        e->loop = co->loop;
        e->msg.fn = arrived;
    }
    if (e && push(c, e)) {
        wait_patiently(co, c, e);
        return;
    }
    free(e);
    close_all(fds, count);
}

void rt_close_soon(struct rt_loop *loop, int fd)
{
    struct rt_closer *c = loop->rt->closer;
    struct errand *e = c ? errand_new(&fd, 1) : NULL;
    if (e && push(c, e))
        return;
    free(e);
    (void)close(fd);
}
