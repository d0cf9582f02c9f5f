# SPDX-License-Identifier: MIT
"""Every hostile QED file: refused or safe, in bounded time and memory, unchanged, and nothing else is opened."""
import os
import re
import struct
import subprocess

import pytest
import seeds_qed
from cve_qcow2_test import assert_bounded, limited
from lib import peers, run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    for name, write in seeds_qed.SEEDS.items():
        write(folder / name)
    return folder


def head_of(path):
    with open(path, "rb") as f:
        return f.read(1 << 20), os.fstat(f.fileno()).st_size


@pytest.mark.parametrize("name", seeds_qed.SEEDS)
def test_seed(files, tmp_path, name):
    """FEATURES 2.001, 2.009, 2.020."""
    path = files / name
    before = head_of(path)
    for command in (["info"], ["info", "--output=json"], ["check"], ["check", "--output=json"], ["io", "-r", "-c", "read 0 64k"], ["map"]):
        if command[0] == "map" and os.path.getsize(path) > 1 << 40:
            continue                                  # a row for each of a million tables: long, and no harm
        used = limited(tmp_path, *command, "-f", "qed", path)
        assert_bounded(used, " ".join(command))
        assert len(used.out) < 1 << 20 and head_of(path) == before


@pytest.mark.parametrize("name", seeds_qed.SEEDS)
def test_repair(tmp_path, name):
    """FEATURES 2.020, G.021: repaired in bounded time and memory, or refused and left as it was."""
    path = seeds_qed.SEEDS[name](tmp_path / name) or tmp_path / name
    before = head_of(path)
    used = limited(tmp_path, "check", "-q", "-r", "all", "-f", "qed", path)
    assert_bounded(used, "check -r all")
    again = run.byre("check", "-f", "qed", path, code=None)
    assert again.code == 0 or (again.code == 1 and head_of(path) == before), again


@pytest.mark.parametrize("name", seeds_qed.SEEDS)
def test_nothing_else_is_opened(files, tmp_path, name):
    """info and check look at the one file; what it names is printed and not followed."""
    peers.need("strace")
    log = tmp_path / "trace"
    for command in ("info", "check"):
        subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", "trace=open,openat,openat2,creat", run.BYRE, command, "-f", "qed", files / name],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
        opened = re.findall(r'"((?:[^"\\]|\\.)*)"', log.read_text())
        foreign = [p for p in opened if not p.startswith(("/lib", "/usr/lib", "/etc/ld.so", "/etc/localtime", "/usr/share/zoneinfo", "/proc/", "/sys/", "/dev/"))
                   and p != str(files / name)]
        assert not foreign, f"{command} opened {foreign}"


def test_names(files, tmp_path):
    assert "/etc/shadow" in run.byre("info", "-f", "qed", files / "a_name_that_is_a_host_file").out
    done = run.byre("convert", "-f", "qed", "-O", "raw", files / "its_own_backing_file", tmp_path / "o", code=1)
    assert "its own backing chain" in done.err and not (tmp_path / "o").exists()


def test_leaks_of_a_long_file_are_one_line(files):
    done = run.byre("check", "-f", "qed", files / "a_file_of_sixteen_tebibytes", code=3)
    assert done.err.count("\n") == 1 and "4294967286 clusters" in done.err


@pytest.mark.asan
def test_a_name_behind_4_gib(tmp_path):
    """FEATURES 2.004: the place of a name and its length, which together pass 32 bits, lead no write out of the sector of the header"""
    cluster, header = 64 << 20, 65
    with open(tmp_path / "x", "wb") as f:
        f.write(struct.pack("<4sIIIQQQQQII", b"QED\0", cluster, 1, header, 1, 0, 1, header * cluster, 1 << 30, 0xFFFFFE00, 1000))
        f.truncate((header + 1) * cluster)
        f.seek(0xFFFFFE00)
        f.write(b"n" * 1000)
    run.byre("io", "-f", "qed", "-c", "read 0 512", tmp_path / "x", code=1)
    run.byre("io", "--image-opts", "-c", "read -P 0 0 512", "-c", "write -P 3 0 512", f"driver=qed,backing=,file.filename={tmp_path}/x", code=(0, 1))


def test_copies_for_owners_are_bounded(tmp_path):
    """FEATURES 2.020, 11.017: a table that thousands of entries name is not copied for each of them: a file of some KiB fills no disk"""
    path = tmp_path / "x"
    run.byre("create", "-q", "-f", "qed", "-o", "cluster_size=64k,table_size=1", path, "1T")
    run.byre("io", "-f", "qed", "-c", "write -P 1 0 64k", path)
    with open(path, "r+b") as f:
        head = bytearray(f.read(64))
        at = struct.unpack_from("<Q", head, 40)[0]
        f.seek(at)
        entry = f.read(8)
        f.seek(at)
        f.write(entry * 8192)
        struct.pack_into("<Q", head, 16, struct.unpack_from("<Q", head, 16)[0] | 2)
        f.seek(0)
        f.write(head)
    size = os.path.getsize(path)
    run.byre("check", "-f", "qed", "-r", "all", path, code=(1, 2, 3))
    assert os.path.getsize(path) <= 2 * size
    run.byre("io", "-f", "qed", "-c", "write 0 512", path, code=1)
    assert os.path.getsize(path) <= 2 * size
