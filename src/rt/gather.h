/* SPDX-License-Identifier: MIT
 *
 * gather.h: transfers that follow one another in one file and one submission become one (uring.c). Private to rt/.
 */
#ifndef RT_GATHER_H
#define RT_GATHER_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

#include "rt/backend.h"

#define GATHER_BYTES (64u << 10)    /* a transfer does not grow beyond this: several are to be with the device at a time */
#define GATHER_REQS 16u
#define GATHER_VECS 32u
#define GATHER_NEAR 4u              /* entries that the next request may join */

struct gather_group {
    struct gather_group *next;      /* idle */
    unsigned count, cnt;            /* of all and of vec */
    uint64_t len;
    struct rt_req *all[GATHER_REQS];
    struct iovec vec[GATHER_VECS];
};

/* A transfer in an entry that the kernel has not seen yet. */
struct gather_near {
    struct io_uring_sqe *sqe;
    struct rt_req *first;
    struct gather_group *group;     /* NULL: first alone */
    uint64_t len;
};

struct gather {
    struct gather_near near[GATHER_NEAR];
    unsigned count, turn;           /* of near; the next place in it that is overwritten */
    struct gather_group *idle;
    unsigned idle_count;
};

/* User data of an entry that belongs to a group: its address with this bit. */
#define GATHER_TAG 4u

/* r becomes a part of an entry that is not submitted yet; its group answers for it. */
bool gather_join(struct gather *ga, struct rt_req *r);
/* r has an entry of its own. */
void gather_note(struct gather *ga, struct rt_req *r, struct io_uring_sqe *sqe);
/* The entries are about to be submitted: nobody joins them any more. */
void gather_forget(struct gather *ga);
/* A group has its answer, `res`. Returns what of it is to be issued again, each by itself: a list by rt_req.next; the others are done. */
struct rt_req *gather_ended(struct gather *ga, struct gather_group *g, int res);
void gather_fini(struct gather *ga);

#endif
