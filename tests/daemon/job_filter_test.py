# SPDX-License-Identifier: MIT
"""Filters that jobs put into the graph, by name, and what is left when jobs end or fail (FEATURES 9.016, 9.035), beside the peer's."""
import json

import pytest

from lib import run

MIB = 1 << 20
SIZE = 4 * MIB
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
JOBS = {
    "mirror": ("blockdev-mirror", {"device": "disk", "target": "copy", "sync": "full"}, "disk"),
    "active-commit": ("block-commit", {"device": "disk"}, "disk"),
    "commit": ("block-commit", {"device": "disk", "top-node": "mid", "base-node": "low"}, "mid"),
    "stream": ("block-stream", {"device": "disk"}, "disk"),
    "backup": ("blockdev-backup", {"device": "disk", "target": "copy", "sync": "full"}, "disk"),
}
KINDS = pytest.mark.parametrize("kind", JOBS)
OURS = {"mirror": "mirror_top", "active-commit": "mirror_top", "commit": "commit_top", "stream": "stream_top", "backup": "copy-before-write"}
THEIRS = {"mirror": "mirror_top", "active-commit": "mirror_top", "commit": "commit_top", "stream": "copy-on-read", "backup": "copy-before-write"}


class World:
    """low <- mid <- disk, which is exported for writing; copy: an image for targets, behind a filter that fails on purpose."""

    def __init__(self, start, folder, peer, fails=None, errno=5):
        run.qemu_img("create", "-q", "-f", "qcow2", folder / "low.qcow2", SIZE)
        run.qemu_io(folder / "low.qcow2", "write -P 1 0 2M", fmt="qcow2")
        for name, below, at in (("mid", "low", "1M"), ("disk", "mid", "3M")):
            run.qemu_img("create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2", folder / f"{name}.qcow2")
            run.qemu_io(folder / f"{name}.qcow2", f"write -P 5 {at} 512k", fmt="qcow2")
        run.qemu_img("create", "-q", "-f", "qcow2", folder / "copy.qcow2", SIZE)
        self.folder = folder
        self.taken = []                              # events that were waited for
        self.daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
        self.client = self.daemon.qmp()
        for name, below in (("low", None), ("mid", "low"), ("disk", "mid"), ("copy", None)):
            node = {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(folder / f"{name}.qcow2"), "node-name": f"{name}-store"},
                    **({"backing": below} if below else {}), **({"read-only": True} if name in ("low", "mid") else {})}
            if name == fails:
                node = {"driver": "blkdebug", "node-name": name, "image": {**node, "node-name": f"{name}-image"},
                        "inject-error": [{"event": "none", "iotype": "read" if name == "low" else "write", "errno": errno, "sector": 64 if name == "low" else 2048}]}
            self.ok("blockdev-add", **node)
        self.ok("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)

    def ok(self, command, **arguments):
        return self.client.ok(command, **arguments)

    def event(self, name, **has):
        self.taken.append(self.client.wait(name, **has))
        return self.taken[-1]["data"]

    def nodes(self):
        return {n["node-name"]: n for n in self.ok("query-named-block-nodes", flat=True)}

    def graph(self):
        """The picture without the numbers that stand for its nodes."""
        g = self.ok("x-debug-query-block-graph")
        names = {n["id"]: n["name"] for n in g["nodes"]}
        return (sorted((n["type"], n["name"]) for n in g["nodes"]),
                sorted((names[e["parent"]], e["name"], names[e["child"]], sorted(e["perm"]), sorted(e["shared-perm"])) for e in g["edges"]))

    def put(self, command):
        run.qemu_io(f"nbd+unix:///disk?socket={self.daemon.folder}/n.sock", command, fmt="raw")

    def begin(self, kind, **more):
        command, arguments, _ = JOBS[kind]
        self.ok(command, **{**arguments, "job-id": "j", **more})


def above(world, name):
    """The parents of a node, by name."""
    g = world.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in g["nodes"]}
    return [names[e["parent"]] for e in g["edges"] if names[e["child"]] == name]


@BOTH
@KINDS
def test_named_filter(start, tmp_path, peer, kind):
    w = World(start, tmp_path, peer)
    before = w.graph()
    w.begin(kind, speed=65536, **{"filter-node-name": "flt"})
    w.event("JOB_STATUS_CHANGE", status="running")
    node = w.nodes()["flt"]
    assert node["drv"] == (THEIRS if peer else OURS)[kind]
    assert "flt" in above(w, JOBS[kind][2])
    w.put("write -P 9 2560k 64k")
    w.put("read -P 9 2560k 64k")
    w.put("read -P 1 0 1M")
    w.ok("block-job-cancel", device="j", force=True)
    w.event("JOB_STATUS_CHANGE", status="null")
    assert "flt" not in w.nodes()
    if not (peer and kind == "active-commit"):       # the peer goes on asking for more than before of the layers
        assert w.graph() == before
    w.put("read -P 9 2560k 64k")


@BOTH
@KINDS
def test_named_filter_goes_with_success(start, tmp_path, peer, kind):
    w = World(start, tmp_path, peer)
    w.begin(kind, **{"filter-node-name": "flt"})
    if kind in ("mirror", "active-commit"):
        w.event("BLOCK_JOB_READY")
        assert "flt" in w.nodes()
        w.put("write -P 9 2560k 64k")
        w.ok("block-job-complete", device="j")
    assert "error" not in w.event("BLOCK_JOB_COMPLETED")
    w.event("JOB_STATUS_CHANGE", status="null")
    assert "flt" not in w.nodes()
    w.put("write -P 8 3584k 64k")
    w.put("read -P 8 3584k 64k")
    w.put("read -P 1 0 1M")
    w.put("read -P 5 1M 512k")
    w.put("read -P 5 3M 512k")
    w.daemon.stop()
    top = {"mirror": "copy", "active-commit": "low"}.get(kind, "disk")
    run.qemu_img("check", "-q", tmp_path / f"{top}.qcow2")
    run.qemu_io(tmp_path / f"{top}.qcow2", "read -P 1 0 1M", "read -P 5 1M 512k", "read -P 5 3M 512k", "read -P 8 3584k 64k", fmt="qcow2")


@KINDS
def test_name_is_taken(start, tmp_path, kind):
    w = World(start, tmp_path, False)
    before = w.graph()
    command, arguments, _ = JOBS[kind]
    answer = w.client.ask(command, **{**arguments, "job-id": "j", "filter-node-name": "copy-store" if kind == "stream" else "low"})
    assert "error" in answer and "already" in answer["error"]["desc"], answer
    assert w.graph() == before and w.ok("query-jobs") == []


@BOTH
@pytest.mark.parametrize("named", [True, False], ids=["named", "hidden"])
@pytest.mark.parametrize("kind,fails", [("mirror", "copy"), ("mirror", "low"), ("stream", "low"), ("backup", "copy"), ("backup", "low")])
def test_graph_after_failure(start, tmp_path, peer, kind, fails, named):
    """FEATURES 9.016: a job that failed leaves the graph, and the source, as they were."""
    w = World(start, tmp_path, peer, fails=fails)
    before = json.dumps(w.graph())
    w.begin(kind, **({"filter-node-name": "flt"} if named else {}))
    failed = w.event("BLOCK_JOB_COMPLETED", device="j")
    assert failed["error"]
    w.event("JOB_STATUS_CHANGE", status="null")
    assert json.dumps(w.graph()) == before
    assert "flt" not in w.nodes()
    w.put("write -P 8 3584k 64k")
    w.put("read -P 8 3584k 64k")


@pytest.mark.parametrize("below", [{"base-node": "thr"}, {"bottom": "mid"}], ids=lambda b: next(iter(b)))
def test_no_header_records_a_filter(start, tmp_path, below):
    """FEATURES 9.055, 9.057: what a stream leaves below the disk is opened again: the image, whatever filter lies over it meanwhile"""
    w = World(start, tmp_path, False)
    w.ok("object-add", qom_type="throttle-group", id="g")
    w.ok("blockdev-add", driver="throttle", node_name="thr", throttle_group="g", file="low")
    w.ok("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "mid", "file": "mid-store", "backing": "thr", "read-only": True}])
    w.ok("block-stream", job_id="j", device="disk", **below)
    assert "error" not in w.event("BLOCK_JOB_COMPLETED")
    w.daemon.stop()
    info = run.qemu_img("info", "--output=json", tmp_path / "disk.qcow2").json
    assert (info["backing-filename"], info["backing-filename-format"]) == ("low.qcow2", "qcow2")
    run.qemu_io(tmp_path / "disk.qcow2", "read -P 1 0 1M", "read -P 5 1M 512k", "read -P 5 3M 512k", fmt="qcow2")


def test_compress_over_what_does_not(start, tmp_path):
    """FEATURES 3.058, 9.027: a disk moves to an image that does not compress, below a filter that compresses: writes go on as they are"""
    w = World(start, tmp_path, False)
    with open(tmp_path / "raw", "wb") as f:
        f.truncate(SIZE)
    w.ok("block-export-del", id="e", mode="hard")
    w.event("BLOCK_EXPORT_DELETED", id="e")
    w.ok("blockdev-add", driver="compress", node_name="c", file="disk")
    w.ok("blockdev-add", driver="file", node_name="raw", filename=str(tmp_path / "raw"))
    w.ok("block-export-add", type="nbd", id="c", node_name="c", name="disk", writable=True)
    w.put(f"write -P 6 {SIZE - 65536} 64k")
    w.ok("blockdev-mirror", job_id="j", device="disk", target="raw", sync="full")
    w.event("BLOCK_JOB_READY")
    w.ok("block-job-complete", device="j")
    assert "error" not in w.event("BLOCK_JOB_COMPLETED")
    w.put(f"write -P 7 {SIZE - 4096} 4k")
    w.put(f"write -P 8 0 {SIZE - 4096}")
    w.put(f"read -P 7 {SIZE - 4096} 4k")
    w.put(f"read -P 8 0 {SIZE - 4096}")
