# SPDX-License-Identifier: MIT
"""blockdev-backup and drive-backup, beside the peer's (FEATURES 8.014, 9.060 to 9.068, 9.079 to 9.081, G.037, J4, J5)."""
import os
import pathlib
import random
import time

import pytest

from fleece_test import write_over
from lib import images, peers, run, wait

MIB = 1 << 20
SIZE = 8 * MIB
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def blocks(data, size=65536):
    return [data[i:i + size] for i in range(0, len(data), size)]


class World:
    """A chain low <- disk with known bytes; disk is exported for writing; nodes for targets."""

    def __init__(self, start, folder, peer=False, size=SIZE):
        rng = random.Random(3)
        self.folder, self.peer, self.size = folder, peer, size
        self.low = rng.randbytes(size // 4) + bytes(size - size // 4)
        (folder / "low.raw").write_bytes(self.low)
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", "low.raw", "-F", "raw", folder / "disk.qcow2")
        (folder / "noise").write_bytes(rng.randbytes(size // 8))
        run.qemu_io(folder / "disk.qcow2", f"write -s {folder / 'noise'} {size // 8} {size // 8}", "write -z 64k 64k", f"write -P 7 {size // 2} 1M", fmt="qcow2")
        run.qemu_img("convert", "-O", "raw", folder / "disk.qcow2", folder / "flat")
        self.old = (folder / "flat").read_bytes()
        self.names = 0
        self.start = start
        self.run()

    def run(self):
        self.daemon = self.start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=self.peer)
        self.client = self.daemon.qmp()
        self.add(driver="qcow2", node_name="disk", file={"driver": "file", "filename": str(self.folder / "disk.qcow2")})
        self.ok("block-export-add", type="nbd", id="e", node_name="disk", name="disk", writable=True)

    def ok(self, command, **arguments):
        return self.client.ok(command, **arguments)

    def refused(self, command, **arguments):
        return self.client.refused(command, **arguments)

    def add(self, **options):
        self.ok("blockdev-add", **options)

    def target(self, name=None, size=None, node=True, options=(), **more):
        self.names += 1
        path = self.folder / (name or f"t{self.names}.qcow2")
        run.qemu_img("create", "-q", "-f", "qcow2", *options, path, size or self.size)
        if node:
            self.add(driver="qcow2", node_name=path.stem, file={"driver": "file", "filename": str(path)}, **more)
        return path

    def guest(self, export="disk"):
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(f"nbd+unix:///{export}?socket={self.daemon.folder}/n.sock")
        return handle

    def backup(self, path, **more):
        self.ok("blockdev-backup", **{"device": "disk", "job_id": "j", "target": path.stem, "sync": "full", **more})

    def wait(self, *names):
        return self.client.wait(*names)

    def done(self):
        event = self.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
        assert event["event"] == "BLOCK_JOB_COMPLETED", event
        return event["data"]

    def gone(self):
        """Waits until the job is forgotten; its states on the way."""
        moves = []
        while moves[-1:] != ["null"]:
            moves.append(self.wait("JOB_STATUS_CHANGE")["data"]["status"])
        return [m for i, m in enumerate(moves) if m != "paused" and m not in moves[:i]]

    def bitmap(self, name="b"):
        for node in self.ok("query-named-block-nodes"):
            if node["node-name"] == "disk":
                return next(b for b in node.get("dirty-bitmaps", []) if b.get("name") == name)
        return None

    def dirty(self, name="b", block=65536):
        """Which blocks of the disk the bitmap holds."""
        self.names += 1
        export = f"x{self.names}"
        self.ok("block-export-add", type="nbd", id=export, node_name="disk", name=export, writable=True, bitmaps=[name])
        handle, found = peers.need_module("nbd").NBD(), set()
        handle.add_meta_context(f"qemu:dirty-bitmap:{name}")
        handle.connect_uri(f"nbd+unix:///{export}?socket={self.daemon.folder}/n.sock")

        def extent(_context, offset, entries, _error):
            for length, flags in zip(entries[0::2], entries[1::2]):
                if flags & 1:
                    found.update(range(offset // block, (offset + length - 1) // block + 1))
                offset += length
            at[0] = offset
        at = [0]
        while at[0] < self.size:
            handle.block_status(self.size - at[0], at[0], extent)
        handle.shutdown()
        self.ok("block-export-del", id=export, mode="hard")
        while any(e["id"] == export for e in self.ok("query-block-exports")):
            time.sleep(0.01)
        return found

    def content(self, path):
        """Read from the file, as others see it; the daemon may still have it open."""
        flat = path.with_suffix(".flat")
        run.qemu_img("convert", "-U", "-O", "raw", path, flat)
        return flat.read_bytes()

    def result(self, path, node=None):
        """The same when the node is closed, as the peer needs it."""
        self.ok("blockdev-del", node_name=node or path.stem)
        return self.content(path)

    def nodes(self):
        return sorted(n["node-name"] for n in self.ok("query-named-block-nodes"))

    def end(self):
        self.ok("quit")
        assert self.daemon.wait()[0] == 0


def same(a, b):
    """Big bytes, without a page of differences."""
    wrong = [i for i, (x, y) in enumerate(zip(blocks(a), blocks(b))) if x != y]
    assert len(a) == len(b) and not wrong, f"blocks {wrong[:20]} of {len(blocks(a))} differ"


@BOTH
@pytest.mark.parametrize("sync", ["full", "top"])
def test_the_moment_of_the_start(tmp_path, start, peer, sync):
    """FEATURES 9.060, 8.014: while the disk is written the target becomes what it was; the file alone holds it when the event comes (J4); states as the peer's"""
    w = World(start, tmp_path, peer)
    base = ["-b", "low.raw", "-F", "raw"] if sync == "top" else []
    target = w.target(options=base)
    before = w.nodes()
    guest = w.guest()
    w.backup(target, sync=sync, speed=65536)
    now = write_over(guest, w.old, 1)
    w.ok("block-job-set-speed", device="j", speed=0)
    event = w.done()
    if not peer:                                 # which has tables in memory still
        same(w.content(target), w.old)
    assert event == {"device": "j", "type": "backup", "len": event["len"], "offset": event["len"], "speed": 0}
    assert w.gone() == ["created", "running", "waiting", "pending", "concluded", "null"]
    assert w.nodes() == before and w.ok("query-jobs") == []
    now = write_over(guest, now, 2)
    assert guest.pread(SIZE, 0) == now
    guest.shutdown()
    w.end()
    same(w.content(tmp_path / "disk.qcow2"), now)
    run.qemu_img("check", target)
    same(w.content(target), w.old)


@BOTH
def test_only_what_is_overwritten(tmp_path, start, peer):
    """FEATURES 9.060: sync=none copies what guests overwrite, until it is cancelled"""
    w = World(start, tmp_path, peer)
    target = w.target()
    guest = w.guest()
    w.backup(target, sync="none")
    now = write_over(guest, w.old, 1, count=30)
    w.ok("block-job-cancel", device="j")
    assert w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")["event"] == "BLOCK_JOB_CANCELLED"
    w.gone()
    w.ok("blockdev-del", node_name=target.stem)
    got = w.content(target)
    for i, (old, new, kept) in enumerate(zip(blocks(w.old), blocks(now), blocks(got))):
        assert kept == old if old != new else kept in (old, bytes(65536)), i


@BOTH
def test_a_chain_of_increments(tmp_path, start, peer):
    """FEATURES 9.061, 9.080: a full backup and three increments, chained by rebase -u, are the disk at the last one; the bitmap then is empty"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
    full = w.target("f0.qcow2")
    w.backup(full)
    w.done()
    w.gone()
    now, chain = w.old, [full]
    for i in range(1, 4):
        now = write_over(guest, now, i, count=10)
        here = w.target(f"f{i}.qcow2")
        moment = now
        w.backup(here, sync="incremental", bitmap="b", speed=65536)
        assert w.bitmap()["busy"] is True
        assert "bitmap" in w.refused("block-dirty-bitmap-clear", node="disk", name="b").lower()
        now = write_over(guest, now, 10 + i, count=5)
        w.ok("block-job-set-speed", device="j", speed=0)
        w.done()
        w.gone()
        assert w.bitmap()["busy"] is False
        chain.append(here)
    changed = {i for i, (a, b) in enumerate(zip(blocks(moment), blocks(now))) if a != b}
    assert changed <= w.dirty() < set(range(SIZE // 65536))
    guest.shutdown()
    w.end()
    for lower, upper in zip(chain, chain[1:]):
        run.qemu_img("rebase", "-u", "-b", lower, "-F", "qcow2", upper)
    same(w.content(chain[-1]), moment)


def stop_half_way(w, guest, mode, how):
    """A backup by bitmap that copies a part and then fails or is cancelled. Returns (what the bitmap held, blocks written since)."""
    held = set(range(0, 128, 2))
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    for block in held:
        guest.pwrite(b"h" * 512, block * 65536)
    rules = [{"event": "none", "iotype": "write", "sector": 70 * 128, "errno": 28}] if how == "fail" else []
    file = w.target(node=False)
    inner = {"driver": "qcow2", "file": {"driver": "file", "filename": str(file)}}
    w.add(driver="blkdebug", node_name="t", image=inner, **({"inject_error": rules} if rules else {}))
    w.ok("blockdev-backup", device="disk", job_id="j", target="t", sync="bitmap", bitmap="b", bitmap_mode=mode, speed=MIB if how == "cancel" else 0,
         x_perf={"max-workers": 1})
    if how == "cancel":
        for block in (1, 2, 126):
            guest.pwrite(b"n" * 512, block * 65536)
        while w.ok("query-jobs")[0]["current-progress"] < MIB:
            time.sleep(0.02)
        w.ok("block-job-cancel", device="j")
        assert w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")["event"] == "BLOCK_JOB_CANCELLED"
        w.gone()
        return held, {1, 2, 126}
    assert "error" in w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")["data"]
    w.gone()
    return held, set()


@BOTH
@pytest.mark.parametrize("how", ["fail", "cancel"])
@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_after_a_part(tmp_path, start, peer, mode, how):
    """FEATURES 9.062, 9.081: after half of it: the bitmap holds what it held and what was written since; with always only what was not copied of the first"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    held, since = stop_half_way(w, guest, mode, how)
    w.ok("blockdev-del", node_name="t")
    copied = {i for i, block in enumerate(blocks(w.content(tmp_path / "t1.qcow2"))) if block != bytes(65536)}
    found = w.dirty()
    if mode != "always":
        assert found == held | since
    else:
        assert found & held == (held - copied) | (since & held)
        assert copied and held - copied and since <= found and found <= held | since


@BOTH
@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_after_success(tmp_path, start, peer, mode):
    """FEATURES 9.062: on-success and always: what was written since; never: nothing is taken away"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    guest.pwrite(b"h" * 512, 5 * 65536)
    guest.pwrite(b"h" * 512, 9 * 65536)
    target = w.target()
    w.backup(target, sync="bitmap", bitmap="b", bitmap_mode=mode, speed=65536)
    guest.pwrite(b"n" * 512, 9 * 65536)
    guest.pwrite(b"n" * 512, 77 * 65536)
    w.ok("block-job-set-speed", device="j", speed=0)
    w.done()
    w.gone()
    assert w.dirty() == ({5, 9, 77} if mode == "never" else {9, 77})
    got = blocks(w.result(target))
    assert {i for i, b in enumerate(got) if b != bytes(65536)} == {5, 9} and got[9][:512] == b"h" * 512


@BOTH
@pytest.mark.parametrize("sync", ["full", "top"])
def test_a_bitmap_begins_anew(tmp_path, start, peer, sync):
    """FEATURES 9.063: full and top set the bitmap to what was written since they began"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    guest.pwrite(b"h" * 512, 5 * 65536)
    target = w.target()
    w.backup(target, sync=sync, bitmap="b", bitmap_mode="on-success", speed=65536)
    guest.pwrite(b"n" * 512, 77 * 65536)
    w.ok("block-job-set-speed", device="j", speed=0)
    w.done()
    w.gone()
    assert w.dirty() == {77}


WRONG = [
    {"sync": "bitmap"}, {"sync": "incremental"}, {"sync": "bitmap", "bitmap": "b"}, {"sync": "bitmap", "bitmap": "nothing", "bitmap_mode": "never"},
    {"sync": "incremental", "bitmap": "b", "bitmap_mode": "never"}, {"sync": "incremental", "bitmap": "b", "bitmap_mode": "always"},
    {"bitmap_mode": "always"}, {"bitmap": "b"}, {"bitmap": "b", "bitmap_mode": "never"}, {"sync": "none", "bitmap": "b", "bitmap_mode": "always"},
    {"sync": "odd"}, {"target": "disk"}, {"target": "nobody"}, {"device": "nobody"}, {"job_id": "0bad"}, {"speed": -1}, {"target": "short"}, {"target": "readonly"},
    {"x_perf": {"max-workers": 0}}, {"x_perf": {"max-chunk": 4096}}, {"x_perf": {"odd": 1}}, {"bitmap_mode": "odd"}, {"filter_node_name": "short"},
]


@BOTH
def test_what_is_refused(tmp_path, start, peer):
    """FEATURES 9.060, 9.061, 9.065: what does not fit is refused by both, and leaves nothing behind"""
    w = World(start, tmp_path, peer)
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    target = w.target()
    w.target("short.qcow2", size=SIZE - 65536)
    ro = w.target("readonly.qcow2", node=False)
    w.add(driver="qcow2", node_name="readonly", read_only=True, file={"driver": "file", "filename": str(ro), "read-only": True})
    before, graph = w.nodes(), w.ok("x-debug-query-block-graph")
    for wrong in WRONG:
        answer = w.client.ask("blockdev-backup", **{"device": "disk", "job_id": "j", "target": target.stem, "sync": "full", **wrong})
        assert "error" in answer, wrong
    assert w.nodes() == before and w.ok("x-debug-query-block-graph") == graph and w.ok("query-jobs") == [] and w.bitmap()["busy"] is False
    w.backup(target, speed=1)
    w.refused("blockdev-backup", device="disk", job_id="j", target="short", sync="full")
    w.refused("blockdev-backup", device="disk", job_id="j2", target=target.stem, sync="full")
    w.refused("blockdev-del", node_name=target.stem)
    w.refused("block_resize", node_name="disk", size=SIZE * 2)
    if not peer:
        w.refused("block-export-add", type="nbd", id="e2", node_name=target.stem, name="t", writable=True)
    w.ok("block-job-cancel", device="j")
    w.gone()
    assert w.nodes() == before and w.ok("x-debug-query-block-graph") == graph


@BOTH
def test_steps_of_the_end(tmp_path, start, peer):
    """FEATURES 9.004, 9.005, 9.016: pending until it is finalized, concluded until it is dismissed; the filter by its name, and gone"""
    w = World(start, tmp_path, peer)
    target = w.target()
    w.backup(target, auto_finalize=False, auto_dismiss=False, filter_node_name="flt", speed=MIB)
    assert "flt" in w.nodes()
    w.ok("block-job-pause", device="j")
    wait.until(lambda: w.ok("query-jobs")[0]["status"] == "paused", "it does not pause")
    a = w.ok("query-jobs")[0]
    time.sleep(0.3)
    assert w.ok("query-jobs")[0] == a and a["status"] == "paused"
    w.ok("block-job-resume", device="j")
    w.ok("block-job-set-speed", device="j", speed=0)
    w.wait("BLOCK_JOB_PENDING")
    assert w.ok("query-jobs")[0]["status"] == "pending"
    w.ok("block-job-finalize", id="j")
    w.done()
    assert w.ok("query-jobs")[0]["status"] == "concluded"
    w.ok("block-job-dismiss", id="j")
    assert w.ok("query-jobs") == [] and "flt" not in w.nodes()
    same(w.result(target), w.old)


@BOTH
def test_compressed(tmp_path, start, peer):
    """FEATURES 9.064: clusters are stored compressed, those of guests' writes too"""
    w = World(start, tmp_path, peer)
    target = w.target()
    guest = w.guest()
    w.backup(target, compress=True, speed=65536)
    write_over(guest, w.old, 1, count=50)
    w.ok("block-job-set-speed", device="j", speed=0)
    w.done()
    w.end()
    same(w.content(target), w.old)
    clusters = run.qemu_img("check", "--output=json", target).json
    assert clusters["compressed-clusters"] > 0 and clusters["compressed-clusters"] + 40 >= clusters["allocated-clusters"]


def failing(w, path, rules, **more):
    w.add(driver="blkdebug", node_name="bad", image={"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}, inject_error=rules, **more)


FULL = [{"event": "none", "iotype": "write", "errno": 28}]


def test_target_is_full(tmp_path, start):
    """FEATURES 9.009, 9.068: the job fails, no write of a guest does; the graph is as it was"""
    w = World(start, tmp_path)
    failing(w, w.target(node=False), FULL)
    before = w.nodes()
    guest = w.guest()
    w.backup(tmp_path / "bad", sync="none")
    now = write_over(guest, w.old, 1)
    event = w.wait("BLOCK_JOB_COMPLETED")["data"]
    assert "No space" in event["error"]
    assert w.wait("BLOCK_JOB_ERROR")["data"] if any(e["event"] == "BLOCK_JOB_ERROR" for e in w.client.events) else True
    w.gone()
    assert w.nodes() == before and guest.pread(SIZE, 0) == now
    w.backup(tmp_path / "bad")
    assert "error" in w.wait("BLOCK_JOB_COMPLETED")["data"]
    assert guest.pread(SIZE, 0) == now


def test_the_write_may_fail_instead(tmp_path, start):
    """FEATURES 9.068: on-cbw-error=break-guest-write: the guest's write fails, the job goes on"""
    w = World(start, tmp_path)
    failing(w, w.target(node=False), [{"event": "none", "iotype": "write", "errno": 28, "once": True}])
    guest = w.guest()
    w.backup(tmp_path / "bad", sync="none", on_cbw_error="break-guest-write")
    with pytest.raises(peers.need_module("nbd").Error):
        guest.pwrite(b"x" * 512, MIB)
    guest.pwrite(b"x" * 512, MIB)
    assert w.ok("query-jobs")[0]["status"] == "running"


@BOTH
@pytest.mark.parametrize("action", ["stop", "enospc", "ignore", "report"])
def test_policies(tmp_path, start, peer, action):
    """FEATURES 9.009, 9.010: an error of the target: the job stands still and goes on when it is resumed, tries again, or fails"""
    w = World(start, tmp_path, peer)
    path = w.target(node=False)
    failing(w, path, [{"event": "none", "iotype": "write", "errno": 28, "once": True}])
    w.ok("blockdev-backup", device="disk", job_id="j", target="bad", sync="full", on_target_error=action)
    event = w.wait("BLOCK_JOB_ERROR")["data"]
    assert event == {"device": "j", "operation": "write", "action": "stop" if action == "enospc" else action}
    if action in ("stop", "enospc"):
        job = w.ok("query-block-jobs")[0]
        while not job["paused"] or job["io-status"] != "nospace":
            job = w.ok("query-block-jobs")[0]
        w.ok("block-job-resume", device="j")
    end = w.done()
    assert ("error" in end) == (action == "report")
    if action != "report":
        w.gone()
        w.ok("blockdev-del", node_name="bad")
        same(w.content(path), w.old)


@BOTH
def test_source_error(tmp_path, start, peer):
    """FEATURES 9.009: an error of the source is told as one of reading"""
    w = World(start, tmp_path, peer)
    w.ok("block-export-del", id="e", mode="hard")
    while w.ok("query-block-exports"):
        time.sleep(0.01)
    w.add(driver="blkdebug", node_name="odd", image="disk", inject_error=[{"event": "none", "iotype": "read", "errno": 5, "once": True}])
    target = w.target()
    w.ok("blockdev-backup", device="odd", job_id="j", target=target.stem, sync="full", on_source_error="ignore")
    assert w.wait("BLOCK_JOB_ERROR")["data"] == {"device": "j", "operation": "read", "action": "ignore"}
    assert "error" not in w.done()
    w.gone()
    same(w.result(target), w.old)


@pytest.mark.serial
def test_cancel_with_a_target_that_stands_still(tmp_path, start):
    """FEATURES 9.012: the job is gone within a second, and so are the waits of guests, whenever the target answers"""
    w = World(start, tmp_path)
    failing(w, w.target(node=False), [{"event": "none", "iotype": "write", "x-delay-ns": 90 * 10 ** 9}])
    guest = w.guest()
    w.backup(tmp_path / "bad")
    cookie = guest.aio_pwrite(bytearray(b"x" * 4096), MIB)
    time.sleep(0.3)
    begun = time.monotonic()
    w.ok("block-job-cancel", device="j")
    assert w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")["event"] == "BLOCK_JOB_CANCELLED"
    while not guest.aio_command_completed(cookie):
        guest.poll(100)
    assert time.monotonic() - begun < 3                      # it runs alone; the target answers much later
    w.ok("block-dirty-bitmap-add", node="disk", name="late")         # which drains the disk
    assert time.monotonic() - begun < 4
    guest.pwrite(b"y" * 4096, MIB)


def test_no_wait_is_longer_than_it_may(tmp_path, start):
    """FEATURES 9.068: cbw-timeout of the job: a target that stands still costs the backup, and a guest no more than this"""
    w = World(start, tmp_path)
    failing(w, w.target(node=False), [{"event": "none", "iotype": "write", "x-delay-ns": 90 * 10 ** 9}])
    guest = w.guest()
    w.backup(tmp_path / "bad", sync="none", cbw_timeout=1)
    begun = time.monotonic()
    guest.pwrite(b"x" * 4096, MIB)
    assert 0.9 < time.monotonic() - begun < 30               # of 90
    assert "error" in w.wait("BLOCK_JOB_COMPLETED")["data"]


def test_quit_while_it_runs(tmp_path, start):
    """FEATURES 9.019: quit ends it; the bitmap that is stored holds all it must"""
    w = World(start, tmp_path)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
    guest.pwrite(b"h" * 512, 5 * 65536)
    w.backup(w.target(), sync="incremental", bitmap="b", speed=1)
    guest.pwrite(b"n" * 512, 77 * 65536)
    guest.shutdown()
    w.end()
    run.qemu_img("check", tmp_path / "disk.qcow2")
    w.run()
    assert w.dirty() == {5, 77}


@BOTH
@pytest.mark.parametrize("sync", ["full", "top", "none"])
def test_to_a_file(tmp_path, start, peer, sync):
    """FEATURES 8.014, 9.060, G.079: drive-backup makes its file, with the backing file that the mode needs; with mode=existing it takes what is there"""
    w = World(start, tmp_path, peer)
    guest, copy = w.guest(), tmp_path / "copy.qcow2"
    w.ok("drive-backup", device="disk", job_id="j", target=str(copy), sync=sync, speed=65536)
    now = write_over(guest, w.old, 1, count=40)
    if sync == "none":
        w.ok("block-job-cancel", device="j")
        assert w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")["event"] == "BLOCK_JOB_CANCELLED"
    else:
        w.ok("block-job-set-speed", device="j", speed=0)
        w.done()
    w.gone()
    guest.shutdown()
    inode = copy.stat().st_ino
    below = run.qemu_img("info", "--output=json", "-U", copy).json.get("backing-filename")
    assert below and os.path.samefile(tmp_path / below, tmp_path / {"top": "low.raw", "none": "disk.qcow2"}[sync]) if sync != "full" else below is None
    same(w.content(copy), w.old)
    if sync == "full":
        before = w.nodes()
        w.refused("drive-backup", device="disk", job_id="j", target=str(tmp_path / "no" / "folder"), sync="full")
        w.refused("drive-backup", device="disk", job_id="j", target=str(tmp_path / "disk.qcow2"), sync="full")
        w.refused("drive-backup", device="disk", job_id="j", target=f"file:{tmp_path}/disk.qcow2", sync="full")
        w.refused("drive-backup", device="disk", job_id="j", target=f"nosuch:{tmp_path}/disk.qcow2", sync="full")
        w.refused("drive-backup", device="disk", job_id="0bad", target=str(tmp_path / "other"), sync="full")
        assert peer or not (tmp_path / "other").exists()
        assert w.nodes() == before
        w.ok("drive-backup", device="disk", job_id="j", target=str(copy), sync="full", mode="existing", format="qcow2")
        w.done()
        w.gone()
        assert copy.stat().st_ino == inode
        same(w.content(copy), now)
    w.end()
    same(w.content(tmp_path / "disk.qcow2"), now)


def entry(kind, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


@BOTH
def test_in_a_transaction(tmp_path, start, peer):
    """FEATURES 9.086, 9.089, G.036: a full backup and a bitmap that begins at the same moment; with an abort behind it nothing has happened"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    guest.pwrite(b"h" * 512, 5 * 65536)
    old = guest.pread(SIZE, 0)
    target = w.target()
    graph = w.ok("x-debug-query-block-graph")
    both = [entry("block-dirty-bitmap-clear", node="disk", name="b"), entry("blockdev-backup", device="disk", job_id="j", target=target.stem, sync="full", speed=65536)]
    w.refused("transaction", actions=[*both, entry("abort")])
    w.gone()
    assert w.dirty() == {5} and w.ok("x-debug-query-block-graph") == graph and w.ok("query-jobs") == []
    w.client.events.clear()
    w.ok("transaction", actions=both)
    guest.pwrite(b"n" * 512, 77 * 65536)
    w.ok("block-job-set-speed", device="j", speed=0)
    w.done()
    w.gone()
    assert w.dirty() == {77}
    same(w.result(target), old)


@BOTH
def test_grouped(tmp_path, start, peer):
    """FEATURES 9.015, 9.088, G.035, G.036: two backups of a group: one cannot be done, and neither bitmap is given up"""
    w = World(start, tmp_path, peer)
    guest = w.guest()
    for name in ("b", "c"):
        w.ok("block-dirty-bitmap-add", node="disk", name=name)
    guest.pwrite(b"h" * 512, 5 * 65536)
    good = w.target()
    failing(w, w.target(node=False), FULL)
    jobs = [entry("blockdev-backup", device="disk", job_id=name, target=target, sync="incremental", bitmap=name) for name, target in (("b", good.stem), ("c", "bad"))]
    answer = w.client.ask("transaction", actions=jobs, properties={"completion-mode": "grouped"})
    assert answer == {"return": {}}, answer
    ends = {w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")["event"] for _ in range(2)}
    assert ends == {"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"}
    while w.ok("query-jobs"):
        time.sleep(0.01)
    assert w.dirty("b") == {5} and w.dirty("c") == {5}


REFUSED = [{"x-perf": {"min-cluster-size": 3 * 4096}}, {"x-perf": {"max-chunk": 4096}}, {"format": "raw", "compress": True}, {"filter-node-name": "9 no name"},
           {"speed": -1}, {"job-id": "9"}, {"sync": "incremental", "bitmap": "none"}, {"format": "nothing"}, {"filter-node-name": "src"}, {"filter-node-name": "f"}]


@pytest.mark.parametrize("what", REFUSED, ids=str)
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a list"])
def test_drive_backup_refused(tmp_path, start, what, grouped):
    """FEATURES 9.060: what is refused costs nobody a file that was there, and leaves no file and no node"""
    images.create(tmp_path / "source", 16 * MIB)
    daemon = start("daemon")
    client = daemon.qmp()
    file = {"driver": "file", "filename": str(tmp_path / "source")}
    assert client.ask("blockdev-add", driver="qcow2", node_name="src", file=file) == {"return": {}}
    target = pathlib.Path(daemon.folder) / "target"
    nodes = client.ask("query-named-block-nodes", flat=True)

    def backup(**more):
        arguments = {"device": "src", "job-id": "j", "target": "target", "sync": "full", **more}
        if not grouped:
            return client.ask("drive-backup", **arguments)
        return client.ask("transaction", actions=[{"type": "drive-backup", "data": arguments}])
    if what == {"filter-node-name": "f"}:        # refused late: the image cannot have the space
        images.create(tmp_path / "held", 16 * MIB)
        assert "return" in client.ask("blockdev-add", driver="qcow2", node_name="f", file={"driver": "file", "filename": str(tmp_path / "held")})
        nodes = client.ask("query-named-block-nodes", flat=True)
    for content in (None, b"precious"):
        if content:
            target.write_bytes(content)
        answer = backup(**what)
        assert "error" in answer, answer
        assert (target.read_bytes() if target.exists() else None) == content, answer
        assert client.ask("query-named-block-nodes", flat=True) == nodes
        assert client.ask("query-jobs") == {"return": []}
    assert "return" in backup()
