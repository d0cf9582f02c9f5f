# SPDX-License-Identifier: MIT
"""The crash explorer over qcow2: RELIABILITY 3.6, goals RG1 to RG6; the mutants: RG4."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
BUILD = Path(os.environ.get("BYRE_BUILD") or TOP / "build")
EXPLORER = BUILD / "tests" / "crash" / "byre-crash"
MUTANTS = BUILD / "tests" / "crash" / "byre-crash-mutants"
sys.path.insert(0, str(TOP / "tests" / "lib"))
from peers import need  # noqa: E402

SOAK = 50 if os.environ.get("SOAK") else 1
# geometry -> distinct states that must be verified: together more than 100,000
FLOORS = {
    "c4k": 9000, "c4k-back": 8000, "c512": 9000, "c512-v2-back": 8000, "c64k": 7000, "c4k-churn": 8000, "c4k-back-churn": 8000,
    "c512-resize": 8000, "c4k-back-resize": 8000, "c512-grow": 8000, "c512-l1": 8000, "snapshot": 7000, "compressed": 3000, "holes": 6000,
    "garbage": 6000, "bitmap": 4000, "counts": 2000,
}
LINE = re.compile(r"geometry (\S+): (\d+) distinct states .* (\d+) cut again in recovery, (\d+) seen by the peer\), no violation, largest leak (\d+) bytes")


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    need("qemu-img")
    need("qemu-io")
    d = tmp_path_factory.mktemp("fixtures")
    subprocess.run([sys.executable, str(HERE / "fixtures.py"), str(d)], check=True)
    return d


def call(*cmd, **kw):
    return subprocess.run([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)


def test_floors_sum():
    assert sum(FLOORS.values()) >= 100000 and len(FLOORS) >= 6
    listed = call(EXPLORER, "list").stdout.split()
    assert sorted(listed) == sorted(FLOORS), "every geometry has a floor"


@pytest.mark.parametrize("geometry", sorted(FLOORS))
def test_explore(geometry, fixtures, tmp_path):
    floor = FLOORS[geometry] * SOAK
    r = call(EXPLORER, "explore", geometry, "states=%d" % floor, "fixtures=%s" % fixtures, "out=%s" % tmp_path, "seed=%s" % os.environ.get("SEED", "1"))
    print(r.stdout)
    assert r.returncode == 0, r.stdout
    m = LINE.search(r.stdout)
    assert m, r.stdout
    states, nested, samples, leak = (int(m.group(i)) for i in (2, 3, 4, 5))
    assert states >= floor
    assert nested >= states // 16 - 1 and samples >= states // 256 - 1
    assert leak <= 1 << 20          # bounded by what was in flight and one frontier (P1): the whole file is 1 MiB


def test_same_seed_same_trace():
    a, b, c = (call(EXPLORER, "trace", "c4k-back", "seed=%d" % s, "steps=40") for s in (5, 5, 6))
    assert a.returncode == b.returncode == c.returncode == 0
    assert a.stdout == b.stdout and a.stdout != c.stdout


def regressions():
    return sorted(str(p) for p in (HERE / "regressions").glob("*.crash"))


@pytest.mark.parametrize("path", regressions(), ids=[os.path.basename(p) for p in regressions()])
def test_regression(path, fixtures):
    r = call(EXPLORER, "replay", path, cwd=fixtures)
    assert r.returncode == 0 and "no violation" in r.stdout, r.stdout


# mutant -> geometry in which the explorer catches it, and states to try; or the unit test that does
CAUGHT_IN = {
    "BARRIER_DATA_TABLES": ("c4k", 2000), "BARRIER_FINAL": ("c4k", 2000), "BARRIER_GROW_COUNTS": ("c4k", 3000), "BARRIER_GROW_ROOT": ("c512-grow", 15000),
    "BARRIER_SWITCH_BEFORE": ("c512-l1", 4000), "BARRIER_SWITCH_AFTER": ("counts", 6000), "BARRIER_HEADER": ("c512-resize", 12000),
    "NEED_DATA_BARRIER": ("c4k", 2000), "FREE_SKIP_DURABLE": ("snapshot", 16000), "FREE_SKIP_PUNCH": ("c4k-churn", 12000),
    "COUNT_DOWN_EARLY": ("c4k-churn", 8000), "COUNT_UP_LATE": ("c4k", 2000), "FREEZE_NOTHING": ("c512-v2-back", 6000), "FRONTIER_UNSETTLED": ("c4k", 3000),
    "REUSED_IS_ZERO": ("c4k", 1000), "COW_NO_TAIL": ("c4k", 1000), "COW_UNORDERED": ("c4k-back", 3000), "L2_COPY_IN_PLACE": ("snapshot", 1000),
    "L2_OLD_FREED_EARLY": ("snapshot", 1000), "SHARED_IN_PLACE": ("snapshot", 2000), "GROW_KEEP_TABLES": ("c512-resize", 4000),
    "SHRINK_FREE_FIRST": ("c512-resize", 6000), "BITMAP_MARK_LATE": ("bitmap", 1000),
    "FREE_SKIP_GRACE": "meta-test", "FLUSH_IGNORES_DIRT": "meta-test",
}


def explained():
    text = (TOP / "docs" / "internals" / "ordering.md").read_text()
    return set(re.findall(r"^- `([A-Z_]+)`: \S", text, re.M))


def test_every_mutant_is_caught_or_explained():
    """RG4."""
    names = call(MUTANTS, "names").stdout.split()
    assert len(names) >= 25
    assert sorted(names) == sorted(set(CAUGHT_IN) | explained()), "caught, or in docs/internals/ordering.md with the reason"
    assert not set(CAUGHT_IN) & explained()


@pytest.mark.parametrize("name", sorted(CAUGHT_IN))
def test_mutant(name, fixtures):
    """RG4: the fault is made alive, and something notices."""
    if CAUGHT_IN[name] == "meta-test":
        good = call(MUTANTS.parent / "meta-test-mutants")
        bad = call(MUTANTS.parent / "meta-test-mutants", env=dict(os.environ, BYRE_MUTANT=name))
        assert good.returncode == 0, good.stdout
        assert bad.returncode != 0, "meta_test does not notice %s" % name
        return
    geometry, states = CAUGHT_IN[name]
    r = call(MUTANTS, "mutants", "only=" + name, "geometry=" + geometry, "states=%d" % states, "steps=14", "sample=0", "fixtures=%s" % fixtures)
    assert re.search(r"^mutant %s\s+CAUGHT" % name, r.stdout, re.M), r.stdout


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
    """At most 4 barriers for 1,000 allocating writes between two guest flushes."""
    need("strace")
    few, many = count_barriers(tmp_path, 0), count_barriers(tmp_path, 1000)
    assert many - few <= 4, "%d barriers more than a run without them" % (many - few)
    assert few >= 2, "the counter sees no flush at all"
