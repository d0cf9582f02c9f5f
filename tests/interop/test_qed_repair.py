# SPDX-License-Identifier: MIT
"""Repair of QED images: what byre has repaired the peer finds sound, to its last cluster, and reads as before."""
import os
import random
import signal
import struct
import subprocess
import time

import pytest
from lib import images, qed, run
from lib.qed import Builder
from lib.workload import Workload

import qedref

GEOMETRIES = [(4096, 2), (4096, 16), (65536, 4), (1 << 20, 2)]
# Damage that the peer mends, too: pointers to what is no cluster of the file.
POINTERS = ["data_outside", "data_unaligned", "data_two", "data_in_header", "data_high_bit", "data_cut_short", "data_cut_off", "table_outside",
            "table_unaligned", "table_one", "table_in_header", "table_cut"]
HARMLESS = ["tail_garbage", "entries_in_disorder", "need_check", "size_small", "size_odd"]


def check(program, path, *words, code=None):
    done = program("check", "--output=json", "-f", "qed", *words, path, code=code)
    return {k: v for k, v in done.json.items() if isinstance(v, int)}


def clean(path):
    """Both programs and the independent reader find nothing, and the mark is gone."""
    run.qemu_img("check", "-f", "qed", path)
    run.byre("check", "-f", "qed", path)
    with qedref.open_image(path, fmt="qed", backing=False) as image:
        assert image.check().clean
    with open(path, "rb") as f:
        assert struct.unpack("<Q", f.read(24)[16:])[0] & qedref.NEED_CHECK == 0


def content(path, out):
    run.qemu_img("convert", "-f", "qed", "-O", "raw", path, out)
    with open(out, "rb") as f:
        return f.read()


@pytest.mark.parametrize("name", qed.DAMAGES)
def test_damaged(tmp_path, name):
    """FEATURES 2.006, 2.020, 5.017, G.020, G.021: one repair mends everything; pointers that are none become unallocated, as with the peer, and
    as many; a second repair writes nothing."""
    b = Builder()
    qed.DAMAGES[name](b)
    path, theirs = b.write(tmp_path / "x.qed"), b.write(tmp_path / "theirs.qed")
    before = check(run.byre, path)
    done = check(run.byre, path, "-r", "all", code=0)
    clean(path)
    peer = check(run.qemu_img, theirs, "-r", "all")
    if name in POINTERS:
        assert done["corruptions-fixed"] == peer["corruptions-fixed"] == before["corruptions"]
        assert content(path, tmp_path / "a.raw") == content(theirs, tmp_path / "b.raw")
    elif name in HARMLESS:
        assert "corruptions-fixed" not in done and "leaks-fixed" not in done
        assert content(path, tmp_path / "a.raw") == content(theirs, tmp_path / "b.raw")
    elif name.startswith("leak"):
        assert done["leaks-fixed"] == peer["leaks"] and os.path.getsize(path) < len(b.image)
    else:
        assert done["corruptions-fixed"]
    repaired = path.read_bytes()
    check(run.byre, path, "-r", "all", code=0)
    assert path.read_bytes() == repaired


@pytest.mark.parametrize("name", ["data_outside", "data_twice", "table_twice", "need_check_and_twice"])
def test_leaks_beside_errors(tmp_path, name):
    """FEATURES 5.017: -r leaks frees nothing as long as something else is wrong, and changes nothing."""
    b = Builder()
    qed.DAMAGES[name](b)
    path = b.write(tmp_path / "x.qed")
    done = run.byre("check", "-r", "leaks", path, code=2)
    assert "nothing is freed" in done.err and path.read_bytes() == bytes(b.image)


def lose(path, rng, share, l2_only=True):
    """Takes pointers to data away: their clusters are leaked. Returns how many."""
    with qedref.open_image(path, fmt="qed", backing=False) as image:
        cs, entries = image.cluster_size, image.cluster_size * image.table_size // 8
        l1_off = image.l1_off
    lost = 0
    with open(path, "r+b") as f:
        f.seek(l1_off)
        l1 = struct.unpack(f"<{entries}Q", f.read(entries * 8))
        for table in filter(None, l1):
            f.seek(table)
            words = list(struct.unpack(f"<{entries}Q", f.read(entries * 8)))
            for i, v in enumerate(words):
                if v > 1 and rng.random() < share:
                    words[i] = 0
                    lost += 1
            f.seek(table)
            f.write(struct.pack(f"<{entries}Q", *words))
        tail = rng.randrange(3)
        f.truncate(os.path.getsize(path) // cs * cs + tail * cs)
    return lost + tail


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("cluster_size,table_size", GEOMETRIES)
def test_leaks(tmp_path, cluster_size, table_size, share):
    """FEATURES 2.011, 5.017, G.020: holes are filled from the end, tables included, and the file is cut: no cluster is left over."""
    path, rng = tmp_path / "x.qed", random.Random(cluster_size * table_size)
    size = 40 << 20 if cluster_size <= 65536 else 96 << 20
    images.create(path, size, fmt="qed", cluster_size=cluster_size, table_size=table_size)
    disk = Workload(rng.randrange(1 << 20), size, cluster_size=cluster_size, weights={"discard": 0, "zero_unmap": 3})
    for commands in disk.batches(150, 50):
        run.qemu_io(path, *commands, fmt="qed")
    leaks = lose(path, rng, share)
    before = content(path, tmp_path / "before.raw")
    length = os.path.getsize(path)
    done = check(run.byre, path, "-r", "leaks", code=0)
    assert done.get("leaks-fixed", 0) == leaks
    clean(path)
    assert os.path.getsize(path) == length - leaks * cluster_size
    assert content(path, tmp_path / "after.raw") == before
    run.qemu_io(path, "write -P 7 1M 3M", "read -P 7 1M 3M", fmt="qed")
    run.qemu_img("check", "-f", "qed", path)


@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_peer_was_killed(tmp_path, cluster_size):
    """FEATURES 2.006: the peer dies while it allocates; what it had flushed is there, and the image is sound."""
    path = tmp_path / "x.qed"
    images.create(path, "64M", fmt="qed", cluster_size=cluster_size, table_size=2)
    with subprocess.Popen(["qemu-io", "-f", "qed", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        peer.stdin.write("write -P 1 0 1M\nwrite -P 2 40M 300k\nflush\n" + "".join(f"aio_write -P 3 {i * 97}k 64k\n" for i in range(20, 400)))
        peer.stdin.flush()
        while True:
            with open(path, "rb") as f:
                if f.read(24)[16] & qedref.NEED_CHECK and os.path.getsize(path) > 2 << 20:
                    break
            time.sleep(0.005)
        peer.send_signal(signal.SIGKILL)
    assert "cleanly shut down: no" in run.byre("info", path).out
    check(run.byre, path, "-r", "all", code=0)
    clean(path)
    run.qemu_io(path, "read -P 1 0 1M", "read -P 2 40M 300k", fmt="qed")
    assert "cleanly shut down" not in run.byre("info", path).out


def test_table_size_one(tmp_path):
    """FEATURES 2.003: also where the peer refuses the image."""
    b = Builder(table_size=1, size=4 << 20, data=6)
    b.word(b.l2 + 8, b.data).word(b.l2 + 16, 1 << 40).word(b.l1 + 8, b.l2)
    path = b.write(tmp_path / "x.qed")
    run.byre("check", "-r", "all", path)
    assert "No errors" in run.byre("check", path).out
    with qedref.open_image(path) as image:
        assert image.check().clean and image.read(0, 8192) == b"\1" * 8192 and image.read(8192, 4096) == bytes(4096)
        assert image.read(512 * 4096, 8192) == b"\1" * 8192


def test_far_away(tmp_path):
    """The last cluster of a long sparse file comes to the front: work follows what is in use."""
    b = Builder(data=1)
    path = b.word(b.l2, 1 << 40).write(tmp_path / "x.qed")
    os.truncate(path, (1 << 40) + 4096)
    with open(path, "r+b") as f:
        f.seek(1 << 40)
        f.write(b"\x55" * 4096)
    begin = time.monotonic()
    run.byre("check", "-q", "-r", "leaks", path)
    assert time.monotonic() - begin < 20 and os.path.getsize(path) == 6 * 4096
    clean(path)
    run.byre("io", "-r", "-c", "read -P 0x55 0 4k", path)
