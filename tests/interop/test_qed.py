# SPDX-License-Identifier: MIT
"""QED: what the peer has written is read, mapped, described and checked as the peer itself does it and as the independent
reader says; what byre creates the peer takes, and writes to."""
import os
import zlib

import pytest
from guest import merged_map
from lib import images, qed, run
from lib.qed import Builder
from lib.workload import Workload

import qedref

GEOMETRIES = [(4096, 1), (4096, 2), (4096, 16), (8192, 4), (65536, 2), (65536, 4), (65536, 16), (1 << 20, 1), (2 << 20, 4), (4 << 20, 2)]
TOO_LARGE = [(4 << 20, 4), (16 << 20, 1), (64 << 20, 1), (64 << 20, 16)]      # the peer's limit of the size overflows
NUMBERS = ("check-errors", "corruptions", "leaks", "total-clusters", "allocated-clusters", "fragmented-clusters", "compressed-clusters", "image-end-offset")
NO_DISCARD = {"discard": 0, "zero_unmap": 3}


def check(program, path, code=None):
    done = program("check", "--output=json", "-f", "qed", path, code=code)
    return done.code, {k: done.json.get(k, 0) for k in NUMBERS}


def same_check(path, code=None):
    """byre, the peer and the independent reader count the same."""
    ours, theirs = check(run.byre, path, code), check(run.qemu_img, path)
    assert ours == theirs
    with qedref.open_image(path, fmt="qed", backing=False) as image:
        report = image.check()
    assert (report.corruptions, report.leaks, report.allocated_clusters) == (ours[1]["corruptions"], ours[1]["leaks"], ours[1]["allocated-clusters"]), report


def same_info(path):
    rows = []
    for program in (run.byre, run.qemu_img):
        info = program("info", "-U", "--output=json", path).json
        rows.append({k: v for k, v in info.items() if k != "children"})
    assert rows[0] == rows[1]


def same_map(path, peer=run.qemu_img):
    ours, theirs = (program("map", "--output=json", "-f", "qed", path).json for program in (run.byre, peer))
    assert merged_map(ours) == merged_map(theirs)


def content(path, folder, fmt="qed"):
    """The guest's bytes by byre; the peer and the independent reader see the same."""
    ours, reference = os.path.join(folder, "ours.raw"), os.path.join(folder, "reference.raw")
    run.byre("convert", "-f", fmt, "-O", "raw", path, ours)
    run.qemu_img("compare", "-f", fmt, "-F", "raw", path, ours)
    with qedref.open_image(path, fmt=fmt) as image:
        image.write_raw(reference)
    with open(ours, "rb") as a, open(reference, "rb") as b:
        data = a.read()
        assert data == b.read()
    return data


def size_of(cluster_size):
    return max(3 << 20, 8 * cluster_size) + 1536


@pytest.mark.parametrize("cluster_size,table_size", GEOMETRIES)
def test_created_by_byre(tmp_path, cluster_size, table_size):
    """FEATURES 2.001, 2.002, 2.003, 2.022, 2.023: the bytes are those that the peer writes; the peer uses the image. (With
    table_size 1 the peer makes images that it cannot open; byre opens them.)"""
    ours, theirs, size = tmp_path / "ours.qed", tmp_path / "theirs.qed", size_of(cluster_size)
    for tool, path in (("byre", ours), ("qemu-img", theirs)):
        images.create(path, size, fmt="qed", tool=tool, cluster_size=cluster_size, table_size=table_size)
    assert os.path.getsize(ours) == os.path.getsize(theirs)
    run.run("cmp", ours, theirs)
    if table_size == 1:
        run.byre("check", "-f", "qed", ours)
        assert run.byre("info", "--output=json", ours).json["virtual-size"] == size // 512 * 512
        return
    same_info(ours)
    same_check(ours, code=0)
    disk = Workload(zlib.crc32(b"%d %d" % (cluster_size, table_size)), size, cluster_size=cluster_size, weights=NO_DISCARD)
    for commands in disk.batches(20, 20):
        run.qemu_io(ours, *commands, fmt="qed")
    assert content(ours, tmp_path) == bytes(disk.shadow)
    same_check(ours, code=0)


@pytest.mark.parametrize("cluster_size,table_size", TOO_LARGE)
def test_clusters_that_the_peer_refuses(tmp_path, cluster_size, table_size):
    """FEATURES 2.002, 2.003: the format allows them; the independent reader agrees with what byre sees."""
    path = images.create(tmp_path / "x.qed", "10G", fmt="qed", tool="byre", cluster_size=cluster_size, table_size=table_size)
    run.byre("check", path)
    b = Builder(64 << 20, 1, size=1 << 30, data=0) if cluster_size == 64 << 20 else Builder(cluster_size, table_size, size=1 << 30, data=0)
    end = len(b.image)
    b.word(b.l2 + 8 * 2, end).word(b.l2 + 8 * 4, 1)
    b.write(path)
    with open(path, "r+b") as f:
        f.truncate(end + b.cs)
        f.seek(end + 1000)
        f.write(b"data")
    assert check(run.byre, path)[1]["allocated-clusters"] == 1 and check(run.byre, path)[0] == 0
    with qedref.open_image(path) as image:
        assert image.check().clean and image.read(2 * b.cs + 1000, 4) == b"data"
    run.byre("io", "-r", "-c", f"read -P 0x61 {2 * b.cs + 1001} 1", "-c", f"read -P 0 {4 * b.cs} 64k", path)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("cluster_size,table_size", [g for g in GEOMETRIES if g[1] > 1 and g[0] <= 1 << 20])
def test_written_by_peer(tmp_path, cluster_size, table_size, seed):
    """FEATURES 2.009, 2.015, 2.020: random writes and zeroes of the peer, over several L2 tables where they are small."""
    path, size = tmp_path / "x.qed", 40 << 20 if cluster_size == 4096 else size_of(cluster_size)
    images.create(path, size, fmt="qed", cluster_size=cluster_size, table_size=table_size)
    disk = Workload(seed, size // 512 * 512, cluster_size=cluster_size, weights=NO_DISCARD)
    for commands in disk.batches(120, 40):
        run.qemu_io(path, *commands, fmt="qed")
        assert content(path, tmp_path) == bytes(disk.shadow)
        same_map(path)
        same_info(path)
        same_check(path, code=0)
    if cluster_size == 4096:
        for at in disk.written[:8]:
            part = run.byre("io", "-r", "-f", "qed", "-c", f"read -v {at[0]} 16", path).out
            assert disk.shadow[at[0]:at[0] + 16].hex(" ") in part


@pytest.mark.parametrize("table_size", [1, 2])
def test_built_by_hand(tmp_path, table_size):
    """FEATURES 2.003, 2.009, 2.010: also with the tables of one cluster that the peer refuses."""
    b = Builder(table_size=table_size, size=4 << 20, data=6)
    b.word(b.l2 + 8 * 7, 1).word(b.l2 + 8 * 8, 1)
    path = b.write(tmp_path / "x.qed")
    with qedref.open_image(path) as image:
        expected = image.read(0, image.size)
    run.byre("convert", "-O", "raw", path, tmp_path / "x.raw")
    assert (tmp_path / "x.raw").read_bytes() == expected and expected[:12288] == b"\1" * 4096 + b"\2" * 4096 + b"\3" * 4096
    rows = run.byre("map", "--output=json", path).json
    zero = [r for r in rows if r["present"] and r["zero"]]
    assert [(r["start"], r["length"]) for r in zero] == [(7 * 4096, 8192)]
    assert check(run.byre, path)[0] == 0
    if table_size > 1:
        assert content(path, tmp_path) == expected
        same_map(path)


@pytest.mark.parametrize("base", ["raw", "qcow2", "qed"])
@pytest.mark.parametrize("relation", [-(200 << 10), 0, (300 << 10) + 512])
def test_chain(tmp_path, base, relation):
    """FEATURES 2.005, 2.010, 11.030: three layers of other sizes and cluster sizes: content and map as the peer has them."""
    size = (2 << 20) + 1024
    below = tmp_path / f"base.{base}"
    images.create(below, size, fmt=base)
    disk = Workload(zlib.crc32(repr((base, relation)).encode()), size, weights=NO_DISCARD)
    for commands in disk.batches(25, 25):
        run.qemu_io(below, *commands, fmt=base)
    fmt = base
    for layer, cluster_size in enumerate((4096, 65536), 1):
        size += relation
        path = tmp_path / f"layer{layer}.qed"
        tool = ("qemu-img", "byre")[layer & 1]
        images.create(path, size, fmt="qed", tool=tool, backing=below.name if layer & 1 else below, backing_fmt=fmt, cluster_size=cluster_size, table_size=2)
        # no small writes into zero clusters: there the peer brings back what the backing file holds (FEATURES G.019)
        disk = Workload(layer, size, cluster_size=cluster_size, weights={**NO_DISCARD, "zero": 0, "zero_unmap": 0})
        zeroes = [f"write -z {n * cluster_size} {cluster_size}" for n in (1, 5, 6)]
        for commands in disk.batches(25, 25):
            run.qemu_io(path, *commands, *zeroes, fmt="qed")
        below, fmt = path, "qed"
        content(path, tmp_path)
        same_map(path)
        same_info(path)
        same_check(path, code=0)
    over = tmp_path / "over.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-b", path, "-F", "qed", over)
    run.byre("io", "-c", "write -P 9 1000 70000", "-c", "write -z 200k 64k", over)
    run.byre("convert", "-O", "raw", over, tmp_path / "over.raw")
    run.qemu_img("compare", over, tmp_path / "over.raw")
    images.peer_check(over)


def test_zero_cluster_hides_backing(tmp_path):
    """FEATURES 2.010: all of a zero cluster reads as zeros, whatever lies below it, to its last byte."""
    images.raw_file(tmp_path / "base.raw", 1 << 20, [(0, b"\xbb" * (1 << 20))])
    b = Builder(data=2, features=qedref.BACKING | qedref.BACKING_RAW, backing_off=64, backing_len=8).put(64, b"base.raw")
    b.word(b.l2 + 8 * 3, 1)
    path = b.write(tmp_path / "x.qed")
    data = content(path, tmp_path)
    assert data[8192:] == b"\xbb" * 4096 + bytes(4096) + b"\xbb" * ((1 << 20) - 16384)
    run.byre("io", "-r", "-f", "qed", "-c", "read -P 0 12k 4k", "-c", "read -P 0xbb 16k 4k", "-c", "read -P 0 13000 1000", path)


def test_raw_backing_is_not_probed(tmp_path):
    """FEATURES 2.007: the guest of the base has written a qcow2 header into it; the mark says that it is raw all the same."""
    base = tmp_path / "base.raw"
    images.create(tmp_path / "trap.qcow2", "64M")
    base.write_bytes((tmp_path / "trap.qcow2").read_bytes().ljust(1 << 20, b"\0"))
    path = tmp_path / "over.qed"
    for tool in ("byre", "qemu-img"):
        images.create(path, None, fmt="qed", tool=tool, backing=base.name, backing_fmt="raw")
        same_info(path)
        info = run.byre("info", "--output=json", path).json
        assert (info["backing-filename-format"], info["virtual-size"]) == ("raw", 1 << 20)
        assert content(path, tmp_path) == base.read_bytes()


@pytest.mark.parametrize("name", qed.DAMAGES)
def test_damaged(tmp_path, name):
    """FEATURES 2.020, 2.021, 5.019: the peer's numbers and exit code, and a check writes nothing. Who reads beside the damage
    gets his data, who meets it gets an error: as with the peer."""
    b = Builder()
    qed.DAMAGES[name](b)
    path = b.write(tmp_path / "x.qed")
    same_check(path)
    assert path.read_bytes() == bytes(b.image), "check wrote to the image"
    for off in range(0, 5 * 4096, 4096):
        if off + 4096 > run.byre("info", "--output=json", "-f", "qed", path).json["virtual-size"]:
            continue
        verdicts = [("failed" not in done.out, done.code) for done in (
            run.byre("io", "-r", "-f", "qed", "-c", f"read {off} 4k", path, code=None),
            run.run("qemu-io", "-r", "-f", "qed", "-c", f"read {off} 4k", path, code=None))]
        assert verdicts[0] == verdicts[1], f"read at {off}"


def test_need_check(tmp_path):
    """FEATURES 2.006: an image that was not closed cleanly is read as it is and left as it is, and says that it is so; opened for writing it is
    made clean first."""
    path = Builder(features=qedref.NEED_CHECK).write(tmp_path / "x.qed")
    before = path.read_bytes()
    assert content(path, tmp_path)[:4096] == b"\1" * 4096
    assert run.byre("info", "--output=json", path).json["dirty-flag"] is True      # the peer says false of any QED image
    assert "cleanly shut down: no" in run.byre("info", path).out
    assert path.read_bytes() == before
    run.byre("io", "-c", "write -P 9 0 4k", path)
    assert run.byre("info", "--output=json", path).json["dirty-flag"] is False
    assert content(path, tmp_path)[:8192] == b"\x09" * 4096 + b"\2" * 4096
    run.qemu_img("check", "-f", "qed", path)


def test_feature_bits(tmp_path):
    """FEATURES 2.008: unknown features refuse; compatible ones are nothing to us; autoclear bits are kept by a reader."""
    path = Builder(features=1 << 5).write(tmp_path / "x.qed")
    for words in (["info"], ["check"], ["map"], ["io", "-r", "-c", "read 0 512"]):
        assert "0x20" in run.byre(words[0], "-f", "qed", *words[1:], path, code=1).err
    for field in ("compat", "autoclear"):
        path = Builder(**{field: 1 << 5}).write(tmp_path / "x.qed")
        before = path.read_bytes()
        content(path, tmp_path)
        run.byre("check", path)
        assert path.read_bytes() == before


# name: header fields, length of the file, and whether both tools open it; a text: what the peer does otherwise, and why we differ
HEADERS = {
    "sound": ({}, None, True), "cluster_2k": (dict(cluster_size=2048), None, False), "cluster_0": (dict(cluster_size=0), None, False),
    "cluster_128M": (dict(cluster_size=128 << 20), None, False), "cluster_5000": (dict(cluster_size=5000), None, False),
    "table_0": (dict(table_size=0), None, False), "table_3": (dict(table_size=3), None, False), "table_32": (dict(table_size=32), None, False),
    "table_16": (dict(table_size=16), 4096 * 17, True), "table_16_cut": (dict(table_size=16), 4096 * 16, False),
    "header_0": (dict(header_size=0), None, True), "header_over_l1": (dict(header_size=2), None, False),
    "header_huge": (dict(header_size=0xFFFFFFFF), None, False), "header_wraps": (dict(header_size=1 << 20), None, False),
    "l1_0": (dict(l1_off=0), None, False), "l1_odd": (dict(l1_off=4097), None, False), "l1_outside": (dict(l1_off=1 << 20), None, False),
    "l1_cut": ({}, 8192, False), "l1_wraps": (dict(l1_off=2 ** 64 - 4096), None, False),
    "size_0": (dict(size=0), None, True), "size_513": (dict(size=513), None, False), "size_512": (dict(size=512), None, True),
    "size_max": (dict(size=1 << 32), None, True), "size_above": (dict(size=(1 << 32) + 512), None, False),
    "size_2_63": (dict(size=1 << 63), None, False), "size_wraps": (dict(size=2 ** 64 - 512), None, False),
    "name": (dict(features=1, backing_off=64, backing_len=4), None, True), "name_outside": (dict(features=1, backing_off=4093, backing_len=4), None, False),
    "name_1023": (dict(features=1, backing_off=64, backing_len=1023), None, True), "name_empty": (dict(features=1, backing_off=64, backing_len=0), None, True),
    "name_wraps": (dict(features=1, backing_off=0xFFFFFFFF, backing_len=4), None, False), "raw_without_name": (dict(features=4), None, True),
    "feature_3": (dict(features=8), None, False), "short": ({}, 63, False), "header_only": ({}, 64, False),
    "name_1024": (dict(features=1, backing_off=64, backing_len=1024), None, "opens: the limit is 1023 bytes (2.005)"),
    "name_with_nul": (dict(features=1, backing_off=60, backing_len=8), None, "opens: a name holds no control characters (2.005)"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header(tmp_path, name):
    """FEATURES 2.001, 2.004, 2.005: every limit of the header, judged as the peer judges it."""
    fields, length, opens = HEADERS[name]
    b = Builder(data=0, **fields).put(64, b"b" * 1100)
    path = b.cut(length or 4096 * 3).write(tmp_path / "x.qed")
    ours, theirs = (program("info", "-f", "qed", path, code=(0, 1)) for program in (run.byre, run.qemu_img))
    assert theirs.code == (0 if opens else 1)
    assert ours.code == (0 if opens is True else 1), ours
    assert ours.code == 0 or str(path) in ours.err
