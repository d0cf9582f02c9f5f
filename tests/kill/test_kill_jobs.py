# SPDX-License-Identifier: MIT
"""kill -9 of a server while a job changes its chain and a guest writes, at random moments and at the event that the job has completed
(J2, J3, J5; H6, H8). The peer loses data in each of the latter. 15 kills for each case, 5 of them at the event; with SOAK=1 in the environment 50.

The disk holds what the guest may expect by whatever chain the headers name; an interrupted job is started again and ends well.
"""
import random
import time
import zlib

import kill_jobs
import kill_snap
import pytest
from lib import run

MOMENTS = (kill_jobs.COMPLETED, kill_jobs.RANDOM, kill_jobs.RANDOM)      # jobs of this kind are never ready
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


@pytest.mark.timeout(120 + 20 * len(kill_jobs.rounds(MOMENTS)))
@pytest.mark.parametrize("name", CASES)
def test_killed(tmp_path, name):
    command, layers, files, options, fmt = CASES[name]
    rng = random.Random(zlib.crc32(name.encode()))
    chain = kill_jobs.Chain(tmp_path, rng, options, fmt, drop=name == "commit-drop")
    tally = kill_jobs.Tally(name)
    for round_number, moment in enumerate(kill_jobs.rounds(MOMENTS)):
        chain.renew()
        chain.serve()
        writers = chain.load(rng)
        try:
            at_the_end = moment == kill_jobs.COMPLETED
            job(chain, command, layers, **({} if at_the_end else {"speed": 32 << 20}))
            if at_the_end:
                event = chain.wait()
                assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"], event
            else:
                time.sleep(rng.uniform(0, 0.8))
        finally:
            chain.kill()
        for writer in writers:
            writer.end()
        chain.wait_unlocked()
        assert not at_the_end or chain.files() == files
        tally.add(moment, chain.record)
        chain.judge()
        if round_number % 6 == 1:
            finish(chain, rng, command, layers, files)
            tally.restarted()
    tally.write()


def dies_at(chain, n, command, layers):
    """Does the server die at its n-th call that changes a file, before the job has ended?"""
    try:
        chain.serve(env={"LD_PRELOAD": kill_snap.KILL_AT, "KILL_AT": str(n), "BYRE_BACKEND": "threads"})
        job(chain, command, layers)
        return "error" in chain.wait()["data"]
    except (run.Failed, kill_jobs.Died):
        return True
    finally:
        chain.kill()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("drop", [False, True])
def test_every_call_of_a_small_commit(tmp_path, drop):
    """The server dies at each call that changes a file, one after another: with the guard at work the next one can always do the rest."""
    chain = kill_jobs.Chain(tmp_path, random.Random(7), {"cluster_size": 65536}, drop=drop, size=1 << 20, filled=128 << 10)
    command, layers, files, _, _ = CASES["commit"]
    n, again, killed = 0, 0, True
    while killed:
        n += 1
        chain.renew()
        killed = dies_at(chain, n, command, layers)
        chain.wait_unlocked()
        chain.judge(load=False)
        if killed and chain.files() != files:
            again += 1
            chain.serve()
            job(chain, command, layers)
            assert "error" not in chain.wait()["data"]
            chain.kill()
            chain.wait_unlocked()
        assert chain.files() == files, n
        chain.judge(load=False)
    assert again > 10, (n, again)
