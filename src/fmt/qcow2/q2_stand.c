/* SPDX-License-Identifier: MIT
 *
 * q2_stand.c: a scrub that stands still in the middle of a round, because somebody has paused it.
 *
 * Purpose      Tables that were dropped wait until no round may read them any more (L2 of q2_scrub.c). Of one that stands nobody
 *              knows when that will be, and with the tables wait the clusters that were dropped beside them: a full disk would
 *              stay full. So they go on, and the round, which may have seen some of what is used for other things now, is
 *              begun again when it goes on.
 * Owns         scrubbing.stepping, overrun, again; what was told already.
 * Invariants   T1 Who goes on beside a round that stands sets `overrun` first: it never takes a step from there on, and nothing
 *                 that it has found counts (but what it told was true, and is not told again).
 *              T2 Only one that stands in its caller's step is overrun: it is in the middle of no look at a table. Reads ahead of
 *                 it may arrive, and are thrown away.
 *              T3 Everybody who waits asks again and again whether it stands, cancelled or not.
 * Order        None of its own.
 * Concurrency  Home loop.
 * Failure      Without memory a finding may be told twice.
 * Tests        q2_stand_test.c, tests/cli/scrub_test.py
 */
#include "fmt/qcow2/q2_stand.h"

#include <stdlib.h>

#include "fmt/qcow2/q2_check_priv.h"
#include "fmt/qcow2/q2_image.h"

#define LOOK_NS 50000000u               /* how often somebody who waits asks whether it stands */
#define TOLD_MAX 4096u

static bool stands(const struct q2_scrubbing *s)
{
    return s->stepping && s->o->stands && s->o->stands(s->o->arg);
}

struct look { struct rt_timer timer; struct q2_image *q; struct q2_scrubbing *s; };

static void look(struct rt_timer *t)
{
    const struct look *l = (const struct look *)t;
    if (l->q->scrubbing == l->s)
        co_wake_all(&l->s->walked);
}

/* T3 */
static void wait_some(struct co *co, struct q2_image *q, struct q2_scrubbing *s)
{
    struct look l = { .q = q, .s = s };
    if (s->o->stands)
        rt_timer_start(co_loop(co), &l.timer, rt_now(co_loop(co)) + LOOK_NS, look);
    co_wait(co, &s->walked);
    rt_timer_stop(co_loop(co), &l.timer);
}

void q2_scrub_wait_walk(struct co *co, struct q2_image *q)
{
    struct q2_scrubbing *s;
    while ((s = q->scrubbing) && s->walking && !s->overrun) {
        if (stands(s)) {
            s->overrun = true;                   /* T1 */
            return;
        }
        wait_some(co, q, s);
    }
}

int q2_stand_step(struct co *co, struct q2_scrubbing *s)
{
    s->stepping = true;
    int r = s->o->step(co, s->o->arg);
    s->stepping = false;
    if (r == 0 && s->overrun && s->walking) {
        s->again = true;
        return -ECANCELED;
    }
    return r;
}

static uint64_t hash(const char *id, const char *text)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *id; id++)
        h = (h ^ (uint8_t)*id) * 0x100000001b3ull;
    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 0x100000001b3ull;
    return h;
}

bool q2_stand_tells(struct q2_scrubbing *s, const char *id, const char *text)
{
    uint64_t h = hash(id, text);
    for (size_t i = 0; s->rounds_again && i < s->told_count; i++)
        if (s->told[i] == h)
            return false;
    if (!s->o->stands || s->told_count == TOLD_MAX)
        return true;
    if (!s->told)
        s->told = malloc(TOLD_MAX * sizeof *s->told);
    if (s->told)
        s->told[s->told_count++] = h;
    return true;
}
