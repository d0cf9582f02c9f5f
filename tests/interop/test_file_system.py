# SPDX-License-Identifier: MIT
"""A real file system goes through byre: converted, served, copied over NBD; it stays bit for bit, and fsck finds it clean."""
import filecmp
import os
import shutil

import pytest
from lib import images, peers, run


def need_all():
    for program in ("mkfs.ext4", "e2fsck", "nbdcopy", "qemu-img"):
        peers.need(program)


def some_files(folder, limit):
    """Copies of real files, small and large, of at most `limit` bytes together."""
    left, source = limit, os.path.dirname(os.__file__)
    for top, folders, files in os.walk(source):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(top, name)
            size = os.path.getsize(path) if os.path.isfile(path) and not os.path.islink(path) else limit
            if size > min(left, 4 << 20):
                continue
            target = os.path.join(folder, os.path.relpath(path, source))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)
            left -= size
            if left < limit // 50:
                return folder
    return folder


def assert_clean(raw):
    run.run("e2fsck", "-fn", raw, timeout=300)


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A 256 MiB ext4 with some 40 MB of files."""
    need_all()
    folder = tmp_path_factory.mktemp("fs")
    files = some_files(str(folder / "files"), 40 << 20)
    raw = images.file_system(folder / "fs.raw", size="256M", source=files)
    shutil.rmtree(files)
    assert_clean(raw)
    return raw


def same(a, b):
    return filecmp.cmp(a, b, shallow=False)


@pytest.mark.parametrize("compression,cluster_size", [("zlib", 65536), ("zstd", 65536), ("zlib", 2 << 20), ("zstd", 4096)])
def test_compressed_by_the_peer(tmp_path, system, compression, cluster_size):
    packed, out = tmp_path / "fs.qcow2", tmp_path / "out.raw"
    run.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={compression},cluster_size={cluster_size}", system, packed)
    assert run.qemu_img("check", "--output=json", packed).json["compressed-clusters"] > 0
    run.byre("convert", "-p", "-O", "raw", packed, out)
    run.qemu_img("compare", "-f", "qcow2", "-F", "raw", packed, out)
    assert same(system, out)
    assert os.stat(out).st_blocks * 512 < os.path.getsize(out), "a sparse file system became a full file"
    assert_clean(out)


@pytest.mark.parametrize("options", [[], ["-m", "1"], ["-m", "16", "-W"], ["-t", "none", "-T", "none"], ["-S", "0"], ["-C"]],
                         ids=lambda o: "".join(o) or "plain")
def test_round_trip(tmp_path, system, options):
    image, out = tmp_path / "fs.qcow2", tmp_path / "out.raw"
    run.byre("convert", *options, "-f", "raw", "-O", "qcow2", system, image)
    images.assert_sound(image)
    run.qemu_img("compare", "-f", "raw", "-F", "qcow2", system, image)
    run.byre("convert", *options, "-f", "qcow2", "-O", "raw", image, out)
    assert same(system, out)


@pytest.mark.parametrize("cluster_size", [512, 4096, 2 << 20])
def test_round_trip_geometries(tmp_path, system, cluster_size):
    image, again, out = tmp_path / "fs.qcow2", tmp_path / "again.qcow2", tmp_path / "out.raw"
    run.byre("convert", "-O", "qcow2", "-o", f"cluster_size={cluster_size}", system, image)
    run.qemu_img("check", image)
    run.qemu_img("convert", "-O", "qcow2", image, again)
    run.byre("compare", image, again)
    run.byre("convert", "-O", "raw", again, out)
    assert same(system, out)


@pytest.mark.parametrize("compression", ["zlib", "zstd", None])
@pytest.mark.parametrize("options", [[], ["--read-only", "--threads", "2"]], ids=["rw", "ro"])
def test_served_and_copied(tmp_path, system, byre_serve, compression, options):
    """nbdcopy out of a served image, plain and compressed, writable and read-only."""
    image, out = tmp_path / "fs.qcow2", tmp_path / "out.raw"
    pack = ["-c", "-o", f"compression_type={compression}"] if compression else []
    run.qemu_img("convert", *pack, "-O", "qcow2", system, image)
    server = byre_serve(image, *options)
    run.run("nbdcopy", server.uri, out)
    assert same(system, out)
    assert_clean(out)
    assert server.stop() == 0
    images.assert_sound(image)


@pytest.mark.parametrize("connections", [1, 4])
def test_copied_into_a_served_image(tmp_path, system, byre_serve, connections):
    image, out = tmp_path / "new.qcow2", tmp_path / "out.raw"
    run.byre("create", "-q", "-f", "qcow2", image, os.path.getsize(system))
    server = byre_serve(image, "--threads", "2")
    run.run("nbdcopy", f"--connections={connections}", "--flush", system, server.uri)
    run.run("nbdcopy", server.uri, out)
    assert server.stop() == 0
    images.assert_sound(image)
    run.qemu_img("compare", "-f", "raw", "-F", "qcow2", system, image)
    assert same(system, out)
    assert_clean(out)


def test_written_through_an_overlay(tmp_path, system, byre_serve):
    """Another file system is copied over an overlay; the base stays, and the overlay holds the new one."""
    need_all()
    base, top, other = tmp_path / "base.qcow2", tmp_path / "top.qcow2", tmp_path / "other.raw"
    run.byre("convert", "-O", "qcow2", system, base)
    run.byre("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
    images.file_system(other, size="256M", source=os.path.dirname(run.__file__))
    server = byre_serve(top)
    run.run("nbdcopy", "--flush", other, server.uri)
    assert server.stop() == 0
    for path in (base, top):
        images.assert_sound(path)
    run.qemu_img("compare", "-f", "qcow2", "-F", "raw", top, other)
    run.qemu_img("compare", "-f", "qcow2", "-F", "raw", base, system)


@pytest.mark.soak
@pytest.mark.serial
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_large(tmp_path, byre_serve, compression):
    """The acceptance at full size: 4 GiB filled from /usr/share."""
    need_all()
    raw, packed, out, copy = (tmp_path / n for n in ("fs.raw", "fs.qcow2", "out.raw", "copy.raw"))
    images.file_system(raw, size="4G", source="/usr/share")
    run.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={compression}", raw, packed, timeout=900)
    run.byre("convert", "-p", "-O", "raw", packed, out, timeout=600)
    run.qemu_img("compare", "-f", "qcow2", "-F", "raw", packed, out, timeout=600)
    server = byre_serve(packed)
    run.run("nbdcopy", server.uri, copy, timeout=600)
    assert server.stop() == 0
    assert_clean(copy)
    assert same(raw, copy)
    images.assert_sound(packed)
