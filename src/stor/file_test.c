/* SPDX-License-Identifier: MIT
 *
 * file_test.c: opening, creating and transferring, buffered and direct, on a real file system.
 *
 * Tests        file.c, file_ops.c (transfers, length), and the gate above them
 */
#include "stor/stor_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { SIZE = 1 << 20 };

static struct stor *open_ok(struct co *co, const char *path, struct stor_file_opts o)
{
    struct stor *s = NULL;
    struct byre_err err = { 0 };
    if (!CHECK_EQ(stor_file_open(co, path, &o, &s, &err), 0))
        fprintf(stderr, "%s\n", err.text);
    return s;
}

static struct stor *create_ok(struct co *co, const char *path, bool direct)
{
    return open_ok(co, path, (struct stor_file_opts){ .create = true, .truncate_to_zero = true, .direct = direct, .discard = true });
}

static unsigned open_fds(void)
{
    unsigned n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void expect_failure(struct co *co, const char *path, struct stor_file_opts o, int code, const char *reason)
{
    struct stor *s = (struct stor *)1;
    struct byre_err err = { 0 };
    unsigned before = open_fds();
    CHECK_EQ(stor_file_open(co, path, &o, &s, &err), code);
    CHECK(s == (struct stor *)1);
    CHECK_EQ(err.code, code);
    if (CHECK(err.reason != NULL))
        CHECK(!strcmp(err.reason, reason));
    CHECK(strstr(err.text, path));
    CHECK_EQ(open_fds(), before);
}

static void open_failures(struct co *co, void *arg)
{
    const char *none = t_path("none"), *fifo = t_path("fifo"), *file = t_path("there");
    expect_failure(co, none, (struct stor_file_opts){ 0 }, -ENOENT, "NOT_FOUND");
    expect_failure(co, "/", (struct stor_file_opts){ 0 }, -EISDIR, "SYSTEM");
    expect_failure(co, "/", (struct stor_file_opts){ .read_only = true }, -EINVAL, "BAD_ARGUMENT");
    expect_failure(co, "/dev/null", (struct stor_file_opts){ 0 }, -EINVAL, "BAD_ARGUMENT");
    CHECK_EQ(mkfifo(fifo, 0600), 0);
    expect_failure(co, fifo, (struct stor_file_opts){ .read_only = true }, -EINVAL, "BAD_ARGUMENT");   /* at once */
    expect_failure(co, none, (struct stor_file_opts){ .create = true, .read_only = true }, -EINVAL, "BAD_ARGUMENT");
    stor_close(co, create_ok(co, file, false));
    expect_failure(co, file, (struct stor_file_opts){ .create = true, .exclusive = true }, -EEXIST, "EXISTS");
    CHECK(access(file, F_OK) == 0);
    CHECK(access(none, F_OK) < 0);
}

static void create_and_reopen(struct co *co, void *arg)
{
    const char *path = t_path("created");
    struct stor *s = create_ok(co, path, false);
    uint64_t len, dev, ino;
    struct stat st;
    CHECK_EQ(stor_write_buf(co, s, "hello", 5, 0, 0), 0);
    CHECK(!strcmp(s->name, path));
    CHECK(stat(path, &st) == 0 && stor_file_identity(s, &dev, &ino) && dev == st.st_dev && ino == st.st_ino);
    stor_close(co, s);
    s = open_ok(co, path, (struct stor_file_opts){ .create = true });
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, 5);
    stor_close(co, s);
    s = create_ok(co, path, false);
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, 0);
    stor_close(co, s);
    s = open_ok(co, path, (struct stor_file_opts){ .read_only = true });
    CHECK_EQ(stor_write_buf(co, s, "x", 1, 0, 0), -EROFS);
    CHECK_EQ(stor_flush(co, s), 0);
    stor_close(co, s);
}

/* A file that is being created is held; somebody who holds it keeps it from being emptied. */
static void create_locks(struct co *co, void *arg)
{
    const char *path = t_path("held");
    struct stor *a = create_ok(co, path, false);
    CHECK_EQ(stor_write_buf(co, a, "abc", 3, 0, 0), 0);
    expect_failure(co, path, (struct stor_file_opts){ .create = true, .truncate_to_zero = true }, -EAGAIN, "LOCKED");
    struct stat st;
    CHECK(stat(path, &st) == 0 && st.st_size == 3);
    CHECK_EQ(stor_lock(co, a, 0, STOR_PERM_ALL, NULL), 0);
    stor_close(co, create_ok(co, path, false));
    CHECK(stat(path, &st) == 0 && st.st_size == 0);
    stor_close(co, a);
}

/* Random requests against a model and against what read() of another descriptor says. */
static void random_requests(struct co *co, void *arg)
{
    bool direct = *(bool *)arg;
    const char *path = t_path(direct ? "direct" : "buffered");
    struct stor *s = create_ok(co, path, direct);
    uint8_t *want = calloc(1, SIZE), *buf = malloc(SIZE + 64);
    uint64_t len = 0, now;
    struct prng p;
    prng_init(&p, 11 + direct);
    CHECK_EQ(s->traits.direct, direct);
    CHECK(direct ? s->lim.block > 1 : s->lim.block == 1);
    for (unsigned i = 0; i < 700; i++) {
        uint64_t off = prng_below(&p, SIZE / 2), n = prng_range(&p, 1, prng_one_in(&p, 5) ? SIZE / 2 : 5000);
        uint64_t unit = prng_one_in(&p, 3) ? 4096 : prng_one_in(&p, 2) ? 512 : 1;
        off = round_down(off, unit);
        n = round_up(n, unit);
        uint8_t *b = buf + (prng_one_in(&p, 2) ? 1 : 0);
        struct iovec slot;
        switch (prng_below(&p, 7)) {
        case 0:
            CHECK_EQ(stor_zero(co, s, off, n, prng_one_in(&p, 2) ? STOR_UNMAP : 0), 0);
            memset(want + off, 0, n);
            len = max_u64(len, off + n);
            break;
        case 1:
            CHECK_EQ(stor_truncate(co, s, off), 0);
            memset(want + off, 0, SIZE - off);
            len = off;
            break;
        case 2:
        case 3:
            memset(b, 0xee, n);
            CHECK_EQ(stor_read(co, s, iov_one(&slot, b, n), off), 0);
            CHECK(!memcmp(b, want + off, n));
            CHECK_EQ(stor_read_exact(co, s, b, n, off), off + n <= len ? 0 : -EIO);
            break;
        default:
            prng_fill(&p, b, n);
            memcpy(want + off, b, n);
            CHECK_EQ(stor_write_buf(co, s, b, n, off, prng_one_in(&p, 20) ? STOR_FUA : 0), 0);
            len = max_u64(len, off + n);
        }
        CHECK_EQ(stor_length(co, s, &now), 0);
        if (!CHECK_EQ(now, len))
            break;
    }
    CHECK_EQ(stor_flush(co, s), 0);
    stor_close(co, s);
    int fd = open(path, O_RDONLY);
    CHECK_EQ(pread(fd, buf, SIZE, 0), len);
    CHECK(!memcmp(buf, want, len));
    close(fd);
    free(want);
    free(buf);
}

/* Lengths that are no multiple of 512: the last bytes read, the rest of their sector is zero, a write extends. */
static void tail_bytes(struct co *co, void *arg)
{
    bool direct = *(bool *)arg;
    const char *path = t_path("tail");
    struct stor *s = create_ok(co, path, direct);
    uint8_t b[2048];
    struct iovec slot;
    uint64_t len;
    memset(b, 5, sizeof b);
    CHECK_EQ(stor_write_buf(co, s, b, 1001, 0, 0), 0);
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, 1001);
    memset(b, 9, sizeof b);
    CHECK_EQ(stor_read(co, s, iov_one(&slot, b, 1024), 0), 0);
    CHECK(b[0] == 5 && b[1000] == 5 && mem_is_zero(b + 1001, 23) && b[1024] == 9);
    memset(b, 6, sizeof b);
    CHECK_EQ(stor_write_buf(co, s, b, 512, 512, 0), 0);
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, 1024);
    CHECK_EQ(stor_write_buf(co, s, b, 1, 5000, STOR_FUA), 0);
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, 5001);
    CHECK_EQ(stor_write_buf(co, s, b, 3, 100, 0), 0);
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, 5001);
    CHECK_EQ(stor_read(co, s, iov_one(&slot, b, 1000), 4500), 0);
    CHECK(mem_is_zero(b, 500) && b[500] == 6 && mem_is_zero(b + 501, 499));
    stor_close(co, s);
}

/* Many small writes from both loops into the same blocks of a direct file. */
struct small { struct stor *s; unsigned id; };
enum { SMALL_WRITERS = 16, SMALL_BYTES = 64 * 1024, SMALL_UNIT = 100 };

static void small_writes(struct co *co, void *arg)
{
    const struct small *x = arg;
    uint8_t b[SMALL_UNIT];
    for (unsigned k = x->id; (k + 1) * SMALL_UNIT <= SMALL_BYTES; k += SMALL_WRITERS) {
        memset(b, (int)(k % 251 + 1), sizeof b);
        CHECK_EQ(stor_write_buf(co, x->s, b, sizeof b, k * SMALL_UNIT, 0), 0);
    }
}

struct open_arg { const char *path; bool direct; struct stor *s; };
static void open_co(struct co *co, void *arg)
{
    struct open_arg *a = arg;
    a->s = create_ok(co, a->path, a->direct);
}
static void close_co(struct co *co, void *arg) { stor_close(co, arg); }

static void test_small_writes(void **state)
{
    for (unsigned direct = 0; direct < 2; direct++) {
        struct open_arg o = { t_path("small"), direct, NULL };
        struct small x[SMALL_WRITERS];
        void *args[SMALL_WRITERS];
        t_run(0, open_co, &o);
        for (unsigned i = 0; i < SMALL_WRITERS; i++) {
            x[i] = (struct small){ o.s, i };
            args[i] = &x[i];
        }
        t_run_many(SMALL_WRITERS, small_writes, args);
        t_run(1, close_co, o.s);
        static uint8_t got[SMALL_BYTES + 1];
        int fd = open(o.path, O_RDONLY);
        uint64_t len = SMALL_BYTES / SMALL_UNIT * SMALL_UNIT;
        assert_int_equal(read(fd, got, sizeof got), len);
        close(fd);
        for (uint64_t i = 0; i < len; i++)
            assert_int_equal(got[i], i / SMALL_UNIT % 251 + 1);
    }
}

/* More pieces than one system call takes. */
static void many_pieces(struct co *co, void *arg)
{
    enum { PIECES = 3000, PIECE = 7 };
    struct stor *s = create_ok(co, t_path("pieces"), *(bool *)arg);
    struct iovec *v = calloc(PIECES, sizeof *v);
    uint8_t *a = malloc(PIECES * PIECE), *b = malloc(PIECES * PIECE);
    for (unsigned i = 0; i < PIECES * PIECE; i++)
        a[i] = (uint8_t)(i * 31);
    for (unsigned i = 0; i < PIECES; i++)
        v[i] = (struct iovec){ a + i * PIECE, PIECE };
    CHECK_EQ(stor_write(co, s, iov_of(v, PIECES), 3, 0), 0);
    for (unsigned i = 0; i < PIECES; i++)
        v[i] = (struct iovec){ b + i * PIECE, PIECE };
    CHECK_EQ(stor_read(co, s, iov_of(v, PIECES), 3), 0);
    CHECK(!memcmp(a, b, PIECES * PIECE));
    free(v);
    free(a);
    free(b);
    stor_close(co, s);
}

static void run_both(void (*fn)(struct co *co, void *arg))
{
    bool direct[2] = { false, true };
    t_run(0, fn, &direct[0]);
    t_run(1, fn, &direct[1]);
}

static void test_open_failures(void **state)
{
    t_run(0, open_failures, NULL);
    assert_int_equal(unlink(t_path("fifo")), 0);
}
static void test_create(void **state) { t_run(1, create_and_reopen, NULL); }
static void test_create_locks(void **state) { t_run(0, create_locks, NULL); }
static void test_random(void **state) { run_both(random_requests); }
static void test_tail(void **state) { run_both(tail_bytes); }
static void test_pieces(void **state) { run_both(many_pieces); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_failures), cmocka_unit_test(test_create), cmocka_unit_test(test_create_locks),
        cmocka_unit_test(test_random), cmocka_unit_test(test_tail), cmocka_unit_test(test_small_writes),
        cmocka_unit_test(test_pieces),
    };
    return T_MAIN("file", tests);
}
