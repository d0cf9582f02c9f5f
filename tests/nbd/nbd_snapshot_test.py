# SPDX-License-Identifier: MIT
"""Internal snapshots of a disk that is served and written to all the while (FEATURES 1.095, 8.013, 9.075)."""
import random
import struct
import threading
import time

import pytest
from lib import images, peers, run

nbd = peers.need_module("nbd")
BLOCK, BLOCKS, WRITERS = 4096, 96, 3
REGION = BLOCK * BLOCKS


class Writer(threading.Thread):
    """One connection, one write at a time, each with a number of its own, into a region of its own."""

    def __init__(self, uri, index):
        super().__init__(daemon=True)
        self.index, self.rng = index, random.Random(index)
        self.h = nbd.NBD()
        self.h.connect_uri(uri)
        self.history = []                       # (number, block), in the order of issue
        self.acked, self.stop, self.failure = 0, False, None

    def payload(self, number, block):
        return struct.pack("<QQ", number << 8 | self.index + 1, block) * (BLOCK // 16)

    def run(self):
        try:
            while not self.stop:
                number, block = len(self.history) + 1, self.rng.randrange(BLOCKS)
                self.history.append((number, block))
                self.h.pwrite(self.payload(number, block), self.index * REGION + block * BLOCK)
                self.acked = number
                if number % 50 == 0:
                    self.h.flush()
        except nbd.Error as e:
            self.failure = str(e)

    def end(self):
        self.stop = True
        self.join(20)
        assert not self.is_alive() and self.failure is None, self.failure
        self.h.shutdown()

    def judge(self, content, low, high):
        """The region is what a prefix of the history has left, at least `low` and at most `high` writes long."""
        seen = []
        for block in range(BLOCKS):
            data = content[self.index * REGION + block * BLOCK:][:BLOCK]
            number = struct.unpack_from("<Q", data)[0] >> 8
            assert data == (self.payload(number, block) if number else bytes(BLOCK)), f"writer {self.index}, block {block} is torn or misplaced"
            seen.append(number)
        last = max(seen)
        wanted = [0] * BLOCKS
        for number, block in self.history[:last]:
            wanted[block] = number
        assert seen == wanted, f"writer {self.index}: not the state behind write {last}"
        behind = [n for n, b in self.history[:low]][-1] if low else 0
        assert behind <= last <= high, f"writer {self.index}: the state behind write {last}, which is not in {behind} to {high}"


def view(image, name, folder, tool):
    tool("convert", "-l", f"snapshot.name={name}", "-O", "raw", image, folder / "view.raw")
    return (folder / "view.raw").read_bytes()


@pytest.mark.parametrize("options", ["cluster_size=4k", "cluster_size=64k", "cluster_size=4k,compat=0.10", "cluster_size=64k,lazy_refcounts=on"])
@pytest.mark.parametrize("threads", [1, 3])
def test_snapshots_under_load(byre_serve, backend, tmp_path, options, threads):
    """Every snapshot holds a moment: all that was acknowledged before it, nothing that was issued behind it"""
    image, rng = tmp_path / "disk.qcow2", random.Random(7)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(WRITERS * REGION))
    server = byre_serve(image, "-f", "qcow2", "--threads", threads, env={"BYRE_BACKEND": backend})
    writers = [Writer(server.uri, i) for i in range(WRITERS)]
    bounds = {}
    for w in writers:
        w.start()
    for i in range(10):
        time.sleep(rng.uniform(0, 0.05))
        low = [w.acked for w in writers]
        assert server.qmp("blockdev-snapshot-internal-sync", device="disk0", name=f"s{i}") == {}
        bounds[f"s{i}"] = low, [len(w.history) for w in writers]
        if len(bounds) > 3 or (bounds and rng.randrange(3) == 0):
            gone = rng.choice(sorted(bounds))
            assert server.qmp("blockdev-snapshot-delete-internal-sync", device="disk0", name=gone)["name"] == gone
            del bounds[gone]
    for w in writers:
        w.end()
    assert server.stop() == 0, server.output
    images.assert_sound(image)
    for name, (low, high) in bounds.items():
        ours = view(image, name, tmp_path, run.byre)
        assert ours == view(image, name, tmp_path, run.qemu_img)
        for w in writers:
            w.judge(ours, low[w.index], high[w.index])
    run.qemu_img("convert", "-O", "raw", image, tmp_path / "now.raw")
    now = (tmp_path / "now.raw").read_bytes()
    for w in writers:
        w.judge(now, w.acked, w.acked)
    assert sum(w.acked for w in writers) > 200


def test_commands(byre_serve, tmp_path):
    """FEATURES 9.075, 1.087: what is refused, and what deleting answers"""
    image = tmp_path / "disk.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    server = byre_serve(image, "-f", "qcow2")

    def fails(text, command, *words):
        done = run.byre("ctl", server.control, command, *words, code=1)
        assert text in done.err, done

    assert server.qmp("blockdev-snapshot-internal-sync", device="disk0", name="a") == {}
    fails("already", "blockdev-snapshot-internal-sync", "device=disk0", "name=a")
    fails("needs a name", "blockdev-snapshot-internal-sync", "device=disk0", "name=")
    fails("nothing", "blockdev-snapshot-internal-sync", "device=nothing", "name=b")
    fails("'name' is missing", "blockdev-snapshot-internal-sync", "device=disk0")
    fails("Name or id", "blockdev-snapshot-delete-internal-sync", "device=disk0")
    fails("not found", "blockdev-snapshot-delete-internal-sync", "device=disk0", "name=b")
    fails("not found", "blockdev-snapshot-delete-internal-sync", '{"device": "disk0", "name": "a", "id": "7"}')
    gone = server.qmp("blockdev-snapshot-delete-internal-sync", device="disk0", id="1", name="a")
    assert (gone["id"], gone["name"], gone["vm-state-size"], gone["vm-clock-sec"]) == ("1", "a", 0, 0) and gone["date-sec"] > 1.7e9
    assert server.stop() == 0
    images.assert_sound(image)


def test_at_the_same_time(byre_serve, tmp_path):
    """Several control clients change the image as a whole at once: sizes and snapshots come one after the other"""
    image = tmp_path / "disk.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "4M")
    run.byre("io", "-c", "write -P 3 0 4M", image)
    server = byre_serve(image, "-f", "qcow2", "--threads", "2")
    failed = []

    def client(number):
        for i in range(6):
            try:
                server.qmp("blockdev-snapshot-internal-sync", device="disk0", name=f"c{number}-{i}")
                server.qmp("block_resize", device="disk0", size=(4 << 20) + (number * 6 + i + 1) * 65536)
                if i % 2:
                    server.qmp("blockdev-snapshot-delete-internal-sync", device="disk0", name=f"c{number}-{i - 1}")
            except Exception as e:                # told in the main thread
                failed.append(str(e))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for c in clients:
        c.start()
    for c in clients:
        c.join(60)
    assert not failed, failed
    assert server.stop() == 0, server.output
    images.assert_sound(image)
    for n in range(4):
        for i in (1, 3, 5):
            content = view(image, f"c{n}-{i}", tmp_path, run.byre)
            assert content[:4 << 20] == bytes([3]) * (4 << 20) and not any(content[4 << 20:])


def test_refused_nodes(byre_serve, tmp_path):
    """Raw and read-only disks have none to make"""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    run.byre("create", "-q", "-f", "raw", raw, "1M")
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    for disk, options, text in ((raw, ["-f", "raw"], "no internal snapshots"), (image, ["-f", "qcow2", "--read-only"], "read-only")):
        server = byre_serve(disk, *options)
        assert text in run.byre("ctl", server.control, "blockdev-snapshot-internal-sync", "device=disk0", "name=a", code=1).err
        server.stop()
