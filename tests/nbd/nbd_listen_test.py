# SPDX-License-Identifier: MIT
"""Listening: unix paths in every condition, TCP ports, the limit of connections."""
import os
import socket
import subprocess

import rawnbd as raw
from lib import tcp, wait
from memserver import PROGRAM


def attempt(*args):
    """Starts a server that must refuse to start; returns what it said."""
    done = subprocess.run([PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=30)
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_path_is_removed_at_stop(server):
    assert os.path.exists(server.socket)
    server.stop()
    assert not os.path.exists(server.socket)


def test_abandoned_socket_is_replaced(start, tmp_path):
    first = start()
    first.process.kill()
    first.process.wait()
    assert os.path.exists(first.socket)
    path = first.socket
    first.process.returncode = 0          # killed on purpose
    second = start("--unix", path)
    with raw.Client(path).enter() as c:
        assert c.read(0, 512) == bytes(512)
    second.stop()
    assert not os.path.exists(path)


def test_path_in_use_is_refused(server):
    assert "exists" in attempt("--unix", server.socket)
    with raw.Client(server.socket).enter() as c:
        assert c.read(0, 512) == bytes(512)


def test_a_file_in_the_way_is_kept(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    assert "exists" in attempt("--unix", path)
    assert path.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert "exists" in attempt("--unix", link)
    assert path.read_text() == "precious"


def test_bad_paths(tmp_path):
    assert "bytes" in attempt("--unix", "/tmp/" + "x" * 103)
    assert "bytes" in attempt("--unix", "")
    assert "No such file" in attempt("--unix", tmp_path / "nowhere/s")


def test_path_that_was_replaced_meanwhile_is_left_alone(server):
    os.unlink(server.socket)
    with open(server.socket, "w", encoding="ascii") as f:
        f.write("someone else's")
    server.stop()
    with open(server.socket, encoding="ascii") as f:
        assert f.read() == "someone else's"


def test_free_port_is_picked_and_told(start):
    a, b = start("--tcp", "127.0.0.1:0"), start("--tcp", "localhost:0")
    assert a.tcp[1] and b.tcp[1] and a.tcp[1] != b.tcp[1]
    for s in (a, b):
        with raw.Client(("127.0.0.1", s.tcp[1])).enter() as c:
            assert c.read(0, 512) == bytes(512)


def test_a_client_whose_host_vanishes_is_noticed(start):
    s = start("--tcp", "127.0.0.1:0")
    with raw.Client(("127.0.0.1", s.tcp[1])).enter() as c:
        assert c.read(0, 512) == bytes(512)
        wait.until(lambda: tcp.keepalive_s(s.tcp[1], far=False), "nobody asks")
        assert 20 < tcp.keepalive_s(s.tcp[1], far=False) <= 31


def test_port_in_use_is_refused(start):
    s = start("--tcp", "127.0.0.1:0")
    assert "Address already in use" in attempt("--tcp", "127.0.0.1:%d" % s.tcp[1])


def test_all_addresses(start):
    s = start("--tcp", ":0")
    with raw.Client(("127.0.0.1", s.tcp[1])).enter() as c:
        assert c.read(0, 512) == bytes(512)
    if socket.has_ipv6:
        try:
            v6 = socket.create_connection(("::1", s.tcp[1]), 5)
        except OSError:
            return                            # this machine has no IPv6 address
        v6.close()


def test_unknown_host_is_refused():
    assert "nosuch.invalid" in attempt("--tcp", "nosuch.invalid:0")


def test_limit_of_connections(start):
    server = start("--connections", 2)
    with raw.Client(server.socket).enter() as a, raw.Client(server.socket).enter() as b:
        with raw.Client(server.socket) as c:
            assert c.at_end()
        assert a.read(0, 512) == bytes(512) and b.read(0, 512) == bytes(512)
        a.disconnect()
        for _ in range(100):                  # the place becomes free as soon as the connection is gone
            try:
                with raw.Client(server.socket).enter() as d:
                    assert d.read(0, 512) == bytes(512)
                break
            except raw.Closed:
                continue
        else:
            raise AssertionError("the place never became free")
