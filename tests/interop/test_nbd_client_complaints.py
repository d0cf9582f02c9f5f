# SPDX-License-Identifier: MIT
"""What NBD servers say of requests that they refuse: it reaches whoever asked, and can do no harm (FEATURES G.047)."""
import contextlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import time

import pytest
from lib import nbdserver, run, wait
from lib.run import byre
from test_nbd_client_hostile import Liar, MIB, backend, liar, name_of  # noqa: F401  (fixtures)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))
from qmp_client import Qmp  # noqa: E402

SAYS = "the server says of "


def complaint(text, error=5, off=None):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack(">IH", error, len(text)) + text + (b"" if off is None else struct.pack(">Q", off))


def refuses(text, off=None, done=True):
    """A method of the server: reads fail with this text."""
    def read(self, s, cookie, at, n):
        self.chunk(s, cookie, 0x8001 if off is None else 0x8002, complaint(text, off=off), done)
        if not done:
            self.chunk(s, cookie, 0)
    return read


def read_of(server):
    done = byre("io", "-r", "--image-opts", "-c", "read 512 4k", f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={server.path}", code=1)
    return done.out + done.err


@pytest.mark.parametrize("off", [None, 1024])
@pytest.mark.parametrize("done", [True, False])
def test_a_read(liar, backend, off, done):  # noqa: F811
    """The text, and the offset that it is about, also when the answer has another part; and the error as before"""
    out = read_of(liar(read=refuses("the disk is on fire", off, done)))
    assert f"{SAYS}a read of 4096 bytes at offset 512: the disk is on fire" + (f" (at offset {off})" if off else "") in out, out
    assert os.strerror(5) in out


def test_between_data(liar, backend):  # noqa: F811
    """A part of the data, the error of the rest"""
    def read(self, s, cookie, at, n):
        self.chunk(s, cookie, 1, struct.pack(">Q", at) + b"x" * 512, False)
        self.chunk(s, cookie, 0x8002, complaint("a bad sector", off=at + 512), False)
        self.chunk(s, cookie, 1, struct.pack(">Q", at + 1024) + b"x" * (n - 1024), True)
    assert "a bad sector (at offset 1024)" in read_of(liar(read=read))


def test_byte_by_byte(liar, backend):  # noqa: F811
    """An answer that comes in the smallest pieces"""
    def read(self, s, cookie, at, n):
        body = complaint("slow, but sure")
        for byte in struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, cookie, len(body)) + body:
            s.sendall(bytes([byte]))
    assert "slow, but sure" in read_of(liar(read=read))


@pytest.mark.parametrize("body", [complaint(b"\x1b[2J\x07\xff\x00 no"), complaint("x" * 4096), complaint("y" * 9)[:8], struct.pack(">IH", 5, 65535) + b"z" * 100, b"\0\0"],
                         ids=["terminal", "long", "cut", "longer than it is", "short"])
def test_bad_texts(liar, backend, body):  # noqa: F811
    """What is told is printable and short; what makes no sense ends the request, or the connection, and nothing else"""
    def read(self, s, cookie, at, n):
        self.chunk(s, cookie, 0x8001, body)
    out = read_of(liar(read=read))
    assert all(" " <= c <= "~" or c == "\n" for c in out), repr(out)
    assert max(map(len, out.split("\n"))) < 1000
    if body.endswith(b" no"):
        assert "?[2J??? no" in out


def test_hangs_up_in_a_complaint(liar, backend):  # noqa: F811
    """The rest never comes: the request ends with the connection"""
    def read(self, s, cookie, at, n):
        s.sendall(struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, cookie, 100) + b"\0" * 50)
        raise EOFError
    assert SAYS not in read_of(liar(read=read))


def test_a_write(liar, backend):  # noqa: F811
    def request(self, s, kind, cookie, off, n, data, flags):
        if kind != 1:
            return Liar.request(self, s, kind, cookie, off, n, data, flags)
        self.chunk(s, cookie, 0x8001, complaint("no more paper", error=28))
    server = liar(request=request)
    done = byre("io", "--image-opts", "-c", "write 0 64k", f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={server.path}", code=1)
    assert SAYS + "a write of 65536 bytes at offset 0: no more paper" in done.out + done.err
    assert os.strerror(28) in done.out + done.err


def test_convert(liar, tmp_path):  # noqa: F811
    """The message of what fails has it, too"""
    err = byre("convert", "-f", "raw", "-O", "raw", name_of(liar(read=refuses("worn out"))), tmp_path / "out", code=1).err
    assert [line for line in err.split("\n") if "cannot read at offset" in line and "worn out" in line], err


def test_convert_of_another(liar, backend, tmp_path):  # noqa: F811
    """What was said of a question for blocks, which a copy survives, is not the reason of a read that fails later"""
    def request(self, s, kind, cookie, off, n, data, flags):
        if kind != 7:
            return Liar.request(self, s, kind, cookie, off, n, data, flags)
        self.chunk(s, cookie, 0x8001, complaint("no map of it"))
    server = liar(request=request, read=refuses(""))
    err = byre("convert", "-f", "raw", "-O", "raw", name_of(server), tmp_path / "out", code=1).err
    assert f"{SAYS}a question for its blocks" in err, "the warning"
    assert [line for line in err.split("\n") if "cannot read at offset" in line and os.strerror(5) in line and "no map" not in line], err


def test_servers_of_others(tmp_path):
    """The peer's server says something with an error; nbdkit's filter says nothing, and then nothing is told but the error"""
    rules = {"driver": "blkdebug", "image": {"driver": "null-co", "size": MIB}, "inject-error": [{"event": "none", "iotype": "write", "errno": 5}]}
    for server, told in ((nbdserver.qemu_nbd(f"json:{json.dumps({'driver': 'raw', 'file': rules})}"), True),
                         (nbdserver.nbdkit("--filter=error", "memory", "1M", "error=EIO", "error-pwrite-rate=100%"), False)):
        with contextlib.closing(server.start()):
            done = byre("io", "-f", "raw", "-c", "write 0 4k", server.uri, code=1)
            assert (SAYS + "a write of 4096 bytes at offset 0: " in done.out + done.err) is told, done
            assert os.strerror(5) in done.out + done.err


@contextlib.contextmanager
def daemon_of(server, folder):
    """A daemon with the server's disk as the node n (its file: f), as the export n, and as a target the node t. -> a client, where it logs"""
    control, log = folder / "c.sock", folder / "log"
    with open(log, "w") as f:
        daemon = subprocess.Popen([run.BYRE, "daemon", "--chardev", f"socket,id=c,path={control},server=on,wait=off", "--monitor", "chardev=c",
                                   "--nbd-server", f"addr.type=unix,addr.path={folder}/n.sock"], stdin=subprocess.DEVNULL, stdout=f, stderr=f)
    try:
        wait.until(lambda: os.path.exists(control) and wait.listens(daemon, str(control)), "no daemon")
        client = Qmp(str(control))
        client.ok("blockdev-add", driver="raw", node_name="n", file={"driver": "nbd", "node-name": "f", "server": {"type": "unix", "path": server.path}})
        assert not any("x-byre-complaint" in n for n in client.ok("query-named-block-nodes"))
        client.ok("block-export-add", type="nbd", id="e", node_name="n")
        client.ok("blockdev-add", driver="null-co", node_name="t", size=4 * MIB)
        yield client, log
        client.ok("quit")
        assert daemon.wait(60) == 0
    finally:
        daemon.kill()
        daemon.wait()


def failed_read(client, folder):
    run.run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", f"nbd+unix:///n?socket={folder}/n.sock", code=1)
    event = client.wait("BLOCK_IO_ERROR")["data"]
    assert event["reason"] == os.strerror(5), event
    return event.get("x-byre-complaint")


def failed_backup(client):
    client.ok("blockdev-backup", job_id="j", device="n", target="t", sync="full")
    error = client.wait("BLOCK_JOB_COMPLETED", device="j")["data"]["error"]
    assert os.strerror(5) in error, error
    return error


def test_daemon(liar, tmp_path):  # noqa: F811
    """The event of the export and the description of the node have it, the job's error and the log as well"""
    def read(self, s, cookie, at, n):
        refuses("worn out", at)(self, s, cookie, at, n)      # of the request's own range, whichever piece of the backup comes first: another is no answer

    with daemon_of(liar(read=read), tmp_path) as (client, log):
        assert "worn out (at offset 0)" in failed_read(client, tmp_path)
        nodes = {n["node-name"]: n for n in client.ok("query-named-block-nodes")}
        assert "worn out" in nodes["f"]["x-byre-complaint"]
        failed_backup(client)
    assert SAYS in log.read_text()


def test_of_another_request(liar, tmp_path):  # noqa: F811
    """What was said of a request is no reason of another one that fails later with the same number, and of which the server says nothing"""
    text = ["worn out"]

    def read(self, s, cookie, at, n):
        self.chunk(s, cookie, 0x8001, complaint(text[0]))
    with daemon_of(liar(read=read), tmp_path) as (client, _):
        assert "worn out" in failed_read(client, tmp_path)
        text[0] = ""
        assert "worn out" not in failed_backup(client)
        time.sleep(1.1)                  # one event a second
        assert failed_read(client, tmp_path) is None
        assert "worn out" in {n["node-name"]: n for n in client.ok("query-named-block-nodes")}["f"]["x-byre-complaint"], "what it said last"
        text[0] = "worn out again"
        time.sleep(1.1)
        assert "worn out again" in failed_read(client, tmp_path)
