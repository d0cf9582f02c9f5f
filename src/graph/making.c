/* SPDX-License-Identifier: MIT
 *
 * making.c: files that are being made.
 *
 * Purpose     Keeps two who make files from the same one, and removes what was made for nothing.
 * Owns        struct graph_making, from begin to end; none is left when the graph is freed.
 * Invariants  K1  Of two names that mean one file at most one is in the list: a file that is there is known by its identity, one that is not by its folder and
 *                 its name there. Symbolic links are followed first.
 *             K2  Nothing suspends between the look at the list and the entry in it.
 *             K3  A file is removed only while we hold its lock, and when it is the one that was made: behind that it may be another's, here or in another process.
 * Order       None.
 * Concurrency Home loop; files are looked at and removed on the blocking pool. Nobody is waited for: a second one is refused, since its caller may hold
 *             edges that the first one needs to come to its end.
 * Failure     A file that cannot be locked or removed stays.
 * Tests       tests/daemon/making_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graph/graph_priv.h"
#include "graph/making.h"

#define LINKS_MAX 40                     /* as the kernel follows */

struct graph_making {
    struct list_node link;
    struct graph *g;
    char *path;                          /* behind all links */
    bool there, made, in_folder;
    uint64_t a, b;                       /* there: the identity, as stor_file_identity tells it */
    uint64_t folder_dev, folder_ino;     /* in_folder: it is looked for there */
};

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The text of a link that lies at `path`, as seen from here. NULL: it is none, or cannot be read. */
static char *behind_link(const char *path)
{
    char text[4096], *to = NULL;
    ssize_t n = readlink(path, text, sizeof text - 1);
    if (n <= 0)
        return NULL;
    text[n] = 0;
    int folder = text[0] == '/' ? 0 : (int)(base_of(path) - path);
    return asprintf(&to, "%.*s%s", folder, path, text) < 0 ? NULL : to;
}

static int64_t look_blocking(void *arg)
{
    struct graph_making *m = arg;
    struct stat st = { 0 };
    char *next;
    for (int i = 0; i < LINKS_MAX && (next = behind_link(m->path)); i++) {
        free(m->path);
        m->path = next;
    }
    m->there = stat(m->path, &st) == 0;
    m->a = !m->there ? 0 : S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
    m->b = !m->there || S_ISBLK(st.st_mode) ? 0 : st.st_ino;
    size_t len = (size_t)(base_of(m->path) - m->path);
    char *folder = len ? strndup(m->path, len) : strdup(".");
    if (!folder)
        return -ENOMEM;
    m->in_folder = stat(folder, &st) == 0;
    m->folder_dev = st.st_dev;
    m->folder_ino = st.st_ino;
    free(folder);
    return 0;
}

/* K1 */
static bool same(const struct graph_making *m, const struct graph_making *n)
{
    if (m->there && n->there && m->a == n->a && m->b == n->b)
        return true;
    if (!m->in_folder || !n->in_folder)
        return !strcmp(m->path, n->path);
    return m->folder_dev == n->folder_dev && m->folder_ino == n->folder_ino && !strcmp(base_of(m->path), base_of(n->path));
}

static int enter(struct graph *g, struct graph_making *m, const char *path, struct byre_err *err)
{
    LIST_FOR(at, &g->makings)
        if (same(m, CONTAINER_OF(at, struct graph_making, link)))
            return byre_fail(err, EXISTS, "'%s' is being made by another command, or by an entry of the same list", path);
    list_push_back(&g->makings, &m->link);
    m->g = g;
    return 0;
}

int graph_making_begin(struct co *co, struct graph *g, const char *path, struct graph_making **ret_m, struct byre_err *err)
{
    struct graph_making *m = calloc(1, sizeof *m);
    int r = m && (m->path = strdup(path)) ? (int)rt_blocking(co, look_blocking, m) : -ENOMEM;
    r = r ? byre_fail(err, NOMEM, "'%s': no memory for the name of a file", path) : enter(g, m, path, err);
    if (!r) {
        *ret_m = m;
        return 0;
    }
    graph_making_end(m);
    return r;
}

void graph_making_is(struct graph_making *m, const struct stor *s)
{
    m->made = stor_file_identity(s, &m->a, &m->b);
    m->there |= m->made;
}

static int64_t remove_blocking(void *arg)
{
    const struct graph_making *m = arg;
    struct stat st;
    if (lstat(m->path, &st) == 0 && S_ISREG(st.st_mode) && st.st_dev == m->a && st.st_ino == m->b)
        (void)unlink(m->path);
    return 0;
}

void graph_making_drop(struct co *co, struct graph_making *m)
{
    const struct stor_file_opts so = { .passed = m->g->passed };
    const unsigned perm = STOR_PERM_WRITE | STOR_PERM_RESIZE;
    struct stor *s;
    if (!m->made || stor_file_open(co, m->path, &so, &s, NULL))
        return;
    if (!stor_lock(co, s, perm, STOR_PERM_ALL & ~perm, NULL) && rt_blocking(co, remove_blocking, m) < 0)      /* K3 */
        (void)remove_blocking(m);
    stor_close(co, s);
    m->made = false;
}

void graph_making_end(struct graph_making *m)
{
    if (m && m->g)
        list_remove(&m->link);
    if (m)
        free(m->path);
    free(m);
}
