/* SPDX-License-Identifier: MIT
 *
 * steps.h: when does work beside requests let others run? A request that has to pass the home loop a few times waits for as many steps,
 * so a step is some 50 microseconds: by a count for what costs little, by the clock for what costs more. What the scrubs of all formats share.
 */
#ifndef FMT_STEPS_H
#define FMT_STEPS_H

#include <stdbool.h>
#include <stdint.h>

#include "rt/loop.h"

#define FMT_STEP_COUNT 512u              /* entries of a table */
#define FMT_STEP_LOOK 16u                /* so many between two looks at the clock */
#define FMT_STEP_NS 50000u

struct fmt_steps { unsigned n, look; uint64_t began; };      /* zeros: a step that has long begun */

/* Others have had their turn. */
static inline void fmt_step_begins(struct co *co, struct fmt_steps *s) { *s = (struct fmt_steps){ .look = FMT_STEP_LOOK, .began = rt_now(co_loop(co)) }; }

/* `weight` more entries, or what costs as much as they, were looked at: is the step over? */
static inline bool fmt_step_is_over(struct co *co, struct fmt_steps *s, unsigned weight)
{
    s->n += weight;
    if (s->n < s->look)
        return false;
    s->look = s->n + FMT_STEP_LOOK;
    return s->n >= FMT_STEP_COUNT || rt_now(co_loop(co)) - s->began > FMT_STEP_NS;
}

#endif
