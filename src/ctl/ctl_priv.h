/* SPDX-License-Identifier: MIT
 *
 * ctl_priv.h: the inside of ctl/.
 *
 *   ctl.c         server: life, events, commands of the command line
 *   listen.c      monitors: sockets, clients coming and going
 *   client.c      one client: reading, dispatch, output
 *   words.c       options of the command line as JSON
 *   schema.h      rows: what commands take and give, what events hold; read its head before you write a row
 *   args.c        decodes arguments by them
 *   introspect.c  query-qmp-schema from them
 *   document.c    the page byre-qmp(7) from them
 *   blockdev_rows.c  the options of nodes
 *   commands.c    the table of commands
 *   events.c      the table of events
 *   cmd_backup.c  blockdev-backup, drive-backup
 *   cmd_base.c    qmp_capabilities query-version query-commands query-qmp-schema quit
 *   cmd_bitmap.c  block-dirty-bitmap-*
 *   cmd_block.c   query-block query-named-block-nodes block_resize
 *   cmd_block_job.c  query-block-jobs, block-job-*
 *   cmd_blockdev.c  blockdev-add, blockdev-del, blockdev-reopen, blockdev-set-active, blockdev-snapshot, blockdev-snapshot-sync, change-backing-file, x-debug-query-block-graph
 *   cmd_chain.c   block-commit, block-stream
 *   cmd_chardev.c  chardev-*, query-chardev, query-chardev-backends, x-byre-monitor-add
 *   cmd_create.c  blockdev-create, x-blockdev-amend
 *   cmd_debug.c   x-blockdev-change, x-debug-block-dirty-bitmap-sha256, qom-list-types, qom-list-properties
 *   cmd_export.c  nbd-server-*, block-export-*, query-block-exports, x-byre-query-nbd-servers
 *   cmd_fdset.c   add-fd, remove-fd, query-fdsets
 *   cmd_iothread.c  query-iothreads, x-blockdev-set-iothread; threads as objects
 *   cmd_job.c     query-jobs and the verbs of jobs; x-byre-scrub, x-byre-compact, x-byre-query-job-end
 *   cmd_medium.c  trays and what lies in them
 *   cmd_mirror.c  blockdev-mirror, drive-mirror, block-job-change
 *   cmd_object.c  object-add object-del
 *   cmd_pr.c      query-pr-managers, x-byre-persistent-reserve-in, x-byre-persistent-reserve-out; managers of reservations as objects
 *   cmd_qom.c     qom-get qom-set qom-list; throttle groups as objects
 *   cmd_ringbuf.c  ringbuf-write, ringbuf-read
 *   cmd_snapshot.c  blockdev-snapshot-internal-sync, blockdev-snapshot-delete-internal-sync
 *   cmd_stats.c   query-blockstats, block-latency-histogram-set, x-byre-stats-intervals, x-byre-query-export-stats, x-byre-metrics
 *   cmd_throttle.c  block_set_io_throttle block-set-write-threshold
 *   cmd_transaction.c  transaction; transaction.h: what its entries are
 *   cmd_yank.c    yank, query-yank
 *   image_json.c  ImageInfo and BlockDeviceInfo
 *   addr.c        addresses of sockets as arguments
 *   chardev.c     character devices
 *   guard.c       images are not changed under others
 *   job_args.c    what the commands that begin jobs have in common
 *   new_image.c   files that commands make by the way
 *   passed.c     descriptors that clients send: until a command takes them, and under names; getfd, closefd. The sets: stor/fdset.h
 *   target.c      which node a command means
 *
 * A command is one row and one function: name, argument rows, `doc`, `ret`. The function gets its arguments decoded, makes
 * one call into the layers below, and fills the reply. To add one:
 *
 *     struct x_args { const char *node; uint64_t size; };
 *     static const struct ctl_arg x_rows[] = {
 *         { "node-name", CTL_STR, true, CTL_AT(struct x_args, node) },
 *         { "size", CTL_SIZE, false, CTL_AT(struct x_args, size), .doc = "Bytes; 0 means all." },
 *         CTL_ARGS_END
 *     };
 *     static int run_x(struct co *co, struct ctl_call *call) { const struct x_args *a = call->args; ... }
 *     const struct ctl_command ctl_cmd_NAME = { "x", x_rows, sizeof(struct x_args), run_x, .doc = "Does x to a node." };
 *
 * and its name below and in commands.c. A function that fails fills call->err and returns its code; the class of the error is
 * GenericError unless it sets call->error_class (CommandNotFound, DeviceNotFound, DeviceNotActive, as the peer's). Enums, lists, nested
 * structs and unions: schema.h; cmd_export.c has all of them.
 *
 * Concurrency  Home loop, all of it; what may block goes to the blocking pool.
 */
#ifndef CTL_PRIV_H
#define CTL_PRIV_H

#include <jansson.h>

#include "base/assert.h"
#include "base/list.h"
#include "ctl/ctl.h"
#include "ctl/passed.h"
#include "ctl/schema.h"
#include "graph/graph.h"
#include "proto/qmp/qmp.h"
#include "rt/sync.h"

struct ctl {
    struct rt_loop *home;
    struct ctl_env env;
    bool stopping;
    uint64_t arrivals;
    struct list listeners;
    struct list clients;
    struct list chardevs;
    unsigned client_count;
    struct co_group alive;               /* clients that have not ended */
    struct list left;                    /* guard.c */
};

struct ctl_listener {
    struct list_node link;
    struct ctl *c;
    int fd;
    char *path;                          /* without links, from the root; NULL: the socket was handed over */
    uint64_t path_dev, path_ino;         /* the socket that was made: only that is removed */
    struct rt_task acceptor;
    bool pretty;
};

/* A connection. fd = out_fd is a socket; otherwise the two are standard input and output, which are not ours to close. */
struct ctl_end { int fd, out_fd; bool pretty; };
struct ctl_client {
    struct list_node link;
    struct ctl *c;
    int fd, out_fd;
    bool pretty;
    bool negotiated;                     /* after qmp_capabilities */
    bool oob;                            /* the client may execute out of band */
    bool closing;                        /* no more input is taken; output still goes out */
    bool dead;                           /* the socket failed, or the client takes nothing */
    struct qmp_split *split;
    struct rt_task reader, writer, worker;
    /* commands that wait for their turn: the reader puts, the worker takes */
    struct list queue;
    unsigned queued;
    bool no_more;                        /* the reader has ended */
    struct co_waitq queue_q;
    struct rt_msg bye;                   /* posted by the reader as its last act */
    /* output: [out_at, out_len) waits */
    char *out;
    size_t out_at, out_len, out_cap;
    size_t longest, longest_end;         /* the longest message of it, and where that ends in out */
    struct co_waitq out_q;               /* the writer, for more output */
    /* passed.c: descriptors that came with bytes that are no whole command yet; that no command has taken; that have names */
    struct ctl_offer arriving, offer;
    struct ctl_inbox inbox;              /* the reader's */
    struct list names;
    unsigned name_count;
};

/* ---- listen.c ---- */
/* A socket under a name, or (a NULL) a listening fd, owned from now on; clients wait until it is served. Suspends. */
struct unix_addr;
MUST_USE int listener_open(struct co *co, const struct unix_addr *a, int fd, struct ctl_listener **ret, struct byre_err *err);
MUST_USE int listener_serve(struct ctl *c, struct ctl_listener *l, bool pretty, struct byre_err *err);      /* c has l, on success */
void listener_drop(struct co *co, struct ctl_listener *l);   /* never served */
/* Connected to a socket of our user: by its name, or (a NULL) fd, owned from now on. Suspends. */
MUST_USE int monitor_connect(struct co *co, const struct unix_addr *a, int fd, int *ret_fd, struct byre_err *err);
void listeners_quiet(struct co *co, struct ctl *c);          /* nobody gets in any more */
void listeners_free(struct co *co, struct ctl *c);           /* paths are removed */

/* ---- client.c ---- */
/* Takes a socket over. */
void client_start(struct ctl *c, const struct ctl_end *end);
void client_put(struct ctl_client *cl, const struct qmp_text *t);
/* No more input; the client ends when its output is out. now: whether or not it is. */
void client_close(struct ctl_client *cl, bool now);
bool client_is_silent(const struct ctl_client *cl);         /* nothing waits to be sent */
bool client_is_socket(const struct ctl_client *cl);         /* and not standard input and output */
#define CTL_LAST_WORDS_NS UINT64_C(1000000000)

/* ---- commands ---- */
struct ctl_kept;
struct ctl_call {
    struct ctl *c;
    struct ctl_client *client;
    const void *args;                    /* decoded: a struct as the rows say */
    json_t *arguments;                   /* as they came; NULL: none */
    struct ctl_arena arena;              /* for whatever else lives as long as the call */
    struct ctl_kept *kept;               /* nodes: target.c */
    json_t *ret;                         /* set by the command; NULL: {} */
    const char *error_class;             /* NULL: GenericError */
    struct byre_err err;                 /* filled when the command fails */
};

struct ctl_command {
    const char *name;
    const struct ctl_arg *args;          /* NULL: none */
    size_t args_bytes;
    int (*run)(struct co *co, struct ctl_call *call);
    bool before_capabilities;            /* allowed (only) before negotiation */
    const char *doc;                     /* what it does, in one to three sentences: the reference page */
    const struct ctl_arg *ret;           /* one row that says what it answers; NULL: {} */
    const char *tag;                     /* arguments that are a union (schema.h) */
    const struct ctl_case *cases;
    bool open;                           /* members that no row names are let through: the command looks at call->arguments */
    bool oob;                            /* may be executed out of band: never suspends, never waits */
};
extern const struct ctl_command *const ctl_commands[];       /* ends with NULL */
const struct ctl_command *ctl_find_command(const char *name);
/* blockdev_rows.c: options of a node, for every command that takes them; what they mean is decided in graph/ */
extern const struct ctl_shape ctl_blockdev_shape, ctl_ref_shape;      /* the options; those, or the name of a node */
extern const struct ctl_arg ctl_blockdev_rows[];
extern const struct ctl_case ctl_blockdev_cases[];
extern const struct ctl_arg ctl_ret_any;                     /* for `ret`: something that no rows describe yet */

extern const struct ctl_command ctl_cmd_qmp_capabilities, ctl_cmd_query_version, ctl_cmd_query_commands,
    ctl_cmd_query_qmp_schema, ctl_cmd_quit;
extern const struct ctl_command ctl_cmd_query_block, ctl_cmd_query_named_block_nodes, ctl_cmd_block_resize;
extern const struct ctl_command ctl_cmd_blockdev_add, ctl_cmd_blockdev_del, ctl_cmd_blockdev_reopen, ctl_cmd_blockdev_set_active, ctl_cmd_blockdev_snapshot, ctl_cmd_blockdev_snapshot_sync, ctl_cmd_change_backing_file,
    ctl_cmd_block_graph, ctl_cmd_io_throttle, ctl_cmd_write_threshold;
extern const struct ctl_command ctl_cmd_chardev_add, ctl_cmd_chardev_change, ctl_cmd_chardev_remove, ctl_cmd_chardev_send_break, ctl_cmd_query_chardev,
    ctl_cmd_query_chardev_backends, ctl_cmd_monitor_add;
extern const struct ctl_command ctl_cmd_transaction;
extern const struct ctl_command ctl_cmd_snapshot_create, ctl_cmd_snapshot_delete;
extern const struct ctl_command ctl_cmd_bitmap_add, ctl_cmd_bitmap_clear, ctl_cmd_bitmap_disable, ctl_cmd_bitmap_enable, ctl_cmd_bitmap_merge,
    ctl_cmd_bitmap_remove;
extern const struct ctl_command ctl_cmd_block_job_cancel, ctl_cmd_block_job_complete, ctl_cmd_block_job_dismiss, ctl_cmd_block_job_finalize,
    ctl_cmd_block_job_pause, ctl_cmd_block_job_resume, ctl_cmd_block_job_set_speed, ctl_cmd_query_block_jobs;
extern const struct ctl_command ctl_cmd_block_commit, ctl_cmd_block_stream;
extern const struct ctl_command ctl_cmd_blockdev_amend, ctl_cmd_blockdev_create;
extern const struct ctl_command ctl_cmd_block_export_add, ctl_cmd_block_export_del, ctl_cmd_nbd_server_add, ctl_cmd_nbd_server_remove, ctl_cmd_nbd_server_start,
    ctl_cmd_nbd_server_stop, ctl_cmd_query_block_exports, ctl_cmd_query_nbd_servers;
extern const struct ctl_command ctl_cmd_object_add, ctl_cmd_object_del, ctl_cmd_qom_get, ctl_cmd_qom_list, ctl_cmd_qom_set;
extern const struct ctl_command ctl_cmd_latency_histogram, ctl_cmd_query_blockstats, ctl_cmd_stats_intervals, ctl_cmd_x_byre_export_stats, ctl_cmd_x_byre_job_end,
    ctl_cmd_x_byre_metrics;
extern const struct ctl_command ctl_cmd_job_cancel, ctl_cmd_job_complete, ctl_cmd_job_dismiss, ctl_cmd_job_finalize, ctl_cmd_job_pause,
    ctl_cmd_job_resume, ctl_cmd_query_jobs, ctl_cmd_x_byre_compact, ctl_cmd_x_byre_scrub;

extern const struct ctl_command ctl_cmd_bitmap_sha256, ctl_cmd_blockdev_change, ctl_cmd_qom_list_properties, ctl_cmd_qom_list_types, ctl_cmd_query_iothreads, ctl_cmd_set_iothread;
extern const struct ctl_command ctl_cmd_add_fd, ctl_cmd_closefd, ctl_cmd_getfd, ctl_cmd_query_fdsets, ctl_cmd_remove_fd;
extern const struct ctl_command ctl_cmd_query_pr_managers, ctl_cmd_x_byre_reserve_in, ctl_cmd_x_byre_reserve_out;
extern const struct ctl_command ctl_cmd_query_yank, ctl_cmd_yank, ctl_cmd_ringbuf_read, ctl_cmd_ringbuf_write;
extern const struct ctl_command ctl_cmd_open_tray, ctl_cmd_close_tray, ctl_cmd_insert_medium, ctl_cmd_remove_medium, ctl_cmd_change_medium, ctl_cmd_eject;
extern const struct ctl_command ctl_cmd_blockdev_backup, ctl_cmd_drive_backup;
extern const struct ctl_command ctl_cmd_blockdev_mirror, ctl_cmd_drive_mirror, ctl_cmd_block_job_change;

/* ---- target.c ---- */
/* What these find stays open until the call has ended, whatever other clients delete meanwhile. */
/* A device by that name, or a node by it. NULL: told in call->err. */
struct graph_node *ctl_named(struct ctl_call *call, const char *name);
/* A node by its name alone. NULL: told in call->err. */
struct graph_node *ctl_node(struct ctl_call *call, const char *name);
/* The same for a node that was found otherwise. n NULL: nothing happens. */
MUST_USE int ctl_keep(struct ctl_call *call, struct graph_node *n);
/* Gives them back before. Suspends. */
void ctl_let_nodes(struct co *co, struct ctl_call *call);
/* What a command answers whose reply could not be made. Its error. */
static inline int ctl_no_memory(struct ctl_call *call) { return byre_fail(&call->err, NOMEM, "no memory for a reply"); }
/* Runs it while nobody is in the middle of a transaction, or opens an image in another way (graph_edges_hold). */
MUST_USE int ctl_with_edges_held(struct co *co, struct ctl_call *call, int (*run)(struct co *co, struct ctl_call *call));
/* The end of a call: gives back its nodes and its memory. Suspends. */
void ctl_call_end(struct co *co, struct ctl_call *call);
/* The node of the device or the node of that name: exactly one of the two is given. */
MUST_USE int ctl_target(struct ctl_call *call, const char *device, const char *node_name, struct graph_node **ret_n);

/* client.c: as a client of `from` (NULL: the command line) */
MUST_USE int ctl_run(struct co *co, struct ctl_call *call, const struct ctl_command *c, bool words);

/* ctl.c: an event for every client that has negotiated. Takes data over (NULL: memory ran out, nothing is sent). */
void ctl_send_event(struct ctl *c, const char *name, json_t *data);
/* cmd_block.c: of graph_watch_corruption; arg is the struct ctl. */
void ctl_image_corrupted(void *arg, const struct graph_node *n, const struct fmt_corruption *c);
/* cmd_block.c: of graph_watch_io_errors; arg is the struct ctl. */
struct graph_io_error;
void ctl_io_error(void *arg, struct graph_node *n, const struct graph_io_error *e);
/* cmd_export.c: of exports_watch; arg is the struct ctl. */
void ctl_export_gone(void *arg, const char *id);
/* cmd_pr.c: of pr_set_watch; arg is the struct ctl. */
void ctl_pr_changed(void *arg, const char *id, bool connected);
/* cmd_throttle.c: of graph_watch_threshold; arg is the struct ctl. */
void ctl_write_threshold(void *arg, const char *named, uint64_t exceeded, uint64_t threshold);
/* cmd_job.c: struct jobs' status_changed; arg is the struct ctl. */
struct job;
void ctl_job_changed(void *arg, const struct job *job);
/* cmd_block_job.c: the same for block jobs, in the older words; struct jobs' io_error. */
void ctl_block_job_changed(struct ctl *c, const struct job *job);
void ctl_job_io_error(void *arg, const struct job *job, bool read, const char *action);

/* ---- image_json.c: owned by the caller, NULL: out of memory or *err ---- */
struct device_json { struct graph_node *node; bool flat, writethrough; };
json_t *device_json(struct co *co, const struct device_json *d, struct byre_err *err);
/* The protocol node below a node ("disk0-file"). */
json_t *file_node_json(struct co *co, const struct device_json *d, struct byre_err *err);

#endif
