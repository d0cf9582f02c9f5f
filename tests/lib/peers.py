# SPDX-License-Identifier: MIT
"""Programs and modules that byre is compared with. Without one a test is skipped, but with CI=true it fails."""
import importlib
import os
import pathlib
import shutil

import pytest

IN_CI = os.environ.get("CI") == "true"


def missing(what):
    """Skips the test, or fails it in CI: there everything that tests need is installed."""
    if IN_CI:
        pytest.fail(f"{what} is missing, and CI=true allows no gaps", pytrace=False)
    pytest.skip(f"{what} is missing")


def need(*programs):
    """Asks for programs in PATH; returns the path of the (first) one."""
    paths = [shutil.which(p) for p in programs]
    for name, path in zip(programs, paths):
        if path is None:
            missing(name)
    return paths[0]


def need_module(name):
    """Asks for a Python module (for example nbd) and returns it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"Python module {name}")


def need_unpacked(package):
    """Asks for a package that tools/deps.sh unpacks and does not install; returns its folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(os.environ.get("BYRE_UNPACKED") or f"{cache}/byre/unpacked") / package
    if not (folder / ".complete").exists():
        missing(f"the unpacked package {package} in {folder.parent} (tools/deps.sh)")
    return folder


def need_root():
    if os.geteuid() != 0:
        missing("root")


def need_loop():
    """Asks for loop devices; tests that use them are also marked serial."""
    need_root()
    need("losetup")
    if not os.path.exists("/dev/loop-control"):
        missing("/dev/loop-control")
