# SPDX-License-Identifier: MIT
"""A limit of hours holds nobody up who is on his way out: the end of a server, the end of an export, a job that is cancelled (FEATURES 3.075, 8.006, 8.019, 9.012, 9.094)."""
import os
import time

import pytest

from blockdev_test import MIB, make
from filter_test import connect, limits
from lib import run, wait
from qmp_client import Qmp

SOON = 60                                                    # what waits for the limit takes the time of 64 KiB at a byte a second, and that eight times


@pytest.fixture
def world(tmp_path, byre_serve):
    """A server of one disk with bytes, its client, and a throttle group "g" of one byte a second."""
    image = make(tmp_path / "d.qcow2", "8M")
    run.qemu_io(image, "write -P 7 0 4M", fmt="qcow2")
    server = byre_serve(image)
    client = Qmp(server.control)
    client.ok("object-add", qom_type="throttle-group", id="g", limits={"bps-total": 1})
    yield server, client
    client.close()


def queue(server):
    """A guest with eight writes that stand behind the limit of its disk."""
    server.qmp("block_set_io_throttle", device="disk0", **limits(bps=1))
    handle = connect(server)
    cookies = [handle.aio_pwrite(bytearray(b"x" * 65536), i * 65536) for i in range(8)]
    end = time.monotonic() + 1
    while time.monotonic() < end:
        handle.poll(50)
    assert sum(handle.aio_command_completed(c) for c in cookies) < 8
    return handle


def node(client, path, read_only=False):
    """The node "t", behind the limit of "g", over a raw file."""
    client.ok("blockdev-add", driver="file", node_name="f", filename=str(path), read_only=read_only)
    client.ok("blockdev-add", driver="throttle", node_name="t", file="f", throttle_group="g")


def ends(server):
    assert server.stop(timeout=SOON) == 0


def test_end(world):
    """FEATURES 8.006, 9.094: what guests had asked for goes on at once when the server is to end"""
    server, client = world
    handle = queue(server)
    client.close()
    ends(server)
    del handle


def test_export_is_removed(world):
    """FEATURES 8.019, 9.094: the same when their export is removed"""
    server, client = world
    handle = queue(server)
    client.ok("block-export-del", id="disk0", mode="hard")
    wait.until(lambda: not client.ok("query-block-exports"), "the export is still there")
    del handle


def test_stream_is_cancelled(world, tmp_path):
    """FEATURES 9.012, 9.094: a stream that reads from behind a limit; and so the end, when it runs still"""
    server, client = world
    (tmp_path / "low").write_bytes(os.urandom(8 * MIB))       # more than one request, which finds room
    run.qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "low", tmp_path / "over")
    node(client, tmp_path / "low", read_only=True)
    client.ok("blockdev-add", driver="qcow2", node_name="over", file={"driver": "file", "filename": str(tmp_path / "over")}, backing="t")
    client.ok("block-stream", device="over", job_id="j")
    time.sleep(0.5)
    assert client.ok("query-block-jobs")
    client.ok("job-cancel", id="j")
    wait.until(lambda: not client.ok("query-jobs"), "the job is still there")
    client.ok("block-stream", device="over", job_id="j")
    time.sleep(0.5)
    client.close()
    ends(server)


@pytest.mark.parametrize("command", ["blockdev-mirror", "blockdev-backup"])
def test_copy_is_cancelled(world, tmp_path, command):
    """FEATURES 9.012, 9.094: a job that writes to behind a limit is gone, and its target is free"""
    server, client = world
    (tmp_path / "to").touch()
    os.truncate(tmp_path / "to", 8 * MIB)
    node(client, tmp_path / "to")
    client.ok(command, device="disk0", target="t", sync="full", job_id="j")
    time.sleep(0.5)
    assert client.ok("query-block-jobs")
    client.ok("job-cancel", id="j")
    wait.until(lambda: not client.ok("query-jobs"), "the job is still there")
    wait.until(lambda: "error" not in client.ask("blockdev-del", **{"node-name": "t"}), "the target is still in use")
    client.close()
    ends(server)
