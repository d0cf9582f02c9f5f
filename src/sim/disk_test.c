/* SPDX-License-Identifier: MIT
 *
 * disk_test.c: bytes, undo and hash of a simulated file agree with a plain array.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "base/prng.h"
#include "sim/disk.h"

#define SPAN (64u * SIM_SECTOR)

static struct hash128 fresh_sum(const struct sim_disk *d)
{
    struct sim_disk copy;
    sim_disk_init(&copy, d->salt);
    assert_int_equal(sim_disk_set_len(&copy, d->len), 0);
    assert_int_equal(sim_disk_write(&copy, 0, d->data, d->len), 0);
    sim_disk_set_hashing(&copy, true);
    struct hash128 h = copy.sum;
    sim_disk_fini(&copy);
    return h;
}

static void random_change(struct sim_disk *d, struct prng *p)
{
    uint8_t buf[2000];
    uint64_t off = prng_below(p, SPAN), len = 1 + prng_below(p, sizeof buf);
    prng_fill(p, buf, sizeof buf);
    switch (prng_below(p, 4)) {
    case 0: assert_int_equal(sim_disk_set_len(d, prng_below(p, SPAN)), 0); break;
    case 1: sim_disk_zero(d, off, len); break;
    default: assert_int_equal(sim_disk_write(d, off, buf, len), 0);
    }
}

static void hash_follows_bytes(void **state)
{
    struct sim_disk d;
    struct prng p;
    (void)state;
    prng_init(&p, 1);
    sim_disk_init(&d, 3);
    sim_disk_set_hashing(&d, true);
    for (int i = 0; i < 500; i++) {
        random_change(&d, &p);
        assert_true(hash128_eq(d.sum, fresh_sum(&d)));
        for (uint64_t k = d.len; k < d.cap; k++)
            assert_int_equal(d.data[k], 0);              /* I1 */
    }
    sim_disk_fini(&d);
}

static void undo_takes_everything_back(void **state)
{
    struct sim_disk d;
    struct prng p;
    (void)state;
    prng_init(&p, 2);
    sim_disk_init(&d, 0);
    sim_disk_set_hashing(&d, true);
    for (int round = 0; round < 100; round++) {
        random_change(&d, &p);
        uint8_t before[SPAN * 2] = { 0 }, inner[SPAN * 2] = { 0 };
        struct hash128 sum = d.sum, inner_sum;
        uint64_t len = d.len, inner_len;
        sim_disk_read(&d, 0, before, sizeof before);
        sim_mark outer_mark = sim_disk_mark(&d);
        for (int i = 0; i < 10; i++)
            random_change(&d, &p);
        sim_disk_read(&d, 0, inner, sizeof inner);
        inner_sum = d.sum;
        inner_len = d.len;
        sim_mark inner_mark = sim_disk_mark(&d);
        for (int i = 0; i < 10; i++)
            random_change(&d, &p);
        sim_disk_undo(&d, inner_mark);
        assert_int_equal(d.len, inner_len);
        assert_true(hash128_eq(d.sum, inner_sum));
        assert_memory_equal(d.data, inner, d.len);
        sim_disk_undo(&d, outer_mark);
        sim_disk_commit(&d);
        assert_int_equal(d.len, len);
        assert_true(hash128_eq(d.sum, sum));
        assert_memory_equal(d.data, before, d.len);
    }
    sim_disk_fini(&d);
}

static void place_and_file_matter(void **state)
{
    uint8_t s[SIM_SECTOR] = { 7 };
    (void)state;
    assert_false(hash128_eq(sim_sector_hash(0, 1, s), sim_sector_hash(0, 2, s)));
    assert_false(hash128_eq(sim_sector_hash(0, 1, s), sim_sector_hash(1, 1, s)));
    s[0] = 0;
    assert_true(hash128_eq(sim_sector_hash(0, 1, s), (struct hash128){ 0, 0 }));
}

static void too_large(void **state)
{
    struct sim_disk d;
    (void)state;
    sim_disk_init(&d, 0);
    assert_int_equal(sim_disk_set_len(&d, SIM_DISK_MAX + 1), -EFBIG);
    assert_int_equal(sim_disk_write(&d, SIM_DISK_MAX, "x", 1), -EFBIG);
    assert_int_equal(d.len, 0);
    sim_disk_fini(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hash_follows_bytes), cmocka_unit_test(undo_takes_everything_back), cmocka_unit_test(place_and_file_matter),
        cmocka_unit_test(too_large),
    };
    return cmocka_run_group_tests_name("sim-disk", tests, NULL, NULL);
}
