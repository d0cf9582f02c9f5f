#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target qcow2_ops: for every kind of geometry a few lists of steps, with and without a fault.
Usage: seeds_qcow2_ops.py [FOLDER]. Seeds that are there already stay."""
import pathlib
import random
import sys

KINDS = {"plain": 0, "sub": 1, "luks": 2, "data": 3, "lazy": 4, "luks-sub": 6}


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent / "corpus" / "qcow2_ops")
    target.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        for backing in (0, 1):
            for fault in range(6):
                rng = random.Random(f"{name} {backing} {fault}")
                head = [rng.choice([0, 3, 7]) | rng.randrange(16) << 3, kind << 5 | rng.choice([0, 1, 5, 7]) << 2 | backing << 1,
                        rng.randrange(32), rng.randrange(5), rng.randrange(12) | rng.choice([0, 0x40]) | (0x80 if fault else 0), rng.randrange(12), rng.randrange(256)]
                steps = [rng.choice([rng.randrange(16), rng.randrange(16), 0x80 | rng.randrange(8) << 4]) if i % 3 == 0 else rng.randrange(256)
                         for i in range(3 * rng.randrange(6, 16))]
                path = target / f"{name}-{'backing-' if backing else ''}{fault}"
                if not path.exists():
                    path.write_bytes(bytes(head + steps))


main()
