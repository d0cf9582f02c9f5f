# SPDX-License-Identifier: MIT
"""Load for a server that will be killed: writers over libnbd that keep a record, outside the server, of all they sent and all
that was acknowledged; and what a disk may therefore hold afterwards.

    record = Record(base=None)
    writers = [Writer(uri, record, seed, start, length), ...]     # each a thread with a connection and an area of its own
    ... kill the server ...
    for w in writers: w.end()
    record.verify(read)                                           # read(off, length) -> bytes
"""
import errno
import random
import struct
import subprocess
import threading

from lib import peers

SECTOR = 512
BASE, ZERO = -1, 0                # what a sector held at first; all zeros. Other tags: the number of a write
KINDS = {"write": 60, "rewrite": 15, "fua": 4, "zero": 5, "zero_no_hole": 3, "trim": 8, "flush": 4}
WRITES = {"write", "rewrite", "fua"}
GONE = {errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.EPIPE}


def payload(tag, sector):
    return struct.pack(">QQ", tag, sector) * (SECTOR // 16)


class Op:
    """One request. `covers` of a flush: the requests that were acknowledged when it was sent."""
    __slots__ = ("number", "kind", "first", "count", "covers")

    def __init__(self, number, kind, first=0, count=0, covers=()):
        self.number, self.kind, self.first, self.count, self.covers = number, kind, first, count, covers

    @property
    def tag(self):
        return self.number if self.kind in WRITES else ZERO


class Record:
    """What was sent and what was acknowledged, in order, over all connections.

    A flush on one connection covers what was acknowledged on any (the server says that it can do multi-conn).
    """

    def __init__(self, base=None):
        self.base = base                  # bytes of the disk before the load; None: zeros
        self.lock = threading.Lock()
        self.number = self.acked = self.acked_flushes = 0
        self.floor, self.later = {}, {}   # sector -> tags it may have since its last flush; [(number, tag)] sent after that
        self.settled = {}                 # sector -> number of the request that set its floor
        self.unflushed = []               # acknowledged, in order
        self.acked_sectors = set()

    def send(self, kind, first=0, count=0):
        with self.lock:
            self.number += 1
            op = Op(self.number, kind, first, count, tuple(self.unflushed) if kind == "flush" else ())
            for s in range(first, first + count):
                self.later.setdefault(s, []).append((op.number, op.tag))
            return op

    def ack(self, op):
        with self.lock:
            if op.kind == "flush":
                self.acked_flushes += 1
                covered = set(op.covers)
                for done in op.covers:
                    self._settle(done)
                self.unflushed = [o for o in self.unflushed if o not in covered]
                return
            self.acked += 1
            self.acked_sectors.update(range(op.first, op.first + op.count))
            if op.kind == "fua":
                self._settle(op)
            else:
                self.unflushed.append(op)

    def _settle(self, op):
        """op is durable: earlier content of its sectors is out, but a trim may have left it."""
        for s in range(op.first, op.first + op.count):
            if self.settled.get(s, 0) > op.number:
                continue
            if op.kind == "trim":
                earlier = {tag for number, tag in self.later[s] if number < op.number}
                self.floor[s] = self.floor.get(s, {BASE}) | earlier | {ZERO}
            else:
                self.floor[s] = {op.tag}
            self.later[s] = [(number, tag) for number, tag in self.later[s] if number > op.number]
            self.settled[s] = op.number

    def changed(self):
        """Sectors of which a change was acknowledged, since the record began or stock was taken."""
        with self.lock:
            return self.acked_sectors.copy()

    def settle_acknowledged(self):
        """The server has ended cleanly: what it had acknowledged is durable."""
        with self.lock:
            for op in self.unflushed:
                self._settle(op)
            self.unflushed = []

    def not_flushed(self):
        """Bytes of requests since the last flush, acknowledged or not."""
        with self.lock:
            return sum(len(tags) for tags in self.later.values()) * SECTOR

    def _original(self, sector):
        return self.base[sector * SECTOR:(sector + 1) * SECTOR] if self.base is not None else bytes(SECTOR)

    def _content(self, tag, sector):
        if tag == BASE:
            return self._original(sector)
        return bytes(SECTOR) if tag == ZERO else payload(tag, sector)

    def _sectors(self, read, chunk=1 << 20):
        """(sector, content, allowed tags) of all that was ever touched."""
        at, data = 0, b""
        for s in sorted(self.later):
            off = s * SECTOR
            if not at <= off < at + len(data):
                at = off // chunk * chunk
                data = read(at, chunk)
            yield s, data[off - at:off - at + SECTOR], self.floor.get(s, {BASE}) | {tag for _, tag in self.later[s]}

    def verify(self, read):
        """Every sector holds its last flushed value or a later one."""
        checked = 0
        for s, have, allowed in self._sectors(read):
            checked += 1
            if not any(have == self._content(tag, s) for tag in allowed):
                raise AssertionError(f"sector {s} (offset {s * SECTOR:#x}) holds {self.describe(have, s)}; allowed: "
                                     f"{sorted(allowed)}; its last flushed request: {self.settled.get(s)}")
        assert checked > 100, "next to nothing was written"

    def describe(self, have, sector):
        if have == bytes(len(have)):
            return "zeros"
        if have == self._original(sector):
            return "what it held at first"
        tag, where = struct.unpack(">QQ", have[:16])
        if have == payload(tag, where):
            return f"request {tag}'s data" + ("" if where == sector else f" of sector {where}")
        return f"{have[:16].hex()}..."

    def take_stock(self, read):
        """After a restart: from now on a sector keeps what it holds, unless a new request changes it."""
        for s, have, allowed in list(self._sectors(read)):
            self.floor[s] = {tag for tag in allowed if have == self._content(tag, s)}
            assert self.floor[s], f"sector {s} holds {self.describe(have, s)}"
            self.later[s] = []
        self.unflushed = []
        self.acked_sectors = set()


class Writer(threading.Thread):
    """Sends random requests, several at a time, to [start, start + length) until the connection breaks or stop() is called.

    No two requests in flight overlap: nobody could know their order.
    """

    def __init__(self, uri, record, seed, start, length, cluster_size=65536, depth=6, kinds=None):
        super().__init__(daemon=True)
        self.nbd = peers.need_module("nbd")
        self.record, self.rng, self.depth = record, random.Random(seed), depth
        self.first, self.sectors, self.most = start // SECTOR, length // SECTOR, (128 << 10) // SECTOR
        self.cluster = cluster_size // SECTOR
        self.kinds = {**KINDS, **(kinds or {})}
        self.flying, self.recent = [], []
        self.quiet, self.broken, self.faults = threading.Event(), None, []
        self.refused = False                     # the server answered that it is about to end
        self.handle = self.nbd.NBD()
        self.handle.connect_uri(uri)
        assert self.handle.can_multi_conn() and self.handle.can_trim() and self.handle.can_zero() and self.handle.can_fua()
        self.start()

    def _range(self):
        """Single sectors, 4 KiB blocks, whole clusters, unaligned pieces."""
        rng, form = self.rng, self.rng.randrange(5)
        count = [rng.choice([1, 1, 2, 3]), 8, self.cluster * rng.randrange(1, 4)][form] if form < 3 else rng.randrange(1, self.most + 1)
        first = rng.randrange(self.sectors)
        if form in (1, 2):
            first -= first % (8 if form == 1 else self.cluster)
        return self.first + first, max(1, min(count, self.most, self.sectors - first))

    def _pick(self):
        kind = self.rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        if kind == "flush":
            return kind, 0, 0
        for _ in range(20):
            first, count = self._range()
            if kind == "rewrite" and self.recent:
                first, count = self.rng.choice(self.recent)
            if not any(o.first < first + count and first < o.first + o.count for o in self.flying):
                self.recent = (self.recent + [(first, count)])[-32:]
                return kind, first, count
        return None

    def _send(self, op):
        h, off, length = self.handle, op.first * SECTOR, op.count * SECTOR
        self.flying.append(op)

        def done(error):
            self.flying.remove(op)
            if error.value == 0:
                self.record.ack(op)
            elif error.value in GONE:
                self.refused = True
            else:
                self.faults.append(f"{op.kind} of {op.count} sectors at {op.first}: error {error.value}")
            return 1

        if op.kind == "flush":
            h.aio_flush(completion=done)
        elif op.kind == "trim":
            h.aio_trim(length, off, completion=done)
        elif op.kind in ("zero", "zero_no_hole"):
            h.aio_zero(length, off, completion=done, flags=self.nbd.CMD_FLAG_NO_HOLE if op.kind == "zero_no_hole" else 0)
        else:
            data = bytearray(b"".join(payload(op.number, s) for s in range(op.first, op.first + op.count)))
            h.aio_pwrite(self.nbd.Buffer.from_bytearray(data), off, completion=done,
                         flags=self.nbd.CMD_FLAG_FUA if op.kind == "fua" else 0)

    def run(self):
        try:
            while not self.quiet.is_set():
                picked = self._pick() if len(self.flying) < self.depth else None
                if picked:
                    self._send(self.record.send(*picked))
                self.handle.poll(0 if picked else 20)
            self._drain()
            self._send(self.record.send("flush"))
            self._drain()
        except self.nbd.Error as e:
            self.broken = e                      # the server is gone: that is the point
        except BaseException as e:
            self.faults.append(repr(e))

    def _drain(self):
        while self.flying:
            self.handle.poll(1000)

    def stop(self):
        """A good end: everything is acknowledged, then flushed."""
        self.end()
        assert self.broken is None, self.broken
        self.handle.shutdown()

    def end(self):
        """The server may be gone; until then it refused nothing."""
        self.quiet.set()
        self.join(30)
        assert not self.is_alive(), "the writer waits for ever"
        assert not self.faults, self.faults[:3]


def fio(uri, start, length):
    """A load by fio's nbd engine on a connection of its own; its area is not verified."""
    return subprocess.Popen([peers.need("fio"), "--name=load", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--rwmixread=30",
                             "--bsrange=4k-64k", "--iodepth=16", f"--offset={start}", f"--size={length}", "--time_based",
                             "--runtime=120", "--fsync=64", "--output=/dev/null"],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
