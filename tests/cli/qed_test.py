# SPDX-License-Identifier: MIT
"""The format qed on the command line, against qemu-img: creation, info, check, map, compare; and what is refused, which leaves every file as it
was."""
import os

import pytest

from lib import qed, run
from twin import Twin


@pytest.fixture
def twin(tmp_path):
    twin = Twin(tmp_path)
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1G"], ["qemu-img", "create", "-q", "-f", "raw", "base.raw", "3M"],
              ["qemu-img", "create", "-q", "-f", "qed", "-o", "cluster_size=4k,table_size=2", "a.qed", "64M"],
              ["qemu-io", "-f", "qed", "-c", "write -P 1 0 12k", "-c", "write -P 2 20k 1k", "-c", "write -z 32k 8k", "-c", "write -P 3 40M 4k", "a.qed"])
    return twin


# Words, and whether the printed line must be the peer's. Exit codes must always be.
CREATE = [
    (["x", "1G"], True), (["x", "1000"], True), (["x", "0"], True), (["-q", "x", "1G"], True), (["x", "64T"], True), (["x", "65T"], False),
    (["-o", "cluster_size=4k", "x", "1G"], True), (["-o", "table_size=2", "x", "1G"], True), (["-o", "cluster_size=4k,table_size=16", "x", "256G"], True),
    (["-o", "table_size=16,cluster_size=64k", "x", "1G"], True), (["-o", "cluster_size=4k,table_size=2", "x", "4G"], True),
    (["-o", "cluster_size=4k,table_size=2", "x", "4097M"], False), (["-o", "size=1G", "x"], True), (["-o", "nocow=on", "x", "1G"], True),
    (["-b", "base.qcow2", "-F", "qcow2", "x"], True), (["-b", "base.raw", "-F", "raw", "x"], True), (["-b", "base.raw", "-F", "raw", "x", "5M"], True),
    (["-b", "a.qed", "-F", "qed", "-o", "cluster_size=8k,table_size=2", "x"], True), (["-u", "-b", "missing", "-F", "raw", "x", "1G"], True),
    (["-o", "backing_file=base.qcow2,backing_fmt=qcow2", "x"], True),
    (["-o", "cluster_size=2k", "x", "1G"], False), (["-o", "cluster_size=5000", "x", "1G"], False), (["-o", "cluster_size=128M", "x", "1G"], False),
    (["-o", "table_size=3", "x", "1G"], False), (["-o", "table_size=32", "x", "1G"], False), (["-o", "table_size=0", "x", "1G"], False),
    (["-o", "table_size=x", "x", "1G"], False), (["-o", "compat=1.1", "x", "1G"], False), (["-o", "refcount_bits=16", "x", "1G"], False),
    (["-b", "missing", "-F", "raw", "x"], False), (["-b", "base.raw", "x"], False), (["-b", "base.raw", "-F", "nope", "x"], False), (["x"], False),
]


@pytest.mark.parametrize("words,same", CREATE, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_create(twin, words, same):
    """FEATURES 2.002, 2.003, 2.004, 2.005, 2.007, 2.023."""
    (twin.same_output if same else twin.same_code)("create", "-f", "qed", *words)
    ours, theirs = (os.path.join(folder, "x") for folder in (twin.ours, twin.theirs))
    if same:
        run.run("cmp", ours, theirs)
    if not os.path.exists(theirs) or os.path.getsize(theirs) == 0:
        assert not os.path.exists(ours), "a failed creation left a file"


def test_create_options(twin):
    """FEATURES 2.018, 2.023: the five options of the format; preallocation is none of them."""
    names = [[line.split("=")[0].strip() for line in done.out.splitlines() if "=<" in line] for done in twin.img("create", "-f", "qed", "-o", "help")]
    assert names[0] == names[1] == ["backing_file", "backing_fmt", "cluster_size", "size", "table_size"]
    done = run.byre("create", "-f", "qed", "-o", "preallocation=full", "x", "1M", code=1, cwd=twin.ours)
    assert "preallocation" in done.err and not os.path.exists(os.path.join(twin.ours, "x"))


def test_create_clears_what_was_there(twin):
    """FEATURES 2.023: the file is emptied first."""
    path = os.path.join(twin.ours, "x")
    with open(path, "wb") as f:
        f.write(b"\xff" * (1 << 20))
    run.byre("create", "-q", "-f", "qed", path, "1M")
    with open(path, "rb") as f:
        data = f.read()
    assert len(data) == 5 * 65536 and not any(data[64:])
    run.byre("create", "-f", "qed", "-o", "table_size=5", path, "1M", code=1)
    with open(path, "rb") as f:
        assert f.read() == data, "refused options touched the file"


def test_info_check_map(twin):
    """FEATURES 2.022, 5.018, 5.053: the same output."""
    twin.ours = twin.theirs                   # disk usage counts too
    twin.same_json("info", "--output=json", "a.qed", drop=("children",))
    twin.same_json("check", "--output=json", "a.qed")
    twin.same_output("check", "a.qed")
    twin.same_json("map", "--output=json", "a.qed", drop=("compressed",))
    twin.same_output("map", "a.qed")
    twin.same_code("compare", "a.qed", "base.raw")
    twin.same_code("measure", "-O", "qed", "--size", "1G")            # neither measures the format
    twin.same_json("measure", "--output=json", "-O", "qcow2", "a.qed")
    assert "QED_" not in run.byre("check", "a.qed", cwd=twin.ours).err


def test_check_tells(tmp_path):
    """FEATURES 2.020: what is wrong, and where; the exit codes."""
    b = qed.Builder()
    done = run.byre("check", b.word(b.l2, b.data + b.cs).write(tmp_path / "x.qed"), code=2)
    assert "0x6000" in done.err and "in use twice" in done.err and "1 clusters from offset 0x5000" in done.err
    done = run.byre("check", b.word(b.l2, 1 << 30).write(tmp_path / "x.qed"), code=2)
    assert "guest offset 0 points to 0x40000000" in done.err
    done = run.byre("check", b.word(b.l2, 0).write(tmp_path / "x.qed"), code=3)
    assert "1 clusters from offset 0x5000" in done.err


# What the format has not: refused, and no file is made, emptied or changed.
REFUSED = [
    (["amend", "-f", "qed", "-o", "size=1G", "a.qed"], "not changed later"), (["bitmap", "--add", "a.qed", "b"], "qed"), (["snapshot", "-c", "s", "a.qed"], "qed"),
    (["resize", "--shrink", "a.qed", "32M"], "cannot shrink"), (["resize", "--preallocation=full", "a.qed", "128M"], "preallocation"),
    (["resize", "a.qed", "1P"], "at most"), (["convert", "-c", "-O", "qed", "base.raw", "t"], "Compression"),
]


@pytest.mark.parametrize("words,says", REFUSED, ids=lambda w: " ".join(w) if isinstance(w, list) else "")
def test_refused(twin, words, says):
    """FEATURES 2.018."""
    before = {name: open(os.path.join(twin.ours, name), "rb").read() for name in os.listdir(twin.ours)}
    done = run.byre(*words, code=1, cwd=twin.ours)
    assert says in done.err, done
    assert before == {name: open(os.path.join(twin.ours, name), "rb").read() for name in os.listdir(twin.ours)}


@pytest.mark.parametrize("words", [["convert", "-O", "qed", "base.raw", "t"], ["convert", "-n", "-O", "qed", "base.raw", "a.qed"],
                                   ["convert", "-O", "qed", "-o", "cluster_size=4k,table_size=2", "a.qed", "t"], ["dd", "-O", "qed", "if=a.qed", "of=t"],
                                   ["resize", "a.qed", "128M"], ["resize", "a.qed", "+512"]], ids=" ".join)
def test_writing(twin, words):
    """FEATURES 2.015, 2.017: the commands that write, as the peer does it."""
    if words[0] == "convert" and words[1] == "-n":
        twin.give(["qemu-img", "resize", "-q", "-f", "raw", "base.raw", "64M"])
    twin.same_code(*words)
    name = os.path.join("t" if "t" in words or "of=t" in words else "a.qed")
    run.qemu_img("compare", os.path.join(twin.ours, name), os.path.join(twin.theirs, name))
    run.qemu_img("check", os.path.join(twin.ours, name))


def test_serve_read_only(twin, byre_serve):
    """A QED image can be served for reading, to a guest that reads what the peer wrote."""
    server = byre_serve(os.path.join(twin.ours, "a.qed"), "-r")
    done = run.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 12k", "-c", "read -P 2 20k 1k", "-c", "read -P 0 21k 60k", "-c", "read -P 3 40M 4k", server.uri)
    assert "failed" not in done.out, done


def test_probing(tmp_path):
    """The format is found by its magic, and may be overridden."""
    path = qed.Builder().write(tmp_path / "x")
    assert run.byre("info", "--output=json", path).json["format"] == "qed"
    assert run.byre("info", "--output=json", "-f", "raw", path).json["format"] == "raw"
    (tmp_path / "z").write_bytes(bytes(1 << 20))
    assert "not a QED image" in run.byre("info", "-f", "qed", tmp_path / "z", code=1).err


@pytest.mark.asan
def test_first_writes_into_large_clusters(tmp_path):
    """FEATURES 2.009: what surrounds a first write in a cluster of 8 MiB is zeroed, or written in one, however many pages of zeros that takes"""
    run.byre("create", "-q", "-f", "qed", "-o", "cluster_size=8M,table_size=1", tmp_path / "x", "8G")
    writes = [word for i in range(600) for word in ("-c", f"write -q -P 1 {i * 8}M 4k")]
    run.byre("io", "--image-opts", *writes, "-c", "read -q -P 1 4000M 4k", "-c", "read -q -P 0 4194308096 8384512",
             f"driver=qed,file.driver=blkdebug,file.image.driver=file,file.image.filename={tmp_path}/x")
    run.byre("check", "-q", "-f", "qed", tmp_path / "x")             # the peer opens none of such clusters
