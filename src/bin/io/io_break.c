/* SPDX-License-Identifier: MIT
 *
 * io_break.c: break remove_break resume wait_break (FEATURES 6.015).
 *
 * Purpose      Requests of aio_read and aio_write stand still at events of the filter blkdebug below the image.
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread; who stands keeps his loop going
 * Failure      told; 1. A command that waits for a request of its own which stands still does not return: nobody is there to let it go on
 * Tests        tests/cli/blkdebug_test.py
 */
#include <stdio.h>
#include <string.h>

#include "bin/io/io.h"

static int run_break(struct io_shell *s, const void *opts, int argc, char **argv)
{
    int r = byre_debug_break(s->image, argv[0], argv[1]);
    if (r < 0) {
        printf("Could not set breakpoint: %s\n", strerror(-r));
        return 1;
    }
    s->breaks = true;
    return 0;
}

static int run_remove_break(struct io_shell *s, const void *opts, int argc, char **argv)
{
    int r = byre_debug_remove(s->image, argv[0]);
    if (r < 0)
        printf("Could not remove breakpoint %s: %s\n", argv[0], strerror(-r));
    return r < 0;
}

static int run_resume(struct io_shell *s, const void *opts, int argc, char **argv)
{
    int r = byre_debug_resume(s->image, argv[0]);
    if (r < 0)
        printf("Could not resume request: %s\n", strerror(-r));
    else
        printf("blkdebug: Resuming request '%s'\n", argv[0]);
    return r < 0;
}

static int run_wait_break(struct io_shell *s, const void *opts, int argc, char **argv)
{
    fflush(stdout);
    int r = byre_debug_wait(s->image, argv[0]);
    if (r < 0)
        printf("Could not wait for a request: %s\n", strerror(-r));
    else
        printf("blkdebug: Suspended request '%s'\n", argv[0]);
    return r < 0;
}

const struct io_cmd io_cmd_break = { "break", NULL, "event tag", "let the next request of an event stand still, under a name",
    "Example: 'break cow_write A' stops a first write before its data is written; the events of the filter blkdebug are in byre(1).", NULL, 0, 2, 2, 0, run_break };
const struct io_cmd io_cmd_remove_break = { "remove_break", NULL, "tag", "no request stops under this name any more; those that stand go on", NULL, NULL, 0, 1, 1, 0, run_remove_break };
const struct io_cmd io_cmd_resume = { "resume", NULL, "tag", "let the first request that stands under this name go on", NULL, NULL, 0, 1, 1, 0, run_resume };
const struct io_cmd io_cmd_wait_break = { "wait_break", NULL, "tag", "wait until a request stands under this name", NULL, NULL, 0, 1, 1, 0, run_wait_break };
