# SPDX-License-Identifier: MIT
"""Guest data in an external data file: byre and the peer on each other's images, where it lies, what is refused."""
import json
import os

import guest
import pytest
from guest import Guest, seed_of
from test_extl2 import Sub
from lib import images, run

MIB = 1 << 20


def make(tool, folder, size, name="disk", **options):
    """An image and its data file, both named; the data file by its full path."""
    image, data = folder / f"{name}.qcow2", folder / f"{name}.data"
    guest.create(tool, image, size, data_file=data, **options)
    return image, data


def raw_content(image, folder):
    out = folder / "converted.raw"
    run.qemu_img("convert", "-O", "raw", image, out)
    return out.read_bytes()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("cluster_size,extended", [(512, False), (4096, False), (65536, False), (1 << 20, False), (16384, True), (65536, True)])
def test_writers_take_turns(tmp_path, cluster_size, extended, raw):
    """FEATURES 1.025, 1.032, 1.078, 1.081, 1.084: both write in turns, resizes included; each finds it clean. A raw data file
    holds the guest's disk byte for byte."""
    seed = seed_of("data", cluster_size, raw)
    disk = (Sub if extended else Guest)(seed, guest.disk_size(cluster_size), cluster_size)
    image, data = make(guest.TOOLS[seed & 1], tmp_path, disk.size, cluster_size=cluster_size, data_file_raw=raw, extended_l2=extended)
    for turn in range(6):
        tool = guest.TOOLS[turn & 1]
        disk.run(tool, image, operations=25, batch=25)
        images.peer_check(image)
        run.byre("check", image)
        if raw:
            assert data.read_bytes()[:disk.size] == bytes(disk.shadow)
        if turn in (2, 3):
            disk.resize(tool, image)
    disk.judge(image, tmp_path)
    if not extended:
        guest.assert_read_by_byre(disk, image, tmp_path)


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_over_a_backing_file(tmp_path, cluster_size):
    """FEATURES 1.078: copy-on-write into the data file"""
    size = guest.disk_size(cluster_size)
    base = tmp_path / "base.raw"
    base.write_bytes(images.pattern_bytes(3, size - 100 * 512))
    disk = Guest(seed_of("back", cluster_size), size, cluster_size, backing=base.read_bytes())
    image = tmp_path / "disk.qcow2"
    guest.create("byre", image, size, backing=base, backing_fmt="raw", cluster_size=cluster_size, data_file=tmp_path / "data")
    disk.run("byre", image, operations=60)
    disk.run("qemu", image, operations=20)
    disk.judge(image, tmp_path)


def test_same_bytes_at_the_same_offset(tmp_path):
    """FEATURES 1.078, 1.021, 1.146: guest offset is data file offset; data clusters take nothing in the image"""
    image, data = make("byre", tmp_path, 16 * MIB)
    guest.io("byre", image, "write -P 7 1M 5M", "write -P 9 15M 1M")
    assert data.stat().st_size == 16 * MIB
    content = data.read_bytes()
    assert content[MIB:6 * MIB] == b"\7" * (5 * MIB) and content[15 * MIB:] == b"\x09" * MIB
    assert image.stat().st_size < MIB
    for tool in (run.byre, run.qemu_img):
        info = tool("info", "--output=json", image).json["format-specific"]["data"]
        assert info["data-file"] == str(data) and info["data-file-raw"] is False
    human = run.byre("map", image).out
    assert str(data) in human and str(image) not in human
    guest.assert_same_map(image)


@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("raw", [False, True])
def test_preallocation(tmp_path, mode, raw):
    """FEATURES 1.081, 1.135, 1.136: the data file is filled as asked; raw maps every cluster"""
    image, data = make("byre", tmp_path, 3 * MIB + 512, preallocation=mode, data_file_raw=raw)
    assert data.stat().st_size == 3 * MIB + 512
    assert (data.stat().st_blocks * 512 >= 3 * MIB) == (mode in ("falloc", "full"))
    mapped = mode != "off" or raw
    for row in run.qemu_img("map", "--output=json", image).json:
        assert row.get("present", True) == mapped
    images.assert_sound(image)
    run.byre("resize", "-q", image, "5M")
    run.byre("resize", "-q", "--preallocation", "falloc", image, "8M")
    assert data.stat().st_size == 8 * MIB
    images.assert_sound(image)
    run.byre("resize", "-q", "--shrink", image, "2M")
    assert data.stat().st_size == 2 * MIB
    assert not any(raw_content(image, tmp_path))
    images.assert_sound(image)


def test_creation_empties_the_data_file(tmp_path):
    """FEATURES 1.082: what was in the data file is gone; bad options touch neither file"""
    data = tmp_path / "disk.data"
    data.write_bytes(b"x" * MIB)
    for options in ("compat=0.10", "cluster_size=3k"):
        run.byre("create", "-f", "qcow2", "-o", f"data_file={data},{options}", tmp_path / "disk.qcow2", "1M", code=1)
        assert data.read_bytes() == b"x" * MIB and not (tmp_path / "disk.qcow2").exists()
    image, _ = make("byre", tmp_path, MIB)
    assert not any(data.read_bytes()) and not any(raw_content(image, tmp_path))
    done = run.byre("create", "-f", "qcow2", "-o", f"data_file={image}", image, "1M", code=1)
    assert str(image) in done.err


@pytest.mark.parametrize("options,why", [
    ("data_file_raw=on", "data_file"), ("compat=0.10,data_file=d", "compat=0.10"), ("data_file=d,data_file_raw=on,backing_file=b,backing_fmt=raw", "backing_file")])
def test_refused_at_creation(tmp_path, options, why):
    """FEATURES 1.082, 1.014: named, and nothing is made"""
    (tmp_path / "b").write_bytes(bytes(MIB))
    done = run.byre("create", "-f", "qcow2", "-o", options, "x.qcow2", "1M", code=1, cwd=tmp_path)
    assert why in done.err and sorted(os.listdir(tmp_path)) == ["b"]
    run.qemu_img("create", "-f", "qcow2", "-o", options, "x.qcow2", "1M", code=1, cwd=tmp_path)


def test_refused_in_use(tmp_path):
    """FEATURES 1.082, 1.065: no compressed clusters in a data file; the image is as it was"""
    image, _ = make("byre", tmp_path, MIB)
    guest.io("byre", image, "write -P 3 0 128k")
    before = image.read_bytes()
    assert "Operation not supported" in run.byre("io", "-f", "qcow2", "-c", "write -c 512k 64k", image, code=1).out
    assert image.read_bytes() == before
    images.assert_sound(image)


def test_info_needs_no_data_file(tmp_path):
    """FEATURES 1.080: info tells all, check checks; everything else says what is missing"""
    image, data = make("byre", tmp_path, MIB)
    data.unlink()
    info = run.byre("info", "--output=json", image).json
    assert info["virtual-size"] == MIB and info["format-specific"]["data"]["data-file"] == str(data)
    assert run.byre("check", image).code == 0
    for words in (["map", image], ["convert", "-O", "raw", image, tmp_path / "out"], ["resize", image, "2M"]):
        done = run.byre(*words, code=None)
        assert done.code and str(data) in done.err, done


def test_override(tmp_path):
    """FEATURES 1.079, 1.132: a data file that was moved is named when the image is opened"""
    image, data = make("qemu", tmp_path, MIB)
    guest.io("qemu", image, "write -P 5 64k 64k")
    moved = tmp_path / "moved"
    data.rename(moved)
    by_list = f"driver=qcow2,file.filename={image},data-file.driver=file,data-file.filename={moved}"
    by_json = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(image)},
                                    "data-file": {"driver": "file", "filename": str(moved)}})
    done = run.byre("io", "-c", "read -P 5 64k 64k", "-c", "write -P 6 0 4k", "--image-opts", by_list)
    assert "Pattern" not in done.out + done.err
    done = run.byre("io", "-r", "-c", "read -P 5 64k 64k", "-c", "read -P 6 0 4k", by_json)
    assert "Pattern" not in done.out + done.err
    assert moved.read_bytes()[:4096] == b"\6" * 4096
    plain = tmp_path / "plain.qcow2"
    guest.create("byre", plain, MIB)
    done = run.byre("io", "-r", "-c", "read 0 1", "--image-opts", f"driver=qcow2,file.filename={plain},data-file.driver=file,data-file.filename={moved}", code=1)
    assert "no external data file" in done.err


def test_relative_names(tmp_path):
    """FEATURES 1.079: beside the image, or as the peer has it, in the working directory; two of that name are refused"""
    sub = tmp_path / "sub"
    sub.mkdir()
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", "1M", cwd=sub)
    run.byre("io", "-c", "write -P 8 0 64k", "sub/d.qcow2", cwd=tmp_path)           # beside the image
    assert (sub / "d.raw").read_bytes()[:65536] == b"\x08" * 65536
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=e.raw", "sub/e.qcow2", "1M", cwd=tmp_path)
    run.byre("io", "-c", "write -P 9 0 64k", "sub/e.qcow2", cwd=tmp_path)           # as the peer has it
    assert (tmp_path / "e.raw").read_bytes()[:65536] == b"\x09" * 65536
    (tmp_path / "d.raw").write_bytes(bytes(MIB))
    done = run.byre("io", "-c", "write -P 1 0 64k", "sub/d.qcow2", cwd=tmp_path, code=1)
    assert "sub/d.raw" in done.err and "data-file" in done.err
    assert not any((tmp_path / "d.raw").read_bytes()) and (sub / "d.raw").read_bytes()[:65536] == b"\x08" * 65536
    (tmp_path / "d.raw").unlink()
    os.link(sub / "d.raw", tmp_path / "d.raw")                                       # one file by two names is one file
    run.byre("io", "-r", "-c", "read -P 8 0 64k", "sub/d.qcow2", cwd=tmp_path)


@pytest.mark.parametrize("name", [b'json:{"driver":"file","filename":"/etc/hostname"}', b"nbd://localhost/x"])
def test_no_foreign_file(tmp_path, name):
    """CVE-2024-4467, CVE-2024-32498: a recorded name is a plain path; info opens no second file at all"""
    image = tmp_path / "disk.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / ('d' * 60)}", image, "1M")
    content = bytearray(image.read_bytes())
    at = content.index(b"DATA")
    length = int.from_bytes(content[at + 4:at + 8], "big")
    content[at + 8:at + 8 + length] = name + b"x" * (length - len(name)) if name[0] == 110 else name[:-1] + b" " * (length - len(name)) + b"}"
    image.write_bytes(content)
    run.byre("info", image)
    run.byre("check", image)
    for words in (["map", image], ["convert", "-O", "raw", image, tmp_path / "out"]):
        done = run.byre(*words, code=None)
        assert done.code and "not a plain path" in done.err, done


def test_compressed_entry_is_damage(tmp_path):
    """FEATURES 1.082, 1.078: entries that cannot be are found, and never followed"""
    image, data = make("byre", tmp_path, MIB)
    guest.io("byre", image, "write -P 3 0 256k")
    content = bytearray(image.read_bytes())
    l1 = int.from_bytes(content[40:48], "big")
    l2 = int.from_bytes(content[l1:l1 + 8], "big") & ((1 << 56) - 512)
    wrong = (1 << 63) | 0x50000                                     # guest cluster 1 at another's place
    content[l2 + 8:l2 + 16] = wrong.to_bytes(8, "big")
    content[l2 + 16:l2 + 24] = ((1 << 62) | 0x10000).to_bytes(8, "big")
    image.write_bytes(content)
    done = run.byre("check", image, code=2)
    assert "2 errors" in done.out, done
    for at in ("64k", "128k"):
        done = run.byre("io", "-r", "-c", f"read {at} 4k", image, code=None)
        assert "failed" in done.out + done.err, done
    assert data.read_bytes()[:MIB // 4] == b"\3" * (MIB // 4)


def test_convert_and_back(tmp_path):
    """FEATURES 1.078: convert to and from an image with a data file"""
    raw = tmp_path / "in.raw"
    raw.write_bytes(images.pattern_bytes(5, 5 * MIB) + bytes(3 * MIB + 512))
    for options in ("", ",data_file_raw=on"):
        image, data = tmp_path / "x.qcow2", tmp_path / "x.data"
        run.byre("convert", "-O", "qcow2", "-o", f"data_file={data}{options}", raw, image)
        images.assert_sound(image)
        assert data.read_bytes()[:raw.stat().st_size] == raw.read_bytes()
        assert raw_content(image, tmp_path) == raw.read_bytes()
        run.byre("compare", image, raw)
        out = tmp_path / "out.raw"
        run.byre("convert", "-O", "raw", image, out)
        assert out.read_bytes() == raw.read_bytes()


def test_locks(tmp_path):
    """FEATURES 1.079, 3.007: one writer, whichever program; the data file cannot be resized under it"""
    image, data = make("byre", tmp_path, MIB)
    for first, second in (("byre", "qemu"), ("qemu", "byre")):
        with guest.Session(first, image):
            assert guest.program(second)("resize", "-q", image, "2M", code=None).code
            assert guest.program(second)("resize", "-q", "-f", "raw", data, "2M", code=None).code
    assert data.stat().st_size == MIB


def test_discard_gives_space_back(tmp_path):
    """FEATURES 1.084: discard and zeros with unmap punch the data file; without they keep it"""
    image, data = make("byre", tmp_path, 8 * MIB)
    guest.io("byre", image, "write -P 4 0 8M")
    full = data.stat().st_blocks
    guest.io("byre", image, "discard 0 4M", discard="ignore")
    guest.io("byre", image, "write -z 0 1M")
    assert data.stat().st_blocks == full
    guest.io("byre", image, "write -P 4 0 8M", "discard 0 4M", "write -z -u 4M 1M")
    assert data.stat().st_blocks <= full - 5 * MIB // 512 + 64
    guest.io("byre", image, "read -P 0 0 5M", "read -P 4 5M 3M")
    guest.io("qemu", image, "read -P 0 0 5M", "read -P 4 5M 3M")
    images.assert_sound(image)
