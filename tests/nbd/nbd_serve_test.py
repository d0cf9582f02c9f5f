# SPDX-License-Identifier: MIT
"""The same server in front of real images: `byre serve` with raw and qcow2, on each backend of the runtime."""
import json
import os
import re
import struct
import subprocess

import pytest
import rawnbd as raw
from lib import peers, wait
from lib.run import loop_device, run

nbd = peers.need_module("nbd")
MIB = 1 << 20


@pytest.fixture(params=["raw", "qcow2"])
def fmt(request):
    return request.param


@pytest.fixture
def serve(byre_serve, backend, fmt, tmp_path):
    """serve(size, *options): (server, path of the image)"""
    def start(size=32 * MIB, *options):
        image = tmp_path / f"disk.{fmt}"
        if not image.exists() and fmt == "raw":
            image.touch()
            os.truncate(image, size)
        elif not image.exists():
            run(peers.need("qemu-img"), "create", "-q", "-f", fmt, image, str(size))
        return byre_serve(image, "-f", fmt, *options, env={"BYRE_BACKEND": backend}), image
    return start


def check(image, fmt):
    if fmt == "qcow2":
        run(peers.need("qemu-img"), "check", "-q", image)


def test_flags_sizes_contexts(serve):
    server, _ = serve(32 * MIB + 512)
    info = json.loads(run(peers.need("nbdinfo"), "--json", server.uri).out)["exports"][0]
    assert info["export-size"] == 32 * MIB + 512 and not info["is_read_only"]
    assert all(info[f"can_{what}"] for what in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"))
    assert info["contexts"] == ["base:allocation", "qemu:allocation-depth"]


def test_copy_there_and_back(serve, fmt, tmp_path):
    server, image = serve(24 * MIB)
    source, back = tmp_path / "source", tmp_path / "back"
    with open(source, "wb") as f:
        for i in range(24):
            f.write(os.urandom(MIB) if i % 3 == 0 else bytes(MIB // 2) + os.urandom(MIB // 2) if i % 3 == 1 else bytes(MIB))
    run("nbdcopy", "--flush", source, server.uri)
    run("nbdcopy", server.uri, back)
    assert source.read_bytes() == back.read_bytes()
    assert server.stop() == 0
    check(image, fmt)
    run("qemu-img", "compare", "-f", "raw", "-F", fmt, source, image)


def test_commands_and_errors(serve, fmt):
    server, image = serve()
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.add_meta_context("qemu:allocation-depth")
    h.connect_uri(server.uri)
    h.pwrite(b"p" * 70000, 1000)
    h.zero(4096, 8192)
    h.trim(65536, 65536)
    h.cache(MIB, 0)
    h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE)
    h.flush()
    h.pwrite(b"q" * 512, 32 * MIB - 512, nbd.CMD_FLAG_FUA)
    want = bytearray(bytes(1000) + b"p" * 70000 + bytes(196608 - 71000))
    want[8192:12288] = bytes(4096)
    got = h.pread(len(want), 0)
    assert got[:65536] == want[:65536] and got[131072:] == want[131072:]
    assert got[65536:71000] in (want[65536:71000], bytes(5464))          # trimmed: either is allowed
    found = {}

    def extent(name, start, entries, error):
        found[name] = [(entries[i], entries[i + 1]) for i in range(0, len(entries), 2)]
        return 0

    h.block_status(32 * MIB, 0, extent)
    for extents in found.values():
        assert sum(length for length, _ in extents) == 32 * MIB
    assert found["base:allocation"][0][1] == 0 and found["base:allocation"][-1][1] == 0
    assert any(flags == 3 for _, flags in found["base:allocation"])
    h.set_strict_mode(0)
    for call, code in ((lambda: h.pwrite(b"x" * 1024, 32 * MIB - 512), 28), (lambda: h.zero(1024, 32 * MIB - 512), 28),
                       (lambda: h.pread(1024, 32 * MIB - 512), 22), (lambda: h.trim(1024, 32 * MIB - 512), 22)):
        with pytest.raises(nbd.Error) as e:
            call()
        assert e.value.errnum == code
    h.shutdown()
    assert server.stop() == 0
    check(image, fmt)


def test_read_only(serve):
    server, image = serve()
    assert server.stop() == 0
    before = image.read_bytes()
    server, _ = serve(0, "--read-only")
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_uri(server.uri)
    assert h.is_read_only()
    for call in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
        with pytest.raises(nbd.Error) as e:
            call()
        assert e.value.errnum == 1
    assert h.pread(4096, 0) == bytes(4096)
    h.shutdown()
    assert server.stop() == 0
    assert image.read_bytes() == before


def test_extended_headers_on_a_large_disk(serve, fmt):
    size = 8 << 40
    server, image = serve(size)
    with raw.Client(server.socket).enter("", "extended", ["base:allocation", "qemu:allocation-depth"]) as c:
        assert c.size == size
        extents = c.status(0, size)
        assert extents[0] == [(size, 3)]
        assert c.request(raw.ZEROES, 0, size)[0] == 0
        assert c.write(size - 4096, b"e" * 4096) == 0
        assert c.read(size - 8192, 8192) == bytes(4096) + b"e" * 4096
        extents = c.status((1 << 32) - 512, size - (1 << 32) + 512)[0]
        assert sum(length for length, _ in extents) == size - (1 << 32) + 512 and extents[-1][1] == 0
        assert c.request(raw.TRIM, 0, size)[0] == 0
        assert c.request(raw.FLUSH)[0] == 0
        assert c.disconnect()
    assert server.stop() == 0
    check(image, fmt)


def test_zero_flags_on_disk(byre_serve, backend, tmp_path):
    """FEATURES 10.015: NO_HOLE keeps the space of the file, without it the space goes; FAST_ZERO too; a trim goes by whole blocks"""
    image = tmp_path / "d"
    image.write_bytes(b"z" * (8 * MIB))
    os.sync()
    server = byre_serve(image, "-f", "raw", env={"BYRE_BACKEND": backend})
    h = nbd.NBD()
    h.connect_uri(server.uri)

    def taken():
        h.flush()
        return os.stat(image).st_blocks * 512

    full = taken()
    h.zero(4 * MIB, 0, nbd.CMD_FLAG_NO_HOLE)
    assert taken() >= full - 65536 and h.pread(4 * MIB, 0) == bytes(4 * MIB)
    h.zero(2 * MIB, 0)
    assert abs(taken() - (full - 2 * MIB)) <= 65536
    h.zero(MIB, 2 * MIB, nbd.CMD_FLAG_FAST_ZERO)
    assert abs(taken() - (full - 3 * MIB)) <= 65536
    h.trim(MIB + 100, 6 * MIB - 50)
    got = h.pread(MIB + 100, 6 * MIB - 50)
    assert got[50:-50] == bytes(MIB) and abs(taken() - (full - 4 * MIB)) <= 65536
    assert h.pread(4096, 5 * MIB) == h.pread(4096, 7 * MIB + 4096) == b"z" * 4096
    h.shutdown()


def test_cache_reads_ahead(byre_serve, tmp_path):
    """FEATURES 10.016: CACHE reads what it names into the host's cache, and sends no data"""
    peers.need("strace")
    image, trace = tmp_path / "d", tmp_path / "trace"
    image.write_bytes(b"c" * (8 * MIB))
    server = byre_serve(image, "-f", "raw", "-r", "-i", "threads")
    with subprocess.Popen(["strace", "-f", "-o", trace, "-e", "trace=pread64,preadv,preadv2,readahead,fadvise64", "-p", str(server.process.pid)],
                          stderr=subprocess.PIPE, text=True) as tracer:
        while "attached" not in tracer.stderr.readline():
            assert tracer.poll() is None
        h = nbd.NBD()
        h.connect_uri(server.uri)
        h.cache(MIB, 3 * MIB)
        h.shutdown()
        tracer.terminate()
    spans = [(int(m[2]), int(m[2]) + int(m[3])) for m in re.finditer(r"(pread\w*)\(.*?(?:, |\], 1, )(\d+)(?:, 0)?\) += (\d+)$", trace.read_text(), re.M)]
    assert sum(min(b, 4 * MIB) - max(a, 3 * MIB) for a, b in spans if a < 4 * MIB and b > 3 * MIB) >= MIB, trace.read_text()


@pytest.mark.serial
@pytest.mark.parametrize("sector,cache", [(512, "writeback"), (4096, "writeback"), (4096, "none")])
def test_block_sizes(byre_serve, tmp_path, sector, cache):
    """FEATURES 10.008: minimum, preferred and largest block of an export, on a device of 4 KiB sectors too, are the peer's"""
    (tmp_path / "back").write_bytes(b"b" * (4 * MIB))
    device, detach = loop_device(tmp_path / "back", sector)
    try:
        server = byre_serve(device, "-f", "raw", "--cache", cache)
        ours = block_sizes(server.socket)
        assert server.stop() == 0
        with subprocess.Popen([peers.need("qemu-nbd"), "-f", "raw", f"--cache={cache}", "-k", tmp_path / "peer", device]) as peer:
            wait.until(lambda: wait.listens(peer, tmp_path / "peer"), "the peer does not listen")
            theirs = block_sizes(str(tmp_path / "peer"))
            peer.wait(30)
        assert ours == theirs == (1, 4096, 32 * MIB)
    finally:
        detach()


def block_sizes(socket):
    with raw.Client(socket) as c:
        c.greet()
        found, kind = c.info(raw.GO, "", [3])
        assert kind == raw.REP_ACK
        return struct.unpack(">III", found[3])


@pytest.mark.timeout(180)
def test_fio_on_four_connections(serve, fmt, tmp_path):
    """FEATURES G.075: the connections of one disk are served by two threads"""
    server, image = serve(64 * MIB, "--threads", "2")
    job = tmp_path / "job.fio"
    parts = "".join(f"[j{i}]\noffset={i * 16}m\nsize=16m\n" for i in range(4))
    job.write_text(f"""[global]
ioengine=nbd
uri={server.uri}
rw=randrw
rwmixwrite=70
bsrange=512-64k
iodepth=64
verify=crc32c
verify_fatal=1
do_verify=1
{parts}""")
    run(peers.need("fio"), "--output-format=json", "--output", tmp_path / "out", job, timeout=170, cwd=tmp_path)
    text = (tmp_path / "out").read_text()
    assert all(j["error"] == 0 and j["write"]["total_ios"] > 100 for j in json.loads(text[text.index("{"):])["jobs"])
    assert server.stop() == 0
    check(image, fmt)


def test_size_is_rounded_up_and_the_tail_is_zero(byre_serve, backend, tmp_path):
    """FEATURES 10.007"""
    image = tmp_path / "odd.raw"
    image.write_bytes(b"o" * 1000100)
    server = byre_serve(image, "-f", "raw", env={"BYRE_BACKEND": backend})
    assert run("nbdinfo", "--size", server.uri).out.strip() == "1000448"
    with raw.Client(server.socket).enter() as c:
        assert c.read(1000000, 448) == b"o" * 100 + bytes(348)
        assert c.read(0, 1000448) == b"o" * 1000100 + bytes(348)
        assert c.write(1000100, b"t" * 348) == 0
        assert c.read(1000000, 448) == b"o" * 100 + b"t" * 348
    assert server.stop() == 0
    assert image.read_bytes() == b"o" * 1000100 + b"t" * 348


def merged(extents):
    out = []
    for length, flags in extents:
        if out and out[-1][1] == flags:
            out[-1] = (out[-1][0] + length, flags)
        else:
            out.append((length, flags))
    return out


def test_extents_of_a_chain(byre_serve, backend, tmp_path):
    """FEATURES 10.010 .. 10.012: allocation equals the peer's map, depth names the layer that was written."""
    names = [tmp_path / f"{n}.qcow2" for n in "abc"]
    size, cluster = 16 * MIB, 65536
    depth = [0] * (size // cluster)
    for layer, path in enumerate(names):
        backing = ["-b", names[layer - 1], "-F", "qcow2"] if layer else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *backing, path, str(size))
        writes = []
        for i in range(layer, len(depth), 5 + layer):
            writes += ["-c", f"write -q -P {65 + layer} {i * cluster} {cluster}"]
            depth[i] = 3 - layer
        run("qemu-io", "-f", "qcow2", *writes, path)
    server = byre_serve(names[2], "-f", "qcow2", "--read-only", env={"BYRE_BACKEND": backend})
    with raw.Client(server.socket).enter("", "structured", ["base:allocation", "qemu:allocation-depth"]) as c:
        found = c.status(0, size)
        assert merged(found[1]) == merged((cluster, d) for d in depth)
        want = json.loads(run("qemu-img", "map", "--output=json", "-f", "qcow2", names[2]).out)
        assert merged(found[0]) == merged((e["length"], (0 if e["data"] else 1) | (2 if e["zero"] else 0)) for e in want)
        for i, d in enumerate(depth):
            one = c.status(i * cluster + 512, size - i * cluster - 512, raw.REQ_ONE)
            assert len(one[1]) == 1 and one[1][0][1] == d
    assert server.stop() == 0


def test_a_new_client_sees_the_new_size(serve, fmt):
    """FEATURES 10.029, G.043"""
    server, image = serve(16 * MIB)
    with raw.Client(server.socket).enter() as old:
        assert old.size == 16 * MIB
        server.qmp("block_resize", **{"node-name": "disk0", "size": 32 * MIB})
        assert old.read(0, 512) == bytes(512)
        assert old.request(raw.READ, 16 * MIB, 512)[0] == raw.EINVAL      # this client was told another size
        with raw.Client(server.socket).enter() as new:
            assert new.size == 32 * MIB
            assert new.write(32 * MIB - 4096, b"n" * 4096) == 0
            assert new.read(32 * MIB - 8192, 8192) == bytes(4096) + b"n" * 4096
    assert server.stop() == 0
    check(image, fmt)


def fragmented(path, size, compressed):
    """An image to read, every cluster of which lies elsewhere than its neighbour: one L2 table serves every half GiB."""
    cluster = 65536
    tables = size // (cluster * 8192)
    l1, data, l2 = 3 * cluster, 4 * cluster, 8 * cluster
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, size, 0, tables, l1, cluster, 1, 0, 0, 0, 0, 0, 4, 104)
    entries = [1 << 62 | data, 1 << 62 | data + 2048] if compressed else [data, data + 2 * cluster]
    assert tables * 8 <= cluster
    with open(path, "wb") as f:
        for at, what in ((0, header), (cluster, struct.pack(">Q", 2 * cluster)), (l1, struct.pack(">Q", l2) * tables),
                         (data, bytes(4 * cluster)), (l2, struct.pack(">QQ", *entries) * 4096)):
            f.seek(at)
            f.write(what)


@pytest.mark.parametrize("compressed", [False, True])
def test_status_of_a_fragmented_disk_takes_no_longer_than_anybody_wants_it(byre_serve, backend, tmp_path, compressed):
    """FEATURES 10.010, G.043: a request for all of a disk whose 16 million clusters say the same is answered in parts, with an extent at least, in each context;
    and those that nobody waits for any more do not keep the server from ending."""
    size, image = 1 << 40, tmp_path / "f.qcow2"
    fragmented(image, size, compressed)
    server = byre_serve(image, "-f", "qcow2", "--read-only", env={"BYRE_BACKEND": backend})
    with raw.Client(server.socket, 60).enter("", "extended", ["base:allocation", "qemu:allocation-depth"]) as c:
        assert c.status(0, 8 << 30) == {0: [(8 << 30, 0)], 1: [(8 << 30, 1)]}      # less than the bound: as it always was
        for kind, ((length, flags),) in c.status(0, size).items():
            assert flags == kind and 8 << 30 < length <= 128 << 30
        assert c.status(size - (1 << 30), 1 << 30, raw.REQ_ONE) == {0: [(1 << 30, 0)], 1: [(1 << 30, 1)]}
        for _ in range(64):
            c.say(raw.STATUS, 0, size)
        last, cookie = c.say(99), None                       # of no known kind: answered at once, and all before it are taken
        while cookie != last:
            _, _, cookie, _, n = c.reply_head()
            c.recv(n)
        assert server.stop(20) == 0
