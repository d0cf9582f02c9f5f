# SPDX-License-Identifier: MIT
"""Commands of several clients at the same moment: what one looks at, another takes away (FEATURES 8.010, 8.011, 8.016)."""
import threading
import time

import pytest

from lib import images, run, wait

MIB = 1 << 20


def file_of(name, **more):
    return {"driver": "file", "filename": name, **more}


class Busy:
    """Threads that each have a client of their own and repeat what they do until the time is over, and each has done it six times, and `enough` says so."""

    def __init__(self, daemon, seconds, enough=lambda: True):
        self.daemon, self.until, self.wrong, self.threads = daemon, time.monotonic() + seconds, [], []
        self.late, self.enough, self.each = time.monotonic() + 100, enough, []

    def goes_on(self):
        now = time.monotonic()
        return not self.wrong and now < self.late and (now < self.until or min(self.each) < 6 or not self.enough())

    def add(self, what, *args):
        me = len(self.each)
        self.each.append(0)

        def go():
            client = self.daemon.qmp()
            try:
                while self.goes_on():
                    what(client, *args)
                    self.each[me] += 1
            except Exception as e:  # pylint: disable=broad-except
                self.wrong.append(f"{what.__name__}: {e!r}")
            client.close()
        self.threads.append(threading.Thread(target=go))
        self.threads[-1].start()

    def wait(self):
        for t in self.threads:
            t.join()
        assert not self.wrong, self.wrong
        assert self.daemon.process.poll() is None
        assert min(self.each) > 5, self.each


def look(client):
    for node in client.ok("query-named-block-nodes"):
        for b in node.get("dirty-bitmaps", []):
            assert b["granularity"] and (not b.get("inconsistent")), b
    client.ok("query-block")


def comes_and_goes(client, name):
    """A chain of two with a stored bitmap in each, whose bits are read when somebody asks for them."""
    client.ok("blockdev-add", driver="qcow2", node_name=name, read_only=True, file=file_of("over"),
              backing={"driver": "qcow2", "node-name": name + "-below", "read-only": True, "file": file_of("below")})
    client.ok("blockdev-del", node_name=name)


def bitmaps_come_and_go(client):
    client.ok("block-dirty-bitmap-add", node="disk", name="x", persistent=True)
    client.ok("block-dirty-bitmap-clear", node="disk", name="kept")
    client.ok("block-dirty-bitmap-remove", node="disk", name="x")


def another_mode(client):
    for read_only in (True, False):
        client.ok("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "other", "file": file_of("other"), "read-only": read_only}])


@pytest.mark.timeout(120)
def test_looked_at_while_it_goes(start, tmp_path):
    """FEATURES 8.011, 1.106: nodes, layers and bitmaps are described while others open, delete and reopen them: nobody finds half of one"""
    images.create(tmp_path / "below", 64 * MIB)
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "below", "-F", "qcow2", tmp_path / "over", 64 * MIB)
    for name in ("disk", "other"):
        images.create(tmp_path / name, 64 * MIB)
    for name in ("below", "over", "disk", "other"):
        for bitmap in ("kept", "kept2"):
            run.qemu_img("bitmap", "--add", "-g", "512", tmp_path / name, bitmap)
        run.qemu_io(tmp_path / name, *(f"write -P 5 {i}M 64k" for i in range(0, 60, 3)))
    daemon = start("daemon")
    client = daemon.qmp()
    for name in ("disk", "other"):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file=file_of(name))
    busy = Busy(daemon, 6)
    for _ in range(2):
        busy.add(look)
    busy.add(comes_and_goes, "a")
    busy.add(bitmaps_come_and_go)
    busy.add(another_mode)
    busy.wait()
    assert {n["node-name"] for n in client.ok("query-named-block-nodes", flat=True)} >= {"disk", "other"}
    client.ok("quit")
    assert daemon.wait()[0] == 0
    for name in ("below", "over", "disk", "other"):
        run.qemu_img("check", tmp_path / name)


def resize_while_it_is_opened(client):
    answer = client.ask("block_resize", node_name="a", size=MIB)
    assert answer, "the daemon has gone"
    assert "return" not in answer                # not found, or read-only


@pytest.mark.timeout(120)
def test_a_node_that_is_being_opened(start, tmp_path):
    """FEATURES 8.010: a node is found by its name when it is open, and not while it is being opened or closed"""
    images.create(tmp_path / "below", 64 * MIB)
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "below", "-F", "qcow2", tmp_path / "over", 64 * MIB)
    daemon = start("daemon")
    busy = Busy(daemon, 3)
    busy.add(comes_and_goes, "a")
    busy.add(resize_while_it_is_opened)
    busy.add(look)
    busy.wait()


# ---- what lies below a disk while a job reads it ----

@pytest.mark.parametrize("job", ["blockdev-backup", "blockdev-mirror"])
def test_other_content_under_a_job(start, tmp_path, job):
    """FEATURES 11.005, J4: another image below the source would change what the job copies, without a write: refused while it runs, not behind it"""
    for name, byte in (("one", 1), ("two", 2)):
        images.create(tmp_path / name, 8 * MIB)
        run.qemu_io(tmp_path / name, f"write -P {byte} 0 8M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "one", "-F", "qcow2", tmp_path / "mid", 8 * MIB)
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "mid", "-F", "qcow2", tmp_path / "top", 8 * MIB)
    images.create(tmp_path / "copy", 8 * MIB)
    daemon = start("daemon")
    client = daemon.qmp()
    for name, more in (("one", {}), ("two", {}), ("mid", {"backing": "one"}), ("top", {"backing": "mid"}), ("copy", {})):
        client.ok("blockdev-add", driver="qcow2", node_name=name, read_only=name in ("one", "two", "mid"), file=file_of(name), **more)
    client.ok(job, job_id="j", device="top", target="copy", sync="full", speed=MIB)

    def below(name, backing):
        entry = {"driver": "qcow2", "node-name": name, "file": file_of(name), "backing": backing, "read-only": name == "mid"}
        return client.ask("blockdev-reopen", options=[entry])
    for name in ("mid", "top"):
        answer = below(name, "two")
        assert "error" in answer and ("snapshot" in answer["error"]["desc"] or "copies it" in answer["error"]["desc"]), answer
    assert "return" in below("mid", "one")               # nothing changes
    client.ok("block-job-set-speed", device="j", speed=0)
    finished = False
    while not finished:
        jobs = {j["id"]: j["status"] for j in client.ok("query-jobs")}
        if jobs.get("j") == "ready":
            client.ok("job-complete", id="j")
        finished = not jobs
        time.sleep(0.02)
    assert "return" in below("mid", "two")
    client.ok("quit")
    assert daemon.wait()[0] == 0
    run.qemu_io(tmp_path / "copy", "read -P 1 0 8M")


# ---- a disk that a mirror takes to another node ----

@pytest.mark.timeout(180)
def test_named_while_it_moves(tmp_path, byre_serve):
    """FEATURES 8.017, 8.019, J1: what is done to a disk while a mirror takes it away is done to the disk, not to the node that it has left"""
    from qmp_client import Qmp
    images.create(tmp_path / "disk", 16 * MIB)
    server = byre_serve(tmp_path / "disk")
    client, other = Qmp(server.control), Qmp(server.control)
    device = client.ok("query-block")[0]["device"]
    load = threading.Thread(target=run.qemu_io, args=(server.uri, *["write -P 7 0 8M"] * 400), kwargs={"fmt": "raw"})
    load.start()
    for i in range(25):
        client.ok("drive-mirror", job_id="m", device=device, target=str(tmp_path / f"t{i}"), sync="full")
        while client.ok("query-jobs")[0]["status"] != "ready":
            time.sleep(0.01)
        client.ok("job-complete", id="m")
        time.sleep(0.0004 * (i % 8))
        if i % 2:
            other.ok("nbd-server-add", device=device, name=f"e{i}")
        else:
            other.ok("block_resize", device=device, size=(17 + i) * MIB)
        while client.ok("query-jobs"):
            time.sleep(0.005)
        disk = client.ok("query-block")[0]["inserted"]
        if i % 2:
            assert {e["node-name"] for e in client.ok("query-block-exports")} == {disk["node-name"]}
            client.ok("nbd-server-remove", name=f"e{i}", mode="hard")
        else:
            assert disk["image"]["virtual-size"] == (17 + i) * MIB
        assert disk["image"]["filename"].endswith(f"t{i}")
    load.join()
    client.close()
    other.close()


# ---- listeners of one server ----

def test_a_listener_that_fails(tmp_path, start):
    """FEATURES 10.024, 8.019: a listener that cannot be opened takes nobody else's with it, whoever came first"""
    (tmp_path / "busy").touch()
    daemon = start("daemon")
    one, two = daemon.qmp(), daemon.qmp()

    def listen(client, path, name, answers):
        answers[name] = client.ask("nbd-server-start", addr={"type": "unix", "data": {"path": path}}, x_byre_id=name)
    for _ in range(60):
        answers = {}
        both = [threading.Thread(target=listen, args=args) for args in ((one, "busy", "a", answers), (two, "good", "b", answers))]
        for t in both:
            t.start()
        for t in both:
            t.join()
        assert "error" in answers["a"] and "return" in answers["b"], answers
        assert [s["id"] for s in two.ok("x-byre-query-nbd-servers")] == ["b"]
        two.ok("nbd-server-stop")
    assert "error" in one.ask("nbd-server-start", addr={"type": "unix", "data": {"path": "busy"}})
    assert "error" in one.ask("nbd-server-stop")         # none runs
    one.ok("quit")
    assert daemon.wait()[0] == 0


# ---- a node that is named by one and deleted by another ----

@pytest.mark.parametrize("command", ["drive-mirror", "drive-backup"])
def test_deleted_while_it_is_named(tmp_path, start, command):
    """FEATURES 8.010: what a command has named stays until the command has ended, also while that makes a file; before or behind it, it can go"""
    images.create(tmp_path / "a", 16 * MIB)
    daemon = start("daemon")
    one, two = daemon.qmp(), daemon.qmp()
    answers = {}

    def begin():
        answers["job"] = one.ask(command, device="n", job_id="j", sync="full", target=f"t{i}", format="qcow2")

    def delete(after):
        time.sleep(after)
        answers["del"] = two.ask("blockdev-del", node_name="n")
    for i in range(60):
        two.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of("a"))
        both = [threading.Thread(target=begin), threading.Thread(target=delete, args=(i % 12 * 0.0003,))]
        for t in both:
            t.start()
        for t in both:
            t.join()
        assert "return" in answers["job"] or "Cannot find" in answers["job"]["error"]["desc"], answers
        if "return" in answers["job"]:
            one.ask("job-cancel", id="j")
        while one.ok("query-jobs"):
            time.sleep(0.005)
        if "error" in answers["del"]:
            assert "is in use" in answers["del"]["error"]["desc"], answers
            two.ok("blockdev-del", node_name="n")
        wait.until(lambda: two.ok("query-named-block-nodes") == [], "the target stays open")       # a job that is cancelled waits 0.4 s for it
    one.ok("quit")
    assert daemon.wait()[0] == 0


@pytest.mark.parametrize("command", ["x-byre-scrub", "x-byre-compact"])
def test_opened_anew_while_a_job_begins(tmp_path, start, command):
    """FEATURES 8.010: an image is opened in another way before a job works in it, or not at all"""
    images.create(tmp_path / "a", 16 * MIB)
    run.qemu_io(tmp_path / "a", "write -P 1 0 8M", fmt="qcow2")
    daemon = start("daemon")
    entry = {"driver": "qcow2", "node-name": "n", "file": file_of("a")}
    daemon.qmp().ok("blockdev-add", **entry)
    seen = {"jobs": 0, "reopens": 0}

    def reopen(client):
        for read_only in (True, False):
            seen["reopens"] += "return" in client.ask("blockdev-reopen", options=[{**entry, "read-only": read_only}])

    def begin(client):
        seen["jobs"] += "return" in client.ask(command, node_name="n", job_id="j")
    busy = Busy(daemon, 4, lambda: min(seen.values()) > 3)
    busy.add(reopen)
    busy.add(begin)
    busy.wait()
    assert seen["jobs"] > 3 and seen["reopens"] > 3, seen
    daemon.qmp().ok("quit")
    assert daemon.wait()[0] == 0
    images.assert_sound(tmp_path / "a")


# ---- described while it changes ----

def filters_come_and_go(client):
    """Of a job that does nothing, so that there is a filter that filters nothing for a moment, again and again."""
    client.ok("blockdev-mirror", device="disk", target="copy", sync="none", job_id="j", filter_node_name="flt")
    time.sleep(0.02)
    client.ok("job-cancel", id="j")
    while client.ok("query-jobs"):
        pass


@pytest.mark.timeout(120)
def test_filters_are_described(start, tmp_path):
    """FEATURES 8.011, 9.035: a filter that a job takes out while it is described, which waits for those who read the bitmaps of what lies below"""
    for name in ("below", "copy"):
        images.create(tmp_path / name, MIB)
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "below", "-F", "qcow2", tmp_path / "disk", MIB)
    for i in range(20):
        run.qemu_img("bitmap", "--add", tmp_path / "below", f"kept{i}")
    daemon = start("daemon")
    client = daemon.qmp()
    for name in ("disk", "copy"):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file=file_of(name))
    busy = Busy(daemon, 4)
    busy.add(filters_come_and_go)
    for _ in range(3):
        busy.add(look)
    busy.wait()
    client.ok("quit")
    assert daemon.wait()[0] == 0


@pytest.mark.timeout(120)
def test_hashed_while_it_is_opened_anew(start, tmp_path):
    """FEATURES 8.016: a stored bitmap is hashed while others open its image in another way: it is read, or there is an answer why not"""
    images.create(tmp_path / "other", 64 * MIB)
    run.qemu_img("bitmap", "--add", "-g", "512", tmp_path / "other", "kept")
    daemon = start("daemon")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="qcow2", node_name="other", file=file_of("other"))
    hashes = set()

    def reopen(client):
        for read_only in (True, False):
            answer = client.ask("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "other", "file": file_of("other"), "read-only": read_only}])
            assert "return" in answer or "in use" in answer["error"]["desc"], answer

    def hashed(client):
        hashes.add(client.ok("x-debug-block-dirty-bitmap-sha256", node="other", name="kept")["sha256"])
    busy = Busy(daemon, 4)
    busy.add(reopen)
    for _ in range(2):
        busy.add(hashed)
    busy.wait()
    assert len(hashes) == 1
    client.ok("quit")
    assert daemon.wait()[0] == 0
    images.assert_sound(tmp_path / "other")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ["blockdev-backup", "drive-backup"])
def test_resized_while_a_backup_begins(start, tmp_path, command):
    """FEATURES 8.014, J4: a disk has another length before its backup begins, or keeps the one that it has; either way the backup ends"""
    for name in ("disk", "copy"):
        images.create(tmp_path / name, MIB)
    daemon = start("daemon")
    client = daemon.qmp()
    for name in ("disk", "copy"):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file=file_of(name))

    def resize(client):
        for size in (MIB, MIB + 65536):
            answer = client.ask("block_resize", node_name="disk", size=size)
            assert "return" in answer or "does not allow" in answer["error"]["desc"], answer

    def backup(client):
        target = {"target": "copy"} if command == "blockdev-backup" else {"target": "made", "format": "qcow2"}
        answer = client.ask(command, device="disk", job_id="j", sync="full", **target)
        assert "return" in answer or "different sizes" in answer["error"]["desc"], answer
        wait.until(lambda: not client.ok("query-jobs"), "the backup does not end")
    busy = Busy(daemon, 6)
    busy.add(backup)
    busy.add(resize)
    busy.add(resize)
    busy.wait()
    client.ok("quit")
    assert daemon.wait()[0] == 0


# ---- an overlay over what gets a filter ----

@pytest.mark.parametrize("what", ["backup", "mirror", "throttle"])
def test_a_filter_comes_below_an_overlay(start, tmp_path, what):
    """FEATURES 11.001, 11.005: a small write into an overlay brings along what lies below, also when that has just got a filter, or has lost it"""
    for name in ("base", "copy"):
        images.create(tmp_path / name, 8 * MIB)
    run.qemu_io(tmp_path / "base", "write -P 1 0 8M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", tmp_path / "top", 8 * MIB)
    daemon = start("daemon")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="qcow2", node_name="base", read_only=True, file=file_of("base"))
    client.ok("blockdev-add", driver="qcow2", node_name="top", file=file_of("top"), backing="base")
    client.ok("blockdev-add", driver="qcow2", node_name="copy", file=file_of("copy"))
    client.ok("nbd-server-start", addr={"type": "unix", "data": {"path": "n.sock"}})
    client.ok("block-export-add", type="nbd", id="e", name="e", node_name="top", writable=True)
    uri = f"nbd+unix:///e?socket={daemon.folder}/n.sock"

    def small(at):
        run.qemu_io(uri, f"write -P 2 {at} 512", f"write -z {at + 4096} 512", f"read -P 1 {at + 8192} 8k", f"read -P 0 {at + 4096} 512", f"read -P 1 {at + 4608} 512", fmt="raw")
    if what in ("backup", "mirror"):
        client.ok(f"blockdev-{what}", device="base", target="copy", sync="none", job_id="j", filter_node_name="f")
    else:
        client.ok("object-add", qom_type="throttle-group", id="g")
        client.ok("blockdev-add", driver=what, node_name="f", file="base", throttle_group="g")
        client.ok("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "top", "file": file_of("top"), "backing": "f"}])
    small(MIB)
    if what in ("backup", "mirror"):
        client.ok("job-cancel", id="j")
        while client.ok("query-jobs"):
            time.sleep(0.01)
    small(2 * MIB)
    run.qemu_io(uri, "read -P 1 3M 5M", fmt="raw")
    client.ok("quit")
    assert daemon.wait()[0] == 0
