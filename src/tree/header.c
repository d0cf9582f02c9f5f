/* SPDX-License-Identifier: MIT
 *
 * header.c: one file: its format, and the files that its header names.
 *
 * Purpose      Reads the first bytes, asks the format what they say, and finds out which files the names mean.
 * Owns         Strings of struct tree_image while it is filled.
 * Invariants   T1, T2 of tree.h. H1 A name from a header reaches the file system only as graph_name_file has understood it.
 * Order        None: nothing is written.
 * Concurrency  Any thread that may block.
 * Failure      -ENOMEM; all else is said in the image.
 * Tests        tree_test.c, fuzz/qcow2_open.c
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tree/tree_priv.h"

#define FIRST_BYTES 4096u

void tree_image_fini(struct tree_image *im)
{
    struct tree_edge *edges[] = { &im->backing, &im->data };
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        free(edges[i]->name);
        free(edges[i]->format);
        free(edges[i]->path);
    }
    free(im->path);
    *im = (struct tree_image){ 0 };
}

/* Whole or nothing: short only at the end of the file. -1: errno. */
static ssize_t read_at(int fd, uint8_t *buf, size_t len, uint64_t off)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(fd, buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (!n)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* Where does the edge lead? edge->path and ids. */
static int find_file(struct tree_edge *edge)
{
    struct stat st;
    if (stat(edge->path, &st)) {
        edge->link = errno == ENOENT || errno == ENOTDIR ? TREE_MISSING : TREE_UNREADABLE;
        return 0;
    }
    edge->link = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? TREE_FOUND : TREE_UNCLEAR;
    edge->has_id = true;
    tree_id(&st, &edge->dev, &edge->ino);
    return 0;
}

/* What the name in edge->name means in the image at `path`. *ret_data: a data file that it states. */
static int resolve(struct tree_edge *edge, const char *path, char **ret_data)
{
    int r = graph_name_file(GRAPH_ECOSYSTEM, edge->name, path, &edge->path, ret_data, NULL);
    if (r == -ENOMEM)
        return r;
    edge->link = r == 1 ? TREE_REMOTE : TREE_UNCLEAR;
    return r ? 0 : find_file(edge);
}

static int set_backing(int fd, const struct fmt_peek *p, struct tree_image *im)
{
    uint8_t name[1024];
    ASSERT(p->name_len < sizeof name);           /* the formats see to it */
    AUTOFREE char *data = NULL;
    if (!p->name_len)
        return 0;
    if (read_at(fd, name, p->name_len, p->name_off) != (ssize_t)p->name_len || memchr(name, 0, p->name_len)) {
        im->backing.link = TREE_UNCLEAR;
        im->backing.name = strdup("?");
        return im->backing.name ? 0 : -ENOMEM;
    }
    im->backing.name = strndup((const char *)name, p->name_len);
    return im->backing.name ? resolve(&im->backing, im->path, &data) : -ENOMEM;
}

static int set_data(struct fmt_peek *p, struct tree_image *im)
{
    AUTOFREE char *data = NULL;
    if (!p->has_data_file)
        return 0;
    im->data.link = TREE_UNCLEAR;
    if (!p->data_file)
        return 0;                                /* whoever opens it must say which file it is */
    im->data.name = p->data_file;
    p->data_file = NULL;
    return resolve(&im->data, im->path, &data);
}

/* Asks the format, with as many bytes as it wants. */
static int peek(int fd, const struct fmt_ops *ops, const uint8_t *buf, size_t len, uint64_t file_bytes, struct fmt_peek *p)
{
    int r = ops->peek(buf, len, file_bytes, p);
    if (r <= 0)
        return r;
    size_t want = (size_t)r;
    AUTOFREE uint8_t *more = malloc(want);
    if (!more)
        return -ENOMEM;
    ssize_t n = read_at(fd, more, want, 0);
    if (n < 0 || (size_t)n <= len)
        return -EINVAL;
    r = ops->peek(more, (size_t)n, file_bytes, p);
    return r > 0 ? -EINVAL : r;
}

static int look_inside(int fd, uint64_t file_bytes, struct tree_image *im)
{
    uint8_t buf[FIRST_BYTES];
    struct fmt_peek p = { 0 };
    ssize_t n = read_at(fd, buf, sizeof buf, 0);
    if (n < 0) {
        im->why = "it cannot be read";
        return 0;
    }
    im->fmt = fmt_probe(buf, (size_t)n);
    im->size = file_bytes;
    if (!im->fmt->peek)
        return 0;
    int r = peek(fd, im->fmt, buf, (size_t)n, file_bytes, &p);
    if (!r) {
        im->size = p.size;
        im->snapshots = p.snapshots;
        im->backing.format = p.backing_format;
        p.backing_format = NULL;
        r = set_backing(fd, &p, im);
    }
    if (!r)
        r = set_data(&p, im);
    fmt_peek_fini(&p);
    if (r == -EINVAL) {
        im->fmt = NULL;
        im->why = "its header is damaged";
        r = 0;
    }
    return r;
}

static int look_at_open(int fd, struct tree_image *im)
{
    struct stat st;
    if (fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
        return 1;
    off_t end = S_ISREG(st.st_mode) ? st.st_size : lseek(fd, 0, SEEK_END);
    tree_id(&st, &im->dev, &im->ino);
    return look_inside(fd, end < 0 ? 0 : (uint64_t)end, im);
}

int tree_look(int dir_fd, const char *name, const char *path, struct tree_image *ret)
{
    struct tree_image im = { .backing.to = TREE_NOWHERE, .data.to = TREE_NOWHERE };
    struct stat st;
    if (fstatat(dir_fd, name, &st, 0) || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
        return 1;
    tree_id(&st, &im.dev, &im.ino);
    im.path = strdup(path);
    if (!im.path)
        return -ENOMEM;
    int r = 0, fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        im.why = "it cannot be opened";
    else
        r = look_at_open(fd, &im);
    if (fd >= 0)
        close(fd);
    if (r) {
        tree_image_fini(&im);
        return r;
    }
    *ret = im;
    return 0;
}
