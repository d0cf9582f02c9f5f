# SPDX-License-Identifier: MIT
"""A new image over an old one, in a file or on a device: the power fails at any moment (Q28; FEATURES 5.001, 9.084).

There is the old image as it was, or none, or the new one: the old header is gone durably before anything else is written, and the new one comes last.
"""
import pytest

from test_chain_crash import SANITIZED, explore, states


@pytest.mark.timeout(600)
def test_power_cuts():
    assert states(explore("create-crash", 1, 4 if SANITIZED else 30)) > (200 if SANITIZED else 1300)


@pytest.mark.parametrize("name", ["CREATE_OVER_HEADER", "CREATE_HEADER_EARLY"])
def test_mutant_is_caught(name):
    done = explore("create-crash-mutants", 1, 8, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("create-crash-mutants", 1, 2).returncode == 0
