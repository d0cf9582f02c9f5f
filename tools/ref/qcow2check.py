# SPDX-License-Identifier: MIT
"""qcow2check.py: the consistency check of qcow2ref, from the specification.

It visits every reference of the image once, counts them, and compares with the stored refcounts. A finding has a kind:

  corruptions   refcount-low       more references than the stored refcount
                copied-set         COPIED is set and the stored refcount is not 1: a write in place would hit a sharer
                copied-clear       COPIED is clear and the stored refcount is 1 (harmless by itself)
                overlap            one cluster has two uses that cannot be shared
                double-mapped      one host cluster stands for two guest clusters
                out-of-file        a reference past the end of the file
                unaligned          a reference that is not cluster aligned
                reserved           reserved bits are set
                subcluster         contradictory bits in an extended L2 entry
                data-file          an entry of an external data file that is not at its place
                compressed         a compressed cluster that does not unpack (deep check), or is flagged COPIED
                header, snapshot, bitmap, table    the structure named is malformed
  leaks         leak               the stored refcount is larger than the number of references
"""
import array
import collections
import dataclasses
import os

from qcow2ref import (BITMAPS_VALID, COMPRESSED, COPIED, CORRUPT, DATA_FILE, DIRTY, OFFSET_MASK, X_CRYPTO, ZERO, Bad, Bitmap,
                      Extent, ceil_div)

HEADER, REFTABLE, REFBLOCK, L1, L2, SNAPSHOTS, BITMAP_DIR, BITMAP_TABLE, BITMAP_DATA, CRYPTO, DATA, PACKED = range(1, 13)
NAMES = [None, "header", "refcount table", "refcount block", "L1 table", "L2 table", "snapshot table", "bitmap directory",
         "bitmap table", "bitmap data", "encryption header", "data", "compressed data"]
SHAREABLE = {L2, DATA, PACKED}
KEPT_PER_KIND = 200

Finding = collections.namedtuple("Finding", "kind offset text")


@dataclasses.dataclass
class Report:
    findings: list = dataclasses.field(default_factory=list)
    counts: dict = dataclasses.field(default_factory=collections.Counter)
    total_clusters: int = 0
    allocated_clusters: int = 0
    compressed_clusters: int = 0
    image_end: int = 0
    dirty: bool = False
    corrupt: bool = False

    @property
    def leaks(self):
        return self.counts["leak"]

    @property
    def corruptions(self):
        return sum(self.counts.values()) - self.counts["leak"]

    @property
    def clean(self):
        return not self.counts

    def only(self, *kinds):
        """No finding other than of these kinds."""
        return not set(k for k, n in self.counts.items() if n) - set(kinds)

    def add(self, kind, offset, text):
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT_PER_KIND:
            self.findings.append(Finding(kind, offset, text))

    def as_dict(self):
        return {"corruptions": self.corruptions, "leaks": self.leaks, "counts": dict(self.counts),
                "total-clusters": self.total_clusters, "allocated-clusters": self.allocated_clusters,
                "compressed-clusters": self.compressed_clusters, "image-end-offset": self.image_end,
                "dirty": self.dirty, "corrupt": self.corrupt, "findings": [f._asdict() for f in self.findings]}

    def __str__(self):
        head = f"{self.corruptions} corruptions, {self.leaks} leaks"
        return "\n".join([head] + [f"  {f.kind} at {f.offset:#x}: {f.text}" for f in self.findings])


class Walk:
    """Counts every reference of one image."""

    def __init__(self, image, deep):
        self.image, self.deep, self.report = image, deep, Report()
        self.cs = image.cluster_size
        self.clusters = ceil_div(image.file_size, self.cs)
        self.refs = array.array("Q", bytes(8 * self.clusters))
        self.use = bytearray(self.clusters)
        self.guest = array.array("q", b"\xff" * (8 * self.clusters))
        self.beyond = collections.Counter()
        self.reftable, self.blocks = array.array("Q"), {}

    # ---- counting ---------------------------------------------------------------------------------------------

    def mark(self, off, length, use, where, weight=1):
        """Counts a reference to each cluster of a host range."""
        if not length:
            return
        for c in range(off // self.cs, (off + length - 1) // self.cs + 1):
            if c >= self.clusters:
                self.beyond[c] += weight
                self.report.add("out-of-file", c * self.cs, f"{where} lies past the end of the file")
                continue
            self.refs[c] += weight
            old = self.use[c]
            if not old:
                self.use[c] = use
            elif old != use or use not in SHAREABLE:
                self.report.add("overlap", c * self.cs, f"{where}: the cluster is in use as {NAMES[old]} too")

    def stored(self, cluster):
        per = self.image.refcount_block_entries()
        block = self.blocks.get(cluster // per)
        return block[cluster % per] if block is not None else 0

    def aligned(self, off, where):
        if off % self.cs:
            self.report.add("unaligned", off, f"{where} is not cluster aligned")
            return False
        return True

    # ---- refcount structures ----------------------------------------------------------------------------------

    def refcounts(self):
        head = self.image.header
        if not head.reftable_clusters or not self.aligned(head.reftable_off, "the refcount table"):
            self.report.add("table", head.reftable_off, "no usable refcount table")
            return
        self.mark(head.reftable_off, head.reftable_clusters * self.cs, REFTABLE, "the refcount table")
        try:
            self.reftable = self.image.refcount_table()
        except Bad as e:
            self.report.add("table", head.reftable_off, str(e))
            return
        for i, entry in enumerate(self.reftable):
            off = entry & ~0x1FF
            if entry & 0x1FF:
                self.report.add("reserved", head.reftable_off + 8 * i, f"refcount table entry {i} is {entry:#x}")
            if not off or not self.aligned(off, f"refcount block {i}"):
                continue
            self.mark(off, self.cs, REFBLOCK, f"refcount block {i}")
            if off // self.cs < self.clusters:
                try:
                    # kept for good: unlike the cache of the image
                    self.blocks[i] = self.image.refcount_block(off)
                except Bad as e:
                    self.report.add("table", off, str(e))

    def compare(self):
        """References against stored refcounts, block by block."""
        per, end = self.image.refcount_block_entries(), 0
        for i in range(max(len(self.reftable), ceil_div(self.clusters, per))):
            first, last = i * per, min((i + 1) * per, self.clusters)
            block = self.blocks.get(i)
            if block is None and first >= self.clusters:
                continue
            have = block if block is not None else array.array("Q", bytes(8 * per))
            want = self.refs[first:last] if first < last else array.array("Q")
            want.extend(self.beyond.get(c, 0) for c in range(max(first, last), first + per))
            if any(have) or any(want):
                end = max(end, first + 1 + max(k for k in range(per) if have[k] or want[k]))
            if have == want:
                continue
            for k, (h, w) in enumerate(zip(have, want)):
                if h == w:
                    continue
                off, use = (first + k) * self.cs, NAMES[self.use[first + k]] if first + k < self.clusters else None
                if h < w:
                    self.report.add("refcount-low", off, f"refcount {h}, {w} references ({use})")
                else:
                    self.report.add("leak", off, f"refcount {h}, {w} references")
        self.report.image_end = max(end * self.cs, 0)

    # ---- the mapping ------------------------------------------------------------------------------------------

    def l1_table(self, off, entries, where):
        """Marks an L1 table and returns it (empty where it cannot be read)."""
        if not entries:
            return array.array("Q")
        if not self.aligned(off, where):
            return array.array("Q")
        self.mark(off, entries * 8, L1, where)
        try:
            return self.image.table(off, entries)
        except Bad as e:
            self.report.add("table", off, f"{where}: {e}")
            return array.array("Q")

    def mappings(self, tables):
        """tables: [(name, L1 array)], the active one first. Each L2 table is walked once, with its weight."""
        seen = {}                                          # L2 offset -> [weight, L1 index, reachable from active]
        for number, (name, l1) in enumerate(tables):
            for i, entry in enumerate(l1):
                if not entry:
                    continue
                if entry & ~(OFFSET_MASK | COPIED):
                    self.report.add("reserved", entry & OFFSET_MASK, f"{name}[{i}] is {entry:#x}")
                off = entry & OFFSET_MASK
                if not off:
                    if entry & COPIED:
                        self.report.add("copied-set", 0, f"{name}[{i}] is COPIED and empty")
                    continue
                if not self.aligned(off, f"{name}[{i}]"):
                    continue
                self.mark(off, self.cs, L2, f"{name}[{i}]")
                if number == 0:
                    self.copied(entry, off, f"{name}[{i}]")
                if off in seen and seen[off][1] != i:
                    self.report.add("double-mapped", off, f"{name}[{i}] and index {seen[off][1]} share an L2 table")
                row = seen.setdefault(off, [0, i, False])
                row[0] += 1
                row[2] |= number == 0
        for off, (weight, index, active) in seen.items():
            if off // self.cs < self.clusters:
                self.l2_table(off, weight, index, active)

    def copied(self, entry, off, where):
        count = self.stored(off // self.cs)
        if entry & COPIED and count != 1:
            self.report.add("copied-set", off, f"{where} is COPIED, refcount {count}")
        elif not entry & COPIED and count == 1:
            self.report.add("copied-clear", off, f"{where} is not COPIED, refcount 1")

    def l2_table(self, off, weight, index, active):
        try:
            table = self.image.l2_table(off)
        except Bad as e:
            self.report.add("table", off, str(e))
            return
        if table is None:
            return
        step = 2 if self.image.extended_l2 else 1
        first = index * self.image.l2_entries
        for i in range(0, len(table), step):
            entry = table[i]
            bitmap = table[i + 1] if step == 2 else None
            if entry or bitmap:
                self.entry(entry, bitmap, first + i // step, weight, active)

    def entry(self, entry, bitmap, guest, weight, active):
        """One L2 entry that is not empty."""
        image = self.image
        if entry & COMPRESSED:
            self.packed(entry, bitmap, guest, weight, active)
            return
        where = f"guest cluster {guest:#x}"
        off = entry & OFFSET_MASK
        allowed = OFFSET_MASK | COPIED | (ZERO if image.header.version >= 3 and bitmap is None else 0)
        if entry & ~allowed:
            self.report.add("reserved", off, f"{where}: L2 entry {entry:#x}")
        external = bool(image.header.incompatible & DATA_FILE)
        present = off or (external and entry & COPIED)
        if bitmap is not None:
            if bitmap & bitmap >> 32 & 0xFFFFFFFF:
                self.report.add("subcluster", off, f"{where}: subclusters are both allocated and zero ({bitmap:#x})")
            if bitmap & 0xFFFFFFFF and not present:
                self.report.add("subcluster", off, f"{where}: subclusters are allocated nowhere ({bitmap:#x})")
        if not present:
            if entry & COPIED:
                self.report.add("copied-set", 0, f"{where} is COPIED and has no cluster")
            return
        if active:
            self.report.allocated_clusters += 1
        if external:
            if off != guest * self.cs:
                self.report.add("data-file", off, f"{where} is at {off:#x} of the data file")
            if active and not entry & COPIED:
                self.report.add("copied-clear", off, f"{where} of a data file is not COPIED")
            return
        if not self.aligned(off, where):
            return
        self.mark(off, self.cs, DATA, where, weight)
        if active:
            self.copied(entry, off, where)
        cluster = off // self.cs
        if cluster < self.clusters:
            if self.guest[cluster] not in (-1, guest):
                self.report.add("double-mapped", off, f"{where} shares it with guest cluster {self.guest[cluster]:#x}")
            self.guest[cluster] = guest

    def packed(self, entry, bitmap, guest, weight, active):
        """A compressed L2 entry."""
        where = f"compressed guest cluster {guest:#x}"
        off, length = self.image.compressed_range(entry)
        if entry & COPIED:
            self.report.add("compressed", off, f"{where} is COPIED")
        if off >> 56:
            self.report.add("reserved", off, f"{where}: offset above 2^56")
            return
        if bitmap:
            self.report.add("subcluster", off, f"{where} has subclusters")
        if self.image.header.incompatible & DATA_FILE:
            self.report.add("data-file", off, f"{where} in an image with a data file")
        self.mark(off, length, PACKED, where, weight)
        if active:
            self.report.allocated_clusters += 1
            self.report.compressed_clusters += 1
        if self.deep and off < self.image.file_size:
            try:
                self.image.fetch(Extent(guest * self.cs, self.cs, "compressed", (entry, guest * self.cs)))
            except Bad as e:
                self.report.add("compressed", off, f"{where}: {e}")

    # ---- directories ------------------------------------------------------------------------------------------

    def snapshots(self):
        """Marks the snapshot table; returns the L1 tables of the snapshots."""
        image, tables = self.image, []
        if not image.header.nb_snapshots:
            return tables
        try:
            snaps = image.snapshots
        except Bad as e:
            self.report.add("snapshot", image.header.snapshots_off, str(e))
            return tables
        self.mark(image.header.snapshots_off, image.snapshot_table_size, SNAPSHOTS, "the snapshot table")
        ids = collections.Counter(s.id for s in snaps)
        for n, snap in enumerate(snaps):
            where = f"L1 table of snapshot '{snap.id}'"
            if ids[snap.id] > 1 or not snap.id:
                self.report.add("snapshot", image.header.snapshots_off, f"snapshot {n}: id '{snap.id}' is not unique")
            if image.header.version >= 3 and snap.extra_size < 16:
                self.report.add("snapshot", image.header.snapshots_off, f"snapshot {n}: {snap.extra_size} bytes of extra data")
            if snap.l1_size < ceil_div(snap.disk_size, image.l2_span):
                self.report.add("snapshot", snap.l1_off, f"{where} is too small for {snap.disk_size} bytes")
            tables.append((where, self.l1_table(snap.l1_off, snap.l1_size, where)))
        return tables

    def bitmaps(self):
        image = self.image
        try:
            ext, found = image.bitmap_extension(), image.bitmaps
        except Bad as e:
            self.report.add("bitmap", 0, str(e))
            return
        if ext is None:
            if image.header.autoclear & BITMAPS_VALID:
                self.report.add("bitmap", 88, "the bitmaps bit is set and there is no bitmaps extension")
            return
        if not image.header.autoclear & BITMAPS_VALID:
            return                                         # stale: none of its references count
        self.mark(ext[2], ext[1], BITMAP_DIR, "the bitmap directory")
        names = collections.Counter(b.name for b in found)
        for bitmap in found:
            if names[bitmap.name] > 1 or not bitmap.name:
                self.report.add("bitmap", ext[2], f"bitmap name '{bitmap.name}' is not unique")
            self.bitmap(bitmap)

    def bitmap(self, bitmap):
        image, where = self.image, f"bitmap '{bitmap.name}'"
        known = Bitmap.IN_USE | Bitmap.AUTO | Bitmap.EXTRA_COMPATIBLE
        if bitmap.flags & ~known or bitmap.type != 1 or bitmap.granularity_bits > 63:
            self.report.add("bitmap", bitmap.table_off, f"{where}: flags {bitmap.flags:#x}, type {bitmap.type}, granularity {bitmap.granularity_bits}")
            return
        if not bitmap.table_size or not self.aligned(bitmap.table_off, f"table of {where}"):
            return
        self.mark(bitmap.table_off, bitmap.table_size * 8, BITMAP_TABLE, f"table of {where}")
        try:
            table = image.table(bitmap.table_off, bitmap.table_size)
        except Bad as e:
            self.report.add("bitmap", bitmap.table_off, f"{where}: {e}")
            return
        for i, entry in enumerate(table):
            off = entry & OFFSET_MASK
            if entry & ~(OFFSET_MASK | 1) or (off and entry & 1):
                self.report.add("reserved", bitmap.table_off + 8 * i, f"{where}: table entry {entry:#x}")
            if off and self.aligned(off, f"data of {where}"):
                self.mark(off, self.cs, BITMAP_DATA, f"data of {where}")
        if not bitmap.in_use:
            self.bitmap_size(bitmap, table, where)

    def bitmap_size(self, bitmap, table, where):
        """A bitmap that is not in use fits the disk exactly, and its tail bits are clear."""
        bits = ceil_div(self.image.size, 1 << bitmap.granularity_bits)
        need = ceil_div(bits, 8)
        if len(table) != ceil_div(need, self.cs):
            self.report.add("bitmap", bitmap.table_off, f"{where}: {len(table)} table entries for {need} bytes")
            return
        off = table[-1] & OFFSET_MASK
        if off and off // self.cs < self.clusters:
            data = os.pread(self.image.fd, self.cs, off)
            if int.from_bytes(data, "little") >> (bits - (len(table) - 1) * self.cs * 8):
                self.report.add("bitmap", off, f"{where}: bits behind the end of the disk are set")

    def crypto(self):
        data = self.image.header.extension(X_CRYPTO)
        needs = self.image.header.crypt == 2
        if (data is not None) != needs:
            self.report.add("header", 32, "crypt method and encryption header disagree")
        if data is not None and len(data) == 16:
            off, length = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")
            if self.aligned(off, "the encryption header") and length < 1 << 40:
                self.mark(off, length, CRYPTO, "the encryption header")


def check(image, deep=False):
    """Checks one file (not its backing chain)."""
    walk = Walk(image, deep)
    head, report = image.header, walk.report
    report.dirty, report.corrupt = bool(head.incompatible & DIRTY), bool(head.incompatible & CORRUPT)
    report.total_clusters = ceil_div(image.size, image.cluster_size)
    walk.mark(0, image.cluster_size, HEADER, "the header")
    walk.refcounts()
    active = ("L1", walk.l1_table(head.l1_off, head.l1_size, "the L1 table"))
    walk.mappings([active] + walk.snapshots())
    walk.bitmaps()
    walk.crypto()
    walk.compare()
    return report
