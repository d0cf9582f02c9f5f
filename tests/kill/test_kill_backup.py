# SPDX-License-Identifier: MIT
"""kill -9 of a server while a disk is backed up and a guest writes: at random moments, and at BLOCK_JOB_COMPLETED (J4, J5; H9, where the peer loses
the backup each time; FEATURES 9.060, 9.061, 9.081). Of the kills of each case a third is at the event.

The disk is never the worse for it. From the event on the target file is the disk at the moment of the start. What a bitmap says after the kill is enough
for the next increment: the full backup, the increment that was completed, if it was, and the next one are the disk.

With sync=none there is no such event, but one when it has been cancelled: then what guests had overwritten until somebody asked for it is in the target as it
was, and over the disk the target shows the moment of the start.
"""
import random
import time
import zlib

import kill_jobs
import pytest
from lib import images, run

MOMENTS = (kill_jobs.RANDOM, kill_jobs.COMPLETED, kill_jobs.RANDOM)
CANCELLED = "BLOCK_JOB_CANCELLED"
CASES = {
    "none": ({"sync": "none"}, {"cluster_size": 65536}, {"cluster_size": 4096}),
    "full": ({"sync": "full"}, {"cluster_size": 65536}, {}),
    "full-4k": ({"sync": "full"}, {"cluster_size": 65536}, {"cluster_size": 4096}),
    "top": ({"sync": "top"}, {"cluster_size": 65536, "extended_l2": True}, {"backing": "top", "backing_fmt": "qcow2"}),
    "compressed": ({"sync": "full", "compress": True}, {"cluster_size": 65536}, {}),
    "by-bitmap": ({"sync": "bitmap", "bitmap": "b", "bitmap_mode": "always"}, {"cluster_size": 65536}, {}),
    "increment": ({"sync": "incremental", "bitmap": "b"}, {"cluster_size": 65536}, {}),
}


class Disk(kill_jobs.Chain):
    def __init__(self, folder, rng, case):
        self.arguments, options, self.how = CASES[case]
        super().__init__(folder, rng, options)
        self.by_bitmap = "bitmap" in self.arguments
        self.full = folder / "full.raw"
        if self.by_bitmap:
            self.full.write_bytes(self.content)
            run.qemu_img("bitmap", "--add", self.first / "disk", "b")
            kill_jobs.fill(self.first / "disk", rng, "qcow2")
            self.content = self.read(self.first / "disk")

    def start_backup(self, name):
        images.create(self.work / name, kill_jobs.SIZE, unchecked=True, **self.how)
        answer = self.client.ask("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": str(self.work / name)})
        assert answer == {"return": {}}, answer
        self.start("blockdev-backup", target=name, speed=0 if name == "again" else 80 << 20, **self.arguments)

    def completed(self):
        event = self.wait()
        assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"], event

    def put_over(self, name, below, fmt):
        run.qemu_img("rebase", "-u", "-b", below, "-F", fmt, self.work / name)
        return self.work / name

    def again(self, last):
        """Once more from where it is now, to the end; the result is the disk."""
        now = self.read(self.work / "disk")
        self.serve()
        self.start_backup("again")
        self.completed()
        assert self.server.stop() == 0
        self.client.close()
        if self.by_bitmap:
            self.put_over("again", *last)
        assert self.read(self.work / "again") == now
        run.qemu_img("check", self.work / "again")


def judge_target(disk, last):
    """The backup is complete, and is the last one from now on: it, and what lies below it, are the disk as it was at the start."""
    if disk.by_bitmap:
        last = (disk.put_over("copy", *last), "qcow2")
    kill_jobs.kill_snap.judge(disk.work / "copy")                # leaks at most
    assert disk.read(disk.work / "copy") == disk.content
    return last


@pytest.mark.timeout(120 + 20 * len(kill_jobs.rounds(MOMENTS)))
@pytest.mark.parametrize("case", [c for c in CASES if c != "none"])
def test_killed(tmp_path, case):
    rng = random.Random(zlib.crc32(case.encode()))
    disk = Disk(tmp_path, rng, case)
    tally = kill_jobs.Tally(f"backup {case}")
    for round_number, kind in enumerate(kill_jobs.rounds(MOMENTS)):
        at_the_event = kind == kill_jobs.COMPLETED
        disk.renew()
        disk.serve()
        disk.start_backup("copy")
        writers = disk.load(rng)
        try:
            if at_the_event:
                disk.completed()
            else:
                time.sleep(rng.uniform(0.1, 0.5))
        finally:
            disk.kill()
        for writer in writers:
            writer.end()
        disk.wait_unlocked()
        tally.add(kind, disk.record)
        disk.judge()
        last = (disk.full, "raw")
        if at_the_event:
            last = judge_target(disk, last)
        elif disk.said("BLOCK_JOB_COMPLETED"):                   # the moment came late
            last = judge_target(disk, last)
        if round_number % 5 == 0 or (disk.by_bitmap and at_the_event):
            disk.again(last)
            tally.restarted()
    tally.write()


def kept(path):
    """Sectors that the target itself holds."""
    found = set()
    for piece in run.qemu_img("map", "--output=json", "-f", "qcow2", path).json:
        if piece["depth"] == 0 and piece.get("present", True):
            found.update(range(piece["start"] // 512, (piece["start"] + piece["length"]) // 512))
    return found


def judge_kept(disk, overwritten):
    """All that is in the target is as it was; all that was overwritten is in it."""
    have, content = kept(disk.work / "copy"), disk.read(disk.work / "copy")
    for s in have:
        assert content[s * 512:(s + 1) * 512] == disk.content[s * 512:(s + 1) * 512], f"sector {s} of the target is not what the disk held at the start"
    assert not overwritten - have, f"{len(overwritten - have)} sectors were overwritten and are not in the target: {sorted(overwritten - have)[:8]}"


def cancel(disk):
    assert disk.client.ask("block-job-cancel", device="j") == {"return": {}}
    event = disk.wait()
    assert event["event"] == CANCELLED and "error" not in event["data"], event


def moment_of_start(disk, rng):
    """Once more, with guests, to its end: the target over the disk is the disk at the start."""
    before = disk.read(disk.work / "disk")
    disk.serve()
    disk.start_backup("again")
    writers = disk.load(rng)
    time.sleep(0.2)
    for writer in writers:
        writer.stop()
    cancel(disk)
    disk.client.close()
    assert disk.server.stop() == 0
    disk.record.settle_acknowledged()
    disk.judge()
    run.qemu_img("check", disk.work / "again")
    disk.put_over("again", "disk", "qcow2")
    assert disk.read(disk.work / "again") == before


@pytest.mark.timeout(120 + 20 * len(kill_jobs.rounds(MOMENTS)))
def test_killed_none(tmp_path):
    rng = random.Random(9)
    disk = Disk(tmp_path, rng, "none")
    tally = kill_jobs.Tally("backup none")
    for round_number, kind in enumerate(kill_jobs.rounds((kill_jobs.RANDOM, CANCELLED, kill_jobs.RANDOM))):
        disk.renew()
        disk.serve()
        disk.start_backup("copy")
        writers = disk.load(rng)
        overwritten = set()
        try:
            time.sleep(rng.uniform(0.1, 0.5))
            if kind == CANCELLED:
                overwritten = disk.record.changed()
                cancel(disk)
        finally:
            disk.kill()
        for writer in writers:
            writer.end()
        disk.wait_unlocked()
        tally.add(kind, disk.record)
        disk.judge()
        images.wait_unlocked(disk.work / "copy")
        kill_jobs.kill_snap.judge(disk.work / "copy")            # leaks at most
        judge_kept(disk, overwritten)
        if round_number % 5 == 0:
            moment_of_start(disk, rng)
            tally.restarted()
    tally.write()
