/* SPDX-License-Identifier: MIT
 *
 * nbd_complaint_test.c: answers that are complaints, in part and as a whole; answers that are none; what no server should send (FEATURES G.047).
 *
 * Tests        nbd_complaint.c
 */
#include <string.h>

#include "base/cursor.h"
#include "base/prng.h"
#include "base/test.h"
#include "proto/nbd/nbd_complaint.h"

struct answer { uint32_t magic; unsigned type; uint64_t cookie, len; unsigned text_len; const char *text; uint64_t off; };

/* As a.len says, and with what a.text_len and a.text say of its text. Returns its length. */
static size_t make(uint8_t *buf, size_t room, const struct answer *a)
{
    struct wcur w = wcur_of(buf, room);
    wcur_be32(&w, a->magic);
    wcur_be16(&w, 1);
    wcur_be16(&w, (uint16_t)a->type);
    wcur_be64(&w, a->cookie);
    if (a->magic == NBD_MAGIC_CHUNK_EXT)
        wcur_be64(&w, 77);
    if (a->magic == NBD_MAGIC_CHUNK_EXT)
        wcur_be64(&w, a->len);
    else
        wcur_be32(&w, (uint32_t)a->len);
    wcur_be32(&w, 5);
    wcur_be16(&w, (uint16_t)a->text_len);
    wcur_bytes(&w, a->text, strlen(a->text));
    if (a->type == NBD_REPLY_TYPE_ERROR_OFFSET)
        wcur_be64(&w, a->off);
    assert_true(wcur_ok(&w));
    return wcur_pos(&w);
}

/* Every part of it says how much more is wanted, never less than there is, and the whole is what was sent. */
static void whole(const struct answer *a, const char *text)
{
    uint8_t buf[256];
    size_t len = make(buf, sizeof buf, a);
    for (size_t have = 1; have < len; have++) {
        struct nbdp_complaint c = { .cookie = 99 };
        size_t need = nbdp_complaint_parse(buf, have, &c);
        assert_true(need > have && need <= len);
        assert_int_equal(c.cookie, 99);
    }
    struct nbdp_complaint c;
    assert_int_equal(nbdp_complaint_parse(buf, len, &c), len);
    assert_int_equal(c.cookie, a->cookie);
    assert_string_equal(c.text, text);
    assert_int_equal(c.has_off, a->type == NBD_REPLY_TYPE_ERROR_OFFSET);
    assert_int_equal(c.off, c.has_off ? a->off : 0);
}

static void test_complaints(void **state)
{
    whole(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR, 7, 6 + 4, 4, "full", 0 }, "full");
    whole(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR_OFFSET, UINT64_MAX, 14 + 3, 3, "bad", 4096 }, "bad");
    whole(&(struct answer){ NBD_MAGIC_CHUNK_EXT, NBD_REPLY_TYPE_ERROR_OFFSET, 8, 14, 0, "", UINT64_C(1) << 40 }, "");
    whole(&(struct answer){ NBD_MAGIC_CHUNK, 0x8055, 9, 6 + 5 + 3, 5, "later an", 0 }, "later");       /* a kind that is not known: its beginning is */
    whole(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR, 7, 6 + 6, 6, "a\033[2J\n", 0 }, "a?[2J?");
}

static void none(const struct answer *a)
{
    uint8_t buf[256];
    struct nbdp_complaint c;
    assert_int_equal(nbdp_complaint_parse(buf, make(buf, sizeof buf, a), &c), 0);
}

static void test_no_complaints(void **state)
{
    none(&(struct answer){ NBD_MAGIC_SIMPLE, 0x8001, 7, 10, 4, "full", 0 });
    none(&(struct answer){ NBD_MAGIC_CHUNK, 1, 7, 10, 4, "data", 0 });
    none(&(struct answer){ NBD_MAGIC_CHUNK_EXT, 0, 7, 10, 4, "done", 0 });
    none(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR, 7, 10, 5, "full", 0 });       /* a text longer than the answer */
    none(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR_OFFSET, 7, 10, 4, "full", 0 });        /* no room for the offset */
    none(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR, 7, UINT32_MAX, 4, "full", 0 });
    none(&(struct answer){ NBD_MAGIC_CHUNK_EXT, NBD_REPLY_TYPE_ERROR, 7, UINT64_MAX - 20, 4, "full", 0 });
    none(&(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR, 7, 5, 4, "full", 0 });
}

static void test_a_long_text(void **state)
{
    static uint8_t buf[NBDP_COMPLAINT_MAX];
    static char text[NBD_STRING_MAX + 1];
    struct nbdp_complaint c;
    memset(text, 'x', sizeof text - 1);
    size_t len = make(buf, sizeof buf, &(struct answer){ NBD_MAGIC_CHUNK, NBD_REPLY_TYPE_ERROR, 7, 6 + NBD_STRING_MAX, NBD_STRING_MAX, text, 0 });
    assert_int_equal(nbdp_complaint_parse(buf, len, &c), len);
    assert_int_equal(strlen(c.text), sizeof c.text - 1);
}

static void test_any_bytes(void **state)
{
    struct prng rng;
    prng_init(&rng, 47);
    for (int i = 0; i < 20000; i++) {
        uint8_t buf[96];
        struct nbdp_complaint c = { .text = "-" };
        prng_fill(&rng, buf, sizeof buf);
        if (i % 2)
            memcpy(buf, (const uint8_t[]){ 0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, (uint8_t)(1 + i % 3) }, 8);
        if (i % 4 == 3)
            memset(buf + 16, 0, 3);
        size_t have = i % sizeof buf, need = nbdp_complaint_parse(buf, have, &c);
        assert_true(need <= NBDP_COMPLAINT_MAX);
        assert_true(memchr(c.text, 0, sizeof c.text) != NULL);
        for (const char *t = c.text; *t; t++)
            assert_true(*t >= ' ' && *t <= '~');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_complaints), cmocka_unit_test(test_no_complaints), cmocka_unit_test(test_a_long_text),
                                        cmocka_unit_test(test_any_bytes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
