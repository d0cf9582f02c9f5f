/* SPDX-License-Identifier: MIT
 *
 * blkdebug_rules.c: events, rules, states and breakpoints of the filter blkdebug (FEATURES 3.052, 3.053).
 *
 * Purpose     An event (stor/event.h) makes rules active and changes the state; a request that meets an active rule fails; a request whose event has a
 *             breakpoint stands still until somebody lets it go on.
 * Owns        The state, which rules are active, the list of breakpoints.
 * Invariants  K1  A rule with "once" applies to one request, whatever loops ask at the same time.
 *             K3  All rules of an event are judged by the state in which it finds them; what it changes holds for the next event.
 *             K4  The first rule for errors that an event makes active takes the place of those that were. An event without such a rule leaves them
 *                 active. Those of the event "none" are active from the beginning. Of several active ones the first in the order of the options counts.
 *             K5  A breakpoint stops one request, and is gone then; all breakpoints of an event stop the same one, which goes on when it was let go on by
 *                 each of their tags. Of several requests by one tag the first goes on first.
 *             K8  Who waits for a request to stand by a tag waits until one does, or until the breakpoints of the tag are taken away.
 *             K9  No request fails with ECANCELED, as with any store (stor.h I5): above, it means that a job was told to end.
 * Order       None.
 * Concurrency Any loop; what changes is under mx. Who stands at a breakpoint keeps what he holds: locks, sections, the home loop's order of passes.
 * Failure     What the rules say.
 * Tests       filters_test.c, tests/cli/blkdebug_test.py
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graph/blkdebug.h"

/* ---- life ---- */

int debug_rules_init(struct debug_rules *all)
{
    *all = (struct debug_rules){ .state = 1 };
    if (pthread_mutex_init(&all->mx, NULL))
        return -ENOMEM;
    list_init(&all->breaks);
    list_init(&all->halted);
    list_init(&all->waiting);
    return 0;
}

/* ---- breakpoints ---- */

struct halt { struct list_node link; const char *tag; int result; struct co_xevent go; };       /* somebody stands, or waits for one who does */
/* A breakpoint: owned by the list, and by the request that it stops from then on. */
struct stop { struct halt halt; enum stor_event_kind event; struct stop *next; char tag[]; };

void debug_rules_fini(struct debug_rules *all)
{
    struct list_node *l;
    while ((l = list_pop_front(&all->breaks)))
        free(CONTAINER_OF(l, struct stop, halt.link));
    pthread_mutex_destroy(&all->mx);
}

/* Lets those of the tag (NULL: all) go on, with this result; only_first: one of them. How many. Under mx. */
static unsigned let_go(struct list *l, const char *tag, bool only_first, int result)
{
    unsigned n = 0;
    LIST_FOR(x, l) {
        struct halt *h = CONTAINER_OF(x, struct halt, link);
        if ((n && only_first) || (tag && strcmp(h->tag, tag)))
            continue;
        list_remove(&h->link);
        h->result = result;
        co_xevent_set(&h->go);                   /* h may be gone from here on */
        n++;
    }
    return n;
}

int debug_rules_break(struct debug_rules *all, enum stor_event_kind what, const char *tag)
{
    size_t n = strlen(tag) + 1;
    struct stop *s = malloc(sizeof *s + n);
    if (!s)
        return -ENOMEM;
    *s = (struct stop){ .event = what };
    memcpy(s->tag, tag, n);
    s->halt.tag = s->tag;
    pthread_mutex_lock(&all->mx);
    list_push_back(&all->breaks, &s->halt.link);
    pthread_mutex_unlock(&all->mx);
    return 0;
}

int debug_rules_unbreak(struct debug_rules *all, const char *tag)
{
    int r = -ENOENT;
    pthread_mutex_lock(&all->mx);
    LIST_FOR(l, &all->breaks) {
        struct stop *s = CONTAINER_OF(l, struct stop, halt.link);
        if (tag && strcmp(s->tag, tag))
            continue;
        list_remove(&s->halt.link);
        free(s);
        r = 0;
    }
    (void)let_go(&all->halted, tag, false, 0);               /* how many is nobody's question */
    (void)let_go(&all->waiting, tag, false, -ECANCELED);     /* K8 */
    pthread_mutex_unlock(&all->mx);
    return r;
}

int debug_rules_resume(struct debug_rules *all, const char *tag)
{
    pthread_mutex_lock(&all->mx);
    unsigned n = let_go(&all->halted, tag, true, 0);
    pthread_mutex_unlock(&all->mx);
    return n ? 0 : -ENOENT;
}

int debug_rules_wait(struct co *co, struct debug_rules *all, const char *tag)
{
    struct halt me = { .tag = tag };
    bool there = false;
    co_xevent_init(&me.go, co_loop(co));
    pthread_mutex_lock(&all->mx);
    LIST_FOR(l, &all->halted)
        there |= !strcmp(CONTAINER_OF(l, struct halt, link)->tag, tag);
    if (!there)
        list_push_back(&all->waiting, &me.link);
    pthread_mutex_unlock(&all->mx);
    if (!there)
        co_xevent_wait(co, &me.go);
    return me.result;
}

/* ---- events ---- */

/* K3, K4. Under mx. */
static void make_active(struct debug_rules *all, enum stor_event_kind what)
{
    unsigned found = all->state;
    bool first = true;
    for (unsigned i = 0; i < all->count; i++) {
        struct debug_rule *u = &all->rule[i];
        if (u->event != what || u->spent || (u->state && u->state != found))
            continue;
        if (!u->on) {
            all->state = u->new_state;
            continue;
        }
        for (unsigned k = 0; first && k < all->count; k++)
            all->rule[k].active = false;
        first = false;
        u->active = true;
    }
}

void debug_rules_begin(struct debug_rules *all)
{
    for (unsigned i = 0; i < all->count; i++)
        all->errors += all->rule[i].on != 0;
    make_active(all, STOR_EV_NONE);
}

/* The breakpoints of the event, at each of which its request stands now. Under mx. */
static struct stop *take_stops(struct co *co, struct debug_rules *all, enum stor_event_kind what)
{
    struct stop *mine = NULL;
    LIST_FOR(l, &all->breaks) {
        struct stop *s = CONTAINER_OF(l, struct stop, halt.link);
        if (s->event != what)
            continue;
        list_remove(&s->halt.link);
        co_xevent_init(&s->halt.go, co_loop(co));
        list_push_back(&all->halted, &s->halt.link);
        (void)let_go(&all->waiting, s->tag, false, 0);   /* nobody need wait for it */
        s->next = mine;
        mine = s;
    }
    return mine;
}

void debug_rules_event(struct co *co, struct debug_rules *all, enum stor_event_kind what)
{
    if (what == STOR_EV_NONE)
        return;
    pthread_mutex_lock(&all->mx);
    make_active(all, what);
    struct stop *mine = take_stops(co, all, what);
    pthread_mutex_unlock(&all->mx);
    for (struct stop *next; mine; mine = next) {
        next = mine->next;
        co_xevent_wait(co, &mine->halt.go);
        free(mine);
    }
}

/* ---- requests ---- */

static bool applies(const struct debug_rule *u, unsigned on, uint64_t off, uint64_t len)
{
    bool here = !u->has_sector || (len && u->sector * SECTOR >= off && u->sector * SECTOR - off < len);
    return u->active && u->on & on && here;
}

int debug_rules_apply(struct co *co, struct debug_rules *all, unsigned on, uint64_t off, uint64_t len)
{
    struct debug_rule met = { .error = 0 };
    uint64_t delay = 0;
    if (!all->errors)
        return 0;
    pthread_mutex_lock(&all->mx);
    for (unsigned i = 0; i < all->count && !met.error; i++) {
        struct debug_rule *u = &all->rule[i];
        if (!applies(u, on, off, len) || (u->skip && u->skip--))
            continue;
        met = *u;
        delay += u->delay_ns;
        u->spent = u->once;                      /* K1 */
        u->active = !u->once;
    }
    pthread_mutex_unlock(&all->mx);
    if (delay)
        (void)co_sleep(co, delay);               /* cut short when the request's coroutine is cancelled */
    if (met.error && !met.immediately)
        co_yield(co);
    return met.error == ECANCELED ? -EIO : -met.error;       /* K9 */
}
