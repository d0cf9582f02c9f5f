/* SPDX-License-Identifier: MIT
 *
 * luks_header.c: fuzz target for LUKS headers and key slots.
 *
 * Purpose      Takes the input as the beginning of a file: parses it alone and as part of a larger file, opens it with a
 *              passphrase (when its iteration counts allow that), adds a key slot.
 * Input        The bytes of a header, with or without key slots, at most 1 MiB.
 * Invariants   I1 What is parsed comes back when it is emitted and parsed again.
 *              I2 No key material is read or written outside the area, nor over the header.
 *              I3 A slot that was added opens.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/luks_header)
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fmt/luks/lk.h"
#include "one_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (1u << 20)
#define DISK (2u << 20)
#define ITERATIONS_MAX 2000u

static uint8_t *disk;

static int64_t disk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t n = off < DISK ? min_u64(v.len_bytes, DISK - off) : 0;
    if (n)
        iov_from_buf(v, disk + off, n);
    return (int64_t)n;
}

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    ASSERT(range_inside(off, v.len_bytes, DISK));            /* I2: the area ends with the disk */
    iov_to_buf(v, disk + off, v.len_bytes);
    return (int64_t)v.len_bytes;
}

static int disk_flush(struct co *co, struct stor *s) { return 0; }

static int disk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = DISK;
    return 0;
}

static const struct stor_ops disk_ops = { .name = "memory", .preadv = disk_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .length = disk_length };

static void parse_only(const uint8_t *data, size_t size, uint64_t area)
{
    struct lk_header h, again;
    uint8_t out[LK_HEAD_BYTES] = { 0 };
    if (lk_header_parse(data, size, area, "fuzz", &h, NULL))
        return;
    uint64_t end = area ? area : h.payload_off;
    for (unsigned i = 0; i < LK_SLOTS; i++) {
        const struct lk_slot *s = &h.slot[i];
        ASSERT(s->usable || !s->active);
        ASSERT(!s->usable || (s->off >= LK_HEAD_BYTES && range_inside(s->off, lk_material_bytes(h.key_bytes, s->stripes), end)));   /* I2 */
    }
    lk_header_emit(&h, out);
    ASSERT(!lk_header_parse(out, sizeof out, area, "fuzz", &again, NULL));                   /* I1 */
    ASSERT(again.key_bytes == h.key_bytes && again.hash == h.hash && !strcmp(again.uuid, h.uuid) && lk_active_slots(&again) == lk_active_slots(&h));
}

/* Would deriving keys end soon? */
static bool is_cheap(const struct lk_header *h)
{
    uint64_t work = h->digest_iterations;
    for (unsigned i = 0; i < LK_SLOTS; i++)
        work += h->slot[i].active ? h->slot[i].iterations + (uint64_t)h->slot[i].stripes : 0;
    return work <= ITERATIONS_MAX;
}

static int area_flush(struct co *co, void *arg) { return stor_flush(co, arg); }

static void open_and_add(struct co *co, struct stor *s)
{
    struct lk_area a = { .store = s, .len = DISK, .flush = area_flush, .arg = s, .name = "fuzz" };
    struct secret old = { 3, (const uint8_t *)"sim" }, fresh = { 5, (const uint8_t *)"fresh" };
    struct lk_header h;
    uint8_t *key;
    unsigned slot;
    if (lk_load(co, &a, &h, NULL) || !is_cheap(&h))
        return;
    if (lk_unlock(co, &a, &h, &old, -1, &key, &slot, NULL))
        return;
    secret_free(key);
    struct lk_change c = { .state = FMT_KEY_ACTIVE, .keyslot = -1, .new_secret = &fresh, .open_secret = &old, .has_iter_time = true };
    if (lk_amend(co, &a, &h, &c, NULL))
        return;
    ASSERT(!lk_unlock(co, &a, &h, &fresh, -1, &key, &slot, NULL));                           /* I3 */
    secret_free(key);
}

static void run(struct co *co, void *arg)
{
    struct stor s;
    ASSERT(!stor_init(&s, &disk_ops, "fuzz"));
    s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    open_and_add(co, &s);
    stor_fini(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > INPUT_MAX)
        return 0;
    if (!disk)
        disk = malloc(DISK);
    ASSERT(disk);
    ASSERT(lk_probe(data, size) >= 0);
    parse_only(data, size, 0);
    parse_only(data, size, DISK);
    parse_only(data, size, 4096);
    memset(disk, 0, DISK);
    memcpy(disk, data, size);
    one_run(run, NULL);
    return 0;
}
