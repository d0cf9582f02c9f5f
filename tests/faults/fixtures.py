#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""fixtures.py DIR: first images of the crash explorer that need another program's hand: an internal snapshot with shared
clusters and a shared L2 table, compressed clusters that share host clusters, free clusters inside the file."""
import os
import random
import subprocess
import sys


def run(*cmd):
    subprocess.run(cmd, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def qemu_io(path, *commands):
    run("qemu-io", "-f", "qcow2", "-d", "unmap", *[x for c in commands for x in ("-c", c)], path)


def create(path, **options):
    o = ",".join("%s=%s" % kv for kv in dict({"cluster_size": 4096}, **options).items())
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, path, "131072")


def snapshot(path):
    create(path)
    qemu_io(path, "write -P 17 0 40k", "write -P 18 64k 24k")
    run("qemu-img", "snapshot", "-c", "before", path)
    qemu_io(path, "write -P 19 8k 8k")
    run("qemu-img", "snapshot", "-c", "again", path)


def bitmap(path):
    create(path)
    run("qemu-img", "bitmap", "--add", path, "b0")
    qemu_io(path, "write -P 23 0 20k")


def counts(path):
    """512-byte clusters and 64-bit counts: a little more and the refcount table itself must grow (at 2 MiB of file)."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", path, "2M")
    qemu_io(path, "write -P 29 0 1500k", "discard 64k 1400k")


def compressed(path):
    raw = path + ".raw"
    rng = random.Random(5)
    with open(raw, "wb") as f:
        for i in range(32):                      # compresses to roughly a third: several share a host cluster
            f.write(bytes(rng.randrange(256) if j % 3 == 0 else i for j in range(4096)))
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096", raw, path)
    os.unlink(raw)


def holes(path):
    create(path)
    qemu_io(path, "write -P 33 0 128k", "discard 0 16k", "discard 40k 8k", "discard 100k 12k")


def garbage(path):
    """Free clusters inside the file that are full of old bytes, and room for new L2 tables."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "262144")
    run("qemu-io", "-c", "write -P 171 0 64k", "-c", "discard 0 64k", "--image-opts",
        "driver=qcow2,discard=unmap,pass-discard-request=off,file.filename=" + path)


def main():
    d = sys.argv[1]
    os.makedirs(d, exist_ok=True)
    for make in (snapshot, compressed, bitmap, garbage, counts, holes):
        make(os.path.join(d, make.__name__ + ".qcow2"))


if __name__ == "__main__":
    main()
