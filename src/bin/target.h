/* SPDX-License-Identifier: MIT
 *
 * target.h: the image that convert and dd write.
 */
#ifndef BIN_TARGET_H
#define BIN_TARGET_H

#include <sys/types.h>

#include "bin/bin.h"

/* A file of a target, to be cleaned up on failure. */
struct target_file {
    char *path;                 /* NULL: none */
    bool existed;               /* the file was there before */
    bool fixed;                 /* a device, or an export of a server: it is there and stays, whatever was in it */
    bool known; dev_t dev; ino_t ino;   /* the file that was made or emptied: only that one is cleaned up */
};

struct target {
    struct byre_image *image;
    struct target_file file, data;      /* data: its external data file */
    bool made;                  /* byre_create succeeded here */
    bool reads_zero;            /* fresh and without old content */
};

struct target_opts {
    const char *name, *format;  /* format NULL: raw */
    bool image_opts, no_create, quiet;
    int cache;
    uint64_t size;
    const struct opt_list *options;             /* may be NULL */
    const char *backing, *backing_format;
    const char *what;           /* "converting": for messages */
};

/* Makes (unless no_create) and opens the target. 0, or 1: told already; target_close in either case. */
int target_open(struct run *r, const struct target_opts *o, struct target *t);
/* Closes; when code is not 0, or closing fails, a target made here does not stay. Returns the exit code. */
int target_close(struct run *r, struct target *t, int code);

bool target_wants_help(const struct opt_list *l);            /* "-o help" */
int target_help(struct run *r, const char *format, bool with_file);

#endif
