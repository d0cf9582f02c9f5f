/* SPDX-License-Identifier: MIT
 *
 * nbd_lib_test.c: libnbd is there, and has every function that is asked of it.
 *
 * Tests        nbd_lib.c
 */
#include "stor/stor_test.h"

#include <string.h>

#include "stor/nbd_lib.h"

static void loads(struct co *co, void *arg)
{
    const struct nbd_lib none = { 0 };
    bool first = !memcmp(&nbd_lib, &none, sizeof none);
    CHECK(first || nbd_lib.create);
    CHECK_EQ(nbd_lib_load(co, NULL), 0);
    struct nbd_handle *h = nbd_lib.create();
    CHECK(h);
    if (!h)
        return;
    CHECK_EQ(nbd_lib.set_export_name(h, "a disk"), 0);
    CHECK_EQ(nbd_lib.aio_is_connecting(h), 0);
    CHECK(nbd_lib.get_size(h) < 0 && nbd_lib.get_error() && nbd_lib.get_errno());      /* not connected */
    nbd_lib.close(h);
}

static void test_loads(void **state)
{
    t_run(0, loads, NULL);
    t_run(1, loads, NULL);
}

static void test_every_row_is_filled(void **state)
{
    t_run(0, loads, NULL);
    void *const *row = (void *const *)&nbd_lib;
    for (size_t i = 0; i < sizeof nbd_lib / sizeof *row; i++)
        CHECK(row[i]);
    assert_int_equal(t_failures, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_loads), cmocka_unit_test(test_every_row_is_filled) };
    return T_MAIN("nbd_lib", tests);
}
