#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target nbd_complaint: answers that are complaints, of both kinds, and what looks like one. Usage: seeds_nbd_complaint.py [FOLDER]."""
import pathlib
import struct
import sys

CHUNK, CHUNK_EXT, SIMPLE = 0x668E33EF, 0x6E8A278C, 0x67446698
ERROR, ERROR_OFFSET = 0x8001, 0x8002


def answer(kind, body, magic=CHUNK, length=None, cookie=7):
    length = len(body) if length is None else length
    middle = struct.pack(">QQ", 4096, length) if magic == CHUNK_EXT else struct.pack(">I", length)
    return struct.pack(">IHHQ", magic, 1, kind, cookie) + middle + body


def text(words, length=None):
    return struct.pack(">IH", 5, len(words) if length is None else length) + words


SEEDS = {
    "plain": answer(ERROR, text(b"no space left")), "offset": answer(ERROR_OFFSET, text(b"bad sector") + struct.pack(">Q", 512)), "empty": answer(ERROR, text(b"")),
    "extended": answer(ERROR_OFFSET, text(b"bad sector") + struct.pack(">Q", 1 << 62), CHUNK_EXT), "long": answer(ERROR, text(b"x" * 4096)),
    "terminal": answer(ERROR, text(b"\x1b[2J\0\xff")), "later-kind": answer(0x8FFF, text(b"later") + b"more"), "followed": answer(ERROR, text(b"one")) + answer(1, b"data"),
    "data": answer(1, b"\0" * 8 + b"data"), "simple": struct.pack(">IIQ", SIMPLE, 5, 7), "text-too-long": answer(ERROR, text(b"short", 500)),
    "no-offset": answer(ERROR_OFFSET, text(b"bad")), "huge": answer(ERROR, text(b"huge"), length=0xFFFFFFFF), "huge-extended": answer(ERROR, text(b"huge"), CHUNK_EXT, (1 << 64) - 1),
    "no-body": answer(ERROR, b""), "cut-head": answer(ERROR, b"")[:13], "cut-body": answer(ERROR, text(b"cut off"))[:-3],
}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus" / "nbd_complaint")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
