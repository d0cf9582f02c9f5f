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
def test_faults():
    assert states(explore("under-crash", "faults", 0, 3 if SANITIZED else SHAPES - 1)) > (300 if SANITIZED else 1500)


# And the first of the seeds that are tried.
MUTANTS = {"UNDER_FLUSH_STOPS": 1, "FILTER_FLUSH_STOPS": 0, "UNDER_GROWTH_ZERO": 15, "NEED_DATA_BARRIER": 1, "DATA_FILE_LATE": 116, "QED_MARK_UNORDERED": 2, "QED_CLEAN_EARLY": 6}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    """The first three are of the node below; the others of the upper image, whose faults must show through what lies below it."""
    done = explore("under-crash-mutants", MUTANTS[name], MUTANTS[name] + 2 * SHAPES, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("under-crash-mutants", 1, 2).returncode == 0
