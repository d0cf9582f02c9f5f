/* SPDX-License-Identifier: MIT
 *
 * guard.c: who else depends on these files?
 *
 * Purpose      Looks into the directories of the files, and into records; names the images that would read differently.
 * Owns         struct asking while a call runs.
 * Invariants   T3 of tree.h. G1 An image that is recorded and cannot be looked at counts: nobody knows that it does not depend. One that was
 *              found in a directory and cannot be looked at does not: nobody knows that it does.
 * Order        None: nothing is written.
 * Concurrency  Any thread that may block.
 * Failure      -EBUSY with DEPENDENTS; -ENOMEM; a directory or record that cannot be read, or a file whose place cannot be found, is an error too:
 *              the answer is not known.
 * Tests        tree_test.c, tests/cli/tree_test.py
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "tree/tree_priv.h"

#define NAMED_MAX 3

struct ids { struct file_id { uint64_t dev, ino; } *at; size_t count; };
struct asking {
    const struct tree_guard *g;
    struct ids files, except;
    struct file_id found[NAMED_MAX];
    char *names[NAMED_MAX];              /* owned */
    size_t hit[NAMED_MAX];               /* the file that each depends on */
    bool unsure[NAMED_MAX];
    uint64_t count;
};

static int take_ids(struct ids *ids, const char *const *files, size_t count)
{
    ids->at = calloc(count + 1, sizeof *ids->at);
    if (!ids->at)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct stat st;
        if (stat(files[i], &st))
            st = (struct stat){ 0 };             /* no file of this machine: nothing depends on an inode 0 */
        tree_id(&st, &ids->at[i].dev, &ids->at[i].ino);
    }
    ids->count = count;
    return 0;
}

/* Index; SIZE_MAX: it is not among them. */
static size_t index_of(const struct ids *ids, uint64_t dev, uint64_t ino)
{
    for (size_t i = 0; ino && i < ids->count; i++)
        if (ids->at[i].dev == dev && ids->at[i].ino == ino)
            return i;
    return SIZE_MAX;
}

static int count_in(struct asking *a, const char *path, struct file_id id, size_t hit, bool unsure)
{
    for (uint64_t i = 0; i < a->count && i < NAMED_MAX; i++)
        if (id.ino && a->found[i].dev == id.dev && a->found[i].ino == id.ino)
            return 0;
    if (a->count < NAMED_MAX) {
        a->names[a->count] = strdup(path);
        if (!a->names[a->count])
            return -ENOMEM;
        a->found[a->count] = id;
        a->hit[a->count] = hit;
        a->unsure[a->count] = unsure;
    }
    a->count++;
    return 0;
}

static int judge(struct asking *a, const struct tree_image *im)
{
    size_t hit = im->backing.has_id ? index_of(&a->files, im->backing.dev, im->backing.ino) : SIZE_MAX;
    if (hit == SIZE_MAX && im->data.has_id)
        hit = index_of(&a->files, im->data.dev, im->data.ino);
    if (hit == SIZE_MAX || index_of(&a->except, im->dev, im->ino) != SIZE_MAX)
        return 0;
    if (a->g->ignore && a->g->ignore(a->g->arg, im->dev, im->ino, im->path))
        return 0;
    return count_in(a, im->path, (struct file_id){ im->dev, im->ino }, hit, false);
}

struct recorded { struct asking *a; size_t file; };

static int judge_recorded(void *arg, const char *overlay, uint64_t fs)
{
    struct recorded *rec = arg;
    struct tree_image im;
    int r = tree_look(AT_FDCWD, overlay, overlay, &im);
    if (r < 0)
        return r;
    if (r == 1)
        return tree_is_gone(overlay, fs) ? 0 : count_in(rec->a, overlay, (struct file_id){ 0, 0 }, rec->file, true);
    if (!im.fmt && index_of(&rec->a->except, im.dev, im.ino) == SIZE_MAX)
        r = count_in(rec->a, overlay, (struct file_id){ im.dev, im.ino }, rec->file, true);
    else
        r = judge(rec->a, &im);
    tree_image_fini(&im);
    return r;
}

/* The directories of one file: where its name leads, and where it really lies. */
static int look_around(struct tree *t, const char *file, struct byre_err *err)
{
    AUTOFREE char *real = realpath(file, NULL), *dir = NULL, *real_dir = NULL;
    if (!real && (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG))
        return 0;                                /* no file of this machine */
    if (!real)
        return byre_fail_code(err, SYSTEM, -errno, "%s: it cannot be found out which images depend on it, because it cannot be found out where it lies: %s; force overrides this",
                              file, strerror(errno));
    dir = tree_dir_of(file);
    real_dir = tree_dir_of(real);
    if (!dir || !real_dir)
        return byre_fail(err, NOMEM, "no memory for a tree of images");
    int r = tree_add_dir(t, dir, false, NULL, err);
    return r ? r : tree_add_dir(t, real_dir, false, NULL, err);
}

static int tell(const struct asking *a, struct byre_err *err)
{
    char names[BYRE_ERR_TEXT_MAX / 2];
    size_t at = 0;
    for (uint64_t i = 0; i < a->count && i < NAMED_MAX && at < sizeof names; i++) {
        int n = snprintf(names + at, sizeof names - at, "%s'%s'%s%s%s%s", i ? ", " : "", a->names[i], i && a->hit[i] != a->hit[0] ? " (on '" : "",
                         i && a->hit[i] != a->hit[0] ? a->g->files[a->hit[i]] : "", i && a->hit[i] != a->hit[0] ? "')" : "",
                         a->unsure[i] ? " (which cannot be looked at)" : "");
        at += n > 0 ? (size_t)n : 0;
    }
    if (a->count > NAMED_MAX && at < sizeof names)
        snprintf(names + at, sizeof names - at, " and %" PRIu64 " more", a->count - NAMED_MAX);
    return byre_fail(err, DEPENDENTS, "%s: must not be changed, because other images depend on what it holds: %s; force overrides this", a->g->files[a->hit[0]], names);
}

static int ask(struct asking *a, struct tree *t, struct byre_err *err)
{
    const struct tree_guard *g = a->g;
    int r = take_ids(&a->files, g->files, g->file_count) || take_ids(&a->except, g->except, g->except_count) ? -ENOMEM : 0;
    if (r)
        return byre_fail(err, NOMEM, "no memory for a tree of images");
    for (size_t i = 0; !r && i < g->file_count; i++)
        r = look_around(t, g->files[i], err);
    if (r)
        return r;
    for (size_t i = 0; !r && i < tree_count(t); i++)
        r = judge(a, tree_at(t, i));
    for (size_t i = 0; !r && i < g->file_count; i++) {
        struct recorded rec = { a, i };
        r = tree_record_each(&(struct tree_opts){ .policy = g->opts->policy }, g->files[i], judge_recorded, &rec, err);
        if (!r && g->opts->registry && i == 0)
            r = tree_record_each(g->opts, g->files[i], judge_recorded, &rec, err);
    }
    if (r)
        return r == -ENOMEM ? byre_fail(err, NOMEM, "no memory for a tree of images") : r;
    return a->count ? tell(a, err) : 0;
}

int tree_guard_check(const struct tree_guard *g, struct byre_err *err)
{
    struct asking a = { .g = g };
    struct tree *t;
    int r = tree_new(g->opts, &t, err);
    if (r)
        return r;
    r = ask(&a, t, err);
    for (size_t i = 0; i < NAMED_MAX; i++)
        free(a.names[i]);
    free(a.files.at);
    free(a.except.at);
    tree_free(t);
    return r;
}
