# SPDX-License-Identifier: MIT
"""TLS where a server is named by a URI, and where its exports are listed (FEATURES 3.030, 3.032, 7.014)."""
import json
import socket
import subprocess
import types

import pytest

from lib import peers, pki, run

PSK = "5f1e0a6b9c2d47358e6b2c1a90f3d7e4"


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    where = tmp_path_factory.mktemp("pki")
    ours, other = pki.Authority(where, "ours"), pki.Authority(where, "other")
    made = types.SimpleNamespace()
    made.server = ours.folder("server", server=["DNS:localhost", "IP:127.0.0.1", "DNS:disks.example"])
    made.fred = ours.folder("fred", client="/CN=fred")
    made.stranger = other.folder("stranger", client="/CN=fred")
    made.psk = pki.psk_folder(where, "psk", fred=PSK)
    made.wrong_psk = pki.psk_folder(where, "wrong", fred="00112233445566778899aabbccddeeff")
    return made


def x509(folder):
    return ["--object", f"tls-creds-x509,id=t,endpoint=server,dir={folder}", "--tls-creds", "t"]


def psk(folder):
    return ["--object", f"tls-creds-psk,id=t,endpoint=server,dir={folder}", "--tls-creds", "t"]


@pytest.fixture
def serve(start, disk):
    """At a unix socket, or (port) at a port of 127.0.0.1, of which the second thing returned is the number."""

    def begin(*words, port=False, peer=False):
        if not port:
            daemon = start("nbd", "-t", "-e", "0", "-k", "FOLDER/k", "-f", "qcow2", "-x", "disk", "-D", "a disk", *words, "a.qcow2", peer=peer)
            daemon.wait_for("k")
            return daemon
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            number = s.getsockname()[1]
        daemon = start("nbd", "-t", "-e", "0", "-b", "127.0.0.1", "-p", number, "--pid-file", "FOLDER/pid", "-f", "qcow2", "-x", "disk", *words, "a.qcow2", peer=peer)
        daemon.wait_for("pid")
        return daemon, number

    return begin


def size(uri, code=0):
    done = run.byre("info", "--output=json", "-f", "raw", uri, code=code)
    return done.json["virtual-size"] if code == 0 else done.err


@pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
def test_certificates(serve, certs, peer):
    """FEATURES 3.030, 3.032: nbds+unix with a folder of certificates, as libnbd takes it; the name of the host has to be given or not asked for"""
    daemon = serve(*x509(certs.server), peer=peer)
    uri = f"nbds+unix:///disk?socket={daemon.folder}/k&tls-certificates={certs.fred}"
    assert size(uri + "&tls-hostname=disks.example") == 8 << 20
    assert size(uri + "&tls-verify-peer=false") == 8 << 20
    assert "another host" in size(uri + "&tls-hostname=odd.example", code=1)
    assert size(f"nbds+unix:///disk?socket={daemon.folder}/k&tls-certificates={certs.stranger}&tls-hostname=localhost", code=1)
    assert "TLS" in size(f"nbd+unix:///disk?socket={daemon.folder}/k", code=1)
    run.byre("io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "flush", uri + "&tls-verify-peer=false")
    assert run.run("nbdinfo", "--size", uri).out.strip() == str(8 << 20)                # the same words as libnbd's


def test_host_of_the_uri(serve, certs):
    """FEATURES 3.032: over TCP the host of the URI is the one that the certificate must name"""
    _, port = serve(*x509(certs.server), port=True)
    assert size(f"nbds://127.0.0.1:{port}/disk?tls-certificates={certs.fred}") == 8 << 20
    assert "another host" in size(f"nbds://127.0.0.1:{port}/disk?tls-certificates={certs.fred}&tls-hostname=odd.example", code=1)
    assert size(f"nbds://127.0.0.1:{port}/disk", code=1)                                # nobody on this machine trusts that authority


def test_keys(serve, certs):
    """FEATURES 3.030, 3.032: a user and a file of keys; another key, another user and no TLS at the server are refused"""
    daemon = serve(*psk(certs.psk))
    at = f"{daemon.folder}/k"
    assert size(f"nbds+unix://fred@/disk?socket={at}&tls-psk-file={certs.psk}/keys.psk") == 8 << 20
    assert size(f"nbds+unix://fred@/disk?socket={at}&tls-psk-file={certs.wrong_psk}/keys.psk", code=1)
    assert "'ginger'" in size(f"nbds+unix://ginger@/disk?socket={at}&tls-psk-file={certs.psk}/keys.psk", code=1)
    assert "no-such" in size(f"nbds+unix://fred@/disk?socket={at}&tls-psk-file=/no-such/file", code=1)
    daemon.stop()
    plain = serve()
    assert "no TLS" in size(f"nbds+unix://fred@/disk?socket={plain.folder}/k&tls-psk-file={certs.psk}/keys.psk", code=1)


def test_not_from_images(serve, certs, tmp_path):
    """FEATURES 3.032: what is written in an image cannot make this program read keys or certificates; the same disk by tls-creds can be a backing file"""
    daemon = serve(*psk(certs.psk))
    uri = f"nbds+unix://fred@/disk?socket={daemon.folder}/k&tls-psk-file={certs.psk}/keys.psk"
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", uri, "-F", "raw", tmp_path / "hostile.qcow2", "8M")
    assert "keys or certificates" in run.byre("map", tmp_path / "hostile.qcow2", code=1).err
    name = "json:" + json.dumps({"driver": "nbd", "server": {"type": "unix", "path": f"{daemon.folder}/k"}, "export": "disk", "tls-creds": "c"})
    run.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", tmp_path / "good.qcow2", "8M")
    creds = ["--object", f"tls-creds-psk,id=c,endpoint=client,dir={certs.psk},username=fred"]
    assert run.byre("map", "--output=json", *creds, tmp_path / "good.qcow2").json[0]["data"]


# ---- byre nbd --list ----

def listing(program, *words, code=0):
    done = subprocess.run([*program, "--list", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (program, words, done)
    return done.stdout if code == 0 else done.stderr


def both(*words):
    """What ours prints; the newer of the peer's versions prints the same where its program takes the words."""
    mine = listing([run.BYRE, "nbd"], *words)
    program = peers.need("qemu-nbd")
    if "--tls-hostname" not in words or "tls-hostname" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout:
        assert listing([program], *words) == mine
    return mine


def client(folder, kind="x509", **more):
    words = "".join(f",{k}={v}" for k, v in more.items())
    return ["--object", f"tls-creds-{kind},id=c,endpoint=client,dir={folder}{words}", "--tls-creds", "c"]


def test_list_with_certificates(serve, certs):
    """FEATURES 7.014: the exports of a server behind TLS, at a port and at a socket; its name in the certificate by --tls-hostname"""
    first, port = serve(*x509(certs.server), port=True)
    assert "export: 'disk'" in both("-b", "127.0.0.1", "-p", port, *client(certs.fred))
    assert "another host" in listing([run.BYRE, "nbd"], "-b", "127.0.0.1", "-p", port, *client(certs.fred), "--tls-hostname", "odd.example", code=1)
    first.stop()
    daemon = serve(*x509(certs.server))
    out = both("-k", f"{daemon.folder}/k", *client(certs.fred), "--tls-hostname", "disks.example")
    assert "exports available: 1\n export: 'disk'\n  description: a disk\n  size:  8388608\n" in out and "base:allocation" in out
    assert listing([run.BYRE, "nbd"], "-k", f"{daemon.folder}/k", *client(certs.fred), code=1)             # which host a socket is nobody knows
    assert "TLS" in listing([run.BYRE, "nbd"], "-k", f"{daemon.folder}/k", code=1)
    assert listing([run.BYRE, "nbd"], "-k", f"{daemon.folder}/k", *client(certs.stranger), "--tls-hostname", "localhost", code=1)


def test_list_with_keys(serve, certs):
    """FEATURES 7.014: by pre-shared keys"""
    daemon = serve(*psk(certs.psk))
    assert "export: 'disk'" in both("-k", f"{daemon.folder}/k", *client(certs.psk, "psk", username="fred"))
    assert listing([run.BYRE, "nbd"], "-k", f"{daemon.folder}/k", *client(certs.wrong_psk, "psk", username="fred"), code=1)


@pytest.mark.parametrize("words, why", [
    (["--tls-creds", "zz"], "'zz'"), (["--tls-hostname", "x"], "--tls-creds"), (["--tls-authz", "x"], "TLS authorization is incompatible with export list")])
def test_wrong_words(words, why):
    """FEATURES 7.014: what --list does not take, or lacks"""
    assert why in listing([run.BYRE, "nbd"], "-k", "/no/such/socket", *words, code=1)


def test_hostname_of_a_server(disk):
    """FEATURES 7.014: --tls-hostname is for --list alone"""
    done = subprocess.run([run.BYRE, "nbd", "-k", "/no/such", "--tls-hostname", "x", str(disk)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "--tls-hostname" in done.stderr
