# SPDX-License-Identifier: MIT
"""What every pytest file under tests/ has at hand: the helpers of tests/lib (`from lib.images import ...`), the
independent reader of tools/ref (`import qcow2ref`), and the fixtures below."""
import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parent
for folder in (TESTS, TESTS.parent / "tools" / "ref"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import pytest  # noqa: E402

from lib import serve  # noqa: E402


@pytest.fixture
def byre_serve(tmp_path):
    """byre_serve(image, *options) starts `byre serve` and returns a lib.serve.Server; all are stopped at the end."""
    started = []

    def start(image, *options, **kwargs):
        server = serve.Server(image, *options, workdir=tmp_path, **kwargs)
        started.append(server)
        server.wait_ready()
        return server

    yield start
    for server in started:
        server.close()
