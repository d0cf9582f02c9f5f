/* SPDX-License-Identifier: MIT
 *
 * lib_test.c: the public interface in one process: option structs of other ages, contexts with and without threads, blocking
 * calls from several threads, queues, jobs, policies.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/test.h"
#include "byre/byre.h"
#include "lib/image_opts.h"
#include "lib/lib_priv.h"

#define MIB (UINT64_C(1) << 20)

static char folder[] = "/tmp/byre-lib-test-XXXXXX";

static char *path_of(const char *name)
{
    static char paths[4][128];
    static int turn;
    char *p = paths[turn++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", folder, name);
    return p;
}

static struct byre_ctx *ctx_new(unsigned loops)
{
    struct byre_ctx *ctx;
    struct byre_err err;
    struct byre_ctx_opts o = byre_ctx_opts_init();
    o.loops = loops;
    o.flags = loops ? 0 : BYRE_CTX_CALLER_RUNS;
    if (byre_ctx_new(&o, &ctx, &err))
        fail_msg("%s", err.text);
    return ctx;
}

static struct byre_image *make(struct byre_ctx *ctx, const char *name, const char *format, uint64_t size)
{
    struct byre_image *image = NULL;
    struct byre_err err;
    struct byre_create_opts c = byre_create_opts_init();
    struct byre_open_opts o = byre_open_opts_init();
    c.flags = BYRE_CREATE_SIZE;
    c.size = size;
    c.format = o.format = format;
    if (byre_create(ctx, path_of(name), &c, &err) || byre_open(ctx, path_of(name), &o, &image, &err))
        fail_msg("%s", err.text);
    return image;
}

/* ---- option structs ---- */
static void options_of_other_ages(void **state)
{
    struct { struct byre_queue_opts o; uint64_t more; } newer;
    struct byre_queue_opts to;
    struct byre_err err;
    memset(&newer, 0, sizeof newer);
    newer.o.struct_size = sizeof newer;
    newer.o.depth = 7;
    assert_int_equal(lib_take_opts(&to, sizeof to, &newer, &err), 0);
    assert_int_equal(to.depth, 7);
    newer.more = 1;
    assert_int_equal(lib_take_opts(&to, sizeof to, &newer, &err), -E2BIG);
    struct { size_t struct_size; unsigned depth; } older = { sizeof older - 4, 9 };
    older.struct_size = offsetof(struct byre_queue_opts, loop);
    to.loop = 5;
    assert_int_equal(lib_take_opts(&to, sizeof to, &older, &err), 0);
    assert_int_equal(to.depth, 9);
    assert_int_equal(to.loop, 0);
    size_t nothing = 0;
    assert_int_equal(lib_take_opts(&to, sizeof to, &nothing, &err), -EINVAL);
    assert_int_equal(lib_take_opts(&to, sizeof to, NULL, &err), 0);
    assert_int_equal(to.depth, 0);
}

static void words(void **state)
{
    assert_string_equal(byre_version(), BYRE_VERSION);
    assert_int_equal(byre_cache_parse("none"), BYRE_CACHE_NONE);
    assert_int_equal(byre_cache_parse("unsafe"), BYRE_CACHE_UNSAFE);
    assert_int_equal(byre_cache_parse("Unsafe"), -EINVAL);
    assert_int_equal(byre_cache_parse(NULL), -EINVAL);
    assert_int_equal(byre_prealloc_parse("full"), BYRE_PREALLOC_FULL);
    assert_int_equal(byre_format_backing("qcow2"), 0);
    assert_int_equal(byre_format_backing("raw"), -ENOTSUP);
    assert_int_equal(byre_format_backing("nothing"), -ENOENT);
    bool raw = false, qcow2 = false;
    for (unsigned i = 0; byre_format_name(i); i++) {
        raw |= strcmp(byre_format_name(i), "raw") == 0;
        qcow2 |= strcmp(byre_format_name(i), "qcow2") == 0;
    }
    assert_true(raw && qcow2);
}

static void lists_of_node_options(void **state)
{
    static const struct { const char *list, *name; int code; uint64_t cache; int lazy; } t[] = {
        { "driver=qcow2,file.filename=a,,b", "json:{\"driver\": \"qcow2\", \"file.filename\": \"a,b\"}", 0 },
        { "filename=x", "json:{\"file.filename\": \"x\"}", 0 },
        { "driver=file,filename=x", "json:{\"driver\": \"file\", \"filename\": \"x\"}", 0 },
        { "read-only", "json:{\"read-only\": \"on\"}", 0 },
        { "driver=raw,driver=qcow2", "json:{\"driver\": \"qcow2\"}", 0 },
        { "=x", NULL, -EINVAL },
        { "driver=qcow2,l2-cache-size=1M,refcount-cache-size=64k", "json:{\"driver\": \"qcow2\"}", 0, (1 << 20) + 65536 },
        { "driver=qcow2,cache-size=3M,l2-cache-size=1M", "json:{\"driver\": \"qcow2\"}", 0, 3 << 20 },
        { "cache-size=3M,l2-cache-size=1M,refcount-cache-size=64k", NULL, -EINVAL }, { "cache-size=1M,l2-cache-size=2M", NULL, -EINVAL },
        { "l2-cache-size=x", NULL, -EINVAL }, { "lazy-refcounts=maybe", NULL, -EINVAL },
        { "driver=qcow2,lazy-refcounts=on", "json:{\"driver\": \"qcow2\"}", 0, 0, BYRE_LAZY_ON },
        { "driver=qcow2,lazy-refcounts=off,cache-size=3M", "json:{\"driver\": \"qcow2\"}", 0, 3 << 20, BYRE_LAZY_OFF },
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        char *name = NULL;
        struct byre_open_opts o = byre_open_opts_init();
        assert_int_equal(image_opts_to_name(t[i].list, &o, &name, NULL), t[i].code);
        assert_int_equal(o.cache_bytes, t[i].cache);
        assert_int_equal(o.lazy_refcounts, t[i].lazy);
        if (t[i].name)
            assert_string_equal(name, t[i].name);
        free(name);
    }
}

/* ---- ids of objects ---- */

struct adding { struct byre_ctx *ctx; char definition[256]; int result; };

static void *add_object(void *arg)
{
    struct adding *a = arg;
    a->result = byre_object_add(a->ctx, a->definition, NULL);
    return NULL;
}

/* While one object is being made, nobody else gets its id, whatever it is to be. The first reads its rules from a pipe, which nobody has filled yet. */
static void one_id_at_a_time(void **state)
{
    static const char *const others[] = { "secret,id=x,data=a", "throttle-group,id=x", "authz-simple,id=x,identity=u", "{\"qom-type\": \"secret\", \"id\": \"x\", \"data\": \"a\"}" };
    static const char rules[] = "{\"policy\": \"allow\"}";
    struct adding a = { .ctx = ctx_new(1) };
    struct byre_err err;
    pthread_t thread;
    int fd;
    assert_int_equal(mkfifo(path_of("rules"), 0600), 0);
    snprintf(a.definition, sizeof a.definition, "authz-list-file,id=x,refresh=off,filename=%s", path_of("rules"));
    assert_int_equal(pthread_create(&thread, NULL, add_object, &a), 0);
    while ((fd = open(path_of("rules"), O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0)         /* until it reads */
        assert_int_equal(errno, ENXIO);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        assert_int_equal(byre_object_add(a.ctx, others[i], &err), -EEXIST);
        assert_non_null(strstr(err.text, "'x'"));
    }
    assert_int_equal(byre_secret_add(a.ctx, "x", "a", 1, &err), -EEXIST);
    assert_int_equal(byre_object_add(a.ctx, "secret,id=y,data=a", &err), 0);
    assert_int_equal(write(fd, rules, sizeof rules - 1), sizeof rules - 1);
    close(fd);
    pthread_join(thread, NULL);
    assert_int_equal(a.result, 0);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_int_equal(byre_object_add(a.ctx, others[i], &err), -EEXIST);
    assert_int_equal(byre_secret_add(a.ctx, "x", "a", 1, &err), -EEXIST);
    assert_int_equal(byre_object_add(a.ctx, "secret,id=z,data=?,format=base64", &err), -EINVAL);
    assert_int_equal(byre_object_add(a.ctx, "throttle-group,id=z", &err), 0);      /* what failed has given the id back */
    byre_ctx_free(a.ctx);
}

/* ---- breakpoints ---- */

struct waits { struct byre_image *image; const char *tag; int result; atomic_bool ended; };

static void *wait_for_stop(void *arg)
{
    struct waits *w = arg;
    w->result = byre_debug_wait(w->image, w->tag);
    atomic_store(&w->ended, true);
    return NULL;
}

/* FEATURES 3.053: who waits for a request that never comes is told when nothing is waited for any more. */
static void wait_that_nobody_meets(void **state)
{
    struct byre_ctx_opts co = byre_ctx_opts_init();
    struct byre_open_opts o = byre_open_opts_init();
    struct byre_ctx *ctx = ctx_new(1);
    struct byre_err err;
    char name[200];
    assert_int_equal(byre_close(make(ctx, "stands", "raw", MIB)), 0);
    byre_ctx_free(ctx);
    co.policy = BYRE_POLICY_ECOSYSTEM;
    assert_int_equal(byre_ctx_new(&co, &ctx, &err), 0);
    snprintf(name, sizeof name, "blkdebug::%s", path_of("stands"));
    o.format = "raw";
    struct waits w[2] = { { .tag = "one" }, { .tag = "other" } };
    pthread_t thread[2];
    assert_int_equal(byre_open(ctx, name, &o, &w[0].image, &err), 0);
    w[1].image = w[0].image;
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, wait_for_stop, &w[i]), 0);
    while (!atomic_load(&w[0].ended))            /* it may not wait yet */
        assert_int_equal(byre_debug_remove(w[0].image, "one"), -ENOENT);
    assert_int_equal(w[0].result, -ECANCELED);
    assert_false(atomic_load(&w[1].ended));
    while (!atomic_load(&w[1].ended))
        assert_int_equal(byre_debug_remove(w[0].image, NULL), -ENOENT);
    assert_int_equal(w[1].result, -ECANCELED);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    assert_int_equal(byre_close(w[0].image), 0);
    byre_ctx_free(ctx);
}

/* ---- policies ---- */
static void strict_guesses_nothing(void **state)
{
    struct byre_ctx *ctx = ctx_new(1);
    struct byre_image *image = make(ctx, "strict.qcow2", "qcow2", MIB);
    struct byre_err err;
    char name[256];
    assert_int_equal(byre_close(image), 0);
    assert_true(byre_open(ctx, path_of("strict.qcow2"), NULL, &image, &err) < 0);          /* no format */
    struct byre_open_opts o = byre_open_opts_init();
    o.format = "qcow2";
    snprintf(name, sizeof name, "json:{\"driver\":\"qcow2\",\"file.filename\":\"%s\"}", path_of("strict.qcow2"));
    assert_int_equal(byre_open(ctx, name, &o, &image, &err), -ENOENT);                      /* a path like any other */
    o.flags = BYRE_OPEN_IMAGE_OPTS;
    assert_int_equal(byre_open(ctx, "driver=qcow2", &o, &image, &err), -ENOTSUP);
    byre_ctx_free(ctx);

    struct byre_ctx_opts co = byre_ctx_opts_init();
    co.policy = BYRE_POLICY_ECOSYSTEM;
    assert_int_equal(byre_ctx_new(&co, &ctx, &err), 0);
    assert_int_equal(byre_open(ctx, path_of("strict.qcow2"), NULL, &image, &err), 0);
    assert_int_equal(byre_is_probed(image), 1);
    assert_int_equal(byre_close(image), 0);
    o = byre_open_opts_init();
    assert_int_equal(byre_open(ctx, name, &o, &image, &err), 0);
    assert_string_equal(byre_format(image), "qcow2");
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

static void bad_options_are_refused(void **state)
{
    struct byre_ctx *ctx = ctx_new(1);
    struct byre_image *image = make(ctx, "bad", "raw", MIB), *other;
    struct byre_err err;
    struct byre_open_opts o = byre_open_opts_init();
    o.format = "raw";
    o.cache = 17;
    assert_int_equal(byre_open(ctx, path_of("bad"), &o, &other, &err), -EINVAL);
    o.cache = 0;
    o.flags = 1u << 30;
    assert_int_equal(byre_open(ctx, path_of("bad"), &o, &other, &err), -EINVAL);
    assert_int_equal(byre_write(image, "x", 1, 0, 1u << 9), -EINVAL);
    assert_int_equal(byre_resize(image, MIB, 9, &err), -EINVAL);
    struct byre_queue *q;
    struct byre_queue_opts qo = byre_queue_opts_init();
    qo.depth = 4097;
    assert_int_equal(byre_queue_new(image, &qo, &q, &err), -EINVAL);
    qo.depth = 1;
    qo.loop = 2;
    assert_int_equal(byre_queue_new(image, &qo, &q, &err), -EINVAL);
    struct byre_ctx_opts co = byre_ctx_opts_init();
    struct byre_ctx *second;
    co.policy = 5;
    assert_int_equal(byre_ctx_new(&co, &second, &err), -EINVAL);
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

/* ---- blocking ---- */
static void blocking(unsigned loops)
{
    struct byre_ctx *ctx = ctx_new(loops);
    struct byre_image *image = make(ctx, "block.qcow2", "qcow2", 8 * MIB);
    struct byre_err err;
    char out[5000], in[5000];
    memset(out, 0x5a, sizeof out);
    assert_int_equal(byre_write(image, out, sizeof out, 65000, 0), 0);
    assert_int_equal(byre_read(image, in, sizeof in, 65000), 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(byre_zero(image, 65000, 100, BYRE_UNMAP), 0);
    struct iovec v[2] = { { in, 100 }, { in + 100, 200 } };
    assert_int_equal(byre_readv(image, v, 2, 65000), 0);
    for (int i = 0; i < 300; i++)
        assert_int_equal(in[i], i < 100 ? 0 : 0x5a);
    assert_int_equal(byre_writev(image, v, 2, 8 * MIB - 300, BYRE_FUA), 0);
    assert_int_equal(byre_discard(image, 0, MIB), 0);
    assert_int_equal(byre_write(image, out, sizeof out, 0, BYRE_COMPRESS), -EINVAL);       /* not whole clusters */
    char *cluster = calloc(1, 65536);
    memcpy(cluster, out, sizeof out);
    assert_int_equal(byre_write(image, cluster, 65536, 128 * 1024, BYRE_COMPRESS | BYRE_FUA), 0);
    assert_int_equal(byre_write(image, cluster, 65536, 128 * 1024, BYRE_COMPRESS | BYRE_UNMAP), -EINVAL);
    assert_int_equal(byre_read(image, in, sizeof in, 128 * 1024), 0);
    assert_memory_equal(in, out, sizeof in);
    free(cluster);
    assert_int_equal(byre_flush(image), 0);
    assert_int_equal(byre_read(image, in, 10, 8 * MIB - 9), -EIO);          /* one byte too many */
    assert_int_equal(byre_write(image, in, 10, UINT64_MAX - 3, 0), -EIO);
    assert_int_equal(byre_read(image, in, 0, 8 * MIB), 0);
    assert_int_equal(byre_read(image, in, 0, 8 * MIB + 1), -EIO);
    assert_int_equal(byre_resize(image, 9 * MIB, BYRE_PREALLOC_OFF, &err), 0);
    assert_int_equal(byre_size(image), 9 * MIB);

    struct byre_info *info;
    assert_int_equal(byre_info_get(image, &info, &err), 0);
    assert_string_equal(info->format, "qcow2");
    assert_int_equal(info->virtual_size, 9 * MIB);
    assert_int_equal(info->version, 3);
    assert_null(info->backing_filename);
    byre_info_free(info);

    uint64_t off = 0;
    while (off < 9 * MIB) {
        struct byre_extent e = byre_extent_init();
        assert_int_equal(byre_map(image, off, 9 * MIB - off, 0, &e), 0);
        assert_int_equal(e.start, off);
        assert_true(e.len > 0 && e.len <= 9 * MIB - off);
        off += e.len;
    }
    struct byre_extent e = byre_extent_init();
    assert_int_equal(byre_map(image, 9 * MIB, 1, 0, &e), -EIO);
    assert_int_equal(byre_map(image, 0, 0, 0, &e), -EINVAL);
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

static void blocking_with_threads(void **state) { blocking(2); }
static void blocking_in_the_callers_thread(void **state) { blocking(0); }

struct writer { struct byre_image *image; unsigned id; int error; };

static void *write_own_part(void *arg)
{
    struct writer *w = arg;
    unsigned char buf[777], back[777];
    for (unsigned round = 0; round < 60 && !w->error; round++) {
        uint64_t off = w->id * MIB + (round * 7919u) % (MIB - sizeof buf);
        memset(buf, (int)(w->id * 16 + round % 16), sizeof buf);
        w->error = byre_write(w->image, buf, sizeof buf, off, 0);
        if (!w->error)
            w->error = byre_read(w->image, back, sizeof back, off);
        if (!w->error && memcmp(buf, back, sizeof buf))
            w->error = 1;
    }
    return NULL;
}

static void several_threads(void **state)
{
    struct byre_ctx *ctx = ctx_new(2);
    struct byre_image *image = make(ctx, "threads.qcow2", "qcow2", 8 * MIB);
    struct writer w[4];
    pthread_t t[4];
    for (unsigned i = 0; i < 4; i++) {
        w[i] = (struct writer){ image, i, 0 };
        assert_int_equal(pthread_create(&t[i], NULL, write_own_part, &w[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(w[i].error, 0);
    }
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

/* ---- queues ---- */
static void reap_exactly(struct byre_queue *q, unsigned n, struct byre_completion *ret)
{
    unsigned have = 0;
    while (have < n) {
        int k = byre_queue_reap(q, ret + have, n - have, 1, 10000);
        assert_true(k > 0);
        have += (unsigned)k;
    }
}

static void queue_basics(unsigned loops)
{
    struct byre_ctx *ctx = ctx_new(loops);
    struct byre_image *image = make(ctx, "queue.qcow2", "qcow2", 8 * MIB);
    struct byre_queue_opts qo = byre_queue_opts_init();
    struct byre_queue *q;
    struct byre_err err;
    struct byre_completion c[16];
    static char buf[8][4096];
    qo.depth = 5;
    assert_int_equal(byre_queue_new(image, &qo, &q, &err), 0);
    struct byre_request rq[8];
    memset(rq, 0, sizeof rq);
    for (unsigned i = 0; i < 8; i++) {
        memset(buf[i], (int)('a' + i), 4096);
        rq[i] = (struct byre_request){ .op = BYRE_OP_WRITE, .off = i * 65536, .len = 4096, .buf = buf[i], .tag = 100 + i };
    }
    assert_int_equal(byre_queue_submit(q, rq, 8), 5);                    /* full */
    assert_int_equal(byre_queue_submit(q, rq + 5, 3), 0);
    assert_int_equal(byre_queue_in_flight(q), 5);
    reap_exactly(q, 5, c);
    uint64_t tags = 0;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(c[i].result, 0);
        tags |= UINT64_C(1) << (c[i].tag - 100);
    }
    assert_int_equal(tags, 31);
    assert_int_equal(byre_queue_in_flight(q), 0);
    assert_int_equal(byre_queue_reap(q, c, 16, 1, 0), 0);                 /* nothing is in flight: does not wait */
    assert_int_equal(byre_queue_submit(q, rq + 5, 3), 3);
    reap_exactly(q, 3, c);

    struct iovec v[2] = { { buf[0], 1000 }, { buf[1], 3096 } };
    struct byre_request empty[2] = { { .op = BYRE_OP_READ, .off = 8 * MIB, .tag = 1 }, { .op = BYRE_OP_ZERO, .off = 8 * MIB + 1, .tag = 2 } };
    assert_int_equal(byre_queue_submit(q, empty, 2), 2);
    reap_exactly(q, 2, c);
    for (int i = 0; i < 2; i++)
        assert_int_equal(c[i].result, c[i].tag == 2 ? -EIO : 0);             /* of no bytes, but behind the end */
    struct byre_request reads[3] = { { .op = BYRE_OP_READ, .off = 7 * 65536, .len = 4096, .iov = v, .iov_count = 2, .tag = 1 },
                                     { .op = BYRE_OP_READ, .off = 8 * MIB - 1, .len = 2, .buf = buf[2], .tag = 2 },
                                     { .op = BYRE_OP_FLUSH, .tag = 3 } };
    assert_int_equal(byre_queue_submit(q, reads, 3), 3);
    reap_exactly(q, 3, c);
    for (int i = 0; i < 3; i++)
        assert_int_equal(c[i].result, c[i].tag == 2 ? -EIO : 0);
    assert_int_equal(buf[0][999], 'h');
    assert_int_equal(buf[1][3095], 'h');

    struct byre_request bad = { .op = 99 };
    assert_int_equal(byre_queue_submit(q, &bad, 1), -EINVAL);
    bad = (struct byre_request){ .op = BYRE_OP_READ, .len = 5000, .iov = v, .iov_count = 2 };
    assert_int_equal(byre_queue_submit(q, &bad, 1), -EINVAL);             /* the list holds fewer bytes */
    bad = (struct byre_request){ .op = BYRE_OP_READ, .len = 1, .buf = buf[0], .flags = BYRE_FUA };
    assert_int_equal(byre_queue_submit(q, &bad, 1), -EINVAL);
    struct byre_request mixed[2] = { reads[2], bad };
    assert_int_equal(byre_queue_submit(q, mixed, 2), 1);                  /* what stands before the bad one */
    byre_queue_free(q);                                                   /* waits for it */
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

static void queue_with_threads(void **state) { queue_basics(2); }
static void queue_in_the_callers_thread(void **state) { queue_basics(0); }

static void queue_descriptor(void **state)
{
    struct byre_ctx *ctx = ctx_new(1);
    struct byre_image *image = make(ctx, "fd.raw", "raw", MIB);
    struct byre_queue *q;
    struct byre_completion c[8];
    static char buf[3][4096];
    assert_int_equal(byre_queue_new(image, NULL, &q, NULL), 0);
    int fd = byre_queue_fd(q);
    assert_true(fd >= 0);
    for (int round = 0; round < 200; round++) {
        struct byre_request rq[3];
        for (int i = 0; i < 3; i++)
            rq[i] = (struct byre_request){ .op = BYRE_OP_READ, .off = (uint64_t)i * 4096, .len = 4096, .buf = buf[i], .tag = (uint64_t)i };
        assert_int_equal(byre_queue_submit(q, rq, 3), 3);
        /* poll and reap without waiting inside, as a program with its own event loop does */
        struct pollfd p = { .fd = fd, .events = POLLIN };
        for (int left = 3; left;) {
            assert_int_equal(poll(&p, 1, 10000), 1);
            left -= byre_queue_reap(q, c, 8, 0, 0);
        }
        for (int i = 0; poll(&p, 1, 0) == 1; i++) {         /* nothing is left, and nobody runs in circles; a signal may come late */
            assert_true(i < 3);
            assert_int_equal(byre_queue_reap(q, c, 8, 0, 0), 0);
        }
    }
    byre_queue_free(q);
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
    ctx = ctx_new(0);
    image = make(ctx, "fd.raw", "raw", MIB);
    assert_int_equal(byre_queue_new(image, NULL, &q, NULL), 0);
    assert_int_equal(byre_queue_fd(q), -ENOTSUP);
    byre_queue_free(q);
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

struct load { struct byre_image *image; unsigned id; int error; };

/* Writes its own part with many requests in flight, then reads it back. */
static void *queue_load(void *arg)
{
    struct load *l = arg;
    enum { N = 256, DEPTH = 32, LEN = 8192 };
    static char bufs[3][DEPTH][LEN];
    struct byre_queue_opts qo = byre_queue_opts_init();
    struct byre_queue *q;
    qo.depth = DEPTH;
    if (byre_queue_new(l->image, &qo, &q, NULL))
        return l->error = 1, NULL;
    for (int pass = 0; pass < 2; pass++) {
        unsigned sent = 0, done = 0, free_slots[DEPTH], frees = 0;
        for (unsigned i = 0; i < DEPTH; i++)
            free_slots[frees++] = i;
        while (done < N && !l->error) {
            while (sent < N && frees) {
                unsigned s = free_slots[--frees];
                uint64_t off = l->id * 4 * MIB + (sent * 37u % N) * LEN;
                struct byre_request rq = { .op = pass ? BYRE_OP_READ : BYRE_OP_WRITE, .off = off, .len = LEN, .buf = bufs[l->id][s],
                                           .tag = s | off << 8 };
                if (!pass)
                    memset(bufs[l->id][s], (int)(off / LEN % 251 + 1), LEN);
                l->error |= byre_queue_submit(q, &rq, 1) != 1;
                sent++;
            }
            struct byre_completion c[DEPTH];
            int n = byre_queue_reap(q, c, DEPTH, 1 + done % 8, -1);
            for (int i = 0; i < n; i++) {
                unsigned s = c[i].tag & 0xff;
                uint64_t off = c[i].tag >> 8;
                l->error |= c[i].result != 0;
                if (pass)
                    l->error |= bufs[l->id][s][0] != (char)(off / LEN % 251 + 1) || bufs[l->id][s][LEN - 1] != bufs[l->id][s][0];
                free_slots[frees++] = s;
                done++;
            }
        }
    }
    byre_queue_free(q);
    return NULL;
}

static void queues_in_parallel(void **state)
{
    struct byre_ctx *ctx = ctx_new(2);
    struct byre_image *image = make(ctx, "load.qcow2", "qcow2", 16 * MIB);
    struct load l[3];
    pthread_t t[3];
    for (unsigned i = 0; i < 3; i++) {
        l[i] = (struct load){ image, i, 0 };
        assert_int_equal(pthread_create(&t[i], NULL, queue_load, &l[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(l[i].error, 0);
    }
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

/* ---- jobs ---- */
static void jobs(unsigned loops)
{
    struct byre_ctx *ctx = ctx_new(loops);
    struct byre_image *a = make(ctx, "a.raw", "raw", 4 * MIB), *b = make(ctx, "b.qcow2", "qcow2", 4 * MIB);
    struct byre_job *job;
    struct byre_err err;
    struct byre_progress p;
    assert_int_equal(byre_write(a, "hello", 5, 3 * MIB + 7, 0), 0);
    struct byre_convert_result result = byre_convert_result_init();
    struct byre_convert_opts o = byre_convert_opts_init();
    o.sparse_bytes = 4096;
    o.flags = BYRE_CONVERT_TARGET_ZERO;
    assert_int_equal(byre_convert_start(&a, 1, b, &o, &result, &job, &err), 0);
    assert_int_equal(byre_job_wait(job, -1, &err), 0);
    assert_int_equal(byre_job_wait(job, 0, &err), 0);                     /* again: the same */
    byre_job_progress(job, &p);
    assert_int_equal(p.done, p.total);
    byre_job_free(job);
    assert_true(result.written > 0 && result.written < MIB);

    struct byre_compare_result cr = byre_compare_result_init();
    assert_int_equal(byre_compare_start(a, b, 0, &cr, &job, &err), 0);
    assert_int_equal(byre_job_wait(job, -1, &err), 0);
    byre_job_free(job);
    assert_int_equal(cr.difference, BYRE_SAME);
    assert_int_equal(byre_write(b, "H", 1, 3 * MIB + 7, 0), 0);
    assert_int_equal(byre_compare_start(a, b, 0, &cr, &job, &err), 0);
    assert_int_equal(byre_job_wait(job, -1, &err), 0);
    byre_job_free(job);
    assert_int_equal(cr.difference, BYRE_DIFFER_CONTENT);
    assert_int_equal(cr.offset, 3 * MIB);

    o = byre_convert_opts_init();
    o.rate_bytes = 64 * 1024;                                             /* would take a minute */
    assert_int_equal(byre_convert_start(&a, 1, b, &o, NULL, &job, &err), 0);
    assert_int_equal(byre_job_wait(job, 20, &err), -ETIMEDOUT);
    byre_job_cancel(job);
    assert_int_equal(byre_job_wait(job, 20000, &err), -ECANCELED);
    byre_job_free(job);
    assert_int_equal(byre_convert_start(&a, 1, b, &o, NULL, &job, &err), 0);
    byre_job_free(job);                                                   /* cancels and waits */

    o.sparse_bytes = 100;
    assert_int_equal(byre_convert_start(&a, 1, b, &o, NULL, &job, &err), -EINVAL);
    assert_int_equal(byre_check_start(b, NULL, NULL, &job, &err), -EINVAL);   /* not opened for checking */
    assert_int_equal(byre_close(a), 0);
    assert_int_equal(byre_close(b), 0);
    byre_ctx_free(ctx);
}

static void jobs_with_threads(void **state) { jobs(2); }
static void jobs_in_the_callers_thread(void **state) { jobs(0); }

/* ---- an image that was not closed cleanly (FEATURES 1.023): repaired first, or at once with a scrub behind ---- */
static void mark_dirty(const char *path)
{
    uint8_t byte = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &byte, 1, 79) == 1);
    byte |= 1;
    assert_int_equal(pwrite(fd, &byte, 1, 79), 1);
    close(fd);
}

static bool is_dirty(const char *path)
{
    uint8_t byte = 0;
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && pread(fd, &byte, 1, 79) == 1);
    close(fd);
    return byte & 1;
}

static void unclean(void **state)
{
    struct byre_ctx *ctx = ctx_new(1);
    struct byre_err err;
    struct byre_image *a;
    struct byre_job *job;
    struct byre_check_result res = byre_check_result_init();
    struct byre_check_opts co_ = byre_check_opts_init();
    struct byre_open_opts o = byre_open_opts_init();
    o.format = "qcow2";
    a = make(ctx, "unclean.qcow2", "qcow2", 8 * MIB);
    assert_int_equal(byre_write(a, "hello", 5, MIB, 0), 0);
    assert_int_equal(byre_close(a), 0);
    /* read-only: as it is, and not a word is written */
    mark_dirty(path_of("unclean.qcow2"));
    o.flags = BYRE_OPEN_READ_ONLY | BYRE_OPEN_SERVE_UNCLEAN;
    assert_int_equal(byre_open(ctx, path_of("unclean.qcow2"), &o, &a, &err), 0);
    assert_int_equal(byre_is_unclean(a), 0);
    assert_int_equal(byre_scrub_start(a, NULL, &res, &job, &err), -EROFS);
    assert_int_equal(byre_close(a), 0);
    assert_true(is_dirty(path_of("unclean.qcow2")));
    /* at once: dirty until the scrub has ended */
    o.flags = BYRE_OPEN_SERVE_UNCLEAN;
    assert_int_equal(byre_open(ctx, path_of("unclean.qcow2"), &o, &a, &err), 0);
    assert_true(byre_is_unclean(a) && is_dirty(path_of("unclean.qcow2")));
    char buf[5];
    assert_int_equal(byre_read(a, buf, 5, MIB), 0);
    assert_memory_equal(buf, "hello", 5);
    assert_int_equal(byre_write(a, "J", 1, MIB, 0), 0);
    assert_int_equal(byre_resize(a, 9 * MIB, 0, &err), -EBUSY);
    co_.flags = BYRE_FIX_ERRORS;
    assert_int_equal(byre_scrub_start(a, &co_, &res, &job, &err), -EINVAL);
    co_.flags = BYRE_FIX_LEAKS;
    assert_int_equal(byre_scrub_start(a, &co_, &res, &job, &err), 0);
    assert_int_equal(byre_job_wait(job, -1, &err), 0);
    byre_job_free(job);
    assert_true(!byre_is_unclean(a) && !is_dirty(path_of("unclean.qcow2")) && !res.corruptions && !res.leaks);
    assert_int_equal(byre_close(a), 0);
    /* without the flag: repaired before it opens */
    mark_dirty(path_of("unclean.qcow2"));
    o.flags = 0;
    assert_int_equal(byre_open(ctx, path_of("unclean.qcow2"), &o, &a, &err), 0);
    assert_true(!byre_is_unclean(a) && !is_dirty(path_of("unclean.qcow2")));
    assert_int_equal(byre_read(a, buf, 5, MIB), 0);
    assert_memory_equal(buf, "Jello", 5);
    assert_int_equal(byre_close(a), 0);
    byre_ctx_free(ctx);
}

/* ---- creation leaves nothing behind ---- */
static void failed_creation(void **state)
{
    struct byre_ctx *ctx = ctx_new(1);
    struct byre_err err;
    struct stat st;
    const char *bad = "cluster_size=3k", *twice = "size=1M";
    struct byre_create_opts c = byre_create_opts_init();
    c.format = "qcow2";
    c.flags = BYRE_CREATE_SIZE;
    c.size = MIB;
    c.options = &bad;
    c.option_count = 1;
    assert_true(byre_create(ctx, path_of("none"), &c, &err) < 0);
    assert_int_equal(stat(path_of("none"), &st), -1);
    c.options = &twice;
    assert_int_equal(byre_create(ctx, path_of("none"), &c, &err), -EINVAL);
    c.flags |= BYRE_CREATE_SIZE_WINS;
    assert_int_equal(byre_create(ctx, path_of("once"), &c, &err), 0);
    c.flags |= BYRE_CREATE_EXCLUSIVE;
    assert_int_equal(byre_create(ctx, path_of("once"), &c, &err), -EEXIST);
    c = byre_create_opts_init();
    assert_int_equal(byre_create(ctx, path_of("none"), &c, &err), -EINVAL);         /* no size */
    c.format = "nothing";
    assert_int_equal(byre_create(ctx, path_of("none"), &c, &err), -EINVAL);
    byre_ctx_free(ctx);
}

/* ---- bitmaps (FEATURES 1.104, 1.110) ---- */
static void bitmaps_in(unsigned loops)
{
    struct byre_ctx *ctx = ctx_new(loops);
    struct byre_image *a = make(ctx, "bm-a", "qcow2", 8 * MIB), *b = make(ctx, "bm-b", "qcow2", 8 * MIB), *raw = make(ctx, "bm-r", "raw", 8 * MIB);
    struct byre_bitmap_opts o = byre_bitmap_opts_init();
    struct byre_bitmap_status st = byre_bitmap_status_init();
    struct byre_err err;
    uint64_t len;
    uint8_t buf[4096] = { 1 };
    o.flags = BYRE_BITMAP_PERSISTENT;
    o.granularity = 4096;
    assert_int_equal(byre_bitmap_add(raw, "x", &o, &err), -ENOTSUP);
    assert_int_equal(byre_bitmap_add(a, "x", &o, &err), 0);
    assert_int_equal(byre_bitmap_add(a, "x", &o, &err), -EEXIST);
    o.flags = 1u << 30;
    assert_int_equal(byre_bitmap_add(a, "y", &o, &err), -EINVAL);
    assert_int_equal(byre_write(a, buf, sizeof buf, MIB + 1, 0), 0);
    assert_int_equal(byre_bitmap_get(a, "x", &st, &err), 0);
    assert_true(st.granularity == 4096 && st.dirty == 8192 && st.flags == BYRE_BITMAP_PERSISTENT);
    assert_int_equal(byre_bitmap_run(a, "x", 0, 8 * MIB, &len, &err), 0);
    assert_int_equal(len, MIB);
    assert_int_equal(byre_bitmap_run(a, "x", MIB, 7 * MIB, &len, &err), 1);
    assert_int_equal(len, 8192);
    assert_int_equal(byre_bitmap_run(a, "x", 8 * MIB, 1, &len, &err), -EINVAL);
    assert_int_equal(byre_bitmap_copy_all(b, a, 0, &err), 0);
    assert_int_equal(byre_bitmap_copy_all(b, a, 0, &err), -EEXIST);
    assert_int_equal(byre_bitmap_get(b, "x", &st, &err), 0);
    assert_int_equal(st.dirty, 8192);
    assert_int_equal(byre_bitmap_disable(b, "x", &err), 0);
    assert_int_equal(byre_write(b, buf, sizeof buf, 5 * MIB, 0), 0);
    assert_int_equal(byre_bitmap_enable(b, "x", &err), 0);
    assert_int_equal(byre_bitmap_clear(a, "x", &err), 0);
    assert_int_equal(byre_bitmap_merge(a, "x", b, "x", &err), 0);
    assert_int_equal(byre_bitmap_get(a, "x", &st, &err), 0);
    assert_int_equal(st.dirty, 8192);
    assert_int_equal(byre_bitmap_remove(a, "x", &err), 0);
    assert_int_equal(byre_bitmap_get(a, "x", &st, &err), -ENOENT);
    assert_int_equal(byre_close(a), 0);
    assert_int_equal(byre_close(b), 0);
    assert_int_equal(byre_close(raw), 0);
    byre_ctx_free(ctx);
}
static void bitmaps_with_threads(void **state) { bitmaps_in(2); }

/* Three threads add, empty, merge, look at and remove the same two bitmaps, a fourth writes: none is lost half-way. */
struct bitmap_user { struct byre_image *a; unsigned number; uint64_t seen; };

static int one_of(struct bitmap_user *u, unsigned which, const char *name, const char *other)
{
    struct byre_bitmap_opts o = byre_bitmap_opts_init();
    struct byre_bitmap_status st = byre_bitmap_status_init();
    uint64_t len;
    o.flags = which & 8 ? BYRE_BITMAP_PERSISTENT : 0;
    switch (which % 8) {
    case 0:
    case 1: return byre_bitmap_add(u->a, name, &o, NULL);
    case 2: return byre_bitmap_remove(u->a, name, NULL);
    case 3: return byre_bitmap_clear(u->a, name, NULL);
    case 4: return byre_bitmap_merge(u->a, name, u->a, other, NULL);
    case 5: return which & 16 ? byre_bitmap_enable(u->a, name, NULL) : byre_bitmap_disable(u->a, name, NULL);
    case 6: return byre_bitmap_get(u->a, name, &st, NULL);
    }
    return byre_bitmap_run(u->a, name, 0, 8 * MIB, &len, NULL);
}

static void *use_bitmaps(void *arg)
{
    struct bitmap_user *u = arg;
    static const char *const name[] = { "x", "y" };
    uint32_t at = 7 + u->number;
    uint8_t buf[4096] = { 1 };
    for (unsigned i = 0; i < 400; i++) {
        at = at * 1664525 + 1013904223;
        int r = u->number == 3 ? byre_write(u->a, buf, sizeof buf, (uint64_t)(at >> 13) % (7 * MIB), 0) : one_of(u, at >> 8, name[at >> 30 & 1], name[~at >> 30 & 1]);
        if (r < 0 && r != -EEXIST && r != -ENOENT)
            u->seen = (uint64_t)-r;
    }
    return NULL;
}

static void bitmaps_from_several_threads(void **state)
{
    struct byre_ctx *ctx = ctx_new(2);
    struct byre_image *a = make(ctx, "bm-t", "qcow2", 8 * MIB);
    struct bitmap_user u[4];
    pthread_t t[4];
    for (unsigned i = 0; i < 4; i++) {
        u[i] = (struct bitmap_user){ .a = a, .number = i };
        assert_int_equal(pthread_create(&t[i], NULL, use_bitmaps, &u[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(u[i].seen, 0);
    }
    assert_int_equal(byre_close(a), 0);
    byre_ctx_free(ctx);
}

/* All bitmaps of an image are copied to another one and back by two threads, while two others remove and add them: who copies finds each of them whole, or
 * not at all, and nobody waits for ever. */
struct copier { struct byre_image *from, *to; unsigned number; bool copies; int seen; };

static void *copy_bitmaps(void *arg)
{
    struct copier *k = arg;
    static const char *const name[] = { "a longer name, so that it has memory of its own", "y", "z" };
    uint32_t at = 3 + k->number;
    for (unsigned i = 0; i < 200; i++) {
        struct byre_bitmap_opts o = byre_bitmap_opts_init();
        at = at * 1664525 + 1013904223;
        const char *which = name[(at >> 16) % 3];
        o.flags = BYRE_BITMAP_PERSISTENT | (at & 1u << 20 ? BYRE_BITMAP_DISABLED : 0);
        int r = k->copies ? byre_bitmap_copy_all(k->to, k->from, 0, NULL) : at & 1u << 22 ? byre_bitmap_add(k->from, which, &o, NULL) : byre_bitmap_remove(k->from, which, NULL);
        for (unsigned n = 0; k->copies && r == 0 && n < 3; n++)
            (void)!byre_bitmap_remove(k->to, name[n], NULL);
        if (r < 0 && r != -EEXIST && r != -ENOENT)
            k->seen = r;
    }
    return NULL;
}

static void bitmaps_are_copied_while_others_go(void **state)
{
    struct byre_ctx *ctx = ctx_new(2);
    struct byre_image *a = make(ctx, "bm-c", "qcow2", 8 * MIB), *b = make(ctx, "bm-d", "qcow2", 8 * MIB);
    struct copier k[4];
    pthread_t t[4];
    for (unsigned i = 0; i < 4; i++) {
        k[i] = (struct copier){ .from = i & 1 ? b : a, .to = i & 1 ? a : b, .number = i, .copies = i < 2 };
        assert_int_equal(pthread_create(&t[i], NULL, copy_bitmaps, &k[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(k[i].seen, 0);
    }
    assert_int_equal(byre_close(a), 0);
    assert_int_equal(byre_close(b), 0);
    byre_ctx_free(ctx);
}
static void bitmaps_in_the_callers_thread(void **state) { bitmaps_in(0); }

static int make_folder(void **state)
{
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", folder);
    return system(cmd);
}

/* ---- snapshots (FEATURES 1.086 to 1.091) ---- */

static void opens_as(struct byre_ctx *ctx, const char *name, const struct byre_open_opts *o, uint64_t size, uint8_t fill)
{
    struct byre_image *image = NULL;
    struct byre_err err;
    uint8_t buf[4096];
    if (byre_open(ctx, path_of(name), o, &image, &err))
        fail_msg("%s", err.text);
    assert_true(byre_size(image) == size);
    assert_int_equal(byre_read(image, buf, sizeof buf, 0), 0);
    assert_true(buf[0] == fill && memcmp(buf, buf + 1, sizeof buf - 1) == 0);
    assert_int_equal(byre_close(image), 0);
}

static void snapshots(unsigned loops)
{
    struct byre_ctx *ctx = ctx_new(loops);
    struct byre_image *image = make(ctx, loops ? "snap2" : "snap0", "qcow2", 1 << 20), *other;
    const char *name = loops ? "snap2" : "snap0";
    struct byre_err err;
    struct byre_snapshot_opts so = byre_snapshot_opts_init();
    struct byre_snapshot_pick p = byre_snapshot_pick_init();
    uint8_t buf[4096];
    for (unsigned i = 1; i <= 2; i++) {
        memset(buf, (int)i, sizeof buf);
        assert_int_equal(byre_write(image, buf, sizeof buf, 0, 0), 0);
        so.name = i == 1 ? "one" : "1";
        so.date_sec = 1000 * i;
        assert_int_equal(byre_snapshot_create(image, &so, &err), 0);
        assert_int_equal(byre_resize(image, (1 + i) << 20, BYRE_PREALLOC_OFF, &err), 0);
    }
    so.flags = BYRE_SNAPSHOT_UNIQUE;
    assert_int_equal(byre_snapshot_create(image, &so, &err), -EEXIST);
    so.flags = 1u << 9;
    assert_int_equal(byre_snapshot_create(image, &so, &err), -EINVAL);
    assert_int_equal(byre_snapshot_delete(image, &p, &err), -EINVAL);             /* which one? */
    p.any = "nobody";
    assert_int_equal(byre_snapshot_apply(image, &p, &err), -ENOENT);
    p.any = "1";                                                                /* the id: snapshot "one" */
    struct byre_bitmap_opts bo = byre_bitmap_opts_init();
    for (unsigned i = 0; i < 2; i++) {                                          /* a bitmap of the image or of the program stays (G.007) */
        bo.flags = i ? BYRE_BITMAP_PERSISTENT : 0;
        assert_int_equal(byre_bitmap_add(image, "b", &bo, &err), 0);
        assert_int_equal(byre_snapshot_apply(image, &p, &err), 0);
        assert_true(byre_size(image) == 1 << 20);
        uint64_t dirty = 0;
        assert_int_equal(byre_bitmap_run(image, "b", 0, 1 << 20, &dirty, &err), 1);
        assert_true(dirty == 1 << 20);
        assert_int_equal(byre_bitmap_remove(image, "b", &err), 0);
    }
    assert_int_equal(byre_snapshot_apply(image, &p, &err), 0);
    assert_true(byre_size(image) == 1 << 20);
    assert_int_equal(byre_read(image, buf, sizeof buf, 0), 0);
    assert_true(buf[0] == 1);
    assert_int_equal(byre_close(image), 0);
    struct byre_open_opts o = byre_open_opts_init();
    o.format = "qcow2";
    o.snapshot = "one";
    assert_int_equal(byre_open(ctx, path_of(name), &o, &other, &err), -EINVAL);      /* for reading only */
    o.flags = BYRE_OPEN_READ_ONLY;
    opens_as(ctx, name, &o, 1 << 20, 1);
    o.snapshot = NULL;
    o.snapshot_id = "2";
    o.snapshot_name = "1";
    opens_as(ctx, name, &o, 2 << 20, 2);
    o.snapshot = "one";
    assert_int_equal(byre_open(ctx, path_of(name), &o, &other, &err), -EINVAL);      /* picked twice */
    o = byre_open_opts_init();
    o.format = "qcow2";
    assert_int_equal(byre_open(ctx, path_of(name), &o, &image, &err), 0);
    p.name_first = 1;
    assert_int_equal(byre_snapshot_delete(image, &p, &err), 0);                   /* the name: id 2 */
    struct byre_info *info;
    assert_int_equal(byre_info_get(image, &info, &err), 0);
    assert_true(info->snapshot_count == 1 && info->snapshots[0]->date_sec == 1000);
    assert_string_equal(info->snapshots[0]->name, "one");
    byre_info_free(info);
    assert_int_equal(byre_close(image), 0);
    byre_ctx_free(ctx);
}

static void snapshots_with_threads(void **state) { snapshots(2); }
static void snapshots_in_the_callers_thread(void **state) { snapshots(0); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_of_other_ages), cmocka_unit_test(words), cmocka_unit_test(lists_of_node_options),
        cmocka_unit_test(one_id_at_a_time), cmocka_unit_test(wait_that_nobody_meets), cmocka_unit_test(strict_guesses_nothing), cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(blocking_with_threads), cmocka_unit_test(blocking_in_the_callers_thread), cmocka_unit_test(several_threads),
        cmocka_unit_test(queue_with_threads), cmocka_unit_test(queue_in_the_callers_thread), cmocka_unit_test(queue_descriptor),
        cmocka_unit_test(queues_in_parallel), cmocka_unit_test(jobs_with_threads), cmocka_unit_test(jobs_in_the_callers_thread),
        cmocka_unit_test(unclean), cmocka_unit_test(failed_creation), cmocka_unit_test(bitmaps_with_threads), cmocka_unit_test(bitmaps_in_the_callers_thread), cmocka_unit_test(bitmaps_from_several_threads), cmocka_unit_test(bitmaps_are_copied_while_others_go), cmocka_unit_test(snapshots_with_threads), cmocka_unit_test(snapshots_in_the_callers_thread),
    };
    return cmocka_run_group_tests_name("lib", tests, make_folder, remove_folder);
}
