/* SPDX-License-Identifier: MIT
 *
 * online.h: a job on a disk that a server has in use.
 */
#ifndef BIN_ONLINE_H
#define BIN_ONLINE_H

#include <jansson.h>

#include "bin/progress.h"

struct online {
    const char *path;                    /* of the control socket */
    const char *node;                    /* node or device; NULL: the first disk */
    const char *command, *word;          /* "x-byre-scrub"; the job is named by the word and a number */
    json_t *args;                        /* more arguments of the command; owned */
    struct progress_opts progress;
    /* results: the job's entry when it had concluded, and what the disk is; owned */
    json_t *job;
    char *filename, *format;
};
/* Exit code; 1 has been told. online_fini in either case. */
int online_run(struct run *r, struct online *o);
void online_fini(struct online *o);

#endif
