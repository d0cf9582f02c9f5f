# SPDX-License-Identifier: MIT
"""byre daemon: the words, answers and events of qemu-storage-daemon."""
import json
import os
import signal
import subprocess
import time

import pytest

from lib import peers, run, wait
from qmp_client import Qmp

NODES = ["--blockdev", "driver=file,node-name=f,filename=a.qcow2", "--blockdev", "driver=qcow2,node-name=q,file=f"]
SERVER = ["--nbd-server", "addr.type=unix,addr.path=n.sock"]
EXPORT = ["--export", "type=nbd,id=e,node-name=q,writable=on"]
UNIX = {"type": "unix", "data": {"path": "n2.sock"}}

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def said(client, command, **arguments):
    """What was answered in words that both have: a return, or the class of an error; and the events in front of it."""
    client.events.clear()
    answer = client.ask(command, **arguments)
    return (answer.get("return", {}) if "return" in answer else answer["error"]["class"]), [(e["event"], e["data"]) for e in client.events]


STORY = [
    ("query-block", {}), ("query-block-exports", {}), ("query-jobs", {}), ("nothing", {}),
    ("block-export-add", {"type": "nbd", "id": "e", "node_name": "q"}),             # no server yet
    ("nbd-server-start", {"addr": UNIX}), ("nbd-server-start", {"addr": UNIX}),
    ("block-export-add", {"type": "nbd", "id": "e", "node_name": "q"}), ("block-export-add", {"type": "nbd", "id": "e", "node_name": "q"}),
    ("block-export-add", {"type": "nbd", "id": "e2", "node_name": "q"}),            # the name is taken
    ("block-export-add", {"type": "nbd", "id": "e2", "node_name": "zz", "name": "n"}), ("block-export-add", {"type": "odd", "id": "e2", "node_name": "q"}),
    ("block-export-add", {"type": "nbd", "id": "0", "node_name": "q", "name": "n"}), ("block-export-add", {"type": "nbd", "id": "e3", "node_name": "q", "odd": 1}),
    ("block-export-add", {"type": "nbd", "id": "e3", "node_name": "q", "bitmaps": ["nothing"], "name": "n"}), ("query-block-exports", {}),
    ("block-export-del", {"id": "nothing"}), ("nbd-server-remove", {"name": "nothing"}), ("nbd-server-stop", {}), ("nbd-server-stop", {}), ("query-block-exports", {}),
    ("nbd-server-start", {"addr": {"type": "unix"}}), ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "no/such/folder"}}}),
    ("nbd-server-start", {"addr": {"type": "odd", "data": {}}}), ("nbd-server-start", {"addr": UNIX, "max_connections": "1"}),
    ("object-add", {"qom_type": "secret", "id": "s", "data": "x"}), ("object-add", {"qom_type": "secret", "id": "s", "data": "x"}),
    ("object-add", {"qom_type": "odd", "id": "t"}), ("object-add", {"qom_type": "secret", "id": "t"}), ("object-del", {"id": "s"}), ("object-del", {"id": "s"}),
    ("qmp_capabilities", {}), ("query-jobs", {"odd": 1}), ("block-dirty-bitmap-add", {"node": "q", "name": "b"}), ("block-dirty-bitmap-add", {"node": "q", "name": "b"}),
    ("block-dirty-bitmap-merge", {"node": "q", "target": "b", "bitmaps": [1]}),
]


def test_same_story(start, disk):
    """FEATURES 8.001, 8.002, 8.004, 8.009, 8.019, 8.021, 10.026: one list of commands, the same answers and events"""
    told = []
    for peer in (False, True):
        daemon = start("daemon", *NODES, peer=peer)
        client = daemon.qmp()
        told.append([said(client, command, **arguments) for command, arguments in STORY])
        assert client.ask("quit") == {"return": {}}
        assert daemon.wait()[0] == 0
    for (command, arguments), ours, theirs in zip(STORY, *told):
        assert ours == theirs, (command, arguments)


@BOTH
def test_exports_come_and_go(start, disk, peer):
    """FEATURES 8.019, 8.024, 10.023, G.044, G.078: safe refuses while there are clients, hard cuts them off, an event tells when it is gone"""
    nbd = peers.need_module("nbd")
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, peer=peer)
    client = daemon.qmp()
    uri = f"nbd+unix:///q?socket={daemon.folder}/n.sock"
    handle = nbd.NBD()
    handle.connect_uri(uri)
    assert handle.pread(4096, 0) == b"\x11" * 4096
    handle.pwrite(b"\x22" * 4096, 4096)
    assert client.ask("block-export-del", id="e")["error"]["class"] == "GenericError"
    assert client.ask("block-export-del", id="e", mode="safe")["error"]["class"] == "GenericError"
    assert client.ask("query-block-exports")["return"] == [{"id": "e", "type": "nbd", "node-name": "q", "shutting-down": False}]
    assert client.ask("block-export-del", id="e", mode="hard") == {"return": {}}
    event = client.events[-1] if client.events else client.receive()
    assert event["event"] == "BLOCK_EXPORT_DELETED" and event["data"] == {"id": "e"}
    with pytest.raises(nbd.Error):
        handle.pread(4096, 0)
    assert client.ask("block-export-add", type="nbd", id="e", node_name="q", name="again") == {"return": {}}
    handle = nbd.NBD()
    handle.connect_uri(uri.replace("/q?", "/again?"))
    assert handle.is_read_only() and handle.pread(4096, 4096) == b"\x22" * 4096
    handle.shutdown()
    assert client.ask("nbd-server-add", device="q", name="old", writable=True) == {"return": {}}
    assert client.ask("nbd-server-remove", name="old") == {"return": {}}
    assert daemon.stop()[0] == 0
    run.qemu_img("check", disk)
    run.qemu_io(disk, "read -P 0x22 4096 4096")


def test_gone_is_gone(start, disk):
    """FEATURES 10.023: behind the event, id, name and bitmap are free; a second removal of one that is going is refused"""
    daemon = start("daemon", *NODES, *SERVER)
    client = daemon.qmp()
    client.ask("block-dirty-bitmap-add", node="q", name="b")
    for i in range(20):
        assert client.ask("block-export-add", type="nbd", id="e", node_name="q", writable=True, bitmaps=["b"] if i % 2 else [{"node": "q", "name": "b"}]) == {"return": {}}
        assert client.ask("block-dirty-bitmap-remove", node="q", name="b")["error"]          # FEATURES 10.021
        client.events.clear()
        client.send('{"execute": "block-export-del", "arguments": {"id": "e"}}\n{"execute": "block-export-del", "arguments": {"id": "e", "mode": "hard"}}\n')
        answers = [client.receive() for _ in range(3)]
        assert [a for a in answers if "event" in a][0]["data"] == {"id": "e"}
        assert "error" in answers[-1] or "error" in answers[1]
    assert client.ask("block-dirty-bitmap-remove", node="q", name="b") == {"return": {}}
    assert client.ask("nbd-server-stop") == {"return": {}}
    assert daemon.stop()[0] == 0


@pytest.mark.parametrize("words", [
    EXPORT + NODES + SERVER, NODES + EXPORT, ["--blockdev", "driver=odd,node-name=x"], ["--blockdev", "driver=qcow2,file=zz,node-name=x"], ["--odd"], ["word"],
    SERVER + SERVER, ["--nbd-server", "addr.type=unix,addr.path=n.sock,odd=1"], ["--nbd-server", "addr.type=unix"], ["--object", "secret,id=s"],
    ["--object", "odd,id=s"], ["--monitor", "chardev=zz"], ["--chardev", "odd,id=x"], ["--chardev", "socket,path=x"], NODES + NODES,
    NODES + SERVER + ["--export", "type=nbd,id=e,node-name=q,odd=1"], NODES + SERVER + ["--export", "type=nbd,id=e,node-name=q,writable=perhaps"],
    ["--blockdev", "{"], ["--pidfile", "no/such/folder"]], ids=lambda w: " ".join(w)[-40:])
def test_wrong_words(start, disk, words):
    """FEATURES 8.001: what one refuses the other refuses, with 1, before it serves anything, and leaves nothing behind"""
    for peer in (False, True):
        daemon = start("daemon", *words, peer=peer, monitor=False)
        code, out = daemon.wait()
        assert code == 1 and out, (peer, words)
        left = [f for f in os.listdir(daemon.folder) if not f.endswith(".qcow2")]
        assert peer or left == [], left
    run.qemu_io(disk, "write -P 0x33 0 4k")                                     # no lock is left


@BOTH
def test_pidfile_and_daemonize(start, disk, peer):
    """FEATURES 8.005: the parent ends with 0 when clients can connect; one daemon per pidfile; nothing is left"""
    words = [*NODES, *SERVER, *EXPORT, "--pidfile", "pid", "--daemonize"]
    parent = start("daemon", *words, peer=peer, monitor=False)
    assert parent.wait()[0] == 0
    folder = parent.folder
    pid = int(open(f"{folder}/pid").read())
    try:
        done = run.run("nbdinfo", "--size", f"nbd+unix:///q?socket={folder}/n.sock")
        assert int(done.out) == 8 << 20
        again = subprocess.run([parent.args[0], *(["daemon"] if not peer else []), "--pidfile", f"{folder}/pid"], capture_output=True, text=True, timeout=20, check=False)
        assert again.returncode == 1 and "pid" in again.stderr
        assert os.path.exists(f"{folder}/pid")
    finally:
        os.kill(pid, signal.SIGTERM)
    wait.until(lambda: not os.path.exists(f"{folder}/pid"), "it does not end")
    wait.until(lambda: not os.path.exists(f"/proc/{pid}/exe"), "it does not end")
    run.qemu_img("check", disk)


def test_daemonize_leaves_no_sockets(tmp_path):
    """FEATURES 8.005: sockets with relative paths are removed at the end, though the daemon is in another folder by then"""
    sockets = ["n.sock", "sub/m.sock", "link/o.sock"]
    words = ["--nbd-server", "addr.type=unix,addr.path=n.sock", "--pidfile", "pid", "--daemonize"]
    for i, path in enumerate(sockets[1:]):
        words += ["--chardev", f"socket,id=m{i},path={path},server=on,wait=off", "--monitor", f"m{i}"]
    folder = tmp_path
    os.mkdir(folder / "sub")
    os.symlink("sub", folder / "link")
    run.byre("daemon", *words, cwd=folder)
    pid = int((folder / "pid").read_text())
    try:
        assert all(os.path.exists(folder / s) for s in sockets)
        client = Qmp(str(folder / "link/o.sock"))
        assert client.ok("x-byre-query-nbd-servers")[0]["addresses"] == ["unix:n.sock"]          # as it was given
        client.close()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait.until(lambda: not os.path.exists(f"/proc/{pid}/exe"), "it does not end")
    assert not [s for s in [*sockets, "pid"] if os.path.lexists(folder / s)]


def test_the_pidfile_of_another(start):
    """FEATURES 8.005: a daemon whose pidfile was removed, and written by another one, leaves that alone"""
    first = start("daemon", "--pidfile", "pid")
    first.wait_for("pid")
    folder = first.folder
    os.unlink(f"{folder}/pid")
    second = start("daemon", "--pidfile", f"{folder}/pid")
    second.wait_for(f"{folder}/pid")
    wait.until(lambda: open(f"{folder}/pid").read().endswith("\n"), "it is not written")
    assert first.stop()[0] == 0
    assert open(f"{folder}/pid").read() == f"{second.process.pid}\n"
    assert second.stop()[0] == 0 and not os.path.exists(f"{folder}/pid")


def test_daemonize_that_fails(start, disk):
    """FEATURES 8.005: the parent of one that cannot start ends with 1 and tells why"""
    code, out = start("daemon", "--daemonize", "--blockdev", "driver=qcow2,node-name=q,file.driver=file,file.filename=none", monitor=False).wait()
    assert code == 1 and "none" in out


def test_monitors(start, disk):
    """FEATURES 8.003: several, one of them with room in its answers; events reach all"""
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, "--chardev", "socket,id=p,path=p.sock,server,nowait", "--monitor", "p,mode=control,pretty=on")
    plain = daemon.qmp()
    pretty = Qmp.__new__(Qmp)
    import socket
    pretty.socket = socket.socket(socket.AF_UNIX)
    pretty.socket.settimeout(60)
    pretty.socket.connect(f"{daemon.folder}/p.sock")

    def message():
        text = ""
        while not text or text.count("{") > text.count("}"):             # no word of these has one in it
            text += pretty.socket.recv(65536).decode()
        return text
    text = message()
    assert json.loads(text)["QMP"] and text.count("\n") > 5
    pretty.socket.sendall(b'{"execute": "qmp_capabilities"}')
    assert json.loads(message()) == {"return": {}}
    assert plain.ask("block-export-del", id="e") == {"return": {}}
    assert json.loads(message())["event"] == "BLOCK_EXPORT_DELETED"
    pretty.socket.close()
    for mode in (os.stat(daemon.control), os.stat(f"{daemon.folder}/p.sock")):
        assert mode.st_mode & 0o777 == 0o600
    assert daemon.stop()[0] == 0 and not os.path.exists(daemon.control)


@BOTH
def test_monitor_on_standard_input(tmp_path, disk, peer):
    """FEATURES 8.003: stdio; the end of the input ends that monitor only"""
    program = [peers.need("qemu-storage-daemon")] if peer else [run.BYRE, "daemon"]
    p = subprocess.Popen([*program, "--chardev", "stdio,id=s", "--monitor", "s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert "QMP" in json.loads(p.stdout.readline())
    p.stdin.write('{"execute": "qmp_capabilities"}\n{"execute": "query-jobs", "id": [1]}\n')
    p.stdin.flush()
    assert json.loads(p.stdout.readline()) == {"return": {}} and json.loads(p.stdout.readline()) == {"return": [], "id": [1]}
    p.stdin.close()
    time.sleep(0.3)
    assert p.poll() is None
    p.send_signal(signal.SIGTERM)
    assert p.wait(10) == 0
    p.stdout.close()


@BOTH
def test_monitor_that_waits(start, disk, peer):
    """FEATURES 8.003: server=on waits for its first client before the options behind it; a signal ends the wait"""
    words = ["--chardev", "socket,id=w,path=w.sock,server=on", "--monitor", "w", *NODES, *SERVER]
    daemon = start("daemon", *words, peer=peer, monitor=False)
    daemon.wait_for("w.sock")
    time.sleep(0.3)
    assert not os.path.exists(f"{daemon.folder}/n.sock")
    client = Qmp(f"{daemon.folder}/w.sock")
    daemon.wait_for("n.sock")
    client.close()
    assert daemon.stop()[0] == 0


def test_wait_ends_with_a_signal(start, disk):
    daemon = start("daemon", "--chardev", "socket,id=w,path=w.sock,server=on", "--monitor", "w", *NODES, monitor=False)
    daemon.wait_for("w.sock")
    assert daemon.stop()[0] == 0 and not os.path.exists(f"{daemon.folder}/w.sock")


def test_secrets(start, tmp_path):
    """FEATURES 8.021, 8.023: an object of the command line opens an encrypted image; JSON and words mean the same"""
    run.qemu_img("create", "-q", "--object", "secret,id=s,data=abc", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
                 tmp_path / "l.qcow2", "4M")
    node = {"driver": "qcow2", "node-name": "q", "encrypt": {"format": "luks", "key-secret": "s"}, "file": {"driver": "file", "filename": "l.qcow2"}}
    daemon = start("daemon", "--object", '{"qom-type": "secret", "id": "s", "data": "abc"}', "--blockdev", json.dumps(node), *SERVER,
                   "--export", '{"type": "nbd", "id": "e", "node-name": "q", "writable": true}')
    run.run("nbdcopy", "--", f"nbd+unix:///q?socket={daemon.folder}/n.sock", "null:")
    words = daemon.args
    assert "abc" in " ".join(words)              # ours to hide is only what we print
    assert daemon.stop() == (0, "")
    wrong = start("daemon", "--object", "secret,id=s,data=wrong", "--blockdev", json.dumps(node), monitor=False)
    code, out = wrong.wait()
    assert code == 1 and "wrong" not in out


def resolve(schema, name, depth=3):
    """A type as a comparable thing."""
    if name.startswith("["):
        return ["list", resolve(schema, name[1:-1], depth)]
    e = schema[name]
    kind = e["meta-type"]
    if kind == "builtin":
        return e["json-type"]
    if kind == "enum":
        return {"enum": set(e["values"])}
    if kind == "array":
        return ["list", resolve(schema, e["element-type"], depth)]
    if kind == "alternate":
        return {"either": [resolve(schema, m["type"], depth - 1) for m in e["members"]]}
    if depth <= 0:
        return "deep"
    out = {"members": {m["name"]: ("default" in m, resolve(schema, m["type"], depth - 1)) for m in e["members"]}}
    if "variants" in e:
        out["tag"] = e["tag"]
        out["variants"] = {v["case"]: resolve(schema, v["type"], depth - 1) for v in e["variants"]}
    return out


def fits(ours, theirs, where):
    """Ours is a part of theirs: what a client may send to us it may send to them, with the same meaning."""
    if ours == "deep" or theirs == "deep" or "any" in (ours, theirs) or ours == "value":
        return
    if ours == "string" and "enum" in theirs:
        return                               # words of ours among them (x-byre-scrub)
    if isinstance(ours, list) or isinstance(ours, str):
        assert type(ours) is type(theirs), (where, ours, theirs)
        if isinstance(ours, list):
            fits(ours[1], theirs[1], where + "[]")
        else:
            assert ours == theirs, (where, ours, theirs)
        return
    if "enum" in ours:
        assert ours["enum"] - MISSPELT <= theirs["enum"], where
    elif "either" in ours:
        assert len(ours["either"]) <= len(theirs["either"]), where
    else:
        assert ours.get("tag") == theirs.get("tag"), where
        for name, (optional, kind) in ours["members"].items():
            if name.startswith("x-byre-") or name in OURS or f"{where}.{name}" in SHARED or (name in NEWER and name not in theirs["members"]):
                continue
            assert name in theirs["members"], (where, name)
            assert optional == theirs["members"][name][0] or f"{where}.{name}" in LOOSER, (where, name, "optional")
            fits(kind, theirs["members"][name][1], f"{where}.{name}")
        for name, must in theirs["members"].items():
            assert must[0] or name in ours["members"], (where, name, "is required there")
        for case, kind in ours.get("variants", {}).items():
            if case not in MISSPELT:
                fits(kind, theirs["variants"][case], f"{where}:{case}")


# Only of the peer's system emulator; newer than the oldest of its versions that is compared with.
NOT_THERE = {"SHUTDOWN"}
# Words that its programs take, and that its schema spells in another way.
MISSPELT = {"authz-list-file"}
NEWER = {"active", "allow-inactive", "min-cluster-size", "on-cbw-error", "discard-source", "handshake-max-seconds", "discard-no-unref", "backing-mask-protocol", "qom-path",
         "header"}
# Members that only its oldest version cannot do without.
LOOSER = {"blockdev-create.options:luks.file"}
# Members that byre adds to commands of the peer's.
OURS = {"x-delay-ns", "x-skip", "drop-source", "force", "converge", "deadline", "max-slowdown", "max-hold-ms", "cbw-timeout"}
# Members that rows have in common, though the peer has them in some of those only.
SHARED = {"BLOCK_JOB_CANCELLED.error", "BLOCK_JOB_READY.error", "block-commit.copy-mode", "blockdev-mirror.bitmap", "blockdev-mirror.bitmap-mode",
          "drive-mirror.bitmap", "drive-mirror.bitmap-mode"}


def test_schema(start):
    """FEATURES 8.009: query-qmp-schema: every command and event that both have takes and gives what the peer's does"""
    schemas = []
    for peer in (False, True):
        daemon = start("daemon", peer=peer)
        client = daemon.qmp()
        answer = client.ask("query-qmp-schema")["return"]
        schemas.append({e["name"]: e for e in answer})
        names = {c["name"] for c in client.ask("query-commands")["return"]}
        assert {e["name"] for e in answer if e["meta-type"] == "command"} == names
        client.close()
    ours, theirs = schemas
    compared = 0
    for name, e in ours.items():
        if e["meta-type"] not in ("command", "event") or name.startswith("x-byre-") or name in NOT_THERE or name not in theirs:
            continue
        fits(resolve(ours, e["arg-type"]), resolve(theirs, theirs[name]["arg-type"]), name)
        if e["meta-type"] == "command":
            fits(resolve(ours, e["ret-type"]), resolve(theirs, theirs[name]["ret-type"]), name + " ->")
        compared += 1
    assert compared >= 30


@BOTH
def test_out_of_band(start, disk, peer):
    """FEATURES 8.009: with the capability, exec-oob passes commands that are still at work; without it, and of commands that cannot, it is refused"""
    nbd = peers.need_module("nbd")
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, peer=peer)
    client = daemon.qmp(negotiate=False)
    assert client.greeting["QMP"]["capabilities"] == ["oob"]
    assert "error" in client.ask("qmp_capabilities", enable=["odd"])
    assert client.ask("qmp_capabilities", enable=["oob"]) == {"return": {}}
    client.send('{"exec-oob": "nbd-server-stop", "id": 1}')
    answer = client.receive()
    assert answer["id"] == 1 and answer["error"]["class"] == "GenericError" and "OOB" in answer["error"]["desc"]
    client.send('{"exec-oob": "nothing", "id": 2}')
    assert client.receive()["error"]["class"] == "CommandNotFound"
    if peer:
        return                               # none of its daemon's commands can, and one client at a time is let in
    plain = daemon.qmp()
    plain.send('{"exec-oob": "query-version"}')
    assert plain.receive()["error"]["class"] == "GenericError"
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    client.send('{"execute": "nbd-server-stop", "id": "slow"}{"execute": "query-commands", "id": "next"}{"exec-oob": "query-version", "id": "fast"}')
    order = [m["id"] for m in (client.receive() for _ in range(4)) if "id" in m]
    assert order == ["fast", "slow", "next"]
    assert client.ask("query-block-exports") == {"return": []}


def test_many_commands_at_once(start):
    """More than the queue holds, written in one piece: all are answered, in order, those that are wrong too"""
    daemon = start("daemon")
    client = daemon.qmp()
    text = "".join(f'{{"execute": "{"query-jobs" if i % 3 else "odd"}", "id": {i}}}' + ("\nxx\n" if i % 10 == 9 else "") for i in range(300))
    client.send(text)
    answers = [client.receive() for _ in range(330)]
    assert [a["id"] for a in answers if "id" in a] == list(range(300))
    assert [("error" in a) for a in answers if "id" in a] == [i % 3 == 0 for i in range(300)]
    assert all("error" in answers[i] and "id" not in answers[i] for i in range(10, 330, 11))
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0


def test_hostile_arguments(start, disk):
    """Arguments as large and as deep as a message may be: an answer, and the next client is served"""
    daemon = start("daemon", *NODES)
    for bomb in ({"addr": {"type": "unix", "data": {"path": "x" * 900000}}}, {"enable": ["oob"] * 60000},
                 {"bitmaps": [{"node": "q", "name": "b"}] * 12000, "node": "q", "target": "b"}):
        for command in ("nbd-server-start", "block-dirty-bitmap-merge", "block-export-add", "query-jobs"):
            client = daemon.qmp()
            try:
                client.send(json.dumps({"execute": command, "arguments": bomb}))
                answer = client.receive()
                assert answer is None or "error" in answer
            except (BrokenPipeError, ConnectionResetError):
                pass                         # more tokens than a message may have
            client.close()
    deep = "[" * 60 + "]" * 60
    client = daemon.qmp()
    client.send('{"execute": "block-export-add", "arguments": {"bitmaps": %s}}' % deep)
    assert "error" in client.receive()
    client.close()
    assert daemon.stop()[0] == 0


def test_clean_end_under_load(start, disk):
    """FEATURES 8.006, 8.007: SIGTERM while clients write leaves a clean image and no sockets"""
    nbd = peers.need_module("nbd")
    daemon = start("daemon", *NODES, *SERVER, *EXPORT)
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    handle.pwrite(b"\x44" * 65536, 1 << 20)
    handle.flush()
    for i in range(64):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"\x55" * 65536)), (2 << 20) + i * 65536)
    assert daemon.stop()[0] == 0
    assert not os.path.exists(f"{daemon.folder}/n.sock") and not os.path.exists(daemon.control)
    run.qemu_img("check", disk)
    run.qemu_io(disk, "read -P 0x44 1M 64k")


def test_called_by_the_peers_name(tmp_path):
    """FEATURES 8.008"""
    os.symlink(os.path.abspath(run.BYRE), tmp_path / "qemu-storage-daemon")
    done = run.run(tmp_path / "qemu-storage-daemon", "-V")
    assert done.out.startswith("qemu-storage-daemon version ")
    assert "--nbd-server" in run.run(tmp_path / "qemu-storage-daemon", "--help").out
    assert run.run(tmp_path / "qemu-storage-daemon", "x", code=1).err.startswith("qemu-storage-daemon: x: ")
    assert "no trace points" in run.byre("daemon", "--trace", "x", code=1).err


def test_second_signal(start, disk):
    """A second signal ends it at once and removes what it made, and nothing that somebody else has put there since"""
    nbd = peers.need_module("nbd")
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, "--pidfile", "pid")
    daemon.wait_for("pid")
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    os.unlink(daemon.control)
    with open(daemon.control, "w", encoding="ascii") as f:
        f.write("mine")
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.03)
    daemon.process.send_signal(signal.SIGTERM)
    code, _ = daemon.wait()
    assert code in (0, 128 + signal.SIGTERM)
    assert not os.path.exists(f"{daemon.folder}/n.sock") and not os.path.exists(f"{daemon.folder}/pid")
    assert open(daemon.control, encoding="ascii").read() == "mine"


def test_a_client_that_sends_without_end(start, disk):
    """While a command is at work few others are taken from a client; all are answered in the end"""
    nbd = peers.need_module("nbd")
    daemon = start("daemon", *NODES, *SERVER)
    client = daemon.qmp()
    client.ok("blockdev-add", driver="blkdebug", node_name="slow", image="q", inject_error=[{"event": "none", "iotype": "read", "sector": 0, "x-delay-ns": 5 * 10 ** 9}])
    client.ok("block-export-add", type="nbd", id="e", node_name="slow", name="q")
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    handle.aio_pread(nbd.Buffer(512), 0)
    handle.pread(512, 1 << 20)                # behind it on the same connection: that one is in the disk now, for 5 s
    client.send('{"execute": "block-dirty-bitmap-add", "arguments": {"node": "slow", "name": "b"}}')         # waits for it
    client.socket.setblocking(False)
    message, sent = b'{"execute": "query-jobs", "id": "' + b"x" * 100000 + b'"}', 0
    end = time.monotonic() + 0.5
    while sent < 100 * len(message) and time.monotonic() < end:
        try:
            sent += client.socket.send(message[sent % len(message):])
        except BlockingIOError:
            time.sleep(0.001)
    assert sent < 2 << 20
    client.socket.settimeout(60)
    client.send(message[sent % len(message):])
    answers = [client.receive() for _ in range(sent // len(message) + 2)]
    assert all("return" in a for a in answers) and "id" not in answers[0]
    assert daemon.stop()[0] == 0


@BOTH
def test_snapshots_leave_with_their_use(start, disk, peer):
    """FEATURES 8.004, 9.042: a node that blockdev-snapshot-sync has made is nobody's but its users': a commit that takes it out of the chain closes
    it, and the layers below it can be committed next"""
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, peer=peer)
    client = daemon.qmp()

    def names():
        return {n["node-name"] for n in client.ask("query-named-block-nodes")["return"]} & {"q", "s1", "s2", "s3", "s4"}

    def commit(**words):
        assert client.ask("block-commit", job_id="j", device="s4", **words) == {"return": {}}
        while not any(e["event"] == "BLOCK_JOB_COMPLETED" and "error" not in e["data"] for e in client.events):
            client.events.append(client.receive())
        client.events.clear()

    for i in range(1, 5):
        assert client.ask("blockdev-snapshot-sync", node_name="q" if i == 1 else f"s{i - 1}", snapshot_file=f"{daemon.folder}/s{i}.qcow2",
                          snapshot_node_name=f"s{i}", format="qcow2") == {"return": {}}
    assert names() == {"q", "s1", "s2", "s3", "s4"}
    commit(top_node="s2", base_node="s1")
    assert names() == {"q", "s1", "s3", "s4"}
    commit(top_node="s3", base_node="q")
    assert names() == {"q", "s4"}
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0


@BOTH
def test_snapshot_files_by_protocol(start, disk, peer):
    """FEATURES 3.070, 8.004: a snapshot is made in the file that its name means, or refused before anything is made"""
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, peer=peer)
    client = daemon.qmp()
    before = set(os.listdir(daemon.folder))
    for name in ("nosuch:o", "json:{'driver':'file','filename':'o'}", "blkdebug::o"):
        assert "error" in client.ask("blockdev-snapshot-sync", node_name="q", snapshot_file=name, snapshot_node_name="s", format="qcow2")
    assert set(os.listdir(daemon.folder)) == before and not any(map(os.path.exists, ("nosuch:o", "o", "blkdebug::o")))
    assert client.ask("blockdev-snapshot-sync", node_name="q", snapshot_file=f"file:{daemon.folder}/o:1", snapshot_node_name="s", format="qcow2") == {"return": {}}
    assert set(os.listdir(daemon.folder)) == before | {"o:1"}
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0


@BOTH
@pytest.mark.parametrize("layers", [1, 2])
def test_active_commit_of_a_snapshot(start, disk, peer, layers):
    """FEATURES 9.043: into the node that was the disk before, and is open for writing; after a cancelled one nobody else may write there"""
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, peer=peer)
    client = daemon.qmp()
    top = f"s{layers}"

    def wait(name):
        while not any(e["event"] == name for e in client.events):
            client.events.append(client.receive())
        event = next(e for e in client.events if e["event"] == name)
        client.events.clear()
        return event["data"]

    for i in range(1, layers + 1):
        assert client.ask("blockdev-snapshot-sync", node_name="q" if i == 1 else f"s{i - 1}", snapshot_file=f"{daemon.folder}/s{i}.qcow2",
                          snapshot_node_name=f"s{i}", format="qcow2") == {"return": {}}
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    handle.pwrite(b"\x33" * 4096, 1 << 20)
    assert client.ask("block-commit", job_id="j", device=top, base_node="q") == {"return": {}}
    wait("BLOCK_JOB_READY")
    assert client.ask("block-job-cancel", device="j", force=True) == {"return": {}}
    wait("BLOCK_JOB_CANCELLED")
    if not peer:                                             # which lets anybody change what lies below an image in use
        assert "error" in client.ask("block-export-add", type="nbd", id="other", node_name="q", name="other", writable=True)
    assert client.ask("block-commit", job_id="j", device=top, base_node="q") == {"return": {}}
    wait("BLOCK_JOB_READY")
    handle.pwrite(b"\x44" * 4096, 2 << 20)
    assert client.ask("block-job-complete", device="j") == {"return": {}}
    assert "error" not in wait("BLOCK_JOB_COMPLETED")
    handle.pwrite(b"\x55" * 4096, 3 << 20)
    handle.shutdown()
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_io(disk, "read -P 0x11 0 64k", "read -P 0x33 1M 4k", "read -P 0x44 2M 4k", "read -P 0x55 3M 4k")


@BOTH
def test_active_commit_into_a_longer_base(start, disk, peer, tmp_path):
    """FEATURES 9.045: the base keeps its length, and the disk has it from then on: what the base holds behind the old end shows"""
    base = tmp_path / "base.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", base, "16M")
    run.qemu_io(base, "write -P 0x66 12M 64k")
    run.qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", disk)
    daemon = start("daemon", *NODES, *SERVER, *EXPORT, peer=peer)
    client = daemon.qmp()
    assert client.ask("block-commit", job_id="j", device="q") == {"return": {}}
    for name in ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"):
        while not any(e["event"] == name for e in client.events):
            client.events.append(client.receive())
        assert all("error" not in e["data"] for e in client.events)
        if name == "BLOCK_JOB_READY":
            assert client.ask("block-job-complete", device="j") == {"return": {}}
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
    handle.pwrite(b"\x77" * 4096, 1 << 20)
    if not peer:                                             # which goes on offering the old length
        assert handle.get_size() == 16 << 20 and handle.pread(4096, 12 << 20) == b"\x66" * 4096
    handle.shutdown()
    assert client.ask("quit") == {"return": {}}
    assert daemon.wait()[0] == 0
    run.qemu_io(base, "read -P 0x11 0 64k", "read -P 0x77 1M 4k", "read -P 0x66 12M 64k")


def test_check_and_compact_of_a_node(start, disk):
    """FEATURES 8.011: commands that work on a served disk name nodes of the daemon as well"""
    daemon = start("daemon", *NODES)
    daemon.qmp().close()
    done = run.byre("check", "--control", daemon.control, "q", "--output=json")
    assert done.json["check-errors"] == 0 and done.json["format"] == "qcow2"
    run.byre("compact", "--control", daemon.control, "q")
    for words, why in ((["nowhere"], "no disk 'nowhere'"), ([], "which of its nodes")):
        assert why in run.byre("check", "--control", daemon.control, *words, code=1).err
    assert daemon.stop()[0] == 0
