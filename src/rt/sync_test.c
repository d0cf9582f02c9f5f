/* SPDX-License-Identifier: MIT
 *
 * sync_test.c: wait queues, mutex, semaphore, group, range locks under a random schedule, events from threads.
 */
#include <pthread.h>

#include "rt/rt_test.h"

static char trace[256];

static void note(char c)
{
    size_t n = strlen(trace);
    ASSERT(n + 1 < sizeof trace);
    trace[n] = c;
    trace[n + 1] = 0;
}

static void pause_randomly(struct co *co, struct prng *p)
{
    for (uint64_t n = prng_below(p, 4); n; n--)
        co_yield(co);
}

/* ---- wait queues ---- */

struct waiter { struct co_waitq *q; char name; int result; bool cancellable; uint64_t deadline; };

static void wait_once(struct co *co, void *arg)
{
    struct waiter *w = arg;
    co_set_deadline(co, w->deadline);
    if (w->cancellable)
        w->result = co_wait_cancellable(co, w->q);
    else
        co_wait(co, w->q);
    note(w->name);
}

static void first_come_first_served(struct co *co)
{
    struct co_waitq q = { 0 };
    struct waiter w[4];
    struct rt_task t[4];
    trace[0] = 0;
    ASSERT(co_waitq_empty(&q) && !co_wake_one(&q) && co_wake_all(&q) == 0);
    for (int i = 0; i < 4; i++) {
        w[i] = (struct waiter){ .q = &q, .name = (char)('a' + i), .cancellable = i & 1 };
        OK(rt_task_start(co_loop(co), &t[i], wait_once, &w[i]));
    }
    co_yield(co);
    ASSERT(!co_waitq_empty(&q));
    ASSERT(co_wake_one(&q));
    note('1');                          /* waking does not switch */
    co_yield(co);
    ASSERT(co_wake_all(&q) == 3);
    ASSERT(co_waitq_empty(&q));
    for (int i = 0; i < 4; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "1abcd"));
}
ON_BOTH(first_come_first_served)

static void cancelled_waits(struct co *co)
{
    struct co_waitq q = { 0 };
    struct waiter w[5];
    struct rt_task t[5];
    trace[0] = 0;
    for (int i = 0; i < 5; i++) {
        w[i] = (struct waiter){ .q = &q, .name = (char)('a' + i), .cancellable = true, .result = 1 };
        if (i == 3)
            w[i].deadline = rt_now(co_loop(co)) + 2 * MS;
        OK(rt_task_start(co_loop(co), &t[i], wait_once, &w[i]));
    }
    co_yield(co);
    rt_cancel(&t[2]);                   /* from the middle */
    rt_task_join(co, &t[2]);
    ASSERT(w[2].result == -ECANCELED);
    rt_task_join(co, &t[3]);
    ASSERT(w[3].result == -ETIMEDOUT);
    ASSERT(co_wake_one(&q));            /* a: woken first, then cancelled before it ran: the wake counts */
    rt_cancel(&t[0]);
    rt_task_join(co, &t[0]);
    ASSERT(w[0].result == 0);
    rt_cancel(&t[4]);                   /* the tail */
    ASSERT(co_wake_all(&q) == 1);
    rt_task_join(co, &t[1]);
    rt_task_join(co, &t[4]);
    ASSERT(w[1].result == 0 && w[4].result == -ECANCELED);
    ASSERT(co_waitq_empty(&q));
}
ON_BOTH(cancelled_waits)

/* ---- mutex, semaphore, group ---- */

static struct co_mutex mutex;
static unsigned inside;

static void lock_user(struct co *co, void *arg)
{
    for (int i = 0; i < 3; i++) {
        co_lock(co, &mutex);
        ASSERT(inside++ == 0);
        note(*(char *)arg);
        co_yield(co);
        co_yield(co);
        ASSERT(--inside == 0);
        co_unlock(&mutex);
    }
}

static void mutex_is_fair(struct co *co)
{
    struct rt_task t[3];
    char c[3] = { 'a', 'b', 'c' };
    trace[0] = 0;
    for (int i = 0; i < 3; i++)
        OK(rt_task_start(co_loop(co), &t[i], lock_user, &c[i]));
    for (int i = 0; i < 3; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "abcabcabc"));    /* whoever unlocks goes behind those who wait */
    ASSERT(!mutex.held);
}
ON_BOTH(mutex_is_fair)

static struct co_sem sem;
struct sem_user { uint64_t n; char name; };

static void sem_user(struct co *co, void *arg)
{
    struct sem_user *u = arg;
    co_sem_down(co, &sem, u->n);
    note(u->name);
}

static void semaphore(struct co *co)
{
    struct sem_user u[4] = { { 2, 'a' }, { 5, 'b' }, { 1, 'c' }, { 0, 'd' } };
    struct rt_task t[4];
    trace[0] = 0;
    sem = (struct co_sem){ .avail = 3 };
    for (int i = 0; i < 4; i++)
        OK(rt_task_start(co_loop(co), &t[i], sem_user, &u[i]));
    co_yield(co);
    ASSERT(!strcmp(trace, "a") && sem.avail == 1);      /* c would fit, but b came first */
    co_sem_up(&sem, 3);
    co_yield(co);
    ASSERT(!strcmp(trace, "a") && sem.avail == 4);
    co_sem_up(&sem, 2);
    for (int i = 0; i < 4; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "abcd") && sem.avail == 0);
}
ON_BOTH(semaphore)

static void member_of_group(struct co *co, void *arg)
{
    struct co_group *g = arg;
    co_yield(co);
    note('m');
    co_group_leave(g);
}

static void group(struct co *co)
{
    struct co_group g = { 0 };
    trace[0] = 0;
    co_group_wait(co, &g);
    for (int i = 0; i < 4; i++) {
        co_group_enter(&g);
        OK(rt_spawn(co_loop(co), member_of_group, &g));
    }
    co_group_wait(co, &g);
    ASSERT(g.n == 0 && !strcmp(trace, "mmmm"));
}
ON_BOTH(group)

/* ---- range locks ---- */

enum { SPACE = 64, USERS = 24, ROUNDS = 60 };
static struct co_range_locks locks;
static int owner[SPACE];
static struct prng rng;

/* Requests that wait or hold, in the order of their calls. */
static struct request { uint64_t start, end; bool held; int id; } requests[USERS];
static int request_count;

static void request_add(int id, uint64_t start, uint64_t end)
{
    requests[request_count++] = (struct request){ start, end, false, id };
}

static struct request *request_of(int id)
{
    for (int i = 0; i < request_count; i++)
        if (requests[i].id == id)
            return &requests[i];
    UNREACHABLE();
}

static void request_remove(int id)
{
    struct request *r = request_of(id);
    memmove(r, r + 1, (size_t)(requests + --request_count - r) * sizeof *r);
}

static void range_user(struct co *co, void *arg)
{
    int id = *(int *)arg;
    for (int i = 0; i < ROUNDS; i++) {
        struct co_range r;
        uint64_t a = prng_below(&rng, SPACE), b = prng_range(&rng, a, prng_one_in(&rng, 6) ? SPACE : a + (SPACE - a) / 4);
        bool try = prng_one_in(&rng, 4), free_now = true;
        for (int k = 0; k < request_count; k++)
            free_now &= !(requests[k].start < b && a < requests[k].end && a < b && requests[k].start < requests[k].end);
        if (try) {
            ASSERT(co_range_trylock(&locks, &r, a, b) == free_now);
            if (!free_now)
                continue;
            request_add(id, a, b);
        } else {
            request_add(id, a, b);
            co_range_lock(co, &locks, &r, a, b);
        }
        struct request *me = request_of(id);
        for (struct request *q = requests; q < me; q++)     /* nobody in front of us overlaps: neither passed nor shared */
            ASSERT(!(q->start < b && a < q->end && a < b && q->start < q->end));
        me->held = true;
        for (uint64_t k = a; k < b; k++) {
            ASSERT(owner[k] == 0);
            owner[k] = id;
        }
        pause_randomly(co, &rng);
        for (uint64_t k = a; k < b; k++) {
            ASSERT(owner[k] == id);
            owner[k] = 0;
        }
        request_remove(id);
        co_range_unlock(&locks, &r);
        pause_randomly(co, &rng);
    }
}

static void range_locks(struct co *co)
{
    struct rt_task t[USERS];
    int id[USERS];
    prng_init(&rng, 77);
    for (int i = 0; i < USERS; i++) {
        id[i] = i + 1;
        OK(rt_task_start(co_loop(co), &t[i], range_user, &id[i]));
    }
    for (int i = 0; i < USERS; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!locks.head && request_count == 0);
}
ON_BOTH(range_locks)

struct one_range { uint64_t start, end; char name; };
static void take_range(struct co *co, void *arg)
{
    struct one_range *o = arg;
    struct co_range r;
    co_range_lock(co, &locks, &r, o->start, o->end);
    note(o->name);
    co_yield(co);
    co_range_unlock(&locks, &r);
}

static void ranges_do_not_pass(struct co *co)
{
    /* a waits for us; b overlaps a only, and must not pass it; c is free; d is empty and never waits */
    struct one_range o[4] = { { 5, 15, 'a' }, { 12, 20, 'b' }, { 30, 40, 'c' }, { 7, 7, 'd' } };
    struct rt_task t[4];
    struct co_range mine;
    trace[0] = 0;
    co_range_lock(co, &locks, &mine, 0, 10);
    for (int i = 0; i < 4; i++)
        OK(rt_task_start(co_loop(co), &t[i], take_range, &o[i]));
    for (int i = 0; i < 5; i++)
        co_yield(co);
    ASSERT(!strcmp(trace, "cd"));
    co_range_unlock(&locks, &mine);
    for (int i = 0; i < 4; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "cdab"));
}
ON_BOTH(ranges_do_not_pass)

static void take_two(struct co *co, void *arg)
{
    struct one_range *o = arg;
    struct co_range a = { .start = o[0].start, .end = o[0].end }, b = { .start = o[1].start, .end = o[1].end };
    co_range_lock_two(co, &locks, &a, &b);
    note(o->name);
    co_yield(co);
    co_range_unlock(&locks, &a);
    co_range_unlock(&locks, &b);
}

static void two_ranges_are_asked_for_at_once(struct co *co)
{
    /* p and q want two each and wait for us; x, which came in between, overlaps both of p: one after the other they would wait for ever */
    struct one_range p[2] = { { 5, 15, 'p' }, { 20, 30, 'p' } }, x = { 8, 25, 'x' }, q[2] = { { 40, 50, 'q' }, { 0, 10, 'q' } };
    struct rt_task t[3];
    struct co_range mine;
    trace[0] = 0;
    co_range_lock(co, &locks, &mine, 0, 7);
    OK(rt_task_start(co_loop(co), &t[0], take_two, p));
    OK(rt_task_start(co_loop(co), &t[1], take_range, &x));
    OK(rt_task_start(co_loop(co), &t[2], take_two, q));
    for (int i = 0; i < 3; i++)
        co_yield(co);
    ASSERT(!trace[0]);
    co_range_unlock(&locks, &mine);
    for (int i = 0; i < 3; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "pxq") && !locks.head);
}
ON_BOTH(two_ranges_are_asked_for_at_once)

static void wait_for_range(struct co *co, void *arg)
{
    struct one_range *o = arg;
    note(co_range_wait(co, &locks, o->start, o->end) ? o->name : '-');
}

static void waiting_without_taking(struct co *co)
{
    /* x and y overlap the holder, z nobody; q queues for the lock behind it. All who wait run in one turn, before q's end */
    struct one_range w[3] = { { 5, 15, 'x' }, { 0, 3, 'y' }, { 40, 50, 'z' } }, q = { 8, 12, 'q' };
    struct rt_task t[4];
    struct co_range mine;
    trace[0] = 0;
    co_range_lock(co, &locks, &mine, 0, 10);
    OK(rt_task_start(co_loop(co), &t[3], take_range, &q));
    for (int i = 0; i < 3; i++)
        OK(rt_task_start(co_loop(co), &t[i], wait_for_range, &w[i]));
    co_yield(co);
    ASSERT(!strcmp(trace, "-"));
    co_range_unlock(&locks, &mine);
    co_yield(co);
    ASSERT(strlen(trace) == 4 && strchr(trace, 'x') && strchr(trace, 'y') && strchr(trace, 'q'));
    for (int i = 0; i < 4; i++)
        rt_task_join(co, &t[i]);
}
ON_BOTH(waiting_without_taking)

/* ---- events from other threads ---- */

static void *set_later(void *arg)
{
    usleep(1000);
    co_xevent_set(arg);
    return NULL;
}

static void events_from_threads(struct co *co)
{
    for (int i = 0; i < 30; i++) {
        struct co_xevent *e = malloc(sizeof *e);
        pthread_t th;
        co_xevent_init(e, co_loop(co));
        OK(pthread_create(&th, NULL, set_later, e));
        if (i % 3 == 0)
            OK(co_sleep(co, 3 * MS));   /* set before we wait */
        co_xevent_wait(co, e);
        free(e);
        pthread_join(th, NULL);
    }
}
ON_BOTH(events_from_threads)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(first_come_first_served), BOTH(cancelled_waits), BOTH(mutex_is_fair), BOTH(semaphore), BOTH(group),
        BOTH(range_locks), BOTH(ranges_do_not_pass), BOTH(two_ranges_are_asked_for_at_once), BOTH(waiting_without_taking), BOTH(events_from_threads),
    };
    return cmocka_run_group_tests_name("rt-sync", tests, NULL, NULL);
}
