/* SPDX-License-Identifier: MIT
 *
 * file_lock_test.c: who may open what beside whom (FEATURES 3.007, 3.008, 3.009; RG21).
 *
 * Purpose      The verdicts are the peer's: each pair of modes is tried with qemu-io against qemu-io, and then with us
 *              in the place of the first and of the second.
 * Tests        file_lock.c, file_holder.c
 */
#include "stor/stor_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MODES = 4 };

/* The same four ways to open an image, for us and for qemu-io. */
static const struct mode {
    const char *name;
    unsigned perm, shared;
    bool read_only;
    const char *args[5];
} modes[MODES] = {
    { "rw", STOR_PERM_READ | STOR_PERM_WRITE | STOR_PERM_RESIZE, STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, false, { "-f", "qcow2" } },
    { "ro", STOR_PERM_READ, STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, true, { "-r", "-f", "qcow2" } },
    { "ro, shared", STOR_PERM_READ, STOR_PERM_ALL, true, { "-U", "-r", "-f", "qcow2" } },
    { "rw, sharing all", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL, false, { "-f", "raw" } },
};

/* ---- qemu-io ---- */

struct peer { pid_t pid; int in, out; };

static void peer_start(struct peer *p, const struct mode *m, const char *path, const char *command)
{
    const char *argv[12] = { "qemu-io" };
    unsigned n = 1;
    int in[2], out[2];
    for (unsigned i = 0; i < 5 && m->args[i]; i++)
        argv[n++] = m->args[i];
    if (command) {
        argv[n++] = "-c";
        argv[n++] = command;
    }
    argv[n] = path;
    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
}

/* Reads until `want` shows (true) or the peer ends its output (false). */
static bool peer_says(struct peer *p, const char *want)
{
    char text[4096] = "";
    size_t have = 0;
    ssize_t n;
    while (!strstr(text, want) && have < sizeof text - 1 && (n = read(p->out, text + have, sizeof text - 1 - have)) > 0)
        text[have += (size_t)n] = 0;
    return strstr(text, want) != NULL;
}

static int peer_end(struct peer *p)
{
    int status;
    close(p->in);                         /* end of its commands */
    while (waitpid(p->pid, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    close(p->out);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Opens interactively and stays open. */
static void peer_hold(struct peer *p, const struct mode *m, const char *path)
{
    peer_start(p, m, path, NULL);
    assert_true(peer_says(p, "qemu-io>"));
}

/* Can the peer open the image now? */
static bool peer_can_open(const struct mode *m, const char *path)
{
    struct peer p;
    peer_start(&p, m, path, "read 0 512");
    bool locked = peer_says(&p, "lock");
    int r = peer_end(&p);
    assert_true(r == 0 || (r == 1 && locked));
    return r == 0;
}

static bool have_peer(void)
{
    return system("qemu-io --version >/dev/null 2>&1 && qemu-img --version >/dev/null 2>&1") == 0;
}

static const char *make_image(void)
{
    static char command[600];
    const char *path = t_path("locked.qcow2");
    snprintf(command, sizeof command, "qemu-img create -q -f qcow2 '%s' 1M", path);
    assert_int_equal(system(command), 0);
    return path;
}

/* ---- us ---- */

struct ours {
    const char *path;
    const struct mode *mode;
    struct stor *s;
    int result;
    struct byre_err err;
};

static void ours_open(struct co *co, void *arg)
{
    struct ours *o = arg;
    struct stor_file_opts opts = { .read_only = o->mode->read_only, .locking = STOR_LOCK_ON };
    o->s = NULL;
    if (!CHECK_EQ(stor_file_open(co, o->path, &opts, &o->s, &o->err), 0))
        return;
    o->result = stor_lock(co, o->s, o->mode->perm, o->mode->shared, &o->err);
    CHECK(o->result == 0 || o->result == -EAGAIN);
}

static void ours_close(struct co *co, void *arg)
{
    stor_close(co, ((struct ours *)arg)->s);
}

static bool we_can_open(const struct mode *m, const char *path)
{
    struct ours o = { .path = path, .mode = m };
    t_run(0, ours_open, &o);
    t_run(0, ours_close, &o);
    return o.result == 0;
}

static void test_verdicts(void **state)
{
    if (!have_peer()) {
        if (t_is_ci())
            fail_msg("qemu-io and qemu-img are needed");
        skip();
    }
    const char *path = make_image();
    unsigned refused = 0;
    for (unsigned i = 0; i < MODES; i++) {
        bool verdict[MODES], we_second[MODES], we_first[MODES], both_ours[MODES];
        struct peer p;
        peer_hold(&p, &modes[i], path);
        for (unsigned k = 0; k < MODES; k++) {
            verdict[k] = peer_can_open(&modes[k], path);
            we_second[k] = we_can_open(&modes[k], path);
        }
        assert_int_equal(peer_end(&p), 0);
        struct ours o = { .path = path, .mode = &modes[i] };
        t_run(1, ours_open, &o);
        assert_int_equal(o.result, 0);
        for (unsigned k = 0; k < MODES; k++) {
            we_first[k] = peer_can_open(&modes[k], path);
            both_ours[k] = we_can_open(&modes[k], path);
        }
        t_run(0, ours_close, &o);
        for (unsigned k = 0; k < MODES; k++) {
            if (we_second[k] != verdict[k] || we_first[k] != verdict[k] || both_ours[k] != verdict[k])
                fail_msg("%s beside %s: the peer says %d; we second %d, we first %d, both ours %d", modes[i].name,
                         modes[k].name, verdict[k], we_second[k], we_first[k], both_ours[k]);
            refused += !verdict[k];
        }
    }
    assert_in_range(refused, 4, 12);      /* the table has both answers */
}

static void test_text_names_the_holder(void **state)
{
    if (!have_peer()) {
        if (t_is_ci())
            fail_msg("qemu-io and qemu-img are needed");
        skip();
    }
    const char *path = make_image();
    char pid[32];
    struct peer p;
    struct ours o = { .path = path, .mode = &modes[0] };
    peer_hold(&p, &modes[0], path);
    t_run(0, ours_open, &o);
    t_run(0, ours_close, &o);
    snprintf(pid, sizeof pid, "process %d (qemu-io)", (int)p.pid);
    assert_int_equal(o.result, -EAGAIN);
    assert_int_equal(o.err.code, -EAGAIN);
    assert_string_equal(o.err.reason, "LOCKED");
    assert_non_null(strstr(o.err.text, path));
    assert_non_null(strstr(o.err.text, pid));
    assert_int_equal(peer_end(&p), 0);
}

static void own_holder(struct co *co, void *arg)
{
    const char *path = t_path("own");
    struct stor_file_opts opts = { .create = true };
    struct stor *a, *b;
    struct byre_err err;
    char pid[64];
    CHECK_EQ(stor_file_open(co, path, &opts, &a, &err), 0);
    opts.create = false;
    CHECK_EQ(stor_file_open(co, path, &opts, &b, &err), 0);
    CHECK_EQ(stor_lock(co, a, modes[0].perm, modes[0].shared, &err), 0);
    CHECK_EQ(stor_lock(co, b, modes[1].perm, modes[1].shared, &err), -EAGAIN);
    snprintf(pid, sizeof pid, "process %d", (int)getpid());
    CHECK(strstr(err.text, pid) && strstr(err.text, "this one"));
    stor_close(co, a);
    CHECK_EQ(stor_lock(co, b, modes[1].perm, modes[1].shared, &err), 0);
    stor_close(co, b);
}

/* I5: the lock goes over from one store of a file to another one, and is never nobody's. */
static void beside(struct co *co, void *arg)
{
    const char *path = t_path("beside");
    struct stor_file_opts opts = { .create = true };
    struct stor *a, *b, *c;
    struct byre_err err;
    CHECK_EQ(stor_file_open(co, path, &opts, &a, &err), 0);
    opts.create = false;
    CHECK_EQ(stor_file_open(co, path, &opts, &b, &err), 0);
    CHECK_EQ(stor_file_open(co, path, &opts, &c, &err), 0);
    CHECK_EQ(stor_lock(co, a, modes[0].perm, modes[0].shared, &err), 0);
    CHECK_EQ(stor_lock(co, b, modes[0].perm, modes[0].shared, &err), -EAGAIN);
    CHECK_EQ(stor_lock_beside(co, b, a, modes[0].perm, modes[0].shared, &err), 0);
    CHECK_EQ(stor_lock(co, c, modes[0].perm, modes[0].shared, &err), -EAGAIN);
    CHECK_EQ(stor_lock(co, a, modes[0].perm, modes[0].shared, &err), 0);             /* what is held is not looked for */
    stor_close(co, a);
    CHECK_EQ(stor_lock(co, c, modes[0].perm, modes[0].shared, &err), -EAGAIN);
    CHECK_EQ(stor_lock(co, b, STOR_PERM_READ, STOR_PERM_ALL, &err), 0);
    CHECK_EQ(stor_lock(co, c, modes[0].perm, modes[0].shared, &err), 0);
    CHECK_EQ(stor_lock_beside(co, b, b, modes[0].perm, modes[0].shared, &err), -EAGAIN);      /* b does not hold it: it is looked for */
    stor_close(co, b);
    stor_close(co, c);
}

static void test_beside(void **state) { t_run(0, beside, NULL); }

static void test_own_holder(void **state) { t_run(0, own_holder, NULL); }

/* ---- a holder that has closed ---- */

/* I4: somebody goes on holding the open file itself, as the kernel does for a moment behind a request. */
static void closed(struct co *co, void *arg)
{
    const char *path = t_path("closed");
    struct stor_file_opts opts = { .create = true };
    struct stor *a, *b;
    struct byre_err err;
    int next = dup(0), kept;
    close(next);                                     /* the lowest one that is free: the file's */
    CHECK_EQ(stor_file_open(co, path, &opts, &a, &err), 0);
    CHECK_EQ(stor_lock(co, a, modes[0].perm, modes[0].shared, &err), 0);
    char name[64], target[512] = "";
    snprintf(name, sizeof name, "/proc/self/fd/%d", next);
    CHECK(readlink(name, target, sizeof target - 1) > 0 && !strcmp(target, path));
    kept = dup(next);
    stor_close(co, a);
    opts.create = false;
    CHECK_EQ(stor_file_open(co, path, &opts, &b, &err), 0);
    CHECK_EQ(stor_lock(co, b, modes[0].perm, modes[0].shared, &err), 0);
    stor_close(co, b);
    close(kept);
}

static void test_closed(void **state) { t_run(0, closed, NULL); }

/* ---- a holder that is gone ---- */

struct ghost { int sockets[2]; unsigned after_ms; };

/* Locks the file by a descriptor that then lies in a socket only: no process has it. */
static void ghost_begin(struct ghost *g, const char *path)
{
    struct flock l = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1 };
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &l), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, g->sockets), 0);
    union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } u = { 0 };
    struct iovec v = { "x", 1 };
    struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf };
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    assert_int_equal(sendmsg(g->sockets[0], &m, 0), 1);
    close(fd);
}

static void ghost_end(struct ghost *g)
{
    close(g->sockets[0]);
    close(g->sockets[1]);
}

static void *ghost_leaves(void *arg)
{
    struct ghost *g = arg;
    poll(NULL, 0, (int)g->after_ms);
    ghost_end(g);
    return NULL;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* What a killed program's last requests hold open goes away by itself: we wait for it, and not for ever. */
static void test_dead_holder(void **state)
{
    const char *path = t_path("ghost");
    struct ghost g = { .after_ms = 150 };
    struct ours o = { .path = path, .mode = &modes[0] };
    pthread_t t;
    close(open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    ghost_begin(&g, path);
    assert_int_equal(pthread_create(&t, NULL, ghost_leaves, &g), 0);
    uint64_t begin = now_ms();
    t_run(0, ours_open, &o);
    assert_int_equal(o.result, 0);
    assert_true(now_ms() - begin >= 100);
    assert_int_equal(pthread_join(t, NULL), 0);
    t_run(0, ours_close, &o);

    ghost_begin(&g, path);
    begin = now_ms();
    t_run(0, ours_open, &o);
    t_run(0, ours_close, &o);
    assert_int_equal(o.result, -EAGAIN);
    assert_non_null(strstr(o.err.text, "another process"));
    assert_in_range(now_ms() - begin, 1000, 20000);
    ghost_end(&g);
}

/* Which of the eight bytes does another descriptor see locked? Bits 0-3: held, 4-7: not shared. */
static unsigned seen_bytes(const char *path)
{
    unsigned seen = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    for (unsigned i = 0; i < 8; i++) {
        struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (i < 4 ? 100 : 196) + i, .l_len = 1 };
        if (fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type == F_RDLCK)
            seen |= 1u << i;
    }
    close(fd);
    return seen;
}

/* Changes from any state to any other leave exactly the right bytes; a refused one leaves the old ones. */
static void transitions(struct co *co, void *arg)
{
    const char *path = t_path("bytes");
    struct stor_file_opts opts = { .create = true };
    struct stor *a, *b;
    struct prng p;
    unsigned held = 0, unshared = 0;
    prng_init(&p, 5);
    CHECK_EQ(stor_file_open(co, path, &opts, &a, NULL), 0);
    CHECK_EQ(seen_bytes(path), 0xaa);     /* creating: write and resize, for us alone */
    opts.create = false;
    CHECK_EQ(stor_lock(co, a, 0, STOR_PERM_ALL, NULL), 0);
    CHECK_EQ(seen_bytes(path), 0);
    for (unsigned i = 0; i < 200; i++) {
        held = (unsigned)prng_below(&p, 16);
        unshared = (unsigned)prng_below(&p, 16);
        CHECK_EQ(stor_lock(co, a, held, STOR_PERM_ALL & ~unshared, NULL), 0);
        CHECK_EQ(seen_bytes(path), held | unshared << 4);
    }
    CHECK_EQ(stor_file_open(co, path, &opts, &b, NULL), 0);
    for (unsigned i = 0; i < 300; i++) {
        unsigned h2 = (unsigned)prng_below(&p, 16), u2 = (unsigned)prng_below(&p, 16);
        bool conflict = (h2 & unshared) || (u2 & held);
        CHECK_EQ(stor_lock(co, b, h2, STOR_PERM_ALL & ~u2, NULL), conflict ? -EAGAIN : 0);
        CHECK_EQ(seen_bytes(path), conflict ? held | unshared << 4 : held | h2 | (unshared | u2) << 4);
        CHECK_EQ(stor_lock(co, b, 0, STOR_PERM_ALL, NULL), 0);
        if (i % 10 == 0) {
            held = (unsigned)prng_below(&p, 16);
            unshared = (unsigned)prng_below(&p, 16);
            CHECK_EQ(stor_lock(co, a, held, STOR_PERM_ALL & ~unshared, NULL), 0);
        }
    }
    stor_close(co, a);
    stor_close(co, b);
    CHECK_EQ(seen_bytes(path), 0);
}

static void test_transitions(void **state) { t_run(1, transitions, NULL); }

/* Two who come at the same moment: never both. */
struct racer { const char *path; _Atomic int *inside; unsigned won; };

/* Without opening in between, to come close more often. */
static void race_quickly(struct co *co, struct racer *x, struct stor *s)
{
    for (unsigned i = 0; i < 5000; i++) {
        if (stor_lock(co, s, modes[0].perm, modes[0].shared, NULL) < 0)
            continue;
        CHECK_EQ(atomic_fetch_add(x->inside, 1), 0);
        x->won++;
        (void)co_sleep(co, 20000);
        atomic_fetch_sub(x->inside, 1);
        CHECK_EQ(stor_lock(co, s, 0, STOR_PERM_ALL, NULL), 0);
    }
}

static void race(struct co *co, void *arg)
{
    struct racer *x = arg;
    struct stor_file_opts opts = { .locking = STOR_LOCK_ON };
    struct stor *s;
    if (CHECK_EQ(stor_file_open(co, x->path, &opts, &s, NULL), 0)) {
        race_quickly(co, x, s);
        stor_close(co, s);
    }
    for (unsigned i = 0; i < 1500; i++) {
        if (!CHECK_EQ(stor_file_open(co, x->path, &opts, &s, NULL), 0))
            return;
        if (stor_lock(co, s, modes[0].perm, modes[0].shared, NULL) == 0) {
            CHECK_EQ(atomic_fetch_add(x->inside, 1), 0);
            x->won++;
            co_yield(co);
            atomic_fetch_sub(x->inside, 1);
        }
        stor_close(co, s);
    }
}

static void make_file(struct co *co, void *arg)
{
    struct stor_file_opts opts = { .create = true };
    struct stor *s;
    CHECK_EQ(stor_file_open(co, arg, &opts, &s, NULL), 0);
    stor_close(co, s);
}

static void test_race(void **state)
{
    char *path = strdup(t_path("raced"));
    _Atomic int inside = 0;
    struct racer x[2] = { { path, &inside, 0 }, { path, &inside, 0 } };
    void *args[2] = { &x[0], &x[1] };
    t_run(0, make_file, path);
    t_run_many(2, race, args);
    assert_true(x[0].won + x[1].won > 0);
    free(path);
}

/* ---- a kernel, or a file system, without open-file locks ---- */

static int deny_open_file_locks(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, F_OFD_GETLK, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, F_OFD_SETLKW, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { sizeof code / sizeof code[0], code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0 ? -errno : 0;
}

static void without_locks(struct co *co, void *arg)
{
    static const struct { enum stor_locking locking; unsigned mode; int want; } row[] = {
        { STOR_LOCK_AUTO, 0, -ENOTSUP }, { STOR_LOCK_AUTO, 1, 0 }, { STOR_LOCK_AUTO, 2, 0 }, { STOR_LOCK_AUTO, 3, -ENOTSUP },
        { STOR_LOCK_ON, 0, -ENOTSUP }, { STOR_LOCK_ON, 1, -ENOTSUP }, { STOR_LOCK_OFF, 0, 0 }, { STOR_LOCK_OFF, 1, 0 },
    };
    const char *path = t_path("without"), *fresh = t_path("fresh");
    struct stor_file_opts opts = { .create = true, .exclusive = true };
    struct byre_err err;
    struct stor *s;
    CHECK_EQ(stor_file_open(co, fresh, &opts, &s, &err), -ENOTSUP);
    CHECK(access(fresh, F_OK) < 0);
    opts.locking = STOR_LOCK_OFF;
    CHECK_EQ(stor_file_open(co, path, &opts, &s, &err), 0);
    stor_close(co, s);
    for (unsigned i = 0; i < sizeof row / sizeof row[0]; i++) {
        opts = (struct stor_file_opts){ .read_only = modes[row[i].mode].read_only, .locking = row[i].locking };
        CHECK_EQ(stor_file_open(co, path, &opts, &s, &err), 0);
        CHECK_EQ(stor_lock(co, s, modes[row[i].mode].perm, modes[row[i].mode].shared, &err), row[i].want);
        if (row[i].want < 0)
            CHECK(strstr(err.text, path) && !strcmp(err.reason, "NOT_SUPPORTED"));
        stor_close(co, s);
    }
    CHECK_EQ(unlink(path), 0);
}

static void test_without_locks_child(void **state) { t_run(0, without_locks, NULL); }

static void test_without_locks(void **state)
{
    pid_t pid = fork();
    int status;
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "file_lock_test", "--without-locks", NULL);
        _exit(127);
    }
    while (waitpid(pid, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdicts), cmocka_unit_test(test_text_names_the_holder), cmocka_unit_test(test_own_holder), cmocka_unit_test(test_beside), cmocka_unit_test(test_closed), cmocka_unit_test(test_dead_holder),
        cmocka_unit_test(test_transitions), cmocka_unit_test(test_race), cmocka_unit_test(test_without_locks),
    };
    static const struct CMUnitTest child[] = { cmocka_unit_test(test_without_locks_child) };
    if (argc > 1 && !strcmp(argv[1], "--without-locks"))
        return deny_open_file_locks() < 0 ? 1 : T_MAIN("file-lock, without locks", child);
    return T_MAIN("file-lock", tests);
}
