# SPDX-License-Identifier: MIT
"""Threads by name, and exports that are served by them."""
import os
import pathlib
import signal
import threading

import pytest

from lib import peers, pki, run

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
MIB = 1 << 20
NUMBERS = {"poll-max-ns": 1000, "poll-grow": 3, "poll-shrink": 2, "aio-max-batch": 4, "thread-pool-min": 1, "thread-pool-max": 5}


def world(start, tmp_path, *words, peer=False):
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "64M")
    daemon = start("daemon", *words, "--blockdev", f"driver=qcow2,node-name=q,file.driver=file,file.filename={tmp_path}/d.qcow2",
                   "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    return daemon, daemon.qmp()


def connect(daemon, name):
    h = peers.need_module("nbd").NBD()
    h.connect_uri(f"nbd+unix:///{name}?socket={daemon.folder}/n.sock")
    return h


def ticks(daemon):
    """Processor time of each thread, by its number: (name, ticks)."""
    spent = {}
    for task in pathlib.Path(f"/proc/{daemon.process.pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        spent[int(task.name)] = ((task / "comm").read_text().strip(), int(fields[11]) + int(fields[12]))
    return spent


def read_until_busy(daemon, h, numbers):
    """Reads where nothing is stored, so that no other thread has anything to do, until one of these has worked for 20 ticks."""
    before = ticks(daemon)
    while True:
        for _ in range(200):
            h.pread(65536, 32 * MIB)
        now = ticks(daemon)
        if max(now[n][1] - before[n][1] for n in numbers) >= 20:
            return {n: now[n][1] - before[n][1] for n in before if n in now}
        assert sum(now[n][1] - before[n][1] for n in before if n in now) < 200, (now, before)


@BOTH
def test_object(start, tmp_path, peer):
    """FEATURES 3.076: the numbers of an object are checked, shown and changed; its id is its own"""
    _, client = world(start, tmp_path, "--object", "iothread,id=io1," + ",".join(f"{k}={v}" for k, v in NUMBERS.items()), peer=peer)
    client.ok("object-add", qom_type="iothread", id="io2")
    assert {o["name"]: o["type"] for o in client.ok("qom-list", path="/objects")}["io2"] == "child<iothread>"
    assert {p["name"] for p in client.ok("qom-list", path="/objects/io1")} == {"type", *NUMBERS}
    for name, value in NUMBERS.items():
        assert client.ok("qom-get", path="/objects/io1", property=name) == value
    assert client.ok("qom-get", path="/objects/io2", property="thread-pool-max") == 64
    client.ok("qom-set", path="/objects/io1", property="poll-max-ns", value=5)
    assert client.ok("qom-get", path="io1", property="poll-max-ns") == 5
    assert "'iothread.nix' not found" in client.refused("qom-get", path="/objects/io1", property="nix")
    for name in list(NUMBERS)[:4]:
        assert f"{name} value must be in range" in client.refused("qom-set", path="/objects/io1", property=name, value=-1)
        assert f"{name} value must be in range" in client.refused("object-add", qom_type="iothread", id="io3", **{name: -1})
    for bad in ({"thread-pool-max": 0}, {"thread-pool-min": 65}):
        assert "bad thread-pool-min/thread-pool-max values" in client.refused("object-add", qom_type="iothread", id="io3", **bad)
    assert "integer" in client.refused("object-add", qom_type="iothread", id="io3", **{"poll-grow": "x"})
    assert "'nix'" in client.refused("object-add", qom_type="iothread", id="io3", nix=1)
    assert "io2" in client.refused("object-add", qom_type="iothread", id="io2")
    assert "io2" in client.refused("object-add", qom_type="throttle-group", id="io2")
    assert "identifier" in client.refused("object-add", qom_type="iothread", id="3x")
    client.ok("object-del", id="io2")
    assert "io2" not in {o["name"] for o in client.ok("qom-list", path="/objects")}
    assert "nix" in client.refused("block-export-add", type="nbd", id="e", node_name="q", iothread="nix")


def test_load_is_on_the_thread(start, tmp_path):
    """FEATURES 10.025: clients of an export are served by its thread, which has the object's name; those of another export are not"""
    daemon, client = world(start, tmp_path, "--threads", "2", "--object", "iothread,id=io1")
    thread = client.ok("query-iothreads")
    assert [t["id"] for t in thread] == ["io1"] and thread[0]["poll-max-ns"] == 32768
    number = thread[0]["thread-id"]
    client.ok("block-export-add", type="nbd", id="e", node_name="q", name="e", writable=True, iothread="io1")
    client.ok("block-export-add", type="nbd", id="f", node_name="q", name="f", writable=True)
    h, other = connect(daemon, "e"), connect(daemon, "f")
    h.pwrite(b"\x5a" * MIB, 0)
    assert ticks(daemon)[number][0] == "io1"
    spent = read_until_busy(daemon, h, [number])
    rest = [n for n in spent if n != number]
    assert max(spent[n] for n in rest) < 10, spent
    assert read_until_busy(daemon, other, rest)[number] < 10
    assert other.pread(MIB, 0) == b"\x5a" * MIB
    h.shutdown()
    other.shutdown()
    assert daemon.stop()[0] == 0


def test_in_use(start, tmp_path):
    """FEATURES 3.076, 10.025: an object stays while an export names it or a client is served there; its thread serves the next one of another name"""
    daemon, client = world(start, tmp_path)
    client.ok("object-add", qom_type="iothread", id="io1")
    number = client.ok("query-iothreads")[0]["thread-id"]
    client.ok("block-export-add", type="nbd", id="e", node_name="q", name="e", writable=True, iothread="io1")
    assert "in use" in client.refused("object-del", id="io1")
    h = connect(daemon, "e")
    h.pwrite(b"1" * 4096, 0)
    client.ok("x-blockdev-set-iothread", node_name="q", iothread=None)                  # who is there stays
    assert "in use" in client.refused("object-del", id="io1")
    assert h.pread(4096, 0) == b"1" * 4096
    h.shutdown()
    client.ok("block-export-del", id="e", mode="hard")                                  # he may not be seen to have gone
    client.wait("BLOCK_EXPORT_DELETED", id="e")
    client.ok("object-del", id="io1")
    assert client.ok("query-iothreads") == [] and ticks(daemon)[number][0] == "byre-idle"
    client.ok("object-add", qom_type="iothread", id="another")
    assert client.ok("query-iothreads")[0]["thread-id"] == number and ticks(daemon)[number][0] == "another"
    added = ["another"]
    while True:                                                                         # as many as there are
        answer = client.ask("object-add", qom_type="iothread", id=f"t{len(added)}")
        if "error" in answer:
            break
        added.append(f"t{len(added)}")
    assert "no thread is left" in answer["error"]["desc"] and len(added) == 16
    assert [t["id"] for t in client.ok("query-iothreads")] == added
    assert len({t["thread-id"] for t in client.ok("query-iothreads")}) == 16
    client.ok("object-del", id=added[3])
    client.ok("object-add", qom_type="iothread", id="last")
    assert daemon.stop()[0] == 0


def test_fixed_and_moved(start, tmp_path):
    """FEATURES 10.025, 8.018: a node's exports follow x-blockdev-set-iothread with their next clients, but for one that is fixed"""
    daemon, client = world(start, tmp_path, "--threads", "1", "--object", "iothread,id=io1", "--object", "iothread,id=io2")
    client.ok("block-export-add", type="nbd", id="e", node_name="q", name="e", writable=True, iothread="io1")
    h = connect(daemon, "e")
    h.pwrite(b"1" * 4096, 0)
    assert "Cannot find iothread nix" in client.refused("x-blockdev-set-iothread", node_name="q", iothread="nix")
    client.ok("x-blockdev-set-iothread", node_name="q", iothread="io2", force=True)
    numbers = {t["id"]: t["thread-id"] for t in client.ok("query-iothreads")}
    assert "in use" in client.refused("object-del", id="io2")
    late = connect(daemon, "e")
    assert read_until_busy(daemon, late, [numbers["io2"]])[numbers["io1"]] < 10
    client.ok("block-export-add", type="nbd", id="x", node_name="q", name="x", iothread="io2", **{"fixed-iothread": True})
    assert "fixed" in client.refused("x-blockdev-set-iothread", node_name="q", iothread="io1")
    assert "fixed" in client.refused("x-blockdev-set-iothread", node_name="q", iothread=None, force=True)
    client.ok("x-blockdev-set-iothread", node_name="q", iothread="io2")
    for c in (h, late):
        assert c.pread(4096, 0) == b"1" * 4096
        c.shutdown()
    assert daemon.stop()[0] == 0


def test_threads_share_a_node(start, tmp_path):
    """FEATURES 11.037, 10.025, G.075: writers on four named threads and a fifth on none, to one image while exports come and go: nothing is lost"""
    daemon, client = world(start, tmp_path, "--threads", "2")
    for i in range(4):
        client.ok("object-add", qom_type="iothread", id=f"io{i}")
    places = [{"iothread": f"io{i}"} for i in range(4)] + [{}]
    for i, place in enumerate(places):
        client.ok("block-export-add", type="nbd", id=f"e{i}", node_name="q", name=f"e{i}", writable=True, **place)
    faults = []

    def fill(number):
        for turn in range(4):                                                           # each connection moves to its thread anew
            h = connect(daemon, f"e{number}")
            for step in range(48):
                h.pwrite(bytes([number * 48 + step]) * 4096, number * 4096 + (turn * 48 + step) * 65536)
            h.flush()
            if h.pread(4096, number * 4096 + turn * 48 * 65536) != bytes([number * 48]) * 4096:
                faults.append((number, turn))
            h.shutdown()

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(len(places))]
    for t in threads:
        t.start()
    for i in range(10):
        client.ok("block-export-add", type="nbd", id="y", node_name="q", name="y", iothread=f"io{i % 4}")
        client.ok("block-export-del", id="y", mode="hard")
        client.wait("BLOCK_EXPORT_DELETED", id="y")
    for t in threads:
        t.join()
    h = connect(daemon, "e4")
    for number in range(len(places)):
        for at in range(4 * 48):
            assert h.pread(4096, number * 4096 + at * 65536) == bytes([number * 48 + at % 48]) * 4096
    h.shutdown()
    assert not faults and daemon.stop(signal.SIGTERM)[0] == 0
    run.qemu_img("check", tmp_path / "d.qcow2")


def test_clients_are_cut_off_on_the_way(start, tmp_path):
    """FEATURES 10.025: an export that is removed while its clients come, and move to its thread, is gone at the end, with all of them"""
    nbd = peers.need_module("nbd")
    daemon, client = world(start, tmp_path, "--threads", "2", "--object", "iothread,id=io1")
    over, served = threading.Event(), []

    def come_and_go():
        while not over.is_set():
            h = nbd.NBD()
            try:
                h.connect_uri(f"nbd+unix:///e?socket={daemon.folder}/n.sock")
                h.pread(512, 0)
                served.append(1)
            except nbd.Error:
                pass                                                                    # there is no export just now, or no more

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for t in threads:
        t.start()
    for _ in range(30):
        client.ok("block-export-add", type="nbd", id="e", node_name="q", name="e", iothread="io1")
        so_far = len(served)
        while len(served) == so_far:
            client.ok("query-iothreads")
        client.ok("block-export-del", id="e", mode="hard")
        client.wait("BLOCK_EXPORT_DELETED", id="e")
    over.set()
    for t in threads:
        t.join()
    assert daemon.stop()[0] == 0


def test_tls_goes_along(start, tmp_path):
    """FEATURES 10.025: a client that speaks TLS is served by the thread, too"""
    nbd = peers.need_module("nbd")
    key = "0123456789abcdef" * 4
    folder = pki.psk_folder(tmp_path, "psk", fred=key)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "64M")
    daemon = start("daemon", "--object", "iothread,id=io1", "--object", f"tls-creds-psk,id=t,endpoint=server,dir={folder}",
                   "--blockdev", f"driver=qcow2,node-name=q,file.driver=file,file.filename={tmp_path}/d.qcow2",
                   "--nbd-server", "addr.type=unix,addr.path=n.sock,tls-creds=t", "--export", "type=nbd,id=e,node-name=q,writable=on,iothread=io1", monitor=True)
    h = nbd.NBD()
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_psk_file(str(folder / "keys.psk"))
    h.set_tls_username("fred")
    h.set_export_name("q")
    h.connect_unix(os.path.join(daemon.folder, "n.sock"))
    data = os.urandom(3 * MIB)
    h.pwrite(data, 4096)
    assert h.pread(len(data), 4096) == data
    h.shutdown()
    assert daemon.stop()[0] == 0
