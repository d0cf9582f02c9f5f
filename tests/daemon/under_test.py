# SPDX-License-Identifier: MIT
"""Formats over filters and over other formats, and what lies below a format, beside the peer (FEATURES 3.052, 3.063, 3.064, 9.098, 11.001)."""
import json
import threading

import pytest

from lib import run

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])


@pytest.fixture
def world(start, tmp_path):
    """world(peer, word...): a daemon with an NBD server and a throttle group, its client, and an export for each node that is asked for."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", "16M")

    def one(peer):
        daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", "--object", "throttle-group,id=g", "--object", "secret,id=s,data=abc",
                       peer=peer)
        client = daemon.qmp()

        def guest(node, *commands, code=0):
            return run.run("qemu-io", "-f", "raw", *[w for c in commands for w in ("-c", c)], f"nbd+unix:///{node}?socket={daemon.folder}/n.sock", code=code)
        return daemon, client, guest
    return one


def export(client, node):
    client.ok("block-export-add", type="nbd", id=f"e-{node}", node_name=node, writable=True)


def unexport(client, node):
    client.ok("block-export-del", id=f"e-{node}", mode="hard")       # the last client is perhaps not quite gone
    client.wait("BLOCK_EXPORT_DELETED", id=f"e-{node}")


def file_of(name, **more):
    return {"driver": "file", "filename": name, **more}


def over_throttle(name="a.qcow2"):
    return {"driver": "throttle", "throttle-group": "g", "node-name": "t", "file": file_of(name, **{"node-name": "f"})}


@BOTH
def test_over_a_filter(world, tmp_path, peer):
    """A qcow2 image over throttle over a file: it grows, it is discarded and zeroed, nobody takes what lies below away, and the file is sound."""
    daemon, client, guest = world(peer)
    client.ok("blockdev-add", driver="qcow2", node_name="n", discard="unmap", file=over_throttle())
    export(client, "n")
    out = guest("n", "write -P 7 0 8M", "write -z 1M 1M", "discard 3M 1M", "write -P 9 5000 100", "flush", "read -P 9 5000 100", "read -P 0 1M 1M", "read -P 7 4M 4M",
                "read -P 0 9M 1M").out
    assert "fail" not in out and "error" not in out
    picture = client.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    edges = {(names[e["parent"]], e["name"], names[e["child"]]) for e in picture["edges"]}
    assert {("n", "file", "t"), ("t", "file", "f")} <= edges
    assert [p for p, _, c in edges if c == "t"] == ["n"]
    client.refused("blockdev-del", node_name="t")
    client.refused("block_resize", node_name="f", size=64 * MIB)
    assert "root block node" in client.refused("blockdev-mirror", job_id="m", device="t", target="n", sync="full") or not peer
    unexport(client, "n")
    client.ok("blockdev-del", node_name="n")
    assert [n for n in client.ok("query-named-block-nodes") if n["node-name"] in ("t", "f")] == []
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 9 5000 100", "read -P 0 1M 1M", "read -P 7 4M 4M")


def test_over_qed(world, tmp_path):
    """QED never becomes shorter: an image is made in it all the same, grows it, and is closed without an error; what it was before is gone. (The peer's
    image grows as well, and the size of the QED one stays what it was, so that its tables lie behind the end.)"""
    run.qemu_img("create", "-q", "-f", "qed", tmp_path / "q.qed", "2M")
    run.qemu_io(tmp_path / "q.qed", "write -P 0xee 0 2M", fmt="qed")
    daemon, client, guest = world(False)
    client.ok("blockdev-add", driver="qed", node_name="q", file=file_of(str(tmp_path / "q.qed")))
    client.ok("blockdev-create", job_id="j", options={"driver": "qcow2", "file": "q", "size": 16 * MIB})
    client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert [j.get("error") for j in client.ok("query-jobs")] == [None]
    client.ok("job-dismiss", id="j")
    client.ok("blockdev-add", driver="qcow2", node_name="in", file="q")
    export(client, "in")
    out = guest("in", "read -P 0 0 16M", "write -P 5 0 3M", "write -P 6 9M 300", "flush", "read -P 5 0 3M", "read -P 6 9M 300", "read -P 0 3M 6M").out
    assert "fail" not in out and "error" not in out
    unexport(client, "in")
    client.ok("blockdev-del", node_name="in")
    client.ok("blockdev-add", driver="qcow2", node_name="in", file="q")
    export(client, "in")
    assert "fail" not in guest("in", "read -P 5 0 3M", "read -P 6 9M 300", "read -P 0 10M 6M").out
    unexport(client, "in")
    client.ok("blockdev-del", node_name="in")
    client.ok("blockdev-del", node_name="q")
    assert daemon.stop()[0] == 0
    run.qemu_img("check", "-f", "qed", tmp_path / "q.qed")
    run.qemu_img("convert", "-f", "qed", "-O", "raw", tmp_path / "q.qed", tmp_path / "q.raw")
    run.qemu_img("check", "-f", "qcow2", tmp_path / "q.raw")


@BOTH
def test_over_formats(world, tmp_path, peer):
    """qcow2 in qcow2, part of a qcow2 image as a raw disk, and LUKS in qcow2: content, growth and size against the files afterwards."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "small.qcow2", "32M")
    run.qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "small.qcow2", tmp_path / "x.qcow2")
    run.qemu_img("resize", "-q", tmp_path / "x.qcow2", "64M")
    run.qemu_img("create", "-q", "--object", "secret,id=s,data=abc", "-f", "luks", "-o", "key-secret=s,iter-time=10", tmp_path / "k.luks", "8M")
    run.qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "k.luks", tmp_path / "k.qcow2")
    daemon, client, guest = world(peer)
    for name in ("a", "x", "k"):
        client.ok("blockdev-add", driver="qcow2", node_name=name, file=file_of(str(tmp_path / f"{name}.qcow2")))
    client.ok("blockdev-add", driver="raw", node_name="part", offset=MIB, size=8 * MIB, file="a")
    client.ok("blockdev-add", driver="qcow2", node_name="in", file="x")
    client.ok("blockdev-add", driver="luks", node_name="plain", file="k", key_secret="s")
    for name in ("part", "in", "plain"):
        export(client, name)
        guest(name, "write -P 5 0 3M", "write -P 6 4M 300", "flush", "read -P 5 0 3M", "read -P 6 4M 300")
    client.refused("blockdev-add", driver="qcow2", node_name="again", file="x")
    for name in ("part", "in", "plain"):
        unexport(client, name)
        client.ok("blockdev-del", node_name=name)
    assert daemon.stop()[0] == 0
    for name in ("a", "x", "k"):
        run.qemu_img("check", tmp_path / f"{name}.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 0 0 1M", "read -P 5 1M 3M", "read -P 6 5M 300")
    run.qemu_img("convert", "-O", "raw", tmp_path / "x.qcow2", tmp_path / "inner.qcow2")
    run.qemu_img("check", "-f", "qcow2", tmp_path / "inner.qcow2")
    run.qemu_io(tmp_path / "inner.qcow2", "read -P 5 0 3M", "read -P 6 4M 300", "read -P 0 8M 1M")


@BOTH
def test_errors_below(world, tmp_path, peer):
    """FEATURES 3.052: what a filter below refuses is the guest's error, a flush too, so it reaches the file; and the image is sound"""
    daemon, client, guest = world(peer)
    rules = [{"event": "none", "iotype": "flush", "errno": 5, "once": True}, {"event": "none", "iotype": "write", "errno": 28, "sector": 4096, "once": True}]
    client.ok("blockdev-add", driver="qcow2", node_name="n", file={"driver": "blkdebug", "image": file_of("a.qcow2"), "inject-error": rules[1:]})
    export(client, "n")
    failed = guest("n", "write -P 1 0 8M", code=None).out + guest("n", "write -P 1 0 8M", code=None).out
    assert "No space left" in failed
    assert "wrote" in guest("n", "write -P 2 0 8M", "flush", "read -P 2 0 8M").out
    unexport(client, "n")
    client.ok("blockdev-del", node_name="n")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file={"driver": "blkdebug", "image": file_of("a.qcow2"), "inject-error": rules[:1]})
    export(client, "n")
    bad = guest("n", "write -P 3 0 64k", "flush", code=None)
    assert "error" in bad.out + bad.err
    daemon.stop()
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", "read -P 2 1M 7M")


@BOTH
@pytest.mark.parametrize("filtered", [False, True], ids=["file", "filter"])
def test_threshold_below_a_format(world, tmp_path, peer, filtered):
    """FEATURES 9.098: a threshold at the node of the file is told of what the format writes there, once"""
    daemon, client, guest = world(peer)
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=over_throttle() if filtered else file_of("a.qcow2", **{"node-name": "f"}))
    export(client, "n")
    client.ok("block-set-write-threshold", node_name="f", write_threshold=3 * MIB)
    guest("n", "write -P 1 0 2M")
    assert not [e for e in client.events if e["event"] == "BLOCK_WRITE_THRESHOLD"]
    guest("n", "write -P 1 2M 2M", "write -P 1 4M 2M")
    told = client.wait("BLOCK_WRITE_THRESHOLD")["data"]
    assert told["node-name"] == "f" and told["write-threshold"] == 3 * MIB and 0 < told["amount-exceeded"] <= 4 * MIB
    assert client.ok("query-named-block-nodes") and not [e for e in client.events if e["event"] == "BLOCK_WRITE_THRESHOLD"]
    if not filtered:                             # another store in its place
        client.ok("blockdev-reopen", options=[file_of("a.qcow2", **{"node-name": "f", "discard": "unmap"})])
        client.ok("block-set-write-threshold", node_name="f", write_threshold=MIB)
        client.ok("blockdev-reopen", options=[file_of("a.qcow2", **{"node-name": "f"})])
        guest("n", "write -P 1 0 2M")
        assert client.wait("BLOCK_WRITE_THRESHOLD")["data"]["write-threshold"] == MIB
    assert daemon.stop()[0] == 0


@BOTH
def test_jobs_below_a_format(world, tmp_path, peer):
    """A mirror or a commit would put another node into the place of an image's file: refused"""
    (tmp_path / "to.raw").write_bytes(bytes((tmp_path / "a.qcow2").stat().st_size))
    _, client, _ = world(peer)
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=file_of("a.qcow2", **{"node-name": "f"}))
    client.ok("blockdev-add", **file_of("to.raw", **{"node-name": "to"}))
    assert "Need a root block node" in client.refused("blockdev-mirror", job_id="m", device="f", target="to", sync="full")
    client.refused("block-commit", job_id="c", device="f")
    client.refused("block-stream", job_id="s", device="f")
    assert client.ok("query-jobs") == []
    if peer:
        return
    client.ok("blockdev-del", node_name="n")     # the other way round: a file that is mirrored does not begin to grow under an image
    client.ok("blockdev-add", **file_of("a.qcow2", **{"node-name": "f"}))
    client.ok("blockdev-mirror", job_id="m", device="f", target="to", sync="full")
    client.wait("BLOCK_JOB_READY")
    assert "a job copies it" in client.refused("blockdev-add", driver="qcow2", node_name="n", file="f")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file="f", read_only=True)


def marked(client, node, name):
    return next(b for n in client.ok("query-named-block-nodes") if n["node-name"] == node for b in n["dirty-bitmaps"] if b["name"] == name)


def test_bitmaps_below_a_format(world, tmp_path):
    """A bitmap at a node below sees what the format writes; where it would not, it is refused"""
    _, client, guest = world(False)
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "b.qcow2", "16M")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=over_throttle())
    client.ok("block-dirty-bitmap-add", node="f", name="m")
    export(client, "n")
    guest("n", "write -P 1 0 4M", "flush")
    assert marked(client, "f", "m")["count"] >= 4 * MIB
    client.ok("blockdev-add", **file_of(str(tmp_path / "b.qcow2"), **{"node-name": "g"}))
    client.ok("blockdev-add", driver="qcow2", node_name="o", file="g")
    assert "writes to its file directly" in client.refused("block-dirty-bitmap-add", node="g", name="m")
    client.ok("blockdev-del", node_name="o")
    client.ok("block-dirty-bitmap-add", node="g", name="m")
    client.ok("blockdev-add", driver="qcow2", node_name="o", file="g")
    export(client, "o")
    guest("o", "write -P 1 0 4M", "flush")
    assert marked(client, "g", "m")["count"] >= 4 * MIB


def test_changes_below_under_load(world, tmp_path):
    """Bitmaps come and go, the file is opened in another way and the image is drained, all below a format that grows meanwhile"""
    daemon, client, guest = world(False)
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=over_throttle())
    export(client, "n")
    writes = [f"write -P {1 + i % 200} {i * 37 % 256 * 64}k 64k" for i in range(256)]
    load = threading.Thread(target=guest, args=("n", *writes))
    load.start()
    rounds = 0
    while load.is_alive() or rounds < 20:
        client.ok("block-dirty-bitmap-add", node="f", name="m")
        client.ok("blockdev-reopen", options=[file_of("a.qcow2", **{"node-name": "f", "discard": ("unmap", "ignore")[rounds % 2]})])
        client.ok("block-dirty-bitmap-remove", node="f", name="m")
        client.ok("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {"node": node, "name": "t"}} for node in ("f", "n")])
        for node in ("f", "n"):
            client.ok("block-dirty-bitmap-remove", node=node, name="t")
        client.ok("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "n", "file": "t", "lazy-refcounts": False}])
        rounds += 1
    load.join()
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_io(tmp_path / "a.qcow2", *[f"read -P {1 + i % 200} {i * 37 % 256 * 64}k 64k" for i in range(256)])


def test_names_of_what_lies_over_formats(world, tmp_path):
    """An overlay records a file name: it can name an image over a filter, and not what lies over another format"""
    _, client, _ = world(False)
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=over_throttle())
    client.ok("blockdev-snapshot-sync", node_name="n", snapshot_file=str(tmp_path / "s.qcow2"), snapshot_node_name="s")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "b.qcow2", "16M")
    client.ok("blockdev-add", driver="qcow2", node_name="b", file=file_of(str(tmp_path / "b.qcow2")))
    client.ok("blockdev-add", driver="raw", node_name="r", file="b")
    said = client.refused("blockdev-snapshot-sync", node_name="r", snapshot_file=str(tmp_path / "s2.qcow2"), snapshot_node_name="s2")
    assert "lies over another format" in said
    assert json.loads(run.byre("info", "-U", "--output=json", tmp_path / "s.qcow2").out)["backing-filename"].endswith("a.qcow2")


def test_formats_over_formats_end(world, tmp_path):
    """So many, and not more"""
    _, client, guest = world(False)
    client.ok("blockdev-add", driver="raw", node_name="r0", file={"driver": "qcow2", "node-name": "q", "file": file_of("a.qcow2")})
    last = 0
    while "error" not in client.ask("blockdev-add", driver="raw", node_name=f"r{last + 1}", file=f"r{last}"):
        last += 1
        assert last < 10
    export(client, f"r{last}")
    guest(f"r{last}", "write -P 1 0 4M", "read -P 1 0 4M", "write -P 2 12345 77", "flush", "read -P 2 12345 77")


def test_reopening_the_file_is_no_foreign_write(world, tmp_path):
    """FEATURES 1.133: the file of an image that is open for reading gets other options: nobody has written it, and bitmaps stay what they are"""
    daemon, client, guest = world(False)
    node, image = file_of("a.qcow2", **{"node-name": "f"}), {"driver": "qcow2", "node-name": "n", "file": "f"}
    client.ok("blockdev-add", **node)
    client.ok("blockdev-add", **image)
    export(client, "n")
    guest("n", "write -P 1 0 1M")
    client.ok("block-dirty-bitmap-add", node="n", name="m")
    unexport(client, "n")
    client.ok("blockdev-reopen", options=[{**image, "read-only": True}])
    for discard in ("unmap", "ignore", "unmap"):
        client.ok("blockdev-reopen", options=[{**node, "discard": discard}])
    client.ok("blockdev-reopen", options=[image])
    assert not marked(client, "n", "m").get("inconsistent")
    out = daemon.stop()[1]
    assert "another program" not in out


def qcow2_in_qcow2(tmp_path, bitmap=False):
    """A small image in x.qcow2, whose disk has room behind it."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "small.qcow2", "32M")
    if bitmap:
        run.qemu_img("bitmap", "--add", tmp_path / "small.qcow2", "m")
        run.qemu_io(tmp_path / "small.qcow2", "write 0 4M")
    run.qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "small.qcow2", tmp_path / "x.qcow2")
    run.qemu_img("resize", "-q", tmp_path / "x.qcow2", "64M")
    return file_of(str(tmp_path / "x.qcow2"))


def while_others(daemon, *questions):
    """A thread in which another client asks these in turn until it is told to stop. Returns how that is done; what it was told is then known."""
    other, over, answers = daemon.qmp(), threading.Event(), []

    def go():
        while not over.is_set():
            answers.extend(other.ask(q, **words) for q, words in questions)
    thread = threading.Thread(target=go, daemon=True)
    thread.start()

    def stop():
        over.set()
        thread.join()
        other.close()
        return answers
    return stop


def test_opened_over_a_node_that_changes(world, tmp_path):
    """A format is opened over another one again and again, while bitmaps come and go down there: none waits for the other for ever"""
    daemon, client, guest = world(False)
    x = qcow2_in_qcow2(tmp_path)
    client.ok("blockdev-add", driver="qcow2", node_name="x", file=x)
    stop = while_others(daemon, ("block-dirty-bitmap-add", {"node": "x", "name": "m", "persistent": True}), ("block-dirty-bitmap-remove", {"node": "x", "name": "m"}))
    for _ in range(60):
        client.ok("blockdev-add", driver="qcow2", node_name="in", file="x")
        client.ok("blockdev-del", node_name="in")
    answers = stop()
    assert answers and all("return" in a for a in answers)
    client.ok("blockdev-add", driver="qcow2", node_name="in", file="x")
    export(client, "in")
    guest("in", "write -P 5 0 1M", "flush", "read -P 5 0 1M")


def test_merged_from_an_image_above(world, tmp_path):
    """Bits that lie in an image over a node are read through that node, and merged into a bitmap of it"""
    _, client, _ = world(False)
    client.ok("blockdev-add", driver="qcow2", node_name="x", file=qcow2_in_qcow2(tmp_path, bitmap=True))
    client.ok("blockdev-add", driver="qcow2", node_name="in", file="x", read_only=True)
    client.ok("block-dirty-bitmap-add", node="x", name="t", granularity=65536)
    said = client.ask("block-dirty-bitmap-merge", node="x", target="t", bitmaps=[{"node": "in", "name": "m"}])
    assert "33554432 bytes" in said["error"]["desc"]                     # which it says when it has read them


def test_a_file_is_opened_anew_while_images_come(world, tmp_path):
    """FEATURES 11.005: images over a file come and go while the file gets other options"""
    daemon, client, _ = world(False)
    client.ok("blockdev-add", **file_of("a.qcow2", **{"node-name": "f"}))
    stop = while_others(daemon, ("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": "f"}), ("blockdev-del", {"node-name": "n"}))
    for i in range(100):
        client.ok("blockdev-reopen", options=[file_of("a.qcow2", **{"node-name": "f", "discard": ("unmap", "ignore")[i % 2]})])
    answers = stop()
    assert sum("return" in a for a in answers) > 2
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "a.qcow2")


def test_space_is_taken_while_the_file_is_opened_anew(world, tmp_path):
    """FEATURES 3.059: the filter preallocate takes space, blockdev-create too, while the file at the bottom gets other options"""
    daemon, client, guest = world(False)
    (tmp_path / "to.raw").write_bytes(b"")
    below = {"driver": "preallocate", "prealloc-size": 65536, "prealloc-align": 65536, "file": file_of("a.qcow2", **{"node-name": "f"})}
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=below)
    client.ok("blockdev-add", **file_of(str(tmp_path / "to.raw"), **{"node-name": "to"}))
    export(client, "n")
    stop = while_others(daemon, *[("blockdev-reopen", {"options": [file_of(path, **{"node-name": node, "discard": discard})]}) for discard in ("unmap", "ignore")
                                  for node, path in (("f", "a.qcow2"), ("to", str(tmp_path / "to.raw")))])
    client.ok("blockdev-create", job_id="j", options={"driver": "qcow2", "file": "to", "size": 64 * MIB, "preallocation": "falloc"})
    guest("n", *[f"write -P {1 + i} {i * 64}k 64k" for i in range(128)], "flush")
    client.wait("JOB_STATUS_CHANGE", status="concluded")
    assert "error" not in client.ok("query-jobs")[0]
    client.ok("job-dismiss", id="j")
    answers = stop()
    assert answers and all("return" in a for a in answers)
    assert daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "a.qcow2")
    run.qemu_img("check", "-f", "qcow2", tmp_path / "to.raw")
    run.qemu_io(tmp_path / "a.qcow2", *[f"read -P {1 + i} {i * 64}k 64k" for i in range(128)])


def test_a_part_grows_and_so_does_its_file(world, tmp_path):
    """FEATURES 3.026, 8.012: a disk that is the rest of a file behind an offset gets another size; the node of the file ends where the file does"""
    daemon, client, guest = world(False)
    with open(tmp_path / "b", "wb") as f:
        f.truncate(MIB)
    client.ok("blockdev-add", **file_of(str(tmp_path / "b"), **{"node-name": "f"}))
    client.ok("blockdev-add", driver="raw", node_name="r", file="f", offset=65536)
    client.ok("block_resize", node_name="r", size=2 * MIB)
    sizes = {n["node-name"]: n["image"]["virtual-size"] for n in client.ok("query-named-block-nodes")}
    assert sizes == {"f": 2 * MIB + 65536, "r": 2 * MIB} and (tmp_path / "b").stat().st_size == sizes["f"]


def occupied(path):
    return path.stat().st_blocks * 512


@BOTH
def test_preallocate(world, tmp_path, peer):
    """FEATURES 3.059: space is taken in steps ahead of what is written, and what is not used is given back at the end"""
    _, client, guest = world(peer)
    path = tmp_path / "a.qcow2"
    below = {"driver": "preallocate", "node-name": "p", "prealloc-size": 8 * MIB, "prealloc-align": MIB, "file": file_of("a.qcow2", **{"node-name": "f"})}
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=below)
    export(client, "n")
    guest("n", "write -P 1 0 1M")
    assert 9 * MIB <= occupied(path)
    guest("n", "write -P 2 1M 3M", "flush", "read -P 1 0 1M", "read -P 2 1M 3M")
    unexport(client, "n")
    client.ok("blockdev-del", node_name="n")
    assert occupied(path) < 6 * MIB and path.stat().st_size < 6 * MIB
    run.qemu_img("check", path)
    assert "prealloc-align" in client.refused("blockdev-add", driver="preallocate", node_name="p", file=file_of("a.qcow2"), prealloc_align=1000)
    (tmp_path / "b").write_bytes(b"")
    client.ok("blockdev-add", driver="raw", node_name="b", file={"driver": "preallocate", "prealloc-size": MIB, "prealloc-align": 5 * MIB, "file": file_of(str(tmp_path / "b"))})
    client.ok("block_resize", node_name="b", size=MIB)
    if not peer:                                                     # the peer's alignment is one of writes
        assert occupied(tmp_path / "b") == 4 * MIB and (tmp_path / "b").stat().st_size == MIB


def test_preallocate_gives_nothing_back_that_somebody_else_has_got(world, tmp_path):
    """FEATURES 3.059: filters end while an image that lies over the same file, but not over them, makes it longer"""
    daemon, client, guest = world(False)
    path = tmp_path / "a.qcow2"
    client.ok("blockdev-add", **file_of("a.qcow2", **{"node-name": "f"}))
    for i in range(40):
        client.ok("blockdev-add", driver="preallocate", node_name=f"p{i}", file="f", prealloc_size=64 * MIB)
        client.ok("blockdev-add", driver="raw", node_name="r", file=f"p{i}")
        client.ok("block_resize", node_name="r", size=path.stat().st_size + 512)
        client.ok("blockdev-del", node_name="r")
    client.ok("blockdev-add", driver="qcow2", node_name="n", file="f")
    export(client, "n")
    writer = threading.Thread(target=guest, args=("n", *[f"aio_write -P {1 + i % 255} {i * 64}k 64k" for i in range(256)], "aio_flush"))
    writer.start()
    for i in range(40):
        client.ok("blockdev-del", node_name=f"p{i}")
    writer.join()
    assert occupied(path) > 64 * MIB
    guest("n", *[f"read -P {1 + i % 255} {i * 64}k 64k" for i in range(256)])
    unexport(client, "n")
    client.ok("blockdev-del", node_name="n")
    assert occupied(path) < 32 * MIB
    assert daemon.stop()[0] == 0
    run.qemu_img("check", path)


def test_preallocate_and_a_kill(world, tmp_path):
    """A program that dies leaves a file of the right length, with space behind it"""
    daemon, client, guest = world(False)
    path = tmp_path / "a.qcow2"
    below = {"driver": "preallocate", "prealloc-size": 8 * MIB, "file": file_of("a.qcow2")}
    client.ok("blockdev-add", driver="qcow2", node_name="n", file=below)
    export(client, "n")
    guest("n", "write -P 1 0 1M", "flush")
    length = path.stat().st_size
    daemon.process.kill()
    daemon.process.wait()
    assert path.stat().st_size == length
    run.byre("check", "-r", "leaks", path)
    run.qemu_img("check", path)
    run.qemu_io(path, "read -P 1 0 1M", "read -P 0 1M 1M")


def debug(path, **more):
    return {"driver": "blkdebug", "node_name": "d", "image": file_of(str(path)), **more}


@BOTH
def test_states_of_blkdebug(world, tmp_path, peer):
    """FEATURES 3.052: the third write fails, because the first two have changed the state, and the fourth"""
    (tmp_path / "r.raw").write_bytes(bytes(MIB))
    _, client, guest = world(peer)
    states = [{"event": "write_aio", "state": 1, "new_state": 2}, {"event": "write_aio", "state": 2, "new_state": 3}]
    rules = [{"event": "write_aio", "state": 3, "errno": 28, "iotype": "write"}, {"event": "read_aio", "state": 1, "errno": 5, "iotype": "read"}]
    below = debug(tmp_path / "r.raw", **{"set-state": states, "inject-error": rules})
    below["node-name"] = below.pop("node_name")
    client.ok("blockdev-add", driver="raw", node_name="r", file=below)
    export(client, "r")
    out = [guest("r", f"{what} 0 4k", code=None).out for what in ("read", "write", "write", "write", "write", "read")]
    assert ["failed" in o for o in out] == [True, False, False, True, True, False] and "No space" in out[3]      # a failed write that was to be durable is remembered
    unexport(client, "r")
    client.ask("blockdev-del", node_name="r")    # what could not be written is told again
    for bad in ([{"event": "write_aio"}], [{"event": "write_aio", "new_state": "x" if peer else -1}], [{"event": "write_aio", "new_state": 2, "what": 1}], "no list"):
        client.refused("blockdev-add", **debug(tmp_path / "r.raw", **{"set-state": bad}))


@BOTH
def test_limits_of_blkdebug(world, tmp_path, peer):
    """FEATURES 3.054: limits that do not fit are refused; requests of any shape get through those that do, and the neighbours stay what they are"""
    path = tmp_path / "r.raw"
    path.write_bytes(b"\x01" * MIB)
    _, client, guest = world(peer)
    for bad, why in ({"align": 1000}, "align"), ({"align": 131072, "max-transfer": 65536}, "max-transfer"), ({"opt-write-zero": 65536, "max-write-zero": 100000},
                                                                                                            "max-write-zero"):
        assert why in client.refused("blockdev-add", **debug(path, **bad))
    limits = {"align": 4096, "max-transfer": 65536, "opt-write-zero": 8192, "max-write-zero": 65536, "opt-discard": 8192, "max-discard": 65536}
    client.ok("blockdev-add", **debug(path, **limits, discard="unmap"))
    export(client, "d")
    out = guest("d", "write -P 7 5000 100", "read -P 7 5000 100", "read -P 1 4096 904", "read -P 1 5100 3092", "write -z 100000 300000", "read -P 0 100000 300000",
                "write -P 9 700000 200001", "read -P 9 700000 200001", "read -P 1 900001 1000", "discard 8k 80k", "write -P 3 1048064 512", "flush").out
    assert "fail" not in out
    unexport(client, "d")
    client.ok("blockdev-del", node_name="d")
    content = path.read_bytes()
    assert len(content) == MIB and content[MIB - 512:] == b"\x03" * 512
    assert content[5000:5100] == b"\x07" * 100 and content[:5000] == b"\x01" * 5000 and content[900001:MIB - 512] == b"\x01" * (MIB - 512 - 900001)


def test_neighbours_behind_an_alignment(world, tmp_path):
    """FEATURES 3.054: small writes at the same time to one block, which is read, changed and written: none gets lost"""
    path = tmp_path / "r.raw"
    path.write_bytes(bytes(MIB + 512))           # the last block goes past the end
    _, client, guest = world(False)
    client.ok("blockdev-add", **debug(path, align=65536))
    export(client, "d")
    guest("d", *[f"aio_write -P {i + 1} {i * 512} 512" for i in range(128)], "aio_flush", f"write -P 200 {MIB} 512")
    unexport(client, "d")
    client.ok("blockdev-del", node_name="d")
    content = path.read_bytes()
    assert content[:65536] == b"".join(bytes([i + 1]) * 512 for i in range(128))
    assert len(content) == MIB + 512 and content[MIB - 512:] == bytes(512) + bytes([200]) * 512


@BOTH
def test_permissions_of_blkdebug(world, tmp_path, peer):
    """FEATURES 3.054: what the filter asks of its image conflicts with others, whoever uses the filter"""
    (tmp_path / "r.raw").write_bytes(bytes(MIB))
    _, client, _ = world(peer)
    client.ok("blockdev-add", **file_of(str(tmp_path / "r.raw"), **{"node-name": "f"}))
    client.ok("blockdev-add", driver="blkdebug", node_name="d", image="f", unshare_child_perms=["write"])
    client.refused("block-export-add", type="nbd", id="e", node_name="f", name="e", writable=True)
    client.ok("blockdev-del", node_name="d")
    client.ok("block-export-add", type="nbd", id="e", node_name="f", name="e", writable=True)
    client.refused("blockdev-add", driver="blkdebug", node_name="d", image="f", unshare_child_perms=["write"])
    client.refused("blockdev-add", driver="blkdebug", node_name="d", image="f", take_child_perms=["graph-mod"])


@pytest.mark.parametrize("fmt", ["qcow2", "qed"])
def test_a_new_image_in_a_luks_node(world, tmp_path, fmt):
    """What a LUKS image gains by growing reads as what its key makes of zeros: a new image in it does not count on it"""
    (tmp_path / "l").touch()
    _, client, guest = world(False)
    client.ok("blockdev-add", **file_of("l"), node_name="f")
    client.ok("blockdev-create", job_id="j", options={"driver": "luks", "file": "f", "size": 0, "key-secret": "s", "iter-time": 10})
    client.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    client.ok("job-dismiss", id="j")
    client.ok("blockdev-add", driver="luks", node_name="l", key_secret="s", file="f")
    client.ok("blockdev-create", job_id="k", options={"driver": fmt, "file": "l", "size": 4 * MIB})
    client.wait("JOB_STATUS_CHANGE", id="k", status="concluded")
    client.ok("job-dismiss", id="k")
    client.ok("blockdev-add", driver=fmt, node_name="q", file="l")
    export(client, "q")
    guest("q", "write -P 5 64k 4k", "read -P 0 0 64k", "read -P 5 64k 4k", "read -P 0 68k 1M")
    unexport(client, "q")
    client.ok("blockdev-del", node_name="q")
    client.ok("blockdev-add", driver=fmt, node_name="q", file="l")
    export(client, "q")
    guest("q", "read -P 5 64k 4k", "read -P 0 68k 1M")
