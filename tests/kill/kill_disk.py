# SPDX-License-Identifier: MIT
"""An image that outlives its servers, with a record of what its clients did; the geometries that are killed and stopped."""
import time

import kill_load
from lib import images, peers, run, serve

SIZE = 192 << 20
AREA = 16 << 20                                     # of each writer; a third area is fio's
# name: (options of create, options of serve, backing, snapshot, second load)
GEOMETRIES = {
    "64k": ({}, [], False, False, "writer"),
    "4k-threads": ({"cluster_size": 4096}, ["--threads", "2"], False, False, "writer"),
    "backing": ({"cluster_size": 65536}, ["--threads", "1"], True, False, "fio"),
    "direct": ({"cluster_size": 16384, "refcount_bits": 64}, ["--cache", "none", "--threads", "2"], False, False, "fio"),
    "snapshots": ({"cluster_size": 8192}, ["--aio", "threads"], False, True, "writer"),
}


class Disk:
    size, area, fmt = SIZE, AREA, "qcow2"

    def __init__(self, folder, name, geometries=None):
        create, self.options, backing, self.snapshot, self.second = (geometries or GEOMETRIES)[name]
        self.folder, self.image, self.sockets = folder, folder / f"disk.{self.fmt}", folder / "s"
        self.cluster_size = create.get("cluster_size", 65536)
        self.base = self.server = None
        if backing:
            self.base = images.pattern_bytes(4, self.size // 2) + bytes(self.size // 2)
            images.raw_file(folder / "base.raw", self.size // 2, [(0, self.base[:self.size // 2])])
            create = {**create, "backing": "base.raw", "backing_fmt": "raw"}
        images.create(self.image, self.size, fmt=self.fmt, tool="byre", **create)
        if self.snapshot:
            run.qemu_io(self.image, *[f"write -P {17 + i} {i << 20} 800k" for i in range(0, 60, 3)])
            run.qemu_img("snapshot", "-c", "before", self.image)
            self.base = self.content()
        self.record = kill_load.Record(self.base)

    def serve(self):
        """A server with the sockets of the one before, whatever that left there."""
        self.server = serve.Server(self.image, *self.options, workdir=self.folder, folder=str(self.sockets))
        begin = time.monotonic()
        self.server.wait_ready()
        self.server.ready_after = time.monotonic() - begin
        return self.server

    def load(self, seed):
        """Starts a writer and the second load of the geometry; returns (writers, fio or None)."""
        uri = self.server.uri
        writers = [kill_load.Writer(uri, self.record, seed, 1 << 20, self.area, self.cluster_size)]
        if self.second == "fio":
            return writers, kill_load.fio(uri, 64 << 20, 100 << 20)
        writers.append(kill_load.Writer(uri, self.record, seed + 1, 40 << 20, self.area, self.cluster_size, depth=3, kinds={"flush": 0}))
        return writers, None

    def wait_for_progress(self, other=None, requests=150, flushes=3):
        """So much is acknowledged that a kill has something to destroy; other: the second load, which must still run."""
        record, end = self.record, time.monotonic() + 30
        requests, flushes = requests + record.acked, flushes + record.acked_flushes
        while record.acked < requests or record.acked_flushes < flushes:
            assert self.server.process.poll() is None, self.server.output
            assert other is None or other.poll() is None, "the second load has ended by itself"
            assert time.monotonic() < end, f"{record.acked} requests, {record.acked_flushes} flushes; {requests}, {flushes} expected"
            time.sleep(0.005)

    def wait_for_flush(self):
        """Returns within a moment of the acknowledgement of a flush."""
        before, end = self.record.acked_flushes, time.monotonic() + 10
        while self.record.acked_flushes == before and time.monotonic() < end:
            time.sleep(0)

    def judged(self):
        """The content, which must be what the record allows; from here on the record begins with it."""
        content = self.content()
        self.record.verify(lambda off, length: content[off:off + length])
        self.record.take_stock(lambda off, length: content[off:off + length])
        return content

    def content(self, *args):
        """The guest's bytes as the peer reads them."""
        out = self.folder / "content.raw"
        run.qemu_img("convert", "-f", self.fmt, *args, "-O", "raw", self.image, out)
        data = out.read_bytes()
        out.unlink()
        return data

    def wait_unlocked(self):
        images.wait_unlocked(self.image)

    def leaked(self):
        """Bytes that are counted and not referenced; nothing worse may be found."""
        found = run.qemu_img("check", "--output=json", "-f", self.fmt, self.image, code=(0, 3)).json
        assert found.get("corruptions", 0) == 0 and found["check-errors"] == 0, found
        return found.get("leaks", 0) * self.cluster_size

    def reader(self):
        """read(off, length) over NBD."""
        handle = peers.need_module("nbd").NBD()
        handle.connect_uri(self.server.uri)
        return lambda off, length: bytes(handle.pread(min(length, self.size - off), off))
