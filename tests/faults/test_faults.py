# SPDX-License-Identifier: MIT
"""Every n-th I/O error and every n-th failed allocation over the basic scenarios: goals RG7, RG8, RG27."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
BUILD = Path(os.environ.get("BYRE_BUILD") or TOP / "build")
FAULTS = BUILD / "tests" / "faults" / "byre-faults"
sys.path.insert(0, str(TOP / "tests" / "lib"))
from peers import need  # noqa: E402

SANITIZED = "asan" in BUILD.name
SOAK = bool(os.environ.get("SOAK"))
STRIDE = 5 if SANITIZED else 1                   # under a sanitizer every fifth n
SEEDS = range(1, 21) if SOAK else (7,)           # of the scheduler
PARTS = 2
FLOOR = {"read": 24000, "write": 33500, "flush": 7200, "truncate": 4000, "discard": 1600, "length": 2300, "open": 500, "alloc": 26000}
FLOOR_SUM, FLOOR_CASES, FLOOR_SCENES = 119000, 416, 55
TOTAL = re.compile(r"^total: (\d+) cases, (.*), runs (\d+), struck (\d+), bad (\d+)$", re.M)


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    need("qemu-img")
    need("qemu-io")
    d = tmp_path_factory.mktemp("fixtures")
    subprocess.run([sys.executable, str(TOP / "tests" / "faults" / "fixtures.py"), str(d)], check=True)
    return d


def run(fixtures, *args):
    return subprocess.Popen([str(FAULTS), "run", "fixtures=%s" % fixtures, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def totals(text):
    m = TOTAL.search(text)
    assert m, text[-4000:]
    by_kind = {k: int(n) for k, n in (x.rsplit(" ", 1) for x in m.group(2).split(", "))}
    return int(m.group(1)), by_kind, int(m.group(3)), int(m.group(4)), int(m.group(5))


def test_scenarios():
    rows = subprocess.run([str(FAULTS), "list"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert len(rows) >= FLOOR_SCENES
    assert all(len(r.split(":")[1].split()) >= 2 for r in rows), rows


@pytest.mark.asan
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_fault(fixtures, seed):
    """No crash, no hang, no leak, no false acknowledgement, the image sound, the next operation works."""
    jobs = [run(fixtures, "part=%d/%d" % (i, PARTS), "stride=%d" % STRIDE, "seed=%d" % seed) for i in range(PARTS)]
    texts = [j.communicate()[0] for j in jobs]
    cases, kinds, runs, struck, bad = 0, {}, 0, 0, 0
    for job, text in zip(jobs, texts):
        found = "\n".join(x for x in text.splitlines() if not re.match(r"\S+ +\S+ +\d+ runs, 0 bad", x))
        assert job.returncode == 0, found[-8000:]
        c, k, r, s, b = totals(text)
        cases, runs, struck, bad = cases + c, runs + r, struck + s, bad + b
        kinds = {x: kinds.get(x, 0) + n for x, n in k.items()}
    print("%d cases, %d runs: %s" % (cases, runs, kinds))
    assert bad == 0 and struck == runs and cases >= FLOOR_CASES
    assert runs >= FLOOR_SUM // STRIDE
    for kind, floor in FLOOR.items():
        assert kinds[kind] >= floor // STRIDE * 4 // 5, "%s: %d runs" % (kind, kinds[kind])


@pytest.mark.parametrize("geometry", ["c4k", "qed-4k"])
@pytest.mark.parametrize("lie", ["flush", "write"])
def test_the_loops_can_fail(fixtures, lie, geometry):
    """A store that says a flush or a write was done and does nothing is found out, without any fault."""
    job = run(fixtures, "only=reopen@" + geometry, "lie=%s" % lie)
    text = job.communicate()[0]
    assert job.returncode == 1 and "BAD" in text, text[-4000:]


def alone(name, *args):
    """What it says of the states that it has judged; it must find nothing wrong."""
    done = subprocess.run([FAULTS.with_name(name), *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return int(re.search(r"(\d+) states", done.stdout)[1])


@pytest.mark.asan
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first, last", [(0, 12), (1000, 1003), (2000, 2003)])
def test_allocations_over_nodes(first, last):
    """FEATURES 3.063, 11.001: formats over filters, parts of files and other images, with LUKS, with snapshots and resizes: one allocation in three fails, once or from then on"""
    step = 1 if SOAK else 3 * STRIDE
    assert alone("under-alloc", "faults", "every", step, first, last) >= 750 // step


@pytest.mark.asan
@pytest.mark.timeout(300)
def test_opened_in_another_way():
    """FEATURES 11.005: an image goes on as it was open, with nothing left over, when it cannot be opened for writing, or for reading again"""
    assert alone("switch-faults", 0, 3) > 1000
