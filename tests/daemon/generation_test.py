# SPDX-License-Identifier: MIT
"""Another program writes an image while byre has it open for reading: it is noticed, and no bitmap pretends to know (FEATURES G.018)."""
import pytest

from lib import images, peers, run

MIB = 1 << 20


def node(tmp_path, fmt="qcow2", read_only=True, asked=False, **more):
    """asked: the file is a node of its own, which the image asks."""
    file = {"driver": "file", "filename": str(tmp_path / "d.img"), "locking": "off"}
    return {"driver": fmt, "node-name": "d", "read-only": read_only, **more, "file": {"driver": "blkdebug", "node-name": "f", "image": file} if asked else file}


def again(spec):
    return {**spec, "file": spec["file"].get("node-name", spec["file"])}


@pytest.fixture
def daemon(start, tmp_path):
    def make(fmt="qcow2", **options):
        images.create(tmp_path / "d.img", 16 * MIB, fmt=fmt, tool="byre", **options)
        d = start("daemon")
        return d, d.qmp()
    return make


def bitmaps(client):
    found = {}
    for n in client.ask("query-named-block-nodes", flat=True)["return"]:
        if n["node-name"] == "d":
            for b in n.get("dirty-bitmaps", []):
                found[b["name"]] = (b["recording"], b["count"], b.get("inconsistent", False))
    return found


def other_program(tool, image, fmt, command):
    words = [*(["-r"] if command.startswith("read") else []), "-f", fmt, "-c", command, image]
    if tool == "byre":
        run.byre("io", *words)
    else:
        run.run(peers.need("qemu-io"), *words)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("tool,asked", [("byre", False), ("qemu-io", False), ("qemu-io", True)])
def test_bitmap_in_memory(daemon, tmp_path, tool, asked, fmt):
    """A bitmap that only memory holds: read-only, written by another, opened for writing again"""
    _, client = daemon(fmt)
    assert "return" in client.ask("blockdev-add", **node(tmp_path, fmt, read_only=False, asked=asked))
    assert "return" in client.ask("block-dirty-bitmap-add", node="d", name="b")
    assert "return" in client.ask("blockdev-reopen", options=[again(node(tmp_path, fmt, asked=asked))])
    other_program(tool, tmp_path / "d.img", fmt, "write 1M 64k")
    assert bitmaps(client) == {"b": (True, 0, False)}
    assert "return" in client.ask("blockdev-reopen", options=[again(node(tmp_path, fmt, read_only=False, asked=asked))])
    assert bitmaps(client) == {"b": (False, 0, True)}
    assert "inconsistent" in client.ask("block-dirty-bitmap-clear", node="d", name="b")["error"]["desc"]
    assert "return" in client.ask("block-dirty-bitmap-remove", node="d", name="b")


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("asked", [False, True])
def test_nobody_else(daemon, tmp_path, asked, fmt):
    """The same, and nobody has written"""
    _, client = daemon(fmt)
    assert "return" in client.ask("blockdev-add", **node(tmp_path, fmt, read_only=False, asked=asked))
    assert "return" in client.ask("block-dirty-bitmap-add", node="d", name="b")
    for _ in range(2):
        assert "return" in client.ask("blockdev-reopen", options=[again(node(tmp_path, fmt, asked=asked))])
        other_program("byre", tmp_path / "d.img", fmt, "read 1M 64k")
        assert "return" in client.ask("blockdev-reopen", options=[again(node(tmp_path, fmt, read_only=False, asked=asked))])
        assert bitmaps(client) == {"b": (True, 0, False)}


def test_external_data_file(daemon, tmp_path):
    """What is written goes to the data file alone, and the image stays byte for byte what it was"""
    _, client = daemon(data_file=tmp_path / "data")
    other_program("byre", tmp_path / "d.img", "qcow2", "write 0 1M")
    before = (tmp_path / "d.img").read_bytes()
    spec = node(tmp_path, read_only=False)
    assert "return" in client.ask("blockdev-add", **spec)
    assert "return" in client.ask("block-dirty-bitmap-add", node="d", name="b")
    assert "return" in client.ask("blockdev-reopen", options=[{**spec, "read-only": True}])
    assert (tmp_path / "d.img").read_bytes() == before
    other_program("byre", tmp_path / "d.img", "qcow2", "write -P 7 64k 64k")
    assert (tmp_path / "d.img").read_bytes() == before
    assert "return" in client.ask("blockdev-reopen", options=[spec])
    assert bitmaps(client) == {"b": (False, 0, True)}


@pytest.mark.parametrize("tool", ["byre", "qemu-io"])
def test_persistent(daemon, tmp_path, tool):
    """A bitmap of the image: what was read of it is not trusted behind a change, and is read anew when the image is opened again"""
    image = tmp_path / "d.img"
    _, client = daemon()
    run.byre("bitmap", "--add", "-g", 65536, image, "b")
    other_program("byre", image, "qcow2", "write 0 64k")
    assert "return" in client.ask("blockdev-add", **node(tmp_path))
    assert bitmaps(client) == {"b": (True, 65536, False)}
    other_program("byre", image, "qcow2", "read 0 64k")
    assert bitmaps(client) == {"b": (True, 65536, False)}
    other_program(tool, image, "qcow2", "write 0 64k")         # the same bit, in place
    assert bitmaps(client) == {"b": (False, 0, True)}
    other_program(tool, image, "qcow2", "write 1M 64k")
    assert "return" in client.ask("blockdev-reopen", options=[node(tmp_path, read_only=False)])
    assert bitmaps(client) == {"b": (True, 2 * 65536, False)}
