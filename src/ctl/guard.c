/* SPDX-License-Identifier: MIT
 *
 * guard.c: commands do not change an image under another one that depends on it.
 *
 * Purpose      Asks src/tree before a commit or a shrink, and knows the files that commits of this process have made superfluous.
 * Owns         struct ctl.left: what was in a chain until a commit took it out, while its file still lies there and names the base.
 * Invariants   L1 a file is left out only if it is the very one (device, inode and time of birth) that a commit which has succeeded has taken out.
 *              L2 no pointer to a node is used after a suspension: names are copied first.
 * Concurrency  home loop; files are looked at by the pool of blocking calls
 * Failure      as ctl_priv.h. An image that cannot be remembered is in the way next time, by name
 * Tests        tests/cli/tree_test.py
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "ctl/guard.h"
#include "graph/runtime.h"

struct ctl_left {
    struct list_node link;
    char *job;                               /* the commit that takes it out; NULL: has done it */
    uint64_t dev, ino;
    int64_t born_sec;
    uint32_t born_nsec;
};

/* Device, inode and birth of a file; false: not known. */
static bool identify(const char *path, struct ctl_left *ret)
{
    struct statx sx;
    if (statx(AT_FDCWD, path, 0, STATX_INO | STATX_BTIME, &sx) || !(sx.stx_mask & STATX_BTIME))
        return false;
    ret->dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
    ret->ino = sx.stx_ino;
    ret->born_sec = sx.stx_btime.tv_sec;
    ret->born_nsec = sx.stx_btime.tv_nsec;
    return true;
}

static bool same(const struct ctl_left *a, const struct ctl_left *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->born_sec == b->born_sec && a->born_nsec == b->born_nsec;
}

void ctl_guard_free(struct ctl *c)
{
    LIST_FOR(at, &c->left) {
        struct ctl_left *l = CONTAINER_OF(at, struct ctl_left, link);
        list_remove(at);
        free(l->job);
        free(l);
    }
}

/* ---- asking ---- */

struct asking {
    const struct tree_opts *opts;
    char **names;                            /* owned */
    size_t count, first, targets;            /* names[first .. first + targets) are about to change */
    struct ctl_left *left; size_t left_count;    /* a copy for the thread that asks */
    struct ctl_left *found;                  /* per name, when ids are wanted */
    struct byre_err err;
};

static void asking_fini(struct asking *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->names[i]);
    free(a->names);
    free(a->left);
    free(a->found);
}

static bool is_left(void *arg, uint64_t dev, uint64_t ino, const char *path)
{
    const struct asking *a = arg;
    struct ctl_left id;
    bool known = false;
    for (size_t i = 0; i < a->left_count; i++)
        known |= a->left[i].ino == ino && a->left[i].dev == dev;
    if (!known || !identify(path, &id))
        return false;
    for (size_t i = 0; i < a->left_count; i++)
        if (same(&a->left[i], &id))
            return true;
    return false;
}

static int64_t ask_now(void *arg)
{
    struct asking *a = arg;
    const char *const *names = (const char *const *)a->names;
    const struct tree_guard g = { .opts = a->opts, .files = names + a->first, .file_count = a->targets, .except = names, .except_count = a->count,
                                  .ignore = is_left, .arg = a };
    return tree_guard_check(&g, &a->err);
}

static int copy_left(const struct ctl *c, struct asking *a)
{
    size_t n = 0;
    LIST_FOR(at, &c->left)
        n++;
    a->left = calloc(n + 1, sizeof *a->left);
    if (!a->left)
        return -ENOMEM;
    LIST_FOR(at, &c->left) {
        const struct ctl_left *l = CONTAINER_OF(at, struct ctl_left, link);
        if (!l->job)
            a->left[a->left_count++] = *l;
    }
    return 0;
}

/* The chain from the disk down. Those from `from` (NULL: none) down to `last` are about to change. */
static int copy_names(struct graph_node *disk, const struct graph_node *from, const struct graph_node *last, struct asking *a)
{
    size_t n = 0;
    bool inside = false;
    for (struct graph_node *m = graph_skip_filters(disk); m; m = graph_skip_filters(graph_backing(m)))
        n++;
    a->names = calloc(n + 1, sizeof *a->names);
    if (!a->names)
        return -ENOMEM;
    for (struct graph_node *m = graph_skip_filters(disk); m; m = graph_skip_filters(graph_backing(m))) {
        if (m == from) {
            inside = true;
            a->first = a->count;
        }
        a->targets += inside;
        inside &= m != last;
        a->names[a->count] = strdup(graph_filename(m));
        if (!a->names[a->count++])
            return -ENOMEM;
    }
    return 0;
}

static int no_memory(struct ctl_call *call)
{
    return byre_fail(&call->err, NOMEM, "no memory to look for images that depend on this one");
}

int ctl_guard(struct co *co, struct ctl_call *call, const struct ctl_guard *g)
{
    struct ctl *c = call->c;
    struct asking a = { .opts = c->env.tree };
    if (!c->env.tree || g->force)
        return 0;
    int64_t r = copy_names(g->disk, graph_skip_filters(g->from), graph_skip_filters(g->last), &a) || copy_left(c, &a) ? -ENOMEM : 0;
    if (!r && a.targets)
        r = rt_blocking(co, ask_now, &a);
    if (r && !a.err.code)
        r = no_memory(call);
    else if (r && c->env.guard_warning)
        c->env.guard_warning(c->env.arg, a.err.text);
    else if (r)
        call->err = a.err;
    bool warned = r && a.err.code && c->env.guard_warning;
    asking_fini(&a);
    return warned ? 0 : (int)r;
}

/* ---- what a commit leaves ---- */

static int64_t identify_now(void *arg)
{
    struct asking *a = arg;
    for (size_t i = 0; i < a->targets; i++)
        if (!identify(a->names[a->first + i], &a->found[i]))
            a->found[i].ino = 0;
    return 0;
}

void ctl_guard_committing(struct co *co, struct ctl *c, const struct ctl_guard *g, const char *job)
{
    struct asking a = { 0 };
    if (!c->env.tree || copy_names(g->disk, graph_skip_filters(g->from), graph_skip_filters(g->last), &a))
        goto out;                            /* next time they are in the way */
    a.found = calloc(a.targets + 1, sizeof *a.found);
    if (!a.found || rt_blocking(co, identify_now, &a))
        goto out;
    for (size_t i = 0; i + 1 < a.targets; i++) {         /* the last one is the base, which stays */
        struct ctl_left *l = a.found[i].ino ? malloc(sizeof *l) : NULL;
        if (!l)
            continue;
        *l = a.found[i];
        l->job = strdup(job);
        if (l->job)
            list_push_back(&c->left, &l->link);
        else
            free(l);
    }
out:
    asking_fini(&a);
}

void ctl_guard_not_started(struct ctl *c, const char *job)
{
    LIST_FOR(at, &c->left) {
        struct ctl_left *l = CONTAINER_OF(at, struct ctl_left, link);
        if (!l->job || strcmp(l->job, job))
            continue;
        list_remove(at);
        free(l->job);
        free(l);
    }
}

void ctl_guard_job_changed(struct ctl *c, const struct job *job)
{
    if (job->status != JOB_CONCLUDED)
        return;
    LIST_FOR(at, &c->left) {
        struct ctl_left *l = CONTAINER_OF(at, struct ctl_left, link);
        if (!l->job || strcmp(l->job, job->id))
            continue;
        free(l->job);
        l->job = NULL;
        if (job->result) {
            list_remove(at);
            free(l);
        }
    }
}
