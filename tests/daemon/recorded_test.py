# SPDX-License-Identifier: MIT
"""What jobs and commands record as a backing file shows what the node shows that lies there, and what is opened by such a name shows it, too (FEATURES 9.046, 9.055, 9.057, 9.021, 9.073, 1.079)."""
import json
import os

import pytest

from lib import run, wait

MIB = 1 << 20
STALLS = os.path.join(os.environ.get("BYRE_BUILD") or run.TOP / "build", "tests", "daemon", "folder-stalls.so")
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


def file_of(path, **more):
    return {"driver": "file", "filename": str(path), **more}


def nested(folder):
    """qcow2 in qcow2: the file alone, as qcow2, is another disk."""
    run.qemu_img("create", "-q", "-f", "qcow2", folder / "inner.qcow2", "4M")
    run.qemu_io(folder / "inner.qcow2", "write -P 1 0 4M")
    run.qemu_img("convert", "-f", "raw", "-O", "qcow2", folder / "inner.qcow2", folder / "base.img")
    return {"driver": "qcow2", "file": {"driver": "qcow2", "file": file_of(folder / "base.img")}}


def window(folder):
    run.qemu_img("create", "-q", "-f", "raw", folder / "base.img", "8M")
    run.qemu_io(folder / "base.img", "write -P 1 1M 4M", fmt="raw")
    return {"driver": "raw", "offset": MIB, "size": 4 * MIB, "file": file_of(folder / "base.img")}


def other_data(folder):
    """The image records d.raw, and gets e.raw."""
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={folder}/d.raw", folder / "base.img", "4M")
    run.qemu_io(folder / "base.img", "write -P 2 0 4M")
    run.qemu_img("create", "-q", "-f", "raw", folder / "e.raw", "4M")
    run.qemu_io(folder / "e.raw", "write -P 1 0 4M", fmt="raw")
    return {"driver": "qcow2", "file": file_of(folder / "base.img"), "data-file": file_of(folder / "e.raw", **{"node-name": "e"})}


BASES = {"nested": (nested, "lies over another format"), "window": (window, "shows a part of its file"), "data": (other_data, "has another external data file")}


@pytest.fixture
def chain(start, tmp_path):
    """chain(base, peer): top over mid over the node "base"; its folder and client. Of the disk 64K are of mid, the rest is of the base: 1."""
    def one(base, peer):
        options = BASES[base][0](tmp_path)
        for name in ("mid", "top"):
            run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", "4M")
        run.qemu_io(tmp_path / "mid.qcow2", "write -P 7 0 64k")
        daemon = start("daemon", peer=peer)
        client = daemon.qmp()
        client.ok("blockdev-add", node_name="base", read_only=True, **{k.replace("-", "_"): v for k, v in options.items()})
        client.ok("blockdev-add", driver="qcow2", node_name="mid", read_only=True, file=file_of(tmp_path / "mid.qcow2"), backing="base")
        client.ok("blockdev-add", driver="qcow2", node_name="top", file=file_of(tmp_path / "top.qcow2"), backing="mid")
        return daemon, client
    return one


JOBS = {"stream": ("block-stream", {"base_node": "base"}), "commit": ("block-commit", {"top_node": "mid", "base_node": "base"})}


def backing_of(path):
    return run.qemu_img("info", "--output=json", "-U", path).json.get("backing-filename")


def flat(folder, base, committed=False):
    """The content of the base, or what it becomes, by a name that says all."""
    driver = "raw" if base == "window" else "qcow2"
    run.qemu_img("create", "-q", "-f", driver, folder / "flat.img", "4M")
    run.qemu_io(folder / "flat.img", "write -P 1 0 4M", f"write -P {7 if committed else 1} 0 64k", fmt=driver)
    return str(folder / "flat.img")


@BOTH
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("job", JOBS)
def test_jobs_on_chains(chain, tmp_path, job, base, peer):
    """FEATURES 9.046, 9.055, 9.057: the disk reads the same through what is recorded, and what no name says is refused before anything has changed"""
    daemon, client = chain(base, peer)
    command, words = JOBS[job]
    words = {**words, "job_id": "j", "device": "top"}
    if not peer:
        said = client.refused(command, **words)
        assert BASES[base][1] in said and "base.img" in said and "'base'" in said and "'backing-file'" in said
        assert backing_of(tmp_path / "top.qcow2") is None and client.ok("query-jobs") == []
    if not peer or base == "data":               # the peer records the file alone there, and its disk reads wrong
        words["backing_file"] = flat(tmp_path, base, job == "commit")
    client.ok(command, **words)
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert daemon.stop()[0] == 0
    run.qemu_io(tmp_path / "top.qcow2", "read -P 7 0 64k", "read -P 1 64k 4032k")


@pytest.mark.parametrize("base", BASES)
def test_new_images(chain, tmp_path, base):
    """FEATURES 9.021, 9.073: neither a mirror nor a backup nor a snapshot makes an image that would name such a node; one that is there can be used"""
    daemon, client = chain(base, False)
    client.ok("block-stream", job_id="s", device="top", base_node="base", backing_file=flat(tmp_path, base))
    client.wait("BLOCK_JOB_COMPLETED", device="s")
    new = tmp_path / "new.qcow2"
    for command in ("drive-mirror", "drive-backup"):
        said = client.refused(command, job_id="j", device="top", target=str(new), format="qcow2", sync="top")
        assert BASES[base][1] in said and "base.img" in said and "'base'" in said and "mode=existing" in said
    assert BASES[base][1] in client.refused("blockdev-snapshot-sync", node_name="base", snapshot_file=str(new), snapshot_node_name="n")
    said = client.refused("transaction", actions=[{"type": "drive-backup", "data": {"job-id": "j", "device": "top", "target": str(new), "format": "qcow2", "sync": "top"}}])
    assert BASES[base][1] in said and not new.exists() and not [j for j in client.ok("query-jobs") if j["id"] == "j"]
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "flat.img", "-F", "raw" if base == "window" else "qcow2", new)
    client.ok("drive-backup", job_id="j", device="top", target=str(new), format="qcow2", sync="top", mode="existing")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert daemon.stop()[0] == 0
    run.qemu_io(new, "read -P 7 0 64k", "read -P 1 64k 4032k")


@pytest.mark.parametrize("what", ["file", "name", "node"])
def test_the_same_data_file_said_once_more(start, tmp_path, what):
    """FEATURES 1.079, 9.055: an external data file that is given, and is the one that the image records, is no other one"""
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/d.raw", tmp_path / "base.img", "4M")
    run.qemu_io(tmp_path / "base.img", "write -P 1 0 4M")
    for name in ("mid", "top"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / f"{name}.qcow2", "4M")
    daemon = start("daemon")
    client = daemon.qmp()
    data = file_of(tmp_path / "d.raw") if what == "file" else file_of(tmp_path / "d.raw", **{"node-name": "d"})
    if what == "node":
        client.ok("blockdev-add", driver="raw", node_name="r", read_only=True, file=data)
        data = "r"
    client.ok("blockdev-add", driver="qcow2", node_name="base", read_only=True, file=file_of(tmp_path / "base.img"), data_file=data)
    client.ok("blockdev-add", driver="qcow2", node_name="mid", read_only=True, file=file_of(tmp_path / "mid.qcow2"), backing="base")
    client.ok("blockdev-add", driver="qcow2", node_name="top", file=file_of(tmp_path / "top.qcow2"), backing="mid")
    client.ok("block-stream", job_id="j", device="top", base_node="base")
    assert "error" not in client.wait("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert daemon.stop()[0] == 0
    assert json.dumps(backing_of(tmp_path / "top.qcow2")).endswith('base.img"')
    run.qemu_io(tmp_path / "top.qcow2", "read -P 1 0 4M")


def images(folder):
    """t over m, m over b1, by their headers; b2 is another disk. d.raw is what a.qcow2 records, e.raw is another one; u lies over a."""
    for name, value in (("b1", 1), ("b2", 2)):
        run.qemu_img("create", "-q", "-f", "qcow2", folder / f"{name}.qcow2", "1M")
        run.qemu_io(folder / f"{name}.qcow2", f"write -P {value} 0 1M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={folder}/d.raw", folder / "a.qcow2", "1M")
    run.qemu_io(folder / "a.qcow2", "write -P 1 0 1M")
    run.qemu_img("create", "-q", "-f", "raw", folder / "e.raw", "1M")
    run.qemu_io(folder / "e.raw", "write -P 2 0 1M", fmt="raw")
    for name, below in (("m", "b1"), ("t", "m"), ("u", "a")):
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2", folder / f"{name}.qcow2")


@BOTH
@pytest.mark.parametrize("how", ["data-node", "data-nested", "backing", "backing-reopened", "backing-filter", "below-that"])
def test_opened_by_name(start, tmp_path, how, peer):
    """FEATURES 11.001, 1.079: an image opened by the name in an overlay's header shows what is recorded, whatever a node of that file shows"""
    images(tmp_path)
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()
    client.ok("blockdev-add", driver="qcow2", node_name="b2", read_only=True, file=file_of(tmp_path / "b2.qcow2"))
    top = "u" if how.startswith("data") else "t"
    if how == "data-node":
        client.ok("blockdev-add", node_name="e", read_only=True, **file_of(tmp_path / "e.raw"))
    m = {"driver": "qcow2", "read_only": True, "node_name": "m", "file": file_of(tmp_path / ("a.qcow2" if top == "u" else "m.qcow2"), **{"node-name": "mf"})}
    if top == "u":
        client.ok("blockdev-add", data_file="e" if how == "data-node" else file_of(tmp_path / "e.raw"), **m)
    elif how == "backing-reopened":
        client.ok("blockdev-add", **m)
        client.ok("blockdev-reopen", options=[{"driver": "qcow2", "read-only": True, "node-name": "m", "file": "mf", "backing": "b2"}])
    elif how == "backing-filter":
        client.ok("blockdev-add", driver="blkdebug", node_name="c", image="b2", read_only=True)
        client.ok("blockdev-add", backing="c", **m)
    else:
        client.ok("blockdev-add", backing="b2", **m)
    if how == "below-that":                      # t is open already, over the wrong m, and an image over t comes by its name
        client.ok("blockdev-add", driver="qcow2", node_name="tt", read_only=True, file=file_of(tmp_path / "t.qcow2"), backing="m")
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", "t.qcow2", "-F", "qcow2", tmp_path / "v.qcow2", "1M")
        top = "v"
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of(tmp_path / f"{top}.qcow2"))
    client.ok("block-export-add", type="nbd", id="x", node_name="n", writable=True)
    out = run.run("qemu-io", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "write -P 9 512 512", f"nbd+unix:///n?socket={daemon.folder}/n.sock").out
    assert "verification failed" not in out
    assert daemon.stop()[0] == 0
    run.qemu_io(tmp_path / f"{top}.qcow2", "read -P 1 0 512", "read -P 9 512 512", "read -P 1 1k 63k")


def test_still_shared(start, tmp_path):
    """FEATURES 11.001: an image that shows what headers record is opened once, also after a reopen has named the same backing image"""
    images(tmp_path)
    daemon = start("daemon")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="qcow2", node_name="b", read_only=True, file=file_of(tmp_path / "b1.qcow2"))
    client.ok("blockdev-add", driver="qcow2", node_name="m", read_only=True, file=file_of(tmp_path / "m.qcow2", **{"node-name": "mf"}))
    for below in ("b", None, "b"):
        client.ok("blockdev-reopen", options=[{"driver": "qcow2", "read-only": True, "node-name": "m", "file": "mf", "backing": below}])
    client.ok("blockdev-add", driver="qcow2", node_name="t", file=file_of(tmp_path / "t.qcow2"))
    assert sorted(n["node-name"] for n in client.ok("query-named-block-nodes") if n["drv"] == "qcow2") == ["b", "m", "t"]
    assert daemon.stop()[0] == 0


CHAINS = ["other", "none", "unrecorded", "below", "reopened", "filter"]


@pytest.fixture
def rechained(start, tmp_path):
    """rechained(how, peer): a client whose node "m" rests on other images than its header says; "filter": on those that it says, below a filter."""
    images(tmp_path)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "bare.qcow2", "1M")

    def one(how, peer):
        daemon = start("daemon", peer=peer)
        client = daemon.qmp()
        for b in ("b1", "b2"):
            client.ok("blockdev-add", driver="qcow2", node_name=b, read_only=True, file=file_of(tmp_path / f"{b}.qcow2"))
        path = tmp_path / {"unrecorded": "bare.qcow2", "below": "t.qcow2"}.get(how, "m.qcow2")
        below = {"none": None, "reopened": "b1"}.get(how, "b2")
        if how == "filter":
            client.ok("blockdev-add", driver="blkdebug", node_name="c", image="b1", read_only=True)
            below = "c"
        if how == "below":
            client.ok("blockdev-add", driver="qcow2", node_name="mm", read_only=True, file=file_of(tmp_path / "m.qcow2"), backing="b2")
            below = "mm"
        client.ok("blockdev-add", driver="qcow2", node_name="m", read_only=True, file=file_of(path, **{"node-name": "mf"}), backing=below)
        if how == "reopened":
            client.ok("blockdev-reopen", options=[{"driver": "qcow2", "read-only": True, "node-name": "m", "file": "mf", "backing": "b2"}])
        return daemon, client
    return one


@pytest.mark.parametrize("how,peer", [(h, p) for h in CHAINS for p in (False, True) if h != "filter" or not p])
def test_other_backing_images(rechained, tmp_path, how, peer):
    """FEATURES 9.046, 9.055, 9.073: a node whose backing image is another one than its header says is not recorded by the name of its file, which would show that one; the peer
    records all of it. Images below a filter are the same."""
    (daemon, client), shown = rechained(how, peer), 1 if how == "filter" else 0 if how == "none" else 2
    new, top = tmp_path / "new.qcow2", tmp_path / "top.qcow2"
    run.qemu_img("create", "-q", "-f", "qcow2", top, "1M")
    calls = (("blockdev-snapshot-sync", {"node_name": "m", "snapshot_file": str(new), "snapshot_node_name": "s"}),
             ("block-stream", {"job_id": "j", "device": "top", "base_node": "m"}),
             ("drive-backup", {"job_id": "j", "device": "top", "target": str(new), "format": "qcow2", "sync": "top"}))
    if peer or how == "filter":
        client.ok(calls[0][0], **calls[0][1])
    else:
        client.ok("blockdev-add", driver="qcow2", node_name="top", file=file_of(top), backing="m")
        for command, words in calls:
            said = client.refused(command, **words)
            assert "other backing images than headers record" in said and "'m'" in said, command
        assert not new.exists() and client.ok("query-jobs") == [] and backing_of(top) is None
        client.ok("blockdev-del", node_name="top")
        name = {"none": "bare"}.get(how, "b2")           # an image that says what the node shows
        run.qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / f"{name}.qcow2", "-F", "qcow2", new)
        client.ok("blockdev-snapshot-sync", node_name="m", snapshot_file=str(new), snapshot_node_name="s", mode="existing")
    assert daemon.stop()[0] == 0
    run.qemu_io(new, f"read -P {shown} 0 1M", options=["-r"])


def test_formats_that_are_not_recorded(start, tmp_path):
    """FEATURES 9.055: where a header says no format, the name means what would be guessed: not a raw disk in which there is an image."""
    raw, image, over = tmp_path / "raw", tmp_path / "image", tmp_path / "over"
    run.qemu_img("create", "-q", "-f", "raw", raw, "1M")
    run.qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    for n, (below, fmt, fits) in enumerate(((image, "qcow2", True), (raw, "raw", True), (image, "raw", False))):
        run.qemu_img("create", "-q", "-f", "qcow2", over, "1M")
        run.run("/usr/bin/python3", "-c", f"""
import struct
f = open({str(over)!r}, "r+b")
f.seek(8); f.write(struct.pack(">QI", 4096, {len(str(below))}))
f.seek(4096); f.write({str(below).encode()!r})
""")
        daemon = start("daemon")
        client = daemon.qmp()
        client.ok("blockdev-add", driver=fmt, node_name="b", read_only=True, file=file_of(below))
        client.ok("blockdev-add", driver="qcow2", node_name="o", file=file_of(over), backing="b")
        call = {"node_name": "o", "snapshot_file": str(tmp_path / f"s{n}"), "snapshot_node_name": "s"}
        if fits:
            client.ok("blockdev-snapshot-sync", **call)
        else:
            assert "other backing images" in client.refused("blockdev-snapshot-sync", **call)
        assert daemon.stop()[0] == 0


def test_a_file_server_that_hangs(start, tmp_path):
    """FEATURES 9.021: whether a recorded name means what lies below is asked of the file system; while it does not answer, everything else goes on"""
    stall = tmp_path / "stall"
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "4M")
    os.symlink(tmp_path / "base.qcow2", tmp_path / "link.qcow2")
    run.qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "link.qcow2", "-F", "qcow2", tmp_path / "top.qcow2")
    options = f"{os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0"      # what is preloaded comes before it
    daemon = start("daemon", env={"LD_PRELOAD": STALLS, "REALPATH_STALLS": str(stall), "ASAN_OPTIONS": options})
    one, other = daemon.qmp(), daemon.qmp()
    one.ok("blockdev-add", driver="qcow2", node_name="base", file=file_of(tmp_path / "base.qcow2"))
    one.ok("blockdev-add", driver="qcow2", node_name="top", file=file_of(tmp_path / "top.qcow2"), backing=None)
    stall.touch()
    try:
        one.send(json.dumps({"execute": "blockdev-snapshot", "arguments": {"node": "base", "overlay": "top"}}) + "\n")
        wait.until(lambda: (tmp_path / "stall.in").exists(), "nobody asks")
        other.ok("query-version")
        other.ok("query-block-jobs")
    finally:
        stall.unlink()
    while "event" in (answer := one.receive()):
        pass
    assert "return" in answer, answer
    one.ok("blockdev-add", driver="qcow2", node_name="beside", read_only=True, file=file_of(tmp_path / "link.qcow2"))
    one.close()
    other.close()
