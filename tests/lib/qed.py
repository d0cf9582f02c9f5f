# SPDX-License-Identifier: MIT
"""QED images built and damaged byte by byte."""
import os
import struct

import qedref


class Builder:
    """A sound image: header, L1, one L2 table whose first `data` entries point to clusters behind it, filled with 1, 2, ..."""

    def __init__(self, cluster_size=4096, table_size=2, size=1 << 20, data=3, **header):
        self.cs, self.ts = cluster_size, table_size
        self.l1, self.l2 = cluster_size, cluster_size * (1 + table_size)
        self.data = cluster_size * (1 + 2 * table_size)
        self.image = bytearray(self.data + data * cluster_size)
        self.header(**{**dict(magic=b"QED\0", cluster_size=cluster_size, table_size=table_size, header_size=1, l1_off=self.l1, size=size), **header})
        self.word(self.l1, self.l2)
        for i in range(data):
            self.word(self.l2 + 8 * i, self.data + i * cluster_size)
            self.put(self.data + i * cluster_size, bytes([i + 1]) * cluster_size)

    def header(self, **values):
        for name, v in values.items():
            off, fmt = qedref.FIELDS[name]
            self.put(off, struct.pack(fmt, v))
        return self

    def put(self, off, data):
        self.image[off:off + len(data)] = data
        return self

    def word(self, off, v):
        return self.put(off, struct.pack("<Q", v))

    def cut(self, length):
        self.image = self.image[:length].ljust(length, b"\0")
        return self

    def write(self, path):
        with open(path, "wb") as f:
            f.write(self.image)
        return path


def set_header(path, **values):
    fd = os.open(path, os.O_RDWR)
    for name, v in values.items():
        off, fmt = qedref.FIELDS[name]
        os.pwrite(fd, struct.pack(fmt, v), off)
    os.close(fd)


# Damage by name: what it does to a Builder().
DAMAGES = {
    "data_outside": lambda b: b.word(b.l2, 1 << 30),
    "data_unaligned": lambda b: b.word(b.l2, b.data + 512),
    "data_two": lambda b: b.word(b.l2, 2),
    "data_in_header": lambda b: b.word(b.l2, 512),
    "data_high_bit": lambda b: b.word(b.l2, 1 << 63 | b.data),
    "data_is_l1": lambda b: b.word(b.l2, b.l1),
    "data_is_l2": lambda b: b.word(b.l2 + 8, b.l2),
    "data_twice": lambda b: b.word(b.l2, b.data + b.cs),
    "data_cut_short": lambda b: b.cut(len(b.image) - 2048),
    "data_cut_off": lambda b: b.cut(len(b.image) - 4096),
    "data_beyond_size": lambda b: b.word(b.l2 + 8 * 1000, b.data),
    "leak": lambda b: b.word(b.l2 + 8, 0),
    "leak_zeroed": lambda b: b.word(b.l2 + 8, 1),
    "leak_tail": lambda b: b.cut(len(b.image) + 3 * 4096),
    "tail_garbage": lambda b: b.put(len(b.image), b"x" * 100),
    "table_outside": lambda b: b.word(b.l1, 1 << 30),
    "table_unaligned": lambda b: b.word(b.l1, b.l2 + 512),
    "table_one": lambda b: b.word(b.l1, 1),
    "table_in_header": lambda b: b.word(b.l1 + 8, 8),
    "table_cut": lambda b: b.word(b.l1 + 8, len(b.image) - 4096),
    "table_twice": lambda b: b.word(b.l1 + 8, b.l2),
    "table_is_l1": lambda b: b.word(b.l1 + 8, b.l1),
    "table_is_data": lambda b: b.word(b.l1 + 8, b.data),
    "table_half_shared": lambda b: b.cut(len(b.image) + 4096).word(b.l1 + 8, len(b.image) - 8192),
    "table_beyond_size": lambda b: b.word(b.l1 + 8 * 1000, b.l2),
    "entries_in_disorder": lambda b: b.word(b.l2, b.data + 2 * b.cs).word(b.l2 + 16, b.data),
    "need_check": lambda b: b.header(features=2),
    "need_check_and_twice": lambda b: b.header(features=2).word(b.l2, b.data + b.cs),
    "size_small": lambda b: b.header(size=4096),
    "size_odd": lambda b: b.header(size=(1 << 20) + 512),
    "header_two": lambda b: b.header(header_size=2, l1_off=2 * b.cs).cut(len(b.image) + 8192).word(2 * b.cs, 0),
}
