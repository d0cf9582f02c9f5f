/* SPDX-License-Identifier: MIT
 *
 * client.c: one client of the control socket.
 *
 * Purpose      Cuts its bytes into messages, runs the commands one after the other, sends replies and events.
 * Owns         struct ctl_client: socket, splitter, queue, descriptors that it has sent (passed.c), output buffer, three coroutines (reader, worker, writer)
 * Invariants   I1 replies come in the order of the commands, but for those that are executed out of band: they pass the others
 *              I2 before qmp_capabilities no other command runs, and no event is sent
 *              I3 at most CTL_OUT_MAX bytes wait for a client beside the longest message that waits, which may be of any length; one that takes none of
 *                 them is closed
 *              I4 at most QUEUE_MAX commands wait; then the client is not read from
 *              I5 its socket is closed with what it has sent, and off the loop if there are bytes in it that nobody has received: descriptors may lie
 *                 among them, and their close takes as long as a peer or a server likes
 * Concurrency  home loop; the reader puts commands into the queue, the worker takes them; both put into the output buffer, the writer sends
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
#define QUEUE_MAX 8u
#define LAST_WORDS_NS CTL_LAST_WORDS_NS

bool client_is_socket(const struct ctl_client *cl)
{
    return cl->fd == cl->out_fd;
}

static void cut_off(struct ctl_client *cl)
{
    if (client_is_socket(cl))
        shutdown(cl->fd, SHUT_RDWR);
}

/* ---- output ---- */

/* It takes nothing, or memory ran out: it would miss a reply. Whoever is at the other end hears that there is none to come. */
static void give_up(struct ctl_client *cl)
{
    cl->dead = true;
    cut_off(cl);
    (void)co_wake_all(&cl->out_q);
}

static void out_forward(struct ctl_client *cl)
{
    if (!cl->out_at)
        return;
    memmove(cl->out, cl->out + cl->out_at, cl->out_len - cl->out_at);
    cl->out_len -= cl->out_at;
    cl->longest_end -= cl->out_at < cl->longest_end ? cl->out_at : cl->longest_end;
    cl->out_at = 0;
}

/* I3, with a message that is about to be added; what has been sent was moved away. */
static bool has_room(struct ctl_client *cl, size_t len)
{
    size_t left = cl->longest_end < cl->longest ? cl->longest_end : cl->longest;       /* of the longest message, not sent yet */
    if (len >= left) {
        left = cl->longest = len;
        cl->longest_end = cl->out_len + len;
    }
    return cl->out_len + len - left <= CTL_OUT_MAX;
}

static void out_add(struct ctl_client *cl, const char *text, size_t len)
{
    if (cl->dead)
        return;
    out_forward(cl);
    bool room = has_room(cl, len);
    if (!room || cl->out_len + len > cl->out_cap) {
        size_t cap = (cl->out_len + len) * 2;
        char *more = room ? realloc(cl->out, cap) : NULL;
        if (!more) {
            give_up(cl);
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
    if (client_is_socket(cl))
        return rt_sendmsg(co, cl->fd, &m);
    int64_t r = ready(co, cl->out_fd, POLLOUT);
    return r < 0 ? r : write(cl->out_fd, data, len);
}

static int64_t receive_bytes(struct co *co, struct ctl_client *cl, void *data, size_t len)
{
    if (client_is_socket(cl))
        return ctl_receive(co, cl, data, len);
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
    if (cl->out_at == cl->out_len && cl->out_cap > CTL_OUT_MAX) {        /* it was for one long message */
        free(cl->out);
        cl->out = NULL;
        cl->out_at = cl->out_len = cl->out_cap = cl->longest_end = 0;
    }
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
        give_up(cl);
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
    const struct ctl_shape shape = { .rows = c->args, .bytes = c->args_bytes, .tag = c->tag, .cases = c->cases, .open = c->open };
    struct ctl_decoding d = { &call->arena, words };
    int r = ctl_decode(&shape, call->arguments, &d, &call->args, &call->err);
    return r ? r : c->run(co, call);
}

static int run_command(struct co *co, struct ctl_client *cl, const struct qmp_command *cmd, struct ctl_call *call)
{
    const struct ctl_command *c = ctl_find_command(cmd->name);
    if (!cl->negotiated && (!c || !c->before_capabilities))
        return refuse(call, "Expecting capabilities negotiation with 'qmp_capabilities' before '%s'", cmd->name);
    if (cmd->oob && !cl->oob)
        return byre_fail(&call->err, NOT_SUPPORTED, "'exec-oob' needs the capability 'oob', which was not enabled");
    if (!c)
        return refuse(call, "The command %s has not been found", cmd->name);
    if (cmd->oob && !c->oob)
        return byre_fail(&call->err, NOT_SUPPORTED, "The command %s does not support OOB", cmd->name);
    if (cl->negotiated && c->before_capabilities)
        return refuse(call, "Capabilities negotiation is already complete, command '%s' ignored", cmd->name);
    call->arguments = cmd->arguments;
    return ctl_run(co, call, c, false);
}

/* A message that was taken apart, or cannot be. */
struct pending { struct list_node link; struct qmp_command cmd; struct byre_err err; struct ctl_offer offer; };

static void pending_free(struct co *co, struct pending *p)
{
    qmp_command_fini(&p->cmd);
    ctl_offer_close(co, &p->offer);
    free(p);
}

/* Runs it, answers, and frees it. */
static void execute(struct co *co, struct ctl_client *cl, struct pending *p)
{
    struct ctl_call call = { .c = cl->c, .client = cl, .err = p->err };
    if (!p->err.code)                    /* else they go with it */
        ctl_offer_move(co, &cl->offer, &p->offer);
    int r = p->err.code ? p->err.code : run_command(co, cl, &p->cmd, &call);
    put_reply(cl, &call, r, p->cmd.id);
    json_decref(call.ret);
    ctl_call_end(co, &call);
    pending_free(co, p);
}

static void worker_co(struct co *co, void *arg)
{
    struct ctl_client *cl = arg;
    while (!cl->no_more || !list_empty(&cl->queue)) {
        if (list_empty(&cl->queue)) {
            co_wait(co, &cl->queue_q);
            continue;
        }
        struct pending *p = CONTAINER_OF(list_first(&cl->queue), struct pending, link);
        list_remove(&p->link);
        if (cl->closing || cl->dead)
            pending_free(co, p);
        else
            execute(co, cl, p);
        cl->queued--;
        (void)co_wake_all(&cl->queue_q);
    }
}

/* Takes p over. */
static void enqueue(struct co *co, struct ctl_client *cl, struct pending *p)
{
    ctl_offer_move(co, &p->offer, &cl->arriving);
    list_push_back(&cl->queue, &p->link);
    cl->queued++;
    (void)co_wake_all(&cl->queue_q);
    while (cl->queued >= QUEUE_MAX && !cl->closing && !cl->dead)
        co_wait(co, &cl->queue_q);           /* I4 */
}

static void handle_text(struct co *co, struct ctl_client *cl)
{
    struct pending *p = calloc(1, sizeof *p);
    size_t len;
    const char *text = qmp_split_text(cl->split, &len);
    if (!p) {
        cl->dead = true;                     /* it would miss a reply */
        return;
    }
    int r = qmp_command_parse(text, len, &p->cmd, &p->err);
    if (!r && p->cmd.oob && cl->oob)
        execute(co, cl, p);
    else
        enqueue(co, cl, p);
}

static void handle_bad(struct co *co, struct ctl_client *cl)
{
    struct pending *p = calloc(1, sizeof *p);
    if (!p) {
        cl->dead = true;
        return;
    }
    (void)byre_fail(&p->err, PROTOCOL, "JSON parse error: %s", qmp_split_why(cl->split));
    enqueue(co, cl, p);
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
            handle_bad(co, cl);
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
    int r = qmp_make_greeting(&v, true, cl->pretty, &t);
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
    (void)co_wake_all(&cl->queue_q);
    if (now) {
        rt_cancel(&cl->reader);
        rt_cancel(&cl->worker);
    }
}

bool client_is_silent(const struct ctl_client *cl)
{
    return cl->dead || cl->out_at == cl->out_len;
}

static void client_free(struct ctl_client *cl)
{
    list_remove(&cl->link);
    cl->c->client_count--;
    if (client_is_socket(cl) && cl->fd >= 0)     /* it never began: it may hold what nobody has received */
        ctl_drop_socket(cl->c->home, cl->fd);
    ASSERT(!cl->arriving.count && !cl->offer.count && list_empty(&cl->names));
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

/* Output goes out as long as some of it is taken each second; a client that takes none is cut off. So is every client once the reader was cancelled. */
static void last_words(struct co *co, struct ctl_client *cl)
{
    uint64_t end = rt_now(cl->c->home) + LAST_WORDS_NS;
    for (size_t left = SIZE_MAX; !cl->writer.done && rt_now(cl->c->home) < end; left = cl->out_len - cl->out_at) {
        if (cl->out_len - cl->out_at < left)
            end = rt_now(cl->c->home) + LAST_WORDS_NS;
        if (co_sleep(co, LAST_WORDS_NS / 200))
            break;
    }
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
    if (writes && rt_task_start(c->home, &cl->worker, worker_co, cl) == 0) {
        read_all(co, cl);
        cl->no_more = true;
        (void)co_wake_all(&cl->queue_q);
        rt_task_join(co, &cl->worker);
    }
    cl->closing = true;
    (void)co_wake_all(&cl->out_q);
    if (writes)
        last_words(co, cl);
    cut_off(cl);                             /* whoever is at the other end does not wait for what is closed here */
    cl->dead = true;                         /* nor is anything put out to it any more */
    ctl_client_descriptors_end(co, cl);
    cl->bye.fn = client_gone;                /* this task lives in cl: freed once the task has ended */
    rt_post(c->home, &cl->bye);
}

void client_start(struct ctl *c, const struct ctl_end *end)
{
    struct ctl_client *cl = calloc(1, sizeof *cl);
    if (!cl || qmp_split_new(NULL, &cl->split)) {
        free(cl);
        if (end->fd == end->out_fd)
            ctl_drop_socket(c->home, end->fd);
        return;
    }
    cl->c = c;
    cl->fd = end->fd;
    cl->out_fd = end->out_fd;
    cl->pretty = end->pretty;
    list_init(&cl->queue);
    list_init(&cl->names);
    list_push_back(&c->clients, &cl->link);
    c->client_count++;
    co_group_enter(&c->alive);
    if (rt_task_start(c->home, &cl->reader, reader_co, cl)) {
        client_free(cl);
        co_group_leave(&c->alive);
    }
}
