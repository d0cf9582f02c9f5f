/* SPDX-License-Identifier: MIT
 *
 * backup_copy.c: the copy engine beside a filter copy-before-write.
 *
 * Purpose     Claims pieces for copy_run, in a coroutine of its own: a target that stands still keeps a job from its end no longer than the job likes.
 * Owns        struct backup_copy, until it is dropped and has ended; its attachments to source and target.
 * Invariants  C1  A piece is read, then claimed; what is todo then is old (cbw.h B2), and is written, all of it, before the claim ends.
 *             C2  When it was left alone it touches the job no more.
 * Order       None: the job flushes.
 * Concurrency Home loop, but for the pieces of copy_run.
 * Failure     What failed is todo again; copy_run has ended.
 * Tests       ../sim/backup_test.c, tests/daemon/backup_test.py
 */
#include "job/backup_copy.h"

#include <stdlib.h>
#include <string.h>

#include "copy/latency.h"
#include "graph/runtime.h"

#define BYTES_MAX (UINT64_C(128) << 20)      /* of buffers (FEATURES 9.066) */
#define ZERO_EXTENTS_MAX 64

struct backup_copy {
    struct job *job;
    struct co_group *left_in;                /* where it is since it was left alone */
    struct cbw *cb;
    struct graph_node *reader, *door;        /* attachments */
    struct copy_part part;
    struct copy_claims claims;
    struct copy_job cj;
    struct cbw_claim claim[COPY_WORKERS_MAX];
    struct dirty *written;                   /* NULL: nothing is to be discarded */
    bool running, left, in_step, looked;
    bool all;                                /* the whole disk goes to the target */
    struct co_mutex one;
    struct copy_result result;
    int error;
};

/* ---- claims ---- */

static int on_take(struct co *co, void *arg, const struct copy_taken *t)
{
    struct backup_copy *bc = arg;
    return bc->left ? -ECANCELED : cbw_claim(co, bc->cb, &bc->claim[t->slot], t->pos, t->len);
}

static bool on_wanted(void *arg, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    return cbw_next(((struct backup_copy *)arg)->cb, from, ret_start, ret_end);
}

static void on_give(void *arg, const struct copy_taken *t, bool written)
{
    struct backup_copy *bc = arg;
    cbw_claim_end(&bc->claim[t->slot], written);
    if (written && bc->written)
        dirty_set(bc->written, t->pos, t->len);
}

/* ---- the job's wishes ---- */

static int on_step(struct co *co, void *arg, uint64_t bytes)
{
    struct backup_copy *bc = arg;
    co_lock(co, &bc->one);
    int r = -ECANCELED;
    if (!bc->left) {
        bc->in_step = true;
        r = bytes ? job_spend(co, bc->job, bytes) : job_point(co, bc->job);
        bc->in_step = false;
        co_wake_all(&bc->job->wake);         /* C2: nobody has left it in here */
    }
    co_unlock(&bc->one);
    return r;
}

static uint64_t on_speed(void *arg)
{
    const struct backup_copy *bc = arg;
    return bc->left ? 0 : bc->job->speed;
}

/* ---- life ---- */

static bool is_all_zero(struct co *co, struct graph_node *n)
{
    uint64_t at = 0, end = graph_length(n);
    const struct graph_node *image = graph_skip_filters(n);
    if (!image || graph_backing(image))
        return false;
    for (unsigned i = 0; i < ZERO_EXTENTS_MAX && at < end; i++) {
        struct graph_status st;
        if (graph_status(co, n, NULL, at, end - at, &st) || !st.zero)
            return false;
        at += st.len;
    }
    return at >= end;
}

static uint32_t piece_for(const struct job_backup_opts *o)
{
    uint32_t piece = COPY_PIECE_DEFAULT;
    while (o->max_chunk && piece > o->max_chunk && piece > 65536)
        piece /= 2;
    return piece;
}

static void fill_job(struct backup_copy *bc, const struct job_backup_opts *o)
{
    uint64_t granule = cbw_granule(bc->cb), piece = max_u64(piece_for(o), granule), fit = max_u64(BYTES_MAX / piece, 1);
    bc->all = o->sync == JOB_BACKUP_FULL;
    unsigned workers = o->workers ? (unsigned)min_u64(o->workers, COPY_WORKERS_MAX) : COPY_PARALLEL_MAX;
    bc->claims = (struct copy_claims){ .unit = granule, .door = bc->door, .take = on_take, .wanted = on_wanted, .give = on_give, .arg = bc };
    bc->part = (struct copy_part){ bc->reader, 0, graph_length(o->source) };
    bc->cj = (struct copy_job){
        .parts = &bc->part, .part_count = 1, .target = o->target, .select = on_wanted, .select_arg = bc, .claims = &bc->claims,
        .flags = COPY_OUT_OF_ORDER | COPY_NO_FLUSH | (o->compress ? COPY_COMPRESS : o->copy_range ? COPY_OFFLOAD : 0),
        .workers = (unsigned)min_u64(workers, fit), .piece_bytes = piece_for(o), .min_sparse = job_grain(graph_image(o->target)->granule),
        .hooks = { .step = on_step, .speed = on_speed, .arg = bc } };
}

static void copy_free(struct co *co, struct backup_copy *bc)
{
    struct co_group *left_in = bc->left_in;
    if (bc->door)
        (void)graph_detach(co, bc->door);    /* whoever promised durability has flushed */
    if (bc->reader)
        (void)graph_detach(co, bc->reader);
    copy_latency_unref(bc->cj.hooks.latency);
    dirty_free(bc->written);
    cbw_unref(bc->cb);
    free(bc);
    if (left_in)
        co_group_leave(left_in);
}

static int attach(struct backup_copy *bc, const struct job_backup_opts *o, const char *who, struct byre_err *err)
{
    struct graph_attach_opts from = { who, STOR_PERM_READ, STOR_PERM_ALL, false };
    const struct graph_attach_opts to = { who, STOR_PERM_WRITE_UNCHANGED, STOR_PERM_ALL, true };
    if (o->discard_source && !graph_is_snapshot_access(o->source)) {
        from.perm |= STOR_PERM_WRITE;
        from.shared = STOR_PERM_READ;        /* what others have written since would go, too */
    }
    int r = graph_attach(o->source, &from, &bc->reader, err);
    return r ? r : graph_attach(o->target, &to, &bc->door, err);
}

int backup_copy_new(struct co *co, const struct job_backup_opts *o, struct cbw *cb, struct backup_copy **ret_bc, struct byre_err *err)
{
    struct backup_copy *bc = calloc(1, sizeof *bc);
    if (!bc)
        return byre_fail(err, NOMEM, "no memory for a backup");
    cbw_ref(cb);
    bc->cb = cb;
    int r = attach(bc, o, o->job.id ? o->job.id : "backup", err);
    if (!r && o->discard_source && dirty_new(graph_length(o->source), (unsigned)__builtin_ctzll(cbw_granule(cb)), NULL, &bc->written))
        r = byre_fail(err, NOMEM, "no memory for a backup");
    if (r) {
        copy_free(co, bc);
        return r;
    }
    fill_job(bc, o);
    *ret_bc = bc;
    return 0;
}

static void copy_main(struct co *co, void *arg)
{
    struct backup_copy *bc = arg;
    struct byre_err why = { 0 };
    if (!bc->looked && bc->all && is_all_zero(co, bc->cj.target))
        bc->cj.flags |= COPY_TARGET_ZERO;    /* where it is todo still: nobody else has written there */
    bc->looked = true;
    bc->error = copy_run(co, &bc->cj, &bc->result, &why);
    bc->running = false;
    if (bc->left)
        copy_free(co, bc);
    else
        co_wake_all(&bc->job->wake);
}

int backup_copy_begin(struct backup_copy *bc, struct job *job, struct byre_err *err)
{
    bc->job = job;
    if (!bc->cj.hooks.latency)
        bc->cj.hooks.latency = copy_latency_ref(job->latency);      /* it may outlive the job */
    bc->running = true;
    if (rt_spawn(job->jobs->home, copy_main, bc)) {
        bc->running = false;
        return byre_fail(err, NOMEM, "no memory for a backup");
    }
    return 0;
}

bool backup_copy_is_away(const struct backup_copy *bc) { return !bc->running || !bc->in_step; }
bool backup_copy_has_ended(const struct backup_copy *bc) { return !bc->running; }

struct backup_failure backup_copy_result(const struct backup_copy *bc)
{
    return (struct backup_failure){ bc->error, bc->result.fail_read, bc->result.fail_off };
}

bool backup_copy_written(struct backup_copy *bc, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    return bc->written && from < bc->written->size && dirty_next(bc->written, from, bc->written->size, ret_start, ret_end);
}

uint64_t backup_copy_written_bytes(const struct backup_copy *bc) { return bc->written ? dirty_count(bc->written) : 0; }

void backup_copy_forget_written(struct backup_copy *bc, uint64_t start, uint64_t end)
{
    int r = dirty_clear(bc->written, start, end - start);
    (void)r;                                 /* no memory: it is discarded once more */
}

struct graph_node *backup_copy_reader(const struct backup_copy *bc) { return bc->reader; }

void backup_copy_drop(struct co *co, struct backup_copy *bc, struct co_group *left_in)
{
    if (!bc->running) {
        copy_free(co, bc);
        return;
    }
    bc->left = true;
    bc->left_in = left_in;
    co_group_enter(left_in);
}
