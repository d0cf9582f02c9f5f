/* SPDX-License-Identifier: MIT
 *
 * json_out_test.c: exact text in both styles, and everything read back by jansson.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/json_out.h"
#include "base/prng.h"
#include "base/test.h"

static void write_sample(struct json_out *j)
{
    jo_open_obj(j, NULL);
    jo_str(j, "format", "qcow2");
    jo_u64(j, "size", UINT64_MAX);
    jo_open_arr(j, "list");
    jo_i64(j, NULL, INT64_MIN);
    jo_bool(j, NULL, true);
    jo_open_obj(j, NULL);
    jo_close(j);
    jo_null(j, NULL);
    jo_close(j);
    jo_str(j, "none", NULL);
    jo_close(j);
}

static void exact_text(void **state)
{
    struct json_out j;
    json_out_init(&j, false);
    write_sample(&j);
    assert_int_equal(json_out_error(&j), 0);
    assert_string_equal(j.text, "{\"format\": \"qcow2\", \"size\": 18446744073709551615, "
                                "\"list\": [-9223372036854775808, true, {}, null], \"none\": null}");
    json_out_reset(&j);
    jo_open_arr(&j, NULL);
    jo_close(&j);
    assert_string_equal(j.text, "[]");
    json_out_fini(&j);
    json_out_init(&j, true);
    write_sample(&j);
    assert_string_equal(j.text, "{\n    \"format\": \"qcow2\",\n    \"size\": 18446744073709551615,\n    \"list\": [\n"
                                "        -9223372036854775808,\n        true,\n        {},\n        null\n    ],\n"
                                "    \"none\": null\n}");
    assert_int_equal(j.len_bytes, strlen(j.text));
    json_out_fini(&j);
}

static void escapes(void **state)
{
    struct json_out j;
    json_out_init(&j, false);
    jo_strn(&j, NULL, "a\"\\\b\f\n\r\t\1\0\x7f/\xc3\xa4", 14);
    assert_string_equal(j.text, "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u0000\\u007f/\xc3\xa4\"");
    json_out_reset(&j);
    /* lone continuation, overlong, surrogate, cut, above the last code point */
    jo_str(&j, NULL, "x\x80y\xc0\xafz\xed\xa0\x80w\xe2\x82");
    assert_string_equal(j.text, "\"x\xef\xbf\xbdy\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdw\xef\xbf\xbd\xef\xbf\xbd\"");
    json_out_reset(&j);
    jo_str(&j, NULL, "\xf4\x90\x80\x80\xf0\x9f\x92\xbe");
    assert_string_equal(j.text, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xf0\x9f\x92\xbe\"");
    json_out_fini(&j);
}

static void any_bytes_read_back(void **state)
{
    struct prng p;
    struct json_out j;
    prng_init(&p, 4);
    json_out_init(&j, true);
    for (int i = 0; i < 3000; i++) {
        char raw[40];
        size_t n = prng_below(&p, sizeof raw);
        prng_fill(&p, raw, n);
        json_out_reset(&j);
        jo_open_obj(&j, NULL);
        jo_strn(&j, "s", raw, n);
        jo_close(&j);
        json_t *back = json_loads(j.text, JSON_ALLOW_NUL, NULL);
        assert_non_null(back);
        assert_true(json_is_string(json_object_get(back, "s")));
        json_decref(back);
    }
    json_out_fini(&j);
}

static void doubles(void **state)
{
    static const double v[] = { 0, 0.1, -2.5, 1e300, DBL_MIN, 1.0 / 3, 123456789.125 };
    struct json_out j;
    json_out_init(&j, false);
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        json_out_reset(&j);
        jo_double(&j, NULL, v[i]);
        assert_true(strtod(j.text, NULL) == v[i]);
    }
    json_out_reset(&j);
    jo_double(&j, NULL, 0.1);
    assert_string_equal(j.text, "0.1");
    json_out_reset(&j);
    jo_double(&j, NULL, (double)INFINITY);
    assert_string_equal(j.text, "null");
    json_out_fini(&j);
}

static bool fail_now;
void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
    return fail_now ? NULL : __real_realloc(p, n);
}

static void memory_runs_out(void **state)
{
    struct json_out j;
    json_out_init(&j, false);
    fail_now = true;
    write_sample(&j);
    fail_now = false;
    assert_int_equal(json_out_error(&j), -ENOMEM);
    jo_u64(&j, NULL, 1);
    assert_null(j.text);
    json_out_fini(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_text), cmocka_unit_test(escapes), cmocka_unit_test(any_bytes_read_back),
        cmocka_unit_test(doubles), cmocka_unit_test(memory_runs_out),
    };
    return cmocka_run_group_tests_name("base-json-out", tests, NULL, NULL);
}
