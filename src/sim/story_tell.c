/* SPDX-License-Identifier: MIT
 *
 * story_tell.c: what an operator asks of a disk in use.
 *
 * Purpose     Letters become commands of the control protocol: which layer, which file, which job follows from how things are when a letter's turn comes.
 * Owns        Places of jobs, and what the copies that they make must hold.
 * Invariants  T1  A command may be refused, that changes nothing. A job that was not told to end, met no fault, and has nothing in its way, ends well.
 *             T2  A backup's copy is of some moment between its command and the answer (J4).
 * Concurrency The operator is one coroutine of the home loop.
 * Failure     -1, and why in the story.
 * Tests       tests/sim/stories_test.py
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "ctl/ctl.h"
#include "sim/story.h"

#define CHAIN_MAX 12u
#define END_NS UINT64_C(5000000000)
#define GUESTS_NS UINT64_C(150000000)     /* then guests end: a mirror that is slower than they are never gets ready */

/* ---- how things are ---- */

struct graph_node *story_top(const struct story *st) { return graph_skip_filters(graph_attached(st->disk)); }

struct chain { struct graph_node *node[CHAIN_MAX]; unsigned count; };

static struct chain chain_of(const struct story *st)
{
    struct chain c = { .count = 0 };
    for (struct graph_node *n = story_top(st); n && c.count < CHAIN_MAX; n = graph_backing(n)) {
        n = graph_skip_filters(n);
        c.node[c.count++] = n;
    }
    return c;
}

int story_ask(struct co *co, struct story *st, const char *command, json_t *args)
{
    struct byre_err err = { 0 };
    ASSERT(args);
    char *text = st->loud ? json_dumps(args, JSON_COMPACT) : NULL;
    story_say(st, "%s %s", command, text ? text : "");
    int r = ctl_execute(co, st->ctl, &(struct ctl_request){ command, args, false }, NULL, &err);
    if (r)
        story_say(st, "    %s refused: %s", command, err.text);
    else
        story_say(st, "    %s done", command);
    json_decref(args);
    free(text);
    return r;
}

unsigned story_fresh_file(const struct story *st, uint32_t pick, bool image)
{
    for (unsigned k = 0; k < STORY_FILES; k++) {
        unsigned i = (pick + k) % STORY_FILES;
        if (!st->used[i] && !(image && story_format(st, i) == &fmt_raw_ops))
            return i;
    }
    return STORY_FILES;
}

int story_add_node(struct co *co, struct story *st, unsigned file, const struct graph_node *below, char *name)
{
    snprintf(name, 16, "n%u-%u", file, ++st->names);
    json_t *o = json_pack("{s:s,s:s,s:s,s:{s:s,s:s}}", "driver", story_format(st, file)->name, "node-name", name, "discard", "unmap", "file", "driver", "file", "filename", story_name(file));
    if (story_format(st, file) != &fmt_raw_ops)
        json_object_set_new(o, "backing", below ? json_string(graph_node_name(below)) : json_null());
    int r = story_ask(co, st, "blockdev-add", o);
    struct graph_node *n = r ? NULL : graph_find(st->g, name);
    if (n && graph_length(n) != graph_length(story_top(st)))
        r = story_ask(co, st, "block_resize", json_pack("{s:s,s:I}", "node-name", name, "size", (json_int_t)graph_length(story_top(st))));
    return r;
}

void story_drop_node(struct co *co, struct story *st, const char *name) { (void)!story_ask(co, st, "blockdev-del", json_pack("{s:s}", "node-name", name)); }

/* ---- jobs ---- */

struct story_job *story_place(struct story *st, const char *id)
{
    for (unsigned i = 0; i < STORY_JOBS && id; i++)
        if (!strcmp(st->job[i].id, id))
            return &st->job[i];
    return NULL;
}

static void part_is_whole(struct story *st, struct story_job *j);

/* Other jobs and snapshots have changed who uses what: told as late as that, but told. */
static bool in_the_way(const struct job *job) { return job->result == -EPERM || job->result == -EBUSY || job->result == -ENOTSUP; }

/* Is there another job, or has somebody opened a node beside the one that a job is about? */
static bool others(const struct story *st, const struct story_job *j)
{
    for (unsigned i = 0; i < STORY_JOBS; i++)
        if (&st->job[i] != j && st->job[i].id[0])
            return true;
    return st->names > 2;
}

static void concluded(struct story *st, struct story_job *j, const struct job *job)
{
    unsigned home = story_file_of(story_top(st));
    j->concluded = true;
    j->result = job->result;
    st->done[j->kind] += job->result == 0;
    st->ended_badly[j->kind] += job->result != 0;
    if (job->result == 0) {
        if (j->copy && !j->partial)
            j->copy->from = sim_stamp(st->w);
        if (j->begins_pair)
            st->pair.from = sim_stamp(st->w);
        part_is_whole(st, j);
        if ((j->kind == STORY_MIRROR || j->kind == STORY_ACTIVE) && home != st->event[st->events - 1].home)
            story_home(st, home, STORY_FILES);
        st->gone += j->goes && home == j->file;
        if (st->pair.from && home == st->pair.file)
            st->pair.until = min_u64(st->pair.until, sim_stamp(st->w));
        story_noted(st, story_note(st, SIM_N_EVENT, ++st->id));
    } else if (j->endless && job->result == -ECANCELED && j->asked && !st->w->faults.fired) {
        part_is_whole(st, j);
        story_noted(st, story_note(st, SIM_N_EVENT, ++st->id));
    } else if (!j->told_to_end && !st->w->faults.fired && !(in_the_way(job) && others(st, j))) {
        (void)story_wrong(st, "the job %s (%s) fails: %s", j->id, story_word(j->kind), job->err.text);
    }
}

void story_job_status(void *arg, const struct job *job)
{
    struct story *st = arg;
    struct story_job *j = story_place(st, job->id);
    if (job->id)
        story_say(st, "%s is %s%s%s", job->id, job_status_name(job->status), job->result ? ": " : "", job->result ? job->err.text : "");
    if (st->ctl_status)
        st->ctl_status(st->ctl_arg, job);
    if (j && job->status == JOB_CONCLUDED && !j->concluded)
        concluded(st, j, job);
}

void story_io_error(void *arg, const struct job *job, bool read, const char *what)
{
    struct story *st = arg;
    story_say(st, "%s: a request fails, %s", job->id ? job->id : "", what);
    st->ctl_io_error(st->ctl_arg, job, read, what);
}

/* Jobs that have ended give up their places. */
static void reap(struct co *co, struct story *st)
{
    for (unsigned i = 0; i < STORY_JOBS; i++)
        if (st->job[i].id[0] && st->job[i].concluded) {
            if (job_find(&st->js, st->job[i].id))
                (void)!story_ask(co, st, "job-dismiss", json_pack("{s:s}", "id", st->job[i].id));
            st->job[i] = (struct story_job){ .id = "" };
        }
}

struct story_job *story_new_job(struct co *co, struct story *st, enum story_kind kind)
{
    reap(co, st);
    story_keep_look(co, st);
    for (unsigned i = 0; i < STORY_JOBS; i++)
        if (!st->job[i].id[0]) {
            st->job[i] = (struct story_job){ .kind = kind };
            snprintf(st->job[i].id, sizeof st->job[i].id, "j%u", ++st->names);
            return &st->job[i];
        }
    return NULL;
}

json_t *story_job_options(json_t *o, const struct story_job *j, const struct story_letter *l)
{
    json_object_set_new(o, "job-id", json_string(j->id));
    json_object_set_new(o, "auto-dismiss", json_false());
    if (l->c % 5 == 0)
        json_object_set_new(o, "auto-finalize", json_false());
    if (l->c % 3 == 0)
        json_object_set_new(o, "speed", json_integer(4 << 20));
    return o;
}

int story_start(struct co *co, struct story *st, struct story_job *j, const char *command, json_t *o)
{
    int r = story_ask(co, st, command, o);
    if (r)
        j->id[0] = 0;
    return r;
}

/* ---- copies ---- */

static void may_hold(struct story_copy *c, uint64_t s, uint32_t gen)
{
    if (s >= c->sectors || !c->count[s])
        return;
    for (unsigned k = 0; k < c->count[s]; k++)
        if (c->gens[s][k] == gen)
            return;
    if (c->count[s] == STORY_VALUES - 1)
        c->count[s] = 0;
    else
        c->gens[s][c->count[s]++] = gen;
}

size_t story_copy_now(struct story *st, struct story_copy *c)
{
    uint64_t now = sim_stamp(st->w);
    c->sectors = st->now.size / SIM_SECTOR;
    for (uint64_t s = 0; s < c->sectors; s++) {
        uint32_t n = sim_model_list(&st->now, s, now, c->gens[s], STORY_VALUES);
        c->count[s] = (uint8_t)(n < STORY_VALUES ? n : 0);
    }
    return st->trace.note_count;
}

struct story_copy *story_copy_begin(struct story *st, unsigned file, size_t *ret_note)
{
    uint64_t now = sim_stamp(st->w);
    for (unsigned i = 0; i < st->copies; i++)
        if (st->copy[i]->file == file)
            st->copy[i]->until = min_u64(st->copy[i]->until, now);
    if (st->copies == STORY_COPIES_MAX)
        return NULL;
    struct story_copy *c = calloc(1, sizeof *c);
    ASSERT(c);
    *ret_note = story_copy_now(st, c);
    c->file = file;
    c->until = SIM_NEVER;
    st->copy[st->copies++] = c;
    return c;
}

void story_copy_taken(struct story *st, struct story_copy *c, size_t note)
{
    for (size_t i = note; c && i < st->trace.note_count; i++) {
        const struct sim_note *n = &st->trace.notes[i];
        if (n->kind != SIM_N_WRITE && n->kind != SIM_N_ZERO && n->kind != SIM_N_DISCARD)
            continue;
        for (uint64_t s = n->off / SIM_SECTOR; s < (n->off + n->len) / SIM_SECTOR; s++)
            may_hold(c, s, n->kind == SIM_N_WRITE ? n->gen : 0);
    }
}

/* ---- copies of a part ---- */

static bool acknowledged(const struct story *st, uint32_t id, size_t from, uint64_t until)
{
    for (size_t i = from; i < st->trace.note_count && st->trace.notes[i].stamp < until; i++)
        if (st->trace.notes[i].kind == SIM_N_ACK && st->trace.notes[i].id == id)
            return true;
    return false;
}

/* What was changed after the job had begun, and acknowledged before it was asked to end, is in its copy: of a backup as it was before, of a mirror as it is. */
static void part_is_whole(struct story *st, struct story_job *j)
{
    struct story_copy *c = j->copy;
    bool still = st->events == j->events;        /* else guests write to another node */
    if (!c || !j->partial || (j->kind == STORY_MIRROR && !still))
        return;
    if (j->kind == STORY_MIRROR)
        story_copy_taken(st, c, j->copy_note);
    c->from = sim_stamp(st->w);
    st->parts++;
    for (size_t i = j->note; i < st->trace.note_count && j->asked && still; i++) {
        const struct sim_note *n = &st->trace.notes[i];
        bool change = n->kind == SIM_N_WRITE || n->kind == SIM_N_ZERO || n->kind == SIM_N_DISCARD;
        if (change && acknowledged(st, n->id, i, j->asked))
            for (uint64_t s = n->off / SIM_SECTOR; s < min_u64((n->off + n->len) / SIM_SECTOR, c->sectors); s++)
                c->must[s] = true;
    }
}

/* The end of a job that does not come to one, or whose target nobody wants to go to: of a mirror that is ready, a good one. */
static int leave(struct co *co, struct story *st, struct story_job *j)
{
    if (!j->asked && j->kind == STORY_MIRROR) {
        j->copy = story_copy_begin(st, j->file, &j->copy_note);
        if (j->copy)
            j->copy->partial = true;
    }
    j->told_to_end = true;
    if (!j->asked)
        j->asked = sim_stamp(st->w);
    return story_ask(co, st, "block-job-cancel", json_pack("{s:s}", "device", j->id));
}

/* ---- letters: the chain ---- */

static int snapshot(struct co *co, struct story *st, const struct story_letter *l)
{
    char name[16];
    struct graph_node *top = story_top(st);
    unsigned file = story_fresh_file(st, l->a, true), old = story_file_of(top);
    if (file == STORY_FILES || chain_of(st).count >= CHAIN_MAX - 1)
        return 1;
    if (story_add_node(co, st, file, NULL, name))
        return 1;
    story_home(st, old, file);
    int r = story_ask(co, st, "blockdev-snapshot", json_pack("{s:s,s:s}", "node", graph_node_name(top), "overlay", name));
    story_home(st, story_file_of(story_top(st)), STORY_FILES);
    story_noted(st, story_note(st, SIM_N_EVENT, ++st->id));
    if (r)
        story_drop_node(co, st, name);
    st->used[file] = st->used[file] || r == 0 || st->w->faults.fired;
    st->done[STORY_SNAPSHOT] += r == 0;
    return r;
}

static int commit(struct co *co, struct story *st, const struct story_letter *l)
{
    struct chain c = chain_of(st);
    struct story_job *j = c.count > 2 ? story_new_job(co, st, STORY_COMMIT) : NULL;
    if (!j)
        return 1;
    unsigned top = 1 + l->a % (c.count - 2), base = top + 1 + l->b % (c.count - top - 1);
    json_t *o = json_pack("{s:s,s:s,s:s}", "device", graph_node_name(c.node[0]), "top-node", graph_node_name(c.node[top]), "base-node", graph_node_name(c.node[base]));
    if (l->c % 4 == 1)
        json_object_set_new(o, "drop-source", json_true());
    return story_start(co, st, j, "block-commit", story_job_options(o, j, l));
}

static int active(struct co *co, struct story *st, const struct story_letter *l)
{
    struct chain c = chain_of(st);
    unsigned base = c.count > 1 ? 1 + l->a % (c.count - 1) : 0;
    /* what lies behind the end of the disk in a longer base would be the disk's */
    struct story_job *j = base && graph_length(c.node[base]) <= st->now.size ? story_new_job(co, st, STORY_ACTIVE) : NULL;
    if (!j)
        return 1;
    json_t *o = json_pack("{s:s,s:s}", "device", graph_node_name(c.node[0]), "base-node", graph_node_name(c.node[base]));
    if (l->b % 2)
        json_object_set_new(o, "copy-mode", json_string("write-blocking"));
    return story_start(co, st, j, "block-commit", story_job_options(o, j, l));
}

static int stream(struct co *co, struct story *st, const struct story_letter *l)
{
    struct chain c = chain_of(st);
    struct story_job *j = c.count > 1 ? story_new_job(co, st, STORY_STREAM) : NULL;
    if (!j)
        return 1;
    unsigned at = l->a % 3 ? 0 : l->a / 3 % (c.count - 1), low = at + 1 + l->b % (c.count - at - 1);
    json_t *o = json_pack("{s:s}", "device", graph_node_name(c.node[at]));
    if (l->b / 16 % 4 == 1)
        json_object_set_new(o, "bottom", json_string(graph_node_name(c.node[low])));
    else if (l->b / 16 % 4 && low > at + 1)
        json_object_set_new(o, "base-node", json_string(graph_node_name(c.node[low])));
    return story_start(co, st, j, "block-stream", story_job_options(o, j, l));
}

/* The base of an active commit that cannot become shorter makes the job fail. */
static bool may_shrink(struct story *st)
{
    struct chain c = chain_of(st);
    bool can = true;
    for (unsigned i = 1; i < c.count; i++)
        can &= graph_format(c.node[i]) != &fmt_qed_ops;
    for (unsigned i = 0; i < STORY_JOBS; i++)
        if (st->job[i].id[0] && st->job[i].kind == STORY_ACTIVE && !can)
            return false;
    return true;
}

static int resize(struct co *co, struct story *st, const struct story_letter *l)
{
    uint64_t size = (STORY_SECTORS / 2 + l->a % (STORY_SECTORS_MAX - STORY_SECTORS / 2)) / 8 * 8 * SIM_SECTOR, old = st->now.size;
    if (size < old && !may_shrink(st))
        return 1;
    uint32_t id = ++st->id;
    struct sim_note *n = story_note(st, SIM_N_RESIZE, id);
    uint64_t asked = n->stamp;
    n->len = size;
    story_noted(st, n);
    int r = story_ask(co, st, "block_resize", json_pack("{s:s,s:I}", "node-name", graph_node_name(story_top(st)), "size", (json_int_t)size));
    bool done = r == 0 || (st->w->faults.fired && graph_length(story_top(st)) == size);      /* else it is done, but not tidied up */
    n = story_note(st, done ? SIM_N_RESIZE_ACK : st->w->faults.fired ? SIM_N_RESIZE_FAIL : SIM_N_RESIZE, id);
    n->len = done ? size : old;
    story_noted(st, n);
    st->done[STORY_RESIZE] += r == 0;
    if (done)
        st->pair.until = min_u64(st->pair.until, asked);
    return r;
}

/* ---- letters: copies ---- */

struct story_job *story_new_target(struct co *co, struct story *st, enum story_kind kind, uint32_t pick, unsigned *ret_file, char *name)
{
    unsigned file = *ret_file = story_fresh_file(st, pick, false);
    struct story_job *j = file < STORY_FILES ? story_new_job(co, st, kind) : NULL;
    if (!j)
        return NULL;
    st->used[file] = true;
    if (!story_add_node(co, st, file, NULL, name))
        return j;
    j->id[0] = 0;
    return NULL;
}

static int mirror_all(struct co *co, struct story *st, const struct story_letter *l)
{
    char name[16];
    unsigned file;
    struct story_job *j = story_new_target(co, st, STORY_MIRROR, l->a, &file, name);
    if (!j)
        return 1;
    static const char *const syncs[] = { "top", "none", "bitmap" }, *const bitmaps[] = { "b0", "b1", "b2" };
    unsigned sync = l->b / 16 % 6;
    json_t *o = json_pack("{s:s,s:s,s:s,s:i,s:i}", "device", graph_node_name(story_top(st)), "target", name, "sync", sync < 3 ? syncs[sync] : "full", "granularity", 4096 << l->b % 4,
                          "buf-size", 1 << 20);
    j->partial = sync < 3;
    j->file = file;
    if (sync == 2) {
        json_object_set_new(o, "bitmap", json_string(bitmaps[l->c % 3]));
        json_object_set_new(o, "bitmap-mode", json_string(l->c % 2 ? "never" : "on-success"));
    }
    if (l->b / 8 % 2 && !j->partial && story_format(st, file) == &fmt_qcow2_ops)
        json_object_set_new(o, "x-byre-carry-bitmaps", json_true());
    if (l->b / 4 % 2)
        json_object_set_new(o, "copy-mode", json_string("write-blocking"));
    int r = story_start(co, st, j, "blockdev-mirror", story_job_options(o, j, l));
    j->note = st->trace.note_count;
    j->events = st->events;
    if (r)
        story_drop_node(co, st, name);
    return r;
}

/* Images are as long as the disk was in the beginning. One that becomes longer over another one holds zeros there, which hide what lies below. */
static bool grew(const struct story *st) { return graph_length(story_top(st)) != STORY_SECTORS * SIM_SECTOR; }

/* An image in a file that nobody has used, which lies over the disk or over what lies below it, and says so. Its node is `name`. */
static unsigned overlay_over(struct co *co, struct story *st, uint32_t pick, struct graph_node *below, char *name)
{
    unsigned file = story_fresh_file(st, pick, true);
    if (file == STORY_FILES || !below || grew(st))
        return STORY_FILES;
    st->used[file] = true;
    int r = story_add_node(co, st, file, below, name);
    if (r == 0)
        r = story_ask(co, st, "change-backing-file", json_pack("{s:s,s:s,s:s}", "device", name, "image-node-name", name, "backing-file", graph_filename(graph_skip_filters(below))));
    if (r && graph_find(st->g, name))
        story_drop_node(co, st, name);
    return r ? STORY_FILES : file;
}

/* What is copied is a part of the disk, and what the target holds or has below it is the rest: the disk goes over to it. */
static int mirror_part(struct co *co, struct story *st, const struct story_letter *l, unsigned sync)
{
    static const char *const syncs[] = { "top", "none", "bitmap" }, *const modes[] = { "on-success", "never", "always" };
    struct graph_node *top = story_top(st);
    struct story_job *j = story_new_job(co, st, STORY_MIRROR);
    char name[16] = "";
    if (!j)
        return 1;
    if (sync == 2)
        snprintf(name, sizeof name, "%s", st->pair.node);
    unsigned file = sync == 2 ? st->pair.file : overlay_over(co, st, l->a, sync ? top : graph_backing(top), name);
    if (file < STORY_FILES && sync == 1)         /* it is opened by the command */
        story_drop_node(co, st, name);
    if (file == STORY_FILES || (sync == 1 && graph_find(st->g, name))) {
        j->id[0] = 0;
        return 1;
    }
    j->file = file;
    json_t *o = json_pack("{s:s,s:s,s:s,s:i,s:s}", "device", graph_node_name(top), "target", sync == 1 ? story_name(file) : name, "sync", syncs[sync], "granularity", 4096 << l->b % 4,
                          "copy-mode", l->b / 4 % 2 ? "write-blocking" : "background");
    if (sync == 2) {
        json_object_set_new(o, "bitmap", json_string(STORY_BITMAP_NAME));
        json_object_set_new(o, "bitmap-mode", json_string(modes[l->c % 3]));
        for (unsigned i = 0; i < st->copies; i++)        /* it goes on from the moment that it was a copy of */
            if (st->copy[i]->file == file)
                st->copy[i]->until = min_u64(st->copy[i]->until, sim_stamp(st->w));
    } else if (sync == 1) {
        json_object_set_new(o, "mode", json_string("existing"));
        json_object_set_new(o, "format", json_string(story_format(st, file)->name));
    }
    int r = story_start(co, st, j, sync == 1 ? "drive-mirror" : "blockdev-mirror", story_job_options(o, j, l));
    if (r && !sync)
        story_drop_node(co, st, name);
    j->goes = r == 0;
    return r;
}

static int mirror(struct co *co, struct story *st, const struct story_letter *l)
{
    unsigned part = st->keeps ? l->b / 128 % 6 : 6;
    if (part == 2 && (!st->pair.from || st->pair.until != SIM_NEVER))
        part = 6;
    return part < 3 ? mirror_part(co, st, l, part) : mirror_all(co, st, l);
}

static json_t *backup_options(const struct story *st, const struct story_letter *l, const char *target)
{
    json_t *o = json_pack("{s:s,s:s,s:s,s:{s:i}}", "device", graph_node_name(story_top(st)), "target", target, "sync", "full", "x-perf", "max-workers", 1 + (int)(l->b % 4));
    return o;
}

/* A node for a copy, in a file that nobody has used, and a job for it. */
struct making { struct story_job *j; struct story_copy *c; size_t note; char node[16]; };

static int make_ready(struct co *co, struct story *st, uint32_t pick, const struct graph_node *below, struct making *m)
{
    unsigned file = story_fresh_file(st, pick, below != NULL);
    m->j = file < STORY_FILES ? story_new_job(co, st, STORY_BACKUP) : NULL;
    if (!m->j)
        return 1;
    st->used[file] = true;
    if (story_add_node(co, st, file, below, m->node)) {
        m->j->id[0] = 0;
        return 1;
    }
    m->j->copy = m->c = story_copy_begin(st, file, &m->note);
    return 0;
}

/* What the bitmap says goes to the copy that it began with. */
static int increment(struct co *co, struct story *st, const struct story_letter *l)
{
    static const char *const modes[] = { "on-success", "never", "always" };
    struct story_job *j = story_new_job(co, st, STORY_BACKUP);
    if (!j || st->copies == STORY_COPIES_MAX)
        return 1;
    json_t *o = json_pack("{s:s,s:s,s:s,s:s,s:s}", "device", graph_node_name(story_top(st)), "target", st->pair.node, "sync", "bitmap", "bitmap", STORY_BITMAP_NAME, "bitmap-mode",
                          modes[l->c % 3]);
    size_t note = 0;
    unsigned before = st->copies;
    struct story_copy *c = j->copy = story_copy_begin(st, st->pair.file, &note);
    int r = story_start(co, st, j, "blockdev-backup", story_job_options(o, j, l));
    story_copy_taken(st, c, note);
    for (unsigned i = 0; i < before && r && !st->w->faults.fired; i++)       /* nothing has begun */
        if (st->copy[i]->file == c->file && i + 1 == before)
            st->copy[i]->until = SIM_NEVER;
    st->increments += r == 0;
    return r;
}

static int backup(struct co *co, struct story *st, const struct story_letter *l)
{
    if (st->pair.from && st->pair.until == SIM_NEVER && l->b / 4 % 4)
        return increment(co, st, l);
    struct making m;
    unsigned sync = l->b / 16 % (st->keeps ? 3 : 5);
    bool over = st->keeps && sync == 1 && !st->keep.on && !grew(st) && l->b / 128 % 4;        /* its target shows the disk of one moment */
    if (make_ready(co, st, l->a, over ? story_top(st) : NULL, &m))
        return 1;
    json_t *o = backup_options(st, l, m.node);
    m.j->partial = sync < 2;
    m.j->endless = sync == 1;
    if (m.c)
        m.c->partial = m.j->partial;
    if (m.j->partial)
        json_object_set_new(o, "sync", json_string(m.j->endless ? "none" : "top"));
    int r = story_start(co, st, m.j, "blockdev-backup", story_job_options(o, m.j, l));
    story_copy_taken(st, m.c, m.note);
    m.j->note = st->trace.note_count;
    m.j->events = st->events;
    if (r)
        story_drop_node(co, st, m.node);
    return r || !over || !m.c || st->keep.on ? r : story_keep_job(st, m.j, m.node, m.c);
}

/* ---- letters: bitmaps, transactions ---- */

static json_t *action(const char *type, json_t *data) { return json_pack("{s:s,s:o}", "type", type, "data", data); }

static int bitmap(struct co *co, struct story *st, const struct story_letter *l)
{
    static const char *const words[] = { "block-dirty-bitmap-add", "block-dirty-bitmap-add", "block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-enable",
                                         "block-dirty-bitmap-disable", "block-dirty-bitmap-merge" };
    static const char *const names[] = { "b0", "b1", "b2" };
    unsigned what = l->a % 7, which = l->b % 3;
    json_t *o = json_pack("{s:s,s:s}", "node", graph_node_name(story_top(st)), what == 6 ? "target" : "name", names[which]);
    if (what < 2) {
        json_object_set_new(o, "persistent", json_boolean(what));
        json_object_set_new(o, "granularity", json_integer(512 << l->c % 8));
    }
    if (what == 6)
        json_object_set_new(o, "bitmaps", json_pack("[s]", names[(which + 1) % 3]));
    int r = story_ask(co, st, words[what], o);
    st->done[STORY_BITMAP] += r == 0;
    return r;
}

/* A full backup, and a bitmap that begins with it. */
static int begin_pair(struct co *co, struct story *st, const struct story_letter *l)
{
    struct making m;
    if (st->pair.wanted || make_ready(co, st, l->b, NULL, &m))
        return 1;
    st->pair = (struct story_pair){ .wanted = true, .until = SIM_NEVER, .file = m.c ? m.c->file : 0 };
    memcpy(st->pair.node, m.node, sizeof m.node);
    m.j->begins_pair = m.c != NULL;
    json_t *add = json_pack("{s:s,s:s,s:b,s:i}", "node", graph_node_name(story_top(st)), "name", STORY_BITMAP_NAME, "persistent", l->c % 4 != 0, "granularity", 512 << l->c % 6);
    json_t *copy = story_job_options(backup_options(st, l, m.node), m.j, l);
    int r = story_ask(co, st, "transaction", json_pack("{s:[o,o]}", "actions", action("blockdev-backup", copy), action("block-dirty-bitmap-add", add)));
    story_copy_taken(st, m.c, m.note);
    if (r) {
        m.j->id[0] = 0;
        st->pair.until = 0;
        story_drop_node(co, st, m.node);
    }
    return r;
}

/* Two copies of one moment; all or nothing with some. */
static int two_backups(struct co *co, struct story *st, const struct story_letter *l)
{
    struct making m[2];
    if (make_ready(co, st, l->b, NULL, &m[0]))
        return 1;
    if (make_ready(co, st, l->c, NULL, &m[1])) {
        m[0].j->id[0] = 0;
        story_drop_node(co, st, m[0].node);
        return 1;
    }
    bool grouped = l->a / 8 % 2;
    json_t *list = json_array();
    for (unsigned i = 0; i < 2; i++) {
        m[i].j->grouped = grouped;
        json_array_append_new(list, action("blockdev-backup", story_job_options(backup_options(st, l, m[i].node), m[i].j, l)));
    }
    json_t *o = json_pack("{s:o}", "actions", list);
    if (grouped)
        json_object_set_new(o, "properties", json_pack("{s:s}", "completion-mode", "grouped"));
    int r = story_ask(co, st, "transaction", o);
    for (unsigned i = 0; i < 2; i++) {
        story_copy_taken(st, m[i].c, m[i].note);
        if (r) {
            m[i].j->id[0] = 0;
            story_drop_node(co, st, m[i].node);
        }
    }
    return r;
}

/* Something that would do, and something that does not: nothing has happened. */
static int in_vain(struct co *co, struct story *st)
{
    json_t *add = json_pack("{s:s,s:s,s:b}", "node", graph_node_name(story_top(st)), "name", "vain", "persistent", 1);
    int r = story_ask(co, st, "transaction", json_pack("{s:[o,o]}", "actions", action("block-dirty-bitmap-add", add), action("abort", json_object())));
    if (r == 0)
        return story_wrong(st, "a transaction with an abort in it is done");
    r = story_ask(co, st, "block-dirty-bitmap-remove", json_pack("{s:s,s:s}", "node", graph_node_name(story_top(st)), "name", "vain"));
    return r == 0 ? story_wrong(st, "a transaction that failed has left a bitmap") : 1;
}

static int transaction(struct co *co, struct story *st, const struct story_letter *l)
{
    int r = l->a % 4 == 0 ? in_vain(co, st) : l->a % 4 == 1 || st->pair.wanted ? two_backups(co, st, l) : begin_pair(co, st, l);
    st->done[STORY_TRANSACTION] += r == 0;
    return r;
}

/* ---- letters: jobs ---- */

static int verb(struct co *co, struct story *st, const struct story_letter *l)
{
    static const char *const words[] = { "job-pause", "job-resume", "job-cancel", "job-complete", "job-finalize", "block-job-set-speed", "block-job-cancel" };
    struct story_job *j = NULL;
    for (unsigned i = 0; i < STORY_JOBS && !j; i++)
        if (st->job[(l->a + i) % STORY_JOBS].id[0] && !st->job[(l->a + i) % STORY_JOBS].concluded)
            j = &st->job[(l->a + i) % STORY_JOBS];
    if (!j)
        return 1;
    unsigned what = l->b % 7;
    bool ends = what == 2 || what == 6;
    if (j->partial && what == 3)
        return 1;
    if (ends && !j->asked)
        j->asked = sim_stamp(st->w);
    for (unsigned i = 0; i < STORY_JOBS && ends; i++)
        st->job[i].told_to_end |= &st->job[i] == j || (j->grouped && st->job[i].grouped);
    json_t *o = json_pack("{s:s}", what < 5 ? "id" : "device", j->id);
    if (what == 5)
        json_object_set_new(o, "speed", json_integer((1 << 20) * (json_int_t)(l->c % 8)));
    int r = story_ask(co, st, words[what], o);
    st->done[STORY_VERB] += r == 0;
    return r;
}

static int change_mode(struct co *co, struct story *st, const struct story_letter *l)
{
    for (unsigned i = 0; i < STORY_JOBS; i++)
        if (st->job[i].id[0] && (st->job[i].kind == STORY_MIRROR || st->job[i].kind == STORY_ACTIVE) && !st->job[i].concluded) {
            int r = story_ask(co, st, "block-job-change", json_pack("{s:s,s:s,s:s}", "id", st->job[i].id, "type", "mirror", "copy-mode", l->a % 2 ? "write-blocking" : "background"));
            st->done[STORY_CHANGE] += r == 0;
            return r;
        }
    return 1;
}

/* To where it is ready, or over; then mostly completed. */
static int join(struct co *co, struct story *st, const struct story_letter *l)
{
    struct story_job *j = &st->job[l->a % STORY_JOBS];
    struct job *job = NULL;
    if (!j->id[0])
        return 1;
    for (unsigned i = 0; i < 400; i++) {
        job = job_find(&st->js, j->id);
        if (!job || j->concluded || job->status == JOB_READY || job->status == JOB_PENDING || job->user_paused || (j->endless && i > 40))
            break;
        (void)co_sleep(co, 500000);
    }
    if (!job || j->concluded)
        return 0;
    if (!job->user_paused && (j->endless || (j->partial && job->status == JOB_READY)))
        return leave(co, st, j);
    if (job->status == JOB_READY && l->b % 4)
        return story_ask(co, st, "job-complete", json_pack("{s:s}", "id", j->id));
    if (job->status == JOB_PENDING)
        return story_ask(co, st, "job-finalize", json_pack("{s:s}", "id", j->id));
    return 0;
}

/* Jobs without a place: nobody waits for them. */
static int look_after(struct co *co, struct story *st, const struct story_letter *l, const char *command)
{
    struct chain c = chain_of(st);
    int r = story_ask(co, st, command, json_pack("{s:s}", "node-name", graph_node_name(c.node[0])));
    st->done[l->kind] += r == 0;
    return r;
}

static int tell(struct co *co, struct story *st, const struct story_letter *l)
{
    switch (l->kind) {
    case STORY_SNAPSHOT: return snapshot(co, st, l);
    case STORY_COMMIT: return commit(co, st, l);
    case STORY_ACTIVE: return active(co, st, l);
    case STORY_STREAM: return stream(co, st, l);
    case STORY_MIRROR: return mirror(co, st, l);
    case STORY_BACKUP: return backup(co, st, l);
    case STORY_VERB: return verb(co, st, l);
    case STORY_CHANGE: return change_mode(co, st, l);
    case STORY_BITMAP: return bitmap(co, st, l);
    case STORY_TRANSACTION: return transaction(co, st, l);
    case STORY_RESIZE: return resize(co, st, l);
    case STORY_WAIT: return co_sleep(co, l->a % 40000000);
    case STORY_JOIN: return join(co, st, l);
    case STORY_SCRUB: return look_after(co, st, l, "x-byre-scrub");
    case STORY_COMPACT: return look_after(co, st, l, "x-byre-compact");
    case STORY_KEEP: return story_keep(co, st, l);
    case STORY_KINDS: break;
    }
    UNREACHABLE();
}

int story_tell(struct co *co, struct story *st, const struct story_letter *l)
{
    st->told[l->kind]++;
    int r = tell(co, st, l);
    st->refused[l->kind] += r != 0;
    return st->why[0] ? -1 : 0;
}

/* ---- the end ---- */

static void push_on(struct co *co, struct story *st, struct job *job)
{
    char id[64];
    snprintf(id, sizeof id, "%s", job->id);
    struct story_job *j = story_place(st, id);
    bool give_up = prng_one_in(&st->op, 6);
    if (job->status == JOB_CONCLUDED) {
        (void)!story_ask(co, st, "job-dismiss", json_pack("{s:s}", "id", id));
    } else if (job->user_paused) {
        (void)!story_ask(co, st, "job-resume", json_pack("{s:s}", "id", id));
    } else if (job->status == JOB_PENDING) {
        (void)!story_ask(co, st, "job-finalize", json_pack("{s:s}", "id", id));
    } else if (j && (j->endless || (j->partial && job->status == JOB_READY))) {
        (void)!leave(co, st, j);
    } else if (job->status == JOB_READY && give_up && j) {
        j->told_to_end = true;
        (void)!story_ask(co, st, "job-cancel", json_pack("{s:s}", "id", id));
    } else if (job->status == JOB_READY) {
        (void)!story_ask(co, st, "job-complete", json_pack("{s:s}", "id", id));
    }
}

/* NULL: there are none. */
static struct job *some_job(struct story *st)
{
    unsigned n = 0;
    struct job *job = NULL;
    for (job = job_next(&st->js, NULL); job; job = job_next(&st->js, job))
        n++;
    uint64_t pick = n ? prng_below(&st->op, n) : 0;
    for (job = job_next(&st->js, NULL); job && pick; pick--)
        job = job_next(&st->js, job);
    return job;
}

int story_finish(struct co *co, struct story *st)
{
    uint64_t until = rt_now(co_loop(co)) + END_NS;
    for (;;) {
        struct job *job = some_job(st);
        if (!job || st->why[0])
            break;
        st->enough |= rt_now(co_loop(co)) + END_NS > until + GUESTS_NS;
        if (rt_now(co_loop(co)) > until)
            return story_wrong(st, "the job %s, %s, does not end", job->id, job_status_name(job->status));
        push_on(co, st, job);
        (void)co_sleep(co, 1000000);
    }
    story_keep_look(co, st);
    story_keep_end(co, st);
    if (st->keep.on && !st->w->faults.fired)
        (void)story_wrong(st, "what keeps the disk of one moment cannot be taken away");
    return st->why[0] ? -1 : 0;
}
