# SPDX-License-Identifier: MIT
"""Chains whose servers are killed while a job changes them and a guest writes."""
import json
import os
import shutil
import time

import kill_load
import kill_snap
from cli import qmp_client
from lib import images, run, serve

SIZE = 48 << 20
FILLED = 12 << 20                                   # bytes of random data in each layer
ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
READY, COMPLETED, RANDOM = "BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "a random moment"


class Died(Exception):
    """The server is gone."""


def rounds(kinds):
    """The moments of a case's kills: 15 of which 5 are at each event, with SOAK=1 in the environment 50; KILLS=n in the environment: n."""
    count = int(os.environ.get("KILLS") or (50 if os.environ.get("SOAK") else 15))
    return [kinds[i % len(kinds)] for i in range(count)]


class Tally:
    """What became of a case: `make kill-matrix` makes a table of it."""

    def __init__(self, case):
        self.row = {"case": case, "acknowledged": 0, "restarted": 0, "moments": {}}

    def add(self, moment, record):
        self.row["moments"][moment] = self.row["moments"].get(moment, 0) + 1
        self.row["acknowledged"] += record.acked

    def restarted(self):
        self.row["restarted"] += 1

    def write(self):
        if os.environ.get("KILL_TABLE"):
            with open(os.environ["KILL_TABLE"], "a", encoding="utf-8") as f:
                f.write(json.dumps(self.row) + "\n")


def fill(path, rng, fmt, size=SIZE, filled=FILLED):
    """Data, zeros, and holes between them."""
    data = path.parent / "data"
    data.write_bytes(rng.randbytes(1 << 20))
    commands, left = [], filled
    while left > 0:
        length = rng.choice([4096, 64 << 10, 300 << 10, min(1 << 20, size // 4)])
        off = rng.randrange((size - length) // 512) * 512
        commands.append(f"write -z {off} {length}" if rng.randrange(4) == 0 else f"write -s {data} {off} {length}")
        left -= length
    run.qemu_io(path, *commands, fmt=fmt)
    data.unlink()


class Chain:
    """base <- mid <- top <- disk; their first state is kept, and comes back by renew()."""

    def __init__(self, folder, rng, options, fmt="qcow2", drop=False, size=SIZE, filled=FILLED):
        self.drop, self.size = drop, size
        self.work, self.first, self.folder, self.fmt = folder / "work", folder / "first", folder, fmt
        self.first.mkdir()
        images.create(self.first / "base", size, fmt=fmt)
        fill(self.first / "base", rng, fmt, size, filled)
        for name, below, kind in (("mid", "base", fmt), ("top", "mid", "qcow2"), ("disk", "top", "qcow2")):
            images.create(self.first / name, size, backing=below, backing_fmt=kind, unchecked=True, **options)
            fill(self.first / name, rng, "qcow2", size, filled)
        self.content = self.read(self.first / "disk")
        self.server = self.client = None

    def read(self, path, fmt="qcow2"):
        out = self.folder / "content"
        run.qemu_img("convert", "-U", "-f", fmt, "-O", "raw", path, out)
        data = out.read_bytes()
        out.unlink()
        return data

    def renew(self):
        if self.work.exists():
            shutil.rmtree(self.work)
        shutil.copytree(self.first, self.work)
        self.record = kill_load.Record(self.content)

    def serve(self, env=None):
        self.server = serve.Server(self.work / "disk", "--threads", "2", workdir=self.folder, folder=str(self.folder / "s"), env=env)
        self.server.wait_ready()
        self.client = qmp_client.Qmp(self.server.control)
        return self.server

    def load(self, rng):
        return [kill_load.Writer(self.server.uri, self.record, rng.randrange(1 << 30), 1 << 20, 24 << 20, 65536, depth=4, kinds={"flush": 6})]

    def nodes(self):
        return {os.path.basename(n["file"]): n["node-name"] for n in self.client.ask("query-named-block-nodes", flat=True)["return"] if n["drv"] != "file"}

    def start(self, command, **arguments):
        """What names another image in a header waits for the scrub that a kill has made necessary, as an operator would."""
        end = time.monotonic() + 60
        answer = self.client.ask(command, device="disk0", job_id="j", **arguments)
        while "while its scrub runs" in str(answer) and time.monotonic() < end:
            time.sleep(0.05)
            answer = self.client.ask(command, device="disk0", job_id="j", **arguments)
        if answer is None:
            raise Died(self.server.output)
        assert answer == {"return": {}}, answer

    def wait(self, names=ENDS):
        """The next event of these, as soon as it is here."""
        while True:
            for event in self.client.events:
                if event["event"] in names:
                    self.client.events.remove(event)
                    return event
            event = self.client.receive()
            if not event:
                raise Died(self.server.output)
            self.client.events.append(event)

    def kill(self):
        """What the server had said before stays to be read: a moment that was meant to be before the end may have come behind it."""
        self.server.kill()
        if self.client:
            while event := self.client.receive():
                self.client.events.append(event)
            self.client.close()

    def said(self, name):
        return any(event.get("event") == name for event in self.client.events)

    def wait_unlocked(self):
        end = time.monotonic() + 10
        for name in self.files():
            while run.qemu_img("info", self.work / name, code=None).code and time.monotonic() < end:
                time.sleep(0.01)

    def files(self):
        """The chain as the headers name it, top first."""
        names, name = [], "disk"
        while name:
            names.append(name)
            info = run.qemu_img("info", "-U", "--output=json", "-f", self.fmt if name == "base" else "qcow2", self.work / name).json
            name = info.get("backing-filename")
        return names

    def judge(self, load=True):
        """By whatever the headers name, the disk holds what the guest may expect; images leak at most."""
        content = self.read(self.work / "disk")
        if load:
            self.record.verify(lambda off, length: content[off:off + length])
        touched = self.record.later
        for s in range(0, self.size // 512):
            if s not in touched:
                assert content[s * 512:(s + 1) * 512] == self.content[s * 512:(s + 1) * 512], f"sector {s} was never written by the guest, and has changed"
        self.record.take_stock(lambda off, length: content[off:off + length])
        for name in ("base", "mid", "top", "disk"):
            if name != "base" or self.fmt == "qcow2":
                kill_snap.judge(self.work / name)
