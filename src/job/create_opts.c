/* SPDX-License-Identifier: MIT
 *
 * create_opts.c: from JSON to struct fmt_create_opts.
 *
 * Purpose      blockdev-create and x-blockdev-amend take the options of the command line in other spellings; bounds, words and defaults are the rows'.
 * Owns         nothing
 * Invariants   I1 a member that no row knows is refused by name, never skipped
 *              I2 at most one level is nested
 * Concurrency  any thread
 * Failure      BAD_OPTION names the option and the value
 * Tests        create_test.c
 */
#include "job/create_opts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const struct opt_row *create_opt_row(const struct opt_row *rows, const char *in, const char *key)
{
    char name[CREATE_OPT_NAME_MAX];
    int n = snprintf(name, sizeof name, "%s%s%s", in ? in : "", in ? "." : "", !in && !strcmp(key, "version") ? "compat" : key);
    if (n < 0 || (size_t)n >= sizeof name)
        return NULL;
    const struct opt_row *row = opt_find(rows, name);
    for (char *c = name; *c && !row; c++)
        *c = *c == '-' ? '_' : *c;
    return row ? row : opt_find(rows, name);
}

static bool is_in(const char *const *list, const char *key)
{
    for (; list && *list; list++)
        if (!strcmp(*list, key))
            return true;
    return false;
}

static int take(const struct opt_row *rows, const struct opt_row *row, const json_t *v, struct fmt_create_opts *fo, uint64_t *seen, struct byre_err *err)
{
    char number[24];
    const char *text = json_is_string(v) ? json_string_value(v) : json_is_true(v) ? "on" : json_is_false(v) ? "off" : NULL;
    if (json_is_integer(v)) {
        snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        text = number;
    }
    if (!text || (json_is_string(v) && strlen(text) != json_string_length(v)))
        return byre_fail(err, BAD_OPTION, "option '%s': the value is no number, no word and neither true nor false", row->name);
    return opt_set(rows, fo, row->name, text, seen, err);
}

static int take_member(const struct opt_row *rows, const char *in, const char *key, const json_t *v, struct fmt_create_opts *fo, uint64_t *seen, struct byre_err *err)
{
    const struct opt_row *row = create_opt_row(rows, in, key);
    return row ? take(rows, row, v, fo, seen, err) : byre_fail(err, BAD_OPTION, "unknown option '%s%s%s'", in ? in : "", in ? "." : "", key);
}

int create_opts_take(const json_t *options, const char *const *skip, const struct opt_row *rows, struct fmt_create_opts *fo, uint64_t *seen, struct byre_err *err)
{
    const char *key, *inner;
    json_t *v, *w;
    int r = 0;
    json_object_foreach((json_t *)(uintptr_t)options, key, v) {
        if (is_in(skip, key))
            continue;
        if (!json_is_object(v))
            r = take_member(rows, NULL, key, v, fo, seen, err);
        else
            json_object_foreach(v, inner, w)
                if (!r && !(is_in(skip, "format") && !strcmp(inner, "format")))
                    r = take_member(rows, key, inner, w, fo, seen, err);
        if (r)
            return r;
    }
    return 0;
}
