# SPDX-License-Identifier: MIT
"""byre commit and byre rebase: words, options, exit codes (FEATURES 5.021 to 5.025, 5.060, 5.061, 5.063)."""
import json
import os
import signal
import subprocess
import time

import pytest
from lib import images, peers, run, wait


@pytest.fixture
def chain(tmp_path):
    images.create(tmp_path / "base.qcow2", "2M")
    images.create(tmp_path / "top.qcow2", "3M", backing="base.qcow2", unchecked=True)
    run.qemu_io(f"{tmp_path}/top.qcow2", "write -P 5 0 128k", "write -P 6 2M 64k")
    return tmp_path


def fails(*args, says):
    """byre and the peer refuse both; byre says it in the peer's words, where scripts look for them."""
    ours = run.byre(*args, code=1)
    run.qemu_img(*args, code=1)
    assert says in ours.err, ours


def test_refused_by_both(chain):
    top, base = chain / "top.qcow2", chain / "base.qcow2"
    before = [open(p, "rb").read() for p in (top, base)]
    fails("commit", base, says="Image does not have a backing file")
    fails("commit", "-b", "other.qcow2", top, says="Did not find 'other.qcow2' in the backing chain of")
    fails("commit", "-b", top, top, says="Did not find")
    fails("commit", "-t", "quick", top, says="Invalid cache option: quick")
    fails("commit", "-r", "1x", top, says="Invalid rate limit")
    fails("commit", says="exactly one image is needed")
    fails("commit", top, base, says="exactly one image is needed")
    fails("rebase", top, says="Must specify backing file (-b) or use unsafe mode (-u)")
    fails("rebase", "-b", base, says="exactly one image is needed")
    fails("rebase", "-b", "base.qcow2", top, says="backing format must be specified")
    fails("rebase", "-u", "-b", "none.qcow2", top, says="backing format must be specified")
    fails("rebase", "-u", "-b", "none.qcow2", "-F", "nothing", top, says="Invalid format name: 'nothing'")
    fails("rebase", "-b", "none.qcow2", "-F", "qcow2", top, says="Could not open new backing file 'none.qcow2'")
    fails("rebase", "-b", "top.qcow2", "-F", "qcow2", top, says="Could not open new backing file 'top.qcow2'")
    fails("rebase", "-t", "quick", "-b", "", top, says="Invalid cache option: quick")
    fails("rebase", "-T", "quick", "-b", "", top, says="Invalid source cache option: quick")
    fails("rebase", "-f", "raw", "-u", "-b", "base.qcow2", "-F", "qcow2", chain / "top.qcow2", says="backing file")
    assert [open(p, "rb").read() for p in (top, base)] == before


def test_output(chain):
    top = chain / "top.qcow2"
    assert run.byre("commit", "-d", top).out == "Image committed.\n"
    assert run.byre("commit", "-q", "-d", "-p", top).out == ""
    report = run.byre("commit", "-d", "--output=json", top).json
    assert report == {"filename": str(top), "base": str(chain / "base.qcow2"), "bytes-written": 192 << 10, "bytes-zeroed": 0}
    shown = run.byre("commit", "-d", "--progress=json", top).err.splitlines()
    assert shown and json.loads(shown[-1])["done"] == json.loads(shown[-1])["total"]
    for cache in ("none", "writeback", "writethrough", "directsync", "unsafe"):
        run.byre("commit", "-q", "-t", cache, top)
    assert run.byre("rebase", "-q", "-p", "-U", "-t", "none", "-T", "none", "-b", "", top).out == ""
    run.qemu_io(f"{top}", "read -P 5 0 128k", "read -P 6 2M 64k")


def test_called_as_the_peer(chain):
    link = chain / "qemu-img"
    link.symlink_to(run.BYRE)
    assert run.run(link, "commit", chain / "top.qcow2").out == "Image committed.\n"
    run.run(link, "rebase", "-b", "", chain / "top.qcow2")
    assert "backing-filename" not in run.qemu_img("info", "--output=json", chain / "top.qcow2").json


@pytest.mark.timeout(90)
def test_rate(chain):
    """FEATURES 5.024: 6 MiB at 2 MiB a second."""
    run.byre("resize", chain / "top.qcow2", "16M")
    run.qemu_io(f"{chain}/top.qcow2", "write -P 9 4M 6M")
    begin = time.monotonic()
    run.byre("commit", "-r", "2M", chain / "top.qcow2")
    assert time.monotonic() - begin > 2.5


@pytest.mark.parametrize("command", [["commit", "-r", "256k"], ["rebase", "-b", "", "-F", "raw"]])
def test_cancelled(chain, command):
    """A signal: the code of it, and the image reads as before."""
    top = f"{chain}/top.qcow2"
    run.byre("resize", top, "64M")
    run.qemu_io(top, "write -P 9 4M 40M")
    if command[0] == "rebase":
        images.create(chain / "deep.qcow2", "64M", backing="top.qcow2", unchecked=True)
        top = f"{chain}/deep.qcow2"
    job = subprocess.Popen([run.BYRE, *command, top], stderr=subprocess.PIPE,        # it may be ignored here
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait.catches(job, signal.SIGINT)                         # before that it would just die
    job.send_signal(signal.SIGINT)
    err = job.communicate(timeout=30)[1].decode()
    assert job.returncode in ((130,) if command[0] == "commit" else (130, 0)), err
    assert job.returncode == 0 or "reads as before" in err
    run.qemu_io(top, "read -P 5 0 128k", "read -P 6 2M 64k", "read -P 9 4M 40M")
    run.byre(*[w for w in command if w not in ("-r", "256k")], top)
    run.qemu_io(top, "read -P 5 0 128k", "read -P 6 2M 64k", "read -P 9 4M 40M")


def test_in_use(chain, byre_serve):
    """Another program has the base open, or the image: refused, nothing is changed."""
    base = open(chain / "base.qcow2", "rb").read()
    with subprocess.Popen(["qemu-io", "-f", "qcow2", f"{chain}/top.qcow2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as peer:
        try:
            peer.stdin.write(b"read 0 512\n")
            peer.stdin.flush()
            while b"512/512" not in (line := peer.stdout.readline()):
                assert line, "the peer has not opened it"
            assert "lock" in run.byre("commit", chain / "top.qcow2", code=1).err
            assert "lock" in run.byre("commit", "-d", chain / "top.qcow2", code=1).err
            assert "lock" in run.byre("rebase", "-b", "", chain / "top.qcow2", code=1).err
        finally:
            peer.stdin.close()
    assert open(chain / "base.qcow2", "rb").read() == base


def test_raw_guessed(tmp_path):
    """A base of unknown format must not become an image of another format by what is committed (3.027)."""
    images.create(tmp_path / "base.raw", "1M", fmt="raw")
    images.create(tmp_path / "evil.qcow2", "64k")
    images.create(tmp_path / "top.qcow2", "1M")
    with open(tmp_path / "evil", "wb") as f:
        f.write(open(tmp_path / "evil.qcow2", "rb").read()[:512])
    run.qemu_io(f"{tmp_path}/top.qcow2", f"write -s {tmp_path}/evil 0 512")
    run.byre("rebase", "-u", "-b", "base.raw", "-F", "raw", tmp_path / "top.qcow2")
    data = bytearray(open(tmp_path / "top.qcow2", "rb").read())
    at = data.index(b"\xe2\x79\x2a\xca")                     # the extension with the format: its type becomes an unknown one
    data[at:at + 4] = b"\x77\x77\x77\x77"
    open(tmp_path / "top.qcow2", "wb").write(data)
    run.byre("commit", tmp_path / "top.qcow2", code=1)
    assert open(tmp_path / "base.raw", "rb").read(512) == bytes(512)
