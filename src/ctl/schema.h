/* SPDX-License-Identifier: MIT
 *
 * schema.h: what a command takes and gives, as constant rows. From the same rows come the decoder (args.c), the answer to
 * query-qmp-schema (introspect.c) and the page byre-qmp(7) (document.c).
 *
 * An argument is one row:
 *
 *     struct export_args { const char *id; uint64_t port; int mode; const struct addr *addr; struct ctl_list names; };
 *     { "id", CTL_STR, true, CTL_AT(struct export_args, id) },                              required
 *     { "port", CTL_SIZE, false, CTL_AT(struct export_args, port), .max = 65535 },          0 when it is not given
 *     { "mode", CTL_ENUM, false, CTL_AT(struct export_args, mode), .of = &mode_shape },     index in the words; 0 when not given
 *     { "addr", CTL_STRUCT, false, CTL_AT(struct export_args, addr), .of = &addr_shape },   NULL when it is not given
 *     { "names", CTL_STR, false, CTL_AT(struct export_args, names), .list = true },         items: const char *
 *     CTL_ARGS_END
 *
 * CTL_AT_HAS instead of CTL_AT fills a bool `has_FIELD` too; CTL_AT_NONE checks and stores nothing (for commands that read
 * call->arguments themselves). A union is a shape (or a command) with `tag`, the name of a required ENUM row, and `cases`:
 * the rows that come in addition for each word, with offsets in the same struct, where they may lie in a C union.
 * Strings and JSON values are borrowed from the message; everything else lies in the arena of the call. All of it is gone
 * when the command has returned: a job copies what it keeps.
 */
#ifndef CTL_SCHEMA_H
#define CTL_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/err.h"

enum ctl_type {
    CTL_STR,         /* const char * without a zero byte inside */
    CTL_INT,         /* int64_t */
    CTL_BOOL,        /* bool */
    CTL_ANY,         /* json_t *; with `of`: an object that must fit that shape, and stays JSON */
    CTL_SIZE,        /* uint64_t: an integer from 0 to `max` (0: no bound) */
    CTL_ENUM,        /* int: index in of->words */
    CTL_STRUCT,      /* const T *: of->rows describe T. In a list: T itself */
    CTL_ALT,         /* const T *: of->rows are the choices, told apart by their kind of JSON; exactly one of them is stored */
    CTL_NULL,        /* bool, true: a JSON null. A choice of CTL_ALT */
};

struct ctl_shape;
struct ctl_arg {
    const char *name;
    enum ctl_type type;
    bool required;
    size_t off, has_off;                 /* SIZE_MAX: nowhere */
    const struct ctl_shape *of;
    bool list;                           /* struct ctl_list of such items */
    uint64_t max;
    const char *doc;                     /* one sentence for the reference page; NULL: the name says it */
};
#define CTL_AT(T, field) .off = offsetof(T, field), .has_off = SIZE_MAX
#define CTL_AT_HAS(T, field) .off = offsetof(T, field), .has_off = offsetof(T, has_##field)
#define CTL_AT_NONE .off = SIZE_MAX, .has_off = SIZE_MAX
#define CTL_ARGS_END { .name = NULL }

struct ctl_list { const void *items; size_t count; };

struct ctl_case { const char *word; const struct ctl_arg *rows; };      /* ends with word NULL; a word without a case adds no rows */
struct ctl_shape {
    const char *name;                    /* for people: "BlockExportMode" */
    const char *const *words;            /* ENUM: ends with NULL */
    const struct ctl_arg *rows;          /* STRUCT, ALT */
    size_t bytes;                        /* sizeof T */
    const char *tag;
    const struct ctl_case *cases;
    bool open;                           /* members that no row names (ENUM: words that are not listed) are let through: somebody else checks them */
};

/* Memory of one call. */
struct ctl_arena { struct ctl_block *first; };
void *ctl_arena_get(struct ctl_arena *a, size_t bytes);      /* zeroed; NULL: no memory */
void ctl_arena_free(struct ctl_arena *a);

/* Decodes `arguments` (NULL: none) by the shape. BAD_ARGUMENT names the member with its path ('actions[1].data.node'). */
struct ctl_decoding { struct ctl_arena *arena; bool words; };      /* words: scalars may be strings, as a command line has them
                                                                      * ("on", "64k"); in the arguments they become what they mean */
MUST_USE int ctl_decode(const struct ctl_shape *s, json_t *arguments, const struct ctl_decoding *how, const void **ret_args, struct byre_err *err);

/* An event that is sent. */
struct ctl_event { const char *name; const struct ctl_arg *rows; const char *doc; };
extern const struct ctl_event ctl_events[];                  /* alphabetical; ends with name NULL */

/* introspect.c: what query-qmp-schema answers. NULL: no memory. */
json_t *ctl_schema_json(void);

#endif
