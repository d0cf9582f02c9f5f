/* SPDX-License-Identifier: MIT
 *
 * scan.c: a set of images, and how they hang together.
 *
 * Purpose      Walks directories, adds what images name, and turns names into edges.
 * Owns         struct tree: images, the table that finds them by device and inode.
 * Invariants   T2 of tree.h. S1 An image is in the set once, under the first path that led to it.
 *              S2 The walk keeps its own stack, and enters a directory once: neither links nor mounts make it endless.
 * Order        None: nothing is written.
 * Concurrency  One thread.
 * Failure      The set stays as it was, or has grown by a part; tree_free is all that may follow.
 * Tests        tree_test.c, tests/cli/tree_test.py
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "tree/tree_priv.h"

struct id { uint64_t dev, ino; bool used; };

struct tree {
    const struct tree_opts *o;
    struct tree_image *im;
    size_t count, cap;
    size_t *table;                   /* index + 1 of an image; 0: free */
    size_t slots;                    /* a power of two, more than count */
    struct id *dirs;                 /* that were entered: a table, at most half full */
    size_t dir_count, dir_slots;
};

char *tree_join(const char *dir, const char *name)
{
    char *s = NULL;
    size_t n = strlen(dir);
    if (!strcmp(dir, "."))
        return strdup(name);
    return asprintf(&s, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name) < 0 ? NULL : s;
}

char *tree_dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return !slash ? strdup(".") : slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

int tree_new(const struct tree_opts *o, struct tree **ret_t, struct byre_err *err)
{
    struct tree *t = calloc(1, sizeof *t);
    if (!t)
        return byre_fail(err, NOMEM, "no memory for a tree of images");
    t->o = o;
    *ret_t = t;
    return 0;
}

void tree_free(struct tree *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->count; i++)
        tree_image_fini(&t->im[i]);
    free(t->im);
    free(t->table);
    free(t->dirs);
    free(t);
}

size_t tree_count(const struct tree *t) { return t->count; }
const struct tree_image *tree_at(const struct tree *t, size_t i) { return &t->im[i]; }

/* ---- the table ---- */

/* The slot of that file, or the free one where it belongs. */
static size_t *slot_of(const struct tree *t, uint64_t dev, uint64_t ino)
{
    size_t at = (size_t)hash_combine(dev, ino);
    for (;; at++) {
        size_t *s = &t->table[at & (t->slots - 1)];
        if (!*s || (t->im[*s - 1].dev == dev && t->im[*s - 1].ino == ino))
            return s;
    }
}

static size_t find(const struct tree *t, uint64_t dev, uint64_t ino)
{
    size_t s = t->slots ? *slot_of(t, dev, ino) : 0;
    return s ? s - 1 : TREE_NOWHERE;
}

static int make_table(struct tree *t, size_t slots)
{
    size_t *table = calloc(slots, sizeof *table);
    if (!table)
        return -ENOMEM;
    free(t->table);
    t->table = table;
    t->slots = slots;
    for (size_t i = 0; i < t->count; i++)
        *slot_of(t, t->im[i].dev, t->im[i].ino) = i + 1;
    return 0;
}

static int make_room(struct tree *t)
{
    if (t->count < t->cap)
        return 0;
    size_t cap = t->cap ? t->cap * 2 : 64;
    struct tree_image *im = reallocarray(t->im, cap, sizeof *im);
    if (!im)
        return -ENOMEM;
    t->im = im;
    t->cap = cap;
    return make_table(t, cap * 2);
}

/* Takes the image over, or frees it: it is there already. */
static int add(struct tree *t, struct tree_image *im)
{
    size_t at = find(t, im->dev, im->ino);
    int r = at == TREE_NOWHERE ? make_room(t) : 1;
    if (r) {
        if (at != TREE_NOWHERE)
            t->im[at].named |= im->named;
        tree_image_fini(im);
        return r < 0 ? r : 0;
    }
    t->im[t->count] = *im;
    *slot_of(t, im->dev, im->ino) = ++t->count;
    return 0;
}

/* ---- directories ---- */

static int no_memory(struct byre_err *err)
{
    return byre_fail(err, NOMEM, "no memory for a tree of images");
}

static struct id *dir_slot(const struct tree *t, uint64_t dev, uint64_t ino)
{
    size_t at = (size_t)hash_combine(dev, ino) & (t->dir_slots - 1);
    while (t->dirs[at].used && (t->dirs[at].dev != dev || t->dirs[at].ino != ino))
        at = (at + 1) & (t->dir_slots - 1);
    return &t->dirs[at];
}

static int make_dir_table(struct tree *t)
{
    size_t slots = t->dir_slots ? t->dir_slots * 2 : 64, kept = t->dir_slots;
    struct id *old = t->dirs;
    t->dirs = calloc(slots, sizeof *t->dirs);
    if (!t->dirs) {
        t->dirs = old;
        return -ENOMEM;
    }
    t->dir_slots = slots;
    for (size_t i = 0; i < kept; i++)
        if (old[i].used)
            *dir_slot(t, old[i].dev, old[i].ino) = old[i];
    free(old);
    return 0;
}

/* 1: it was entered before. */
static int enter(struct tree *t, int fd)
{
    struct stat st;
    if (fstat(fd, &st))
        return 1;
    if (t->dir_count * 2 >= t->dir_slots && make_dir_table(t))
        return -ENOMEM;
    struct id *at = dir_slot(t, st.st_dev, st.st_ino);
    if (at->used)
        return 1;
    *at = (struct id){ st.st_dev, st.st_ino, true };
    t->dir_count++;
    return 0;
}

struct stack { char **paths; size_t count, cap; };

static int push(struct stack *s, char *path)
{
    if (!path)
        return -ENOMEM;
    if (s->count == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 16;
        char **paths = reallocarray(s->paths, cap, sizeof *paths);
        if (!paths) {
            free(path);
            return -ENOMEM;
        }
        s->paths = paths;
        s->cap = cap;
    }
    s->paths[s->count++] = path;
    return 0;
}

static bool is_dir(int fd, const struct dirent *e)
{
    struct stat st;
    return e->d_type == DT_DIR ||
           (e->d_type == DT_UNKNOWN && !fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISDIR(st.st_mode));
}

static int take_entry(struct tree *t, int fd, const char *dir, const struct dirent *e, struct stack *below)
{
    struct tree_image im;
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
        return 0;
    if (is_dir(fd, e))
        return below ? push(below, tree_join(dir, e->d_name)) : 0;
    if (e->d_type != DT_REG && e->d_type != DT_LNK && e->d_type != DT_UNKNOWN)
        return 0;
    AUTOFREE char *path = tree_join(dir, e->d_name);
    if (!path)
        return -ENOMEM;
    int r = tree_look(fd, e->d_name, path, &im);
    if (r)
        return r < 0 ? r : 0;
    if (im.fmt == &fmt_raw_ops || im.dev == UINT64_MAX || (!im.fmt && !im.backing.name && !im.size)) {
        tree_image_fini(&im);                    /* anything may be a raw image: one is shown when an image names it */
        return 0;
    }
    im.named = true;
    return add(t, &im);
}

/* -errno of opening or reading it; 1: out of memory. */
static int walk_one(struct tree *t, const char *path, struct stack *below)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK), r = 0;
    if (fd < 0)
        return -errno;
    DIR *d = fdopendir(fd);
    if (!d) {
        r = -errno;
        close(fd);
        return r;
    }
    r = enter(t, fd);
    const struct dirent *e;
    while (!r && (errno = 0, e = readdir(d)) != NULL)
        r = take_entry(t, fd, path, e, below);
    int unread = r ? 0 : -errno;
    closedir(d);
    return r < 0 ? 1 : unread;
}

int tree_add_dir(struct tree *t, const char *path, bool deep, uint64_t *ret_skipped, struct byre_err *err)
{
    struct stack s = { 0 };
    uint64_t skipped = 0;
    int r = walk_one(t, path, deep ? &s : NULL);
    if (r < 0)
        byre_fail_code(err, SYSTEM, r, "%s: the directory cannot be read: %s", path, strerror(-r));
    while (!r && s.count) {
        AUTOFREE char *next = s.paths[--s.count];
        int one = walk_one(t, next, &s);
        skipped += one < 0;
        r = one > 0;
    }
    while (s.count)
        free(s.paths[--s.count]);
    free(s.paths);
    if (r > 0)
        return no_memory(err);
    if (!r && ret_skipped)
        *ret_skipped = skipped;
    return r;
}

int tree_add_file(struct tree *t, const char *path, struct byre_err *err)
{
    struct tree_image im;
    int r = tree_look(AT_FDCWD, path, path, &im);
    if (r == 1)
        return byre_fail(err, NOT_FOUND, "%s: is not there, or is no file", path);
    if (r)
        return no_memory(err);
    im.named = true;
    return add(t, &im) ? no_memory(err) : 0;
}

/* ---- edges ---- */

static int add_at(struct tree *t, const char *path, bool recorded)
{
    struct tree_image im;
    int r = tree_look(AT_FDCWD, path, path, &im);
    if (r)
        return r < 0 ? r : 0;
    im.recorded = recorded;
    return add(t, &im);
}

static int add_edge(struct tree *t, const struct tree_edge *e)
{
    if (e->link != TREE_FOUND || find(t, e->dev, e->ino) != TREE_NOWHERE)
        return 0;
    AUTOFREE char *path = strdup(e->path);       /* the images move when the set grows */
    return path ? add_at(t, path, false) : -ENOMEM;
}

static int add_recorded(void *arg, const char *overlay, uint64_t fs)
{
    (void)fs;
    return add_at(arg, overlay, true);
}

static int add_records_of(struct tree *t, size_t i)
{
    AUTOFREE char *path = strdup(t->im[i].path);
    if (!path)
        return -ENOMEM;
    int r = tree_record_each(&(struct tree_opts){ .policy = t->o->policy }, path, add_recorded, t, NULL);
    return r == -ENOMEM ? r : 0;                 /* a record that cannot be read tells nothing */
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct tree_image *)a)->path, ((const struct tree_image *)b)->path);
}

static void join(struct tree *t)
{
    for (size_t i = 0; i < t->count; i++)
        t->im[i].first_child = t->im[i].next_child = t->im[i].first_data = t->im[i].next_data = TREE_NOWHERE;
    for (size_t i = t->count; i-- > 0;) {        /* backwards, so that the lists come out in order */
        struct tree_image *im = &t->im[i];
        if (im->backing.link == TREE_FOUND)
            im->backing.to = find(t, im->backing.dev, im->backing.ino);
        if (im->data.link == TREE_FOUND)
            im->data.to = find(t, im->data.dev, im->data.ino);
        if (im->backing.to != TREE_NOWHERE) {
            im->next_child = t->im[im->backing.to].first_child;
            t->im[im->backing.to].first_child = i;
        }
        if (im->data.to != TREE_NOWHERE) {
            im->next_data = t->im[im->data.to].first_data;
            t->im[im->data.to].first_data = i;
        }
    }
}

int tree_settle(struct tree *t, struct byre_err *err)
{
    int r = t->o->registry ? tree_record_each(t->o, NULL, add_recorded, t, err) : 0;
    if (r && r != -ENOMEM)
        return r;                                /* the user has named it */
    for (size_t i = 0; !r && i < t->count; i++) {
        r = add_edge(t, &t->im[i].backing);
        if (!r)
            r = add_edge(t, &t->im[i].data);
        if (!r)
            r = add_records_of(t, i);
    }
    if (r)
        return no_memory(err);
    if (t->count)
        qsort(t->im, t->count, sizeof *t->im, by_path);
    if (t->count && make_table(t, t->slots))
        return no_memory(err);
    join(t);
    return 0;
}
