# SPDX-License-Identifier: MIT
"""A backup to a server that stands still, also when it is asked what it holds (FEATURES 9.012, 9.068, G.043)."""
import signal
import subprocess
import time

import pytest

from backup_test import MIB, SIZE, World
from lib import nbdserver, peers, run, wait


@pytest.mark.parametrize("where", ["data", "zeros"])
def test_guests_go_on(tmp_path, start, where):
    """The cancelled job is gone soon, a guest's write that waited for the server goes on, wherever it is, and `quit` ends"""
    w = World(start, tmp_path)
    (tmp_path / "far.raw").write_bytes(bytes(SIZE))
    sock = tmp_path / "far.sock"
    with subprocess.Popen([peers.need("qemu-nbd"), "-t", "-f", "raw", "-k", str(sock), str(tmp_path / "far.raw")]) as far:
        try:
            wait.until(lambda: wait.listens(far, sock), "the peer does not listen")
            w.add(driver="nbd", node_name="far", server={"type": "unix", "path": str(sock)})
            guest = w.guest()
            w.ok("blockdev-backup", device="disk", job_id="j", target="far", sync="full", speed=MIB // 2)
            nbdserver.stand_still(far.pid)
            cookie = guest.aio_pwrite(bytearray(b"x" * 4096), SIZE // 2 if where == "data" else SIZE - MIB)
            time.sleep(0.3)
            begun = time.monotonic()
            w.ok("block-job-cancel", device="j")
            w.wait("BLOCK_JOB_CANCELLED")
            w.gone()
            while not guest.aio_command_completed(cookie):
                guest.poll(100)
                assert time.monotonic() - begun < 20                 # of for ever
            guest.shutdown()
            w.ok("quit")
            assert w.daemon.wait()[0] == 0
        finally:
            far.send_signal(signal.SIGCONT)
            far.kill()


@pytest.mark.serial
def test_target_over_the_source(tmp_path, start, still):
    """The same where the target lies over its source (FEATURES 9.069), and a reader waits for it: the guest, and changes of other chains, go on"""
    w = World(start, tmp_path)
    for name, more in (("other", {}), ("over", {"backing": None})):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", SIZE)
        w.add(driver="qcow2", node_name=name, file={"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")}, **more)
    server = {"type": "unix", "path": still.socket}
    run.qemu_img("create", "-q", "-f", "qcow2", still.uri, SIZE)
    w.add(driver="qcow2", node_name="t", file={"driver": "nbd", "server": server}, backing="disk")
    guest = w.guest()
    w.ok("blockdev-backup", device="disk", job_id="j", target="t", sync="none")
    guest.pwrite(b"x" * 65536, 0)
    w.ok("block-export-add", type="nbd", id="t", node_name="t", name="t")
    reader = w.guest("t")
    nbdserver.stand_still(still.process.pid)
    reading = reader.aio_pread(peers.need_module("nbd").Buffer(65536), 0)
    writing = guest.aio_pwrite(bytearray(b"y" * 65536), 4 * MIB)
    time.sleep(0.3)
    assert not reader.aio_command_completed(reading)
    begun = time.monotonic()
    w.ok("block-job-cancel", device="j")
    other = w.guest()
    later = other.aio_pwrite(bytearray(b"z" * 65536), 2 * MIB)
    for handle, cookie in ((other, later), (guest, writing)):
        while not handle.aio_command_completed(cookie):
            handle.poll(100)
            assert time.monotonic() - begun < 15             # of for ever
    w.ok("blockdev-snapshot", node="other", overlay="over")
    assert time.monotonic() - begun < 15
    w.wait("BLOCK_JOB_CANCELLED")
    w.gone()
    guest.shutdown()
    other.shutdown()
    w.ok("quit")
    w.daemon.wait()                                          # it tells that the target was not closed well
