# SPDX-License-Identifier: MIT
"""The header of an overlay cannot be written when a layer below it is to go (FEATURES 11.011, G.034)."""
import pytest

from lib import run

SIZE = 4 << 20
LAYERS = ("base", "mid", "top")


def chain(start, folder, once, sector=0, errno=5):
    """base <- mid <- top; writes to the first sector of `top` fail from the moment at which the job wants to name another file there."""
    below = []
    for i, name in enumerate(LAYERS):
        run.qemu_img("create", "-q", "-f", "qcow2", *below, folder / f"{name}.qcow2", SIZE)
        run.qemu_io(folder / f"{name}.qcow2", f"write -P {i + 1} {i * 512}k 1M")
        below = ["-b", f"{name}.qcow2", "-F", "qcow2"]
    run.qemu_img("convert", "-O", "raw", folder / "top.qcow2", folder / "before.raw")
    daemon = start("daemon")
    client = daemon.qmp()
    for name, over in zip(LAYERS, (None, "base", "mid")):
        image = {"driver": "file", "filename": str(folder / f"{name}.qcow2")}
        if name == "top":
            image = {"driver": "blkdebug", "node-name": "faulty", "image": image,
                     "inject-error": [{"event": "none", "iotype": "write", "sector": sector, "errno": errno, "once": once}]}
        client.ok("blockdev-add", driver="qcow2", node_name=name, file=image, read_only=False, **({"backing": over} if over else {"backing": None}))
    return daemon, client


def same(folder):
    """From the files alone, as the next program finds them."""
    run.qemu_img("compare", "-f", "qcow2", "-F", "raw", folder / "top.qcow2", folder / "before.raw")
    for name in LAYERS:
        run.qemu_img("check", "-q", folder / f"{name}.qcow2")


def backing_of(folder, name):
    return run.qemu_img("info", "--output=json", "-U", folder / f"{name}.qcow2").json.get("full-backing-filename")


@pytest.mark.parametrize("how", ["block-commit", "block-stream"])
def test_the_old_chain_stays(start, tmp_path, how):
    """FEATURES 11.011, G.034: the job fails, the overlay names what it named, and all of the chain opens and reads as before"""
    daemon, client = chain(start, tmp_path, once=False)
    if how == "block-commit":
        client.ok(how, job_id="j", device="top", top_node="mid", base_node="base")
    else:
        client.ok(how, job_id="j", device="top", base_node="base")
    end = client.wait("BLOCK_JOB_COMPLETED", device="j")
    assert "error" in end["data"], end
    names = {n["node-name"]: n for n in client.ok("query-named-block-nodes")}
    assert names["top"]["backing_file_depth"] == 2
    assert backing_of(tmp_path, "top").endswith("mid.qcow2") and backing_of(tmp_path, "mid").endswith("base.qcow2")
    client.ok("quit")
    assert daemon.wait()[0] in (0, 1)
    same(tmp_path)


def test_and_it_is_done_again(start, tmp_path):
    """FEATURES 11.011: when the fault has gone the same job drops the layer"""
    daemon, client = chain(start, tmp_path, once=True)
    for expected in (True, False):
        client.ok("block-commit", job_id="j", device="top", top_node="mid", base_node="base")
        end = client.wait("BLOCK_JOB_COMPLETED", device="j")
        assert ("error" in end["data"]) == expected, end
    assert backing_of(tmp_path, "top").endswith("base.qcow2")
    client.ok("quit")
    assert daemon.wait()[0] in (0, 1)
    same(tmp_path)
