# SPDX-License-Identifier: MIT
"""Persistent reservations by a helper: qemu-pr-helper, which here has no SCSI device to send anything to, and one that keeps them in memory (FEATURES 3.021, G.051)."""
import contextlib
import json
import os
import signal
import subprocess

import pytest

from lib import peers, prhelper, run, wait

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
CHANGED = "PR_MANAGER_STATUS_CHANGED"
IN, OUT = "x-byre-persistent-reserve-in", "x-byre-persistent-reserve-out"


@pytest.fixture
def helper():
    h = prhelper.Helper().start()
    yield h
    h.close()


class RealHelper:
    def __init__(self, folder):
        self.path, self.process = os.path.join(folder, "s"), None

    def start(self):
        self.process = subprocess.Popen([peers.need("qemu-pr-helper"), "-k", self.path], stdin=subprocess.DEVNULL)
        wait.until(lambda: os.path.exists(self.path) and wait.listens(self.process, self.path), "the helper does not listen")
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()
        os.unlink(self.path)


@pytest.fixture
def real():
    base = prhelper.Helper()                                                            # its folder, whose path is short
    h = RealHelper(base.folder).start()
    yield h
    if h.process.poll() is None:
        h.kill()
    base.close()


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "d.raw"
    path.write_bytes(bytes(1 << 20))
    return path


def open_node(client, helper, path, name="f", manager="p"):
    client.ok("object-add", qom_type="pr-manager-helper", id=manager, path=helper.path)
    client.ok("blockdev-add", driver="file", node_name=name, filename=str(path), pr_manager=manager)


def connected(client):
    return {m["id"]: m["connected"] for m in client.ok("query-pr-managers")}


@BOTH
def test_objects(start, real, raw, peer):
    """FEATURES 3.021: an object whose helper is not there is refused; one whose helper is there tells of its connection; a node has it by its id, and no other object"""
    client = start("daemon", peer=peer).qmp()
    assert "'path' is missing" in client.refused("object-add", qom_type="pr-manager-helper", id="p")
    assert "Failed to connect to '/nowhere/s': No such file" in client.refused("object-add", qom_type="pr-manager-helper", id="p", path="/nowhere/s")
    client.ok("object-add", qom_type="pr-manager-helper", id="p", path=real.path)
    assert client.wait(CHANGED)["data"] == {"id": "p", "connected": True}
    for kind, options in (("pr-manager-helper", {"path": real.path}), ("secret", {"data": "x"}), ("throttle-group", {})):
        assert "'p'" in client.refused("object-add", qom_type=kind, id="p", **options)
    assert {"name": "p", "type": "child<pr-manager-helper>"} in client.ok("qom-list", path="/objects")
    assert client.ok("qom-list", path="/objects/p") == [{"name": "type", "type": "string"}, {"name": "path", "type": "string"}]
    assert client.ok("qom-get", path="p", property="path") == real.path
    assert "'pr-manager-helper.nix' not found" in client.refused("qom-get", path="p", property="nix")
    client.ok("blockdev-add", driver="file", node_name="f", filename=str(raw), pr_manager="p")
    client.ok("blockdev-del", node_name="f")
    client.ok("object-del", id="p")
    client.ok("object-add", qom_type="secret", id="s", data="x")
    if not peer:                                                                        # which may not live through the first of these
        assert client.refused("blockdev-add", driver="file", node_name="f", filename=str(raw), pr_manager="s") == "Object with id 's' is not a persistent reservation manager"
        assert {t["name"]: t["parent"] for t in client.ok("qom-list-types", implements="pr-manager")} == {"pr-manager-helper": "pr-manager"}
    assert client.refused("blockdev-add", driver="file", node_name="f", filename=str(raw), pr_manager="p") == "No persistent reservation manager with id 'p'"


def test_real_helper(start, real, raw):
    """FEATURES 3.021: qemu-pr-helper answers, that a regular file has no reservations; when it goes that is told, and when it is back the next command finds it"""
    daemon = start("daemon", "--object", f"pr-manager-helper,id=p,path={real.path}", "--blockdev", f"driver=file,node-name=f,filename={raw},pr-manager=p")
    client = daemon.qmp()
    assert connected(client) == {"p": True}
    for _ in range(2):                                                                  # one connection
        assert "node 'f': read-keys: the device refuses it: sense key 0xb (aborted command)" in client.refused(IN, node_name="f", service_action="read-keys")
        assert "node 'f': register: the device refuses it" in client.refused(OUT, node_name="f", service_action="register", service_action_key="0x1")
    assert not client.events
    real.kill()
    assert connected(client) == {"p": False} and client.wait(CHANGED)["data"] == {"id": "p", "connected": False}
    assert f"node 'f': Failed to connect to '{real.path}': No such file" in client.refused(IN, node_name="f", service_action="read-keys")
    assert not client.events                                                            # nothing has changed
    real.start()
    assert "aborted command" in client.refused(IN, node_name="f", service_action="read-keys")
    assert client.wait(CHANGED)["data"] == {"id": "p", "connected": True} and connected(client) == {"p": True}
    assert daemon.stop()[0] == 0


def test_content(start, helper, raw):
    """FEATURES 3.021, G.051: two initiators register, reserve, are kept out, preempt and clear; who asks is told the device's answer, taken apart and as it came"""
    there = prhelper.Helper(helper.units, "there").start()
    daemon = start("daemon")
    client = daemon.qmp()
    open_node(client, helper, raw)
    open_node(client, there, raw, "g", "q")

    def ask(action, node="f"):
        return client.ok(IN, node_name=node, service_action=action)

    def do(action, node="f", **arguments):
        client.ok(OUT, node_name=node, service_action=action, **arguments)

    def conflict(action, node="f", **arguments):
        assert f"node '{node}': {action}: reservation conflict" in client.refused(OUT, node_name=node, service_action=action, **arguments)

    def key(number):
        return f"0x{number:016x}"

    try:
        assert ask("read-keys") == {"data": "0000000000000000", "generation": 0, "keys": []}
        do("register", service_action_key="0xA1", aptpl=True)
        do("register-and-ignore-existing-key", "g", service_action_key="0xfedcba9876543210", all_target_ports=True)
        assert ask("read-keys", "g") == {"data": f"0000000200000010{0xa1:016x}fedcba9876543210", "generation": 2, "keys": [key(0xA1), key(0xFEDCBA9876543210)]}
        conflict("register", key="0x1", service_action_key="0x2")
        assert "reservation" not in ask("read-reservation")
        do("reserve", key="0xa1", type="write-exclusive-registrants-only")
        assert ask("read-reservation")["reservation"] == {"key": key(0xA1), "scope": 0, "type": "write-exclusive-registrants-only"}
        conflict("reserve", "g", key="0xfedcba9876543210", type="exclusive-access")
        full = [{"key": key(0xA1), "holder": True, "all-target-ports": False, "scope": 0, "type": "write-exclusive-registrants-only", "relative-target-port": 1,
                 "transport-id": b"here".hex()},
                {"key": key(0xFEDCBA9876543210), "holder": False, "all-target-ports": False, "relative-target-port": 1, "transport-id": b"there".hex()}]
        assert ask("read-full-status")["full-status"] == full
        do("preempt-and-abort", "g", key="0xfedcba9876543210", service_action_key="0xa1", type="exclusive-access")
        assert ask("read-reservation")["reservation"] == {"key": key(0xFEDCBA9876543210), "scope": 0, "type": "exclusive-access"}
        assert [r["key"] for r in ask("read-full-status")["full-status"]] == [key(0xFEDCBA9876543210)]
        do("release", "g", key="0xfedcba9876543210", type="exclusive-access")
        assert "reservation" not in ask("read-reservation")
        do("register", service_action_key="0x7")
        do("preempt", key="0x7", service_action_key="0xfedcba9876543210", type="write-exclusive")
        do("clear", key="0x7")
        assert ask("read-keys")["keys"] == []
        can = ask("report-capabilities")["capabilities"]
        assert len(can.pop("types")) == 6 and can == {
            "replace-lost-reservation": False, "compatible-reservation-handling": False, "specify-initiator-ports": True, "all-target-ports": True,
            "persist-through-power-loss": True, "persist-through-power-loss-activated": False, "allow-commands": 0}
        assert ask("report-capabilities")["data"] == "00080d80ea010000"
        stat = os.stat(raw)
        assert {where for _, _, where in helper.requests + there.requests} == {(stat.st_dev, stat.st_ino)}
        flags = [parameters[20] for cdb, parameters, _ in helper.requests + there.requests if cdb[0] == prhelper.OUT and parameters[20]]
        assert flags == [1, 4]
        assert daemon.stop()[0] == 0
    finally:
        there.close()


def test_more_than_fits(start, helper, raw):
    """FEATURES 3.021: a device with more keys than an answer holds"""
    client = start("daemon").qmp()
    open_node(client, helper, raw)
    stat = os.stat(raw)
    unit = helper.units[stat.st_dev, stat.st_ino] = prhelper.Unit()
    unit.keys = {str(i): i for i in range(1, 2001)}
    whole = unit.data(0)
    unit.data = lambda action: whole[:8192]
    answer = client.ok(IN, node_name="f", service_action="read-keys")
    assert answer["truncated"] is True and answer["keys"] == [f"0x{i:016x}" for i in range(1, 1024)] and len(answer["data"]) == 2 * 8192
    unit.data = lambda action: bytes(3)
    assert "node 'f': read-keys: the device's answer makes no sense: the data has 3 bytes" in client.refused(IN, node_name="f", service_action="read-keys")
    assert connected(client) == {"p": True}


def test_who_has_it(start, helper, raw, tmp_path):
    """FEATURES 3.021: a node over the file is as good as the file; what has no manager says so; an object that is used stays, until its last node has gone"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "q.qcow2", "1M")
    daemon = start("daemon")
    client = daemon.qmp()
    open_node(client, helper, raw)
    client.ok("blockdev-add", driver="raw", node_name="over", file="f")
    client.ok("object-add", qom_type="throttle-group", id="g")
    client.ok("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file="over")
    file = {"driver": "file", "filename": str(tmp_path / "q.qcow2"), "pr-manager": "p"}
    client.ok("blockdev-add", driver="qcow2", node_name="nested", file=file)
    client.ok("blockdev-add", driver="null-co", node_name="none")
    for name in ("f", "over", "t", "nested"):
        assert client.ok(IN, node_name=name, service_action="read-keys")["keys"] == []
    places = [where[1] for _, _, where in helper.requests]
    assert places == [os.stat(raw).st_ino] * 3 + [os.stat(tmp_path / "q.qcow2").st_ino]
    error = client.refused(IN, node_name="none", service_action="read-keys")
    assert "node 'none'" in error and "'pr-manager'" in error
    assert "node-name='nix'" in client.refused(OUT, node_name="nix", service_action="clear", key="0x1")
    for bad, where in (({"driver": "raw", "file": "f", "pr_manager": "p"}, "belongs into 'file'"),
                       ({"driver": "nbd", "server": {"type": "unix", "path": "n"}, "pr_manager": "p"}, "files and devices"),
                       ({"driver": "null-co", "pr_manager": "p"}, "'pr-manager'"), ({"driver": "file", "filename": str(raw), "pr_manager": 5}, "string")):
        assert where in client.refused("blockdev-add", node_name="bad", **bad)
    assert "'p' is in use" in client.refused("object-del", id="p")
    client.ok("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "nested", "file": {k: v for k, v in file.items() if k != "pr-manager"}}])
    assert "'pr-manager'" in client.refused(IN, node_name="nested", service_action="read-keys")
    for name in ("t", "over", "f"):
        assert "'p' is in use" in client.refused("object-del", id="p")
        client.ok("blockdev-del", node_name=name)
    client.ok("object-del", id="p")
    assert client.ok("query-pr-managers") == []
    assert "No persistent reservation manager" in client.refused("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "nested", "file": file}])
    assert daemon.stop()[0] == 0


def test_recorded(start, helper, raw, tmp_path):
    """FEATURES 3.021: a backing file whose recorded name has a manager has a node of its own beside one that has none"""
    name = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(raw), "pr-manager": "p"}})
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", tmp_path / "a.qcow2")
    run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", f"json:{name}", "-F", "raw", tmp_path / "b.qcow2", "1M")
    client = start("daemon").qmp()
    options = {"driver": "qcow2", "node_name": "b", "file": {"driver": "file", "filename": str(tmp_path / "b.qcow2")}}
    assert "No persistent reservation manager with id 'p'" in client.refused("blockdev-add", **options)
    client.ok("object-add", qom_type="pr-manager-helper", id="p", path=helper.path)
    client.ok("blockdev-add", driver="qcow2", node_name="a", file={"driver": "file", "filename": str(tmp_path / "a.qcow2")})
    client.ok("blockdev-add", **options)
    below = [n["node-name"] for n in client.ok("query-named-block-nodes") if n["file"] == str(raw) and n["drv"] == "raw"]
    assert sorted("return" in client.ask(IN, node_name=n, service_action="read-keys") for n in below) == [False, True]


def test_arguments(start, helper, raw):
    """FEATURES 3.021: what an action needs, and what does not belong to it, is said before anything is asked of the helper"""
    client = start("daemon").qmp()
    open_node(client, helper, raw)
    for arguments, said in (({"service_action": "register"}, "'service-action-key' is needed"), ({"service_action": "clear"}, "'key' is needed"),
                            ({"service_action": "reserve", "key": "0x1"}, "'type' is needed"),
                            ({"service_action": "clear", "key": "0x1", "type": "exclusive-access"}, "'type' does not belong"),
                            ({"service_action": "clear", "key": "0x1", "aptpl": True}, "'aptpl' does not belong"),
                            ({"service_action": "clear", "key": "0x1", "all_target_ports": True}, "'all-target-ports' does not belong"),
                            ({"service_action": "reserve", "key": "0x1", "service_action_key": "0x1", "type": "exclusive-access"}, "'service-action-key' does not belong"),
                            ({"service_action": "register-and-ignore-existing-key", "key": "0x1", "service_action_key": "0x2"}, "'key' does not belong"),
                            ({"service_action": "clear", "key": "0x1", "timeout_ms": 600001}, "timeout-ms"), ({"service_action": "move"}, "move"),
                            *(({"service_action": "clear", "key": key}, f"'{key}' is no key") for key in ("1", "0x", "0x1g", "0x" + "1" * 17, "-0x1"))):
        assert said in client.refused(OUT, node_name="f", **arguments)
    assert not helper.requests


def send(client, timeout_ms):
    client.send('{"execute": "%s", "arguments": {"node-name": "f", "service-action": "read-keys", "timeout-ms": %u}}\n' % (IN, timeout_ms))


def answer(client):
    """What became of it: why it failed."""
    while "event" in (reply := client.receive()):
        pass
    return reply["error"]["desc"]


def test_stalls(start, helper, raw):
    """FEATURES 3.021: a helper that does not answer is given up in time, by who waits for it and by who waits behind; it keeps nobody else, and the next command is done"""
    daemon = start("daemon")
    client, second, third = daemon.qmp(), daemon.qmp(), daemon.qmp()
    open_node(client, helper, raw)
    client.wait(CHANGED, connected=True)
    helper.mode = "stall"
    send(second, 60000)
    wait.until(lambda: helper.requests, "the helper is not asked")
    send(third, 100)
    assert "node 'f': pr-manager 'p'" in (error := answer(third)) and "did not answer within 100 ms" in error
    assert len(helper.requests) == 1                                                    # it had no turn
    client.ok("query-named-block-nodes")
    assert connected(client) == {"p": True}
    assert "'p' is in use" in client.refused("object-del", id="p")
    helper.stop()
    assert "closed the connection" in answer(second)
    client.wait(CHANGED, connected=False)
    helper.mode = None
    helper.start()
    client.ok(IN, node_name="f", service_action="read-keys")
    client.wait(CHANGED, connected=True)
    helper.mode = "stall"
    assert "did not answer within 100 ms" in client.refused(IN, node_name="f", service_action="read-keys", timeout_ms=100)
    client.wait(CHANGED, connected=False)
    helper.mode = "stall-handshake"
    assert "did not answer within 100 ms" in client.refused(IN, node_name="f", service_action="read-keys", timeout_ms=100)
    assert connected(client) == {"p": False} and not client.events
    helper.mode = None
    assert client.ok(IN, node_name="f", service_action="read-keys")["keys"] == []
    client.wait(CHANGED, connected=True)
    client.ok("blockdev-del", node_name="f")
    client.ok("object-del", id="p")
    assert daemon.stop()[0] == 0


def test_turns(start, helper, raw):
    """FEATURES 3.021: commands of several clients at once are asked one after the other, on one connection"""
    daemon = start("daemon")
    clients = [daemon.qmp() for _ in range(4)]
    open_node(clients[0], helper, raw)
    for _ in range(8):
        for c in clients:
            send(c, 0)
    for c in clients:
        for _ in range(8):
            while "event" in (reply := c.receive()):
                pass
            assert reply["return"]["keys"] == []
    assert len(helper.connections) == 1 and len(helper.requests) == 32


@pytest.mark.parametrize("mode", ["stall", "stall-handshake"])
def test_the_end(start, helper, raw, mode):
    """FEATURES 3.021: the daemon ends while it waits for a helper that stands still, for its answer or for its greeting"""
    daemon = start("daemon")
    client = daemon.qmp()
    if mode == "stall":
        open_node(client, helper, raw)
        helper.mode = mode
        send(client, 60000)
        wait.until(lambda: helper.requests, "the helper is not asked")
    else:
        helper.mode = mode
        client.send('{"execute": "object-add", "arguments": {"qom-type": "pr-manager-helper", "id": "p", "path": "%s"}}\n' % helper.path)
        wait.until(lambda: helper.connections, "nobody connects")
    assert daemon.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("mode", prhelper.LIES)
def test_lies(start, helper, raw, mode):
    """FEATURES 3.021: an answer that is none, or ends too early, is an error, and nothing that comes behind it counts; the next command connects anew"""
    client = start("daemon").qmp()
    open_node(client, helper, raw)
    client.wait(CHANGED, connected=True)
    helper.mode = mode
    error = client.refused(IN, node_name="f", service_action="read-keys")
    assert "node 'f'" in error and ("makes no sense" in error or "closed the connection" in error)
    helper.mode = None
    assert client.ok(IN, node_name="f", service_action="read-keys")["keys"] == []
    assert [e["data"]["connected"] for e in client.events if e["event"] == CHANGED] == [False, True]


def test_descriptors_stay_out(start, helper, raw):
    """FEATURES 3.021: what a helper passes with its answer is nobody's here; what was passed to it is not kept open"""
    daemon = start("daemon")
    client = daemon.qmp()
    open_node(client, helper, raw)
    client.ok(IN, node_name="f", service_action="read-keys")

    def held():
        links = []
        for fd in os.listdir(f"/proc/{daemon.process.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/{daemon.process.pid}/fd/{fd}"))
        return sorted(links)

    wait.until(lambda: held().count(str(raw)) == 1, "the descriptor that was passed stays open")
    before = held()
    helper.mode = "descriptors"
    for _ in range(3):
        assert client.ok(IN, node_name="f", service_action="read-keys")["keys"] == []
    wait.until(lambda: held() == before, lambda: f"{held()} is not {before}")
