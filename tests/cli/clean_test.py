# SPDX-License-Identifier: MIT
"""Memory of a served disk follows its use (FEATURES 1.127)."""
import json
import os
import time
from pathlib import Path

import pytest

from lib import images, peers

SIZE, STEP = 256 << 30, 32 << 20                 # one piece of 4 KiB of the mapping tables for each step
TABLES = SIZE // STEP * 4096


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("clean") / "x.qcow2"
    images.create(path, str(SIZE), preallocation="metadata")
    return path


def serve(byre_serve, image, **options):
    return byre_serve("json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}, **options}))


def rss(server):
    line = next(li for li in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if li.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def switches(server):
    """How often any of its threads went to sleep."""
    total = 0
    for task in os.listdir(f"/proc/{server.process.pid}/task"):
        text = Path(f"/proc/{server.process.pid}/task/{task}/status").read_text()
        total += sum(int(li.split()[1]) for li in text.splitlines() if "ctxt_switches" in li)
    return total


def read_all_over(server):
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    for off in range(0, SIZE, STEP):
        handle.pread(4096, off)
    handle.shutdown()


def fill(server, interval):
    """All tables in memory: reads that took less than an interval, so that none was idle for one before the last came."""
    for _ in range(10):
        began = time.monotonic()
        read_all_over(server)
        if time.monotonic() - began < interval:
            return rss(server)
    raise AssertionError(f"no ten times were {SIZE // STEP} reads done within {interval} s")


def enough(byre_serve, image):
    """Seconds in which this machine does all those reads, whatever else it does."""
    server = byre_serve(image)
    began = time.monotonic()
    read_all_over(server)
    took = time.monotonic() - began
    assert server.stop() == 0
    return max(3, int(3 * took) + 1)


def sleeps_on(server, interval):
    before = switches(server)
    time.sleep(2.5 * interval)
    return switches(server) == before


def within(seconds, what):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_idle_tables_go(byre_serve, image):
    """Behind the second interval the memory is what it was before; then nothing wakes the process any more; it serves on"""
    interval = enough(byre_serve, image)
    server = serve(byre_serve, image, **{"cache-clean-interval": interval})
    full = fill(server, interval)
    assert full > TABLES * 9 // 10
    assert within(10 + 2 * interval, lambda: rss(server) < full - TABLES * 9 // 10), rss(server)
    assert within(15 * interval, lambda: sleeps_on(server, interval))
    assert fill(server, interval) > TABLES * 9 // 10
    assert server.stop() == 0


@pytest.mark.parametrize("options", [{"cache-clean-interval": 0}, {}])
def test_kept(byre_serve, image, options):
    """Off, and with the usual ten minutes, nothing goes; and the process ends at once"""
    server = serve(byre_serve, image, **options)
    read_all_over(server)
    full = rss(server)
    time.sleep(3)
    assert rss(server) > full - TABLES // 10
    began = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - began < 10
