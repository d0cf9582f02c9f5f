/* SPDX-License-Identifier: MIT
 *
 * q2_stand.h: a scrub that is paused in the middle of a round. Home loop.
 */
#ifndef Q2_STAND_H
#define Q2_STAND_H

#include <stdbool.h>

#include "rt/co.h"

struct q2_scrubbing;
/* The caller's step, which may stand still. -ECANCELED and s->again: the round is to be begun again. Suspends. */
int q2_stand_step(struct co *co, struct q2_scrubbing *s);
/* Is this finding told? Not one that a round which was begun again has told already. */
bool q2_stand_tells(struct q2_scrubbing *s, const char *id, const char *text);

#endif
