/* SPDX-License-Identifier: MIT
 *
 * file_dev_test.c: block devices, on loop devices with sectors of 4 KiB, and what file systems promise.
 *
 * Purpose      Sub-block writes, zeroing, discarding and the length of devices; a flush that the kernel itself fails;
 *              traits on file systems that are made for the test. Needs root and loop devices: without them the tests
 *              fail when CI=true and are skipped otherwise.
 * Tests        file_ops.c (devices), file_probe.c. FEATURES 3.005, 3.010, 3.012, 3.017, 11.018
 */
#include "stor/stor_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stor/file_priv.h"
#include "stor/file_probe.h"

enum { MIB = 1 << 20, DEV_BYTES = 16 * MIB, SECTOR = 512, BLOCK = 4096 };

/* Runs a shell command; its first line of output goes to line (may be NULL). */
static bool shell(char *line, size_t size, const char *fmt, ...) PRINTF_LIKE(3, 4);
static bool shell(char *line, size_t size, const char *fmt, ...)
{
    char command[1200], text[256] = "";
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    FILE *p = popen(command, "r");
    if (!p)
        return false;
    bool any = fgets(text, sizeof text, p) != NULL;
    int r = pclose(p);
    text[strcspn(text, "\n")] = 0;
    if (line)
        snprintf(line, size, "%s", text);
    return r == 0 && (any || !line);
}

static char backing[512], dev[64], mount_point[512];

static void detach(void)
{
    if (mount_point[0])
        /* Seen once: busy although all our descriptors were closed. A walk through /proc by another program could do it
         * (unproven); a descriptor that we leaked would keep it busy for good, and the next mkdir would fail. */
        (void)shell(NULL, 0, "for i in 1 2 3 4 5 6 7 8 9; do umount '%s' 2>/dev/null && break; sleep 0.1; done; rmdir '%s'",
                    mount_point, mount_point);
    if (dev[0])
        (void)shell(NULL, 0, "losetup -d %s", dev);
    mount_point[0] = dev[0] = 0;
}

/* A loop device over a fresh sparse file; in_folder NULL: in the scratch folder. Leaves the test if there is none. */
static void attach(const char *in_folder, uint64_t bytes, unsigned sector)
{
    static bool once;
    if (!once) {
        (void)t_path("");                 /* its folder goes after this: */
        atexit(detach);
    }
    once = true;
    detach();                             /* what a failed test left */
    if (in_folder)
        snprintf(backing, sizeof backing, "%s/backing", in_folder);
    else
        snprintf(backing, sizeof backing, "%s", t_path("backing"));
    (void)unlink(backing);
    int fd = open(backing, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    close(fd);
    if (shell(dev, sizeof dev, "losetup -f --show -b %u '%s' 2>/dev/null", sector, backing))
        return;
    dev[0] = 0;
    if (t_is_ci())
        fail_msg("loop devices are needed");
    skip();
}

struct opened { struct stor_file_opts opts; const char *path; struct stor *s; };

static void open_co(struct co *co, void *arg)
{
    struct opened *o = arg;
    struct byre_err err = { 0 };
    if (!CHECK_EQ(stor_file_open(co, o->path, &o->opts, &o->s, &err), 0))
        fprintf(stderr, "%s\n", err.text);
}
static void close_co(struct co *co, void *arg) { stor_close(co, ((struct opened *)arg)->s); }
static void flush_co(struct co *co, void *arg) { CHECK_EQ(stor_flush(co, ((struct opened *)arg)->s), 0); }

/* Reads the backing file by a descriptor of our own. */
static void read_backing(void *buf, uint64_t off, size_t len)
{
    int fd = open(backing, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, buf, len, (off_t)off), len);
    close(fd);
}

/* ---- many writers of 512 bytes into few blocks of 4096 ---- */

enum { WRITERS = 16, ROUNDS = 40, BLOCKS = 3, SECTORS = BLOCKS * BLOCK / SECTOR };
struct writer { struct stor *s; unsigned id; uint8_t want[SECTORS]; };

static void write_sectors(struct co *co, void *arg)
{
    struct writer *w = arg;
    uint8_t b[SECTOR];
    for (unsigned i = 0; i < ROUNDS; i++)
        for (unsigned k = w->id; k < SECTORS; k += WRITERS) {
            w->want[k] = (uint8_t)(i * 16 + w->id + 1);
            memset(b, w->want[k], SECTOR);
            CHECK_EQ(stor_write_buf(co, w->s, b, SECTOR, (uint64_t)k * SECTOR, 0), 0);
        }
}

static void test_sectors(void **state)
{
    for (unsigned direct = 0; direct < 2; direct++) {
        attach(NULL, DEV_BYTES, BLOCK);
        struct opened o = { { .direct = direct }, dev, NULL };
        struct writer w[WRITERS];
        void *args[WRITERS];
        uint8_t got[BLOCKS * BLOCK];
        t_run(0, open_co, &o);
        assert_int_equal(o.s->lim.block, direct ? BLOCK : 1);
        for (unsigned i = 0; i < WRITERS; i++) {
            w[i] = (struct writer){ o.s, i, { 0 } };
            args[i] = &w[i];
        }
        t_run_many(WRITERS, write_sectors, args);
        t_run(0, flush_co, &o);
        t_run(1, close_co, &o);
        read_backing(got, 0, sizeof got);
        for (unsigned i = 0; i < sizeof got; i++)
            assert_int_equal(got[i], w[i / SECTOR % WRITERS].want[i / SECTOR]);
        detach();
    }
}

/* ---- one request after the other ---- */

static void facts(struct co *co, void *arg)
{
    struct opened *o = arg;
    struct stor *s = o->s;
    struct stor_extent e;
    struct stat st;
    uint64_t len, a, b;
    CHECK_EQ(stor_length(co, s, &len), 0);
    CHECK_EQ(len, DEV_BYTES);
    CHECK(!s->traits.regular && !s->traits.zero_growth);
    CHECK(s->lim.zero_block == BLOCK && s->lim.opt_block >= BLOCK);
    CHECK_EQ(stor_truncate(co, s, DEV_BYTES), 0);
    CHECK_EQ(stor_truncate(co, s, DEV_BYTES + 1), -EINVAL);
    CHECK_EQ(stor_truncate(co, s, DEV_BYTES - 1), -ENOTSUP);
    CHECK_EQ(stor_preallocate(co, s, 0, 4096), -ENOTSUP);
    CHECK_EQ(stor_extent(co, s, 0, DEV_BYTES, &e), 0);
    CHECK(e.content == STOR_DATA && e.len == DEV_BYTES);
    CHECK(stat(dev, &st) == 0 && stor_file_identity(s, &a, &b) && a == st.st_rdev && b == 0);
    CHECK_EQ(stor_write_buf(co, s, "x", 1, DEV_BYTES, 0), -ENOSPC);
    CHECK_EQ(stor_lock(co, s, STOR_PERM_WRITE, 0, NULL), 0);
}

/* Random requests against a model; at the end the backing file must agree. */
static void device_model(struct co *co, void *arg)
{
    struct opened *o = arg;
    struct stor *s = o->s;
    struct prng p;
    uint8_t *want = calloc(1, DEV_BYTES), *buf = malloc(MIB);
    prng_init(&p, 77);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t unit = prng_one_in(&p, 2) ? 1 : prng_one_in(&p, 2) ? SECTOR : BLOCK;
        uint64_t off = round_down(prng_below(&p, DEV_BYTES - MIB), unit), n = round_up(prng_range(&p, 1, prng_one_in(&p, 5) ? MIB - BLOCK : 9000), unit);
        struct iovec slot;
        switch (prng_below(&p, 5)) {
        case 0:
            CHECK_EQ(stor_zero(co, s, off, n, prng_one_in(&p, 2) ? STOR_UNMAP : 0), 0);
            memset(want + off, 0, n);
            break;
        case 1:
            CHECK_EQ(stor_read(co, s, iov_one(&slot, buf, n), off), 0);
            CHECK(!memcmp(buf, want + off, n));
            break;
        default:
            prng_fill(&p, buf, n);
            memcpy(want + off, buf, n);
            CHECK_EQ(stor_write_buf(co, s, buf, n, off, prng_one_in(&p, 10) ? STOR_FUA : 0), 0);
        }
    }
    CHECK_EQ(stor_read_exact(co, s, buf, BLOCK + 1, DEV_BYTES - BLOCK), -EIO);
    CHECK_EQ(stor_flush(co, s), 0);
    for (uint64_t off = 0; off < DEV_BYTES; off += MIB) {
        int fd = open(backing, O_RDONLY | O_CLOEXEC);
        CHECK_EQ(pread(fd, buf, MIB, (off_t)off), MIB);
        CHECK(!memcmp(buf, want + off, MIB));
        close(fd);
    }
    free(want);
    free(buf);
}

static uint64_t backing_blocks(void)
{
    struct stat st;
    int fd = open(backing, O_RDONLY | O_CLOEXEC);
    CHECK(fsync(fd) == 0 && fstat(fd, &st) == 0);
    close(fd);
    return (uint64_t)st.st_blocks * 512;
}

static void space(struct co *co, void *arg)
{
    struct stor *s = ((struct opened *)arg)->s;
    uint8_t *b = malloc(MIB);
    memset(b, 0x5a, MIB);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(stor_write_buf(co, s, b, MIB, i * MIB, 0), 0);
    CHECK_EQ(stor_flush(co, s), 0);
    uint64_t full = backing_blocks();
    CHECK(s->traits.can_punch);
    CHECK_EQ(stor_zero(co, s, 0, MIB, STOR_UNMAP | STOR_NO_FALLBACK), 0);
    CHECK(backing_blocks() <= full - MIB + 65536);
    CHECK_EQ(stor_read_exact(co, s, b, MIB, 0), 0);
    CHECK(mem_is_zero(b, MIB));
    CHECK_EQ(stor_discard(co, s, MIB + 100, MIB - 100), 0);
    CHECK(backing_blocks() <= full - 2 * MIB + 2 * 65536);
    CHECK_EQ(stor_read_exact(co, s, b, 100, MIB), 0);
    CHECK(b[0] == 0x5a && b[99] == 0x5a);
    CHECK_EQ(stor_zero(co, s, 2 * MIB + 100, BLOCK, STOR_NO_FALLBACK), -ENOTSUP);
    CHECK_EQ(stor_zero(co, s, 2 * MIB + 100, MIB, 0), 0);
    CHECK_EQ(stor_read_exact(co, s, b, MIB, 2 * MIB + 100), 0);
    CHECK(mem_is_zero(b, MIB));
    CHECK_EQ(stor_read_exact(co, s, b, 100, 2 * MIB), 0);
    CHECK(b[0] == 0x5a && b[99] == 0x5a);
    free(b);
}

static void run_on_device(void (*fn)(struct co *co, void *arg))
{
    for (unsigned direct = 0; direct < 2; direct++) {
        attach(NULL, DEV_BYTES, BLOCK);
        struct opened o = { { .direct = direct, .discard = true }, dev, NULL };
        t_run(direct, open_co, &o);
        t_run(direct, fn, &o);
        t_run(direct, close_co, &o);
        detach();
    }
}

static void test_facts(void **state) { run_on_device(facts); }
static void test_model(void **state) { run_on_device(device_model); }
static void test_space(void **state) { run_on_device(space); }

/* Kernels that do not tell the alignment: trying must find the same, or what is safe. */
static void test_probe_by_reading(void **state)
{
    for (unsigned sector = 512; sector <= BLOCK; sector *= 2) {
        uint32_t block, mem;
        attach(NULL, DEV_BYTES, sector);
        int fd = open(dev, O_RDONLY | O_DIRECT | O_CLOEXEC);
        probe_by_reading(fd, &block, &mem);
        assert_int_equal(block, sector);
        assert_in_range(mem, 512, BLOCK);
        close(fd);
        fd = open(dev, O_RDONLY | O_CLOEXEC);      /* takes any length: proves nothing */
        probe_by_reading(fd, &block, &mem);
        assert_int_equal(block, BLOCK);
        assert_int_equal(mem, BLOCK);
        close(fd);
        detach();
    }
}

/* ---- a flush that fails in the kernel: the device's own storage is full ---- */

static void lose_a_flush(struct co *co, void *arg)
{
    struct stor *s = ((struct opened *)arg)->s;
    uint8_t *b = malloc(MIB);
    memset(b, 1, MIB);
    for (unsigned i = 0; i < 8; i++)
        CHECK_EQ(stor_write_buf(co, s, b, MIB, i * MIB, 0), 0);
    CHECK(stor_flush(co, s) < 0);
    CHECK(stor_flush_latched(s));
    CHECK_EQ(fdatasync(file_of(s)->fd), 0);   /* the kernel has told it once; this is why the latch is ours */
    CHECK_EQ(stor_flush(co, s), -EIO);
    CHECK_EQ(stor_write_buf(co, s, b, BLOCK, 0, STOR_FUA), -EIO);
    free(b);
}

static void lose_a_fua(struct co *co, void *arg)
{
    struct stor *s = ((struct opened *)arg)->s;
    uint8_t *b = malloc(4 * MIB);
    memset(b, 1, 4 * MIB);
    CHECK_EQ(stor_write_buf(co, s, b, BLOCK, 0, STOR_FUA), 0);
    CHECK_EQ(stor_flush(co, s), 0);
    CHECK(stor_write_buf(co, s, b, 4 * MIB, MIB, STOR_FUA) < 0);
    CHECK(stor_flush_latched(s));
    CHECK_EQ(stor_flush(co, s), -EIO);
    free(b);
}

static void still_latched(struct co *co, void *arg)
{
    CHECK_EQ(stor_flush(co, ((struct opened *)arg)->s), -EIO);
}

static void test_kernel_flush_failure(void **state)
{
    static void (*const lose[])(struct co *co, void *arg) = { lose_a_flush, lose_a_fua };
    for (unsigned i = 0; i < 2; i++) {
        char small[512];
        snprintf(small, sizeof small, "%s", t_path("small"));
        if (!shell(NULL, 0, "mkdir '%s' && mount -t tmpfs -o size=2m none '%s' 2>/dev/null", small, small)) {
            (void)rmdir(small);
            if (t_is_ci())
                fail_msg("root is needed");
            skip();
        }
        attach(small, DEV_BYTES, BLOCK);
        snprintf(mount_point, sizeof mount_point, "%s", small);
        struct opened o = { { .direct = false }, dev, NULL };
        t_run(0, open_co, &o);
        t_run(0, lose[i], &o);
        t_run(1, still_latched, &o);
        t_run(0, close_co, &o);
        (void)shell(NULL, 0, "losetup -d %s", dev);
        dev[0] = 0;
        detach();
    }
}

/* ---- file systems ---- */

static const struct fs_row {
    const char *name, *make, *mount;
    bool buffered, direct, crash;         /* zero_growth, opened buffered and direct; zero_crash, direct */
} fs_rows[] = {
    { "ext4", "mkfs.ext4 -qF", "", true, true, true },
    { "ext4, data=journal", "mkfs.ext4 -qF", "-o data=journal", true, true, true },
    { "ext4, data=writeback", "mkfs.ext4 -qF", "-o data=writeback", false, true, true },
    { "ext4, writeback by default", "f(){ mkfs.ext4 -qF \"$1\" && tune2fs -o journal_data_writeback \"$1\" >/dev/null; }; f", "", false, true, true },
    { "ext4 without journal", "mkfs.ext4 -qF -O ^has_journal", "", false, true, false },
    { "ext4, a file without extents", "mkfs.ext4 -qF -O ^extents,^64bit,^has_journal", "", false, false, false },
    { "ext2", "mkfs.ext2 -qF", "-t ext2", false, false, false },
    { "xfs", "mkfs.xfs -qf", "", true, true, true },
    { "btrfs", "mkfs.btrfs -qf", "", true, true, true },
    { "tmpfs", NULL, "-t tmpfs", true, true, true },
};

static void check_traits(struct co *co, void *arg)
{
    const struct fs_row *row = arg;
    for (unsigned direct = 0; direct < 2; direct++) {
        char path[600];
        struct stor_file_opts opts = { .create = true, .direct = direct };
        struct stor *s;
        snprintf(path, sizeof path, "%s/file", mount_point);
        if (!CHECK_EQ(stor_file_open(co, path, &opts, &s, NULL), 0))
            return;
        if (!CHECK_EQ(s->traits.zero_growth, direct ? row->direct : row->buffered) || !CHECK_EQ(s->traits.zero_crash, direct ? row->crash : row->buffered))
            fprintf(stderr, "on %s\n", row->name);
        CHECK(s->traits.regular && s->traits.can_punch && s->traits.can_zero && s->traits.enospc_early);
        CHECK(!s->traits.serial_growth);
        CHECK(direct ? s->lim.block >= 512 && s->lim.mem_align >= 1 : s->lim.block == 1);
        /* What was probed must work: the smallest request in the least aligned memory. */
        uint8_t *b = aligned_alloc(65536, 2 * 65536);
        struct iovec slot;
        memset(b, 0x42, 2 * 65536);
        for (unsigned i = 0; i < 3; i++)
            CHECK_EQ(stor_write(co, s, iov_one(&slot, b + s->lim.mem_align, s->lim.block), i * s->lim.block, STOR_FUA), 0);
        CHECK_EQ(stor_zero(co, s, 100, 1000, 0), 0);
        CHECK_EQ(stor_read_exact(co, s, b, 1000, 0), 0);
        CHECK_EQ(stor_zero(co, s, 0, 4096, STOR_UNMAP), 0);
        CHECK_EQ(stor_flush(co, s), 0);
        free(b);
        stor_close(co, s);
    }
}

static void test_file_systems(void **state)
{
    for (unsigned i = 0; i < sizeof fs_rows / sizeof fs_rows[0]; i++) {
        const struct fs_row *row = &fs_rows[i];
        char folder[512];
        if (row->make) {
            attach(NULL, 400ull * MIB, 512);
            if (!shell(NULL, 0, "%s %s >/dev/null 2>&1", row->make, dev))
                fail_msg("%s: cannot make it", row->name);
        }
        snprintf(folder, sizeof folder, "%s", t_path("mnt"));
        assert_true(shell(NULL, 0, "mkdir '%s'", folder));
        if (!shell(NULL, 0, "mount %s %s '%s' 2>/dev/null", row->mount, row->make ? dev : "none", folder)) {
            (void)rmdir(folder);
            fail_msg("%s: cannot mount it", row->name);
        }
        snprintf(mount_point, sizeof mount_point, "%s", folder);
        t_run(i % 2, check_traits, (void *)(uintptr_t)row);
        detach();
    }
}

/* ---- decisions from text and numbers alone ---- */

static void test_probe_tables(void **state)
{
    static const struct { uint64_t magic; struct probe_ext4 ext4; const char *release; bool zero, zero_direct, crash_direct, serial, early, bytes; } row[] = {
        { 0xEF53, { PROBE_EXT4_ORDERED, true }, "6.1.0", true, true, true, false, true },
        { 0xEF53, { PROBE_EXT4_ORDERED, false }, "6.1.0", true, true, true, false, true },
        { 0xEF53, { PROBE_EXT4_WRITEBACK, true }, "6.1.0", false, true, true, false, true },
        { 0xEF53, { PROBE_EXT4_WRITEBACK, false }, "6.1.0", false, false, false, false, true },
        { 0xEF53, { PROBE_EXT4_UNKNOWN, true }, "6.1.0", false, true, false, false, true },
        { 0xEF53, { PROBE_EXT4_UNKNOWN, false }, "6.1.0", false, false, false, false, true },
        { 0x58465342, { 0 }, "6.1.0-25-amd64", true, true, true, false, true },
        { 0x58465342, { 0 }, "5.7.19", false, true, true, false, true },
        { 0x58465342, { 0 }, "5.5.0", false, true, true, false, true },
        { 0x58465342, { 0 }, "5.4.99", false, true, true, true, true },
        { 0x58465342, { 0 }, "4.19", false, true, true, true, true },
        { 0x58465342, { 0 }, "", false, true, true, true, true },
        { 0x9123683E, { 0 }, "4.19", true, true, true, false, true },
        { 0x01021994, { 0 }, "4.19", true, true, true, false, true },
        { 0x6969, { 0 }, "6.1", false, false, false, false, false, true },       /* NFS */
        { 0x65735546, { 0 }, "6.1", false, false, false, false, false },   /* FUSE */
        { 0x794c7630, { PROBE_EXT4_ORDERED, true }, "6.1", false, false, false, false, false },    /* overlay */
    };
    for (unsigned i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct probe_fs fs;
        probe_fs(row[i].magic, row[i].ext4, row[i].release, &fs);
        assert_int_equal(fs.buffered.growth, row[i].zero);
        assert_int_equal(fs.buffered.crash, row[i].zero);
        assert_int_equal(fs.direct.growth, row[i].zero_direct);
        assert_int_equal(fs.direct.crash, row[i].crash_direct);
        assert_int_equal(fs.serial_growth, row[i].serial);
        assert_int_equal(fs.enospc_early, row[i].early);
        assert_int_equal(fs.byte_direct, row[i].bytes);
    }
    assert_int_equal(probe_ext4_options("rw\nbarrier\ndata=ordered\ninode_readahead_blks=32\n"), PROBE_EXT4_ORDERED);
    assert_int_equal(probe_ext4_options("data=journal\n"), PROBE_EXT4_ORDERED);
    assert_int_equal(probe_ext4_options("rw\ndata=writeback\n"), PROBE_EXT4_WRITEBACK);
    assert_int_equal(probe_ext4_options("rw\nbarrier\n"), PROBE_EXT4_UNKNOWN);
    assert_int_equal(probe_ext4_options("rw\nxdata=ordered\n"), PROBE_EXT4_UNKNOWN);
    assert_int_equal(probe_ext4_options("data=ordered"), PROBE_EXT4_UNKNOWN);        /* cut short: unknown */
    assert_int_equal(probe_ext4_options(""), PROBE_EXT4_UNKNOWN);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sectors), cmocka_unit_test(test_facts), cmocka_unit_test(test_model),
        cmocka_unit_test(test_space), cmocka_unit_test(test_probe_by_reading), cmocka_unit_test(test_kernel_flush_failure), cmocka_unit_test(test_file_systems),
        cmocka_unit_test(test_probe_tables),
    };
    return T_MAIN("file-dev", tests);
}
