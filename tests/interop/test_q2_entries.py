# SPDX-License-Identifier: MIT
"""Single fields and kinds of entries of qcow2, both ways against the peer."""
import pytest
from lib import images, run

MIB = 1 << 20


@pytest.mark.parametrize("bit,kind", [(False, 1), (True, 0), (True, 2), (False, 255)])
def test_compression_type_must_fit(tmp_path, bit, kind):
    """FEATURES 1.012: a type without its bit, the bit without a type, and types that nobody knows are refused by both"""
    image = images.create(tmp_path / "x", "1M", compression_type="zstd")
    for program in (run.byre, run.qemu_img):
        program("info", image)
    content = bytearray(image.read_bytes())
    content[104] = kind
    content[79] = content[79] & ~8 | bit << 3
    image.write_bytes(content)
    for program in (run.byre, run.qemu_img):
        assert "compression" in program("info", image, code=1).err.lower()
        program("check", image, code=1)
    assert image.read_bytes() == content


@pytest.mark.parametrize("cluster_size", [4096, 65536, 2 * MIB])
def test_zero_clusters_keep_their_place(tmp_path, cluster_size):
    """FEATURES 1.038: zeros over allocated clusters keep the space; a write there needs no new cluster"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", image, 16 * MIB)
    span = 4 * cluster_size
    run.byre("io", "-c", f"write -q -P 1 0 {span}", image)

    def state():
        check = run.qemu_img("check", "--output=json", image).json
        rows = run.qemu_img("map", "--output=json", image).json
        return image.stat().st_size, check["allocated-clusters"], [(r["start"], r["length"], r["zero"], r["data"], r.get("offset")) for r in rows if r["start"] < span]

    size, allocated, [(_, _, _, _, place)] = state()
    run.byre("io", "-c", f"write -q -z 0 {span}", "-c", f"read -q -P 0 0 {span}", image)
    assert state() == (size, allocated, [(0, span, True, False, place)])
    run.qemu_io(image, f"read -P 0 0 {span}")
    run.byre("io", "-c", f"write -q -P 2 0 {span}", image)
    assert state() == (size, allocated, [(0, span, False, True, place)])
    run.qemu_io(image, f"read -P 2 0 {span}", f"write -z 0 {span}")
    run.byre("io", "-c", f"read -q -P 0 0 {span}", "-c", f"write -q -P 3 512 512", image)
    assert state()[:2] == (size, allocated)
    run.qemu_io(image, "read -P 0 0 512", "read -P 3 512 512", f"read -P 0 1024 {span - 1024}")
    images.assert_sound(image)
