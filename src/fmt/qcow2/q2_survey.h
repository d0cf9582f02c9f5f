/* SPDX-License-Identifier: MIT
 *
 * q2_survey.h: one look at every reference of an open image that is in use, for those who want no more of it than where clusters
 * are named (q2_reclaim.c, q2_edge.c). q2_check.c, which judges and counts, walks by itself.
 */
#ifndef Q2_SURVEY_H
#define Q2_SURVEY_H

#include "fmt/qcow2/q2_walk.h"

struct q2_survey {
    struct q2_image *q;
    /* Every reference. Not 0: the survey ends and returns it. May suspend. */
    int (*ref)(struct co *co, void *arg, const struct q2_ref *r);
    /* As in q2_walk.h. May be NULL. */
    int (*bulk)(void *arg, unsigned worker, const struct q2_ref *t, const uint8_t *data);
    /* May be NULL. On the loop, now and then behind some bulk(). Not 0: as ref(). */
    int (*bulked)(void *arg);
    unsigned workers;
    bool unheld;               /* outside of epoch sections: whoever asks knows by other means whether a table was used for something else meanwhile */
    bool strict;               /* anything that breaks a rule counts as something that cannot be followed */
    void *arg;
    bool missed;               /* out: something could not be followed */
};
/* Home loop; inside one epoch section (but for unheld), so that no table it may still read is used for something else. -EIO: some references may
 * be missing. -ENOMEM, or what ref() returned. Suspends. */
MUST_USE int q2_survey(struct co *co, struct q2_survey *s);

#endif
