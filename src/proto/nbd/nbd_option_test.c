/* SPDX-License-Identifier: MIT
 *
 * nbd_option_test.c: the handshake: every option in every state, lengths at and past their limits, and the same
 * answers however the bytes are cut into pieces.
 */
#include "proto/nbd/nbd_test_replies.h"

/* ---- greeting and client flags ---- */

static void greeting_is_fixed_newstyle(void **state)
{
    struct peer t;
    peer_init(&t, NULL, NBDP_TLS_NONE);
    assert_true(peer_run(&t));
    struct rcur c = rcur_of(t.out.b, t.out.len);
    assert_true(rcur_be64(&c) == NBD_MAGIC_INIT);
    assert_true(rcur_be64(&c) == NBD_MAGIC_OPTION);
    assert_int_equal(rcur_be16(&c), 3);
    assert_true(rcur_at_end(&c));
    peer_fini(&t);
}

static void client_flags_are_validated(void **state)
{
    static const struct { uint32_t flags; enum nbdp_tls tls; bool closed; } rows[] = {
        { 0, NBDP_TLS_NONE, false },
        { NBD_FLAG_FIXED_NEWSTYLE, NBDP_TLS_NONE, false },
        { NBD_FLAG_NO_ZEROES, NBDP_TLS_NONE, false },
        { BOTH_FLAGS, NBDP_TLS_NONE, false },
        { 4, NBDP_TLS_NONE, true },
        { 0x80000001u, NBDP_TLS_NONE, true },
        { 0xffffffffu, NBDP_TLS_NONE, true },
        { BOTH_FLAGS, NBDP_TLS_REQUIRED, false },
        { NBD_FLAG_NO_ZEROES, NBDP_TLS_REQUIRED, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct peer t;
        struct bytes m = { 0 };
        peer_init(&t, NULL, rows[i].tls);
        say_flags(&m, rows[i].flags);
        talk(&t, &m);
        assert_int_equal(t.closed, rows[i].closed);
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* ---- every option in every state ---- */

enum prefix { P_NONE, P_STRUCTURED, P_EXTENDED, P_STRUCTURED_META, P_EXTENDED_META, P_AFTER_ERROR, P_AFTER_LIST, P_AFTER_INFO, P_BOTH, P_COUNT };

static void say_prefix(struct bytes *m, enum prefix pre)
{
    if (pre == P_STRUCTURED || pre == P_STRUCTURED_META || pre == P_BOTH)
        say_option(m, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    if (pre == P_EXTENDED || pre == P_EXTENDED_META || pre == P_BOTH)
        say_option(m, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    if (pre == P_STRUCTURED_META || pre == P_EXTENDED_META)
        say_meta(m, NBD_OPT_SET_META_CONTEXT, "", alloc_query);
    if (pre == P_AFTER_ERROR)
        say_option(m, 0x7f, "abc", 3);
    if (pre == P_AFTER_LIST)
        say_option(m, NBD_OPT_LIST, NULL, 0);
    if (pre == P_AFTER_INFO)
        say_info(m, NBD_OPT_INFO, "", NULL, 0);
}

static bool is_extended(enum prefix pre) { return pre == P_EXTENDED || pre == P_EXTENDED_META || pre == P_BOTH; }
static bool is_simple(enum prefix pre) { return pre == P_NONE || pre >= P_AFTER_ERROR; }

static uint32_t expected(enum prefix pre, uint32_t opt)
{
    switch (opt) {
    case NBD_OPT_STARTTLS:
        return NBD_REP_ERR_POLICY;
    case NBD_OPT_STRUCTURED_REPLY:
        return is_extended(pre) ? NBD_REP_ERR_EXT_HEADER_REQD : NBD_REP_ACK;
    case NBD_OPT_SET_META_CONTEXT:
        return is_simple(pre) && !is_extended(pre) ? NBD_REP_ERR_INVALID : NBD_REP_ACK;
    case NBD_OPT_ABORT:
    case NBD_OPT_LIST:
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_EXTENDED_HEADERS:
        return NBD_REP_ACK;
    default:
        return NBD_REP_ERR_UNSUP;
    }
}

static void check_one(enum prefix pre, uint32_t opt, struct peer *t)
{
    bool enters = opt == NBD_OPT_EXPORT_NAME || opt == NBD_OPT_GO;
    assert_int_equal(t->n_ready, enters);
    assert_int_equal(t->closed, opt == NBD_OPT_ABORT);
    if (opt == NBD_OPT_EXPORT_NAME) {
        assert_true(t->out.len >= GREETING + sizeof(struct nbd_wire_export));
        return;
    }
    struct rep r = last_rep(t, NULL);
    assert_int_equal(r.opt, opt);
    assert_int_equal(r.type, expected(pre, opt));
}

static void every_option_in_every_state(void **state)
{
    for (enum prefix pre = 0; pre < P_COUNT; pre++)
        for (size_t i = 0; i < OPTIONS; i++) {
            struct peer t;
            struct bytes m = { 0 };
            peer_init(&t, NULL, NBDP_TLS_NONE);
            say_flags(&m, BOTH_FLAGS);
            say_prefix(&m, pre);
            say_good(&m, all_options[i]);
            talk(&t, &m);
            check_one(pre, all_options[i], &t);
            bytes_free(&m);
            peer_fini(&t);
        }
}

/* The answers do not depend on how the stream is cut. */
static void pieces_make_no_difference(void **state)
{
    static const size_t cuts[] = { 1, 2, 3, 5, 15, 16, 17, 4096 };
    for (enum prefix pre = 0; pre < P_COUNT; pre++)
        for (size_t i = 0; i < OPTIONS; i++) {
            struct bytes m = { 0 };
            say_flags(&m, 0);
            say_prefix(&m, pre);
            say_good(&m, all_options[i]);
            struct peer whole;
            peer_init(&whole, NULL, NBDP_TLS_NONE);
            talk(&whole, &m);
            for (size_t k = 0; k < sizeof cuts / sizeof cuts[0]; k++) {
                struct peer t;
                peer_init(&t, NULL, NBDP_TLS_NONE);
                peer_feed(&t, m.b, m.len, cuts[k]);
                assert_int_equal(t.out.len, whole.out.len);
                assert_memory_equal(t.out.b, whole.out.b, t.out.len);
                assert_int_equal(t.n_ready, whole.n_ready);
                peer_fini(&t);
            }
            peer_fini(&whole);
            bytes_free(&m);
        }
}

/* A client that goes away at any byte leaves nothing behind (leak and address checkers look on). */
static void end_at_any_byte(void **state)
{
    struct bytes m = { 0 };
    say_flags(&m, 0);
    say_prefix(&m, P_EXTENDED_META);
    say_go(&m, "disk0");
    for (size_t n = 0; n < m.len; n++) {
        struct peer t;
        peer_init(&t, NULL, NBDP_TLS_NONE);
        peer_feed(&t, m.b, n, SIZE_MAX);
        assert_int_equal(t.n_ready, 0);
        assert_false(t.closed);
        peer_fini(&t);
    }
    bytes_free(&m);
}

static void garbage_data_is_invalid(void **state)
{
    for (size_t i = 0; i < OPTIONS; i++)
        for (uint32_t len = 1; len <= 9; len += 4) {
            struct peer t;
            struct bytes m = { 0 };
            uint32_t opt = all_options[i];
            peer_init(&t, NULL, NBDP_TLS_NONE);
            say_flags(&m, BOTH_FLAGS);
            say_option(&m, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
            say_option(&m, opt, "\xff\xff\xff\xff\xff\xff\xff\xff\xff", len);
            talk(&t, &m);
            assert_int_equal(t.n_ready, 0);
            assert_int_equal(t.closed, opt == NBD_OPT_ABORT || opt == NBD_OPT_EXPORT_NAME);
            if (opt == NBD_OPT_EXPORT_NAME)
                ;
            else if (opt == NBD_OPT_ABORT)
                assert_int_equal(last_type(&t), NBD_REP_ACK);
            else
                assert_int_equal(last_type(&t), expected(P_STRUCTURED, opt) == NBD_REP_ERR_UNSUP ? NBD_REP_ERR_UNSUP : NBD_REP_ERR_INVALID);
            bytes_free(&m);
            peer_fini(&t);
        }
}

static void shutdown_refuses_every_option(void **state)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        struct peer t;
        struct bytes m = { 0 };
        peer_init(&t, NULL, NBDP_TLS_NONE);
        nbdp_set_shutdown(t.p);
        say_flags(&m, BOTH_FLAGS);
        say_good(&m, all_options[i]);
        talk(&t, &m);
        bool ends = all_options[i] == NBD_OPT_EXPORT_NAME || all_options[i] == NBD_OPT_ABORT;
        assert_int_equal(t.closed, ends);
        assert_int_equal(t.n_ready, 0);
        if (!ends)
            assert_int_equal(last_type(&t), NBD_REP_ERR_SHUTDOWN);
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* ---- contents of the answers ---- */

static void export_name_answer(void **state)
{
    for (int zeroes = 0; zeroes < 2; zeroes++) {
        struct peer t;
        struct bytes m = { 0 };
        peer_init(&t, NULL, NBDP_TLS_NONE);
        say_flags(&m, zeroes ? NBD_FLAG_FIXED_NEWSTYLE : BOTH_FLAGS);
        say_option(&m, NBD_OPT_EXPORT_NAME, "", 0);
        talk(&t, &m);
        assert_int_equal(t.n_ready, 1);
        assert_int_equal(t.out.len, GREETING + 10 + (zeroes ? 124 : 0));
        struct rcur c = replies(&t);
        assert_true(rcur_be64(&c) == PEER_SIZE);
        assert_int_equal(rcur_be16(&c), NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                         NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO);
        while (rcur_left(&c))
            assert_int_equal(rcur_u8(&c), 0);
        bytes_free(&m);
        peer_fini(&t);
    }
}

static void unknown_export(void **state)
{
    static const uint32_t opts[] = { NBD_OPT_INFO, NBD_OPT_GO };
    for (size_t i = 0; i < 2; i++) {
        struct peer t;
        struct bytes m = { 0 };
        peer_init(&t, NULL, NBDP_TLS_NONE);
        say_flags(&m, BOTH_FLAGS);
        say_info(&m, opts[i], "disk", NULL, 0);      /* a prefix of a name is not that name */
        talk(&t, &m);
        assert_int_equal(last_type(&t), NBD_REP_ERR_UNKNOWN);
        assert_false(t.closed);
        m.len = 0;
        say_go(&m, "disk0");
        talk(&t, &m);
        assert_int_equal(t.n_ready, 1);
        bytes_free(&m);
        peer_fini(&t);
    }
    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_EXPORT_NAME, "disk0x", 6);
    talk(&t, &m);
    assert_true(t.closed);
    assert_int_equal(t.out.len, GREETING);
    bytes_free(&m);
    peer_fini(&t);
}

/* size and flags of INFO_EXPORT after `pre` for an export */
static void info_export(enum prefix pre, const char *name, uint64_t *ret_size, unsigned *ret_flags)
{
    struct peer t;
    struct bytes m = { 0 };
    uint32_t len = 0;
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_prefix(&m, pre);
    say_info(&m, NBD_OPT_INFO, name, NULL, 0);
    talk(&t, &m);
    const uint8_t *d = info_of(&t, NBD_INFO_EXPORT, &len);
    assert_non_null(d);
    assert_int_equal(len, 10);
    struct rcur c = rcur_of(d, len);
    *ret_size = rcur_be64(&c);
    *ret_flags = rcur_be16(&c);
    bytes_free(&m);
    peer_fini(&t);
}

static void transmission_flags_follow_export_and_mode(void **state)
{
    const unsigned base = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;
    const unsigned rw = base | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    static const struct { enum prefix pre; const char *name; unsigned extra; bool ro; uint64_t size; } rows[] = {
        { P_NONE, "disk0", NBD_FLAG_CAN_MULTI_CONN, false, PEER_SIZE },
        { P_STRUCTURED, "disk0", NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_DF, false, PEER_SIZE },
        { P_EXTENDED, "disk0", NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_DF, false, PEER_SIZE },
        { P_STRUCTURED_META, "disk0", NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_DF, false, PEER_SIZE },
        { P_EXTENDED_META, "disk0", NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STATUS_PAYLOAD, false, PEER_SIZE },
        { P_EXTENDED_META, "ro", NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_DF, true, 1 << 20 },   /* contexts were chosen for disk0 */
        { P_NONE, "ro", NBD_FLAG_READ_ONLY, true, 1 << 20 },
        { P_NONE, "big", 0, false, PEER_BIG },
        { P_STRUCTURED, "wheel", NBD_FLAG_ROTATIONAL | NBD_FLAG_SEND_DF, false, 1 << 20 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t size;
        unsigned flags;
        info_export(rows[i].pre, rows[i].name, &size, &flags);
        assert_true(size == rows[i].size);
        assert_int_equal(flags, (rows[i].ro ? base : rw) | rows[i].extra);
    }
}

static void info_requests_are_answered(void **state)
{
    static const uint16_t want[] = { NBD_INFO_DESCRIPTION, 0x1234, NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE };
    for (uint16_t n = 0; n <= 4; n++) {
        struct peer t;
        struct bytes m = { 0 };
        uint32_t len = 0;
        peer_init(&t, NULL, NBDP_TLS_NONE);
        say_flags(&m, BOTH_FLAGS);
        say_info(&m, NBD_OPT_INFO, "", want, n);
        talk(&t, &m);
        assert_int_equal(last_type(&t), NBD_REP_ACK);
        const uint8_t *d = info_of(&t, NBD_INFO_NAME, &len);
        assert_int_equal(d != NULL, n >= 3);
        if (d) {
            assert_int_equal(len, 5);
            assert_memory_equal(d, "disk0", 5);
        }
        d = info_of(&t, NBD_INFO_DESCRIPTION, &len);
        assert_int_equal(d != NULL, n >= 1);
        if (d)
            assert_memory_equal(d, "first disk", 10);
        d = info_of(&t, NBD_INFO_BLOCK_SIZE, &len);
        assert_non_null(d);
        assert_int_equal(len, 12);
        struct rcur c = rcur_of(d, len);
        assert_int_equal(rcur_be32(&c), 1);
        assert_int_equal(rcur_be32(&c), 4096);
        assert_int_equal(rcur_be32(&c), 32 << 20);
        bytes_free(&m);
        peer_fini(&t);
    }
}

static void list_names_and_descriptions(void **state)
{
    struct peer t;
    struct bytes m = { 0 };
    unsigned before;
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_LIST, NULL, 0);
    talk(&t, &m);
    struct rep r = last_rep(&t, &before);
    assert_int_equal(r.type, NBD_REP_ACK);
    assert_int_equal(before, PEER_EXPORTS);
    struct rcur c = replies(&t);
    assert_true(next_rep(&c, &r));
    assert_int_equal(r.type, NBD_REP_SERVER);
    assert_int_equal(r.len, 4 + 5 + 10);
    assert_memory_equal(r.data, "\0\0\0\5disk0first disk", r.len);
    assert_true(next_rep(&c, &r));
    assert_memory_equal(r.data, "\0\0\0\2ro", r.len);
    bytes_free(&m);
    peer_fini(&t);
}

/* ---- lengths ---- */

/* Reply to an INFO whose data are given; 0 = closed. */
static uint32_t info_reply(const void *data, uint32_t len)
{
    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_INFO, data, len);
    talk(&t, &m);
    uint32_t type = t.closed ? 0 : last_type(&t);
    bytes_free(&m);
    peer_fini(&t);
    return type;
}

static void info_lengths(void **state)
{
    struct bytes d = { 0 };
    put_str(&d, "disk0");
    put16(&d, 2);
    put16(&d, 3);
    put16(&d, 1);
    assert_int_equal(info_reply(d.b, (uint32_t)d.len), NBD_REP_ACK);
    for (uint32_t n = 0; n < d.len; n++)                                /* too short by any number of bytes */
        assert_int_equal(info_reply(d.b, n), NBD_REP_ERR_INVALID);
    put16(&d, 9);
    assert_int_equal(info_reply(d.b, (uint32_t)d.len), NBD_REP_ERR_INVALID);   /* longer than announced */
    static const uint32_t bad[] = { 0xffffffffu, 0xfffffffeu, 0x80000000u, 12, 11, 8, 6 };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        be32_put((be32 *)(void *)d.b, bad[i]);
        assert_int_equal(info_reply(d.b, 15), NBD_REP_ERR_INVALID);
    }
    bytes_free(&d);
}

static void name_length_limit(void **state)
{
    for (uint32_t n = 4095; n <= 4097; n++) {
        struct bytes d = { 0 };
        put32(&d, n);
        put_fill(&d, 'n', n);
        put16(&d, 0);
        assert_int_equal(info_reply(d.b, (uint32_t)d.len), n <= NBD_STRING_MAX ? NBD_REP_ERR_UNKNOWN : NBD_REP_ERR_INVALID);
        d.b[100] = 0;      /* NUL inside a string */
        assert_int_equal(info_reply(d.b, (uint32_t)d.len), NBD_REP_ERR_INVALID);

        struct peer t;
        struct bytes m = { 0 };
        peer_init(&t, NULL, NBDP_TLS_NONE);
        say_flags(&m, BOTH_FLAGS);
        say_option(&m, NBD_OPT_EXPORT_NAME, d.b + 4, n);
        talk(&t, &m);
        assert_true(t.closed);
        bytes_free(&m);
        bytes_free(&d);
        peer_fini(&t);
    }
}

static void option_length_limit(void **state)
{
    static const struct { uint32_t len; bool closed; } rows[] = {
        { 65535, false }, { 65536, false }, { 65537, true }, { 0x7fffffff, true }, { 0xffffffff, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct peer t;
        struct bytes m = { 0 };
        peer_init(&t, NULL, NBDP_TLS_NONE);
        say_flags(&m, BOTH_FLAGS);
        put64(&m, NBD_MAGIC_OPTION);
        put32(&m, 0x7f);
        put32(&m, rows[i].len);
        if (!rows[i].closed)
            put_fill(&m, 'x', rows[i].len);
        say_option(&m, NBD_OPT_LIST, NULL, 0);
        talk(&t, &m);
        assert_int_equal(t.closed, rows[i].closed);
        if (!rows[i].closed)
            assert_int_equal(last_type(&t), NBD_REP_ACK);      /* the stream is still in step */
        bytes_free(&m);
        peer_fini(&t);
    }
}

static void option_count_limit(void **state)
{
    struct peer t;
    struct bytes m = { 0 };
    const struct nbdp_limits few = { .options_max = 32 };
    peer_init(&t, &few, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    for (int i = 0; i < 32; i++)
        say_option(&m, 0x7f, NULL, 0);
    talk(&t, &m);
    assert_false(t.closed);
    m.len = 0;
    say_option(&m, 0x7f, NULL, 0);
    talk(&t, &m);
    assert_true(t.closed);
    assert_string_equal(nbdp_close_reason(t.p), "too many options");
    bytes_free(&m);
    peer_fini(&t);
}

/* FEATURES 10.002: who lists asks twice or more often about each export; some thousands of them can be told of in one handshake. */
static void thousands_of_options_by_default(void **state)
{
    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    for (int i = 0; i < 20000 && !t.closed; i++) {
        say_option(&m, 0x7f, NULL, 0);
        talk(&t, &m);
        m.len = t.out.len = 0;
    }
    assert_false(t.closed);
    bytes_free(&m);
    peer_fini(&t);
}

static void bad_option_magic_closes(void **state)
{
    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, BOTH_FLAGS);
    say_option(&m, NBD_OPT_LIST, NULL, 0);
    say_option(&m, NBD_OPT_LIST, NULL, 0);
    m.b[4 + 16 + 7] ^= 1;
    talk(&t, &m);
    assert_true(t.closed);
    assert_string_equal(nbdp_close_reason(t.p), "bad option magic");
    bytes_free(&m);
    peer_fini(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greeting_is_fixed_newstyle),
        cmocka_unit_test(client_flags_are_validated),
        cmocka_unit_test(every_option_in_every_state),
        cmocka_unit_test(pieces_make_no_difference),
        cmocka_unit_test(end_at_any_byte),
        cmocka_unit_test(garbage_data_is_invalid),
        cmocka_unit_test(shutdown_refuses_every_option),
        cmocka_unit_test(export_name_answer),
        cmocka_unit_test(unknown_export),
        cmocka_unit_test(transmission_flags_follow_export_and_mode),
        cmocka_unit_test(info_requests_are_answered),
        cmocka_unit_test(list_names_and_descriptions),
        cmocka_unit_test(info_lengths),
        cmocka_unit_test(name_length_limit),
        cmocka_unit_test(option_length_limit),
        cmocka_unit_test(option_count_limit),
        cmocka_unit_test(thousands_of_options_by_default),
        cmocka_unit_test(bad_option_magic_closes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
