# SPDX-License-Identifier: MIT
"""byre commit against the peer's, on random chains: the base ends with the same content, the image goes on reading the same (FEATURES 5.021
to 5.025, 1.059, 9.051)."""
import os

import pytest
from lib import chains, images, mounts, run


def pairs(tmp_path, seed, depth):
    """The same random chain twice."""
    rng = chains.seeded("commit", seed)
    chain = chains.make(tmp_path / "ours", rng, depth)
    chains.copy(tmp_path / "ours", tmp_path / "peers")
    return chain, rng


def other(layer):
    return layer.path.replace("/ours/", "/peers/")


@pytest.mark.parametrize("seed", range(14))
def test_default(tmp_path, seed):
    """FEATURES 5.021: into the next image, which grows; the top is empty and reads as before."""
    chain, rng = pairs(tmp_path, seed, rng_depth(seed))
    base, top = chain[-2], chain[-1]
    chains.assert_reads(top.path, top.content)
    done = run.byre("commit", top.path)
    assert done.out == "Image committed.\n"
    run.qemu_img("commit", other(top))
    expected = bytes(top.content) + bytes(base.content[top.size:])
    chains.assert_reads(base.path, expected, base.fmt)
    chains.assert_reads(base.path, expected, base.fmt, run.byre)
    assert chains.read(other(base), base.fmt) == expected, "the peer does something else"
    chains.assert_reads(top.path, top.content)
    images.assert_sound(top.path)
    if base.fmt == "qcow2":
        images.assert_sound(base.path)
    held = [e for e in run.qemu_img("map", "--output=json", top.path).json if e["present"] and e["depth"] == 0]
    assert not held, held
    assert os.path.getsize(top.path) <= os.path.getsize(other(top)) + 2 * top.options["cluster_size"], "the file has not become short"


def rng_depth(seed):
    return 1 + seed % 3


@pytest.mark.parametrize("seed", range(8))
def test_deep(tmp_path, seed):
    """FEATURES 5.022: everything above the base goes into it, and nothing above changes."""
    chain, rng = pairs(tmp_path, seed + 100, 3)
    base, top = chain[rng.randrange(2)], chain[-1]
    above = [layer for layer in chain[chain.index(base) + 1:]]
    before = [open(layer.path, "rb").read() for layer in above]
    result = run.byre("commit", "-b", rng.choice([base.name, base.path]), "--output=json", top.path).json
    assert result["filename"] == top.path and os.path.samefile(result["base"], base.path)
    run.qemu_img("commit", "-b", os.path.join(os.path.dirname(other(base)), base.name), other(top))
    assert [open(layer.path, "rb").read() for layer in above] == before
    expected = bytes(top.content) + bytes(base.content[top.size:])
    chains.assert_reads(base.path, expected, base.fmt)
    assert chains.read(other(base), base.fmt)[:top.size] == expected[:top.size], "the peer does something else"
    chains.assert_reads(top.path, top.content)


@pytest.mark.parametrize("seed", range(4))
def test_keep(tmp_path, seed):
    """FEATURES 5.023: the top is the same to the byte."""
    chain, _ = pairs(tmp_path, seed + 200, 2)
    before = open(chain[-1].path, "rb").read()
    run.byre("commit", "-q", "-d", chain[-1].path)
    assert open(chain[-1].path, "rb").read() == before
    chains.assert_reads(chain[-2].path, bytes(chain[-1].content) + bytes(chain[-2].content[chain[-1].size:]), chain[-2].fmt)


def test_with_snapshots_and_bitmaps(tmp_path):
    """What internal snapshots and bitmaps hold stays; a second commit has nothing to do."""
    rng = chains.seeded("snap")
    chain = [chains.base(tmp_path, "base", 2 << 20, rng, "qcow2")]
    chain.append(chains.overlay(tmp_path, "top", chain[0], 2 << 20, rng, {"cluster_size": 4096}))
    top = chain[1]
    run.qemu_img("snapshot", "-c", "s", top.path)
    snap = run.qemu_img("convert", "-l", "s", "-O", "raw", top.path, f"{tmp_path}/s.raw") and open(f"{tmp_path}/s.raw", "rb").read()
    run.qemu_img("bitmap", "--add", "--enable", top.path, "b")
    chains.fill(top, rng, 5)
    bitmaps = run.qemu_img("info", "--output=json", top.path).json["format-specific"]["data"]["bitmaps"]
    run.byre("commit", top.path)
    assert run.qemu_img("info", "--output=json", top.path).json["format-specific"]["data"]["bitmaps"] == bitmaps
    chains.assert_reads(top.path, top.content)
    images.assert_sound(top.path)
    result = run.byre("commit", "--output=json", top.path).json
    assert result["bytes-written"] == result["bytes-zeroed"] == 0
    # the snapshot reads the base where it holds nothing: there it shows what was committed, where it holds something it is as it was
    run.qemu_img("bitmap", "--remove", top.path, "b")
    run.qemu_img("snapshot", "-a", "s", top.path)
    shown = chains.read(top.path)
    for e in run.qemu_img("map", "--output=json", top.path).json:
        if e["depth"] == 0 and e["present"]:
            part = slice(e["start"], e["start"] + e["length"])
            assert shown[part] == snap[part]


def test_external_data_file(tmp_path):
    """The data file gives its space back; the image stays sound."""
    images.create(tmp_path / "base.raw", 4 << 20, fmt="raw")
    images.create(tmp_path / "top.qcow2", 4 << 20, backing="base.raw", backing_fmt="raw", unchecked=True, data_file=f"{tmp_path}/top.data")
    run.qemu_io(f"{tmp_path}/top.qcow2", "write -P 7 64k 1M")
    run.byre("commit", tmp_path / "top.qcow2")
    assert open(tmp_path / "base.raw", "rb").read() == bytes(64 << 10) + b"\7" * (1 << 20) + bytes((3 << 20) - (64 << 10))
    images.peer_check(tmp_path / "top.qcow2")
    run.qemu_io(f"{tmp_path}/top.qcow2", "read -P 7 64k 1M")
    assert os.stat(tmp_path / "top.data").st_blocks * 512 < 100 << 10


def test_zeros_stay_holes(tmp_path):
    """FEATURES 9.051: zeros over a sparse base take no space, written as zeros or as data."""
    images.create(tmp_path / "base.raw", 64 << 20, fmt="raw")
    images.create(tmp_path / "top.qcow2", 64 << 20, backing="base.raw", backing_fmt="raw", unchecked=True)
    run.qemu_io(f"{tmp_path}/top.qcow2", "write -z 0 16M", "write -P 0 16M 8M", "write -P 9 40M 64k")
    run.byre("commit", tmp_path / "top.qcow2")
    assert os.stat(tmp_path / "base.raw").st_blocks * 512 < 256 << 10
    run.qemu_io(f"{tmp_path}/base.raw", "read -P 9 40M 64k", "read -P 0 0 40M", fmt="raw")


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of 4 MiB."""
    with mounts.tmpfs(tmp_path / "small", "4M") as mount:
        yield mount


@pytest.mark.parametrize("overlays", [1, 2])
def test_full_disk(tmp_path, tmpfs, overlays):
    """FEATURES 5.025: the base lies on a full disk: an error, and the top reads as before."""
    rng = chains.seeded("full", overlays)
    images.create(f"{tmpfs}/base.qcow2", 8 << 20)
    run.qemu_io(f"{tmpfs}/base.qcow2", "write -P 1 0 512k")
    images.create(tmp_path / "top.qcow2", 8 << 20, backing=f"{tmpfs}/base.qcow2", unchecked=True)
    top = chains.Layer(str(tmp_path / "top.qcow2"), "qcow2", b"\1" * (512 << 10) + bytes((8 << 20) - (512 << 10)))
    run.qemu_io(top.path, "write -P 5 256k 6M")
    top.content[256 << 10:(256 << 10) + (6 << 20)] = b"\5" * (6 << 20)
    chains.fill(top, rng, 3)
    before = chains.read(top.path)
    done = run.byre("commit", top.path, code=1)
    assert "base.qcow2" in done.err and "space" in done.err
    assert chains.read(top.path) == before == bytes(top.content)
    images.assert_sound(top.path)
    images.assert_sound(f"{tmpfs}/base.qcow2", leaks=True)
