# SPDX-License-Identifier: MIT
"""QED in chains: another backing file, and commit that empties the image; the peer reads the same (FEATURES 2.019, 1.059, 5.021, 5.058 to 5.061)."""
import os
import shutil

import pytest
from lib import chains, images, qed, run
from lib.qed import Builder

GEOMETRIES = [(4096, 1), (4096, 2), (8192, 16), (65536, 4), (1 << 20, 1)]


def overlay(folder, name, below, size, rng, geometry, count=8):
    """A QED image over another one, filled by byre: the peer fills rests of zero clusters wrongly (G.019)."""
    options = {"cluster_size": geometry[0], "table_size": geometry[1]}
    path = os.path.join(folder, f"{name}.qed")
    images.create(path, size, fmt="qed", backing=below.name, backing_fmt=below.fmt, unchecked=True, **options)
    layer = chains.Layer(path, "qed", bytes(below.content[:size]) + bytes(max(0, size - below.size)), options)
    fill(layer, rng, count)
    return layer


def fill(layer, rng, count):
    words = []
    for _ in range(count):
        off = rng.randrange(layer.size // 512) * 512
        length = min(rng.choice([512, 4096, 20 << 10, 64 << 10, 200 << 10]), layer.size - off)
        zero, pattern = rng.randrange(4) == 0, rng.randrange(1, 256)
        words += ["-c", f"write -z {off} {length}" if zero else f"write -P {pattern} {off} {length}"]
        layer.content[off:off + length] = bytes([0 if zero else pattern]) * length
    run.byre("io", "-f", "qed", *words, layer.path)


def info(path):
    i = run.qemu_img("info", "-f", "qed", "--output=json", path).json
    return i.get("backing-filename"), i.get("backing-filename-format")


def sound(path, peer=True):
    run.byre("check", "-f", "qed", path)
    if peer:
        assert "No errors" in run.qemu_img("check", "-f", "qed", path).out


def judge(layer):
    peer = layer.options["table_size"] > 1        # the peer does not open tables of one cluster
    for tool in (run.byre, run.qemu_img)[:1 + peer]:
        chains.assert_reads(layer.path, layer.content, "qed", tool)
    sound(layer.path, peer)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", range(3))
def test_rebase(tmp_path, geometry, seed):
    """FEATURES 5.058, 5.061: to an image that differs here and there, shorter or longer; then to none."""
    rng = chains.seeded("qed-rebase", geometry, seed)
    old = chains.base(tmp_path, "old", chains.sizes(rng), rng)
    new = chains.base(tmp_path, "new", chains.sizes(rng), rng)
    top = overlay(str(tmp_path), "top", old, chains.sizes(rng), rng, geometry)
    run.byre("rebase", "-f", "qed", "-b", new.name, "-F", new.fmt, top.path)
    if geometry[1] > 1:
        assert info(top.path) == (new.name, new.fmt if new.fmt == "raw" else None)
    judge(top)
    run.byre("rebase", "-f", "qed", "-b", "", top.path)
    if geometry[1] > 1:
        assert info(top.path) == (None, None)
    judge(top)


@pytest.mark.parametrize("length", [1, 400, 448, 449, 1000, 1023])
def test_unsafe_changes_the_header_alone(tmp_path, length):
    """FEATURES 2.019, 2.005, 2.007: nothing is opened, and nothing but the first 4096 bytes changes; as the peer says it."""
    path, theirs = tmp_path / "top.qed", tmp_path / "theirs.qed"
    images.create(tmp_path / "base.raw", 1 << 20, fmt="raw")
    images.create(path, 1 << 20, fmt="qed", backing="base.raw", backing_fmt="raw", unchecked=True)
    run.byre("io", "-f", "qed", "-c", "write -P 5 64k 64k", path)
    shutil.copy(path, theirs)
    before = path.read_bytes()
    for name, fmt in (("n" * length, "raw"), ("m" * (1024 - length), "qcow2"), ("n" * length, "raw")):
        for program, image in ((run.byre, path), (run.qemu_img, theirs)):
            program("rebase", "-u", "-f", "qed", "-b", name, "-F", fmt, image)
        assert info(path) == info(theirs) == (name, "raw" if fmt == "raw" else None)
        after = path.read_bytes()
        assert len(after) == len(before) and after[4096:] == before[4096:] and after != before
    for image in (path, theirs):                  # each goes on with what the other has written
        run.byre("rebase", "-u", "-f", "qed", "-b", "base.raw", "-F", "raw", image)
        run.qemu_io(str(image), "read -P 5 64k 64k", "read -P 0 0 64k", fmt="qed")
        run.qemu_img("rebase", "-u", "-f", "qed", "-b", "", image)
        assert run.byre("info", "-f", "qed", "--output=json", image).json.get("backing-filename") is None
        sound(image)


def test_refused(tmp_path):
    """FEATURES 2.019, 2.008: unknown compatible bits, and names that cannot be stored: the image stays as it was, to the byte."""
    images.create(tmp_path / "base.raw", 1 << 20, fmt="raw")
    path = Builder(compat=1 << 40).write(tmp_path / "top.qed")
    before = path.read_bytes()
    done = run.byre("rebase", "-u", "-f", "qed", "-b", "base.raw", "-F", "raw", path, code=1)
    assert "0x10000000000" in done.err and "top.qed" in done.err
    assert run.qemu_img("rebase", "-u", "-f", "qed", "-b", "base.raw", "-F", "raw", path, code=1).err
    assert path.read_bytes() == before
    qed.set_header(path, compat=0)
    before = path.read_bytes()
    for name in ("n" * 1024, "a\tb"):
        assert "top.qed" in run.byre("rebase", "-u", "-f", "qed", "-b", name, "-F", "raw", path, code=1).err
        assert path.read_bytes() == before


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", range(2))
def test_commit(tmp_path, geometry, seed):
    """FEATURES 5.021, 1.059: the base has everything, the image is header and one table, and reads as before; it goes on being used."""
    rng = chains.seeded("qed-commit", geometry, seed)
    base = chains.base(tmp_path, "base", chains.sizes(rng), rng)
    top = overlay(str(tmp_path), "top", base, chains.sizes(rng), rng, geometry)
    expected = bytes(top.content) + bytes(base.content[top.size:])
    run.byre("commit", "-f", "qed", top.path)
    chains.assert_reads(base.path, expected, base.fmt)
    assert os.path.getsize(top.path) == geometry[0] * (1 + geometry[1])
    judge(top)
    fill(top, rng, 5)
    judge(top)
    expected = bytes(top.content) + expected[top.size:]
    run.byre("commit", "-f", "qed", "-d", top.path)
    chains.assert_reads(base.path, expected, base.fmt)
    assert os.path.getsize(top.path) > geometry[0] * (1 + geometry[1])
    judge(top)


def test_commit_takes_leaks_along(tmp_path):
    """What was lost, and tables that a larger disk had, go with the rest."""
    rng = chains.seeded("leaks")
    base = chains.base(tmp_path, "base", 1 << 20, rng, "raw")
    built = Builder(data=6)
    built.word(built.l2 + 8, 0).word(built.l2 + 16, 1).cut(len(built.image) + 3 * 4096).word(built.l1 + 8 * 1000, len(built.image) - 2 * 4096)
    path = built.write(tmp_path / "top.qed")
    run.byre("rebase", "-u", "-f", "qed", "-b", base.name, "-F", "raw", path)
    before = chains.read(path, "qed", run.byre)
    assert run.byre("check", "-f", "qed", path, code=3)
    run.byre("commit", "-f", "qed", path)
    assert os.path.getsize(path) == 4096 * 3 and chains.read(path, "qed", run.byre) == before == chains.read(base.path, "raw")
    sound(path)


def test_in_the_middle(tmp_path):
    """FEATURES 5.022, 5.059: QED layers between others: commit over two of them, rebase over one."""
    rng = chains.seeded("middle")
    base = chains.base(tmp_path, "base", 3 << 20, rng, "qcow2")
    low = overlay(str(tmp_path), "low", base, 3 << 20, rng, (65536, 4))
    high = overlay(str(tmp_path), "high", low, 3 << 20, rng, (4096, 2))
    shutil.copytree(tmp_path, tmp_path / "copy")
    run.byre("rebase", "-f", "qed", "-b", base.name, "-F", "qcow2", high.path)
    os.unlink(low.path)
    judge(high)
    high.path = str(tmp_path / "copy" / "high.qed")
    run.byre("commit", "-f", "qed", "-b", base.name, high.path)
    chains.assert_reads(tmp_path / "copy" / base.name, high.content, "qcow2")
    judge(high)
