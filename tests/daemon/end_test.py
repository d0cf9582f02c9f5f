# SPDX-License-Identifier: MIT
"""The end of a daemon: what guests were told is on the disk, and the end comes, whoever stands still meanwhile."""
import contextlib
import os
import signal
import socket
import time

import pytest

from lib import peers, run, wait

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
    """FEATURES 3.023, 8.003: the end does not wait for the close of what a client has passed, wherever that lies, and caches are written"""
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
    """FEATURES 8.016: the close of a socket of a character device to which nobody listens keeps nobody waiting, whatever was sent to it"""
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
