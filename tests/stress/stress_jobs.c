/* SPDX-License-Identifier: MIT
 *
 * stress_jobs.c: jobs on the disk that the workers of image_stress.c write, discard, zero, clone and read.
 *
 * Purpose     Each round: two snapshots; the lower of them is committed into what lies below it; a full backup, with a bitmap that begins with it; a stream of
 *             all that lies below; an increment by the bitmap; a third snapshot and its commit into what lies below it, with which the disk goes over; a mirror that is left when
 *             it is ready; a mirror with which the disk goes over to another file. Guests go on all the time, but for the moments in which a copy
 *             begins or ends: what the disk holds then is known to the byte. In the last round the mirror is left when guests have ended, so that source,
 *             target and `path`.final, which is the disk as it was read, can be compared by others.
 * Owns        Its files, `path`.0 and so on, and the graph.
 * Invariants  I1  A backup and its increment are what the disk was when they began; a mirror that is left is what it is then.
 *             I2  After each job the areas of the workers are as they left them.
 * Concurrency Home loop; workers on all loops.
 * Failure     A word, and exit 1.
 * Tests       tests/stress/test_clone_jobs.py
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "base/prng.h"
#include "ctl/ctl.h"
#include "graph/blockdev.h"
#include "image_stress.h"
#include "job/job.h"

#define STEP_NS 500000
#define PATIENCE 400u                            /* looks at a mirror that guests are faster than, before they are held */
#define AUTOCLEAR_OFF 88
#define CLONES (1ull << 59)

struct stress_work {
    struct stress *s;
    struct graph *g;
    struct ctl *ctl;
    struct jobs js;
    struct prng p;
    unsigned files, names, marked;               /* marked: images that said that they have clones */
    char disk[16];                               /* the node that guests write */
    uint8_t *was, *buf;                          /* DISK bytes each */
};

/* Takes args over. */
static void ask(struct co *co, struct stress_work *w, const char *command, json_t *args)
{
    struct byre_err err = { 0 };
    REQUIRE(args, "%s: arguments", command);
    int r = ctl_execute(co, w->ctl, &(struct ctl_request){ command, args, false }, NULL, &err);
    char *text = r ? json_dumps(args, JSON_COMPACT) : NULL;
    REQUIRE(r == 0, "%s %s: %s", command, text, err.text);
    json_decref(args);
}

/* ---- guests ---- */

static void hold(struct co *co, struct stress *s)
{
    atomic_store(&s->hold, true);
    while (atomic_load(&s->inside))
        (void)co_sleep(co, STEP_NS);
}

static void let(struct stress *s) { atomic_store(&s->hold, false); }

static void read_all(struct co *co, struct graph_node *n, uint8_t *to)
{
    struct iovec slot;
    for (uint64_t off = 0; off < DISK; off += AREA)
        REQUIRE(graph_read(co, n, iov_one(&slot, to + off, AREA), off) == 0, "%s cannot be read at %#" PRIx64, graph_node_name(n), off);
}

/* Guests are held: w->was is the disk. */
static void remember(struct co *co, struct stress_work *w)
{
    stress_verify(co, w->s);
    read_all(co, w->s->node, w->was);
}

static void same(struct co *co, struct stress_work *w, const char *node, const char *what)
{
    read_all(co, graph_find(w->g, node), w->buf);
    for (uint64_t off = 0; off < DISK; off += SECTOR) {
        const uint64_t *have = (const uint64_t *)(const void *)(w->buf + off), *want = (const uint64_t *)(const void *)(w->was + off);
        REQUIRE(!memcmp(have, want, SECTOR), "%s: sector %#" PRIx64 " holds %#" PRIx64 " of generation %#" PRIx64 ", not %#" PRIx64 " of %#" PRIx64, what, off, have[0], have[1],
                want[0], want[1]);
    }
}

/* ---- files ---- */

static void file_name(const struct stress_work *w, unsigned file, char *to, size_t size) { snprintf(to, size, "%s.%u", w->s->path, file); }

/* A new image, open as a node. */
static void add(struct co *co, struct stress_work *w, char *node)
{
    char path[4096];
    file_name(w, w->files++, path, sizeof path);
    snprintf(node, 16, "n%u", w->names++);
    stress_create(co, w->s, path);
    ask(co, w, "blockdev-add", json_pack("{s:s,s:s,s:s,s:i,s:n,s:{s:s,s:s}}", "driver", "qcow2", "node-name", node, "discard", "unmap", "cache-size", 65536, "backing",
                                         "file", "driver", "file", "filename", path));
}

/* A closed image: a check says that it is sound. */
static void check(struct co *co, struct stress_work *w, const char *path)
{
    struct fmt_check_result res = { 0 };
    struct byre_err err = { 0 };
    ask(co, w, "blockdev-add", json_pack("{s:s,s:s,s:b,s:n,s:{s:s,s:s}}", "driver", "qcow2", "node-name", "c", "read-only", 1, "backing", "file", "driver", "file", "filename", path));
    struct graph_node *n = graph_find(w->g, "c");
    REQUIRE(graph_image(n)->ops->check(co, graph_image(n), &(struct fmt_check_opts){ 0 }, &res, &err) == 0, "%s", err.text);
    REQUIRE(!res.corruptions && !res.check_errors && !res.leaks, "%s: %" PRIu64 " corruptions, %" PRIu64 " leaks", path, res.corruptions, res.leaks);
    ask(co, w, "blockdev-del", json_pack("{s:s}", "node-name", "c"));
}

/* On a slow machine a job that has ended may still be about to let go of it (src/job/leave.h L1). */
static void delete(struct co *co, struct stress_work *w, const char *node)
{
    json_t *args = json_pack("{s:s}", "node-name", node);
    struct byre_err err = { 0 };
    int r = -EPERM;
    for (unsigned i = 0; r == -EPERM && i < 40000; i++) {
        if (i)
            (void)co_sleep(co, 10 * STEP_NS);
        r = ctl_execute(co, w->ctl, &(struct ctl_request){ "blockdev-del", args, false }, NULL, &err);
    }
    REQUIRE(r == 0, "blockdev-del: %s", err.text);
    json_decref(args);
}

/* The node is closed. Its file goes, but `keep`. */
static void drop(struct co *co, struct stress_work *w, const char *node, bool keep)
{
    struct graph_node *n = graph_find(w->g, node);
    char path[4096];
    uint8_t byte;
    REQUIRE(n, "there is no node %s", node);
    snprintf(path, sizeof path, "%s", graph_filename(n));
    int fd = open(path, O_RDONLY);
    REQUIRE(fd >= 0 && pread(fd, &byte, 1, AUTOCLEAR_OFF) == 1, "%s", path);
    w->marked += (byte & (CLONES >> 56)) != 0;
    close(fd);
    delete(co, w, node);
    check(co, w, path);
    if (!keep)
        unlink(path);
}

/* A new image over the disk, which guests write from then on. */
static void snapshot(struct co *co, struct stress_work *w, char *old)
{
    char node[16];
    add(co, w, node);
    ask(co, w, "blockdev-snapshot", json_pack("{s:s,s:s}", "node", w->disk, "overlay", node));
    memcpy(old, w->disk, sizeof w->disk);
    memcpy(w->disk, node, sizeof node);
}

/* ---- jobs ---- */

static void verb(struct co *co, struct stress_work *w, const char *command) { ask(co, w, command, json_pack("{s:s}", "id", "j")); }

/* Begins a job; takes args over. */
static void begin(struct co *co, struct stress_work *w, const char *command, json_t *args)
{
    json_object_set_new(args, "job-id", json_string("j"));
    json_object_set_new(args, "auto-dismiss", json_false());
    ask(co, w, command, args);
}

static void end(struct co *co, struct stress_work *w)
{
    struct job *j;
    while ((j = job_find(&w->js, "j")) && j->status != JOB_CONCLUDED)
        (void)co_sleep(co, STEP_NS);
    REQUIRE(j && j->result == 0, "the job failed: %s", j ? j->err.text : "it is gone");
    verb(co, w, "job-dismiss");
}

/* Guests that are faster than it are held. true: they were, and are. */
static bool ready(struct co *co, struct stress_work *w)
{
    bool held = false;
    for (unsigned n = 0;; n++) {
        struct job *j = job_find(&w->js, "j");
        REQUIRE(j && j->status != JOB_CONCLUDED, "it ends before it is ready: %s", j ? j->err.text : "");
        if (j->status == JOB_READY)
            return held;
        if (n == PATIENCE) {
            hold(co, w->s);
            held = true;
        }
        (void)co_sleep(co, STEP_NS);
    }
}

/* It is ready, and the disk goes over. */
static void go_over(struct co *co, struct stress_work *w, const char *to)
{
    bool held = ready(co, w);
    if (held)
        let(w->s);
    verb(co, w, "job-complete");
    end(co, w);
    snprintf(w->disk, sizeof w->disk, "%s", to);
}

static const char *mode(struct stress_work *w) { return prng_below(&w->p, 2) ? "write-blocking" : "background"; }

static void backup(struct co *co, struct stress_work *w, const char *to, bool increment)
{
    hold(co, w->s);
    remember(co, w);
    if (!increment)
        ask(co, w, "block-dirty-bitmap-add", json_pack("{s:s,s:s}", "node", w->disk, "name", "b"));
    json_t *o = json_pack("{s:s,s:s,s:s}", "device", w->disk, "target", to, "sync", increment ? "incremental" : "full");
    if (increment)
        json_object_set_new(o, "bitmap", json_string("b"));
    begin(co, w, "blockdev-backup", o);
    let(w->s);
    end(co, w);
    same(co, w, to, increment ? "the increment" : "the backup");
}

static void mirror(struct co *co, struct stress_work *w, const char *to)
{
    begin(co, w, "blockdev-mirror", json_pack("{s:s,s:s,s:s,s:s,s:i}", "device", w->disk, "target", to, "sync", "full", "copy-mode", mode(w), "granularity", 4096 << prng_below(&w->p, 5)));
}

/* Guests are held, and what they wrote is in the target. */
static void leave(struct co *co, struct stress_work *w, const char *to)
{
    if (!ready(co, w))
        hold(co, w->s);
    remember(co, w);
    ask(co, w, "block-job-cancel", json_pack("{s:s}", "device", "j"));
    end(co, w);
    same(co, w, to, "the mirror");
}

/* ---- rounds ---- */

static void chain(struct co *co, struct stress_work *w)
{
    char low[16], middle[16], copy[16], top[16], below[16];
    snapshot(co, w, low);
    snapshot(co, w, middle);
    begin(co, w, "block-commit", json_pack("{s:s,s:s,s:s}", "device", w->disk, "top-node", middle, "base-node", low));
    end(co, w);
    drop(co, w, middle, false);
    add(co, w, copy);
    backup(co, w, copy, false);
    begin(co, w, "block-stream", json_pack("{s:s}", "device", w->disk));
    end(co, w);
    drop(co, w, low, false);
    backup(co, w, copy, true);
    drop(co, w, copy, false);
    ask(co, w, "block-dirty-bitmap-remove", json_pack("{s:s,s:s}", "node", w->disk, "name", "b"));
    snapshot(co, w, below);
    memcpy(top, w->disk, sizeof top);
    begin(co, w, "block-commit", json_pack("{s:s,s:s}", "device", w->disk, "copy-mode", mode(w)));
    go_over(co, w, below);
    drop(co, w, top, false);
}

static void copies(struct co *co, struct stress_work *w)
{
    char copy[16], next[16], old[16];
    add(co, w, copy);
    mirror(co, w, copy);
    leave(co, w, copy);
    let(w->s);
    drop(co, w, copy, false);
    add(co, w, next);
    memcpy(old, w->disk, sizeof old);
    mirror(co, w, next);
    go_over(co, w, next);
    drop(co, w, old, false);
    hold(co, w->s);
    stress_verify(co, w->s);
    let(w->s);
}

/* The last mirror is ready before guests end: what they wrote last is followed. */
static void last_copy(struct co *co, struct stress_work *w)
{
    char copy[16], path[4096];
    add(co, w, copy);
    mirror(co, w, copy);
    if (ready(co, w))
        let(w->s);
    atomic_store(&w->s->enough, true);
    stress_wait(co, w->s);
    leave(co, w, copy);
    snprintf(path, sizeof path, "%s.final", w->s->path);
    FILE *f = fopen(path, "we");
    REQUIRE(f && fwrite(w->was, DISK, 1, f) == 1 && fclose(f) == 0, "%s", path);
    printf("source %s\n", graph_filename(graph_find(w->g, w->disk)));
    printf("target %s\n", graph_filename(graph_find(w->g, copy)));
    drop(co, w, copy, true);
}

static void open_disk(struct co *co, struct stress_work *w)
{
    const struct graph_attach_opts ao = { "guests", STOR_PERM_READ | STOR_PERM_WRITE, STOR_PERM_ALL };
    struct byre_err err = { 0 };
    jobs_init(&w->js, co_loop(co));
    REQUIRE(graph_new(co_loop(co), &(struct graph_opts){ 0 }, &w->g, &err) == 0, "%s", err.text);
    const struct ctl_env env = { .graph = w->g, .jobs = &w->js };
    REQUIRE(ctl_new(co_loop(co), &env, &w->ctl, &err) == 0, "%s", err.text);
    add(co, w, w->disk);
    REQUIRE(graph_attach(graph_find(w->g, w->disk), &ao, &w->s->node, &err) == 0, "%s", err.text);
}

void stress_jobs(struct co *co, struct stress *s)
{
    struct stress_work w = { .s = s, .was = malloc(DISK), .buf = malloc(DISK) };
    REQUIRE(w.was && w.buf, "no memory");
    prng_init(&w.p, s->seed);
    open_disk(co, &w);
    stress_start(co, s);
    for (unsigned i = 0; i < s->operations; i++) {
        chain(co, &w);
        copies(co, &w);
    }
    last_copy(co, &w);
    jobs_stop(co, &w.js);
    REQUIRE(graph_detach(co, s->node) == 0, "detach");
    drop(co, &w, w.disk, true);
    REQUIRE(w.marked > s->operations, "only %u images had clones", w.marked);
    REQUIRE(graph_blockdev_close_all(co, w.g) == 0, "close");
    ctl_stop(co, w.ctl);
    ctl_free(w.ctl);
    graph_free(w.g);
    free(w.was);
    free(w.buf);
}
