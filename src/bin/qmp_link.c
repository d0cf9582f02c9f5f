/* SPDX-License-Identifier: MIT
 *
 * qmp_link.c: a connection to a control socket, from the client's side.
 *
 * Purpose      Connects, negotiates, sends commands and gives their answers.
 * Owns         the connection
 * Invariants   I1 a function that fails has told so
 * Concurrency  main thread, blocking socket
 * Failure      message on standard error
 * Tests        tests/cli/serve_test.py, tests/cli/job_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bin/qmp_link.h"

int qmp_link_open(struct run *r, const char *path, struct qmp_link *l)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    *l = (struct qmp_link){ .r = r, .fd = -1 };
    if (strncmp(path, "unix:", 5) == 0)
        path += 5;
    if (strlen(path) >= sizeof sa.sun_path)
        return run_fail(r, "'%s': the path of a socket has at most %zu bytes", path, sizeof sa.sun_path - 1);
    memcpy(sa.sun_path, path, strlen(path));
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || connect(l->fd, (const struct sockaddr *)&sa, sizeof sa))
        return run_fail(r, "%s: cannot connect: %s", path, strerror(errno));
    int copy = dup(l->fd);
    l->in = copy < 0 ? NULL : fdopen(copy, "r");
    return l->in ? 0 : run_fail(r, "%s: %s", path, strerror(errno));
}

void qmp_link_close(struct qmp_link *l)
{
    if (l->in)
        fclose(l->in);
    if (l->fd >= 0)
        close(l->fd);
    free(l->line);
}

static int link_send(struct qmp_link *l, const json_t *msg)
{
    char *text = json_dumps(msg, JSON_COMPACT);
    size_t len = text ? strlen(text) : 0, at = 0;
    if (!text)
        return run_fail(l->r, "the command cannot be written as JSON");
    text[len++] = '\n';                      /* in place of the final 0 */
    while (at < len) {
        ssize_t n = send(l->fd, text + at, len - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    free(text);
    return at == len ? 0 : run_fail(l->r, "the connection broke: %s", strerror(errno));
}

json_t *qmp_link_receive(struct qmp_link *l, bool needed)
{
    json_error_t where;
    ssize_t n = getline(&l->line, &l->cap, l->in);
    json_t *m = n > 0 ? json_loads(l->line, 0, &where) : NULL;
    if (!m && (needed || n > 0))
        run_fail(l->r, n > 0 ? "the answer is not JSON" : "the connection was closed");
    return m;
}

json_t *qmp_link_exchange(struct qmp_link *l, const json_t *msg)
{
    if (link_send(l, msg))
        return NULL;
    for (;;) {
        json_t *m = qmp_link_receive(l, true);
        if (!m || !json_object_get(m, "event"))
            return m;
        if (l->on_event)
            l->on_event(l->arg, m);
        json_decref(m);
    }
}

int qmp_link_negotiate(struct qmp_link *l)
{
    json_t *greeting = qmp_link_receive(l, true);
    bool is_qmp = greeting && json_object_get(greeting, "QMP");
    json_decref(greeting);
    if (!greeting)
        return 1;
    if (!is_qmp)
        return run_fail(l->r, "this is no control socket");
    json_t *msg = json_pack("{s:s}", "execute", "qmp_capabilities");
    json_t *m = msg ? qmp_link_exchange(l, msg) : NULL;
    json_decref(msg);
    int code = m && json_object_get(m, "return") ? 0 : 1;
    json_decref(m);
    return code;
}

json_t *qmp_link_value(struct qmp_link *l, json_t *answer)
{
    json_t *error = json_object_get(answer, "error"), *value = json_object_get(answer, "return");
    if (error) {
        const char *cls = json_string_value(json_object_get(error, "class")), *desc = json_string_value(json_object_get(error, "desc"));
        run_fail(l->r, "%s: %s", cls ? cls : "error", desc ? desc : "no description");
    } else if (!value) {
        run_fail(l->r, "the answer holds neither return nor error");
    }
    json_incref(value);
    json_decref(answer);
    return value;
}

json_t *qmp_link_do(struct qmp_link *l, const char *command, json_t *args)
{
    json_t *msg = args ? json_pack("{s:s,s:o}", "execute", command, "arguments", args) : json_pack("{s:s}", "execute", command);
    if (!msg) {
        run_fail(l->r, "no memory");
        return NULL;
    }
    json_t *answer = qmp_link_exchange(l, msg);
    json_decref(msg);
    return answer ? qmp_link_value(l, answer) : NULL;
}

const char *qmp_link_text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

uint64_t qmp_link_number(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

json_t *qmp_link_find_job(json_t *list, const char *id)
{
    size_t i;
    json_t *job;
    json_array_foreach(list, i, job)
        if (strcmp(qmp_link_text(job, "id"), id) == 0)
            return job;
    return NULL;
}
