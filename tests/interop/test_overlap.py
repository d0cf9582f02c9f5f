# SPDX-License-Identifier: MIT
"""Mappings that lead into metadata, and tables that lie over one another: no write goes there, the image is marked corrupt, and
whoever watches is told. The peer is given copies of the same files."""
import json
import os
import shutil

import guest
import pytest
from lib import corrupt, images, peers, run

import qcow2ref
from qcow2ref import COPIED, OFFSET_MASK

KINDS = ["l1", "l2", "reftable", "refblock", "snapshots", "old-l1", "old-l2", "bitmaps"]
OPTION = {"l1": "active-l1", "l2": "active-l2", "reftable": "refcount-table", "refblock": "refcount-block", "snapshots": "snapshot-table",
          "old-l1": "inactive-l1", "old-l2": "inactive-l2", "bitmaps": "bitmap-directory"}
CONSTANT = {"l1", "reftable", "snapshots", "bitmaps"}
CACHED = CONSTANT | {"l2", "refblock", "old-l1"}
SETS = {"none": set(), "constant": CONSTANT, "cached": CACHED, "all": set(KINDS)}
GUEST, MARK = 1 << 20, b"\x9e" * 4096


def base(path, cluster_size=65536, compat="1.1"):
    """An image with every kind of metadata; guest offset GUEST is mapped."""
    guest.create("qemu", path, 4 << 20, cluster_size=cluster_size, version=2 if compat == "0.10" else 3)
    run.qemu_io(path, "write -P 1 0 128k", "write -P 2 1M 64k")
    run.qemu_img("snapshot", "-c", "s", path)
    run.qemu_io(path, "write -P 3 0 64k", "write -P 4 1M 64k")
    if compat == "1.1":
        run.qemu_img("bitmap", "--add", "--disable", path, "b")
    return path


def place(editor, kind):
    header = editor.image.header
    old_l1 = editor.get_be64(header.snapshots_off) if header.nb_snapshots else 0
    return {"l1": header.l1_off, "l2": editor.get_be64(editor.l1_entry(0)) & OFFSET_MASK, "reftable": header.reftable_off,
            "refblock": editor.get_be64(header.reftable_off), "snapshots": header.snapshots_off, "old-l1": old_l1,
            "old-l2": editor.get_be64(old_l1) & OFFSET_MASK if old_l1 else 0,
            "bitmaps": editor.get_be64(editor.extension_data(0x23852875) + 16) if kind == "bitmaps" else 0}[kind]


def point_at(path, kind):
    """The mapping of GUEST leads to metadata; returns where that is."""
    with corrupt.Editor(path) as editor:
        victim = place(editor, kind)
        assert victim and victim % editor.image.cluster_size == 0
        editor.patch_l2(GUEST, lambda old: victim | COPIED)
    return victim


def name_of(path, options):
    return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, **options})


def write(tool, path, options, at=GUEST):
    """A write of 4 KiB. True: it was stopped."""
    name, command = name_of(path, options), f"write -P {MARK[0]} {at} 4k"
    done = run.byre("io", "-c", command, name, code=None) if tool == "byre" else run.run(peers.need("qemu-io"), "-c", command, name, code=None)
    assert done.code in (0, 1), done
    assert ("wrote" in done.out + done.err) == (done.code == 0), done
    return done.code == 1


def has_mark(path, at):
    with open(path, "rb") as f:
        f.seek(at)
        return MARK in f.read(65536)


def is_corrupt(path):
    with open(path, "rb") as f:
        return int.from_bytes(f.read(80)[72:], "big") & 2 != 0         # incompatible feature 1


def judge(source, tmp_path, victim, caught, options, tools=("byre", "qemu")):
    for tool in tools:
        path = tmp_path / f"{tool}.qcow2"
        shutil.copy(source, path)
        assert write(tool, path, options) == caught, (tool, options)
        assert not (caught and has_mark(path, victim)), (tool, options)       # what is not caught may be hidden again by a cached table
        assert is_corrupt(path) == caught, (tool, options)


@pytest.mark.parametrize("kind", KINDS)
def test_templates(tmp_path, kind):
    """FEATURES 1.048, 1.111, 1.112, 1.130: each set stops writes into what it lists, and into nothing else, as the peer's does"""
    source = base(tmp_path / "source.qcow2")
    victim = point_at(source, kind)
    judge(source, tmp_path, victim, kind in CACHED, {})
    for template, kinds in SETS.items():
        judge(source, tmp_path, victim, kind in kinds, {"overlap-check": template})


@pytest.mark.parametrize("kind", KINDS)
def test_single_checks(tmp_path, kind):
    """FEATURES 1.112, 1.130: a single check goes over the template, in both directions"""
    source = base(tmp_path / "source.qcow2", cluster_size=4096)
    victim, option = point_at(source, kind), OPTION[kind]
    for caught, options in ((True, {"template": "none", option: True}), (False, {"template": "all", option: False}), (True, {option: True}),
                            (kind in CACHED, {"template": "cached", "main-header": False})):
        judge(source, tmp_path, victim, caught, {"overlap-check": options})
    flat = f"driver=qcow2,file.filename={tmp_path}/byre.qcow2,overlap-check.template=none,overlap-check.{option}=on"
    shutil.copy(source, tmp_path / "byre.qcow2")
    assert run.byre("io", "-c", f"write {GUEST} 4k", "--image-opts", flat, code=1) and is_corrupt(tmp_path / "byre.qcow2")


def test_contradicting_words(tmp_path):
    """FEATURES 1.130: two templates that differ are refused, as by the peer"""
    path = base(tmp_path / "x.qcow2")
    flat = f"driver=qcow2,file.filename={path},overlap-check=none,overlap-check.template=all"
    assert "overlap-check" in run.byre("io", "-c", "read 0 4k", "--image-opts", flat, code=1).err
    run.run(peers.need("qemu-io"), "-c", "read 0 4k", "--image-opts", flat, code=1)


@pytest.mark.parametrize("kind", ["l2", "refblock", "reftable"])
def test_version_two(tmp_path, kind):
    """FEATURES 1.113: version 2 has no place for the mark; the write is stopped all the same"""
    source = base(tmp_path / "source.qcow2", compat="0.10")
    victim = point_at(source, kind)
    for tool in ("byre", "qemu"):
        path = tmp_path / f"{tool}.qcow2"
        shutil.copy(source, path)
        assert write(tool, path, {}) and not has_mark(path, victim)


TABLES = {
    "l2-over-l1": lambda e: e.patch_l1(0, lambda old: place(e, "l1") | COPIED),
    "l2-over-refblock": lambda e: e.patch_l1(0, lambda old: place(e, "refblock") | COPIED),
    "l2-over-reftable": lambda e: e.patch_l1(0, lambda old: place(e, "reftable") | COPIED),
    "l2-over-snapshots": lambda e: e.patch_l1(0, lambda old: place(e, "snapshots") | COPIED),
    "refblock-over-l1": lambda e: e.be64(e.image.header.reftable_off, place(e, "l1")),
    "refblock-over-l2": lambda e: e.be64(e.image.header.reftable_off, place(e, "l2")),
    "l2-not-counted": lambda e: e.set_refcount(place(e, "l2"), 0),
    "l1-not-counted": lambda e: e.set_refcount(place(e, "l1"), 0),
    "refblock-not-counted": lambda e: e.set_refcount(place(e, "refblock"), 0),
    "header-not-counted": lambda e: e.set_refcount(0, 0),
}
# clusters that nothing may be written to are passed over by us, where the peer gives up
HARMLESS = {"l1-not-counted", "header-not-counted"}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_over_others(tmp_path, name):
    """FEATURES 1.111: tables that lie over others, and tables whose clusters look free: nothing is written over them"""
    source = base(tmp_path / "source.qcow2")
    with corrupt.Editor(source) as editor:
        victims = {kind: place(editor, kind) for kind in KINDS}
        TABLES[name](editor)
    kept = {kind: os.pread(os.open(source, os.O_RDONLY), 65536, at) for kind, at in victims.items() if kind in CONSTANT - {"bitmaps"} or kind == "old-l1"}
    for tool in ("byre", "qemu"):
        path = tmp_path / f"{tool}.qcow2"
        shutil.copy(source, path)
        commands = [f"write -P {MARK[0]} {at}k 64k" for at in range(2048, 3072, 64)]
        done = (run.byre("io", *sum((["-c", c] for c in commands), []), path, code=None) if tool == "byre"
                else run.run(peers.need("qemu-io"), *sum((["-c", c] for c in commands), []), path, code=None))
        assert done.code in (0, 1), done
        assert is_corrupt(path) == (tool == "qemu" or name not in HARMLESS), done
        with open(path, "rb") as f:
            assert MARK not in f.read(65536), "guest data in the header"
        for at in victims.values():
            assert not has_mark(path, at), (tool, name)
        if tool == "byre":
            with open(path, "rb") as f:
                for kind, data in kept.items():
                    f.seek(victims[kind])
                    assert f.read(65536)[64:] == data[64:] or kind == "l1", (name, kind)


def test_marked_image(tmp_path):
    """FEATURES 1.024: refused for writing by both, read by both, mended and unmarked by check"""
    path = base(tmp_path / "x.qcow2")
    point_at(path, "refblock")
    assert write("byre", path, {}) and is_corrupt(path)
    assert run.qemu_img("info", "--output=json", path).json["format-specific"]["data"]["corrupt"] is True
    before = path.read_bytes()
    assert "corrupt" in run.byre("io", "-c", "write 0 4k", path, code=1).err
    run.run(peers.need("qemu-io"), "-c", "write 0 4k", path, code=1)
    assert run.byre("info", "--output=json", path).json["format-specific"]["data"]["corrupt"] is True
    run.byre("io", "-r", "-c", "read -P 3 0 64k", path)
    assert path.read_bytes() == before
    run.byre("check", "-r", "all", path, code=None)
    assert not is_corrupt(path)
    run.byre("check", path)
    run.qemu_img("check", path)
    run.byre("io", "-c", "read -P 3 0 64k", "-c", f"write -P 7 {GUEST} 64k", "-c", f"read -P 7 {GUEST} 64k", path)
    run.qemu_img("check", path)


def test_reads_of_damage(tmp_path):
    """FEATURES 1.113: on a read-only image damage is told of once and changes nothing; on a writable one it is the end, as with the peer"""
    source = base(tmp_path / "source.qcow2")
    with corrupt.Editor(source) as editor:
        editor.patch_l2(GUEST, lambda old: 0x50200 | COPIED)
    before = source.read_bytes()
    for command in ([run.BYRE, "io"], [peers.need("qemu-io")]):
        done = run.run(*command, "-r", "-c", f"read {GUEST} 4k", "-c", f"read {GUEST} 4k", "-c", "read -P 3 0 4k", source, code=1)
        text = done.out + done.err
        assert text.count("read failed") == 2 and text.count("read 4096/4096") == 1, done
        assert sum("corrupt" in line or "damaged" in line for line in text.splitlines()) == 1, done
        assert source.read_bytes() == before
    for i, command in enumerate(([run.BYRE, "io"], [peers.need("qemu-io")])):
        path = tmp_path / f"{i}.qcow2"
        shutil.copy(source, path)
        done = run.run(*command, "-c", f"read {GUEST} 4k", "-c", "read 0 4k", "-c", "write 2M 4k", path, code=1)
        assert (done.out + done.err).count(" failed: ") == 3 + (i == 0) and is_corrupt(path), done


@pytest.mark.parametrize("cluster_size,size", [(65536, 1 << 40), (512, 64 << 20)])
def test_many_tables(tmp_path, cluster_size, size):
    """FEATURES 1.111: also the last of many tables is known, and so are those made a moment ago"""
    path = tmp_path / "x.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", path, size)
    span = cluster_size // 8 * cluster_size
    spots = [i * span for i in range(0, size // span, max(1, size // span // 500))]
    for i in range(0, len(spots), 100):
        run.byre("io", *sum((["-c", f"write -q -P 1 {at} {cluster_size}"] for at in spots[i:i + 100]), []), path)
    images.assert_sound(path)
    with corrupt.Editor(path) as editor:
        victim = editor.get_be64(editor.l1_entry(spots[-1] // span)) & OFFSET_MASK
        editor.patch_l2(0, lambda old: victim | COPIED)
        kept = os.pread(editor.fd, cluster_size, victim)
    assert run.byre("io", "-c", "write -P 9 0 512", path, code=1) and is_corrupt(path)
    with open(path, "rb") as f:
        f.seek(victim)
        assert f.read(cluster_size) == kept
