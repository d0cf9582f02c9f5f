# SPDX-License-Identifier: MIT
"""TLS of NBD servers: byre serves, libnbd and the peers connect."""
import contextlib
import json
import os
import socket
import ssl
import struct
import time
import types

import pytest

from lib import peers, pki, run

PSK = "5f1e0a6b9c2d47358e6b2c1a90f3d7e4"
OTHER_PSK = "00112233445566778899aabbccddeeff"


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """Folders of credentials. `fred` and `mallory` are clients of the authority that the server knows, `stranger` of another one."""
    where = tmp_path_factory.mktemp("pki")
    ours, other = pki.Authority(where, "ours"), pki.Authority(where, "other")
    made = types.SimpleNamespace(where=where, authority=ours)
    made.server = ours.folder("server", server=["DNS:localhost", "IP:127.0.0.1", "DNS:disks.example"])
    made.fred = ours.folder("fred", client="/C=DE/O=Example/CN=fred")
    made.mallory = ours.folder("mallory", client="/C=DE/O=Example/CN=mallory")
    made.nobody = ours.folder("nobody")                    # knows the authority, has no certificate
    made.stranger = other.folder("stranger", client="/CN=fred")
    made.psk = pki.psk_folder(where, "psk", fred=PSK, mallory=OTHER_PSK)
    made.wrong_psk = pki.psk_folder(where, "wrong", fred=OTHER_PSK)
    return made


@pytest.fixture
def serve(start, disk):
    """serve(word...) starts `byre nbd` with these words and waits for its socket."""

    def begin(*words, peer=False):
        daemon = start("nbd", "-t", "-e", "0", "-k", "FOLDER/k", "-f", "qcow2", *words, "a.qcow2", peer=peer)
        daemon.wait_for("k")
        return daemon

    return begin


def x509(folder, **more):
    words = "".join(f",{k.replace('_', '-')}={v}" for k, v in more.items())
    return ["--object", f"tls-creds-x509,id=t,endpoint=server,dir={folder}{words}", "--tls-creds", "t"]


def psk(folder):
    return ["--object", f"tls-creds-psk,id=t,endpoint=server,dir={folder}", "--tls-creds", "t"]


def connect(daemon, folder=None, user=None, psk_file=None, tls=2, path="k", verify=True):
    """A client of libnbd. It raises when the server does not let it in; also when that comes behind the client's own handshake."""
    nbd = peers.need_module("nbd")
    h = nbd.NBD()
    h.set_tls(tls)
    if folder:
        h.set_tls_certificates(str(folder))
        h.set_tls_verify_peer(verify)
    if user:
        h.set_tls_username(user)
    if psk_file:
        h.set_tls_psk_file(str(psk_file))
    h.connect_unix(os.path.join(daemon.folder, path))
    return h


def refused(daemon, *args, **kwargs):
    nbd = peers.need_module("nbd")
    with pytest.raises(nbd.Error) as e:
        connect(daemon, *args, **kwargs).pread(512, 0)
    return str(e.value)


def works(h, size=8 << 20):
    """Reads, writes, long transfers, the end."""
    assert h.get_size() == size
    data = os.urandom(5 << 20)
    h.pwrite(data, 777)
    h.flush()
    assert h.pread(len(data), 777) == data
    assert h.pread(1, 777 + 100) == data[100:101]
    h.shutdown()
    return True


def test_certificates(serve, certs):
    """FEATURES 10.003, 7.013, 3.073: who has a certificate of the authority gets in, whoever has none or another one does not, and plain clients
    are told why; the server lives on"""
    daemon = serve(*x509(certs.server))
    assert works(connect(daemon, certs.fred))
    assert "TLS" in refused(daemon, tls=0)
    assert refused(daemon, certs.nobody)
    assert refused(daemon, certs.stranger, verify=False)
    assert works(connect(daemon, certs.mallory))
    assert daemon.stop()[0] == 0


def test_certificates_not_asked_for(serve, certs):
    """FEATURES 3.073: verify-peer=off lets clients without a certificate in"""
    daemon = serve(*x509(certs.server, verify_peer="off"))
    assert works(connect(daemon, certs.nobody))
    assert "TLS" in refused(daemon, tls=0)


def test_keys(serve, certs):
    """FEATURES 10.003, 7.013, 3.073: pre-shared keys; a wrong key and an unknown user are refused; the file may change under the server"""
    daemon = serve(*psk(certs.psk))
    assert works(connect(daemon, user="fred", psk_file=certs.psk / "keys.psk"))
    assert refused(daemon, user="fred", psk_file=certs.wrong_psk / "keys.psk")
    assert refused(daemon, user="ginger", psk_file=certs.psk / "keys.psk")
    assert refused(daemon, certs.fred)
    assert refused(daemon, tls=0)


def test_programs(serve, certs):
    """FEATURES 10.003, 3.073: the tools of libnbd by their URIs, and the peer's tool with credentials of its own"""
    daemon = serve(*x509(certs.server))
    uri = f"nbds+unix:///?socket={daemon.folder}/k&tls-certificates={certs.fred}"
    assert run.run("nbdinfo", "--json", uri).json["exports"][0]["export-size"] == 8 << 20
    assert "TLS" in run.run("nbdinfo", "--size", f"nbd+unix:///?socket={daemon.folder}/k", code=1).err
    out = run.run("qemu-img", "info", "--object", f"tls-creds-x509,id=t,endpoint=client,dir={certs.fred}", "--output=json", "--image-opts",
                  f"driver=nbd,server.type=unix,server.path={daemon.folder}/k,tls-creds=t,tls-hostname=disks.example").json
    assert out["virtual-size"] == 8 << 20


def test_anonymous(serve, certs):
    """FEATURES 3.073: nobody proves anything, and yet whoever speaks no TLS is refused"""
    daemon = serve("--object", "tls-creds-anon,id=t,endpoint=server", "--tls-creds", "t")
    out = run.run("qemu-img", "info", "--object", "tls-creds-anon,id=t,endpoint=client", "--output=json", "--image-opts",
                  f"driver=nbd,server.type=unix,server.path={daemon.folder}/k,tls-creds=t").json
    assert out["virtual-size"] == 8 << 20
    assert refused(daemon, tls=0) and refused(daemon, certs.fred)


RULES = {
    "simple": ["authz-simple,id=z,identity={fred}"],
    "list": ["authz-list,id=z,policy=deny,rules.0.match={fred},rules.0.policy=allow,rules.0.format=exact"],
    "glob": ["authz-list,id=z,rules.0.match=*mallory*,rules.0.policy=deny,rules.0.format=glob,rules.1.match=*Example*,rules.1.policy=allow,rules.1.format=glob"],
    "json": ['{{"qom-type": "authz-list", "id": "z", "policy": "deny", "rules": [{{"match": "{raw}", "policy": "allow", "format": "exact"}}]}}'],
}


@pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
@pytest.mark.parametrize("rules", RULES)
def test_rules(serve, certs, rules, peer):
    """FEATURES 3.074, 8.023, 7.013: of two clients with good certificates one is allowed; the names are those that the peer's rules have"""
    raw = "C=DE,O=Example,CN=fred"
    objects = [w for text in RULES[rules] for w in ("--object", text.format(fred=raw.replace(",", ",,"), raw=raw))]
    daemon = serve(*x509(certs.server), *objects, "--tls-authz", "z", peer=peer)
    assert works(connect(daemon, certs.fred))
    assert refused(daemon, certs.mallory)


def test_rules_about_keys(serve, certs):
    """FEATURES 3.074, 10.003: the name of a pre-shared key is its user"""
    daemon = serve(*psk(certs.psk), "--object", "authz-simple,id=z,identity=fred", "--tls-authz", "z")
    assert works(connect(daemon, user="fred", psk_file=certs.psk / "keys.psk"))
    assert refused(daemon, user="mallory", psk_file=certs.psk / "keys.psk")


def test_rules_of_a_file(serve, certs, tmp_path):
    """FEATURES 3.074: a file of rules is read again when it changes; while it is no such file nobody gets in"""
    path = tmp_path / "rules"

    def allow(text):
        path.with_suffix(".new").write_text(json.dumps({"policy": "deny", "rules": [{"match": text, "policy": "allow", "format": "glob"}]}))
        os.rename(path.with_suffix(".new"), path)

    allow("*CN=fred")
    daemon = serve(*x509(certs.server), "--object", f"authz-list-file,id=z,filename={path}", "--tls-authz", "z")
    assert works(connect(daemon, certs.fred)) and refused(daemon, certs.mallory)
    allow("*CN=mallory")
    assert works(connect(daemon, certs.mallory)) and refused(daemon, certs.fred)
    path.write_text("{")
    assert refused(daemon, certs.mallory) and refused(daemon, certs.fred)
    os.unlink(path)
    assert refused(daemon, certs.mallory)
    allow("*")
    assert works(connect(daemon, certs.fred))


@pytest.fixture
def pam_service(tmp_path):
    """pam_service(lines): a service of PAM with these rules, under a name of its own."""
    peers.need_root()
    made = []

    def make(lines):
        if not os.path.isdir("/etc/pam.d"):
            peers.missing("/etc/pam.d")
        made.append(f"/etc/pam.d/byre-test-{os.getpid()}-{len(made)}")
        with open(made[-1], "x") as f:
            f.write(lines)
        return os.path.basename(made[-1])

    yield make
    for path in made:
        os.unlink(path)


def test_rules_of_pam(serve, certs, tmp_path, pam_service):
    """FEATURES 3.074 (the peer of Debian is built without): the account rules of a service decide, for each client anew; a question of a module, a service that is not there, and one with a fault mean no"""
    users = tmp_path / "users"
    users.write_text("fred\n")
    service = pam_service(f"account required pam_listfile.so item=user sense=allow file={users} onerr=fail\n")
    daemon = serve(*psk(certs.psk), "--object", f"authz-pam,id=z,service={service}", "--tls-authz", "z")
    fred = dict(user="fred", psk_file=certs.psk / "keys.psk")
    mallory = dict(user="mallory", psk_file=certs.psk / "keys.psk")
    assert works(connect(daemon, **fred)) and refused(daemon, **mallory)
    users.write_text("mallory\n")
    assert works(connect(daemon, **mallory)) and refused(daemon, **fred)
    for lines in ("account required pam_deny.so\n", "account required pam_no_such_module.so\n", "auth required pam_permit.so\naccount required pam_deny.so\n"):
        daemon.stop()
        daemon = serve(*psk(certs.psk), "--object", f"authz-pam,id=z,service={pam_service(lines)}", "--tls-authz", "z")
        assert refused(daemon, **fred)


def test_rules_that_are_not_there(start, disk, certs):
    """FEATURES 8.023, 10.003: rules are looked up for each client: none of that name let nobody in, and they may come later"""
    daemon = start("daemon", "--blockdev", "file,node-name=f,filename=a.qcow2", "--blockdev", "qcow2,node-name=q,file=f",
                   "--object", f"tls-creds-x509,id=t,endpoint=server,dir={certs.server}",
                   "--nbd-server", "addr.type=unix,addr.path=FOLDER/k,tls-creds=t,tls-authz=z", "--export", "nbd,id=e,node-name=q,name=,writable=on")
    assert refused(daemon, certs.fred)
    with contextlib.closing(daemon.qmp()) as q:
        q.ok("object-add", **{"qom-type": "authz-list", "id": "z", "policy": "deny", "rules": [{"match": "*CN=fred", "policy": "allow", "format": "glob"}]})
        assert works(connect(daemon, certs.fred)) and refused(daemon, certs.mallory)
        q.ok("object-del", id="z")
        assert refused(daemon, certs.fred)
        q.ok("object-add", **{"qom-type": "authz-simple", "id": "z", "identity": "C=DE,O=Example,CN=mallory"})
        assert works(connect(daemon, certs.mallory)) and refused(daemon, certs.fred)
        q.ok("object-del", id="t")                    # who uses it goes on
        assert works(connect(daemon, certs.mallory))


def test_several_servers(start, disk, certs):
    """FEATURES 10.024, G.042: one set of exports behind a plain socket and a TLS port; each may be closed for itself"""
    daemon = start("daemon", "--blockdev", "file,node-name=f,filename=a.qcow2", "--blockdev", "qcow2,node-name=q,file=f",
                   "--object", f"tls-creds-x509,id=t,endpoint=server,dir={certs.server}", "--nbd-server", "addr.type=unix,addr.path=FOLDER/k",
                   "--export", "nbd,id=e,node-name=q,name=,writable=on")
    with contextlib.closing(daemon.qmp()) as q:
        unix = {"type": "unix", "data": {"path": f"{daemon.folder}/k2"}}
        assert "already" in q.refused("nbd-server-start", addr=unix)      # as the peer, unless it is given a name
        q.ok("nbd-server-start", addr=unix, x_byre_id="two", **{"tls-creds": "t", "max-connections": 2})
        assert "two" in q.refused("nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}, x_byre_id="two")
        q.ok("nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}, x_byre_id="three")
        plain, secret = connect(daemon, tls=0), connect(daemon, certs.fred, path="k2")
        servers = q.ok("x-byre-query-nbd-servers")
        assert [s.get("id") for s in servers] == [None, "two", "three"]
        assert servers[1] == {"id": "two", "addresses": [f"unix:{daemon.folder}/k2"], "connections": 1, "max-connections": 2, "tls-creds": "t"}
        assert servers[2]["addresses"][0].startswith("127.0.0.1:") and servers[0]["connections"] == 1
        plain.pwrite(b"x" * 512, 0)
        assert secret.pread(512, 0) == b"x" * 512
        q.ok("nbd-server-stop", x_byre_id="two")
        assert not os.path.exists(f"{daemon.folder}/k2")
        nbd = peers.need_module("nbd")
        with pytest.raises(nbd.Error):
            secret.pread(512, 0)
        assert plain.pread(512, 0) == b"x" * 512
        assert "two" in q.refused("nbd-server-stop", x_byre_id="two")
        assert [s.get("id") for s in q.ok("x-byre-query-nbd-servers")] == [None, "three"]
        q.ok("nbd-server-stop")
        assert q.ok("x-byre-query-nbd-servers") == [] and q.ok("query-block-exports") == []
        q.ok("nbd-server-start", addr=unix, x_byre_id="two")
        assert q.refused("nbd-server-start", addr={"type": "unix", "data": {"path": "/no/such/folder/k"}}, x_byre_id="bad")
        assert [s.get("id") for s in q.ok("x-byre-query-nbd-servers")] == ["two"]


BAD = [
    (["--object", "tls-creds-x509,id=t,endpoint=server", "--tls-creds", "t"], "dir"),
    (["--object", "tls-creds-x509,id=t,endpoint=server,dir=/nowhere", "--tls-creds", "t"], "/nowhere/ca-cert.pem"),
    (["--object", "tls-creds-psk,id=t,endpoint=server,dir=/nowhere", "--tls-creds", "t"], "/nowhere"),
    (["--object", "tls-creds-x509,id=t,endpoint=client,dir={fred}", "--tls-creds", "t"], "endpoint=server"),
    (["--object", "tls-creds-x509,id=t,endpoint=server,dir={server},priority=NONSENSE", "--tls-creds", "t"], "NONSENSE"),
    (["--object", "tls-creds-x509,id=t,endpoint=server,dir={server},passwordid=none", "--tls-creds", "t"], "none"),
    (["--object", "tls-creds-x509,id=t,endpoint=server,dir={server},verify=off", "--tls-creds", "t"], "verify"),
    (["--object", "tls-creds-x509,id=t,endpoint=server,dir={server},verify-peer=maybe", "--tls-creds", "t"], "verify-peer"),
    (["--object", "tls-creds-psk,id=t,endpoint=server,dir={psk},username=fred", "--tls-creds", "t"], "username"),
    (["--tls-creds", "t"], "'t'"),
    (["--tls-authz", "z"], "tls-authz"),
    (["--object", "tls-creds-anon,id=t,endpoint=server", "--tls-creds", "t", "--tls-authz", "z"], "tls-authz"),
    (["--object", "tls-creds-x509,id=t,endpoint=server,dir={server},verify-peer=off", "--tls-creds", "t", "--tls-authz", "z"], "tls-authz"),
    (["--object", "authz-pam,id=z"], "service"),
    (["--object", "authz-pam,id=z,service=s,user=u"], "user"),
    (["--object", "authz-simple,id=z"], "identity"),
    (["--object", "authz-list,id=z,rules.0.match=a"], "policy"),
    (["--object", "authz-list,id=z,rules.1.match=a,rules.1.policy=allow"], "rules.1"),
    (["--object", "authz-list,id=z,policy=perhaps"], "perhaps"),
    (["--object", "authz-list-file,id=z,filename=/nowhere"], "/nowhere"),
    (["--object", "authz-simple,id=z,identity=a", "--object", "secret,id=z,data=a"], "'z'"),
    (["--object", "secret,id=z,data=a", "--object", "authz-simple,id=z,identity=a"], "'z'"),
    (["--object", "authz-simple,id=z,identity=a", "--object", "authz-simple,id=z,identity=a"], "'z'"),
]


@pytest.mark.parametrize("words, named", BAD, ids=lambda w: None if isinstance(w, str) else w[-1][:60])
def test_faults_of_definitions(start, disk, certs, words, named):
    """FEATURES 3.073, 3.074, 7.013: what will not do is refused by name before anything listens"""
    daemon = start("nbd", "-t", "-k", "FOLDER/k", "-f", "qcow2", *[w.format(**vars(certs)) for w in words], "a.qcow2")
    code, out = daemon.wait()
    assert code == 1 and named in out and not os.path.exists(f"{daemon.folder}/k"), out


def test_faults_of_certificates(start, disk, certs):
    """FEATURES 3.073: an own certificate that nobody would accept is found at the start; sanity-check=off takes it as it is; a key with a password
    needs it, and no message has it"""
    a = certs.authority
    old = a.folder("old", server=["DNS:localhost"], begin="20200101000000Z", end="20210101000000Z")
    locked = a.folder("locked", server=["DNS:localhost"], password="secret-word")
    wrong = a.folder("wrong", client="/CN=x")
    for part in ("key", "cert"):
        os.rename(wrong / f"client-{part}.pem", wrong / f"server-{part}.pem")
    for folder, said in ((old, "expired"), (locked, "server-key.pem"), (wrong, "purpose")):
        code, out = start("nbd", "-k", "FOLDER/k", *x509(folder), "a.qcow2").wait()
        assert code == 1 and said in out, out
    words = ["--object", "secret,id=s,data=secret-word", "--object", f"tls-creds-x509,id=t,endpoint=server,dir={locked},passwordid=s", "--tls-creds", "t"]
    bad = [w.replace("data=secret-word", "data=other-word") for w in words]
    code, out = start("nbd", "-k", "FOLDER/k", *bad, "a.qcow2").wait()
    assert code == 1 and "server-key.pem" in out and "other-word" not in out, out
    daemon = start("nbd", "-k", "FOLDER/k", "-f", "qcow2", *words, "a.qcow2")
    daemon.wait_for("k")
    assert works(connect(daemon, certs.fred))
    assert daemon.wait()[0] == 0
    daemon = start("nbd", "-t", "-k", "FOLDER/k", "-f", "qcow2", *x509(old, sanity_check="off"), "a.qcow2")
    daemon.wait_for("k")
    assert works(connect(daemon, certs.fred, verify=False))


def test_revoked(serve, certs):
    """FEATURES 3.073: ca-crl.pem takes a certificate back"""
    folder = certs.authority.folder("crl", server=["DNS:localhost"])
    certs.authority.sign("gone-c", "/CN=gone", "clientAuth")
    gone = certs.authority.folder("gone")
    for part in ("key", "cert"):
        os.link(certs.authority.where / f"gone-c-{part}.pem", gone / f"client-{part}.pem")
    daemon = serve(*x509(certs.server))
    assert works(connect(daemon, gone))
    assert daemon.stop()[0] == 0
    certs.authority.revoke("gone-c", folder / "ca-crl.pem")
    daemon = serve(*x509(folder))
    assert refused(daemon, gone)
    assert works(connect(daemon, certs.fred))


# ---- by hand ----

def starttls(daemon, also=b""):
    """A socket on which the server waits for a ClientHello."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(f"{daemon.folder}/k")
    assert read(s, 18)[:16] == b"NBDMAGICIHAVEOPT"
    s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 5, 0) + also)
    assert struct.unpack(">QIII", read(s, 20)) == (0x3E889045565A9, 5, 1, 0)
    return s


def read(s, n):
    got = b""
    while len(got) < n:
        more = s.recv(n - len(got))
        if not more:
            break
        got += more
    return got


def ended(s):
    """Does the server end the connection soon, with no more than an alert?"""
    try:
        return len(read(s, 1 << 16)) < 100
    except ConnectionError:
        return True


def speak(daemon, certs, client=None, version=None):
    """TLS of Python over a connection on which STARTTLS was answered; returns what can be read and written."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certs.fred / "ca-cert.pem")
    client = client or certs.fred
    context.load_cert_chain(client / "client-cert.pem", client / "client-key.pem")
    if version:
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    s = starttls(daemon)
    return context.wrap_socket(s)


LIST = b"IHAVEOPT" + struct.pack(">II", 3, 0)


def lists(s):
    """Does it answer LIST?"""
    s.sendall(LIST)
    return struct.unpack(">QII", read(s, 16))[1:] == (3, 2)


def test_versions(serve, certs):
    """FEATURES 3.073: TLS below 1.2 is not spoken, and `priority` says what is"""
    daemon = serve(*x509(certs.server))
    for version, good in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_1, False)):
        if good:
            with speak(daemon, certs, version=version) as s:
                assert lists(s)
        else:
            with pytest.raises((ssl.SSLError, OSError)):
                speak(daemon, certs, version=version)
    assert daemon.stop()[0] == 0
    daemon = serve(*x509(certs.server, priority="NORMAL:-VERS-ALL:+VERS-TLS1.3"))
    with pytest.raises((ssl.SSLError, OSError)):
        speak(daemon, certs, version=ssl.TLSVersion.TLSv1_2)
    with speak(daemon, certs) as s:
        assert lists(s) and s.version() == "TLSv1.3"


def test_hostile(serve, certs):
    """FEATURES 10.003, 10.004: garbage, silence, half a handshake, a connection that is cut, words in front of TLS: each ends its own connection
    alone, and within the limit of the handshake"""
    daemon = serve(*x509(certs.server), "--handshake-limit", "4")
    with starttls(daemon) as s:
        s.sendall(os.urandom(4096))
        assert ended(s)
    begin = time.monotonic()
    with starttls(daemon) as s:                            # the header of a record that never comes
        s.sendall(b"\x16\x03\x01\x3f\xff")
        assert ended(s) and 3 < time.monotonic() - begin < 30
    with starttls(daemon) as s:                            # byte by byte, for ever
        begin = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begin < 60:
                s.sendall(b"\x16" if time.monotonic() - begin < 0.01 else b"\x03")
                time.sleep(0.05)
        assert time.monotonic() - begin < 30
    with starttls(daemon) as s:
        s.sendall(b"\x16\x03\x01\xff\xff" + bytes(70000))
        assert ended(s)
    with starttls(daemon):
        pass                                               # gone at once
    assert works(connect(daemon, certs.fred))
    assert daemon.process.poll() is None


def test_words_in_front(serve, certs):
    """FEATURES 10.003: options that came in plain text behind STARTTLS count for nothing once TLS is there"""
    daemon = serve(*x509(certs.server))
    s = starttls(daemon, also=LIST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certs.fred / "ca-cert.pem")
    context.load_cert_chain(certs.fred / "client-cert.pem", certs.fred / "client-key.pem")
    with context.wrap_socket(s) as tls:
        tls.settimeout(1)
        with pytest.raises(TimeoutError):                  # nobody answers LIST
            tls.recv(1)
        tls.settimeout(20)
        assert lists(tls)


def test_options_before(serve, certs):
    """FEATURES 10.003: before TLS everything but STARTTLS and ABORT is answered with "TLS required", and shows nothing"""
    daemon = serve(*x509(certs.server))
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(20)
        s.connect(f"{daemon.folder}/k")
        read(s, 18)
        s.sendall(struct.pack(">I", 3))
        for option, data in ((3, b""), (6, struct.pack(">IH", 0, 0)), (7, struct.pack(">IH", 0, 0)), (8, b""), (10, bytes(8)), (11, b""), (99, b"")):
            s.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
            _, what, answer, n = struct.unpack(">QIII", read(s, 20))
            assert (what, answer) == (option, 0x80000005), option
            read(s, n)
        s.sendall(b"IHAVEOPT" + struct.pack(">II", 2, 0))
        assert struct.unpack(">QIII", read(s, 20))[1:3] == (2, 1)
        assert s.recv(1) == b""


def test_tampered(serve, certs):
    """FEATURES 10.003: a record that was changed on the way ends the connection, and nothing of it is done"""
    daemon = serve(*x509(certs.server))
    with speak(daemon, certs) as s:
        assert lists(s)
        raw = socket.socket(fileno=os.dup(s.fileno()))
        raw.settimeout(20)
        raw.sendall(b"\x17\x03\x03" + struct.pack(">H", 64) + os.urandom(64))
        assert len(read(raw, 1 << 20)) < 4096
        raw.close()
    assert works(connect(daemon, certs.fred))


def test_many_small_records(serve, certs):
    """FEATURES 10.003: a client that sends single bytes keeps others from nothing"""
    daemon = serve(*x509(certs.server))
    other = connect(daemon, certs.fred)
    with speak(daemon, certs) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for byte in LIST * 20:
            s.sendall(bytes([byte]))
            if byte == 0x49:
                other.pread(512, 0)
        assert read(s, 16)


def test_farewell_and_truncation(serve, certs):
    """FEATURES 10.003: the end of a client without a farewell is the end of its connection; what it had sent whole is done, what not is not"""
    daemon = serve(*x509(certs.server))
    h = connect(daemon, certs.fred)
    h.pwrite(b"a" * 4096, 0)
    h.flush()
    os.close(os.dup(h.aio_get_fd()))
    socket.socket(fileno=os.dup(h.aio_get_fd())).shutdown(socket.SHUT_RDWR)
    assert connect(daemon, certs.fred).pread(4096, 0) == b"a" * 4096
