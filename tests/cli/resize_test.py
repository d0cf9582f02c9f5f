# SPDX-License-Identifier: MIT
"""byre resize against qemu-img resize (FEATURES 5.064, 5.065, 1.142 to 1.144)."""
import os

import pytest

from lib import corrupt, run

MIB = 1 << 20

CASES = [["+1G"], ["-1M"], ["--shrink", "-1M"], ["--shrink", "-5G"], ["--shrink", "0"], ["0"], ["8M"], ["16M"], ["1000"], ["12x"], ["+"], [""],
         ["--preallocation=full", "9M"], ["--preallocation=full", "4M"], ["--preallocation=falloc", "+1M"], ["--preallocation=metadata", "+1M"],
         ["--preallocation=full", "--shrink", "1M"], ["--preallocation=bogus", "9M"], ["-q", "9M"], ["--shrink", "4M"], ["+512"], ["+8E"], ["1.5M", "--shrink"]]


@pytest.mark.parametrize("words", CASES, ids=lambda w: " ".join(w))
def test_qcow2(twin, words):
    """FEATURES 5.064, 5.065: exit code and the size that comes out"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "8M"], ["qemu-io", "-c", "write -P 9 0 8M", "x"])
    size = [w for w in words if not w.startswith("--") and w != "-q"]
    options = [w for w in words if w not in size]
    ours, theirs = twin.same_code("resize", *options, "x", *size)
    sizes = [run.qemu_img("info", "--output=json", f"{folder}/x").json["virtual-size"] for folder in (twin.ours, twin.theirs)]
    assert sizes[0] == sizes[1]
    if not ours.code:
        assert ours.out == theirs.out
    run.qemu_img("check", f"{twin.ours}/x")
    run.qemu_img("compare", f"{twin.ours}/x", f"{twin.theirs}/x")


@pytest.mark.parametrize("words", [["2k"], ["1k"], ["--shrink", "512"], ["+512"], ["--preallocation=full", "+1M"], ["2000"], ["--shrink", "700"],
                                   ["+100"], ["--shrink", "1"], ["--preallocation=falloc", "5001"]], ids=lambda w: " ".join(w))
def test_raw(twin, words):
    """FEATURES 5.064, 5.065, 3.028: the file gets exactly the length that was asked for"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "x", "1k"])
    ours, theirs = twin.same_code("resize", "-f", "raw", *words[:-1], "x", words[-1])
    assert os.stat(f"{twin.ours}/x").st_size == os.stat(f"{twin.theirs}/x").st_size
    sizes = [run.qemu_img("info", "-f", "raw", "--output=json", f"{folder}/x").json["virtual-size"] for folder in (twin.ours, twin.theirs)]
    assert sizes[0] == sizes[1] == run.byre("info", "-f", "raw", "--output=json", f"{twin.ours}/x").json["virtual-size"]


def test_guessed_raw_warns(tmp_path):
    """FEATURES 3.027: a guessed raw format is told"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "x", "1M")
    done = run.byre("resize", tmp_path / "x", "2M")
    assert "WARNING: Image format was not specified" in done.err
    assert "WARNING" not in run.byre("resize", "-f", "raw", tmp_path / "x", "3M").err


def test_shrink_gives_space_back(tmp_path):
    """FEATURES 1.143: shrinking needs --shrink and makes the file smaller"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "64M")
    run.byre("io", "-c", "write -P 1 0 64M", tmp_path / "x")
    before = (tmp_path / "x").stat().st_size
    run.byre("resize", tmp_path / "x", "1M", code=1)
    assert (tmp_path / "x").stat().st_size == before
    run.byre("resize", "--shrink", tmp_path / "x", "1M")
    assert (tmp_path / "x").stat().st_size < before // 8
    run.qemu_img("check", tmp_path / "x")


def test_new_part_reads_zero(tmp_path):
    """FEATURES 1.142, 11.009: also where a longer backing image would shine through"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "base", "4M")
    run.byre("io", "-f", "raw", "-c", "write -P 5 0 4M", tmp_path / "base")
    run.byre("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "top", "1M")
    run.byre("resize", tmp_path / "top", "3M")
    run.qemu_io(tmp_path / "top", "read -P 5 0 1M", "read -P 0 1M 2M")


@pytest.mark.serial
def test_block_device(tmp_path):
    """FEATURES 1.144, 3.017: a device does not grow and does not shrink; a size that fits is exact"""
    with open(tmp_path / "back", "wb") as f:
        f.truncate(64 << 20)
    device, detach = run.loop_device(tmp_path / "back")
    try:
        run.byre("resize", "-f", "raw", device, "128M", code=1)
        run.byre("resize", "-f", "raw", device, "64M")
        run.byre("resize", "-f", "raw", "--shrink", device, "32M", code=1)
    finally:
        detach()


@pytest.mark.parametrize("words", [[], ["x"], ["x", "1M", "y"], ["missing", "1M"], ["--image-opts", "driver=qcow2,file.filename=x", "9M"],
                                   ["-f", "nope", "x", "9M"]])
def test_usage(twin, words):
    """FEATURES 5.009"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "8M"])
    twin.same_code("resize", *words)


@pytest.mark.parametrize("below", [1, 4, 9], ids=lambda n: f"backing of {n} MiB")
@pytest.mark.parametrize("cluster", ["4k", "64k"])
def test_grow_and_shrink_over_a_backing_file(tmp_path, below, cluster):
    """FEATURES 11.009, 11.032: after every size the content is that of a plain file that was treated alike"""
    model = bytearray(b"\5" * (below << 20))
    (tmp_path / "base").write_bytes(model)
    run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", "base", "-F", "raw", tmp_path / "top", "3M")
    model = model[:3 << 20] + bytes(max(0, (3 << 20) - len(model)))
    for step, size in enumerate([5 << 20, (2 << 20) + 512, 6 << 20, 1 << 19, 10 << 20]):
        run.byre("resize", "--shrink", tmp_path / "top", str(size))
        model = model[:size] + bytes(max(0, size - len(model)))
        at = size // 2 & ~511
        run.byre("io", "-c", f"write -P {step + 10} {at} 5000", tmp_path / "top")
        model[at:at + 5000] = bytes([step + 10]) * 5000
        (tmp_path / "model").write_bytes(model)
        run.qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp_path / "top", tmp_path / "model")
        run.byre("compare", "-f", "qcow2", "-F", "raw", tmp_path / "top", tmp_path / "model")
        run.qemu_img("check", tmp_path / "top")


@pytest.mark.parametrize("way", [["resize", "v2.qcow2", "1G"], ["amend", "-f", "qcow2", "-o", "size=1G", "v2.qcow2"]], ids=["resize", "amend"])
def test_snapshots_that_do_not_say_how_long_they_are(tmp_path, way):
    """FEATURES G.008: a version 2 image whose snapshot records no size does not grow: the snapshot would, and its VM state would lie inside the disk. One that records it grows"""
    image = tmp_path / "v2.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, "1M")
    run.byre("snapshot", "-c", "s", image)
    with corrupt.Editor(image) as e:
        at = e.image.header.snapshots_off
    run.byre(*way, cwd=tmp_path)
    run.byre("snapshot", "-a", "s", image)
    assert run.byre("info", "--output=json", image).json["virtual-size"] == MIB
    data = bytearray(image.read_bytes())
    entry = data[at:at + 256]
    extra = int.from_bytes(entry[36:40], "big")
    ids, names = int.from_bytes(entry[12:14], "big"), int.from_bytes(entry[14:16], "big")
    old = bytes(entry[:36]) + bytes(4) + bytes(entry[40 + extra:40 + extra + ids + names])      # as programs wrote it that knew no extra data
    data[at:at + len(old)] = old
    image.write_bytes(data)
    assert run.qemu_img("snapshot", "-l", image).out.count("s") and "'s'" in run.byre(*way, cwd=tmp_path, code=1).err
    assert run.byre("info", "--output=json", image).json["virtual-size"] == MIB


def test_growth_of_an_odd_size(tmp_path):
    """FEATURES 5.031, 11.009: what lay behind the end in its last sector, of the backing file too, is not shown by growth"""
    (tmp_path / "below").write_bytes(b"\xaa" * 8192)
    for size in (1024, 4096):
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", "below", "-F", "raw", "x", "1024", cwd=tmp_path)
        with open(tmp_path / "x", "r+b") as f:
            f.seek(24)
            f.write((1000).to_bytes(8, "big"))
        run.byre("resize", "-q", "-f", "qcow2", "x", str(size), cwd=tmp_path)
        run.byre("io", "-f", "qcow2", "-c", "read -P 0xaa 0 1000", "-c", f"read -P 0 1000 {size - 1000}", "x", cwd=tmp_path)
