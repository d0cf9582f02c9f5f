# SPDX-License-Identifier: MIT
"""NBD servers that stall, lie, or hang up: byre ends with an error, in time, and takes nothing for granted (FEATURES 3.031)."""
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
from lib import wait
from lib.run import BYRE, byre

MIB = 1 << 20
MAGIC, OPTION_REPLY, REQUEST, SIMPLE, CHUNK = 0x49484156454F5054, 0x3E889045565A9, 0x25609513, 0x67446698, 0x668E33EF
FLAGS = 0x1 | 0x4 | 0x8 | 0x20 | 0x40                        # flags, flush, FUA, trim, zeroes


@pytest.fixture(params=["uring", "threads"])
def backend(request, monkeypatch):
    monkeypatch.setenv("BYRE_BACKEND", request.param)


class Liar:
    """A server as the protocol wants it, until one of its methods is replaced."""
    size, blocks, flags, status = 4 * MIB, (1, 4096, 32 * MIB), FLAGS, [(4 * MIB, 0)]

    def __init__(self, folder):
        self.path = os.path.join(folder, "s")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.clients, self.seen = [], 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                s = self.listener.accept()[0]
            except OSError:
                return
            self.clients.append(s)
            self.seen += 1
            threading.Thread(target=self.guarded, args=(s,), daemon=True).start()

    def guarded(self, s):
        try:
            self.serve(s)
        except (OSError, EOFError, struct.error):
            pass
        s.close()

    def close(self):
        self.listener.close()
        for s in self.clients:
            s.close()

    @staticmethod
    def take(s, n):
        data = b""
        while len(data) < n:
            more = s.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def greet(self, s):
        s.sendall(b"NBDMAGIC" + struct.pack(">QH", MAGIC, 3))
        self.take(s, 4)

    def option(self, s, option, kind, data=b""):
        s.sendall(struct.pack(">QIII", OPTION_REPLY, option, kind, len(data)) + data)

    def serve(self, s):
        self.greet(s)
        while True:
            _, option, n = struct.unpack(">QII", self.take(s, 16))
            self.take(s, n)
            if option == 10:
                self.option(s, option, 4, struct.pack(">I", 7) + b"base:allocation")
                self.option(s, option, 1)
            elif option == 8:
                self.option(s, option, 1)
            elif option == 7:
                self.option(s, option, 3, struct.pack(">HQH", 0, self.size, self.flags))
                self.option(s, option, 3, struct.pack(">HIII", 3, *self.blocks))
                self.option(s, option, 1)
                break
            else:
                self.option(s, option, 0x80000001)
        while True:
            _, flags, kind, cookie, off, n = struct.unpack(">IHHQQI", self.take(s, 28))
            data = self.take(s, n) if kind == 1 else b""
            self.request(s, kind, cookie, off, n, data, flags)

    def chunk(self, s, cookie, kind, data=b"", done=True):
        s.sendall(struct.pack(">IHHQI", CHUNK, int(done), kind, cookie, len(data)) + data)

    def request(self, s, kind, cookie, off, n, data, flags):
        if kind == 2:
            raise EOFError
        if kind == 0:
            self.read(s, cookie, off, n)
        elif kind == 7:
            self.chunk(s, cookie, 5, struct.pack(">I", 7) + b"".join(struct.pack(">II", *e) for e in self.status))
        else:
            self.chunk(s, cookie, 0)

    def read(self, s, cookie, off, n):
        self.chunk(s, cookie, 1, struct.pack(">Q", off) + b"x" * n)


@pytest.fixture
def liar(tmp_path_factory):
    made = []

    def make(**methods):
        server = Liar(tmp_path_factory.mktemp("l"))
        for name, what in methods.items():
            setattr(server, name, what.__get__(server) if callable(what) else what)
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()


def name_of(server, **options):
    return f"json:{json.dumps({'driver': 'raw', 'file': {'driver': 'nbd', 'server': {'type': 'unix', 'path': server.path}, **options}})}"


def test_the_honest_one(liar, backend, tmp_path):
    """The server of this file, unchanged, is one that byre takes"""
    byre("convert", "-f", "raw", "-O", "raw", name_of(liar()), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"x" * 4 * MIB


def nothing(self, s, *args):
    time.sleep(60)


def garbage(self, s, *args):
    s.sendall(bytes(range(256)) * 64)
    time.sleep(5)


def hang_up(self, s, *args):
    raise EOFError


@pytest.mark.parametrize("what", [garbage, hang_up, nothing])
def test_handshake(liar, what, backend):
    """A greeting of nonsense, none at all, and one that never comes: the deadline ends it"""
    begin = time.monotonic()
    err = byre("info", name_of(liar(greet=what), **{"open-timeout": 1}), code=1).err
    assert "NBD" in err and time.monotonic() - begin < 8


@pytest.mark.parametrize("blocks,size", [((3, 4096, 1 << 20), 4 * MIB), ((1 << 20, 1 << 20, 1 << 20), 4 * MIB), ((4096, 4096, 512), 4 * MIB),
                                         ((4096, 4096, 1 << 20), 4 * MIB + 512), ((1, 4096, 1 << 25), (1 << 64) - 1), ((1, 4096, 1 << 25), 1 << 63)])
def test_sizes(liar, blocks, size):
    """Impossible blocks and sizes are refused, or ignored where the client may choose: never gone by"""
    done = byre("info", "--output=json", name_of(liar(blocks=blocks, size=size)), code=None)
    assert done.code == 1 or (done.code == 0 and size == 4 * MIB), done
    assert done.code == 0 or "nbd" in done.err


@pytest.mark.parametrize("status", [[], [(0, 3)], [(0, 0)] * 3 + [(4 * MIB, 0)], [(0xFFFFFFFF, 0)] * 4, [(1, 3)] * 100 + [(4 * MIB, 0)], [(4 * MIB, 1)]])
def test_block_status(liar, status, tmp_path):
    """Lengths of 0, too long, in pieces that are no blocks; a hole that is not said to be zeros is read"""
    byre("convert", "-f", "raw", "-O", "raw", name_of(liar(status=status)), tmp_path / "out", code=(0, 1))
    if (tmp_path / "out").exists() and (tmp_path / "out").stat().st_size == 4 * MIB:
        got = (tmp_path / "out").read_bytes()
        assert got.count(b"x") >= 4 * MIB - 4096


def short(self, s, cookie, off, n):
    self.chunk(s, cookie, 1, struct.pack(">Q", off) + b"x" * (n // 2))


def beyond(self, s, cookie, off, n):
    self.chunk(s, cookie, 1, struct.pack(">Q", off + n) + b"x" * n)


def too_much(self, s, cookie, off, n):
    self.chunk(s, cookie, 1, struct.pack(">Q", off) + b"x" * (n + 512))


def stranger(self, s, cookie, off, n):
    self.chunk(s, cookie + 1000, 1, struct.pack(">Q", off) + b"x" * n)


def closing(self, s, cookie, off, n):
    self.chunk(s, cookie, 0x8001, struct.pack(">IH", 108, 0))


@pytest.mark.parametrize("read", [beyond, too_much, stranger, garbage, hang_up, closing])
@pytest.mark.parametrize("delay", [0, 1])
def test_reads(liar, read, delay, tmp_path, backend):
    """Answers that break the protocol, or an end again and again: an error, after reconnect-delay at the latest, and no storm of connections"""
    server = liar(read=read)
    begin = time.monotonic()
    done = byre("io", "-r", "-f", "raw", "-c", "read 0 64k", name_of(server, **{"reconnect-delay": delay}), code=None)
    assert "read failed" in done.out + done.err and time.monotonic() - begin < 20
    assert server.seen < 12


def test_bytes_that_never_came(liar, tmp_path):
    """An answer that is said to be complete and is not: no memory of byre is shown in its place"""
    server = liar(read=short)
    done = byre("convert", "-f", "raw", "-O", "raw", name_of(server), tmp_path / "out", code=(0, 1))
    if done.code == 0:
        assert set((tmp_path / "out").read_bytes()) <= {0, ord("x")}


def refuses_flushes(self, s, kind, cookie, off, n, data, flags):
    if kind == 3:
        self.chunk(s, cookie, 32769, struct.pack(">IH", 5, 0))
    else:
        Liar.request(self, s, kind, cookie, off, n, data, flags)


def test_copies_of_writes_that_no_flush_ends(liar, tmp_path):
    """FEATURES 3.031, 11.004: what is kept for a server that may come back does not grow with the disk where the server refuses to make anything durable"""
    server = liar(request=refuses_flushes, size=256 * MIB, blocks=(1, 4096, 32 * MIB))
    with open(tmp_path / "source", "wb") as f:
        for _ in range(256):
            f.write(b"\x07" * MIB)
    words = [BYRE, "convert", "-n", "-f", "raw", "--target-image-opts", tmp_path / "source", f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={server.path},file.reconnect-delay=10"]
    copy = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, used = os.wait4(copy.pid, 0)
    err, copy.returncode = copy.stderr.read(), os.waitstatus_to_exitcode(status)
    copy.stderr.close()
    assert copy.returncode == 1 and b"Input/output error" in err
    assert used.ru_maxrss < 128 << 10


def test_a_second_signal_ends(liar, tmp_path):
    """FEATURES 5.046, 11.004: what waits for a server that stands still hears a signal between two pieces only; a second one, not at once, ends it"""
    server = liar(read=nothing)
    copy = subprocess.Popen([BYRE, "convert", "-f", "raw", "-O", "raw", name_of(server), tmp_path / "x"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not server.seen or not (tmp_path / "x").exists():
        assert copy.poll() is None
        time.sleep(0.05)
    for _ in range(2):
        copy.send_signal(signal.SIGINT)
        time.sleep(0.1)
    time.sleep(1.1)
    assert copy.poll() is None

    def ends():                                      # a second behind the first one as the program heard it, which on a busy machine may be later
        if copy.poll() is None:
            copy.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        return copy.poll() is not None
    wait.until(ends, "it goes on")
    assert copy.returncode == 128 + signal.SIGTERM
