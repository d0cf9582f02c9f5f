# SPDX-License-Identifier: MIT
"""FEATURES 1.039, 1.061 to 1.068, 5.032: compressed clusters that byre writes, read by the peers, by the independent reader and by the
libraries alone; and the peer's, changed by byre. Over all cluster sizes, both methods, all widths of counts."""
import json
import os
import random
import subprocess
import zlib

import pytest
from lib import images, peers, run

KINDS = ["zlib", "zstd"]


def mixed(seed, size, unit):
    """Bytes that become smaller by different amounts; some units not at all, some are zeros."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(3, 40)) for _ in range(200)]
    out = bytearray()
    while len(out) < size:
        kind = rng.randrange(8)
        if kind == 0:
            part = rng.randbytes(unit)
        elif kind == 1:
            part = bytes(unit)
        elif kind == 2:
            part = bytes([rng.randrange(1, 256)]) * unit
        else:
            part = b"".join(rng.choices(words, k=unit // 20 + 1))[:unit]
        out += part
    return bytes(out[:size])


def far(unit):
    """Matches at all distances up to 32 KiB."""
    rng = random.Random(unit)
    block = rng.randbytes(min(32 << 10, unit // 2))
    out = bytearray(block)
    while len(out) < unit:
        back = rng.randint(1, min(len(out), 32768))
        n = min(rng.randint(3, 258), back)
        out += out[len(out) - back:len(out) - back + n]
    return bytes(out[:unit])


def write_compressed(image, data, unit, path, at=0):
    """Writes data with byre io, whole clusters, in calls of different lengths."""
    rng, commands, files = random.Random(len(data)), [], []
    done = 0
    while done < len(data):
        n = min(rng.choice([1, 1, 2, 5, 20]) * unit, len(data) - done)
        name = path / f"part{len(files)}"
        name.write_bytes(data[done:done + n])
        files.append(name)
        commands += ["-c", f"write -q -c -s {name} {at + done} {n}"]
        done += n
    run.byre("io", *commands, image)
    for name in files:
        name.unlink()


def judge(image, data, tmp_path):
    """Everybody finds the image clean and reads the same."""
    (tmp_path / "want").write_bytes(data)
    images.peer_check(image)
    run.byre("check", image)
    run.qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "want", image)
    run.byre("compare", "-f", "raw", "-F", "qcow2", tmp_path / "want", image)
    assert images.read_by_reference(image, tmp_path) == data


def compressed(image):
    return json.loads(run.qemu_img("check", "--output=json", image).out).get("compressed-clusters", 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", images.CLUSTER_SIZES)
def test_all_sizes(tmp_path, unit, kind):
    """FEATURES 1.061, 1.062, 1.063, 1.065, 1.067: peers read what is written here, distances of 32 KiB included"""
    image = tmp_path / "disk.qcow2"
    size = min(48 * unit, 12 << 20) // unit * unit + 512 * 3
    data = far(unit) + mixed(unit, size - unit, unit)
    run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size={unit},compression_type={kind}", image, size)
    write_compressed(image, data, unit, tmp_path)
    judge(image, data, tmp_path)
    assert compressed(image) > 3
    write_compressed(image, data[:unit * 5][::-1], unit, tmp_path)         # G.010: over what is compressed already
    data = data[:unit * 5][::-1] + data[unit * 5:]
    judge(image, data, tmp_path)


@pytest.mark.parametrize("version,bits", [(2, 16)] + [(3, b) for b in images.REFCOUNT_BITS])
@pytest.mark.parametrize("unit", [512, 4096, 65536])
def test_all_widths(tmp_path, unit, version, bits):
    """FEATURES 1.043, 1.063: clusters are shared as far as the counts can say it, with one bit not at all"""
    image, data = tmp_path / "disk.qcow2", mixed(bits, 60 * unit, unit)
    options = f"cluster_size={unit}" + (",compat=0.10" if version == 2 else f",refcount_bits={bits}")
    run.byre("create", "-q", "-f", "qcow2", "-o", options, image, len(data))
    write_compressed(image, data, unit, tmp_path)
    judge(image, data, tmp_path)
    run.byre("io", "-c", f"write -P 3 {unit} {unit // 2}", "-c", f"discard {3 * unit} {unit}", "-c", f"write -q -c -P 4 {5 * unit} {20 * unit}", image)
    data = data[:unit] + b"\3" * (unit // 2) + data[unit + unit // 2:3 * unit] + bytes(unit) + data[4 * unit:5 * unit] + b"\4" * 20 * unit + data[25 * unit:]
    judge(image, data, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_peer_writes_byre_goes_on(tmp_path, kind):
    """FEATURES 1.066, 1.068, G.010: an image that the peer compressed is rewritten in all ways; then the peer goes on"""
    raw, image, unit = tmp_path / "raw", tmp_path / "disk.qcow2", 65536
    data = bytearray(mixed(7, 40 * unit + 1024, unit))
    raw.write_bytes(data)
    run.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", raw, image)
    write_compressed(image, bytes(data[4 * unit:12 * unit]), unit, tmp_path, at=20 * unit)
    data[20 * unit:28 * unit] = data[4 * unit:12 * unit]
    run.byre("io", "-c", f"write -q -P 1 {unit + 4096} 4096", "-c", f"write -q -z {3 * unit} 4096", "-c", f"write -q -c -P 6 {40 * unit} 1024",
             "-c", f"write -q -z {30 * unit} {unit}", "-c", f"discard {31 * unit} {unit}", image)
    data[unit + 4096:unit + 8192] = b"\1" * 4096
    data[3 * unit:3 * unit + 4096] = bytes(4096)
    data[40 * unit:] = b"\6" * 1024
    data[30 * unit:32 * unit] = bytes(2 * unit)
    judge(image, bytes(data), tmp_path)
    run.qemu_io(image, f"write -P 9 {20 * unit} {2 * unit}")
    data[20 * unit:22 * unit] = b"\x09" * 2 * unit
    judge(image, bytes(data), tmp_path)


def test_streams_alone(tmp_path):
    """FEATURES 1.061, 1.064: a cluster is one raw deflate stream, whatever follows it in its last sector"""
    image, unit = tmp_path / "disk.qcow2", 65536
    data = mixed(3, 30 * unit, unit)
    run.byre("create", "-q", "-f", "qcow2", image, len(data))
    write_compressed(image, data, unit, tmp_path)
    found = 0
    for guest, host, length in images.compressed_entries(image):
        with open(image, "rb") as f:
            f.seek(host)
            raw = f.read(length)
        assert zlib.decompressobj(-15).decompress(raw, unit) == data[guest:guest + unit]
        found += 1
    assert found == compressed(image) > 10


def test_frames_alone(tmp_path):
    """FEATURES 1.062: a cluster is one zstd frame"""
    zstd = peers.need("zstd")
    image, unit = tmp_path / "disk.qcow2", 65536
    data = mixed(4, 12 * unit, unit)
    run.byre("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", image, len(data))
    write_compressed(image, data, unit, tmp_path)
    found = 0
    for guest, host, length in images.compressed_entries(image):
        with open(image, "rb") as f:
            f.seek(host)
            raw = f.read(length)
        out = subprocess.run([zstd, "-d", "-q", "-c"], input=raw, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        assert out[:unit] == data[guest:guest + unit]
        found += 1
    assert found == compressed(image) > 4


@pytest.mark.parametrize("command,error", [("write -c 4k 4k", "Invalid argument"), ("write -c 0 4k", "Invalid argument"),
                                           ("write -c 960k 8k", "Invalid argument"), ("write -c 1M 64k", "Input/output error")])
def test_not_whole(tmp_path, command, error):
    """FEATURES 1.065: whole clusters only; the peer says the same, and nothing is written"""
    image = tmp_path / "disk.qcow2"
    run.byre("create", "-q", "-f", "qcow2", image, "1000k")
    before = image.read_bytes()
    done = run.byre("io", "-c", command, image, code=1)
    assert error in done.out + done.err
    peer = run.run(peers.need("qemu-io"), "-c", command, image, code=1)
    assert error in peer.out + peer.err
    assert json.loads(run.byre("map", "--output=json", image).out)[0]["present"] is False
    assert len(before) >= 196608


def test_refused(tmp_path):
    """FEATURES 1.065: formats that do not compress; 6.006: -f and -c"""
    raw = images.raw_file(tmp_path / "disk.raw", 1 << 20)
    assert "Operation not supported" in run.byre("io", "-f", "raw", "-c", "write -c 0 64k", raw, code=1).out
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "q", "1M")
    run.byre("io", "-c", "write -c -f 0 64k", tmp_path / "q", code=1)
    assert raw.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("cache", ["none", "writethrough", "directsync", "unsafe"])
@pytest.mark.parametrize("unit", [512, 4096, 65536])
def test_cache_modes(tmp_path, cache, unit):
    """Pieces begin and end anywhere: direct I/O moves whole blocks"""
    image, data = tmp_path / "disk.qcow2", mixed(11, 40 * unit, unit)
    run.byre("create", "-q", "-f", "qcow2", "-o", f"cluster_size={unit}", image, len(data))
    files = []
    for i, n in enumerate((1, 7, 32)):
        at = (0, 1, 8)[i] * unit
        files.append(tmp_path / f"f{i}")
        files[-1].write_bytes(data[at:at + n * unit])
    run.byre("io", "-t", cache, *[a for i, n in enumerate((1, 7, 32)) for a in ("-c", f"write -q -c -s {files[i]} {(0, 1, 8)[i] * unit} {n * unit}")], image)
    judge(image, data, tmp_path)


def test_small_reads(tmp_path):
    """Parts of compressed clusters, from several places at once, by a chain too"""
    base, top, unit = tmp_path / "base.qcow2", tmp_path / "top.qcow2", 65536
    data = bytearray(mixed(12, 20 * unit, unit))
    run.byre("create", "-q", "-f", "qcow2", base, len(data))
    write_compressed(base, bytes(data), unit, tmp_path)
    run.byre("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    rng, commands = random.Random(1), []
    for _ in range(60):
        at = rng.randrange(0, len(data) - 5000, 512)
        commands += ["-c", f"write -q -P {rng.randrange(256)} {at} 512"]
        data[at:at + 512] = bytes([int(commands[-1].split()[3])]) * 512
    run.byre("io", *commands, top)
    judge(top, bytes(data), tmp_path)


# ---- convert -c ----

@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with a raw disk, one in qcow2 with a backing file whose clusters have other borders, and what they hold."""
    path, unit = tmp_path_factory.mktemp("sources"), 65536
    base, top = mixed(21, 70 * unit + 2560, unit), bytearray()
    (path / "raw").write_bytes(base)
    run.qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=4k", "raw", "base", cwd=path)
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base", "-F", "qcow2", "top", cwd=path)
    rng, commands, top = random.Random(4), [], bytearray(base)
    for i in range(30):
        at, n = rng.randrange(0, 69 * unit, 4096), rng.choice([4096, 8192, 5 * unit])
        n = min(n, len(top) - at) // 4096 * 4096
        commands.append(f"write -z {at} {n}" if i % 3 == 0 else f"write -P {i} {at} {n}")
        top[at:at + n] = bytes([0 if i % 3 == 0 else i]) * n
    run.qemu_io(path / "top", *commands)
    (path / "want").write_bytes(top)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [512, 4096, 65536, 1 << 20, 2 << 20])
@pytest.mark.parametrize("words", [[], ["-W", "-m", "16"], ["-m", "1", "-S", "0"], ["-S", "64k"]], ids=" ".join)
def test_convert(sources, tmp_path, unit, kind, words):
    """FEATURES 5.032, 1.067: clusters end where those of the target do, whatever borders the sources have"""
    image = tmp_path / "x"
    run.byre("convert", "-c", "-O", "qcow2", "-o", f"cluster_size={unit},compression_type={kind}", *words, "top", image, cwd=sources)
    judge(image, (sources / "want").read_bytes(), tmp_path)
    assert compressed(image)


def test_convert_is_no_larger(sources, tmp_path):
    """FEATURES 5.032: the peer's image is not smaller; zeros take no space in either"""
    for kind in KINDS:
        run.byre("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", "raw", tmp_path / "x", cwd=sources)
        run.qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}", "raw", tmp_path / "y", cwd=sources)
        assert os.path.getsize(tmp_path / "x") <= -(-os.path.getsize(tmp_path / "y") // 65536) * 65536
        assert compressed(tmp_path / "x") == compressed(tmp_path / "y")


def test_convert_several(sources, tmp_path):
    """FEATURES 5.030, 5.032: a cluster that holds the end of one source and the beginning of the next"""
    run.byre("convert", "-c", "-O", "qcow2", "raw", "top", "raw", tmp_path / "x", cwd=sources)
    raw, want = (sources / "raw").read_bytes(), (sources / "want").read_bytes()
    assert len(raw) % 65536
    judge(tmp_path / "x", raw + want + raw, tmp_path)


def test_convert_backed(sources, tmp_path):
    """FEATURES 5.038, 5.032: only what differs from the backing file is stored, in whole clusters"""
    run.byre("convert", "-c", "-O", "qcow2", "-B", sources / "base", "-F", "qcow2", "top", tmp_path / "x", cwd=sources)
    judge(tmp_path / "x", (sources / "want").read_bytes(), tmp_path)
    assert 0 < compressed(tmp_path / "x") < 71
    holes = [e for e in json.loads(run.qemu_img("map", "--output=json", tmp_path / "x").out) if e["depth"] == 1]
    assert holes


@pytest.mark.parametrize("full", [False, True])
def test_convert_into_existing(sources, tmp_path, full):
    """FEATURES 5.035, G.010: the target holds something already, plain or compressed; the peer cannot do that"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "x", "6M")
    if full:
        run.byre("io", "-c", "write -P 1 0 3M", "-c", "write -q -c -P 2 3M 3M", tmp_path / "x")
    run.byre("convert", "-n", "-c", "-O", "qcow2", "top", tmp_path / "x", cwd=sources)
    want = (sources / "want").read_bytes()
    judge(tmp_path / "x", want + (b"\2" if full else b"\0") * ((6 << 20) - len(want)), tmp_path)


@pytest.mark.parametrize("kind,levels", [("zlib", (1, 6, 12, 22)), ("zstd", (1, 3, 19, 22))])
def test_levels(sources, tmp_path, kind, levels):
    """Our own option: a higher level is slower and smaller; beyond the highest it is the highest"""
    sizes = []
    for level in levels:
        run.byre("convert", "-c", "--compress-level", level, "-O", "qcow2", "-o", f"compression_type={kind}", "top", tmp_path / "x", cwd=sources)
        judge(tmp_path / "x", (sources / "want").read_bytes(), tmp_path)
        sizes.append(os.path.getsize(tmp_path / "x"))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.parametrize("window,small", [("4k", True), ("32k", False)])
def test_window(tmp_path, window, small):
    """FEATURES 1.061: with 4k a reader that keeps no more than 4 KiB of what it made reads it"""
    unit = 65536
    data = far(unit) * 3 + mixed(5, 20 * unit, unit)
    (tmp_path / "raw").write_bytes(data)
    run.byre("convert", "-c", "--compress-window", window, "-f", "raw", "-O", "qcow2", "raw", "x", cwd=tmp_path)
    judge(tmp_path / "x", data, tmp_path)
    failed = 0
    for guest, host, length in images.compressed_entries(tmp_path / "x"):
        with open(tmp_path / "x", "rb") as f:
            f.seek(host)
            stream, out = zlib.decompressobj(-12), b""
            try:
                rest = f.read(length)
                while len(out) < unit:                  # a little at a time: only the window is kept
                    out += stream.decompress(rest, 1000)
                    rest = stream.unconsumed_tail
                assert out == data[guest:guest + unit]
            except zlib.error:
                failed += 1
    assert (failed == 0) == small


@pytest.mark.parametrize("words,say", [(["--compress-level", "3"], "need -c"), (["-c", "--compress-level", "0"], "level"), (["-c", "--compress-level", "23"], "level"),
                                       (["-c", "--compress-window", "8k"], "window"), (["-c", "-O", "raw"], "raw")])
def test_bad_words(sources, tmp_path, words, say):
    done = run.byre("convert", "-O", "qcow2", *words, "raw", tmp_path / "x", code=1, cwd=sources)
    assert say in done.err and not (tmp_path / "x").exists()


# ---- with other features ----

@pytest.mark.parametrize("unit", ["64k", "2M"])
@pytest.mark.parametrize("kind", KINDS)
def test_extended_l2(sources, tmp_path, kind, unit):
    """FEATURES 1.040, 1.066: compressed clusters have no subclusters; what is written into one becomes plain, and back"""
    image, want = tmp_path / "x", bytearray((sources / "want").read_bytes())
    run.byre("convert", "-c", "-O", "qcow2", "-o", f"extended_l2=on,cluster_size={unit},compression_type={kind}", "top", image, cwd=sources)
    judge(image, bytes(want), tmp_path)
    size = {"64k": 65536, "2M": 2 << 20}[unit]
    run.byre("io", "-c", f"write -P 7 {size // 2} {size // 16}", "-c", f"write -z {size + 4096} 4096", "-c", f"write -q -c -P 5 0 {size}",
             "-c", f"write -P 6 {size // 32} 512", image)
    want[size + 4096:size + 8192] = bytes(4096)
    want[:size] = b"\5" * size
    want[size // 32:size // 32 + 512] = b"\6" * 512
    judge(image, bytes(want), tmp_path)


@pytest.mark.parametrize("bits", [8, 16, 64])
def test_snapshots(tmp_path, bits):
    """FEATURES 1.063, 1.085: a snapshot counts each compressed cluster again; both keep what they hold"""
    image, unit = tmp_path / "x", 65536
    first, second = mixed(31, 30 * unit, unit), mixed(32, 30 * unit, unit)
    run.byre("create", "-q", "-f", "qcow2", "-o", f"refcount_bits={bits}", image, len(first))
    write_compressed(image, first, unit, tmp_path)
    run.byre("snapshot", "-c", "one", image)
    write_compressed(image, second[:20 * unit], unit, tmp_path)
    data = second[:20 * unit] + first[20 * unit:]
    judge(image, data, tmp_path)
    run.byre("snapshot", "-c", "two", image)
    run.byre("io", "-c", f"write -P 3 0 {5 * unit}", image)
    images.peer_check(image)
    run.byre("snapshot", "-a", "one", image)
    judge(image, first, tmp_path)
    run.byre("snapshot", "-a", "two", image)
    judge(image, data, tmp_path)
    for name in ("one", "two"):
        run.byre("snapshot", "-d", name, image)
    judge(image, data, tmp_path)
    run.byre("io", "-c", f"discard 0 {30 * unit}", image)
    judge(image, bytes(30 * unit), tmp_path)


def test_snapshot_without_counts(tmp_path):
    """FEATURES 1.043: a cluster that counts as much as it can is not shared again: the snapshot is refused, nothing changes"""
    image, unit = tmp_path / "x", 4096
    run.byre("create", "-q", "-f", "qcow2", "-o", f"refcount_bits=2,cluster_size={unit}", image, 1 << 20)
    run.byre("io", "-c", f"write -q -c -P 1 0 {32 * unit}", image)
    run.byre("snapshot", "-c", "one", image, code=1)
    judge(image, b"\1" * 32 * unit + bytes((1 << 20) - 32 * unit), tmp_path)


@pytest.mark.parametrize("lazy", ["on", "off"])
def test_lazy_refcounts(sources, tmp_path, lazy):
    run.byre("convert", "-c", "-O", "qcow2", "-o", f"lazy_refcounts={lazy}", "top", tmp_path / "x", cwd=sources)
    judge(tmp_path / "x", (sources / "want").read_bytes(), tmp_path)


def test_external_data_file(sources, tmp_path):
    """FEATURES 1.082: no compression with a data file; the peer says the same"""
    run.byre("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/d", tmp_path / "x", "1M")
    done = run.byre("io", "-c", "write -c 0 64k", tmp_path / "x", code=1)
    assert "Operation not supported" in done.out + done.err
    run.byre("convert", "-c", "-O", "qcow2", "-o", f"data_file={tmp_path}/e", "raw", tmp_path / "y", cwd=sources, code=1)
    images.peer_check(tmp_path / "x")


def test_bitmap_records_compressed_writes(tmp_path):
    """FEATURES 1.104: a persistent bitmap knows of compressed writes, through io and through convert"""
    import qcow2ref
    image, unit = tmp_path / "x", 65536
    run.byre("create", "-q", "-f", "qcow2", image, 64 * unit)
    run.byre("bitmap", "--add", image, "b")
    run.byre("io", "-c", f"write -q -c -P 1 {3 * unit} {2 * unit}", image)
    (tmp_path / "raw").write_bytes(bytes(20 * unit) + b"\7" * unit)
    run.byre("convert", "-n", "--target-is-zero", "-c", "-f", "raw", "-O", "qcow2", tmp_path / "raw", image)
    with qcow2ref.open_image(image, fmt="qcow2") as q:
        dirty = {at // unit for start, length in q.bitmap_ranges("b") for at in range(start, start + length, unit)}
    assert {3, 4, 20} <= dirty and not dirty & set(range(30, 64))
    images.peer_check(image)


def test_encrypted_is_refused(tmp_path):
    """FEATURES 1.077: not together with encryption, and nothing is written"""
    image, secret = tmp_path / "x", ["--object", "secret,id=s,data=hunter2"]
    run.byre("create", "-q", "-f", "qcow2", *secret, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", image, "1M")
    before = image.read_bytes()
    opts = f"driver=qcow2,file.filename={image},encrypt.key-secret=s"
    done = run.byre("io", *secret, "--image-opts", "-c", "write -c 0 64k", opts, code=1)
    assert "Operation not supported" in done.out + done.err
    assert image.read_bytes() == before
    (tmp_path / "raw").write_bytes(b"\1" * 65536)
    run.byre("convert", *secret, "-c", "-f", "raw", "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", tmp_path / "raw",
             tmp_path / "y", code=1)
    assert not (tmp_path / "y").exists()
