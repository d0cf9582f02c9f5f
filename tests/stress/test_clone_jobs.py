# SPDX-License-Identifier: MIT
"""Clones inside an image (FEATURES G.004) beside jobs: on two loops the same clusters are written, discarded, zeroed, cloned and read, each sector with its
place and its generation in it, while the disk is backed up (full and by bitmap, FEATURES 9.060), mirrored in both modes (FEATURES 9.020), committed (FEATURES 9.043) and streamed (FEATURES 9.054).

What must be true is said in stress_jobs.c. At the end the peer finds source and target sound, and equal to one another and to what was read.

By hand, a minute of one form:  SOAK_SECONDS=60 pytest tests/stress/test_clone_jobs.py -k 'long and small' -s
"""
import os
import re
import subprocess
import time

import pytest
from lib import run

BUILD = os.environ.get("BYRE_BUILD") or run.TOP / "build"
SANITIZED = "-asan" in str(BUILD) or "-tsan" in str(BUILD)
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS") or 60)
# name: size of clusters, and what image-stress is told
FORMS = {
    "small": (4096, ["uring", "clone", "jobs"]),
    "tiny": (512, ["uring", "clone", "jobs"]),
    "large": (65536, ["threads", "clone", "jobs"]),
    "sub": (65536, ["uring", "clone", "jobs", "sub"]),
}


def stress(folder, form, seed, rounds, program="image-stress", **env):
    cluster, words = FORMS[form]
    return subprocess.run([os.path.join(BUILD, "tests", "stress", program), folder / "disk", str(cluster), str(seed), str(rounds), *words], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False, env={**os.environ, **env})


def agree(folder, form, seed, rounds):
    done = stress(folder, form, seed, rounds)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}"
    source, target = (re.search(rf"^{what} (.+)$", done.stdout, re.M)[1] for what in ("source", "target"))
    for image in (source, target):
        run.qemu_img("check", "-q", "-f", "qcow2", image)
        run.qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", folder / "disk.final", image)
    run.qemu_img("compare", "-q", source, target)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("form", FORMS)
def test_beside_jobs(tmp_path, form):
    agree(tmp_path, form, 7, 1)


@pytest.mark.timeout(1000)
@pytest.mark.skipif(SANITIZED, reason="the mutants are looked for in the plain build")
@pytest.mark.parametrize("name,told", [("CLONE_UNSEEN_BITMAP", "the increment"), ("CLONE_UNSEEN_WATCH", "the mirror|other bytes|differs from its model"), ("CLONE_UNSEEN_FILTER", "the backup")])
def test_mutant_is_caught(tmp_path, name, told):
    """A clone is a write of its target: for a bitmap, for a mirror, for a copy before write"""
    done = stress(tmp_path, "small", 7, 6, program="image-stress-mutants", BYRE_MUTANT=name)
    assert done.returncode == 1 and re.search(told, done.stdout), done.stdout


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 1000)
@pytest.mark.parametrize("form", FORMS)
def test_long(tmp_path, form):
    first, until = int(time.time()), time.monotonic() + SOAK_SECONDS
    for seed in range(first, first + 1000000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        agree(folder, form, seed, 2)
        for path in folder.iterdir():
            path.unlink()
        if time.monotonic() > until:
            print(f"{form}: seeds {first} to {seed}")
            break
