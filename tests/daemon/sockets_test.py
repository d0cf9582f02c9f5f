# SPDX-License-Identifier: MIT
"""Where servers listen and monitors are: abstract names, sockets of virtual machines, descriptors (FEATURES 3.049, 8.003, 8.004)."""
import os
import socket
import subprocess

import pytest

from lib import peers, run
from qmp_client import Qmp

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
NODE = ["--blockdev", "driver=null-co,node-name=n,size=1048576,read-zeroes=on"]
EXPORT = ["--export", "type=nbd,id=e,node-name=n,writable=on"]
GREETING = b"NBDMAGICIHAVEOPT"


def greets(kind, address):
    with socket.socket(kind) as s:
        s.settimeout(20)
        s.connect(address)
        return s.recv(16, socket.MSG_WAITALL) == GREETING


@pytest.fixture
def name():
    """An abstract name of this test alone."""
    return f"byre-test-{os.getpid()}-{os.urandom(6).hex()}"


@BOTH
@pytest.mark.parametrize("tight", [None, "on", "off"])
def test_abstract_server(start, name, tight, peer):
    """FEATURES 3.049, 8.004: an NBD server under an abstract name, as long as the name or filled up; the clients of both programs find it"""
    words = f"addr.type=unix,addr.path={name},addr.abstract=on" + (f",addr.tight={tight}" if tight else "")
    daemon = start("daemon", *NODE, "--nbd-server", words, *EXPORT, peer=peer)
    client = daemon.qmp()
    assert greets(socket.AF_UNIX, (b"\0" + name.encode()).ljust(108 if tight == "off" else 0, b"\0"))
    with pytest.raises(ConnectionRefusedError):                                         # not under the other form
        greets(socket.AF_UNIX, (b"\0" + name.encode()).ljust(0 if tight == "off" else 108, b"\0"))
    image = f"driver=nbd,server.type=unix,server.path={name},server.abstract=on,export=n" + (f",server.tight={tight}" if tight else "")
    assert run.byre("info", "--output=json", "--image-opts", image).json["virtual-size"] == 1 << 20
    assert run.qemu_img("info", "--output=json", "--image-opts", image).json["virtual-size"] == 1 << 20
    if not peer:
        assert client.ok("x-byre-query-nbd-servers")[0]["addresses"][0].rstrip("\0") == f"unix:@{name}"
    assert not os.path.exists(os.path.join(daemon.folder, name))
    client.ok("nbd-server-stop")
    with pytest.raises(ConnectionRefusedError):
        greets(socket.AF_UNIX, b"\0" + name.encode())
    assert daemon.stop()[0] == 0


def test_abstract_name_in_use(start, name):
    """FEATURES 3.049: a name that somebody has is refused; a file of that name is not touched, not even at the end"""
    daemon = start("daemon", *NODE, "--nbd-server", f"addr.type=unix,addr.path={name},addr.abstract=on")
    daemon.qmp()
    with open(os.path.join(daemon.folder, name), "w") as f:
        f.write("a file")
    other = start("daemon", *NODE)
    client = other.qmp()
    where = {"type": "unix", "data": {"path": name, "abstract": True}}
    assert "already" in client.refused("nbd-server-start", addr=where)
    assert "bytes" in client.refused("nbd-server-start", addr={"type": "unix", "data": {"path": "x" * 108, "abstract": True}})
    assert daemon.stop()[0] == 0 and os.path.exists(os.path.join(daemon.folder, name))
    client.ok("nbd-server-start", addr=where)
    assert other.stop()[0] == 0


@BOTH
@pytest.mark.parametrize("tight", [True, False])
def test_abstract_monitor(start, name, tight, peer):
    """FEATURES 3.049, 8.003: a monitor under an abstract name; ours asks who connects, since such names have no permissions"""
    words = f"socket,id=m,path={name},abstract=on,tight={'on' if tight else 'off'},server=on,wait=off"
    daemon = start("daemon", "--chardev", words, "--monitor", "chardev=m", peer=peer)
    daemon.qmp()
    client = Qmp((b"\0" + name.encode()).ljust(0 if tight else 108, b"\0"))
    label = {d["label"]: d["filename"] for d in client.ok("query-chardev")}["m"]
    assert peer or (name in label and "abstract" in label)                              # the peer's has no name there
    client.close()
    if not peer and os.geteuid() == 0:
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({(chr(0) + name).ljust(0 if tight else 108, chr(0))!r}); print(len(s.recv(100)))"
        done = subprocess.run([peers.need("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "python3", "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.strip() in ("0", ""), done                                  # another user is cut off without a word
    assert daemon.stop()[0] == 0


def vsock():
    """Can this kernel carry a connection of such sockets to itself? None: it has none at all."""
    try:
        with socket.socket(socket.AF_VSOCK) as a, socket.socket(socket.AF_VSOCK) as b:
            a.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            a.listen(1)
            b.settimeout(5)
            b.connect((1, a.getsockname()[1]))
            return True
    except OSError as e:
        return None if e.errno == 97 else False


def free_port():
    with socket.socket(socket.AF_VSOCK) as s:
        s.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        return s.getsockname()[1]


@BOTH
def test_vsock(start, peer):
    """FEATURES 3.049, 3.030, 8.004: sockets of virtual machines: a server listens and serves where this kernel can carry them; where it has none, that is what
    is said"""
    can = vsock()
    daemon = start("daemon", *NODE, peer=peer)
    client = daemon.qmp()

    def at(port, cid="1"):
        return {"type": "vsock", "data": {"cid": cid, "port": str(port)}}

    if can is None:
        assert "vsock" in client.refused("nbd-server-start", addr=at(10809)).lower() or peer
        return
    port = free_port()
    client.ok("nbd-server-start", addr=at(port, str(socket.VMADDR_CID_ANY)))
    client.ok("block-export-add", **{"type": "nbd", "id": "e", "node-name": "n"})
    if not peer:
        assert client.ok("x-byre-query-nbd-servers")[0]["addresses"] == [f"vsock:{socket.VMADDR_CID_ANY}:{port}"]
        taken = start("daemon", *NODE).qmp()
        for bad, why in ((at(port, str(socket.VMADDR_CID_ANY)), "vsock"), (at("x"), "'x'"), (at(1, "4294967296"), "4294967296"), (at(-1), "'-1'")):
            assert why in taken.refused("nbd-server-start", addr=bad)
        taken.ok("nbd-server-start", addr=at(free_port(), "-1"))
    if can:
        assert greets(socket.AF_VSOCK, (1, port))
        assert run.byre("info", "--output=json", f"nbd+vsock://1:{port}/n").json["virtual-size"] == 1 << 20
    assert daemon.stop()[0] == 0


def test_no_monitor_for_machines(start):
    """FEATURES 3.049: control is not offered to virtual machines, nor on ports: nobody could say who asks"""
    client = start("daemon").qmp()
    for kind, data in (("vsock", {"cid": "2", "port": "5"}), ("inet", {"host": "localhost", "port": "0"})):
        assert "unix sockets only" in client.refused("chardev-add", id="x", backend={"type": "socket", "data": {"addr": {"type": kind, "data": data}}})


@BOTH
def test_descriptor(start, tmp_path, peer):
    """FEATURES 3.049, 8.004: a listening socket that was handed over"""
    with socket.socket(socket.AF_UNIX) as s:
        path = str(tmp_path / "handed")
        s.bind(path)
        s.listen(4)
        os.set_inheritable(s.fileno(), True)
        program = [peers.need("qemu-storage-daemon")] if peer else [run.BYRE, "daemon"]
        words = [*NODE, "--nbd-server", f"addr.type=fd,addr.str={s.fileno()}", *EXPORT]
        process = subprocess.Popen([*program, *words], pass_fds=[s.fileno()], stdin=subprocess.DEVNULL)
    try:
        assert greets(socket.AF_UNIX, path)
    finally:
        process.terminate()
        assert process.wait(30) == 0
