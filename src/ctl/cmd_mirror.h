/* SPDX-License-Identifier: MIT
 *
 * cmd_mirror.h: what cmd_mirror.c has for the other commands of block jobs.
 */
#ifndef CTL_CMD_MIRROR_H
#define CTL_CMD_MIRROR_H

#include "ctl/ctl_priv.h"
#include "job/mirror.h"

/* How it becomes ready, in the arguments of every command that begins a mirror: fields copy_mode, converge, deadline, max_slowdown, max_hold_ms,
 * has_max_hold_ms. */
extern const struct ctl_shape ctl_copy_mode_shape, ctl_converge_shape;
#define CTL_CONVERGE_ROWS(T) \
    { "copy-mode", CTL_ENUM, false, CTL_AT(T, copy_mode), .of = &ctl_copy_mode_shape, .doc = "write-blocking: changes go to both sides before they are answered." }, \
    { "converge", CTL_ENUM, false, CTL_AT(T, converge), .of = &ctl_converge_shape, \
      .doc = "What may be done so that the job becomes ready: slow the guest down, send changes to both sides, or whatever is needed." }, \
    { "deadline", CTL_SIZE, false, CTL_AT(T, deadline), .max = UINT32_MAX, .doc = "Seconds in which it is to be ready; 0: none." }, \
    { "max-slowdown", CTL_SIZE, false, CTL_AT(T, max_slowdown), .max = 1000000, .doc = "The guest keeps at least this part of its write throughput: 1/20 unless given." }, \
    { "max-hold-ms", CTL_SIZE, false, CTL_AT_HAS(T, max_hold_ms), .max = 3600000, \
      .doc = "No request is held longer; 0: no limit. 1000 unless given, and no limit without converge." }

/* Adds to what query-block-jobs says of a mirror. -1: no memory. */
int ctl_mirror_json(const struct job *job, json_t *o);

#endif
