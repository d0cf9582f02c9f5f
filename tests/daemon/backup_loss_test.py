# SPDX-License-Identifier: MIT
"""What a backup must not lose: others who change its disk past it, and bitmaps of what is not durable on its target (FEATURES 9.060, 9.062, J4, J5)."""
import time

import pytest

from backup_test import BOTH, MIB, SIZE, World, blocks, same
from lib import run

HELD = set(range(0, 128, 2))


def without_guest(start, folder, peer=False):
    w = World(start, folder, peer)
    w.ok("block-export-del", id="e")
    while w.ok("query-block-exports"):
        time.sleep(0.01)
    return w


def with_bitmap(start, folder, persistent=False):
    w = World(start, folder)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b", persistent=persistent)
    for block in HELD:
        guest.pwrite(b"h" * 512, block * 65536)
    return w


@BOTH
@pytest.mark.parametrize("how", ["seen", "implicit"])
@pytest.mark.parametrize("sync", ["full", "none"])
def test_nobody_goes_past_the_filter(tmp_path, start, peer, how, sync):
    """FEATURES 9.060, 11.002: of a disk that nobody uses: who begins to write to it meanwhile, or would change its length, is refused; behind it both go"""
    w = without_guest(start, tmp_path, peer)
    target = w.target()
    w.backup(target, sync=sync, speed=MIB, **({"filter-node-name": "f"} if how == "seen" else {}))
    w.refused("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)
    w.refused("block_resize", node_name="disk", size=SIZE // 2)
    if sync == "none":
        w.ok("block-job-cancel", device="j")
    else:
        w.ok("block-job-set-speed", device="j", speed=0)
    w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    w.gone()
    if sync == "full":
        same(w.result(target), w.old)
    w.ok("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)


def test_the_disk_stays_the_disk(tmp_path, start):
    """FEATURES 9.060, 11.005: what a filter filters does not become another disk while a backup above keeps a snapshot of it, or copies to it"""
    w = without_guest(start, tmp_path)
    w.ok("object-add", qom_type="throttle-group", id="g")
    w.add(driver="throttle", node_name="thr", throttle_group="g", file="disk")
    w.target("other.qcow2")
    target = w.target()
    w.add(driver="throttle", node_name="slow", throttle_group="g", file=target.stem)
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    w.ok("blockdev-backup", device="thr", job_id="j", target="slow", sync="full", speed=MIB, bitmap="b", bitmap_mode="always")
    to_other = {"driver": "throttle", "node-name": "thr", "throttle-group": "g", "file": "other"}
    assert "snapshot" in w.refused("blockdev-reopen", options=[to_other])
    assert "snapshot" in w.refused("blockdev-reopen", options=[{**to_other, "node-name": "slow"}])
    w.ok("block-job-set-speed", device="j", speed=0)
    w.done()
    w.gone()
    w.ok("blockdev-del", node_name="slow")
    same(w.result(target), w.old)
    w.ok("blockdev-reopen", options=[to_other])


def test_always_and_the_flush_fails(tmp_path, start):
    """FEATURES 9.062, J5: with bitmap-mode always, too, a bitmap goes on holding what is not known to be durable on the target. The peer flushes nothing."""
    w = with_bitmap(start, tmp_path)
    file = w.target(node=False)
    w.add(driver="blkdebug", node_name="t", image={"driver": "qcow2", "file": {"driver": "file", "filename": str(file)}},
          inject_error=[{"event": "none", "iotype": "flush", "errno": 5, "once": True}])
    w.ok("blockdev-backup", device="disk", job_id="j", target="t", sync="bitmap", bitmap="b", bitmap_mode="always")
    assert "cannot flush" in w.wait("BLOCK_JOB_COMPLETED")["data"]["error"]
    w.gone()
    assert w.dirty() == HELD


@pytest.mark.parametrize("mode", [None, "never", "on-success", "always"])
def test_the_flush_of_the_source_fails(tmp_path, start, mode):
    """FEATURES 9.062, P4, J5: what was copied and is not durable on the disk may be older there behind a crash: a bitmap goes on holding it. Where it does
    anyway, or without one, the copy is all that can be saved of such a disk, and is one."""
    w = without_guest(start, tmp_path)
    w.ok("blockdev-del", node_name="disk")
    w.add(driver="qcow2", node_name="disk", file={"driver": "blkdebug", "image": {"driver": "file", "filename": str(tmp_path / "disk.qcow2")},
                                                  "inject-error": [{"event": "none", "iotype": "flush", "errno": 5}]})
    w.ok("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    for block in HELD:
        guest.pwrite(b"h" * 512, block * 65536)
    now = guest.pread(SIZE, 0)
    target = w.target()
    w.backup(target, **({"sync": "bitmap", "bitmap": "b", "bitmap_mode": mode} if mode else {}))
    data = w.wait("BLOCK_JOB_COMPLETED")["data"]
    w.gone()
    assert w.dirty() == HELD
    if mode in (None, "never"):
        assert "error" not in data
    else:
        assert "cannot flush, so bitmap 'b' stays as it is" in data["error"]
    if not mode:
        same(w.content(target), now)
    guest.shutdown()


def test_always_cancelled_and_killed(tmp_path, start):
    """FEATURES 9.062, J5: half of it, cancelled, the bitmap stored with another one, kill -9: what is not on the target is in the bitmap"""
    w = with_bitmap(start, tmp_path, persistent=True)
    target = w.target()
    w.backup(target, sync="bitmap", bitmap="b", bitmap_mode="always", speed=MIB, x_perf={"max-workers": 1})
    while w.ok("query-jobs")[0]["current-progress"] < MIB:
        time.sleep(0.02)
    w.ok("block-job-cancel", device="j")
    w.wait("BLOCK_JOB_CANCELLED")
    w.gone()
    w.ok("block-dirty-bitmap-add", node="disk", name="other", persistent=True)
    w.daemon.process.kill()
    w.daemon.process.wait()
    copied = {i for i, block in enumerate(blocks(w.content(target))) if block != bytes(65536)}
    w.run()
    left = w.dirty()
    assert copied and len(left) < len(HELD)
    assert HELD <= copied | left


def test_two_bitmaps_of_jobs_while_the_mode_changes(tmp_path, start):
    """FEATURES 9.081, 11.005: bitmaps that backups follow come over when the node is opened for writing"""
    w = without_guest(start, tmp_path)
    below = next(n["node-name"] for n in w.ok("query-named-block-nodes") if n["file"].endswith("low.raw"))
    options = {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(tmp_path / "disk.qcow2")}, "backing": below}
    w.ok("blockdev-reopen", options=[{**options, "read-only": True}])
    jobs = []
    for name in "bcd":
        w.ok("block-dirty-bitmap-add", node="disk", name=name)
        jobs.append(w.target())
        w.backup(jobs[-1], job_id=name, speed=MIB, bitmap=name, bitmap_mode="always")
    w.ok("blockdev-reopen", options=[{**options, "read-only": False}])
    for name in "bcd":
        w.ok("block-job-set-speed", device=name, speed=0)
    while w.ok("query-jobs"):
        time.sleep(0.01)
    for target in jobs:
        same(w.result(target), w.old)


@pytest.mark.parametrize("why", ["job", "bitmap", "busy"])
def test_a_refused_command_leaves_the_file(tmp_path, start, why):
    """FEATURES 8.014, G.079: a file that is there is not given up for a command that is refused: asked once more, the last backup goes on being one"""
    w = World(start, tmp_path)
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    target = tmp_path / "copy.qcow2"
    how = {"device": "disk", "job-id": "j", "target": str(target), "format": "qcow2", "sync": "full"}
    w.ok("drive-backup", **how, auto_dismiss=False)
    w.done()
    if why == "busy":
        slow = w.target()
        w.backup(slow, job_id="other", speed=65536, bitmap="b", bitmap_mode="always")
    if why != "job":
        how.update({"job-id": "k", "bitmap": "b" if why == "busy" else "nobody", "bitmap-mode": "always"})
    w.refused("drive-backup", **how)
    same(w.content(target), w.old)
    w.refused("transaction", actions=[{"type": "drive-backup", "data": how}])
    same(w.content(target), w.old)


def test_a_refused_mirror_leaves_the_file(tmp_path, start):
    """FEATURES 9.022: the same for drive-mirror"""
    w = World(start, tmp_path)
    target = tmp_path / "copy.qcow2"
    how = {"device": "disk", "job-id": "j", "target": str(target), "format": "qcow2", "sync": "full"}
    w.ok("drive-backup", **how, auto_dismiss=False)
    w.done()
    w.refused("drive-mirror", **how)
    same(w.content(target), w.old)


@BOTH
@pytest.mark.parametrize("to", ["image", "filter"])
@pytest.mark.parametrize("sync", ["incremental", "top"])
def test_zeros_hide_what_comes_to_lie_below(tmp_path, start, peer, to, sync):
    """FEATURES 9.060, 9.061, J3: of a target that gets a part of the disk, also through a filter: zeros are there when it is put over what the disk was"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    full = w.target()
    w.backup(full, bitmap="b", bitmap_mode="always")
    w.done()
    w.gone()
    guest.zero(MIB, 0)
    guest.trim(MIB, SIZE // 2)
    guest.pwrite(bytes(65536), SIZE // 8)
    now = guest.pread(SIZE, 0)
    copy = w.target()
    w.ok("object-add", qom_type="throttle-group", id="g")
    w.add(driver="throttle", node_name="thr", throttle_group="g", file=copy.stem)
    w.backup(copy, target="thr" if to == "filter" else copy.stem, sync=sync, **({"bitmap": "b"} if sync == "incremental" else {}))
    w.done()
    w.gone()
    guest.shutdown()
    w.end()
    below, fmt = (full, "qcow2") if sync == "incremental" else (tmp_path / "low.raw", "raw")
    run.qemu_img("rebase", "-u", "-b", below, "-F", fmt, copy)
    same(w.content(copy), now)
