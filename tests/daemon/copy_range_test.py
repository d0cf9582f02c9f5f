# SPDX-License-Identifier: MIT
"""Backups that the kernel copies (x-perf use-copy-range), beside the peer's."""
import random
import subprocess
import time

import pytest

from lib import peers, run
from qmp_client import Qmp

MIB = 1 << 20
SIZE = 16 * MIB
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def node(client, path, fmt, name, **more):
    client.ok("blockdev-add", driver=fmt, node_name=name, file={"driver": "file", "node-name": f"{name}f", "filename": str(path)}, **more)


def traced(folder):
    """Our daemon with a monitor at FOLDER/c.sock, and a list of its calls of copy_file_range in FOLDER/calls."""
    daemon = subprocess.Popen([peers.need("strace"), "-f", "-qq", "-e", "trace=copy_file_range", "-o", f"{folder}/calls", run.BYRE, "daemon",
                               "--chardev", "socket,id=c,path=c.sock,server=on,wait=on", "--monitor", "c"], cwd=folder)
    while True:                                                                         # it listens, and waits for us
        try:
            return daemon, Qmp(f"{folder}/c.sock")
        except OSError:
            assert daemon.poll() is None
            time.sleep(0.02)


def calls(folder):
    """Bytes that copy_file_range has copied."""
    lines = (folder / "calls").read_text().splitlines()
    return sum(int(x.rsplit("= ", 1)[1].split()[0]) for x in lines if "copy_file_range" in x and "= -" not in x and "= " in x)


def world(tmp_path, source, target):
    data = random.Random(7).randbytes(SIZE // 2)
    (tmp_path / "data").write_bytes(data)
    for name, fmt in (("d", source), ("t", target)):
        run.qemu_img("create", "-q", "-f", fmt, tmp_path / name, SIZE)
    run.qemu_io(tmp_path / "d", f"write -s {tmp_path}/data 0 {SIZE // 2}", fmt=source)
    return data + bytes(SIZE - len(data))


def content(tmp_path, path, fmt):
    run.qemu_img("convert", "-f", fmt, "-O", "raw", path, tmp_path / "flat")
    return (tmp_path / "flat").read_bytes()


def test_kernel_copies(tmp_path):
    """FEATURES 9.065, 11.029, 3.067: with use-copy-range the data go from file to file; without it, with compress, and to a target that detects zeroes, none do; the
    copies are the same"""
    old = world(tmp_path, "raw", "raw")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "c", SIZE)
    fast = {"x-perf": {"use-copy-range": True}}
    for fmt, name, options, more in (("raw", "t", {}, fast), ("raw", "t", {}, {}), ("qcow2", "c", {}, {**fast, "compress": True}), ("raw", "t", {"detect-zeroes": "on"}, fast)):
        daemon, client = traced(tmp_path)
        try:
            node(client, tmp_path / "d", "raw", "d")
            node(client, tmp_path / name, fmt, "t", **options)
            client.ok("blockdev-backup", device="d", target="t", sync="full", job_id="j", **more)
            assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
            client.ok("quit")
            assert daemon.wait(60) == 0
        finally:
            daemon.kill()
            daemon.wait()
        assert calls(tmp_path) == (SIZE // 2 if more == fast and not options else 0)
        assert content(tmp_path, tmp_path / name, fmt) == old
        if name == "t":
            run.qemu_img("create", "-q", "-f", "raw", tmp_path / "t", SIZE)


@BOTH
@pytest.mark.parametrize("source,target", [("raw", "raw"), ("qcow2", "qcow2"), ("qcow2", "raw")])
def test_under_a_writer(start, tmp_path, peer, source, target):
    """FEATURES 9.065, J4: what a guest writes, zeroes and discards meanwhile is not in the copy, which is the disk of the moment at which the backup began"""
    nbd = peers.need_module("nbd")
    old = world(tmp_path, source, target)
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()
    node(client, tmp_path / "d", source, "d")
    node(client, tmp_path / "t", target, "t")
    client.ok("block-export-add", type="nbd", id="e", node_name="d", name="d", writable=True)
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///d?socket={daemon.folder}/n.sock")
    client.ok("blockdev-backup", device="d", target="t", sync="full", job_id="j", speed=8 * MIB, auto_dismiss=False,
              **{"x-perf": {"use-copy-range": True, "max-workers": 4, "max-chunk": 262144}})
    rng = random.Random(9)
    while not any(j["status"] == "concluded" for j in client.ok("query-jobs")):
        for _ in range(16):
            at, length = rng.randrange(SIZE // 4096) * 4096, 4096 * rng.randrange(1, 16)
            length = min(length, SIZE - at)
            what = rng.randrange(3)
            if what == 0:
                h.pwrite(bytes([rng.randrange(1, 256)]) * length, at)
            elif what == 1:
                h.zero(length, at)
            else:
                h.trim(length, at)
    assert "error" not in client.ok("query-jobs")[0]
    client.ok("job-dismiss", id="j")
    h.shutdown()
    assert daemon.stop()[0] == 0
    assert content(tmp_path, tmp_path / "t", target) == old
    if target == "qcow2":
        run.qemu_img("check", tmp_path / "t")


def test_what_the_kernel_cannot(start, tmp_path):
    """FEATURES 9.065: compressed clusters, and nodes that change what they pass, are read and written; the copy is as whole as ever"""
    old = world(tmp_path, "raw", "raw")
    run.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp_path / "d", tmp_path / "c")
    daemon = start("daemon", "--object", "throttle-group,id=g")
    client = daemon.qmp()
    node(client, tmp_path / "c", "qcow2", "c")
    client.ok("blockdev-add", driver="throttle", node_name="slow", file="c", throttle_group="g")
    for i, source in enumerate(("c", "slow")):
        run.qemu_img("create", "-q", "-f", "raw", tmp_path / f"t{i}", SIZE)
        node(client, tmp_path / f"t{i}", "raw", f"t{i}")
        client.ok("blockdev-backup", device=source, target=f"t{i}", sync="full", job_id="j", **{"x-perf": {"use-copy-range": True}})
        assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
        client.ok("blockdev-del", node_name=f"t{i}")
        assert content(tmp_path, tmp_path / f"t{i}", "raw") == old
    assert daemon.stop()[0] == 0


@pytest.mark.parametrize("sync", ["full", "top"])
def test_target_over_the_source(tmp_path, sync):
    """FEATURES 9.065, J4: to an image over the disk itself nothing is copied by the kernel, which would go on reading when a guest's write has broken the snapshot; the copy is the same"""
    old = world(tmp_path, "raw", "raw")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "d", "-F", "raw", tmp_path / "o", SIZE)
    daemon, client = traced(tmp_path)
    try:
        node(client, tmp_path / "d", "raw", "d")
        node(client, tmp_path / "o", "qcow2", "o", backing="d")
        client.ok("blockdev-backup", device="d", target="o", sync=sync, job_id="j", **{"x-perf": {"use-copy-range": True}})
        assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
        client.ok("quit")
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert calls(tmp_path) == 0
    run.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", tmp_path / "o")
    assert content(tmp_path, tmp_path / "o", "qcow2") == old


COPY_RANGE = {"x-byre-use-copy-range": True}


def mirror_to_end(client, **more):
    client.ok("blockdev-mirror", device="d", target="t", sync="full", job_id="j", auto_dismiss=False, **more)
    client.wait("BLOCK_JOB_READY", device="j")
    client.ok("job-complete", id="j")
    client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert "error" not in client.ok("query-jobs")[0]


def test_mirror_by_the_kernel(tmp_path):
    """FEATURES 11.029, 3.067: a mirror with x-byre-use-copy-range has the kernel copy from file to file, also into new clusters of qcow2; none without it, from a disk that is not raw, and
    to a target that detects zeroes or is watched by a filter; the copies are the same"""
    for source, target, options, more, expected in (("raw", "raw", {}, COPY_RANGE, True), ("raw", "qcow2", {}, COPY_RANGE, True), ("raw", "raw", {}, {}, False), ("qcow2", "raw", {}, COPY_RANGE, False),
                                                    ("raw", "raw", {"detect-zeroes": "on"}, COPY_RANGE, False), ("raw", "filter", {}, COPY_RANGE, False)):
        fmt = "raw" if target == "filter" else target
        old = world(tmp_path, source, fmt)
        daemon, client = traced(tmp_path)
        try:
            node(client, tmp_path / "d", source, "d")
            node(client, tmp_path / "t", fmt, "b" if target == "filter" else "t", **options)
            if target == "filter":
                client.ok("blockdev-add", driver="blkdebug", node_name="t", image="b")
            mirror_to_end(client, **more)
            client.ok("quit")
            assert daemon.wait(60) == 0
        finally:
            daemon.kill()
            daemon.wait()
        assert calls(tmp_path) == (SIZE // 2 if expected else 0), (source, target, options, more)
        assert content(tmp_path, tmp_path / "t", fmt) == old


@pytest.mark.parametrize("more", [COPY_RANGE, {}], ids=["on", "off"])
@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_drive_mirror_by_the_kernel(tmp_path, target, more):
    """FEATURES 11.029: drive-mirror has the option, too"""
    old = world(tmp_path, "raw", "raw")
    daemon, client = traced(tmp_path)
    try:
        node(client, tmp_path / "d", "raw", "d")
        client.ok("drive-mirror", device="d", target=str(tmp_path / "new"), format=target, sync="full", job_id="j", auto_dismiss=False, **more)
        client.wait("BLOCK_JOB_READY", device="j")
        client.ok("job-complete", id="j")
        client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
        assert "error" not in client.ok("query-jobs")[0]
        client.ok("quit")
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert calls(tmp_path) == (SIZE // 2 if more else 0)
    assert content(tmp_path, tmp_path / "new", target) == old


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("copy_mode", ["background", "write-blocking"])
@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_mirror_under_a_writer(start, tmp_path, target, copy_mode):
    """FEATURES 11.029, J1: what a guest writes, zeroes and discards while the kernel copies is in the copy"""
    nbd = peers.need_module("nbd")
    disk = bytearray(world(tmp_path, "raw", target))
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    node(client, tmp_path / "d", "raw", "d", discard="unmap")
    node(client, tmp_path / "t", target, "t")
    client.ok("block-export-add", type="nbd", id="e", node_name="d", name="d", writable=True)
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///d?socket={daemon.folder}/n.sock")
    client.ok("blockdev-mirror", device="d", target="t", sync="full", job_id="j", speed=16 * MIB, granularity=65536, buf_size=4 * MIB, copy_mode=copy_mode, auto_dismiss=False,
              on_target_error="report", **COPY_RANGE)
    rng = random.Random(11)
    for n in range(400):
        at = rng.randrange(SIZE // 4096) * 4096
        length = min(4096 * rng.randrange(1, 40), SIZE - at)
        if rng.randrange(3):
            disk[at:at + length] = bytes([rng.randrange(1, 256)]) * length
            h.pwrite(bytes(disk[at:at + length]), at)
        else:
            disk[at:at + length] = bytes(length)
            h.zero(length, at)
        if n == 200:
            client.ok("block-job-set-speed", device="j", speed=0)
    client.wait("BLOCK_JOB_READY", device="j")
    h.pwrite(b"z" * 4096, 0)
    disk[:4096] = b"z" * 4096
    client.ok("job-complete", id="j")
    client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert "error" not in client.ok("query-jobs")[0]
    h.pwrite(b"y" * 4096, 8192)                  # goes to the target now
    disk[8192:8192 + 4096] = b"y" * 4096
    h.shutdown()
    assert daemon.stop()[0] == 0
    assert content(tmp_path, tmp_path / "t", target) == bytes(disk)
    if target == "qcow2":
        run.qemu_img("check", tmp_path / "t")
