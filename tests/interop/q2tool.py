# SPDX-License-Identifier: MIT
"""The test tool of the qcow2 module (q2_tool.c), found beside the command in the build folder."""
import json
import os
import pathlib

from lib import run

TOOL = os.environ.get("Q2_TOOL") or str(pathlib.Path(run.BYRE).parent / "tests" / "interop" / "q2-tool")
NUMBERS = ("check-errors", "corruptions", "leaks", "total-clusters", "allocated-clusters", "fragmented-clusters",
           "compressed-clusters", "image-end-offset")
STATE = ("check-errors", "corruptions", "leaks")


def tool(*args, **kwargs):
    return run.run(TOOL, *args, **kwargs)


def options(values):
    return [f"{k}={('on' if v else 'off') if isinstance(v, bool) else v}" for k, v in values.items()]


def create(path, size, code=0, **values):
    return tool("create", path, f"size={size}", *options(values), code=code)


def numbers(text, keys=NUMBERS):
    """The integers of a check's JSON; what is left out is 0. None: there is no JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return {k: found.get(k, 0) for k in keys}


def check(path, repair=None, code=None):
    return tool("check", *(["-r", repair] if repair else []), path, code=code, timeout=120)


def peer_check(path, repair=None, code=None):
    return run.qemu_img("check", "--output=json", "-f", "qcow2", *(["-r", repair] if repair else []), path, code=code)
