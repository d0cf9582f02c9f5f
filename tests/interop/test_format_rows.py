# SPDX-License-Identifier: MIT
"""Fields of the header and of tables that no other file asks about: what both programs make of the same bytes."""
import json
import os
import re
import shutil
import struct

import pytest
from lib import corrupt, images, peers, run


MIB = 1 << 20


def both_open(path, *, opens, write=False):
    """Both programs open the image, or both refuse it; a refusal changes nothing. Returns what byre said."""
    before = path.read_bytes()
    said = ""
    for tool in ("byre", "qemu"):
        copy = path.parent / f"{tool}-{path.name}"
        shutil.copy(path, copy)
        words = ["-c", "write 0 4k" if write else "read 0 4k", copy] if write else ["-r", "-c", "read 0 4k", copy]
        done = run.byre("io", *words, code=None) if tool == "byre" else run.run(peers.need("qemu-io"), *words, code=None)
        assert (done.code == 0) == opens, (tool, done.code, done.out, done.err)
        if not opens:
            assert copy.read_bytes() == before, tool
        if tool == "byre":
            said = done.out + done.err
    return said


def patch(path, *places):
    with open(path, "r+b") as f:
        for at, data in places:
            f.seek(at)
            f.write(data)


def written(tmp_path, size="8M", **options):
    path = images.create(tmp_path / "x.qcow2", size, **options)
    run.qemu_io(path, "write -P 1 0 128k", "write -P 2 4M 64k")
    return path


# ---- header ----

def test_size(tmp_path):
    """FEATURES 1.004: sizes become multiples of 512; an L1 table that does not cover the size is refused"""
    for asked, want in ((1, 512), (1000, 1024), (512, 512), (MIB + 1, MIB + 512)):
        run.byre("create", "-q", "-f", "qcow2", tmp_path / "ours", asked)
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "theirs", asked)
        assert [run.qemu_img("info", "--output=json", tmp_path / n).json["virtual-size"] for n in ("ours", "theirs")] == [want, want]
        assert run.byre("info", "--output=json", tmp_path / "ours").json["virtual-size"] == want
        run.qemu_img("check", tmp_path / "ours")
    path = written(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.header(size=3 << 30)                    # one L1 entry covers 512 MiB
    assert "L1" in both_open(path, opens=False)


@pytest.mark.parametrize("what,fields,opens", [
    ("odd place", {"l1_off": 0x30200}, False), ("behind 2^63", {"l1_off": 1 << 63}, False), ("longer than 32 MiB", {"l1_size": (32 << 20) // 8 + 1}, False),
    ("too short", {"l1_size": 0}, False)])
def test_l1_place(tmp_path, what, fields, opens):
    """FEATURES 1.006: where an L1 table may be, and how long"""
    path = written(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.header(**fields)
    both_open(path, opens=opens)


def test_l1_longer_than_needed(tmp_path):
    """FEATURES 1.006: more entries than the size asks for are kept (there lies the state of a machine)"""
    path = written(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.header(l1_size=100)
    both_open(path, opens=True, write=True)
    run.byre("io", "-c", "write -P 3 1M 64k", path)
    with corrupt.Editor(path) as editor:
        assert editor.image.header.l1_size == 100
    run.qemu_img("check", path)


@pytest.mark.parametrize("what,fields", [
    ("no cluster", {"reftable_clusters": 0}), ("odd place", {"reftable_off": 0x10200}), ("longer than 8 MiB", {"reftable_clusters": (8 << 20) // 65536 + 1})])
def test_refcount_table_place(tmp_path, what, fields):
    """FEATURES 1.007: such a table is refused, and check -r all makes a new one"""
    path = written(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.header(**fields)
    both_open(path, opens=False, write=True)
    ours = tmp_path / "ours.qcow2"
    shutil.copy(path, ours)
    done = run.byre("check", "-r", "all", ours, code=None)
    if what == "no cluster":
        assert done.code == 0, done
    if done.code == 0:
        run.qemu_img("check", ours)
        run.qemu_io(ours, "read -P 1 0 128k", "read -P 2 4M 64k")
    else:
        assert ours.read_bytes() == path.read_bytes()


def test_snapshot_limits(tmp_path):
    """FEATURES 1.008: place and number of snapshots"""
    path = written(tmp_path)
    run.qemu_img("snapshot", "-c", "s", path)
    run.byre("snapshot", "-l", path)
    for fields in ({"nb_snapshots": 65537}, {"snapshots_off": 0x30200}, {"snapshots_off": 1 << 60}):
        copy = tmp_path / "copy.qcow2"
        shutil.copy(path, copy)
        with corrupt.Editor(copy) as editor:
            editor.header(**fields)
        for command in (["info", copy], ["snapshot", "-l", copy]):
            run.qemu_img(*command, code=1 if "nb_snapshots" in fields else None)         # an odd place is nothing to it
        run.byre("snapshot", "-l", copy, code=1)
        run.byre("snapshot", "-c", "t", copy, code=1)
        run.byre("check", copy, code=(1, 2))


@pytest.mark.parametrize("length,opens", [(1, True), (1023, True), (1024, False), (4000, False)])
def test_backing_name_length(tmp_path, length, opens):
    """FEATURES 1.009: at most 1023 bytes, at the end of what the first cluster holds"""
    name = ("b" * 200 + "/") * 20
    name = (name[:length - 1] + "b")[-length:]
    path = images.create(tmp_path / "x.qcow2", "1M")
    patch(path, (4096, name.encode()), (8, struct.pack(">QI", 4096, length)))
    if opens:
        for done in (run.byre("info", "-U", path), run.qemu_img("info", "-U", path, code=None)):
            assert name in done.out, done
    else:
        run.byre("info", path, code=1)
        run.qemu_img("info", path, code=1)
    for off in (65536, 65530):
        patch(path, (8, struct.pack(">QI", off, 20)))
        run.byre("info", path, code=1)
        run.qemu_img("info", path, code=1)


@pytest.mark.parametrize("field,bit,reads,writes", [
    ("incompatible", 1, True, False), ("incompatible", 2, False, False), ("incompatible", 3, False, False),
    ("incompatible", 5, False, False), ("incompatible", 63, False, False), ("compatible", 0, True, True), ("compatible", 17, True, True), ("compatible", 63, True, True),
    ("autoclear", 7, True, True), ("autoclear", 63, True, True)])
def test_feature_bits(tmp_path, field, bit, reads, writes):
    """FEATURES 1.010: each kind of bit, alone: who opens such an image, and for what"""
    path = written(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.header(**{field: getattr(editor.image.header, field) | 1 << bit})
    both_open(path, opens=reads)
    both_open(path, opens=writes, write=True)


def test_feature_bits_of_version_2(tmp_path):
    """FEATURES 1.010: version 2 has none: what stands there is something else"""
    path = images.create(tmp_path / "x.qcow2", "8M", compat="0.10")
    run.qemu_io(path, "write -P 1 0 128k")
    with corrupt.Editor(path) as editor:
        editor.bytes(72, bytes(32))
        editor.bytes(80, b"")
    both_open(path, opens=True, write=True)


def test_backing_format(tmp_path):
    """FEATURES 1.017: the recorded format is shown and believed: raw is not looked into"""
    inner = images.create(tmp_path / "inner.qcow2", "1M")
    for tool in ("byre", "qemu-img"):
        path = tmp_path / f"{tool}.qcow2"
        words = ["create", "-q", "-f", "qcow2", "-b", inner, "-F", "raw", path, "1M"]
        run.byre(*words) if tool == "byre" else run.qemu_img(*words)
        for info in (run.byre("info", "--output=json", path).json, run.qemu_img("info", "--output=json", path).json):
            assert info["backing-filename-format"] == "raw"
        first = run.byre("io", "-r", "-c", "read -v 0 512", path).out
        assert first.split()[1:5] == ["51", "46", "49", "fb"] or "51 46 49 fb" in first           # the header of the inner file is data


# ---- entries ----

@pytest.mark.parametrize("where,change", [
    ("l1", lambda old: old | 1 << 62), ("l1", lambda old: old | 1), ("l1", lambda old: old | 0x100), ("l1", lambda old: old | 1 << 56),
    ("l2", lambda old: old | 2), ("l2", lambda old: old | 0x100), ("l2", lambda old: old | 1 << 56), ("l2", lambda old: old | 1 << 61),
    ("l2", lambda old: old + 512)])
def test_reserved_bits(tmp_path, where, change):
    """FEATURES 1.013: reserved bits, and offsets that are no multiple of the cluster: check says the same as the peer's, or is stricter"""
    path = written(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.patch_l1(0, change) if where == "l1" else editor.patch_l2(0, change)
    ours = run.byre("check", "--output=json", path, code=None)
    theirs = run.qemu_img("check", "--output=json", path, code=None)
    assert ours.code == 2, ours
    assert theirs.code in (0, 2, 3) and ours.json["corruptions"] >= theirs.json.get("corruptions", 0), (ours.out, theirs.out)
    fixed = run.byre("check", "-r", "all", path, code=None)
    if fixed.code == 0:
        run.qemu_img("check", path)


def test_bitmaps_nobody_vouches_for(tmp_path):
    """FEATURES 1.031: without the autoclear bit bitmaps do not count, and what they hold is leaked, for both"""
    path = written(tmp_path)
    run.qemu_img("bitmap", "--add", path, "b")
    run.qemu_io(path, "write 0 1M")
    with corrupt.Editor(path) as editor:
        editor.set_bits("autoclear", 1, on=False)
    for info in (run.byre("info", "--output=json", path).json, run.qemu_img("info", "--output=json", path).json):
        assert "bitmaps" not in info["format-specific"]["data"]
    ours, theirs = run.byre("check", "--output=json", path, code=3).json, run.qemu_img("check", "--output=json", path, code=3).json
    assert ours["leaks"] == theirs["leaks"] > 0


@pytest.mark.parametrize("bits", [1, 16, 64])
def test_refcounts_grow(tmp_path, bits):
    """FEATURES 1.044: blocks that count themselves, and a table that has to move; both programs go on where the other stopped"""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size=512,refcount_bits={bits}", path, "1G")
    tables = set()
    for turn in range(4):
        commands = [f"write -q -P {turn + 1} {turn * 256 + i * 32}M 600k" for i in range(8)]
        if turn % 2:
            run.qemu_io(path, *commands)
        else:
            run.byre("io", *sum((["-c", c] for c in commands), []), path)
        images.assert_sound(path)
        with corrupt.Editor(path) as editor:
            tables.add(editor.image.header.reftable_off)
    assert bits == 1 or len(tables) > 1, "the table never moved"
    for turn in range(4):
        run.qemu_io(path, *[f"read -q -P {turn + 1} {turn * 256 + i * 32}M 600k" for i in range(8)])


# ---- what reaches the file ----

def strace(tmp_path, *words):
    peers.need("strace")
    run.run("strace", "-f", "-o", tmp_path / "trace", "-e", "trace=pwrite64,pwritev,pwritev2,fallocate,copy_file_range", run.BYRE, *words,
            env={"BYRE_BACKEND": "threads"})                           # calls that strace can see
    return (tmp_path / "trace").read_text().splitlines()


def calls(lines, name):
    return [line for line in lines if re.search(rf"\b{name}\(", line)]


def test_cheap_zero_fill(tmp_path):
    """FEATURES 1.051: what surrounds a small write in a new large cluster is not written as bytes. Where the file system does not
    promise zeros that is a matter of measured time; then the other way is at least tried, and works."""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "1G")
    lines = strace(tmp_path, "io", "-i", "threads", *sum((["-c", f"write -P 1 {at}M 4k"] for at in range(0, 160, 2)), []), "-c", "flush", path)
    moved = sum(int(re.search(r"= (\d+)$", line).group(1)) for line in calls(lines, "pwrite\\w*") if re.search(r"= \d+$", line))
    zeroed = [line for line in calls(lines, "fallocate") if "ZERO_RANGE" in line or "PUNCH" in line]
    assert 80 * 4096 <= moved < (80 * (2 << 20) - (1 << 20) if zeroed else 80 * (2 << 20) / 4), moved
    run.qemu_io(path, "read -P 1 158M 4k", f"read -P 0 {158 * MIB + 4096} {2 * MIB - 4096}")
    run.qemu_img("check", path)


def test_discards_go_out_together(tmp_path):
    """FEATURES 1.055: neighbours that were given up one by one are given back to the file system in one call"""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "64M")
    run.byre("io", "-c", "write -P 1 0 16M", "-c", "flush", path)
    lines = strace(tmp_path, "io", "-i", "threads", "-d", "unmap", *sum((["-c", f"discard {i * 64}k 64k"] for i in range(256)), []), "-c", "flush", path)
    punches = [line for line in calls(lines, "fallocate") if "PUNCH" in line]
    assert 1 <= len(punches) <= 16, len(punches)
    assert path.stat().st_blocks * 512 < 2 * MIB
    run.qemu_img("check", path)


def test_copy_into_an_image(tmp_path):
    """FEATURES 1.057: -C copies plain clusters inside the kernel, and refuses nothing where it cannot"""
    (tmp_path / "r").write_bytes(os.urandom(2 << 20))
    lines = strace(tmp_path, "convert", "-C", "-f", "raw", "-O", "qcow2", tmp_path / "r", tmp_path / "t.qcow2")
    assert any(re.search(r"= [1-9]\d*$", line) for line in calls(lines, "copy_file_range"))
    run.qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "r", tmp_path / "t.qcow2")
    lines = strace(tmp_path, "convert", "-C", "-f", "qcow2", "-O", "raw", tmp_path / "t.qcow2", tmp_path / "back")
    assert calls(lines, "copy_file_range") and (tmp_path / "back").read_bytes() == (tmp_path / "r").read_bytes()
    run.qemu_img("convert", "-c", "-O", "qcow2", tmp_path / "t.qcow2", tmp_path / "c.qcow2")
    run.byre("convert", "-C", "-f", "qcow2", "-O", "qcow2", tmp_path / "c.qcow2", tmp_path / "u.qcow2")
    run.qemu_img("compare", tmp_path / "c.qcow2", tmp_path / "u.qcow2")


@pytest.mark.parametrize("passes", [None, True, False])
def test_pass_discard_snapshot(tmp_path, passes):
    """FEATURES 1.128: what a deleted snapshot held is given back to the file system, or not"""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "64M")
    run.byre("io", "-c", "write -P 1 0 16M", path)
    run.byre("snapshot", "-c", "s", path)
    run.byre("io", "-c", "write -P 2 0 16M", path)
    full = path.stat().st_blocks * 512
    assert full > 32 * MIB
    word = "" if passes is None else f",pass-discard-snapshot={'on' if passes else 'off'}"
    run.byre("snapshot", "-d", "s", "--image-opts", f"driver=qcow2,discard=unmap,file.filename={path}{word}")
    left = path.stat().st_blocks * 512
    assert left >= full - MIB if passes is False else left < 18 * MIB
    run.qemu_img("check", path)
    run.qemu_io(path, "read -P 2 0 16M")


@pytest.mark.parametrize("passes", [True, False])
def test_pass_discard_other(tmp_path, passes):
    """FEATURES 1.128: tables that nobody needs any more are given back to the file system, or not"""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "8G")
    run.byre("io", *sum((["-c", f"write -q -P 1 {i * 512}M 64k"] for i in range(16)), []), "-c", "write -P 2 64k 1M", path)
    options = f"driver=qcow2,discard=unmap,pass-discard-request=off,pass-discard-other={'on' if passes else 'off'},file.filename={path}"
    lines = strace(tmp_path, "resize", "--shrink", "--image-opts", options, "512M")
    punches = [int(line.split(",")[-1].split(")")[0]) for line in calls(lines, "fallocate") if "PUNCH" in line]
    assert bool([n for n in punches if n >= 65536]) == passes, punches         # a smaller one asks what the file system can do
    run.qemu_img("check", path)
    run.qemu_io(path, "read -P 2 64k 1M")


def test_backing_that_is_left_out(tmp_path):
    """FEATURES 1.132: "backing": null: what lies below is not looked at"""
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\x01" * MIB)
    run.byre("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    run.qemu_io(top, "write -P 9 0 64k")
    name = {"driver": "qcow2", "file": {"driver": "file", "filename": str(top)}}
    for options, seen in (({"backing": None}, 0), ({}, 1)):
        text = "json:" + json.dumps({**name, **options})
        for command in ([run.BYRE, "io"], [peers.need("qemu-io")]):
            done = run.run(*command, "-r", "-c", "read -P 9 0 64k", "-c", f"read -P {seen} 64k 960k", text)
            assert "verification" not in done.out + done.err, done


ROUND_TRIP = [
    {"cluster_size": "512"}, {"cluster_size": "2M"}, {"compat": "0.10"}, {"compat": "1.1"}, {"refcount_bits": "1"}, {"refcount_bits": "64"}, {"lazy_refcounts": "on"},
    {"compression_type": "zstd"}, {"extended_l2": "on"}, {"preallocation": "metadata"}, {"preallocation": "falloc"}, {"preallocation": "full"},
    {"backing_file": "base.raw", "backing_fmt": "raw"}, {"data_file": "d.raw"}, {"data_file": "d.raw", "data_file_raw": "on"}, {"nocow": "on"}, {"size": "3M"}]


@pytest.mark.parametrize("options", ROUND_TRIP, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_create_options(tmp_path, options):
    """FEATURES 1.134: what info says of an image made with each option is what it says of the peer's"""
    seen = []
    for tool in ("byre", "qemu"):
        folder = tmp_path / tool
        folder.mkdir()
        (folder / "base.raw").write_bytes(bytes(MIB))
        text = ",".join(f"{k}={v}" for k, v in options.items())
        words = ["create", "-q", "-f", "qcow2", "-o", text, "x.qcow2"] + ([] if "size" in options else ["4M"])
        (run.byre if tool == "byre" else run.qemu_img)(*words, cwd=folder)
        info = run.qemu_img("info", "--output=json", "x.qcow2", cwd=folder).json
        ours = run.byre("info", "--output=json", "x.qcow2", cwd=folder).json
        keep = {k: v for k, v in info.items() if k in ("virtual-size", "cluster-size", "format-specific", "backing-filename", "backing-filename-format")}
        assert {k: ours.get(k) for k in keep} == keep
        seen.append(json.loads(json.dumps(keep).replace(str(folder), "")))
        run.qemu_img("check", "x.qcow2", cwd=folder)
    assert seen[0] == seen[1]




# ---- entries ----

def tables(path):
    """(L1 entries, L2 entries of the first table) of an image with one L2 table at least"""
    data = path.read_bytes()
    l1_size, = struct.unpack_from(">I", data, 36)
    l1_off, = struct.unpack_from(">Q", data, 40)
    bits, = struct.unpack_from(">I", data, 20)
    l1 = struct.unpack_from(">%dQ" % l1_size, data, l1_off)
    return l1, struct.unpack_from(">%dQ" % ((1 << bits) // 8), data, l1[0] & 0x00FFFFFFFFFFFE00)


COPIED, PLACE = 1 << 63, 0x00FFFFFFFFFFFE00


def test_entries(tmp_path):
    """FEATURES 1.034, 1.035, 1.037: COPIED says that there is one owner, in both kinds of tables; a zero cluster has its flag and no place"""
    base, path = tmp_path / "base", tmp_path / "x.qcow2"
    run.qemu_img("create", "-q", "-f", "raw", base, "2M")
    run.qemu_io(base, "write -P 9 0 2M", fmt="raw")
    run.byre("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    run.byre("io", "-c", "write -P 1 0 128k", "-c", "write -z 128k 64k", "-c", "write -P 2 256k 4k", path)
    l1, l2 = tables(path)
    assert l1[0] & ~PLACE == COPIED and l1[0] & PLACE
    assert [e & ~PLACE for e in l2[:5]] == [COPIED, COPIED, 1, 0, COPIED] and [bool(e & PLACE) for e in l2[:5]] == [True, True, False, False, True]
    zero = [e for e in run.byre("map", "--output=json", path).json if e["start"] == 128 << 10][0]
    assert (zero["zero"], zero["data"], zero["present"], zero["depth"]) == (True, False, True, 0)
    run.qemu_io(path, "read -P 0 128k 64k", "read -P 9 192k 64k", "read -P 9 260k 60k")
    run.byre("snapshot", "-c", "s", path)
    l1, l2 = tables(path)
    assert not l1[0] & COPIED and not any(e & COPIED for e in l2)
    run.byre("io", "-c", "write -P 3 0 4k", path)            # one cluster gets an owner of its own, and so does the table
    l1, l2 = tables(path)
    assert l1[0] & COPIED and [bool(e & COPIED) for e in l2[:5]] == [True, False, False, False, False]
    run.byre("snapshot", "-d", "s", path)
    l1, l2 = tables(path)
    assert l1[0] & COPIED and [bool(e & COPIED) for e in l2[:5]] == [True, True, False, False, True]
    run.qemu_img("check", path)


def test_in_place(tmp_path):
    """FEATURES 1.052: what is allocated and has one owner is written over where it lies: no other byte of the file changes"""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", path, "8M")
    run.byre("io", "-c", "write -P 1 0 1M", path)
    before, places = path.read_bytes(), [e for e in run.byre("map", "--output=json", path).json if e["data"]]
    run.byre("io", "-c", "write -P 7 3k 200k", "-c", "write -P 8 512k 512k", "-c", "flush", path)
    after = path.read_bytes()
    assert len(after) == len(before) and after != before
    for e in places:
        at, end = e["offset"], e["offset"] + e["length"]
        before, after = before[:at] + before[end:].rjust(len(before) - at, b"x"), after[:at] + after[end:].rjust(len(after) - at, b"x")
    assert after == before
    run.qemu_img("check", path)


def test_compression_type_bit(tmp_path):
    """FEATURES 1.026: the incompatible bit is set where the method is not zlib, and only there"""
    for kind, bit, byte in (("zlib", 0, 0), ("zstd", 8, 1)):
        for tool in (run.byre, run.qemu_img):
            path = tmp_path / "x.qcow2"
            words = ("-q", "-f", "qcow2", "-o", f"compression_type={kind}", path, "1M")
            tool("create", *words)
            head = path.read_bytes()[:112]
            assert struct.unpack_from(">Q", head, 72)[0] & 8 == bit and head[104] == byte, (kind, tool)


def test_fill_is_one_transfer(tmp_path):
    """FEATURES 1.050: the rest of a new cluster comes from below, and goes to the disk with the data in one write"""
    peers.need("strace")
    base, path, log = tmp_path / "base", tmp_path / "x.qcow2", tmp_path / "log"
    run.qemu_img("create", "-q", "-f", "raw", base, "1M")
    run.qemu_io(base, "write -P 9 0 1M", fmt="raw")
    run.byre("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    run.run("strace", "-f", "-qq", "-e", "trace=pwrite64,pwritev,pwritev2", "-o", log, run.BYRE, "io", "-c", "write -P 1 68k 4k", path,
            env={"BYRE_BACKEND": "threads"})
    host = [e for e in run.byre("map", "--output=json", path).json if e["depth"] == 0 and e["data"]][0]["offset"]
    run.qemu_io(path, "read -P 9 64k 4k", "read -P 1 68k 4k", "read -P 9 72k 56k")
    data = [line for line in log.read_text().splitlines() if (m := re.search(r", (\d+)(?:, 0)?\)\s+= (\d+)$", line)) and host <= int(m.group(1)) < host + 65536]
    assert len(data) == 1 and data[0].endswith("= 65536"), log.read_text()
