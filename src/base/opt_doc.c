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
    case OPT_BOOL: return "";
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
                                         [OPT_UINT] = "<num>", [OPT_ENUM] = "<str>", [OPT_LIST] = "<str>" };
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

/* Text of mdoc: a backslash is an escape, a stop or quote at the start of a line a request, "- " stays plain. */
static void put_man(const struct opt_out *out, const char *text)
{
    char one[2] = { 0, 0 };
    if (*text == '.' || *text == '\'')
        put(out, "\\&");
    for (; *text; text++) {
        one[0] = *text;
        put(out, *text == '\\' ? "\\e" : *text == '-' ? "\\-" : one);
    }
}

static void put_man_arg(const struct opt_row *row, const struct opt_out *out, const char *before)
{
    const char *arg = placeholder(row);
    if (!*arg)
        return;
    put(out, before);
    put_man(out, arg);
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
        put_man(out, row->help);
        struct opt_out to = *out;
        put_notes(row, &to);
        put(out, ".\n");
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
            if (row->type != OPT_BOOL) {
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
