# SPDX-License-Identifier: MIT
"""byre writes to overlays, to compressed images, to images with internal snapshots and with bitmaps; the peer finds
everything as it must be, the layers below and the snapshots unchanged."""
import os
import shutil

import guest
import pytest
from guest import Guest, seed_of
from lib import images, run

import qcow2ref

CLUSTERS = [512, 4096, 65536, 8192, 1 << 18]


def next_size(size, relation):
    """The size of an overlay whose backing image is smaller than it, larger, or equal."""
    return {"smaller": size + (300 << 10) + 512, "larger": size - (200 << 10), "equal": size}[relation]


@pytest.mark.parametrize("base", ["raw", "qcow2"])
@pytest.mark.parametrize("relation", ["smaller", "larger", "equal"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_chain(tmp_path, depth, relation, base):
    """Every layer has a cluster size, a version and a kind of backing name of its own, and is written by byre or the peer."""
    seed, size = seed_of(depth, relation, base), (2 << 20) + 1024
    below, content = guest.base_layer(tmp_path, base, size, seed)
    fmt, kept = base, {}
    for layer in range(1, depth + 1):
        kept[below] = guest.digest(below)
        size = next_size(size, relation)
        image = os.path.join(tmp_path, f"layer{layer}.qcow2")
        cluster_size, version = CLUSTERS[(seed + layer) % len(CLUSTERS)], 3 - (seed >> layer & 1)
        name = below if (seed + layer) % 2 else os.path.basename(below)
        disk = Guest(seed + layer, size, cluster_size, version, backing=content)
        guest.create(guest.TOOLS[layer & 1], image, size, backing=name, backing_fmt=fmt, version=version, cluster_size=cluster_size)
        disk.run("byre" if layer == depth else guest.TOOLS[seed >> layer & 1], image, operations=40, batch=40)
        disk.judge(image, tmp_path)
        below, fmt, content = image, "qcow2", bytes(disk.shadow)
    disk.resize("byre", image)
    disk.run("byre", image, operations=30, batch=30)
    disk.judge(image, tmp_path)
    guest.assert_read_by_byre(disk, image, tmp_path)
    assert {path: guest.digest(path) for path in kept} == kept, "a layer below was written to"


@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_deep_chain(tmp_path, base):
    """FEATURES 1.036 5.053: 24 layers of other sizes and cluster sizes: what they hold together is the same for byre, which
    remembers which of them answers (DESIGN D6), and for the peer, which walks; and so is the map, file by file."""
    size = (1 << 20) + 1024
    below, content = guest.base_layer(tmp_path, base, size, seed_of("deep", base))
    fmt = base
    for layer in range(1, 25):
        size = max(700 << 10, size + [40 << 10, -(50 << 10) + 512, 0, 3 << 10][layer % 4])
        image = os.path.join(tmp_path, f"layer{layer}.qcow2")
        cluster_size = [4096, 512, 65536][layer % 3]
        disk = Guest(seed_of("deep", base, layer), size, cluster_size, backing=content)
        guest.create("byre", image, size, backing=os.path.basename(below), backing_fmt=fmt, cluster_size=cluster_size)
        disk.run("byre", image, operations=6, batch=6)
        below, fmt, content = image, "qcow2", bytes(disk.shadow)
    disk.run("byre", image, operations=40, batch=20)
    disk.judge(image, tmp_path)
    guest.assert_read_by_byre(disk, image, tmp_path)
    ours = run.byre("map", "--output=json", "-f", "qcow2", image).json
    assert ours == run.qemu_img("map", "--output=json", "-f", "qcow2", image).json


@pytest.mark.parametrize("tool", guest.TOOLS)
@pytest.mark.parametrize("cluster_size", [512, 65536])
@pytest.mark.parametrize("version", [2, 3])
def test_growth_hides_longer_backing(tmp_path, version, cluster_size, tool):
    """What an overlay gains in size reads as zeros, though its backing image has data there."""
    base, image = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    images.raw_file(base, 4 << 20, [(0, b"\xbb" * (4 << 20))])
    first = (1 << 20) + 512
    disk = Guest(1, first, cluster_size, version, backing=b"\xbb" * first)
    guest.create(tool, image, first, backing="base.raw", backing_fmt="raw", version=version, cluster_size=cluster_size)
    for size in (first + 512, first + cluster_size + 1024, 3 << 20):
        disk.resize("byre", image, size)
        disk.judge(image, tmp_path)
    disk.resize("byre", image, first - 1024)
    disk.resize("byre", image, 2 << 20)
    disk.run("byre", image, operations=20)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 << 20])
def test_compressed(tmp_path, cluster_size, kind):
    """A compressed image of the peer: read, written over in place, and used as a backing image."""
    seed, size = seed_of(kind, cluster_size), guest.disk_size(cluster_size)
    disk = Guest(seed, size, cluster_size)
    for off in range(0, size - 65536, 3 * 65536):
        disk.shadow[off:off + 65536] = images.pattern_bytes(off, 65536)
    raw, image = disk.write_raw(tmp_path / "source.raw"), tmp_path / "packed.qcow2"
    run.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"cluster_size={cluster_size},compression_type={kind}", raw, image)
    guest.assert_read_by_byre(disk, image, tmp_path)
    overlay = tmp_path / "overlay.qcow2"
    top = Guest(seed + 1, size, 16384, backing=disk.shadow)
    guest.create("byre", overlay, size, backing=image.name, cluster_size=16384)
    top.run("byre", overlay, operations=40, batch=40)
    top.judge(overlay, tmp_path)
    disk.run("byre", image, operations=60)
    disk.judge(image, tmp_path)
    guest.assert_read_by_byre(disk, image, tmp_path)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("bits", [1, 2, 64])
def test_compressed_narrow_counts(tmp_path, bits, kind):
    """Clusters shared by several compressed ones, with counts that are soon full."""
    disk = Guest(seed_of(bits, kind), 3 << 20, 65536)
    for off in range(0, disk.size, 65536):
        disk.shadow[off:off + 4096] = images.pattern_bytes(off, 4096)
    raw, image = disk.write_raw(tmp_path / "source.raw"), tmp_path / "packed.qcow2"
    run.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"refcount_bits={bits},compression_type={kind}", raw, image)
    disk.run("byre", image, operations=90)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("version,cluster_size,bits", [(2, 512, 16), (2, 65536, 16), (3, 512, 2), (3, 4096, 64), (3, 65536, 16),
                                                       (3, 1 << 20, 8)])
def test_snapshots_stay(tmp_path, version, cluster_size, bits):
    """Internal snapshots of the peer keep their content through byre's writes, discards and reuse of freed clusters."""
    seed, image = seed_of("snap", version, cluster_size, bits), tmp_path / "disk.qcow2"
    options = {"refcount_bits": bits} if version == 3 else {}
    disk = Guest(seed, guest.disk_size(cluster_size), cluster_size, version, weights={"discard": 6})
    guest.create("byre", image, disk.size, version=version, cluster_size=cluster_size, **options)
    kept = {}
    for name in ("s1", "s2", "s3") if bits > 2 else ("s1",):        # to apply one takes another reference
        disk.run("byre", image, operations=40, batch=40)
        run.qemu_img("snapshot", "-c", name, image)
        kept[name] = bytes(disk.shadow)
    disk.run("byre", image, operations=60)
    disk.judge(image, tmp_path)
    out = tmp_path / "snapshot.raw"
    for name, content in kept.items():
        run.qemu_img("convert", "-l", f"snapshot.name={name}", "-f", "qcow2", "-O", "raw", image, out)
        assert out.read_bytes() == content, f"snapshot {name} has changed"
    with qcow2ref.open_image(image, fmt="qcow2") as reader:
        for name, content in kept.items():
            assert reader.read(0, disk.size, snapshot=name) == content
    for name, content in kept.items():
        copy = tmp_path / "copy.qcow2"
        shutil.copy(image, copy)
        run.qemu_img("snapshot", "-a", name, copy)
        disk.shadow = bytearray(content)
        disk.judge(copy, tmp_path)
        disk.run("byre", copy, operations=20)
        disk.judge(copy, tmp_path)
        run.qemu_img("snapshot", "-d", name, copy)
        disk.judge(copy, tmp_path)


def bitmaps_of(image):
    info = run.qemu_img("info", "--output=json", image).json
    return {b["name"]: b for b in info["format-specific"]["data"].get("bitmaps", [])}


@pytest.mark.parametrize("cluster_size", [4096, 65536, 512])
def test_bitmaps_are_kept(tmp_path, cluster_size):
    """A clean close stores bitmaps again (their content: test_bitmaps.py) and drops none; reading changes no byte of the file."""
    image = tmp_path / "disk.qcow2"
    disk = Guest(seed_of("bitmap", cluster_size), guest.disk_size(cluster_size), cluster_size)
    guest.create("byre", image, disk.size, cluster_size=cluster_size)
    run.qemu_img("bitmap", "--add", "-g", "4096", image, "one")
    run.qemu_img("bitmap", "--add", "-g", "65536", image, "two")
    run.qemu_img("bitmap", "--disable", image, "two")
    disk.run("qemu", image, operations=30)
    before, bytes_before = bitmaps_of(image), guest.digest(image)
    assert set(before) == {"one", "two"} and not any("in-use" in b["flags"] for b in before.values())
    guest.assert_read_by_byre(disk, image, tmp_path)
    run.byre("info", image)
    assert guest.digest(image) == bytes_before
    disk.run("byre", image, operations=30, batch=15)
    after = bitmaps_of(image)
    assert {n: b["granularity"] for n, b in after.items()} == {n: b["granularity"] for n, b in before.items()}
    assert not any("in-use" in b["flags"] for b in after.values()), after
    assert "auto" in after["one"]["flags"] and "auto" not in after["two"]["flags"]
    disk.judge(image, tmp_path)
    for name in after:
        run.qemu_img("bitmap", "--remove", image, name)
    disk.judge(image, tmp_path)


def test_bitmaps_with_snapshots_and_compressed(tmp_path):
    """Everything at once: the counts of all owners stay right."""
    image, raw = tmp_path / "disk.qcow2", tmp_path / "source.raw"
    disk = Guest(77, (4 << 20) + 512, 4096)
    disk.shadow[:1 << 20] = images.pattern_bytes(1, 1 << 20)
    disk.write_raw(raw)
    run.qemu_img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096,refcount_bits=8,lazy_refcounts=on", raw, image)
    run.qemu_img("bitmap", "--add", image, "b")
    run.qemu_img("snapshot", "-c", "s", image)
    content = bytes(disk.shadow)
    for tool in ("byre", "qemu", "byre"):
        disk.run(tool, image, operations=60, batch=60)
        disk.judge(image, tmp_path)
    assert "in-use" not in bitmaps_of(image)["b"]["flags"]
    with qcow2ref.open_image(image, fmt="qcow2") as reader:
        assert reader.read(0, disk.size, snapshot="s") == content
