/* SPDX-License-Identifier: MIT
 *
 * story_judge.c: is what a power cut has left what was promised?
 *
 * Purpose     In a state: each image is sound, or leaks; the disk opens by what headers name, from the file where the operator would look for it, and each
 *             sector holds what guests were promised (P2, J1, J2, J3, J5); what a backup's event has called a copy is one (J4); what a
 *             bitmap does not say is in the backup that it began with (P4). In some, the
 *             interrupted work is done again: the disk shows the same, also by what headers name then. And in some of those the power fails a
 *             second time in the middle of that, or of the opening that follows the first cut: the same promises hold.
 * Owns        Nothing: files are as before when it returns.
 * Invariants  None.
 * Concurrency One thread.
 * Failure     -1, and why in the story, with the state's text.
 * Tests       tests/sim/stories_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/dirty.h"
#include "job/live_commit.h"
#include "job/mirror.h"
#include "job/stream.h"
#include "sim/story.h"
#include "sim/workload.h"

#define AGAIN_ONE_IN 24u
#define SECOND_CUTS 4u                   /* of each state in which the work is done again */
#define AGAIN_GEN 7u

static uint8_t bytes[STORY_SECTORS_MAX * SIM_SECTOR] __attribute__((aligned(4096)));

/* moved: the stamp at which the job that is done again had moved the disk to `home`, which was `from` before; SIM_NEVER: it has not. */
struct judging { struct story *st; uint64_t cut, number, moved; unsigned home, from; uint32_t gens[STORY_SECTORS_MAX]; uint64_t sectors; };

/* ---- images ---- */

static int open_file(struct co *co, struct story *st, struct graph *g, unsigned file, bool read_only, struct graph_node **ret)
{
    struct byre_err err = { 0 };
    const struct graph_open_opts o = { .filename = story_name(file), .format = story_format(st, file)->name, .read_only = read_only, .discard = true };
    int r = graph_open(co, g, &o, ret, &err);
    return r ? story_wrong(st, "%s does not open: %s", story_name(file), err.text) : 0;
}

static int check_image(struct co *co, struct story *st, unsigned file)
{
    struct byre_err err = { 0 };
    struct fmt_check_result res = { 0 };
    const struct fmt_ops *ops = story_format(st, file);
    struct fmt_image *im;
    struct stor *s;
    int r = sim_open(co, st->w, story_name(file), true, &s);
    if (r)
        return r;
    r = ops->open(co, s, &(struct fmt_open_opts){ .check_mode = true, .read_only = true }, &im, &err);
    if (r) {
        stor_close(co, s);
        return story_wrong(st, "%s does not open to be checked: %s", story_name(file), err.text);
    }
    r = im->ops->check(co, im, &(struct fmt_check_opts){ 0 }, &res, &err);
    (void)!im->ops->close(co, im);
    bool marked = st->how[file].lazy_refcounts || st->how[file].table_size;      /* counts may be late; the image says so */
    if (r || (res.corruptions && !marked) || res.check_errors)
        return story_wrong(st, "%s: %" PRIu64 " corruptions, %" PRIu64 " errors %s", story_name(file), res.corruptions, res.check_errors, err.text);
    return 0;
}

static int check_images(struct co *co, struct story *st)
{
    int r = 0;
    for (unsigned i = 0; i < STORY_FILES && r == 0; i++)
        if (story_format(st, i) != &fmt_raw_ops && sim_seen_add(st->sound, story_disk(st, i)->sum))
            r = check_image(co, st, i);
    return r;
}

/* ---- the disk ---- */

static int read_all(struct co *co, struct judging *j, struct graph_node *n)
{
    struct iovec slot;
    uint64_t size = min_u64(graph_length(n), sizeof bytes);
    int r = graph_read(co, n, iov_one(&slot, bytes, size), 0);
    if (r)
        return story_wrong(j->st, "%s cannot be read: %s", graph_filename(n), strerror(-r));
    j->sectors = size / SIM_SECTOR;
    for (uint64_t s = 0; s < j->sectors; s++)
        j->gens[s] = sim_sector_gen(bytes + s * SIM_SECTOR, s);
    return 0;
}

static int judge_sectors(struct judging *j, const struct graph_node *n, uint64_t sectors)
{
    struct story *st = j->st;
    char legal[160];
    for (uint64_t s = 0; s < sectors; s++)
        if (!sim_model_allows(&st->model, s, j->gens[s])) {
            sim_model_describe(&st->model, s, legal, sizeof legal);
            return story_wrong(st, "sector %" PRIu64 " of the disk in %s holds %d, not one of %s", s, graph_filename(n), (int)j->gens[s], legal);
        }
    return 0;
}

static int judge_disk(struct co *co, struct judging *j, struct graph_node *n)
{
    struct story *st = j->st;
    int r = read_all(co, j, n);
    if (r == 0 && graph_length(n) != st->model.size && graph_length(n) != st->model.size_alt)
        return story_wrong(st, "%s is %" PRIu64 " bytes long, not %" PRIu64 " or %" PRIu64, graph_filename(n), graph_length(n), st->model.size, st->model.size_alt);
    return r ? r : judge_sectors(j, n, j->sectors);
}

/* S3 */
static int open_home(struct co *co, struct judging *j, struct graph *g, bool read_only, struct graph_node **ret)
{
    const struct story_event *e = &j->st->event[0];
    for (unsigned i = 1; i < j->st->events && j->st->event[i].stamp <= j->cut; i++)
        e = &j->st->event[i];
    j->home = e->home;
    if (e->maybe == STORY_FILES)
        return open_file(co, j->st, g, e->home, read_only, ret);
    int r = open_file(co, j->st, g, e->maybe, read_only, ret);
    if (r || graph_backing(*ret)) {
        j->home = e->maybe;
        return r;
    }
    (void)!graph_close(co, *ret);
    return open_file(co, j->st, g, e->home, read_only, ret);
}

/* ---- copies ---- */

static int judge_copy(struct co *co, struct judging *j, struct graph *g, const struct story_copy *c)
{
    struct graph_node *n;
    int r = open_file(co, j->st, g, c->file, true, &n);
    if (r)
        return r;
    r = read_all(co, j, n);
    (void)!graph_close(co, n);
    for (uint64_t s = 0; r == 0 && s < c->sectors; s++) {
        bool there = s < j->sectors && j->gens[s];
        bool good = !c->count[s] || (c->partial && !c->must[s] && !there);
        for (unsigned k = 0; k < c->count[s] && !good; k++)
            good = s < j->sectors && c->gens[s][k] == j->gens[s];
        if (!good)
            r = story_wrong(j->st, "sector %" PRIu64 " of the backup in %s holds %d, the disk held %d%s then", s, story_name(c->file), s < j->sectors ? (int)j->gens[s] : -2,
                            (int)c->gens[s][0], c->count[s] > 1 ? " or something else" : "");
    }
    return r;
}

static int judge_copies(struct co *co, struct judging *j, struct graph *g)
{
    struct story *st = j->st;
    int r = 0;
    for (unsigned i = 0; i < st->copies && r == 0; i++) {
        const struct story_copy *c = st->copy[i];
        struct hash128 key = story_disk(st, c->file)->sum;
        key.lo ^= hash_combine(i + 1, 99);
        if (c->from && c->from <= j->cut && j->cut < c->until && sim_seen_add(st->sound, key))
            r = judge_copy(co, j, g, c);
    }
    return r;
}

/* ---- a bitmap ---- */

/* j->gens: of the disk, which n is. */
static int judge_bitmap(struct co *co, struct judging *j, struct graph *g, struct graph_node *n)
{
    struct story *st = j->st;
    struct byre_err err = { 0 };
    struct fmt_bitmap *b = NULL;
    struct graph_node *copy;
    static struct judging there;
    const struct story_pair *p = &st->pair;
    if (!p->from || j->cut < p->from || j->cut >= p->until || graph_bitmap_find(co, n, STORY_BITMAP_NAME, &b, &err) || !b || b->inconsistent || b->bad)
        return 0;
    if (graph_bitmap_load(co, n, b, &err))
        return b->inconsistent ? 0 : story_wrong(st, "the bitmap of %s cannot be loaded: %s", story_name(j->home), err.text);
    int r = open_file(co, st, g, p->file, true, &copy);
    if (r)
        return r;
    there.st = st;
    r = read_all(co, &there, copy);
    (void)!graph_close(co, copy);
    st->bitmaps++;
    for (uint64_t s = 0; r == 0 && s < min_u64(j->sectors, there.sectors); s++)
        if (!dirty_test(b->bits, s * SIM_SECTOR) && there.gens[s] != j->gens[s])
            r = story_wrong(st, "the bitmap of %s does not say sector %" PRIu64 ", which is %d on the disk and %d in the backup", story_name(j->home), s, (int)j->gens[s],
                            (int)there.gens[s]);
    return r;
}

static int judge(struct co *co, void *arg)
{
    struct judging *j = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(j->st->w, co, &g, NULL);
    ASSERT(r == 0);
    r = check_images(co, j->st);
    if (r == 0)
        r = judge_copies(co, j, g);
    if (r == 0)
        r = open_home(co, j, g, true, &n);
    if (r == 0) {
        r = judge_disk(co, j, n);
        if (r == 0)
            r = judge_bitmap(co, j, g, n);
        (void)!graph_close(co, n);
    }
    graph_free(g);
    return r;
}

/* ---- the interrupted work again ---- */

static struct graph_node *layer_at(struct graph_node *n, unsigned depth)
{
    while (depth--)
        n = graph_backing(n);
    return n;
}

static int start_again(struct co *co, struct judging *j, struct jobs *js, struct graph_node *n, struct job **ret)
{
    struct byre_err err = { 0 };
    unsigned depth = 0;
    while (layer_at(n, depth + 1))
        depth++;
    if (!depth)
        return 1;
    unsigned low = 1 + (unsigned)(j->number / 4 % depth);
    const struct job_opts jo = { .id = "j", .keep_concluded = true };
    const struct job_mirror_opts m = { .source = n, .target = layer_at(n, low), .active_commit = true, .granularity = 4096, .buf_bytes = 1 << 20, .job = jo };
    const struct job_stream_opts s = { .node = n, .disk = n, .base = low < depth ? layer_at(n, low + 1) : NULL, .workers = 2, .job = jo };
    struct job_live_commit_opts lc = { .disk = n, .top = layer_at(n, 1), .base = layer_at(n, depth < 2 ? 1 : 2 + (low - 1) % (depth - 1)), .workers = 2,
                                             .drop_source = j->number % 3 == 0, .window = 2 << 20, .job = jo };
    unsigned kind = j->number % 4;
    bool stream = kind == 1 || depth < 2 || lc.base == lc.top;
    int r = kind == 0 ? job_mirror_start(co, js, &m, ret, &err) : stream ? job_stream_start(co, js, &s, ret, &err) : job_live_commit_start(co, js, &lc, ret, &err);
    if (r && kind && !stream && lc.drop_source) {            /* not every format can */
        lc.drop_source = false;
        r = job_live_commit_start(co, js, &lc, ret, &err);
    }
    if (r == -ENOTSUP)                   /* layers of a commit that drops its source are of use below its top alone */
        return 1;
    return r ? story_wrong(j->st, "what was interrupted cannot be done again: %s", err.text) : 0;
}

static int to_its_end(struct co *co, struct story *st, struct job *job)
{
    bool asked = false;
    while (job->status != JOB_CONCLUDED) {
        if (!asked && job->status == JOB_READY)
            asked = job_do(job, JOB_COMPLETE, NULL) == 0;
        (void)co_sleep(co, 10000);
    }
    return job->result ? story_wrong(st, "what was interrupted fails when it is done again: %s", job->err.text) : 0;
}

enum { AGAIN_WRITE = 1, AGAIN_FLUSH };   /* requests */

static void tell(struct story *st, enum sim_note_kind kind, uint32_t id, uint64_t at)
{
    struct sim_note *n = story_note(st, kind, id);
    n->gen = AGAIN_GEN;
    n->off = at * SIM_SECTOR;
    n->len = SIM_SECTOR;
}

/* A guest's sector, in half of the states with a flush. */
static int write_sector(struct co *co, struct judging *j, struct graph_node *disk, uint64_t at)
{
    struct iovec slot;
    sim_sector_fill(bytes, AGAIN_GEN, at);
    j->gens[at] = AGAIN_GEN;
    tell(j->st, SIM_N_WRITE, AGAIN_WRITE, at);
    int r = graph_write(co, disk, iov_one(&slot, bytes, SIM_SECTOR), at * SIM_SECTOR, 0);
    if (r == 0) {
        tell(j->st, SIM_N_ACK, AGAIN_WRITE, at);
        if (j->number % 2) {
            tell(j->st, SIM_N_FLUSH, AGAIN_FLUSH, at);
            r = graph_flush(co, disk);
            tell(j->st, SIM_N_FLUSH_ACK, AGAIN_FLUSH, at);
        }
    }
    return r ? story_wrong(j->st, "%s cannot be written: %s", story_name(j->home), strerror(-r)) : 0;
}

/* A sector is written, a job comes to its end, and the disk shows the same but for that. */
static int again_with(struct co *co, struct judging *j, struct graph_node *n)
{
    const struct graph_attach_opts ao = { "guest", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    struct byre_err err = { 0 };
    struct graph_node *disk;
    struct jobs js;
    struct job *job;
    int r = graph_attach(n, &ao, &disk, &err);
    if (r)
        return story_wrong(j->st, "%s cannot be used: %s", story_name(j->home), err.text);
    jobs_init(&js, co_loop(co));
    r = write_sector(co, j, disk, j->number % j->sectors);
    if (r == 0)
        r = start_again(co, j, &js, n, &job);
    if (r == 0)
        r = to_its_end(co, j->st, job);
    jobs_stop(co, &js);
    j->from = j->home;
    j->home = story_file_of(graph_attached(disk));
    j->moved = sim_stamp(j->st->w);
    int closed = graph_detach(co, disk);
    return r < 0 ? r : closed ? story_wrong(j->st, "the disk cannot be closed: %s", strerror(-closed)) : 0;
}

static int same_as_before(struct co *co, struct judging *j, struct graph *g)
{
    struct judging now = { .st = j->st };
    struct graph_node *n;
    int r = open_file(co, j->st, g, j->home, true, &n);
    if (r)
        return r;
    r = read_all(co, &now, n);
    (void)!graph_close(co, n);
    for (uint64_t s = 0; r == 0 && s < j->sectors; s++)
        if (now.gens[s] != j->gens[s])
            r = story_wrong(j->st, "sector %" PRIu64 " holds %d, and %d when the job has been done again", s, (int)j->gens[s], (int)now.gens[s]);
    for (unsigned i = 0; i < STORY_FILES && r == 0; i++)
        if (story_format(j->st, i) != &fmt_raw_ops)
            r = check_image(co, j->st, i);
    return r;
}

/* ---- the power fails a second time ---- */

static int judge_second(struct co *co, void *arg)
{
    struct judging *j = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(j->st->w, co, &g, NULL);
    ASSERT(r == 0);
    for (unsigned i = 0; i < STORY_FILES && r == 0; i++)
        if (story_format(j->st, i) != &fmt_raw_ops)
            r = check_image(co, j->st, i);
    if (r == 0)
        r = open_file(co, j->st, g, j->cut < j->moved ? j->from : j->home, true, &n);
    if (r == 0) {
        r = read_all(co, j, n);
        if (r == 0 && j->sectors < j->st->model.size / SIM_SECTOR)       /* an active commit may have moved it to a longer base */
            r = story_wrong(j->st, "%s is shorter than the disk was", graph_filename(n));
        if (r == 0)
            r = judge_sectors(j, n, j->st->model.size / SIM_SECTOR);
        (void)!graph_close(co, n);
    }
    graph_free(g);
    return r;
}

static int visit_second(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct judging *j = arg;
    (void)content;
    j->cut = x->cut;
    j->st->second++;
    int r = sim_run(j->st->w, judge_second, j, 0);
    if (r) {
        size_t at = strlen(j->st->why);
        snprintf(j->st->why + at, sizeof j->st->why - at, ", behind a second power cut; ");
    }
    return r;
}

/* found: of the state; done: of what was done in it, which is taken back. t: of that. */
static int cut_again(struct story *st, const struct judging *found, struct judging *done, const struct sim_trace *t)
{
    struct sim_model first = st->model;          /* judge_disk asks the story's */
    sim_mark m[STORY_FILES];
    int r = 0;
    for (unsigned k = 0; k < SECOND_CUTS && r == 0; k++) {
        for (unsigned i = 0; i < STORY_FILES; i++)
            m[i] = sim_disk_mark(story_disk(st, i));
        sim_model_init(&st->model, STORY_SECTORS_MAX, NULL);
        sim_model_start(&st->model, found->sectors * SIM_SECTOR, found->gens);
        struct sim_explorer x = { .w = st->w, .t = t, .m = &st->model, .seed = st->seed + found->number * SECOND_CUTS + k, .visit = visit_second, .arg = done, .nested = true };
        r = sim_explore_random(&x);
        sim_model_fini(&st->model);
        for (unsigned i = 0; i < STORY_FILES; i++)
            sim_disk_undo(story_disk(st, i), m[i]);
    }
    st->model = first;
    return r;
}

/* j: of a state that was judged, and found right. */
static int again(struct co *co, void *arg)
{
    struct judging *j = arg;
    struct graph *g;
    struct graph_node *n;
    int r = sim_graph_new(j->st->w, co, &g, NULL);
    ASSERT(r == 0);
    r = open_home(co, j, g, false, &n);
    if (r == 0) {
        r = again_with(co, j, n);
        int closed = graph_close(co, n);
        if (r == 0 && closed)
            r = story_wrong(j->st, "%s cannot be closed: %s", story_name(j->home), strerror(-closed));
    }
    if (r == 0)
        r = same_as_before(co, j, g);
    graph_free(g);
    return r;
}

/* ---- states ---- */

/* What was interrupted, and cuts in the middle of it. m: marks of the state, which is found as it was. */
static int done_again(struct story *st, struct judging *j, const sim_mark *m)
{
    static struct judging found;
    struct sim_trace all = st->trace;            /* notes and operations of this go to one of its own */
    st->again++;
    j->number /= AGAIN_ONE_IN;
    j->moved = SIM_NEVER;
    found = *j;
    sim_trace_init(&st->trace);
    st->w->trace = &st->trace;
    int r = sim_run(st->w, again, j, 0);
    st->w->trace = NULL;
    for (unsigned i = 0; i < STORY_FILES; i++)
        sim_disk_undo(story_disk(st, i), m[i]);
    if (r == 0 && found.sectors * SIM_SECTOR == st->model.size)
        r = cut_again(st, &found, j, &st->trace);
    sim_trace_fini(&st->trace);
    st->trace = all;
    return r;
}

static int judge_state(struct story *st, uint64_t cut)
{
    sim_mark m[STORY_FILES];
    struct judging j = { .st = st, .cut = cut, .number = st->states++ };
    for (unsigned i = 0; i < STORY_FILES; i++)
        m[i] = sim_disk_mark(story_disk(st, i));
    int r = sim_run(st->w, judge, &j, 0);
    if (r == 0 && j.number % AGAIN_ONE_IN == 0)
        r = done_again(st, &j, m);
    if (r == -EDEADLK || r == -ETIME)
        r = story_wrong(st, "the judge hangs");
    for (unsigned i = 0; i < STORY_FILES; i++)
        sim_disk_undo(story_disk(st, i), m[i]);
    return r;
}

static int visit(void *arg, struct sim_explorer *x, struct hash128 content)
{
    struct story *st = arg;
    (void)content;
    st->w->direct = true;
    int r = judge_state(st, x->cut);
    if (r) {
        size_t at = strlen(st->why);
        if (at + 3 < sizeof st->why) {
            memcpy(st->why + at, "; ", 3);
            sim_state_text(x, st->why + at + 2, sizeof st->why - at - 2);
        }
    }
    return r;
}

static void start_model(struct story *st) { sim_model_start(&st->model, STORY_SECTORS * SIM_SECTOR, st->first_gens); }

int story_judge_end(struct story *st)
{
    start_model(st);
    for (size_t i = 0; i < st->trace.note_count; i++)
        sim_model_apply(&st->model, &st->trace.notes[i]);
    for (unsigned i = 0; i < STORY_FILES; i++)
        sim_disk_set_hashing(story_disk(st, i), true);
    int r = judge_state(st, SIM_NEVER - 1);
    for (unsigned i = 0; i < STORY_FILES; i++)
        sim_disk_set_hashing(story_disk(st, i), false);
    return r;
}

static struct sim_explorer explorer(struct story *st)
{
    start_model(st);
    story_put(st);
    return (struct sim_explorer){ .w = st->w, .t = &st->trace, .m = &st->model, .seed = st->seed, .visit = visit, .arg = st };
}

int story_judge_cuts(struct story *st, unsigned one_in, unsigned each)
{
    struct sim_explorer x = explorer(st);
    return sim_explore_some(&x, one_in, each);
}

int story_judge_one(struct story *st, const char *text)
{
    struct sim_explorer x = explorer(st);
    int r = sim_explore_one(&x, text);
    return r == -EINVAL && !st->why[0] ? story_wrong(st, "the trace has no such state") : r;
}
