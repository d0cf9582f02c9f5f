# SPDX-License-Identifier: MIT
"""The founding scenario: a disk moves to a target that takes a tenth of what the guest writes, while the guest goes on (G.027, G.028).

Guests: `hot` rewrites 1 KiB in a loop for ever; `random` writes 4 KiB at random places of the whole disk, several at a time, as fast as it can.
The target is an NBD server of others (nbdkit) with a limited rate. The job is a mirror or an active commit, with converge=auto.

    founding.py [--seconds N] [--json]       # all four, and 100 changes of the copy mode; N: how long the target alone would need
"""
import argparse
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "cli")]

from lib import images, peers, run, wait  # noqa: E402
from qmp_client import Qmp  # noqa: E402

MAX_SLOWDOWN, MAX_HOLD_MS = 20, 1000
SLACK_MS = 500                  # of a busy machine, in what a guest sees: the daemon's own measure has none
BLOCK = 4096
BEFORE = 3.0


class Guest(threading.Thread):
    """Writes for ever; keeps what it was told, and how long each write took."""

    def __init__(self, uri, size, kind, cap=0, seed=1):
        super().__init__(daemon=True)
        self.nbd = peers.need_module("nbd")
        self.kind, self.size, self.rng = kind, size, random.Random(seed)
        self.length, self.depth = (1024, 1) if kind == "hot" else (BLOCK, 8)
        self.cap = cap                        # bytes per second; 0: as fast as it can
        self.done = []                        # (when, how long, bytes)
        self.acked, self.flying, self.number = {}, {}, 0
        self.quiet, self.fault = threading.Event(), None
        self.handle = self.nbd.NBD()
        self.handle.connect_uri(uri)
        self.start()

    def payload(self, number, place):
        return struct.pack(">QQ", number, place) * (self.length // 16)

    def _send(self):
        place = self.size // 2 // self.length if self.kind == "hot" else self.rng.randrange(self.size // self.length)
        if place in self.flying:              # nobody knows the order of two at the same place
            return
        self.number += 1
        number, begin = self.number, time.monotonic()
        self.flying[place] = number

        def ended(error):
            now = time.monotonic()
            self.flying.pop(place)
            if error.value:
                self.fault = f"write {number} at {place * self.length}: error {error.value}"
            else:
                self.acked[place] = number
                self.done.append((now, now - begin, self.length))
            return 1
        self.handle.aio_pwrite(self.nbd.Buffer.from_bytearray(bytearray(self.payload(number, place))), place * self.length, completion=ended)

    def run(self):
        try:
            begin, sent = time.monotonic(), 0
            while not self.quiet.is_set():
                now = time.monotonic()
                if self.cap:
                    begin = max(begin, now - 0.2 - sent / self.cap)     # what was not sent is not made up for
                while len(self.flying) < self.depth and (not self.cap or sent <= (now - begin) * self.cap):
                    self._send()
                    sent += self.length
                self.handle.poll(100 if len(self.flying) == self.depth else 1)
            while self.flying:
                self.handle.poll(1000)
            self.handle.flush()
        except Exception as e:                # the test says what it means
            self.fault = repr(e)

    def stop(self):
        self.quiet.set()
        self.join(60)
        assert not self.is_alive() and self.fault is None, self.fault or "a guest's request never ended"

    def verify(self):
        """What was acknowledged last is there."""
        for place, number in self.acked.items():
            have = bytes(self.handle.pread(self.length, place * self.length))
            assert have == self.payload(number, place), f"{self.length} bytes at {place * self.length} are not those of write {number}: {have[:16].hex()}"
        return len(self.acked)


def rate(done, begin, end):
    return sum(n for t, _, n in done if begin <= t < end) / (end - begin)


def slowest_second(done, begin, end):
    """The least number of bytes in a window of 1 s, moved in steps of 50 ms."""
    slots = [0] * (int((end - begin) / 0.05) + 1)
    for t, _, n in done:
        if begin <= t < end:
            slots[int((t - begin) / 0.05)] += n
    windows = [sum(slots[i:i + 20]) for i in range(max(1, len(slots) - 20))]
    return min(windows)


def p99_ms(done, begin, end):
    took = sorted(d for t, d, _ in done if begin <= t < end)
    return took[min(len(took) - 1, int(len(took) * 0.99))] * 1000 if took else 0.0


class SlowServer:
    """nbdkit over a file; slow() limits what it takes per second from then on."""

    def __init__(self, folder, path):
        self.path, self.rate_file = path, folder / f"{path.name}.rate"
        self.rate_file.write_text("0\n")
        self.socket = folder / f"{path.name}.sock"
        self.process = subprocess.Popen([peers.need("nbdkit"), "-f", "-U", self.socket, "--filter=rate", "file", path, f"rate-file={self.rate_file}", "burstiness=1"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not wait.listens(self.process, self.socket):
            assert self.process.poll() is None and time.monotonic() < end, "nbdkit does not start"
            time.sleep(0.02)

    def slow(self, bytes_per_second):
        self.rate_file.write_text(f"{int(bytes_per_second * 8)}\n")

    def options(self):
        return {"driver": "nbd", "server": {"type": "unix", "path": str(self.socket)}}

    def close(self):
        self.process.kill()
        self.process.wait()


class Daemon:
    def __init__(self, folder):
        self.folder, self.log = folder, folder / "daemon.log"
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen([run.BYRE, "daemon", "--nbd-server", f"addr.type=unix,addr.path={folder}/n",
                                             "--chardev", f"socket,id=c,path={folder}/c,server=on,wait=off", "--monitor", "chardev=c"],
                                            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        end = time.monotonic() + 20
        while not all(wait.listens(self.process, folder / name) for name in "cn"):
            assert self.process.poll() is None and time.monotonic() < end, f"the daemon does not start: {self.log.read_text()}"
            time.sleep(0.02)
        self.client = Qmp(str(folder / "c"))
        self.uri = f"nbd+unix:///disk?socket={folder}/n"

    def ok(self, command, **arguments):
        answer = self.client.ask(command, **arguments)
        assert answer and "return" in answer, f"{command} {arguments}: {answer}"
        return answer["return"]

    def job(self):
        return next((j for j in self.ok("query-block-jobs") if j["device"] == "j"), None)

    def event(self, *names):
        return next((e for e in self.client.events if e["event"] in names), None)

    def stop(self):
        self.ok("quit")
        self.client.close()
        assert self.process.wait(60) == 0, self.log.read_text()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Scene:
    """A daemon, a disk of a size with a guest on it, and a target that is not slow yet."""

    def __init__(self, folder, job, kind, size, cap=0):
        self.folder, self.kind, self.size = pathlib.Path(folder), kind, size
        self.things, self.command, self.told = [], job, None
        target = images.raw_file(self.folder / "target.raw", size)
        self.server = self._own(SlowServer(self.folder, target))
        self.daemon = self._own(Daemon(self.folder))
        ok = self.daemon.ok
        ok("blockdev-add", driver="raw", node_name="target", file=self.server.options())
        if job == "mirror":
            images.create(self.folder / "disk", size)
        else:
            images.create(self.folder / "disk", size, backing=target, backing_fmt="raw")
        ok("blockdev-add", driver="qcow2", node_name="disk", file={"driver": "file", "filename": str(self.folder / "disk")}, **({} if job == "mirror" else {"backing": "target"}))
        ok("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)
        self.fill()
        self.guest = Guest(self.daemon.uri, size, kind, cap)

    def _own(self, thing):
        self.things.append(thing)
        return thing

    def fill(self):
        """The whole disk holds data, which has to be copied."""
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(self.daemon.uri)
        for off in range(0, self.size, 1 << 20):
            handle.pwrite(random.Random(off).randbytes(min(1 << 20, self.size - off)), off)
        handle.flush()
        handle.shutdown()

    def before(self):
        time.sleep(0.5)
        begin = time.monotonic()
        time.sleep(BEFORE)
        end = time.monotonic()
        self.told = {"rate": rate(self.guest.done, begin, end), "p99": p99_ms(self.guest.done, begin, end)}
        return self.told

    def start(self, **more):
        if self.command == "mirror":
            self.daemon.ok("blockdev-mirror", job_id="j", device="disk", target="target", sync="full", auto_dismiss=False, **more)
        else:
            self.daemon.ok("block-commit", job_id="j", device="disk", base_node="target", auto_dismiss=False, **more)

    def until_ready(self, within):
        """Seconds; what query-block-jobs said meanwhile is kept in self.states."""
        begin, self.states, hold = time.monotonic(), [], 0
        while True:
            job = self.daemon.job()
            if self.daemon.event("BLOCK_JOB_READY"):     # it comes with the answer at the latest
                break
            said = job["x-byre-converge"]
            hold = max(hold, said["longest-hold-us"])
            if not self.states or self.states[-1] != said["state"]:
                self.states.append(said["state"])
            took = time.monotonic() - begin
            assert took < within and job["status"] == "running", f"not ready after {took:.1f} s of {within:.1f}: {job}; {self.states}; before: {self.told}"
            assert self.guest.fault is None, self.guest.fault
            time.sleep(0.1)
        self.hold_ms = hold / 1000
        return time.monotonic() - begin

    def complete(self):
        """Over to the target; returns the pause in milliseconds."""
        self.daemon.client.events.clear()
        self.daemon.ok("block-job-complete", device="j")
        end = time.monotonic() + 60
        while not self.daemon.event("BLOCK_JOB_COMPLETED"):
            assert time.monotonic() < end and not self.daemon.event("BLOCK_JOB_CANCELLED"), self.daemon.job()
            self.daemon.ok("query-jobs")
            time.sleep(0.02)
        assert "error" not in self.daemon.event("BLOCK_JOB_COMPLETED")["data"], self.daemon.client.events
        said = self.daemon.job()["x-byre-converge"]
        self.hold_ms = max(self.hold_ms, said["longest-hold-us"] / 1000)
        self.daemon.ok("job-dismiss", id="j")
        return said["pivot-pause-us"] / 1000

    def finish(self):
        """The guest finds what it wrote, now on the target; and the target's file, read by nobody of ours, holds it."""
        self.server.slow(1 << 40)
        self.guest.stop()
        count = self.guest.verify()
        self.guest.handle.shutdown()
        self.daemon.stop()
        with open(self.server.path, "rb") as f:
            for place, number in self.guest.acked.items():
                f.seek(place * self.guest.length)
                assert f.read(self.guest.length) == self.guest.payload(number, place), f"offset {place * self.guest.length} of the target's file"
        return count

    def close(self):
        self.guest.quiet.set()
        for thing in reversed(self.things):
            thing.close()


def size_for(folder, kind, seconds):
    """A disk that a target of a tenth of this guest's rate takes so long to copy."""
    scene = Scene(folder, "mirror", kind, 8 << 20)
    try:
        mean = scene.before()["rate"]
    finally:
        scene.close()
    return max(1 << 20, min(1 << 30, int(mean / 10 * seconds) >> 16 << 16))


def move(folder, job, kind, seconds, cap=0):
    """One run; returns its figures. What is promised is asserted. cap: of the guest's bytes per second, for busy machines, which are not as fast at one
    moment as at the other."""
    folder = pathlib.Path(folder)
    for name in ("first", "run"):
        (folder / name).mkdir()
    size = size_for(folder / "first", kind, seconds) if not cap else int(cap / 10 * seconds) >> 16 << 16
    scene = Scene(folder / "run", job, kind, size, cap)
    try:
        before = scene.before()
        slow = before["rate"] / 10
        deadline = int(size / slow * 3 + 5)
        scene.server.slow(slow)
        begin = time.monotonic()
        scene.start(converge="auto", deadline=deadline, max_slowdown=MAX_SLOWDOWN, max_hold_ms=MAX_HOLD_MS)
        took = scene.until_ready(deadline)
        time.sleep(1.0)                                  # the guest goes on while it is ready
        asked = time.monotonic()
        pause = scene.complete()
        end = time.monotonic()
        done = scene.guest.done
        figures = {
            "job": job, "guest": kind, "size": size, "target_rate": slow, "deadline": deadline, "ready": took, "over_after": end - asked, "pivot_pause_ms": pause, "states": scene.states,
            "rate_before": before["rate"], "rate_during": rate(done, begin, end), "slowest_second": slowest_second(done, begin, end),
            "p99_before_ms": before["p99"], "p99_during_ms": p99_ms(done, begin, end),
            "longest_request_ms": max((d for t, d, _ in done if t >= begin), default=0) * 1000, "longest_hold_ms": scene.hold_ms}
        figures["verified"] = scene.finish()
        judge(figures)
        return figures
    finally:
        scene.close()


def judge(f):
    assert f["ready"] < f["deadline"], f
    assert f["slowest_second"] >= f["rate_before"] / MAX_SLOWDOWN, f"the guest wrote {f['slowest_second']:.0f} bytes in its slowest second: {f}"
    assert f["longest_hold_ms"] <= MAX_HOLD_MS, f
    assert f["longest_request_ms"] <= MAX_HOLD_MS + SLACK_MS, f


def switch(folder, times, pause=0.04, seconds=2.0):
    """The copy mode changes both ways mid-run, so often; nothing is lost."""
    folder = pathlib.Path(folder)
    scene = Scene(folder, "mirror", "random", 8 << 20)
    try:
        scene.server.slow((8 << 20) / seconds)
        scene.start(copy_mode="background")
        scene.hold_ms = 0
        begin, pauses = time.monotonic(), []
        for i in range(times):
            asked = time.monotonic()
            scene.daemon.ok("block-job-change", id="j", type="mirror", copy_mode=("write-blocking", "background")[i % 2])
            pauses.append(time.monotonic() - asked)
            time.sleep(pause)
        scene.daemon.ok("block-job-change", id="j", type="mirror", copy_mode="write-blocking")
        scene.server.slow(1 << 40)
        ready = scene.until_ready(60)
        stood = scene.complete()
        return {"job": "switch", "times": times, "took": time.monotonic() - begin, "ready": ready, "longest_change_ms": max(pauses) * 1000,
                "pivot_pause_ms": stood, "verified": scene.finish()}
    finally:
        scene.close()


def text(f):
    if f["job"] == "switch":
        return (f"copy mode changed {f['times']} times, each within {f['longest_change_ms']:.1f} ms; pivot pause {f['pivot_pause_ms']:.1f} ms; "
                f"{f['verified']} places right afterwards")
    mib = 1 << 20
    return (f"{f['job']:7} {f['guest']:7} {f['size'] / mib:6.1f} MiB to {f['target_rate'] / mib:5.2f} MiB/s: ready after {f['ready']:5.1f} s of {f['deadline']}; "
            f"guest {f['rate_before'] / mib:6.2f} MiB/s before, {f['rate_during'] / mib:6.2f} during, {f['slowest_second'] / mib:6.3f} in its slowest second "
            f"(allowed: {f['rate_before'] / MAX_SLOWDOWN / mib:6.3f}); p99 {f['p99_before_ms']:.2f} ms before, {f['p99_during_ms']:.1f} during; "
            f"longest request {f['longest_request_ms']:.0f} ms, longest hold {f['longest_hold_ms']:.0f} of {MAX_HOLD_MS}; over {f['over_after']:.1f} s after it was asked to be, pivot pause {f['pivot_pause_ms']:.1f} ms; "
            f"{f['verified']} places right; {' > '.join(f['states'])}")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seconds", type=float, default=15.0, help="so long the target alone would need for the disk")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    failed = 0
    rows = [(job, kind) for job in ("mirror", "commit") for kind in ("hot", "random")] + [("switch", "100")]
    for job, kind in rows:
        with tempfile.TemporaryDirectory(prefix="byre-founding-") as folder:
            try:
                f = switch(folder, int(kind)) if job == "switch" else move(folder, job, kind, args.seconds)
                print(json.dumps(f) if args.json else "ok   " + text(f), flush=True)
            except AssertionError as e:
                failed += 1
                print(f"FAIL {job} {kind}: {e}", flush=True)
    print(f"{len(rows) - failed} of {len(rows)} as promised")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
