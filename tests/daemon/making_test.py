# SPDX-License-Identifier: MIT
"""Files that two clients would make at a time: one makes it, the other is refused, and what is made stays (FEATURES 8.013, 8.014, 9.022, 9.086)."""
import json
import os

import pytest

from lib import run, wait

STALLS = os.path.join(os.environ.get("BYRE_BUILD") or run.TOP / "build", "tests", "daemon", "folder-stalls.so")


class World:
    """Two disks, a and b, and two clients, `one` and `two`. A file that is made waits, closed, for as long as `stall` is there."""

    def __init__(self, start, folder):
        self.stall, self.target = folder / "stall", folder / "x"
        options = f"{os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0"      # what is preloaded comes before it
        words = []
        for name in "ab":
            run.qemu_img("create", "-q", "-f", "qcow2", folder / f"{name}.qcow2", "4M")
            words += ["--blockdev", json.dumps({"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(folder / f"{name}.qcow2")}})]
        self.daemon = start("daemon", *words, env={"LD_PRELOAD": STALLS, "FOLDER_STALLS": str(self.stall), "ASAN_OPTIONS": options})
        self.one, self.two = self.daemon.qmp(), self.daemon.qmp()

    def begin(self, command, arguments):
        """By the first client: the file is made now, and no node has it."""
        self.stall.touch()
        self.one.send(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        wait.until(lambda: (self.stall.parent / "stall.in").exists(), "no file is made")
        assert self.target.exists()

    def answer(self):
        """What the first client is told when that goes on."""
        self.stall.unlink(missing_ok=True)
        while True:
            answer = self.one.receive()
            if "event" not in answer:
                return answer
            self.one.events.append(answer)

    def image_of(self, node):
        return next(n for n in self.two.ok("query-named-block-nodes") if n["node-name"] == node)["image"]

    def failure(self, path):
        """Of a job that is to make this file."""
        self.two.ok("blockdev-create", **{"job-id": "c"}, options={"driver": "file", "filename": path, "size": 65536})
        self.two.wait("JOB_STATUS_CHANGE", id="c", status="concluded")
        job = next(j for j in self.two.ok("query-jobs") if j["id"] == "c")
        self.two.ok("job-dismiss", id="c")
        return job.get("error", "")


@pytest.fixture
def world(start, tmp_path):
    w = World(start, tmp_path)
    yield w
    w.stall.unlink(missing_ok=True)
    w.one.close()
    w.two.close()


def snapshot(node, path):
    return "blockdev-snapshot-sync", {"node-name": node, "snapshot-file": path, "snapshot-node-name": f"s{node}"}


def mirror(node, path):
    return "drive-mirror", {"device": node, "target": path, "sync": "none", "format": "qcow2", "job-id": f"j{node}"}


def backup(node, path):
    return "drive-backup", {"device": node, "target": path, "sync": "none", "format": "qcow2", "job-id": f"j{node}"}


def in_list(make):
    def made(node, path):
        command, arguments = make(node, path)
        return "transaction", {"actions": [{"type": command, "data": arguments}]}
    made.__name__ = f"{make.__name__}_in_a_list"
    return made


MAKERS = [snapshot, mirror, backup, in_list(snapshot), in_list(backup)]


@pytest.mark.parametrize("second", MAKERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("first", [snapshot, mirror, backup], ids=lambda f: f.__name__)
def test_one_makes_it(world, first, second):
    """While one makes a file no other command begins with it, for the same disk or another one; the file is the first one's, and stays"""
    world.begin(*first("a", str(world.target)))
    for node in "ab":
        command, arguments = second(node, str(world.target))
        assert "is being made by another command" in world.two.refused(command, **arguments)
    assert "is being made by another command" in world.failure(str(world.target))
    assert world.answer() == {"return": {}}
    assert run.qemu_img("info", "-U", "--output=json", world.target).json["backing-filename"].endswith("a.qcow2")
    command, arguments = second("b", str(world.target))          # a node has it now
    assert "is the file of a node that is open" in world.two.refused(command, **arguments)
    assert world.target.exists()


@pytest.mark.parametrize("name", ["link", "chain", "folder/../x", "again/x", "file:x", "hard"])
def test_under_another_name(world, tmp_path, name):
    """The file is known by what it is, also while it is not there yet"""
    os.symlink("x", tmp_path / "link")
    os.symlink(tmp_path / "link", tmp_path / "chain")
    os.symlink(".", tmp_path / "again")
    (tmp_path / "folder").mkdir()
    world.target.write_bytes(b"")
    os.link(world.target, tmp_path / "hard")
    if name != "hard":
        world.target.unlink()
    path = f"file:{world.target}" if name == "file:x" else str(tmp_path / name)
    world.begin(*snapshot("a", path))
    for other in {path, str(world.target)}:
        command, arguments = snapshot("b", other)
        assert "is being made by another command" in world.two.refused(command, **arguments)
    assert world.answer() == {"return": {}}
    assert world.image_of("sa")["backing-filename"].endswith("a.qcow2") and world.target.exists()


def test_others_are_made(world, tmp_path):
    """A second file beside it, meanwhile; and afterwards the name of one that failed is free"""
    world.begin(*snapshot("a", str(world.target)))
    assert world.failure(str(tmp_path / "y" / "x")) != ""          # another folder, which is not there
    assert "being made" not in world.failure(str(tmp_path / "y" / "x"))
    world.one.send(json.dumps({"execute": "query-version"}) + "\n")
    assert world.answer() == {"return": {}}
    bad = {"actions": [{"type": "blockdev-snapshot-sync", "data": snapshot("b", str(tmp_path / "z"))[1]}, {"type": "abort", "data": {}}]}
    for _ in range(2):
        assert "aborted" in world.two.refused("transaction", **bad) and not (tmp_path / "z").exists()
    twice = {"actions": [{"type": "blockdev-snapshot-sync", "data": {**snapshot(n, str(tmp_path / "z"))[1], "snapshot-node-name": f"t{n}"}} for n in ("sa", "b")]}
    assert "is being made" in world.two.refused("transaction", **twice) and not (tmp_path / "z").exists()
    command, arguments = snapshot("b", str(tmp_path / "z"))
    assert world.two.ask(command, **arguments) == {"return": {}} and (tmp_path / "z").exists()


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_who_has_it_keeps_it(world, make):
    """Somebody opens the file before its maker does, who is refused then: the file is not removed under who has it"""
    world.begin(*make("a", str(world.target)))
    world.two.ok("blockdev-add", driver="qcow2", node_name="mine", backing=None, file={"driver": "file", "filename": str(world.target)})
    assert "in use" in world.answer()["error"]["desc"] and world.target.exists()
    world.two.ok("blockdev-del", node_name="mine")
    command, arguments = make("a", str(world.target))
    world.stall.unlink(missing_ok=True)
    assert world.two.ask(command, **arguments) == {"return": {}} and world.target.exists()


def test_another_file_is_there(world, tmp_path):
    """What came to the name while it was made is not what was made: it stays"""
    world.begin(*snapshot("a", str(world.target)))
    (tmp_path / "mine").write_bytes(b"mine")
    os.replace(tmp_path / "mine", world.target)
    assert "error" in world.answer()
    assert world.target.read_bytes() == b"mine"
