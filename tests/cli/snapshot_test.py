# SPDX-License-Identifier: MIT
"""byre snapshot against qemu-img snapshot (FEATURES 5.057); -l of convert and measure (FEATURES 5.041, 5.055)."""
import re

import pytest

from lib import images, run

USAGE = [["-l", "-c", "a", "x"], ["-c", "a", "-d", "a", "x"], ["-a", "a", "-c", "b", "x"], ["-c", "a"], [], ["-l", "x", "y"], ["-c", "x"],
         ["-d", "nope", "x"], ["-a", "nope", "x"], ["-c", "a", "-U", "x"], ["-l", "missing"],
         ["-q", "-c", "b", "x"], ["x"],
         ["-l", "-U", "x"], ["-c", "", "x"], ["-c", "first", "x"], ["-d", "first", "x"], ["-a", "first", "x"], ["-a", "1", "x"]]


def fixture(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "8M"], ["qemu-io", "-c", "write -P 9 0 2M", "x"], ["qemu-img", "snapshot", "-c", "first", "x"],
              ["qemu-io", "-c", "write -P 8 1M 2M", "x"])


@pytest.mark.parametrize("words", USAGE, ids=lambda w: " ".join(w))
def test_words(twin, words):
    """FEATURES 5.057, 1.087: exit codes, what is left, and silence"""
    fixture(twin)
    ours, theirs = twin.same_code("snapshot", *words)
    if "-l" not in words and words != ["x"]:
        assert ours.out == theirs.out == ""
    if ours.code:
        assert ours.err.startswith("byre: ")
    listed = [[(s["id"], s["name"], s["vm-state-size"]) for s in run.qemu_img("info", "--output=json", f"{folder}/x").json.get("snapshots", [])]
              for folder in (twin.ours, twin.theirs)]
    assert listed[0] == listed[1]
    run.qemu_img("compare", f"{twin.ours}/x", f"{twin.theirs}/x")
    images.assert_sound(f"{twin.ours}/x")


@pytest.mark.parametrize("words", [["-l", "x"], ["-l", "-U", "x"], ["--image-opts", "-l", "driver=qcow2,file.filename=x"]])
def test_list(twin, words):
    """FEATURES 5.057: the table, which is also what is done when nothing is asked for"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "x", "100M"], ["qemu-img", "snapshot", "-c", "first", "x"],
               ["qemu-img", "snapshot", "-c", "a rather long name of a snapshot", "x"])
    ours, _ = twin.same_output("snapshot", *words)
    assert run.byre("snapshot", "x", cwd=twin.ours).out == ours.out


def test_formats_without(tmp_path):
    """A raw image has no snapshots: the list is empty, everything else is refused"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "x", "1M")
    assert run.byre("snapshot", "-f", "raw", "-l", tmp_path / "x").out == ""
    for words in (["-c", "s"], ["-a", "s"], ["-d", "s"]):
        assert "raw images have no internal snapshots" in run.byre("snapshot", "-f", "raw", *words, tmp_path / "x", code=1).err
    run.byre("snapshot", "--image-opts", "-f", "qcow2", "-l", tmp_path / "x", code=1)


def test_list_json(twin):
    """--output=json is the list of info"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "x", "1M"], ["qemu-img", "snapshot", "-c", "one", "x"])
    assert run.byre("snapshot", "-l", "--output=json", f"{twin.ours}/x").json == run.qemu_img("info", "--output=json", f"{twin.ours}/x").json["snapshots"]
    run.byre("snapshot", "-c", "y", "--output=json", f"{twin.ours}/x", code=1)


def test_ours_is_listed(tmp_path):
    """FEATURES 5.057, 1.085: what we make, the peer lists"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "8M")
    run.byre("snapshot", "-c", "näme", tmp_path / "x")
    ours = run.byre("snapshot", "-l", tmp_path / "x").out
    assert ours == run.qemu_img("snapshot", "-l", tmp_path / "x").out
    assert re.search(r"^1 +näme +0 B 20\d\d-", ours, re.M)


@pytest.mark.parametrize("name", ["x" * 256, "a\nb", "\x7f", b"\xff\xfe"])
def test_bad_names(tmp_path, name):
    """A name that could not be read back is refused"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    before = (tmp_path / "x").read_bytes()
    name = name if isinstance(name, bytes) else name.encode()
    done = run.run(run.BYRE, "snapshot", "-c", name.decode(errors="surrogateescape"), tmp_path / "x", code=1)
    assert "255 bytes" in done.err
    assert (tmp_path / "x").read_bytes()[:len(before)] == before


def test_missing_backing_file(tmp_path):
    """A snapshot concerns one file: the one below need not be there"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "base", "1M")
    run.byre("create", "-q", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", tmp_path / "x")
    (tmp_path / "base").unlink()
    run.byre("snapshot", "-c", "s", tmp_path / "x")
    assert "s" in run.byre("snapshot", tmp_path / "x").out


def test_data_file(tmp_path):
    """FEATURES 1.082, G.009: an image with an external data file is refused"""
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'd'}", tmp_path / "x", "1M")
    assert run.byre("snapshot", "-c", "s", tmp_path / "x", code=1).err


def test_locked(tmp_path):
    """FEATURES 11.002: an image that somebody writes to is refused, and not touched"""
    from twin import Holder
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    with Holder(tmp_path / "x"):
        for words in (["-c", "s"], ["-a", "s"], ["-d", "s"], ["-l"]):
            assert "lock" in run.byre("snapshot", *words, tmp_path / "x", code=1).err
        run.byre("snapshot", "-l", "-U", tmp_path / "x")


def test_convert_and_measure(tmp_path):
    """FEATURES 5.041, 5.055, G.006: a snapshot as a source, with its own size"""
    x = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", x, "2M")
    run.byre("io", "-c", "write -P 1 0 1M", x)
    run.byre("snapshot", "-c", "small", x)
    run.byre("resize", "-q", x, "16M")
    run.byre("io", "-c", "write -P 2 0 16M", x)
    run.byre("convert", "-l", "small", "-O", "raw", x, tmp_path / "o")
    assert (tmp_path / "o").read_bytes() == bytes([1]) * (1 << 20) + bytes(1 << 20)
    run.byre("convert", "-l", "small", "-O", "qcow2", x, tmp_path / "q")
    assert run.qemu_img("info", "--output=json", tmp_path / "q").json["virtual-size"] == 2 << 20
    run.qemu_img("compare", tmp_path / "q", tmp_path / "o")
    small, now = (run.byre("measure", "-O", "qcow2", "--output=json", *words, x).json for words in (["-l", "small"], []))
    run.byre("convert", "-O", "raw", tmp_path / "q", tmp_path / "r")
    assert small["required"] == run.byre("measure", "-O", "qcow2", "--output=json", tmp_path / "q").json["required"] < now["required"]
    for words in (["convert", "-l", "nope", "-O", "raw", x, tmp_path / "n"], ["measure", "-l", "nope", "-O", "raw", x], ["measure", "-l", "s", "--size", "1M"],
                  ["convert", "-l", "small", "-f", "raw", "-O", "raw", x, tmp_path / "n"], ["convert", "-l", "snapshot.id", "-O", "raw", x, tmp_path / "n"]):
        run.byre(*words, code=1)
        assert not (tmp_path / "n").exists()


def test_called_as_qemu_img(tmp_path):
    """DESIGN D8"""
    link = tmp_path / "qemu-img"
    link.symlink_to(run.BYRE)
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    run.run(link, "snapshot", "-c", "s", tmp_path / "x")
    assert run.run(link, "snapshot", tmp_path / "x").out == run.qemu_img("snapshot", "-l", tmp_path / "x").out
    assert run.run(link, "snapshot", "-l", "-d", "s", tmp_path / "x", code=1).err.startswith("qemu-img: Cannot mix")
