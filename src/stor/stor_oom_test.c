/* SPDX-License-Identifier: MIT
 *
 * stor_oom_test.c: memory that runs out at every place where it is asked for, once and from then on.
 *
 * Purpose      Each call answers 0 or -ENOMEM, changes nothing that it does not own up to, and works again when memory
 *              is back. Leaks show under the address sanitizer.
 * Tests        all of stor/
 */
#include "stor/stor_test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- allocation counters (linked with --wrap) ---- */

static _Atomic bool armed, for_ever;
static _Atomic long until_failure;        /* allocations that still succeed */

static bool fails_now(void)
{
    if (!atomic_load(&armed))
        return false;
    long n = atomic_fetch_sub(&until_failure, 1);
    return n == 0 || (n < 0 && atomic_load(&for_ever));
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_aligned_alloc(size_t a, size_t n);
int __real_posix_memalign(void **p, size_t a, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_aligned_alloc(size_t a, size_t n);
int __wrap_posix_memalign(void **p, size_t a, size_t n);
char *__wrap_strdup(const char *s);

void *__wrap_malloc(size_t n) { return fails_now() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t m) { return fails_now() ? NULL : __real_calloc(n, m); }
void *__wrap_aligned_alloc(size_t a, size_t n) { return fails_now() ? NULL : __real_aligned_alloc(a, n); }
int __wrap_posix_memalign(void **p, size_t a, size_t n) { return fails_now() ? ENOMEM : __real_posix_memalign(p, a, n); }
char *__wrap_strdup(const char *s) { return fails_now() ? NULL : __real_strdup(s); }

/* ---- scenarios ---- */

static bool ran_out;                      /* did a call answer -ENOMEM? */

static bool went_well(int64_t r)
{
    CHECK(r == 0 || r == -ENOMEM);
    ran_out |= r == -ENOMEM;
    return r == 0;
}

enum { PIECES = 200, PIECE = 50, BYTES = PIECES * PIECE };
static uint8_t content[BYTES], back[BYTES];

/* Everything that a store can do; true when all of it went well. */
static bool use_store(struct co *co, struct stor *s)
{
    struct iovec *v = __real_malloc(PIECES * sizeof *v);
    struct stor_extent e;
    uint64_t n;
    bool ok = true;
    for (unsigned i = 0; i < PIECES; i++)
        v[i] = (struct iovec){ content + i * PIECE, PIECE };
    ok &= went_well(stor_write(co, s, iov_of(v, PIECES), 100, 0));
    ok &= went_well(stor_write_buf(co, s, content, 33, 3, 0));
    for (unsigned i = 0; i < PIECES; i++)
        v[i].iov_base = back + i * PIECE;
    ok &= went_well(stor_read(co, s, iov_of(v, PIECES), 100));
    ok &= went_well(stor_zero(co, s, 50000, 10000, 0));
    ok &= went_well(stor_discard(co, s, 50000, 10000));
    ok &= went_well(stor_truncate(co, s, 60001));
    ok &= went_well(stor_length(co, s, &n));
    ok &= went_well(stor_extent(co, s, 0, 60001, &e));
    ok &= went_well(stor_lock(co, s, STOR_PERM_READ, STOR_PERM_ALL, NULL));
    ok &= went_well(stor_flush(co, s));
    CHECK(!stor_flush_latched(s));
    free(v);
    return ok;
}

static struct stor *make_store(struct co *co, unsigned which, const char *path)
{
    struct stor_file_opts opts = { .create = true, .truncate_to_zero = true, .direct = which == 1, .discard = true };
    struct stor_null_opts null_opts = { .len = 100000, .read_zeroes = true };
    struct byre_err err;
    struct stor *s = NULL;
    int r = which < 2 ? stor_file_open(co, path, &opts, &s, &err)
          : which == 2 ? stor_mem_new(co, "m", 1000, &s) : stor_null_new(co, &null_opts, &s);
    if (r < 0 && which < 2)
        CHECK(err.code == -ENOMEM && !strcmp(err.reason, "NOMEM"));
    return went_well(r) ? s : NULL;
}

static void scenario(struct co *co, void *arg)
{
    unsigned which = *(unsigned *)arg;
    const char *path = t_path("oom");
    for (unsigned forever = 0; forever < 2; forever++)
        for (long n = 0;; n++) {
            atomic_store(&for_ever, forever);
            atomic_store(&until_failure, n);
            ran_out = false;
            atomic_store(&armed, true);
            struct stor *s = make_store(co, which, path);
            bool ok = s && use_store(co, s);
            bool reached = atomic_load(&until_failure) < 0;
            atomic_store(&armed, false);
            CHECK(ok != ran_out);
            if (s) {
                CHECK(use_store(co, s));  /* with memory all is well again */
                CHECK(which == 3 || !memcmp(back, content, BYTES));
                memset(back, 0, BYTES);
                atomic_store(&until_failure, 0);
                atomic_store(&armed, true);
                stor_close(co, s);        /* needs no memory */
                atomic_store(&armed, false);
            }
            if (!reached) {
                CHECK(n > 0);
                break;
            }
        }
}

static unsigned open_fds(void)
{
    unsigned n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_stores(void **state)
{
    struct prng p;
    unsigned before = open_fds();
    prng_init(&p, 1);
    prng_fill(&p, content, BYTES);
    for (unsigned which = 0; which < 4; which++)
        t_run(which % 2, scenario, &which);
    assert_int_equal(open_fds(), before);
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_stores) };
    return T_MAIN("oom", tests);
}
