/* SPDX-License-Identifier: MIT
 *
 * ctl_test.c: arguments by their tables, the table of commands, and a server over real sockets without any image.
 */
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/test.h"
#include "ctl/ctl_priv.h"
#include "job/job.h"

/* ---- arguments ---- */
static const char *const words[] = { "red", "green", NULL };
static const struct ctl_shape word_shape = { .name = "Colour", .words = words };
struct inner { const char *key; uint64_t size; };
static const struct ctl_arg inner_rows[] = {
    { "key", CTL_STR, true, CTL_AT(struct inner, key) }, { "size", CTL_SIZE, false, CTL_AT(struct inner, size), .max = 100 }, CTL_ARGS_END
};
static const struct ctl_shape inner_shape = { .name = "Inner", .rows = inner_rows, .bytes = sizeof(struct inner) };
struct either { const char *name; const struct inner *inner; bool none; struct ctl_list many; };
static const struct ctl_arg either_rows[] = {
    { "name", CTL_STR, false, CTL_AT(struct either, name) }, { "inner", CTL_STRUCT, false, CTL_AT(struct either, inner), .of = &inner_shape },
    { "none", CTL_NULL, false, CTL_AT(struct either, none) }, { "many", CTL_INT, false, CTL_AT(struct either, many), .list = true }, CTL_ARGS_END
};
static const struct ctl_shape either_shape = { .name = "name, Inner, null or list", .rows = either_rows, .bytes = sizeof(struct either) };

struct box {
    const char *text; int64_t number; bool flag, has_number; json_t *any, *checked;
    int colour;
    const struct inner *inner;
    struct ctl_list names, inners, eithers;
    const struct either *either;
    int64_t of_green;
};

static const struct ctl_arg rows[] = {
    { "text", CTL_STR, true, CTL_AT(struct box, text) },
    { "number", CTL_INT, false, CTL_AT_HAS(struct box, number) },
    { "flag", CTL_BOOL, false, CTL_AT(struct box, flag) },
    { "any", CTL_ANY, false, CTL_AT(struct box, any) },
    { "checked", CTL_ANY, false, CTL_AT(struct box, checked), .of = &inner_shape },
    { "colour", CTL_ENUM, false, CTL_AT(struct box, colour), .of = &word_shape },
    { "inner", CTL_STRUCT, false, CTL_AT(struct box, inner), .of = &inner_shape },
    { "names", CTL_STR, false, CTL_AT(struct box, names), .list = true },
    { "inners", CTL_STRUCT, false, CTL_AT(struct box, inners), .of = &inner_shape, .list = true },
    { "either", CTL_ALT, false, CTL_AT(struct box, either), .of = &either_shape },
    { "eithers", CTL_ALT, false, CTL_AT(struct box, eithers), .of = &either_shape, .list = true },
    { "seen", CTL_BOOL, false, CTL_AT_NONE },
    CTL_ARGS_END
};
static const struct ctl_arg green_rows[] = { { "of-green", CTL_INT, true, CTL_AT(struct box, of_green) }, CTL_ARGS_END };
static const struct ctl_case cases[] = { { "green", green_rows }, { NULL, NULL } };
static const struct ctl_shape box_shape = { .name = "Box", .rows = rows, .bytes = sizeof(struct box), .tag = "colour", .cases = cases };

/* The struct lives until the next call. */
static const struct box *decode(const char *text, struct byre_err *err)
{
    static struct ctl_arena arena;
    static json_t *keep;
    const void *b = NULL;
    ctl_arena_free(&arena);
    json_decref(keep);
    keep = text && *text ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    assert_true(!text || !*text || keep);
    int r = ctl_decode(&box_shape, keep, &(struct ctl_decoding){ &arena, false }, &b, err);
    assert_true(r == 0 || r == -EINVAL);
    return r ? NULL : b;
}

static void arguments(void **state)
{
    struct byre_err err;
    const struct box *b = decode("{\"text\": \"a\", \"number\": -5, \"flag\": true, \"any\": [1]}", &err);
    assert_string_equal(b->text, "a");
    assert_int_equal(b->number, -5);
    assert_true(b->has_number && b->flag && json_is_array(b->any) && !b->inner && !b->either);
    b = decode("{\"text\": \"\", \"seen\": true}", &err);
    assert_true(!b->has_number && !b->flag && !b->any && !b->names.count);
    b = decode("{\"text\": \"\", \"colour\": \"green\", \"of-green\": 9, \"inner\": {\"key\": \"k\", \"size\": 100}}", &err);
    assert_true(b->colour == 1 && b->of_green == 9 && b->inner->size == 100 && !strcmp(b->inner->key, "k"));
    b = decode("{\"text\": \"\", \"names\": [\"x\", \"y\"], \"inners\": [{\"key\": \"1\"}, {\"key\": \"2\", \"size\": 7}], \"checked\": {\"key\": \"\"}}", &err);
    assert_true(b->names.count == 2 && b->inners.count == 2 && json_is_object(b->checked));
    assert_string_equal(((const char *const *)b->names.items)[1], "y");
    assert_int_equal(((const struct inner *)b->inners.items)[1].size, 7);
    b = decode("{\"text\": \"\", \"either\": null, \"eithers\": [\"n\", {\"key\": \"3\"}, null, [4, 5]]}", &err);
    const struct either *e = b->eithers.items;
    assert_true(b->either->none && b->eithers.count == 4 && !strcmp(e[0].name, "n") && !strcmp(e[1].inner->key, "3") && e[2].none);
    assert_int_equal(((const int64_t *)e[3].many.items)[1], 5);
    (void)decode("{\"text\": \"a\"}", &err);
}

static void arguments_refused(void **state)
{
    struct byre_err err;
    static const struct { const char *text, *part; } bad[] = {
        { "", "'text' is missing" }, { "{}", "'text' is missing" }, { "{\"text\": 1}", "'text', expected: string" },
        { "{\"text\": \"a\", \"number\": \"1\"}", "'number', expected: integer" }, { "{\"text\": \"a\", \"number\": 1.5}", "integer" },
        { "{\"text\": \"a\", \"flag\": 1}", "'flag', expected: boolean" }, { "{\"text\": \"a\", \"other\": 1}", "'other' is unexpected" },
        { "{\"text\": \"a\", \"colour\": \"blue\"}", "'colour' does not accept value 'blue'" }, { "{\"text\": \"a\", \"colour\": 1}", "'colour', expected: string" },
        { "{\"text\": \"a\", \"colour\": \"green\"}", "'of-green' is missing" }, { "{\"text\": \"a\", \"colour\": \"red\", \"of-green\": 1}", "'of-green' is unexpected" },
        { "{\"text\": \"a\", \"of-green\": 1}", "'of-green' is unexpected" }, { "{\"text\": \"a\", \"inner\": []}", "'inner', expected: object" },
        { "{\"text\": \"a\", \"inner\": {}}", "'inner.key' is missing" }, { "{\"text\": \"a\", \"inner\": {\"key\": \"\", \"size\": -1}}", "'inner.size' must not be negative (-1)" },
        { "{\"text\": \"a\", \"inner\": {\"key\": \"\", \"size\": 101}}", "'inner.size' is at most 100 (101)" },
        { "{\"text\": \"a\", \"names\": \"x\"}", "'names', expected: array" }, { "{\"text\": \"a\", \"names\": [\"x\", 1]}", "'names[1]', expected: string" },
        { "{\"text\": \"a\", \"inners\": [{\"key\": \"\"}, {\"key\": \"\", \"kez\": 1}]}", "'inners[1].kez' is unexpected" },
        { "{\"text\": \"a\", \"inners\": [1]}", "'inners[0]', expected: object" }, { "{\"text\": \"a\", \"checked\": {\"size\": 1}}", "'checked.key' is missing" },
        { "{\"text\": \"a\", \"either\": true}", "'either', expected: name" }, { "{\"text\": \"a\", \"eithers\": [[\"x\"]]}", "'eithers[0]', expected: integer" },
        { "{\"text\": \"a\\u0000b\"}", "'text', expected: string" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memset(&err, 0, sizeof err);
        if (decode(bad[i].text, &err) || !strstr(err.text, bad[i].part))
            fail_msg("%s: %s", bad[i].text, err.text);
    }
    (void)decode("{\"text\": \"a\"}", &err);
}

/* A message as deep as messages may be needs no stack, and its path is cut at its front. */
static void arguments_deep(void **state)
{
    static struct ctl_arg deep_rows[2] = { { "next", CTL_STRUCT, false, CTL_AT_NONE }, CTL_ARGS_END };
    static struct ctl_shape deep = { .name = "Deep", .rows = deep_rows };
    struct ctl_arena arena = { 0 };
    struct byre_err err = { 0 };
    const void *to;
    deep_rows[0].of = &deep;
    json_t *v = json_pack("{s:i}", "wrong", 1);
    for (unsigned i = 0; i < QMP_DEPTH_MAX; i++)
        v = json_pack("{s:o}", "next", v);
    assert_int_equal(ctl_decode(&deep, v, &(struct ctl_decoding){ &arena, false }, &to, &err), -EINVAL);
    assert_non_null(strstr(err.text, "next.next.wrong' is unexpected"));
    ctl_arena_free(&arena);
    json_decref(v);
}

/* FEATURES 8.001: the words of the command line */
static void words_of_the_command_line(void **state)
{
    static const struct { const char *text, *implied, *want; bool flags; } good[] = {
        { "a=1,b=x", NULL, "{\"a\": \"1\", \"b\": \"x\"}" }, { "nbd,id=e", "type", "{\"type\": \"nbd\", \"id\": \"e\"}" },
        { "addr.type=unix,addr.path=/a,,b", NULL, "{\"addr\": {\"type\": \"unix\", \"path\": \"/a,b\"}}" },
        { "b.0=x,b.1.node=n,b.1.name=m", NULL, "{\"b\": [\"x\", {\"node\": \"n\", \"name\": \"m\"}]}" }, { "{\"a\": 1}", NULL, "{\"a\": 1}" },
        { "socket,server,nowait", "backend", "{\"backend\": \"socket\", \"server\": \"on\", \"wait\": \"off\"}", true }, { "", NULL, "{}" },
    };
    static const char *const bad[] = { "a", "a=1,a=2", "a.b=1,a=2", "a=2,a.b=1", "b.1=x", "b.0=x,b.c=y", "b.0=x,b.2=y", "=x", ".=x", "a..b=x", "{", "{} x",
        "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r=1" };
    struct byre_err err;
    json_t *v;
    bool plain;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        json_t *want = json_loads(good[i].want, 0, NULL);
        assert_int_equal(ctl_parse_words(good[i].text, &(struct ctl_words){ good[i].implied, good[i].flags }, &v, &plain, &err), 0);
        if (!json_equal(v, want))
            fail_msg("%s: %s", good[i].text, json_dumps(v, 0));
        assert_true(plain == (good[i].text[0] != '{'));
        json_decref(v);
        json_decref(want);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (!ctl_parse_words(bad[i], &(struct ctl_words){ NULL, false }, &v, &plain, &err))
            fail_msg("%s was taken", bad[i]);
}

/* Scalars as words, only where words are allowed. */
static void scalars_as_words(void **state)
{
    static const struct { const char *text; bool good; int64_t number; uint64_t size; bool flag; } lines[] = {
        { "{\"text\": \"a\", \"number\": \"-5\", \"flag\": \"on\", \"inner\": {\"key\": \"\", \"size\": \"0x40\"}}", true, -5, 64, true },
        { "{\"text\": \"a\", \"number\": \"1k\", \"flag\": \"off\", \"inner\": {\"key\": \"\", \"size\": 7}}", true, 1024, 7, false },
        { "{\"text\": \"a\", \"flag\": \"perhaps\"}" }, { "{\"text\": \"a\", \"number\": \"many\"}" },
        { "{\"text\": \"a\", \"inner\": {\"key\": \"\", \"size\": \"101\"}}" }, { "{\"text\": \"a\", \"inner\": {\"key\": \"\", \"size\": \"-1\"}}" },
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        struct ctl_arena arena = { 0 };
        struct byre_err err;
        const void *to;
        json_t *v = json_loads(lines[i].text, 0, NULL);
        assert_int_equal(ctl_decode(&box_shape, v, &(struct ctl_decoding){ &arena, false }, &to, &err), -EINVAL);
        assert_int_equal(ctl_decode(&box_shape, v, &(struct ctl_decoding){ &arena, true }, &to, &err), lines[i].good ? 0 : -EINVAL);
        const struct box *b = lines[i].good ? to : NULL;
        assert_true(!b || (b->number == lines[i].number && b->inner->size == lines[i].size && b->flag == lines[i].flag));
        assert_true(!b || json_is_integer(json_object_get(v, "number")));      /* and they are what they mean from now on */
        ctl_arena_free(&arena);
        json_decref(v);
    }
}

/* ---- tables ---- */
static void table_is_in_order(void **state)
{
    for (const struct ctl_command *const *c = ctl_commands; *c; c++) {
        assert_ptr_equal(ctl_find_command((*c)->name), *c);
        if (!(*c)->doc)
            fail_msg("%s: .doc is missing, the sentence for the reference page (ctl_priv.h)", (*c)->name);
        if (c[1])
            assert_true(strcmp((*c)->name, c[1]->name) < 0);
    }
    assert_null(ctl_find_command("nothing"));
    for (const struct ctl_event *e = ctl_events; e->name; e++)
        assert_true(e->doc && (!e[1].name || strcmp(e->name, e[1].name) < 0));
}

static json_t *entry_of(json_t *schema, const char *name)
{
    size_t i;
    json_t *e;
    json_array_foreach(schema, i, e)
        if (strcmp(json_string_value(json_object_get(e, "name")), name) == 0)
            return e;
    fail_msg("the schema names %s and does not describe it", name);
    return NULL;
}

/* Every type that is named is described, once. */
static void check_names(json_t *schema, json_t *v)
{
    static const char *const named[] = { "arg-type", "ret-type", "element-type", "type" };
    for (size_t k = 0; k < sizeof named / sizeof named[0]; k++)
        if (json_object_get(v, named[k]))
            (void)entry_of(schema, json_string_value(json_object_get(v, named[k])));
}

static void introspection(void **state)
{
    json_t *schema = ctl_schema_json(), *seen = json_object(), *e, *m;
    size_t i, j;
    assert_true(json_array_size(schema) > 50);
    json_array_foreach(schema, i, e) {
        const char *name = json_string_value(json_object_get(e, "name"));
        assert_null(json_object_get(seen, name));
        json_object_set_new(seen, name, json_true());
        check_names(schema, e);
        json_array_foreach(json_object_get(e, "members"), j, m)
            check_names(schema, m);
        json_array_foreach(json_object_get(e, "variants"), j, m)
            check_names(schema, m);
    }
    e = entry_of(schema, json_string_value(json_object_get(entry_of(schema, "block_resize"), "arg-type")));
    m = json_array_get(json_object_get(e, "members"), 0);
    assert_true(json_is_null(json_object_get(m, "default")));
    assert_string_equal(json_string_value(json_object_get(m, "name")), "device");
    m = json_array_get(json_object_get(e, "members"), 2);
    assert_null(json_object_get(m, "default"));
    assert_string_equal(json_string_value(json_object_get(m, "type")), "int");
    json_decref(seen);
    json_decref(schema);
}

/* ---- a server ---- */
struct fixture {
    struct rt *rt;
    struct graph *graph;
    struct ctl *ctl;
    struct jobs jobs;
    _Atomic bool let_go, follow;             /* of the test job: may end; has become ready */
    char path[64];
    bool quit, starve;                       /* the command quit was executed; leaves no memory for JSON */
    struct byre_err err;
    int result;
    sem_t ready;
};

struct call { int (*fn)(struct co *co, struct fixture *f); struct fixture *f; };

static void call_co(struct co *co, void *arg)
{
    struct call *c = arg;
    c->f->result = c->fn(co, c->f);
    sem_post(&c->f->ready);
}

static int on_loop(struct fixture *f, int (*fn)(struct co *co, struct fixture *f))
{
    struct call c = { fn, f };
    assert_int_equal(rt_spawn_on(rt_loop_at(f->rt, 0), call_co, &c), 0);
    while (sem_wait(&f->ready))
        ;
    return f->result;
}

static _Atomic bool starved;

static void *allocate(size_t n) { return starved ? NULL : malloc(n); }

static void on_quit(void *arg)
{
    struct fixture *f = arg;
    f->quit = true;
    starved = f->starve;
}

static int start(struct co *co, struct fixture *f)
{
    struct graph_opts go = { .policy = GRAPH_STRICT };
    jobs_init(&f->jobs, co_loop(co));
    int r = graph_new(co_loop(co), &go, &f->graph, &f->err);
    struct ctl_env env = { .graph = f->graph, .jobs = &f->jobs, .major = 1, .minor = 2, .micro = 3, .package = "p", .quit = on_quit, .arg = f };
    if (!r)
        r = ctl_new(co_loop(co), &env, &f->ctl, &f->err);
    return r ? r : ctl_listen(co, f->ctl, f->path, &f->err);
}

static int stop(struct co *co, struct fixture *f)
{
    jobs_stop(co, &f->jobs);
    ctl_send_shutdown(f->ctl, "host-signal");
    ctl_stop(co, f->ctl);
    ctl_stop(co, f->ctl);            /* again: nothing happens */
    char late[sizeof f->path + 2];
    snprintf(late, sizeof late, "%s-2", f->path);
    ASSERT(ctl_listen(co, f->ctl, late, &f->err) == -ECANCELED && access(late, F_OK));        /* nobody would wait for it */
    ctl_free(f->ctl);
    graph_free(f->graph);
    return 0;
}

static void set_up(struct fixture *f)
{
    struct rt_opts o = { .loops = 1 };
    memset(f, 0, sizeof *f);
    sem_init(&f->ready, 0, 0);
    snprintf(f->path, sizeof f->path, "/tmp/byre-ctl-test-%d", (int)getpid());
    assert_int_equal(rt_new(&o, &f->rt, &f->err), 0);
    if (on_loop(f, start))
        fail_msg("%s", f->err.text);
}

static void tear_down(struct fixture *f)
{
    assert_int_equal(on_loop(f, stop), 0);
    assert_int_equal(access(f->path, F_OK), -1);
    rt_free(f->rt);
    sem_destroy(&f->ready);
}

static int dial(const struct fixture *f)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", f->path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&sa, sizeof sa), 0);
    return fd;
}

/* One line, parsed; NULL: end of the stream. */
static json_t *receive(int fd)
{
    char line[8192];
    size_t n = 0;
    while (n + 1 < sizeof line && read(fd, line + n, 1) == 1 && line[n] != '\n')
        n++;
    line[n] = 0;
    return n ? json_loads(line, 0, NULL) : NULL;
}

static json_t *ask(int fd, const char *text)
{
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    return receive(fd);
}

static const char *class_of(const json_t *m)
{
    return json_string_value(json_object_get(json_object_get(m, "error"), "class"));
}

static void session(void **state)
{
    struct fixture f;
    set_up(&f);
    int fd = dial(&f);
    json_t *m = receive(fd);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json_object_get(json_object_get(m, "QMP"), "version"), "qemu"), "minor")), 2);
    json_decref(m);
    m = ask(fd, "{\"execute\": \"quit\"}");
    assert_string_equal(class_of(m), "CommandNotFound");              /* not before the negotiation */
    assert_false(f.quit);
    json_decref(m);
    m = ask(fd, "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [\"odd\"]}}");
    assert_string_equal(class_of(m), "GenericError");
    json_decref(m);
    m = ask(fd, "{\"execute\": \"qmp_capabilities\"}");
    assert_non_null(json_object_get(m, "return"));
    json_decref(m);
    m = ask(fd, "{\"execute\": \"query-block\"}");
    assert_int_equal(json_array_size(json_object_get(m, "return")), 0);
    json_decref(m);
    m = ask(fd, "{\"execute\": \"quit\", \"id\": 7}");
    assert_int_equal(json_integer_value(json_object_get(m, "id")), 7);
    json_decref(m);
    assert_true(f.quit);
    tear_down(&f);
    m = receive(fd);
    assert_string_equal(json_string_value(json_object_get(m, "event")), "SHUTDOWN");
    json_decref(m);
    assert_null(receive(fd));
    close(fd);
}

/* ---- jobs ---- */
static int job_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct fixture *f = job->opaque;
    for (uint64_t i = 0; !f->let_go; i++) {
        if (job_point(co, job))
            return -ECANCELED;
        if (f->follow && job->status == JOB_RUNNING)
            job_ready(job);
        job_progress(job, i, UINT32_MAX);
        (void)co_sleep(co, 1000000);
    }
    return byre_fail(err, NO_SPACE, "the last straw");
}

static int job_complete(struct job *job, struct byre_err *err)
{
    ((struct fixture *)job->opaque)->let_go = true;
    return 0;
}
static const struct job_kind test_kind = { .type = "test", .run = job_run, .complete = job_complete };
static const struct job_kind endless_kind = { .type = "endless", .run = job_run };

static int start_jobs(struct co *co, struct fixture *f)
{
    struct job *job;
    struct job_opts o = { .id = "j0", .keep_concluded = true, .opaque = f }, hidden = { .opaque = f };
    int r = job_start(&f->jobs, &test_kind, &o, &job, &f->err);
    return r ? r : job_start(&f->jobs, &endless_kind, &hidden, &job, &f->err);
}

static const char *status_of(int fd)
{
    static char text[32];
    json_t *m = ask(fd, "{\"execute\": \"query-jobs\"}");
    while (json_object_get(m, "event")) {
        json_decref(m);
        m = receive(fd);
    }
    json_t *list = json_object_get(m, "return"), *job = json_array_get(list, 0);
    assert_true(json_array_size(list) <= 1);                          /* the internal one is not shown */
    const char *s = json_string_value(json_object_get(job, "status"));
    snprintf(text, sizeof text, "%s", s ? s : "none");
    if (strcmp(text, "concluded") == 0)
        assert_string_equal(json_string_value(json_object_get(job, "error")), "the last straw");
    json_decref(m);
    return text;
}

static void wait_status(int fd, const char *want)
{
    for (int i = 0; strcmp(status_of(fd), want); i++) {
        assert_true(i < 5000);
        usleep(1000);
    }
}

#define STORY_BYTES 400u
static void add_status(char *story, json_t *data)
{
    size_t n = strlen(story);
    snprintf(story + n, STORY_BYTES - n, "%s ", json_string_value(json_object_get(data, "status")));
}

/* The verb, and what it must answer: a part of the error, or NULL. Events that come first are gathered in `story`. */
static void do_verb(int fd, const char *verb, const char *error, char *story)
{
    char text[120];
    snprintf(text, sizeof text, "{\"execute\": \"job-%s\", \"arguments\": {\"id\": \"j0\"}}", verb);
    json_t *m = ask(fd, text);
    while (json_object_get(m, "event")) {
        json_t *data = json_object_get(m, "data");
        assert_string_equal(json_string_value(json_object_get(m, "event")), "JOB_STATUS_CHANGE");
        assert_string_equal(json_string_value(json_object_get(data, "id")), "j0");
        add_status(story, data);
        json_decref(m);
        m = receive(fd);
    }
    const char *desc = json_string_value(json_object_get(json_object_get(m, "error"), "desc"));
    if (error && (!desc || !strstr(desc, error)))
        fail_msg("job-%s: %s, not %s", verb, desc ? desc : "no error", error);
    if (!error && desc)
        fail_msg("job-%s: %s", verb, desc);
    json_decref(m);
}

/* FEATURES 8.015, 8.024, 9.002, 9.005: each verb where it is refused and where it acts, and the error that is kept. */
static void jobs(void **state)
{
    struct fixture f;
    char story[STORY_BYTES] = "";
    set_up(&f);
    int fd = dial(&f);
    json_decref(receive(fd));
    json_decref(ask(fd, "{\"execute\": \"qmp_capabilities\"}"));
    do_verb(fd, "pause", "not found", story);
    assert_int_equal(on_loop(&f, start_jobs), 0);
    wait_status(fd, "running");
    do_verb(fd, "complete", "running", story);
    do_verb(fd, "finalize", "running", story);
    do_verb(fd, "dismiss", "running", story);
    do_verb(fd, "resume", "nobody", story);
    do_verb(fd, "pause", NULL, story);
    wait_status(fd, "paused");
    do_verb(fd, "pause", "already", story);
    do_verb(fd, "complete", "paused", story);
    do_verb(fd, "resume", NULL, story);
    wait_status(fd, "running");
    f.follow = true;
    wait_status(fd, "ready");
    do_verb(fd, "complete", NULL, story);
    wait_status(fd, "concluded");
    do_verb(fd, "cancel", "concluded", story);
    do_verb(fd, "pause", "concluded", story);
    do_verb(fd, "dismiss", NULL, story);
    assert_string_equal(status_of(fd), "none");
    tear_down(&f);
    close(fd);
}

/* FEATURES 8.024: one event for every step, to those who only listen. */
static void job_events(void **state)
{
    struct fixture f;
    char story[STORY_BYTES] = "";
    set_up(&f);
    int fd = dial(&f);
    json_decref(receive(fd));
    json_decref(ask(fd, "{\"execute\": \"qmp_capabilities\"}"));
    f.let_go = true;
    assert_int_equal(on_loop(&f, start_jobs), 0);
    for (int i = 0; i < 4; i++) {
        json_t *m = receive(fd), *data = json_object_get(m, "data");
        assert_string_equal(json_string_value(json_object_get(data, "id")), "j0");
        add_status(story, data);
        json_decref(m);
    }
    assert_string_equal(story, "created running aborting concluded ");
    tear_down(&f);
    close(fd);
}

/* ---- output ---- */

#define LONG_ANSWER (5u << 20)           /* longer than all that may wait beside the longest */

static int put_long(struct co *co, struct fixture *f)
{
    char *text = malloc(LONG_ANSWER);
    memset(text, 'a', LONG_ANSWER);
    text[LONG_ANSWER - 1] = '\n';
    client_put(CONTAINER_OF(list_first(&f->ctl->clients), struct ctl_client, link), &(struct qmp_text){ text, LONG_ANSWER });
    free(text);
    return co ? 0 : -1;
}

static int put_two(struct co *co, struct fixture *f)
{
    (void)put_long(co, f);
    return put_long(co, f);
}

/* As many lines, or what came until the end of the stream. */
static char *receive_lines(int fd, unsigned lines)
{
    size_t cap = 4 * LONG_ANSWER, n = 0;
    char *text = malloc(cap + 1);
    while (lines && n < cap) {
        ssize_t got = read(fd, text + n, cap - n);
        if (got <= 0)
            break;
        for (ssize_t i = 0; i < got; i++)
            lines -= lines && text[n + (size_t)i] == '\n';
        n += (size_t)got;
    }
    text[n] = 0;
    return text;
}

static int dial_negotiated(const struct fixture *f)
{
    const struct timeval patience = { .tv_sec = 60 };
    int fd = dial(f);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    json_decref(receive(fd));
    json_decref(ask(fd, "{\"execute\": \"qmp_capabilities\"}"));
    return fd;
}

/* An answer may be of any length, and what comes behind it before it is taken comes, too. */
static void long_answers(void **state)
{
    struct fixture f;
    set_up(&f);
    int fd = dial_negotiated(&f);
    f.let_go = true;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(on_loop(&f, put_long), 0);
        if (!i)
            assert_int_equal(on_loop(&f, start_jobs), 0);             /* four events */
        char *text = receive_lines(fd, i ? 1 : 5), *end = strchr(text, '\n');
        assert_true(end && end - text == LONG_ANSWER - 1 && text[0] == 'a');
        assert_true(i || strstr(end, "concluded"));
        free(text);
    }
    json_t *m = ask(fd, "{\"execute\": \"query-version\"}");
    assert_non_null(json_object_get(m, "return"));
    json_decref(m);
    tear_down(&f);
    close(fd);
}

/* For whom more than that waits, who takes nothing, is closed. */
static void takes_nothing(void **state)
{
    struct fixture f;
    set_up(&f);
    int fd = dial_negotiated(&f);
    assert_int_equal(on_loop(&f, put_two), 0);
    char *text = receive_lines(fd, 1);
    assert_true(strlen(text) < LONG_ANSWER);
    free(text);
    tear_down(&f);
    close(fd);
}

/* An answer for which there is no memory: the client is not left waiting for it. */
static void no_memory_for_an_answer(void **state)
{
    struct fixture f;
    char text;
    set_up(&f);
    int fd = dial_negotiated(&f);
    f.starve = true;
    assert_int_equal(write(fd, "{\"execute\": \"quit\"}", 19), 19);
    assert_int_equal(read(fd, &text, 1), 0);
    starved = false;
    assert_true(f.quit);
    tear_down(&f);
    close(fd);
}

static void events_only_after_negotiation(void **state)
{
    struct fixture f;
    set_up(&f);
    int fd = dial(&f);
    json_decref(receive(fd));
    tear_down(&f);
    assert_null(receive(fd));
    close(fd);
}

static void path_in_use(void **state)
{
    struct fixture f, g;
    struct rt_opts o = { .loops = 1 };
    set_up(&f);
    g = f;
    g.ctl = NULL;
    g.graph = NULL;
    sem_init(&g.ready, 0, 0);
    assert_int_equal(rt_new(&o, &g.rt, &g.err), 0);
    assert_true(on_loop(&g, start) < 0);
    assert_non_null(strstr(g.err.text, g.path));
    assert_int_equal(on_loop(&g, stop), 0);
    rt_free(g.rt);
    sem_destroy(&g.ready);
    assert_int_equal(access(f.path, F_OK), 0);                        /* the other server's socket is left alone */
    tear_down(&f);
}

static void path_of_somebody_else(void **state)
{
    struct fixture f;
    set_up(&f);
    assert_int_equal(unlink(f.path), 0);
    FILE *file = fopen(f.path, "w");
    assert_non_null(file);
    fclose(file);
    assert_int_equal(on_loop(&f, stop), 0);
    rt_free(f.rt);
    sem_destroy(&f.ready);
    assert_int_equal(unlink(f.path), 0);                              /* it was still there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments), cmocka_unit_test(arguments_refused), cmocka_unit_test(arguments_deep), cmocka_unit_test(introspection),
        cmocka_unit_test(words_of_the_command_line), cmocka_unit_test(scalars_as_words),
        cmocka_unit_test(table_is_in_order), cmocka_unit_test(session), cmocka_unit_test(jobs),
        cmocka_unit_test(job_events), cmocka_unit_test(long_answers), cmocka_unit_test(takes_nothing), cmocka_unit_test(no_memory_for_an_answer),
        cmocka_unit_test(events_only_after_negotiation), cmocka_unit_test(path_in_use), cmocka_unit_test(path_of_somebody_else),
    };
    json_set_alloc_funcs(allocate, free);
    return cmocka_run_group_tests_name("ctl", tests, NULL, NULL);
}
