#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target qed_open: an image written by qemu-img, one with tables of one cluster, one with a
backing file, and every damage of tests/lib/qed.py. Usage: seeds_qed_open.py [FOLDER]. Seeds that are there already stay."""
import pathlib
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tools" / "ref")]
from lib import images, qed, run  # noqa: E402


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else TOP / "fuzz" / "corpus" / "qed_open")
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "peer").exists():
        images.create(target / "peer", "64M", fmt="qed", cluster_size=4096, table_size=2)
        run.qemu_io(target / "peer", "write -P 1 8k 4k", "write -z 16k 8k", "write -P 2 40M 512", fmt="qed")
    made = {"one-cluster-tables": qed.Builder(table_size=1, data=1), "header-of-two": qed.Builder(data=1, header_size=1),
            "backing": qed.Builder(data=1, features=5, backing_off=64, backing_len=8).put(64, b"base.raw")}
    for name, damage in qed.DAMAGES.items():
        b = qed.Builder(data=2 if name == "need_check" else 3)
        damage(b)
        made["damage-" + name] = b
    for name, b in made.items():
        if not (target / name).exists():
            b.write(target / name)


main()
