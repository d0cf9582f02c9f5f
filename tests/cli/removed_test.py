# SPDX-License-Identifier: MIT
"""What the peer once took and takes no more is refused here as well, and leaves nothing behind (FEATURES G.084)."""
import pytest

from lib import peers, run

BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
IMG = [
    ["convert", "-n", "-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=4k", "a.qcow2", "b.qcow2"],
    ["create", "-f", "qcow2", "-b", "nowhere.qcow2", "-F", "qcow2", "new.qcow2", "1M"],
    ["create", "-f", "qcow2", "-b", "a.qcow2", "new.qcow2"],
    ["create", "-f", "qcow2", "-b", "a.qcow2", "new.qcow2", "1M"],
    ["create", "-f", "qcow2", "-o", "backing_file=a.qcow2", "new.qcow2"],
    ["convert", "-O", "qcow2", "-B", "a.qcow2", "b.qcow2", "new.qcow2"],
    ["rebase", "-b", "b.qcow2", "a.qcow2"],
    ["rebase", "-u", "-b", "b.qcow2", "a.qcow2"],
    ["amend", "-f", "qcow2", "-o", "backing_file=b.qcow2", "a.qcow2"],
    ["amend", "-f", "qcow2", "-o", "backing_fmt=qcow2", "a.qcow2"],
]


@BOTH
@pytest.mark.parametrize("words", IMG, ids=lambda w: " ".join(w[:-1]))
def test_refused(tmp_path, peer, words):
    """FEATURES G.084: creation options without creation, backing files without a format or that are not there, amend of a backing file"""
    for name, value in (("a", 1), ("b", 2)):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", "1M")
        run.qemu_io(tmp_path / f"{name}.qcow2", f"write -P {value} 0 64k")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    done = (run.qemu_img if peer else run.byre)(*words, code=1, cwd=tmp_path)
    assert done.err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@BOTH
@pytest.mark.parametrize("option", ["--partition=1", "-P1"])
def test_no_partitions(tmp_path, peer, option):
    """FEATURES G.084: nbd has no option for a partition: offset and length are said, or a client looks for it"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "d.raw", "1M")
    words = [option, "-k", tmp_path / "n.sock", "-f", "raw", tmp_path / "d.raw"]
    done = run.run(peers.need("qemu-nbd"), *words, code=1, timeout=20) if peer else run.byre("nbd", *words, code=1, timeout=20)
    assert "option" in done.err and not (tmp_path / "n.sock").exists()
