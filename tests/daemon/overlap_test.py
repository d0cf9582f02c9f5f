# SPDX-License-Identifier: MIT
"""Two jobs on one chain: what the second would spoil of the first, or the first of the second, is refused when the second begins, not at an end
(FEATURES 9.044, 11.012). The peer's daemon refuses all of these pairs, and more: a copy of the disk beside a commit of layers below works here."""
import pytest

from lib import run

LAYERS = ["l0", "l1", "l2", "l3", "l4"]
COMMITS = {"l1-l0": ("block-commit", {"device": "l4", "top-node": "l1", "base-node": "l0"}), "l2-l1": ("block-commit", {"device": "l4", "top-node": "l2", "base-node": "l1"}),
           "l3-l1": ("block-commit", {"device": "l4", "top-node": "l3", "base-node": "l1"}), "l4-l2": ("block-commit", {"device": "l4", "base-node": "l2"})}
STREAMS = {"l4-l2": ("block-stream", {"device": "l4", "base-node": "l2"}), "l4": ("block-stream", {"device": "l4"}), "l2-l0": ("block-stream", {"device": "l2", "base-node": "l0"})}
COPIES = {"mirror l4 top": ("blockdev-mirror", {"device": "l4", "target": "t", "sync": "top"}), "backup l2": ("blockdev-backup", {"device": "l2", "target": "t", "sync": "full"}),
          "backup l4": ("blockdev-backup", {"device": "l4", "target": "t", "sync": "full"})}


def names(kind, table):
    return {f"{kind} {k}": v for k, v in table.items()}


JOBS = {**names("commit", COMMITS), **names("stream", STREAMS), **COPIES}
APART = [("commit l3-l1", "stream l4-l2"), ("commit l3-l1", "stream l4"), ("commit l3-l1", "mirror l4 top"), ("commit l1-l0", "stream l2-l0"), ("commit l2-l1", "stream l4-l2"),
         ("commit l2-l1", "stream l4"), ("commit l1-l0", "stream l4"), ("commit l4-l2", "stream l4-l2"), ("commit l4-l2", "stream l4"), ("stream l4-l2", "mirror l4 top"),
         ("stream l4", "mirror l4 top"), ("commit l2-l1", "backup l2")]
TOGETHER = [("commit l2-l1", "backup l4"), ("stream l2-l0", "stream l4-l2"), ("commit l1-l0", "stream l4-l2"), ("backup l4", "stream l4-l2")]


@pytest.fixture
def client(start, tmp_path):
    below = []
    for i, name in enumerate(LAYERS):
        run.qemu_img("create", "-q", "-f", "qcow2", *below, tmp_path / f"{name}.qcow2", "8M")
        run.qemu_io(tmp_path / f"{name}.qcow2", f"write -P {i + 1} {i}M 4M")
        below = ["-b", f"{name}.qcow2", "-F", "qcow2"]
    run.qemu_img("convert", "-O", "raw", tmp_path / "l4.qcow2", tmp_path / "before.raw")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "t.qcow2", "8M")
    daemon = start("daemon")
    client = daemon.qmp()
    for name, under in zip(LAYERS, [None, *LAYERS]):
        client.ok("blockdev-add", driver="qcow2", node_name=name, read_only=name != "l4", file={"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")}, backing=under)
    client.ok("blockdev-add", driver="qcow2", node_name="t", file={"driver": "file", "filename": str(tmp_path / "t.qcow2")})
    yield client
    client.ok("quit")
    assert daemon.wait()[0] == 0
    run.qemu_img("compare", tmp_path / "l4.qcow2", tmp_path / "before.raw")


def begin(client, what, number):
    command, arguments = JOBS[what]
    return client.ask(command, job_id=number, speed=1, **arguments)


def end_well(client, number):
    """Lets it run to its end. A job that would go on is cancelled once it is ready."""
    client.ask("block-job-set-speed", device=number, speed=0)      # unless it is at its end already
    event = client.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_READY", device=number)
    if event["event"] == "BLOCK_JOB_READY":
        client.ok("block-job-cancel", device=number)
        event = client.wait("BLOCK_JOB_COMPLETED", device=number)
    assert "error" not in event["data"], event


@pytest.mark.parametrize("first,second", APART + [(b, a) for a, b in APART])
def test_refused(client, first, second):
    """FEATURES 11.012: the second is refused at once, the first ends well, and then the second begins, or says that its layer has gone"""
    assert begin(client, first, "j1") == {"return": {}}
    answer = begin(client, second, "j2")
    assert "error" in answer, answer
    assert [j["id"] for j in client.ok("query-jobs")] == ["j1"]
    end_well(client, "j1")
    again = begin(client, second, "j2")
    if "return" in again:
        end_well(client, "j2")


@pytest.mark.parametrize("first,second", TOGETHER + [(b, a) for a, b in TOGETHER])
@pytest.mark.parametrize("order", ["j1", "j2"])
def test_beside_one_another(client, first, second, order):
    """Both end well, whichever does first"""
    assert begin(client, first, "j1") == begin(client, second, "j2") == {"return": {}}
    for number in (order, "j1" if order == "j2" else "j2"):
        end_well(client, number)
