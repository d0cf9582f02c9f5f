# SPDX-License-Identifier: MIT
"""auto-read-only: a file is opened for writing when somebody writes to it, and not before (FEATURES 3.019, 3.068, 11.014)."""
import json
import os
import signal
import time

import pytest

from lib import mounts, nbdserver, peers, run, wait

MIB = 1 << 20
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
NBD = ("--nbd-server", "addr.type=unix,addr.path=n.sock")


@pytest.fixture
def frozen(tmp_path):
    """A file system that can only be read, with an image."""
    peers.need_root()
    with mounts.tmpfs(tmp_path / "ro", "16M") as folder:
        run.qemu_img("create", "-q", "-f", "qcow2", folder / "a", "8M")
        run.qemu_io(folder / "a", "write -P 1 0 1M")
        run.run("mount", "-o", "remount,ro", folder)
        yield folder


def others_write(path, fmt="qcow2"):
    return run.run("qemu-io", "-f", fmt, "-c", "write -P 9 4M 512", path, code=None).code == 0


def file_of(path, **more):
    return {"driver": "file", "filename": str(path), "node-name": "f", **more}


def ro(client):
    return {n["node-name"]: n["ro"] for n in client.ok("query-named-block-nodes") if n["node-name"] in ("f", "d")}


@BOTH
def test_a_disk_that_can_only_be_read(start, frozen, peer):
    """With auto-read-only the file opens; who writes is refused; without it the opening fails."""
    c = start("daemon", *NBD, peer=peer).qmp()
    for words in ({}, {"auto-read-only": False}, {"read-only": False, "auto-read-only": False}, {"read-only": False}):
        assert "Read-only file system" in c.refused("blockdev-add", **file_of(frozen / "a", **words))
        assert "Read-only file system" in c.refused("blockdev-add", driver="qcow2", node_name="d", file=file_of(frozen / "a", **words))
        assert ro(c) == {}
    c.ok("blockdev-add", **file_of(frozen / "a", **{"auto-read-only": True}))
    assert ro(c) == {"f": False}
    assert "Read-only file system" in c.refused("blockdev-add", driver="qcow2", node_name="d", file="f")
    assert "Read-only file system" in c.refused("block-export-add", type="nbd", id="e", node_name="f", writable=True)
    c.ok("blockdev-add", driver="qcow2", node_name="d", file="f", **{"read-only": True})
    assert ro(c) == {"f": False, "d": True}
    c.ok("block-export-add", type="nbd", id="e", node_name="d")
    c.refused("block-export-add", type="nbd", id="w", node_name="d", writable=True)
    c.ok("block-export-del", id="e", mode="hard")
    c.wait("BLOCK_EXPORT_DELETED", id="e")
    c.ok("blockdev-del", node_name="d")
    c.ok("blockdev-del", node_name="f")
    c.ok("blockdev-add", driver="qcow2", node_name="d", file=file_of(frozen / "a"), **{"read-only": True})       # the file follows
    c.ok("blockdev-del", node_name="d")
    assert ro(c) == {}


@BOTH
def test_only_while_somebody_writes(start, tmp_path, peer):
    """Another process may write the file as long as nobody writes to the node; then not, and when the last writer has gone, again."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    c = start("daemon", *NBD, peer=peer).qmp()
    c.ok("blockdev-add", **file_of(tmp_path / "a", **{"auto-read-only": True}))
    for _ in range(3):
        assert others_write(tmp_path / "a")
        c.ok("blockdev-add", driver="qcow2", node_name="d", file="f")
        assert not others_write(tmp_path / "a")
        c.ok("block_resize", node_name="d", size=16 * MIB)
        c.ok("blockdev-del", node_name="d")
        assert others_write(tmp_path / "a") and ro(c) == {"f": False}
        c.ok("block-export-add", type="nbd", id="e", node_name="f", writable=True, name="f")
        uri = f"nbd+unix:///f?socket={tmp_path}/{'peer' if peer else 'byre'}0/n.sock"
        done = run.run("qemu-io", "-f", "raw", "-c", "write -P 0 60416 512", "-c", "flush", uri)         # of the header's cluster, behind the header
        assert "failed" not in done.out and not others_write(tmp_path / "a")
        c.ok("block-export-del", id="e", mode="hard")
        c.wait("BLOCK_EXPORT_DELETED", id="e")
    run.qemu_img("check", tmp_path / "a")


def test_images_share_the_file(start, tmp_path):
    """The file is opened anew for writing under an image that reads it; a filter lies between; a commit gets its base."""
    for name, below in (("base", None), ("top", "base")):
        run.qemu_img("create", "-q", "-f", "qcow2", *(["-b", below, "-F", "qcow2"] if below else []), tmp_path / name, *([] if below else ["8M"]))
    run.qemu_io(tmp_path / "base", "write -P 1 0 8M")
    run.qemu_io(tmp_path / "top", "write -P 2 1M 1M")
    c = start("daemon", *NBD).qmp()
    c.ok("blockdev-add", driver="file", node_name="bf", filename=str(tmp_path / "base"), **{"auto-read-only": True})
    c.ok("blockdev-add", driver="qcow2", node_name="base", file="bf", **{"read-only": True})
    c.ok("blockdev-add", driver="blkdebug", node_name="cf", image={"driver": "file", "filename": str(tmp_path / "top"), "auto-read-only": True})
    c.ok("blockdev-add", driver="qcow2", node_name="top", file="cf", backing="base")
    c.ok("block-commit", job_id="j", device="top", **{"auto-dismiss": False})
    c.wait("BLOCK_JOB_READY", device="j")
    c.ok("job-complete", id="j")
    c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert "error" not in c.ok("query-jobs")[0]
    run.qemu_io(tmp_path / "base", "read -P 2 1M 1M", "read -P 1 2M 6M", options=["-r", "-U"])


def comes_free(path, at=0):
    """Sooner or later another process may write; a job's end may be told before it has left its target."""
    for _ in range(200):
        if run.run("qemu-io", "-f", "raw", "-c", "write -P 9 %d 512" % at, path, code=None).code == 0:
            return True
        time.sleep(0.1)
    return False


@BOTH
def test_when_a_job_has_gone(start, tmp_path, peer):
    """Backup, mirror, resize, and a job that does not begin: behind each the file is as free as before."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    run.qemu_io(tmp_path / "a", "write -P 1 0 8M")
    c = start("daemon", peer=peer).qmp()
    c.ok("blockdev-add", driver="qcow2", node_name="d", file={"driver": "file", "filename": str(tmp_path / "a")})
    for name, size in (("b", 8), ("m", 8), ("r", 8), ("bad", 4)):
        with open(tmp_path / name, "wb") as f:
            f.truncate(size * MIB)
        c.ok("blockdev-add", driver="file", node_name=name, filename=str(tmp_path / name), **{"auto-read-only": True})
    for _ in range(2):
        c.ok("blockdev-backup", job_id="j", device="d", target="b", sync="full")
        c.wait("JOB_STATUS_CHANGE", id="j", status="null")
        assert comes_free(tmp_path / "b")
        c.ok("blockdev-mirror", job_id="k", device="d", target="m", sync="full")
        c.wait("BLOCK_JOB_READY", device="k")
        assert run.run("qemu-io", "-f", "raw", "-c", "write 0 512", tmp_path / "m", code=None).code != 0
        c.ok("block-job-cancel", device="k")
        c.wait("JOB_STATUS_CHANGE", id="k", status="null")
        assert comes_free(tmp_path / "m")
        c.refused("blockdev-backup", job_id="j", device="d", target="bad", sync="full")
        assert comes_free(tmp_path / "bad")
        if not peer:                             # which begins, and fails later
            c.refused("blockdev-mirror", job_id="j", device="d", target="bad", sync="full")
            assert comes_free(tmp_path / "bad")
    c.ok("block_resize", node_name="r", size=16 * MIB)
    assert comes_free(tmp_path / "r", 12 * MIB)


def test_jobs_and_new_images_write_to_it(start, tmp_path):
    """blockdev-create, and the target of a backup"""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    run.qemu_io(tmp_path / "a", "write -P 1 0 8M")
    (tmp_path / "new").write_bytes(b"")
    with open(tmp_path / "copy", "wb") as f:
        f.truncate(8 * MIB)
    c = start("daemon").qmp()
    c.ok("blockdev-add", driver="file", node_name="f", filename=str(tmp_path / "new"), **{"auto-read-only": True})
    c.ok("blockdev-create", job_id="c", options={"driver": "qcow2", "file": "f", "size": 8 * MIB})
    c.wait("JOB_STATUS_CHANGE", id="c", status="concluded")
    assert "error" not in c.ok("query-jobs")[0]
    c.ok("job-dismiss", id="c")
    assert others_write(tmp_path / "new")
    c.ok("blockdev-add", driver="file", node_name="t", filename=str(tmp_path / "copy"), **{"auto-read-only": True})
    c.ok("blockdev-add", driver="qcow2", node_name="d", file={"driver": "file", "filename": str(tmp_path / "a")})
    c.ok("blockdev-backup", job_id="b", device="d", target="t", sync="full")
    c.wait("JOB_STATUS_CHANGE", id="b", status="null")
    run.qemu_img("compare", "-U", "-f", "qcow2", "-F", "raw", tmp_path / "a", tmp_path / "copy")


def test_bitmaps_know_who_wrote(start, tmp_path):
    """What this daemon itself wrote before the file went back to reading spoils no bitmap in memory; what another process wrote then does (FEATURES G.018)."""
    with open(tmp_path / "a", "wb") as f:
        f.truncate(8 * MIB)
    daemon = start("daemon", *NBD)
    c = daemon.qmp()

    def write(at):
        c.ok("block-export-add", type="nbd", id="e", node_name="f", writable=True, name="f")
        done = run.run("qemu-io", "-f", "raw", "-c", f"write -P 1 {at}M 64k", f"nbd+unix:///f?socket={daemon.folder}/n.sock")
        assert "failed" not in done.out
        c.ok("block-export-del", id="e", mode="hard")
        c.wait("BLOCK_EXPORT_DELETED", id="e")

    def bitmap():
        return [(b["count"], b.get("inconsistent", False)) for n in c.ok("query-named-block-nodes") if n["node-name"] == "f" for b in n["dirty-bitmaps"]]

    c.ok("blockdev-add", **file_of(tmp_path / "a", **{"auto-read-only": True}))
    write(7)
    c.ok("block-dirty-bitmap-add", node="f", name="m", granularity=65536)
    for at in range(3):
        write(at)
        assert bitmap() == [(65536 * (at + 1), False)]
    assert others_write(tmp_path / "a", "raw")
    write(7)
    assert bitmap()[0][1]


def test_nobody_writes_after_all(start, tmp_path):
    """What opened it for writing, and was refused then, leaves no lock: an export, an image."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    c = start("daemon", *NBD).qmp()
    c.ok("blockdev-add", **file_of(tmp_path / "a", **{"auto-read-only": True}))
    c.ok("blockdev-add", driver="qcow2", node_name="d", file="f", **{"read-only": True})
    c.refused("block-export-add", type="nbd", id="e", node_name="f", writable=True)
    c.refused("blockdev-add", driver="qcow2", node_name="e", file="f")
    c.ok("blockdev-del", node_name="d")
    assert others_write(tmp_path / "a")
    c.refused("blockdev-add", driver="luks", node_name="d", file="f")
    assert others_write(tmp_path / "a")


@pytest.mark.asan
def test_exported_bitmaps_stay(start, tmp_path):
    """An image is opened anew with its file, and its list of bitmaps with it: not while an export shows one of them (FEATURES 3.019, 10.021)."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    run.qemu_img("bitmap", "--add", tmp_path / "a", "b0")
    run.qemu_io(tmp_path / "a", "write -P 1 1M 64k")
    run.qemu_img("bitmap", "--disable", tmp_path / "a", "b0")
    daemon = start("daemon", *NBD)
    c = daemon.qmp()
    c.ok("blockdev-add", **file_of(tmp_path / "a", **{"auto-read-only": True}))
    c.ok("blockdev-add", driver="qcow2", node_name="d", file="f", **{"read-only": True})
    c.ok("block-export-add", type="nbd", id="x", node_name="d", bitmaps=["b0"])
    words = f"driver=nbd,server.type=unix,server.path={daemon.folder}/n.sock,export=d,x-dirty-bitmap=qemu:dirty-bitmap:b0"
    before = run.qemu_img("map", "--output=json", "--image-opts", words).json
    assert [(e["start"], e["length"]) for e in before if not e["data"]] == [(MIB, 65536)]
    assert "bitmaps" in c.refused("block-export-add", type="nbd", id="e", node_name="f", writable=True)
    assert run.qemu_img("map", "--output=json", "--image-opts", words).json == before
    c.ok("block-export-del", id="x", mode="hard")
    c.wait("BLOCK_EXPORT_DELETED", id="x")
    assert "bitmaps" not in c.refused("block-export-add", type="nbd", id="e", node_name="f", writable=True)
    assert [b["name"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "d" for b in n["dirty-bitmaps"]] == ["b0"]


def test_a_reopening_that_fails_leaves_it(start, frozen, tmp_path):
    """A list of which a later entry fails leaves an earlier one as it was: open for writing when somebody writes, and not before (FEATURES 11.005)."""
    with open(tmp_path / "b", "wb") as f:
        f.truncate(8 * MIB)
    c = start("daemon", *NBD).qmp()
    c.ok("blockdev-add", **file_of(tmp_path / "b", **{"auto-read-only": True}))
    c.ok("blockdev-add", driver="file", node_name="g", filename=str(frozen / "a"), **{"read-only": True})
    error = c.refused("blockdev-reopen", options=[{"driver": "file", "node-name": "f", "filename": str(tmp_path / "b")},
                                                  {"driver": "file", "node-name": "g", "filename": str(frozen / "a"), "read-only": False}])
    assert "Read-only file system" in error
    c.ok("block-export-add", type="nbd", id="e", node_name="f", writable=True)
    assert not others_write(tmp_path / "b", "raw")
    c.ok("block-export-del", id="e", mode="hard")
    c.wait("BLOCK_EXPORT_DELETED", id="e")
    assert others_write(tmp_path / "b", "raw")


def test_a_writer_that_failed_hides_nobody(start, frozen):
    """An attempt to open it for writing fails. What another program writes behind that is noticed all the same (FEATURES G.018)."""
    c = start("daemon", *NBD).qmp()
    c.ok("blockdev-add", **file_of(frozen / "a", **{"auto-read-only": True}))
    c.ok("blockdev-add", driver="qcow2", node_name="d", file="f", **{"read-only": True})
    c.ok("block-dirty-bitmap-add", node="d", name="m")
    assert "Read-only file system" in c.refused("block-export-add", type="nbd", id="e", node_name="f", writable=True)
    run.run("mount", "-o", "remount,rw", frozen)
    with open(frozen / "a", "ab") as f:
        f.write(bytes(65536))
    c.ok("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "d", "file": "f", "read-only": True}])
    assert [b["inconsistent"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "d" for b in n["dirty-bitmaps"]] == [True]


BELOW = {"filter in the file": lambda f: {"driver": "qcow2", "file": {"driver": "blkdebug", "image": f}},
         "filter": lambda f: {"driver": "blkdebug", "image": {"driver": "qcow2", "file": f}},
         "format in a format": lambda f: {"driver": "raw", "file": {"driver": "qcow2", "file": f}},
         "all of them": lambda f: {"driver": "blkdebug", "image": {"driver": "raw", "file": {"driver": "blkdebug", "image": {"driver": "qcow2", "file": {"driver": "blkdebug", "image": f}}}}}}
FORMS = pytest.mark.parametrize("form", BELOW)


def over(folder, name, form, base):
    """Options of a new overlay whose backing image nests nodes."""
    run.qemu_img("create", "-q", "-f", "qcow2", folder / name, "8M")
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(folder / name)}, "backing": BELOW[form]({"driver": "file", "filename": str(base)})}


@BOTH
@FORMS
def test_nested_backing_on_a_disk_that_can_only_be_read(start, frozen, tmp_path, form, peer):
    """FEATURES 11.014, 3.019: what a backing image nests is open for reading only, down to the file."""
    options = over(tmp_path, "top", form, frozen / "a")
    c = start("daemon", peer=peer).qmp()
    c.ok("blockdev-add", **options)
    c.ok("blockdev-del", node_name="top")
    for other in (False, True):
        out = run.run(*([peers.need("qemu-io")] if other else [run.BYRE, "io"]), "-c", "read -P 1 0 1M", "-c", "write -P 2 1M 1M", "json:" + json.dumps(options)).out
        assert "fail" not in out and out.count("1 MiB, 1 ops") == 2


@BOTH
@FORMS
def test_overlays_share_a_nested_base(start, tmp_path, form, peer):
    """FEATURES 11.014, 3.007: two processes have overlays of one base open for writing; nobody writes the base meanwhile, and both read it."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    run.qemu_io(tmp_path / "a", "write -P 1 0 1M")
    clients = [start("daemon", *NBD, peer=p).qmp() for p in (peer, False)]
    for i, c in enumerate(clients):
        c.ok("blockdev-add", **over(tmp_path, f"t{i}", form, tmp_path / "a"))
        c.ok("block-export-add", type="nbd", id="e", node_name=f"t{i}", writable=True, name="t")
    assert not others_write(tmp_path / "a")
    for p, i in (("peer" if peer else "byre", 0), ("byre", 1)):
        out = run.run("qemu-io", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "write -P 3 2M 1M", "-c", "read -P 3 2M 1M", f"nbd+unix:///t?socket={tmp_path}/{p}{i}/n.sock").out
        assert "fail" not in out and out.count("1 MiB, 1 ops") == 3
    clients[0].ok("block-export-del", id="e", mode="hard")
    clients[0].wait("BLOCK_EXPORT_DELETED", id="e")
    clients[0].ok("blockdev-del", node_name="t0")
    assert not others_write(tmp_path / "a")
    run.qemu_io(tmp_path / "a", "read -P 1 0 1M", options=["-r", "-U"])


@BOTH
@FORMS
def test_commit_into_a_nested_base(start, tmp_path, form, peer):
    """FEATURES 11.014, 9.048: what was open for reading is opened for writing when a job needs it, from the file up."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    run.qemu_io(tmp_path / "a", "write -P 1 0 1M")
    options = over(tmp_path, "top", form, tmp_path / "a")
    run.qemu_io(tmp_path / "top", "write -P 2 64k 64k")
    c = start("daemon", peer=peer).qmp()
    c.ok("blockdev-add", **options)
    assert not others_write(tmp_path / "a")
    c.ok("block-commit", job_id="j", device="top", **{"auto-dismiss": False})
    c.wait("BLOCK_JOB_READY", device="j")
    c.ok("job-complete", id="j")
    c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert "error" not in c.ok("query-jobs")[0]
    c.ok("quit")
    for _ in range(600):
        done = run.run("qemu-io", "-f", "qcow2", "-c", "read -P 2 64k 64k", "-c", "read -P 1 128k 896k", tmp_path / "a", code=None)
        if done.code == 0:
            break
        time.sleep(0.1)
    assert done.code == 0 and "fail" not in done.out
    run.qemu_img("check", tmp_path / "a")


def comes_shared(path):
    """Sooner or later nobody writes it any more: another process has it as the base of an overlay, too."""
    for _ in range(200):
        if run.run("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", path, code=None).code == 0:
            return True
        time.sleep(0.1)
    return False


def mark(path, bit):
    """The image says that it is not to be written: corrupt."""
    with open(path, "r+b") as f:
        f.seek(79)
        f.write(bytes([bit]))


@pytest.mark.parametrize("how,peer", [("committed", False), ("committed", True), ("cancelled", False), ("cancelled", True), ("refused", False)])      # the peer does not look at the mark again
@FORMS
def test_nested_base_after_a_commit(start, tmp_path, form, how, peer):
    """FEATURES 11.014, 3.019: when a commit has ended, or did not begin, all that its base nests is open for reading again, down to the file: others may have it as their base."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    middle = over(tmp_path, "mid", form, tmp_path / "a")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "top", "8M")
    run.qemu_io(tmp_path / "mid", "write -P 2 64k 64k")
    options = {"driver": "qcow2", "node-name": "top", "file": {"driver": "file", "filename": str(tmp_path / "top")}, "backing": middle}
    c = start("daemon", peer=peer).qmp()
    c.ok("blockdev-add", **options)
    if how == "committed":
        c.ok("block-commit", job_id="j", device="top", **{"top-node": "mid", "backing-file": "a", "auto-dismiss": False})
        c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
        assert "error" not in c.ok("query-jobs")[0]
    elif how == "cancelled":
        c.ok("block-commit", job_id="j", device="top", speed=1, **{"top-node": "mid", "backing-file": "a", "auto-dismiss": False})
        c.ok("block-job-cancel", device="j", force=True)
        c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    else:
        mark(tmp_path / "a", 2)
        c.refused("block-commit", job_id="j", device="top", **{"top-node": "mid", "backing-file": "a"})
        mark(tmp_path / "a", 0)
    assert comes_shared(tmp_path / "a")


def kept_from_others(path):
    return run.run("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", path, code=None).code != 0


def raw_over_q(start, tmp_path):
    """top over mid, a raw disk over q, an image in the file a."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    run.qemu_img("bitmap", "--add", "--disable", tmp_path / "a", "b")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "top", "8M")
    run.qemu_io(tmp_path / "top", "write -P 2 64k 64k", fmt="qcow2")
    c = start("daemon", *NBD).qmp()
    c.ok("blockdev-add", **{"driver": "qcow2", "node-name": "top", "file": {"driver": "file", "filename": str(tmp_path / "top")},
                            "backing": {"driver": "raw", "node-name": "mid", "file": {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": str(tmp_path / "a")}}}})
    return c


def commit_all(c):
    """From here on the disk is mid, which is written."""
    c.ok("block-commit", job_id="j", device="top", **{"auto-dismiss": False})
    c.wait("BLOCK_JOB_READY", device="j")
    c.ok("job-complete", id="j")
    c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    assert "error" not in c.ok("query-jobs")[0]
    c.ok("job-dismiss", id="j")


def delete(c, node):
    """As soon as the job lets it."""
    wait.until(lambda: "return" in c.ask("blockdev-del", **{"node-name": node}), "it cannot be deleted")


@pytest.mark.parametrize("sleeps", [False, True], ids=["awake", "asleep"])
def test_nested_base_outlives_its_writer(start, tmp_path, sleeps):
    """FEATURES 11.014, 3.019, 3.069: an image that was opened for writing below a base, and which an export goes on reading when all that lies over it has been deleted, is open for reading
    again: at once, or, if it was inactive then, when it wakes up"""
    c = raw_over_q(start, tmp_path)
    commit_all(c)
    c.ok("block-export-add", type="nbd", id="e", node_name="q", **{"allow-inactive": True})
    assert kept_from_others(tmp_path / "a")
    if sleeps:
        c.ok("blockdev-set-active", active=False)
    delete(c, "top")
    if sleeps:
        c.ok("blockdev-set-active", active=True)
    assert comes_shared(tmp_path / "a")
    assert [n["node-name"] for n in c.ok("query-named-block-nodes") if n["node-name"] in ("mid", "q")] == ["q"]


def test_nested_base_with_a_bitmap_in_use(start, tmp_path):
    """FEATURES 11.014, 3.019: one of whose bitmaps the export of another node offers keeps its lock for as long, and no longer"""
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "copy", "8M")
    c = raw_over_q(start, tmp_path)
    c.ok("blockdev-add", driver="raw", node_name="copy", file={"driver": "file", "filename": str(tmp_path / "copy")})
    c.ok("block-commit", job_id="j", device="top", speed=1, **{"auto-dismiss": False})
    c.ok("block-export-add", type="nbd", id="e", node_name="copy", bitmaps=[{"node": "q", "name": "b"}])
    c.ok("block-job-cancel", device="j", force=True)
    c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
    wait.until(lambda: [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "mid"] == [True], "the base is open for writing still")
    assert kept_from_others(tmp_path / "a")
    c.ok("block-export-del", id="e", mode="hard")
    c.wait("BLOCK_EXPORT_DELETED", id="e")
    assert comes_shared(tmp_path / "a")


@pytest.mark.parametrize("again", [False, True], ids=["alone", "and the next job"])
def test_base_on_a_server_that_stops(start, tmp_path, again):
    """FEATURES 11.014, 9.039: a base that cannot be made durable, because its server does not answer any more when the job has been cancelled, keeps nobody from changing the rest of the graph.
    It is open for reading again behind that, or behind the job that has come meanwhile"""
    nbd = peers.need_module("nbd")
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    os.truncate(tmp_path / "a", 16 * MIB)            # a server's disk does not grow
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "top", "8M")
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "other", "1M")
    far = nbdserver.nbdkit("file", tmp_path / "a").start()
    try:
        daemon = start("daemon", *NBD)
        c = daemon.qmp()
        c.ok("blockdev-add", **{"driver": "qcow2", "node-name": "top", "file": {"driver": "file", "filename": str(tmp_path / "top")},
                                "backing": {"driver": "raw", "node-name": "mid", "file": {"driver": "qcow2", "file": {"driver": "nbd", "server": {"type": "unix", "path": far.socket}}}}})
        c.ok("blockdev-add", driver="raw", node_name="other", file={"driver": "file", "filename": str(tmp_path / "other")})
        c.ok("block-export-add", type="nbd", id="e", node_name="top", name="top", writable=True)
        c.ok("block-commit", job_id="j", device="top")
        c.wait("BLOCK_JOB_READY", device="j")
        guest = nbd.NBD()
        guest.connect_uri(f"nbd+unix:///top?socket={daemon.folder}/n.sock")
        guest.pwrite(b"x" * MIB, MIB)
        wait.until(lambda: (job := c.ok("query-block-jobs")[0])["len"] == job["offset"] >= MIB, "it is not copied")
        nbdserver.stand_still(far.process.pid)
        c.ok("block-job-cancel", device="j", force=True)
        c.wait("BLOCK_JOB_CANCELLED")
        c.ok("block_resize", node_name="other", size=2 * MIB)
        c.ok("blockdev-del", node_name="other")
        if again:
            c.ok("block-commit", job_id="k", device="top")
        far.process.send_signal(signal.SIGCONT)
        if again:
            c.wait("BLOCK_JOB_READY", device="k")
            c.ok("block-job-cancel", device="k", force=True)
            c.wait("BLOCK_JOB_CANCELLED", device="k")
        wait.until(lambda: [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "mid"] == [True], "the base is open for writing still")
        guest.shutdown()
        assert daemon.stop()[0] == 0
    finally:
        far.process.send_signal(signal.SIGCONT)
        far.close()
    run.qemu_io(tmp_path / "a", f"read -P {ord('x')} 1M 1M")


def test_base_that_cannot_be_made_durable(start, tmp_path):
    """FEATURES 11.014, 11.002: it stays open for writing, which is told once, however many jobs come; but what lies over it puts up with nobody who would change it meanwhile"""
    chain = None
    for name in ("base", "mid", "top"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "8M")
        image = {"driver": "file", "filename": str(tmp_path / name)}
        if name == "base":
            image = {"driver": "blkdebug", "image": image, "inject-error": [{"event": "none", "iotype": "flush", "errno": 5, "once": False}]}
        chain = {"driver": "qcow2", "node-name": name, "file": image, "backing": chain}
    run.qemu_io(tmp_path / "mid", "write -P 2 64k 64k")
    daemon = start("daemon")
    c = daemon.qmp()
    c.ok("blockdev-add", **chain)
    for job in ("j", "k"):
        c.ok("block-commit", job_id=job, device="top", top_node="mid", base_node="base", backing_file="base")
        assert "error" in c.wait("BLOCK_JOB_COMPLETED", device=job)["data"]
    picture = c.ok("x-debug-query-block-graph")
    names = {n["id"]: n["name"] for n in picture["nodes"]}
    over = [e["shared-perm"] for e in picture["edges"] if names[e["parent"]] == "mid" and names[e["child"]] == "base"]
    assert len(over) == 1 and not {"write", "resize"} & set(over[0])
    assert [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "base"] == [False]
    assert daemon.stop()[1].count("stays open for writing") == 1


def test_base_that_is_not_closed_well(start, tmp_path):
    """FEATURES 11.014: it is open for reading again, and what it could not store is told"""
    chain = None
    for name in ("base", "mid", "top"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "8M")
        image = {"driver": "file", "filename": str(tmp_path / name)}
        if name == "base":
            run.qemu_img("bitmap", "--add", tmp_path / name, "b")
            image = {"driver": "blkdebug", "image": image, "set-state": [{"event": "write_aio", "new_state": 2}],
                     "inject-error": [{"event": "flush_to_disk", "iotype": "write", "state": 2, "errno": 5, "once": False}]}
        chain = {"driver": "qcow2", "node-name": name, "file": image, "backing": chain}
    run.qemu_io(tmp_path / "mid", "write -P 2 64k 64k")
    daemon = start("daemon")
    c = daemon.qmp()
    c.ok("blockdev-add", **chain)
    c.ok("block-commit", job_id="j", device="top", top_node="mid", base_node="base", backing_file="base")
    c.wait("BLOCK_JOB_COMPLETED", device="j")
    wait.until(lambda: [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "base"] == [True], "the base is open for writing still")
    assert "was not closed well" in daemon.stop()[1]


def test_image_over_a_nested_base_behind_a_job(start, tmp_path):
    """FEATURES 11.014: whoever comes to write to it while it is about to be open for reading again is not refused"""
    c = raw_over_q(start, tmp_path)
    for _ in range(20):
        c.ok("block-commit", job_id="j", device="top", speed=1, **{"auto-dismiss": False})
        c.ok("block-job-cancel", device="j", force=True)
        c.wait("JOB_STATUS_CHANGE", id="j", status="concluded")
        c.ok("blockdev-add", driver="raw", node_name="x", file="q")
        c.ok("blockdev-del", node_name="x")
        c.ok("job-dismiss", id="j")
    assert comes_shared(tmp_path / "a")


@BOTH
@pytest.mark.parametrize("read_only", [False, True], ids=["written", "read"])
@pytest.mark.parametrize("form", ["filter in the file", "format in a format"])
def test_file_below_nodes_is_kept_from_others(start, tmp_path, form, read_only, peer):
    """FEATURES 3.007, 11.001: an image over a node keeps other programs from the file at the bottom as one over the file does: also from a raw disk's writer, who denies nothing himself."""
    run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a", "8M")
    c = start("daemon", peer=peer).qmp()
    c.ok("blockdev-add", **{"node-name": "d", "read-only": read_only}, **BELOW[form]({"driver": "file", "filename": str(tmp_path / "a")}))
    assert not others_write(tmp_path / "a", "raw") and not others_write(tmp_path / "a")
    c.ok("blockdev-del", node_name="d")
    assert others_write(tmp_path / "a")


def test_going_back_below_a_stream(start, tmp_path):
    """FEATURES 11.014, 9.054: a layer goes back to reading while a stream takes it out of the chain: what the disk shows behind the layer's end stays zeros, though the base has data there"""
    for name, size, below in (("base", "32M", ()), ("mid", "8M", ("-b", "base", "-F", "qcow2")), ("top", "8M", ("-b", "mid", "-F", "qcow2"))):
        run.qemu_img("create", "-q", "-f", "qcow2", *below, tmp_path / name, size)
    run.qemu_io(tmp_path / "base", "write -P 9 0 32M")
    run.qemu_io(tmp_path / "mid", "write -P 3 0 4M")
    run.qemu_img("bitmap", "--add", "--disable", tmp_path / "mid", "b")
    run.qemu_img("create", "-q", "-f", "raw", tmp_path / "copy", "8M")
    daemon = start("daemon", *NBD)
    c = daemon.qmp()
    for name, more in (("base", {"read-only": True}), ("mid", {"backing": "base", "read-only": True}), ("top", {"backing": "mid"})):
        c.ok("blockdev-add", **{"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": str(tmp_path / name)}, **more})
    c.ok("blockdev-add", driver="raw", node_name="copy", file={"driver": "file", "filename": str(tmp_path / "copy")})
    c.ok("block-commit", job_id="j", device="top", base_node="mid", speed=1)
    c.ok("block-export-add", type="nbd", id="e", node_name="copy", bitmaps=[{"node": "mid", "name": "b"}])
    c.ok("block-job-cancel", device="j", force=True)
    wait.until(lambda: not c.ok("query-block-jobs"), "it does not end")
    assert [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "mid"] == [False]
    c.ok("block_resize", node_name="top", size=32 * MIB)
    c.ok("block-stream", job_id="s", device="top", base_node="base", speed=1)
    c.ok("block-export-del", id="e", mode="hard")
    wait.until(lambda: [n["ro"] for n in c.ok("query-named-block-nodes") if n["node-name"] == "mid"] == [True], "the layer is open for writing still")
    c.ok("block-job-set-speed", device="s", speed=0)
    assert "error" not in c.wait("BLOCK_JOB_COMPLETED", device="s")["data"]
    assert daemon.stop()[0] == 0
    run.qemu_io(tmp_path / "top", "read -P 3 0 4M", "read -P 9 4M 4M", "read -P 0 8M 24M")


@pytest.mark.asan
def test_remembered_bitmaps_of_an_image_that_is_opened_for_writing(start, tmp_path):
    """FEATURES 9.083, 9.086, 11.014: a transaction that has changed bitmaps of an image, and is undone, finds them there: nobody opens it in another way meanwhile"""
    for name in ("t", "s"):
        run.qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "8M")
    run.qemu_img("bitmap", "--add", tmp_path / "t", "b")
    daemon = start("daemon")
    c = daemon.qmp()
    c.ok("blockdev-add", **{"driver": "raw", "node-name": "over", "read-only": True,
                            "file": {"driver": "qcow2", "node-name": "t", "file": {"driver": "file", "filename": str(tmp_path / "t")}}})
    c.ok("blockdev-add", driver="qcow2", node_name="s", file={"driver": "file", "filename": str(tmp_path / "s")})
    before = [n.get("dirty-bitmaps") for n in c.ok("query-named-block-nodes") if n["node-name"] == "t"]
    answer = c.ask("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {"node": "t", "name": "x"}},
                                           {"type": "blockdev-backup", "data": {"job-id": "k", "device": "s", "target": "t", "sync": "none"}},
                                           {"type": "abort", "data": {}}])
    assert "error" in answer
    assert [n.get("dirty-bitmaps") for n in c.ok("query-named-block-nodes") if n["node-name"] == "t"] == before
    assert not c.ok("query-jobs")
    assert daemon.stop()[0] == 0


def test_discards_of_the_second_writer(start, tmp_path):
    """FEATURES 11.014: an image that was open for reading in between passes discards on as it did before"""
    nbd = peers.need_module("nbd")
    run.qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", tmp_path / "a", "8M")
    daemon = start("daemon", *NBD)
    c = daemon.qmp()
    c.ok("blockdev-add", **{"driver": "raw", "node-name": "mid", "read-only": True, "discard": "unmap",
                            "file": {"driver": "qcow2", "node-name": "q", "discard": "unmap", "file": {"driver": "file", "discard": "unmap", "filename": str(tmp_path / "a")}}})
    for at in (0, 4 * MIB):
        c.ok("block-export-add", type="nbd", id="e", node_name="q", name="q", writable=True)
        guest = nbd.NBD()
        guest.connect_uri(f"nbd+unix:///q?socket={daemon.folder}/n.sock")
        guest.trim(4 * MIB, at)
        guest.shutdown()
        c.ok("block-export-del", id="e", mode="hard")
        c.wait("BLOCK_EXPORT_DELETED", id="e")
        assert comes_shared(tmp_path / "a")
    assert daemon.stop()[0] == 0
    assert not any(e["data"] for e in json.loads(run.qemu_img("map", "--output=json", tmp_path / "a").out))
