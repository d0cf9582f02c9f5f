/* SPDX-License-Identifier: MIT
 *
 * size_test.c: tables of sizes. The accepted and refused forms were compared with the behaviour of qemu-img 7.2.
 */
#include <string.h>

#include "base/size.h"
#include "base/test.h"

#define K UINT64_C(1024)

static const struct { const char *text; int ret; uint64_t value; } parse_rows[] = {
    { "0", 0, 0 }, { "1", 0, 1 }, { "512b", 0, 512 }, { "512B", 0, 512 }, { "1k", 0, K }, { "1K", 0, K },
    { "1.5k", 0, 1536 }, { "1.5G", 0, 1610612736 }, { ".5k", 0, 512 }, { "1.k", 0, K }, { "5.", 0, 5 },
    { "1.0", 0, 1 }, { "1.2345k", 0, 1264 }, { "0.00001k", 0, 0 }, { "1.0000000000000000000000001k", 0, K },
    { "1m", 0, K * K }, { "1M", 0, K * K }, { "1g", 0, K * K * K }, { "1t", 0, K * K * K * K },
    { "1p", 0, K * K * K * K * K }, { "1e", 0, UINT64_C(1) << 60 }, { "1E", 0, UINT64_C(1) << 60 },
    { "1.5E", 0, UINT64_C(3) << 59 }, { "15E", 0, UINT64_C(15) << 60 },
    { "15.999999999999999999E", 0, (UINT64_C(15) << 60) + 1152921504606846974u }, { "0x10", 0, 16 }, { "0X1e", 0, 30 }, { "0x10b", 0, 267 },
    { "0x10k", 0, 16 * K }, { "010", 0, 10 }, { " 1k", 0, K }, { "\t+1k", 0, K },
    { "18446744073709551615", 0, UINT64_MAX },
    { "18446744073709551616", -ERANGE, 0 }, { "16E", -ERANGE, 0 }, { "99999999999999999999999k", -ERANGE, 0 },
    { "18446744073709551615k", -ERANGE, 0 }, { "0x10000000000000000", -ERANGE, 0 },
    { "", -EINVAL, 0 }, { " ", -EINVAL, 0 }, { "k", -EINVAL, 0 }, { ".", -EINVAL, 0 }, { ".k", -EINVAL, 0 },
    { "-1", -EINVAL, 0 }, { "-0", -EINVAL, 0 }, { "+", -EINVAL, 0 }, { "+-1", -EINVAL, 0 }, { "++1", -EINVAL, 0 },
    { "1k ", -EINVAL, 0 }, { "1 k", -EINVAL, 0 }, { "1kb", -EINVAL, 0 }, { "1KiB", -EINVAL, 0 },
    { "1.5", -EINVAL, 0 }, { "1.5b", -EINVAL, 0 }, { "1e3", -EINVAL, 0 }, { "1e+3", -EINVAL, 0 }, { "1e3k", -EINVAL, 0 },
    { "0x", -EINVAL, 0 }, { "0xg", -EINVAL, 0 }, { "0x1.8", -EINVAL, 0 }, { "00x10", -EINVAL, 0 },
    { "1,5k", -EINVAL, 0 }, { "1..5k", -EINVAL, 0 }, { "inf", -EINVAL, 0 }, { "nan", -EINVAL, 0 }, { "1z", -EINVAL, 0 },
};

static void parses(void **state)
{
    for (size_t i = 0; i < sizeof parse_rows / sizeof parse_rows[0]; i++) {
        uint64_t v = 4711;
        int r = size_parse(parse_rows[i].text, &v);
        uint64_t want = parse_rows[i].ret ? 4711 : parse_rows[i].value;
        if (r != parse_rows[i].ret || v != want)
            fail_msg("\"%s\": %d, %ju; expected %d, %ju", parse_rows[i].text, r, (uintmax_t)v, parse_rows[i].ret, (uintmax_t)want);
    }
}

static void parses_prefix(void **state)
{
    uint64_t v;
    const char *end;
    assert_int_equal(size_parse_prefix("4k,8k", &v, &end), 0);
    assert_int_equal(v, 4096);
    assert_string_equal(end, ",8k");
    assert_int_equal(size_parse_prefix("x", &v, &end), -EINVAL);
}

static const struct { uint64_t bytes; const char *text; } format_rows[] = {
    { 0, "0 B" }, { 1, "1 B" }, { 512, "512 B" }, { 999, "999 B" }, { 1000, "0.977 KiB" }, { 1023, "0.999 KiB" },
    { 1024, "1 KiB" }, { 1152, "1.12 KiB" }, { 1536, "1.5 KiB" }, { 10240, "10 KiB" }, { 65536, "64 KiB" },
    { 102399, "100 KiB" }, { 1023999, "0.977 MiB" }, { 1024000, "0.977 MiB" }, { 1023487, "999 KiB" },
    { 1048575, "1 MiB" }, { 1048576, "1 MiB" }, { 1234568192, "1.15 GiB" }, { 1000000000000, "931 GiB" },
    { UINT64_C(1) << 40, "1 TiB" }, { UINT64_C(9223372036854775296), "8 EiB" }, { UINT64_MAX, "16 EiB" },
    { 10229, "9.99 KiB" }, { 10235, "10 KiB" }, { 102348, "99.9 KiB" },
};

static void formats(void **state)
{
    char out[SIZE_TEXT_MAX];
    for (size_t i = 0; i < sizeof format_rows / sizeof format_rows[0]; i++)
        assert_string_equal(size_format(format_rows[i].bytes, out), format_rows[i].text);
    for (uint64_t v = 1; v; v <<= 1)
        for (int d = -1; d <= 1; d++)
            assert_in_range(strlen(size_format(v + (uint64_t)d, out)), 3, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parses), cmocka_unit_test(parses_prefix), cmocka_unit_test(formats),
    };
    return cmocka_run_group_tests_name("base-size", tests, NULL, NULL);
}
