/* SPDX-License-Identifier: MIT
 *
 * cx_model.c: legal values after a crash.
 *
 * Purpose      Judges each sector and the size of a recovered disk.
 * Owns         The history of every sector, the flushes, the sizes.
 * Invariants   A value is dead at a cut if another value of that sector was issued after it was acknowledged and was
 *              itself acknowledged before the issue of a flush that had ended by the cut. Everything else that was
 *              issued by then is legal.
 * Order, Concurrency, Failure  None: it only watches.
 * Tests        test_faults.py
 */
#include "cx_model.h"

#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "cx_world.h"

static void *grown(void *p, unsigned count, unsigned *cap, size_t bytes)
{
    if (count < *cap)
        return p;
    *cap = *cap ? *cap * 2 : 4;
    p = realloc(p, *cap * bytes);
    if (!p)
        abort();
    return p;
}

void cx_model_init(struct cx_model *m) { memset(m, 0, sizeof *m); }

void cx_model_fini(struct cx_model *m)
{
    for (unsigned i = 0; i < CX_SECTORS_MAX; i++)
        free(m->sector[i].v);
    free(m->flush);
    free(m->size);
    free(m->initial);
}

static void add(struct cx_model *m, uint64_t sector, struct cx_value v)
{
    struct cx_sector *s = &m->sector[sector];
    s->v = grown(s->v, s->count, &s->cap, sizeof *s->v);
    s->v[s->count++] = v;
}

void cx_model_start(struct cx_model *m, const uint8_t *bytes, uint64_t len)
{
    uint8_t *copy = malloc(len ? len : 1);
    if (!copy)
        abort();
    memcpy(copy, bytes, len);
    free(m->initial);
    m->initial = copy;
    m->initial_bytes = len;
    m->flush_count = m->size_count = 0;
    for (uint64_t i = 0; i < CX_SECTORS_MAX; i++) {
        m->sector[i].count = 0;
        if (i * CX_SECTOR < len)
            add(m, i, (struct cx_value){ 0, 0, cx_version_of(m, bytes + i * CX_SECTOR, i) });
    }
    m->size = grown(m->size, 0, &m->size_cap, sizeof *m->size);
    m->size[m->size_count++] = (struct cx_size){ 0, 0, len };
}

void cx_model_issue(struct cx_model *m, uint64_t off, uint64_t len, uint32_t version, uint64_t stamp)
{
    for (uint64_t s = off / CX_SECTOR; s < (off + len) / CX_SECTOR; s++)
        add(m, s, (struct cx_value){ stamp, CX_NEVER, version });
}

void cx_model_ack(struct cx_model *m, uint64_t off, uint64_t len, uint64_t issued, uint64_t acked)
{
    for (uint64_t s = off / CX_SECTOR; s < (off + len) / CX_SECTOR; s++)
        for (unsigned i = 0; i < m->sector[s].count; i++)
            if (m->sector[s].v[i].issued == issued)
                m->sector[s].v[i].acked = acked;
}

void cx_model_flush(struct cx_model *m, uint64_t issued, uint64_t acked)
{
    m->flush = grown(m->flush, m->flush_count, &m->flush_cap, sizeof *m->flush);
    m->flush[m->flush_count++] = (struct cx_span){ issued, acked };
}

unsigned cx_model_resize(struct cx_model *m, uint64_t bytes, uint64_t issued)
{
    uint64_t old = m->size[m->size_count - 1].bytes;
    m->size = grown(m->size, m->size_count, &m->size_cap, sizeof *m->size);
    m->size[m->size_count] = (struct cx_size){ issued, CX_NEVER, bytes };
    if (bytes > old)                     /* what is gained reads zero, and nothing older may show */
        for (uint64_t s = old / CX_SECTOR; s < bytes / CX_SECTOR; s++)
            add(m, s, (struct cx_value){ issued, issued, CX_ZEROS });
    return m->size_count++;
}

void cx_model_resized(struct cx_model *m, unsigned id, uint64_t acked)
{
    m->size[id].acked = acked;
    cx_model_flush(m, m->size[id].issued + 1, acked);      /* a resize makes durable what came before it */
}

void cx_stamp(uint8_t *p, uint64_t sector, uint32_t version)
{
    uint64_t w[2] = { sector | 0xb7ull << 56, version };
    for (unsigned i = 0; i < CX_SECTOR; i += sizeof w)
        memcpy(p + i, w, sizeof w);
}

uint32_t cx_version_of(const struct cx_model *m, const uint8_t *p, uint64_t sector)
{
    uint64_t w[2], x[2];
    if (mem_is_zero(p, CX_SECTOR))
        return CX_ZEROS;
    memcpy(w, p, sizeof w);
    if (w[0] == (sector | 0xb7ull << 56)) {
        for (unsigned i = 0; i < CX_SECTOR; i += sizeof x) {
            memcpy(x, p + i, sizeof x);
            if (x[0] != w[0] || x[1] != w[1])
                return CX_TORN;
        }
        return (uint32_t)w[1];
    }
    if ((sector + 1) * CX_SECTOR <= m->initial_bytes && memcmp(p, m->initial + sector * CX_SECTOR, CX_SECTOR) == 0)
        return CX_INITIAL;
    return CX_FOREIGN;
}

static uint64_t last_flush(const struct cx_model *m, uint64_t cut)
{
    uint64_t f = 0;
    for (unsigned i = 0; i < m->flush_count; i++)
        if (m->flush[i].acked <= cut && m->flush[i].issued > f)
            f = m->flush[i].issued;
    return f;
}

bool cx_size_ok(const struct cx_model *m, uint64_t bytes, uint64_t cut)
{
    for (unsigned i = 0; i < m->size_count; i++) {
        bool later = i + 1 < m->size_count && m->size[i + 1].acked <= cut;
        if (m->size[i].bytes == bytes && m->size[i].issued < cut + (i == 0) && !later)
            return true;
    }
    return false;
}

bool cx_sector_ok(const struct cx_model *m, uint64_t sector, uint32_t version, uint64_t bytes, uint64_t cut)
{
    const struct cx_sector *s = &m->sector[sector];
    uint64_t flush = last_flush(m, cut), born = 0;
    for (unsigned i = 1; i < m->size_count; i++)         /* a sector that a grow made visible has no older life */
        if (m->size[i].bytes == bytes && m->size[i].issued < cut && m->size[i - 1].bytes <= sector * CX_SECTOR)
            born = m->size[i].issued;
    for (unsigned i = 0; i < s->count; i++) {
        const struct cx_value *v = &s->v[i];
        bool dead = (v->issued >= cut && v->issued) || v->issued < born || v->version != version;
        for (unsigned k = 0; k < s->count && !dead; k++)
            dead = k != i && s->v[k].acked < flush && s->v[k].issued > v->acked;
        if (!dead)
            return true;
    }
    return false;
}
