# SPDX-License-Identifier: MIT
"""Options have types, wherever they come from: what means the same is no change when a node is opened anew (FEATURES G.071)."""
import pytest

from lib import run

ROW = {"driver": "qcow2", "node-name": "q", "file": "f"}
BOTH = pytest.mark.parametrize("peer", [False, True], ids=["byre", "peer"])
SAME = {"read-only": True, "lazy-refcounts": False, "l2-cache-size": 1 << 20, "detect-zeroes": "off", "force-share": False, "discard": "ignore"}


@pytest.fixture
def client(start, disk, peer):
    run.qemu_io(disk, "write -P 7 0 64k")
    return start("daemon", "--blockdev", "driver=file,node-name=f,filename=a.qcow2", "--blockdev",
                 "driver=qcow2,node-name=q,file=f,read-only=on,lazy-refcounts=off,l2-cache-size=" + ("1048576" if peer else "1M"), peer=peer).qmp()


@BOTH
@pytest.mark.parametrize("left_out", [None, *SAME])
def test_the_same_in_other_words(client, left_out, peer):
    """FEATURES G.071: `on` and `1M` of the command line are true and 1048576 of the control socket; a default that is said is no change either. To the
    peer, which takes no `1M` there, force-share is one when it is said for the first time."""
    options = {**ROW, **{k: v for k, v in SAME.items() if k != left_out or k == "read-only"}}
    if peer and "force-share" in options:
        assert "force-share" in client.refused("blockdev-reopen", options=[options])
        return
    client.ok("blockdev-reopen", options=[options])
    (node,) = [n for n in client.ok("query-named-block-nodes") if n["node-name"] == "q"]
    assert node["ro"] and node["detect_zeroes"] == "off"


@BOTH
@pytest.mark.parametrize("key,value", [("read-only", "on"), ("lazy-refcounts", "off"), ("l2-cache-size", "1M"), ("detect-zeroes", True), ("force-share", 0)])
def test_another_type(client, key, value):
    """FEATURES G.071: a word is no boolean and no number, and the other way round; the answer names the option"""
    assert key in client.refused("blockdev-reopen", options=[{**ROW, **SAME, key: value}])
    assert key in client.refused("blockdev-add", **{**ROW, **SAME, "node-name": "other", key: value})


@BOTH
def test_a_change_is_one(client):
    """FEATURES G.071: what cannot change is refused by its value, not by how it is spelled"""
    assert "force-share" in client.refused("blockdev-reopen", options=[{**ROW, **SAME, "force-share": True}])
