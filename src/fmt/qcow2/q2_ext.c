/* SPDX-License-Identifier: MIT
 *
 * q2_ext.c: adds or moves a header extension, one visible sector at a time.
 *
 * Purpose      Extensions are a chain: what lies behind its end is not looked at. So everything is written behind the end
 *              first, and the sector that holds the old end last. One that lies across two sectors is copied behind the end, with all
 *              that follow it; then its head, in one sector, becomes the head of padding that reaches up to the copies.
 * Owns         Nothing.
 * Invariants   X1 Between two put() the disk holds a header that says the same as before, but for feature names.
 *              X2 Each put() changes either one sector, or only bytes that no reader looks at.
 * Order        Q18. The backing name, when it is in the way: its copy | its new place (sector 0). Then: the feature names are cut
 *              off, when the new extension takes their place | everything behind the sector of the old end | that sector.
 *              Moving: the copies | the sector with the head of the old place.
 * Concurrency  None: bytes and a callback.
 * Failure      q2_ext.h
 * Tests        q2_ext_test.c: every tear of every step, over headers of all shapes
 */
#include "fmt/qcow2/q2_ext.h"

#include <stdbool.h>
#include <string.h>

#include "base/checked.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_ondisk.h"

#define SECTOR 512u
#define HEAD ((uint32_t)sizeof(struct q2_disk_ext))

struct shape {
    uint32_t limit;                      /* extensions end here at the latest */
    uint32_t at;                         /* where the new one goes, */
    uint32_t start;                      /* or, behind padding, a little later */
    uint32_t names, names_len;           /* feature names that are the last extension; names 0: none */
    uint32_t end, used;                  /* of the last extension; of all that is parsed now */
    uint32_t padding;                    /* room of exactly the right length; 0: none */
    uint32_t backing, backing_len;
    uint32_t there;                      /* one of this type; 0: there is none */
};

struct work { struct co *co; uint8_t *buf; uint32_t bytes; q2_ext_put *put; void *arg; struct shape s; };

static uint32_t get32(const uint8_t *buf, uint32_t at) { return be32_get((const be32 *)(buf + at)); }

static void look(struct work *w, const struct q2_ext *e)
{
    const struct q2_disk_header *d = (const struct q2_disk_header *)w->buf;
    struct shape *s = &w->s;
    *s = (struct shape){ .backing = (uint32_t)be64_get(&d->backing_off), .backing_len = be32_get(&d->backing_len) };
    s->limit = s->backing ? s->backing : w->bytes;
    uint32_t pos = be32_get(&d->version) == 2 ? Q2_HEADER_V2_BYTES : be32_get(&d->header_len);
    while (pos < s->limit && s->limit - pos >= HEAD) {
        uint32_t type = get32(w->buf, pos), n = get32(w->buf, pos + 4);
        if (type == Q2_EXT_END)
            break;
        s->names = type == Q2_EXT_FEATURE_NAMES ? pos : 0;
        s->names_len = n;
        s->there = type == e->type ? pos : s->there;
        if (type == Q2_EXT_PADDING && n == e->len)
            s->padding = pos;
        pos += HEAD + (uint32_t)round_up(n, 8);
    }
    s->at = s->names ? s->names : pos;
    s->end = pos;
    s->used = (uint32_t)min_u64(pos + HEAD, s->limit);
}

/* Writes the sectors that hold [from, to). */
static int put(struct work *w, uint32_t from, uint32_t to)
{
    from = (uint32_t)round_down(from, SECTOR);
    to = (uint32_t)min_u64(round_up(to, SECTOR), w->bytes);
    return from < to ? w->put(w->co, w->arg, w->buf, from, to) : 0;
}

static int reuse_padding(struct work *w, const struct q2_ext *e)
{
    uint32_t at = w->s.padding;
    memcpy(w->buf + at + HEAD, e->data, e->len);
    int r = put(w, at + HEAD, at + HEAD + e->len);
    be32_put((be32 *)(w->buf + at), e->type);
    return r < 0 ? r : put(w, at, at + 4);
}

/* Moves the backing name behind `end`. In an image whose first cluster is one sector that is part of the one write. */
static int move_name(struct work *w, uint32_t end)
{
    struct q2_disk_header *d = (struct q2_disk_header *)w->buf;
    struct shape *s = &w->s;
    bool one = w->bytes == SECTOR;
    uint64_t to = round_up(one ? end : max_u64(end, s->backing + s->backing_len), 8);
    if (!s->backing || to + s->backing_len > w->bytes)
        return -ENOSPC;
    memmove(w->buf + to, w->buf + s->backing, s->backing_len);
    int r = one ? 0 : put(w, (uint32_t)to, (uint32_t)to + s->backing_len);
    be64_put(&d->backing_off, to);
    s->limit = (uint32_t)to;
    return r < 0 || one ? r : put(w, 0, SECTOR);
}

static uint32_t emit(uint8_t *buf, uint32_t at, uint32_t type, uint32_t len, const void *data)
{
    uint32_t padded = (uint32_t)round_up(len, 8);
    be32_put((be32 *)(buf + at), type);
    be32_put((be32 *)(buf + at + 4), len);
    memset(buf + at + HEAD, 0, padded);
    if (data)
        memcpy(buf + at + HEAD, data, len);
    return at + HEAD + padded;
}

/* Where an extension with `len` bytes must begin, at or behind `at`, so that they all lie in one sector: what changes them later
 * is then one write. In between goes padding. */
static uint32_t in_one_sector(uint32_t at, uint32_t len)
{
    uint32_t first = at + HEAD, last = first + len - 1;
    return len > SECTOR - HEAD || first / SECTOR == last / SECTOR ? at : (uint32_t)round_down(last, SECTOR) - HEAD;
}

/* The new extension, the names if they still fit, the end. Returns the end of what was changed. */
static uint32_t compose(struct work *w, const struct q2_ext *e, const uint8_t *names)
{
    const struct shape *s = &w->s;
    if (s->start > s->at)
        emit(w->buf, s->at, Q2_EXT_PADDING, s->start - s->at - HEAD, NULL);
    uint32_t pos = emit(w->buf, s->start, e->type, e->len, e->data);
    uint32_t with_names = pos + HEAD + (uint32_t)round_up(s->names_len, 8);
    if (s->names && (with_names == s->limit || with_names + HEAD <= s->limit))
        pos = emit(w->buf, pos, Q2_EXT_FEATURE_NAMES, s->names_len, names);
    uint32_t stop = (uint32_t)min_u64(max_u64(pos + HEAD, s->used), s->limit);
    if (stop > pos)
        memset(w->buf + pos, 0, stop - pos);
    return stop;
}

int q2_ext_add(struct co *co, uint8_t *buf, uint32_t bytes, const struct q2_ext *e, q2_ext_put *fn, void *arg, uint32_t *ret_off)
{
    struct work w = { .co = co, .buf = buf, .bytes = bytes, .put = fn, .arg = arg };
    look(&w, e);
    struct shape *s = &w.s;
    if (s->there)
        return -EEXIST;
    *ret_off = s->padding + HEAD;
    if (s->padding)
        return reuse_padding(&w, e);
    s->start = in_one_sector(s->at, e->len);
    uint32_t end = s->start + HEAD + (uint32_t)round_up(e->len, 8);
    if (end + HEAD > s->limit && !s->backing) {
        s->start = s->at;                /* no room to choose */
        end = s->start + HEAD + (uint32_t)round_up(e->len, 8);
    }
    int r = 0;
    if (end != s->limit && end + HEAD > s->limit)
        r = move_name(&w, end + HEAD);
    if (r < 0)
        return r;
    uint8_t names[64 * sizeof(struct q2_disk_feature_name)];
    if (s->names && s->names_len > sizeof names)
        s->names_len = sizeof names;                 /* more than anybody has ever named: the rest is left out */
    if (s->names)
        memcpy(names, buf + s->names + HEAD, s->names_len);
    uint32_t sector_end = (uint32_t)round_down(s->at, SECTOR) + SECTOR;
    if (s->names && s->used > sector_end && !MUTANT(MUT_EXT_AT_ONCE)) {
        memset(buf + s->at, 0, HEAD);                /* END */
        r = put(&w, s->at, s->at + HEAD);
    }
    uint32_t stop = compose(&w, e, names);
    *ret_off = s->start + HEAD;
    if (MUTANT(MUT_EXT_AT_ONCE))
        return put(&w, s->at, stop);
    if (r == 0)
        r = put(&w, sector_end, stop);
    return r < 0 ? r : put(&w, s->at, s->at + 4);
}

int q2_ext_move(struct co *co, uint8_t *buf, uint32_t bytes, uint32_t type, q2_ext_put *fn, void *arg, struct q2_ext_moved *ret)
{
    struct work w = { .co = co, .buf = buf, .bytes = bytes, .put = fn, .arg = arg };
    look(&w, &(struct q2_ext){ .type = type });
    struct shape *s = &w.s;
    uint32_t from = s->there, rest = s->end - from;
    if (!from)
        return -ENOENT;
    uint32_t start = in_one_sector(s->used, get32(buf, from + 4)), stop = start + rest;
    int r = 0;
    if (stop != s->limit && (uint64_t)stop + HEAD > s->limit) {
        if ((uint64_t)stop + HEAD > bytes)
            return -ENOSPC;
        r = move_name(&w, stop + HEAD);
    }
    if (r < 0)
        return r;
    memcpy(buf + start, buf + from, rest);
    memset(buf + stop, 0, stop < s->limit ? HEAD : 0);
    if (!MUTANT(MUT_EXT_AT_ONCE))
        r = put(&w, start, stop < s->limit ? stop + HEAD : stop);
    be32_put((be32 *)(buf + from), Q2_EXT_PADDING);
    be32_put((be32 *)(buf + from + 4), start - from - HEAD);
    *ret = (struct q2_ext_moved){ from, start - from };
    return r < 0 ? r : put(&w, from, MUTANT(MUT_EXT_AT_ONCE) ? stop + HEAD : from + HEAD);
}
