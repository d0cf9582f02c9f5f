# SPDX-License-Identifier: MIT
"""Options of an opening that only qcow2 knows, as json: names and as lists of node options."""
import json

import pytest

from lib import images, run

MIB = 1 << 20


def name(image, **options):
    return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}, **options})


def io(image, *commands, code=0, **options):
    words = [w for c in commands for w in ("-c", c)]
    return run.byre("io", *words, name(image, **options), code=code)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "x.qcow2"
    images.create(path, "32M")
    return path


@pytest.mark.parametrize("options", [
    {"l2-cache-size": 1 << 20}, {"l2-cache-size": "1M", "refcount-cache-size": 65536}, {"cache-size": "8M"}, {"cache-size": 1 << 23, "l2-cache-size": 1 << 20},
    {"refcount-cache-size": 65536}, {"l2-cache-entry-size": 512}, {"l2-cache-entry-size": "65536"}, {"cache-clean-interval": 10}, {"cache-clean-interval": 0},
    {"pass-discard-request": True, "pass-discard-snapshot": False, "pass-discard-other": "on"}, {"discard-no-unref": True}, {"lazy-refcounts": True},
    {"overlap-check": "all"}, {"overlap-check": {"template": "cached", "active-l2": True, "refcount-block": "off"}}])
def test_accepted(image, options):
    """FEATURES 1.123, 1.124, 1.125, 1.126, 1.127, 1.128, 1.129: taken from json and from lists, by both programs; the image is sound"""
    done = io(image, "write -P 3 0 5M", "discard 1M 2M", "read -P 3 3M 2M", **options, discard="unmap")
    assert "failed" not in done.out + done.err and "Pattern" not in done.out + done.err
    images.assert_sound(image)
    flat = {f"{k}.{i}" if isinstance(v, dict) else k: x for k, v in options.items() for i, x in (v.items() if isinstance(v, dict) else [("", v)])}
    text = ",".join(f"{k}={'on' if v is True else 'off' if v is False else v}" for k, v in flat.items())
    run.byre("io", "-c", "read -P 3 3M 2M", "--image-opts", f"driver=qcow2,file.filename={image},{text}")
    run.run("qemu-io", "-c", "read -P 3 3M 2M", "--image-opts", f"driver=qcow2,file.filename={image},{text}",
            code=(0, 1) if "discard-no-unref" in flat else 0)                       # the option is younger than some peers


@pytest.mark.parametrize("options,word", [
    ({"cache-size": "8M", "l2-cache-size": "1M", "refcount-cache-size": "64k"}, "cache-size"), ({"cache-size": "1M", "l2-cache-size": "2M"}, "cache-size"),
    ({"l2-cache-entry-size": 1000}, "l2-cache-entry-size"), ({"l2-cache-entry-size": 256}, "l2-cache-entry-size"), ({"l2-cache-entry-size": 131072}, "l2-cache-entry-size"),
    ({"l2-cache-size": "x"}, "l2-cache-size"), ({"discard-no-unref": "maybe"}, "discard-no-unref"), ({"overlap-check": "some"}, "overlap-check"),
    ({"overlap-check": {"l3": True}}, "l3"), ({"cache-clean-interval": -1}, "cache-clean-interval"), ({"cache-clean-interval": 1 << 32}, "cache-clean-interval")])
def test_refused(image, options, word):
    """FEATURES 1.124, 1.126: wrong values and combinations name the option; the image is not touched"""
    before = image.read_bytes()
    done = io(image, "write 0 64k", code=1, **options)
    assert word in done.err and image.read_bytes() == before


def test_small_units(tmp_path):
    """FEATURES 1.046, 1.124: tables are right when only parts of them are cached"""
    path = tmp_path / "y.qcow2"
    images.create(path, "1G", cluster_size=2 << 20)
    options = {"l2-cache-entry-size": 512, "cache-size": 65536}
    io(path, *[f"write -P {i + 1} {i * 131}M 3M" for i in range(7)], "discard 2M 2M", **options, discard="unmap")
    images.assert_sound(path)
    run.qemu_io(path, *[f"read -P {i + 1} {i * 131}M 1M" for i in range(7)])
    io(path, *[f"read -P {i + 1} {i * 131}M 1M" for i in range(7)], **options)


def blocks(path):
    return path.stat().st_blocks * 512


def test_pass_discard_request(image):
    """FEATURES 1.128: freed clusters are given back, or not"""
    io(image, "write -P 3 0 8M", "flush")
    full = blocks(image)
    io(image, "discard 0 8M", **{"discard": "unmap", "pass-discard-request": False})
    assert blocks(image) >= full - MIB // 2
    io(image, "write -P 3 0 8M", "discard 0 8M", discard="unmap")
    assert blocks(image) < MIB
    images.assert_sound(image)


def test_discard_no_unref(image):
    """FEATURES 1.129: bytes go, the place stays; the next write needs no new cluster"""
    io(image, "write -P 3 0 4M")
    before = {r["start"]: r.get("offset") for r in run.qemu_img("map", "--output=json", image).json}
    used = blocks(image)
    io(image, "discard 1M 2M", "write -z -u 3M 64k", **{"discard": "unmap", "discard-no-unref": True})
    rows = run.qemu_img("map", "--output=json", image).json
    zero = [r for r in rows if r["zero"] and r.get("present", True)]
    assert [(r["start"], r["length"]) for r in zero] == [(MIB, 2 * MIB + 65536)] and zero[0]["offset"] == before[0] + MIB
    assert blocks(image) <= used - 2 * MIB
    images.assert_sound(image)
    size = image.stat().st_size
    io(image, "read -P 0 1M 2112k", "write -P 4 1M 128k", "write -P 5 1300k 4k", "read -P 0 1304k 20k", "read -P 3 0 1M")
    assert image.stat().st_size == size
    images.assert_sound(image)
    run.qemu_io(image, "read -P 4 1M 128k", "read -P 5 1300k 4k", "read -P 0 2M 1088k", "read -P 3 3136k 960k")
    old = image.parent / "old.qcow2"
    images.create(old, "1M", compat="0.10")
    assert "discard-no-unref" in io(old, "read 0 1", code=1, **{"discard-no-unref": True}).err
