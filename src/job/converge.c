/* SPDX-License-Identifier: MIT
 *
 * converge.c: will a mirror be ready in time?
 *
 * Purpose     Predicts from how fast the disk becomes dirty and how fast it is copied, and decides: changes go to both sides at once, or the
 *             guest is slowed down, no further than allowed.
 * Owns        nothing
 * Invariants  I1  brake, when it is not 0, is never below guest_before / max_slowdown, nor so near that the guest would come out below it.
 *             I2  Decisions go one way at a time and are given time to show: SETTLE_NS between two.
 *             I3  Once it is ready the guest is not slowed down any more, and blocking stays.
 *             I4  The guest's share of the target comes before the deadline: pieces step back for it.
 *             I5  What the guest is protected at is a pace at which it wrote: time before its first write says nothing about that, and does not count.
 * Order       none
 * Concurrency pure
 * Failure     none
 * Tests       converge_test.c
 */
#include "job/converge.h"

#include "base/assert.h"
#include "base/checked.h"

#define SETTLE_NS UINT64_C(500000000)
#define STUCK_NS UINT64_C(1000000000)
#define FIRST_NS UINT64_C(500000000)       /* so long it is only watched, if the deadline leaves the time */
#define NO_DEADLINE 1e9
#define SMALL_S 0.3                        /* less than this is left, by the rates: then the last of it should be gone soon */
#define BRAKE_MIN 4096.0
#define COPY_MIN 65536.0
#define RESERVE 0.25                       /* of the deadline: predictions are what they are, and this is how late they may prove to be */
#define SPARE 1.6                          /* so far above what it may become the guest is protected already */
#define MARGIN 1.25                        /* a limit is never met in full: the brake stays so far above what the guest may become */
#define KEPT 0.85                          /* of the brake: a guest that has it is slow because it is told to be */

const char *converge_mode_name(enum converge_mode m)
{
    static const char *const names[] = { "off", "throttle", "write-blocking", "auto" };
    return names[m];
}

const char *converge_limit_name(enum converge_limit l)
{
    static const char *const names[] = { "none", "deadline", "max-slowdown", "mode" };
    return names[l];
}

double converge_time_left(const struct converge *c, uint64_t now_ns)
{
    if (!c->deadline_ns)
        return NO_DEADLINE;
    return ((double)c->deadline_ns - (double)(now_ns - c->start_ns)) / 1e9;
}

void converge_before(struct converge *c, uint64_t bytes, uint64_t span_ns)
{
    ASSERT(span_ns);
    if (!bytes && c->free_bytes == 0)        /* I5 */
        return;
    c->free_bytes += (double)bytes;
    c->free_ns += span_ns;
    c->guest_before = c->free_bytes * 1e9 / (double)c->free_ns;
}

void converge_begin(struct converge *c, const struct converge_sample *first)
{
    ASSERT(c->max_slowdown >= 1);
    c->start_ns = c->changed_ns = first->now_ns;
    c->last = *first;
    c->begun = true;
    c->left_s = -1;
}

/* ---- measuring ---- */

static void follow(double *mean, double now, double dt)
{
    double weight = dt > 1 ? 1 : dt;
    *mean += (now - *mean) * (*mean == 0 ? 1 : weight);
}

static void measure(struct converge *c, const struct converge_sample *s)
{
    double dt = (double)(s->now_ns - c->last.now_ns) / 1e9;
    double copied = (double)(s->copied - c->last.copied), guest = (double)(s->guest - c->last.guest);
    double dirtied = (double)s->dirty + copied - (double)c->last.dirty;
    follow(&c->guest_now, guest / dt, dt * 3);
    follow(&c->guest_rate, guest / dt, dt);
    follow(&c->dirty_rate, dirtied > 0 ? dirtied / dt : 0, dt);
    if (s->dirty || copied > 0)
        follow(&c->copy_rate, copied / dt, dt);
    if (c->brake || (c->free_bytes == 0 && guest == 0 && c->guest_held <= 0))      /* I5 */
        return;
    if (!c->blocking) {
        c->free_bytes += guest;
        c->free_ns += s->now_ns - c->last.now_ns;
        c->guest_before = c->free_bytes * 1e9 / (double)c->free_ns;
    } else if (c->free_bytes == 0) {
        follow(&c->guest_held, guest / dt, dt);
    }
}

/* The rates say that it should be clean by now, and it is not: a few places become dirty as fast as they are copied. */
static bool is_stuck(struct converge *c, const struct converge_sample *s)
{
    double left = c->copy_rate > 0 ? (double)s->dirty / c->copy_rate : 0;
    if (s->clean || left > SMALL_S) {
        c->stuck_ns = 0;
        return false;
    }
    if (!c->stuck_ns)
        c->stuck_ns = s->now_ns;
    return s->now_ns - c->stuck_ns >= STUCK_NS;
}

static void predict(struct converge *c, const struct converge_sample *s, bool stuck)
{
    double net = c->copy_rate - c->dirty_rate;
    if (s->clean || s->ready)
        c->left_s = 0;
    else if (stuck || net <= c->copy_rate * 0.01)
        c->left_s = -1;
    else
        c->left_s = (double)s->dirty / net;
}

/* ---- deciding ---- */

/* Of a guest that began to write when its changes went to both sides already, the pace before the brake is what is known. */
static double pace_of(const struct converge *c) { return c->free_bytes > 0 ? c->guest_before : c->guest_held; }

static double floor_of(const struct converge *c)
{
    double f = pace_of(c) / c->max_slowdown * MARGIN;
    return f > BRAKE_MIN ? f : BRAKE_MIN;
}

static void slow_down(struct converge *c)
{
    double now = c->brake ? (double)c->brake : c->guest_rate, want = now * 0.7, low = floor_of(c);
    if (c->brake && (double)c->brake <= low)
        c->limit = CONVERGE_LIMIT_SLOWDOWN;
    c->brake = (uint64_t)(want > low ? want : low);
}

static void speed_up(struct converge *c)
{
    double want = (double)c->brake * 1.2;
    c->brake = c->guest_before > 0 && want > c->guest_before ? 0 : (uint64_t)want;
}

static void act(struct converge *c, const struct converge_sample *s, double left)
{
    bool may_block = c->mode == CONVERGE_BLOCKING || c->mode == CONVERGE_AUTO, may_brake = c->mode == CONVERGE_THROTTLE || c->mode == CONVERGE_AUTO;
    bool late = c->left_s < 0 || c->left_s > left - (double)c->deadline_ns / 1e9 * RESERVE;
    if (s->now_ns - c->changed_ns < SETTLE_NS)
        return;
    c->limit = CONVERGE_NONE;
    if (late && may_block && !c->blocking)
        c->blocking = true;
    else if (late && may_brake && c->guest_rate > 0)
        slow_down(c);
    else if (!late && c->brake && c->left_s < left * 0.5)
        speed_up(c);
    else if (late && c->mode == CONVERGE_OFF)
        c->limit = CONVERGE_LIMIT_MODE;
    else
        return;
    c->changed_ns = s->now_ns;
}

/* Changes that go to both sides share the target with the pieces: those step back before the guest is slower than it may become. */
static void protect_guest(struct converge *c, const struct converge_sample *s)
{
    double limit = (double)c->copy_limit, owed = pace_of(c) / c->max_slowdown * SPARE;
    if (c->brake && (double)c->brake * KEPT < owed)
        owed = (double)c->brake * KEPT;
    if (c->blocking && c->mode != CONVERGE_OFF && s->held && c->guest_now < owed) {
        limit = (limit > 0 ? limit : c->copy_rate) * 0.6;
        c->copy_limit = limit > COPY_MIN ? (uint64_t)limit : (uint64_t)COPY_MIN;
    } else if (limit > 0) {
        c->copy_limit = s->ready || limit > c->copy_rate * 4 ? 0 : (uint64_t)(limit * 1.1);
    }
}

/* Even a target that has all its time for this needs longer. Said at once, whatever is tried. */
static bool is_hopeless(const struct converge *c, const struct converge_sample *s, double left)
{
    double best = c->copy_rate + (c->blocking ? c->guest_rate : 0);
    return c->deadline_ns && best > 0 && (double)s->dirty / best > left;
}

void converge_step(struct converge *c, const struct converge_sample *s)
{
    if (!c->begun || s->now_ns <= c->last.now_ns)
        return;
    measure(c, s);
    bool stuck = is_stuck(c, s);
    predict(c, s, stuck);
    protect_guest(c, s);
    c->last = *s;
    double left = converge_time_left(c, s->now_ns);
    if (s->ready) {
        c->brake = 0;
        c->limit = CONVERGE_NONE;
        return;
    }
    uint64_t watch_ns = c->deadline_ns ? min_u64(FIRST_NS, c->deadline_ns / 10) : FIRST_NS;
    if (s->now_ns - c->start_ns >= watch_ns)
        act(c, s, left);
    if (is_hopeless(c, s, left) && c->limit == CONVERGE_NONE)
        c->limit = CONVERGE_LIMIT_DEADLINE;
}
