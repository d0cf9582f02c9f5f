# SPDX-License-Identifier: MIT
"""drive-mirror, block-commit of the active layer, block-job-change (FEATURES 8.014, 9.011 to 9.014, 9.020 to 9.037, 9.041, 9.043, G.027, G.028, G.030, J1)."""
import os
import time

import pytest
from lib import images, run, wait
from qmp_client import Qmp

SIZE = 32 << 20


class Client(Qmp):
    def mirror(self, target, **more):
        self.ok("drive-mirror", **{"device": "disk0", "job_id": "j", "target": os.fspath(target), "sync": "full", **more})

    def complete(self):
        self.wait("BLOCK_JOB_READY")
        self.ok("block-job-complete", device="j")
        event = self.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
        assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"], event
        return event["data"]

    def disk(self):
        return self.ok("query-block")[0]["inserted"]["image"]["filename"]


@pytest.fixture
def serve(byre_serve):
    clients = []

    def start(path):
        server = byre_serve(path, "--threads", "2")
        clients.append(Client(server.control))
        return server, clients[-1]

    yield start
    for client in clients:
        client.close()


def write(server, *commands):
    run.qemu_io(server.uri, *commands, fmt="raw")


def same(a, b):
    run.qemu_img("compare", "-U", a, b)


def disk_with_data(path, **options):
    images.create(path, SIZE, **options)
    run.qemu_io(path, "write -P 1 0 3M", "write -P 2 5000k 70k", "write -z 8M 1M", "write -P 3 30M 2M", fmt="qcow2")
    return path


def test_full(tmp_path, serve):
    """FEATURES 9.014, 9.022, 9.027, 9.031, 9.032: events and fields of the peer; after the end everything goes to the target."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    server, client = serve(disk)
    client.mirror(copy, node_name="there")
    ready = client.wait("BLOCK_JOB_READY")["data"]
    assert ready == {"device": "j", "type": "mirror", "len": ready["len"], "offset": ready["len"], "speed": 0}
    job, = client.ok("query-block-jobs")
    assert job["ready"] is True and job["status"] == "ready" and job["io-status"] == "ok" and job["actively-synced"] is False
    assert job["x-byre-converge"]["mode"] == "off" and job["x-byre-converge"]["copy-mode"] == "background"
    same(disk, copy)
    write(server, "write -P 9 100k 4k", "write -z -u 1M 64k", "discard 30M 1M")
    client.ok("block-job-complete", device="j")
    done = client.wait("BLOCK_JOB_COMPLETED")["data"]
    assert done["type"] == "mirror" and done["len"] == done["offset"]
    assert client.disk() == os.fspath(copy)
    same(disk, copy)
    before = disk.read_bytes()
    write(server, "write -P 11 6M 1M")
    assert disk.read_bytes() == before
    client.close()
    assert server.stop() == 0, server.output
    run.qemu_img("check", copy)
    run.qemu_io(copy, "read -P 9 100k 4k", "read -P 0 1M 64k", "read -P 11 6M 1M", "read -P 2 5000k 70k", fmt="qcow2")
    info = run.qemu_img("info", "--output=json", copy).json
    assert info["virtual-size"] == SIZE and info["format"] == "qcow2" and "backing-filename" not in info
    assert os.stat(copy).st_blocks * 512 < 9 << 20


@pytest.mark.parametrize("sync", ["top", "none"])
def test_backing(tmp_path, serve, sync):
    """FEATURES 9.020, 9.034"""
    base, disk, copy = tmp_path / "base", tmp_path / "disk", tmp_path / "copy"
    images.create(base, SIZE)
    run.qemu_io(base, "write -P 7 0 4M", "write -P 8 20M 1M", fmt="qcow2")
    images.create(disk, SIZE, backing=base, backing_fmt="qcow2")
    run.qemu_io(disk, "write -P 1 1M 1M", "write -z 20M 64k", fmt="qcow2")
    server, client = serve(disk)
    client.mirror(copy, sync=sync)
    client.wait("BLOCK_JOB_READY")
    write(server, "write -P 5 3M 4k", "write -P 6 10M 64k")
    client.ok("block-job-complete", device="j")
    client.wait("BLOCK_JOB_COMPLETED")
    write(server, "write -P 4 12M 4k")
    client.close()
    assert server.stop() == 0, server.output
    below = os.path.basename(run.qemu_img("info", "--output=json", "-U", copy).json["backing-filename"])
    assert below == ("base" if sync == "top" else "disk")
    run.qemu_io(copy, "read -P 1 1M 1M", "read -P 7 0 1M", "read -P 0 20M 64k", "read -P 5 3M 4k", "read -P 6 10M 64k", "read -P 4 12M 4k", fmt="qcow2")
    top = run.qemu_img("map", "--output=json", copy).json
    held = sum(e["length"] for e in top if e["depth"] == 0)
    assert held < 3 << 20 and (sync == "top") == (held > 1 << 20)


def test_existing(tmp_path, serve):
    """FEATURES 9.022, 9.023, 9.037: a file that is there, full of old data."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    copy.write_bytes(b"\xff" * SIZE)
    inode = os.stat(copy).st_ino
    _, client = serve(disk)
    client.mirror(copy, mode="existing", format="raw")
    client.complete()
    assert os.stat(copy).st_ino == inode
    same(disk, copy)


def test_top_without_backing(tmp_path, serve):
    """FEATURES 9.021"""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    _, client = serve(disk)
    client.mirror(copy, sync="top", copy_mode="write-blocking")
    client.wait("BLOCK_JOB_READY")
    assert client.ok("query-block-jobs")[0]["actively-synced"] is True           # FEATURES 9.030
    client.ok("block-job-complete", device="j")
    client.wait("BLOCK_JOB_COMPLETED")
    same(disk, copy)


def test_cancel(tmp_path, serve):
    """FEATURES 9.011, 9.012, 9.013"""
    disk = disk_with_data(tmp_path / "disk")
    server, client = serve(disk)
    client.mirror(tmp_path / "a")
    client.wait("BLOCK_JOB_READY")
    write(server, "write -P 9 9M 1M")
    client.ok("block-job-cancel", device="j")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED")["data"]
    same(disk, tmp_path / "a")
    assert client.disk() == os.fspath(disk)
    client.mirror(tmp_path / "b")
    client.wait("BLOCK_JOB_READY")
    client.ok("block-job-cancel", device="j", force=True)
    client.wait("BLOCK_JOB_CANCELLED")
    client.mirror(tmp_path / "c", speed=1 << 20)
    client.ok("block-job-pause", device="j")
    assert "paused" in client.refused("block-job-cancel", device="j")
    client.ok("block-job-cancel", device="j", force=True)
    client.wait("BLOCK_JOB_CANCELLED")
    assert client.ok("query-block-jobs") == [] and client.disk() == os.fspath(disk)
    write(server, "read -P 9 9M 1M")


def test_change(tmp_path, serve):
    """G.027: both ways, as often as one likes."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    server, client = serve(disk)
    client.mirror(copy)
    client.wait("BLOCK_JOB_READY")
    for i in range(10):
        client.ok("block-job-change", id="j", type="mirror", copy_mode=("write-blocking", "background")[i % 2])
        write(server, f"write -P {i + 20} {i}M 300k")
    mode = client.ok("query-block-jobs")[0]["x-byre-converge"]["copy-mode"]
    assert mode == "background"
    client.ok("block-job-complete", device="j")
    client.wait("BLOCK_JOB_COMPLETED")
    same(disk, copy)
    for i in range(10):
        write(server, f"read -P {i + 20} {i}M 300k")


def test_finalize(tmp_path, serve):
    """FEATURES 9.004: nothing is changed before."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    server, client = serve(disk)
    client.mirror(copy, auto_finalize=False, auto_dismiss=False)
    client.wait("BLOCK_JOB_READY")
    client.ok("block-job-complete", device="j")
    client.wait("BLOCK_JOB_PENDING")
    assert client.disk() == os.fspath(disk)
    write(server, "write -P 9 9M 1M")
    client.ok("block-job-finalize", id="j")
    client.wait("BLOCK_JOB_COMPLETED")
    assert client.disk() == os.fspath(copy)
    pause = client.ok("query-block-jobs")[0]["x-byre-converge"]["pivot-pause-us"]
    assert 0 < pause < 1000000
    client.ok("block-job-dismiss", id="j")
    same(disk, copy)


def test_refused(tmp_path, serve):
    """FEATURES 9.024, 9.025: a sentence, and nothing is left behind."""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    _, client = serve(disk)
    ask = {"device": "disk0", "job_id": "j", "target": os.fspath(copy), "sync": "full"}
    assert "512B" in client.refused("drive-mirror", **{**ask, "granularity": 256})
    assert "power of 2" in client.refused("drive-mirror", **{**ask, "granularity": 3000})
    assert "bitmap" in client.refused("drive-mirror", **{**ask, "sync": "incremental"})
    assert "bitmap" in client.refused("drive-mirror", **{**ask, "bitmap": "b"})
    assert "bitmap-mode" in client.refused("drive-mirror", **{**ask, "sync": "bitmap", "bitmap": "b"})
    assert "on-success" in client.refused("drive-mirror", **{**ask, "sync": "incremental", "bitmap": "b", "bitmap_mode": "never"})
    assert "existing" in client.refused("drive-mirror", **{**ask, "sync": "incremental", "bitmap": "b"})
    assert "open" in client.refused("drive-mirror", **{**ask, "target": os.fspath(disk)})
    assert "none" in client.refused("drive-mirror", **{**ask, "device": "none"})
    assert "nothing" in client.refused("drive-mirror", **{**ask, "format": "nothing"})
    assert not copy.exists()
    copy.write_bytes(bytes(SIZE + 512))
    assert "different sizes" in client.refused("drive-mirror", **{**ask, "mode": "existing", "format": "raw"})
    assert "itself" in client.refused("blockdev-mirror", device="disk0", target="disk0", job_id="j", sync="full")
    assert "not found" in client.refused("block-job-complete", device="j")
    copy.unlink()
    client.mirror(copy)
    client.wait("BLOCK_JOB_READY")
    assert "drop-source" in client.refused("block-commit", device="disk0", job_id="c", drop_source=True)
    client.ok("block-job-cancel", device="j", force=True)


def test_active_commit(tmp_path, serve):
    """FEATURES 9.043, 9.044, 9.045: the disk itself goes into the layer two below, which is smaller, and takes its place."""
    images.create(tmp_path / "base", SIZE // 2)
    run.qemu_io(tmp_path / "base", "write -P 7 0 4M", fmt="qcow2")
    images.create(tmp_path / "mid", SIZE, backing="base", backing_fmt="qcow2")
    run.qemu_io(tmp_path / "mid", "write -P 1 1M 1M", "write -z 3M 64k", fmt="qcow2")
    disk = tmp_path / "disk"
    images.create(disk, SIZE, backing="mid", backing_fmt="qcow2")
    run.qemu_io(disk, "write -P 2 1500k 10k", "write -P 3 20M 1M", fmt="qcow2")
    server, client = serve(disk)
    client.ok("block-commit", device="disk0", job_id="j")
    client.wait("BLOCK_JOB_READY")
    assert client.ok("query-block-jobs")[0]["type"] == "commit"
    write(server, "write -P 5 5M 100k", "write -z 21M 64k")
    client.ok("block-job-complete", device="j")
    assert client.wait("BLOCK_JOB_COMPLETED")["data"]["type"] == "commit"
    assert os.path.basename(client.disk()) == "base"
    write(server, "write -P 6 31M 4k")
    client.close()
    assert server.stop() == 0, server.output
    run.qemu_img("check", tmp_path / "base")
    run.qemu_io(tmp_path / "base", "read -P 1 1M 400k", "read -P 2 1500k 10k", "read -P 3 20M 1M", "read -P 0 3M 64k", "read -P 5 5M 100k", "read -P 0 21M 64k",
                "read -P 6 31M 4k", "read -P 7 0 1M", fmt="qcow2")


def test_active_commit_converges(tmp_path, serve):
    """G.027, G.028: the options of a mirror, and its copy mode changed both ways; for layers below the disk they are refused"""
    base, mid, disk = tmp_path / "base", tmp_path / "mid", tmp_path / "disk"
    images.create(base, SIZE)
    images.create(mid, SIZE, backing="base", backing_fmt="qcow2")
    images.create(disk, SIZE, backing="mid", backing_fmt="qcow2")
    run.qemu_io(disk, "write -P 2 0 8M", fmt="qcow2")
    server, client = serve(disk)
    for name, value in (("copy-mode", "write-blocking"), ("converge", "auto"), ("deadline", 10), ("max-slowdown", 4), ("max-hold-ms", 100)):
        assert name in client.refused("block-commit", **{"device": "disk0", "job_id": "j", "top": "mid", name: value})
    client.ok("block-commit", device="disk0", job_id="j", copy_mode="write-blocking", converge="auto", deadline=60, max_slowdown=4, max_hold_ms=500, speed=4 << 20)
    while (said := client.ok("query-block-jobs")[0]["x-byre-converge"])["copy-mode"] != "write-blocking":
        time.sleep(0.02)                                     # it has not begun yet
    assert said["mode"] == "auto" and 50 < said["deadline-in-seconds"] <= 60
    client.ok("block-job-cancel", device="j", force=True)
    client.wait("BLOCK_JOB_CANCELLED")
    client.ok("block-commit", device="disk0", job_id="j", copy_mode="write-blocking", speed=4 << 20)
    for mode in ("background", "write-blocking", "background"):
        client.ok("block-job-change", id="j", type="mirror", copy_mode=mode)
        write(server, "write -P 7 1M 64k")
    assert client.ok("query-block-jobs")[0]["x-byre-converge"]["copy-mode"] == "background"
    client.ok("block-job-set-speed", device="j", speed=0)
    client.complete()
    client.close()
    assert server.stop() == 0, server.output
    run.qemu_io(base, "read -P 7 1M 64k", "read -P 2 2M 6M", fmt="qcow2")


def test_pause_and_speed(tmp_path, serve):
    """FEATURES 9.006, 9.007"""
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    _, client = serve(disk)
    begun = time.monotonic()
    client.mirror(copy, speed=1 << 20)
    wait.until(lambda: client.ok("query-block-jobs")[0]["offset"], "nothing is copied")
    client.ok("block-job-pause", device="j")
    client.refused("block-job-pause", device="j")
    wait.until(lambda: client.ok("query-jobs")[0]["status"] == "paused", "it does not pause")
    offset = client.ok("query-block-jobs")[0]["offset"]
    assert 0 < offset < (2.5 + time.monotonic() - begun) * (1 << 20)
    time.sleep(0.5)
    job = client.ok("query-block-jobs")[0]
    assert job["offset"] == offset and job["paused"] is True
    client.ok("block-job-set-speed", device="j", speed=0)
    client.ok("block-job-resume", device="j")
    client.complete()
    same(disk, copy)


def test_unmap(tmp_path, serve):
    """FEATURES 9.027: with unmap=false zeros take their space."""
    disk = disk_with_data(tmp_path / "disk")
    _, client = serve(disk)
    for unmap in (True, False):
        copy = tmp_path / f"copy-{unmap}"
        client.mirror(copy, format="raw", unmap=unmap)
        client.wait("BLOCK_JOB_READY")
        client.ok("block-job-cancel", device="j")
        client.wait("BLOCK_JOB_COMPLETED")
        same(disk, copy)
        assert (os.stat(copy).st_blocks * 512 >= SIZE) == (not unmap)


def test_base_of_a_commit_that_does_not_end(tmp_path, serve):
    """FEATURES 9.048: the base is open for writing while the disk goes into it, and not when that was given up"""
    images.create(tmp_path / "base", SIZE)
    images.create(tmp_path / "top", SIZE, backing=tmp_path / "base")
    server, client = serve(tmp_path / "top")
    write(server, "write -P 3 2M 4M")

    def base_is_read_only():
        files = {os.path.basename(n["file"]): n["ro"] for n in client.ok("query-named-block-nodes", flat=True)}
        modes = {os.readlink(f"/proc/{server.process.pid}/fd/{fd}"): os.stat(f"/proc/{server.process.pid}/fd/{fd}", follow_symlinks=False).st_mode & 0o200
                 for fd in os.listdir(f"/proc/{server.process.pid}/fd")}
        assert bool(modes[os.fspath(tmp_path / "base")]) != files["base"]
        return files["base"]

    assert base_is_read_only()
    assert "0bad" in client.refused("block-commit", device="disk0", job_id="0bad")
    assert base_is_read_only()
    for force in (True, False):
        client.ok("block-commit", device="disk0", job_id="j")
        client.wait("BLOCK_JOB_READY")
        assert not base_is_read_only()
        client.ok("block-job-cancel", device="j", force=force)
        client.wait("BLOCK_JOB_CANCELLED" if force else "BLOCK_JOB_COMPLETED")
        assert base_is_read_only()
        write(server, "write -P 4 3M 64k", "read -P 3 2M 1M")
    assert client.refused("block-commit", device="disk0", job_id="0", base_node="nothing")
    client.ok("block-commit", device="disk0", job_id="j")
    assert "does not allow" in client.refused("block-commit", device="disk0", job_id="k")
    client.complete()
    assert not base_is_read_only()
    write(server, "read -P 4 3M 64k", "write -P 5 0 64k")


def expected(path, model, *commands):
    """A raw file that holds what the disk does, with these writes."""
    run.qemu_img("convert", "-O", "raw", path, model)
    run.qemu_io(model, *commands, fmt="raw")
    return model


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_to_qed(tmp_path, serve, mode):
    """FEATURES 9.020, 9.022: a QED image is made as target and taken into use: what was there, and what was written before and behind the end"""
    early, late = ("write -P 7 4M 3M", "write -z 6M 64k", "write -P 8 31M 70k"), ("write -P 9 100k 5k", "write -P 10 20M 200k", "discard 0 64k")
    disk, copy = disk_with_data(tmp_path / "disk"), tmp_path / "copy"
    model = expected(disk, tmp_path / "model", *early, *late[:2], "write -z 0 64k")
    server, client = serve(disk)
    client.mirror(copy, format="qed", copy_mode=mode, granularity=65536)
    write(server, *early)
    client.complete()
    assert client.disk() == os.fspath(copy)
    write(server, *late)
    assert server.stop() == 0
    run.qemu_img("check", "-f", "qed", copy)
    run.qemu_img("compare", "-f", "qed", "-F", "raw", copy, model)
    assert run.byre("check", "-f", "qed", copy).code == 0


def test_snapshot_in_qed(tmp_path, serve):
    """FEATURES 9.073: an overlay of the format QED: the old disk stays as it was, the new one is both"""
    writes = ("write -P 7 4M 3M", "write -P 6 1k 512", "write -z 8500k 600k")
    disk, over = disk_with_data(tmp_path / "disk"), tmp_path / "over"
    before = expected(disk, tmp_path / "before", "read 0 512")
    model = expected(disk, tmp_path / "model", *writes)
    server, client = serve(disk)
    client.ok("blockdev-snapshot-sync", device="disk0", snapshot_file=os.fspath(over), format="qed")
    write(server, *writes)
    assert client.disk() == os.fspath(over)
    assert server.stop() == 0
    run.qemu_img("check", "-f", "qed", over)
    assert f'"backing-filename": "{disk}"' in run.qemu_img("info", "--output=json", over).out
    run.qemu_img("compare", "-f", "qed", "-F", "raw", over, model)
    run.qemu_img("compare", "-F", "raw", disk, before)


@pytest.mark.parametrize("what", [{"granularity": 3}, {"granularity": 256}, {"job_id": "9"}, {"node_name": "9 no"},
                                  {"format": "nothing"}, {"replaces": "nobody"}, {"replaces": "other"}, {"speed": -1}, {"sync": "bitmap"}, {"node_name": "disk0"}, {"buf_size": -1},
                                  {"format": "raw", "x_byre_carry_bitmaps": True}], ids=str)
def test_refused_costs_no_file(tmp_path, serve, what):
    """FEATURES 9.022: a drive-mirror that is refused leaves no file, and leaves one alone that was there"""
    _, client = serve(disk_with_data(tmp_path / "disk"))
    target = tmp_path / "target"
    client.ok("block-dirty-bitmap-add", node="disk0", name="b", persistent=True)
    (tmp_path / "other").write_bytes(bytes(SIZE))
    client.ok("blockdev-add", driver="raw", node_name="other", file={"driver": "file", "filename": os.fspath(tmp_path / "other")})
    for content in (None, b"precious"):
        if content:
            target.write_bytes(content)
        answer = client.ask("drive-mirror", **{"device": "disk0", "job_id": "j", "target": os.fspath(target), "sync": "full", **what})
        if "return" in answer:
            pytest.fail(f"it is not refused: {what}")
        assert (target.read_bytes() if target.exists() else None) == content, answer
        assert client.ok("query-jobs") == []
    assert "9 no" in client.refused("blockdev-snapshot-sync", device="disk0", snapshot_file=os.fspath(target), snapshot_node_name="9 no")
    assert target.read_bytes() == b"precious"
