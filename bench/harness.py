# SPDX-License-Identifier: MIT
"""harness.py: what every row of the benchmark uses: the programs that compete, servers, clients, and the interleaved run.

A row is a name, a unit and contestants; each contestant is a function that does the work once and returns its figure,
or (figure, {further figures}). All contestants run in turn, so that what the machine does meanwhile meets all: A B C, B C A, C A B, so that
none has always the same one before it, and each with no dirty pages about, so that it does not wait while those of another are written.
"""
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

FIRST_WRITES = 15360
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


class Fail(Exception):
    """A contestant could not do its part."""



def run(cmd, **kw):
    r = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if r.returncode != 0:
        raise Fail("%s: exit %d: %s" % (" ".join(cmd), r.returncode, r.stdout.strip()[-300:]))
    return r.stdout


def version_of(cmd):
    found = re.search(r"\d+\.\d+(?:\.\d+)?", run(cmd))
    return found.group(0) if found else "?"


class Tool:
    """A set of programs. kind: byre or qemu."""

    def __init__(self, name, kind, folder):
        self.name, self.kind = name, kind
        self.img = [folder if kind == "byre" else os.path.join(folder, "qemu-img")]
        self.nbd = self.img + ["serve"] if kind == "byre" else [os.path.join(folder, "qemu-nbd")]
        daemon = os.path.join(folder, "qemu-storage-daemon")
        self.daemon = self.img + ["daemon"] if kind == "byre" else [daemon] if os.path.exists(daemon) else None


def find_tools(byre, prefix):
    """byre first, then the newest peer."""
    tools, seen = [Tool("byre", "byre", byre)], set()
    for d in ([os.path.join(prefix, "bin")] if prefix else []) + ["/usr/bin"]:
        if not all(os.path.exists(os.path.join(d, p)) for p in ("qemu-img", "qemu-nbd")):
            continue
        version = version_of([os.path.join(d, "qemu-img"), "--version"])
        if version not in seen:
            seen.add(version)
            tools.append(Tool("qemu " + version, "qemu", d))
    return tools


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid, key="VmHWM"):
    """MiB: VmHWM is the peak, VmRSS what it is now."""
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(key + r":\s+(\d+) kB", f.read()).group(1)) / 1024


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """An NBD server of a tool (or of nbdkit, for flat files) while the `with` lasts."""

    def __init__(self, bench, tool, image, fmt, cache="none", tcp=False, threads=None, poll=0.025, ready=True):
        self.sock = bench.path("nbd.sock")
        self.port = free_port() if tcp else None
        self.uri = "nbd://127.0.0.1:%d" % self.port if tcp else "nbd+unix:///?socket=" + self.sock
        self.cmd = self.command(tool, bench.path(image), fmt, cache, threads)
        self.poll, self.ready, self.signal = poll, ready, signal.SIGTERM
        bench.drop("nbd.sock")

    def command(self, tool, image, fmt, cache, threads):
        if tool == "nbdkit":
            return ["nbdkit", "-f", "file", image] + (["-i", "127.0.0.1", "-p", str(self.port)] if self.port else ["-U", self.sock])
        if tool.kind == "byre":
            where = "127.0.0.1:%d" % self.port if self.port else "unix:" + self.sock
            return tool.nbd + ["--nbd", where, "-f", fmt, "-t", cache] + (["--threads", str(threads)] if threads else []) + [image]
        where = ["-b", "127.0.0.1", "-p", str(self.port)] if self.port else ["-k", self.sock]
        return tool.nbd + ["-t", "-e", "0", "-f", fmt, "--cache=" + cache, "--aio=io_uring"] + where + [image]

    def listening(self):
        if not self.port:
            return os.path.exists(self.sock)
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self):
        self.process = subprocess.Popen(self.cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.pid = self.process.pid
        for _ in range(int(10 / self.poll)):
            if self.listening():
                return self
            if self.process.poll() is not None:
                raise Fail("%s: %s" % (" ".join(self.cmd), self.process.stderr.read().decode()[-300:]))
            time.sleep(self.poll)
        self.process.kill()
        raise Fail("%s: nobody listens after 10 s" % " ".join(self.cmd))

    def __exit__(self, *_):
        self.process.send_signal(self.signal)
        try:
            self.process.wait(600)
        finally:
            self.process.stderr.close()


class Scale:
    """Rows of the same `plot` whose figure is drawn over x."""

    def __init__(self, plot, axis, x):
        self.plot, self.axis, self.x = plot, axis, x


class Bench:
    def __init__(self, folder, tools, runs=5, tiny=False, only=None, budget=None, measure=None, note=None, seconds=4):
        self.dir, self.tools, self.n, self.tiny, self.only, self.note = folder, tools, runs, tiny, only, note
        self.measure, self.seconds = measure, seconds       # seconds: how long fio runs for one figure
        self.until = time.monotonic() + budget if budget else None
        self.family, self.rows = None, []
        self.me = tools[0]
        self.has_nbdkit = bool(shutil.which("nbdkit"))

    # ---- files ----

    def path(self, name):
        return os.path.join(self.dir, name)

    def drop(self, *names):
        for n in names:
            if os.path.exists(self.path(n)):
                os.unlink(self.path(n))

    def pick(self, full, tiny):
        """A size of the row: as it is measured, or as the test of the benchmark itself runs it."""
        return tiny if self.tiny else full

    # ---- rows ----

    def vs(self, fn):
        """Contestants: byre and every peer."""
        return [(t.name, lambda t=t: fn(t)) for t in self.tools]

    def wanted(self, name):
        return not self.only or re.search(self.only, name) is not None

    def row(self, name, unit, higher_is_better, contestants, scale=None):
        if not self.wanted(name):
            return
        res = {"family": self.family, "row": name, "unit": unit, "higher_is_better": higher_is_better, "results": {}}
        if scale:
            res["scale"] = {"plot": scale.plot, "axis": scale.axis, "x": scale.x}
        self.rows.append(res)
        if self.until is not None and time.monotonic() > self.until:
            res["not_measured"] = "no time was left"
            return
        if self.note:
            res["note"] = self.note
        figures = {c: [] for c, _ in contestants}
        for turn in range(self.n):
            first = turn % len(contestants)
            for c, fn in contestants[first:] + contestants[:first]:
                if not self.tiny:
                    os.sync()
                figures[c].append(self.once(name, c, fn))
        for c, got in figures.items():
            res["results"][c] = summary(got)
        add_ratios(res)
        show(res)

    @staticmethod
    def once(row, contestant, fn):
        """(figure, further figures), or None."""
        try:
            v = fn()
        except Fail as e:
            print("  %s: %s: %s" % (row, contestant, e), file=sys.stderr)
            return None
        return v if isinstance(v, tuple) else (v, {})

    # ---- work that rows share ----

    def command(self, cmd, unit=1.0):
        """Runs a command; (its time times unit, CPU and peak memory)."""
        out = self.path("measured")
        self.drop("measured")
        r = subprocess.run([self.measure, out] + cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if r.returncode != 0:
            raise Fail("%s: exit %d: %s" % (" ".join(cmd), r.returncode, r.stdout.strip()[-300:]))
        with open(out) as f:
            _, wall, cpu, kib = f.read().split()
        return float(wall) * unit, {"cpu_s": float(cpu), "peak_MiB": int(kib) / 1024}

    def img_bench(self, tool, fmt, args):
        """`bench` of an image tool, direct I/O."""
        cmd = tool.img + ["bench", "-f", fmt, "-n", "-t", "none"] + args
        out = self.path("measured")
        self.drop("measured")
        found = re.search(r"Run completed in ([0-9.]+) seconds", run([self.measure, out] + cmd))
        if not found:
            raise Fail("no figure from " + " ".join(cmd))
        with open(out) as f:
            _, _, cpu, kib = f.read().split()
        count = int(args[args.index("-c") + 1])
        return float(found.group(1)), {"cpu_s_per_M": float(cpu) * 1e6 / count, "peak_MiB": int(kib) / 1024}

    def fill(self, fmt, name, size):
        """An image with every cluster allocated, made by the peer."""
        self.drop(name)
        run(["qemu-img", "create", "-q", "-f", fmt, self.path(name), str(size)])
        step = min(size, 64 * MIB)
        run(["qemu-io", "-n", "-f", fmt] + sum((["-c", "write -P 85 %d %d" % (o, step)] for o in range(0, size, step)), []) + [self.path(name)])

    def warm(self, *names):
        """Into the page cache: a buffered row begins with it full for everybody."""
        for n in names:
            with open(self.path(n), "rb", buffering=0) as f:
                while f.read(4 * MIB):
                    pass

    def fio_figures(self, words, rw, bs):
        out = run(["fio", "--name=b", "--rw=" + rw, "--bs=" + bs, "--time_based", "--runtime=%s" % self.pick("%gs" % self.seconds, "200ms"), "--randseed=7",
                   "--norandommap", "--output-format=json", "--group_reporting"] + words)
        return json.loads(out[out.index("{"):])["jobs"][0]["read" if "read" in rw else "write"]

    def fio(self, tool, image, fmt, rw, bs, depth, size, cache="none", jobs=1, tcp=False, threads=None):
        """fio's NBD client against a server: k requests/s, or MB/s for blocks of 1 MiB; CPU and memory of the server alone."""
        with Server(self, tool, image, fmt, cache, tcp, threads) as s:
            before = cpu_seconds(s.pid)
            words = ["--ioengine=nbd", "--uri=" + s.uri, "--iodepth=%d" % depth, "--size=%d" % size, "--numjobs=%d" % jobs]
            if jobs > 1 and "rand" not in rw:
                words[-2] = "--size=%d" % (size // jobs)
                words.append("--offset_increment=%d" % (size // jobs))
            job = self.fio_figures(words, rw, bs)
            cpu, peak = cpu_seconds(s.pid) - before, memory_of(s.pid)
        more = {"cpu_s_per_M": cpu * 1e6 / max(job["total_ios"], 1), "peak_MiB": peak}
        return (job["bw_bytes"] / 1e6 if bs == "1M" else job["iops"] / 1000), more

    def fio_file(self, image, rw, bs, depth, size, direct, jobs=1):
        """The ceiling: fio on the flat file itself, without any server."""
        job = self.fio_figures(["--ioengine=io_uring", "--invalidate=0", "--filename=" + self.path(image), "--direct=%d" % direct, "--iodepth=%d" % depth,
                                "--size=%d" % size, "--numjobs=%d" % jobs], rw, bs)
        return job["bw_bytes"] / 1e6 if bs == "1M" else job["iops"] / 1000


def summary(got):
    """Of one contestant: median, min, max, medians of the further figures; or how many runs failed."""
    good = [v for v in got if v is not None]
    if not good or len(good) != len(got):
        return {"failed": len(got) - len(good)}
    figures = [v[0] for v in good]
    res = {"median": statistics.median(figures), "min": min(figures), "max": max(figures), "runs": figures}
    for k in good[0][1]:
        res[k] = statistics.median(v[1][k] for v in good)
    return res


def add_ratios(res):
    """byre's ratio to each of the others: above 1, byre is better."""
    mine = res["results"].get("byre", {}).get("median")
    for c, r in res["results"].items():
        if c != "byre" and mine and r.get("median"):
            r["byre_ratio"] = mine / r["median"] if res["higher_is_better"] else r["median"] / mine


PLAIN = ("median", "min", "max", "byre_ratio", "runs", "failed")


def show(res):
    print(res["row"])
    for c, r in res["results"].items():
        if "median" not in r:
            print("    %-16s FAILED %d times" % (c, r["failed"]))
            continue
        more = "".join("  %s %.4g" % (k, v) for k, v in r.items() if k not in PLAIN)
        ratio = "  byre is %.2fx" % r["byre_ratio"] if "byre_ratio" in r else ""
        print("    %-16s %10.3f %-6s (%.3f .. %.3f)%s%s" % (c, r["median"], res["unit"], r["min"], r["max"], more, ratio))
    sys.stdout.flush()
