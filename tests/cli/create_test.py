# SPDX-License-Identifier: MIT
"""byre create against qemu-img create: exit codes, the line that is printed, what the image says afterwards (FEATURES 5b)."""
import os
import re
import struct
import subprocess
import tempfile

import pytest

from lib import peers, run
from twin import Holder

GIB = 1 << 30
ACTUAL = ("actual-size",)


def base_images(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1G"],
              ["qemu-img", "create", "-q", "-f", "raw", "base.raw", "3M"])


# Rows: words, and whether the printed line must be the peer's. Exit codes must always be.
SAME = [
    (["-f", "qcow2", "x", "1G"], True),
    (["-f", "qcow2", "-o", "cluster_size=4k,lazy_refcounts=on", "x", "1G"], True),
    (["-f", "qcow2", "-o", "compat=0.10", "x", "1G"], True),
    (["-f", "qcow2", "-o", "lazy_refcounts", "x", "1M"], True),
    (["-f", "qcow2", "-o", "cluster_size=4k", "-o", "cluster_size=8k", "x", "1M"], True),
    (["-f", "qcow2", "-o", "compression_type=zstd", "x", "1M"], True),
    (["-f", "qcow2", "-o", "size=1G", "x"], True),
    (["-f", "qcow2", "x", "0"], True),
    (["-f", "qcow2", "x", "1000"], True),
    (["-f", "raw", "x", "1000"], True),
    (["x", "1.5G"], True),
    (["x", "1b"], True),
    (["-f", "raw", "-o", "preallocation=falloc", "x", "1M"], False),
    (["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "x"], True),
    (["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "x", "2G"], True),
    (["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "x", "512M"], True),
    (["-f", "qcow2", "-b", "base.raw", "-F", "raw", "x"], True),
    (["-f", "qcow2", "-o", "backing_file=base.qcow2,backing_fmt=qcow2", "x"], True),
    (["-f", "qcow2", "-u", "-b", "missing", "-F", "qcow2", "x", "1G"], True),
    (["-q", "-f", "qcow2", "x", "1G"], True),
    (["-f", "qcow2", "x", "1G", "-q"], True),                     # options may follow
    (["-f", "qcow2", "x"], False), (["-f", "qcow2", "-o", "size=1G", "x", "2G"], False),
    (["-f", "qcow2", "x", "-1"], False), (["-f", "qcow2", "x", "8E"], False), (["-f", "qcow2", "x", "99E"], False),
    (["-f", "qcow2", "x", "12x"], False), (["-f", "nope", "x", "1G"], False), (["-f", "qcow2", "-o", "foo=1", "x", "1G"], False),
    (["-f", "qcow2", "-o", "cluster_size=3k", "x", "1G"], False), (["-f", "qcow2", "-o", "cluster_size=4M", "x", "1G"], False),
    (["-f", "qcow2", "-o", "cluster_size=256", "x", "1G"], False), (["-f", "qcow2", "-o", "cluster_size=x", "x", "1G"], False),
    (["-f", "qcow2", "-o", "compat=2", "x", "1G"], False), (["-f", "qcow2", "-o", "refcount_bits=3", "x", "1G"], False),
    (["-f", "qcow2", "-o", "refcount_bits=128", "x", "1G"], False), (["-f", "qcow2", "-o", "refcount_bits=x", "x", "1G"], False),
    (["-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "x", "1G"], False),
    (["-f", "qcow2", "-o", "compat=0.10,refcount_bits=8", "x", "1G"], False),
    (["-f", "qcow2", "-o", "compat=0.10,compression_type=zstd", "x", "1G"], False),
    (["-f", "qcow2", "-o", "preallocation=bogus", "x", "1G"], False),
    (["-f", "qcow2", "-o", "compression_type=x", "x", "1G"], False),
    (["-f", "qcow2", "-u", "-b", "missing", "-F", "qcow2", "x"], False), (["-f", "qcow2", "-u", "-b", "missing", "x", "1G"], False),
    (["-f", "qcow2", "-b", "missing", "-F", "qcow2", "x", "1G"], False), (["-f", "qcow2", "-b", "base.qcow2", "x"], False),
    (["-f", "qcow2", "-b", "", "x", "1G"], False), (["-f", "qcow2", "-b", "base.qcow2", "-F", "bogus", "x"], False),
    (["-f", "qcow2", "-F", "qcow2", "x", "1G"], False), (["-f", "raw", "-b", "base.qcow2", "-F", "qcow2", "x", "1G"], False),
    (["-f", "qcow2", "-b", "x", "-F", "qcow2", "x", "1G"], False), (["-f", "qcow2", "/nonexistent/x", "1G"], False),
    (["-f", "qcow2", ".", "1M"], False), ([], False), (["--bogus"], False), (["-f"], False), (["-f", "qcow2", "a", "1M", "c"], False),
    (["-f", "qcow2", "-o", "preallocation=metadata", "-b", "base.qcow2", "-F", "qcow2", "x"], False),
    (["-f", "raw", "-o", "preallocation=metadata", "x", "1M"], False),
]


@pytest.mark.parametrize("words,line", SAME, ids=[" ".join(w) for w, _ in SAME])
def test_same_exit_code_and_line(twin, words, line):
    """FEATURES 5.007, 5.009, 5.010, 5.011, 5.012, 5.013, 5.014"""
    base_images(twin)
    ours, theirs = twin.same_code("create", *words)
    if ours.code:
        assert ours.err.startswith("byre: ") and not os.path.exists(os.path.join(twin.ours, "x"))
        return
    if line:
        assert ours.out == theirs.out
    name = os.path.join(twin.ours, "x")
    fmt = words[words.index("-f") + 1] if "-f" in words else "raw"
    if "-u" not in words:
        mine = run.qemu_img("info", "--output=json", "-f", fmt, "x", cwd=twin.ours).json
        peer = run.qemu_img("info", "--output=json", "-f", fmt, "x", cwd=twin.theirs).json
        for image in (mine, peer):
            image.pop("actual-size")
        assert mine == peer
    if fmt == "qcow2" and "-u" not in words:
        run.qemu_img("check", name)


def test_failure_names_file_option_and_value(tmp_path):
    """FEATURES 5.009: clear errors"""
    done = run.byre("create", "-f", "qcow2", "-o", "refcount_bits=3", tmp_path / "x", "1G", code=1)
    assert str(tmp_path / "x") in done.err and "3" in done.err
    done = run.byre("create", "-f", "qcow2", "-o", "foo=1", tmp_path / "x", "1G", code=1)
    assert "'foo'" in done.err
    done = run.byre("create", "-f", "qcow2", "-o", "lazy_refcounts=perhaps", tmp_path / "x", "1G", code=1)
    assert "'lazy_refcounts'" in done.err and "'perhaps'" in done.err


def test_overwrite(tmp_path):
    """FEATURES 5.015: an existing file is truncated; options that will not do leave it alone; a creation that fails leaves no image"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", "-o", "preallocation=full", image, "8M")
    before = image.stat().st_ino
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    assert image.stat().st_size < 1 << 20 and image.stat().st_ino == before
    content = image.read_bytes()
    run.byre("create", "-q", "-f", "qcow2", "-o", "cluster_size=3k", image, "1M", code=1)
    assert image.read_bytes() == content
    run.byre("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/none/data", image, "1M", code=1)
    assert image.exists() and image.stat().st_size == 0


def test_locked_file_is_left_alone(tmp_path):
    """FEATURES 5.015, 1.122: creating over an image that somebody writes to is refused"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    content = image.read_bytes()
    with Holder(image):
        done = run.byre("create", "-q", "-f", "qcow2", image, "2M", code=1)
        assert "lock" in done.err
        assert image.read_bytes() == content


def test_option_help(twin):
    """FEATURES 5.011, 1.134: our list holds every option of the peer's"""
    for words in (["-f", "qcow2", "-o", "help"], ["-f", "raw", "-o", "help"], ["-f", "qcow2", "-o", "help", "file"],
                  ["-f", "raw", "-o", "?", "file"]):
        ours, theirs = twin.same_code("create", *words)
        names = [{line.split("=")[0].strip() for line in done.out.splitlines() if line.startswith("  ")} for done in (ours, theirs)]
        assert names[1] <= names[0], names[1] - names[0]


def test_legacy_encryption_may_be_off(tmp_path):
    run.byre("create", "-q", "-f", "qcow2", "-o", "encryption=off", tmp_path / "x", "1M")


def test_default_version(tmp_path):
    """FEATURES G.085: version 3 unless the old one is asked for"""
    for options, version in (([], 3), (["-o", "compat=1.1"], 3), (["-o", "compat=v3"], 3), (["-o", "compat=0.10"], 2), (["-o", "compat=v2"], 2)):
        run.byre("create", "-q", "-f", "qcow2", *options, tmp_path / "x", "1M")
        assert struct.unpack(">I", (tmp_path / "x").read_bytes()[4:8])[0] == version


def test_chain_that_was_moved(tmp_path):
    """FEATURES 11.007: relative names go with the folder, names of all forms stay as they were given"""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    run.byre("create", "-q", "-f", "raw", old / "base", "1M")
    run.byre("io", "-f", "raw", "-c", "write -P 4 0 1M", old / "base")
    run.byre("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", old / "mid")
    run.byre("create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", old / "top")
    old.rename(new)
    run.byre("io", "-c", "read -P 4 0 1M", new / "top")
    info = run.byre("info", "--output=json", new / "top").json
    assert (info["backing-filename"], info["full-backing-filename"]) == ("mid", str(new / "mid"))
    name = 'json:{"driver":"raw","file":{"driver":"file","filename":"%s"}}' % (new / "base")
    run.byre("create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", new / "other")
    run.byre("io", "-c", "read -P 4 0 1M", new / "other")
    run.qemu_io(new / "other", "read -P 4 0 1M")


def test_relative_backing_name(tmp_path):
    """FEATURES 11.007: a backing name is relative to the new image's folder"""
    (tmp_path / "sub").mkdir()
    run.byre("create", "-q", "-f", "raw", "base", "1M", cwd=tmp_path)
    run.byre("create", "-q", "-f", "qcow2", "-b", "../base", "-F", "raw", "sub/top", cwd=tmp_path)
    info = run.byre("info", "--output=json", "sub/top", cwd=tmp_path).json
    assert info["backing-filename"] == "../base" and info["virtual-size"] == 1 << 20


def test_every_geometry(tmp_path):
    """FEATURES 1.001, 1.003, 1.011: what was asked for stands in the header"""
    for bits in range(9, 22):
        name = tmp_path / f"c{bits}"
        run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size={1 << bits}", name, "16M")
        assert struct.unpack(">I", name.read_bytes()[20:24])[0] == bits
        run.qemu_img("check", "-q", name)
    for order in range(7):
        name = tmp_path / f"r{order}"
        run.byre("create", "-q", "-f", "qcow2", "-o", f"refcount_bits={1 << order}", name, "16M")
        assert struct.unpack(">I", name.read_bytes()[96:100])[0] == order
        run.qemu_img("check", "-q", name)


def test_raw_size_is_rounded_up(tmp_path):
    """FEATURES 5.010: create 1000 gives a disk of 1024"""
    run.byre("create", "-q", tmp_path / "x", "1000")
    assert (tmp_path / "x").stat().st_size == 1024


@pytest.mark.serial
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_hints_to_the_file_system(tmp_path, kind):
    """FEATURES 3.018: extent_size_hint on XFS (1 MiB unless stated, 0 is none), nocow on btrfs; other file systems take no offence"""
    peers.need_root()
    peers.need(f"mkfs.{kind}", "mount", "umount", "lsattr", "xfs_io")
    run.byre("create", "-q", "-f", "qcow2", "-o", "nocow=on,extent_size_hint=64k", tmp_path / "plain", "1M")
    with open(tmp_path / "back", "wb") as f:
        f.truncate(512 << 20)
    run.run(f"mkfs.{kind}", "-q", tmp_path / "back")
    (tmp_path / "m").mkdir()
    device, detach = run.loop_device(tmp_path / "back")
    try:
        run.run("mount", "-t", kind, device, tmp_path / "m")
        try:
            if kind == "btrfs":
                run.byre("create", "-q", "-f", "qcow2", "-o", "nocow=on", tmp_path / "m/x", "1M")
                assert "C" in run.run("lsattr", tmp_path / "m/x").out.split()[0]
            for option, size in () if kind == "btrfs" else (([], 1 << 20), (["-o", "extent_size_hint=64k"], 65536), (["-o", "extent_size_hint=0"], 0)):
                run.byre("create", "-q", "-f", "raw", *option, tmp_path / "m/x", "1M")
                assert run.run("xfs_io", "-c", "extsize", tmp_path / "m/x").out.startswith(f"[{size}]")
                (tmp_path / "m/x").unlink()
        finally:
            run.run("umount", tmp_path / "m")
    finally:
        detach()


NO_FILES = ["json:{\"driver\":\"file\",\"filename\":\"old\"}", "blkdebug::old", "c:old", "nosuch:new", "host_device:old"]
MAKERS = [["create", "-f", "raw", "NAME", "1M"], ["create", "-f", "qcow2", "NAME", "1M"], ["convert", "-f", "raw", "-O", "raw", "src", "NAME"],
          ["convert", "-f", "raw", "-O", "qcow2", "src", "NAME"], ["dd", "-f", "raw", "if=src", "of=NAME"]]


@pytest.mark.parametrize("name", NO_FILES)
@pytest.mark.parametrize("words", MAKERS, ids=lambda w: "-".join(w[:5:2]))
def test_names_that_are_no_files(twin, name, words):
    """FEATURES 5.001, 3.070: nothing is made, emptied or left behind under a name whose protocol means no file; a path goes with './' or 'file:'"""
    files = {"old": b"P" * 8192, "c:old": b"Q" * 8192, "src": bytes(4096)}
    for folder in (twin.ours, twin.theirs):
        for file, data in files.items():
            with open(os.path.join(folder, file), "wb") as f:
                f.write(data)
    ours, _ = twin.same_code(*[w.replace("NAME", name) for w in words])
    assert ours.code == 1 and name in ours.err
    assert {e: open(os.path.join(twin.ours, e), "rb").read() for e in os.listdir(twin.ours)} == files
    for plain, made in (("./a:b", "a:b"), ("file:d:e", "d:e")):
        run.run(run.BYRE, *[w.replace("NAME", plain) for w in words], cwd=twin.ours)
        assert os.path.exists(os.path.join(twin.ours, made))
        run.run(run.BYRE, "info", plain, cwd=twin.ours)


def test_data_file_by_protocol(tmp_path):
    """FEATURES 1.078, 3.070: file: in the name of a data file means the path behind it, as at an opening; another protocol is refused"""
    run.run(run.BYRE, "create", "-q", "-f", "qcow2", "-o", "data_file=file:d", "x", "1M", cwd=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]
    run.run(run.BYRE, "io", "-f", "qcow2", "-c", "write -P 7 0 64k", "x", cwd=tmp_path)
    assert (tmp_path / "d").read_bytes()[:65536] == b"\7" * 65536
    assert "nosuch" in run.run(run.BYRE, "create", "-q", "-f", "qcow2", "-o", "data_file=nosuch:d", "y", "1M", cwd=tmp_path, code=1).err
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]
    (tmp_path / "old").write_bytes(b"P" * 4096)
    for name in ("nosuch:d", "nbd://h/x", "file:d:e"):
        run.run(run.BYRE, "create", "-q", "-f", "qcow2", "-o", f"data_file={name}", "old", "1M", cwd=tmp_path, code=1)
    assert (tmp_path / "old").read_bytes() == b"P" * 4096 and sorted(os.listdir(tmp_path)) == ["d", "old", "x"]


OWN_BACKING = ["-b ./base -F qcow2 base", "-b base -F qcow2 link", "-b base -F qcow2 hard", "-b link -F qcow2 base", "-b over -F qcow2 base", "-b over -F qcow2 link",
               "-b base -F qcow2 -o data_file=base new", "-b over -F qcow2 -o data_file=hard new", "-b raw -F raw -o data_file=raw new", "-b data -F qcow2 d.raw",
               "-b data -F qcow2 -o data_file=d.raw new", "-u -b ./base -F qcow2 base 1M", "-u -b base -F qcow2 link 1M", "-u -b hard -F qcow2 base 1M"]


@pytest.mark.parametrize("words", OWN_BACKING)
def test_own_backing_chain(tmp_path, words):
    """FEATURES 5.012, 5.015: a file of the backing chain, whatever it is called, is not emptied for the image that is to lie over it"""
    run.qemu_img("create", "-q", "-f", "qcow2", "base", "1M", cwd=tmp_path)
    run.qemu_io(tmp_path / "base", "write -P 7 0 64k")
    (tmp_path / "link").symlink_to("base")
    os.link(tmp_path / "base", tmp_path / "hard")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "over", cwd=tmp_path)
    (tmp_path / "raw").write_bytes(b"\x09" * 65536)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "data", "1M", cwd=tmp_path)
    run.qemu_io(tmp_path / "data", "write -P 8 0 64k", cwd=tmp_path)
    names = ("base", "raw", "over", "data", "d.raw")
    before = [(tmp_path / n).read_bytes() for n in names]
    done = run.byre("create", "-q", "-f", "qcow2", *words.split(), cwd=tmp_path, code=1)
    assert "backing chain" in done.err
    assert [(tmp_path / n).read_bytes() for n in names] == before and not (tmp_path / "new").exists()


def test_own_backing_chain_of_a_copy(tmp_path):
    """FEATURES 5.038: the same of convert -B; a backing file that somebody writes to is let be one"""
    run.qemu_img("create", "-q", "-f", "qcow2", "base", "1M", cwd=tmp_path)
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "over", cwd=tmp_path)
    (tmp_path / "link").symlink_to("over")
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    before = (tmp_path / "over").read_bytes()
    run.byre("convert", "-f", "raw", "-B", "over", "-F", "qcow2", "-O", "qcow2", "raw", "link", cwd=tmp_path, code=1)
    assert (tmp_path / "over").read_bytes() == before
    with Holder(tmp_path / "raw", "-f", "raw"):
        run.byre("create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "new", cwd=tmp_path)


def calls_of(tmp_path, *words, inject=(), code=0):
    """(call, what its descriptor is) of what makes files durable."""
    peers.need("strace")
    done = run.run("strace", "-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,syncfs", "-e", "signal=none", *inject, "-o", tmp_path / "calls", run.BYRE, *words, cwd=tmp_path, code=code,
                   env={"BYRE_BACKEND": "threads"})                # calls that strace can see
    lines = [re.search(r"(\w+)\(\d+<(.*?)>", line) for line in (tmp_path / "calls").read_text().splitlines()]
    return [m.groups() for m in lines if m], done


@pytest.mark.parametrize("words", ["create -q -f raw i/x 1M", "create -q -f qcow2 i/x 1M", "create -q -f qed i/x 1M", "create -q -f qcow2 -o preallocation=full i/x 1M",
                                   "create -q -f qcow2 -b ../base -F raw i/x", "create -q -f qcow2 -o data_file=d/data i/x 1M", "create -q -f raw link 1M",
                                   "convert -f raw -O raw base i/x", "convert -f raw -O qcow2 base i/x", "dd -f raw -O qcow2 if=base of=i/x"])
def test_the_name_is_durable(tmp_path, words):
    """FEATURES 5.015: behind a power cut the image is where it was made: its bytes, then its name, and the same of an external data file"""
    for name in ("i", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "base").write_bytes(b"1" * (1 << 20))
    (tmp_path / "link").symlink_to("i/x")
    calls, _ = calls_of(tmp_path, *words.split())
    at = calls.index(("fsync", f"{tmp_path}/i"))
    data = [i for i, (call, what) in enumerate(calls) if what == f"{tmp_path}/i/x"]
    assert data and (min(data) < at if words.startswith("create") else max(data) > 0)
    assert (("fsync", f"{tmp_path}/d") in calls) == ("data_file" in words)


@pytest.mark.parametrize("error,code", [("EIO", 1), ("EINVAL", 0), ("EOPNOTSUPP", 0)])
@pytest.mark.parametrize("there", [False, True])
def test_a_name_that_is_not_durable(tmp_path, error, code, there):
    """FEATURES 5.015: a folder that cannot be made durable is an error, and no image stays; a file system that knows no such thing is none"""
    (tmp_path / "i").mkdir()
    if there:
        (tmp_path / "i" / "x").write_bytes(b"old")
    _, done = calls_of(tmp_path, "create", "-q", "-f", "qcow2", "i/x", "1M", inject=("-P", tmp_path / "i", "-e", f"inject=fsync:error={error}"), code=code)
    image = tmp_path / "i" / "x"
    assert (image.exists() and image.stat().st_size > 0) if not code else (image.stat().st_size == 0 if there else not image.exists())
    assert not code or "i/x: cannot be made durable: Input/output error" in done.err


def test_a_folder_that_is_not_read():
    """FEATURES 5.015: a folder that may be written to, but not read, cannot be made durable by itself: all of its file system is"""
    strace, user = peers.need("strace"), 65534 if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o733 if os.geteuid() == 0 else 0o300)
        subprocess.run([strace, "-f", "-y", "-qq", "-e", "trace=syncfs", "-o", "calls", run.BYRE, "create", "-q", "-f", "qcow2", "x", "1M"], cwd=folder, timeout=run.TIMEOUT,
                       preexec_fn=lambda: os.setuid(user), check=True)
        os.chmod(folder, 0o700)
        with open(f"{folder}/calls", encoding="ascii") as calls:
            told = calls.read()
        assert os.path.getsize(f"{folder}/x") and re.search(r"syncfs\(\d+<.*/x>\) += 0", told), told
