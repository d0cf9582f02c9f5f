/* SPDX-License-Identifier: MIT
 *
 * args.c: arguments of a command.
 *
 * Purpose      JSON to structs, by the command's rows (schema.h).
 * Owns         the arena of a call; strings point into the message
 * Invariants   I1 a member that no row names is refused, unless the shape is open
 *              I2 no recursion: what is nested waits in a list, so that a deep message needs no stack
 *              I3 memory is bounded by the tokens of the message (QMP_TOKENS_MAX) times the size of a struct
 * Concurrency  pure
 * Failure      BAD_ARGUMENT naming the member with its path; nothing of a failed decoding is seen by the command
 * Tests        ctl_test.c
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/size.h"
#include "ctl/schema.h"

/* ---- memory ---- */
struct ctl_block { struct ctl_block *next; _Alignas(16) char bytes[]; };

void *ctl_arena_get(struct ctl_arena *a, size_t bytes)
{
    struct ctl_block *b = calloc(1, sizeof *b + bytes);
    if (!b)
        return NULL;
    b->next = a->first;
    a->first = b;
    return b->bytes;
}

void ctl_arena_free(struct ctl_arena *a)
{
    while (a->first) {
        struct ctl_block *b = a->first;
        a->first = b->next;
        free(b);
    }
}

/* ---- what waits to be decoded ---- */
/* An object with its struct. The path of a member is that of its parents. */
struct item {
    struct item *next;
    const struct item *parent;
    const char *key;                     /* NULL: the arguments themselves */
    size_t index;                        /* in a list; SIZE_MAX: none */
    const struct ctl_shape *shape;
    json_t *value;
    char *to;
};

struct decoder { struct ctl_arena *arena; bool words; struct item *first, *last; struct byre_err *err; };

#define PATH_MAX_BYTES 200
struct path { char text[PATH_MAX_BYTES]; };

static size_t put_front(struct path *p, size_t at, const char *text)
{
    size_t n = strlen(text);
    n = n < at ? n : at;                     /* a long path loses its beginning */
    memcpy(p->text + at - n, text + strlen(text) - n, n);
    return at - n;
}

static size_t put_key(struct path *p, size_t at, const char *key, size_t index, bool dot)
{
    char number[24];
    if (index != SIZE_MAX) {
        snprintf(number, sizeof number, "[%zu]", index);
        at = put_front(p, at, number);
    }
    at = put_front(p, at, key);
    return dot ? put_front(p, at, ".") : at;
}

/* "actions[1].data.node" */
static const char *path_of(const struct item *in, const char *name, size_t index, struct path *p)
{
    size_t at = sizeof p->text - 1;
    p->text[at] = 0;
    at = put_key(p, at, name, index, in && in->key);
    for (const struct item *i = in; i && i->key; i = i->parent)
        at = put_key(p, at, i->key, i->index, i->parent && i->parent->key);
    return p->text + at;
}

/* ---- one value ---- */
struct where { const struct item *in; const char *name; size_t index; };

static int bad_type(struct decoder *d, const struct where *w, const char *want)
{
    struct path p;
    return byre_fail(d->err, BAD_ARGUMENT, "Invalid parameter type for '%s', expected: %s", path_of(w->in, w->name, w->index, &p), want);
}

static int no_memory(struct decoder *d)
{
    return byre_fail(d->err, NOMEM, "no memory for the arguments of a command");
}

static int word_index(struct decoder *d, const struct where *w, const struct ctl_arg *row, json_t *v, int *ret)
{
    const char *text = json_string_value(v);
    struct path p;
    if (!text)
        return bad_type(d, w, "string");
    for (int i = 0; row->of->words[i]; i++)
        if (strcmp(row->of->words[i], text) == 0 && strlen(text) == json_string_length(v)) {
            *ret = i;
            return 0;
        }
    *ret = -1;
    if (row->of->open && strlen(text) == json_string_length(v))
        return 0;
    return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' does not accept value '%.100s'", path_of(w->in, w->name, w->index, &p), text);
}

static int take_size(struct decoder *d, const struct where *w, const struct ctl_arg *row, json_t *v, uint64_t *ret)
{
    struct path p;
    json_int_t n = json_integer_value(v);
    if (n < 0)
        return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' must not be negative (%" PRId64 ")", path_of(w->in, w->name, w->index, &p), (int64_t)n);
    if (row->max && (uint64_t)n > row->max)
        return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' is at most %" PRIu64 " (%" PRId64 ")", path_of(w->in, w->name, w->index, &p), row->max, (int64_t)n);
    *ret = (uint64_t)n;
    return 0;
}

/* The value that was a word, for whoever reads the arguments as JSON. Members of lists stay words. */
static int retype(struct decoder *d, const struct where *w, json_t *typed)
{
    if (w->index != SIZE_MAX) {
        json_decref(typed);
        return 0;
    }
    return json_object_set_new(w->in->value, w->name, typed) ? no_memory(d) : 0;
}

/* A scalar as the command line writes it. */
static int take_word(struct decoder *d, const struct where *w, const struct ctl_arg *row, const char *text, char *to)
{
    struct path p;
    uint64_t n = 0;
    if (row->type == CTL_BOOL) {
        bool on = strcmp(text, "on") == 0 || strcmp(text, "yes") == 0 || strcmp(text, "true") == 0 || strcmp(text, "y") == 0;
        bool off = strcmp(text, "off") == 0 || strcmp(text, "no") == 0 || strcmp(text, "false") == 0 || strcmp(text, "n") == 0;
        *(bool *)(void *)to = on;
        if (!on && !off)
            return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' expects 'on' or 'off'", path_of(w->in, w->name, w->index, &p));
        return retype(d, w, json_boolean(on));
    }
    bool minus = row->type == CTL_INT && *text == '-';
    if (size_parse(minus ? text + 1 : text, &n) || n > INT64_MAX)
        return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' expects a number", path_of(w->in, w->name, w->index, &p));
    if (row->type == CTL_SIZE && row->max && n > row->max)
        return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' is at most %" PRIu64 " (%s)", path_of(w->in, w->name, w->index, &p), row->max, text);
    if (row->type == CTL_SIZE)
        *(uint64_t *)(void *)to = n;
    else
        *(int64_t *)(void *)to = minus ? -(int64_t)n : (int64_t)n;
    return retype(d, w, json_integer(minus ? -(json_int_t)n : (json_int_t)n));
}

/* An object that is decoded later into `to`. */
static int put_item(struct decoder *d, const struct where *w, const struct ctl_shape *shape, json_t *v, char *to)
{
    struct item *i = ctl_arena_get(d->arena, sizeof *i);
    if (!i)
        return no_memory(d);
    *i = (struct item){ NULL, w->in, w->name, w->index, shape, v, to };
    if (d->last)
        d->last->next = i;
    else
        d->first = i;
    d->last = i;
    return 0;
}

static int nest(struct decoder *d, const struct where *w, const struct ctl_shape *shape, json_t *v, char **ret)
{
    if (!json_is_object(v))
        return bad_type(d, w, "object");
    *ret = ctl_arena_get(d->arena, shape->bytes + 1);
    return *ret ? put_item(d, w, shape, v, *ret) : no_memory(d);
}

static bool is_kind(enum ctl_type type, bool list, json_t *v)
{
    if (list)
        return json_is_array(v);
    switch (type) {
    case CTL_STR: case CTL_ENUM: return json_is_string(v);
    case CTL_INT: case CTL_SIZE: return json_is_integer(v);
    case CTL_BOOL: return json_is_boolean(v);
    case CTL_NULL: return json_is_null(v);
    case CTL_STRUCT: return json_is_object(v);
    case CTL_ANY: case CTL_ALT: return true;
    }
    return false;
}

static const char *kind_name(enum ctl_type type)
{
    switch (type) {
    case CTL_STR: case CTL_ENUM: return "string";
    case CTL_INT: case CTL_SIZE: return "integer";
    case CTL_BOOL: return "boolean";
    case CTL_NULL: return "null";
    default: return "object";
    }
}

static int store_row(struct decoder *d, const struct where *w, const struct ctl_arg *row, json_t *v, char *to);

/* The choice that has the value's kind; its row is stored as that of an object with one member. */
static int choose(struct decoder *d, const struct where *w, const struct ctl_shape *alt, json_t *v, char *to)
{
    for (const struct ctl_arg *row = alt->rows; row->name; row++) {
        if (!is_kind(row->type, row->list, v))
            continue;
        INV(I2, row->type != CTL_ALT);       /* so store_row is entered at most twice */
        _Alignas(16) char nowhere[16];
        return store_row(d, w, row, v, row->off == SIZE_MAX ? nowhere : to + row->off);
    }
    return bad_type(d, w, alt->name);
}

/* One value that is no list, to its place. */
static int store_one(struct decoder *d, const struct where *w, const struct ctl_arg *row, json_t *v, char *to)
{
    char *sub = NULL;
    if (d->words && json_is_string(v) && (row->type == CTL_INT || row->type == CTL_SIZE || row->type == CTL_BOOL))
        return take_word(d, w, row, json_string_value(v), to);
    if (!is_kind(row->type, false, v))
        return bad_type(d, w, kind_name(row->type));
    switch (row->type) {
    case CTL_STR:
        if (strlen(json_string_value(v)) != json_string_length(v))
            return bad_type(d, w, "string without a zero byte");
        *(const char **)(void *)to = json_string_value(v);
        return 0;
    case CTL_INT:
        *(int64_t *)(void *)to = json_integer_value(v);
        return 0;
    case CTL_BOOL: case CTL_NULL:
        *(bool *)(void *)to = !json_is_false(v);
        return 0;
    case CTL_SIZE:
        return take_size(d, w, row, v, (uint64_t *)(void *)to);
    case CTL_ENUM:
        return word_index(d, w, row, v, (int *)(void *)to);
    case CTL_ANY:
        *(json_t **)(void *)to = v;
        return row->of ? nest(d, w, row->of, v, &sub) : 0;
    case CTL_STRUCT:
        return nest(d, w, row->of, v, (char **)(void *)to);
    case CTL_ALT:
        sub = ctl_arena_get(d->arena, row->of->bytes + 1);
        *(char **)(void *)to = sub;
        return sub ? choose(d, w, row->of, v, sub) : no_memory(d);
    }
    return 0;
}

static size_t item_bytes(const struct ctl_arg *row)
{
    switch (row->type) {
    case CTL_STR: return sizeof(const char *);
    case CTL_INT: case CTL_SIZE: return sizeof(int64_t);
    case CTL_BOOL: case CTL_NULL: return sizeof(bool);
    case CTL_ENUM: return sizeof(int);
    case CTL_ANY: return sizeof(json_t *);
    case CTL_STRUCT: case CTL_ALT: return row->of->bytes;
    }
    return 0;
}

static int store_list(struct decoder *d, const struct where *w, const struct ctl_arg *row, json_t *v, char *to)
{
    if (!json_is_array(v))
        return bad_type(d, w, "array");
    size_t each = item_bytes(row), count = json_array_size(v);
    char *items = ctl_arena_get(d->arena, each * count + 1);
    int r = items ? 0 : no_memory(d);
    for (size_t i = 0; !r && i < count; i++) {
        struct where at = { w->in, w->name, i };
        json_t *one = json_array_get(v, i);
        char *place = items + i * each;
        if (row->type == CTL_STRUCT)
            r = json_is_object(one) ? put_item(d, &at, row->of, one, place) : bad_type(d, &at, "object");
        else
            r = row->type == CTL_ALT ? choose(d, &at, row->of, one, place) : store_one(d, &at, row, one, place);
    }
    *(struct ctl_list *)(void *)to = (struct ctl_list){ items, count };
    return r;
}

static int store_row(struct decoder *d, const struct where *w, const struct ctl_arg *row, json_t *v, char *to)
{
    return row->list ? store_list(d, w, row, v, to) : store_one(d, w, row, v, to);
}

/* ---- one object ---- */
static const struct ctl_arg *find_arg(const struct ctl_arg *rows, const char *name)
{
    for (; rows && rows->name; rows++)
        if (strcmp(rows->name, name) == 0)
            return rows;
    return NULL;
}

static int decode_rows(struct decoder *d, const struct item *in, const struct ctl_arg *rows)
{
    struct path p;
    for (const struct ctl_arg *row = rows; row && row->name; row++) {
        struct where w = { in, row->name, SIZE_MAX };
        json_t *v = json_object_get(in->value, row->name);
        if (!v && row->required)
            return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' is missing", path_of(in, row->name, SIZE_MAX, &p));
        if (!v)
            continue;
        _Alignas(16) char nowhere[16];           /* the largest scalar */
        int r = store_row(d, &w, row, v, row->off == SIZE_MAX ? nowhere : in->to + row->off);
        if (r)
            return r;
        if (row->has_off != SIZE_MAX)
            *(bool *)(void *)(in->to + row->has_off) = true;
    }
    return 0;
}

/* The rows that the tag of a union adds. The tag was found to be one of its words. */
static const struct ctl_arg *case_rows(const struct ctl_shape *s, json_t *object)
{
    const char *word = s->tag ? json_string_value(json_object_get(object, s->tag)) : NULL;
    for (const struct ctl_case *c = s->cases; word && c && c->word; c++)
        if (strcmp(c->word, word) == 0)
            return c->rows;
    return NULL;
}

static int decode_object(struct decoder *d, const struct item *in)
{
    const struct ctl_shape *s = in->shape;
    struct path p;
    const char *key;
    json_t *v;
    int r = decode_rows(d, in, s->rows);
    if (r)
        return r;
    const struct ctl_arg *more = case_rows(s, in->value);
    r = decode_rows(d, in, more);
    if (r || s->open)
        return r;
    json_object_foreach(in->value, key, v)
        if (!find_arg(s->rows, key) && !find_arg(more, key))
            return byre_fail(d->err, BAD_ARGUMENT, "Parameter '%s' is unexpected", path_of(in, key, SIZE_MAX, &p));
    return 0;
}

int ctl_decode(const struct ctl_shape *s, json_t *arguments, const struct ctl_decoding *how, const void **ret_args, struct byre_err *err)
{
    struct ctl_arena *a = how->arena;
    struct decoder d = { .arena = a, .words = how->words, .err = err };
    struct where top = { NULL, NULL, SIZE_MAX };
    char *to = ctl_arena_get(a, s->bytes + 1);
    int r = to ? put_item(&d, &top, s, arguments, to) : no_memory(&d);
    for (const struct item *i = d.first; !r && i; i = i->next)
        r = decode_object(&d, i);
    if (!r)
        *ret_args = to;
    return r;
}
