# SPDX-License-Identifier: MIT
"""What jobs do about errors, how much they have under way, and what they tell, beside the peer's (FEATURES 9.026, 9.058, 9.065, 9.066, G.029)."""
import time

import pytest

from job_filter_test import BOTH, World
from lib import run, wait

MIB = 1 << 20
MS = 1000000
STILL = 90000 * MS


@BOTH
@pytest.mark.parametrize("how,stops", [("ignore", False), ("report", False), ("stop", True), ("enospc", False), ("auto", False)])
def test_stream_error(start, tmp_path, peer, how, stops):
    """FEATURES 9.058: what cannot be read below stays below: the image keeps its backing file, and shows what it showed."""
    w = World(start, tmp_path, peer, fails="low")
    w.begin("stream", **{"on-error": how})
    failure = w.event("BLOCK_JOB_ERROR")
    assert failure == {"device": "j", "operation": "read", "action": "stop" if stops else "ignore" if how == "ignore" else "report"}
    if stops:
        while not w.ok("query-block-jobs")[0]["paused"]:
            pass
        assert w.ok("query-block-jobs")[0]["io-status"] == "failed"
        w.ok("block-job-cancel", device="j", force=True)
        w.event("BLOCK_JOB_CANCELLED")
    else:
        assert w.event("BLOCK_JOB_COMPLETED")["error"]
    w.event("JOB_STATUS_CHANGE", status="null")
    w.daemon.stop()
    info = run.qemu_img("info", "--output=json", tmp_path / "disk.qcow2").json
    assert info["backing-filename"] == "mid.qcow2"
    run.qemu_img("check", "-q", tmp_path / "disk.qcow2")
    run.qemu_io(tmp_path / "disk.qcow2", "read -P 1 0 1M", "read -P 5 1M 512k", "read -P 5 3M 512k", fmt="qcow2")


def test_stream_into_storage_that_says_again(start, tmp_path):
    """FEATURES 3.052, 9.058: EAGAIN from storage ends the job as any other error does: it does not mean that a guest was faster"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "low.qcow2", "4M")
    run.qemu_io(tmp_path / "low.qcow2", "write -P 1 0 2M", fmt="qcow2")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "low.qcow2", "-F", "qcow2", tmp_path / "disk.qcow2")
    client = start("daemon").qmp()
    rules = [{"event": "write_aio", "iotype": "write", "errno": 11}]
    client.ok("blockdev-add", driver="qcow2", node_name="disk",
              file={"driver": "blkdebug", "inject-error": rules, "image": {"driver": "file", "filename": str(tmp_path / "disk.qcow2")}})
    client.ok("block-stream", job_id="j", device="disk")
    assert client.wait("BLOCK_JOB_COMPLETED", device="j")["data"]["error"]


@BOTH
@pytest.mark.parametrize("how,stops", [("report", False), ("enospc", True), ("auto", True)])
@pytest.mark.parametrize("kind", ["mirror", "backup"])
def test_no_space(start, tmp_path, peer, kind, how, stops):
    """FEATURES 9.010, 9.101: without space the job stands still, says so, and goes on when it is told to."""
    w = World(start, tmp_path, peer, fails="copy", errno=28)
    w.begin(kind, **{"on-target-error": how})
    assert w.event("BLOCK_JOB_ERROR") == {"device": "j", "operation": "write", "action": "stop" if stops else "report"}
    if stops:
        deadline = time.monotonic() + 10
        while not w.ok("query-block-jobs")[0]["paused"]:
            assert time.monotonic() < deadline
        assert w.ok("query-block-jobs")[0]["io-status"] == "nospace"
        w.ok("block-job-resume", device="j")
        w.event("BLOCK_JOB_ERROR")                   # it fails again
        w.ok("block-job-cancel", device="j", force=True)
        w.event("BLOCK_JOB_CANCELLED")
    else:
        assert "No space" in w.event("BLOCK_JOB_COMPLETED")["error"]
    w.event("JOB_STATUS_CHANGE", status="null")


@pytest.mark.parametrize("kind,fails", [("mirror", "copy"), ("mirror", "low"), ("backup", "copy"), ("backup", "low"), ("stream", "low")])
def test_storage_that_says_cancelled(start, tmp_path, kind, fails):
    """FEATURES 9.010, 9.058, 9.101: ECANCELED from storage is an error like any, and no word about the job: it is told, and the job ends with it"""
    w = World(start, tmp_path, False, fails=fails, errno=125)
    w.begin(kind)
    assert w.event("BLOCK_JOB_ERROR")["action"] == "report"
    assert "error" in w.event("BLOCK_JOB_COMPLETED")
    w.event("JOB_STATUS_CHANGE", status="null")


class Slow:
    """A disk of random bytes, and a target of which each write takes that long; ours only, which has that filter."""

    def __init__(self, start, folder, size, job, delay=30 * MS):
        (folder / "disk.raw").write_bytes(bytes(range(256)) * (size // 256))
        with open(folder / "copy.raw", "wb") as f:
            f.truncate(size)
        self.daemon = start("daemon")
        self.client = self.daemon.qmp()
        self.size, self.job = size, job
        for node in ({"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": str(folder / "disk.raw")}},
                     {"driver": "blkdebug", "node-name": "copy", "inject-error": [{"event": "none", "iotype": "write", "x-delay-ns": delay}],
                      "image": {"driver": "raw", "node-name": "copy-raw", "file": {"driver": "file", "filename": str(folder / "copy.raw")}}}):
            answer = self.client.ask("blockdev-add", **node)
            assert "return" in answer, answer

    def memory(self):
        with open(f"/proc/{self.daemon.process.pid}/statm") as f:
            return int(f.read().split()[1]) * 4096

    def held(self, least, most, **more):
        """To a target that stands still: how much has been read of the disk, and so is under way, becomes `least` at least and `most` at most. How much memory grew."""
        def read():
            stats = self.client.ok("query-blockstats", query_nodes=True)
            return next(n["stats"]["rd_bytes"] for n in stats if n.get("node-name") == "disk")
        before = self.memory()
        self.client.ok(self.job, device="disk", target="copy", sync="full", job_id="j", **more)
        wait.until(lambda: read() >= least, lambda: f"{read()} bytes are under way, not {least}")
        time.sleep(0.3)
        assert read() <= most
        grew = self.memory() - before
        self.daemon.process.kill()                   # the target would answer much later
        return grew

    def run(self, **more):
        """Seconds, and by how much memory grew."""
        before, most, begun = self.memory(), 0, time.monotonic()
        answer = self.client.ask(self.job, device="disk", target="copy", sync="full", job_id="j", **more)
        assert "return" in answer, answer
        end = "BLOCK_JOB_READY" if "mirror" in self.job else "BLOCK_JOB_COMPLETED"
        seen = []
        while not any(e["event"] == end for e in seen):
            self.client.ask("query-block-jobs")
            most = max(most, self.memory())
            seen += self.client.events
            self.client.events.clear()
            time.sleep(0.005)
        took = time.monotonic() - begun
        if "mirror" in self.job:
            self.client.ask("block-job-cancel", device="j")
        while not any(e["event"] == "JOB_STATUS_CHANGE" and e["data"]["status"] == "null" for e in seen):
            seen.append(self.client.receive())
        return took, most - before


def test_mirror_buffer(start, tmp_path):
    """FEATURES 9.026, G.029: buf-size bounds memory, and with more of it more is under way: a far target is used as far as it goes."""
    w = Slow(start, tmp_path, 64 * MIB, "blockdev-mirror", 100 * MS)
    small = w.run(buf_size=MIB)
    large = w.run(buf_size=256 * MIB)
    run.run("cmp", tmp_path / "disk.raw", tmp_path / "copy.raw")
    assert small[1] < 4 * MIB, small
    assert large[1] < 260 * MIB, large
    assert large[1] > 17 * MIB, f"no more than the peer's 16 pieces of 1 MiB: {large}"
    assert small[0] > 6.4 and large[0] < small[0] / 4, (small, large)


def test_backup_workers(start, tmp_path):
    """FEATURES 9.065, 9.066: as many pieces as max-workers, each as long as max-chunk at most."""
    for workers in (1, 64):
        perf = {"x-perf": {"max-workers": workers, "max-chunk": 262144}}
        assert Slow(start, tmp_path, 32 * MIB, "blockdev-backup", STILL).held(workers * 262144, workers * 262144, **perf) < workers * 262144 + 4 * MIB
    w = Slow(start, tmp_path, 32 * MIB, "blockdev-backup")
    one = w.run(**{"x-perf": {"max-workers": 1, "max-chunk": 262144}})
    many = w.run(**{"x-perf": {"max-workers": 64, "max-chunk": 262144}})
    run.run("cmp", tmp_path / "disk.raw", tmp_path / "copy.raw")
    assert one[0] > 128 * 0.03, one
    assert many[1] < 64 * 0.25 * MIB + 4 * MIB, many
    answer = w.client.ask("blockdev-backup", device="disk", target="copy", sync="full", job_id="j", **{"x-perf": {"max-chunk": 4096}})
    assert "max-chunk" in answer["error"]["desc"]


@BOTH
def test_backup_memory(start, tmp_path, peer):
    """FEATURES 9.066: 128 MiB at most, and what a disk of a tebibyte takes beside it is small."""
    size = 1 << 40
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk.qcow2", size)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", tmp_path / "copy.qcow2", size)
    run.qemu_io(tmp_path / "disk.qcow2", *(f"write -P 7 {i * 16}G 2M" for i in range(64)), fmt="qcow2")
    daemon = start("daemon", peer=peer)
    client = daemon.qmp()
    for name in ("disk", "copy"):
        answer = client.ask("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")})
        assert "return" in answer, answer

    def memory():
        with open(f"/proc/{daemon.process.pid}/statm") as f:
            return int(f.read().split()[1]) * 4096
    before, most = memory(), 0
    assert "return" in client.ask("blockdev-backup", device="disk", target="copy", sync="full", job_id="j")
    while not any(e["event"] == "BLOCK_JOB_COMPLETED" for e in client.events):
        client.ask("query-block-jobs")
        most = max(most, memory())
        time.sleep(0.01)
    assert most - before < 160 * MIB
    daemon.stop()
    run.qemu_img("compare", tmp_path / "disk.qcow2", tmp_path / "copy.qcow2", timeout=120)


@pytest.mark.parametrize("command", ["x-byre-scrub", "x-byre-compact"])
def test_its_node_stays(start, tmp_path, command):
    """FEATURES 9.016: a job keeps the image in which it works, also when the filter goes that was all that kept it; then the image is closed, and whole."""
    path = tmp_path / "a.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, 256 * MIB)      # of one table alone a scrub is over before it can be paused
    run.qemu_io(path, "write -P 3 0 128M", "discard 0 64M", fmt="qcow2")
    daemon = start("daemon")
    client = daemon.qmp()
    for words in (("object-add", {"qom-type": "throttle-group", "id": "g"}),
                  ("blockdev-add", {"driver": "throttle", "node-name": "t", "throttle-group": "g",
                                    "file": {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(path)}}}),
                  (command, {"job-id": "j", "node-name": "n", "speed": 1}), ("job-pause", {"id": "j"}), ("blockdev-del", {"node-name": "t"})):
        answer = client.ask(words[0], **words[1])
        assert "return" in answer, answer
    assert [n["node-name"] for n in client.ask("query-named-block-nodes", flat=True)["return"]][:1] == ["n"]
    assert "return" in client.ask("job-cancel", id="j")
    deadline = time.monotonic() + 20
    while client.ask("query-jobs")["return"] or client.ask("query-named-block-nodes")["return"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.close()
    assert daemon.stop()[0] == 0
    run.qemu_img("check", "-q", path)
    run.qemu_io(path, "read -P 3 64M 64M", fmt="qcow2")
