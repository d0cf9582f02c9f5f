# SPDX-License-Identifier: MIT
"""kill -9 of a server while `blockdev-create` makes an image and a guest writes to another: at random moments and when the job has concluded; and at each
call that changes a file (Q28, J5; FEATURES 8.012). Of the kills of each case a third is behind the event; with SOAK=1 in the environment 50.

The disk is never the worse for it. What the file holds is the image that was there before, as it was; or none, by its first bytes; or the new one, whole. When
the job has concluded it is the new one. Whatever was left, the next job makes the image there.
"""
import os
import random
import time
import zlib

import kill_jobs
import pytest
from lib import images, run

MOMENTS = (kill_jobs.RANDOM, kill_jobs.COMPLETED, kill_jobs.RANDOM)
OLD_SIZE = 3 << 20
SECRET = ("--object", "secret,id=s,data=one")
MAGIC = {b"QFI\xfb": "qcow2", b"QED\0": "qed", b"LUKS": "luks"}
# Options, and whether an image is there before
CASES = {
    "full": ({"driver": "qcow2", "preallocation": "full"}, False),
    "over-old": ({"driver": "qcow2", "cluster-size": 4096, "preallocation": "metadata"}, True),
    "overlay": ({"driver": "qcow2", "backing-file": "disk", "backing-fmt": "qcow2", "extended-l2": True}, True),
    "data-file": ({"driver": "qcow2", "data-file": "d", "preallocation": "full"}, False),
    "qed": ({"driver": "qed", "cluster-size": 4096, "table-size": 16}, True),
    "luks": ({"driver": "luks", "key-secret": "s", "iter-time": 10, "preallocation": "full"}, True),
    "file": ({"driver": "file", "preallocation": "full"}, False),
}


class Disk(kill_jobs.Chain):
    def __init__(self, folder, rng, case, **small):
        super().__init__(folder, rng, {"cluster_size": 65536}, **small)
        self.options, self.over = CASES[case]
        self.driver, self.path, self.old = self.options["driver"], self.work / "new", None
        if self.over:
            images.create(self.first / "new", OLD_SIZE, fmt="qcow2", cluster_size=4096)
            kill_jobs.fill(self.first / "new", rng, "qcow2", OLD_SIZE, 1 << 20)
            self.old = self.read(self.first / "new")

    def begin(self):
        """Nodes and the job; returns when it has been asked for."""
        options = {"size": self.size, **self.options}
        if self.driver == "file":
            options["filename"] = str(self.path)
        else:
            for node, name in (("f", "new"), ("d", "data")):
                if not (self.work / name).exists():
                    (self.work / name).write_bytes(b"")
                self.ask("blockdev-add", driver="file", node_name=node, filename=str(self.work / name))
            options["file"] = "f"
        self.ask("object-add", qom_type="secret", id="s", data="one")
        self.ask("blockdev-create", job_id="j", options=options)

    def ask(self, command, **arguments):
        answer = self.client.ask(command, **arguments)
        if answer is None:
            raise kill_jobs.Died(self.server.output)
        assert "return" in answer, answer
        return answer["return"]

    def concluded(self):
        while True:
            event = self.wait(("JOB_STATUS_CHANGE",))
            if event["data"] == {"id": "j", "status": "concluded"}:
                break
        job = [j for j in self.ask("query-jobs") if j["id"] == "j"]
        assert job and "error" not in job[0], job

    def free(self):
        self.wait_unlocked()
        for name in ("new", "data"):
            if (self.work / name).exists():
                images.wait_unlocked(self.work / name)

    def made(self):
        """"old", "new", or "none"."""
        if not self.path.exists():
            return "none"
        with open(self.path, "rb") as f:
            magic = MAGIC.get(f.read(4))
        if self.driver == "file":
            assert not any(self.path.read_bytes()), "a new file holds something"
            return "new" if os.path.getsize(self.path) == self.size else "none"
        if magic is None:
            return "none"
        if magic == "luks":
            return self.whole_luks()
        size = run.qemu_img("info", "-U", "--output=json", "-f", magic, self.path).json["virtual-size"]
        if size == OLD_SIZE and self.old is not None:
            assert magic == "qcow2" and self.read(self.path) == self.old, "the image that was there has changed"
            run.qemu_img("check", self.path)
            return "old"
        assert (magic, size) == (self.driver, self.size)
        content = self.read(self.work / "disk") if "backing-file" in self.options else bytes(size)
        assert self.read(self.path, magic) == content, "the new image is not empty"
        run.qemu_img("check", "-f", magic, self.path)
        run.byre("check", "-f", magic, self.path)
        return "new"

    def whole_luks(self):
        """Its key opens it; what it shows was never written."""
        out = self.folder / "content"
        run.qemu_img("convert", *SECRET, "--image-opts", f"driver=luks,key-secret=s,file.filename={self.path}", "-O", "raw", out)
        size = os.path.getsize(out)
        out.unlink()
        assert size == self.size
        return "new"

    def again(self, load=True):
        self.serve()
        self.begin()
        self.concluded()
        self.client.close()
        assert self.server.stop() == 0, self.server.output
        assert self.made() == "new"
        self.judge(load)


@pytest.mark.timeout(120 + 20 * len(kill_jobs.rounds(MOMENTS)))
@pytest.mark.parametrize("case", ["full", "overlay", "luks", "file"])
def test_killed(tmp_path, case):
    rng = random.Random(zlib.crc32(case.encode()))
    disk = Disk(tmp_path, rng, case, filled=4 << 20)
    tally = kill_jobs.Tally(f"create {case}")
    for round_number, moment in enumerate(kill_jobs.rounds(MOMENTS)):
        disk.renew()
        disk.serve()
        writers = disk.load(rng)
        time.sleep(0.1)
        try:
            disk.begin()
            if moment == kill_jobs.COMPLETED:
                disk.concluded()
            else:
                time.sleep(rng.choice([0, rng.uniform(0, 0.01), rng.uniform(0, 0.1)]))
        finally:
            disk.kill()
        for writer in writers:
            writer.end()
        disk.free()
        tally.add(moment, disk.record)
        disk.judge()
        found = disk.made()
        assert found == "new" if moment == kill_jobs.COMPLETED else found in ("old", "none", "new"), found
        if round_number % 5 == 0:
            disk.again()
            tally.restarted()
    tally.write()


def dies_at(disk, n):
    """Does the server die at its n-th call that changes a file, before the job has concluded?"""
    try:
        disk.serve(env={"LD_PRELOAD": kill_jobs.kill_snap.KILL_AT, "KILL_AT": str(n), "BYRE_BACKEND": "threads", **({"KILL_PART": "1"} if n % 2 else {})})
        disk.begin()
        disk.concluded()
        return False
    except (run.Failed, kill_jobs.Died):
        return True
    finally:
        disk.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", ["over-old", "overlay", "data-file", "qed", "luks"])
def test_every_call(tmp_path, case):
    disk = Disk(tmp_path, random.Random(7), case, size=4 << 20, filled=128 << 10)
    n, found, killed = 0, {"old": 0, "none": 0, "new": 0}, True
    while killed:
        n += 1
        disk.renew()
        killed = dies_at(disk, n)
        disk.free()
        disk.judge(load=False)
        made = disk.made()
        found[made] += 1
        assert killed or made == "new", n
        if killed and n % 4 == 0:
            disk.again(load=False)
    assert n > 3 and found["none"] and (not disk.over or found["old"]), (n, found)
