#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""qcow2ref.py: an independent reader of qcow2, written from the specification alone. It is the oracle of the tests.

It shares no code with byre and trusts nothing it reads. Simple beats fast, but tables are handled as arrays.

    from qcow2ref import open_image
    with open_image("disk.qcow2") as image:
        image.read(0, 65536)                  # guest bytes, through the backing chain
        image.read(0, 512, snapshot="1")      # as an internal snapshot sees them
        list(image.extents())                 # what this layer says: (off, length, kind, host)
        list(image.map())                     # what the chain says: (off, length, depth, kind, host)
        image.snapshots, image.bitmaps        # directories
        image.bitmap_ranges("name")           # dirty ranges
        image.write_raw("disk.raw")
        report = image.check()                # qcow2check.Report

Command line: qcow2ref.py info|check|map|raw|read IMAGE [...] (JSON on standard output).

Everything wrong with the file as such is raised as `Bad`; what check() finds is a list of findings instead.
"""
import argparse
import array
import collections
import ctypes
import ctypes.util
import dataclasses
import json
import os
import struct
import sys
import zlib

MAGIC = b"QFI\xfb"
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << n for n in range(5))      # incompatible features
LAZY_REFCOUNTS = 1                                                                    # compatible
BITMAPS_VALID, RAW_DATA_FILE = 1, 2                                                   # autoclear
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2
X_END, X_BACKING_FORMAT, X_FEATURES, X_BITMAPS, X_CRYPTO, X_DATA_FILE = (
    0, 0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77, 0x44415441)
OFFSET_MASK = 0x00FFFFFFFFFFFE00           # bits 9..55 of a table entry
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
SUBCLUSTERS = 32
MAX_CHAIN = 10000


def ceil_div(a, b):
    return -(-a // b)


class Bad(Exception):
    """The file is not an acceptable qcow2 image."""


Extent = collections.namedtuple("Extent", "off length kind host")      # kind: data, zero, hole, compressed
Piece = collections.namedtuple("Piece", "off length depth kind host")


@dataclasses.dataclass
class Header:
    version: int
    backing_off: int
    backing_len: int
    cluster_bits: int
    size: int
    crypt: int
    l1_size: int
    l1_off: int
    reftable_off: int
    reftable_clusters: int
    nb_snapshots: int
    snapshots_off: int
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = 72
    compression: int = 0
    extensions: list = dataclasses.field(default_factory=list)         # (type, bytes, offset of the data)
    backing_name: str = None

    # byte offset and struct format of every field, for those who patch images
    FIELDS = {
        "magic": (0, ">4s"), "version": (4, ">I"), "backing_off": (8, ">Q"), "backing_len": (16, ">I"),
        "cluster_bits": (20, ">I"), "size": (24, ">Q"), "crypt": (32, ">I"), "l1_size": (36, ">I"),
        "l1_off": (40, ">Q"), "reftable_off": (48, ">Q"), "reftable_clusters": (56, ">I"), "nb_snapshots": (60, ">I"),
        "snapshots_off": (64, ">Q"), "incompatible": (72, ">Q"), "compatible": (80, ">Q"), "autoclear": (88, ">Q"),
        "refcount_order": (96, ">I"), "length": (100, ">I"), "compression": (104, ">B"),
    }

    @property
    def cluster_size(self):
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self):
        return 1 << self.refcount_order

    def extension(self, kind):
        return next((data for k, data, _ in self.extensions if k == kind), None)

    @classmethod
    def parse(cls, raw, strict=True):
        """Header from the first bytes of a file (at least the whole first cluster where there is one)."""
        if len(raw) < 72 or raw[:4] != MAGIC:
            raise Bad("no qcow2 magic")
        head = cls(*struct.unpack(">IQIIQIIQQIIQ", raw[4:72]))
        if head.version not in (2, 3):
            raise Bad(f"version {head.version}")
        if not 9 <= head.cluster_bits <= 21:
            raise Bad(f"cluster_bits {head.cluster_bits}")
        if head.version == 3:
            head._parse_v3(raw)
        if strict:
            head._check_ranges()
        head._parse_extensions(raw[:head.cluster_size])
        head._parse_backing_name(raw)
        return head

    def _parse_v3(self, raw):
        if len(raw) < 104:
            raise Bad("version 3 header is cut short")
        self.incompatible, self.compatible, self.autoclear, self.refcount_order, self.length = struct.unpack(">QQQII", raw[72:104])
        if self.length < 104 or self.length % 8 or self.length > self.cluster_size:
            raise Bad(f"header length {self.length}")
        if self.length > 104:
            self.compression = raw[104]

    def _check_ranges(self):
        cs = self.cluster_size
        unknown = self.incompatible & ~KNOWN_INCOMPATIBLE
        if unknown:
            raise Bad(f"unknown incompatible features {unknown:#x}{self._feature_names(unknown)}")
        if self.refcount_order > 6:
            raise Bad(f"refcount order {self.refcount_order}")
        if bool(self.incompatible & COMPRESSION) != bool(self.compression):
            raise Bad("compression type and its feature bit disagree")
        if self.compression > 1:
            raise Bad(f"compression type {self.compression}")
        if self.crypt > 2:
            raise Bad(f"crypt method {self.crypt}")
        if self.incompatible & EXTENDED_L2 and self.cluster_bits < 14:
            raise Bad("extended L2 entries need clusters of 16 KiB or more")
        for name in ("l1_off", "reftable_off", "snapshots_off"):
            if getattr(self, name) % cs and not (name == "snapshots_off" and not self.nb_snapshots):
                raise Bad(f"{name} {getattr(self, name):#x} is not cluster aligned")
        if self.backing_off and self.backing_len > 1023:
            raise Bad(f"backing name of {self.backing_len} bytes")

    def _feature_names(self, bits):
        table = self.extension(X_FEATURES) or b""
        names = [table[i + 2:i + 48].rstrip(b"\0").decode("utf-8", "replace") for i in range(0, len(table) - 47, 48)
                 if table[i] == 0 and bits >> (table[i + 1] & 63) & 1]
        return f" ({', '.join(names)})" if names else ""

    def _parse_extensions(self, raw):
        end = self.backing_off if self.backing_off and self.backing_off <= len(raw) else len(raw)
        at, self.extensions = self.length, []
        while at + 8 <= end:
            kind, length = struct.unpack(">II", raw[at:at + 8])
            if kind == X_END:
                return
            if at + 8 + length > end:
                raise Bad(f"header extension {kind:#x} of {length} bytes leaves the header area")
            self.extensions.append((kind, bytes(raw[at + 8:at + 8 + length]), at + 8))
            at += 8 + (length + 7) // 8 * 8

    def _parse_backing_name(self, raw):
        if self.backing_off:
            if self.backing_off + self.backing_len > min(len(raw), self.cluster_size):
                raise Bad("the backing name leaves the first cluster")
            self.backing_name = os.fsdecode(bytes(raw[self.backing_off:self.backing_off + self.backing_len]))


@dataclasses.dataclass
class Snapshot:
    id: str
    name: str
    l1_off: int
    l1_size: int
    seconds: int
    nanoseconds: int
    vm_clock: int
    vm_state_size: int
    disk_size: int
    icount: int
    extra_size: int


@dataclasses.dataclass
class Bitmap:
    name: str
    table_off: int
    table_size: int
    flags: int
    type: int
    granularity_bits: int
    extra: bytes

    IN_USE, AUTO, EXTRA_COMPATIBLE = 1, 2, 4

    @property
    def in_use(self):
        return bool(self.flags & self.IN_USE)

    @property
    def auto(self):
        return bool(self.flags & self.AUTO)


class RawLayer:
    """A raw file as a layer: bytes, and zeros behind them."""

    def __init__(self, path):
        self.path, self.fd = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self.backing = None

    def extents(self, start=0, end=None, l1=None):
        end = self.size if end is None else min(end, self.size)
        if start < end:
            yield Extent(start, end - start, "data", start)

    def fetch(self, extent):
        return pread_zeros(self.fd, extent.length, extent.host)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def pread_zeros(fd, length, off):
    """Reads length bytes; what lies past the end of the file reads as zeros."""
    parts, got = [], 0
    while got < length:
        part = os.pread(fd, min(length - got, 1 << 24), off + got)
        if not part:
            break
        parts.append(part)
        got += len(part)
    return b"".join(parts) + bytes(length - got)


def be64_array(data):
    table = array.array("Q")
    table.frombytes(data[:len(data) // 8 * 8])
    if sys.byteorder == "little":
        table.byteswap()
    return table


def inflate(data, length):
    """Raw deflate data to exactly `length` bytes; what follows the stream is ignored."""
    try:
        out = zlib.decompressobj(-15).decompress(data, length)
    except zlib.error as e:
        raise Bad(f"deflate: {e}") from None
    if len(out) != length:
        raise Bad(f"deflate: {len(out)} bytes instead of {length}")
    return out


class _ZstdBuffer(ctypes.Structure):
    _fields_ = [("ptr", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


_zstd = None


def unzstd(data, length):
    """Zstandard frames to exactly `length` bytes, through libzstd's streaming calls."""
    global _zstd
    if _zstd is None:
        lib = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
        lib.ZSTD_createDStream.restype = ctypes.c_void_p
        lib.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
        lib.ZSTD_decompressStream.restype = ctypes.c_size_t
        lib.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(_ZstdBuffer), ctypes.POINTER(_ZstdBuffer)]
        lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
        _zstd = lib
    source, target = ctypes.create_string_buffer(bytes(data), len(data)), ctypes.create_string_buffer(length)
    src = _ZstdBuffer(ctypes.addressof(source), len(data), 0)
    dst = _ZstdBuffer(ctypes.addressof(target), length, 0)
    stream = _zstd.ZSTD_createDStream()
    try:
        while dst.pos < length:
            before = (src.pos, dst.pos)
            left = _zstd.ZSTD_decompressStream(stream, ctypes.byref(dst), ctypes.byref(src))
            if _zstd.ZSTD_isError(left) or (src.pos, dst.pos) == before:
                raise Bad(f"zstd: stops after {dst.pos} of {length} bytes")
    finally:
        _zstd.ZSTD_freeDStream(stream)
    return target.raw


def refcounts_of_block(data, order):
    """A refcount block as an array('Q') of its entries."""
    bits = 1 << order
    if bits == 64:
        return be64_array(data)
    if bits >= 16:
        part = array.array("H" if bits == 16 else "I")
        part.frombytes(data)
        if sys.byteorder == "little":
            part.byteswap()
        return array.array("Q", part)
    if bits == 8:
        return array.array("Q", list(data))          # given bytes, array would take them as raw words
    per, mask = 8 // bits, (1 << bits) - 1
    rows = [[byte >> (i * bits) & mask for i in range(per)] for byte in range(256)]
    out = array.array("Q")
    for byte in data:
        out.extend(rows[byte])
    return out


class Image:
    """One qcow2 file. Read-only. Tables are read when needed and kept."""

    def __init__(self, path, strict=True):
        self.path, self.backing, self.backing_format, self.data_fd = path, None, None, -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._load(strict)
        except BaseException:
            self.close()
            raise

    def _load(self, strict):
        self.file_size = os.lseek(self.fd, 0, os.SEEK_END)
        self.header = head = Header.parse(os.pread(self.fd, 2 << 20, 0), strict)
        self.cluster_size, self.size = head.cluster_size, head.size
        self.extended_l2 = bool(head.incompatible & EXTENDED_L2)
        self.l2_entries = self.cluster_size // (16 if self.extended_l2 else 8)
        self.l2_span = self.l2_entries * self.cluster_size             # guest bytes that one L2 table describes
        self.offset_bits = 62 - (head.cluster_bits - 8)                # of a compressed descriptor
        name = head.extension(X_BACKING_FORMAT)
        self.backing_format = name.decode("utf-8", "replace") if name is not None else None
        self._l2, self._blocks = {}, {}
        if strict:
            if head.l1_size * 8 > 32 << 20:
                raise Bad(f"L1 table of {head.l1_size} entries")
            if head.l1_size < ceil_div(self.size, self.l2_span):
                raise Bad(f"L1 table of {head.l1_size} entries is too small for {self.size} bytes")
            if head.l1_size and head.l1_off + head.l1_size * 8 > self.file_size:
                raise Bad("the L1 table lies outside the file")
        self.l1 = self.table(head.l1_off, head.l1_size)
        if head.incompatible & DATA_FILE:
            self._open_data_file()

    def _open_data_file(self):
        name = self.header.extension(X_DATA_FILE)
        if name is None:
            raise Bad("the external data file has no name")
        path = os.path.join(os.path.dirname(self.path), os.fsdecode(name))
        self.data_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self):
        for fd in (self.fd, self.data_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.data_fd = -1
        # the chain is closed by a loop: it may be long
        below, self.backing = self.backing, None
        while below is not None:
            below.backing, lower = None, below.backing
            below.close()
            below = lower

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    # ---- tables -----------------------------------------------------------------------------------------------

    def table(self, off, entries):
        """entries big-endian numbers at off; raises Bad where the file is too short."""
        data = os.pread(self.fd, entries * 8, off) if entries else b""
        while 0 < len(data) < entries * 8:
            more = os.pread(self.fd, entries * 8 - len(data), off + len(data))
            if not more:
                break
            data += more
        if len(data) != entries * 8:
            raise Bad(f"a table of {entries} entries at {off:#x} leaves the file")
        return be64_array(data)

    def l2_table(self, off):
        """The L2 table at a host offset, or None where every entry is zero. Extended: two numbers per entry."""
        if off not in self._l2:
            if off % self.cluster_size:
                raise Bad(f"L2 table at {off:#x} is not cluster aligned")
            table = self.table(off, self.cluster_size // 8)
            if len(self._l2) > 4096:
                self._l2.clear()
            self._l2[off] = table if any(table) else None
        return self._l2[off]

    def refcount_block_entries(self):
        return self.cluster_size * 8 >> self.header.refcount_order

    def refcount_table(self):
        return self.table(self.header.reftable_off, self.header.reftable_clusters * self.cluster_size // 8)

    def refcount_block(self, off):
        if off not in self._blocks:
            if len(self._blocks) > 64:
                self._blocks.clear()
            data = os.pread(self.fd, self.cluster_size, off)
            if len(data) != self.cluster_size:
                raise Bad(f"refcount block at {off:#x} leaves the file")
            self._blocks[off] = refcounts_of_block(data, self.header.refcount_order)
        return self._blocks[off]

    def refcount(self, host_cluster):
        """The stored refcount of a host cluster (by its number)."""
        per = self.refcount_block_entries()
        table = self.refcount_table()
        index = host_cluster // per
        if index >= len(table) or not table[index] & ~0x1FF:
            return 0
        return self.refcount_block(table[index] & ~0x1FF)[host_cluster % per]

    # ---- the mapping of this layer ------------------------------------------------------------------------------

    def compressed_range(self, entry):
        """(host offset, bytes) that a compressed descriptor covers, to the end of its last sector."""
        off = entry & ((1 << self.offset_bits) - 1)
        sectors = (entry >> self.offset_bits & ((1 << (self.header.cluster_bits - 8)) - 1)) + 1
        return off, sectors * 512 - off % 512

    def _segments(self, start, end, l1):
        """Unmerged extents of [start, end)."""
        cs, at = self.cluster_size, start
        while at < end:
            index = at // self.l2_span
            stop = min(end, (index + 1) * self.l2_span)
            l2_off = l1[index] & OFFSET_MASK if index < len(l1) else 0
            table = self.l2_table(l2_off) if l2_off else None
            if table is None:
                yield Extent(at, stop - at, "hole", None)
                at = stop
                continue
            first = index * self.l2_span
            while at < stop:
                i = (at - first) // cs
                base = first + i * cs
                upto = min(stop, base + cs)
                if self.extended_l2:
                    yield from self._subclusters(table[2 * i], table[2 * i + 1], base, at, upto)
                else:
                    yield self._cluster(table[i], base, at, upto)
                at = upto

    def _cluster(self, entry, base, at, upto):
        if entry & COMPRESSED:
            return Extent(at, upto - at, "compressed", (entry, base))
        host = entry & OFFSET_MASK
        present = host or (self.data_fd >= 0 and entry & COPIED)
        if entry & ZERO and self.header.version >= 3:
            return Extent(at, upto - at, "zero", host + at - base if present else None)
        if not present:
            return Extent(at, upto - at, "hole", None)
        return Extent(at, upto - at, "data", host + at - base)

    def _subclusters(self, entry, bitmap, base, at, upto):
        if entry & COMPRESSED:
            yield Extent(at, upto - at, "compressed", (entry, base))
            return
        host, unit = entry & OFFSET_MASK, self.cluster_size // SUBCLUSTERS
        present = host or (self.data_fd >= 0 and entry & COPIED)
        while at < upto:
            i = (at - base) // unit
            stop = min(upto, base + (i + 1) * unit)
            where = host + at - base if present else None
            if bitmap >> (32 + i) & 1:
                yield Extent(at, stop - at, "zero", where)
            elif bitmap >> i & 1:
                if where is None:
                    raise Bad(f"subcluster at guest {at:#x} is allocated nowhere")
                yield Extent(at, stop - at, "data", where)
            else:
                yield Extent(at, stop - at, "hole", None)
            at = stop

    def extents(self, start=0, end=None, l1=None):
        """What this layer alone says of guest bytes [start, end), neighbours of a kind merged."""
        end = self.size if end is None else end
        last = None
        for seg in self._segments(start, end, self.l1 if l1 is None else l1):
            if last is not None and last.kind == seg.kind != "compressed" and (
                    last.host is None and seg.host is None or
                    last.host is not None and seg.host == last.host + last.length):
                last = Extent(last.off, last.length + seg.length, last.kind, last.host)
                continue
            if last is not None:
                yield last
            last = seg
        if last is not None:
            yield last

    def fetch(self, extent):
        """The bytes of a data, zero or compressed extent."""
        if extent.kind == "data":
            return pread_zeros(self.data_fd if self.data_fd >= 0 else self.fd, extent.length, extent.host)
        if extent.kind == "zero":
            return bytes(extent.length)
        entry, base = extent.host
        off, length = self.compressed_range(entry)
        packed = pread_zeros(self.fd, length, off)
        plain = (unzstd if self.header.compression else inflate)(packed, self.cluster_size)
        return plain[extent.off - base:extent.off - base + extent.length]

    # ---- through the chain --------------------------------------------------------------------------------------

    def layers(self):
        layer = self
        while layer is not None:
            yield layer
            layer = layer.backing

    def snapshot(self, name):
        for snap in self.snapshots:
            if name in (snap.id, snap.name):
                return snap
        raise KeyError(name)

    def pieces(self, start, end, snapshot=None):
        """(layer, depth, extent) covering [start, end) in order; the layer is None where nothing is."""
        chain = list(self.layers())
        top_l1, top_size = self.l1, self.size
        if snapshot is not None:
            snap = self.snapshot(snapshot)
            top_l1, top_size = self.table(snap.l1_off, snap.l1_size), snap.disk_size
        work = [(start, end, 0)]
        while work:
            at, stop, depth = work.pop()
            if at >= stop:
                continue
            limit = (top_size if depth == 0 else chain[depth].size) if depth < len(chain) else 0
            if depth >= len(chain) or at >= limit:
                yield None, depth, Extent(at, stop - at, "hole", None)
                continue
            if stop > limit:
                work.append((limit, stop, len(chain)))
            todo = []
            for extent in chain[depth].extents(at, min(stop, limit), top_l1 if depth == 0 else None):
                if extent.kind == "hole":
                    todo.append((extent.off, extent.off + extent.length, depth + 1))
                elif not todo:
                    yield chain[depth], depth, extent
                else:                                     # holes before it come first
                    todo.append((extent.off, extent.off + extent.length, depth))
                if todo and len(todo) >= 256:
                    break
            if todo:
                tail = todo[-1][1]
                work.append((tail, min(stop, limit), depth))
                work.extend(reversed(todo))

    def read(self, off, length, snapshot=None):
        """Guest bytes as the guest (or a snapshot) sees them; past the end they are an error."""
        size = self.snapshot(snapshot).disk_size if snapshot is not None else self.size
        if off < 0 or length < 0 or off + length > size:
            raise ValueError(f"[{off}, {off + length}) is not within {size} bytes")
        return b"".join(bytes(e.length) if layer is None else layer.fetch(e)
                        for layer, _, e in self.pieces(off, off + length, snapshot))

    def map(self, snapshot=None):
        """Pieces (off, length, depth, kind, host) of the guest disk; depth is None where no layer has anything."""
        size = self.snapshot(snapshot).disk_size if snapshot is not None else self.size
        for layer, depth, e in self.pieces(0, size, snapshot):
            host = e.host if e.kind != "compressed" else self.compressed_range(e.host[0])[0]
            yield Piece(e.off, e.length, depth if layer is not None else None, e.kind, host)

    def write_raw(self, path, snapshot=None):
        """Decodes the guest disk into a sparse raw file."""
        size = self.snapshot(snapshot).disk_size if snapshot is not None else self.size
        with open(path, "wb") as out:
            out.truncate(size)
            for layer, _, e in self.pieces(0, size, snapshot):
                if layer is None or e.kind == "zero":
                    continue
                for at in range(e.off, e.off + e.length, 8 << 20):
                    part = min(8 << 20, e.off + e.length - at)
                    whole = e.kind == "compressed" or part == e.length
                    data = layer.fetch(e if whole else Extent(at, part, e.kind, e.host + at - e.off))
                    if data.count(0) != len(data):
                        os.pwrite(out.fileno(), data, at)

    # ---- directories --------------------------------------------------------------------------------------------

    @property
    def snapshots(self):
        at, found = self.header.snapshots_off, []
        for _ in range(self.header.nb_snapshots):
            fixed = os.pread(self.fd, 40, at)
            if len(fixed) != 40:
                raise Bad("the snapshot table leaves the file")
            l1_off, l1_size, id_len, name_len, sec, nsec, clock, vm32, extra_len = struct.unpack(">QIHHIIQII", fixed)
            if extra_len > 1 << 16:
                raise Bad(f"snapshot with {extra_len} bytes of extra data")
            rest = os.pread(self.fd, extra_len + id_len + name_len, at + 40)
            if len(rest) != extra_len + id_len + name_len:
                raise Bad("the snapshot table leaves the file")
            vm, disk, icount = vm32, self.size, -1
            if extra_len >= 8:
                vm = struct.unpack(">Q", rest[:8])[0]
            if extra_len >= 16:
                disk = struct.unpack(">Q", rest[8:16])[0]
            if extra_len >= 24:
                icount = struct.unpack(">q", rest[16:24])[0]
            text = rest[extra_len:].decode("utf-8", "replace") if id_len + name_len else ""
            ident = rest[extra_len:extra_len + id_len].decode("utf-8", "replace")
            name = rest[extra_len + id_len:].decode("utf-8", "replace") if text else ""
            found.append(Snapshot(ident, name, l1_off, l1_size, sec, nsec, clock, vm, disk, icount, extra_len))
            at += (40 + extra_len + id_len + name_len + 7) // 8 * 8
        self.snapshot_table_size = at - self.header.snapshots_off
        return found

    def bitmap_extension(self):
        """(count, directory size, directory offset) or None."""
        data = self.header.extension(X_BITMAPS)
        if data is None:
            return None
        if len(data) != 24:
            raise Bad(f"bitmaps extension of {len(data)} bytes")
        count, reserved, size, off = struct.unpack(">IIQQ", data)
        if reserved or not count or off % self.cluster_size or size > self.file_size:
            raise Bad("bitmaps extension is malformed")
        return count, size, off

    @property
    def bitmaps(self):
        ext = self.bitmap_extension()
        if ext is None:
            return []
        count, size, off = ext
        raw, at, found = os.pread(self.fd, size, off), 0, []
        if len(raw) != size:
            raise Bad("the bitmap directory leaves the file")
        while at < size:
            if at + 24 > size:
                raise Bad("the bitmap directory is cut short")
            table, entries, flags, kind, bits, name_len, extra_len = struct.unpack(">QIIBBHI", raw[at:at + 24])
            end = at + 24 + extra_len + name_len
            if end > size:
                raise Bad("a bitmap entry leaves the directory")
            extra, name = raw[at + 24:at + 24 + extra_len], raw[at + 24 + extra_len:end].decode("utf-8", "replace")
            found.append(Bitmap(name, table, entries, flags, kind, bits, extra))
            at = (end + 7) // 8 * 8
        if len(found) != count:
            raise Bad(f"{len(found)} bitmaps in the directory, {count} in the header")
        return found

    def bitmap(self, name):
        return next(b for b in self.bitmaps if b.name == name)

    def bitmap_data(self, bitmap):
        """The bits of a bitmap as bytes, without the tail of the last cluster."""
        need = ceil_div(ceil_div(self.size, 1 << bitmap.granularity_bits), 8)
        parts = []
        for entry in self.table(bitmap.table_off, bitmap.table_size):
            host = entry & OFFSET_MASK
            if host:
                parts.append(pread_zeros(self.fd, self.cluster_size, host))
            else:
                parts.append((b"\xff" if entry & 1 else b"\0") * self.cluster_size)
        data = b"".join(parts)
        if len(data) < need:
            raise Bad(f"bitmap '{bitmap.name}' has a table too small")
        return data[:need]

    def bitmap_ranges(self, name):
        """Dirty guest ranges [(off, length)] of a bitmap, merged, cut at the end of the disk."""
        bitmap = self.bitmap(name)
        unit, found, start = 1 << bitmap.granularity_bits, [], None
        data = self.bitmap_data(bitmap)
        bits = ceil_div(self.size, unit)
        for i in range(bits + 1):
            on = i < bits and data[i >> 3] >> (i & 7) & 1
            if on and start is None:
                start = i
            elif not on and start is not None:
                found.append((start * unit, min(i * unit, self.size) - start * unit))
                start = None
        return found

    def check(self, deep=False):
        """Full consistency check (qcow2check.Report); deep decompresses every compressed cluster too."""
        import qcow2check
        return qcow2check.check(self, deep)


def probe(path):
    with open(path, "rb") as f:
        return "qcow2" if f.read(4) == MAGIC else "raw"


def open_image(path, fmt=None, backing=True, strict=True):
    """Opens an image and its backing chain. fmt: qcow2, raw or None (by magic)."""
    path = os.fspath(path)
    top = last = None
    seen = set()
    try:
        while True:
            real = os.path.realpath(path)
            if real in seen:
                raise Bad(f"'{path}' is its own backing file")
            if len(seen) >= MAX_CHAIN:
                raise Bad("the backing chain is too long")
            seen.add(real)
            kind = fmt or probe(path)
            if kind not in ("raw", "qcow2"):
                raise Bad(f"format '{kind}' is not known here")
            layer = RawLayer(path) if kind == "raw" else Image(path, strict)
            if top is None:
                top = layer
            else:
                last.backing = layer
            last = layer
            if kind == "raw" or not backing or layer.header.backing_name is None:
                return top
            path = os.path.join(os.path.dirname(path), layer.header.backing_name)
            fmt = layer.backing_format
    except BaseException:
        if top is not None:
            top.close()
        raise


# ---- command line ---------------------------------------------------------------------------------------------------

def info(image):
    head = image.header
    return {
        "version": head.version, "size": head.size, "cluster-size": head.cluster_size, "refcount-bits": head.refcount_bits,
        "crypt": head.crypt, "incompatible": head.incompatible, "compatible": head.compatible, "autoclear": head.autoclear,
        "compression": ["zlib", "zstd"][head.compression], "extended-l2": image.extended_l2, "backing": head.backing_name,
        "backing-format": image.backing_format, "extensions": [hex(k) for k, _, _ in head.extensions],
        "snapshots": [dataclasses.asdict(s) for s in image.snapshots],
        "bitmaps": [{**dataclasses.asdict(b), "extra": b.extra.hex()} for b in image.bitmaps],
    }


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=["info", "check", "map", "raw", "read"])
    parser.add_argument("image")
    parser.add_argument("args", nargs="*", help="raw: OUTPUT; read: OFFSET LENGTH")
    parser.add_argument("--snapshot")
    parser.add_argument("--deep", action="store_true", help="check: decompress too")
    args = parser.parse_args(argv)
    with open_image(args.image, fmt="qcow2", backing=args.verb in ("map", "raw", "read"), strict=args.verb != "check") as image:
        if args.verb == "info":
            print(json.dumps(info(image), indent=2))
        elif args.verb == "check":
            report = image.check(args.deep)
            print(json.dumps(report.as_dict(), indent=2))
            return 2 if report.corruptions else 3 if report.leaks else 0
        elif args.verb == "map":
            for piece in image.map(args.snapshot):
                print(json.dumps(piece._asdict()))
        elif args.verb == "raw":
            image.write_raw(args.args[0], args.snapshot)
        else:
            sys.stdout.buffer.write(image.read(int(args.args[0], 0), int(args.args[1], 0), args.snapshot))
    return 0


if __name__ == "__main__":
    import qcow2ref                            # one module, also for qcow2check: its classes must be the same
    try:
        sys.exit(qcow2ref.main(sys.argv[1:]))
    except (qcow2ref.Bad, OSError) as e:
        print(f"qcow2ref: {e}", file=sys.stderr)
        sys.exit(1)
