/* SPDX-License-Identifier: MIT
 *
 * events.c: the table of events.
 *
 * Purpose      What each event holds, for introspection and the reference page; who sends it says so in its own file.
 * Owns         constant table
 * Invariants   I1 names are in alphabetical order and unique; whatever is sent is here, with these members
 * Concurrency  any
 * Failure      none
 * Tests        ctl_test.c, tests/cli/doc_test.py
 */
#include "ctl/ctl_priv.h"

static const char *const status_words[] = { "undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting",
    "concluded", "null", NULL };
static const struct ctl_shape job_status = { .name = "JobStatus", .words = status_words };

static const struct ctl_arg export_rows[] = { { "id", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };

static const struct ctl_arg corrupted_rows[] = {
    { "device", CTL_STR, true, CTL_AT_NONE, .doc = "Device that the node is; empty for nodes below one." },
    { "node-name", CTL_STR, false, CTL_AT_NONE },
    { "msg", CTL_STR, true, CTL_AT_NONE, .doc = "What was found, for people." },
    { "offset", CTL_SIZE, false, CTL_AT_NONE, .doc = "Where in the file." },
    { "size", CTL_SIZE, false, CTL_AT_NONE },
    { "fatal", CTL_BOOL, true, CTL_AT_NONE, .doc = "The image takes no more writes." },
    CTL_ARGS_END
};

static const struct ctl_arg ended_rows[] = {
    { "device", CTL_STR, true, CTL_AT_NONE, .doc = "Id of the job." },
    { "type", CTL_STR, true, CTL_AT_NONE, .doc = "commit, stream, ..." },
    { "len", CTL_SIZE, true, CTL_AT_NONE, .doc = "All that there was to do." },
    { "offset", CTL_SIZE, true, CTL_AT_NONE, .doc = "What was done of it." },
    { "speed", CTL_SIZE, true, CTL_AT_NONE },
    { "error", CTL_STR, false, CTL_AT_NONE, .doc = "Why it failed; missing when it did not." },
    CTL_ARGS_END
};

static const char *const operation_words[] = { "read", "write", NULL };
static const struct ctl_shape operation = { .name = "IoOperationType", .words = operation_words };
static const char *const action_words[] = { "ignore", "report", "stop", NULL };
static const struct ctl_shape action = { .name = "BlockErrorAction", .words = action_words };
static const struct ctl_arg job_error_rows[] = {
    { "device", CTL_STR, true, CTL_AT_NONE, .doc = "Id of the job." },
    { "operation", CTL_ENUM, true, CTL_AT_NONE, .of = &operation },
    { "action", CTL_ENUM, true, CTL_AT_NONE, .of = &action },
    CTL_ARGS_END
};

static const struct ctl_arg io_error_rows[] = {
    { "device", CTL_STR, true, CTL_AT_NONE, .doc = "The device; empty for an export of something else." },
    { "qom-path", CTL_STR, true, CTL_AT_NONE, .doc = "Empty: devices have none here." },
    { "node-name", CTL_STR, false, CTL_AT_NONE },
    { "operation", CTL_ENUM, true, CTL_AT_NONE, .of = &operation, .doc = "Of what is no read: write." },
    { "action", CTL_ENUM, true, CTL_AT_NONE, .of = &action },
    { "nospace", CTL_BOOL, false, CTL_AT_NONE },
    { "reason", CTL_STR, true, CTL_AT_NONE, .doc = "For people." },
    { "x-byre-export", CTL_STR, false, CTL_AT_NONE, .doc = "Id of the export." },
    { "x-byre-complaint", CTL_STR, false, CTL_AT_NONE, .doc = "What an NBD server that supplies the disk said last of a request that it refused with this error." },
    CTL_ARGS_END
};

static const struct ctl_arg job_pending_rows[] = {
    { "type", CTL_STR, true, CTL_AT_NONE },
    { "id", CTL_STR, true, CTL_AT_NONE },
    CTL_ARGS_END
};

static const struct ctl_arg job_status_rows[] = {
    { "id", CTL_STR, true, CTL_AT_NONE },
    { "status", CTL_ENUM, true, CTL_AT_NONE, .of = &job_status },
    CTL_ARGS_END
};

static const struct ctl_arg manager_rows[] = {
    { "id", CTL_STR, true, CTL_AT_NONE, .doc = "Of the object." },
    { "connected", CTL_BOOL, true, CTL_AT_NONE, .doc = "False: its helper has gone, or was given up." },
    CTL_ARGS_END
};

static const struct ctl_arg shutdown_rows[] = {
    { "guest", CTL_BOOL, true, CTL_AT_NONE, .doc = "False: there is no guest here." },
    { "reason", CTL_STR, true, CTL_AT_NONE, .doc = "host-signal, host-qmp-quit or host-error." },
    CTL_ARGS_END
};

static const struct ctl_arg tray_rows[] = {
    { "device", CTL_STR, true, CTL_AT_NONE, .doc = "Empty." },
    { "id", CTL_STR, true, CTL_AT_NONE, .doc = "Of the export." },
    { "tray-open", CTL_BOOL, true, CTL_AT_NONE },
    CTL_ARGS_END
};

static const struct ctl_arg threshold_rows[] = {
    { "node-name", CTL_STR, true, CTL_AT_NONE },
    { "amount-exceeded", CTL_SIZE, true, CTL_AT_NONE, .doc = "By how many bytes." },
    { "write-threshold", CTL_SIZE, true, CTL_AT_NONE, .doc = "The offset that was asked for." },
    CTL_ARGS_END
};

const struct ctl_event ctl_events[] = {
    { "BLOCK_EXPORT_DELETED", export_rows, "An export is gone: its id, its name and its node are free." },
    { "BLOCK_IMAGE_CORRUPTED", corrupted_rows, "Damage was met in an image. It is reported once; the image does not use what is damaged." },
    { "BLOCK_IO_ERROR", io_error_rows, "A request by a device or an export failed, and whoever made it was told. It comes once a second at most of each." },
    { "BLOCK_JOB_CANCELLED", ended_rows, "A block job ended because somebody wanted it to." },
    { "BLOCK_JOB_COMPLETED", ended_rows, "A block job ended. Without an error, everything that it promises is durable." },
    { "BLOCK_JOB_ERROR", job_error_rows, "A request of a block job failed." },
    { "BLOCK_JOB_PENDING", job_pending_rows, "A block job waits to be finalized." },
    { "BLOCK_JOB_READY", ended_rows, "A block job can be completed." },
    { "BLOCK_WRITE_THRESHOLD", threshold_rows, "A node was written to behind the offset that block-set-write-threshold named. It comes once." },
    { "DEVICE_TRAY_MOVED", tray_rows, "The tray of a removable export is open now, or closed." },
    { "JOB_STATUS_CHANGE", job_status_rows, "A job is in another state. Success is told after what it promises is durable." },
    { "PR_MANAGER_STATUS_CHANGED", manager_rows, "A manager of persistent reservations has a connection to its helper now, or has lost it. A loss is seen by the next command, or by query-pr-managers." },
    { "SHUTDOWN", shutdown_rows, "The server ends. Requests in flight are answered, images are closed." },
    { NULL, NULL, NULL }
};
