#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""qedref.py: an independent reader of QED, written from the specification alone. It is the oracle of the tests.

It shares no code with byre and trusts nothing it reads.

    from qedref import open_image
    with open_image("disk.qed") as image:
        image.read(0, 65536)                  # guest bytes, through the backing chain (raw, qcow2, qed)
        list(image.extents())                 # what this layer says: (off, length, kind, host)
        image.write_raw("disk.raw")
        report = image.check()                # Report

Command line: qedref.py info|check|map|raw IMAGE [OUTPUT] (JSON on standard output).
Everything wrong with the file as such is raised as `Bad`; what check() finds is counted and listed instead.
"""
import collections
import dataclasses
import json
import os
import struct
import sys

MAGIC = b"QED\0"
BACKING, NEED_CHECK, BACKING_RAW = 1, 2, 4
KNOWN = BACKING | NEED_CHECK | BACKING_RAW
HEADER = struct.Struct("<4sIIIQQQQQII")
FIELDS = {"magic": (0, "<4s"), "cluster_size": (4, "<I"), "table_size": (8, "<I"), "header_size": (12, "<I"), "features": (16, "<Q"),
          "compat": (24, "<Q"), "autoclear": (32, "<Q"), "l1_off": (40, "<Q"), "size": (48, "<Q"), "backing_off": (56, "<I"), "backing_len": (60, "<I")}
Extent = collections.namedtuple("Extent", "off length kind host")      # kind: data, zero, hole, bad


class Bad(Exception):
    """The file is not an acceptable QED image."""


@dataclasses.dataclass
class Report:
    corruptions: int = 0
    leaks: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    findings: list = dataclasses.field(default_factory=list)

    @property
    def clean(self):
        return not self.corruptions and not self.leaks

    def found(self, text):
        self.corruptions += 1
        self.findings.append(text)


class Image:
    def __init__(self, path):
        self.path, self.backing, self.tables = os.fspath(path), None, {}
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._parse()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        layer = self
        while layer is not None:
            layer.close()
            layer = getattr(layer, "backing", None)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _parse(self):
        raw = os.pread(self.fd, HEADER.size, 0)
        if len(raw) < HEADER.size or raw[:4] != MAGIC:
            raise Bad("no QED header")
        (_, self.cluster_size, self.table_size, self.header_size, self.features, self.compat, self.autoclear, self.l1_off, self.size,
         name_off, name_len) = HEADER.unpack(raw)
        if self.features & ~KNOWN:
            raise Bad(f"unknown features {self.features:#x}")
        if self.cluster_size not in (1 << n for n in range(12, 27)) or self.table_size not in (1, 2, 4, 8, 16):
            raise Bad("geometry")
        self.entries = self.table_size * self.cluster_size // 8
        self.l2_span = self.entries * self.cluster_size
        self.first = max(1, self.header_size) * self.cluster_size
        self.end = os.fstat(self.fd).st_size // self.cluster_size * self.cluster_size
        if self.size % 512 or self.size > self.entries * self.l2_span:
            raise Bad("image_size")
        if not self.table_fits(self.l1_off):
            raise Bad("l1_table_offset")
        self.backing_name = self.backing_format = None
        if self.features & BACKING:
            if name_off + name_len > self.first:
                raise Bad("backing name")
            self.backing_name = os.fsdecode(os.pread(self.fd, name_len, name_off)) or None
            self.backing_format = "raw" if self.features & BACKING_RAW else None

    def cluster_fits(self, v):
        return v % self.cluster_size == 0 and self.first <= v <= self.end - self.cluster_size

    def table_fits(self, v):
        return v % self.cluster_size == 0 and self.first <= v <= self.end - self.table_size * self.cluster_size

    def table(self, off):
        """The entries of a table, {index: value}, without those that are 0."""
        if off not in self.tables:
            data, found, step = self.entries * 8, {}, 1 << 20
            for at in range(0, data, step):
                part = os.pread(self.fd, min(step, data - at), off + at)
                if part.count(0) != len(part):
                    found.update((at // 8 + i, v) for i, (v,) in enumerate(struct.iter_unpack("<Q", part)) if v)
            self.tables[off] = found
        return self.tables[off]

    def lookup(self, guest):
        """(kind, host offset of the cluster) of the cluster that holds a guest offset."""
        l2_off = self.table(self.l1_off).get(guest // self.l2_span, 0)
        if not l2_off:
            return "hole", None
        if not self.table_fits(l2_off):
            return "bad", None
        v = self.table(l2_off).get(guest % self.l2_span // self.cluster_size, 0)
        if v in (0, 1):
            return ("hole", "zero")[v], None
        return ("data", v) if self.cluster_fits(v) else ("bad", None)

    def extents(self, start=0, end=None):
        """Extents of this layer alone; neighbours that continue one another are one."""
        end = self.size if end is None else min(end, self.size)
        last = None
        while start < end:
            if not self.table(self.l1_off).get(start // self.l2_span):
                length, kind, host = min(end, (start // self.l2_span + 1) * self.l2_span) - start, "hole", None
            else:
                kind, host = self.lookup(start)
                inside = start % self.cluster_size
                length = min(end - start, self.cluster_size - inside)
                host = None if host is None else host + inside
            if last and last.kind == kind and (host is None or host == last.host + last.length):
                last = last._replace(length=last.length + length)
            else:
                if last:
                    yield last
                last = Extent(start, length, kind, host)
            start += length
        if last:
            yield last

    def read(self, off, length):
        out = bytearray(length)
        for e in self.extents(off, off + length):
            at = e.off - off
            if e.kind == "bad":
                raise Bad(f"the entry of guest offset {e.off:#x} is bad")
            if e.kind == "data":
                part = os.pread(self.fd, e.length, e.host)
                out[at:at + len(part)] = part
            elif e.kind == "hole" and self.backing is not None:
                n = min(e.length, max(0, self.backing.size - e.off))
                out[at:at + n] = read_layer(self.backing, e.off, n)
        return bytes(out)

    def write_raw(self, path):
        with open(path, "wb") as f:
            f.truncate(self.size)
            for at in range(0, self.size, 1 << 20):
                data = self.read(at, min(1 << 20, self.size - at))
                if data.count(0) != len(data):
                    f.seek(at)
                    f.write(data)

    def check(self):
        cs, report = self.cluster_size, Report(total_clusters=-(-self.size // self.cluster_size))
        owned = set(range(self.first // cs)) | {self.l1_off // cs + i for i in range(self.table_size)}

        def own(off, n):
            mine = set(range(off // cs, off // cs + n))
            twice = len(mine & owned)
            owned.update(mine)
            for _ in range(twice):
                report.found(f"a cluster at {off:#x} is in use twice")
            return twice

        for index, l2_off in sorted(self.table(self.l1_off).items()):
            if not self.table_fits(l2_off):
                report.found(f"L1[{index}] = {l2_off:#x}")
            elif not own(l2_off, self.table_size):
                self._check_l2(report, own, l2_off)
        report.leaks = self.end // cs - len(owned)
        return report

    def _check_l2(self, report, own, l2_off):
        last = 0
        for index, v in sorted(self.table(l2_off).items()):
            if v == 1:
                continue
            report.allocated_clusters += 1
            report.fragmented_clusters += bool(last and v != last + self.cluster_size)
            last = v
            if self.cluster_fits(v):
                own(v, 1)
            else:
                report.found(f"L2 at {l2_off:#x} [{index}] = {v:#x}")


class RawLayer:
    """A raw file as a layer."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size
        self.backing = None

    def read(self, off, length):
        part = os.pread(self.fd, length, off)
        return part + bytes(length - len(part))

    def close(self):
        os.close(self.fd)


def read_layer(layer, off, length):
    return layer.read(off, length) if length else b""


def probe(path):
    with open(path, "rb") as f:
        return {MAGIC: "qed", b"QFI\xfb": "qcow2"}.get(f.read(4), "raw")


def open_image(path, fmt=None, backing=True):
    """Opens an image and its backing chain. fmt: qed, qcow2, raw or None (by magic). Below a qcow2 image qcow2ref goes on."""
    path, top, last = os.fspath(path), None, None
    seen = set()
    while True:
        if os.path.realpath(path) in seen:
            raise Bad(f"'{path}' is its own backing file")
        seen.add(os.path.realpath(path))
        kind = fmt or probe(path)
        if kind == "qcow2":
            import qcow2ref
            layer = qcow2ref.open_image(path, fmt="qcow2")
        else:
            layer = Image(path) if kind == "qed" else RawLayer(path)
        if top is None:
            top = layer
        else:
            last.backing = layer
        last = layer
        if kind != "qed" or not backing or layer.backing_name is None:
            return top
        path, fmt = os.path.join(os.path.dirname(path), layer.backing_name), layer.backing_format


def main(argv):
    verb, path = argv[:2]
    with open_image(path, fmt="qed", backing=verb in ("raw",)) as image:
        if verb == "info":
            print(json.dumps({k: getattr(image, k) for k in ("size", "cluster_size", "table_size", "header_size", "features", "compat", "autoclear",
                                                             "l1_off", "backing_name", "backing_format")}, indent=2))
        elif verb == "check":
            report = image.check()
            print(json.dumps(dataclasses.asdict(report), indent=2))
            return 2 if report.corruptions else 3 if report.leaks else 0
        elif verb == "map":
            for extent in image.extents():
                print(json.dumps(extent._asdict()))
        else:
            image.write_raw(argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
