# SPDX-License-Identifier: MIT
"""A backup to a server that stands still, also when it is asked what it holds (FEATURES 9.012, 9.068, G.043)."""
import signal
import subprocess
import time

import pytest

from backup_test import MIB, SIZE, World
from lib import nbdserver, peers, wait


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
