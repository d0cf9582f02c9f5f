# SPDX-License-Identifier: MIT
"""kill -9 while internal snapshots are made, applied and deleted (RG9, P1, P3): at every call of each operation, one after
another; and at random moments of a served disk that is written to. After each kill the image has leaks at most, the disk holds
its last flushed content or a later one, and every snapshot is bit for bit what it was, also when the disk is used afterwards.
"""
import os
import random
import shutil
import signal
import time
import zlib

import kill_snap
import pytest
from lib import images, run

MIB = 1 << 20
ROUNDS = 3                                          # kills of each served geometry
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS") or 600)

# ---- every call of an operation -----------------------------------------------------------------------------------

IMAGES = {
    "4k": {"cluster_size": 4096},
    "512-wide": {"cluster_size": 512, "refcount_bits": 64},
    "64k-v2": {"cluster_size": 65536, "compat": "0.10"},
    "extl2": {"cluster_size": 32768, "extended_l2": True},
    "lazy": {"cluster_size": 4096, "lazy_refcounts": True},
}
OPERATIONS = {"create": ["-c", "third"], "apply": ["-a", "first"], "delete": ["-d", "first"]}
AFTERWARDS = ["write -P 77 0 300k", "write -P 78 900k 40k", "discard 2M 256k", "write -P 79 3500k 70k"]


def make(path, options):
    """Two snapshots of different sizes, and a disk that shares with both and with neither."""
    images.create(path, 4 * MIB, **options)
    run.qemu_io(path, "write -P 17 0 1M", "write -P 18 3M 500k")
    run.qemu_img("snapshot", "-c", "first", path)
    run.qemu_io(path, "write -P 19 100k 300k", "write -P 20 2M 300k")
    run.byre("resize", path, "5M")
    run.qemu_io(path, "write -P 21 4200k 60k")
    run.qemu_img("snapshot", "-c", "second", path)
    run.qemu_io(path, "write -P 22 600k 100k", "discard 3M 256k", "write -P 23 4300k 60k")


def same(a, b):
    """The peer shows a snapshot in the size that the disk has now."""
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def judge(path, before, operation, folder):
    """Old or new, never a mix. Returns what the image holds now."""
    kill_snap.judge(path)
    tool = random.choice([run.byre, run.qemu_img])
    now = {name: kill_snap.read(path, name, folder, tool) for name in [None, *kill_snap.names(path)]}
    for name in ("first", "second"):
        if name in now or name != "first" or operation != "delete":
            assert same(now[name], before[name]), f"snapshot {name} has changed"
    assert same(now.get("third", before[None]), before[None]), "the new snapshot is not what the disk was"
    assert set(now) <= {None, "first", "second"} | ({"third"} if operation == "create" else set())
    assert now[None] == before[None] or (operation == "apply" and now[None] == before["first"]), "the disk holds a mix"
    return now


def use_and_repair(path, now, folder, geometry):
    """Whatever is written to the disk, no snapshot changes; a repair leaves nothing over and changes nothing."""
    run.byre("io", "-f", "qcow2", *[x for c in AFTERWARDS for x in ("-c", c)], path)
    kill_snap.judge(path)
    live = kill_snap.read(path, None, folder)
    assert live[:300 << 10] == b"\x4d" * (300 << 10)
    run.byre("check", "-r", "all", path)
    images.assert_sound(path)
    assert kill_snap.read(path, None, folder, run.byre) == live
    for name in now:
        assert name is None or same(kill_snap.read(path, name, folder), now[name]), f"snapshot {name} has changed behind the kill"


def kill_everywhere(folder, geometry, operation, step=1):
    """Returns how often the program was killed: at every step-th call that changes the file."""
    part = geometry in ("512-wide", "lazy")
    first, path = folder / "first.qcow2", folder / "disk.qcow2"
    make(first, IMAGES[geometry])
    before = {name: kill_snap.read(first, name, folder, run.byre) for name in (None, "first", "second")}
    for n in range(1, 500, step):
        shutil.copyfile(first, path)
        if not kill_snap.killed_at(n, "snapshot", *OPERATIONS[operation], path, part=part):
            images.assert_sound(path)
            now = judge(path, before, operation, folder)
            expected = {"create": ("third", before[None]), "apply": (None, before["first"]), "delete": ("first", None)}[operation]
            there = now.get(expected[0])
            assert there == expected[1] or same(there or b"", expected[1] or b"x"), "the operation ended well and has not taken place"
            return (n - 1) // step
        now = judge(path, before, operation, folder)
        use_and_repair(path, now, folder, geometry)
    raise AssertionError("the operation does not end")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("geometry", IMAGES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_call(tmp_path, operation, geometry):
    """Where tables of counts are many, every seventh; the long form below takes all."""
    kills = kill_everywhere(tmp_path, geometry, operation, 7 if geometry == "512-wide" else 1)
    assert kills >= 9, f"{kills} kills: next to nothing"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_call_of_many(tmp_path, operation):
    assert kill_everywhere(tmp_path, "512-wide", operation) >= 70


# ---- a served disk ------------------------------------------------------------------------------------------------

def kill_served(disk, rng):
    """One server, two writers and one who makes and deletes snapshots; the kill comes when at least one was made."""
    server = disk.serve()
    writers, _ = disk.load(rng.randrange(1 << 30))
    snapper = kill_snap.Snapper(disk, rng.randrange(1 << 30))
    try:
        disk.wait_for_progress(requests=60, flushes=2)
        end = time.monotonic() + 20
        while not snapper.done and snapper.is_alive() and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.4))
    finally:
        server.kill()
    for one in [*writers, snapper]:
        one.end()
    assert snapper.done, "no snapshot was made"
    disk.wait_unlocked()


def apply_killed(disk, rng, live):
    """A snapshot is applied and the program killed at some call. Returns what the disk holds now."""
    name = rng.choice(list(disk.snapshots))
    target = kill_snap.read(disk.image, name, disk.folder)
    kill_snap.killed_at(rng.randrange(1, 16), "snapshot", "-a", name, disk.image, part=rng.randrange(2) == 1)
    kill_snap.judge(disk.image)
    now = disk.content()
    assert now in (live, target), "the disk holds a mix"
    disk.judge_snapshots(run.byre)
    return now


def one_round(disk, rng, number):
    kill_served(disk, rng)
    kill_snap.judge(disk.image)
    live = disk.content()
    disk.record.verify(lambda off, length: live[off:off + length])
    disk.judge_snapshots([run.byre, run.qemu_img][number % 2])
    if disk.snapshots and number % 2:
        live = apply_killed(disk, rng, live)
    if number % 3 == 2:
        run.byre("check", "-r", "all", disk.image)
        images.assert_sound(disk.image)
        assert disk.content() == live
        disk.judge_snapshots(run.qemu_img)
    disk.begin_again(live)


def finish(disk):
    """A server that ends well, then a repair: nothing is left, all is there."""
    live = disk.content()
    assert disk.serve().stop() == 0, disk.server.output
    run.byre("check", "-r", "all", disk.image)
    images.assert_sound(disk.image)
    assert disk.content() == live
    disk.judge_snapshots(run.byre)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["4k", "64k-backing", "lazy-threads"])
def test_served(make_snap_disk, name):
    disk, rng = make_snap_disk(name), random.Random(zlib.crc32(name.encode()))
    for number in range(ROUNDS):
        one_round(disk, rng, number)
    finish(disk)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 300)
@pytest.mark.parametrize("name", kill_snap.GEOMETRIES)
def test_served_for_long(make_snap_disk, name):
    """SOAK_SECONDS over all geometries."""
    disk, seed = make_snap_disk(name), int(time.time())
    print(f"seed {seed}")
    rng, number, end = random.Random(seed), 0, time.monotonic() + SOAK_SECONDS / len(kill_snap.GEOMETRIES)
    while time.monotonic() < end or number < 5:
        one_round(disk, rng, number)
        number += 1
    print(f"{number} kills")
    finish(disk)
