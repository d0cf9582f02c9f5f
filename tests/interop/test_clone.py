# SPDX-License-Identifier: MIT
"""Clones inside an image (G.004): two places of a disk share clusters. Random clones between writes, zeros, discards, snapshots and
openings, over all kinds of images; the peer finds them sound each time, reads the same, and goes on with them."""
import random
import re
import subprocess

import pytest
from lib import peers, run
from lib.bitmaps import peer_map

SECRET = ("--object", "secret,id=s,data=hunter2")
CLONES = 1 << 59                             # our autoclear bit


def node(path, luks):
    return f"driver=qcow2,file.filename={path}" + (",encrypt.key-secret=s" if luks else "")


def byre(path, commands, luks=False):
    args = ["io", *(SECRET if luks else ()), *[w for c in commands for w in ("-c", c)], "--image-opts", node(path, luks) + ",discard=unmap"]
    done = run.byre(*args)
    assert "ailed" not in done.out and "error" not in done.out, done.out


def peer(path, commands):
    peers.need("qemu-io")
    done = subprocess.run(["qemu-io", "-d", "unmap", "-f", "qcow2", path], input="\n".join(commands) + "\n", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and "rror" not in done.stdout, done.stdout


def content(path, to, luks=False):
    run.qemu_img("convert", *(SECRET if luks else ()), "--image-opts", node(path, luks), "-O", "raw", to)
    return to.read_bytes()


def marked(path):
    with open(path, "rb") as f:
        return int.from_bytes(f.read(104)[88:96], "big") & CLONES != 0


class Disk:
    """What it must hold, and random requests."""

    def __init__(self, size, cluster, seed, base=b""):
        self.size, self.cluster, self.rng = size, cluster, random.Random(seed)
        self.bytes = bytearray(base.ljust(size, b"\0"))

    def _len(self, aligned):
        n = self.cluster * self.rng.randint(1, 12)
        return n if aligned else max(512, n - 512 * self.rng.randint(0, self.cluster // 512))

    def _at(self, aligned, length):
        unit = self.cluster if aligned else 512
        return self.rng.randrange((self.size - length) // unit) * unit

    def _clone(self, aligned):
        length = self._len(aligned)
        src, dst = self._at(aligned, length), self._at(aligned, length)
        if not aligned and self.rng.random() < 0.5:          # not at the same place in a cluster else
            dst = dst // self.cluster * self.cluster + src % self.cluster
            length = min(length, self.size - dst)
        self.bytes[dst:dst + length] = self.bytes[src:src + length]
        return f"clone -q {src} {dst} {length}"

    def _change(self, kinds):
        kind, aligned = self.rng.choice(kinds), self.rng.random() < 0.6
        length = self._len(aligned)
        off, value = self._at(aligned, length), 0
        if "-z" in kind:
            words = f"{kind} {off} {length}"
        else:
            value = self.rng.randint(1, 255)
            words = f"{kind} -P {value} {off} {length}"
        self.bytes[off:off + length] = bytes([value]) * length
        return words

    def requests(self, count, kinds=("write -q", "write -q", "write -q -z", "write -q -z -u"), clones=0.5):
        return [self._clone(self.rng.random() < 0.7) if self.rng.random() < clones else self._change(kinds) for _ in range(count)]


@pytest.mark.parametrize("options,cluster,shares", [
    ("", 65536, True), ("compat=0.10", 65536, False), ("cluster_size=512", 512, True), ("cluster_size=4096,refcount_bits=64", 4096, True),
    ("refcount_bits=2,cluster_size=4k", 4096, True), ("refcount_bits=8", 65536, True), ("extended_l2=on,cluster_size=16k", 16384, True), ("extended_l2=on,cluster_size=128k", 131072, True),
    ("lazy_refcounts=on,cluster_size=1k", 1024, True), ("preallocation=metadata,cluster_size=4k", 4096, True), ("cluster_size=2M", 1 << 21, True),
])
def test_random(tmp_path, options, cluster, shares):
    """The peer's check is clean and its reading right after every session; with snapshots in between"""
    path = tmp_path / "a.qcow2"
    disk = Disk(cluster * 96 + 512 * 3, cluster, 1)
    run.qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, disk.size)
    held = {}
    for n in range(8 if cluster < 1 << 20 else 2):
        byre(path, disk.requests(40 if cluster < 1 << 20 else 14))
        run.qemu_img("check", path)
        run.byre("check", path)
        assert content(path, tmp_path / "raw") == disk.bytes, f"session {n}"
        if n in (1, 4) and "refcount_bits=2" not in options:
            run.byre("snapshot", "-c", f"s{n}", path)
            held[f"s{n}"] = bytes(disk.bytes)
        if n == 6 and held:
            run.byre("snapshot", "-d", "s1", path)
            run.byre("snapshot", "-a", "s4", path)
            disk.bytes[:] = held["s4"]
            run.qemu_img("check", path)
    byre(path, [f"write -q -P 9 0 {cluster * 8}", f"clone -q 0 {cluster * 40} {cluster * 8}"])
    assert marked(path) == shares
    byre(path, [f"read -q -P 9 {cluster * 40} {cluster * 8}"])


def test_refcount_of_one_bit(tmp_path):
    """No cluster can have two owners: all of it is copied"""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, "8M")
    byre(path, ["write -q -P 7 0 1M", "clone -q 0 4M 1M", "write -q -P 8 0 64k", "read -q -P 7 4M 1M"])
    run.qemu_img("check", path)


def test_shared(tmp_path):
    """Space is not taken twice, until one of the two is written; who is left alone gets its flag, so that the mark goes again"""
    path = tmp_path / "a.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "256M")
    byre(path, ["write -q -P 5 0 64M"])
    before = path.stat().st_blocks
    byre(path, ["clone -q 0 128M 64M", "clone -q 128M 64M 64M"])
    assert path.stat().st_blocks - before < 4096 and marked(path)
    run.qemu_img("check", path)
    byre(path, ["write -q -P 6 0 64M", "read -q -P 5 64M 128M"])
    assert marked(path)
    byre(path, ["discard -q 64M 64M", "read -q -P 5 128M 64M", "read -q -P 6 0 64M"])
    run.qemu_img("check", path)
    assert not marked(path)


def test_version_2(tmp_path):
    """Version 2 has no place for the mark that there are clones: with some it is refused, without any it is not, and flags stay right
    whatever the peer does then"""
    path = tmp_path / "a.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "64M")
    byre(path, ["write -q -P 5 0 1M", "clone -q 0 8M 1M"])
    before = path.read_bytes()
    done = run.byre("amend", "-f", "qcow2", "-o", "compat=0.10", path, code=1)
    assert "clones share clusters" in done.err and "version 2" in done.err and "snapshots" not in done.err
    assert path.read_bytes()[:104] == before[:104] and marked(path)
    run.qemu_img("check", path)
    byre(path, ["discard -q 0 1M", "read -q -P 5 8M 1M"])
    run.byre("amend", "-f", "qcow2", "-o", "compat=0.10", path)
    assert path.read_bytes()[7] == 2
    run.qemu_img("check", path)
    peer(path, ["write -q -P 6 8M 512k"])
    byre(path, ["read -q -P 6 8M 512k", "read -q -P 5 8704k 512k", "write -q -P 7 8M 4k"])
    run.qemu_img("check", path)


def test_version_2_with_snapshots(tmp_path):
    """What snapshots share is not looked through: refused, and told so"""
    path = tmp_path / "a.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "64M")
    byre(path, ["write -q -P 5 0 1M", "clone -q 0 8M 1M"])
    run.byre("snapshot", "-c", "s", path)
    byre(path, ["discard -q 0 1M"])
    assert "snapshots" in run.byre("amend", "-f", "qcow2", "-o", "compat=0.10", path, code=1).err
    run.qemu_img("check", path)
    run.byre("snapshot", "-d", "s", path)
    byre(path, ["write -q -P 6 0 64k"])
    run.byre("amend", "-f", "qcow2", "-o", "compat=0.10", path)
    run.qemu_img("check", path)


def test_backing(tmp_path):
    """What is not in the image shows what lies below at its own place: it is copied; zeros hide it"""
    base, path = tmp_path / "base", tmp_path / "a.qcow2"
    rng = random.Random(5)
    base.write_bytes(b"".join(bytes([rng.randint(1, 250)]) * 4096 for _ in range(512)))
    for options in ("", "cluster_size=8k", "extended_l2=on", "compat=0.10"):
        run.qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), "-b", base, "-F", "raw", path, "3M")
        cluster = 8192 if "8k" in options else 65536
        disk = Disk(3 << 20, cluster, 3, base.read_bytes())
        for _ in range(4):
            byre(path, disk.requests(30))
            run.qemu_img("check", path)
            assert content(path, tmp_path / "raw") == disk.bytes, options


def test_compressed(tmp_path):
    path = tmp_path / "a.qcow2"
    disk = Disk(96 * 65536, 65536, 6)
    run.qemu_img("create", "-q", "-f", "qcow2", path, disk.size)
    for i in range(0, 96, 2):
        disk.bytes[i * 65536:(i + 1) * 65536] = bytes([i + 1]) * 65536
    peer(path, [f"write -c -q -P {i + 1} {i * 65536} 65536" for i in range(0, 96, 2)])
    for _ in range(3):
        byre(path, disk.requests(30))
        run.qemu_img("check", path)
        assert content(path, tmp_path / "raw") == disk.bytes


def test_luks(tmp_path):
    """The key stream goes by the place in the file: what is shared decrypts at both places"""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, 96 * 65536)
    disk = Disk(96 * 65536, 65536, 8)
    for _ in range(3):
        byre(path, disk.requests(30), luks=True)
        run.qemu_img("check", *SECRET, "--image-opts", node(path, True))
        assert content(path, tmp_path / "raw", luks=True) == disk.bytes
    assert marked(path)


def test_data_file(tmp_path):
    """A cluster of an external data file has one place"""
    path = tmp_path / "a.qcow2"
    for raw in ("off", "on"):
        (tmp_path / "data").unlink(missing_ok=True)
        run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw={raw}", path, 96 * 65536)
        disk = Disk(96 * 65536, 65536, 9)
        byre(path, disk.requests(40))
        run.qemu_img("check", path)
        assert content(path, tmp_path / "raw") == disk.bytes and not marked(path)


def test_bitmap(tmp_path):
    """The target of a clone has been written, the source has not"""
    path = tmp_path / "a.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "8M")
    byre(path, ["write -q -P 1 0 1M"])
    run.byre("bitmap", "--add", "-g", "65536", path, "b")
    byre(path, ["clone -q 0 4M 1M"])
    run.qemu_img("check", path)
    assert peer_map(path, "b", tmp_path) == [(4 << 20, 5 << 20)]


def test_peer_goes_on(tmp_path):
    """The peer does not know of clusters that two places share: it reads and writes them right, and the flag of one that is left alone it
    leaves missing, which its check and ours tell and a repair sets"""
    path = tmp_path / "a.qcow2"
    disk = Disk(96 * 4096, 4096, 11)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, disk.size)
    for n in range(5):
        byre(path, disk.requests(40))
        run.qemu_img("check", path)
        peer(path, disk.requests(40, clones=0))
        assert not marked(path) and content(path, tmp_path / "raw") == disk.bytes
        found = run.qemu_img("check", path, code=None)
        wrong = [line for line in found.out.splitlines() + found.err.splitlines() if re.match("ERROR|Leaked", line)]
        assert all("OFLAG_COPIED" in line and "refcount=1" in line for line in wrong), wrong
        if n % 2:
            run.byre("check", "-q", "-r", "all", path)
            run.qemu_img("check", path)
