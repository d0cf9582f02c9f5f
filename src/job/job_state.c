/* SPDX-License-Identifier: MIT
 *
 * job_state.c: which state may follow which, and which verb acts in which state.
 *
 * Purpose      The two tables of FEATURES 9.001 and 9.002, and the words for both.
 * Owns         constant tables
 * Invariants   none
 * Order        none
 * Concurrency  any
 * Failure      none
 * Tests        job_test.c: every state by every state, every verb by every state
 */
#include "base/assert.h"
#include "job/job.h"

#define S(name) (1u << JOB_##name)

static const struct { const char *name; unsigned next; } states[JOB_STATUS_COUNT] = {
    [JOB_UNDEFINED] = { "undefined", S(CREATED) },
    [JOB_CREATED] = { "created", S(RUNNING) | S(ABORTING) | S(NULL) },
    [JOB_RUNNING] = { "running", S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING) },
    [JOB_PAUSED] = { "paused", S(RUNNING) },
    [JOB_READY] = { "ready", S(STANDBY) | S(WAITING) | S(ABORTING) },
    [JOB_STANDBY] = { "standby", S(READY) },
    [JOB_WAITING] = { "waiting", S(PENDING) | S(ABORTING) },
    [JOB_PENDING] = { "pending", S(ABORTING) | S(CONCLUDED) },
    [JOB_ABORTING] = { "aborting", S(CONCLUDED) },
    [JOB_CONCLUDED] = { "concluded", S(NULL) },
    [JOB_NULL] = { "null", 0 },
};

#define ACTIVE (S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY))

static const struct { const char *name; unsigned in; } verbs[JOB_VERB_COUNT] = {
    [JOB_CANCEL] = { "cancel", ACTIVE | S(WAITING) | S(PENDING) },
    [JOB_PAUSE] = { "pause", ACTIVE },
    [JOB_RESUME] = { "resume", ACTIVE },
    [JOB_SET_SPEED] = { "set-speed", ACTIVE },
    [JOB_COMPLETE] = { "complete", S(READY) | S(STANDBY) },
    [JOB_FINALIZE] = { "finalize", S(PENDING) },
    [JOB_DISMISS] = { "dismiss", S(CONCLUDED) },
};

const char *job_status_name(enum job_status s)
{
    ASSERT(s < JOB_STATUS_COUNT);
    return states[s].name;
}

const char *job_verb_name(enum job_verb v)
{
    ASSERT(v < JOB_VERB_COUNT);
    return verbs[v].name;
}

bool job_may_move(enum job_status from, enum job_status to)
{
    ASSERT(from < JOB_STATUS_COUNT && to < JOB_STATUS_COUNT);
    return states[from].next >> to & 1;
}

bool job_may_verb(enum job_verb v, enum job_status s)
{
    ASSERT(v < JOB_VERB_COUNT && s < JOB_STATUS_COUNT);
    return verbs[v].in >> s & 1;
}
