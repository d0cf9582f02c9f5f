/* SPDX-License-Identifier: MIT
 *
 * err.c: the reason table and the one function that fills a struct byre_err.
 *
 * Purpose      Turns (reason, code, text) into a filled byre_err and a negative errno.
 * Owns         the constant table made from BYRE_REASONS
 * Invariants   I1 a returned code is always negative; I2 reason is never NULL after a failure
 * Concurrency  any thread; touches only what the caller owns
 * Failure      none: text that is too long is cut at a character boundary of UTF-8
 * Tests        err_test.c
 */
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/err.h"

struct reason_row {
    const char *name;
    int code;
    const char *text;
};

static const struct reason_row rows[] = {
#define X(name, code, text) { #name, code, text },
    BYRE_REASONS(X)
#undef X
};

static const struct reason_row *row_of(enum byre_reason why)
{
    ASSERT((unsigned)why < BYRE_R_COUNT);
    return &rows[why];
}

int byre_reason_errno(enum byre_reason why)
{
    return row_of(why)->code;
}

const char *byre_reason_name(enum byre_reason why)
{
    return row_of(why)->name;
}

const char *byre_reason_text(enum byre_reason why)
{
    return row_of(why)->text;
}

/* Takes a partly cut UTF-8 sequence off the end of a text that filled its buffer. */
static void drop_cut_character(char *text, size_t len)
{
    size_t i = len;
    while (i > 0 && len - i < 3 && ((unsigned char)text[i - 1] & 0xc0) == 0x80)
        i--;
    if (i == 0)
        return;
    unsigned char lead = (unsigned char)text[i - 1];
    size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (want > len - i + 1)
        text[i - 1] = 0;
}

int byre_fail_(struct byre_err *err, enum byre_reason why, int code, const char *fmt, ...)
{
    const struct reason_row *row = row_of(why);
    if (code >= 0)
        code = -row->code;
    if (!err)
        return code;
    char text[BYRE_ERR_TEXT_MAX];   /* arguments may point into err->text: format aside, then copy */
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0)
        text[0] = 0;
    else if ((size_t)n >= sizeof text)
        drop_cut_character(text, sizeof text - 1);
    err->code = code;
    err->reason = row->name;
    memcpy(err->text, text, strlen(text) + 1);
    return code;
}
