#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""run.py: byre and its peers, side by side, in one run.

Every row runs byre and each peer that is found, interleaved (A B A B ...), on the same folder, and prints the
median, minimum and maximum of each, and byre's ratio to the best peer (above 1: byre is faster). Comparisons are
at the same cache mode and the same durability. bench/README.md says what each row means and what not to conclude.
"""
import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
FIRST_WRITES = 15360
DISK = 2 << 30          # size of the disk of the random and sequential rows, bytes


class Fail(Exception):
    pass


def run(cmd, **kw):
    r = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if r.returncode != 0:
        raise Fail("%s: exit %d: %s" % (" ".join(cmd), r.returncode, r.stdout.strip()[-300:]))
    return r.stdout


def on_disk(path):
    """Is the folder on a real disk (not memory)?"""
    return run(["stat", "-f", "-c", "%T", path]).strip() not in ("tmpfs", "ramfs")


class Tool:
    """One set of programs: img (create, bench, convert) and nbd (a server)."""

    def __init__(self, name, img, nbd):
        self.name, self.img, self.nbd = name, img, nbd

    def serve(self, image, fmt, sock, cache, poll=0.025):
        if self.name == "byre":
            cmd = self.nbd + ["--nbd", "unix:" + sock, "-f", fmt, "-t", cache, image]
        else:
            cmd = self.nbd + ["-t", "-e", "0", "-k", sock, "-f", fmt, "--cache=" + cache, "--aio=io_uring", image]
        p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(int(10 / poll)):
            if os.path.exists(sock):
                return p
            if p.poll() is not None:
                raise Fail("%s: %s" % (" ".join(cmd), p.stderr.read().decode()[-300:]))
            time.sleep(poll)
        p.kill()
        raise Fail("%s: no socket after 10 s" % " ".join(cmd))


def find_tools(byre, prefix):
    tools = [Tool("byre", [byre], [byre, "serve"])]
    seen = set()
    for d in ([os.path.join(prefix, "bin")] if prefix else []) + ["/usr/bin"]:
        img, nbd = os.path.join(d, "qemu-img"), os.path.join(d, "qemu-nbd")
        if not (os.path.exists(img) and os.path.exists(nbd)):
            continue
        version = re.search(r"version (\d+\.\d+\.\d+)", run([img, "--version"])).group(1)
        if version not in seen:
            seen.add(version)
            tools.append(Tool("qemu " + version, [img], [nbd]))
    return tools


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, args):
        self.dir = args.dir
        self.n = args.runs
        self.tools = find_tools(args.byre, args.peer_prefix)
        self.rows = []

    def path(self, name):
        return os.path.join(self.dir, name)

    def drop(self, *names):
        for n in names:
            if os.path.exists(self.path(n)):
                os.unlink(self.path(n))

    def row(self, name, unit, higher_is_better, contestants, extra=None):
        """contestants: list of (name, function -> value or (value, extra dict))."""
        got = {c: [] for c, _ in contestants}
        more = {c: {} for c, _ in contestants}
        for _ in range(self.n):
            for c, fn in contestants:
                try:
                    v = fn()
                except Fail as e:
                    print("  %s: %s: %s" % (name, c, e), file=sys.stderr)
                    got[c].append(None)
                    continue
                if isinstance(v, tuple):
                    for k, x in v[1].items():
                        more[c].setdefault(k, []).append(x)
                    v = v[0]
                got[c].append(v)
        res = {"row": name, "unit": unit, "higher_is_better": higher_is_better, "results": {}}
        for c, vals in got.items():
            good = [v for v in vals if v is not None]
            if len(good) != len(vals):
                res["results"][c] = {"failed": len(vals) - len(good)}
                continue
            res["results"][c] = {"median": statistics.median(good), "min": min(good), "max": max(good)}
            for k, xs in more[c].items():
                res["results"][c][k] = statistics.median(xs)
        self.ratio(res)
        self.rows.append(res)
        self.show(res)

    @staticmethod
    def ratio(res):
        mine = res["results"].get("byre", {}).get("median")
        for c, r in res["results"].items():
            if c != "byre" and mine and r.get("median"):
                r["byre_ratio"] = mine / r["median"] if res["higher_is_better"] else r["median"] / mine

    @staticmethod
    def show(res):
        print(res["row"])
        for c, r in res["results"].items():
            if "median" not in r:
                print("    %-14s FAILED" % c)
                continue
            more = "".join("  %s %.3g" % (k, v) for k, v in r.items() if k not in ("median", "min", "max", "byre_ratio"))
            ratio = "  byre is %.2fx" % r["byre_ratio"] if "byre_ratio" in r else ""
            print("    %-14s %10.3f %-6s (%.3f .. %.3f)%s%s" % (c, r["median"], res["unit"], r["min"], r["max"], more, ratio))
        sys.stdout.flush()

    # ---- rows ----

    def bench_cmd(self, tool, fmt, args):
        out = run(tool.img + ["bench", "-f", fmt, "-n", "-t", "none"] + args)
        m = re.search(r"Run completed in ([0-9.]+) seconds", out)
        if not m:
            raise Fail("no figure in: " + out)
        return float(m.group(1))

    def first_writes(self, qed=False):
        for cluster in ("64K", "1M"):
            for step in ("4K", "64K", "1M"):
                size = max(FIRST_WRITES * {"4K": 4096, "64K": 65536, "1M": 1 << 20}[step], 1 << 20)

                def fresh(tool, fmt, cluster=cluster, step=step, size=size, more=""):
                    self.drop("fw.img")
                    opts = ["-o", "cluster_size=" + cluster + more] if fmt != "raw" else []
                    run(tool.img + ["create", "-q", "-f", fmt] + opts + [self.path("fw.img"), str(size)])
                    return self.bench_cmd(tool, fmt, ["-c", str(FIRST_WRITES), "-s", "4K", "-S", step, "-w", self.path("fw.img")])

                cs = [(t.name, lambda t=t: fresh(t, "qed" if qed else "qcow2")) for t in self.tools]
                cs.append(("byre qcow2", lambda: fresh(self.tools[0], "qcow2", more=",lazy_refcounts=on")) if qed else ("raw file", lambda: fresh(self.tools[0], "raw")))
                self.row("QED, " * qed + "first writes: clusters %s, step %s" % (cluster, step), "s", False, cs)
        self.drop("fw.img")

    def first_writes_backed(self):
        """The same over a backing file that is fully allocated: every first write copies what surrounds it."""
        run(["dd", "if=/dev/urandom", "of=" + self.path("base.raw"), "bs=4M", "count=256", "status=none"])
        features = [("clusters 64K", "cluster_size=64K"), ("clusters 1M", "cluster_size=1M"), ("clusters 64K, extended_l2", "cluster_size=64K,extended_l2=on")]
        for what, options in features:
            for step, count in (("4K", FIRST_WRITES), ("64K", FIRST_WRITES), ("1M", 1024)):

                def fresh(tool, options=options, step=step, count=count):
                    self.drop("fw.img")
                    run(tool.img + ["create", "-q", "-f", "qcow2", "-b", self.path("base.raw"), "-F", "raw", "-o", options, self.path("fw.img")])
                    return self.bench_cmd(tool, "qcow2", ["-c", str(count), "-s", "4K", "-S", step, "-w", self.path("fw.img")])
                self.row("first writes over a backing file: %s, step %s" % (what, step), "s", False, [(t.name, lambda t=t: fresh(t)) for t in self.tools])
        self.drop("fw.img", "base.raw")

    def fill(self, fmt, name):
        self.drop(name)
        run(["qemu-img", "create", "-q", "-f", fmt, self.path(name), str(DISK)])
        run(["qemu-io", "-n", "-f", fmt] + sum((["-c", "write -P 85 %d %d" % (o, 64 << 20)] for o in range(0, DISK, 64 << 20)), []) + [self.path(name)])

    def qed(self):
        """QED by byre, by the peers, and byre's own qcow2 with lazy refcounts."""
        self.first_writes(qed=True)
        self.fill("qed", "rnd.qed")
        self.fill("qcow2", "rnd.qcow2")
        run(["qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", self.path("rnd.qcow2")])
        all_of = [(t.name, t, "qed") for t in self.tools] + [("byre qcow2", self.tools[0], "qcow2")]
        for what, w in (("read", []), ("write", ["-w"])):
            self.row("QED, scattered 4K %s of allocated clusters, depth 64, direct" % what, "s", False,
                     [(n, lambda t=t, f=f, w=w: self.bench_cmd(t, f, ["-c", "60000", "-s", "4K", "-S", str(4096 * 100003)] + w + [self.path("rnd." + f)])) for n, t, f in all_of])
        for rw, bs, depth in (("randread", "4k", 64), ("randwrite", "4k", 64), ("read", "1M", 8), ("write", "1M", 8)):
            self.row("QED, NBD %s %s, depth %d, one connection, cache=none" % (rw, bs, depth), "MB/s" if bs == "1M" else "k/s", True,
                     [(n, lambda t=t, f=f, rw=rw, bs=bs, depth=depth: self.fio(t, "rnd." + f, f, "none", rw, bs, depth)) for n, t, f in all_of])
        self.drop("rnd.qed", "rnd.qcow2", "nbd.sock")

    def random_io(self):
        self.fill("qcow2", "rnd.qcow2")
        self.fill("raw", "rnd.raw")
        step = str(4096 * 100003)           # visits the clusters of the disk in scattered order, the same for everybody
        for what, w in (("read", []), ("write", ["-w"])):
            cs = [(t.name, lambda t=t, w=w: self.bench_cmd(t, "qcow2", ["-c", "60000", "-s", "4K", "-S", step] + w + [self.path("rnd.qcow2")])) for t in self.tools]
            cs.append(("raw file", lambda w=w: self.bench_cmd(self.tools[0], "raw", ["-c", "60000", "-s", "4K", "-S", step] + w + [self.path("rnd.raw")])))
            self.row("scattered 4K %s of allocated clusters, depth 64, direct" % what, "s", False, cs)
        self.drop("rnd.raw")

    def fio(self, tool, image, fmt, cache, rw, bs, depth, seconds=4, size=DISK):
        sock = self.path("nbd.sock")
        self.drop("nbd.sock")
        p = tool.serve(self.path(image), fmt, sock, cache)
        try:
            c0 = cpu_seconds(p.pid)
            out = run(["fio", "--name=b", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + sock, "--rw=" + rw, "--bs=" + bs, "--iodepth=%d" % depth,
                       "--time_based", "--runtime=%d" % seconds, "--output-format=json", "--randseed=7", "--size=%d" % size])
            cpu = cpu_seconds(p.pid) - c0
        finally:
            p.send_signal(signal.SIGTERM)
            p.wait(60)
        job = json.loads(out[out.index("{"):])["jobs"][0]["read" if "read" in rw else "write"]
        if bs == "1M":
            return job["bw_bytes"] / 1e6, {"cpu_s_per_GB": cpu / max(job["io_bytes"] / 1e9, 1e-9)}
        return job["iops"] / 1000, {"cpu_us_per_req": cpu * 1e6 / max(job["total_ios"], 1)}

    def nbd(self):
        if not os.path.exists(self.path("rnd.qcow2")):
            self.fill("qcow2", "rnd.qcow2")
        for cache in ("none", "writeback"):
            for rw, bs, depth in (("randread", "4k", 64), ("randwrite", "4k", 64), ("read", "1M", 8), ("write", "1M", 8)):
                cs = [(t.name, lambda t=t: self.fio(t, "rnd.qcow2", "qcow2", cache, rw, bs, depth)) for t in self.tools]
                self.row("NBD %s %s, depth %d, one connection, cache=%s" % (rw, bs, depth, cache), "MB/s" if bs == "1M" else "k/s", True, cs)
        self.drop("rnd.qcow2", "nbd.sock")

    def convert(self):
        self.drop("src.raw", "src.qcow2", "dst")
        with open(self.path("src.raw"), "wb") as f:
            f.truncate(DISK)
            for off in range(0, DISK, 4 << 20):         # half data, half holes
                f.seek(off)
                f.write(os.urandom(2 << 20))
        run(["qemu-img", "convert", "-O", "qcow2", self.path("src.raw"), self.path("src.qcow2")])

        def one(tool, a, src, b):
            self.drop("dst")
            t = time.monotonic()
            run(tool.img + ["convert", "-f", a, "-O", b, "-t", "writeback", "-W", self.path(src), self.path("dst")])
            return time.monotonic() - t
        for a, src in (("raw", "src.raw"), ("qcow2", "src.qcow2")):
            for b in ("raw", "qcow2"):
                self.row("convert %s to %s, -t writeback -W" % (a, b), "s", False, [(t.name, lambda t=t: one(t, a, src, b)) for t in self.tools])
        self.drop("src.raw", "src.qcow2", "dst")

    def compress(self):
        """A file system full of files, compressed by each and unpacked again; both durable at the end."""
        self.drop("src.raw", "src.qcow2", "dst")
        with open(self.path("src.raw"), "wb") as f:
            f.truncate(1 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "150000", "-d", "/usr/share", self.path("src.raw")], stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)         # when it does not all fit, what does is enough

        def one(tool, words, src):
            self.drop("dst")
            cmd = tool.img + ["convert", "-t", "writeback", "-W", "-m", "16"] + words + [self.path(src), self.path("dst")]
            t = time.monotonic()
            p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL)
            _, status, usage = os.wait4(p.pid, 0)
            t = time.monotonic() - t
            if status:
                raise Fail("%s: status %d" % (" ".join(cmd), status))
            return t, {"cpu_s": usage.ru_utime + usage.ru_stime, "MB": os.stat(self.path("dst")).st_size / 1e6}
        for kind in ("zlib", "zstd"):
            words = ["-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=" + kind]
            self.row("compress, %s" % kind, "s", False, [(t.name, lambda t=t: one(t, words, "src.raw")) for t in self.tools])
            run(["qemu-img", "convert"] + words + [self.path("src.raw"), self.path("src.qcow2")])
            self.row("unpack, %s" % kind, "s", False, [(t.name, lambda t=t: one(t, ["-f", "qcow2", "-O", "raw"], "src.qcow2")) for t in self.tools])
        self.drop("src.raw", "src.qcow2", "dst")

    def check(self):
        def one(tool, image):
            t = time.monotonic()
            p = subprocess.Popen(tool.img + ["check", image], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(p.pid, 0)
            if status:
                raise Fail("%s check %s: status %d" % (tool.name, image, status))
            return (time.monotonic() - t) * 1000, {"cpu_ms": (usage.ru_utime + usage.ru_stime) * 1000, "MiB": usage.ru_maxrss / 1024}
        for size, cluster in (("1T", "64K"), ("256G", "16K"), ("1T", "2M")):
            self.drop("check.qcow2")            # fully mapped, its data a hole
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata,cluster_size=" + cluster, self.path("check.qcow2"), size])
            self.row("check of a fully mapped image of %s, clusters %s" % (size, cluster), "ms", False,
                     [(t.name, lambda t=t: one(t, self.path("check.qcow2"))) for t in self.tools])
        self.drop("check.qcow2")

    def chain(self):
        size, unit = 1 << 30, 65536
        for depth in (1, 8, 64):
            names = ["chain%d.qcow2" % i for i in range(depth)]
            owner = [i * 40503 % 65521 % depth for i in range(size // unit)]      # each cluster lies in one layer, scattered
            for i, name in enumerate(names):
                run(["qemu-img", "create", "-q", "-f", "qcow2"] + (["-b", names[i - 1], "-F", "qcow2"] if i else []) + [self.path(name), str(size)])
                writes = "".join("write -q -P %d %d %d\n" % (i + 1, k * unit, unit) for k, o in enumerate(owner) if o == i)
                subprocess.run(["qemu-io", "-f", "qcow2", self.path(name)], input=writes.encode(), stdout=subprocess.DEVNULL, check=True)
            cs = [(t.name, lambda t=t: self.fio(t, names[-1], "qcow2", "writeback", "randread", "4k", 64, size=size)) for t in self.tools]
            self.row("NBD randread 4k, depth 64, a chain of %d" % depth, "k/s", True, cs)
            self.drop(*names)

    # ---- from the start of a server to its first answers ----

    def unclean(self, fmt, name):
        """Sets the mark that a program leaves which was killed: qcow2's dirty bit, QED's need-check bit."""
        with open(self.path(name), "r+b") as f:
            f.seek(79 if fmt == "qcow2" else 16)
            bits = f.read(1)[0] | (1 if fmt == "qcow2" else 2)
            f.seek(79 if fmt == "qcow2" else 16)
            f.write(bytes([bits]))

    def answers(self, tool, fmt, name, place, dirty):
        import nbd
        if dirty:
            self.unclean(fmt, name)
        self.drop("nbd.sock")
        begin = time.monotonic()
        p = tool.serve(self.path(name), fmt, self.path("nbd.sock"), "writeback", 0.0005)
        try:
            h = nbd.NBD()
            while time.monotonic() < begin + 60:
                try:
                    h.connect_unix(self.path("nbd.sock"))
                    break
                except nbd.Error:               # the socket is there and nobody listens yet
                    h = nbd.NBD()
                    time.sleep(0.0005)
                if p.poll() is not None:
                    raise Fail("%s: %s" % (tool.name, p.stderr.read().decode()[-300:]))
            up = time.monotonic()
            h.pread(4096, 0)
            read = time.monotonic()
            h.pwrite(b"\x5a" * 4096, place)
            wrote = time.monotonic()
            h.shutdown()
        finally:
            p.send_signal(signal.SIGKILL if dirty else signal.SIGTERM)
            p.wait(600)
            time.sleep(0.1)                     # the kernel ends the requests of a killed program, and its locks, a little later
        return (wrote - begin) * 1000, {"up_ms": (up - begin) * 1000, "read_ms": (read - up) * 1000, "write_ms": (wrote - read) * 1000}

    def open_time(self):
        """The image has tables for its whole disk up to 1 TiB; the write goes to a place that has no cluster."""
        for fmt, size, tables, options in (("qcow2", 1 << 30, True, "lazy_refcounts=on"), ("qcow2", 1 << 40, True, "lazy_refcounts=on"),
                                           ("qcow2", 64 << 40, False, "lazy_refcounts=on,cluster_size=2M"), ("qed", 64 << 40, False, "")):
            self.drop("open.img")
            words = ["-o", ",".join(w for w in (options, "preallocation=metadata" if tables else "") if w)] if options else []
            run(["qemu-img", "create", "-q", "-f", fmt] + words + [self.path("open.img"), str(size)])
            if tables:
                run(["qemu-img", "resize", "-q", self.path("open.img"), "+1G"])
            place = [size if tables else size // 2]
            human = "%d GiB" % (size >> 30) if size < 1 << 40 else "%d TiB" % (size >> 40)
            for dirty in (False, True):
                def one(t, fmt=fmt, dirty=dirty):
                    place[0] += 4 << 20         # never written before
                    return self.answers(t, fmt, "open.img", place[0], dirty)
                self.row("start to first new cluster written, %s of %s, %s" % (fmt, human, "unclean" if dirty else "clean"), "ms", False,
                         [(t.name, lambda t=t: one(t)) for t in self.tools])
        self.drop("open.img", "nbd.sock")

    ROWS = {"first-writes": first_writes, "first-writes-backed": first_writes_backed, "random": random_io, "nbd": nbd, "convert": convert, "compress": compress, "check": check, "chain": chain, "qed": qed, "open": open_time}


def report(b, out_dir, machine):
    os.makedirs(out_dir, exist_ok=True)
    with open(os.path.join(out_dir, "report.json"), "w") as f:
        json.dump({"machine": machine, "rows": b.rows}, f, indent=1)
    with open(os.path.join(out_dir, "report.md"), "w") as f:
        f.write("# Benchmark\n\n%s\n\n" % ", ".join("%s: %s" % kv for kv in machine.items()))
        f.write("| row | who | median | min | max | unit | byre is |\n|---|---|---|---|---|---|---|\n")
        for r in b.rows:
            for c, v in r["results"].items():
                if "median" in v:
                    f.write("| %s | %s | %.3f | %.3f | %.3f | %s | %s |\n" % (r["row"], c, v["median"], v["min"], v["max"], r["unit"], "%.2fx" % v["byre_ratio"] if "byre_ratio" in v else ""))
                else:
                    f.write("| %s | %s | failed | | | | |\n" % (r["row"], c))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--byre", default=os.path.join(ROOT, "build", "byre"))
    ap.add_argument("--peer-prefix", default=os.environ.get("PEER_PREFIX"), help="a second set of peers: PREFIX/bin")
    ap.add_argument("--dir", default=os.environ.get("BENCH_DIR") or os.path.join(ROOT, "build", "bench"))
    ap.add_argument("--rows", default=os.environ.get("ROWS") or ",".join(Bench.ROWS))
    ap.add_argument("--runs", type=int, default=int(os.environ.get("RUNS") or 5))
    ap.add_argument("--out", default=os.path.join(HERE, "out"))
    a = ap.parse_args()
    os.makedirs(a.dir, exist_ok=True)
    if not on_disk(a.dir):
        sys.exit("bench: %s is in memory; give a folder on a disk with BENCH_DIR=" % a.dir)
    if not os.path.exists(a.byre):
        sys.exit("bench: %s is missing; run make first" % a.byre)
    b = Bench(a)
    rev = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    machine = {"commit": rev, "kernel": platform.release(), "cores": os.cpu_count(), "file system": run(["stat", "-f", "-c", "%T", a.dir]).strip(),
               "peers": " ".join(t.name for t in b.tools[1:]), "runs": a.runs}
    print(", ".join("%s: %s" % kv for kv in machine.items()))
    for r in a.rows.split(","):
        if r not in Bench.ROWS:
            sys.exit("bench: no row '%s'; there are: %s" % (r, ", ".join(Bench.ROWS)))
        Bench.ROWS[r](b)
    report(b, a.out, machine)
    print("report: %s" % os.path.join(a.out, "report.md"))
    failed = sum("median" not in v for r in b.rows for v in r["results"].values())
    if failed:
        sys.exit("bench: %d results are missing" % failed)


if __name__ == "__main__":
    main()
