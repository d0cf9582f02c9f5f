# SPDX-License-Identifier: MIT
"""A disk becomes shorter while it is committed into its base (FEATURES 9.043, 9.045, G.031)."""
import json

import pytest

from lib import run

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def begin(start, tmp_path, base="qcow2", base_mib=8, top_mib=8, peer=False, **window):
    """A base full of 1, an overlay whose second half is 2, and a job that is ready to let the disk go over."""
    run.qemu_img("create", "-q", "-f", base, tmp_path / "base", f"{base_mib}M")
    run.qemu_io(tmp_path / "base", f"write -P 1 0 {base_mib}M", fmt=base)
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", base, tmp_path / "top", f"{top_mib}M")
    run.qemu_io(tmp_path / "top", f"write -P 2 {top_mib // 2}M {top_mib // 2}M", fmt="qcow2")
    daemon = start("daemon", peer=peer)
    c = daemon.qmp()
    c.ok("blockdev-add", **{"driver": base, "node-name": "base", "read-only": True, "file": {"driver": "file", "filename": str(tmp_path / "base")}, **window})
    c.ok("blockdev-add", **{"driver": "qcow2", "node-name": "top", "backing": "base", "file": {"driver": "file", "filename": str(tmp_path / "top")}})
    c.ok("block-commit", job_id="j", device="top", **{"auto-dismiss": False})
    c.wait("BLOCK_JOB_READY", device="j")
    return daemon, c


def complete(c):
    c.ok("job-complete", id="j")
    c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    return c.ok("query-jobs")[0].get("error")


def size_of(path, fmt):
    return json.loads(run.qemu_img("info", "--output=json", "-f", fmt, path).out)["virtual-size"]


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_base_becomes_as_short(start, tmp_path, fmt):
    """The disk keeps its length and its content; what the base held behind it has gone, and what comes there later reads zeros"""
    daemon, c = begin(start, tmp_path, fmt)
    c.ok("block_resize", node_name="top", size=3 * MIB)
    assert complete(c) is None
    assert daemon.stop()[0] == 0
    assert size_of(tmp_path / "base", fmt) == 3 * MIB
    run.qemu_img("resize", "-q", "-f", fmt, tmp_path / "base", "4M")
    run.qemu_io(tmp_path / "base", "read -P 1 0 3M", "read -P 0 3M 1M", fmt=fmt)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_grown_again(start, tmp_path, fmt):
    """Shorter, then longer: what lay behind the shorter end does not come back"""
    daemon, c = begin(start, tmp_path, fmt)
    c.ok("block_resize", node_name="top", size=3 * MIB)
    c.ok("block_resize", node_name="top", size=6 * MIB)
    assert complete(c) is None
    assert daemon.stop()[0] == 0
    run.qemu_io(tmp_path / "base", "read -P 1 0 3M", "read -P 0 3M 3M", fmt=fmt)
    assert size_of(tmp_path / "base", fmt) == 6 * MIB


@BOTH
def test_base_that_was_longer(start, tmp_path, peer):
    """FEATURES 9.045: a base that was longer from the beginning stays as long"""
    daemon, c = begin(start, tmp_path, base_mib=8, top_mib=4, peer=peer)
    if not peer:                                     # which lets nobody change the length of a disk that is committed
        c.ok("block_resize", node_name="top", size=3 * MIB)
    assert complete(c) is None
    assert daemon.stop()[0] == 0
    assert size_of(tmp_path / "base", "qcow2") == 8 * MIB


@pytest.mark.parametrize("fmt,window", [("raw", {"size": 8 * MIB}), ("qed", {})])
def test_base_that_cannot(start, tmp_path, fmt, window):
    """A part of a file, and a QED image, do not become shorter: the job says so, and the disk stays where it is"""
    daemon, c = begin(start, tmp_path, fmt, **window)
    c.ok("block_resize", node_name="top", size=3 * MIB)
    assert "cannot become 3145728 bytes long" in complete(c)
    assert daemon.stop()[0] == 0
    assert size_of(tmp_path / "top", "qcow2") == 3 * MIB


def test_zeros_over_a_base_that_grew(start, tmp_path):
    """FEATURES 9.045, 1.039: in a version 2 image zeros are what lies below nothing: not below a base that was shorter, was open for writing, and has grown for the job"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "1M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "base", "-F", "qcow2", tmp_path / "top", "2M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    c = daemon.qmp()
    for name, more in (("base", {}), ("top", {"backing": "base"})):
        c.ok("blockdev-add", **{"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(tmp_path / name)}, **more})
    c.ok("block-export-add", type="nbd", id="e", node_name="top", writable=True)

    def io(*words):
        run.qemu_io(f"nbd+unix:///top?socket={daemon.folder}/n.sock", *words, fmt="raw")

    io("write -P 0xaa 1M 64k")
    c.ok("block-commit", job_id="j", device="top")
    c.wait("BLOCK_JOB_READY", device="j")
    c.ok("block-job-set-speed", device="j", speed=1)
    io("write -z 1M 64k", "read -P 0 1M 64k")
    c.ok("block-job-cancel", device="j", force=True)
    c.wait("JOB_STATUS_CHANGE", id="j", status="null")
    io("read -P 0 1M 64k")


@pytest.mark.parametrize("writable", [True, False], ids=["open for writing", "open for reading"])
def test_layer_into_a_shorter_base(start, tmp_path, writable):
    """FEATURES 9.042, 9.045, 11.014: a layer that is longer than a base, which may be open for writing already: it grows for the job. What lies over it puts up with that for as long"""
    for name, size, below in (("base", "1M", ()), ("mid", "2M", ("-b", "base", "-F", "qcow2")), ("top", "2M", ("-b", "mid", "-F", "qcow2"))):
        run.qemu_img("create", "-q", "-f", "qcow2", *below, tmp_path / name, size)
    run.qemu_io(tmp_path / "base", "write -P 1 0 1M")
    run.qemu_io(tmp_path / "mid", "write -P 2 1M 512k")
    daemon = start("daemon")
    c = daemon.qmp()
    for name, more in (("base", {"read-only": not writable}), ("mid", {"backing": "base", "read-only": True}), ("top", {"backing": "mid"})):
        c.ok("blockdev-add", **{"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(tmp_path / name)}, **more})
    c.ok("block-commit", job_id="j", device="top", top_node="mid", base_node="base", backing_file="base")
    assert "error" not in c.wait("BLOCK_JOB_COMPLETED", device="j")["data"]
    picture = c.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    over = {names[e["parent"]]: e["shared-perm"] for e in picture["edges"] if names[e["child"]] == "base"}
    assert "top" in over and not any({"write", "resize"} & set(shared) for shared in over.values())
    assert [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "base"] == [not writable]
    assert daemon.stop()[0] == 0
    assert size_of(tmp_path / "base", "qcow2") == 2 * MIB
    run.qemu_io(tmp_path / "top", "read -P 1 0 1M", "read -P 2 1M 512k", "read -P 0 1536k 512k")
