# SPDX-License-Identifier: MIT
"""--object secret: every way to give one, and what is refused."""
import base64
import ctypes
import json
import os
import platform
import subprocess

import pytest
from lib import peers, run

KEY = bytes(range(32))
IV = bytes(range(100, 116))


@pytest.fixture
def image(tmp_path):
    (tmp_path / "pw").write_bytes(b"hunter2")
    (tmp_path / "pw64").write_bytes(base64.b64encode(b"hunter2") + b"\n")
    (tmp_path / "key").write_bytes(KEY)
    run.byre("create", "-q", "--object", "secret,id=s,data=hunter2", "-f", "luks", "-o", "key-secret=s,iter-time=10", "x.luks", "1M", cwd=tmp_path)
    return tmp_path


def sealed(data):
    done = subprocess.run([peers.need("openssl"), "enc", "-aes-256-cbc", "-a", "-A", "-K", KEY.hex(), "-iv", IV.hex()], input=data, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def opened(folder, *objects, code=0):
    """By both tools alike: does the last object open the image?"""
    results = []
    for program in ([run.BYRE, "io"], [peers.need("qemu-io")]):
        words = [w for o in objects for w in ("--object", o)]
        results.append(run.run(*program, *words, "-r", "-c", "read 0 512", "--image-opts", "driver=luks,key-secret=s,file.filename=x.luks", cwd=folder, code=code))
    return results[0]


def test_forms(image):
    """FEATURES 1.072, 3.072, 5.002: data and file, raw and base64, JSON"""
    b64 = base64.b64encode(b"hunter2").decode()
    for words in ("secret,id=s,data=hunter2", "secret,id=s,file=pw", f"secret,id=s,data={b64},format=base64", "qom-type=secret,id=s,format=raw,data=hunter2",
                  '{"qom-type": "secret", "id": "s", "data": "hunter2"}'):
        opened(image, words)
    run.byre("io", "--object", "secret,id=s,file=pw64,format=base64", "-r", "-c", "read 0 512", "--image-opts", "driver=luks,key-secret=s,file.filename=x.luks", cwd=image)
    opened(image, "secret,id=s,data=hunter3", code=1)


def test_encrypted_by_a_secret(image):
    """FEATURES 1.072, 3.072: keyid and iv; a wrong master key opens nothing"""
    master, iv = "secret,id=m,file=key", base64.b64encode(IV).decode()
    opened(image, master, f"secret,id=s,data={sealed(b'hunter2')},format=base64,keyid=m,iv={iv}")
    wrong = "secret,id=m,data=" + base64.b64encode(bytes(32)).decode() + ",format=base64"
    opened(image, wrong, f"secret,id=s,data={sealed(b'hunter2')},format=base64,keyid=m,iv={iv}", code=1)


def key_of_the_kernel(data):
    """Adds a key to the session keyring, which children share; returns its serial number."""
    libc, add_key = ctypes.CDLL(None, use_errno=True), 248
    serial = libc.syscall(add_key, b"user", b"byre-test", data, ctypes.c_size_t(len(data)), ctypes.c_int(-3))
    if serial < 0:
        peers.missing(f"add_key ({os.strerror(ctypes.get_errno())})")
    return serial


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call")
def test_keyring(image):
    """FEATURES 1.072, 3.072: a key of the kernel, raw, in base64, and encrypted; one that is not there"""
    master, iv = "secret,id=m,file=key", base64.b64encode(IV).decode()
    serial = key_of_the_kernel(b"hunter2")
    for words in (f"secret_keyring,id=s,serial={serial}", f"qom-type=secret_keyring,id=s,serial={serial}",
                  json.dumps({"qom-type": "secret_keyring", "id": "s", "serial": serial})):
        opened(image, words)
    # the peer looks for the end of such text behind the key, and finds none when it happens so
    ours = ["-r", "-c", "read 0 512", "--image-opts", "driver=luks,key-secret=s,file.filename=x.luks"]
    serial = key_of_the_kernel(base64.b64encode(b"hunter2"))
    run.byre("io", "--object", f"secret_keyring,id=s,serial={serial},format=base64", *ours, cwd=image)
    serial = key_of_the_kernel(sealed(b"hunter2").encode())
    run.byre("io", "--object", master, "--object", f"secret_keyring,id=s,serial={serial},format=base64,keyid=m,iv={iv}", *ours, cwd=image)
    opened(image, f"secret_keyring,id=s,serial={key_of_the_kernel(b'hunter3')}", code=1)
    for words in ("secret_keyring,id=s", "secret_keyring,id=s,serial=x", "secret_keyring,id=s,serial=99999999999", "secret_keyring,id=s,serial=2147483646",
                  f"secret_keyring,id=s,serial={serial},data=x", f"secret,id=s,data=x,serial={serial}"):
        assert "hunter" not in opened(image, words, code=1).err


REFUSED = ["secret,id=s", "secret,id=s,data=x,file=y", "secret,data=x", "secret,id=s,data=x,format=hex", "secret,id=s,data=!!,format=base64", "secret,id=s,data=abc,format=base64",
           "secret,id=s,file=missing", "secret,id=1a,data=x", "gadget,id=s", "secret,id=s,data=x,colour=red", "", "{", '{"qom-type": "secret", "id": "s", "data": 3}',
           "secret,id=s,data=x,keyid=nobody,iv=AAAA", "secret,id=s,data=x,keyid=nobody"]


@pytest.mark.parametrize("words", REFUSED)
def test_refused(image, words):
    """FEATURES 5.002: as the peer does; no message holds the secret"""
    done = opened(image, words, code=1)
    assert done.err and "hunter2" not in done.err


def test_one_id_once(image):
    done = opened(image, "secret,id=s,data=hunter2", "secret,id=s,data=other", code=1)
    assert "already" in done.err and "hunter2" not in done.err


COMMANDS = [["info"], ["check"], ["map", "--output=json"], ["measure", "-O", "raw"], ["bench", "-c", "10", "-s", "512"], ["resize"], ["compare"], ["convert", "-O", "raw"], ["amend"]]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: w[0])
def test_every_subcommand(image, words):
    """FEATURES 5.002: a secret may be given to every subcommand that opens images"""
    opts = "driver=luks,key-secret=s,file.filename=x.luks"
    tail = {"resize": ["2M"], "compare": [opts], "convert": ["out.raw"]}.get(words[0], [])
    extra = ["-o", "state=active,new-secret=s,iter-time=10"] if words[0] == "amend" else []
    code = 63 if words[0] == "check" else 0          # the format cannot be checked
    run.byre(*words, "--object", "secret,id=s,file=pw", *extra, "--image-opts", opts, *tail, cwd=image, code=code)


def test_serve(image, byre_serve):
    """FEATURES 5.002 for serve: the exported disk is the decrypted one"""
    run.byre("io", "--object", "secret,id=s,file=pw", "-c", "write -P 7 0 64k", "--image-opts", "driver=luks,key-secret=s,file.filename=x.luks", cwd=image)
    before = (image / "x.luks").read_bytes()
    assert b"\7" * 512 not in before
    name = 'json:{"driver": "luks", "key-secret": "s", "file": {"driver": "file", "filename": "%s"}}' % (image / "x.luks")
    server = byre_serve(name, "--object", f"secret,id=s,file={image / 'pw'}")
    run.qemu_io(server.uri, "read -P 7 0 64k", "write -P 8 1k 1k", "flush", fmt="raw")
    assert server.stop() == 0
    run.byre("io", "--object", "secret,id=s,file=pw", "-r", "-c", "read -P 8 1k 1k", "--image-opts", "driver=luks,key-secret=s,file.filename=x.luks", cwd=image)
