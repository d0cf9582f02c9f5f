# SPDX-License-Identifier: MIT
"""Internal snapshots on random images, by byre and by the peer in turns: each finds the other's sound, and every snapshot keeps
what the disk held, to the byte (FEATURES 1.085 to 1.095, 1.043, 1.045)."""
import os
import struct

import guest
import pytest
from guest import Guest, seed_of
from lib import bitmaps, images, run


class Kept(Guest):
    """A guest disk that remembers what each snapshot holds."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.snapshots = {}

    def make(self, tool, image, name):
        guest.program(tool)("snapshot", "-c", name, image)
        self.snapshots[name] = bytes(self.shadow)

    def apply(self, tool, image, name):
        guest.program(tool)("snapshot", "-a", name, image)
        self.set_size(len(self.snapshots[name]))
        self.shadow = bytearray(self.snapshots[name])

    def delete(self, tool, image, name):
        guest.program(tool)("snapshot", "-d", name, image)
        del self.snapshots[name]

    def any_step(self, tool, image, most=3):
        """One operation on a snapshot, by chance."""
        names, kind = sorted(self.snapshots), self.rng.randrange(4)
        if not names or (kind < 2 and len(names) < most):
            self.make(tool, image, f"s{self.rng.randrange(1 << 30)}")
        elif kind == 2:
            self.apply(tool, image, self.rng.choice(names))
        else:
            self.delete(tool, image, self.rng.choice(names))

    def judge_snapshots(self, image, folder):
        """FEATURES 1.091, G.006: each snapshot, as byre shows it, has the size and the content of its time; the peer agrees where it
        can (it shows the size that the disk has now)."""
        raw, want = os.path.join(folder, "seen.raw"), os.path.join(folder, "want.raw")
        for name, content in self.snapshots.items():
            run.byre("convert", "-l", name, "-O", "raw", image, raw)
            with open(raw, "rb") as f:
                assert f.read() == content, f"byre shows snapshot {name} otherwise"
            if len(content) == self.size:
                with open(want, "wb") as f:
                    f.write(content)
                run.qemu_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", image, raw)
                run.qemu_img("compare", "-f", "raw", "-F", "raw", raw, want)
        assert names(image) == sorted(self.snapshots)


def names(image):
    return sorted(s["name"] for s in run.qemu_img("info", "--output=json", image).json.get("snapshots", []))


GEOMETRIES = [(512, 3, 16), (512, 3, 64), (1024, 3, 4), (4096, 3, 8), (4096, 2, 16), (65536, 3, 16), (65536, 3, 32), (65536, 2, 16), (1 << 21, 3, 16)]


@pytest.mark.parametrize("cluster_size,version,bits", GEOMETRIES)
@pytest.mark.parametrize("turns", ["byre", "both"])
def test_random(tmp_path, cluster_size, version, bits, turns):
    """FEATURES 1.086, 1.088, 1.089, 1.045: creates, applies and deletes between random writes"""
    seed, image = seed_of(cluster_size, version, bits, turns), tmp_path / "disk.qcow2"
    options = {"refcount_bits": bits} if version == 3 else {}
    disk = Kept(seed, guest.disk_size(cluster_size), cluster_size, version)
    guest.create(guest.TOOLS[seed & 1], image, disk.size, version=version, cluster_size=cluster_size, **options)
    for turn in range(10):
        tool = "byre" if turns == "byre" or disk.rng.randrange(2) else "qemu"
        disk.run(tool, image, operations=20, batch=20)
        disk.any_step("byre" if turns == "byre" or disk.rng.randrange(2) else "qemu", image)
        images.peer_check(image)
        run.byre("check", image)
        if turn % 3 == 2:
            disk.judge_snapshots(image, tmp_path)
    disk.run("qemu", image, operations=20, batch=20)
    disk.judge_snapshots(image, tmp_path)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("cluster_size", [16384, 65536, 1 << 20])
def test_extended(tmp_path, cluster_size):
    """FEATURES 1.040, 1.086: entries with subclusters: writes of parts of a cluster, between snapshots"""
    seed, image = seed_of("extended", cluster_size), tmp_path / "disk.qcow2"
    disk = Kept(seed, guest.disk_size(cluster_size), cluster_size)
    disk.grain = cluster_size // 32                                   # what a discard may clear
    guest.create("byre", image, disk.size, cluster_size=cluster_size, extended_l2=True)
    for turn in range(10):
        disk.run("byre", image, operations=20, batch=20)
        disk.any_step(guest.TOOLS[turn & 1], image)
        images.peer_check(image)
        run.byre("check", image)
        if turn % 3 == 2:
            disk.judge_snapshots(image, tmp_path)
    disk.judge_snapshots(image, tmp_path)


@pytest.mark.parametrize("tool", guest.TOOLS)
def test_compressed_by_byre(tmp_path, tool):
    """FEATURES 1.086, 1.039: compressed clusters that share host clusters, written between snapshots; the host cluster that is being filled
    belongs to several trees"""
    image = tmp_path / "disk.qcow2"
    disk = Kept(79, 3 << 20, 65536, weights={"compressed": 25, "write": 3, "rewrite": 2})
    guest.create("byre", image, disk.size)
    for turn in range(10):
        disk.run("byre", image, operations=15, batch=15)
        disk.any_step(tool if turn & 1 else "byre", image)
        images.peer_check(image)
        run.byre("check", image)
    disk.judge_snapshots(image, tmp_path)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_sizes(tmp_path, cluster_size):
    """FEATURES 1.088, 1.091, G.006, G.008: the disk grows and shrinks between snapshots; a snapshot keeps its own size, and gives it back"""
    image = tmp_path / "disk.qcow2"
    disk = Kept(seed_of("sizes", cluster_size), guest.disk_size(cluster_size), cluster_size)
    guest.create("byre", image, disk.size, cluster_size=cluster_size)
    for turn in range(8):
        disk.run("byre", image, operations=15, batch=15)
        if turn % 2:
            disk.any_step("byre", image)
        else:
            disk.make("byre", image, f"t{turn}")
        disk.judge_snapshots(image, tmp_path)
        disk.resize("byre", image, disk.size + (9 << 20) if turn == 3 else None)
        images.peer_check(image)
    disk.judge_snapshots(image, tmp_path)
    disk.judge(image, tmp_path)


def test_backing_and_compressed(tmp_path):
    """FEATURES 1.086: an overlay with compressed clusters; what shines through belongs to the snapshot too"""
    base, image = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    content = images.pattern_bytes(5, 3 << 20)
    base.write_bytes(content)
    disk = Kept(77, 3 << 20, 65536, backing=content, weights={"compressed": 10})
    guest.create("byre", image, disk.size, backing=base, backing_fmt="raw")
    disk.run("qemu", image, operations=30, batch=30)
    for turn in range(8):
        disk.weights["compressed"] = 0
        disk.any_step(guest.TOOLS[turn & 1], image)
        disk.run("byre", image, operations=20, batch=20)
        images.peer_check(image)
        disk.judge_snapshots(image, tmp_path)
    for name in list(disk.snapshots):
        disk.delete("byre", image, name)
    disk.judge(image, tmp_path)


def test_with_bitmaps(tmp_path):
    """FEATURES 1.088, 1.086, G.007: creating and deleting leave persistent bitmaps alone; applying makes all of them dirty"""
    image = tmp_path / "disk.qcow2"
    disk = Kept(78, 3 << 20, 65536)
    guest.create("qemu", image, disk.size)
    disk.run("qemu", image, operations=10, batch=10)
    disk.make("byre", image, "before")
    run.qemu_img("bitmap", "--add", "-f", "qcow2", image, "b0")
    run.qemu_img("bitmap", "--add", "--disable", "-f", "qcow2", image, "b1")
    disk.run("qemu", image, operations=10, batch=10)
    disk.make("byre", image, "after")
    images.peer_check(image)
    run.byre("resize", image, "4M")
    disk.apply("byre", image, "before")
    images.peer_check(image)
    for name in ("b0", "b1"):
        with bitmaps.qemu_nbd(image, name, tmp_path) as handle:
            assert bitmaps.dirty_of(handle, name, 3 << 20) == [(0, 3 << 20)], name
    disk.delete("byre", image, "before")
    assert [b["name"] for b in run.qemu_img("info", "--output=json", image).json["format-specific"]["data"]["bitmaps"]] == ["b0", "b1"]
    disk.judge_snapshots(image, tmp_path)
    disk.judge(image, tmp_path)


def test_bitmap_that_cannot_follow(tmp_path):
    """FEATURES 1.107, G.007, G.016: a disk of a size that a bitmap cannot have is refused before anything changes, by apply and by resize"""
    image = tmp_path / "disk.qcow2"
    guest.create("byre", image, "3T")
    run.byre("snapshot", "-c", "large", image)
    run.byre("resize", "--shrink", image, "1M")
    guest.io("byre", image, "write -P 7 0 64k")
    run.byre("bitmap", "--add", "-g", "512", image, "fine")
    before = image.read_bytes()
    done = run.byre("snapshot", "-a", "large", image, code=1)
    assert "'fine'" in done.err and str(3 << 40) in done.err
    assert "'fine'" in run.byre("resize", image, "3T", code=1).err
    assert image.read_bytes() == before
    images.peer_check(image)
    with bitmaps.qemu_nbd(image, "fine", tmp_path) as handle:
        assert bitmaps.dirty_of(handle, "fine", 1 << 20) == []
    run.byre("bitmap", "--remove", image, "fine")
    run.byre("snapshot", "-a", "large", image)
    assert run.qemu_img("info", "--output=json", image).json["virtual-size"] == 3 << 40
    images.peer_check(image)


@pytest.mark.parametrize("bits,fit", [(1, 0), (2, 2), (4, 14)])
def test_narrow_counts(tmp_path, bits, fit):
    """FEATURES 1.043: the snapshot that a refcount width cannot count is refused with a clear error, and nothing has changed"""
    image = tmp_path / "disk.qcow2"
    guest.create("byre", image, "4M", cluster_size=4096, refcount_bits=bits)
    guest.io("byre", image, "write -P 7 0 1M")
    for n in range(fit):
        run.byre("snapshot", "-c", f"s{n}", image)
        images.peer_check(image)
    before = image.read_bytes()
    done = run.byre("snapshot", "-c", "one-too-many", image, code=1)
    assert f"refcount_bits={bits}" in done.err and "owners" in done.err
    after = image.read_bytes()
    assert after[:88] == before[:88] and after[4096:len(before)] == before[4096:] and not any(after[len(before):])
    images.assert_sound(image)
    assert len(names(image)) == fit
    guest.io("byre", image, "read -P 7 0 1M", "write -P 8 0 1M")
    if fit:
        run.byre("snapshot", "-a", "s0", image)
        guest.io("qemu", image, "read -P 7 0 1M")
    images.assert_sound(image)


def test_one_bit_empty(tmp_path):
    """FEATURES 1.043: an empty image has nothing to count twice"""
    image = tmp_path / "disk.qcow2"
    guest.create("qemu", image, "4M", refcount_bits=1)
    run.byre("snapshot", "-c", "empty", image)
    images.assert_sound(image)
    guest.io("byre", image, "write -P 7 0 1M")
    run.byre("snapshot", "-a", "empty", image)
    guest.io("qemu", image, "read -P 0 0 4M")
    images.assert_sound(image)


def test_ids_and_names(tmp_path):
    """FEATURES 1.087, 1.090, G.025: numbers that are names too. -a and -l take an id first, -d a name first."""
    image = tmp_path / "disk.qcow2"
    guest.create("qemu", image, "1M")
    for value, name in enumerate(["2", "1", "1", "x"], 1):          # ids 1 to 4
        guest.io("byre", image, f"write -P {value} 0 64k")
        run.byre("snapshot", "-c", name, image)
    assert [(s["id"], s["name"]) for s in run.qemu_img("info", "--output=json", image).json["snapshots"]] == [("1", "2"), ("2", "1"), ("3", "1"), ("4", "x")]

    def holds(pick, value):
        for program in (run.byre, run.qemu_img):
            program("convert", "-l", pick, "-O", "raw", image, tmp_path / "out.raw")
            assert (tmp_path / "out.raw").read_bytes()[:65536] == bytes([value]) * 65536, (pick, program)

    holds("1", 1)
    holds("2", 2)
    holds("x", 4)
    holds("snapshot.id=3", 3)
    holds("snapshot.name=1", 2)
    holds("snapshot.id=3,snapshot.name=1", 3)
    for program in (run.byre, run.qemu_img):
        assert program("convert", "-l", "snapshot.id=1,snapshot.name=1", "-O", "raw", image, tmp_path / "out.raw", code=1)
        assert "snapshot.bogus" in program("convert", "-l", "snapshot.bogus=1", "-O", "raw", image, tmp_path / "out.raw", code=1).err
    run.byre("snapshot", "-a", "1", image)
    guest.io("qemu", image, "read -P 1 0 64k")
    run.byre("snapshot", "-d", "1", image)                            # the name: id 2
    assert [s["id"] for s in run.qemu_img("info", "--output=json", image).json["snapshots"]] == ["1", "3", "4"]
    run.byre("snapshot", "-d", "4", image)                            # no such name: the id
    run.byre("snapshot", "-c", "next", image)
    assert [s["id"] for s in run.qemu_img("info", "--output=json", image).json["snapshots"]] == ["1", "3", "4"]
    images.assert_sound(image)


def table_of(image):
    """(offset of the table, its entries as bytes) of an image with extra data in every entry."""
    data = image.read_bytes()
    count, at = struct.unpack_from(">IQ", data, 60)
    start, entries = at, []
    for _ in range(count):
        _, _, id_len, name_len, _, _, _, _, extra = struct.unpack_from(">QIHHIIQII", data, at)
        size = 40 + extra + id_len + name_len
        entries.append(data[at:at + size])
        at += (size + 7) // 8 * 8
    return start, entries


def test_fields_survive(tmp_path):
    """FEATURES 1.085, 1.086, 1.092, 1.094: VM state size, VM clock, icount and extra data that nobody knows outlive a new table"""
    image = tmp_path / "disk.qcow2"
    guest.create("qemu", image, "1M")
    run.qemu_img("snapshot", "-c", "old", image)
    at, entries = table_of(image)
    assert len(entries) == 1
    l1_off, l1_size, _, _, sec, nsec, _, _, _ = struct.unpack_from(">QIHHIIQII", entries[0])
    extra = struct.pack(">QQQ", 5 << 32, 1 << 20, 4711) + b"beyond what anybody knows"
    entry = struct.pack(">QIHHIIQII", l1_off, l1_size, 1, 3, sec, nsec, 123456789, 0xffffffff, len(extra)) + extra + b"1old"
    with open(image, "r+b") as f:
        f.seek(at)
        f.write(entry)
    run.byre("snapshot", "-c", "new", image)
    assert table_of(image)[1][0] == entry
    run.byre("snapshot", "-d", "new", image)
    assert table_of(image)[1] == [entry]
    seen = run.qemu_img("info", "--output=json", image).json["snapshots"][0]
    assert seen["vm-state-size"] == 5 << 32 and seen["icount"] == 4711 and seen["vm-clock-nsec"] == 123456789
    assert run.byre("info", "--output=json", image).json["snapshots"] == [seen]


def test_vm_state(tmp_path):
    """FEATURES 1.092: a snapshot with a VM's state, as the peer's qemu-io -b writes it: applying and deleting give its space back"""
    image = tmp_path / "disk.qcow2"
    guest.create("qemu", image, "4M")
    guest.io("qemu", image, "write -P 1 0 1M", "write -b -P 9 0 1M")
    run.qemu_img("snapshot", "-c", "vm", image)
    guest.io("qemu", image, "write -P 2 0 1M", "read -b -P 9 0 1M")
    run.byre("snapshot", "-c", "plain", image)
    images.peer_check(image)
    run.byre("snapshot", "-a", "vm", image)
    guest.io("qemu", image, "read -P 1 0 1M", "read -P 0 1M 3M")
    images.peer_check(image)
    run.byre("check", image)
    for name in ("vm", "plain"):
        run.byre("snapshot", "-d", name, image)
        images.assert_sound(image)
    guest.io("qemu", image, "read -P 1 0 1M")


def test_without_disk_size(tmp_path):
    """FEATURES 1.093: an old version 2 entry without extra data: its disk has the size of the image"""
    image = tmp_path / "disk.qcow2"
    guest.create("qemu", image, "1M", version=2)
    guest.io("qemu", image, "write -P 1 0 1M")
    run.qemu_img("snapshot", "-c", "old", image)
    at, entries = table_of(image)
    head, extra = entries[0][:36], struct.unpack_from(">I", entries[0], 36)[0]
    with open(image, "r+b") as f:
        f.seek(at)
        f.write(head + struct.pack(">I", 0) + entries[0][40 + extra:] + bytes(extra))
    guest.io("byre", image, "write -P 2 0 1M")
    assert run.byre("convert", "-l", "old", "-O", "raw", image, tmp_path / "out.raw").code == 0
    assert (tmp_path / "out.raw").read_bytes() == bytes([1]) * (1 << 20)
    run.byre("snapshot", "-a", "old", image)
    guest.io("qemu", image, "read -P 1 0 1M")
    images.assert_sound(image)


def test_space_comes_back(tmp_path):
    """FEATURES 1.089: deleting a snapshot gives the file's blocks back, and the clusters are used again"""
    image = tmp_path / "disk.qcow2"
    guest.create("byre", image, "64M")
    guest.io("byre", image, "write -P 1 0 32M")
    run.byre("snapshot", "-c", "s", image)
    guest.io("byre", image, "write -P 2 0 32M")
    full, length = os.stat(image).st_blocks * 512, os.stat(image).st_size
    run.byre("snapshot", "-d", "s", image)
    assert os.stat(image).st_blocks * 512 < full - (28 << 20)
    guest.io("byre", image, "write -P 3 32M 16M")
    assert os.stat(image).st_size <= length + (1 << 20)
    images.assert_sound(image)
    guest.io("qemu", image, "read -P 2 0 32M", "read -P 3 32M 16M")


@pytest.mark.parametrize("damage", ["count_low", "l2_outside", "l1_outside", "l2_is_table"])
@pytest.mark.parametrize("what", ["-c", "-a", "-d"])
def test_damaged(tmp_path, what, damage):
    """1.111: an image whose counts or tables cannot be right is refused before anything is written"""
    image = tmp_path / "disk.qcow2"
    guest.create("qemu", image, "1M")
    guest.io("qemu", image, "write -P 1 0 512k")
    run.qemu_img("snapshot", "-c", "s", image)
    if what == "-a":                                                  # tables that both have are not looked at
        guest.io("qemu", image, "write -P 2 0 64k")
    data = bytearray(image.read_bytes())
    rt = struct.unpack_from(">Q", data, 48)[0]
    at, entries = table_of(image)
    its_l1 = struct.unpack_from(">Q", entries[0])[0]
    l2 = struct.unpack_from(">Q", data, its_l1)[0] & 0x00fffffffffffe00
    if damage == "count_low":
        host = struct.unpack_from(">Q", data, l2)[0] & 0x00fffffffffffe00
        struct.pack_into(">H", data, (struct.unpack_from(">Q", data, rt)[0]) + host // 65536 * 2, 0)
    elif damage == "l2_outside":
        struct.pack_into(">Q", data, l2, 1 << 40)
    elif damage == "l1_outside" and what == "-c":
        struct.pack_into(">Q", data, struct.unpack_from(">Q", data, 40)[0], 1 << 40)
    elif damage == "l1_outside":
        struct.pack_into(">Q", data, at, 1 << 40)
    else:
        struct.pack_into(">Q", data, l2, rt)
    image.write_bytes(data)
    done = run.byre("snapshot", what, "t" if what == "-c" else "s", image, code=1)
    if damage == "l1_outside" and what == "-a":
        assert "snapshot" in done.err
    assert done.err.count("\n") == 1
    after = bytearray(image.read_bytes())
    after[72:80], after[88:96] = data[72:80], data[88:96]            # the corrupt bit; the record of the frontier
    assert after[:512] == data[:512] and after[l2:l2 + 65536] == data[l2:l2 + 65536]
