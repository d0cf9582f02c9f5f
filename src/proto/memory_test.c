/* SPDX-License-Identifier: MIT
 *
 * memory_test.c: every allocation of the codecs fails in turn, once and from then on: an error or a closed connection,
 * never a crash, a leak or a wrong message.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/test.h"
#include "proto/nbd/nbd_test_peer.h"
#include "proto/qmp/qmp.h"

static int fail_in = -1;       /* the n-th allocation from now fails; negative: none */
static bool for_ever;
static unsigned failed;

static bool fails(void)
{
    if (fail_in < 0)
        return false;
    if (fail_in > 0) {
        fail_in--;
        return false;
    }
    failed++;
    if (!for_ever)
        fail_in = -1;
    return true;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);

void *__wrap_malloc(size_t n) { return fails() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return fails() ? NULL : __real_realloc(p, n); }
char *__wrap_strdup(const char *s) { return fails() ? NULL : __real_strdup(s); }

/* Calls fn with the n-th allocation failing, for every n, until nothing failed any more. Returns how often it did. */
static unsigned in_turn(void (*fn)(bool whole))
{
    unsigned hits = 0;
    for (int ever = 0; ever < 2; ever++)
        for (int n = 0;; n++) {
            for_ever = ever;
            failed = 0;
            fail_in = n;
            fn(false);
            fail_in = -1;
            if (!failed)
                break;
            hits++;
            fn(true);
        }
    return hits;
}

/* ---- the NBD codec ---- */

/* Bytes go from `m` to the codec; its output is read in two parts so that it has to move. Nothing here allocates. */
static bool handshake(struct nbdp *p, const uint8_t *m, size_t len)
{
    size_t out = 0;
    for (;;) {
        enum nbdp_event ev = nbdp_next(p);
        const uint8_t *b;
        nbdp_check(p);
        size_t n = nbdp_output(p, &b);
        nbdp_output_sent(p, n / 2);
        out += n / 2;
        if (ev == NBDP_READY || ev == NBDP_CLOSE)
            return ev == NBDP_READY && out > 3000;
        if (ev == NBDP_LIST) {
            for (int i = 0; i < 100; i++)
                nbdp_list_item(p, "an export with a name of some length", "and a description");
            nbdp_list_end(p);
        } else if (ev == NBDP_FIND_EXPORT) {
            nbdp_export_found(p, &peer_exports[0]);
        } else {
            uint8_t *room;
            ASSERT(ev == NBDP_NEED_INPUT && len);
            size_t k = min_u64(nbdp_space(p, &room), len);
            memcpy(room, m, k);
            nbdp_filled(p, k);
            m += k;
            len -= k;
        }
    }
}

static void nbd_handshake(bool whole)
{
    static const char *const q[] = { "base:allocation", NULL, NULL, NULL };
    struct bytes m = { 0 };
    struct nbdp *p = NULL;
    int keep = fail_in;
    fail_in = -1;
    say_flags(&m, 3);
    say_option(&m, NBD_OPT_LIST, NULL, 0);
    say_option(&m, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    say_meta(&m, NBD_OPT_SET_META_CONTEXT, "", q);
    say_go(&m, "");
    fail_in = keep;
    bool ready = !nbdp_new(NULL, NBDP_TLS_NONE, &p) && handshake(p, m.b, m.len);
    assert_int_equal(ready, whole || !failed);
    if (p && !ready)
        assert_string_equal(nbdp_close_reason(p), "out of memory");
    if (p && !ready)
        assert_int_equal(nbdp_next(p), NBDP_CLOSE);
    nbdp_free(p);
    bytes_free(&m);
}

static void nbd_codec(void **state)
{
    assert_true(in_turn(nbd_handshake) >= 10);
}

/* ---- QMP ---- */

static void splitting(bool whole)
{
    static const char text[] = "{\"execute\": \"a command with a long name, longer than the first buffer is, so that it has to grow: "
                               "012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
                               "012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\", \"id\": 1}";
    struct qmp_split *s = NULL;
    size_t used;
    int r = qmp_split_new(NULL, &s);
    if (!r) {
        enum qmp_item it = qmp_split_feed(s, text, sizeof text - 1, &used);
        assert_int_equal(it, whole || !failed ? QMP_TEXT : QMP_LIMIT);
    } else {
        assert_int_equal(r, -ENOMEM);
        assert_true(failed && !whole);
    }
    qmp_split_free(s);
}

static void check_text(int r, struct qmp_text *t, bool whole)
{
    if (!r)
        assert_true(t->len > 2 && !strcmp(t->text + t->len - 2, "\r\n"));
    else
        assert_true(failed && !whole && (r == -ENOMEM || r == -EINVAL));
    if (!r)
        free(t->text);
}

static void messages(bool whole)
{
    static const char command[] = "{\"execute\": \"x\", \"arguments\": {\"a\": [1, 2.5, \"s\"]}, \"id\": {\"n\": null}}";
    const struct qmp_version v = { 1, 2, 3, "p\xff" };
    const struct qmp_error e = { NULL, "bytes \xff that are no text" };
    struct qmp_text t;
    struct qmp_command c;
    int r = qmp_command_parse(command, sizeof command - 1, &c, NULL);
    assert_true(!r || (r == -EINVAL && failed && !whole));
    const struct qmp_event ev = { "E", c.arguments, 1, 2 };
    check_text(qmp_make_greeting(&v, true, false, &t), &t, whole);
    check_text(qmp_make_greeting(&v, false, true, &t), &t, whole);
    check_text(qmp_make_return(NULL, c.id, false, &t), &t, whole);
    check_text(qmp_make_return(c.arguments, NULL, false, &t), &t, whole);
    check_text(qmp_make_error(&e, c.id, false, &t), &t, whole);
    check_text(qmp_make_event(&ev, false, &t), &t, whole);
    qmp_command_fini(&c);
}

static void qmp(void **state)
{
    json_set_alloc_funcs(__wrap_malloc, free);
    assert_true(in_turn(splitting) >= 3);
    assert_true(in_turn(messages) >= 50);
    json_set_alloc_funcs(__real_malloc, free);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(nbd_codec), cmocka_unit_test(qmp) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
