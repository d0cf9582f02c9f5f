# SPDX-License-Identifier: MIT
"""byre io against qemu-io (FEATURES area 6)."""
import os
import re
import signal
import subprocess
import time

import pytest

from lib import peers, run
from twin import Holder

# Numbers that depend on the clock: "00.00 sec (34.448 MiB/sec and 551.1752 ops/sec)", and the last three fields of -C.
CLOCK = [(re.compile(r"\d\d\.\d\d sec \([^)]*\)"), "TIME"), (re.compile(r"^(\d+,\d+),.*$", re.M), r"\1,TIME")]


def timeless(text):
    for pattern, by in CLOCK:
        text = pattern.sub(by, text)
    return text


def both(twin, *commands, options=(), image="x", same=True):
    """Runs the commands in both; exit codes equal, standard output equal but for times."""
    words = list(options)
    for command in commands:
        words += ["-c", command]
    ours, theirs = twin.io(*words, *([image] if image else []))
    assert ours.code == theirs.code, f"{ours}\n=== the peer:\n{theirs}"
    if same:
        assert timeless(ours.out) == timeless(theirs.out), f"{ours}\n=== the peer:\n{theirs}"
    return ours, theirs


@pytest.fixture
def disk(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "4M"], ["qemu-io", "-c", "write -P 0xaa 0 128k", "x"],
              ["qemu-img", "create", "-q", "-f", "raw", "r", "1M"])
    return twin


GOOD = [["write -P 0xaa 0x1000 4k", "read -P 0xaa 4k 4k"], ["write 1M 1M", "read -P 0xcd 1M 1M"], ["read -v 4080 32"], ["read -v 0 20"],
        ["read -P 0xaa -s 512 -l 512 0 4k"], ["read -P 0xaa -s 4k 0 4k"], ["read -C 0 4k"], ["read -q 0 4k"], ["read -p 0 512"], ["r 0 4k", "w 0 4k"],
        ["readv 0 512 1024 2048"], ["readv -v 0 16 16"], ["readv -P 0xaa 0 512 512"], ["writev -P 5 0 4k 8k", "read -P 5 0 12k"],
        ["writev -P 1 0 3000 1000", "read -P 1 0 4000"], ["write -z 64k 64k", "read -P 0 64k 64k"], ["write -z -u 64k 64k", "map"], ["write -f 0 4k"],
        ["write -f -q 0 4k"], ["write -P 7 512 100", "read -P 7 512 100"], ["write -z 3 4"], ["flush"], ["f"], ["length"], ["l"],
        ["alloc 0 4M", "alloc 0", "alloc 1M 1", "alloc 1M 0", "alloc 8M 1", "alloc 64k 1M"], ["map"], ["a 0 1M"], ["truncate 8M", "length"],
        ["truncate -m metadata 6M", "length", "map"], ["discard 0 64k", "read -P 0 0 64k", "map"], ["discard -q 0 64k"], ["discard -C 0 64k"], ["d 0 64k"],
        ["read 0 0", "write 0 0"], ["sleep 10"], ["help read"] and ["length", "length"], ["quit", "read 0 4k"], ["q"], [""], ["  read   0   512  "],
        ["reopen -r", "length", "reopen -w", "write 0 4k"], ["reopen -c none", "read 0 4k"], ["close", "open x", "length"], ["close"],
        ["aio_write -P 9 0 64k", "aio_flush", "read -P 9 0 64k"], ["aio_read -P 0xaa 0 64k", "aio_flush"], ["aio_read -v 0 16", "aio_flush"],
        ["aio_write -q 0 4k", "aio_flush"], ["aio_write -C 0 64k", "aio_flush"],
        ["aio_write -i 0 4k", "aio_flush"], ["aio_read -P 8 0 64k", "aio_flush"], ["aio_read 0 4k 4k 512", "aio_flush"]]


@pytest.mark.parametrize("commands", GOOD, ids=lambda c: "; ".join(c))
def test_same_output(disk, commands):
    """FEATURES 6.002 .. 6.013, 11.034: output, exit code and content equal the peer's"""
    both(disk, *commands)
    run.qemu_img("compare", f"{disk.ours}/x", f"{disk.theirs}/x")
    run.qemu_img("check", f"{disk.ours}/x")


BAD = [["read -P 0x11 0 4k"], ["read -P 0x11 -s 512 -l 512 0 4k"], ["readv -P 0x11 0 4k"], ["read 0 1G"], ["read 100M 4k"], ["read 9M 0"], ["write 4M 1"],
       ["discard 10M 64k"], ["read 0"], ["read"], ["read 0 x"], ["read x 5"], ["read -1 5"], ["read 0 3G"], ["read 0 -1"], ["bogus"], ["read -Z 0 4k"],
       ["write -u 0 4k"], ["write -n 0 4k"], ["write -z -P 3 0 4k"], ["write -P 300 0 4k"], ["write -P x 0 4k"], ["write -s /nonexistent 0 4k"],
       ["aio_write -u 0 4k"], ["truncate"], ["truncate x"], ["truncate -m bogus 9M"], ["truncate 1000"], ["sleep"], ["sleep x"], ["sleep -5"], ["sigraise x"],
       ["length 1"], ["map 1"], ["open foo"], ["close", "read 0 4k"], ["close", "length"], ["reopen -r -w"], ["reopen -c bogus"], ["reopen -r", "write 0 4k"],
       ["read -P 0xaa -s 2k -l 4k 0 4k"], ["alloc x"], ["alloc 0 x"], ["discard 0 3G"], ["discard x 1"], ["aio_read x"], ["readv 0"],
       ["writev 0 512 x"], ["close", "open -t bogus x"], ["close", "open missing"], ["bogus", "length"], ["read 0 70s"]]


@pytest.mark.parametrize("commands", BAD, ids=lambda c: "; ".join(c))
def test_same_failure(disk, commands):
    """FEATURES 6.002, 11.034: one failed command makes the exit code 1; the image is unharmed"""
    ours, _ = both(disk, *commands, same=False)
    assert ours.code == 1 and (ours.err or ours.out)
    run.qemu_img("compare", f"{disk.ours}/x", f"{disk.theirs}/x")


def test_pattern_text(disk):
    """FEATURES 6.004: the line that scripts look for"""
    ours, theirs = both(disk, "read -P 0x11 0 4k")
    assert "Pattern verification failed at offset 0, 4096 bytes" in ours.out


def test_failed_lines(disk):
    """FEATURES 6.004: the form of the line when a request fails"""
    ours, theirs = both(disk, "read 100M 4k", "write 100M 4k", "discard 100M 4k", "writev 100M 4k", "readv 100M 4k", same=False)
    assert ours.out == theirs.out


def test_options(disk):
    """FEATURES 6.001, 6.019, 3.004: the program's own options"""
    both(disk, "read -P 0xaa 0 4k", options=["-r"])
    both(disk, "write 0 4k", options=["-r"], same=False)
    both(disk, "read -P 0xaa 0 4k", options=["-n"])
    both(disk, "write -P 3 1000 5000", "read -P 3 1000 5000", options=["-m"])
    both(disk, "write -P 3 1000 5000", "read -P 3 1000 5000", options=["-m", "-n"])
    both(disk, "read -P 0xaa 0 4k", options=["-i", "threads"])
    both(disk, "read -P 0xaa 0 4k", options=["-n", "-k"])
    both(disk, "read -P 0xaa 0 4k", options=["-k"], same=False)
    both(disk, "read -P 0xaa 0 4k", options=["-t", "none"])
    both(disk, "read 0 4k", options=["-t", "bogus"], same=False)
    both(disk, "read 0 4k", options=["-i", "bogus"], same=False)
    both(disk, "read 0 4k", options=["-d", "bogus"], same=False)
    both(disk, "read 0 4k", options=["-U"], same=False)
    both(disk, "read 0 4k", options=["-U", "-r"])
    both(disk, "length", options=["--image-opts"], image="driver=qcow2,file.filename=x")
    both(disk, "length", options=["-f", "raw"], image="r")
    both(disk, "info", options=["-f", "raw"], image="r")
    both(disk, "alloc 0 1M", "map", options=["-f", "raw"], image="r")
    both(disk, "read 0 4k", image="missing", same=False)
    both(disk, "read 0 4k", image=None, same=False)
    both(disk, "open -r x", "length", image=None)
    both(disk, "open -o driver=qcow2,file.filename=x", "length", image=None)
    both(disk, "open -o driver=qcow2 x", "length", image=None)
    both(disk, "open -r x", "write 0 1k", image=None, same=False)
    both(disk, "open x", "open x", image=None, same=False)
    ours, theirs = disk.io("--bogus")
    assert ours.code == theirs.code == 1
    ours, theirs = disk.io("a", "b")
    assert ours.code == theirs.code == 1


def test_info(disk):
    """FEATURES 6.011: what info prints"""
    both(disk, "info")
    both(disk, "i")


def test_snapshot_option(disk):
    """FEATURES 6.001, 11.013: changes go to a temporary file that is gone at the end"""
    before = open(f"{disk.ours}/x", "rb").read()
    done = run.byre("io", "-s", "-c", "write -P 7 0 4k", "-c", "read -P 7 0 4k", "-c", "read -P 0xaa 4k 4k", "x", cwd=disk.ours,
                    env={"TMPDIR": disk.ours})
    assert done.code == 0
    assert open(f"{disk.ours}/x", "rb").read() == before
    assert sorted(os.listdir(disk.ours)) == ["r", "x"]


def test_guessed_raw_is_protected(disk):
    """FEATURES 3.027: the first sector of a guessed raw image does not become a header"""
    with open(f"{disk.ours}/magic", "wb") as f:
        f.write(open(f"{disk.ours}/x", "rb").read(512))
    run.byre("io", "-c", "write -s magic 0 512", "r", cwd=disk.ours, code=1)
    run.byre("io", "-f", "raw", "-c", "write -s magic 0 512", "r", cwd=disk.ours)


@pytest.mark.parametrize("options", [[], ["-n"], ["-n", "-m"], ["-i", "threads"]], ids=" ".join)
def test_many_buffers(disk, options):
    """FEATURES 11.019: more buffers than the kernel takes at once; the peer refuses them"""
    run.byre("create", "-q", "-f", "raw", "d", "2M", cwd=disk.ours)
    lengths = " ".join(["512"] * 2000)
    for verb, byte, more in (("writev", 7, []), ("aio_write", 8, ["-c", "aio_flush"])):
        run.byre("io", "-f", "raw", *options, "-c", f"{verb} -q -P {byte} 1000 {lengths}", *more, "d", cwd=disk.ours)
        data = open(f"{disk.ours}/d", "rb").read()
        assert data == bytes(1000) + bytes([byte]) * 1024000 + bytes((2 << 20) - 1025000)
        run.byre("io", "-f", "raw", *options, "-c", f"readv -q -P {byte} 1000 {lengths}", "d", cwd=disk.ours)
    done = run.byre("io", *options, "-c", f"writev -q -P 9 64k {lengths}", "-c", f"readv -P 9 64k {lengths}", "x", cwd=disk.ours)
    assert "read 1024000/1024000 bytes at offset 65536" in done.out
    run.qemu_img("check", f"{disk.ours}/x")
    run.qemu_io(f"{disk.ours}/x", "read -P 9 64k 1024000", "read -P 0xaa 0 64k")


def test_pattern_file(disk):
    """FEATURES 6.006: -s repeats the file"""
    for folder in (disk.ours, disk.theirs):
        with open(f"{folder}/p", "wb") as f:
            f.write(bytes(range(100)))
    both(disk, "write -s p 0 1000", "read -v 0 256")
    run.qemu_img("compare", f"{disk.ours}/x", f"{disk.theirs}/x")


def test_overlapping_aio_keeps_the_order(disk):
    """FEATURES 6.008: the content is that of the commands in order"""
    for image, fmt, aio in (("x", "qcow2", "io_uring"), ("r", "raw", "threads")):
        commands = [f"aio_write -q -P {i + 1} {i * 700} 200000" for i in range(120)]
        run.byre("io", "-f", fmt, "-i", aio, *sum((["-c", c] for c in commands + ["aio_flush"]), []), image, cwd=disk.ours)
        run.byre("io", "-f", fmt, *sum((["-c", f"read -q -P {i + 1} {i * 700} 700"] for i in range(119)), []), image, cwd=disk.ours)


def test_overlapping_aio_does_not_overtake(disk):
    """FEATURES 6.008: a request waits for one that touches the same bytes; one that does not, runs beside it"""
    peers.need("strace")
    run.byre("create", "-q", "-f", "raw", "-o", "preallocation=full", "d", "32M", cwd=disk.ours)

    def second_overlapped(offset):
        """Was the second request under way before the first had ended?"""
        run.run("strace", "-f", "-o", "trace", "-e", "trace=pwrite64,pwritev,pwritev2", run.BYRE, "io", "-f", "raw", "-i", "threads", "-c", "aio_write -q 0 30M",
                "-c", f"aio_write -q {offset} 64k", "-c", "aio_flush", "d", cwd=disk.ours)
        text = open(f"{disk.ours}/trace").read()
        return text.index("65536") < text.index("= 31457280")

    assert not any(second_overlapped("1M") for _ in range(3))
    assert any(second_overlapped("31M") for _ in range(20))       # on a busy machine a thread may come late, not always


def test_aio_is_waited_for_at_the_end(disk):
    """FEATURES 6.008: no aio_flush is needed for the data to arrive"""
    run.byre("io", "-c", "aio_write -q -P 5 0 1M", "x", cwd=disk.ours)
    run.qemu_io(f"{disk.ours}/x", "read -P 5 0 1M")


def test_interactive(disk):
    """FEATURES 6.001: commands from standard input, with a prompt"""
    text = "length\nread -P 0xaa 0 4k\nbogus\nquit\nlength\n"
    ours = run.run(run.BYRE, "io", "x", cwd=disk.ours, stdin=text, code=1)
    theirs = run.run(peers.need("qemu-io"), "x", cwd=disk.theirs, stdin=text, code=None)
    assert timeless(ours.out).replace("byre io> ", "qemu-io> ") == timeless(theirs.out)


def test_help(disk):
    """FEATURES 6.018: every command of the peer's list is listed, or known to come later"""
    ours, theirs = both(disk, "help", image=None, same=False)
    names = [{line.split()[0] for line in done.out.splitlines() if " -- " in line} for done in (ours, theirs)]
    assert names[1] <= names[0]
    for name in ("zone_report", "zrp", "zone_append"):               # of newer peers
        assert "not supported yet" in run.byre("io", "-c", f"{name} a", "x", cwd=disk.ours, code=1).err
    both(disk, "help bogus")
    for name in sorted(names[0]):
        assert run.byre("io", "-c", f"help {name}").out.startswith(name)


def test_no_trace_points(disk):
    """FEATURES 6.001: there are none, and who asks for some is told"""
    assert "no trace points" in run.byre("io", "-T", "x", "-c", "length", "x", cwd=disk.ours, code=1).err


def test_copy_on_read(tmp_path):
    """FEATURES 6.001, 11.022: -C keeps what is read from the backing image, of the program, of open, with -s and through reopen, as the peer's does; reads that
    wait in aio, too. A disk that cannot be written is refused"""
    commands = [(["-C", "-c", "read -P 9 130k 1", "-c", "map", "t"]), (["-c", "open -C t", "-c", "read -P 9 0 512", "-c", "map"]), (["-C", "-c", "aio_read -q 320k 4k", "-c", "aio_flush", "-c", "map", "t"]),
                (["-C", "-s", "-c", "read 448k 64k", "-c", "map", "t"]), (["-C", "-c", "reopen -c none", "-c", "read 1M 1M", "-c", "map", "t"]), (["-c", "read 0 4M", "-c", "map", "t"]),
                (["-C", "-c", "write -P 3 3M 1000", "-c", "read -P 3 3M 1000", "-c", "read -P 9 3145024 512", "-c", "map", "t"])]
    for who in ("ours", "theirs"):
        folder = tmp_path / who
        folder.mkdir()
        run.qemu_img("create", "-q", "-f", "qcow2", folder / "b", "4M")
        run.qemu_io(folder / "b", "write -P 9 0 4M", fmt="qcow2")
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", "b", "-F", "qcow2", folder / "t", cwd=folder)
    for words in commands:
        ours, theirs = (run.byre("io", *words, cwd=tmp_path / "ours").out, run.run(peers.need("qemu-io"), *words, cwd=tmp_path / "theirs").out)
        kept = [[line for line in out.splitlines() if "allocated" in line] for out in (ours, theirs)]
        assert kept[0] == kept[1] and kept[0], (words, ours, theirs)
        assert "failed" not in ours, ours
    assert "read-only" in run.byre("io", "-C", "-r", "-c", "read 0 4k", "t", cwd=tmp_path / "ours", code=1).err
    run.qemu_img("check", tmp_path / "ours" / "t")
    run.qemu_img("compare", tmp_path / "ours" / "t", tmp_path / "theirs" / "t")


@pytest.mark.parametrize("command,code", [("abort", -signal.SIGABRT), ("sigraise 15", -signal.SIGTERM), ("sigraise 9", -signal.SIGKILL)])
def test_crash(disk, command, code):
    """FEATURES 6.016: the image is sound afterwards, and flushed data is there"""
    done = subprocess.run([run.BYRE, "io", "-c", "write -P 5 0 1M", "-c", "flush", "-c", command, "x"], cwd=disk.ours, stdout=subprocess.DEVNULL,
                          preexec_fn=no_core)
    assert done.returncode == code
    run.qemu_img("check", "x", cwd=disk.ours, code=(0, 3))
    run.qemu_io(f"{disk.ours}/x", "read -P 5 0 1M")


def no_core():
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_sleep(disk):
    """FEATURES 6.016"""
    begin = time.monotonic()
    run.byre("io", "-c", "sleep 300", "x", cwd=disk.ours)
    assert 0.3 <= time.monotonic() - begin < 30              # of 300 s, if it took seconds


def test_reopen_options(disk):
    """FEATURES 6.014, 1.126: node options at reopen"""
    run.byre("io", "-c", "reopen -o l2-cache-size=1M", "-c", "write 0 4k", "x", cwd=disk.ours)
    run.byre("io", "-c", "reopen -o l2-cache-size=1M,cache-size=2M,refcount-cache-size=64k", "x", cwd=disk.ours, code=1)
    run.byre("io", "-c", "reopen -o read-only=on", "-c", "write 0 4k", "x", cwd=disk.ours, code=1)
    run.byre("io", "-c", "reopen -o cache.direct=on", "-c", "write 0 4k", "x", cwd=disk.ours)


def test_discard_mode(disk):
    """FEATURES 3.013: -d unmap gives space back in the file, -d ignore keeps it"""
    for mode, kept in (("ignore", True), ("unmap", False)):
        run.byre("create", "-q", "-f", "raw", "d", "8M", cwd=disk.ours)
        run.byre("io", "-f", "raw", "-c", "write 0 8M", "-c", "flush", "d", cwd=disk.ours)
        run.byre("io", "-f", "raw", "-d", mode, "-c", "discard 0 8M", "d", cwd=disk.ours)
        assert (os.stat(f"{disk.ours}/d").st_blocks * 512 > 4 << 20) == kept


def test_writer_excludes_writer(tmp_path):
    """FEATURES 1.122, 3.007: both directions"""
    image = tmp_path / "x"
    run.byre("create", "-q", "-f", "qcow2", image, "1M")
    with Holder(image):
        assert "lock" in run.byre("io", "-c", "read 0 1", image, code=1).err
        run.byre("io", "-r", "-c", "read 0 1", image, code=1)
        run.byre("io", "-r", "-U", "-c", "read 0 1", image)
    ours = subprocess.Popen([run.BYRE, "io", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        ours.stdin.write("length\n")
        ours.stdin.flush()
        ours.stdout.readline()
        assert "lock" in run.run(peers.need("qemu-io"), "-c", "read 0 1", image, code=1).err
    finally:
        ours.stdin.close()
        ours.wait(20)


def system_calls(disk, names, *words):
    """The calls of those names that `byre io` makes with worker threads, one a line."""
    peers.need("strace")
    run.run("strace", "-f", "-o", "calls", "-e", f"trace={names}", run.BYRE, "io", *words, cwd=disk.ours)
    return open(f"{disk.ours}/calls").read()


@pytest.mark.parametrize("direct", [[], ["-n"]], ids=["buffered", "direct"])
def test_ring(disk, direct):
    """FEATURES 3.003: the requests of -i io_uring go through a ring, buffered and direct; those of -i threads do not"""
    words = ["-f", "raw", "-c", "write -P 3 4k 4k", "-c", "read -P 3 4k 4k", "r"]
    for mode, ring in (("io_uring", True), ("threads", False)):
        text = system_calls(disk, "io_uring_enter,pwritev2,pwritev,pwrite64", *direct, "-i", mode, *words)
        assert ("io_uring_enter(" in text) == ring and ("pwrite" in text) != ring, text


@pytest.mark.parametrize("direct", [[], ["-n"]], ids=["buffered", "direct"])
def test_durable_write(disk, direct):
    """FEATURES 3.011, 11.027, G.059: one durable write, not a write and a flush"""
    words = ["-f", "raw", "-i", "threads", *direct]
    durable = system_calls(disk, "pwritev2,pwritev,pwrite64,fdatasync,fsync", *words, "-c", "write -f 0 4k", "-c", "write -f 8k 4k", "r")
    plain = system_calls(disk, "pwritev2,pwritev,pwrite64,fdatasync,fsync", *words, "-c", "write 0 4k", "-c", "write 8k 4k", "r")
    assert durable.count("RWF_DSYNC") == 2 and plain.count("RWF_DSYNC") == 0
    assert durable.count("sync(") == plain.count("sync(")             # the one of closing


def test_zeros_without_buffers(disk):
    """FEATURES 3.012, 11.024: a gigabyte of zeros is one call; -u gives the space back, but only where discards are allowed"""
    run.byre("create", "-q", "-f", "raw", "d", "1G", cwd=disk.ours)
    for flags, call in (("", "FALLOC_FL_ZERO_RANGE, 0, 1073741824"), ("-u", "FALLOC_FL_PUNCH_HOLE, 0, 1073741824")):
        text = system_calls(disk, "fallocate,pwritev2,pwritev,pwrite64", "-f", "raw", "-i", "threads", "-c", f"write -z {flags} 0 1G", "d")
        assert call in text and "pwrite" not in text, text
    for mode, kept in (("ignore", True), ("unmap", False)):
        run.byre("io", "-f", "raw", "-d", mode, "-c", "write 0 8M", "-c", "flush", "-c", "write -z -u 0 8M", "-c", "read -P 0 0 8M", "d", cwd=disk.ours)
        assert (sum(e["length"] for e in run.qemu_img("map", "-f", "raw", "--output=json", "d", cwd=disk.ours).json if e["data"]) > 0
                or os.stat(f"{disk.ours}/d").st_blocks * 512 > 4 << 20) == kept
