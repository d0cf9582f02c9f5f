/* SPDX-License-Identifier: MIT
 *
 * tree_priv.h: the inside of tree/.
 */
#ifndef TREE_TREE_PRIV_H
#define TREE_TREE_PRIV_H

#include <sys/stat.h>

#include "base/assert.h"
#include "tree/tree.h"

/* What tells files apart: of a block device the device that it is, whichever node it has been reached by. */
static inline void tree_id(const struct stat *st, uint64_t *ret_dev, uint64_t *ret_ino)
{
    bool block = S_ISBLK(st->st_mode);
    *ret_dev = block ? UINT64_MAX : st->st_dev;
    *ret_ino = block ? st->st_rdev : st->st_ino;
}

/* The directory part of a path, without its last word ("." when it has none); owned. NULL: no memory. */
char *tree_dir_of(const char *path);
/* Path and name joined by a '/'; owned. NULL: no memory. */
char *tree_join(const char *dir, const char *name);

#endif
