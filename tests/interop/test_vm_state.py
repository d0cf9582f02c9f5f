# SPDX-License-Identifier: MIT
"""The VM state behind the disk of a qcow2 image: what one saves there the other reads back."""
import re

import pytest
from lib import peers, run

KIB, MIB = 1 << 10, 1 << 20

SHAPES = {"512": ("1000k", "cluster_size=512"), "4k": ("1000k", "cluster_size=4k"), "64k": ("8M", "cluster_size=64k"), "none": ("0", "cluster_size=4k"),
          "whole": ("2M", "cluster_size=4k"), "v2": ("1000k", "compat=0.10,cluster_size=4k"), "subclusters": ("3M", "extended_l2=on,cluster_size=16k")}


def timeless(text):
    """The report without the times."""
    return re.sub(r"ops; .*", "ops;", text)


def both(path, *commands, before=(), code=0):
    """The same commands in both; the output may differ in times only. Returns it."""
    words = [word for command in commands for word in ("-c", command)]
    theirs = run.run(peers.need("qemu-io"), *before, *words, path, code=code)
    ours = run.byre("io", *before, *words, path, code=code)
    assert timeless(ours.out) == timeless(theirs.out)
    return ours.out


def create(path, size="1000k", options="cluster_size=4k", *more):
    run.run(peers.need("qemu-img"), "create", "-q", "-f", "qcow2", "-o", options, *more, path, size)


def save(path, *commands, before=()):
    words = [word for command in commands for word in ("-c", command)]
    run.run(peers.need("qemu-io"), *before, *words, path)


def test_report(tmp_path):
    """FEATURES 6.004: the forms of the report and what is refused, as the peer says it"""
    path = tmp_path / "x"
    create(path)
    save(path, "write -b -P 0x5a 0 20k")
    both(path, "read -b 0 20k", "read -bq 0 4k", "read -b -v 512 1k", "read -b -P 0x5a 0 20k", "read -b -P 0x5a -s 512 -l 512 0 4k", "read -b 0 0")
    assert "not a sector-aligned value for 'offset'" in both(path, "read -b 3 512", code=1)
    assert "not a sector-aligned value for 'count'" in both(path, "read -b 0 700", code=1)
    assert "Pattern verification failed" in both(path, "read -b -P 0x5b 0 20k", code=1)
    assert run.byre("io", "-c", "read -bC 0 4k", path).out.startswith("4096,1,")


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_by_the_peer(tmp_path, shape):
    """FEATURES 1.058, 6.004: the area is addressed from 0, over several tables, with holes that are zeros; the disk has its size and bytes"""
    path, (size, options) = tmp_path / "x", SHAPES[shape]
    create(path, size, options)
    if size != "0":
        save(path, "write -P 0x11 0 1000k")
    save(path, "write -b -P 0x21 0 100k", "write -b -P 0x22 100k 200k", "write -b -P 0x23 5M 1M", "write -b -P 0x24 20992 512")
    both(path, "read -b -P 0x21 0 20k", "read -b -P 0x24 20992 512", "read -b -P 0x21 21504 80896", "read -b -P 0x22 100k 200k",
         "read -b -P 0 300k 4820k", "read -b -P 0x23 5M 1M", "read -b -P 0 6M 2M", "read -b -P 0 1G 64k", "read -b -v 20480 2k")
    assert run.byre("info", "--output=json", path).json["virtual-size"] == run.run(peers.need("qemu-img"), "info", "--output=json", path).json["virtual-size"]
    if size != "0":
        run.byre("io", "-c", "read -P 0x11 0 1000k", "-c", "write -P 0x12 0 64k", path)
    run.byre("check", path)
    both(path, "read -b -P 0x22 100k 200k")


def test_not_of_the_layers_below(tmp_path):
    """FEATURES 1.058: a hole is zeros, though the backing image has bytes at that place of its disk, and though it has a state of its own"""
    base, top = tmp_path / "base", tmp_path / "top"
    create(base, "16M")
    save(base, "write -P 0x31 0 16M", "write -b -P 0x32 0 64k")
    create(top, "1M", "cluster_size=4k", "-b", "base", "-F", "qcow2")
    save(top, "write -b -P 0x33 64k 4k")
    run.byre("io", "-c", "read -b -P 0 0 64k", "-c", "read -b -P 0x33 64k 4k", "-c", "read -b -P 0 68k 1M", "-c", "read -P 0x31 0 1M", top)


def test_encrypted(tmp_path):
    """FEATURES 1.058: the state of an encrypted disk is encrypted, too"""
    path = tmp_path / "x"
    before = ("--object", "secret,id=s,data=geheim")
    run.byre("create", "-q", *before, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "4M")
    options = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    save(options, "write -b -P 0x41 0 192k", before=(*before, "--image-opts"))
    assert bytes([0x41]) * 512 not in path.read_bytes()
    both(options, "read -b -P 0x41 0 192k", "read -b -P 0 192k 64k", before=(*before, "--image-opts"))


def test_growing_does_not_show_it(tmp_path):
    """FEATURES 1.058: where the disk grows over the state, it reads zeros; the area begins behind the new end"""
    path = tmp_path / "x"
    create(path, "2M")
    save(path, "write -b -P 0x51 0 3M")
    run.byre("resize", path, "8M")
    run.byre("io", "-c", "read -P 0 0 8M", "-c", "read -b -P 0 0 3M", path)
    run.byre("check", path)
    run.run(peers.need("qemu-img"), "check", path)


@pytest.mark.parametrize("maker", ["ours", "theirs"])
def test_snapshots_keep_it(tmp_path, maker):
    """FEATURES 1.058: a snapshot holds the state of its time, and setting back to it brings it back, whoever makes it and sets back"""
    path = tmp_path / "x"
    create(path)
    snap = (lambda *a: run.byre("snapshot", *a, path)) if maker == "ours" else lambda *a: run.run(peers.need("qemu-img"), "snapshot", *a, path)
    save(path, "write -P 0x61 0 1000k", "write -b -P 0x62 0 300k")
    snap("-c", "one")
    assert run.byre("info", "--output=json", path).json["snapshots"][0]["vm-state-size"] == 0
    both(path, "read -b -P 0x62 0 300k", "read -P 0x61 0 1000k")
    run.byre("io", "-c", "write -b -P 0x63 0 100k", "-c", "write -b -P 0x64 9M 64k", "-c", "write -P 0x65 0 4k", path)
    snap("-c", "two")
    check_both(path)
    for setter in (lambda name: run.byre("snapshot", "-a", name, path), lambda name: run.run(peers.need("qemu-img"), "snapshot", "-a", name, path)):
        setter("one")
        both(path, "read -P 0x61 0 1000k", "read -b -P 0x62 0 300k", "read -b -P 0 300k 10M")
        check_both(path)
        setter("two")
        both(path, "read -P 0x65 0 4k", "read -b -P 0x63 0 100k", "read -b -P 0x62 100k 200k", "read -b -P 0x64 9M 64k")
        check_both(path)
    snap("-d", "one")
    snap("-d", "two")
    both(path, "read -b -P 0x63 0 100k")
    check_both(path)


def check_both(path):
    run.byre("check", path)
    run.run(peers.need("qemu-img"), "check", path)


def saved_by_us(path, *commands, before=()):
    run.byre("io", *before, *[word for command in commands for word in ("-c", command)], path)


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_by_us(tmp_path, shape):
    """FEATURES 1.058: what we write there the peer reads: over several tables, into clusters that hold some, far behind, and the disk is as it was"""
    path, (size, options) = tmp_path / "x", SHAPES[shape]
    create(path, size, options)
    if size != "0":
        save(path, "write -P 0x11 0 1000k")
    saved_by_us(path, "write -b -P 0x21 0 100k", "write -b -P 0x22 100k 200k", "write -b -P 0x23 5M 1M", "write -b -P 0x24 20992 512", "write -b 0 0",
                "write -b -P 0x25 40G 1536")
    both(path, "read -b -P 0x21 0 20k", "read -b -P 0x24 20992 512", "read -b -P 0x21 21504 80896", "read -b -P 0x22 100k 200k", "read -b -P 0 300k 4820k",
         "read -b -P 0x23 5M 1M", "read -b -P 0 6M 2M", "read -b -P 0x25 40G 1536", "read -b -P 0 42949674496 64k")
    if size != "0":
        both(path, "read -P 0x11 0 1000k", "read -P 0 1000k 0")
    check_both(path)
    save(path, "write -b -P 0x26 50k 100k")          # and the peer goes on with it, then we again
    saved_by_us(path, "write -b -P 0x27 75k 1k")
    both(path, "read -b -P 0x26 50k 25k", "read -b -P 0x27 75k 1k", "read -b -P 0x26 76k 74k", "read -b -P 0x21 21504 29696")
    check_both(path)


def test_written_over_a_backing_image(tmp_path):
    """FEATURES 1.058: what is around it in its cluster is zeros, not what the backing image has at that place of its disk"""
    base, top = tmp_path / "base", tmp_path / "top"
    create(base, "16M")
    save(base, "write -P 0x31 0 16M", "write -b -P 0x32 0 64k")
    for options in ("cluster_size=64k", "cluster_size=64k,extended_l2=on"):
        create(top, "1M", options, "-b", "base", "-F", "qcow2")
        saved_by_us(top, "write -b -P 0x33 1536 512", "write -b -P 0x34 200k 100k")
        both(top, "read -b -P 0 0 1536", "read -b -P 0x33 1536 512", "read -b -P 0 2k 198k", "read -b -P 0x34 200k 100k", "read -b -P 0 300k 200k", "read -P 0x31 0 1M")
        check_both(top)
        top.unlink()


def test_written_encrypted(tmp_path):
    """FEATURES 1.058: our state of an encrypted disk is encrypted"""
    path = tmp_path / "x"
    before = ("--object", "secret,id=s,data=geheim")
    run.byre("create", "-q", *before, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "4M")
    options = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    saved_by_us(options, "write -b -P 0x41 512 192k", before=(*before, "--image-opts"))
    assert bytes([0x41]) * 512 not in path.read_bytes()
    both(options, "read -b -P 0x41 512 192k", "read -b -P 0 0 512", "read -b -P 0 197120 64k", before=(*before, "--image-opts"))


def test_write_report(tmp_path):
    """FEATURES 6.004: the forms of `write -b`, and what is refused, as the peer says it"""
    path = tmp_path / "x"
    create(path)
    both(path, "write -b 0 20k", "write -bq 0 4k", "write -b 0 0", "write -b -s /dev/zero 0 4k", "write -b 1T 4k", "write -b -c 0 4k", "read -b -P 0xcd 4k 16k")
    for refused in ("write -b 3 512", "write -b 0 700", "write -b -z 0 4k", "write -bzu 0 4k", "write -b -f 0 4k", "write -b -u 0 4k", "write -b -n 0 4k", "write -b 100T 4k",
                    "write -b -P 7 -s /dev/null 0 4k", "write -b 0 8E"):
        both(path, refused, code=1)
    check_both(path)
    run.byre("io", "-r", "-c", "write -b 0 4k", path, code=1)
    raw = tmp_path / "raw"
    run.run(peers.need("qemu-img"), "create", "-q", "-f", "raw", raw, "1M")
    both(raw, "write -b 0 4k", before=("-f", "raw"), code=1)


def test_growing_over_ours(tmp_path):
    """FEATURES 1.058: a disk that grows over it reads zeros there"""
    path = tmp_path / "x"
    create(path, "2M")
    saved_by_us(path, "write -b -P 0x51 0 3M")
    run.byre("resize", path, "8M")
    both(path, "read -P 0 0 8M", "read -b -P 0 0 3M")
    check_both(path)


def test_resize_forgets_what_would_show_elsewhere(tmp_path):
    """FEATURES 1.058: where the state begins follows from the size; what is left of it behind another size reads zeros, and is free again"""
    path = tmp_path / "x"
    create(path, "2M")
    for small, large in (("2M", "8M"), ("1M", "7M")):
        saved_by_us(path, "write -b -P 0x51 0 64k", "write -b -P 0x52 2M 64k", "write -b -P 0x53 20M 64k")
        run.byre("resize", path, large)
        both(path, f"read -P 0 0 {large}", "read -b -P 0 0 40M")
        check_both(path)
        saved_by_us(path, "write -b -P 0x54 0 64k", "write -b -P 0x55 9M 64k")
        run.byre("resize", "--shrink", path, small)
        both(path, f"read -P 0 0 {small}", "read -b -P 0 0 40M")
        check_both(path)
    saved_by_us(path, "write -b -P 0x56 5M 64k")
    run.byre("resize", path, "1500k")                # as many tables as before: it stays
    both(path, "read -b -P 0x56 5M 64k", "read -b -P 0 0 5M")
    check_both(path)


@pytest.mark.parametrize("options", ["", ",extended_l2=on,cluster_size=16k"])
def test_data_file(tmp_path, options):
    """FEATURES 1.058: the state lies behind the disk in an external data file; but not in one that is a raw disk of its own"""
    path, data = tmp_path / "x", tmp_path / "data"
    create(path, "1M", f"data_file={data}{options}")
    save(path, "write -P 0x11 0 1M", "write -b -P 0x21 0 100k")
    saved_by_us(path, "write -b -P 0x22 50k 100k", "write -b -P 0x23 1G 64k")
    both(path, "read -P 0x11 0 1M", "read -b -P 0x21 0 50k", "read -b -P 0x22 50k 100k", "read -b -P 0 150k 4M", "read -b -P 0x23 1G 64k")
    check_both(path)
    run.byre("resize", path, "900M")
    both(path, "read -P 0x11 0 1M", "read -P 0 1M 899M", "read -b -P 0 0 4M")
    check_both(path)
    path.unlink()
    data.unlink()
    create(path, "1M", f"data_file={data},data_file_raw=on{options}")
    assert "Operation not supported" in run.byre("io", "-c", "write -b 0 4k", path, code=1).out
    assert data.stat().st_size == 1 << 20
    check_both(path)


@pytest.mark.parametrize("kind", ["raw", "qed"])
def test_formats_without(tmp_path, kind):
    """FEATURES 1.058, 6.004: a format that keeps no VM state says so"""
    path = tmp_path / "x"
    run.run(peers.need("qemu-img"), "create", "-q", "-f", kind, path, "1M")
    assert both(path, "read -b 0 4k", before=("-f", kind), code=1) == "read failed: Operation not supported\n"
