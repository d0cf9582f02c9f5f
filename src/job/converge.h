/* SPDX-License-Identifier: MIT
 *
 * converge.h: will a mirror be ready, and when; what is to be done about it.
 *
 * Pure: samples in, decisions out. The job measures and obeys (mirror.c).
 */
#ifndef JOB_CONVERGE_H
#define JOB_CONVERGE_H

#include <stdbool.h>
#include <stdint.h>

enum converge_mode { CONVERGE_OFF, CONVERGE_THROTTLE, CONVERGE_BLOCKING, CONVERGE_AUTO };
/* What forbids that it is ready in time. DEADLINE: the target is too slow for what is left, even without a guest. SLOWDOWN: the guest
 * would have to be slower than it may become. MODE: nothing may be done about a guest that outruns the copy. */
enum converge_limit { CONVERGE_NONE, CONVERGE_LIMIT_DEADLINE, CONVERGE_LIMIT_SLOWDOWN, CONVERGE_LIMIT_MODE };
const char *converge_mode_name(enum converge_mode m);
const char *converge_limit_name(enum converge_limit l);      /* "none", "deadline", "max-slowdown", "mode" */

struct converge_sample { uint64_t now_ns, dirty, copied, guest; bool clean, ready, held; };   /* held: a request has waited for the target since the last one */

struct converge {
    /* set by the owner */
    enum converge_mode mode;
    uint64_t deadline_ns;                /* from the start; 0: none */
    unsigned max_slowdown;               /* >= 1 */
    bool blocking;                       /* decided; the owner may begin with true */
    /* decided */
    uint64_t brake;                      /* bytes per second that the guest may change; 0: no limit */
    uint64_t copy_limit;                 /* bytes per second that pieces may take, so that changes get their part of the target; 0: no limit */
    enum converge_limit limit;
    /* measured: bytes per second */
    double dirty_rate, copy_rate, guest_rate, guest_before;
    double left_s;                       /* predicted time until it is ready; < 0: never, as things are */
    /* inside */
    uint64_t start_ns, changed_ns, stuck_ns, free_ns;
    double free_bytes, guest_now, guest_held;
    struct converge_sample last;
    bool begun;
};

/* How much the guest changed before the job, and in what time: what it may be slowed down to follows from both. Nothing: it says nothing of how the guest
 * writes, and what is watched from its first write on counts alone. Before or behind converge_begin. */
void converge_before(struct converge *c, uint64_t bytes, uint64_t span_ns);
void converge_begin(struct converge *c, const struct converge_sample *first);
/* Every 0.1 s or so. */
void converge_step(struct converge *c, const struct converge_sample *s);
/* Seconds until the deadline; < 0: it has passed; a large number: there is none. */
double converge_time_left(const struct converge *c, uint64_t now_ns);

#endif
