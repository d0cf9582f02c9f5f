/* SPDX-License-Identifier: MIT
 *
 * qmp_test.c: texts are found however the stream is cut, limits hold exactly, messages have the form that clients of
 * the protocol expect.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/test.h"
#include "proto/qmp/qmp.h"

/* Everything the splitter says about `in`, fed in pieces: texts in <>, "!bad" and "!limit". */
static char *items_of(const char *in, size_t len, size_t piece, const struct qmp_limits *lim)
{
    struct qmp_split *s;
    size_t n = 0, cap = 4 * len + 64;
    char *out = calloc(1, cap);
    assert_non_null(out);
    assert_int_equal(qmp_split_new(lim, &s), 0);
    for (size_t at = 0; at < len;) {
        size_t used, chunk = len - at < piece ? len - at : piece;
        enum qmp_item it = qmp_split_feed(s, in + at, chunk, &used);
        assert_true(used <= chunk);
        at += used;
        if (it == QMP_TEXT) {
            size_t tl;
            const char *text = qmp_split_text(s, &tl);
            assert_int_equal(strlen(text), tl);
            n += (size_t)snprintf(out + n, cap - n, "<%s>", text);
        } else if (it == QMP_BAD) {
            assert_true(qmp_split_why(s)[0]);
            n += (size_t)snprintf(out + n, cap - n, "!bad");
        } else if (it == QMP_LIMIT) {
            n += (size_t)snprintf(out + n, cap - n, "!limit");
            break;
        } else {
            assert_int_equal(used, chunk);
        }
    }
    qmp_split_free(s);
    return out;
}

static void texts_are_found(void **state)
{
    static const struct { const char *in, *want; } rows[] = {
        { "", "" },
        { "{}", "<{}>" },
        { "  {}\r\n\t{} ", "<{}><{}>" },
        { "{\"a\": [1, 2, {\"b\": \"}\"}]}", "<{\"a\": [1, 2, {\"b\": \"}\"}]}>" },
        { "{\"a\": \"\\\"}{\\\\\"}{}", "<{\"a\": \"\\\"}{\\\\\"}><{}>" },
        { "[1][2]", "<[1]><[2]>" },
        { "1 true nul", "<1><true>" },
        { "1{}", "<1><{}>" },
        { "12\"x\"3\n", "<12><\"x\"><3>" },
        { "\"}\" ", "<\"}\">" },
        { "{\n \"a\"\n:\n1\n}", "<{\n \"a\"\n:\n1\n}>" },
        { "}\n{}", "!bad<{}>" },
        { "} {} \n {} ", "!bad<{}>" },
        { "{]\n{}", "!bad<{}>" },
        { "[}\n{}", "!bad<{}>" },
        { ",\n{}", "!bad<{}>" },
        { ":\n:\n", "!bad!bad" },
        { "{\"a\n{}", "!bad<{}>" },
        { "{\"a\": 'x'}", "<{\"a\": 'x'}>" },            /* no JSON, but balanced: the parser's matter */
        { "{\x01}\n{}", "!bad<{}>" },
        { "{\xff}\n{}", "!bad<{}>" },
        { "\xff\n{\"\xc3\xa4\":1}", "!bad<{\"\xc3\xa4\":1}>" },
        { "{\"a\": {", "" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (size_t piece = 1; piece < 40; piece++) {
            char *got = items_of(rows[i].in, strlen(rows[i].in), piece, NULL);
            assert_string_equal(got, rows[i].want);
            free(got);
        }
    char *got = items_of("\0\n{}", 4, 1, NULL);
    assert_string_equal(got, "!bad<{}>");
    free(got);
}

static void byte_limit(void **state)
{
    const struct qmp_limits lim = { .bytes_max = 100 };
    for (size_t n = 90; n < 110; n++) {
        char in[128];
        memset(in, ' ', n);
        in[0] = '{';
        in[n - 1] = '}';
        for (size_t piece = 1; piece <= 64; piece *= 8) {
            char *got = items_of(in, n, piece, &lim);
            assert_int_equal(got[0], n <= 100 ? '<' : '!');
            free(got);
        }
    }
    static const char blanks[3 << 20];
    char *in = malloc(sizeof blanks);
    assert_non_null(in);
    memset(in, ' ', sizeof blanks);
    char *got = items_of(in, sizeof blanks, 65536, NULL);      /* blanks between texts are not kept and do not count */
    assert_string_equal(got, "");
    free(got);
    in[0] = '"';
    memset(in + 1, 'x', (1 << 20) + 10);
    got = items_of(in, (1 << 20) + 10, 65536, NULL);
    assert_string_equal(got, "!limit");
    free(got);
    free(in);
}

static void depth_limit(void **state)
{
    for (size_t n = 62; n < 67; n++) {
        char in[256];
        for (size_t i = 0; i < n; i++) {
            in[i] = i & 1 ? '[' : '{';
            in[2 * n - 1 - i] = i & 1 ? ']' : '}';
        }
        char *got = items_of(in, 2 * n, 7, NULL);
        assert_int_equal(got[0], n <= 64 ? '<' : '!');
        free(got);
    }
}

static void token_limit(void **state)
{
    for (size_t n = 65530; n < 65541; n++) {                   /* n tokens: brackets, and numbers with commas */
        char *in = malloc(n);
        assert_non_null(in);
        in[0] = '[';
        for (size_t i = 1; i + 1 < n; i++)
            in[i] = i & 1 ? '1' : ',';
        in[n - 1] = ']';
        char *got = items_of(in, n, 4096, NULL);
        assert_int_equal(got[0], n <= 65536 ? '<' : '!');
        free(got);
        free(in);
    }
}

static void limit_is_final(void **state)
{
    const struct qmp_limits lim = { .depth_max = 1, .tokens_max = 10 };
    struct qmp_split *s;
    size_t used;
    assert_int_equal(qmp_split_new(&lim, &s), 0);
    assert_string_equal(qmp_split_why(s), "");
    assert_int_equal(qmp_split_feed(s, "[[", 2, &used), QMP_LIMIT);
    assert_int_equal(qmp_split_feed(s, "{}", 2, &used), QMP_LIMIT);
    assert_int_equal(used, 0);
    qmp_split_free(s);
}

/* ---- commands ---- */

static void commands(void **state)
{
    static const struct { const char *in; int r; const char *name; int has_args, has_id, oob; } rows[] = {
        { "{\"execute\": \"quit\"}", 0, "quit", 0, 0, 0 },
        { "{\"exec-oob\": \"yank\", \"id\": 7}", 0, "yank", 0, 1, 1 },
        { "{\"arguments\": {}, \"id\": [1], \"execute\": \"x\"}", 0, "x", 1, 1, 0 },
        { "{\"id\": null, \"execute\": \"x\"}", 0, "x", 0, 1, 0 },
        { "{}", -EINVAL, NULL, 0, 0, 0 },
        { "{\"id\": 3}", -EINVAL, NULL, 0, 1, 0 },
        { "{\"execute\": 1, \"id\": 3}", -EINVAL, NULL, 0, 1, 0 },
        { "{\"execute\": \"a\", \"exec-oob\": \"b\", \"id\": 3}", -EINVAL, NULL, 0, 1, 0 },
        { "{\"execute\": \"a\", \"bogus\": 1, \"id\": 3}", -EINVAL, NULL, 0, 1, 0 },
        { "{\"execute\": \"a\", \"arguments\": [], \"id\": 3}", -EINVAL, NULL, 0, 1, 0 },
        { "{\"execute\": \"a\", \"execute\": \"b\"}", -EINVAL, NULL, 0, 0, 0 },
        { "{\"execute\": 'a'}", -EINVAL, NULL, 0, 0, 0 },
        { "{\"execute\": \"\\u0000\"}", -EINVAL, NULL, 0, 0, 0 },
        { "[]", -EINVAL, NULL, 0, 0, 0 },
        { "7", -EINVAL, NULL, 0, 0, 0 },
        { "\"execute\"", -EINVAL, NULL, 0, 0, 0 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct qmp_command c;
        struct byre_err err = { 0 };
        int r = qmp_command_parse(rows[i].in, strlen(rows[i].in), &c, &err);
        assert_int_equal(r, rows[i].r);
        assert_int_equal(c.id != NULL, rows[i].has_id);
        if (r) {
            assert_int_equal(err.code, r);
            assert_true(err.text[0]);
        } else {
            assert_string_equal(c.name, rows[i].name);
            assert_int_equal(c.arguments != NULL, rows[i].has_args);
            assert_int_equal(c.oob, rows[i].oob);
        }
        qmp_command_fini(&c);
    }
}

/* ---- messages ---- */

#define CHECK_TEXT(t, want) do { assert_string_equal((t).text, want); assert_int_equal((t).len, strlen(want)); free((t).text); } while (0)

static void greetings(void **state)
{
    const struct qmp_version v = { 10, 0, 2, "byre" };
    struct qmp_text t;
    assert_int_equal(qmp_make_greeting(&v, true, false, &t), 0);
    CHECK_TEXT(t, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": \"byre\"}, \"capabilities\": [\"oob\"]}}\r\n");
    const struct qmp_version bare = { 1, 2, 3, NULL };
    assert_int_equal(qmp_make_greeting(&bare, false, false, &t), 0);
    CHECK_TEXT(t, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 3, \"minor\": 2, \"major\": 1}, \"package\": \"\"}, \"capabilities\": []}}\r\n");
}

static void returns_and_errors_echo_the_id(void **state)
{
    struct qmp_text t;
    json_t *id = json_pack("{s:[i,s]}", "x", 1, "y"), *value = json_pack("[s]", "\xc3\xa4");
    assert_int_equal(qmp_make_return(NULL, NULL, false, &t), 0);
    CHECK_TEXT(t, "{\"return\": {}}\r\n");
    assert_int_equal(qmp_make_return(value, id, false, &t), 0);
    CHECK_TEXT(t, "{\"return\": [\"\\u00E4\"], \"id\": {\"x\": [1, \"y\"]}}\r\n");
    const struct qmp_error e = { NULL, "no such node" }, bytes = { "CommandNotFound", "na\xffme" };
    assert_int_equal(qmp_make_error(&e, id, false, &t), 0);
    CHECK_TEXT(t, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such node\"}, \"id\": {\"x\": [1, \"y\"]}}\r\n");
    assert_int_equal(qmp_make_error(&bytes, NULL, false, &t), 0);
    CHECK_TEXT(t, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"na?me\"}}\r\n");
    assert_int_equal(qmp_make_return(value, NULL, true, &t), 0);
    CHECK_TEXT(t, "{\n    \"return\": [\n        \"\\u00E4\"\n    ]\n}\r\n");
    json_decref(id);
    json_decref(value);
}

static void events(void **state)
{
    struct qmp_text t;
    json_t *data = json_pack("{s:s}", "id", "exp0");
    const struct qmp_event bare = { "SHUTDOWN", NULL, INT64_C(5000000000), 7 }, full = { "BLOCK_EXPORT_DELETED", data, 1, 999999 };
    assert_int_equal(qmp_make_event(&bare, false, &t), 0);
    CHECK_TEXT(t, "{\"timestamp\": {\"seconds\": 5000000000, \"microseconds\": 7}, \"event\": \"SHUTDOWN\"}\r\n");
    assert_int_equal(qmp_make_event(&full, false, &t), 0);
    CHECK_TEXT(t, "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 999999}, \"event\": \"BLOCK_EXPORT_DELETED\", \"data\": {\"id\": \"exp0\"}}\r\n");
    assert_int_equal(data->refcount, 1);
    json_decref(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_found),
        cmocka_unit_test(byte_limit),
        cmocka_unit_test(depth_limit),
        cmocka_unit_test(token_limit),
        cmocka_unit_test(limit_is_final),
        cmocka_unit_test(commands),
        cmocka_unit_test(greetings),
        cmocka_unit_test(returns_and_errors_echo_the_id),
        cmocka_unit_test(events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
