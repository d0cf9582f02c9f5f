# SPDX-License-Identifier: MIT
"""byre bitmap against qemu-img bitmap (FEATURES 5.068, 5.069)."""
import pytest

from lib import run
from lib.bitmaps import listed

CASES = [["--add", "x", "b"], ["--add", "-g", "512", "x", "b"], ["--add", "-g", "3000", "x", "b"], ["--add", "-g", "4G", "x", "b"], ["--add", "-g256", "x", "b"],
         ["--add", "x", "old"], ["--remove", "x", "old"], ["--remove", "x", "none"], ["--clear", "x", "old"], ["--enable", "x", "off"],
         ["--disable", "x", "old"], ["--enable", "x", "old"], ["--disable", "x", "off"], ["--merge", "off", "x", "old"], ["--merge", "none", "x", "old"],
         ["--add", "--disable", "x", "b"], ["--add", "--disable", "--merge", "old", "--enable", "x", "b"], ["--clear", "--remove", "x", "old"],
         ["--remove", "--clear", "x", "old"], ["--add", "--add", "x", "b"], ["--merge", "old", "--merge", "off", "x", "old"],
         ["x", "old"], ["--add", "x"], ["--add", "x", "b", "c"], ["-g", "512", "--clear", "x", "old"], ["-b", "y", "--add", "x", "b"], ["-F", "qcow2", "--add", "x", "b"],
         ["--merge", "there", "-b", "y", "x", "old"], ["--merge", "there", "-b", "y", "-F", "qcow2", "x", "old"], ["--merge", "there", "-b", "z", "x", "old"],
         ["--add", "-f", "qcow2", "x", "b"], ["--add", "-f", "raw", "r", "b"], ["--add", "r", "b"], ["--add", "v2", "b"], ["--add", "x", "n" * 1023],
         ["--add", "x", "n" * 1024], ["--add", "x", ""], ["--add", "--image-opts", "driver=qcow2,file.filename=x", "b"], ["--bogus", "x", "b"],
         ["--add", "missing", "b"], ["--remove", "x", "broken"], ["--clear", "x", "broken"], ["--merge", "broken", "x", "old"], ["--enable", "x", "broken"]]


def prepare(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "8M"], ["qemu-img", "create", "-q", "-f", "qcow2", "y", "8M"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "z", "9M"], ["qemu-img", "create", "-q", "-f", "raw", "r", "8M"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2", "8M"],
              ["qemu-img", "bitmap", "--add", "x", "old"], ["qemu-img", "bitmap", "--add", "--disable", "x", "off"],
              ["qemu-img", "bitmap", "--add", "x", "broken"],
              ["qemu-img", "bitmap", "--add", "y", "there"], ["qemu-img", "bitmap", "--add", "z", "there"],
              ["qemu-io", "-c", "write 1M 64k", "x"], ["qemu-io", "-c", "write 3M 64k", "y"])
    for folder in (twin.ours, twin.theirs):                # one entry is in use
        with open(f"{folder}/x", "r+b") as f:
            data = f.read()
            at = data.index(b"broken") - 24
            f.seek(at + 12)
            f.write((int.from_bytes(data[at + 12:at + 16], "big") | 1).to_bytes(4, "big"))


@pytest.mark.parametrize("words", CASES, ids=lambda w: " ".join(w)[:60])
def test_twin(twin, words):
    """FEATURES 5.068, 5.069: exit code, and what the image says afterwards: also what was done before an action failed"""
    prepare(twin)
    twin.same_code("bitmap", *words)
    ours, theirs = (sorted(listed(f"{folder}/x", run.qemu_img)) for folder in (twin.ours, twin.theirs))
    assert ours == theirs
    run.qemu_img("check", f"{twin.ours}/x")
    run.qemu_img("compare", f"{twin.ours}/x", f"{twin.theirs}/x")


def test_words(tmp_path):
    """Errors name the action, the bitmap and the reason"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "8M")
    assert run.byre("bitmap", "--add", tmp_path / "x", "b").out == ""
    told = run.byre("bitmap", "--add", tmp_path / "x", "b", code=1).err
    assert told.startswith("byre: Operation add on bitmap b failed: ") and "already" in told
    assert "Need at least one of --add" in run.byre("bitmap", tmp_path / "x", "b", code=1).err


def test_locked(tmp_path):
    """A source that is the image itself is locked, as with the peer"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "8M")
    run.byre("bitmap", "--add", tmp_path / "x", "b")
    run.byre("bitmap", "--merge", "b", "-b", tmp_path / "x", tmp_path / "x", "b", code=1)
