# SPDX-License-Identifier: MIT
"""What a check costs (FEATURES G.002): memory that follows what is used, below 256 MiB for 1 TiB of mapped data, offline, in repair and
on a disk in use; and no limit on the number of clusters of the file."""
import json
import os
import subprocess
import time

import pytest
from lib import corrupt, run

MIB = 1 << 20
BOUND = 256 * MIB


def peak(*args, code=0):
    """Most memory that a run of byre held, in bytes; its findings are not looked at"""
    with open(os.devnull, "wb") as null:
        process = subprocess.Popen([run.BYRE, *map(str, args)], stdout=null, stderr=null)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code, (args, process.returncode)
    return usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """1 TiB, every cluster mapped; the file holds the tables alone"""
    path = tmp_path_factory.mktemp("full") / "full.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1T")
    return path


def test_check_of_1_tib(full):
    """G.002: fully mapped, no errors found, within 256 MiB"""
    assert json.loads(run.byre("check", "--output=json", full).out)["allocated-clusters"] == 1 << 24
    assert peak("check", "-q", full) < BOUND


def test_repair_of_1_tib(full):
    """G.002: half of all blocks of counts are gone; told, mended, sound afterwards, within 256 MiB"""
    with corrupt.Editor(full) as editor:
        table = editor.get_be64(48)
        for i in range(0, 500, 2):
            editor.be64(table + 8 * i, 0)
    assert peak("check", "-q", full, code=2) < BOUND
    assert peak("check", "-q", "-r", "all", full) < BOUND
    run.qemu_img("check", "-q", full)


def test_scrub_of_1_tib(full, byre_serve):
    """G.001, G.002: the check of a disk in use, and the scrub of one that was not closed cleanly, within the same bound"""
    with corrupt.Editor(full) as editor:
        editor.set_bits("incompatible", 1)
    server = byre_serve(full)
    while json.loads(run.byre("ctl", server.control, "query-jobs").out):
        time.sleep(0.05)
    online = json.loads(run.byre("check", "--control", server.control, "--output=json").out)
    assert online["allocated-clusters"] == 1 << 24 and not online.get("corruptions") and not online.get("leaks")
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as f:
        most = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
    assert most * 1024 < BOUND
    assert server.stop() == 0
    run.qemu_img("check", "-q", full)


def test_more_than_2_to_the_31_clusters(tmp_path):
    """G.002: a file of more clusters than a number of 32 bits counts is checked, and costs what is used of it"""
    path = tmp_path / "a.qcow2"
    run.byre("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    run.byre("io", "-c", "write -P 7 0 64k", path)
    os.truncate(path, (1 << 40) + (1 << 38))
    assert peak("check", "-q", path) < BOUND
    run.byre("io", "-r", "-c", "read -P 7 0 64k", path)
