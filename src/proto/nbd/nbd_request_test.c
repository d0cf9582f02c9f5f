/* SPDX-License-Identifier: MIT
 *
 * nbd_request_test.c: the transmission phase: which request is acceptable, what a refused one costs, payloads cut
 * anywhere, and the exact bytes of every kind of reply.
 */
#include <errno.h>

#include "base/cursor.h"
#include "base/test.h"
#include "proto/nbd/nbd_test_peer.h"

#define FUA NBD_CMD_FLAG_FUA
#define NO_HOLE NBD_CMD_FLAG_NO_HOLE
#define DF NBD_CMD_FLAG_DF
#define REQ_ONE NBD_CMD_FLAG_REQ_ONE
#define FAST_ZERO NBD_CMD_FLAG_FAST_ZERO
#define PAYLOAD_LEN NBD_CMD_FLAG_PAYLOAD_LEN
#define G4 (UINT64_C(1) << 32)
#define PAYLOAD_MAX ((uint64_t)NBDP_PAYLOAD_MAX)

/* A peer in the transmission phase. contexts: two of them are selected first. */
static void enter(struct peer *t, enum nbdp_mode mode, const char *name, bool contexts)
{
    static const char *const q[] = { "base:allocation", "qemu:allocation-depth", NULL, NULL };
    static const uint16_t sizes[] = { NBD_INFO_BLOCK_SIZE };
    struct bytes m = { 0 };
    peer_init(t, NULL, NBDP_TLS_NONE);
    say_flags(&m, 3);
    if (mode != NBDP_SIMPLE)
        say_option(&m, mode == NBDP_EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    if (contexts)
        say_meta(&m, NBD_OPT_SET_META_CONTEXT, name, q);
    peer_feed(t, m.b, m.len, SIZE_MAX);
    assert_false(nbdp_in_transmission(t->p));
    m.len = 0;
    say_info(&m, NBD_OPT_GO, name, sizes, 1);
    peer_feed(t, m.b, m.len, SIZE_MAX);
    assert_int_equal(t->n_ready, 1);
    assert_true(nbdp_in_transmission(t->p));
    assert_int_equal(nbdp_mode(t->p), mode);
    bytes_free(&m);
}

static void say(struct bytes *m, enum nbdp_mode mode, const struct nbdp_request *r)
{
    if (mode == NBDP_EXTENDED)
        say_request_ext(m, r->type, r->flags, r->off, r->len);
    else
        say_request(m, r->type, r->flags, r->off, (uint32_t)r->len);
}

/* Payload bytes that a request of this form carries. */
static uint64_t carried(enum nbdp_mode mode, const struct nbdp_request *r)
{
    return (mode == NBDP_EXTENDED ? (r->flags & PAYLOAD_LEN) != 0 : r->type == NBD_CMD_WRITE) ? r->len : 0;
}

/* Sends one request with its payload, then a flush. Returns the error of the first; the flush must be in step. */
static enum nbd_error verdict_of(enum nbdp_mode mode, const char *name, const struct nbdp_request *r)
{
    struct peer t;
    struct bytes m = { 0 };
    struct nbdp_request flush = { .type = NBD_CMD_FLUSH };
    enter(&t, mode, name, mode != NBDP_SIMPLE);
    say(&m, mode, r);
    put_fill(&m, 0xee, carried(mode, r));
    say(&m, mode, &flush);
    peer_feed(&t, m.b, m.len, SIZE_MAX);
    assert_int_equal(t.n_reqs, 2);
    assert_int_equal(t.reqs[0].type, r->type);
    assert_true(t.reqs[0].cookie == UINT64_C(0xc0ffee00) + r->type);
    assert_int_equal(t.reqs[1].type, NBD_CMD_FLUSH);
    assert_int_equal(t.reqs[1].error, NBD_SUCCESS);
    enum nbd_error e = t.reqs[0].error;
    if (e) {
        assert_non_null(t.reqs[0].why);
        assert_int_equal(t.payload.len, 0);
    }
    bytes_free(&m);
    peer_fini(&t);
    return e;
}

struct row { uint16_t type, flags; uint64_t off, len; enum nbd_error want; };

static void check_rows(const struct row *rows, size_t n, enum nbdp_mode mode, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        struct nbdp_request r = { .type = rows[i].type, .flags = rows[i].flags, .off = rows[i].off, .len = rows[i].len };
        if (mode == NBDP_EXTENDED && r.type == NBD_CMD_WRITE)
            r.flags |= PAYLOAD_LEN;
        enum nbd_error e = verdict_of(mode, name, &r);
        if (e != rows[i].want)
            print_error("row %zu of %s in mode %d\n", i, name, mode);
        assert_int_equal(e, rows[i].want);
    }
}
#define CHECK_ROWS(rows, mode, name) check_rows(rows, sizeof rows / sizeof rows[0], mode, name)

/* ---- ranges ---- */

static const struct row disk0_ranges[] = {
    { NBD_CMD_READ, 0, 0, 1, 0 },
    { NBD_CMD_READ, 0, PEER_SIZE - 1, 1, 0 },
    { NBD_CMD_READ, 0, PEER_SIZE - 1, 2, NBD_EINVAL },
    { NBD_CMD_READ, 0, PEER_SIZE, 1, NBD_EINVAL },
    { NBD_CMD_READ, 0, PEER_SIZE, 0, 0 },
    { NBD_CMD_READ, 0, PEER_SIZE + 1, 0, NBD_EINVAL },
    { NBD_CMD_READ, 0, UINT64_MAX, 1, NBD_EINVAL },
    { NBD_CMD_READ, 0, UINT64_MAX, 2, NBD_EINVAL },
    { NBD_CMD_READ, 0, UINT64_MAX - 511, 512, NBD_EINVAL },
    { NBD_CMD_READ, 0, G4 - 512, 1024, 0 },
    { NBD_CMD_READ, 0, G4, 512, 0 },
    { NBD_CMD_READ, 0, 0, PAYLOAD_MAX, 0 },
    { NBD_CMD_READ, 0, 0, PAYLOAD_MAX + 1, NBD_EINVAL },
    { NBD_CMD_READ, 0, 0, 0xffffffff, NBD_EINVAL },
    { NBD_CMD_WRITE, 0, PEER_SIZE - 512, 512, 0 },
    { NBD_CMD_WRITE, 0, PEER_SIZE - 512, 513, NBD_ENOSPC },
    { NBD_CMD_WRITE, 0, PEER_SIZE, 1, NBD_ENOSPC },
    { NBD_CMD_WRITE, 0, UINT64_MAX, 1, NBD_ENOSPC },
    { NBD_CMD_WRITE, 0, UINT64_MAX - 4095, 4096, NBD_ENOSPC },
    { NBD_CMD_WRITE, 0, 0, 0, 0 },
    { NBD_CMD_WRITE_ZEROES, 0, 0, 0xffffffff, 0 },
    { NBD_CMD_WRITE_ZEROES, 0, 0xffffffff, 0xffffffff, NBD_ENOSPC },
    { NBD_CMD_WRITE_ZEROES, 0, G4 - 1, 0x80000001, 0 },
    { NBD_CMD_WRITE_ZEROES, 0, G4 - 1, 0x80000002, NBD_ENOSPC },
    { NBD_CMD_WRITE_ZEROES, 0, PEER_SIZE - 1, 2, NBD_ENOSPC },
    { NBD_CMD_WRITE_ZEROES, 0, UINT64_MAX, 0xffffffff, NBD_ENOSPC },
    { NBD_CMD_TRIM, 0, 0, 0xffffffff, 0 },
    { NBD_CMD_TRIM, 0, PEER_SIZE, 1, NBD_EINVAL },
    { NBD_CMD_TRIM, 0, UINT64_MAX - 1, 0xffffffff, NBD_EINVAL },
    { NBD_CMD_CACHE, 0, 0, 0xffffffff, 0 },
    { NBD_CMD_CACHE, 0, PEER_SIZE - 1, 2, NBD_EINVAL },
    { NBD_CMD_FLUSH, 0, 0, 0, 0 },
    { NBD_CMD_FLUSH, 0, 1, 0, NBD_EINVAL },
    { NBD_CMD_FLUSH, 0, 0, 1, NBD_EINVAL },
};

static void ranges(void **state)
{
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++)
        CHECK_ROWS(disk0_ranges, mode, "disk0");
}

static void ranges_of_64_bits(void **state)
{
    static const struct row rows[] = {
        { NBD_CMD_WRITE_ZEROES, 0, 0, PEER_BIG, 0 },
        { NBD_CMD_WRITE_ZEROES, 0, 512, PEER_BIG, NBD_ENOSPC },
        { NBD_CMD_WRITE_ZEROES, 0, 0, G4, 0 },
        { NBD_CMD_WRITE_ZEROES, 0, 0, G4 - 512, 0 },
        { NBD_CMD_WRITE_ZEROES, 0, 0, G4 + 512, 0 },
        { NBD_CMD_WRITE_ZEROES, 0, UINT64_MAX - 511, UINT64_MAX - 511, NBD_ENOSPC },
        { NBD_CMD_WRITE_ZEROES, 0, 512, UINT64_MAX - 511, NBD_ENOSPC },
        { NBD_CMD_TRIM, 0, 0, PEER_BIG, 0 },
        { NBD_CMD_TRIM, 0, 1024, UINT64_MAX - 1023, NBD_EINVAL },
        { NBD_CMD_TRIM, 0, 1024, UINT64_MAX - 511, NBD_EINVAL },
        { NBD_CMD_CACHE, 0, G4, G4, 0 },
        { NBD_CMD_BLOCK_STATUS, 0, 0, PEER_BIG, 0 },
        { NBD_CMD_BLOCK_STATUS, 0, 512, PEER_BIG, NBD_EINVAL },
        { NBD_CMD_BLOCK_STATUS, 0, G4 - 512, G4 + 512, 0 },
        { NBD_CMD_READ, 0, 0, G4, NBD_EINVAL },
        { NBD_CMD_READ, 0, 0, G4 + 512, NBD_EINVAL },
        { NBD_CMD_READ, DF, 0, G4 + 512, NBD_EOVERFLOW },
    };
    CHECK_ROWS(rows, NBDP_EXTENDED, "big");
}

/* ---- rights, flags, alignment ---- */

static void read_only_export(void **state)
{
    static const struct row rows[] = {
        { NBD_CMD_READ, 0, 0, 4096, 0 },
        { NBD_CMD_WRITE, 0, 0, 4096, NBD_EPERM },
        { NBD_CMD_WRITE, FUA, 0, 4096, NBD_EPERM },
        { NBD_CMD_WRITE, 0, 1 << 20, 4096, NBD_EPERM },
        { NBD_CMD_TRIM, 0, 0, 4096, NBD_EPERM },
        { NBD_CMD_WRITE_ZEROES, 0, 0, 4096, NBD_EPERM },
        { NBD_CMD_WRITE_ZEROES, FAST_ZERO, UINT64_MAX, 1, NBD_EPERM },
        { NBD_CMD_FLUSH, 0, 0, 0, 0 },
        { NBD_CMD_CACHE, 0, 0, 4096, 0 },
    };
    static const struct row status[] = { { NBD_CMD_BLOCK_STATUS, 0, 0, 4096, 0 } };
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++)
        CHECK_ROWS(rows, mode, "ro");
    CHECK_ROWS(status, NBDP_STRUCTURED, "ro");
    CHECK_ROWS(status, NBDP_EXTENDED, "ro");
}

/* Every command with every single flag bit and with all at once. */
static void flags(void **state)
{
    static const unsigned allowed[] = {
        [NBD_CMD_READ] = FUA | DF, [NBD_CMD_WRITE] = FUA | PAYLOAD_LEN, [NBD_CMD_DISC] = 0, [NBD_CMD_FLUSH] = FUA, [NBD_CMD_TRIM] = FUA,
        [NBD_CMD_CACHE] = FUA, [NBD_CMD_WRITE_ZEROES] = FUA | NO_HOLE | FAST_ZERO, [NBD_CMD_BLOCK_STATUS] = FUA | REQ_ONE,
    };
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++)
        for (uint16_t cmd = 0; cmd < 8; cmd++)
            for (unsigned bit = 0; bit <= 16; bit++) {
                unsigned f = bit == 16 ? 0xffff : 1u << bit, ok = allowed[cmd];
                if (cmd == NBD_CMD_DISC || (cmd == NBD_CMD_BLOCK_STATUS && mode == NBDP_SIMPLE))
                    continue;
                if (cmd == NBD_CMD_BLOCK_STATUS && f & PAYLOAD_LEN && mode == NBDP_EXTENDED)
                    continue;                                   /* has tests of its own */
                if (mode == NBDP_SIMPLE)
                    ok &= ~(unsigned)DF;
                if (mode != NBDP_EXTENDED)
                    ok &= ~(unsigned)PAYLOAD_LEN;
                else if (cmd == NBD_CMD_WRITE)
                    f |= PAYLOAD_LEN;
                struct nbdp_request r = { .type = cmd, .flags = (uint16_t)f, .len = cmd == NBD_CMD_FLUSH ? 0 : 512 };
                assert_int_equal(verdict_of(mode, "disk0", &r), f & ~ok ? NBD_EINVAL : NBD_SUCCESS);
            }
}

static void unknown_commands(void **state)
{
    static const uint16_t cmds[] = { 8, 9, 0x7f, 0x8000, 0xffff };
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++)
        for (size_t i = 0; i < sizeof cmds / sizeof cmds[0]; i++) {
            struct nbdp_request r = { .type = cmds[i], .len = 512 };
            assert_int_equal(verdict_of(mode, "disk0", &r), NBD_EINVAL);
            r.flags = 0xffff;      /* with extended headers: a payload of 512 bytes, to be skipped */
            assert_int_equal(verdict_of(mode, "disk0", &r), NBD_EINVAL);
        }
}

static void unfragmented_reads(void **state)
{
    static const struct row rows[] = {
        { NBD_CMD_READ, DF, 0, 65536, 0 },
        { NBD_CMD_READ, DF, 0, PAYLOAD_MAX, 0 },
        { NBD_CMD_READ, DF, 0, PAYLOAD_MAX + 1, NBD_EOVERFLOW },
        { NBD_CMD_READ, DF | FUA, 4096, 0xffffffff, NBD_EOVERFLOW },
        { NBD_CMD_READ, DF, PEER_SIZE, 4096, NBD_EINVAL },
    };
    CHECK_ROWS(rows, NBDP_STRUCTURED, "disk0");
    CHECK_ROWS(rows, NBDP_EXTENDED, "disk0");
}

static void alignment_binds_who_agreed_to_it(void **state)
{
    static const struct row agreed[] = {
        { NBD_CMD_READ, 0, 4096, 4096, 0 },
        { NBD_CMD_READ, 0, 512, 4096, NBD_EINVAL },
        { NBD_CMD_READ, 0, 4096, 512, NBD_EINVAL },
        { NBD_CMD_WRITE, 0, 4096, 1, NBD_EINVAL },
        { NBD_CMD_TRIM, 0, 1, 4096, NBD_EINVAL },
        { NBD_CMD_WRITE_ZEROES, 0, 0, 4095, NBD_EINVAL },
        { NBD_CMD_CACHE, 0, 0, 100, NBD_EINVAL },
    };
    CHECK_ROWS(agreed, NBDP_STRUCTURED, "wheel");

    struct peer t;
    struct bytes m = { 0 };
    peer_init(&t, NULL, NBDP_TLS_NONE);
    say_flags(&m, 3);
    say_go(&m, "wheel");                               /* did not ask for block sizes */
    say_request(&m, NBD_CMD_READ, 0, 1, 1);
    peer_feed(&t, m.b, m.len, SIZE_MAX);
    assert_int_equal(t.n_reqs, 1);
    assert_int_equal(t.reqs[0].error, NBD_SUCCESS);
    bytes_free(&m);
    peer_fini(&t);
}

static void block_status_needs_contexts_and_a_length(void **state)
{
    static const struct row rows[] = {
        { NBD_CMD_BLOCK_STATUS, 0, 0, 512, 0 },
        { NBD_CMD_BLOCK_STATUS, REQ_ONE, G4 - 512, 0x80000200, 0 },
        { NBD_CMD_BLOCK_STATUS, 0, 0, 0, NBD_EINVAL },
        { NBD_CMD_BLOCK_STATUS, 0, PEER_SIZE, 1, NBD_EINVAL },
        { NBD_CMD_BLOCK_STATUS, 0, PEER_SIZE - 0xffffffff, 0xffffffff, 0 },
        { NBD_CMD_BLOCK_STATUS, 0, PEER_SIZE - 0xfffffffe, 0xffffffff, NBD_EINVAL },
        { NBD_CMD_BLOCK_STATUS, 0, UINT64_MAX - 0xfffffffe, 0xffffffff, NBD_EINVAL },
    };
    CHECK_ROWS(rows, NBDP_STRUCTURED, "disk0");
    CHECK_ROWS(rows, NBDP_EXTENDED, "disk0");
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++) {
        struct peer t;
        struct bytes m = { 0 };
        struct nbdp_request r = { .type = NBD_CMD_BLOCK_STATUS, .len = 512 };
        enter(&t, mode, "disk0", false);
        say(&m, mode, &r);
        peer_feed(&t, m.b, m.len, SIZE_MAX);
        assert_int_equal(t.reqs[0].error, NBD_EINVAL);
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* ---- payloads ---- */

static void payload_arrives_whole_however_it_is_cut(void **state)
{
    static const uint32_t sizes[] = { 1, 511, 4096, 16383, 16384, 16385, 65535, 65536, 70000, 200000 };
    static const size_t cuts[] = { 1, 7, 28, 29, 4096, 65536, SIZE_MAX };
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++)
        for (size_t k = 0; k < sizeof cuts / sizeof cuts[0]; k++) {
            struct peer t;
            struct bytes m = { 0 }, want = { 0 };
            enter(&t, mode, "disk0", false);
            for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
                struct nbdp_request r = { .type = NBD_CMD_WRITE, .len = sizes[i], .off = sizes[i], .flags = mode == NBDP_EXTENDED ? PAYLOAD_LEN : 0 };
                say(&m, mode, &r);
                for (uint32_t j = 0; j < sizes[i]; j++) {
                    uint8_t c = (uint8_t)(j * 7 + i);
                    put(&m, &c, 1);
                    put(&want, &c, 1);
                }
                struct nbdp_request rd = { .type = NBD_CMD_READ, .len = 512 };
                say(&m, mode, &rd);
            }
            peer_feed(&t, m.b, m.len, cuts[k]);
            assert_int_equal(t.n_reqs, 20);
            for (unsigned i = 0; i < 20; i++) {
                assert_int_equal(t.reqs[i].error, NBD_SUCCESS);
                assert_int_equal(t.reqs[i].type, i & 1 ? NBD_CMD_READ : NBD_CMD_WRITE);
            }
            assert_int_equal(t.payload.len, want.len);
            assert_memory_equal(t.payload.b, want.b, want.len);
            bytes_free(&m);
            bytes_free(&want);
            peer_fini(&t);
        }
}

static void refused_payload_is_skipped(void **state)
{
    static const size_t cuts[] = { 1, 1000, SIZE_MAX };
    for (size_t k = 0; k < 3; k++) {
        struct peer t;
        struct bytes m = { 0 };
        enter(&t, NBDP_STRUCTURED, "disk0", false);
        t.refuse_payload = true;
        say_request(&m, NBD_CMD_WRITE, 0, 0, 100000);
        put_fill(&m, 1, 100000);
        say_request(&m, NBD_CMD_FLUSH, 0, 0, 0);
        peer_feed(&t, m.b, m.len, cuts[k]);
        assert_int_equal(t.n_reqs, 2);
        assert_int_equal(t.reqs[0].error, NBD_ENOMEM);
        assert_int_equal(t.reqs[1].error, NBD_SUCCESS);
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* A payload over the limit: in compact mode skipped up to drain_max, then the connection ends; extended ends at once. */
static void payload_limits(void **state)
{
    static const struct { enum nbdp_mode mode; uint64_t len; bool closed; } rows[] = {
        { NBDP_SIMPLE, 1000, false }, { NBDP_SIMPLE, 1001, false }, { NBDP_SIMPLE, 5000, false }, { NBDP_SIMPLE, 5001, true },
        { NBDP_SIMPLE, 0xffffffff, true },
        { NBDP_EXTENDED, 1000, false }, { NBDP_EXTENDED, 1001, true }, { NBDP_EXTENDED, G4, true }, { NBDP_EXTENDED, G4 + 1000, true },
        { NBDP_EXTENDED, UINT64_MAX, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct nbdp_limits lim = { .payload_max = 1000, .drain_max = 5000 };
        struct peer t;
        struct bytes m = { 0 };
        struct nbdp_request r = { .type = NBD_CMD_WRITE, .len = rows[i].len, .flags = rows[i].mode == NBDP_EXTENDED ? PAYLOAD_LEN : 0 };
        peer_init(&t, &lim, NBDP_TLS_NONE);
        say_flags(&m, 3);
        if (rows[i].mode == NBDP_EXTENDED)
            say_option(&m, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
        say_go(&m, "disk0");
        say(&m, rows[i].mode, &r);
        put_fill(&m, 0x25, (size_t)min_u64(rows[i].len, 5001));
        peer_feed(&t, m.b, m.len, SIZE_MAX);
        assert_int_equal(t.closed, rows[i].closed);
        assert_int_equal(t.n_reqs, !rows[i].closed);
        if (!rows[i].closed)
            assert_int_equal(t.reqs[0].error, rows[i].len <= 1000 ? NBD_SUCCESS : NBD_EINVAL);
        bytes_free(&m);
        peer_fini(&t);
    }
}

static void extended_payload_rules(void **state)
{
    struct nbdp_request no_flag = { .type = NBD_CMD_WRITE, .len = 4096 };
    assert_int_equal(verdict_of(NBDP_EXTENDED, "disk0", &no_flag), NBD_EINVAL);      /* and no payload was expected */
    static const uint16_t others[] = { NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        struct nbdp_request r = { .type = others[i], .flags = PAYLOAD_LEN, .len = 70000 };
        assert_int_equal(verdict_of(NBDP_EXTENDED, "disk0", &r), NBD_EINVAL);
    }
}

/* One block status request with a payload; *ret = what the host saw. */
static void status_payload(const struct bytes *payload, uint64_t off, struct nbdp_request *ret)
{
    static const size_t cuts[] = { SIZE_MAX, 1 };
    for (size_t k = 0; k < 2; k++) {
        struct peer t;
        struct bytes m = { 0 };
        enter(&t, NBDP_EXTENDED, "big", true);
        say_request_ext(&m, NBD_CMD_BLOCK_STATUS, PAYLOAD_LEN, off, payload->len);
        put(&m, payload->b, payload->len);
        say_request_ext(&m, NBD_CMD_FLUSH, 0, 0, 0);
        peer_feed(&t, m.b, m.len, cuts[k]);
        assert_int_equal(t.n_reqs, 2);
        assert_int_equal(t.reqs[1].error, NBD_SUCCESS);
        *ret = t.reqs[0];
        bytes_free(&m);
        peer_fini(&t);
    }
}

static void status_payload_chooses_contexts(void **state)
{
    static const struct { uint64_t off, len; uint32_t n, ids[3]; enum nbd_error want; uint16_t mask; } rows[] = {
        { 0, PEER_BIG, 1, { 0 }, NBD_SUCCESS, 1 },
        { 0, 4096, 1, { 1 }, NBD_SUCCESS, 2 },
        { 0, 4096, 2, { 1, 0 }, NBD_SUCCESS, 3 },
        { 0, 4096, 2, { 1, 1 }, NBD_EINVAL, 0 },
        { 0, 4096, 2, { 0, 2 }, NBD_EINVAL, 0 },       /* 2 was not selected */
        { 0, 4096, 1, { 16 }, NBD_EINVAL, 0 },
        { 0, 4096, 1, { 0xffffffff }, NBD_EINVAL, 0 },
        { 0, 4096, 0, { 0 }, NBD_EINVAL, 0 },
        { 0, 0, 1, { 0 }, NBD_EINVAL, 0 },
        { 512, PEER_BIG, 1, { 0 }, NBD_EINVAL, 0 },
        { 512, UINT64_MAX - 511, 1, { 0 }, NBD_EINVAL, 0 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct bytes d = { 0 };
        struct nbdp_request got;
        put64(&d, rows[i].len);
        for (uint32_t j = 0; j < rows[i].n; j++)
            put32(&d, rows[i].ids[j]);
        status_payload(&d, rows[i].off, &got);
        assert_int_equal(got.error, rows[i].want);
        if (!got.error) {
            assert_int_equal(got.ctx_mask, rows[i].mask);
            assert_true(got.len == rows[i].len);
        }
        bytes_free(&d);
    }
    static const size_t odd[] = { 1, 7, 8, 9, 11, 13, 15, 8 + 4 * 17, 4096, 70000 };
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
        struct bytes d = { 0 };
        struct nbdp_request got;
        put_fill(&d, 0, odd[i]);
        status_payload(&d, 0, &got);
        assert_int_equal(got.error, NBD_EINVAL);
        assert_non_null(strstr(got.why, "length"));
        bytes_free(&d);
    }
    struct bytes most = { 0 };      /* as many ids as there can be: their number is fine, their repetition is not */
    struct nbdp_request got;
    put64(&most, 4096);
    put_fill(&most, 0, 4 * NBDP_CONTEXTS_MAX);
    status_payload(&most, 0, &got);
    assert_int_equal(got.error, NBD_EINVAL);
    assert_non_null(strstr(got.why, "twice"));
    bytes_free(&most);
}

/* More requests in one piece than the input buffer holds: a header lies across its end. */
static void many_requests_in_one_piece(void **state)
{
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++) {
        struct peer t;
        struct bytes m = { 0 };
        enter(&t, mode, "disk0", false);
        for (unsigned i = 0; i < 5000; i++) {
            struct nbdp_request r = { .type = i % 5 ? NBD_CMD_READ : NBD_CMD_WRITE, .off = i, .len = i % 5 ? 512 : i % 97 + 1,
                                      .flags = mode == NBDP_EXTENDED && i % 5 == 0 ? PAYLOAD_LEN : 0 };
            say(&m, mode, &r);
            put_fill(&m, (uint8_t)i, carried(mode, &r));
        }
        peer_feed(&t, m.b, m.len, SIZE_MAX);
        assert_int_equal(t.n_reqs, 5000);
        for (unsigned i = 0; i < 256; i++)
            assert_true(t.reqs[i].off == i && !t.reqs[i].error);
        assert_false(t.closed);
        assert_string_equal(nbdp_close_reason(t.p), "");
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* ---- end of the stream ---- */

static void disconnect_and_bad_magic(void **state)
{
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++)
        for (int bad = 0; bad < 3; bad++) {
            struct peer t;
            struct bytes m = { 0 };
            struct nbdp_request r = { .type = bad ? NBD_CMD_READ : NBD_CMD_DISC, .len = bad ? 512 : 0 };
            enter(&t, mode, "disk0", false);
            say(&m, bad == 2 ? (mode == NBDP_EXTENDED ? NBDP_SIMPLE : NBDP_EXTENDED) : mode, &r);
            if (bad == 1)
                m.b[3] ^= 0x80;
            put_fill(&m, 0, 32);
            peer_feed(&t, m.b, m.len, SIZE_MAX);
            assert_true(t.closed);
            assert_int_equal(t.n_reqs, 0);
            assert_string_equal(nbdp_close_reason(t.p), bad ? "bad request magic" : "the client disconnected");
            bytes_free(&m);
            peer_fini(&t);
        }
}

static void shutdown_refuses_requests(void **state)
{
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++) {
        struct peer t;
        struct bytes m = { 0 };
        struct nbdp_request w = { .type = NBD_CMD_WRITE, .len = 5000, .flags = mode == NBDP_EXTENDED ? PAYLOAD_LEN : 0 };
        struct nbdp_request r = { .type = NBD_CMD_READ, .len = 5000 }, d = { .type = NBD_CMD_DISC };
        enter(&t, mode, "disk0", false);
        nbdp_set_shutdown(t.p);
        say(&m, mode, &w);
        put_fill(&m, 0, 5000);
        say(&m, mode, &r);
        say(&m, mode, &d);
        peer_feed(&t, m.b, m.len, SIZE_MAX);
        assert_int_equal(t.n_reqs, 2);
        assert_int_equal(t.reqs[0].error, NBD_ESHUTDOWN);
        assert_int_equal(t.reqs[1].error, NBD_ESHUTDOWN);
        assert_true(t.closed);
        bytes_free(&m);
        peer_fini(&t);
    }
}

/* ---- replies ---- */

static struct nbdp_request req_of(enum nbdp_mode mode, uint16_t type, uint64_t off, uint64_t len)
{
    return (struct nbdp_request){ .mode = (uint8_t)mode, .type = type, .cookie = UINT64_C(0x1122334455667788), .off = off, .len = len };
}

#define CHECK_BYTES(h, s) do { assert_int_equal((h).len, sizeof(s) - 1); assert_memory_equal((h).b, s, sizeof(s) - 1); } while (0)
#define COOKIE "\x11\x22\x33\x44\x55\x66\x77\x88"

static void simple_replies(void **state)
{
    struct nbdp_head h;
    struct nbdp_request r = req_of(NBDP_SIMPLE, NBD_CMD_READ, 4096, 512);
    nbdp_reply_ok(&r, &h);
    CHECK_BYTES(h, "\x67\x44\x66\x98\0\0\0\0" COOKIE);
    nbdp_reply_error(&r, NBD_EINVAL, "a text that is not sent", &h);
    CHECK_BYTES(h, "\x67\x44\x66\x98\0\0\0\x16" COOKIE);
    nbdp_reply_data(&r, 4096, 512, true, &h);
    CHECK_BYTES(h, "\x67\x44\x66\x98\0\0\0\0" COOKIE);
}

static void structured_replies(void **state)
{
    struct nbdp_head h;
    struct nbdp_request r = req_of(NBDP_STRUCTURED, NBD_CMD_READ, 4096, 1024);
    nbdp_reply_ok(&r, &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\1\0\0" COOKIE "\0\0\0\0");
    nbdp_reply_error(&r, NBD_ENOSPC, "full", &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\1\x80\1" COOKIE "\0\0\0\x0a" "\0\0\0\x1c\0\4full");
    nbdp_reply_error(&r, NBD_EIO, NULL, &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\1\x80\1" COOKIE "\0\0\0\6" "\0\0\0\5\0\0");
    nbdp_reply_data(&r, 4096 + 512, 512, false, &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\0\0\1" COOKIE "\0\0\2\x08" "\0\0\0\0\0\0\x12\0");
    nbdp_reply_hole(&r, 4096, 512, true, &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\1\0\2" COOKIE "\0\0\0\x0c" "\0\0\0\0\0\0\x10\0\0\0\2\0");
    struct nbdp_fault f = { NBD_EIO, 5119, "bad" };
    nbdp_reply_error_at(&r, &f, true, &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\1\x80\2" COOKIE "\0\0\0\x11" "\0\0\0\5\0\3bad\0\0\0\0\0\0\x13\xff");
    f.why = NULL;
    nbdp_reply_error_at(&r, &f, false, &h);
    CHECK_BYTES(h, "\x66\x8e\x33\xef\0\0\x80\2" COOKIE "\0\0\0\x0e" "\0\0\0\5\0\0\0\0\0\0\0\0\x13\xff");
}

static void extended_replies(void **state)
{
    struct nbdp_head h;
    struct nbdp_request r = req_of(NBDP_EXTENDED, NBD_CMD_READ, UINT64_C(0x123456789a), 1024);
#define OFF "\0\0\0\x12\x34\x56\x78\x9a"
    nbdp_reply_ok(&r, &h);
    CHECK_BYTES(h, "\x6e\x8a\x27\x8c\0\1\0\0" COOKIE OFF "\0\0\0\0\0\0\0\0");
    nbdp_reply_error(&r, NBD_EPERM, "no", &h);
    CHECK_BYTES(h, "\x6e\x8a\x27\x8c\0\1\x80\1" COOKIE OFF "\0\0\0\0\0\0\0\x08" "\0\0\0\1\0\2no");
    nbdp_reply_data(&r, UINT64_C(0x123456789b), 1, true, &h);
    CHECK_BYTES(h, "\x6e\x8a\x27\x8c\0\1\0\1" COOKIE OFF "\0\0\0\0\0\0\0\x09" "\0\0\0\x12\x34\x56\x78\x9b");
}

static void long_texts_are_cut(void **state)
{
    char text[5000];
    memset(text, 'e', sizeof text);
    text[sizeof text - 1] = 0;
    for (enum nbdp_mode mode = NBDP_STRUCTURED; mode <= NBDP_EXTENDED; mode++) {
        struct nbdp_head h;
        struct nbdp_request r = req_of(mode, NBD_CMD_READ, 0, 512);
        uint32_t head = mode == NBDP_EXTENDED ? 32 : 20;
        nbdp_reply_error(&r, NBD_EIO, text, &h);
        assert_int_equal(h.len, head + 6 + NBDP_ERROR_TEXT_MAX);
        struct nbdp_fault f = { NBD_EIO, 0, text };
        nbdp_reply_error_at(&r, &f, false, &h);
        assert_int_equal(h.len, head + 14 + NBDP_ERROR_TEXT_MAX);
    }
}

static void errors_of_the_engine(void **state)
{
    struct nbdp_request r = req_of(NBDP_SIMPLE, NBD_CMD_WRITE, 0, 1), z = req_of(NBDP_SIMPLE, NBD_CMD_WRITE_ZEROES, 0, 1);
    static const struct { int err; enum nbd_error want; } rows[] = {
        { -EPERM, NBD_EPERM }, { -EROFS, NBD_EPERM }, { -EACCES, NBD_EPERM }, { -EIO, NBD_EIO }, { -ENOMEM, NBD_ENOMEM },
        { -EINVAL, NBD_EINVAL }, { -ENOSPC, NBD_ENOSPC }, { -EDQUOT, NBD_ENOSPC }, { -EFBIG, NBD_ENOSPC }, { -ENOTSUP, NBD_EINVAL },
        { -ESHUTDOWN, NBD_ESHUTDOWN }, { -EBADF, NBD_EIO }, { -ECANCELED, NBD_EIO }, { -EOVERFLOW, NBD_EIO }, { 0, NBD_EIO }, { -4095, NBD_EIO },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(nbdp_error_of(&r, rows[i].err), rows[i].want);
    assert_int_equal(nbdp_error_of(&z, -ENOTSUP), NBD_EINVAL);
    z.flags = FAST_ZERO;
    assert_int_equal(nbdp_error_of(&z, -ENOTSUP), NBD_ENOTSUP);
}

/* ---- block status ---- */

struct ext { uint64_t len; uint32_t flags; };

/* Reads a finished status chunk back. Returns the number of extents. */
static unsigned read_status(const struct nbdp_status *st, const struct nbdp_head *h, struct ext *out, unsigned max)
{
    bool x = st->req->mode == NBDP_EXTENDED;
    struct rcur c = rcur_of(h->b, h->len);
    assert_int_equal(rcur_be32(&c), x ? NBD_MAGIC_CHUNK_EXT : NBD_MAGIC_CHUNK);
    rcur_skip(&c, 2);
    assert_int_equal(rcur_be16(&c), x ? 6 : 5);
    rcur_skip(&c, x ? 16 : 8);
    assert_true((x ? rcur_be64(&c) : rcur_be32(&c)) == st->used);
    assert_true(rcur_at_end(&c));
    c = rcur_of(st->buf, st->used);
    assert_int_equal(rcur_be32(&c), st->ctx);
    uint32_t count = x ? rcur_be32(&c) : 0;
    unsigned n = 0;
    while (rcur_left(&c)) {
        struct ext e;
        e.len = x ? rcur_be64(&c) : rcur_be32(&c);
        e.flags = (uint32_t)(x ? rcur_be64(&c) : rcur_be32(&c));
        assert_true(rcur_ok(&c) && e.len > 0);
        if (n < max)
            out[n] = e;
        n++;
    }
    if (x)
        assert_int_equal(count, n);
    return n;
}

static void status_merges_and_clamps(void **state)
{
    for (enum nbdp_mode mode = NBDP_STRUCTURED; mode <= NBDP_EXTENDED; mode++) {
        struct nbdp_request r = req_of(mode, NBD_CMD_BLOCK_STATUS, 0, 10000);
        struct nbdp_status st;
        struct nbdp_head h;
        struct ext e[4];
        uint8_t buf[256];
        nbdp_status_begin(&st, &r, 1, buf, sizeof buf);
        assert_true(nbdp_status_add(&st, 1000, 0));
        assert_true(nbdp_status_add(&st, 1000, 0));
        assert_true(nbdp_status_add(&st, 500, 3));
        assert_false(nbdp_status_add(&st, UINT64_MAX, 0));
        assert_false(nbdp_status_add(&st, 1, 7));
        nbdp_status_end(&st, true, &h);
        assert_int_equal(h.b[5], NBD_REPLY_FLAG_DONE);
        assert_int_equal(read_status(&st, &h, e, 4), 3);
        assert_true(e[0].len == 2000 && e[0].flags == 0);
        assert_true(e[1].len == 500 && e[1].flags == 3);
        assert_true(e[2].len == 7500 && e[2].flags == 0);
    }
}

static void status_req_one(void **state)
{
    for (enum nbdp_mode mode = NBDP_STRUCTURED; mode <= NBDP_EXTENDED; mode++)
        for (int longer = 0; longer < 2; longer++) {
            struct nbdp_request r = req_of(mode, NBD_CMD_BLOCK_STATUS, 0, 4096);
            struct nbdp_status st;
            struct nbdp_head h;
            struct ext e[2];
            uint8_t buf[64];
            r.flags = REQ_ONE;
            nbdp_status_begin(&st, &r, 0, buf, sizeof buf);
            assert_true(nbdp_status_add(&st, 512, 3));
            assert_int_equal(nbdp_status_add(&st, longer ? 8192 : 512, longer ? 3 : 0), false);
            nbdp_status_end(&st, false, &h);
            assert_int_equal(h.b[5], 0);
            assert_int_equal(read_status(&st, &h, e, 2), 1);
            assert_true(e[0].len == (longer ? 4096 : 512) && e[0].flags == 3);
        }
}

/* A buffer takes as many extents as fit and not one more. */
static void status_stops_at_its_buffer(void **state)
{
    uint8_t *buf = malloc(NBDP_STATUS_BYTES_MAX + 65);
    assert_non_null(buf);
    static const uint32_t caps[] = { NBDP_STATUS_BUF_MIN, 33, 39, 40, 41, 47, 48, 100, NBDP_STATUS_BYTES_MAX, NBDP_STATUS_BYTES_MAX + 64 };
    for (enum nbdp_mode mode = NBDP_STRUCTURED; mode <= NBDP_EXTENDED; mode++)
        for (size_t i = 0; i < sizeof caps / sizeof caps[0]; i++) {
            struct nbdp_request r = req_of(mode, NBD_CMD_BLOCK_STATUS, 0, 0xffffffff);
            struct nbdp_status st;
            struct nbdp_head h;
            struct ext e[1];
            uint32_t head = mode == NBDP_EXTENDED ? 8 : 4, each = mode == NBDP_EXTENDED ? 16 : 8;
            uint32_t want = (uint32_t)(min_u64(caps[i], NBDP_STATUS_BYTES_MAX) - head) / each;
            memset(buf + caps[i] - 1, 0x5a, 2);
            nbdp_status_begin(&st, &r, 0, buf, caps[i]);
            uint32_t n = 0;
            while (nbdp_status_add(&st, 512, n & 1) && n < 200000)
                n++;
            assert_int_equal(n, want);
            assert_false(nbdp_status_add(&st, 512, (n - 1) & 1));      /* like the last one, but no longer next to it */
            nbdp_status_end(&st, true, &h);
            assert_int_equal(read_status(&st, &h, e, 1), want);
            assert_int_equal(buf[caps[i]], 0x5a);
        }
    free(buf);
}

static void status_at_four_gib(void **state)
{
    static const uint64_t lens[] = { G4 - 512, G4 - 1, G4, G4 + 1, G4 + 512, PEER_BIG };
    for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        struct nbdp_request r = req_of(NBDP_EXTENDED, NBD_CMD_BLOCK_STATUS, 0, lens[i]);
        struct nbdp_status st;
        struct nbdp_head h;
        struct ext e[1];
        uint8_t buf[64];
        nbdp_status_begin(&st, &r, 0, buf, sizeof buf);
        assert_false(nbdp_status_add(&st, UINT64_MAX, 3));
        nbdp_status_end(&st, true, &h);
        assert_int_equal(read_status(&st, &h, e, 1), 1);
        assert_true(e[0].len == lens[i]);

        r = req_of(NBDP_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, min_u64(lens[i], 0xffffffff));
        nbdp_status_begin(&st, &r, 0, buf, sizeof buf);
        assert_false(nbdp_status_add(&st, lens[i], 3));
        nbdp_status_end(&st, true, &h);
        assert_int_equal(read_status(&st, &h, e, 1), 1);
        assert_true(e[0].len == r.len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges),
        cmocka_unit_test(ranges_of_64_bits),
        cmocka_unit_test(read_only_export),
        cmocka_unit_test(flags),
        cmocka_unit_test(unknown_commands),
        cmocka_unit_test(unfragmented_reads),
        cmocka_unit_test(alignment_binds_who_agreed_to_it),
        cmocka_unit_test(block_status_needs_contexts_and_a_length),
        cmocka_unit_test(payload_arrives_whole_however_it_is_cut),
        cmocka_unit_test(refused_payload_is_skipped),
        cmocka_unit_test(payload_limits),
        cmocka_unit_test(extended_payload_rules),
        cmocka_unit_test(status_payload_chooses_contexts),
        cmocka_unit_test(many_requests_in_one_piece),
        cmocka_unit_test(disconnect_and_bad_magic),
        cmocka_unit_test(shutdown_refuses_requests),
        cmocka_unit_test(simple_replies),
        cmocka_unit_test(structured_replies),
        cmocka_unit_test(extended_replies),
        cmocka_unit_test(long_texts_are_cut),
        cmocka_unit_test(errors_of_the_engine),
        cmocka_unit_test(status_merges_and_clamps),
        cmocka_unit_test(status_req_one),
        cmocka_unit_test(status_stops_at_its_buffer),
        cmocka_unit_test(status_at_four_gib),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
