# SPDX-License-Identifier: MIT
"""Character devices that come and go while the daemon runs, beside the peer's (FEATURES 8.003, 8.022)."""
import json
import os
import socket
import time

import pytest

from lib import run
from qmp_client import Qmp

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def unix(path, **more):
    return {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": str(path)}}, **more}}


NULL = {"type": "null", "data": {}}


def devices(client):
    return {d["label"]: d for d in client.ask("query-chardev")["return"]}


@BOTH
def test_devices_come_and_go(start, tmp_path, peer):
    """FEATURES 8.022: the same answers as the peer's to the life of a device"""
    daemon = start("daemon", peer=peer)
    client = daemon.qmp()
    kinds = {b["name"] for b in client.ask("query-chardev-backends")["return"]}
    assert {"socket", "stdio", "null"} <= kinds
    before = set(devices(client))
    path = tmp_path / "c.sock"
    assert client.ask("chardev-add", id="k", backend=unix(path, server=True, wait=False)) == {"return": {}}
    assert path.exists()
    again = client.ask("chardev-add", id="k", backend=NULL)["error"]
    assert again["desc"] == "Chardev with id 'k' already exists" and again["class"] == "GenericError"
    assert client.ask("chardev-add", id="n", backend=NULL) == {"return": {}}
    have = devices(client)
    assert set(have) == before | {"k", "n"}
    assert have["k"] == {"label": "k", "frontend-open": False, "filename": f"disconnected:unix:{path},server=on"}
    assert have["n"] == {"label": "n", "frontend-open": False, "filename": "null"}
    assert client.ask("chardev-send-break", id="k") == {"return": {}}
    assert client.ask("chardev-send-break", id="x")["error"]["desc"] == "Chardev 'x' not found"
    assert client.ask("chardev-change", id="n", backend=NULL) == {"return": {}}
    assert client.ask("chardev-change", id="x", backend=NULL)["error"]["desc"] == "Chardev 'x' does not exist"
    (mine,) = before
    assert client.ask("chardev-remove", id=mine)["error"]["desc"] == f"Chardev '{mine}' is busy"
    assert client.ask("chardev-change", id=mine, backend=NULL)["error"]["desc"] == "Chardev user does not support chardev hotswap"
    assert client.ask("chardev-remove", id="k") == {"return": {}}
    assert not path.exists() and set(devices(client)) == before | {"n"}
    assert client.ask("chardev-remove", id="k")["error"]["desc"] == "Chardev 'k' not found"
    for backend in ({"type": "odd", "data": {}}, unix(tmp_path / "no" / "c"), *([] if peer else [{"type": "null"}, unix("")])):
        assert "error" in client.ask("chardev-add", id="bad", backend=backend), backend
    assert set(devices(client)) == before | {"n"}
    assert daemon.stop()[0] == 0


def test_a_second_monitor(start, tmp_path):
    """FEATURES 8.022: a device that was added carries a monitor; who came early is served then; events reach it"""
    daemon = start("daemon")
    client = daemon.qmp()
    path = tmp_path / "m.sock"
    assert client.ask("chardev-add", id="m", backend=unix(path)) == {"return": {}}
    assert os.stat(path).st_mode & 0o777 == 0o600
    early = socket.socket(socket.AF_UNIX)
    early.settimeout(0.3)
    early.connect(str(path))
    with pytest.raises(TimeoutError):                                           # nobody is there yet
        early.recv(1)
    assert client.ask("x-byre-monitor-add", chardev="m") == {"return": {}}
    early.settimeout(10)
    assert b"QMP" in early.recv(65536)
    second = Qmp(str(path))
    assert devices(second)["m"] == {"label": "m", "frontend-open": True, "filename": f"disconnected:unix:{path},server=on"}
    for call, why in ((("chardev-remove", {"id": "m"}), "busy"), (("x-byre-monitor-add", {"chardev": "m"}), "busy"),
                      (("x-byre-monitor-add", {"chardev": "x"}), "not found"), (("x-byre-monitor-add", {"chardev": "m", "mode": "readline"}), "readline")):
        assert why in second.ask(call[0], **call[1])["error"]["desc"]
    assert client.ask("chardev-add", id="n", backend=NULL) == {"return": {}}
    assert "nobody" in client.ask("x-byre-monitor-add", chardev="n")["error"]["desc"]
    early.close()
    second.close()
    assert daemon.stop()[0] == 0 and not path.exists()


def test_ids_are_their_own(start, tmp_path):
    """FEATURES G.052: a second device, or monitor, of the same id is refused, on the command line too, and the first one stays; a name is free when no monitor has it"""
    daemon = start("daemon", "--chardev", "socket,id=m,path=m.sock,server=on,wait=off", "--monitor", "m,id=mon")
    client = daemon.qmp()
    for name in ("n", "o"):
        client.ok("chardev-add", id=name, backend=unix(tmp_path / name))
    assert "'n' already exists" in client.refused("chardev-add", id="n", backend=NULL)
    assert "'mon' already, on chardev 'm'" in client.refused("x-byre-monitor-add", chardev="n", id="mon")
    client.ok("x-byre-monitor-add", chardev="n", id="other")                            # it was not used up
    client.ok("x-byre-monitor-add", chardev="o")
    for path in (f"{daemon.folder}/m.sock", tmp_path / "n", tmp_path / "o"):
        Qmp(str(path)).close()
    sockets = ["--chardev", "socket,id=a,path=a.sock,server=on,wait=off", "--chardev", "socket,id=b,path=b.sock,server=on,wait=off"]
    done = run.byre("daemon", *sockets, "--monitor", "a,id=x", "--monitor", "b,id=x", cwd=tmp_path, code=1)
    assert "--monitor b,id=x: there is a monitor 'x' already" in done.err
    assert "already exists" in run.byre("daemon", *sockets, "--chardev", "null,id=b", cwd=tmp_path, code=1).err
    assert not (tmp_path / "a.sock").exists() and not (tmp_path / "b.sock").exists()
    assert daemon.stop()[0] == 0


def test_what_is_refused(start, tmp_path):
    """FEATURES 8.022: no port of the host, no second use of standard input, nothing that stops the other clients; nothing stays behind"""
    daemon = start("daemon", "--chardev", "stdio,id=s")
    client = daemon.qmp()
    port = {"type": "socket", "data": {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}, "server": True}}
    taken = tmp_path / "taken"
    taken.write_bytes(b"a file")
    for backend, why in ((port, "unix sockets only"), (unix(tmp_path / "w", wait=True), "'wait'"), ({"type": "stdio", "data": {}}, "stdio"),
                         (unix(tmp_path / ("x" * 108)), "bytes"), (unix(taken), "taken"), (unix(tmp_path / "none", server=False), "none"),
                         ({"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "1"}}}}, "'1'")):
        assert why in client.ask("chardev-add", id="x", backend=backend)["error"]["desc"], backend
    assert "bytes" in client.ask("chardev-add", id="", backend=NULL)["error"]["desc"]
    assert "x" not in devices(client) and taken.read_bytes() == b"a file" and not (tmp_path / "w").exists()
    assert daemon.stop()[0] == 0


def test_unused_device_goes_at_the_end(start, tmp_path):
    """FEATURES 8.003: a socket that no monitor had is removed too"""
    path = tmp_path / "u.sock"
    daemon = start("daemon", "--chardev", f"socket,id=u,path={path},server=on,wait=off")
    daemon.qmp()
    assert path.exists()
    first = socket.socket(socket.AF_UNIX)
    first.connect(str(path))
    assert daemon.stop()[0] == 0 and not path.exists()
    first.close()


def test_connects_to_another(start, tmp_path):
    """FEATURES 8.022: server=off connects when it is added, and is read when it has a monitor"""
    path = tmp_path / "o.sock"
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    other.listen(1)
    daemon = start("daemon")
    client = daemon.qmp()
    assert client.ask("chardev-add", id="o", backend=unix(path, server=False)) == {"return": {}}
    theirs, _ = other.accept()
    theirs.settimeout(10)
    theirs.sendall(b'{"execute": "qmp_capabilities"}{"execute": "query-jobs"}')
    assert client.ask("x-byre-monitor-add", chardev="o") == {"return": {}}
    text = b""
    while text.count(b"\n") < 3:
        text += theirs.recv(65536)
    assert json.loads(text.splitlines()[2]) == {"return": []}
    theirs.close()
    time.sleep(0.1)
    assert client.ask("query-jobs") == {"return": []}
    assert daemon.stop()[0] == 0
    other.close()


@BOTH
def test_ringbuf(start, peer):
    """FEATURES 8.022: a device that keeps its last bytes: what is written comes out once, the oldest goes first, text stays text"""
    client = start("daemon", peer=peer).qmp()
    assert {"ringbuf", "memory"} <= {b["name"] for b in client.ok("query-chardev-backends")}
    client.ok("chardev-add", id="r", backend={"type": "ringbuf", "data": {"size": 8}})
    client.ok("chardev-add", id="m", backend={"type": "memory", "data": {}})
    assert "power of two" in client.refused("chardev-add", id="x", backend={"type": "ringbuf", "data": {"size": 7}})
    assert devices(client)["r"]["filename"] == "ringbuf" and devices(client)["m"]["filename"] == "memory"
    client.ok("ringbuf-write", device="r", data="hello world")
    assert [client.ok("ringbuf-read", device="r", size=n) for n in (3, 100, 100)] == ["lo ", "world", ""]
    client.ok("ringbuf-write", device="r", data="aGk=", format="base64")
    assert client.ok("ringbuf-read", device="r", size=3, format="base64") == "aGk="
    client.ok("ringbuf-write", device="r", data="/8M=", format="base64")
    assert client.ok("ringbuf-read", device="r", size=3) == "\ufffd\ufffd"
    client.ok("ringbuf-write", device="m", data="\u00e4\u20ac\U0001f600")
    assert client.ok("ringbuf-read", device="m", size=100) == "\u00e4\u20ac\U0001f600"
    for size in (0, -1):
        assert client.refused("ringbuf-read", device="r", size=size) == "size must be greater than zero"
    assert client.refused("ringbuf-write", device="zz", data="") == "Device 'zz' not found"
    assert client.refused("ringbuf-read", device="c", size=1) == "c is not a ringbuf device"
    if not peer:
        assert "base64" in client.refused("ringbuf-write", device="r", data="a=", format="base64")
        assert "16 MiB" in client.refused("chardev-add", id="x", backend={"type": "ringbuf", "data": {"size": 1 << 40}})
        assert "nobody" in client.refused("x-byre-monitor-add", chardev="r")
    client.ok("chardev-remove", id="r")
    assert client.refused("ringbuf-read", device="r", size=1) == "Device 'r' not found"
