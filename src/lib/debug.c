/* SPDX-License-Identifier: MIT
 *
 * debug.c: breakpoints of the filter blkdebug (FEATURES 3.053).
 *
 * Purpose      graph_debug_* in the public words.
 * Owns         nothing
 * Invariants   none
 * Concurrency  any foreign thread; the work is done on the home loop
 * Failure      -errno
 * Tests        tests/cli/blkdebug_test.py
 */
#include "lib/lib_priv.h"

struct debug_call { struct byre_image *image; const char *event, *tag; };

static int break_co(struct co *co, void *arg)
{
    const struct debug_call *c = arg;
    (void)co;
    return graph_debug_break(c->image->node, c->event, c->tag);
}

static int remove_co(struct co *co, void *arg)
{
    const struct debug_call *c = arg;
    (void)co;
    return graph_debug_remove(c->image->node, c->tag);
}

static int resume_co(struct co *co, void *arg)
{
    const struct debug_call *c = arg;
    (void)co;
    return graph_debug_resume(c->image->node, c->tag);
}

static int wait_co(struct co *co, void *arg)
{
    const struct debug_call *c = arg;
    return graph_debug_wait(co, c->image->node, c->tag);
}

static int call(struct byre_image *image, const char *event, const char *tag, int (*fn)(struct co *co, void *arg))
{
    struct debug_call c = { image, event, tag };
    return lib_ctx_call(image->ctx, fn, &c);
}

int byre_debug_break(struct byre_image *image, const char *event, const char *tag) { return call(image, event, tag, break_co); }
int byre_debug_remove(struct byre_image *image, const char *tag) { return call(image, NULL, tag, remove_co); }
int byre_debug_resume(struct byre_image *image, const char *tag) { return call(image, NULL, tag, resume_co); }
int byre_debug_wait(struct byre_image *image, const char *tag) { return call(image, NULL, tag, wait_co); }
