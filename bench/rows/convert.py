# SPDX-License-Identifier: MIT
"""Copies of whole images, compressed or not."""
import os
import subprocess

from harness import GIB, MIB
from rows import family


def convert_once(b, tool, words, src):
    b.drop("dst")
    took, more = b.command(tool.img + ["convert", "-t", "writeback", "-W"] + words + [b.path(src), b.path("dst")])
    return took, {**more, "file_MB": os.stat(b.path("dst")).st_blocks * 512 / 1e6}


@family("convert", "2 GiB, half of it holes, from and to raw, qcow2 and QED; durable at the end")
def convert(b):
    size = b.pick(2 * GIB, 16 * MIB)
    b.drop("src.raw")
    with open(b.path("src.raw"), "wb") as f:
        f.truncate(size)
        for off in range(0, size, 4 * MIB):         # half data, half holes
            f.seek(off)
            f.write(os.urandom(2 * MIB))
    for fmt in ("qcow2", "qed"):
        subprocess.run(["qemu-img", "convert", "-O", fmt, b.path("src.raw"), b.path("src." + fmt)], check=True)
    for a in ("raw", "qcow2", "qed"):
        for z in ("raw", "qcow2", "qed"):
            b.row("convert %s to %s" % (a, z), "s", False, b.vs(lambda t: convert_once(b, t, ["-f", a, "-O", z], "src." + a)))
    b.drop("src.raw", "src.qcow2", "src.qed", "dst")


def files(b):
    """src.raw: a file system full of files."""
    b.drop("src.raw")
    folder = b.pick("/usr/share", os.path.dirname(os.path.abspath(__file__)))
    with open(b.path("src.raw"), "wb") as f:
        f.truncate(b.pick(GIB, 8 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", b.pick("150000", "64"), "-d", folder, b.path("src.raw")], stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)         # when it does not all fit, what does is enough


@family("compress", "1 GiB of a file system made from /usr/share, compressed, unpacked, and read at random while compressed")
def compress(b):
    files(b)
    for kind in ("zlib", "zstd"):
        words = ["-m", "16", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=" + kind]
        b.row("compress, %s" % kind, "s", False, b.vs(lambda t: convert_once(b, t, words, "src.raw")))
        subprocess.run(["qemu-img", "convert"] + words + [b.path("src.raw"), b.path("src.qcow2")], check=True)
        b.row("unpack, %s" % kind, "s", False, b.vs(lambda t: convert_once(b, t, ["-m", "16", "-f", "qcow2", "-O", "raw"], "src.qcow2")))
        size = os.stat(b.path("src.raw")).st_size
        for bs in b.pick(("4k", "64k"), ("4k",)):
            b.row("NBD randread %s, depth 16, compressed with %s" % (bs, kind), "k/s", True,
                  b.vs(lambda t: b.fio(t, "src.qcow2", "qcow2", "randread", bs, 16, size, "writeback")))
    b.drop("src.raw", "src.qcow2", "dst", "nbd.sock")
