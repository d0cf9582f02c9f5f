# SPDX-License-Identifier: MIT
"""check and repair against the peer: the same numbers on healthy and damaged images; after repair the peer finds the
image clean and the guest sees what it saw before."""
import os
import shutil

import pytest
import q2_damage
import q2tool
from lib import corrupt, images, run

import qcow2ref

# Damage on which our numbers differ on purpose: (exit code of check, corruptions), and why.
DIFFERENT = {
    "l2_zero_flag_in_v2@v2": (2, 1),             # the peer reads EIO there, but its check says nothing
    "snapshot_extra_huge@rich": (2, 1),          # a broken snapshot table is a finding; the peer gives up (G.015)
    "snapshot_extra_absurd@rich": (2, 2),
    "snapshot_count_huge@rich": (2, 2),
    "bitmap_entry_reserved@maps": (2, 1),        # the same for a broken bitmap directory: the peer cannot open the image
    "bitmap_type_unknown@maps": (2, 1),
    "bitmap_granularity_odd@maps": (2, 1),
    "bitmap_count_wrong@maps": (2, 1),
    "bitmap_directory_unaligned@maps": (2, 1),
}
# What -r all leaves, ours and the peer's alike: where the data is cannot be known, or two owners cannot be told apart.
UNMENDABLE = {"narrow_double_reference@narrow", "l1_unaligned@plain", "l1_unaligned@rich", "l2_unaligned@plain", "l2_unaligned@rich",
              "snapshot_l2_entry_unaligned@rich", "l1_points_to_itself@plain", "l1_points_to_itself@rich"}
# What -r leaks refuses to free here and the peer frees: it belongs to snapshots or bitmaps that cannot be reached now.
KEPT = {"snapshot_l1_unaligned@rich", "snapshot_l1_outside@rich", "snapshot_l1_huge@rich", "snapshot_table_outside@rich",
        "bitmap_table_outside@maps", "bitmap_entry_outside@maps", "truncated_half@rich"} | set(DIFFERENT)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: build(folder / f"{name}.qcow2") for name, build in q2_damage.BASES.items()}


def damaged(bases, name, path):
    base, fn = q2_damage.DAMAGES[name]
    shutil.copy(bases[base], path)
    with corrupt.Editor(path) as editor:
        fn(editor)
    return path


def guest_content(path, folder):
    """The guest's bytes as the peer reads them; None when it cannot."""
    raw = folder / "content.raw"
    done = run.qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw, code=None)
    return raw.read_bytes() if done.code == 0 else None


@pytest.mark.parametrize("base", q2_damage.BASES)
def test_healthy_bases(bases, base):
    ours, peer = q2tool.check(bases[base], code=0), q2tool.peer_check(bases[base], code=0)
    assert q2tool.numbers(ours.out) == q2tool.numbers(peer.out)


@pytest.mark.parametrize("name", q2_damage.DAMAGES)
def test_damaged(bases, tmp_path, name):
    """FEATURES 1.013, 1.115, 1.119: the same numbers and exit codes; the image is not touched"""
    path = damaged(bases, name, tmp_path / "x.qcow2")
    before = path.read_bytes()
    ours = q2tool.check(path)
    assert path.read_bytes() == before, "check wrote to the image"
    if name in DIFFERENT:
        assert (ours.code, q2tool.numbers(ours.out)["corruptions"]) == DIFFERENT[name], ours
        return
    peer = q2tool.peer_check(path)
    assert (ours.code, q2tool.numbers(ours.out)) == (peer.code, q2tool.numbers(peer.out)), f"{ours}\n{peer}"


@pytest.mark.parametrize("name", q2_damage.DAMAGES)
def test_repair_all(bases, tmp_path, name):
    """FEATURES 1.117, 1.118, 1.007: everything that can be mended, for the peer too; the marks go, a second repair has nothing to do"""
    path = damaged(bases, name, tmp_path / "x.qcow2")
    content = guest_content(path, tmp_path)
    ours = q2tool.check(path, "all")
    found = q2tool.numbers(ours.out)
    assert found["leaks"] == 0 and found["check-errors"] == 0, ours
    peer = q2tool.peer_check(path)
    if name in UNMENDABLE:
        assert ours.code == peer.code == 2
    else:
        assert ours.code == peer.code == 0, f"{ours}\n{peer}"
        assert q2tool.numbers(peer.out) == found
        with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
            assert not image.header.incompatible & 3
    if content is not None:
        assert guest_content(path, tmp_path) == content
    after = path.read_bytes()
    q2tool.check(path, "all", code=ours.code)
    assert path.read_bytes() == after, "a second repair changed something"


@pytest.mark.parametrize("name", q2_damage.DAMAGES)
def test_repair_leaks(bases, tmp_path, name):
    """FEATURES 1.116: leaks go, and nothing else changes"""
    path = damaged(bases, name, tmp_path / "x.qcow2")
    content = guest_content(path, tmp_path)
    before = q2tool.numbers(q2tool.check(path).out)
    ours = q2tool.check(path, "leaks")
    found = q2tool.numbers(ours.out, q2tool.STATE)
    assert ours.code == (1 if found["check-errors"] else 2 if found["corruptions"] else 3 if found["leaks"] else 0)
    assert found["corruptions"] <= before["corruptions"]
    peer_path = damaged(bases, name, tmp_path / "peer.qcow2")
    peer = q2tool.peer_check(peer_path, "leaks")
    if name in KEPT:
        assert found["leaks"] == before["leaks"]
    elif peer.code != 1 and name != "snapshot_count_one@rich":
        assert found == q2tool.numbers(peer.out, q2tool.STATE), f"{ours}\n{peer}"
    if content is not None:
        assert guest_content(path, tmp_path) == content


def test_repair_gives_back_only_what_is_leaked(bases, tmp_path):
    """Every snapshot reads as before after both repairs, in an image that has all kinds of clusters."""
    path = shutil.copy(bases["rich"], tmp_path / "x.qcow2")
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        before = [image.read(0, q2_damage.SIZE, snapshot=s.id) for s in image.snapshots]
    with corrupt.Editor(path) as e:
        q2_damage.leak_three(e)
        q2_damage.refcount_zero(e)
        q2_damage.refcount_too_low_shared(e)
        q2_damage.l1_copied_set_shared(e)
    assert q2tool.check(path).code == 2
    q2tool.check(path, "all", code=0)
    images.assert_sound(path)
    with qcow2ref.open_image(path, fmt="qcow2", backing=False) as image:
        assert [image.read(0, q2_damage.SIZE, snapshot=s.id) for s in image.snapshots] == before


def test_repair_of_snapshots_and_bitmaps_together(tmp_path):
    """The peer (7.2) loses all snapshots when it repairs an image with bitmaps; we must not."""
    path = q2_damage.build_rich(tmp_path / "x.qcow2")
    run.qemu_img("bitmap", "--add", "-g", "65536", path, "b0")
    run.qemu_io(path, "write -P 33 3M 64k")
    with corrupt.Editor(path) as e:
        q2_damage.leak_three(e)
    assert q2tool.check(path, code=3)
    q2tool.check(path, "leaks", code=0)
    images.assert_sound(path)
    info = run.qemu_img("info", "--output=json", path).json
    assert [s["name"] for s in info["snapshots"]] == ["one", "two"]
    assert [b["name"] for b in info["format-specific"]["data"]["bitmaps"]] == ["b0"]


def test_snapshot_table_is_written_anew(bases, tmp_path):
    """FEATURES 1.118: what is whole in a snapshot table survives its repair: all of the first entry, dates and content of the second."""
    path = damaged(bases, "snapshot_extra_none@rich", tmp_path / "x.qcow2")
    q2tool.check(path, "all", code=0)
    old, new = (q2tool.tool("info", p).json["snapshots"] for p in (bases["rich"], path))
    assert new[0] == old[0]
    assert [(s["date-sec"], s["date-nsec"]) for s in new] == [(s["date-sec"], s["date-nsec"]) for s in old]
    run.qemu_img("snapshot", "-a", "1", path)
    images.assert_sound(path)


def test_lost_snapshot_is_dropped(bases, tmp_path):
    path = damaged(bases, "snapshot_l1_outside@rich", tmp_path / "x.qcow2")
    q2tool.check(path, "all", code=0)
    assert [s["name"] for s in q2tool.tool("info", path).json["snapshots"]] == ["two"]
    images.assert_sound(path)


GEOMETRIES = [
    dict(cluster_size=512), dict(cluster_size=512, refcount_bits=64), dict(cluster_size=1024, refcount_bits=2),
    dict(cluster_size=4096, refcount_bits=1), dict(cluster_size=4096, refcount_bits=8), dict(cluster_size=65536, refcount_bits=4),
    dict(cluster_size=65536, refcount_bits=32), dict(cluster_size=2 << 20), dict(cluster_size=4096, compat="0.10"),
    dict(compression_type="zstd"), dict(lazy_refcounts=True),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(f"{k}={v}" for k, v in g.items()))
def test_healthy_geometries(tmp_path, geometry):
    """Written by the peer with everything the geometry allows; also with single counts shifted, then repaired."""
    base = images.create(tmp_path / "base.qcow2", "24M")
    run.qemu_io(base, "write -P 99 0 24M")
    path = images.create(tmp_path / "x.qcow2", None, backing=base, **geometry)
    run.qemu_io(path, "write -P 1 0 100k", "write -P 2 3M 1M", "write -P 3 20M 300k")
    if geometry.get("refcount_bits", 16) > 1:
        run.qemu_img("snapshot", "-c", "s", path)
        run.qemu_io(path, "write -P 4 10k 600k", "write -P 5 8M 64k", "discard 3M 256k")
        step = max(geometry.get("cluster_size", 65536), 4096)
        for i in range(4):
            run.qemu_io(path, f"write -c -P {i} {(12 << 20) + i * step} {step}")
    ours, peer = q2tool.check(path, code=0), q2tool.peer_check(path, code=0)
    assert q2tool.numbers(ours.out) == q2tool.numbers(peer.out)
    content = guest_content(path, tmp_path)
    with corrupt.Editor(path) as e:
        cs, end = e.image.cluster_size, q2_damage.end_of(e)
        for n, off in enumerate(range(0, end, max(cs, end // 40 // cs * cs))):
            at, shift, bits = e.refcount_position(off)
            e.set_refcount(off, n % 3 if bits > 1 else n % 2)
    ours, peer = q2tool.check(path), q2tool.peer_check(path)
    assert (ours.code, q2tool.numbers(ours.out)) == (peer.code, q2tool.numbers(peer.out))
    q2tool.check(path, "all", code=0)
    q2tool.peer_check(path, code=0)
    assert guest_content(path, tmp_path) == content


def test_repair_is_bounded_by_the_file(tmp_path):
    """A small file that claims a huge disk does not grow when its refcount structure is rebuilt."""
    path = images.create(tmp_path / "x.qcow2", "1T")
    run.qemu_io(path, "write -P 1 0 128k")
    size = os.path.getsize(path)
    with corrupt.Editor(path) as e:
        e.header(reftable_off=0, reftable_clusters=0)
    q2tool.check(path, "all", code=0)
    assert os.path.getsize(path) <= size + 4 * 65536
    images.assert_sound(path)


def test_read_only_open_image_is_left_alone(bases, tmp_path):
    """Repair needs the write permission of the file."""
    path = damaged(bases, "leak_one@plain", tmp_path / "x.qcow2")
    before = path.read_bytes()
    q2tool.check(path, code=3)
    assert path.read_bytes() == before


def test_many_snapshots_are_walked_once(tmp_path):
    """Tables that snapshots share are read once: 60 snapshots of 16 L2 tables cost hardly more than one."""
    path = images.create(tmp_path / "x.qcow2", "64M", cluster_size=4096)
    run.qemu_io(path, "write -P 1 0 64M")
    for i in range(60):
        run.qemu_img("snapshot", "-c", f"s{i}", path)
    ours, peer = q2tool.check(path, code=0), q2tool.peer_check(path, code=0)
    assert q2tool.numbers(ours.out) == q2tool.numbers(peer.out)
    with corrupt.Editor(path) as e:
        e.set_refcount(e.host_of(0), 60)
        e.patch_l1(0, lambda old: old)
    ours, peer = q2tool.check(path), q2tool.peer_check(path)
    assert (ours.code, q2tool.numbers(ours.out)) == (peer.code, q2tool.numbers(peer.out))
