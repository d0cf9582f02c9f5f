# SPDX-License-Identifier: MIT
"""Disks of other programs' NBD servers as files of byre: nbdkit with its filters, qemu-nbd, byre serve (FEATURES 3.030, 3.031, 3.034,
3.036, 3.037, G.039, G.041)."""
import json
import os
import pathlib
import re
import urllib.parse

import pytest
from lib import nbdserver, peers
from lib.run import byre, free_port, qemu_img, run

MIB = 1 << 20


@pytest.fixture(params=["uring", "threads"])
def backend(request, monkeypatch):
    monkeypatch.setenv("BYRE_BACKEND", request.param)


@pytest.fixture
def servers():
    """servers(NbdServer) starts one; all are ended."""
    started = []

    def start(server):
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.close()


def there_and_back(uri, noise, tmp_path):
    byre("convert", "-f", "raw", "-O", "raw", noise, uri)
    byre("compare", "-f", "raw", "-F", "raw", noise, uri)
    byre("convert", "-f", "raw", "-O", "raw", uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == noise.read_bytes()


@pytest.mark.parametrize("filters", [[], ["--filter=nozero"], ["--filter=nozero", "zeromode=emulate"], ["--filter=fua"],
                                     ["--filter=fua", "fuamode=emulate"], ["--filter=noextents"], ["--filter=noparallel", "serialize=connections"],
                                     ["--filter=multi-conn", "multi-conn-mode=disable"], ["--no-sr"],
                                     ["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-maximum=256K", "blocksize-error-policy=error"],
                                     ["--filter=delay", "rdelay=5ms", "wdelay=5ms"]],
                         ids=lambda f: "-".join(f).replace("--filter=", "") or "plain")
def test_nbdkit(servers, noise, tmp_path, filters, backend):
    """What a server offers differs: nothing is asked that it does not offer, and the bytes are right"""
    options = [f for f in filters if f.startswith("--")]
    server = servers(nbdserver.nbdkit(*options, "memory", "24M", *[f for f in filters if not f.startswith("--")]))
    there_and_back(server.uri, noise, tmp_path)


def test_other_content_is_overwritten(servers, noise, tmp_path):
    """A disk that is not empty: ranges of zeros are written too. And the whole of an image of a format in it"""
    server = servers(nbdserver.nbdkit("memory", "26M"))
    byre("io", "-f", "raw", "-c", "write -P 0x55 0 26M", server.uri)
    byre("convert", "-f", "raw", "-O", "raw", noise, server.uri)
    byre("io", "-f", "raw", "-c", "read -P 0x55 24M 2M", server.uri)
    byre("io", "-f", "raw", "-c", "write -P 0x55 0 26M", server.uri)
    byre("convert", "-f", "raw", "-O", "qcow2", noise, server.uri)
    byre("compare", "-f", "raw", noise, server.uri)
    assert "No errors" in byre("check", server.uri).out
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", noise, server.uri).out


def test_names(servers, tmp_path):
    """FEATURES 3.030, 3.049: every way to name the same disk; what is said of it is what the peer says"""
    port = free_port()
    kit = peers.need("nbdkit")
    tcp = nbdserver.NbdServer(lambda _: [kit, "-f", "-i", "127.0.0.1", "-p", port, "--exportname=a b", "memory", "3M"], "a b")
    tcp.listens = lambda: run(peers.need("nbdinfo"), "--size", f"nbd://127.0.0.1:{port}/a%20b", code=None).code == 0
    unix = servers(nbdserver.nbdkit("memory", "3M"))
    servers(tcp)
    unix_opts = {"driver": "nbd", "server": {"type": "unix", "path": unix.socket}}
    names = [unix.uri, f"nbd:unix:{unix.socket}", f"json:{json.dumps(unix_opts)}", f"nbd://127.0.0.1:{port}/a%20b", f"nbd+tcp://localhost:{port}/a%20b",
             f"nbd:127.0.0.1:{port}:exportname=a b"]
    for name in names:
        mine, theirs = byre("info", "--output=json", name).json, qemu_img("info", "--output=json", name).json
        assert urllib.parse.unquote(mine["filename"]) == theirs["filename"], name        # the peer's own has no codes, and does not read back
        assert mine["virtual-size"] == theirs["virtual-size"] == 3 * MIB and "actual-size" not in mine
    lists = [f"driver=nbd,server.type=unix,server.path={unix.socket}", f"driver=raw,file.driver=nbd,file.path={unix.socket}",
             f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=a b", f"driver=nbd,host=127.0.0.1,port={port},export=a b"]
    for opts in lists:
        assert byre("info", "--output=json", "--image-opts", opts).json["virtual-size"] == 3 * MIB
        qemu_img("info", "--image-opts", opts)
    assert "No such file" in byre("info", "nbd:unix:/nonexistent/s", code=1).err
    assert "no TLS" in byre("info", f"nbds+unix:///?socket={unix.socket}&tls-verify-peer=false", code=1).err


def test_export_names(servers):
    """nbdkit's exportname filter refuses what it does not know: the error names server and export"""
    server = servers(nbdserver.nbdkit("--filter=exportname", "memory", "1M", "exportname=good", "exportname-strict=true", export="good"))
    assert byre("info", "--output=json", server.uri).json["virtual-size"] == MIB
    err = byre("info", server.uri.replace("good", "bad"), code=1).err
    assert "'bad'" in err and server.socket in err         # the server may also tell by hanging up


def test_read_only_and_errors(servers, tmp_path):
    """A server that offers reading only; errors keep their meaning"""
    server = servers(nbdserver.nbdkit("-r", "memory", "1M"))
    assert "reading only" in byre("io", "-f", "raw", "-c", "write 0 512", server.uri, code=1).err
    byre("io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", server.uri)
    for word, text in (("ENOSPC", "No space left"), ("EPERM", "not permitted"), ("EIO", "Input/output error")):
        bad = servers(nbdserver.nbdkit("--filter=error", "memory", "1M", "error-pwrite-rate=100%", f"error-pwrite={word}"))
        assert text in byre("io", "-f", "raw", "-c", "write 0 4k", bad.uri, code=None).out
    bad = servers(nbdserver.nbdkit("--filter=error", "data", "1*1048576", "error-pread-rate=100%"))
    assert byre("convert", "-f", "raw", "-O", "raw", bad.uri, tmp_path / "x", code=1).err
    assert not (tmp_path / "x").exists() or not (tmp_path / "x").stat().st_size


def test_size_is_fixed(servers):
    """FEATURES 3.037: another size is refused, the same one is no change"""
    server = servers(nbdserver.nbdkit("memory", "2M"))
    byre("resize", "-f", "raw", server.uri, "2M")
    assert byre("resize", "-f", "raw", server.uri, "4M", code=1).err
    assert byre("resize", "-f", "raw", "--shrink", server.uri, "1M", code=1).err
    assert byre("create", "-f", "raw", server.uri, "4M", code=1).err
    assert byre("convert", "-f", "raw", "-O", "raw", servers(nbdserver.nbdkit("memory", "4M")).uri, server.uri, code=1).err


@pytest.mark.parametrize("block,size", [(1, 1000003), (512, 1 * MIB + 512), (4096, MIB), (65536, MIB)])
def test_blocks(servers, tmp_path, block, size):
    """FEATURES 3.031: nothing that is no multiple of the server's blocks is sent, and bytes beside a small write stay"""
    data = tmp_path / "d"
    data.write_bytes(os.urandom(size))
    want = bytearray(data.read_bytes())
    server = servers(nbdserver.nbdkit("--filter=blocksize-policy", "file", data, f"blocksize-minimum={block}", "blocksize-preferred=65536",
                                      "blocksize-maximum=1M", "blocksize-error-policy=error"))
    for i, (off, n) in enumerate([(0, 1), (511, 2), (4095, 8194), (70000, 100000), (size - 5, 5)]):
        byre("io", "-f", "raw", "-c", f"write -P {i + 1} {off} {n}", server.uri)
        want[off:off + n] = bytes([i + 1]) * n
    byre("convert", "-f", "raw", "-O", "raw", server.uri, tmp_path / "back")
    server.close()
    assert data.read_bytes() == bytes(want)
    back = (tmp_path / "back").read_bytes()
    assert back[:size] == bytes(want) and not any(back[size:])


def test_block_status(servers, tmp_path):
    """Holes stay holes, both ways; zeros that are written with -z arrive as zeros"""
    data = tmp_path / "d"
    with open(data, "wb") as f:
        f.truncate(64 * MIB)
        f.seek(16 * MIB)
        f.write(os.urandom(MIB))
    server = servers(nbdserver.nbdkit("file", data))
    mine = [(x["start"], x["length"], x["zero"]) for x in byre("map", "--output=json", "-f", "raw", server.uri).json]
    assert mine == [(x["start"], x["length"], x["zero"]) for x in qemu_img("map", "--output=json", "-f", "raw", server.uri).json]
    byre("convert", "-f", "raw", "-O", "raw", server.uri, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_blocks * 512 < 4 * MIB
    byre("io", "-d", "unmap", "-f", "raw", "-c", "write -z -u 16M 1M", server.uri)
    assert data.stat().st_blocks * 512 < MIB
    target = tmp_path / "t"
    with open(target, "wb") as f:
        f.truncate(64 * MIB)
    other = servers(nbdserver.nbdkit("file", target))
    byre("convert", "-n", "-f", "raw", "-O", "raw", data, other.uri)
    assert target.stat().st_blocks * 512 < MIB


def test_chains(servers, noise, tmp_path):
    """A remote base below a local overlay; an overlay on a server over a local base; names in it that mean nothing here"""
    server = servers(nbdserver.nbdkit("memory", "64M"))
    byre("convert", "-f", "raw", "-O", "qcow2", noise, server.uri)
    top = tmp_path / "top.qcow2"
    byre("create", "-f", "qcow2", "-b", server.uri, "-F", "qcow2", top)
    byre("io", "-c", "write -P 7 3M 64k", top)
    for program in (byre, qemu_img):
        assert program("info", "--output=json", top).json["backing-filename"] == server.uri
        assert [i["format"] for i in program("info", "--backing-chain", "--output=json", top).json] == ["qcow2", "qcow2"]
    assert "identical" in qemu_img("compare", top, top).out
    byre("convert", "-O", "raw", top, tmp_path / "flat")
    qemu_img("convert", "-O", "raw", top, tmp_path / "flat2")
    assert (tmp_path / "flat").read_bytes() == (tmp_path / "flat2").read_bytes() != noise.read_bytes()
    byre("commit", top)
    assert "identical" in byre("compare", "-f", "raw", "-F", "qcow2", tmp_path / "flat", server.uri).out
    away = servers(nbdserver.nbdkit("memory", "64M"))
    assert "relative" in byre("create", "-f", "qcow2", "-b", "noise", "-F", "raw", away.uri, code=1).err
    byre("create", "-f", "qcow2", "-b", noise, "-F", "raw", away.uri)
    assert "identical" in byre("compare", "-f", "raw", "-F", "qcow2", noise, away.uri).out
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", noise, away.uri).out
    byre("rebase", "-u", "-b", "noise", "-F", "raw", away.uri)
    assert "no file of this machine" in byre("compare", "-f", "raw", "-F", "qcow2", noise, away.uri, code=2).err


def test_loops_are_seen(servers):
    """The same export twice in a chain"""
    server = servers(nbdserver.nbdkit("memory", "64M"))
    byre("create", "-f", "qcow2", server.uri, "1M")
    byre("rebase", "-u", "-b", server.uri, "-F", "qcow2", server.uri)
    assert "own backing chain" in byre("io", "-r", "-c", "read 0 512", server.uri, code=1).err


def test_qemu_nbd(servers, noise, tmp_path, backend):
    """qemu-nbd: an image of its own behind it; several clients, which it allows when told"""
    disk = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", disk, "24M")
    server = servers(nbdserver.qemu_nbd("-f", "qcow2", "--shared=8", disk, export="disk"))
    there_and_back(server.uri, noise, tmp_path)
    server.close()
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", noise, disk).out


def test_byre_serve(byre_serve, noise, tmp_path, backend):
    """Our own server, written and read by our own client; and a server whose disk is another's"""
    disk = tmp_path / "d.qcow2"
    byre("create", "-q", "-f", "qcow2", disk, "24M")
    first = byre_serve(disk)
    second = byre_serve(first.uri, "-f", "raw")
    byre("convert", "-n", "-f", "raw", "-O", "raw", noise, second.uri)
    assert second.stop() == 0
    assert "identical" in byre("compare", "-f", "raw", "-F", "raw", noise, first.uri).out
    assert first.stop() == 0
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", noise, disk).out


def connections(server):
    """How many clients nbdkit's log saw."""
    text = pathlib.Path(server.log).read_text()
    return len(re.findall(r"accepted connection", text)), max([int(n) for n in re.findall(r"memory\[(\d+)\]", text)] or [0])


def test_connections(servers, noise):
    """G.039: more connections where the server shares its cache and there is work; one where it does not; one for little work"""
    server = servers(nbdserver.nbdkit("-v", "memory", "64M", "--filter=delay", "wdelay=200ms"))      # work that lasts, however slow a connection is made
    byre("info", server.uri)
    assert connections(server)[1] <= 1
    byre("convert", "-W", "-n", "-f", "raw", "-O", "raw", noise, server.uri)
    assert connections(server)[1] > 2          # 1: info, 2 and more: convert
    single = servers(nbdserver.nbdkit("-v", "memory", "64M", "--filter=multi-conn", "--filter=delay", "wdelay=20ms", "multi-conn-mode=disable"))
    byre("convert", "-W", "-n", "-f", "raw", "-O", "raw", noise, single.uri)
    assert connections(single)[1] <= 1
    opts = f"driver=raw,file.driver=nbd,file.path={server.socket},file.connections=1"
    before = connections(server)[1]
    byre("convert", "-W", "-n", "-f", "raw", "--target-image-opts", noise, opts)
    assert connections(server)[1] == before + 1
