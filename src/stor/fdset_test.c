/* SPDX-License-Identifier: MIT
 *
 * fdset_test.c: files that others have opened (FEATURES 3.023).
 *
 * Purpose      Numbers and life of sets; which descriptor fits; locks of several stores over one open file.
 * Tests        fdset.c, the part of file_lock.c for shared open files
 */
#include "stor/stor_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "stor/fdset.h"

#define WRITER (STOR_PERM_READ | STOR_PERM_WRITE | STOR_PERM_RESIZE)
#define NO_WRITERS (STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED)

static int made_at(const char *name, int flags)
{
    int fd = open(t_path(name), flags | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    if ((flags & O_ACCMODE) != O_RDONLY && !(flags & O_PATH))
        CHECK_EQ(ftruncate(fd, 1 << 20), 0);
    return fd;
}

static int made(int flags) { return made_at("f", flags); }

static int64_t give(struct fdsets *s, int64_t id, int fd)
{
    int64_t got = -1;
    CHECK_EQ(fdset_add(s, &(struct fdset_new){ .id = id < 0 ? NULL : &id, .fd = fd }, &got, NULL), 0);
    return got;
}

/* ---- what is told ---- */

struct told { char text[200]; size_t len; };

static void tell_set(void *arg, int64_t id)
{
    struct told *t = arg;
    t->len += (size_t)snprintf(t->text + t->len, sizeof t->text - t->len, "[%d]", (int)id);
}

static void tell_fd(void *arg, int fd, const char *opaque)
{
    struct told *t = arg;
    CHECK(fcntl(fd, F_GETFD) >= 0);
    t->len += (size_t)snprintf(t->text + t->len, sizeof t->text - t->len, "%s ", opaque ? opaque : "-");
}

static bool is_told(struct fdsets *s, const char *want)
{
    struct told t = { "", 0 };
    fdsets_tell(s, &(struct fdset_teller){ tell_set, tell_fd, &t });
    if (strcmp(t.text, want))
        fprintf(stderr, "told '%s', not '%s'\n", t.text, want);
    return !strcmp(t.text, want);
}

/* fdset.h I2 */
static int remove_from(struct fdsets *s, int64_t id, int fd)
{
    struct fdset_removed out;
    int r = fdset_remove(s, id, fd, &out, NULL);
    for (unsigned i = 0; !r && i < out.count; i++)
        CHECK_EQ(close(out.fds[i]), 0);
    return r;
}

static void test_numbers(void **state)
{
    struct fdsets *s;
    int64_t id = 7, got;
    int a = made(O_RDWR), b = made(O_RDWR);
    assert_int_equal(fdsets_new(&s), 0);
    CHECK_EQ(give(s, -1, a), 0);
    CHECK_EQ(fdset_add(s, &(struct fdset_new){ &id, "rw:f", b }, &got, NULL), 0);
    CHECK_EQ(got, 7);
    CHECK_EQ(give(s, -1, made(O_RDONLY)), 1);
    CHECK_EQ(give(s, INT64_MAX, made(O_RDONLY)), INT64_MAX);
    CHECK_EQ(remove_from(s, INT64_MAX, -1), 0);
    CHECK(is_told(s, "[7]rw:f [1]- [0]- "));
    id = -1;
    int bad = made(O_RDWR);
    CHECK_EQ(fdset_add(s, &(struct fdset_new){ &id, NULL, bad }, &got, NULL), -EINVAL);
    CHECK_EQ(close(bad), 0);                               /* fdset.h I3 */
    CHECK_EQ(remove_from(s, 0, b), -ENOENT);        /* it is in another set */
    CHECK_EQ(remove_from(s, 3, -1), -ENOENT);
    CHECK_EQ(remove_from(s, 7, b), 0);
    CHECK(fcntl(b, F_GETFD) < 0);
    CHECK_EQ(remove_from(s, 7, b), -ENOENT);
    CHECK_EQ(give(s, -1, made(O_RDONLY)), 2);
    CHECK_EQ(remove_from(s, 0, -1), 0);
    CHECK(is_told(s, "[2]- [1]- "));
    CHECK_EQ(give(s, -1, made(O_RDONLY)), 0);
    fdsets_free(s);
    CHECK(fcntl(a, F_GETFD) < 0);
    assert_int_equal(t_failures, 0);
}

static void test_limit(void **state)
{
    struct fdsets *s;
    int64_t id = 1, got;
    int first = made(O_RDONLY);
    static char text[FDSET_OPAQUE_MAX + 2];
    assert_int_equal(fdsets_new(&s), 0);
    memset(text, 'x', sizeof text - 1);
    int one = dup(first);
    CHECK_EQ(fdset_add(s, &(struct fdset_new){ &id, text, one }, &got, NULL), -E2BIG);
    CHECK_EQ(close(one), 0);
    for (unsigned i = 0; i < FDSETS_FDS_MAX; i++)
        give(s, i % 3, dup(first));
    one = dup(first);
    CHECK_EQ(fdset_add(s, &(struct fdset_new){ &id, NULL, one }, &got, NULL), -E2BIG);
    CHECK_EQ(close(one), 0);
    fdsets_free(s);
    close(first);
    assert_int_equal(t_failures, 0);
}

static void test_sockets(void **state)
{
    struct fdsets *s;
    char *first, *second;
    int a = made(O_RDONLY), b = made(O_RDONLY), got = -1;
    assert_int_equal(fdsets_new(&s), 0);
    CHECK_EQ(passed_socket_take(s, "x", &got, NULL), -ENOENT);
    CHECK_EQ(passed_socket_offer(s, "x", a, &first, NULL), 0);
    CHECK_EQ(passed_socket_offer(s, "x", b, &second, NULL), 0);
    CHECK(strcmp(first, second));
    CHECK_EQ(passed_socket_take(s, "x", &got, NULL), -ENOENT);
    CHECK_EQ(passed_socket_take(s, second, &got, NULL), 0);
    CHECK_EQ(got, b);
    CHECK_EQ(passed_socket_take(s, second, &got, NULL), -ENOENT);
    CHECK(!passed_socket_withdraw(s, second, &got));        /* was taken: it is somebody else's */
    CHECK(passed_socket_withdraw(s, first, &got));
    CHECK_EQ(got, a);
    CHECK(!passed_socket_withdraw(s, first, &got));
    CHECK(close(a) == 0 && close(b) == 0);
    free(first);
    free(second);
    fdsets_free(s);
    assert_int_equal(t_failures, 0);
}

static int open_from(struct co *co, struct fdsets *s, const char *name, bool read_only, struct stor **ret)
{
    struct byre_err err = { 0 };
    int r = stor_file_open(co, name, &(struct stor_file_opts){ .read_only = read_only, .passed = s }, ret, &err);
    if (r)
        CHECK(strstr(err.text, name));
    return r;
}

/* ---- a file server that does not answer ---- */

enum asked { NOTHING, LOOK, UNLOCK };
static struct { ino_t ino; _Atomic enum asked what; atomic_bool asked, answers; } server;

static void ask(enum asked what, ino_t ino)
{
    if (what != atomic_load(&server.what) || ino != server.ino)
        return;
    atomic_store(&server.asked, true);
    while (!atomic_load(&server.answers))
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
}

int __real_fstat64(int fd, struct stat64 *st);
int __wrap_fstat64(int fd, struct stat64 *st);
int __wrap_fstat64(int fd, struct stat64 *st)
{
    int r = __real_fstat64(fd, st);
    if (!r)
        ask(LOOK, st->st_ino);
    return r;
}

int __real_fcntl64(int fd, int cmd, ...);
int __wrap_fcntl64(int fd, int cmd, ...);
int __wrap_fcntl64(int fd, int cmd, ...)
{
    struct stat64 st = { 0 };
    va_list list;
    va_start(list, cmd);
    void *arg = va_arg(list, void *);
    va_end(list);
    if (cmd == F_OFD_SETLK && ((struct flock *)arg)->l_type == F_UNLCK && !__real_fstat64(fd, &st))
        ask(UNLOCK, st.st_ino);
    return __real_fcntl64(fd, cmd, arg);
}

struct waits { struct fdsets *s; struct stor *opened, *closing; bool ended; };

static void wait_for_server(struct co *co, void *arg)
{
    struct waits *w = arg;
    if (w->closing)
        stor_close(co, w->closing);
    else
        CHECK_EQ(open_from(co, w->s, "/dev/fdset/1", false, &w->opened), 0);
    w->ended = true;
}

/* Files of other servers are opened and closed meanwhile (fdset.c I5). */
static void meanwhile(struct co *co, enum asked what, struct waits *w)
{
    struct stor *other;
    server.asked = server.answers = false;
    server.what = what;
    CHECK_EQ(rt_spawn(co_loop(co), wait_for_server, w), 0);
    while (!atomic_load(&server.asked))
        CHECK_EQ(co_sleep(co, 1000000), 0);
    CHECK_EQ(open_from(co, w->s, "/dev/fdset/2", false, &other), 0);
    CHECK_EQ(stor_lock(co, other, WRITER, NO_WRITERS, NULL), 0);
    stor_close(co, other);
    CHECK(!w->ended);
    server.answers = true;
    while (!w->ended)
        CHECK_EQ(co_sleep(co, 1000000), 0);
    server.what = NOTHING;
}

static void slow_server(struct co *co, void *arg)
{
    struct fdsets *s = arg;
    struct stat st;
    struct stor *a;
    int fd = made(O_RDWR);
    CHECK_EQ(fstat(fd, &st), 0);
    server.ino = st.st_ino;
    give(s, 1, fd);
    give(s, 2, made_at("g", O_RDWR));
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &a), 0);
    CHECK_EQ(stor_lock(co, a, WRITER, NO_WRITERS, NULL), 0);
    struct waits opening = { .s = s }, closing = { .s = s, .closing = a };
    meanwhile(co, LOOK, &opening);
    meanwhile(co, UNLOCK, &closing);
    stor_close(co, opening.opened);
}

/* ---- which one ---- */

static void pick(struct co *co, void *arg)
{
    static const char *const bad[] = { "/dev/fdset/", "/dev/fdset/x", "/dev/fdset/-1", "/dev/fdset/1/", "/dev/fdset/ 1", "/dev/fdset/99999999999999999999" };
    struct fdsets *s = arg;
    struct stor *t, *u;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_EQ(open_from(co, s, bad[i], true, &t), -EINVAL);
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", true, &t), -ENOENT);
    give(s, 1, made(O_PATH));
    give(s, 1, made(O_WRONLY));
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", true, &t), -EACCES);
    give(s, 1, made(O_RDONLY));
    give(s, 1, made(O_RDWR | O_APPEND));
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &t), -EACCES);
    CHECK_EQ(open_from(co, s, "/dev/fdset/01", true, &t), 0);
    give(s, 1, made(O_RDWR | O_NONBLOCK));
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &u), 0);
    CHECK_EQ(stor_write_buf(co, u, "abc", 3, 5, 0), 0);
    char got[4] = "";
    CHECK_EQ(stor_read_exact(co, t, got, 3, 5), 0);
    CHECK(!strcmp(got, "abc"));
    stor_close(co, u);
    CHECK_EQ(remove_from(s, 1, -1), 0);             /* fdset.h I2 */
    CHECK(is_told(s, "[1]"));
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", true, &u), -EACCES);
    CHECK_EQ(stor_read_exact(co, t, got, 3, 5), 0);
    stor_close(co, t);
    CHECK(is_told(s, ""));                                 /* fdset.h I1 */
    give(s, 2, open("/", O_RDONLY | O_CLOEXEC));
    CHECK_EQ(open_from(co, s, "/dev/fdset/2", true, &t), -EINVAL);
    CHECK(is_told(s, "[2]- "));
    CHECK_EQ(stor_file_keep_name(co, "/dev/fdset/2"), 0);
    CHECK_EQ(open_from(co, NULL, "/dev/fdset/2", true, &t), -ENOENT);      /* a path as others */
}

static void create(struct co *co, void *arg)
{
    struct fdsets *s = arg;
    struct stor_file_opts o = { .create = true, .exclusive = true, .passed = s };
    struct stor *t;
    uint64_t len;
    give(s, 1, made(O_RDWR));
    CHECK_EQ(stor_file_open(co, "/dev/fdset/1", &o, &t, NULL), -EEXIST);
    o.exclusive = false;
    o.truncate_to_zero = true;
    CHECK_EQ(stor_file_open(co, "/dev/fdset/1", &o, &t, NULL), 0);
    CHECK_EQ(stor_length(co, t, &len), 0);
    CHECK_EQ(len, 0);
    struct stor *u;
    CHECK_EQ(stor_file_open(co, "/dev/fdset/1", &o, &u, NULL), -EAGAIN);   /* it is being made */
    stor_close(co, t);
    CHECK(!access(t_path("f"), F_OK));
    int fd = made(O_RDONLY), other = made(O_RDONLY);
    give(s, 1, fd);
    give(s, 9, other);
    fdsets_empty(s, co_loop(co));
    CHECK(is_told(s, ""));
    while (fcntl(fd, F_GETFD) >= 0 || fcntl(other, F_GETFD) >= 0)
        CHECK_EQ(co_sleep(co, 1000000), 0);
}

static void direct(struct co *co, void *arg)
{
    struct fdsets *s = arg;
    struct stor_file_opts o = { .passed = s, .direct = true };
    struct stor *t, *u;
    int plain = made(O_RDWR), fd = open(t_path("f"), O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0) {                                          /* this file system has none */
        CHECK_EQ(errno, EINVAL);
        close(plain);
        return;
    }
    give(s, 1, plain);
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &t), 0);
    CHECK_EQ(stor_file_open(co, "/dev/fdset/1", &o, &u, NULL), -EBUSY);    /* fdset.c I1 */
    give(s, 1, fd);
    CHECK_EQ(stor_file_open(co, "/dev/fdset/1", &o, &u, NULL), 0);
    CHECK(fcntl(fd, F_GETFL) & O_DIRECT && !(fcntl(plain, F_GETFL) & O_DIRECT));
    stor_close(co, t);
    stor_close(co, u);
    CHECK_EQ(remove_from(s, 1, fd), 0);
    CHECK_EQ(stor_file_open(co, "/dev/fdset/1", &o, &u, NULL), 0);         /* nobody else has it */
    CHECK(fcntl(plain, F_GETFL) & O_DIRECT);
    stor_close(co, u);
}

/* ---- locks ---- */

/* May another program write? */
static bool is_free(struct co *co)
{
    struct stor *s;
    CHECK_EQ(stor_file_open(co, t_path("f"), &(struct stor_file_opts){ 0 }, &s, NULL), 0);
    int r = stor_lock(co, s, WRITER, NO_WRITERS, NULL);
    stor_close(co, s);
    CHECK(r == 0 || r == -EAGAIN);
    return r == 0;
}

static void locks(struct co *co, void *arg)
{
    struct fdsets *s = arg;
    struct stor *a, *b, *c;
    struct byre_err err = { 0 };
    int fd = made(O_RDWR);
    give(s, 1, dup(fd));
    give(s, 2, fd);                                        /* the same open file, by another number */
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &a), 0);
    CHECK_EQ(open_from(co, s, "/dev/fdset/2", false, &b), 0);
    CHECK_EQ(stor_lock(co, a, WRITER, NO_WRITERS, &err), 0);
    CHECK_EQ(stor_lock(co, b, WRITER, NO_WRITERS, &err), -EAGAIN);
    CHECK(strstr(err.text, "/dev/fdset/2") && strstr(err.text, "same descriptor"));
    CHECK_EQ(stor_lock(co, b, STOR_PERM_READ, STOR_PERM_ALL, NULL), 0);
    stor_close(co, b);
    CHECK(!is_free(co));                                   /* what b gave up is still a's */
    CHECK_EQ(open_from(co, s, "/dev/fdset/2", false, &b), 0);
    CHECK_EQ(stor_lock_beside(co, b, a, WRITER, NO_WRITERS, NULL), 0);     /* a reopening */
    CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &c), 0);
    CHECK_EQ(stor_lock(co, c, WRITER, NO_WRITERS, NULL), -EAGAIN);
    stor_close(co, a);
    CHECK(!is_free(co));
    CHECK_EQ(stor_lock(co, c, WRITER, NO_WRITERS, NULL), -EAGAIN);
    CHECK_EQ(stor_lock(co, b, 0, STOR_PERM_ALL, NULL), 0);
    CHECK(is_free(co));
    CHECK_EQ(stor_lock(co, c, WRITER, NO_WRITERS, NULL), 0);
    CHECK_EQ(stor_file_open(co, t_path("f"), &(struct stor_file_opts){ 0 }, &a, NULL), 0);
    CHECK_EQ(stor_lock(co, a, WRITER, STOR_PERM_ALL, NULL), -EAGAIN);
    CHECK_EQ(stor_lock(co, c, 0, STOR_PERM_ALL, NULL), 0);
    CHECK_EQ(stor_lock(co, a, WRITER, NO_WRITERS, NULL), 0);
    CHECK_EQ(stor_lock(co, c, WRITER, NO_WRITERS, NULL), -EAGAIN);         /* somebody else's are seen as ever */
    stor_close(co, a);
    CHECK_EQ(stor_lock(co, c, WRITER, NO_WRITERS, NULL), 0);
    stor_close(co, b);
    stor_close(co, c);
    CHECK(is_free(co));                                    /* although the open file lives on in the sets */
}

/* Bytes that two stores of one open file have stay when one of them goes, or is refused something. */
static void both_have(struct co *co, void *arg)
{
    static const struct { unsigned perm, shared, other_perm, other_shared; } rows[] = {
        { WRITER, STOR_PERM_ALL, STOR_PERM_READ, NO_WRITERS },             /* what is held */
        { STOR_PERM_READ, NO_WRITERS, WRITER, STOR_PERM_ALL },             /* what others may not have */
    };
    struct fdsets *s = arg;
    struct stor *a, *b, *other;
    give(s, 1, made(O_RDWR));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &a), 0);
        CHECK_EQ(open_from(co, s, "/dev/fdset/1", false, &b), 0);
        CHECK_EQ(stor_file_open(co, t_path("f"), &(struct stor_file_opts){ 0 }, &other, NULL), 0);
        CHECK_EQ(stor_lock(co, a, rows[i].perm, rows[i].shared, NULL), 0);
        CHECK_EQ(stor_lock(co, b, rows[i].other_perm, rows[i].other_shared, NULL), -EAGAIN);
        CHECK_EQ(stor_lock(co, other, rows[i].other_perm, rows[i].other_shared, NULL), -EAGAIN);
        CHECK_EQ(stor_lock(co, b, rows[i].perm, rows[i].shared, NULL), 0);
        CHECK_EQ(stor_lock(co, b, 0, STOR_PERM_ALL, NULL), 0);
        CHECK_EQ(stor_lock(co, other, rows[i].other_perm, rows[i].other_shared, NULL), -EAGAIN);
        CHECK_EQ(stor_lock(co, b, rows[i].perm, rows[i].shared, NULL), 0);
        stor_close(co, b);
        CHECK_EQ(stor_lock(co, other, rows[i].other_perm, rows[i].other_shared, NULL), -EAGAIN);
        stor_close(co, a);
        CHECK_EQ(stor_lock(co, other, rows[i].other_perm, rows[i].other_shared, NULL), 0);
        stor_close(co, other);
    }
}

static void with_sets(void (*fn)(struct co *co, void *arg))
{
    struct fdsets *s;
    assert_int_equal(fdsets_new(&s), 0);
    t_run(0, fn, s);
    fdsets_free(s);
}

static void test_slow_server(void **state) { with_sets(slow_server); }
static void test_pick(void **state) { with_sets(pick); }
static void test_create(void **state) { with_sets(create); }
static void test_direct(void **state) { with_sets(direct); }
static void test_locks(void **state) { with_sets(locks); }
static void test_both_have(void **state) { with_sets(both_have); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_limit), cmocka_unit_test(test_sockets), cmocka_unit_test(test_slow_server), cmocka_unit_test(test_pick), cmocka_unit_test(test_create), cmocka_unit_test(test_direct),
        cmocka_unit_test(test_locks), cmocka_unit_test(test_both_have),
    };
    return T_MAIN("fdset", tests);
}
