# SPDX-License-Identifier: MIT
"""Formats over nodes: filters, a part of a file, another image, or several of them; the power fails, and every n-th call fails (P2, Q and E rules).

What the upper image relies on holds through what lies below it: a barrier is one at the bottom (FEATURES 3.063, 11.001).
"""
import pytest

from test_chain_crash import SANITIZED, explore, states

SHAPES = 13


@pytest.mark.timeout(600)
def test_power_cuts():
    """Each stack twice, once on a file system that may show old bytes in space gained."""
    assert states(explore("under-crash", 0, 3 if SANITIZED else 2 * SHAPES - 1)) > (1000 if SANITIZED else 15000)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [1000, 2000])
def test_power_cuts_luks_and_operators(first):
    """LUKS below, above and inside qcow2; a disk that becomes longer and shorter, with internal snapshots (2000)"""
    assert states(explore("under-crash", first, first + (1 if SANITIZED else 7))) > (800 if SANITIZED else 4000)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [1000, 2000])
def test_faults_luks_and_operators(first):
    assert states(explore("under-crash", "faults", first, first + (0 if SANITIZED else 3))) > (50 if SANITIZED else 300)


@pytest.mark.timeout(600)
def test_faults():
    assert states(explore("under-crash", "faults", 0, 3 if SANITIZED else SHAPES - 1)) > (300 if SANITIZED else 1500)


# And the first of the seeds that are tried.
LATER = {"UNDER_FLUSH_STOPS": 1000, "NEED_DATA_BARRIER": 1000, "SNAP_COUNT_LATE": 2000, "SNAP_FREE_FIRST": 2000, "SNAP_APPLY_FREE_FIRST": 2000}
MUTANTS = {"UNDER_FLUSH_STOPS": 1, "FILTER_FLUSH_STOPS": 0, "UNDER_GROWTH_ZERO": 15, "NEED_DATA_BARRIER": 1, "DATA_FILE_LATE": 116, "QED_MARK_UNORDERED": 2, "QED_CLEAN_EARLY": 6}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    """The first three are of the node below; the others of the upper image, whose faults must show through what lies below it."""
    done = explore("under-crash-mutants", MUTANTS[name], MUTANTS[name] + 2 * SHAPES, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


@pytest.mark.parametrize("name", LATER)
def test_mutant_is_caught_there(name):
    done = explore("under-crash-mutants", LATER[name], LATER[name] + 15, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("under-crash-mutants", 1, 2).returncode == 0
