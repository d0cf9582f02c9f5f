/* SPDX-License-Identifier: MIT
 *
 * cmd_qom.c: qom-get, qom-set, qom-list, and objects of the type throttle-group; of the types iothread and pr-manager-helper: cmd_iothread.c, cmd_pr.c (FEATURES 8.021, 9.094, 3.075).
 *
 * Purpose      Properties of objects, by their ids or paths. Groups of throttle nodes have some; other objects show that they are there alone.
 * Owns         nothing: groups are the graph's
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h; a group whose limits will not do stays as it was
 * Tests        tests/cli/stats_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "ctl/qom.h"
#include "export/exports.h"
#include "graph/pr.h"
#include "graph/throttle.h"

#define OBJECTS "/objects"

/* ---- throttle groups ---- */

int ctl_throttle_add(struct ctl_call *call)
{
    struct throttle_limits l = { 0 };
    struct throttle_group *t;
    int r = throttle_members(call->arguments, &l, &call->err);
    if (!r)
        r = throttle_group_new(call->c->env.graph, json_string_value(json_object_get(call->arguments, "id")), &l, &t, &call->err);
    if (!r)
        throttle_group_keep(t);
    return r;
}

struct throttle_group *ctl_throttle(const struct ctl *c, const char *id)
{
    return c->env.graph ? throttle_group_find(c->env.graph, id) : NULL;
}

int ctl_throttle_del(struct ctl_call *call, const char *id)
{
    struct throttle_group *t = ctl_throttle(call->c, id);
    if (!t)
        return 1;
    if (throttle_group_in_use(t))
        return byre_fail(&call->err, PERMISSION, "object '%s' is in use, can not be deleted", id);
    return throttle_group_free(t, &call->err);
}

static json_t *limits_json(struct throttle_group *t)
{
    struct throttle_limits l;
    json_t *o = json_object();
    uint64_t v;
    const char *name;
    throttle_group_get(t, &l);
    for (unsigned i = 0; o && (name = throttle_nth(&l, i, &v)); i++)
        if (json_object_set_new(o, name, json_integer((json_int_t)v))) {
            json_decref(o);
            return NULL;
        }
    return o;
}

/* ---- paths ---- */

/* The id in "/objects/ID" or "ID". */
static const char *id_of(const char *path)
{
    size_t n = strlen(OBJECTS "/");
    return !strncmp(path, OBJECTS "/", n) ? path + n : path;
}

static int not_found(struct ctl_call *call, const char *path)
{
    call->error_class = "DeviceNotFound";
    return byre_fail(&call->err, NOT_FOUND, "Device '%s' not found", path);
}

struct get_args { const char *path, *property; json_t *value; };
static const struct ctl_arg get_rows[] = {
    { "path", CTL_STR, true, CTL_AT(struct get_args, path), .doc = "The id of the object, or /objects/ID." },
    { "property", CTL_STR, true, CTL_AT(struct get_args, property) },
    CTL_ARGS_END
};
static const struct ctl_arg set_rows[] = {
    { "path", CTL_STR, true, CTL_AT(struct get_args, path), .doc = "The id of the object, or /objects/ID." },
    { "property", CTL_STR, true, CTL_AT(struct get_args, property), .doc = "limits; a number of an iothread." },
    { "value", CTL_ANY, true, CTL_AT(struct get_args, value), .doc = "Limits that are not among its members stay." },
    CTL_ARGS_END
};

static int no_property(struct ctl_call *call, const char *property)
{
    return byre_fail(&call->err, NOT_FOUND, "Property 'throttle-group.%s' not found", property);
}

static int run_get(struct co *co, struct ctl_call *call)
{
    const struct get_args *a = call->args;
    struct throttle_group *t = ctl_throttle(call->c, id_of(a->path));
    struct iothread *io = ctl_iothread(call->c, id_of(a->path));
    struct pr_manager *m = ctl_pr(call->c, id_of(a->path));
    if (io)
        return ctl_iothread_get(call, io, a->property);
    if (m)
        return ctl_pr_get(call, m, a->property);
    if (!t)
        return not_found(call, a->path);
    json_t *all = limits_json(t), *one = NULL;
    if (!strcmp(a->property, "limits"))
        call->ret = json_incref(all);
    else if (!strcmp(a->property, "type"))
        call->ret = json_string("throttle-group");
    else if (all && !strncmp(a->property, "x-", 2) && (one = json_object_get(all, a->property + 2)))
        call->ret = json_incref(one);
    else if (all) {
        json_decref(all);
        return no_property(call, a->property);
    }
    json_decref(all);
    return call->ret ? 0 : ctl_no_memory(call);
}

static int run_set(struct co *co, struct ctl_call *call)
{
    const struct get_args *a = call->args;
    struct throttle_group *t = ctl_throttle(call->c, id_of(a->path));
    struct iothread *io = ctl_iothread(call->c, id_of(a->path));
    struct throttle_limits l;
    uint64_t v;
    if (io)
        return ctl_iothread_set(call, io, a->property, a->value);
    if (ctl_pr(call->c, id_of(a->path)))
        return byre_fail(&call->err, PERMISSION, "Property 'pr-manager-helper.%s' cannot be set after initialization", a->property);
    if (!t)
        return not_found(call, a->path);
    throttle_group_get(t, &l);
    if (strcmp(a->property, "limits")) {
        const char *name = NULL;
        for (unsigned i = 0; (name = throttle_nth(&l, i, &v)); i++)
            if (!strncmp(a->property, "x-", 2) && !strcmp(a->property + 2, name))
                return byre_fail(&call->err, PERMISSION, "Property cannot be set after initialization: set 'limits'");
        return no_property(call, a->property);
    }
    if (!json_is_object(a->value))
        return byre_fail(&call->err, BAD_ARGUMENT, "'limits' must be an object");
    int r = throttle_limits_take(a->value, &l, &call->err);
    if (!r)
        throttle_group_set(t, &l);
    return r;
}

/* ---- qom-list ---- */

struct list_args { const char *path; };
static const struct ctl_arg list_rows[] = { { "path", CTL_STR, true, CTL_AT(struct list_args, path), .doc = "/objects, or one of them." }, CTL_ARGS_END };
static const struct ctl_arg property_rows[] = { { "name", CTL_STR, true, CTL_AT_NONE }, { "type", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape property_shape = { .name = "ObjectPropertyInfo", .rows = property_rows };
static const struct ctl_arg ret_properties = { "properties", CTL_STRUCT, true, CTL_AT_NONE, .of = &property_shape, .list = true };

static int add_property(struct ctl_call *call, const char *prefix, const char *name, const char *type)
{
    char key[64];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    return json_array_append_new(call->ret, json_pack("{s:s,s:s}", "name", prefix[0] ? key : name, "type", type)) ? ctl_no_memory(call) : 0;
}

static int list_group(struct ctl_call *call)
{
    const struct throttle_limits none = { 0 };
    const char *name;
    uint64_t v;
    int r = add_property(call, "", "limits", "ThrottleLimits");
    for (unsigned i = 0; !r && (name = throttle_nth(&none, i, &v)); i++)
        r = add_property(call, "x-", name, "int");
    return r;
}

static int run_list(struct co *co, struct ctl_call *call)
{
    const struct list_args *a = call->args;
    bool all = !strcmp(a->path, OBJECTS);
    struct throttle_group *t = all ? NULL : ctl_throttle(call->c, id_of(a->path));
    struct iothread *io = all ? NULL : ctl_iothread(call->c, id_of(a->path));
    bool manager = !all && ctl_pr(call->c, id_of(a->path));
    if (!all && !t && !io && !manager)
        return not_found(call, a->path);
    call->ret = json_array();
    int r = call->ret ? add_property(call, "", "type", "string") : ctl_no_memory(call);
    if (!r && t)
        return list_group(call);
    if (!r && manager)
        return add_property(call, "", "path", "string");
    for (unsigned i = 0; !r && io && i < IOTHREAD_NUMBERS; i++)
        r = add_property(call, "", iothread_names[i], "int");
    struct iothreads *set = all && call->c->env.exports ? exports_iothreads(call->c->env.exports) : NULL;
    for (io = set ? iothread_next(set, NULL) : NULL; !r && io; io = iothread_next(set, io))
        r = add_property(call, "", io->id, "child<iothread>");
    const struct pr_set *prs = all ? graph_prs(call->c->env.graph) : NULL;
    for (const struct pr_manager *m = prs ? pr_next(prs, NULL) : NULL; !r && m; m = pr_next(prs, m))
        r = add_property(call, "", pr_id(m), "child<pr-manager-helper>");
    for (t = throttle_group_next(call->c->env.graph, NULL); !r && all && t; t = throttle_group_next(call->c->env.graph, t))
        r = add_property(call, "", throttle_group_name(t), "child<throttle-group>");
    return r;
}

const struct ctl_command ctl_cmd_qom_get = { "qom-get", get_rows, sizeof(struct get_args), run_get, .ret = &ctl_ret_any,
    .doc = "Tells a property of an object: of a throttle group its limits, of an iothread its numbers, of a manager of persistent reservations its path." };
const struct ctl_command ctl_cmd_qom_set = { "qom-set", set_rows, sizeof(struct get_args), run_set,
    .doc = "Changes a property of an object while it is in use: the limits of a throttle group, which hold at once; a number of an iothread, which changes nothing." };
const struct ctl_command ctl_cmd_qom_list = { "qom-list", list_rows, sizeof(struct list_args), run_list, .ret = &ret_properties,
    .doc = "Lists objects that have properties, or the properties of one." };
