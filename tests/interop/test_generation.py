# SPDX-License-Identifier: MIT
"""The generation of an image with bitmaps, and other programs that write it (FEATURES G.018)."""
import json

import pytest
from lib import images, run
from lib.bitmaps import listed

MIB = 1 << 20
AUTOCLEAR = 88


def specific(image):
    return json.loads(run.byre("info", "--output=json", image).out)["format-specific"]["data"]


def generation(image):
    d = specific(image)
    return d.get("x-generation"), d.get("x-written-by-others")


def write(tool, image, *commands):
    run.byre("io", "-f", "qcow2", *sum((["-c", c] for c in commands), []), image) if tool == "byre" else run.qemu_io(image, *commands)


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_counts_openings(tmp_path, cluster_size):
    """One more for each opening that records something; none for one that does not"""
    image = tmp_path / "d.qcow2"
    images.create(image, 16 * MIB, tool="byre", cluster_size=cluster_size)
    write("byre", image, "write 0 64k")
    assert generation(image) == (None, None) and "generation" not in run.byre("info", image).out
    run.byre("bitmap", "--add", image, "b")
    assert generation(image) == (None, None)
    for n in range(1, 4):
        write("byre", image, "write 0 64k", "write 1M 512", "flush", "write 2M 512")
        assert generation(image) == (n, False)
        write("byre", image, "read 0 64k")
        assert generation(image) == (n, False)
        assert f"\n    generation: {n}\n" in run.byre("info", image).out
    run.byre("bitmap", "--disable", image, "b")
    before = generation(image)
    write("byre", image, "write 0 64k")
    assert generation(image) == before
    images.assert_sound(image)


def test_another_program(tmp_path):
    """A program that knows bitmaps keeps them; that it was there is told until byre has written again"""
    image = tmp_path / "d.qcow2"
    images.create(image, 16 * MIB, tool="byre")
    run.byre("bitmap", "--add", image, "b")
    write("byre", image, "write 0 64k")
    write("qemu", image, "read 0 64k")
    told = generation(image)
    assert told[0] == 1
    write("qemu", image, "write 1M 64k")
    assert generation(image) == (1, True)
    assert "generation: 1 (written by another program since)" in run.byre("info", image).out
    assert listed(image) == [("b", 65536, ["auto"])]
    write("byre", image, "write 2M 64k")
    assert generation(image) == (2, False)
    assert listed(image) == [("b", 65536, ["auto"])]
    images.assert_sound(image)
    assert [n for n, _, _ in listed(image, run.qemu_img)] == ["b"]


def test_a_program_without_bitmaps(tmp_path):
    """It takes the bit of the bitmaps away: they are told of, and not used; nothing else is the matter with the image"""
    image = tmp_path / "d.qcow2"
    images.create(image, 16 * MIB, tool="byre")
    run.byre("bitmap", "--add", image, "b")
    write("byre", image, "write 0 64k")
    with open(image, "r+b") as f:
        f.seek(AUTOCLEAR)
        f.write(bytes(8))
    assert generation(image) == (1, True)
    assert specific(image)["x-bitmaps-outdated"] == 1 and "bitmaps" not in specific(image)
    assert "outdated bitmaps: 1 (written by a program that does not know of bitmaps)" in run.byre("info", image).out
    done = run.byre("io", "-f", "qcow2", "-c", "write 1M 64k", image)
    assert "was written by a program that does not know of bitmaps" in done.err
    assert "b" in run.byre("bitmap", "--clear", image, "b", code=1).err
    run.byre("bitmap", "--add", image, "b")                    # a new one of the same name
    write("byre", image, "write 2M 64k")
    assert generation(image) == (2, False)
    assert listed(image) == [("b", 65536, ["auto"])]
    assert "x-bitmaps-outdated" not in specific(image)
    run.byre("check", "-r", "leaks", image, code=(0, 3))       # the space of the old one
    images.assert_sound(image)


def test_kept_by_changes_of_the_header(tmp_path):
    """Another layout of the header keeps the number"""
    image = tmp_path / "d.qcow2"
    images.create(image, 16 * MIB, tool="byre")
    run.byre("bitmap", "--add", image, "b")
    write("byre", image, "write 0 64k")
    run.byre("amend", "-o", "lazy_refcounts=on", image)
    run.byre("rebase", "-u", "-b", "some-long-name-of-a-backing-file", "-F", "raw", image)
    assert generation(image)[0] == 1
    run.byre("rebase", "-u", "-b", "", image)
    run.byre("resize", image, "32M")
    assert generation(image)[0] == 1 and listed(image) == [("b", 65536, ["auto"])]
