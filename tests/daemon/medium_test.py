# SPDX-License-Identifier: MIT
"""Exports with a tray: media come and go under clients that stay; what is no drive says so (FEATURES G.051)."""
import json
import os
import subprocess
import threading
import time

import pytest

from lib import peers, run, wait
from qmp_client import Qmp

MIB = 1 << 20
COMMANDS = [("blockdev-open-tray", {}), ("blockdev-close-tray", {}), ("blockdev-remove-medium", {}), ("eject", {}), ("eject", {"force": True}),
            ("blockdev-insert-medium", {"node-name": "b"}), ("blockdev-change-medium", {"filename": "b.raw", "format": "raw"})]


@pytest.fixture
def drive(start, tmp_path):
    """drive(words of the export): a daemon with nodes a and b of 4 MiB, c of 8 MiB, and a removable export `e` of a; r.raw is like a, g.raw like c."""
    for name, size, byte in (("a", 4, b"a"), ("b", 4, b"b"), ("c", 8, b"c"), ("r", 4, b"r"), ("g", 8, b"g")):
        (tmp_path / f"{name}.raw").write_bytes(byte * (size * MIB))

    def make(**words):
        daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
        client = daemon.qmp()
        for name in "abc":
            client.ok("blockdev-add", driver="raw", node_name=name, file={"driver": "file", "filename": str(tmp_path / f"{name}.raw")})
        client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "a", "name": "e", "writable": True, "x-byre-removable": True, **words})
        return daemon, client
    return make


def connect(daemon):
    h = peers.need_module("nbd").NBD()
    h.connect_uri(f"nbd+unix:///e?socket={daemon.folder}/n.sock")
    return h


def fails(h, number=None):
    """Every kind of request is refused, and the connection lives on."""
    nbd = peers.need_module("nbd")
    for request in (lambda: h.pread(512, 0), lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(4096, 0), lambda: h.trim(4096, 0)):
        with pytest.raises(nbd.Error):
            request()
    assert h.aio_is_ready()


def state(client):
    export = client.ok("query-block-exports")[0]
    return export["x-byre-tray-open"], export["node-name"] or None


def moved(client):
    return client.wait("DEVICE_TRAY_MOVED")["data"]


def test_a_medium_changes(drive):
    """FEATURES G.051: step by step, with a client that stays; what was written is in the medium that it was written to"""
    daemon, client = drive()
    h = connect(daemon)
    assert h.pread(4, 0) == b"aaaa" and state(client) == (False, "a")
    h.pwrite(b"1" * 512, 0)
    client.ok("blockdev-open-tray", id="e")
    assert moved(client) == {"device": "", "id": "e", "tray-open": True} and state(client) == (True, "a")
    fails(h)
    assert "in use" in client.refused("blockdev-del", node_name="a")
    assert "already is a medium" in client.refused("blockdev-insert-medium", id="e", node_name="b")
    client.ok("blockdev-close-tray", id="e")
    assert moved(client)["tray-open"] is False and h.pread(512, 0) == b"1" * 512
    client.ok("blockdev-open-tray", device="e", force=True)
    client.ok("blockdev-remove-medium", id="e")
    client.ok("blockdev-remove-medium", id="e")
    assert state(client) == (True, None)
    client.ok("blockdev-del", node_name="a")
    client.ok("blockdev-close-tray", id="e")
    fails(h)
    assert state(client) == (False, None) and "not open" in client.refused("blockdev-insert-medium", id="e", node_name="b")
    client.ok("blockdev-open-tray", id="e")
    client.ok("blockdev-insert-medium", id="e", node_name="b")
    fails(h)
    client.ok("blockdev-close-tray", id="e")
    assert h.pread(4, 0) == b"bbbb" and state(client) == (False, "b")
    h.pwrite(b"2" * 512, 0)
    h.flush()
    h.shutdown()
    client.ok("block-export-del", id="e", mode="hard")
    client.wait("BLOCK_EXPORT_DELETED")
    client.ok("blockdev-del", node_name="b")
    assert daemon.stop()[0] == 0
    for name, byte in (("a", b"1"), ("b", b"2")):
        with open(f"{daemon.folder}/{name}.raw", "rb") as f:
            assert f.read(513) == byte * 512 + name.encode()


def test_change_in_one_step(drive, tmp_path):
    """FEATURES G.051: a file by its name, which is closed with the next change; eject; the medium of another format"""
    daemon, client = drive()
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "4M")
    run.qemu_io(tmp_path / "d.qcow2", "write -P 0x64 0 4M")
    h = connect(daemon)
    client.ok("blockdev-change-medium", id="e", filename=str(tmp_path / "d.qcow2"), format="qcow2")
    assert [moved(client)["tray-open"] for _ in range(2)] == [True, False]
    assert h.pread(4, 0) == b"dddd"
    h.pwrite(b"3" * 512, MIB)
    client.ok("eject", id="e")
    fails(h)
    run.qemu_io(tmp_path / "d.qcow2", "read -P 0x33 1M 512")             # it is closed, so others may have it
    run.qemu_img("check", tmp_path / "d.qcow2")
    client.ok("blockdev-change-medium", device="e", filename=str(tmp_path / "d.qcow2"), force=True)
    assert h.pread(4, 0) == b"dddd"
    daemon.stop()


def test_what_does_not_fit(drive, tmp_path):
    """FEATURES G.051: another size while clients are there, a medium that cannot be written, a file that is not there: refused, and the drive is as it was"""
    daemon, client = drive()
    client.ok("blockdev-add", driver="raw", node_name="ro", read_only=True, file={"driver": "file", "filename": str(tmp_path / "r.raw"), "read-only": True})
    h = connect(daemon)
    for words, why in (({"filename": str(tmp_path / "g.raw"), "format": "raw"}, str(8 * MIB)), ({"filename": str(tmp_path / "r.raw"), "format": "raw", "read-only-mode": "read-only"}, "read-only"),
                       ({"filename": "/no/such/file"}, "/no/such/file"), ({"filename": str(tmp_path / "r.raw"), "format": "odd"}, "odd"), ({"filename": str(tmp_path / "r.raw")}, "raw")):
        assert why in client.refused("blockdev-change-medium", id="e", **words)
        assert state(client) == (False, "a") and h.pread(4, 0) == b"aaaa"
    client.ok("eject", id="e")
    assert str(8 * MIB) in client.refused("blockdev-insert-medium", id="e", node_name="c")
    assert "read-only" in client.refused("blockdev-insert-medium", id="e", node_name="ro")
    assert "nope" in client.refused("blockdev-insert-medium", id="e", node_name="nope")
    h.shutdown()
    while client.ask("blockdev-insert-medium", id="e", node_name="c").get("error"):      # until the client is gone
        pass
    client.ok("blockdev-close-tray", id="e")
    h = connect(daemon)
    assert h.get_size() == 8 * MIB and h.pread(4, 8 * MIB - 4) == b"cccc"
    daemon.stop()


@pytest.mark.parametrize("command, arguments", COMMANDS, ids=[c for c, _ in COMMANDS])
def test_no_drive(drive, command, arguments):
    """FEATURES G.051: an export without a tray is a fixed disk, and says what the peer says of one; so is what is not there"""
    daemon, client = drive(**{"x-byre-removable": False})
    assert "not removable" in client.refused(command, id="e", **arguments)
    answer = client.ask(command, id="nope", **arguments)
    assert answer["error"]["class"] == "DeviceNotFound" and "nope" in answer["error"]["desc"]
    assert "x-byre-tray-open" not in client.ok("query-block-exports")[0]
    if command not in ("blockdev-remove-medium", "blockdev-insert-medium"):
        assert "'id'" in client.refused(command, **arguments) and "'id'" in client.refused(command, id="e", device="e", **arguments)
    daemon.stop()


@pytest.mark.asan
@pytest.mark.tsan
def test_under_load(drive):
    """FEATURES G.051: writers who go on while the tray opens and closes: each request is done in one of the media, or fails, and no answer is lost"""
    daemon, client = drive()
    nbd = peers.need_module("nbd")
    over, done, handles = threading.Event(), [], [connect(daemon) for _ in range(3)]

    def write(at, h):
        count = [0, 0]
        while not over.is_set() or min(count) == 0:
            try:
                h.pwrite(bytes([0x30 + at]) * 4096, at * 65536)
                count[0] += 1
            except nbd.Error:
                count[1] += 1
        done.append(count)

    threads = [threading.Thread(target=write, args=(i, h)) for i, h in enumerate(handles)]
    for t in threads:
        t.start()
    for i in range(20):
        client.ok("blockdev-open-tray", id="e")
        if i % 2:
            client.ok("blockdev-remove-medium", id="e")
            client.ok("blockdev-insert-medium", id="e", node_name="ab"[i // 2 % 2])
        client.ok("blockdev-close-tray", id="e")
    while len(done) < 3:
        over.set()
        client.ok("blockdev-open-tray", id="e")
        client.ok("blockdev-close-tray", id="e")
    for t in threads:
        t.join()
    assert len(done) == 3 and all(good and bad for good, bad in done)
    for i, h in enumerate(handles):
        h.pwrite(bytes([0x30 + i]) * 4096, i * 65536)
        assert h.pread(4096, i * 65536) == bytes([0x30 + i]) * 4096
        h.shutdown()
    assert daemon.stop()[0] == 0
    assert not os.path.exists(f"{daemon.folder}/n.sock")


def mirror_ready(client, **words):
    """A mirror of the medium to node b, at the end of which b is in its place."""
    client.ok("blockdev-mirror", job_id="j", device="a", target="b", sync="full", **words)
    client.wait("BLOCK_JOB_READY")


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("out", [False, True])
def test_another_node_in_its_place(drive, out):
    """FEATURES G.051: a mirror goes over to its target while the tray is open: what is in the tray is the target then, for clients who come back to it; a medium that was taken out
    meanwhile stays what it is"""
    daemon, client = drive()
    h = connect(daemon)
    h.pwrite(b"1" * 512, 0)
    mirror_ready(client)
    client.ok("blockdev-open-tray", id="e")
    if out:
        client.ok("blockdev-remove-medium", id="e")
    client.ok("job-complete", id="j")
    client.wait("BLOCK_JOB_COMPLETED")
    assert state(client) == (True, None if out else "b")
    if out:
        client.ok("blockdev-insert-medium", id="e", node_name="b")
    client.ok("blockdev-del", node_name="a")
    client.ok("blockdev-close-tray", id="e")
    assert h.pread(513, 0) == b"1" * 512 + b"a"
    h.pwrite(b"2" * 512, 512)
    h.shutdown()
    assert daemon.stop()[0] == 0
    with open(f"{daemon.folder}/b.raw", "rb") as f:
        assert f.read(1025) == b"1" * 512 + b"2" * 512 + b"a"
    with open(f"{daemon.folder}/a.raw", "rb") as f:
        assert f.read(1025) == b"1" * 512 + b"a" * 513


def test_commit_with_an_open_tray(drive, tmp_path):
    """FEATURES G.051: the same when a commit of the active layer ends"""
    daemon, client = drive()
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "o.qcow2", "4M")
    client.ok("blockdev-add", driver="qcow2", node_name="o", file={"driver": "file", "filename": str(tmp_path / "o.qcow2")}, backing=None)
    h = connect(daemon)
    client.ok("blockdev-open-tray", id="e")
    client.ok("blockdev-snapshot", node="a", overlay="o")
    assert state(client) == (True, "o")
    client.ok("blockdev-close-tray", id="e")
    h.pwrite(b"2" * 512, 0)
    client.ok("block-commit", job_id="j", device="o")
    client.wait("BLOCK_JOB_READY")
    client.ok("blockdev-open-tray", id="e")
    client.ok("job-complete", id="j")
    client.wait("BLOCK_JOB_COMPLETED")
    client.ok("blockdev-close-tray", id="e")
    client.ok("blockdev-del", node_name="o")
    assert state(client) == (False, "a") and h.pread(513, 0) == b"2" * 512 + b"a"
    daemon.stop()


def test_job_at_the_medium(drive, tmp_path):
    """FEATURES G.051: a job works at the medium while it goes, and does its work"""
    daemon, client = drive()
    connect(daemon).pwrite(b"1" * 512, 0)
    client.ok("blockdev-backup", job_id="j", device="a", target="b", sync="full", speed=65536)
    client.ok("eject", id="e")
    assert state(client) == (True, None) and "in use" in client.refused("blockdev-del", node_name="a")
    client.ok("block-job-set-speed", device="j", speed=0)
    client.wait("BLOCK_JOB_COMPLETED")
    client.ok("blockdev-insert-medium", id="e", node_name="b")
    client.ok("blockdev-close-tray", id="e")
    h = connect(daemon)
    assert h.pread(513, 0) == b"1" * 512 + b"a"
    client.ok("blockdev-reopen", options=[{"driver": "raw", "node-name": "a", "read-only": True, "file": {"driver": "file", "filename": str(tmp_path / "a.raw"), "read-only": True}}])
    daemon.stop()


def test_job_that_allows_no_writer(drive, tmp_path):
    """FEATURES G.051: what a job does not allow beside it does not come in by a tray, and the tray stays empty"""
    daemon, client = drive()
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "r.raw", "-F", "raw", tmp_path / "o.qcow2")
    client.ok("blockdev-add", driver="raw", node_name="r", file={"driver": "file", "filename": str(tmp_path / "r.raw")})
    client.ok("blockdev-add", driver="qcow2", node_name="o", file={"driver": "file", "filename": str(tmp_path / "o.qcow2")}, backing="r")
    client.ok("eject", id="e")
    assert "'o'" in client.refused("blockdev-insert-medium", id="e", node_name="r") and state(client) == (True, None)
    client.ok("blockdev-del", node_name="o")
    client.ok("blockdev-insert-medium", id="e", node_name="r")
    daemon.stop()


@pytest.mark.asan
@pytest.mark.tsan
def test_requests_in_flight(drive):
    """FEATURES G.051: what was asked for before the tray opens is done in the medium that was there, and waited for"""
    daemon, client = drive()
    client.ok("object-add", **{"qom-type": "throttle-group", "id": "slow", "limits": {"iops-total": 20}})
    client.ok("blockdev-add", driver="throttle", node_name="t", throttle_group="slow", file="b")
    h = connect(daemon)
    client.ok("eject", id="e")
    client.ok("blockdev-insert-medium", id="e", node_name="t")
    client.ok("blockdev-close-tray", id="e")
    nbd = peers.need_module("nbd")
    answers = []
    for i in range(12):
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"4" * 512)), i * 512, completion=lambda error: answers.append(error.value) or 1)
    while h.aio_in_flight() and not answers:
        h.poll(1000)
    client.ok("eject", id="e")
    client.ok("blockdev-insert-medium", id="e", node_name="a")
    client.ok("blockdev-close-tray", id="e")
    while h.aio_in_flight():
        h.poll(1000)
    assert len(answers) == 12
    written = answers.count(0)                   # the others came when nothing was there, or to the next medium
    assert written and h.pread(512, 0) == b"a" * 512
    daemon.stop()
    with open(f"{daemon.folder}/b.raw", "rb") as f, open(f"{daemon.folder}/a.raw", "rb") as g:
        old, new = f.read(12 * 512), g.read(12 * 512)
    assert old[:512] == b"4" * 512 and old.count(b"4" * 512) + new.count(b"4" * 512) == written


@pytest.mark.asan
@pytest.mark.tsan
def test_clients_who_come(drive):
    """FEATURES G.051: media of two sizes while clients come and go: each finds the disk as long as it was told, to its last byte"""
    daemon, client = drive()
    nbd = peers.need_module("nbd")
    over, wrong, sizes = threading.Event(), [], set()

    def come():
        while not over.is_set():
            h = connect(daemon)
            size = h.get_size()
            sizes.add(size)
            for at in (size - 512, 0, size - 512):
                try:
                    byte = h.pread(512, at)[:1]
                    if byte != (b"a" if size == 4 * MIB else b"c"):
                        wrong.append((size, at, byte))
                except nbd.Error as e:
                    if e.errno != "EIO":         # nothing is there
                        wrong.append((size, at, str(e)))
            h.shutdown()

    threads = [threading.Thread(target=come) for _ in range(3)]
    for t in threads:
        t.start()
    done, refused, n = 0, 0, 0
    while (done < 40 or len(sizes) < 2) and n < 4000:
        client.ok("eject", id="e")
        n += 1
        answer = client.ask("blockdev-insert-medium", id="e", node_name="ca"[n % 2])
        done += "return" in answer
        refused += "error" in answer
        if "error" in answer:
            assert "were told" in answer["error"]["desc"]
        client.ok("blockdev-close-tray", id="e")
    over.set()
    for t in threads:
        t.join()
    assert not wrong and done >= 40 and sizes == {4 * MIB, 8 * MIB}
    daemon.stop()


@pytest.mark.asan
@pytest.mark.tsan
def test_removal_meanwhile(drive):
    """FEATURES G.051: an export that is removed while its tray moves, by another client: both get their answers, and it goes"""
    daemon, client = drive()
    other = daemon.qmp()
    for i in range(30):
        h = connect(daemon)
        client.send('{"execute": "eject", "arguments": {"id": "e"}}\n{"execute": "blockdev-close-tray", "arguments": {"id": "e"}}\n')
        other.ok("block-export-del", id="e", mode="hard")
        answers = []
        while len(answers) < 2:
            answer = client.receive()
            if "event" not in answer:
                answers.append(answer)
        for answer in answers:
            assert "return" in answer or "being removed" in answer["error"]["desc"] or "not found" in answer["error"]["desc"]
        other.wait("BLOCK_EXPORT_DELETED")
        client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "a", "name": "e", "writable": True, "x-byre-removable": True})
        del h
    for name in "abc":
        answer = client.ask("blockdev-del", node_name=name)
        assert ("error" in answer) == (name == "a")
    assert daemon.stop()[0] == 0


@pytest.mark.asan
@pytest.mark.parametrize("end", ["removal", "server", "daemon"])
def test_removal_of_a_slow_drive(drive, end):
    """FEATURES G.051: the same while its medium takes long to be durable: the removal waits for the tray, and the end of the server does"""
    daemon, client = drive()
    client.ok("blockdev-add", driver="raw", node_name="slow", file={"driver": "null-co", "size": 4 * MIB, "latency-ns": 500000000})
    client.ok("block-export-add", **{"type": "nbd", "id": "s", "node-name": "slow", "name": "s", "writable": True, "x-byre-removable": True})
    other = daemon.qmp()
    client.send(json.dumps({"execute": "blockdev-change-medium", "arguments": {"id": "s", "filename": f"{daemon.folder}/g.raw", "format": "raw"}}) + "\n")
    time.sleep(0.1)                              # it has begun, and lasts
    if end == "removal":
        other.ok("block-export-del", id="s")
        other.wait("BLOCK_EXPORT_DELETED")
    elif end == "server":
        other.ok("nbd-server-stop")
    if end != "daemon":
        answer = client.receive()
        while "event" in answer:
            answer = client.receive()
        assert "return" in answer, answer
    assert daemon.stop()[0] == 0


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("how", ["open", "empty", "closed and empty", "changed"])
def test_the_end(drive, tmp_path, how):
    """FEATURES G.051: a daemon ends well with any tray, and so does the removal of the export; what was written to a file that the tray alone has is there"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "4M")
    for removed in (False, True):
        daemon, client = drive()
        h = connect(daemon)
        if how == "changed":
            client.ok("blockdev-change-medium", id="e", filename=str(tmp_path / "d.qcow2"), format="qcow2")
            h.pwrite(bytes([7 + removed]) * MIB, MIB)
        else:
            client.ok("blockdev-open-tray" if how == "open" else "eject", id="e")
        if how.startswith("closed"):
            client.ok("blockdev-close-tray", id="e")
        if removed:
            client.ok("block-export-del", id="e", mode="hard")
            client.wait("BLOCK_EXPORT_DELETED")
            client.ok("blockdev-del", node_name="a")
        code, text = daemon.stop()
        assert code == 0 and "error" not in text, text
        if how == "changed":
            run.qemu_img("check", tmp_path / "d.qcow2")
            run.qemu_io(tmp_path / "d.qcow2", f"read -P {7 + removed} 1M 1M")


def test_bitmaps_are_of_one_medium(drive):
    """FEATURES G.051: an export that offers bitmaps cannot be removable"""
    _, client = drive()
    client.ok("block-dirty-bitmap-add", node="b", name="m")
    client.ok("block-dirty-bitmap-disable", node="b", name="m")
    words = {"type": "nbd", "id": "f", "node-name": "b", "name": "f", "bitmaps": ["m"]}
    assert "bitmaps" in client.refused("block-export-add", **words, **{"x-byre-removable": True})
    client.ok("block-export-add", **words)


def test_no_failure_of_a_disk(drive):
    """FEATURES G.051: what is asked of an empty drive is invalid, as the peer counts it, and no error of a disk: no event, and no medium has it among its failures"""
    daemon, client = drive()
    h = connect(daemon)
    client.ok("blockdev-open-tray", id="e")
    fails(h)
    client.ok("blockdev-remove-medium", id="e")
    fails(h)
    exports = client.ok("x-byre-query-export-stats")
    assert exports[0]["node-name"] == "" and exports[0]["stats"]["invalid_rd_operations"] == 2 and exports[0]["stats"]["failed_rd_operations"] == 0
    nodes = {n.get("node-name"): n["stats"] for n in client.ok("query-blockstats", query_nodes=True)}
    assert not nodes["a"]["invalid_rd_operations"] and not nodes["a"]["failed_rd_operations"]
    assert not [e for e in client.events if e["event"] == "BLOCK_IO_ERROR"]
    assert daemon.stop()[0] == 0


def test_no_more_room(drive, tmp_path):
    """FEATURES G.051: a medium that cannot be made durable stays behind its tray"""
    daemon, client = drive()
    client.ok("blockdev-add", driver="blkdebug", node_name="d", image="b", **{"inject-error": [{"event": "none", "iotype": "flush", "errno": 28}]})
    client.ok("eject", id="e")
    client.ok("blockdev-insert-medium", id="e", node_name="d")
    client.ok("blockdev-close-tray", id="e")
    h = connect(daemon)
    h.pwrite(b"5" * 512, 0)
    client.events.clear()
    for command in ("blockdev-open-tray", "eject"):
        assert "durable" in client.refused(command, id="e", force=True)
        assert state(client) == (False, "d") and h.pread(1, 0) == b"5"
    assert "durable" in client.refused("blockdev-change-medium", id="e", filename=str(tmp_path / "r.raw"), format="raw")
    assert not [e for e in client.events if e["event"] == "DEVICE_TRAY_MOVED"]
    daemon.stop()


STEPS = [("blockdev-close-tray", {}), ("blockdev-remove-medium", {}), ("blockdev-open-tray", {}), ("blockdev-open-tray", {}), ("blockdev-insert-medium", {"node-name": "b"}),
         ("blockdev-remove-medium", {}), ("blockdev-remove-medium", {}), ("blockdev-insert-medium", {"node-name": "nope"}), ("blockdev-insert-medium", {"node-name": "b"}),
         ("blockdev-close-tray", {}), ("blockdev-insert-medium", {"node-name": "a"}), ("eject", {}), ("blockdev-close-tray", {}), ("eject", {"force": True}),
         ("blockdev-insert-medium", {"node-name": "a"}), ("blockdev-close-tray", {}), ("blockdev-change-medium", {"filename": "r.raw", "format": "raw"})]


def story(client, folder):
    """What each step answers, and the trays that moved. (An event may come behind the answer of its step: the last answers collect them.)"""
    answers = []
    for command, arguments in STEPS:
        if "filename" in arguments:
            arguments = {**arguments, "filename": os.path.join(folder, arguments["filename"])}
        answers.append((command, client.ask(command, id="e", **arguments).get("error", {}).get("class")))
    for words in ({"id": "nope"}, {}, {"id": "e", "device": "e"}):
        for command in ("eject", "blockdev-open-tray", "blockdev-close-tray"):
            answers.append((command, client.ask(command, **words).get("error", {}).get("class")))
    client.ok("query-version")
    return answers, [e["data"] for e in client.events if e["event"] == "DEVICE_TRAY_MOVED"]


def test_as_a_drive_of_the_peer(drive, tmp_path):
    """FEATURES G.051: the same commands for an export and for the CD drive of a machine: the same answers, and the same events"""
    daemon, client = drive(writable=False)
    ours = story(client, str(tmp_path))
    assert daemon.stop()[0] == 0
    blockdevs = [w for name in "ab" for w in ("-blockdev", f"driver=raw,read-only=on,node-name={name},file.driver=file,file.filename={tmp_path}/{name}.raw")]
    peer = subprocess.Popen([peers.need("qemu-system-x86_64"), "-S", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", *blockdevs,
                             "-device", "ide-cd,id=e,drive=a", "-qmp", f"unix:{tmp_path}/q.sock,server=on,wait=off"], stdin=subprocess.DEVNULL)
    try:
        wait.until(lambda: os.path.exists(tmp_path / "q.sock") and wait.listens(peer, f"{tmp_path}/q.sock"), "no machine")
        theirs = story(Qmp(f"{tmp_path}/q.sock"), str(tmp_path))
    finally:
        peer.kill()
        peer.wait()
    assert ours == theirs
