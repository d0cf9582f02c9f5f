# SPDX-License-Identifier: MIT
"""Each event, provoked, and held against what query-qmp-schema says of it; events of failing requests; what numbers tell of the last seconds
(FEATURES 8.024, 8.025, 9.096, 9.099, 9.100, 9.101)."""
import os
import signal
import time

import pytest

from job_filter_test import BOTH, World
from qmp_client import Qmp
from lib import corrupt, mounts, peers, prhelper, run

MIB = 1 << 20
MS = 1000000


def schema_of(client):
    return {s["name"]: s for s in client.ask("query-qmp-schema")["return"]}


def check_members(schema, type_name, value, where):
    """The value is what the schema says, as far as that goes."""
    t = schema[type_name]
    kinds = {"string": str, "int": int, "number": (int, float), "boolean": bool, "null": type(None)}
    if t["meta-type"] == "builtin" and t["json-type"] in kinds:
        assert isinstance(value, kinds[t["json-type"]]), (where, value)
    elif t["meta-type"] == "enum":
        assert value in t.get("values", [m["name"] for m in t.get("members", [])]), (where, value)
    elif t["meta-type"] == "object":
        members = {m["name"]: m for m in t["members"]}
        assert set(value) <= set(members), (where, value)
        assert {n for n, m in members.items() if "default" not in m} <= set(value), (where, value)
        for name, inner in value.items():
            check_members(schema, members[name]["type"], inner, f"{where}.{name}")


def check_event(schema, event):
    assert set(event) == {"event", "data", "timestamp"}
    assert set(event["timestamp"]) == {"seconds", "microseconds"}
    check_members(schema, schema[event["event"]]["arg-type"], event["data"], event["event"])


def events_of(schema):
    return {n for n, s in schema.items() if s["meta-type"] == "event"}


def provoke(start, tmp_path, peer):
    """All that can be made to happen here. The events, and the schema."""
    w = World(start, tmp_path, peer)
    schema = schema_of(w.client)
    disk = f"nbd+unix:///disk?socket={w.daemon.folder}/n.sock"
    w.ok("block-set-write-threshold", **{"node-name": "disk", "write-threshold": MIB})
    w.put("write -P 9 2560k 64k")
    w.ok("blockdev-mirror", **{"device": "disk", "target": "copy", "sync": "full", "job-id": "j"})
    w.event("BLOCK_JOB_READY")
    w.ok("block-job-cancel", device="j", force=True)
    w.event("JOB_STATUS_CHANGE", status="null")
    w.ok("blockdev-backup", **{"device": "disk", "target": "copy", "sync": "full", "job-id": "k", "auto-finalize": False})
    w.event("BLOCK_JOB_PENDING")
    w.ok("job-finalize", id="k")
    w.event("JOB_STATUS_CHANGE", status="null", id="k")
    w.ok("blockdev-add", **{"driver": "blkdebug", "node-name": "bad", "image": {"driver": "null-co", "size": 4 * MIB, "node-name": "void"} if peer else
                            {"driver": "raw", "node-name": "void", "file": {"driver": "null-co", "size": 4 * MIB}},
                            "inject-error": [{"event": "none", "iotype": "write", "errno": 5}]})
    w.ok("blockdev-backup", **{"device": "disk", "target": "bad", "sync": "full", "job-id": "l"})
    w.event("JOB_STATUS_CHANGE", status="null", id="l")
    w.ok("block-export-add", type="nbd", id="eb", node_name="bad", name="bad", writable=True)
    run.run("qemu-io", "-f", "raw", "-c", "write 0 4k", f"nbd+unix:///bad?socket={w.daemon.folder}/n.sock", code=None)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "broken.qcow2", MIB)
    run.qemu_io(tmp_path / "broken.qcow2", "write 0 64k", fmt="qcow2")
    with corrupt.Editor(tmp_path / "broken.qcow2") as editor:        # a cluster of the guest is the table that says where it lies
        table = editor.get_be64(editor.l1_entry(0)) & 0x00fffffffffffe00
        editor.patch_l2(0, lambda old: table | 1 << 63)
    w.ok("blockdev-add", driver="qcow2", **{"node-name": "broken"}, file={"driver": "file", "filename": str(tmp_path / "broken.qcow2")})
    w.ok("block-export-add", type="nbd", id="ec", node_name="broken", name="broken", writable=True)
    run.run("qemu-io", "-f", "raw", "-c", "write 0 4k", f"nbd+unix:///broken?socket={w.daemon.folder}/n.sock", code=None)
    w.ok("block-export-del", id="ec", mode="hard")
    w.event("BLOCK_EXPORT_DELETED")
    run.qemu_io(disk, "read 0 4k", fmt="raw")
    helper = prhelper.Helper().start()
    w.ok("object-add", **{"qom-type": "pr-manager-helper", "id": "p", "path": helper.path})
    helper.close()
    if not peer:                                                     # it has such events of machines alone
        w.ok("block-export-add", **{"type": "nbd", "id": "ed", "node-name": "copy", "name": "tray", "x-byre-removable": True})
        w.ok("eject", id="ed")
    w.ok("query-version")
    return w, schema


def everything(w):
    w.daemon.process.send_signal(signal.SIGTERM)
    seen = list(w.client.events)
    while (message := w.client.receive()) is not None:
        seen.append(message)
    return seen


def farewell(server):
    """What a served disk says when it ends; the peer's daemon, and so ours, says nothing then."""
    client = Qmp(server.control)
    server.process.send_signal(signal.SIGTERM)
    return [client.receive()]


def test_every_event(start, tmp_path, byre_serve):
    """FEATURES 8.024: whatever the schema names can be made to happen, and holds what it says."""
    w, schema = provoke(start, tmp_path, False)
    seen = w.taken + everything(w) + farewell(byre_serve(tmp_path / "low.qcow2", "-r"))
    for event in seen:
        check_event(schema, event)
    assert {e["event"] for e in seen} == events_of(schema)
    by = {}
    for e in seen:
        by.setdefault(e["event"], []).append(e["data"])
    failed = [d for d in by["BLOCK_JOB_COMPLETED"] if d["device"] == "l"]
    assert "cannot write" in failed[0]["error"] and all("error" not in d for d in by["BLOCK_JOB_COMPLETED"] if d["device"] != "l")
    assert by["BLOCK_JOB_ERROR"] == [{"device": "l", "operation": "write", "action": "report"}]
    assert by["BLOCK_JOB_CANCELLED"][0]["device"] == "j" and by["BLOCK_JOB_READY"][0]["type"] == "mirror"
    assert by["BLOCK_JOB_PENDING"] == [{"type": "backup", "id": "k"}]
    assert len(by["BLOCK_WRITE_THRESHOLD"]) == 1 and by["BLOCK_WRITE_THRESHOLD"][0]["node-name"] == "disk"
    error = by["BLOCK_IO_ERROR"][0]
    assert (error["node-name"], error["operation"], error["action"], error["nospace"], error["x-byre-export"]) == ("bad", "write", "report", False, "eb")
    assert by["BLOCK_IMAGE_CORRUPTED"][0]["node-name"] == "broken"


def test_events_of_the_peer(start, tmp_path):
    """FEATURES 8.024: what the peer sends when the same things happen is sent here too, with those members at least."""
    (tmp_path / "p").mkdir()
    w, _ = provoke(start, tmp_path / "p", True)
    theirs = w.taken + everything(w)
    (tmp_path / "o").mkdir()
    w, _ = provoke(start, tmp_path / "o", False)
    ours = w.taken + everything(w)

    def members(seen):
        found = {}
        for e in seen:
            found.setdefault(e["event"], []).append(set(e["data"]))
        return {n: set.intersection(*all_of) for n, all_of in found.items()}
    mine = members(ours)
    for name, must in members(theirs).items():
        assert name in mine and must <= mine[name], (name, must, mine.get(name))


def failing(start, tmp_path, iotype, errno, **more):
    """An export of a node of which such requests fail."""
    w = World(start, tmp_path, False)
    w.ok("blockdev-add", **{"driver": "blkdebug", "node-name": "bad", "image": {"driver": "raw", "node-name": "void", "file": {"driver": "null-co", "size": 4 * MIB}},
                            "inject-error": [{"event": "none", "iotype": iotype, "errno": errno, **more}]})
    w.ok("block-export-add", type="nbd", id="eb", node_name="bad", name="bad", writable=True)
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///bad?socket={w.daemon.folder}/n.sock")
    return w, handle


def test_events_are_few(start, tmp_path):
    """FEATURES 8.025: ten thousand requests fail; the events are one a second, and the daemon answers meanwhile."""
    nbd = peers.need_module("nbd")
    w, handle = failing(start, tmp_path, "read", 5)
    begun, slowest = time.monotonic(), 0
    for i in range(10000):
        with pytest.raises(nbd.Error):
            handle.pread(512, 0)
        if i % 500 == 0:
            at = time.monotonic()
            w.ok("query-version")
            slowest = max(slowest, time.monotonic() - at)
    took = time.monotonic() - begun
    w.ok("query-version")
    count = sum(e["event"] == "BLOCK_IO_ERROR" for e in w.client.events)
    assert 1 <= count <= took + 1
    assert slowest < 1
    assert next(n for n in w.ok("query-blockstats", **{"query-nodes": True}) if n["node-name"] == "void")["stats"]["failed_rd_operations"] == 10000


def test_intervals(start, tmp_path):
    """FEATURES 9.096: latencies of the last seconds are those that the client has measured, and are gone when the seconds are."""
    w, handle = failing(start, tmp_path, "read", 0, **{"x-delay-ns": 20 * MS})
    set_at = time.monotonic()
    for bad in ([0], [1] * 9, [1 << 40]):
        assert "error" in w.client.ask("x-byre-stats-intervals", id="eb", intervals=bad)
    w.ok("x-byre-stats-intervals", id="eb", intervals=[1, 20])
    w.ok("x-byre-stats-intervals", id="void", intervals=[20])
    begun, took = time.monotonic(), []
    for _ in range(30):
        at = time.monotonic()
        handle.pread(4096, 0)
        took.append((time.monotonic() - at) * 1e9)
    at = time.monotonic()
    handle.pwrite(bytes(512), 0)
    wrote = (time.monotonic() - at) * 1e9
    between = time.monotonic() - begun

    def timed():
        stats = next(e for e in w.ok("x-byre-query-export-stats") if e["id"] == "eb")["stats"]["timed_stats"]
        return {t["interval_length"]: t for t in stats}
    now = timed()
    assert set(now) == {1, 20} and set(now[1]) == {
        "interval_length", *(f"{m}_{op}_latency_ns" for m in ("min", "max", "avg") for op in ("rd", "wr", "flush", "zone_append")),
        *(f"avg_{op}_queue_depth" for op in ("rd", "wr", "zone_append"))}
    long = now[20]
    span = time.monotonic() - set_at                     # no request is longer here than there, where a busy machine adds to it, and no shorter than its delay
    assert 20 * MS <= long["min_rd_latency_ns"] <= min(took) * 1.02
    assert 20 * MS * 0.9 <= long["avg_rd_latency_ns"] <= sum(took) / len(took) * 1.1
    assert max(20 * MS * 0.75, long["avg_rd_latency_ns"]) <= long["max_rd_latency_ns"] <= max(took) * 1.25
    assert len(took) * 20 * MS / 1e9 / span * 0.7 <= long["avg_rd_queue_depth"] <= sum(took) / 1e9 / between * 1.3
    assert 0 <= long["max_wr_latency_ns"] <= wrote * 1.25
    node = next(n for n in w.ok("query-blockstats", **{"query-nodes": True}) if n["node-name"] == "void")["stats"]["timed_stats"]
    assert [t["interval_length"] for t in node] == [20] and node[0]["min_rd_latency_ns"] >= 20 * MS
    time.sleep(1.2)
    now = timed()
    assert now[1]["max_rd_latency_ns"] == now[1]["avg_rd_queue_depth"] == 0 and now[20]["min_rd_latency_ns"] == long["min_rd_latency_ns"]
    w.ok("x-byre-stats-intervals", id="eb", intervals=[])
    assert timed() == {}


@BOTH
def test_discards_of_files(start, tmp_path, peer):
    """FEATURES 9.099: how many discards a file has had, and of how many bytes."""
    (tmp_path / "d.raw").write_bytes(b"x" * (8 * MIB))
    daemon = start("daemon", "--blockdev", "driver=file,node-name=f,filename=d.raw,discard=unmap", "--blockdev", "driver=raw,node-name=d,file=f,discard=unmap",
                   "--nbd-server", "addr.type=unix,addr.path=n.sock", "--export", "type=nbd,id=e,node-name=d,name=d,writable=on", peer=peer)
    client = daemon.qmp()
    run.qemu_io(f"nbd+unix:///d?socket={daemon.folder}/n.sock", "discard 0 64k", "discard 1M 2M", "discard 4M 4k", fmt="raw")
    nodes = {n["node-name"]: n for n in client.ask("query-blockstats", **{"query-nodes": True})["return"]}
    assert nodes["f"]["driver-specific"] == {"driver": "file", "discard-nb-ok": 3, "discard-nb-failed": 0, "discard-bytes-ok": 65536 + 2 * MIB + 4096}
    assert "driver-specific" not in nodes["d"]


@BOTH
def test_files_below_images(start, tmp_path, peer):
    """FEATURES 9.099: the file of an image is its parent, as the peer puts it, with as many members."""
    w = World(start, tmp_path, peer)
    node = next(n for n in w.ok("query-blockstats", **{"query-nodes": True}) if n["node-name"] == "disk")
    assert node["parent"]["node-name"] == "disk-store"
    assert node["parent"]["driver-specific"] == {"driver": "file", "discard-nb-ok": 0, "discard-nb-failed": 0, "discard-bytes-ok": 0}
    must = {"rd_bytes", "wr_bytes", "wr_highest_offset", "timed_stats", "account_failed", "account_invalid", "failed_flush_operations", "unmap_total_time_ns"}
    assert must <= set(node["parent"]["stats"]) and set(node["parent"]["stats"]) <= set(node["stats"]) | {"idle_time_ns"}


@pytest.mark.parametrize("kind", ["mirror", "backup", "commit", "stream"])
def test_latency_of_copies(start, tmp_path, kind):
    """FEATURES 9.100: each piece of a job is counted by how long it took."""
    w = World(start, tmp_path, False)
    w.begin(kind, **({} if kind == "mirror" else {"auto-dismiss": False}))
    if kind == "mirror":
        w.event("BLOCK_JOB_READY")
    else:
        w.event("BLOCK_JOB_COMPLETED")
    job = w.ok("query-block-jobs")[0]
    h = job["x-byre-copy-latency"]
    assert len(h["bins"]) == len(h["boundaries"]) + 1 and h["boundaries"] == sorted(h["boundaries"])
    assert sum(h["bins"]) > 0 and sum(h["bins"][-2:]) == 0
    if kind == "mirror":
        before = sum(h["bins"])
        for i in range(20):
            w.put(f"write -P {i + 1} 3584k 64k")
        time.sleep(0.5)
        assert sum(w.ok("query-block-jobs")[0]["x-byre-copy-latency"]["bins"]) >= before + 5
        w.ok("block-job-cancel", device="j", force=True)


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of 1 MiB."""
    with mounts.tmpfs(tmp_path / "small", "1M") as mount:
        yield mount


def test_io_status(tmpfs, byre_serve):
    """FEATURES 9.101: a device says how its last requests went, and is well again when one of that kind has succeeded."""
    nbd = peers.need_module("nbd")
    with open(tmpfs / "d.raw", "wb") as f:
        f.truncate(8 * MIB)
    (tmpfs / "ballast").write_bytes(bytes(900 << 10))
    server = byre_serve(tmpfs / "d.raw", "-f", "raw")
    client = Qmp(server.control)

    def status():
        return client.ask("query-block")["return"][0]["io-status"]
    assert status() == "ok"
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    with pytest.raises(nbd.Error) as failed:
        handle.pwrite(b"x" * MIB, 0)
    assert failed.value.errnum == 28
    assert status() == "nospace"
    handle.pread(512, 0)
    assert status() == "nospace", "a read says nothing of writes"
    event = next(e for e in client.events if e["event"] == "BLOCK_IO_ERROR")["data"]
    assert event["device"] == "disk0" and event["nospace"] is True and event["operation"] == "write" and event["reason"] == os.strerror(28)
    os.unlink(tmpfs / "ballast")
    handle.pwrite(b"x" * 65536, 0)
    assert status() == "ok"
    handle.shutdown()
    client.close()
