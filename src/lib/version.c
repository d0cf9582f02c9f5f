/* SPDX-License-Identifier: MIT
 *
 * version.c: version, formats, and words for numbers of the public headers.
 *
 * Purpose      Small lookups
 * Owns         constant tables
 * Invariants   I1 the numbers of the public headers are those of the layers below (asserted at compile time)
 * Concurrency  any thread
 * Failure      -EINVAL for words that mean nothing
 * Tests        lib_test.c
 */
#include "lib/lib_priv.h"

_Static_assert((int)BYRE_PREALLOC_OFF == (int)FMT_PREALLOC_OFF && (int)BYRE_PREALLOC_METADATA == (int)FMT_PREALLOC_METADATA &&
               (int)BYRE_PREALLOC_FALLOC == (int)FMT_PREALLOC_FALLOC && (int)BYRE_PREALLOC_FULL == (int)FMT_PREALLOC_FULL, "the same numbers");

const char *byre_version(void)
{
    return BYRE_VERSION;
}

const char *byre_format_name(unsigned n)
{
    const struct fmt_ops *ops = fmt_nth(n);
    return ops ? ops->name : NULL;
}

static int word_of(const char *const *words, int count, const char *word)
{
    for (int i = 0; i < count; i++)
        if (word && strcmp(words[i], word) == 0)
            return i;
    return -EINVAL;
}

int byre_cache_parse(const char *word)
{
    static const char *const words[] = { "writeback", "none", "writethrough", "directsync", "unsafe" };
    return word_of(words, 5, word);
}

int byre_prealloc_parse(const char *word)
{
    static const char *const words[] = { "off", "metadata", "falloc", "full" };
    return word_of(words, 4, word);
}
