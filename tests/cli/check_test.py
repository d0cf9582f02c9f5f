# SPDX-License-Identifier: MIT
"""byre check against qemu-img check (FEATURES 5c, 1.115 to 1.120)."""
import json
import signal
import struct
import subprocess

import pytest

from lib import corrupt, run, wait
from twin import Holder

BLOCK = 0x20000                  # refcount block of an image made with default options


def set_refcount(path, cluster, count):
    with open(path, "r+b") as f:
        f.seek(BLOCK + 2 * cluster)
        f.write(struct.pack(">H", count))


def damaged(twin, *changes):
    """An image of 4 data clusters (5 to 8); changes: (cluster, refcount)."""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "10M"], ["qemu-io", "-c", "write 0 256k", "x"])
    path = f"{twin.theirs}/x"
    for cluster, count in changes:
        set_refcount(path, cluster, count)
    with open(path, "r+b") as f:
        f.truncate(max(1 << 20, f.seek(0, 2)))
    twin.copy()


CASES = {"clean": [], "leak": [(12, 1)], "leak of two": [(12, 1), (13, 3)], "too high": [(6, 2)], "missing": [(6, 0)],
         "missing and leak": [(6, 0), (12, 1)]}


@pytest.mark.parametrize("case", CASES)
def test_read_only(twin, case):
    """FEATURES 5.016, 5.018, 1.119, 1.120: exit code and JSON, key for key"""
    damaged(twin, *CASES[case])
    twin.same_json("check", "--output=json", "x")
    ours, theirs = twin.same_code("check", "x")
    tail = [done.out.splitlines()[-2:] for done in (ours, theirs)]
    assert tail[0] == tail[1]


@pytest.mark.parametrize("mode", ["leaks", "all"])
@pytest.mark.parametrize("case", ["clean", "leak", "leak of two", "too high", "missing", "missing and leak"])
def test_repair(twin, case, mode):
    """FEATURES 5.017, 1.116, 1.117: what the first pass repairs and what the second finds; then the peer must agree"""
    damaged(twin, *CASES[case])
    corrupt = "missing" in case
    ours = run.byre("check", "-r", mode, "--output=json", f"{twin.ours}/x", code=None)
    if mode == "all" or not corrupt:
        assert ours.code == 0, ours
        assert run.qemu_img("check", "--output=json", f"{twin.ours}/x").json["check-errors"] == 0
        report = ours.json
        assert bool(report.get("leaks-fixed")) == (case != "clean" and "leak" in case or case == "too high"), report
        assert bool(report.get("corruptions-fixed")) == corrupt, report
    else:
        assert ours.code in (1, 2), ours               # leaks alone cannot mend this, and says so
    run.qemu_io(f"{twin.ours}/x", "read 0 256k") if ours.code == 0 else None


def test_repair_says_what_it_did(twin):
    """FEATURES 5.017: the text form"""
    damaged(twin, (12, 1))
    done = run.byre("check", "-r", "all", f"{twin.ours}/x")
    assert "The following inconsistencies were found and repaired:" in done.out
    assert "    1 leaked clusters\n    0 corruptions\n" in done.out
    assert "Double checking the fixed image now..." in done.out
    assert done.out.rstrip().splitlines()[-3] == "No errors were found on the image."


def test_quiet(twin):
    """FEATURES 5.020"""
    damaged(twin, (12, 1))
    done = run.byre("check", "-q", f"{twin.ours}/x", code=3)
    assert done.out == ""


def test_dirty_image(twin):
    """FEATURES 1.023: the dirty bit is cleared by a repair, not by a look"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "x", "8M"])
    path = f"{twin.ours}/x"
    with open(path, "r+b") as f:
        f.seek(79)
        f.write(b"\1")
    run.byre("check", path)
    assert run.byre("info", "--output=json", path).json["dirty-flag"]
    run.byre("check", "-r", "all", path)
    assert not run.byre("info", "--output=json", path).json["dirty-flag"]
    run.qemu_img("check", path)


def test_marked_corrupt(twin):
    """FEATURES 1.024: an image marked corrupt can be checked and repaired, and not written"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "8M"])
    path = f"{twin.ours}/x"
    with open(path, "r+b") as f:
        f.seek(79)
        f.write(b"\2")
    run.byre("io", "-c", "write 0 4k", path, code=1)
    run.byre("io", "-r", "-c", "read 0 4k", path)
    run.byre("check", "-r", "all", path)
    run.byre("io", "-c", "write 0 4k", path)


@pytest.mark.parametrize("words", [["-f", "raw", "r"], ["r"], ["--output=json", "r"], ["missing"], [], ["a", "b"], ["-r", "bogus", "x"],
                                   ["-T", "bogus", "x"], ["-T", "none", "x"], ["--output=xml", "x"], ["-f", "nope", "x"],
                                   ["--image-opts", "driver=qcow2,file.filename=x"], ["-U", "x"], ["-q", "x"]])
def test_usage(twin, words):
    """FEATURES 1.120, 5.009, 5.019, 5.020: 63 for a format without a check"""
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "1M"], ["qemu-img", "create", "-q", "-f", "raw", "r", "1M"])
    ours, theirs = twin.same_code("check", *words)
    if words and words[-1] == "r":
        assert theirs.code == 63


@pytest.mark.parametrize("fmt, words, code", [("qcow2", [], 0), ("qed", [], 0), ("raw", [], 63),
                                              ("luks", ["--object", "secret,id=s,data=abc", "-o", "key-secret=s,iter-time=10"], 63)])
def test_formats(twin, fmt, words, code):
    """FEATURES 5.019: each format that there is, by its name: checked, or answered that it has no check"""
    twin.give(["qemu-img", "create", "-q", "-f", fmt, *words, "x", "1M"])
    opts = ["--object", "secret,id=s,data=abc", "--image-opts", "driver=luks,key-secret=s,file.filename=x"] if fmt == "luks" else ["-f", fmt, "x"]
    assert twin.same_code("check", *opts)[1].code == code
    twin.same_code("check", "--output=json", *opts)


@pytest.mark.parametrize("fmt", ["vmdk", "vdi", "vhdx", "parallels"])
def test_formats_that_are_not_there(tmp_path, fmt):
    """FEATURES 5.019: a format that byre does not have is named, and nothing is checked in its place"""
    run.qemu_img("create", "-q", "-f", fmt, tmp_path / "x", "1M")
    assert fmt in run.byre("check", "-f", fmt, tmp_path / "x", code=1).err


def test_lock(tmp_path):
    """FEATURES 5.004, 1.122"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    with Holder(image):
        run.byre("check", image, code=1)
        run.byre("check", "-U", image)
        run.byre("check", "-r", "all", image, code=1)


def test_backing_file_is_not_needed(tmp_path):
    """FEATURES 5.016: a check looks at one file"""
    run.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "gone", "-F", "qcow2", tmp_path / "x", "1M")
    run.byre("check", tmp_path / "x")


def test_flag_without_a_table(twin, tmp_path):
    """FEATURES 1.115: an L1 entry that is COPIED and nothing else is a table at 0 for the peer, which reports errors and writes there: it is damage, and is taken away"""
    image = tmp_path / "i.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", image, "2G")
    with corrupt.Editor(image) as e:
        e.be64(e.image.header.l1_off + 8, 1 << 63)
    run.byre("check", image, code=2)
    run.qemu_img("check", image, code=2)
    run.byre("check", "-r", "all", image)
    run.qemu_img("check", image)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_signal(tmp_path, sig):
    """FEATURES 1.115: a signal ends a check that only reads, soon, with the code of the signal"""
    image = tmp_path / "i.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata,cluster_size=4096", image, "64M")
    slow = json.dumps({"driver": "qcow2", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": str(image)},
                                                   "inject-error": [{"event": "none", "iotype": "read", "x-delay-ns": 500_000_000}]}})
    process = subprocess.Popen([run.BYRE, "check", f"json:{slow}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               preexec_fn=lambda: signal.signal(sig, signal.SIG_DFL))
    wait.catches(process, sig)
    process.send_signal(sig)
    assert "was cancelled" in process.communicate(timeout=60)[0]
    assert process.returncode == 128 + sig
