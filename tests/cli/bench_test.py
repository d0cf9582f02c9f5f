# SPDX-License-Identifier: MIT
"""byre bench against qemu-img bench (FEATURES 5.067)."""
import re

import pytest

from lib import peers, run

CASES = [["-c", "100", "-d", "4"], ["-c", "100", "-d", "4", "-w"], ["-c", "100", "-d", "4", "-w", "-t", "none", "-S", "64k", "-s", "8k", "-o", "4k", "--pattern=3",
         "--flush-interval=4", "--no-drain"], ["-c", "100", "-w", "--flush-interval=4"], ["-c", "100", "--flush-interval=4"],
         ["-c", "100", "-w", "-d", "8", "--flush-interval=12"], ["--pattern=300", "-c", "10"], ["--pattern=3", "-c", "10"], ["-c", "0"], ["-c", "x"],
         ["-n", "-c", "10", "-i", "threads"], ["-i", "io_uring", "-c", "10"], ["-i", "bogus", "-c", "10"], ["-i", "native", "-c", "10"],
         ["-i", "native", "-t", "none", "-c", "10"], ["-o", "2G", "-c", "10"], ["-c", "10", "-s", "3G"], ["-t", "bogus", "-c", "10"], ["-U", "-w", "-c", "10"],
         ["-U", "-c", "10"], ["-c", "10", "-f", "qcow2"], ["-c", "10", "-s", "1"], ["-c", "10", "-s", "512", "-S", "100"]]


@pytest.mark.parametrize("words", CASES, ids=lambda w: " ".join(w))
def test_same_exit_code_and_first_line(twin, words):
    """FEATURES 5.067"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "1G"])
    ours, theirs = twin.same_code("bench", *words, "x")
    assert ours.out.splitlines()[:-1] == theirs.out.splitlines()[:-1] or ours.code
    if not ours.code:
        assert re.fullmatch(r"Run completed in \d+\.\d{3} seconds\.", ours.out.splitlines()[-1])
    run.qemu_img("check", f"{twin.ours}/x")
    run.qemu_img("compare", f"{twin.ours}/x", f"{twin.theirs}/x")


def trace(tmp_path, calls, *words):
    """System calls of a run on worker threads, one file per thread so that no line is torn."""
    peers.need("strace")
    for old in tmp_path.glob("trace.*"):
        old.unlink()
    run.run("strace", "-ff", "-o", "trace", "-e", f"trace={calls}", run.BYRE, *words, cwd=tmp_path)
    return "".join(p.read_text() for p in tmp_path.glob("trace.*"))


def test_requests_are_what_they_say(tmp_path):
    """FEATURES 5.067: the number, size and place of the writes"""
    run.byre("create", "-q", "-f", "raw", "x", "1M", cwd=tmp_path)
    text = trace(tmp_path, "pwrite64,pwritev,pwritev2", "bench", "-f", "raw", "-i", "threads", "-c", "100", "-d", "7", "-s", "3000", "-S", "5000", "-o", "1000", "-w", "x")
    offsets = [int(m.group(1)) for m in re.finditer(r", (\d+)(?:, 0)?\)\s+= 3000$", text, re.M)]
    assert sorted(offsets) == [1000 + i * 5000 for i in range(100)]


def test_pattern(tmp_path):
    """FEATURES 5.067: --pattern"""
    run.byre("create", "-q", "-f", "qcow2", "x", "1M", cwd=tmp_path)
    run.byre("bench", "-q", "-c", "16", "-w", "--pattern=0x5a", "-s", "64k", "x", cwd=tmp_path)
    run.qemu_io(tmp_path / "x", "read -P 0x5a 0 1M")


def test_end_of_the_image(tmp_path):
    """FEATURES 5.067: goes round at the end of the image"""
    run.byre("create", "-q", "-f", "raw", "x", "64k", cwd=tmp_path)
    run.byre("bench", "-q", "-f", "raw", "-c", "1000", "-s", "6000", "-S", "12288", "-o", "4k", "-w", "--pattern=1", "x", cwd=tmp_path)


def test_flushes_are_counted(tmp_path):
    """FEATURES 5.067: one flush per interval"""
    run.byre("create", "-q", "-f", "raw", "x", "1M", cwd=tmp_path)
    for extra in ([], ["--no-drain"]):
        text = trace(tmp_path, "fdatasync", "bench", "-f", "raw", "-i", "threads", "-c", "100", "-d", "5", "-w", "--flush-interval=10", *extra, "x")
        assert 10 <= text.count("fdatasync(") <= 12                                   # and one at the end
