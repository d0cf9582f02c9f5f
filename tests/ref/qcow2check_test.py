# SPDX-License-Identifier: MIT
"""The independent check on damaged images: each damage gives its finding, and the peer's check agrees on the verdict."""
import pytest
import qcow2ref
from lib import images
from lib.corrupt import Editor
from lib.run import qemu_img, qemu_io
from qcow2ref import COPIED, COMPRESSED, OFFSET_MASK

KiB, MiB = 1 << 10, 1 << 20
CS = 4096


def build(tmp_path, **options):
    image = images.create(tmp_path / "a.qcow2", 64 * MiB, cluster_size=CS, **options)
    qemu_io(image, "write -P 1 0 1M", "write -P 2 40M 128k")
    return image


def report_of(image):
    with qcow2ref.open_image(image, fmt="qcow2", backing=False, strict=False) as im:
        return im.check(deep=True)


def set_refcount(off, value):
    return lambda e: e.set_refcount(e.host_of(off), value)


def add_snapshot(e):
    qemu_img("snapshot", "-c", "s", e.path)
    e.reload()


def point_l2_at(target):
    return lambda e: e.patch_l2(0, lambda old: target(e) | COPIED)


def no_data_for(e):
    e.header(reftable_clusters=0)


DAMAGES = {
    "leak": ([set_refcount(0, 2), lambda e: e.patch_l2(0, lambda old: old & ~COPIED)], {"leak"}),
    "leak-of-a-lost-cluster": ([lambda e: e.patch_l2(0, lambda old: 0)], {"leak"}),
    "leak-of-a-lost-l2": ([lambda e: e.patch_l1(0, lambda old: 0)], {"leak"}),
    "refcount-zero": ([set_refcount(0, 0)], {"refcount-low", "copied-set"}),
    "copied-on-shared": ([add_snapshot, lambda e: e.patch_l2(0, lambda old: old | COPIED)], {"copied-set"}),
    "copied-missing": ([lambda e: e.patch_l2(0, lambda old: old & ~COPIED)], {"copied-clear"}),
    "l2-copied-missing": ([lambda e: e.patch_l1(0, lambda old: old & ~COPIED)], {"copied-clear"}),
    "double-mapped": ([lambda e: e.patch_l2(CS, lambda old: e.host_of(0) | COPIED)], {"double-mapped", "refcount-low", "leak"}),
    "data-over-l1": ([point_l2_at(lambda e: e.image.header.l1_off)], {"overlap", "refcount-low", "leak"}),
    "data-over-refcounts": ([point_l2_at(lambda e: e.image.header.reftable_off)], {"overlap", "refcount-low", "leak"}),
    "l2-table-twice": ([lambda e: e.patch_l1(1, lambda old: e.get_be64(e.l1_entry(0)))], {"double-mapped", "refcount-low", "leak", "copied-set"}),
    "out-of-file": ([point_l2_at(lambda e: 1 << 40)], {"out-of-file", "leak", "copied-set"}),
    "unaligned-data": ([lambda e: e.patch_l2(0, lambda old: old + 512)], {"unaligned", "leak"}),
    "unaligned-l2": ([lambda e: e.patch_l1(0, lambda old: old + 512)], {"unaligned", "leak"}),
    "reserved-l2": ([lambda e: e.patch_l2(0, lambda old: old | 1 << 57)], {"reserved"}),
    "reserved-l1": ([lambda e: e.patch_l1(0, lambda old: old | 4)], {"reserved"}),
    "compressed-garbage": ([lambda e: e.patch_l2(0, lambda old: old & ~COPIED | COMPRESSED)], {"compressed"}),
    "copied-and-compressed": ([lambda e: e.patch_l2(0, lambda old: old | COMPRESSED)], {"compressed"}),
    "no-refcount-table": ([no_data_for], {"table", "refcount-low", "copied-set"}),
    "refcount-block-past-the-end": ([lambda e: e.be64(e.image.header.reftable_off, 1 << 40)], {"out-of-file", "refcount-low", "copied-set"}),
    "second-refcount-block-is-the-first": (
        [lambda e: e.be64(e.image.header.reftable_off + 8, e.get_be64(e.image.header.reftable_off))], {"overlap", "refcount-low"}),
    "snapshot-l1-unaligned": ([add_snapshot, lambda e: e.be64(e.image.header.snapshots_off, 0x10200)], {"unaligned", "leak"}),
    "snapshot-without-extra-data": ([add_snapshot, lambda e: e.bytes(e.image.header.snapshots_off + 36, bytes(4))], {"snapshot"}),
}
# what the peer's check of Debian 12 does not call an error, and why we do
PEER_IS_SILENT = {
    "compressed-garbage": True,              # it never unpacks
    "snapshot-without-extra-data": True,
}


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damage_is_found(tmp_path, name, compat):
    steps, expected = DAMAGES[name]
    if name == "snapshot-without-extra-data" and compat == "0.10":
        compat = "1.1"                                     # version 2 does not ask for it
    image = build(tmp_path, compat=compat)
    with Editor(image) as editor:
        for step in steps:
            step(editor)
    report = report_of(image)
    found = {k for k, n in report.counts.items() if n}
    assert expected & found, str(report)
    required = expected - {"leak", "refcount-low", "copied-set"} or expected
    assert required <= found, str(report)
    peer = qemu_img("check", "-f", "qcow2", image, code=None).code
    if not PEER_IS_SILENT.get(name):
        assert peer != 0, f"the peer finds nothing wrong: {report}"


@pytest.mark.parametrize("refcount_bits", images.REFCOUNT_BITS)
def test_leaks_are_counted_in_every_width(tmp_path, refcount_bits):
    image = build(tmp_path, refcount_bits=refcount_bits)
    with Editor(image) as e:
        for i in range(5):
            e.patch_l2(i * CS, lambda old: 0)
    report = report_of(image)
    assert report.counts == {"leak": 5} and report.leaks == 5 and report.corruptions == 0
    assert images.peer_check(image, code=3)["leaks"] == 5
    qemu_img("check", "-r", "leaks", "-f", "qcow2", image, code=0)
    assert report_of(image).clean


def test_refcount_too_low_counts_as_the_peer_counts(tmp_path):
    image = build(tmp_path)
    with Editor(image) as e:
        for i in range(3):
            e.patch_l2(i * CS, lambda old: old & ~COPIED)
            e.set_refcount(e.host_of(i * CS), 0)
    report = report_of(image)
    assert report.counts == {"refcount-low": 3}
    assert images.peer_check(image, code=2)["corruptions"] == 3


@pytest.mark.parametrize("bitmap, kind", [(1 << 32 | 1, "subcluster"), (0, None)])
def test_subclusters(tmp_path, bitmap, kind):
    image = images.create(tmp_path / "a.qcow2", 64 * MiB, extended_l2=True)
    qemu_io(image, "write -P 1 0 64k")
    with Editor(image) as e:
        e.patch_l2(0, lambda old: bitmap, second=True)
    report = report_of(image)
    assert {k for k, n in report.counts.items() if n} == ({kind} if kind else set()), str(report)


def test_subclusters_allocated_nowhere(tmp_path):
    image = images.create(tmp_path / "a.qcow2", 64 * MiB, extended_l2=True)
    qemu_io(image, "write -P 1 0 64k")
    with Editor(image) as e:
        e.patch_l2(64 * KiB, lambda old: 3, second=True)
    assert report_of(image).counts["subcluster"] == 1
    with qcow2ref.open_image(image) as im, pytest.raises(qcow2ref.Bad, match="allocated nowhere"):
        im.read(64 * KiB, 512)


def test_bitmap_damage(tmp_path):
    def fresh(name):
        image = images.create(tmp_path / name, 64 * MiB)
        qemu_img("bitmap", "--add", image, "b")
        qemu_io(image, "write 0 1M")
        with qcow2ref.open_image(image) as im:
            return image, im.bitmaps[0], im.bitmap_extension()[2]

    image, bitmap, directory = fresh("a.qcow2")
    assert report_of(image).clean
    with Editor(image) as e:                                # a flag that does not exist
        e.bytes(directory + 12, (8).to_bytes(4, "big"))
    assert report_of(image).counts["bitmap"] == 1
    image, bitmap, directory = fresh("b.qcow2")
    with Editor(image) as e:                                # a table entry with a reserved bit
        e.be64(bitmap.table_off, e.get_be64(bitmap.table_off) | 4)
    assert report_of(image).counts["reserved"] == 1
    image, bitmap, directory = fresh("c.qcow2")
    with Editor(image) as e:                                # bits behind the end of the disk
        data = e.get_be64(bitmap.table_off) & OFFSET_MASK
        e.bytes(data + 64 * MiB // 65536 // 8 + 1, b"\1")
    assert report_of(image).counts["bitmap"] == 1
    image, bitmap, directory = fresh("d.qcow2")
    with Editor(image) as e:                                # stale: its clusters are leaks now
        e.set_bits("autoclear", qcow2ref.BITMAPS_VALID, on=False)
    assert report_of(image).only("leak") and report_of(image).leaks == 3


def test_compressed_clusters_that_share_a_host_cluster(tmp_path):
    image = images.create(tmp_path / "a.qcow2", 4 * MiB)
    qemu_io(image, *[f"write -c -P {i + 1} {i * 64}k 64k" for i in range(8)])
    with Editor(image) as e:
        host = e.get_be64(e.l2_entry(0)) & ((1 << e.image.offset_bits) - 1)
        e.set_refcount(host, 3)
    report = report_of(image)
    assert report.counts == {"refcount-low": 1}, str(report)
    assert report.compressed_clusters == 8


def test_flags_are_reported(tmp_path):
    image = build(tmp_path)
    with Editor(image) as e:
        e.set_bits("incompatible", qcow2ref.DIRTY | qcow2ref.CORRUPT)
    report = report_of(image)
    assert report.dirty and report.corrupt and report.clean
