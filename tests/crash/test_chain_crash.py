# SPDX-License-Identifier: MIT
"""Jobs that change the chain of a disk in use: the power fails, every n-th call fails, and the guest finds what it wrote (J2, J3, J5; H6, H8).

FEATURES 9.042, 9.053, 9.054, 9.055, G.034: commit, commit with drop-source, stream of all and to a base; commit and rebase of a chain
that is not in use (FEATURES 5.021, 5.058); an active commit (FEATURES 9.043), and whole graphs with a few jobs one after the other, some of them
cancelled. Four files with flushes of their own.
"""
import os
import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("BYRE_BUILD") or TOP / "build") / "tests" / "crash"
SANITIZED = "-asan" in str(BUILD) or "-tsan" in str(BUILD)
JOBS = ("commit", "drop", "stream", "stream-base", "offline-commit", "rebase", "active", "graph")


def explore(program, *args, **env):
    return subprocess.run([BUILD / program, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, **env}, timeout=600, check=False)


def states(done):
    assert done.returncode == 0, done.stdout
    return int(re.search(r"(\d+) states", done.stdout)[1])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("job", JOBS)
def test_power_cuts(job):
    """In each state the disk shows what it showed, by whatever its header names; in some the job is done again."""
    assert states(explore("chain-crash", job, 1, 1 if SANITIZED else 3 if job in JOBS[-2:] else 6)) > (200 if SANITIZED else 3000)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("job", JOBS)
def test_faults(job):
    """FEATURES 9.053: whatever fails, the disk shows what it showed, and the job can be done again."""
    assert states(explore("chain-crash", "faults", job, 20, 20 if SANITIZED else 23 if job in JOBS[-2:] else 26)) > (50 if SANITIZED else 600)


@pytest.mark.parametrize("job", JOBS)
def test_runs(job):
    assert states(explore("chain-crash", "runs", job, 1, 40 if SANITIZED else 300)) >= 40


def test_same_seed_same_trace():
    """Whole graphs with jobs: what a seed does is the same each time; and jobs of all sorts are done, cancelled, and move the disk."""
    texts = [explore("chain-crash", "runs", "graph", 1, 40).stdout for _ in range(2)]
    assert texts[0] == texts[1]
    rows = re.findall(r"seed \d+: trace ([0-9a-f]{32}), (\d+) jobs done, (\d+) cancelled, \d+ refused, the disk is (\w+)", texts[0])
    assert len(rows) == 40 and len({r[0] for r in rows}) == 40
    assert sum(int(r[1]) for r in rows) > 60 and sum(int(r[2]) for r in rows) >= 5 and {r[3] for r in rows} == {"base", "mid", "top", "disk"}


@pytest.mark.parametrize("words, name", [
    (("commit",), "LIVE_COMMIT_UNFLUSHED"), (("drop",), "LIVE_COMMIT_UNFLUSHED"), (("drop",), "FORGET_TOP_FIRST"), (("stream",), "BARRIER_FINAL"),
    (("stream-base",), "BARRIER_FINAL"), (("runs", "stream"), "ABSENT_BLIND"), (("runs", "stream-base"), "ABSENT_BLIND"),
    (("offline-commit",), "COMMIT_EMPTY_EARLY"), (("rebase",), "REBASE_ZERO_BELOW"), (("active",), "MIRROR_UNFLUSHED"), (("graph",), "BARRIER_FINAL"),
    (("graph",), "LIVE_COMMIT_UNFLUSHED"), (("faults", "offline-commit"), "COMMIT_EMPTY_EARLY"), (("faults", "stream-base"), "ABSENT_BLIND"),
    (("faults", "rebase"), "REBASE_ZERO_BELOW"), (("faults", "drop"), "FORGET_TOP_FIRST")])
def test_mutant_is_caught(words, name):
    """H6: images name the base before it is durable. H8: the header names the shorter chain before the image's own tables are durable."""
    done = explore("chain-crash-mutants", *words, 1, {"runs": 2000, "faults": 40}.get(words[0], 8), BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("chain-crash-mutants", "drop", 1, 1).returncode == 0
