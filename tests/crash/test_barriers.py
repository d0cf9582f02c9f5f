# SPDX-License-Identifier: MIT
"""Barriers: how many are issued, and the dependencies that only a unit test of meta can show to be needed (RG4)."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("BYRE_BUILD") or TOP / "build")
META_TEST = BUILD / "tests" / "crash" / "meta-test-mutants"
FILL_TEST = BUILD / "tests" / "crash" / "qed-fill-test-mutants"
CLONE_TEST = BUILD / "tests" / "crash" / "q2-clone-test-mutants"
PROVE_TEST = BUILD / "tests" / "crash" / "q2-prove-test-mutants"
COMPACT_TEST = BUILD / "tests" / "crash" / "q2-compact-test-mutants"
sys.path.insert(0, str(TOP / "tests" / "lib"))
from peers import need  # noqa: E402


def call(*cmd, **kw):
    return subprocess.run([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)


def test_meta_test_passes_without_a_mutant():
    r = call(META_TEST)
    assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("name", ["FREE_SKIP_DURABLE", "FREE_SKIP_GRACE", "FLUSH_IGNORES_DIRT", "FREEZE_NOTHING", "NEED_DATA_BARRIER", "NEED_TABLE_BARRIER"])
def test_meta_test_notices(name):
    r = call(META_TEST, env=dict(os.environ, BYRE_MUTANT=name))
    assert r.returncode != 0, "meta_test does not notice %s" % name


def test_compact_test_passes_without_a_mutant():
    r = call(COMPACT_TEST)
    assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("name", ["MOVE_NO_GRACE", "MOVE_USERS", "BARRIER_CUT"])
def test_compact_test_notices(name):
    """Races of a few turns, which the explorer meets too seldom"""
    r = call(COMPACT_TEST, env=dict(os.environ, BYRE_MUTANT=name))
    assert r.returncode != 0, "q2_compact_test does not notice %s" % name


def test_clone_test_passes_without_a_mutant():
    r = call(CLONE_TEST)
    assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("name", ["CLONE_NO_GRACE", "CLONE_KEEP_COPIED", "CLONE_FORGETS_FLAG", "CLONE_SETTLED_STAYS"])
def test_clone_test_notices(name):
    r = call(CLONE_TEST, env=dict(os.environ, BYRE_MUTANT=name))
    assert r.returncode != 0, "q2_clone_test does not notice %s" % name


def test_prove_test_passes_without_a_mutant():
    r = call(PROVE_TEST)
    assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("name", ["PROVE_BLIND", "PROVE_DROPPED", "PROVE_UNSPOILT"])
def test_prove_test_notices(name):
    """What goes wrong only where counts were wrong before, which no crash state of a sound image shows"""
    r = call(PROVE_TEST, env=dict(os.environ, BYRE_MUTANT=name))
    assert r.returncode != 0, "q2_prove_test does not notice %s" % name


def test_fill_test_passes_without_a_mutant():
    r = call(FILL_TEST)
    assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("name", ["QED_MOVE_NO_GRACE", "QED_MOVE_TABLE_STALE", "QED_MOVED_REUSED"])
def test_fill_test_notices(name):
    r = call(FILL_TEST, env=dict(os.environ, BYRE_MUTANT=name))
    assert r.returncode != 0, "qed_fill_test does not notice %s" % name


def count_barriers(tmp_path, writes):
    """fdatasync calls of one run of byre io: the threads backend makes them visible."""
    image, log = tmp_path / ("b%d.qcow2" % writes), tmp_path / ("log%d" % writes)
    byre = os.environ.get("BYRE") or BUILD / "byre"
    assert call(byre, "create", "-q", "-f", "qcow2", image, "1G").returncode == 0
    commands = sum((["-c", "write -q %d 4k" % (i * 65536)] for i in range(writes)), ["-c", "write -q 900M 4k", "-c", "flush"])
    env = dict(os.environ, BYRE_BACKEND="threads")
    r = call("strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", log, byre, "io", "-f", "qcow2", *commands, "-c", "flush", image, env=env)
    assert r.returncode == 0, r.stdout
    return sum(1 for line in log.read_text().splitlines() if "sync(" in line)


def test_barriers_per_thousand_allocating_writes(tmp_path):
    """FEATURES 1.047: at most 4 barriers for 1,000 allocating writes between two guest flushes."""
    need("strace")
    few, many = count_barriers(tmp_path, 0), count_barriers(tmp_path, 1000)
    assert many - few <= 4, "%d barriers more than a run without them" % (many - few)
    assert few >= 2, "the counter sees no flush at all"
