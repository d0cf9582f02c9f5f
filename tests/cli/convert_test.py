# SPDX-License-Identifier: MIT
"""byre convert against qemu-img convert (FEATURES 5f)."""
import fcntl
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import pytest

from lib import bitmaps, mounts, peers, run, wait
from twin import Holder

F_OFD_SETLK = 37


def sources(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "r", "3M"], ["qemu-io", "-f", "raw", "-c", "write -P 1 100k 300k", "-c", "write -P 2 2M 5", "r"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "q", "5M"], ["qemu-io", "-c", "write -P 3 64k 200k", "-c", "write -z 1M 128k", "q"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "q", "-F", "qcow2", "o"], ["qemu-io", "-c", "write -P 4 128k 64k", "-c", "write -z 3M 64k", "o"],
              ["qemu-img", "convert", "-c", "-O", "qcow2", "q", "c"], ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "q", "zs"],
              ["qemu-img", "create", "-q", "-f", "raw", "odd", "1M"], ["truncate", "-s", "1000001", "odd"],
              ["qemu-img", "create", "-q", "-f", "raw", "big", "8M"], ["qemu-io", "-f", "raw", "-c", "write -P 9 0 8M", "big"],
              ["qemu-img", "create", "-q", "-f", "raw", "small", "1M"])


@pytest.mark.parametrize("target", [["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-o", "compat=0.10"], ["-O", "qcow2", "-o", "cluster_size=512"],
                                    ["-O", "qcow2", "-o", "cluster_size=2M"], ["-O", "qcow2", "-o", "preallocation=metadata"],
                                    ["-O", "qcow2", "-o", "preallocation=full"], ["-O", "raw", "-o", "preallocation=falloc"], []],
                         ids=lambda t: " ".join(t) or "default")
@pytest.mark.parametrize("source", ["r", "q", "o", "c", "zs", "odd"])
def test_content(twin, source, target):
    """FEATURES 3.025, 5.030, 5.039, 5.048: every source into every kind of target"""
    sources(twin)
    run.byre("convert", *target, source, "x", cwd=twin.ours)
    fmt = target[target.index("-O") + 1] if "-O" in target else "raw"
    run.qemu_img("compare", "-F", fmt, source, "x", cwd=twin.ours)
    if fmt == "qcow2":
        run.qemu_img("check", "x", cwd=twin.ours)
    sizes = [run.run(peers.need("qemu-img"), "info", "--output=json", "-f", fmt, "x", cwd=f).json["virtual-size"] for f in (twin.ours,)]
    assert sizes[0] % 512 == 0


CODES = [["r"], [], ["-O", "bogus", "r", "x"], ["-n", "-O", "raw", "q", "small"], ["-n", "-O", "raw", "small", "big"], ["-n", "-O", "raw", "missing", "big"],
         ["-n", "-O", "raw", "r", "missing"], ["-n", "-o", "size=1G", "-O", "raw", "r", "big"], ["-m", "17", "r", "x"], ["-m", "0", "r", "x"], ["-m", "x", "r", "x"],
         ["-m", "16", "r", "x"], ["-m", "1", "r", "x"], ["-W", "r", "x"], ["-S", "100", "r", "x"], ["-S", "32M", "r", "x"], ["-S", "x", "r", "x"], ["-S", "0", "r", "x"],
         ["-S", "64k", "r", "x"], ["-C", "-c", "-O", "qcow2", "r", "x"], ["-C", "-S", "4k", "r", "x"], ["-C", "-S", "0", "r", "x"], ["-C", "--salvage", "r", "x"], ["-C", "r", "x"],
         ["-c", "-O", "raw", "r", "x"], ["-c", "-o", "preallocation=full", "-O", "qcow2", "r", "x"], ["-c", "-O", "qcow2", "-o", "preallocation=off", "r", "x"],
         ["-c", "-O", "qcow2", "r", "x"], ["-c", "-n", "-O", "raw", "r", "big"], ["--target-image-opts", "r", "x"],
         ["--target-image-opts", "-O", "raw", "-n", "small", "driver=raw,file.filename=big"], ["--target-image-opts", "-n", "small", "driver=raw,file.filename=big"],
         ["--target-is-zero", "r", "x"], ["-n", "--target-is-zero", "-O", "raw", "small", "big"], ["-B", "q", "-O", "qcow2", "o", "x"],
         ["-B", "q", "-F", "qcow2", "-O", "qcow2", "o", "x"], ["-B", "q", "-F", "qcow2", "-O", "raw", "o", "x"], ["-B", "q", "-F", "qcow2", "-O", "qcow2", "o", "q", "x"],
         ["-O", "qcow2", "-o", "backing_file=q", "o", "x"], ["-O", "qcow2", "-o", "backing_file=q,backing_fmt=qcow2", "o", "x"], ["r", "q", "x"], ["-r", "10M", "small", "x"],
         ["-r", "x", "r", "x"], ["--skip-broken-bitmaps", "-O", "qcow2", "q", "x"], ["-l", "nope", "q", "x"], ["-t", "bogus", "r", "x"], ["-T", "bogus", "r", "x"],
         ["-O", "qcow2", "-o", "help"], ["-O", "qcow2", "-o", "foo=1", "r", "x"], ["-O", "qcow2", "-o", "size=4M", "r", "x"], ["-O", "qcow2", "-o", "cluster_size=3k", "r", "x"],
         ["r", "r"], ["r", "/nonexistent/x"], ["--salvage", "r", "x"], ["-U", "-q", "-p", "r", "x"], ["--image-opts", "driver=raw,file.filename=r", "x"],
         ["--image-opts", "-f", "raw", "driver=raw,file.filename=r", "x"], ["--bogus"], ["missing", "x"], ["-f", "qcow2", "r", "x"], ["-t", "none", "-T", "none", "r", "x"],
         ["-t", "writethrough", "r", "x"], ["-t", "directsync", "r", "x"], ["-t", "unsafe", "r", "x"]]


@pytest.mark.parametrize("words", CODES, ids=lambda w: " ".join(w))
def test_same_exit_code(twin, words):
    """FEATURES 5.009, 5.031 .. 5.046: what is accepted and what is refused; a refused target does not stay"""
    sources(twin)
    ours, theirs = twin.same_code("convert", *words)
    made = [os.path.exists(f"{f}/x") for f in (twin.ours, twin.theirs)]
    if ours.code:
        assert ours.err.startswith("byre: ") and not made[0]
    elif words[-1] == "x":
        fmt = words[words.index("-O") + 1] if "-O" in words else "raw"
        run.qemu_img("compare", "-f", fmt, "-F", fmt, f"{twin.ours}/x", f"{twin.theirs}/x")


def test_concatenation(twin):
    """FEATURES 5.040"""
    sources(twin)
    run.byre("convert", "r", "q", "odd", "x", cwd=twin.ours)
    expected = b""
    for name in ("r", "q", "odd"):
        run.qemu_img("convert", "-O", "raw", name, "part", cwd=twin.ours)
        part = open(f"{twin.ours}/part", "rb").read()
        expected += part + bytes(-len(part) % 512)
    assert open(f"{twin.ours}/x", "rb").read() == expected


def test_sparse_size(tmp_path):
    """FEATURES 5.031: -S 0 stores everything, a longer limit stores more zeros"""
    rng = random.Random(5031)
    data = bytearray(4 << 20)
    for i in range(64):
        at = i * 65536 + rng.randrange(8) * 4096
        data[at:at + 512] = rng.randbytes(512)
    (tmp_path / "r").write_bytes(data)
    used = {}
    for limit in ("0", "4k", "64k"):
        run.byre("convert", "-f", "raw", "-O", "raw", "-S", limit, "r", f"o{limit}", cwd=tmp_path)
        used[limit] = (tmp_path / f"o{limit}").stat().st_blocks * 512
        assert (tmp_path / f"o{limit}").read_bytes() == data
    assert used["0"] >= 4 << 20 and used["4k"] <= 64 * 4096 + 65536 and used["4k"] <= used["64k"] <= used["0"]


def test_backing_file(twin):
    """FEATURES 5.038: with -B only what differs is in the target"""
    sources(twin)
    run.byre("convert", "-B", "q", "-F", "qcow2", "-O", "qcow2", "o", "x", cwd=twin.ours)
    run.qemu_img("compare", "o", "x", cwd=twin.ours)
    own = [e for e in run.qemu_img("map", "--output=json", "x", cwd=twin.ours).json if e["depth"] == 0]
    assert sum(e["length"] for e in own if e["data"]) == 65536
    assert run.byre("info", "--output=json", "x", cwd=twin.ours).json["backing-filename"] == "q"


def test_existing_target(twin):
    """FEATURES 5.035: -n keeps the size of a larger target, and zeros are written over old content"""
    sources(twin)
    run.byre("convert", "-n", "-O", "raw", "r", "big", cwd=twin.ours)
    data = open(f"{twin.ours}/big", "rb").read()
    assert len(data) == 8 << 20
    assert data[:3 << 20] == open(f"{twin.ours}/r", "rb").read()
    run.byre("create", "-q", "-f", "qcow2", "t", "3M", cwd=twin.ours)
    run.byre("io", "-c", "write -P 77 0 3M", "t", cwd=twin.ours)
    run.byre("convert", "-n", "-O", "qcow2", "r", "t", cwd=twin.ours)
    run.qemu_img("compare", "-f", "raw", "-F", "qcow2", "r", "t", cwd=twin.ours)
    run.qemu_img("check", "t", cwd=twin.ours)


@pytest.mark.parametrize("more", [[], ["-c"], ["-S", "0"], ["-C"]], ids=lambda m: " ".join(m) or "plain")
def test_existing_target_with_a_backing_file(tmp_path, more):
    """FEATURES 5.035, 5.038: -n -B into an image with data of its own, over the same backing file: the content is the source's afterwards"""
    (tmp_path / "base").write_bytes(b"\x09" * (4 << 20))
    for name in "st":
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", name, cwd=tmp_path)
    run.qemu_io(tmp_path / "s", "write -P 5 64k 64k", "write -z 2M 64k", cwd=tmp_path)
    run.qemu_io(tmp_path / "t", "write -P 3 1M 64k", "write -P 3 2M 128k", "write -z 3M 64k", cwd=tmp_path)
    run.byre("convert", "-n", *more, "-B", "base", "-F", "raw", "-f", "qcow2", "-O", "qcow2", "s", "t", cwd=tmp_path)
    run.qemu_img("compare", "s", "t", cwd=tmp_path)
    run.qemu_img("check", "t", cwd=tmp_path)


def test_target_is_zero(tmp_path):
    """FEATURES 5.037: the promise is believed: zeros are not written"""
    run.byre("create", "-q", "-f", "raw", "r", "1M", cwd=tmp_path)
    (tmp_path / "t").write_bytes(b"\xee" * (1 << 20))
    run.byre("convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", "r", "t", cwd=tmp_path)
    assert (tmp_path / "t").read_bytes() == b"\xee" * (1 << 20)


def strace(tmp_path, *words):
    peers.need("strace")
    run.run("strace", "-f", "-o", tmp_path / "trace", "-e", "trace=fdatasync,fsync,copy_file_range,io_uring_enter,pwritev2,pwrite64,pwritev",
            run.BYRE, *words, cwd=tmp_path, env={"BYRE_BACKEND": "threads"})
    return (tmp_path / "trace").read_text()


def test_final_flush(tmp_path):
    """FEATURES 5.045, G.022; DESIGN D8: success means durable: the default flushes at the end, only -t unsafe does not"""
    run.byre("create", "-q", "-f", "raw", "r", "1M", cwd=tmp_path)
    run.byre("io", "-f", "raw", "-c", "write 0 1M", "r", cwd=tmp_path)
    for words, flushes in (([], True), (["-t", "writeback"], True), (["-t", "none"], True), (["-t", "unsafe"], False)):
        run.byre("create", "-q", "-f", "raw", "t", "1M", cwd=tmp_path)
        lines = [l for l in strace(tmp_path, "convert", "-n", *words, "-f", "raw", "-O", "raw", "r", "t").splitlines() if "sync(" in l or "write" in l]
        writes = [i for i, l in enumerate(lines) if "write" in l and "1048576" in l]
        syncs = [i for i, l in enumerate(lines) if "sync(" in l]
        assert bool(syncs) == flushes and (not flushes or syncs[-1] > writes[-1]), (words, lines)


def test_offload(tmp_path):
    """FEATURES 5.033, 3.015: -C lets the kernel copy"""
    (tmp_path / "r").write_bytes(os.urandom(1 << 20))
    trace = strace(tmp_path, "convert", "-C", "-f", "raw", "-O", "raw", "r", "t")
    assert "copy_file_range(" in trace
    assert (tmp_path / "t").read_bytes() == (tmp_path / "r").read_bytes()


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EXDEV"])
def test_offload_that_fails(tmp_path, error):
    """FEATURES 11.029, 3.015: what the kernel fails to copy, -C reads and writes, which tells whose an error is"""
    (tmp_path / "r").write_bytes(os.urandom(4 << 20))
    run.run(peers.need("strace"), "-f", "-qq", "-o", tmp_path / "trace", "-e", "trace=copy_file_range", "-e", f"inject=copy_file_range:error={error}:when=2+",
            run.BYRE, "convert", "-C", "-m", "1", "-f", "raw", "-O", "raw", "r", "t", cwd=tmp_path)
    assert error in (tmp_path / "trace").read_text()
    assert (tmp_path / "t").read_bytes() == (tmp_path / "r").read_bytes()


@pytest.mark.parametrize("source,target", [("luks", "raw"), ("raw", "luks"), ("luks", "luks")])
def test_offload_of_what_is_encrypted(tmp_path, source, target):
    """FEATURES 11.029: the bytes of an encrypted image are no plain part of its file: -C leaves them to those who have the key"""
    data = os.urandom(1 << 20)
    (tmp_path / "r").write_bytes(data)
    key, names = ("--object", "secret,id=s,data=geheim"), {"raw": "driver=raw,file.filename=r", "luks": "driver=luks,key-secret=s,file.filename=l"}
    iterations = ("-o", "key-secret=s,iter-time=10")
    if source == "luks":
        run.byre("convert", *key, "-f", "raw", "-O", "luks", *iterations, "r", "l", cwd=tmp_path)
    trace = strace(tmp_path, "convert", *key, "-C", "--image-opts", "-O", target, *(iterations if target == "luks" else ()), names[source], "t")
    assert "copy_file_range(" not in trace
    opts = "driver=luks,key-secret=s,file.filename=t" if target == "luks" else "driver=raw,file.filename=t"
    run.byre("convert", *key, "--image-opts", "-O", "raw", opts, "back", cwd=tmp_path)
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.parametrize("elsewhere", [False, True], ids=["compressed", "other file system"])
def test_offload_that_cannot_be(tmp_path, elsewhere):
    """FEATURES 3.015: where the kernel cannot copy, -C reads and writes"""
    folder = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm")) if elsewhere else tmp_path
    try:
        (tmp_path / "r").write_bytes(os.urandom(1 << 20) + bytes(1 << 20) + b"t" * 1000448)
        if elsewhere:
            run.byre("convert", "-C", "-f", "raw", "-O", "raw", "r", folder / "t", cwd=tmp_path)
        else:
            run.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "r", "c", cwd=tmp_path)
            run.byre("convert", "-C", "-f", "qcow2", "-O", "raw", "c", "t", cwd=tmp_path)
        assert (folder / "t").read_bytes() == (tmp_path / "r").read_bytes()
    finally:
        if elsewhere:
            shutil.rmtree(folder)


def broken_compressed(tmp_path):
    """A qcow2 file of which one cluster cannot be unpacked; returns its guest range."""
    run.byre("create", "-q", "-f", "qcow2", "q", "1M", cwd=tmp_path)
    run.byre("io", "-c", "write -P 1 0 64k", "-c", "write -P 2 128k 64k", "q", cwd=tmp_path)
    run.qemu_img("convert", "-c", "-O", "qcow2", "q", "c", cwd=tmp_path)
    with open(tmp_path / "c", "r+b") as f:
        data = f.read()
        l1 = int.from_bytes(data[40:48], "big")
        l2 = int.from_bytes(data[l1:l1 + 8], "big") & 0x00fffffffffffe00
        f.seek(int.from_bytes(data[l2 + 16:l2 + 24], "big") & ((1 << 54) - 1))
        f.write(b"\xff" * 40)
    return 128 << 10, 64 << 10


def test_salvage(tmp_path):
    """FEATURES 5.043: a read error becomes zeros with a warning, or ends the conversion"""
    off, length = broken_compressed(tmp_path)
    done = run.byre("convert", "-O", "raw", "c", "x", cwd=tmp_path, code=1)
    assert "reading" in done.err and not (tmp_path / "x").exists()
    done = run.byre("convert", "--salvage", "-O", "raw", "c", "x", cwd=tmp_path)
    assert "warning" in done.err
    data = (tmp_path / "x").read_bytes()
    assert data[:65536] == b"\1" * 65536 and data[off:off + length] == bytes(length)


@pytest.mark.parametrize("more", ["", ",data_file_raw=on"])
@pytest.mark.parametrize("there", [False, True])
def test_failure_leaves_no_data_file(tmp_path, more, there):
    """FEATURES 5.030, 1.025: what was copied into an external data file before the error is no image either; a file that was there is empty"""
    broken_compressed(tmp_path)
    if there:
        (tmp_path / "d").write_bytes(b"old")
    run.byre("convert", "-O", "qcow2", "-o", f"data_file=file:d{more}", "c", "x", cwd=tmp_path, code=1)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "d").read_bytes() == b"" if there else not (tmp_path / "d").exists()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_failure_behind_a_link(tmp_path, fmt):
    """FEATURES 5.030: of a link that led nowhere the file that was made goes, and the link stays"""
    broken_compressed(tmp_path)
    (tmp_path / "x").symlink_to("far")
    run.byre("convert", "-O", fmt, "c", "x", cwd=tmp_path, code=1)
    assert not (tmp_path / "far").exists() and (tmp_path / "x").is_symlink()


@pytest.mark.parametrize("words,made", [(["convert", "c", "file:file:x"], "file:x"), (["--strict", "convert", "-f", "qcow2", "c", "file:x"], "file:x"),
                                        (["--strict", "convert", "-f", "qcow2", "-O", "qcow2", "-o", "data_file=file:x", "c", "t"], "t")], ids=["twice", "strict", "strict-data"])
def test_failure_touches_no_other_file(tmp_path, words, made):
    """FEATURES 5.030: what is removed behind a failure is what was made, however its name is read: here a file x beside it was emptied"""
    broken_compressed(tmp_path)
    (tmp_path / "x").write_bytes(b"mine")
    run.byre(*words, cwd=tmp_path, code=1)
    assert (tmp_path / "x").read_bytes() == b"mine" and not (tmp_path / made).exists() and not (tmp_path / "file:x").exists()


def test_failure_leaves_no_target(tmp_path):
    """A target that could not be finished is removed; one that was there before has length 0"""
    broken_compressed(tmp_path)
    (tmp_path / "x").write_bytes(b"old")
    run.byre("convert", "-O", "qcow2", "c", "x", cwd=tmp_path, code=1)
    assert (tmp_path / "x").read_bytes() == b""


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("who", ["another file", "a reader"])
def test_failure_leaves_what_is_not_ours(tmp_path, who, there):
    """FEATURES 5.030: behind a failure nothing is removed or cut that has taken the target's place, or that another program has opened meanwhile"""
    (tmp_path / "r").write_bytes(os.urandom(4 << 20))
    if there:
        (tmp_path / "x").write_bytes(b"old")
    process = subprocess.Popen([run.BYRE, "convert", "-r", "100k", "-f", "raw", "-O", "raw", "r", "x"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait.until(lambda: (tmp_path / "x").exists() and any((tmp_path / "x").read_bytes()[4096:]), "the copy does not begin")      # it is open
    wait.catches(process, signal.SIGTERM)
    if who == "another file":
        (tmp_path / "new").write_bytes(b"mine")
        (tmp_path / "new").rename(tmp_path / "x")
    with open(tmp_path / "x", "rb") as file:
        if who == "a reader":                                # as one who has opened it for reading, and lets others write
            fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        told = process.stderr.read()
        assert (tmp_path / "x").exists() and file.read(4) != b"" and os.fstat(file.fileno()).st_size in (4, 4 << 20)
    assert ("another file" if who == "another file" else "another program") in told, told


def test_rate_limit(tmp_path):
    """FEATURES 5.044"""
    (tmp_path / "r").write_bytes(os.urandom(3 << 20))
    begin = time.monotonic()
    run.byre("convert", "-r", "2M", "-f", "raw", "-O", "raw", "r", "x", cwd=tmp_path)
    assert time.monotonic() - begin > 0.9
    assert (tmp_path / "x").read_bytes() == (tmp_path / "r").read_bytes()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_cancel(tmp_path, sig):
    """A signal ends the conversion soon, and the target does not stay"""
    (tmp_path / "r").write_bytes(os.urandom(4 << 20))
    # a shell starts what runs in the background with SIGINT ignored, which byre, as it should, leaves so
    process = subprocess.Popen([run.BYRE, "convert", "-r", "100k", "-f", "raw", "-O", "raw", "r", "x"], cwd=tmp_path,
                               preexec_fn=lambda: signal.signal(sig, signal.SIG_DFL))
    wait.until(lambda: (tmp_path / "x").exists() and (tmp_path / "x").stat().st_size, "the copy does not begin")
    wait.catches(process, sig)
    process.send_signal(sig)
    assert process.wait(20) == 128 + sig                     # of 40 s
    assert not (tmp_path / "x").exists()


def test_locks(tmp_path):
    """FEATURES 5.004, 5.046, 1.122"""
    for name in "qt":
        run.byre("create", "-q", "-f", "qcow2", name, "1M", cwd=tmp_path)
    with Holder(tmp_path / "q"):
        run.byre("convert", "-O", "raw", "q", "x", cwd=tmp_path, code=1)
        run.byre("convert", "-U", "-O", "raw", "q", "x", cwd=tmp_path)
    with Holder(tmp_path / "t"):
        run.byre("convert", "-n", "-O", "qcow2", "q", "t", cwd=tmp_path, code=1)
        run.byre("convert", "-O", "qcow2", "q", "t", cwd=tmp_path, code=1)
    run.qemu_img("check", tmp_path / "t")


OWN_FILES = ["convert -f qcow2 -O raw o s.raw", "convert -f qcow2 -O qcow2 o s.raw", "convert -n -f qcow2 -O raw o s.raw", "convert -n -f qcow2 -O raw oo s.raw",
             "convert -n -f qcow2 -O raw dd d.raw", "convert -f qcow2 -O raw dd d.raw"]


def source_files(folder):
    """`oo` over `o` over s.raw, and `dd` with the data file d.raw."""
    (folder / "s.raw").write_bytes(b"\x09" * (4 << 20))
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "s.raw", "-F", "raw", "o", cwd=folder)
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "o", "-F", "qcow2", "oo", cwd=folder)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "dd", "4M", cwd=folder)
    for name in ("o", "dd"):
        run.qemu_io(folder / name, "write -P 3 0 64k", "write -P 4 2M 64k", cwd=folder)


@pytest.mark.parametrize("words", OWN_FILES)
def test_own_files_are_no_target(tmp_path, words):
    """FEATURES 5.004, 5.046, 11.004: a raw layer of the source, or its external data file, is not emptied by the copy that is to read it"""
    source_files(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in ("s.raw", "d.raw")]
    for program in (peers.need("qemu-img"), run.BYRE):
        run.run(program, *words.split(), cwd=tmp_path, code=1)
        assert [(tmp_path / name).read_bytes() for name in ("s.raw", "d.raw")] == before


@pytest.mark.parametrize("below", [{"driver": "file", "filename": "s.raw"}, {"driver": "blkdebug", "image": {"driver": "file", "filename": "s.raw"}}])
def test_own_files_named_one_by_one(tmp_path, below):
    """FEATURES 5.004, 11.004: the same where the source's layers are nested in its name"""
    source_files(tmp_path)
    before = (tmp_path / "s.raw").read_bytes()
    name = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "o"}, "backing": {"driver": "raw", "file": below}})
    run.byre("convert", "-O", "raw", name, "x", cwd=tmp_path)
    run.byre("convert", "-O", "raw", name, "s.raw", cwd=tmp_path, code=1)
    assert (tmp_path / "s.raw").read_bytes() == before


@pytest.mark.parametrize("words", ["-f raw -O raw s.raw s.raw", "-f raw -O qcow2 s.raw ./s.raw", "-f qcow2 -O raw o o", "-f qcow2 -O raw oo o", "-f qcow2 -O raw oo s.raw"])
def test_own_files_whoever_else_may_write(tmp_path, words):
    """FEATURES 5.004, 11.004: with -U no lock keeps the copy from emptying what it is to read (the peer does so)"""
    source_files(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in ("s.raw", "o", "oo")]
    assert "would be emptied" in run.byre("convert", "-U", *words.split(), cwd=tmp_path, code=1).err
    assert [(tmp_path / name).read_bytes() for name in ("s.raw", "o", "oo")] == before


def test_a_time_limit_of_the_storage(tmp_path):
    """FEATURES 5.046: ETIMEDOUT from storage ends the copy as any other error does: it is not the time that a wait for the job has taken"""
    (tmp_path / "s.raw").write_bytes(b"\x09" * (4 << 20))
    name = "json:" + json.dumps({"driver": "raw", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": "s.raw"}, "inject-error": [{"event": "read_aio", "errno": 110}]}})
    assert "timed out" in run.byre("convert", "-O", "raw", name, "x", cwd=tmp_path, code=1, timeout=20).err
    assert not (tmp_path / "x").exists()


def test_writers_of_any_layer(tmp_path):
    """FEATURES 5.004, 5.046, 11.004: no copy of a disk while somebody writes to a raw layer or a data file of it, but by force; what only looks, or
    promises nothing, is let in as by the peer"""
    source_files(tmp_path)
    for held, top in (("s.raw", "oo"), ("d.raw", "dd")):
        with Holder(tmp_path / held, "-f", "raw"):
            for program in (peers.need("qemu-img"), run.BYRE):
                run.run(program, "convert", "-O", "raw", top, "x", cwd=tmp_path, code=1)
                for words in ("convert -U -O raw @ x", "compare @ x", "measure -O qcow2 @", "map @", "info @", "check @", f"dd -O raw bs=64k if=@ of=y"):
                    run.run(program, *words.replace("@", top).split(), cwd=tmp_path)
        run.byre("convert", "-O", "raw", top, "x", cwd=tmp_path)


def test_bitmaps(twin):
    """FEATURES 5.042, 1.110: the same bitmaps, with the same content, as with the peer"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "q", "8M"], ["qemu-img", "bitmap", "--add", "-g", "4096", "q", "b0"],
              ["qemu-io", "-c", "write 1M 64k", "q"], ["qemu-img", "bitmap", "--add", "q", "b1"], ["qemu-img", "bitmap", "--merge", "b0", "--disable", "q", "b1"],
              ["qemu-io", "-c", "write 3M 64k", "q"])
    twin.same_code("convert", "--bitmaps", "-f", "qcow2", "-O", "qcow2", "q", "x")
    for folder in (twin.ours, twin.theirs):
        assert bitmaps.listed(f"{folder}/x", run.qemu_img) == [("b0", 4096, ["auto"]), ("b1", 65536, [])]
        assert bitmaps.peer_map(f"{folder}/x", "b0", folder) == [(1 << 20, (1 << 20) + 65536), (3 << 20, (3 << 20) + 65536)]
        assert bitmaps.peer_map(f"{folder}/x", "b1", folder) == [(1 << 20, (1 << 20) + 65536)]
    run.qemu_img("check", f"{twin.ours}/x")
    run.qemu_img("compare", f"{twin.ours}/x", f"{twin.ours}/q")


@pytest.mark.parametrize("words", [["--bitmaps", "-O", "raw", "q", "x"], ["--bitmaps", "-O", "qcow2", "r", "x"], ["--bitmaps", "-O", "qcow2", "q", "q", "x"],
                                   ["--skip-broken-bitmaps", "-O", "qcow2", "q", "x"], ["--bitmaps", "-O", "qcow2", "-o", "compat=0.10", "q", "x"],
                                   ["--bitmaps", "-O", "qcow2", "broken", "x"], ["--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "broken", "x"],
                                   ["--bitmaps", "-n", "-O", "qcow2", "q", "has"], ["--bitmaps", "-n", "-O", "qcow2", "q", "empty"]], ids=" ".join)
def test_bitmaps_that_cannot_be_copied(twin, words):
    """FEATURES 5.042, 1.110"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "q", "8M"], ["qemu-img", "bitmap", "--add", "q", "b0"], ["cp", "q", "broken"],
              ["qemu-img", "create", "-q", "-f", "raw", "r", "8M"], ["cp", "q", "has"], ["qemu-img", "create", "-q", "-f", "qcow2", "empty", "8M"],
              ["qemu-img", "bitmap", "--add", "broken", "sound"])
    for folder in (twin.ours, twin.theirs):
        with open(f"{folder}/broken", "r+b") as f:
            at = f.read().index(b"b0\0\0\0\0\0\0") - 24
            f.seek(at + 15)
            f.write(b"\x03")
    twin.same_code("convert", *words)
    for name in ("x", "has", "empty"):
        there = [os.path.exists(f"{folder}/{name}") and "qcow2" in words and name in words and
                 bitmaps.listed(f"{folder}/{name}", run.qemu_img) for folder in (twin.ours, twin.theirs)]
        if there[0] and there[1]:
            assert there[0] == there[1]


@pytest.mark.serial
def test_block_device(tmp_path):
    """FEATURES 5.047: old content of a device does not shine through"""
    with open(tmp_path / "back", "wb") as f:
        f.write(b"\xdd" * (16 << 20))
    (tmp_path / "r").write_bytes(bytes(1 << 20) + os.urandom(1 << 20) + bytes(14 << 20))
    device, detach = run.loop_device(tmp_path / "back")
    try:
        run.byre("convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "r", device)
        run.run("cmp", tmp_path / "r", device)
        run.run("dd", "if=/dev/zero", "bs=1M", "count=16", f"of={device}", "status=none", "conv=notrunc")
        run.byre("convert", "-f", "raw", "-O", "qcow2", tmp_path / "r", device)
        run.qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "r", device)
    finally:
        detach()


def test_random_chains(tmp_path):
    """FEATURES 5.030: random chains, converted by byre, equal to the peer's reading"""
    rng = random.Random(530)
    previous = None
    for i in range(4):
        words = ["create", "-q", "-f", "qcow2", "-o", f"cluster_size={512 << rng.randrange(9)}"]
        run.qemu_img(*words, *(["-b", previous, "-F", "qcow2"] if previous else []), f"i{i}", f"{rng.choice([3, 4, 6])}M", cwd=tmp_path)
        commands = [f"write {rng.choice(['-z', '-z -u', f'-P {i + 1}'])} {rng.randrange(4096) * 512} {rng.randrange(1, 300) * 512}" for _ in range(15)]
        run.qemu_io(tmp_path / f"i{i}", *commands, cwd=tmp_path)
        previous = f"i{i}"
        for fmt in ("raw", "qcow2"):
            run.byre("convert", "-O", fmt, previous, "x", cwd=tmp_path)
            run.qemu_img("compare", "-F", fmt, previous, "x", cwd=tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.serial
def test_full_file_system(tmp_path):
    """A target that finds no space does not stay, and the message says why; a flush that fails is not success"""
    (tmp_path / "r").write_bytes(os.urandom(8 << 20))
    with mounts.tmpfs(tmp_path / "m", "4M"):
        for fmt in ("raw", "qcow2"):
            done = run.byre("convert", "-f", "raw", "-O", fmt, tmp_path / "r", tmp_path / "m/x", code=1)
            assert "No space left" in done.err or "no space left" in done.err
            assert list((tmp_path / "m").iterdir()) == []
        run.byre("create", "-f", "qcow2", "-o", "preallocation=full", tmp_path / "m/x", "8M", code=1)
        assert list((tmp_path / "m").iterdir()) == []
        run.byre("create", "-q", "-f", "qcow2", tmp_path / "m/x", "8M")
        run.byre("io", "-c", "write 0 8M", tmp_path / "m/x", code=1)
        run.qemu_img("check", tmp_path / "m/x", code=(0, 3))
