/* SPDX-License-Identifier: MIT
 *
 * qmp_split.c: where does one JSON value end?
 *
 * Purpose      Cuts a stream into JSON texts by counting brackets outside strings. Whether a text is valid JSON is
 *              decided by the parser that gets it; here only what is needed to find its end, and the limits.
 * Owns         the text collected so far (grows by doubling, at most bytes_max + 1).
 * Invariants   I1 len <= bytes_max, depth <= depth_max, tokens <= tokens_max: checked before a byte is stored.
 *              I2 a text handed out has balanced brackets of matching kinds, so a parser's recursion is bounded too.
 *              I3 the result does not depend on how the stream is cut into feeds.
 * Concurrency  one owner; never suspends.
 * Failure      QMP_BAD goes on behind the next line end; QMP_LIMIT is final.
 * Tests        qmp_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "proto/qmp/qmp.h"

struct qmp_split {
    struct qmp_limits lim;
    char *text;
    size_t len, cap;
    uint64_t kinds;            /* bit i: level i was opened by a square bracket */
    uint32_t depth, tokens;
    bool in_string, escape;    /* inside "...", behind a backslash */
    bool in_scalar;            /* inside a number or literal */
    bool handed_out;           /* the text is the caller's until the next feed */
    bool skipping;             /* after QMP_BAD: up to the line end */
    bool dead;
    const char *why;
};

int qmp_split_new(const struct qmp_limits *limits, struct qmp_split **ret_s)
{
    struct qmp_split *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    if (limits)
        s->lim = *limits;
    if (!s->lim.bytes_max)
        s->lim.bytes_max = QMP_BYTES_MAX;
    if (!s->lim.depth_max)
        s->lim.depth_max = QMP_DEPTH_MAX;
    if (!s->lim.tokens_max)
        s->lim.tokens_max = QMP_TOKENS_MAX;
    ASSERT(s->lim.depth_max <= 64);
    *ret_s = s;
    return 0;
}

void qmp_split_free(struct qmp_split *s)
{
    if (!s)
        return;
    free(s->text);
    free(s);
}

static void start_over(struct qmp_split *s)
{
    s->len = 0;
    s->kinds = 0;
    s->depth = s->tokens = 0;
    s->in_string = s->escape = s->in_scalar = s->handed_out = false;
}

static enum qmp_item bad(struct qmp_split *s, const char *why)
{
    start_over(s);
    s->skipping = true;
    s->why = why;
    return QMP_BAD;
}

static enum qmp_item limit(struct qmp_split *s, const char *why)
{
    start_over(s);
    s->dead = true;
    s->why = why;
    return QMP_LIMIT;
}

static enum qmp_item complete(struct qmp_split *s)
{
    s->text[s->len] = 0;
    s->handed_out = true;
    return QMP_TEXT;
}

/* Appends c; QMP_MORE or QMP_LIMIT. */
static enum qmp_item store(struct qmp_split *s, char c)
{
    if (s->len >= s->lim.bytes_max)
        return limit(s, "the message is too long");
    if (s->len + 1 >= s->cap) {
        size_t cap = min_u64(s->cap ? s->cap * 2 : 256, (uint64_t)s->lim.bytes_max + 1);
        char *bigger = realloc(s->text, cap);
        if (!bigger)
            return limit(s, "out of memory");
        s->text = bigger;
        s->cap = cap;
    }
    s->text[s->len++] = c;
    return QMP_MORE;
}

static enum qmp_item token(struct qmp_split *s, char c)
{
    if (s->tokens >= s->lim.tokens_max)
        return limit(s, "the message has too many tokens");
    s->tokens++;
    return store(s, c);
}

static enum qmp_item open_level(struct qmp_split *s, char c)
{
    if (s->depth >= s->lim.depth_max)
        return limit(s, "the message is nested too deeply");
    uint64_t bit = UINT64_C(1) << s->depth;
    s->kinds = c == '[' ? s->kinds | bit : s->kinds & ~bit;
    s->depth++;
    return token(s, c);
}

static enum qmp_item close_level(struct qmp_split *s, char c)
{
    if (!s->depth)
        return bad(s, "a closing bracket without an opening one");
    if ((c == ']') != (s->kinds >> (s->depth - 1) & 1))
        return bad(s, "a closing bracket of the wrong kind");
    s->depth--;
    enum qmp_item it = token(s, c);
    return it == QMP_MORE && !s->depth ? complete(s) : it;
}

static enum qmp_item in_string(struct qmp_split *s, char c)
{
    if ((unsigned char)c < 0x20)
        return bad(s, "a control character inside a string");
    enum qmp_item it = store(s, c);
    if (it != QMP_MORE)
        return it;
    if (s->escape)
        s->escape = false;
    else if (c == '\\')
        s->escape = true;
    else if (c == '"')
        s->in_string = false;
    return !s->in_string && !s->depth ? complete(s) : QMP_MORE;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool ends_scalar(char c)
{
    return is_space(c) || strchr("{}[]:,\"", c);
}

/* One byte outside strings. *ret_again: the byte belongs to the next item and was not taken. */
static enum qmp_item outside(struct qmp_split *s, char c, bool *ret_again)
{
    if (!(unsigned char)c || ((unsigned char)c < 0x20 && !is_space(c)) || (unsigned char)c >= 0x7f)
        return bad(s, "a stray byte outside strings");
    if (s->in_scalar && ends_scalar(c)) {
        s->in_scalar = false;
        *ret_again = !s->depth;
        if (!s->depth)
            return complete(s);
    }
    switch (c) {
    case ' ':
    case '\t':
    case '\n':
    case '\r':
        return s->depth ? store(s, c) : QMP_MORE;
    case '{':
    case '[':
        return open_level(s, c);
    case '}':
    case ']':
        return close_level(s, c);
    case ':':
    case ',':
        return s->depth ? token(s, c) : bad(s, "punctuation between values");
    case '"':
        s->in_string = true;
        return token(s, c);
    default:
        if (s->in_scalar)
            return store(s, c);
        s->in_scalar = true;
        return token(s, c);
    }
}

enum qmp_item qmp_split_feed(struct qmp_split *s, const char *data, size_t len, size_t *ret_used)
{
    size_t i = 0;
    enum qmp_item it = s->dead ? QMP_LIMIT : QMP_MORE;
    if (s->handed_out)
        start_over(s);
    for (; it == QMP_MORE && i < len; i++) {
        bool again = false;
        if (s->skipping)
            s->skipping = data[i] != '\n';
        else
            it = s->in_string ? in_string(s, data[i]) : outside(s, data[i], &again);
        if (it == QMP_BAD && data[i] == '\n')
            s->skipping = false;
        i -= again;
    }
    *ret_used = i;
    return it;
}

const char *qmp_split_text(const struct qmp_split *s, size_t *ret_len)
{
    ASSERT(s->handed_out);
    *ret_len = s->len;
    return s->text;
}

const char *qmp_split_why(const struct qmp_split *s)
{
    return s->why ? s->why : "";
}
