# SPDX-License-Identifier: MIT
"""Random chains of images, made by the peer, with a shadow of what each layer shows."""
import os
import random
import shutil

from lib import images, run

SECTOR = 512
OPTIONS = [
    {"cluster_size": 4096}, {"cluster_size": 65536}, {"cluster_size": 512}, {"cluster_size": 65536, "compat": "0.10"}, {"cluster_size": 1 << 20},
    {"cluster_size": 65536, "extended_l2": True}, {"cluster_size": 4096, "compat": "0.10"}, {"cluster_size": 16384, "extended_l2": True},
    {"cluster_size": 8192, "lazy_refcounts": True}, {"cluster_size": 2 << 20, "refcount_bits": 1},
]


class Layer:
    """An image and what it shows, through all that lies below it."""

    def __init__(self, path, fmt, content, options=None):
        self.path, self.fmt, self.content, self.options, self.filled = path, fmt, bytearray(content), options or {}, False

    @property
    def name(self):
        return os.path.basename(self.path)

    @property
    def size(self):
        return len(self.content)


def fill(layer, rng, count=6, discards=True):
    """Random writes, zeros and compressed clusters by the peer, and the same to the shadow."""
    commands, used = [], set()
    cluster = layer.options.get("cluster_size", 65536)
    can_zero = layer.options.get("compat") != "0.10"
    for _ in range(count):
        off = rng.randrange(layer.size // SECTOR) * SECTOR
        length = min(rng.choice([512, 4096, 20 << 10, 64 << 10, 200 << 10]), layer.size - off)
        kind = rng.choice("wwwzc" if layer.fmt == "qcow2" else "wwz")
        pattern = rng.randrange(1, 256)
        if kind == "c" and (cluster < 65536 or not can_zero or "refcount_bits" in layer.options):        # the peer damages such images
            kind = "w"
        if kind == "c":
            off = off // cluster * cluster
            length = min(cluster, layer.size - off)
            if length < cluster or off // cluster in used or layer.filled:      # the peer compresses fresh clusters alone
                kind = "w"
        used.update(range(off // cluster, (off + length - 1) // cluster + 1))
        if kind == "z":
            commands.append(f"write -z {'-u ' if rng.randrange(2) and can_zero else ''}{off} {length}")
            pattern = 0
        else:
            commands.append(f"write {'-c ' if kind == 'c' else ''}-P {pattern} {off} {length}")
        layer.content[off:off + length] = bytes([pattern]) * length
    run.qemu_io(layer.path, *commands, fmt=layer.fmt)
    layer.filled = True


def base(folder, name, size, rng, fmt=None):
    fmt = fmt or rng.choice(["raw", "qcow2"])
    options = dict(rng.choice(OPTIONS)) if fmt == "qcow2" else {}
    path = os.path.join(folder, f"{name}.{fmt}")
    images.create(path, size, fmt=fmt, **options)
    layer = Layer(path, fmt, bytes(size), options)
    fill(layer, rng)
    return layer


def overlay(folder, name, below, size, rng, options=None, count=6):
    options = dict(options if options is not None else rng.choice(OPTIONS))
    path = os.path.join(folder, f"{name}.qcow2")
    images.create(path, size, backing=below.name, backing_fmt=below.fmt, unchecked=True, **options)
    layer = Layer(path, "qcow2", bytes(below.content[:size]) + bytes(max(0, size - below.size)), options)
    if count:
        fill(layer, rng, count)
    return layer


def sizes(rng):
    return (rng.randrange(600, 6000) * SECTOR) if rng.randrange(3) else 3 << 20


def make(folder, rng, depth, prefix=""):
    """[base, ..., top]: depth overlays."""
    os.makedirs(folder, exist_ok=True)
    chain = [base(folder, f"{prefix}base", sizes(rng), rng)]
    for i in range(1, depth + 1):
        chain.append(overlay(folder, f"{prefix}l{i}", chain[-1], sizes(rng), rng))
    return chain


def read(path, fmt="qcow2", tool=run.qemu_img):
    """The content of an image with all below it."""
    out = f"{path}.read"
    tool("convert", "-f", fmt, "-O", "raw", path, out)
    with open(out, "rb") as f:
        data = f.read()
    os.unlink(out)
    return data


def assert_reads(path, content, fmt="qcow2", tool=run.qemu_img):
    data = read(path, fmt, tool)
    assert len(data) == len(content), f"{path}: {len(data)} bytes, {len(content)} expected"
    if data != bytes(content):
        at = next(i for i in range(0, len(data), SECTOR) if data[i:i + SECTOR] != content[i:i + SECTOR])
        raise AssertionError(f"{path}: sector {at // SECTOR} (offset {at:#x}) is {data[at]:#x}.., {content[at]:#x}.. expected")


def copy(folder, to):
    shutil.copytree(folder, to)
    return to


def seeded(*what):
    return random.Random(repr(what))
