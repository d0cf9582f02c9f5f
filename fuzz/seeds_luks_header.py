#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target luks_header: headers of several suites made by byre, the header of the simulator
(whose key opens at once), and damages of both. Usage: seeds_luks_header.py [FOLDER]. Seeds that are there already stay."""
import pathlib
import re
import struct
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests")]
from lib import run  # noqa: E402

SUITES = ["aes-256,xts,plain64,sha256", "aes-128,cbc,essiv,sha1", "serpent-192,ecb,plain,sha512", "cast5-128,ctr,plain64,ripemd160", "twofish-256,cbc,plain,md5"]
DAMAGES = {"version": (6, b"\0\2"), "mode": (40, b"xts-"), "key-bytes": (108, b"\0\0\0\x21"), "payload": (104, b"\0\0\0\1"), "iterations": (164, bytes(4)),
           "slot-state": (208, b"\0\0\0\1"), "slot-place": (248, b"\xff" * 4), "slot-stripes": (252, b"\xff" * 4), "overlap": (296, b"\0\0\0\2"),
           "huge-iterations": (212, b"\xff" * 4), "uuid": (168, b"\n")}


def of_simulator():
    """The bytes of src/sim/luks.c."""
    text = (TOP / "src/sim/luks.c").read_text()
    head, material = ([int(x, 16) for x in re.findall(r"0x(\w\w)", part)] for part in re.findall(r"\] = \{(.*?)\};", text, re.S))
    return bytes(head).ljust(1024, b"\0") + bytes(material)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else TOP / "fuzz/corpus/luks_header")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {"sim": of_simulator()}
    second = bytearray(seeds["sim"])
    second[256 + 40:256 + 44] = struct.pack(">I", 3)         # slot 1 has a place of its own: a key can be added
    seeds["sim-room"] = bytes(second)
    with tempfile.TemporaryDirectory() as tmp:
        for suite in SUITES:
            cipher, mode, iv, digest = suite.split(",")
            path = pathlib.Path(tmp) / "x"
            run.byre("create", "-q", "--object", "secret,id=s,data=sim", "-f", "luks", "-o",
                     f"key-secret=s,iter-time=0,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={iv},hash-alg={digest}", path, "0")
            seeds[cipher] = path.read_bytes()[:1024]
    for name, (off, data) in DAMAGES.items():
        bad = bytearray(seeds["sim"])
        bad[off:off + len(data)] = data
        seeds[f"bad-{name}"] = bytes(bad)
    seeds["short"] = seeds["sim"][:300]
    for name, data in seeds.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
