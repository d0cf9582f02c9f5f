# SPDX-License-Identifier: MIT
"""First writes: what a new cluster costs."""
import os
import shutil

from harness import FIRST_WRITES, MIB, Scale, run
from rows import family

STEPS = {"4K": 4096, "64K": 65536, "1M": MIB}


def write_args(count, step, image, more=()):
    return ["-c", str(count), "-s", "4K", "-S", step, "-w", *more, image]


def fresh(b, tool, fmt, step, options, count, more=()):
    size = max(count * STEPS[step], MIB)
    b.drop("fw.img")
    run(tool.img + ["create", "-q", "-f", fmt] + (["-o", options] if fmt != "raw" else []) + [b.path("fw.img"), str(size)])
    return b.img_bench(tool, fmt, write_args(count, step, b.path("fw.img"), more))


def founding_table(b, fmt):
    """Clusters 64K and 1M, steps 4K, 64K and 1M."""
    count = b.pick(FIRST_WRITES, 64)
    for cluster in ("64K", "1M"):
        for step in STEPS:
            opts = "cluster_size=" + cluster
            cs = b.vs(lambda t: fresh(b, t, fmt, step, opts, count))
            if fmt == "qed":
                cs.append(("byre qcow2", lambda: fresh(b, b.me, "qcow2", step, opts + ",lazy_refcounts=on", count)))
            else:
                cs.append(("raw file", lambda: fresh(b, b.me, "raw", step, "", count)))
            b.row("%sfirst writes: clusters %s, step %s" % ("QED, " if fmt == "qed" else "", cluster, step), "s", False, cs)
    b.drop("fw.img")


@family("first-writes", "15,360 writes of 4 KiB, depth 64, direct, into a fresh image")
def first_writes(b):
    founding_table(b, "qcow2")


@family("first-writes-flush", "the same with a flush after every 16 and every 64 writes, which are in flight together and waited for first")
def first_writes_flush(b):
    count = b.pick(4096, 64)
    for every in (16, 64):
        more = ["--flush-interval=%d" % every, "-d", str(every)]
        cs = b.vs(lambda t: fresh(b, t, "qcow2", "64K", "cluster_size=64K", count, more))
        cs.append(("raw file", lambda: fresh(b, b.me, "raw", "64K", "", count, more)))
        b.row("first writes, a flush every %d: clusters 64K, step 64K" % every, "s", False, cs, Scale("first writes with flushes", "writes between flushes", every))
    b.drop("fw.img")


@family("first-writes-reused", "the same into clusters that another program wrote and discarded before")
def first_writes_reused(b):
    """The free clusters hold old bytes, so what the guest does not write has to be zeroed or written."""
    size = b.pick(512, 4) * MIB
    with open(b.path("old.raw"), "wb") as f:
        for _ in range(size // MIB):
            f.write(os.urandom(MIB))
    for cluster in ("64K", "1M"):
        run(["qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=" + cluster, b.path("old.raw"), b.path("old.qcow2")])
        image = "driver=qcow2,discard=unmap,file.driver=file,file.discard=ignore,file.filename=" + b.path("old.qcow2")      # no holes
        run(["qemu-io", "--image-opts", "-c", "discard 0 %d" % size, image])
        step = cluster
        count = size // STEPS[step]

        def one(tool):
            shutil.copyfile(b.path("old.qcow2"), b.path("fw.img"))
            fd = os.open(b.path("fw.img"), os.O_RDONLY)
            os.fsync(fd)                # what the copy left behind is not to be paid for by whoever runs next
            os.close(fd)
            return b.img_bench(tool, "qcow2", write_args(count, step, b.path("fw.img")))
        b.row("first writes into reused clusters: clusters %s, step %s" % (cluster, step), "s", False, b.vs(one))
    b.drop("fw.img", "old.raw", "old.qcow2")


@family("first-writes-backed", "the same over a backing file that is fully allocated")
def first_writes_backed(b):
    """Every first write copies what surrounds it."""
    size = b.pick(1024, 4)
    run(["dd", "if=/dev/urandom", "of=" + b.path("base.raw"), "bs=1M", "count=%d" % size, "status=none"])
    features = [("clusters 64K", "cluster_size=64K"), ("clusters 1M", "cluster_size=1M"), ("clusters 64K, extended_l2", "cluster_size=64K,extended_l2=on")]
    for what, options in features:
        for step in STEPS:
            count = min(b.pick(FIRST_WRITES, 64), size * MIB // STEPS[step])

            def one(tool):
                b.drop("fw.img")
                run(tool.img + ["create", "-q", "-f", "qcow2", "-b", b.path("base.raw"), "-F", "raw", "-o", options, b.path("fw.img")])
                return b.img_bench(tool, "qcow2", write_args(count, step, b.path("fw.img")))
            b.row("first writes over a backing file: %s, step %s" % (what, step), "s", False, b.vs(one))
    b.drop("fw.img", "base.raw")
