# SPDX-License-Identifier: MIT
"""`clone` of byre io (G.004): words, reports, refusals; raw disks, overlapping ranges, parts of clusters, ends of disks. What is shared
is looked at in tests/interop/test_clone.py."""
import os
import random

import pytest
from lib import run

MIB = 1 << 20


@pytest.mark.parametrize("fmt,size", [("raw", 3 * MIB + 512), ("qcow2", 3 * MIB + 512), ("qed", 3 * MIB + 512)])
def test_any_format(tmp_path, fmt, size):
    """Ranges that overlap, that are nothing, that end with the disk; against a model"""
    path, rng = tmp_path / "d", random.Random(4)
    run.byre("create", "-q", "-f", fmt, path, size)
    model, words = bytearray(size), []
    for i in range(60):
        length = rng.choice([0, 512, 65536, 131072, 3 * 65536 + 512, MIB + 1024])
        src, dst = (rng.randrange((size - length) // 512 + 1) * 512 for _ in range(2))
        if i % 3 == 0:
            dst = min(src // 65536 * 65536 + rng.choice([0, 65536, 512]), size - length)
        if i % 4 == 0:
            src = size - length
        if i % 2:
            model[src:src + length] = bytes([i + 1]) * length
            words += ["-c", f"write -q -P {i + 1} {src} {length}"] if length else []
        model[dst:dst + length] = model[src:src + length]
        words += ["-c", f"clone -q {src} {dst} {length}"]
    run.byre("io", "-f", fmt, *words, path)
    run.byre("convert", "-f", fmt, "-O", "raw", path, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes()[:size] == model
    if fmt != "raw":
        run.byre("check", path)


def test_words(tmp_path):
    path = tmp_path / "d.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "8M")
    out = run.byre("io", "-c", "write -q -P 3 0 1M", "-c", "clone 0 4M 1M", "-c", "read -q -P 3 4M 1M", path).out
    assert out.startswith("cloned 1048576/1048576 bytes at offset 4194304\n")
    assert run.byre("io", "-c", "clone -q 0 4M 1M", path).out == ""
    assert "clone [-Cq] src dst len -- copy a range" in run.byre("io", "-c", "help clone", path).out
    for words in ("clone 0 7M 2M", "clone 7M 0 2M", "clone 0 8M 512"):
        assert run.byre("io", "-c", words, path, code=1).out == "clone failed: Input/output error\n"
    assert run.byre("io", "-r", "-c", "clone 0 4M 1M", path, code=1).out == "clone failed: Operation not permitted\n"


def test_space(tmp_path):
    """A gigabyte is cloned without a gigabyte being written"""
    path = tmp_path / "d.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "4G")
    run.byre("io", "-c", "write -q -P 7 0 64M", path)
    before = os.stat(path).st_blocks
    run.byre("io", *sum((["-c", f"clone -q 0 {i * 64}M 64M"] for i in range(1, 17)), []), path)
    assert (os.stat(path).st_blocks - before) * 512 < 4 * MIB
    run.byre("check", path)
    run.byre("io", "-c", "read -q -P 7 0 1088M", path)
