# SPDX-License-Identifier: MIT
"""A backup into an image that lies over its own source, which is read meanwhile: the layout for fleecing (FEATURES 9.069)."""
import random
import struct
import threading

import pytest

from lib import peers, run

SIZE, BLOCK = 8 << 20, 4096
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def tagged(generation, start, length):
    """Each sector of 512 bytes says which one it is, and from when."""
    return b"".join(struct.pack("<QQ", generation, s) * 32 for s in range(start // 512, (start + length) // 512))


class World:
    """The disk `disk`, written through an export from before the beginning; `temp` over it, which a backup with sync=none fills."""

    def __init__(self, start, folder, peer, slow=0, keep="none", cluster=65536):
        self.old = tagged(0, 0, SIZE)
        (folder / "disk.raw").write_bytes(self.old)
        run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", folder / "temp.qcow2", SIZE)
        self.daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
        self.client = self.daemon.qmp()
        file = {"driver": "file", "filename": "disk.raw"}
        if slow:
            file = {"driver": "blkdebug", "image": file, "inject-error": [{"event": "none", "iotype": "read", "x-delay-ns": slow}]}
        self.ok("blockdev-add", driver="raw", node_name="disk", file=file)
        self.export("w", "disk", writable=True)
        self.guest = self.open("w")
        self.add_temp()
        self.ok("blockdev-backup", job_id="j", device="disk", target="temp", sync=keep, x_perf={"max-workers": 4})
        self.export("snap", "temp", writable=False)

    def add_temp(self):
        self.ok("blockdev-add", driver="qcow2", node_name="temp", file={"driver": "file", "filename": "temp.qcow2"}, backing="disk")

    def ok(self, command, **arguments):
        return self.client.ok(command, **arguments)

    def export(self, name, node, **more):
        self.ok("block-export-add", type="nbd", id=name, node_name=node, name=name, **more)

    def open(self, name):
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(f"nbd+unix:///{name}?socket={self.daemon.folder}/n.sock")
        return handle

    def end(self):
        self.ok("block-job-cancel", device="j")
        self.client.wait("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", device="j")


def write_all(handle, model, seed, alignment):
    """Every block once, in any order, and by parts of it: the first change of each granule is seen by the readers."""
    rng = random.Random(seed)
    places = list(range(0, SIZE, alignment))
    rng.shuffle(places)
    for place in places:
        off = place + rng.randrange(alignment // 512) * 512
        length = min(rng.choice((512, BLOCK, alignment)), place + alignment - off)
        data = tagged(seed, off, length)
        handle.pwrite(data, off)
        model[off:off + length] = data


def read_on(world, stop, seed, wrong):
    """Reads until it is told to stop; what is not as it was goes to `wrong`."""
    rng, handle, count = random.Random(seed), world.open("snap"), 0
    while not stop.is_set() or count < 20:
        length = rng.choice((512, BLOCK, 65536, 300032))
        off = rng.randrange((SIZE - length) // 512) * 512
        data = handle.pread(length, off)
        count += 1
        if data != world.old[off:off + length]:
            wrong.append((off, length))
    handle.shutdown()


def under_load(world, alignment, readers=3):
    """All blocks are written while others read; what was read wrong, and what the disk holds then."""
    stop, wrong, model = threading.Event(), [], bytearray(world.old)
    threads = [threading.Thread(target=read_on, args=(world, stop, i, wrong)) for i in range(readers)]
    for t in threads:
        t.start()
    try:
        for seed in (1, 2):
            write_all(world.guest, model, seed, alignment)
    finally:
        stop.set()
        for t in threads:
            t.join()
    return wrong, bytes(model)


@BOTH
@pytest.mark.parametrize("cluster", [65536, 262144])
def test_frozen(tmp_path, start, peer, cluster):
    """FEATURES 9.069: who reads the target sees the moment of the backup, and nothing half done, while every block of the disk is written"""
    w = World(start, tmp_path, peer, cluster=cluster)
    wrong, now = under_load(w, 65536)
    assert not wrong
    snap = w.open("snap")
    assert snap.pread(SIZE, 0) == w.old and w.guest.pread(SIZE, 0) == now
    snap.shutdown()
    w.end()
    w.guest.shutdown()
    w.ok("quit")
    assert w.daemon.wait()[0] == 0
    assert (tmp_path / "disk.raw").read_bytes() == now
    run.qemu_img("check", tmp_path / "temp.qcow2")


@pytest.mark.asan
@pytest.mark.tsan
def test_a_slow_source(tmp_path, start):
    """FEATURES 9.069: a read that was on its way to the source when a write came, and arrives there behind it, is not believed"""
    w = World(start, tmp_path, False, slow=3 * 10 ** 6)
    wrong, now = under_load(w, 65536, readers=6)
    assert not wrong
    assert w.guest.pread(SIZE, 0) == now


def test_zeros_and_status(tmp_path, start):
    """FEATURES 9.069: zeros that a guest writes, or makes by discarding, are not told of the frozen disk; zeros of then stay zeros"""
    w = World(start, tmp_path, False)
    nbd = peers.need_module("nbd")
    snap = nbd.NBD()
    snap.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    snap.connect_uri(f"nbd+unix:///snap?socket={w.daemon.folder}/n.sock")

    def status():
        told = []
        at = 0
        while at < SIZE:
            snap.block_status(SIZE - at, at, lambda context, offset, entries, error: told.extend(zip(entries[::2], entries[1::2])) and 0)
            at = sum(length for length, _ in told)
        return [flags for _, flags in told]
    w.guest.zero(SIZE // 2, 0)
    assert set(status()) == {0} and snap.pread(SIZE, 0) == w.old
    w.end()
    w.guest.pwrite(b"x" * 512, SIZE - 512)


@pytest.mark.asan
@pytest.mark.tsan
def test_zeros_of_then(tmp_path, start):
    """FEATURES 9.069: what read zeros at the moment of the backup still does when the guest has written there; sync=full ends by itself"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "temp.qcow2", SIZE)
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "empty.raw", SIZE)
    for sync in ("none", "full"):
        daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
        client = daemon.qmp()
        client.ok("blockdev-add", driver="raw", node_name="disk", file={"driver": "file", "filename": "empty.raw"})
        client.ok("blockdev-add", driver="qcow2", node_name="temp", file={"driver": "file", "filename": "temp.qcow2"}, backing="disk")
        client.ok("blockdev-backup", job_id="j", device="disk", target="temp", sync=sync, filter_node_name="keeps", speed=1 << 20,
                  auto_finalize=False)           # zeros are no work: it may have copied all before the guest comes, and stays
        client.ok("block-export-add", type="nbd", id="snap", node_name="temp", name="snap")
        client.ok("block-export-add", type="nbd", id="w", node_name="keeps", name="w", writable=True)
        guest, snap = (peers.need_module("nbd").NBD() for _ in range(2))
        guest.connect_uri(f"nbd+unix:///w?socket={daemon.folder}/n.sock")
        snap.connect_uri(f"nbd+unix:///snap?socket={daemon.folder}/n.sock")
        guest.pwrite(b"x" * 100000 + bytes(480), SIZE // 2 - 512 * 5)
        assert snap.pread(SIZE, 0) == bytes(SIZE)
        guest.shutdown()
        snap.shutdown()
        if sync == "full":
            client.wait("BLOCK_JOB_PENDING", id="j")
            client.ok("job-finalize", id="j")
            client.wait("BLOCK_JOB_COMPLETED", device="j")
        daemon.stop()
        run.qemu_img("create", "-q", "-f", "raw", tmp_path / "empty.raw", SIZE)
    assert run.qemu_io(tmp_path / "temp.qcow2", "read -P 0 0 8M")


def test_what_is_refused(tmp_path, start):
    """FEATURES 9.069: an image over a disk that is written is used by nobody before a backup keeps for it what it shows, and takes no backup of a part"""
    w = World(start, tmp_path, False)
    w.end()
    assert "snap" in [e["id"] for e in w.ok("query-block-exports")]      # it looks on, at the disk as it is
    w.guest.pwrite(b"y" * 512, 0)
    w.ok("block-export-del", id="snap", mode="hard")
    w.client.wait("BLOCK_EXPORT_DELETED", id="snap")
    w.ok("blockdev-del", node_name="temp")
    w.add_temp()
    assert "writes node 'disk'" in w.client.refused("block-export-add", type="nbd", id="snap", node_name="temp", name="snap")
    w.ok("blockdev-add", driver="copy-on-read", node_name="c", file="temp")
    assert "writes node 'disk'" in w.client.refused("block-export-add", type="nbd", id="snap", node_name="c", name="snap")
    w.ok("blockdev-del", node_name="c")
    w.ok("block-dirty-bitmap-add", node="disk", name="b")
    assert "sync 'none' or 'full'" in w.client.refused("blockdev-backup", job_id="k", device="disk", target="temp", sync="bitmap", bitmap="b", bitmap_mode="never")
    w.ok("blockdev-backup", job_id="k", device="disk", target="temp", sync="none", filter_node_name="keeps")
    w.export("snap", "temp", writable=False)
    assert "error" in w.client.ask("block-stream", job_id="s", device="temp")
    assert "error" in w.client.ask("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "temp", "file": {"driver": "file", "filename": "temp.qcow2"}, "backing": None}])
    w.ok("block-job-cancel", device="k")
    w.client.wait("BLOCK_JOB_CANCELLED", device="k")
    assert w.guest.pread(512, 0) == b"y" * 512
