# SPDX-License-Identifier: MIT
"""Disks that keep nothing, for measurements: null-co:// and null-aio:// (FEATURES 3.038)."""
import os
import re

import pytest

from lib import run

NAMES = ["null-co://", "null-aio://"]
OPTS = "driver=null-co,size=1M,read-zeroes=on"


@pytest.mark.parametrize("name", NAMES)
def test_info(twin, name):
    """FEATURES 3.038: a disk of 1 GiB without anything in it"""
    ours, theirs = twin.same_code("info", "--output=json", name)
    wanted = {k: theirs.json[k] for k in ("virtual-size", "filename", "format", "actual-size")}
    assert wanted["virtual-size"] == 1 << 30 and {k: ours.json[k] for k in wanted} == wanted
    assert run.byre("info", name).out.startswith(f"image: {name}\nfile format: raw\nvirtual size: 1 GiB (1073741824 bytes)\ndisk size: 0 B")


@pytest.mark.parametrize("words", [["info", "null-co:"], ["info", "null-co://x"], ["info", "null-aio:x"], ["info", "-f", "qcow2", "null-co://"], ["check", "null-co://"],
                                   ["create", "-f", "raw", "null-co://", "1M"], ["create", "-f", "qcow2", "null-co://", "1M"],
                                   ["convert", "--image-opts", OPTS, "-O", "raw", "null-co://"], ["info", "--image-opts", OPTS + ",bogus=1"],
                                   ["info", "--image-opts", "driver=null-co,latency-ns=-1"], ["info", "--image-opts", OPTS + ",filename=null-co://"]], ids=" ".join)
def test_refused(twin, words):
    """FEATURES 3.038: what is no such name, has no such option, or asks for something to be kept; no file appears under such a name"""
    ours, _ = twin.same_code(*words)
    assert ours.code and re.search("null-(co|aio)", ours.err + " ".join(words))
    assert os.listdir(twin.ours) == []


def test_names_say_what_is_wrong():
    assert "the only name of the protocol 'null-aio' is 'null-aio://'" in run.byre("info", "null-aio:x", code=1).err
    assert "nothing is kept" in run.byre("create", "-f", "raw", "null-co://", "1M", code=1).err


@pytest.mark.parametrize("opts", [OPTS, "driver=raw,file.driver=null-co,file.size=1M,file.read-zeroes=on", "driver=null-aio,size=65536,read-zeroes=on"])
def test_options(twin, opts):
    """FEATURES 3.038: size, read-zeroes; the map is the peer's"""
    ours, theirs = twin.same_code("info", "--output=json", "--image-opts", opts)
    assert ours.json["virtual-size"] == theirs.json["virtual-size"]
    twin.same_output("map", "--output=json", "--image-opts", opts)
    twin.same_code("convert", "--image-opts", opts, "-O", "qcow2", "out")
    assert run.qemu_img("compare", f"{twin.ours}/out", f"{twin.theirs}/out").out == "Images are identical.\n"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [[], ["-w", "-f", "raw"]], ids=["read", "write"])
def test_bench(twin, name, write):
    """FEATURES 3.038: for what it is there"""
    ours, theirs = twin.same_code("bench", "-c", "1000", "-d", "16", *write, name)
    assert ours.out.splitlines()[0] == theirs.out.splitlines()[0]
    assert re.fullmatch(r"Run completed in \d+\.\d{3} seconds\.", ours.out.splitlines()[-1])


def test_latency():
    """FEATURES 3.038: latency-ns is the time of each request: ten of 50 ms, two at a time"""
    out = run.byre("bench", "-c", "10", "-d", "2", "--image-opts", "driver=null-co,size=1M,latency-ns=50000000").out
    assert float(re.search(r"in ([\d.]+) seconds", out)[1]) >= 0.25


def test_a_target(twin):
    """FEATURES 3.038: what is written to it is gone, however large"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "8M"], ["qemu-io", "-c", "write -P 1 0 2M", "x"])
    twin.same_code("convert", "-n", "-O", "raw", "x", "null-co://")
    assert os.listdir(twin.ours) == ["x"]


def test_backing(twin):
    """FEATURES 3.038: an overlay may record the name, which is no path"""
    ours, theirs = twin.same_code("create", "-f", "qcow2", "-b", "null-co://", "-F", "raw", "o")
    assert not ours.code
    twin.same_code("rebase", "-u", "-b", "null-aio://", "-F", "raw", "o")
    for folder in (twin.ours, twin.theirs):
        done = run.byre("info", "--output=json", "o", cwd=folder)
        assert done.json["backing-filename"] == done.json["full-backing-filename"] == "null-aio://" and done.json["virtual-size"] == 1 << 30, done
    run.byre("map", "o", cwd=twin.ours)
    assert "is not a plain path" in run.byre("--strict", "info", "--backing-chain", "-f", "qcow2", "o", cwd=twin.ours, code=1).err


def test_commit_into_nothing(tmp_path):
    """FEATURES 3.038, 5.010, J2: a layer is not emptied into a disk that keeps nothing"""
    top = tmp_path / "top.qcow2"
    run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "null-co://", "-F", "raw", top, "1M")
    run.byre("io", "-f", "qcow2", "-c", "write -P 7 64k 64k", top)
    assert "keeps nothing" in run.byre("commit", top, code=1).err
    assert "verification failed" not in run.byre("io", "-r", "-f", "qcow2", "-c", "read -P 7 64k 64k", top).out
