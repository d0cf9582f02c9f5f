# SPDX-License-Identifier: MIT
"""QED: the power fails inside a repair, and inside an upgrade to qcow2 (RG4, P5, E1, E2, E4)."""
import os
import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("BYRE_BUILD") or TOP / "build") / "tests" / "crash"
SANITIZED = "-asan" in str(BUILD) or "-tsan" in str(BUILD)


def explore(program, *args, **env):
    return subprocess.run([BUILD / program, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, **env}, timeout=600, check=False)


@pytest.mark.timeout(360)
def test_repair():
    """FEATURES 2.006, 5.017, G.021: images with leaks, with damage, with and without the mark; tables of 1, 2 and 4 clusters."""
    done = explore("qed-crash", "repair", 1, 3 if SANITIZED else 16)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) states", done.stdout)[1]) > (1000 if SANITIZED else 20000)


@pytest.mark.parametrize("name", ["BARRIER_REPAIR", "QED_COPY_LATE", "QED_REUSE_EARLY", "QED_MARK_EARLY"])
def test_mutant_is_caught(name):
    done = explore("qed-crash-mutants", "repair", 1, 16, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("qed-crash-mutants", "repair", 1, 2).returncode == 0


def test_upgrade():
    """Each state is a good QED image or a good qcow2 image, and both occur."""
    done = explore("qed-crash", "upgrade", 1, 4 if SANITIZED else 30)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) states", done.stdout)[1]) > (100 if SANITIZED else 1000)


def test_header_before_the_tables():
    done = explore("qed-crash-mutants", "upgrade", 1, 8, BYRE_MUTANT="BARRIER_SWITCH_BEFORE")
    assert done.returncode == 1 and "qcow2" in done.stdout, done.stdout
