# SPDX-License-Identifier: MIT
"""The handshake over real sockets. The unit tests of proto/nbd go through every option in every state; here it is
shown that the server around the codec answers, ends and limits as it should."""
import struct
import time

import pytest
import rawnbd as raw


def connect(server):
    return raw.Client(server.socket)


def test_greeting_offers_fixed_newstyle_and_no_zeroes(server):
    with connect(server) as c:
        assert c.greet() == 3


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flags_end_the_connection(server, flags):
    with connect(server) as c:
        c.greet(flags)
        assert c.at_end()


@pytest.mark.parametrize("flags,padding", [(0, 124), (1, 124), (2, 0), (3, 0)])
def test_export_name(server, flags, padding):
    with connect(server) as c:
        c.greet(flags)
        c.say_option(raw.EXPORT_NAME, b"ro")
        size, transmission = struct.unpack(">QH", c.recv(10))
        assert size == 16 << 20 and transmission & raw.TRANSMISSION["READ_ONLY"]
        assert c.recv(padding) == bytes(padding)
        assert c.read(0, 512) == bytes(512)


def test_export_name_that_does_not_exist_closes(server):
    with connect(server) as c:
        c.greet()
        c.say_option(raw.EXPORT_NAME, b"nosuch")
        assert c.at_end()


def test_every_option_in_one_handshake(server):
    with connect(server) as c:
        c.greet()
        assert c.option(0x7F, b"what?")[-1][0] == raw.ERR_UNSUP
        assert c.option(raw.STARTTLS)[-1][0] == raw.ERR_POLICY
        listed = c.option(raw.LIST)
        names = [d[4:4 + struct.unpack(">I", d[:4])[0]].decode() for k, d in listed if k == raw.REP_SERVER]
        assert names == ["disk0", "ro", "big", "err", "slow", "block4k"]
        assert listed[0][1].endswith(b"a disk in memory")
        assert c.contexts(raw.SET_META, "disk0", ["base:allocation"]) == ({}, raw.ERR_INVALID)
        assert c.option(raw.STRUCTURED)[-1][0] == raw.REP_ACK
        everything = {"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:even", "qemu:dirty-bitmap:odd"}
        assert set(c.contexts(raw.LIST_META, "disk0", [])[0]) == everything
        assert set(c.contexts(raw.LIST_META, "ro", [])[0]) == {"base:allocation"}
        assert c.contexts(raw.SET_META, "disk0", sorted(everything)) == \
            ({"base:allocation": 0, "qemu:allocation-depth": 1, "qemu:dirty-bitmap:even": 2, "qemu:dirty-bitmap:odd": 3}, raw.REP_ACK)
        assert c.info(raw.INFO, "nosuch")[1] == raw.ERR_UNKNOWN
        found, kind = c.info(raw.INFO, "", [1, 2, 3])
        assert kind == raw.REP_ACK and found[1] == b"disk0" and found[2] == b"a disk in memory"
        assert struct.unpack(">III", found[3]) == (1, 4096, 32 << 20)
        assert c.option(raw.EXTENDED)[-1][0] == raw.REP_ACK
        assert c.option(raw.STRUCTURED)[-1][0] == raw.ERR_EXT
        assert c.info(raw.GO, "disk0")[1] == raw.REP_ACK
        c.mode = "extended"
        assert c.read(0, 4096) == bytes(4096)


def test_abort_is_acknowledged_and_closes(server):
    with connect(server) as c:
        c.greet()
        assert c.option(raw.ABORT, b"bye")[-1][0] == raw.REP_ACK
        assert c.at_end()


def test_transmission_flags(server):
    always = {"HAS_FLAGS", "FLUSH", "FUA", "CACHE", "MULTI_CONN"}
    for mode, more in (("simple", set()), ("structured", {"DF"}), ("extended", {"DF"})):
        for name, own in (("disk0", {"TRIM", "ZEROES", "FAST_ZERO"}), ("ro", {"READ_ONLY"})):
            with connect(server) as c:
                c.enter(name, mode)
                assert {n for n, bit in raw.TRANSMISSION.items() if c.flags & bit} == always | more | own
    with connect(server) as c:
        c.enter("disk0", "extended", ["base:allocation"])
        assert c.flags & raw.TRANSMISSION["STATUS_PAYLOAD"]


def test_one_connection_at_a_time_means_no_multi_conn(start):
    with connect(start("--connections", 1)) as c:
        c.enter()
        assert not c.flags & raw.TRANSMISSION["MULTI_CONN"]


def test_option_data_limit(server):
    with connect(server) as c:
        c.greet()
        assert c.option(0x7F, bytes(65536))[-1][0] == raw.ERR_UNSUP
        c.say_option(0x7F, b"", 65537)
        assert c.at_end()
    with connect(server) as c:
        c.greet()
        c.say_option(raw.EXPORT_NAME, b"x", 0xFFFFFFFF)
        assert c.at_end()


def test_option_count_limit(server):
    with connect(server) as c:
        c.greet()
        for _ in range(64):
            c.send(struct.pack(">QII", raw.OPT, 0x7F, 0) * 1024)       # 65536 in all; as many answers fit into the socket
            for _ in range(1024):
                assert c.option_reply(0x7F)[0] == raw.ERR_UNSUP
        c.say_option(0x7F)
        assert c.at_end()


def test_options_may_arrive_byte_by_byte_or_all_at_once(server):
    stream = struct.pack(">I", 3) + struct.pack(">QII", raw.OPT, raw.STRUCTURED, 0) + \
        struct.pack(">QII", raw.OPT, raw.GO, 11) + raw.Client.info_data("disk0")
    request = struct.pack(">IHHQQI", 0x25609513, 0, raw.READ, 77, 0, 512)
    for step in (1, len(stream + request)):
        with connect(server) as c:
            c.mode = "structured"
            c.recv(18)
            for i in range(0, len(stream + request), step):
                c.send((stream + request)[i:i + step])
            assert c.option_reply(raw.STRUCTURED)[0] == raw.REP_ACK
            while c.option_reply(raw.GO)[0] != raw.REP_ACK:
                pass
            error, chunks = c.reply(77, 512)
            assert error == 0 and chunks[0].kind == raw.T_HOLE and chunks[0].length == 512


def test_handshake_time_limit(start):
    server = start("--handshake-ms", 3000)
    began = time.monotonic()
    with connect(server) as idle, connect(server) as half, connect(server) as busy, connect(server) as ready:
        half.send(struct.pack(">I", 3) + b"IHAVE")
        ready.enter()
        busy.greet()
        with pytest.raises((raw.Closed, ConnectionError)):      # lively, but never done
            while time.monotonic() < began + 30:
                busy.option(raw.LIST)
                time.sleep(0.1)
        assert 2.9 < time.monotonic() - began < 30
        idle.recv(18)
        assert idle.at_end()
        half.recv(18)
        assert half.at_end()
        time.sleep(0.3)
        assert ready.read(0, 512) == bytes(512)                  # the limit is gone once the handshake is over


def test_no_handshake_time_limit(start):
    with connect(start("--handshake-ms", 0)) as c:
        c.recv(18)
        c.sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            c.sock.recv(1)


def test_a_client_that_goes_away_at_any_byte_harms_nobody(server):
    stream = struct.pack(">I", 3) + struct.pack(">QII", raw.OPT, raw.EXTENDED, 0) + \
        struct.pack(">QII", raw.OPT, raw.SET_META, 32) + raw.Client.meta_data("disk0", ["base:allocation"]) + \
        struct.pack(">QII", raw.OPT, raw.GO, 11) + raw.Client.info_data("disk0")
    with connect(server) as witness:
        witness.enter()
        before = server.fds()
        for n in range(len(stream) + 1):
            with connect(server) as c:
                c.send(stream[:n])
            if n % 20 == 0:
                assert witness.read(4096, 512) == bytes(512)
        deadline = time.monotonic() + 10
        while server.fds() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.fds() == before
