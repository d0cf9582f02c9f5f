/* SPDX-License-Identifier: MIT
 *
 * stor_test.c: see stor_test.h.
 *
 * Purpose      Harness of the unit tests of stor/.
 * Owns         The runtime and the scratch folder of the test process.
 * Invariants   None.
 * Concurrency  t_run and t_main: the main thread. The toy store: any loop.
 * Failure      A failed check prints its place; the running test fails when t_run returns.
 * Tests        None.
 */
#include "stor/stor_test.h"

#include <dirent.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/hash.h"

_Atomic unsigned t_failures;
struct rt *t_rt;
static enum rt_backend_kind kind;
static char folder[256];

bool t_check(bool ok, const char *what, const char *file, int line)
{
    if (!ok) {
        fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
        atomic_fetch_add(&t_failures, 1);
    }
    return ok;
}

bool t_check_eq(int64_t a, int64_t b, const char *what, const char *file, int line)
{
    if (a != b)
        fprintf(stderr, "%s:%d: %lld and %lld differ\n", file, line, (long long)a, (long long)b);
    return t_check(a == b, what, file, line);
}

unsigned t_share(void)
{
    const char *share = getenv("BYRE_TEST_SHARE");
    unsigned long n = share ? strtoul(share, NULL, 10) : 1;
    return n > 0 && n <= 97 ? (unsigned)n : 1;
}

bool t_is_ci(void)
{
    const char *v = getenv("CI");
    return v && !strcmp(v, "true");
}

/* ---- scratch folder ---- */

static void remove_folder(void)
{
    DIR *d = folder[0] ? opendir(folder) : NULL;
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (e->d_name[0] != '.')
            (void)unlinkat(dirfd(d), e->d_name, 0);
    if (d) {
        closedir(d);
        (void)rmdir(folder);
    }
}

const char *t_path(const char *name)
{
    static char paths[8][512];
    static unsigned next;
    if (!folder[0]) {
        const char *root = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%s/byre-stor-XXXXXX", root && root[0] ? root : "/var/tmp");
        if (!mkdtemp(folder)) {
            perror(folder);
            exit(1);
        }
        atexit(remove_folder);
    }
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

/* ---- runtime ---- */

struct run {
    void (*fn)(struct co *co, void *arg);
    void *arg;
    sem_t *done;
};

static void run_entry(struct co *co, void *arg)
{
    struct run *r = arg;
    r->fn(co, r->arg);
    sem_post(r->done);
}

void t_run_many(unsigned n, void (*fn)(struct co *co, void *arg), void *const *args)
{
    struct run *runs = calloc(n, sizeof *runs);
    sem_t done;
    assert_non_null(runs);
    sem_init(&done, 0, 0);
    for (unsigned i = 0; i < n; i++) {
        runs[i] = (struct run){ fn, args[i], &done };
        assert_int_equal(rt_spawn_on(rt_loop_at(t_rt, i % rt_loop_count(t_rt)), run_entry, &runs[i]), 0);
    }
    for (unsigned i = 0; i < n; i++)
        while (sem_wait(&done) < 0)
            continue;
    sem_destroy(&done);
    free(runs);
    assert_int_equal(atomic_exchange(&t_failures, 0), 0);
}

void t_run(unsigned i, void (*fn)(struct co *co, void *arg), void *arg)
{
    struct run r = { fn, arg, NULL };
    sem_t done;
    sem_init(&done, 0, 0);
    r.done = &done;
    assert_int_equal(rt_spawn_on(rt_loop_at(t_rt, i), run_entry, &r), 0);
    while (sem_wait(&done) < 0)
        continue;
    sem_destroy(&done);
    assert_int_equal(atomic_exchange(&t_failures, 0), 0);
}

static int group_setup(void **state)
{
    struct byre_err err = { 0 };
    struct rt_opts o = { .loops = 2, .backend = kind };
    int r = rt_new(&o, &t_rt, &err);
    if (r < 0)
        fprintf(stderr, "runtime: %s\n", err.text);
    return r;
}

static int group_teardown(void **state)
{
    rt_free(t_rt);
    t_rt = NULL;
    return 0;
}

/* The one backend of a group where BYRE_TEST_BACKENDS=one; 2 for both. */
static unsigned only_backend(const char *name)
{
    const char *v = getenv("BYRE_TEST_BACKENDS");
    return v && !strcmp(v, "one") ? (unsigned)(hash_buf(name, strlen(name), 0).lo % 2) : 2;
}

int t_main(const char *name, const struct CMUnitTest *tests, size_t cnt)
{
    static const struct { enum rt_backend_kind kind; const char *name; } backends[] = {
        { RT_BACKEND_URING, "io_uring" }, { RT_BACKEND_THREADS, "threads" },
    };
    int failed = 0;
    unsigned only = only_backend(name);
    for (unsigned i = 0; i < 2; i++) {
        char text[128];
        if (only != 2 && only != i)
            continue;
        kind = backends[i].kind;
        snprintf(text, sizeof text, "%s on %s", name, backends[i].name);
        failed += _cmocka_run_group_tests(text, tests, cnt, group_setup, group_teardown);
    }
    return failed;
}

/* ---- toy store ---- */

static struct toy *toy_of(struct stor *s) { return (struct toy *)s; }

static void doze(struct co *co, struct toy *t)
{
    if (!t->rng)
        return;
    pthread_mutex_lock(&t->lock);
    uint64_t ns = prng_below(t->rng, t->delay_ns + 1);
    pthread_mutex_unlock(&t->lock);
    if (ns % 4 == 0)
        co_yield(co);
    else
        (void)co_sleep(co, ns);
}

static int arrive(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    atomic_fetch_add(&t->count[op], 1);
    doze(co, t);
    return t->hook ? t->hook(co, t, op, off, len) : 0;
}

static void check_request(struct toy *t, struct iov v, uint64_t off)
{
    ASSERT(v.len_bytes > 0 && off + v.len_bytes <= (uint64_t)INT64_MAX);
    ASSERT(off % t->s.lim.block == 0 && v.len_bytes % t->s.lim.block == 0);
    ASSERT(!t->s.lim.max_transfer || v.len_bytes <= t->s.lim.max_transfer);
    ASSERT(stor_mem_ok(&t->s, v));
    pthread_mutex_lock(&t->lock);
    t->longest = max_u64(t->longest, v.len_bytes);
    pthread_mutex_unlock(&t->lock);
}

static int64_t toy_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct toy *t = toy_of(s);
    check_request(t, v, off);
    int r = arrive(co, t, TOY_READ, off, v.len_bytes);
    if (r < 0)
        return r;
    pthread_mutex_lock(&t->lock);
    uint64_t n = off < t->len ? min_u64(v.len_bytes, t->len - off) : 0;
    n = t->short_max ? min_u64(n, t->short_max) : n;
    if (n)
        iov_from_buf(iov_slice(v, 0, n), t->bytes + off, n);
    pthread_mutex_unlock(&t->lock);
    doze(co, t);
    return (int64_t)n;
}

static int64_t toy_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    struct toy *t = toy_of(s);
    check_request(t, v, off);
    int r = arrive(co, t, flags & STOR_FUA ? TOY_FUA : TOY_WRITE, off, v.len_bytes);
    if (r < 0)
        return r;
    uint64_t n = t->short_max ? min_u64(v.len_bytes, t->short_max) : v.len_bytes;
    if (off >= t->full_at)
        return -ENOSPC;
    n = min_u64(n, t->full_at - off);
    ASSERT(off + n <= t->cap);
    pthread_mutex_lock(&t->lock);
    if (n)
        iov_to_buf(iov_slice(v, 0, n), t->bytes + off, n);
    t->len = max_u64(t->len, off + n);
    pthread_mutex_unlock(&t->lock);
    doze(co, t);
    return (int64_t)n;
}

static int toy_flush(struct co *co, struct stor *s)
{
    struct toy *t = toy_of(s);
    int r = arrive(co, t, TOY_FLUSH, 0, 0);
    doze(co, t);
    return r;
}

/* zero, discard and truncate: the effect comes between two delays, too. */
static int toy_clear(struct co *co, struct stor *s, enum toy_op op, uint64_t off, uint64_t len)
{
    struct toy *t = toy_of(s);
    uint64_t unit = max_u64(s->lim.block, s->lim.zero_block);
    ASSERT(len && off % unit == 0 && len % unit == 0 && off + len <= t->cap);
    int r = arrive(co, t, op, off, len);
    if (r < 0)
        return r;
    pthread_mutex_lock(&t->lock);
    memset(t->bytes + off, 0, len);
    if (op == TOY_ZERO)
        t->len = max_u64(t->len, off + len);
    pthread_mutex_unlock(&t->lock);
    doze(co, t);
    return 0;
}

static int toy_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    return toy_of(s)->no_zero ? -ENOTSUP : toy_clear(co, s, TOY_ZERO, off, len);
}

static int toy_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    return toy_clear(co, s, TOY_DISCARD, off, len);
}

static int toy_truncate(struct co *co, struct stor *s, uint64_t len)
{
    struct toy *t = toy_of(s);
    ASSERT(len <= t->cap);
    int r = arrive(co, t, TOY_TRUNCATE, len, 0);
    if (r < 0)
        return r;
    pthread_mutex_lock(&t->lock);
    if (len < t->len)
        memset(t->bytes + len, 0, t->len - len);
    t->len = len;
    pthread_mutex_unlock(&t->lock);
    doze(co, t);
    return 0;
}

static int toy_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    struct toy *t = toy_of(s);
    doze(co, t);
    pthread_mutex_lock(&t->lock);
    *ret_len = t->len;
    pthread_mutex_unlock(&t->lock);
    return 0;
}

/* Holes of 512 bytes where all is zero. */
static int toy_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    struct toy *t = toy_of(s);
    int r = arrive(co, t, TOY_EXTENT, off, len);
    if (r < 0)
        return r;
    pthread_mutex_lock(&t->lock);
    uint64_t end = off;
    bool first_zero = true;
    while (end < off + len) {
        uint64_t next = min_u64(round_down(end, 512) + 512, off + len);
        bool zero = end >= t->len || mem_is_zero(t->bytes + end, min_u64(next, t->len) - end);
        if (end == off)
            first_zero = zero;
        if (zero != first_zero)
            break;
        end = next;
    }
    pthread_mutex_unlock(&t->lock);
    *ret_e = (struct stor_extent){ first_zero ? STOR_HOLE : STOR_DATA, off, end - off };
    return 0;
}

static void toy_close(struct co *co, struct stor *s)
{
    toy_free(toy_of(s));
}

static const struct stor_ops toy_ops = {
    .name = "toy",
    .preadv = toy_preadv,
    .pwritev = toy_pwritev,
    .flush = toy_flush,
    .zero = toy_zero,
    .discard = toy_discard,
    .truncate = toy_truncate,
    .length = toy_length,
    .extent = toy_extent,
    .close = toy_close,
};

struct toy *toy_new(uint64_t len, uint32_t block, uint32_t mem_align)
{
    struct toy *t = calloc(1, sizeof *t);
    ASSERT(t && stor_init(&t->s, &toy_ops, "toy") == 0);
    t->s.lim = (struct stor_limits){ .block = block, .mem_align = mem_align, .opt_block = 512 };
    t->s.traits = (struct stor_traits){ .regular = true, .direct = block > 1 };
    t->s.discard_ok = true;
    t->cap = len + (8u << 20);
    t->len = len;
    t->full_at = UINT64_MAX;
    t->bytes = calloc(1, t->cap);
    ASSERT(t->bytes);
    pthread_mutex_init(&t->lock, NULL);
    return t;
}

void toy_free(struct toy *t)
{
    stor_fini(&t->s);
    pthread_mutex_destroy(&t->lock);
    free(t->bytes);
    free(t);
}
