/* SPDX-License-Identifier: MIT
 *
 * rt_test.c: making and freeing runtimes: options, environment, refusal of io_uring, nothing left behind.
 */
#include <dirent.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "rt/epoch.h"
#include "rt/rt_test.h"

static unsigned count_dir(const char *path)
{
    unsigned n = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* A joined thread may be listed for a moment longer. */
static bool settles(const char *path, unsigned most)
{
    for (int i = 0; i < 2000; i++) {
        if (count_dir(path) <= most)
            return true;
        usleep(1000);
    }
    return false;
}

static void bad_options(void **state)
{
    struct rt *rt;
    struct byre_err err;
    assert_int_equal(rt_new(&(struct rt_opts){ .loops = 65 }, &rt, &err), -EINVAL);
    assert_string_equal(err.reason, "BAD_ARGUMENT");
    assert_int_equal(rt_new(&(struct rt_opts){ .loops = 2, .manual = true }, &rt, &err), -EINVAL);
    setenv("BYRE_BACKEND", "steam", 1);
    assert_int_equal(rt_new(&(struct rt_opts){ 0 }, &rt, &err), -EINVAL);
    assert_string_equal(err.reason, "BAD_OPTION");
    assert_non_null(strstr(err.text, "steam"));
    unsetenv("BYRE_BACKEND");
    rt_free(NULL);
}

static const char *backend_given(enum rt_backend_kind kind, const char *env)
{
    struct rt *rt;
    if (env)
        setenv("BYRE_BACKEND", env, 1);
    int r = rt_new(&(struct rt_opts){ .backend = kind }, &rt, NULL);
    unsetenv("BYRE_BACKEND");
    if (r)
        return strerror(-r);
    const char *name = rt_backend_name(rt_loop_at(rt, 0));
    assert_int_equal(rt_loop_count(rt), 1);
    rt_free(rt);
    return name;
}

static void backend_choice(void **state)
{
    assert_string_equal(backend_given(RT_BACKEND_AUTO, NULL), "io_uring");
    assert_string_equal(backend_given(RT_BACKEND_AUTO, ""), "io_uring");
    assert_string_equal(backend_given(RT_BACKEND_AUTO, "auto"), "io_uring");
    assert_string_equal(backend_given(RT_BACKEND_AUTO, "uring"), "io_uring");
    assert_string_equal(backend_given(RT_BACKEND_AUTO, "threads"), "threads");
    assert_string_equal(backend_given(RT_BACKEND_URING, "threads"), "io_uring");
    assert_string_equal(backend_given(RT_BACKEND_THREADS, "uring"), "threads");
}

/* ---- refusal: a filter makes a system call fail, as container policies do ---- */

static void refuse_syscall(int nr, int code)
{
    struct sock_filter prog[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog fprog = { sizeof prog / sizeof prog[0], prog };
    OK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    OK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &fprog));
}

static void read_something(struct co *co)
{
    char c;
    struct iovec v = { &c, 1 };
    int64_t r = rt_preadv(co, 9999, &v, 1, 0);
    ASSERT(r == -EBADF);
    OK(co_sleep(co, 100));
}

static int as_child(void (*fn)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        fn();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void check_refused(int code)
{
    struct rt *rt;
    struct byre_err err;
    ASSERT(rt_new(&(struct rt_opts){ .backend = RT_BACKEND_URING }, &rt, &err) == -code);
    ASSERT(strstr(err.text, "io_uring") && err.code == -code);
    for (unsigned loops = 1; loops < 4; loops++) {      /* silently the other one */
        OK(rt_new(&(struct rt_opts){ .loops = loops }, &rt, &err));
        ASSERT(!strcmp(rt_backend_name(rt_loop_at(rt, loops - 1)), "threads"));
        rt_free(rt);
    }
    setenv("BYRE_BACKEND", "uring", 1);
    ASSERT(rt_new(&(struct rt_opts){ .loops = 2 }, &rt, &err) == -code);
    unsetenv("BYRE_BACKEND");
    test_run(RT_BACKEND_AUTO, read_something);
    test_run_threaded(&(struct rt_opts){ .loops = 2 }, read_something);
}

static void uring_eperm(void)
{
    refuse_syscall(SYS_io_uring_setup, EPERM);           /* FEATURES 3.003 */
    check_refused(EPERM);
}

static void uring_enosys(void)
{
    refuse_syscall(SYS_io_uring_setup, ENOSYS);
    check_refused(ENOSYS);
}

static void uring_enomem(void)
{
    refuse_syscall(SYS_io_uring_setup, ENOMEM);
    check_refused(ENOMEM);
}

static void old_kernel_without_pwait2(void)
{
    refuse_syscall(SYS_epoll_pwait2, ENOSYS);
    test_run(RT_BACKEND_THREADS, read_something);
}

static void nothing_works(void)
{
    struct rt *rt;
    struct byre_err err;
    refuse_syscall(SYS_eventfd2, EMFILE);
    ASSERT(rt_new(&(struct rt_opts){ .loops = 2 }, &rt, &err) == -EMFILE);
    ASSERT(rt_new(&(struct rt_opts){ .manual = true }, &rt, &err) == -EMFILE);
    ASSERT(rt_new(&(struct rt_opts){ .backend = RT_BACKEND_THREADS }, &rt, NULL) == -EMFILE);
}

static void refusals(void **state)
{
    assert_int_equal(as_child(uring_eperm), 0);
    assert_int_equal(as_child(uring_enosys), 0);
    assert_int_equal(as_child(uring_enomem), 0);
    assert_int_equal(as_child(old_kernel_without_pwait2), 0);
    assert_int_equal(as_child(nothing_works), 0);
}

/* The n-th ring is refused because descriptors run out: all or nothing. */
static void descriptors_run_out(void)
{
    struct rlimit lim = { 40, 40 };
    struct rt *rt;
    OK(setrlimit(RLIMIT_NOFILE, &lim));
    unsigned before = count_dir("/proc/self/fd");
    for (int i = 0; i < 3; i++) {
        ASSERT(rt_new(&(struct rt_opts){ .loops = 64 }, &rt, NULL) == -EMFILE);
        ASSERT(count_dir("/proc/self/fd") == before);
        ASSERT(settles("/proc/self/task", 2 + 1 + 1));          /* itself, and a sanitizer's helper */
    }
    OK(rt_new(&(struct rt_opts){ .loops = 2 }, &rt, NULL));
    rt_free(rt);
}

static void all_or_nothing(void **state)
{
    assert_int_equal(as_child(descriptors_run_out), 0);
}

/* ---- ending ---- */

static void nothing_is_left(void **state)
{
    unsigned fds = count_dir("/proc/self/fd"), tasks = count_dir("/proc/self/task");
    for (int i = 0; i < 40; i++) {
        struct rt *rt;
        struct rt_opts o = { .loops = 1 + (unsigned)i % 5, .backend = RT_BACKEND_URING + (enum rt_backend_kind)(i % 2) };
        assert_int_equal(rt_new(&o, &rt, NULL), 0);
        rt_free(rt);
        test_run(o.backend, read_something);
    }
    assert_int_equal(count_dir("/proc/self/fd"), fds);
    assert_true(settles("/proc/self/task", tasks));
    struct rt *rt;
    assert_int_equal(rt_new(&(struct rt_opts){ .loops = 64 }, &rt, NULL), 0);
    assert_int_equal(rt_loop_count(rt), 64);
    assert_int_equal(rt_loop_index(rt_loop_at(rt, 63)), 63);
    rt_free(rt);
}

/* Coroutines that are still busy when rt_free is called, and messages that give birth to messages and coroutines. */
static unsigned ended;

struct relay { struct rt_msg msg; struct rt *rt; unsigned at, hops; };

static void last_one(struct co *co, void *arg)
{
    OK(co_sleep(co, 2 * MS));
    ended++;
    free(arg);
}

static void relay_arrived(struct rt_msg *m)
{
    struct relay *r = CONTAINER_OF(m, struct relay, msg);
    ASSERT(rt_on_loop(rt_loop_at(r->rt, r->at)));
    if (r->hops-- == 0) {
        OK(rt_spawn(rt_loop_at(r->rt, r->at), last_one, r));
        return;
    }
    r->at = (r->at + 1) % rt_loop_count(r->rt);
    rt_post(rt_loop_at(r->rt, r->at), m);
}

static void busy_one(struct co *co, void *arg)
{
    struct relay *r = malloc(sizeof *r);
    for (int i = 0; i < 20; i++)
        co_yield(co);
    OK(co_sleep(co, 1 * MS));
    *r = (struct relay){ .msg.fn = relay_arrived, .rt = arg, .hops = 50, .at = rt_loop_index(co_loop(co)) };
    rt_post(co_loop(co), &r->msg);
}

static void free_waits_for_the_rest(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        for (unsigned loops = 1; loops <= 3; loops++) {
            struct rt *rt;
            assert_int_equal(rt_new(&(struct rt_opts){ .loops = loops, .backend = (enum rt_backend_kind)kind }, &rt, NULL), 0);
            ended = 0;
            assert_int_equal(rt_spawn_on(rt_loop_at(rt, loops - 1), busy_one, rt), 0);
            rt_free(rt);
            assert_int_equal(ended, 1);
        }
    }
}

static void free_in_manual_mode(void **state)
{
    struct rt *rt;
    assert_int_equal(rt_new(&(struct rt_opts){ .manual = true }, &rt, NULL), 0);
    ended = 0;
    assert_int_equal(rt_spawn(rt_loop_at(rt, 0), busy_one, rt), 0);
    rt_free(rt);
    assert_int_equal(ended, 1);
}

/* FEATURES 3.076: loops that come later do what is sent to them, by a name of their own, and end with the rest. */
struct later { struct rt_loop *loop; struct epoch *d; int seen; };

static int on_later(struct co *co, void *arg)
{
    struct later *l = arg;
    char name[16] = "";
    ASSERT(!prctl(PR_GET_NAME, name) && !strcmp(name, "a name of more "));
    epoch_token t = epoch_enter(l->d, co_loop(co));
    l->seen += co_loop(co) == l->loop && rt_loop_thread_id(l->loop) == gettid();
    co_yield(co);
    epoch_leave(l->d, co_loop(co), t);
    return 7;
}

static int64_t more_blocking(void *arg)
{
    return rt_loop_more(((void **)arg)[0], ((void **)arg)[1]);
}

static void loops_come_later(struct co *co)
{
    struct rt *rt = rt_of(co_loop(co));
    struct later l = { 0 };
    OK(epoch_new(co_loop(co), &l.d));        /* older than they are */
    for (unsigned i = 0; i < 3; i++) {
        int64_t r = rt_blocking(co, more_blocking, (void *[]){ rt, &l.loop });
        ASSERT(r == (i < 2 ? 0 : -ENOSPC) && rt_loop_count(rt) == 2 && rt_loop_slots(rt) == 4);
        rt_loop_name(l.loop, "a name of more than fifteen bytes");
        ASSERT(rt_call(co, l.loop, on_later, &l) == 7 && l.seen == (int)i + 1);
        epoch_wait(co, l.d);
        ASSERT(rt_loop_index(l.loop) == (i ? 3 : 2));
    }
    epoch_free(l.d);
}

static void loops_later(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++)
        test_run_threaded(&(struct rt_opts){ .loops = 2, .spare = 2, .backend = (enum rt_backend_kind)kind }, loops_come_later);
    struct rt *rt;
    struct byre_err err;
    assert_int_equal(rt_new(&(struct rt_opts){ .loops = 60, .spare = 5 }, &rt, &err), -EINVAL);
    assert_int_equal(rt_new(&(struct rt_opts){ .manual = true, .spare = 1 }, &rt, &err), -EINVAL);
}

/* Allocations that fail while the runtime is made: -ENOMEM and nothing is left. */
static int fail_in = -1;
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    if (fail_in >= 0 && fail_in-- == 0)
        return NULL;
    return __real_calloc(n, size);
}

static void memory_failures(void **state)
{
    unsigned fds = count_dir("/proc/self/fd");
    int failed = 0;
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        for (int nth = 0;; nth++) {
            struct rt *rt;
            fail_in = nth;
            int r = rt_new(&(struct rt_opts){ .manual = true, .backend = (enum rt_backend_kind)kind }, &rt, NULL);
            bool all_passed = fail_in >= 0;
            fail_in = -1;
            if (!r)
                rt_free(rt);
            if (all_passed)
                break;
            assert_int_equal(r, -ENOMEM);
            failed++;
        }
    }
    assert_true(failed >= 8);
    assert_int_equal(count_dir("/proc/self/fd"), fds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_options), cmocka_unit_test(backend_choice), cmocka_unit_test(refusals),
        cmocka_unit_test(all_or_nothing), cmocka_unit_test(nothing_is_left), cmocka_unit_test(free_waits_for_the_rest),
        cmocka_unit_test(free_in_manual_mode), cmocka_unit_test(loops_later), cmocka_unit_test(memory_failures),
    };
    unsetenv("BYRE_BACKEND");
    return cmocka_run_group_tests_name("rt-rt", tests, NULL, NULL);
}
