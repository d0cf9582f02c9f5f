# SPDX-License-Identifier: MIT
"""Nodes that come and go under a running disk: blockdev-add, blockdev-del, external snapshots (FEATURES 8.010, 8.013, 9.073, 9.074, 11.001,
11.010, 11.016)."""
import json
import random
import subprocess
import threading

import pytest

from lib import peers, run
from qmp_client import Qmp

MIB = 1 << 20


def make(path, size="16M", fmt="qcow2", *more):
    run.byre("create", "-q", "-f", fmt, *more, path, size)
    return path


def refused(server, command, **arguments):
    with pytest.raises(Exception) as caught:
        server.qmp(command, **arguments)
    return str(caught.value)


def nodes(server):
    return {n["node-name"]: n for n in server.qmp("query-named-block-nodes")}


class Load:
    """Writers with a model each: block i belongs to writer i % writers; what is on the disk at the end must be what they wrote last."""

    def __init__(self, uri, size, writers=3, block=16384):
        self.uri, self.blocks, self.block, self.count = uri, size // block, block, writers
        self.last = [0] * self.blocks
        self.written = [0] * writers
        self.errors = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.write, args=(i,)) for i in range(writers)]
        for t in self.threads:
            t.start()

    def body(self, block, generation):
        return (block.to_bytes(4, "little") + generation.to_bytes(4, "little")) * (self.block // 8) if generation else bytes(self.block)

    def write(self, me):
        try:
            handle = peers.need_module("nbd").NBD()
            handle.connect_uri(self.uri)
            rng = random.Random(me)
            while not self.stopped.is_set():
                block = rng.randrange(self.blocks // self.count) * self.count + me
                if rng.random() < 0.3:
                    assert handle.pread(self.block, block * self.block) == self.body(block, self.last[block]), block
                    continue
                generation = self.last[block] + 1
                handle.pwrite(self.body(block, generation), block * self.block)
                self.last[block] = generation
                self.written[me] += 1
                if rng.random() < 0.02:
                    handle.flush()
            handle.shutdown()
        except Exception as error:  # noqa: BLE001 - told by check()
            self.errors.append(error)

    def wait_for(self, more):
        """Until each writer has written `more` times."""
        want = [n + more for n in self.written]
        while any(n < w for n, w in zip(self.written, want)) and not self.errors:
            self.stopped.wait(0.005)

    def stop(self):
        self.stopped.set()
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors
        assert sum(self.written) > 0

    def image(self):
        return b"".join(self.body(i, g) for i, g in enumerate(self.last))


def content(path, fmt="qcow2"):
    raw = path.with_suffix(".flat")
    run.qemu_img("convert", "-f", fmt, "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def test_add_and_delete(tmp_path, byre_serve):
    """FEATURES 8.010, 3.065: nodes by name over one another; what is in use stays; nothing leaks"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    make(tmp_path / "a.qcow2")
    add = {"driver": "qcow2", "node-name": "a", "file": {"driver": "file", "filename": str(tmp_path / "a.qcow2")}}
    before = set(nodes(server))
    for _ in range(200):
        server.qmp("blockdev-add", **add)
        server.qmp("blockdev-del", **{"node-name": "a"})
    assert set(nodes(server)) == before
    server.qmp("blockdev-add", driver="file", **{"node-name": "f", "filename": str(tmp_path / "a.qcow2")})
    server.qmp("blockdev-add", driver="qcow2", file="f", **{"node-name": "a"})
    seen = nodes(server)
    assert seen["f"]["drv"] == "file" and seen["a"]["drv"] == "qcow2" and seen["a"]["image"]["virtual-size"] == 16 * MIB
    assert "in use" in refused(server, "blockdev-del", **{"node-name": "f"})
    assert "already" in refused(server, "blockdev-add", **add)
    server.qmp("blockdev-del", **{"node-name": "a"})
    server.qmp("blockdev-del", **{"node-name": "f"})
    assert set(nodes(server)) == before
    assert "disk0" in refused(server, "blockdev-del", **{"node-name": "disk0"})
    assert "nobody" in refused(server, "blockdev-del", **{"node-name": "nobody"})
    assert server.stop() == 0
    run.qemu_img("check", tmp_path / "a.qcow2")


def test_options_are_checked(tmp_path, byre_serve):
    """FEATURES 11.016: what is wrong is named, and nothing is left open"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    before = set(nodes(server))
    name = {"node-name": "x"}
    file = {"driver": "file", "filename": str(tmp_path / "d2.qcow2")}
    make(tmp_path / "d2.qcow2")
    assert "foo" in refused(server, "blockdev-add", driver="qcow2", file=file, foo="bar", **name)
    assert "driver" in refused(server, "blockdev-add", file=file, **name)
    assert "node-name" in refused(server, "blockdev-add", driver="qcow2", file=file)
    assert "gone" in refused(server, "blockdev-add", driver="qcow2", file="gone", **name)
    assert "gone" in refused(server, "blockdev-add", driver="qcow2", file=file, backing="gone", **name)
    assert "latency" in refused(server, "blockdev-add", driver="null-co", latency=3, **name)
    assert "disk0" in refused(server, "blockdev-add", driver="qcow2", file="disk0", **name)
    nested = {"driver": "qcow2", "node-name": "in", "file": {"driver": "file", "node-name": "in-file", "filename": str(tmp_path / "gone")}}
    assert "gone" in refused(server, "blockdev-add", driver="qcow2", file=file, backing=nested, **name)
    assert set(nodes(server)) == before
    assert server.stop() == 0


def test_a_backing_name_names_no_node(tmp_path, byre_serve):
    """What an image records never reaches nodes of the process by name"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    top = make(tmp_path / "top.qcow2")
    run.qemu_img("rebase", "-u", "-F", "raw", "-b", 'json:{"driver":"raw","file":"disk0-file"}', top)
    server.qmp("blockdev-add", driver="null-co", **{"node-name": "disk0-file", "size": 65536})
    text = refused(server, "blockdev-add", driver="qcow2", file={"driver": "file", "filename": str(top)}, **{"node-name": "x"})
    assert "names a node" in text, text
    assert server.stop() == 0


def test_chains_of_named_nodes(tmp_path, byre_serve):
    """FEATURES 11.001: backing by name and nested; the picture shows the edges with their roles"""
    base, top = make(tmp_path / "base.raw", "16M", "raw"), make(tmp_path / "top.qcow2")
    base.write_bytes(bytes(MIB) + b"\7" * MIB + bytes(14 * MIB))
    server = byre_serve(make(tmp_path / "d.qcow2"))
    server.qmp("blockdev-add", driver="raw", **{"node-name": "base", "read-only": True,
               "file": {"driver": "file", "node-name": "base-file", "filename": str(base), "read-only": True}})
    server.qmp("blockdev-add", driver="qcow2", backing="base", **{"node-name": "top", "file": {"driver": "file", "filename": str(top)}})
    picture = server.qmp("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    edges = {(names[e["parent"]], names[e["child"]]): e for e in picture["edges"]}
    assert edges["top", "base"]["name"] == "backing" and edges["top", "base"]["perm"] == ["consistent-read"]
    assert "write" not in edges["top", "base"]["shared-perm"]
    assert edges["base", "base-file"]["name"] == "file"
    assert any(c == "disk0" and e["name"] == "root" for (p, c), e in edges.items())
    assert "in use" in refused(server, "blockdev-del", **{"node-name": "base"})
    server.qmp("blockdev-del", **{"node-name": "top"})
    server.qmp("blockdev-del", **{"node-name": "base"})
    assert "base-file" not in nodes(server)
    assert server.stop() == 0


def test_snapshots_under_load(tmp_path, byre_serve):
    """FEATURES 8.013, 9.073, 11.010: twenty snapshots while three clients write; every layer is whole, and the disk is what they wrote"""
    image = make(tmp_path / "d.qcow2", "8M")
    server = byre_serve(image)
    load = Load(server.uri, 8 * MIB)
    files = [image]
    for i in range(20):
        load.wait_for(5)
        files.append(tmp_path / f"s{i}.qcow2")
        if i % 2:
            make(files[-1], "8M")
            server.qmp("blockdev-add", driver="qcow2", backing=None,
                       **{"node-name": f"s{i}", "file": {"driver": "file", "filename": str(files[-1])}})
            server.qmp("blockdev-snapshot", node=f"s{i - 1}", overlay=f"s{i}")
        else:
            server.qmp("blockdev-snapshot-sync", **{"node-name": f"s{i - 1}" if i else "disk0", "snapshot-file": str(files[-1]), "snapshot-node-name": f"s{i}"})
    load.wait_for(5)
    assert server.qmp("query-block")[0]["inserted"]["node-name"] == "s19"
    assert server.qmp("query-block-exports")[0]["node-name"] == "s19"
    assert "in use" in refused(server, "blockdev-del", **{"node-name": "s5"})
    load.stop()
    assert server.stop() == 0
    chain = json.loads(run.qemu_img("info", "--backing-chain", "--output=json", files[-1]).out)
    assert [c["filename"] for c in chain] == [str(f) for f in reversed(files)]
    assert content(files[-1]) == load.image()
    for f in files:
        run.qemu_img("check", f)
    assert sum(map(lambda f: f.stat().st_size > 400000, files)) > 5      # writes went to many of them


def test_what_lies_below_is_settled(tmp_path, byre_serve):
    """FEATURES 9.073, 11.003, 11.006: the old layer is open for reading, other programs may read it, its bitmaps are stored, and those that are
    not the image's stay"""
    server = byre_serve(make(tmp_path / "d.qcow2", "8M"))
    image = tmp_path / "t.qcow2"
    server.qmp("blockdev-snapshot-sync", **{"node-name": "disk0", "snapshot-file": str(image), "snapshot-node-name": "t"})
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    server.qmp("block-dirty-bitmap-add", node="t", name="stored", persistent=True)
    server.qmp("block-dirty-bitmap-add", node="t", name="own")
    handle.pwrite(b"\1" * MIB, MIB)
    assert run.run(peers.need("qemu-img"), "info", image, code=None).code == 1           # somebody writes
    server.qmp("blockdev-snapshot-sync", **{"node-name": "t", "snapshot-file": str(tmp_path / "s.qcow2"), "snapshot-node-name": "s"})
    seen = nodes(server)
    assert seen["t"]["ro"] and not seen["s"]["ro"]
    counts = {b["name"]: (b["count"], b["recording"], b["persistent"]) for b in seen["t"]["dirty-bitmaps"]}
    assert counts == {"stored": (MIB, True, True), "own": (MIB, True, False)}
    assert "dirty-bitmaps" not in seen["s"] or not seen["s"]["dirty-bitmaps"]
    info = json.loads(run.qemu_img("info", "--output=json", image).out)["format-specific"]["data"]["bitmaps"]
    assert [(b["name"], b["flags"]) for b in info] == [("stored", ["auto"])]
    assert "read-only" in refused(server, "block-dirty-bitmap-clear", node="t", name="stored")
    server.qmp("block-dirty-bitmap-clear", node="t", name="own")
    picture = server.qmp("x-debug-query-block-graph")
    root = next(e for e in picture["edges"] if e["name"] == "root")
    assert "write" in root["perm"]                        # the export's demands went along
    handle.pwrite(b"\2" * MIB, 2 * MIB)
    handle.flush()
    with pytest.raises(Exception):
        run.qemu_io(image, "write 0 512")
    # down again: the layer below is opened for writing by the job, with all its bitmaps, and then for reading
    server.qmp("block-commit", device="s", **{"job-id": "j", "base-node": "t"})
    while server.qmp("query-block-jobs")[0]["status"] != "ready":
        pass
    server.qmp("block-job-complete", device="j")
    while server.qmp("query-block-jobs"):
        pass
    assert server.qmp("query-block")[0]["inserted"]["node-name"] == "t"
    counts = {b["name"]: b["count"] for b in nodes(server)["t"]["dirty-bitmaps"]}
    assert counts == {"stored": 2 * MIB, "own": MIB}
    assert server.stop() == 0
    assert content(image)[2 * MIB:3 * MIB] == b"\2" * MIB
    run.qemu_img("check", image)


def test_a_new_overlay_is_durably_there(tmp_path, byre_serve):
    """The folder of a new file is synced before the first request goes to it"""
    peers.need("strace")
    server = byre_serve(make(tmp_path / "d.qcow2", "8M"))
    (tmp_path / "sub").mkdir()
    tracer = subprocess.Popen(["strace", "-f", "-y", "-p", str(server.process.pid), "-e", "trace=fsync", "-o", str(tmp_path / "calls")], stderr=subprocess.PIPE, text=True)
    assert "attached" in tracer.stderr.readline()
    server.qmp("blockdev-snapshot-sync", **{"node-name": "disk0", "snapshot-file": str(tmp_path / "sub" / "s.qcow2")})
    tracer.terminate()
    tracer.wait()
    assert f"{tmp_path}/sub>" in (tmp_path / "calls").read_text()
    assert server.stop() == 0


def test_snapshots_are_refused(tmp_path, byre_serve):
    """FEATURES 9.073: overlays with users or with something below them, formats that cannot, files that are in use"""
    image = make(tmp_path / "d.qcow2")
    server = byre_serve(image)
    base = make(tmp_path / "base.raw", "16M", "raw")
    over = make(tmp_path / "o.qcow2", "16M", "qcow2", "-b", base, "-F", "raw")
    small = make(tmp_path / "small.qcow2", "8M")
    raw = make(tmp_path / "r.raw", "16M", "raw")

    def add(name, path, fmt="qcow2", **more):
        server.qmp("blockdev-add", driver=fmt, **{"node-name": name, "file": {"driver": "file", "filename": str(path)}}, **more)
    add("o", over)
    add("small", small)
    add("r", raw, "raw")
    take = {"node": "disk0"}
    assert "already has a backing image" in refused(server, "blockdev-snapshot", overlay="o", **take)
    assert "bytes" in refused(server, "blockdev-snapshot", overlay="small", **take)
    assert "does not support backing images" in refused(server, "blockdev-snapshot", overlay="r", **take)
    assert refused(server, "blockdev-snapshot", overlay="disk0", **take)
    assert json.loads(run.qemu_img("info", "-U", "--output=json", small).out).get("backing-filename") is None
    sync = {"node-name": "disk0", "snapshot-node-name": "s"}
    assert "open" in refused(server, "blockdev-snapshot-sync", **sync, **{"snapshot-file": str(base)})
    assert base.stat().st_size == 16 * MIB
    assert "open" in refused(server, "blockdev-snapshot-sync", **sync, **{"snapshot-file": str(image)})
    assert "raw" in refused(server, "blockdev-snapshot-sync", **sync, format="raw", **{"snapshot-file": str(tmp_path / "n")})
    assert "already in use" in refused(server, "blockdev-snapshot-sync", **{"node-name": "disk0", "snapshot-node-name": "o", "snapshot-file": str(tmp_path / "n")})
    assert not (tmp_path / "n").exists()
    assert server.qmp("query-block")[0]["inserted"]["node-name"] == "disk0"
    assert server.stop() == 0
    run.qemu_img("check", image)


def test_change_backing_file(tmp_path, byre_serve):
    """FEATURES 9.074: the name in the image changes, the chain stays"""
    base = make(tmp_path / "base.qcow2")
    run.qemu_io(base, "write -P 9 0 64k")
    top = make(tmp_path / "top.qcow2", "16M", "qcow2", "-b", base, "-F", "qcow2")
    server = byre_serve(top)
    server.qmp("change-backing-file", device="disk0", **{"image-node-name": "disk0", "backing-file": "base.qcow2"})
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    assert handle.pread(4, 0) == b"\t\t\t\t"
    assert "not in the same chain" in refused(server, "change-backing-file", device="disk0-b1", **{"image-node-name": "disk0", "backing-file": "x"})
    assert server.stop() == 0
    info = json.loads(run.qemu_img("info", "--output=json", top).out)
    assert info["backing-filename"] == "base.qcow2" and info["backing-filename-format"] == "qcow2"
    run.qemu_io(top, "read -P 9 0 64k")


def test_a_job_keeps_its_node(tmp_path, byre_serve):
    """FEATURES 8.010: a node at which a job works is not deleted; afterwards it is"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    make(tmp_path / "a.qcow2", "64M")
    run.qemu_io(tmp_path / "a.qcow2", "write 0 32M")
    server.qmp("blockdev-add", driver="qcow2", **{"node-name": "a", "file": {"driver": "file", "filename": str(tmp_path / "a.qcow2")}})
    server.qmp("x-byre-scrub", **{"node-name": "a", "job-id": "j", "auto-finalize": False})
    assert "x-byre-scrub" in refused(server, "blockdev-del", **{"node-name": "a"})
    while server.qmp("query-jobs")[0]["status"] != "pending":
        pass
    server.qmp("job-finalize", id="j")
    while server.qmp("query-jobs"):
        pass
    server.qmp("blockdev-del", **{"node-name": "a"})
    assert server.stop() == 0


def chain_of(server):
    """Files from the disk down, and what each records of the next."""
    layer = server.qmp("query-block")[0]["inserted"]["image"]
    while layer:
        yield layer["filename"], layer.get("full-backing-filename")
        layer = layer.get("backing-image")


def test_snapshots_of_a_disk_that_moves(tmp_path, byre_serve):
    """FEATURES 9.073, 9.086: a snapshot is one of what the disk is when it is taken, and never put below another one that has come meanwhile"""
    server = byre_serve(make(tmp_path / "d.qcow2"))

    def sync(name):
        return {"device": "disk0", "snapshot-file": str(tmp_path / name)}
    twice = [{"type": "blockdev-snapshot-sync", "data": sync(n)} for n in ("t1", "t2")]
    assert "moved meanwhile" in refused(server, "transaction", actions=twice)
    assert not (tmp_path / "t1").exists() and not (tmp_path / "t2").exists()
    done, errors = [], []

    def work(me):
        client = Qmp(server.control)
        for i in range(25):
            answer = client.ask("blockdev-snapshot-sync", **sync(f"s{me}-{i}"))
            (errors if "error" in answer else done).append(answer["error"]["desc"] if "error" in answer else f"s{me}-{i}")
        client.close()
    threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all("moved meanwhile" in e for e in errors), errors
    chain = list(chain_of(server))
    assert len(chain) == len(done) + 1 > 25
    for (_, recorded), (below, _) in zip(chain, chain[1:]):
        assert recorded == below
    assert server.stop() == 0
