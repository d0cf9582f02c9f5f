/* SPDX-License-Identifier: MIT
 *
 * tls_test.c: rules, objects, and two sides that speak TLS with each other over a socket pair, with pre-shared keys.
 */
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/test.h"
#include "rt/io.h"
#include "rt/loop.h"
#include "rt/sync.h"
#include "tls/objects.h"
#include "tls/session.h"

/* ---- rules ---- */

static void globs(void **state)
{
    static const struct { const char *p, *t; bool yes; } all[] = {
        { "", "", true }, { "", "a", false }, { "a", "", false }, { "*", "", true }, { "*", "abc", true }, { "a*c", "abc", true }, { "a*c", "abcd", false },
        { "a*b*c", "aXbYbZc", true }, { "*ab", "aab", true }, { "*ab", "aba", false }, { "?", "", false }, { "?", "a", true }, { "a?c", "abc", true },
        { "[ab]", "a", false }, { "[ab]", "[ab]", true }, { "\\*", "\\x", true }, { "\\*", "*", false }, { "**?", "", false }, { "**?", "x", true },
        { "A", "a", false }, { "CN=*,O=x", "CN=fred,O=x", true }, { "CN=*,O=x", "CN=fred,O=xy", false },
    };
    char text[4001], pattern[201];
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        assert_true(authz_glob(all[i].p, all[i].t) == all[i].yes);
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    for (size_t i = 0; i < sizeof pattern - 1; i++)
        pattern[i] = i % 2 ? 'a' : '*';
    pattern[sizeof pattern - 2] = 'b';
    pattern[sizeof pattern - 1] = 0;
    assert_false(authz_glob(pattern, text));      /* in no time */
}

static bool allows(const char *json, const char *identity)
{
    struct authz_rules r = { 0 };
    struct byre_err err;
    if (authz_rules_parse(json, strlen(json), "rules", &r, &err))
        fail_msg("%s", err.text);
    bool yes = authz_rules_allow(&r, identity);
    authz_rules_fini(&r);
    return yes;
}

static void rules(void **state)
{
    const char *list = "{\"policy\": \"deny\", \"rules\": [{\"match\": \"fred\", \"policy\": \"allow\", \"format\": \"exact\"},"
                       "{\"match\": \"f*\", \"policy\": \"deny\", \"format\": \"glob\"}, {\"match\": \"*\", \"policy\": \"allow\", \"format\": \"glob\"}]}";
    assert_true(allows(list, "fred"));
    assert_false(allows(list, "freda"));
    assert_true(allows(list, "bob"));
    assert_false(allows("{}", "fred"));
    assert_true(allows("{\"policy\": \"allow\"}", "fred"));
    assert_false(allows("{\"rules\": [{\"match\": \"f*\", \"policy\": \"allow\"}]}", "fred"));      /* exact, when nothing is said */
    assert_true(allows("{\"rules\": [{\"match\": \"f*\", \"policy\": \"allow\"}]}", "f*"));
}

static void rules_with_faults(void **state)
{
    static const char *const bad[] = {
        "", "[]", "null", "{", "{\"policy\": 1}", "{\"policy\": \"no\"}", "{\"rules\": {}}", "{\"rules\": [1]}", "{\"rules\": [{\"match\": \"a\"}]}",
        "{\"rules\": [{\"policy\": \"allow\"}]}", "{\"rules\": [{\"match\": \"a\", \"policy\": \"allow\", \"format\": \"regex\"}]}", "{\"rule\": []}",
        "{\"rules\": [{\"match\": \"a\", \"policy\": \"allow\", \"Format\": \"glob\"}]}", "{\"policy\": \"deny\", \"policy\": \"allow\"}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct authz_rules r = { 0 };
        struct byre_err err = { 0 };
        assert_true(authz_rules_parse(bad[i], strlen(bad[i]), "rules", &r, &err) == -EINVAL);
        assert_true(strstr(err.text, "rules") && !r.list);
    }
}

/* ---- objects ---- */

static char folder[] = "/tmp/tls-test-XXXXXX";

static void keys(const char *text)
{
    char path[64];
    snprintf(path, sizeof path, "%s/keys.psk", folder);
    FILE *f = fopen(path, "w");
    ASSERT(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static int add(struct tls_set *s, const char *type, const char *id, const char *endpoint, const char *user, struct byre_err *err)
{
    struct tls_word list[] = { { "dir", folder }, { "endpoint", endpoint }, { "username", user } };
    struct tls_words w = { .type = type, .id = id, .list = list, .count = user ? 3 : 2 };
    return tls_set_add(s, &w, err);
}

static void objects(void **state)
{
    struct tls_set *s;
    struct byre_err err;
    struct tls_creds *c;
    struct tls_word word = { "identity", "fred" };
    struct tls_words simple = { .type = "authz-simple", .id = "a", .list = &word, .count = 1 };
    keys("fred:0011223344556677\nmallory:zz\n");
    assert_int_equal(tls_set_new(&s), 0);
    assert_int_equal(tls_set_add(s, &simple, &err), 0);
    assert_int_equal(tls_set_add(s, &simple, &err), -EEXIST);
    struct authz *a = tls_set_authz(s, "a");
    assert_true(a && authz_allows(a, "fred") && !authz_allows(a, "Fred") && !authz_allows(a, NULL));
    assert_int_equal(tls_set_remove(s, "a"), 0);
    assert_int_equal(tls_set_remove(s, "a"), -ENOENT);
    assert_true(authz_allows(a, "fred") && !tls_set_authz(s, "a"));      /* whoever has it keeps it */
    authz_unref(a);
    assert_int_equal(add(s, "tls-creds-psk", "p", "server", NULL, &err), 0);
    assert_true(!tls_set_authz(s, "p") && tls_set_has(s, "p"));
    assert_int_equal(tls_set_creds(s, "p", false, &c, &err), -EINVAL);
    assert_int_equal(tls_set_creds(s, "q", true, &c, &err), -ENOENT);
    assert_int_equal(add(s, "tls-creds-psk", "c", "client", "nobody", &err), -ENOENT);
    assert_int_equal(add(s, "tls-creds-psk", "c", "client", "fre", &err), -ENOENT);
    assert_int_equal(add(s, "tls-creds-psk", "c", "client", "mallory", &err), -EINVAL);
    assert_true(!strstr(err.text, "zz"));
    assert_int_equal(add(s, "tls-creds-psk", "c", "both", NULL, &err), -EINVAL);
    tls_set_free(s);
}

/* ---- two sides ---- */

enum { LONG = 3 << 20 };

struct side { struct rt_loop *loop; struct tls_creds *creds; int fd; int result; struct tls_session *t; sem_t *done; bool cut, burst; uint64_t moved; };
struct pair { struct rt *rt; struct tls_set *set; struct side server, client; sem_t done; };

static uint8_t pattern(uint64_t i) { return (uint8_t)(i * 31 + i / 255); }

/* The client sends LONG bytes in pieces of all lengths, the server sends them back. */
static int talk_client(struct co *co, struct tls_session *t, struct side *s)
{
    static uint8_t out[LONG], in[LONG];
    for (uint64_t i = 0; i < LONG; i++)
        out[i] = pattern(i);
    uint64_t sent = 0, got = 0, step = 1;
    while (got < LONG) {
        if (sent < LONG && sent - got < 65536) {      /* the other side may be sending, too */
            struct iovec v[3] = { { out + sent, 1 }, { out + sent + 1, 0 }, { out + sent + 1, step < LONG - sent ? step : LONG - sent - 1 } };
            int64_t n = tls_sendmsg(co, t, v, 3);
            if (n <= 0)
                return n ? (int)n : -EPIPE;
            sent += (uint64_t)n;
            step = step * 3 % 200001 + 1;
        }
        int64_t n = tls_recv(co, t, in + got, LONG - got);
        if (n <= 0)
            return n ? (int)n : -EPIPE;
        got += (uint64_t)n;
    }
    s->moved = got;
    return memcmp(in, out, LONG) ? -EBADMSG : 0;
}

static int talk_server(struct co *co, struct tls_session *t, struct side *s)
{
    static uint8_t buf[100000];
    for (;;) {
        int64_t n = tls_recv(co, t, buf, sizeof buf);
        if (n <= 0)
            return (int)n;
        s->moved += (uint64_t)n;
        for (int64_t at = 0; at < n;) {
            struct iovec v = { buf + at, (size_t)(n - at) };
            int64_t m = tls_sendmsg(co, t, &v, 1);
            if (m <= 0)
                return (int)m;
            at += m;
        }
    }
}

/* The end of a burst: the last of so many records as are taken in one turn does not fit. Nothing more comes before the answer. */
enum { RECORDS = 64, LAST_BYTES = 100 };

static int burst_client(struct co *co, struct tls_session *t)
{
    uint8_t bytes[LAST_BYTES] = { 0 };
    for (unsigned i = 1; i <= RECORDS; i++) {
        struct iovec v = { bytes, i < RECORDS ? 1 : LAST_BYTES };
        if (tls_sendmsg(co, t, &v, 1) != (int64_t)v.iov_len)
            return -EPIPE;
    }
    return tls_recv(co, t, bytes, 1) == 1 ? 0 : -EPIPE;
}

static int burst_server(struct co *co, struct tls_session *t)
{
    uint8_t bytes[RECORDS + LAST_BYTES];
    (void)co_set_deadline(co, rt_now(co_loop(co)) + UINT64_C(3000000000));
    int r = co_sleep(co, 200000000);             /* all of it has arrived */
    for (size_t want = RECORDS, at = 0; !r && at < RECORDS + LAST_BYTES - 1; want = RECORDS + LAST_BYTES - 1 - at) {
        int64_t n = tls_recv(co, t, bytes, want);
        if (n <= 0)
            return n ? (int)n : -EPIPE;
        at += (size_t)n;
    }
    struct iovec v = { bytes, 1 };
    return r ? r : tls_sendmsg(co, t, &v, 1) == 1 ? 0 : -EPIPE;
}

static void side_co(struct co *co, void *arg)
{
    struct side *s = arg;
    struct byre_err err = { 0 };
    bool server = tls_creds_is_server(s->creds);
    (void)co_set_deadline(co, rt_now(co_loop(co)) + UINT64_C(20000000000));
    s->result = tls_session_new(s->creds, s->fd, NULL, &s->t, &err);
    if (!s->result)
        s->result = tls_handshake(co, s->t, &err);
    if (!s->result && server)
        ASSERT(!strcmp(tls_peer(s->t), "fred"));
    if (!s->result && s->burst)
        s->result = server ? burst_server(co, s->t) : burst_client(co, s->t);
    else if (!s->result)
        s->result = server ? talk_server(co, s->t, s) : talk_client(co, s->t, s);
    if (s->t && !s->cut)
        tls_bye(s->t, false);
    tls_session_free(s->t);
    shutdown(s->fd, SHUT_RDWR);
    sem_post(s->done);
}

static void pair_begin(struct pair *p, enum rt_backend_kind kind)
{
    struct rt_opts o = { .loops = 2, .backend = kind };
    struct byre_err err;
    int fd[2];
    ASSERT(tls_set_new(&p->set) == 0 && rt_new(&o, &p->rt, &err) == 0);
    ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd) == 0);
    sem_init(&p->done, 0, 0);
    keys("fred:0011223344556677\n");
    ASSERT(add(p->set, "tls-creds-psk", "s", "server", NULL, &err) == 0 && add(p->set, "tls-creds-psk", "c", "client", "fred", &err) == 0);
    p->server = (struct side){ .loop = rt_loop_at(p->rt, 0), .fd = fd[0], .done = &p->done };
    p->client = (struct side){ .loop = rt_loop_at(p->rt, 1), .fd = fd[1], .done = &p->done };
    ASSERT(tls_set_creds(p->set, "s", true, &p->server.creds, &err) == 0 && tls_set_creds(p->set, "c", false, &p->client.creds, &err) == 0);
}

static void pair_run(struct pair *p)
{
    ASSERT(rt_spawn_on(p->server.loop, side_co, &p->server) == 0 && rt_spawn_on(p->client.loop, side_co, &p->client) == 0);
    for (int i = 0; i < 2;)
        i += sem_wait(&p->done) == 0;
}

static void pair_end(struct pair *p)
{
    rt_free(p->rt);
    close(p->server.fd);
    close(p->client.fd);
    tls_creds_unref(p->server.creds);
    tls_creds_unref(p->client.creds);
    tls_set_free(p->set);
}

static void two_sides(void **state)
{
    for (enum rt_backend_kind kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        struct pair p = { 0 };
        pair_begin(&p, kind);
        pair_run(&p);
        assert_int_equal(p.client.result, 0);
        assert_int_equal(p.server.result, 0);
        assert_true(p.server.moved == LONG && p.client.moved == LONG);
        pair_end(&p);
    }
}

/* The key changes on the server's side between the making of the two: its file is read at the handshake. */
static void another_key(void **state)
{
    struct pair p = { 0 };
    pair_begin(&p, RT_BACKEND_THREADS);
    keys("fred:ffffffffffffffff\n");
    pair_run(&p);
    assert_true(p.client.result < 0 && p.server.result < 0 && !p.server.moved);
    pair_end(&p);
}

static void end_of_a_burst(void **state)
{
    struct pair p = { 0 };
    pair_begin(&p, RT_BACKEND_THREADS);
    p.client.burst = p.server.burst = true;
    pair_run(&p);
    assert_int_equal(p.server.result, 0);
    assert_int_equal(p.client.result, 0);
    pair_end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(globs), cmocka_unit_test(rules), cmocka_unit_test(rules_with_faults), cmocka_unit_test(objects), cmocka_unit_test(two_sides),
        cmocka_unit_test(another_key), cmocka_unit_test(end_of_a_burst),
    };
    ASSERT(mkdtemp(folder));
    int r = cmocka_run_group_tests(tests, NULL, NULL);
    char path[64];
    snprintf(path, sizeof path, "%s/keys.psk", folder);
    unlink(path);
    rmdir(folder);
    return r;
}
