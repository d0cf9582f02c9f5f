# SPDX-License-Identifier: MIT
"""External data files that are nodes, beside the peer (FEATURES 1.079, 1.132, 3.063)."""
import concurrent.futures
import os
import shutil
import signal
import subprocess
import time

import pytest

from lib import mounts, nbdserver, peers, run, wait
from qmp_client import Qmp

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


@pytest.fixture
def world(start, tmp_path):
    """world(peer): a.qcow2 with its data in d.raw; a daemon with an NBD server and a throttle group, its client, and a guest of the node "n"."""
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/d.raw", tmp_path / "a.qcow2", "16M")

    def one(peer, *words):
        daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", "--object", "throttle-group,id=g", *words, peer=peer)
        client = daemon.qmp()

        def guest(*commands, code=0):
            return run.run("qemu-io", "-f", "raw", *[w for c in commands for w in ("-c", c)], f"nbd+unix:///n?socket={daemon.folder}/n.sock", code=code).out
        return daemon, client, guest
    return one


def export(client):
    client.ok("block-export-add", type="nbd", id="e", node_name="n", writable=True)


def unexport(client):
    client.ok("block-export-del", id="e", mode="hard")
    client.wait("BLOCK_EXPORT_DELETED", id="e")


def file_of(name, **more):
    return {"driver": "file", "filename": str(name), **more}


def over(driver, below, **more):
    return {"driver": driver, ("image" if driver == "blkdebug" else "file"): below, **more}


def edges(client):
    picture = client.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    return {(names[e["parent"]], e["name"], names[e["child"]]): (sorted(e["perm"]), sorted(e["shared-perm"])) for e in picture["edges"]}


KINDS = {"file": None, "nested": file_of("d.raw", **{"node-name": "d"}), "throttle": over("throttle", file_of("d.raw"), **{"throttle-group": "g", "node-name": "d"}),
         "raw": over("raw", file_of("d.raw"), **{"node-name": "d"}),
         "raw-filter-file": over("raw", over("blkdebug", file_of("d.raw"), **{"node-name": "f"}), **{"node-name": "d"})}


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(world, tmp_path, kind, peer):
    """By name and nested; it is written, zeroed, discarded, grown and shrunk, seen as an edge with the peer's permissions, and nobody's but the image's."""
    daemon, client, guest = world(peer)
    if not KINDS[kind]:
        client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "d"}))
    client.ok("blockdev-add", driver="qcow2", node_name="n", discard="unmap", data_file=KINDS[kind] or "d", file=file_of("a.qcow2"))
    export(client)
    out = guest("write -P 7 0 8M", "write -z 1M 1M", "discard 3M 1M", "write -P 9 5000 100", "flush", "read -P 9 5000 100", "read -P 0 1M 1M", "read -P 7 4M 4M",
                "read -P 0 9M 1M")
    assert "fail" not in out and "error" not in out
    assert edges(client)[("n", "data-file", "d")] == (["consistent-read", "resize", "write"], ["consistent-read", "write", "write-unchanged"])
    client.refused("blockdev-del", node_name="d")
    client.refused("block_resize", node_name="d", size=64 * MIB)
    unexport(client)
    client.ok("block_resize", node_name="n", size=24 * MIB)
    export(client)
    assert "fail" not in guest("write -P 3 23M 1M", "read -P 0 16M 7M", "flush")
    unexport(client)
    client.ok("blockdev-del", node_name="n")
    assert [n["node-name"] for n in client.ok("query-named-block-nodes") if n["node-name"] == "d"] == (["d"] if kind == "file" else [])
    assert daemon.stop()[0] == 0
    assert (tmp_path / "d.raw").stat().st_size == 24 * MIB
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 9 5000 100", "read -P 0 1M 1M", "read -P 7 4M 4M", "read -P 3 23M 1M")
    run.qemu_io(tmp_path / "d.raw", "read -P 9 5000 100", "read -P 3 23M 1M", fmt="raw")


def test_errors_below(world, tmp_path):
    """Rule Q21: what the data node refuses is the guest's error: a write, and the flush that a flush of the image needs first. What was flushed before is there."""
    daemon, client, guest = world(False)
    rules = [{"event": "none", "iotype": "write", "errno": 28, "sector": 16384, "once": True},
             {"event": "none", "iotype": "write", "sector": 20480, "errno": 0, "once": True}, {"event": "none", "iotype": "flush", "errno": 5, "state": 2, "once": True}]
    change = [{"event": "pwritev", "state": 1, "new_state": 1}]
    below = over("blkdebug", file_of("d.raw"), **{"inject-error": rules, "set-state": change})
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of("a.qcow2"), data_file=below)
    export(client)
    assert "No space left" in guest("write -P 1 0 4M", "flush", "write -P 1 8M 1M", code=None)
    unexport(client)
    client.ok("blockdev-del", node_name="n")
    below["inject-error"] = rules[2:]
    below["inject-error"][0].pop("state")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of("a.qcow2"), data_file=below)
    export(client)
    assert "Input/output error" in guest("write -P 2 12M 1M", "flush", code=None)
    daemon.stop()
    run.byre("check", "-r", "leaks", tmp_path / "a.qcow2")
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 1 0 4M")


def test_is_seen(world, tmp_path):
    """What the image writes is in a bitmap of the data node, and not more than that, and a drain of the node by a transaction holds the image up, too."""
    daemon, client, guest = world(False)
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "d"}))
    client.ok("blockdev-add", driver="qcow2", node_name="n", data_file="d", file=file_of("a.qcow2"))
    client.ok("block-dirty-bitmap-add", node="d", name="b", granularity=65536)
    export(client)
    guest("write -P 1 1M 64k", "write -P 1 5M 128k")
    client.ok("transaction", actions=[{"type": "block-dirty-bitmap-disable", "data": {"node": "d", "name": "b"}},
                                      {"type": "block-dirty-bitmap-add", "data": {"node": "d", "name": "c", "granularity": 65536}}])
    guest("write -P 2 9M 64k")
    counts = {b["name"]: b["count"] for n in client.ok("query-named-block-nodes") if n["node-name"] == "d" for b in n["dirty-bitmaps"]}
    assert counts == {"b": 192 << 10, "c": 64 << 10}
    assert "root block node" in client.refused("blockdev-mirror", job_id="m", device="d", target="n", sync="full")
    daemon.stop()


@BOTH
def test_refusals(world, tmp_path, peer):
    """One node for both files, an image without an external data file, a data file that another image writes, one that is read-only, no such node."""
    _, client, _ = world(peer)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "plain.qcow2", "16M")
    client.ok("blockdev-add", **file_of(tmp_path / "a.qcow2", **{"node-name": "f"}))
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "d"}))
    for data in ("f", "none"):
        assert data in client.refused("blockdev-add", driver="qcow2", node_name="n", file="f", data_file=data)
    client.refused("blockdev-add", driver="qcow2", node_name="n", file=file_of(tmp_path / "plain.qcow2"), data_file="d")
    client.refused("blockdev-add", driver="raw", node_name="n", file=file_of(tmp_path / "plain.qcow2"), data_file="d")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file="f", data_file="d")
    assert peer or "'n'" in client.refused("blockdev-add", driver="qcow2", node_name="m", file=file_of(tmp_path / "a.qcow2", locking="off"), data_file="d")
    client.ok("blockdev-del", node_name="n")
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "r", "read-only": True}))
    assert peer or "'r' is read-only" in client.refused("blockdev-add", driver="qcow2", node_name="n", file="f", data_file="r")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file="f", data_file="r", read_only=True) if not peer else None
    assert client.ok("query-block-exports") == []


def test_no_way_round(world, tmp_path):
    """An image over a node cannot come to lie below that node: by its file or by its data file."""
    _, client, _ = world(False)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "p.qcow2", "16M")
    run.qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "a.qcow2", tmp_path / "q.qcow2")
    run.qemu_img("resize", "-q", tmp_path / "q.qcow2", "64M")
    client.ok("blockdev-add", driver="qcow2", node_name="p", file=file_of(tmp_path / "p.qcow2"))
    client.ok("blockdev-add", driver="qcow2", node_name="q", file=file_of(tmp_path / "q.qcow2"))
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of("a.qcow2"), data_file="p")
    for node in ("p", "q"):
        words = {"driver": "qcow2", "node-name": node, "file": file_of(tmp_path / f"{node}.qcow2")}
        if node == "q":
            client.ok("blockdev-del", node_name="n")
            client.ok("blockdev-add", driver="qcow2", node_name="n", file="q", data_file="p")
        assert client.refused("blockdev-reopen", options=[{**words, "backing": "n"}])
    assert ("n", "data-file", "p") in edges(client) and ("n", "file", "q") in edges(client)


def may_write(daemon, name):
    """Has the process the file open for writing?"""
    for fd in os.listdir(f"/proc/{daemon.process.pid}/fd"):
        path = f"/proc/{daemon.process.pid}/fd/{fd}"
        if os.path.exists(path) and os.path.realpath(path) == str(name):
            with open(path.replace("/fd/", "/fdinfo/")) as f:
                flags = [line for line in f if line.startswith("flags:")][0]
            if int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                return True
    return False


def test_modes(world, tmp_path):
    """blockdev-reopen of the image goes on with the node, which is open for writing when the image is, and no other can take its place."""
    daemon, client, guest = world(False)
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "d", "auto-read-only": True}))
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "other", "read-only": True}))
    words = {"driver": "qcow2", "node-name": "n", "file": file_of("a.qcow2")}
    client.ok("blockdev-add", **{**words, "data-file": "d", "read-only": True})
    assert not may_write(daemon, tmp_path / "d.raw")
    client.ok("blockdev-reopen", options=[{**words, "data-file": "d"}])
    assert may_write(daemon, tmp_path / "d.raw")
    export(client)
    assert "fail" not in guest("write -P 5 2M 1M", "flush", "read -P 5 2M 1M")
    client.ok("blockdev-reopen", options=[{**words, "cache": {"no-flush": True}}])
    assert "fail" not in guest("write -P 6 3M 1M", "read -P 5 2M 1M")
    assert "'d'" in client.refused("blockdev-reopen", options=[{**words, "data-file": "other"}])
    unexport(client)
    client.ok("blockdev-reopen", options=[{**words, "data-file": "d", "read-only": True}])
    run.qemu_io(tmp_path / "d.raw", "write -P 9 8M 64k", fmt="raw")      # the lock of a writer is gone
    client.ok("blockdev-del", node_name="n")
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 5 2M 1M", "read -P 6 3M 1M")


def test_inactive(world, tmp_path):
    """An image that is not active leaves its data node to another process, which may write it, and has it back afterwards."""
    daemon, client, guest = world(False)
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "d"}))
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of("a.qcow2"), data_file="d")
    export(client)
    guest("write -P 5 2M 1M")
    unexport(client)
    assert "active" in client.refused("blockdev-set-active", node_name="d", active=False)
    run.run("qemu-io", "-c", "write 0 512", tmp_path / "a.qcow2", code=1)
    client.ok("blockdev-set-active", active=False)
    run.qemu_io(tmp_path / "a.qcow2", "read -P 5 2M 1M", "write -P 6 3M 1M")
    assert "active" in client.refused("blockdev-add", driver="qcow2", node_name="m", file=file_of("a.qcow2"), data_file="d")
    client.ok("blockdev-set-active", node_name="n", active=True)
    export(client)
    assert "fail" not in guest("read -P 5 2M 1M", "read -P 6 3M 1M", "write -P 7 4M 1M")
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 7 4M 1M")


@BOTH
def test_lock_stays(world, tmp_path, peer):
    """The image's own file is not to be locked: its data node is all the same, also after the image was opened anew."""
    daemon, client, _ = world(peer)
    client.ok("blockdev-add", **file_of("d.raw", **{"node-name": "d"}))
    client.ok("blockdev-add", **file_of("a.qcow2", locking="off", **{"node-name": "f"}))
    words = {"driver": "qcow2", "node-name": "n", "file": "f", "data-file": "d"}
    client.ok("blockdev-add", **words)
    (tmp_path / "copy.qcow2").write_bytes((tmp_path / "a.qcow2").read_bytes())       # another image of the same data
    for options in ({}, {"discard": "unmap"}, {"read-only": True}, {}):
        client.ok("blockdev-reopen", options=[{**words, **options}])
        tried = run.run("qemu-io", "-c", "write -P 8 0 64k", tmp_path / "copy.qcow2", code=1)
        assert "lock" in tried.err
    client.ok("blockdev-del", node_name="n")
    run.qemu_io(tmp_path / "copy.qcow2", "write -P 8 0 64k")
    assert daemon.stop()[0] == 0


def seen(kind, folder):
    return file_of(folder / "d.raw", **{"node-name": "d", "auto-read-only": True}) if kind == "file" else KINDS[kind]


@pytest.fixture
def touched(world, tmp_path):
    """A file system where opening a file for writing touches it, with the data file."""
    with mounts.tmpfs(tmp_path / "t", "32M") as folder:
        shutil.copy(tmp_path / "d.raw", folder)
        yield folder


@pytest.mark.parametrize("kind", ["raw", "throttle", "file"])
def test_others_write(world, touched, tmp_path, kind):
    """FEATURES G.018: what another program writes to the data node's file while it is open for reading only is noticed when the image is opened for
    writing: a bitmap in memory pretends nothing. What the image writes itself, and files that are opened anew, spoil none."""
    daemon, client, guest = world(False)
    data = seen(kind, touched)
    client.ok("blockdev-add", **data)
    words = {"driver": "qcow2", "node-name": "n", "file": file_of("a.qcow2"), "data-file": "d"}
    client.ok("blockdev-add", **words)
    client.ok("block-dirty-bitmap-add", node="n", name="b", granularity=65536)

    def bitmap():
        return [(b["recording"], b["count"], b.get("inconsistent", False)) for n in client.ok("query-named-block-nodes") if n["node-name"] == "n" for b in n["dirty-bitmaps"]]

    for at in range(1, 3):
        export(client)
        assert "fail" not in guest(f"write -P 5 {at}M 64k", "flush")
        unexport(client)
        client.ok("blockdev-reopen", options=[{**words, "read-only": True}])
        for how in ({"auto-read-only": False}, {"auto-read-only": False}, {}) if kind == "file" else ():
            client.ok("blockdev-reopen", options=[{**data, **how}])
        client.ok("blockdev-reopen", options=[words])
        assert bitmap() == [(True, at * 65536, False)]
    client.ok("blockdev-reopen", options=[{**words, "read-only": True}])
    run.qemu_io((touched if kind == "file" else tmp_path) / "d.raw", "write -P 9 8M 64k", fmt="raw")
    client.ok("blockdev-reopen", options=[words])
    assert bitmap() == [(False, 0, True)]
    assert daemon.stop()[0] == 0


@pytest.fixture
def far(world, tmp_path):
    """far(of): a disk of a server for that file, and the server's process, which may be told to stand still."""
    started = []

    def one(of):
        sock = tmp_path / "far.sock"
        process = subprocess.Popen([peers.need("qemu-nbd"), "-t", "-f", "raw", "-k", str(sock), str(tmp_path / of)])
        started.append(process)
        wait.until(lambda: wait.listens(process, sock), "the peer does not listen")
        return {"driver": "nbd", "server": {"type": "unix", "path": str(sock)}}, process
    yield one
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.mark.parametrize("place,filtered", [("data-file", False), ("data-file", True), ("file", True), ("itself", True)])
def test_server_stands_still(world, far, tmp_path, place, filtered):
    """FEATURES 9.012: a job's target is an image whose data node, or whose file, is a disk of a server that stands still, also below a filter, or is that
    disk: what the cancelled job has left there is given up."""
    daemon, client, guest = world(False)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", tmp_path / "whole.qcow2", "16M")
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "source.raw", "16M")
    run.qemu_io(tmp_path / "source.raw", "write -P 6 0 16M", fmt="raw")
    disk, server = far({"data-file": "d.raw", "file": "whole.qcow2", "itself": "d.raw"}[place])
    if filtered:
        disk = over("throttle", disk, **{"throttle-group": "g"})
    if place == "itself":
        client.ok("blockdev-add", **disk, node_name="n")
    else:
        client.ok("blockdev-add", **{"driver": "qcow2", "node-name": "n", "file": file_of(tmp_path / "a.qcow2"), place: disk})
    client.ok("blockdev-add", **file_of(tmp_path / "source.raw", **{"node-name": "s"}))
    client.ok("block-export-add", type="nbd", id="e", node_name="s", name="n", writable=True)
    client.ok("blockdev-mirror", job_id="m", device="s", target="n", sync="full")
    client.wait("BLOCK_JOB_READY")
    nbdserver.stand_still(server.pid)
    guest("write -P 7 0 4M")
    time.sleep(0.3)                                          # copied in the background by now: should it not be, nothing waits, and nothing is wrong
    client.ok("block-job-cancel", device="m", force=True)
    def taken():
        return "'m'" in client.ask("blockdev-mirror", job_id="k", device="s", target="n", sync="full").get("error", {}).get("desc", "")

    wait.until(lambda: not taken(), "it waits for its target")
    server.send_signal(signal.SIGCONT)
    assert daemon.stop()[0] == 0


def test_two_over_each_others_files(start, tmp_path):
    """FEATURES 1.079, 1.132: two images, each with the file of the other as its data file, are opened at the same time, and neither waits for the other"""
    for name in "ab":
        run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/{name}.raw", tmp_path / name, "1M")
    daemon = start("daemon", "--chardev", "socket,id=c2,path=c2.sock,server=on,wait=off", "--monitor", "chardev=c2")
    daemon.wait_for("c2.sock")
    clients = [daemon.qmp(), Qmp(os.path.join(daemon.folder, "c2.sock"))]
    for name in "ab":
        clients[0].ok("blockdev-add", **file_of(tmp_path / name, **{"node-name": name, "read-only": True}))

    def come_and_go(client, node, file, data):
        for _ in range(3000):
            client.ok("blockdev-add", **{"driver": "qcow2", "node-name": node, "file": file, "data-file": data, "read-only": True})
            client.ok("blockdev-del", node_name=node)

    with concurrent.futures.ThreadPoolExecutor(2) as both:
        for done in [both.submit(come_and_go, clients[0], "x", "a", "b"), both.submit(come_and_go, clients[1], "y", "b", "a")]:
            done.result(timeout=60)
    assert daemon.stop()[0] == 0
