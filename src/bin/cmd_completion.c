/* SPDX-License-Identifier: MIT
 *
 * cmd_completion.c: byre completion.
 *
 * Purpose      A completion script for bash, made from the option tables.
 * Owns         nothing
 * Invariants   I1 every option that --help shows is offered, and nothing else
 * Concurrency  main thread
 * Failure      none
 * Tests        tests/cli/doc_test.py
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bin/bin.h"
#include "bin/commands.h"

struct opts { struct common common; };

static const struct opt_row rows[] = { ROW_HELP, OPT_END };

static const char *const prologue[] = {
    "# bash completion for byre; made by 'byre completion'",
    "_byre() {",
    "    local cur prev cmd i opts values",
    "    cur=${COMP_WORDS[COMP_CWORD]}",
    "    prev=${COMP_WORDS[COMP_CWORD-1]}",
    "    [[ $cur == = ]] && cur=",
    "    [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}",
    "    cmd= opts= values=",
    "    for ((i = 1; i < COMP_CWORD; i++)); do",
    "        [[ ${COMP_WORDS[i]} == -* ]] || { cmd=${COMP_WORDS[i]}; break; }",
    "    done",
    NULL
};

static const char *const epilogue[] = {
    "    if [[ -n $values ]]; then",
    "        [[ $values == FILE ]] && COMPREPLY=($(compgen -f -- \"$cur\")) || COMPREPLY=($(compgen -W \"$values\" -- \"$cur\"))",
    "    elif [[ $cur == -* ]]; then",
    "        COMPREPLY=($(compgen -W \"$opts\" -- \"$cur\"))",
    "    else",
    "        COMPREPLY=($(compgen -f -- \"$cur\"))",
    "    fi",
    "}",
    "complete -o filenames -F _byre byre",
    NULL
};

static void put_lines(const char *const *lines)
{
    for (; *lines; lines++)
        printf("%s\n", *lines);
}

static void put_formats(void)
{
    for (unsigned i = 0; byre_format_name(i); i++)
        printf("%s%s", i ? " " : "", byre_format_name(i));
}

/* Words to offer for a value: those of the row, formats, cache modes; anything else is completed as a file name. */
static void put_values(const char *value)
{
    if (strcmp(value, "FMT") == 0) {
        put_formats();
    } else if (strcmp(value, "MODE") == 0) {
        fputs("none writeback writethrough directsync unsafe off metadata falloc full ignore unmap threads native io_uring", stdout);
    } else if (islower((unsigned char)value[0])) {
        for (; *value; value++)
            putchar(*value == '|' ? ' ' : *value);
    } else {
        fputs("FILE", stdout);
    }
}

/* One line of opt_doc_words at a time. */
struct lines { char line[512]; size_t len; bool values; bool any; };

static void on_line(struct lines *l)
{
    char *value = strchr(l->line, ' ');
    if (value)
        *value++ = 0;
    if (!l->values) {
        printf("%s%s", l->any ? " " : "", l->line);
    } else if (value) {
        printf("            %s) values='", l->line);
        put_values(value);
        printf("' ;;\n");
    }
    l->any = true;
}

static void collect(void *arg, const char *text)
{
    struct lines *l = arg;
    for (; *text; text++) {
        if (*text == '\n') {
            l->line[l->len] = 0;
            on_line(l);
            l->len = 0;
        } else if (l->len + 1 < sizeof l->line) {
            l->line[l->len++] = *text;
        }
    }
}

static void put_command(const struct cmd *c)
{
    struct lines names = { .values = false }, values = { .values = true };
    printf("    %s)\n        opts='", c->name);
    opt_doc_words(c->rows, &(struct opt_out){ collect, &names });
    printf("'\n        case $prev in\n");
    opt_doc_words(c->rows, &(struct opt_out){ collect, &values });
    printf("        esac ;;\n");
}

static int cmd_run(struct run *r)
{
    put_lines(prologue);
    printf("    case $cmd in\n    '') values='");
    for (const struct cmd *const *c = bin_commands; *c; c++)
        printf("%s ", (*c)->name);
    printf("--help --version --strict' ;;\n");
    for (const struct cmd *const *c = bin_commands; *c; c++)
        put_command(*c);
    printf("    esac\n");
    put_lines(epilogue);
    return 0;
}

const struct cmd cmd_completion = { "completion", "", "Print a completion script for bash", rows, sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
