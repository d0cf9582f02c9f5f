/* SPDX-License-Identifier: MIT
 *
 * pr_codec_test.c: bytes of requests as SPC-4 draws them; answers, and what is no answer (FEATURES 3.021).
 *
 * Tests        pr_codec.c
 */
#include <string.h>

#include "base/test.h"
#include "proto/pr/pr_codec.h"

static void test_requests(void **state)
{
    static const uint8_t in[16] = { 0x5e, 3, 0, 0, 0, 0, 0, 0x20, 0x00 };
    static const uint8_t out[40] = { 0x5f, 5, 7, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8 };
    uint8_t got[PRP_REQUEST_MAX], flagged[sizeof out];
    struct prp_request rq = { .action = PRP_READ_FULL_STATUS, .type = 7 };
    assert_int_equal(prp_request_emit(&rq, got), sizeof in);
    assert_memory_equal(got, in, sizeof in);
    rq = (struct prp_request){ .out = true, .action = PRP_PREEMPT_AND_ABORT, .type = 7, .key = 0x0102030405060708, .action_key = 0xf1f2f3f4f5f6f7f8 };
    assert_int_equal(prp_request_emit(&rq, got), sizeof out);
    assert_memory_equal(got, out, sizeof out);
    memcpy(flagged, out, sizeof out);
    rq.aptpl = true;
    flagged[36] = 1;
    assert_int_equal(prp_request_emit(&rq, got), sizeof out);
    assert_memory_equal(got, flagged, sizeof out);
    rq.aptpl = false;
    rq.all_ports = true;
    flagged[36] = 4;
    assert_int_equal(prp_request_emit(&rq, got), sizeof out);
    assert_memory_equal(got, flagged, sizeof out);
}

struct head { uint32_t status, len; bool out; int result; };

static void test_heads(void **state)
{
    static const struct head heads[] = {
        { PRP_GOOD, 0, false, 0 }, { PRP_GOOD, PRP_DATA_MAX, false, 0 }, { PRP_GOOD, PRP_DATA_MAX + 1, false, -EPROTO }, { PRP_GOOD, UINT32_MAX, false, -EPROTO },
        { PRP_GOOD, 1, true, -EPROTO }, { PRP_GOOD, 0, true, 0 }, { PRP_CHECK_CONDITION, 0, false, 0 }, { PRP_CHECK_CONDITION, 1, false, -EPROTO },
        { PRP_RESERVATION_CONFLICT, 0, true, 0 }, { 255, 0, false, 0 }, { 256, 0, false, -EPROTO }, { UINT32_MAX, 0, false, -EPROTO },
    };
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        uint8_t bytes[PRP_HEAD_BYTES];
        struct prp_request rq = { .out = heads[i].out };
        struct prp_head h = { .status = 77 };
        struct wcur w = wcur_of(bytes, sizeof bytes);
        wcur_be32(&w, heads[i].status);
        wcur_be32(&w, heads[i].len);
        for (unsigned k = 0; k < PRP_SENSE_BYTES; k++)
            wcur_u8(&w, (uint8_t)(k + 1));
        assert_int_equal(prp_head_parse(bytes, &rq, &h, NULL), heads[i].result);
        assert_int_equal(h.status, heads[i].result ? 77 : heads[i].status);
        if (!heads[i].result) {
            assert_int_equal(h.len_bytes, heads[i].len);
            assert_memory_equal(h.sense, bytes + 8, PRP_SENSE_BYTES);
        }
    }
}

static void test_sense(void **state)
{
    uint8_t fixed[PRP_SENSE_BYTES] = { [0] = 0xf0, [2] = 0x25, [12] = 0x24, [13] = 3 }, other[PRP_SENSE_BYTES] = { 0x72, 0x0b, 6, 9 }, none[PRP_SENSE_BYTES] = { 0 };
    struct prp_sense s;
    assert_true(prp_sense_parse(fixed, &s) && s.key == 5 && s.asc == 0x24 && s.ascq == 3);
    assert_true(prp_sense_parse(other, &s) && s.key == 11 && s.asc == 6 && s.ascq == 9);
    assert_false(prp_sense_parse(none, &s));
}

static void test_keys(void **state)
{
    static const uint8_t two[] = { 0, 0, 0, 9, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 2 };
    struct prp_keys k;
    uint64_t key;
    assert_int_equal(prp_keys_parse(two, sizeof two, &k, NULL), 0);
    assert_true(k.generation == 9 && !k.more);
    assert_true(prp_keys_next(&k, &key) && key == 1);
    assert_true(prp_keys_next(&k, &key) && key == 0x8000000000000002);
    assert_false(prp_keys_next(&k, &key));
    assert_int_equal(prp_keys_parse(two, sizeof two - 1, &k, NULL), 0);         /* the second is cut off */
    assert_true(k.more && prp_keys_next(&k, &key) && !prp_keys_next(&k, &key));
    assert_int_equal(prp_keys_parse(two, 8, &k, NULL), 0);
    assert_true(k.more && !prp_keys_next(&k, &key));
    assert_int_equal(prp_keys_parse(two, 7, &k, NULL), -EPROTO);
    static const uint8_t none[] = { 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1 };      /* what follows the list is not in it */
    assert_int_equal(prp_keys_parse(none, sizeof none, &k, NULL), 0);
    assert_true(!k.more && !prp_keys_next(&k, &key));
}

static void test_reservation(void **state)
{
    static const uint8_t held[] = { 0, 0, 0, 3, 0, 0, 0, 16, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0x05, 0, 0 }, none[] = { 0, 0, 0, 4, 0, 0, 0, 0 };
    struct prp_reservation v;
    assert_int_equal(prp_reservation_parse(held, sizeof held, &v, NULL), 0);
    assert_true(v.held && v.generation == 3 && v.key == 0x0102030405060708 && v.scope == 0 && v.type == 5);
    assert_int_equal(prp_reservation_parse(none, sizeof none, &v, NULL), 0);
    assert_true(!v.held && v.generation == 4);
    for (size_t len = 0; len < 22; len++)
        assert_int_equal(prp_reservation_parse(held, len, &v, NULL), -EPROTO);
}

static void test_capabilities(void **state)
{
    static const uint8_t all[] = { 0, 8, 0x9d, 0xb1, 0xea, 0x01, 0, 0 }, some[] = { 0, 8, 0x04, 0x01, 0xff, 0xff, 0, 0 };
    struct prp_capabilities v;
    assert_int_equal(prp_capabilities_parse(all, sizeof all, &v, NULL), 0);
    assert_true(v.replaces_lost && v.compatible && v.any_initiator && v.all_ports && v.aptpl && v.aptpl_now && v.types_known && v.allows == 3);
    assert_int_equal(v.types, 1u << 1 | 1u << 3 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8);
    assert_int_equal(prp_capabilities_parse(some, sizeof some, &v, NULL), 0);
    assert_true(!v.replaces_lost && !v.compatible && !v.any_initiator && v.all_ports && !v.aptpl && v.aptpl_now && !v.types_known && !v.allows && !v.types);
    assert_int_equal(prp_capabilities_parse(some, 5, &v, NULL), -EPROTO);
}

static void test_status(void **state)
{
    static const uint8_t two[] = {
        0, 0, 0, 2, 0, 0, 0, 52,
        0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x01, 0x03, 0, 0, 0, 0, 0, 7, 0, 0, 0, 4, 'a', 'b', 'c', 'd',
        0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x02, 0x00, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
    };
    struct prp_status s;
    struct prp_registrant g;
    assert_int_equal(prp_status_parse(two, sizeof two, &s, NULL), 0);
    assert_true(s.generation == 2 && prp_status_next(&s, &g));
    assert_true(g.key == 1 && g.holder && !g.all_ports && g.type == 3 && g.scope == 0 && g.port == 7 && g.transport_bytes == 4);
    assert_memory_equal(g.transport, "abcd", 4);
    assert_true(prp_status_next(&s, &g) && g.key == 2 && !g.holder && g.all_ports && g.port == 256 && g.transport_bytes == 0);
    assert_true(!prp_status_next(&s, &g) && !s.more);
    assert_int_equal(prp_status_parse(two, sizeof two - 1, &s, NULL), 0);
    assert_true(prp_status_next(&s, &g) && !prp_status_next(&s, &g) && s.more);
    uint8_t lies[sizeof two];
    memcpy(lies, two, sizeof two);
    memset(lies + 28, 0xff, 4);                /* a name of a transport that is longer than all that came */
    assert_int_equal(prp_status_parse(lies, sizeof lies, &s, NULL), 0);
    assert_true(!prp_status_next(&s, &g) && s.more && !prp_status_next(&s, &g));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests), cmocka_unit_test(test_heads), cmocka_unit_test(test_sense), cmocka_unit_test(test_keys),
        cmocka_unit_test(test_reservation), cmocka_unit_test(test_capabilities), cmocka_unit_test(test_status),
    };
    return cmocka_run_group_tests_name("pr_codec", tests, NULL, NULL);
}
