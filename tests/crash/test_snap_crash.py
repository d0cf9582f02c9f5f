# SPDX-License-Identifier: MIT
"""External snapshots of a disk in use: the power fails at any moment around one (FEATURES 8.013, 9.073, 11.006; J5).

What a guest was promised by a flush is there afterwards, in the overlay if that names what lies below it, else in what was the disk; and what
the snapshot kept is one moment of the disk. Overlays are qcow2 or QED.
"""
import pytest

from test_chain_crash import SANITIZED, explore, states


@pytest.mark.timeout(600)
def test_power_cuts():
    assert states(explore("snap-crash", 1, 1 if SANITIZED else 6)) > (1000 if SANITIZED else 12000)


@pytest.mark.parametrize("name", ["SNAPSHOT_UNFLUSHED", "SNAPSHOT_NAME_LATE"])
def test_mutant_is_caught(name):
    done = explore("snap-crash-mutants", 1, 8, BYRE_MUTANT=name)
    assert done.returncode == 1, done.stdout


def test_without_a_mutant():
    assert explore("snap-crash-mutants", 1, 1).returncode == 0
