# SPDX-License-Identifier: MIT
"""Internal snapshots of images whose programs are killed: what each may hold afterwards, and who makes and deletes them meanwhile."""
import hashlib
import os
import random
import signal
import threading
import time

import kill_disk
import kill_load
import qcow2check
import qcow2ref
from cli import qmp_client
from lib import run

qcow2check.KEPT_PER_KIND = 1 << 20                  # every finding is looked at
KILL_AT = os.path.join(os.environ.get("BYRE_BUILD") or run.TOP / "build", "tests", "kill", "kill-at.so")


def judge(path):
    """P1 by the independent reader: nothing is counted too low or used twice; a flag that does not fit its count stands at a
    cluster that has one owner and is counted too high (Q13: a leak and a flag). Returns the number of leaks."""
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        report = image.check()
    if image.header.incompatible & qcow2ref.DIRTY:      # lazy refcounts: the counts say nothing before a repair (Q12)
        return 0
    assert report.only("leak", "copied-set", "copied-clear"), str(report)[:4000]
    too_high = {f.offset: f.text for f in report.findings if f.kind == "leak"}
    for f in report.findings:
        assert f.kind != "copied-set" or too_high.get(f.offset, "").endswith(", 1 references"), f"{f}; {too_high.get(f.offset)}"
    return report.leaks


def names(path):
    """The snapshots of an image, by name."""
    return [s["name"] for s in run.qemu_img("info", "-U", "--output=json", path).json.get("snapshots", [])]


def read(path, name=None, folder=None, tool=run.qemu_img):
    """The content of the disk, or of a snapshot."""
    out = os.path.join(folder or os.path.dirname(path), "read.raw")
    tool("convert", "-f", "qcow2", *(["-l", f"snapshot.name={name}"] if name else []), "-O", "raw", path, out)
    with open(out, "rb") as f:
        data = f.read()
    os.unlink(out)
    return data


def killed_at(n, *args, part=False):
    """Runs byre; it dies at its n-th call that changes a file. Returns whether it did: otherwise it has ended well."""
    env = {"LD_PRELOAD": KILL_AT, "KILL_AT": str(n), "BYRE_BACKEND": "threads", **({"KILL_PART": "1"} if part else {})}
    return run.byre(*args, code=(0, -signal.SIGKILL), env=env).code != 0


class Snapped:
    """A snapshot, as one knows it from outside: when it was asked for, and what each sector may have held from then until it
    was there. What it holds once it was read it holds for ever."""

    def __init__(self, record):
        self.base, self.may, self.window, self.digest = record.base, record.moment(), [], None
        self.made = self.going = False

    def allowed(self):
        tags = {s: set(t) for s, t in self.may.items()}
        for op in self.window:
            for s in range(op.first, op.first + op.count):
                tags.setdefault(s, {kill_load.BASE}).add(op.tag)
        return tags

    def judge(self, data, record, name):
        digest = hashlib.blake2b(data).digest()
        if self.digest is None:
            rest = bytearray(data)
            for s, tags in self.allowed().items():
                where = slice(s * kill_load.SECTOR, (s + 1) * kill_load.SECTOR)
                assert any(data[where] == record.holds(self.base, tag, s) for tag in tags), \
                    f"snapshot {name}: sector {s} holds {record.describe(data[where], s)}; allowed: {sorted(tags)}"
                rest[where] = self.base[where]
            assert rest == self.base, f"snapshot {name}: bytes that nobody had written have changed"
            self.digest, self.base, self.may, self.window = digest, None, None, []
        assert self.digest == digest, f"snapshot {name} is not what it was"


class Record(kill_load.Record):
    """As kill_load.Record, and what a moment may show: for snapshots."""

    def __init__(self, base, number=0):
        super().__init__(base)
        self.number, self.shown, self.flying, self.windows = number, {}, {}, []

    def send(self, kind, first=0, count=0):
        op = super().send(kind, first, count)
        if count:
            with self.lock:
                self.flying[op.number] = op
                for w in self.windows:
                    w.append(op)
        return op

    def ack(self, op):
        super().ack(op)
        with self.lock:
            for s in range(op.first, op.first + op.count):
                self.shown[s] = self.shown.get(s, {kill_load.BASE}) | {op.tag} if op.kind == "trim" else {op.tag}
            self.flying.pop(op.number, None)

    def moment(self):
        """What each sector may show now; the lock is held."""
        tags = {s: set(t) for s, t in self.shown.items()}
        for op in self.flying.values():
            for s in range(op.first, op.first + op.count):
                tags.setdefault(s, {kill_load.BASE}).add(op.tag)
        return tags

    def holds(self, base, tag, sector):
        if tag == kill_load.BASE:
            return base[sector * kill_load.SECTOR:(sector + 1) * kill_load.SECTOR]
        return self._content(tag, sector)


class Refused(Exception):
    """A scrub runs, behind an image that was not closed cleanly: no snapshots meanwhile."""


class Snapper(threading.Thread):
    """Makes and deletes snapshots of a served disk, one after another, until the connection breaks."""

    def __init__(self, disk, seed):
        super().__init__(daemon=True)
        self.disk, self.rng, self.faults, self.done = disk, random.Random(seed), [], 0
        self.qmp = qmp_client.Qmp(disk.server.control)
        self.device = self.ask("query-block")[0]["device"]
        self.start()

    def ask(self, command, **arguments):
        answer = self.qmp.ask(command, **arguments)
        if answer is None:
            raise ConnectionError("the server is gone")
        if "while its scrub runs" in answer.get("error", {}).get("desc", ""):
            raise Refused
        if "return" not in answer:
            raise AssertionError(f"{command} {arguments}: {answer}")
        return answer["return"]

    def make(self):
        disk = self.disk
        disk.serial += 1
        name = f"s{disk.serial}"
        with disk.record.lock:
            s = disk.snapshots[name] = Snapped(disk.record)
            disk.record.windows.append(s.window)
        try:
            self.ask("blockdev-snapshot-internal-sync", device=self.device, name=name)
        except Refused:
            del disk.snapshots[name]
            raise
        with disk.record.lock:
            disk.record.windows = [w for w in disk.record.windows if w is not s.window]
        s.made = True

    def delete(self, name):
        s = self.disk.snapshots[name]
        s.going = True
        try:
            self.ask("blockdev-snapshot-delete-internal-sync", device=self.device, name=name)
        except Refused:
            s.going = False
            raise
        del self.disk.snapshots[name]

    def step(self):
        have = list(self.disk.snapshots)
        if len(have) < 2 or (len(have) < 5 and self.rng.randrange(2)):
            self.make()
        else:
            self.delete(self.rng.choice(have))
        self.done += 1

    def run(self):
        try:
            while True:
                try:
                    self.step()
                except Refused:
                    time.sleep(0.05)
                time.sleep(self.rng.choice([0, 0, 0.01, 0.05]))
        except (OSError, ValueError):
            pass                                  # killed: that is the point
        except BaseException as e:
            self.faults.append(repr(e))

    def end(self):
        self.join(30)
        assert not self.is_alive(), "the control socket waits for ever"
        assert not self.faults, self.faults


# name: (options of create, options of serve, backing, snapshot, second load)
GEOMETRIES = {
    "4k": ({"cluster_size": 4096}, ["--threads", "2"], False, False, "writer"),
    "64k-backing": ({"cluster_size": 65536}, ["--threads", "1"], True, False, "writer"),
    "lazy-threads": ({"cluster_size": 16384, "lazy_refcounts": True}, ["--aio", "threads"], False, False, "writer"),
    "wide": ({"cluster_size": 8192, "refcount_bits": 64}, ["--threads", "2"], False, False, "writer"),
    "extl2": ({"cluster_size": 65536, "extended_l2": True}, ["--threads", "2"], False, False, "writer"),
    "v2": ({"cluster_size": 4096, "compat": "0.10"}, [], False, False, "writer"),
}


class Disk(kill_disk.Disk):
    """A disk of which snapshots are taken. snapshots: name -> Snapped."""
    size = 64 << 20

    def __init__(self, folder, name):
        super().__init__(folder, name, GEOMETRIES)
        self.record, self.snapshots, self.serial = Record(self.base or bytes(self.size)), {}, 0

    def judge_snapshots(self, tool):
        """Those that were there are, each as it was; one that was on its way may be there."""
        here = names(self.image)
        assert len(here) == len(set(here)) and set(here) <= set(self.snapshots), here
        for name, s in list(self.snapshots.items()):
            assert name in here or not s.made or s.going, f"snapshot {name} is gone"
            if name not in here:
                del self.snapshots[name]
                continue
            s.judge(read(self.image, name, self.folder, tool), self.record, name)
            s.made, s.going = True, False

    def begin_again(self, content):
        """From here on: what the disk holds now, and requests after that."""
        self.record = Record(content, self.record.number)
