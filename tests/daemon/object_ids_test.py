# SPDX-License-Identifier: MIT
"""Ids of objects: each is one object's (FEATURES 3.072 to 3.076, 8.021)."""
import errno
import json
import os

import pytest

from lib import wait

OTHERS = {"secret": {"data": "a"}, "throttle-group": {}, "iothread": {}, "authz-simple": {"identity": "u"}}


def writing_end(pipe):
    """A file; None: nobody reads yet."""
    try:
        return os.fdopen(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
    except OSError as e:
        assert e.errno == errno.ENXIO
        return None


def test_one_id_at_a_time(start, tmp_path):
    """FEATURES 8.021, 3.074: while an object is being made no other client's gets its id, of whatever type; nor when it is there"""
    daemon = start("daemon")
    first, second = daemon.qmp(), daemon.qmp()
    pipe = tmp_path / "rules"
    os.mkfifo(pipe)
    first.send(json.dumps({"execute": "object-add", "arguments": {"qom-type": "authz-list-file", "id": "x", "refresh": False, "filename": str(pipe)}}) + "\n")
    with wait.until(lambda: writing_end(pipe), "the rules are not read") as rules:
        for kind, options in OTHERS.items():
            assert "'x' already" in second.refused("object-add", qom_type=kind, id="x", **options)
        second.ok("object-add", qom_type="secret", id="y", data="a")
        rules.write('{"policy": "allow"}')
    assert first.receive() == {"return": {}}
    for kind, options in OTHERS.items():
        assert "'x' already" in second.refused("object-add", qom_type=kind, id="x", **options)
    second.ok("object-del", id="x")
    second.ok("object-add", qom_type="throttle-group", id="x")


@pytest.mark.parametrize("kind", OTHERS)
def test_one_id_of_all_types(start, kind):
    """FEATURES 8.021: an id that an object has is no other's, in either order; one that failed has none"""
    client = start("daemon").qmp()
    client.ok("object-add", qom_type=kind, id="x", **OTHERS[kind])
    for other, options in OTHERS.items():
        assert "'x' already" in client.refused("object-add", qom_type=other, id="x", **options)
    assert "base64" in client.refused("object-add", qom_type="secret", id="z", data="?", format="base64")
    client.ok("object-add", qom_type=kind, id="z", **OTHERS[kind])
