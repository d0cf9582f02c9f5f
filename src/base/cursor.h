/* SPDX-License-Identifier: MIT
 *
 * cursor.h: reading and writing bytes of disk or wire within bounds. The first access outside makes the cursor
 * bad for good: later reads answer zero, later writes do nothing. So a parser reads what it wants and asks once:
 *
 *     struct rcur c = rcur_of(buf, len);
 *     h.magic = rcur_be32(&c);  h.len = rcur_be32(&c);  name = rcur_view(&c, h.len);
 *     if (!rcur_ok(&c)) return -EINVAL;
 *
 * Values that steer the parse (lengths, counts) are zero after an overrun, so no loop runs on garbage. No
 * allocation; views point into the caller's buffer.
 */
#ifndef BASE_CURSOR_H
#define BASE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/endian.h"

struct rcur {
    const uint8_t *buf;
    size_t len_bytes, pos;      /* pos <= len_bytes always */
    bool bad;
};

static inline struct rcur rcur_of(const void *buf, size_t len_bytes)
{
    return (struct rcur){ (const uint8_t *)buf, len_bytes, 0, false };
}
static inline bool rcur_ok(const struct rcur *c) { return !c->bad; }
static inline size_t rcur_left(const struct rcur *c) { return c->bad ? 0 : c->len_bytes - c->pos; }
static inline size_t rcur_pos(const struct rcur *c) { return c->pos; }
/* Ok and nothing left over? */
static inline bool rcur_at_end(const struct rcur *c) { return !c->bad && c->pos == c->len_bytes; }

/* The next n bytes in place, NULL when there are not so many (n = 0: a pointer, not NULL, if buf is not). */
static inline const void *rcur_view(struct rcur *c, size_t n)
{
    if (c->bad || n > c->len_bytes - c->pos) {
        c->bad = true;
        return NULL;
    }
    const uint8_t *p = c->buf + c->pos;
    c->pos += n;
    return p;
}
/* Copies n bytes out; zeros when there are not so many. */
static inline bool rcur_bytes(struct rcur *c, void *dst, size_t n)
{
    const void *p = rcur_view(c, n);
    if (n && p)
        memcpy(dst, p, n);
    else if (n)
        memset(dst, 0, n);
    return p != NULL;
}
static inline bool rcur_skip(struct rcur *c, size_t n) { return rcur_view(c, n) != NULL; }
/* Moves to an absolute position. */
static inline bool rcur_seek(struct rcur *c, size_t pos)
{
    if (c->bad || pos > c->len_bytes) {
        c->bad = true;
        return false;
    }
    c->pos = pos;
    return true;
}
/* A cursor over the next n bytes, which are consumed here; bad if there are not so many. */
static inline struct rcur rcur_sub(struct rcur *c, size_t n)
{
    const void *p = rcur_view(c, n);
    return p ? rcur_of(p, n) : (struct rcur){ NULL, 0, 0, true };
}

static inline uint8_t rcur_u8(struct rcur *c)
{
    uint8_t v = 0;
    rcur_bytes(c, &v, 1);
    return v;
}
#define RCUR_DEF(T, U) static inline U rcur_##T(struct rcur *c) { T v; rcur_bytes(c, &v, sizeof v); return T##_get(&v); }
RCUR_DEF(be16, uint16_t)
RCUR_DEF(be32, uint32_t)
RCUR_DEF(be64, uint64_t)
RCUR_DEF(le16, uint16_t)
RCUR_DEF(le32, uint32_t)
RCUR_DEF(le64, uint64_t)
#undef RCUR_DEF

struct wcur {
    uint8_t *buf;
    size_t cap_bytes, pos;      /* pos <= cap_bytes always; bytes [0, pos) have been written */
    bool bad;
};

static inline struct wcur wcur_of(void *buf, size_t cap_bytes) { return (struct wcur){ (uint8_t *)buf, cap_bytes, 0, false }; }
static inline bool wcur_ok(const struct wcur *c) { return !c->bad; }
static inline size_t wcur_left(const struct wcur *c) { return c->bad ? 0 : c->cap_bytes - c->pos; }
static inline size_t wcur_pos(const struct wcur *c) { return c->pos; }

/* Room for n bytes, to be filled by the caller; NULL when there is none. */
static inline void *wcur_room(struct wcur *c, size_t n)
{
    if (c->bad || n > c->cap_bytes - c->pos) {
        c->bad = true;
        return NULL;
    }
    uint8_t *p = c->buf + c->pos;
    c->pos += n;
    return p;
}
static inline bool wcur_bytes(struct wcur *c, const void *src, size_t n)
{
    void *p = wcur_room(c, n);
    if (n && p)
        memcpy(p, src, n);
    return p != NULL;
}
static inline bool wcur_zero(struct wcur *c, size_t n)
{
    void *p = wcur_room(c, n);
    if (n && p)
        memset(p, 0, n);
    return p != NULL;
}
/* Zeros up to the next multiple of align (a power of 2). */
static inline bool wcur_align(struct wcur *c, size_t align) { return wcur_zero(c, -c->pos & (align - 1)); }
static inline bool wcur_u8(struct wcur *c, uint8_t v) { return wcur_bytes(c, &v, 1); }
#define WCUR_DEF(T, U) static inline bool wcur_##T(struct wcur *c, U x) { T v; T##_put(&v, x); return wcur_bytes(c, &v, sizeof v); }
WCUR_DEF(be16, uint16_t)
WCUR_DEF(be32, uint32_t)
WCUR_DEF(be64, uint64_t)
WCUR_DEF(le16, uint16_t)
WCUR_DEF(le32, uint32_t)
WCUR_DEF(le64, uint64_t)
#undef WCUR_DEF

#endif
