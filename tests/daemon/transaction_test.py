# SPDX-License-Identifier: MIT
"""transaction: several changes that are one, or none (FEATURES 8.020, 9.083, 9.086 to 9.089)."""
import itertools
import json
import os
import threading

import pytest

from lib import mounts, peers, run

MIB = 1 << 20


def act(kind, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


def bitmap(verb, node, name, **more):
    return act(f"block-dirty-bitmap-{verb}", node=node, name=name, **more)


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b", "over", "over2"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "16M")
    return tmp_path


def open_daemon(start, peer=False):
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", peer=peer)
    client = daemon.qmp()
    for name in ("a", "b", "over", "over2"):
        more = {"backing": None} if name.startswith("over") else {}
        assert client.ask("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": name}, **more) == {"return": {}}
    return daemon, client


def handle_of(client, daemon, node):
    client.ask("block-export-add", type="nbd", id=f"e-{node}", node_name=node, writable=True)
    handle = peers.need_module("nbd").NBD()
    handle.connect_uri(f"nbd+unix:///{node}?socket={daemon.folder}/n.sock")
    return handle


def bitmaps_of(client):
    return {n["node-name"]: sorted((b["name"], b["count"], b["recording"], b["persistent"]) for b in n.get("dirty-bitmaps", []))
            for n in client.ask("query-named-block-nodes", flat=True)["return"] if n["drv"] == "qcow2"}


def edges(client):
    picture = client.ask("x-debug-query-block-graph")["return"]
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    return sorted((names[e["parent"]], e["name"], names[e["child"]], tuple(sorted(e["perm"]))) for e in picture["edges"])


def snapshots_of(daemon, name):
    return [s["name"] for s in json.loads(run.qemu_img("info", "-U", "--output=json", os.path.join(daemon.folder, name)).out).get("snapshots", [])]


def everything(client, daemon):
    """What a transaction may change."""
    nodes = sorted((n["node-name"], n["ro"], n.get("backing_file")) for n in client.ask("query-named-block-nodes")["return"])
    backing = {n: json.loads(run.qemu_img("info", "-U", "--output=json", os.path.join(daemon.folder, n)).out).get("backing-filename") for n in ("a", "b", "over", "over2")}
    return nodes, edges(client), bitmaps_of(client), [snapshots_of(daemon, n) for n in ("a", "b")], backing, sorted(os.listdir(daemon.folder))


STORY = [
    [], [act("abort")], [bitmap("add", "a", "x"), act("abort")], [bitmap("add", "a", "x"), bitmap("add", "a", "x")],
    [bitmap("add", "a", "x"), bitmap("disable", "a", "x")], [bitmap("enable", "a", "x"), act("abort")],
    [bitmap("add", "zz", "y")], [{"type": "abort"}], [act("nothing")], [act("block-dirty-bitmap-add", node="a")],
    [act("blockdev-snapshot", node="a", overlay="over"), act("blockdev-snapshot", node="b", overlay="over")],
    [act("blockdev-snapshot", node="a", overlay="over"), act("blockdev-snapshot", node="b", overlay="over2"), act("abort")],
    [act("blockdev-snapshot", node="b", overlay="over2"), bitmap("add", "over2", "pb"), bitmap("clear", "over2", "zz")],
    [act("blockdev-snapshot", node="a", overlay="over"), bitmap("add", "over", "o"), bitmap("enable", "a", "x")],
]


def test_same_story(start, images):
    """FEATURES 9.086: what is taken and what is refused, and the bitmaps behind each, in both programs"""
    told = []
    for peer in (False, True):
        daemon, client = open_daemon(start, peer)
        steps = []
        for actions in STORY:
            answer = client.ask("transaction", actions=actions)
            steps.append((answer.get("return", answer.get("error", {}).get("class")), bitmaps_of(client)))
        for properties in ({"completion-mode": "grouped"}, {"completion-mode": "individual"}, {"completion-mode": "odd"}):
            for actions in ([bitmap("add", "a", "z")], [act("blockdev-snapshot", node="b", overlay="over2")], [act("abort")]):
                answer = client.ask("transaction", actions=actions, properties=properties)
                steps.append((answer.get("return", answer.get("error", {}).get("class")), bitmaps_of(client)))
        told.append(steps)
        assert client.ask("quit") == {"return": {}}
        assert daemon.wait()[0] == 0
    for i, (ours, theirs) in enumerate(zip(*told)):
        assert ours == theirs, STORY[i] if i < len(STORY) else i


ALL = [
    bitmap("add", "a", "new"), bitmap("add", "b", "kept", persistent=True), bitmap("clear", "a", "own"), bitmap("clear", "b", "stored"),
    bitmap("disable", "a", "own"), bitmap("enable", "b", "stored2"), bitmap("remove", "a", "gone"), bitmap("remove", "b", "stored3"),
    act("block-dirty-bitmap-merge", node="a", target="own", bitmaps=["gone2"]),
    act("blockdev-snapshot-internal-sync", device="b", name="monday"), act("blockdev-snapshot", node="a", overlay="over"),
    act("blockdev-snapshot-sync", node_name="b", snapshot_file="made", snapshot_node_name="s"), bitmap("add", "s", "on-the-new-one"),
]


@pytest.mark.parametrize("at", range(len(ALL) + 1))
def test_nothing_is_left(start, images, at):
    """FEATURES 9.086, 9.087: whichever entry of the list fails, graph, bitmaps, snapshots and files are as before; then all of it is done"""
    daemon, client = open_daemon(start)
    for node, name, more in (("a", "own", {}), ("a", "gone", {}), ("a", "gone2", {}), ("b", "stored", {"persistent": True}),
                             ("b", "stored2", {"persistent": True, "disabled": True}), ("b", "stored3", {"persistent": True})):
        assert client.ask("block-dirty-bitmap-add", node=node, name=name, **more) == {"return": {}}
    handles = {n: handle_of(client, daemon, n) for n in "ab"}
    for n, handle in handles.items():
        handle.pwrite(n.encode() * 65536, MIB)
    client.ask("block-dirty-bitmap-clear", node="a", name="own")
    handles["a"].pwrite(b"c" * 65536, 3 * MIB)
    before = everything(client, daemon)
    for bad in (act("abort"), bitmap("clear", "a", "nobody"), act("blockdev-snapshot", node="a", overlay="b")):
        answer = client.ask("transaction", actions=ALL[:at] + [bad] + ALL[at:])
        assert "error" in answer, bad
        assert everything(client, daemon) == before, (at, bad, answer)
    for n, handle in handles.items():
        handle.pwrite(n.upper().encode() * 512, 2 * MIB)
        assert handle.pread(512, MIB) == n.encode() * 512
    if at < len(ALL):
        assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0
        for n in "ab":
            run.qemu_img("check", images / n)
        info = json.loads(run.qemu_img("info", "--output=json", images / "b").out)["format-specific"]["data"]["bitmaps"]
        assert sorted((b["name"], b["flags"]) for b in info) == [("stored", ["auto"]), ("stored2", []), ("stored3", ["auto"])]
        return
    assert client.ask("transaction", actions=ALL) == {"return": {}}
    now = bitmaps_of(client)
    assert [b[:3] for b in now["a"]] == [("gone2", 3 * 65536, True), ("new", 0, True), ("own", 3 * 65536, False)]
    assert [b[:3] for b in now["b"]] == [("kept", 0, True), ("stored", 0, True), ("stored2", 0, True)]
    assert [b[0] for b in now["s"]] == ["on-the-new-one"]
    assert {("over", "backing", "a"), ("s", "backing", "b")} <= {e[:3] for e in edges(client)}
    assert snapshots_of(daemon, "b") == ["monday"]
    for n, handle in handles.items():
        handle.pwrite(b"!" * 512, 4 * MIB)
        handle.shutdown()
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0
    for path in (images / "a", images / "b", images / "over", os.path.join(daemon.folder, "made")):
        run.qemu_img("check", path)
    info = json.loads(run.qemu_img("info", "--output=json", images / "b").out)["format-specific"]["data"]["bitmaps"]
    assert sorted((b["name"], b["flags"]) for b in info) == [("kept", ["auto"]), ("stored", ["auto"]), ("stored2", ["auto"])]
    run.qemu_io(images / "a", "read -P 0 4M 512", "read -P 0x41 2M 512")
    run.qemu_io(images / "over", f"read -P {ord('!')} 4M 512", "read -P 0x41 2M 512")


def test_a_store_that_fails(start, tmp_path):
    """FEATURES 9.083: the bitmaps of one image cannot be stored: those of the other, which were stored already, are as before"""
    for name, size in (("a", "16M"), ("b", "16M")):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, size)
    daemon = start("daemon")
    client = daemon.qmp()
    assert client.ask("blockdev-add", driver="qcow2", node_name="a", file={"driver": "file", "filename": "a"}) == {"return": {}}
    assert client.ask("blockdev-add", driver="qcow2", node_name="b", read_only=True, file={"driver": "file", "filename": "b"}) == {"return": {}}
    for name in ("x", "y"):
        client.ask("block-dirty-bitmap-add", node="a", name=name, persistent=True)
    before = bitmaps_of(client)
    answer = client.ask("transaction", actions=[bitmap("remove", "a", "x"), bitmap("clear", "a", "y"), bitmap("add", "b", "z", persistent=True)])
    assert "read-only" in answer["error"]["desc"]
    assert bitmaps_of(client) == before
    assert client.ask("transaction", actions=[bitmap("remove", "a", "x"), bitmap("add", "b", "z")]) == {"return": {}}
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0
    info = json.loads(run.qemu_img("info", "--output=json", tmp_path / "a").out)["format-specific"]["data"]["bitmaps"]
    assert [b["name"] for b in info] == ["y"]


@pytest.mark.timeout(120)
def test_one_moment(start, images):
    """FEATURES 9.089: a writer numbers its writes and alternates between two disks: what their snapshots hold is a beginning of its writes"""
    import threading
    daemon, client = open_daemon(start)
    handles = [handle_of(client, daemon, n) for n in "ab"]
    stop = threading.Event()
    count = itertools.count(1)
    last = [0]

    def write():
        while not stop.is_set():
            i = next(count)
            handles[i % 2].pwrite(i.to_bytes(8, "little") * 64, 0)
            last[0] = i
    writer = threading.Thread(target=write)
    writer.start()
    names = ["a", "b"]
    for round_ in range(10):
        seen = last[0]
        while last[0] < seen + 20:
            pass
        new = [f"{n}{round_}" for n in "ab"]
        actions = [act("blockdev-snapshot-sync", node_name=old, snapshot_file=made, snapshot_node_name=made) for old, made in zip(names, new)]
        assert client.ask("transaction", actions=actions) == {"return": {}}
        names = new
    stop.set()
    writer.join()
    for handle in handles:
        handle.shutdown()
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0
    for round_ in range(10):
        pair = [f"{n}{round_ - 1}" if round_ else n for n in "ab"]
        numbers = []
        for name in pair:
            flat = os.path.join(daemon.folder, "flat")
            run.qemu_img("convert", "-O", "raw", os.path.join(daemon.folder, name), flat)
            with open(flat, "rb") as f:
                numbers.append(int.from_bytes(f.read(8), "little"))
        assert abs(numbers[0] - numbers[1]) == 1, (round_, numbers)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    with mounts.tmpfs(tmp_path / "small", "2M") as folder:
        yield folder


@pytest.mark.serial
def test_what_was_stored_is_taken_back(start, tmp_path, small_disk):
    """FEATURES 9.083, 9.087: the bitmaps of the last image cannot be stored, because its disk is full: those of the first, which were stored a moment
    before, are as they were, in memory and in the file"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "16M")
    run.qemu_img("create", "-q", "-f", "qcow2", small_disk / "b", "16M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    for name, path in (("a", "a"), ("b", str(small_disk / "b"))):
        assert client.ask("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": path}) == {"return": {}}
    for node, name in (("a", "x"), ("a", "y"), ("b", "z")):
        assert client.ask("block-dirty-bitmap-add", node=node, name=name, persistent=True) == {"return": {}}
    client.ask("block-dirty-bitmap-add", node="a", name="own")
    handles = [handle_of(client, daemon, n) for n in "ab"]
    for handle in handles:
        handle.pwrite(b"1" * 65536, MIB)
        handle.shutdown()
    before = bitmaps_of(client)
    filler = small_disk / "filler"
    file = os.open(filler, os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError):
        while os.write(file, bytes(4096)):
            pass
    os.close(file)
    answer = client.ask("transaction", actions=[bitmap("remove", "a", "x"), bitmap("clear", "a", "y"), bitmap("add", "a", "new", persistent=True),
                                                bitmap("remove", "a", "own"), bitmap("clear", "b", "z"), bitmap("add", "b", "more", persistent=True)])
    assert "error" in answer
    assert bitmaps_of(client) == before
    filler.unlink()
    handle = handle_of(client, daemon, "a")
    handle.pwrite(b"2" * 65536, 2 * MIB)
    handle.shutdown()
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0
    for path in (tmp_path / "a", small_disk / "b"):
        run.qemu_img("check", path)
    daemon = start("daemon")
    client = daemon.qmp()
    assert client.ask("blockdev-add", driver="qcow2", node_name="a", file={"driver": "file", "filename": "a"}) == {"return": {}}
    assert bitmaps_of(client)["a"] == [("x", 2 * 65536, True, True), ("y", 2 * 65536, True, True)]
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0


def test_a_file_that_grows_meanwhile(start, tmp_path):
    """FEATURES 9.083, 9.086: an internal snapshot makes the node longer on which the image lies, and the list fails: the bitmaps of that node come back with
    the length that it has now"""
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", tmp_path / "a", "1G")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="raw", node_name="below", file={"driver": "file", "filename": "a"})
    client.ok("blockdev-add", driver="qcow2", node_name="a", file="below")
    for name in ("cleared", "kept", "removed"):
        client.ok("block-dirty-bitmap-add", node="below", name=name, granularity=512)
    handle = handle_of(client, daemon, "a")
    for round_ in range(3):
        handle.pwrite(bytes([round_ + 1]) * MIB, round_ * 64 * MIB)
        handle.flush()
        before = os.path.getsize(tmp_path / "a")
        actions = [bitmap("clear", "below", "cleared"), bitmap("remove", "below", "removed"),
                   *(act("blockdev-snapshot-internal-sync", device="a", name=f"s{i}") for i in range(8)), act("abort")]
        assert "error" in client.ask("transaction", actions=actions)
        counts = {b["name"]: b["count"] for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"] == "below" for b in n["dirty-bitmaps"]}
        assert sorted(counts) == ["cleared", "kept", "removed"] and min(counts.values()) >= (round_ + 1) * MIB, counts
        if round_ == 0:
            assert os.path.getsize(tmp_path / "a") > before
    handle.pwrite(b"z" * 8 * MIB, 512 * MIB)
    handle.flush()
    assert min(b["count"] for n in client.ok("query-named-block-nodes", flat=True) if n["node-name"] == "below" for b in n["dirty-bitmaps"]) >= 11 * MIB
    handle.shutdown()
    assert client.ask("quit") == {"return": {}} and daemon.wait()[0] == 0
    run.qemu_img("check", tmp_path / "a")


def test_through_a_filter(start, tmp_path):
    """FEATURES 9.083, 9.086: a bitmap that is named by a filter over its image is the image's: as it was when the list fails, stored when it does not"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "16M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    assert client.ask("blockdev-add", driver="qcow2", node_name="a", file={"driver": "file", "filename": "a"}) == {"return": {}}
    assert client.ask("object-add", qom_type="throttle-group", id="g") == {"return": {}}
    assert client.ask("blockdev-add", driver="throttle", node_name="t", throttle_group="g", file="a") == {"return": {}}
    assert client.ask("block-dirty-bitmap-add", node="a", name="x", persistent=True) == {"return": {}}
    handle = handle_of(client, daemon, "t")
    handle.pwrite(b"1" * 65536, MIB)
    assert "error" in client.ask("transaction", actions=[bitmap("clear", "t", "x"), bitmap("disable", "a", "x"), act("abort")])
    assert bitmaps_of(client) == {"a": [("x", 65536, True, True)]}
    assert client.ask("transaction", actions=[bitmap("add", "t", "y", persistent=True), bitmap("clear", "a", "x")]) == {"return": {}}
    assert client.ask("block-dirty-bitmap-add", node="a", name="z", persistent=True) == {"return": {}}
    handle.shutdown()
    daemon.process.kill()
    info = json.loads(run.qemu_img("info", "-U", "--output=json", tmp_path / "a").out)["format-specific"]["data"]["bitmaps"]
    assert sorted(b["name"] for b in info) == ["x", "y", "z"]


def test_a_bitmap_of_a_disk_that_an_entry_moves(tmp_path, byre_serve):
    """FEATURES 9.083, 9.086: the name of a disk means another image behind a snapshot of it in the same list: refused, and nothing is left"""
    from qmp_client import Qmp
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk", "16M")
    client = Qmp(byre_serve(tmp_path / "disk").control)
    device = client.ask("query-block")["return"][0]["device"]
    before = client.ask("query-block")["return"]
    snapshot = act("blockdev-snapshot-sync", device=device, snapshot_file=str(tmp_path / "snap"))
    for verb in ("add", "clear"):
        answer = client.ask("transaction", actions=[snapshot, bitmap(verb, device, "x"), act("abort")])
        assert "moved meanwhile" in answer["error"]["desc"], answer
        assert client.ask("query-block")["return"] == before and not (tmp_path / "snap").exists()
    assert client.ask("transaction", actions=[bitmap("add", device, "x"), snapshot]) == {"return": {}}
    image = client.ask("query-block")["return"][0]["inserted"]["image"]
    assert image["filename"].endswith("snap")
    client.close()


def overwrite(uri, first):
    """A guest who has sixteen writes under way most of the time, writes every third block once, and then is done."""
    nbd = peers.need_module("nbd")
    handle = nbd.NBD()
    handle.connect_uri(uri)
    blocks = handle.get_size() // 4096
    for at in range(first, blocks, 3 * 16):
        for i in range(at, min(at + 3 * 16, blocks), 3):
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"new." * 1024)), i * 5003 % blocks * 4096)
        while handle.aio_in_flight():
            handle.poll(-1)
    handle.shutdown()


def dirty_blocks(client, daemon, node, name):
    """Numbers of the blocks of 4 KiB that a bitmap has."""
    client.ok("block-export-add", type="nbd", id="e-dirty", node_name=node, name="dirty", bitmaps=[name])
    handle = peers.need_module("nbd").NBD()
    handle.add_meta_context(f"qemu:dirty-bitmap:{name}")
    handle.connect_uri(f"nbd+unix:///dirty?socket={daemon.folder}/n.sock")
    at, found = [0], set()

    def extent(context, offset, entries, _error):
        if context.startswith("qemu:"):
            at[0] = offset
            for length, flags in zip(entries[::2], entries[1::2]):
                found.update(range(at[0] // 4096, (at[0] + length) // 4096) if flags & 1 else [])
                at[0] += length
    while at[0] < handle.get_size():
        handle.block_status(min(handle.get_size() - at[0], 1 << 30), at[0], extent)
    handle.shutdown()
    return found


def test_bitmaps_of_a_file_under_an_image(start, tmp_path):
    """FEATURES 9.083, 3.063: bitmaps of a file take over from one another while a guest writes to the image over it: what changes is in one of them. There
    is time enough in the middle of each list for hundreds of writes."""
    path = tmp_path / "disk"
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "128M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="file", node_name="f", filename="disk")
    client.ok("block-dirty-bitmap-add", node="f", name="b0", granularity=4096)
    client.ok("blockdev-add", driver="qcow2", node_name="image", file="f")
    client.ok("block-export-add", type="nbd", id="e", node_name="image", writable=True)
    before, rounds = path.read_bytes(), 0
    guests = [threading.Thread(target=overwrite, args=(f"nbd+unix:///image?socket={daemon.folder}/n.sock", i)) for i in range(3)]
    for g in guests:
        g.start()
    pause = [bitmap(verb, "f", "x") for verb in ("add", "remove")] * 40
    while any(g.is_alive() for g in guests):
        client.ok("transaction", actions=[bitmap("disable", "f", f"b{rounds}"), *pause, bitmap("add", "f", f"b{rounds + 1}", granularity=4096)])
        rounds += 1
    for g in guests:
        g.join()
    client.ok("block-export-del", id="e", mode="hard")
    client.wait("BLOCK_EXPORT_DELETED")
    client.ok("blockdev-del", node_name="image")
    client.ok("block-dirty-bitmap-add", node="f", name="all", granularity=4096, disabled=True)
    client.ok("block-dirty-bitmap-merge", node="f", target="all", bitmaps=[f"b{i}" for i in range(rounds + 1)])
    after = path.read_bytes()
    changed = {at // 4096 for at in range(0, max(len(before), len(after)), 4096) if before[at:at + 4096].ljust(4096, b"\0") != after[at:at + 4096].ljust(4096, b"\0")}
    assert len(changed) >= 128 * MIB // 4096 and rounds > 10
    assert not changed - dirty_blocks(client, daemon, "f", "all")
    assert daemon.stop()[0] == 0
    run.qemu_img("check", path)


def fill(uri, first):
    """A guest who writes every third cluster of an image that has none, sixteen at a time: its file grows all the while."""
    nbd = peers.need_module("nbd")
    handle = nbd.NBD()
    handle.connect_uri(uri)
    clusters = handle.get_size() // 65536
    for at in range(first, clusters, 3 * 16):
        for i in range(at, min(at + 3 * 16, clusters), 3):
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"new." * 16384)), i * 65536)
        while handle.aio_in_flight():
            handle.poll(-1)
    handle.shutdown()


@pytest.mark.parametrize("by", ["transaction", "reopen"])
def test_a_file_grows_under_an_image(start, tmp_path, by):
    """FEATURES 9.083, 11.005: a request that is under way when the file's node becomes still makes the file longer, and both come to their end."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk", "256M")
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock")
    client = daemon.qmp()
    client.ok("blockdev-add", driver="file", node_name="f", filename="disk")
    client.ok("block-dirty-bitmap-add", node="f", name="b0")
    client.ok("blockdev-add", driver="qcow2", node_name="image", file="f")
    client.ok("block-export-add", type="nbd", id="e", node_name="image", writable=True)
    guests = [threading.Thread(target=fill, args=(f"nbd+unix:///image?socket={daemon.folder}/n.sock", i), daemon=True) for i in range(3)]
    for g in guests:
        g.start()
    rounds = 0
    while any(g.is_alive() for g in guests):
        if by == "transaction":
            client.ok("transaction", actions=[bitmap("disable", "f", f"b{rounds}"), bitmap("add", "f", f"b{rounds + 1}")])
        else:
            client.ok("blockdev-reopen", options=[{"driver": "file", "node-name": "f", "filename": "disk", "discard": ("unmap", "ignore")[rounds % 2]}])
        rounds += 1
    for g in guests:
        g.join()
    assert rounds > 10 and daemon.stop()[0] == 0
    run.qemu_img("check", tmp_path / "disk")
    assert run.qemu_io(tmp_path / "disk", "read -P 0x6e 0 1").code == 0
