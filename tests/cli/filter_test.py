# SPDX-License-Identifier: MIT
"""Filters over a running disk: throttle, copy-on-read, blkdebug, compress, and the threshold of writes (FEATURES 3.050, 3.051, 3.052, 3.058,
3.075, 9.094, 9.098, 11.028)."""
import json
import time

from blockdev_test import MIB, Load, content, make, nodes, refused
from lib import peers, run, wait
from qmp_client import Qmp


def connect(server):
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    return handle


def limits(**given):
    return {**{k: 0 for k in ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}, **given}


def test_limits_under_load(tmp_path, byre_serve):
    """FEATURES 3.075, 9.094: limits come, change and go under three writers; the rate follows; nothing is lost"""
    image = make(tmp_path / "d.qcow2", "8M")
    server = byre_serve(image)
    load = Load(server.uri, 8 * MIB)

    def rate(seconds):
        before, start = sum(load.written), time.monotonic()
        time.sleep(seconds)
        return (sum(load.written) - before) / (time.monotonic() - start)
    load.wait_for(5)
    server.qmp("block_set_io_throttle", device="disk0", **limits(iops_wr=40))
    time.sleep(0.5)
    rates = []                                               # other work on the machine only ever makes one less
    wait.until(lambda: rates.append(rate(2)) or rates[-1] > 25, lambda: f"{rates} of 40 a second")
    assert max(rates) < 55
    server.qmp("block_set_io_throttle", device="disk0", **limits(bps=20 * 16384))
    time.sleep(0.5)
    assert rate(2) < 30
    assert server.qmp("query-block")[0]["inserted"]["node-name"] == "disk0"
    server.qmp("blockdev-snapshot-sync", **{"device": "disk0", "snapshot-file": str(tmp_path / "s.qcow2"), "snapshot-node-name": "s"})
    assert server.qmp("query-block")[0]["inserted"]["node-name"] == "s"
    assert rate(1) < 40
    server.qmp("block_set_io_throttle", id="disk0", **limits())
    load.wait_for(100)
    assert not [n for n in nodes(server).values() if n["drv"] == "throttle"]
    assert "bps-total" in refused(server, "block_set_io_throttle", device="disk0", **limits(bps=1, bps_rd=1))
    assert "nobody" in refused(server, "block_set_io_throttle", device="nobody", **limits(bps=1))
    load.stop()
    assert server.stop() == 0
    assert content(tmp_path / "s.qcow2") == load.image()


def test_another_group_under_load(tmp_path, byre_serve):
    """FEATURES 3.075, 9.094: a device goes to another group, while it is in use, with the filter that it has: there is no moment without limits, and nothing that
    could be refused when its old ones have gone. Groups that the command has made end with their last member"""
    server = byre_serve(make(tmp_path / "d.qcow2", "8M"))
    load = Load(server.uri, 8 * MIB)
    load.wait_for(5)

    def filters():
        return [n for n, v in nodes(server).items() if v["drv"] == "throttle"]

    def is_group(name):
        if name == now[0]:
            return "already" in refused(server, "object-add", **{"qom-type": "throttle-group", "id": name})
        server.qmp("object-add", **{"qom-type": "throttle-group", "id": name})        # it has ended
        server.qmp("object-del", id=name)
        return False
    now = ["a"]
    server.qmp("block_set_io_throttle", device="disk0", group="a", **limits(iops_wr=40))
    first = filters()
    assert len(first) == 1 and is_group("a")
    for i in range(20):
        now = ["ba"[i % 2]]
        server.qmp("block_set_io_throttle", device="disk0", group=now[0], **limits(iops_wr=40 + i))
        assert filters() == first and [is_group("a"), is_group("b")] == [now[0] == "a", now[0] == "b"]
    assert "bps-total" in refused(server, "block_set_io_throttle", device="disk0", group="c", **limits(bps=1, bps_rd=1))
    time.sleep(0.5)
    before = sum(load.written)
    time.sleep(1)
    assert filters() == first and sum(load.written) - before < 100           # of 59, and thousands without limits
    server.qmp("block_set_io_throttle", device="disk0", **limits())
    assert filters() == []
    load.wait_for(100)
    load.stop()
    assert server.stop() == 0
    assert content(tmp_path / "d.qcow2") == load.image()


def test_a_limit_does_not_hold_up_the_end(tmp_path, byre_serve):
    """A disk of one request in an hour is drained and closed at once"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    handle = connect(server)
    server.qmp("block_set_io_throttle", device="disk0", **limits(bps=1))
    for i in range(8):
        handle.aio_pwrite(bytearray(b"x" * 65536), i * 65536)
    start = time.monotonic()
    server.qmp("blockdev-snapshot-sync", **{"device": "disk0", "snapshot-file": str(tmp_path / "s.qcow2")})
    assert time.monotonic() - start < 60


def test_write_threshold(tmp_path, byre_serve):
    """FEATURES 9.098: one event, then none until it is set again; 0 disarms"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    client, handle = Qmp(server.control), connect(server)

    def events():
        client.ask("query-version")
        return [e["data"] for e in client.events if e["event"] == "BLOCK_WRITE_THRESHOLD"]
    arm = {"node-name": "disk0", "write-threshold": MIB}
    assert client.ask("block-set-write-threshold", **arm) == {"return": {}}
    assert nodes(server)["disk0"]["write_threshold"] == MIB
    handle.pwrite(b"x" * 4096, MIB - 4096)
    assert events() == []
    handle.pwrite(b"x" * 8192, MIB - 4096)
    handle.pwrite(b"x" * 8192, 2 * MIB)
    wait.until(events, "no event")
    time.sleep(0.1)                                          # and no second one
    assert events() == [{"node-name": "disk0", "amount-exceeded": 4096, "write-threshold": MIB}]
    assert nodes(server)["disk0"]["write_threshold"] == 0
    client.ask("block-set-write-threshold", **arm)
    handle.zero(65536, 3 * MIB)
    wait.until(lambda: len(events()) > 1, "no event when it is set again")
    assert len(events()) == 2 and events()[1]["amount-exceeded"] == 2 * MIB + 65536
    client.ask("block-set-write-threshold", **arm)
    client.ask("block-set-write-threshold", **{**arm, "write-threshold": 0})
    handle.pwrite(b"x" * 8192, 2 * MIB)
    time.sleep(0.1)
    assert len(events()) == 2
    client.close()
    assert server.stop() == 0


def test_filters_by_name(tmp_path, byre_serve):
    """FEATURES 3.063, 8.010: filters over filters, nested or by name, with the image's size; what is used below them stays"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    image = make(tmp_path / "a.qcow2")
    stack = {"driver": "blkdebug", "node-name": "f1", "image": {"driver": "compress", "file":
             {"driver": "copy-on-read", "node-name": "f3", "file": {"driver": "qcow2", "node-name": "a", "file": {"driver": "file", "filename": str(image)}}}}}
    server.qmp("blockdev-add", **stack)
    seen = nodes(server)
    assert [seen[n]["drv"] for n in ("f1", "f3", "a")] == ["blkdebug", "copy-on-read", "qcow2"]
    assert seen["f1"]["image"]["virtual-size"] == 16 * MIB and seen["f1"]["backing_file_depth"] == 3
    assert "f3" in refused(server, "blockdev-del", **{"node-name": "a"}) or "made by" in refused(server, "blockdev-del", **{"node-name": "a"})
    server.qmp("block_resize", **{"node-name": "a", "size": 20 * MIB})
    assert nodes(server)["f1"]["image"]["virtual-size"] == 20 * MIB
    assert "foo" in refused(server, "blockdev-add", driver="compress", file="a", foo=1, **{"node-name": "x"})
    assert "file" in refused(server, "blockdev-add", driver="compress", **{"node-name": "x"})
    assert "group" in refused(server, "blockdev-add", driver="throttle", file="a", **{"node-name": "x"})
    server.qmp("blockdev-del", **{"node-name": "f1"})
    assert "a" not in nodes(server)
    assert server.stop() == 0


def test_what_needs_the_image(tmp_path, byre_serve):
    """A filter hands requests on before anybody watches or records them: jobs, bitmaps and thresholds that name it mean the image below it"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    server.qmp("blockdev-add", driver="compress", file="disk0", **{"node-name": "f"})
    server.qmp("block-dirty-bitmap-add", node="f", name="b")
    server.qmp("block-set-write-threshold", **{"node-name": "f", "write-threshold": 512})
    handle = connect(server)
    handle.pwrite(b"x" * 65536, 65536)
    bitmaps = {b["name"]: b["count"] for n in server.qmp("query-named-block-nodes") for b in n.get("dirty-bitmaps", [])}
    assert bitmaps == {"b": 65536}
    assert nodes(server)["disk0"]["write_threshold"] == 0                # told, and gone
    server.qmp("drive-mirror", **{"job-id": "j", "device": "f", "target": str(tmp_path / "n.qcow2"), "sync": "full", "format": "qcow2"})
    end = time.monotonic() + 20
    while not any(j["ready"] for j in server.qmp("query-block-jobs")) and time.monotonic() < end:
        time.sleep(0.05)
    assert "frozen" in refused(server, "blockdev-del", **{"node-name": "f"}) or "use" in refused(server, "blockdev-del", **{"node-name": "f"})
    server.qmp("block-job-cancel", device="j", force=True)
    handle.shutdown()
    assert server.stop() == 0


def test_filters_hand_on_permissions(tmp_path, byre_serve):
    """FEATURES 3.064, 11.002: an overlay cannot lie over a filter over a disk that others write to"""
    server = byre_serve(make(tmp_path / "d.qcow2"))
    server.qmp("blockdev-add", driver="blkdebug", image="disk0", **{"node-name": "bd"})
    make(tmp_path / "o.qcow2")
    text = refused(server, "blockdev-add", driver="qcow2", backing="bd", **{"node-name": "o", "file": {"driver": "file", "filename": str(tmp_path / "o.qcow2")}})
    assert "write" in text and "disk0" in text, text
    assert "o" not in nodes(server)
    assert server.stop() == 0


def test_injected_errors(tmp_path, byre_serve):
    """FEATURES 3.052: which requests fail, once or always, with what error; the job or guest is told; others pass"""
    image = make(tmp_path / "a.qcow2")
    server = byre_serve(make(tmp_path / "d.qcow2"))
    rules = [{"event": "none", "iotype": "write", "errno": 28, "once": True}, {"event": "none", "iotype": "read", "sector": 9},
             {"event": "none", "iotype": "flush", "x-delay-ns": 200000000}]
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
    server.qmp("blockdev-add", driver="blkdebug", image=node, **{"node-name": "bd", "inject-error": rules})
    for bad in ({"event": "l1_grow"}, {"errno": 5}, {"event": "none", "iotype": "nothing"}, {"event": "none", "errno": -1}, {"event": "none", "foo": 1}):
        assert "blkdebug" in refused(server, "blockdev-add", driver="blkdebug", image="bd", **{"node-name": "x", "inject-error": [bad]})
    assert server.stop() == 0
