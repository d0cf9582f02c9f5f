# SPDX-License-Identifier: MIT
"""Small writes into large clusters of a mirror that gets a part of the disk (FEATURES 9.020, 9.023, 9.034, J1): what lies around them comes along, for the cluster of the
target hides whatever comes to lie below it."""
import random
import threading

import pytest

from backup_test import MIB, SIZE, World, same
from lib import run

K = 1024
# The peer carries a small write over alone in write-blocking mode, and loses what lies around it.
OURS = pytest.mark.parametrize("copy_mode", ["background", "write-blocking"])
SIDES = pytest.mark.parametrize("peer,copy_mode", [(False, "background"), (False, "write-blocking"), (True, "background")],
                                ids=["byre-background", "byre-blocking", "peer-background"])


class Guest:
    """A guest who remembers."""

    def __init__(self, w):
        self.handle, self.now = w.guest(), bytearray(w.old)

    def write(self, off, size, byte):
        self.handle.pwrite(bytes([byte]) * size, off)
        self.now[off:off + size] = bytes([byte]) * size

    def zero(self, off, size):
        self.handle.zero(size, off)
        self.now[off:off + size] = bytes(size)

    def trim(self, off, size):
        self.handle.trim(size, off)
        self.now[off:off + size] = self.handle.pread(size, off)

    def small_changes(self, first, byte):
        """In and around clusters of 64 KiB from `first` on: inside, at both edges, over two and over several, the same one twice; with zeros and discards."""
        step = 256 * K
        self.write(first + 8 * K, 4 * K, byte)
        self.write(first + 64 * K + 512, 512, byte)
        self.write(first + step + 60 * K, 8 * K, byte)
        self.write(first + step + 128 * K, 4 * K, byte + 1)
        self.write(first + 2 * step + 52 * K, 140 * K, byte)
        self.zero(first + 3 * step + 4 * K, 4 * K)
        self.zero(first + 4 * step + 32 * K, 64 * K)
        self.trim(first + 5 * step + 16 * K, 16 * K)
        self.trim(first + 6 * step + 16 * K, 128 * K)
        self.write(first + 8 * K + 2 * K, 4 * K, byte + 2)
        self.write(first + 3 * step + 512, 1 * K, byte + 3)

    def check(self):
        same(self.handle.pread(SIZE, 0), bytes(self.now))


def pivot(w, guest):
    w.ok("job-complete", id="j")
    w.done()
    w.gone()
    guest.check()
    guest.small_changes(5 * MIB, 0x60)
    guest.check()
    guest.handle.shutdown()
    w.end()


def crowd(w, guest, seed):
    """Several clients write at once, each its own sectors of the same clusters, with zeros and discards."""
    many, errors = 4, []

    def one(i):
        rng, handle = random.Random(seed * 10 + i), w.guest()
        try:
            for n in range(150):
                sector = rng.randrange(SIZE // 512 // many // 4) * many + i        # in the first quarter: each cluster is hit often
                off, byte = sector * 512, (seed + n * many + i) % 255 + 1
                if n % 5 == 4:
                    handle.zero(512, off)
                else:
                    handle.pwrite(bytes([byte]) * 512, off)
                guest.now[off:off + 512] = bytes(512) if n % 5 == 4 else bytes([byte]) * 512
        except Exception as e:                  # told by the thread that waits
            errors.append(e)
        handle.shutdown()
    threads = [threading.Thread(target=one, args=(i,)) for i in range(many)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors


@OURS
@pytest.mark.parametrize("cluster", ["64k", "2M"])
def test_none_to_a_crowd(tmp_path, start, copy_mode, cluster):
    """Clusters are filled up from the source while other clients write other parts of them"""
    w = World(start, tmp_path)
    guest, target = Guest(w), tmp_path / "t.img"
    run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", tmp_path / "disk.qcow2", "-F", "qcow2", target, SIZE)
    w.ok("drive-mirror", device="disk", job_id="j", target=str(target), format="qcow2", mode="existing", sync="none", copy_mode=copy_mode, node_name="t")
    crowd(w, guest, 1)
    w.wait("BLOCK_JOB_READY")
    crowd(w, guest, 2)
    pivot(w, guest)
    same(w.content(target), bytes(guest.now))


@SIDES
@pytest.mark.parametrize("granularity", [None, 512, 4 * K, 64 * K, MIB])
def test_none_over_the_source(tmp_path, start, peer, copy_mode, granularity):
    """drive-mirror with sync=none: behind the pivot the source lies below the target"""
    w = World(start, tmp_path, peer)
    guest = Guest(w)
    more = {"granularity": granularity} if granularity else {}
    w.ok("drive-mirror", device="disk", job_id="j", target=str(tmp_path / "t.qcow2"), format="qcow2", sync="none", copy_mode=copy_mode, node_name="t", **more)
    guest.small_changes(0, 0x40)
    w.wait("BLOCK_JOB_READY")
    guest.small_changes(MIB + 512 * K, 0x50)
    guest.small_changes(3 * MIB + 512 * K, 0x58)
    pivot(w, guest)
    same(w.content(tmp_path / "t.qcow2"), bytes(guest.now))


@OURS
@pytest.mark.parametrize("options", [["-o", "cluster_size=2M"], ["-o", "cluster_size=2M,extended_l2=on"], ["-o", "cluster_size=512"], ["-o", "compat=0.10"], ["-f", "qed"]],
                         ids=["2M", "subclusters", "512", "v2", "qed"])
def test_none_to_what_is_there(tmp_path, start, copy_mode, options):
    """The same to an image with other clusters, whose header names the source"""
    w = World(start, tmp_path)
    guest, target, form = Guest(w), tmp_path / "t.img", "qed" if "qed" in options else "qcow2"
    run.qemu_img("create", "-q", "-u", *(["-f", "qcow2"] if form == "qcow2" else []), *options, "-b", tmp_path / "disk.qcow2", "-F", "qcow2", target, SIZE)
    w.ok("drive-mirror", device="disk", job_id="j", target=str(target), format=form, mode="existing", sync="none", copy_mode=copy_mode, node_name="t")
    guest.small_changes(0, 0x40)
    w.wait("BLOCK_JOB_READY")
    guest.small_changes(3 * MIB, 0x50)
    pivot(w, guest)
    same(w.content(target), bytes(guest.now))


@pytest.mark.parametrize("granularity,peer,copy_mode", [(None, False, "background"), (None, False, "write-blocking"), (512, False, "background"),
                                                       (512, False, "write-blocking"), (None, True, "background")])
def test_top_of_small_clusters(tmp_path, start, peer, copy_mode, granularity):
    """blockdev-mirror with sync=top from clusters of 4 KiB to clusters of 64 KiB that are opened alone, and get the base later"""
    w = World(start, tmp_path, peer)
    rng = random.Random(5)
    guest = Guest(w)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "low.raw", "-F", "raw", tmp_path / "fine.qcow2", SIZE)
    fine = bytearray(w.low)
    commands = []
    for _ in range(40):
        at, byte = rng.randrange(SIZE // 4096 - 2) * 4096, rng.randrange(1, 255)
        fine[at:at + 4096] = bytes([byte]) * 4096
        commands.append(f"write -P {byte} {at} 4k")
    run.qemu_io(tmp_path / "fine.qcow2", *commands, fmt="qcow2")
    w.add(driver="qcow2", node_name="fine", file={"driver": "file", "filename": str(tmp_path / "fine.qcow2")})
    w.ok("block-export-add", type="nbd", id="f", node_name="fine", name="fine", writable=True)
    guest.handle.shutdown()
    guest.handle, guest.now = w.guest("fine"), fine
    guest.check()
    copy = w.target(node=False)
    w.add(driver="qcow2", node_name="t", file={"driver": "file", "filename": str(copy)}, discard="unmap", backing=None)
    more = {"granularity": granularity} if granularity else {}
    w.ok("blockdev-mirror", device="fine", job_id="j", target="t", sync="top", copy_mode=copy_mode, **more)
    guest.small_changes(0, 0x40)
    w.wait("BLOCK_JOB_READY")
    guest.small_changes(3 * MIB, 0x50)
    guest.check()
    w.ok("block-job-cancel", device="j")                # ready: the target is the disk of this moment
    w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    w.gone()
    guest.handle.shutdown()
    w.end()
    run.qemu_img("rebase", "-u", "-b", tmp_path / "low.raw", "-F", "raw", copy)
    same(w.content(copy), bytes(guest.now))


@OURS
@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_of_small_granules(tmp_path, start, copy_mode, mode):
    """sync=bitmap of granules of 512 bytes to an image over the copy of before, which is opened alone"""
    w = World(start, tmp_path)
    guest = Guest(w)
    (tmp_path / "before.raw").write_bytes(w.old)
    w.ok("block-dirty-bitmap-add", node="disk", name="b", granularity=512)
    guest.small_changes(0, 0x30)
    copy = w.target(node=False)
    w.add(driver="qcow2", node_name="t", file={"driver": "file", "filename": str(copy)}, discard="unmap", backing=None)
    w.ok("blockdev-mirror", device="disk", job_id="j", target="t", sync="bitmap", bitmap="b", bitmap_mode=mode, copy_mode=copy_mode, granularity=512)
    guest.small_changes(2 * MIB, 0x40)
    w.wait("BLOCK_JOB_READY")
    guest.small_changes(4 * MIB, 0x50)
    w.ok("block-job-cancel", device="j")
    w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    w.gone()
    guest.check()
    guest.handle.shutdown()
    w.end()
    run.qemu_img("rebase", "-u", "-b", tmp_path / "before.raw", "-F", "raw", copy)
    same(w.content(copy), bytes(guest.now))
