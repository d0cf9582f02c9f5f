/* SPDX-License-Identifier: MIT
 *
 * check_online.h: the check of a disk that a server has in use.
 */
#ifndef BIN_CHECK_ONLINE_H
#define BIN_CHECK_ONLINE_H

#include "bin/progress.h"
#include "byre/check.h"

struct check_online {
    const char *path;                    /* of the control socket */
    const char *node;                    /* node or device; NULL: the first disk */
    bool fix_leaks;
    struct progress_opts progress;
};
/* Exit code 0 with *ret and two strings (allocated), or 1, told already. */
int check_online(struct run *r, const struct check_online *c, struct byre_check_result *ret, char **ret_filename, char **ret_format);

#endif
