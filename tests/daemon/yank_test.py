# SPDX-License-Identifier: MIT
"""A server that stands still is given up (FEATURES 11.038, G.051)."""
import os
import signal

import pytest

from lib import nbdserver, peers


def nodes(client):
    return {i["node-name"] for i in client.ok("query-yank")}


@pytest.mark.parametrize("oob", [False, True])
def test_requests_end(start, still, oob):
    """FEATURES 11.038, 8.009: a request to a server that stands still ends when its node is yanked, and not before; another monitor, and the same one out of
    band, can do it while a command waits for that server"""
    nbd = peers.need_module("nbd")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    client.ok("blockdev-add", **{"driver": "nbd", "node-name": "far", "server": {"type": "unix", "path": still.socket}, "reconnect-delay": 600})
    client.ok("blockdev-add", **{"driver": "null-co", "node-name": "near", "read-zeroes": True})
    client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "far", "writable": True})
    assert nodes(client) == {"far"}
    h = nbd.NBD()
    h.connect_uri(f"nbd+unix:///far?socket={daemon.folder}/n.sock")
    assert h.pread(512, 0) == bytes(512)
    nbdserver.stand_still(still.process.pid)
    cookie = h.aio_pread(nbd.Buffer(512), 4096)
    assert h.poll(300) == 0 and not h.aio_command_completed(cookie)                     # it waits
    error = client.refused("yank", instances=[{"type": "block-node", "node-name": "far"}, {"type": "block-node", "node-name": "near"}])
    assert "near" in error and h.poll(300) == 0                                         # all or nothing
    if oob:
        second = daemon.qmp(negotiate=False)
        second.send('{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}\n')
        assert second.receive() == {"return": {}}
        second.send('{"exec-oob": "yank", "id": 1, "arguments": {"instances": [{"type": "block-node", "node-name": "far"}]}}\n')
        assert second.receive() == {"return": {}, "id": 1}
    else:
        client.ok("yank", instances=[{"type": "block-node", "node-name": "far"}])
    with pytest.raises(nbd.Error):
        while not h.aio_command_completed(cookie):
            h.poll(-1)
    os.kill(still.process.pid, signal.SIGCONT)
    while True:                                                                         # and the node comes back
        try:
            assert h.pread(512, 4096) == bytes(512)
            break
        except nbd.Error:
            continue
    h.shutdown()
    assert daemon.stop()[0] == 0


def test_what_there_is(start, still):
    """FEATURES 11.038: the nodes of servers are listed, others are unknown to yank"""
    daemon = start("daemon")
    client = daemon.qmp()
    assert nodes(client) == set()
    client.ok("blockdev-add", **{"driver": "raw", "node-name": "r", "file": {"driver": "nbd", "node-name": "below", "server": {"type": "unix", "path": still.socket}}})
    client.ok("blockdev-add", **{"driver": "null-co", "node-name": "near"})
    assert nodes(client) == {"below"}
    answer = client.ask("yank", instances=[{"type": "block-node", "node-name": "near"}])
    assert answer["error"]["class"] == "DeviceNotFound"
    assert "odd" in client.refused("yank", instances=[{"type": "odd"}])
    client.ok("yank", instances=[])
    client.ok("blockdev-del", **{"node-name": "r"})
    assert nodes(client) == set()
    assert daemon.stop()[0] == 0
