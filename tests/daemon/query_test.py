# SPDX-License-Identifier: MIT
"""What queries answer, member by member, beside the peer's daemon in the same state (FEATURES 8.011, 8.017, 11.017)."""
import pytest

from lib import run

# Members that the newer of the peer's versions have, which byre has too.
NEWER = {"active", "actively-synced", "format-specific", "failed_zone_append_operations", "invalid_zone_append_operations", "zone_append_bytes", "zone_append_merged",
         "zone_append_operations", "zone_append_total_time_ns"}
# Values that are of the program, or of the moment.
OWN = {"busy", "account_failed", "account_invalid", "rd_total_time_ns", "wr_total_time_ns", "flush_total_time_ns", "idle_time_ns", "flush_operations", "filename", "file",
       "actual-size", "package", "major", "minor", "micro", "wr_merged", "rd_merged", "rd_operations", "rd_bytes", "wr_operations", "wr_bytes",
       "wr_highest_offset", "len", "offset", "current-progress", "total-progress", "backing_file"}


def compare(ours, theirs, where):
    """Every member of theirs is there, of the same kind, and with the same value unless it is one of OWN; what we add says so by its name."""
    assert type(ours) is type(theirs), (where, ours, theirs)
    if isinstance(theirs, dict):
        assert set(theirs) <= set(ours), (where, set(theirs) - set(ours))
        assert all(k.startswith("x-") or k in NEWER for k in set(ours) - set(theirs)), (where, set(ours) - set(theirs))
        for name, value in theirs.items():
            if name not in OWN:
                compare(ours[name], value, f"{where}.{name}")
            else:
                assert type(ours[name]) is type(value), (where, name)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), (where, ours, theirs)
        for i, (a, b) in enumerate(zip(ours, theirs)):
            compare(a, b, f"{where}[{i}]")
    else:
        assert ours == theirs, (where, ours, theirs)


def named(answer):
    """By node; names that were made up are left out."""
    return {e["node-name"]: e for e in answer if not e.get("node-name", "#").startswith("#") and not e["node-name"].endswith("-file")}


def state(start, tmp_path, peer):
    for name, words in (("base.qcow2", ["4M"]), ("top.qcow2", ["-b", "base.qcow2", "-F", "qcow2", "4M"]), ("copy.qcow2", ["4M"])):
        run.qemu_img("create", "-q", "-f", "qcow2", *words[:-1], tmp_path / name, words[-1])
    run.qemu_io(tmp_path / "base.qcow2", "write -P 1 0 1M")
    daemon = start("daemon", peer=peer)
    client = daemon.qmp()
    client.ok("object-add", **{"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 100000}})
    for options in ({"driver": "file", "node-name": "bf", "filename": str(tmp_path / "base.qcow2"), "read-only": True},
                    {"driver": "qcow2", "node-name": "b", "file": "bf", "read-only": True},
                    {"driver": "file", "node-name": "f", "filename": str(tmp_path / "top.qcow2"), "cache": {"direct": False, "no-flush": True}},
                    {"driver": "qcow2", "node-name": "q", "file": "f", "backing": "b", "detect-zeroes": "on", "cache": {"direct": False, "no-flush": True}},
                    {"driver": "throttle", "node-name": "t", "file": "q", "throttle-group": "tg"},
                    {"driver": "file", "node-name": "cf", "filename": str(tmp_path / "copy.qcow2")}, {"driver": "qcow2", "node-name": "c", "file": "cf"},
                    {"driver": "raw", "node-name": "r", "size": 65536, "file": {"driver": "null-co", "node-name": "n", "size": 1048576}}):
        client.ok("blockdev-add", **options)
    client.ok("block-dirty-bitmap-add", node="q", name="bm", granularity=65536)
    client.ok("block-set-write-threshold", **{"node-name": "q", "write-threshold": 1 << 20})
    client.ok("nbd-server-start", addr={"type": "unix", "data": {"path": "n.sock"}})
    client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "t", "writable": True, "bitmaps": [{"node": "q", "name": "bm"}]})
    return daemon, client


QUERIES = [("query-block", {}), ("query-block-exports", {}), ("query-jobs", {}), ("query-block-jobs", {}), ("query-version", {}),
           ("query-named-block-nodes", {}), ("query-named-block-nodes", {"flat": True}), ("query-blockstats", {"query_nodes": True})]


@pytest.mark.parametrize("query, arguments", QUERIES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_members(start, tmp_path, query, arguments):
    """FEATURES 8.011, 8.017, 11.017: nodes, their images, caches, bitmaps, thresholds and counts have the members, kinds and values that the peer's have"""
    told = []
    for peer in (False, True):
        daemon, client = state(start, tmp_path, peer)
        told.append(client.ok(query, **arguments))
        client.close()
        assert daemon.stop()[0] == 0
    ours, theirs = told
    if "node" in query or "stats" in query:
        ours, theirs = named(ours), named(theirs)
        assert set(ours) == set(theirs) and len(ours) >= 7
    compare(ours, theirs, query)


def test_names_of_counts(start, tmp_path):
    """FEATURES 8.011: every node has the peer's counts and no others but x-...; those of zone appends came with its version 8.1"""
    told = []
    for peer in (False, True):
        daemon, client = state(start, tmp_path, peer)
        told.append({name: {k for k in e["stats"] if not k.startswith("x-")} for name, e in named(client.ok("query-blockstats", query_nodes=True)).items()})
        version = client.ok("query-version")["qemu"]
        client.close()
        assert daemon.stop()[0] == 0
    zones = set() if (version["major"], version["minor"]) >= (8, 1) else {k for k in told[0]["q"] if "zone_append" in k}
    assert {name: names - zones for name, names in told[0].items()} == told[1] and len(told[1]["q"]) >= 26


@pytest.mark.parametrize("flat", [False, True])
def test_depth_and_nesting(start, tmp_path, flat):
    """FEATURES 11.017: flat leaves out what lies below an image, and the count of it"""
    seen = []
    for peer in (False, True):
        daemon, client = state(start, tmp_path, peer)
        q = named(client.ok("query-named-block-nodes", flat=flat))["q"]
        seen.append((q["backing_file_depth"], "backing-image" in q["image"], q["write_threshold"], [b["name"] for b in q["dirty-bitmaps"]], q["detect_zeroes"]))
        client.close()
        assert daemon.stop()[0] == 0
    assert seen[0] == seen[1] == ((0 if flat else 1), not flat, 1 << 20, ["bm"], "on")


def test_jobs(start, tmp_path):
    """FEATURES 8.011: a job that waits: its members in both lists"""
    told = []
    for peer in (False, True):
        daemon, client = state(start, tmp_path, peer)
        client.ok("block-export-del", id="e", mode="hard")
        client.wait("BLOCK_EXPORT_DELETED")
        client.ok("blockdev-mirror", **{"job-id": "j", "device": "t", "target": "c", "sync": "full", "auto-finalize": False})
        client.wait("BLOCK_JOB_READY")
        told.append((client.ok("query-jobs"), client.ok("query-block-jobs")))
        client.ok("block-job-cancel", device="j", force=True)
        client.close()
        assert daemon.stop()[0] == 0
    compare(told[0][0], told[1][0], "query-jobs")
    compare(told[0][1], told[1][1], "query-block-jobs")


def test_every_command(start):
    """FEATURES 8.011, G.051: every command of the peer's daemon is there, but for those that are named here; yank is there beside them"""
    lists = []
    for peer in (False, True):
        daemon = start("daemon", peer=peer)
        client = daemon.qmp()
        lists.append({c["name"] for c in client.ok("query-commands")})
        client.close()
        assert daemon.stop()[0] == 0
    ours, theirs = lists
    assert theirs - ours <= {"blockdev-set-active"}                  # nodes are not handed over (3.069)
    assert {"yank", "query-yank", "block_set_io_throttle", "block-latency-histogram-set"} <= ours - theirs


def test_filters_name_their_child_alike(start, tmp_path):
    """FEATURES G.068: whatever lies below a filter is its `file`, of those that jobs insert, too (the peer calls that of a mirror `backing`)"""
    for name in ("low", "top", "copy"):
        run.qemu_img("create", "-q", "-f", "qcow2", *(["-b", "low", "-F", "qcow2"] if name == "top" else []), tmp_path / name, *([] if name == "top" else ["4M"]), cwd=tmp_path)
    client = start("daemon", "--object", "throttle-group,id=g").qmp()
    for name in ("low", "top", "copy"):
        more = {"backing": "low"} if name == "top" else {}
        client.ok("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": str(tmp_path / name), "node-name": f"{name}-f"}, **more)
    client.ok("blockdev-add", driver="preallocate", node_name="prealloc", file="copy-f")
    client.ok("blockdev-add", driver="null-co", node_name="null", size=4 << 20)
    client.ok("blockdev-mirror", job_id="m", device="top", target="null", sync="none", filter_node_name="mirrored")
    below = "mirrored"
    for driver, more in (("throttle", {"throttle-group": "g"}), ("copy-on-read", {}), ("compress", {}), ("blkdebug", {}), ("copy-before-write", {"target": "copy"})):
        client.ok("blockdev-add", driver=driver, node_name=driver, **{"image" if driver == "blkdebug" else "file": below}, **more)
        below = driver
    graph = client.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in graph["nodes"]}
    edges = {(names[e["parent"]], e["name"]): names[e["child"]] for e in graph["edges"]}
    filters = ["prealloc", "mirrored", "throttle", "copy-on-read", "compress", "blkdebug", "copy-before-write"]
    assert [edges[f, "file"] for f in filters] == ["copy-f", "top", *filters[1:-1]]
    assert not [f for f in filters if (f, "backing") in edges]
