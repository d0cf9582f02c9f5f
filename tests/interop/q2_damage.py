# SPDX-License-Identifier: MIT
"""Images to damage and the damages, shared by the tests of check and repair.

A damage is a function of a lib.corrupt.Editor. `DAMAGES` lists them by name with the base image they apply to.
`PEER_WRONG` names those where the peer is known to fail or to do harm, with the reason: there our own rule is tested.
"""
import os
import random
import struct

from lib import corrupt, images, run
from qcow2ref import COMPRESSED, COPIED, OFFSET_MASK, ZERO

CS = 4096
L2_SPAN = CS * CS // 8                                  # guest bytes per L2 table: 2 MiB
SIZE = 6 * L2_SPAN + 3 * CS


def build_rich(path):
    """4 KiB clusters: plain, compressed, zero and preallocated zero clusters, two snapshots.

    No bitmaps: the peer (7.2) loses every snapshot when it repairs an image that has both."""
    rng = random.Random(7)
    images.create(path, SIZE, cluster_size=CS)
    run.qemu_io(path, "write -P 1 0 64k", "write -P 2 2M 40k", "write -P 3 6M 12k", "write -z 68k 8k", "write -P 9 100k 8k", "write -z 100k 8k")
    run.qemu_img("snapshot", "-c", "one", path)
    run.qemu_io(path, "write -P 4 8k 8k", "write -P 5 2100k 4k", "write -P 6 4M 20k")
    run.qemu_img("snapshot", "-c", "two", path)
    run.qemu_io(path, "write -P 7 16k 4k", "write -P 8 8M 8k")
    for i in range(4):
        run.qemu_io(path, f"write -c -P {rng.randrange(1, 255)} {9 * 1024 + 4 * i}k 4k")
    run.qemu_io(path, "write -P 11 10M 16k", "write -P 12 24k 4k")
    return path


def build_maps(path):
    """4 KiB clusters, data and two bitmaps with content."""
    images.create(path, SIZE, cluster_size=CS)
    run.qemu_io(path, "write -P 1 0 64k", "write -P 2 2M 40k")
    run.qemu_img("bitmap", "--add", "-g", "4096", path, "b0")
    run.qemu_img("bitmap", "--add", "-g", "65536", path, "b1")
    run.qemu_io(path, "write -P 11 10M 16k", "write -P 12 24k 4k")
    return path


def build_plain(path):
    """64 KiB clusters, nothing but data."""
    images.create(path, 64 << 20)
    run.qemu_io(path, "write -P 1 0 1M", "write -P 2 20M 256k", "write -P 3 1200k 64k")
    return path


def build_v2(path):
    images.create(path, 16 << 20, cluster_size=CS, compat="0.10")
    run.qemu_io(path, "write -P 1 0 1M", "write -P 2 9M 256k")
    run.qemu_img("snapshot", "-c", "one", path)
    run.qemu_io(path, "write -P 3 64k 64k")
    return path


def build_narrow(path):
    """1-bit refcounts."""
    images.create(path, 16 << 20, cluster_size=CS, refcount_bits=1)
    run.qemu_io(path, "write -P 1 0 1M", "write -P 2 9M 256k")
    return path


BASES = {"rich": build_rich, "maps": build_maps, "plain": build_plain, "v2": build_v2, "narrow": build_narrow}
DAMAGES = {}


def damage(base="plain", name=None):
    def add(fn):
        DAMAGES[f"{name or fn.__name__}@{base}"] = (base, fn)
        return fn
    return add


def both(fn):
    for base in ("plain", "rich"):
        damage(base)(fn)
    return fn


def end_of(e):
    cs = e.image.cluster_size
    return -(-os.fstat(e.fd).st_size // cs) * cs


# ---- refcounts
@both
def leak_one(e):
    e.append_cluster()
    e.set_refcount(end_of(e) - e.image.cluster_size, 1)


@both
def leak_three(e):
    for _ in range(3):
        e.append_cluster(b"junk")
        e.set_refcount(end_of(e) - e.image.cluster_size, 1)


@both
def refcount_too_high(e):
    e.set_refcount(e.host_of(4 * e.image.cluster_size), 5)


@both
def refcount_zero(e):
    e.set_refcount(e.host_of(4 * e.image.cluster_size), 0)


@damage("rich")
def refcount_too_low_shared(e):
    e.set_refcount(e.host_of(0), 1)


@both
def header_refcount_zero(e):
    e.set_refcount(0, 0)


@both
def header_refcount_two(e):
    e.set_refcount(0, 2)


@both
def l1_refcount_zero(e):
    e.set_refcount(e.image.header.l1_off, 0)


@both
def l2_refcount_zero(e):
    e.set_refcount(e.get_be64(e.l1_entry(0)) & OFFSET_MASK, 0)


@both
def l2_refcount_high(e):
    e.set_refcount(e.get_be64(e.l1_entry(0)) & OFFSET_MASK, 7)


@both
def reftable_refcount_zero(e):
    e.set_refcount(e.image.header.reftable_off, 0)


@both
def refblock_refcount_zero(e):
    e.set_refcount(e.get_be64(e.image.header.reftable_off) & ~0x1FF, 0)


@both
def refblock_refcount_two(e):
    e.set_refcount(e.get_be64(e.image.header.reftable_off) & ~0x1FF, 2)


@both
def refblock_all_zero(e):
    e.bytes(e.get_be64(e.image.header.reftable_off) & ~0x1FF, bytes(e.image.cluster_size))


@both
def refblock_all_ones(e):
    e.bytes(e.get_be64(e.image.header.reftable_off) & ~0x1FF, b"\xff" * e.image.cluster_size)


@both
def refblock_random(e):
    e.bytes(e.get_be64(e.image.header.reftable_off) & ~0x1FF, random.Random(5).randbytes(e.image.cluster_size))


@damage("narrow")
def narrow_refcount_zero(e):
    e.set_refcount(e.host_of(0), 0)


@damage("narrow")
def narrow_all_ones(e):
    e.bytes(e.get_be64(e.image.header.reftable_off) & ~0x1FF, b"\xff" * e.image.cluster_size)


@damage("narrow")
def narrow_double_reference(e):
    first = e.get_be64(e.l2_entry(0))
    e.patch_l2(CS, lambda old: first)


# ---- refcount table
@both
def rt_entry_zero(e):
    e.be64(e.image.header.reftable_off, 0)


@both
def rt_entry_unaligned(e):
    e.be64(e.image.header.reftable_off, e.get_be64(e.image.header.reftable_off) + 512)


@both
def rt_entry_reserved(e):
    e.be64(e.image.header.reftable_off, e.get_be64(e.image.header.reftable_off) + 3)


@both
def rt_entry_outside(e):
    e.be64(e.image.header.reftable_off, end_of(e) + 20 * e.image.cluster_size)


@both
def rt_entry_far_outside(e):
    e.be64(e.image.header.reftable_off, 1 << 50)


@both
def rt_entry_on_header(e):
    e.be64(e.image.header.reftable_off + 8, e.image.cluster_size)


@both
def rt_entry_duplicate(e):
    e.be64(e.image.header.reftable_off + 8, e.get_be64(e.image.header.reftable_off))


@both
def rt_entry_on_data(e):
    e.be64(e.image.header.reftable_off + 8, e.host_of(4 * e.image.cluster_size))


@both
def rt_extra_entry_outside(e):
    e.be64(e.image.header.reftable_off + 16, 1 << 45)


@both
def rt_gone(e):
    e.header(reftable_off=0, reftable_clusters=0)


@both
def rt_zero_clusters(e):
    e.header(reftable_clusters=0)


@both
def rt_outside(e):
    e.header(reftable_off=end_of(e) + 16 * e.image.cluster_size)


@both
def rt_on_data(e):
    e.header(reftable_off=e.host_of(4 * e.image.cluster_size))


# ---- L1
@both
def l1_reserved(e):
    e.patch_l1(0, lambda old: old | 1 << 57)


@both
def l1_unaligned(e):
    e.patch_l1(0, lambda old: old + 512)


@both
def l1_outside(e):
    e.patch_l1(0, lambda old: COPIED | (end_of(e) + 64 * e.image.cluster_size))


@both
def l1_just_outside(e):
    e.patch_l1(0, lambda old: COPIED | end_of(e))


@both
def l1_copied_clear(e):
    e.patch_l1(0, lambda old: old & ~COPIED)


@damage("rich")
def l1_copied_set_shared(e):
    e.patch_l1(3, lambda old: old | COPIED)


@both
def l1_duplicate(e):
    first = e.get_be64(e.l1_entry(0))
    e.patch_l1(1 if e.image.header.l1_size > 1 else 0, lambda old: first)


@both
def l1_points_to_header(e):
    cs = e.image.cluster_size
    e.patch_l1(0, lambda old: COPIED | cs)


@both
def l1_points_to_itself(e):
    e.patch_l1(0, lambda old: COPIED | e.image.header.l1_off)


@both
def l1_zeroed(e):
    e.patch_l1(0, lambda old: 0)


@damage("rich")
def l1_outside_entry_2(e):
    e.patch_l1(2, lambda old: COPIED | (1 << 54))


# ---- L2
@both
def l2_reserved(e):
    e.patch_l2(0, lambda old: old | 1 << 58)


@both
def l2_reserved_low(e):
    e.patch_l2(0, lambda old: old | 4)


@both
def l2_unaligned(e):
    e.patch_l2(0, lambda old: old + 512)


@both
def l2_unaligned_zero(e):
    e.patch_l2(0, lambda old: old + 512 + ZERO)


@both
def l2_outside(e):
    e.patch_l2(0, lambda old: COPIED | (end_of(e) + 64 * e.image.cluster_size))


@both
def l2_just_outside(e):
    e.patch_l2(0, lambda old: COPIED | end_of(e))


@both
def l2_last_cluster_partly_outside(e):
    e.append_cluster()
    os.truncate(e.path, end_of(e) - 1536)
    e.patch_l2(0, lambda old: COPIED | (end_of(e) - e.image.cluster_size))


@both
def l2_copied_clear(e):
    e.patch_l2(4 * e.image.cluster_size, lambda old: old & ~COPIED)


@damage("rich")
def l2_copied_set_shared(e):
    e.patch_l2(0, lambda old: old | COPIED)


@both
def l2_duplicate(e):
    cs = e.image.cluster_size
    first = e.get_be64(e.l2_entry(8 * cs))
    e.patch_l2(9 * cs, lambda old: first)


@both
def l2_points_to_header(e):
    e.patch_l2(5 * e.image.cluster_size, lambda old: COPIED | e.image.cluster_size)


@both
def l2_points_to_l1(e):
    e.patch_l2(5 * e.image.cluster_size, lambda old: COPIED | e.image.header.l1_off)


@both
def l2_zeroed_entry(e):
    e.patch_l2(5 * e.image.cluster_size, lambda old: 0)


@both
def l2_garbage(e):
    e.bytes(e.get_be64(e.l1_entry(0)) & OFFSET_MASK, random.Random(3).randbytes(512))


@both
def l2_copied_without_cluster(e):
    e.patch_l2(1 << 20 if e.image.cluster_size == CS else 10 << 20, lambda old: COPIED)


@damage("rich")
def l2_zero_alloc_outside(e):
    e.patch_l2(100 << 10, lambda old: COPIED | ZERO | (end_of(e) + (1 << 30)))


@damage("v2")
def l2_zero_flag_in_v2(e):
    e.patch_l2(0, lambda old: old | ZERO)


@damage("v2")
def v2_refcount_zero(e):
    e.set_refcount(e.host_of(128 << 10), 0)


@damage("v2")
def v2_leak(e):
    e.append_cluster()
    e.set_refcount(end_of(e) - CS, 1)


@damage("rich")
def compressed_copied(e):
    e.patch_l2(9 << 20, lambda old: old | COPIED)


@damage("rich")
def compressed_outside(e):
    e.patch_l2(9 << 20, lambda old: old + (1 << 30))


@damage("rich")
def compressed_far_outside(e):
    e.patch_l2(9 << 20, lambda old: COMPRESSED | (1 << 57) - 512)


@damage("rich")
def compressed_too_long(e):
    e.patch_l2(9 << 20, lambda old: old | 15 << 58)


@damage("rich")
def compressed_on_header(e):
    e.patch_l2(9 << 20, lambda old: COMPRESSED)


# ---- header, dirty, corrupt
@both
def dirty(e):
    e.set_bits("incompatible", 1)


@both
def dirty_and_leak(e):
    leak_one(e)
    e.set_bits("incompatible", 1)


@both
def marked_corrupt(e):
    e.set_bits("incompatible", 2)


@both
def marked_corrupt_and_low(e):
    refcount_zero(e)
    e.set_bits("incompatible", 2)


@both
def truncated_file(e):
    os.truncate(e.path, end_of(e) - 3 * e.image.cluster_size)


@both
def truncated_half(e):
    os.truncate(e.path, end_of(e) // 2)


@both
def trailing_junk(e):
    for _ in range(5):
        e.append_cluster(b"junk")


# ---- snapshots
def snapshot_entry(e, index):
    """File offset of a snapshot table entry."""
    at = e.image.header.snapshots_off
    for _ in range(index):
        fixed = os.pread(e.fd, 40, at)
        id_len, name_len = struct.unpack(">HH", fixed[12:16])
        extra, = struct.unpack(">I", fixed[36:40])
        at += -(-(40 + extra + id_len + name_len) // 8) * 8
    return at


@damage("rich")
def snapshot_l1_unaligned(e):
    at = snapshot_entry(e, 0)
    e.be64(at, e.get_be64(at) + 512)


@damage("rich")
def snapshot_l1_outside(e):
    e.be64(snapshot_entry(e, 0), end_of(e) + (1 << 30))


@damage("rich")
def snapshot_l1_huge(e):
    e.bytes(snapshot_entry(e, 1) + 8, struct.pack(">I", 0x7fffffff))


@damage("rich")
def snapshot_l1_entry_outside(e):
    e.be64(e.get_be64(snapshot_entry(e, 0)), end_of(e) + (1 << 30))


@damage("rich")
def snapshot_l1_entry_reserved(e):
    at = e.get_be64(snapshot_entry(e, 0))
    e.be64(at, e.get_be64(at) | 1 << 60)


@damage("rich")
def snapshot_l2_entry_outside(e):
    l2 = e.get_be64(e.get_be64(snapshot_entry(e, 0))) & OFFSET_MASK
    e.be64(l2, end_of(e) + (1 << 30))


@damage("rich")
def snapshot_l2_entry_unaligned(e):
    l2 = e.get_be64(e.get_be64(snapshot_entry(e, 0))) & OFFSET_MASK
    e.be64(l2, e.get_be64(l2) + 1024)


@damage("rich")
def snapshot_table_refcount_zero(e):
    e.set_refcount(e.image.header.snapshots_off, 0)


@damage("rich")
def snapshot_count_one(e):
    e.header(nb_snapshots=1)


@damage("rich")
def snapshot_extra_huge(e):
    e.bytes(snapshot_entry(e, 1) + 36, struct.pack(">I", 2000))


@damage("rich")
def snapshot_extra_absurd(e):
    e.bytes(snapshot_entry(e, 0) + 36, struct.pack(">I", 0x80000000))


@damage("rich")
def snapshot_extra_none(e):
    e.bytes(snapshot_entry(e, 1) + 36, struct.pack(">I", 0))


@damage("rich")
def snapshot_count_huge(e):
    e.header(nb_snapshots=65537)


@damage("rich")
def snapshot_table_outside(e):
    e.header(snapshots_off=end_of(e) + (1 << 30))


# ---- bitmaps
def bitmap_directory(e):
    at = e.extension_data(0x23852875)
    return struct.unpack(">Q", os.pread(e.fd, 8, at + 16))[0]


@damage("maps")
def bitmap_table_refcount_zero(e):
    e.set_refcount(e.get_be64(bitmap_directory(e)), 0)


@damage("maps")
def bitmap_directory_refcount_zero(e):
    e.set_refcount(bitmap_directory(e), 0)


@damage("maps")
def bitmap_table_outside(e):
    e.be64(bitmap_directory(e), end_of(e) + (1 << 30))


@damage("maps")
def bitmap_entry_reserved(e):
    e.be64(e.get_be64(bitmap_directory(e)), 6)


@damage("maps")
def bitmap_entry_outside(e):
    e.be64(e.get_be64(bitmap_directory(e)), end_of(e) + (1 << 30))


@damage("maps")
def bitmap_entry_data_leak(e):
    """An entry that points to a cluster nobody counts."""
    e.be64(e.get_be64(bitmap_directory(e)), e.append_cluster())


@damage("maps")
def bitmap_autoclear_lost(e):
    e.set_bits("autoclear", 1, False)


@damage("maps")
def bitmap_type_unknown(e):
    e.bytes(bitmap_directory(e) + 16, b"\x07")


@damage("maps")
def bitmap_granularity_odd(e):
    e.bytes(bitmap_directory(e) + 17, b"\x03")


@damage("maps")
def bitmap_count_wrong(e):
    e.bytes(e.extension_data(0x23852875), struct.pack(">I", 7))


@damage("maps")
def bitmap_directory_unaligned(e):
    at = e.extension_data(0x23852875) + 16
    e.be64(at, e.get_be64(at) + 8)
