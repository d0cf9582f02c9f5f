# SPDX-License-Identifier: MIT
"""Dirty bitmaps of a disk that is served: commands of the control socket, contexts of the export, restart and kill."""
import random

import pytest
from lib import bitmaps, images, peers, run
from lib.bitmaps import dirty_of, granules, peer_map
from lib.serve import Server

nbd = peers.need_module("nbd")
MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def disk(tmp_path):
    images.create(tmp_path / "d.qcow2", SIZE, tool="byre")
    return tmp_path / "d.qcow2"


def connect(server, *names):
    h = nbd.NBD()
    for name in names:
        h.add_meta_context(f"qemu:dirty-bitmap:{name}")
    h.connect_uri(server.uri)
    return h


def of(server):
    return {b["name"]: b for b in server.qmp("query-block")[0]["inserted"].get("dirty-bitmaps", [])}


def ok(server, command, **arguments):
    answer = server.qmp(command, node="disk0", **arguments)
    assert answer == {}, answer


def refused(server, command, node="disk0", **arguments):
    import json
    done = run.byre("ctl", server.control, json.dumps({"execute": command, "arguments": {"node": node, **arguments}}), code=None)
    assert done.code and "GenericError" in done.err, done
    return done.out + done.err


def test_commands(disk, tmp_path):
    """FEATURES 8.016, 1.106, 9.076, 9.077, 9.078: every command while somebody writes; counts are exact"""
    server = Server(disk, workdir=tmp_path).wait_ready()
    h, rng = connect(server), random.Random(3)

    def write(count):
        out = [(rng.randrange(SIZE // 4096) * 4096, 4096) for _ in range(count)]
        for off, length in out:
            h.pwrite(b"x" * length, off)
        return out

    def count(ranges, granularity=65536):
        return sum(b - a for a, b in granules(ranges, granularity, SIZE))

    ok(server, "block-dirty-bitmap-add", name="p", persistent=True)
    ok(server, "block-dirty-bitmap-add", name="t", granularity=4096)
    assert of(server)["p"] == {"name": "p", "recording": True, "persistent": True, "count": 0, "busy": False, "granularity": 65536}
    first = write(20)
    assert of(server)["p"]["count"] == count(first) and of(server)["t"]["count"] == count(first, 4096)
    ok(server, "block-dirty-bitmap-disable", name="t")
    second = write(20)
    assert of(server)["t"]["count"] == count(first, 4096) and of(server)["t"]["recording"] is False
    ok(server, "block-dirty-bitmap-enable", name="t")
    third = write(5)
    assert of(server)["t"]["count"] == count(first + third, 4096)
    ok(server, "block-dirty-bitmap-clear", name="p")
    assert of(server)["p"]["count"] == 0
    ok(server, "block-dirty-bitmap-merge", target="p", bitmaps=["t", {"node": "disk0", "name": "t"}])
    assert of(server)["p"]["count"] == count(first + third)
    assert "already" in refused(server, "block-dirty-bitmap-add", name="p")
    refused(server, "block-dirty-bitmap-add", name="")
    refused(server, "block-dirty-bitmap-add", name="x", granularity=1000)
    refused(server, "block-dirty-bitmap-remove", name="x")
    refused(server, "block-dirty-bitmap-remove", node="none", name="p")
    refused(server, "block-dirty-bitmap-merge", target="p", bitmaps=["t", "none"])
    ok(server, "block-dirty-bitmap-remove", name="t")
    fourth = write(10)
    h.shutdown()
    assert server.stop() == 0
    images.assert_sound(disk)
    assert bitmaps.listed(disk) == [("p", 65536, ["auto"])]
    assert peer_map(disk, "p", tmp_path) == granules(first + third + fourth, 65536, SIZE)
    assert second


def test_contexts(disk, tmp_path):
    """FEATURES 10.009, 10.013, 10.021, 7.007: extents equal the log of writes; busy while exported"""
    run.byre("bitmap", "--add", "-g", 4096, disk, "a")
    run.byre("bitmap", "--add", "-g", 65536, disk, "b")
    server = Server(disk, "-B", "a", "-B", "b", workdir=tmp_path).wait_ready()
    h, rng, log = connect(server, "a", "b"), random.Random(5), []
    for _ in range(60):
        off, length = rng.randrange(SIZE // 512 - 200) * 512, rng.randrange(1, 200) * 512
        if rng.random() < 0.3:
            h.zero(length, off)
        else:
            h.pwrite(b"y" * length, off)
        log.append((off, length))
        if rng.random() < 0.2:
            assert dirty_of(h, "a", SIZE) == granules(log, 4096, SIZE)
    assert dirty_of(h, "a", SIZE) == granules(log, 4096, SIZE)
    assert dirty_of(h, "b", SIZE) == granules(log, 65536, SIZE)
    assert "in use" in refused(server, "block-dirty-bitmap-remove", name="a")
    assert of(server)["a"]["busy"] is True
    h.shutdown()
    assert server.stop() == 0
    assert peer_map(disk, "a", tmp_path) == granules(log, 4096, SIZE)
    images.assert_sound(disk)


def test_restart_and_kill(disk, tmp_path):
    """FEATURES 9.084, 8.007, G.014: the same after a restart; after kill -9 a superset, and in use for others"""
    run.byre("bitmap", "--add", disk, "b")
    log = []
    for end in ("stop", "kill", "stop", "kill", "stop"):
        server = Server(disk, workdir=tmp_path).wait_ready()
        h = connect(server)
        for _ in range(6):
            off = random.Random(len(log)).randrange(SIZE // 65536) * 65536
            h.pwrite(b"z" * 65536, off)
            log.append((off, 65536))
        h.flush()
        if end == "stop":
            h.shutdown()
            assert server.stop() == 0
            have = peer_map(disk, "b", tmp_path)
            for off, _ in log:
                assert any(a <= off < b for a, b in have)
        else:
            server.kill()
            assert bitmaps.listed(disk, run.qemu_img) == [("b", 65536, ["auto", "in-use"])]
        server.close()
    images.assert_sound(disk, leaks=True)


def test_read_only(disk, tmp_path):
    """FEATURES 10.021: a read-only disk offers what it has; a name that is not there is refused"""
    run.byre("bitmap", "--add", disk, "b")
    run.byre("io", "-f", "qcow2", "-c", "write 1M 64k", disk)
    server = Server(disk, "-r", "-B", "b", workdir=tmp_path).wait_ready()
    h = connect(server, "b")
    assert dirty_of(h, "b", SIZE) == [(MIB, MIB + 65536)]
    h.shutdown()
    assert server.stop() == 0
    assert "no bitmap 'none'" in run.byre("serve", "-B", "none", disk, code=1).err
