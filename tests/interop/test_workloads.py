# SPDX-License-Identifier: MIT
"""Random guest workloads that byre writes, over all geometries: the peer finds the image clean and the content right, and
so does the independent reader."""
import random

import guest
import pytest
from guest import Guest, seed_of
from lib import images, run

GEOMETRIES = [(2, 16)] + [(3, bits) for bits in images.REFCOUNT_BITS]


@pytest.mark.parametrize("version,bits", GEOMETRIES)
@pytest.mark.parametrize("cluster_size", images.CLUSTER_SIZES)
def test_geometry(tmp_path, cluster_size, version, bits):
    """FEATURES 1.042, 1.049: every width of the counts"""
    seed, image = seed_of(cluster_size, version, bits), tmp_path / "disk.qcow2"
    options = {"refcount_bits": bits} if version == 3 else {}
    disk = Guest(seed, guest.disk_size(cluster_size), cluster_size, version)
    guest.create(guest.TOOLS[seed & 1], image, disk.size, version=version, cluster_size=cluster_size, **options)
    disk.run("byre", image, operations=60)
    disk.resize("byre", image)
    disk.run("byre", image, operations=40, batch=40)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 1 << 20])
def test_writers_take_turns(tmp_path, cluster_size, version):
    """byre and the peer write to one image in turns, resizes included; each finds it clean."""
    seed, image = seed_of("turns", cluster_size, version), tmp_path / "disk.qcow2"
    disk = Guest(seed, guest.disk_size(cluster_size), cluster_size, version)
    guest.create("byre", image, disk.size, version=version, cluster_size=cluster_size)
    for turn in range(6):
        tool = guest.TOOLS[turn & 1]
        disk.run(tool, image, operations=25, batch=25)
        images.peer_check(image)
        run.byre("check", image)
        if turn in (2, 3):
            disk.resize(tool, image)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("cache,aio", [("none", "io_uring"), ("none", "threads"), ("writethrough", "io_uring"),
                                       ("directsync", "threads"), ("unsafe", "io_uring")])
def test_cache_modes(tmp_path, cache, aio):
    seed, image = seed_of("cache", cache, aio), tmp_path / "disk.qcow2"
    for cluster_size in (512, 65536):
        disk = Guest(seed, guest.disk_size(cluster_size), cluster_size)
        guest.create("byre", image, disk.size, cluster_size=cluster_size)
        disk.run("byre", image, operations=60, options=["-t", cache, "-i", aio])
        disk.judge(image, tmp_path)


@pytest.mark.parametrize("weights", [{"discard": 30, "zero_unmap": 15}, {"zero": 30, "rewrite": 20}, {"flush": 20, "discard": 10},
                                     {"write": 40, "rewrite": 0, "zero": 0, "zero_unmap": 0, "discard": 0}])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_mixes(tmp_path, cluster_size, weights):
    """Workloads that lean to one side: freeing and reuse, zeroing, flushes, only writes."""
    seed, image = seed_of("mix", cluster_size, sorted(weights)), tmp_path / "disk.qcow2"
    disk = Guest(seed, guest.disk_size(cluster_size), cluster_size, weights=weights)
    guest.create("byre", image, disk.size, cluster_size=cluster_size)
    disk.run("byre", image, operations=160, batch=80)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_discards_ignored(tmp_path, version):
    """Without -d unmap a discard changes nothing."""
    image = tmp_path / "disk.qcow2"
    guest.create("byre", image, "4M", version=version)
    commands = ["write -P 5 0 2M", "discard 0 1M", "discard 64k 64k"]
    guest.io("byre", image, *commands, discard="ignore")
    guest.io("qemu", image, "read -P 5 0 2M")
    images.assert_sound(image)


@pytest.mark.parametrize("cluster_size,size,step,bits", [(512, 60 << 30, 997 << 20, 64), (4096, 1 << 40, 31 << 33, 16),
                                                         (65536, 8 << 40, 61 << 32, 1), (2 << 20, 1 << 48, 1 << 43, 32)])
def test_far_apart(tmp_path, cluster_size, size, step, bits):
    """Writes far apart on a huge disk: many tables, growing L1 and refcount tables, bounds near the end of the disk."""
    image = tmp_path / "disk.qcow2"
    rng = random.Random(size)
    guest.create("byre", image, size // 2, cluster_size=cluster_size, refcount_bits=bits)
    run.byre("resize", "-q", image, size)
    places, commands = {}, []
    for off in list(range(0, size, step)) + [size - 4096]:
        off = min(off + rng.randrange(64) * 512, size - 4096)
        places[off] = rng.randrange(1, 256)
        commands.append(f"write -P {places[off]} {off} 4096")
    guest.io("byre", image, *commands)
    images.assert_sound(image)
    checks = [f"read -P {value} {off} 4096" for off, value in places.items()]
    guest.io("qemu", image, *checks)
    guest.io("byre", image, *checks)
    rows = run.qemu_img("map", "--output=json", image).json
    covered = sum(r["length"] for r in rows if r["data"])
    assert covered <= len(places) * (2 * cluster_size + 4096), "more than the clusters written is data"
    assert guest.merged_map(run.byre("map", "--output=json", image).json) == guest.merged_map(rows)
    guest.io("byre", image, *[f"write -z -u {off} 4096" for off in places])
    guest.io("qemu", image, *[f"read -P 0 {off} 4096" for off in places])
    images.assert_sound(image)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 1 << 20])
def test_preallocated(tmp_path, cluster_size, mode):
    seed, image = seed_of("pre", cluster_size, mode), tmp_path / "disk.qcow2"
    disk = Guest(seed, guest.disk_size(cluster_size), cluster_size)
    guest.create("byre", image, disk.size, cluster_size=cluster_size, preallocation=mode)
    disk.run("byre", image, operations=40, batch=40)
    images.peer_check(image)
    disk.resize("byre", image, disk.size + 5 * cluster_size + 512, f"--preallocation={mode}")
    disk.run("byre", image, operations=40, batch=40)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("cluster_size,bits", [(512, 64), (4096, 2), (65536, 16), (2 << 20, 8)])
def test_lazy_refcounts(tmp_path, cluster_size, bits):
    seed, image = seed_of("lazy", cluster_size), tmp_path / "disk.qcow2"
    disk = Guest(seed, guest.disk_size(cluster_size), cluster_size)
    guest.create("byre", image, disk.size, cluster_size=cluster_size, refcount_bits=bits, lazy_refcounts=True)
    for tool in ("byre", "qemu", "byre"):
        disk.run(tool, image, operations=30)
        info = run.qemu_img("info", "--output=json", image).json
        assert info["dirty-flag"] is False and info["format-specific"]["data"]["lazy-refcounts"] is True
    disk.judge(image, tmp_path)
