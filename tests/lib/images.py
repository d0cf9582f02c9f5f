# SPDX-License-Identifier: MIT
"""Builds images to test with, by the peer's tools or by byre's own."""
import os
import random
import time

from lib import peers, run

CLUSTER_SIZES = [1 << n for n in range(9, 22)]
REFCOUNT_BITS = [1 << n for n in range(7)]


def create(path, size, fmt="qcow2", tool="qemu-img", backing=None, backing_fmt=None, unchecked=False, **options):
    """Creates an image; options become -o name=value (underscores stay). unchecked: the backing file is not opened
    (size must be given). Returns the path."""
    args = ["create", "-q", "-f", fmt] + (["-u"] if unchecked else [])
    if backing is not None:
        args += ["-b", os.fspath(backing), "-F", backing_fmt or "qcow2"]
    if options:
        args += ["-o", ",".join(f"{k}={value(v)}" for k, v in options.items())]
    args += [os.fspath(path)] + ([str(size)] if size is not None else [])
    (run.qemu_img if tool == "qemu-img" else run.byre)(*args)
    return path


def wait_unlocked(image, timeout=10.0):
    """After a kill the kernel ends what was under way, and then gives up the locks; the peer does not wait for that."""
    end = time.monotonic() + timeout
    while run.qemu_img("info", image, code=None).code and time.monotonic() < end:
        time.sleep(0.01)
    run.qemu_img("info", image)


def value(v):
    return ("on" if v else "off") if isinstance(v, bool) else v


def versions():
    """(compat, option name) of both qcow2 versions."""
    return [("0.10", 2), ("1.1", 3)]


def pattern_bytes(seed, length):
    """Reproducible bytes that compress a little."""
    rng = random.Random(seed)
    block = rng.randbytes(256)
    return (block * (length // 256 + 1))[:length]


def raw_file(path, size, pieces=()):
    """A sparse raw file with (offset, bytes) pieces."""
    with open(path, "wb") as f:
        f.truncate(size)
        for off, data in pieces:
            f.seek(off)
            f.write(data)
    return path


def file_system(path, kind="ext4", size="64M", source=None):
    """A raw file with a real file system in it, filled from a folder."""
    source = source or os.path.dirname(os.__file__)
    with open(path, "wb") as f:
        f.truncate(_bytes(size))
    if kind == "ext4":
        peers.need("mkfs.ext4")
        run.run("mkfs.ext4", "-q", "-F", "-d", source, path, timeout=300)
    elif kind == "btrfs":
        peers.need("mkfs.btrfs")
        run.run("mkfs.btrfs", "-q", "--rootdir", source, path, timeout=300)
    elif kind == "xfs":
        peers.need("mkfs.xfs")
        run.run("mkfs.xfs", "-q", "-f", path, timeout=300)
    else:
        raise ValueError(kind)
    return path


def _bytes(size):
    if isinstance(size, int):
        return size
    return int(size[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[size[-1].upper()]


def chain(folder, depth, size, **options):
    """base.qcow2 and depth overlays l1.qcow2, l2.qcow2 ...; returns the paths, base first."""
    paths = [create(os.path.join(folder, "base.qcow2"), size, **options)]
    for i in range(1, depth + 1):
        paths.append(create(os.path.join(folder, f"l{i}.qcow2"), size, backing=os.path.basename(paths[-1]), unchecked=True,
                            **options))
    return paths


def peer_check(path, code=0, fmt="qcow2"):
    """qemu-img check; returns its JSON."""
    return run.qemu_img("check", "--output=json", "-f", fmt, path, code=code).json


def assert_sound(path, leaks=False):
    """Both the independent reader and the peer find the image clean (or leaky at most)."""
    import qcow2ref
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        report = image.check()
    if report.corruptions or (report.leaks and not leaks):
        raise AssertionError(f"{path}: {report}")
    peer_check(path, code=(0, 3) if leaks else 0)
    return report


def read_by_reference(path, folder):
    """The content as the independent reader sees it; it finds the image clean, too."""
    import qcow2ref
    assert_sound(path)
    raw = os.path.join(folder, "by-reference.raw")
    with qcow2ref.open_image(path, fmt="qcow2") as image:
        image.write_raw(raw)
    with open(raw, "rb") as f:
        return f.read()


def compressed_entries(path):
    """(guest offset, offset in the file, length) of every compressed cluster."""
    import qcow2ref
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        return [(e.off, *image.compressed_range(e.host[0])) for e in image.extents() if e.kind == "compressed"]
