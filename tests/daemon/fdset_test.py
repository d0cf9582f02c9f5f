# SPDX-License-Identifier: MIT
"""Descriptors that clients pass, and what is opened by them (FEATURES 3.023, G.051)."""
import contextlib
import json
import os
import resource
import select
import socket
import struct
import subprocess
import threading

import pytest

from lib import peers, run, wait
from qmp_client import Qmp

MIB = 1 << 20


class Passing:
    """A client of a daemon that sends descriptors with its commands."""

    def __init__(self, daemon):
        self.daemon, self.pid, self.client = daemon, daemon.process.pid, daemon.qmp()

    def ask(self, command, fds=(), **arguments):
        """Descriptors are closed here when they have been sent."""
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.send(json.dumps(message).encode() + b"\n", fds)
        while "event" in (answer := self.client.receive()):
            self.client.events.append(answer)
        return answer

    def send(self, data, fds=()):
        if fds:
            assert socket.send_fds(self.client.socket, [data], list(fds)) == len(data)
        else:
            self.client.socket.sendall(data)
        for fd in fds:
            os.close(fd)

    def ok(self, command, fds=(), **arguments):
        answer = self.ask(command, fds, **arguments)
        assert "return" in answer, (command, arguments, answer)
        return answer["return"]

    def refused(self, command, fds=(), **arguments):
        answer = self.ask(command, fds, **arguments)
        assert "error" in answer, (command, arguments, answer)
        return answer["error"]["desc"]

    def sets(self):
        return {s["fdset-id"]: [f["fd"] for f in s["fds"]] for s in self.ok("query-fdsets")}

    def add(self, node, number, file=None, **more):
        return {"driver": "qcow2", "node_name": node, "file": {"driver": "file", "filename": f"/dev/fdset/{number}", "node-name": node + "f", **(file or {})}, **more}


def open_files(pid, below):
    """What of this folder the process has open, with repetitions. What ends while one looks is left out."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            if name.startswith(f"{below}/"):
                found.append(os.path.basename(name).removesuffix(" (deleted)"))
    return sorted(found)


@pytest.fixture
def home(tmp_path):
    """What is passed: not in the daemon's folder, which has links to no folders."""
    folder = tmp_path / "passed"
    folder.mkdir()
    run.qemu_img("create", "-q", "-f", "qcow2", folder / "a", "8M")
    run.qemu_io(folder / "a", "write -P 1 0 1M")
    (folder / "r").write_bytes(b"r" * MIB)
    return folder


@pytest.fixture
def passing(start):
    """The daemon, and a client that passes."""
    daemon = start("daemon")
    return Passing(daemon)


def can_write(path):
    """May another program, which asks for the locks?"""
    done = subprocess.run([peers.need("qemu-io"), "-f", "qcow2", "-c", "write -P 9 4M 64k", path], capture_output=True, text=True)
    assert done.returncode == 0 or "lock" in done.stderr, done.stderr
    return done.returncode == 0


# ---- sets ----

@pytest.mark.asan
@pytest.mark.tsan
def test_sets(passing, home):
    """FEATURES 3.023: numbers, texts and the life of sets, in the peer's words"""
    def fd():
        return os.open(home / "r", os.O_RDONLY)
    assert passing.refused("add-fd") == "No file descriptor supplied via SCM_RIGHTS"
    assert passing.refused("add-fd", [fd()], fdset_id=-1) == "Parameter 'fdset-id' expects a non-negative value"
    assert open_files(passing.pid, home) == []
    first = passing.ok("add-fd", [fd()])
    assert first["fdset-id"] == 0
    seven = passing.ok("add-fd", [fd()], fdset_id=7, opaque="rdonly:r")
    also = passing.ok("add-fd", [fd()], fdset_id=7)
    assert passing.ok("add-fd", [fd()])["fdset-id"] == 1
    assert passing.ok("query-fdsets")[0] == {"fdset-id": 7, "fds": [{"fd": seven["fd"], "opaque": "rdonly:r"}, {"fd": also["fd"]}]}
    assert list(passing.sets()) == [7, 1, 0]
    other = Passing(passing.daemon)
    assert other.sets() == passing.sets()                  # of all clients
    assert passing.refused("remove-fd", fdset_id=5) == "File descriptor named 'fdset-id:5' not found"
    assert passing.refused("remove-fd", fdset_id=7, fd=first["fd"]) == f"File descriptor named 'fdset-id:7, fd:{first['fd']}' not found"
    assert "not found" in passing.refused("remove-fd", fdset_id=7, fd=1 << 40)
    passing.ok("remove-fd", fdset_id=7, fd=seven["fd"])
    assert passing.sets()[7] == [also["fd"]]
    passing.ok("remove-fd", fdset_id=0)
    assert passing.ok("add-fd", [fd()])["fdset-id"] == 0   # the lowest that is free
    other.client.close()
    for number in (7, 1, 0):
        passing.ok("remove-fd", fdset_id=number)
    assert passing.ok("query-fdsets") == [] and open_files(passing.pid, home) == []


@pytest.mark.asan
@pytest.mark.tsan
def test_set_stays_while_used(passing, home):
    """FEATURES 3.023: a node keeps what it has opened, and its set, although all is removed; the set goes with the node"""
    passing.ok("add-fd", [os.open(home / "a", os.O_RDWR)], fdset_id=3)
    passing.ok("blockdev-add", **passing.add("n", 3))
    passing.ok("remove-fd", fdset_id=3)
    assert passing.sets() == {3: []} and open_files(passing.pid, home) == ["a"]
    assert passing.ok("add-fd", [os.open(home / "r", os.O_RDONLY)])["fdset-id"] == 0
    assert "/dev/fdset/3" in passing.refused("blockdev-add", driver="file", node_name="m", filename="/dev/fdset/3", read_only=True)
    passing.ok("remove-fd", fdset_id=0)
    passing.ok("blockdev-del", node_name="n")
    wait.until(lambda: passing.sets() == {} and open_files(passing.pid, home) == [])


def test_names_of_sets(passing, home):
    """FEATURES 3.023: errors name the file: a set that is not there, a number that is none, a descriptor that is no disk"""
    for name in ("1", "x", "", "1/", "-1"):
        assert f"/dev/fdset/{name}" in passing.refused("blockdev-add", driver="file", node_name="n", filename=f"/dev/fdset/{name}")
    with socket.socket(socket.AF_UNIX) as s:
        passing.ok("add-fd", [os.dup(s.fileno())], fdset_id=1)
    passing.ok("add-fd", [os.open(home, os.O_RDONLY)], fdset_id=2)
    passing.ok("add-fd", [os.open(home / "r", os.O_PATH)], fdset_id=3)
    passing.ok("add-fd", [os.open(home / "r", os.O_WRONLY)], fdset_id=3)
    passing.ok("add-fd", [os.open(home / "r", os.O_RDWR | os.O_APPEND)], fdset_id=4)
    for number, why in ((1, "neither"), (2, "reading"), (3, "reading"), (4, "reading and writing anywhere")):
        assert why in passing.refused("blockdev-add", driver="file", node_name="n", filename=f"/dev/fdset/{number}"), number
    assert "neither a regular file" in passing.refused("blockdev-add", driver="file", node_name="n", filename="/dev/fdset/2", read_only=True)
    assert set(passing.sets()) == {1, 2, 3, 4}


# ---- nodes ----

def test_modes(passing, home):
    """FEATURES 3.023: the descriptor whose mode fits, also when a node is opened in another way; no path is looked at"""
    os.rename(home / "a", home / "b")
    add = passing.add("n", 1)

    def reopen(read_only, **more):
        both = [{"driver": "file", "node-name": "nf", "filename": "/dev/fdset/1", "read-only": read_only, **more},
                {"driver": "qcow2", "node-name": "n", "file": "nf", "read-only": read_only, **more}]
        return passing.ask("blockdev-reopen", options=both[::-1] if read_only else both)

    passing.ok("add-fd", [os.open(home / "b", os.O_RDONLY)], fdset_id=1)
    assert "reading and writing" in passing.refused("blockdev-add", **add)
    passing.ok("blockdev-add", **{**add, "read_only": True})
    assert "reading and writing" in reopen(False)["error"]["desc"]
    passing.ok("add-fd", [os.open(home / "b", os.O_RDWR)], fdset_id=1)
    for read_only, more in ((False, {}), (True, {}), (False, {}), (False, {"discard": "unmap"}), (False, {"cache": {"no-flush": True}}), (True, {}), (False, {})):
        assert reopen(read_only, **more) == {"return": {}}
        assert not can_write(home / "b"), (read_only, more)           # the locks are held all the time
    passing.ok("nbd-server-start", addr={"type": "unix", "data": {"path": str(home / "nbd")}})
    passing.ok("block-export-add", type="nbd", id="e", node_name="n", writable=True)
    run.qemu_io(f"nbd+unix:///n?socket={home / 'nbd'}", "read -P 1 0 1M", "write -P 7 1M 64k", fmt="raw")
    passing.ok("nbd-server-stop")
    passing.ok("blockdev-del", node_name="n")
    wait.until(lambda: can_write(home / "b"), "the descriptor in the set goes on holding locks")
    run.qemu_io(home / "b", "read -P 7 1M 64k", "read -P 9 4M 64k")
    run.qemu_img("check", home / "b")


def test_shared_open_file(passing, home):
    """FEATURES 3.023, 3.007: two nodes over one open file keep each other out, and who goes takes nothing from who stays"""
    fd = os.open(home / "a", os.O_RDWR)
    passing.ok("add-fd", [os.dup(fd)], fdset_id=1)
    passing.ok("add-fd", [fd], fdset_id=2)
    passing.ok("blockdev-add", **passing.add("n", 1))
    for number in (1, 2):
        why = passing.refused("blockdev-add", **passing.add("m", number))
        assert f"/dev/fdset/{number}" in why and "same descriptor" in why
    assert not can_write(home / "a")
    passing.ok("blockdev-del", node_name="n")
    passing.ok("blockdev-add", **passing.add("m", 2))
    assert not can_write(home / "a")
    passing.ok("blockdev-del", node_name="m")
    wait.until(lambda: can_write(home / "a"))


def test_chain_of_sets(passing, home):
    """FEATURES 3.023: layers of a chain from sets, the external data file of an image too"""
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={home / 'd'},data_file_raw=on", home / "q", "8M")
    run.qemu_io(home / "q", "write -P 3 2M 64k")
    for number, name, mode in ((1, "a", os.O_RDONLY), (2, "q", os.O_RDWR), (3, "d", os.O_RDWR)):
        passing.ok("add-fd", [os.open(home / name, mode)], fdset_id=number)
    os.rename(home / "d", home / "elsewhere")
    passing.ok("blockdev-add", **passing.add("base", 1, read_only=True))
    passing.ok("blockdev-add", **passing.add("top", 2), data_file={"driver": "file", "filename": "/dev/fdset/3"})
    passing.ok("nbd-server-start", addr={"type": "unix", "data": {"path": str(home / "nbd")}})
    for name, at in (("base", "read -P 1 0 1M"), ("top", "read -P 3 2M 64k")):
        passing.ok("block-export-add", type="nbd", id=name, node_name=name)
        run.qemu_io(f"nbd+unix:///{name}?socket={home / 'nbd'}", at, fmt="raw", options=["-r"])


def test_new_images(passing, home):
    """FEATURES 3.023: files that commands make, where the empty file was passed"""
    for number, name in ((1, "a"), (2, "s"), (3, "m"), (4, "c")):
        passing.ok("add-fd", [os.open(home / name, os.O_RDWR | os.O_CREAT, 0o600)], fdset_id=number)
    passing.ok("blockdev-add", **passing.add("n", 1))
    passing.ok("blockdev-snapshot-sync", node_name="n", snapshot_file="/dev/fdset/2", snapshot_node_name="s", format="qcow2")
    passing.ok("drive-mirror", job_id="m", device="s", target="/dev/fdset/3", sync="full", format="qcow2")
    passing.client.wait("BLOCK_JOB_READY", device="m")
    passing.ok("block-job-cancel", device="m")
    passing.client.wait("BLOCK_JOB_COMPLETED", device="m")
    passing.ok("blockdev-create", job_id="c", options={"driver": "file", "filename": "/dev/fdset/1", "size": 0})
    assert "is the file of a node that is open" in failure(passing, "c")
    passing.ok("blockdev-create", job_id="d", options={"driver": "file", "filename": "/dev/fdset/4", "size": MIB})
    assert failure(passing, "d") is None
    assert os.stat(home / "c").st_size == MIB and os.stat(home / "s").st_size
    run.qemu_io(home / "m", "read -P 1 0 1M")
    assert sorted(f.name for f in home.iterdir()) == ["a", "c", "m", "r", "s"]


@pytest.mark.asan
@pytest.mark.tsan
def test_names_in_images(passing, home):
    """FEATURES 3.023: a header, which anybody may have written, leads to nothing that was passed: clients decide who gets it"""
    secret = os.open(home / "a", os.O_RDWR)
    passing.ok("add-fd", [secret], fdset_id=1)
    nbd = 'json:{"driver":"nbd","server":{"type":"fd","str":"s#1"}}'
    names = ["/dev/fdset/1", "file:/dev/fdset/1", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"/dev/fdset/1"}}',
             'json:{"driver":"qcow2","file.filename":"%s","data-file.filename":"/dev/fdset/1"}' % (home / "a"), nbd]
    for i, name in enumerate(names):
        run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", home / f"o{i}", "8M")
        top = {"driver": "qcow2", "node_name": "t", "file": {"driver": "file", "filename": str(home / f"o{i}")}}
        assert "a client has passed" in passing.refused("blockdev-add", **top, read_only=True), name
        passing.ok("blockdev-add", **top, read_only=True, backing=None)
        passing.ok("blockdev-del", node_name="t")
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "1", "-F", "qcow2", home / "beside", "8M")     # relative to /dev/fdset/2
    passing.ok("add-fd", [os.open(home / "beside", os.O_RDONLY)], fdset_id=2)
    assert "a client has passed" in passing.refused("blockdev-add", **passing.add("t", 2, read_only=True))
    passing.ok("blockdev-add", **passing.add("b", 1, read_only=True))
    passing.ok("blockdev-add", **passing.add("t", 2, read_only=True), backing="b")         # as a client wants it
    for node in ("t", "b"):
        passing.ok("blockdev-del", node_name=node)


def test_data_files_in_images(passing, home):
    """FEATURES 3.023: nor does the name of an external data file, which would be written"""
    name = b"/dev/fdset/1"
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={home / 'data'},data_file_raw=on", home / "q", "1M")
    image = (home / "q").read_bytes()
    path = str(home / "data").encode()
    assert image.count(path) == 1 and len(path) > len(name)
    at = image.index(path)
    assert image[at - 4:at] == len(path).to_bytes(4, "big")
    room = (len(path) + 7) // 8 * 8
    with open(home / "q", "r+b") as f:                     # the extension gets the other name; what follows it moves up
        f.seek(at - 4)
        f.write(len(name).to_bytes(4, "big") + name.ljust(16, b"\0") + image[at + room:at + room + 1024] + bytes(room - 16))
    passing.ok("add-fd", [os.open(home / "r", os.O_RDWR)], fdset_id=1)
    passing.ok("add-fd", [os.open(home / "q", os.O_RDWR)], fdset_id=2)
    assert "a client has passed" in passing.refused("blockdev-add", **passing.add("t", 2))
    passing.ok("blockdev-add", **passing.add("t", 2), data_file={"driver": "file", "filename": "/dev/fdset/1"})
    passing.ok("blockdev-del", node_name="t")


def failure(passing, job):
    """Of a job that is over; it is dismissed."""
    def concluded():
        return next((j for j in passing.ok("query-jobs") if j["id"] == job and j["status"] == "concluded"), None)
    found = wait.until(concluded)
    passing.ok("job-dismiss", id=job)
    return found.get("error")


# ---- names ----

def test_names(passing, home):
    """G.051: getfd and closefd in the peer's words; a name is one client's, and goes with it"""
    def fd(name="r"):
        return os.open(home / name, os.O_RDONLY)
    assert passing.refused("getfd", fdname="x") == "No file descriptor supplied via SCM_RIGHTS"
    for bad in ("1", "1x"):
        assert passing.refused("getfd", [fd()], fdname=bad) == "Parameter 'fdname' expects a name not starting with a digit"
    assert "255 bytes" in passing.refused("getfd", [fd()], fdname="x" * 256)
    assert passing.refused("closefd", fdname="x") == "File descriptor named 'x' not found"
    assert open_files(passing.pid, home) == []
    passing.ok("getfd", [fd()], fdname="x")
    passing.ok("getfd", [fd("a")], fdname="x")             # another one under the same name
    assert open_files(passing.pid, home) == ["a"]
    second = Passing(passing.daemon)
    assert second.refused("closefd", fdname="x") == "File descriptor named 'x' not found"
    for i in range(64):
        second.ok("getfd", [fd()], fdname=f"n{i}")
    assert "64 descriptors" in second.refused("getfd", [fd()], fdname="more")
    second.ok("getfd", [fd()], fdname="n3")
    assert open_files(passing.pid, home) == ["a"] + 64 * ["r"]
    second.client.close()
    wait.until(lambda: open_files(passing.pid, home) == ["a"], "names of a client that has gone keep their files open")
    passing.ok("closefd", fdname="x")
    assert open_files(passing.pid, home) == []


@pytest.mark.asan
@pytest.mark.tsan
def test_servers_at_names(passing, home):
    """G.051, 8.004: an NBD server and a monitor at listening sockets by their names; numbers of the process's own are not for clients"""
    before = len(os.listdir(f"/proc/{passing.pid}/fd"))
    with socket.socket(socket.AF_UNIX) as nbd, socket.socket(socket.AF_UNIX) as monitor:
        for s, name in ((nbd, "nbd"), (monitor, "mon")):
            s.bind(str(home / name))
            s.listen(4)
        here = {"type": "fd", "data": {"str": "s"}}
        assert passing.refused("nbd-server-start", addr=here) == "File descriptor named 's' has not been found"
        for number in range(3, 20):      # the daemon's own stay what they are
            why = passing.refused("nbd-server-start", addr={"type": "fd", "data": {"str": str(number)}})
            assert why == f"File descriptor named '{number}' has not been found"
        assert "not been found" in passing.refused("chardev-add", id="c1", backend={"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "5"}}}})
        passing.ok("getfd", [os.open(home / "r", os.O_RDONLY)], fdname="s")
        assert "'s' is no socket" in passing.refused("nbd-server-start", addr=here)
        assert "not found" in passing.refused("closefd", fdname="s") and len(os.listdir(f"/proc/{passing.pid}/fd")) == before
        passing.ok("getfd", [os.dup(nbd.fileno())], fdname="s")
        passing.ok("nbd-server-start", addr=here)
        assert "not found" in passing.refused("closefd", fdname="s")  # it is the server's now
        passing.ok("getfd", [os.dup(monitor.fileno())], fdname="s")
        passing.ok("chardev-add", id="c1", backend={"type": "socket", "data": {"addr": here, "server": True, "wait": False}})
        passing.ok("x-byre-monitor-add", chardev="c1")
    passing.ok("add-fd", [os.open(home / "a", os.O_RDWR)], fdset_id=1)
    passing.ok("blockdev-add", **passing.add("n", 1))
    passing.ok("block-export-add", type="nbd", id="e", node_name="n")
    run.qemu_io(f"nbd+unix:///n?socket={home / 'nbd'}", "read -P 1 0 1M", fmt="raw", options=["-r"])
    client = Qmp(str(home / "mon"))
    assert [s["fdset-id"] for s in client.ok("query-fdsets")] == [1]
    client.close()


# ---- clients that do not keep to it ----

@pytest.mark.asan
@pytest.mark.tsan
def test_nothing_is_left(start, home):
    """FEATURES 3.023: what is sent without a command, with another one, with no JSON, in heaps, or before a client goes, is closed"""
    daemon = start("daemon")
    steady = Passing(daemon)
    assert open_files(steady.pid, home) == []

    def fds(count=1):
        return [os.open(home / "r", os.O_RDONLY) for _ in range(count)]

    def at_most(count):
        wait.until(lambda: len(open_files(steady.pid, home)) <= count, lambda: f"{open_files(steady.pid, home)}")

    client = Passing(daemon)
    for _ in range(40):                                    # nothing but descriptors: the last ones count
        client.send(b" ", fds(3))
    at_most(3)
    assert "3 descriptors came in one message" in client.refused("add-fd")
    at_most(0)
    client.send(b" ", fds())
    assert client.ok("add-fd")["fdset-id"] == 0            # in front of the command
    client.ok("remove-fd", fdset_id=0)
    for _ in range(5):
        client.ok("query-version", fds())                  # a command that takes none leaves it to the next
    at_most(1)
    assert client.ok("add-fd", opaque="x")["fdset-id"] == 0
    client.ok("remove-fd", fdset_id=0)
    assert "No file descriptor" in client.refused("add-fd")
    client.send(b'{"execute": "nonsense" ]\n', fds(2))     # no JSON: they go with it
    assert "error" in client.client.receive()
    assert "No file descriptor" in client.refused("add-fd")
    assert "not all descriptors" in client.refused("add-fd", fds(40))
    assert "No file descriptor" in client.refused("add-fd")
    assert "error" in client.ask("nonsense", fds(2))
    assert "2 descriptors came in one message" in client.refused("getfd", fdname="x")
    at_most(0)
    for text in (b'{"execute": "add-fd", "argu', b'{"execute": "query-version"}' * 12, b'{"execute": "getfd", "arguments": {"fdname": "x"}}' * 3, b"[[[[", b'"'):
        for count in (1, 16):
            gone = Passing(daemon)
            gone.send(text, fds(count))
            gone.client.close()
    client.ok("getfd", fds(), fdname="kept")
    client.send(b" ", fds(16))
    client.client.close()
    at_most(0)
    steady.ok("add-fd", fds(), fdset_id=9)                 # it still does what it should
    assert len(open_files(steady.pid, home)) == 1
    assert daemon.stop()[0] == 0


@pytest.mark.asan
@pytest.mark.tsan
def test_pipelined(passing, home):
    """FEATURES 3.023: each command has the descriptor that was sent with it, also when they are not waited for"""
    names = [f"f{i}" for i in range(12)]
    for i, name in enumerate(names):
        (home / name).write_bytes(b"")
        passing.send(json.dumps({"execute": "add-fd", "arguments": {"fdset-id": i, "opaque": name}}).encode(), [os.open(home / name, os.O_RDONLY)])
    for i, name in enumerate(names):
        answer = passing.client.receive()["return"]
        assert answer["fdset-id"] == i
        assert os.path.basename(os.readlink(f"/proc/{passing.pid}/fd/{answer['fd']}")) == name


# ---- a close that takes its time ----

def lingering():
    """A connection that is full, whose close waits until the other side goes; and that side."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        near = socket.create_connection(door.getsockname())
        far = door.accept()[0]
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(1 << 16))
    return near, far


def give(client, near, data, count=1):
    """Sends it so often with these bytes, and has it no more. Whoever closes it last waits: so it is sent by a process that ends, which the kernel does not let wait, and what
    makes the daemon act is sent behind that."""
    first, rest = (data[:-2], data[-2:]) if len(data) > 2 else (data, b"")
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ready, 1)
        socket.send_fds(client.client.socket, [first], [near.fileno()] * count)
        os._exit(0)
    near.close()
    os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ready)
    os.close(go)
    client.send(rest)


def message(command, **arguments):
    return json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}).encode() + b"\n"


def give_name(client, near):
    give(client, near, message("getfd", fdname="s"))
    assert client.client.receive() == {"return": {}}


def over_name(client, near, command, **arguments):
    give_name(client, near)
    client.send(message(command, **arguments))


def null():
    return [os.open("/dev/null", os.O_RDONLY)]


AT_NAME = {"type": "fd", "data": {"str": "s"}}
# what makes the daemon close the descriptor; its answer, if there is one
SLOW_CLOSES = {
    "closefd": (lambda c, near: over_name(c, near, "closefd", fdname="s"), "return"),
    "another of the name": (lambda c, near: (give_name(c, near), c.send(message("getfd", fdname="s"), null())), "return"),
    "a bad name": (lambda c, near: give(c, near, message("getfd", fdname="1")), "error"),
    "a bad set": (lambda c, near: give(c, near, message("add-fd", fdset_id=-1)), "error"),
    "two of them": (lambda c, near: give(c, near, message("add-fd"), 2), "error"),
    "a heap": (lambda c, near: give(c, near, message("add-fd"), 200), "error"),
    "others in its place": (lambda c, near: (give(c, near, b" "), c.send(message("add-fd"), null())), "return"),
    "no JSON": (lambda c, near: give(c, near, b'{"execute": "nonsense" ]\n'), "error"),
    "the end": (lambda c, near: (give(c, near, b" "), c.client.close()), None),
    "the end, named": (lambda c, near: (give_name(c, near), c.client.close()), None),
    "no node": (lambda c, near: over_name(c, near, "blockdev-add", driver="nbd", node_name="n", tls_creds="none", server={"type": "fd", "str": "s"}), "error"),
    "no NBD": (lambda c, near: over_name(c, near, "nbd-server-start", addr=AT_NAME), "error"),
    "no monitor": (lambda c, near: over_name(c, near, "chardev-add", id="c" * 500, backend={"type": "socket", "data": {"addr": AT_NAME, "server": True, "wait": False}}), "error"),
}


@pytest.mark.parametrize("way", SLOW_CLOSES)
def test_slow_close(passing, way):
    """FEATURES 3.023: who passes what takes long to close waits for it, and nobody else does"""
    act, answer = SLOW_CLOSES[way]
    client = Passing(passing.daemon)
    before = descriptors(passing.pid)
    near, far = lingering()
    inode = f"socket:[{os.fstat(near.fileno()).st_ino}]"
    act(client, near)
    wait.until(lambda: inode not in descriptors(passing.pid), lambda: f"{descriptors(passing.pid)}")      # its close has begun
    for _ in range(20):                                    # behind some of these the loop has seen what was sent
        passing.ok("query-version")
    Passing(passing.daemon).client.close()
    far.close()
    if answer:
        assert answer in client.client.receive()
        client.ok("query-version")
        client.client.close()
    wait.until(lambda: set(descriptors(passing.pid)) <= set(before) | {"/dev/null"}, lambda: f"{before} {descriptors(passing.pid)}")


def descriptors(pid):
    """What the process has open, by the kernel's words."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def test_limit_of_sets(passing, home):
    """FEATURES 3.023: the sets hold so many descriptors, and say so"""
    fd = os.open(home / "r", os.O_RDONLY)
    for i in range(256):
        passing.ok("add-fd", [os.dup(fd)], fdset_id=i % 7)
    assert "256 descriptors" in passing.refused("add-fd", [os.dup(fd)], fdset_id=1)
    assert len(open_files(passing.pid, home)) == 256
    for i in range(7):
        passing.ok("remove-fd", fdset_id=i)
    passing.ok("add-fd", [fd])
    assert len(open_files(passing.pid, home)) == 1


def test_no_room_for_descriptors(start, home):
    """FEATURES 3.023: at the limit of open files what could not be received is told, and the daemon goes on"""
    daemon = start("daemon")
    client = Passing(daemon)
    full = max(map(int, os.listdir(f"/proc/{client.pid}/fd"))) + 4
    resource.prlimit(client.pid, resource.RLIMIT_NOFILE, (full, full))
    answers = [client.ask("add-fd", [os.open(home / "r", os.O_RDONLY)]) for _ in range(full)]
    refusals = [a["error"]["desc"] for a in answers if "error" in a]
    assert 0 < len(refusals) < full and all("not all descriptors" in r for r in refusals)
    for number in client.sets():
        client.ok("remove-fd", fdset_id=number)
    client.ok("add-fd", [os.open(home / "r", os.O_RDONLY)])


def test_offline(home):
    """FEATURES 3.023: nothing was passed to a tool of the command line, and it says so"""
    done = run.byre("info", "/dev/fdset/1", code=1)
    assert "/dev/fdset/1" in done.err and "no set 1" in done.err


# ---- connections to NBD servers ----

@pytest.fixture
def server(home):
    """A socket of an NBD server that exports raw "r" under the name x."""
    path = home / "srv"
    with subprocess.Popen([run.BYRE, "nbd", "-t", "-k", path, "-f", "raw", "-x", "x", "--shared", "0", home / "r"], stdin=subprocess.DEVNULL) as process:
        try:
            wait.until(lambda: path.exists() and wait.listens(process, str(path)))
            yield path
        finally:
            process.terminate()
            process.wait(60)


def connected(path):
    s = socket.socket(socket.AF_UNIX)
    s.connect(str(path))
    return s.detach()


def over(name, node="n", **more):
    return {"driver": "nbd", "node_name": node, "export": "x", "server": {"type": "fd", "str": name}, **more}


def sockets(pid):
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd") if os.path.lexists(f"/proc/{pid}/fd/{fd}"))


@pytest.mark.asan
@pytest.mark.tsan
def test_nbd_over_name(passing, home, server):
    """FEATURES 3.049, G.051: a node over a connection that was passed; once, and by nobody else's name"""
    before = sockets(passing.pid)
    assert passing.refused("blockdev-add", **over("s")) == "File descriptor named 's' has not been found"
    assert "not been found" in passing.refused("blockdev-add", **over("5"))
    passing.ok("getfd", [connected(server)], fdname="s")
    assert "not been found" in Passing(passing.daemon).refused("blockdev-add", **over("s"))
    passing.ok("blockdev-add", **over("s", reconnect_delay=60))
    assert passing.refused("closefd", fdname="s") == "File descriptor named 's' not found"     # it is the node's
    passing.ok("getfd", [connected(server)], fdname="s")   # the same name, another connection, and another node
    passing.ok("blockdev-add", driver="raw", node_name="m", file={"driver": "nbd", "export": "x", "server": {"type": "fd", "str": "s"}})
    passing.ok("nbd-server-start", addr={"type": "unix", "data": {"path": str(home / "nbd")}})
    for node in ("n", "m"):
        passing.ok("block-export-add", type="nbd", id=node, node_name=node, writable=True)
        run.qemu_io(f"nbd+unix:///{node}?socket={home / 'nbd'}", "read -P 114 64k 64k", "write -P 5 0 64k", "read -P 5 0 64k", fmt="raw")
    assert (home / "r").read_bytes()[:65537] == b"\x05" * 65536 + b"r"
    passing.ok("block-export-del", id="n")
    passing.client.wait("BLOCK_EXPORT_DELETED", id="n")
    for name, why in (("s", "Cannot change the option 'filename'"), ("s#1", "no connection at a descriptor 's#1', or it was used already")):
        assert why in passing.refused("blockdev-reopen", options=[{k.replace("_", "-"): v for k, v in over(name, read_only=True).items()}])
    passing.ok("block-export-add", type="nbd", id="n", node_name="n")
    run.qemu_io(f"nbd+unix:///n?socket={home / 'nbd'}", "read -P 5 0 64k", fmt="raw", options=["-r"])
    passing.ok("nbd-server-stop")
    for node in ("n", "m"):
        passing.ok("blockdev-del", node_name=node)
    wait.until(lambda: sockets(passing.pid) <= before + 1)           # the second client
    assert passing.daemon.stop()[0] == 0


def test_nbd_over_what_does_not_answer(passing, home, server):
    """FEATURES 3.049: what is no connection, or leads to no export, is refused and closed, also when the node cannot be"""
    before = len(os.listdir(f"/proc/{passing.pid}/fd"))

    def refused(fd, **node):
        passing.ok("getfd", [fd], fdname="s")
        why = passing.refused("blockdev-add", **{**over("s"), **node})
        wait.until(lambda: len(os.listdir(f"/proc/{passing.pid}/fd")) <= before, lambda: f"{node}: something stays open")
        return why

    assert "server.str: the descriptor 's' is no socket" in refused(os.open(home / "r", os.O_RDWR))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        assert "no stream socket" in refused(os.dup(s.fileno()))
    with socket.socket(socket.AF_UNIX) as s:
        refused(os.dup(s.fileno()))                        # of nobody
    near, far = socket.socketpair()
    far.close()
    refused(near.detach())
    assert "y" in refused(connected(server), export="y")
    assert "none" in refused(connected(server), tls_creds="none")
    passing.ok("getfd", [connected(server)], fdname="s")
    assert "odd" in passing.refused("blockdev-add", **over("s", cache={"odd": True}))
    passing.ok("closefd", fdname="s")                      # what is no command at all takes nothing
    assert "host" in refused(connected(server), server={"type": "fd", "str": "s", "host": "h"})
    passing.ok("getfd", [connected(server)], fdname="s")
    passing.ok("blockdev-add", **over("s"))
    assert passing.ask("blockdev-add", **over("s"))["error"]


@pytest.mark.asan
@pytest.mark.tsan
def test_nbd_connection_ends(passing, home, server):
    """FEATURES 3.049: when it is lost, requests fail at once, whatever reconnect-delay says: nobody can make it again"""
    near, far = socket.socketpair()
    done = threading.Thread(target=relay, args=(far, server))
    done.start()
    passing.ok("getfd", [near.detach()], fdname="s")
    passing.ok("blockdev-add", **over("s", reconnect_delay=10000))
    passing.ok("nbd-server-start", addr={"type": "unix", "data": {"path": str(home / "nbd")}})
    passing.ok("block-export-add", type="nbd", id="e", node_name="n")
    url = f"nbd+unix:///n?socket={home / 'nbd'}"
    run.qemu_io(url, "read -P 114 0 64k", fmt="raw", options=["-r"])
    far.shutdown(socket.SHUT_RDWR)
    done.join(60)
    bad = subprocess.run([peers.need("qemu-io"), "-f", "raw", "-r", "-c", "read 0 64k", url], capture_output=True, text=True, timeout=120)
    assert "failed" in bad.stdout + bad.stderr
    assert passing.daemon.stop()[0] == 0


def relay(far, path):
    """Passes bytes both ways until one side ends."""
    with socket.socket(socket.AF_UNIX) as s, far:
        s.connect(str(path))
        while ready := select.select([s, far], [], [])[0]:
            for one in ready:
                data = one.recv(1 << 16)
                if not data:
                    return
                (far if one is s else s).sendall(data)


def test_nbd_on_the_command_line(home, server, start):
    """FEATURES 3.049: a number of a descriptor that the program was started with"""
    fd = connected(server)
    os.set_inheritable(fd, True)
    words = ["--blockdev", f"driver=nbd,node-name=n,export=x,server.type=fd,server.str={fd}", "--nbd-server", f"addr.type=unix,addr.path={home / 'nbd'}",
             "--export", "type=nbd,id=e,node-name=n"]
    process = subprocess.Popen([run.BYRE, "daemon", *words], pass_fds=[fd], stdin=subprocess.DEVNULL)
    os.close(fd)
    try:
        wait.until(lambda: (home / "nbd").exists() and wait.listens(process, str(home / "nbd")))
        run.qemu_io(f"nbd+unix:///n?socket={home / 'nbd'}", "read -P 114 0 64k", fmt="raw", options=["-r"])
    finally:
        process.terminate()
        assert process.wait(60) == 0
    done = run.run(run.BYRE, "daemon", "--blockdev", "driver=nbd,node-name=n,server.type=fd,server.str=77", code=1)
    assert "'77' is no descriptor" in done.err


def test_refused_server_closes_the_socket(passing, tmp_path):
    """FEATURES 3.049: a server that is not started gives the socket back that was passed for it"""
    passing.ok("nbd-server-start", addr={"type": "unix", "data": {"path": "n.sock"}})
    have = len(os.listdir(f"/proc/{passing.pid}/fd"))
    for i in range(3):
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(tmp_path / f"l{i}"))
            s.listen(1)
            passing.ok("getfd", [os.dup(s.fileno())], fdname="x")
        assert "already running" in passing.refused("nbd-server-start", addr={"type": "fd", "data": {"str": "x"}})
    assert len(os.listdir(f"/proc/{passing.pid}/fd")) == have
