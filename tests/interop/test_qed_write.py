# SPDX-License-Identifier: MIT
"""QED written by byre: over all geometries the peer and the independent reader find the image sound and the content right; the two
programs write to one image in turns; what the format promises of zero clusters, marks, lengths and sizes."""
import os
import struct
import subprocess
import time

import guest
import pytest
from guest import Guest, seed_of
from lib import images, qed, run
from test_qed import GEOMETRIES, NO_DISCARD, same_check, same_map, size_of

import qedref

SMALL = [g for g in GEOMETRIES if g[0] <= 65536 and g[1] > 1]


def io(tool, path, *commands, **kwargs):
    return guest.io(tool, path, *commands, fmt="qed", **kwargs)


def field(path, name):
    off, fmt = qedref.FIELDS[name]
    with open(path, "rb") as f:
        return struct.unpack(fmt, f.read(64)[off:off + struct.calcsize(fmt)])[0]


def marked(path):
    return bool(field(path, "features") & qedref.NEED_CHECK)


def sound(path, disk, folder, peer=True):
    """No leak, no damage, no mark left behind; the content. peer: it takes images with tables of this size."""
    assert not marked(path)
    with qedref.open_image(path, fmt="qed") as image:
        assert image.check().clean, image.check()
        disk.verify(image.read)
    done = run.byre("check", "-f", "qed", path)
    if peer:
        same_check(path, code=0)
        run.qemu_img("compare", "-f", "qed", "-F", "raw", path, disk.write_raw(os.path.join(folder, "shadow.raw")))
    return done


@pytest.mark.parametrize("cluster_size,table_size", GEOMETRIES + [(4096, 4), (16 << 20, 1)])
def test_geometry(tmp_path, cluster_size, table_size):
    """FEATURES 2.002, 2.003, 2.009, 2.011, 2.015, 2.016, 2.021, G.020: random writes, zeros and discards; nothing leaks."""
    path, size = tmp_path / "x.qed", 40 << 20 if cluster_size == 4096 else size_of(cluster_size) // 512 * 512
    disk = Guest(seed_of("qed", cluster_size, table_size), size, cluster_size)
    images.create(path, size, fmt="qed", tool="byre", cluster_size=cluster_size, table_size=table_size)
    for commands in disk.batches(120, 40):
        io("byre", path, *commands)
        sound(path, disk, tmp_path, peer=table_size > 1 and cluster_size <= 4 << 20)


@pytest.mark.parametrize("cache,aio", [("none", "io_uring"), ("writethrough", "threads"), ("directsync", "io_uring")])
def test_cache_modes(tmp_path, cache, aio):
    path = tmp_path / "x.qed"
    disk = Guest(seed_of("qed", cache, aio), 20 << 20, 4096)
    images.create(path, disk.size, fmt="qed", tool="byre", cluster_size=4096, table_size=2)
    for commands in disk.batches(60, 30):
        io("byre", path, *commands, options=["-t", cache, "-i", aio])
    sound(path, disk, tmp_path)


@pytest.mark.parametrize("cluster_size,table_size", SMALL)
def test_writers_take_turns(tmp_path, cluster_size, table_size):
    """byre and the peer write to one image in turns; each finds it sound."""
    path, size = tmp_path / "x.qed", 40 << 20 if cluster_size == 4096 else size_of(cluster_size) // 512 * 512
    disk = Guest(seed_of("qed turns", cluster_size, table_size), size, cluster_size, weights=NO_DISCARD)
    images.create(path, size, fmt="qed", cluster_size=cluster_size, table_size=table_size)
    for turn in range(6):
        for commands in disk.batches(25, 25):
            io(guest.TOOLS[turn & 1], path, *commands)
        sound(path, disk, tmp_path)


@pytest.mark.parametrize("base_fmt", ["raw", "qcow2", "qed"])
def test_over_a_backing_file(tmp_path, base_fmt):
    """FEATURES 2.005, 2.010, 2.015: the rest of a new cluster comes from below, nothing shows through what was zeroed or discarded."""
    base = tmp_path / f"base.{base_fmt}"
    images.create(base, "9M", fmt=base_fmt)
    run.qemu_io(base, "write -P 200 0 9M", fmt=base_fmt)
    path, size = tmp_path / "x.qed", 12 << 20
    disk = Guest(seed_of("qed over", base_fmt), size, 65536, backing=bytes([200]) * (9 << 20))
    images.create(path, size, fmt="qed", tool="byre", backing=base, backing_fmt=base_fmt)
    for commands in disk.batches(120, 30):
        io("byre", path, *commands)
        assert not marked(path)
        run.byre("check", path)
        with qedref.open_image(path, fmt="qed") as image:
            disk.verify(image.read)


def test_rest_of_a_zero_cluster(tmp_path):
    """FEATURES 2.010, G.019: a partial write into a zero cluster leaves zeros around it, where the peer brings backing data back."""
    base, path = images.raw_file(tmp_path / "base.raw", 1 << 20), tmp_path / "x.qed"
    run.qemu_io(base, "write -P 99 0 1M", fmt="raw")
    images.create(path, "1M", fmt="qed", tool="byre", backing=base, backing_fmt="raw")
    io("byre", path, "write -z 0 256k", "write -P 1 68k 4k", "write -P 2 192k 1k", "write -P 3 255k 1k")
    run.qemu_io(path, "read -P 0 0 68k", "read -P 1 68k 4k", "read -P 0 72k 56k", "read -P 0 128k 64k", "read -P 2 192k 1k", "read -P 0 193k 62k",
                "read -P 3 255k 1k", "read -P 99 256k 256k", fmt="qed")
    io("byre", path, "read -P 0 72k 56k", "read -P 0 193k 62k")
    run.qemu_img("check", path)


def test_zeroed_in_place(tmp_path):
    """FEATURES 2.015, 2.016, G.020: clusters that are there keep their place, and give their space back where that is asked for."""
    path = tmp_path / "x.qed"
    images.create(path, "64M", fmt="qed", tool="byre")
    io("byre", path, "write -P 1 0 32M")
    before, used = run.byre("map", "--output=json", path).json, os.stat(path).st_blocks
    io("byre", path, "discard 0 8M", "write -z 8M 8M", "write -z -u 16M 8M")
    io("byre", path, "read -P 0 0 24M", "read -P 1 24M 8M")
    run.qemu_io(path, "read -P 0 0 24M", "read -P 1 24M 8M", fmt="qed")
    same_check(path, code=0)
    with qedref.open_image(path, fmt="qed", backing=False) as image:
        assert image.check().allocated_clusters == 512
    assert run.byre("map", "--output=json", path).json[0]["offset"] == before[0]["offset"]
    assert os.stat(path).st_blocks <= used - 16 * 2048
    io("byre", path, "write -P 7 4M 64k", discard="ignore")
    io("byre", path, "discard 4M 64k", "read -P 7 4M 64k", discard="ignore")


@pytest.mark.parametrize("extra", [1, 511, 4095, 5000])
def test_tail(tmp_path, extra):
    """FEATURES 2.021: what lies behind the last whole cluster is nobody's, and never shows."""
    path = tmp_path / "x.qed"
    b = qed.Builder(table_size=2, size=8 << 20)
    b.put(len(b.image), b"\xee" * extra).write(path)
    io("byre", path, "write -P 5 1M 512", "write -P 6 5M 1k", "read -P 0 1049088 3584")
    io("byre", path, "read -P 5 1M 512", "read -P 0 1049088 3584", "read -P 6 5M 1k", "read -P 0 5243904 3k")
    with qedref.open_image(path, fmt="qed") as image:
        report = image.check()
    assert report.leaks == extra // 4096 and not report.corruptions
    run.qemu_io(path, "read -P 0 1049088 3584", "read -P 0 5243904 3k", fmt="qed")


def test_mark(tmp_path):
    """FEATURES 2.006, 2.012, E1: the mark is on the disk while clusters may be lost, not for writes in place, and gone after closing."""
    path = tmp_path / "x.qed"
    images.create(path, "64M", fmt="qed", tool="byre")
    proc = subprocess.Popen([run.BYRE, "io", "-f", "qed", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def say(command):
        proc.stdin.write(command + "\n")
        proc.stdin.flush()
        while "ops;" not in (line := proc.stdout.readline()):
            assert line, "byre io ended"

    say("read 0 64k")
    assert not marked(path)
    say("write -P 1 0 64k")
    assert marked(path)
    until = time.monotonic() + 30
    while marked(path):                      # cleared when nothing was allocated for a while
        assert time.monotonic() < until
        time.sleep(0.2)
    with qedref.open_image(path, fmt="qed") as image:
        assert image.check().clean
    say("write -P 2 0 64k")                                        # in place
    assert not marked(path)
    say("write -P 3 1M 4k")
    assert marked(path)
    proc.stdin.write("quit\n")
    proc.stdin.close()
    assert proc.wait(timeout=30) == 0
    assert not marked(path)
    same_check(path, code=0)
    run.qemu_io(path, "read -P 2 0 64k", "read -P 3 1M 4k", "read -P 0 1028k 60k", fmt="qed")


def test_unknown_bits(tmp_path):
    """FEATURES 2.008: autoclear bits go when the image is opened for writing, compat bits stay."""
    path = tmp_path / "x.qed"
    images.create(path, "1M", fmt="qed", tool="byre")
    qed.set_header(path, autoclear=1 << 5, compat=1 << 6)
    io("byre", path, "read 0 4k", options=["-r"])
    assert field(path, "autoclear") == 1 << 5
    io("byre", path, "read 0 4k")
    assert field(path, "autoclear") == 0 and field(path, "compat") == 1 << 6


@pytest.mark.parametrize("cluster_size,table_size", [(4096, 1), (4096, 2), (65536, 4)])
def test_resize(tmp_path, cluster_size, table_size):
    """FEATURES 2.017, 2.018: growing shows zeros, whatever lay behind the old end; shrinking is refused."""
    path, size = tmp_path / "x.qed", (1 << 20) + 512
    disk = Guest(seed_of("qed grow", cluster_size), size, cluster_size)
    images.create(path, size, fmt="qed", tool="byre", cluster_size=cluster_size, table_size=table_size)
    for step in (512, 3 * 512, cluster_size, 3 << 20, 5 << 20):
        for commands in disk.batches(20, 20):
            io("byre", path, *commands)
        io("byre", path, f"write -P 9 {disk.size - 512} 512")
        disk._set(disk.size - 512, 512, 9)
        run.byre("resize", "-q", "-f", "qed", path, f"+{step}")
        disk.set_size(disk.size + step)
        sound(path, disk, tmp_path, peer=table_size > 1)
    before = path.read_bytes()
    run.byre("resize", "-f", "qed", "--shrink", path, "1M", code=1)
    run.byre("resize", "-f", "qed", "--preallocation=full", path, "+1M", code=1)
    assert path.read_bytes() == before


def test_resize_to_64_tebibytes(tmp_path):
    """FEATURES 2.017: from 1 GiB to 64 TiB without a byte of metadata but the size."""
    path = tmp_path / "x.qed"
    images.create(path, "1G", fmt="qed", tool="byre")
    io("byre", path, "write -P 1 1023M 1M")
    before = path.read_bytes()
    run.byre("resize", "-q", "-f", "qed", path, "64T")
    after = path.read_bytes()
    assert before[:16] == after[:16] and before[56:] == after[56:]
    io("byre", path, "write -P 2 70368744112128 64k", "read -P 1 1023M 1M", "read -P 0 1G 1M")
    same_check(path, code=0)
    run.qemu_io(path, "read -P 2 70368744112128 64k", "read -P 1 1023M 1M", fmt="qed")
    run.byre("resize", "-f", "qed", path, "65T", code=1)


@pytest.mark.parametrize("behind", ["data", "table", "zero"])
def test_resize_over_stale_entries(tmp_path, behind):
    """FEATURES 2.017: entries behind the end that nobody should have made show nothing after growing."""
    b = qed.Builder(table_size=1, size=1 << 20)
    if behind == "table":
        b.word(b.l1 + 8, b.l2)                                   # the same table again, for the second 2 MiB
        b.word(b.l2, 0)
    else:
        b.word(b.l2 + 8 * 400, b.data + b.cs if behind == "data" else 1)
    path = b.write(tmp_path / "x.qed")
    run.byre("resize", "-q", "-f", "qed", path, "2M")
    run.byre("io", "-r", "-f", "qed", "-c", "read -P 0 1M 1M", path)
    with qedref.open_image(path, fmt="qed") as image:
        assert image.read(400 * 4096, 4096) == bytes(4096)


def test_shrunk_or_grown_over_backing(tmp_path):
    """FEATURES 11.009: a longer backing file does not show in what growing uncovers."""
    base = images.raw_file(tmp_path / "base.raw", 8 << 20)
    run.qemu_io(base, "write -P 77 0 8M", fmt="raw")
    path = images.create(tmp_path / "x.qed", "1M", fmt="qed", tool="byre", backing=base, backing_fmt="raw")
    run.byre("resize", "-q", "-f", "qed", path, "4M")
    io("byre", path, "read -P 77 0 1M", "read -P 0 1M 3M")
    run.qemu_io(path, "read -P 77 0 1M", "read -P 0 1M 3M", fmt="qed")


def test_damage_is_met_by_the_request_alone(tmp_path):
    """FEATURES 2.009: a bad entry is never followed and never replaced; everything else goes on."""
    for name in ("data_outside", "data_unaligned", "data_in_header", "table_outside"):
        b = qed.Builder(size=8 << 20)
        qed.DAMAGES[name](b)
        path = b.write(tmp_path / f"{name}.qed")
        bad = 0
        for command in ("write -P 1 0 512", "write -P 1 1024 8k", "write -z 0 4k"):
            assert "failed" in run.byre("io", "-f", "qed", "-c", command, path, code=None).out
            bad += 1
        assert bad == 3
        io("byre", path, "write -P 4 5M 4k", "read -P 4 5M 4k")
        with qedref.open_image(path, fmt="qed") as image:
            assert image.read(5 << 20, 4096) == b"\4" * 4096


def test_convert(tmp_path):
    """FEATURES 2.015: both ways, sparse stays sparse."""
    disk = Guest(seed_of("qed convert"), 30 << 20, 65536)
    source = images.create(tmp_path / "s.qcow2", disk.size)
    disk.run("qemu", source, operations=60)
    path = tmp_path / "x.qed"
    run.byre("convert", "-O", "qed", "-o", "cluster_size=4k,table_size=2", source, path)
    sound(path, disk, tmp_path)
    same_map(path)
    run.byre("convert", "-O", "qcow2", path, tmp_path / "back.qcow2")
    run.qemu_img("compare", source, tmp_path / "back.qcow2")
    run.byre("compare", source, path)
    empty = images.create(tmp_path / "e.qcow2", "10G")
    run.byre("convert", "-O", "qed", empty, path)
    assert os.path.getsize(path) == 5 * 65536
    same_check(path, code=0)


def test_no_space(tmp_path):
    """Without space requests fail, and what was acknowledged stays."""
    path = tmp_path / "x.qed"
    images.create(path, "1G", fmt="qed", tool="byre")
    script = f"ulimit -f 4096; trap '' XFSZ; exec {run.BYRE} io -f qed -c 'write -P 1 0 1M' -c 'write -P 2 512M 8M' -c 'write -P 3 512k 64k' {path}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("failed") == 1 and done.returncode == 1, done
    io("byre", path, "read -P 1 0 512k", "read -P 3 512k 64k")
    assert run.byre("check", path, code=None).code in (0, 3)
