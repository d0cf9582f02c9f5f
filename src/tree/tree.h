/* SPDX-License-Identifier: MIT
 *
 * tree.h: which images depend on which? Looks at the headers of files in directories, keeps a record of overlays that lie elsewhere, and
 * refuses what would change an image under another one.
 *
 *   header.c   one file: its first bytes, and what its names mean
 *   scan.c     a set of images: directories, the files that they name, edges
 *   record.c   the record: PATH.byre-children beside a base, or a registry
 *   guard.c    who depends on these files?
 *
 * Invariants
 *   T1  Nothing but the first bytes of a file is read: at most one cluster of its header, and no file is opened that is neither a
 *       regular file nor a block device. Nothing is locked, and no image is written to.
 *   T2  Files are told apart by device and inode, never by name.
 *   T3  A record is a hint. What it says is looked up in the overlay's own header; only an overlay that cannot be looked at is believed.
 * Concurrency  A struct tree belongs to one thread, which may block: never a loop.
 */
#ifndef TREE_TREE_H
#define TREE_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "fmt/fmt.h"
#include "graph/graph.h"

#define TREE_RECORD_SUFFIX ".byre-children"

/* How records are kept. Strings are not owned. */
struct tree_opts {
    enum graph_policy policy;
    const char *registry;            /* a file with the records of all bases; NULL: each has its own beside it */
};

enum tree_link {
    TREE_NONE,                       /* it names no such file */
    TREE_FOUND,
    TREE_MISSING,                    /* there is no such file */
    TREE_UNREADABLE,                 /* it cannot be looked at */
    TREE_REMOTE,                     /* on a server */
    TREE_UNCLEAR,                    /* the name means nothing here */
};

/* One edge down: what the header says, and what that means. */
struct tree_edge {
    enum tree_link link;
    char *name, *format;             /* as recorded; format may be NULL */
    char *path;                      /* NULL: UNCLEAR, REMOTE, NONE */
    bool has_id; uint64_t dev, ino;  /* FOUND, UNREADABLE */
    size_t to;                       /* FOUND, after tree_settle: index of the image; TREE_NOWHERE: it is not in the set */
};
#define TREE_NOWHERE SIZE_MAX

struct tree_image {
    char *path;                      /* as it was come by */
    uint64_t dev, ino;
    const struct fmt_ops *fmt;       /* NULL: it could not be read, or its header is damaged */
    const char *why;                 /* then: why */
    uint64_t size;                   /* of the disk */
    uint32_t snapshots;
    struct tree_edge backing, data;
    bool named;                      /* given by the caller, or found in one of its directories */
    bool recorded;                   /* known from a record only */
    size_t first_child, next_child;  /* after tree_settle: those whose backing file it is, in the order of their paths */
    size_t first_data, next_data;    /* the same for external data files */
};

struct tree;
MUST_USE int tree_new(const struct tree_opts *o, struct tree **ret_t, struct byre_err *err);
void tree_free(struct tree *t);                              /* NULL is allowed */
size_t tree_count(const struct tree *t);
const struct tree_image *tree_at(const struct tree *t, size_t i);
/* Adds the images of a directory; deep: of those below it too. Links to directories are not followed. -ENOENT, -ENOTDIR ...: told. Directories
 * further down that cannot be read are left out and counted in *ret_skipped (may be NULL). */
MUST_USE int tree_add_dir(struct tree *t, const char *path, bool deep, uint64_t *ret_skipped, struct byre_err *err);
/* Adds one file, whatever it is. */
MUST_USE int tree_add_file(struct tree *t, const char *path, struct byre_err *err);
/* Adds what the images name, what those name, and what records say of all of them; then joins them. The set is complete; images are in
 * the order of their paths. */
MUST_USE int tree_settle(struct tree *t, struct byre_err *err);

/* ---- the record ---- */
/* `overlay` has `base` as its backing file. Nothing is kept when both lie in one directory and there is no registry: the guard looks there. Durable
 * when it returns 0. -errno: nothing is kept, and *err says why. */
MUST_USE int tree_record(const struct tree_opts *o, const char *base, const char *overlay, struct byre_err *err);
/* Calls fn for each overlay that the record beside `base` (or, registry given, the registry) names; fs: of the file system that holds it. Stops
 * when fn does not return 0, with that. 0 also when there is none. */
typedef int tree_record_fn(void *arg, const char *overlay, uint64_t fs);
MUST_USE int tree_record_each(const struct tree_opts *o, const char *base, tree_record_fn *fn, void *arg, struct byre_err *err);
/* Is it certain that a file that is not there has been removed, rather than that its file system is not mounted? */
bool tree_is_gone(const char *path, uint64_t fs);

/* ---- the guard ---- */
struct tree_guard {
    const struct tree_opts *opts;
    const char *const *files; size_t file_count;     /* whose content is about to change */
    const char *const *except; size_t except_count;  /* images that may depend on them: they are taken care of */
    /* Says of an image that depends on them that it does not count. May be NULL. */
    bool (*ignore)(void *arg, uint64_t dev, uint64_t ino, const char *path); void *arg;
};
/* 0: no image is known that depends on one of the files. DEPENDENTS (-EBUSY): *err names the file and the images. Looks into the directories of the
 * files, and into records. */
MUST_USE int tree_guard_check(const struct tree_guard *g, struct byre_err *err);

/* ---- header.c ---- */
/* What is at this path. 0: *ret is filled but for what tree_settle says, and owned (tree_image_fini); 1: it is no file that could be an image;
 * -ENOMEM. A file that cannot be read is an image with fmt NULL. */
MUST_USE int tree_look(int dir_fd, const char *name, const char *path, struct tree_image *ret);
void tree_image_fini(struct tree_image *im);

#endif
