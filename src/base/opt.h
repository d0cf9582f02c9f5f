/* SPDX-License-Identifier: MIT
 *
 * opt.h: the option table. One row per option; parser, help, man page and completion all come from the row.
 *
 *     struct my { char *fmt; uint64_t size; bool quiet; int output; struct opt_list lists; };
 *     static const struct opt_row rows[] = {
 *         { "format", 'f', OPT_STR, OPT_AT(struct my, fmt), .arg = "FMT", .help = "format of the image" },
 *         { "quiet", 'q', OPT_BOOL, OPT_AT(struct my, quiet), .help = "print errors only" },
 *         OPT_END };
 *     struct my m = { 0 };
 *     r = opt_defaults(rows, &m, err);  r = opt_parse_args(rows, &m, argc, argv, &res, err);  ...  opt_fini(rows, &m);
 *
 * The same rows serve a command line (opt_parse_args) and lists of key=value (opt_parse_list, opt_set). Strings
 * are always copies, owned by the struct and freed by opt_fini.
 *
 * Grammar of a command line: -x, -xVALUE, -x VALUE, several flags in one word (-pq), --name, --name=VALUE,
 * --name VALUE, --nam (when only one name begins so). Options and other words may be mixed; -- ends the options.
 * Grammar of a list: [key[=value]{,key[=value]}], a comma inside a value is written twice. A bare key of a BOOL
 * means on.
 */
#ifndef BASE_OPT_H
#define BASE_OPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define OPT_ROWS_MAX 64

enum opt_type {
    OPT_BOOL,      /* bool. Command line: a flag without value. List: on|off|yes|no|true|false|y|n */
    OPT_STR,       /* char *, owned */
    OPT_SIZE,      /* uint64_t or uint32_t: a size with suffix (base/size.h) */
    OPT_UINT,      /* uint64_t or uint32_t: decimal, or hexadecimal behind 0x */
    OPT_ENUM,      /* int or unsigned: value of one of the names */
    OPT_LIST,      /* struct opt_list: strings, the option may be repeated */
    OPT_ACTION,    /* struct opt_list, shared by several rows: "name" or "name=value" in the order given. Takes a value if `arg` is set */
};

enum {
    OPT_LATER = 1u << 0,     /* known, but its machinery is not there yet: giving it is answered NOT_SUPPORTED (a BOOL may be off) */
    OPT_NEVER = 1u << 2,     /* known, and refused: giving it is answered NOT_SUPPORTED with its help, which says why */
    OPT_HIDDEN = 1u << 1,    /* accepted, but not shown in help, man page and completion (old spellings) */
};

struct opt_enum { const char *name; int value; };      /* ends with name NULL; the first name of a value is the canonical one */
struct opt_list { char **items; size_t count; };

struct opt_row {
    const char *name;               /* long option or key; NULL: only a short one */
    char short_name;                /* 0: none */
    uint8_t type;                   /* enum opt_type */
    uint32_t off, width;            /* where the value goes: OPT_AT */
    uint64_t min, max;              /* SIZE, UINT: bounds, both allowed; max 0 = no bound beyond the field's width */
    const char *def;                /* default as text (parsed by opt_defaults); NULL: field is left alone */
    const struct opt_enum *names;   /* ENUM */
    const char *arg;                /* placeholder of the value in help ("FMT"); NULL: after the type */
    const char *help;               /* one line, no final stop */
    uint32_t flags;                 /* OPT_LATER, OPT_NEVER, OPT_HIDDEN */
};
#define OPT_AT(T, field) .off = offsetof(T, field), .width = sizeof(((T *)0)->field)
#define OPT_END { .name = NULL }

struct opt_result {
    uint64_t seen;                  /* bit i: row i was given */
    int argc;                       /* words that are no options, in order: argv[0] .. argv[argc-1] */
    char **argv;                    /* points into the argv that was given (which is reordered) */
};

/* Number of rows before OPT_END. */
unsigned opt_count(const struct opt_row *rows);
/* Row of that key, NULL if none. */
const struct opt_row *opt_find(const struct opt_row *rows, const char *name);
/* Was the row with this long name given? */
bool opt_seen(const struct opt_row *rows, uint64_t seen, const char *name);

/* Writes every default. -ENOMEM; a default that its own row refuses is asserted. */
MUST_USE int opt_defaults(const struct opt_row *rows, void *base, struct byre_err *err);
/* Frees strings and lists and zeroes those fields; fields must have been zero or set by this module. */
void opt_fini(const struct opt_row *rows, void *base);

/* argv[0] is the first word to look at (not the program). BAD_OPTION, NOT_SUPPORTED, NOMEM. On failure fields
 * parsed so far stay set (call opt_fini). */
MUST_USE int opt_parse_args(const struct opt_row *rows, void *base, int argc, char **argv, struct opt_result *ret, struct byre_err *err);
/* text as in the grammar above; *seen (may be NULL) gets the bits of the rows added. */
MUST_USE int opt_parse_list(const struct opt_row *rows, void *base, const char *text, uint64_t *seen, struct byre_err *err);
/* One key and value (NULL: bare key). */
MUST_USE int opt_set(const struct opt_row *rows, void *base, const char *key, const char *value, uint64_t *seen, struct byre_err *err);

/* Takes the next key[=value] off a list: *ret_key and *ret_value (NULL: bare) are owned by the caller.
 * 1: got one; 0: the list is at its end; -ENOMEM; -EINVAL: empty key. */
MUST_USE int opt_list_next(const char **text, char **ret_key, char **ret_value);
/* Appends a copy. */
MUST_USE int opt_list_add(struct opt_list *l, const char *item);
void opt_list_fini(struct opt_list *l);

/* Value of a row as text ("65536", "on", "zlib"); NULL when it is a string that is not set, or a list. buf: for numbers. */
#define OPT_TEXT_MAX 24
const char *opt_text(const struct opt_row *row, const void *base, char buf[OPT_TEXT_MAX]);

/* ---- documents made from the rows (opt_doc.c) ---- */
struct opt_out { void (*put)(void *arg, const char *text); void *arg; };
/* "  -f, --format=FMT   format of the image", one option a line. */
void opt_doc_help(const struct opt_row *rows, const struct opt_out *out);
/* "  cluster_size=<size>    - ...", one key a line. */
void opt_doc_keys(const struct opt_row *rows, const struct opt_out *out);
/* Items of an mdoc list: ".It Fl f Ar FMT , Fl -format Ns = Ns Ar FMT" and text. */
void opt_doc_man(const struct opt_row *rows, const struct opt_out *out);
/* Plain text as lines of mdoc, escaped and not longer than 78 columns. */
void opt_doc_man_text(const char *text, const struct opt_out *out);
/* One line per spelling for shell completion: "-f FMT", "--output human json", "--quiet" (option, then what its
 * value may be: nothing = takes none, FILE-like placeholders as they are, names of an ENUM). */
void opt_doc_words(const struct opt_row *rows, const struct opt_out *out);

#endif
