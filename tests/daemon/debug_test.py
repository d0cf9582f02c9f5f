# SPDX-License-Identifier: MIT
"""Commands that look into the daemon, beside the peer's (FEATURES 8.016, 8.018, 8.021, 9.017)."""
import hashlib
import os
import threading

import pytest

from lib import run

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def world(start, tmp_path, peer, size=4 * MIB):
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", size)
    (tmp_path / "r.raw").write_bytes(bytes(MIB))
    daemon = start("daemon", "--blockdev", "driver=qcow2,node-name=a,file.driver=file,file.filename=a.qcow2",
                   "--blockdev", "driver=raw,node-name=r,file.driver=file,file.filename=r.raw",
                   "--nbd-server", "addr.type=unix,addr.path=n.sock", "--export", "type=nbd,id=e,node-name=a,name=a,writable=on", peer=peer)
    return daemon, daemon.qmp()


@BOTH
def test_blockdev_change(start, tmp_path, peer):
    """FEATURES 8.018: no driver here has children that come and go, and the peer says so of these, too."""
    _, client = world(start, tmp_path, peer)
    assert "conflict" in client.refused("x-blockdev-change", parent="a", child="file", node="r")
    assert "Either child or node" in client.refused("x-blockdev-change", parent="a")
    assert "'nix'" in client.refused("x-blockdev-change", parent="nix", node="r")
    assert "'nix' not found" in client.refused("x-blockdev-change", parent="a", node="nix")
    assert "does not have child 'nix'" in client.refused("x-blockdev-change", parent="a", child="nix")
    assert "does not support adding" in client.refused("x-blockdev-change", parent="a", node="r")
    assert "does not support removing" in client.refused("x-blockdev-change", parent="a", child="file")


@BOTH
def test_set_iothread(start, tmp_path, peer):
    """FEATURES 8.018, 9.017: a node is told a hundred times to go nowhere while a mirror follows its writes."""
    daemon, client = world(start, tmp_path, peer, size=32 * MIB)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "copy.qcow2", 32 * MIB)
    uri = f"nbd+unix:///a?socket={daemon.folder}/n.sock"
    run.qemu_io(uri, "write -P 1 0 32M", fmt="raw")
    assert "Failed to find node" in client.refused("x-blockdev-set-iothread", node_name="nix", iothread=None)
    assert "Cannot find iothread nix" in client.refused("x-blockdev-set-iothread", node_name="r", iothread="nix")
    client.ok("blockdev-add", driver="qcow2", node_name="copy", file={"driver": "file", "filename": str(tmp_path / "copy.qcow2")})
    client.ok("blockdev-mirror", device="a", target="copy", sync="full", job_id="j", speed=16 * MIB)
    writes = [f"write -P {2 + i % 200} {i * 37 % 480 * 64}k 64k" for i in range(300)]
    guest = threading.Thread(target=run.qemu_io, args=(uri, *writes), kwargs={"fmt": "raw"})
    guest.start()
    for _ in range(100):
        client.ok("x-blockdev-set-iothread", node_name="a", iothread=None, force=True)
    guest.join()
    while not any(e["event"] == "BLOCK_JOB_READY" for e in client.events):
        client.events.append(client.receive())
    client.ok("block-job-cancel", device="j")
    while not any(e["event"] == "BLOCK_JOB_COMPLETED" for e in client.events):
        client.events.append(client.receive())
    daemon.stop()
    run.qemu_img("compare", tmp_path / "a.qcow2", tmp_path / "copy.qcow2")


@BOTH
def test_bitmap_sha256(start, tmp_path, peer):
    """FEATURES 8.016: the hash of a bitmap is that of its bits, so both programs say the same of the same."""
    size, granule = 5 * MIB + 512, 65536
    daemon, client = world(start, tmp_path, peer, size=size)
    uri = f"nbd+unix:///a?socket={daemon.folder}/n.sock"
    client.ok("block-dirty-bitmap-add", node="a", name="b", granularity=granule)
    bits = bytearray((size // granule + 1 + 63) // 64 * 8)
    assert client.ok("x-debug-block-dirty-bitmap-sha256", node="a", name="b")["sha256"] == hashlib.sha256(bits).hexdigest()
    run.qemu_io(uri, "write 1M 100k", "write 5M 512", fmt="raw")
    for granule_at in (16, 17, 80):
        bits[granule_at // 8] |= 1 << granule_at % 8
    assert client.ok("x-debug-block-dirty-bitmap-sha256", node="a", name="b")["sha256"] == hashlib.sha256(bits).hexdigest()
    assert "'nix' not found" in client.refused("x-debug-block-dirty-bitmap-sha256", node="a", name="nix")
    assert "error" in client.ask("x-debug-block-dirty-bitmap-sha256", node="nix", name="b")


@BOTH
def test_bitmap_sha256_large(start, tmp_path, peer):
    size = 3 << 30
    daemon, client = world(start, tmp_path, peer, size=size)
    client.ok("block-dirty-bitmap-add", node="a", name="b", granularity=512)
    run.qemu_io(f"nbd+unix:///a?socket={daemon.folder}/n.sock", "write 2G 1M", fmt="raw")
    bits = bytearray(size // 512 // 8)
    bits[(2 << 30) // 4096:(2 << 30) // 4096 + 256] = b"\xff" * 256
    assert client.ok("x-debug-block-dirty-bitmap-sha256", node="a", name="b")["sha256"] == hashlib.sha256(bits).hexdigest()


@BOTH
def test_qom_list_types(start, tmp_path, peer):
    """FEATURES 8.021"""
    _, client = world(start, tmp_path, peer)
    parents = {t["name"]: t.get("parent") for t in client.ok("qom-list-types", implements="user-creatable")}
    ours = {"throttle-group": "object", "secret": "secret_common", "secret_keyring": "secret_common"}
    assert ours.items() <= parents.items()
    assert "secret_common" not in parents
    everything = {t["name"]: t for t in client.ok("qom-list-types", abstract=True)}
    assert everything["secret_common"]["abstract"] is True and "abstract" not in everything["secret"]
    assert {t["name"] for t in client.ok("qom-list-types", implements="secret_common")} == {"secret", "secret_keyring"}
    assert {t["name"] for t in client.ok("qom-list-types", implements="throttle-group")} == {"throttle-group"}
    assert client.ok("qom-list-types", implements="nix") == []
    if not peer:
        schema = client.ok("query-qmp-schema")
        by_name = {s["name"]: s for s in schema}
        tag = next(m for m in by_name[by_name["object-add"]["arg-type"]]["members"] if m["name"] == "qom-type")
        words = by_name[tag["type"]].get("values") or [m["name"] for m in by_name[tag["type"]]["members"]]
        assert sorted(words) == sorted(parents), "what object-add takes and what qom-list-types lists"


def test_no_leftovers(start, tmp_path):
    """FEATURES 8.010: nodes come and go a thousand times, and nothing is left of them."""
    daemon, client = world(start, tmp_path, False)

    def files():
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    def memory():
        with open(f"/proc/{daemon.process.pid}/statm") as f:
            return int(f.read().split()[1]) * 4096
    before = len(client.ok("query-named-block-nodes", flat=True)), files()
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "x.qcow2", MIB)
    for i in range(1000):
        if i == 200:
            grown = memory()
        client.ok("blockdev-add", driver="qcow2", node_name="x", file={"driver": "file", "filename": str(tmp_path / "x.qcow2")})
        if i % 100 == 0:
            assert "x" in client.refused("blockdev-add", driver="raw", node_name="x", file={"driver": "file", "filename": str(tmp_path / "r.raw")})
            client.ok("block-export-add", type="nbd", id="ex", node_name="x", name="x")
            assert "in use" in client.refused("blockdev-del", node_name="x")
            client.ok("block-export-del", id="ex", mode="hard")
            while any(e["id"] == "ex" for e in client.ok("query-block-exports")):
                pass
        client.ok("blockdev-del", node_name="x")
    assert (len(client.ok("query-named-block-nodes", flat=True)), files()) == before
    assert memory() - grown < 4 * MIB


def test_qom_list_properties(start):
    """FEATURES 8.021: what object-add takes, by the names and kinds that the peer has; a kind that nobody has"""
    told = []
    for peer in (False, True):
        client = start("daemon", peer=peer).qmp()
        assert client.ask("qom-list-properties", typename="odd")["error"] == {"class": "DeviceNotFound", "desc": "Class 'odd' not found"}
        told.append({t: {p["name"]: p["type"] for p in client.ok("qom-list-properties", typename=t)} for t in ("secret", "throttle-group", "tls-creds-x509", "authz-simple")})
    for name, ours in told[0].items():
        theirs = told[1][name]
        assert set(theirs) - set(ours) <= {"loaded"}, name                              # a word of older versions
        assert {k: v for k, v in ours.items() if k in theirs} == {k: v for k, v in theirs.items() if k in ours}, name
