# SPDX-License-Identifier: MIT
"""Servers: NBD with one and several clients, loops, chains of images."""
import subprocess

from harness import GIB, MIB, Scale, run
from rows import family

PATTERNS = (("randread", "4k", 64), ("randwrite", "4k", 64), ("read", "1M", 8), ("write", "1M", 8))


def unit(bs):
    return "MB/s" if bs == "1M" else "k/s"


@family("nbd", "fio's NBD client against a server: 1 and 4 connections, 4K random and 1M sequential, buffered and direct, unix socket and TCP")
def nbd(b):
    size = b.pick(2 * GIB, 16 * MIB)
    b.fill("qcow2", "rnd.qcow2", size)
    b.fill("raw", "rnd.raw", size)
    ways = [(tcp, jobs, cache) for tcp in (False, True) for jobs in (1, 4) for cache in ("none", "writeback")]
    for i, (tcp, jobs, cache) in enumerate(b.pick(ways, ways[::3])):
        for rw, bs, depth in b.pick(PATTERNS, PATTERNS[i:i + 1]):
            def one(t, image="rnd.qcow2", fmt="qcow2"):
                return b.fio(t, image, fmt, rw, bs, depth, size, cache, jobs, tcp)
            if cache == "writeback":
                b.warm("rnd.qcow2", "rnd.raw")
            cs = b.vs(one) + [("byre raw", lambda: one(b.me, "rnd.raw", "raw"))]
            if b.has_nbdkit and cache == "writeback":
                cs.append(("nbdkit raw", lambda: one("nbdkit", "rnd.raw", "raw")))
            cs.append(("raw file", lambda: b.fio_file("rnd.raw", rw, bs, depth, size, cache == "none", jobs)))
            b.row("NBD %s %s, depth %d, %d connection%s, %s, cache=%s" % (rw, bs, depth, jobs, "s" * (jobs > 1), "TCP" if tcp else "unix", cache), unit(bs), True, cs)
    b.drop("rnd.qcow2", "rnd.raw", "nbd.sock")


@family("loops", "1, 2 and 4 loops serve one image to 4 connections: reads, in-place writes, allocating writes")
def loops(b):
    size, new = b.pick(2 * GIB, 16 * MIB), b.pick(64 * GIB, 64 * MIB)
    b.fill("qcow2", "rnd.qcow2", size)

    def allocating(t, n):
        b.drop("new.qcow2")
        run(t.img + ["create", "-q", "-f", "qcow2", b.path("new.qcow2"), str(new)])
        return b.fio(t, "new.qcow2", "qcow2", "randwrite", "4k", 16, new, "none", 4, threads=n if t.kind == "byre" else None)
    for what, rw in (("reads", "randread"), ("in-place writes", "randwrite"), ("allocating writes", None)):
        for n in b.pick((1, 2, 4), (2,)):
            def one(t):
                if rw is None:
                    return allocating(t, n)
                return b.fio(t, "rnd.qcow2", "qcow2", rw, "4k", 16, size, "none", 4, threads=n if t.kind == "byre" else None)
            b.row("%s, 4 connections, %d loop%s" % (what, n, "s" * (n > 1)), "k/s", True, b.vs(one), Scale("loops: " + what, "loops", n))
    b.drop("rnd.qcow2", "new.qcow2", "nbd.sock")


@family("chain", "random reads over NBD of a disk whose clusters are scattered over 1, 8 and 64 layers")
def chain(b):
    size, piece = b.pick(GIB, 4 * MIB), 65536
    for depth in (1, 8, b.pick(64, 10)):
        names = ["chain%d.qcow2" % i for i in range(depth)]
        owner = [i * 40503 % 65521 % depth for i in range(size // piece)]      # each cluster lies in one layer, scattered
        for i, name in enumerate(names):
            run(["qemu-img", "create", "-q", "-f", "qcow2"] + (["-b", names[i - 1], "-F", "qcow2"] if i else []) + [b.path(name), str(size)])
            writes = "".join("write -q -P %d %d %d\n" % (i + 1, k * piece, piece) for k, o in enumerate(owner) if o == i)
            subprocess.run(["qemu-io", "-f", "qcow2", b.path(name)], input=writes.encode(), stdout=subprocess.DEVNULL, check=True)
        b.row("NBD randread 4k, depth 64, a chain of %d" % depth, "k/s", True,
              b.vs(lambda t: b.fio(t, names[-1], "qcow2", "randread", "4k", 64, size, "writeback")), Scale("reads over the length of the chain", "layers", depth))
        b.drop(*names)
    b.drop("nbd.sock")
