/* SPDX-License-Identifier: MIT
 *
 * names_test.c: what file names mean.
 *
 * Purpose      One row per form of name and policy.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed check names the row.
 * Tests        This is one.
 */
#include "base/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"

struct row {
    enum graph_policy policy;
    const char *text, *overlay;
    int result;
    const char *path, *format;           /* "path" or the reason of the refusal */
    bool as_file, no_backing;
};

#define E GRAPH_ECOSYSTEM
#define S GRAPH_STRICT
static const struct row rows[] = {
    { E, "a.img", NULL, 0, "a.img", NULL, false, false },
    { E, "a.img", "top", 0, "a.img", NULL, false, false },
    { E, "a.img", "/x/y/top", 0, "/x/y/a.img", NULL, false, false },
    { E, "../a.img", "x/top", 0, "x/../a.img", NULL, false, false },
    { E, "/a.img", "/x/top", 0, "/a.img", NULL, false, false },
    { E, "./a:b", NULL, 0, "./a:b", NULL, false, false },
    { E, "x/a:b", NULL, 0, "x/a:b", NULL, false, false },
    { E, "file:a.img", "/x/top", 0, "a.img", NULL, false, false },
    { E, "file:/a.img", NULL, 0, "/a.img", NULL, false, false },
    { E, "file:", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "a:b", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "nbd:localhost:10809", NULL, 0, "nbd://localhost:10809", NULL, false, false },
    { E, "nbd+unix:///x?socket=y", NULL, 0, "nbd+unix:///x?socket=y", NULL, false, false },
    { E, "nbd:unix:/a b:exportname=x", "/x/top", 0, "nbd+unix:///x?socket=/a%20b", NULL, false, false },
    { E, "nbds://u@x/e", NULL, 0, "nbds://u@x/e", NULL, false, false },
    { E, "nbds://x/e?tls-psk-file=/k", "/x/top", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"filename\":\"nbds://x?tls-certificates=/k\"}", "/x/top", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { E, "nbds://x/e", "/x/top", 0, "nbds://x/e", NULL, false, false },
    { E, "nbd:x", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "a", "nbd://x/y", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { E, "/a", "nbd://x/y", 0, "/a", NULL, false, false },
    { S, "nbd://x", NULL, 0, "nbd://x", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"server.type\":\"inet\",\"server.host\":\"h\",\"server.port\":\"1\",\"export\":\"e\"}", NULL, 0, "nbd://h:1/e", NULL, true, false },
    { E, "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"/s\"},\"reconnect-delay\":5}}", NULL, 0, "nbd+unix://?socket=/s", "qcow2", false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file.filename\":\"nbd://h/e\"}", NULL, 0, "nbd://h/e", "qcow2", false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"nbd://h/e\"}", NULL, 0, "nbd://h/e", "qcow2", false, false },
    { E, "json:{\"driver\":\"nbd\",\"path\":\"/s\"}", NULL, 0, "nbd+unix://?socket=/s", NULL, true, false },
    { E, "json:{\"driver\":\"nbd\",\"host\":\"::1\",\"port\":10809}", NULL, 0, "nbd://[::1]:10809", NULL, true, false },
    { E, "json:{\"driver\":\"nbd\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"server.type\":\"inet\",\"server.host\":\"h\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"server.type\":\"unix\",\"server.path\":\"/s\",\"server.host\":\"h\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"server.type\":\"fd\",\"server.path\":\"3\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"path\":\"/s\",\"x-dirty-bitmap\":\"t\"}", NULL, 0, "nbd+unix://?socket=/s", NULL, true, false },
    { E, "json:{\"driver\":\"nbd\",\"filename\":\"nbd://h/e\",\"export\":\"f\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"nbd\",\"path\":\"/s\",\"connections\":17}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"raw\",\"export\":\"e\",\"file.filename\":\"a\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"raw\",\"file.export\":\"e\",\"file.filename\":\"a\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "null-co://", NULL, 0, "null-co://", NULL, false, false },
    { E, "null-aio://", "/x/top", 0, "null-aio://", NULL, false, false },
    { E, "null-co:", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "null-co://x", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "null-x://", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "json:{\"driver\":\"raw\",\"file.filename\":\"null-co://\"}", NULL, 0, "null-co://", "raw", false, false },
    { S, "null-co://", NULL, 0, "null-co://", NULL, false, false },
    { S, "null-co://", "/x/top", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { E, "https://x/y", NULL, -ENOTSUP, "NOT_SUPPORTED", NULL, false, false },
    { S, "a:b", NULL, 0, "a:b", NULL, false, false },
    { S, "json:{}", NULL, 0, "json:{}", NULL, false, false },
    { S, "a.img", "/x/top", 0, "/x/a.img", NULL, false, false },
    { S, "file:a", "/x/top", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { S, "json:{\"driver\":\"raw\",\"file.filename\":\"a\"}", "/x/top", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { S, "nbd://x", "/x/top", -EPERM, "REFUSED_REFERENCE", NULL, false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}", "/x/top", 0, "a", "qcow2", false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"file.driver\":\"file\",\"backing\":null}", NULL, 0, "a", "qcow2", false, true },
    { E, "json: {\"file\": {\"filename\": \"a\"}}", NULL, 0, "a", NULL, false, false },
    { E, "json:{\"driver\":\"file\",\"filename\":\"a\"}", NULL, 0, "a", NULL, true, false },
    { E, "json:{\"driver\":\"host_device\",\"filename\":\"/dev/x\"}", NULL, 0, "/dev/x", NULL, true, false },
    { E, "json:{\"driver\":\"raw\",\"file.filename\":\"a:b\",\"read-only\":\"on\",\"file.locking\":\"off\"}", NULL, 0, "a:b", "raw", false, false },
    { E, "json:{\"filename\":\"a\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"qcow2\"}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file.filename\":1}", NULL, -EINVAL, "BAD_OPTION", NULL, false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file.filename\":\"\"}", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"foo\":1}", NULL, -ENOTSUP, "NOT_SUPPORTED", NULL, false, false },
    { E, "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"nbd\",\"filename\":\"a\"}}", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "json:{\"driver\":\"raw\",\"driver\":\"raw\",\"file.filename\":\"a\"}", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "json:[1]", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "json:{", NULL, -EINVAL, "BAD_ARGUMENT", NULL, false, false },
    { E, "json:{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}}}}}", NULL, -E2BIG, "LIMIT", NULL, false, false },
    { E, "json:{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}}}", NULL, -ENOTSUP, "NOT_SUPPORTED", NULL, false, false },
    { E, "json:{\"driver\":\"raw\",\"file.filename\":\"{[{[{[{[{[\"}", NULL, 0, "{[{[{[{[{[", "raw", false, false },
};

static bool same(const char *a, const char *b) { return a == b || (a && b && !strcmp(a, b)); }

static void test_rows(void **state)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct row *t = &rows[i];
        struct name_ref ref;
        struct byre_err err = { 0 };
        int r = name_parse(t->policy, t->text, t->overlay, &ref, &err);
        bool ok = r == t->result;
        if (!r)
            ok = ok && same(ref.path, t->path) && same(ref.format, t->format) && ref.as_file == t->as_file && ref.no_backing == t->no_backing &&
                 ref.null == (t->policy == E && stor_null_is_name(t->path));
        else
            ok = ok && same(err.reason, t->path) && !ref.path && !ref.nbd && !ref.format && !ref.node_name;
        if (!ok)
            print_error("row %zu, '%s': %d, path %s, %s: %s\n", i, t->text, r, r ? "" : ref.path, r ? err.reason : "", r ? err.text : "");
        assert_true(ok);
        if (!r)
            name_ref_fini(&ref);
    }
}

/* What is made lies where the name, opened, is looked for. */
static void test_to_make(void **state)
{
    static const struct { enum graph_policy policy; const char *text, *path; int result; } names[] = {
        { E, "a.img", "a.img", 0 }, { E, "./a:b", "./a:b", 0 }, { E, "/x/a:b", "/x/a:b", 0 }, { E, "file:a:b", "a:b", 0 }, { S, "file:a", "file:a", 0 },
        { S, "a:b", "a:b", 0 }, { S, "json:{}", "json:{}", 0 }, { E, "nbd://h/x", NULL, 0 }, { E, "null-co://", NULL, 0 },
        { E, "a:b", NULL, -EINVAL }, { E, "host_device:k", NULL, -ENOTSUP }, { E, "rbd:pool/img", NULL, -ENOTSUP }, { E, "blkdebug::a", NULL, -ENOTSUP },
        { E, "blkdebug:rules:a", NULL, -ENOTSUP }, { E, "json:x", NULL, -ENOTSUP }, { E, "json:{\"driver\":\"file\",\"filename\":\"a\"}", NULL, -ENOTSUP },
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct byre_err err = { 0 };
        const char *path;
        int r = graph_name_to_make(names[i].policy, names[i].text, &path, &err);
        bool ok = r == names[i].result && same(path, names[i].path) && !r == !err.code;
        if (!ok)
            print_error("'%s': %d, path %s, %s\n", names[i].text, r, path, err.text);
        assert_true(ok);
    }
}

static void test_options(void **state)
{
    struct name_ref ref;
    assert_int_equal(name_parse(E, "json:{\"driver\":\"raw\",\"node-name\":\"n1\",\"discard\":\"unmap\",\"cache\":{\"direct\":true,\"no-flush\":false},"
                                   "\"file\":{\"filename\":\"a\",\"locking\":\"off\",\"aio\":\"native\",\"read-only\":true}}", NULL, &ref, NULL), 0);
    assert_string_equal(ref.node_name, "n1");
    assert_int_equal(ref.discard, NAME_YES);
    assert_int_equal(ref.direct, NAME_YES);
    assert_int_equal(ref.no_flush, NAME_NO);
    assert_int_equal(ref.locking, NAME_NO);
    assert_int_equal(ref.read_only, NAME_YES);
    assert_int_equal(ref.force_share, NAME_UNSET);
    name_ref_fini(&ref);
}

/* Long and deep texts are refused before they are parsed. */
static void test_limits(void **state)
{
    struct name_ref ref;
    struct byre_err err;
    size_t len = 70000;
    char *text = malloc(len + 1);
    memset(text, '[', len);
    memcpy(text, "json:", 5);
    text[len] = 0;
    assert_int_equal(name_parse(E, text, NULL, &ref, &err), -E2BIG);
    text[1000] = 0;
    assert_int_equal(name_parse(E, text, NULL, &ref, &err), -E2BIG);
    memset(text + 5, ' ', len - 5);
    assert_int_equal(name_parse(E, text, NULL, &ref, &err), -E2BIG);
    memset(text, '\\', len);
    memcpy(text, "json:\"", 6);
    text[len] = 0;
    text[1001] = 0;
    assert_int_equal(name_parse(E, text, NULL, &ref, &err), -EINVAL);
    free(text);
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_rows), cmocka_unit_test(test_to_make), cmocka_unit_test(test_options), cmocka_unit_test(test_limits) };
    return cmocka_run_group_tests_name("names", tests, NULL, NULL);
}
