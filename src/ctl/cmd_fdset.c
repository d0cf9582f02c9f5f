/* SPDX-License-Identifier: MIT
 *
 * cmd_fdset.c: add-fd, remove-fd, query-fdsets (FEATURES 3.023, G.051).
 *
 * Purpose      Sets of open files, which file names as /dev/fdset/1 mean.
 * Owns         nothing: the sets are those of the graph (stor/fdset.h), shared by all clients
 * Invariants   none
 * Concurrency  home loop; descriptors are closed elsewhere (rt/closer.h)
 * Failure      as ctl_priv.h; the descriptor that came with a command that fails is closed
 * Tests        tests/daemon/fdset_test.py
 */
#include <unistd.h>

#include "ctl/ctl_priv.h"
#include "ctl/passed.h"
#include "rt/closer.h"
#include "stor/fdset.h"

static struct fdsets *sets_of(struct ctl_call *call)
{
    struct fdsets *s = call->c->env.graph ? graph_passed(call->c->env.graph) : NULL;
    if (!s)
        (void)byre_fail(&call->err, NOT_SUPPORTED, "there are no disks here that could be in a set of descriptors");
    return s;
}

/* ---- add-fd ---- */
struct add_args { int64_t id; bool has_id; const char *opaque; };
static const struct ctl_arg add_rows[] = {
    { "fdset-id", CTL_INT, false, CTL_AT_HAS(struct add_args, id), .doc = "The set; it is made if it is not there. When it is not given, a set is made with the lowest number that is free." },
    { "opaque", CTL_STR, false, CTL_AT(struct add_args, opaque), .doc = "Shown by query-fdsets, and nothing more." },
    CTL_ARGS_END
};
static const struct ctl_arg added_rows[] = {
    { "fdset-id", CTL_INT, true, CTL_AT_NONE }, { "fd", CTL_INT, true, CTL_AT_NONE, .doc = "Its number in this process, for remove-fd." }, CTL_ARGS_END
};
static const struct ctl_shape added_shape = { .name = "AddfdInfo", .rows = added_rows };
static const struct ctl_arg ret_added = { "added", CTL_STRUCT, true, CTL_AT_NONE, .of = &added_shape };

static int run_add(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    struct fdsets *s = sets_of(call);
    int64_t id = 0;
    int fd, r = s ? ctl_take_offer(co, call, &fd) : call->err.code;
    if (r)
        return r;
    r = fdset_add(s, &(struct fdset_new){ a->has_id ? &a->id : NULL, a->opaque, fd }, &id, &call->err);
    if (r) {
        rt_close_fds(co, &fd, 1);
        return r;
    }
    call->ret = json_pack("{s:I,s:i}", "fdset-id", (json_int_t)id, "fd", fd);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- remove-fd ---- */
struct remove_args { int64_t id, fd; bool has_fd; };
static const struct ctl_arg remove_rows[] = {
    { "fdset-id", CTL_INT, true, CTL_AT(struct remove_args, id) },
    { "fd", CTL_INT, false, CTL_AT_HAS(struct remove_args, fd), .doc = "As add-fd has told it; all of the set when it is not given." },
    CTL_ARGS_END
};

static int run_remove(struct co *co, struct ctl_call *call)
{
    const struct remove_args *a = call->args;
    struct fdsets *s = sets_of(call);
    if (!s)
        return call->err.code;
    if (a->has_fd && (a->fd < 0 || a->fd > INT32_MAX))
        return byre_fail(&call->err, NOT_FOUND, "File descriptor named 'fdset-id:%lld, fd:%lld' not found", (long long)a->id, (long long)a->fd);
    struct fdset_removed *out = ctl_arena_get(&call->arena, sizeof *out);
    int r = out ? fdset_remove(s, a->id, a->has_fd ? (int)a->fd : -1, out, &call->err) : ctl_no_memory(call);
    if (!r)
        rt_close_fds(co, out->fds, out->count);
    return r;
}

/* ---- query-fdsets ---- */
static const struct ctl_arg fd_rows[] = {
    { "fd", CTL_INT, true, CTL_AT_NONE }, { "opaque", CTL_STR, false, CTL_AT_NONE }, CTL_ARGS_END
};
static const struct ctl_shape fd_shape = { .name = "FdsetFdInfo", .rows = fd_rows };
static const struct ctl_arg set_rows[] = {
    { "fdset-id", CTL_INT, true, CTL_AT_NONE },
    { "fds", CTL_STRUCT, true, CTL_AT_NONE, .of = &fd_shape, .list = true, .doc = "None: all were removed, and a node still uses one." }, CTL_ARGS_END
};
static const struct ctl_shape set_shape = { .name = "FdsetInfo", .rows = set_rows };
static const struct ctl_arg ret_sets = { "sets", CTL_STRUCT, true, CTL_AT_NONE, .of = &set_shape, .list = true };

struct telling { json_t *list, *fds; bool failed; };

static void tell_set(void *arg, int64_t id)
{
    struct telling *t = arg;
    t->fds = json_array();
    json_t *set = t->fds ? json_pack("{s:O,s:I}", "fds", t->fds, "fdset-id", (json_int_t)id) : NULL;
    json_decref(t->fds);                 /* the set has it */
    if (!set || json_array_append_new(t->list, set)) {
        t->failed = true;
        t->fds = NULL;
    }
}

static void tell_fd(void *arg, int fd, const char *opaque)
{
    struct telling *t = arg;
    if (t->fds && json_array_append_new(t->fds, json_pack("{s:i,s:s*}", "fd", fd, "opaque", opaque)))
        t->failed = true;
}

static int run_query(struct co *co, struct ctl_call *call)
{
    struct fdsets *s = sets_of(call);
    struct telling t = { .list = json_array() };
    call->ret = t.list;
    if (!s)
        return call->err.code;
    if (t.list)
        fdsets_tell(s, &(struct fdset_teller){ tell_set, tell_fd, &t });
    return t.list && !t.failed ? 0 : ctl_no_memory(call);
}

const struct ctl_command ctl_cmd_add_fd = { "add-fd", add_rows, sizeof(struct add_args), run_add, .ret = &ret_added,
    .doc = "Puts the descriptor that came with the command into a set. Opening the file /dev/fdset/N uses the one of set N whose access mode fits: for writing, one that is open for reading and writing. All clients share the sets." };
const struct ctl_command ctl_cmd_remove_fd = { "remove-fd", remove_rows, sizeof(struct remove_args), run_remove,
    .doc = "Closes descriptors of a set. Nodes that use one go on with a duplicate. The set is gone when it has no descriptor and no node uses it." };
const struct ctl_command ctl_cmd_query_fdsets = { "query-fdsets", NULL, 0, run_query, .ret = &ret_sets, .doc = "Lists the sets of descriptors." };
