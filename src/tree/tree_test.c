/* SPDX-License-Identifier: MIT
 *
 * tree_test.c: headers that are damaged or hostile, the record and its crashes, the guard.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/endian.h"
#include "base/prng.h"
#include "base/test.h"
#include "fmt/qcow2/q2_header.h"
#include "fmt/qcow2/q2_ondisk.h"
#include "fmt/qed/qed_header.h"
#include "fmt/qed/qed_ondisk.h"
#include "tree/tree.h"

static char dir[4096];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/byre-tree-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[5000];
    snprintf(command, sizeof command, "rm -r -- '%s'", dir);
    return system(command);
}

/* A path in the folder of the test; one of eight buffers. */
static const char *at(const char *name)
{
    static char buf[8][5000];
    static unsigned turn;
    char *s = buf[turn++ % 8];
    snprintf(s, 5000, "%s/%s", dir, name);
    return s;
}

static void write_file(const char *path, const void *bytes, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, len), len);
    close(fd);
}

struct made { uint8_t b[8192]; size_t ext; };

/* A header with that backing name at 4000, so that it does not lie in the first 4 KiB as a whole when it is long. */
static struct made header(uint32_t version, const char *backing)
{
    struct made m = { .ext = version == 2 ? Q2_HEADER_V2_BYTES : 112 };
    struct q2_disk_header *d = (struct q2_disk_header *)m.b;
    be32_put(&d->magic, Q2_MAGIC);
    be32_put(&d->version, version);
    be32_put(&d->cluster_bits, 13);
    be64_put(&d->size, 1 << 20);
    be32_put(&d->nb_snapshots, 3);
    if (version == 3)
        be32_put(&d->header_len, 112);
    if (backing) {
        be64_put(&d->backing_off, 4000);
        be32_put(&d->backing_len, (uint32_t)strlen(backing));
        memcpy(m.b + 4000, backing, strlen(backing));
    }
    return m;
}

static void add_ext(struct made *m, uint32_t type, const char *data)
{
    struct q2_disk_ext *e = (struct q2_disk_ext *)(m->b + m->ext);
    be32_put(&e->type, type);
    be32_put(&e->len, (uint32_t)strlen(data));
    memcpy(m->b + m->ext + sizeof *e, data, strlen(data));
    m->ext += sizeof *e + (strlen(data) + 7) / 8 * 8;
}

static void make_image(const char *name, const char *backing)
{
    struct made m = header(3, backing);
    write_file(at(name), m.b, sizeof m.b);
}

/* ---- headers ---- */

static void test_peek_says_what_a_header_names(void **state)
{
    (void)state;
    struct fmt_peek p;
    struct made m = header(3, "base.img");
    add_ext(&m, 0x12345678, "unknown");
    add_ext(&m, Q2_EXT_BACKING_FORMAT, "raw");
    be64_put(&((struct q2_disk_header *)m.b)->incompat, Q2_INCOMPAT_DATA_FILE);
    add_ext(&m, Q2_EXT_DATA_FILE, "disk.data");
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), 0);
    assert_int_equal(p.size, 1 << 20);
    assert_int_equal(p.snapshots, 3);
    assert_int_equal(p.name_off, 4000);
    assert_int_equal(p.name_len, 8);
    assert_string_equal(p.backing_format, "raw");
    assert_string_equal(p.data_file, "disk.data");
    assert_true(p.has_data_file);
    fmt_peek_fini(&p);
    m = header(2, NULL);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), 0);
    assert_int_equal(p.name_len, 0);
}

static void test_peek_asks_for_extensions_that_lie_far_away(void **state)
{
    (void)state;
    struct fmt_peek p;
    struct made m = header(3, NULL);
    char *pad = calloc(1, 4001);
    memset(pad, 'x', 4000);
    add_ext(&m, 0x12345678, pad);
    add_ext(&m, Q2_EXT_BACKING_FORMAT, "qcow2");
    free(pad);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), 8192);
    assert_int_equal(q2_peek(m.b, 8192, sizeof m.b, &p), 0);
    assert_string_equal(p.backing_format, "qcow2");
    fmt_peek_fini(&p);
    assert_int_equal(q2_peek(m.b, 4096, 4096, &p), -EINVAL);       /* the file ends inside one */
}

static void test_peek_refuses_what_is_out_of_range(void **state)
{
    (void)state;
    struct fmt_peek p = { 0 };
    struct made m = header(3, "base.img");
    struct q2_disk_header *d = (struct q2_disk_header *)m.b;
    be32_put(&d->backing_len, 1024);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), -EINVAL);
    be32_put(&d->backing_len, 8);
    be64_put(&d->backing_off, UINT64_MAX - 4);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), -EINVAL);
    be64_put(&d->backing_off, 8190);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), -EINVAL);
    be64_put(&d->backing_off, 4000);
    assert_int_equal(q2_peek(m.b, 4096, 4004, &p), -EINVAL);       /* the name lies behind the end of the file */
    be32_put(&d->cluster_bits, 64);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), -EINVAL);
    be32_put(&d->cluster_bits, 13);
    be32_put(&((struct q2_disk_ext *)(m.b + 112))->type, 7);
    be32_put(&((struct q2_disk_ext *)(m.b + 112))->len, UINT32_MAX);
    assert_int_equal(q2_peek(m.b, 4096, sizeof m.b, &p), 0);       /* damaged, and it depends on its backing file all the same */
    assert_int_equal(p.name_len, 8);
    assert_int_equal(q2_peek(m.b, 71, 71, &p), -EINVAL);
}

static void test_peek_survives_any_bytes(void **state)
{
    (void)state;
    struct prng rng;
    prng_init(&rng, 7);
    for (int i = 0; i < 20000; i++) {
        struct made m = header(i % 2 ? 3 : 2, i % 3 ? "base" : NULL);
        struct fmt_peek p = { 0 };
        for (int k = 0; k < 6; k++)
            m.b[prng_below(&rng, 200)] = (uint8_t)prng_u64(&rng);
        size_t len = (size_t)prng_below(&rng, 8193);
        int r = q2_peek(m.b, len, sizeof m.b, &p);
        assert_true(r <= 0 || ((size_t)r > len && r <= 8192));
        if (!r)
            fmt_peek_fini(&p);
        memcpy(m.b, "QED", 4);
        r = qed_peek(m.b, len, sizeof m.b, &p);
        assert_true(r <= 0);
        if (!r) {
            assert_true(p.name_len <= QED_NAME_MAX && p.name_off + p.name_len <= sizeof m.b);
            fmt_peek_fini(&p);
        }
    }
}

/* ---- the set ---- */

static struct tree *scan(const struct tree_opts *o)
{
    struct tree *t;
    struct byre_err err;
    assert_int_equal(tree_new(o, &t, &err), 0);
    assert_int_equal(tree_add_dir(t, dir, true, NULL, &err), 0);
    assert_int_equal(tree_settle(t, &err), 0);
    return t;
}

static const struct tree_image *named(const struct tree *t, const char *name)
{
    for (size_t i = 0; i < tree_count(t); i++)
        if (!strcmp(tree_at(t, i)->path, at(name)))
            return tree_at(t, i);
    return NULL;
}

static void test_a_set_holds_each_file_once_and_ends(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    assert_int_equal(mkdir(at("sub"), 0755), 0);
    make_image("base", NULL);
    make_image("a", "base");
    make_image("sub/b", "../base");
    make_image("self", "self");
    make_image("lost", "none");
    make_image("remote", "nbd://host/x");
    make_image("odd", "foo:bar");
    write_file(at("plain"), "plain", 5);
    make_image("on_plain", "plain");
    assert_int_equal(symlink(at("base"), at("link")), 0);
    assert_int_equal(symlink(".", at("sub/loop")), 0);
    assert_int_equal(mkfifo(at("pipe"), 0644), 0);
    make_image("on_pipe", "pipe");
    struct tree *t = scan(&o);
    assert_int_equal(tree_count(t), 10);
    const struct tree_image *base = named(t, "base") ? named(t, "base") : named(t, "link");
    assert_non_null(base);
    assert_int_equal(named(t, "a")->backing.to, base - tree_at(t, 0));
    assert_int_equal(named(t, "sub/b")->backing.to, base - tree_at(t, 0));
    assert_ptr_equal(tree_at(t, base->first_child), named(t, "a"));
    assert_ptr_equal(tree_at(t, named(t, "a")->next_child), named(t, "sub/b"));
    assert_int_equal(named(t, "sub/b")->next_child, TREE_NOWHERE);
    assert_ptr_equal(tree_at(t, named(t, "self")->backing.to), named(t, "self"));
    assert_int_equal(named(t, "lost")->backing.link, TREE_MISSING);
    assert_int_equal(named(t, "remote")->backing.link, TREE_REMOTE);
    assert_int_equal(named(t, "odd")->backing.link, TREE_UNCLEAR);
    assert_int_equal(named(t, "on_pipe")->backing.link, TREE_UNCLEAR);
    assert_false(named(t, "plain")->named);
    assert_ptr_equal(tree_at(t, named(t, "on_plain")->backing.to), named(t, "plain"));
    tree_free(t);
}

/* ---- the record ---- */

struct seen { unsigned count; char last[5000]; uint64_t fs; };

static int see(void *arg, const char *overlay, uint64_t fs)
{
    struct seen *s = arg;
    s->count++;
    s->fs = fs;
    snprintf(s->last, sizeof s->last, "%s", overlay);
    return 0;
}

static struct seen recorded(const struct tree_opts *o, const char *base)
{
    struct seen s = { 0 };
    struct byre_err err;
    assert_int_equal(tree_record_each(o, base, see, &s, &err), 0);
    return s;
}

static void test_a_record_names_overlays_elsewhere(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    struct byre_err err;
    assert_int_equal(mkdir(at("x"), 0755), 0);
    make_image("base", NULL);
    make_image("near", "base");
    make_image("x/%far one\n", "../base");
    assert_int_equal(tree_record(&o, at("base"), at("near"), &err), 0);
    assert_int_equal(recorded(&o, at("base")).count, 0);           /* the guard looks there anyway */
    assert_int_equal(access(at("base" TREE_RECORD_SUFFIX), F_OK), -1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(tree_record(&o, at("base"), at("x/%far one\n"), &err), 0);
    struct seen s = recorded(&o, at("base"));
    assert_int_equal(s.count, 1);
    assert_string_equal(s.last, at("x/%far one\n"));
    const struct tree_opts reg = { .policy = GRAPH_ECOSYSTEM, .registry = at("registry") };
    assert_int_equal(tree_record(&reg, at("base"), at("near"), &err), 0);
    assert_int_equal(recorded(&reg, NULL).count, 1);
}

/* A registry that is named wrongly is somebody's image: nothing is written behind its end. */
static void test_what_is_no_record_stays_as_it_is(void **state)
{
    (void)state;
    struct byre_err err;
    struct stat st, after;
    make_image("base", NULL);
    make_image("near", "base");
    make_image("other", NULL);
    assert_int_equal(stat(at("other"), &st), 0);
    const struct tree_opts reg = { .policy = GRAPH_ECOSYSTEM, .registry = at("other") };
    assert_int_equal(tree_record(&reg, at("base"), at("near"), &err), -EINVAL);
    assert_non_null(strstr(err.text, "it is no record of overlays"));
    assert_int_equal(stat(at("other"), &after), 0);
    assert_int_equal(after.st_size, st.st_size);
}

/* A crash leaves a part of the last line: it does not count, and what comes after it does. */
static void test_a_torn_line_does_not_count(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    struct byre_err err;
    assert_int_equal(mkdir(at("x"), 0755), 0);
    make_image("base", NULL);
    make_image("x/one", "../base");
    make_image("x/two", "../base");
    assert_int_equal(tree_record(&o, at("base"), at("x/one"), &err), 0);
    struct stat st;
    assert_int_equal(stat(at("base" TREE_RECORD_SUFFIX), &st), 0);
    assert_int_equal(tree_record(&o, at("base"), at("x/two"), &err), 0);
    struct stat whole;
    assert_int_equal(stat(at("base" TREE_RECORD_SUFFIX), &whole), 0);
    for (off_t cut = st.st_size; cut < whole.st_size; cut++) {
        assert_int_equal(truncate(at("base" TREE_RECORD_SUFFIX), cut), 0);
        assert_int_equal(recorded(&o, at("base")).count, 1);
        assert_int_equal(tree_record(&o, at("base"), at("x/two"), &err), 0);
        struct seen s = recorded(&o, at("base"));
        assert_string_equal(s.last, at("x/two"));
        assert_true(s.count >= 2);
    }
}

static void test_overlays_that_are_gone_are_taken_out(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    struct byre_err err;
    char name[64];
    assert_int_equal(mkdir(at("x"), 0755), 0);
    make_image("base", NULL);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "x/o%d", i);
        make_image(name, "../base");
        assert_int_equal(tree_record(&o, at("base"), at(name), &err), 0);
        if (i)
            assert_int_equal(unlink(at(name)), 0);
    }
    unsigned count = recorded(&o, at("base")).count;
    assert_true(count > 1 && count < 40);
    assert_true(tree_is_gone(at("x/o99"), recorded(&o, at("base")).fs));
    assert_false(tree_is_gone(at("x/o99"), recorded(&o, at("base")).fs + 1));      /* on a file system that is not there */
    assert_false(tree_is_gone(at("x/o0"), recorded(&o, at("base")).fs));
    DIR *d = opendir(dir);                       /* nothing temporary stays */
    unsigned files = 0;
    while (readdir(d))
        files++;
    closedir(d);
    assert_int_equal(files, 5);
}

static void test_a_record_is_not_written_through_a_link(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    struct byre_err err;
    assert_int_equal(mkdir(at("x"), 0755), 0);
    make_image("base", NULL);
    make_image("x/one", "../base");
    assert_int_equal(symlink(at("victim"), at("base" TREE_RECORD_SUFFIX)), 0);
    assert_int_equal(tree_record(&o, at("base"), at("x/one"), &err), -ELOOP);
    assert_non_null(strstr(err.text, "x/one"));
    assert_int_equal(access(at("victim"), F_OK), -1);
}

static void test_lines_that_are_none_of_ours_do_not_count(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    static const char text[] = "child 00 /a /b\nchild 000000000000000z /a /b\nchild 0000000000000000 a /b\nchild 0000000000000000 /a\n"
                               "child 0000000000000000 /%zz /b\nchild 0000000000000000 /%00 /b\nkid 0000000000000000 /a /b\n\n \n"
                               "child 0000000000000000 /a\0b /b\nchild 0000000000000001 /good%20one /b trailing\n";
    make_image("base", NULL);
    write_file(at("base" TREE_RECORD_SUFFIX), text, sizeof text - 1);
    struct seen s = recorded(&o, at("base"));
    assert_int_equal(s.count, 1);
    assert_string_equal(s.last, "/good one");
    assert_int_equal(s.fs, 1);
}

/* ---- the guard ---- */

static int ask(const struct tree_opts *o, const char *file, const char *except, struct byre_err *err)
{
    const struct tree_guard g = { .opts = o, .files = &file, .file_count = 1, .except = &except, .except_count = except ? 1 : 0 };
    return tree_guard_check(&g, err);
}

static void test_the_guard_names_who_depends(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    struct byre_err err;
    make_image("base", NULL);
    assert_int_equal(ask(&o, at("base"), NULL, &err), 0);
    make_image("a", "base");
    assert_int_equal(ask(&o, at("base"), at("a"), &err), 0);
    assert_int_equal(ask(&o, at("a"), NULL, &err), 0);
    make_image("json", "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/dev/null\"}}");
    assert_int_equal(ask(&o, at("base"), at("a"), &err), 0);
    char json[6000];
    snprintf(json, sizeof json, "json:{\"driver\":\"qcow2\",\"file.filename\":\"%s\"}", at("base"));
    make_image("json", json);
    assert_int_equal(ask(&o, at("base"), at("a"), &err), -EBUSY);
    assert_non_null(strstr(err.text, "/json'"));
    assert_int_equal(unlink(at("json")), 0);
    assert_int_equal(ask(&o, at("base"), NULL, &err), -EBUSY);
    assert_non_null(strstr(err.text, at("base")));
    assert_non_null(strstr(err.text, at("a")));
    assert_non_null(strstr(err.text, "force"));
}

static void test_the_guard_believes_what_it_cannot_look_at(void **state)
{
    (void)state;
    const struct tree_opts o = { .policy = GRAPH_ECOSYSTEM };
    struct byre_err err;
    char line[6000];
    assert_int_equal(mkdir(at("x"), 0755), 0);
    make_image("base", NULL);
    make_image("x/far", "../base");
    assert_int_equal(tree_record(&o, at("base"), at("x/far"), &err), 0);
    assert_int_equal(ask(&o, at("base"), NULL, &err), -EBUSY);
    make_image("x/far", NULL);                   /* it depends no more, whatever the record says */
    assert_int_equal(ask(&o, at("base"), NULL, &err), 0);
    assert_int_equal(unlink(at("x/far")), 0);
    assert_int_equal(ask(&o, at("base"), NULL, &err), 0);
    snprintf(line, sizeof line, "child 00000000deadbeef %s %s\n", at("mnt/far"), at("base"));
    write_file(at("base" TREE_RECORD_SUFFIX), line, strlen(line));
    assert_int_equal(ask(&o, at("base"), NULL, &err), -EBUSY);      /* its file system is not mounted */
    assert_non_null(strstr(err.text, "cannot be looked at"));
    struct made m = header(9, NULL);
    be32_put(&((struct q2_disk_header *)m.b)->version, 1u << 31);
    be32_put(&((struct q2_disk_header *)m.b)->cluster_bits, 99);
    assert_int_equal(mkdir(at("mnt"), 0755), 0);
    write_file(at("mnt/far"), m.b, sizeof m.b);
    assert_int_equal(ask(&o, at("base"), NULL, &err), -EBUSY);      /* damaged */
    write_file(at("damaged"), m.b, sizeof m.b);
    assert_int_equal(unlink(at("base" TREE_RECORD_SUFFIX)), 0);
    assert_int_equal(ask(&o, at("base"), NULL, &err), 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_peek_says_what_a_header_names), T(test_peek_asks_for_extensions_that_lie_far_away), T(test_peek_refuses_what_is_out_of_range),
        T(test_peek_survives_any_bytes), T(test_a_set_holds_each_file_once_and_ends), T(test_a_record_names_overlays_elsewhere),
        T(test_what_is_no_record_stays_as_it_is), T(test_a_torn_line_does_not_count), T(test_overlays_that_are_gone_are_taken_out),
        T(test_a_record_is_not_written_through_a_link), T(test_lines_that_are_none_of_ours_do_not_count), T(test_the_guard_names_who_depends),
        T(test_the_guard_believes_what_it_cannot_look_at),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
