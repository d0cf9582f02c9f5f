/* SPDX-License-Identifier: MIT
 *
 * nbd_context_test.c: metadata contexts (queries, selection, what keeps and what drops it) and TLS: nothing that was
 * negotiated or sent in plain text has an effect behind STARTTLS.
 */
#include <stdio.h>

#include "proto/nbd/nbd_test_replies.h"

/* ---- metadata contexts ---- */

/* Names answered to a context option, joined with commas, then the last reply type in hex. */
static void contexts_of(uint32_t opt, const char *name, const char *const q[4], char *ret, size_t cap)
{
    struct peer t;
    struct bytes m = { 0 };
    struct rep r;
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    say_meta(&m, opt, name, q);
    talk(&t, &m);
    struct rcur c = replies(&t);
    size_t n = 0;
    uint32_t last = 0;
    while (next_rep(&c, &r)) {
        last = r.type;
        if (r.type == NBD_REP_META_CONTEXT) {
            struct rcur d = rcur_of(r.data, r.len);
            n += (size_t)snprintf(ret + n, cap - n, "%u=%.*s,", rcur_be32(&d), (int)(r.len - 4), (const char *)r.data + 4);
        }
    }
    snprintf(ret + n, cap - n, "%x", last);
    bytes_free(&m);
    peer_fini(&t);
}

static void context_queries(void **state)
{
#define BASE "0=base:allocation,"
    static const struct { uint32_t opt; const char *name, *q[4], *want; } rows[] = {
        { NBD_OPT_LIST_META_CONTEXT, "", { NULL }, BASE "0=qemu:allocation-depth,0=qemu:dirty-bitmap:b0,0=qemu:dirty-bitmap:b2,1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "base:" }, BASE "1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "qemu:" }, "0=qemu:allocation-depth,0=qemu:dirty-bitmap:b0,0=qemu:dirty-bitmap:b2,1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "qemu:dirty-bitmap:" }, "0=qemu:dirty-bitmap:b0,0=qemu:dirty-bitmap:b2,1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "base:allocation", "base:", "x-y:z" }, BASE "1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "base:alloc" }, "1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "qemu:dirty-bitmap:b1" }, "1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "nonsense" }, "1" },
        { NBD_OPT_LIST_META_CONTEXT, "", { "" }, "1" },
        { NBD_OPT_LIST_META_CONTEXT, "ro", { NULL }, BASE "1" },
        { NBD_OPT_LIST_META_CONTEXT, "wheel", { NULL }, "1" },
        { NBD_OPT_LIST_META_CONTEXT, "nosuch", { NULL }, "80000006" },
        { NBD_OPT_SET_META_CONTEXT, "", { NULL }, "1" },
        { NBD_OPT_SET_META_CONTEXT, "", { "base:allocation" }, BASE "1" },
        { NBD_OPT_SET_META_CONTEXT, "", { "base:" }, "1" },
        { NBD_OPT_SET_META_CONTEXT, "", { "qemu:" }, "1" },
        { NBD_OPT_SET_META_CONTEXT, "", { "qemu:dirty-bitmap:" }, "1" },
        { NBD_OPT_SET_META_CONTEXT, "", { "qemu:dirty-bitmap:b2", "base:allocation", "base:nosuch" }, BASE "4=qemu:dirty-bitmap:b2,1" },
        { NBD_OPT_SET_META_CONTEXT, "", { "qemu:allocation-depth", "qemu:allocation-depth" }, "1=qemu:allocation-depth,1" },
        { NBD_OPT_SET_META_CONTEXT, "nosuch", { "base:allocation" }, "80000006" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char got[512];
        contexts_of(rows[i].opt, rows[i].name, rows[i].q, got, sizeof got);
        assert_string_equal(got, rows[i].want);
    }
}

static void context_lengths(void **state)
{
    static const uint32_t opts[] = { NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT };
    struct bytes d = { 0 };
    put_str(&d, "disk0");
    put32(&d, 2);
    put_str(&d, "base:allocation");
    put_str(&d, "qemu:");
    for (uint32_t n = 0; n <= d.len + 1; n++)
        for (size_t i = 0; i < 2; i++) {
            struct peer t;
            struct bytes m = { 0 };
            peer_init(&t, NULL, NBDP_TLS_NONE);
            say_flags(&m, BOTH_FLAGS);
            say_option(&m, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
            put64(&m, NBD_MAGIC_OPTION);
            put32(&m, opts[i]);
            put32(&m, n);
            put(&m, d.b, min_u64(n, d.len));
            if (n > d.len)
                put_fill(&m, 'x', 1);
            talk(&t, &m);
            assert_int_equal(last_type(&t), n == d.len ? NBD_REP_ACK : NBD_REP_ERR_INVALID);
            bytes_free(&m);
            peer_fini(&t);
        }
    bytes_free(&d);
}

static void query_string_limit(void **state)
{
    for (uint32_t n = 4095; n <= 4097; n++) {
        struct peer t;
        struct bytes d = { 0 }, m = { 0 };
        peer_init(&t, NULL, NBDP_TLS_NONE);
        put_str(&d, "");
        put32(&d, 1);
        put32(&d, n);
        put_fill(&d, 'q', n);
        say_flags(&m, BOTH_FLAGS);
        say_option(&m, NBD_OPT_LIST_META_CONTEXT, d.b, (uint32_t)d.len);
        talk(&t, &m);
        assert_int_equal(last_type(&t), n <= 4096 ? NBD_REP_ACK : NBD_REP_ERR_INVALID);
        bytes_free(&m);
        bytes_free(&d);
        peer_fini(&t);
    }
}

/* Selected contexts at the start of transmission after a script of context options. */
static uint16_t mask_after(void (*script)(struct bytes *m))
{
    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    script(&m);
    talk(&t, &m);
    assert_int_equal(t.n_ready, 1);
    uint16_t mask = nbdp_contexts(t.p);
    bytes_free(&m);
    peer_fini(&t);
    return mask;
}

static const char *const two_queries[] = { "base:allocation", "qemu:dirty-bitmap:b0", NULL, NULL };

static void set_then_go(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_go(m, "disk0");
}
static void set_then_export_name(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_option(m, NBD_OPT_EXPORT_NAME, "disk0", 5);
}
static void set_for_another_export(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "ro", alloc_query);
    say_go(m, "disk0");
}
static void set_twice(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", alloc_query);
    say_go(m, "disk0");
}
static void set_then_fail(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "nosuch", two_queries);
    say_go(m, "disk0");
}
static void set_then_malformed(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_option(m, NBD_OPT_SET_META_CONTEXT, "x", 1);
    say_go(m, "disk0");
}
static void set_then_empty(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", no_query);
    say_go(m, "disk0");
}
static void set_then_list(struct bytes *m)
{
    say_meta(m, NBD_OPT_SET_META_CONTEXT, "disk0", two_queries);
    say_meta(m, NBD_OPT_LIST_META_CONTEXT, "disk0", no_query);
    say_info(m, NBD_OPT_INFO, "ro", NULL, 0);
    say_go(m, "");
}

static void selection_is_replaced_and_bound_to_its_export(void **state)
{
    assert_int_equal(mask_after(set_then_go), 5);
    assert_int_equal(mask_after(set_then_export_name), 5);
    assert_int_equal(mask_after(set_for_another_export), 0);
    assert_int_equal(mask_after(set_twice), 1);
    assert_int_equal(mask_after(set_then_fail), 0);
    assert_int_equal(mask_after(set_then_malformed), 0);
    assert_int_equal(mask_after(set_then_empty), 0);
    assert_int_equal(mask_after(set_then_list), 5);
}

/* ---- TLS (RG25) ---- */

static void tls_required_refuses_all_but_starttls(void **state)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        struct peer t;
        struct bytes m = { 0 };
        uint32_t opt = all_options[i];
        peer_init(&t, NULL, NBDP_TLS_REQUIRED);
        say_flags(&m, BOTH_FLAGS);
        say_good(&m, opt);
        talk(&t, &m);
        assert_int_equal(t.n_ready, 0);
        assert_int_equal(t.n_tls, opt == NBD_OPT_STARTTLS);
        assert_int_equal(t.closed, opt == NBD_OPT_EXPORT_NAME || opt == NBD_OPT_ABORT);
        if (opt == NBD_OPT_EXPORT_NAME)
            assert_int_equal(t.out.len, GREETING);
        else
            assert_int_equal(last_type(&t), opt == NBD_OPT_STARTTLS || opt == NBD_OPT_ABORT ? NBD_REP_ACK : NBD_REP_ERR_TLS_REQD);
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* Whatever came before STARTTLS, and whatever was sent in one piece with it, has no effect behind it. */
static void nothing_survives_starttls(void **state)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        struct peer t;
        struct bytes m = { 0 };
        uint32_t opt = all_options[i];
        if (opt == NBD_OPT_EXPORT_NAME || opt == NBD_OPT_ABORT || opt == NBD_OPT_STARTTLS)
            continue;
        peer_init(&t, NULL, NBDP_TLS_REQUIRED);
        say_flags(&m, BOTH_FLAGS);
        say_good(&m, opt);
        say_option(&m, NBD_OPT_STARTTLS, NULL, 0);
        size_t out_before = m.len;
        say_good(&m, opt);                            /* injected behind STARTTLS, in plain text */
        talk(&t, &m);
        assert_true(m.len > out_before);
        assert_int_equal(t.n_tls, 1);
        assert_int_equal(last_rep(&t, NULL).opt, NBD_OPT_STARTTLS);      /* the injected option was not answered */
        assert_int_equal(nbdp_mode(t.p), NBDP_SIMPLE);
        m.len = 0;
        say_option(&m, NBD_OPT_STARTTLS, NULL, 0);
        talk(&t, &m);
        assert_int_equal(last_type(&t), NBD_REP_ERR_INVALID);
        m.len = 0;
        say_meta(&m, NBD_OPT_SET_META_CONTEXT, "disk0", alloc_query);    /* needs structured replies anew */
        say_go(&m, "disk0");
        talk(&t, &m);
        assert_int_equal(t.n_ready, 1);
        assert_int_equal(nbdp_mode(t.p), NBDP_SIMPLE);
        assert_int_equal(nbdp_contexts(t.p), 0);
        bytes_free(&m);
        peer_fini(&t);
    }
}

static void starttls_takes_no_data(void **state)
{
    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_REQUIRED);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_STARTTLS, "x", 1);
    talk(&t, &m);
    assert_int_equal(last_type(&t), NBD_REP_ERR_INVALID);
    assert_int_equal(t.n_tls, 0);
    bytes_free(&m);
    peer_fini(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(context_queries),
        cmocka_unit_test(context_lengths),
        cmocka_unit_test(query_string_limit),
        cmocka_unit_test(selection_is_replaced_and_bound_to_its_export),
        cmocka_unit_test(tls_required_refuses_all_but_starttls),
        cmocka_unit_test(nothing_survives_starttls),
        cmocka_unit_test(starttls_takes_no_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
