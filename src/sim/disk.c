/* SPDX-License-Identifier: MIT
 *
 * disk.c: bytes, undo log and hash of one simulated file.
 *
 * Purpose      The memory under the simulated store and the explorer.
 * Owns         data, hashes, the undo log.
 * Invariants   disk.h I1, I2. A log entry holds a sector (or the length) as it was before the change.
 * Order        None.
 * Concurrency  One thread.
 * Failure      -EFBIG. Running out of memory ends the test program: this code never runs in the engine.
 * Tests        disk_test.c
 */
#include "sim/disk.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/iov.h"
#include "sim/mem.h"

#define LEN_ENTRY UINT32_MAX

struct sim_undo {
    uint32_t sector;                     /* LEN_ENTRY: the length */
    bool was_zero;
    uint64_t len;
    struct hash128 hash;
    uint8_t old[SIM_SECTOR];
};

void sim_disk_init(struct sim_disk *d, uint32_t salt)
{
    *d = (struct sim_disk){ .salt = salt };
}

void sim_disk_fini(struct sim_disk *d)
{
    sim_mem_free(d->data);
    sim_mem_free(d->hash);
    sim_mem_free(d->undo);
    *d = (struct sim_disk){ .salt = d->salt };
}

static struct hash128 len_hash(const struct sim_disk *d, uint64_t len)
{
    return (struct hash128){ hash_combine(d->salt + 77, len), hash_combine(len, d->salt + 99) };
}

static void fold(struct sim_disk *d, struct hash128 h)
{
    d->sum.lo ^= h.lo;
    d->sum.hi ^= h.hi;
}

struct hash128 sim_sector_hash(uint32_t salt, uint64_t sector, const uint8_t *content)
{
    if (!content || mem_is_zero(content, SIM_SECTOR))
        return (struct hash128){ 0, 0 };
    /* two lanes over the words: enough spread for telling states apart, and quick */
    uint64_t a = hash_combine(salt + 1, sector), b = hash_mix64(a ^ 0x5bd1e995u), w;
    for (unsigned i = 0; i < SIM_SECTOR; i += 8) {
        memcpy(&w, content + i, 8);
        a = (a ^ w) * 0x9fb21c651e98df25u;
        a ^= a >> 29;
        b = (b + w) * 0xd6e8feb86659fd93u;
        b ^= b >> 31;
    }
    return (struct hash128){ hash_mix64(a), hash_mix64(b) };
}

void sim_disk_reset(struct sim_disk *d)
{
    if (d->data)
        memset(d->data, 0, d->len);
    if (d->hash)
        memset(d->hash, 0, d->cap / SIM_SECTOR * sizeof *d->hash);
    d->len = 0;
    d->undo_count = 0;
    d->undoing = false;
    d->sum = (struct hash128){ 0, 0 };
    if (d->hashing)
        fold(d, len_hash(d, 0));
}

void sim_disk_set_hashing(struct sim_disk *d, bool on)
{
    d->hashing = on;
    if (!on)
        return;
    d->sum = len_hash(d, d->len);
    for (uint64_t s = 0; s < d->cap / SIM_SECTOR; s++) {
        d->hash[s] = sim_sector_hash(d->salt, s, d->data + s * SIM_SECTOR);
        fold(d, d->hash[s]);
    }
}

static int room(struct sim_disk *d, uint64_t len)
{
    if (len > SIM_DISK_MAX)
        return -EFBIG;
    if (len <= d->cap)
        return 0;
    uint64_t cap = d->cap ? d->cap : 64u << 10;
    while (cap < len)
        cap *= 2;
    d->data = (uint8_t *)sim_mem_realloc(d->data, cap);
    memset(d->data + d->cap, 0, cap - d->cap);
    d->hash = (struct hash128 *)sim_mem_realloc(d->hash, cap / SIM_SECTOR * sizeof *d->hash);
    memset(d->hash + d->cap / SIM_SECTOR, 0, (cap - d->cap) / SIM_SECTOR * sizeof *d->hash);
    d->cap = cap;
    return 0;
}

static struct sim_undo *log_entry(struct sim_disk *d)
{
    if (d->undo_count == d->undo_cap) {
        d->undo_cap = d->undo_cap ? d->undo_cap * 2 : 256;
        d->undo = (struct sim_undo *)sim_mem_realloc(d->undo, d->undo_cap * sizeof *d->undo);
    }
    return &d->undo[d->undo_count++];
}

static void log_sector(struct sim_disk *d, uint64_t sector)
{
    if (!d->undoing)
        return;
    struct sim_undo *u = log_entry(d);
    const uint8_t *p = d->data + sector * SIM_SECTOR;
    u->sector = (uint32_t)sector;
    u->hash = d->hash[sector];
    u->was_zero = mem_is_zero(p, SIM_SECTOR);
    if (!u->was_zero)
        memcpy(u->old, p, SIM_SECTOR);
}

static void log_len(struct sim_disk *d)
{
    if (!d->undoing)
        return;
    struct sim_undo *u = log_entry(d);
    u->sector = LEN_ENTRY;
    u->len = d->len;
}

static void rehash(struct sim_disk *d, uint64_t sector, struct hash128 h)
{
    if (!d->hashing)
        return;
    fold(d, d->hash[sector]);
    d->hash[sector] = h;
    fold(d, h);
}

static void change_len(struct sim_disk *d, uint64_t len)
{
    if (d->hashing) {
        fold(d, len_hash(d, d->len));
        fold(d, len_hash(d, len));
    }
    d->len = len;
}

/* Bytes [off, off+len) of one sector become buf (NULL: zeros). */
static void patch(struct sim_disk *d, uint64_t off, const uint8_t *buf, uint64_t len)
{
    uint64_t sector = off / SIM_SECTOR;
    uint8_t *p = d->data + off;
    log_sector(d, sector);
    if (buf)
        memcpy(p, buf, len);
    else
        memset(p, 0, len);
    if (d->hashing)
        rehash(d, sector, sim_sector_hash(d->salt, sector, d->data + sector * SIM_SECTOR));
}

static void patch_range(struct sim_disk *d, uint64_t off, const uint8_t *buf, uint64_t len)
{
    while (len) {
        uint64_t n = min_u64(len, SIM_SECTOR - off % SIM_SECTOR);
        if (buf || !mem_is_zero(d->data + off, n))
            patch(d, off, buf, n);
        if (buf)
            buf += n;
        off += n;
        len -= n;
    }
}

int sim_disk_write(struct sim_disk *d, uint64_t off, const void *buf, uint64_t len)
{
    if (!range_inside(off, len, SIM_DISK_MAX))
        return -EFBIG;
    if (len && off + len > d->len) {
        int r = sim_disk_set_len(d, off + len);
        if (r < 0)
            return r;
    }
    patch_range(d, off, (const uint8_t *)buf, len);
    return 0;
}

void sim_disk_zero(struct sim_disk *d, uint64_t off, uint64_t len)
{
    if (off < d->len)
        patch_range(d, off, NULL, min_u64(len, d->len - off));
}

int sim_disk_set_len(struct sim_disk *d, uint64_t len)
{
    int r = room(d, round_up(len, SIM_SECTOR));
    if (r < 0)
        return r;
    if (len < d->len)
        patch_range(d, len, NULL, d->len - len);
    if (len == d->len)
        return 0;
    log_len(d);
    change_len(d, len);
    return 0;
}

void sim_disk_read(const struct sim_disk *d, uint64_t off, void *buf, uint64_t len)
{
    uint64_t n = off < d->len ? min_u64(len, d->len - off) : 0;
    if (n)
        memcpy(buf, d->data + off, n);
    memset((uint8_t *)buf + n, 0, len - n);
}

void sim_disk_put(struct sim_disk *d, uint64_t sector, const uint8_t *content, struct hash128 h)
{
    uint64_t off = sector * SIM_SECTOR;
    ASSERT(off < d->len);
    if (d->len - off < SIM_SECTOR) {                   /* the last, short sector: I1 */
        patch(d, off, content, d->len - off);
        return;
    }
    log_sector(d, sector);
    if (content)
        memcpy(d->data + off, content, SIM_SECTOR);
    else
        memset(d->data + off, 0, SIM_SECTOR);
    rehash(d, sector, h);
}

sim_mark sim_disk_mark(struct sim_disk *d)
{
    d->undoing = true;
    return d->undo_count;
}

void sim_disk_undo(struct sim_disk *d, sim_mark m)
{
    while (d->undo_count > m) {
        struct sim_undo *u = &d->undo[--d->undo_count];
        if (u->sector == LEN_ENTRY) {
            change_len(d, u->len);
            continue;
        }
        uint8_t *p = d->data + (uint64_t)u->sector * SIM_SECTOR;
        if (u->was_zero)
            memset(p, 0, SIM_SECTOR);
        else
            memcpy(p, u->old, SIM_SECTOR);
        if (d->hashing)
            rehash(d, u->sector, u->hash);
    }
}

void sim_disk_commit(struct sim_disk *d)
{
    d->undo_count = 0;
    d->undoing = false;
}
