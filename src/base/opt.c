/* SPDX-License-Identifier: MIT
 *
 * opt.c: parsing by option tables.
 *
 * Purpose      Command lines and key=value lists into plain structs, by the rows of a table.
 * Owns         nothing; strings it makes belong to the caller's struct (opt_fini)
 * Invariants   I1 a number that is stored lies within its row's bounds and its field's width
 *              I2 a field is changed only by a value that was accepted as a whole
 * Concurrency  any thread; touches only what the caller owns
 * Failure      BAD_OPTION names option and value; NOT_SUPPORTED for rows marked OPT_LATER; NOMEM
 * Tests        opt_test.c
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/opt.h"
#include "base/size.h"

static bool row_is_end(const struct opt_row *row)
{
    return !row->name && !row->short_name;
}

unsigned opt_count(const struct opt_row *rows)
{
    unsigned n = 0;
    while (!row_is_end(&rows[n]))
        n++;
    ASSERT(n <= OPT_ROWS_MAX);
    return n;
}

const struct opt_row *opt_find(const struct opt_row *rows, const char *name)
{
    for (; !row_is_end(rows); rows++)
        if (rows->name && strcmp(rows->name, name) == 0)
            return rows;
    return NULL;
}

bool opt_seen(const struct opt_row *rows, uint64_t seen, const char *name)
{
    const struct opt_row *row = opt_find(rows, name);
    ASSERT(row);
    return seen >> (row - rows) & 1;
}

static void *field_of(const struct opt_row *row, void *base)
{
    return (char *)base + row->off;
}

/* The name to blame in messages, as it was written. */
struct spelled { const char *dash, *name; int len; };

static int bad_value(struct byre_err *err, struct spelled s, const char *value, const char *want)
{
    return byre_fail(err, BAD_OPTION, "option '%s%.*s': '%s' is not %s", s.dash, s.len, s.name, value, want);
}

static uint64_t row_max(const struct opt_row *row)
{
    uint64_t width_max = row->width >= 8 ? UINT64_MAX : (UINT64_C(1) << (8 * row->width)) - 1;
    return row->max && row->max < width_max ? row->max : width_max;
}

static int parse_uint(const char *s, uint64_t *ret)
{
    if (*s < '0' || *s > '9')
        return -EINVAL;
    bool hex = s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, hex ? 16 : 10);
    if (*end || end == s || (hex && end == s + 1))
        return -EINVAL;
    if (errno == ERANGE)
        return -ERANGE;
    *ret = v;
    return 0;
}

static int set_number(const struct opt_row *row, void *base, struct spelled s, const char *value, struct byre_err *err)
{
    uint64_t v = 0, max = row_max(row);
    int r = row->type == OPT_SIZE ? size_parse(value, &v) : parse_uint(value, &v);
    if (r == -EINVAL)
        return bad_value(err, s, value, row->type == OPT_SIZE ? "a size (a number, and one of the suffixes k, M, G, T, P, E)" : "a number");
    if (r || v < row->min || v > max)
        return byre_fail(err, BAD_OPTION, "option '%s%.*s': %s is out of range (%" PRIu64 " to %" PRIu64 ")",
                         s.dash, s.len, s.name, value, row->min, max);
    ASSERT(row->width == 4 || row->width == 8);
    if (row->width == 4)
        *(uint32_t *)field_of(row, base) = (uint32_t)v;
    else
        *(uint64_t *)field_of(row, base) = v;
    return 0;
}

static int set_bool(const struct opt_row *row, void *base, struct spelled s, const char *value, struct byre_err *err)
{
    static const struct opt_enum words[] = { { "on", 1 }, { "off", 0 }, { "yes", 1 }, { "no", 0 }, { "true", 1 },
                                             { "false", 0 }, { "y", 1 }, { "n", 0 }, { NULL, 0 } };
    for (const struct opt_enum *w = words; w->name; w++)
        if (!value || strcmp(w->name, value) == 0) {
            *(bool *)field_of(row, base) = w->value;
            return 0;
        }
    return bad_value(err, s, value, "'on' or 'off'");
}

static int set_enum(const struct opt_row *row, void *base, struct spelled s, const char *value, struct byre_err *err)
{
    char list[160];
    size_t n = 0;
    list[0] = 0;
    ASSERT(row->width == sizeof(int));
    for (const struct opt_enum *e = row->names; e->name; e++) {
        if (strcmp(e->name, value) == 0) {
            *(int *)field_of(row, base) = e->value;
            return 0;
        }
        int k = snprintf(list + n, sizeof list - n, "%s%s", e == row->names ? "one of " : ", ", e->name);
        n = k > 0 && n + (size_t)k < sizeof list ? n + (size_t)k : n;
    }
    list[n] = 0;
    return bad_value(err, s, value, list);
}

static int set_string(const struct opt_row *row, void *base, const char *value, struct byre_err *err)
{
    char **slot = field_of(row, base);
    char *copy = strdup(value);
    if (!copy)
        return byre_fail(err, NOMEM, "no memory for an option");
    free(*slot);
    *slot = copy;
    return 0;
}

/* Stores one value. value NULL: none was given (only a BOOL takes that). */
/* Does it want a value on the command line? */
static bool wants_value(const struct opt_row *row)
{
    return row->type != OPT_BOOL && !(row->type == OPT_ACTION && !row->arg);
}

static int add_action(const struct opt_row *row, void *base, const char *value, struct byre_err *err)
{
    size_t bytes = strlen(row->name) + (value ? strlen(value) : 0) + 2;
    char *item = malloc(bytes);
    if (item)
        snprintf(item, bytes, "%s%s%s", row->name, value ? "=" : "", value ? value : "");
    int r = !item || opt_list_add(field_of(row, base), item) ? byre_fail(err, NOMEM, "no memory for an option") : 0;
    free(item);
    return r;
}

static int set_value(const struct opt_row *row, void *base, struct spelled s, const char *value, struct byre_err *err)
{
    if (!value && wants_value(row))
        return byre_fail(err, BAD_OPTION, "option '%s%.*s' needs a value", s.dash, s.len, s.name);
    switch ((enum opt_type)row->type) {
    case OPT_BOOL:
        return set_bool(row, base, s, value, err);
    case OPT_SIZE:
    case OPT_UINT:
        return set_number(row, base, s, value, err);
    case OPT_ENUM:
        return set_enum(row, base, s, value, err);
    case OPT_STR:
        return set_string(row, base, value, err);
    case OPT_LIST:
        if (opt_list_add(field_of(row, base), value))
            return byre_fail(err, NOMEM, "no memory for an option");
        return 0;
    case OPT_ACTION:
        return add_action(row, base, value, err);
    }
    UNREACHABLE();
}

/* What the user wrote. Refuses rows whose machinery is not there yet; a BOOL that says off asks for nothing. */
static int user_value(const struct opt_row *row, void *base, struct spelled s, const char *value, struct byre_err *err)
{
    if (row->flags & OPT_LATER) {
        bool on = true;
        struct opt_row probe = { .type = OPT_BOOL, .off = 0, .width = sizeof on };
        if (row->type != OPT_BOOL || !value || set_bool(&probe, &on, s, value, NULL) || on)
            return byre_fail(err, NOT_SUPPORTED, "option '%s%.*s' is not supported yet", s.dash, s.len, s.name);
        return 0;
    }
    if (row->flags & OPT_NEVER)
        return byre_fail(err, NOT_SUPPORTED, "option '%s%.*s' is not supported: %s", s.dash, s.len, s.name, row->help);
    return set_value(row, base, s, value, err);
}

int opt_defaults(const struct opt_row *rows, void *base, struct byre_err *err)
{
    for (const struct opt_row *row = rows; !row_is_end(row); row++) {
        if (!row->def)
            continue;
        int r = set_value(row, base, (struct spelled){ "", row->name ? row->name : "", row->name ? (int)strlen(row->name) : 0 },
                          row->def, err);
        ASSERT(r == 0 || r == -ENOMEM);
        if (r)
            return r;
    }
    return 0;
}

void opt_fini(const struct opt_row *rows, void *base)
{
    for (const struct opt_row *row = rows; !row_is_end(row); row++) {
        if (row->type == OPT_STR && row->width) {
            char **slot = field_of(row, base);
            free(*slot);
            *slot = NULL;
        } else if ((row->type == OPT_LIST || row->type == OPT_ACTION) && row->width) {
            opt_list_fini(field_of(row, base));
        }
    }
}

/* ---- command lines ---- */
struct walk {
    const struct opt_row *rows;
    void *base;
    int argc, at;
    char **argv;
    struct opt_result *ret;
};

static const struct opt_row *find_short(const struct opt_row *rows, char c)
{
    for (; !row_is_end(rows); rows++)
        if (rows->short_name && rows->short_name == c)
            return rows;
    return NULL;
}

/* The row of a long name, whole or so much of it that no other row begins the same. */
static const struct opt_row *find_long(const struct opt_row *rows, const char *name, size_t len, bool *ambiguous)
{
    const struct opt_row *found = NULL;
    *ambiguous = false;
    for (; !row_is_end(rows); rows++) {
        if (!rows->name || strncmp(rows->name, name, len) != 0)
            continue;
        if (rows->name[len] == 0)
            return *ambiguous = false, rows;
        *ambiguous |= found != NULL;
        found = rows;
    }
    return found;
}

static int take_long(struct walk *w, const char *word, struct byre_err *err)
{
    const char *name = word + 2, *eq = strchr(name, '=');
    size_t len = eq ? (size_t)(eq - name) : strlen(name);
    struct spelled s = { "--", name, (int)len };
    bool ambiguous;
    const struct opt_row *row = len ? find_long(w->rows, name, len, &ambiguous) : NULL;
    if (!row)
        return byre_fail(err, BAD_OPTION, "unknown option '--%.*s'", (int)len, name);
    if (ambiguous)
        return byre_fail(err, BAD_OPTION, "option '--%.*s' is ambiguous", (int)len, name);
    const char *value = eq ? eq + 1 : NULL;
    if (!wants_value(row) && value)
        return byre_fail(err, BAD_OPTION, "option '--%s' takes no value", row->name);
    if (wants_value(row) && !value && w->at < w->argc)
        value = w->argv[w->at++];
    w->ret->seen |= UINT64_C(1) << (row - w->rows);
    return user_value(row, w->base, s, value, err);
}

static int take_shorts(struct walk *w, const char *word, struct byre_err *err)
{
    for (const char *c = word + 1; *c; c++) {
        const struct opt_row *row = find_short(w->rows, *c);
        if (!row)
            return byre_fail(err, BAD_OPTION, "unknown option '-%c'", *c);
        struct spelled s = { "-", c, 1 };
        w->ret->seen |= UINT64_C(1) << (row - w->rows);
        const char *value = NULL;
        if (wants_value(row)) {
            if (c[1])
                value = c + 1;
            else if (w->at < w->argc)
                value = w->argv[w->at++];
        }
        int r = user_value(row, w->base, s, value, err);
        if (r || wants_value(row))
            return r;
    }
    return 0;
}

int opt_parse_args(const struct opt_row *rows, void *base, int argc, char **argv, struct opt_result *ret, struct byre_err *err)
{
    struct walk w = { rows, base, argc, 0, argv, ret };
    bool options = true;
    (void)opt_count(rows);
    *ret = (struct opt_result){ .argv = argv };
    while (w.at < argc) {
        char *word = argv[w.at++];
        int r = 0;
        if (!options || word[0] != '-' || !word[1])
            argv[ret->argc++] = word;         /* never ahead of w.at: a word is moved left or stays */
        else if (strcmp(word, "--") == 0)
            options = false;
        else if (word[1] == '-')
            r = take_long(&w, word, err);
        else
            r = take_shorts(&w, word, err);
        if (r)
            return r;
    }
    return 0;
}

/* ---- lists ---- */
/* Copies up to a comma that is not doubled; *text moves behind the item (and its comma). */
static char *take_item(const char **text)
{
    const char *s = *text;
    char *out = malloc(strlen(s) + 1), *o = out;
    if (!out)
        return NULL;
    while (*s) {
        if (*s == ',') {
            if (s[1] != ',')
                break;
            s++;
        }
        *o++ = *s++;
    }
    *o = 0;
    *text = *s == ',' ? s + 1 : s;
    return out;
}

int opt_list_next(const char **text, char **ret_key, char **ret_value)
{
    if (!**text)
        return 0;
    char *key = take_item(text);
    if (!key)
        return -ENOMEM;
    char *eq = strchr(key, '=');
    if (eq)
        *eq = 0;
    if (!*key) {
        free(key);
        return -EINVAL;
    }
    char *value = eq ? strdup(eq + 1) : NULL;
    if (eq && !value) {
        free(key);
        return -ENOMEM;
    }
    *ret_key = key;
    *ret_value = value;
    return 1;
}

int opt_set(const struct opt_row *rows, void *base, const char *key, const char *value, uint64_t *seen, struct byre_err *err)
{
    const struct opt_row *row = opt_find(rows, key);
    if (!row)
        return byre_fail(err, BAD_OPTION, "unknown option '%s'", key);
    if (seen)
        *seen |= UINT64_C(1) << (row - rows);
    return user_value(row, base, (struct spelled){ "", key, (int)strlen(key) }, value, err);
}

int opt_parse_list(const struct opt_row *rows, void *base, const char *text, uint64_t *seen, struct byre_err *err)
{
    int r;
    do {
        AUTOFREE char *key = NULL;
        AUTOFREE char *value = NULL;
        r = opt_list_next(&text, &key, &value);
        if (r == -EINVAL)
            return byre_fail(err, BAD_OPTION, "a list of options holds an empty name");
        if (r < 0)
            return byre_fail(err, NOMEM, "no memory for an option");
        if (r == 0)
            break;
        r = opt_set(rows, base, key, value, seen, err);
    } while (r == 0);
    return r;
}

int opt_list_add(struct opt_list *l, const char *item)
{
    char **more = reallocarray(l->items, l->count + 1, sizeof *more);
    if (!more)
        return -ENOMEM;
    l->items = more;
    more[l->count] = strdup(item);
    if (!more[l->count])
        return -ENOMEM;
    l->count++;
    return 0;
}

void opt_list_fini(struct opt_list *l)
{
    for (size_t i = 0; i < l->count; i++)
        free(l->items[i]);
    free(l->items);
    *l = (struct opt_list){ 0 };
}

const char *opt_text(const struct opt_row *row, const void *base, char buf[OPT_TEXT_MAX])
{
    const void *field = (const char *)base + row->off;
    switch ((enum opt_type)row->type) {
    case OPT_BOOL:
        return *(const bool *)field ? "on" : "off";
    case OPT_STR:
        return *(char *const *)field;
    case OPT_SIZE:
    case OPT_UINT:
        snprintf(buf, OPT_TEXT_MAX, "%" PRIu64, row->width == 4 ? *(const uint32_t *)field : *(const uint64_t *)field);
        return buf;
    case OPT_ENUM:
        for (const struct opt_enum *e = row->names; e->name; e++)
            if (e->value == *(const int *)field)
                return e->name;
        return NULL;
    case OPT_LIST:
    case OPT_ACTION:
        return NULL;
    }
    UNREACHABLE();
}
