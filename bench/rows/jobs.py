# SPDX-License-Identifier: MIT
"""jobs.py: mirror, commit, stream and backup of a disk in use, idle and under a guest's writes, by the same commands to each daemon."""
import json
import os
import signal
import socket
import subprocess
import time

from harness import Fail, MIB, run
from rows import family

LOAD_IOPS = 2000
WITHIN = 300.0


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WITHIN)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")
        self.events = []
        self.receive()
        self.ask("qmp_capabilities")

    def receive(self):
        line = self.lines.readline()
        if not line:
            raise Fail("the daemon has gone")
        return json.loads(line)

    def ask(self, command, **arguments):
        self.socket.sendall((json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}) + "\n").encode())
        while "event" in (answer := self.receive()):
            self.events.append(answer)
        if "error" in answer:
            raise Fail("%s: %s" % (command, answer["error"]["desc"]))
        return answer["return"]

    def wait(self, name):
        """The event; another end of the job is a failure."""
        while True:
            for e in self.events:
                if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_READY"):
                    self.events.remove(e)
                    if e["event"] != name or "error" in e["data"]:
                        raise Fail("%s instead of %s: %s" % (e["event"], name, e["data"].get("error")))
                    return
            self.events.append(self.receive())

    def close(self):
        self.lines.close()
        self.socket.close()


class Daemon:
    """A daemon with a disk exported, while the `with` lasts."""

    def __init__(self, bench, tool, image):
        if not tool.daemon:
            raise Fail("%s has no daemon" % tool.name)
        self.sockets = [bench.path("c.sock"), bench.path("n.sock")]
        bench.drop("c.sock", "n.sock")
        self.uri = "nbd+unix:///disk?socket=" + self.sockets[1]
        self.cmd = tool.daemon + ["--blockdev", "driver=file,node-name=f,filename=" + bench.path(image), "--blockdev", "driver=qcow2,node-name=disk,file=f",
                                  "--nbd-server", "addr.type=unix,addr.path=" + self.sockets[1], "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on",
                                  "--chardev", "socket,id=c,server=on,wait=off,path=" + self.sockets[0], "--monitor", "chardev=c"]

    def __enter__(self):
        self.process = subprocess.Popen(self.cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(400):
            if all(os.path.exists(s) for s in self.sockets):
                break
            if self.process.poll() is not None:
                raise Fail(" ".join(self.cmd) + ": has ended")
            time.sleep(0.025)
        time.sleep(0.05)
        self.qmp = Qmp(self.sockets[0])
        return self

    def __exit__(self, *_):
        self.qmp.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Load:
    """A guest that writes 4 KiB at random places, LOAD_IOPS times a second if it can."""

    def __init__(self, daemon, size):
        self.process = subprocess.Popen(["fio", "--name=l", "--ioengine=nbd", "--uri=" + daemon.uri, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=%d" % size,
                                         "--rate_iops=%d" % LOAD_IOPS, "--time_based", "--runtime=%d" % WITHIN, "--output-format=json"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.since = time.monotonic()
        time.sleep(1.0)

    def stop(self):
        """Its requests per second, and the 99th percentile in milliseconds."""
        time.sleep(max(0.0, self.since + 2.0 - time.monotonic()))
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        if "{" not in out:
            raise Fail("fio says nothing: %s" % err[-300:])
        job = json.loads(out[out.index("{"):])["jobs"][0]["write"]
        return {"guest_iops": job["iops"], "guest_p99_ms": job["clat_ns"]["percentile"]["99.000000"] / 1e6}


def layer(b, name, size, backing=None):
    b.drop(name)
    run(["qemu-img", "create", "-q", "-f", "qcow2"] + (["-u", "-b", b.path(backing), "-F", "qcow2"] if backing else []) + [b.path(name), str(size)])


def add_copy(b, qmp, size):
    layer(b, "copy", size)
    qmp.ask("blockdev-add", driver="qcow2", node_name="copy", file={"driver": "file", "filename": b.path("copy")})


def mirror(b, size):
    b.fill("qcow2", "disk", size)

    def start(qmp):
        add_copy(b, qmp, size)
        begin = time.monotonic()
        qmp.ask("blockdev-mirror", job_id="j", device="disk", target="copy", sync="full", copy_mode="write-blocking")
        qmp.wait("BLOCK_JOB_READY")
        took = time.monotonic() - begin
        qmp.ask("block-job-cancel", device="j")
        qmp.wait("BLOCK_JOB_COMPLETED")
        return took
    return lambda: None, start


def backup(b, size):
    b.fill("qcow2", "disk", size)

    def start(qmp):
        add_copy(b, qmp, size)
        begin = time.monotonic()
        qmp.ask("blockdev-backup", job_id="j", device="disk", target="copy", sync="full")
        qmp.wait("BLOCK_JOB_COMPLETED")
        return time.monotonic() - begin
    return lambda: None, start


def commit(b, size):
    b.fill("qcow2", "top", size)

    def prepare():
        layer(b, "base", size)
        run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", b.path("base"), "-F", "qcow2", b.path("top")])
        layer(b, "disk", size, "top")

    def start(qmp):
        names = {n["file"]: n["node-name"] for n in qmp.ask("query-named-block-nodes", flat=True) if n["drv"] == "qcow2"}
        begin = time.monotonic()
        qmp.ask("block-commit", job_id="j", device="disk", top_node=names[b.path("top")], base_node=names[b.path("base")])
        qmp.wait("BLOCK_JOB_COMPLETED")
        return time.monotonic() - begin
    return prepare, start


def stream(b, size):
    b.fill("qcow2", "base", size)

    def start(qmp):
        begin = time.monotonic()
        qmp.ask("block-stream", job_id="j", device="disk")
        qmp.wait("BLOCK_JOB_COMPLETED")
        return time.monotonic() - begin
    return lambda: layer(b, "disk", size, "base"), start


@family("jobs", "mirror, commit, stream and backup of a disk in use: MB/s, and what a guest keeps meanwhile")
def jobs(b):
    size = b.pick(int(os.environ.get("JOB_MIB", 4096)) * MIB, 16 * MIB)
    tools = [t for t in b.tools if t.daemon]
    for name, make in (("mirror", mirror), ("commit", commit), ("stream", stream), ("backup", backup)):
        if not any(b.wanted("%s %s" % (name, how)) for how in ("idle", "under load")):
            continue
        prepare, start = make(b, size)
        b.warm(*(n for n in ("disk", "top", "base") if os.path.exists(b.path(n))))       # the first contestant reads from memory, too

        def once(tool, loaded):
            prepare()
            os.sync()                            # what made the images is no part of it
            with Daemon(b, tool, "disk") as d:
                load = Load(d, size) if loaded else None
                try:
                    took = start(d.qmp)
                finally:
                    kept = load.stop() if load else {}
            return size / 1e6 / took, kept

        for how in ("idle", "under load"):
            b.row("%s %s" % (name, how), "MB/s", True, [(t.name, lambda t=t: once(t, how != "idle")) for t in tools])
        b.drop("disk", "copy", "top", "base", "c.sock", "n.sock")
