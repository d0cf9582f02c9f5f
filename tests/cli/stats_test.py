# SPDX-License-Identifier: MIT
"""query-blockstats, histograms of latency, OpenMetrics (FEATURES 9.095, 9.097, 8.011), and throttle groups as objects (8.021, 9.094, 3.075)."""
import json
import re
import time

import nbd
import pytest
from lib import run
from qmp_client import Qmp

# What a disk's counts are called. tests/daemon/query_test.py compares the names with those of the peer that is here.
PEER_KEYS = {f"{p}_{w}" for p in ("rd", "wr", "unmap", "zone_append") for w in ("bytes", "operations", "merged", "total_time_ns")} | \
            {f"{w}_{p}_operations" for p in ("rd", "wr", "unmap", "zone_append", "flush") for w in ("failed", "invalid")} | \
            {"flush_operations", "flush_total_time_ns", "wr_highest_offset", "timed_stats", "account_invalid", "account_failed"}


@pytest.fixture
def disk(tmp_path, byre_serve):
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "64M")
    run.byre("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "disk.qcow2")
    server = byre_serve(tmp_path / "disk.qcow2")
    client = Qmp(server.control)
    yield server, client
    client.close()


def connect(server):
    h = nbd.NBD()
    h.connect_uri(server.uri)
    h.set_strict_mode(0)
    return h


def throttle(client, **limits):
    arguments = {**dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0), "device": "disk0", **limits}
    client.send(json.dumps({"execute": "block_set_io_throttle", "arguments": arguments}) + "\n")
    answer = client.receive()
    assert "return" in answer, answer


def stats(client):
    return client.ask("query-blockstats")["return"][0]["stats"]


def test_keys_are_those_of_the_peer(disk):
    _, client = disk
    device = client.ask("query-blockstats")["return"][0]
    assert device["device"] == "disk0" and device["node-name"] == "disk0"
    assert set(device["stats"]) == PEER_KEYS
    assert device["backing"]["node-name"] == "disk0-b1" and set(device["backing"]["stats"]) == PEER_KEYS
    nodes = client.ask("query-blockstats", **{"query-nodes": True})["return"]
    assert {n["node-name"] for n in nodes} >= {"disk0", "disk0-b1"} and all("device" not in n for n in nodes)


def test_counters_are_what_was_done(disk):
    server, client = disk
    h = connect(server)
    done = {"rd": [0, 0], "wr": [0, 0], "unmap": [0, 0]}
    for i in range(50):
        h.pwrite(bytes(4096), i * 65536)
        done["wr"][0] += 1
        done["wr"][1] += 4096
    for i in range(70):
        h.pread(8192, i * 8192)
        done["rd"][0] += 1
        done["rd"][1] += 8192
    h.zero(65536, 1 << 20)
    done["wr"][0] += 1
    done["wr"][1] += 65536
    h.trim(131072, 2 << 20)
    done["unmap"][0] += 1
    done["unmap"][1] += 131072
    for _ in range(3):
        h.flush()
    s = stats(client)
    for op, (count, size) in done.items():
        assert (s[f"{op}_operations"], s[f"{op}_bytes"]) == (count, size), (op, s)
        assert s[f"failed_{op}_operations"] == s[f"invalid_{op}_operations"] == 0
    assert s["flush_operations"] >= 3 and s["flush_total_time_ns"] > 0
    assert s["wr_highest_offset"] == 49 * 65536 + 4096
    assert s["rd_total_time_ns"] + s["wr_total_time_ns"] > 0 and s["idle_time_ns"] >= 0
    export = client.ask("x-byre-query-export-stats")["return"][0]
    assert export["id"] == "disk0" and export["stats"]["wr_bytes"] == done["wr"][1] and export["stats"]["rd_operations"] == 70
    # Layers below serve the disk; nobody has asked them.
    assert client.ask("query-blockstats")["return"][0]["backing"]["stats"]["rd_operations"] == 0
    h.shutdown()


def test_loops_count_together(tmp_path, byre_serve):
    """Each loop counts for itself; the sum is exact when they have come to rest."""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "disk.qcow2", "4M")
    server = byre_serve(tmp_path / "disk.qcow2", "--threads", 4)
    client = Qmp(server.control)
    clients = [connect(server) for _ in range(8)]
    for i in range(100):
        for k, h in enumerate(clients):
            h.pwrite(bytes(512), (k * 100 + i) * 512)
    s = stats(client)
    assert (s["wr_operations"], s["wr_bytes"], s["wr_highest_offset"]) == (800, 800 * 512, 800 * 512)
    for h in clients:
        h.shutdown()
    client.close()


def test_failures_are_counted_apart(tmp_path, byre_serve):
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "disk.qcow2", "1M")
    server = byre_serve(tmp_path / "disk.qcow2")
    client = Qmp(server.control)
    inject = {"event": "none", "iotype": "read", "errno": 5, "sector": 8}
    assert "return" in client.ask("blockdev-add", driver="blkdebug", **{"node-name": "bad", "image": "disk0", "inject-error": [inject]})
    assert "return" in client.ask("block-export-add", type="nbd", id="bad", name="bad", **{"node-name": "bad"})
    h = nbd.NBD()
    h.set_export_name("bad")
    h.connect_uri(server.uri.replace("disk0", "bad")) if "disk0" in server.uri else h.connect_unix(server.nbd)
    with pytest.raises(nbd.Error):
        h.pread(512, 4096)
    h.pread(512, 0)
    s = client.ask("x-byre-query-export-stats")["return"]
    s = {e["id"]: e["stats"] for e in s}["bad"]
    assert (s["failed_rd_operations"], s["rd_operations"], s["rd_bytes"]) == (1, 1, 512)
    client.close()


# ---- histograms ----

def test_bins_sum_up_to_the_requests(disk):
    server, client = disk
    assert "return" in client.ask("block-latency-histogram-set", id="disk0", boundaries=[10_000, 1_000_000, 100_000_000])
    h = connect(server)
    for i in range(40):
        h.pwrite(bytes(4096), i * 4096)
    for i in range(60):
        h.pread(4096, i * 4096)
    h.flush()
    s = {e["id"]: e["stats"] for e in client.ask("x-byre-query-export-stats")["return"]}["disk0"]
    for op, key in (("rd", 60), ("wr", 40)):
        histogram = s[f"{op}_latency_histogram"]
        assert histogram["boundaries"] == [10_000, 1_000_000, 100_000_000]
        assert len(histogram["bins"]) == 4 and sum(histogram["bins"]) == key
    assert sum(s["flush_latency_histogram"]["bins"]) >= 1
    assert "rd_latency_histogram" not in stats(client)           # the export has it, its image has none
    assert "return" in client.ask("block-latency-histogram-set", id="disk0", **{"boundaries-read": [5]})
    s = {e["id"]: e["stats"] for e in client.ask("x-byre-query-export-stats")["return"]}["disk0"]
    assert s["rd_latency_histogram"] == {"boundaries": [5], "bins": [0, 0]} and sum(s["wr_latency_histogram"]["bins"]) == 40
    assert "return" in client.ask("block-latency-histogram-set", id="disk0")
    assert "rd_latency_histogram" not in {e["id"]: e["stats"] for e in client.ask("x-byre-query-export-stats")["return"]}["disk0"]
    h.shutdown()


def test_slow_requests_are_in_the_high_bins(disk):
    server, client = disk
    throttle(client, iops=20)
    assert "return" in client.ask("block-latency-histogram-set", id="disk0", boundaries=[1_000_000, 20_000_000])
    h = connect(server)
    for i in range(12):
        h.pread(512, i * 512)
    s = {e["id"]: e["stats"] for e in client.ask("x-byre-query-export-stats")["return"]}["disk0"]
    bins = s["rd_latency_histogram"]["bins"]
    assert sum(bins) == 12 and bins[2] >= 7, bins
    assert s["rd_total_time_ns"] > 7 * 20_000_000
    h.shutdown()


def test_boundaries_rise(disk):
    _, client = disk
    for bad in ([5, 5], [9, 3], [0, 4]):
        answer = client.ask("block-latency-histogram-set", id="disk0", boundaries=[1, 2], **{"boundaries-write": bad})
        assert "rise" in answer["error"]["desc"]
        assert "rd_latency_histogram" not in stats(client)
    assert "error" in client.ask("block-latency-histogram-set", id="nobody", boundaries=[1])


# ---- OpenMetrics ----

SAMPLE = re.compile(r'^([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*\})? (\d+(?:\.\d+)?)$')


def test_metrics_are_well_formed_and_true(disk):
    server, client = disk
    assert "return" in client.ask("block-latency-histogram-set", id="disk0", boundaries=[1_000_000])
    h = connect(server)
    h.pwrite(bytes(65536), 0)
    h.pread(4096, 0)
    text = run.byre("ctl", server.control, "metrics").out
    assert text == client.ask("x-byre-metrics")["return"]["text"]
    lines = text.splitlines()
    assert lines[-1] == "# EOF"
    types, values, family = {}, {}, None
    for line in lines[:-1]:
        if line.startswith("# "):
            word, name, rest = line[2:].split(" ", 2)
            if word == "TYPE":
                assert name not in types
                types[name] = rest
                family = name
            assert name == family and (word != "UNIT" or name.endswith("_" + rest) or name.endswith(rest))
            continue
        m = SAMPLE.match(line)
        assert m, line
        assert m[1].startswith(family)
        assert types[family] != "counter" or m[1].endswith("_total")
        assert (m[1], m[2]) not in values
        values[m[1], m[2]] = float(m[3])
    assert values["byre_export_bytes_total", '{export="disk0",op="write"}'] == 65536
    assert values["byre_node_requests_total", '{node="disk0",op="read"}'] == 1
    assert values["byre_node_highest_write_bytes", '{node="disk0"}'] == 65536
    assert values["byre_export_latency_seconds_bucket", '{export="disk0",op="read",le="+Inf"}'] == 1
    assert values["byre_export_latency_seconds_count", '{export="disk0",op="read"}'] == 1
    h.shutdown()


# ---- throttle groups as objects ----

def test_a_group_is_an_object(disk):
    server, client = disk
    assert "return" in client.ask("object-add", **{"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 20}})
    assert "error" in client.ask("object-add", **{"qom-type": "throttle-group", "id": "tg"})
    assert "return" in client.ask("object-add", **{"qom-type": "throttle-group", "id": "other", "x-bps-read": 5})
    assert client.ask("qom-get", path="/objects/tg", property="limits")["return"]["iops-total"] == 20
    assert client.ask("qom-get", path="other", property="x-bps-read")["return"] == 5
    assert client.ask("qom-get", path="tg", property="type")["return"] == "throttle-group"
    assert {p["name"] for p in client.ask("qom-list", path="/objects")["return"]} == {"type", "tg", "other"}
    assert len(client.ask("qom-list", path="/objects/tg")["return"]) == 21
    assert "not found" in client.ask("qom-get", path="tg", property="nope")["error"]["desc"]
    assert client.ask("qom-get", path="none", property="limits")["error"]["class"] == "DeviceNotFound"
    assert "initialization" in client.ask("qom-set", path="tg", property="x-iops-total", value=3)["error"]["desc"]
    assert "error" in client.ask("qom-set", path="tg", property="limits", value={"iops-total": 5, "iops-read": 5})
    assert "error" in client.ask("qom-set", path="tg", property="limits", value={"nope": 5})
    assert client.ask("qom-get", path="tg", property="limits")["return"]["iops-total"] == 20
    assert "error" in client.ask("object-add", **{"qom-type": "throttle-group", "id": "bad", "limits": {"iops-total": 5, "iops-read": 5}})
    assert "return" in client.ask("blockdev-add", driver="throttle", **{"node-name": "t", "throttle-group": "tg", "file": "disk0"})
    assert "in use" in client.ask("object-del", id="tg")["error"]["desc"]
    assert "return" in client.ask("blockdev-del", **{"node-name": "t"})
    assert "return" in client.ask("object-del", id="tg")
    assert "not found" in client.ask("object-del", id="tg")["error"]["desc"]


def test_limits_change_while_they_hold(disk):
    """FEATURES 9.094: within a second."""
    server, client = disk
    assert "return" in client.ask("object-add", **{"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 10}})
    throttle(client, group="tg", iops=10)
    h = connect(server)
    begun = time.monotonic()
    for i in range(6):
        h.pread(512, 0)
    assert time.monotonic() - begun > 0.3
    assert "return" in client.ask("qom-set", path="tg", property="limits", value={"iops-total": 100000})
    begun = time.monotonic()
    for i in range(200):
        h.pread(512, 0)
    assert time.monotonic() - begun < 15                     # of 20 s
    throttle(client)
    assert "return" in client.ask("qom-get", path="tg", property="limits")       # the user's object stays
    h.shutdown()


def test_the_daemon_takes_them_on_its_command_line():
    for program in ((run.BYRE, "daemon"), ("qemu-storage-daemon",)):
        refused = run.run(*program, "--object", "throttle-group,id=tg,limits.iops-total=5,limits.iops-read=5", code=1)
        assert "total" in refused.err
