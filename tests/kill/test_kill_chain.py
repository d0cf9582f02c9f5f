# SPDX-License-Identifier: MIT
"""kill -9 of commit and rebase at every call that changes a file (J2, J3): the image reads as before through whatever its header names, the
files have leaks at most, and a second run ends the work.
"""
import os
import shutil

import kill_snap
import pytest
from lib import chains, images, run

MOST = 120                                          # kills of one case
CASES = {
    "commit": (["commit"], {"cluster_size": 4096}, "qcow2"),
    "commit-raw": (["commit"], {"cluster_size": 65536, "extended_l2": True}, "raw"),
    "commit-v2": (["commit"], {"cluster_size": 4096, "compat": "0.10"}, "qcow2"),
    "commit-lazy": (["commit"], {"cluster_size": 4096, "lazy_refcounts": True}, "qcow2"),
    "commit-deep": (["commit", "-b", "base.qcow2"], {"cluster_size": 4096}, "qcow2"),
    "rebase": (["rebase", "-b", "new.qcow2", "-F", "qcow2"], {"cluster_size": 4096}, "qcow2"),
    "rebase-v2": (["rebase", "-b", "new.qcow2", "-F", "qcow2"], {"cluster_size": 65536, "compat": "0.10"}, "raw"),
    "rebase-sub": (["rebase", "-b", "new.qcow2", "-F", "qcow2"], {"cluster_size": 32768, "extended_l2": True}, "qcow2"),
    "rebase-none": (["rebase", "-b", ""], {"cluster_size": 4096, "lazy_refcounts": True}, "qcow2"),
    "rebase-packed": (["rebase", "-c", "-b", "new.qcow2", "-F", "qcow2"], {"cluster_size": 4096}, "qcow2"),
}


def make(folder, name, options, fmt):
    """base, (middle,) top of different sizes; and a new base."""
    rng = chains.seeded("kill", name)
    os.makedirs(folder)
    layers = [chains.base(folder, "base", 1 << 20, rng, fmt)]
    if name == "commit-deep":
        layers.append(chains.overlay(folder, "middle", layers[0], (1 << 20) + 4608, rng, options))
    layers.append(chains.overlay(folder, "top", layers[-1], (2 << 20) + 512, rng, options, count=8))
    new = chains.base(folder, "new", (1 << 20) + (512 << 10), rng, "qcow2")
    chains.fill(new, rng, 6)
    return layers


def judge(layers, tool):
    top = layers[-1]
    chains.assert_reads(top.path, top.content, tool=tool)
    for layer in layers:
        if layer.fmt == "qcow2":
            kill_snap.judge(layer.path)


def finish(layers, command):
    """A second run does the rest; what comes out is as if nothing had happened."""
    top, base = layers[-1], layers[0]
    run.byre(*command, top.path)
    chains.assert_reads(top.path, top.content)
    if command[0] == "commit":
        chains.assert_reads(base.path, top.content, base.fmt)
    for layer in layers:
        if layer.fmt == "qcow2":
            run.byre("check", "-r", "all", layer.path)
            images.assert_sound(layer.path)
    chains.assert_reads(top.path, top.content)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_every_call(tmp_path, name):
    command, options, fmt = CASES[name]
    layers = make(tmp_path / "chain", name, options, fmt)
    chains.copy(tmp_path / "chain", tmp_path / "first")
    kills, step = 0, 1
    for n in range(1, 10 * MOST):
        if n % step:
            continue
        shutil.rmtree(tmp_path / "chain")
        chains.copy(tmp_path / "first", tmp_path / "chain")
        if not kill_snap.killed_at(n, *command, layers[-1].path, part=n % 2 == 0):
            break
        kills += 1
        judge(layers, [run.qemu_img, run.byre][kills % 2])
        if kills % 6 == 0:
            finish(layers, command)
        step = 1 if kills < 12 else 5
    else:
        raise AssertionError("the operation does not end")
    judge(layers, run.qemu_img)
    finish(layers, command)
    assert kills >= 6, f"{kills} kills: next to nothing"
