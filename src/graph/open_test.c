/* SPDX-License-Identifier: MIT
 *
 * open_test.c: opening images and chains.
 *
 * Purpose      Probing, policies, names of backing files, loops and depth (RG22), sharing, locks, and that nothing is
 *              left open after a failure.
 * Owns         Files in a scratch folder, which is the working directory of the test.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "graph/toyfmt_test.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1u << 20)

/* ---- images ---- */

static void create(struct co *co, const char *name, const char *fmt, uint64_t size, const char *backing, const char *backing_fmt)
{
    struct stor_file_opts so = { .create = true, .truncate_to_zero = true };
    struct fmt_create_opts o = { .size = size, .version = 3, .backing_file = (char *)(uintptr_t)backing, .backing_fmt = (char *)(uintptr_t)backing_fmt };
    struct stor *s = NULL;
    struct byre_err err = { 0 };
    CHECK_EQ(stor_file_open(co, name, &so, &s, &err), 0);
    if (!CHECK_EQ(fmt_by_name(fmt)->create(co, s, &o, &err), 0))
        fprintf(stderr, "create %s: %s\n", name, err.text);
    stor_close(co, s);
}

static struct graph *graph_with(struct co *co, enum graph_policy policy, unsigned depth)
{
    struct graph *g = NULL;
    struct graph_opts o = { .policy = policy, .max_depth = depth };
    CHECK_EQ(graph_new(co_loop(co), &o, &g, NULL), 0);
    return g;
}

static struct graph_node *open_ok(struct co *co, struct graph *g, const struct graph_open_opts *o)
{
    struct graph_node *n = NULL;
    struct byre_err err = { 0 };
    if (!CHECK_EQ(graph_open(co, g, o, &n, &err), 0))
        fprintf(stderr, "open %s: %s\n", o->filename, err.text);
    return n;
}

static void open_fails(struct co *co, struct graph *g, const struct graph_open_opts *o, const char *reason)
{
    struct graph_node *n = NULL;
    struct byre_err err = { 0 };
    CHECK(graph_open(co, g, o, &n, &err) < 0);
    if (!CHECK(err.reason && !strcmp(err.reason, reason)))
        fprintf(stderr, "open %s: %s (%s), not %s\n", o->filename, err.reason, err.text, reason);
    CHECK(!graph_next(g, NULL));
}

static unsigned open_files(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

/* ---- formats and policies ---- */

static void probing(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "p.raw", "raw", MIB, NULL, NULL);
    create(co, "p.qcow2", "qcow2", MIB, NULL, NULL);
    struct graph_open_opts o = { .filename = "p.raw" };
    struct graph_node *n = open_ok(co, g, &o);
    CHECK(graph_probed(n) && graph_format(n) == &fmt_raw_ops && n->guard_first && !strcmp(graph_node_name(n), "#block0"));
    CHECK_EQ(t_write(co, n, "QFI\xfb\0\0\0\3", 8, 0, 0), -EPERM);
    CHECK_EQ(graph_close(co, n), 0);
    o.refuse_probed_raw = true;
    open_fails(co, g, &o, "PROBED_RAW");
    o.read_only = true;
    n = open_ok(co, g, &o);
    CHECK_EQ(graph_close(co, n), 0);
    o.read_only = false;
    o.format = "raw";
    n = open_ok(co, g, &o);
    CHECK(!graph_probed(n) && !n->guard_first);
    CHECK_EQ(t_write(co, n, "KDMV", 4, 0, 0), 0);
    CHECK_EQ(graph_close(co, n), 0);
    o = (struct graph_open_opts){ .filename = "p.raw" };
    open_fails(co, g, &o, "NOT_SUPPORTED");
    o = (struct graph_open_opts){ .filename = "p.qcow2", .node_name = "disk0" };
    n = open_ok(co, g, &o);
    CHECK(graph_probed(n) && graph_format(n) == &fmt_qcow2_ops && graph_find(g, "disk0") == n && graph_length(n) == MIB);
    struct graph_node *other = NULL;
    struct byre_err err;
    o.filename = "p.raw";
    o.format = "raw";
    CHECK_EQ(graph_open(co, g, &o, &other, &err), -EEXIST);
    o.node_name = "0bad";
    CHECK_EQ(graph_open(co, g, &o, &other, &err), -EINVAL);
    o.node_name = "a234567890123456789012345678901x";
    CHECK_EQ(graph_open(co, g, &o, &other, &err), -EINVAL);
    CHECK_EQ(graph_close(co, n), 0);
    o = (struct graph_open_opts){ .filename = "p.raw", .format = "what" };
    open_fails(co, g, &o, "UNKNOWN_FORMAT");
    o = (struct graph_open_opts){ .filename = "p.raw", .format = "qcow2" };
    open_fails(co, g, &o, "BAD_FORMAT");
    o = (struct graph_open_opts){ .filename = "p.qcow2", .force_share = true };
    open_fails(co, g, &o, "BAD_OPTION");
    o = (struct graph_open_opts){ .filename = "json:{\"driver\":\"qcow2\",\"file.filename\":\"p.qcow2\"}", .format = "raw" };
    open_fails(co, g, &o, "BAD_OPTION");
    o = (struct graph_open_opts){ .filename = "json:{\"driver\":\"file\",\"filename\":\"p.qcow2\"}" };
    n = open_ok(co, g, &o);
    CHECK(graph_format(n) == &fmt_raw_ops && !graph_probed(n));
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

static unsigned warnings;
static void count_warning(void *arg, const char *text)
{
    warnings += strstr(text, "not recorded") != NULL;
}

static void policies(struct co *co, void *arg)
{
    struct graph *strict = graph_with(co, GRAPH_STRICT, 0), *eco = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "s-base.raw", "raw", MIB, NULL, NULL);
    create(co, "s-none.qcow2", "qcow2", MIB, "s-base.raw", NULL);
    create(co, "s-good.qcow2", "qcow2", MIB, "s-base.raw", "raw");
    create(co, "s-json.qcow2", "qcow2", MIB, "json:{\"driver\":\"raw\",\"file.filename\":\"s-base.raw\"}", "raw");
    create(co, "s-nbd.qcow2", "qcow2", MIB, "nbd:localhost:1", "raw");
    create(co, "s-what.qcow2", "qcow2", MIB, "s-base.raw", "what");
    struct graph_open_opts o = { .filename = "s-good.qcow2", .format = "qcow2" };
    struct graph_node *n = open_ok(co, strict, &o);
    CHECK(graph_backing(n) && !graph_probed(graph_backing(n)) && graph_read_only(graph_backing(n)));
    CHECK_EQ(graph_close(co, n), 0);
    o.format = NULL;
    open_fails(co, strict, &o, "BAD_ARGUMENT");
    o = (struct graph_open_opts){ .filename = "s-none.qcow2", .format = "qcow2" };
    open_fails(co, strict, &o, "BACKING_FORMAT");
    eco->warn = count_warning;
    warnings = 0;
    n = open_ok(co, eco, &o);
    CHECK(graph_probed(graph_backing(n)) && warnings == 1);
    CHECK_EQ(graph_close(co, n), 0);
    o = (struct graph_open_opts){ .filename = "s-json.qcow2", .format = "qcow2" };
    open_fails(co, strict, &o, "REFUSED_REFERENCE");
    n = open_ok(co, eco, &o);
    CHECK(!strcmp(graph_backing_filename(n), "s-base.raw"));
    CHECK_EQ(graph_close(co, n), 0);
    o.filename = "s-nbd.qcow2";
    open_fails(co, strict, &o, "REFUSED_REFERENCE");
    open_fails(co, eco, &o, "BACKING_OPEN");
    o.no_backing = true;
    n = open_ok(co, eco, &o);
    CHECK(!graph_backing(n) && !strcmp(graph_backing_filename(n), "nbd://localhost:1"));
    CHECK_EQ(graph_close(co, n), 0);
    o = (struct graph_open_opts){ .filename = "s-what.qcow2", .format = "qcow2" };
    open_fails(co, eco, &o, "BACKING_OPEN");
    graph_free(strict);
    graph_free(eco);
}

/* ---- chains (FEATURES 11.007) ---- */

static void chains(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    char absolute[400], cwd[300];
    uint8_t buf[512];
    CHECK(getcwd(cwd, sizeof cwd) != NULL);
    snprintf(absolute, sizeof absolute, "%s/c-mid.qcow2", cwd);
    mkdir("sub", 0777);
    create(co, "sub/c-base.raw", "raw", MIB, NULL, NULL);
    struct graph_open_opts o = { .filename = "sub/c-base.raw", .format = "raw" };
    struct graph_node *n = open_ok(co, g, &o);
    memset(buf, 0x42, sizeof buf);
    CHECK_EQ(t_write(co, n, buf, 512, 4096, 0), 0);
    CHECK_EQ(graph_close(co, n), 0);
    create(co, "sub/c-low.qcow2", "qcow2", MIB, "c-base.raw", "raw");
    create(co, "c-mid.qcow2", "qcow2", 2 * MIB, "sub/c-low.qcow2", "qcow2");
    create(co, "c-top.qcow2", "qcow2", 2 * MIB, absolute, "qcow2");
    o = (struct graph_open_opts){ .filename = "c-top.qcow2", .node_name = "disk0", .backing_names = "disk0-b" };
    unsigned before = open_files();
    n = open_ok(co, g, &o);
    CHECK_EQ(open_files(), before + 4);
    CHECK(!strcmp(graph_backing_filename(n), absolute));
    CHECK(!strcmp(graph_node_name(graph_backing(n)), "disk0-b1") && graph_find(g, "disk0-b3"));
    snprintf(absolute, sizeof absolute, "%s/sub/c-base.raw", cwd);
    CHECK(!strcmp(graph_filename(graph_find(g, "disk0-b3")), absolute));
    snprintf(absolute, sizeof absolute, "%s/c-mid.qcow2", cwd);
    CHECK_EQ(n->im->below_zero_from, 2 * MIB);
    CHECK_EQ(t_read(co, n, buf, 512, 4096), 0);
    CHECK_EQ(buf[0], 0x42);
    CHECK_EQ(t_read(co, n, buf, 512, MIB + 4096), 0);
    CHECK(mem_is_zero(buf, 512));
    memset(buf, 0x17, sizeof buf);
    CHECK_EQ(t_write(co, n, buf, 512, 4096 + 512, 0), 0);
    CHECK_EQ(t_read(co, n, buf, 512, 4096), 0);
    CHECK_EQ(buf[511], 0x42);
    CHECK_EQ(graph_close(co, n), 0);
    CHECK(!graph_next(g, NULL));
    CHECK_EQ(open_files(), before);
    o.no_backing = true;
    n = open_ok(co, g, &o);
    CHECK(!graph_backing(n) && n->im->below_zero_from == UINT64_MAX);
    CHECK_EQ(graph_close(co, n), 0);
    unlink("sub/c-base.raw");
    o.no_backing = false;
    open_fails(co, g, &o, "BACKING_OPEN");
    CHECK_EQ(open_files(), before);
    unlink("sub/c-low.qcow2");
    rmdir("sub");
    graph_free(g);
}

/* One base below two overlays is open once; closing one leaves it to the other. */
static void sharing(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "h-base.qcow2", "qcow2", MIB, NULL, NULL);
    create(co, "h-mid.qcow2", "qcow2", MIB, "h-base.qcow2", "qcow2");
    create(co, "h-a.qcow2", "qcow2", MIB, "h-mid.qcow2", "qcow2");
    create(co, "h-b.qcow2", "qcow2", MIB, "h-mid.qcow2", "qcow2");
    struct graph_open_opts o = { .filename = "h-a.qcow2" };
    struct graph_node *a = open_ok(co, g, &o);
    o.filename = "h-b.qcow2";
    struct graph_node *b = open_ok(co, g, &o);
    CHECK(a != b && graph_backing(a) == graph_backing(b) && graph_backing(a));
    CHECK_EQ(graph_backing(a)->refs, 2);
    CHECK_EQ(graph_backing(graph_backing(a))->refs, 1);
    CHECK_EQ(graph_close(co, a), 0);
    CHECK(graph_backing(b) && graph_backing(graph_backing(b)));
    uint8_t buf[512];
    CHECK_EQ(t_read(co, b, buf, 512, 0), 0);
    /* the base cannot be opened for writing while it is below b */
    struct byre_err err;
    struct graph_node *n = NULL;
    o.filename = "h-base.qcow2";
    CHECK_EQ(graph_open(co, g, &o, &n, &err), -EAGAIN);
    CHECK_EQ(graph_close(co, b), 0);
    CHECK(!graph_next(g, NULL));
    /* a loop through a chain that is shared: x is open read-only below y, then opened again as an overlay of y */
    graph_free(g);
}

static uint64_t now_ns(struct co *co) { return rt_now(co_loop(co)); }

static void loops(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "l-a.qcow2", "qcow2", MIB, "l-b.qcow2", "qcow2");
    create(co, "l-b.qcow2", "qcow2", MIB, "l-a.qcow2", "qcow2");
    create(co, "l-self.qcow2", "qcow2", MIB, "l-self.qcow2", "qcow2");
    unsigned before = open_files();
    struct graph_open_opts o = { .filename = "l-a.qcow2" };
    uint64_t t = now_ns(co);
    open_fails(co, g, &o, "BACKING_LOOP");
    o.read_only = true;
    open_fails(co, g, &o, "BACKING_LOOP");
    o.filename = "l-self.qcow2";
    open_fails(co, g, &o, "BACKING_LOOP");
    t = now_ns(co) - t;
    fprintf(stderr, "three loops refused in %.1f ms\n", (double)t / 1e6);
    CHECK(t < 10000000000ull);                             /* refused, not walked for ever; the figure is for people */
    CHECK_EQ(open_files(), before);
    unlink("l-b.qcow2");
    CHECK_EQ(link("l-a.qcow2", "l-b.qcow2"), 0);          /* another name of the same file */
    o.filename = "l-a.qcow2";
    open_fails(co, g, &o, "BACKING_LOOP");
    graph_free(g);
}

static unsigned most_files;
static int counting_open(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    int r = graph_file_opener.open(co, arg, name, o, ret_s, err);
    unsigned n = open_files();
    most_files = n > most_files ? n : most_files;
    return r;
}

static void depth(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    char name[32], below[32];
    for (unsigned i = 0; i <= 300; i++) {
        snprintf(name, sizeof name, "d-%u.qcow2", i);
        snprintf(below, sizeof below, "d-%u.qcow2", i - 1);
        create(co, name, "qcow2", MIB, i ? below : NULL, i ? "qcow2" : NULL);
    }
    g->opener.open = counting_open;
    most_files = 0;
    unsigned before = open_files();
    struct graph_open_opts o = { .filename = "d-300.qcow2", .read_only = true };
    open_fails(co, g, &o, "BACKING_DEPTH");
    CHECK(most_files - before <= GRAPH_DEPTH_DEFAULT + 8);
    g->opener.open = graph_file_opener.open;
    uint64_t t = now_ns(co);
    open_fails(co, g, &o, "BACKING_DEPTH");
    t = now_ns(co) - t;
    CHECK_EQ(open_files(), before);
    fprintf(stderr, "depth bomb refused in %.1f ms\n", (double)t / 1e6);
    o.filename = "d-255.qcow2";
    t = now_ns(co);
    struct graph_node *n = open_ok(co, g, &o);
    fprintf(stderr, "chain of 256 opened in %.1f ms\n", (double)(now_ns(co) - t) / 1e6);
    uint8_t buf[512];
    CHECK_EQ(t_read(co, n, buf, 512, 0), 0);
    CHECK_EQ(graph_close(co, n), 0);
    CHECK_EQ(open_files(), before);
    o.filename = "d-256.qcow2";
    open_fails(co, g, &o, "BACKING_DEPTH");
    /* through a chain that is open already */
    o.filename = "d-200.qcow2";
    n = open_ok(co, g, &o);
    o.filename = "d-299.qcow2";
    struct graph_node *m = NULL;
    struct byre_err err = { 0 };
    CHECK_EQ(graph_open(co, g, &o, &m, &err), -EMLINK);
    CHECK_EQ(graph_close(co, n), 0);
    CHECK(!graph_next(g, NULL));
    for (unsigned i = 0; i <= 300; i++) {
        snprintf(name, sizeof name, "d-%u.qcow2", i);
        unlink(name);
    }
    graph_free(g);
}

/* ---- locks ---- */

/* Bytes 100 to 103 and 200 to 203 as bits 0 to 3 and 4 to 7: which are locked by somebody else's open file? */
static unsigned locked_bytes(const char *name)
{
    int fd = open(name, O_RDWR | O_CLOEXEC);
    unsigned bits = 0;
    CHECK(fd >= 0);
    for (int i = 0; i < 8; i++) {
        struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (i < 4 ? 100 : 196) + i, .l_len = 1 };
        CHECK_EQ(fcntl(fd, F_OFD_GETLK, &l), 0);
        bits |= (l.l_type != F_UNLCK ? 1u : 0u) << i;
    }
    close(fd);
    return bits;
}

static void locks(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "k-base.raw", "raw", MIB, NULL, NULL);
    create(co, "k-mid.qcow2", "qcow2", MIB, "k-base.raw", "raw");
    create(co, "k-top.qcow2", "qcow2", MIB, "k-mid.qcow2", "qcow2");
    static const struct { bool ro, share, no_lock; const char *file; unsigned top, mid, base, deny; bool stable; } cases[] = {
        { true, false, false, "k-top.qcow2", 0xa1, 0xa1, 0x01, 0, false },
        { false, false, false, "k-top.qcow2", 0xab, 0xa1, 0x01, 0, false },
        { true, true, false, "k-top.qcow2", 0x01, 0x01, 0x01, 0, false },
        { false, false, true, "k-top.qcow2", 0, 0, 0, 0, false },
        { false, false, false, "k-base.raw", 0, 0, 0x03, 0, false },
        { true, false, false, "k-base.raw", 0, 0, 0xa1, STOR_PERM_WRITE | STOR_PERM_RESIZE, false },
        { true, false, false, "k-top.qcow2", 0xa1, 0xa1, 0x01, STOR_PERM_WRITE | STOR_PERM_RESIZE, false },
        { true, false, false, "k-top.qcow2", 0xa1, 0xa1, 0xa1, 0, true },
        { true, true, false, "k-top.qcow2", 0x01, 0x01, 0x01, 0, true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct graph_open_opts o = { .filename = cases[i].file, .read_only = cases[i].ro, .force_share = cases[i].share,
                                     .no_lock = cases[i].no_lock, .deny = cases[i].deny, .stable = cases[i].stable };
        struct graph_node *n = open_ok(co, g, &o);
        CHECK_EQ(locked_bytes("k-top.qcow2"), cases[i].top);
        CHECK_EQ(locked_bytes("k-mid.qcow2"), cases[i].mid);
        CHECK_EQ(locked_bytes("k-base.raw"), cases[i].base);
        CHECK_EQ(graph_close(co, n), 0);
        CHECK_EQ(locked_bytes("k-top.qcow2") | locked_bytes("k-mid.qcow2") | locked_bytes("k-base.raw"), 0);
    }
    struct graph_open_opts o = { .filename = "k-base.raw", .format = "raw" };
    struct graph_node *n = open_ok(co, g, &o);
    CHECK_EQ(graph_resize(co, n, 2 * MIB, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(locked_bytes("k-base.raw"), 0x03);
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
}

/* ---- many extents at once ---- */

static void status_lists(struct co *co, void *arg)
{
    enum { BLOCK = 65536, BLOCKS = 200, MOST = 300 };
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    uint8_t *buf = malloc(BLOCK);
    memset(buf, 0x21, BLOCK);
    create(co, "e.raw", "raw", (uint64_t)BLOCK * BLOCKS, NULL, NULL);
    struct graph_open_opts o = { .filename = "e.raw", .format = "raw" };
    struct graph_node *n = open_ok(co, g, &o);
    CHECK_EQ(graph_zero(co, n, 0, BLOCK, 0), 0);
    for (unsigned i = 1; i < BLOCKS; i += 1 + i % 4)
        CHECK_EQ(t_write(co, n, buf, BLOCK, (uint64_t)i * BLOCK, 0), 0);
    struct graph_status *one = calloc(MOST, sizeof *one), *list = calloc(MOST, sizeof *list);
    unsigned count = 0;
    for (uint64_t off = 0; off < graph_length(n) && count < MOST; off += one[count++].len)
        CHECK_EQ(graph_status(co, n, NULL, off, graph_length(n) - off, &one[count]), 0);
    CHECK(count > 50 && count < MOST);
    for (unsigned max = 1; max <= MOST; max = max * 3 + 1) {
        unsigned got = 0;
        for (uint64_t off = 0; off < graph_length(n) && got < count; ) {
            int r = graph_status_list(co, n, NULL, off, graph_length(n) - off, list, max);
            if (!CHECK(r > 0 && (unsigned)r <= max))
                break;
            for (int i = 0; i < r; i++, got++) {
                CHECK(list[i].len == one[got].len && list[i].data == one[got].data && list[i].zero == one[got].zero && list[i].offset == off);
                off += list[i].len;
            }
        }
        CHECK_EQ(got, count);
    }
    CHECK_EQ(graph_close(co, n), 0);
    graph_free(g);
    free(one);
    free(list);
    free(buf);
}

/* ---- holes that the format does not know of ---- */

/* FEATURES 5.053: a file that is longer than what it holds only because we have reserved space is not asked for its holes, which waits
 * for whoever writes to it; one whose clusters have lost their space is. */
static void holes(struct co *co, void *arg)
{
    static const char *const formats[] = { "qcow2", "qed" };
    enum { CLUSTERS = 128, BYTES = 65536 };
    static uint8_t buf[BYTES];
    memset(buf, 0x21, sizeof buf);
    for (size_t i = 0; i < 2; i++) {
        struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
        uint64_t len = 0, there = 0;
        struct graph_status st;
        create(co, "h", formats[i], 64 * MIB, NULL, NULL);
        struct graph_open_opts o = { .filename = "h", .format = formats[i] };
        struct graph_node *n = open_ok(co, g, &o);
        for (uint64_t c = 0; c < CLUSTERS; c++)
            CHECK_EQ(t_write(co, n, buf, BYTES, c * 2 * BYTES, 0), 0);
        CHECK_EQ(stor_length(co, n->im->data, &len), 0);
        CHECK_EQ(stor_allocated(co, n->im->data, &there), 0);
        CHECK(there >= CLUSTERS * BYTES && len > 2 * there);
        CHECK_EQ(graph_status(co, n, NULL, 0, BYTES, &st), 0);
        CHECK(st.data && !st.zero);
        CHECK_EQ(n->recurse, RECURSE_NO);
        int fd = open("h", O_RDWR | O_CLOEXEC);
        CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)st.offset, CLUSTERS / 2 * BYTES), 0);
        close(fd);
        n->recurse = RECURSE_UNKNOWN;
        CHECK_EQ(graph_status(co, n, NULL, 0, BYTES, &st), 0);
        CHECK(st.present && st.zero);
        CHECK_EQ(n->recurse, RECURSE_YES);
        CHECK_EQ(graph_close(co, n), 0);
        graph_free(g);
    }
}

/* ---- the n-th file cannot be opened, the n-th read fails ---- */

static int opens_left;
static int failing_open(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    if (opens_left-- == 0)
        return byre_fail_code(err, SYSTEM, -EMFILE, "%s: injected", name);
    return graph_file_opener.open(co, arg, name, o, ret_s, err);
}

static void failures(struct co *co, void *arg)
{
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "f-base.qcow2", "qcow2", MIB, NULL, NULL);
    create(co, "f-mid.qcow2", "qcow2", MIB, "f-base.qcow2", "qcow2");
    create(co, "f-top.qcow2", "qcow2", MIB, "f-mid.qcow2", "qcow2");
    unsigned before = open_files();
    g->opener.open = failing_open;
    struct graph_open_opts o = { .filename = "f-top.qcow2" };
    for (int i = 0; i < 3; i++) {
        opens_left = i;
        open_fails(co, g, &o, i ? "BACKING_OPEN" : "SYSTEM");
        CHECK_EQ(open_files(), before);
    }
    opens_left = 3;
    struct graph_node *n = open_ok(co, g, &o);
    CHECK_EQ(graph_close(co, n), 0);
    /* a backing file that is no image */
    opens_left = 100;
    CHECK_EQ(truncate("f-base.qcow2", 100), 0);
    open_fails(co, g, &o, "BACKING_OPEN");
    CHECK_EQ(open_files(), before);
    graph_free(g);
}

/* ---- what lies below changes while an image is opened over it (index.c) ---- */

static struct { _Atomic bool inside, go, over; struct graph_node *n, *to; int fails, r; } below;

static int slow_flush(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op != TOY_FLUSH)
        return 0;
    atomic_store(&below.inside, true);
    while (!atomic_load(&below.go))
        (void)co_sleep(co, 100000);
    return below.fails;
}

static void set_below(struct co *co, void *arg)
{
    below.r = graph_set_backing(co, below.n, below.to, NULL);
    atomic_store(&below.over, true);
}

static void other_below(struct co *co, struct graph *g, int fails)
{
    struct toyfmt *f = toyfmt_new(co, MIB, 4096);
    uint8_t buf[512];
    toyfmt_set(f, 0, FMT_DATA, false, 0x77);
    f->t->hook = slow_flush;
    atomic_store(&below.inside, false);
    atomic_store(&below.go, false);
    atomic_store(&below.over, false);
    below.fails = fails;
    below.n = open_ok(co, g, &(struct graph_open_opts){ .filename = "b-mid.qcow2", .read_only = true });
    below.to = toy_node(g, &f->im, NULL);
    CHECK_EQ(rt_spawn(co_loop(co), set_below, NULL), 0);
    while (!atomic_load(&below.inside))
        (void)co_sleep(co, 100000);
    struct graph_node *top = open_ok(co, g, &(struct graph_open_opts){ .filename = "b-top.qcow2" });
    atomic_store(&below.go, true);
    while (!atomic_load(&below.over))
        (void)co_sleep(co, 100000);
    CHECK_EQ(below.r, fails);
    CHECK(top->backing->backing == below.n);
    CHECK_EQ(index_stats(top->backing).layers, fails ? 3 : 2);           /* made by who changed it */
    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(t_read(co, top, buf, sizeof buf, 0), 0);
        CHECK_EQ(buf[0], fails ? 0x11 : 0x77);
    }
    CHECK_EQ(graph_close(co, top), 0);
    CHECK_EQ(graph_close(co, below.n), 0);
    (void)!graph_close(co, below.to);                /* a store that has failed says so */
    CHECK(!graph_next(g, NULL));
}

static void changing(struct co *co, void *arg)
{
    static const uint8_t old[512] = { 0x11 };
    struct graph *g = graph_with(co, GRAPH_ECOSYSTEM, 0);
    create(co, "b-low.qcow2", "qcow2", MIB, NULL, NULL);
    create(co, "b-mid.qcow2", "qcow2", MIB, "b-low.qcow2", "qcow2");
    create(co, "b-up.qcow2", "qcow2", MIB, "b-mid.qcow2", "qcow2");
    create(co, "b-top.qcow2", "qcow2", MIB, "b-up.qcow2", "qcow2");
    struct graph_node *n = open_ok(co, g, &(struct graph_open_opts){ .filename = "b-low.qcow2" });
    CHECK_EQ(t_write(co, n, old, sizeof old, 0, 0), 0);
    CHECK_EQ(graph_close(co, n), 0);
    other_below(co, g, 0);
    other_below(co, g, -EIO);
    graph_free(g);
}

#define RUN(fn, loop) static void test_##fn(void **state) { t_run(loop, fn, NULL); }
RUN(probing, 0)
RUN(policies, 1)
RUN(chains, 0)
RUN(sharing, 1)
RUN(loops, 0)
RUN(depth, 0)
RUN(locks, 1)
RUN(failures, 0)
RUN(status_lists, 0)
RUN(holes, 0)
RUN(changing, 0)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probing), cmocka_unit_test(test_policies), cmocka_unit_test(test_chains), cmocka_unit_test(test_sharing),
        cmocka_unit_test(test_loops), cmocka_unit_test(test_depth), cmocka_unit_test(test_locks), cmocka_unit_test(test_failures), cmocka_unit_test(test_status_lists), cmocka_unit_test(test_holes),
        cmocka_unit_test(test_changing),
    };
    char folder[512];
    snprintf(folder, sizeof folder, "%s", t_path("."));
    if (chdir(folder))
        return 1;
    return T_MAIN("open", tests);
}
