# SPDX-License-Identifier: MIT
"""What `byre nbd --list` prints of servers, beside what qemu-nbd prints of the same ones (FEATURES 7.014)."""
import socket
import struct
import subprocess
import threading

import pytest

from lib import peers, run

NODES = ["--blockdev", "driver=file,node-name=f,filename=a.qcow2", "--blockdev", "driver=qcow2,node-name=q,file=f"]


def listing(program, *words, code=0):
    done = subprocess.run([*program, "--list", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (program, words, done)
    return done.stdout if code == 0 else done.stderr


def ours(*words, code=0):
    return listing([run.BYRE, "nbd"], *words, code=code)


def theirs(*words, code=0):
    return listing([peers.need("qemu-nbd")], *words, code=code)


@pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
def test_same_list(start, disk, peer):
    """FEATURES 7.014: names, descriptions, sizes, flags, block sizes and contexts, line by line"""
    exports = ["--export", "type=nbd,id=a,node-name=q,name=one,description=a disk,writable=on,allocation-depth=on",
               "--export", "type=nbd,id=b,node-name=q,name=two words"]
    daemon = start("daemon", *NODES, "--nbd-server", "addr.type=unix,addr.path=n.sock", *exports, peer=peer)
    daemon.wait_for("n.sock")
    path = f"{daemon.folder}/n.sock"
    mine, other = ours("-k", path), theirs("-k", path)
    assert mine == other
    assert mine.startswith("exports available: 2\n") and "  description: a disk\n" in mine and "qemu:allocation-depth" in mine
    assert daemon.stop()[0] == 0


def test_more_exports_than_fit_on_a_page(start):
    """FEATURES 7.014: who lists asks about each export on one connection; all of 60 are told of, to every client"""
    words = []
    for i in range(60):
        words += ["--blockdev", f"null-co,node-name=n{i},size=1M", "--export", f"type=nbd,id=e{i},node-name=n{i}"]
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", *words)
    daemon.wait_for("n.sock")
    path = f"{daemon.folder}/n.sock"
    mine = ours("-k", path)
    assert mine.startswith("exports available: 60\n") and mine.count(" export: 'n") == 60 and mine.count("base:allocation") == 60
    assert mine == theirs("-k", path)
    done = subprocess.run([peers.need("nbdinfo"), "--list", f"nbd+unix:///?socket={path}"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.count("export=") == 60, done
    assert daemon.stop()[0] == 0


def test_over_tcp_and_nobody(start, disk):
    """FEATURES 7.014: a port of this host; no server at all is an error that names the place"""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert str(port) in ours("-b", "127.0.0.1", "-p", port, code=1)
    daemon = start("nbd", "-f", "qcow2", "-t", "-b", "127.0.0.1", "-p", port, "-x", "x", disk, monitor=False)
    for _ in range(200):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                break
        threading.Event().wait(0.05)
    assert ours("-b", "127.0.0.1", "-p", port) == theirs("-b", "127.0.0.1", "-p", port)
    daemon.stop()


@pytest.mark.parametrize("words", [["a.qcow2"], ["-x", "name"], ["-f", "raw"], ["-D", "text"], ["-n"], ["--fork"], ["-o", "5"]], ids=lambda w: w[0])
def test_not_with_a_disk(words):
    """FEATURES 7.014: what is said of a disk that would be offered has no place here"""
    for program in (ours, theirs):
        assert "List mode" in program("-k", "/nowhere", *words, code=1)


def read_exactly(conn, count):
    data = b""
    while len(data) < count:
        more = conn.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def hostile_server(listener, name, ends=None):
    """Offers one export of that name and refuses to tell of it. ends: the option at which it closes instead."""
    def serve():
        conn, _ = listener.accept()
        with conn:
            conn.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))
            read_exactly(conn, 4)
            while True:
                magic, option, length = struct.unpack(">8sII", read_exactly(conn, 16))
                assert magic == b"IHAVEOPT"
                read_exactly(conn, length)
                if option == ends:
                    return
                head = struct.pack(">QI", 0x3e889045565a9, option)
                if option == 3:
                    conn.sendall(head + struct.pack(">II", 2, 4 + len(name)) + struct.pack(">I", len(name)) + name + head + struct.pack(">II", 1, 0))
                elif option == 2:
                    conn.sendall(head + struct.pack(">II", 1, 0))
                    return
                else:
                    conn.sendall(head + struct.pack(">II", 0x80000006 if option in (6, 10) else 0x80000001, 0))
    def guarded():
        try:
            serve()
        except OSError:
            pass                                                                # the client has gone
    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    return thread


def test_words_of_a_server_are_no_lines(tmp_path):
    """FEATURES 7.014: a name with line ends and escapes does not forge output; an export that is not told of is listed as such"""
    path = tmp_path / "h.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        thread = hostile_server(listener, b"x'\n export: 'forged\x1b[2J")
        out = ours("-k", path)
        thread.join(10)
    lines = out.splitlines()
    assert lines[0] == "exports available: 1" and lines[1] == " export: 'x'\\x0a export: 'forged\\x1b[2J'"
    assert lines[2].startswith("  not known: ") and len(lines) == 3


@pytest.mark.parametrize("ends", [3, 6])
def test_a_server_that_goes_away(tmp_path, ends):
    """FEATURES 7.014: a server that closes in the middle is an error that says so, and blames no name"""
    path = tmp_path / "h.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        thread = hostile_server(listener, b"x", ends)
        said = ours("-k", path, code=1)
        thread.join(10)
    assert "too long" not in said and ("disconnected" in said or "closed the connection" in said), said
