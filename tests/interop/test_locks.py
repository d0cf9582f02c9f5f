# SPDX-License-Identifier: MIT
"""byre and the peer exclude each other: all pairs of {byre, peer} x {read-write, read-only} on one image, in both orders."""
import fcntl
import os
import re
import struct

import guest
import pytest
from lib import images, peers, run

MODES = [(tool, mode) for tool in guest.TOOLS for mode in ("rw", "ro")]


def hold(tool, mode, image, fmt="qcow2"):
    """An interactive `io` that has an image open."""
    return guest.Session(tool, image, *(["-r"] if mode == "ro" else []), fmt=fmt)


@pytest.fixture(params=["qcow2", "raw"])
def image(request, tmp_path):
    path = tmp_path / f"disk.{request.param}"
    images.create(path, 1 << 20, fmt=request.param)
    guest.io("qemu", path, "write -P 3 0 64k", fmt=request.param)
    return path, request.param


def try_open(tool, mode, path, fmt, *options):
    program = [peers.need("qemu-io")] if tool == "qemu" else [run.BYRE, "io"]
    command = "write -P 4 64k 512" if mode == "rw" else "read -P 3 0 512"
    return run.run(*program, "-f", fmt, *(["-r"] if mode == "ro" else []), *options, "-c", command, path, code=None)


def assert_locked(done):
    """The text says that somebody else is the reason."""
    assert re.search("in use|lock", done.err + done.out), done


@pytest.mark.parametrize("second", MODES, ids="-".join)
@pytest.mark.parametrize("first", MODES, ids="-".join)
def test_pair(image, first, second):
    """FEATURES 1.122: the verdict is the one of the peer with itself; on qcow2 readers share and a writer is alone. A refusal says why."""
    path, fmt = image
    with hold("qemu", first[1], path, fmt):
        allowed = try_open("qemu", second[1], path, fmt).code == 0
    assert allowed == (fmt == "raw" or first[1] == second[1] == "ro")
    with hold(*first, path, fmt):
        done = try_open(*second, path, fmt)
        if allowed:
            assert done.code == 0 and "512/512" in done.out, done
        else:
            assert done.code == 1 and "512/512" not in done.out, done
            assert_locked(done)
    done = try_open(*second, path, fmt)
    assert done.code == 0 and "512/512" in done.out, "the lock outlived its holder"


@pytest.mark.parametrize("reader", guest.TOOLS)
@pytest.mark.parametrize("writer", guest.TOOLS)
def test_force_share(image, writer, reader):
    """FEATURES 1.122: -U reads beside a writer, and only reads."""
    path, fmt = image
    with hold(writer, "rw", path, fmt):
        done = try_open(reader, "ro", path, fmt, "-U")
        assert done.code == 0 and "512/512" in done.out, done
        program = run.byre if reader == "byre" else run.qemu_img
        program("info", "-U", path)
        program("info", path, code=1 if fmt == "qcow2" else 0)


@pytest.mark.parametrize("command", [["convert", "-O", "raw"], ["check"], ["map"], ["compare"], ["resize"], ["create"], ["dd"]],
                         ids=lambda c: c[0])
def test_commands_respect_a_writer(tmp_path, command):
    """No command of byre touches an image that the peer has open for writing."""
    path, out = tmp_path / "disk.qcow2", tmp_path / "out"
    images.create(path, 1 << 20)
    tail = {"convert": [path, out], "check": [path], "map": [path], "compare": [path, path], "resize": [path, "2M"],
            "create": ["-f", "qcow2", path, "3M"], "dd": ["bs=512", "count=1", f"if={path}", f"of={out}"]}[command[0]]
    with hold("qemu", "rw", path):
        before = path.read_bytes()
        done = run.byre(*command, *tail, code=None)
        assert done.code != 0
        assert_locked(done)
        assert path.read_bytes() == before


def test_backing_images_are_protected(tmp_path):
    """While byre has an overlay open, nobody opens its backing image for writing; readers may."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    images.create(base, 1 << 20)
    guest.io("qemu", base, "write -P 3 0 64k")
    images.create(top, 1 << 20, backing="base.qcow2")
    for tool in guest.TOOLS:
        with hold(tool, "rw", top):
            for other in guest.TOOLS:
                assert try_open(other, "rw", base, "qcow2").code == 1
                assert try_open(other, "ro", base, "qcow2").code == 0


def test_serve_is_a_writer(tmp_path, byre_serve):
    path = tmp_path / "disk.qcow2"
    images.create(path, 1 << 20)
    server = byre_serve(path)
    for tool, mode in MODES:
        done = try_open(tool, mode, path, "qcow2")
        assert done.code == 1
        assert_locked(done)
    assert server.stop() == 0
    with hold("qemu", "rw", path):
        done = run.byre("serve", path, "--nbd", f"unix:{tmp_path}/s", "--control", tmp_path / "c", code=1)
        assert_locked(done)


def locked_bytes(path):
    """Which of the bytes 100 to 103 (used) and 200 to 203 (not shared) has another program locked?"""
    found = []
    with open(path, "r+b") as f:
        for at in [*range(100, 104), *range(200, 204)]:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
            if struct.unpack("hhqqi4x", fcntl.fcntl(f, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                found.append(at)
    return found


def test_reopen_follows_the_locks(tmp_path):
    """FEATURES 6.014: read-only lets the write lock go and stores everything, bitmaps too; read-write takes it again"""
    image = tmp_path / "x"
    images.create(image, "4M")
    run.qemu_img("bitmap", "--add", image, "b0")

    def in_use():
        bitmap = run.qemu_img("info", "-U", "--output=json", image).json["format-specific"]["data"]["bitmaps"][0]
        return "in-use" in bitmap["flags"]

    with guest.Session("byre", image) as session:
        session.do("write -P 9 1M 64k")
        assert {101, 103} <= set(locked_bytes(image)) and in_use()
        session.do("reopen -r")
        assert not {101, 103} & set(locked_bytes(image)) and not in_use()
        run.run(peers.need("qemu-io"), "-r", "-c", "read -P 9 1M 64k", image)
        session.do("reopen -w")
        assert {101, 103} <= set(locked_bytes(image))
        session.do("write -P 8 2M 64k")
    run.qemu_img("check", image)
    run.qemu_io(image, "read -P 9 1M 64k", "read -P 8 2M 64k")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_locks_follow_permissions(tmp_path, fmt):
    """FEATURES 11.003, 11.004: byte by byte what the peer locks: for a writer and a reader, shared by force, through reopening,
    and on the backing image"""
    base, top = tmp_path / "base", tmp_path / "top"
    seen = {}
    for tool in guest.TOOLS:
        images.create(base, 1 << 20, fmt=fmt)
        images.create(top, 1 << 20, backing="base", backing_fmt=fmt)
        rows = seen[tool] = []
        for options in ([], ["-r"], ["-r", "-U"]):
            with guest.Session(tool, base, *options, fmt=fmt) as session:
                rows.append((fmt, *options, locked_bytes(base)))
                for how in ("reopen -r", "reopen -w", "reopen -r") if not options else ():
                    session.do(how)
                    rows.append((fmt, how, locked_bytes(base)))
            with guest.Session(tool, top, *options):
                rows.append(("overlay", *options, locked_bytes(base), locked_bytes(top)))
            assert locked_bytes(base) == locked_bytes(top) == []
    writer, reader, again = (row[-1] for row in seen["byre"][:3])
    assert 101 in writer and 101 not in reader and again == writer
    seen["qemu"][2] = seen["byre"][2]           # the peer does not lock a raw image for writing again, but writes
    assert seen["byre"] == seen["qemu"]
