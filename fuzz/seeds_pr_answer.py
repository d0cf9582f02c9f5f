#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target pr_answer: answers of helpers for persistent reservations, and lies. Usage: seeds_pr_answer.py [FOLDER]."""
import pathlib
import struct
import sys

GOOD, CHECK, CONFLICT = 0, 2, 0x18
FIXED = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0])
DESCRIPTOR = bytes([0x72, 11, 6, 0])


def answer(status, data=b"", length=None, sense=b"", out=False):
    return bytes([out]) + struct.pack(">II", status, len(data) if length is None else length) + sense.ljust(96, b"\0") + data


def listed(body, generation=1, length=None):
    return struct.pack(">II", generation, len(body) if length is None else length) + body


def registrant(key, transport=b"", length=None):
    return struct.pack(">Q4xBB4xHI", key, 1, 5, 1, len(transport) if length is None else length) + transport


KEYS = struct.pack(">QQ", 1, 1 << 63)
SEEDS = {
    "keys": answer(GOOD, listed(KEYS)), "no-keys": answer(GOOD, listed(b"")), "more-keys": answer(GOOD, listed(KEYS, length=1 << 20)),
    "reservation": answer(GOOD, listed(struct.pack(">Q5xB2x", 1, 5))), "capabilities": answer(GOOD, bytes([0, 8, 0x9D, 0xB1, 0xEA, 1, 0, 0])),
    "status": answer(GOOD, listed(registrant(1, b"transport") + registrant(2))), "status-cut": answer(GOOD, listed(registrant(1)[:-3])),
    "status-lies": answer(GOOD, listed(registrant(1, b"x", 0xFFFFFFFF))), "check": answer(CHECK, sense=FIXED), "check-descriptor": answer(CHECK, sense=DESCRIPTOR),
    "conflict": answer(CONFLICT, out=True), "out": answer(GOOD, out=True), "out-with-data": answer(GOOD, b"data", out=True), "too-much": answer(GOOD, length=8193),
    "huge": answer(GOOD, length=0xFFFFFFFF), "no-status": answer(256), "check-with-data": answer(CHECK, b"data"), "short-data": answer(GOOD, b"\0\0\0"), "cut": answer(GOOD)[:50],
}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus" / "pr_answer")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
