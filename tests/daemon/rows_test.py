# SPDX-License-Identifier: MIT
"""Options and requests of nodes and exports, each beside the peer's daemon where that has them."""
import os
import random
import signal
import threading

import pytest

from lib import nbdserver, peers, run

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
MIB = 1 << 20


def flags(client):
    return {n["node-name"]: (n["cache"]["direct"], n["cache"]["no-flush"], n["ro"], n["detect_zeroes"]) for n in client.ok("query-named-block-nodes", flat=True)}


def nested(tmp_path, top, below, file, backing):
    return {"driver": "qcow2", "node-name": "q", **top, "file": {"driver": "file", "node-name": "qf", "filename": str(tmp_path / "top.qcow2"), **file},
            "backing": {"driver": "qcow2", "node-name": "b", **below, "file": {"driver": "file", "node-name": "bf", "filename": str(tmp_path / "base.qcow2"), **backing}}}


@BOTH
def test_children_inherit(start, tmp_path, peer):
    """FEATURES 11.015: nested nodes have the cache mode of what they are nested in; a backing file is read-only; what a node says of itself goes before"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "4M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    client = start("daemon", peer=peer).qmp()
    client.ok("blockdev-add", **nested(tmp_path, {"cache": {"direct": True, "no-flush": True}, "detect-zeroes": "on"}, {}, {}, {}))
    seen = flags(client)
    assert seen["q"] == (True, True, False, "on") and seen["qf"] == (True, True, False, "off") and seen["b"] == (True, True, True, "off")
    assert seen["bf"] == (True, True, peer, "off")                                      # a commit may have to write to it
    client.ok("blockdev-del", **{"node-name": "q"})
    client.ok("blockdev-add", **nested(tmp_path, {"cache": {"direct": True}, "read-only": True}, {"cache": {"direct": False}}, {"cache": {"direct": False, "no-flush": True}}, {}))
    seen = flags(client)
    assert seen["qf"] == (False, True, peer, "off") and seen["bf"] == (False, False, peer, "off") and seen["b"][2] and seen["q"][2]
    client.ok("blockdev-del", **{"node-name": "q"})
    assert flags(client) == {}


@BOTH
def test_a_backing_file_may_be_shared(start, tmp_path, peer):
    """FEATURES 11.015, 11.003: two disks over one nested backing file are open at the same time in two programs"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "4M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "other.qcow2")
    client = start("daemon", peer=peer).qmp()
    client.ok("blockdev-add", **nested(tmp_path, {}, {}, {}, {}))
    run.qemu_io(tmp_path / "other.qcow2", "write -P 1 0 64k")
    run.byre("io", "-c", "write -P 2 64k 64k", tmp_path / "other.qcow2")


@BOTH
def test_read_only_unless_asked(start, disk, peer):
    """FEATURES 10.006: an export is for reading unless it is said to be writable"""
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()
    client.ok("blockdev-add", **{"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": str(disk)}})
    client.ok("block-export-add", **{"type": "nbd", "id": "r", "node-name": "q"})
    client.ok("block-export-add", **{"type": "nbd", "id": "w", "node-name": "q", "name": "w", "writable": True})
    told = {e["export-name"]: e["is_read_only"] for e in run.run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={daemon.folder}/n.sock").json["exports"]}
    assert told == {"q": True, "w": False}


@BOTH
def test_names_of_exports(start, disk, peer):
    """FEATURES 10.022: names and descriptions have up to 4096 bytes of any characters; the empty name is one; without a name it is that of the node"""
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()
    client.ok("blockdev-add", **{"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": str(disk)}})

    def add(number, **more):
        return client.ask("block-export-add", **{"type": "nbd", "id": f"e{number}", "node-name": "q", **more})

    good = {"q": {}, "\u00e4\u20ac\U0001f600": {"name": "\u00e4\u20ac\U0001f600"}, "": {"name": ""}, "n" * 4096: {"name": "n" * 4096}, "d": {"name": "d", "description": "y" * 4096}}
    for i, more in enumerate(good.values()):
        assert add(i, **more) == {"return": {}}
    for bad in ({"name": "n" * 4097}, {"name": "\u20ac" * 1366}, {"name": "z", "description": "y" * 4097}, {}):
        assert "error" in add(99, **bad), bad
    listed = {e["export-name"]: e.get("description", "") for e in run.run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={daemon.folder}/n.sock").json["exports"]}
    assert set(listed) == set(good) and listed["d"] == "y" * 4096


@BOTH
def test_throwaway_overlay(start, disk, tmp_path, peer):
    """FEATURES 11.013, 7.010: what is written with --snapshot is read back, and gone at the end with its file; the image is as it was"""
    nbd = peers.need_module("nbd")
    before, place = disk.read_bytes(), tmp_path / "tmp"
    place.mkdir()
    daemon = start("nbd", "-s", "-t", "-k", "FOLDER/k", "-f", "qcow2", "a.qcow2", peer=peer, env={"TMPDIR": str(place)})
    daemon.wait_for("k")
    h = nbd.NBD()
    h.connect_unix(f"{daemon.folder}/k")
    h.pwrite(b"\x77" * MIB, 0)
    h.flush()
    assert h.pread(MIB, 0) == b"\x77" * MIB
    assert list(place.iterdir()) == []                                                  # it has no name already
    h.shutdown()
    assert daemon.stop(signal.SIGTERM)[0] == 0
    assert list(place.iterdir()) == [] and disk.read_bytes() == before


@BOTH
def test_limits_are_the_childs(start, tmp_path, peer):
    """FEATURES 11.020, 11.039: long requests reach a server that takes 1 MiB at once in such pieces, and the data are the same; short ones in its blocks"""
    nbd = peers.need_module("nbd")
    log = tmp_path / "log"
    server = nbdserver.nbdkit("--filter=log", "--filter=blocksize-policy", "memory", "24M", "blocksize-minimum=4096", "blocksize-preferred=65536",
                              "blocksize-maximum=1M", "blocksize-error-policy=error", f"logfile={log}").start()
    try:
        daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
        client = daemon.qmp()
        client.ok("blockdev-add", **{"driver": "nbd", "node-name": "far", "server": {"type": "unix", "path": server.socket}})
        client.ok("blockdev-add", **{"driver": "raw", "node-name": "r", "file": "far"})
        client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "r", "writable": True})
        h = nbd.NBD()
        h.connect_uri(f"nbd+unix:///r?socket={daemon.folder}/n.sock")
        most = h.get_block_size(nbd.SIZE_MAXIMUM)
        assert most in (MIB, 32 * MIB)
        data = os.urandom(20 * MIB)
        for at in range(0, len(data), most):
            h.pwrite(data[at:at + most], at)
        assert b"".join(h.pread(min(most, len(data) - at), at) for at in range(0, len(data), most)) == data
        h.shutdown()
        assert daemon.stop()[0] == 0
        counts = [int(w.split("=")[1], 0) for line in log.read_text().splitlines() if (" Read " in line or " Write " in line) and "count=" in line
                  for w in line.split() if w.startswith("count=")]
        assert len(counts) >= 40 and max(counts) <= MIB and all(c % 4096 == 0 for c in counts)
    finally:
        server.close()


@BOTH
def test_limits_are_told(start, tmp_path, peer):
    """FEATURES 11.039: an export tells the strictest limit of what lies below its node, through formats, filters and backing files; a longer request is served all the same"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "r.raw", "8M")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "8M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    daemon = start("daemon", "--object", "throttle-group,id=g", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()

    def bounded(name, most, file, **more):
        client.ok("blockdev-add", driver="blkdebug", node_name=name, max_transfer=most, image={"driver": "file", "filename": str(tmp_path / file)}, **more)
    bounded("b1", 3 * 65536, "r.raw", align=4096)
    client.ok("blockdev-add", driver="raw", node_name="raw", file="b1")
    client.ok("blockdev-add", driver="throttle", node_name="limited", file="raw", throttle_group="g")
    bounded("b2", 65536, "base.qcow2")
    client.ok("blockdev-add", driver="qcow2", node_name="base", file="b2", read_only=True)
    client.ok("blockdev-add", driver="qcow2", node_name="chain", file={"driver": "file", "filename": str(tmp_path / "top.qcow2")}, backing="base")
    for name, most in (("limited", 3 * 65536), ("chain", 65536)):
        client.ok("block-export-add", type="nbd", id=name, node_name=name, writable=name == "limited")
        told = run.run("nbdinfo", "--json", f"nbd+unix:///{name}?socket={daemon.folder}/n.sock").json["exports"][0]
        assert told["block_size_maximum"] == most and told["block_size_preferred"] == 4096, told
    h = peers.need_module("nbd").NBD()
    h.set_strict_mode(0)
    h.connect_uri(f"nbd+unix:///limited?socket={daemon.folder}/n.sock")
    data = os.urandom(2 * MIB)
    h.pwrite(data, 512)
    assert h.pread(2 * MIB, 512) == data
    h.shutdown()


def test_copies_up_and_writes_beside(start, tmp_path):
    """FEATURES 11.022, 11.028: reads that are copied into the overlay never go over what is written at the same time, whatever clusters both touch"""
    nbd = peers.need_module("nbd")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "8M")
    run.qemu_io(tmp_path / "base.qcow2", "write -P 0xbb 0 8M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    daemon = start("daemon", "--threads", "4", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    client.ok("blockdev-add", **{"driver": "copy-on-read", "node-name": "c", "file": {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": str(tmp_path / "top.qcow2")}}})
    client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "c", "writable": True})
    shadow, faults = bytearray(b"\xbb" * (8 * MIB)), []

    def writer(number):
        """Owns every sector whose number is its own modulo 4."""
        rng, h = random.Random(number), nbd.NBD()
        h.connect_uri(f"nbd+unix:///c?socket={daemon.folder}/n.sock")
        for step in range(300):
            at = (rng.randrange(8 * MIB // 2048) * 4 + number) * 512
            what = bytes([step % 251 + 1]) * 512
            read = h.aio_pread(nbd.Buffer(65536), rng.randrange(8 * MIB // 65536) * 65536)
            write = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(what)), at)
            shadow[at:at + 512] = what
            for command in (read, write):
                while not h.aio_command_completed(command):
                    h.poll(-1)
            if h.pread(512, at) != what:
                faults.append((number, step, at))
        h.shutdown()

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///c?socket={daemon.folder}/n.sock")
    assert not faults and h.pread(8 * MIB, 0) == bytes(shadow)
    h.shutdown()
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "top.qcow2")


def test_one_node_by_several_loops(start, tmp_path):
    """FEATURES 11.037, G.075: four exports of one node, served by four threads: each sees at once what the others have written"""
    nbd = peers.need_module("nbd")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "16M")
    daemon = start("daemon", "--threads", "4", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    client.ok("blockdev-add", **{"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": str(tmp_path / "d.qcow2")}})
    handles = []
    for i in range(4):
        client.ok("block-export-add", **{"type": "nbd", "id": f"e{i}", "node-name": "q", "name": f"x{i}", "writable": True})
        handles.append(nbd.NBD())
        handles[i].connect_uri(f"nbd+unix:///x{i}?socket={daemon.folder}/n.sock")

    def fill(number):
        for step in range(64):
            handles[number].pwrite(bytes([number * 64 + step]) * 4096, number * 4096 + step * 65536 * 4)

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for number in range(4):
        for step in range(64):
            assert handles[(number + 1) % 4].pread(4096, number * 4096 + step * 65536 * 4) == bytes([number * 64 + step]) * 4096
    for h in handles:
        h.shutdown()
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "d.qcow2")


def test_drained_and_going_on(start, tmp_path):
    """FEATURES 11.036: transactions, jobs that start, pause and end, and nodes that are opened in another way, thirty times under a writer: nothing hangs, nothing is lost"""
    nbd = peers.need_module("nbd")
    for name in ("d.qcow2", "t.qcow2"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "8M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    options = {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": str(tmp_path / "d.qcow2")}}
    client.ok("blockdev-add", **options)
    client.ok("blockdev-add", **{"driver": "qcow2", "node-name": "t", "file": {"driver": "file", "filename": str(tmp_path / "t.qcow2")}})
    client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "q", "writable": True})
    shadow, over = bytearray(8 * MIB), threading.Event()

    def write():
        rng, h = random.Random(1), nbd.NBD()
        h.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
        while not over.is_set():
            at, what = rng.randrange(8 * MIB // 4096) * 4096, os.urandom(4096)
            h.pwrite(what, at)
            shadow[at:at + 4096] = what
        h.shutdown()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(30):
            add = [{"type": "block-dirty-bitmap-add", "data": {"node": "q", "name": f"{n}{i}"}} for n in "ab"]
            client.ok("transaction", actions=add + [{"type": "block-dirty-bitmap-clear", "data": {"node": "q", "name": f"a{i}"}}])
            client.ok("blockdev-mirror", **{"job-id": f"j{i}", "device": "q", "target": "t", "sync": "full"})
            client.ok("job-pause", id=f"j{i}")
            client.ok("transaction", actions=[{"type": "block-dirty-bitmap-remove", "data": {"node": "q", "name": f"{n}{i}"}} for n in "ab"])
            client.ok("job-resume", id=f"j{i}")
            client.ok("block-job-cancel", device=f"j{i}", force=True)
            client.wait("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", device=f"j{i}")
            client.ok("blockdev-reopen", options=[{**options, "detect-zeroes": "on" if i % 2 else "off"}])
            client.events.clear()
    finally:
        over.set()
        writer.join()
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    assert h.pread(8 * MIB, 0) == bytes(shadow)
    h.shutdown()
    assert daemon.stop()[0] == 0
