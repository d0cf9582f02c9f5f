/* SPDX-License-Identifier: MIT
 *
 * bin.h: the command byre. One file per subcommand; this header is what they share.
 *
 *   main.c          which program and subcommand; options; help
 *   run.c           messages, contexts, opening images
 *   progress.c      -p, --progress, SIGUSR1, cancelling by signal
 *   cmd_NAME.c      one subcommand: its option rows and its function
 *   server.c        what serve, daemon and nbd share: signals, control, the order of the end (server.h)
 *   daemonize.c     going into the background; the pidfile
 *   online.c        a job on a disk that a server has in use, from the client's side; qmp_link.c: the connection
 *   guard.c         images must not change under others; tree_layout.c, tree_draw.c: byre tree
 *   overlay.c       -s: a temporary overlay; target.c: what convert and dd write to
 *   nbd_exports.c   byre nbd --list
 *   io/             byre io: the command language of qemu-io
 *
 * A subcommand is a row (struct cmd): name, option rows, function. The function gets its options already parsed
 * and returns the exit code.
 */
#ifndef BIN_BIN_H
#define BIN_BIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/opt.h"
#include "byre/byre.h"

struct run;

/* struct cmd.flags */
enum {
    CMD_NUMBER_LAST = 1u << 0,      /* the last word is never an option, so that it may be -1G (resize) */
    CMD_NOT_PEER = 1u << 1,         /* the peer has no such subcommand: unknown when called as qemu-img */
    CMD_OTHER_PROGRAM = 1u << 2,    /* the peer has it as a program of its own (io) */
};

struct cmd {
    const char *name;
    const char *synopsis;           /* what follows the options: "FILE [SIZE]" */
    const char *summary;            /* one line, no final stop */
    const struct opt_row *rows;
    size_t opts_bytes;              /* struct of the options; begins with struct common */
    int (*run)(struct run *r);
    int usage_exit;                 /* exit code of wrong usage; 0 = 1 */
    unsigned flags;
};

/* Every options struct begins with this. */
struct common { bool help; struct opt_list objects; };
#define ROW_HELP { "help", 'h', OPT_BOOL, OPT_AT(struct common, help), .help = "show this help and exit" }
#define ROW_TRACE { "trace", 'T', OPT_STR, .flags = OPT_NEVER, .arg = "PATTERN", .help = "no trace points are built in; statistics and events (byre-qmp) tell what happens" }
#define ROW_OBJECT { "object", 0, OPT_LIST, OPT_AT(struct common, objects), .arg = "DEFINITION", .help = "an object that options refer to: secret,id=ID,data=TEXT, secret,id=ID,file=PATH, throttle-group,id=ID,limits.iops-total=N, tls-creds-x509,id=ID,dir=PATH,...; may be repeated" }
#define ROW_IMAGE_OPTS(T) { "image-opts", 0, OPT_BOOL, OPT_AT(T, image_opts), .help = "FILE is a list of node options (driver=qcow2,file.filename=x)" }
#define ROW_FORMAT(T) { "format", 'f', OPT_STR, OPT_AT(T, format), .arg = "FMT", .help = "format of the image; probed when not given" }
#define ROW_QUIET(T) { "quiet", 'q', OPT_BOOL, OPT_AT(T, quiet), .help = "print errors only" }
#define ROW_FORCE_SHARE(T) { "force-share", 'U', OPT_BOOL, OPT_AT(T, force_share), .help = "open read-only even though another program writes to the image" }
#define ROW_SNAPSHOT(T, text) { "snapshot", 'l', OPT_STR, OPT_AT(T, snapshot), .arg = "SNAPSHOT", .help = text ": its id or name, or snapshot.id=ID,snapshot.name=NAME" }
#define ROW_CACHE(T, field, text) { "cache", 't', OPT_STR, OPT_AT(T, field), .arg = "MODE", .help = text " (none, writeback, writethrough, directsync, unsafe)" }
#define ROW_SRC_CACHE(T, field) { "src-cache", 'T', OPT_STR, OPT_AT(T, field), .arg = "MODE", .help = "cache mode of what is read (none, writeback, writethrough, directsync, unsafe)" }
/* Not opt_enum of OPT_ENUM: the peer's message and exit code for a wrong word are part of its interface. */
#define ROW_OUTPUT(T) { "output", 0, OPT_STR, OPT_AT(T, output), .arg = "human|json", .help = "form of the output [human]" }

/* A run of the program. */
struct run {
    const char *prog;               /* how to call ourselves in messages: "byre", "qemu-img", "qemu-io" */
    bool peer;                      /* called by the peer's name */
    bool strict;                    /* --strict */
    const struct cmd *cmd;
    void *opts;
    struct opt_result args;
    int argc;                       /* words that are no options */
    char **argv;
    bool more_loops;                /* run_ctx: threads may be started later, too */
    struct byre_ctx *ctx;           /* run_ctx */
};

extern const struct cmd *const bin_commands[];      /* ends with NULL */

/* ---- run.c ---- */
/* Prints "prog: text" to standard error; returns 1. */
int run_fail(struct run *r, const char *fmt, ...) PRINTF_LIKE(2, 3);
int run_fail_err(struct run *r, const struct byre_err *err);
/* err->text, and for people what it leaves out: the system's word for an I/O error, that a lock is in the way. */
struct run_text { char text[BYRE_ERR_TEXT_MAX + 128]; };
const char *run_text(const struct byre_err *err, struct run_text *t);
#define RUN_TEXT(err) run_text((err), &(struct run_text){ "" })
/* The same with a hint at --help; returns the command's exit code of wrong usage. */
int run_usage(struct run *r, const char *fmt, ...) PRINTF_LIKE(2, 3);
void run_warn(struct run *r, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Makes r->ctx. threads 0: the calling thread runs the loop. false: told already. */
bool run_ctx(struct run *r, unsigned threads, int backend);
void run_fini(struct run *r);

/* A text of somebody else, with control characters as \xNN. */
void run_put_text(FILE *f, const char *s);
/* Flushes standard output; a write error there makes any exit code at least 1. */
int run_finish_output(struct run *r, int code);

/* enum byre_cache of a word (NULL: fallback); -1: told "Invalid WHAT option". */
int run_cache(struct run *r, const char *word, int fallback, const char *what);
/* enum byre_backend of --aio (NULL: the best there is) with that enum byre_cache; -1: told. direct: how this command is told of direct I/O. */
int run_backend(struct run *r, const char *aio, int cache, const char *direct);
/* BYRE_OPEN_DISCARD or 0, of --discard; -1: told. */
int run_discard_mode(struct run *r, const char *word);
/* 0 human, 1 json, -1: told already. */
int run_output(struct run *r, const char *word);
/* A size given as a word; false: told already. what: "image size". */
bool run_size(struct run *r, const char *word, const char *what, uint64_t *ret);

struct open_args {
    const char *name, *format;
    const char *key_secret;         /* id of the secret of an encrypted image; NULL: what the name says */
    const char *recorded_by;        /* the image whose word the name is; NULL: the user's */
    unsigned flags;                 /* BYRE_OPEN_* */
    int cache;                      /* enum byre_cache */
    bool image_opts, quiet;
    const char *snapshot;           /* show this internal snapshot: "ID_OR_NAME" or "snapshot.id=ID,snapshot.name=NAME"; NULL: the disk */
    bool warn_raw;                  /* warn when the format of a writable image was guessed as raw */
};
/* Opens; NULL: told already. */
struct byre_image *run_open(struct run *r, const struct open_args *a);
/* overlay.c: makes a temporary overlay of the image; its name is owned by the caller. NULL: told already. */
char *overlay_make(struct run *r, const struct open_args *base);
/* Tells when the image can be written to and its format was guessed as raw. */
void run_warn_guessed_raw(const struct byre_image *image);
/* Closes; a failure is told and makes *code at least 1. */
void run_close(struct run *r, struct byre_image *image, int *code);

/* ---- guard.c ---- */
/* Which file keeps the record of overlays (BYRE_REGISTRY of the environment); NULL: each image has its own. */
const char *run_registry(void);
/* Is one kept at all? */
bool run_records(const struct run *r);
/* Before an image changes under others: 0, or 1: told that one depends on it. what, base: as byre_guard_check. */
struct run_guard { int what; const char *base; bool force; };
int run_guard(struct run *r, struct byre_image *image, const struct run_guard *g);
#define ROW_FORCE(T) { "force", 0, OPT_BOOL, OPT_AT(T, force), .help = "do it even though another image is known to depend on what changes" }

/* stdout through the document functions of opt.h. */
extern const struct opt_out run_stdout;
void run_help(const struct run *r);

#endif
