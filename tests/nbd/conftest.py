# SPDX-License-Identifier: MIT
"""Servers for the tests of this folder, on each backend of the runtime."""
import pytest
from memserver import MemServer


@pytest.fixture(params=["uring", "threads"])
def backend(request):
    return request.param


@pytest.fixture
def start(tmp_path_factory, backend):
    """start(*options): a test server on the backend under test; it must still be alive at the end of the test, or have
    been stopped by it."""
    started = []

    def begin(*options):
        s = MemServer(tmp_path_factory.mktemp("n"), "--backend", backend, *options)
        started.append(s)
        return s

    yield begin
    dead = [s for s in started if not s.alive() and s.process.returncode != 0]
    for s in started:
        s.close()
    assert not dead, "the server crashed"


@pytest.fixture
def server(start):
    return start()
