/* SPDX-License-Identifier: MIT
 *
 * nbd_conn.c: one connection to an NBD server.
 *
 * Purpose      Drives a handle of libnbd from a loop: two coroutines wait until the socket can be read or written and tell the handle.
 *              Requests of other loops come as messages.
 * Owns         The handle, its socket, and the requests between their sending and their answer.
 * Invariants   I1  Everything of a connection, its handle included, is touched by its own loop only. libnbd's lock is never waited for.
 *              I2  A request ends once: with the server's answer, or with NBDC_LOST when the connection ended before that.
 *              I3  An answer is in the log (nbd_log.c) before the end of its connection is told to anybody.
 *              I4  Memory of a request is not touched any more when it ends: the handle has answered, or is closed.
 * Order        None: what is acknowledged may be volatile. See nbd_set.c.
 * Concurrency  See I1. libnbd keeps its error text for each thread: it is read before anything can suspend.
 * Failure      A connection that failed stays until nbdc_conn_stop; requests given to it end with NBDC_LOST.
 * Tests        tests/interop/test_nbd_client.py, test_nbd_client_return.py
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "rt/io.h"
#include "stor/nbd_priv.h"

enum { ANSWERS_MAX = 16 };                /* taken at once before others on the loop get their turn */

const char *nbdc_why(void)
{
    const char *text = nbd_lib.get_error(), *colon = text ? strstr(text, ": ") : NULL;
    return colon ? colon + 2 : text ? text : "the connection ended";
}

static int why_code(void)
{
    int e = nbd_lib.get_errno();
    return e > 0 ? -e : -EIO;
}

/* ---- the handshake ---- */

int nbdc_step(struct co *co, struct nbd_handle *h)
{
    unsigned dir = nbd_lib.aio_get_direction(h);
    short events = (short)((dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) | (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    if (!events)
        return -EPROTO;
    int r = rt_poll(co, nbd_lib.aio_get_fd(h), events);
    if (r < 0)
        return r;
    if ((r & ~POLLOUT) && (dir & LIBNBD_AIO_DIRECTION_READ))
        r = nbd_lib.aio_notify_read(h);
    else
        r = nbd_lib.aio_notify_write(h);
    return r < 0 ? why_code() : 0;
}

static int flag(int answer) { return answer > 0; }
static uint64_t positive(int64_t answer) { return answer > 0 ? (uint64_t)answer : 0; }

static int read_info(struct nbd_handle *h, const struct stor_nbd_opts *o, struct nbdc_info *ret, struct byre_err *err)
{
    if (o->x_dirty_bitmap && nbd_lib.can_meta_context(h, o->x_dirty_bitmap) <= 0)
        return byre_fail(err, NOT_FOUND, "export '%s': the NBD server has no context '%s' (x-dirty-bitmap)", o->export ? o->export : "", o->x_dirty_bitmap);
    int64_t size = nbd_lib.get_size(h);
    if (size < 0)
        return byre_fail(err, PROTOCOL, "the NBD server tells no acceptable size: %s", nbdc_why());
    *ret = (struct nbdc_info){
        .size = (uint64_t)size,
        .min_block = positive(nbd_lib.get_block_size(h, LIBNBD_SIZE_MINIMUM)),
        .opt_block = positive(nbd_lib.get_block_size(h, LIBNBD_SIZE_PREFERRED)),
        .max_block = positive(nbd_lib.get_block_size(h, LIBNBD_SIZE_MAXIMUM)),
        .read_only = flag(nbd_lib.is_read_only(h)), .can_flush = flag(nbd_lib.can_flush(h)), .can_fua = flag(nbd_lib.can_fua(h)),
        .can_trim = flag(nbd_lib.can_trim(h)), .can_zero = flag(nbd_lib.can_zero(h)), .can_fast_zero = flag(nbd_lib.can_fast_zero(h)),
        .can_multi = flag(nbd_lib.can_multi_conn(h)), .has_status = flag(nbd_lib.can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION)),
    };
    return 0;
}

/* Until the handle is ready. The text of a failure is told by the call that fails. */
static int negotiate(struct co *co, const struct stor_nbd_opts *o, struct nbd_handle *h, struct byre_err *err)
{
    const char *export = o->export ? o->export : "";
    while (nbd_lib.aio_is_connecting(h)) {
        int r = nbdc_step(co, h);
        if (r == -ECANCELED)
            return r;
        if (r == -ETIMEDOUT)
            return byre_fail_code(err, SYSTEM, r, "export '%s': the NBD server does not answer", export);
        if (r < 0)
            return byre_fail_code(err, SYSTEM, r, "export '%s': the NBD server refuses: %s", export, nbdc_why());
    }
    return nbd_lib.aio_is_ready(h) ? 0 : byre_fail(err, PROTOCOL, "export '%s': the NBD server closed the connection before anything was agreed on", export);
}

int nbdc_connect(struct co *co, const struct stor_nbd_opts *o, struct nbd_handle *h, struct byre_err *err)
{
    int fd;
    struct nbdc_tls *t = NULL;
    int r = nbdc_dial(co, o, &fd, err);
    if (!r && o->creds)
        r = nbdc_tls_begin(co, o, fd, &fd, &t, err);
    if (r)
        return r;
    (void)nbd_lib.set_private_data(h, (uintptr_t)t);
    if (nbd_lib.aio_connect_socket(h, fd) < 0)       /* the socket is the handle's from here on */
        return byre_fail_code(err, SYSTEM, why_code(), "NBD: %s", nbdc_why());
    return 0;
}

void nbdc_close(struct co *co, struct nbd_handle *h)
{
    struct nbdc_tls *t = (struct nbdc_tls *)(uintptr_t)nbd_lib.get_private_data(h);
    nbd_lib.close(h);
    nbdc_tls_stop(co, t);
}

static int begin(struct co *co, const struct stor_nbd_opts *o, struct nbd_handle *h, struct byre_err *err)
{
    if (nbd_lib.set_export_name(h, o->export ? o->export : "") < 0 || nbd_lib.add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        (o->x_dirty_bitmap && strcmp(o->x_dirty_bitmap, LIBNBD_CONTEXT_BASE_ALLOCATION) && nbd_lib.add_meta_context(h, o->x_dirty_bitmap) < 0))
        return byre_fail_code(err, SYSTEM, why_code(), "NBD: %s", nbdc_why());
    return nbdc_connect(co, o, h, err);
}

int nbdc_handshake(struct co *co, const struct stor_nbd_opts *o, uint64_t at_ns, struct nbd_handle **ret_h, struct nbdc_info *ret_info, struct byre_err *err)
{
    int r = nbd_lib_load(co, err);
    struct nbd_handle *h = r ? NULL : nbd_lib.create();
    if (r)
        return r;
    if (!h)
        return byre_fail(err, NOMEM, "no memory for an NBD connection");
    uint64_t old = co_set_deadline(co, at_ns);
    r = begin(co, o, h, err);
    if (!r)
        r = negotiate(co, o, h, err);
    (void)co_set_deadline(co, old);
    if (!r)
        r = read_info(h, o, ret_info, err);
    if (r)
        nbdc_close(co, h);
    else
        *ret_h = h;
    return r;
}

/* ---- answers ---- */

/* The connection is not touched after this, if it has ended (see nbdc_conn_free). */
static void finish(struct nbdc_conn *c, struct nbdc_req *r, int result)
{
    struct nbdp_complaint *said = r->said;
    r->result = result;
    if (said && result < 0)
        nbdc_complaint_tell(c->set, r, rt_now(c->loop));
    r->said = NULL;
    free(said);
    if (result != NBDC_LOST)
        nbdc_log_ended(&c->set->log, r);         /* I3 */
    atomic_fetch_sub(&c->load, 1);
    co_xevent_set(&r->done);
}

/* Ends what was answered; takes note of the end of the connection. After every call of the handle that can change something. */
static void look(struct nbdc_conn *c)
{
    bool over = nbd_lib.aio_is_dead(c->h) > 0 || nbd_lib.aio_is_closed(c->h) > 0;
    struct list_node *at;
    while ((at = list_pop_front(&c->ended))) {
        struct nbdc_req *r = CONTAINER_OF(at, struct nbdc_req, link);
        bool going = r->error == ESHUTDOWN;      /* the server ends, and says so first */
        over |= going;
        finish(c, r, r->error ? (over ? NBDC_LOST : -r->error) : 0);
    }
    if (over && !c->dead) {
        c->dead = true;
        nbdc_set_lost(c->set);
    }
    if (!c->dead && (nbd_lib.aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_WRITE))
        co_wake_one(&c->want_write);
}

/* Inside a call of libnbd: no call of libnbd may be made here. */
static int on_answer(void *arg, int *error)
{
    struct nbdc_req *r = arg;
    ASSERT(!r->ended);                           /* I2 */
    r->ended = true;
    r->error = *error;
    list_remove(&r->link);
    list_push_back(&r->conn->ended, &r->link);
    return 1;                                    /* libnbd may forget it */
}

/* The extents of the context that is shown (x-dirty-bitmap): the two bits that a map has a place for. */
static void take_notes(struct nbdc_req *r, const uint32_t *entries, size_t count)
{
    enum { HOLE = 1, ZERO = 2 };
    uint64_t pos = r->off, end = r->off + r->len;
    r->noted = 0;
    for (size_t i = 0; i + 1 < count && pos < end && r->noted < NBDC_NOTES_MAX; i += 2) {
        uint64_t len = min_u64(entries[i], end - pos);
        unsigned what = STOR_NOTE | (entries[i + 1] & HOLE ? STOR_NOTE_HOLE : 0) | (entries[i + 1] & ZERO ? STOR_NOTE_ZERO : 0);
        pos += len;
        if (r->noted && r->notes[r->noted - 1].what == what)
            r->notes[r->noted - 1].end = pos;
        else if (len)
            r->notes[r->noted++] = (struct nbdc_note){ pos, what };
    }
}

/* What the server says of its blocks is taken only as far as it makes sense: lengths may be anything. */
static int on_extents(void *arg, const char *context, uint64_t off, uint32_t *entries, size_t count, int *error)
{
    enum { ZERO = 2 };
    struct nbdc_req *r = arg;
    uint64_t pos = off, end = r->off + r->len;
    if (off != r->off || *error)
        return 0;
    if (r->note && !strcmp(context, r->note))
        take_notes(r, entries, count);
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
        return 0;
    for (size_t i = 0; i + 1 < count && pos < end; i += 2) {
        uint64_t len = min_u64(entries[i], end - pos);
        enum stor_content what = entries[i + 1] & ZERO ? STOR_HOLE : STOR_DATA;
        struct stor_extent *last = r->got ? &r->list[r->got - 1] : NULL;
        if (last && last->content == what)
            last->len += len;
        else if (len && r->got < r->max)
            r->list[r->got++] = (struct stor_extent){ .content = what, .off = pos, .len = len };
        else if (len)
            break;
        pos += len;
    }
    return 0;
}

/* ---- requests ---- */

static int64_t issue(struct nbd_handle *h, struct nbdc_req *r)
{
    nbd_completion_callback answer = { .callback = on_answer, .user_data = r };
    nbd_extent_callback extents = { .callback = on_extents, .user_data = r };
    switch (r->what) {
    case NBDC_READ: return nbd_lib.aio_pread(h, r->buf, r->len, r->off, answer, r->flags);
    case NBDC_WRITE: return nbd_lib.aio_pwrite(h, r->buf, r->len, r->off, answer, r->flags);
    case NBDC_FLUSH: return nbd_lib.aio_flush(h, answer, r->flags);
    case NBDC_ZERO: return nbd_lib.aio_zero(h, r->len, r->off, answer, r->flags);
    case NBDC_TRIM: return nbd_lib.aio_trim(h, r->len, r->off, answer, r->flags);
    default: r->got = r->noted = 0; return nbd_lib.aio_block_status(h, r->len, r->off, extents, answer, r->flags);
    }
}

static void submit(struct nbdc_conn *c, struct nbdc_req *r)
{
    ASSERT_LOOP(c->loop);
    if (c->dead) {
        finish(c, r, NBDC_LOST);
        return;
    }
    r->conn = c;
    r->ended = false;
    list_push_back(&c->sent, &r->link);
    r->cookie = 0;
    int64_t cookie = issue(c->h, r);
    r->cookie = cookie > 0 ? cookie : 0;
    if (cookie < 0 && !r->ended) {       /* it was not sent: the handle is at its end, or finds fault with it */
        r->ended = true;
        r->error = -why_code();
        list_remove(&r->link);
        list_push_back(&c->ended, &r->link);
    }
    look(c);
}

static void submit_message(struct rt_msg *m)
{
    struct nbdc_req *r = CONTAINER_OF(m, struct nbdc_req, msg);
    submit(r->conn, r);
}

void nbdc_conn_do(struct co *co, struct nbdc_conn *c, struct nbdc_req *r)
{
    co_xevent_init(&r->done, co_loop(co));
    r->conn = c;
    r->msg.fn = submit_message;
    if (co_loop(co) == c->loop)
        submit(c, r);
    else
        rt_post(c->loop, &r->msg);
    co_xevent_wait(co, &r->done);
}

/* ---- the two coroutines ---- */

static bool readable(int fd)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    return poll(&p, 1, 0) > 0;                   /* does not wait */
}

/* The complaint that lies in the socket, as soon as it is there as a whole: what follows it has to wait anyhow. */
static bool hear_out(struct co *co, const struct nbdc_conn *c, struct nbdp_complaint *ret)
{
    AUTOFREE uint8_t *buf = malloc(NBDP_COMPLAINT_MAX);
    while (buf && !c->dead) {
        struct pollfd over = { .fd = c->fd, .events = POLLRDHUP };
        bool last = poll(&over, 1, 0) > 0;           /* no more is going to come */
        ssize_t n = recv(c->fd, buf, NBDP_COMPLAINT_MAX, MSG_PEEK | MSG_DONTWAIT);
        size_t need = n > 0 ? nbdp_complaint_parse(buf, (size_t)n, ret) : 0;
        if (!need || need <= (size_t)n)
            return need > 0;
        if (last || co_sleep(co, 1000000))
            break;
    }
    return false;
}

static void note_complaint(struct nbdc_conn *c, const struct nbdp_complaint *what)
{
    LIST_FOR(at, &c->sent) {
        struct nbdc_req *r = CONTAINER_OF(at, struct nbdc_req, link);
        if ((uint64_t)r->cookie != what->cookie || r->said)
            continue;
        r->said = malloc(sizeof *r->said);
        if (r->said)
            *r->said = *what;
        return;
    }
}

/* Has something arrived? Between two answers the head of the next one is looked at, and a complaint is heard out before libnbd takes it. In the middle of
 * one there is nothing to see; nor is there while a request waits for room in the socket: what is said then is not heard. */
static bool arrived(struct co *co, struct nbdc_conn *c, bool told)
{
    uint8_t head[8];
    struct nbdp_complaint what;
    if (!c->structured || nbd_lib.aio_is_ready(c->h) <= 0)
        return told || readable(c->fd);
    ssize_t n = recv(c->fd, head, sizeof head, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n > 0 && nbdp_complaint_parse(head, (size_t)n, &what) && hear_out(co, c, &what))
        note_complaint(c, &what);
    return !c->dead;
}

/* Something has arrived: takes up to ANSWERS_MAX answers. A handle that is told of bytes which are not there waits for them, and sends
 * nothing meanwhile: therefore the look before each further one. */
static void receive(struct co *co, struct nbdc_conn *c)
{
    for (int i = 0; i < ANSWERS_MAX && !c->dead; i++) {
        if (!(nbd_lib.aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_READ) || !arrived(co, c, !i))
            return;
        (void)nbd_lib.aio_notify_read(c->h);         /* a failure is the end of the handle, which `look` sees */
        look(c);
    }
}

static void reader_co(struct co *co, void *arg)
{
    struct nbdc_conn *c = arg;
    while (!c->dead) {
        int r = rt_poll(co, c->fd, POLLIN);
        if (r == -ECANCELED || c->dead)
            return;
        receive(co, c);
        if (!c->dead && !(nbd_lib.aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_READ))
            (void)co_sleep(co, 1000000);         /* it has to write first; a cancelled poll follows at once */
    }
}

static void writer_co(struct co *co, void *arg)
{
    struct nbdc_conn *c = arg;
    while (!c->dead) {
        if (!(nbd_lib.aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_WRITE)) {
            if (co_wait_cancellable(co, &c->want_write))
                return;
            continue;
        }
        int r = rt_poll(co, c->fd, POLLOUT);
        if (r == -ECANCELED || c->dead)
            return;
        if (nbd_lib.aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_WRITE)
            (void)nbd_lib.aio_notify_write(c->h);
        look(c);
    }
}

static int start_on_loop(struct co *co, void *arg)
{
    struct nbdc_conn *c = arg;
    int r = rt_task_start(c->loop, &c->reader, reader_co, c);
    if (r)
        return r;
    r = rt_task_start(c->loop, &c->writer, writer_co, c);
    if (r) {
        c->dead = true;
        rt_cancel(&c->reader);
        rt_task_join(co, &c->reader);
    }
    c->started = !r;
    return r;
}

int nbdc_conn_new(struct co *co, struct nbdc *set, struct rt_loop *loop, struct nbd_handle *h, struct nbdc_conn **ret_c)
{
    struct nbdc_conn *c = calloc(1, sizeof *c);
    if (!c) {
        nbdc_close(co, h);
        return -ENOMEM;
    }
    *c = (struct nbdc_conn){ .set = set, .loop = loop, .h = h, .fd = nbd_lib.aio_get_fd(h), .structured = nbd_lib.get_structured_replies_negotiated(h) > 0 };
    list_init(&c->sent);
    list_init(&c->ended);
    int r = rt_call(co, loop, start_on_loop, c);
    if (r) {
        nbdc_close(co, h);
        free(c);
        return r;
    }
    *ret_c = c;
    return 0;
}

static int stop_on_loop(struct co *co, void *arg)
{
    struct nbdc_conn *c = arg;
    struct list_node *at;
    if (!c->h)
        return 0;
    if (!c->dead && list_empty(&c->sent))
        (void)nbd_lib.aio_disconnect(c->h, 0);       /* a farewell; the server need not have heard it */
    c->dead = true;
    if (c->started) {
        rt_cancel(&c->reader);
        rt_cancel(&c->writer);
        rt_task_join(co, &c->reader);
        rt_task_join(co, &c->writer);
    }
    if (!c->h)
        return 0;                                /* somebody else has stopped it meanwhile */
    struct nbdc_tls *t = (struct nbdc_tls *)(uintptr_t)nbd_lib.get_private_data(c->h);
    nbd_lib.close(TAKE(c->h));
    list_splice_back(&c->sent, &c->ended);
    while ((at = list_pop_front(&c->sent)))
        finish(c, CONTAINER_OF(at, struct nbdc_req, link), NBDC_LOST);
    nbdc_tls_stop(co, t);
    return 0;
}

void nbdc_conn_stop(struct co *co, struct nbdc_conn *c)
{
    while (rt_call(co, c->loop, stop_on_loop, c) == -ENOMEM)
        co_breathe(co);
}

void nbdc_conn_free(struct co *co, struct nbdc_conn *c)
{
    while (atomic_load(&c->load))                /* given to it before it stopped, and still under way */
        co_breathe(co);
    free(c);
}
