/* SPDX-License-Identifier: MIT
 *
 * opt_doc.c: help, key lists, mdoc and completion words out of an option table.
 *
 * Purpose      Documents that cannot disagree with the parser, because both read the same rows.
 * Owns         nothing
 * Invariants   I1 every row without OPT_HIDDEN appears in each document exactly once
 * Concurrency  any thread
 * Failure      none
 * Tests        opt_test.c, tests/cli/doc_test.py
 */
#include <stdio.h>
#include <string.h>

#include "base/opt.h"

#define HELP_COLUMN 28
#define MAN_COLUMNS 78
#define NOTES_MAX 256

static void put(const struct opt_out *out, const char *text)
{
    out->put(out->arg, text);
}

static void put_blanks(const struct opt_out *out, size_t n)
{
    while (n--)
        put(out, " ");
}

static bool row_is_end(const struct opt_row *row)
{
    return !row->name && !row->short_name;
}

static const char *placeholder(const struct opt_row *row)
{
    if (row->arg)
        return row->arg;
    switch ((enum opt_type)row->type) {
    case OPT_BOOL:
    case OPT_ACTION: return "";
    case OPT_SIZE: return "SIZE";
    case OPT_UINT: return "N";
    case OPT_ENUM: return "WORD";
    case OPT_STR:
    case OPT_LIST: return "TEXT";
    }
    return "TEXT";
}

static void put_names(const struct opt_row *row, const struct opt_out *out, const char *between)
{
    for (const struct opt_enum *e = row->names; e->name; e++) {
        if (e != row->names)
            put(out, between);
        put(out, e->name);
    }
}

/* What follows the help line: choices, default, state. */
static void put_notes(const struct opt_row *row, const struct opt_out *out)
{
    if (row->type == OPT_ENUM) {
        put(out, " (");
        put_names(row, out, ", ");
        put(out, ")");
    }
    if (row->def && *row->def && row->type != OPT_BOOL) {
        put(out, " [");
        put(out, row->def);
        put(out, "]");
    }
    if (row->flags & OPT_LATER)
        put(out, " (not supported yet)");
    if (row->flags & OPT_NEVER)
        put(out, " (refused)");
}

void opt_doc_help(const struct opt_row *rows, const struct opt_out *out)
{
    for (const struct opt_row *row = rows; !row_is_end(row); row++) {
        char left[96];
        char sh[3] = { '-', row->short_name, 0 };
        const char *arg = placeholder(row);
        if (row->flags & OPT_HIDDEN)
            continue;
        if (row->name)
            snprintf(left, sizeof left, "  %s%s --%s%s%s", row->short_name ? sh : "  ", row->short_name ? "," : " ",
                     row->name, *arg ? "=" : "", arg);
        else
            snprintf(left, sizeof left, "  %s%s%s", sh, *arg ? " " : "", arg);
        put(out, left);
        if (strlen(left) >= HELP_COLUMN - 1) {
            put(out, "\n");
            put_blanks(out, HELP_COLUMN);
        } else {
            put_blanks(out, HELP_COLUMN - strlen(left));
        }
        put(out, row->help);
        put_notes(row, out);
        put(out, "\n");
    }
}

void opt_doc_keys(const struct opt_row *rows, const struct opt_out *out)
{
    static const char *const kinds[] = { [OPT_BOOL] = "<bool (on/off)>", [OPT_STR] = "<str>", [OPT_SIZE] = "<size>",
                                         [OPT_UINT] = "<num>", [OPT_ENUM] = "<str>", [OPT_LIST] = "<str>",
                                         [OPT_ACTION] = "" };
    for (const struct opt_row *row = rows; !row_is_end(row); row++) {
        char left[96];
        if ((row->flags & OPT_HIDDEN) || !row->name)
            continue;
        snprintf(left, sizeof left, "  %s=%s", row->name, kinds[row->type]);
        put(out, left);
        put_blanks(out, strlen(left) < 25 ? 25 - strlen(left) : 1);
        put(out, "- ");
        put(out, row->help);
        put_notes(row, out);
        put(out, "\n");
    }
}

/* A word of mdoc: a backslash is an escape, "-" is a minus sign. */
static void put_man(const struct opt_out *out, const char *text)
{
    char one[2] = { 0, 0 };
    for (; *text; text++) {
        one[0] = *text;
        put(out, *text == '\\' ? "\\e" : *text == '-' ? "\\-" : one);
    }
}

void opt_doc_man_text(const char *text, const struct opt_out *out)
{
    size_t column = 0;
    while (*text) {
        char word[MAN_COLUMNS + 1];
        size_t n = strcspn(text, " "), room = 0;
        if (n > MAN_COLUMNS)
            n = MAN_COLUMNS;
        memcpy(word, text, n);
        word[n] = 0;
        for (size_t i = 0; i < n; i++)
            room += word[i] == '\\' || word[i] == '-' ? 2 : 1;
        if (column && column + 1 + room > MAN_COLUMNS) {
            put(out, "\n");
            column = 0;
        }
        if (column)
            put(out, " ");
        else if (*word == '.' || *word == '\'')
            put(out, "\\&");                   /* not a request */
        put_man(out, word);
        column += room + (column ? 1 : 0);
        text += n;
        text += strspn(text, " ");
    }
    put(out, "\n");
}

static void put_man_arg(const struct opt_row *row, const struct opt_out *out, const char *before)
{
    const char *arg = placeholder(row);
    if (!*arg)
        return;
    put(out, before);
    put_man(out, arg);
}

struct gathered { char text[NOTES_MAX]; size_t len; };

static void gather(void *arg, const char *text)
{
    struct gathered *g = arg;
    int n = snprintf(g->text + g->len, sizeof g->text - g->len, "%s", text);
    if (n > 0)
        g->len = g->len + (size_t)n < sizeof g->text ? g->len + (size_t)n : sizeof g->text - 1;
}

void opt_doc_man(const struct opt_row *rows, const struct opt_out *out)
{
    for (const struct opt_row *row = rows; !row_is_end(row); row++) {
        char sh[2] = { row->short_name, 0 };
        if (row->flags & OPT_HIDDEN)
            continue;
        put(out, ".It");
        if (row->short_name) {
            put(out, " Fl ");
            put(out, sh);
            put_man_arg(row, out, " Ar ");
        }
        if (row->name) {
            put(out, row->short_name ? " , Fl Fl " : " Fl Fl ");
            put(out, row->name);
            put_man_arg(row, out, " Ns = Ns Ar ");
        }
        put(out, "\n");
        struct gathered g = { .len = 0 };
        put_notes(row, &(struct opt_out){ gather, &g });
        char text[2 * NOTES_MAX];
        snprintf(text, sizeof text, "%s%s.", row->help, g.text);
        opt_doc_man_text(text, out);
    }
}

void opt_doc_words(const struct opt_row *rows, const struct opt_out *out)
{
    for (const struct opt_row *row = rows; !row_is_end(row); row++) {
        char sh[3] = { '-', row->short_name, 0 };
        if (row->flags & OPT_HIDDEN)
            continue;
        for (int k = 0; k < 2; k++) {
            if (k == 0 ? !row->short_name : !row->name)
                continue;
            put(out, k ? "--" : sh);
            if (k)
                put(out, row->name);
            if (row->type != OPT_BOOL && !(row->type == OPT_ACTION && !row->arg)) {
                put(out, " ");
                if (row->type == OPT_ENUM)
                    put_names(row, out, " ");
                else
                    put(out, placeholder(row));
            }
            put(out, "\n");
        }
    }
}
