/* SPDX-License-Identifier: MIT
 *
 * cmd_create.c: blockdev-create and x-blockdev-amend (FEATURES 1.147, 8.012, 9.018).
 *
 * Purpose      What their options look like, for the decoder, introspection and the reference page; and the start of a job. What the options mean
 *              is said by the rows of fmt/create_rows.h alone.
 * Owns         constant tables
 * Invariants   I1 each option is one of the rows of its format, by create_opt_row; bounds and most words are not repeated here
 * Concurrency  home loop
 * Failure      as ctl_priv.h: only what can be seen in the words of a command; the rest is told by the job
 * Tests        tests/daemon/blockdev_create_test.py
 */
#include "ctl/ctl_priv.h"
#include "job/create.h"

#define STR(name_, doc_) { name_, CTL_STR, false, CTL_AT_NONE, .doc = doc_ }
#define SIZE(name_, doc_) { name_, CTL_SIZE, false, CTL_AT_NONE, .doc = doc_ }
#define BOOL(name_, doc_) { name_, CTL_BOOL, false, CTL_AT_NONE, .doc = doc_ }
#define REF(name_, must, doc_) { name_, CTL_ALT, must, CTL_AT_NONE, .of = &ctl_ref_shape, .doc = doc_ }
#define SIZE_ROW { "size", CTL_SIZE, true, CTL_AT_NONE, .doc = "Bytes of the disk." }

static const char *const prealloc_words[] = { "off", "metadata", "falloc", "full", NULL }, *const version_words[] = { "v2", "v3", NULL };
static const char *const compression_words[] = { "zlib", "zstd", NULL }, *const crypt_words[] = { "luks", NULL }, *const state_words[] = { "active", "inactive", NULL };
static const struct ctl_shape prealloc = { .name = "PreallocMode", .words = prealloc_words };
static const struct ctl_shape version = { .name = "BlockdevQcow2Version", .words = version_words };
static const struct ctl_shape compression = { .name = "Qcow2CompressionType", .words = compression_words };
static const struct ctl_shape crypt = { .name = "QCryptoBlockFormat", .words = crypt_words };
static const struct ctl_shape state = { .name = "QCryptoBlockLUKSKeyslotState", .words = state_words };
/* What an image may record as the format of its backing file. */
static const char *const format_words[] = { "bochs", "cloop", "dmg", "file", "host_device", "http", "https", "luks", "nbd", "parallels", "qcow", "qcow2", "qed", "raw",
                                            "ssh", "vdi", "vhdx", "vmdk", "vpc", NULL };
static const struct ctl_shape format = { .name = "BlockdevDriver", .words = format_words };

/* ---- encryption ---- */
#define CRYPT_ROWS                                                                                                               \
    STR("key-secret", "The secret with the passphrase."), STR("cipher-alg", NULL), STR("cipher-mode", NULL), STR("ivgen-alg", NULL),   \
    STR("ivgen-hash-alg", NULL), STR("hash-alg", NULL), SIZE("iter-time", "Milliseconds of work that a passphrase costs; 2000 when it is not given.")
static const struct ctl_arg crypt_rows[] = { CRYPT_ROWS, CTL_ARGS_END };
static const struct ctl_case crypt_cases[] = { { "luks", crypt_rows }, { NULL, NULL } };
static const struct ctl_arg encrypt_rows[] = { { "format", CTL_ENUM, true, CTL_AT_NONE, .of = &crypt }, CTL_ARGS_END };
static const struct ctl_shape encrypt = { .name = "QCryptoBlockCreateOptions", .rows = encrypt_rows, .tag = "format", .cases = crypt_cases };

/* ---- what is made ---- */
#define PREALLOC_ROW { "preallocation", CTL_ENUM, false, CTL_AT_NONE, .of = &prealloc, .doc = "What is allocated at once; off when it is not given." }
#define BACKING_ROWS                                                                                                             \
    STR("backing-file", "What the image records as its backing file; it is not looked at."),                                      \
    { "backing-fmt", CTL_ENUM, false, CTL_AT_NONE, .of = &format, .doc = "The format of that." }

static const struct ctl_arg file_rows[] = {
    { "filename", CTL_STR, true, CTL_AT_NONE, .doc = "The file that is made, or emptied." }, SIZE_ROW, PREALLOC_ROW, BOOL("nocow", NULL), SIZE("extent-size-hint", NULL), CTL_ARGS_END
};
static const struct ctl_arg luks_rows[] = {
    CRYPT_ROWS, REF("file", false, "Where the image is made, or its disk alone if there is a header. Without one there is only a header."),
    REF("header", false, "Where its header is to be, if that is another file."), SIZE_ROW, PREALLOC_ROW, CTL_ARGS_END
};
static const struct ctl_arg qcow2_rows[] = {
    REF("file", true, "Where the image is made."), REF("data-file", false, "Where its guest data is to lie, if that is another file."), BOOL("data-file-raw", NULL),
    BOOL("extended-l2", NULL), SIZE_ROW, { "version", CTL_ENUM, false, CTL_AT_NONE, .of = &version }, BACKING_ROWS,
    { "encrypt", CTL_STRUCT, false, CTL_AT_NONE, .of = &encrypt }, SIZE("cluster-size", NULL), PREALLOC_ROW, BOOL("lazy-refcounts", NULL), SIZE("refcount-bits", NULL),
    { "compression-type", CTL_ENUM, false, CTL_AT_NONE, .of = &compression }, CTL_ARGS_END
};
static const struct ctl_arg qed_rows[] = {
    REF("file", true, "Where the image is made."), SIZE_ROW, BACKING_ROWS, SIZE("cluster-size", NULL), SIZE("table-size", NULL), CTL_ARGS_END
};
static const struct ctl_case create_cases[] = { { "file", file_rows }, { "luks", luks_rows }, { "qcow2", qcow2_rows }, { "qed", qed_rows }, { NULL, NULL } };
static const char *const create_words[] = { "file", "luks", "qcow2", "qed", NULL };
static const struct ctl_shape create_driver = { .name = "BlockdevDriver", .words = create_words };
static const struct ctl_arg driver_rows[] = { { "driver", CTL_ENUM, true, CTL_AT_NONE, .of = &create_driver }, CTL_ARGS_END };
static const struct ctl_shape create_shape = { .name = "BlockdevCreateOptions", .rows = driver_rows, .tag = "driver", .cases = create_cases };

struct create_args { const char *job_id; json_t *options; };
static const struct ctl_arg create_rows[] = {
    { "job-id", CTL_STR, true, CTL_AT(struct create_args, job_id) },
    { "options", CTL_ANY, true, CTL_AT(struct create_args, options), .of = &create_shape, .doc = "What is made, and where." },
    CTL_ARGS_END
};

static int run_create(struct co *co, struct ctl_call *call)
{
    const struct create_args *a = call->args;
    struct job *job;
    const struct job_create_opts o = { .graph = call->c->env.graph, .options = a->options, .job.id = a->job_id };
    if (!call->c->env.jobs)
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no jobs here");
    return job_create_start(call->c->env.jobs, &o, &job, &call->err);
}

/* ---- what is changed ---- */
#define KEY_ROWS                                                                                                                 \
    { "state", CTL_ENUM, true, CTL_AT_NONE, .of = &state, .doc = "active: a key slot gets new-secret; inactive: key slots are erased." }, \
    STR("new-secret", NULL), STR("old-secret", "Of the key slots that it opens."), SIZE("keyslot", "The key slot, by its number."),       \
    STR("secret", "Opens a key slot; the image's own when it is not given."),                                                    \
    SIZE("iter-time", "Milliseconds of work that the new passphrase costs.")
static const struct ctl_arg key_rows[] = { KEY_ROWS, CTL_ARGS_END };
static const struct ctl_case key_cases[] = { { "luks", key_rows }, { NULL, NULL } };
static const struct ctl_shape amend_encrypt = { .name = "QCryptoBlockAmendOptions", .rows = encrypt_rows, .tag = "format", .cases = key_cases };
static const struct ctl_arg amend_qcow2_rows[] = { { "encrypt", CTL_STRUCT, false, CTL_AT_NONE, .of = &amend_encrypt }, CTL_ARGS_END };
static const struct ctl_case amend_cases[] = { { "luks", key_rows }, { "qcow2", amend_qcow2_rows }, { NULL, NULL } };
static const char *const amend_words[] = { "luks", "qcow2", NULL };
static const struct ctl_shape amend_driver = { .name = "BlockdevDriver", .words = amend_words };
static const struct ctl_arg amend_driver_rows[] = { { "driver", CTL_ENUM, true, CTL_AT_NONE, .of = &amend_driver }, CTL_ARGS_END };
static const struct ctl_shape amend_shape = { .name = "BlockdevAmendOptions", .rows = amend_driver_rows, .tag = "driver", .cases = amend_cases };

struct amend_args { const char *job_id, *node_name; json_t *options; bool force; };
static const struct ctl_arg amend_rows[] = {
    { "job-id", CTL_STR, true, CTL_AT(struct amend_args, job_id) },
    { "node-name", CTL_STR, true, CTL_AT(struct amend_args, node_name) },
    { "options", CTL_ANY, true, CTL_AT(struct amend_args, options), .of = &amend_shape, .doc = "What becomes different. The driver must be the node's." },
    { "force", CTL_BOOL, false, CTL_AT(struct amend_args, force), .doc = "Also what may make the image unreadable for ever." },
    CTL_ARGS_END
};

static int do_amend(struct co *co, struct ctl_call *call)
{
    const struct amend_args *a = call->args;
    struct job *job;
    struct graph_node *n = ctl_node(call, a->node_name);
    if (!n)
        return call->err.code;
    if (!call->c->env.jobs)
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no jobs here");
    const struct job_amend_opts o = { .node = n, .options = a->options, .force = a->force, .job.id = a->job_id };
    return job_amend_start(call->c->env.jobs, &o, &job, &call->err);
}

static int run_amend(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_amend); }

const struct ctl_command ctl_cmd_blockdev_create = { "blockdev-create", create_rows, sizeof(struct create_args), run_create,
    .doc = "Makes an image in a node, or a file. What is wrong with the options is the error of the job, which stays until job-dismiss." };
const struct ctl_command ctl_cmd_blockdev_amend = { "x-blockdev-amend", amend_rows, sizeof(struct amend_args), run_amend,
    .doc = "Changes the key slots of an encrypted image while it is used. The job stays until job-dismiss." };
