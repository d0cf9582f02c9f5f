# SPDX-License-Identifier: MIT
"""Damages qcow2 images on purpose: header fields, table entries, refcounts, directories, plain bytes."""
import os
import struct

import qcow2ref
from qcow2ref import Header


class Editor:
    """Opens an image for patching; finds structures with the independent reader. Use as a context manager.

    Positions are looked up when asked, so that several patches can follow one another.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.image = qcow2ref.Image(self.path, strict=False)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.image.close()
        os.close(self.fd)

    def reload(self):
        self.image.close()
        self.image = qcow2ref.Image(self.path, strict=False)

    # ---- bytes and header
    def bytes(self, off, data):
        os.pwrite(self.fd, data, off)

    def be64(self, off, value):
        self.bytes(off, struct.pack(">Q", value))

    def get_be64(self, off):
        return struct.unpack(">Q", os.pread(self.fd, 8, off))[0]

    def header(self, **fields):
        """header(l1_size=3, incompatible=1): names as in qcow2ref.Header.FIELDS."""
        for name, value in fields.items():
            off, fmt = Header.FIELDS[name]
            self.bytes(off, struct.pack(fmt, value))

    def set_bits(self, field, mask, on=True):
        old = getattr(self.image.header, field)
        self.header(**{field: old | mask if on else old & ~mask})
        self.reload()

    def extension_data(self, kind):
        """File offset of the data of a header extension."""
        return next(off for k, _, off in self.image.header.extensions if k == kind)

    # ---- mapping
    def l1_entry(self, index):
        """File offset of an L1 entry."""
        return self.image.header.l1_off + 8 * index

    def l2_entry(self, guest_off):
        """File offset of the L2 entry of a guest offset (its L2 table must exist)."""
        image = self.image
        l2 = self.get_be64(self.l1_entry(guest_off // image.l2_span)) & qcow2ref.OFFSET_MASK
        assert l2, f"no L2 table for guest offset {guest_off:#x}"
        step = 16 if image.extended_l2 else 8
        return l2 + guest_off % image.l2_span // image.cluster_size * step

    def patch_l1(self, index, change):
        """change: a function old -> new."""
        at = self.l1_entry(index)
        self.be64(at, change(self.get_be64(at)))

    def patch_l2(self, guest_off, change, second=False):
        """change: old -> new; second: the subcluster bitmap of an extended entry."""
        at = self.l2_entry(guest_off) + (8 if second else 0)
        self.be64(at, change(self.get_be64(at)))

    def host_of(self, guest_off):
        """Host offset of the cluster that holds a guest offset (standard clusters)."""
        return self.get_be64(self.l2_entry(guest_off)) & qcow2ref.OFFSET_MASK

    # ---- refcounts
    def refcount_position(self, host_off):
        """(file offset of the byte, shift within it, bits) of the refcount of a host cluster."""
        image = self.image
        cluster = host_off // image.cluster_size
        per, bits = image.refcount_block_entries(), image.header.refcount_bits
        block = self.get_be64(image.header.reftable_off + cluster // per * 8) & ~0x1FF
        assert block, f"no refcount block for {host_off:#x}"
        bit = cluster % per * bits
        return block + bit // 8, bit % 8, bits

    def set_refcount(self, host_off, value):
        at, shift, bits = self.refcount_position(host_off)
        if bits >= 8:
            self.bytes(at, value.to_bytes(bits // 8, "big"))
            return
        old = os.pread(self.fd, 1, at)[0]
        mask = ((1 << bits) - 1) << shift
        self.bytes(at, bytes([old & ~mask | value << shift & mask]))

    def append_cluster(self, data=b""):
        """Adds a cluster at the end of the file (refcount untouched); returns its offset."""
        cs = self.image.cluster_size
        off = -(-os.fstat(self.fd).st_size // cs) * cs
        os.truncate(self.path, off + cs)
        self.bytes(off, data)
        return off
