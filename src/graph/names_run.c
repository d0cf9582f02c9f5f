/* SPDX-License-Identifier: MIT
 *
 * names_run.c: options of an opening that only qcow2 knows (FEATURES 1.123..1.131).
 *
 * Purpose     Caches, discard policies, lazy refcounts and overlap checks, as a json: name gives them.
 * Owns        Nothing.
 * Invariants  N1  One budget serves all tables: the sum of what was asked for. All three sizes at once contradict one another.
 *             N2  What has no meaning here is still checked for its form.
 * Order       None.
 * Concurrency Pure.
 * Failure     Names the option.
 * Tests       tests/cli/runtime_test.py, tests/interop/test_overlap.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/size.h"
#include "graph/graph_priv.h"

#define L2_ENTRY_MIN 512u

enum { SEEN_TOTAL = 1, SEEN_L2 = 2, SEEN_COUNTS = 4 };

int name_take_size(const char *key, const json_t *v, uint64_t *ret, struct byre_err *err)
{
    int r = -EINVAL;
    if (json_is_string(v))
        r = size_parse(json_string_value(v), ret);
    if (json_is_integer(v) && json_integer_value(v) >= 0) {
        *ret = (uint64_t)json_integer_value(v);
        r = 0;
    }
    return r < 0 ? byre_fail(err, BAD_OPTION, "json: '%s' must be a size", key) : 0;
}

static int take_bool(const char *key, const json_t *v, enum name_tri *ret, struct byre_err *err)
{
    const char *s = json_is_string(v) ? json_string_value(v) : "";
    bool yes = json_is_true(v) || !strcmp(s, "on") || !strcmp(s, "true"), no = json_is_false(v) || !strcmp(s, "off") || !strcmp(s, "false");
    if (!yes && !no)
        return byre_fail(err, BAD_OPTION, "json: '%s' must be on or off", key);
    *ret = yes ? NAME_YES : NAME_NO;
    return 0;
}

static int take_entry(const char *key, const json_t *v, struct name_runtime *run, struct byre_err *err)
{
    uint64_t n;
    int r = name_take_size(key, v, &n, err);
    if (!r && (!is_pow2(n) || n < L2_ENTRY_MIN || n > 2u << 20))
        r = byre_fail(err, BAD_OPTION, "json: '%s': %" PRIu64 " is not a power of two from %u to the cluster size", key, n, L2_ENTRY_MIN);
    if (!r)
        run->l2_entry = (uint32_t)n;
    return r;
}

static int overlap_word(struct name_runtime *run, const char *key, const json_t *v, struct byre_err *err)
{
    static const struct { const char *name; unsigned set; } words[] = {
        { "none", 0 }, { "constant", FMT_OVERLAP_CONSTANT }, { "cached", FMT_OVERLAP_CACHED }, { "all", FMT_OVERLAP_ALL },
    };
    const char *s = json_is_string(v) ? json_string_value(v) : "";
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(s, words[i].name))
            continue;
        if (run->overlap_set && run->overlap_set != (words[i].set | FMT_OVERLAP_GIVEN))
            return byre_fail(err, BAD_OPTION, "json: overlap-check and overlap-check.template ask for different things");
        run->overlap_set = words[i].set | FMT_OVERLAP_GIVEN;
        return 0;
    }
    return byre_fail(err, BAD_OPTION, "json: '%s' must be none, constant, cached or all", key);
}

/* "overlap-check": a word, or an object whose members come as dotted names: a word ("template") and single checks, which go over it. */
static int overlap(struct name_runtime *run, const char *key, const json_t *v, struct byre_err *err)
{
    static const char *const parts[] = { "main-header", "active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table", "inactive-l1",
                                         "inactive-l2", "bitmap-directory" };       /* in the order of FMT_OVERLAP_* */
    const char *leaf = strchr(key, '.');
    if (!leaf || !strcmp(leaf, ".template"))
        return overlap_word(run, key, v, err);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        enum name_tri on;
        if (strcmp(leaf + 1, parts[i]))
            continue;
        int r = take_bool(key, v, &on, err);
        if (r)
            return r;
        *(on == NAME_YES ? &run->overlap_on : &run->overlap_off) |= 1u << i;
        return 0;
    }
    return byre_fail(err, BAD_OPTION, "json: there is no overlap check '%s'", leaf + 1);
}

int name_runtime_option(struct name_runtime *run, const char *key, const json_t *v, struct byre_err *err)
{
    struct { const char *name; enum name_tri *to; } tri[] = {
        { "pass-discard-request", &run->pass_request }, { "pass-discard-snapshot", &run->pass_snapshot }, { "pass-discard-other", &run->pass_other },
        { "discard-no-unref", &run->no_unref }, { "lazy-refcounts", &run->lazy },
    };
    struct { const char *name; uint64_t *to; unsigned seen; } size[] = {
        { "cache-size", &run->total, SEEN_TOTAL }, { "l2-cache-size", &run->l2, SEEN_L2 }, { "refcount-cache-size", &run->counts, SEEN_COUNTS },
        { "cache-clean-interval", &run->interval, 0 },
    };
    int r = 0;
    for (size_t i = 0; i < sizeof tri / sizeof tri[0]; i++)
        if (!strcmp(key, tri[i].name))
            return (r = take_bool(key, v, tri[i].to, err)) ? r : 1;
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++)
        if (!strcmp(key, size[i].name)) {
            run->seen |= size[i].seen;
            run->interval_said |= size[i].to == &run->interval;
            return (r = name_take_size(key, v, size[i].to, err)) ? r : 1;
        }
    if (!strcmp(key, "l2-cache-entry-size"))
        return (r = take_entry(key, v, run, err)) ? r : 1;
    if (!strcmp(key, "overlap-check") || !strncmp(key, "overlap-check.", 14))
        return (r = overlap(run, key, v, err)) ? r : 1;
    return 0;
}

int name_runtime_settle(const struct name_runtime *run, struct byre_err *err)
{
    if (run->seen == (SEEN_TOTAL | SEEN_L2 | SEEN_COUNTS))
        return byre_fail(err, BAD_OPTION, "json: only two of cache-size, l2-cache-size and refcount-cache-size can be given");
    if (run->seen & SEEN_TOTAL && (run->l2 > run->total || run->counts > run->total))
        return byre_fail(err, BAD_OPTION, "json: cache-size is smaller than one of its parts");
    if (run->interval > UINT32_MAX)
        return byre_fail(err, BAD_OPTION, "json: 'cache-clean-interval': %" PRIu64 " seconds are more than %" PRIu32, run->interval, UINT32_MAX);
    return 0;
}

void name_runtime_apply(const struct name_runtime *run, struct fmt_open_opts *fo)
{
    if (run->seen)
        fo->cache_bytes = run->seen & SEEN_TOTAL ? run->total : run->l2 + run->counts;
    if (run->interval_said)
        fo->cache_clean_ms = run->interval * 1000;
    if (run->l2_entry)
        fo->l2_entry_bytes = run->l2_entry;
    if (run->lazy != NAME_UNSET)
        fo->lazy_refcounts = run->lazy == NAME_YES ? 1 : -1;
    if (run->pass_request != NAME_UNSET)
        fo->discard_no_punch = run->pass_request == NAME_NO;
    if (run->pass_snapshot != NAME_UNSET)
        fo->snapshots_no_punch = run->pass_snapshot == NAME_NO;
    if (run->pass_other != NAME_UNSET)
        fo->tables_no_punch = run->pass_other == NAME_NO;
    fo->discard_no_unref = run->no_unref == NAME_YES;
    if (run->overlap_set || run->overlap_on || run->overlap_off)
        fo->overlap_check = (((run->overlap_set ? run->overlap_set : FMT_OVERLAP_CACHED) | run->overlap_on) & ~run->overlap_off) | FMT_OVERLAP_GIVEN;
}
