/* SPDX-License-Identifier: MIT
 *
 * words.c: options of the command line as JSON.
 *
 * Purpose      One grammar for what commands take as arguments: '{"addr": {"type": "unix"}}' or 'addr.type=unix,...'.
 * Owns         nothing
 * Invariants   I1 levels are walked, never recursed into; there are at most DEPTH_MAX
 *              I2 a key given twice is refused, as is one that is both a value and a level
 * Concurrency  any thread
 * Failure      BAD_OPTION naming the key
 * Tests        ctl_test.c, tests/daemon
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/opt.h"
#include "ctl/ctl_priv.h"

#define DEPTH_MAX 16u
#define INDEX_DIGITS_MAX 6u

static int twice(const char *key, struct byre_err *err)
{
    return byre_fail(err, BAD_OPTION, "'%s' is given twice, or as a value and as a level", key);
}

static bool is_index(const char *part, size_t len, size_t *ret)
{
    *ret = 0;
    for (size_t i = 0; i < len; i++) {
        if (part[i] < '0' || part[i] > '9' || len > INDEX_DIGITS_MAX)
            return false;
        *ret = *ret * 10 + (size_t)(part[i] - '0');
    }
    return len > 0;
}

/* The member of `in` for one part of a key; made with `fresh` (taken over) when it is not there. NULL: it cannot be. */
static json_t *member(json_t *in, const char *part, size_t len, json_t *fresh, bool *ret_made)
{
    char name[128];
    size_t index;
    json_t *have = NULL;
    *ret_made = false;
    bool good = len > 0 && len < sizeof name && fresh;
    snprintf(name, sizeof name, "%.*s", (int)len, part);
    if (good && json_is_array(in))
        good = is_index(part, len, &index) && index <= json_array_size(in);      /* in order */
    if (good)
        have = json_is_array(in) ? json_array_get(in, index) : json_object_get(in, name);
    if (!good || have) {
        json_decref(fresh);
        return good ? have : NULL;
    }
    int r = json_is_array(in) ? json_array_append_new(in, fresh) : json_object_set_new(in, name, fresh);
    *ret_made = true;
    return r ? NULL : fresh;
}

/* "addr.type" = "unix"; what stands behind a dot decides whether a level is a list. */
static int put(json_t *root, const char *key, const char *value, struct byre_err *err)
{
    json_t *in = root;
    const char *part = key;
    bool made;
    for (unsigned depth = 0; depth < DEPTH_MAX; depth++) {
        size_t len = strcspn(part, "."), index;
        const char *next = part[len] ? part + len + 1 : NULL;
        bool list = next && is_index(next, strcspn(next, "."), &index);
        json_t *fresh = !next ? json_string(value) : list ? json_array() : json_object();
        json_t *at = member(in, part, len, fresh, &made);
        if (!at)
            return byre_fail(err, BAD_OPTION, "'%s' is no name of an option with this value", key);
        if (!next)
            return made ? 0 : twice(key, err);
        if (list ? !json_is_array(at) : !json_is_object(at))
            return twice(key, err);
        in = at;
        part = next;
    }
    return byre_fail(err, BAD_OPTION, "'%s' has more than %u levels", key, DEPTH_MAX);
}

/* A word alone. */
static int put_flag(json_t *root, const char *word, struct byre_err *err)
{
    bool off = strncmp(word, "no", 2) == 0 && word[2];
    return put(root, off ? word + 2 : word, off ? "off" : "on", err);
}

static int put_all(json_t *root, const char *text, const struct ctl_words *how, struct byre_err *err)
{
    for (bool first = true;; first = false) {
        AUTOFREE char *key = NULL;
        AUTOFREE char *value = NULL;
        int r = opt_list_next(&text, &key, &value);
        if (r == -EINVAL)
            return byre_fail(err, BAD_OPTION, "an option has no name");
        if (r < 0)
            return byre_fail(err, NOMEM, "no memory for options");
        if (r == 0)
            return 0;
        if (value)
            r = put(root, key, value, err);
        else if (first && how->implied)
            r = put(root, how->implied, key, err);
        else
            r = how->flags ? put_flag(root, key, err) : byre_fail(err, BAD_OPTION, "Expected '=' after parameter '%s'", key);
        if (r)
            return r;
    }
}

int ctl_parse_words(const char *text, const struct ctl_words *how, json_t **ret_object, bool *ret_words, struct byre_err *err)
{
    json_error_t where;
    *ret_words = text[0] != '{';
    json_t *root = *ret_words ? json_object() : json_loads(text, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return *ret_words ? byre_fail(err, NOMEM, "no memory for options") : byre_fail(err, BAD_OPTION, "JSON parse error: %s (column %d)", where.text, where.column);
    int r = *ret_words ? put_all(root, text, how, err) : 0;
    if (r) {
        json_decref(root);
        return r;
    }
    *ret_object = root;
    return 0;
}
