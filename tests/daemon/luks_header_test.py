# SPDX-License-Identifier: MIT
"""LUKS disks whose header is another node (FEATURES 3.062), and secrets of key slots in x-blockdev-amend (1.074)."""
import json

import pytest

from lib import peers, run

MIB = 1 << 20
SECRETS = ["--object", "secret,id=s,data=one", "--object", "secret,id=t,data=two", "--object", "secret,id=u,data=three"]


@pytest.fixture
def world(start, tmp_path):
    """A daemon with a disk and a header in two files, its client, and a guest of the node "n"."""
    for name in ("head", "disk"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "other").write_bytes(bytes(MIB))
    daemon = start("daemon", "--nbd-server", "addr.type=unix,addr.path=n.sock", "--object", "throttle-group,id=g", *SECRETS)
    client = daemon.qmp()

    def guest(*commands, code=0):
        return run.run("qemu-io", "-f", "raw", *[w for c in commands for w in ("-c", c)], f"nbd+unix:///n?socket={daemon.folder}/n.sock", code=code).out
    return daemon, client, guest


def file_of(name, **more):
    return {"driver": "file", "filename": str(name), **more}


def job(client, command, **arguments):
    """Runs a job to its end and forgets it; its error, None when it ended well."""
    client.ok(command, job_id="j", **arguments)
    while client.wait("JOB_STATUS_CHANGE", id="j")["data"]["status"] != "concluded":
        pass
    found = [j for j in client.ok("query-jobs") if j["id"] == "j"]
    client.ok("job-dismiss", id="j")
    while client.wait("JOB_STATUS_CHANGE", id="j")["data"]["status"] != "null":
        pass
    return found[0].get("error")


def create(client, **more):
    return job(client, "blockdev-create", options={"driver": "luks", "size": 4 * MIB, "key-secret": "s", "iter-time": 10, **more})


def amend(client, force=False, **change):
    return job(client, "x-blockdev-amend", node_name="n", options={"driver": "luks", **{k.replace("_", "-"): v for k, v in change.items()}}, force=force)


def made(client):
    assert create(client, file=file_of("disk"), header=file_of("head")) is None


def export(client):
    client.ok("block-export-add", type="nbd", id="e", node_name="n", writable=True)


def unexport(client):
    client.ok("block-export-del", id="e", mode="hard")
    client.wait("BLOCK_EXPORT_DELETED", id="e")


def edges(client):
    picture = client.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    return {(names[e["parent"]], e["name"], names[e["child"]]): (sorted(e["perm"]), sorted(e["shared-perm"])) for e in picture["edges"]}


def opened(tmp_path, key):
    """What lies in the two files is a disk, in one file, to a program that knows no detached headers; cryptsetup opens the header as it is."""
    (tmp_path / "pass").write_bytes(key)
    run.run(peers.need("cryptsetup"), "open", "--test-passphrase", "--header", tmp_path / "head", "--key-file", tmp_path / "pass", tmp_path / "disk")
    head = bytearray((tmp_path / "head").read_bytes())
    head += bytes(-len(head) % 512)
    head[104:108] = (len(head) // 512).to_bytes(4, "big")
    (tmp_path / "whole").write_bytes(head + (tmp_path / "disk").read_bytes())
    return ["--object", f"secret,id=k,data={key.decode()}", "--image-opts", f"driver=luks,key-secret=k,file.filename={tmp_path}/whole"]


KINDS = {"name": None, "nested": file_of("head"), "named": file_of("head", **{"node-name": "h"}),
         "throttle": {"driver": "throttle", "throttle-group": "g", "node-name": "h", "file": file_of("head")},
         "raw": {"driver": "raw", "node-name": "h", "file": file_of("head")}}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(world, tmp_path, kind):
    """By name and nested: it is written, grown, seen as an edge and nobody's but the disk's; key slots are changed in it while the disk is in use."""
    daemon, client, guest = world
    made(client)
    assert (tmp_path / "disk").stat().st_size == 4 * MIB
    if not KINDS[kind]:
        client.ok("blockdev-add", **file_of("head", **{"node-name": "h"}))
    client.ok("blockdev-add", driver="luks", node_name="n", key_secret="s", header=KINDS[kind] or "h", file=file_of("disk"))
    export(client)
    assert "fail" not in guest("write -P 7 0 4M", "write -P 9 5000 100", "flush", "read -P 9 5000 100", "read -P 7 1M 3M")
    if kind != "nested":
        assert edges(client)[("n", "header", "h")] == (["consistent-read", "write"], ["consistent-read", "write-unchanged"])
        client.refused("blockdev-del", node_name="h")
        client.refused("block_resize", node_name="h", size=64 * MIB)
        assert "'n'" in client.refused("blockdev-add", driver="luks", node_name="m", key_secret="s", header="h", file=file_of("other"))
    assert amend(client, state="active", new_secret="t", iter_time=10) is None
    assert amend(client, state="inactive", old_secret="s") is None
    assert "fail" not in guest("read -P 9 5000 100", "write -P 8 0 1M", "flush")
    unexport(client)
    client.ok("block_resize", node_name="n", size=5 * MIB)
    client.ok("blockdev-del", node_name="n")
    assert [n["node-name"] for n in client.ok("query-named-block-nodes")] == (["h"] if kind == "name" else [])
    assert daemon.stop()[0] == 0
    assert (tmp_path / "disk").stat().st_size == 5 * MIB
    out = run.run("qemu-io", "-c", "read -P 8 0 1M", "-c", "read -P 7 1M 3M", *opened(tmp_path, b"two")).out
    assert "fail" not in out


def test_secret_of_amend(world, tmp_path):
    """FEATURES 1.074: `secret` opens a slot where the passphrase that opened the disk does no more"""
    daemon, client, _ = world
    made(client)
    client.ok("blockdev-add", driver="luks", node_name="n", key_secret="s", header=file_of("head"), file=file_of("disk"))
    assert amend(client, state="active", new_secret="t", iter_time=10) is None
    assert amend(client, state="inactive", old_secret="s") is None
    assert "opens no key slot" in amend(client, state="active", new_secret="u", iter_time=10)
    assert "nobody" in amend(client, state="active", new_secret="u", secret="nobody")
    assert amend(client, state="active", new_secret="u", secret="t", iter_time=10) is None
    assert amend(client, state="inactive", old_secret="t") is None
    assert daemon.stop()[0] == 0
    opened(tmp_path, b"three")


@pytest.mark.parametrize("fmt", ["luks", "qcow2"])
@pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
def test_secret_of_amend_beside_the_peer(start, tmp_path, fmt, peer):
    """FEATURES 1.074: the same words to byre and to the peer, for an image of one file"""
    p = "encrypt." if fmt == "qcow2" else ""
    words = f"{p}key-secret=s,{p}iter-time=10" + (",encrypt.format=luks" if p else "")
    run.byre("create", "-q", *SECRETS, "-f", fmt, "-o", words, tmp_path / "x", "1M")
    image = f"driver={fmt},{p}key-secret=s,file.filename={tmp_path}/x"
    run.byre("amend", *SECRETS, "-o", f"{p}state=active,{p}new-secret=t,{p}iter-time=10", "--image-opts", image)
    daemon = start("daemon", *SECRETS, peer=peer)
    client = daemon.qmp()
    node = {"key-secret": "s"} if fmt == "luks" else {"encrypt": {"format": "luks", "key-secret": "s"}}
    client.ok("blockdev-add", driver=fmt, node_name="n", file=file_of("x"), **node)

    def change(**words):
        words = {k.replace("_", "-"): v for k, v in words.items()}
        options = {"driver": fmt, **words} if fmt == "luks" else {"driver": fmt, "encrypt": {"format": "luks", **words}}
        for _ in range(60):
            error = job(client, "x-blockdev-amend", node_name="n", options=options)
            if not error or "accurate CPU usage" not in error:
                return error
    assert change(state="inactive", old_secret="s") is None
    assert change(state="active", new_secret="u", iter_time=10)
    assert change(state="active", new_secret="u", secret="t", iter_time=10) is None
    assert daemon.stop()[0] == 0
    data = json.loads(run.qemu_img("info", "--output=json", "-f", fmt, tmp_path / "x").out)["format-specific"]["data"]
    assert [s["active"] for s in data.get("encrypt", data)["slots"]].count(True) == 2
    image = image.replace("key-secret=s", "key-secret=u")
    for program in ([run.BYRE, "io"], ["qemu-io"]):
        assert "fail" not in run.run(*program, *SECRETS, "-c", "read 0 1M", "--image-opts", image).out


def test_header_that_is_only_read(world, tmp_path):
    """The disk is written all the same; only its key slots stay what they are, and the header may be shared."""
    daemon, client, guest = world
    made(client)
    before = (tmp_path / "head").read_bytes()
    client.ok("blockdev-add", **file_of("head", **{"node-name": "h", "read-only": True}))
    client.ok("blockdev-add", driver="luks", node_name="n", key_secret="s", header="h", file=file_of("disk"))
    assert edges(client)[("n", "header", "h")] == (["consistent-read"], ["consistent-read", "write-unchanged"])
    client.ok("blockdev-add", driver="luks", node_name="m", key_secret="s", header="h", file=file_of("other"))
    client.ok("blockdev-del", node_name="m")
    export(client)
    assert "fail" not in guest("write -P 3 0 1M", "flush")
    unexport(client)
    for state in ({"state": "active", "new_secret": "t", "iter_time": 10}, {"state": "inactive", "keyslot": 0}):
        assert "read-only" in amend(client, force=True, **state)
    reopen = {"driver": "luks", "node-name": "n", "key-secret": "s", "file": file_of("disk")}
    client.ok("blockdev-reopen", options=[{**reopen, "read-only": True}])
    client.ok("blockdev-reopen", options=[{**reopen, "header": "h"}])
    client.refused("blockdev-reopen", options=[{**reopen, "header": "n"}])
    client.refused("blockdev-reopen", options=[{**reopen, "data-file": "h"}])
    export(client)
    assert "fail" not in guest("read -P 3 0 1M", "write -P 4 1M 1M", "flush")
    unexport(client)
    assert daemon.stop()[0] == 0
    assert (tmp_path / "head").read_bytes() == before
    assert "fail" not in run.run("qemu-io", "-c", "read -P 3 0 1M", "-c", "read -P 4 1M 1M", *opened(tmp_path, b"one")).out


def test_reopened_and_inactive(world, tmp_path):
    """Read-only and back, inactive and back: the header goes along, and what another process wrote meanwhile is seen."""
    daemon, client, guest = world
    made(client)
    words = {"driver": "luks", "node-name": "n", "key-secret": "s", "header": file_of("head", **{"node-name": "h"}), "file": file_of("disk", **{"node-name": "d"})}
    client.ok("blockdev-add", **words)
    assert amend(client, state="active", new_secret="t", iter_time=10) is None
    client.ok("blockdev-reopen", options=[{**words, "header": "h", "file": "d", "read-only": True}])
    assert edges(client)[("n", "header", "h")][0] == ["consistent-read"]
    assert "read-only" in amend(client, state="active", new_secret="u")
    client.ok("blockdev-reopen", options=[{**words, "header": "h", "file": "d"}])
    assert edges(client)[("n", "header", "h")][0] == ["consistent-read", "write"]
    assert amend(client, state="active", new_secret="u", iter_time=10) is None
    client.ok("blockdev-set-active", active=False)
    image = f"driver=luks,key-secret=u,header.driver=file,header.filename={tmp_path}/head,file.filename={tmp_path}/disk"
    run.byre("io", *SECRETS, "-c", "write -P 5 0 4M", "--image-opts", image)
    client.ok("blockdev-set-active", active=True)
    done = run.byre("io", *SECRETS, "-c", "write -P 6 0 4k", "--image-opts", image, code=1)
    assert "lock" in done.err
    export(client)
    assert "fail" not in guest("read -P 5 0 4M", "write -P 6 0 1M", "flush")
    unexport(client)
    assert daemon.stop()[0] == 0
    assert "fail" not in run.run("qemu-io", "-c", "read -P 6 0 1M", "-c", "read -P 5 1M 3M", *opened(tmp_path, b"three")).out


def test_create(world, tmp_path):
    """FEATURES 8.012: the header alone; header and disk, filled or not; what fails leaves the header that was there, or none, and what makes no sense
    touches nothing"""
    daemon, client, _ = world
    assert create(client, header=file_of("head"), size=0) is None
    assert 0 < (tmp_path / "head").stat().st_size < 4 * MIB and (tmp_path / "disk").stat().st_size == 0
    before = (tmp_path / "head").read_bytes()
    for words, why in (({}, "'file'"), ({"file": file_of("head"), "header": file_of("head")}, "the same"), ({"header": "nobody"}, "nobody"),
                       ({"header": file_of("head"), "preallocation": "full"}, "nothing to allocate"), ({"header": file_of("head"), "file": file_of("disk"), "cipher-alg": "odd"}, "odd")):
        assert why in create(client, **words)
        assert (tmp_path / "head").read_bytes() == before
    client.ok("blockdev-add", **file_of("head", **{"node-name": "f"}))
    assert "header" in client.refused("blockdev-create", job_id="j", options={"driver": "qcow2", "size": MIB, "file": file_of("disk"), "header": "f"})
    client.ok("blockdev-del", node_name="f")
    assert create(client, header=file_of("head"), file=file_of("disk"), preallocation="full") is None
    assert (tmp_path / "disk").stat().st_blocks * 512 >= 4 * MIB
    client.ok("blockdev-add", driver="luks", node_name="n", key_secret="s", header=file_of("head"), file=file_of("disk"))
    client.ok("blockdev-del", node_name="n")
    assert "fail" not in run.run("qemu-io", "-c", "read -P 0 0 4M", *opened(tmp_path, b"one")).out
    for which in ("head", "disk"):
        broken = {"driver": "blkdebug", "image": file_of(which), "inject-error": [{"event": "none", "iotype": "flush", "errno": 5}]}
        both = {"header": file_of("head"), "file": file_of("disk")}
        both["header" if which == "head" else "file"] = broken
        before = (tmp_path / "head").read_bytes()
        assert "cannot" in create(client, **both, **{"key-secret": "t"})
        if which == "disk":                  # the header comes last
            assert (tmp_path / "head").read_bytes() == before
        (tmp_path / "disk").write_bytes(bytes(4 * MIB))          # what was written of it is wiped
        opened(tmp_path, b"one")
        (tmp_path / "head").write_bytes(b"")
        assert "cannot" in create(client, **both)
        assert (tmp_path / "head").read_bytes()[:6] != b"LUKS\xba\xbe"
        made(client)
    assert daemon.stop()[0] == 0


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_disk_with_a_header_of_its_own(world, tmp_path, kind):
    """FEATURES 3.062: a header that was mistaken does not write its disk over the key slots of another; a copy of that disk's own header opens it"""
    daemon, client, guest = world
    crypt = peers.need("cryptsetup")
    made(client)
    (tmp_path / "pass").write_bytes(b"one")
    with open(tmp_path / "disk", "wb") as f:
        f.truncate(24 * MIB)
    run.run(crypt, "luksFormat", "-q", "--type", kind, "--pbkdf", "pbkdf2", "--iter-time", "10", tmp_path / "disk", tmp_path / "pass")
    before = (tmp_path / "disk").read_bytes()
    whole = {"driver": "luks", "node_name": "n", "key_secret": "s", "header": file_of("head"), "file": file_of("disk")}
    head = bytearray((tmp_path / "head").read_bytes())
    for sector in (0, 2, 8, 64, 1024, 4095):
        head[104:108] = sector.to_bytes(4, "big")
        (tmp_path / "head").write_bytes(head)
        error = client.refused("blockdev-add", **whole)
        assert f"begins with a {kind.upper()} header of its own" in error and "disk" in error and "head" in error
    client.ok("blockdev-add", **whole, read_only=True)
    assert client.refused("blockdev-reopen", options=[{k.replace("_", "-"): v for k, v in whole.items() if k not in ("file", "header")}])
    client.ok("blockdev-del", node_name="n")
    assert (tmp_path / "disk").read_bytes() == before
    if kind == "luks1":
        (tmp_path / "head").unlink()
        run.run(crypt, "luksHeaderBackup", tmp_path / "disk", "--header-backup-file", tmp_path / "head")
    else:                                    # where the disk of the old header begins behind all that the new one has
        head[104:108] = (16 * MIB // 512).to_bytes(4, "big")
        (tmp_path / "head").write_bytes(head)
    client.ok("blockdev-add", **whole)
    export(client)
    assert "fail" not in guest("write -P 5 0 1M", "flush", "read -P 5 0 1M")
    unexport(client)
    client.ok("blockdev-del", node_name="n")
    run.run(crypt, "open", "--test-passphrase", "--key-file", tmp_path / "pass", tmp_path / "disk")
    assert daemon.stop()[0] == 0


def test_luks2_is_named(tmp_path):
    """FEATURES G.057: a LUKS2 image is refused by its name, as the format luks and as a header"""
    for name, size in (("two", 20 * MIB), ("disk", MIB)):
        with open(tmp_path / name, "wb") as f:
            f.truncate(size)
    (tmp_path / "pass").write_bytes(b"one")
    run.run(peers.need("cryptsetup"), "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--iter-time", "10", tmp_path / "two", tmp_path / "pass")
    for words in (f"file.filename={tmp_path}/two", f"header.driver=file,header.filename={tmp_path}/two,file.filename={tmp_path}/disk"):
        assert "two: is LUKS2" in run.byre("info", *SECRETS, "--image-opts", f"driver=luks,key-secret=s,{words}", code=1).err
    assert "LUKS version 2" in run.qemu_img("info", "-f", "luks", tmp_path / "two", code=1).err


@pytest.mark.parametrize("slot", [0, 1, 7])
def test_header_over_another(world, tmp_path, slot):
    """FEATURES 8.012: a header that is made over another has the first key slot, whichever the old one had; what opened the old one opens nothing"""
    daemon, client, _ = world
    made(client)
    client.ok("blockdev-add", driver="luks", node_name="n", key_secret="s", header=file_of("head"), file=file_of("disk"))
    if slot:                                 # the header has another active slot than the first
        assert amend(client, state="active", new_secret="u", keyslot=slot, iter_time=10) is None
        assert amend(client, state="inactive", keyslot=0) is None
    client.ok("blockdev-del", node_name="n")
    assert create(client, file=file_of("disk"), header=file_of("head"), **{"key-secret": "t"}) is None
    opened(tmp_path, b"two")
    dump = run.run(peers.need("cryptsetup"), "luksDump", tmp_path / "head").out
    assert dump.count("ENABLED") == 1 and "Key Slot 0: ENABLED" in dump
    for old in (b"one", b"three"):
        (tmp_path / "pass").write_bytes(old)
        run.run(peers.need("cryptsetup"), "open", "--test-passphrase", "--header", tmp_path / "head", "--key-file", tmp_path / "pass", tmp_path / "disk", code=2)
    assert daemon.stop()[0] == 0
