# SPDX-License-Identifier: MIT
"""The programs of examples/, compiled against the shared library, and linked against the archive by hand."""
import os
import pathlib
import subprocess

import pytest

from lib import peers, run

BUILD = pathlib.Path(run.BYRE).resolve().parent
NEEDS = ["-luring", "-ldeflate", "-lz", "-lzstd", "-lnettle", "-ljansson", "-lpthread"]


def example(name):
    return BUILD / "examples" / f"example-{name}"


def disk(tmp_path):
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "q", "5M")
    run.qemu_io(tmp_path / "q", "write -P 0x11 100k 300k", "write -P 0x22 4M 1M", "write -z 1M 128k")
    run.qemu_img("convert", "-O", "raw", tmp_path / "q", tmp_path / "r")
    return (tmp_path / "r").read_bytes()


def test_read_disk(tmp_path):
    data = disk(tmp_path)
    for off, length in ((0, 5 << 20), (102300, 1000), (1 << 20, 0)):
        done = run.run(example("read_disk"), tmp_path / "q", "qcow2", off, length, binary=True)
        assert done.out == data[off:off + length]
    run.run(example("read_disk"), tmp_path / "q", "qcow2", 5 << 20, 1, code=1)
    run.run(example("read_disk"), tmp_path / "missing", "qcow2", 0, 1, code=1)
    run.run(example("read_disk"), code=2)


def test_copy_async(tmp_path):
    disk(tmp_path)
    for fmt in ("qcow2", "raw"):
        target = tmp_path / f"copy-{fmt}"
        run.run(example("copy_async"), tmp_path / ("q" if fmt == "qcow2" else "r"), fmt, target)
        run.qemu_img("compare", "-F", "qcow2", tmp_path / "q", target)
        run.qemu_img("check", target)
        run.run(example("copy_async"), tmp_path / "q", fmt, target, code=1)          # the target exists


def test_serve_disk(tmp_path):
    disk(tmp_path)
    process = subprocess.Popen([example("serve_disk"), tmp_path / "q", "qcow2", f"unix:{tmp_path}/s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    uri = process.stdout.readline().strip()
    assert uri == f"nbd+unix:///disk?socket={tmp_path}/s"
    run.run(peers.need("nbdcopy"), uri, tmp_path / "copy")
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "r").read_bytes()
    assert not os.path.exists(tmp_path / "s")


def test_archive_links(tmp_path):
    """The archive holds all that a program needs but for the libraries of libbyre.pc"""
    peers.need("cc")
    if "asan" in str(BUILD) or "tsan" in str(BUILD):
        pytest.skip("a sanitizer build")
    disk(tmp_path)
    run.run("cc", "-o", tmp_path / "static", "-I", run.TOP / "include", run.TOP / "examples/read_disk.c", BUILD / "src/lib/libbyre.a", *NEEDS)
    assert run.run(tmp_path / "static", tmp_path / "q", "qcow2", 102400, 4, binary=True).out == b"\x11" * 4


def test_pkg_config(tmp_path):
    """The installed package: headers, library, pkg-config"""
    peers.need("meson", "pkg-config")
    disk(tmp_path)
    root = tmp_path / "root"
    run.run("meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", root, timeout=120)
    pc = next(root.rglob("libbyre.pc"))
    prefix = next(p for p in root.rglob("include") if (p / "byre").is_dir()).parent
    env = {"PKG_CONFIG_PATH": str(pc.parent), "PKG_CONFIG_SYSROOT_DIR": str(root)}
    flags = run.run("pkg-config", "--cflags", "--libs", "libbyre", env=env).out.split()
    run.run("cc", "-o", tmp_path / "prog", run.TOP / "examples/read_disk.c", *flags)
    libdir = next(root.rglob("libbyre.so.0")).parent
    done = run.run(tmp_path / "prog", tmp_path / "q", "qcow2", 102400, 4, binary=True, env={"LD_LIBRARY_PATH": str(libdir)})
    assert done.out == b"\x11" * 4 and prefix.exists()


def test_command_uses_the_public_interface_only():
    """LAYERS: the objects of the command, but for servers and the page of their commands, find all they need in libbyre and the leaf library"""
    peers.need("nm")
    inside = ("cmd_daemon", "cmd_help", "cmd_nbd", "cmd_serve", "daemonize", "server")
    objects = [p for p in (BUILD / "src/bin").rglob("*.o") if not p.name.startswith(inside)]
    assert len(objects) > 20
    defined, wanted = set(), set()
    for line in run.run("nm", "-g", *objects).out.splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[0] == "U":
            wanted.add(parts[1])
        elif len(parts) == 3:
            defined.add(parts[2])
    have = set(run.run("nm", "-D", "--defined-only", BUILD / "src/lib/libbyre.so.0.1.0").out.replace("@@", " ").split())
    base = set(run.run("nm", "-g", "--defined-only", BUILD / "src/base/libbase.a").out.split())
    own = {name for name in wanted - defined if name.startswith(("byre_", "graph_", "fmt_", "stor_", "rt_", "co_", "copy_", "nbd_", "ctl_", "q2_", "lib_", "meta_", "qmp_"))}
    assert own <= have | base, own - have - base
