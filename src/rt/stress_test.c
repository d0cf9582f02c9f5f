/* SPDX-License-Identifier: MIT
 *
 * stress_test.c: everything at once, on several loops and both backends: read-modify-write of file blocks under range
 * locks of the block's home loop, tables replaced under epochs, sockets between loops, workers, cancellation.
 * Nothing may be lost, torn or used after it was taken away.
 */
#include <stdatomic.h>

#include "base/hash.h"
#include "rt/epoch.h"
#include "rt/rt_test.h"

enum { LOOPS = 3, ACTORS = 24, ROUNDS = 120, BLOCKS = 48, BLOCK = 512, BLOCKS_MAX = 4 };

struct table { struct epoch_cb cb; uint64_t words[16]; };

struct stress {
    struct rt *rt;
    int file;
    struct co_range_locks locks[LOOPS];         /* each used on its own loop only */
    struct epoch *d;                            /* home: loop 0 */
    _Atomic(struct table *) table;
    atomic_ulong increments, replaced, cancelled, pings;
};

struct actor { struct stress *s; struct prng rng; struct co_xevent end; int fd; };

/* ---- blocks ---- */

struct update { struct stress *s; uint64_t first, count; uint64_t salt; };

static uint64_t sum_of(const uint64_t *block)
{
    return hash_buf(block + 1, BLOCK - 8, block[1]).lo;
}

/* On the home loop of these blocks: adds one to the counter of each. */
static int update_blocks(struct co *co, void *arg)
{
    struct update *u = arg;
    uint64_t *buf = malloc(u->count * BLOCK), off = u->first * BLOCK;
    size_t len = u->count * BLOCK;
    struct iovec v[2] = { { buf, len / 2 }, { (char *)buf + len / 2, len - len / 2 } };
    struct co_range r;
    co_range_lock(co, &u->s->locks[rt_loop_index(co_loop(co))], &r, u->first, u->first + u->count);
    ASSERT(rt_preadv(co, u->s->file, v, 2, off) == (int64_t)len);
    for (uint64_t i = 0; i < u->count; i++) {
        uint64_t *b = buf + i * BLOCK / 8;
        ASSERT(b[0] == sum_of(b));
        b[1]++;
        b[2 + (u->salt + i) % (BLOCK / 8 - 2)] = u->salt;
        b[0] = sum_of(b);
    }
    ASSERT(rt_pwritev(co, u->s->file, v, 2, off, 0) == (int64_t)len);
    if (u->salt % 50 == 0)
        OK(rt_fdatasync(co, u->s->file));
    co_range_unlock(&u->s->locks[rt_loop_index(co_loop(co))], &r);
    atomic_fetch_add(&u->s->increments, u->count);
    free(buf);
    return 0;
}

/* Blocks are divided among the loops in equal parts. */
static void update_somewhere(struct co *co, struct actor *a)
{
    enum { PART = BLOCKS / LOOPS };
    uint64_t loop = prng_below(&a->rng, LOOPS), at = prng_below(&a->rng, PART), n = 1 + prng_below(&a->rng, BLOCKS_MAX);
    n = n > PART - at ? PART - at : n;
    struct update u = { a->s, loop * PART + at, n, prng_u64(&a->rng) };
    OK(rt_call(co, rt_loop_at(a->s->rt, (unsigned)loop), update_blocks, &u));
}

static void format_blocks(struct co *co, struct stress *s)
{
    uint64_t b[BLOCK / 8] = { 0 };
    struct iovec v = { b, BLOCK };
    for (uint64_t i = 0; i < BLOCKS; i++) {
        b[0] = sum_of(b);
        ASSERT(rt_pwritev(co, s->file, &v, 1, i * BLOCK, 0) == BLOCK);
    }
}

static uint64_t count_blocks(struct co *co, struct stress *s)
{
    uint64_t b[BLOCK / 8], sum = 0;
    struct iovec v = { b, BLOCK };
    for (uint64_t i = 0; i < BLOCKS; i++) {
        ASSERT(rt_preadv(co, s->file, &v, 1, i * BLOCK) == BLOCK);
        ASSERT(b[0] == sum_of(b));
        sum += b[1];
    }
    return sum;
}

/* ---- tables ---- */

static void table_gone(struct epoch_cb *cb)
{
    struct table *t = CONTAINER_OF(cb, struct table, cb);
    memset(t->words, 0xff, sizeof t->words);
    free(t);
}

static struct table *table_new(uint64_t v)
{
    struct table *t = malloc(sizeof *t);
    for (int i = 0; i < 16; i++)
        t->words[i] = v;
    return t;
}

static int replace_table(struct co *co, void *arg)
{
    struct stress *s = arg;
    struct table *old = atomic_load(&s->table);
    atomic_store(&s->table, table_new(old->words[0] + 1));
    epoch_defer(s->d, &old->cb, table_gone);
    if (atomic_fetch_add(&s->replaced, 1) % 16 == 0)
        epoch_wait(co, s->d);
    return 0;
}

static void use_table(struct co *co, struct actor *a)
{
    struct rt_loop *loop = co_loop(co);
    epoch_token tok = epoch_enter(a->s->d, loop);
    struct table *t = atomic_load(&a->s->table);
    uint64_t v = t->words[0];
    ASSERT(v != UINT64_MAX);
    if (prng_one_in(&a->rng, 3))
        update_somewhere(co, a);            /* suspends inside the section, on other loops, too */
    for (int i = 1; i < 16; i++)
        ASSERT(t->words[i] == v);
    epoch_leave(a->s->d, loop, tok);
}

/* ---- sockets, workers, cancellation ---- */

/* Sends a number to the partner on another loop, which answers with its mix. */
static void ping(struct co *co, struct actor *a)
{
    uint64_t q = prng_u64(&a->rng), got = 0;
    struct iovec v = { &q, 8 };
    ASSERT(rt_sendmsg(co, a->fd, &(struct msghdr){ .msg_iov = &v, .msg_iovlen = 1 }) == 8);
    for (size_t at = 0; at < 8;) {
        int64_t n = rt_recv(co, a->fd, (char *)&got + at, 8 - at);
        ASSERT(n > 0);
        at += (size_t)n;
    }
    ASSERT(got == hash_mix64(q));
    atomic_fetch_add(&a->s->pings, 1);
}

static void echo_server(struct co *co, void *arg)
{
    int fd = *(int *)arg;
    uint64_t q;
    for (;;) {
        size_t at = 0;
        while (at < 8) {
            int64_t n = rt_recv(co, fd, (char *)&q + at, 8 - at);
            if (n == 0 && at == 0)
                return;
            ASSERT(n > 0);
            at += (size_t)n;
        }
        q = hash_mix64(q);
        struct iovec v = { &q, 8 };
        ASSERT(rt_sendmsg(co, fd, &(struct msghdr){ .msg_iov = &v, .msg_iovlen = 1 }) == 8);
    }
}

static int64_t mix_on_worker(void *arg)
{
    return (int64_t)(hash_mix64(*(uint64_t *)arg) >> 1);
}

static void long_sleep(struct co *co, void *arg)
{
    int r = co_sleep(co, 3600 * 1000 * MS);
    ASSERT(r == -ECANCELED);
    atomic_fetch_add((atomic_ulong *)arg, 1);
}

static void cancel_something(struct co *co, struct actor *a)
{
    struct rt_task t;
    OK(rt_task_start(co_loop(co), &t, long_sleep, &a->s->cancelled));
    if (prng_one_in(&a->rng, 2))
        co_yield(co);
    rt_cancel(&t);
    rt_task_join(co, &t);
}

static void mix_part(void *arg, unsigned i)
{
    uint64_t *v = arg;
    v[i] = hash_mix64(v[i]);
}

static void mix_parts(struct co *co, struct actor *a)
{
    uint64_t v[16], was[16];
    unsigned n = (unsigned)prng_below(&a->rng, 17);
    for (unsigned i = 0; i < 16; i++)
        was[i] = v[i] = prng_u64(&a->rng);
    OK(rt_cpu_split(co, mix_part, v, n));
    for (unsigned i = 0; i < 16; i++)
        ASSERT(v[i] == (i < n ? hash_mix64(was[i]) : was[i]));
}

static void actor(struct co *co, void *arg)
{
    struct actor *a = arg;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t q = prng_u64(&a->rng);
        switch (prng_below(&a->rng, 10)) {
        case 0: case 1: update_somewhere(co, a); break;
        case 2: case 3: use_table(co, a); break;
        case 4: OK(rt_call(co, rt_loop_at(a->s->rt, 0), replace_table, a->s)); break;
        case 5: ping(co, a); break;
        case 6: ASSERT(rt_cpu(co, mix_on_worker, &q) == (int64_t)(hash_mix64(q) >> 1)); break;
        case 7: cancel_something(co, a); break;
        case 8: mix_parts(co, a); break;
        default: OK(co_sleep(co, prng_below(&a->rng, 200000))); break;
        }
    }
    shutdown(a->fd, SHUT_RDWR);
    co_xevent_set(&a->end);
}

static void start_actor(struct rt_loop *home, struct stress *s, struct actor *a, unsigned i, int *peer)
{
    int fd[2];
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd));
    *a = (struct actor){ .s = s, .fd = fd[0] };
    *peer = fd[1];
    prng_init(&a->rng, i);
    co_xevent_init(&a->end, home);
    OK(rt_spawn_on(rt_loop_at(s->rt, i % LOOPS), actor, a));
    OK(rt_spawn_on(rt_loop_at(s->rt, (i + 1) % LOOPS), echo_server, peer));
}

static void stress(struct co *co)
{
    static struct actor a[ACTORS];
    static int peer[ACTORS];
    char name[] = "/tmp/byre-rt-stress-XXXXXX";
    struct stress s = { .rt = rt_of(co_loop(co)), .file = mkstemp(name) };
    ASSERT(s.file >= 0);
    unlink(name);
    format_blocks(co, &s);
    OK(epoch_new(co_loop(co), &s.d));
    atomic_store(&s.table, table_new(1));
    for (unsigned i = 0; i < ACTORS; i++)
        start_actor(co_loop(co), &s, &a[i], i, &peer[i]);
    for (unsigned i = 0; i < ACTORS; i++)
        co_xevent_wait(co, &a[i].end);
    epoch_drain(co, s.d);
    epoch_free(s.d);
    ASSERT(count_blocks(co, &s) == atomic_load(&s.increments) && atomic_load(&s.increments) > ACTORS * ROUNDS / 9);
    ASSERT(atomic_load(&s.table)->words[0] == 1 + atomic_load(&s.replaced));
    ASSERT(atomic_load(&s.pings) && atomic_load(&s.cancelled));
    free(atomic_load(&s.table));
    for (unsigned i = 0; i < ACTORS; i++)
        close(a[i].fd);
    close(s.file);
}

static void stress_uring(void **state)
{
    test_run_threaded(&(struct rt_opts){ .loops = LOOPS, .backend = RT_BACKEND_URING }, stress);
}

/* FEATURES G.058: far more requests than the ring has places. */
static void stress_tiny_ring(void **state)
{
    test_run_threaded(&(struct rt_opts){ .loops = LOOPS, .backend = RT_BACKEND_URING, .ring_entries = 2 }, stress);
}

static void stress_threads(void **state)
{
    test_run_threaded(&(struct rt_opts){ .loops = LOOPS, .backend = RT_BACKEND_THREADS }, stress);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stress_uring), cmocka_unit_test(stress_tiny_ring), cmocka_unit_test(stress_threads),
    };
    return cmocka_run_group_tests_name("rt-stress", tests, NULL, NULL);
}
