# SPDX-License-Identifier: MIT
"""blockdev-reopen: other options for nodes in use, against the peer and under load (FEATURES 1.133, 8.010, 11.005, 11.006)."""
import fcntl
import json
import os
import struct
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from lib import peers, run

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from blockdev_test import Load  # noqa: E402

MIB = 1 << 20
F_OFD_GETLK = 36


def file_of(name, **more):
    return {"driver": "file", "filename": name, **more}


def entry(node, **more):
    """An entry of the list: the node with what it was added with, and this."""
    return {"driver": "qcow2", "node-name": node, "file": node + "f", **more}


@pytest.fixture
def images(tmp_path):
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "16M")
    run.qemu_io(tmp_path / "base", "write -P 1 0 1M")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "other", "16M")
    run.qemu_io(tmp_path / "other", "write -P 2 0 1M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", tmp_path / "top", "16M")
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "raw", "16M")
    return tmp_path


def add_all(client):
    for name in ("base", "other", "top"):
        assert client.ask("blockdev-add", **file_of(name, node_name=name + "f")) == {"return": {}}
        more = {"backing": "base"} if name == "top" else {}
        assert client.ask("blockdev-add", driver="qcow2", node_name=name, file=name + "f", **more) == {"return": {}}
    assert client.ask("blockdev-add", driver="null-co", node_name="nul", size=MIB) == {"return": {}}


def open_daemon(start, peer):
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()
    add_all(client)
    return daemon, client


def look(client):
    """What is open, and how."""
    seen = {}
    for n in client.ask("query-named-block-nodes", flat=True)["return"]:
        if not n["node-name"].startswith("#") and not n["node-name"].endswith("-file"):
            seen[n["node-name"]] = (n["drv"], n["ro"], n["detect_zeroes"])
    picture = client.ask("x-debug-query-block-graph")["return"]
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    edges = {(names[e["parent"]], e["name"], names[e["child"]]) for e in picture["edges"] if e["name"] in ("backing", "file")}
    return seen, edges


TOP = {"backing": "base"}
STORY = [
    [entry("top")], [entry("nobody")], [{"driver": "qcow2", "file": "topf"}], [entry("top", driver="raw", **TOP)],
    [entry("top", foo=1, **TOP)], [entry("top", backing="nobody")], [entry("top", backing="top")], [entry("top", file="nobody", **TOP)],
    [entry("top", **TOP, **{"l2-cache-entry-size": 3})], [entry("top", **TOP, **{"detect-zeroes": "unmap"})], [entry("top", **TOP, **{"force-share": True})],
    [entry("top", **TOP, **{"l2-cache-size": MIB, "lazy-refcounts": True, "detect-zeroes": "on"})], [entry("top", **TOP)],
    [entry("top", **TOP, **{"detect-zeroes": "unmap", "discard": "unmap"})], [entry("top", **TOP, **{"overlap-check": "all", "cache": {"no-flush": True}})],
    [entry("top", **TOP, **{"read-only": True})], [entry("top", **TOP)],
    [file_of("top", **{"node-name": "topf", "read-only": True})],
    [file_of("top", **{"node-name": "topf", "read-only": True}), entry("top", **TOP, **{"read-only": True})],
    [entry("top", **TOP)], [file_of("top", **{"node-name": "topf"}), entry("top", **TOP)],
    [file_of("other", **{"node-name": "topf"})], [{"driver": "raw", "node-name": "topf", "file": "basef"}],
    [entry("top", file=file_of("other"), **TOP)],
    [entry("top", backing={"driver": "qcow2", "file": "basef"})], [entry("top", backing={"driver": "qcow2", "node-name": "base", "file": "basef"})],
    [entry("top", backing=None)], [entry("top", backing="other")], [entry("top", **TOP)],
    [entry("base", backing="top"), entry("top", **TOP)], [entry("base", backing="top")],
    [entry("top", **TOP, **{"read-only": True}), entry("other", file="nobody")],           # none of it
    [entry("top", backing=None), entry("base", backing="top")], [entry("top", backing="base")], [entry("base", backing=None), entry("top", **TOP)],
    [{"driver": "null-co", "node-name": "nul", "size": MIB}], [{"driver": "null-co", "node-name": "nul", "size": 2 * MIB}],
]


def test_same_story(start, images):
    """FEATURES 11.005: one list of changes, in both programs: what is refused, and what is open in which way behind each"""
    told = []
    for peer in (False, True):
        daemon, client = open_daemon(start, peer)
        steps = []
        for options in STORY:
            answer = client.ask("blockdev-reopen", options=options)
            steps.append((answer.get("return", answer.get("error", {}).get("class")), look(client)))
        told.append(steps)
        assert client.ask("quit") == {"return": {}}
        assert daemon.wait()[0] == 0
    for options, ours, theirs in zip(STORY, *told):
        assert ours[0] == theirs[0], options
        assert ours[1][0] == theirs[1][0], options
        assert {e for e in ours[1][1] if "root" not in e} == {e for e in theirs[1][1] if not any(x.startswith("#") for x in e)}, options
    for name in ("base", "other", "top"):
        run.qemu_img("check", images / name)


def said(client, command, **arguments):
    answer = client.ask(command, **arguments)
    return answer["error"]["desc"] if "error" in answer else answer["return"]


def test_what_is_refused_is_named(start, images):
    """FEATURES 11.005, 11.016: node and option of what is wrong"""
    _, client = open_daemon(start, False)
    for options, words in (([entry("top")], "backing is missing for 'top'"), ([entry("top", foo=1, **TOP)], "'foo'"),
                           ([entry("top", **TOP), entry("top", **TOP)], "'top' is in the list twice"), ([{"driver": "compress", "node-name": "nul", "file": "base"}], "'driver'"),
                           ([entry("top", file="otherf", **TOP)], "its file is 'topf'"), ([entry("base", file={"driver": "file", "filename": "base", "aio": "threads"})], "basef"),
                           ([file_of("top", **{"node-name": "topf", "read-only": True})], "'top' writes")):
        assert words in said(client, "blockdev-reopen", options=options), options
    assert said(client, "blockdev-reopen", options=[]) == {}


def content(client, daemon, node):
    """The first bytes of a node, through an export of its own."""
    assert client.ask("block-export-add", type="nbd", id="look", node_name=node) == {"return": {}}
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///{node}?socket={daemon.folder}/n.sock")
    data = handle.pread(4, 0)
    handle.shutdown()
    assert client.ask("block-export-del", id="look", mode="hard") == {"return": {}}
    while client.ask("query-block-exports")["return"]:
        pass
    return data


def test_backing(start, images):
    """FEATURES 11.005: what shows through is what lies below now; null detaches it; zeros that were written meanwhile hide it afterwards"""
    daemon, client = open_daemon(start, False)
    assert content(client, daemon, "top") == b"\1" * 4
    for below, byte in (("other", 2), (None, 0), ("base", 1)):
        assert client.ask("blockdev-reopen", options=[entry("top", backing=below)]) == {"return": {}}
        assert content(client, daemon, "top") == bytes([byte]) * 4
    assert client.ask("blockdev-reopen", options=[entry("top", backing=None)]) == {"return": {}}
    client.ask("block-export-add", type="nbd", id="e", node_name="top", writable=True)
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///top?socket={daemon.folder}/n.sock")
    handle.zero(65536, 0)
    assert client.ask("blockdev-reopen", options=[entry("top", backing="base")]) == {"return": {}}
    assert handle.pread(8, 65532) == bytes(4) + b"\1" * 4
    handle.shutdown()
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_io(images / "top", "read -P 0 0 64k", "read -P 1 64k 64k")


def test_read_only_and_back(start, images):
    """FEATURES 1.133, 11.006: for reading: bitmaps are stored, the lock goes; for writing: it comes back, and they record again"""
    daemon, client = open_daemon(start, False)
    path = os.path.join(daemon.folder, "other")
    client.ask("block-dirty-bitmap-add", node="other", name="stored", persistent=True)
    client.ask("block-dirty-bitmap-add", node="other", name="own")
    for round_ in (1, 2, 3):
        assert client.ask("block-export-add", type="nbd", id="e", node_name="other", writable=True) == {"return": {}}
        assert "'export 'e'' writes" in said(client, "blockdev-reopen", options=[entry("other", **{"read-only": True})])
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(f"nbd+unix:///other?socket={daemon.folder}/n.sock")
        handle.pwrite(bytes([round_]) * 65536, round_ * MIB)
        handle.shutdown()
        client.ask("block-export-del", id="e", mode="hard")
        while client.ask("query-block-exports")["return"]:
            pass
        assert run.run(peers.need("qemu-img"), "info", path, code=None).code == 1
        assert client.ask("blockdev-reopen", options=[entry("other", **{"read-only": True})]) == {"return": {}}
        info = json.loads(run.qemu_img("info", "--output=json", path).out)
        assert info["format-specific"]["data"]["bitmaps"] == [{"flags": ["auto"], "name": "stored", "granularity": 65536}]
        seen = {n["node-name"]: n for n in client.ask("query-named-block-nodes")["return"]}["other"]
        assert seen["ro"] and {b["name"]: b["count"] for b in seen["dirty-bitmaps"]} == {"stored": round_ * 65536, "own": round_ * 65536}
        assert client.ask("blockdev-reopen", options=[entry("other")]) == {"return": {}}
        assert run.run(peers.need("qemu-img"), "info", path, code=None).code == 1
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_img("check", path)


def test_a_writer_elsewhere(start, images):
    """FEATURES 11.004, 11.005: what another program holds is not opened for writing; all of the list stays as it was"""
    daemon, client = open_daemon(start, False)
    quiet = [file_of(n, **{"node-name": n + "f", "read-only": True}) for n in ("base", "other")] + \
        [entry(n, **{"read-only": True}) for n in ("base", "other")]
    assert client.ask("blockdev-reopen", options=quiet) == {"return": {}}
    before = look(client)
    from twin import Holder
    with Holder(os.path.join(daemon.folder, "other"), "-r"):
        wake = [file_of(n, **{"node-name": n + "f"}) for n in ("base", "other")] + [entry(n) for n in ("base", "other")]
        assert "other: in use" in said(client, "blockdev-reopen", options=wake)
        assert look(client) == before
    assert client.ask("blockdev-reopen", options=wake) == {"return": {}}
    assert not look(client)[0]["base"][1] and not look(client)[0]["other"][1]
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0


@pytest.mark.timeout(180)
def test_under_load(start, images):
    """FEATURES 1.133: caches, cache modes, discard and zeros change while three clients write; nothing is lost"""
    daemon, client = open_daemon(start, False)
    client.ask("block-dirty-bitmap-add", node="top", name="own")
    client.ask("block-dirty-bitmap-add", node="top", name="stored", persistent=True)
    assert client.ask("block-export-add", type="nbd", id="e", node_name="top", writable=True) == {"return": {}}
    assert client.ask("blockdev-reopen", options=[entry("top", backing=None)]) == {"return": {}}
    load = Load(f"nbd+unix:///top?socket={daemon.folder}/n.sock", 16 * MIB)
    changes = ({"l2-cache-size": 65536}, {"cache-size": 8 * MIB, "l2-cache-entry-size": 4096}, {"lazy-refcounts": True}, {"detect-zeroes": "on"},
               {"discard": "unmap", "detect-zeroes": "unmap"}, {"overlap-check": "all", "cache-clean-interval": 1}, {})
    for i in range(21):
        load.wait_for(5)
        assert client.ask("blockdev-reopen", options=[entry("top", backing=None, **changes[i % len(changes)])]) == {"return": {}}
        if i % 5 == 0:
            assert client.ask("blockdev-reopen", options=[file_of("top", **{"node-name": "topf", "cache": {"direct": i % 2 == 0}})]) == {"return": {}}
    load.wait_for(5)
    load.stop()
    seen = {n["node-name"]: n for n in client.ask("query-named-block-nodes")["return"]}["top"]
    counts = {b["name"]: b["count"] for b in seen["dirty-bitmaps"]}
    written = len({i * load.block // 65536 for i, g in enumerate(load.last) if g}) * 65536
    assert counts == {"own": written, "stored": written}
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_img("check", images / "top")
    run.qemu_img("rebase", "-u", "-b", "", images / "top")
    run.qemu_img("convert", "-O", "raw", images / "top", images / "flat")
    assert (images / "flat").read_bytes() == load.image()


def test_throttle(byre_serve, images):
    """FEATURES 3.050, 11.005: a throttle node gets another group and another node below it; a user of it does not see another size"""
    server = byre_serve(images / "raw", "-f", "raw")
    limits = {k: 0 for k in ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
    for group in ("g", "h"):
        server.qmp("block_set_io_throttle", device="disk0", group=group, **{**limits, "bps": 1 << 30})
    for name in ("base", "other"):
        server.qmp("blockdev-add", driver="qcow2", **{"node-name": name, "file": file_of(str(images / name))})
    server.qmp("blockdev-add", driver="throttle", file="base", **{"node-name": "th", "throttle-group": "h"})

    def reopen(file, group="h"):
        with_error = run.run(run.BYRE, "ctl", server.control, "blockdev-reopen", json.dumps({"options": [{"driver": "throttle", "node-name": "th", "file": file, "throttle-group": group}]}), code=None)
        return with_error.err if with_error.code else ""

    def below():
        picture = server.qmp("x-debug-query-block-graph")
        names = {n["id"]: n["name"] for n in picture["nodes"]}
        return [names[e["child"]] for e in picture["edges"] if names[e["parent"]] == "th"]
    assert reopen("other") == "" and below() == ["other"]
    assert "cycle" in reopen("th") or "above" in reopen("th")
    assert "'no' does not exist" in reopen("base", "no") and below() == ["other"]
    assert "nobody" in reopen("nobody")
    server.qmp("block-export-add", type="nbd", id="e", writable=True, **{"node-name": "th"})
    assert reopen("base") == "" and below() == ["base"]
    run.qemu_img("create", "-q", "-f", "qcow2", images / "small", "8M")
    server.qmp("blockdev-add", driver="qcow2", **{"node-name": "small", "file": file_of(str(images / "small"))})
    server.qmp("blockdev-add", driver="qcow2", backing=None, **{"node-name": "ro", "read-only": True, "file": file_of(str(images / "top"))})
    assert "bytes" in reopen("small")
    assert "read-only" in reopen("ro")
    assert below() == ["base"]
    assert server.stop() == 0


def test_a_group_stays_meanwhile(start):
    """FEATURES 3.050, 11.005: while a throttle node waits for its requests, to get another group, nobody takes that group away; the one that it leaves can go"""
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=False)
    client, other = daemon.qmp(), daemon.qmp()
    for group in ("a", "b"):
        assert client.ask("object-add", qom_type="throttle-group", id=group) == {"return": {}}
    assert client.ask("blockdev-add", driver="null-co", node_name="slow", size=MIB, latency_ns=1500000000) == {"return": {}}
    assert client.ask("blockdev-add", driver="throttle", node_name="th", file="slow", throttle_group="a") == {"return": {}}
    assert client.ask("block-export-add", type="nbd", id="e", node_name="th", name="e", writable=True) == {"return": {}}
    uri, group, refused = f"nbd+unix:///e?socket={daemon.folder}/n.sock", "a", 0
    for _ in range(10):
        before, group = group, "b" if group == "a" else "a"
        answers = []
        write = subprocess.Popen([peers.need("qemu-io"), "-f", "raw", "-c", "write 0 512", uri], stdout=subprocess.DEVNULL)
        time.sleep(0.4)                          # it need not be there already: then there is another try
        reopen = threading.Thread(target=lambda to: answers.append(client.ask("blockdev-reopen", options=[
            {"driver": "throttle", "node-name": "th", "file": "slow", "throttle-group": to}])), args=(group,))
        reopen.start()
        time.sleep(0.2)
        if reopen.is_alive():
            answer = other.ask("object-del", id=group)
            refused += reopen.is_alive()
            assert "in use" in answer["error"]["desc"], answer
        reopen.join()
        assert answers == [{"return": {}}] and write.wait() == 0
        assert other.ask("object-del", id=before) == {"return": {}}
        assert "in use" in other.ask("object-del", id=group)["error"]["desc"]
        assert client.ask("object-add", qom_type="throttle-group", id=before) == {"return": {}}
        if refused:
            break
    assert refused
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0


def test_a_file_below_what_a_job_needs(start, tmp_path):
    """The image over a file goes over with it: not while a job has one of its bitmaps, which is cleared at the job's end"""
    for name in "ab":
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "16M")
    client = start("daemon").qmp()
    for name in "ab":
        assert client.ask("blockdev-add", **file_of(name, node_name=name + "f")) == {"return": {}}
        assert client.ask("blockdev-add", driver="qcow2", node_name=name, file=name + "f") == {"return": {}}
    assert client.ask("block-dirty-bitmap-add", node="a", name="x", persistent=True) == {"return": {}}
    assert client.ask("blockdev-mirror", job_id="m", device="a", target="b", sync="bitmap", bitmap="x", bitmap_mode="on-success") == {"return": {}}
    other = [{**file_of("a", cache={"direct": True}), "node-name": "af"}]
    assert "bitmaps are in use" in client.ask("blockdev-reopen", options=other)["error"]["desc"]
    assert client.ask("block-job-cancel", device="m", force=True) == {"return": {}}
    while client.ask("query-jobs")["return"]:
        pass
    assert client.ask("blockdev-reopen", options=other) == {"return": {}}
    assert client.ask("block-dirty-bitmap-remove", node="a", name="x") == {"return": {}}


def test_a_file_that_can_only_be_read(start, tmp_path):
    """Neither the new options nor the old ones can be had, because the file cannot be opened for writing any more: it is open for reading, which is told,
    and everything goes on when it can be written again"""
    peers.need_root()
    folder = tmp_path / "folder"
    folder.mkdir()
    run.qemu_img("create", "-q", "-f", "qcow2", folder / "d", "16M")
    daemon = start("daemon", env={**os.environ, "MALLOC_PERTURB_": "165"})
    client = daemon.qmp()
    options = {"driver": "qcow2", "node-name": "d", "file": file_of(str(folder / "d"))}
    assert client.ask("blockdev-add", **options) == {"return": {}}
    run.run("mount", "--bind", folder, folder)
    try:
        run.run("mount", "-o", "remount,bind,ro", folder)
        for _ in range(2):
            assert "error" in client.ask("blockdev-reopen", options=[{**options, "detect-zeroes": "on"}])
            assert [n["ro"] for n in client.ask("query-named-block-nodes")["return"] if n["node-name"] == "d"] == [True]
    finally:
        run.run("umount", "-l", folder)
    assert client.ask("blockdev-reopen", options=[options]) == {"return": {}}
    assert [n["ro"] for n in client.ask("query-named-block-nodes")["return"] if n["node-name"] == "d"] == [False]
    assert client.ask("quit") == {"return": {}}
    status, text = daemon.wait()
    assert status == 0 and "can only be read from now on" in text


def test_a_refused_file_keeps_the_lock(start, tmp_path):
    """A file that cannot be opened in the new way is locked for the image over it as before: nobody else opens that for writing"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "16M")
    run.qemu_io(tmp_path / "a", "write 0 512")
    client = start("daemon").qmp()
    assert client.ask("blockdev-add", **file_of(str(tmp_path / "a"), node_name="af", read_only=True)) == {"return": {}}
    assert client.ask("blockdev-add", driver="qcow2", node_name="a", file="af", read_only=True) == {"return": {}}
    other = [{**file_of(str(tmp_path / "a"), cache={"direct": True}), "node-name": "af", "read-only": True}]
    os.rename(tmp_path / "a", tmp_path / "elsewhere")
    assert "no such file" in client.ask("blockdev-reopen", options=other)["error"]["desc"]
    os.rename(tmp_path / "elsewhere", tmp_path / "a")
    assert "lock" in run.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", tmp_path / "a", code=1).err
    assert client.ask("blockdev-reopen", options=other) == {"return": {}}
    assert "lock" in run.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", tmp_path / "a", code=1).err


@pytest.mark.parametrize("data", (False, True))
def test_another_file_of_the_same_name(start, tmp_path, data):
    """A node that is opened in another way (blockdev-reopen, the layer below a snapshot) never takes another file that has come to its name"""
    for name, byte in (("a", 1), ("new", 2)):
        run.qemu_img("create", "-q", "-f", "qcow2", *(("-o", f"data_file={tmp_path}/{name}.data") if data else ()), tmp_path / name, "16M")
        run.qemu_io(tmp_path / name, f"write -P {byte} 0 1M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    options = {"driver": "qcow2", "node-name": "a", "file": file_of(str(tmp_path / "a"))}
    assert client.ask("blockdev-add", **options) == {"return": {}}
    assert client.ask("block-export-add", type="nbd", id="e", node_name="a", name="a", writable=True) == {"return": {}}
    suffix = ".data" if data else ""
    os.rename(tmp_path / f"a{suffix}", tmp_path / "old")
    os.rename(tmp_path / f"new{suffix}", tmp_path / f"a{suffix}")
    assert "another file" in client.ask("blockdev-reopen", options=[{**options, "detect-zeroes": "on"}])["error"]["desc"]
    assert client.ask("blockdev-snapshot-sync", node_name="a", snapshot_file=str(tmp_path / "s"), snapshot_node_name="s") == {"return": {}}
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///a?socket={daemon.folder}/n.sock")
    handle.pwrite(b"\3" * 512, 8192)
    assert handle.pread(512, 4096) == b"\1" * 512
    handle.shutdown()
    assert client.ask("quit") == {"return": {}}
    assert "another file" in daemon.wait()[1]


# ---- the lock while an image becomes another one ----

WRITE_HELD, WRITE_DENIED = 101, 201      # bytes of the lock: somebody may write; nobody else may


class LockWatch(threading.Thread):
    """Looks at these bytes of a file's lock all the time, as another program would before it writes."""

    def __init__(self, path, *bytes_):
        super().__init__(daemon=True)
        self.fd, self.bytes, self.looks, self.gaps, self.ended = os.open(path, os.O_RDONLY), bytes_, 0, 0, False
        self.start()

    def is_locked(self, byte):
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(self.fd, F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK

    def run(self):
        while not self.ended:
            self.gaps += not all(self.is_locked(b) for b in self.bytes)
            self.looks += 1

    def stop(self):
        self.ended = True
        self.join()
        os.close(self.fd)
        return self.looks, self.gaps


def test_nobody_gets_in_between(start, images):
    """FEATURES 11.004, 11.005: while an image that is written gets other options, alone or with its file, its lock is there at every moment"""
    daemon, client = open_daemon(start, False)
    path = os.path.join(daemon.folder, "other")
    watch = LockWatch(path, WRITE_HELD, WRITE_DENIED)
    tries = 0
    for i in range(30):
        options = [entry("other", **{"lazy-refcounts": bool(i % 2)})]
        if i % 3 == 0:
            options.append(file_of("other", **{"node-name": "otherf", "discard": "unmap" if i % 2 else "ignore"}))
        if i % 5 == 0:                           # what fails behind the first one is changed back
            options.append(entry("top", backing="top"))
        assert ("return" in client.ask("blockdev-reopen", options=options)) == (i % 5 != 0), i
        if i % 10 == 0:
            done = run.run(peers.need("qemu-io"), "-f", "qcow2", "-c", "write 0 512", path, code=None)
            assert "lock" in done.err + done.out, done
            tries += 1
    looks, gaps = watch.stop()
    assert looks > 30 and gaps == 0 and tries == 3, (looks, gaps)
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_img("check", path)


@pytest.mark.timeout(120)
def test_who_else_uses_the_file(start, images):
    """FEATURES 11.004: nodes over one file come, go and are opened anew: the lock of the one that writes stays, and goes with it"""
    daemon, client = open_daemon(start, False)
    path = os.path.join(daemon.folder, "other")
    ended = threading.Event()

    def come_and_go():
        other = daemon.qmp()
        while not ended.is_set():
            for driver in ("raw", "qcow2"):
                answer = other.ask("blockdev-add", driver=driver, node_name="reader", read_only=True, file="otherf")
                while "return" in answer and "return" not in other.ask("blockdev-del", node_name="reader"):
                    pass                         # it is opened anew, with its file
        other.close()
    watch, thread = LockWatch(path, WRITE_HELD, WRITE_DENIED), threading.Thread(target=come_and_go)
    assert "return" in client.ask("blockdev-add", driver="raw", node_name="r", read_only=True, file="otherf")
    assert "return" in client.ask("blockdev-del", node_name="r")
    thread.start()
    for i in range(20):
        answer = client.ask("blockdev-reopen", options=[entry("other", **{"lazy-refcounts": bool(i % 2)}), file_of("other", **{"node-name": "otherf"})][:1 + i % 2])
        assert "return" in answer, answer
    ended.set()
    thread.join()
    looks, gaps = watch.stop()
    assert looks > 30 and gaps == 0, (looks, gaps)
    assert client.ask("blockdev-reopen", options=[entry("other", **{"read-only": True})]) == {"return": {}}
    run.qemu_io(path, "read 0 512", options=["-r"])
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_img("check", path)
