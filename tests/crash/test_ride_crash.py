# SPDX-License-Identifier: MIT
"""Small writes that go along with a copy of their cluster: the power fails, and every n-th call fails (P2).

Who is answered reads what was written; what a flush covers survives; if the copy fails nobody is told that it did not. qcow2 with and without
subclusters, some of it compressed, encrypted or shared with a snapshot, and QED; others discard and zero clusters meanwhile.
"""
import pytest

from test_chain_crash import SANITIZED, explore, states


@pytest.mark.timeout(600)
def test_power_cuts():
    assert states(explore("ride-crash", 1, 1 if SANITIZED else 5)) > (10000 if SANITIZED else 100000)


@pytest.mark.timeout(600)
def test_faults():
    assert states(explore("ride-crash", "faults", 1, 2 if SANITIZED else 20)) > (300 if SANITIZED else 3000)


@pytest.mark.parametrize("words, name", [((), "RIDE_LEFT_BEHIND"), ((), "RIDE_TOLD_EARLY"), ((), "RIDE_GAP_UNREAD"), (("faults",), "RIDE_FAILURE_HIDDEN")])
def test_mutant_is_caught(words, name):
    done = explore("ride-crash-mutants", *words, 1, 8, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("ride-crash-mutants", 1, 1).returncode == 0
