# SPDX-License-Identifier: MIT
"""Compaction (G.010) of images that the peer has made: with snapshots, backing files, compressed clusters, bitmaps, encryption,
subclusters, version 2. The peer finds them sound and the same afterwards, and goes on with them."""
import json
import os
import random
import subprocess

import pytest
from lib import peers, run

CS = 65536
CLUSTERS = 160
SECRET = ("--object", "secret,id=s,data=hunter2")


def node(path, luks):
    return f"driver=qcow2,file.filename={path}" + (",encrypt.key-secret=s" if luks else "")


def peer(path, commands, luks=False):
    peers.need("qemu-io")
    args = ["qemu-io", "-d", "unmap", *(SECRET if luks else ()), "--image-opts", node(path, luks)]
    done = subprocess.run(args, input="\n".join(commands) + "\n", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and "rror" not in done.stdout, done.stdout


def fill(path, compressed=False, luks=False, seed=3):
    """Everything written, a half of it discarded, some of it zeros"""
    rng = random.Random(seed)
    peer(path, [f"write {'-c ' if compressed and i % 3 else ''}-q -P {i % 250 + 1} {i * CS} {CS}" for i in range(CLUSTERS)], luks)
    peer(path, [f"discard -q {i * CS} {CS}" for i in range(CLUSTERS) if rng.random() < 0.5], luks)
    peer(path, [f"write -q -P 0 {i * CS} {CS}" for i in range(0, CLUSTERS, 29)], luks)


def content(path, to, luks=False, snapshot=None):
    args = [*(SECRET if luks else ()), "convert", *(["-l", snapshot] if snapshot else []), "--image-opts", node(path, luks), "-O", "raw", to]
    run.qemu_img(*([args[2], *SECRET, *args[3:]] if luks else args))
    return to.read_bytes()


@pytest.mark.parametrize("options,compressed,shrinks", [
    ("", False, True), ("compat=0.10", False, True), ("cluster_size=4096,refcount_bits=64", False, True), ("refcount_bits=1", False, True),
    ("extended_l2=on", False, True), ("", True, True), ("compression_type=zstd", True, True), ("lazy_refcounts=on,cluster_size=1k", False, True),
    ("preallocation=metadata", False, True),
])
def test_peer_made(tmp_path, options, compressed, shrinks):
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, CLUSTERS * CS)
    fill(path, compressed)
    before, length = content(path, tmp_path / "before"), os.stat(path).st_size
    res = json.loads(run.byre("compact", "--output=json", path).out)
    assert content(path, tmp_path / "after") == before
    run.qemu_img("check", path)
    assert (os.stat(path).st_size < length * 3 // 4) == shrinks and res["length-after"] < length
    live = sum(any(before[i:i + CS]) for i in range(0, len(before), CS)) * CS
    if not compressed:
        assert os.stat(path).st_size <= live + live // 16 + 12 * CS
    fill(path, seed=4)                      # the peer goes on with it
    run.qemu_img("check", path)
    run.byre("compact", path)
    run.qemu_img("check", path)


def test_snapshots(tmp_path):
    """What a snapshot shares stays, to the byte; the rest moves around it"""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", path, CLUSTERS * CS)
    fill(path)
    run.qemu_img("snapshot", "-c", "s1", path)
    fill(path, seed=5)
    run.qemu_img("snapshot", "-c", "s2", path)
    fill(path, seed=6)
    before = [content(path, tmp_path / "x", snapshot=s) for s in (None, "s1", "s2")]
    length = os.stat(path).st_size
    run.byre("compact", path)
    assert [content(path, tmp_path / "x", snapshot=s) for s in (None, "s1", "s2")] == before
    assert os.stat(path).st_size <= length
    run.qemu_img("check", path)
    run.qemu_img("snapshot", "-d", "s1", path)
    run.qemu_img("snapshot", "-d", "s2", path)
    run.byre("compact", path)
    assert os.stat(path).st_size < length * 2 // 3
    assert content(path, tmp_path / "x") == before[0]
    run.qemu_img("check", path)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_backing(tmp_path, compat):
    """Zeros hide what lies below, before and after"""
    base, path = tmp_path / "b.raw", tmp_path / "a.qcow2"
    base.write_bytes(b"\x77" * (CLUSTERS * CS))
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", base, "-F", "raw", path)
    if compat == "1.1":
        fill(path)
    else:
        peer(path, [f"write -q -P {i % 4} {i * CS} {CS}" for i in range(0, CLUSTERS, 3)])
    before = content(path, tmp_path / "before")
    run.byre("compact", path)
    assert content(path, tmp_path / "after") == before
    run.qemu_img("check", path)


def test_luks(tmp_path):
    """B4: a cipher depends on the place, so data is encrypted anew where it goes; zeros are seen through it"""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", *SECRET, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, CLUSTERS * CS)
    fill(path, luks=True)
    before, length = content(path, tmp_path / "before", luks=True), os.stat(path).st_size
    res = json.loads(run.byre("compact", *SECRET, "--output=json", "--image-opts", node(path, True)).out)
    assert res["bytes-zeroed"] and os.stat(path).st_size < length * 3 // 4
    assert content(path, tmp_path / "after", luks=True) == before
    run.qemu_img("check", *SECRET, "--image-opts", node(path, True))


def test_bitmaps(tmp_path):
    """Persistent bitmaps stay where they are and what they are"""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", path, CLUSTERS * CS)
    run.qemu_img("bitmap", "--add", "-g", "64k", path, "b0")
    fill(path)
    peers.need("qemu-img")
    before = content(path, tmp_path / "before")
    bits = json.loads(run.byre("info", "--output=json", path).out)["format-specific"]["data"]["bitmaps"]
    run.byre("compact", path)
    assert json.loads(run.byre("info", "--output=json", path).out)["format-specific"]["data"]["bitmaps"] == bits
    assert content(path, tmp_path / "after") == before
    run.qemu_img("check", path)
