#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target qcow2_open: small images of many geometries made by qemu-img, and the
damages of tests/interop/q2_damage.py. Usage: seeds_qcow2_open.py [FOLDER]. Seeds that are there already stay."""
import pathlib
import shutil
import struct
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests" / "interop"), str(TOP / "tools" / "ref")]
import q2_damage  # noqa: E402
from lib import corrupt, images, run  # noqa: E402

SMALL = 24 << 10


def tiny(path, size="64k", **options):
    """512-byte clusters: a page of data, zero clusters, two snapshots, compressed clusters where they are possible."""
    images.create(path, size, **{"cluster_size": 512, **options})
    v3 = options.get("compat") != "0.10"
    run.qemu_io(path, "write -P 1 0 3k", "write -P 2 40k 1k", *(["write -z 2k 512"] if v3 else []))
    if options.get("refcount_bits", 16) > 1:
        run.qemu_img("snapshot", "-c", "one", path)
        run.qemu_io(path, "write -P 3 512 1k")
        run.qemu_img("snapshot", "-c", "two", path)
        step = options.get("cluster_size", 512)
        for i in range(3):
            run.qemu_io(path, f"write -c -P {i} {20480 + i * step} {step}")
    return path


def healthy(folder):
    for bits in (1, 2, 8, 16, 64):
        tiny(folder / f"refcount-{bits}", refcount_bits=bits)
    tiny(folder / "v2", compat="0.10")
    tiny(folder / "zstd", compression_type="zstd", cluster_size=1024)
    tiny(folder / "lazy", lazy_refcounts=True)
    images.create(folder / "backing", "64k", cluster_size=512, backing="base.raw", backing_fmt="raw", **{})
    images.create(folder / "prealloc", "8k", cluster_size=512, preallocation="metadata")
    maps = images.create(folder / "bitmaps", "64k", cluster_size=512)
    for name in ("b0", "b1"):
        run.qemu_img("bitmap", "--add", "-g", "512", maps, name)
    run.qemu_io(maps, "write -P 1 0 2k")
    images.create(folder / "empty", "0", cluster_size=512)


def damaged(folder):
    """Every damage, applied to images of 512-byte clusters."""
    base = tiny(folder / "base")
    maps = folder / "bitmaps"
    for name, (kind, fn) in q2_damage.DAMAGES.items():
        if kind not in ("rich", "maps"):
            continue
        path = folder / ("damage-" + name.split("@")[0])
        shutil.copy(maps if kind == "maps" else base, path)
        try:
            with corrupt.Editor(path) as editor:
                fn(editor)
        except (AssertionError, OSError, StopIteration, ValueError, struct.error):
            path.unlink()                       # needs something that the small image does not have


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else TOP / "fuzz" / "corpus" / "qcow2_open")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        images.raw_file(folder / "base.raw", 65536)
        healthy(folder)
        damaged(folder)
        for path in sorted(folder.iterdir()):
            if path.name != "base.raw" and path.stat().st_size <= SMALL and not (target / path.name).exists():
                shutil.copy(path, target / path.name)


main()
