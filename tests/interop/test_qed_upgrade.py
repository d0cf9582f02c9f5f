# SPDX-License-Identifier: MIT
"""QED becomes qcow2 in its place (`byre amend -o format=qcow2`): the peer finds the image sound and reads the same, data has not moved."""
import os
import shutil
import zlib

import pytest
from lib import images, qed, run
from lib.qed import Builder
from lib.workload import Workload

import qedref

GEOMETRIES = [(4096, 1), (4096, 2), (4096, 16), (8192, 4), (65536, 4), (65536, 16), (1 << 20, 1), (2 << 20, 2), (4 << 20, 2), (16 << 20, 1), (64 << 20, 1)]
UPGRADE = ("amend", "-f", "qed", "-o", "format=qcow2")


def upgraded(path, *more):
    """Upgrades; checks by both programs. The last options may say more."""
    run.byre(*UPGRADE[:-1], ",".join((UPGRADE[-1], *more)), path)
    for program in (run.byre, run.qemu_img):
        done = program("check", "-f", "qcow2", path)
        assert "No errors" in done.out
    info = run.qemu_img("info", "--output=json", path).json
    assert info["format"] == "qcow2" and info["format-specific"]["data"]["compat"] == "1.1"
    return info


def data_places(path, fmt):
    """Where data lies in the file, by byre's map."""
    rows = run.byre("map", "--output=json", "-f", fmt, path).json
    places = []
    for r in rows:
        if r["data"] and r.get("depth", 0) == 0 and "offset" in r:
            last = places and places[-1]
            if last and last[0] + last[2] == r["start"] and last[1] + last[2] == r["offset"]:
                last[2] += r["length"]
            else:
                places.append([r["start"], r["offset"], r["length"]])
    return places


@pytest.mark.parametrize("cluster_size,table_size", GEOMETRIES)
def test_geometries(tmp_path, cluster_size, table_size):
    """FEATURES 2.002, 2.003, 2.009, G.020: every cluster size, zeros and data over several tables; nothing of the data moves."""
    path, before = tmp_path / "x.qed", tmp_path / "before.qed"
    size = max(40 << 20 if cluster_size == 4096 else 3 << 20, 5 * cluster_size) + 1536
    run.byre("create", "-q", "-f", "qed", "-o", f"cluster_size={cluster_size},table_size={table_size}", path, size)
    disk = Workload(zlib.crc32(b"%d %d" % (cluster_size, table_size)), size, cluster_size=min(cluster_size, 65536), weights={"discard": 0, "zero_unmap": 3})
    for commands in disk.batches(60, 30):
        run.byre("io", "-f", "qed", *(w for c in commands for w in ("-c", c)), path)
    shutil.copy(path, before)
    places = data_places(path, "qed")
    info = upgraded(path)
    assert info["cluster-size"] == min(cluster_size, 2 << 20) and info["virtual-size"] == size // 512 * 512
    assert data_places(path, "qcow2") == places
    run.byre("compare", "-f", "qed", "-F", "qcow2", before, path)
    run.qemu_img("convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "after.raw")
    assert (tmp_path / "after.raw").read_bytes() == bytes(disk.shadow)
    run.qemu_io(path, "write -P 9 1M 1M", "write -z 0 64k", "read -P 9 1M 1M", fmt="qcow2")       # the old tables are free now, and used again
    run.qemu_img("check", path)


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "qed"])
def test_backing(tmp_path, fmt):
    """FEATURES 2.005, 2.007: the name stays, the format is recorded (it must be said where it is not known); zero clusters hide what is below."""
    base, path, before = tmp_path / f"base.{fmt}", tmp_path / "x.qed", tmp_path / "before.qed"
    images.create(base, "8M", fmt=fmt)
    run.qemu_io(base, "write -P 0xbb 0 8M", fmt=fmt)
    images.create(path, None, fmt="qed", backing=base.name, backing_fmt=fmt, cluster_size=4096, table_size=2)
    run.qemu_io(path, "write -P 1 1M 100k", "write -z 3M 64k", "write -P 2 5000 3", fmt="qed")
    shutil.copy(path, before)
    if fmt != "raw":
        done = run.byre(*UPGRADE, path, code=1)
        assert "give it as backing_fmt" in done.err and path.read_bytes() == before.read_bytes()
        for wrong in ("nonsense", ""):
            assert run.byre(*UPGRADE[:-1], f"format=qcow2,backing_fmt={wrong}", path, code=1).err and path.read_bytes() == before.read_bytes()
    info = upgraded(path, *([] if fmt == "raw" else [f"backing_fmt={fmt}"]))
    assert (info["backing-filename"], info["backing-filename-format"]) == (base.name, fmt)
    for program in (run.byre, run.qemu_img):
        program("compare", "-f", "qcow2", "-F", "qed", path, before)
    run.qemu_io(path, "read -P 0 3M 64k", "read -P 0xbb 4M 4M", "write -P 5 3M 1k", "read -P 0 3074k 62k", fmt="qcow2")
    run.qemu_img("check", path)


def test_longest_name(tmp_path):
    name = "n" * 1023
    path = tmp_path / "x.qed"
    run.byre("create", "-q", "-u", "-f", "qed", "-b", name, "-F", "raw", path, "1M")
    run.byre(*UPGRADE, path, code=1)              # its chain cannot be opened
    b = Builder(features=qedref.BACKING | qedref.BACKING_RAW, backing_off=64, backing_len=8).put(64, b"base.raw")
    images.raw_file(tmp_path / "base.raw", 1 << 20, [(0, b"\xbb" * 4096)])
    path = b.write(tmp_path / "y.qed")
    assert upgraded(path)["backing-filename"] == "base.raw"


def test_no_bytes(tmp_path):
    """A disk of size 0 gets its first bytes later."""
    path = tmp_path / "x.qed"
    run.byre("create", "-q", "-f", "qed", path, "0")
    assert upgraded(path)["virtual-size"] == 0
    run.qemu_img("resize", "-f", "qcow2", path, "1M")
    run.qemu_io(path, "write -P 1 0 1M", "read -P 1 0 1M", fmt="qcow2")
    run.qemu_img("check", path)


def test_64_tebibytes(tmp_path):
    """FEATURES 2.004: only metadata is read and written."""
    path = tmp_path / "x.qed"
    run.byre("create", "-q", "-f", "qed", path, "64T")
    run.byre("io", "-c", "write -P 7 63T 64k", "-c", "write -P 8 1G 1k", path)
    assert upgraded(path)["virtual-size"] == 64 << 40
    run.qemu_io(path, "read -P 7 63T 64k", "read -P 8 1G 1k", "read -P 0 2T 1M", fmt="qcow2")
    assert os.path.getsize(path) < 8 << 20


@pytest.mark.parametrize("name", ["data_outside", "data_twice", "table_twice", "table_outside"])
def test_damaged(tmp_path, name):
    """A damaged image is refused and stays as it was; repaired it is taken."""
    b = Builder()
    qed.DAMAGES[name](b)
    path = b.write(tmp_path / "x.qed")
    done = run.byre(*UPGRADE, path, code=1)
    assert "repair it first" in done.err and path.read_bytes() == bytes(b.image)
    run.byre("check", "-r", "all", path)
    upgraded(path)


@pytest.mark.parametrize("name", ["leak", "leak_tail", "tail_garbage", "header_two", "data_beyond_size", "need_check", "entries_in_disorder"])
def test_odd_but_sound(tmp_path, name):
    """Leaks become free clusters; an image that was not closed cleanly is looked through first; what lies behind the disk's end goes."""
    b = Builder()
    qed.DAMAGES[name](b)
    path = b.write(tmp_path / "x.qed")
    if run.byre("check", path, code=None).code == 2:
        run.byre("check", "-r", "all", path)
    run.byre("convert", "-O", "raw", path, tmp_path / "before.raw")
    upgraded(path)
    run.qemu_img("compare", "-f", "qcow2", "-F", "raw", path, tmp_path / "before.raw")


def test_refused(tmp_path):
    """What cannot be amended is said, and the file stays."""
    path = Builder().write(tmp_path / "x.qed")
    before = path.read_bytes()
    for options, says in (("format=raw", "qcow2 only"), ("format=qed", "qcow2 only"), ("backing_fmt=raw", "only the format"), ("format=qcow2,backing_fmt=raw", "no backing file"),
                          ("size=1G", "size"), ("cluster_size=4k", "not changed later")):
        assert says in run.byre("amend", "-f", "qed", "-o", options, path, code=1).err
        assert path.read_bytes() == before
    out = run.byre("amend", "-f", "qed", "-o", "help").out
    assert "format" in out and "backing_fmt" in out
    path = Builder(compat=1 << 5).write(tmp_path / "y.qed")
    assert "0x20" in run.byre(*UPGRADE, path, code=1).err
    run.byre(*UPGRADE, "--force", path)
    run.qemu_img("check", "-f", "qcow2", path)
