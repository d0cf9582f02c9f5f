# SPDX-License-Identifier: MIT
"""byre compare against qemu-img compare (FEATURES 5e)."""
import pytest

from lib import run
from twin import Holder


def images(twin):
    twin.share(["qemu-img", "create", "-q", "-f", "raw", "z1", "1M"], ["qemu-img", "create", "-q", "-f", "raw", "z2", "2M"],
               ["qemu-img", "create", "-q", "-f", "raw", "tail", "2M"], ["qemu-io", "-f", "raw", "-c", "write -P 7 1536k 4k", "tail"],
               ["qemu-img", "create", "-q", "-f", "qcow2", "e1", "1M"], ["qemu-img", "create", "-q", "-f", "qcow2", "e2", "1M"],
               ["qemu-img", "create", "-q", "-f", "qcow2", "e3", "1M"], ["qemu-io", "-c", "write -z 0 64k", "e2"],
               ["qemu-io", "-c", "write -P 0 0 64k", "e3"], ["qemu-img", "create", "-q", "-f", "qcow2", "d1", "8M"],
               ["qemu-io", "-c", "write -P 1 3M 70000", "d1"], ["qemu-img", "convert", "-O", "raw", "d1", "d2"],
               ["qemu-img", "convert", "-c", "-O", "qcow2", "d1", "d3"], ["cp", "d2", "d4"], ["qemu-io", "-f", "raw", "-c", "write -P 2 3214000 1", "d4"])


PAIRS = [["z1", "z1"], ["z1", "z2"], ["z2", "z1"], ["z1", "tail"], ["tail", "z1"], ["z2", "tail"], ["e1", "e2"], ["e1", "e3"], ["e2", "e3"],
         ["d1", "d2"], ["d2", "d3"], ["d3", "d4"], ["d1", "d4"], ["z1", "e1"]]


@pytest.mark.parametrize("strict", [[], ["-s"]])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "-".join(p))
def test_pairs(twin, pair, strict):
    """FEATURES 5.026, 5.027, 5.028: exit code and text"""
    images(twin)
    if not (strict and {"d1", "d2", "d3", "tail"} & set(pair)):      # which range of a raw file counts as allocated is the file system's word
        twin.same_output("compare", *strict, *pair)
    ours, theirs = twin.same_code("compare", "-q", *strict, *pair)
    assert ours.out == ""


@pytest.mark.parametrize("words", [["z1"], [], ["a", "b", "c"], ["missing", "z1"], ["z1", "missing"], ["-F", "qcow2", "z1", "z2"], ["--bogus", "z1", "z1"],
                                   ["-T", "bogus", "z1", "z1"], ["-f", "raw", "-F", "raw", "-T", "none", "-p", "-q", "-U", "z1", "z1"],
                                   ["--image-opts", "driver=raw,file.filename=z1", "driver=qcow2,file.filename=e1"], ["-f", "nope", "z1", "z1"]])
def test_usage(twin, words):
    """FEATURES 5.026, 5.029: 2 when an image cannot be opened, 1 for wrong usage"""
    images(twin)
    twin.same_code("compare", *words)


def test_progress(twin):
    """FEATURES 5.005, 5.029"""
    images(twin)
    done = run.byre("compare", "-p", "d1", "d2", cwd=twin.ours, binary=True)
    assert b"    (0.00/100%)\r" in done.out and b"    (100.00/100%)\r" in done.out


def test_lock(tmp_path):
    """FEATURES 5.004"""
    for name in "ab":
        run.byre("create", "-q", "-f", "qcow2", tmp_path / name, "1M")
    with Holder(tmp_path / "a"):
        run.byre("compare", tmp_path / "a", tmp_path / "b", code=2)
        run.byre("compare", "-U", tmp_path / "a", tmp_path / "b")


def test_read_error(tmp_path):
    """FEATURES 5.026: 4 when data cannot be read"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    run.qemu_io(image, "write -P 1 0 64k")
    run.qemu_img("convert", "-c", "-O", "qcow2", image, tmp_path / "c")
    where = run.qemu_img("check", "--output=json", tmp_path / "c").json["image-end-offset"]
    with open(tmp_path / "c", "r+b") as f:                             # the packed cluster is not deflate any more
        data = f.read()
        l1 = int.from_bytes(data[40:48], "big")
        l2 = int.from_bytes(data[l1:l1 + 8], "big") & 0x00fffffffffffe00
        at = int.from_bytes(data[l2:l2 + 8], "big") & ((1 << 54) - 1)
        f.seek(at)
        f.write(b"\xff" * 40)
    assert where
    done = run.byre("compare", image, tmp_path / "c", code=4)
    assert str(tmp_path / "c") in done.err
