/* SPDX-License-Identifier: MIT
 *
 * rset.c: the ordered set of tagged ranges, an AVL tree with parent links.
 *
 * Purpose      What rset.h declares. Each node also knows the longest range of its subtree, which makes the
 *              first-fit search logarithmic.
 * Owns         its nodes, in the tree or on the spare list
 * Invariants   I1 ranges are disjoint, not empty, in ascending order; neighbours that touch differ in tag
 *              I2 heights of siblings differ by at most 1; height and longest are those of the subtree
 *              I3 total and count are sums over the tree
 *              I4 a call that fails has changed nothing visible
 * Concurrency  one owner; runs to completion
 * Failure      -ENOMEM before the first change. One call needs at most two new nodes (a split and the piece
 *              itself), which are set aside first.
 * Tests        rset_test.c (against an array of tags, rset_check after each step)
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/rset.h"

#define SPARE_KEEP 32u      /* freed nodes kept for later calls */

struct rset_node {
    struct rset_node *child[2], *parent;    /* on the spare list child[0] is the link */
    uint64_t start, end;
    uint64_t longest;
    uint32_t tag;
    int32_t height;
};

static inline int32_t height_of(const struct rset_node *n)
{
    return n ? n->height : 0;
}

static inline uint64_t longest_of(const struct rset_node *n)
{
    return n ? n->longest : 0;
}

static inline uint64_t max3(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t m = a > b ? a : b;
    return m > c ? m : c;
}

static void refresh(struct rset_node *n)
{
    int32_t l = height_of(n->child[0]), r = height_of(n->child[1]);
    n->height = 1 + (l > r ? l : r);
    n->longest = max3(n->end - n->start, longest_of(n->child[0]), longest_of(n->child[1]));
}

/* The link that points to n. */
static struct rset_node **link_of(struct rset *s, struct rset_node *n)
{
    return n->parent ? &n->parent->child[n->parent->child[1] == n] : &s->root;
}

/* Lifts n's child on side `dir` above n; returns it. */
static struct rset_node *rotate(struct rset *s, struct rset_node *n, int dir)
{
    struct rset_node *c = n->child[dir], *inner = c->child[!dir];
    *link_of(s, n) = c;
    c->parent = n->parent;
    c->child[!dir] = n;
    n->parent = c;
    n->child[dir] = inner;
    if (inner)
        inner->parent = n;
    refresh(n);
    refresh(c);
    return c;
}

/* Restores I2 from n up to the root. */
static void fix_up(struct rset *s, struct rset_node *n)
{
    for (; n; n = n->parent) {
        int32_t lean = height_of(n->child[1]) - height_of(n->child[0]);
        if (lean > 1 || lean < -1) {
            int dir = lean > 1;
            struct rset_node *c = n->child[dir];
            if (height_of(c->child[!dir]) > height_of(c->child[dir]))
                rotate(s, c, !dir);
            n = rotate(s, n, dir);
        } else {
            refresh(n);
        }
    }
}

static struct rset_node *step(const struct rset_node *n, int dir)
{
    if (n->child[dir]) {
        n = n->child[dir];
        while (n->child[!dir])
            n = n->child[!dir];
        return (struct rset_node *)n;
    }
    while (n->parent && n->parent->child[dir] == n)
        n = n->parent;
    return n->parent;
}

/* First node with end > pos. */
static struct rset_node *find_after(const struct rset *s, uint64_t pos)
{
    struct rset_node *n = s->root, *best = NULL;
    while (n) {
        if (n->end > pos) {
            best = n;
            n = n->child[0];
        } else {
            n = n->child[1];
        }
    }
    return best;
}

/* Makes sure of n spare nodes. */
static int spare_fill(struct rset *s, uint32_t n)
{
    while (s->spare_count < n) {
        struct rset_node *node = malloc(sizeof *node);
        if (!node)
            return -ENOMEM;
        node->child[0] = s->spare;
        s->spare = node;
        s->spare_count++;
    }
    return 0;
}

static void spare_put(struct rset *s, struct rset_node *n)
{
    if (s->spare_count >= SPARE_KEEP) {
        free(n);
        return;
    }
    n->child[0] = s->spare;
    s->spare = n;
    s->spare_count++;
}

static void insert(struct rset *s, uint64_t start, uint64_t end, uint32_t tag)
{
    struct rset_node *n = s->spare, *parent = NULL, **link = &s->root;
    ASSERT(n);
    s->spare = n->child[0];
    s->spare_count--;
    while (*link) {
        parent = *link;
        link = &parent->child[start > parent->start];
    }
    *n = (struct rset_node){ .parent = parent, .start = start, .end = end, .tag = tag };
    *link = n;
    s->total += end - start;
    s->count++;
    fix_up(s, n);
}

/* Takes n out of the tree; ranges behind it keep their nodes. */
static void erase(struct rset *s, struct rset_node *n)
{
    struct rset_node *from;     /* lowest node whose subtree changed */
    s->total -= n->end - n->start;
    s->count--;
    if (n->child[0] && n->child[1]) {
        struct rset_node *next = step(n, 1);    /* has no left child: takes n's place */
        from = next->parent == n ? next : next->parent;
        *link_of(s, next) = next->child[1];
        if (next->child[1])
            next->child[1]->parent = next->parent;
        *link_of(s, n) = next;
        next->parent = n->parent;
        for (int d = 0; d < 2; d++) {
            next->child[d] = n->child[d];
            if (next->child[d])
                next->child[d]->parent = next;
        }
    } else {
        struct rset_node *c = n->child[n->child[0] == NULL];
        from = n->parent;
        *link_of(s, n) = c;
        if (c)
            c->parent = n->parent;
    }
    fix_up(s, from);
    spare_put(s, n);
}

static void resize(struct rset *s, struct rset_node *n, uint64_t start, uint64_t end)
{
    s->total += (end - start) - (n->end - n->start);
    n->start = start;
    n->end = end;
    fix_up(s, n);
}

/* Removes [start, end) from the tree. A split needs one spare node. */
static void cut(struct rset *s, uint64_t start, uint64_t end)
{
    struct rset_node *n = find_after(s, start);
    while (n && n->start < end) {
        struct rset_node *next = step(n, 1);
        if (n->start < start && n->end > end) {
            uint64_t old_end = n->end;
            resize(s, n, n->start, start);
            insert(s, end, old_end, n->tag);
            return;
        }
        if (n->start < start)
            resize(s, n, n->start, start);
        else if (n->end > end)
            resize(s, n, end, n->end);
        else
            erase(s, n);
        n = next;
    }
}

void rset_init(struct rset *s)
{
    *s = (struct rset){ 0 };
}

void rset_fini(struct rset *s)
{
    struct rset_node *n = s->root;
    while (n) {                                 /* children first, by the parent links */
        if (n->child[0] || n->child[1]) {
            n = n->child[n->child[0] == NULL];
            continue;
        }
        struct rset_node *parent = n->parent;
        *link_of(s, n) = NULL;
        free(n);
        n = parent;
    }
    while ((n = s->spare)) {
        s->spare = n->child[0];
        free(n);
    }
    rset_init(s);
}

int rset_reserve(struct rset *s, uint32_t n)
{
    if (n > UINT32_MAX / 2)
        return -ENOMEM;
    return spare_fill(s, 2 * n);
}

int rset_add(struct rset *s, uint64_t start, uint64_t end, uint32_t tag)
{
    ASSERT(start <= end);
    if (start == end)
        return 0;
    struct rset_node *n = find_after(s, start);
    if (n && n->tag == tag && n->start <= start && n->end >= end)
        return 0;
    bool splits = n && n->start < start && n->end > end;
    int r = spare_fill(s, splits ? 2 : 1);
    if (r)
        return r;
    cut(s, start, end);
    struct rset_node *next = find_after(s, start);              /* begins at or behind end now */
    struct rset_node *prev = start ? find_after(s, start - 1) : NULL;
    if (next && (next->start != end || next->tag != tag))
        next = NULL;
    if (prev && (prev->end != start || prev->tag != tag))
        prev = NULL;
    if (prev && next) {
        end = next->end;
        erase(s, next);         /* never moves prev's node */
    }
    if (prev)
        resize(s, prev, prev->start, end);
    else if (next)
        resize(s, next, start, next->end);
    else
        insert(s, start, end, tag);
    return 0;
}

int rset_remove(struct rset *s, uint64_t start, uint64_t end)
{
    ASSERT(start <= end);
    if (start == end)
        return 0;
    struct rset_node *n = find_after(s, start);
    if (n && n->start < start && n->end > end) {
        int r = spare_fill(s, 1);
        if (r)
            return r;
    }
    cut(s, start, end);
    return 0;
}

static bool give(const struct rset_node *n, struct rset_range *ret)
{
    if (n)
        *ret = (struct rset_range){ n->start, n->end, n->tag };
    return n != NULL;
}

bool rset_next(const struct rset *s, uint64_t pos, struct rset_range *ret)
{
    return give(find_after(s, pos), ret);
}

bool rset_overlaps(const struct rset *s, uint64_t start, uint64_t end)
{
    const struct rset_node *n = start < end ? find_after(s, start) : NULL;
    return n && n->start < end;
}

bool rset_contains(const struct rset *s, uint64_t start, uint64_t end)
{
    const struct rset_node *n;
    for (; start < end; start = n->end) {       /* neighbours may touch with other tags */
        n = find_after(s, start);
        if (!n || n->start > start)
            return false;
    }
    return true;
}

/* First node of n's subtree that is long enough; longest_of(n) >= want. */
static const struct rset_node *leftmost_fit(const struct rset_node *n, uint64_t want)
{
    for (;;) {
        if (longest_of(n->child[0]) >= want)
            n = n->child[0];
        else if (n->end - n->start >= want)
            return n;
        else
            n = n->child[1];
    }
}

bool rset_fit(const struct rset *s, uint64_t pos, uint64_t want, struct rset_range *ret)
{
    const struct rset_node *n = s->root, *at = NULL;
    while (n) {                                 /* at = first node that starts at or behind pos */
        if (n->start >= pos) {
            at = n;
            n = n->child[0];
        } else {
            n = n->child[1];
        }
    }
    while (at) {
        if (at->end - at->start >= want)
            return give(at, ret);
        if (longest_of(at->child[1]) >= want)
            return give(leftmost_fit(at->child[1], want), ret);
        while (at->parent && at->parent->child[1] == at)
            at = at->parent;
        at = at->parent;
    }
    return false;
}

void rset_check(const struct rset *s)
{
    uint64_t total = 0, count = 0;
    uint32_t spares = 0;
    const struct rset_node *prev = NULL, *n = find_after(s, 0);
    INV(I2, !s->root || !s->root->parent);
    for (; n; prev = n, n = step(n, 1)) {
        const struct rset_node *l = n->child[0], *r = n->child[1];
        int32_t lean = height_of(r) - height_of(l);
        INV(I1, n->start < n->end);
        INV(I1, !prev || prev->end < n->start || (prev->end == n->start && prev->tag != n->tag));
        INV(I2, lean >= -1 && lean <= 1);
        INV(I2, n->height == 1 + (lean > 0 ? height_of(r) : height_of(l)));
        INV(I2, n->longest == max3(n->end - n->start, longest_of(l), longest_of(r)));
        INV(I2, (!l || l->parent == n) && (!r || r->parent == n));
        total += n->end - n->start;
        count++;
    }
    INV(I3, total == s->total && count == s->count);
    for (n = s->spare; n; n = n->child[0])
        spares++;
    INV(I3, spares == s->spare_count);
}
