/* SPDX-License-Identifier: MIT
 *
 * file_probe.c: what an open file demands (alignment) and what its file system promises.
 *
 * Purpose      Fills limits and traits once, at open.
 * Owns         Nothing.
 * Invariants   I1  An answer that is not known for certain is the safe one: the larger alignment, the missing promise.
 *              I2  Probing changes nothing: it reads, asks, and punches only behind the end of a regular file.
 * Order        zero_crash says: bytes that a file gained by growing read as zeros until they are written, also after
 *              a crash in the middle of writing them. zero_growth says the same without the last part. Growing itself adds a hole; the danger is a block that is
 *              linked into the file before its data is on disk, for then a crash shows what the disk held before.
 *                ext4   with a journal in ordered or journal mode, data is on disk before the commit that links the
 *                       block. Not without a journal, and not with data=writeback. The mount options in mountinfo do
 *                       not show a mode that comes from the superblock's defaults (tune2fs -o), nor the lack of a
 *                       journal; /proc/fs/ext4/DEVICE/options shows both, so only that file is believed. The
 *                       blocks that a direct write takes in front of the file's end are "unwritten" until it is complete,
 *                       if the file has extents (FS_EXTENT_FL, which ext2 files never have); a commit makes the data
 *                       durable before that change. Without a journal nothing does: such a hole is worth as much as
 *                       one that fallocate zeroed there (zero_growth), and no more (zero_crash).
 *                xfs    new blocks inside the file are "unwritten" until their I/O is complete; for buffered writes
 *                       since Linux 5.8, for direct ones always.
 *                btrfs  an extent is linked only when its data is on disk (also for files without copy on write: the
 *                       first write of a hole is a new extent).
 *                tmpfs  nothing survives a crash; in a running system new pages are zero.
 *                others (ext2, ext3, vfat, network, FUSE, overlay, unknown): not promised.
 *              serial_growth: XFS before Linux 5.5 can lose the length that a direct write behind the end of file
 *              set when fallocate extends the file at the same time.
 * Concurrency  Worker threads only: every call may block.
 * Failure      None; I1.
 * Tests        file_dev_test.c
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/checked.h"
#include "stor/file_probe.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

enum { ALIGN_SAFE = 4096, ALIGN_MAX = 65536, OPT_BLOCK_MAX = 65536 };

/* ---- small files of the kernel ---- */

/* Reads a whole small file; false when it cannot be read. Ends buf with a zero byte. */
static bool read_text(const char *path, char *buf, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size_t have = 0;
    ssize_t n = 0;
    while (have < size - 1 && (n = read(fd, buf + have, size - 1 - have)) > 0)
        have += (size_t)n;
    close(fd);
    buf[have] = 0;
    return n >= 0;
}

static uint64_t queue_number(dev_t dev, const char *name)
{
    /* A partition has no queue of its own: it is its disk's. */
    static const char *const where[] = { "queue", "../queue" };
    for (unsigned i = 0; i < 2; i++) {
        char path[128], text[32];
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s/%s", major(dev), minor(dev), where[i], name);
        if (read_text(path, text, sizeof text))
            return strtoull(text, NULL, 10);
    }
    return 0;
}

bool probe_kernel_at_least(const char *release, unsigned want_major, unsigned want_minor)
{
    unsigned have_major, have_minor;
    if (sscanf(release, "%u.%u", &have_major, &have_minor) != 2)
        return false;
    return have_major != want_major ? have_major > want_major : have_minor >= want_minor;
}

/* ---- alignment ---- */

static bool sane_align(uint32_t v)
{
    return is_pow2(v) && v <= ALIGN_MAX;
}

/* What the kernel itself says (Linux 6.1 and later). */
static bool ask_statx(int fd, uint32_t *ret_block, uint32_t *ret_mem)
{
#ifdef STATX_DIOALIGN
    struct statx x;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) < 0 || !(x.stx_mask & STATX_DIOALIGN))
        return false;
    if (!sane_align(x.stx_dio_offset_align) || !sane_align(x.stx_dio_mem_align))
        return false;
    *ret_block = x.stx_dio_offset_align;
    *ret_mem = x.stx_dio_mem_align;
    return true;
#else
    return false;
#endif
}

static bool reads(int fd, void *buf, size_t len)
{
    ssize_t n;
    do
        n = pread(fd, buf, len, 0);
    while (n < 0 && errno == EINTR);
    return n >= 0;
}

/* Smallest length that the file lets us read. Reading one byte proves nothing about blocks: a file system may serve
 * a hole, or the end of the file, without asking the device. */
static uint32_t try_lengths(int fd, uint8_t *buf)
{
    if (reads(fd, buf, 1))
        return ALIGN_SAFE;
    for (uint32_t len = 512; len < ALIGN_SAFE; len *= 2)
        if (reads(fd, buf, len))
            return len;
    return ALIGN_SAFE;
}

static uint32_t try_memory(int fd, uint8_t *buf, uint32_t block)
{
    if (reads(fd, buf + 1, block))
        return ALIGN_SAFE;
    for (uint32_t mem = 512; mem < ALIGN_SAFE; mem *= 2)
        if (reads(fd, buf + mem, block))
            return mem;
    return ALIGN_SAFE;
}

void probe_by_reading(int fd, uint32_t *ret_block, uint32_t *ret_mem)
{
    uint8_t *buf = NULL;
    *ret_block = *ret_mem = ALIGN_SAFE;
    if (posix_memalign((void **)&buf, ALIGN_MAX, ALIGN_MAX + ALIGN_SAFE))
        return;
    *ret_block = try_lengths(fd, buf);
    *ret_mem = try_memory(fd, buf, *ret_block);
    free(buf);
}

static void probe_direct(struct file_stor *f, const struct probe_fs *fs)
{
    struct stor_limits *lim = &f->s.lim;
    uint32_t block = 1, mem = 1;
    int logical = 0;
    if (!fs->byte_direct && !ask_statx(f->fd, &block, &mem))
        probe_by_reading(f->fd, &block, &mem);
    if (f->device && ioctl(f->fd, BLKSSZGET, &logical) == 0 && logical > 0 && sane_align((uint32_t)logical))
        block = (uint32_t)max_u64(block, (uint64_t)logical);
    lim->block = block;
    lim->mem_align = mem;
}

static void probe_opt_block(struct file_stor *f, const struct stat *st)
{
    unsigned physical = 0;
    uint64_t want = (uint64_t)st->st_blksize;
    if (f->device && ioctl(f->fd, BLKPBSZGET, &physical) == 0)
        want = physical;
    if (!is_pow2(want))
        want = ALIGN_SAFE;
    f->s.lim.opt_block = (uint32_t)max_u64(512, min_u64(want, OPT_BLOCK_MAX));
}

static void probe_device(struct file_stor *f, const struct stat *st)
{
    int logical = 0;
    if (ioctl(f->fd, BLKSSZGET, &logical) == 0 && logical > 0 && sane_align((uint32_t)logical))
        f->s.lim.zero_block = (uint32_t)logical;
    else
        f->s.lim.zero_block = ALIGN_SAFE;
    f->offload_zero = queue_number(st->st_rdev, "write_zeroes_max_bytes") > 0;
    f->s.traits.can_zero = f->offload_zero;
    f->s.traits.can_punch = queue_number(st->st_rdev, "discard_max_bytes") > 0;
    /* In the page cache a device's lack of space shows at the flush; see traits.enospc_early. */
    f->s.traits.enospc_early = f->s.traits.direct;
}

/* ---- file systems ---- */

enum probe_ext4_mode probe_ext4_options(const char *options)
{
    /* One option per line. Without a journal there is no data= line at all. */
    for (const char *p = options; (p = strstr(p, "data=")); p++) {
        if (p != options && p[-1] != '\n')
            continue;
        if (!strncmp(p, "data=ordered\n", 13) || !strncmp(p, "data=journal\n", 13))
            return PROBE_EXT4_ORDERED;
        return strncmp(p, "data=writeback\n", 15) ? PROBE_EXT4_UNKNOWN : PROBE_EXT4_WRITEBACK;
    }
    return PROBE_EXT4_UNKNOWN;
}

/* ext2, ext3 and ext4 share a magic number; only the driver ext4 has a file of this name. */
static enum probe_ext4_mode ext4_mode(dev_t dev)
{
    enum { OPTIONS_BYTES = 4096 };
    char link[64], target[192], path[96];
    snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(dev), minor(dev));
    ssize_t n = readlink(link, target, sizeof target - 1);
    char *name = NULL;
    if (n > 0) {
        target[n] = 0;
        name = strrchr(target, '/');
    }
    char *options = name ? malloc(OPTIONS_BYTES) : NULL;
    if (!options)
        return PROBE_EXT4_UNKNOWN;
    snprintf(path, sizeof path, "/proc/fs/ext4%.48s/options", name);
    enum probe_ext4_mode mode = read_text(path, options, OPTIONS_BYTES) ? probe_ext4_options(options) : PROBE_EXT4_UNKNOWN;
    free(options);
    return mode;
}

/* Files that were made under ext2 or ext3 keep their block lists, in which nothing can be marked unwritten. */
static bool has_extents(int fd)
{
    int flags = 0;
    return ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_EXTENT_FL);
}

void probe_fs(uint64_t magic, struct probe_ext4 ext4, const char *release, struct probe_fs *ret)
{
    *ret = (struct probe_fs){ .local = true };
    switch (magic) {
    case EXT4_SUPER_MAGIC:
        ret->buffered.growth = ret->buffered.crash = ext4.mode == PROBE_EXT4_ORDERED;
        ret->direct.growth = ext4.extents;
        ret->direct.crash = ext4.extents && ext4.mode == PROBE_EXT4_WRITEBACK;
        ret->enospc_early = true;
        break;
    case XFS_SUPER_MAGIC:
        ret->direct.growth = ret->direct.crash = true;
        ret->buffered.growth = ret->buffered.crash = probe_kernel_at_least(release, 5, 8);
        ret->serial_growth = !probe_kernel_at_least(release, 5, 5);
        ret->enospc_early = true;
        break;
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
        ret->buffered.growth = ret->buffered.crash = true;
        ret->enospc_early = true;
        break;
    case NFS_SUPER_MAGIC:                 /* direct requests go to the server as they are */
        ret->byte_direct = true;
        ret->local = false;
        break;
    default:
        ret->local = false;
    }
    ret->direct.growth |= ret->buffered.growth;
    ret->direct.crash |= ret->buffered.crash;
}

static void ask_fs(const struct file_stor *f, const struct stat *st, struct probe_fs *ret)
{
    struct statfs sfs;
    struct utsname un = { .release = "" };
    *ret = (struct probe_fs){ .local = f->device };
    (void)uname(&un);                     /* an empty release is the oldest kernel */
    if (f->device || fstatfs(f->fd, &sfs) < 0)
        return;
    uint64_t magic = (uint64_t)(unsigned long)sfs.f_type;
    struct probe_ext4 ext4 = { 0 };
    if (magic == EXT4_SUPER_MAGIC)
        ext4 = (struct probe_ext4){ .mode = ext4_mode(st->st_dev), .extents = has_extents(f->fd) };
    probe_fs(magic, ext4, un.release, ret);
}

static void probe_regular(struct file_stor *f, const struct stat *st, const struct probe_fs *fs)
{
    struct stor_traits *t = &f->s.traits;
    t->regular = true;
    t->zero_growth = t->direct ? fs->direct.growth : fs->buffered.growth;
    t->zero_crash = t->direct ? fs->direct.crash : fs->buffered.crash;
    t->serial_growth = fs->serial_growth;
    t->enospc_early = fs->enospc_early;
    t->can_copy = true;
    if (f->s.read_only)
        return;
    off_t behind = (off_t)round_up((uint64_t)st->st_size, ALIGN_MAX) + ALIGN_MAX;
    t->can_punch = fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, behind, ALIGN_SAFE) == 0;
    if (!t->can_punch && file_is_unsupported(-errno))
        file_set_lacks(f, FILE_NO_PUNCH);
    t->can_zero = t->can_punch;           /* with it, zeroing is punching and allocating at worst */
}

void file_probe(struct file_stor *f, const struct stat *st)
{
    struct probe_fs fs;
    ask_fs(f, st, &fs);
    f->may_stall = !fs.local;
    f->s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .zero_block = 1 };
    probe_opt_block(f, st);
    if (f->s.traits.direct)
        probe_direct(f, &fs);
    if (f->device)
        probe_device(f, st);
    else
        probe_regular(f, st, &fs);
}
