# SPDX-License-Identifier: MIT
"""Jobs whose target is a server that stops to answer (FEATURES 9.012, 9.039)."""
import os
import signal
import threading
import time

import pytest
from lib import nbdserver, run, wait
from mirror_test import disk_with_data, serve, write  # noqa: F401

STALL = 60
PROMPT = 3                                                   # seconds; the tests that say so run alone. "Within a second" on a machine that lets them


@pytest.fixture
def far():
    """A server that takes writes and does not answer them."""
    server = nbdserver.nbdkit("--filter=delay", "memory", "32M", f"delay-write={STALL}", f"delay-zero={STALL}")
    yield server.start()
    server.close()


@pytest.mark.serial
@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_cancel(tmp_path, serve, far, mode):  # noqa: F811
    """The job has ended within a second; the guest goes on; what was with the server is given up, so that nothing waits for it at the end"""
    server, client = serve(disk_with_data(tmp_path / "disk"))
    client.ok("blockdev-add", driver="raw", node_name="far", file={"driver": "nbd", "server": {"type": "unix", "path": far.socket}})
    client.ok("blockdev-mirror", job_id="j", device="disk0", target="far", sync="full", copy_mode=mode)
    time.sleep(0.5)
    guest = threading.Thread(target=write, args=(server, "write -P 9 5M 1M"))
    guest.start()                                            # which may wait for both sides
    time.sleep(0.3)
    begin = time.monotonic()
    client.ok("block-job-cancel", device="j", force=True)
    client.wait("BLOCK_JOB_CANCELLED")
    assert time.monotonic() - begin < PROMPT
    guest.join(PROMPT)
    assert not guest.is_alive()
    begin = time.monotonic()
    write(server, "write -P 8 6M 1M", "read -P 9 5M 1M", "flush")
    assert time.monotonic() - begin < PROMPT
    text = client.refused("blockdev-mirror", job_id="k", device="disk0", target="far", sync="full")
    assert "'j'" in text                                     # its requests are not over
    end = time.monotonic() + STALL / 3
    while "'j'" in text and time.monotonic() < end:
        time.sleep(0.1)
        answer = client.ask("blockdev-mirror", job_id="k", device="disk0", target="far", sync="full")
        text = answer.get("error", {}).get("desc", "")
    assert not text                                          # it may try again: the server is away, or is back and stalls again
    client.ask("block-job-cancel", device="k", force=True)
    client.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    client.close()
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < STALL / 2
    run.qemu_img("check", tmp_path / "disk")


def test_quit(tmp_path, serve, far):  # noqa: F811
    """A server that is told to end, ends, whatever its job waits for"""
    server, client = serve(disk_with_data(tmp_path / "disk"))
    client.ok("drive-mirror", job_id="j", device="disk0", target=far.uri, sync="full", mode="existing", format="raw")
    time.sleep(0.5)
    write(server, "write -P 9 5M 1M", "flush")
    client.close()
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < STALL / 2
    run.qemu_io(tmp_path / "disk", "read -P 9 5M 1M", fmt="qcow2")


@pytest.mark.parametrize("fmt,owner", [("raw", "user"), ("qcow2", "user"), ("raw", "job"), ("qcow2", "job")])
def test_quit_behind_a_job(tmp_path, serve, fmt, owner):  # noqa: F811
    """FEATURES 9.019, 9.039: the server stops to answer when nothing is with it, and the job ends: what it is asked for when the target is closed is given up, by the job after 10 seconds, at
    the end after 30, which is said"""
    run.qemu_img("create", "-q", "-f", fmt, tmp_path / "far", "32M")
    os.truncate(tmp_path / "far", 48 << 20 if fmt == "qcow2" else 32 << 20)      # a server's disk does not grow
    far = nbdserver.nbdkit("file", tmp_path / "far").start()
    try:
        server, client = serve(disk_with_data(tmp_path / "disk"))
        if owner == "user":
            client.ok("blockdev-add", driver=fmt, node_name="far", file={"driver": "nbd", "server": {"type": "unix", "path": far.socket}})
            client.ok("blockdev-mirror", job_id="j", device="disk0", target="far", sync="none")
        else:
            client.ok("drive-mirror", job_id="j", device="disk0", target=far.uri, sync="none", mode="existing", format=fmt)
        client.wait("BLOCK_JOB_READY")
        write(server, "write -P 9 5M 1M")
        wait.until(lambda: (job := client.ok("query-block-jobs")[0])["len"] == job["offset"] > 0, "it is not copied")
        nbdserver.stand_still(far.process.pid)
        client.ok("block-job-cancel", device="j", force=True)
        client.wait("BLOCK_JOB_CANCELLED")
        client.close()
        code = server.stop(timeout=240)
        assert (code, "not everything that was written" in server.output) == ((1, True) if owner == "user" else (0, False)), server.output
    finally:
        far.process.send_signal(signal.SIGCONT)
        far.close()
    run.qemu_io(tmp_path / "disk", "read -P 9 5M 1M", fmt="qcow2")


@pytest.mark.serial
def test_drain_with_edges_held(tmp_path, serve, far):  # noqa: F811
    """A guest's write may wait for both sides for ever, and a snapshot for that write: who cancels the job ends all of it within a second"""
    server, client = serve(disk_with_data(tmp_path / "disk"))
    other = type(client)(server.control)
    client.ok("blockdev-add", driver="raw", node_name="far", file={"driver": "nbd", "server": {"type": "unix", "path": far.socket}})
    client.ok("blockdev-mirror", job_id="j", device="disk0", target="far", sync="none", copy_mode="write-blocking", max_hold_ms=0)
    client.wait("BLOCK_JOB_READY")
    guest = threading.Thread(target=write, args=(server, "write -P 9 5M 1M"))
    guest.start()
    time.sleep(0.5)
    assert guest.is_alive()                                  # it waits for the server
    taken = []
    snapshot = threading.Thread(target=lambda: taken.append(other.ask("blockdev-snapshot-sync", device="disk0", snapshot_file=str(tmp_path / "over"))))
    snapshot.start()
    time.sleep(0.5)
    assert snapshot.is_alive()                               # and this for the guest
    begin = time.monotonic()
    client.ok("query-block-jobs")
    client.ok("query-block")
    client.ok("block-job-cancel", device="j", force=True)
    client.wait("BLOCK_JOB_CANCELLED")
    for thread in (guest, snapshot):
        thread.join(PROMPT)
        assert not thread.is_alive()
    assert time.monotonic() - begin < PROMPT
    assert taken == [{"return": {}}]
    write(server, "read -P 9 5M 1M", "write -P 8 6M 1M", "flush")
    other.close()
    client.close()
    server.stop()
    run.qemu_io(tmp_path / "over", "read -P 9 5M 1M", "read -P 8 6M 1M", fmt="qcow2")
