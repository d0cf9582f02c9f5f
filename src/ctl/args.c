/* SPDX-License-Identifier: MIT
 *
 * args.c: arguments of a command.
 *
 * Purpose      JSON object to struct, by the command's table.
 * Owns         nothing; strings point into the message
 * Invariants   I1 an argument that no row names is refused
 * Concurrency  pure
 * Failure      BAD_ARGUMENT naming the argument
 * Tests        ctl_test.c
 */
#include <string.h>

#include "ctl/ctl_priv.h"

static int bad_type(const char *name, const char *want, struct byre_err *err)
{
    return byre_fail(err, BAD_ARGUMENT, "Invalid parameter type for '%s', expected: %s", name, want);
}

static int decode_one(const struct ctl_arg *row, json_t *v, char *to, struct byre_err *err)
{
    switch (row->type) {
    case CTL_STR:
        if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
            return bad_type(row->name, "string", err);
        *(const char **)(void *)(to + row->off) = json_string_value(v);
        break;
    case CTL_INT:
        if (!json_is_integer(v))
            return bad_type(row->name, "integer", err);
        *(int64_t *)(void *)(to + row->off) = json_integer_value(v);
        break;
    case CTL_BOOL:
        if (!json_is_boolean(v))
            return bad_type(row->name, "boolean", err);
        *(bool *)(void *)(to + row->off) = json_is_true(v);
        break;
    case CTL_ANY:
        *(json_t **)(void *)(to + row->off) = v;
        break;
    }
    if (row->has_off != SIZE_MAX)
        *(bool *)(void *)(to + row->has_off) = true;
    return 0;
}

static const struct ctl_arg *find_arg(const struct ctl_arg *rows, const char *name)
{
    for (; rows && rows->name; rows++)
        if (strcmp(rows->name, name) == 0)
            return rows;
    return NULL;
}

int ctl_decode_args(const struct ctl_arg *rows, json_t *arguments, void *to, struct byre_err *err)
{
    const char *key;
    json_t *v;
    json_object_foreach(arguments, key, v) {
        const struct ctl_arg *row = find_arg(rows, key);
        if (!row)
            return byre_fail(err, BAD_ARGUMENT, "Parameter '%s' is unexpected", key);
        int r = decode_one(row, v, to, err);
        if (r)
            return r;
    }
    for (const struct ctl_arg *row = rows; row && row->name; row++)
        if (row->required && !json_object_get(arguments, row->name))
            return byre_fail(err, BAD_ARGUMENT, "Parameter '%s' is missing", row->name);
    return 0;
}
