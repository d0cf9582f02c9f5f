# SPDX-License-Identifier: MIT
"""SIGTERM and SIGINT to `byre serve` under load: a clean end within five seconds, nothing lost that was flushed or even
acknowledged, no leak, no socket left behind, and the image is free for the next program at once."""
import os
import random
import signal
import time

import kill_disk
import kill_load
import pytest
from lib import images, peers, run

STOP_WITHIN = 5.0


def stop_under_load(disk, number, seed=3):
    """Returns (exit code, seconds) of a server that was told to end while clients were busy."""
    server = disk.serve()
    writers, other = disk.load(seed)
    try:
        disk.wait_for_progress(other)
        time.sleep(random.Random(seed).uniform(0, 0.4))
        begin = time.monotonic()
        code = server.stop(timeout=30, signal_number=number)
        seconds = time.monotonic() - begin
    finally:
        if other:
            other.kill()
            other.wait()
    for writer in writers:
        writer.end()
        assert writer.broken or writer.refused, "the load had ended before"
    return code, seconds


def assert_all_there(disk):
    """After a clean end acknowledged requests are durable, flushed or not."""
    disk.record.settle_acknowledged()
    content = disk.content()
    disk.record.verify(lambda off, length: content[off:off + length])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
@pytest.mark.parametrize("name", kill_disk.GEOMETRIES)
def test_stop_under_load(make_disk, name, number):
    disk = make_disk(name)
    code, seconds = stop_under_load(disk, number)
    assert code == 0, disk.server.output
    assert seconds <= STOP_WITHIN, f"the end took {seconds:.1f} s"
    images.peer_check(disk.image)                    # exit 0: no leak either
    images.assert_sound(disk.image)
    assert_all_there(disk)
    assert sorted(os.listdir(disk.sockets)) == [], "sockets are left behind"
    if disk.snapshot:
        assert disk.content("-l", "snapshot.name=before") == disk.base


def test_stop_again_and_again(make_disk):
    """One image, many servers: nothing adds up, the file does not grow without need."""
    disk = make_disk("64k")
    for seed in range(4):
        code, seconds = stop_under_load(disk, signal.SIGTERM, seed)
        assert code == 0 and seconds <= STOP_WITHIN
        images.peer_check(disk.image)
        assert_all_there(disk)
        content = disk.content()
        disk.record.take_stock(lambda off, length: content[off:off + length])
    check = run.qemu_img("check", "--output=json", disk.image).json
    assert check["image-end-offset"] <= (check["allocated-clusters"] + 32) * disk.cluster_size
    assert os.path.getsize(disk.image) <= check["image-end-offset"] + disk.cluster_size


def test_stop_without_load(make_disk):
    """Idle clients that stay connected are no obstacle."""
    disk = make_disk("64k")
    server = disk.serve()
    nbd = peers.need_module("nbd")
    handles = [nbd.NBD() for _ in range(20)]
    for handle in handles:
        handle.connect_uri(server.uri)
    handles[0].pwrite(b"x" * 512, 0)
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin <= STOP_WITHIN
    images.assert_sound(disk.image)
    run.qemu_io(disk.image, "read -P 120 0 512")


def test_quit_is_clean(make_disk):
    """`quit` on the control socket ends the server as a signal does."""
    disk = make_disk("4k-threads")
    server = disk.serve()
    writer = kill_load.Writer(server.uri, disk.record, 1, 1 << 20, kill_disk.AREA, disk.cluster_size)
    disk.wait_for_progress(None)
    begin = time.monotonic()
    server.qmp("quit")
    assert server.wait() == 0
    assert time.monotonic() - begin <= STOP_WITHIN
    writer.end()
    images.assert_sound(disk.image)
    assert_all_there(disk)


def test_second_signal(make_disk):
    """A second signal ends it at once; what was flushed is there, and at most space is lost."""
    disk = make_disk("64k")
    server = disk.serve()
    writer = kill_load.Writer(server.uri, disk.record, 1, 1 << 20, kill_disk.AREA, disk.cluster_size)
    disk.wait_for_progress(None)
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    assert server.wait() in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    writer.end()
    disk.wait_unlocked()
    images.assert_sound(disk.image, leaks=True)
    content = disk.content()
    disk.record.verify(lambda off, length: content[off:off + length])
