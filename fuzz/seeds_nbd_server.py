#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of the fuzz target nbd_server: every option, every command, and the shapes behind past
security holes of NBD servers. Usage: seeds_nbd_server.py [FOLDER]. Names are stable; a run changes nothing that is
already there with the same content."""
import pathlib
import struct
import sys

OPT = 0x49484156454F5054
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))
TLS, SMALL, SHUTDOWN, REFUSE = 1, 2, 4, 8
G4 = 1 << 32
SIZE = 6 << 30                      # of the export "disk0" that the target offers; also the default export
BIG = (1 << 62) + 4096              # of "big"


def flags(f=3):
    return struct.pack(">I", f)


def option(number, data=b"", length=None):
    return struct.pack(">QII", OPT, number, len(data) if length is None else length) + data


def string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack(">I", len(s)) + s


def info(number, name="", wants=()):
    return option(number, string(name) + struct.pack(f">H{len(wants)}H", len(wants), *wants))


def meta(number, name, *queries):
    return option(number, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


def request(kind, offset=0, length=0, flag=0, cookie=0x1234567):
    return struct.pack(">IHHQQI", 0x25609513, flag, kind, cookie, offset & (1 << 64) - 1, length)


def extended(kind, offset=0, length=0, flag=0, cookie=0x1234567):
    return struct.pack(">IHHQQQ", 0x21E41C71, flag, kind, cookie, offset & (1 << 64) - 1, length & (1 << 64) - 1)


CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0")
SIMPLE = flags() + info(GO, "disk0", [3])
CHUNKS = flags() + option(STRUCTURED) + meta(SET_META, "disk0", *CONTEXTS) + info(GO, "disk0", [3])
EXT = flags() + option(EXTENDED) + meta(SET_META, "disk0", *CONTEXTS) + info(GO, "disk0", [3])
EXT_BIG = flags() + option(EXTENDED) + meta(SET_META, "big", *CONTEXTS[:2]) + info(GO, "big", [3])


def commands(make, payload_flag):
    """One of each command with each flag that fits it."""
    out = b""
    for cookie in (1, 2, 77):
        out += make(READ, 4096, 8192, 0, cookie) + make(READ, 0, 1, FUA, cookie)
        out += make(WRITE, 512, 100, payload_flag, cookie) + b"w" * 100
        out += make(WRITE, 512, 20000, FUA | payload_flag, cookie) + b"W" * 20000
        out += make(FLUSH, 0, 0, FUA, cookie) + make(TRIM, 0, 65536, 0, cookie) + make(CACHE, 0, 65536, 0, cookie)
        out += make(ZEROES, 0, 1 << 31, NO_HOLE | FAST_ZERO | FUA, cookie)
    return out


def cases():
    yield "handshake-greeting-only", 0, b""
    for f in (0, 1, 2, 3, 4, 0xFFFFFFFF):
        yield f"handshake-flags-{f:x}", 0, flags(f) + option(EXPORT_NAME, b"disk0") + request(DISC)
    names = {"export-name": option(EXPORT_NAME, b"disk0"), "export-name-default": option(EXPORT_NAME),
             "export-name-unknown": option(EXPORT_NAME, b"nosuch"), "abort": option(ABORT), "abort-data": option(ABORT, b"why"),
             "list": option(LIST), "list-data": option(LIST, b"x"), "starttls": option(STARTTLS), "starttls-data": option(STARTTLS, b"x"),
             "info": info(INFO, "disk0", [0, 1, 2, 3, 9]), "go": info(GO, "ro", [3]), "go-unknown": info(GO, "nosuch"),
             "structured": option(STRUCTURED), "structured-data": option(STRUCTURED, b"x"), "extended": option(EXTENDED),
             "extended-data": option(EXTENDED, b"xx"), "list-meta": meta(LIST_META, "disk0"),
             "list-meta-wild": meta(LIST_META, "disk0", "base:", "qemu:", "qemu:dirty-bitmap:", "x-y:z"),
             "set-meta": meta(SET_META, "disk0", *CONTEXTS), "set-meta-none": meta(SET_META, "disk0"), "peek": option(4), "unknown": option(0x7F, b"data")}
    for name, data in names.items():
        for before, prefix in (("", b""), ("-structured", option(STRUCTURED)), ("-extended", option(EXTENDED))):
            yield f"option-{name}{before}", 0, flags() + prefix + data + info(GO, "disk0") + request(READ, 0, 512) + request(DISC)
        yield f"option-{name}-tls", TLS, flags() + data + option(STARTTLS) + data + info(GO, "disk0")
        yield f"option-{name}-shutdown", SHUTDOWN, flags() + data + option(LIST)
    yield "commands-simple", 0, SIMPLE + commands(request, 0) + request(DISC)
    yield "commands-structured", 0, CHUNKS + commands(request, 0) + request(STATUS, 0, 1 << 20) + request(DISC)
    yield "commands-extended", 0, EXT + commands(extended, PAYLOAD_LEN) + extended(STATUS, 0, 1 << 20) + extended(DISC)
    yield "commands-shutdown", SHUTDOWN, SIMPLE + commands(request, 0)
    yield "commands-refused-buffers", REFUSE, CHUNKS + commands(request, 0)
    yield "commands-read-only", 0, flags() + option(STRUCTURED) + info(GO, "ro") + commands(request, 0)
    yield "commands-small-limits", SMALL, SIMPLE + request(WRITE, 0, 4097) + b"x" * 4097 + request(READ, 0, 5000) + request(WRITE, 0, 6000)
    yield "commands-aligned", 0, flags() + info(GO, "wheel", [3]) + request(READ, 512, 4096) + request(READ, 4096, 4096)
    for piece in (1, 2, 5):
        yield f"commands-pieces-{1 << piece}", piece << 4, CHUNKS + commands(request, 0) + request(DISC)
    for kind in range(9):
        for bit in range(16):
            yield f"flags-{kind}-{bit:02}", 0, EXT + extended(kind, 0, 512, 1 << bit) + b"p" * 512 + extended(FLUSH)
    yield "flags-unfragmented", 0, CHUNKS + request(READ, 0, 65536, DF) + request(READ, 0, (32 << 20) + 1, DF)
    for cookie in (1, 2, 3, 1000, 4063):
        yield f"status-{cookie}", 0, CHUNKS + request(STATUS, 0, 0xFFFFFFFF, 0, cookie) + request(STATUS, 0, 0x10000, REQ_ONE, cookie)
        yield f"status-extended-{cookie}", 0, EXT_BIG + extended(STATUS, 0, BIG, 0, cookie) + extended(STATUS, 512, 512, REQ_ONE, cookie)
    for ids in ((0,), (1, 0), (0, 0), (9,), (0xFFFFFFFF,), ()):
        body = struct.pack(f">Q{len(ids)}I", 1 << 40, *ids)
        yield "status-payload-" + "-".join(map(str, ids or ["none"])), 0, EXT_BIG + extended(STATUS, 0, len(body), PAYLOAD_LEN) + body + extended(FLUSH)
    for length in (0, 1, 8, 11, 76, 5000):
        yield f"status-payload-length-{length}", 0, EXT_BIG + extended(STATUS, 0, length, PAYLOAD_LEN) + b"\0" * length + extended(FLUSH)
    for at in (SIZE - 512, SIZE - 1, SIZE, G4 - 512, G4, (1 << 63) - 512, (1 << 64) - 512, (1 << 64) - 1):
        for length in (1, 512, 513, 0xFFFFFFFF):
            yield f"range-{at:x}-{length:x}", 0, CHUNKS + b"".join(request(k, at, length) for k in (READ, TRIM, CACHE, ZEROES, STATUS))
    for length in (G4 - 512, G4 - 1, G4, G4 + 512, BIG, BIG + 512, (1 << 64) - 512, (1 << 64) - 1):
        yield f"range64-{length:x}", 0, EXT_BIG + b"".join(extended(k, o, length) for k in (READ, TRIM, CACHE, ZEROES, STATUS) for o in (0, 512))
    yield from past_holes()


def past_holes():
    """Inputs of the kind behind published weaknesses of NBD servers."""
    yield "cve-2005-3534-write-longer-than-buffer", 0, SIMPLE + request(WRITE, 0, 0xFFFFFFFF) + b"A" * 70000
    yield "cve-2011-0530-read-longer-than-buffer", 0, SIMPLE + request(READ, 0, 0xFFFFFFFF) + request(READ, 0, 0x80000000)
    yield "cve-2013-7441-gone-in-negotiation", 0, flags()[:2]
    yield "cve-2013-7441-unknown-export", 0, flags() + option(EXPORT_NAME, b"nosuch")
    yield "cve-2017-7539-port-scan", 0, b"GET / HTTP/1.0\r\n\r\n"
    yield "cve-2017-7539-half-option", 0, flags() + option(LIST)[:11]
    yield "cve-2017-9524-garbage-option", 0, flags() + b"\xff" * 64
    yield "cve-2017-10664-gone-in-reply", 0, CHUNKS + request(READ, 0, 1 << 20) * 8
    yield "cve-2017-15118-long-name", 0, flags() + option(EXPORT_NAME, b"n" * 4096)
    yield "cve-2017-15118-long-name-info", 0, flags() + info(INFO, "n" * 4096) + info(GO, "n" * 4097) + option(EXPORT_NAME, b"n" * 4097)
    yield "cve-2017-15119-option-of-4-gib", 0, flags() + option(0x7F, b"x" * 1000, 0xFFFFFFFF)
    yield "cve-2017-15119-option-at-the-limit", 0, flags() + option(0x7F, b"x" * 65536) + option(LIST, b"x" * 65537)
    yield "cve-2020-10761-error-text-near-limit", 0, flags() + info(GO, "e" * 4096) + meta(SET_META, "e" * 4096, "q" * 4096)
    yield "cve-2024-7409-silent-client", 0, flags() + option(LIST)[:16]
    yield "cve-2019-14850-open-before-tls", TLS, flags() + info(GO, "disk0") + request(READ, 0, 512)
    yield "cve-2019-14850-export-name-before-tls", TLS, flags() + option(EXPORT_NAME, b"disk0") + request(READ, 0, 512)
    yield "cve-2019-14851-options-out-of-order", 0, flags() + meta(SET_META, "disk0", *CONTEXTS) + info(INFO, "ro") + option(STRUCTURED) + info(GO, "disk0") + request(STATUS, 0, 512)
    for name, injected in (("structured", option(STRUCTURED)), ("extended", option(EXTENDED)),
                           ("contexts", option(STRUCTURED) + meta(SET_META, "disk0", *CONTEXTS)), ("info", info(INFO, "disk0"))):
        yield f"cve-2021-3716-injected-{name}", TLS, flags() + injected + option(STARTTLS) + injected
        yield f"cve-2021-3716-injected-{name}-cut", TLS | 4 << 4, flags() + injected + option(STARTTLS) + info(GO, "disk0") + request(READ, 0, 512)
    for length in (G4 - 512, G4 - 1, 0x80000000, 0xFFFFFE00):
        yield f"cve-2025-47711-status-{length:x}", 0, CHUNKS + request(STATUS, 0, length & 0xFFFFFFFF) + request(STATUS, 512, length & 0xFFFFFFFF, REQ_ONE)
    for length in (G4, G4 + 512, BIG):
        yield f"cve-2025-47712-status-{length:x}", 0, EXT_BIG + extended(STATUS, 0, length) + extended(STATUS, 0, length, REQ_ONE)
    yield "cve-2022-26495-name-length-wraps", 0, flags() + option(GO, struct.pack(">I", 0xFFFFFFFF) + b"disk0\0\0") + option(INFO, struct.pack(">I", 0xFFFFFFFA) + b"disk0\0\0")
    yield "cve-2022-26496-name-on-stack", 0, flags() + info(INFO, "s" * 60000) + info(GO, "s" * 1025)
    yield "cve-2022-26495-meta-lengths", 0, flags() + option(STRUCTURED) + option(SET_META, string("disk0") + struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF)) + \
        option(LIST_META, struct.pack(">I", 0xFFFFFFFF)) + option(LIST_META, string("disk0") + struct.pack(">II", 1, 4097) + b"q" * 4097)
    yield "cve-2023-5215-size-above-2-63", 0, EXT_BIG + extended(READ, 1 << 63, 512) + extended(ZEROES, (1 << 63) - 512, 1 << 63)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpus/nbd_server")
    folder.mkdir(parents=True, exist_ok=True)
    seen = {}
    for name, control, stream in cases():
        content = bytes([control]) + stream
        if seen.setdefault(content, name) != name:
            continue                        # the same input under two names is one seed
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    print(f"{len(seen)} seeds in {folder}")


if __name__ == "__main__":
    main()
