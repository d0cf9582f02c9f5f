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


def test_wait_comes_too_late(server):
    """FEATURES 8.015: a job that has gone ended well or badly, and that is what waiting for it says; its name may have had several jobs"""
    def begin(**more):
        value = run.byre("ctl", server.control, "x-byre-scrub", json.dumps({"device": "disk0", "job-id": "s", **more}))
        assert value.err == ""
    begin()
    assert run.byre("job", server.control, "wait", "s").out == ""
    assert run.byre("job", server.control, "wait", "s").out == ""
    assert json.loads(run.byre("job", "--output=json", server.control, "wait", "s").out) == {"id": "s", "success": True}
    begin(**{"auto-finalize": False})
    run.byre("job", server.control, "cancel", "s")
    assert "job 's' failed" in run.byre("job", server.control, "wait", "s", code=1).err
    assert json.loads(run.byre("job", "--output=json", server.control, "wait", "s", code=1).out)["success"] is False
    begin()
    assert run.byre("job", server.control, "wait", "s").out == ""
    for i in range(64):
        run.byre("ctl", server.control, "x-byre-scrub", json.dumps({"device": "disk0", "job-id": f"t{i}"}))
        run.byre("job", server.control, "wait", f"t{i}")
    assert "no job 's'" in run.byre("job", server.control, "wait", "s", code=1).err
    assert run.byre("job", server.control, "wait", "t63").out == ""
