/* SPDX-License-Identifier: MIT
 *
 * server.h: what serve, daemon and nbd share: a process that serves until a signal or `quit`, and its orderly end.
 *
 *     server_begin -> (run_ctx) -> server_control -> server_listen, server_execute ... -> server_wait -> server_end -> server_fini
 *
 * Concurrency  main thread; what runs on the home loop goes through lib_ctx_call
 */
#ifndef BIN_SERVER_H
#define BIN_SERVER_H

#include <jansson.h>
#include <signal.h>

#include "bin/bin.h"
#include "ctl/ctl.h"

struct exports;
struct server {
    struct run *r;
    int signal_fd, quit_fd;
    sigset_t set;
    struct ctl *ctl;
    struct exports *exports;
};

/* Signals wait from now on, in all threads that are started later. false: told already. */
bool server_begin(struct server *s, struct run *r);
void server_fini(struct server *s);
/* What was made here: removed by a second signal, which ends the process at once. */
void server_remember_path(const char *path);

/* Makes s->ctl over these devices (borrowed) and s->exports. 1: told already. */
int server_control(struct server *s, const struct ctl_device *devices, size_t count);
/* Executes a command; arguments are taken over. 1: told already, as "prog: what: why" (what NULL: "prog: why"). */
struct server_call { const char *command, *what; bool words; };
int server_execute(struct server *s, const struct server_call *call, json_t *arguments);
int server_listen(struct server *s, const char *path);       /* a control socket there. 1: told already */
/* Until one client has come. false: a signal or `quit` came first. */
bool server_wait_client(struct server *s);

/* Waits for a signal or `quit`: "host-signal" or "host-qmp-quit". */
const char *server_wait(struct server *s);
/* Jobs end, exports are removed, clients get their last messages; images stay open. event: SHUTDOWN is sent with this reason (NULL: none). */
void server_end(struct server *s, const char *event);
/* Behind it, when nobody uses them any more: closes the nodes that commands have opened. 1: told already, one could not be closed cleanly. */
int server_close_nodes(struct server *s);
/* Wakes server_wait; from any thread. */
void server_quit(struct server *s);

/* Threads that serve: `wanted`, or (0) one per processor up to 4. */
unsigned server_threads(uint64_t wanted);

/* ---- daemonize.c ---- */
/* The parent stays until the child is ready, and exits with 0, or with 1 when it never is. */
struct daemonizer { int fd; bool keep_folder; };
/* Before any thread. false: told already. */
bool daemonize_begin(struct daemonizer *d, struct run *r);
/* The child is ready: it lets standard input and output go, and (unless keep_folder) its folder. */
void daemonize_ready(struct daemonizer *d);

/* A file with the number of this process, locked as long as it runs. */
struct pidfile { char *path; int fd; };
int pidfile_write(struct pidfile *p, struct run *r, const char *path);      /* 1: told already */
void pidfile_remove(struct pidfile *p);

#endif
