# SPDX-License-Identifier: MIT
"""The founding scenario, small (G.027, G.028): founding.py has all of it, `make founding` runs it and prints its figures."""
import founding
import pytest


@pytest.mark.serial
@pytest.mark.parametrize("job, kind, cap", [("mirror", "random", 16 << 20), ("commit", "hot", 4 << 20)])
def test_ready_in_time(tmp_path, job, kind, cap):
    """A target that takes a tenth of what the guest writes: ready before the deadline, the guest never slower than promised, no request held longer."""
    print(founding.text(founding.move(tmp_path, job, kind, 2, cap)))


@pytest.mark.serial
def test_mode_changes(tmp_path):
    """A hundred changes of the copy mode mid-run lose nothing."""
    print(founding.text(founding.switch(tmp_path, 100, pause=0.02)))
