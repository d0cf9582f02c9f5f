# SPDX-License-Identifier: MIT
"""How much work a job of a chain says that there is: what `qemu-img map` says (FEATURES 11.031)."""
import pytest

from lib import run

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


@pytest.fixture
def chain(tmp_path):
    """low <- mid <- top of 32 MiB, each with data of its own; mid hides some of low with zeros, top some of mid."""
    for name, below, commands in (("low", None, ["write -P 1 0 4M", "write -P 1 8M 1M"]), ("mid", "low", ["write -P 2 2M 1M", "write -z 8M 1M", "write -P 2 20M 192k"]),
                                  ("top", "mid", ["write -P 3 0 1M", "write -P 3 2M 64k"])):
        run.qemu_img("create", "-q", "-f", "qcow2", *(["-b", f"{below}.qcow2", "-F", "qcow2"] if below else []), tmp_path / f"{name}.qcow2", "32M")
        run.qemu_io(tmp_path / f"{name}.qcow2", *commands)
    return tmp_path


def allocated(path, depths, zeros):
    """Bytes that these layers of the chain answer for, by the peer's map; zeros: those that read zero, too."""
    return sum(e["length"] for e in run.qemu_img("map", "--output=json", path).json if e["present"] and e["depth"] in depths and (e["data"] or zeros))


# Command, its arguments, which layers of which image it works on, and whether their zeros are work.
JOBS = {"stream": ("block-stream", dict(device="top"), "top", {1, 2}, False),
        "stream-base": ("block-stream", dict(device="top", base_node="low"), "top", {1}, True),
        "commit": ("block-commit", dict(device="top", top_node="mid", base_node="low"), "mid", {0}, True),
        "commit-drop": ("block-commit", dict(device="top", top_node="mid", base_node="low", drop_source=True), "mid", {0}, True)}


def run_job(start, chain, peer, command, arguments):
    """The job as it is told of when it has ended, and before."""
    client = start("daemon", peer=peer).qmp()
    for name, below in (("low", None), ("mid", "low"), ("top", "mid")):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": str(chain / f"{name}.qcow2")}, **({"backing": below} if below else {}))
    client.ok(command, job_id="j", auto_dismiss=False, auto_finalize=False, **arguments)
    client.wait("JOB_STATUS_CHANGE", id="j", status="pending")
    told = client.ok("query-jobs")[0], client.ok("query-block-jobs")[0]
    client.ok("job-finalize", id="j")
    client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    client.ok("job-dismiss", id="j")
    return told


@pytest.mark.parametrize("name", JOBS)
def test_total(start, chain, name):
    """FEATURES 11.031: the total is what there is to do, and not the length of the disk, as the peer has it; all of it is done when the job has ended"""
    command, arguments, image, depths, zeros = JOBS[name]
    work = allocated(chain / f"{image}.qcow2", depths, zeros)
    assert 0 < work < 16 * MIB
    job, block_job = run_job(start, chain, False, command, arguments)
    assert (job["current-progress"], job["total-progress"]) == (work, work)
    assert (block_job["offset"], block_job["len"]) == (work, work)


@pytest.mark.parametrize("command", ["block-stream", "block-commit"])
def test_before_it_is_known(start, tmp_path, command):
    """FEATURES 11.031: while it counts, which takes as long as the tables of the layers take to be read, a job says that there is no more than the disk, and never that
    there is nothing; then there is less, and never less than what is done"""
    for name, below in (("low", None), ("mid", "low"), ("top", "mid")):
        run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", *(["-b", f"{below}.qcow2", "-F", "qcow2"] if below else []), tmp_path / f"{name}.qcow2", "8M")
    run.qemu_io(tmp_path / "mid.qcow2", "write -P 1 1M 2M")
    client = start("daemon").qmp()
    client.ok("object-add", **{"qom-type": "throttle-group", "id": "slow", "limits": {"iops-total": 40}})
    for name, below in (("low", None), ("mid", "low"), ("top", "mid")):
        file = {"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")}
        client.ok("blockdev-add", driver="qcow2", node_name=name, file={"driver": "throttle", "throttle-group": "slow", "file": file} if name == "mid" else file,
                  **({"backing": below} if below else {}))
    client.ok(command, job_id="j", device="top", auto_dismiss=False, auto_finalize=False,
              **(dict(base_node="low") if command == "block-stream" else dict(top_node="mid", base_node="low")))
    seen, status = [], None
    while status != "pending":
        job = client.ok("query-jobs")[0]
        status = job["status"]
        seen.append((job["current-progress"], job["total-progress"]))
    client.ok("job-finalize", id="j")
    client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert all(done <= total for done, total in seen), seen
    assert seen.count((0, 8 * MIB)) > 10 and (0, 0) not in seen[seen.index((0, 8 * MIB)):], seen[:20]
    assert seen[-1] == (2 * MIB, 2 * MIB)


@BOTH
def test_active_commit(start, chain, peer):
    """FEATURES 11.031: of the layer that guests write to, both say so"""
    work = allocated(chain / "top.qcow2", {0}, True)
    client = start("daemon", peer=peer).qmp()
    for name, below in (("low", None), ("mid", "low"), ("top", "mid")):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": str(chain / f"{name}.qcow2")}, **({"backing": below} if below else {}))
    client.ok("block-commit", job_id="j", device="top", base_node="mid")
    ready = client.wait("BLOCK_JOB_READY", device="j")["data"]
    assert (ready["len"], ready["offset"]) == (work, work)
    client.ok("block-job-complete", device="j")
    client.wait("BLOCK_JOB_COMPLETED", device="j")
