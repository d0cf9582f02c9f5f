# SPDX-License-Identifier: MIT
"""A mirror whose target stands still: other commands go on, what needs the target is refused in time, and the disk is whole (FEATURES G.031, 9.012, RG28)."""
import os
import signal
import threading
import time

import pytest

from backup_test import MIB, SIZE, World, same
from lib import nbdserver, run, wait

S = 10 ** 9
LIMIT = 10                                                   # seconds that anybody waits for a target with edges held
PROMPT = 3                                                   # what waits for no target. "At once" on a machine that lets it


class Asked(threading.Thread):
    """A command that takes its time, on a connection of its own."""

    def __init__(self, w, command, **arguments):
        super().__init__()
        self.client, self.words, self.answer = w.daemon.qmp(), (command, arguments), None
        self.begin = time.monotonic()
        self.start()

    def run(self):
        self.answer = self.client.ask(self.words[0], **self.words[1])
        self.took = time.monotonic() - self.begin
        self.client.close()

    def ends(self, most):
        self.join(most)
        assert not self.is_alive(), self.words
        return self.answer


def others_go_on(w, most):
    """Nodes come and go, and another disk gets an overlay."""
    begin = time.monotonic()
    w.add(driver="null-co", node_name="n", size=MIB, read_zeroes=True)
    w.ok("blockdev-snapshot", node="other", overlay="over")
    w.ok("blockdev-del", node_name="n")
    w.ok("query-block-jobs")
    assert time.monotonic() - begin < most
    w.ok("blockdev-del", node_name="over")


@pytest.fixture
def w(start, tmp_path):
    world = World(start, tmp_path)
    for name, more in (("other", {}), ("over", {"backing": None})):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", SIZE)
        world.add(driver="qcow2", node_name=name, file={"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")}, **more)
    return world


def mirror(w, rules, *options, over=False):
    """To a target over a file with these faults, or (over) to an image below them, where each flush of the job is one. It is ready."""
    path = w.target(options=options, node=False)
    file = {"driver": "file", "filename": str(path)}
    if over:
        w.add(driver="blkdebug", node_name="t", image={"driver": "qcow2", "file": file}, inject_error=rules)
    else:
        w.add(driver="qcow2", node_name="t", file={"driver": "blkdebug", "image": file, "inject-error": rules})
    w.ok("blockdev-mirror", device="disk", job_id="j", target="t", sync="full")
    w.wait("BLOCK_JOB_READY")
    return path


def guest_writes(w, guest, byte, most=PROMPT):
    begin = time.monotonic()
    guest.pwrite(bytes([byte]) * 65536, MIB)
    assert guest.pread(65536, MIB) == bytes([byte]) * 65536 and time.monotonic() - begin < most


def ends_with(w, said):
    event = w.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
    assert said in event["data"].get("error", ""), event
    w.gone()


@pytest.mark.serial
def test_flush_at_the_end(tmp_path, w):
    """The flush with the edges held takes 6 s, and no other one does: it is left alone, others and the guest go on, and the job ends well behind it"""
    guest = w.guest()
    path = mirror(w, [{"event": "none", "iotype": "flush", "x-skip": 2, "once": True, "x-delay-ns": 6 * S}], over=True)
    guest_writes(w, guest, 0x31)
    wait.until(lambda: (job := w.ok("query-block-jobs")[0])["len"] == job["offset"], "it is not copied")
    w.ok("block-job-complete", device="j")
    others_go_on(w, PROMPT)
    guest_writes(w, guest, 0x32)
    assert w.ok("query-block-jobs")                          # it waits for that flush still
    assert "error" not in w.done()
    w.gone()
    guest_writes(w, guest, 0x33)
    content = guest.pread(SIZE, 0)
    guest.shutdown()
    w.end()
    same(w.content(path), content)


@pytest.mark.serial
@pytest.mark.parametrize("way", ["write", "flush"])
def test_resize_is_refused_ahead(tmp_path, w, way):
    """What the target is asked for before edges are held stands still: the disk stays as long as it was, and nobody else waits"""
    guest = w.guest()
    mirror(w, [{"event": "none", "iotype": way, **({"sector": 2 * MIB // 512} if way == "write" else {"x-skip": 1}), "once": True, "x-delay-ns": 15 * S}], over=True)
    if way == "write":
        guest.pwrite(b"\x40" * 65536, 2 * MIB)
        wait.until(lambda: (job := w.ok("query-block-jobs")[0])["len"] != job["offset"], "nothing is under way")
    resize = Asked(w, "block_resize", node_name="disk", size=2 * SIZE)
    time.sleep(0.5)
    others_go_on(w, PROMPT)
    if way == "flush":                                       # else it would see that the target answers something
        guest_writes(w, guest, 0x41)
    assert resize.is_alive()
    said = resize.ends(2 * LIMIT)["error"]["desc"]
    assert "'t'" in said and "10 seconds" in said and "'disk'" in said
    assert resize.took > LIMIT - 1
    w.ok("block-job-cancel", device="j", force=True)
    w.wait("BLOCK_JOB_CANCELLED")
    w.gone()
    assert guest.get_size() == SIZE
    w.ok("block_resize", node_name="disk", size=2 * SIZE)
    guest_writes(w, guest, 0x42)
    guest.shutdown()
    w.end()


@pytest.mark.serial
@pytest.mark.parametrize("how", ["grow", "shrink", "cancel"])
def test_target_is_resized_for_long(tmp_path, w, how):
    """The target stands still in the middle of a change of its length: the job has failed in time, whatever becomes of the target, and the disk is long as the command says"""
    guest = w.guest()
    mirror(w, [{"event": "l1_shrink_write_table" if how == "shrink" else "l1_grow_write_table", "iotype": "write", "once": True, "x-delay-ns": 20 * S}], "-o", "cluster_size=512")
    size = SIZE // 2 if how == "shrink" else 512 * MIB
    resize = Asked(w, "block_resize", node_name="disk", size=size)
    time.sleep(0.5)
    guest_writes(w, guest, 0x51)
    if how == "cancel":
        w.ok("block-job-cancel", device="j", force=True)
        w.wait("BLOCK_JOB_CANCELLED")
        w.gone()
        assert time.monotonic() - resize.begin < PROMPT
    others_go_on(w, LIMIT + PROMPT)
    answer = resize.ends(PROMPT)
    assert (answer == {"return": {}}) if how == "shrink" else ("'disk'" in answer["error"]["desc"]), answer
    if how != "cancel":
        assert resize.took > LIMIT - 1
        ends_with(w, "10 seconds")
    if how == "grow":
        assert "'t'" in answer["error"]["desc"] and "10 seconds" in answer["error"]["desc"]
    assert "'j'" in w.refused("blockdev-mirror", device="disk", job_id="k", target="t", sync="full")     # its requests are not over
    guest_writes(w, guest, 0x52)
    guest.shutdown()
    later = w.guest()
    assert later.get_size() == (size if how == "shrink" else SIZE)
    later.shutdown()
    w.ok("block_resize", node_name="disk", size=2 * SIZE)    # nobody follows any more
    w.end()
    run.qemu_img("check", tmp_path / "disk.qcow2")


@pytest.mark.serial
def test_drain_of_a_blocked_write(tmp_path, w, still):
    """A guest's write that waits for both sides, and so a snapshot of its disk: the write goes on without the target in time"""
    guest = w.guest()
    w.add(driver="nbd", node_name="far", server={"type": "unix", "path": still.socket})
    w.ok("blockdev-mirror", device="disk", job_id="j", target="far", sync="full", copy_mode="write-blocking")
    w.wait("BLOCK_JOB_READY")
    nbdserver.stand_still(still.process.pid)
    try:
        writer = threading.Thread(target=guest.pwrite, args=(b"\x61" * 65536, MIB))
        writer.start()
        time.sleep(0.5)
        assert writer.is_alive()
        snapshot = Asked(w, "blockdev-snapshot", node="disk", overlay="over")
        assert snapshot.ends(LIMIT + 2 * PROMPT) == {"return": {}}
        writer.join(PROMPT)
        assert not writer.is_alive() and snapshot.took > LIMIT - 1
        wait.until(lambda: (job := w.ok("query-block-jobs")[0])["len"] != job["offset"], "it is not told that the target has not got it")
    finally:
        os.kill(still.process.pid, signal.SIGCONT)
    wait.until(lambda: (job := w.ok("query-block-jobs")[0])["len"] == job["offset"], "it is not copied")
    assert guest.pread(65536, MIB) == b"\x61" * 65536
    w.ok("block-job-cancel", device="j")
    assert "error" not in w.done()
    w.gone()
    guest.shutdown()
    w.ok("block-export-add", type="nbd", id="far", node_name="far", name="far")
    there = w.guest("far")
    assert there.pread(65536, MIB) == b"\x61" * 65536        # the write is on the target all the same
    there.shutdown()
    w.end()


def mirror_by_bitmap(w, still):
    """A guest of src, which lies with a server that stands still now, goes over to t: the job is over, and its bitmap waits for a flush of src."""
    run.qemu_img("create", "-q", "-f", "qcow2", still.uri, SIZE)
    w.add(driver="qcow2", node_name="src", file={"driver": "nbd", "server": {"type": "unix", "path": still.socket}})
    w.ok("block-export-add", type="nbd", id="s", node_name="src", name="src", writable=True)
    w.ok("block-dirty-bitmap-add", node="src", name="b", persistent=True)
    guest = w.guest("src")
    guest.pwrite(b"\x71" * 65536, MIB)
    path = w.target("t.qcow2")
    w.ok("blockdev-mirror", device="src", job_id="j", target="t", sync="bitmap", bitmap="b", bitmap_mode="on-success", copy_mode="write-blocking")
    w.wait("BLOCK_JOB_READY")
    guest.pwrite(b"\x72" * 65536, 2 * MIB)                   # on both sides when it is answered; nothing is read from the source any more
    wait.until(lambda: w.ok("query-block-jobs")[0]["actively-synced"], "it is not copied")
    nbdserver.stand_still(still.process.pid)
    w.ok("block-job-complete", device="j")
    assert "error" not in w.done()
    return guest, path


def bits_of_src(w):
    return next(n for n in w.ok("query-named-block-nodes") if n["node-name"] == "src")["dirty-bitmaps"][0]["count"]


@pytest.mark.serial
def test_bitmap_of_a_source_that_stands_still(tmp_path, w, still):
    """A mirror by bitmap gives bits up behind a flush of what is the source then: guests, who are on the target, do not wait for it"""
    guest, _path = mirror_by_bitmap(w, still)
    try:
        begin = time.monotonic()
        cookie = guest.aio_pwrite(bytearray(b"\x73" * 65536), 3 * MIB)
        while not guest.aio_command_completed(cookie):
            guest.poll(100)
            assert time.monotonic() - begin < PROMPT
    finally:
        os.kill(still.process.pid, signal.SIGCONT)
    for byte, at in ((0x71, 1), (0x72, 2), (0x73, 3)):
        assert guest.pread(65536, at * MIB) == bytes([byte]) * 65536
    wait.until(lambda: not bits_of_src(w), "the bitmap keeps what has been copied")
    guest.shutdown()
    w.end()


@pytest.mark.serial
def test_target_goes_while_the_source_stands_still(tmp_path, w, still):
    """The target is nobody's but its users' when the event has come, whatever the source has to flush for its bitmap: without users it can be deleted"""
    guest, path = mirror_by_bitmap(w, still)
    try:
        guest.shutdown()
        w.ok("block-export-del", id="s", mode="hard")
        w.client.wait("BLOCK_EXPORT_DELETED", id="s")
        w.ok("blockdev-del", node_name="t")
    finally:
        os.kill(still.process.pid, signal.SIGCONT)
    wait.until(lambda: not bits_of_src(w), "the bitmap keeps what has been copied")
    w.end()
    content = w.content(path)
    assert content[MIB:MIB + 65536] == b"\x71" * 65536 and content[2 * MIB:2 * MIB + 65536] == b"\x72" * 65536
