/* SPDX-License-Identifier: MIT
 *
 * json_out.c: a small streaming JSON writer.
 *
 * Purpose      Text of RFC 8259 from calls in document order.
 * Owns         the buffer of each struct json_out
 * Invariants   I1 text is a valid prefix of a JSON document at all times, in UTF-8 whatever was fed in
 *              I2 depth <= JSON_OUT_DEPTH_MAX; bit d of is_array and has_element describes level d + 1
 * Concurrency  one owner
 * Failure      -ENOMEM sticks in error; later calls do nothing
 * Tests        json_out_test.c (read back by jansson)
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json_out.h"

void json_out_init(struct json_out *j, bool pretty)
{
    memset(j, 0, sizeof *j);
    j->pretty = pretty;
}

void json_out_fini(struct json_out *j)
{
    free(j->text);
    json_out_init(j, j->pretty);
}

void json_out_reset(struct json_out *j)
{
    j->len_bytes = 0;
    j->is_array = j->has_element = 0;
    j->depth = 0;
    j->error = 0;
    if (j->text)
        j->text[0] = 0;
}

int json_out_error(const struct json_out *j)
{
    return j->error;
}

static void put(struct json_out *j, const char *s, size_t n)
{
    if (j->error)
        return;
    if (n >= j->cap_bytes - j->len_bytes) {
        size_t cap = j->cap_bytes ? j->cap_bytes : 256;
        while (cap - j->len_bytes <= n)
            cap *= 2;
        char *bigger = realloc(j->text, cap);
        if (!bigger) {
            j->error = -ENOMEM;
            return;
        }
        j->text = bigger;
        j->cap_bytes = cap;
    }
    memcpy(j->text + j->len_bytes, s, n);
    j->len_bytes += n;
    j->text[j->len_bytes] = 0;
}

static void puts_lit(struct json_out *j, const char *s)
{
    put(j, s, strlen(s));
}

static void new_line(struct json_out *j)
{
    if (!j->pretty)
        return;
    put(j, "\n", 1);
    for (unsigned i = 0; i < j->depth; i++)
        put(j, "    ", 4);
}

/* Length of the UTF-8 sequence at s, 0 if it is none (overlong forms, surrogates and cut ones included). */
static size_t utf8_len(const uint8_t *s, size_t left)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n > left)
        return 0;
    uint32_t c = s[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

static void put_escaped(struct json_out *j, uint8_t c)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *hit = strchr(from, c);
    char esc[8];
    if (c && hit)
        snprintf(esc, sizeof esc, "\\%c", to[hit - from]);
    else
        snprintf(esc, sizeof esc, "\\u%04x", c);
    puts_lit(j, esc);
}

static void put_string(struct json_out *j, const char *str, size_t len)
{
    const uint8_t *s = (const uint8_t *)str;
    size_t plain = 0;       /* bytes in front of s that go out as they are */
    put(j, "\"", 1);
    while (len) {
        size_t n = utf8_len(s, len);
        if (n && s[0] >= 0x20 && s[0] != '"' && s[0] != '\\' && s[0] != 0x7f) {
            plain += n;
        } else {
            put(j, (const char *)s - plain, plain);
            plain = 0;
            if (n)
                put_escaped(j, s[0]);
            else
                put(j, "\xef\xbf\xbd", 3);
            n = 1;
        }
        s += n;
        len -= n;
    }
    put(j, (const char *)s - plain, plain);
    put(j, "\"", 1);
}

/* What comes in front of a value: comma, line, key. */
static void begin(struct json_out *j, const char *key)
{
    if (!j->depth) {
        ASSERT(!key);
        return;
    }
    uint64_t bit = UINT64_C(1) << (j->depth - 1);
    ASSERT(!key == !!(j->is_array & bit));
    if (j->has_element & bit)
        puts_lit(j, j->pretty ? "," : ", ");
    j->has_element |= bit;
    new_line(j);
    if (key) {
        put_string(j, key, strlen(key));
        puts_lit(j, ": ");
    }
}

static void open_level(struct json_out *j, const char *key, bool array)
{
    begin(j, key);
    INV(I2, j->depth < JSON_OUT_DEPTH_MAX);
    put(j, array ? "[" : "{", 1);
    uint64_t bit = UINT64_C(1) << j->depth++;
    j->has_element &= ~bit;
    j->is_array = array ? j->is_array | bit : j->is_array & ~bit;
}

void jo_open_obj(struct json_out *j, const char *key)
{
    open_level(j, key, false);
}

void jo_open_arr(struct json_out *j, const char *key)
{
    open_level(j, key, true);
}

void jo_close(struct json_out *j)
{
    INV(I2, j->depth > 0);
    uint64_t bit = UINT64_C(1) << --j->depth;
    if (j->has_element & bit)
        new_line(j);
    put(j, j->is_array & bit ? "]" : "}", 1);
}

void jo_strn(struct json_out *j, const char *key, const char *s, size_t len_bytes)
{
    begin(j, key);
    put_string(j, s, len_bytes);
}

void jo_str(struct json_out *j, const char *key, const char *s)
{
    if (s)
        jo_strn(j, key, s, strlen(s));
    else
        jo_null(j, key);
}

static void put_word(struct json_out *j, const char *key, const char *word)
{
    begin(j, key);
    puts_lit(j, word);
}

void jo_u64(struct json_out *j, const char *key, uint64_t v)
{
    char b[24];
    snprintf(b, sizeof b, "%" PRIu64, v);
    put_word(j, key, b);
}

void jo_i64(struct json_out *j, const char *key, int64_t v)
{
    char b[24];
    snprintf(b, sizeof b, "%" PRId64, v);
    put_word(j, key, b);
}

void jo_double(struct json_out *j, const char *key, double v)
{
    char b[32];
    snprintf(b, sizeof b, "%.17g", v);
    for (int digits = 15; digits < 17; digits++) {      /* the shortest text that reads back as v */
        char shorter[32];
        snprintf(shorter, sizeof shorter, "%.*g", digits, v);
        if (strtod(shorter, NULL) == v) {
            memcpy(b, shorter, sizeof b);
            break;
        }
    }
    char *comma = strchr(b, ',');       /* some locales */
    if (comma)
        *comma = '.';
    put_word(j, key, isfinite(v) ? b : "null");
}

void jo_bool(struct json_out *j, const char *key, bool v)
{
    put_word(j, key, v ? "true" : "false");
}

void jo_null(struct json_out *j, const char *key)
{
    put_word(j, key, "null");
}
