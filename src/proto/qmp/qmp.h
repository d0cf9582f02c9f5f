/* SPDX-License-Identifier: MIT
 *
 * qmp.h: the envelope of the QMP control protocol, without any I/O: cutting a byte stream into JSON texts within
 * limits, taking a command apart, and writing greetings, returns, errors and events.
 */
#ifndef PROTO_QMP_H
#define PROTO_QMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/err.h"

#define QMP_BYTES_MAX (1u << 20)
#define QMP_DEPTH_MAX 64u
#define QMP_TOKENS_MAX 65536u

/* A zero member means its default. depth_max <= 64. */
struct qmp_limits { uint32_t bytes_max, depth_max, tokens_max; };

enum qmp_item {
    QMP_MORE,       /* all input was taken, nothing is complete */
    QMP_TEXT,       /* one whole JSON value: qmp_split_text */
    QMP_BAD,        /* not JSON: what was collected is dropped, and the rest of the line will be skipped */
    QMP_LIMIT,      /* a limit was passed or memory ran out: final, close the connection */
};

struct qmp_split;
MUST_USE int qmp_split_new(const struct qmp_limits *limits, struct qmp_split **ret_s);
void qmp_split_free(struct qmp_split *s);                  /* NULL ok */
/* Takes bytes up to the end of one item; *ret_used says how many. Call again with the rest. */
enum qmp_item qmp_split_feed(struct qmp_split *s, const char *data, size_t len, size_t *ret_used);
/* After QMP_TEXT; valid until the next feed. Terminated by 0, which is not counted. */
const char *qmp_split_text(const struct qmp_split *s, size_t *ret_len);
const char *qmp_split_why(const struct qmp_split *s);      /* after QMP_BAD or QMP_LIMIT: static text */

/* One command. Members point into root, which is owned by the struct. */
struct qmp_command {
    json_t *root;
    const char *name;
    json_t *arguments;      /* object, or NULL when absent */
    json_t *id;             /* any value, or NULL */
    bool oob;               /* exec-oob instead of execute */
};
/* On failure ret_cmd->id still holds the id if the text had one, so that the error can carry it; qmp_command_fini in
 * either case. -EINVAL (BAD_ARGUMENT: the text is not a command). */
MUST_USE int qmp_command_parse(const char *text, size_t len, struct qmp_command *ret_cmd, struct byre_err *err);
void qmp_command_fini(struct qmp_command *cmd);

/* Messages to the peer: malloc'ed, one line ended by CR LF (several lines when pretty), ASCII only. -ENOMEM; -EINVAL when
 * a value cannot be written as JSON. Values are borrowed. */
struct qmp_text { char *text; size_t len; };
struct qmp_version { int major, minor, micro; const char *package; };
MUST_USE int qmp_make_greeting(const struct qmp_version *v, bool oob, bool pretty, struct qmp_text *ret);
MUST_USE int qmp_make_return(json_t *value, json_t *id, bool pretty, struct qmp_text *ret);     /* value NULL: {} */
struct qmp_error { const char *class_name, *desc; };       /* class_name NULL: "GenericError" */
MUST_USE int qmp_make_error(const struct qmp_error *e, json_t *id, bool pretty, struct qmp_text *ret);
struct qmp_event { const char *name; json_t *data; int64_t seconds; int32_t microseconds; };    /* data may be NULL */
MUST_USE int qmp_make_event(const struct qmp_event *e, bool pretty, struct qmp_text *ret);

#endif
