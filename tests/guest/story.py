# SPDX-License-Identifier: MIT
"""What is done to the disk of a running guest, by the commands of the control socket; each step says how long it took."""
import filecmp
import os
import time

from lib import run

SPEED = 8 << 20              # of a job, in bytes per second: a guest that is slow itself is to do something meanwhile
ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


class Story:
    """The disk's chain and its jobs. `active`: the node that the guest is on, `file`: where that lies."""

    def __init__(self, client, machine, folder, active, name):
        self.client, self.machine, self.folder, self.active, self.file = client, machine, folder, active, name
        self.steps, self.number, self.backups = [], 0, []

    def ok(self, command, **arguments):
        answer = self.client.ask(command, **arguments)
        assert answer and "return" in answer, f"{command} {arguments}: {answer}"
        return answer["return"]

    def step(self, text, work, timeout=60.0):
        """Does something under the guest's load: it must get on while it lasts and after it."""
        self.machine.at = text
        rounds, begin = self.machine.rounds, time.monotonic()
        told = work(timeout) or ""
        took = time.monotonic() - begin
        during = self.machine.rounds - rounds
        self.machine.advance(10)
        self.steps.append((text, took, during, self.machine.longest_gap(begin), told))

    def wait(self, names, timeout):
        """The next event of these; the guest is not to be lost meanwhile."""
        end = time.monotonic() + timeout
        while True:
            for event in self.client.events:
                if event["event"] in names:
                    self.client.events.remove(event)
                    return event
            if self.machine.process.poll() is not None:
                raise self.machine.lost(f"the machine ended while {names} was waited for")
            if time.monotonic() > end:
                raise self.machine.lost(f"no {names} within {timeout:g} s; jobs: {self.ok('query-block-jobs')}")
            time.sleep(0.02)
            self.ok("query-jobs")                    # events come with the answer

    def ended_well(self, timeout):
        event = self.wait(ENDS, timeout)
        assert event["event"] == ENDS[0] and "error" not in event["data"], event

    def gone(self, *names):
        """Images that have left the chain. While they exist, byre lets nobody change what lies below them."""
        for name in names:
            os.unlink(os.path.join(self.folder, f"{name}.qcow2"))

    # ---- steps ----

    def snapshot(self):
        def work(timeout):
            self.number += 1
            name = f"s{self.number}"
            path = os.path.join(self.folder, f"{name}.qcow2")
            self.ok("blockdev-snapshot-sync", node_name=self.active, snapshot_file=path, snapshot_node_name=name, format="qcow2")
            self.active, self.file = name, path
        self.step(f"snapshot s{self.number + 1}", work)

    def commit(self, top, base, **more):
        def work(timeout):
            self.ok("block-commit", job_id="j", device=self.active, top_node=top, base_node=base, speed=SPEED, **more)
            self.ended_well(timeout)
        self.step(f"commit of {top} into {base}" + (", dropped from its source" if more else ""), work)

    def stream(self, **arguments):
        def work(timeout):
            self.ok("block-stream", job_id="j", device=self.active, speed=SPEED, **arguments)
            self.ended_well(timeout)
        self.step("stream", work)

    def pivot(self, timeout):
        self.wait(("BLOCK_JOB_READY",), timeout)
        self.machine.advance(2, timeout)
        self.ok("block-job-complete", device="j")
        self.ended_well(timeout)
        job, = [j for j in self.ok("query-block-jobs") if j["device"] == "j"]
        self.ok("job-dismiss", id="j")
        return f"pivot pause {job['x-byre-converge']['pivot-pause-us'] / 1000:.1f} ms"

    def active_commit(self, base, name):
        def work(timeout):
            self.ok("block-commit", job_id="j", device=self.active, base_node=base, speed=4 * SPEED, converge="auto", deadline=30, auto_dismiss=False)
            told = self.pivot(timeout)
            self.active, self.file = base, os.path.join(self.folder, name)
            return told
        self.step(f"active commit into {base}, and over to it", work)

    def mirror(self, name, **more):
        def work(timeout):
            path = os.path.join(self.folder, name)
            node = name.split(".")[0]
            self.ok("drive-mirror", job_id="j", device=self.active, target=path, format="qcow2", node_name=node, sync="full", converge="auto", deadline=30,
                    speed=4 * SPEED, auto_dismiss=False, **more)
            told = self.pivot(timeout)
            self.active, self.file = node, path
            return told
        self.step(f"mirror to {name}, and over to it", work)

    def upkeep(self, command, what, field):
        """A scrub or a compaction of the guest's image."""
        def work(timeout):
            self.ok(command, job_id="j", node_name=self.active, speed=4 * SPEED, auto_dismiss=False)
            end = time.monotonic() + timeout
            while True:
                job, = [j for j in self.ok("query-jobs") if j["id"] == "j"]
                if job["status"] == "concluded":
                    break
                assert time.monotonic() < end, f"it does not end: {job}"
                time.sleep(0.05)
            self.ok("job-dismiss", id="j")
            assert "error" not in job, job
            return ", ".join(f"{k} {job[field][k]}" for k in job[field] if k in ("corruptions", "leaks", "length-before", "length-after"))
        self.step(f"{what} of {self.active}", work)

    def scrub(self):
        self.upkeep("x-byre-scrub", "scrub", "x-byre-check")

    def compact(self):
        self.upkeep("x-byre-compact", "compaction", "x-byre-compact")

    def door_to(self, node):
        """The filter on which the guest's export lies has this below it from now on."""
        self.ok("blockdev-reopen", options=[{"driver": "throttle", "node-name": "door", "throttle-group": "g", "file": node}])

    def fleece(self, name, socket, size):
        """The disk of one moment, read over NBD while the guest writes on: what it overwrites is kept aside. Read twice: it must not move."""
        temp, copies = os.path.join(self.folder, "fleece.qcow2"), [os.path.join(self.folder, f"{name}{i}.raw") for i in range(2)]

        def work(timeout):
            run.byre("create", "-q", "-f", "qcow2", temp, size)
            self.ok("blockdev-add", driver="qcow2", node_name="fleece", file={"driver": "file", "filename": temp})
            self.ok("blockdev-add", driver="copy-before-write", node_name="cbw", file=self.active, target="fleece")
            self.door_to("cbw")
            self.ok("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
            self.ok("block-export-add", id="snap", type="nbd", node_name="snap", name="snap")
            for copy in copies:
                run.run("nbdcopy", f"nbd+unix:///snap?socket={socket}", copy)
                self.machine.advance(5, timeout)
            kept = os.stat(temp).st_blocks * 512
            self.ok("block-export-del", id="snap", mode="hard")
            self.wait(("BLOCK_EXPORT_DELETED",), timeout)
            self.ok("blockdev-del", node_name="snap")
            self.door_to(self.active)
            for node in ("cbw", "fleece"):
                self.ok("blockdev-del", node_name=node)
            os.unlink(temp)
            assert filecmp.cmp(*copies, shallow=False), "what was kept has changed between two readings"
            os.unlink(copies[1])
            self.backups.append(copies[0])
            return f"{kept >> 20} MiB kept aside"
        self.step(f"backup {name} with fleecing, read twice", work)

    def table(self):
        lines = [f"  {'step':52} {'took':>7} {'rounds':>6} {'longest round':>13}"]
        lines += [f"  {text:52} {took:6.2f}s {during:6} {gap:12.2f}s  {told}" for text, took, during, gap, told in self.steps]
        return "\n".join(lines)
