# SPDX-License-Identifier: MIT
"""Several clients at one daemon ask for anything at the same time, while guests write.

Each client takes at random from all that changes nodes, chains, jobs, bitmaps and exports. Any answer may be an error, and none may be late. The disk
`g` is only asked for what keeps its content: its guests find what they wrote at every moment. With `v` everything is allowed, so its content is
nobody's promise. At the end every image is sound, and the files say what the guests know.

SEED=n takes another seed, SOAK=1 a minute instead of seconds. What the clients asked for depends on what they found, and so on the moment: a seed
begins the same way and need not end the same way, so what was asked is printed when it fails.
"""
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import threading
import time

import nbd
import pytest
from lib import images, run

MIB = 1 << 20
SIZE = 8 * MIB                           # of every disk; no one gets smaller
SECTOR = 512
SLOW = 6 if "san" in os.path.basename(os.path.dirname(run.BYRE)) else 1
ANSWER = 40.0 * SLOW                     # an answer, or a request of a guest, that takes longer never comes
NODES = 34                               # more are not made: some are deleted first


def file_of(name):
    return {"driver": "file", "filename": name}


class Log:
    """What was asked and what was answered, of all clients, in the order of the answers."""

    def __init__(self):
        self.lines, self.count, self.start = [], collections.Counter(), time.monotonic()

    def add(self, who, began, command, arguments, answer):
        word = "ok" if answer and "return" in answer else answer["error"]["desc"][:200] if answer else "GONE"
        self.count[command, word == "ok"] += 1
        self.lines.append(f"{began - self.start:8.4f} {time.monotonic() - self.start:8.4f} {who} {command} {json.dumps(arguments)} -> {word}")

    def summary(self):
        names = sorted({c for c, _ in self.count})
        return ", ".join(f"{c} {self.count[c, True]}/{self.count[c, True] + self.count[c, False]}" for c in names)


class World:
    def __init__(self, folder, daemon, seed, seconds):
        self.folder, self.daemon, self.seed, self.log = pathlib.Path(folder), daemon, seed, Log()
        self.until, self.wrong, self.last, self.names = time.monotonic() + seconds, [], threading.Event(), iter(range(10, 1 << 30))
        self.lock, self.pivot = threading.Lock(), threading.Lock()
        self.uri = f"nbd+unix:///guest?socket={folder}/n.sock"

    def number(self):
        with self.lock:
            return next(self.names)

    def now(self):
        return time.monotonic() - self.log.start

    def over(self):
        return self.wrong or time.monotonic() > self.until

    def fresh(self, name):
        shutil.copyfile(self.folder / "empty.qcow2", self.folder / name)
        return name

    def thread(self, what):
        """Runs what() in a thread; what it raises is kept."""
        def go():
            try:
                what()
            except BaseException as e:  # pylint: disable=broad-except
                self.wrong.append(f"{threading.current_thread().name}: {e!r}")
        t = threading.Thread(target=go, name=type(getattr(what, "__self__", self)).__name__, daemon=True)
        t.start()
        return t

    def fail(self, why):
        if self.daemon.process.poll() is None:
            with contextlib.suppress(Exception):
                why += f"\nthe guests' disk: {chain_of(Client(self, 'end', 1))}"
        (self.folder / "log").write_text("\n".join(self.log.lines))
        exit_code = self.daemon.process.poll()
        said = self.daemon.stop(timeout=5)[1] if exit_code is not None else ""
        tail = "\n".join(self.log.lines[-250:])
        pytest.fail(f"SEED={self.seed}: {why}\nexit code {exit_code}\n{said[-6000:]}\n{len(self.log.lines)} commands, all of them in {self.folder}/log, "
                    f"the last:\n{tail}", pytrace=False)


class Guest:
    """Writes sectors of its own that say which and how often, and reads them back."""

    def __init__(self, world, index, count, seed):
        self.world, self.random = world, random.Random(seed)
        per = SIZE // SECTOR // count
        self.first, self.tags, self.when, self.done = index * per, [0] * per, [0.0] * per, 0

    def connect(self):
        h = nbd.NBD()
        h.connect_uri(self.world.uri)
        return h

    @staticmethod
    def sector(number, tag):
        return (f"{number:012d}.{tag:012d}|".encode() * 20)[:SECTOR] if tag else bytes(SECTOR)

    def check(self, h, at, n):
        buf = h.pread(n * SECTOR, (self.first + at) * SECTOR)
        for i in range(n):
            got, want = buf[i * SECTOR:(i + 1) * SECTOR], self.sector(self.first + at + i, self.tags[at + i])
            assert got == want, f"sector {self.first + at + i}: {bytes(got[:52])} instead of {bytes(want[:52])}, written at {self.when[at + i]:.4f}, read before {self.world.now():.4f}"

    def go(self):
        h = self.connect()
        while not self.world.over():
            n = self.random.choice((1, 1, 3, 8, 40, 200))
            at = self.random.randrange(len(self.tags) - n)
            what = self.random.choices(("write", "read", "zero", "flush"), (10, 6, 1, 1))[0]
            if what == "write":
                self.done += 1
                h.pwrite(b"".join(self.sector(self.first + at + i, self.done) for i in range(n)), (self.first + at) * SECTOR)
                self.tags[at:at + n], self.when[at:at + n] = [self.done] * n, [self.world.now()] * n
            elif what == "zero":
                h.zero(n * SECTOR, (self.first + at) * SECTOR)
                self.tags[at:at + n], self.when[at:at + n] = [0] * n, [self.world.now()] * n
            elif what == "read":
                self.check(h, at, n)
            else:
                h.flush()
            time.sleep(self.random.random() * 0.004)
        h.flush()
        h.shutdown()

    def check_all(self, path):
        """What a file (raw) holds is what was written."""
        with open(path, "rb") as f:
            for i, tag in enumerate(self.tags):
                f.seek((self.first + i) * SECTOR)
                got, want = f.read(SECTOR), self.sector(self.first + i, tag)
                assert got == want, f"{path}: sector {self.first + i}: {got[:52]} instead of {want[:52]}"


class Stranger:
    """Writes noise to whatever disk of `v` is exported."""

    def __init__(self, world, seed):
        self.world, self.random = world, random.Random(seed)

    def go(self):
        while not self.world.over():
            time.sleep(0.02)
            h = nbd.NBD()
            with contextlib.suppress(nbd.Error):
                h.connect_uri(f"nbd+unix:///v{self.random.randrange(3)}?socket={self.world.folder}/n.sock")
                for _ in range(self.random.randrange(60)):
                    at = self.random.randrange(SIZE // 4096 - 16) * 4096
                    if self.random.random() < 0.5 and not h.is_read_only():
                        h.pwrite(os.urandom(4096) * self.random.randrange(1, 16), at)
                    else:
                        h.pread(4096 * self.random.randrange(1, 16), at)


class Client:
    """One client of the control socket. Names of nodes: the first letter says of which disk, the second what it is (o an overlay, t a target,
    x a filter, f a file); files are named as their nodes."""

    def __init__(self, world, index, seed):
        self.world, self.who, self.random, self.tree = world, f"c{index}", random.Random(seed), {}
        self.nodes, self.jobs = [], []
        self.qmp = world.daemon.qmp()
        self.qmp.socket.settimeout(ANSWER)

    def ask(self, command, **arguments):
        began = time.monotonic()
        try:
            answer = self.qmp.ask(command, **arguments)
        except OSError as e:
            self.world.log.add(self.who, began, command, arguments, {"error": {"desc": f"NO ANSWER {e!r}"}})
            raise
        self.world.log.add(self.who, began, command, arguments, answer)
        assert answer, f"{command}: the daemon has gone"
        self.qmp.events.clear()
        return answer.get("return")

    def go(self):
        actions = [(getattr(self, n), w) for n, w in WEIGHTS.items()]
        while not self.world.over():
            if not self.nodes or self.random.random() < 0.3:
                self.look()
            self.random.choices([a for a, _ in actions], [w for _, w in actions])[0]()
        self.qmp.close()

    # -- choosing --

    def look(self):
        self.nodes = self.ask("query-named-block-nodes", flat=True) or []
        self.jobs = self.ask("query-jobs") or []

    def node(self, *families):
        names = [n["node-name"] for n in self.nodes if not n["node-name"].startswith("#") and not n["node-name"].endswith("-file")]
        fit = [n for n in names if any(n.startswith(f) for f in families)] if families else names
        return self.random.choice(fit) if fit else "none"

    def family(self):
        return self.random.choice("gv")

    def job(self):
        return self.random.choice(self.jobs)["id"] if self.jobs else "none"

    def job_words(self):
        words = {"job-id": f"j{self.world.number()}"}
        if self.random.random() < 0.4:
            words["speed"] = self.random.choice((65536, MIB, 64 * MIB))
        if self.random.random() < 0.15:
            words["auto-dismiss"] = False
        if self.random.random() < 0.15:
            words["auto-finalize"] = False
        return words

    def some_filter(self):
        return {"filter-node-name": f"jf{self.world.number()}"} if self.random.random() < 0.4 else {}

    def maybe(self, **words):
        return words if self.random.random() < 0.5 else {}

    def below(self, name):
        """The image below a node as it was when this client looked."""
        for n in self.nodes:
            if n["node-name"] == name and n.get("backing_file_depth") and n.get("backing_file"):
                for m in self.nodes:
                    if m["file"] == n["backing_file"] and m["drv"] != "file":
                        return m["node-name"]
        return None

    def layer(self, name):
        """One of the images below a node."""
        chain = []
        while (name := self.below(name)) and name not in chain:
            chain.append(name)
        return self.random.choice(chain) if chain and self.random.random() < 0.9 else self.node()

    # -- nodes --

    def add(self, kind, **more):
        name = f"{kind}{self.world.number()}"
        file = self.world.fresh(name)
        self.ask("blockdev-add", **{"driver": "qcow2", "node-name": name, "file": file_of(file), **more})
        return name

    def blockdev_add(self):
        if len(self.nodes) > NODES:
            self.blockdev_del()
            return
        f = self.family()
        what = self.random.randrange(10)
        if what == 0:
            self.add(f + "t")
        elif what == 1:
            self.ask("blockdev-add", driver="copy-on-read", node_name=f"{f}x{self.world.number()}", file=self.node(f))
        elif what == 2:
            self.ask("blockdev-add", driver="throttle", node_name=f"{f}x{self.world.number()}", file=self.node(f), throttle_group=f"tg{self.random.randrange(3)}")
        elif what == 3:
            self.add("vo", backing=self.node("v"))
        elif what == 4:
            name = f"vf{self.world.number()}"
            self.ask("blockdev-add", driver="file", node_name=name, filename=self.world.fresh(name))
            self.ask("blockdev-add", driver=self.random.choice(("qcow2", "raw")), node_name=f"vi{self.world.number()}", file=name)
        elif what == 5:                  # one that is open already, perhaps
            self.ask("blockdev-add", driver=self.random.choice(("raw", "qcow2")), node_name=f"vr{self.world.number()}", read_only=self.random.random() < 0.7,
                     file=self.node("vf"))
        elif what == 6:
            self.over_filter()
        elif what == 7:                  # a disk that lies in another disk
            images = [n["node-name"] for n in self.nodes if n["node-name"].startswith("v") and n["drv"] == "qcow2"]
            self.ask("blockdev-add", driver="raw", node_name=f"vw{self.world.number()}", file=self.random.choice(images or ["none"]), **self.maybe(offset=65536, size=MIB))
        elif what == 8:
            self.ask("blockdev-add", driver="preallocate", node_name=f"vx{self.world.number()}", file=self.node("v"), prealloc_size=MIB)
        else:
            self.ask("blockdev-add", driver="qcow2", node_name=f"vq{self.world.number()}", read_only=self.random.random() < 0.7,
                     file=file_of(self.random.choice(["vb", "vm", "vt", self.node("vo")])), **self.maybe(backing=None))

    def over_filter(self):
        """A format over a filter over a file of its own, which others may find by its name."""
        name = f"vf{self.world.number()}"
        file = {**file_of(self.world.fresh(name)), "node-name": name}
        below = self.random.choice(({"driver": "preallocate", "file": file, "prealloc-size": MIB}, {"driver": "blkdebug", "image": file}, {"driver": "copy-on-read", "file": file}))
        self.ask("blockdev-add", driver="qcow2", node_name=f"vi{self.world.number()}", file=below)

    def blockdev_del(self):
        self.ask("blockdev-del", node_name=self.node())

    def blockdev_create(self):
        name = self.node("vf", "vt")
        self.ask("blockdev-create", job_id=f"j{self.world.number()}", options={"driver": "qcow2", "file": name, "size": SIZE})

    def reopen_entry(self, name):
        node = next((n for n in self.nodes if n["node-name"] == name), None)
        if not node:
            return {"driver": "qcow2", "node-name": name}
        entry = {"driver": node["drv"], "node-name": name}
        if node["drv"] == "file":
            entry["filename"] = node["file"]
        elif node["drv"] == "throttle":
            return {**entry, "file": self.node("v"), "throttle-group": f"tg{self.random.randrange(3)}"}
        else:
            children = {c["child"]: c["node-name"] for c in node.get("children", [])}
            entry["file"] = children.get("file", f"{name}-file")
        return {**entry, "read-only": self.random.random() < 0.5, **self.maybe(**{"cache": {"no-flush": False}})}

    def reopen(self):
        """Of `g` only what has nothing below it: its content does not depend on what is said here."""
        options = []
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            name = self.node("gb", "v")
            entry = self.reopen_entry(name)
            if name[0] == "v" and entry["driver"] == "qcow2":
                word = self.random.choice(("as it is", "none", "other", "said nothing"))
                if word != "said nothing":
                    entry["backing"] = {"as it is": self.below(name), "none": None, "other": self.node("v")}[word]
            options.append(entry)
        self.ask("blockdev-reopen", options=options)

    def resize(self):
        self.ask("block_resize", node_name=self.node(), size=SIZE + self.random.randrange(4) * MIB)

    # -- chains --

    def snapshot(self):
        f = self.family()
        overlay = self.add(f + "o", backing=None)
        self.ask("blockdev-snapshot", node=self.node(f), overlay=overlay)

    def snapshot_sync(self):
        f = self.family()
        name = f"{f}o{self.world.number()}"
        self.ask("blockdev-snapshot-sync", node_name=self.node(f), snapshot_file=name, snapshot_node_name=name, format="qcow2")

    def commit(self):
        """Of `g` only what is below the guests: an image that they have left holds what is old, and may be committed over what is new. So nobody
        takes them away between the look and the command."""
        f = self.family()
        with self.world.pivot if f == "g" else contextlib.nullcontext():
            device = self.guests_node() if f == "g" else self.node(f)
            top = {} if self.random.random() < 0.4 else {"top-node": self.layer(device)}
            base = self.maybe(base_node=self.layer(top.get("top-node", device)))
            self.ask("block-commit", device=device, force=self.random.random() < 0.8, **self.job_words(), **base, **top, **self.some_filter())

    def guests_node(self):
        self.look()
        return next(e["node-name"] for e in self.ask("query-block-exports") if e["id"] == "guest")

    def stream(self):
        f = self.family()
        device = self.node(f)
        self.ask("block-stream", device=device, **self.job_words(), **self.maybe(base_node=self.layer(device)), **self.some_filter())

    def change_backing(self):
        f = self.family()
        name = self.node(f)
        below = self.below(name)
        self.ask("change-backing-file", device=name, image_node_name=name, backing_file=below or "vb")

    # -- copies --

    def target(self, f):
        fit = [n["node-name"] for n in self.nodes if n["node-name"].startswith(f + "t") and n["drv"] != "file" and len(n["node-name"]) > 2]
        return self.random.choice(fit) if fit and self.random.random() < 0.5 else self.add(f + "t")

    def mirror(self):
        f = self.family()
        sync = "full" if f == "g" else self.random.choice(("full", "top", "none"))
        self.ask("blockdev-mirror", device=self.node(f), target=self.target(f), sync=sync, **self.job_words(), **self.some_filter(),
                 **self.maybe(copy_mode=self.random.choice(("background", "write-blocking"))), **({"replaces": self.node(f)} if self.random.random() < 0.1 else {}))

    def drive_mirror(self):
        f = self.family()
        self.ask("drive-mirror", device=self.node(f), target=f"{f}t{self.world.number()}", sync="full", format="qcow2", node_name=f"{f}t{self.world.number()}", **self.job_words())

    def backup(self):
        f = self.family()
        self.ask("blockdev-backup", device=self.node(f), target=self.target(f), sync=self.random.choice(("full", "top", "none")), **self.job_words(), **self.some_filter())

    def backup_bitmap(self):
        self.ask("blockdev-backup", device=self.node(), target=self.target("v"), sync="bitmap", bitmap=f"b{self.random.randrange(4)}",
                 bitmap_mode=self.random.choice(("on-success", "always", "never")), **self.job_words())

    def drive_backup(self):
        self.ask("drive-backup", device=self.node(), target=f"d{self.world.number()}", sync="full", format="qcow2", **self.job_words())

    # -- jobs --

    def job_verb(self):
        self.jobs = self.ask("query-jobs") or []
        job = self.random.choice(self.jobs) if self.jobs else {"id": "none", "status": "null"}
        name, fits = job["id"], {"concluded": "job-dismiss", "pending": "job-finalize", "ready": "job-complete", "paused": "job-resume"}.get(job["status"])
        verb = self.random.choice(("job-complete", "job-cancel", "job-pause", "job-resume", "job-dismiss", "job-finalize"))
        verb = fits if fits and self.random.random() < 0.8 else verb
        if verb not in ("job-complete", "job-finalize"):
            self.ask(verb, id=name)
            return
        with self.world.pivot:
            self.ask(verb, id=name)
            end = time.monotonic() + 0.5
            while time.monotonic() < end and any(j["id"] == name and j["status"] in ("running", "ready", "waiting") for j in self.ask("query-jobs")):
                time.sleep(0.01)

    def job_speed(self):
        self.ask("block-job-set-speed", device=self.job(), speed=self.random.choice((0, 0, 65536, 16 * MIB)))

    def job_cancel_block(self):
        self.ask("block-job-cancel", device=self.job(), **self.maybe(force=True))

    def inside(self):
        self.ask(self.random.choice(("x-byre-scrub", "x-byre-compact")), node_name=self.node(), job_id=f"j{self.world.number()}")

    # -- bitmaps, transactions --

    def bitmap_words(self):
        return {"node": self.node(), "name": f"b{self.random.randrange(4)}"}

    def bitmap(self):
        verb = self.random.choice(("add", "add", "remove", "clear", "enable", "disable", "merge"))
        words = self.bitmap_words()
        if verb == "add":
            words["persistent"] = self.random.random() < 0.5
        if verb == "merge":
            words = {"node": words["node"], "target": words["name"], "bitmaps": [f"b{self.random.randrange(4)}"]}
        self.ask(f"block-dirty-bitmap-{verb}", **words)

    def transaction(self):
        actions, f = [], self.family()
        for _ in range(self.random.randrange(1, 4)):
            what = self.random.choice(("block-dirty-bitmap-add", "block-dirty-bitmap-clear", "blockdev-snapshot-sync", "blockdev-snapshot", "blockdev-backup", "abort"))
            if what.startswith("block-dirty"):
                data = self.bitmap_words()
            elif what == "blockdev-snapshot-sync":
                name = f"{f}o{self.world.number()}"
                data = {"node-name": self.node(f), "snapshot-file": name, "snapshot-node-name": name, "format": "qcow2"}
            elif what == "blockdev-snapshot":
                data = {"node": self.node(f), "overlay": self.add(f + "o", backing=None)}
            elif what == "blockdev-backup":
                data = {"device": self.node(f), "target": self.target(f), "sync": "full", **self.job_words()}
            else:
                if self.random.random() < 0.7:
                    continue
                data = {}
            actions.append({"type": what, "data": data})
        self.ask("transaction", actions=actions, **({"properties": {"completion-mode": "grouped"}} if self.random.random() < 0.15 else {}))

    def internal(self):
        verb = self.random.choice(("blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"))
        self.ask(verb, device=self.node(), name=f"s{self.random.randrange(3)}")

    # -- objects, exports, questions --

    def group(self):
        name = f"tg{self.random.randrange(3)}"
        if self.random.random() < 0.7:
            self.ask("object-add", qom_type="throttle-group", id=name)
        else:
            self.ask("object-del", id=name)

    def export(self):
        name = f"v{self.random.randrange(3)}"
        if self.random.random() < 0.6:
            self.ask("block-export-add", type="nbd", id=name, name=name, node_name=self.node("v"), writable=self.random.random() < 0.6)
        else:
            self.ask("block-export-del", id=name, mode=self.random.choice(("safe", "hard")))

    def export_guest(self):
        """Others look at the guests' disk while it is used."""
        name = f"r{self.random.randrange(2)}"
        if self.random.random() < 0.6:
            self.ask("block-export-add", type="nbd", id=name, name=name, node_name=self.node("g"), writable=False)
        else:
            self.ask("block-export-del", id=name, mode="hard")

    def question(self):
        self.ask(self.random.choice(("query-block", "query-blockstats", "query-block-jobs", "query-block-exports", "query-named-block-nodes", "x-debug-query-block-graph")))


WEIGHTS = {"blockdev_add": 6, "blockdev_del": 8, "blockdev_create": 1, "reopen": 7, "resize": 2, "snapshot": 3, "snapshot_sync": 3, "commit": 10, "stream": 4,
           "change_backing": 2, "mirror": 4, "drive_mirror": 2, "backup": 2, "backup_bitmap": 1, "drive_backup": 1, "job_verb": 16, "job_speed": 3, "job_cancel_block": 1,
           "inside": 1, "bitmap": 4, "transaction": 2, "internal": 1, "group": 2, "export": 4, "export_guest": 2, "question": 3}


# ---- the end ----

def end_jobs(client):
    """Whatever was left over comes to its end."""
    end = time.monotonic() + ANSWER
    while True:
        jobs = client.ask("query-jobs")
        if not jobs:
            return
        assert time.monotonic() < end, f"jobs that do not end: {jobs}"
        for j in jobs:
            if j["status"] == "concluded":
                client.ask("job-dismiss", id=j["id"])
            elif j["status"] == "pending":
                client.ask("job-finalize", id=j["id"])
            else:
                client.ask("block-job-set-speed", device=j["id"], speed=0)
                client.ask("job-resume", id=j["id"])
                client.ask("job-complete" if j["status"] == "ready" else "job-cancel", id=j["id"])
        time.sleep(0.05)


IMAGES = ("qcow2", "raw")


def chain_of(client):
    """The files of the guests' disk as the graph has them, for the peer: json: text."""
    graph = client.ask("x-debug-query-block-graph")
    by_id = {n["id"]: n for n in graph["nodes"]}
    nodes = {n["node-name"]: n for n in client.ask("query-named-block-nodes", flat=True)}
    top = next(e["node-name"] for e in client.ask("query-block-exports") if e["id"] == "guest")
    at = next(n["id"] for n in graph["nodes"] if n["name"] == top)
    layers = []
    while at is not None:
        name = by_id[at]["name"]
        image = name in nodes and nodes[name]["drv"] in IMAGES
        if image:
            layers.append(nodes[name])
        down = [e for e in graph["edges"] if e["parent"] == at and by_id[e["child"]]["type"] == "block-driver"]
        kinds = {e["name"]: e["child"] for e in down}
        at = kinds.get("backing", None if image else kinds.get("file"))
    text = None
    for layer in reversed(layers):
        text = {"driver": layer["drv"], "file": {"driver": "file", "filename": layer["file"]}, **({} if layer["drv"] == "raw" else {"backing": text})}
    return "json:" + json.dumps(text)


def alone(path):
    return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None})


def check_files(world):
    for path in sorted(world.folder.iterdir()):
        if path.is_file() and not path.is_symlink() and path.open("rb").read(4) == b"QFI\xfb":
            done = run.qemu_img("check", "-q", alone(path), code=None)
            assert done.code == 0, f"{path.name}: {done}"


def prepare(folder):
    for f in "gv":
        for name, backing in ((f + "b", None), (f + "m", f + "b"), (f + "t", f + "m")):
            images.create(folder / name, SIZE, backing=backing, unchecked=backing is not None, cluster_size=4096 if f == "v" else 65536)
    images.create(folder / "empty.qcow2", SIZE)


def begin(client):
    for f in "gv":
        for name, backing in ((f + "b", None), (f + "m", f + "b"), (f + "t", f + "m")):
            client.ok("blockdev-add", driver="qcow2", node_name=name, read_only=name[1] != "t", file=file_of(name), **({"backing": backing} if backing else {}))
    client.ok("nbd-server-start", addr={"type": "unix", "data": {"path": "n.sock"}})
    client.ok("block-export-add", type="nbd", id="guest", name="guest", node_name="gt", writable=True)


def race(world, rng, clients, guests):
    all_clients = [Client(world, i, rng.random()) for i in range(clients)]
    all_guests = [Guest(world, i, guests, rng.random()) for i in range(guests)]
    threads = [world.thread(x.go) for x in (*all_clients, *all_guests, Stranger(world, rng.random()))]
    for t in threads:
        t.join(max(0.0, world.until - time.monotonic()) + 2 * ANSWER)
        if t.is_alive():
            world.wrong.append(f"{t.name} does not come back")
            break
    return all_guests


def finish(world, guests):
    (world.folder / "log").write_text("\n".join(world.log.lines))
    last = Client(world, "end", 1)
    end_jobs(last)
    for g in guests:
        h = g.connect()
        g.check(h, 0, len(g.tags))
        h.shutdown()
    name = chain_of(last)
    last.ask("block-export-del", id="guest", mode="hard")
    last.ask("quit")
    code, said = world.daemon.wait(ANSWER)
    assert code == 0, said
    check_files(world)
    run.qemu_img("convert", "-O", "raw", name, world.folder / "all", cwd=world.folder)
    for g in guests:
        g.check_all(world.folder / "all")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [int(s) for s in os.environ.get("SEED", "1").split(",")])
def test_anything_at_once(start, tmp_path, seed):
    """FEATURES 8.010, 8.011, 11.005, 11.012, J1, J4: whatever several clients ask for at once, there are answers, and disks stay what they are"""
    seconds = float(os.environ.get("SECONDS_EACH") or (60 if os.environ.get("SOAK") else 8))
    daemon = start("daemon")
    folder = pathlib.Path(daemon.folder)
    prepare(folder)
    client = daemon.qmp()
    begin(client)
    client.close()
    world = World(folder, daemon, seed, seconds)
    guests = race(world, random.Random(seed), 4, 3)
    if not world.wrong:
        try:
            finish(world, guests)
        except BaseException as e:  # pylint: disable=broad-except
            world.wrong.append(f"at the end: {e!r}")
    print(f"SEED={seed}: {world.log.summary()}; writes {[g.done for g in guests]}")
    if world.wrong or daemon.process.poll() not in (None, 0):
        world.fail("\n".join(world.wrong))
