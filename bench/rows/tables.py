# SPDX-License-Identifier: MIT
"""Work on tables alone: check, snapshots, bitmaps."""
from harness import run
from rows import family


def mapped(b, name, size, options=""):
    """Fully mapped, its data a hole."""
    b.drop(name)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata" + options, b.path(name), size])


@family("check", "time, CPU and peak memory of `check` on images that are fully mapped but hold no data")
def check(b):
    for size, cluster in (("1T", "64K"), ("256G", "16K"), ("1T", "2M")):
        mapped(b, "check.qcow2", b.pick(size, "1G"), ",cluster_size=" + cluster)
        b.row("check of a fully mapped image of %s, clusters %s" % (size, cluster), "ms", False,
              b.vs(lambda t: b.command(t.img + ["check", b.path("check.qcow2")], 1000)))
    b.drop("check.qcow2")


@family("snapshot", "create, apply and delete an internal snapshot of a fully mapped disk of 1 TiB")
def snapshot(b):
    """Each step is done by byre on the way there where it is not the one that is measured."""
    mapped(b, "snap.qcow2", b.pick("1T", "1G"))
    image = b.path("snap.qcow2")

    def step(t, verb, before, after):
        for v in before:
            run(b.me.img + ["snapshot", v, "s", image])
        took = b.command(t.img + ["snapshot", verb, "s", image], 1000)
        for v in after:
            run(b.me.img + ["snapshot", v, "s", image])
        return took
    for what, verb, before, after in (("create", "-c", (), ("-d",)), ("apply", "-a", ("-c",), ("-d",)), ("delete", "-d", ("-c",), ())):
        b.row("snapshot of a fully mapped image of 1T: %s" % what, "ms", False, b.vs(lambda t: step(t, verb, before, after)))
    b.drop("snap.qcow2")


@family("bitmap", "a bitmap of a disk of 1 TiB is loaded, merged into another one and stored")
def bitmap(b):
    """A grain of 4 KiB makes 32 MiB of bits; 1024 of its 512 clusters' halves are marked, so that they are stored as they are."""
    b.drop("bits.qcow2")
    size = b.pick(1 << 40, 1 << 30)
    image = b.path("bits.qcow2")
    run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)])
    run(["qemu-img", "bitmap", "--add", "-g", "4k", image, "marked"])
    step = size // b.pick(1024, 16)
    run(["qemu-io", "-n", "-f", "qcow2"] + sum((["-c", "write -z %d 64k" % o] for o in range(0, size, step)), []) + [image])

    def one(t):
        run(b.me.img + ["bitmap", "--add", "-g", "4k", image, "sum"])
        took = b.command(t.img + ["bitmap", "--merge=marked", image, "sum"], 1000)
        run(b.me.img + ["bitmap", "--remove", image, "sum"])
        return took
    b.row("bitmap of 1T, grain 4K: load, merge, store", "ms", False, b.vs(one))
    b.row("bitmap of 1T, grain 4K: a change of its state", "ms", False,
          b.vs(lambda t: b.command(t.img + ["bitmap", "--disable", "--enable", image, "marked"], 1000)))
    b.drop("bits.qcow2")
