/* SPDX-License-Identifier: MIT
 *
 * main.c: the command byre; also qemu-img, qemu-io, qemu-nbd and qemu-storage-daemon when called by those names.
 *
 * Purpose      Finds program and subcommand, parses the options by their table, runs, exits.
 * Owns         the options struct of the subcommand
 * Invariants   I1 every subcommand is one row of bin_commands
 * Concurrency  main thread
 * Failure      wrong usage: a message, a hint, and the subcommand's exit code (1)
 * Tests        tests/cli/main_test.py
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "bin/bin.h"
#include "bin/commands.h"

const struct cmd *const bin_commands[] = {
#define X(name) &cmd_##name,
    BIN_COMMANDS(X)
#undef X
    NULL
};

struct global { struct common common; bool version, strict; char *trace; };

static const struct opt_row global_rows[] = {
    ROW_HELP,
    { "version", 'V', OPT_BOOL, OPT_AT(struct global, version), .help = "show the version and exit" },
    { "strict", 0, OPT_BOOL, OPT_AT(struct global, strict), .help = "guess nothing: formats must be stated, backing files are plain paths" },
    ROW_TRACE,
    OPT_END
};

static bool known_here(const struct run *r, const struct cmd *c)
{
    return !r->peer || !(c->flags & (CMD_NOT_PEER | CMD_OTHER_PROGRAM));
}

static const struct cmd *find_command(const struct run *r, const char *name)
{
    for (const struct cmd *const *c = bin_commands; *c; c++)
        if (strcmp((*c)->name, name) == 0 && known_here(r, *c))
            return *c;
    return NULL;
}

static void print_version(const struct run *r)
{
    printf("%s version %s (byre)\n", r->prog, byre_version());
}

static void print_formats(void)
{
    printf("\nSupported formats:");
    for (unsigned i = 0; byre_format_name(i); i++)
        printf(" %s", byre_format_name(i));
    printf("\n");
}

static void print_overview(const struct run *r)
{
    print_version(r);
    printf("usage: %s [options] command [command options]\n\n", r->prog);
    opt_doc_help(global_rows, &run_stdout);
    printf("\nCommands:\n");
    for (const struct cmd *const *c = bin_commands; *c; c++)
        if (known_here(r, *c))
            printf("  %-12s %s\n", (*c)->name, (*c)->summary);
    printf("\n'%s COMMAND --help' shows the options of one command.\n", r->prog);
    print_formats();
}

/* A word like -1G that stands for a number is taken away from the options and put back behind them. */
static int parse_words(struct run *r, int argc, char **argv, struct byre_err *err)
{
    char *last = NULL;
    if ((r->cmd->flags & CMD_NUMBER_LAST) && argc > 0 && argv[argc - 1][0] == '-' && strchr("0123456789.", argv[argc - 1][1]) && argv[argc - 1][1])
        last = argv[--argc];
    int e = opt_parse_args(r->cmd->rows, r->opts, argc, argv, &r->args, err);
    if (!e && last)
        r->args.argv[r->args.argc++] = last;
    r->argc = r->args.argc;
    r->argv = r->args.argv;
    return e;
}

static int run_parsed(struct run *r, int argc, char **argv)
{
    struct byre_err err;
    int e = opt_defaults(r->cmd->rows, r->opts, &err);
    if (!e)
        e = parse_words(r, argc, argv, &err);
    if (e == -ENOTSUP)
        return run_fail_err(r, &err);
    if (e)
        return run_usage(r, "%s", err.text);
    if (((struct common *)r->opts)->help) {
        run_help(r);
        return 0;
    }
    int code = r->cmd->run(r);
    run_fini(r);
    return code;
}

static int run_command(struct run *r, int argc, char **argv)
{
    r->opts = calloc(1, r->cmd->opts_bytes);
    if (!r->opts)
        return run_fail(r, "no memory");
    int code = run_parsed(r, argc, argv);
    opt_fini(r->cmd->rows, r->opts);
    free(r->opts);
    return run_finish_output(r, code);
}

/* Words up to and with the first that is neither a global option nor the value of one. */
static int global_words(int argc, char **argv)
{
    int i = 0;
    while (i < argc && argv[i][0] == '-' && argv[i][1])
        i += strcmp(argv[i], "-T") == 0 || strcmp(argv[i], "--trace") == 0 ? 2 : 1;
    return i < argc ? i : argc;
}

static int main_commands(struct run *r, int argc, char **argv)
{
    struct global g = { .trace = NULL };
    struct byre_err err;
    int n = global_words(argc, argv);
    int e = opt_parse_args(global_rows, &g, n, argv, &r->args, &err);
    if (e == -ENOTSUP)
        return run_fail_err(r, &err);
    if (e)
        return run_usage(r, "%s", err.text);
    r->strict = g.strict;
    if (g.common.help || g.version) {
        if (g.common.help)
            print_overview(r);
        else
            print_version(r);
        return run_finish_output(r, 0);
    }
    if (n >= argc)
        return run_usage(r, "a command is needed");
    r->cmd = find_command(r, argv[n]);
    if (!r->cmd)
        return run_usage(r, "Command not found: %s", argv[n]);
    return run_command(r, argc - n - 1, argv + n + 1);
}

/* A file that this process opens must not become its standard error: complaints would be written into an image. One that was closed stays of no use: standard
 * output cannot be written, so that results that nobody gets are a failure. */
static void occupy_standard_files(void)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY) < 0)
            _exit(1);
}

int main(int argc, char **argv)
{
    occupy_standard_files();
    struct run r = { .prog = "byre" };
    const char *base = argc > 0 ? strrchr(argv[0], '/') : NULL;
    base = base ? base + 1 : argc > 0 ? argv[0] : "byre";
    signal(SIGPIPE, SIG_IGN);
    static const struct { const char *name; const struct cmd *cmd; } programs[] = {
        { "qemu-io", &cmd_io }, { "qemu-nbd", &cmd_nbd }, { "qemu-storage-daemon", &cmd_daemon } };
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
        if (strcmp(base, programs[i].name))
            continue;
        r.prog = base;
        r.peer = true;
        r.cmd = programs[i].cmd;
        return run_command(&r, argc - 1, argv + 1);
    }
    if (strcmp(base, "qemu-img") == 0) {
        r.prog = base;
        r.peer = true;
    }
    return main_commands(&r, argc > 0 ? argc - 1 : 0, argv + 1);
}
