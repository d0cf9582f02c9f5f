# SPDX-License-Identifier: MIT
"""A guest disk with a byte-exact model: random commands for `byre io` and `qemu-io`, layer by layer of a chain, and the
judgement of the peer and of the independent reader on the image they leave.

    disk = Guest(seed, size, cluster_size=4096)
    disk.run("byre", image, operations=80)
    disk.resize("byre", image)
    disk.judge(image, tmp_path)
"""
import hashlib
import os
import select
import subprocess
import time
import zlib

from lib import images, peers, run
from lib.workload import Workload

import qcow2ref

TOOLS = ("byre", "qemu")


class Guest(Workload):
    """Exact also after discards: with `-d unmap` a discard clears the whole clusters it covers, and the short one at the
    end of the disk, and leaves the rest alone; in raw files (grain=512) it clears everything. Version 2 cannot say "zero
    here" over a backing file, and then does nothing.
    """

    def __init__(self, seed, size, cluster_size=65536, version=3, backing=None, weights=None, grain=None):
        super().__init__(seed, size, cluster_size=cluster_size, backing=backing, weights=weights)
        self.can_clear, self.grain = version == 3 or backing is None, grain or cluster_size

    def _discard(self, off, length):
        first = -(-off // self.grain) * self.grain
        end = off + length if off + length == self.size else (off + length) // self.grain * self.grain
        if self.can_clear and first < end:
            self._set(first, end - first, 0)

    def run(self, tool, image, operations=60, batch=30, options=()):
        """Random commands, by a tool, in runs of `batch`."""
        for commands in self.batches(operations, batch):
            io(tool, image, *commands, options=options)

    def set_size(self, size):
        """The model of a resize: what is gained reads as zeros, whatever a backing file holds there."""
        self.shadow = self.shadow[:size] + bytearray(max(0, size - self.size))
        self.unknown = bytearray(size // self.align + 1)       # nothing is: the model is exact
        self.written = [(off, length) for off, length in self.written if off + length <= size]
        self.size = size

    def resize(self, tool, image, size=None, *options):
        """Sets a size near the present one unless it is given."""
        if size is None:
            step = self.rng.randrange(-6 * self.cluster, 10 * self.cluster) + self.rng.choice([0, 512, -512])
            size = max(self.cluster, self.size + step) // 512 * 512
        shrink = ["--shrink"] if size < self.size else []
        program(tool)("resize", "-q", "-f", "qcow2", *shrink, *options, image, size)
        self.set_size(size)

    def write_raw(self, path):
        with open(path, "wb") as f:
            f.write(self.shadow)
        return path

    def judge(self, image, folder, fmt="qcow2"):
        """Clean for both checkers; same size and content for the peer and the independent reader."""
        if fmt == "qcow2":
            images.assert_sound(image)
        raw = self.write_raw(os.path.join(folder, "shadow.raw"))
        assert run.qemu_img("info", "--output=json", image).json["virtual-size"] == self.size
        done = run.qemu_img("compare", "-f", fmt, "-F", "raw", image, raw, code=None)
        if fmt == "qcow2":
            with qcow2ref.open_image(image, fmt=fmt) as reader:
                self.verify(reader.read)           # says which commands touched the place that differs
        assert done.code == 0, done


def seed_of(*parts):
    """The same number for the same parts in every run."""
    return zlib.crc32(repr(parts).encode())


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def base_layer(folder, fmt, size, seed):
    """A written base image of either format; returns (path, content)."""
    path = os.path.join(folder, "base." + fmt)
    disk = Guest(seed, size, 65536, grain=512 if fmt == "raw" else None)
    if fmt == "raw":
        images.raw_file(path, size)
        for commands in disk.batches(25, 25):
            io("byre", path, *commands, fmt="raw")
    else:
        create("qemu", path, size)
        disk.run("qemu", path, operations=25)
    disk.judge(path, folder, fmt=fmt)
    return path, bytes(disk.shadow)


def program(tool):
    return run.byre if tool == "byre" else run.qemu_img


def io(tool, image, *commands, fmt="qcow2", options=(), discard="unmap", **kwargs):
    """Commands of qemu-io by either tool; every one must succeed."""
    if tool == "qemu":
        return run.qemu_io(image, *commands, fmt=fmt, options=["-d", discard, *options], **kwargs)
    args = ["io", "-f", fmt, "-d", discard, *options]
    for command in commands:
        args += ["-c", command]
    done = run.byre(*args, image, **kwargs)
    for line in done.out.splitlines():
        if "failed" in line or "Pattern verification" in line:
            raise run.Failed(f"{line}\n{done}")
    return done


def disk_size(cluster_size, odd=True):
    """Some clusters, at least 1.5 MiB; not a multiple of the cluster."""
    return max(3 << 19, 10 * cluster_size) + (1536 if odd else 0)


def create(tool, path, size, backing=None, backing_fmt=None, version=3, **options):
    args = ["create", "-q", "-f", "qcow2"]
    if backing is not None:
        args += ["-b", os.fspath(backing), "-F", backing_fmt or "qcow2"]
    options = {"compat": "0.10" if version == 2 else "1.1", **options}
    args += ["-o", ",".join(f"{k}={images.value(v)}" for k, v in options.items()), os.fspath(path), str(size)]
    program(tool)(*args)
    return path


def merged_map(rows):
    """Rows of `map --output=json` in one canonical form: neighbours that continue each other are one row."""
    result = []
    for row in rows:
        row = {k: row.get(k) for k in ("start", "length", "depth", "present", "zero", "data", "offset")}
        last = result[-1] if result else None
        if (last and last["start"] + last["length"] == row["start"]
                and all(last[k] == row[k] for k in ("depth", "present", "zero", "data"))
                and (last["offset"] + last["length"] if last["offset"] is not None else None) == row["offset"]):
            last["length"] += row["length"]
        else:
            result.append(row)
    return result


def assert_same_map(image, disk=None):
    """The maps agree. Holes of the file under a mapped cluster may be told as zeros by one and not by the other (both only
    look there when the image seems to be preallocated), as long as they are zeros."""
    ours, peer = (program(tool)("map", "--output=json", "-f", "qcow2", image).json for tool in TOOLS)
    for row in ours + peer:
        if disk and row["data"] and row["zero"]:
            assert not any(disk.shadow[row["start"]:row["start"] + row["length"]]), row
            row["zero"] = False
    ours, peer = merged_map(ours), merged_map(peer)
    assert ours == peer, f"byre: {[r for r in ours if r not in peer][:5]}\npeer: {[r for r in peer if r not in ours][:5]}"


def assert_read_by_byre(disk, image, folder, fmt="qcow2"):
    """byre sees in an image what the model holds: by convert, compare, io, map and check."""
    raw = disk.write_raw(os.path.join(folder, "want.raw"))
    out = os.path.join(folder, "out.raw")
    run.byre("convert", "-f", fmt, "-O", "raw", image, out)
    with open(out, "rb") as f:
        have = f.read()
    if have != disk.shadow:
        assert len(have) == disk.size
        disk.verify(lambda off, length: have[off:off + length])
    run.byre("compare", "-f", fmt, "-F", "raw", image, raw)
    io("byre", image, *reads(disk), fmt=fmt, options=["-r"])
    if fmt == "qcow2":
        keys = ("check-errors", "corruptions", "leaks", "total-clusters", "allocated-clusters", "compressed-clusters")
        ours, peer = (p("check", "--output=json", "-f", fmt, image).json for p in (run.byre, run.qemu_img))
        assert [ours.get(k, 0) for k in keys] == [peer.get(k, 0) for k in keys]
        assert_same_map(image, disk)


def reads(disk, count=24):
    """`read -P` commands on uniform runs around random places."""
    commands = []
    for _ in range(count):
        at = disk.rng.randrange(disk.size // 512) * 512
        value, end = disk.shadow[at], at
        piece = disk.shadow[at:at + 65536]
        end = at + (len(piece) - len(piece.lstrip(bytes([value])))) // 512 * 512
        if end > at:
            commands.append(f"read -P {value} {at} {end - at}")
    return commands or ["read 0 512"]


class Session:
    """An interactive `io` of either tool that has an image open: leave() ends it well, kill() as a crash does."""

    def __init__(self, tool, image, *options, fmt="qcow2"):
        program = [peers.need("qemu-io")] if tool == "qemu" else [run.BYRE, "io"]
        # or the peer keeps commands and answers in its buffers
        self.process = subprocess.Popen([peers.need("stdbuf"), "-i0", "-oL", *program, "-f", fmt, *options, os.fspath(image)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.seen = b""
        self.do()

    def do(self, *commands):
        """Runs commands; returns when all are done."""
        self.process.stdin.write("".join(c + "\n" for c in [*commands, "read 0 512"]).encode())
        self.process.stdin.flush()
        self.seen = b""
        end = time.monotonic() + 30
        while b"read 512/512 bytes at offset 0\n" not in self.seen:
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            self.seen += piece
            if not piece:
                self.kill()
                raise run.Failed(f"{self.process.args} does not answer: {self.seen.decode()}")
        assert b"failed" not in self.seen, self.seen.decode()

    def kill(self):
        """The image can be opened afterwards: until then requests of the dead may be under way in the kernel."""
        self.process.kill()
        self.process.communicate()
        images.wait_unlocked(self.process.args[-1])

    def leave(self):
        self.process.communicate(b"quit\n", timeout=20)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.leave()
