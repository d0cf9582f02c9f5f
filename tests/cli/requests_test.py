# SPDX-License-Identifier: MIT
"""What requests and disks may be, seen from the command line (FEATURES areas 3a and 11b)."""
import os
import random

import pytest

from lib import images, mounts, peers, run

MIB, GIB = 1 << 20, 1 << 30
LARGEST = (1 << 63) - GIB


@pytest.mark.parametrize("size,good", [(LARGEST, True), (LARGEST + 512, False), ((1 << 63) - 1, False)])
def test_largest_disk(tmp_path, size, good):
    """FEATURES 11.021: the largest raw disk is read and written to its end; a larger one is refused, as the peer does"""
    with mounts.tmpfs(tmp_path / "m", "4M") as mount:                       # the one file system that has such files
        disk = mount / "d"
        with open(disk, "wb") as f:
            f.truncate(size)
        for program in (run.byre, run.qemu_img):
            done = program("info", "-f", "raw", "--output=json", disk, code=0 if good else 1)
            assert not good or done.json["virtual-size"] == size
        last = f"{size // 512 * 512 - 4096} 4096"
        for program in ([run.BYRE, "io"], [peers.need("qemu-io")]):
            run.run(*program, "-f", "raw", "-c", f"write -P 5 {last}", "-c", f"read -P 5 {last}", disk, code=0 if good else 1)
        if good:
            run.byre("io", "-f", "raw", "-c", f"read {size} 512", disk, code=1)
            run.byre("resize", "-f", "raw", disk, "+512", code=1)
            assert disk.stat().st_size == size


def test_longest_request(twin):
    """FEATURES 11.021: a request has at most 2^31 - 512 bytes; one of 128 MiB is one request"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "r", "4G"])
    for words in (["read 0 2147483648"], ["write -z 0 2147483648"], ["discard 0 2147483648"], ["read -q 0 2147483649"]):
        ours, theirs = twin.io("-f", "raw", "-c", *words, "r")
        assert ours.code == theirs.code == 1
    for words in (["write -z 0 2147483136"], ["write -q -P 3 1M 128M"], ["read -q -P 3 1M 128M"]):
        ours, theirs = twin.io("-f", "raw", "-c", *words, "r")
        assert ours.code == theirs.code == 0


def test_errors(twin):
    """FEATURES 11.035: read-only is EPERM, past the end EIO, a size that cannot be is refused, no medium is said"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "1M"], ["qemu-img", "create", "-q", "-f", "raw", "r", "1M"])
    for fmt, name in (("qcow2", "x"), ("raw", "r")):
        for command in ("read 1M 512", "write 1M 512", "read 1048064 513", "write -z 1M 512", "discard 1M 512", "readv 1048064 512 512"):
            ours, theirs = twin.io("-f", fmt, "-c", command, name)
            assert ours.code == theirs.code == 1 and ours.out == theirs.out and "Input/output error" in ours.out
        for command in ("write 0 512", "write -z 0 512", "writev 0 512", "discard 0 512"):
            ours, theirs = twin.io("-f", fmt, "-r", "-c", command, name)
            assert ours.code == theirs.code == 1
            assert "Operation not permitted" in ours.out
        for command, good in (("truncate -m bogus 2M", False), ("truncate 9E", False), ("truncate 1000", fmt == "raw"), ("length", True)):
            ours, theirs = twin.io("-f", fmt, "-c", command, name)
            assert ours.code == theirs.code == (0 if good else 1) and ours.out == theirs.out
    peers.need("strace")
    for program in (run.BYRE, peers.need("qemu-img")):
        done = run.run("strace", "-f", "-o", "/dev/null", "-P", f"{twin.ours}/r", "-e", "inject=openat:error=ENOMEDIUM", program, "info", "-f", "raw",
                       f"{twin.ours}/r", code=1)
        assert "No medium found" in done.err, done


@pytest.mark.serial
@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_growing_on_xfs(tmp_path, cache, backend):
    """FEATURES 3.014: 32 writes and zeros at a time that make a file on XFS longer lose neither one another nor the length"""
    peers.need("mkfs.xfs", "mount", "umount")
    with open(tmp_path / "back", "wb") as f:
        f.truncate(400 * MIB)
    device, detach = run.loop_device(tmp_path / "back")
    (tmp_path / "m").mkdir()
    try:
        run.run("mkfs.xfs", "-q", device)
        run.run("mount", device, tmp_path / "m")
        try:
            grow_on(tmp_path, tmp_path / "m" / "x", cache, backend)
        finally:
            run.run("umount", tmp_path / "m")
    finally:
        detach()


def grow_on(tmp_path, image, cache, backend):
    rng = random.Random(f"3.014 {cache} {backend}")
    size, unit, model = 64 * MIB, 16384, bytearray(64 * MIB)
    run.byre("create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", image, size)
    for _ in range(3):
        words = []
        places = rng.sample(range(size // unit), 600)
        for i, place in enumerate(places):
            off, length, byte = place * unit + rng.randrange(8) * 512, rng.randrange(1, 24) * 512, 0 if i % 3 == 2 else rng.randrange(1, 256)
            words += ["-c", f"aio_write -q -z {off} {length}" if not byte else f"aio_write -q -P {byte} {off} {length}"]
            model[off:off + length] = bytes([byte]) * length
            if i % 32 == 31:
                words += ["-c", "aio_flush"]
        run.byre("io", "-f", "qcow2", "-t", cache, "-i", backend, *words, "-c", "aio_flush", image)
        (tmp_path / "model").write_bytes(model)
        run.qemu_img("compare", "-f", "qcow2", "-F", "raw", image, tmp_path / "model")
    images.assert_sound(image)


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "luks"])
def test_status_flags(twin, fmt):
    """FEATURES 11.030: data, zero, place, compressed, depth and end of the file, extent for extent as the peer says"""
    steps = [["qemu-img", "create", "-q", "-f", "raw", "base", "3M"], ["qemu-io", "-f", "raw", "-c", "write -q 512k 700000", "-c", "write -q -z 2M 64k", "base"]]
    if fmt == "raw":
        twin.share(*steps, ["qemu-io", "-f", "raw", "-c", "truncate 2600000", "base"])
        names = ["base"]
    elif fmt == "qcow2":
        twin.share(*steps, ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "mid", "4M"],
                   ["qemu-io", "-c", "write -q 1M 128k", "-c", "write -q -z 2M 128k", "-c", "write -q -c 3M 64k", "-c", "write -q 3200k 64k",
                    "-c", "write -q -z 3200k 64k", "-c", "discard 1M 64k", "mid"],
                   ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "mid", "-F", "qcow2", "top", "4M"],
                   ["qemu-io", "-c", "write -q 1M 6k", "-c", "write -q -z 256k 10k", "-c", "write -q 2M 2k", "top"],
                   ["qemu-img", "convert", "-c", "-O", "qcow2", "top", "packed"],
                   ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "pre", "4M"])
        names = ["mid", "top", "packed", "pre"]
    else:
        run.byre("create", "-q", "--object", "secret,id=s,data=a", "-f", "luks", "-o", "key-secret=s,iter-time=10", "l", "1M", cwd=twin.theirs)
        twin.share()
        names = []
        opts = ["--object", "secret,id=s,data=a", "--image-opts", "driver=luks,key-secret=s,file.filename=l"]
        ours, theirs = (done.json for done in twin.same_code("map", "--output=json", *opts))
        assert ours == theirs and not any("offset" in row for row in ours)
    for name in names:
        ours, theirs = (done.json for done in twin.same_code("map", "--output=json", name))
        for row in ours:
            compressed = row.pop("compressed", None)        # newer peers say it, this one may not
            theirs_row = next(r for r in theirs if r["start"] <= row["start"] < r["start"] + r["length"])
            if "compressed" in theirs_row:
                assert compressed == theirs_row["compressed"]
            elif compressed:
                assert name in ("mid", "top", "packed") and row["data"] and "offset" not in row
        for row in theirs:
            row.pop("compressed", None)
        assert ours == theirs, name
        assert sum(row["length"] for row in ours) == os_size(twin, name)


def os_size(twin, name):
    return run.qemu_img("info", "--output=json", f"{twin.theirs}/{name}").json["virtual-size"]


@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
def test_space_of_a_grown_disk(twin, mode):
    """FEATURES 3.017: what growing takes on disk equals what it takes with the peer"""
    twin.give(["qemu-img", "create", "-q", "-f", "raw", "r", "1M"])
    twin.same_code("resize", "-q", "-f", "raw", f"--preallocation={mode}", "r", "9M")
    taken = [os.stat(f"{folder}/r").st_blocks * 512 for folder in (twin.ours, twin.theirs)]
    assert abs(taken[0] - taken[1]) <= 65536 and (taken[0] >= 8 * MIB) == (mode != "off"), taken
    twin.same_code("resize", "-q", "-f", "raw", "--shrink", "r", "512k")
    assert os.path.getsize(f"{twin.ours}/r") == os.path.getsize(f"{twin.theirs}/r") == MIB // 2
