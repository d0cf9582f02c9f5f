# SPDX-License-Identifier: MIT
"""Meta contexts of NBD: several in one connection, and one that is shown instead of what is allocated (FEATURES 3.035, 10.009, G.046)."""
import json
import socket
import struct

import pytest

from lib import peers, run

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
KIB = 1024


@pytest.fixture
def chain(tmp_path):
    """4 MiB over 4 MiB: the first MiB below, a MiB from 512 KiB on above, of which two bitmaps know different parts."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", base, "4M")
    run.qemu_io(base, "write -P 1 0 1M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
    run.qemu_img("bitmap", "--add", "-g", "65536", top, "one")
    run.qemu_io(top, "write -P 2 512k 512k")
    run.qemu_img("bitmap", "--add", "-g", "65536", top, "two")
    run.qemu_io(top, "write -P 3 1M 512k")
    return top


@pytest.fixture
def server(start, chain):
    def begin(peer=False):
        daemon = start("nbd", "-r", "-t", "-e", "0", "-A", "-B", "one", "-B", "two", "-k", "FOLDER/k", "-f", "qcow2", "top.qcow2", peer=peer)
        daemon.wait_for("k")
        return daemon

    return begin


@BOTH
def test_all_in_one_connection(server, peer):
    """FEATURES 10.009, 10.012, 10.013, 7.006, 7.007: one connection asks for all contexts at once; each answer has them all, and says what was written"""
    nbd = peers.need_module("nbd")
    daemon = server(peer)
    names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"]
    h = nbd.NBD()
    for name in names:
        h.add_meta_context(name)
    h.connect_unix(f"{daemon.folder}/k")
    assert all(h.can_meta_context(n) for n in names)
    got = {}

    def note(context, offset, entries, _):
        runs = got.setdefault(context, [])
        for length, flags in zip(entries[::2], entries[1::2]):
            if runs and runs[-1][1] == flags:
                runs[-1] = (runs[-1][0] + length, flags)
            else:
                runs.append((length, flags))
        return 0

    h.block_status(4096 * KIB, 0, note)
    h.shutdown()
    assert got["qemu:allocation-depth"] == [(512 * KIB, 2), (1024 * KIB, 1), (2560 * KIB, 0)]
    assert got["qemu:dirty-bitmap:one"] == [(512 * KIB, 0), (1024 * KIB, 1), (2560 * KIB, 0)]
    assert got["qemu:dirty-bitmap:two"] == [(1024 * KIB, 0), (512 * KIB, 1), (2560 * KIB, 0)]
    assert got["base:allocation"] == [(1536 * KIB, 0), (2560 * KIB, 3)]


@BOTH
def test_by_nbdinfo(server, peer):
    """FEATURES 7.006, 7.007, 10.012, 10.013: the maps that nbdinfo prints"""
    uri = f"nbd+unix:///?socket={server(peer).folder}/k"

    def runs(context):
        return [(e["length"], e["type"]) for e in run.run("nbdinfo", f"--map=qemu:{context}", "--json", uri).json]

    assert runs("dirty-bitmap:two") == [(1024 * KIB, 0), (512 * KIB, 1), (2560 * KIB, 0)]
    assert runs("allocation-depth") == [(512 * KIB, 2), (1024 * KIB, 1), (2560 * KIB, 0)]


@BOTH
@pytest.mark.parametrize("context", ["qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two", "qemu:allocation-depth", "base:allocation"])
def test_shown_by_map(server, context, peer):
    """FEATURES 3.035: x-dirty-bitmap: `map` shows what `qemu-img map` shows, line by line, of either server"""
    words = ["--image-opts", f"driver=nbd,server.type=unix,server.path={server(peer).folder}/k,x-dirty-bitmap={context}"]
    for form in (["--output=json"], ["--output=human"]):
        assert run.byre("map", *form, *words).out == run.qemu_img("map", *form, *words).out


@pytest.mark.parametrize("context", ["qemu:dirty-bitmap:one", "qemu:allocation-depth"])
def test_copies_go_by_what_is_there(server, chain, tmp_path, context):
    """FEATURES 3.035: the extents of another context decide nothing: a copy has all bytes, and zeros where the server says that there are zeros"""
    words = f"driver=nbd,server.type=unix,server.path={server().folder}/k,x-dirty-bitmap={context}"
    out = tmp_path / "out.raw"
    run.byre("convert", "--image-opts", "-O", "raw", words, out)
    assert run.qemu_img("compare", out, chain).out == "Images are identical.\n"
    assert sum(e["length"] for e in run.qemu_img("map", "--output=json", "-f", "raw", out).json if e["data"]) == 1536 * KIB


@pytest.mark.parametrize("name, why", [("foo", "'foo'"), ("", "1 to 4096"), ("x" * 4097, "1 to 4096")])
def test_unknown_context(server, name, why):
    """FEATURES 3.035: a context that the server does not have is refused by name"""
    text = json.dumps({"driver": "nbd", "server": {"type": "unix", "path": f"{server().folder}/k"}, "x-dirty-bitmap": name})
    assert why in run.byre("info", f"json:{text}", code=1).err


# ---- clients that ask for more than there is room for ----

def option(sock, number, data):
    sock.sendall(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)


def reply(stream):
    head = stream.read(20)
    assert len(head) == 20, "the server closed the connection"
    magic, asked, kind, length = struct.unpack(">QIII", head)
    assert magic == 0x3E889045565A9
    return asked, kind, stream.read(length)


def contexts(export, queries):
    names = [q.encode() for q in queries]
    return struct.pack(">I", len(export)) + export.encode() + struct.pack(">I", len(names)) + b"".join(struct.pack(">I", len(n)) + n for n in names)


SET_META, STRUCTURED, INFO, ACK, META_REPLY, ERROR = 10, 8, 6, 1, 4, 1 << 31


def begin(daemon):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(f"{daemon.folder}/k")
    stream = sock.makefile("rb")
    assert stream.read(16) == b"NBDMAGICIHAVEOPT"
    stream.read(2)
    sock.sendall(struct.pack(">I", 3))
    option(sock, STRUCTURED, b"")
    assert reply(stream)[1] == ACK
    return sock, stream


def answers(sock, stream, data):
    option(sock, SET_META, data)
    got = []
    while True:
        _, kind, body = reply(stream)
        if kind != META_REPLY:
            return kind, got
        got.append((struct.unpack(">I", body[:4])[0], body[4:].decode()))


def test_hostile_contexts(server):
    """FEATURES 10.009: whatever is asked for, a connection has each context once, at most as many as the export offers; the server lives on"""
    daemon = server()
    sock, stream = begin(daemon)
    every = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"]
    kind, got = answers(sock, stream, contexts("", every * 200 + ["odd:thing", "", ":", "qemu:dirty-bitmap:", "x" * 4000]))
    assert kind == ACK or kind & ERROR
    assert len({i for i, _ in got}) == len({n for _, n in got}) <= len(every), got
    kind, got = answers(sock, stream, contexts("", every))                              # the last one counts
    assert kind == ACK and sorted(n for _, n in got) == sorted(every) and len({i for i, _ in got}) == 4
    sock.close()
    for data in (contexts("", every)[:-3], contexts("nothing", every), struct.pack(">I", 0) + struct.pack(">I", 0xFFFFFFFF), struct.pack(">II", 0, 1) + struct.pack(">I", 1 << 30),
                 contexts("", ["y" * 5000])):
        sock, stream = begin(daemon)
        kind, got = answers(sock, stream, data)
        assert kind & ERROR or got == [], (data[:40], kind, got)
        kind, got = answers(sock, stream, contexts("", every[2:]))                      # and the next question is answered
        assert kind == ACK and [n for _, n in got] == every[2:]
        sock.close()
    assert run.run("nbdinfo", "--size", f"nbd+unix:///?socket={daemon.folder}/k").out.strip() == str(4 << 20)
    assert daemon.stop()[0] == 0
