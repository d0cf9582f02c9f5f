# SPDX-License-Identifier: MIT
"""Every hostile file: refused or safe, in bounded time, memory and file growth, and nothing else is opened."""
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import seeds_qcow2
from lib import peers, run

CPU_SECONDS = 2.0
RSS_BYTES = 256 << 20
SANITIZED = "-asan" in run.BYRE or "-tsan" in run.BYRE


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    for name, (_, write) in seeds_qcow2.SEEDS.items():
        write(folder / name)
    return folder


# Runs a program and tells what it used; a process of its own, because the peak of memory is inherited by fork.
METER = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as f:
    print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, file=f)
"""


class Used:
    def __init__(self, code, out, cpu, rss):
        self.code, self.out, self.cpu, self.rss = code, out, cpu, rss


def limited(folder, *args):
    """Runs byre under hard limits; tells what it used."""
    log, out = folder / "usage", folder / "output"
    with open(out, "wb") as f:
        subprocess.run([sys.executable, "-S", "-c", METER, log, run.BYRE, *args], stdout=f, stderr=f, stdin=subprocess.DEVNULL, check=True, timeout=60)
    code, cpu, rss = log.read_text().split()
    with open(out, errors="replace") as f:
        return Used(int(code), f.read(1 << 20), float(cpu), int(rss))


def assert_bounded(used, what, size=0):
    """RG23: linear in the length of the file, of which a repair sees all up to four times."""
    assert used.code in (0, 1, 2, 3, 63), f"{what}: ended with {used.code}\n{used.out[-2000:]}"
    if not SANITIZED:
        limit = CPU_SECONDS * (1 + size / (32 << 20))
        assert used.cpu <= limit, f"{what}: {used.cpu:.2f} s of CPU, {limit:.2f} allowed"
        assert used.rss <= RSS_BYTES, f"{what}: {used.rss >> 20} MiB"


@pytest.mark.parametrize("name", seeds_qcow2.SEEDS)
def test_seed(files, tmp_path, name):
    path = tmp_path / "x.qcow2"
    shutil.copy(files / name, path)
    before, size = path.read_bytes(), os.path.getsize(path)
    for command in (["info"], ["info", "--output=json"], ["check"], ["check", "--output=json"]):
        used = limited(tmp_path, *command, "-f", "qcow2", path)
        assert_bounded(used, " ".join(command))
        assert path.read_bytes() == before
        if command[0] == "info" and size <= 1 << 20 and not SANITIZED:
            assert used.cpu <= 0.2, f"info took {used.cpu:.3f} s"            # RG23, with room for a busy machine
    for mode in ("leaks", "all"):
        copy = tmp_path / "copy.qcow2"
        shutil.copy(path, copy)
        used = limited(tmp_path, "check", "-q", "-r", mode, "-f", "qcow2", copy)
        assert_bounded(used, f"check -r {mode}", size)
        assert os.path.getsize(copy) <= 2 * size + (16 << 16), f"-r {mode} made the file grow to {os.path.getsize(copy)}"


@pytest.mark.parametrize("name", seeds_qcow2.SEEDS)
def test_nothing_else_is_opened(files, tmp_path, name):
    """info, check and map look at the one file; what the file names is printed and not followed."""
    peers.need("strace")
    log = tmp_path / "trace"
    for command in ("info", "check"):
        subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", "trace=open,openat,openat2,creat", run.BYRE, command, "-f", "qcow2", files / name],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
        opened = re.findall(r'"((?:[^"\\]|\\.)*)"', log.read_text())
        foreign = [p for p in opened if not p.startswith(("/lib", "/usr/lib", "/etc/ld.so", "/etc/localtime", "/usr/share/zoneinfo", "/proc/", "/sys/", "/dev/")) and p != str(files / name)]
        assert not foreign, f"{command} opened {foreign}"


def test_names_are_printed(files):
    """What an image names is information, however strange."""
    assert "/etc/shadow" in run.byre("info", "-f", "qcow2", files / "cve_2015_5163_backing_is_a_host_file", code=(0, 1)).out
    assert "/etc/shadow" in run.byre("info", "-f", "qcow2", files / "cve_2024_32498_data_file_is_a_host_file").out


def test_data_file_is_a_plain_path(files, tmp_path):
    """Also for those who want the data: the name is never a recipe for something else."""
    done = run.byre("convert", "-f", "qcow2", "-O", "raw", files / "cve_2024_4467_json_data_file", tmp_path / "out.raw", code=1)
    assert "not a plain path" in done.err and not (tmp_path / "out.raw").exists()


def test_bomb_is_unpacked_piece_by_piece(files, tmp_path):
    """Reading a part of a compression bomb costs what that part costs."""
    used = limited(tmp_path, "io", "-f", "qcow2", "-r", "-c", "read 1G 4k", files / "cve_2013_4463_compression_bomb")
    assert used.code == 0, used.out
    assert_bounded(used, "read of a bomb")


def test_repair_of_a_claimed_terabyte(files, tmp_path):
    path = tmp_path / "x.qcow2"
    shutil.copy(files / "ch_rebuild_sized_by_the_claim", path)
    size = os.path.getsize(path)
    started = time.monotonic()
    assert limited(tmp_path, "check", "-r", "all", "-f", "qcow2", path).code in (0, 2)
    assert time.monotonic() - started < 10
    assert os.path.getsize(path) <= size + (4 << 16)


# ---- raw: the content of a guest's disk is never taken for a format (2008-2004, 2022-47951, 2024-40767, 2026-24708, 2026-27211)

@pytest.fixture
def raw_with_qcow2_inside(files, tmp_path):
    """A raw disk of 4 MiB into whose first sectors the guest has written a qcow2 header that names /etc/passwd."""
    path = tmp_path / "disk.raw"
    data = (files / "cve_2010_2238_backing_without_format").read_bytes()
    path.write_bytes(data.ljust(4 << 20, b"\0"))
    return path


def test_stated_raw_stays_raw(raw_with_qcow2_inside, tmp_path):
    path, content = raw_with_qcow2_inside, raw_with_qcow2_inside.read_bytes()
    info = run.byre("info", "-f", "raw", "--output=json", path).json
    assert info["format"] == "raw" and info["virtual-size"] == len(content) and "backing-filename" not in info
    run.byre("convert", "-f", "raw", "-O", "raw", path, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == content
    run.byre("resize", "-f", "raw", path, "8M")
    assert path.read_bytes() == content.ljust(8 << 20, b"\0")


def test_overlay_of_a_stated_raw_reads_raw(raw_with_qcow2_inside, tmp_path):
    over, out = tmp_path / "over.qcow2", tmp_path / "out.raw"
    run.byre("create", "-q", "-f", "qcow2", "-b", raw_with_qcow2_inside, "-F", "raw", over)
    run.byre("convert", "-f", "qcow2", "-O", "raw", over, out)
    assert out.read_bytes() == raw_with_qcow2_inside.read_bytes()


def test_guessed_raw_does_not_become_a_format(tmp_path):
    """A disk whose format was guessed as raw refuses writes that would make its first block look like a format."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    header = tmp_path / "header"
    header.write_bytes(seeds_qcow2.Image().data[:512])
    done = run.byre("io", "-c", f"write -s {header} 0 512", path, code=None)
    assert done.code != 0 or "denied" in done.out + done.err or "refused" in done.out + done.err, done
    assert path.read_bytes()[:4] != b"QFI\xfb"
