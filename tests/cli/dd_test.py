# SPDX-License-Identifier: MIT
"""byre dd against coreutils dd and qemu-img dd (FEATURES 5.049, 5.050)."""
import random

import pytest

from lib import run

CASES = [[], ["bs=1M"], ["bs=1M", "skip=1", "count=1"], ["bs=4k", "skip=3", "count=9"], ["bs=1M", "count=9"], ["bs=64k", "skip=31"], ["count=0"],
         ["bs=1M", "skip=2"], ["bs=1M", "skip=1"], ["bs=1536", "skip=5", "count=3"], ["bs=512", "count=1"]]


def source(tmp_path):
    rng = random.Random(5049)
    data = bytearray(2 << 20)
    for _ in range(20):
        at = rng.randrange(len(data) - 9000)
        data[at:at + 9000] = rng.randbytes(9000)
    (tmp_path / "in").write_bytes(data)


@pytest.mark.parametrize("words", CASES, ids=lambda w: " ".join(w) or "all")
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_same_bytes_as_coreutils(tmp_path, words, fmt):
    """FEATURES 5.049: count blocks of bs bytes, starting at block skip"""
    source(tmp_path)
    run.run("dd", "if=in", "of=expected", "status=none", *words, cwd=tmp_path)
    run.byre("dd", "-f", "raw", "-O", fmt, *words, "if=in", "of=out", cwd=tmp_path)
    expected = (tmp_path / "expected").read_bytes()
    if fmt == "qcow2":
        run.qemu_img("check", tmp_path / "out")
        run.qemu_img("convert", "-O", "raw", "out", "plain", cwd=tmp_path)
    out = (tmp_path / ("plain" if fmt == "qcow2" else "out")).read_bytes()
    assert out == expected + bytes(-len(expected) % 512)


def test_odd_block_size(tmp_path):
    """FEATURES 5.049: what is no multiple of 512 is filled up with zeros"""
    source(tmp_path)
    (tmp_path / "in").write_bytes(b"\x5a" * 8192)
    run.byre("dd", "bs=1000", "count=3", "if=in", "of=out", cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == b"\x5a" * 3000 + bytes(72)


@pytest.mark.parametrize("words", [["if=in"], ["of=x"], ["foo=1", "if=in", "of=x"], ["if=in", "of=x", "junk"], ["seek=1", "if=in", "of=x"], ["bs=0", "if=in", "of=x"],
                                   ["bs=x", "if=in", "of=x"], ["bs=3G", "if=in", "of=x"], ["count=-1", "if=in", "of=x"], ["skip=x", "if=in", "of=x"],
                                   ["-O", "bogus", "if=in", "of=x"], ["if=missing", "of=x"], ["bs=1M", "skip=5", "count=1", "if=in", "of=x"],
                                   ["--image-opts", "if=driver=raw,file.filename=in", "of=x"], ["-U", "if=in", "of=x"], ["-f", "raw", "-O", "qcow2", "if=in", "of=x"],
                                   ["--bogus", "if=in", "of=x"], []])
def test_usage(twin, words):
    """FEATURES 5.009, 5.050"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "in", "1M"])
    twin.same_code("dd", *words)


def test_skip_past_the_end_is_told(tmp_path):
    """FEATURES 5.049"""
    source(tmp_path)
    done = run.byre("dd", "bs=1M", "skip=5", "if=in", "of=x", cwd=tmp_path)
    assert "cannot skip to specified offset" in done.err and (tmp_path / "x").stat().st_size == 0


def test_part_of_a_compressed_image(tmp_path):
    """FEATURES 5.050"""
    source(tmp_path)
    run.qemu_img("convert", "-c", "-O", "qcow2", "in", "c", cwd=tmp_path)
    run.byre("dd", "-f", "qcow2", "-O", "raw", "bs=100k", "skip=3", "count=7", "if=c", "of=out", cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()[300 << 10:1000 << 10]


@pytest.mark.parametrize("words", ["-f qcow2 if=o of=s.raw", "-f qcow2 if=oo of=s.raw", "-f qcow2 if=oo of=link", "-f qcow2 if=oo of=o", "-f qcow2 if=dd of=d.raw",
                                   "-f qcow2 -O qcow2 if=oo of=s.raw", "-U -f raw if=s.raw of=link", "-U -f qcow2 if=oo of=oo"])
def test_own_files_are_no_target(tmp_path, words):
    """FEATURES 5.049, 11.004: no file is emptied that the source reads, whatever it is called (the peer empties a raw base)"""
    (tmp_path / "s.raw").write_bytes(b"\x09" * (1 << 20))
    (tmp_path / "link").symlink_to("s.raw")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "s.raw", "-F", "raw", "o", cwd=tmp_path)
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "o", "-F", "qcow2", "oo", cwd=tmp_path)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "dd", "1M", cwd=tmp_path)
    run.qemu_io(tmp_path / "dd", "write -P 3 0 64k", cwd=tmp_path)
    names = ("s.raw", "o", "oo", "dd", "d.raw")
    before = [(tmp_path / name).read_bytes() for name in names]
    run.byre("dd", *words.split(), cwd=tmp_path, code=1)
    assert [(tmp_path / name).read_bytes() for name in names] == before
