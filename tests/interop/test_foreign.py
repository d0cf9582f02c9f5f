# SPDX-License-Identifier: MIT
"""Files that the peer wrote, as byre finds them: healthy in all geometries, dirty after a kill, leaky, corrupt, unknown."""
import os
import re
import shutil

import guest
import pytest
from guest import Guest, seed_of
from lib import corrupt, images, run

import qcow2ref

GEOMETRIES = [(2, 16)] + [(3, bits) for bits in images.REFCOUNT_BITS]


@pytest.mark.parametrize("cluster_size", images.CLUSTER_SIZES)
def test_read_what_the_peer_wrote(tmp_path, cluster_size):
    """Content, map and check of the peer's images; versions and widths take turns, all of them for two sizes."""
    which = range(len(GEOMETRIES)) if cluster_size in (512, 65536) else [0, 1 + cluster_size.bit_length() % 7]
    for i in which:
        version, bits = GEOMETRIES[i]
        image = tmp_path / f"disk{i}.qcow2"
        disk = Guest(seed_of("foreign", cluster_size, i), guest.disk_size(cluster_size), cluster_size, version,
                     weights={"compressed": 4 if bits >= 8 else 0})     # narrower counts fail in the peer now and then
        options = {"refcount_bits": bits} if version == 3 else {}
        guest.create("qemu", image, disk.size, version=version, cluster_size=cluster_size, **options)
        disk.run("qemu", image, operations=60)
        disk.judge(image, tmp_path)
        before = image.read_bytes()
        guest.assert_read_by_byre(disk, image, tmp_path)
        assert image.read_bytes() == before, "reading changed the file"
        disk.weights["compressed"] = 0
        disk.run("byre", image, operations=30)
        disk.judge(image, tmp_path)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("lazy", [False, True])
def test_preallocated_by_the_peer(tmp_path, mode, lazy):
    image, disk = tmp_path / "disk.qcow2", Guest(seed_of(mode, lazy), (3 << 20) + 512)
    guest.create("qemu", image, disk.size, preallocation=mode, lazy_refcounts=lazy)
    guest.assert_read_by_byre(disk, image, tmp_path)
    for tool in ("qemu", "byre"):
        disk.run(tool, image, operations=30)
        disk.judge(image, tmp_path)
    guest.assert_read_by_byre(disk, image, tmp_path)


@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"cluster_size": 4096, "refcount_bits": 64}, {"compat": "0.10"},
                                     {"cluster_size": 2 << 20, "lazy_refcounts": "on"}, {"preallocation": "metadata"},
                                     {"preallocation": "full"}, {"cluster_size": 1024, "refcount_bits": 1}])
def test_convert_makes_what_the_peer_reads(tmp_path, options):
    source, image, out = tmp_path / "source.qcow2", tmp_path / "disk.qcow2", tmp_path / "out.raw"
    disk = Guest(seed_of(sorted(options.items())), (3 << 20) + 1536, 8192)
    guest.create("qemu", source, disk.size, cluster_size=8192)
    disk.run("qemu", source, operations=60, batch=60)
    disk.judge(source, tmp_path)
    text = ",".join(f"{k}={v}" for k, v in options.items())
    run.byre("convert", "-f", "qcow2", "-O", "qcow2", *(["-o", text] if text else []), source, image)
    disk.judge(image, tmp_path)
    run.byre("convert", "-O", "raw", image, out)
    assert out.read_bytes() == disk.shadow
    disk.grain = disk.cluster = options.get("cluster_size", 65536)
    disk.run("byre", image, operations=30)
    disk.judge(image, tmp_path)


def test_convert_onto_a_backing_image(tmp_path):
    """-B: what the backing image supplies is not copied; the peer reads the same through the chain."""
    base, source, image = tmp_path / "base.qcow2", tmp_path / "source.qcow2", tmp_path / "disk.qcow2"
    below = Guest(5, 4 << 20)
    guest.create("qemu", base, below.size)
    below.run("qemu", base, operations=30)
    disk = Guest(6, (4 << 20) + 65536 + 512, 4096, backing=bytes(below.shadow))
    guest.create("qemu", source, disk.size, backing="base.qcow2", cluster_size=4096)
    disk.run("qemu", source, operations=30)
    run.byre("convert", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", source, image, cwd=tmp_path)
    disk.judge(image, tmp_path)
    assert run.qemu_img("info", "--output=json", image).json["backing-filename"] == "base.qcow2"


# ---- dirty ----------------------------------------------------------------------------------------------------------

def killed(tool, image, *commands, options=()):
    """Leaves an image as a kill of its writer does: the last flush is done, refcounts may not be written."""
    session = guest.Session(tool, image, *options)
    session.do(*commands, "flush")
    session.kill()


def is_dirty(image):
    with qcow2ref.Image(image) as reader:
        return bool(reader.header.incompatible & qcow2ref.DIRTY)


@pytest.mark.parametrize("cluster_size,bits,backing", [(65536, 16, False), (512, 64, False), (4096, 1, True), (2 << 20, 16, False),
                                                       (65536, 2, True)])
def test_dirty_image_of_the_peer(tmp_path, cluster_size, bits, backing):
    """A lazy-refcounts writer was killed. Read-only use works and changes nothing; the first read-write open repairs."""
    image = tmp_path / "disk.qcow2"
    size = guest.disk_size(cluster_size)
    content = images.pattern_bytes(3, size) if backing else None
    if backing:
        images.raw_file(tmp_path / "base.raw", size, [(0, content)])
    disk = Guest(seed_of("dirty", cluster_size, bits), size, cluster_size, backing=content)
    guest.create("qemu", image, size, cluster_size=cluster_size, refcount_bits=bits, lazy_refcounts=True,
                 **({"backing": "base.raw", "backing_fmt": "raw"} if backing else {}))
    killed("qemu", image, *next(disk.batches(40, 40)), options=["-d", "unmap"])
    assert is_dirty(image), "the peer left no dirty image: this test tests nothing"
    before, out = image.read_bytes(), tmp_path / "out.raw"
    assert run.byre("info", "--output=json", image).json["dirty-flag"] is True
    run.byre("convert", "-O", "raw", image, out)
    assert out.read_bytes() == disk.shadow
    ours, peer = (p("check", "--output=json", image, code=None) for p in (run.byre, run.qemu_img))
    keys = ("corruptions", "leaks", "check-errors")
    assert (ours.code, [ours.json.get(k, 0) for k in keys]) == (peer.code, [peer.json.get(k, 0) for k in keys])
    assert image.read_bytes() == before, "a read-only use changed a dirty image"
    disk.run("byre", image, operations=20)
    assert not is_dirty(image)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("repair", ["leaks", "all"])
def test_dirty_image_repaired_by_check(tmp_path, repair):
    image, disk = tmp_path / "disk.qcow2", Guest(8, 3 << 20, 4096)
    guest.create("qemu", image, disk.size, cluster_size=4096, lazy_refcounts=True)
    killed("qemu", image, *next(disk.batches(40, 40)), options=["-d", "unmap"])
    assert is_dirty(image)
    done = run.byre("check", "-r", repair, image, code=None)
    if repair == "all":
        assert done.code == 0 and not is_dirty(image)
    disk.run("byre", image, operations=10)
    disk.judge(image, tmp_path)


@pytest.mark.parametrize("finisher", ["byre", "qemu", "check"])
@pytest.mark.parametrize("cluster_size,lazy", [(512, True), (65536, True), (512, False), (65536, False)])
def test_killed_byre_io(tmp_path, cluster_size, lazy, finisher):
    """byre io was killed after a flush: the peer opens or repairs what is left, and so does byre."""
    image = tmp_path / "disk.qcow2"
    disk = Guest(seed_of("killed", cluster_size, lazy, finisher), guest.disk_size(cluster_size), cluster_size)
    guest.create("byre", image, disk.size, cluster_size=cluster_size, lazy_refcounts=lazy)
    killed("byre", image, *next(disk.batches(40, 40)), options=["-d", "unmap"])
    if not lazy:
        images.assert_sound(image, leaks=True)
    if finisher == "check":
        run.qemu_img("check", "-q", "-r", "all", image, code=(0, 3))
    else:
        disk.run(finisher, image, operations=20)
    run.qemu_img("check", "-q", "-r", "leaks", image, code=(0, 3))
    disk.judge(image, tmp_path)


# ---- leaky, corrupt, unknown ----------------------------------------------------------------------------------------

@pytest.fixture
def written(tmp_path):
    """An image of the peer and its model."""
    image, disk = tmp_path / "disk.qcow2", Guest(21, (3 << 20) + 512, 4096)
    guest.create("qemu", image, disk.size, cluster_size=4096)
    disk.run("qemu", image, operations=60, batch=60)
    return image, disk


def test_leaky(written, tmp_path):
    image, disk = written
    with corrupt.Editor(image) as editor:
        for _ in range(5):
            editor.set_refcount(editor.append_cluster(b"lost"), 1)
            editor.reload()
    assert run.qemu_img("check", "--output=json", image, code=3).json["leaks"] == 5
    assert run.byre("check", "--output=json", image, code=3).json["leaks"] == 5
    copy = tmp_path / "copy.qcow2"
    shutil.copy(image, copy)
    disk.run("byre", copy, operations=20)                  # leaks are no obstacle, and nobody's data
    assert run.qemu_img("check", "--output=json", copy, code=(0, 3)).json.get("corruptions", 0) == 0
    assert run.byre("check", "--output=json", "-r", "leaks", copy, code=(0, 3)).json.get("leaks", 0) == 0
    disk.judge(copy, tmp_path)


def refuses_to_write(image):
    """A read-write open fails and leaves the file as it is."""
    before = image.read_bytes()
    done = run.byre("io", "-f", "qcow2", "-c", "write 0 512", image, code=1)
    assert "wrote" not in done.out
    assert image.read_bytes() == before
    return done.out + done.err


def test_marked_corrupt(written, tmp_path):
    """FEATURES 1.024: no read-write open, reading is allowed, a full repair clears the mark."""
    image, disk = written
    with corrupt.Editor(image) as editor:
        editor.set_bits("incompatible", qcow2ref.CORRUPT)
    run.qemu_io(image, "read 0 512", options=["-r"])
    refuses_to_write(image)
    assert run.byre("info", "--output=json", image).json["format-specific"]["data"]["corrupt"] is True
    out = tmp_path / "out.raw"
    run.byre("convert", "-O", "raw", image, out)
    assert out.read_bytes() == disk.shadow
    run.byre("check", "-r", "all", image)
    assert run.qemu_img("info", "--output=json", image).json["format-specific"]["data"]["corrupt"] is False
    disk.run("byre", image, operations=20)
    disk.judge(image, tmp_path)


def test_corrupt_counts(written, tmp_path):
    """References without counts: found as the peer finds them, mended without a change to the guest."""
    image, disk = written
    with corrupt.Editor(image) as editor:
        hosts = [e for e in range(0, disk.size, 65536) if any(disk.shadow[e:e + 4096])][:6]
        for off in hosts:
            editor.set_refcount(editor.host_of(off), 0)
    keys = ("corruptions", "leaks", "check-errors")
    ours, peer = (p("check", "--output=json", image, code=2) for p in (run.byre, run.qemu_img))
    assert [ours.json.get(k, 0) for k in keys] == [peer.json.get(k, 0) for k in keys]
    assert ours.json["corruptions"] >= len(hosts)
    run.byre("check", "-r", "all", image)
    disk.judge(image, tmp_path)


def test_unknown_incompatible_bit(written):
    """FEATURES 1.028: no tool opens it, reading included; the text names the feature when the image does."""
    image, _ = written
    with corrupt.Editor(image) as editor:
        editor.set_bits("incompatible", 1 << 40)
    refuses_to_write(image)
    for args in (["info", image], ["io", "-r", "-c", "read 0 512", image], ["convert", "-O", "raw", image, f"{image}.raw"]):
        done = run.byre(*args, code=1)
        assert re.search(r"feature", done.err + done.out, re.I), done
    run.qemu_img("info", image, code=1)


def test_unknown_harmless_bits(written, tmp_path):
    """FEATURES 1.030 and 1.033: compatible bits stay, autoclear bits go with the first read-write open."""
    image, disk = written
    with corrupt.Editor(image) as editor:
        editor.set_bits("compatible", 1 << 20)
        editor.set_bits("autoclear", 1 << 30)
    before = image.read_bytes()
    guest.assert_read_by_byre(disk, image, tmp_path)
    assert image.read_bytes() == before
    disk.run("byre", image, operations=10)
    with qcow2ref.Image(image) as reader:
        assert reader.header.compatible & 1 << 20 and not reader.header.autoclear & 1 << 30
    disk.judge(image, tmp_path)
