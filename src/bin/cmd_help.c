/* SPDX-License-Identifier: MIT
 *
 * cmd_help.c: byre help.
 *
 * Purpose      Help as text, and the parts of the man pages that come from the option tables.
 * Owns         nothing
 * Invariants   I1 nothing about an option is written here: all of it comes from the rows
 * Concurrency  main thread
 * Failure      exit 1: no such command
 * Tests        tests/cli/doc_test.py
 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/io/io.h"
#include "ctl/ctl.h"

struct opts { struct common common; char *man_options, *man_keys; bool list, man_io, man_qmp; };

static const struct opt_row rows[] = {
    ROW_HELP,
    { "list", 0, OPT_BOOL, OPT_AT(struct opts, list), .help = "names of the commands, one a line" },
    { "man-options", 0, OPT_STR, OPT_AT(struct opts, man_options), .arg = "COMMAND", .help = "options of a command as items of an mdoc list" },
    { "man-io", 0, OPT_BOOL, OPT_AT(struct opts, man_io), .help = "commands of 'byre io' as items of an mdoc list" },
    { "man-qmp", 0, OPT_BOOL, OPT_AT(struct opts, man_qmp), .help = "commands and events of the control socket as sections of an mdoc page" },
    { "man-keys", 0, OPT_STR, OPT_AT(struct opts, man_keys), .arg = "FMT", .help = "creation options of a format, one a line" },
    OPT_END
};

static const struct cmd *find(const char *name)
{
    for (const struct cmd *const *c = bin_commands; *c; c++)
        if (strcmp((*c)->name, name) == 0)
            return *c;
    return NULL;
}

static int no_such(struct run *r, const char *name)
{
    return run_fail(r, "Command not found: %s", name);
}

static int list(void)
{
    for (const struct cmd *const *c = bin_commands; *c; c++)
        printf("%-12s %s\n", (*c)->name, (*c)->summary);
    return 0;
}

/* A word of a macro line. */
static void put_word(const char *text)
{
    for (; *text; text++)
        fputs(*text == '-' ? "\\-" : *text == '|' ? "\\(ba" : (char[]){ *text, 0 }, stdout);
}

static void io_item(const struct io_cmd *c)
{
    char text[512];
    printf(".It Ic %s", c->name);
    if (*c->args) {
        printf(" Ar \"");
        put_word(c->args);
        putchar('"');
    }
    printf("\n");
    snprintf(text, sizeof text, "Short name %s.", c->alt ? c->alt : "");
    if (c->alt)
        opt_doc_man_text(text, &run_stdout);
    snprintf(text, sizeof text, "%c%s.", toupper((unsigned char)c->summary[0]), c->summary + 1);
    opt_doc_man_text(text, &run_stdout);
    if (c->more)
        opt_doc_man_text(c->more, &run_stdout);
    if (c->rows) {
        printf(".Bl -tag -width Ds -compact\n");
        opt_doc_man(c->rows, &run_stdout);
        printf(".El\n");
    }
}

static int io_items(void)
{
    for (const struct io_cmd *const *c = io_commands; *c; c++)
        io_item(*c);
    return 0;
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    if (o->list)
        return list();
    if (o->man_io)
        return io_items();
    if (o->man_qmp) {
        ctl_document(&run_stdout);
        return 0;
    }
    if (o->man_keys)
        return byre_create_help(o->man_keys, 1, run_stdout.put, run_stdout.arg) ? run_fail(r, "Unknown file format '%s'", o->man_keys) : 0;
    const char *name = o->man_options ? o->man_options : r->argc ? r->argv[0] : "help";
    const struct cmd *c = find(name);
    if (!c)
        return no_such(r, name);
    if (o->man_options) {
        opt_doc_man(c->rows, &run_stdout);
        return 0;
    }
    if (!r->argc)
        return list();
    struct run shown = *r;
    shown.cmd = c;
    run_help(&shown);
    return 0;
}

const struct cmd cmd_help = { "help", "[COMMAND]", "Show the commands, or the options of one", rows, sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
