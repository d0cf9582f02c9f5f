# SPDX-License-Identifier: MIT
"""byre measure against qemu-img measure (FEATURES 5.055, 5.056, 1.145, 3.029)."""
import pytest

from lib import run

OPTIONS = ["", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64", "compat=0.10",
           "preallocation=metadata", "preallocation=falloc", "preallocation=full", "lazy_refcounts=on", "compression_type=zstd",
           "cluster_size=4k,refcount_bits=64,preallocation=full", "extended_l2=on", "data_file=d", "data_file=d,data_file_raw=on",
           "preallocation=metadata,backing_file=b,backing_fmt=raw", "cluster_size=512,refcount_bits=64,preallocation=falloc", "extended_l2=on,cluster_size=16k,preallocation=metadata"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("size", ["0", "1", "512", "1M", "1G", "3333333333", "20G", "100G"])
def test_size(twin, size, option):
    """FEATURES 5.055, 5.056: numbers equal the peer's over options and sizes"""
    words = ["measure", "-O", "qcow2", "--size", size] + (["-o", option] if option else [])
    twin.same_json(*words, "--output=json")
    twin.same_output(*words)


def sources(twin):
    twin.share(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1G"],
              ["qemu-io", "-c", "write 64k 200k", "-c", "write -z 1M 128k", "-c", "write 500M 3M", "a"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "b"], ["qemu-io", "-c", "write 0 1", "-c", "write 501M 64k", "b"],
              ["qemu-img", "create", "-q", "-f", "raw", "r", "100M"], ["qemu-io", "-f", "raw", "-c", "write 3M 5000", "r"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "m", "100M"], ["qemu-img", "bitmap", "--add", "-g", "64k", "m", "b0"],
              ["qemu-img", "bitmap", "--add", "-g", "512", "m", "b1"])


@pytest.mark.parametrize("target", [["-O", "qcow2"], ["-O", "raw"], [], ["-O", "qcow2", "-o", "cluster_size=4k"], ["-O", "qcow2", "-o", "compat=0.10"],
                                    ["-O", "qcow2", "-o", "preallocation=full"]])
@pytest.mark.parametrize("source", ["a", "b", "r", "m"])
def test_source(twin, source, target):
    """FEATURES 5.055, 5.056: counting what a source holds"""
    sources(twin)
    twin.same_json("measure", "--output=json", *target, source)


@pytest.mark.parametrize("words", [["-O", "qcow2"], ["-O", "qcow2", "--size", "1G", "a"], ["-O", "qcow2", "--size", "1x"], ["-O", "bogus", "--size", "1G"],
                                   ["-O", "qcow2", "a", "b"], ["-O", "qcow2", "-o", "foo=1", "--size", "1G"], ["--output=xml", "--size", "1G"],
                                   ["-O", "qcow2", "missing"], ["-O", "qcow2", "--size", "-1"]])
def test_usage(twin, words):
    """FEATURES 5.009"""
    sources(twin)
    twin.same_code("measure", *words)


def test_created_file_is_not_larger(tmp_path):
    """FEATURES 1.145: a converted file needs no more than was said"""
    src = tmp_path / "src"
    run.byre("create", "-q", "-f", "raw", src, "64M")
    run.byre("io", "-f", "raw", "-c", "write -P 1 1M 5M", "-c", "write -P 1 40M 100", src)
    for option in ("cluster_size=64k", "cluster_size=4k", "refcount_bits=64"):
        required = run.byre("measure", "-O", "qcow2", "-o", option, "-f", "raw", "--output=json", src).json["required"]
        run.byre("convert", "-f", "raw", "-O", "qcow2", "-o", option, src, tmp_path / "out")
        assert (tmp_path / "out").stat().st_size <= required
        run.qemu_img("compare", "-f", "raw", "-F", "qcow2", src, tmp_path / "out")
