/* SPDX-License-Identifier: MIT
 *
 * blockdev_reopen.c: other options for nodes that are open (FEATURES 1.133, 11.005, 11.006).
 *
 * Purpose     A list of nodes with their new options, as blockdev-add takes them: all of it, or nothing.
 * Owns        The new struct node_how of each node until it is the node's.
 * Invariants  O1  What is left out goes back to its default; what lies below an image must be said.
 *             O2  Nobody's request goes by a state between the old and the new one: all nodes are still meanwhile, and so is what lies over them as
 *                 over its file. (A guest that wrote into an image whose backing node is taken away for a moment would get its neighbouring
 *                 bytes from nowhere.)
 *             O3  A file or a format never becomes another one.
 * Order       Files are opened for writing before the images over them, and for reading after them. mode.c has the rest.
 * Concurrency Home loop; suspends.
 * Failure     What was changed is changed back, the last one first. When that fails, too, it is told (graph_opts.warn).
 * Tests       tests/daemon/reopen_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/mode.h"
#include "graph/throttle.h"

/* One node of the list. */
struct step {
    struct graph_node *n;
    struct node_mode to, from;
    struct node_how *how;                /* of `to`, while it is not the node's */
    bool switches, switched, locks_held;
    bool auto_read_only, was_auto, was_for_writer;
    bool moves, moved;                   /* the edge to what lies below */
    struct graph_node *below, *was;
    struct throttle_group *group, *old_group;      /* NULL: it stays. Held: meanwhile they may have no other members */
};

struct reopening {
    struct graph *g;
    struct step *steps;
    size_t count;
    struct node_set still;
    struct byre_err *err;
};

static const char *str_of(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_string(v) ? json_string_value(v) : NULL;
}

static const char *driver_of(const struct graph_node *n)
{
    return n->flt ? n->flt->name : n->how && n->how->ref.nbd && n->is_file ? "nbd" : n->is_file ? "file" : n->im->ops->name;
}

static bool is_driver(const struct graph_node *n, const char *driver)
{
    bool file = n->is_file && n->how && !n->how->ref.nbd;
    if (n->is_file && !n->how)
        return blockdev_is_null(driver);
    return !strcmp(driver, driver_of(n)) || (file && !strcmp(driver, "host_device"));
}

/* ---- what is asked for ---- */

/* The options of a bare file that is a node, once more, as they are in the node over it: no other ones. */
static int take_nested_file(struct reopening *ro, const struct graph_node *n, json_t *o)
{
    const json_t *v = json_object_get(o, "file");
    const char *filename = str_of(v, "filename"), *name = str_of(v, "node-name"), *driver = str_of(v, "driver");
    size_t known = (filename != NULL) + (name != NULL) + (driver != NULL);
    if (name && strcmp(name, n->file->name))
        return byre_fail(ro->err, BAD_OPTION, "Cannot change the option 'node-name' of node '%s'", n->file->name);
    if (filename && strcmp(filename, n->file->filename))
        return byre_fail(ro->err, BAD_OPTION, "Cannot change the option 'filename' of node '%s'", n->file->name);
    if (!filename || json_object_size(v) != known)
        return byre_fail(ro->err, NOT_SUPPORTED, "node '%s': its file is the node '%s', whose options are changed by an entry of its own", n->name, n->file->name);
    return json_object_set_new(o, "file", json_string(n->file->name)) ? byre_fail(ro->err, NOMEM, "no memory for a node") : 0;
}

/* "file": the node's own, by name or once more with its options. Leaves an object or the name of a bare file in o. */
static int take_file(struct reopening *ro, const struct graph_node *n, json_t *o)
{
    const json_t *v = json_object_get(o, "file");
    const char *name = json_string_value(v);
    char made[GRAPH_NAME_MAX + 8];
    snprintf(made, sizeof made, "%s-file", n->name);
    if (n->is_file || (json_is_object(v) && !n->file))
        return 0;
    if (json_is_object(v))
        return take_nested_file(ro, n, o);
    if (!name)
        return byre_fail(ro->err, BAD_OPTION, "node '%s': 'file' is missing: the name of a node, or options of one", n->name);
    const char *own = n->file ? n->file->name : n->file_name[0] ? n->file_name : made;
    if (strcmp(name, own))
        return graph_find(ro->g, name) ? byre_fail(ro->err, NOT_SUPPORTED, "node '%s': its file is '%s', and cannot become '%s'", n->name, own, name)
                                       : byre_fail(ro->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
    if (n->file)
        return 0;
    if (n->how->ref.nbd)
        return byre_fail(ro->err, NOT_SUPPORTED, "node '%s': its file is a disk of an NBD server: give its options in 'file'", n->name);
    json_t *file = json_pack("{s:s,s:s}", "driver", "file", "filename", n->how->ref.path);
    return !file || json_object_set_new(o, "file", file) ? byre_fail(ro->err, NOMEM, "no memory for a node") : 0;
}

/* "data-file", or "header": likewise, but it may be left out: it stays what it is. */
static int take_data(struct reopening *ro, const struct graph_node *n, json_t *o)
{
    const char *key = n->has_header ? "header" : "data-file", *other = n->has_header ? "data-file" : "header";
    if (json_object_get(o, other))
        return byre_fail(ro->err, BAD_OPTION, "node '%s' has no '%s'", n->name, other);
    json_t *v = json_object_get(o, key);
    const char *own = n->data_node ? n->data_node->name : n->data_name, *name = json_is_object(v) ? str_of(v, "node-name") : json_string_value(v);
    const char *filename = str_of(v, "filename");
    if (!v || (json_is_object(v) && !n->data_node))
        return 0;
    if (!(name && !strcmp(name, own)) && !(!name && filename && !strcmp(filename, n->data_node->filename)))
        return byre_fail(ro->err, BAD_OPTION, "node '%s': its '%s' is '%s', and cannot become another one", n->name, key, own);
    if (json_is_object(v) && json_object_size(v) != (size_t)(name != NULL) + (filename != NULL) + (str_of(v, "driver") != NULL))
        return byre_fail(ro->err, NOT_SUPPORTED, "node '%s': its '%s' is the node '%s', whose options are changed by an entry of its own", n->name, key, own);
    if (!n->data_node)
        return json_object_del(o, key);
    return json_object_set_new(o, key, json_string(own)) ? byre_fail(ro->err, NOMEM, "no memory for a node") : 0;
}

/* What lies below an image is taken out of its options. */
static int take_backing(struct reopening *ro, struct step *st, json_t *o)
{
    const json_t *v = json_object_get(o, "backing");
    struct graph_node *n = st->n, *at = n->backing;
    if (!v)
        return at ? byre_fail(ro->err, BAD_OPTION, "backing is missing for '%s'", n->name) : 0;
    if (json_is_object(v))
        return byre_fail(ro->err, NOT_SUPPORTED, "node '%s': 'backing' names a node, or is null; the node below is changed by an entry of its own", n->name);
    if (!json_is_null(v) && !json_is_string(v))
        return byre_fail(ro->err, BAD_OPTION, "node '%s': 'backing' names a node, or is null", n->name);
    struct graph_node *to = json_is_null(v) ? NULL : graph_find(ro->g, json_string_value(v));
    if (!to && !json_is_null(v))
        return byre_fail(ro->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", json_string_value(v));
    json_object_del(o, "backing");
    if (to == graph_skip_implicit(at) || to == at)
        return 0;
    if (to && (!n->im->ops->make_empty || n->im->data_raw))
        return byre_fail(ro->err, BAD_OPTION, "%s: '%s' images like this one have no 'backing'", n->filename, n->im->ops->name);
    st->moves = true;
    st->below = to;
    st->was = at;
    if (to)
        graph_ref(to);
    if (at)
        graph_ref(at);
    return 0;
}

static int cannot_change(struct reopening *ro, const struct graph_node *n, const char *option)
{
    return byre_fail(ro->err, BAD_OPTION, "Cannot change the option '%s' of node '%s'", option, n->name);
}

static bool differs(const char *a, const char *b) { return a && b ? strcmp(a, b) != 0 : a != b; }

/* O3 */
static int check_ref(struct reopening *ro, const struct graph_node *n, const struct name_ref *ref)
{
    const struct name_ref *old = &n->how->ref;
    const struct fmt_window *w = &ref->node.window, *v = &old->node.window;
    if (!n->file && (differs(ref->path, old->path) || !ref->nbd != !old->nbd))
        return cannot_change(ro, n, "filename");
    if (ref->node.file_name && strcmp(ref->node.file_name, n->file_name))
        return cannot_change(ro, n, "file.node-name");
    if ((ref->force_share == NAME_YES) != n->force_share)
        return cannot_change(ro, n, "force-share");
    if ((ref->locking == NAME_NO) != n->no_lock && !n->file)
        return cannot_change(ro, n, "locking");
    if (w->on != v->on || w->off != v->off || w->fixed != v->fixed || w->size != v->size)
        return cannot_change(ro, n, w->fixed || v->fixed ? "size" : "offset");
    if (ref->crypt[0].key_secret && differs(ref->crypt[0].key_secret, n->key_secret))
        return cannot_change(ro, n, "key-secret");
    return 0;
}

static int make_how(struct reopening *ro, struct step *st, struct name_ref *ref)
{
    const struct node_how *old = st->n->how;
    const char *format = ref->crypt[0].format ? ref->crypt[0].format : old->encrypt_format;
    struct node_how *how = calloc(1, sizeof *how);
    if (!how || (format && !(how->encrypt_format = strdup(format)))) {
        free(how);
        return byre_fail(ro->err, NOMEM, "no memory for a node");
    }
    const bool keeps = !ref->data_path && !ref->data_ref;
    if ((keeps && old->ref.data_path && !(ref->data_path = strdup(old->ref.data_path))) || (keeps && old->ref.data_ref && !(ref->data_ref = strdup(old->ref.data_ref)))) {
        node_how_free(how);
        return byre_fail(ro->err, NOMEM, "no memory for a node");
    }
    ref->has_header = old->ref.has_header;
    how->direct = ref->direct == NAME_YES;
    how->no_flush = ref->no_flush == NAME_YES;
    how->ref = *ref;
    *ref = (struct name_ref){ 0 };
    st->how = how;
    return 0;
}

/* Options of an image, or of a bare file, by the words in which they were given at first. */
static int take_image(struct reopening *ro, struct step *st, json_t *o)
{
    struct graph_node *n = st->n;
    struct name_ref ref = { 0 };
    if (!n->how)
        return byre_fail(ro->err, NOT_SUPPORTED, "node '%s' has no options that could change", n->name);
    if (n->inactive)
        return active_need(n, "get other options", ro->err);
    bool by_name = json_is_string(json_object_get(o, "file"));
    int r = n->is_file ? 0 : take_backing(ro, st, o);
    if (!r)
        r = take_file(ro, n, o);
    if (!r)
        r = take_data(ro, n, o);
    char *text = r ? NULL : json_dumps(o, JSON_COMPACT), *name = NULL;
    if (!r && (!text || asprintf(&name, "json:%s", text) < 0))
        r = byre_fail(ro->err, NOMEM, "no memory for a node");
    if (!r)
        r = name_parse(GRAPH_ECOSYSTEM, name, NULL, &ref, ro->err);
    free(text);
    free(name);
    if (!r && by_name && !n->file) {             /* the file's own options stay */
        ref.locking = n->how->ref.locking;
        ref.node.native_aio = n->how->ref.node.native_aio;
        const char *manager = ref.node.pr_manager ? NULL : n->how->ref.node.pr_manager;
        if (manager && !(ref.node.pr_manager = strdup(manager)))
            r = byre_fail(ro->err, NOMEM, "no memory for a node");
    }
    if (!r)
        r = check_ref(ro, n, &ref);
    if (!r && ref.active == NAME_NO)
        r = byre_fail(ro->err, BAD_OPTION, "node '%s' becomes inactive by blockdev-set-active", n->name);
    st->to = mode_of(n);
    st->to.read_only = ref.read_only == NAME_YES;
    st->to.discard = ref.discard == NAME_YES;
    st->to.detect = ref.node.detect;
    st->auto_read_only = json_is_true(json_object_get(o, "auto-read-only"));
    if (st->auto_read_only && n->is_file && n->read_only && n->auto_read_only)
        st->to.read_only = true;                 /* as before: nobody writes */
    if (!r && st->to.detect == GRAPH_DETECT_UNMAP && !st->to.discard)
        r = byre_fail(ro->err, BAD_OPTION, "node '%s': detect-zeroes=unmap needs discard=unmap", n->name);
    st->switches = true;
    if (!r)
        r = make_how(ro, st, &ref);
    st->to.how = st->how;
    name_ref_fini(&ref);
    return r;
}

static int take_throttle(struct reopening *ro, struct step *st, json_t *o)
{
    const char *file = str_of(o, "file"), *group = str_of(o, "throttle-group");
    struct graph_node *n = st->n, *to = file ? graph_find(ro->g, file) : NULL;
    if (json_is_object(json_object_get(o, "file")))
        return byre_fail(ro->err, NOT_SUPPORTED, "node '%s': 'file' names a node, which is changed by an entry of its own", n->name);
    if (!to)
        return byre_fail(ro->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", file ? file : "");
    if (!group)
        return byre_fail(ro->err, BAD_OPTION, "driver 'throttle' needs 'throttle-group'");
    st->group = throttle_group_find(ro->g, group);
    if (!st->group)
        return byre_fail(ro->err, NOT_FOUND, "Throttle group '%s' does not exist", group);
    st->old_group = throttle_of(n);
    throttle_group_hold(st->group);
    throttle_group_hold(st->old_group);
    st->moves = to != n->backing;
    st->below = to;
    st->was = n->backing;
    graph_ref(to);
    if (st->was)
        graph_ref(st->was);
    return 0;
}

static int take_null(struct reopening *ro, struct step *st, json_t *o)
{
    uint64_t size = UINT64_C(1) << 30;
    const json_t *v = json_object_get(o, "size");
    int r = v ? name_take_size("size", v, &size, ro->err) : 0;
    if (!r && size != graph_length(st->n))
        r = cannot_change(ro, st->n, "size");
    return r ? r : json_is_true(json_object_get(o, "read-only")) != st->n->read_only ? cannot_change(ro, st->n, "read-only") : 0;
}

static int take_one(struct reopening *ro, struct step *st, json_t *o)
{
    const char *name = str_of(o, "node-name"), *driver = str_of(o, "driver");
    if (!name)
        return byre_fail(ro->err, BAD_OPTION, "node-name not specified");
    if (!driver)
        return byre_fail(ro->err, BAD_OPTION, "Parameter 'driver' is missing");
    struct graph_node *n = graph_find(ro->g, name);
    if (!n)
        return byre_fail(ro->err, NOT_FOUND, "Failed to find node with node-name='%s'", name);
    graph_ref(n);
    st->n = n;
    if (!is_driver(n, driver))
        return cannot_change(ro, n, "driver");
    if (throttle_of(n))
        return take_throttle(ro, st, o);
    if (n->flt)
        return byre_fail(ro->err, NOT_SUPPORTED, "Block format '%s' used by node '%s' does not support reopening files", driver, name);
    return n->is_file && !n->how ? take_null(ro, st, o) : take_image(ro, st, o);
}

/* ---- doing it ---- */

/* Who must not find another image under his feet. */
static int check_users(struct reopening *ro, const struct graph_node *n, const struct node_mode *to)
{
    if (n->frozen)
        return byre_fail(ro->err, BUSY, "node '%s': a job works at it", n->name);
    for (const struct graph_user *u = n->users; u; u = u->next) {
        if (to->read_only && u->perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE))
            return byre_fail(ro->err, PERMISSION, "Read-only block node '%s' cannot support read-write users: '%s' writes", n->name, u->who);
        if (u->perm & STOR_PERM_WRITE_UNCHANGED)
            return byre_fail(ro->err, BUSY, "node '%s': '%s' works at it", n->name, u->who);
    }
    return 0;
}

/* The images over a file get another image as well (mode_follow_file). */
static int check_step(struct reopening *ro, const struct step *st, const struct node_mode *to)
{
    struct graph_node *n = st->n;
    int r = check_users(ro, n, to);
    if (!r)
        r = mode_check(n, to, ro->err);
    for (struct graph_node *m = node_next(ro->g, NULL); m && n->is_file && !r; m = node_next(ro->g, m)) {
        const struct node_mode same = mode_of(m);
        if (m->file != n || !mode_is_open(m))
            continue;
        r = check_users(ro, m, &same);
        if (!r)
            r = mode_check(m, &same, ro->err);
    }
    return r;
}

static int switch_to(struct co *co, struct reopening *ro, struct step *st)
{
    struct node_mode to = st->to;
    int r = check_step(ro, st, &to);
    st->from = mode_of(st->n);
    st->was_auto = st->n->auto_read_only;
    st->was_for_writer = st->n->for_writer;
    if (!r && !to.read_only)
        r = mode_files_writer_comes(co, st->n, ro->err);
    if (!r && st->n->is_file)
        mode_look_at_sharers(co, st->n);
    if (!r)
        r = mode_switch(co, st->n, &to, ro->err);
    if ((r == -EACCES || r == -EROFS) && st->auto_read_only && !to.read_only && !mode_writer(st->n)) {
        to.read_only = true;
        to.discard = false;
        r = mode_switch(co, st->n, &to, ro->err);
    }
    st->switched = st->n->how == to.how;         /* when it failed at the very end, too */
    if (st->switched) {
        st->n->auto_read_only = st->auto_read_only && !st->n->how->ref.nbd;
        st->n->for_writer = false;
        st->how = st->from.how;                  /* freed at the end, or taken back */
    }
    return !r && st->n->is_file ? mode_follow_file(co, st->n, ro->err) : r;
}

/* Another image below n may show the disk another content, which no request has written: who keeps a snapshot of it, or copies it, sees nothing of
 * that, and what he makes would be of two disks. */
static int check_content(struct graph_node *n, struct graph_node *to, struct byre_err *err)
{
    if (graph_skip_filters(to) == graph_skip_filters(n->backing))
        return 0;
    const struct graph_node *keeps = node_snapshot_keeper(n);
    if (keeps)
        return byre_fail(err, PERMISSION, "node '%s': node '%s' keeps a snapshot of its disk, or in it, and nothing else can come to lie below it meanwhile", n->name,
                         keeps->name);
    for (struct graph_node *m = node_next(n->g, NULL); m; m = node_next(n->g, m)) {
        int r = chain_has(m, n) ? watches_allow(m, "change below it", err) : 0;
        if (r)
            return r;
    }
    return 0;
}

static int move_to(struct co *co, struct graph_node *n, struct graph_node *to, struct byre_err *err)
{
    if (n->flt)
        return graph_set_filtered(co, n, to, err);
    int r = check_content(n, to, err);
    if (!r)
        r = graph_set_backing(co, n, to, err);
    if (!r && to)
        n->im->has_backing = true;
    return r;
}

static int do_step(struct co *co, struct reopening *ro, struct step *st)
{
    int r = st->moves ? move_to(co, st->n, st->below, ro->err) : 0;
    st->moved = st->moves && !r;
    if (!r && st->group)
        throttle_node_move(st->n, st->group);
    return r || !st->switches ? r : switch_to(co, ro, st);
}

static void undo_step(struct co *co, struct step *st)
{
    struct byre_err why = { 0 };
    if (st->switched) {
        struct node_how *new = st->n->how;
        if (st->n->is_file)
            mode_look_at_sharers(co, st->n);
        if (mode_switch(co, st->n, &st->from, &why) || (st->n->is_file && mode_follow_file(co, st->n, &why)))
            graph_warn(st->n, "%s: could not get its old options back: %s", st->n->filename, why.text);
        if (st->n->how == st->from.how)
            st->how = new;
        st->n->auto_read_only = st->was_auto;
        st->n->for_writer = st->was_for_writer && !st->n->read_only;
    }
    if (st->old_group)
        throttle_node_move(st->n, st->old_group);
    if (st->moved && move_to(co, st->n, st->was, &why))
        graph_warn(st->n, "%s: what lay below it could not be put back: %s", st->n->filename, why.text);
}

/* Images for reading, files for reading, files for writing, images for writing; edges with the last. */
static unsigned turn_of(const struct step *st)
{
    bool down = st->switches && st->to.read_only;
    return st->n->is_file ? (down ? 1 : 2) : (down ? 0 : 3);
}

static int do_all(struct co *co, struct reopening *ro)
{
    struct step **done = calloc(ro->count + 1, sizeof *done);
    size_t n = 0;
    int r = done ? 0 : byre_fail(ro->err, NOMEM, "no memory for a list of nodes");
    for (unsigned turn = 0; turn < 4; turn++)
        for (size_t i = 0; i < ro->count && !r; i++)
            if (turn_of(&ro->steps[i]) == turn) {
                done[n++] = &ro->steps[i];
                r = do_step(co, ro, &ro->steps[i]);
            }
    while (r && n)
        undo_step(co, done[--n]);
    free(done);
    return r;
}

/* O2: also what shares a file's store. */
static bool touches(const void *arg, const struct graph_node *m)
{
    const struct reopening *ro = arg;
    for (size_t i = 0; i < ro->count; i++)
        if (m == ro->steps[i].n || m->file == ro->steps[i].n)
            return true;
    return false;
}

/* What is changed back when a later node fails finds the locks that it had. */
static void hold_locks(struct reopening *ro)
{
    for (size_t i = 0; i < ro->count; i++)
        if (ro->steps[i].switches) {
            mode_locks_hold(ro->steps[i].n);
            ro->steps[i].locks_held = true;
        }
}

static void let_locks(struct co *co, struct reopening *ro)
{
    for (size_t i = 0; i < ro->count; i++)
        if (ro->steps[i].locks_held)
            mode_locks_let(co, ro->steps[i].n);
    for (size_t i = 0; i < ro->count; i++)
        mode_files_writer_gone(co, ro->steps[i].n);    /* the image over them may only be read now */
}

static void reopening_end(struct co *co, struct reopening *ro)
{
    for (size_t i = 0; i < ro->count; i++) {
        struct step *st = &ro->steps[i];
        struct graph_node *all[] = { st->below, st->was, st->n };
        node_how_free(st->how);
        if (st->group) {
            throttle_group_let(st->group);
            throttle_group_let(st->old_group);
        }
        for (unsigned k = 0; k < 3; k++)
            if (all[k])
                (void)node_unref(co, all[k]);    /* somebody else has it, or had it and has gone: then there is nobody to tell */
    }
    free(ro->steps);
}

static bool is_twice(const struct reopening *ro, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (ro->steps[k].n == ro->steps[i].n)
            return true;
    return false;
}

int graph_blockdev_reopen(struct co *co, struct graph *g, const json_t *list, struct byre_err *err)
{
    ASSERT_LOOP(g->home);
    struct reopening ro = { .g = g, .count = json_array_size(list), .err = err };
    co_lock(co, &g->options_mx);
    ro.steps = calloc(ro.count + 1, sizeof *ro.steps);
    int r = ro.steps ? 0 : byre_fail(err, NOMEM, "no memory for a list of nodes");
    ro.count = r ? 0 : ro.count;
    graph_edges_hold(co, g);                     /* before any drain (runtime.c, V2); what is looked up stays so */
    for (size_t i = 0; i < ro.count && !r; i++) {
        json_t *o = json_deep_copy(json_array_get(list, i));
        r = o ? take_one(&ro, &ro.steps[i], o) : byre_fail(err, NOMEM, "no memory for a list of nodes");
        json_decref(o);
        if (!r && is_twice(&ro, i))
            r = byre_fail(err, BAD_ARGUMENT, "node '%s' is in the list twice", ro.steps[i].n->name);
    }
    if (!r)
        r = node_set_begin(co, g, touches, &ro, true, &ro.still, err);
    if (!r) {
        hold_locks(&ro);
        r = do_all(co, &ro);
        let_locks(co, &ro);
    }
    node_set_end(co, &ro.still);
    graph_edges_let(co, g);
    reopening_end(co, &ro);
    co_unlock(&g->options_mx);
    return r;
}
