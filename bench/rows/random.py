# SPDX-License-Identifier: MIT
"""Requests to clusters that are allocated: the in-place path."""
from harness import GIB, MIB, TIB, Scale, run
from rows import family
from rows.nbd import PATTERNS
from rows.writes import founding_table

SCATTER = str(4096 * 100003)        # visits the clusters in scattered order, the same for everybody


def scattered(b, tool, fmt, name, depth, write, count):
    return b.img_bench(tool, fmt, ["-c", str(count), "-d", str(depth), "-s", "4K", "-S", SCATTER] + (["-w"] if write else []) + [b.path(name)])


@family("random", "scattered 4 KiB reads and writes of allocated clusters at depth 1, 8 and 64, direct, against raw")
def random_io(b):
    size = b.pick(2 * GIB, 16 * MIB)
    b.fill("qcow2", "rnd.qcow2", size)
    b.fill("raw", "rnd.raw", size)
    for depth, full in ((1, 10000), (8, 40000), (64, 60000)):
        count = b.pick(full, 64)
        for write in (False, True):
            what = "write" if write else "read"
            cs = b.vs(lambda t: scattered(b, t, "qcow2", "rnd.qcow2", depth, write, count))
            cs.append(("raw file", lambda: scattered(b, b.me, "raw", "rnd.raw", depth, write, count)))
            b.row("scattered 4K %s of allocated clusters, depth %d, direct" % (what, depth), "s", False, cs, Scale("scattered 4K %s" % what, "depth", depth))
    b.drop("rnd.raw", "rnd.qcow2")


@family("tables", "random reads over NBD of a disk whose tables are larger than the caches")
def tables(b):
    """1 TiB, fully mapped, its data a hole: 128 MiB of tables."""
    for size, human in ((b.pick(16 * GIB, 64 * MIB), "16 GiB"), (b.pick(TIB, 128 * MIB), "1 TiB")):
        b.drop("big.qcow2")
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", b.path("big.qcow2"), str(size)])
        b.row("NBD randread 4k, depth 64, a mapped disk of %s" % human, "k/s", True,
              b.vs(lambda t: b.fio(t, "big.qcow2", "qcow2", "randread", "4k", 64, size)), Scale("reads over the size of the disk", "GiB", size / GIB))
    b.drop("big.qcow2", "nbd.sock")


@family("qed", "first writes, scattered and NBD requests on QED, beside the peers' QED and byre's qcow2 with lazy refcounts")
def qed(b):
    founding_table(b, "qed")
    size, count = b.pick(2 * GIB, 16 * MIB), b.pick(60000, 64)
    b.fill("qed", "rnd.qed", size)
    b.fill("qcow2", "rnd.qcow2", size)
    run(["qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", b.path("rnd.qcow2")])
    all_of = [(t.name, t, "qed") for t in b.tools] + [("byre qcow2", b.me, "qcow2")]
    for write in (False, True):
        b.row("QED, scattered 4K %s of allocated clusters, depth 64, direct" % ("write" if write else "read"), "s", False,
              [(n, lambda t=t, f=f: scattered(b, t, f, "rnd." + f, 64, write, count)) for n, t, f in all_of])
    for rw, bs, depth in b.pick(PATTERNS, PATTERNS[:1]):
        b.row("QED, NBD %s %s, depth %d, one connection, cache=none" % (rw, bs, depth), "MB/s" if bs == "1M" else "k/s", True,
              [(n, lambda t=t, f=f: b.fio(t, "rnd." + f, f, rw, bs, depth, size)) for n, t, f in all_of])
    b.drop("rnd.qed", "rnd.qcow2", "nbd.sock")
