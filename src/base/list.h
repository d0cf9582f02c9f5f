/* SPDX-License-Identifier: MIT
 *
 * list.h: intrusive doubly linked list with a sentinel. Every call O(1), none can fail. No locks.
 *
 *     struct list all;  list_init(&all);  list_push_back(&all, &x->link);
 *     LIST_FOR(n, &all) use(CONTAINER_OF(n, struct x, link));     removing n inside the loop is allowed
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

#define CONTAINER_OF(p, T, member) ((T *)(void *)((char *)(p) - offsetof(T, member)))

struct list_node { struct list_node *next, *prev; };
struct list { struct list_node head; };

static inline void list_init(struct list *l) { l->head.next = l->head.prev = &l->head; }
static inline bool list_empty(const struct list *l) { return l->head.next == &l->head; }
/* A node that is in no list; list_linked is defined for initialised nodes only. */
static inline void list_node_init(struct list_node *n) { n->next = n->prev = n; }
static inline bool list_linked(const struct list_node *n) { return n->next != n; }

static inline void list_insert_after(struct list_node *at, struct list_node *n)
{
    n->prev = at;
    n->next = at->next;
    at->next->prev = n;
    at->next = n;
}
static inline void list_insert_before(struct list_node *at, struct list_node *n) { list_insert_after(at->prev, n); }
static inline void list_push_back(struct list *l, struct list_node *n) { list_insert_after(l->head.prev, n); }
static inline void list_push_front(struct list *l, struct list_node *n) { list_insert_after(&l->head, n); }
/* Takes n out of its list; harmless on an initialised node that is in none. */
static inline void list_remove(struct list_node *n)
{
    n->prev->next = n->next;
    n->next->prev = n->prev;
    list_node_init(n);
}
/* First, last, next: NULL when there is none. */
static inline struct list_node *list_first(const struct list *l) { return list_empty(l) ? NULL : l->head.next; }
static inline struct list_node *list_last(const struct list *l) { return list_empty(l) ? NULL : l->head.prev; }
static inline struct list_node *list_next(const struct list *l, const struct list_node *n) { return n->next == &l->head ? NULL : n->next; }
static inline struct list_node *list_pop_front(struct list *l)
{
    struct list_node *n = list_first(l);
    if (n)
        list_remove(n);
    return n;
}
/* Moves everything of `from` behind what `to` holds; `from` is empty afterwards. */
static inline void list_splice_back(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->head.next->prev = to->head.prev;
    to->head.prev->next = from->head.next;
    from->head.prev->next = &to->head;
    to->head.prev = from->head.prev;
    list_init(from);
}

#define LIST_FOR(n, l)                                                                                    \
    for (struct list_node *n = (l)->head.next, *n##_next_ = n->next; n != &(l)->head; n = n##_next_, n##_next_ = n->next)

#endif
