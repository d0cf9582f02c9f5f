# SPDX-License-Identifier: MIT
"""byre serve and byre ctl (FEATURES 8.009, 8.011, 8.017, 8.019; the control socket of SECURITY.md)."""
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import time

import pytest

from lib import bitmaps, peers, run, wait
from qmp_client import Qmp
from twin import Holder


def disk(tmp_path, name="d.qcow2", size="64M"):
    run.byre("create", "-q", "-f", "qcow2", tmp_path / name, size)
    return tmp_path / name


def test_serves_and_ends_cleanly(tmp_path, byre_serve):
    """The lines it prints, the export under its name and as the default, SIGTERM, and no sockets left"""
    server = byre_serve(disk(tmp_path))
    assert server.uri.startswith("nbd+unix:///disk0?socket=")
    assert any(line.startswith("control: ") and line.endswith(server.control) for line in server.lines)
    info = run.run(peers.need("nbdinfo"), "--json", server.uri).json
    assert info["exports"][0]["export-size"] == 64 << 20 and not info["exports"][0]["is_read_only"]
    assert run.run("nbdinfo", "--size", f"nbd+unix:///?socket={server.socket}").out.strip() == str(64 << 20)
    listed = run.run("nbdinfo", "--list", "--json", server.uri).json
    assert [e["export-name"] for e in listed["exports"]] == ["disk0"]
    nbd = peers.need_module("nbd")
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    handle.pwrite(b"\x5a" * 70000, 1000)
    handle.flush()
    assert handle.pread(70000, 1000) == b"\x5a" * 70000
    assert server.stop() == 0
    assert not os.path.exists(server.socket) and not os.path.exists(server.control)
    run.qemu_img("check", tmp_path / "d.qcow2")
    run.qemu_io(tmp_path / "d.qcow2", "read -P 0x5a 1000 70000")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(tmp_path, byre_serve, sig):
    """FEATURES 8.006: an orderly end, with the event"""
    server = byre_serve(disk(tmp_path))
    client = Qmp(server.control)
    assert server.stop(signal_number=sig) == 0
    event = client.receive()
    assert event["event"] == "SHUTDOWN" and event["data"] == {"guest": False, "reason": "host-signal"}
    assert set(event["timestamp"]) == {"seconds", "microseconds"}
    assert client.receive()["data"] == {"id": "disk0"}               # BLOCK_EXPORT_DELETED
    assert client.receive() is None
    client.close()


def test_broken_pipes_do_not_end_it(tmp_path, byre_serve):
    """FEATURES 8.006: SIGPIPE is ignored"""
    server = byre_serve(disk(tmp_path))
    server.process.send_signal(signal.SIGPIPE)
    assert "package" in server.qmp("query-version")
    assert server.stop() == 0


def test_end_under_load_with_a_bitmap(tmp_path, byre_serve):
    """FEATURES 8.007: with writers and a job at work, SIGTERM leaves a clean image, a bitmap that knows every write, and no lock"""
    image = disk(tmp_path)
    run.qemu_img("bitmap", "--add", "-g", "64k", image, "b0")
    server = byre_serve(image)
    assert server.qmp("x-byre-scrub", **{"node-name": "disk0", "job-id": "s0", "speed": 65536}) == {}
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    for i in range(0, 1024, 2):
        handle.pwrite(b"\x77" * 65536, i % 1024 * 65536)
    for i in range(0, 1024, 8):
        handle.aio_pwrite(bytearray(b"\x78" * 4096), i * 65536)          # nobody waits for these
    assert server.stop() == 0
    run.qemu_img("check", image)
    data = run.qemu_img("info", "--output=json", image).json["format-specific"]["data"]
    assert data["bitmaps"] == [{"name": "b0", "granularity": 65536, "flags": ["auto"]}]
    found = bitmaps.peer_map(image, "b0", str(tmp_path))
    assert [(a, b) for a, b in found if a < 64 << 20] == [(i * 65536, (i + 1) * 65536) for i in range(0, 1024, 2)]


def test_second_signal_is_faster(tmp_path, byre_serve):
    """A client that keeps requests open does not hold up a second signal; sockets go, flushed data stays"""
    image = disk(tmp_path)
    server = byre_serve(image)
    nbd = peers.need_module("nbd")
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    handle.pwrite(b"\x11" * 65536, 0)
    handle.flush()
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    code = server.wait(30)
    assert code in (0, 128 + signal.SIGTERM) and time.monotonic() - begin < 20
    assert not os.path.exists(server.socket) and not os.path.exists(server.control)
    run.qemu_img("check", image, code=(0, 3))
    run.qemu_io(image, "read -P 0x11 0 64k")


def test_quit(tmp_path, byre_serve):
    """FEATURES 8.009: quit answers, sends the event and ends"""
    server = byre_serve(disk(tmp_path))
    client, watcher = Qmp(server.control), Qmp(server.control)
    assert client.ask("quit") == {"return": {}}
    for c in (client, watcher):
        assert c.receive()["data"]["reason"] == "host-qmp-quit"
        assert c.receive()["event"] == "BLOCK_EXPORT_DELETED"
        assert c.receive() is None
        c.close()
    assert server.wait() == 0


def test_default_addresses(tmp_path):
    """Without --nbd and --control both sockets are in a private folder that is gone at the end"""
    runtime = tmp_path / "run"
    runtime.mkdir()
    image = disk(tmp_path)
    process = subprocess.Popen([run.BYRE, "serve", str(image)], stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)})
    lines = [process.stdout.readline().rstrip("\n") for _ in range(3)]
    assert lines[0] == f"serving: {image} (qcow2, {64 << 20} bytes, read-write)"
    assert re.fullmatch(r"nbd: nbd\+unix:///disk0\?socket=/\S+", lines[1]) and lines[2].startswith("control: ")
    folder = pathlib.Path(lines[2][len("control: "):]).parent
    assert folder.parent == runtime and stat.S_IMODE(folder.stat().st_mode) == 0o700
    run.run(peers.need("nbdinfo"), "--size", lines[1][5:])
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
    assert list(runtime.iterdir()) == []


def test_tcp(tmp_path, byre_serve):
    """HOST:PORT, with a port that is chosen"""
    server = byre_serve(disk(tmp_path), nbd="127.0.0.1:0")
    assert re.fullmatch(r"nbd://127\.0\.0\.1:\d+/disk0", server.uri)
    assert run.run(peers.need("nbdinfo"), "--size", server.uri).out.strip() == str(64 << 20)
    assert server.stop() == 0


def test_options(tmp_path, byre_serve):
    """--read-only, --name, --description, --threads, -f"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "r", "1M")
    server = byre_serve(tmp_path / "r", "--read-only", "--name", "other", "--description", "what it is", "--threads", "3", "-f", "raw", "--cache", "none")
    assert "other" in server.uri
    info = run.run(peers.need("nbdinfo"), "--json", server.uri).json["exports"][0]
    assert info["is_read_only"] and info["description"] == "what it is"
    nodes = server.qmp("query-named-block-nodes")
    assert [n["node-name"] for n in nodes] == ["other", "other-file"] and nodes[0]["ro"] and nodes[0]["cache"]["direct"]
    assert server.qmp("query-block-exports")[0]["id"] == "other"
    assert server.stop() == 0


REFUSED = [([], 1), (["a", "b"], 1), (["missing"], 1), (["guessed"], 1), (["--nbd", "unix:relative-is-fine-but/no/such/folder", "d.qcow2"], 1),
           (["--nbd", "nonsense", "d.qcow2"], 1), (["--nbd", "host:99999", "d.qcow2"], 1), (["--nbd", "host:1x", "d.qcow2"], 1), (["--threads", "65", "d.qcow2"], 1),
           (["--control", "x" * 200, "d.qcow2"], 1), (["--cache", "bogus", "d.qcow2"], 1), (["--discard", "bogus", "d.qcow2"], 1), (["--name", "n" * 40, "d.qcow2"], 1),
           (["--aio", "native", "d.qcow2"], 1), (["--object", "secret,id=s", "d.qcow2"], 1)]


@pytest.mark.parametrize("words,code", REFUSED, ids=lambda w: str(w))
def test_refusals(tmp_path, words, code):
    """Wrong usage: a message, exit 1, and nothing left behind; a disk guessed as raw is not served for writing (DESIGN D8)"""
    disk(tmp_path)
    run.byre("create", "-q", "-f", "raw", tmp_path / "guessed", "1M")
    before = sorted(p.name for p in tmp_path.iterdir())
    done = run.byre("serve", *words, cwd=tmp_path, code=code, env={"XDG_RUNTIME_DIR": str(tmp_path)}, timeout=10)
    assert done.err.startswith("byre: ") and done.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_guessed_raw_may_be_read(tmp_path, byre_serve):
    """DESIGN D8"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "guessed", "1M")
    assert byre_serve(tmp_path / "guessed", "--read-only").stop() == 0


def test_locked_image(tmp_path, byre_serve):
    """FEATURES 1.122: both directions"""
    image = disk(tmp_path)
    with Holder(image):
        assert "lock" in run.byre("serve", image, code=1, env={"XDG_RUNTIME_DIR": str(tmp_path)}).err
    server = byre_serve(image)
    assert "lock" in run.run(peers.need("qemu-io"), "-c", "length", image, code=1).err
    assert server.stop() == 0


def test_stale_sockets_are_replaced(tmp_path, byre_serve):
    """Sockets of a killed server do not stand in the way; those of a living one do, and so do other files"""
    image = disk(tmp_path)
    server = byre_serve(image)
    other = disk(tmp_path, "e.qcow2")
    words = ["serve", other, "--nbd", f"unix:{server.socket}", "--control", str(tmp_path / "c2")]
    assert run.byre(*words, code=1, timeout=20).err
    words = ["serve", other, "--nbd", f"unix:{tmp_path}/n2", "--control", server.control]
    assert run.byre(*words, code=1, timeout=20).err
    assert run.run(peers.need("nbdinfo"), "--size", server.uri).code == 0 and server.qmp("query-version")
    server.kill()
    assert os.path.exists(server.socket) and os.path.exists(server.control)
    again = subprocess.Popen([run.BYRE, "serve", str(other), "--nbd", f"unix:{server.socket}", "--control", server.control], stdout=subprocess.PIPE, text=True)
    assert again.stdout.readline().startswith("serving: ")
    again.stdout.readline()
    again.stdout.readline()
    again.terminate()
    assert again.wait(20) == 0
    again.stdout.close()
    pathlib.Path(server.control).write_text("a file")
    assert run.byre("serve", other, "--nbd", f"unix:{server.socket}", "--control", server.control, code=1, timeout=20).err
    assert pathlib.Path(server.control).read_text() == "a file" and not os.path.exists(server.socket)


# ---- the control socket ----

def test_greeting_and_negotiation(tmp_path, byre_serve):
    """FEATURES 8.009"""
    server = byre_serve(disk(tmp_path))
    client = Qmp(server.control, negotiate=False)
    assert set(client.greeting) == {"QMP"} and set(client.greeting["QMP"]) == {"version", "capabilities"}
    assert set(client.greeting["QMP"]["version"]["qemu"]) == {"major", "minor", "micro"}
    assert client.ask("query-version")["error"]["class"] == "CommandNotFound"
    client.send('{"execute": "qmp_capabilities", "id": [1, {"a": null}]}')
    assert client.receive() == {"return": {}, "id": [1, {"a": None}]}
    assert client.ask("qmp_capabilities")["error"]["class"] == "CommandNotFound"
    assert client.ask("query-version")["return"] == client.greeting["QMP"]["version"]
    names = [c["name"] for c in client.ask("query-commands")["return"]]
    assert names == sorted(names) and {"query-block", "block_resize", "quit", "query-block-exports", "query-named-block-nodes"} <= set(names)
    client.close()


def test_errors(tmp_path, byre_serve):
    """FEATURES 8.009: error class and text; the connection stays usable"""
    server = byre_serve(disk(tmp_path))
    client = Qmp(server.control)
    for text, cls, part in [('{"execute": "bogus"}', "CommandNotFound", "bogus"), ('{"execute": 1}', "GenericError", "execute"), ("[1]", "GenericError", ""),
                            ('{"execute": "quit", "arguments": {"a": 1}}', "GenericError", "'a'"), ("{bad json}\n", "GenericError", "JSON"),
                            ('{"execute": "block_resize", "arguments": {"node-name": "disk0"}}', "GenericError", "'size'"),
                            ('{"execute": "block_resize", "arguments": {"node-name": "disk0", "size": "1"}}', "GenericError", "'size'"),
                            ('{"execute": "block_resize", "arguments": {"size": 512}}', "GenericError", "node-name"),
                            ('{"execute": "block_resize", "arguments": {"device": "nothing", "size": 512}}', "DeviceNotFound", "nothing"),
                            ('{"execute": "block_resize", "arguments": {"node-name": "disk0", "size": -1}}', "GenericError", "'size'"),
                            ('{"execute": "block_resize", "arguments": {"node-name": "disk0", "size": 1000}}', "GenericError", "512"),
                            ('{"execute": "quit", "unknown": 1}', "GenericError", "unknown"), ('{"exec-oob": "query-version"}', "GenericError", "")]:
        client.send(text)
        answer = client.receive()
        assert answer["error"]["class"] == cls and part in answer["error"]["desc"], (text, answer)
    assert "return" in client.ask("query-version")
    client.close()


def test_pipelining_and_splitting(tmp_path, byre_serve):
    """FEATURES 8.009: answers in the order of the commands, however the bytes arrive"""
    server = byre_serve(disk(tmp_path))
    client = Qmp(server.control)
    client.send("".join(f'{{"execute": "query-version", "id": {i}}}' for i in range(50)))
    assert [client.receive()["id"] for _ in range(50)] == list(range(50))
    for byte in b'{"execute": "query-version", "id": "slow"}':
        client.send(bytes([byte]))
    assert client.receive()["id"] == "slow"
    client.close()


DEVICE = {"file", "node-name", "ro", "drv", "backing_file_depth", "encrypted", "detect_zeroes", "bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr", "image",
          "cache", "write_threshold"}


def test_queries(tmp_path, byre_serve):
    """FEATURES 8.011, 8.019: node names, layers, members that the schema calls mandatory"""
    run.byre("create", "-q", "-f", "raw", tmp_path / "base", "32M")
    run.byre("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", tmp_path / "mid.qcow2")
    run.byre("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", tmp_path / "top.qcow2", "64M")
    server = byre_serve(tmp_path / "top.qcow2")
    nodes = server.qmp("query-named-block-nodes")
    assert [n["node-name"] for n in nodes] == ["disk0", "disk0-file", "disk0-b1", "disk0-b1-file", "disk0-b2", "disk0-b2-file"]
    assert [n["drv"] for n in nodes] == ["qcow2", "file", "qcow2", "file", "raw", "file"]
    assert [n["ro"] for n in nodes] == [False, False, True, True, True, True]
    assert [n["backing_file_depth"] for n in nodes[::2]] == [2, 1, 0]
    for n in nodes:
        assert DEVICE <= set(n) and {"filename", "format", "virtual-size"} <= set(n["image"])
    assert nodes[0]["image"]["backing-image"]["backing-image"]["format"] == "raw"
    assert "backing-image" not in server.qmp("query-named-block-nodes", flat=True)[0]["image"]
    block = server.qmp("query-block")
    assert len(block) == 1 and {"device", "type", "removable", "locked", "inserted"} <= set(block[0]) and block[0]["device"] == "disk0"
    assert block[0]["inserted"] == nodes[0]
    expected = run.qemu_img("info", "-U", "--output=json", tmp_path / "top.qcow2").json
    image = {k: v for k, v in nodes[0]["image"].items() if k not in ("backing-image", "actual-size")}
    expected.pop("actual-size")
    assert image == expected
    assert server.qmp("query-block-exports") == [{"id": "disk0", "node-name": "disk0", "type": "nbd", "shutting-down": False}]
    assert server.stop() == 0


def test_resize(tmp_path, byre_serve):
    """FEATURES 8.017, 1.142: new clients see the new size; the image has it"""
    image = disk(tmp_path)
    server = byre_serve(image)
    assert server.qmp("block_resize", **{"node-name": "disk0", "size": 128 << 20}) == {}
    assert run.run(peers.need("nbdinfo"), "--size", server.uri).out.strip() == str(128 << 20)
    assert server.qmp("block_resize", device="disk0", size=32 << 20) == {}
    assert run.run("nbdinfo", "--size", server.uri).out.strip() == str(32 << 20)
    assert server.stop() == 0
    assert run.qemu_img("info", "--output=json", image).json["virtual-size"] == 32 << 20
    run.qemu_img("check", image)


def test_limits(tmp_path, byre_serve):
    """Message size, nesting, clients; other clients go on"""
    server = byre_serve(disk(tmp_path))
    watcher = Qmp(server.control)
    for bomb in (b'{"execute": "' + b"x" * (2 << 20), b"[" * 100, b'{"execute": "query-version", "id": [' + b"1," * 70000):
        client = Qmp(server.control)
        try:
            client.send(bomb)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = client.receive()
        assert answer is None or "error" in answer
        try:
            assert client.receive() is None
        except ConnectionResetError:
            pass
        client.close()
    clients = [Qmp(server.control) for _ in range(15)]
    extra = socket.socket(socket.AF_UNIX)
    extra.settimeout(10)
    extra.connect(server.control)
    assert extra.recv(1) == b""                                      # the seventeenth is closed at once
    extra.close()
    assert "return" in watcher.ask("query-version")
    for c in clients + [watcher]:
        c.close()
    assert server.stop() == 0


def test_client_that_does_not_read(tmp_path, byre_serve):
    """A client that takes no answers is dropped; the server and others go on and end in time"""
    server = byre_serve(disk(tmp_path))
    deaf = Qmp(server.control)
    deaf.socket.settimeout(2)
    try:
        for _ in range(20000):
            deaf.send('{"execute": "query-named-block-nodes"}\n')
    except OSError:
        pass
    assert "image" in server.qmp("query-named-block-nodes")[0]
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < 20                     # of for ever
    deaf.close()


def test_mode_of_the_socket(tmp_path, byre_serve):
    """SECURITY.md: it belongs to one user"""
    server = byre_serve(disk(tmp_path))
    assert stat.S_IMODE(os.stat(server.control).st_mode) == 0o600


def test_foreign_user_is_refused(tmp_path, byre_serve):
    """SECURITY.md: by SO_PEERCRED, before the first byte, even where the mode of the socket was opened"""
    peers.need_root()
    peers.need("setpriv")
    server = byre_serve(disk(tmp_path))
    for path in [server.control] + [str(p) for p in pathlib.Path(server.control).resolve().parents][:-1]:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & 0o007 != 0o007:
            os.chmod(path, mode | 0o005 | (0o002 if path == server.control else 0))
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]); sys.exit(len(s.recv(10)))"
    run.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code, server.control)
    assert server.qmp("query-version")


# ---- byre ctl ----

def test_ctl_forms(tmp_path, byre_serve):
    """COMMAND, COMMAND key=value, COMMAND JSON, a whole message; errors"""
    server = byre_serve(disk(tmp_path))
    ctl = ["ctl", server.control]
    assert run.byre(*ctl, "query-version").json["package"].startswith("byre ")
    assert run.byre(*ctl, "block_resize", "node-name=disk0", f"size={65 << 20}").json == {}
    assert run.byre(*ctl, "block_resize", json.dumps({"node-name": "disk0", "size": 66 << 20})).json == {}
    assert run.byre(*ctl, json.dumps({"execute": "block_resize", "arguments": {"node-name": "disk0", "size": 67 << 20}})).json == {}
    assert len(run.byre(*ctl, "-c", "query-block").out.splitlines()) == 1
    assert "image" in run.byre(*ctl, "query-named-block-nodes", "flat=true").json[0]
    done = run.byre(*ctl, "block_resize", "node-name=none", "size=512", code=1)
    assert done.err.startswith("byre: GenericError: ") and "none" in done.err and done.out == ""
    assert "CommandNotFound" in run.byre(*ctl, "bogus", code=1).err
    for words in (["block_resize", "junk"], ["{bad"], ["query-version", "{bad"], ["watch", "x"], []):
        assert run.byre(*ctl, *words, code=1).err.startswith("byre: ")
    assert run.byre("ctl", tmp_path / "nowhere", "query-version", code=1).err
    assert run.byre("ctl", code=1).err


def test_ctl_watch(tmp_path, byre_serve):
    """Events as they come, until the server ends"""
    server = byre_serve(disk(tmp_path))
    watch = subprocess.Popen([run.BYRE, "ctl", server.control, "watch"], stdout=subprocess.PIPE, text=True)
    while not wait.readable(watch.stdout, 0.1):              # events of jobs, until it is there to see them
        server.qmp("x-byre-scrub", device="disk0")
        assert watch.poll() is None
        wait.until(lambda: not server.qmp("query-jobs"), "a scrub does not end")
    run.byre("ctl", server.control, "quit")
    seen = [json.loads(line)["event"] for line in watch.stdout]
    assert set(seen[:-2]) == {"JOB_STATUS_CHANGE"} and seen[-2:] == ["SHUTDOWN", "BLOCK_EXPORT_DELETED"]
    assert watch.wait(10) == 0
    watch.stdout.close()
    assert server.wait() == 0
