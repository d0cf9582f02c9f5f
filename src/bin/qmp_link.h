/* SPDX-License-Identifier: MIT
 *
 * qmp_link.h: a connection to a control socket, from the client's side. What fails has been told on standard error.
 */
#ifndef BIN_QMP_LINK_H
#define BIN_QMP_LINK_H

#include <jansson.h>
#include <stdio.h>

#include "bin/bin.h"

struct qmp_link {
    struct run *r;
    int fd;
    FILE *in;
    char *line;
    size_t cap;
    void (*on_event)(void *arg, json_t *event); void *arg;      /* events that come while an answer is waited for; may be NULL */
};

/* The exit code: 0, or 1. path may begin with "unix:". qmp_link_close in either case. */
int qmp_link_open(struct run *r, const char *path, struct qmp_link *l);
int qmp_link_negotiate(struct qmp_link *l);
void qmp_link_close(struct qmp_link *l);
/* The next message; NULL: end of the connection, or not JSON (told when `needed`). */
json_t *qmp_link_receive(struct qmp_link *l, bool needed);
/* Sends a message and waits for its answer. NULL: told already. */
json_t *qmp_link_exchange(struct qmp_link *l, const json_t *msg);
/* What an answer (taken over) returns. NULL: it is an error, told already. */
json_t *qmp_link_value(struct qmp_link *l, json_t *answer);
/* Members of an answer: "" and 0 where there is none. Borrowed. */
const char *qmp_link_text(const json_t *o, const char *key);
uint64_t qmp_link_number(const json_t *o, const char *key);
/* The job of that id in what query-jobs returned; NULL: none. Borrowed. */
json_t *qmp_link_find_job(json_t *list, const char *id);
/* Sends a command (args are taken over, NULL: none) and gives what it returns. NULL: told already. */
json_t *qmp_link_do(struct qmp_link *l, const char *command, json_t *args);

#endif
