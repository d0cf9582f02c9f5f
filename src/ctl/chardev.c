/* SPDX-License-Identifier: MIT
 *
 * chardev.c: character devices.
 *
 * Purpose      Names for sockets and for standard input and output, so that a monitor can be put on one of them.
 * Owns         struct chardev; its listener or connection until a monitor takes it
 * Invariants   I1 one device of an id, one monitor of a device
 *              I2 a client that connects before there is a monitor waits in the socket; nothing of it is read
 * Concurrency  home loop; opening suspends, and the id is taken meanwhile
 * Failure      byre_err names the device; nothing stays behind
 * Tests        tests/daemon/chardev_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl/chardev.h"
#include "rt/closer.h"

struct chardev *chardev_find(struct ctl *c, const char *id)
{
    LIST_FOR(at, &c->chardevs) {
        struct chardev *d = CONTAINER_OF(at, struct chardev, link);
        if (strcmp(d->id, id) == 0)
            return d;
    }
    return NULL;
}

static void device_free(struct co *co, struct chardev *d)
{
    list_remove(&d->link);
    if (d->listener)
        listener_drop(co, d->listener);
    if (d->fd >= 0)
        rt_close_soon(co_loop(co), d->fd);
    free(d->ring);
    free(d->id);
    free(d->path);
    free(d->monitor);
    free(d);
}

static bool is_stdio_taken(struct ctl *c)
{
    LIST_FOR(at, &c->chardevs)
        if (CONTAINER_OF(at, struct chardev, link)->kind == CHARDEV_STDIO)
            return true;
    return false;
}

static int refuse(struct ctl *c, const struct chardev_opts *o, int code)
{
    if (o->kind == CHARDEV_SOCKET && !o->at)
        rt_close_soon(c->home, o->fd);
    return code;
}

int chardev_add(struct co *co, struct ctl *c, const struct chardev_opts *o, struct byre_err *err)
{
    ASSERT_LOOP(c->home);
    size_t len = strlen(o->id);
    if (len < 1 || len > CHARDEV_ID_MAX)
        return refuse(c, o, byre_fail(err, BAD_ARGUMENT, "the id of a character device has 1 to %u bytes", CHARDEV_ID_MAX));
    if (chardev_find(c, o->id))
        return refuse(c, o, byre_fail(err, EXISTS, "Chardev with id '%s' already exists", o->id));
    if (o->kind == CHARDEV_STDIO && is_stdio_taken(c))
        return byre_fail(err, BUSY, "cannot use stdio by multiple character devices");
    if (o->kind >= CHARDEV_RINGBUF && (!o->ring_bytes || (o->ring_bytes & (o->ring_bytes - 1)) || o->ring_bytes > CHARDEV_RING_MAX))
        return byre_fail(err, BAD_ARGUMENT, "Failed to add chardev '%s': its size is a power of two up to %u MiB", o->id, (unsigned)(CHARDEV_RING_MAX >> 20));
    struct chardev *d = calloc(1, sizeof *d);
    char *id = strdup(o->id), *path = o->at ? strdup(o->at->path) : NULL;
    if (!d || !id || (o->at && !path) || c->stopping) {
        free(d);
        free(id);
        free(path);
        return refuse(c, o, byre_fail(err, NOMEM, "no memory for a character device"));
    }
    *d = (struct chardev){ .id = id, .path = path, .abstract = o->at && o->at->abstract, .kind = o->kind, .fd = -1, .used = true };    /* not to be taken before it is complete */
    list_push_back(&c->chardevs, &d->link);
    int r = 0;
    if (o->kind >= CHARDEV_RINGBUF) {
        d->ring = malloc(o->ring_bytes);
        d->ring_bytes = o->ring_bytes;
        r = d->ring ? 0 : byre_fail(err, NOMEM, "no memory for a character device");
    }
    if (o->kind == CHARDEV_SOCKET)
        r = o->server ? listener_open(co, o->at, o->fd, &d->listener, err) : monitor_connect(co, o->at, o->fd, &d->fd, err);
    d->used = false;
    if (r) {
        d->fd = -1;
        device_free(co, d);
    }
    return r;
}

static struct chardev *unused(struct ctl *c, const char *id, struct byre_err *err)
{
    struct chardev *d = chardev_find(c, id);
    if (!d)
        (void)byre_fail(err, NOT_FOUND, "Chardev '%s' not found", id);
    else if (d->used)
        (void)byre_fail(err, BUSY, "Chardev '%s' is busy", id);
    return d && !d->used ? d : NULL;
}

int chardev_remove(struct co *co, struct ctl *c, const char *id, struct byre_err *err)
{
    ASSERT_LOOP(c->home);
    struct chardev *d = unused(c, id, err);
    if (!d)
        return err->code;
    d->used = true;
    device_free(co, d);
    return 0;
}

static int check_monitor(struct ctl *c, const char *monitor, struct byre_err *err)
{
    LIST_FOR(at, &c->chardevs) {
        const struct chardev *d = CONTAINER_OF(at, struct chardev, link);
        if (d->monitor && !strcmp(d->monitor, monitor))
            return byre_fail(err, EXISTS, "there is a monitor '%s' already, on chardev '%s'", monitor, d->id);
    }
    return 0;
}

static int serve(struct ctl *c, struct chardev *d, bool pretty, struct byre_err *err)
{
    if (d->listener) {
        int r = listener_serve(c, d->listener, pretty, err);
        if (r)
            return r;
        d->served = true;
        d->listener = NULL;                  /* among the listeners of c now */
    } else {
        client_start(c, d->kind == CHARDEV_STDIO ? &(struct ctl_end){ 0, 1, pretty } : &(struct ctl_end){ d->fd, d->fd, pretty });
        d->fd = -1;
    }
    return 0;
}

int chardev_monitor(struct ctl *c, const char *id, const char *monitor, bool pretty, struct byre_err *err)
{
    ASSERT_LOOP(c->home);
    struct chardev *d = unused(c, id, err);
    if (!d)
        return err->code;
    if (d->kind != CHARDEV_SOCKET && d->kind != CHARDEV_STDIO)
        return byre_fail(err, NOT_SUPPORTED, "Chardev '%s' leads nowhere: nobody could talk to a monitor there", id);
    int r = monitor ? check_monitor(c, monitor, err) : 0;
    if (r)
        return r;
    char *name = monitor ? strdup(monitor) : NULL;
    r = monitor && !name ? byre_fail(err, NOMEM, "no memory for a monitor") : serve(c, d, pretty, err);
    if (r) {
        free(name);
        return r;
    }
    d->monitor = name;
    d->used = true;
    return 0;
}

void chardevs_free(struct co *co, struct ctl *c)
{
    while (!list_empty(&c->chardevs))
        device_free(co, CONTAINER_OF(list_first(&c->chardevs), struct chardev, link));
}
