#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target qmp_input: commands as clients send them, and what is none. Usage: seeds_qmp_input.py [FOLDER]."""
import pathlib
import sys

USUAL, SHORT, FLAT, FEW = range(4)


def seed(data, limits=USUAL, piece=1):
    return bytes([limits | (piece - 1) << 2]) + (data if isinstance(data, bytes) else data.encode())


HELLO = '{"execute": "qmp_capabilities"}\n'
ADD = '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "a"}}, "id": 1}'
SEEDS = {
    "hello": seed(HELLO), "two": seed(HELLO + ADD, piece=7), "one-line": seed(ADD + ADD, piece=64), "oob": seed('{"exec-oob": "yank", "id": {"a": [1, null]}}'),
    "spaces": seed(" \r\n\t" + HELLO + "  "), "no-command": seed('{"id": 5}'), "both": seed('{"execute": "a", "exec-oob": "b", "id": 2}'), "name-is-no-text": seed('{"execute": 5}'),
    "arguments-are-a-list": seed('{"execute": "a", "arguments": []}'), "other-member": seed('{"execute": "a", "more": 1, "id": "x"}'), "list": seed("[1, 2]"), "number": seed("12 "),
    "twice": seed('{"execute": "a", "execute": "b"}'), "escapes": seed(r'{"execute": "\u0061\n\"\\", "id": "\ud83d\ude00"}'), "half-a-pair": seed(r'{"execute": "a", "id": "\ud83d"}'),
    "zero-in-text": seed(r'{"execute": "a\u0000b"}'), "not-utf8": seed(b'{"execute": "\xff\xfe"}\n' + HELLO.encode()), "zero-byte": seed(b'{"exe\0cute": 1}\n' + HELLO.encode()),
    "bad-then-good": seed("}]\n" + HELLO, piece=2), "quote-left-open": seed('{"execute": "a\n' + HELLO), "brackets-cross": seed("{[}]\n" + HELLO), "single-quotes": seed("{'execute': 'a'}"),
    "too-long": seed('{"execute": "' + "a" * 100 + '"}', SHORT, 3), "just-fits": seed('{"execute": "' + "a" * 49 + '"}', SHORT), "too-deep": seed('{"execute": "a", "arguments": {"b": {"c": {}}}}', FLAT),
    "deep": seed("[" * 64 + "]" * 64), "deeper": seed("[" * 65 + "]" * 65), "too-many": seed('{"execute": "a", "arguments": {"b": [1, 2, 3, 4]}}', FEW),
    "numbers": seed('{"execute": "a", "id": [0, -1, 1e3, 9223372036854775807, 0.1]}'), "number-too-large": seed('{"execute": "a", "id": 9223372036854775808}'), "large-real": seed('{"execute": "a", "id": 1e999}'),
    "reset": seed(b"\xff" + HELLO.encode()), "cut": seed(ADD[:40]), "nothing": seed(""),
}


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus" / "qmp_input")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
