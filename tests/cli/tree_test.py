# SPDX-License-Identifier: MIT
"""byre tree, the guard that keeps images from changing under others, and the record of overlays (FEATURES 5.021, 5.022, 5.060, 5.064)."""
import os
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree

import pytest
from lib import peers, run
from qmp_client import Qmp


@pytest.fixture
def forest(tmp_path):
    """base <- mid <- top, base <- side, all in one folder; far lies elsewhere."""
    os.mkdir(tmp_path / "a")
    os.mkdir(tmp_path / "b")
    a = tmp_path / "a"
    run.byre("create", "-q", "-f", "qcow2", a / "base.qcow2", "4M")
    for name, below in (("mid", "base"), ("top", "mid"), ("side", "base")):
        run.byre("create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2", a / f"{name}.qcow2")
    run.byre("create", "-q", "-f", "qcow2", "-b", a / "base.qcow2", "-F", "qcow2", tmp_path / "b" / "far.qcow2")
    run.qemu_io(f"{a}/base.qcow2", "write -P 1 0 1M")
    run.qemu_io(f"{a}/mid.qcow2", "write -P 2 0 512k")
    run.qemu_io(f"{a}/top.qcow2", "write -P 3 0 64k")
    return tmp_path


def tree(*args, cwd=None):
    return {i["filename"]: i for i in run.byre("tree", "--output=json", *args, cwd=cwd).json}


def digest(path):
    return open(path, "rb").read()


# ---- what is shown ----

def test_text(forest):
    shown = run.byre("tree", "a", cwd=forest).out.splitlines()
    names = [line.split("  (")[0] for line in shown]
    assert names == ["a/base.qcow2", f"├── {forest}/b/far.qcow2", "├── a/mid.qcow2", "│   └── a/top.qcow2", "└── a/side.qcow2"]
    assert "from a record" in shown[1] and "(qcow2, 4 MiB)" in shown[0]
    assert run.byre("tree", cwd=forest).out.splitlines()[-1].startswith("└── b/far.qcow2")


def test_json_agrees_with_the_peer(forest):
    """What we read from headers is what qemu-img reads from images."""
    found = tree(forest / "a")
    for path, i in found.items():
        peer = run.qemu_img("info", "-U", "--output=json", path).json
        assert (i["format"], i["virtual-size"]) == (peer["format"], peer["virtual-size"])
        for key in ("backing-filename", "backing-filename-format", "full-backing-filename"):
            assert i.get(key) == peer.get(key), (path, key)
    base = found[str(forest / "a/base.qcow2")]
    assert base["children"] == [str(forest / f) for f in ("a/mid.qcow2", "a/side.qcow2", "b/far.qcow2")]
    assert base["depth"] == 0 and found[str(forest / "a/top.qcow2")]["depth"] == 2
    assert found[str(forest / "b/far.qcow2")]["recorded"] and not found[str(forest / "b/far.qcow2")]["inside"]


@pytest.mark.parametrize("fmt", ["qed", "qcow2"])
def test_formats_and_odd_chains(tmp_path, fmt):
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "plain", "1M")
    run.qemu_img("create", "-q", "-f", fmt, "-b", "plain", "-F", "raw", tmp_path / "on_plain")
    run.qemu_img("create", "-q", "-f", fmt, "-u", "-b", "none.img", "-F", "raw", tmp_path / "lost", "1M")
    run.qemu_img("create", "-q", "-f", fmt, "-u", "-b", "loop2", "-F", fmt, tmp_path / "loop1", "1M")
    run.qemu_img("create", "-q", "-f", fmt, "-u", "-b", "loop1", "-F", fmt, tmp_path / "loop2", "1M")
    run.qemu_img("create", "-q", "-f", fmt, "-u", "-b", "nbd://10.0.0.1/x", "-F", "raw", tmp_path / "remote", "1M")
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw,data_file_raw=on", tmp_path / "with_data", "1M")
    found = tree(tmp_path)
    assert found[str(tmp_path / "on_plain")]["backing-state"] == "found"
    assert found[str(tmp_path / "plain")]["format"] == "raw" and not found[str(tmp_path / "plain")]["inside"]
    assert found[str(tmp_path / "lost")]["backing-state"] == "missing"
    assert found[str(tmp_path / "remote")]["backing-state"] == "remote"
    assert found[str(tmp_path / "loop1")]["backing-loop"]
    assert found[str(tmp_path / "with_data")]["data-file-state"] == "found"
    text = run.byre("tree", tmp_path).out
    assert re.search(r"none.img  \(missing\)\n└── .*/lost", text) and re.search(r"nbd://10.0.0.1/x  \(on a server\)\n└── .*/remote", text)
    assert f"data in {tmp_path}/data.raw" in text and "its chain contains itself" in text
    assert len(text.splitlines()) == 9
    refused = run.byre("resize", "-f", "raw", "--shrink", tmp_path / "data.raw", "512k", code=1)
    assert "with_data" in refused.err


def test_svg_is_sound_whatever_the_names(tmp_path):
    for name in (b"a<b>&\"'.qcow2", b"new\nline\x01.qcow2", b"bad\xff\xc3.qcow2", "größe.qcow2".encode()):
        shutil.copy(_one(tmp_path), os.path.join(os.fsencode(tmp_path), name))
    os.unlink(tmp_path / "one")
    root = ElementTree.fromstring(run.byre("tree", "--svg", tmp_path).out)
    names = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text") if t.get("class") == "name"]
    assert sorted(n.rsplit("/", 1)[1] for n in names) == sorted(["a<b>&\"'.qcow2", "new\\x0aline\\x01.qcow2", "bad\\xff\\xc3.qcow2", "größe.qcow2"])
    text = run.run(run.BYRE, "tree", tmp_path, binary=True).out
    assert text.count(b"\n") == 4 and b"new\\x0aline\\x01" in text
    assert len(run.byre("tree", "--output=json", tmp_path).json) == 4


def _one(folder):
    run.byre("create", "-q", "-f", "qcow2", folder / "one", "1M")
    return folder / "one"


def test_usage(tmp_path):
    assert "No such file" in run.byre("tree", tmp_path / "none", code=1).err or "is not there" in run.byre("tree", tmp_path / "none", code=1).err
    assert "exclude each other" in run.byre("tree", "--svg", "--output=json", code=1).err
    assert run.byre("tree", tmp_path).out == "" and run.byre("tree", "--output=json", tmp_path).json == []
    os.mkdir(tmp_path / "sub")
    shutil.move(_one(tmp_path), tmp_path / "sub" / "one")
    assert run.byre("tree", "--flat", tmp_path).out == ""
    assert run.byre("tree", tmp_path).out.endswith("sub/one  (qcow2, 1 MiB)\n")


def test_ten_thousand_images(tmp_path):
    """Headers alone are read: the time is that of opening files."""
    run.byre("create", "-q", "-f", "qcow2", "-b", _one(tmp_path), "-F", "qcow2", tmp_path / "two")
    head = digest(tmp_path / "two")
    head = head[:int.from_bytes(head[8:16], "big") + int.from_bytes(head[16:20], "big")]      # up to the end of the backing name
    for d in range(20):
        os.mkdir(tmp_path / f"d{d}")
        for i in range(500):
            fd = os.open(tmp_path / f"d{d}" / f"{i}.qcow2", os.O_WRONLY | os.O_CREAT)
            os.write(fd, head)
            os.ftruncate(fd, 1 << 30)
            os.close(fd)
    begun = time.monotonic()
    found = tree(tmp_path)
    took = time.monotonic() - begun
    assert len(found) == 10002 and len(found[str(tmp_path / "one")]["children"]) == 10001
    assert took < 10, took


# ---- the guard ----

def refused(*args, by):
    done = run.byre(*args, code=1)
    assert "depend" in done.err and "force" in done.err, done
    for name in by:
        assert name in done.err, done
    return done


def test_nothing_changes_under_an_overlay(forest):
    a = forest / "a"
    before = {p: digest(p) for p in (a / "base.qcow2", a / "mid.qcow2", a / "top.qcow2")}
    refused("commit", a / "mid.qcow2", by=["side.qcow2", "far.qcow2"])
    refused("commit", "-b", a / "base.qcow2", a / "top.qcow2", by=["side.qcow2", "far.qcow2"])
    refused("resize", "--shrink", a / "base.qcow2", "1M", by=["mid.qcow2"])
    refused("amend", "-o", "size=1M", a / "base.qcow2", by=["mid.qcow2"])
    refused("rebase", "-u", "-b", "", a / "mid.qcow2", by=["top.qcow2"])
    assert before == {p: digest(p) for p in before}
    run.byre("resize", "-q", a / "base.qcow2", "+1M")
    run.byre("snapshot", "-c", "s", a / "base.qcow2")
    refused("snapshot", "-a", "s", a / "base.qcow2", by=["mid.qcow2"])
    run.byre("snapshot", "-d", "s", a / "base.qcow2")


def test_who_does_not_depend_is_not_in_the_way(forest):
    a = forest / "a"
    run.byre("commit", "-q", a / "top.qcow2")            # mid has no other overlay
    run.byre("rebase", "-q", "-b", "", a / "side.qcow2")
    os.unlink(forest / "b" / "far.qcow2")
    run.byre("commit", "-q", "-b", a / "base.qcow2", a / "top.qcow2")
    run.byre("resize", "-q", "--shrink", a / "top.qcow2", "1M")


def test_force(forest):
    a = forest / "a"
    run.byre("commit", "-q", "--force", "-b", a / "base.qcow2", a / "top.qcow2")
    assert run.qemu_img("compare", a / "base.qcow2", a / "top.qcow2").code == 0
    run.byre("resize", "-q", "--force", "--shrink", a / "mid.qcow2", "1M")
    run.byre("snapshot", "-c", "s", a / "base.qcow2")
    run.byre("snapshot", "--force", "-a", "s", a / "base.qcow2")
    run.byre("rebase", "-u", "--force", "-b", "", a / "mid.qcow2")
    run.byre("amend", "--force", "-o", "size=2M", a / "base.qcow2", code={0, 1})


def test_a_place_that_is_not_found(tmp_path):
    """FEATURES 5.064: when it cannot be found out where an image lies, nobody knows what depends on it: refused, unless forced"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "base", "2M")
    run.byre("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "top", "2M")

    def shrink(*words, code=0):
        return run.run(peers.need("strace"), "-f", "-qq", "-o", "/dev/null", "-P", tmp_path / "base", "-e", "trace=readlink,readlinkat", "-e", "inject=readlink,readlinkat:error=EIO",
                       run.BYRE, "resize", "-q", "--shrink", *words, tmp_path / "base", "1M", code=code)
    done = shrink(code=1)
    assert "base: it cannot be found out which images depend on it" in done.err and "Input/output error" in done.err, done
    assert run.qemu_img("info", "--output=json", tmp_path / "base").json["virtual-size"] == 2 << 20
    shrink("--force")
    assert run.qemu_img("info", "--output=json", tmp_path / "base").json["virtual-size"] == 1 << 20


def test_the_peers_name_only_warns(forest, tmp_path):
    link = tmp_path / "qemu-img"
    os.symlink(run.BYRE, link)
    done = run.run(link, "commit", forest / "a" / "mid.qcow2")
    assert "side.qcow2" in done.err and done.out == "Image committed.\n"


def test_unsafe_rebase_is_the_way_out_when_the_base_is_gone(forest):
    a = forest / "a"
    os.rename(a / "base.qcow2", a / "moved.qcow2")
    run.byre("rebase", "-u", "-b", "moved.qcow2", "-F", "qcow2", a / "mid.qcow2")
    assert run.qemu_img("info", "--output=json", a / "mid.qcow2").json["backing-filename"] == "moved.qcow2"


# ---- records ----

def test_a_record_that_cannot_be_written_is_a_warning(forest):
    os.mkdir(forest / "a" / "base.qcow2.byre-children.d")
    os.unlink(forest / "a" / "base.qcow2.byre-children")
    os.rename(forest / "a" / "base.qcow2.byre-children.d", forest / "a" / "base.qcow2.byre-children")
    done = run.byre("create", "-q", "-f", "qcow2", "-b", forest / "a/base.qcow2", "-F", "qcow2", forest / "b/more.qcow2")
    assert "more.qcow2" in done.err and "cannot be recorded" in done.err
    run.qemu_img("check", forest / "b/more.qcow2")


def test_a_registry_takes_the_place_of_the_files(tmp_path):
    env = {"BYRE_REGISTRY": str(tmp_path / "registry")}
    os.mkdir(tmp_path / "b")
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "1M", env=env)
    run.byre("create", "-q", "-f", "qcow2", "-b", tmp_path / "base.qcow2", "-F", "qcow2", tmp_path / "b" / "far.qcow2", env=env)
    assert sorted(os.listdir(tmp_path)) == ["b", "base.qcow2", "registry"]
    assert "far.qcow2" in run.byre("resize", "--shrink", tmp_path / "base.qcow2", "512k", code=1, env=env).err
    assert list(tree("--registry", tmp_path / "registry", tmp_path / "base.qcow2")) == [str(tmp_path / "base.qcow2"), str(tmp_path / "b/far.qcow2")]
    run.byre("resize", "-q", "--shrink", tmp_path / "base.qcow2", "512k", env={"BYRE_REGISTRY": "none"})


def test_rebase_is_recorded(forest):
    run.byre("create", "-q", "-f", "qcow2", forest / "b" / "other.qcow2", "4M")
    run.byre("rebase", "-q", "-b", forest / "b" / "other.qcow2", "-F", "qcow2", forest / "a" / "side.qcow2")
    refused("resize", "--shrink", forest / "b" / "other.qcow2", "1M", by=["a/side.qcow2"])


def test_called_as_the_peer_nothing_is_left_beside_images(tmp_path):
    link = tmp_path / "qemu-img"
    os.symlink(run.BYRE, link)
    os.mkdir(tmp_path / "b")
    run.run(link, "create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "1M")
    run.run(link, "create", "-q", "-f", "qcow2", "-b", tmp_path / "base.qcow2", "-F", "qcow2", tmp_path / "b" / "o.qcow2")
    assert sorted(os.listdir(tmp_path)) == ["b", "base.qcow2", "qemu-img"]


# ---- a server ----

@pytest.fixture
def served(byre_serve):
    clients = []

    def start(path):
        server = byre_serve(path)
        clients.append(Qmp(server.control))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def concluded(client):
    return client.wait("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


def test_block_commit_is_guarded(forest, served):
    a = forest / "a"
    run.byre("create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", a / "disk.qcow2")
    client = served(a / "disk.qcow2")
    before = digest(a / "base.qcow2")
    answer = client.ask("block-commit", device="disk0", top=str(a / "top.qcow2"))
    assert "side.qcow2" in answer["error"]["desc"] and "far.qcow2" in answer["error"]["desc"], answer
    answer = client.ask("block-commit", device="disk0")           # the active layer
    assert "side.qcow2" in answer["error"]["desc"]
    assert digest(a / "base.qcow2") == before
    assert "return" in client.ask("block-commit", device="disk0", top=str(a / "top.qcow2"), base=str(a / "mid.qcow2"))
    assert "error" not in concluded(client)["data"]
    assert "return" in client.ask("block-commit", device="disk0", top=str(a / "mid.qcow2"), force=True)
    assert "error" not in concluded(client)["data"]


def test_what_a_commit_has_taken_out_is_not_in_the_way(tmp_path, served):
    """Layers are committed one after the other, with the files of those before lying there."""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "4M")
    for name, below in (("l1", "base"), ("l2", "l1"), ("l3", "l2"), ("disk", "l3")):
        run.byre("create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2", tmp_path / f"{name}.qcow2")
    client = served(tmp_path / "disk.qcow2")
    for name in ("l1", "l2"):
        answer = client.ask("block-commit", device="disk0", top=str(tmp_path / f"{name}.qcow2"))
        assert "return" in answer, answer
        assert "error" not in concluded(client)["data"]
    assert tree(tmp_path / "l2.qcow2")[str(tmp_path / "l2.qcow2")]["full-backing-filename"] == str(tmp_path / "base.qcow2")
    shutil.copy(tmp_path / "l2.qcow2", tmp_path / "copy.qcow2")     # this one nobody has taken out
    assert "copy.qcow2" in client.ask("block-commit", device="disk0", top=str(tmp_path / "l3.qcow2"))["error"]["desc"]
    os.unlink(tmp_path / "copy.qcow2")
    assert "return" in client.ask("block-commit", device="disk0", top=str(tmp_path / "l3.qcow2"))
    assert "error" not in concluded(client)["data"]


def test_a_snapshot_elsewhere_is_recorded(forest, served):
    client = served(forest / "a" / "side.qcow2")
    new = forest / "b" / "snap.qcow2"
    assert "return" in client.ask("blockdev-snapshot-sync", device="disk0", **{"snapshot-file": str(new), "format": "qcow2"})
    assert "snap.qcow2" in open(forest / "a" / "side.qcow2.byre-children").read()


def test_block_resize_is_guarded(forest, served):
    run.byre("create", "-q", "-f", "qcow2", "-b", forest / "a" / "side.qcow2", "-F", "qcow2", forest / "b" / "over.qcow2")
    client = served(forest / "a" / "side.qcow2")
    assert "over.qcow2" in client.ask("block_resize", device="disk0", size=1 << 20)["error"]["desc"]
    assert "return" in client.ask("block_resize", device="disk0", size=8 << 20)
    assert "return" in client.ask("block_resize", device="disk0", size=1 << 20, force=True)
