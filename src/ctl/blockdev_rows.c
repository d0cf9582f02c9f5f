/* SPDX-License-Identifier: MIT
 *
 * blockdev_rows.c: what the options of a node look like (FEATURES 8.002, 8.010).
 *
 * Purpose      Rows of blockdev-add: types, introspection, the reference page. What they mean is decided in graph/ alone.
 * Owns         constant tables
 * Invariants   I1 a driver or an option that is not here goes through as it is, for graph/ to take or to refuse: nothing is promised
 *                 here that graph/ does not do, and nothing kept from it
 * Concurrency  any
 * Failure      none
 * Tests        ctl_test.c, tests/daemon
 */
#include <limits.h>

#include "ctl/ctl_priv.h"
#include "stor/event.h"

#define WORDS(name_, text, ...)                                                                                                 \
    static const char *const name_##_words[] = { __VA_ARGS__, NULL };                                                            \
    static const struct ctl_shape name_ = { .name = text, .words = name_##_words }
WORDS(discard, "BlockdevDiscardOptions", "ignore", "unmap");
WORDS(detect, "BlockdevDetectZeroesOptions", "off", "on", "unmap");
WORDS(locking, "OnOffAuto", "on", "off", "auto");
WORDS(aio, "BlockdevAioOptions", "threads", "native", "io_uring");
WORDS(crypt, "BlockdevQcow2EncryptionFormat", "aes", "luks");

WORDS(cbw_error, "OnCbwError", "break-guest-write", "break-snapshot");

static const char *const driver_words[] = { "blkdebug", "compress", "copy-before-write", "copy-on-read", "file", "host_device", "luks", "nbd", "null-aio", "null-co",
    "preallocate", "qcow2", "qed", "raw", "snapshot-access", "throttle", NULL };
static const struct ctl_shape driver = { .name = "BlockdevDriver", .words = driver_words, .open = true };

#define BOOL(name_) { name_, CTL_BOOL, false, CTL_AT_NONE }
#define SIZE(name_) { name_, CTL_SIZE, false, CTL_AT_NONE }
#define ENUM(name_, shape) { name_, CTL_ENUM, false, CTL_AT_NONE, .of = &shape }

static const struct ctl_arg cache_rows[] = { BOOL("direct"), BOOL("no-flush"), CTL_ARGS_END };
static const struct ctl_shape cache = { .name = "BlockdevCacheOptions", .rows = cache_rows };

const struct ctl_arg ctl_blockdev_rows[] = {
    { "driver", CTL_ENUM, true, CTL_AT_NONE, .of = &driver },
    { "node-name", CTL_STR, false, CTL_AT_NONE, .doc = "Must be given, but for nodes inside others." },
    ENUM("discard", discard),
    { "cache", CTL_STRUCT, false, CTL_AT_NONE, .of = &cache },
    BOOL("read-only"), BOOL("auto-read-only"), BOOL("force-share"),
    { "active", CTL_BOOL, false, CTL_AT_NONE, .doc = "Off: another process may be writing the files; see blockdev-set-active." },
    ENUM("detect-zeroes", detect),
    CTL_ARGS_END
};

/* ---- nodes in nodes ---- */
const struct ctl_shape ctl_blockdev_shape = { .name = "BlockdevOptions", .rows = ctl_blockdev_rows, .tag = "driver", .cases = ctl_blockdev_cases, .open = true };
#define REF_ROWS                                                                                                                 \
    { "definition", CTL_STRUCT, false, CTL_AT_NONE, .of = &ctl_blockdev_shape, .doc = "Options of a node." },                                \
    { "reference", CTL_STR, false, CTL_AT_NONE, .doc = "The name of one." }
static const struct ctl_arg ref_rows[] = { REF_ROWS, CTL_ARGS_END };
const struct ctl_shape ctl_ref_shape = { .name = "BlockdevRef", .rows = ref_rows };
static const struct ctl_arg ref_or_null_rows[] = { REF_ROWS, { "null", CTL_NULL, false, CTL_AT_NONE, .doc = "Nothing." }, CTL_ARGS_END };
static const struct ctl_shape ref_or_null = { .name = "BlockdevRefOrNull", .rows = ref_or_null_rows };
#define FILE_ROW { "file", CTL_ALT, true, CTL_AT_NONE, .of = &ctl_ref_shape }
#define BACKING_ROW                                                                                                              \
    { "backing", CTL_ALT, false, CTL_AT_NONE, .of = &ref_or_null, .doc = "What lies below; what the image records when it is not given." }

/* ---- drivers ---- */
static const struct ctl_arg file_rows[] = { { "filename", CTL_STR, true, CTL_AT_NONE, .doc = "A path; /dev/fdset/N: what add-fd has put into set N." }, ENUM("locking", locking), ENUM("aio", aio), BOOL("drop-cache"),
    BOOL("x-check-cache-dropped"), { "pr-manager", CTL_STR, false, CTL_AT_NONE, .doc = "An object pr-manager-helper, for x-byre-persistent-reserve-in and x-byre-persistent-reserve-out." }, CTL_ARGS_END };
static const struct ctl_arg luks_rows[] = {
    FILE_ROW, { "key-secret", CTL_STR, false, CTL_AT_NONE },
    { "header", CTL_ALT, false, CTL_AT_NONE, .of = &ctl_ref_shape, .doc = "Where its header is, if not at the beginning of the file." }, CTL_ARGS_END
};
static const struct ctl_arg null_rows[] = { SIZE("size"), SIZE("latency-ns"), BOOL("read-zeroes"), CTL_ARGS_END };
static const struct ctl_arg raw_rows[] = { FILE_ROW, SIZE("offset"), SIZE("size"), CTL_ARGS_END };
static const struct ctl_arg qed_rows[] = { FILE_ROW, BACKING_ROW, CTL_ARGS_END };

static const struct ctl_arg key_rows[] = { { "key-secret", CTL_STR, false, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_case crypt_cases[] = { { "aes", key_rows }, { "luks", key_rows }, { NULL, NULL } };
static const struct ctl_arg encrypt_rows[] = { { "format", CTL_ENUM, true, CTL_AT_NONE, .of = &crypt }, CTL_ARGS_END };
static const struct ctl_shape encrypt = { .name = "BlockdevQcow2Encryption", .rows = encrypt_rows, .tag = "format", .cases = crypt_cases };

static const struct ctl_arg qcow2_rows[] = {
    FILE_ROW, BACKING_ROW,
    { "data-file", CTL_ALT, false, CTL_AT_NONE, .of = &ctl_ref_shape, .doc = "Where an external data file is, unless the image's own word is right." },
    BOOL("lazy-refcounts"), BOOL("pass-discard-request"), BOOL("pass-discard-snapshot"), BOOL("pass-discard-other"), BOOL("discard-no-unref"),
    SIZE("cache-size"), SIZE("l2-cache-size"), SIZE("l2-cache-entry-size"), SIZE("refcount-cache-size"), SIZE("cache-clean-interval"),
    { "encrypt", CTL_STRUCT, false, CTL_AT_NONE, .of = &encrypt },
    CTL_ARGS_END
};

/* "server" has members of its own, which graph/ knows. */
static const struct ctl_arg nbd_rows[] = {
    { "server", CTL_ANY, true, CTL_AT_NONE, .doc = "Where it listens, by 'type': inet with host and port, unix with path, vsock with cid and port, fd with str: a connection that somebody passed, by the name of getfd." },
    { "export", CTL_STR, false, CTL_AT_NONE }, SIZE("reconnect-delay"), SIZE("open-timeout"),
    { "tls-creds", CTL_STR, false, CTL_AT_NONE, .doc = "Credentials with endpoint=client: the server must speak TLS." },
    { "tls-hostname", CTL_STR, false, CTL_AT_NONE, .doc = "Name in the certificate of the server; the host when it is not given." },
    { "x-dirty-bitmap", CTL_STR, false, CTL_AT_NONE, .doc = "A meta context of the server that a map of the disk shows instead of what is allocated." }, CTL_ARGS_END
};

/* ---- filters ---- */
static const char *const debug_event_words[] = { "none",
#define X(name, word, text) word,
    STOR_EVENT_ROWS(X)
#undef X
    NULL };
static const struct ctl_shape debug_event = { .name = "BlkdebugEvent", .words = debug_event_words };
WORDS(debug_iotype, "BlkdebugIOType", "read", "write", "write-zeroes", "discard", "flush", "block-status");
static const struct ctl_arg debug_error_rows[] = {
    { "event", CTL_ENUM, true, CTL_AT_NONE, .of = &debug_event, .doc = "What makes the rule hold, for the requests that follow; none: it holds from the beginning." },
    { "state", CTL_SIZE, false, CTL_AT_NONE, .max = INT_MAX, .doc = "The state in which the event must come; 0: any." },
    { "iotype", CTL_ENUM, false, CTL_AT_NONE, .of = &debug_iotype, .doc = "Which requests fail; all but block-status when it is not given." },
    { "errno", CTL_INT, false, CTL_AT_NONE, .doc = "The number of the error; 5 (an I/O error) when it is not given." },
    { "sector", CTL_INT, false, CTL_AT_NONE, .doc = "Only requests that touch this sector of 512 bytes; -1: all." },
    { "once", CTL_BOOL, false, CTL_AT_NONE, .doc = "The first request that it meets, and no other." },
    { "immediately", CTL_BOOL, false, CTL_AT_NONE, .doc = "The request fails at once, not in a later turn of its loop." },
    SIZE("x-delay-ns"),
    { "x-skip", CTL_SIZE, false, CTL_AT_NONE, .max = INT_MAX, .doc = "So many requests that it would meet pass first." },
    CTL_ARGS_END
};
static const struct ctl_arg debug_state_rows[] = {
    { "event", CTL_ENUM, true, CTL_AT_NONE, .of = &debug_event }, { "state", CTL_SIZE, false, CTL_AT_NONE, .max = INT_MAX, .doc = "The state in which the event must come; 0: any." },
    { "new_state", CTL_SIZE, true, CTL_AT_NONE, .max = INT_MAX, .doc = "The state from then on; it is 1 at first." }, CTL_ARGS_END
};
static const struct ctl_shape debug_error = { .name = "BlkdebugInjectErrorOptions", .rows = debug_error_rows }, debug_state = { .name = "BlkdebugSetStateOptions", .rows = debug_state_rows };
static const struct ctl_arg blkdebug_rows[] = {
    { "image", CTL_ALT, true, CTL_AT_NONE, .of = &ctl_ref_shape },
    { "config", CTL_STR, false, CTL_AT_NONE, .doc = "A file of rules, which come before those given here; its form is told in byre(1)." },
    { "inject-error", CTL_STRUCT, false, CTL_AT_NONE, .of = &debug_error, .list = true, .doc = "What fails, and when." },
    { "set-state", CTL_STRUCT, false, CTL_AT_NONE, .of = &debug_state, .list = true, .doc = "What changes the state that rules go by." },
    SIZE("align"), SIZE("max-transfer"), SIZE("opt-write-zero"), SIZE("max-write-zero"), SIZE("opt-discard"), SIZE("max-discard"),
    { "take-child-perms", CTL_STR, false, CTL_AT_NONE, .list = true, .doc = "What it asks of the image, beside what others ask through it." },
    { "unshare-child-perms", CTL_STR, false, CTL_AT_NONE, .list = true, .doc = "What it lets nobody else do to the image." }, CTL_ARGS_END
};
static const struct ctl_arg preallocate_rows[] = { FILE_ROW, SIZE("prealloc-align"), SIZE("prealloc-size"), CTL_ARGS_END };
static const struct ctl_arg compress_rows[] = { FILE_ROW, CTL_ARGS_END };
static const struct ctl_arg cor_rows[] = {
    FILE_ROW, { "bottom", CTL_STR, false, CTL_AT_NONE, .doc = "The lowest node from which something is copied; the whole chain when it is not given." }, CTL_ARGS_END
};
static const struct ctl_arg bitmap_rows[] = { { "node", CTL_STR, true, CTL_AT_NONE }, { "name", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape bitmap = { .name = "BlockDirtyBitmap", .rows = bitmap_rows };
static const struct ctl_arg cbw_rows[] = {
    FILE_ROW,
    { "target", CTL_ALT, true, CTL_AT_NONE, .of = &ctl_ref_shape, .doc = "Where what is about to be overwritten goes first." },
    { "bitmap", CTL_STRUCT, false, CTL_AT_NONE, .of = &bitmap, .doc = "Only what it holds now is kept." },
    { "on-cbw-error", CTL_ENUM, false, CTL_AT_NONE, .of = &cbw_error, .doc = "What becomes of it when the target fails; break-guest-write unless given: the write." },
    { "cbw-timeout", CTL_SIZE, false, CTL_AT_NONE, .max = UINT32_MAX, .doc = "Seconds that a write may wait for the target, then it has failed; 0: no limit." },
    { "min-cluster-size", CTL_SIZE, false, CTL_AT_NONE, .max = UINT32_MAX, .doc = "A power of two: no less is copied at once." },
    CTL_ARGS_END
};
static const struct ctl_arg view_rows[] = { FILE_ROW, CTL_ARGS_END };
static const struct ctl_arg throttle_rows[] = { FILE_ROW, { "throttle-group", CTL_STR, true, CTL_AT_NONE, .doc = "Whose budget it shares." }, CTL_ARGS_END };

const struct ctl_case ctl_blockdev_cases[] = {
    { "blkdebug", blkdebug_rows }, { "compress", compress_rows }, { "copy-before-write", cbw_rows }, { "snapshot-access", view_rows }, { "copy-on-read", cor_rows },
    { "preallocate", preallocate_rows }, { "throttle", throttle_rows }, { "file", file_rows }, { "host_device", file_rows }, { "luks", luks_rows }, { "nbd", nbd_rows }, { "null-aio", null_rows },
    { "null-co", null_rows }, { "qcow2", qcow2_rows },
    { "qed", qed_rows }, { "raw", raw_rows }, { NULL, NULL }
};
