/* SPDX-License-Identifier: MIT
 *
 * io_shell.c: lines of the shell.
 *
 * Purpose      Splits a line at blanks, finds the command, parses its options by its table, checks the count of words.
 * Owns         the options struct of the command
 * Invariants   I1 a command that needs an image never runs without one
 * Concurrency  main thread
 * Failure      1: told already
 * Tests        tests/cli/io_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "bin/io/io.h"

const struct io_cmd *const io_commands[] = {
    &io_cmd_abort, &io_cmd_aio_flush, &io_cmd_aio_read, &io_cmd_aio_write, &io_cmd_alloc, &io_cmd_break, &io_cmd_clone, &io_cmd_close, &io_cmd_discard, &io_cmd_flush,
    &io_cmd_help, &io_cmd_info, &io_cmd_length, &io_cmd_map, &io_cmd_open, &io_cmd_quit, &io_cmd_read, &io_cmd_readv, &io_cmd_remove_break, &io_cmd_reopen, &io_cmd_resume,
    &io_cmd_sigraise, &io_cmd_sleep, &io_cmd_truncate, &io_cmd_wait_break, &io_cmd_write, &io_cmd_writev, NULL
};

/* Known to the peer; their machinery (zoned devices) comes later. */
static const char *const later[] = { "zone_report", "zrp", "zone_open", "zo", "zone_close", "zc",
                                     "zone_finish", "zf", "zone_reset", "zrs", "zone_append", "zap", NULL };

static const struct io_cmd *find(const char *name)
{
    for (const struct io_cmd *const *c = io_commands; *c; c++)
        if (strcmp((*c)->name, name) == 0 || ((*c)->alt && strcmp((*c)->alt, name) == 0))
            return *c;
    return NULL;
}

static void print_one_line(const struct io_cmd *c)
{
    printf("%s%s%s -- %s\n", c->name, *c->args ? " " : "", c->args, c->summary);
}

static int print_help(const struct io_cmd *c)
{
    print_one_line(c);
    if (c->more)
        printf("\n%s\n", c->more);
    if (c->rows)
        opt_doc_help(c->rows, &run_stdout);
    return 0;
}

int io_help(struct io_shell *s, const void *opts, int argc, char **argv)
{
    const struct io_cmd *c = argc ? find(argv[0]) : NULL;
    if (c)
        return print_help(c);
    if (argc) {
        printf("command %s not found\n", argv[0]);
        return 1;
    }
    for (const struct io_cmd *const *p = io_commands; *p; p++)
        print_one_line(*p);
    printf("\nUse 'help commandname' for extended help.\n");
    return 0;
}

static int count_is_wrong(const struct io_cmd *c, int argc)
{
    if (argc >= c->args_min && (c->args_max < 0 || argc <= c->args_max))
        return 0;
    fprintf(stderr, "bad argument count %d to %s, expected ", argc, c->name);
    if (c->args_max < 0)
        fprintf(stderr, "at least %d arguments\n", c->args_min);
    else if (c->args_min == c->args_max)
        fprintf(stderr, "%d arguments\n", c->args_min);
    else
        fprintf(stderr, "between %d and %d arguments\n", c->args_min, c->args_max);
    return 1;
}

static int run_command(struct io_shell *s, const struct io_cmd *c, int argc, char **argv)
{
    static const struct opt_row none[] = { OPT_END };
    const struct opt_row *rows = c->rows ? c->rows : none;
    struct opt_result res;
    struct byre_err err;
    AUTOFREE void *opts = calloc(1, c->opts_bytes ? c->opts_bytes : 1);
    if (!opts)
        return run_fail(s->r, "no memory");
    if (!s->image && !(c->flags & IO_NO_FILE)) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return 1;
    }
    int code = opt_parse_args(rows, opts, argc, argv, &res, &err) != 0;
    if (code) {
        fprintf(stderr, "%s: %s\n", c->name, err.text);
        printf("%s%s%s -- %s\n", c->name, *c->args ? " " : "", c->args, c->summary);
    }
    if (!code)
        code = count_is_wrong(c, res.argc);
    if (!code)
        code = c->run(s, opts, res.argc, res.argv);
    opt_fini(rows, opts);
    return code;
}

static bool is_later(const char *name)
{
    for (const char *const *l = later; *l; l++)
        if (strcmp(*l, name) == 0)
            return true;
    return false;
}

int io_run_line(struct io_shell *s, const char *line)
{
    AUTOFREE char *copy = strdup(line);
    AUTOFREE char **words = calloc(strlen(line) / 2 + 1, sizeof *words);      /* a word and a blank are two bytes at least */
    char *save = NULL;
    int n = 0;
    if (!copy || !words)
        return run_fail(s->r, "no memory");
    for (char *w = strtok_r(copy, " \t\r\n", &save); w; w = strtok_r(NULL, " \t\r\n", &save))
        words[n++] = w;
    if (!n)
        return 0;
    const struct io_cmd *c = find(words[0]);
    if (!c && is_later(words[0]))
        return run_fail(s->r, "command '%s' is not supported yet", words[0]);
    if (!c) {
        fprintf(stderr, "command \"%s\" not found\n", words[0]);
        return 1;
    }
    return run_command(s, c, n - 1, words + 1);
}
