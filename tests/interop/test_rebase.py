# SPDX-License-Identifier: MIT
"""byre rebase against the peer's, on random chains: what the image shows stays, by the new chain (FEATURES 5.058 to 5.063, 2.019)."""
import os
import shutil

import pytest
from lib import chains, images, run


def recorded(path):
    info = run.qemu_img("info", "--output=json", path).json
    return info.get("backing-filename"), info.get("backing-filename-format")


def judge(top, name, fmt):
    assert recorded(top.path) == (name, fmt)
    for tool in (run.qemu_img, run.byre):
        chains.assert_reads(top.path, top.content, tool=tool)
    images.assert_sound(top.path)


def vary(layer, path, rng):
    """Another image with much the same content, of another size."""
    size = layer.size + rng.choice([-300 << 10, 0, 300 << 10])
    content = bytes(layer.content[:size]) + bytes(max(0, size - layer.size))
    fmt = rng.choice(["raw", "qcow2"])
    other = chains.Layer(f"{path}.{fmt}", fmt, content, dict(rng.choice(chains.OPTIONS)) if fmt == "qcow2" else {})
    images.raw_file(f"{path}.tmp", size, [(0, content)])
    options = ["-o", ",".join(f"{k}={images.value(v)}" for k, v in other.options.items())] if other.options else []
    run.qemu_img("convert", "-f", "raw", "-O", fmt, *options, f"{path}.tmp", other.path)
    os.unlink(f"{path}.tmp")
    other.filled = True
    chains.fill(other, rng, 5)
    return other


@pytest.mark.parametrize("how", [[], ["-c"]])
@pytest.mark.parametrize("seed", range(16))
def test_unrelated(tmp_path, seed, how):
    """FEATURES 5.058, 5.062: to an image that differs here and there, shorter, longer or as long; then to none (5.061)."""
    rng = chains.seeded("rebase", seed)
    chain = chains.make(str(tmp_path / "a"), rng, 1 + seed % 3)
    top = chain[-1]
    new = vary(chain[-2], str(tmp_path / "a" / "new"), rng)
    run.byre("rebase", *how, "-b", new.name, "-F", new.fmt, top.path)
    judge(top, new.name, new.fmt)
    held = sum(e["length"] for e in run.qemu_img("map", "--output=json", top.path).json if e["depth"] == 0 and e["present"])
    if new.content == chain[-2].content:
        assert held < top.size
    run.byre("rebase", *how, "-b", "", top.path)
    judge(top, None, None)


def held_equal(top, below):
    """Clusters that the image itself holds and that read as `below` does there; and how many it holds."""
    size, data = top.size, bytes(below) + bytes(max(0, top.size - len(below)))
    cluster = run.qemu_img("info", "--output=json", top.path).json["cluster-size"]
    held = set()
    for e in run.qemu_img("map", "--output=json", top.path).json:
        if e["depth"] == 0 and e["present"]:
            held |= set(range(e["start"] // cluster, (e["start"] + e["length"] - 1) // cluster + 1))
    return [c for c in sorted(held) if top.content[c * cluster:(c + 1) * cluster] == data[c * cluster:min((c + 1) * cluster, size)]], len(held)


@pytest.mark.parametrize("how", [[], ["-c"]])
@pytest.mark.parametrize("seed", range(12))
def test_drop_equal(tmp_path, seed, how):
    """FEATURES G.023: what the new backing file holds as well goes, to the cluster, and nothing else; a snapshot and bitmaps keep what is theirs."""
    rng = chains.seeded("drop", seed)
    chain = chains.make(str(tmp_path / "a"), rng, 1 + seed % 3)
    top = chain[-1]
    new = vary(chain[-2], str(tmp_path / "a" / "new"), rng)
    for off in range(0, min(top.size, new.size) - (1 << 16), 1 << 19):                        # some of the new one is in the image already
        images.raw_file(tmp_path / "piece", 1 << 16, [(0, bytes(new.content[off:off + (1 << 16)]))])
        run.qemu_io(top.path, f"write -q -s {tmp_path / 'piece'} {off} 64k")
        top.content[off:off + (1 << 16)] = new.content[off:off + (1 << 16)]
    extended = run.qemu_img("info", "--output=json", top.path).json["format-specific"]["data"].get("compat") == "1.1"
    run.qemu_img("snapshot", "-c", "before", top.path)
    if extended:
        run.byre("bitmap", "--add", top.path, "b")
    run.byre("rebase", *how, "--drop-equal", "-b", new.name, "-F", new.fmt, top.path)
    judge(top, new.name, new.fmt)
    equal, held = held_equal(top, new.content)
    assert equal == [] and (top.content == new.content[:top.size].ljust(top.size, b"\0")) == (held == 0)
    if extended:
        assert run.byre("info", "--output=json", top.path).json["format-specific"]["data"]["bitmaps"][0]["flags"] == ["auto"]
    run.byre("rebase", *how, "--drop-equal", "-b", "", top.path)
    judge(top, None, None)
    assert held_equal(top, b"")[0] == []


def test_drop_equal_gives_space_back(tmp_path):
    """FEATURES G.023: `du` and the reference counts say so, too; once more there is nothing to do"""
    for name in ("a", "b"):
        run.qemu_img("create", "-q", "-f", "raw", tmp_path / name, "32M")
        run.qemu_io(tmp_path / name, "write -P 5 0 16M", fmt="raw")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "a", "-F", "raw", tmp_path / "top")
    run.qemu_io(tmp_path / "top", "write -P 5 4M 8M", "write -P 6 20M 64k", "write -z 24M 1M")
    before = os.stat(tmp_path / "top").st_blocks * 512
    run.byre("rebase", "-b", "b", "-F", "raw", tmp_path / "top")
    assert os.stat(tmp_path / "top").st_blocks * 512 >= before
    for _ in range(2):
        run.byre("rebase", "--drop-equal", "-b", "b", "-F", "raw", tmp_path / "top")
        assert os.stat(tmp_path / "top").st_blocks * 512 < before - (7 << 20)
        held = [(e["start"], e["length"]) for e in run.qemu_img("map", "--output=json", tmp_path / "top").json if e["depth"] == 0 and e["present"]]
        assert held == [(20 << 20, 1 << 16)]
        images.assert_sound(tmp_path / "top")
        run.qemu_io(tmp_path / "top", "read -P 5 0 16M", "read -P 0 16M 4M", "read -P 6 20M 64k", "read -P 0 24M 1M")


def test_drop_equal_refused(tmp_path):
    """FEATURES G.023: where it is not possible nothing is changed"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "a", "1M")
    run.qemu_img("create", "-q", "-f", "qed", "-b", "a", "-F", "raw", tmp_path / "top.qed")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "a", "-F", "raw", tmp_path / "top")
    for words, name, why in [(["-b", ""], "top.qed", "cannot give up what their backing file holds"), (["-u", "-b", ""], "top", "unsafe")]:
        before = (tmp_path / name).read_bytes()
        assert why in run.byre("rebase", "--drop-equal", *words, tmp_path / name, code=1).err
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("seed", range(8))
def test_differs_in_parts_of_clusters(tmp_path, seed):
    """The old chain has zeros where the new one has data, in parts of clusters that the image does not hold: they are stored."""
    rng = chains.seeded("parts", seed)
    options = chains.OPTIONS[seed % len(chains.OPTIONS)]
    old = chains.base(tmp_path, "old", (3 << 20) - (seed % 2 << 20), rng, "qcow2")
    new = chains.base(tmp_path, "new", 3 << 20, rng, "raw")
    for _ in range(10):
        chains.fill(new, rng, 1)
    top = chains.overlay(tmp_path, "top", old, 4 << 20, rng, options, count=3)
    run.byre("rebase", "-b", new.name, "-F", "raw", top.path)
    judge(top, new.name, "raw")


@pytest.mark.parametrize("seed", range(8))
def test_ancestor(tmp_path, seed):
    """FEATURES 5.059: over layers of the chain: only what those hold is copied; the ones between may then be deleted."""
    rng = chains.seeded("ancestor", seed)
    chain = chains.make(str(tmp_path / "a"), rng, 3)
    top, to = chain[-1], chain[rng.randrange(2)]
    run.byre("rebase", "-b", to.name, "-F", to.fmt, top.path)
    for layer in chain[chain.index(to) + 1:-1]:
        os.unlink(layer.path)
    judge(top, to.name, to.fmt)


def test_ancestor_is_cheap(tmp_path):
    """FEATURES 5.059: a large base is not read where the layers that are skipped hold nothing."""
    images.raw_file(tmp_path / "base.raw", 256 << 20, [(0, b"x" * (64 << 20))])
    for name, below, fmt in (("mid", "base.raw", "raw"), ("top", "mid.qcow2", "qcow2")):
        images.create(tmp_path / f"{name}.qcow2", 256 << 20, backing=below, backing_fmt=fmt, unchecked=True)
    run.qemu_io(f"{tmp_path}/mid.qcow2", "write -P 3 1M 64k")
    done = run.run("strace", "-f", "-e", "trace=preadv,pread64,preadv2", "-o", f"{tmp_path}/trace", run.BYRE, "rebase", "-b", "base.raw", "-F", "raw",
                   f"{tmp_path}/top.qcow2", env={"BYRE_BACKEND": "threads"})
    assert done.code == 0
    read = sum(int(line.rsplit("= ", 1)[1].split()[0]) for line in open(tmp_path / "trace") if "= " in line and "resumed" not in line and line.rsplit("= ", 1)[1][0].isdigit())
    assert read < 4 << 20, read
    run.qemu_io(f"{tmp_path}/top.qcow2", "read -P 3 1M 64k", "read -P 120 0 1M")


@pytest.mark.parametrize("seed", range(6))
def test_as_the_peer(tmp_path, seed):
    """The same content as the peer's rebase leaves, seen from both."""
    rng = chains.seeded("peer", seed)
    chain = chains.make(str(tmp_path / "a"), rng, 2)
    new = vary(chain[-2], str(tmp_path / "a" / "new"), rng)
    theirs = chain[-1].path + ".peer"
    shutil.copyfile(chain[-1].path, theirs)
    run.byre("rebase", "-b", new.name, "-F", new.fmt, chain[-1].path)
    run.qemu_img("rebase", "-b", new.name, "-F", new.fmt, theirs)
    assert chains.read(theirs) == chains.read(chain[-1].path) == bytes(chain[-1].content)


def test_unsafe_changes_the_header_alone(tmp_path):
    """FEATURES 5.060: nothing is opened, and nothing but the first cluster changes; also in version 2 and with long names (2.019)."""
    for compat in ("0.10", "1.1"):
        path = tmp_path / f"top-{compat}.qcow2"
        images.create(tmp_path / "base.raw", 1 << 20, fmt="raw")
        images.create(path, 1 << 20, backing="base.raw", backing_fmt="raw", unchecked=True, compat=compat)
        run.qemu_io(str(path), "write -P 5 64k 64k")
        before = open(path, "rb").read()
        name = "n" * 1000
        run.byre("rebase", "-u", "-b", name, "-F", "qcow2", path)
        after = open(path, "rb").read()
        assert recorded(path)[0] == name and recorded(path)[1] == "qcow2"
        assert len(after) == len(before) and after[65536:] == before[65536:] and after != before
        run.byre("rebase", "-u", "-b", "base.raw", "-F", "raw", path)
        run.qemu_io(str(path), "read -P 5 64k 64k", "read -P 0 0 64k")
        run.byre("rebase", "-u", path)
        assert recorded(path) == (None, None)
        images.assert_sound(path)


def test_name_that_does_not_fit(tmp_path):
    """FEATURES 2.019: the image stays as it was."""
    path = tmp_path / "top.qcow2"
    images.create(tmp_path / "base.raw", 1 << 20, fmt="raw")
    images.create(path, 1 << 20, backing="base.raw", backing_fmt="raw", unchecked=True, cluster_size=512)
    before = open(path, "rb").read()
    for length in (400, 1023, 1024, 3000):
        done = run.byre("rebase", "-u", "-b", "n" * length, "-F", "raw", path, code=1)
        assert "top.qcow2" in done.err
        assert open(path, "rb").read() == before


def test_refused_before_anything_is_copied(tmp_path):
    """A name that can never be recorded costs no byte: not even what the new chain does not supply is copied."""
    images.create(tmp_path / "base.raw", 1 << 20, fmt="raw")
    images.create(tmp_path / "new.raw", 1 << 20, fmt="raw")
    run.qemu_io(str(tmp_path / "base.raw"), "write -P 7 0 512k", fmt="raw")
    for name, fmt, options, dots in (("small.qcow2", "qcow2", {"cluster_size": 512}, 300), ("top.qed", "qed", {}, 600)):
        path = tmp_path / name
        images.create(path, 1 << 20, fmt, backing="base.raw", backing_fmt="raw", unchecked=True, **options)
        before = open(path, "rb").read()
        new = "./" * dots + "new.raw"
        done = run.byre("rebase", "-f", fmt, "-b", new, "-F", "raw", path, code=1)
        assert name in done.err, done
        assert open(path, "rb").read() == before, done


def test_unknown_compatible_bits(tmp_path):
    """FEATURES 2.019: refused; the bit may say something about the chain."""
    path = tmp_path / "top.qcow2"
    images.create(path, 1 << 20)
    with open(path, "r+b") as f:
        f.seek(80)
        f.write((1 << 40).to_bytes(8, "big"))
    before = open(path, "rb").read()
    done = run.byre("rebase", "-u", "-b", "x", "-F", "raw", path, code=1)
    assert "0x10000000000" in done.err
    assert open(path, "rb").read() == before
