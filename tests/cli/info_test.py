# SPDX-License-Identifier: MIT
"""byre info against qemu-img info (FEATURES 5.051, 5.052, 1.146)."""
import json
import os

import pytest

from lib import run
from twin import Holder

ACTUAL = ("actual-size",)


def chain(twin):
    twin.share(["qemu-img", "create", "-q", "-f", "raw", "base.raw", "64M"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.raw", "-F", "raw", "mid.qcow2"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "128M"],
              ["qemu-io", "-c", "write 1M 300k", "mid.qcow2"], ["qemu-io", "-c", "write 2M 64k", "top.qcow2"])


@pytest.mark.parametrize("name", ["base.raw", "mid.qcow2", "top.qcow2"])
def test_one_image(twin, name):
    """FEATURES 5.051, 5.052: text and JSON equal the peer's, key for key"""
    chain(twin)
    twin.same_json("info", "--output=json", name)
    twin.same_output("info", name)


def test_chain(twin):
    """FEATURES 5.052: --backing-chain"""
    chain(twin)
    twin.same_json("info", "--output=json", "--backing-chain", "top.qcow2")
    twin.same_output("info", "--backing-chain", "top.qcow2")


OPTIONS = ["cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on", "compression_type=zstd",
           "compat=0.10", "preallocation=metadata", "preallocation=full"]


@pytest.mark.parametrize("option", OPTIONS)
def test_format_specific(twin, option):
    """FEATURES 1.146, 1.134: every create option shows"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "-o", option, "x", "8M"])
    twin.same_json("info", "--output=json", "x")
    twin.same_output("info", "x")


def test_snapshots_and_bitmaps(twin):
    """FEATURES 5.051, 1.019: lists of internal snapshots and bitmaps"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "x", "100M"], ["qemu-img", "snapshot", "-c", "first", "x"],
              ["qemu-img", "snapshot", "-c", "a rather long name of a snapshot", "x"], ["qemu-img", "bitmap", "--add", "-g", "64k", "x", "b0"],
              ["qemu-img", "bitmap", "--add", "--disable", "x", "b1"])
    twin.same_json("info", "--output=json", "x")
    twin.same_output("info", "x")


def test_flags(twin):
    """FEATURES 1.023, 1.024: dirty and corrupt bits"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "x", "8M"])
    for bits in (1, 2, 3):
        for folder in (twin.ours, twin.theirs):
            with open(os.path.join(folder, "x"), "r+b") as f:
                f.seek(79)
                f.write(bytes([bits]))
        twin.same_json("info", "--output=json", "x")
        twin.same_output("info", "x")


@pytest.mark.parametrize("words", [
    ["driver=qcow2,file.filename=mid.qcow2", "--image-opts"],
    ["driver=qcow2,file.driver=file,file.filename=mid.qcow2", "--image-opts"],
    ["driver=raw,file.filename=base.raw", "--image-opts"],
    ['json:{"driver":"qcow2","file":{"driver":"file","filename":"mid.qcow2"}}'],
    ['json:{"driver":"qcow2","file.filename":"mid.qcow2"}'],
    ["file:mid.qcow2"], ["./mid.qcow2"], ["-f", "qcow2", "mid.qcow2"], ["-f", "raw", "mid.qcow2"], ["-U", "mid.qcow2"],
])
def test_names(twin, words):
    """FEATURES 5.003, 3.070: ways to name an image"""
    chain(twin)
    twin.same_json("info", "--output=json", *words)


@pytest.mark.parametrize("words", [["./a:b"], ["file:a:b"], ["a:b"], ["json:{\"file.filename\":\"a:b\"}"], ["json:{\"file\":{\"driver\":\"file\",\"filename\":\"a:b\"}}"],
                                   ["json:{\"driver\":\"qcow2\",\"file.filename\":\"a:b\"}"], ["--image-opts", "driver=qcow2,file.filename=a:b"],
                                   ["--image-opts", "file.driver=file,file.filename=a:b"], ["nosuch:a"]], ids=lambda w: w[-1])
def test_colons(twin, words):
    """FEATURES 3.070: a colon in a name, the format given or probed: understood or refused as by the peer"""
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "./a:b", "1M"])
    ours, theirs = twin.same_code("info", "--output=json", *words)
    assert ours.code == (1 if words[-1] in ("a:b", "nosuch:a") else 0)
    if not ours.code:
        for key in ("virtual-size", "format", "format-specific"):
            assert ours.json[key] == theirs.json[key]


def test_no_backing_image_is_null(twin):
    """FEATURES G.080: null, and not an empty text, opens an overlay without what is below it"""
    chain(twin)
    run.byre("io", "-r", "-c", "read -P 0 1M 64k", 'json:{"driver":"qcow2","backing":null,"file.filename":"top.qcow2"}', cwd=twin.ours)
    done = run.byre("info", 'json:{"driver":"qcow2","backing":"","file.filename":"top.qcow2"}', cwd=twin.ours, code=1)
    assert "backing" in done.err


@pytest.mark.parametrize("words", [
    [], ["a", "b"], ["missing"], ["-f", "qcow2", "base.raw"], ["-f", "nope", "base.raw"], ["--output=xml", "base.raw"], ["--bogus", "base.raw"],
    ["--image-opts", "-f", "raw", "driver=raw,file.filename=base.raw"], ["--image-opts", "driver=qcow2,foo=bar,file.filename=mid.qcow2"],
    ["--image-opts", "driver=qcow2"], ["json:{"], ["json:{}"], ["nbd://nowhere.invalid/"], ["."],
])
def test_refusals(twin, words):
    """FEATURES 5.009, 11.016"""
    chain(twin)
    ours, theirs = twin.same_code("info", *words)
    assert ours.code == 1 and ours.err.startswith("byre: ") and not ours.out


def test_unknown_option_is_named(twin):
    """FEATURES 11.016: unknown options are refused by name"""
    chain(twin)
    ours, _ = twin.img("info", "--image-opts", "driver=qcow2,foo=bar,file.filename=mid.qcow2")
    assert "foo" in ours.err


def test_backing_loop(tmp_path):
    """FEATURES 5.052 RG22: a chain that contains itself ends with an error, soon"""
    for name, backing in (("a", "b"), ("b", "a")):
        run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", tmp_path / name, "1M")
    run.byre("info", tmp_path / "a")
    done = run.byre("info", "--backing-chain", tmp_path / "a", code=1, timeout=5)
    assert "chain" in done.err


@pytest.mark.parametrize("name", ["blkdebug:rules:base", "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "blkdebug", "config": "rules", "image": {"driver": "file", "filename": "base"}}}),
                                  "file:blkdebug:rules:base"], ids=["blkdebug", "json", "file"])
def test_names_that_images_record(tmp_path, name):
    """FEATURES 3.052, 5.052: --backing-chain opens what images record as all commands do: no name of theirs makes this program read a file of rules"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "1M")
    (tmp_path / "rules").write_text("neither this nor that\n")
    run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", tmp_path / "x", "1M")
    err = run.byre("info", "--backing-chain", "x", code=1, cwd=tmp_path).err
    assert "rules:1" not in err and "nests nodes" in err, err


def test_missing_backing_file(twin):
    """FEATURES 5.051: the image itself is described though its backing file is gone"""
    twin.share(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "gone", "-F", "qcow2", "x", "1M"])
    twin.same_json("info", "--output=json", "x", drop=ACTUAL)
    ours, theirs = twin.same_code("info", "--backing-chain", "x")
    assert "gone" in ours.err


def test_lock(tmp_path):
    """FEATURES 5.004: a writer elsewhere is respected; -U looks all the same"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    with Holder(image):
        assert "lock" in run.byre("info", image, code=1).err
        assert run.byre("info", "-U", "--output=json", image).json["virtual-size"] == 1 << 20


def test_json_is_valid_for_odd_names(tmp_path):
    """FEATURES 5.008: names with quotes, newlines and bytes that are no UTF-8"""
    for name in ('a"b\\c', "line\nbreak", b"\xff\xfe".decode("utf-8", "surrogateescape")):
        path = os.path.join(str(tmp_path), name)
        run.byre("create", "-q", "-f", "raw", "./" + name, "1M", cwd=tmp_path)
        done = run.run(run.BYRE, "info", "--output=json", "./" + name, cwd=tmp_path, binary=True)
        assert json.loads(done.out.decode("utf-8"))["virtual-size"] == 1 << 20
        os.unlink(path)
