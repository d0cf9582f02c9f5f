# SPDX-License-Identifier: MIT
"""block-commit of layers below a disk in use, and block-stream (FEATURES 8.014, 9.042, 9.044 to 9.059, 8.024, G.033, G.034, G.077)."""
import json
import os
import time

import pytest
from lib import chains, images, mounts, run, wait
from qmp_client import Qmp


class Client(Qmp):
    def job(self, command, **arguments):
        """Starts it and waits for its end: the event BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED."""
        self.ok(command, **arguments)
        return self.ended()

    def ended(self):
        return self.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")

    def files(self):
        """Of the disk's chain, top first."""
        answer = self.ask("query-block")["return"][0]["inserted"]["image"]
        names = []
        while answer:
            names.append(os.path.basename(answer["filename"]))
            answer = answer.get("backing-image")
        return names

    def nodes(self):
        return {os.path.basename(n["file"]): n["node-name"] for n in self.ask("query-named-block-nodes", flat=True)["return"] if n["drv"] != "file"}


@pytest.fixture
def serve(byre_serve):
    """serve(path) -> (server, client)"""
    clients = []

    def start(path):
        server = byre_serve(path)
        clients.append(Client(server.control))
        return server, clients[-1]

    yield start
    for client in clients:
        client.close()


def recorded(path):
    info = run.qemu_img("info", "--output=json", "-U", path).json
    return info.get("backing-filename"), info.get("backing-filename-format")


def sound_chain(folder, rng, depth):
    """The peer damages some images that it compresses: those are made anew."""
    for attempt in range(10):
        chain = chains.make(os.path.join(folder, str(attempt)), rng, depth)
        try:
            for layer in chain:
                if layer.fmt == "qcow2":
                    images.assert_sound(layer.path)
            return chain
        except AssertionError:
            continue
    raise AssertionError("no sound chain")


def judge(layers):
    for layer in layers:
        if layer.fmt == "qcow2":
            images.assert_sound(layer.path)
    for tool in (run.qemu_img, run.byre):
        chains.assert_reads(layers[0].path, layers[0].content, layers[0].fmt, tool)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(10))
def test_commit(tmp_path, serve, seed):
    """FEATURES 9.042, 9.044 to 9.046, 9.048, 9.051: random chains of layers of all sizes. The disk shows what it showed, the base what top
    showed, and so does the committed top, whose chain has become short, too."""
    rng = chains.seeded("live-commit", seed)
    chain = sound_chain(tmp_path, rng, rng.choice([2, 3, 4]))
    at = rng.randrange(1, len(chain) - 1)
    base = rng.randrange(at) if rng.randrange(3) else 0
    disk, top, bottom = chain[-1], chain[at], chain[base]
    tail = bytes(bottom.content[top.size:])
    server, client = serve(disk.path)
    assert client.files() == [layer.name for layer in reversed(chain)]
    nodes = client.nodes()
    done = client.job("block-commit", device="disk0", job_id="c", top_node=nodes[top.name], **({"base_node": nodes[bottom.name]} if base else {}))
    assert done["event"] == "BLOCK_JOB_COMPLETED" and "error" not in done["data"] and done["data"]["type"] == "commit", done
    assert done["data"]["len"] == done["data"]["offset"]
    kept = chain[:base + 1] + chain[at + 1:]
    assert client.files() == [layer.name for layer in reversed(kept)]
    assert recorded(chain[at + 1].path) == (bottom.name, bottom.fmt)
    server.stop()
    assert not server.lines[3:], server.output
    shown = chain[at + 1].size > top.size
    bottom.content = bytearray(top.content) + (bytes(len(tail)) if shown else tail)
    if shown:
        bottom.content[chain[at + 1].size:] = tail[chain[at + 1].size - top.size:]
    for layer in kept[base:]:
        judge([layer])
    assert recorded(top.path) == (bottom.name, bottom.fmt)
    chains.assert_reads(top.path, top.content)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(10))
def test_stream(tmp_path, serve, seed):
    """FEATURES 9.054 to 9.056: random chains; the whole, to a base, into an image in the middle."""
    rng = chains.seeded("live-stream", seed)
    chain = sound_chain(tmp_path, rng, rng.choice([2, 3, 4]))
    at = len(chain) - 1 if rng.randrange(2) else rng.randrange(1, len(chain))
    base = rng.choice([None] + list(range(at)))
    server, client = serve(chain[-1].path)
    nodes = client.nodes()
    how = {"device": "disk0"} if at == len(chain) - 1 else {"device": nodes[chain[at].name], "job_id": "s"}
    if base is not None:
        how |= {"bottom": nodes[chain[base + 1].name]} if base + 1 < at and rng.randrange(2) else {"base_node": nodes[chain[base].name]}
    done = client.job("block-stream", **how)
    assert done["event"] == "BLOCK_JOB_COMPLETED" and "error" not in done["data"] and done["data"]["type"] == "stream", done
    kept = (chain[:base + 1] if base is not None else []) + chain[at:]
    assert client.files() == [layer.name for layer in reversed(kept)]
    assert recorded(chain[at].path) == ((chain[base].name, chain[base].fmt) if base is not None else (None, None))
    server.stop()
    assert not server.lines[3:], server.output
    for layer in chain:
        judge([layer])


@pytest.fixture
def three(tmp_path):
    """base <- mid <- top <- disk: 4 MiB each, mid holds 2 MiB, top zeros in the first half of that."""
    folder = tmp_path / "t"
    folder.mkdir()
    images.create(folder / "base.qcow2", "4M")
    for name, below in (("mid", "base"), ("top", "mid"), ("disk", "top")):
        images.create(folder / f"{name}.qcow2", "4M", backing=f"{below}.qcow2", unchecked=True)
    run.qemu_io(str(folder / "mid.qcow2"), "write -P 7 1M 2M")
    run.qemu_io(str(folder / "top.qcow2"), "write -z 1M 1M")
    return folder


PATTERNS = ("read -P 0 0 2M", "read -P 7 2M 1M", "read -P 0 3M 1M")


def test_zeros_stay_holes(three, serve):
    """FEATURES 9.051: what reads zero takes no space in the base."""
    server, client = serve(three / "disk.qcow2")
    assert "error" not in client.job("block-commit", device="disk0", top=str(three / "top.qcow2"), base="base.qcow2")["data"]
    server.stop()
    run.qemu_io(str(three / "base.qcow2"), *PATTERNS)
    data = [e for e in run.qemu_img("map", "--output=json", three / "base.qcow2").json if e["data"]]
    assert sum(e["length"] for e in data) == 1 << 20, data


def test_refused(three, serve):
    """FEATURES 9.050, 9.047, 9.052, 9.057: what cannot be is refused, by name, and changes nothing."""
    os.chmod(three / "mid.qcow2", 0o444)
    server, client = serve(three / "disk.qcow2")
    nodes, before = client.nodes(), client.ask("query-named-block-nodes")
    for words, says in (
            ({"device": "nothing"}, "nothing"),
            ({"device": "disk0", "top_node": "nothing"}, "nothing"),
            ({"device": "disk0", "top_node": nodes["mid.qcow2"], "base_node": nodes["top.qcow2"]}, nodes["top.qcow2"]),
            ({"device": "disk0", "top_node": nodes["mid.qcow2"], "base_node": nodes["mid.qcow2"]}, "into itself"),
            ({"device": "disk0", "top_node": nodes["base.qcow2"]}, "into itself"),
            ({"device": "disk0", "top": "else.qcow2"}, "else.qcow2"),
            ({"device": "disk0", "top_node": nodes["top.qcow2"], "top": "top.qcow2"}, "mutually exclusive"),
            ({"device": "disk0", "top_node": nodes["top.qcow2"], "backing_file": "x" * 2000}, "2000"),
            ({"device": "disk0", "top_node": nodes["top.qcow2"], "filter_node_name": "disk0"}, "disk0"),
            ({"device": "disk0", "top_node": nodes["top.qcow2"], "on_error": "hope"}, "hope")):
        answer = client.ask("block-commit", **words)
        assert "error" in answer and says in answer["error"]["desc"], (words, answer)
    for words, says in (
            ({"base_node": nodes["mid.qcow2"], "bottom": nodes["top.qcow2"]}, "mutually exclusive"),
            ({"base_node": "disk0"}, "disk0"), ({"bottom": "disk0"}, "disk0"), ({"backing_file": "x"}, "entire chain")):
        answer = client.ask("block-stream", device="disk0", **words)
        assert "error" in answer and says in answer["error"]["desc"], (words, answer)
    if os.getuid():
        answer = client.ask("block-commit", device="disk0", top_node=nodes["top.qcow2"], base_node=nodes["mid.qcow2"])
        assert "mid.qcow2" in answer["error"]["desc"]
    assert client.ask("query-named-block-nodes") == before
    assert client.ask("query-block-jobs") == {"return": []}


def test_one_at_a_time(three, serve):
    """FEATURES 9.050: layers whose content changes belong to one job; 9a: pause, speed, cancel; the chain reads on, and a new job does the rest."""
    server, client = serve(three / "disk.qcow2")
    nodes = client.nodes()
    commit = {"device": "disk0", "top_node": nodes["top.qcow2"]}
    assert client.ask("block-commit", job_id="a", speed=65536, auto_dismiss=False, **commit) == {"return": {}}
    answer = client.ask("block-commit", job_id="b", device="disk0", top_node=nodes["mid.qcow2"])
    assert "'a'" in answer["error"]["desc"], answer
    assert client.ask("block-job-pause", device="a") == {"return": {}}
    assert "paused" in client.ask("block-job-cancel", device="a")["error"]["desc"]
    wait.until(lambda: client.ok("query-block-jobs")[0]["status"] == "paused", "it does not pause")
    shown = client.ask("query-block-jobs")["return"][0]
    assert shown["paused"] and shown["type"] == "commit" and shown["speed"] == 65536 and shown["io-status"] == "ok", shown
    assert client.ask("block-job-resume", device="a") == {"return": {}}
    begin = time.monotonic()
    assert client.ask("block-job-cancel", device="a") == {"return": {}}
    event = client.ended()
    assert event["event"] == "BLOCK_JOB_CANCELLED" and time.monotonic() - begin < 15, event      # of 32 s
    assert client.ask("job-dismiss", id="a") == {"return": {}}
    assert client.ask("query-block-jobs") == {"return": []}
    assert client.files() == ["disk.qcow2", "top.qcow2", "mid.qcow2", "base.qcow2"]
    assert run.qemu_io(server.uri, *PATTERNS, fmt="raw")
    assert "error" not in client.job("block-commit", job_id="b", **commit)["data"]
    server.stop()
    run.qemu_io(str(three / "disk.qcow2"), *PATTERNS)
    run.qemu_io(str(three / "base.qcow2"), *PATTERNS)


def test_speed(three, serve):
    """FEATURES 9.049: 2 MiB at 1 MiB a second, then without a limit."""
    server, client = serve(three / "disk.qcow2")
    begin = time.monotonic()
    client.job("block-commit", device="disk0", top="mid.qcow2", job_id="c", speed=1 << 20)
    assert 1.2 < time.monotonic() - begin < 30
    assert client.ask("block-stream", device="disk0", job_id="s", speed=65536) == {"return": {}}
    assert client.ask("block-job-set-speed", device="s", speed=0) == {"return": {}}
    begin = time.monotonic()
    assert "error" not in client.ended()["data"] and time.monotonic() - begin < 15       # of 32 s


def test_finalize(three, serve):
    """FEATURES 9.004: nothing names another image before the job is finalized."""
    server, client = serve(three / "disk.qcow2")
    assert client.ask("block-commit", device="disk0", job_id="c", top="top.qcow2", base="base.qcow2", auto_finalize=False, backing_file="./base.qcow2") == {"return": {}}
    while not any(e["event"] == "BLOCK_JOB_PENDING" for e in client.events):
        client.events.append(client.receive())
    assert recorded(three / "disk.qcow2") == ("top.qcow2", "qcow2")
    assert client.ask("block-job-finalize", id="c") == {"return": {}}
    assert "error" not in client.ended()["data"]
    assert recorded(three / "disk.qcow2") == ("./base.qcow2", "qcow2")       # 9.046: as it was given
    assert recorded(three / "top.qcow2") == ("base.qcow2", "qcow2")
    states = [e["data"]["status"] for e in client.events if e["event"] == "JOB_STATUS_CHANGE"]
    assert states[:4] == ["created", "running", "waiting", "pending"], states


def test_write_access_only_while_it_runs(three, serve):
    """FEATURES 9.048: base is open for writing while the job runs, and no longer."""
    server, client = serve(three / "disk.qcow2")

    def modes():
        folder, found = f"/proc/{server.process.pid}/fd", {}
        for fd in os.listdir(folder):
            target = os.path.basename(os.readlink(f"{folder}/{fd}"))
            if target.endswith(".qcow2"):
                flags = int(open(f"/proc/{server.process.pid}/fdinfo/{fd}").read().split("flags:")[1].split()[0], 8)
                found.setdefault(target, set()).add(flags & 3)
        return found

    assert modes()["base.qcow2"] == {os.O_RDONLY}
    assert client.ask("block-commit", device="disk0", job_id="c", top="mid.qcow2", speed=65536) == {"return": {}}
    assert modes()["base.qcow2"] == {os.O_RDWR}
    assert client.ask("block-job-set-speed", device="c", speed=0) == {"return": {}}
    assert "error" not in client.ended()["data"]
    assert modes() == {"base.qcow2": {os.O_RDONLY}, "top.qcow2": {os.O_RDONLY}, "disk.qcow2": {os.O_RDWR}}


@pytest.mark.asan
@pytest.mark.tsan
def test_drop_source(three, serve):
    """What is committed leaves the layers above the base, whose files shrink; the one between is no disk any more, the top still is."""
    server, client = serve(three / "disk.qcow2")
    before = [os.stat(three / f"{name}.qcow2").st_blocks for name in ("mid", "top")]
    assert "error" not in client.job("block-commit", device="disk0", top=str(three / "top.qcow2"), base="base.qcow2", drop_source=True)["data"]
    assert client.files() == ["disk.qcow2", "base.qcow2"]
    assert server.stop() == 0 and not server.lines[3:], server.output
    for name in ("base", "top", "disk"):
        run.qemu_io(str(three / f"{name}.qcow2"), *PATTERNS)
        images.assert_sound(three / f"{name}.qcow2")
    images.assert_sound(three / "mid.qcow2")
    assert os.stat(three / "mid.qcow2").st_blocks < before[0] - 2000
    assert not [e for e in run.qemu_img("map", "--output=json", three / "top.qcow2").json if e["depth"] == 0]
    for words in (("convert", "-O", "raw", three / "mid.qcow2", three / "x"), ("serve", three / "mid.qcow2"), ("io", "-c", "read 0 512", three / "mid.qcow2")):
        done = run.byre(*words, code=1)
        assert "mid.qcow2" in done.err and "top.qcow2" in done.err, done
    images.create(three / "other.qcow2", "4M", backing="mid.qcow2", unchecked=True)
    done = run.byre("convert", "-O", "raw", three / "other.qcow2", three / "x", code=1)
    assert "mid.qcow2" in done.err and "top.qcow2" in done.err, done
    run.byre("check", three / "mid.qcow2")
    run.byre("info", three / "mid.qcow2")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(6))
def test_drop_source_restarts(tmp_path, serve, seed):
    """Random chains; the job is cancelled and begun again, by a new server too. Copied is what had not been dropped."""
    rng = chains.seeded("drop", seed)
    chain = sound_chain(tmp_path, rng, rng.choice([3, 4]))
    disk, top, base = chain[-1], chain[-2], chain[0]
    for _ in range(3):
        server, client = serve(disk.path)
        done = len(client.files()) == 2
        if not done:
            words = {"device": "disk0", "job_id": "c", "top_node": client.nodes()[top.name], "drop_source": True}
            assert client.ask("block-commit", speed=rng.choice([1 << 20, 2 << 20]), **words) == {"return": {}}
            time.sleep(rng.uniform(0, 0.5))
            client.ask("block-job-cancel", device="c")
            client.ended()
        server.stop()
        chains.assert_reads(disk.path, disk.content)
    server, client = serve(disk.path)
    if len(client.files()) > 2:
        assert "error" not in client.job("block-commit", device="disk0", job_id="c", top_node=client.nodes()[top.name], drop_source=True)["data"]
    assert client.files() == [disk.name, base.name]
    server.stop()
    chains.assert_reads(disk.path, disk.content)
    chains.assert_reads(top.path, top.content)
    for layer in chain:
        if layer.fmt == "qcow2":
            images.assert_sound(layer.path)


def test_drop_source_elsewhere(three, serve):
    """After a commit that was cancelled, the layer between makes sense only below its top: nothing takes that top out from above it, because
    the disk could not be opened any more. The same commit, begun again, ends it."""
    server, client = serve(three / "disk.qcow2")
    assert client.ask("block-commit", device="disk0", job_id="c", top="top.qcow2", base="base.qcow2", drop_source=True, speed=65536) == {"return": {}}
    client.ask("block-job-cancel", device="c")
    client.ended()
    nodes = client.nodes()
    for command, words in (("block-commit", {"top": "top.qcow2", "base": "mid.qcow2"}), ("block-stream", {"base_node": nodes["mid.qcow2"]}), ("block-commit", {"base": "mid.qcow2"})):
        answer = client.ask(command, device="disk0", job_id="d", **words)
        assert "mid.qcow2" in answer["error"]["desc"] and "top.qcow2" in answer["error"]["desc"], answer
    assert client.files() == ["disk.qcow2", "top.qcow2", "mid.qcow2", "base.qcow2"]
    assert server.stop() == 0
    run.qemu_io(str(three / "disk.qcow2"), *PATTERNS)
    server, client = serve(three / "disk.qcow2")
    assert "error" not in client.job("block-commit", device="disk0", top="top.qcow2", base="base.qcow2", drop_source=True)["data"]
    assert client.files() == ["disk.qcow2", "base.qcow2"]
    assert server.stop() == 0
    run.qemu_io(str(three / "disk.qcow2"), *PATTERNS)


def cancelled(three, serve):
    """disk <- top <- mid <- base, where mid makes sense below top only"""
    server, client = serve(three / "disk.qcow2")
    assert client.ask("block-commit", device="disk0", job_id="c", top="top.qcow2", base="base.qcow2", drop_source=True, speed=65536) == {"return": {}}
    client.ask("block-job-cancel", device="c")
    client.ended()
    assert server.stop() == 0


MARK, TOKEN = 0x6279726f, 0x62797274


def extensions(path):
    found, data = {}, path.read_bytes()[:4096]
    at = int.from_bytes(data[100:104], "big")
    while (kind := int.from_bytes(data[at:at + 4], "big")):
        length = int.from_bytes(data[at + 4:at + 8], "big")
        found[kind] = (at + 8, data[at + 8:at + 8 + length])
        at += 8 + (length + 7) // 8 * 8
    return found


def test_the_token_tells(three, serve):
    """The image through which a part makes sense is known by a random token: under another name it is the same, and another one of its name is
    not; the peer's changes of its header keep it."""
    cancelled(three, serve)
    token = extensions(three / "top.qcow2")[TOKEN][1]
    assert len(token) == 32 and extensions(three / "mid.qcow2")[MARK][1].endswith(b"/top.qcow2\n" + token)
    cancelled(three, serve)                                    # once more: the same
    assert extensions(three / "top.qcow2")[TOKEN][1] == token and extensions(three / "mid.qcow2")[MARK][1].endswith(token)
    (three / "top.qcow2").rename(three / "renamed")
    run.qemu_img("rebase", "-u", "-b", "renamed", "-F", "qcow2", three / "disk.qcow2")
    run.qemu_img("rebase", "-u", "-b", "mid.qcow2", "-F", "qcow2", three / "renamed")
    images.create(three / "top.qcow2", "16M", backing="mid.qcow2", unchecked=True)
    run.byre("compare", "-f", "qcow2", "-F", "qcow2", three / "disk.qcow2", three / "renamed")
    assert "mid.qcow2" in run.byre("compare", three / "top.qcow2", three / "disk.qcow2", code=2).err
    run.qemu_io(str(three / "disk.qcow2"), *PATTERNS)
    images.assert_sound(three / "renamed")


@pytest.mark.parametrize("mark", ["name", "no token", "control", "long"])
def test_marks_of_old_and_damaged_ones(three, serve, mark):
    """A mark without a token goes by the name; one that makes no sense lets nothing through; the image opens for a check all the same"""
    cancelled(three, serve)
    at, text = extensions(three / "mid.qcow2")[MARK]
    name = text.split(b"\n")[0]
    new = {"name": b"/" * (len(text) - len(name)) + name, "no token": name + b"\n" + bytes(32), "control": name + b"\n\1" + b"0" * 31, "long": b"\n" + text[:-1]}[mark]
    assert len(new) == len(text)
    with open(three / "mid.qcow2", "r+b") as f:
        f.seek(at)
        f.write(new)
    good = run.byre("compare", three / "disk.qcow2", three / "disk.qcow2", code=None)
    assert (good.code == 0) == (mark == "name"), good
    if mark != "name":
        assert "another image" in good.err
    run.byre("check", three / "mid.qcow2")
    (three / "top.qcow2").rename(three / "renamed")
    run.qemu_img("rebase", "-u", "-b", "renamed", "-F", "qcow2", three / "disk.qcow2")
    assert "mid.qcow2" in run.byre("compare", three / "disk.qcow2", three / "disk.qcow2", code=2).err


def test_introspection(three, serve):
    server, client = serve(three / "disk.qcow2")
    schema = {e["name"]: e for e in client.ask("query-qmp-schema")["return"] if "name" in e}
    for name in ("block-commit", "block-stream", "block-job-cancel", "query-block-jobs", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR"):
        assert name in schema
    assert json.dumps(schema)


@pytest.fixture
def small(tmp_path):
    """A file system of 3 MiB, with base <- mid on it, and top and disk elsewhere."""
    with mounts.tmpfs(tmp_path / "small", "3M") as mount:
        images.create(mount / "base.qcow2", "8M")
        images.create(tmp_path / "top.qcow2", "8M", backing=mount / "base.qcow2", unchecked=True)
        images.create(tmp_path / "disk.qcow2", "8M", backing="top.qcow2", unchecked=True)
        run.qemu_io(str(mount / "base.qcow2"), "write -P 1 0 1M")
        run.qemu_io(str(tmp_path / "top.qcow2"), "write -P 2 512k 4M")
        (mount / "ballast").write_bytes(bytes(1 << 20))
        yield mount


FULL = ("read -P 1 0 512k", "read -P 2 512k 4M", "read -P 0 4608k 3584k")


@pytest.mark.parametrize("policy", ["report", "enospc", "stop", "ignore"])
def test_no_space(tmp_path, small, serve, policy):
    """FEATURES 9.053, 9.009, 9.010: the base lies on a full disk. The chain reads as before; with a policy that waits, the job goes on when there is
    room."""
    server, client = serve(tmp_path / "disk.qcow2")
    run.run("mount", "-o", "remount,size=3M", small)
    assert client.ask("block-commit", device="disk0", job_id="c", top="top.qcow2", on_error=policy) == {"return": {}}
    while not any(e["event"] == "BLOCK_JOB_ERROR" for e in client.events):
        client.events.append(client.receive())
    error = next(e["data"] for e in client.events if e["event"] == "BLOCK_JOB_ERROR")
    assert error == {"device": "c", "operation": "write", "action": {"enospc": "stop"}.get(policy, policy)}
    run.qemu_io(server.uri, *FULL, fmt="raw")
    if policy == "report":
        data = client.ended()["data"]
        assert "base.qcow2" in data["error"] and "write" in data["error"], data
        assert client.files() == ["disk.qcow2", "top.qcow2", "base.qcow2"]
    elif policy != "ignore":
        wait.until(lambda: client.ok("query-block-jobs")[0]["status"] == "paused", "it does not stand still")
        shown = client.ok("query-block-jobs")[0]
        assert shown["status"] == "paused" and shown["io-status"] == "nospace", shown
    if policy != "report":
        run.run("mount", "-o", "remount,size=12M", small)
        if policy != "ignore":
            assert client.ask("block-job-resume", device="c") == {"return": {}}
        assert "error" not in client.ended()["data"]
        assert client.files() == ["disk.qcow2", "base.qcow2"]
        assert server.stop() == 0
        images.assert_sound(f"{small}/base.qcow2")
    else:
        assert server.stop() == 0
        images.assert_sound(f"{small}/base.qcow2", leaks=True)
    run.qemu_io(str(tmp_path / "disk.qcow2"), *FULL)
