# SPDX-License-Identifier: MIT
"""Persistent dirty bitmaps, both ways: what byre records the peer reads bit for bit, and the reverse; what a killed byre leaves;
damaged entries; limits."""
import os
import random
import shutil
import signal
import subprocess
import time
import zlib

import pytest
from lib import bitmaps, images, peers, run
from lib.bitmaps import granules, listed, peer_map

import qcow2ref

MIB = 1 << 20


def io(tool, image, commands):
    words = sum((["-c", c] for c in commands), [])
    if tool == "byre":
        done = run.byre("io", "-d", "unmap", "-f", "qcow2", *words, image)
    else:
        done = run.run(peers.need("qemu-io"), "-d", "unmap", "-f", "qcow2", *words, image)
    assert "failed" not in done.out + done.err, done
    return done


def program(tool):
    return run.byre if tool == "byre" else run.qemu_img


def random_commands(rng, size, count):
    """(commands, ranges that they touch)"""
    commands, touched = [], []
    for _ in range(count):
        kind = rng.choice(["write", "write", "write", "write -z", "write -zu", "discard"])
        length = rng.choice([512, 1024, 4096, 65536, rng.randrange(1, 600) * 512])
        if kind == "discard":
            length = max(length, 4 * MIB)                  # the peer leaves out discards that free nothing
        off = rng.randrange(0, (size - length) // 512) * 512
        if kind == "discard":
            off = off // MIB * MIB
        commands.append(f"{kind} {off} {length}")
        touched.append((off, length))
    return commands, touched


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 * MIB])
@pytest.mark.parametrize("granularity", [512, 4096, 65536, 8 * MIB])
def test_recorded(tmp_path, cluster_size, granularity):
    """FEATURES 1.096, 1.098, 1.099, 1.101, 9.076, 9.084: writes by byre and by the peer in turns, exact to the granule"""
    image, size = tmp_path / "d.qcow2", 40 * MIB + 512
    rng = random.Random(zlib.crc32(repr((cluster_size, granularity)).encode()))
    images.create(image, size, tool=rng.choice(["qemu-img", "byre"]), cluster_size=cluster_size)
    program(rng.choice(["byre", "qemu"]))("bitmap", "--add", "-g", granularity, image, "b0")
    touched = []
    for turn in range(4):
        tool = ("byre", "qemu")[turn % 2]
        commands, ranges = random_commands(rng, size, 12)
        io(tool, image, commands)
        touched += ranges
        images.assert_sound(image)
        assert peer_map(image, "b0", tmp_path) == granules(touched, granularity, size), turn
    assert listed(image) == listed(image, run.qemu_img) == [("b0", granularity, ["auto"])]


@pytest.mark.parametrize("seed", range(6))
def test_actions_in_turns(tmp_path, seed):
    """FEATURES 1.104, 1.105, 5.068, 9.078, 9.082: every action by either tool, against a model, after each step"""
    image, size = tmp_path / "d.qcow2", 24 * MIB
    rng = random.Random(seed)
    images.create(image, size, tool=("byre", "qemu-img")[seed % 2], cluster_size=rng.choice([512, 4096, 65536]))
    model = {}                                             # name: [granularity, enabled, ranges]
    for _ in range(14):
        tool = rng.choice(["byre", "qemu"])
        commands, ranges = random_commands(rng, size, 3)
        io(rng.choice(["byre", "qemu"]), image, commands)
        for b in model.values():
            if b[1]:
                b[2] += ranges
        action = rng.choice(["add", "add", "remove", "clear", "enable", "disable", "merge"])
        name = f"b{len(model)}" if action == "add" else rng.choice(list(model) or [""])
        if action != "add" and not model:
            continue
        if action == "add":
            model[name] = [rng.choice([512, 4096, 65536, MIB]), True, []]
            if name in [n for n, _, _ in listed(image)]:
                continue
            program(tool)("bitmap", "--add", "-g", model[name][0], image, name)
        elif action == "merge":
            source = rng.choice(list(model))
            program(tool)("bitmap", "--merge", source, image, name)
            model[name][2] += [(a, b - a) for a, b in granules(model[source][2], model[source][0], size)]
        else:
            program(tool)("bitmap", f"--{action}", image, name)
            if action == "remove":
                del model[name]
            elif action == "clear":
                model[name][2] = []
            else:
                model[name][1] = action == "enable"
        images.assert_sound(image)
        for n, (granularity, enabled, touched) in model.items():
            assert peer_map(image, n, tmp_path) == granules(touched, granularity, size), (action, n)
        assert sorted(listed(image)) == sorted((n, b[0], ["auto"] if b[1] else []) for n, b in model.items())
        assert listed(image) == listed(image, run.qemu_img)


def test_merge_from_another_image(tmp_path):
    """FEATURES 5.068, 1.105: -b, -F; sizes must match"""
    a, b, c = (tmp_path / f"{n}.qcow2" for n in "abc")
    for path, size in ((a, 8 * MIB), (b, 8 * MIB), (c, 9 * MIB)):
        images.create(path, size, tool="byre")
        run.byre("bitmap", "--add", path, "b")
    io("byre", b, ["write 1M 64k", "write 7M 64k"])
    run.byre("bitmap", "--merge", "b", "-b", b, "-F", "qcow2", a, "b")
    assert peer_map(a, "b", tmp_path) == [(MIB, MIB + 65536), (7 * MIB, 7 * MIB + 65536)]
    run.byre("bitmap", "--merge", "b", "-b", c, a, "b", code=1)
    assert peer_map(a, "b", tmp_path) == [(MIB, MIB + 65536), (7 * MIB, 7 * MIB + 65536)]
    images.assert_sound(a)


@pytest.mark.parametrize("tool", ["byre", "qemu"])
def test_resize(tmp_path, tool):
    """FEATURES 1.107, 9.085, G.016: grows and shrinks with the disk, also a disabled one; new space is clean"""
    image = tmp_path / "d.qcow2"
    images.create(image, 16 * MIB, tool="qemu-img", cluster_size=512)
    program(tool)("bitmap", "--add", "-g", 512, image, "b")
    io("byre", image, ["write 15M 1M", "write 0 512"])
    program(tool)("bitmap", "--add", "--disable", "--merge", "b", "-g", 4096, image, "frozen")
    run.byre("resize", image, 40 * MIB)
    images.assert_sound(image)
    assert peer_map(image, "b", tmp_path) == [(0, 512), (15 * MIB, 16 * MIB)]
    io("byre", image, ["write 39M 4k"])
    assert peer_map(image, "b", tmp_path) == [(0, 512), (15 * MIB, 16 * MIB), (39 * MIB, 39 * MIB + 4096)]
    run.byre("resize", "--shrink", image, 15 * MIB + 1024)
    images.assert_sound(image)
    assert peer_map(image, "b", tmp_path) == [(0, 512), (15 * MIB, 15 * MIB + 1024)]
    assert peer_map(image, "frozen", tmp_path) == [(0, 4096), (15 * MIB, 15 * MIB + 1024)]
    assert [n for n, _, _ in listed(image)] == ["b", "frozen"]


@pytest.mark.parametrize("tool", ["byre", "qemu"])
def test_resized_by_amend(tmp_path, tool):
    """FEATURES 1.107, 1.141: a size that amend sets is followed as well, together with another width of the counts"""
    image = tmp_path / "d.qcow2"
    images.create(image, 16 * MIB, tool="qemu-img", cluster_size=512)
    program(tool)("bitmap", "--add", "-g", 512, image, "b")
    io("byre", image, ["write 15M 1M", "write 0 512"])
    run.byre("amend", "-f", "qcow2", "-o", f"size={40 * MIB},refcount_bits=32", image)
    images.assert_sound(image)
    io("byre", image, ["write 39M 4k"])
    assert peer_map(image, "b", tmp_path) == [(0, 512), (15 * MIB, 16 * MIB), (39 * MIB, 39 * MIB + 4096)]
    run.byre("amend", "-f", "qcow2", "-o", f"size={15 * MIB + 1024}", image)
    images.assert_sound(image)
    assert peer_map(image, "b", tmp_path) == [(0, 512), (15 * MIB, 15 * MIB + 1024)]


def test_version_2(tmp_path):
    """FEATURES 1.108: refused, and nothing is changed"""
    image = tmp_path / "v2.qcow2"
    images.create(image, MIB, compat="0.10")
    before = image.read_bytes()
    assert "version 2" in run.byre("bitmap", "--add", image, "b", code=1).err
    assert image.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"cluster_size": 4096}], ids=str)
@pytest.mark.parametrize("name_len", [0, 40, 300])
def test_first_bitmap_of_any_header(tmp_path, options, name_len):
    """FEATURES 1.016, 1.019: a backing name that is in the way moves; where there is no room nothing is changed"""
    image, backing = tmp_path / "d.qcow2", "b" * name_len if name_len < 256 else "x/" * 100 + "b" * (name_len - 200)
    kwargs = {"backing": backing, "backing_fmt": "raw", "unchecked": True} if name_len else {}
    images.create(image, MIB, **options, **kwargs)
    before = image.read_bytes()
    done = run.byre("bitmap", "--add", image, "b", code=(0, 1)) if not name_len else run.byre(
        "bitmap", "--add", "--image-opts", f"driver=qcow2,file.filename={image},backing=", image, code=None)
    if name_len:
        done = run.byre("bitmap", "--add", "json:" + '{"driver":"qcow2","file":{"driver":"file","filename":"%s"},"backing":null}' % image, "b", code=(0, 1))
    if done.code:
        assert options.get("cluster_size") == 512 and name_len == 300 and "no room" in done.err
        assert image.read_bytes() == before
        return
    info = run.qemu_img("info", "--output=json", image).json
    assert [b["name"] for b in info["format-specific"]["data"]["bitmaps"]] == ["b"]
    assert info.get("backing-filename") == (backing if name_len else None)
    run.qemu_img("bitmap", "--remove", "json:" + '{"driver":"qcow2","file":{"driver":"file","filename":"%s"},"backing":null}' % image, "b")


def test_autoclear_lost(tmp_path):
    """FEATURES 1.031, 1.102: a writer that does not know bitmaps has been there: they are not trusted, and a new one can be made"""
    image = tmp_path / "d.qcow2"
    images.create(image, 8 * MIB, tool="byre")
    run.byre("bitmap", "--add", image, "b")
    with open(image, "r+b") as f:
        f.seek(95)
        f.write(b"\0")
    assert listed(image) == []
    assert run.byre("check", image, code=3).out.count("leak") >= 1
    io("byre", image, ["write 0 64k"])
    assert listed(image) == []
    run.byre("bitmap", "--add", image, "b")
    run.byre("check", "-r", "all", image)
    images.assert_sound(image)
    assert peer_map(image, "b", tmp_path) == []


# ---- crashes ----

def killed_while_writing(image, commands, env=None):
    """byre io is killed when it has answered all commands and before it closes."""
    p = subprocess.Popen([run.BYRE, "io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, env={**os.environ, **(env or {})})
    p.stdin.write("".join(c + "\n" for c in commands) + "flush\nlength\n")
    p.stdin.flush()
    out = ""
    deadline = time.time() + 60
    while "length" not in out and out.count("ops;") < len(commands) and time.time() < deadline:
        out += p.stdout.readline()
    p.send_signal(signal.SIGKILL)
    p.wait()
    images.wait_unlocked(image)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_killed(tmp_path, seed):
    """FEATURES 1.097, 1.100, G.014: after kill -9 other programs see it in use; with byre it goes on as a superset"""
    image, size = tmp_path / "d.qcow2", 512 * MIB
    rng = random.Random(seed)
    images.create(image, size, tool="byre", cluster_size=rng.choice([4096, 65536]))
    run.byre("bitmap", "--add", "-g", rng.choice([512, 65536]), image, "b")
    run.byre("bitmap", "--add", "--disable", image, "still")
    before = [f"write {rng.randrange(0, 100) * MIB} 64k" for _ in range(3)]
    io("byre", image, before)
    commands = [f"write {rng.randrange(0, size // 65536) * 65536} {rng.choice(['512', '64k', '1M'])}" for _ in range(8)]
    commands = [c for c in commands if int(c.split()[1]) + MIB <= size]
    killed_while_writing(image, commands)
    assert dict((n, f) for n, _, f in listed(image)) == dict((n, f) for n, _, f in listed(image, run.qemu_img)) == {"b": ["auto", "in-use"], "still": []}
    images.assert_sound(image, leaks=True)
    io("byre", image, ["write 3M 512"])                    # opens it for writing, and closes it well
    assert [f for n, _, f in listed(image) if n == "b"] == [["auto"]]
    ranges = peer_map(image, "b", tmp_path)
    for command in before + commands + ["write 3M 512"]:
        off = int(command.split()[1].replace("M", "")) * (MIB if "M" in command.split()[1] else 1)
        assert any(a <= off < b for a, b in ranges), (command, ranges)
    assert sum(b - a for a, b in ranges) < size, "all of it is dirty"
    images.assert_sound(image, leaks=True)


def test_killed_then_the_peer(tmp_path):
    """FEATURES G.014: what a foreign writer has changed behind our back is no longer a superset"""
    image = tmp_path / "d.qcow2"
    images.create(image, 64 * MIB, tool="byre")
    run.byre("bitmap", "--add", image, "b")
    killed_while_writing(image, ["write 1M 64k"])
    io("qemu", image, ["write 50M 64k"])                   # clears unknown autoclear bits
    io("byre", image, ["write 2M 64k"])
    assert listed(image) == [("b", 65536, ["auto", "in-use"])]
    assert "inconsistent" in run.byre("bitmap", "--clear", image, "b", code=1).err
    run.byre("bitmap", "--remove", image, "b")
    run.byre("check", "-r", "leaks", image, code=(0, 3))
    images.assert_sound(image)


def test_killed_without_a_write(tmp_path):
    """Nothing is written before the first change: a reader that dies leaves the bitmap as it was"""
    image = tmp_path / "d.qcow2"
    images.create(image, 64 * MIB, tool="byre")
    run.byre("bitmap", "--add", image, "b")
    before = image.read_bytes()
    killed_while_writing(image, ["read 0 64k"])
    assert image.read_bytes() == before


# ---- damage ----

def directory(path):
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        return image.bitmap_extension()[2], image.bitmap_extension()[1]


def three(path):
    images.create(path, 8 * MIB, tool="byre")
    for name in ("first", "middle", "last"):
        run.byre("bitmap", "--add", path, name)
    io("byre", path, ["write 1M 64k"])
    return path


DAMAGES = {
    "type": lambda d: d.__setitem__(32 + 16, 2),
    "granularity": lambda d: d.__setitem__(32 + 17, 77),
    "reserved flag": lambda d: d.__setitem__(32 + 12, 0x80),
    "table": lambda d: d.__setitem__(32 + 7, 1),
    "table outside": lambda d: d.__setitem__(32 + 2, 7),
    "table size": lambda d: d.__setitem__(32 + 11, 9),
    "name control": lambda d: d.__setitem__(32 + 24, 7),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_bad_entry(tmp_path, what):
    """FEATURES 1.109, G.015: the image opens, the good ones work, the bad one is told, and can be removed"""
    image = three(tmp_path / "d.qcow2")
    off, length = directory(image)
    with open(image, "r+b") as f:
        f.seek(off)
        data = bytearray(f.read(length))
        DAMAGES[what](data)
        f.seek(off)
        f.write(data)
    copy = tmp_path / "copy.qcow2"
    shutil.copy(image, copy)
    assert [n for n, _, _ in listed(image)] in (["first", "last"], ["first", "middle", "last"])
    assert run.byre("check", image, code=2).out
    io("byre", image, ["write 2M 64k"])
    run.byre("bitmap", "--clear", image, "last")
    if what != "name control":
        told = run.byre("bitmap", "--clear", image, "middle", code=1).err
        assert "damaged" in told or ("inconsistent" in told and what in ("table outside", "table size"))      # in use since the write
        run.byre("bitmap", "--remove", image, "middle")
        run.byre("check", "-r", "all", image, code=0)
        images.assert_sound(image)
        assert peer_map(image, "first", tmp_path) == [(MIB, MIB + 65536), (2 * MIB, 2 * MIB + 65536)]
        assert peer_map(image, "last", tmp_path) == []
    run.byre("check", "-r", "all", copy, code=0)
    images.assert_sound(copy)
    assert [n for n, _, _ in listed(copy)] == ["first", "last"]
    assert peer_map(copy, "last", tmp_path) == [(MIB, MIB + 65536)]


def test_bad_entry_of_a_dirty_image(tmp_path):
    """FEATURES 1.109, G.015: an image that was left dirty is repaired when it is opened; a bad bitmap does not keep it from that"""
    image = tmp_path / "d.qcow2"
    images.create(image, 8 * MIB, tool="byre", lazy_refcounts=True)
    for name in ("first", "bad", "last"):
        run.byre("bitmap", "--add", image, name)
    off, length = directory(image)
    with open(image, "r+b") as f:
        data = bytearray(os.pread(f.fileno(), length, off))
        data[data.index(b"bad") - 24 + 16] = 9                 # type
        f.seek(off)
        f.write(data)
        f.seek(79)
        f.write(b"\x01")                                       # dirty
    io("byre", image, ["write 1M 64k"])
    assert [n for n, _, _ in listed(image)] == ["first", "last"]
    images.assert_sound(image)
    assert peer_map(image, "last", tmp_path) == [(MIB, MIB + 65536)]


@pytest.mark.parametrize("what", ["ends inside", "longer"])
def test_torn_directory(tmp_path, what):
    """FEATURES 1.109: entries that cannot be told apart; those in front stay"""
    image = three(tmp_path / "d.qcow2")
    off, length = directory(image)
    with open(image, "r+b") as f:
        f.seek(off + 32 + 18)
        f.write(b"\x03\xff" if what == "ends inside" else b"\x00\x01")
    names = [n for n, _, _ in listed(image)]
    assert names[0] == "first"
    io("byre", image, ["write 2M 64k"])
    run.byre("check", "-r", "all", image, code=0)
    images.assert_sound(image)
    assert peer_map(image, "first", tmp_path) == [(MIB, MIB + 65536), (2 * MIB, 2 * MIB + 65536)]


def test_flips(tmp_path):
    """FEATURES 1.109: random bytes in directory and tables: no crash, no hang, no guest byte changes"""
    base, image, rng = three(tmp_path / "base.qcow2"), tmp_path / "d.qcow2", random.Random(1)
    off, length = directory(base)
    content = run.qemu_img("convert", "-O", "raw", base, tmp_path / "base.raw") and (tmp_path / "base.raw").read_bytes()
    for _ in range(60):
        shutil.copy(base, image)
        with open(image, "r+b") as f:
            for _ in range(rng.randrange(1, 4)):
                f.seek(rng.choice([off + rng.randrange(length), off + rng.randrange(length), 112 + rng.randrange(80)]))
                f.write(bytes([rng.randrange(256)]))
        assert run.byre("info", image, code=(0, 1)).code in (0, 1)
        assert run.byre("check", image, code=None).code in (0, 1, 2, 3)
        done = run.byre("io", "-f", "qcow2", "-c", "write -P 7 5M 64k", image, code=None)
        assert done.code >= 0
        run.byre("check", "-r", "all", image, code=None)
        if run.byre("convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "now.raw", code=None).code == 0:
            now = (tmp_path / "now.raw").read_bytes()
            assert now[: 5 * MIB] == content[: 5 * MIB] and now[5 * MIB + 65536:] == content[5 * MIB + 65536:]


def test_limits(tmp_path):
    """FEATURES 1.103: 65535 bitmaps open, are followed and removed; one more is refused; as is one of more than 512 MiB"""
    image = tmp_path / "many.qcow2"
    images.create(image, MIB, tool="byre")
    run.byre("bitmap", "--add", image, "0")
    with open(image, "r+b") as f:
        off, _ = directory(image)
        f.seek(0, 2)
        end = -(-f.tell() // 65536) * 65536
        f.truncate(end)
        entry = bytearray(32)
        f.seek(off)
        entry[:] = f.read(32)
        out = bytearray()
        for i in range(65535):
            name = b"%d" % i
            one = bytearray(24 + 8)
            one[:24] = entry[:24]
            one[0:12] = bytes(12) if i else entry[0:12]
            one[12:16] = (0x1).to_bytes(4, "big") if i else bytes(4)      # in use: no table is asked for
            one[18:20] = len(name).to_bytes(2, "big")
            one[24:24 + len(name)] = name
            out += one
        f.seek(end)
        f.write(out)
        with qcow2ref.open_image(image, fmt="qcow2", backing=False) as ref:
            ext = ref.bitmap_extension()
        header = bytearray(os.pread(f.fileno(), 65536, 0))
        at = header.index(bytes.fromhex("23852875")) + 8
        f.seek(at)
        f.write((65535).to_bytes(4, "big") + bytes(4) + len(out).to_bytes(8, "big") + end.to_bytes(8, "big"))
        assert ext
    run.byre("check", "-r", "all", image, code=(0, 3), timeout=120)
    assert len(listed(image)) == 65535
    assert "65535" in run.byre("bitmap", "--add", image, "more", code=1, timeout=120).err
    run.byre("bitmap", "--remove", image, "17", timeout=120)
    assert len(listed(image)) == 65534
    big = tmp_path / "big.qcow2"
    images.create(big, "4T", tool="byre")
    assert "granularity" in run.byre("bitmap", "--add", "-g", 512, big, "b", code=1).err
    images.assert_sound(big)
    run.byre("bitmap", "--add", "-g", 1024, big, "b")
    assert bitmaps.listed(big) == [("b", 1024, ["auto"])]
