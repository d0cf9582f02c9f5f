/* SPDX-License-Identifier: MIT
 *
 * introspect.c: what the commands and events look like, in the peer's form (SchemaInfo).
 *
 * Purpose      The answer of query-qmp-schema, made from the rows of schema.h.
 * Owns         the list of types that were met, for one answer
 * Invariants   I1 every type that is named is described once; types of ours are named by numbers, as the peer does, because their
 *                 names are no interface
 * Concurrency  pure
 * Failure      NULL: no memory
 * Tests        ctl_test.c, tests/daemon
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"

/* One that was met. Alike when the keys are: rows of a case or of a command, or a shape. */
struct type {
    const void *key;
    const struct ctl_shape *shape;
    const struct ctl_arg *rows;
    const char *tag;
    const struct ctl_case *cases;
    bool choice;                             /* an alternate */
};
struct schema { json_t *out; struct type *types; size_t count, cap; json_t *arrays; bool failed; };
struct type_name { char text[32]; };

static void put(struct schema *s, json_t *entry)
{
    if (json_array_append_new(s->out, entry))
        s->failed = true;
}

static size_t number_of(struct schema *s, const struct type *t)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->types[i].key == t->key)
            return i;
    if (s->count == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 64;
        struct type *more = realloc(s->types, cap * sizeof *more);
        if (!more) {
            s->failed = true;
            return 0;
        }
        s->types = more;
        s->cap = cap;
    }
    s->types[s->count] = *t;
    return s->count++;
}

static const char no_members;                /* the key of the object without members */

static const char *object_name(struct schema *s, const struct type *t, struct type_name *name)
{
    struct type empty = { .key = &no_members };
    snprintf(name->text, sizeof name->text, "%zu", number_of(s, t->rows || t->shape ? t : &empty));
    return name->text;
}

static const char *shape_name(struct schema *s, const struct ctl_arg *row, struct type_name *name)
{
    const struct ctl_shape *of = row->of;
    struct type t = { .key = of, .shape = of, .rows = of->rows, .tag = of->tag, .cases = of->cases, .choice = row->type == CTL_ALT };
    return object_name(s, &t, name);
}

static const char *item_name(struct schema *s, const struct ctl_arg *row, struct type_name *name)
{
    switch (row->type) {
    case CTL_STR: return "str";
    case CTL_INT: case CTL_SIZE: return "int";
    case CTL_BOOL: return "bool";
    case CTL_NULL: return "null";
    case CTL_ANY: return row->of ? shape_name(s, row, name) : "any";
    case CTL_ENUM: case CTL_STRUCT: case CTL_ALT: return shape_name(s, row, name);
    }
    return "any";
}

static const char *row_type(struct schema *s, const struct ctl_arg *row, struct type_name *name)
{
    struct type_name one;
    const char *item = item_name(s, row, &one);
    if (row->list)
        snprintf(name->text, sizeof name->text, "[%.20s]", item);
    else
        snprintf(name->text, sizeof name->text, "%.20s", item);
    if (row->list && !json_object_get(s->arrays, name->text)) {
        s->failed |= json_object_set_new(s->arrays, name->text, json_true()) != 0;
        put(s, json_pack("{s:s,s:s,s:s}", "name", name->text, "element-type", item, "meta-type", "array"));
    }
    return name->text;
}

/* ---- one type ---- */
static json_t *members(struct schema *s, const struct ctl_arg *rows, bool with_names)
{
    json_t *list = json_array();
    for (const struct ctl_arg *row = rows; list && row && row->name; row++) {
        struct type_name name;
        const char *type = row_type(s, row, &name);
        json_t *m = json_pack("{s:s}", "type", type);
        if (m && with_names && json_object_set_new(m, "name", json_string(row->name)))
            s->failed = true;
        if (m && with_names && !row->required && json_object_set_new(m, "default", json_null()))
            s->failed = true;
        if (json_array_append_new(list, m))
            s->failed = true;
    }
    return list;
}

static json_t *words_json(const struct ctl_shape *e, bool as_members)
{
    json_t *list = json_array();
    for (size_t i = 0; list && e->words[i]; i++)
        if (json_array_append_new(list, as_members ? json_pack("{s:s}", "name", e->words[i]) : json_string(e->words[i])))
            break;
    return list;
}

static const struct ctl_arg *tag_row(const struct type *t)
{
    for (const struct ctl_arg *row = t->rows; row && row->name; row++)
        if (strcmp(row->name, t->tag) == 0)
            return row;
    return NULL;
}

static json_t *variants(struct schema *s, const struct type *t)
{
    const struct ctl_arg *tag = tag_row(t);
    json_t *list = json_array();
    for (size_t i = 0; list && tag && tag->of->words[i]; i++) {
        const struct ctl_case *c = t->cases;
        struct type_name name;
        while (c->word && strcmp(c->word, tag->of->words[i]))
            c++;
        struct type of = { .key = c->rows, .rows = c->word ? c->rows : NULL };
        if (json_array_append_new(list, json_pack("{s:s,s:s}", "case", tag->of->words[i], "type", object_name(s, &of, &name))))
            s->failed = true;
    }
    return list;
}

static void put_type(struct schema *s, const struct type *t, const char *name)
{
    if (t->shape && t->shape->words) {
        put(s, json_pack("{s:s,s:s,s:o,s:o}", "name", name, "meta-type", "enum", "members", words_json(t->shape, true), "values", words_json(t->shape, false)));
        return;
    }
    json_t *o = json_pack("{s:s,s:s,s:o}", "name", name, "meta-type", "object", "members", members(s, t->rows, true));
    if (o && t->tag)
        s->failed |= json_object_set_new(o, "tag", json_string(t->tag)) || json_object_set_new(o, "variants", variants(s, t));
    put(s, o);
}

static void put_alternate(struct schema *s, const struct type *t, const char *name)
{
    put(s, json_pack("{s:s,s:s,s:o}", "name", name, "meta-type", "alternate", "members", members(s, t->rows, false)));
}

/* ---- commands and events ---- */
static void put_command(struct schema *s, const struct ctl_command *c)
{
    struct type_name args, ret;
    struct type t = { .key = c->args, .rows = c->args, .tag = c->tag, .cases = c->cases }, none = { .key = &no_members };
    json_t *o = json_pack("{s:s,s:s,s:s,s:s}", "name", c->name, "meta-type", "command", "arg-type", object_name(s, &t, &args),
                          "ret-type", c->ret ? row_type(s, c->ret, &ret) : object_name(s, &none, &ret));
    if (o && c->oob)
        s->failed |= json_object_set_new(o, "allow-oob", json_true()) != 0;
    put(s, o);
}

static void put_builtin(struct schema *s, const char *name, const char *json_type)
{
    put(s, json_pack("{s:s,s:s,s:s}", "name", name, "json-type", json_type, "meta-type", "builtin"));
}

static void put_all(struct schema *s)
{
    static const char *const builtin[][2] = { { "str", "string" }, { "int", "int" }, { "bool", "boolean" }, { "null", "null" }, { "any", "value" } };
    for (const struct ctl_command *const *c = ctl_commands; *c; c++)
        put_command(s, *c);
    for (const struct ctl_event *e = ctl_events; e->name; e++) {
        struct type_name name;
        struct type t = { .key = e->rows, .rows = e->rows };
        put(s, json_pack("{s:s,s:s,s:s}", "name", e->name, "meta-type", "event", "arg-type", object_name(s, &t, &name)));
    }
    for (size_t i = 0; i < sizeof builtin / sizeof builtin[0]; i++)
        put_builtin(s, builtin[i][0], builtin[i][1]);
    for (size_t i = 0; i < s->count && !s->failed; i++) {        /* the list grows meanwhile */
        struct type t = s->types[i];
        char name[24];
        snprintf(name, sizeof name, "%zu", i);
        if (t.choice)
            put_alternate(s, &t, name);
        else
            put_type(s, &t, name);
    }
}

json_t *ctl_schema_json(void)
{
    struct schema s = { .out = json_array(), .arrays = json_object() };
    if (s.out && s.arrays)
        put_all(&s);
    else
        s.failed = true;
    json_decref(s.arrays);
    free(s.types);
    if (!s.failed)
        return s.out;
    json_decref(s.out);
    return NULL;
}
