# SPDX-License-Identifier: MIT
"""Increments of two disks in one transaction whose jobs stand for themselves: one fails, and what is done then (FEATURES 9.090)."""
import json

import pytest

from lib import peers, run

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
SIZE = 8 << 20


def act(kind, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


def keep(node):
    """What the bitmap holds at the moment of the backup stands in another one as well."""
    return [act("block-dirty-bitmap-add", node=node, name="before", disabled=True),
            act("block-dirty-bitmap-merge", node=node, target="before", bitmaps=["inc"])]


def backup(node, number):
    return act("blockdev-backup", device=node, target=f"{node}{number}", job_id=f"{node}{number}", sync="incremental", bitmap="inc")


def count(client, node, name):
    (found,) = [n for n in client.ok("query-named-block-nodes") if n["node-name"] == node]
    return {b["name"]: b["count"] for b in found["dirty-bitmaps"]}[name]


@BOTH
def test_one_fails(tmp_path, start, peer):
    """FEATURES 9.090: the bitmap of the job that ended well is empty, that of the other holds what it held; merged back, both disks have an increment of one moment"""
    for node in "ab":
        for name in (node, f"{node}0", f"{node}1", f"{node}2"):
            run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", SIZE)
        run.qemu_io(tmp_path / f"{node}.qcow2", "write -P 1 0 4M")
        run.qemu_img("convert", "-O", "qcow2", tmp_path / f"{node}.qcow2", tmp_path / f"{node}0.qcow2")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()

    def add(name, file):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file=file)

    def write(node, off, value):
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(f"nbd+unix:///{node}?socket={daemon.folder}/n.sock")
        handle.pwrite(bytes([value]) * 65536, off)
        handle.shutdown()
    for node in "ab":
        add(node, {"driver": "file", "filename": str(tmp_path / f"{node}.qcow2")})
        client.ok("block-dirty-bitmap-add", node=node, name="inc")
        client.ok("block-export-add", type="nbd", id=node, node_name=node, name=node, writable=True)
        write(node, 1 << 20, 2)
        file = {"driver": "file", "filename": str(tmp_path / f"{node}1.qcow2")}
        add(f"{node}1", file if node == "a" else {"driver": "blkdebug", "image": file, "inject-error": [{"event": "none", "iotype": "write", "errno": 5, "once": False}]})
    client.ok("transaction", actions=[*keep("a"), *keep("b"), backup("a", 1), backup("b", 1)])
    ends = {n: client.wait("BLOCK_JOB_COMPLETED", device=n)["data"] for n in ("a1", "b1")}
    assert "error" not in ends["a1"] and "error" in ends["b1"], ends
    assert (count(client, "a", "inc"), count(client, "b", "inc")) == (0, 65536)
    write("a", 2 << 20, 3)
    client.ok("block-dirty-bitmap-merge", node="a", target="inc", bitmaps=["before"])         # docs/howto/backup.md: as if neither had been made
    assert count(client, "a", "inc") == 2 * 65536
    for node in "ab":
        client.ok("block-dirty-bitmap-remove", node=node, name="before")
        add(f"{node}2", {"driver": "file", "filename": str(tmp_path / f"{node}2.qcow2")})
    client.ok("transaction", actions=[backup("a", 2), backup("b", 2)])
    for node in "ab":
        assert "error" not in client.wait("BLOCK_JOB_COMPLETED", device=f"{node}2")["data"]
        assert count(client, node, "inc") == 0
    client.ok("quit")
    daemon.wait()
    for node in "ab":
        run.qemu_img("rebase", "-u", "-f", "qcow2", "-b", f"{node}0.qcow2", "-F", "qcow2", tmp_path / f"{node}2.qcow2")
        run.qemu_img("compare", tmp_path / f"{node}.qcow2", tmp_path / f"{node}2.qcow2")
    assert json.loads(run.qemu_img("map", "--output=json", tmp_path / "a2.qcow2").out)[0]["depth"] == 1
