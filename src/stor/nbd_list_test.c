/* SPDX-License-Identifier: MIT
 *
 * nbd_list_test.c: what is told of a server's exports; a server that is not there, says nothing, or hangs up.
 *
 * Tests        nbd_list.c, and of nbd_conn.c and nbd_dial.c what it uses
 */
#include "stor/stor_test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stor/nbd.h"

static pid_t server;
static char socket_path[64];

static bool have_nbdkit(void)
{
    return access("/usr/bin/nbdkit", X_OK) == 0 || access("/usr/local/bin/nbdkit", X_OK) == 0;
}

/* nbdkit with two exports, one of which has a description. */
static void start(void)
{
    snprintf(socket_path, sizeof socket_path, "/tmp/nbd-list-%d", (int)getpid());
    (void)unlink(socket_path);
    server = fork();
    if (server == 0) {
        execlp("nbdkit", "nbdkit", "-f", "-U", socket_path, "--filter=exportname", "memory", "3M", "exportname=one", "exportname=two words",
               "exportname-list=explicit", "exportdesc=fixed:hello", NULL);
        _exit(127);
    }
    for (int i = 0; i < 500 && access(socket_path, F_OK); i++)
        usleep(10000);
}

static void stop(void)
{
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    (void)unlink(socket_path);
}

static bool has_context(const struct stor_nbd_export *e, const char *name)
{
    for (unsigned i = 0; i < e->context_count; i++)
        if (!strcmp(e->contexts[i], name))
            return true;
    return false;
}

static void lists(struct co *co, void *arg)
{
    struct stor_nbd_opts o = { .where = STOR_NBD_UNIX, .path = socket_path };
    struct stor_nbd_list l = { 0 };
    struct byre_err err = { 0 };
    int r = stor_nbd_list(co, &o, &l, &err);
    for (int i = 0; r && i < 100; i++) {                 /* the socket is there before the server listens */
        (void)co_sleep(co, 50000000);
        r = stor_nbd_list(co, &o, &l, &err);
    }
    if (!CHECK_EQ(r, 0) || !CHECK_EQ(l.count, 2))
        return;
    CHECK(!strcmp(l.exports[0].name, "one") && !strcmp(l.exports[1].name, "two words"));
    for (unsigned i = 0; i < l.count; i++) {
        const struct stor_nbd_export *e = &l.exports[i];
        CHECK(e->known && e->size == 3u << 20 && !e->read_only && e->can_flush && e->can_trim && e->can_multi_conn);
        CHECK(has_context(e, "base:allocation"));
        CHECK(e->description && !strcmp(e->description, "hello"));
    }
    CHECK(l.structured);
    stor_nbd_list_fini(&l);
}

static void nobody(struct co *co, void *arg)
{
    struct stor_nbd_opts o = { .where = STOR_NBD_UNIX, .path = (char *)"/nonexistent/socket" };
    struct stor_nbd_list l = { 0 };
    struct byre_err err = { 0 };
    CHECK_EQ(stor_nbd_list(co, &o, &l, &err), -ENOENT);
    CHECK(strstr(err.text, "/nonexistent/socket") && !l.exports && !l.count);
}

/* Listens, takes one client, and hangs up at once. */
static void hangs_up(struct co *co, void *arg)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    snprintf(un.sun_path, sizeof un.sun_path, "/tmp/nbd-hang-%d", (int)getpid());
    (void)unlink(un.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&un, sizeof un), 0);
    CHECK_EQ(listen(fd, 1), 0);
    pid_t child = fork();
    if (child == 0) {
        int client = accept(fd, NULL, NULL);
        (void)!write(client, "NBDMAGIC", 8);
        _exit(0);
    }
    struct stor_nbd_opts o = { .where = STOR_NBD_UNIX, .path = un.sun_path };
    struct stor_nbd_list l = { 0 };
    struct byre_err err = { 0 };
    CHECK(stor_nbd_list(co, &o, &l, &err) < 0);
    CHECK(err.text[0] && !l.exports);
    waitpid(child, NULL, 0);
    close(fd);
    (void)unlink(un.sun_path);
}

static void test_list(void **state)
{
    if (!have_nbdkit()) {
        assert_false(t_is_ci());
        skip();
    }
    start();
    t_run(0, lists, NULL);
    stop();
}

static void test_nobody(void **state) { t_run(0, nobody, NULL); }
static void test_hangs_up(void **state) { t_run(1, hangs_up, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_list), cmocka_unit_test(test_nobody), cmocka_unit_test(test_hangs_up) };
    return T_MAIN("nbd_list", tests);
}
