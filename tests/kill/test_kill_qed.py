# SPDX-License-Identifier: MIT
"""FEATURES 2.006: kill -9 of `byre serve` on a QED image under load, again and again: it opens at once, the next server's scrub ends
and takes the mark away, the peer's check then exits with 0, every sector holds its last flushed value or a later one.

10 kills in all; with SOAK=1 in the environment 50.
"""
import os
import random
import time
import zlib

import pytest
from kill_qed import GEOMETRIES
from lib import run
from test_kill import kill_under_load

KILLS = 25 if os.environ.get("SOAK") else 5         # of each of the two geometries


def wait_clean(disk, server):
    """The scrub that looks behind ends, and then nothing relies on the mark."""
    end = time.monotonic() + 10
    while disk.marked():
        assert server.process.poll() is None, server.output
        assert time.monotonic() < end, "the scrub does not end"
        time.sleep(0.02)


@pytest.mark.timeout(60 + 25 * KILLS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_killed_servers(make_qed_disk, name):
    disk, rng = make_qed_disk(name), random.Random(zlib.crc32(name.encode()))
    marks = leaks = 0
    for _ in range(KILLS):
        kill_under_load(disk, rng)
        disk.wait_unlocked()
        marks += disk.marked()
        leaks += disk.leaked()
        run.byre("check", "-f", "qed", disk.image, code=(0, 3))
        content = disk.judged()
        server = disk.serve()
        assert server.ready_after < 2.5, "RG9: a restart takes two seconds at most"
        disk.record.verify(disk.reader())
        wait_clean(disk, server)
        server.kill()
        disk.wait_unlocked()
        assert not disk.marked()
        disk.whole()
        assert disk.content() == content, "the scrub changed the disk"
    assert marks and leaks, "no kill came while anything was allocated: they test nothing"
    server = disk.serve()
    assert server.stop() == 0, server.output
    run.byre("check", "-f", "qed", disk.image)
    disk.whole()
    assert disk.content() == content
