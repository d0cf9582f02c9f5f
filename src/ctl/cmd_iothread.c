/* SPDX-License-Identifier: MIT
 *
 * cmd_iothread.c: objects of the type iothread, query-iothreads, x-blockdev-set-iothread (FEATURES 3.076, 10.025, 8.018).
 *
 * Purpose      Threads by name, made, shown and given to exports while the server runs.
 * Owns         nothing: they are in the set of exports
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h; an object whose values will not do stays as it was
 * Tests        tests/daemon/iothread_test.py
 */
#include <string.h>

#include "base/id.h"
#include "ctl/ctl_priv.h"
#include "ctl/qom.h"
#include "export/exports.h"
#include "graph/graph.h"

struct iothread *ctl_iothread(const struct ctl *c, const char *id)
{
    return c->env.exports ? iothread_find(exports_iothreads(c->env.exports), id) : NULL;
}

/* IOTHREAD_NUMBERS: it is none of them. */
static unsigned number_of(const char *name)
{
    unsigned i = 0;
    while (i < IOTHREAD_NUMBERS && strcmp(name, iothread_names[i]))
        i++;
    return i;
}

int ctl_iothread_add(struct co *co, struct ctl_call *call)
{
    const char *id = json_string_value(json_object_get(call->arguments, "id")), *key;
    struct iothread_values v = IOTHREAD_VALUES_DEFAULT;
    json_t *value;
    if (!call->c->env.exports)
        return byre_fail(&call->err, NOT_SUPPORTED, "there is nothing here that an iothread could serve");
    if (!id_is_good(id, SIZE_MAX))
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter 'id' expects an identifier, not '%s'", id);
    json_object_foreach(call->arguments, key, value)
        if (number_of(key) < IOTHREAD_NUMBERS)
            v.of[number_of(key)] = json_integer_value(value);
    return iothread_add(co, exports_iothreads(call->c->env.exports), id, &v, &call->err);
}

int ctl_iothread_del(struct ctl_call *call, const char *id)
{
    struct iothread *io = ctl_iothread(call->c, id);
    return io ? exports_iothread_del(call->c->env.exports, io, &call->err) : 1;
}

/* ---- properties ---- */

static int no_property(struct ctl_call *call, const char *property)
{
    return byre_fail(&call->err, NOT_FOUND, "Property 'iothread.%s' not found", property);
}

int ctl_iothread_get(struct ctl_call *call, const struct iothread *io, const char *property)
{
    unsigned i = number_of(property);
    if (!strcmp(property, "type"))
        call->ret = json_string("iothread");
    else if (i < IOTHREAD_NUMBERS)
        call->ret = json_integer(io->values.of[i]);
    else
        return no_property(call, property);
    return call->ret ? 0 : ctl_no_memory(call);
}

int ctl_iothread_set(struct ctl_call *call, struct iothread *io, const char *property, const json_t *value)
{
    unsigned i = number_of(property);
    struct iothread_values v = io->values;
    if (i == IOTHREAD_NUMBERS)
        return no_property(call, property);
    if (!json_is_integer(value))
        return byre_fail(&call->err, BAD_ARGUMENT, "Invalid parameter type for '%s', expected: integer", property);
    v.of[i] = json_integer_value(value);
    int r = iothread_check(&v, &call->err);
    if (!r)
        io->values = v;
    return r;
}

/* ---- query-iothreads ---- */

static const struct ctl_arg info_rows[] = {
    { "id", CTL_STR, true, CTL_AT_NONE },
    { "thread-id", CTL_INT, true, CTL_AT_NONE, .doc = "Number of the thread in /proc and in top -H." },
    { "poll-max-ns", CTL_INT, true, CTL_AT_NONE, .doc = "This and the rest: as they were set; they change nothing." },
    { "poll-grow", CTL_INT, true, CTL_AT_NONE },
    { "poll-shrink", CTL_INT, true, CTL_AT_NONE },
    { "aio-max-batch", CTL_INT, true, CTL_AT_NONE },
    CTL_ARGS_END
};
static const struct ctl_shape info_shape = { .name = "IOThreadInfo", .rows = info_rows };
static const struct ctl_arg ret_iothreads = { "iothreads", CTL_STRUCT, true, CTL_AT_NONE, .of = &info_shape, .list = true };

static json_t *info_json(const struct iothread *io)
{
    json_t *o = json_pack("{s:s,s:I}", "id", io->id, "thread-id", (json_int_t)rt_loop_thread_id(io->loop));
    for (unsigned i = 0; o && i <= IOTHREAD_AIO_MAX_BATCH; i++)
        if (json_object_set_new(o, iothread_names[i], json_integer(io->values.of[i]))) {
            json_decref(o);
            return NULL;
        }
    return o;
}

static int run_query(struct co *co, struct ctl_call *call)
{
    struct iothreads *set = call->c->env.exports ? exports_iothreads(call->c->env.exports) : NULL;
    call->ret = json_array();
    for (struct iothread *io = set ? iothread_next(set, NULL) : NULL; call->ret && io; io = iothread_next(set, io))
        if (json_array_append_new(call->ret, info_json(io)))
            return ctl_no_memory(call);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- x-blockdev-set-iothread ---- */

struct place { const char *name; bool none; };
static const struct ctl_arg place_rows[] = {
    { "name", CTL_STR, false, CTL_AT(struct place, name) },
    { "none", CTL_NULL, false, CTL_AT(struct place, none) },
    CTL_ARGS_END
};
static const struct ctl_shape place_shape = { .name = "StrOrNull", .rows = place_rows, .bytes = sizeof(struct place) };
struct move_args { const char *node; const struct place *to; bool force; };
static const struct ctl_arg move_rows[] = {
    { "node-name", CTL_STR, true, CTL_AT(struct move_args, node) },
    { "iothread", CTL_ALT, true, CTL_AT(struct move_args, to), .of = &place_shape, .doc = "Id of an iothread object; null: no thread in particular." },
    { "force", CTL_BOOL, false, CTL_AT(struct move_args, force), .doc = "Not needed: a node takes requests of all threads." },
    CTL_ARGS_END
};

static int run_move(struct co *co, struct ctl_call *call)
{
    const struct move_args *a = call->args;
    struct graph_node *n = graph_find(call->c->env.graph, a->node);
    struct iothread *io = a->to->name ? ctl_iothread(call->c, a->to->name) : NULL;
    if (!n)
        return byre_fail(&call->err, NOT_FOUND, "Failed to find node with node-name='%s'", a->node);
    if (a->to->name && !io)
        return byre_fail(&call->err, NOT_FOUND, "Cannot find iothread %s", a->to->name);
    return call->c->env.exports ? exports_node_iothread(call->c->env.exports, n, io, &call->err) : 0;
}

const struct ctl_command ctl_cmd_query_iothreads = { "query-iothreads", NULL, 0, run_query, .ret = &ret_iothreads,
    .doc = "Lists the iothread objects, and the threads that they are." };
const struct ctl_command ctl_cmd_set_iothread = { "x-blockdev-set-iothread", move_rows, sizeof(struct move_args), run_move,
    .doc = "Lets clients of a node's exports that come from now on be served by another thread. Who is connected stays where it is; exports with fixed-iothread do, too, and then it is refused." };
