# SPDX-License-Identifier: MIT
"""Options of nodes, given as --image-opts or json: names, against the peer (FEATURES area 3)."""
import itertools
import json
import os
import re
import shutil
import tempfile

import pytest

from lib import images, peers, run

MIB = 1 << 20
CLOCK = re.compile(r"\d\d\.\d\d sec \([^)]*\)")


@pytest.fixture
def disk(twin):
    twin.give(["qemu-img", "create", "-q", "-f", "qcow2", "x", "4M"], ["qemu-img", "create", "-q", "-f", "raw", "r", "4M"],
              *[["qemu-io", "-f", "raw", "-c", f"write -q -P {i + 1} {i}M 1M", "r"] for i in range(4)])
    return twin


def both(twin, opts, *commands, options=(), code=None):
    """Commands on an image named by node options, in both programs: the same exit code and output."""
    words = [*options, "--image-opts", opts]
    for command in commands or ("length",):
        words += ["-c", command]
    ours, theirs = twin.io(*words)
    assert ours.code == theirs.code, f"{ours}\n=== the peer:\n{theirs}"
    assert code is None or ours.code == code, ours
    if not ours.code:
        assert CLOCK.sub("", ours.out) == CLOCK.sub("", theirs.out), f"{ours}\n=== the peer:\n{theirs}"
    return ours, theirs


# ---- names of nodes ----
@pytest.mark.parametrize("name,good", [("a", True), ("n" * 31, True), ("n" * 32, False), ("1a", False), ("#a", False), ("a b", False), ("", False),
                                       ("a-b.c_9", True), ("a/b", False)])
def test_node_names(disk, name, good):
    """FEATURES 3.065: which names of nodes are taken, of images and of files"""
    for key in ("node-name", "file.node-name"):
        ours, _ = both(disk, f"driver=qcow2,file.driver=file,file.filename=x,{key}={name}", code=0 if good else 1)
        assert good or f"'{name}' is no acceptable node name" in ours.err


def test_node_names_are_unique(disk):
    """FEATURES 3.065: an image and its file cannot have one name"""
    ours, _ = both(disk, "driver=qcow2,node-name=foo,file.driver=file,file.node-name=foo,file.filename=x", code=1)
    assert "'foo'" in ours.err
    both(disk, "driver=qcow2,node-name=foo,file.driver=file,file.node-name=bar,file.filename=x", code=0)


def test_names_are_shown(tmp_path, byre_serve):
    """FEATURES 3.065: the names that were given, and those made up"""
    image = images.create(tmp_path / "x", "1M")
    named = {"driver": "qcow2", "file": {"driver": "file", "node-name": "the-file", "filename": str(image)}}
    server = byre_serve(f"json:{json.dumps(named)}")
    nodes = [n["node-name"] for n in run.byre("ctl", server.control, "query-named-block-nodes").json]
    assert sorted(nodes) == ["disk0", "the-file"]


# ---- how requests are made ----
@pytest.mark.parametrize("opts,code", [("driver=file,filename=r,aio=native", 1), ("driver=file,filename=r,aio=native,cache.direct=on", 0),
                                       ("driver=raw,file.filename=r,file.aio=native", 1), ("driver=raw,file.filename=r,file.aio=native,cache.direct=on", 0),
                                       ("driver=raw,file.filename=r,file.aio=native,file.cache.direct=on", 0), ("driver=file,filename=r,aio=bogus", 1),
                                       ("driver=file,filename=r,aio=threads", 0), ("driver=file,filename=r,aio=io_uring", 0),
                                       ("driver=raw,file.filename=r,aio=threads", 1), ("driver=raw,file.filename=r,locking=off", 1),
                                       ("driver=raw,file.filename=r,file.locking=auto", 0), ("driver=raw,file.filename=r,file.locking=bogus", 1)])
def test_aio(disk, opts, code):
    """FEATURES 3.002: native needs direct I/O; these options belong to the file"""
    both(disk, opts, code=code)


@pytest.mark.parametrize("command", ["open -k r", "open -i native r", "open -i bogus r"])
def test_aio_of_open(disk, command):
    """FEATURES 3.002: the same in the shell"""
    ours, theirs = disk.io("-c", command, "-c", "length")
    assert ours.code == theirs.code == 1 and ours.out == theirs.out == ""
    ours, theirs = disk.io("-c", command.replace("open", "open -n").replace("bogus", "threads"), "-c", "length")
    assert ours.code == theirs.code == 0 and ours.out == theirs.out == "4 MiB\n"


def system_calls(disk, calls, *words):
    peers.need("strace")
    run.run("strace", "-f", "-o", "calls", "-e", f"trace={calls}", run.BYRE, "io", "-f", "raw", *words, "r", cwd=disk.ours)
    return open(f"{disk.ours}/calls").read()


def test_threads(disk):
    """FEATURES 3.001: -i threads reads and writes by plain calls of worker threads"""
    text = system_calls(disk, "preadv,preadv2,pread64,pwritev,pwritev2,pwrite64,io_uring_enter,io_submit", "-i", "threads",
                        "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k")
    lines = [line for line in text.splitlines() if "1048576" in line]       # the offset
    assert len(lines) == 2 and "pwrite" in lines[0] and "pread" in lines[1], text
    assert "io_uring_enter(" not in text and "io_submit(" not in text
    assert lines[0].split()[0] != text.splitlines()[-1].split()[0], "the main thread did it itself"


def test_native_is_the_ring(disk):
    """FEATURES 3.002: native is taken as direct I/O by io_uring, which does what it was for; the older interface is not used"""
    text = system_calls(disk, "io_uring_enter,io_submit,openat", "-n", "-k", "-c", "write -P 7 1M 64k")
    assert "io_uring_enter(" in text and "io_submit(" not in text and "O_DIRECT" in text


# ---- read-only ----
def test_read_only(disk):
    """FEATURES 3.068: a node that is read-only cannot be opened for writing, is not written, and is free for others"""
    both(disk, "driver=qcow2,file.filename=x,read-only=on", "write 0 512", code=1)
    both(disk, "driver=qcow2,file.filename=x,file.read-only=on", "write 0 512", code=1)
    both(disk, "driver=qcow2,file.filename=x,read-only=on", options=["-r"], code=0)
    both(disk, "driver=qcow2,file.filename=x,read-only=off", "write -q 0 512", code=0)
    for value in ("bogus", "auto"):
        both(disk, f"driver=qcow2,file.filename=x,read-only={value}", options=["-r"], code=1)
    for words in (["resize", "--image-opts", "driver=qcow2,file.filename=x,read-only=on", "8M"],
                  ["bench", "-w", "-c", "1", "--image-opts", "driver=qcow2,file.filename=x,read-only=on"]):
        ours, _ = disk.same_code(*words)
        assert ours.code == 1 and "read-only" in ours.err
    ours, theirs = disk.io("-r", "-c", "write 0 512", "x")
    assert ours.code == theirs.code == 1


def test_auto_read_only(disk):
    """FEATURES 3.068: a file that may only be read is opened when reading is asked for, and refuses writes"""
    peers.need_root()
    nobody = [peers.need("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    programs = {"ours": [run.BYRE, "io"], "theirs": [peers.need("qemu-io")]}
    for side, program in programs.items():
        folder = getattr(disk, side)
        with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
            os.chmod(open_to_all, 0o755)
            shutil.copy(f"{folder}/r", open_to_all)
            os.chmod(f"{open_to_all}/r", 0o444)
            read_only_file(nobody, program, f"{open_to_all}/r")
    both(disk, "driver=raw,file.filename=r,auto-read-only=bogus", code=1)


def read_only_file(nobody, program, path):
    """Opened only where reading is enough; never written to."""
    for value, options, code in itertools.product(("on", "off"), ([], ["-r"]), (0, 1)):
        done = run.run(*nobody, *program, *options, "-c", "write 0 512" if code else "length", "--image-opts",
                       f"driver=raw,file.driver=file,file.filename={path},auto-read-only={value}", code=None)
        assert done.code == (code if options else 1), done

# ---- a part of a file ----
WINDOWS = ["offset=1M,size=2M", "offset=1M", "size=2M", "offset=100", "offset=100,size=512", "offset=4M", "size=0", "offset=3M,size=1M",
           "size=100", "offset=1M,size=100", "offset=5M", "offset=3M,size=2M", "size=5M", "offset=-1", "size=bogus", "offset=1.5M"]


@pytest.mark.parametrize("window", WINDOWS)
def test_window(disk, window):
    """FEATURES 3.026: which windows there are, their size, and where they lie in the file"""
    opts = f"driver=raw,{window},file.filename=r"
    ours, _ = both(disk, opts, "length")
    if ours.code:
        return
    both(disk, opts, "read -v 0 512", options=["-r"])
    if window == "offset=100":                  # where the peer's own map ends in an error
        return
    both(disk, opts, "map", options=["-r"])
    ours, theirs = (d.json for d in disk.same_code("map", "--output=json", "--image-opts", opts))
    assert [{k: row.get(k) for k in ("start", "length", "data", "offset")} for row in ours] == \
        [{k: row.get(k) for k in ("start", "length", "data", "offset")} for row in theirs]
    disk.same_code("convert", "--image-opts", opts, "-O", "raw", "out")
    run.run("cmp", f"{disk.ours}/out", f"{disk.theirs}/out")


def test_window_holds(disk):
    """FEATURES 3.026: nothing outside is read or written; a fixed size stays"""
    opts = "driver=raw,offset=1M,size=2M,file.filename=r"
    before = open(f"{disk.ours}/r", "rb").read()
    both(disk, opts, "read -P 2 0 1M", "read -P 3 1M 1M", "write 2M 512", "read 2M 512", "write 2097000 200", code=1)
    assert open(f"{disk.ours}/r", "rb").read() == before
    for size in ("1M", "2M", "3M"):
        both(disk, opts, f"truncate {size}", code=1)
    ours, theirs = disk.io("--image-opts", opts, "-c", "write -q -P 9 0 4k", "-c", "write -q -P 8 2093056 4k", "-c", "write -z 64k 64k", "-c", "discard 1M 64k")
    assert ours.code == theirs.code == 0
    for side in (disk.ours, disk.theirs):
        now = open(f"{side}/r", "rb").read()
        assert len(now) == 4 * MIB and now[:MIB] == before[:MIB] and now[3 * MIB:] == before[3 * MIB:]
    run.run("cmp", f"{disk.ours}/r", f"{disk.theirs}/r")
    both(disk, "driver=raw,offset=1M,file.filename=r", "truncate 8M", "length", "truncate 2M", "length", options=["-t", "none"])
    assert os.path.getsize(f"{disk.ours}/r") == os.path.getsize(f"{disk.theirs}/r") == 3 * MIB
    run.byre("convert", "--image-opts", opts, "-O", "raw", "slice", cwd=disk.ours)
    run.run("dd", "if=r", "of=want", "bs=1M", "skip=1", "count=2", cwd=disk.ours)
    run.run("cmp", "slice", "want", cwd=disk.ours)


def test_window_random(disk):
    """FEATURES 3.026: random requests through a window at an odd offset, buffered and direct, against a model"""
    import random
    rng = random.Random(3026)
    model = bytearray(open(f"{disk.ours}/r", "rb").read())
    base, size = 4096 + 512 * 3, MIB
    for direct in ([], ["-n"]):
        words = []
        for _ in range(60):
            length = rng.randrange(1, 40000)
            off = rng.randrange(size - length)
            byte = rng.randrange(1, 256)
            kind = rng.choice(["write", "write -z"])
            words += ["-c", f"{kind} -q {'' if 'z' in kind else f'-P {byte} '}{off} {length}"]
            model[base + off:base + off + length] = bytes([0 if "z" in kind else byte]) * length
        run.byre("io", *direct, "--image-opts", f"driver=raw,offset={base},size={size},file.filename=r", *words, cwd=disk.ours)
        assert open(f"{disk.ours}/r", "rb").read() == model


def test_window_is_of_raw_images(disk):
    """FEATURES 3.026: neither files nor other formats have one; a window is no layer that others share"""
    for opts in ("driver=qcow2,offset=1M,file.filename=x", "driver=file,offset=1M,filename=r", "driver=file,size=1M,filename=r"):
        both(disk, opts, code=1)
    for folder, create in ((disk.ours, run.byre), (disk.theirs, run.qemu_img)):
        for at in (1, 2):
            create("create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", f'json:{{"driver":"raw","offset":{at * MIB},"size":{MIB},'
                   f'"file":{{"driver":"file","filename":"{folder}/r"}}}}', f"o{at}", "1M", cwd=folder)
    both(disk, "driver=qcow2,file.filename=o1", "read -v 0 512", options=["-r"], code=0)
    run.byre("compare", "o1", "o2", cwd=disk.ours, code=1)
    run.qemu_img("compare", f"{disk.ours}/o1", f"{disk.theirs}/o1")


# ---- zeros ----
WRITES = ["write -q 0 1M", "write -q -P 0 128k 64k", "writev -q -P 0 512k 30k 34k", "write -q -P 0 700001 100000", "write -q -f -P 0 900k 64k"]


@pytest.mark.parametrize("mode", ["off", "on", "unmap", "discard=ignore,on"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_detect_zeroes(disk, fmt, mode):
    """FEATURES 3.067, 11.025: zeros that are written become zeros of the format or holes, as the peer has it"""
    name = {"raw": "r", "qcow2": "x"}[fmt]
    *more, mode = mode.split(",")
    opts = ",".join([f"driver={fmt}", f"detect-zeroes={mode}", *more, f"file.filename={name}"])
    both(disk, opts, *WRITES, options=["-t", "none"], code=0)
    rows, holes = [], []
    for folder in (disk.ours, disk.theirs):
        rows.append([{k: row[k] for k in ("start", "length", "zero", "data")} for row in
                     run.qemu_img("map", "-f", fmt, "--output=json", f"{folder}/{name}").json])
        holes.append(os.stat(f"{folder}/{name}").st_blocks * 512)
    assert rows[0] == rows[1]
    zeros = sum(row["length"] for row in rows[0] if row["start"] < MIB and row["zero"])
    assert (zeros >= 3 * 65536) == (mode != "off"), rows[0]
    given_back = 5 * MIB - holes[0] if fmt == "raw" else 0
    if fmt == "raw":                            # all of it is on disk but what was given back
        assert (holes[0] < 4 * MIB - 3 * 65536) == (mode == "unmap"), (holes, given_back)
    run.qemu_img("compare", "-f", fmt, "-F", fmt, f"{disk.ours}/{name}", f"{disk.theirs}/{name}")
    run.byre("io", "-f", fmt, *sum((["-c", c] for c in ["read -P 0 128k 64k", "read -P 0 512k 64k", "read -P 0 700001 100000", "read -P 0xcd 192k 320k"]), []),
             name, cwd=disk.ours)


def test_detect_zeroes_values(disk):
    """FEATURES 3.067: unmap needs discard=unmap; what discard takes"""
    for opts, options in (("detect-zeroes=bogus", []), ("detect-zeroes=unmap,discard=ignore", []), ("detect-zeroes=unmap", ["-d", "ignore"]),
                          ("discard=bogus", []), ("discard=auto", []), ("discard=yes", [])):
        both(disk, f"driver=raw,file.filename=r,{opts}", options=options, code=1)
    for value in ("unmap", "on", "ignore", "off"):
        both(disk, f"driver=raw,file.filename=r,discard={value}", code=0)


@pytest.mark.parametrize("mode", ["off", "on", "unmap"])
def test_detect_zeroes_over_nbd(tmp_path, byre_serve, mode):
    """FEATURES 3.067, 11.025: zeros that a client sends; the control socket shows the mode"""
    nbd = peers.need_module("nbd")
    image = images.create(tmp_path / "x", "4M")
    run.qemu_io(image, "write -P 5 0 1M")
    name = {"driver": "qcow2", "detect-zeroes": mode, "file": {"driver": "file", "filename": str(image)}}
    server = byre_serve(f"json:{json.dumps(name)}")
    assert run.byre("ctl", server.control, "query-block").json[0]["inserted"]["detect_zeroes"] == mode
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    handle.pwrite(bytes(256 << 10), 512 << 10)
    handle.shutdown()
    assert server.stop() == 0
    rows = run.qemu_img("map", "--output=json", image).json
    data = sum(row["length"] for row in rows if row["data"])
    assert data == (MIB if mode == "off" else MIB - (256 << 10)), rows
    kept = [row for row in rows if row["start"] == 512 << 10 and "offset" in row]
    assert bool(kept) == (mode == "on"), rows        # a zero cluster that keeps its space, or none
    images.assert_sound(image)
    run.qemu_io(image, "read -P 0 512k 256k", "read -P 5 0 512k", "read -P 5 768k 256k")


# ---- probing ----
FORMATS = ["raw", "qcow2", "luks", "qed", "qcow", "vmdk", "vdi", "vpc", "vhdx", "parallels"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_probe(tmp_path, fmt):
    """FEATURES 3.071: each format is recognised as the peer does; those that byre does not read yet are named, and never taken for raw"""
    image = tmp_path / "x"
    secret = ["--object", "secret,id=s,data=a", "-o", "key-secret=s,iter-time=10"] if fmt == "luks" else []
    (run.byre if secret else run.qemu_img)("create", "-q", "-f", fmt, *secret, image, "4M")
    theirs = run.qemu_img("info", "--output=json", image).json["format"]
    done = run.byre("info", "--output=json", image, code=None)
    if fmt in ("raw", "qcow2", "luks", "qed"):
        assert done.json["format"] == theirs == fmt
    else:
        assert done.code == 1 and f"looks like a {theirs} image" in done.err, done
        for command in (["check", image], ["convert", "-O", "raw", image, tmp_path / "out"], ["resize", image, "8M"], ["io", "-c", "read 0 512", image]):
            assert f"looks like a {theirs} image" in run.byre(*command, code=None).err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [2, 3, 4, 0x7fffffff, 0x80000000])
def test_probe_versions(tmp_path, version):
    """FEATURES 3.071, 3.027: a qcow2 header of a version to come is no raw image, and no guest may write one"""
    image, disk = tmp_path / "x", tmp_path / "r"
    header = b"QFI\xfb" + version.to_bytes(4, "big") + bytes(504)
    image.write_bytes(header + bytes(1 << 16))
    for program in (run.byre, run.qemu_img):
        assert program("info", image, code=1).out == ""
    images.raw_file(disk, MIB)
    for program in ([run.BYRE, "io"], [peers.need("qemu-io")]):
        done = run.run(*program, "-c", f"write -s {image} 0 512", disk, code=1)
        assert "write failed: Operation not permitted" in done.out
    assert disk.read_bytes() == bytes(MIB)


def test_guessed_raw_is_warned_of(disk):
    """FEATURES 3.027: byre io says that the format was guessed when it opens for writing, as the peer does"""
    def warned(*words):
        ours, theirs = disk.io(*words)
        assert ours.code == theirs.code == 0
        first = [done.err.splitlines()[0] if done.err else "" for done in (ours, theirs)]
        assert first[0] == first[1]
        return bool(first[0])
    assert warned("-c", "length", "r") and warned("-c", "open r", "-c", "length") and warned("--image-opts", "-c", "length", "file.filename=r")
    assert not warned("-r", "-c", "length", "r") and not warned("-f", "raw", "-c", "length", "r") and not warned("-c", "length", "x")


# ---- the size of a device ----
@pytest.mark.serial
@pytest.mark.parametrize("size", [4 * MIB, 4 * MIB + 512 * 3])
def test_size_of_a_device(tmp_path, size):
    """FEATURES 3.024: a block device has the size that the kernel says"""
    device, detach = run.loop_device(images.raw_file(tmp_path / "d", size))
    try:
        want = int(run.run("blockdev", "--getsize64", device).out)
        ours, theirs = (p("info", "-f", "raw", "--output=json", device).json for p in (run.byre, run.qemu_img))
        assert ours["virtual-size"] == theirs["virtual-size"] == want == size
        run.byre("io", "-f", "raw", "-c", f"read {size - 512} 512", device)
        run.byre("io", "-f", "raw", "-c", f"read {size - 512} 513", device, code=1)
    finally:
        detach()
