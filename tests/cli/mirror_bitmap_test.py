# SPDX-License-Identifier: MIT
"""Mirrors by a dirty bitmap (FEATURES G.026), and of disks whose length changes meanwhile (FEATURES 9.024, G.031)."""
import os
import threading
import time

import pytest
from lib import images, mounts, peers, run, wait
from mirror_test import SIZE, disk_with_data, same, serve, write  # noqa: F401

KIB = 1 << 10
MIB = 1 << 20


def bitmaps(client):
    return {b["name"]: b for n in client.ok("query-named-block-nodes", flat=True) for b in n.get("dirty-bitmaps", [])}


def count(client):
    return bitmaps(client)["b"]["count"]


def settled(client):
    """A bitmap is cleared right behind the event, and busy until then."""
    wait.until(lambda: not bitmaps(client)["b"]["busy"], "the bitmap stays busy")


def all_is_copied(client):
    """And the job has said so for a while: what was written a moment ago may not be in its figures yet."""
    def even():
        job = client.ok("query-block-jobs")[0]
        return job["offset"] == job["len"]
    since = time.monotonic()
    while time.monotonic() - since < 0.5:
        if not even():
            wait.until(even, "the mirror does not get even")
            since = time.monotonic()
        time.sleep(0.02)


def end(client, how):
    client.wait("BLOCK_JOB_READY")
    if how == "force":                       # what is under way is not copied then, and stays in the bitmap
        all_is_copied(client)
    if how == "complete":
        client.ok("block-job-complete", device="j")
        name = "BLOCK_JOB_COMPLETED"
    else:
        client.ok("block-job-cancel", device="j", force=how == "force")
        name = "BLOCK_JOB_CANCELLED" if how == "force" else "BLOCK_JOB_COMPLETED"
    event = client.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    assert event["event"] == name and "error" not in event["data"], event


@pytest.fixture
def fast(tmp_path):
    """A folder where a flush takes no time: a job that is cancelled by force waits 0.4 s for the one of its target, and keeps the bitmap as it is behind that."""
    with mounts.tmpfs(tmp_path / "fast", "64M") as mount:
        yield mount


@pytest.mark.parametrize("how", ["complete", "leave", "force"])
@pytest.mark.parametrize("mode", ["on-success", "never", "always", None])
@pytest.mark.parametrize("persistent", [False, True], ids=["transient", "persistent"])
def test_bitmap(tmp_path, fast, serve, mode, how, persistent):  # noqa: F811
    """FEATURES G.026: what the bitmap says is copied, and nothing else; afterwards it says what is not on the target. None: sync=incremental"""
    disk, copy = disk_with_data(tmp_path / "disk"), (fast if how == "force" else tmp_path) / "copy"
    run.qemu_img("convert", "-O", "qcow2", disk, copy)
    run.qemu_io(copy, "write -P 99 20M 64k", fmt="qcow2")                  # nothing looks at it: the bitmap does not say it
    server, client = serve(disk)
    client.ok("block-dirty-bitmap-add", node="disk0", name="b", granularity=65536, persistent=persistent)
    write(server, "write -P 5 1M 200k", "write -z 3M 64k", "discard 30M 1M", "write -P 6 31M 4k")
    marked = count(client)
    assert marked == (256 + 64 + 1024 + 64) * KIB
    how_much = {"sync": "bitmap", "bitmap_mode": mode} if mode else {"sync": "incremental"}
    client.mirror(copy, mode="existing", bitmap="b", node_name="there", **how_much)
    assert bitmaps(client)["b"]["busy"]
    assert "in use" in client.refused("block-dirty-bitmap-remove", node="disk0", name="b")
    write(server, "write -P 7 8M 64k")
    end(client, how)
    good = how != "force"
    settled(client)
    assert count(client) == (marked + 64 * KIB if mode == "never" or (not good and mode != "always") else 0)
    if how != "complete":
        write(server, "write -P 8 9M 64k")
        assert count(client) % MIB >= 64 * KIB
    client.close()
    assert server.stop() == 0, server.output
    for image in (disk, copy):
        run.qemu_img("check", image)
    run.qemu_io(copy, "read -P 99 20M 64k", "write -P 0 20M 64k", fmt="qcow2")
    run.qemu_io(disk, *(["write -P 0 9M 64k"] if how != "complete" else []), fmt="qcow2")
    run.qemu_io(copy, "write -P 0 9M 64k", fmt="qcow2")
    same(disk, copy)


def test_bitmap_refused(tmp_path, serve):  # noqa: F811
    disk, copy = disk_with_data(tmp_path / "disk"), disk_with_data(tmp_path / "copy")
    _, client = serve(disk)
    ask = {"device": "disk0", "job_id": "j", "target": os.fspath(copy), "sync": "incremental", "mode": "existing"}
    assert "nothing" in client.refused("drive-mirror", **ask, bitmap="nothing")
    client.ok("block-dirty-bitmap-add", node="disk0", name="b")
    assert "0bad" in client.refused("drive-mirror", **{**ask, "job_id": "0bad"}, bitmap="b")
    assert not bitmaps(client)["b"]["busy"]


class Writer(threading.Thread):
    """Writes random places of the first part of a disk, and keeps what ought to be there."""

    def __init__(self, uri, size):
        super().__init__()
        self.handle = peers.need_module("nbd").NBD()
        self.handle.connect_uri(uri)
        self.model, self.stop, self.n = bytearray(self.handle.pread(size, 0)), False, 0

    def run(self):
        import random
        rng = random.Random(7)
        while not self.stop:
            off, byte = rng.randrange(len(self.model) - 8192) & ~511, rng.randrange(256)
            data = bytes([byte]) * (512 * rng.randrange(1, 16))
            self.handle.pwrite(data, off)
            self.model[off:off + len(data)] = data
            self.n += 1


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
@pytest.mark.parametrize("target", ["qcow2", "raw"])
def test_resize(tmp_path, serve, mode, target):  # noqa: F811
    """FEATURES G.031: the disk becomes longer and shorter while it is copied and written; the target follows"""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    server, client = serve(disk)
    writer = Writer(server.uri, SIZE // 2)
    writer.start()
    try:
        client.mirror(copy, node_name="there", format=target, copy_mode=mode, speed=24 * MIB)
        for size in (SIZE + 64 * KIB, SIZE // 2 + 512, SIZE // 2, 2 * SIZE, SIZE + 3 * 512, 3 * SIZE):
            client.ok("block_resize", device="disk0", size=size)
            sizes = {n["node-name"]: n["image"]["virtual-size"] for n in client.ok("query-named-block-nodes", flat=True)}
            assert sizes["disk0"] == sizes["there"] == size
            if size > 2 * SIZE:
                handle = peers.need_module("nbd").NBD()
                handle.connect_uri(server.uri)
                handle.pwrite(b"\7" * 70000, size - 70000)
                handle.shutdown()
            client.ok("block-job-set-speed", device="j", speed=0)
        client.complete()
        client.ok("block_resize", device="disk0", size=3 * SIZE + 512)
        wait.until(lambda: writer.n > 20 or not writer.is_alive(), "the guest does not come to write")
    finally:
        writer.stop = True
        writer.join()
    assert writer.n > 20
    writer.handle.flush()
    assert bytes(writer.handle.pread(len(writer.model), 0)) == bytes(writer.model)
    writer.handle.shutdown()
    write(server, f"read -P 7 {3 * SIZE - 70000} 70000", f"read -P 0 {SIZE // 2 + 8192} 1M", f"read -P 0 {3 * SIZE} 512")
    client.close()
    assert server.stop() == 0, server.output
    run.qemu_img("check", "-f", target, copy, code=(0, 63))


def test_resize_of_an_active_commit(tmp_path, serve):  # noqa: F811
    """FEATURES 9.045, G.031: the base becomes longer with the disk, and not shorter"""
    images.create(tmp_path / "base", SIZE)
    run.qemu_io(tmp_path / "base", "write -P 1 0 2M", fmt="qcow2")
    images.create(tmp_path / "top", SIZE, backing=tmp_path / "base")
    server, client = serve(tmp_path / "top")
    write(server, "write -P 3 2M 4M")
    client.ok("block-commit", device="disk0", job_id="j")
    client.wait("BLOCK_JOB_READY")
    client.ok("block_resize", device="disk0", size=2 * SIZE)
    write(server, f"write -P 4 {2 * SIZE - MIB} 1M")
    client.ok("block-job-complete", device="j")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    write(server, f"read -P 4 {2 * SIZE - MIB} 1M", "read -P 1 0 2M", "read -P 3 2M 4M", f"read -P 0 {SIZE} 1M")
    client.close()
    assert server.stop() == 0, server.output
    assert run.qemu_img("info", "--output=json", tmp_path / "base").json["virtual-size"] == 2 * SIZE


def test_target_that_cannot_follow(tmp_path, serve, byre_serve):  # noqa: F811
    """FEATURES 3.037, G.031: a disk of a server keeps its length, so the copied disk does, too; and it does after a refusal"""
    images.create(tmp_path / "far", SIZE, fmt="raw")
    far = byre_serve(tmp_path / "far", "-f", "raw")
    server, client = serve(disk_with_data(tmp_path / "disk"))
    client.mirror(far.uri, mode="existing", format="raw", node_name="there")
    client.wait("BLOCK_JOB_READY")
    for size in (2 * SIZE,):
        text = client.refused("block_resize", device="disk0", size=size)
        assert "'there'" in text and "'j'" in text, text
    assert client.ok("query-block")[0]["inserted"]["image"]["virtual-size"] == SIZE
    write(server, "write -P 9 5M 1M")
    client.ok("block-job-complete", device="j")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    write(server, "read -P 9 5M 1M", "read -P 1 0 3M")


@pytest.mark.parametrize("how", ["complete", "leave"])
def test_bitmaps_are_carried(tmp_path, serve, how):  # noqa: F811
    """FEATURES 9.040: with x-byre-carry-bitmaps the copy has the bitmaps, with what they said when the users went over, and records on."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    server, client = serve(disk)
    client.ok("block-dirty-bitmap-add", node="disk0", name="b", granularity=65536, persistent=True)
    client.ok("block-dirty-bitmap-add", node="disk0", name="still", granularity=131072, persistent=True)
    client.ok("block-dirty-bitmap-add", node="disk0", name="fleeting", granularity=65536)
    write(server, "write -P 5 1M 200k")
    client.ok("block-dirty-bitmap-disable", node="disk0", name="still")
    client.mirror(copy, node_name="there", x_byre_carry_bitmaps=True)
    write(server, "write -P 7 8M 64k")
    end(client, how)
    all_of = [n.get("dirty-bitmaps", []) for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"] == "there"]
    if how == "complete":
        found = {b["name"]: (b["count"], b["granularity"], b["persistent"], b["recording"]) for b in all_of[0]}
        assert found == {"b": (320 * KIB, 65536, True, True), "still": (256 * KIB, 131072, True, False), "fleeting": (320 * KIB, 65536, False, True)}
        write(server, "write -P 8 9M 64k")
        after = {b["name"]: b["count"] for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"] == "there" for b in n["dirty-bitmaps"]}
        assert after == {"b": 384 * KIB, "still": 256 * KIB, "fleeting": 384 * KIB}
    client.close()
    assert server.stop() == 0, server.output
    info = run.qemu_img("info", "--output=json", copy).json
    kept = {b["name"]: (b["granularity"], b["flags"]) for b in info["format-specific"]["data"]["bitmaps"]}
    assert kept == {"b": (65536, ["auto"]), "still": (131072, [])}
    run.qemu_img("check", "-q", copy)


def test_bitmaps_cannot_be_carried(tmp_path, serve):  # noqa: F811
    """What stands in the way is said at the beginning, and nothing is left of it."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    run.qemu_img("create", "-q", "-f", "qcow2", copy, SIZE)
    run.qemu_img("bitmap", "--add", copy, "b")
    server, client = serve(disk)
    client.ok("block-dirty-bitmap-add", node="disk0", name="b", persistent=True)
    ask = {"device": "disk0", "job_id": "j", "sync": "full", "mode": "existing", "x_byre_carry_bitmaps": True}
    assert "already" in client.refused("drive-mirror", target=str(copy), format="qcow2", **ask)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(SIZE))
    assert "cannot keep bitmaps" in client.refused("drive-mirror", target=str(raw), format="raw", **ask)
    old = tmp_path / "old"
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, SIZE)
    assert "version 2" in client.refused("drive-mirror", target=str(old), format="qcow2", **ask)
    client.ok("block-dirty-bitmap-remove", node="disk0", name="b")
    assert client.ok("query-jobs") == []
    client.close()
    assert server.stop() == 0, server.output
