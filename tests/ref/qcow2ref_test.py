# SPDX-License-Identifier: MIT
"""The independent reader against images made by the peer: every geometry, every feature, content and check."""
import hashlib
import os
import struct

import pytest
import qcow2ref
from lib import images, peers
from lib.corrupt import Editor
from lib.run import qemu_img, qemu_io
from lib.workload import Workload

MiB = 1 << 20


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        for part in iter(lambda: f.read(MiB), b""):
            sha.update(part)
    return sha.digest()


def same_content(image, tmp_path, snapshot=None):
    """The peer's conversion to raw and ours are the same bytes."""
    ours, theirs = tmp_path / "ours.raw", tmp_path / "theirs.raw"
    with qcow2ref.open_image(image) as im:
        im.write_raw(ours, snapshot)
    extra = ["-l", f"snapshot.id={snapshot}"] if snapshot else []
    qemu_img("convert", "-O", "raw", *extra, image, theirs)
    assert digest(ours) == digest(theirs)


def same_verdict(image):
    """Both checks are clean and count the same."""
    with qcow2ref.open_image(image, fmt="qcow2", backing=False) as im:
        report = im.check(deep=True)
    assert report.clean, str(report)
    theirs = images.peer_check(image)
    assert report.total_clusters == theirs["total-clusters"]
    assert report.allocated_clusters == theirs.get("allocated-clusters", 0)
    assert report.compressed_clusters == theirs.get("compressed-clusters", 0)
    assert report.image_end == theirs["image-end-offset"]
    return report


def disk_size(cluster_size):
    """Several L2 tables where that is affordable."""
    return min(max(16 * cluster_size, 3 * (cluster_size // 8) * cluster_size), 8 * MiB)


def fill(image, work, operations=60):
    for batch in work.batches(operations, 30):
        qemu_io(image, *batch)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("cluster_size", images.CLUSTER_SIZES)
def test_random_writes(tmp_path, cluster_size, compat):
    size = disk_size(cluster_size)
    image = images.create(tmp_path / "a.qcow2", size, cluster_size=cluster_size, compat=compat)
    work = Workload(cluster_size, size, cluster_size, weights={"compressed": 2 if cluster_size <= 65536 else 0})
    fill(image, work)
    same_verdict(image)
    same_content(image, tmp_path)
    with qcow2ref.open_image(image) as im:
        assert im.header.version == (2 if compat == "0.10" else 3) and im.size == size
        work.verify(im.read)


@pytest.mark.parametrize("refcount_bits", images.REFCOUNT_BITS)
def test_refcount_widths_and_snapshots(tmp_path, refcount_bits):
    size = 4 * MiB
    image = images.create(tmp_path / "a.qcow2", size, cluster_size=4096, refcount_bits=refcount_bits)
    work = Workload(refcount_bits, size, 4096)
    fill(image, work)
    kept = {}
    for snap in ("first", "second") if refcount_bits > 1 else ():
        qemu_img("snapshot", "-c", snap, image)
        kept[snap] = bytes(work.shadow), bytes(work.unknown)
        fill(image, work, 30)
    same_verdict(image)
    same_content(image, tmp_path)
    with qcow2ref.open_image(image) as im:
        assert im.header.refcount_bits == refcount_bits
        work.verify(im.read)
        assert [s.name for s in im.snapshots] == list(kept)
        for name, (shadow, unknown) in kept.items():
            old = Workload(0, size, 4096)
            old.shadow, old.unknown = bytearray(shadow), bytearray(unknown)
            old.verify(lambda off, length, name=name: im.read(off, length, snapshot=name))
    for snap in range(1, len(kept) + 1):
        same_content(image, tmp_path, str(snap))


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", images.CLUSTER_SIZES)
def test_compressed(tmp_path, cluster_size, kind):
    size = min(64 * cluster_size, 6 * MiB)
    raw = images.raw_file(tmp_path / "in.raw", size, [(0, images.pattern_bytes(1, size // 2)), (size - 777, b"tail" * 100)])
    image = tmp_path / "a.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", f"cluster_size={cluster_size},compression_type={kind}", "-f", "raw", raw, image)
    report = same_verdict(image)
    assert report.compressed_clusters > 0
    with qcow2ref.open_image(image) as im:
        assert im.header.compression == (kind == "zstd")
        im.write_raw(tmp_path / "out.raw")
    assert digest(raw) == digest(tmp_path / "out.raw")


@pytest.mark.parametrize("cluster_size", [16384, 65536, 1 << 20, 2 << 20])
def test_extended_l2(tmp_path, cluster_size):
    size = 32 * MiB
    images.raw_file(tmp_path / "base.raw", 5 * MiB + 512, [(0, images.pattern_bytes(3, 5 * MiB + 512))])
    image = images.create(tmp_path / "a.qcow2", size, backing="base.raw", backing_fmt="raw", cluster_size=cluster_size, extended_l2=True)
    with open(tmp_path / "base.raw", "rb") as f:
        work = Workload(cluster_size, size, cluster_size, backing=f.read(), align=512,
                        weights={"discard": 0, "compressed": 1 if cluster_size <= 65536 else 0})
    fill(image, work, 120)
    same_verdict(image)
    same_content(image, tmp_path)
    with qcow2ref.open_image(image) as im:
        assert im.extended_l2
        work.verify(im.read)


@pytest.mark.parametrize("overlay_size", [2 * MiB, 6 * MiB])
def test_backing_of_another_length(tmp_path, overlay_size):
    base = images.create(tmp_path / "base.qcow2", 4 * MiB, cluster_size=65536)
    qemu_io(base, "write -P 17 0 4M")
    middle = images.create(tmp_path / "mid.qcow2", 3 * MiB, backing="base.qcow2", cluster_size=4096)
    qemu_io(middle, "write -P 18 1M 4k", "write -z 2M 12k")
    top = images.create(tmp_path / "top.qcow2", overlay_size, backing="mid.qcow2", cluster_size=512)
    qemu_io(top, "write -P 19 1000k 100k")
    same_content(top, tmp_path)
    with qcow2ref.open_image(top) as im:
        assert [layer.size for layer in im.layers()] == [overlay_size, 3 * MiB, 4 * MiB]
        if overlay_size > 3 * MiB:                      # past the end of the middle layer are zeros, not the base
            assert im.read(3 * MiB, MiB) == bytes(MiB)
        same_map(top, im)


def same_map(image, im):
    """Depth and zero/data of every byte, against the peer's map."""
    def spans(rows):
        merged = []
        for start, length, what in rows:
            if merged and merged[-1][2] == what and merged[-1][1] == start:
                merged[-1][1] = start + length
            else:
                merged.append([start, start + length, what])
        return merged

    chain = len(list(im.layers()))
    theirs = [(r["start"], r["length"], (r["depth"], not r["zero"])) for r in qemu_img("map", "--output=json", image).json]
    ours = [(p.off, p.length, (p.depth, p.kind in ("data", "compressed"))) for p in im.map()]
    # where no layer has anything the peer names a depth of its own choosing: compare only what holds something
    relevant = [t for t in spans(theirs) if t[2][1]]
    assert relevant == [o for o in spans(ours) if o[2][1]], chain


def test_map(tmp_path):
    images.create(tmp_path / "base.qcow2", 8 * MiB)
    qemu_io(tmp_path / "base.qcow2", "write -P 1 0 2M", "write -c -P 2 3M 64k", "write -z 5M 1M")
    top = images.create(tmp_path / "top.qcow2", 8 * MiB, backing="base.qcow2")
    qemu_io(top, "write -P 3 1M 64k", "write -z 64k 128k", "write -P 4 7M 128k")
    with qcow2ref.open_image(top) as im:
        same_map(top, im)
        kinds = {p.kind for p in im.map()}
    assert kinds == {"data", "zero", "hole", "compressed"}


def test_deep_chain(tmp_path):
    paths = images.chain(tmp_path, 200, 2 * MiB, cluster_size=65536)
    for i in (0, 50, 199):
        qemu_io(paths[i], f"write -P {i % 250 + 1} {i * 8192} 8192")
    with qcow2ref.open_image(paths[-1]) as im:
        assert len(list(im.layers())) == 201
        for i in (0, 50, 199):
            assert im.read(i * 8192, 8192) == bytes([i % 250 + 1]) * 8192


def test_chain_that_contains_itself(tmp_path):
    images.create(tmp_path / "a.qcow2", MiB)
    images.create(tmp_path / "b.qcow2", MiB, backing="a.qcow2")
    qemu_img("rebase", "-u", "-b", "b.qcow2", "-F", "qcow2", tmp_path / "a.qcow2")
    with pytest.raises(qcow2ref.Bad, match="its own backing file"):
        qcow2ref.open_image(tmp_path / "a.qcow2")


@pytest.mark.parametrize("granularity", [512, 4096, 65536])
def test_bitmaps(tmp_path, granularity):
    image = images.create(tmp_path / "a.qcow2", 10 * MiB + 512)
    qemu_img("bitmap", "--add", "-g", granularity, image, "used")
    qemu_img("bitmap", "--add", "--disable", image, "idle")
    qemu_io(image, "write 0 1k", "write 5M 100k", f"write {10 * MiB} 512")
    report = same_verdict(image)
    assert report.clean
    with qcow2ref.open_image(image) as im:
        assert [(b.name, b.auto, b.in_use, b.granularity_bits) for b in im.bitmaps] == [
            ("used", True, False, granularity.bit_length() - 1), ("idle", False, False, 16)]

        def cover(off, length):
            first, last = off // granularity * granularity, -(-(off + length) // granularity) * granularity
            return first, min(last, im.size) - first
        assert im.bitmap_ranges("used") == [cover(0, 1024), cover(5 * MiB, 102400), cover(10 * MiB, 512)]
        assert im.bitmap_ranges("idle") == []


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size", [512, 65536, 2 << 20])
def test_preallocation(tmp_path, preallocation, cluster_size):
    size = 4 * MiB
    image = images.create(tmp_path / "a.qcow2", size, cluster_size=cluster_size, preallocation=preallocation)
    qemu_io(image, "write -P 9 1M 1000")
    same_verdict(image)
    same_content(image, tmp_path)


@pytest.mark.parametrize("raw", [False, True])
def test_external_data_file(tmp_path, raw):
    image = images.create(tmp_path / "a.qcow2", 4 * MiB, data_file=tmp_path / "a.data", data_file_raw=raw)
    qemu_io(image, "write -P 9 1M 100k", "write -z 2M 64k")
    with qcow2ref.open_image(image) as im:
        assert im.read(MiB, 102400) == b"\x09" * 102400
        assert im.check().clean, str(im.check())
    same_content(image, tmp_path)


def test_lazy_refcounts_leave_a_dirty_image(tmp_path):
    image = images.create(tmp_path / "a.qcow2", 4 * MiB, lazy_refcounts=True)
    qemu_io(image, "write -P 1 0 1M", "abort", code=None)
    with qcow2ref.open_image(image) as im:
        report = im.check()
        assert report.dirty and im.header.compatible & qcow2ref.LAZY_REFCOUNTS
        assert report.counts["refcount-low"] > 0
        assert im.read(0, MiB) == b"\1" * MiB


@pytest.mark.parametrize("counted", [True, False])
def test_encryption_header_clusters_are_counted(tmp_path, counted):
    """Made by hand, in place of the feature name table: not every machine lets the peer measure its key time."""
    image = images.create(tmp_path / "a.qcow2", 4 * MiB)
    with Editor(image) as e:
        off = e.append_cluster()
        assert e.append_cluster() == off + 65536
        at = e.extension_data(qcow2ref.X_FEATURES) - 8
        e.bytes(at, struct.pack(">IIQQQ", qcow2ref.X_CRYPTO, 16, off, 100000, 0))
        e.header(crypt=2)
        for cluster in (off, off + 65536):
            e.set_refcount(cluster, 1 if counted else 0)
    with qcow2ref.open_image(image) as im:
        report = im.check()
    assert im.header.crypt == 2 and report.counts == ({} if counted else {"refcount-low": 2}), str(report)


def test_snapshot_of_another_size(tmp_path):
    image = images.create(tmp_path / "a.qcow2", 2 * MiB, cluster_size=4096)
    qemu_io(image, "write -P 5 0 2M")
    qemu_img("snapshot", "-c", "small", image)
    qemu_img("resize", "-q", image, "3M")
    qemu_io(image, "write -P 6 1M 2M")
    same_verdict(image)
    with qcow2ref.open_image(image) as im:
        assert im.snapshot("small").disk_size == 2 * MiB and im.size == 3 * MiB
        assert im.read(0, 2 * MiB, snapshot="small") == b"\5" * (2 * MiB)
        assert im.read(MiB, 2 * MiB) == b"\6" * (2 * MiB)


@pytest.mark.parametrize("field, value, text", [
    ("magic", b"QFI\0", "no qcow2 magic"), ("version", 4, "version 4"), ("cluster_bits", 8, "cluster_bits 8"),
    ("cluster_bits", 22, "cluster_bits 22"), ("crypt", 3, "crypt method"), ("refcount_order", 7, "refcount order"),
    ("length", 100, "header length"), ("length", 105, "header length"), ("incompatible", 1 << 40, "unknown incompatible"),
    ("l1_off", 0x30001, "not cluster aligned"), ("reftable_off", 512, "not cluster aligned"),
    ("incompatible", 8, "compression type"), ("compression", 1, "compression type"),
    ("l1_size", 0, "too small"), ("l1_size", 1 << 30, "L1 table of")])
def test_bad_headers_are_refused(tmp_path, field, value, text):
    image = images.create(tmp_path / "a.qcow2", 2 * MiB)
    off, fmt = qcow2ref.Header.FIELDS[field]
    with open(image, "r+b") as f:
        f.seek(off)
        f.write(struct.pack(fmt, value))
    with pytest.raises(qcow2ref.Bad, match=text):
        qcow2ref.open_image(image, fmt="qcow2")
    if (field, value) != ("length", 105):                  # the peer of Debian 12 overlooks this one
        assert qemu_img("info", "-f", "qcow2", image, code=None).code == 1


def test_unknown_feature_is_named(tmp_path):
    """Bit 0's name in the feature table is 'dirty bit'; a bit of our own gets the name that we put into the table."""
    image = images.create(tmp_path / "a.qcow2", MiB)
    with qcow2ref.open_image(image) as im:
        table, at = next((data, off) for k, data, off in im.header.extensions if k == qcow2ref.X_FEATURES)
    assert b"dirty bit" in table
    with open(image, "r+b") as f:
        f.seek(at)
        f.write(bytes([0, 33]) + b"time travel".ljust(46, b"\0"))
        f.seek(72)
        f.write(struct.pack(">Q", 1 << 33))
    header = qcow2ref.Header.parse(open(image, "rb").read(65536), strict=False)
    assert header._feature_names(1 << 33) == " (time travel)"


def test_a_real_file_system(tmp_path):
    peers.need("mkfs.ext4")
    raw = images.file_system(tmp_path / "fs.raw", "ext4", "64M", source=os.path.dirname(qcow2ref.__file__))
    image = tmp_path / "fs.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
    same_verdict(image)
    with qcow2ref.open_image(image) as im:
        im.write_raw(tmp_path / "out.raw")
    assert digest(raw) == digest(tmp_path / "out.raw")
