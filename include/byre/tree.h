/* SPDX-License-Identifier: MIT
 *
 * tree.h: which images depend on which: chains and dependents in directories, and the guard that keeps images from being changed under others.
 */
#ifndef BYRE_TREE_H
#define BYRE_TREE_H

#include "byre/image.h"

#ifdef __cplusplus
extern "C" {
#endif

/* byre_tree_opts.flags */
enum { BYRE_TREE_FLAT = 1u << 0 };           /* do not look into directories below the ones given */

struct byre_tree_opts {
    size_t struct_size;
    unsigned flags;                  /* BYRE_TREE_* */
    const char *const *paths;        /* directories and images */
    unsigned path_count;
    const char *registry;            /* a registry of overlays, as in byre_ctx_opts; NULL: none */
};
BYRE_DEFINE_INIT(byre_tree_opts)

enum byre_tree_link {
    BYRE_TREE_NONE = 0,              /* the image names no such file */
    BYRE_TREE_FOUND = 1,
    BYRE_TREE_MISSING = 2,           /* there is no such file */
    BYRE_TREE_UNREADABLE = 3,        /* it cannot be looked at */
    BYRE_TREE_REMOTE = 4,            /* it is on a server */
    BYRE_TREE_UNCLEAR = 5,           /* the name means nothing here */
};

#define BYRE_TREE_NOWHERE SIZE_MAX

struct byre_tree_edge {
    int link;                        /* enum byre_tree_link */
    const char *name, *format;       /* as the image records them; format may be NULL */
    const char *path;                /* the file that is meant; NULL: none */
    size_t to;                       /* its number in the tree, or BYRE_TREE_NOWHERE */
};

/* Made by the library: members may be added at the end. Strings live as long as the tree. */
struct byre_tree_image {
    const char *path, *format;       /* format NULL: the header cannot be read, */
    const char *why;                 /* and this is why */
    uint64_t size;                   /* of the disk, bytes */
    unsigned snapshots;              /* inside the image */
    int inside;                      /* 1: found in one of the directories, or given; 0: known because another one names it, */
    int recorded;                    /* or (1) from a record alone */
    struct byre_tree_edge backing, data_file;
    size_t first_child, next_child;  /* images whose backing file it is, and the next one of the same backing file; BYRE_TREE_NOWHERE ends */
    size_t first_user, next_user;    /* the same for external data files */
};

struct byre_tree;
/* Looks at the headers of all images in the directories, at what these name, and at what records say. Only headers are read, nothing is locked
 * or written. Images are numbered in the order of their paths. Blocks; any thread. */
BYRE_EXPORT BYRE_MUST_USE int byre_tree_scan(const struct byre_tree_opts *opts, struct byre_tree **ret_tree, struct byre_err *err);
BYRE_EXPORT size_t byre_tree_count(const struct byre_tree *tree);
BYRE_EXPORT void byre_tree_get(const struct byre_tree *tree, size_t i, struct byre_tree_image *ret);
BYRE_EXPORT uint64_t byre_tree_skipped(const struct byre_tree *tree);     /* directories further down that could not be read */
BYRE_EXPORT void byre_tree_free(struct byre_tree *tree);                  /* NULL is allowed */

enum byre_guard {
    BYRE_GUARD_CONTENT = 0,          /* what the image shows is about to change: resize to less, a snapshot applied, ... */
    BYRE_GUARD_COMMIT = 1,           /* the image is about to be committed into `base` (NULL: the next one below) */
};
/* Does an image that is none of the image's own chain depend on what is about to change? 0: none is known. -EBUSY: *err names what is in the
 * way. Looks at the directories of the files and at records. Blocks. */
BYRE_EXPORT BYRE_MUST_USE int byre_guard_check(struct byre_image *image, int what, const char *base, struct byre_err *err);

#ifdef __cplusplus
}
#endif
#endif
