# SPDX-License-Identifier: MIT
"""Exports with a tray: media come and go under clients that stay; what is no drive says so (FEATURES G.051)."""
import os
import subprocess
import threading

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
    return export["x-byre-tray-open"], export.get("x-byre-medium")


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
