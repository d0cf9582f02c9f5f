# SPDX-License-Identifier: MIT
"""byre compact (G.010), offline and of a disk in use: job x-byre-compact, its verbs, progress and results."""
import json
import os
import random
import signal
import subprocess
import threading
import time

import pytest

from lib import peers, run, wait
from qmp_client import Qmp


CS = 65536
CLUSTERS = 400


def holes(path, options="", clusters=CLUSTERS):
    """Every cluster written, two thirds of them discarded again; what is left, by cluster"""
    run.byre("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, clusters * CS)
    rng = random.Random(7)
    kept = {i: i % 250 + 1 for i in range(clusters) if rng.random() < 1 / 3}
    commands = [f"write -q -P {i % 250 + 1} {i * CS} {CS}" for i in range(clusters)]
    commands += [f"discard -q {i * CS} {CS}" for i in range(clusters) if i not in kept]
    peers.need("qemu-io")
    subprocess.run(["qemu-io", "-d", "unmap", "-f", "qcow2", str(path)], input="\n".join(commands), text=True, check=True, stdout=subprocess.DEVNULL)
    return kept


def is_kept(path, kept, clusters=CLUSTERS):
    commands = [c for i in range(clusters) for c in ("-c", f"read -q -P {kept.get(i, 0)} {i * CS} {CS}")]
    for at in range(0, len(commands), 200):
        run.byre("io", "-r", "-f", "qcow2", *commands[at:at + 200], path)


def small_enough(path, kept):
    return os.stat(path).st_size <= (len(kept) + 8) * CS


def test_offline(tmp_path):
    """G.010: the file becomes as small as what it holds; said in words and as JSON"""
    path = tmp_path / "d.qcow2"
    kept = holes(path)
    before = os.stat(path).st_size
    res = json.loads(run.byre("compact", "--output=json", path).out)
    assert small_enough(path, kept) and before > CLUSTERS * CS
    assert res["length-before"] == before and res["length-after"] <= os.stat(path).st_size + CS and res["bytes-moved"] > 0
    assert res["filename"] == str(path) and res["format"] == "qcow2" and res["bytes-zeroed"] == 0
    is_kept(path, kept)
    run.qemu_img("check", path)
    again = run.byre("compact", path).out
    assert "moved: 0 B" in again and "file length: " in again and "disk size: " in again
    assert run.byre("compact", "-q", path).out == ""


def test_zeros(tmp_path):
    """Clusters of zeros give their space up, unless they shall not be looked for; a backing file does not show through"""
    base, path = tmp_path / "b.qcow2", tmp_path / "d.qcow2"
    run.byre("create", "-q", "-f", "qcow2", base, "4M")
    run.byre("io", "-c", "write -q -P 9 0 4M", base)
    run.byre("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    peers.need("qemu-io")
    run.qemu_io(path, "write -q -P 1 0 1M", "write -q -P 0 1M 2M")
    assert json.loads(run.byre("compact", "--keep-zeros", "--output=json", path).out)["bytes-zeroed"] == 0
    res = json.loads(run.byre("compact", "--output=json", path).out)
    assert res["bytes-zeroed"] == 2 << 20 and os.stat(path).st_size < 2 << 20
    run.byre("io", "-r", "-c", "read -q -P 1 0 1M", "-c", "read -q -P 0 1M 2M", "-c", "read -q -P 9 3M 1M", path)
    run.qemu_img("check", path)


def test_refusals(tmp_path, byre_serve):
    """What cannot be compacted is told, and left alone"""
    raw, data, path = tmp_path / "r.raw", tmp_path / "e.qcow2", tmp_path / "d.qcow2"
    run.byre("create", "-q", "-f", "raw", raw, "1M")
    assert "raw have nothing to compact" in run.byre("compact", "-f", "raw", raw, code=1).err
    run.byre("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'x.raw'}", data, "1M")
    assert "nothing to compact" in run.byre("compact", data, code=1).err
    run.byre("create", "-q", "-f", "qcow2", path, "1M")
    server = byre_serve(path)
    assert "lock" in run.byre("compact", path, code=1).err
    assert "opened the image" in run.byre("compact", "--control", server.control, "-f", "qcow2", code=1).err
    assert "no disk 'x'" in run.byre("compact", "--control", server.control, "x", code=1).err
    assert "--control" in run.byre("compact", "--speed=1M", path, code=1).err
    reading = byre_serve(data, "--read-only")
    assert "read-only" in run.byre("compact", "--control", reading.control, code=1).err


def test_damage(tmp_path):
    """C2: an image with errors is not touched"""
    path = tmp_path / "d.qcow2"
    holes(path, clusters=40)
    with open(path, "r+b") as f:
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big"))
        l2 = int.from_bytes(f.read(8), "big") & 0x00fffffffffffe00
        f.seek(l2)
        entries = [f.read(8) for _ in range(40)]
        used = [i for i, e in enumerate(entries) if any(e)]
        f.seek(l2 + 8 * used[0])
        f.write(entries[used[1]])
    before = path.read_bytes()
    assert "errors were found" in run.byre("compact", path, code=1).err
    after = path.read_bytes()
    assert after[l2:l2 + CS] == before[l2:l2 + CS]


def connect(server):
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    return handle


class Guest(threading.Thread):
    """Writes, discards and zeroes parts of its own of the disk, and reads what it has written"""

    def __init__(self, server, first, count, stop, seed):
        super().__init__()
        self.handle, self.first, self.count, self.stop, self.rng = connect(server), first, count, stop, random.Random(seed)
        self.holds, self.broken, self.ops = {}, None, 0

    def one(self):
        i = self.first + self.rng.randrange(self.count)
        what = self.rng.randrange(8)
        if what == 0:
            self.handle.trim(CS, i * CS)
            self.holds.pop(i, None)
        elif what < 4:
            at, fill = self.rng.randrange(16), self.rng.randrange(1, 256)
            self.handle.pwrite(bytes([fill]) * 4096, i * CS + at * 4096)
            self.holds.setdefault(i, {})[at] = fill
        else:
            for at, fill in list(self.holds.get(i, {}).items()):
                if self.handle.pread(4096, i * CS + at * 4096) != bytes([fill]) * 4096:
                    raise AssertionError(f"cluster {i} page {at} does not hold {fill}")
        if self.rng.randrange(100) == 0:
            self.handle.flush()
        self.ops += 1

    def run(self):
        try:
            while not self.stop.is_set():
                self.one()
            self.stop_checks()
        except Exception as e:       # told at the end
            self.broken = e

    def stop_checks(self):
        for i, pages in self.holds.items():
            for at, fill in pages.items():
                assert self.handle.pread(4096, i * CS + at * 4096) == bytes([fill]) * 4096


@pytest.mark.parametrize("options", ["", "extended_l2=on", "lazy_refcounts=on,cluster_size=4096"])
def test_beside_guests(tmp_path, byre_serve, options):
    """G.010 while the disk is in use: guests find what they wrote, the rest stays, and the file shrinks each time"""
    path = tmp_path / "d.qcow2"
    kept = holes(path, options)
    server = byre_serve(path)
    stop = threading.Event()
    guests = [Guest(server, 0, 60, stop, 1), Guest(server, CLUSTERS - 60, 60, stop, 2)]
    for g in guests:
        g.start()
    try:
        for n in range(6):
            res = json.loads(run.byre("compact", "--control", server.control, "--output=json", *(["--keep-zeros"] if n % 2 else [])).out)
            assert res["filename"] == str(path)
    finally:
        stop.set()
        for g in guests:
            g.join()
    assert not [g.broken for g in guests if g.broken] and all(g.ops > 20 for g in guests)
    assert server.stop() == 0
    run.qemu_img("check", path)
    middle = {i: v for i, v in kept.items() if 60 <= i < CLUSTERS - 60}
    commands = [c for i in range(60, CLUSTERS - 60) for c in ("-c", f"read -q -P {middle.get(i, 0)} {i * CS} {CS}")]
    run.byre("io", "-r", "-f", "qcow2", *commands, path)
    run.byre("compact", path)
    assert os.stat(path).st_size <= (len(middle) + 120 + 30) * CS
    run.qemu_img("check", path)


def do(qmp, command, **arguments):
    answer = qmp.ask(command, **arguments)
    assert "return" in answer, answer
    return answer["return"]


def wait_status(qmp, job, status):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = [j for j in do(qmp, "query-jobs") if j["id"] == job]
        if found and found[0]["status"] == status:
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"{job} is not {status}: {qmp.do('query-jobs')}")


def test_verbs(tmp_path, byre_serve):
    """The job is slowed down, paused, resumed and cancelled; nothing else that moves tables begins meanwhile"""
    path = tmp_path / "d.qcow2"
    kept = holes(path)
    server = byre_serve(path)
    qmp = Qmp(server.control)
    do(qmp, "x-byre-compact", device="disk0", job_id="c", speed=1 << 20, auto_dismiss=False)
    assert wait_status(qmp, "c", "running")["type"] == "x-byre-compact"
    do(qmp, "job-pause", id="c")
    at = wait_status(qmp, "c", "paused")["current-progress"]
    do(qmp, "x-byre-compact", node_name="disk0", job_id="c2", auto_dismiss=False)
    assert "compact" in wait_status(qmp, "c2", "concluded")["error"] or "scrub" in wait_status(qmp, "c2", "concluded")["error"]
    assert "error" in qmp.ask("block_resize", node_name="disk0", size=CLUSTERS * CS * 2)
    handle = connect(server)
    handle.pwrite(b"x" * 4096, (CLUSTERS - 1) * CS)      # a job that stands still holds nobody up
    assert handle.pread(4096, (CLUSTERS - 1) * CS) == b"x" * 4096
    handle.flush()
    assert wait_status(qmp, "c", "paused")["current-progress"] == at
    do(qmp, "job-resume", id="c")
    wait_status(qmp, "c", "running")
    do(qmp, "job-cancel", id="c")
    done = wait_status(qmp, "c", "concluded")
    assert done["error"] and done["x-byre-compact"]["length-before"] > CLUSTERS * CS
    do(qmp, "job-dismiss", id="c")
    do(qmp, "job-dismiss", id="c2")
    for arguments in ({}, {"device": "disk0", "node_name": "disk0"}, {"device": "x"}, {"device": "disk0", "speed": -1}):
        assert "error" in qmp.ask("x-byre-compact", **arguments)
    qmp.close()
    res = run.byre("compact", "--control", server.control, "--progress=json", "disk0")
    lines = [json.loads(line) for line in res.err.splitlines()]
    assert lines and "moved: " in res.out
    assert server.stop() == 0
    kept.pop(CLUSTERS - 1, None)
    is_kept(path, kept, CLUSTERS - 1)
    assert os.stat(path).st_size <= (len(kept) + 10) * CS
    run.qemu_img("check", path)


@pytest.mark.parametrize("served", [False, True])
def test_a_signal(tmp_path, byre_serve, served):
    """SIGINT ends it, exit code 1; the image is whole"""
    path = tmp_path / "d.qcow2"
    kept = holes(path)
    server = byre_serve(path) if served else None
    args = ["--control", str(server.control), "--speed=256k"] if served else [str(path)]
    # a shell starts what runs in the background with SIGINT ignored
    p = subprocess.Popen([str(run.BYRE), "compact", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until = time.monotonic() + 30
    while served and not json.loads(run.byre("job", "--output=json", server.control, "list").out):
        assert time.monotonic() < until
    if served:
        wait.catches(p, signal.SIGINT)
    time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode in ((1,) if served else (0, 1, -signal.SIGINT)), (out, err)
    if served:
        assert server.stop() == 0
    is_kept(path, kept)
    run.qemu_img("check", path)
