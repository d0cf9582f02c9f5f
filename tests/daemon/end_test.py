# SPDX-License-Identifier: MIT
"""The end of a daemon: what guests were told is on the disk, and the end comes, whoever stands still meanwhile."""
import contextlib
import os
import signal
import socket
import time

import pytest

from lib import nbdserver, peers, run, wait

from fdset_test import Passing, descriptors, give, lingering, message, null

MIB = 1 << 20
NODES = ["--blockdev", "driver=file,node-name=f,filename=a.qcow2", "--blockdev", "driver=qcow2,node-name=q,file=f"]
SERVER = ["--nbd-server", "addr.type=unix,addr.path=n.sock"]
EXPORT = ["--export", "type=nbd,id=e,node-name=q,writable=on"]
SOON = 20.0                                  # what waits for somebody who stands still takes an hour


class Serving:
    """A daemon with a pidfile, and a guest that has written without a flush."""

    def __init__(self, start, *words):
        nbd = peers.need_module("nbd")
        self.daemon = start("daemon", *NODES, *SERVER, *EXPORT, "--pidfile", "pid", *words)
        self.pid = self.daemon.process.pid
        self.guest = nbd.NBD()
        self.guest.connect_uri(self.uri())
        self.guest.pwrite(b"\x77" * MIB, 2 * MIB)

    def uri(self, name="q"):
        return f"nbd+unix:///{name}?socket={self.daemon.folder}/n.sock"

    def ends(self, number=signal.SIGTERM, code=0, within=SOON):
        """It ends in time, and nothing is left behind."""
        began = time.monotonic()
        got, out = self.daemon.stop(number, timeout=within)
        assert (got, "Sanitizer" in out) == (code, False), out
        assert not [f for f in os.listdir(self.daemon.folder) if not f.endswith(".qcow2")]
        return time.monotonic() - began, out


def holds(disk, *patterns):
    """The image is sound, closed cleanly, and has that."""
    run.qemu_img("check", disk)
    run.qemu_io(disk, *[f"read -P {what} {at} {length}" for what, at, length in patterns or [(0x77, 2 * MIB, MIB)]])


# ---- descriptors of others ----

def behind_commands(client, near):
    """The descriptor lies in the client's socket, and is not received: as many commands wait as may."""
    first, far = lingering()
    give(client, first, message("getfd", fdname="t"))
    assert client.client.receive() == {"return": {}}
    client.send(message("closefd", fdname="t"))
    for _ in range(30):
        client.send(message("query-version"))
    give(client, near, message("add-fd"))
    return far


def in_a_set(client, near):
    give(client, near, message("add-fd", fdset_id=3))
    assert "return" in client.client.receive()


def in_two(client, near):
    in_a_set(client, near)
    client.send(message("remove-fd", fdset_id=3))


def named(client, near):
    give(client, near, message("getfd", fdname="s"))
    assert client.client.receive() == {"return": {}}


def named_away(client, near):
    named(client, near)
    client.send(message("closefd", fdname="s"))


# what becomes of the descriptor before the end; whether its close has begun then
WAYS = {
    "it is closed": (named_away, True), "it has a name": (named, False), "it is in a set": (in_a_set, False), "it leaves a set": (in_two, True),
    "a bad command": (lambda c, near: give(c, near, message("add-fd", fdset_id=-1)), True), "not received": (behind_commands, False),
    "client gone": (lambda c, near: (named(c, near), c.client.close())[0], True),
    "client gone, not received": (lambda c, near: (behind_commands(c, near), c.client.close())[0], False),
}


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("way", WAYS)
def test_foreign_descriptor(start, disk, way):
    """FEATURES 3.023, 8.007: the end does not wait for the close of what a client has passed, wherever that lies, and caches are written"""
    s = Serving(start)
    act, begun = WAYS[way]
    near, far = lingering()
    inode = f"socket:[{os.fstat(near.fileno()).st_ino}]"
    client = Passing(s.daemon)
    kept = act(client, near)
    if begun:
        wait.until(lambda: inode not in descriptors(s.pid), lambda: f"{descriptors(s.pid)}")
    Passing(s.daemon).ok("query-version")                  # others are served
    took, _ = s.ends()
    holds(disk)
    assert far.fileno() >= 0 and (not kept or kept.fileno() >= 0) and took < SOON
    far.close()


@pytest.mark.asan
@pytest.mark.tsan
def test_client_socket_is_closed_elsewhere(start, disk):
    """FEATURES 3.023: a client goes while descriptors lie in its socket that were not received: nobody waits for their close but its own slot"""
    s = Serving(start)
    for _ in range(6):
        near, far = lingering()
        client = Passing(s.daemon)
        kept = behind_commands(client, near)
        client.client.close()
        kept.close()                         # its command ends, and what was not received is thrown away
        for _ in range(20):
            began = time.monotonic()
            ask_around(s)
            s.guest.pwrite(b"\x77" * 512, 2 * MIB)
            assert time.monotonic() - began < SOON
        far.close()
    s.ends()
    holds(disk)


@pytest.mark.parametrize("how", ["not served", "not accepted"])
def test_devices_of_clients(start, disk, how):
    """FEATURES 8.003: the close of a socket of a character device to which nobody listens keeps nobody waiting, whatever was sent to it"""
    s = Serving(start)
    client = Passing(s.daemon)
    near, far = lingering()
    at = {"type": "unix", "data": {"path": "d.sock"}}
    if how == "not accepted":
        client.ok("chardev-add", id="d", backend={"type": "socket", "data": {"addr": at, "server": True, "wait": False}})
        other = socket.socket(socket.AF_UNIX)
        other.connect(os.path.join(s.daemon.folder, "d.sock"))
    else:
        door = socket.socket(socket.AF_UNIX)
        door.bind(os.path.join(s.daemon.folder, "d.sock"))
        door.listen()
        client.ok("chardev-add", id="d", backend={"type": "socket", "data": {"addr": at, "server": False}})
        other = door.accept()[0]
        door.close()
        os.unlink(os.path.join(s.daemon.folder, "d.sock"))
    leave_in(other, near)
    client.ok("chardev-remove", id="d")
    for _ in range(20):
        client.ok("query-version")
    s.ends()
    holds(disk)
    assert far.fileno() >= 0


def leave_in(sock, near):
    """Sends it and has it no more: by a process that ends, which no close keeps waiting."""
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ready, 1)
        socket.send_fds(sock, [b"x"], [near.fileno()])
        os._exit(0)
    near.close()
    os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ready)
    os.close(go)


@pytest.mark.asan
def test_many_closes(start, disk):
    """FEATURES 3.023: more closes that take long than there are threads for them: images and other clients go on, a client's command ends, and so does the daemon"""
    s = Serving(start)
    fars = []
    client = Passing(s.daemon)
    for _ in range(20):
        near, far = lingering()
        fars.append(far)
        give(client, near, message("add-fd", fdset_id=3))
        assert "return" in client.client.receive()
    client.send(message("remove-fd", fdset_id=3))          # one errand
    for i in range(18):
        near, far = lingering()
        fars.append(far)
        one = come_in(s)
        give(one, near, message("getfd", fdname="s"))
        assert one.client.receive() == {"return": {}}
        one.client.close()
        s.guest.pwrite(bytes([i]) * 4096, 4 * MIB)
        s.guest.flush()
        ask_around(s)
    late = come_in(s)
    late.ok("getfd", null(), fdname="n")
    late.ok("closefd", fdname="n")
    s.ends()
    holds(disk, (0x77, 2 * MIB, MIB), (17, 4 * MIB, 4096))


def come_in(s):
    """There may be as many clients as it lets in, and those that wait for what they have passed are still among them."""
    def come():
        with contextlib.suppress(OSError, TypeError):
            return Passing(s.daemon)
        return None
    return wait.until(come, "no client gets in")


def ask_around(s):
    other = come_in(s)
    other.ok("query-version")
    other.client.close()


# ---- disks and clients that stand still ----

def add_still(s, server):
    s.control = s.daemon.qmp()
    s.control.ok("blockdev-add", driver="nbd", node_name="s", server={"type": "unix", "path": server.socket}, reconnect_delay=600)


def wait_written(disk):
    """Another process sees it, without asking for locks: so would one that comes behind a SIGKILL."""
    def written():
        with contextlib.suppress(run.Failed):
            return run.qemu_io(disk, f"read -P 0x77 {2 * MIB} {MIB}", options=["-r", "-U"])
    wait.until(written, "it is not written")


@pytest.mark.asan
@pytest.mark.tsan
def test_request_stands_still(start, disk, still):
    """FEATURES 8.006, 8.007: a request to a server that stands still keeps the end waiting, for 30 s at most; what other disks were told is written meanwhile. A second signal ends it at once, and nothing is left"""
    s = Serving(start)
    add_still(s, still)
    s.control.ok("block-export-add", type="nbd", id="s", node_name="s", writable=True)
    other = peers.need_module("nbd").NBD()
    other.connect_uri(s.uri("s"))
    other.pwrite(b"1" * 4096, 0)
    nbdserver.stand_still(still.process.pid)
    cookie = other.aio_pread(peers.need_module("nbd").Buffer(4096), 0)
    assert other.poll(300) == 0 and not other.aio_command_completed(cookie)
    s.daemon.process.send_signal(signal.SIGTERM)
    wait_written(disk)
    assert s.daemon.process.poll() is None
    s.ends(code=128 + signal.SIGTERM)
    run.qemu_io(disk, f"read -P 0x77 {2 * MIB} {MIB}")


@pytest.mark.timeout(180)
def test_source_stands_still(start, disk, still):
    """FEATURES 8.006, 8.007: nothing is under way to the source of a backup when its server stands still; what the end asks of it is not waited for for ever"""
    s = Serving(start)
    add_still(s, still)
    run.qemu_img("create", "-q", "-f", "qcow2", disk.parent / "t.qcow2", "8M")
    s.control.ok("blockdev-add", driver="qcow2", node_name="t", file={"driver": "file", "filename": str(disk.parent / "t.qcow2")})
    s.control.ok("block-export-add", type="nbd", id="s", node_name="s", writable=True)
    s.control.ok("blockdev-backup", device="s", target="t", job_id="j", sync="none")
    guest = peers.need_module("nbd").NBD()
    guest.connect_uri(s.uri("s"))
    guest.pwrite(b"1" * 4096, 0)                           # there is something to be flushed
    nbdserver.stand_still(still.process.pid)
    s.daemon.process.send_signal(signal.SIGTERM)
    wait_written(disk)
    assert s.daemon.process.wait(100) in (0, 1)
    assert run.qemu_img("check", disk.parent / "t.qcow2").code == 0


@pytest.mark.timeout(180)
def test_server_stands_still_behind_a_job(start, disk, still):
    """FEATURES 8.006, 8.007: the target of a mirror is a server that stands still, and a client reads from it: the job, which leaves it at the end, leaves it as little time as the end does"""
    s = Serving(start)
    add_still(s, still)
    s.control.ok("block-export-add", type="nbd", id="s", node_name="s", writable=False)
    s.control.ok("blockdev-mirror", device="q", target="s", job_id="j", sync="none")
    s.control.wait("BLOCK_JOB_READY")
    guest = peers.need_module("nbd").NBD()
    guest.connect_uri(s.uri("s"))
    nbdserver.stand_still(still.process.pid)
    cookie = guest.aio_pread(peers.need_module("nbd").Buffer(4096), 0)
    assert guest.poll(300) == 0 and not guest.aio_command_completed(cookie)
    s.daemon.process.send_signal(signal.SIGTERM)
    assert s.daemon.process.wait(100) in (0, 1)
    run.qemu_io(disk, f"read -P 0x77 {2 * MIB} {MIB}")


@pytest.mark.asan
@pytest.mark.tsan
def test_node_stands_still(start, disk, still):
    """FEATURES 8.006, 8.007: a node whose server stands still when it is to be closed keeps no other one from being closed, whichever came first"""
    s = Serving(start)
    add_still(s, still)
    run.qemu_img("create", "-q", "-f", "qcow2", disk.parent / "b.qcow2", "8M")
    s.control.ok("blockdev-add", driver="qcow2", node_name="b", file={"driver": "file", "filename": str(disk.parent / "b.qcow2")})
    for name in "sb":
        s.control.ok("block-export-add", type="nbd", id=name, node_name=name, writable=True)
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(s.uri(name))
        handle.pwrite(b"\x77" * MIB, 2 * MIB)
        handle.shutdown()
    nbdserver.stand_still(still.process.pid)
    s.daemon.process.send_signal(signal.SIGTERM)
    for image in (disk, disk.parent / "b.qcow2"):
        wait.until(lambda image=image: run.qemu_img("check", image, code=None).code == 0, "it is not closed")       # a lock is in its way until then
        holds(image)
    os.kill(still.process.pid, signal.SIGCONT)             # a second signal, which whoever looks for what is left over sends, would cut it short
    assert s.daemon.wait()[0] == 0


@pytest.mark.asan
@pytest.mark.tsan
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_clients_that_do_not_read(start, disk, number):
    """FEATURES 8.006, 8.007: a monitor that takes no reply, one whose commands wait behind that, and a guest that takes none of its answers do not keep the end waiting"""
    s = Serving(start)
    deaf = [s.daemon.qmp() for _ in range(3)]
    for client in deaf[:2]:
        client.send(message("query-version") * 4000)       # more than the socket takes, and less than what the daemon keeps for a client
    with contextlib.suppress(OSError):
        while True:
            deaf[2].send(message("query-qmp-schema"))      # and more than that: it is cut off
    nbd = peers.need_module("nbd")
    guest = nbd.NBD()
    guest.connect_uri(s.uri())
    for _ in range(40):
        guest.aio_pread(nbd.Buffer(MIB), 0)                # sent, and never taken
    s.ends(number)
    holds(disk)


# ---- guests that send descriptors ----

PASSRIGHTS = 83


def need_passrights():
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.setsockopt(socket.SOL_SOCKET, PASSRIGHTS, 1)
        except OSError:
            pytest.skip("this kernel cannot keep descriptors out of a socket")


@pytest.mark.parametrize("where", ["path", "passed"])
def test_guest_cannot_pass(start, disk, where):
    """FEATURES 10.001: an NBD client sends no descriptors; a close that lingers would keep those waiting whom its loop serves"""
    need_passrights()
    s = Serving(start)
    path = os.path.join(s.daemon.folder, "n.sock")
    if where == "passed":
        client = Passing(s.daemon)
        path = str(disk.parent / "p.sock")
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(path)
            door.listen()
            client.ok("getfd", [os.dup(door.fileno())], fdname="d")
        client.ok("nbd-server-start", addr={"type": "fd", "data": {"str": "d"}}, x_byre_id="two")
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(path)
        with pytest.raises(PermissionError):
            socket.send_fds(guest, [b"x"], null())
        assert guest.recv(8) == b"NBDMAGIC"
        with pytest.raises(PermissionError):
            socket.send_fds(guest, [b"x"], null())
    s.ends()


def test_server_cannot_pass(start, disk):
    """FEATURES 3.030: nor does a server that a node is connected to"""
    need_passrights()
    s = Serving(start)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(disk.parent / "far.sock"))
        door.listen()
        client = s.daemon.qmp()
        client.send(message("blockdev-add", driver="nbd", node_name="far", server={"type": "unix", "path": str(disk.parent / "far.sock")}))
        with door.accept()[0] as server:
            with pytest.raises(PermissionError):
                socket.send_fds(server, [b"NBDMAGIC"], null())
        assert "error" in client.receive()
    s.ends()
