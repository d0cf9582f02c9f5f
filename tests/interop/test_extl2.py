# SPDX-License-Identifier: MIT
"""Extended L2 entries: byre and the peer write to images with subclusters, alone and in turns; both checkers and the
independent reader find them right (FEATURES 1.027, 1.040, 1.041, 1.053, 1.054, 1.068, 1.137)."""
import os
import re
import shutil

import guest
import pytest
import q2tool
from guest import Guest, seed_of
from lib import corrupt, images, peers, run

CLUSTERS = [1 << n for n in range(14, 22)]
ZERO_BIT, ALL, ALL_ZERO = 1 << 32, 0xFFFFFFFF, 0xFFFFFFFF << 32


class Sub(Guest):
    """byre discards subclusters, the peer whole clusters."""

    def run(self, tool, image, operations=60, batch=30, options=()):
        self.grain = self.cluster // 32 if tool == "byre" else self.cluster
        super().run(tool, image, operations, batch, options)

    def _range(self):
        """Half of the ranges like the edges of subclusters."""
        if self.rng.randrange(2):
            return super()._range()
        whole, self.cluster = self.cluster, max(512, self.cluster // 32)
        try:
            return super()._range()
        finally:
            self.cluster = whole


def create(tool, path, size, cluster_size, **options):
    return guest.create(tool, path, size, cluster_size=cluster_size, extended_l2=True, **options)


@pytest.mark.parametrize("bits", [1, 16, 64])
@pytest.mark.parametrize("cluster_size", CLUSTERS)
def test_geometry(tmp_path, cluster_size, bits):
    """FEATURES 1.027: byre writes, zeroes, discards and resizes; the peer and the second reader agree with the model."""
    seed, image = seed_of(cluster_size, bits), tmp_path / "disk.qcow2"
    disk = Sub(seed, guest.disk_size(cluster_size), cluster_size)
    create(guest.TOOLS[seed & 1], image, disk.size, cluster_size, refcount_bits=bits)
    disk.run("byre", image, operations=80)
    disk.judge(image, tmp_path)
    disk.resize("byre", image)
    disk.run("byre", image, operations=40, batch=40)
    disk.judge(image, tmp_path)
    guest.assert_read_by_byre(disk, image, tmp_path)


@pytest.mark.parametrize("cluster_size", CLUSTERS)
def test_read(tmp_path, cluster_size):
    """What the peer has written is read, mapped and checked as the peer does."""
    image = tmp_path / "disk.qcow2"
    disk = Sub(seed_of("read", cluster_size), guest.disk_size(cluster_size), cluster_size)
    create("qemu", image, disk.size, cluster_size)
    disk.run("qemu", image, operations=80)
    guest.assert_read_by_byre(disk, image, tmp_path)


@pytest.mark.parametrize("base", [None, "raw", "qcow2"])
@pytest.mark.parametrize("cluster_size", [1 << 14, 1 << 16, 1 << 18, 1 << 21])
def test_turns(tmp_path, cluster_size, base):
    """byre and the peer write in turns, over a backing file or none, which is shorter than the disk and stays as it is."""
    seed, image = seed_of("turns", cluster_size, base), tmp_path / "disk.qcow2"
    size, content, options = guest.disk_size(cluster_size), None, {}
    if base:
        below, content = guest.base_layer(tmp_path, base, size - 100 * 1024, seed)
        options, kept = {"backing": below, "backing_fmt": base}, guest.digest(below)
    disk = Sub(seed, size, cluster_size, backing=content)
    create(guest.TOOLS[seed & 1], image, disk.size, cluster_size, **options)
    for turn in range(6):
        tool = guest.TOOLS[(turn + seed) & 1]
        disk.run(tool, image, operations=30, batch=30)
        images.peer_check(image)
        run.byre("check", image)
        if turn in (2, 3):
            disk.resize("byre", image)          # the peer shows what an earlier shrink has cut off when it grows such an image
    disk.judge(image, tmp_path)
    guest.assert_same_map(image, disk)
    assert not base or guest.digest(below) == kept


@pytest.mark.parametrize("cluster_size", [1 << 14, 1 << 16, 1 << 20])
def test_snapshots_of_the_peer(tmp_path, cluster_size):
    """Clusters and tables that a snapshot shares are copied, with all that the subclusters hold; the snapshot never changes."""
    seed, image = seed_of("snapshot", cluster_size), tmp_path / "disk.qcow2"
    below, content = guest.base_layer(tmp_path, "raw", guest.disk_size(cluster_size) - 70 * 1024, seed)
    disk = Sub(seed, guest.disk_size(cluster_size), cluster_size, backing=content)
    create("qemu", image, disk.size, cluster_size, backing=below, backing_fmt="raw")
    kept = {}
    for n in range(3):
        disk.run("byre" if n else "qemu", image, operations=40, batch=40)
        run.qemu_img("snapshot", "-c", f"s{n}", image)
        kept[f"s{n}"] = bytes(disk.shadow)
    disk.run("byre", image, operations=60, batch=60)
    disk.judge(image, tmp_path)
    for name, want in kept.items():
        out = tmp_path / "out.raw"
        run.qemu_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", image, out)
        assert out.read_bytes()[:disk.size] == want, name
    run.qemu_img("snapshot", "-a", "s1", image)
    disk.shadow = bytearray(kept["s1"])
    disk.run("byre", image, operations=30)
    run.qemu_img("snapshot", "-d", "s1", image)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("cluster_size", [1 << 14, 1 << 16, 1 << 18])
def test_compressed(tmp_path, cluster_size):
    """FEATURES 1.068: compressed clusters are read; written to, they are replaced whole; a part of one is zeroed by writing."""
    seed, image, raw = seed_of("packed", cluster_size), tmp_path / "disk.qcow2", tmp_path / "in.raw"
    disk = Sub(seed, guest.disk_size(cluster_size), cluster_size, weights={"discard": 0})
    disk.shadow[:] = images.pattern_bytes(seed, disk.size)
    disk.write_raw(raw)
    run.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"extended_l2=on,cluster_size={cluster_size}", raw, image)
    guest.assert_read_by_byre(disk, image, tmp_path)
    sub, before = cluster_size // 32, bytes(disk.shadow)
    guest.io("byre", image, f"write -z {cluster_size + sub} {sub}", f"write -z {2 * cluster_size + sub} {3 * cluster_size}",
             f"discard {7 * cluster_size} {cluster_size // 2}")
    disk._set(cluster_size + sub, sub, 0)
    disk._set(2 * cluster_size + sub, 3 * cluster_size, 0)
    disk.judge(image, tmp_path)
    assert disk.shadow[7 * cluster_size:8 * cluster_size] == before[7 * cluster_size:8 * cluster_size]
    disk.run("byre", image, operations=60, batch=60)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("backed", [False, True])
def test_preallocated(tmp_path, mode, backed):
    """FEATURES 1.137: with subclusters also over a backing file, at create and at resize; the maps equal those of the peer."""
    size, cluster, content, options = (2 << 20) + 512, 65536, None, {}
    if backed:
        below, content = guest.base_layer(tmp_path, "raw", size + 300000 // 512 * 512, 5)
        options = {"backing": below, "backing_fmt": "raw"}
    maps = {}
    for tool in ("byre", "qemu"):
        image = tmp_path / (tool + ".qcow2")
        create(tool, image, size, cluster, preallocation=mode, **options)
        maps[tool] = [{k: r[k] for k in ("start", "length", "depth", "present", "zero", "data")} for r in run.qemu_img("map", "--output=json", image).json]
        for row in maps[tool]:                     # where the base has holes is the file system's business
            row.update(dict(data=True, zero=False) if row["depth"] else {})
        guest.program(tool)("resize", "-q", f"--preallocation={mode}", image, size + 5 * cluster)
        images.assert_sound(image)
        disk = Sub(seed_of("pre", mode, backed), size, cluster, backing=content)
        disk.set_size(size + 5 * cluster)
        guest.assert_read_by_byre(disk, image, tmp_path)
        disk.run("byre", image, operations=60)
        disk.judge(image, tmp_path)
    assert guest.merged_map(maps["byre"]) == guest.merged_map(maps["qemu"])


@pytest.mark.parametrize("to", ["extended", "plain"])
def test_convert(tmp_path, to):
    """Both kinds of tables into each other; info and measure answer as the peer's."""
    source, image = tmp_path / "in.qcow2", tmp_path / "out.qcow2"
    disk = Sub(77, (3 << 20) + 1024, 65536)
    guest.create("qemu", source, disk.size, extended_l2=to == "plain")
    disk.run("qemu", source)
    run.byre("convert", "-O", "qcow2", "-o", f"extended_l2={images.value(to == 'extended')},cluster_size=128k", source, image)
    disk.judge(image, tmp_path)
    ours, theirs = (p("info", "--output=json", image).json for p in (run.byre, run.qemu_img))
    assert ours["format-specific"] == theirs["format-specific"]
    assert theirs["format-specific"]["data"]["extended-l2"] is (to == "extended")
    options = ["measure", "--output=json", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=32k", source]
    assert run.byre(*options).json == run.qemu_img(*options).json


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("cluster_size", [1 << 14, 1 << 16])
def test_external_data_file(tmp_path, cluster_size, raw):
    """Subclusters whose bytes lie in a second file; byre and the peer in turns. A raw data file is the disk."""
    image, data = tmp_path / "disk.qcow2", tmp_path / "data.raw"
    disk = Sub(seed_of("data", cluster_size, raw), guest.disk_size(cluster_size), cluster_size)
    create("byre", image, disk.size, cluster_size, data_file=data, **({"data_file_raw": True} if raw else {}))
    for turn in range(4):
        disk.run(guest.TOOLS[turn & 1] if not raw else "byre", image, operations=30, batch=30)
        images.peer_check(image)
        run.byre("check", image)
    disk.judge(image, tmp_path)
    if raw:
        assert data.read_bytes() == disk.shadow


@pytest.mark.parametrize("backed", [False, True])
def test_encrypted(tmp_path, backed):
    """LUKS and subclusters: what surrounds a write in its subclusters is encrypted with it; the peer reads what byre wrote."""
    size, image, content, options = (2 << 20) + 512, tmp_path / "disk.qcow2", None, []
    if backed:
        below, content = guest.base_layer(tmp_path, "raw", size - 100 * 1024, 9)
        options = ["-b", below, "-F", "raw"]
    secret = ["--object", "secret,id=s,data=abc"]
    where = ["--image-opts", f"driver=qcow2,file.filename={image},encrypt.key-secret=s,discard=unmap"]
    run.byre("create", "-q", "-f", "qcow2", *secret, *options, "-o",
             "extended_l2=on,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", image, size)
    disk = Sub(seed_of("luks", backed), size, 65536, backing=content, weights={"discard": 0})
    for commands in disk.batches(90, 30):
        run.byre("io", *secret, *where, *[arg for c in commands for arg in ("-c", c)])
    run.qemu_img("check", *secret, *where)
    run.byre("check", image)
    run.qemu_img("convert", *secret, "--image-opts", where[1], "-O", "raw", tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == disk.shadow


def test_small_writes_do_not_read_below(tmp_path):
    """FEATURES 1.041: with 128 KiB clusters a 4 KiB write over a backing file reads nothing of it, and 4 KiB are written."""
    peers.need("strace")
    below, image, log = tmp_path / "base.raw", tmp_path / "disk.qcow2", tmp_path / "log"
    images.raw_file(below, 8 << 20, [(0, b"x" * (8 << 20))])
    create("byre", image, 8 << 20, 131072, backing=below, backing_fmt="raw")
    env = dict(os.environ, BYRE_BACKEND="threads")
    commands = [arg for i in range(16) for arg in ("-c", f"write -q -P 7 {i * 131072 + 8192} 4k")]
    byre = shutil.which(os.environ.get("BYRE") or "") or run.BYRE
    run.run("strace", "-f", "-y", "-qq", "-e", "trace=pread64,preadv,preadv2,pwrite64,pwritev,pwritev2", "-o", log, byre, "io", *commands, image, env=env)
    calls = log.read_text().splitlines()
    assert not [c for c in calls if "base.raw" in c and "read" in c and "= 512" not in c], "the backing file was read"
    sizes = [int(c.rsplit("=", 1)[1]) for c in calls if "pwrite" in c and "disk.qcow2" in c]
    assert sizes.count(4096) >= 16 and max(sizes) <= 65536
    guest.io("qemu", image, *[f"read -P 7 {i * 131072 + 8192} 4k" for i in range(16)], "read -P 120 0 8k", "read -P 120 12k 4k")
    images.assert_sound(image)


def test_discarded_parts_make_a_whole(tmp_path):
    """FEATURES G.011: parts of a cluster can be discarded; with the last one the cluster is free."""
    image = tmp_path / "disk.qcow2"
    create("byre", image, "1M", 65536)
    guest.io("byre", image, "write -P 5 0 128k", "discard 0 32k")
    guest.io("qemu", image, "read -P 0 0 32k", "read -P 5 32k 96k")
    with corrupt.Editor(image) as e:
        host = e.host_of(0)
        assert host and e.get_be64(e.l2_entry(0) + 8) == 0x0000FFFF_FFFF0000
    guest.io("byre", image, "discard 34k 30k", "discard 32k 1k")       # the last one is less than a subcluster
    guest.io("qemu", image, "read -P 0 0 32k", "read -P 5 32k 2k", "read -P 0 34k 30k")
    guest.io("byre", image, "discard 32k 2k")
    guest.io("qemu", image, "read -P 0 0 64k", "read -P 5 64k 64k")
    with corrupt.Editor(image) as e:
        assert e.host_of(0) == 0 and e.get_be64(e.l2_entry(0) + 8) == ALL_ZERO
    images.assert_sound(image)


def peer_io(*args, **kwargs):
    return run.run(peers.need("qemu-io"), *args, **kwargs)


# name: (which cluster, change of the first half of its entry, change of the second); clusters 0 and 1 are written, 2 is not
DAMAGE = {
    "both": (0, None, lambda b: b | ZERO_BIT),
    "all-both": (0, None, lambda b: ALL_ZERO | ALL),
    "nowhere": (2, None, lambda b: 1),
    "nowhere-and-zero": (2, None, lambda b: ZERO_BIT | 1),
    "flag-without-meaning": (0, lambda e: e | 1, None),
    "copied-nothing": (2, lambda e: 1 << 63, None),
    "reserved": (0, lambda e: e | 2, None),
    "unaligned-data": (0, lambda e: e + 512, None),
    "unaligned-zero": (0, lambda e: e + 512, lambda b: ALL_ZERO),
    "unaligned-part": (0, lambda e: e + 512, lambda b: 0xF << 32),
    "unaligned-absent": (0, lambda e: e + 512, lambda b: 0),
    "outside": (0, lambda e: 1 << 63 | 0x9000000, None),
    "outside-zero": (0, lambda e: 1 << 63 | 0x9000000, lambda b: ALL_ZERO),
    "outside-absent": (0, lambda e: 1 << 63 | 0x9000000, lambda b: 0),
    "outside-both": (0, lambda e: 1 << 63 | 0x9000000, lambda b: 0xF << 32 | 0xF),
}
REPAIRED = {"unaligned-zero", "unaligned-part", "unaligned-absent", "outside", "outside-zero", "outside-absent", "outside-both"}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(tmp_path, name):
    """FEATURES 1.040: check counts as the peer does, reads fail where the peer's fail, a write through the entry destroys
    nothing; what can be mended is mended, the rest stays."""
    image, copy = tmp_path / "disk.qcow2", tmp_path / "copy.qcow2"
    create("qemu", image, "1M", 65536)
    guest.io("qemu", image, "write -P 1 0 64k", "write -P 2 64k 64k")
    cluster, entry, bits = DAMAGE[name]
    with corrupt.Editor(image) as e:
        if entry:
            e.patch_l2(cluster << 16, entry)
        if bits:
            e.patch_l2(cluster << 16, bits, second=True)
    keys = ("corruptions", "leaks", "check-errors", "total-clusters", "allocated-clusters")
    results = [p("check", "--output=json", image, code=None) for p in (run.byre, run.qemu_img)]
    assert [r.code for r in results][0] == results[1].code
    assert [results[0].json.get(k, 0) for k in keys] == [results[1].json.get(k, 0) for k in keys]
    for off in ("0", "32k", "64k", "128k") if name != "reserved" else ("64k", "128k"):       # byre is strict there
        codes = []
        for program, args in ((run.byre, ["io"]), (peer_io, [])):
            shutil.copy(image, copy)
            codes.append(program(*args, "-r", "-f", "qcow2", "-c", f"read {off} 2k", copy, code=None).code)
        assert codes[0] == codes[1], off
    shutil.copy(image, copy)
    run.byre("io", "-f", "qcow2", "-c", f"write -P 9 {(cluster << 16) + 4096} 4k", copy, code=None)
    peer_io("-r", "-f", "qcow2", "-c", "read -P 2 64k 64k", copy)
    done = run.byre("check", "-r", "all", image, code=None)
    after = run.qemu_img("check", "--output=json", image, code=None).json
    if name in REPAIRED:
        assert done.code == 0 and not after.get("corruptions") and not after.get("leaks")
    guest.io("qemu", image, "read -P 2 64k 64k", options=["-r"])
    with corrupt.Editor(image) as e:
        if name.startswith("outside"):
            assert e.get_be64(e.l2_entry(0)) == 0
            assert e.get_be64(e.l2_entry(0) + 8) == {"outside": ALL_ZERO, "outside-zero": ALL_ZERO, "outside-absent": 0, "outside-both": 0xF << 32}[name]


def test_options(tmp_path):
    """FEATURES 1.003, 1.134: extended_l2 needs clusters of 16 KiB and version 3; help and info know it."""
    for option, word in (("cluster_size=8k", "16k"), ("compat=0.10", "0.10")):
        done = run.byre("create", "-q", "-f", "qcow2", "-o", f"extended_l2=on,{option}", tmp_path / "no", "1M", code=1)
        assert word in done.err and not (tmp_path / "no").exists()
    assert re.search(r"^ *extended_l2=", run.byre("create", "-f", "qcow2", "-o", "help").out, re.M)
    assert q2tool.tool("info", create("byre", tmp_path / "x.qcow2", "1M", 16384)).json["extended-l2"] is True
