# SPDX-License-Identifier: MIT
"""byre nbd: the words and the exports of qemu-nbd."""
import os
import signal
import socket
import subprocess
import time

import pytest

from lib import peers, run, wait

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def uri(daemon, name=""):
    return f"nbd+unix:///{name}?socket={daemon.folder}/k"


def serve(start, *words, image="a.qcow2", fmt="qcow2", **kwargs):
    """On a unix socket, ready."""
    daemon = start("nbd", "-k", "FOLDER/k", *(["-f", fmt] if fmt else []), *words, image, **kwargs)
    daemon.wait_for("k")
    return daemon


def info(daemon, name=""):
    return run.run("nbdinfo", "--json", uri(daemon, name)).json["exports"][0]


def connect(daemon, name=""):
    nbd = peers.need_module("nbd")
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.add_meta_context("qemu:allocation-depth")
    h.set_strict_mode(0)
    h.connect_uri(uri(daemon, name))
    return h


FACTS = ["export-size", "is_read_only", "can_multi_conn", "can_trim", "can_zero", "can_flush", "can_fua", "can_cache", "can_df", "contexts", "description"]
WORDS = [["-t"], ["-t", "-r"], ["-t", "-e", "3"], ["-t", "-e", "0"], ["-t", "-A"], ["-t", "-x", "name", "-D", "what it is"], ["-t", "-o", "1048576"],
         ["-t", "-s"], ["-t", "-l", "s1"], ["-t", "--cache", "none"], ["-t", "-n"], ["-t", "--discard", "ignore"], ["-t", "--detect-zeroes", "on"],
         ["-t", "--discard=unmap", "--detect-zeroes=unmap"], ["-t", "-B", "b"], ["-t", "-v"], ["-t", "--aio", "threads"]]


@pytest.mark.parametrize("words", WORDS, ids=lambda w: " ".join(w[1:]) or "plain")
def test_same_export(start, disk, words):
    """FEATURES 7.002, 7.004, 7.006, 7.007, 7.008, 7.009, 7.011, 7.012: the same words make the same export"""
    run.qemu_img("bitmap", "--add", disk, "b")
    run.qemu_img("snapshot", "-c", "s1", disk)
    name = words[words.index("-x") + 1] if "-x" in words else ""
    facts = []
    for peer in (False, True):
        daemon = serve(start, *words, peer=peer)
        found = info(daemon, name)
        facts.append({k: found.get(k) for k in FACTS})
        assert daemon.stop()[0] == 0
    assert facts[0] == facts[1]


def connect_soon(daemon):
    """As soon as the server has seen that somebody else has left."""
    nbd, end = peers.need_module("nbd"), time.monotonic() + 60
    while True:
        try:
            return connect(daemon)
        except nbd.Error:
            assert time.monotonic() < end
            time.sleep(0.02)


@BOTH
def test_life(start, disk, peer):
    """FEATURES 7.003: it ends with its last client; with -t it stays"""
    for words, stays in (([], False), (["-t"], True), (["-e", "2"], False)):
        daemon = serve(start, *words, peer=peer)
        h = connect(daemon)
        second = connect(daemon) if "-e" in words else None
        h.shutdown()
        if second:
            time.sleep(0.3)
            assert daemon.process.poll() is None
            second.shutdown()
        if stays:
            time.sleep(0.3)
            connect_soon(daemon).shutdown()
            assert daemon.process.poll() is None and daemon.stop()[0] == 0
        else:
            assert daemon.wait()[0] == 0
    assert not os.path.exists(f"{daemon.folder}/k")


def test_client_count(start, disk):
    """FEATURES 7.002: one more than --shared is not let in; somebody who only knocks does not end it"""
    nbd = peers.need_module("nbd")
    daemon = serve(start, "-e", "2")
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{daemon.folder}/k")
        assert s.recv(8) == b"NBDMAGIC"
    a, b = connect_soon(daemon), connect_soon(daemon)
    with pytest.raises(nbd.Error):
        connect(daemon)
    a.shutdown()
    c = connect_soon(daemon)
    assert c.pread(4096, 0) == b"\x11" * 4096
    b.shutdown()
    c.shutdown()
    assert daemon.wait()[0] == 0


@BOTH
def test_fork(start, disk, peer):
    """FEATURES 7.003: --fork returns when clients can connect; --pid-file is removed at the end"""
    parent = start("nbd", "-k", "FOLDER/k", "-f", "qcow2", "--fork", "--pid-file", "pid", "a.qcow2", peer=peer)
    assert parent.wait()[0] == 0
    pid = int(open(f"{parent.folder}/pid").read())
    os.kill(pid, 0)
    connect(parent).shutdown()
    wait.until(lambda: not os.path.exists(f"/proc/{pid}/exe"), "it does not end")
    assert not os.path.exists(f"{parent.folder}/k") and (peer or not os.path.exists(f"{parent.folder}/pid"))


@BOTH
def test_part(start, tmp_path, peer):
    """FEATURES 7.005: -o shifts what is read, written and told; the rest of the file stays as it is"""
    raw = tmp_path / "r.raw"
    raw.write_bytes(bytes(range(256)) * 8192)
    daemon = serve(start, "-t", "-o", "1048576", image="r.raw", fmt="raw", peer=peer)
    h = connect(daemon)
    assert h.get_size() == 1 << 20
    h.pwrite(b"\xee" * 512, 512)
    h.zero(65536, 128 << 10)
    seen = []
    h.block_status(1 << 20, 0, lambda context, offset, entries, err: seen.append((context, entries)))
    h.shutdown()
    assert daemon.stop()[0] == 0
    data = raw.read_bytes()
    want = bytearray(bytes(range(256)) * 8192)
    want[(1 << 20) + 512:(1 << 20) + 1024] = b"\xee" * 512
    want[(1 << 20) + (128 << 10):(1 << 20) + (192 << 10)] = bytes(65536)
    assert data == want and sum(seen[0][1][::2]) == 1 << 20


def test_part_that_is_not_there(start, disk):
    code, out = start("nbd", "-k", "FOLDER/k", "-f", "qcow2", "-o", "9M", "a.qcow2").wait()
    assert code == 1 and "9437184" in out


@BOTH
def test_read_only(start, disk, peer):
    """FEATURES 7.009: writes to a read-only export are refused (the protocol's EPERM from us), and another reader may be there"""
    nbd = peers.need_module("nbd")
    daemon = serve(start, "-t", "-r", peer=peer)
    run.run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x11 0 64k", disk)
    h = connect(daemon)
    for call in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
        with pytest.raises(nbd.Error) as e:
            call()
        assert peer or e.value.errno == "EPERM"
    assert daemon.stop()[0] == 0


@BOTH
def test_snapshot_overlay(start, disk, tmp_path, peer):
    """FEATURES 7.010: -s: the image stays as it is, and the temporary file is gone"""
    before = disk.read_bytes()
    temp = tmp_path / "temp"
    temp.mkdir()
    daemon = serve(start, "-t", "-s", peer=peer, env={"TMPDIR": str(temp)})
    h = connect(daemon)
    h.pwrite(b"\x77" * 4096, 0)
    assert h.pread(8192, 0) == b"\x77" * 4096 + b"\x11" * 4096
    h.shutdown()
    assert daemon.stop()[0] == 0
    assert disk.read_bytes() == before and list(temp.iterdir()) == []


def test_internal_snapshot(start, disk):
    """FEATURES 7.011: -l shows the disk of that time, read-only"""
    run.qemu_img("snapshot", "-c", "s1", disk)
    run.qemu_io(disk, "write -P 0x99 0 64k")
    for word in ("s1", "snapshot.name=s1", "snapshot.id=1"):
        daemon = serve(start, "-t", "-l", word)
        h = connect(daemon)
        assert h.is_read_only() and h.pread(4096, 0) == b"\x11" * 4096
        h.shutdown()
        assert daemon.stop()[0] == 0


def test_depth_and_bitmap(start, disk, tmp_path):
    """FEATURES 7.006, 7.007: contexts from the chain"""
    top = tmp_path / "t.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", top)
    run.qemu_img("bitmap", "--add", top, "b1")
    run.qemu_io(top, "write -P 0x22 1M 64k")
    daemon = serve(start, "-t", "-A", "-B", "b1", image="t.qcow2", peer=False)
    depth = run.run("nbdinfo", "--map=qemu:allocation-depth", uri(daemon)).out.split()
    assert depth[2] == "2" and "1" in depth
    dirty = run.run("nbdinfo", "--map=qemu:dirty-bitmap:b1", uri(daemon)).out
    assert "dirty" in dirty
    assert daemon.stop()[0] == 0


WRONG = [["-k", "k"], ["-c", "/dev/nbd0"], ["-d", "/dev/nbd0"], ["--detect-zeroes=unmap"], ["--discard=odd"], ["--cache=odd"], ["--aio=odd"], ["--detect-zeroes=odd"],
         ["-n", "--cache=none"], ["-e", "-1"], ["-B", "none"], ["-l", "none"], ["-f", "odd"], ["--odd"], ["-r", "more.qcow2"], ["-o", "9M"]]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_words(start, disk, words):
    """FEATURES 7.001, 7.012, 7.015: what one refuses the other refuses, with 1. Devices of the kernel are refused by us everywhere"""
    for peer in (False, True):
        place = [] if words[0] in ("-k", "-d") else ["-k", "FOLDER/k"]
        code, out = start("nbd", *place, "-f", "qcow2", *words, "a.qcow2", peer=peer).wait()
        assert code == 1 and out, peer


@BOTH
@pytest.mark.parametrize("words", [["-k", "FOLDER/k", "--selinux-label", "no label at all"], ["--selinux-label", "a:b:c:s0"]], ids=["unknown", "no -k"])
def test_label_refused(start, disk, peer, words):
    """FEATURES 7.018: what is no label, or any without SELinux, and one of a socket that has no path: refused alike, and nothing is left over"""
    daemon = start("nbd", *words, "-f", "qcow2", "a.qcow2", peer=peer)
    code, out = daemon.wait()
    assert code == 1 and (words[-1] if len(words) > 2 else "selinux-label") in out
    assert not os.path.exists(f"{daemon.folder}/k")


SOCK_LABEL = os.path.join(os.environ.get("BYRE_BUILD") or run.TOP / "build", "tests", "daemon", "sock-label.so")


def labelled(tmp_path, **env):
    return {"LD_PRELOAD": SOCK_LABEL, "SOCK_LABEL": str(tmp_path / "asked"), "ASAN_OPTIONS": f"{os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0", **env}


@pytest.mark.parametrize("what", ["taking", "listening"])
def test_label_fails_late(start, disk, tmp_path, what):
    """FEATURES 7.018: what fails when the socket is there already, the label that the thread must not keep or listening, leaves neither the path nor the socket"""
    daemon = start("nbd", "-k", "FOLDER/k", "--selinux-label", "a:b:c:s0", "-f", "qcow2", "a.qcow2", peer=False, env=labelled(tmp_path, SOCK_LABEL_FAILS=what))
    code, out = daemon.wait()
    assert code == 1 and ("a:b:c:s0" if what == "taking" else "cannot listen on") in out, out
    assert not os.path.exists(f"{daemon.folder}/k")
    asked = (tmp_path / "asked").read_bytes()
    assert asked.startswith(b"a:b:c:s0\0S") and b"L" not in asked, asked


def test_label_asked_for(start, disk, tmp_path):
    """FEATURES 7.018: the thread that makes the socket asks the kernel for the label just before, and takes that back behind it. (The kernel's part is played by
    a library: it shows the same system calls wherever the test runs.)"""
    daemon = serve(start, "--selinux-label", "system_u:object_r:svirt_t:s0", peer=False, env=labelled(tmp_path))
    assert info(daemon)["export-size"] == 8 << 20
    asked = (tmp_path / "asked").read_bytes()
    label, _, rest = asked.partition(b"\0")
    assert label == b"system_u:object_r:svirt_t:s0" and rest == b"S\n", asked
    daemon.stop()


@pytest.mark.skipif(not os.path.exists("/sys/fs/selinux/enforce"), reason="the kernel has no SELinux: there are no labels to look at")
@BOTH
def test_label_of_the_socket(start, disk, peer):
    """FEATURES 7.018: with SELinux, the socket has the label"""
    with open("/proc/self/attr/current") as f:
        label = f.read().rstrip("\0\n")
    daemon = serve(start, "--selinux-label", label, peer=peer)
    folder = f"/proc/{daemon.process.pid}/fd"
    labels = [os.getxattr(f"{folder}/{fd}", "security.selinux") for fd in os.listdir(folder) if os.readlink(f"{folder}/{fd}").startswith("socket:")]
    assert label.encode() in [one.rstrip(b"\0") for one in labels]
    daemon.stop()


@BOTH
def test_tcp(start, disk, peer):
    """FEATURES 7.001"""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    daemon = start("nbd", "-t", "-b", "127.0.0.1", "-p", port, "-f", "qcow2", "a.qcow2", peer=peer)
    for _ in range(100):
        done = run.run("nbdinfo", "--size", f"nbd://127.0.0.1:{port}", code=None)
        if done.code == 0:
            break
        time.sleep(0.05)
    assert int(done.out) == 8 << 20
    assert daemon.stop()[0] == 0


@BOTH
def test_handshake_limit(start, disk, peer):
    """FEATURES 7.016"""
    if peer and "handshake-limit" not in run.run("qemu-nbd", "--help").out:
        pytest.skip("the peer's version has no such option")
    daemon = serve(start, "-t", "-e", "0", "--handshake-limit", "1", peer=peer)
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(40)
        begin = time.monotonic()
        s.connect(f"{daemon.folder}/k")
        while s.recv(100):
            pass
        assert 0.5 < time.monotonic() - begin < 30
    assert daemon.stop()[0] == 0


def activate(words, count, cwd, program):
    """Starts a program as a service manager does, with `count` listening sockets."""
    listeners = []
    for i in range(count):
        s = socket.socket(socket.AF_UNIX)
        s.bind(f"{cwd}/act{i}")
        s.listen(5)
        listeners.append(s)
    script = 'export LISTEN_FDS=' + str(count) + ' LISTEN_PID=$$; exec "$@"'

    def place():
        for i, s in enumerate(listeners):
            os.dup2(s.fileno(), 100 + i)
        for i in range(count):
            os.dup2(100 + i, 3 + i)
    return subprocess.Popen(["/bin/sh", "-c", script, "sh", *program, *words], cwd=cwd, preexec_fn=place, close_fds=False, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


@BOTH
def test_socket_activation(disk, tmp_path, peer):
    """FEATURES 7.017: one socket that was handed over is served; two, or an address beside it, are refused"""
    program = [peers.need("qemu-nbd")] if peer else [run.BYRE, "nbd"]
    p = activate(["-f", "qcow2", "a.qcow2"], 1, tmp_path, program)
    assert int(run.run("nbdinfo", "--size", f"nbd+unix:///?socket={tmp_path}/act0").out) == 8 << 20
    assert p.wait(10) == 0
    os.unlink(tmp_path / "act0")
    for words, count in ((["-f", "qcow2", "a.qcow2"], 2), (["-f", "qcow2", "-p", str(run.free_port()), "a.qcow2"], 1)):
        p = activate(words, count, tmp_path, program)
        out = p.communicate(timeout=10)[0]
        assert p.returncode == 1 and out
        for i in range(count):
            os.unlink(tmp_path / f"act{i}")


def test_called_by_the_peers_name(tmp_path):
    """FEATURES 7.019"""
    os.symlink(os.path.abspath(run.BYRE), tmp_path / "qemu-nbd")
    assert run.run(tmp_path / "qemu-nbd", "--version").out.startswith("qemu-nbd version ")
    assert "--handshake-limit" in run.run(tmp_path / "qemu-nbd", "--help").out
    assert "no trace points" in run.byre("nbd", "-T", "x", "y", code=1).err
    assert "65536" in run.byre("nbd", "-p", "65536", "y", code=1).err
    assert "nbd-client" in run.byre("nbd", "-d", "/dev/nbd0", code=1).err


def test_signals(start, disk):
    """FEATURES 7.003: an orderly end by each signal"""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        daemon = serve(start, "-t")
        h = connect(daemon)
        h.pwrite(b"\x31" * 65536, 3 << 20)
        assert daemon.stop(number)[0] == 0 and not os.path.exists(f"{daemon.folder}/k")
        run.qemu_img("check", disk)
        run.qemu_io(disk, "read -P 0x31 3M 64k")
