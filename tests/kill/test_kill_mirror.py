# SPDX-License-Identifier: MIT
"""kill -9 of a server while a disk is mirrored, or committed into a layer below, and a guest writes: at random moments, at BLOCK_JOB_READY and at
BLOCK_JOB_COMPLETED (J1, J5; G.027, G.028). 15 kills for each case, five of each kind; with SOAK=1 in the environment 50.

Before the end the disk is the source, whatever the target holds; from BLOCK_JOB_COMPLETED on it is the target, which holds what was acknowledged.
"""
import os
import random
import shutil
import time
import zlib

import kill_jobs
import pytest
from lib import run

MOMENTS = (kill_jobs.RANDOM, kill_jobs.READY, kill_jobs.COMPLETED)
CASES = {
    "background": ("drive-mirror", {"sync": "full"}, "copy", {"cluster_size": 65536}),
    "blocking": ("drive-mirror", {"sync": "full", "copy_mode": "write-blocking"}, "copy", {"cluster_size": 4096}),
    "top-auto": ("drive-mirror", {"sync": "top", "converge": "auto", "deadline": 10}, "copy", {"cluster_size": 65536, "extended_l2": True}),
    "raw": ("drive-mirror", {"sync": "full", "format": "raw", "copy_mode": "write-blocking"}, "copy", {"cluster_size": 65536}),
    "none": ("drive-mirror", {"sync": "none"}, "copy", {"cluster_size": 65536}),
    "none-blocking": ("drive-mirror", {"sync": "none", "copy_mode": "write-blocking"}, "copy", {"cluster_size": 65536}),
    "bitmap": ("drive-mirror", {"sync": "bitmap", "bitmap": "b", "bitmap_mode": "on-success", "mode": "existing", "format": "qcow2"}, "copy", {"cluster_size": 65536}),
    "active-commit": ("block-commit", {}, "base", {"cluster_size": 65536}),
    "active-blocking": ("block-commit", {"copy_mode": "write-blocking"}, "base", {"cluster_size": 4096}),
}


class Disk(kill_jobs.Chain):
    name = "disk"

    def copy_before(self, rng):
        """What a bitmap counts from: the target holds the disk of that moment."""
        run.qemu_img("convert", "-f", "qcow2", "-O", "qcow2", self.first / "disk", self.first / "copy")
        run.qemu_img("bitmap", "--add", self.first / "disk", "b")
        kill_jobs.fill(self.first / "disk", rng, "qcow2")
        self.content = self.read(self.first / "disk")

    def read(self, path, fmt="qcow2"):
        fmt = "raw" if path.name == "copy" and self.raw else fmt
        return super().read(path, fmt)

    def judge(self):
        """The disk, wherever it is now, holds what the guest may expect."""
        content = self.read(self.work / self.name)
        self.record.verify(lambda off, length: content[off:off + length])
        touched = self.record.later
        for s in range(0, kill_jobs.SIZE // 512):
            if s not in touched:
                assert content[s * 512:(s + 1) * 512] == self.content[s * 512:(s + 1) * 512], f"sector {s} was never written by the guest, and has changed"
        self.record.take_stock(lambda off, length: content[off:off + length])
        for name in ("base", "mid", "top", "disk", "copy"):
            if (self.work / name).exists() and not (name == "copy" and (self.raw or self.name != "copy")):
                kill_jobs.kill_snap.judge(self.work / name)


def start(disk, command, arguments):
    if command == "drive-mirror":
        arguments = {**arguments, "target": os.fspath(disk.work / "copy")}
    disk.start(command, **arguments)


def finish(disk, rng, command, arguments, end):
    """The job again, from whatever was left, under load and to its end."""
    disk.serve()
    writers = disk.load(rng)
    if (disk.work / "copy").exists():
        (disk.work / "copy").unlink()                        # perhaps not even a whole header
    if "bitmap" in arguments:
        shutil.copy(disk.first / "copy", disk.work / "copy")
    start(disk, command, {**arguments, "copy_mode": "write-blocking"})
    disk.wait((kill_jobs.READY,))
    assert disk.client.ask("block-job-complete", device="j") == {"return": {}}
    event = disk.wait()
    assert event["event"] == kill_jobs.COMPLETED and "error" not in event["data"], event
    disk.name = end
    time.sleep(0.1)
    for writer in writers:
        writer.stop()
    disk.client.close()
    assert disk.server.stop() == 0, disk.server.output
    disk.record.settle_acknowledged()
    disk.judge()


@pytest.mark.timeout(120 + 20 * len(kill_jobs.rounds(MOMENTS)))
@pytest.mark.parametrize("case", CASES)
def test_killed(tmp_path, case):
    command, arguments, end, options = CASES[case]
    rng = random.Random(zlib.crc32(case.encode()))
    disk = Disk.__new__(Disk)
    disk.raw = arguments.get("format") == "raw"
    disk.__init__(tmp_path, rng, options)
    if "bitmap" in arguments:
        disk.copy_before(rng)
    tally = kill_jobs.Tally(case)
    for round_number, kind in enumerate(kill_jobs.rounds(MOMENTS)):
        disk.renew()
        disk.name = "disk"
        disk.serve()
        writers = disk.load(rng)
        try:
            start(disk, command, arguments)
            if kind == kill_jobs.RANDOM:
                time.sleep(rng.uniform(0, 0.6))
            else:
                if "blocking" not in str(arguments) and "auto" not in str(arguments):
                    time.sleep(0.2)
                    if command == "drive-mirror":
                        disk.client.ask("block-job-change", id="j", type="mirror", copy_mode="write-blocking")
                disk.wait(("BLOCK_JOB_READY",))
            if kind == kill_jobs.COMPLETED:
                assert disk.client.ask("block-job-complete", device="j") == {"return": {}}
                event = disk.wait()
                assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"], event
                disk.name = end
                if round_number % 2:
                    time.sleep(rng.uniform(0, 0.2))          # the guest goes on over there
        finally:
            disk.kill()
        for writer in writers:
            writer.end()
        disk.wait_unlocked()
        tally.add(kind, disk.record)
        disk.judge()
        if round_number % 6 == 0:
            finish(disk, rng, command, arguments, end)
            tally.restarted()
    tally.write()
