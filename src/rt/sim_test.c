/* SPDX-License-Identifier: MIT
 *
 * sim_test.c: the entry points for the simulator: several loops stepped by hand over a toy backend with a virtual
 * clock and a seeded choice of the next coroutine; killing everything in the middle.
 */
#include "base/hash.h"
#include "rt/backend.h"
#include "rt/epoch.h"
#include "rt/rt_test.h"

/* ---- a toy backend: every request completes after a random virtual time; some want to be asked again ---- */

struct toy {
    struct prng rng;
    uint64_t now;
    struct rt_req *flying;
    unsigned inits, finis, wakeups, written_by;
};
struct toy_loop { struct toy *toy; struct rt_loop *loop; };

static int toy_init(struct rt_loop *loop, void **ret_state)
{
    struct toy_loop *t = malloc(sizeof *t);
    *t = (struct toy_loop){ rt_loop_backend_arg(loop), loop };
    t->toy->inits++;
    *ret_state = t;
    return 0;
}

static void toy_fini(void *state)
{
    ((struct toy_loop *)state)->toy->finis++;
    free(state);
}

static void toy_submit(void *state, struct rt_req *r)
{
    struct toy *t = ((struct toy_loop *)state)->toy;
    r->priv[0] = (void *)(uintptr_t)(t->now + prng_below(&t->rng, 1000));
    r->priv[1] = state;
    for (struct rt_req *o = t->flying; o && r->op == RT_OP_WRITEV; o = o->next)      /* all writes of this file are a lane's */
        ASSERT(o->op != RT_OP_WRITEV || o->priv[1] == state);
    t->written_by |= r->op == RT_OP_WRITEV ? 1u << rt_loop_index(((struct toy_loop *)state)->loop) : 0;
    r->next = t->flying;
    t->flying = r;
}

static void toy_cancel(void *state, struct rt_req *r)
{
}

static void toy_wait(void *state, uint64_t timeout_ns)
{
    UNREACHABLE();      /* the caller steps */
}

static void toy_wakeup(void *state)
{
    ((struct toy_loop *)state)->toy->wakeups++;
}

static uint64_t toy_now(void *state)
{
    return ((struct toy_loop *)state)->toy->now;
}

static size_t toy_pick(void *state, size_t n)
{
    return prng_below(&((struct toy_loop *)state)->toy->rng, n);
}

static const struct rt_backend_ops toy_ops = {
    .name = "sim", .init = toy_init, .fini = toy_fini, .submit = toy_submit, .cancel = toy_cancel,
    .wait = toy_wait, .wakeup = toy_wakeup, .now = toy_now, .pick = toy_pick,
};

/* Completes what is due at the earliest time of all; false: nothing will ever happen again. */
static bool toy_advance(struct toy *t, struct rt *rt)
{
    uint64_t at = UINT64_MAX;
    for (struct rt_req *r = t->flying; r; r = r->next)
        if ((uintptr_t)r->priv[0] < at)
            at = (uintptr_t)r->priv[0];
    for (unsigned i = 0; i < rt_loop_count(rt); i++)
        if (rt_loop_next_timer(rt_loop_at(rt, i)) < at)
            at = rt_loop_next_timer(rt_loop_at(rt, i));
    if (at == UINT64_MAX)
        return false;
    t->now = at > t->now ? at : t->now;
    for (struct rt_req **p = &t->flying, *r; (r = *p);) {
        if ((uintptr_t)r->priv[0] > t->now) {
            p = &r->next;
            continue;
        }
        *p = r->next;
        r->res = prng_one_in(&t->rng, 4) ? -EAGAIN : prng_one_in(&t->rng, 9) ? -EINTR : (int64_t)r->off;
        r->done(r);
    }
    for (unsigned i = 0; i < rt_loop_count(rt); i++)
        rt_loop_fire_timers(rt_loop_at(rt, i));
    return true;
}

static bool toy_step(struct toy *t, struct rt *rt)
{
    bool any = false;
    unsigned n = rt_loop_count(rt), first = (unsigned)prng_below(&t->rng, n);
    for (unsigned i = 0; i < n && !any; i++)
        any = rt_loop_step(rt_loop_at(rt, (first + i) % n));
    return any || toy_advance(t, rt);
}

/* ---- memory of the killed: a power cut frees nothing, so the world's allocations are kept in a list, as the
 * simulator's arena would ---- */

struct block { struct block *next, **link; _Alignas(64) char mem[]; };
static struct block *blocks;

static void *world_alloc(size_t n)
{
    struct block *b = aligned_alloc(64, (sizeof *b + n + 63) / 64 * 64);
    ASSERT(b);
    b->next = blocks;
    b->link = &blocks;
    if (blocks)
        blocks->link = &b->next;
    blocks = b;
    return b->mem;
}

static void world_free(void *p)
{
    struct block *b = CONTAINER_OF(p, struct block, mem);
    *b->link = b->next;
    if (b->next)
        b->next->link = b->link;
    free(b);
}

static bool in_world;
int __real_posix_memalign(void **ret, size_t align, size_t n);
int __wrap_posix_memalign(void **ret, size_t align, size_t n);
int __wrap_posix_memalign(void **ret, size_t align, size_t n)
{
    if (!in_world)
        return __real_posix_memalign(ret, align, n);
    *ret = world_alloc(n);
    return 0;
}

/* Mappings of stacks are counted: none may be left. */
static int maps;
void *__real_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off)
{
    maps++;
    return __real_mmap64(a, n, prot, flags, fd, off);
}

int __real_munmap(void *a, size_t n);
int __wrap_munmap(void *a, size_t n);
int __wrap_munmap(void *a, size_t n)
{
    maps--;
    return __real_munmap(a, n);
}

/* ---- a small world: coroutines on three loops that sleep, do I/O, write through a lane, call one another, use an epoch ---- */

enum { LOOPS = 3, ACTORS = 12, ROUNDS = 25 };
static struct world { struct rt *rt; struct epoch *d; struct hash_stream trace; struct rt_lane lane; unsigned ended, cbs; struct toy toy; } w;

static int visit(struct co *co, void *arg)
{
    struct iovec v = { 0 };
    ASSERT(rt_on_loop(co_loop(co)));
    ASSERT(!rt_on_loop(rt_loop_at(w.rt, (rt_loop_index(co_loop(co)) + 1) % LOOPS)));
    epoch_token t = epoch_enter(w.d, co_loop(co));
    int64_t r = rt_preadv(co, 3, &v, 1, 77);
    epoch_leave(w.d, co_loop(co), t);
    ASSERT(r == 77);
    return 5;
}

static int64_t blocking_answer(void *arg)
{
    return *(int *)arg + 1;
}

static void count_cb(struct epoch_cb *cb)
{
    w.cbs++;
    world_free(cb);
}

static int defer_one(struct co *co, void *arg)
{
    epoch_defer(w.d, arg, count_cb);
    return 0;
}

static void actor(struct co *co, void *arg)
{
    int id = *(int *)arg;
    for (int i = 0; i < ROUNDS; i++) {
        hash_update_u64(&w.trace, (uint64_t)id << 32 | rt_now(co_loop(co)));
        switch (prng_below(&w.toy.rng, 6)) {
        case 0:
            OK(co_sleep(co, prng_below(&w.toy.rng, 500)));
            break;
        case 1:
            ASSERT(rt_call(co, rt_loop_at(w.rt, (unsigned)prng_below(&w.toy.rng, LOOPS)), visit, NULL) == 5);
            break;
        case 2:
            ASSERT(rt_blocking(co, blocking_answer, &id) == id + 1);
            break;
        case 3:
            OK(rt_call(co, rt_loop_at(w.rt, 0), defer_one, world_alloc(sizeof(struct epoch_cb))));
            break;
        case 4:
            ASSERT(rt_pwritev_lane(co, &w.lane, 3, &(struct iovec){ 0 }, 1, (uint64_t)id) == id);
            break;
        default:
            co_yield(co);
        }
    }
    w.ended++;
}

static int ids[ACTORS];

static void world_begin(uint64_t seed)
{
    memset(&w, 0, sizeof w);
    hash_init(&w.trace, 0);
    prng_init(&w.toy.rng, seed);
    OK(rt_new_sim(&toy_ops, &w.toy, LOOPS, &w.rt));
    in_world = true;
    OK(epoch_new(rt_loop_at(w.rt, 0), &w.d));
    in_world = false;
    for (int i = 0; i < ACTORS; i++) {
        struct rt_loop *loop = rt_loop_at(w.rt, (unsigned)i % LOOPS);
        ids[i] = i;
        if (i % 2)
            OK(rt_spawn_on(loop, actor, &ids[i]));
        else
            OK(rt_spawn(loop, actor, &ids[i]));
    }
}

static uint64_t world_run(uint64_t seed)
{
    world_begin(seed);
    assert_string_equal(rt_backend_name(rt_loop_at(w.rt, 1)), "sim");
    while (toy_step(&w.toy, w.rt))
        ;
    assert_int_equal(w.ended, ACTORS);
    assert_true(w.cbs > 0);
    assert_int_equal((uint32_t)w.lane.word, 0);
    rt_free(w.rt);
    while (blocks)
        world_free(blocks->mem);
    assert_int_equal(w.toy.inits, LOOPS);
    assert_int_equal(w.toy.finis, LOOPS);
    return hash_value(&w.trace).lo;
}

static void same_seed_same_trace(void **state)
{
    uint64_t first = world_run(1), other = 0;
    unsigned all = 0;
    assert_int_equal(world_run(1), first);
    for (uint64_t seed = 2; seed < 40; seed++) {
        other += world_run(seed) != first;
        all |= w.toy.written_by;
    }
    assert_int_equal(other, 38);
    assert_int_equal(all, (1u << LOOPS) - 1);           /* a lane changes hands when it is empty */
}

/* The power is cut at every possible step: nothing runs afterwards, everything is given back. */
static void kill_anywhere(void **state)
{
    for (unsigned cut = 0; cut < 400; cut += 1 + cut / 16) {
        world_begin(cut);
        for (unsigned i = 0; i < cut && toy_step(&w.toy, w.rt); i++)
            ;
        unsigned ended = w.ended;
        assert_in_range(maps, ACTORS / 2, 100);
        rt_sim_kill(w.rt);
        for (unsigned i = 0; i < LOOPS; i++) {
            assert_false(rt_loop_step(rt_loop_at(w.rt, i)));
            assert_int_equal(rt_loop_next_timer(rt_loop_at(w.rt, i)), UINT64_MAX);
        }
        assert_int_equal(w.ended, ended);
        rt_free(w.rt);
        assert_int_equal(maps, 0);
        while (blocks)
            world_free(blocks->mem);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(same_seed_same_trace), cmocka_unit_test(kill_anywhere) };
    return cmocka_run_group_tests_name("rt-sim", tests, NULL, NULL);
}
