# SPDX-License-Identifier: MIT
"""Orderly stop and removal of exports while clients are at work."""
import select
import time

import pytest
import rawnbd as raw

MIB = 1 << 20
PROMPT = 4                                         # seconds; the tests that say so run alone

NONSENSE = 99


def all_taken(c):
    """Requests are taken in order, and one of no known kind is answered at once: its answer says that those before it are in the disk. Theirs that came meanwhile."""
    last, got = c.say(NONSENSE), {}
    while True:
        _, info, cookie, _, n = c.reply_head()
        payload = c.recv(n)
        if cookie == last:
            return got
        got[cookie] = payload


def test_requests_in_flight_are_finished(server):
    with raw.Client(server.socket).enter("slow", "structured") as c:
        cookies = [c.say(raw.WRITE, i * 512, payload=b"s" * 512) for i in range(50)]
        got = all_taken(c)                         # they are in the disk now: 200 ms each
        began = time.monotonic()
        server.process.terminate()
        while len(got) < len(cookies):
            kind, info, cookie, _, n = c.reply_head()
            got[cookie] = c.recv(n)
        assert set(got) == set(cookies) and all(p == b"" for p in got.values())
        assert c.at_end()
        server.wait_for("stopped")
        assert time.monotonic() - began < 8                # 10 s if one waited for the other


def test_late_requests_are_refused(server):
    """Requests go on coming: those from before the stop are served, those behind it refused, and all are answered."""
    with raw.Client(server.socket).enter("slow", "structured") as c:
        sent, answers = [c.say(raw.READ, 0, 512)], {}

        def answer():
            _, (_, kind), cookie, _, n = c.reply_head()
            answers[cookie] = raw.Chunk(kind, c.recv(n))
            return answers[cookie].error == raw.ESHUTDOWN

        server.process.terminate()
        refused, until = False, time.monotonic() + 30
        while not refused and time.monotonic() < until:
            sent.append(c.say(raw.READ, 0, 512))
            while not refused and select.select([c.sock], [], [], 0.01)[0]:
                refused = answer()
        assert refused
        while len(answers) < len(sent):
            answer()
        assert set(answers) == set(sent) and answers[sent[0]].kind == raw.T_HOLE
        assert all(a.kind == raw.T_HOLE or a.error == raw.ESHUTDOWN for a in answers.values())
        assert c.at_end()
    server.wait_for("stopped")


@pytest.mark.serial
def test_idle_clients_do_not_delay_it(server):
    clients = [raw.Client(server.socket) for _ in range(20)] + [raw.Client(server.socket).enter() for _ in range(20)]
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < PROMPT
    for c in clients[20:]:
        assert c.at_end()
    for c in clients:
        c.close()


@pytest.mark.serial
def test_a_client_that_does_not_read_does_not_delay_it(server):
    with raw.Client(server.socket).enter("disk0", "simple") as c:
        c.sock.setblocking(False)
        try:
            for _ in range(10000):
                c.sock.send(c.header(raw.READ, 0, MIB))
        except BlockingIOError:
            pass
        time.sleep(0.2)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < PROMPT


@pytest.mark.serial
def test_a_client_in_the_middle_of_a_payload_does_not_delay_it(server):
    with raw.Client(server.socket).enter("disk0", "simple") as c:
        c.send(c.header(raw.WRITE, 0, MIB) + bytes(1000))
        time.sleep(0.1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < PROMPT


def test_stop_under_load(server):
    clients = [raw.Client(server.socket).enter("disk0", "simple") for _ in range(8)]
    for c in clients:
        for i in range(100):
            c.say(raw.WRITE, i * 4096, payload=b"l" * 4096)
    server.stop()
    for c in clients:
        answers = 0
        try:
            while True:
                c.reply_head()
                answers += 1
        except raw.Closed:
            pass
        assert answers <= 100
        c.close()


@pytest.mark.serial
def test_long_zero_is_given_up_at_stop(server):
    with raw.Client(server.socket).enter("slow", "extended") as c:
        cookie = c.say(raw.ZEROES, 0, 16 * MIB)
        assert c.reply(cookie)[0] == 0             # one step: 200 ms
    with raw.Client(server.socket).enter("big", "extended") as c:
        c.say(raw.ZEROES, 0, 1 << 62)              # 2^35 steps
        time.sleep(0.1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < PROMPT


@pytest.mark.parametrize("force", [False, True])
def test_removing_an_export(server, force):
    verb = "force" if force else "remove"
    assert server.command(f"{verb} ro") == 0
    assert server.command(f"{verb} ro") == -2
    with raw.Client(server.socket) as c:
        c.greet()
        assert c.info(raw.INFO, "ro")[1] == raw.ERR_UNKNOWN
        assert c.info(raw.INFO, "block4k")[1] == raw.REP_ACK     # looked at, but not in use
        assert server.command(f"{verb} block4k") == 0
    with raw.Client(server.socket).enter("disk0") as user, raw.Client(server.socket).enter("big") as other:
        if not force:
            assert server.command("remove disk0") < 0
            assert user.read(0, 512) == bytes(512)
        else:
            assert server.command("force disk0") == 0
            assert user.at_end()
        assert other.read(0, 512) == bytes(512)


def test_forced_removal_waits_for_the_disk(server):
    with raw.Client(server.socket).enter("slow", "structured") as c:
        cookie = c.say(raw.READ, 0, 512)
        got = all_taken(c)
        assert server.command("force slow") == 0
        if not got:                                # it has taken longer than the disk to come here
            assert c.reply(cookie, 512)[0] == 0
        assert c.at_end()


def test_loops(start):
    """FEATURES G.075: connections are spread; each works on one disk with the others."""
    server = start("--loops", 4)
    clients = [raw.Client(server.socket).enter("disk0", "structured") for _ in range(12)]
    for i, c in enumerate(clients):
        assert c.write(i * 4096, bytes([i + 1]) * 4096) == 0
    for i, c in enumerate(clients):
        j = (i + 5) % 12
        assert c.read(j * 4096, 4096) == bytes([j + 1]) * 4096
        c.close()
    server.stop()
