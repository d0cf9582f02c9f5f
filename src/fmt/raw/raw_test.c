/* SPDX-License-Identifier: MIT
 *
 * raw_test.c: the raw format and the list of formats.
 *
 * Purpose      Mapping, zero and discard pass through, sizes round up, resize and create with every preallocation,
 *              probing, signatures.
 * Owns         Files in a scratch folder.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES 3.006, 3.017, 3.025, 3.028
 */
#include "stor/stor_test.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fmt/fmt.h"

static struct stor *file_of(struct co *co, const char *name, uint64_t len)
{
    struct stor_file_opts o = { .create = true, .truncate_to_zero = true };
    struct stor *s = NULL;
    CHECK_EQ(stor_file_open(co, t_path(name), &o, &s, NULL), 0);
    CHECK_EQ(stor_truncate(co, s, len), 0);
    return s;
}

static struct fmt_image *raw_of(struct co *co, struct stor *s, bool read_only)
{
    struct fmt_image *im = NULL;
    struct fmt_open_opts o = { .read_only = read_only };
    CHECK_EQ(fmt_raw_ops.open(co, s, &o, &im, NULL), 0);
    return im;
}

static void sizes(struct co *co, void *arg)
{
    struct fmt_image *im = raw_of(co, file_of(co, "sizes", 1000), false);
    uint8_t buf[1024];
    struct iovec slot;
    uint64_t len;
    CHECK_EQ(im->size, 1024);
    CHECK_EQ(im->granule, 1);
    CHECK_EQ(stor_read(co, im->store, iov_one(&slot, buf, sizeof buf), 0), 0);
    CHECK(mem_is_zero(buf, sizeof buf));
    memset(buf, 7, sizeof buf);
    CHECK_EQ(stor_write(co, im->store, iov_one(&slot, buf, 512), 512, 0), 0);
    CHECK_EQ(stor_length(co, im->store, &len), 0);
    CHECK_EQ(len, 1024);
    CHECK_EQ(fmt_raw_ops.close(co, im), 0);
}

static void mapping(struct co *co, void *arg)
{
    struct fmt_image *im = raw_of(co, file_of(co, "mapping", 1 << 20), false);
    struct fmt_extent e;
    CHECK_EQ(im->ops->map(co, im, 4096, 100000, &e), 0);
    CHECK(e.kind == FMT_DATA && e.writable && e.has_host && e.host == 4096 && e.len == 100000);
    CHECK_EQ(im->ops->close(co, im), 0);
    im = raw_of(co, file_of(co, "mapping", 1 << 20), true);
    CHECK_EQ(im->ops->map(co, im, 0, 512, &e), 0);
    CHECK(!e.writable);
    struct fmt_info info;
    CHECK_EQ(im->ops->info(co, im, &info, NULL), 0);
    CHECK_EQ(info.virtual_size, 1 << 20);
    CHECK(!info.backing_name && !info.cluster_size);
    fmt_info_fini(&info);
    CHECK_EQ(im->ops->close(co, im), 0);
}

static void zeroing(struct co *co, void *arg)
{
    struct toy *t = toy_new(65536, 1, 1);
    struct fmt_image *im = raw_of(co, &t->s, false);
    memset(t->bytes, 1, 65536);
    CHECK_EQ(im->ops->zero(co, im, 4096, 8192, 0), 0);
    CHECK(t->bytes[4095] == 1 && mem_is_zero(t->bytes + 4096, 8192) && t->bytes[12288] == 1);
    t->no_zero = true;
    CHECK_EQ(im->ops->zero(co, im, 16384, 4096, 0), -ENOTSUP);
    CHECK_EQ(t->bytes[16384], 1);
    CHECK_EQ(im->ops->flush(co, im), 0);
    CHECK_EQ(t->count[TOY_FLUSH], 1);
    CHECK_EQ(im->ops->close(co, im), 0);
}

static uint64_t blocks_of(const char *name)
{
    struct stat st;
    return stat(t_path(name), &st) ? UINT64_MAX : (uint64_t)st.st_blocks * 512;
}

static int flush_fails(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    (void)co;
    (void)t;
    (void)off;
    (void)len;
    return op == TOY_FLUSH ? -EIO : 0;
}

/* P3: what is answered has happened, also after a power cut. */
static void resizing_is_durable(struct co *co, void *arg)
{
    struct byre_err err;
    struct toy *t = toy_new(65536, 1, 1);
    struct fmt_image *im = raw_of(co, &t->s, false);
    CHECK_EQ(im->ops->resize(co, im, 1 << 20, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(t->count[TOY_FLUSH], 1);
    CHECK_EQ(im->ops->resize(co, im, 4096, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(t->count[TOY_FLUSH], 2);
    t->hook = flush_fails;
    CHECK_EQ(im->ops->resize(co, im, 1 << 20, FMT_PREALLOC_OFF, &err), -EIO);
    CHECK(im->size == 4096 && t->len == 4096);
    CHECK(im->ops->close(co, im) < 0);
}

static void resizing(struct co *co, void *arg)
{
    struct byre_err err;
    struct fmt_image *im = raw_of(co, file_of(co, "resizing", 65536), false);
    CHECK_EQ(im->ops->resize(co, im, 1 << 20, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(im->size, 1 << 20);
    CHECK_EQ(blocks_of("resizing"), 0);
    CHECK_EQ(im->ops->resize(co, im, 2 << 20, FMT_PREALLOC_FALLOC, &err), 0);
    CHECK(blocks_of("resizing") >= 1 << 20 && blocks_of("resizing") < 2 << 20);
    CHECK_EQ(im->ops->resize(co, im, 5 << 20, FMT_PREALLOC_FULL, &err), 0);
    CHECK(blocks_of("resizing") >= 4 << 20);
    CHECK_EQ(im->ops->resize(co, im, 6 << 20, FMT_PREALLOC_METADATA, &err), -EINVAL);
    CHECK(!strcmp(err.reason, "BAD_OPTION"));
    CHECK_EQ(im->ops->resize(co, im, 1 << 20, FMT_PREALLOC_FULL, &err), -EINVAL);
    CHECK_EQ(im->ops->resize(co, im, UINT64_MAX / 2, FMT_PREALLOC_OFF, &err), -EINVAL);
    CHECK_EQ(im->size, 5 << 20);
    uint64_t len;
    CHECK_EQ(im->ops->resize(co, im, 1000, FMT_PREALLOC_OFF, &err), 0);      /* the file's length; the disk has whole sectors */
    CHECK_EQ(im->size, 1024);
    CHECK_EQ(stor_length(co, im->store, &len), 0);
    CHECK_EQ(len, 1000);
    CHECK_EQ(im->ops->resize(co, im, 512, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(stor_length(co, im->store, &len), 0);
    CHECK_EQ(len, 512);
    CHECK_EQ(im->ops->close(co, im), 0);
}

static int fail_writes(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_WRITE ? -ENOSPC : 0;
}

static void failed_growth(struct co *co, void *arg)
{
    struct toy *t = toy_new(4096, 1, 1);
    struct byre_err err;
    t->s.traits.regular = true;
    struct fmt_image *im = raw_of(co, &t->s, false);
    t->hook = fail_writes;
    CHECK_EQ(im->ops->resize(co, im, 65536, FMT_PREALLOC_FULL, &err), -ENOSPC);
    CHECK_EQ(t->len, 4096);
    CHECK_EQ(im->size, 4096);
    CHECK_EQ(im->ops->close(co, im), 0);
}

static void creating(struct co *co, void *arg)
{
    static const struct { enum fmt_prealloc p; uint64_t least, most; } cases[] = {
        { FMT_PREALLOC_OFF, 4096, 65536 }, { FMT_PREALLOC_FALLOC, 1 << 20, 2 << 20 }, { FMT_PREALLOC_FULL, 1 << 20, 2 << 20 },
    };
    for (unsigned i = 0; i < 3; i++) {
        struct stor *s = file_of(co, "creating", 0);
        struct fmt_create_opts o = { .size = 1 << 20, .prealloc = cases[i].p };
        struct byre_err err;
        uint64_t len;
        CHECK_EQ(fmt_raw_ops.create(co, s, &o, &err), 0);
        CHECK_EQ(stor_length(co, s, &len), 0);
        CHECK_EQ(len, 1 << 20);
        CHECK(blocks_of("creating") >= cases[i].least && blocks_of("creating") <= cases[i].most);
        o.backing_file = (char *)(uintptr_t)"base";
        CHECK_EQ(fmt_raw_ops.create(co, s, &o, &err), -EINVAL);
        stor_close(co, s);
    }
    struct fmt_create_opts o = { .size = 12345 * 512 };
    struct fmt_measure m;
    CHECK_EQ(fmt_raw_ops.measure(&o, 512, &m, NULL), 0);
    CHECK(m.required == o.size && m.fully_allocated == o.size && !m.has_bitmaps);
}

static void test_sizes(void **state) { t_run(0, sizes, NULL); }
static void test_mapping(void **state) { t_run(1, mapping, NULL); }
static void test_zeroing(void **state) { t_run(0, zeroing, NULL); }
static void test_resizing(void **state) { t_run(0, resizing, NULL); }
static void test_resizing_is_durable(void **state) { t_run(0, resizing_is_durable, NULL); }
static void test_failed_growth(void **state) { t_run(0, failed_growth, NULL); }
static void test_creating(void **state) { t_run(1, creating, NULL); }

static void test_formats(void **state)
{
    uint8_t buf[512] = { 0 };
    assert_ptr_equal(fmt_by_name("raw"), &fmt_raw_ops);
    assert_ptr_equal(fmt_by_name("qcow2"), &fmt_qcow2_ops);
    assert_ptr_equal(fmt_by_name("luks"), &fmt_luks_ops);
    assert_ptr_equal(fmt_by_name("qed"), &fmt_qed_ops);
    assert_null(fmt_by_name("vmdk"));
    unsigned n = 0;
    while (fmt_nth(n))
        n++;
    assert_int_equal(n, 4);
    assert_ptr_equal(fmt_probe(buf, sizeof buf), &fmt_raw_ops);
    assert_ptr_equal(fmt_probe(buf, 0), &fmt_raw_ops);
    assert_null(fmt_signature(buf, sizeof buf));
    memcpy(buf, "QFI\xfb\0\0\0\3", 8);
    assert_ptr_equal(fmt_probe(buf, sizeof buf), &fmt_qcow2_ops);
    assert_string_equal(fmt_signature(buf, sizeof buf), "qcow2");
    assert_null(fmt_signature(buf, 7));
    buf[7] = 9;
    buf[4] = 0x80;                              /* a version that nobody has made yet is no raw image either */
    assert_ptr_equal(fmt_probe(buf, sizeof buf), &fmt_qcow2_ops);
    assert_string_equal(fmt_signature(buf, sizeof buf), "qcow2");
    memcpy(buf, "QFI\xfb\0\0\0\1", 8);
    assert_ptr_equal(fmt_probe(buf, sizeof buf), &fmt_raw_ops);
    assert_string_equal(fmt_signature(buf, sizeof buf), "qcow");
    buf[7] = 0;
    assert_ptr_equal(fmt_probe(buf, sizeof buf), &fmt_raw_ops);
    assert_null(fmt_signature(buf, sizeof buf));
    memcpy(buf, "LUKS\xba\xbe\0\1", 8);
    assert_ptr_equal(fmt_probe(buf, sizeof buf), &fmt_luks_ops);
    assert_string_equal(fmt_signature(buf, sizeof buf), "luks");
    memcpy(buf, "KDMV", 4);
    assert_string_equal(fmt_signature(buf, sizeof buf), "vmdk");
    memset(buf, 0, 8);
    memcpy(buf + 64, "\x7f\x10\xda\xbe", 4);
    assert_string_equal(fmt_signature(buf, sizeof buf), "vdi");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes), cmocka_unit_test(test_mapping), cmocka_unit_test(test_zeroing),
        cmocka_unit_test(test_resizing), cmocka_unit_test(test_resizing_is_durable), cmocka_unit_test(test_failed_growth), cmocka_unit_test(test_creating),
        cmocka_unit_test(test_formats),
    };
    return T_MAIN("raw", tests);
}
