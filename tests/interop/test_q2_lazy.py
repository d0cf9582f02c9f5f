# SPDX-License-Identifier: MIT
"""Lazy refcounts (FEATURES 1.023, 1.029, 1.114, 1.131): the dirty bit between two programs, either of them killed."""
import shutil
import signal
import subprocess

import pytest
from lib import images, peers, run

CS = 4096


def is_dirty(path):
    with open(path, "rb") as f:
        f.seek(72)
        return bool(int.from_bytes(f.read(8), "big") & 1)


def lazy_image(path, size="64M", **options):
    options = "".join(f",{k}={v}" for k, v in options.items())
    run.byre("create", "-q", "-f", "qcow2", "-o", f"lazy_refcounts=on,cluster_size={CS}{options}", path, size)
    return path


def with_holes(path):
    """Free clusters between used ones: what is allocated next raises counts in blocks that exist."""
    run.qemu_io(path, "write -P 9 32M 1M")
    run.qemu_io(path, "discard 32M 768k")
    assert not is_dirty(path)


def killed_peer(path, *commands):
    """qemu-io writes, flushes, and dies."""
    args = [peers.need("qemu-io"), "-f", "qcow2", *[a for c in (*commands, "flush", "abort") for a in ("-c", c)], str(path)]
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode != 0
    assert is_dirty(path)


def killed_server(byre_serve, path, write):
    server = byre_serve(path)
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    write(handle)
    handle.flush()
    assert is_dirty(path)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    images.wait_unlocked(path)
    assert is_dirty(path)


def test_created(tmp_path):
    """The option is kept, and both programs say so"""
    path = lazy_image(tmp_path / "a.qcow2")
    for tool in (run.byre, run.qemu_img):
        assert tool("info", "--output=json", path).json["format-specific"]["data"]["lazy-refcounts"] is True
    assert not is_dirty(path)


def test_peer_mends_ours(tmp_path, byre_serve):
    """FEATURES 1.114: killed in the middle; the peer repairs at its next opening and finds everything"""
    path = lazy_image(tmp_path / "a.qcow2")
    with_holes(path)

    def write(handle):
        for i in range(40):
            handle.pwrite(bytes([i + 1]) * CS, i * 3 * CS)

    killed_server(byre_serve, path, write)
    assert run.qemu_img("info", "--output=json", path).json["dirty-flag"] is True
    assert run.qemu_img("check", path, code=None).code in (2, 3)
    run.qemu_io(path, "write -P 77 60M 4k")                       # repairs on its way
    assert not is_dirty(path)
    run.qemu_img("check", path)
    run.qemu_io(path, *[f"read -P {i + 1} {i * 3 * CS} {CS}" for i in range(40)], "read -P 9 33536k 256k")


def test_we_mend_the_peers(tmp_path):
    """FEATURES 1.023: an image that the peer left dirty; reading leaves it so, an opening for writing mends it"""
    path = tmp_path / "a.qcow2"
    images.create(path, 64 << 20, cluster_size=CS, lazy_refcounts="on")
    with_holes(path)
    killed_peer(path, *[f"write -P {i + 1} {i * 3 * CS} {CS}" for i in range(40)], "discard 33000k 40k", "write -P 78 50M 512k")
    before = path.read_bytes()
    assert run.byre("info", "--output=json", path).json["dirty-flag"] is True
    assert path.read_bytes() == before
    shutil.copy(path, tmp_path / "b.qcow2")
    run.byre("io", "-c", "write -P 77 60M 4k", path)
    assert not is_dirty(path)
    run.qemu_img("check", path)
    run.qemu_io(path, *[f"read -P {i + 1} {i * 3 * CS} {CS}" for i in range(40)], "read -P 78 50M 512k", "read -P 77 60M 4k")
    run.qemu_io(tmp_path / "b.qcow2", "write -P 77 60M 4k")
    run.qemu_img("compare", path, tmp_path / "b.qcow2")


@pytest.mark.parametrize("created,option,dirty", [("off", "on", True), ("on", "off", False), ("on", None, True), ("off", None, False)])
def test_option_of_an_opening(tmp_path, byre_serve, created, option, dirty):
    """FEATURES 1.131: lazy-refcounts at opening against what the image says; byte 79 while allocating and after the close"""
    path = tmp_path / "a.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", f"lazy_refcounts={created}", path, "64M")
    name = f"driver=qcow2,file.filename={path}" + (f",lazy-refcounts={option}" if option else "")
    server = byre_serve(name, "--image-opts")
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(server.uri)
    assert not is_dirty(path)
    handle.pwrite(b"\x11" * 65536, 0)
    assert is_dirty(path) == dirty
    handle.shutdown()
    assert server.stop() == 0
    assert not is_dirty(path)
    run.qemu_img("check", path)


def test_version_2_cannot(tmp_path):
    """FEATURES 1.131: refused, and nothing is written"""
    path = tmp_path / "a.qcow2"
    images.create(path, 1 << 20, compat="0.10")
    before = path.read_bytes()
    assert "version 3" in run.byre("io", "--image-opts", "-c", "write 0 4k", f"driver=qcow2,file.filename={path},lazy-refcounts=on", code=1).err
    assert path.read_bytes() == before
