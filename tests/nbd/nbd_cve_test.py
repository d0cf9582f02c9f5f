# SPDX-License-Identifier: MIT
"""Inputs of the kind behind published weaknesses of NBD servers (the seeds named cve-* of the fuzz corpus), sent to a
live server: it stays up, answers others, keeps no descriptor, and burns neither time nor memory over them."""
import pathlib
import time

import pytest
import rawnbd as raw

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "fuzz/corpus/nbd_server"
TLS = 1                                   # control byte of a seed: for a server that demands TLS; played by the fuzz target
SEEDS = sorted(p for p in CORPUS.glob("cve-*") if not p.read_bytes()[0] & TLS)


def test_the_seeds_are_there():
    assert len(SEEDS) >= 20
    rows = {p.name.split("-")[1] + "-" + p.name.split("-")[2] for p in CORPUS.glob("cve-*")}
    assert rows >= {"2005-3534", "2011-0530", "2013-7441", "2017-7539", "2017-9524", "2017-10664", "2017-15118", "2017-15119",
                    "2020-10761", "2024-7409", "2019-14850", "2019-14851", "2021-3716", "2025-47711", "2025-47712", "2022-26495",
                    "2022-26496", "2023-5215"}


@pytest.mark.parametrize("step", [0, 7])
def test_all_seeds(server, step):
    fds = server.fds()
    with raw.Client(server.socket).enter() as witness:
        for seed in SEEDS:
            stream = seed.read_bytes()[1:]
            began = time.monotonic()
            with raw.Client(server.socket) as c:
                try:
                    if step:
                        for i in range(0, min(len(stream), 700), step):
                            c.send(stream[i:i + step])
                    else:
                        c.send(stream)
                except OSError:
                    pass                  # the server has hung up: its right
            assert witness.read(0, 4096) == bytes(4096), seed.name
            assert time.monotonic() - began < 20, seed.name
    deadline = time.monotonic() + 15
    while server.fds() > fds and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.fds() == fds
    assert server.rss_kib() < 256 * 1024
    server.stop()
