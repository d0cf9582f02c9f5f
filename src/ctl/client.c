/* SPDX-License-Identifier: MIT
 *
 * client.c: one client of the control socket.
 *
 * Purpose      Cuts its bytes into messages, runs the commands one after the other, sends replies and events.
 * Owns         struct ctl_client: socket, splitter, output buffer, two coroutines (reader and writer)
 * Invariants   I1 replies come in the order of the commands
 *              I2 before qmp_capabilities no other command runs, and no event is sent
 *              I3 at most CTL_OUT_MAX bytes wait for a client; one that takes none of them is closed
 * Concurrency  home loop; reader and writer meet in the output buffer only
 * Failure      a socket that fails ends the client, nobody else
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ctl/ctl_priv.h"
#include "rt/io.h"

#define READ_BYTES 4096
#define LAST_WORDS_NS CTL_LAST_WORDS_NS

static bool is_socket(const struct ctl_client *cl)
{
    return cl->fd == cl->out_fd;
}

static void cut_off(struct ctl_client *cl)
{
    if (is_socket(cl))
        shutdown(cl->fd, SHUT_RDWR);
}

/* ---- output ---- */
static void out_add(struct ctl_client *cl, const char *text, size_t len)
{
    if (cl->dead)
        return;
    if (cl->out_at) {
        memmove(cl->out, cl->out + cl->out_at, cl->out_len - cl->out_at);
        cl->out_len -= cl->out_at;
        cl->out_at = 0;
    }
    if (cl->out_len + len > cl->out_cap) {
        size_t cap = (cl->out_len + len) * 2;
        char *more = cl->out_len + len <= CTL_OUT_MAX ? realloc(cl->out, cap) : NULL;
        if (!more) {
            cl->dead = true;                 /* it takes nothing, or memory ran out: it would miss a reply */
            cut_off(cl);
            (void)co_wake_all(&cl->out_q);
            return;
        }
        cl->out = more;
        cl->out_cap = cap;
    }
    memcpy(cl->out + cl->out_len, text, len);
    cl->out_len += len;
    (void)co_wake_all(&cl->out_q);
}

void client_put(struct ctl_client *cl, const struct qmp_text *t)
{
    out_add(cl, t->text, t->len);
}

/* Standard input and output keep the mode that others who share them expect: they are waited for, and then block no more. What cannot be
 * waited for is a file, and never blocks long. */
static int64_t ready(struct co *co, int fd, short events)
{
    int r = rt_poll(co, fd, events);
    return r == -EPERM ? 1 : r;
}

static int64_t send_bytes(struct co *co, struct ctl_client *cl, void *data, size_t len)
{
    struct iovec v = { data, len };
    struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
    if (is_socket(cl))
        return rt_sendmsg(co, cl->fd, &m);
    int64_t r = ready(co, cl->out_fd, POLLOUT);
    return r < 0 ? r : write(cl->out_fd, data, len);
}

static int64_t receive_bytes(struct co *co, struct ctl_client *cl, void *data, size_t len)
{
    if (is_socket(cl))
        return rt_recv(co, cl->fd, data, len);
    int64_t r = ready(co, cl->fd, POLLIN);
    return r < 0 ? r : read(cl->fd, data, len);
}

static void send_some(struct co *co, struct ctl_client *cl)
{
    /* The buffer may move while we wait: what is being sent is kept aside. */
    char chunk[1024];
    size_t n = cl->out_len - cl->out_at < sizeof chunk ? cl->out_len - cl->out_at : sizeof chunk;
    memcpy(chunk, cl->out + cl->out_at, n);
    int64_t sent = send_bytes(co, cl, chunk, n);
    if (sent <= 0)
        cl->dead = true;
    else
        cl->out_at += (size_t)sent;
}

static void writer_co(struct co *co, void *arg)
{
    struct ctl_client *cl = arg;
    while (!cl->dead && !(cl->closing && cl->out_at == cl->out_len)) {
        if (cl->out_at == cl->out_len)
            co_wait(co, &cl->out_q);
        else
            send_some(co, cl);
    }
    if (cl->dead)
        cut_off(cl);
}

/* ---- commands ---- */
static void put_reply(struct ctl_client *cl, struct ctl_call *call, int result, json_t *id)
{
    struct qmp_text t;
    struct qmp_error e = { call->error_class, call->err.text };
    int r = result < 0 ? qmp_make_error(&e, id, cl->pretty, &t) : qmp_make_return(call->ret, id, cl->pretty, &t);
    if (r == -EINVAL) {
        e.desc = "the reply cannot be written as JSON";
        r = qmp_make_error(&e, id, cl->pretty, &t);
    }
    if (r) {
        cl->dead = true;
        return;
    }
    client_put(cl, &t);
    free(t.text);
}

static int refuse(struct ctl_call *call, const char *fmt, const char *name)
{
    call->error_class = "CommandNotFound";
    return byre_fail(&call->err, NOT_FOUND, fmt, name);
}

int ctl_run(struct co *co, struct ctl_call *call, const struct ctl_command *c, bool words)
{
    const struct ctl_shape shape = { .rows = c->args, .bytes = c->args_bytes, .tag = c->tag, .cases = c->cases };
    struct ctl_decoding d = { &call->arena, words };
    int r = ctl_decode(&shape, call->arguments, &d, &call->args, &call->err);
    return r ? r : c->run(co, call);
}

static int run_command(struct co *co, struct ctl_client *cl, const struct qmp_command *cmd, struct ctl_call *call)
{
    const struct ctl_command *c = ctl_find_command(cmd->name);
    if (!cl->negotiated && (!c || !c->before_capabilities))
        return refuse(call, "Expecting capabilities negotiation with 'qmp_capabilities' before '%s'", cmd->name);
    if (cmd->oob)
        return byre_fail(&call->err, NOT_SUPPORTED, "out-of-band execution is not possible");
    if (!c)
        return refuse(call, "The command %s has not been found", cmd->name);
    if (cl->negotiated && c->before_capabilities)
        return refuse(call, "Capabilities negotiation is already complete, command '%s' ignored", cmd->name);
    call->arguments = cmd->arguments;
    return ctl_run(co, call, c, false);
}

static void handle_text(struct co *co, struct ctl_client *cl)
{
    struct ctl_call call = { .c = cl->c, .client = cl };
    struct qmp_command cmd;
    size_t len;
    const char *text = qmp_split_text(cl->split, &len);
    int r = qmp_command_parse(text, len, &cmd, &call.err);
    if (!r)
        r = run_command(co, cl, &cmd, &call);
    put_reply(cl, &call, r, cmd.id);
    json_decref(call.ret);
    ctl_arena_free(&call.arena);
    qmp_command_fini(&cmd);
}

static void handle_bad(struct ctl_client *cl)
{
    struct ctl_call call = { .c = cl->c, .client = cl };
    (void)byre_fail(&call.err, PROTOCOL, "JSON parse error: %s", qmp_split_why(cl->split));
    put_reply(cl, &call, call.err.code, NULL);
}

/* false: the client is to be closed. */
static bool handle_bytes(struct co *co, struct ctl_client *cl, const char *data, size_t len)
{
    while (len && !cl->closing && !cl->dead) {
        size_t used = 0;
        enum qmp_item item = qmp_split_feed(cl->split, data, len, &used);
        data += used;
        len -= used;
        if (item == QMP_TEXT)
            handle_text(co, cl);
        else if (item == QMP_BAD || item == QMP_LIMIT)
            handle_bad(cl);
        if (item == QMP_LIMIT)
            return false;
    }
    return !cl->closing && !cl->dead;
}

/* ---- life ---- */
static int put_greeting(struct ctl_client *cl)
{
    const struct ctl_env *e = &cl->c->env;
    struct qmp_version v = { e->major, e->minor, e->micro, e->package ? e->package : "" };
    struct qmp_text t;
    int r = qmp_make_greeting(&v, false, cl->pretty, &t);
    if (!r) {
        client_put(cl, &t);
        free(t.text);
    }
    return r;
}

void client_close(struct ctl_client *cl, bool now)
{
    cl->closing = true;
    (void)co_wake_all(&cl->out_q);
    if (now)
        rt_cancel(&cl->reader);
}

bool client_is_silent(const struct ctl_client *cl)
{
    return cl->dead || cl->out_at == cl->out_len;
}

static void client_free(struct ctl_client *cl)
{
    list_remove(&cl->link);
    cl->c->client_count--;
    if (is_socket(cl))
        close(cl->fd);
    qmp_split_free(cl->split);
    free(cl->out);
    free(cl);
}

static void read_all(struct co *co, struct ctl_client *cl)
{
    char *buf = malloc(READ_BYTES);
    while (buf && !cl->closing && !cl->dead) {
        int64_t n = receive_bytes(co, cl, buf, READ_BYTES);
        if (n <= 0 || !handle_bytes(co, cl, buf, (size_t)n))
            break;
    }
    free(buf);
}

/* Output gets a second to go out; a client that does not take it is cut off. So is every client once the reader was cancelled. */
static void last_words(struct co *co, struct ctl_client *cl)
{
    uint64_t end = rt_now(cl->c->home) + LAST_WORDS_NS;
    while (!cl->writer.done && rt_now(cl->c->home) < end)
        if (co_sleep(co, LAST_WORDS_NS / 200))
            break;
    if (cl->writer.done)
        return;
    cl->dead = true;
    rt_cancel(&cl->writer);
    (void)co_wake_all(&cl->out_q);
    cut_off(cl);
    rt_task_join(co, &cl->writer);
}

static void client_gone(struct rt_msg *m)
{
    struct ctl_client *cl = (struct ctl_client *)((char *)m - offsetof(struct ctl_client, bye));
    struct ctl *c = cl->c;
    client_free(cl);
    co_group_leave(&c->alive);
}

/* The client's life: its writer beside it. */
static void reader_co(struct co *co, void *arg)
{
    struct ctl_client *cl = arg;
    struct ctl *c = cl->c;
    bool writes = put_greeting(cl) == 0 && rt_task_start(c->home, &cl->writer, writer_co, cl) == 0;
    if (writes)
        read_all(co, cl);
    cl->closing = true;
    (void)co_wake_all(&cl->out_q);
    if (writes)
        last_words(co, cl);
    cl->bye.fn = client_gone;                /* this task lives in cl: freed once the task has ended */
    rt_post(c->home, &cl->bye);
}

void client_start(struct ctl *c, const struct ctl_end *end)
{
    struct ctl_client *cl = calloc(1, sizeof *cl);
    if (!cl || qmp_split_new(NULL, &cl->split)) {
        free(cl);
        if (end->fd == end->out_fd)
            close(end->fd);
        return;
    }
    cl->c = c;
    cl->fd = end->fd;
    cl->out_fd = end->out_fd;
    cl->pretty = end->pretty;
    list_push_back(&c->clients, &cl->link);
    c->client_count++;
    co_group_enter(&c->alive);
    if (rt_task_start(c->home, &cl->reader, reader_co, cl)) {
        client_free(cl);
        co_group_leave(&c->alive);
    }
}
