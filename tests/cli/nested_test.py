# SPDX-License-Identifier: MIT
"""Names of the offline commands that nest nodes, by lists of options and json:, beside the peer (FEATURES 3.063, 11.001)."""
import json
import time

import pytest

from lib import run

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def io(peer, *words, code=0):
    return run.run("qemu-io", *words, code=code) if peer else run.byre("io", *words, code=code)


def img(peer, command, *words, code=0):
    return run.qemu_img(command, *words) if peer else run.byre(command, *words, code=code)


@pytest.fixture
def stacked(tmp_path):
    """The options of a qcow2 image of 16 MiB that lies in another one, of 32 MiB; its first MiB is 5."""
    inner, outer = tmp_path / "inner.qcow2", tmp_path / "outer.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", inner, "16M")
    run.qemu_io(inner, "write -P 5 0 1M")
    run.qemu_img("convert", "-f", "raw", "-O", "qcow2", inner, outer)
    run.qemu_img("resize", "-q", outer, "32M")
    return f"driver=qcow2,file.driver=qcow2,file.file.filename={outer}", outer


def test_in_turns(stacked, tmp_path):
    """Both write, resize and take snapshots; each reads the other's, and both images are sound."""
    opts, outer = stacked
    for turn, peer in enumerate((False, True, False)):
        out = io(peer, "--image-opts", "-c", "read -P 5 0 1M", "-c", f"write -P {7 + turn} {turn + 1}M 1M", "-c", "flush", opts).out
        assert "fail" not in out and "error" not in out
        img(peer, "resize", "-q", "--image-opts", opts, f"{17 + turn}M")
        img(peer, "snapshot", "--image-opts", "-c", f"s{turn}", opts)
        for other in (False, True):
            img(other, "check", "--image-opts", opts)
            words = [w for t in range(turn + 1) for w in ("-c", f"read -P {7 + t} {t + 1}M 1M")]
            assert "fail" not in io(other, "-r", "--image-opts", *words, opts).out
    run.qemu_img("check", outer)
    for command in ("map", "measure"):
        extra = ("-O", "qcow2") if command == "measure" else ()
        both = [json.loads(img(peer, command, "--output=json", *extra, "--image-opts", opts).out) for peer in (False, True)]
        if command == "map":
            both = [[(e["start"], e["length"]) for e in m if e["data"]] for m in both]
            both = [(m[0][0], sum(length for _, length in m)) for m in both]
        assert both[0] == both[1]
    for peer in (False, True):
        img(peer, "convert", "--image-opts", "-O", "raw", opts, tmp_path / f"{peer}.raw")
        assert json.loads(img(peer, "info", "--output=json", "--image-opts", opts).out)["virtual-size"] == 19 * MIB
    assert (tmp_path / "False.raw").read_bytes() == (tmp_path / "True.raw").read_bytes()


@BOTH
@pytest.mark.parametrize("opts", ["driver=raw,offset=1M,size=1M,file.driver=qcow2,file.file.filename={outer}", "driver=raw,file.driver=blkdebug,file.align=4096,file.image.filename={outer}",
                                  "driver=blkdebug,image.driver=qcow2,image.file.filename={outer}",
                                  "driver=qcow2,file.driver=raw,file.file.driver=blkdebug,file.file.image.driver=qcow2,file.file.image.file.filename={outer}",
                                  "driver=raw,file.driver=null-co,file.size=1M,file.read-zeroes=on"])
def test_forms(stacked, opts, peer):
    """A part of an image, a filter with options as the file, a filter as the disk, three levels, and no file at all; the same as json:"""
    opts = opts.format(outer=stacked[1])
    nested = {}
    for word in opts.split(","):
        at, (key, value) = nested, word.split("=")
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    sums = []
    for other in (False, peer):
        for words in (("--image-opts", opts), ("json:" + json.dumps(nested),)):
            out = io(other, "-r", *words[:-1], "-c", "read -v 0 512", "-c", "length", words[-1]).out
            assert "fail" not in out
            sums.append([line for line in out.splitlines() if line[:8].strip("0123456789abcdef") == "" or "MiB" in line and "ops" not in line])
    assert all(s == sums[0] for s in sums) and len(sums[0]) > 30


@BOTH
def test_rules(stacked, peer):
    """FEATURES 3.052: rules of a filter as a list of options: the first write fails, the second does not."""
    opts = f"driver=raw,file.driver=blkdebug,file.image.filename={stacked[1]},file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.errno=28," \
           "file.inject-error.0.once=on"
    out = io(peer, "--image-opts", "-c", "write 1M 512", "-c", "write 1M 512", opts, code=None)
    assert "No space left" in out.out + out.err and out.out.count("wrote 512/512") == 1


RAW_OVER = "driver=raw,file.driver=qcow2,file.file.filename={outer}"


@BOTH
@pytest.mark.parametrize("said,opts,kept", [
    ("ignore", "driver=qcow2,file.driver=blkdebug,file.image.filename={outer}", True), ("unmap", "driver=qcow2,file.driver=blkdebug,file.image.filename={outer}", False),
    ("ignore", RAW_OVER, True), ("unmap", RAW_OVER, False), ("unmap", RAW_OVER + ",discard=ignore", True), ("ignore", RAW_OVER + ",discard=unmap", False),
    ("unmap", RAW_OVER + ",file.discard=ignore", True), ("unmap", "driver=blkdebug,image.driver=qcow2,image.file.filename={outer}", False),
    ("ignore", "driver=blkdebug,image.driver=qcow2,image.file.filename={outer}", True), ("unmap", RAW_OVER + ",file.discard=unmap", False)])
def test_discard(stacked, said, opts, kept, peer):
    """What is discarded is gone only where all of them do it: the caller's word is for the disk itself, what lies below does as it is told or as it says."""
    opts = opts.format(outer=stacked[1])
    out = io(peer, "-d", said, "--image-opts", "-c", "write -P 7 20M 1M", "-c", "discard 20M 1M", "-c", f"read -P {7 if kept else 0} 20M 1M", opts)
    assert "fail" not in out.out + out.err


def test_refusals(stacked, tmp_path):
    """A format that is not stated over a node, an option that nobody has, a name of a node, and an image that records such a name."""
    _, outer = stacked
    for opts, word in ((f"file.driver=blkdebug,file.image.filename={outer}", "driver"), (f"driver=qcow2,file.driver=throttle,file.file.filename={outer}", "throttle"),
                       (f"driver=raw,file.driver=blkdebug,file.nothing=1,file.image.filename={outer}", "nothing"), ("driver=qcow2,file.driver=blkdebug,file.image=x", "x"),
                       (f"driver=qcow2,file.driver=zzz,file.file.filename={outer}", "zzz")):
        assert word in run.byre("info", "--image-opts", opts, code=1).err
    top = tmp_path / "top.qcow2"
    run.byre("create", "-q", "-f", "qcow2", top, "1M")
    run.qemu_img("rebase", "-u", "-F", "raw", "-b", "json:" + json.dumps({"driver": "raw", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": str(outer)}}}), top)
    assert "qcow2" in run.byre("io", "-r", "-c", "read 0 512", top, code=1).err


def test_what_is_created_opens(stacked, tmp_path):
    """FEATURES 5.012, 11.007: the name of a backing image is taken as the new image will say it: one that nests nodes, or names a node, is refused, and nothing is made."""
    _, outer = stacked
    nested = "json:" + json.dumps({"driver": "raw", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": str(outer)}}})
    filtered = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": str(outer)}}})
    for name, fmt, word in ((nested, "raw", "nests nodes"), (filtered, "qcow2", "nests nodes"), ('json:{"driver":"raw","file":"n"}', "raw", "names a node")):
        for command in (("create", "-q", "-f", "qcow2", "-b", name, "-F", fmt, tmp_path / "new"), ("convert", "-O", "qcow2", "-B", name, "-F", fmt, outer, tmp_path / "new")):
            assert word in run.byre(*command, code=1).err and not (tmp_path / "new").exists()
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "old", "32M")
    assert "nests nodes" in run.byre("rebase", "-b", nested, "-F", "raw", tmp_path / "old", code=1).err
    (tmp_path / "sub").mkdir()
    plain = {"plain": "json:" + json.dumps({"file": {"driver": "file", "filename": str(outer)}}), "dots": "json:" + json.dumps({"file.driver": "file", "file.filename": str(outer)}),
             "beside": "../outer.qcow2", "file": f"file:{outer}", "path": outer}
    for name, backing in plain.items():
        run.byre("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", tmp_path / "sub" / name)
        for peer in (False, True):
            out = io(peer, "-r", "-c", "length", tmp_path / "sub" / name).out
            assert out == "32 MiB\n"


STATE = {"qcow2 over a filter": "driver=qcow2,file.driver=throttle,file.throttle-group=g,file.file.filename={q}", "filter": "driver=throttle,throttle-group=g,file.driver=qcow2,file.file.filename={q}",
         "format": "driver=raw,file.driver=qcow2,file.file.filename={q}", "part": "driver=raw,offset=64k,size=1M,file.driver=qcow2,file.file.filename={q}",
         "another filter": "driver=blkdebug,image.driver=qcow2,image.file.filename={q}", "copy-on-read": "driver=copy-on-read,file.driver=qcow2,file.file.filename={q}",
         "all of them": "driver=throttle,throttle-group=g,file.driver=raw,file.file.driver=blkdebug,file.file.image.driver=raw,file.file.image.file.driver=qcow2,file.file.image.file.file.filename={q}"}


@BOTH
@pytest.mark.parametrize("form", STATE)
def test_vm_state(tmp_path, form, peer):
    """FEATURES 11.033, 6.004: the VM state is that of the first node that keeps one; one saves it, both read it there and in the image itself, and the disk is as it was."""
    q, group = tmp_path / "q", ("--object", "throttle-group,id=g")
    run.qemu_img("create", "-q", "-f", "qcow2", q, "4M")
    run.qemu_io(q, "write -P 5 0 1M")
    opts = STATE[form].format(q=q)
    for _ in range(2):                           # the second time in place
        out = io(peer, *group, "--image-opts", "-c", "write -b -P 9 64k 8k", "-c", "write -b -P 8 5M 512", "-c", "flush", "-c", "read -b -P 9 64k 8k", opts)
        assert "fail" not in out.out + out.err
    reads = [w for c in ("-P 9 64k 8k", "-P 8 5M 512", "-P 0 0 64k", "-P 0 72k 1M", "-P 0 9M 64k") for w in ("-c", f"read -b {c}")]
    for other in (False, True):
        for words in ((q,), (*group, "--image-opts", opts)):
            if form == "copy-on-read" and len(words) > 1:
                continue                         # it writes, so it cannot lie over an image that is only read
            out = io(other, "-r", *reads, *words[:-1], words[-1]).out
            assert "fail" not in out and out.count(" bytes at offset") == 5
    run.qemu_io(q, "read -P 5 0 1M", "read -P 0 1M 3M", options=["-r"])
    run.qemu_img("check", q)


@BOTH
@pytest.mark.parametrize("opts", ["driver=raw,file.driver=throttle,file.throttle-group=g,file.file.filename={q}", "driver=throttle,throttle-group=g,file.driver=raw,file.file.filename={q}"])
def test_no_vm_state(tmp_path, opts, peer):
    """FEATURES 11.033: where no node keeps one, neither is done."""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "q", "4M")
    for command in ("read", "write"):
        out = io(peer, "--object", "throttle-group,id=g", "--image-opts", "-c", f"{command} -b 0 512", opts.format(q=tmp_path / "q"), code=None)
        assert f"{command} failed: Operation not supported" in out.out + out.err


def test_vm_state_of_what_is_only_read(stacked):
    """FEATURES 11.033: an image that is open for reading keeps its state"""
    over = stacked[0].replace("driver=qcow2", "driver=raw", 1)
    assert "fail" not in io(False, "--image-opts", "-c", "write -b -P 3 0 512", over).out
    for opts in (over, over + ",file.read-only=on"):
        out = io(False, "-r", "--image-opts", "-c", "write -b -P 4 0 512", "-c", "read -b -P 3 0 512", opts, code=None)
        assert "write failed: Operation not permitted" in out.out + out.err and "verification" not in out.out and "read 512/512" in out.out


@BOTH
@pytest.mark.parametrize("group", ["throttle-group,id=g,limits.iops-total=2", "throttle-group,id=g,x-iops-total=2", '{"qom-type":"throttle-group","id":"g","limits":{"iops-total":2}}'])
def test_throttle_group(tmp_path, group, peer):
    """FEATURES 3.050, 3.075: a group of the command line holds its members up, together"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "a", "1M")
    opts = f"driver=throttle,throttle-group=g,file.driver=raw,file.file.filename={tmp_path}/a"
    begun = time.monotonic()
    out = io(peer, "--object", group, "--image-opts", *("-c", "write 0 512") * 6, opts).out
    assert out.count("wrote 512/512") == 6 and time.monotonic() - begun > 1.5


def test_throttle_group_refusals(tmp_path):
    """FEATURES 3.075: a group that is not there, ids that are taken, limits that are none or do not go together"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "a", "1M")
    opts = ("--image-opts", f"driver=throttle,throttle-group=g,file.driver=raw,file.file.filename={tmp_path}/a")
    for objects, word in (((), "throttle group 'g'"), (("throttle-group,id=h",), "throttle group 'g'"), (("throttle-group,id=g", "throttle-group,id=g"), "already"),
                          (("throttle-group,id=g", "secret,id=g,data=x"), "already"), (("secret,id=g,data=x", "throttle-group,id=g"), "already"),
                          (("throttle-group,id=g", "authz-simple,id=g,identity=x"), "already"), (("throttle-group",), "'id'"), (("throttle-group,id=1",), "'1'"),
                          (("throttle-group,id=g,x-iops-total=many",), "iops-total"), (("throttle-group,id=g,limits.iops=1",), "'iops'"), (("throttle-group,id=g,nothing=1",), "'nothing'"),
                          (("throttle-group,id=g,limits.iops-total=1,limits.iops-read=1",), "iops-read"), (('{"qom-type":"throttle-group","id":"g","limits":5}',), "limits")):
        words = [w for o in objects for w in ("--object", o)]
        assert word in run.byre("info", *words, *opts, code=1).err, objects
    assert run.byre("info", "--output=json", "--object", "qom-type=throttle-group,id=g,x-bps-total=0x100000", *opts).json["virtual-size"] == MIB
