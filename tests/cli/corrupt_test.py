# SPDX-License-Identifier: MIT
"""A served disk whose image turns out to be corrupt: who is told what, and what goes on. How damage is met: tests/interop/test_overlap.py."""
import pytest
from lib import corrupt, peers, run
from qmp_client import Qmp

from qcow2ref import COPIED, OFFSET_MASK

GUEST, MARK = 1 << 20, b"\x9e" * 4096


def damaged(tmp_path):
    """An image in which a mapping leads to its own L2 table, and where that is."""
    path = tmp_path / "x.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    run.qemu_io(path, "write -P 3 0 64k", "write -P 4 1M 64k")
    with corrupt.Editor(path) as editor:
        victim = editor.get_be64(editor.l1_entry(0)) & OFFSET_MASK
        editor.patch_l2(GUEST, lambda old: victim | COPIED)
    return path, victim


def test_event(tmp_path, byre_serve):
    """FEATURES 1.024, 1.113: a client of a server writes; everybody at the control socket is told, with the peer's members; queries show it"""
    nbd = peers.need_module("nbd")
    path, victim = damaged(tmp_path)
    server = byre_serve(path, "-f", "qcow2")
    watcher, other = Qmp(server.control), Qmp(server.control)
    h = nbd.NBD()
    h.connect_uri(server.uri)
    h.pwrite(bytes(4096), 0)
    with pytest.raises(nbd.Error) as failed:
        h.pwrite(MARK, GUEST + 8192)
    assert failed.value.errnum == 5
    event = watcher.receive()
    assert event["event"] == "BLOCK_IMAGE_CORRUPTED" and event["timestamp"]
    data = event["data"]
    assert set(data) == {"device", "node-name", "msg", "offset", "size", "fatal"}
    assert data["fatal"] is True and data["offset"] == victim + 8192 and data["size"] == 4096 and "L2 table" in data["msg"], data
    block = other.ask("query-block")["return"][0]
    assert data["device"] == block["device"] and data["node-name"] == block["inserted"]["node-name"]
    assert block["inserted"]["image"]["format-specific"]["data"]["corrupt"] is True
    for request in (lambda: h.pread(4096, 0), lambda: h.pwrite(bytes(4096), 0), h.flush):
        with pytest.raises(nbd.Error) as failed:
            request()
        assert failed.value.errnum == 5
    assert not [e for e in watcher.events + other.events[1:] if e["event"] == "BLOCK_IMAGE_CORRUPTED"]
    h.shutdown()
    server.stop()
    assert "corrupt" in server.output
    with open(path, "rb") as f:
        assert MARK not in f.read()
    assert run.qemu_img("info", "--output=json", path).json["format-specific"]["data"]["corrupt"] is True


def test_event_of_a_read_only_image(tmp_path, byre_serve):
    """FEATURES 1.113: damage that a read-only image meets is not fatal, and told of once"""
    nbd = peers.need_module("nbd")
    path, _ = damaged(tmp_path)
    with corrupt.Editor(path) as editor:
        editor.patch_l2(GUEST, lambda old: 0x50200 | COPIED)
    before = path.read_bytes()
    server = byre_serve(path, "-f", "qcow2", "--read-only")
    watcher = Qmp(server.control)
    h = nbd.NBD()
    h.connect_uri(server.uri)
    for _ in range(3):
        with pytest.raises(nbd.Error):
            h.pread(4096, GUEST)
        assert h.pread(4096, 0) == b"\x03" * 4096
    event = watcher.receive()
    assert event["event"] == "BLOCK_IMAGE_CORRUPTED" and event["data"]["fatal"] is False and "offset" not in event["data"]
    assert watcher.ask("query-block")["return"][0]["inserted"]["image"]["format-specific"]["data"]["corrupt"] is False
    assert {e["event"] for e in watcher.events} == {"BLOCK_IO_ERROR"}     # the reads have failed, which is told each second at most
    h.shutdown()
    server.stop()
    assert path.read_bytes() == before
