# SPDX-License-Identifier: MIT
"""Mirrors over a graph with filters, byre's and the peer's side by side (FEATURES 9.033, 9.035, 9.098, G.031, G.032)."""
import pytest

from lib import run

MIB = 1 << 20
SIZE = 8 * MIB
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def filtered(start, tmp_path, peer=False, over="t2"):
    """Node t2 over t over the image a, exported from the top; b and c: other images. Returns the daemon and its client."""
    for name in ("a", "b", "c"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", SIZE if name != "c" else SIZE // 2)
    words = []
    for name in ("a", "b", "c"):
        words += ["--blockdev", f"driver=qcow2,node-name={name},file.driver=file,file.filename={name}.qcow2"]
    for name, below in (("t", "a"), ("t2", "t")):
        words += ["--blockdev", f"driver=copy-on-read,node-name={name},file={below}"]
    words += ["--nbd-server", "addr.type=unix,addr.path=n.sock", "--export", f"type=nbd,id=e,node-name={over},name=x,writable=on"]
    daemon = start("daemon", *words, peer=peer)
    return daemon, daemon.qmp()


def uri(daemon):
    return f"nbd+unix:///x?socket={daemon.folder}/n.sock"


def put(daemon, *commands):
    run.qemu_io(uri(daemon), *commands, fmt="raw")


def landed(tmp_path, byte):
    """Images in which the 64 KiB at 4 MiB are this byte."""
    read = f"read -P {byte} 4M 64k"
    return [n for n in ("a", "b") if run.run("qemu-io", "-f", "qcow2", "-c", read, tmp_path / f"{n}.qcow2", code=None).code == 0]


@BOTH
@pytest.mark.parametrize("replaces", [None, "a", "t", "t2"])
def test_filter_as_source(start, tmp_path, replaces, peer):
    """FEATURES 9.033: the source is a filter; what is replaced is that, or what it filters, and the filters above stay"""
    daemon, client = filtered(start, tmp_path, peer)
    put(daemon, "write -P 1 0 1M", "write -P 2 4M 64k")
    client.ok("blockdev-mirror", job_id="j", device="t2", target="b", sync="full", **({"replaces": replaces} if replaces else {}))
    put(daemon, "write -P 3 1M 64k")
    client.wait("BLOCK_JOB_READY")
    client.ok("block-job-complete", device="j")
    done = client.wait("BLOCK_JOB_COMPLETED")
    assert "error" not in done["data"] and done["data"]["type"] == "mirror"
    put(daemon, "write -P 9 4M 64k", "read -P 1 0 1M", "read -P 3 1M 64k", "flush")
    tree = {n["node-name"]: n for n in client.ok("query-named-block-nodes", flat=True)}
    assert {"a", "b", "t", "t2"} <= set(tree)
    client.close()
    assert daemon.stop()[0] == 0
    assert landed(tmp_path, 9) == ["b"] and landed(tmp_path, 2) == ["a"]


@BOTH
def test_what_may_be_replaced(start, tmp_path, peer):
    """FEATURES 9.033: nothing but what shows the same"""
    daemon, client = filtered(start, tmp_path, peer)
    for other, said in (("b", "abrupt change"), ("c", "abrupt change"), ("nothing", "nothing")):
        assert said in client.refused("blockdev-mirror", job_id="j", device="t2", target="b", sync="full", replaces=other)
    if not peer:                                     # which lets the job fail
        assert "sizes" in client.refused("blockdev-mirror", job_id="j", device="t2", target="c", sync="full", replaces="a")
    assert client.ok("query-block-jobs") == []
    assert client.refused("blockdev-mirror", job_id="j", device="t2", target="t2", sync="full")
    client.close()


def test_what_is_replaced_stays(start, tmp_path):
    """FEATURES G.032: while a mirror runs, nobody takes away what it is to replace, or puts something between"""
    daemon, client = filtered(start, tmp_path)
    client.ok("blockdev-mirror", job_id="j", device="t2", target="b", sync="full", replaces="a")
    client.wait("BLOCK_JOB_READY")
    assert "t" in client.refused("blockdev-del", node_name="t")
    assert client.refused("blockdev-del", node_name="t2")
    assert client.refused("blockdev-snapshot-sync", node_name="a", snapshot_file=str(tmp_path / "s.qcow2"), snapshot_node_name="s")
    client.ok("block-job-complete", device="j")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    put(daemon, "write -P 9 4M 64k")
    client.close()
    assert daemon.stop()[0] == 0
    assert landed(tmp_path, 9) == ["b"]


@BOTH
def test_filter_bitmap_and_threshold(start, tmp_path, peer):
    """FEATURES 9.076, 9.098: bitmaps and thresholds of a filter see what goes through it"""
    daemon, client = filtered(start, tmp_path, peer)
    client.ok("block-dirty-bitmap-add", node="t", name="m")
    client.ok("block-dirty-bitmap-add", node="t", name="n", disabled=True)
    client.ok("block-set-write-threshold", node_name="t", write_threshold=4 * MIB)
    put(daemon, "write -P 1 0 64k")
    put(daemon, "write -P 2 4M 64k")
    assert client.wait("BLOCK_WRITE_THRESHOLD")["data"] == {"node-name": "t", "amount-exceeded": 65536, "write-threshold": 4 * MIB}
    nodes = client.ok("query-named-block-nodes", flat=True)
    assert {b["name"]: b["count"] for n in nodes for b in n.get("dirty-bitmaps", [])} == {"m": 131072, "n": 0}
    client.ok("block-dirty-bitmap-merge", node="t", target="n", bitmaps=["m"])
    client.ok("block-dirty-bitmap-enable", node="t", name="n")
    client.ok("block-dirty-bitmap-disable", node="t", name="m")
    client.ok("block-dirty-bitmap-clear", node="t", name="m")
    client.ok("block-dirty-bitmap-remove", node="t", name="m")
    assert client.refused("block-dirty-bitmap-remove", node="t", name="m")
    client.close()
    assert daemon.stop()[0] == 0


# ---- a target that is not apart from the source ----

def test_target_over_the_source(start, tmp_path):
    """FEATURES 9.033: a target above the source, or a filter over it, is refused: its flush at the end would wait for the source, which waits for it"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "over.qcow2", SIZE)
    daemon, client = filtered(start, tmp_path)
    client.ok("block-export-del", id="e", mode="hard")
    while client.ok("query-block-exports"):
        pass
    over = {"driver": "file", "filename": str(tmp_path / "over.qcow2")}
    client.ok("blockdev-add", driver="qcow2", node_name="over", file=over, backing="t")
    for sync in ("full", "top", "none"):
        assert "lies above 'a'" in client.refused("blockdev-mirror", device="a", target="over", sync=sync, job_id="j")
        assert "lies above 'a'" in client.refused("blockdev-mirror", device="t2", target="over", sync=sync, job_id="j")
    for device, target in (("a", "t2"), ("t2", "a"), ("t2", "t")):
        assert "into itself" in client.refused("blockdev-mirror", device=device, target=target, sync="full", job_id="j")
    assert client.ok("query-jobs") == []
    client.ok("quit")
    assert daemon.wait()[0] == 0


def test_target_comes_to_lie_over_the_source(start, tmp_path):
    """FEATURES 9.033, J1: somebody puts the target above the source while the job runs: the job fails at its end, and nobody waits for anybody"""
    for name in ("a", "b"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", SIZE)
    daemon = start("daemon")
    client = daemon.qmp()
    entry = {n: {"driver": "qcow2", "node-name": n, "file": {"driver": "file", "filename": str(tmp_path / f"{n}.qcow2")}} for n in ("a", "b")}
    client.ok("blockdev-add", **entry["a"], read_only=True)
    client.ok("blockdev-add", **entry["b"], backing=None)
    client.ok("blockdev-mirror", device="a", target="b", sync="full", job_id="j")
    client.wait("BLOCK_JOB_READY")
    client.ok("blockdev-reopen", options=[{**entry["b"], "backing": "a"}])
    client.ok("job-complete", id="j")
    assert "lies above 'a'" in client.wait("BLOCK_JOB_COMPLETED")["data"]["error"]
    client.ok("blockdev-del", node_name="b")
    client.ok("blockdev-del", node_name="a")
    client.ok("quit")
    assert daemon.wait()[0] == 0


@BOTH
def test_top_of_a_filtered_image(start, tmp_path, peer):
    """FEATURES 9.021: sync=top of a filter means the image below it: one without a backing file is copied as a whole, into an image without one"""
    daemon, client = filtered(start, tmp_path, peer)
    put(daemon, "write -P 7 4M 64k")
    client.ok("drive-mirror", device="t2", target=str(tmp_path / "made.qcow2"), sync="top", format="qcow2", job_id="j")
    client.wait("BLOCK_JOB_READY")
    client.ok("block-job-cancel", device="j")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    client.ok("quit")
    assert daemon.wait()[0] == 0
    run.qemu_io(tmp_path / "made.qcow2", "read -P 7 4M 64k")
    assert "backing" not in run.qemu_img("info", tmp_path / "made.qcow2").out


def test_pivot_over_an_edge_that_a_job_needs(start, tmp_path):
    """FEATURES 9.021, G.031: a stream of the target itself goes by there being nothing below it; a mirror that is to put it over the disk is refused at its end"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", SIZE)
    daemon = start("daemon")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="qcow2", node_name="a", file={"driver": "file", "filename": str(tmp_path / "a.qcow2")})
    client.ok("drive-mirror", device="a", target=str(tmp_path / "m.qcow2"), format="qcow2", sync="none", job_id="m", node_name="m")
    client.wait("BLOCK_JOB_READY")
    client.ok("block-stream", device="m", job_id="s", auto_finalize=False)
    while client.ok("query-jobs")[-1]["status"] != "pending":
        pass
    client.ok("job-complete", id="m")
    done = client.wait("BLOCK_JOB_COMPLETED")["data"]
    assert done["device"] == "m" and "node 'm': a job needs what lies below it to stay" in done["error"]
    client.ok("job-finalize", id="s")
    done = client.wait("BLOCK_JOB_COMPLETED")["data"]
    assert done["device"] == "s" and "error" not in done
    assert "a" in {n["node-name"] for n in client.ok("query-named-block-nodes", flat=True)}
    client.ok("quit")
    assert daemon.wait()[0] == 0
