# SPDX-License-Identifier: MIT
"""Commands through libnbd, which checks every reply on its own."""
import os

import pytest
from lib import peers

nbd = peers.need_module("nbd")
MIB = 1 << 20
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95


def connect(server, export="", structured=True, contexts=(), strict=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    for c in contexts:
        h.add_meta_context(c)
    if not strict:
        h.set_strict_mode(0)
    h.connect_uri(server.uri(export))
    return h


def error_of(call, *args):
    with pytest.raises(nbd.Error) as e:
        call(*args)
    return e.value.errnum


@pytest.fixture(params=[True, False], ids=["structured", "simple"])
def h(server, request):
    handle = connect(server, structured=request.param)
    yield handle
    handle.shutdown()


def test_write_then_read(h):
    for offset, length in ((0, 512), (1, 1), (65535, 2), (MIB - 7, 3 * MIB + 11), (64 * MIB - 1, 1), (32 * MIB, 32 * MIB)):
        data = os.urandom(min(length, MIB)) * (length // MIB + 1)
        data = data[:length]
        h.pwrite(data, offset)
        assert h.pread(length, offset) == data


def test_zero_trim_cache_flush(h):
    h.pwrite(b"x" * MIB, 0)
    h.zero(4096, 4096)
    assert h.pread(3 * 4096, 0) == b"x" * 4096 + bytes(4096) + b"x" * 4096
    h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(65536, 65536) == bytes(65536)
    h.trim(65536, 131072)
    assert h.pread(65536, 131072) == bytes(65536)
    h.cache(MIB, 0)
    h.flush()
    h.zero(32 * MIB, 16 * MIB, nbd.CMD_FLAG_FAST_ZERO)


def test_fua_on_every_command(server):
    h = connect(server)
    h.pwrite(b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
    h.zero(4096, 8192, nbd.CMD_FLAG_FUA)
    h.trim(4096, 16384, nbd.CMD_FLAG_FUA)
    assert server.alive()
    h.set_strict_mode(0)
    assert h.pread(4096, 0, nbd.CMD_FLAG_FUA) == b"f" * 4096
    h.flush(nbd.CMD_FLAG_FUA)
    h.cache(4096, 0, nbd.CMD_FLAG_FUA)
    h.shutdown()
    assert server.stop() == 5            # the write, the zero, the trim, the read and the flush, each made durable


def test_errors_follow_the_protocol(server):
    end = 64 * MIB
    for structured in (True, False):
        rw, ro = connect(server, "disk0", structured, strict=False), connect(server, "ro", structured, strict=False)
        assert error_of(ro.pwrite, b"x" * 512, 0) == EPERM
        assert error_of(ro.zero, 512, 0) == EPERM
        assert error_of(ro.trim, 512, 0) == EPERM
        assert error_of(ro.pwrite, b"x" * 512, 16 * MIB) == EPERM
        assert error_of(rw.pwrite, b"x" * 1024, end - 512) == ENOSPC
        assert error_of(rw.zero, 1024, end - 512) == ENOSPC
        assert error_of(rw.pread, 1024, end - 512) == EINVAL
        assert error_of(rw.trim, 1024, end - 512) == EINVAL
        assert error_of(rw.cache, 1024, end - 512) == EINVAL
        assert error_of(rw.pread, 512, (1 << 63) - 512) == EINVAL
        assert error_of(rw.pwrite, b"x" * 512, (1 << 63) - 512) == ENOSPC
        assert error_of(rw.pread, 512, 0, 1 << 9) == EINVAL
        assert error_of(rw.pwrite, b"x", 0, nbd.CMD_FLAG_NO_HOLE) == EINVAL
        assert error_of(rw.flush, nbd.CMD_FLAG_FAST_ZERO) == EINVAL
        assert error_of(rw.pread, 33 * MIB, 0) == EINVAL
        assert rw.pread(512, 0) == bytes(512)             # and the connection lives on
        rw.shutdown()
        ro.shutdown()


def test_errors_of_the_disk(server):
    for structured in (True, False):
        h = connect(server, "err", structured)
        assert h.pread(MIB, 0) == bytes(MIB)
        assert error_of(h.pread, 4096, MIB) == EIO
        assert error_of(h.pread, MIB, MIB - 4096) == EIO
        assert error_of(h.pwrite, b"x" * 512, MIB) == ENOSPC
        assert error_of(h.flush) == EIO
        assert error_of(h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO) == ENOTSUP
        h.zero(512, 0)
        h.shutdown()


def test_error_offset_in_a_long_read(server):
    """The part before the fault is delivered, the fault is placed."""
    h = connect(server, "err")
    h.pwrite(b"d" * 65536, MIB - 65536)
    seen = []

    def chunk(data, offset, status, error):
        seen.append((offset, len(data), status, error.value))
        return 0

    buf = bytearray(MIB)
    with pytest.raises(nbd.Error):
        h.pread_structured(len(buf), MIB // 2, chunk)
    holes = [s for s in seen if s[2] == nbd.READ_HOLE]
    faults = [s for s in seen if s[2] == nbd.READ_ERROR]
    assert holes and holes[0][0] == MIB // 2
    assert len(faults) == 1 and MIB // 2 < faults[0][0] <= MIB and faults[0][3] == EIO
    h.shutdown()


def test_structured_reads_show_holes(server):
    h = connect(server)
    h.pwrite(b"a" * 65536, 2 * 65536)
    seen = []

    def chunk(data, offset, status, error):
        seen.append((offset, len(data), status))
        return 0

    data = h.pread_structured(6 * 65536, 0, chunk)
    assert data == bytes(2 * 65536) + b"a" * 65536 + bytes(3 * 65536)
    assert seen == [(0, 2 * 65536, nbd.READ_HOLE), (2 * 65536, 65536, nbd.READ_DATA), (3 * 65536, 3 * 65536, nbd.READ_HOLE)]
    del seen[:]
    h.pread_structured(4096, 0, chunk)
    assert seen == [(0, 4096, nbd.READ_HOLE)]
    del seen[:]
    data = h.pread_structured(6 * 65536, 0, chunk, nbd.CMD_FLAG_DF)
    assert seen == [(0, 6 * 65536, nbd.READ_DATA)] and data[2 * 65536:3 * 65536] == b"a" * 65536
    h.shutdown()


def test_a_read_of_many_pieces(server):
    h = connect(server)
    want = b""
    for i in range(64):
        piece = (b"%02d" % i) * 32768 if i % 2 else bytes(65536)
        if i % 2:
            h.pwrite(piece, i * 65536)
        want += piece
    assert h.pread(len(want), 0) == want
    assert h.pread(len(want) - 1000, 500) == want[500:-500]
    h.shutdown()


def test_unfragmented_read_that_is_too_long(server):
    h = connect(server, "big", strict=False)
    assert error_of(h.pread, 33 * MIB, 0, nbd.CMD_FLAG_DF) == EOVERFLOW
    assert h.pread(32 * MIB, 0, nbd.CMD_FLAG_DF) == bytes(32 * MIB)
    h.shutdown()


def extents(h, length, offset, flags=0):
    found = {}

    def extent(name, start, entries, error):
        found[name] = [(entries[i], entries[i + 1]) for i in range(0, len(entries), 2)]
        return 0

    h.block_status(length, offset, extent, flags)
    return found


ALL_CONTEXTS = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:even", "qemu:dirty-bitmap:odd"]


def test_block_status(server):
    h = connect(server, "", True, ALL_CONTEXTS)
    h.pwrite(b"a" * 131072, 65536)
    found = extents(h, 4 * MIB, 0)
    assert set(found) == set(ALL_CONTEXTS)
    assert found["base:allocation"] == [(65536, 3), (131072, 0), (4 * MIB - 196608, 3)]
    assert found["qemu:allocation-depth"][0] == (65536, 0)
    assert [f for _, f in found["qemu:allocation-depth"]][1:3] == [2, 0] or found["qemu:allocation-depth"][1][1] in (1, 2)
    assert found["qemu:dirty-bitmap:even"] == [(MIB, 1), (MIB, 0)] * 2
    assert found["qemu:dirty-bitmap:odd"] == [(MIB, 0), (MIB, 1)] * 2
    one = extents(h, 4 * MIB, 32768, nbd.CMD_FLAG_REQ_ONE)
    assert one["base:allocation"] == [(32768, 3)]
    assert one["qemu:dirty-bitmap:even"] == [(MIB - 32768, 1)]
    h.shutdown()


def test_block_status_at_the_edge_of_32_bits(server):
    h = connect(server, "big", True, ["base:allocation"])
    for length in (0xFFFFFFFF, 0xFFFFFE00, 1 << 31):
        for offset in (0, 512, (1 << 32) - 512, (1 << 62) - length):
            assert extents(h, length, offset)["base:allocation"] == [(length, 3)]
            assert extents(h, length, offset, nbd.CMD_FLAG_REQ_ONE)["base:allocation"] == [(length, 3)]
    h.shutdown()


def test_block_status_without_contexts_is_refused(server):
    h = connect(server, strict=False)
    with pytest.raises(nbd.Error):
        extents(h, 512, 0)
    h.shutdown()


def test_minimum_block_size(server):
    h = connect(server, "block4k", strict=False)
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096 and h.get_block_size(nbd.SIZE_PREFERRED) == 65536
    assert error_of(h.pread, 512, 0) == EINVAL
    assert error_of(h.pwrite, b"x" * 4096, 512) == EINVAL
    h.pwrite(b"x" * 4096, 4096)
    assert h.pread(4096, 4096) == b"x" * 4096
    h.shutdown()


def test_flush_covers_other_connections(server):
    """Multi-conn: what one connection wrote is seen by the others at once, and flushed by any of them."""
    a, b = connect(server), connect(server)
    assert a.can_multi_conn()
    a.pwrite(b"m" * 4096, 0)
    assert b.pread(4096, 0) == b"m" * 4096
    b.flush()
    a.shutdown()
    b.shutdown()
    assert server.stop() == 1


def test_many_requests_in_flight(server):
    h = connect(server)
    waiting = set()
    for i in range(1000):
        waiting.add(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i % 251]) * 4096), i * 4096))
    while waiting:
        h.poll(-1)
        waiting -= {c for c in waiting if h.aio_command_completed(c)}
    for i in range(1000):
        assert h.pread(4096, i * 4096) == bytes([i % 251]) * 4096
    h.shutdown()
