# SPDX-License-Identifier: MIT
"""Which verb acts in which state, over the control socket, beside the peer (FEATURES 8.015, 9.002)."""
import time

import pytest

from job_filter_test import BOTH, World
from lib import run

# verb, by its command and the member that names the job
VERBS = {
    "job-pause": "id", "job-resume": "id", "job-complete": "id", "job-finalize": "id", "job-dismiss": "id",
    "block-job-pause": "device", "block-job-resume": "device", "block-job-complete": "device", "block-job-finalize": "id", "block-job-dismiss": "id",
    "block-job-set-speed": "device", "job-cancel": "id", "block-job-cancel": "device",
}
STATES = ("running", "paused", "ready", "standby", "pending", "concluded")


def bring_to(w, state):
    """A mirror, or a backup where only that comes there, in this state."""
    if state in ("pending", "concluded"):
        w.begin("backup", **{"auto-finalize": state != "pending", "auto-dismiss": False})
    else:
        w.begin("mirror", **({"speed": 65536} if state in ("running", "paused") else {}))
    if state in ("ready", "standby"):
        w.event("BLOCK_JOB_READY")
    if state in ("paused", "standby"):
        w.ok("job-pause", id="j")
    end = time.monotonic() + 10
    while w.ok("query-jobs")[0]["status"] != state:
        assert time.monotonic() < end, (state, w.ok("query-jobs"))
        time.sleep(0.01)


def matrix(make, state):
    """verb -> does it act?"""
    found = {}
    for verb, member in VERBS.items():
        w = make(verb)
        bring_to(w, state)
        answer = w.client.ask(verb, **{member: "j"}, **({"speed": 1 << 20} if "speed" in verb else {}))
        found[verb] = "return" in answer
        if "error" in answer and verb.startswith("job-"):
            assert "'j'" in answer["error"]["desc"] or "paused" in answer["error"]["desc"], (verb, state, answer)
        w.daemon.process.kill()
        w.daemon.process.wait()
    return found


@pytest.mark.parametrize("state", STATES)
def test_verbs(start, tmp_path, state):
    """FEATURES 8.015: a verb acts where the peer's does, and is refused where that refuses it."""
    answers = []
    for peer in (False, True):
        def make(verb, peer=peer):
            folder = tmp_path / f"{peer}-{verb}"
            folder.mkdir()
            return World(start, folder, peer)
        answers.append(matrix(make, state))
    assert answers[0] == answers[1]


@BOTH
def test_completed_while_it_rests(start, tmp_path, peer):
    """FEATURES 8.015: a mirror that is told to complete while it is paused does so when it goes on, with all that was written meanwhile"""
    w = World(start, tmp_path, peer)
    bring_to(w, "standby")
    w.put("write -P 9 2560k 64k")
    w.ok("block-job-complete", device="j")
    time.sleep(0.3)
    assert w.ok("query-jobs")[0]["status"] == "standby"
    w.put("write -P 8 2624k 64k")
    w.ok("job-resume", id="j")
    assert "error" not in w.event("BLOCK_JOB_COMPLETED")
    w.put("read -P 9 2560k 64k")
    w.put("read -P 8 2624k 64k")
    w.put("write -P 7 2688k 64k")
    w.daemon.stop()
    run.qemu_io(tmp_path / "copy.qcow2", "read -P 9 2560k 64k", "read -P 8 2624k 64k", "read -P 7 2688k 64k", fmt="qcow2")


def test_no_such_job(start, tmp_path):
    w = World(start, tmp_path, False)
    for verb, member in VERBS.items():
        error = w.client.ask(verb, **{member: "j"}, **({"speed": 1} if "speed" in verb else {}))["error"]
        assert error["class"] == ("DeviceNotActive" if verb.startswith("block-") else "GenericError") and "'j'" in error["desc"]
