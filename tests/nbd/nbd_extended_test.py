# SPDX-License-Identifier: MIT
"""Extended headers: no client in Debian 12 speaks them, so the raw client does."""
import struct

import pytest
import rawnbd as raw

G4 = 1 << 32
BIG = 1 << 62
EDGES = [G4 - 512, G4 - 1, G4, G4 + 1, G4 + 512, BIG - 512]


def enter(server, name="disk0", contexts=()):
    return raw.Client(server.socket).enter(name, "extended", contexts)


def test_all_commands(server):
    with enter(server) as c:
        assert c.write(4096, b"e" * 8192) == 0
        assert c.read(0, 16384) == bytes(4096) + b"e" * 8192 + bytes(4096)
        assert c.request(raw.FLUSH)[0] == 0
        assert c.request(raw.ZEROES, 4096, 4096, raw.NO_HOLE | raw.FUA)[0] == 0
        assert c.request(raw.TRIM, 0, 1 << 20)[0] == 0
        assert c.request(raw.CACHE, 0, 1 << 20)[0] == 0
        assert c.read(0, 16384) == bytes(16384)
        assert c.write(0, b"f" * 512, raw.FUA) == 0
        assert c.disconnect()


def test_every_reply_is_extended_and_names_the_offset(server):
    with enter(server) as c:
        for kind, offset, length in ((raw.READ, 512, 4096), (raw.FLUSH, 0, 0), (raw.TRIM, 1024, 65536), (raw.READ, 1 << 63, 512)):
            cookie = c.say(kind, offset, length)
            what, _, echo, off, n = c.reply_head()
            assert (what, echo, off) == ("chunk", cookie, offset)
            c.recv(n)


@pytest.mark.parametrize("length", EDGES)
def test_ranges_of_64_bits(server, length):
    with enter(server, "big", ["base:allocation", "qemu:allocation-depth"]) as c:
        for kind, flags in ((raw.ZEROES, 0), (raw.ZEROES, raw.FAST_ZERO), (raw.TRIM, 0), (raw.CACHE, 0)):
            if (kind == raw.TRIM or flags == 0) and length > 1 << 40:
                continue                                    # would be done in steps of 128 MiB
            assert c.request(kind, 512, length, flags)[0] == 0
        assert c.status(0, length) == {0: [(length, 3)]}
        assert c.status(512, length, raw.REQ_ONE) == {0: [(length, 3)]}
        assert c.request(raw.ZEROES, BIG - length + 1, length)[0] == raw.ENOSPC
        assert c.request(raw.TRIM, BIG - length + 1, length)[0] == raw.EINVAL
        assert c.request(raw.STATUS, BIG - length + 1, length)[0] == raw.EINVAL
        assert c.request(raw.ZEROES, 512, (1 << 64) - 512)[0] == raw.ENOSPC
        assert c.request(raw.READ, 0, length)[0] == raw.EINVAL
        assert c.request(raw.READ, 0, length, raw.DF)[0] == raw.EOVERFLOW
        assert c.request(raw.READ, 512, (1 << 64) - 512, raw.DF)[0] == raw.EINVAL


def test_write_needs_the_payload_flag(server):
    with enter(server) as c:
        cookie = c.say(raw.WRITE, 0, 4096)                  # no flag: no payload follows
        assert c.reply(cookie)[0] == raw.EINVAL
        assert c.write(0, b"ok" * 256) == 0


@pytest.mark.parametrize("kind", [raw.READ, raw.FLUSH, raw.TRIM, raw.CACHE, raw.ZEROES, 8, 0xFFFF])
def test_unexpected_payload_is_skipped(server, kind):
    with enter(server) as c:
        c.send(c.header(kind, 0, 70000, raw.PAYLOAD_LEN) + bytes(70000))
        assert c.reply(c.cookie)[0] == raw.EINVAL
        assert c.read(0, 512) == bytes(512)


def test_payload_longer_than_the_limit_ends_the_connection(server):
    for length in ((32 << 20) + 1, G4, G4 + 512, 1 << 63):
        with enter(server) as c:
            c.send(c.header(raw.WRITE, 0, length, raw.PAYLOAD_LEN))
            assert c.at_end()


def test_longest_payload(server):
    with enter(server) as c:
        data = bytes(range(256)) * (32 << 12)
        assert len(data) == 32 << 20 and c.write(4096, data) == 0
        assert c.read(4096, len(data)) == data


def status_with(c, offset, length, ids):
    body = struct.pack(f">Q{len(ids)}I", length, *ids)
    c.send(c.header(raw.STATUS, offset, len(body), raw.PAYLOAD_LEN) + body)
    return c.reply(c.cookie, 0, offset)


def test_status_payload_chooses_contexts(server):
    contexts = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:even", "qemu:dirty-bitmap:odd"]
    with enter(server, "disk0", contexts) as c:
        assert c.ids == {n: i for i, n in enumerate(contexts)}
        assert set(c.status(0, 1 << 20)) == {0, 1, 2, 3}
        for ids in ([0], [3], [2, 0], [3, 2, 1, 0]):
            error, chunks = status_with(c, 0, 4 << 20, ids)
            assert error == 0 and {x.context for x in chunks} == set(ids)
        for ids in ([4], [0, 0], [0, 1, 0], [0xFFFFFFFF], []):
            assert status_with(c, 0, 4 << 20, ids)[0] == raw.EINVAL
        assert status_with(c, 0, 0, [0])[0] == raw.EINVAL
        assert status_with(c, 512, 64 << 20, [0])[0] == raw.EINVAL
        error, chunks = status_with(c, 0, 4 << 20, [2])
        assert chunks[0].extents == [(1 << 20, 1), (1 << 20, 0)] * 2


def test_status_payload_of_impossible_length_is_skipped(server):
    with enter(server, "disk0", ["base:allocation"]) as c:
        for n in (0, 1, 7, 8, 11, 13, 80, 5000):
            c.send(c.header(raw.STATUS, 0, n, raw.PAYLOAD_LEN) + bytes(n))
            assert c.reply(c.cookie)[0] == raw.EINVAL
        assert c.status(0, 512) == {0: [(512, 3)]}


def test_compact_request_magic_ends_the_connection(server):
    with enter(server) as c:
        c.send(struct.pack(">IHHQQI", 0x25609513, 0, raw.READ, 1, 0, 512) + bytes(4))
        assert c.at_end()


def test_extended_request_magic_in_compact_mode_ends_the_connection(server):
    with raw.Client(server.socket).enter("disk0", "structured") as c:
        c.send(struct.pack(">IHHQQQ", 0x21E41C71, 0, raw.READ, 1, 0, 512))
        assert c.at_end()


def test_many_extents(server):
    with enter(server, "disk0", ["base:allocation"]) as c:
        for i in range(0, 64, 2):
            assert c.write(i * 65536, b"x" * 512) == 0
        found = c.status(0, 64 << 20)[0]
        assert found[:64] == [(65536, 0), (65536, 3)] * 31 + [(65536, 0), ((64 << 20) - 63 * 65536, 3)]
