/* SPDX-License-Identifier: MIT
 *
 * tree_draw.c: the pictures of byre tree: lines of text, and SVG.
 *
 * Purpose      Draws rows.
 * Owns         nothing
 * Invariants   I1 names may hold any byte: control characters are shown, never sent, and SVG gets no markup from them
 * Concurrency  main thread
 * Failure      what cannot be written shows at the end, in the state of the stream
 * Tests        tests/cli/tree_test.py
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "bin/bin.h"
#include "bin/tree_draw.h"

/* ---- names ---- */

/* Bytes of the character of UTF-8 that s begins with; 0: it is none that XML may hold. */
static unsigned utf8_len(const unsigned char *s)
{
    unsigned n = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;
    for (unsigned i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool bad = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f) ||
               (s[0] == 0xef && s[1] == 0xbf && s[2] >= 0xbe) || s[0] < ' ' || s[0] == 0x7f;
    return bad ? 0 : n;
}

static void put_xml(FILE *f, const char *s)
{
    while (*s) {
        unsigned n = utf8_len((const unsigned char *)s);
        if (!n)
            fprintf(f, "\\x%02x", (unsigned)(unsigned char)*s);
        else if (*s == '<' || *s == '>' || *s == '&' || *s == '"' || *s == '\'')
            fprintf(f, "&#%d;", *s);
        else
            fwrite(s, 1, n, f);
        s += n ? n : 1;
    }
}

/* ---- what is said of an image ---- */

typedef void put_fn(FILE *f, const char *s);

static void put_data_file(FILE *f, put_fn *put, const struct byre_tree_edge *e)
{
    fputs(", data in ", f);
    put(f, e->path ? e->path : e->name ? e->name : "a file that is not recorded");
    if (e->link == BYRE_TREE_MISSING)
        fputs(" (missing)", f);
}

static void put_about(FILE *f, put_fn *put, const struct byre_tree *t, const struct tree_row *row)
{
    struct byre_tree_image im;
    char size[SIZE_TEXT_MAX];
    if (row->image == BYRE_TREE_NOWHERE) {
        fputs(row->note, f);
        return;
    }
    byre_tree_get(t, row->image, &im);
    if (im.format)
        fprintf(f, "%s, %s", im.format, size_format(im.size, size));
    else
        fputs(im.why ? im.why : "unreadable", f);
    if (im.snapshots)
        fprintf(f, ", %u snapshot%s", im.snapshots, im.snapshots == 1 ? "" : "s");
    if (im.data_file.link != BYRE_TREE_NONE)
        put_data_file(f, put, &im.data_file);
    if (row->loop)
        fputs(", its chain contains itself", f);
    if (im.recorded && !im.inside)
        fputs(", from a record", f);
}

static const char *name_of(const struct byre_tree *t, const struct tree_row *row)
{
    struct byre_tree_image im;
    if (row->image == BYRE_TREE_NOWHERE)
        return row->label;
    byre_tree_get(t, row->image, &im);
    return im.path;
}

/* ---- text ---- */

void tree_draw_text(FILE *f, const struct byre_tree *t, const struct tree_rows *rows)
{
    size_t deepest = 0;
    for (size_t i = 0; i < rows->count; i++)
        deepest = rows->at[i].depth > deepest ? rows->at[i].depth : deepest;
    bool *more = calloc(deepest + 1, sizeof *more);      /* does a line go on at this depth? NULL: drawn without lines */
    for (size_t i = 0; i < rows->count; i++) {
        const struct tree_row *row = &rows->at[i];
        for (size_t d = 1; d < row->depth; d++)
            fputs(more && more[d] ? "│   " : "    ", f);
        if (row->depth)
            fputs(row->last ? "└── " : "├── ", f);
        if (more)
            more[row->depth] = !row->last;
        run_put_text(f, name_of(t, row));
        fputs("  (", f);
        put_about(f, run_put_text, t, row);
        fputs(")\n", f);
    }
    free(more);
}

/* ---- SVG ---- */

#define ROW_HIGH 44u
#define STEP_RIGHT 36u
#define BOX_HIGH 36u
#define MARGIN 12u
#define CHAR_WIDE 8u

static size_t y_of(size_t row) { return MARGIN + row * ROW_HIGH; }
static size_t x_of(const struct tree_row *row) { return MARGIN + row->depth * STEP_RIGHT; }

static size_t width_of(const struct byre_tree *t, const struct tree_row *row)
{
    size_t n = strlen(name_of(t, row));
    return (n < 44 ? 44 : n) * CHAR_WIDE + 16;
}

static void draw_box(FILE *f, const struct byre_tree *t, const struct tree_rows *rows, size_t i)
{
    const struct tree_row *row = &rows->at[i];
    size_t x = x_of(row), y = y_of(i);
    if (row->depth) {
        const struct tree_row *below = &rows->at[row->parent];
        size_t px = x_of(below) + STEP_RIGHT / 2, py = y_of(row->parent) + BOX_HIGH;
        fprintf(f, "<path class=\"edge\" d=\"M%zu %zu V%zu H%zu\"/>\n", px, py, y + BOX_HIGH / 2, x);
    }
    fprintf(f, "<g class=\"%s\"><rect x=\"%zu\" y=\"%zu\" width=\"%zu\" height=\"%u\" rx=\"5\"/>", row->image == BYRE_TREE_NOWHERE ? "lost" : "image",
            x, y, width_of(t, row), BOX_HIGH);
    fprintf(f, "<text x=\"%zu\" y=\"%zu\" class=\"name\">", x + 8, y + 15);
    put_xml(f, name_of(t, row));
    fprintf(f, "</text><text x=\"%zu\" y=\"%zu\">", x + 8, y + 29);
    put_about(f, put_xml, t, row);
    fputs("</text></g>\n", f);
}

void tree_draw_svg(FILE *f, const struct byre_tree *t, const struct tree_rows *rows)
{
    size_t wide = 2 * MARGIN;
    for (size_t i = 0; i < rows->count; i++) {
        size_t end = x_of(&rows->at[i]) + width_of(t, &rows->at[i]) + MARGIN;
        wide = end > wide ? end : wide;
    }
    fprintf(f, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%zu\" height=\"%zu\" viewBox=\"0 0 %zu %zu\">\n",
            wide, y_of(rows->count) + MARGIN, wide, y_of(rows->count) + MARGIN);
    fputs("<style>rect{fill:#eef3f8;stroke:#4a6785} .lost rect{fill:#f8eeee;stroke:#a05050;stroke-dasharray:4 3} .edge{fill:none;stroke:#4a6785} "
          "text{font:11px sans-serif;fill:#333} .name{font:bold 12px monospace}</style>\n", f);
    for (size_t i = 0; i < rows->count; i++)
        draw_box(f, t, rows, i);
    fputs("</svg>\n", f);
}
