# SPDX-License-Identifier: MIT
"""Pull backup: an increment is read over NBD from a frozen disk, by what its dirty bitmap says (FEATURES 9.071, 9.072)."""
import json
import random
import time

from fleece_test import BOTH, SIZE, World, write_over
from lib import peers, run

CONTEXT = "qemu:dirty-bitmap:b0"


def act(kind, **data):
    return {"type": f"block-dirty-bitmap-{kind}", "data": data}


def dirty_parts(uri):
    """As nbdinfo prints it: offset, length, type."""
    rows = json.loads(run.run("nbdinfo", "--json", f"--map={CONTEXT}", uri).out)
    assert sum(r["length"] for r in rows) == SIZE and {r["type"] for r in rows} <= {0, 1}
    return [(r["offset"], r["length"]) for r in rows if r["type"] == 1]


@BOTH
def test_increments(tmp_path, start, peer):
    """FEATURES 9.071, 9.072: a full backup and three increments, pulled while the guest writes: each is the disk of its moment, and reads no more than was written"""
    peers.need("nbdinfo")
    disk = random.Random(9).randbytes(SIZE)
    (tmp_path / "disk.raw").write_bytes(disk)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "temp.qcow2", SIZE)
    w = World.__new__(World)
    w.daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    w.client = w.daemon.qmp()
    w.add(driver="raw", node_name="disk", file={"driver": "file", "filename": "disk.raw"})
    w.export("disk", "disk", writable=True)
    guest = w.open("disk")
    backup = bytearray(guest.pread(SIZE, 0))             # the full one; nobody writes yet
    w.ok("block-dirty-bitmap-add", node="disk", name="b0", granularity=4096)
    for turn in range(3):
        rng = random.Random(turn)
        for _ in range(12):                              # a part of the disk
            off = rng.randrange(SIZE // 2 // 512) * 512
            guest.pwrite(rng.randbytes(512), off)
        disk = bytes(guest.pread(SIZE, 0))
        guest.shutdown()                                 # the guest goes over to the filter
        w.ok("block-export-del", id="disk", mode="hard")
        while w.ok("query-block-exports"):
            time.sleep(0.01)
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "temp.qcow2", SIZE)
        w.add(driver="qcow2", node_name="temp", file={"driver": "file", "filename": str(tmp_path / "temp.qcow2")})
        w.add(driver="copy-before-write", node_name="cbw", file="disk", target="temp")
        w.add(driver="snapshot-access", node_name="snap", file="cbw")
        w.ok("transaction", actions=[act("add", node="disk", name="b1", granularity=4096), act("disable", node="disk", name="b0")])
        w.export("guest", "cbw", writable=True)
        w.export("snap", "snap", writable=False, bitmaps=[{"node": "disk", "name": "b0"}])
        guest = w.open("guest")
        now = write_over(guest, disk, 40 + turn, 30)
        snap = w.open("snap")
        parts = dirty_parts(w.uri("snap"))
        assert 0 < sum(length for _, length in parts) <= SIZE // 2 if turn == 0 else parts
        for off, length in parts:
            backup[off:off + length] = snap.pread(length, off)
        assert backup == disk == snap.pread(SIZE, 0)
        snap.shutdown()
        guest.shutdown()
        for name in ("snap", "guest"):
            w.ok("block-export-del", id=name, mode="hard")
        while w.ok("query-block-exports"):
            time.sleep(0.01)
        for node in ("snap", "cbw", "temp"):
            w.ok("blockdev-del", node_name=node)
        # the next increment begins where this one was taken
        w.ok("transaction", actions=[act("clear", node="disk", name="b0"), act("merge", node="disk", target="b0", bitmaps=["b1"]),
                                     act("enable", node="disk", name="b0"), act("remove", node="disk", name="b1")])
        w.export("disk", "disk", writable=True)
        guest = w.open("disk")
        assert guest.pread(SIZE, 0) == now
    guest.shutdown()
    w.ok("quit")
    assert w.daemon.wait()[0] == 0
