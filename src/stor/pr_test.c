/* SPDX-License-Identifier: MIT
 *
 * pr_test.c: a manager whose helper is not there, or stands still: there is none then, in time. What helpers answer: tests/daemon/pr_test.py.
 *
 * Tests        pr.c
 */
#include "stor/stor_test.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "stor/pr.h"

#define MS UINT64_C(1000000)

/* A socket that takes connections, and whose owner never looks at them. */
static int stand_still(const char *path)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(strlen(path) < sizeof sa.sun_path);
    memcpy(sa.sun_path, path, strlen(path) + 1);
    (void)unlink(path);
    CHECK(bind(fd, (const struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, 4) == 0);
    return fd;
}

struct world { struct pr_set *s; const char *path; unsigned limit_ms; int result; bool told; };

static void changed(void *arg, const char *id, bool connected) { ((struct world *)arg)->told = true; }

static void add(struct co *co, void *arg)
{
    struct world *w = arg;
    struct byre_err err = { 0 };
    w->result = pr_add(co, w->s, &(struct pr_new){ "p", w->path, w->limit_ms }, &err);
    CHECK(!w->result || strstr(err.text, w->path));
}

static void begin(struct world *w)
{
    CHECK_EQ(pr_set_new(&w->s), 0);
    pr_set_watch(w->s, changed, w);
}

static void end(struct co *co, struct world *w)
{
    CHECK(!w->told && !pr_find(w->s, "p") && !pr_next(w->s, NULL));
    pr_set_empty(w->s, co_loop(co));
    pr_set_free(w->s);
}

static void in_time(struct co *co, void *arg)
{
    struct world w = { .path = t_path("still"), .limit_ms = 60 };
    int fd = stand_still(w.path);
    begin(&w);
    uint64_t before = rt_now(co_loop(co));
    add(co, &w);
    CHECK_EQ(w.result, -ETIMEDOUT);
    CHECK(rt_now(co_loop(co)) - before >= 60 * MS);
    CHECK_EQ(co_set_deadline(co, 0), 0);
    CHECK(co_sleep(co, MS) == 0);            /* nor does the limit hold for what comes behind it */
    end(co, &w);
    close(fd);
}

static void cancelled(struct co *co, void *arg)
{
    struct world w = { .path = t_path("still"), .limit_ms = 600000 };
    struct rt_task task;
    int fd = stand_still(w.path);
    begin(&w);
    if (!CHECK_EQ(rt_task_start(co_loop(co), &task, add, &w), 0))
        return;
    CHECK(co_sleep(co, 20 * MS) == 0 && !task.done);
    rt_cancel(&task);
    rt_task_join(co, &task);
    CHECK_EQ(w.result, -ECANCELED);
    end(co, &w);
    close(fd);
}

static void not_there(struct co *co, void *arg)
{
    char longer[200];
    struct world w = { .path = t_path("nothing"), .limit_ms = 600000 };
    begin(&w);
    add(co, &w);
    CHECK_EQ(w.result, -ENOENT);
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    w.path = longer;
    add(co, &w);
    CHECK_EQ(w.result, -EINVAL);
    end(co, &w);
}

static void test_in_time(void **state) { t_run(0, in_time, NULL); }
static void test_cancelled(void **state) { t_run(0, cancelled, NULL); }
static void test_not_there(void **state) { t_run(0, not_there, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_in_time), cmocka_unit_test(test_cancelled), cmocka_unit_test(test_not_there) };
    return T_MAIN("pr", tests);
}
