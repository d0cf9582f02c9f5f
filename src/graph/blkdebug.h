/* SPDX-License-Identifier: MIT
 *
 * blkdebug.h: the inside of the filter blkdebug. Private to graph/.
 *
 *   blkdebug.c        requests, limits, permissions
 *   blkdebug_rules.c  events, rules, states, breakpoints
 *   blkdebug_opts.c   rules as options, and as a file
 *
 * What the three promise is numbered through all of them, K1 to K8. Breakpoints are set from outside by graph_debug_break (graph.h).
 */
#ifndef GRAPH_BLKDEBUG_H
#define GRAPH_BLKDEBUG_H

#include <pthread.h>

#include "base/list.h"
#include "graph/filters.h"

#define DEBUG_RULES_MAX 64u

enum { ON_READ = 1, ON_WRITE = 2, ON_ZERO = 4, ON_DISCARD = 8, ON_FLUSH = 16, ON_STATUS = 32 };

/* An error (on != 0) or a change of the state (on == 0). Constant but for what is marked. */
struct debug_rule {
    enum stor_event_kind event;
    unsigned on, state, new_state;           /* state 0: any */
    int error;                               /* 0: none, a delay only */
    uint64_t sector, delay_ns;
    bool has_sector, once, immediately;
    bool active, spent;                      /* under mx: its event has come; with once: a request has met it */
    unsigned skip;                           /* under mx: so many requests pass first */
};

struct debug_rules {
    pthread_mutex_t mx;                      /* a leaf, never held over a suspension */
    unsigned state;                          /* under mx; 1 at first */
    struct list breaks, halted, waiting;     /* under mx: breakpoints, requests that stand at one, who waits for such */
    unsigned count, errors;                  /* errors: of the count, those that make errors */
    struct debug_rule rule[DEBUG_RULES_MAX];
};

/* ---- blkdebug_rules.c ---- */
MUST_USE int debug_rules_init(struct debug_rules *all);              /* no rules */
void debug_rules_fini(struct debug_rules *all);                      /* nobody is inside */
void debug_rules_begin(struct debug_rules *all);                     /* all rules are there */
/* The event has come. Suspends at a breakpoint. */
void debug_rules_event(struct co *co, struct debug_rules *all, enum stor_event_kind what);
/* 0, or the error that this request of kind `on` ends with. len 0: it has no place, no rule for a sector is meant. Suspends. */
MUST_USE int debug_rules_apply(struct co *co, struct debug_rules *all, unsigned on, uint64_t off, uint64_t len);
/* As graph_debug_* of graph.h. */
MUST_USE int debug_rules_break(struct debug_rules *all, enum stor_event_kind what, const char *tag);
MUST_USE int debug_rules_unbreak(struct debug_rules *all, const char *tag);
MUST_USE int debug_rules_resume(struct debug_rules *all, const char *tag);
MUST_USE int debug_rules_wait(struct co *co, struct debug_rules *all, const char *tag);

/* ---- blkdebug_opts.c ---- */
/* The event of this name; STOR_EV_COUNT: there is none. */
enum stor_event_kind debug_event_by_name(const char *name);
/* "config", "inject-error", "set-state" of o. */
MUST_USE int debug_rules_take(struct co *co, struct debug_rules *all, const json_t *o, struct byre_err *err);

#endif
