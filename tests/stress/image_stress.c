/* SPDX-License-Identifier: MIT
 *
 * image_stress.c: two loops on one image, qcow2 or QED.
 *
 * Workers on both loops write, read, zero and discard. Each has an area of its own, whose content it knows exactly, and
 * all share one area in which discard, zero and rewrite of the same clusters race: there every sector must be zero or
 * carry its own offset, and never anything else (Q9). Afterwards the image is closed, opened again,
 * compared, and checked by the engine's own check; the caller (tests/interop) asks qemu-img too when it is there.
 *
 * With "packed", half of the writes are compressed ones, of whole clusters. With "sub" the image has subclusters: writers meet
 * inside clusters, and parts of clusters are discarded.
 *
 * With "scrub" it is all done twice, with a scrub that frees leaks running all the time; the second time the image begins as one
 * that was not closed cleanly. With "compact" the image is compacted again and again beside the workers.
 *
 * With "clone" ranges become what others are: inside each worker's area, and from there, and from the shared area itself, to the shared
 * one, where the others then write and discard. A clone may copy a sector in the middle of a write: there every piece of one must have
 * been written somewhere.
 *
 * With "jobs" OPERATIONS is a number of rounds, and the disk is backed up, committed, streamed and mirrored meanwhile: stress_jobs.c.
 *
 *     image-stress FILE CLUSTER_SIZE SEED OPERATIONS [uring|threads [packed zlib|zstd] [compact] [clone] [jobs] [sub|scrub]]
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/prng.h"
#include "image_stress.h"

struct worker { struct stress *s; unsigned index; };

/* A sector that says where it belongs; version 0 is left for "zero". */
static void stamp(uint8_t *p, uint64_t off, uint64_t version)
{
    uint64_t *w = (uint64_t *)p;
    for (unsigned i = 0; i < SECTOR / 8; i += 2) {
        w[i] = off;
        w[i + 1] = version;
    }
}

static bool stamp_ok(const uint8_t *p, uint64_t off)
{
    const uint64_t *w = (const uint64_t *)p;
    bool zero = mem_is_zero(p, SECTOR);
    for (unsigned i = 0; i < SECTOR / 8 && !zero; i += 2)
        if (w[i] != off || w[i + 1] != w[1] || !w[1])
            return false;
    return true;
}

static int do_write(struct co *co, struct stress *s, uint8_t *buf, uint64_t off, uint64_t len, uint64_t version)
{
    struct iovec slot;
    for (uint64_t i = 0; i < len; i += SECTOR)
        stamp(buf + i, off + i, version);
    return graph_write(co, s->node, iov_one(&slot, buf, len), off, 0);
}

/* Whole clusters of the area that holds *off, beginning at or in front of it. */
static int do_pack(struct co *co, struct stress *s, uint8_t *buf, uint64_t *off, uint64_t *len, uint64_t version)
{
    struct iovec slot;
    uint64_t end = *off - *off % AREA + AREA;
    *off -= *off % s->cluster;
    *len = (*len + s->cluster - 1) / s->cluster * s->cluster;
    if (*len > IO_MAX)
        *len = IO_MAX;
    if (*len > end - *off)
        *len = end - *off;
    for (uint64_t i = 0; i < *len; i += SECTOR)
        stamp(buf + i, *off + i, version);
    return graph_write(co, s->node, iov_one(&slot, buf, *len), *off, GRAPH_COMPRESS);
}

/* Of an area of its own: to any other place of it. */
static int own_clone(struct co *co, struct worker *w, struct prng *p, uint64_t off, uint64_t len)
{
    struct stress *s = w->s;
    uint64_t base = off - off % AREA, to = base + prng_below(p, (AREA - len) / SECTOR + 1) * SECTOR;
    if (prng_below(p, 4)) {
        off -= off % s->cluster;
        to -= to % s->cluster;
    }
    memmove(s->model + to, s->model + off, len);
    return graph_clone(co, s->node, off, to, len);
}

/* Whole clusters of the worker's area, or of the shared one, to the shared one. */
static int shared_clone(struct co *co, struct worker *w, struct prng *p, uint64_t off, uint64_t len)
{
    struct stress *s = w->s;
    uint64_t from = (prng_below(p, 2) ? w->index : WORKERS) * (uint64_t)AREA + prng_below(p, AREA);
    off -= off % s->cluster;
    from -= from % s->cluster;
    len = (len + s->cluster - 1) / s->cluster * s->cluster;
    uint64_t room = AREA - (off % AREA > from % AREA ? off % AREA : from % AREA);
    return graph_clone(co, s->node, from, off, len < room ? len : room);
}

static int own_step(struct co *co, struct worker *w, struct prng *p, uint8_t *buf, uint64_t off, uint64_t len)
{
    struct stress *s = w->s;
    struct iovec slot;
    int r;
    if (s->clone && prng_below(p, 4) == 0)
        return own_clone(co, w, p, off, len);
    switch (prng_below(p, 8)) {
    case 0: case 1: case 2:
        if (s->packed && prng_below(p, 2)) {
            r = do_pack(co, s, buf, &off, &len, prng_u64(p) | 1);
            memcpy(s->model + off, buf, len);
            return r;
        }
        r = do_write(co, s, buf, off, len, prng_u64(p) | 1);
        memcpy(s->model + off, buf, len);
        return r;
    case 3:
        memset(s->model + off, 0, len);
        return graph_zero(co, s->node, off, len, prng_below(p, 2) ? GRAPH_UNMAP : 0);
    case 4:
        if (s->packed || !s->sub || prng_below(p, 4) == 0) {
            off -= off % s->cluster;         /* whole clusters: what a discard does to parts of one is not said */
            len = s->cluster < AREA ? s->cluster : AREA;
        } else {
            uint64_t end = off + len, unit = s->cluster / 32;
            off = (off + unit - 1) / unit * unit;
            if (off >= end - end % unit)
                return 0;
            len = end - end % unit - off;
        }
        memset(s->model + off, 0, len);
        return graph_discard(co, s->node, off, len);
    case 5:
        return prng_below(p, 8) ? 0 : graph_flush(co, s->node);
    default:
        r = graph_read(co, s->node, iov_one(&slot, buf, len), off);
        REQUIRE(r < 0 || memcmp(buf, s->model + off, len) == 0, "worker %u: other bytes at %#llx+%#llx", w->index, (unsigned long long)off, (unsigned long long)len);
        return r;
    }
}

/* The same, while writes of this sector are under way: a read may meet them in the middle. cloned: it may come from anywhere. */
static bool stamp_partly_ok(const uint8_t *p, uint64_t off, bool cloned)
{
    const uint64_t *w = (const uint64_t *)p;
    for (unsigned i = 0; i < SECTOR / 8; i += 2)
        if (!((w[i] == off || (cloned && w[i] < DISK && w[i] % SECTOR == 0)) && w[i + 1]) && !(w[i] == 0 && w[i + 1] == 0))
            return false;
    return true;
}

static int shared_read(struct co *co, struct worker *w, uint8_t *buf, uint64_t off, uint64_t len)
{
    struct iovec slot;
    int r = graph_read(co, w->s->node, iov_one(&slot, buf, len), off);
    for (uint64_t i = 0; r == 0 && i < len; i += SECTOR)
        REQUIRE(stamp_partly_ok(buf + i, off + i, w->s->clone), "worker %u: a shared sector at %#llx holds %#llx %#llx, which was never written there", w->index,
                (unsigned long long)(off + i), *(unsigned long long *)(void *)(buf + i), *(unsigned long long *)(void *)(buf + i + 8));
    return r;
}

static int shared_step(struct co *co, struct worker *w, struct prng *p, uint8_t *buf, uint64_t off, uint64_t len)
{
    if (w->s->packed && prng_below(p, 2)) {
        if (prng_below(p, 2))
            return shared_read(co, w, buf, off, len);
        return do_pack(co, w->s, buf, &off, &len, prng_u64(p) | 1);
    }
    if (w->s->clone && prng_below(p, 4) == 0)
        return shared_clone(co, w, p, off, len);
    if (w->s->clone && prng_below(p, 4) == 0)
        return shared_read(co, w, buf, off, len);
    switch (prng_below(p, 4)) {
    case 0:
        return graph_discard(co, w->s->node, off, len);
    case 1:
        return graph_zero(co, w->s->node, off, len, prng_below(p, 2) ? GRAPH_UNMAP : 0);
    default:
        return do_write(co, w->s, buf, off, len, prng_u64(p) | 1);
    }
}

/* Operation i begins now, or there is none. */
static bool more(struct co *co, struct stress *s, unsigned i)
{
    if (s->jobs && i % 4 == 3)
        (void)co_sleep(co, 100000);          /* jobs have a turn */
    for (;;) {
        if (s->jobs ? atomic_load(&s->enough) : i >= s->operations)
            return false;
        atomic_fetch_add(&s->inside, 1);
        if (!atomic_load(&s->hold))
            return true;
        atomic_fetch_sub(&s->inside, 1);
        (void)co_sleep(co, 200000);
    }
}

static void worker_co(struct co *co, void *arg)
{
    struct worker *w = arg;
    struct stress *s = w->s;
    struct prng p;
    prng_init(&p, s->seed * 100 + w->index);
    uint8_t *buf = malloc(IO_MAX);
    REQUIRE(buf, "no memory");
    for (unsigned i = 0; more(co, s, i); i++) {
        uint64_t in = prng_below(&p, AREA / SECTOR) * SECTOR;
        uint64_t len = (1 + prng_below(&p, prng_below(&p, 4) ? 16 : IO_MAX / SECTOR)) * SECTOR;
        bool shared = prng_below(&p, 3) == 0;
        len = len < AREA - in ? len : AREA - in;
        int r = shared ? shared_step(co, w, &p, buf, (uint64_t)WORKERS * AREA + in, len) : own_step(co, w, &p, buf, (uint64_t)w->index * AREA + in, len);
        REQUIRE(r >= 0, "worker %u: operation %u failed: %d", w->index, i, r);
        atomic_fetch_sub(&s->inside, 1);
    }
    free(buf);
}

static int on_loop(struct co *co, void *arg)
{
    worker_co(co, arg);
    return 0;
}

static void send_worker(struct co *co, void *arg)
{
    struct worker *w = arg;
    int r = rt_call(co, rt_loop_at(w->s->rt, w->index % rt_loop_count(w->s->rt)), on_loop, w);
    REQUIRE(r == 0, "worker %u: not started: %d", w->index, r);
    co_group_leave(&w->s->group);
}

/* One after another, beside the workers. The last one begins when they have ended, so it finds all that there is. */
static void scrub_co(struct co *co, void *arg)
{
    struct stress *s = arg;
    struct fmt_image *im = graph_image(s->node);
    for (bool last = false; !last; s->scrubs++) {
        struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS };
        struct fmt_check_result res = { 0 };
        struct byre_err err;
        last = s->written;
        REQUIRE(im->ops->scrub(co, im, &o, &res, &err) == 0, "scrub: %s", err.text);
        REQUIRE(!res.corruptions && !res.check_errors && !res.leaks, "scrub %u: %llu corruptions, %llu leaks", s->scrubs, (unsigned long long)res.corruptions, (unsigned long long)res.leaks);
        REQUIRE(!atomic_load(&im->unclean), "still unclean after scrub %u", s->scrubs);
    }
    co_group_leave(s->beside);
}

static int until_written(struct co *co, void *arg, uint64_t bytes)
{
    (void)co;
    (void)bytes;
    return ((struct stress *)arg)->written ? -ECANCELED : 0;
}

/* One after another; every second one looks for zeros too. The one that is under way when the workers have ended is given up. */
static void compact_co(struct co *co, void *arg)
{
    struct stress *s = arg;
    struct fmt_image *im = graph_image(s->node);
    while (!s->written) {
        struct byre_err err = { 0 };
        struct fmt_compact_result res;
        struct fmt_compact_opts o = { .look_for_zeros = s->compacted % 2, .step = until_written, .arg = s };
        int r = im->ops->compact(co, im, &o, &res, &err);
        REQUIRE(r == 0 || r == -ECANCELED, "compaction: %s", err.text);
        s->compacted += r == 0;
    }
    co_group_leave(s->beside);
}

/* As a killed process leaves an image with lazy reference counts. */
static void mark_dirty(const struct stress *s)
{
    uint8_t byte;
    off_t at = s->qed ? 16 : 79;
    int fd = open(s->path, O_RDWR);
    REQUIRE(fd >= 0 && pread(fd, &byte, 1, at) == 1, "%s", s->path);
    byte |= s->qed ? 2 : 1;
    REQUIRE(pwrite(fd, &byte, 1, at) == 1 && close(fd) == 0, "%s", s->path);
}

static void open_image(struct co *co, struct stress *s, struct graph **ret_g)
{
    struct byre_err err;
    struct graph_open_opts o = { .filename = s->path, .format = s->qed ? "qed" : "qcow2", .discard = true, .fmt = { .cache_bytes = 64 * 1024, .cache_clean_ms = 2, .unclean_ok = s->scrub } };
    REQUIRE(graph_new(co_loop(co), &(struct graph_opts){ 0 }, ret_g, &err) == 0, "%s", err.text);
    REQUIRE(graph_open(co, *ret_g, &o, &s->node, &err) == 0, "%s", err.text);
}

void stress_create(struct co *co, const struct stress *s, const char *path)
{
    struct byre_err err;
    struct stor *st;
    struct stor_file_opts fo = { .create = true, .truncate_to_zero = true };
    struct fmt_create_opts co_ = { .size = DISK, .cluster_size = s->cluster, .version = 3, .refcount_bits = 16,
                                   .compression_type = s->packed, .extended_l2 = s->sub };
    REQUIRE(stor_file_open(co, path, &fo, &st, &err) == 0, "%s", err.text);
    REQUIRE((s->qed ? &fmt_qed_ops : &fmt_qcow2_ops)->create(co, st, &co_, &err) == 0, "%s", err.text);
    stor_close(co, st);
}

void stress_verify(struct co *co, struct stress *s)
{
    uint8_t *buf = malloc(AREA);
    struct iovec slot;
    REQUIRE(buf, "no memory");
    for (uint64_t off = 0; off < DISK; off += AREA) {
        REQUIRE(graph_read(co, s->node, iov_one(&slot, buf, AREA), off) == 0, "read at %#llx", (unsigned long long)off);
        if (off < (uint64_t)WORKERS * AREA)
            REQUIRE(memcmp(buf, s->model + off, AREA) == 0, "area %llu differs from its model", (unsigned long long)(off / AREA));
        else
            for (uint64_t i = 0; i < AREA; i += SECTOR)
                REQUIRE(s->clone ? stamp_partly_ok(buf + i, off + i, true) : stamp_ok(buf + i, off + i), "shared sector %#llx holds what was never written there", (unsigned long long)(off + i));
    }
    free(buf);
}

void stress_start(struct co *co, struct stress *s)
{
    static struct worker w[WORKERS];
    s->written = false;
    for (unsigned i = 0; i < WORKERS; i++) {
        w[i] = (struct worker){ s, i };
        co_group_enter(&s->group);
        REQUIRE(rt_spawn(co_loop(co), send_worker, &w[i]) == 0, "no coroutine");
    }
}

void stress_wait(struct co *co, struct stress *s)
{
    co_group_wait(co, &s->group);
    s->written = true;
}

static void work(struct co *co, struct stress *s, unsigned round)
{
    struct co_group beside = { 0 };
    s->seed += round;
    stress_start(co, s);
    s->beside = &beside;
    if (s->scrub || s->compact) {        /* they exclude one another */
        co_group_enter(&beside);
        REQUIRE(rt_spawn(co_loop(co), s->scrub ? scrub_co : compact_co, s) == 0, "no coroutine");
    }
    stress_wait(co, s);
    co_group_wait(co, &beside);
}

static void images(struct co *co, struct stress *s)
{
    struct graph *g;
    stress_create(co, s, s->path);
    for (unsigned round = 0; round < (s->scrub ? 2 : 1); round++) {
        if (round)
            mark_dirty(s);
        open_image(co, s, &g);
        REQUIRE(atomic_load(&graph_image(s->node)->unclean) == (round > 0), "not opened at once");
        work(co, s, round);
        stress_verify(co, s);
        REQUIRE(graph_close(co, s->node) == 0, "close failed");
        graph_free(g);
    }
    REQUIRE(!s->scrub || s->scrubs > 6, "only %u scrubs", s->scrubs);
    REQUIRE(!s->compact || s->compacted, "no compaction has ended");
    open_image(co, s, &g);
    stress_verify(co, s);
    struct fmt_check_result res = { 0 };
    struct byre_err err;
    REQUIRE(graph_image(s->node)->ops->check(co, graph_image(s->node), &(struct fmt_check_opts){ 0 }, &res, &err) == 0, "%s", err.text);
    REQUIRE(res.corruptions == 0 && res.leaks == 0 && res.check_errors == 0, "check: %llu corruptions, %llu leaks", (unsigned long long)res.corruptions, (unsigned long long)res.leaks);
    REQUIRE(graph_close(co, s->node) == 0, "second close failed");
    graph_free(g);
}

static void main_co(struct co *co, void *arg)
{
    struct stress *s = arg;
    (s->jobs ? stress_jobs : images)(co, s);
    __atomic_store_n(&s->done, true, __ATOMIC_RELEASE);
}

int main(int argc, char **argv)
{
    REQUIRE(argc >= 5, "usage: image-stress FILE CLUSTER_SIZE SEED OPERATIONS [uring|threads [packed zlib|zstd] [compact] [clone] [jobs] [sub|scrub]]");
    struct stress s = { .path = argv[1], .cluster = strtoull(argv[2], NULL, 0), .seed = strtoull(argv[3], NULL, 0), .operations = (unsigned)strtoul(argv[4], NULL, 0) };
    struct rt_opts o = { .loops = 2, .backend = argc < 6 ? RT_BACKEND_AUTO : strcmp(argv[5], "threads") ? RT_BACKEND_URING : RT_BACKEND_THREADS };
    struct byre_err err;
    s.packed = argc > 7 && strcmp(argv[6], "packed") == 0 ? argv[7] : NULL;
    s.scrub = argc > 6 && strcmp(argv[argc - 1], "scrub") == 0;
    for (int i = 6; i < argc; i++)
        s.compact |= strcmp(argv[i], "compact") == 0;
    for (int i = 6; i < argc; i++)
        s.clone |= strcmp(argv[i], "clone") == 0;
    for (int i = 6; i < argc; i++)
        s.jobs |= strcmp(argv[i], "jobs") == 0;
    REQUIRE(!s.compact || !s.scrub, "a scrub and a compaction exclude one another");
    s.sub = argc > 6 && strcmp(argv[argc - 1], "sub") == 0;
    for (int i = 6; i < argc; i++)
        s.qed |= strcmp(argv[i], "qed") == 0;
    s.model = calloc(1, DISK);
    REQUIRE(s.model && rt_new(&o, &s.rt, &err) == 0, "cannot start");
    REQUIRE(rt_spawn_on(rt_loop_at(s.rt, 0), main_co, &s) == 0, "no coroutine");
    while (!__atomic_load_n(&s.done, __ATOMIC_ACQUIRE))
        usleep(2000);
    rt_free(s.rt);
    free(s.model);
    return 0;
}
