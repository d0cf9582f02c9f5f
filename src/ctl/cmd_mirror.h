/* SPDX-License-Identifier: MIT
 *
 * cmd_mirror.h: what cmd_mirror.c has for the other commands of block jobs.
 */
#ifndef CTL_CMD_MIRROR_H
#define CTL_CMD_MIRROR_H

#include "ctl/ctl_priv.h"
#include "job/mirror.h"

/* Adds to what query-block-jobs says of a mirror. -1: no memory. */
int ctl_mirror_json(const struct job *job, json_t *o);

#endif
