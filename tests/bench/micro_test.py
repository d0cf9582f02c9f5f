# SPDX-License-Identifier: MIT
"""The hot path does not become dearer unnoticed: instructions, allocations and mutexes against bench/micro/baseline.json."""
import os
import pathlib
import sys

import pytest

from lib import peers

MICRO = pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "micro"
sys.path.insert(0, str(MICRO))

import count  # noqa: E402

PROGRAM = os.path.join(os.environ.get("BYRE_BUILD", str(MICRO.parent.parent / "build")), "bench", "micro")
BASELINE = count.read_baseline()


@pytest.fixture(scope="module")
def counts():
    peers.need("valgrind")
    return count.count(PROGRAM, count.names_of(PROGRAM))


@pytest.mark.parametrize("name", BASELINE["pieces"])
def test_costs_no_more_than_the_baseline(name, counts):
    why = count.verdict(name, counts[name], BASELINE, count.compiler())
    assert why is None, why
    assert counts[name]["instructions"] > BASELINE["pieces"][name]["instructions"] / 4, "cheaper by so much: is the piece run at all?"


def test_every_piece_has_a_baseline():
    assert count.names_of(PROGRAM) == list(BASELINE["pieces"])


@pytest.mark.parametrize("name", ["read-4k", "write-4k", "serve-read", "serve-write", "read-chain"])
def test_in_place_requests_take_no_memory_and_no_lock(name):
    assert BASELINE["pieces"][name]["allocations"] == 0 and BASELINE["pieces"][name]["locks"] == 0


BASE = {"compiler": "gcc 1", "pieces": {"p": {"instructions": 100.0, "allocations": 1.0, "locks": 0.0}}}


@pytest.mark.parametrize("got, who, fits", [
    ((110.0, 1, 0), "gcc 1", True), ((110.5, 1, 0), "gcc 1", False), ((50.0, 0, 0), "gcc 1", True),
    ((149.0, 1, 0), "gcc 2", True), ((151.0, 1, 0), "gcc 2", False),
    ((100.0, 1.5, 0), "gcc 1", False), ((100.0, 1, 0.5), "gcc 1", False), ((100.0, 1.5, 0), "gcc 2", False),
])
def test_verdict(got, who, fits):
    why = count.verdict("p", dict(zip(("instructions", "allocations", "locks"), got)), BASE, who)
    assert (why is None) == fits
    assert fits or ("--write p" in why and "baseline" in why)


def test_a_piece_without_baseline_is_told():
    assert "--write q" in count.verdict("q", {}, BASE, "gcc 1")


def test_costs_are_read_right():
    """Own lines of the program only; what a call costs is the callee's; names are said once and then by number."""
    text = "\n".join([
        "ob=(1) /x/micro", "fn=(1) main", "10 7", "+1 3",
        "cob=(2) /lib/libc.so.6", "cfn=(2) malloc", "calls=4 20", "12 900",
        "cfn=(3) read_it", "calls=2 30", "13 50",
        "cob=(2)", "cfn=(4) pthread_mutex_lock@@GLIBC_2.2.5", "calls=6 1", "14 9",
        "", "ob=(2)", "fn=(2)", "20 500", "cfn=(2)", "calls=1 20", "20 5",
        "", "ob=(1)", "fn=(3)", "30 11", "* 2",
    ])
    assert count.parse(text, "micro") == {"instructions": 23, "allocations": 4, "locks": 6}
