/* SPDX-License-Identifier: MIT
 *
 * document.c: the reference of commands and events, as sections of an mdoc page.
 *
 * Purpose      COMMANDS, EVENTS and TYPES of byre-qmp(7), made from the rows of schema.h.
 * Owns         nothing
 * Invariants   I1 each command, event and named type appears once
 * Concurrency  any thread
 * Failure      more than TYPES_MAX types: the rest is left out (ctl_test.c notices)
 * Tests        ctl_test.c, tests/cli/doc_test.py
 */
#include <stdio.h>
#include <string.h>

#include "base/opt.h"
#include "ctl/ctl_priv.h"

#define TYPES_MAX 512
#define LINE_MAX_BYTES 1200

struct page { const struct opt_out *out; const struct ctl_shape *types[TYPES_MAX]; size_t count; };

static void put(struct page *p, const char *text)
{
    p->out->put(p->out->arg, text);
}

/* A name on a macro line. */
static void put_name(struct page *p, const char *name)
{
    for (; *name; name++)
        put(p, *name == '-' ? "\\-" : (char[]){ *name, 0 });
}

/* A sentence a line. */
static void put_text(struct page *p, const char *text)
{
    char line[LINE_MAX_BYTES];
    while (*text) {
        const char *end = strstr(text, ". ");
        size_t n = end ? (size_t)(end - text) + 1 : strlen(text);
        snprintf(line, sizeof line, "%.*s", (int)n, text);
        opt_doc_man_text(line, p->out);
        text += n + (end ? 1 : 0);
    }
}

static void remember(struct page *p, const struct ctl_shape *s)
{
    for (size_t i = 0; i < p->count; i++)
        if (p->types[i] == s)
            return;
    if (p->count < TYPES_MAX)
        p->types[p->count++] = s;
}

static const char *type_text(struct page *p, const struct ctl_arg *row)
{
    if (row->of)
        remember(p, row->of);
    switch (row->type) {
    case CTL_STR: return "string";
    case CTL_INT: return "integer";
    case CTL_SIZE: return "size";
    case CTL_BOOL: return "boolean";
    case CTL_NULL: return "null";
    case CTL_ANY: return row->of ? row->of->name : "any value";
    case CTL_ENUM: case CTL_STRUCT: case CTL_ALT: return row->of->name;
    }
    return "";
}

static void put_row(struct page *p, const struct ctl_arg *row)
{
    char line[LINE_MAX_BYTES];
    put(p, ".It Cm ");
    put_name(p, row->name);
    put(p, "\n");
    snprintf(line, sizeof line, "%s%s%s.%s%s", row->list ? "list of " : "", type_text(p, row), row->required ? "" : ", optional", row->doc ? " " : "",
             row->doc ? row->doc : "");
    put_text(p, line);
}

static void put_rows(struct page *p, const struct ctl_arg *rows)
{
    if (!rows || !rows->name)
        return;
    put(p, ".Bl -tag -width Ds -compact\n");
    for (const struct ctl_arg *row = rows; row->name; row++)
        put_row(p, row);
    put(p, ".El\n");
}

static void put_cases(struct page *p, const char *tag, const struct ctl_case *cases)
{
    for (const struct ctl_case *c = cases; tag && c && c->word; c++) {
        if (!c->rows || !c->rows->name)
            continue;
        put(p, "With\n.Cm ");
        put_name(p, tag);
        put(p, "\nbeing\n.Cm ");
        put_name(p, c->word);
        put(p, " :\n");
        put_rows(p, c->rows);
    }
}

static void put_command(struct page *p, const struct ctl_command *c)
{
    char line[LINE_MAX_BYTES];
    put(p, ".It Ic ");
    put_name(p, c->name);
    put(p, "\n");
    put_text(p, c->doc);
    if (c->oob)
        opt_doc_man_text("May be executed out of band.", p->out);
    if (c->ret) {
        snprintf(line, sizeof line, "Answers: %s%s.", c->ret->list ? "list of " : "", type_text(p, c->ret));
        opt_doc_man_text(line, p->out);
    }
    put_rows(p, c->args);
    put_cases(p, c->tag, c->cases);
}

static void put_type(struct page *p, const struct ctl_shape *s)
{
    put(p, ".It ");
    put_name(p, s->name);
    put(p, "\n");
    if (s->words) {
        put(p, "One of\n");
        for (const char *const *w = s->words; *w; w++) {
            put(p, ".Cm ");
            put_name(p, *w);
            put(p, w[1] ? " ,\n" : " .\n");
        }
        return;
    }
    put_rows(p, s->rows);
    put_cases(p, s->tag, s->cases);
}

void ctl_document(const struct opt_out *out)
{
    struct page p = { .out = out };
    put(&p, ".Sh COMMANDS\n.Bl -tag -width Ds\n");
    for (const struct ctl_command *const *c = ctl_commands; *c; c++)
        put_command(&p, *c);
    put(&p, ".El\n.Sh EVENTS\n.Bl -tag -width Ds\n");
    for (const struct ctl_event *e = ctl_events; e->name; e++) {
        put(&p, ".It Ic ");
        put(&p, e->name);
        put(&p, "\n");
        put_text(&p, e->doc);
        put_rows(&p, e->rows);
    }
    put(&p, ".El\n.Sh TYPES\n.Bl -tag -width Ds\n");
    for (size_t i = 0; i < p.count; i++)         /* the list grows meanwhile */
        put_type(&p, p.types[i]);
    put(&p, ".El\n");
}
