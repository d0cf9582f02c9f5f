# SPDX-License-Identifier: MIT
"""QED images that were not closed cleanly: served at once and clean behind; repaired where nobody looks behind; damage is told and followed by
nobody. What a killed server leaves."""
import json
import os
import random
import shutil
import time

import pytest
from lib import images, peers, qed, run
from test_q2_scrub import connect, kill, wait_gone
from test_qed import check
from test_qed_write import io, marked

import qedref

CS = 65536


def leaks(path):
    return check(run.qemu_img, path)[1]["leaks"]


@pytest.mark.parametrize("flushes", [True, False])
def test_killed(tmp_path, byre_serve, flushes):
    """FEATURES 2.006, E1, E4: kill -9 during writes; what was flushed is there, the image opens at once and becomes clean."""
    path = images.create(tmp_path / "a.qed", "64G", fmt="qed", tool="byre")
    server = byre_serve(path)
    handle, rng = connect(server), random.Random(flushes)
    places = rng.sample(range((64 << 30) // CS), 200)
    for i, p in enumerate(places):
        handle.pwrite(bytes([i % 251 + 1]) * 4096, p * CS + 8192)
        if flushes and i % 20 == 19:
            handle.flush()
    handle.flush()
    for i in range(100):
        handle.aio_pwrite(peers.need_module("nbd").Buffer.from_bytearray(bytearray(CS)), rng.randrange((64 << 30) // CS) * CS)
    kill(server)
    assert marked(path)
    with qedref.open_image(path, fmt="qed") as image:
        assert not image.check().corruptions
    server = byre_serve(path)
    handle = connect(server)
    begin = time.monotonic()
    assert handle.pread(4096, places[0] * CS + 8192) == b"\x01" * 4096
    handle.pwrite(b"\xee" * 512, places[1] * CS + 8192)
    assert time.monotonic() - begin < 10
    handle.pwrite(b"\xef" * CS, 123 * CS)
    handle.flush()
    assert wait_gone(server, "scrub-disk0") == []
    for i, p in enumerate(places[2:], 2):
        if p != 123:
            assert handle.pread(8192, p * CS + 8192) == bytes([i % 251 + 1]) * 4096 + bytes(4096)
    handle.shutdown()
    server.stop()
    assert not marked(path)
    run.qemu_img("check", "-f", "qed", path, code=(0, 3))
    run.qemu_io(path, f"read -P 0xee {places[1] * CS + 8192} 512", f"read -P 0xef {123 * CS} 64k", fmt="qed")


def test_repaired_at_open(tmp_path):
    """FEATURES 2.006: commands that look nothing through behind repair first; reading needs no repair."""
    path = qed.Builder(features=2, size=4 << 20).write(tmp_path / "x.qed")
    with open(path, "ab") as f:
        f.write(bytes(5 * 4096))
    before = path.read_bytes()
    io("byre", path, "read -P 1 0 4k", options=["-r"])
    assert path.read_bytes() == before
    io("byre", path, "read -P 1 0 4k", "write -P 9 1M 4k")
    assert not marked(path) and leaks(path) == 0
    run.qemu_img("check", path)
    run.qemu_io(path, "read -P 1 0 4k", "read -P 9 1M 4k", fmt="qed")


def peer_made(path, seed):
    """The peer is killed while it writes: its mark stays."""
    rng = random.Random(seed)
    run.qemu_img("create", "-q", "-f", "qed", "-o", "cluster_size=4k,table_size=2", path, "64M")
    offsets = rng.sample(range(0, 64 << 20, 4096), 60)
    words = [w for i, off in enumerate(offsets) for w in ("-c", f"write -P {i + 1} {off} 4k")]
    run.run("qemu-io", "-f", "qed", *words, "-c", "sigraise 9", path, code=-9)
    assert marked(path)
    return offsets


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_made_by_the_peer(tmp_path, byre_serve, seed):
    path = tmp_path / "x.qed"
    offsets = peer_made(path, seed)
    copy = shutil.copy(path, tmp_path / "copy.qed")
    io("byre", copy, *[f"read -P {i + 1} {off} 4k" for i, off in enumerate(offsets)], "write -P 200 33M 1M")
    run.qemu_img("check", copy)
    server = byre_serve(path)
    handle = connect(server)
    for i, off in enumerate(offsets):
        assert handle.pread(4096, off) == bytes([i + 1]) * 4096
    handle.pwrite(b"\xaa" * 8192, 8 << 20)
    assert wait_gone(server, "scrub-disk0") == []
    handle.shutdown()
    server.stop()
    run.qemu_img("check", path)
    run.qemu_io(path, "read -P 0xaa 8M 8k", fmt="qed")


# What a scrub mends while the disk is in use, and what it leaves to an offline repair.
MENDED = ["data_outside", "data_unaligned", "data_in_header", "data_cut_off", "table_outside", "table_unaligned", "data_two", "leak", "leak_tail"]
LEFT = ["data_twice", "data_is_l1"]
BLIND = ["data_is_l2", "table_beyond_size", "table_twice", "table_is_data", "table_half_shared"]


@pytest.mark.parametrize("name", MENDED + LEFT + BLIND)
def test_damage(tmp_path, byre_serve, name):
    """FEATURES 2.006, 2.020: pointers to nothing are never followed, and taken away; what has two owners is told, and keeps the mark; where a
    table cannot be looked into nothing new is allocated."""
    b = qed.Builder(size=16 << 20)
    qed.DAMAGES[name](b)
    path = b.header(features=2).write(tmp_path / "x.qed")
    server = byre_serve(path)
    handle = connect(server)
    try:
        handle.pread(4096, 4096 * 2)
        handle.pwrite(b"\x55" * 4096, 8 << 20)
        allocated = True
    except peers.need_module("nbd").Error:
        allocated = False
    found = wait_gone(server, "scrub-disk0")
    assert allocated == (name not in BLIND)
    assert bool(found) == (name in LEFT + BLIND), found
    if allocated:
        handle.flush()
        assert handle.pread(4096, 8 << 20) == b"\x55" * 4096
    handle.shutdown()
    server.stop()
    assert marked(path) == (name in LEFT + BLIND)
    if name in MENDED:
        assert check(run.byre, path)[1]["corruptions"] == 0
    run.byre("check", "-q", "-r", "all", path)
    run.byre("check", path)
    assert not marked(path)
    if allocated:
        run.byre("io", "-r", "-c", "read -P 0x55 8M 4k", path)


def test_check_of_a_disk_in_use(tmp_path, byre_serve):
    """FEATURES G.001 for QED: leaks are found beside writes, and used again."""
    b = qed.Builder(size=64 << 20)
    path = b.word(b.l2 + 8, 0).cut(len(b.image) + 7 * 4096).write(tmp_path / "x.qed")
    server = byre_serve(path)
    handle = connect(server)
    for i in range(20):
        handle.pwrite(bytes([i + 1]) * 4096, (i + 10) * 4096)
    run.byre("check", "-r", "leaks", "--control", server.control, code=(0, 3))
    for i in range(20):
        handle.pwrite(bytes([i + 101]) * 4096, (i + 1000) * 4096)
    handle.flush()
    handle.shutdown()
    server.stop()
    assert not marked(path) and leaks(path) == 0
    run.qemu_io(path, *[f"read -P {i + 1} {(i + 10) * 4096} 4k" for i in range(20)], *[f"read -P {i + 101} {(i + 1000) * 4096} 4k" for i in range(20)],
                "read -P 1 0 4k", "read -P 3 8k 4k", fmt="qed")
