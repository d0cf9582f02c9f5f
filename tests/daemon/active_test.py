# SPDX-License-Identifier: MIT
"""Nodes that another process takes over: inactive nodes and blockdev-set-active (FEATURES 3.020, 3.069, 8.010, 10.020, 11.014). Observed at QEMU 10, which has
them; the other process is the peer that is installed, which has not, or a second daemon."""
import errno
import json
import mmap
import os
import threading

import pytest

from lib import peers, run

MIB = 1 << 20


def locks(path):
    """First bytes of the ranges that somebody has locked."""
    inode = os.stat(path).st_ino
    with open("/proc/locks", encoding="ascii") as f:
        return sorted(int(line.split()[-2]) for line in f if f":{inode} " in line)


def active(client):
    return {n["node-name"]: n["active"] for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"].count("-file") == 0}


def turn(client, on, node=None):
    client.ok("blockdev-set-active", active=on, **({"node_name": node} if node else {}))


def file_of(name, **more):
    return {"driver": "file", "filename": name, **more}


def export(client, node, **more):
    client.ok("block-export-add", type="nbd", id=f"e-{node}", node_name=node, **more)


def unexport(client, node):
    client.ok("block-export-del", id=f"e-{node}", mode="hard")
    client.wait("BLOCK_EXPORT_DELETED", id=f"e-{node}")


NBD = ("--nbd-server", "addr.type=unix,addr.path=n.sock")
FORMATS = {"qcow2": ["-f", "qcow2"], "lazy": ["-f", "qcow2", "-o", "lazy_refcounts=on"], "data": ["-f", "qcow2", "-o", "data_file=ext.raw"], "qed": ["-f", "qed"],
           "raw": ["-f", "raw"], "luks": ["--object", "secret,id=s,data=abc", "-f", "luks", "-o", "key-secret=s,iter-time=10"],
           "luks-data": ["--object", "secret,id=s,data=abc", "-f", "qcow2", "-o", "data_file=ext.raw,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"]}
KEYS = {"luks": {"key-secret": "s"}, "luks-data": {"encrypt": {"format": "luks", "key-secret": "s"}}}


def words_of(commands):
    return [w for c in commands for w in ("-c", c)]


def io(*words, code=0, **more):
    """qemu-io, whose exit code does not tell of patterns that do not fit."""
    done = run.run("qemu-io", *words, code=code, **more)
    assert code != 0 or not any(w in done.out for w in ("failed", "Pattern verification", "error")), done
    return done


class World:
    """A daemon that has node `d` over the file `a.img`, and the peer's programs beside it."""

    def __init__(self, start, folder, kind, peer=False):
        self.path, self.format, self.kind = folder / "a.img", FORMATS[kind][FORMATS[kind].index("-f") + 1], kind
        if not self.path.exists():
            run.qemu_img("create", "-q", *FORMATS[kind], self.path, "16M", cwd=folder)
            self.other("write -P 1 0 2M")
        self.daemon = start("daemon", *NBD, "--object", "secret,id=s,data=abc", peer=peer)
        self.client = self.daemon.qmp()

    def options(self, **more):
        return {"driver": self.format, "node_name": "d", "file": file_of(str(self.path), **{"node-name": "df"}), **KEYS.get(self.kind, {}), **more}

    def add(self, **more):
        self.client.ok("blockdev-add", **self.options(**more))

    def guest(self, *commands, code=0, node="d", options=()):
        return io("-f", "raw", *options, *words_of(commands), f"nbd+unix:///{node}?socket={self.daemon.folder}/n.sock", code=code)

    def other(self, *commands, code=0):
        """Another process opens the file and does this."""
        words = words_of(commands)
        if self.kind in KEYS:
            return io("--object", "secret,id=s,data=abc", *words, self.with_key(), code=code, cwd=self.path.parent)
        return io("-f", self.format, *words, self.path, code=code, cwd=self.path.parent)

    def with_key(self):
        return "json:" + json.dumps({"driver": self.format, **KEYS[self.kind], "file": {"driver": "file", "filename": str(self.path)}})

    def check(self):
        if self.kind == "luks-data":
            run.qemu_img("check", "--object", "secret,id=s,data=abc", self.with_key(), cwd=self.path.parent)
        elif self.format in ("qcow2", "qed"):
            run.qemu_img("check", "-f", self.format, self.path, cwd=self.path.parent)


@pytest.mark.parametrize("kind", FORMATS)
def test_handover_and_back(start, tmp_path, kind):
    """What was written is there for the other process, sound, without a lock; what that writes, allocates and discards is there afterwards."""
    w = World(start, tmp_path, kind)
    w.add(discard="unmap")
    export(w.client, "d", writable=True, allow_inactive=True)
    for step in range(3):
        at = 4 + 3 * step
        w.guest(f"write -P {10 + step} {at}M 1M")            # no flush: that is the handover's
        assert 100 in locks(w.path)
        turn(w.client, False, "d")
        assert active(w.client) == {"d": False, "df": False}
        assert locks(w.path) == [] and ("data" not in kind or locks(tmp_path / "ext.raw") == [])
        w.check()
        w.other(f"read -P {10 + step} {at}M 1M", f"write -P {20 + step} {at + 1}M 1M", f"write -z {at}M 64k", f"discard {at + 2}M 64k")
        w.check()
        assert "Operation not permitted" in w.guest(f"write -P 9 {at}M 64k", code=1).out
        turn(w.client, True, "d")
        assert active(w.client) == {"d": True, "df": True}
        w.other("write -P 9 0 64k", code=1)                  # locked again
        w.guest(f"read -P 0 {at}M 64k", f"read -P {10 + step} {at * 1024 + 64}k 64k", f"read -P {20 + step} {at + 1}M 1M",
                f"write -P {30 + step} {at + 2}M 64k", "flush")
    unexport(w.client, "d")
    w.client.ok("blockdev-del", node_name="d")
    w.check()
    for step in range(3):
        w.other(f"read -P {30 + step} {6 + 3 * step}M 64k", f"read -P {20 + step} {5 + 3 * step}M 1M")


def test_two_daemons(start, tmp_path):
    """The one has it open and inactive while the other writes; neither takes it while the other has it; a failed try costs nothing."""
    one, two = World(start, tmp_path, "qcow2"), None
    one.add()
    export(one.client, "d", writable=True, allow_inactive=True)
    two = World(start, tmp_path, "qcow2")
    assert "in use" in two.client.refused("blockdev-add", **two.options())
    two.add(active=False)
    assert active(two.client) == {"d": False, "df": False}
    export(two.client, "d", writable=True, allow_inactive=True)
    a, b = one, two
    for step in range(6):
        a.guest(f"write -P {step + 1} 0 64k", f"write -P {step + 1} {step + 2}M 192k")
        assert "in use" in b.client.refused("blockdev-set-active", node_name="d", active=True)
        assert "in use" in b.client.refused("blockdev-set-active", active=True)
        assert active(b.client) == {"d": False, "df": False}
        turn(a.client, False)
        turn(b.client, True)
        assert "in use" in a.client.refused("blockdev-set-active", node_name="d", active=True)
        b.guest(f"read -P {step + 1} 0 64k", f"read -P {step + 1} {step + 2}M 192k")
        a, b = b, a
    assert a.daemon.stop()[0] == 0 and b.daemon.stop()[0] == 0
    one.check()
    one.other(*[f"read -P {s + 1} {s + 2}M 192k" for s in range(6)])


def test_what_is_refused(start, tmp_path):
    """A writable export holds a node; an inactive node is not written, resized or worked at, and nobody active comes to lie over it."""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "t.raw", "16M")
    w = World(start, tmp_path, "qcow2")
    c = w.client
    w.add()
    c.ok("object-add", **{"qom-type": "throttle-group", "id": "g"})
    c.ok("blockdev-add", driver="raw", node_name="t", file=file_of("t.raw"))
    export(c, "d", writable=True)
    for name in ({"node_name": "d"}, {}):
        assert "export 'e-d'" in c.refused("blockdev-set-active", active=False, **name)
        assert active(c) == {"d": True, "df": True, "t": True}           # all or none
    w.guest("write -P 2 0 64k")
    unexport(c, "d")
    assert "active node" in c.refused("blockdev-set-active", active=False, node_name="df")
    assert "nobody" in c.refused("blockdev-set-active", active=False, node_name="nobody")
    assert "missing" in c.refused("blockdev-set-active", node_name="d")
    turn(c, False, "d")
    turn(c, False, "d")                                                 # it is already
    before = w.path.read_bytes()
    for command, words in (("block_resize", {"node_name": "d", "size": 32 * MIB}), ("blockdev-add", {"driver": "raw", "node_name": "r", "file": "d"}),
                           ("blockdev-add", {"driver": "throttle", "throttle-group": "g", "node_name": "r", "file": "d"}),
                           ("blockdev-reopen", {"options": [{"driver": "qcow2", "node-name": "d", "file": "df"}]}),
                           ("blockdev-backup", {"job_id": "j", "device": "d", "target": "t", "sync": "full"}),
                           ("blockdev-backup", {"job_id": "j", "device": "t", "target": "d", "sync": "full"}),
                           ("blockdev-mirror", {"job_id": "j", "device": "d", "target": "t", "sync": "full"}),
                           ("blockdev-mirror", {"job_id": "j", "device": "t", "target": "d", "sync": "full"}),
                           ("block-stream", {"job_id": "j", "device": "d"}), ("block-commit", {"job_id": "j", "device": "d"}),
                           ("x-byre-scrub", {"job_id": "j", "device": "d"}), ("x-byre-compact", {"job_id": "j", "device": "d"}),
                           ("blockdev-create", {"job_id": "j", "options": {"driver": "qcow2", "file": "df", "size": MIB}}),
                           ("block-dirty-bitmap-add", {"node": "d", "name": "p", "persistent": True}),
                           ("blockdev-snapshot-internal-sync", {"device": "d", "name": "s"}),
                           ("blockdev-snapshot-sync", {"node_name": "d", "snapshot_file": str(tmp_path / "o"), "snapshot_node_name": "o"})):
        answer = c.ask(command, **words)
        if "return" in answer:                                          # a job that says it later
            assert command == "blockdev-create", command
            c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
            assert c.ok("query-jobs")[0]["error"]
            c.ok("job-dismiss", id="j")
    assert c.ok("query-jobs") == [] and active(c) == {"d": False, "df": False, "t": True}
    assert w.path.read_bytes() == before and locks(w.path) == []
    export(c, "d", writable=True)                                        # that takes it back
    assert active(c)["d"]
    w.guest("write -P 3 0 64k", "flush")
    unexport(c, "d")
    export(c, "d")
    turn(c, False, "d")                                                 # who only reads is not asked
    w.guest("read -P 3 0 64k", options=["-r"])


def test_job_holds_it(start, tmp_path):
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "t.raw", "16M")
    w = World(start, tmp_path, "qcow2")
    w.add()
    w.client.ok("blockdev-add", driver="raw", node_name="t", file=file_of("t.raw"))
    w.client.ok("blockdev-mirror", job_id="j", device="d", target="t", sync="full")
    w.client.wait("BLOCK_JOB_READY", device="j")
    for name in ({"node_name": "d"}, {"node_name": "t"}, {}):
        w.client.refused("blockdev-set-active", active=False, **name)
    assert set(active(w.client).values()) == {True}
    w.client.ok("block-job-cancel", device="j", force=True)
    w.client.wait("JOB_STATUS_CHANGE", id="j", status="null")
    turn(w.client, False)
    assert set(active(w.client).values()) == {False} and locks(w.path) == locks(tmp_path / "t.raw") == []


def test_a_job_counts_on_it(start, tmp_path):
    """An overlay that a commit leads elsewhere at its end stays active until then; one that is not active is said at the beginning."""
    layers = (("base", None), ("mid", "base"), ("top", "mid"), ("other", "mid"))
    for name, below in layers:
        run.qemu_img("create", "-q", "-f", "qcow2", *(["-b", below, "-F", "qcow2"] if below else []), tmp_path / name, *([] if below else ["16M"]))
    run.qemu_io(tmp_path / "mid", "write -P 2 1M 8M")
    c = start("daemon").qmp()
    for name, below in layers:
        c.ok("blockdev-add", driver="qcow2", node_name=name, backing=below, read_only=below in (None, "base"), file=file_of(str(tmp_path / name)))
    words = {"job_id": "j", "device": "top", "base_node": "base", "top_node": "mid", "auto_dismiss": False}
    turn(c, False, "other")
    assert "inactive" in c.refused("block-commit", **words)
    turn(c, True, "other")
    c.ok("block-commit", speed=65536, **words)
    assert "a job" in c.refused("blockdev-set-active", node_name="other", active=False)
    c.ok("block-job-set-speed", device="j", speed=0)
    c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert "error" not in c.ok("query-jobs")[0]
    c.ok("job-dismiss", id="j")
    turn(c, False, "other")
    run.qemu_io(tmp_path / "other", "read -P 2 1M 8M")


def test_chain(start, tmp_path):
    """Layers below go along, and are read anew: the other process commits into the base. Those whom an active node uses stay."""
    for name, below in (("base", None), ("mid", "base"), ("top", "mid"), ("side", "base")):
        run.qemu_img("create", "-q", "-f", "qcow2", *(["-b", below, "-F", "qcow2"] if below else []), tmp_path / name, *([] if below else ["16M"]))
    run.qemu_io(tmp_path / "base", "write -P 1 0 8M")
    run.qemu_io(tmp_path / "top", "write -P 2 1M 1M")
    c = start("daemon", *NBD).qmp()
    for name, below in (("base", None), ("mid", "base"), ("top", "mid"), ("side", "base")):
        c.ok("blockdev-add", driver="qcow2", node_name=name, backing=below, read_only=below in (None, "base") and name != "side", file=file_of(str(tmp_path / name)))
    assert "active node" in c.refused("blockdev-set-active", active=False, node_name="base")
    turn(c, False, "top")
    assert active(c) == {"top": False, "mid": False, "base": True, "side": True}
    turn(c, False, "side")
    assert set(active(c).values()) == {False}
    assert not any(locks(tmp_path / n) for n in ("base", "mid", "top", "side"))
    run.qemu_img("commit", "-q", "-f", "qcow2", tmp_path / "mid", "-b", "base")
    run.qemu_io(tmp_path / "base", "write -P 3 0 1M")
    run.qemu_io(tmp_path / "top", "read -P 3 0 1M")
    turn(c, True, "top")
    assert active(c) == {"top": True, "mid": True, "base": True, "side": False}
    turn(c, True)
    export(c, "top", writable=True)
    io("-f", "raw", *words_of(["read -P 3 0 1M", "read -P 2 1M 1M", "write -P 4 4000 100", "read -P 3 5000 1000", "flush"]),
       f"nbd+unix:///top?socket={tmp_path}/byre0/n.sock")
    unexport(c, "top")
    turn(c, False)
    run.qemu_io(tmp_path / "top", "read -P 4 4000 100", "read -P 3 0 4000")


def test_another_chain_is_not_taken_over(start, tmp_path):
    """The other process has rebased it: what lies below here is not what lies below it. It stays as it is, unlocked."""
    for name in ("base", "else"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "16M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "top")
    c = start("daemon").qmp()
    c.ok("blockdev-add", driver="qcow2", node_name="top", file=file_of(str(tmp_path / "top")))
    turn(c, False)
    for below in ("else", "", "base"):
        run.qemu_img("rebase", "-u", "-f", "qcow2", "-b", below, *(["-F", "qcow2"] if below else []), tmp_path / "top")
        before = (tmp_path / "top").read_bytes()
        if below == "base":
            turn(c, True)
        else:
            assert "backing file" in c.refused("blockdev-set-active", active=True, node_name="top")
            assert not active(c)["top"] and locks(tmp_path / "top") == [] and (tmp_path / "top").read_bytes() == before
    assert active(c)["top"]


def test_it_comes_back_with_another_size(start, tmp_path):
    w = World(start, tmp_path, "qcow2")
    w.add()
    export(w.client, "d", writable=True, allow_inactive=True)
    turn(w.client, False)
    run.qemu_img("resize", "-q", w.path, "64M")
    w.other("write -P 5 60M 1M")
    turn(w.client, True)
    w.guest("read -P 5 60M 1M", "write -P 6 62M 1M", "flush")
    assert w.client.ok("query-named-block-nodes", flat=True)[-1]["image"]["virtual-size"] == 64 * MIB
    turn(w.client, False)
    w.check()
    w.other("read -P 6 62M 1M", "read -P 5 60M 1M")


def test_space_taken_ahead_is_given_back(start, tmp_path):
    """What the filter preallocate holds behind the end of the file is not its own while another process writes there."""
    w = World(start, tmp_path, "raw")
    ahead = {"driver": "preallocate", "node-name": "p", "prealloc-size": 64 * MIB, "file": file_of(str(w.path), **{"node-name": "df"})}
    w.client.ok("blockdev-add", driver="raw", node_name="d", file=ahead)
    w.client.ok("block_resize", node_name="d", size=17 * MIB)
    assert os.stat(w.path).st_blocks * 512 > 60 * MIB
    turn(w.client, False, "d")
    assert os.stat(w.path).st_blocks * 512 < 20 * MIB
    w.other("read -P 1 0 2M", "write -P 6 8M 8M")
    with open(w.path, "ab") as f:
        f.write(bytes(MIB))
    w.client.ok("blockdev-del", node_name="d")
    assert os.stat(w.path).st_size == 18 * MIB
    w.other("read -P 6 8M 8M")


def cached(path):
    return int(run.run("fincore", "-n", "-b", "-o", "PAGES", path).out)


@pytest.mark.parametrize("keep", [False, True], ids=["drop", "keep"])
@pytest.mark.parametrize("nodes", [False, True], ids=["one", "two"])
def test_page_cache(start, tmp_path, keep, nodes):
    """FEATURES 3.020: what this machine remembers of the file is forgotten with it, unless drop-cache is off"""
    peers.need("fincore")
    w = World(start, tmp_path, "qcow2")
    w.other("write -P 3 0 8M")
    file = {"driver": "file", "filename": str(w.path), **({"drop-cache": False} if keep else {}), **({"node-name": "df"} if nodes else {})}
    w.client.ok("blockdev-add", driver="qcow2", node_name="d", file=file)
    export(w.client, "d", writable=True, allow_inactive=True)
    w.guest("write -P 4 8M 4M", "read -P 3 0 8M", "flush")
    assert cached(w.path) > 0
    turn(w.client, False, "d")
    assert (cached(w.path) > 0) == keep
    w.guest("read -P 4 8M 4M")


@pytest.mark.parametrize("kind", ["data", "luks-data"])
def test_page_cache_of_a_data_file(start, tmp_path, kind):
    """FEATURES 3.020, 1.078: the same of its external data file, encrypted or not: what another machine wrote would not be seen"""
    peers.need("fincore")
    w = World(start, tmp_path, kind)
    w.add()
    export(w.client, "d", writable=True, allow_inactive=True)
    w.guest("write -P 4 8M 4M", "read -P 1 0 2M", "flush")
    assert cached(tmp_path / "ext.raw") > 0
    turn(w.client, False, "d")
    assert cached(tmp_path / "ext.raw") == 0


@pytest.mark.parametrize("kind", ["data", "luks-data"])
def test_lock_of_a_data_file(start, tmp_path, kind):
    """FEATURES 11.006, 1.078: it follows the image's: opened for reading, and for writing again"""
    w = World(start, tmp_path, kind)
    w.add(read_only=True)
    entry = {k.replace("_", "-"): v for k, v in w.options().items()}
    for read_only in (True, False, True, False):
        w.client.ok("blockdev-reopen", options=[{**entry, "file": "df", "read-only": read_only}])
        assert (103 in locks(tmp_path / "ext.raw")) == (103 in locks(w.path)) == (not read_only)        # resize
    export(w.client, "d", writable=True)
    w.guest("write -P 5 4M 1M", "flush")
    unexport(w.client, "d")
    w.client.ok("blockdev-del", node_name="d")
    w.other("read -P 5 4M 1M", "read -P 1 0 2M")


def test_page_cache_is_looked_at(start, tmp_path):
    """FEATURES 3.020: with x-check-cache-dropped a node does not wake while somebody keeps the file in memory; without it, and when he has gone, it does"""
    path = tmp_path / "c.raw"
    path.write_bytes(os.urandom(4 << 20))
    client = start("daemon").qmp()
    with open(path, "r+b") as f:
        os.fsync(f.fileno())
        mapped = mmap.mmap(f.fileno(), 0)
        assert sum(mapped[i] for i in range(0, 4 << 20, 4096)) > 0                      # mapped pages stay
        for name, file in (("checks", file_of(str(path), **{"x-check-cache-dropped": True})), ("does-not", file_of(str(path)))):
            client.ok("blockdev-add", driver="raw", node_name=name, read_only=True, active=False, file=file)
        assert "page cache still in use: 4194304 bytes" in client.refused("blockdev-set-active", active=True, node_name="checks")
        assert [n["active"] for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"] == "checks"] == [False]
        turn(client, True, "does-not")
        turn(client, False, "does-not")
        mapped.close()
    turn(client, True, "checks")
    assert "belongs into 'file'" in client.refused("blockdev-add", driver="raw", node_name="x", file=file_of(str(path)), **{"x-check-cache-dropped": True})


def counts(client):
    return {b["name"]: (b["count"], b.get("inconsistent", False)) for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"] == "d"
            for b in n.get("dirty-bitmaps", [])}


@pytest.mark.asan
@pytest.mark.tsan
def test_bitmaps(start, tmp_path):
    """Stored ones go along: the other process finds them, and what it records is there afterwards. What only memory holds has missed what it wrote."""
    w = World(start, tmp_path, "qcow2")
    w.add()
    for name, persistent in (("p", True), ("m", False)):
        w.client.ok("block-dirty-bitmap-add", node="d", name=name, persistent=persistent, granularity=65536)
    export(w.client, "d", writable=True, allow_inactive=True)
    w.guest("write -P 5 0 128k")
    turn(w.client, False)
    assert counts(w.client) == {"p": (131072, False), "m": (131072, False)}
    listed = json.loads(run.qemu_img("info", "--output=json", w.path).out)["format-specific"]["data"]["bitmaps"]
    assert [(b["name"], b["flags"]) for b in listed] == [("p", ["auto"])]         # not in use
    turn(w.client, True)
    assert counts(w.client) == {"p": (131072, False), "m": (131072, False)}
    w.guest("write -P 6 1M 64k")
    turn(w.client, False)
    w.other("write -P 7 4M 64k")
    turn(w.client, True)
    assert counts(w.client) == {"p": (131072 + 2 * 65536, False), "m": (0, True)}
    w.guest("write -P 8 8M 64k", "flush")
    assert counts(w.client)["p"] == (131072 + 3 * 65536, False)


@pytest.mark.asan
@pytest.mark.tsan
def test_writers_until_the_moment(start, tmp_path):
    """Requests on their way: each write that was acknowledged is in the file that the other process gets, the rest is refused, and comes back later."""
    nbd = peers.need_module("nbd")
    w = World(start, tmp_path, "qcow2")
    w.add()
    export(w.client, "d", writable=True, allow_inactive=True)
    written, errors, go = [{} for _ in range(3)], [], threading.Event()

    def writer(me, generation):
        h = nbd.NBD()
        h.connect_uri(f"nbd+unix:///d?socket={w.daemon.folder}/n.sock")
        try:
            for i in range(100000):
                at = ((i * 37) % 80 * 3 + me) * 65536
                body = (generation * 1000 + i % 997).to_bytes(4, "little") * 4096
                h.pwrite(body, at)
                written[me][at] = body
                if i == 20:
                    go.set()
        except nbd.Error as e:
            errors.append(e.errnum)
        h.shutdown()

    for generation in range(3):
        go.clear()
        del errors[:]
        threads = [threading.Thread(target=writer, args=(me, generation)) for me in range(3)]
        for t in threads:
            t.start()
        assert go.wait(60)
        turn(w.client, False, "d")
        assert locks(w.path) == []
        run.qemu_img("convert", "-f", "qcow2", "-O", "raw", w.path, tmp_path / "flat")
        for t in threads:
            t.join(60)
        assert errors == [errno.EPERM] * 3
        data = (tmp_path / "flat").read_bytes()
        for mine in written:
            for at, body in mine.items():
                assert data[at:at + len(body)] == body, (generation, at)
        w.check()
        turn(w.client, True, "d")


def add_failing(w, k):
    """Node d over blkdebug, of whose file the k-th request fails, once. False: it was one of the opening."""
    debug = {"driver": "blkdebug", "node-name": "b", "image": file_of(str(w.path), **{"node-name": "df"}),
             "inject-error": [{"event": "none", "errno": errno.EIO, "immediately": False, "once": True, "x-skip": k - 1}]}
    return "return" in w.client.ask("blockdev-add", driver="qcow2", node_name="d", file=debug)


def write_some(w, nbd):
    """What was acknowledged, and whether a flush was."""
    h, done, flushed = nbd.NBD(), {}, False
    h.connect_uri(f"nbd+unix:///d?socket={w.daemon.folder}/n.sock")
    try:
        for at in (0, 64 * 65536, 65 * 65536 + 512):
            h.pwrite(b"\x55" * 4096, at)
            done[at] = 0x55
        h.flush()
        flushed = True
        for at in (70 * 65536, 100 * 65536):
            h.pwrite(b"\x66" * 4096, at)
            done[at] = 0x66
    except nbd.Error:
        pass
    h.shutdown()
    return done, flushed


def reads(done):
    return [f"read -P {value} {at} 4096" for at, value in done.items()]


def one_failure(w, nbd, k):
    """The k-th request fails, wherever that is. Which call it hit; None: none."""
    w.path.unlink(missing_ok=True)
    run.qemu_img("create", "-q", "-f", "qcow2", w.path, "16M")
    w.other("write -P 1 0 2M")
    if not add_failing(w, k):
        return "open"
    export(w.client, "d", writable=True, allow_inactive=True)
    done, flushed = write_some(w, nbd)
    hit = None if len(done) == 5 else "write"
    if "error" in w.client.ask("blockdev-set-active", node_name="d", active=False):
        hit = "go"
        assert set(active(w.client).values()) == {True} and 103 in locks(w.path)
        w.other("read 0 512", code=1)
        again = w.client.ask("blockdev-set-active", node_name="d", active=False)
    if hit != "go" or "return" in again:
        assert set(active(w.client).values()) == {False} and locks(w.path) == []
        run.qemu_img("check", w.path, code=(0, 3))           # a failure may leave leaks
        w.other(*reads(done), "write -P 9 8M 128k", "write -P 9 32k 64k")
        before = w.path.read_bytes()
        if "error" in w.client.ask("blockdev-set-active", node_name="d", active=True):
            hit = "come"
            assert set(active(w.client).values()) == {False} and locks(w.path) == [] and w.path.read_bytes() == before
            turn(w.client, True, "d")
        w.guest("read -P 9 8M 128k", "read -P 9 32k 64k", *reads({at: v for at, v in done.items() if at}), code=None if hit is None else 0)
        flushed = True
    unexport(w.client, "d")
    w.client.ask("blockdev-del", node_name="d")
    run.qemu_img("check", w.path, code=(0, 3))
    w.other(*(reads({at: v for at, v in done.items() if at and (v == 0x55 or hit is None)}) if flushed else []))
    return hit


def test_each_request_fails_once(start, tmp_path):
    """Going fails: it is active, locked, and can be tried again. Coming fails: it is inactive, not locked, the file is what it was, and the next try comes.
    Nothing that was promised is lost."""
    nbd = peers.need_module("nbd")
    w = World(start, tmp_path, "qcow2")
    seen = []
    while seen[-4:] != [None] * 4 or "come" not in seen:     # behind the last request that matters
        seen.append(one_failure(w, nbd, len(seen) + 1))
    assert set(seen) >= {"go", "come", "write"}


def test_below_a_filter_that_rewrites(start, tmp_path):
    """FEATURES 3.069, 3.054: a filter that asks for the right to rewrite the same data sleeps with what lies below it"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "4M")
    daemon = start("daemon")
    c = daemon.qmp()
    c.ok("blockdev-add", driver="qcow2", node_name="a", file={"driver": "file", "filename": str(tmp_path / "a")})
    c.ok("blockdev-add", **{"driver": "blkdebug", "node-name": "f", "image": "a", "take-child-perms": ["write-unchanged"]})
    for active in (False, True, False):
        c.ok("blockdev-set-active", active=active)
    assert daemon.stop()[0] == 0
