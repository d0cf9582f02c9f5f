# SPDX-License-Identifier: MIT
"""Images that byre creates, as the peer sees them; sizes that byre measures, as the peer measures them."""
import itertools
import os

import pytest
import q2tool
from lib import images, run

import qcow2ref

SIZES = [0, 512, 1000, 65536, (1 << 20) + 512, 1 << 30]


def assert_like_peer(path, peer, size):
    """Clean for the peer and the independent reader; described by the peer just as an image of its own."""
    assert q2tool.numbers(q2tool.peer_check(path, code=0).out)["image-end-offset"] == os.path.getsize(path)
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        assert image.check().clean
        assert image.header.size == -(-size // 512) * 512
    ours, theirs = (run.qemu_img("info", "--output=json", p).json for p in (path, peer))
    for info in (ours, theirs):
        for key in ("filename", "actual-size", "children", "full-backing-filename"):
            info.pop(key, None)
    assert ours == theirs


@pytest.mark.parametrize("cluster_size", images.CLUSTER_SIZES)
@pytest.mark.parametrize("compat,version", images.versions())
def test_geometry(tmp_path, cluster_size, compat, version):
    """Every cluster size with every refcount width; the sizes take turns."""
    widths = images.REFCOUNT_BITS if version == 3 else [16]
    for i, width in enumerate(widths):
        size = SIZES[(i + cluster_size.bit_length()) % len(SIZES)]
        ours, peer = tmp_path / "ours.qcow2", tmp_path / "peer.qcow2"
        q2tool.create(ours, size, cluster_size=cluster_size, version=version, refcount_bits=width)
        images.create(peer, size, cluster_size=cluster_size, compat=compat, refcount_bits=width)
        assert_like_peer(ours, peer, size)
        assert os.path.getsize(ours) <= os.path.getsize(peer) + cluster_size


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_features(tmp_path, lazy, compression):
    ours, peer = tmp_path / "ours.qcow2", tmp_path / "peer.qcow2"
    q2tool.create(ours, "1G", lazy_refcounts=lazy, compression_type=compression)
    images.create(peer, "1G", lazy_refcounts=lazy, compression_type=compression)
    assert_like_peer(ours, peer, 1 << 30)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size,refcount_bits", [(512, 16), (512, 64), (4096, 1), (65536, 16), (2 << 20, 64)])
def test_preallocation(tmp_path, mode, cluster_size, refcount_bits):
    size = 9 << 20
    ours, peer = tmp_path / "ours.qcow2", tmp_path / "peer.qcow2"
    values = dict(cluster_size=cluster_size, refcount_bits=refcount_bits, preallocation=mode)
    q2tool.create(ours, size, **values)
    images.create(peer, size, **values)
    assert_like_peer(ours, peer, size)
    assert q2tool.numbers(q2tool.peer_check(ours).out)["allocated-clusters"] == -(-size // cluster_size)
    run.qemu_img("compare", ours, peer)
    blocks = os.stat(ours).st_blocks * 512
    if mode == "metadata":
        assert blocks < size // 2
    else:
        assert blocks >= size
    run.qemu_io(ours, "write -P 7 0 1M", "write -P 8 5000000 70000", "read -P 8 5000000 70000")
    images.assert_sound(ours)


def test_preallocation_of_much_metadata(tmp_path):
    """Tables far larger than the buffer they are written with."""
    path = tmp_path / "big.qcow2"
    q2tool.create(path, "40G", cluster_size=4096, preallocation="metadata", refcount_bits=64)
    assert q2tool.numbers(q2tool.peer_check(path, code=0).out)["allocated-clusters"] == (40 << 30) // 4096
    os.remove(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("cluster_size,name_len", [(512, 300), (512, 360), (4096, 1023), (65536, 1023), (65536, 1)])
def test_backing_name(tmp_path, version, cluster_size, name_len):
    path, name = tmp_path / "over.qcow2", "b" * name_len
    q2tool.create(path, "1G", cluster_size=cluster_size, version=version, backing_file=name, backing_fmt="qcow2")
    info = run.qemu_img("info", "-U", "--output=json", path).json
    assert (info["backing-filename"], info["backing-filename-format"]) == (name, "qcow2")
    assert q2tool.tool("info", path).json["backing-name"] == name
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        assert image.check().clean


@pytest.mark.parametrize("size,cluster_size", [("64T", 65536), ("100T", 65536), ("1P", 65536), ("2E", 2 << 20), ("128G", 512)])
def test_large(tmp_path, size, cluster_size):
    ours, peer = tmp_path / "ours.qcow2", tmp_path / "peer.qcow2"
    done = run.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", peer, size, code=None)
    if done.code:
        q2tool.create(ours, size, cluster_size=cluster_size, code=1)
        return
    q2tool.create(ours, size, cluster_size=cluster_size)
    assert run.qemu_img("info", "--output=json", ours).json["virtual-size"] == run.qemu_img("info", "--output=json", peer).json["virtual-size"]
    images.assert_sound(ours)


REFUSED = [
    (dict(cluster_size=1000), "cluster_size", "1000"),
    (dict(cluster_size=256), "cluster_size", "256"),
    (dict(cluster_size=4 << 20), "cluster_size", str(4 << 20)),
    (dict(refcount_bits=3), "refcount_bits", "3"),
    (dict(refcount_bits=128), "refcount_bits", "128"),
    (dict(version=4), "compat", "4"),
    (dict(version=2, refcount_bits=8), "refcount_bits", "8"),
    (dict(version=2, lazy_refcounts=True), "lazy_refcounts", "0.10"),
    (dict(version=2, compression_type="zstd"), "compression_type", "zstd"),
    (dict(version=2, extended_l2=True), "extended_l2", "0.10"),
    (dict(version=2, data_file="x"), "data_file", "0.10"),
    (dict(compression_type="lzma"), "compression_type", "lzma"),
    (dict(extended_l2=True, cluster_size=4096), "extended_l2", "4096"),
    (dict(data_file="d" * 1024), "data_file", "1023"),
    (dict(data_file="a\nb"), "data_file", "control"),
    (dict(data_file_raw=True), "data_file_raw", "data_file"),
    (dict(data_file="d", data_file_raw=True, backing_file="b", backing_fmt="raw"), "data_file_raw", "backing_file"),
    ({"encrypt.format": "luks"}, "encrypt.key-secret", "secret"),
    ({"encrypt.format": "aes"}, "encrypt.format", "aes"),
    ({"encrypt.format": "luks2"}, "encrypt.format", "luks2"),
    (dict(backing_file="b" * 1024, backing_fmt="raw"), "backing_file", "1024"),
    (dict(backing_file="a\nb", backing_fmt="raw"), "backing_file", "control"),
    (dict(backing_fmt="raw"), "backing_fmt", "raw"),
    (dict(backing_file="b", backing_fmt="b" * 16), "backing_fmt", "b" * 16),
    (dict(backing_file="b" * 500, backing_fmt="raw", cluster_size=512), "header", "512"),
    (dict(backing_file="b", backing_fmt="raw", preallocation="metadata"), "preallocation", "backing_file"),
    (dict(cluster_size=512, size=(128 << 30) + 512), "size", str((128 << 30) + 512)),
]


@pytest.mark.parametrize("values,option,value", REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused(tmp_path, values, option, value):
    """Errors name option and value, and nothing is written."""
    path = tmp_path / "no.qcow2"
    values = {"size": "1G", **values}
    done = q2tool.tool("create", path, *q2tool.options(values), code=1)
    assert option in done.err and value in done.err
    assert os.path.getsize(path) == 0


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 << 20])
@pytest.mark.parametrize("refcount_bits", [1, 16, 64])
def test_measure(cluster_size, refcount_bits):
    sizes = [0, 1, (1 << 20) + 512, (10 << 30) + 65536, 1 << 40, 64 << 40]
    for size, mode in itertools.product(sizes, ["off", "full"]):
        opts = f"cluster_size={cluster_size},refcount_bits={refcount_bits},preallocation={mode}"
        peer = run.qemu_img("measure", "--output=json", "-O", "qcow2", "--size", size, "-o", opts, code=None)
        ours = q2tool.tool("measure", f"size={size}", f"cluster_size={cluster_size}", f"refcount_bits={refcount_bits}", f"preallocation={mode}", code=None)
        assert (ours.code, ours.code or ours.json) == (peer.code, peer.code or peer.json), opts


def test_measure_of_content(tmp_path):
    """With data the required size grows by its clusters, as the peer counts it."""
    raw = images.raw_file(tmp_path / "r.raw", 1 << 30, [(0, b"x" * 100), (1 << 29, b"y" * (3 << 20))])
    for cluster_size in (4096, 65536, 2 << 20):
        peer = run.qemu_img("measure", "--output=json", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster_size}", raw).json
        data = peer["required"] - q2tool.tool("measure", "size=1G", f"cluster_size={cluster_size}").json["required"]
        assert data % cluster_size == 0 and data >= 3 << 20
        ours = q2tool.tool("measure", "size=1G", f"cluster_size={cluster_size}", f"data={data}").json
        assert ours == peer
    assert q2tool.tool("measure", "size=1G", "extended_l2=on").json == run.qemu_img(
        "measure", "--output=json", "-O", "qcow2", "--size", "1G", "-o", "extended_l2=on").json


def test_info_of_what_is_not_supported(tmp_path):
    """Images without their data file are described, though not opened."""
    data = tmp_path / "d.qcow2"
    images.create(data, "64M", data_file=tmp_path / "d.raw")
    os.remove(tmp_path / "d.raw")
    assert q2tool.tool("info", data).json["data-file"] == str(tmp_path / "d.raw")
    assert q2tool.check(data, code=0)


def test_create_replaces_what_was_there(tmp_path):
    path = tmp_path / "x.qcow2"
    path.write_bytes(os.urandom(3 << 20))
    q2tool.create(path, "1G")
    images.assert_sound(path)
