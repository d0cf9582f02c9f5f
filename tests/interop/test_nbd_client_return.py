# SPDX-License-Identifier: MIT
"""An NBD server that goes away, and comes back (FEATURES 3.033): what was acknowledged is not lost, and what was lost is told.

The server is nbdkit with a cache that a kill empties: whatever was not flushed is gone, as after a power cut."""
import contextlib
import json
import os
import socket
import subprocess
import threading
import time

import pytest
from lib import nbdserver, peers, serve, tcp, wait
from lib.run import BYRE, byre, free_port

MIB = 1 << 20
DISK = 48 * MIB


@pytest.fixture(params=["uring", "threads"])
def backend(request, monkeypatch):
    monkeypatch.setenv("BYRE_BACKEND", request.param)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    with open(path, "wb") as f:
        f.truncate(DISK)
    return path


@pytest.fixture
def volatile(disk):
    """A server whose kill loses what was not flushed."""
    server = nbdserver.nbdkit("--filter=cache", "--filter=delay", "file", disk, "cache=writeback", "wdelay=10ms")
    yield server.start()
    server.close()


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(os.urandom(DISK))
    return path


def name_of(server, /, **options):
    file = {"driver": "nbd", "server": {"type": "unix", "path": server.socket}, **options}
    return f"json:{json.dumps({'driver': 'raw', 'file': file})}"


def kill_and_restart(server, times, pause, away):
    for _ in range(times):
        time.sleep(pause)
        server.kill()
        time.sleep(away)
        server.start()


@pytest.mark.parametrize("order", [[], ["-W"]], ids=["in-order", "any-order"])
def test_a_copy_goes_on(volatile, disk, noise, order, backend):
    """Killed and restarted in the middle of a copy, three times: the copy ends, and every byte is there, durably"""
    args = [BYRE, "convert", "-n", *order, "-f", "raw", noise, name_of(volatile, **{"reconnect-delay": 30, "open-timeout": 30})]
    copy = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        kill_and_restart(volatile, 3, 0.12, 0.1)
        err = copy.communicate(timeout=60)[1]
    finally:
        copy.kill()
    assert copy.returncode == 0, err
    volatile.kill()                                   # all of it was flushed: nothing is in the cache
    assert disk.read_bytes() == noise.read_bytes()


def test_a_copy_without_patience_fails(disk, noise, tmp_path, backend):
    """Without reconnect-delay: a copy whose server was restarted does not end as if nothing had happened"""
    log = tmp_path / "log"
    far = nbdserver.nbdkit("--filter=log", "--filter=delay", "file", disk, f"logfile={log}", "wdelay=60").start()
    copy = subprocess.Popen([BYRE, "convert", "-n", "-f", "raw", noise, name_of(far)], stderr=subprocess.PIPE, text=True)
    try:
        wait.until(lambda: "Write" in log.read_text(), "nothing is written")
        far.kill()
        far.start()
        err = copy.communicate(timeout=60)[1]
    finally:
        copy.kill()
        far.close()
    assert copy.returncode == 1 and far.socket in err, err
    assert "Input/output error" in err or "not connected" in err or "onnection" in err


class Guest:
    """A disk over byre serve over the server: what a guest would see."""

    def __init__(self, far, workdir, **options):
        self.serve = serve.Server(name_of(far, **options), workdir=workdir)
        self.serve.wait_ready()
        self.nbd = peers.need_module("nbd")
        self.h = self.nbd.NBD()
        self.h.connect_uri(self.serve.uri)

    def fails(self, what, *args):
        with pytest.raises(self.nbd.Error):
            what(*args)

    def close(self):
        del self.h
        self.serve.close()


@pytest.fixture
def guest(tmp_path):
    made = []

    def make(far, **options):
        made.append(Guest(far, tmp_path, **options))
        return made[-1]

    yield make
    for g in made:
        g.close()


def until(what, within=30):
    end = time.monotonic() + within
    while True:
        try:
            return what()
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.1)


def until_poll(h, what, within=30):
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end
        h.poll(20)


def test_unflushed_writes_end_the_disk(volatile, guest, backend):
    """What was acknowledged and may be lost is not replaced by old data: the disk fails, and says so to flushes and reads, for ever"""
    g = guest(volatile)
    g.h.pwrite(b"a" * 4096, 0)
    g.h.flush()
    g.h.pwrite(b"b" * 4096, 0)
    volatile.kill()
    volatile.start()
    time.sleep(2.5)                                   # it would be back by now
    g.fails(g.h.pread, 4096, 0)
    g.fails(g.h.flush)
    g.fails(g.h.pwrite, b"c" * 4096, 0)


def test_flushed_writes_are_no_obstacle(volatile, disk, guest, backend):
    """Everything was flushed, or written durably: the disk comes back by itself, also without reconnect-delay"""
    g = guest(volatile)
    g.h.pwrite(b"a" * 4096, 0)
    g.h.flush()
    g.h.pwrite(b"b" * 4096, 8192, g.nbd.CMD_FLAG_FUA)
    volatile.kill()
    g.fails(g.h.pread, 4096, 0)
    volatile.start()
    assert until(lambda: g.h.pread(4096, 0)) == b"a" * 4096
    assert g.h.pread(4096, 8192) == b"b" * 4096
    g.h.pwrite(b"c" * 4096, 0)
    g.h.flush()
    volatile.kill()
    with open(disk, "rb") as f:
        assert f.read(4096) == b"c" * 4096


def test_order_of_repetition(volatile, disk, guest, backend):
    """Overlapping writes, zeros, durable and plain: after the return the latest counts"""
    g = guest(volatile, **{"reconnect-delay": 30})
    g.h.pwrite(b"0" * 65536, 0)
    g.h.pwrite(b"1" * 4096, 0)
    g.h.pwrite(b"2" * 4096, 0, g.nbd.CMD_FLAG_FUA)    # durable on the server: the repetition of the older one must not undo it
    g.h.pwrite(b"3" * 4096, 8192)
    g.h.zero(4096, 12288)
    g.h.pwrite(b"4" * 1024, 9216)
    want = bytearray(b"0" * 65536)
    want[0:4096] = b"2" * 4096
    want[8192:12288] = b"3" * 4096
    want[9216:10240] = b"4" * 1024
    want[12288:16384] = bytes(4096)
    for _ in range(3):
        volatile.kill()
        volatile.start()
        assert g.h.pread(65536, 0) == bytes(want)
    g.h.flush()
    volatile.kill()
    with open(disk, "rb") as f:
        assert f.read(65536) == bytes(want)


class HalfOpen:
    """A relay that does not tell its clients of the end of the server: what they send then goes nowhere. `cut` tells them. A second client is let on
    while `more` is set; while `mute` is, the first one hears nothing, which `unheard` tells."""

    def __init__(self, path, to):
        self.listener, self.to, self.clients = socket.socket(socket.AF_UNIX), to, []
        self.more, self.mute, self.unheard = threading.Event(), threading.Event(), threading.Event()
        self.more.set()
        self.listener.bind(str(path))
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.to)
            self.clients.append(client)
            if len(self.clients) > 1:
                self.more.wait()
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=(a, b), daemon=True).start()

    def pump(self, a, b):
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                if b is self.clients[0] and self.mute.is_set():
                    self.unheard.set()
                    continue
                with contextlib.suppress(OSError):
                    b.sendall(data)

    def cut(self, which):
        self.clients[which].shutdown(socket.SHUT_RDWR)

    def close(self):
        self.more.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        for c in self.clients:
            with contextlib.suppress(OSError):
                c.shutdown(socket.SHUT_RDWR)


def test_a_new_server_is_not_the_old_one(volatile, disk, guest, tmp_path, backend):
    """RG27: the server is restarted, which only a new connection finds out. A flush does not go there as if that knew what the old one had in its cache;
    when the end of the old connection is told, all of it is repeated"""
    relay = HalfOpen(tmp_path / "relay", volatile.socket)
    try:
        g = guest(type("Far", (), {"socket": str(tmp_path / "relay")}), **{"reconnect-delay": 60})
        g.h.pwrite(b"W" * 4096, 0)
        volatile.kill()
        volatile.start()
        for i in range(8):
            g.h.aio_pread(bytearray(4096), 65536 + 4096 * i)
        until_poll(g.h, lambda: len(relay.clients) == 2)     # one more is wanted
        time.sleep(0.5)
        flushed = []
        g.h.aio_flush(completion=lambda error: flushed.append(error.value) or 1)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            g.h.poll(50)
        assert not flushed
        relay.cut(0)
        until_poll(g.h, lambda: flushed)
        assert flushed == [0] and g.h.pread(4096, 0) == b"W" * 4096
        volatile.kill()
        with open(disk, "rb") as f:
            assert f.read(4096) == b"W" * 4096
    finally:
        relay.close()


def test_closing_while_another_connection_is_wanted(volatile, guest, tmp_path, backend):
    """What is to become a further connection waits for one that has fallen silent: the disk can be closed all the same"""
    relay = HalfOpen(tmp_path / "relay", volatile.socket)
    try:
        g = guest(type("Far", (), {"socket": str(tmp_path / "relay")}), **{"reconnect-delay": 300})
        relay.more.clear()
        while len(relay.clients) < 2:                        # one more is wanted when several wait
            for i in range(32):
                g.h.aio_pwrite(bytearray(4096), 4096 * i)
            until_poll(g.h, lambda: not g.h.aio_in_flight())
        g.h.flush()
        relay.mute.set()
        relay.more.set()
        assert relay.unheard.wait(20)
        assert g.serve.stop(timeout=20) == 0
    finally:
        relay.close()


def tells_loss_once(tmp_path, pause):
    """A server whose first flush fails, after a pause: the loss of all that was written before. Later ones succeed"""
    told = tmp_path / "told"
    flush = f"if mkdir {told} 2>/dev/null; then sleep {pause}; echo EIO lost >&2; exit 1; fi"
    server = nbdserver.nbdkit("eval", "thread_model=echo parallel", "get_size=echo 64M", "can_write=exit 0", "can_flush=exit 0", "can_fua=echo native",
                              "can_multi_conn=exit 0", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", f"flush={flush}")
    return server.start(), told


def test_a_loss_is_told_to_everybody(guest, tmp_path, backend):
    """RG27: the client makes durable by itself what it keeps for the server's return; when that takes the error of a loss, no flush of a guest
    beside it, which finds none, says that all is well"""
    server, told = tells_loss_once(tmp_path, 2)
    try:
        g = guest(server, **{"reconnect-delay": 30})
        other = g.nbd.NBD()
        other.connect_uri(g.serve.uri)
        for i in range(17):                           # of 16 MiB
            g.h.aio_pwrite(bytearray(b"x" * MIB), i * MIB)
        until_poll(g.h, told.exists)
        for _ in range(2):
            g.fails(other.flush)
        del other
    finally:
        server.close()


def test_a_durable_write_tells_a_loss(guest, tmp_path, backend):
    """Durable writes are kept, too, behind one that is not; the one whose turn it is to make all durable fails with it, and so does everything behind it"""
    server, told = tells_loss_once(tmp_path, 0)
    try:
        g = guest(server, **{"reconnect-delay": 30})
        g.h.pwrite(b"x" * 512, 0)
        for i in range(15):
            g.h.pwrite(b"x" * MIB, i * MIB, g.nbd.CMD_FLAG_FUA)
        assert not told.exists()
        with pytest.raises(g.nbd.Error):
            for i in range(15, 18):
                g.h.pwrite(b"x" * MIB, i * MIB, g.nbd.CMD_FLAG_FUA)
        assert told.exists()
        g.fails(g.h.flush)
        g.fails(g.h.pwrite, b"x" * 512, 0, g.nbd.CMD_FLAG_FUA)
    finally:
        server.close()


def test_requests_wait_for_a_while(volatile, guest, backend):
    """reconnect-delay: a request is held that long, no longer; later ones fail at once, until the server is back"""
    g = guest(volatile, **{"reconnect-delay": 6})
    volatile.kill()
    begin = time.monotonic()
    g.fails(g.h.pread, 512, 0)
    held = time.monotonic() - begin
    assert 5.5 < held < 60, held
    begin = time.monotonic()
    g.fails(g.h.pread, 512, 0)
    assert time.monotonic() - begin < 5.5                    # it is not held once more
    volatile.start()
    assert until(lambda: g.h.pread(512, 0)) == bytes(512)
    assert g.serve.stop() == 0


def test_found_within_the_delay(volatile, guest, backend):
    """A server that is back before the delay ends is found before it ends: a read, and a flush of what was lost, wait and succeed"""
    g = guest(volatile, **{"reconnect-delay": 14})
    g.h.pwrite(b"a" * 4096, 0)
    volatile.kill()
    begin, ended, got = time.monotonic(), [], g.nbd.Buffer(4096)
    g.h.aio_pread(got, 0, completion=lambda error: ended.append((error.value, time.monotonic() - begin)) or 1)
    g.h.aio_flush(completion=lambda error: ended.append((error.value, time.monotonic() - begin)) or 1)
    time.sleep(9)
    volatile.start()
    until_poll(g.h, lambda: len(ended) == 2)
    assert [error for error, _ in ended] == [0, 0] and min(at for _, at in ended) > 8.5, ended
    assert bytes(got.to_bytearray()) == b"a" * 4096
    g.h.pwrite(b"b" * 4096, 0)
    g.h.flush()


def test_the_delay_does_not_end_a_repetition(guest, backend):
    """What the server may have lost takes longer to do again than the delay: whoever waits for it goes on to wait"""
    server = nbdserver.nbdkit("--filter=delay", "memory", "48M", "delay-trim=20ms").start()
    try:
        g = guest(server, **{"reconnect-delay": 3})
        for i in range(500):
            g.h.trim(4096, 4096 * i)
        server.kill()
        begin, ended = time.monotonic(), []
        g.h.aio_flush(completion=lambda error: ended.append((error.value, time.monotonic() - begin)) or 1)
        server.start()
        until_poll(g.h, lambda: ended, 60)
        assert ended[0][0] == 0 and ended[0][1] > 5, ended
        g.h.flush()
    finally:
        server.close()


def test_a_server_that_is_back_and_silent(guest):
    """A server that is back, and says nothing to what is repeated, is not waited for without end"""
    server = nbdserver.nbdkit("memory", "48M").start()
    try:
        g = guest(server, **{"reconnect-delay": 3})
        g.h.trim(4096, 0)
        server.kill()
        server.command = lambda sock: [peers.need("nbdkit"), "-f", "-U", sock, "--filter=delay", "memory", "48M", "delay-trim=600"]
        begin = time.monotonic()
        server.start()
        g.fails(g.h.flush)
        assert 20 < time.monotonic() - begin < 90
    finally:
        server.close()


def flushes_of(log):
    return log.read_text().count(" Flush ")


def test_what_is_kept_is_bounded_by_number(disk, guest, tmp_path, backend):
    """Changes without contents are kept, too, and each costs a round trip when the server is back: behind some thousands of them a flush is asked for"""
    log = tmp_path / "log"
    server = nbdserver.nbdkit("--filter=log", "file", disk, f"logfile={log}").start()
    try:
        g = guest(server, **{"reconnect-delay": 30})
        for i in range(3800):
            g.h.trim(512, 512 * i)
        before = flushes_of(log)
        for i in range(3800, 4300):
            g.h.trim(512, 512 * i)
        assert before == 0
        wait.until(lambda: flushes_of(log) == 1, "no flush was asked for")
    finally:
        server.close()


def test_another_disk_is_refused(volatile, guest, tmp_path, backend):
    """A server that comes back with another size is not the one that went"""
    g = guest(volatile, **{"reconnect-delay": 3})
    volatile.kill()
    other = tmp_path / "other"
    with open(other, "wb") as f:
        f.truncate(DISK * 2)
    volatile.command, real = (lambda sock: [peers.need("nbdkit"), "-f", "-U", sock, "file", other]), volatile.command
    volatile.start()
    g.fails(g.h.pread, 512, 0)
    volatile.kill()
    volatile.command = real
    volatile.start()
    time.sleep(1.5)
    g.fails(g.h.pread, 512, 0)


def test_a_host_that_vanishes_is_noticed(disk, guest, backend):
    """Over TCP: an idle connection is asked after half a minute whether the server's host is still there"""
    port = free_port()
    server = nbdserver.NbdServer(lambda _: [peers.need("nbdkit"), "-f", "-i", "127.0.0.1", "-p", port, "file", disk])
    server.listens = lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0
    server.start()
    try:
        g = guest(type("Far", (), {"socket": None}), server={"type": "inet", "host": "127.0.0.1", "port": str(port)})
        assert g.h.pread(512, 0) == bytes(512)
        wait.until(lambda: tcp.keepalive_s(port, far=True), "nobody asks")
        assert 20 < tcp.keepalive_s(port, far=True) <= 31
    finally:
        server.close()


def test_opening_waits(volatile, tmp_path, backend):
    """open-timeout"""
    volatile.kill()
    begin = time.monotonic()
    assert byre("info", name_of(volatile), code=1).err
    assert time.monotonic() - begin < 15
    args = [BYRE, "info", "--output=json", name_of(volatile, **{"open-timeout": 20})]
    info = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    volatile.start()
    out, err = info.communicate(timeout=30)
    assert info.returncode == 0 and json.loads(out)["virtual-size"] == DISK, err
    volatile.kill()
    begin = time.monotonic()
    byre("info", name_of(volatile, **{"open-timeout": 2}), code=1)
    assert 1 < time.monotonic() - begin < 30


def test_closing_does_not_wait(volatile, guest, backend):
    """A server that is away, and waited for, keeps nobody from ending"""
    g = guest(volatile, **{"reconnect-delay": 300})
    volatile.kill()
    time.sleep(0.3)
    begin = time.monotonic()
    assert g.serve.stop() is not None
    assert time.monotonic() - begin < 60                     # of 300
