# SPDX-License-Identifier: MIT
"""The check of a disk in use (FEATURES G.001): byre check --control, the job x-byre-scrub, byre job with it; what a locked
image says; jobs at the end of a server (9.019)."""
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from lib import peers, run
from qmp_client import Qmp


CS = 65536


def disk(tmp_path, name="d.qcow2", size="64M", options=""):
    run.byre("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), tmp_path / name, size)
    return tmp_path / name


def leaky(tmp_path):
    """Two leaked clusters in the middle"""
    path = disk(tmp_path)
    run.qemu_io(path, "write -P 7 0 1M")
    end = os.stat(path).st_size // CS
    with open(path, "r+b") as f:
        f.seek(48)
        f.seek(int.from_bytes(f.read(8), "big"))
        f.seek(int.from_bytes(f.read(8), "big") + 2 * end)
        f.write(b"\0\1\0\1")
        f.truncate((end + 2) * CS)
    assert run.byre("check", path, code=3)
    return path


def check(server, *args, code=0):
    return run.byre("check", "--control", server.control, *args, code=code)


def test_finds_and_frees_leaks(tmp_path, byre_serve):
    """G.001: found without a word, freed with -r leaks, by the same numbers and exit codes as offline"""
    path = leaky(tmp_path)
    offline = json.loads(run.byre("check", "--output=json", path, code=3).out)
    server = byre_serve(path)
    online = json.loads(check(server, "--output=json", code=3).out)
    assert online["leaks"] == offline["leaks"] == 2 and online["filename"] == str(path) and online["format"] == "qcow2"
    assert online["allocated-clusters"] == offline["allocated-clusters"] and online["total-clusters"] == offline["total-clusters"]
    done = check(server, "disk0", code=3)
    assert "2 leaked clusters were found" in done.out and done.err.count("refcount 1, references 0") == 2
    done = check(server, "-r", "leaks", "-p")
    assert "No errors were found" in done.out and done.err.count("Repaired: ") == 2 and "(100.00/100%)" in done.out
    assert "No errors were found" in check(server).out
    assert server.stop() == 0
    run.qemu_img("check", path)


def test_frees_leaks_beside_bitmaps(tmp_path, byre_serve):
    """G.001: clusters of bitmaps are counted, and leaks are freed also where there are bitmaps; while bitmaps come and go nothing of
    theirs is taken for one"""
    path = leaky(tmp_path)
    run.byre("bitmap", "--add", "-g", 65536, path, "b0")
    run.byre("io", "-c", "write -P 9 2M 192k", path)
    server = byre_serve(path)
    stop, broken = threading.Event(), []

    def actions():
        client = Qmp(server.control)
        n = 0
        while not stop.is_set():
            for command in ("block-dirty-bitmap-add", "block-dirty-bitmap-remove"):
                more = {"persistent": True} if command.endswith("add") else {}
                answer = client.ask(command, node="disk0", name=f"c{n % 3}", **more)
                if "return" not in answer:
                    broken.append(answer)
            n += 1

    acting = threading.Thread(target=actions)
    acting.start()
    try:
        assert check(server, "-r", "leaks").err.count("Repaired: ") == 2
        for _ in range(10):
            assert "No errors were found" in check(server, "-r", "leaks").out
    finally:
        stop.set()
        acting.join()
    assert not broken
    assert server.stop() == 0
    run.qemu_img("check", path)
    assert [b["name"] for b in json.loads(run.qemu_img("info", "--output=json", path).out)["format-specific"]["data"]["bitmaps"]] == ["b0"]


def test_under_writes(tmp_path, byre_serve):
    """G.001: a disk that is written, discarded and zeroed without pause is found sound each time"""
    path = disk(tmp_path, size="256M", options="cluster_size=4096")
    server = byre_serve(path)
    stop, broken = threading.Event(), []

    def guest(seed):
        import random
        rng, handle = random.Random(seed), peers.need_module("nbd").NBD()
        handle.connect_uri(server.uri)
        try:
            while not stop.is_set():
                at = rng.randrange(16384) * 4096
                what = rng.randrange(4)
                if what == 0:
                    handle.trim(65536, at)
                elif what == 1:
                    handle.zero(8192, at)
                else:
                    handle.pwrite(bytes([seed]) * 12288, at)
                if rng.randrange(50) == 0:
                    handle.flush()
        except Exception as e:       # told at the end
            broken.append(e)

    guests = [threading.Thread(target=guest, args=(n,)) for n in (1, 2)]
    for g in guests:
        g.start()
    try:
        for n in range(15):
            check(server, *(["-r", "leaks"] if n % 2 else []))
    finally:
        stop.set()
        for g in guests:
            g.join()
    assert not broken
    assert server.stop() == 0
    run.qemu_img("check", path)


def test_refusals(tmp_path, byre_serve):
    """What cannot be done to a disk in use is said, and nothing is begun"""
    server = byre_serve(disk(tmp_path))
    assert "-r all" in check(server, "-r", "all", code=1).err
    assert "opened the image" in check(server, "-f", "qcow2", code=1).err
    assert "no disk 'x'" in check(server, "x", code=1).err
    assert "cannot connect" in run.byre("check", "--control", tmp_path / "none", code=1).err
    run.byre("create", "-q", "-f", "raw", tmp_path / "r.raw", "1M")
    raw = byre_serve(tmp_path / "r.raw", "-f", "raw")
    assert "format raw has no check" in check(raw, code=1).err
    reading = byre_serve(disk(tmp_path, "d2.qcow2"), "--read-only")
    assert "read-only" in check(reading, code=1).err
    for s in (server, raw, reading):
        assert json.loads(run.byre("job", "--output=json", s.control, "list").out) == []


@pytest.mark.parametrize("named", [True, False])
def test_a_locked_image_names_its_control_socket(tmp_path, byre_serve, named):
    """Without --control a disk in use is refused; the message says where to ask"""
    path = disk(tmp_path)
    if named:
        server = byre_serve(path)
        control = server.control
    else:
        process = subprocess.Popen([run.BYRE, "serve", str(path)], stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(3)]
        control = lines[2].split()[1]
    try:
        err = run.byre("check", path, code=1).err
        assert "lock" in err and f"control socket {control}" in err
        run.byre("check", "-U", path)
    finally:
        if not named:
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0


def slow_scrub(server, **more):
    """A scrub that takes for ever"""
    client = Qmp(server.control)
    assert client.ask("x-byre-scrub", node_name="disk0", job_id="s0", speed=1 << 16, auto_dismiss=False, **more) == {"return": {}}
    return client


def filled(tmp_path):
    path = disk(tmp_path, size="512M", options="cluster_size=512")
    run.byre("io", "-c", "write -P 1 0 16M", "-c", "write -P 2 256M 16M", path)
    return path


def test_job_verbs(tmp_path, byre_serve):
    """FEATURES 8.015, 9.001, 9.006, 9.007: pause, resume, cancel from the command line; every step is told"""
    server = byre_serve(filled(tmp_path))
    watcher = Qmp(server.control)
    client = slow_scrub(server)
    listed = json.loads(run.byre("job", "--output=json", server.control, "list").out)
    assert [(j["id"], j["type"]) for j in listed] == [("s0", "x-byre-scrub")] and listed[0]["total-progress"] in (0, 512 << 20)
    run.byre("job", server.control, "pause")
    for _ in range(100):
        if json.loads(run.byre("job", "--output=json", server.control, "list").out)[0]["status"] == "paused":
            break
        time.sleep(0.02)
    before = json.loads(run.byre("job", "--output=json", server.control, "list").out)[0]
    time.sleep(0.3)
    after = json.loads(run.byre("job", "--output=json", server.control, "list").out)[0]
    assert before == after and after["status"] == "paused"
    assert "already paused" in run.byre("job", server.control, "pause", "s0", code=1).err
    assert "state 'paused' cannot accept command verb 'complete'" in run.byre("job", server.control, "complete", code=1).err
    run.byre("job", server.control, "resume", "s0")
    run.byre("job", server.control, "cancel")
    done = run.byre("job", "--progress=json", server.control, "wait", "s0", code=1)
    assert "s0" in done.err
    run.byre("job", server.control, "dismiss")
    seen = []
    while not seen or seen[-1] != "null":
        event = watcher.receive()
        assert event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == "s0"
        seen.append(event["data"]["status"])
    assert seen == ["created", "running", "paused", "running", "aborting", "concluded", "null"]


def test_wait_shows_progress(tmp_path, byre_serve):
    """wait follows a job, as NDJSON on request, and says how it ended"""
    server = byre_serve(filled(tmp_path))
    client = Qmp(server.control)
    assert client.ask("x-byre-scrub", node_name="disk0", job_id="s1", speed=512 << 20, auto_dismiss=False) == {"return": {}}
    done = run.byre("job", "--progress=json", "--output=json", server.control, "wait", "s1")
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert lines and lines[-1]["event"] == "end" and lines[-1]["done"] == lines[-1]["total"] and all(line["unit"] == "bytes" for line in lines)
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert json.loads(done.out) == {"id": "s1", "success": True}
    job = json.loads(run.byre("job", "--output=json", server.control, "list").out)[0]
    assert job["status"] == "concluded" and job["x-byre-check"]["corruptions"] == 0
    run.byre("job", server.control, "dismiss", "s1")
    assert run.byre("job", server.control, "list").out == ""


def test_excludes(tmp_path, byre_serve):
    """A resize waits for nobody: it is refused while a scrub runs, and so is a second scrub"""
    server = byre_serve(filled(tmp_path))
    client = slow_scrub(server)
    assert "scrub" in client.ask("block_resize", node_name="disk0", size=1 << 30)["error"]["desc"]
    assert client.ask("x-byre-scrub", node_name="disk0", job_id="s2", auto_dismiss=False) == {"return": {}}
    for _ in range(100):
        jobs = {j["id"]: j for j in json.loads(run.byre("job", "--output=json", server.control, "list").out)}
        if jobs["s2"]["status"] == "concluded":
            break
        time.sleep(0.02)
    assert "runs already" in jobs["s2"]["error"]
    run.byre("job", server.control, "cancel", "s0")


def test_end_of_a_server(tmp_path, byre_serve):
    """FEATURES 9.019: jobs are cancelled, also paused ones; the server ends cleanly"""
    path = filled(tmp_path)
    server = byre_serve(path)
    slow_scrub(server)
    run.byre("job", server.control, "pause", "s0")
    assert server.stop() == 0
    run.qemu_img("check", path)
