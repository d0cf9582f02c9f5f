# SPDX-License-Identifier: MIT
"""Disks of NBD servers that speak TLS: nbdkit, qemu-nbd and byre serve, byre connects. FEATURES 3.032, 3.073."""
import json
import socket
import subprocess
import threading
import time

import pytest

from lib import nbdserver, pki, run

KEY, OTHER = "5f1e0a6b9c2d47358e6b2c1a90f3d7e4", "00112233445566778899aabbccddeeff"


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    where = tmp_path_factory.mktemp("pki")
    ours, other = pki.Authority(where, "ours"), pki.Authority(where, "other")
    return {"server": ours.folder("server", server=["DNS:disks.example"]), "client": ours.folder("client", client="/CN=fred"), "nobody": ours.folder("nobody"),
            "stranger": other.folder("stranger", client="/CN=fred"), "psk": pki.psk_folder(where, "psk", fred=KEY), "wrong": pki.psk_folder(where, "wrong", fred=OTHER)}


SERVERS = ["nbdkit-x509", "nbdkit-psk", "qemu-x509", "qemu-psk", "byre-x509"]


@pytest.fixture
def serve(certs, tmp_path):
    started = []

    def begin(kind):
        program, creds = kind.split("-")
        tls = ["--object", f"tls-creds-{creds},id=t,endpoint=server,dir={certs['server' if creds == 'x509' else 'psk']}", "--tls-creds", "t"]
        raw = tmp_path / "disk"
        raw.write_bytes(bytes(8 << 20))
        if program == "nbdkit":
            own = [f"--tls-certificates={certs['server']}", "--tls-verify-peer"] if creds == "x509" else [f"--tls-psk={certs['psk']}/keys.psk"]
            s = nbdserver.nbdkit("--tls=require", *own, "memory", "8M")
        elif program == "qemu":
            s = nbdserver.qemu_nbd(*tls, "-f", "raw", "-e", "5", raw)
        else:
            s = nbdserver.NbdServer(lambda sock: [run.BYRE, "nbd", "-t", "-k", sock, *tls, "-f", "raw", "-e", "5", raw])
        started.append(s)
        return s.start()

    yield begin
    for s in started:
        s.close()


def name(server, **more):
    return "json:" + json.dumps({"driver": "raw", "file": {"driver": "nbd", "server": {"type": "unix", "path": server.socket}, "tls-creds": "c", **more}})


def creds(folder, kind="x509", **more):
    return ["--object", f"tls-creds-{kind},id=c,endpoint=client,dir={folder}" + "".join(f",{k.replace('_', '-')}={v}" for k, v in more.items())]


def client(certs, kind):
    return (creds(certs["client"]), {"tls-hostname": "disks.example"}) if kind.endswith("x509") else (creds(certs["psk"], "psk", username="fred"), {})


@pytest.mark.parametrize("kind", SERVERS)
def test_disk(serve, certs, kind):
    """FEATURES 3.032: reads, writes, long transfers, flushes and block status, with certificates and with keys"""
    s = serve(kind)
    who, more = client(certs, kind)
    out = run.byre("io", *who, "-c", "write -P 0x5a 1000 5M", "-c", "flush", "-c", "read -P 0x5a 1000 5M", "-c", "read -P 0 6M 1M", name(s, **more)).out
    assert out.count("5242880/5242880") == 2
    assert run.byre("io", *who, "-c", "read -P 0x5a 1000 5M", name(s, **more)).code == 0
    assert run.byre("info", *who, "--output=json", name(s, **more)).json["virtual-size"] == 8 << 20


def test_refusals(serve, certs):
    """FEATURES 3.032: another authority, another host, none, no certificate, no credentials, those of the other side: each a sentence, and no data"""
    s = serve("nbdkit-x509")
    for who, more, said in (
            (creds(certs["client"]), {"tls-hostname": "other.example"}, "other.example"),
            (creds(certs["client"]), {}, "tls-hostname"),
            (creds(certs["stranger"]), {"tls-hostname": "disks.example"}, "ca-cert.pem"),
            (creds(certs["nobody"]), {"tls-hostname": "disks.example"}, ""),
            (creds(certs["client"], priority="NONSENSE"), {"tls-hostname": "disks.example"}, "NONSENSE"),
            ([], {}, "'c'"),
            (["--object", f"tls-creds-x509,id=c,endpoint=server,dir={certs['server']}"], {}, "endpoint=client")):
        err = run.byre("io", *who, "-c", "read 0 512", name(s, **more), code=1).err
        assert said in err and err.strip(), (said, err)
    assert run.byre("io", *creds(certs["client"], verify_peer="off"), "-c", "read 0 512", name(s)).code == 0
    s = serve("nbdkit-psk")
    assert run.byre("io", *creds(certs["wrong"], "psk", username="fred"), "-c", "read 0 512", name(s), code=1).err


def test_no_way_back(certs, tmp_path):
    """FEATURES 3.032: a server without TLS gets nothing from a client that wants it"""
    s = nbdserver.nbdkit("memory", "1M").start()
    try:
        assert "TLS" in run.byre("io", *creds(certs["psk"], "psk", username="fred"), "-c", "read 0 512", name(s), code=1).err
    finally:
        s.close()


@pytest.mark.parametrize("words", [b"", b"NBDMAGIC", b"x" * 18, b"NBDMAGICIHAVEOPT\0\3" + b"\0" * 40, b"NBDMAGICIHAVEOPT\0\3\0\3\xe8\x89\x04\x55\x65\xa9\0\0\0\5\0\0\0\1\0\0\0\0" + b"garbage" * 99],
                         ids=["nothing", "half", "odd", "zeros", "garbage-for-tls"])
def test_hostile_server(certs, tmp_path, words):
    """FEATURES 3.032: whatever a server says instead of TLS is an error in time"""
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(5)

    def answer():
        c, _ = listener.accept()
        c.sendall(words)
        time.sleep(0.5)
        c.close()

    thread = threading.Thread(target=answer)
    thread.start()
    who = creds(certs["psk"], "psk", username="fred")
    disk = "json:" + json.dumps({"driver": "raw", "file": {"driver": "nbd", "server": {"type": "unix", "path": path}, "tls-creds": "c"}})
    assert run.byre("io", *who, "-c", "read 0 512", disk, code=1, timeout=20).err
    thread.join()
    listener.close()


def test_comes_back(certs, tmp_path):
    """FEATURES 3.032, 3.033: the connection is made again, with TLS, when the server was gone for a moment"""
    raw = tmp_path / "disk"
    raw.write_bytes(bytes(8 << 20))
    s = nbdserver.nbdkit("--tls=require", f"--tls-psk={certs['psk']}/keys.psk", "file", raw).start()
    try:
        who = creds(certs["psk"], "psk", username="fred")
        io = subprocess.Popen([run.BYRE, "io", *who, name(s, **{"reconnect-delay": 20})], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        io.stdin.write("write -P 7 0 64k\n")
        io.stdin.flush()
        assert "65536/65536" in io.stdout.readline() + io.stdout.readline()
        s.kill()
        s.start()
        out, _ = io.communicate("write -P 8 64k 64k\nread -P 7 0 64k\nread -P 8 64k 64k\n", timeout=60)
        assert out.count("65536/65536") == 3 and "failed" not in out and io.returncode == 0
    finally:
        s.close()
