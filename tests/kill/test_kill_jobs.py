# SPDX-License-Identifier: MIT
"""kill -9 of a server while a job changes its chain and a guest writes, at random moments and at the event that the job has completed
(J2, J3, J5; H6, H8). The peer loses data in each of the latter. 10 kills for each case; with SOAK=1 in the environment 50.

The disk holds what the guest may expect by whatever chain the headers name; an interrupted job is started again and ends well.
"""
import os
import random
import time
import zlib

import kill_jobs
import pytest

KILLS = 50 if os.environ.get("SOAK") else 10
CASES = {
    "commit": ("block-commit", {"top": "top"}, ["disk", "base"], {"cluster_size": 4096}, "qcow2"),
    "commit-raw": ("block-commit", {"top": "top"}, ["disk", "base"], {"cluster_size": 65536}, "raw"),
    "commit-drop": ("block-commit", {"top": "top"}, ["disk", "base"], {"cluster_size": 16384}, "raw"),
    "commit-part": ("block-commit", {"top": "top", "base": "mid"}, ["disk", "mid", "base"], {"cluster_size": 65536, "extended_l2": True}, "qcow2"),
    "stream": ("block-stream", {}, ["disk"], {"cluster_size": 65536}, "qcow2"),
    "stream-base": ("block-stream", {"base": "base"}, ["disk", "base"], {"cluster_size": 65536, "extended_l2": True}, "qcow2"),
    "stream-lazy": ("block-stream", {"base": "mid"}, ["disk", "mid", "base"], {"cluster_size": 4096, "lazy_refcounts": True}, "raw"),
}


def job(chain, command, layers, **more):
    nodes = chain.nodes()
    if chain.drop:
        more["drop_source"] = True
    chain.start(command, **{f"{role}_node": nodes[name] for role, name in layers.items()}, **more)


def finish(chain, rng, command, layers, files):
    """The next server does the rest, under load, and ends cleanly."""
    chain.serve()
    writers = chain.load(rng)
    if chain.files() != files:
        job(chain, command, layers)
        event = chain.wait()
        assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"], event
    time.sleep(0.1)
    for writer in writers:
        writer.stop()
    chain.client.close()
    assert chain.server.stop() == 0, chain.server.output
    chain.record.settle_acknowledged()
    assert chain.files() == files
    chain.judge()


@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("name", CASES)
def test_killed(tmp_path, name):
    command, layers, files, options, fmt = CASES[name]
    rng = random.Random(zlib.crc32(name.encode()))
    chain = kill_jobs.Chain(tmp_path, rng, options, fmt, drop=name == "commit-drop")
    completed = 0
    for round_number in range(KILLS):
        chain.renew()
        chain.serve()
        writers = chain.load(rng)
        try:
            at_the_end = round_number % 2 == 0
            job(chain, command, layers, **({} if at_the_end else {"speed": 32 << 20}))
            if at_the_end:
                event = chain.wait()
                assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"], event
                completed += 1
            else:
                time.sleep(rng.uniform(0, 0.8))
        finally:
            chain.kill()
        for writer in writers:
            writer.end()
        chain.wait_unlocked()
        assert not at_the_end or chain.files() == files
        chain.judge()
        if round_number % 4 == 1:
            finish(chain, rng, command, layers, files)
    assert completed == (KILLS + 1) // 2
