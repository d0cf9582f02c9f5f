/* SPDX-License-Identifier: MIT
 *
 * q2_wsub_test.c: allocating writes in images with subclusters, judged sector by sector.
 *
 * Purpose      Plans a write over every kind of entry, state of the subclusters around, alignment and layer below; then does to
 *              a model of the bytes what graph/ would do, sets the entries, and compares what the guest reads with what it
 *              must read. Also: no more is filled than I2 of q2_wplan.c asks, and Q23 is claimed only where it holds.
 * Owns         A slice in memory, a model of guest and host sectors; no image is open.
 * Invariants   None.
 * Concurrency  Pure.
 * Failure      The case is printed.
 * Tests        This is one. FEATURES 1.041.
 */
#include "base/prng.h"
#include "base/test.h"

#include "fmt/qcow2/q2_write.c"

#define BITS 16u
#define CLUSTER (1ull << BITS)
#define UNIT (CLUSTER / 32)
#define SECTOR 512ull
#define PER ((unsigned)(CLUSTER / SECTOR))
#define ENTRIES 4u
#define GUEST0 (64 * CLUSTER)            /* guest offset of entry 0: the range begins in the middle of the disk */
#define HOST 0x500000ull
#define NEW 0x900000ull
#define GARBAGE 7u

static struct q2_image image;
static struct stor store;
static _Atomic uint64_t words[64];
static struct meta_block block = { .words = words };

/* What a sector shows: 0 zeros; else who wrote it. */
enum { OLD = 1000, BELOW = 20000, PACKED = 30000, DATA = 40000 };

static struct { struct q2_l2e e[ENTRIES]; uint64_t below; uint64_t from, to; bool known_zero; } now;
static unsigned host_old[ENTRIES][PER], host_new[ENTRIES][PER];

static void setup(void)
{
    image = (struct q2_image){ .g = q2_geom_make(3, BITS, 4, true), .overlap = FMT_OVERLAP_CONSTANT };
    q2_slices_set(&image, 512);
    image.im.store = image.im.data = &store;
    store.traits = (struct stor_traits){ .regular = true, .zero_growth = true, .zero_crash = true };
    atomic_store(&image.im.below_zero_from, GUEST0 + now.below);
    for (unsigned i = 0; i < ENTRIES; i++) {
        uint64_t bits, raw = q2_l2x_encode(&image.g, &now.e[i], &bits);
        atomic_store(&words[2 * i], be64_word(raw));
        atomic_store(&words[2 * i + 1], be64_word(bits));
        for (unsigned s = 0; s < PER; s++)
            host_old[i][s] = now.e[i].alloc >> (s * SECTOR / UNIT) & 1 ? OLD + i * PER + s : GARBAGE;
    }
}

/* What the guest reads in sector s of cluster i, by this entry and these host bytes. */
static unsigned reads(unsigned i, unsigned s, const struct q2_l2e *e, const unsigned *host)
{
    uint32_t bit = 1u << (s * SECTOR / UNIT);
    uint64_t at = i * CLUSTER + s * SECTOR;
    if (e->kind == Q2_COMPRESSED)
        return PACKED + i * PER + s;
    if (e->alloc & bit)
        return host[s];
    return e->zero & bit || at >= now.below ? 0 : BELOW + i * PER + s;
}

static unsigned before(unsigned i, unsigned s) { return reads(i, s, &now.e[i], host_old[i]); }

__attribute__((noreturn)) static void bad(const char *what, unsigned i, unsigned s)
{
    fail_msg("%s: cluster %u, sector %u; write [%#llx, %#llx), below ends at %#llx, entry kind %u copied %d alloc %08x zero %08x", what, i, s,
        (unsigned long long)now.from, (unsigned long long)now.to, (unsigned long long)now.below, now.e[i].kind, now.e[i].copied, now.e[i].alloc, now.e[i].zero);
    abort();
}

/* The bytes that graph/ puts on the host: head, data, tail. */
static void transfer(const struct write_txn *t, const struct fmt_write *w, bool kept)
{
    for (unsigned i = 0; i < t->n; i++)
        for (unsigned s = 0; s < PER; s++) {
            unsigned *h = kept ? &host_old[t->index + i][s] : &host_new[t->index + i][s];
            uint64_t at = (t->index + i) * CLUSTER + s * SECTOR + GUEST0;
            bool data = at >= w->off && at < w->off + w->len, around = !data && at >= w->off - w->head && at < w->off + w->len + w->tail;
            if (kept && around && now.e[t->index + i].alloc >> (s * SECTOR / UNIT) & 1)
                bad("fills what others may write in place", t->index + i, s);
            if (!kept)
                *h = now.known_zero ? 0 : GARBAGE;
            if (data)
                *h = DATA + (unsigned)(at / SECTOR);
            else if (around && w->fill == FMT_FILL_READ)
                *h = before(t->index + i, s);
            else if (around && w->fill == FMT_FILL_ZERO)
                *h = 0;
        }
}

static void judge(const struct write_txn *t, const struct fmt_write *w, const struct q2_wplan *p, const struct q2_l2e *new)
{
    for (unsigned i = t->index; i < t->index + t->n; i++)
        for (unsigned s = 0; s < PER; s++) {
            uint64_t at = i * CLUSTER + s * SECTOR + GUEST0;
            bool data = at >= w->off && at < w->off + w->len;
            unsigned want = data ? DATA + (unsigned)(at / SECTOR) : before(i, s);
            if (reads(i, s, &new[i], p->need == Q2_NEED_KEPT ? host_old[i] : host_new[i]) != want)
                bad("the guest reads something else", i, s);
            uint32_t bit = 1u << (s * SECTOR / UNIT);
            if (t->independent && new[i].alloc & bit && before(i, s))
                bad("said to be independent", i, s);
            bool touched = (w->off - GUEST0) / UNIT <= (at - GUEST0) / UNIT && (at - GUEST0) / UNIT <= (w->off + w->len - 1 - GUEST0) / UNIT;
            if (!touched && now.e[i].kind != Q2_COMPRESSED && (new[i].alloc & bit) != (now.e[i].alloc & bit))
                bad("an untouched subcluster changes", i, s);
        }
}

/* I2: is there a reason for the length of head and tail, and for reading? */
static void frugal(const struct write_txn *t, const struct fmt_write *w, const struct q2_wplan *p)
{
    const struct q2_l2e *a = &now.e[t->index], *z = &now.e[t->index + t->n - 1];
    bool old = p->need == Q2_NEED_CLUSTER, nonzero = false;
    if (w->head >= UNIT && !(old && (a->alloc || a->kind == Q2_COMPRESSED)))
        bad("a long head", t->index, 0);
    if (w->tail >= UNIT && !(old && (z->alloc || z->kind == Q2_COMPRESSED)))
        bad("a long tail", t->index + t->n - 1, 0);
    for (uint64_t at = round_down(w->off - w->head, UNIT); at < round_up(w->off + w->len + w->tail, UNIT); at += SECTOR)
        if (at < round_up(w->off, UNIT) || at >= round_down(w->off + w->len, UNIT))
            nonzero |= before((unsigned)((at - GUEST0) / CLUSTER), (unsigned)((at - GUEST0) % CLUSTER / SECTOR)) != 0;
    if (w->fill == FMT_FILL_READ && !nonzero)
        bad("reads what is zero", t->index, 0);
    if (w->fill == FMT_FILL_ZERO && !old && p->zero_first && p->zero_last && !w->head && !w->tail)
        bad("zeroes nothing", t->index, 0);
}

static unsigned planned[3];

/* One write, [from, to) of the clusters from entry 0 on. given: how many new clusters there are. */
static void run_case(uint64_t from, uint64_t to, unsigned given)
{
    now.from = from;
    now.to = to;
    setup();
    uint32_t first = (uint32_t)(from / CLUSTER);
    struct q2_wspan sp = { &block, first, (uint32_t)(div_up(to, CLUSTER) - first), GUEST0 + from, to - from };
    struct q2_wplan p;
    struct write_txn t = { .index = first };
    struct fmt_write w = { 0 };
    assert_int_equal(q2_write_plan(&image, &sp, &p), 0);
    planned[p.need]++;
    bool own = now.e[first].kind == Q2_NORMAL && now.e[first].copied, data = now.e[first].alloc >> (from % CLUSTER / UNIT) & 1;
    enum q2_need want = !own ? Q2_NEED_CLUSTER : data ? Q2_NEED_NOTHING : Q2_NEED_KEPT;
    if (p.need != want || q2_write_in_place(&image, &sp) != (want == Q2_NEED_NOTHING) || q2_write_keeps(&image, &sp) != own)
        bad("another need", first, 0);
    if (p.need == Q2_NEED_NOTHING)
        return;
    t.n = p.n;
    if (p.need == Q2_NEED_CLUSTER) {
        t.n = (uint32_t)min_u64(p.n, given);
        t.run = (struct q2_run){ .cluster = NEW / CLUSTER, .count = t.n, .known_zero = now.known_zero, .settled = true };
        t.host = NEW;
        assert_int_equal(replan(&image, &t, &sp, &p), 0);
        assert_int_equal(p.n, t.n);
    } else {
        t.host = p.host;
        uint32_t zeros = 0;
        for (unsigned i = first; i < first + p.n; i++)
            zeros |= now.e[i].zero & q2_sub_touched(&image.g, max_u64(from, i * CLUSTER) - i * CLUSTER, min_u64(to, (i + 1) * CLUSTER) - i * CLUSTER);
        if (p.stale != (zeros != 0))
            bad("waits for old writers", first, 0);                  /* W4 */
    }
    fill_in(&image, &t, &p, GUEST0 + from, to - from, &w);
    assert_true(w.off == GUEST0 + from && w.len >= 1 && w.off + w.len <= GUEST0 + to && w.host == t.host + from % CLUSTER);
    transfer(&t, &w, p.need == Q2_NEED_KEPT);
    struct q2_l2e new[ENTRIES];
    memcpy(new, now.e, sizeof new);
    for (unsigned i = 0; i < t.n; i++) {
        uint64_t g = GUEST0 + (first + i) * CLUSTER;
        uint32_t touched = q2_sub_touched(&image.g, max_u64(w.off, g) - g, min_u64(w.off + w.len, g + CLUSTER) - g);
        new[first + i] = q2_write_after(&image, &now.e[first + i], t.host + i * CLUSTER, touched);
    }
    judge(&t, &w, &p, new);
    frugal(&t, &w, &p);
}

/* Every state of three neighbouring subclusters and of the rest; every alignment of both ends; every kind of cluster. */
static void test_table(void **state)
{
    static const struct { uint64_t from, to; } ranges[] = {
        { 10 * UNIT, 11 * UNIT }, { 10 * UNIT + 512, 11 * UNIT }, { 10 * UNIT, 11 * UNIT - 512 }, { 10 * UNIT + 512, 10 * UNIT + 1024 },
        { 10 * UNIT + 512, 11 * UNIT + 512 }, { 10 * UNIT, 12 * UNIT }, { 9 * UNIT + 1024, 11 * UNIT + 512 }, { 9 * UNIT, 12 * UNIT },
        { 9 * UNIT + 512, 12 * UNIT - 512 }, { 512, 11 * UNIT }, { 10 * UNIT + 512, CLUSTER }, { 0, CLUSTER }, { 10 * UNIT, CLUSTER - 512 },
    };
    for (unsigned kind = 0; kind < 4; kind++)
        for (unsigned n = 0; n < 81; n++)                            /* 3 states, of subclusters 9, 10, 11 and of all others */
            for (unsigned b = 0; b < 4; b++)
                for (unsigned r = 0; r < sizeof ranges / sizeof ranges[0]; r++) {
                    struct q2_l2e e = { .kind = kind == 0 ? Q2_UNALLOCATED : kind == 3 ? Q2_COMPRESSED : Q2_NORMAL, .copied = kind == 1,
                        .host = kind == 0 ? 0 : HOST, .comp_bytes = kind == 3 ? 512 : 0 };
                    for (unsigned i = 0, v = n; i < 4; i++, v /= 3) {
                        uint32_t mask = i < 3 ? 1u << (9 + i) : ~(7u << 9);
                        if (v % 3 == 1 && kind != 3)
                            e.zero |= mask;
                        if (v % 3 == 2 && (kind == 1 || kind == 2))
                            e.alloc |= mask;
                    }
                    for (unsigned i = 0; i < ENTRIES; i++)
                        now.e[i] = (struct q2_l2e){ .kind = Q2_UNALLOCATED };
                    now.e[0] = e;
                    now.below = (uint64_t[]){ 0, ENTRIES * CLUSTER, 10 * UNIT + 512, 11 * UNIT }[b];
                    for (unsigned k = 0; k < 2; k++) {
                        now.known_zero = k;
                        run_case(ranges[r].from, ranges[r].to, 1);
                    }
                }
    assert_true(planned[0] > 1000 && planned[1] > 1000 && planned[2] > 1000);
}

/* Several clusters at once, of any kind, fewer given than asked for. */
static void test_random(void **state)
{
    struct prng r;
    prng_init(&r, 41);
    for (unsigned n = 0; n < 200000; n++) {
        bool alike = prng_one_in(&r, 2);
        unsigned kind = (unsigned)prng_below(&r, 4);
        for (unsigned i = 0; i < ENTRIES; i++) {
            if (!alike)
                kind = (unsigned)prng_below(&r, 4);
            uint32_t a = (uint32_t)prng_u64(&r), z = (uint32_t)prng_u64(&r) & ~a;
            if (prng_one_in(&r, 3))
                a = 0;
            if (prng_one_in(&r, 3))
                z = 0;
            bool host = kind == 1 || kind == 2;
            now.e[i] = (struct q2_l2e){ .kind = kind == 0 ? Q2_UNALLOCATED : kind == 3 ? Q2_COMPRESSED : Q2_NORMAL, .copied = kind == 1,
                .host = kind == 0 ? 0 : HOST + (i + (prng_one_in(&r, 8) ? 8 : 0)) * CLUSTER, .comp_bytes = kind == 3 ? 512 : 0,
                .alloc = host ? a : 0, .zero = kind == 3 ? 0 : z };
        }
        now.below = prng_one_in(&r, 3) ? 0 : SECTOR * prng_below(&r, ENTRIES * CLUSTER / SECTOR + 1);
        now.known_zero = prng_one_in(&r, 2);
        uint64_t from = SECTOR * prng_below(&r, ENTRIES * CLUSTER / SECTOR), left = ENTRIES * CLUSTER - from;
        uint64_t len = SECTOR * (1 + prng_below(&r, prng_one_in(&r, 2) ? min_u64(left / SECTOR, 20) : left / SECTOR));
        run_case(from, from + len, 1 + (unsigned)prng_below(&r, ENTRIES));
    }
}

/* Entries that cannot be right, and places that are none (M2). */
static void test_damage(void **state)
{
    struct q2_wplan p;
    for (unsigned i = 0; i < ENTRIES; i++)
        now.e[i] = (struct q2_l2e){ .kind = Q2_UNALLOCATED };
    setup();
    struct q2_wspan s = { &block, 0, 2, GUEST0, 2 * CLUSTER };
    atomic_store(&words[1], be64_word(1));               /* allocated nowhere */
    assert_int_equal(q2_write_plan(&image, &s, &p), -EUCLEAN);
    atomic_store(&words[1], 0);
    atomic_store(&words[2], be64_word(HOST));
    atomic_store(&words[3], be64_word(1ull << 40 | 1 << 8));         /* both */
    assert_int_equal(q2_write_plan(&image, &s, &p), 0);
    assert_int_equal(p.n, 1);                            /* stops in front of it */
    now.e[0] = (struct q2_l2e){ .kind = Q2_NORMAL, .copied = true, .host = HOST };
    setup();
    image.h.l1_off = HOST;
    image.h.l1_size = 1;
    q2_fixed_update(&image);
    assert_int_equal(q2_write_plan(&image, &s, &p), -EUCLEAN);
    assert_false(q2_write_in_place(&image, &s));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_table), cmocka_unit_test(test_random), cmocka_unit_test(test_damage) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
