# SPDX-License-Identifier: MIT
"""What it costs to have a disk served: the time to the first answers, and memory."""
import os
import signal
import subprocess
import time

from harness import Fail, Scale, Server, memory_of, run
from rows import family


def set_unclean(b, fmt, name):
    """The mark that a killed program leaves: qcow2's dirty bit, QED's need-check bit."""
    at, bit = (79, 1) if fmt == "qcow2" else (16, 2)
    with open(b.path(name), "r+b") as f:
        f.seek(at)
        bits = f.read(1)[0] | bit
        f.seek(at)
        f.write(bytes([bits]))


def connect(s, begin):
    import nbd
    while time.monotonic() < begin + 60:
        h = nbd.NBD()
        try:
            h.connect_unix(s.sock)
            return h
        except nbd.Error:               # the socket is there and nobody listens yet
            time.sleep(0.0005)
        if s.process.poll() is not None:
            raise Fail("%s: %s" % (" ".join(s.cmd), s.process.stderr.read().decode()[-300:]))
    raise Fail("%s: no client gets in after 60 s" % " ".join(s.cmd))


def answers(b, tool, fmt, name, place, dirty):
    if dirty:
        set_unclean(b, fmt, name)
    begin = time.monotonic()
    with Server(b, tool, name, fmt, "writeback", poll=0.0005) as s:
        if dirty:
            s.signal = signal.SIGKILL
        h = connect(s, begin)
        up = time.monotonic()
        h.pread(4096, 0)
        read = time.monotonic()
        h.pwrite(b"\x5a" * 4096, place)
        wrote = time.monotonic()
        h.shutdown()
    if dirty:
        time.sleep(0.1)                     # the kernel ends the requests of a killed program, and its locks, a little later
    return (wrote - begin) * 1000, {"up_ms": (up - begin) * 1000, "read_ms": (read - up) * 1000, "write_ms": (wrote - read) * 1000}


@family("open", "from the start of a server to its first read and its first new cluster, clean and after a kill")
def open_time(b):
    """The image has tables for its whole disk up to 1 TiB; the write goes to a place that has no cluster."""
    for fmt, size, tables, options in (("qcow2", 1 << 30, True, "lazy_refcounts=on"), ("qcow2", 1 << 40, True, "lazy_refcounts=on"),
                                       ("qcow2", 64 << 40, False, "lazy_refcounts=on,cluster_size=2M"), ("qed", 64 << 40, False, "")):
        size = min(size, b.pick(size, 1 << 32))
        b.drop("open.img")
        words = ["-o", ",".join(w for w in (options, "preallocation=metadata" if tables else "") if w)] if options else []
        run(["qemu-img", "create", "-q", "-f", fmt] + words + [b.path("open.img"), str(size)])
        if tables:
            run(["qemu-img", "resize", "-q", b.path("open.img"), "+1G"])
        place = [size if tables else size // 2]
        human = "%d GiB" % (size >> 30) if size < 1 << 40 else "%d TiB" % (size >> 40)
        for dirty in (False, True):
            def one(t):
                place[0] += 4 << 20         # never written before
                return answers(b, t, fmt, "open.img", place[0], dirty)
            state = "unclean" if dirty else "clean"
            b.row("start to first new cluster written, %s of %s, %s" % (fmt, human, state), "ms", False, b.vs(one),
                  Scale("start, %s" % state, "GiB", size >> 30) if fmt == "qcow2" else None)
    b.drop("open.img", "nbd.sock")


def own_memory(pid):
    """MiB that are there now; of those what is not a file (of programs and libraries), and the peak."""
    return memory_of(pid, "VmRSS"), {"of_its_own_MiB": memory_of(pid, "RssAnon"), "peak_MiB": memory_of(pid)}


@family("memory", "memory of a server with one idle disk, and of a daemon with 100")
def memory(b):
    b.drop("idle.qcow2")
    run(["qemu-img", "create", "-q", "-f", "qcow2", b.path("idle.qcow2"), "10G"])

    def one_disk(t):
        with Server(b, t, "idle.qcow2", "qcow2", "writeback") as s:
            h = connect(s, time.monotonic())
            h.pread(4096, 0)
            now = own_memory(s.pid)
            h.shutdown()
            return now
    b.row("memory of a server, one idle disk", "MiB", False, b.vs(one_disk))

    count = b.pick(100, 3)
    names = ["idle%d.qcow2" % i for i in range(count)]
    for n in names:
        run(["qemu-img", "create", "-q", "-f", "qcow2", b.path(n), "10G"])
    b.row("memory of a daemon, %d idle disks" % count, "MiB", False, [(t.name, lambda t=t: many_disks(b, t, names)) for t in b.tools if t.daemon])
    b.drop("idle.qcow2", "nbd.sock", "nbd.pid", *names)


def many_disks(b, tool, names):
    cmd = tool.daemon + ["--nbd-server", "addr.type=unix,addr.path=" + b.path("nbd.sock"), "--pidfile", b.path("nbd.pid")]
    for i, n in enumerate(names):
        cmd += ["--blockdev", "driver=file,node-name=f%d,filename=%s" % (i, b.path(n)), "--blockdev", "driver=qcow2,node-name=n%d,file=f%d" % (i, i),
                "--export", "type=nbd,id=e%d,node-name=n%d,name=n%d,writable=on" % (i, i, i)]
    b.drop("nbd.sock", "nbd.pid")
    p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(600):                # the number of the process is written when all of it is there
            if os.path.exists(b.path("nbd.pid")) or p.poll() is not None:
                break
            time.sleep(0.05)
        if p.poll() is not None or not os.path.exists(b.path("nbd.pid")):
            raise Fail("%s ...: %s" % (" ".join(cmd[:3]), p.stderr.read().decode()[-300:] if p.poll() is not None else "is not there after 30 s"))
        return own_memory(p.pid)
    finally:
        p.send_signal(signal.SIGTERM)
        p.wait(60)
        p.stderr.close()
