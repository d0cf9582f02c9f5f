# SPDX-License-Identifier: MIT
"""One monitor takes away what another one's command has just looked at, or what an export still shows (FEATURES 8.010, 8.018, 8.019, 9.073, 9.091, 9.097, 10.012)."""
import json
import os
import subprocess
import time

import pytest

from lib import peers, run, wait
from qmp_client import Qmp

ROUNDS = 40
NULL = ["--blockdev", "null-co,node-name=n,size=1M", "--nbd-server", "addr.type=unix,addr.path=n.sock"]


def begin(client, command, **arguments):
    client.send(json.dumps({"execute": command, "arguments": arguments}) + "\n")


def end(client):
    while "event" in (answer := client.receive() or {"gone": True}):
        pass
    assert "return" in answer or "error" in answer, answer
    return answer


def no_exports(client):
    while client.ok("query-block-exports"):
        time.sleep(0.001)


@pytest.mark.asan
def test_histogram_of_an_export_that_goes(start):
    """FEATURES 9.097: the limits of an export's histogram are set while another client removes it: the daemon ended by an assertion"""
    daemon = start("daemon", *NULL)
    one, other = daemon.qmp(), daemon.qmp()
    for _ in range(ROUNDS):
        one.ok("block-export-add", type="nbd", id="e", node_name="n")
        begin(one, "block-latency-histogram-set", id="e", boundaries=[1000, 2000])
        begin(other, "block-export-del", id="e", mode="hard")
        end(one)
        assert "return" in end(other)
        no_exports(other)
    assert daemon.process.poll() is None


@pytest.mark.asan
def test_thread_of_an_export_that_goes(start):
    """FEATURES 8.018, 10.025: a node goes to another thread while the server with its exports ends"""
    daemon = start("daemon", "--object", "iothread,id=t1", "--object", "iothread,id=t2", *sum((["--blockdev", f"null-co,node-name=n{i},size=1M"] for i in range(20)), []))
    one, other = daemon.qmp(), daemon.qmp()
    for _ in range(8):
        one.ok("nbd-server-start", addr={"type": "unix", "data": {"path": "n.sock"}})
        for i in range(20):
            one.ok("block-export-add", type="nbd", id=f"e{i}", node_name=f"n{i}")
        begin(one, "nbd-server-stop")
        for k in range(6):
            begin(other, "x-blockdev-set-iothread", **{"node-name": "n19", "iothread": f"t{1 + k % 2}"})
            end(other)
        assert "return" in end(one)
    assert daemon.process.poll() is None


@pytest.mark.asan
def test_limits_lifted_twice(byre_serve, tmp_path):
    """FEATURES 9.091: two clients lift the limits of a device at once: the second one used a filter and a group that the first had freed"""
    run.byre("create", "-f", "qcow2", tmp_path / "a.qcow2", "8M")
    server = byre_serve(tmp_path / "a.qcow2")
    one, other = Qmp(str(server.control)), Qmp(str(server.control))
    none = dict(device="disk0", bps=0, bps_rd=0, bps_wr=0, iops=0, iops_rd=0, iops_wr=0)
    for _ in range(ROUNDS):
        begin(one, "block_set_io_throttle", **{**none, "iops": 100})
        assert end(one) == {"return": {}}
        begin(one, "block_set_io_throttle", **none)
        begin(other, "block_set_io_throttle", **none)
        assert end(one) == end(other) == {"return": {}}
        assert one.ok("query-block")[0]["inserted"]["iops"] == 0
    one.socket.close()
    other.socket.close()


def bits(handle, context):
    got = []

    def note(name, _offset, entries, _error):
        if name == context:
            got.extend(entries)
        return 0
    handle.block_status(handle.get_size(), 0, note)
    return got


@pytest.mark.asan
@pytest.mark.parametrize("way", ["del", "stream", "commit"])
def test_bitmap_of_an_image_that_goes(start, tmp_path, way):
    """FEATURES 10.012, 8.019: an export shows a bitmap of an image beside the disk, or of a layer; the image goes, and the bitmap was read when it was freed"""
    nbd = peers.need_module("nbd")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "4M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "mid.qcow2")
    run.qemu_img("bitmap", "--add", "-g", "65536", tmp_path / "mid.qcow2", "m")
    run.qemu_io(tmp_path / "mid.qcow2", "write 1M 64k")
    run.qemu_img("bitmap", "--disable", tmp_path / "mid.qcow2", "m")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    shown = {"beside": "null-co,node-name=n,size=4M", "disk": "driver=qcow2,node-name=n,file.driver=file,file.filename=top.qcow2"}
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", "--blockdev", shown["beside" if way == "del" else "disk"], env={"MALLOC_PERTURB_": "165"})
    client = daemon.qmp()
    bitmap = "m"
    if way == "del":
        client.ok("blockdev-add", driver="qcow2", node_name="beside", file={"driver": "file", "filename": "mid.qcow2"}, backing=None, read_only=True)
        bitmap = {"node": "beside", "name": "m"}
    client.ok("block-export-add", type="nbd", id="e", node_name="n", name="n", bitmaps=[bitmap])
    handle = nbd.NBD()
    handle.add_meta_context("qemu:dirty-bitmap:m")
    handle.connect_uri(f"nbd+unix:///n?socket={daemon.folder}/n.sock")
    before = bits(handle, "qemu:dirty-bitmap:m")
    assert 1 in before[1::2]
    if way == "del":
        assert "in use" in client.refused("blockdev-del", node_name="beside")
    else:
        client.ok("block-stream" if way == "stream" else "block-commit", job_id="j", device="n", **({} if way == "stream" else {"top": "mid.qcow2"}))
        assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    assert bits(handle, "qemu:dirty-bitmap:m") == before
    handle.shutdown()
    client.ok("block-export-del", id="e", mode="hard")
    no_exports(client)
    if way == "del":
        client.ok("blockdev-del", node_name="beside")
    run.qemu_img("check", tmp_path / "mid.qcow2")
    assert daemon.stop()[0] == 0


@pytest.mark.asan
def test_snapshot_over_a_filter_that_moves(start, tmp_path):
    """FEATURES 9.073: a filter comes to lie over another image, and the one below it is deleted, while a new file over it is made: the file named that one"""
    peers.need("strace")
    for name in "ab":
        run.byre("create", "-q", "-f", "qcow2", tmp_path / name, "8M")
    daemon = start("daemon")
    one, other = daemon.qmp(), daemon.qmp()
    for name in "ab":
        one.ok("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": name})
    one.ok("object-add", qom_type="throttle-group", id="g")
    one.ok("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file="a")
    with subprocess.Popen(["strace", "-f", "-p", str(daemon.process.pid), "-e", "trace=readlink,readlinkat", "-P", "made", "-e", "inject=readlink,readlinkat:delay_enter=1500000",
                           "-o", tmp_path / "calls"], stderr=subprocess.PIPE, text=True) as tracer:
        assert "attached" in tracer.stderr.readline()
        begin(one, "blockdev-snapshot-sync", **{"node-name": "t", "snapshot-file": "made", "snapshot-node-name": "s"})
        wait.until(lambda: "made" in (tmp_path / "calls").read_text(), "the file is not made")
        other.ok("blockdev-reopen", options=[{"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "b"}])
        other.ask("blockdev-del", node_name="a")
        answer = end(one)
        tracer.terminate()
    assert "was moved meanwhile" in answer["error"]["desc"], answer
    assert not os.path.exists(os.path.join(daemon.folder, "made"))
    assert {"a", "b", "t"} >= {n["node-name"] for n in one.ok("query-named-block-nodes") if n["drv"] != "file"} >= {"b", "t"}
    assert daemon.stop()[0] == 0
