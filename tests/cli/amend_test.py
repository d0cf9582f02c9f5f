# SPDX-License-Identifier: MIT
"""byre amend: every option, against the peer's checks and content."""
import itertools
import os
import re

import pytest

from lib import images, run
from twin import Holder

MIB = 1 << 20


def specific(image):
    return run.qemu_img("info", "--output=json", image).json["format-specific"]["data"]


def fill(image, *commands):
    run.qemu_io(image, *(commands or ("write -P 1 0 300k", "write -P 2 1M 100k", "write -P 3 7M 1M")))


def raw_of(image, tool=run.qemu_img, name="raw"):
    out = f"{image}.{name}"
    tool("convert", "-O", "raw", image, out)
    with open(out, "rb") as f:
        return f.read()


def amend(image, options, code=0, *more):
    return run.byre("amend", "-f", "qcow2", *more, "-o", options, image, code=code)


@pytest.mark.parametrize("cluster_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("backing", [None, "b", "b" * 400])
def test_up_and_down(tmp_path, cluster_size, backing):
    """FEATURES 1.138, 1.139, 5.066: version 3 and back, with a short, a long and no backing name; content stays"""
    image = tmp_path / "x.qcow2"
    base = tmp_path / (backing + "/b" if backing and len(backing) < 200 else "b")
    if backing and len(backing) > 200:                            # many folders make a long name
        base = tmp_path
        for _ in range(4):
            base = base / ("d" * 90)
        base = base / "b"
    if cluster_size == 512 and backing and len(str(base)) > 300:
        pytest.skip("does not fit the header of either program")
    if backing:
        os.makedirs(os.path.dirname(base))
        images.raw_file(base, 8 * MIB, [(0, b"\x55" * 3 * MIB)])
    images.create(image, "8M", backing=base if backing else None, backing_fmt="raw", compat="0.10", cluster_size=cluster_size)
    fill(image)
    before = raw_of(image)
    amend(image, "compat=1.1")
    assert specific(image)["compat"] == "1.1"
    images.assert_sound(image)
    assert raw_of(image) == before
    run.qemu_io(image, "write -z 0 128k", "write -z 2M 512k", "write -z -u 1M 64k", "write -P 9 5M 64k")
    run.byre("io", "-f", "qcow2", "-c", "write -z 3M 192k", "-c", "write -z 7M 1M", image)
    before = raw_of(image)
    amend(image, "compat=0.10")
    assert specific(image)["compat"] == "0.10"
    images.assert_sound(image)
    assert raw_of(image) == before == raw_of(image, run.byre)
    info = run.byre("info", "--output=json", image).json
    if backing:
        assert info["backing-filename"] == str(base) and info["backing-filename-format"] == "raw"
    with open(image, "rb") as f:
        header = f.read(cluster_size)
    assert header[4:8] == b"\0\0\0\2" and b"dirty bit" not in header


def test_up_writes_a_whole_version_3_header(tmp_path):
    """FEATURES 1.002, 1.016, 1.018: header length 112, the table of names, in the same order as the peer"""
    image = tmp_path / "x.qcow2"
    images.create(image, "8M", compat="0.10")
    amend(image, "compat=v3")
    with open(image, "rb") as f:
        header = f.read(4096)
    assert int.from_bytes(header[100:104], "big") == 112 and b"dirty bit" in header and b"lazy refcounts" in header
    fill(image, "write -z 0 64k")
    assert run.qemu_img("map", "--output=json", image).json[0]["zero"] is True


def test_unknown_extension_and_header_fields_stay(tmp_path):
    """FEATURES 1.002, 1.022: kept byte for byte when the header is rewritten"""
    image, data = tmp_path / "x.qcow2", tmp_path / "data"
    images.create(image, "1M", data_file=data)
    content = bytearray(image.read_bytes())
    length = int.from_bytes(content[100:104], "big")
    extensions = bytes(content[length:4096]).rstrip(b"\0")
    marker, foreign = b"markers!", (0x12345678).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"hello\0\0\0"
    content[100:104] = (length + 8).to_bytes(4, "big")
    content[length:4096] = (marker + foreign + extensions).ljust(4096 - length, b"\0")
    image.write_bytes(content)
    images.peer_check(image)
    other = tmp_path / "other-name"
    os.link(data, other)
    amend(image, f"data_file={other}")
    assert specific(image)["data-file"] == str(other)
    after = image.read_bytes()
    assert after[length:length + 8] == marker and foreign in after[:4096]
    images.assert_sound(image)


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_every_width(tmp_path, cluster_size):
    """FEATURES 1.140: from each width to each other, with snapshots where they can be counted"""
    image = tmp_path / "x.qcow2"
    images.create(image, "4M", cluster_size=cluster_size, refcount_bits=16)
    fill(image, "write -P 1 0 700k", "write -P 2 2M 900k", "discard 100k 300k")
    run.qemu_img("snapshot", "-c", "one", image)
    fill(image, "write -P 4 512k 64k")
    before = raw_of(image)
    for bits in (2, 64, 4, 8, 32, 16, 64, 2):
        amend(image, f"refcount_bits={bits}")
        assert specific(image)["refcount-bits"] == bits
        images.assert_sound(image)
        fill(image, f"write -P {bits} 3M 64k")
        images.assert_sound(image)
    assert raw_of(image)[:3 * MIB] == before[:3 * MIB]
    done = amend(image, "refcount_bits=1", 1)
    assert "refcount_bits" in done.err and "owners" in done.err
    run.qemu_img("snapshot", "-a", "one", image)
    images.assert_sound(image)


def test_width_without_snapshots(tmp_path):
    """FEATURES 1.140: one bit is enough where nothing is shared"""
    image = tmp_path / "x.qcow2"
    images.create(image, "64M", cluster_size=512)
    fill(image, "write -P 1 0 3M")
    for bits in (1, 64, 1, 16):
        amend(image, f"refcount_bits={bits}")
        images.assert_sound(image)
        run.byre("io", "-f", "qcow2", "-d", "unmap", "-c", f"write -P {bits} 30M 2M", "-c", "discard 30M 1M", image)
        images.assert_sound(image)


@pytest.mark.parametrize("extra", [0, 16])
def test_snapshots_of_version_2(tmp_path, extra):
    """FEATURES 1.138: entries of the snapshot table get what version 3 asks for; snapshots stay"""
    image = tmp_path / "x.qcow2"
    images.create(image, "4M", compat="0.10")
    fill(image, "write -P 1 0 1M")
    run.qemu_img("snapshot", "-c", "s1", image)
    fill(image, "write -P 2 0 512k")
    run.qemu_img("snapshot", "-c", "s2", image)
    fill(image, "write -P 3 0 128k")
    if not extra:
        without_extra_data(image)
    want = {s: snapshot_content(image, s) for s in ("s1", "s2")}
    before = raw_of(image)
    amend(image, "compat=1.1,refcount_bits=8")
    images.assert_sound(image)
    assert raw_of(image) == before and {s: snapshot_content(image, s) for s in want} == want
    amend(image, "refcount_bits=16")
    amend(image, "compat=0.10")
    images.assert_sound(image)
    assert raw_of(image) == before and {s: snapshot_content(image, s) for s in want} == want


def snapshot_content(image, name):
    out = f"{image}.{name}"
    run.qemu_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", image, out)
    with open(out, "rb") as f:
        return f.read()


def without_extra_data(image):
    """Rewrites the snapshot table in place as old programs wrote it: no extra data."""
    content = bytearray(image.read_bytes())
    count, at = int.from_bytes(content[60:64], "big"), int.from_bytes(content[64:72], "big")
    table, pos = b"", at
    for _ in range(count):
        extra = int.from_bytes(content[pos + 36:pos + 40], "big")
        id_len, name_len = int.from_bytes(content[pos + 12:pos + 14], "big"), int.from_bytes(content[pos + 14:pos + 16], "big")
        names = content[pos + 40 + extra:pos + 40 + extra + id_len + name_len]
        entry = bytes(content[pos:pos + 36]) + bytes(4) + bytes(names)
        table += entry + bytes(-len(entry) % 8)
        pos += 40 + extra + id_len + name_len
        pos += -pos % 8
    content[at:pos] = table.ljust(pos - at, b"\0")
    image.write_bytes(content)
    images.peer_check(image)


def refused(image, options, *words):
    before = image.read_bytes()
    done = amend(image, options, 1)
    for word in words:
        assert word in done.err, done
    assert image.read_bytes() == before
    return done


@pytest.mark.parametrize("backing", [False, True])
def test_zero_clusters_of_snapshots(tmp_path, backing):
    """FEATURES 1.139: zero clusters of snapshots, alone and shared, become real or go; no snapshot and no disk changes, nothing leaks.
    (The peer writes its zeros into clusters that a snapshot shares, and so changes the snapshot.)"""
    image, base = tmp_path / "x.qcow2", tmp_path / "base.raw"
    if backing:
        base.write_bytes(b"\x05" * MIB)
    images.create(image, "1M", backing=base if backing else None, backing_fmt="raw", cluster_size=4096)
    fill(image, "write -P 1 0 256k", "write -z 64k 64k", "write -z 512k 64k", "write -z -u 40k 12k")
    run.qemu_img("snapshot", "-c", "one", image)
    fill(image, "write -P 2 0 64k", "write -z 128k 64k", "write -P 3 80k 4k", "write -z 600k 10k")
    run.byre("snapshot", "-c", "two", image)
    fill(image, "write -P 4 512k 8k", "discard 128k 16k")
    def content():
        out = []
        for name in (None, "one", "two"):
            raw = tmp_path / "out.raw"
            run.qemu_img("convert", "-O", "raw", *(["-l", f"snapshot.name={name}"] if name else []), image, raw)
            out.append(raw.read_bytes())
        return out
    before = content()
    amend(image, "compat=0.10")
    assert specific(image)["compat"] == "0.10"
    assert content() == before
    images.peer_check(image)
    images.assert_sound(image)
    fill(image, "write -P 9 64k 4k", "write -P 9 130k 1k")
    assert content()[1:] == before[1:]
    run.byre("snapshot", "-d", "one", image)
    images.peer_check(image)
    run.qemu_img("snapshot", "-d", "two", image)
    images.peer_check(image)
    images.assert_sound(image)


def test_what_version_2_cannot_say(tmp_path):
    """FEATURES 1.139, 1.014: each restriction is named; the image is as it was, byte for byte"""
    image = tmp_path / "x.qcow2"
    images.create(image, "1M", refcount_bits=8)
    refused(image, "compat=0.10", "refcount_bits", "16")
    images.create(image, "1M", data_file=tmp_path / "d")
    refused(image, "compat=0.10", "data file")
    images.create(image, "1M", compression_type="zstd")
    refused(image, "compat=0.10", "zstd")
    images.create(image, "1M")
    run.qemu_img("bitmap", "--add", image, "b")
    run.byre("io", "-f", "qcow2", "-c", "read 0 1", image)
    assert "bitmaps" in amend(image, "compat=0.10", 1).err
    images.create(image, "1M")
    fill(image, "write -P 1 0 64k")
    run.qemu_img("snapshot", "-c", "s", image)
    run.qemu_img("resize", "-q", image, "2M")
    refused(image, "compat=0.10", "snapshot 's'", str(MIB))
    run.qemu_img("resize", "-q", "--shrink", image, "1M")
    amend(image, "compat=0.10")
    images.assert_sound(image)
    refused(image, "refcount_bits=8", "compat=0.10")
    refused(image, "lazy_refcounts=on", "compat=0.10")


@pytest.mark.parametrize("options,words", [
    ("backing_file=b", ["backing_file", "rebase"]), ("backing_fmt=raw", ["backing_fmt", "rebase"]), ("cluster_size=4k", ["cluster_size", "not changed later"]),
    ("preallocation=full", ["preallocation", "not changed later"]), ("compression_type=zlib", ["compression_type"]), ("foo=1", ["foo"]), ("compat=0.5", ["compat", "0.5"]),
    ("refcount_bits=3", ["refcount_bits", "3"]), ("refcount_bits=128", ["refcount_bits", "128"]), ("size=1000", ["1000", "512"]), ("data_file=x", ["data_file"]),
    ("data_file_raw=on", ["data_file_raw"]), ("compat=0.10,lazy_refcounts=on", ["lazy_refcounts"]), ("size=16E", ["size"])])
def test_refused(tmp_path, options, words):
    """FEATURES 1.141, G.084: what the peer refuses, too; nothing is changed, not even what stands in front in the list"""
    image = tmp_path / "x.qcow2"
    images.create(image, "1M")
    refused(image, options, *words)
    refused(image, "refcount_bits=64," + options if "refcount" not in options else "size=2M," + options, *words[:1])
    if options not in ("compat=0.10,lazy_refcounts=on",):
        run.qemu_img("amend", "-f", "qcow2", "-o", options, image, code=1)


def test_fields(tmp_path):
    """FEATURES 1.141: lazy refcounts, size up and down, the raw bit"""
    image = tmp_path / "x.qcow2"
    images.create(image, "1M")
    amend(image, "lazy_refcounts=on")
    assert specific(image)["lazy-refcounts"] is True
    fill(image, "write -P 4 0 64k")
    amend(image, "lazy_refcounts=off")
    assert specific(image)["lazy-refcounts"] is False
    amend(image, "size=5M")
    assert run.qemu_img("info", "--output=json", image).json["virtual-size"] == 5 * MIB
    amend(image, "size=512k,lazy_refcounts=on,refcount_bits=32")
    assert run.qemu_img("info", "--output=json", image).json["virtual-size"] == MIB // 2
    assert specific(image)["lazy-refcounts"] is True and specific(image)["refcount-bits"] == 32
    images.assert_sound(image)
    data = tmp_path / "data"
    images.create(image, "1M", data_file=data, data_file_raw=True)
    amend(image, "data_file_raw=on")
    amend(image, "data_file_raw=off")
    assert specific(image)["data-file-raw"] is False
    images.assert_sound(image)


def test_data_file_name(tmp_path):
    """FEATURES 1.083: another name, a much longer one, none at all"""
    image, data = tmp_path / "x.qcow2", tmp_path / "data"
    images.create(image, "1M", data_file=data)
    fill(image, "write -P 4 0 64k")
    long = tmp_path / ("n" * 200)
    os.link(data, long)
    for name in (long, data, long):
        amend(image, f"data_file={name}")
        assert specific(image)["data-file"] == str(name)
        images.assert_sound(image)
        run.qemu_io(image, "read -P 4 0 64k")
    amend(image, "data_file=")
    assert "data-file" not in specific(image)
    done = run.byre("map", image, code=1)
    assert "data-file" in done.err
    by_list = f"driver=qcow2,file.filename={image},data-file.driver=file,data-file.filename={data}"
    run.byre("amend", "--image-opts", "-o", f"data_file={data}", by_list)
    run.qemu_io(image, "read -P 4 0 64k")


def test_nothing_to_do(tmp_path):
    image = tmp_path / "x.qcow2"
    images.create(image, "1M")
    before = image.read_bytes()
    amend(image, "compat=1.1,refcount_bits=16,lazy_refcounts=off,size=1M")
    assert image.read_bytes()[:512] == before[:512]


def test_progress_and_quiet(tmp_path):
    """FEATURES 5.066: -p ends at 100 percent, -q is silent"""
    image = tmp_path / "x.qcow2"
    images.create(image, "1M")
    done = amend(image, "refcount_bits=64", 0, "-p")
    assert "(100.00/100%)" in done.out
    done = amend(image, "refcount_bits=16", 0, "-q")
    assert not done.out and not done.err


def test_usage(tmp_path):
    """FEATURES 5.066: exit codes of wrong usage; raw cannot be amended"""
    image, raw = tmp_path / "x.qcow2", images.raw_file(tmp_path / "r", MIB)
    images.create(image, "1M")
    run.byre("amend", image, code=1)
    run.byre("amend", "-o", "size=1M", code=1)
    done = run.byre("amend", "-f", "raw", "-o", "size=2M", raw, code=1)
    assert "raw" in done.err
    ours = run.byre("amend", "-f", "qcow2", "-o", "help")
    theirs = run.qemu_img("amend", "-f", "qcow2", "-o", "help")
    names = [{m.group(1) for m in re.finditer(r"^  ([a-z_.-]+)=", d.out, re.M)} for d in (ours, theirs)]
    assert {n for n in names[1] if not n.startswith("encrypt.")} <= names[0]
    assert "Amend options for 'qcow2':" in ours.out


def test_locked_image(tmp_path):
    """FEATURES 1.122: not while somebody writes"""
    image = tmp_path / "x.qcow2"
    images.create(image, "1M")
    with Holder(image, "-f", "qcow2"):
        assert "lock" in amend(image, "refcount_bits=64", 1).err
    images.assert_sound(image)


def test_all_at_once(tmp_path):
    """FEATURES 1.141: options in any order give the same image"""
    for order in itertools.permutations(["compat=1.1", "refcount_bits=32", "size=3M"]):
        image = tmp_path / "x.qcow2"
        images.create(image, "1M", compat="0.10")
        fill(image, "write -P 4 0 64k")
        amend(image, ",".join(order))
        assert specific(image)["compat"] == "1.1" and specific(image)["refcount-bits"] == 32
        images.assert_sound(image)
