# SPDX-License-Identifier: MIT
"""byre job (FEATURES 8.015)."""
import json

import pytest

from lib import run


@pytest.fixture
def server(tmp_path, byre_serve):
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "64M")
    return byre_serve(tmp_path / "d.qcow2")


def test_nothing_runs(server):
    """FEATURES 8.015: an empty list, nothing to wait for, no job to steer"""
    assert run.byre("job", server.control, "list").out == ""
    assert json.loads(run.byre("job", "--output=json", server.control, "list").out) == []
    assert run.byre("job", server.control, "wait").out == ""
    for verb in ("pause", "resume", "cancel", "complete", "finalize", "dismiss"):
        assert "there is no job" in run.byre("job", server.control, verb, code=1).err
        assert "'x0'" in run.byre("job", server.control, verb, "x0", code=1).err
    assert "x0" in run.byre("job", server.control, "wait", "x0", code=1).err


def test_usage(server, tmp_path):
    """Wrong words are told, and change nothing"""
    assert "none of list" in run.byre("job", server.control, "jump", code=1).err
    assert "path of a control socket" in run.byre("job", server.control, code=1).err
    assert "cannot connect" in run.byre("job", tmp_path / "none", "list", code=1).err
