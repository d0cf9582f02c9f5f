# SPDX-License-Identifier: MIT
"""Conversion from and to QED with everything that both formats hold: sparse places, zeros that hide what is below, names of backing files."""
import os
import shutil
import zlib

import pytest
from lib import images, run
from lib.workload import Workload

import qedref

GEOMETRIES = [(4096, 1), (4096, 16), (65536, 4), (1 << 20, 2), (4 << 20, 2), (64 << 20, 1)]


def made(path, fmt, cluster_size, table_size=None, size=24 << 20):
    """A random disk written by byre; its bytes."""
    images.create(path, size, fmt=fmt, tool="byre", cluster_size=cluster_size, **({"table_size": table_size} if table_size else {}))
    disk = Workload(zlib.crc32(b"%d %d" % (cluster_size, size)), size, cluster_size=min(cluster_size, 65536), weights={"discard": 0, "zero_unmap": 3})
    for commands in disk.batches(60, 30):
        run.byre("io", "-f", fmt, *(w for c in commands for w in ("-c", c)), path)
    return bytes(disk.shadow)


def reads(path, data):
    with qedref.open_image(path, fmt="qed", backing=False) as image:
        assert image.check().clean
        assert image.read(0, image.size) == data


@pytest.mark.parametrize("cluster_size,table_size", GEOMETRIES)
def test_both_ways(tmp_path, cluster_size, table_size):
    """FEATURES 2.002, 2.003, 5.030: qed, qcow2, qed: the bytes stay, and what is sparse stays sparse; the peer reads each, where it can."""
    first, middle, last = (tmp_path / name for name in ("first.qed", "middle.qcow2", "last.qed"))
    data = made(first, "qed", cluster_size, table_size)
    run.byre("convert", "-f", "qed", "-O", "qcow2", first, middle)
    run.byre("convert", "-f", "qcow2", "-O", "qed", "-o", f"cluster_size={cluster_size},table_size={table_size}", middle, last)
    reads(last, data)
    images.peer_check(middle)
    run.qemu_img("convert", "-f", "qcow2", "-O", "raw", middle, tmp_path / "x.raw")
    assert (tmp_path / "x.raw").read_bytes() == data
    if table_size > 1:
        run.qemu_img("compare", "-f", "qed", "-F", "qcow2", last, middle)
        run.qemu_img("check", "-f", "qed", last)
    allocated = [run.byre("check", "--output=json", "-f", "qed", p).json.get("allocated-clusters", 0) for p in (first, last)]
    assert allocated[1] <= allocated[0]


@pytest.mark.parametrize("target", ["qed", "qcow2"])
@pytest.mark.parametrize("base_fmt", ["raw", "qcow2", "qed"])
def test_backing(tmp_path, base_fmt, target):
    """FEATURES 2.005, 2.007, 2.010: -B and -F: only what differs from the backing file is copied; zeros hide it, to the last byte."""
    base, top, out = tmp_path / f"base.{base_fmt}", tmp_path / "top", tmp_path / "out"
    source = "qcow2" if target == "qed" else "qed"
    images.create(base, "8M", fmt=base_fmt, tool="byre")
    run.byre("io", "-f", base_fmt, "-c", "write -P 0xbb 0 8M", base)
    images.create(top, None, fmt=source, tool="byre", backing=base.name, backing_fmt=base_fmt)
    run.byre("io", "-f", source, "-c", "write -P 1 1M 100k", "-c", "write -z 3M 256k", "-c", "write -P 2 5000 3", "-c", "write -P 4 3100k 2k", top, cwd=tmp_path)
    run.byre("convert", "-f", source, "-O", target, "-B", base.name, "-F", base_fmt, "top", "out", cwd=tmp_path)
    for program in (run.byre, run.qemu_img):
        program("compare", "-f", source, "-F", target, top, out)
        program("check", "-f", target, out)
    info = run.qemu_img("info", "--output=json", "-f", target, out).json
    assert info["backing-filename"] == base.name
    assert info.get("backing-filename-format") == (base_fmt if target == "qcow2" or base_fmt == "raw" else None)
    assert os.path.getsize(out) < 4 << 20, "what the backing file holds was copied"
    run.byre("io", "-r", "-f", target, "-c", "read -P 0 3M 28k", "-c", "read -P 0 3102k 200k", "-c", "read -P 0xbb 5M 3M", "out", cwd=tmp_path)


def test_peer_image_both_ways(tmp_path):
    """FEATURES 5.030: what the peer has written, through byre, and back by the peer."""
    first, ours, back = (tmp_path / name for name in ("first.qed", "ours.qcow2", "back.qed"))
    images.create(first, "40M", fmt="qed", cluster_size=4096, table_size=2)
    disk = Workload(7, 40 << 20, cluster_size=4096, weights={"discard": 0, "zero_unmap": 3})
    for commands in disk.batches(90, 30):
        run.qemu_io(first, *commands, fmt="qed")
    run.byre("convert", "-O", "qcow2", first, ours)
    run.qemu_img("convert", "-O", "qed", ours, back)
    reads(back, bytes(disk.shadow))
    shutil.copy(ours, tmp_path / "copy")
    run.byre("convert", "-O", "qed", tmp_path / "copy", tmp_path / "again.qed")
    reads(tmp_path / "again.qed", bytes(disk.shadow))
