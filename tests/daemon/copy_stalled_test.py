# SPDX-License-Identifier: MIT
"""Backups and mirrors whose copies stand still in the kernel (FEATURES 9.065, RG28)."""
import os
import random

import pytest

from lib import peers, run, wait

MIB = 1 << 20
SIZE = 16 * MIB
STALLS = os.path.join(os.environ.get("BYRE_BUILD") or run.TOP / "build", "tests", "daemon", "copy-stalls.so")


class World:
    """A raw disk, exported for writing, and a raw target. Copies by the kernel take as long as `stall` is there."""

    def __init__(self, start, folder):
        self.folder, self.stall = folder, folder / "stall"
        self.old = random.Random(5).randbytes(SIZE)
        (folder / "d.raw").write_bytes(self.old)
        (folder / "t.raw").write_bytes(bytes(SIZE))
        options = f"{os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0"      # what is preloaded comes before it
        self.daemon = start("daemon", "--threads", "1", "--nbd-server", "addr.type=unix,addr.path=n.sock",
                            env={"LD_PRELOAD": STALLS, "COPY_STALLS": str(self.stall), "ASAN_OPTIONS": options})
        self.client = self.daemon.qmp()
        for name in "dt":
            self.client.ok("blockdev-add", driver="raw", node_name=name, file={"driver": "file", "node-name": f"{name}f", "filename": str(folder / f"{name}.raw")})
        self.client.ok("block-export-add", type="nbd", id="e", node_name="d", name="d", writable=True)

    def guest(self):
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(f"nbd+unix:///d?socket={self.daemon.folder}/n.sock")
        return handle

    def stalled(self):
        """How many copies have come to the kernel and stand still there, or did."""
        path = self.folder / "stall.in"
        return path.stat().st_size if path.exists() else 0

    def backup(self, **perf):
        """Begins one, whose first copies stand still."""
        self.stall.touch()
        self.client.ok("blockdev-backup", device="d", target="t", sync="full", job_id="j", **{"x-perf": {"use-copy-range": True, **perf}})
        wait.until(self.stalled, "the kernel is not asked")

    def mirror(self, **more):
        """Begins one, whose first copies stand still."""
        self.stall.touch()
        self.client.ok("blockdev-mirror", device="d", target="t", sync="full", job_id="j", auto_dismiss=False, **{"x-byre-use-copy-range": True, **more})
        wait.until(self.stalled, "the kernel is not asked")

    def go_on(self):
        self.stall.unlink()


@pytest.fixture
def world(start, tmp_path):
    w = World(start, tmp_path)
    yield w
    w.stall.unlink(missing_ok=True)


def test_the_source_goes_on(world):
    """While one stands still: what drains the source is answered, guests read and write, and the copy is that of the beginning"""
    client, guest = world.client, world.guest()
    world.backup(**{"max-workers": 1})
    client.ok("block-dirty-bitmap-add", node="d", name="b")                    # drains it
    assert guest.pread(4096, SIZE - MIB) == world.old[SIZE - MIB:SIZE - MIB + 4096]
    client.ok("blockdev-reopen", options=[{"driver": "raw", "node-name": "d", "file": "df", "detect-zeroes": "on"}])
    assert guest.pread(4096, 0) == world.old[:4096]
    guest.pwrite(b"x" * 4096, SIZE - MIB)
    world.go_on()
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    guest.shutdown()
    client.ok("quit")
    assert world.daemon.wait()[0] == 0
    assert (world.folder / "t.raw").read_bytes() == world.old


def test_cancel(world):
    """A job whose copy stands still ends when it is cancelled; a guest's write that had to wait for the copy goes on then"""
    client, guest = world.client, world.guest()
    world.backup(**{"max-workers": 1})
    cookie = guest.aio_pwrite(bytearray(b"x" * 4096), 0)
    client.ok("block-job-cancel", device="j")
    client.wait("BLOCK_JOB_CANCELLED")
    wait.until(lambda: guest.poll(10) >= 0 and guest.aio_command_completed(cookie), "the guest waits for a job that is gone")
    assert guest.pread(4096, 0) == b"x" * 4096
    assert world.stall.exists()
    world.go_on()
    guest.shutdown()
    client.ok("quit")
    assert world.daemon.wait()[0] == 0


def test_many(world):
    """FEATURES 9.065, RG28: as many as a job makes at the same time keep nobody from opening files, nor from a backup of another disk, which is read and written"""
    client, other = world.client, random.Random(6).randbytes(2 * MIB)
    world.backup()
    wait.until(lambda: world.stalled() == 16, lambda: f"{world.stalled()} copies of 16 pieces")
    (world.folder / "d2.raw").write_bytes(other)
    (world.folder / "t2.raw").write_bytes(bytes(len(other)))
    for name in ("d2", "t2"):
        client.ok("blockdev-add", driver="raw", node_name=name, file={"driver": "file", "filename": str(world.folder / f"{name}.raw")})
    client.ok("blockdev-backup", device="d2", target="t2", sync="full", job_id="k", **{"x-perf": {"use-copy-range": True}})
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED", device="k")["data"]
    assert (world.folder / "t2.raw").read_bytes() == other
    assert world.stalled() == 16
    world.go_on()
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED", device="j")["data"]
    client.ok("quit")
    assert world.daemon.wait()[0] == 0
    assert (world.folder / "t.raw").read_bytes() == world.old


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_mirror(world, how):
    """FEATURES 11.029: while the copies of a mirror stand still, what drains the source is answered, guests read and write anywhere, and the job can be cancelled; when they go on, the
    copy has what was written meanwhile"""
    client, guest = world.client, world.guest()
    world.mirror()
    client.ok("block-dirty-bitmap-add", node="d", name="b")                    # drains it
    assert guest.pread(4096, 0) == world.old[:4096]
    for at in (0, MIB, SIZE - MIB):
        guest.pwrite(b"x" * 4096, at)
    now = bytearray(world.old)
    for at in (0, MIB, SIZE - MIB):
        now[at:at + 4096] = b"x" * 4096
    if how == "cancelled":
        client.ok("block-job-cancel", device="j", force=True)
        client.wait("BLOCK_JOB_CANCELLED")
        assert world.stall.exists() and guest.pread(4096, MIB) == b"x" * 4096
    world.go_on()
    if how == "completed":
        client.wait("BLOCK_JOB_READY", device="j")
        client.ok("job-complete", id="j")
        client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
        assert "error" not in client.ok("query-jobs")[0]
    guest.shutdown()
    client.ok("quit")
    assert world.daemon.wait()[0] == 0
    assert (world.folder / "d.raw").read_bytes() == now
    assert how == "cancelled" or (world.folder / "t.raw").read_bytes() == now
