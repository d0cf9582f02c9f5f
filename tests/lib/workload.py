# SPDX-License-Identifier: MIT
"""Random guest writes with a shadow: what was done, and what the disk must therefore hold.

    work = Workload(seed, size, cluster_size=65536)
    for batch in work.batches(200, 20):
        qemu_io(image, *batch)                 # or byre io: the commands are the same
    work.verify(qcow2ref.open_image(image).read)
"""
import random

KINDS = {"write": 10, "rewrite": 5, "zero": 3, "zero_unmap": 2, "discard": 3, "flush": 1, "compressed": 0}


class Workload:
    """Operations on a guest disk and a byte-exact model of it.

    After a discard the specification allows either old data or zeros (a discard is advice), so those bytes are not
    compared until they are written again, unless discard_zeroes says that the format in use clears them.
    """

    def __init__(self, seed, size, cluster_size=65536, backing=None, discard_zeroes=False, weights=None, align=512):
        self.rng = random.Random(seed)
        self.size, self.cluster, self.align = size, cluster_size, align
        self.shadow = bytearray(size)
        if backing is not None:
            self.shadow[:len(backing)] = backing[:size]
        self.unknown = bytearray(size // align + 1)       # 1: the unit may hold anything old or zero
        self.discard_zeroes = discard_zeroes
        self.weights = {**KINDS, **(weights or {})}
        self.written, self.touched = [], set()            # touched: clusters that are no longer fresh
        self.commands = []

    def _range(self):
        """A range that likes the edges of clusters."""
        rng, c, a = self.rng, self.cluster, self.align
        kind = rng.randrange(6)
        if kind == 0:
            off, length = rng.randrange(self.size // c) * c, c * rng.choice([1, 1, 2, 3, 8])
        elif kind == 1:
            edge = rng.randrange(1, max(2, self.size // c)) * c
            off, length = max(0, edge - a * rng.randrange(1, 5)), a * rng.randrange(1, 9)
        elif kind == 2:
            off, length = rng.randrange(self.size // a) * a, a
        elif kind == 3:
            off, length = rng.randrange(self.size // c) * c + c // 2, c
        else:
            off, length = rng.randrange(self.size // a) * a, a * rng.randrange(1, max(2, 3 * c // a))
        off = min(off // a * a, self.size - a)
        return off, max(a, min(length // a * a, self.size - off, 4 << 20))

    def step(self):
        """One operation: applies it to the shadow and returns the qemu-io command."""
        kind = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
        off, length = self._range()
        if kind == "rewrite" and self.written:
            off, length = self.rng.choice(self.written)
        if kind == "flush":
            command = "flush"
        elif kind in ("write", "rewrite") or (kind == "compressed" and off // self.cluster in self.touched):
            value = self.rng.randrange(1, 256)
            self._set(off, length, value)
            self.written = (self.written + [(off, length)])[-64:]
            command = f"write -P {value} {off} {length}"
        elif kind == "compressed":
            # into fresh clusters only: the peer refuses to compress over allocated ones
            value = self.rng.randrange(1, 256)
            off = off // self.cluster * self.cluster
            length = min(self.cluster, self.size - off)
            self._set(off, length, value)
            command = f"write -c -P {value} {off} {length}"
        elif kind == "discard":
            self._discard(off, length)
            command = f"discard {off} {length}"
        else:
            self._set(off, length, 0)
            command = f"write -z{' -u' if kind == 'zero_unmap' else ''} {off} {length}"
        self.commands.append(command)
        return command

    def _set(self, off, length, value):
        self.shadow[off:off + length] = bytes([value]) * length
        self._mark(off, length, 0)

    def _discard(self, off, length):
        if self.discard_zeroes:
            self._set(off, length, 0)
        else:
            self._mark(off, length, 1)

    def _mark(self, off, length, value):
        first, last = off // self.align, -(-(off + length) // self.align)
        self.unknown[first:last] = bytes([value]) * (last - first)
        self.touched.update(range(off // self.cluster, -(-(off + length) // self.cluster)))

    def batches(self, operations, per_batch):
        """`operations` commands in lists of at most per_batch."""
        left = operations
        while left > 0:
            count = min(per_batch, left)
            left -= count
            yield [self.step() for _ in range(count)]

    def verify(self, read, chunk=1 << 20):
        """Compares the shadow with read(off, length) -> bytes; raises AssertionError at the first difference."""
        for off in range(0, self.size, chunk):
            length = min(chunk, self.size - off)
            have, want = read(off, length), bytes(self.shadow[off:off + length])
            if have == want:
                continue
            for i in range(0, length, self.align):
                unit = (off + i) // self.align
                if have[i:i + self.align] != want[i:i + self.align] and not self.unknown[unit]:
                    recent = [c for c in self.commands if _touches(c, off + i, self.align)][-5:]
                    raise AssertionError(f"guest offset {off + i:#x}: {have[i:i + 8].hex()} instead of {want[i:i + 8].hex()}; "
                                         f"commands that touched it: {recent}")


def _touches(command, off, length):
    words = command.split()
    if len(words) < 3:
        return False
    start, size = int(words[-2]), int(words[-1])
    return start < off + length and off < start + size
