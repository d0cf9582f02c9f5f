# SPDX-License-Identifier: MIT
"""byre map against qemu-img map (FEATURES 5.053, 5.054, 11.008, 11.030)."""
import json
import random

import pytest

from lib import run


def corpus(twin):
    twin.share(["qemu-img", "create", "-q", "-f", "raw", "base.raw", "2M"],
              ["qemu-io", "-f", "raw", "-c", "write -P 1 128k 64k", "-c", "write -P 1 1M 4k", "base.raw"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2", "4M"],
              ["qemu-io", "-c", "write -P 2 0 64k", "-c", "write -z 192k 64k", "-c", "write -P 2 3M 200k", "mid.qcow2"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "6M"],
              ["qemu-io", "-c", "write -P 3 8k 4k", "-c", "write -z -u 1M 12k", "-c", "write -P 3 5M 1", "top.qcow2"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "short.qcow2", "1M"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "prealloc.qcow2", "4M"])


IMAGES = ["base.raw", "mid.qcow2", "top.qcow2", "short.qcow2", "prealloc.qcow2"]


@pytest.mark.parametrize("image", IMAGES)
def test_same_map(twin, image):
    """FEATURES 1.056, 3.016, 5.053, 11.008, 11.009: JSON and text equal the peer's, byte for byte"""
    corpus(twin)
    twin.same_output("map", "--output=json", image)
    twin.same_output("map", image)


@pytest.mark.parametrize("words", [["--start-offset=1M", "--max-length=1M"], ["--start-offset=100", "--max-length=130000"],
                                   ["--start-offset", "3M"], ["--max-length=512"], ["--start-offset=5M", "--max-length=100G"],
                                   ["--start-offset=2T"], ["--start-offset=x"], ["--max-length=-1"], ["--start-offset=0", "--max-length=0"]])
def test_ranges(twin, words):
    """FEATURES 5.054"""
    corpus(twin)
    ours, theirs = twin.same_code("map", "--output=json", *words, "top.qcow2")
    if not theirs.code:
        assert ours.out == theirs.out


def test_random_images(twin):
    """FEATURES 1.056, 5.053: random writes and zeros over a chain"""
    rng = random.Random(5053)
    steps = [["qemu-img", "create", "-q", "-f", "qcow2", "i0", "8M"]]
    for i in range(4):
        if i:
            steps.append(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={512 << rng.randrange(10)}", "-b", f"i{i - 1}", "-F",
                          "qcow2", f"i{i}", f"{rng.choice([4, 8, 12])}M"])
        words = ["qemu-io"]
        for _ in range(12):
            off, length = rng.randrange(8192) * 512, rng.randrange(1, 200) * 512
            if off + length <= 4 << 20:
                words += ["-c", f"write {rng.choice(['-z', '-z -u', '-P 7'])} {off} {length}"]
        steps.append(words + [f"i{i}"])
    twin.share(*steps)
    for i in range(4):
        twin.same_output("map", "--output=json", f"i{i}")


def test_compressed(twin):
    """FEATURES 5.053: compressed clusters are data without an offset, and say so; the text form has no word for them"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"], ["qemu-io", "-c", "write -P 1 64k 200k", "a"],
              ["qemu-img", "convert", "-c", "-O", "qcow2", "a", "x"])
    ours, theirs = twin.same_code("map", "--output=json", "x")
    for line, peer in zip(ours.json, theirs.json):
        assert line.pop("compressed", False) == (peer["data"])
        assert line == peer
    twin.same_code("map", "x")


@pytest.mark.parametrize("words", [[], ["a", "b"], ["missing"], ["--output=x", "base.raw"], ["--image-opts", "driver=qcow2,file.filename=top.qcow2"]])
def test_usage(twin, words):
    """FEATURES 5.009, 5.003"""
    corpus(twin)
    twin.same_code("map", *words)


def test_lines_cover_the_image(twin):
    corpus(twin)
    run_json = run.byre("map", "--output=json", "top.qcow2", cwd=twin.ours).json
    at = 0
    for line in run_json:
        assert line["start"] == at
        at += line["length"]
    assert at == 6 << 20
    assert json.dumps(run_json)
