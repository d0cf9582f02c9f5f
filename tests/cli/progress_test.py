# SPDX-License-Identifier: MIT
"""Progress of long commands (FEATURES 5.005)."""
import json
import os
import pty
import re
import signal
import subprocess

from lib import run, wait


def source(tmp_path, mib=4):
    (tmp_path / "r").write_bytes(os.urandom(mib << 20))
    return ["-f", "raw", "-O", "raw"]


def test_plain_lines(tmp_path):
    """FEATURES 5.005: the peer's form where standard output is no terminal"""
    words = source(tmp_path)
    done = run.byre("convert", "-p", *words, "r", "x", cwd=tmp_path, binary=True)
    parts = done.out.decode().split("\r")
    assert parts[0] == "    (0.00/100%)" and parts[-2] == "    (100.00/100%)" and parts[-1] == "\n"
    values = [float(re.fullmatch(r"    \((\d+\.\d\d)/100%\)", p).group(1)) for p in parts[:-1]]
    assert values == sorted(values)
    assert run.byre("convert", *words, "r", "x", cwd=tmp_path).out == ""
    assert run.byre("convert", "-p", "-q", *words, "r", "x", cwd=tmp_path).out == ""


def test_json_lines(tmp_path):
    """--progress=json: one object a line on standard error, the last one says end"""
    done = run.byre("convert", "--progress=json", "-r", "8M", *source(tmp_path), "r", "x", cwd=tmp_path)
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert done.out == "" and len(lines) >= 2
    for line in lines:
        assert set(line) == {"event", "unit", "done", "total", "percent", "rate", "elapsed", "eta"} and line["unit"] == "bytes"
    assert lines[-1]["event"] == "end" and lines[-1]["done"] == lines[-1]["total"] == 4 << 20 and lines[-1]["percent"] == 100
    assert all(line["event"] == "progress" for line in lines[:-1])
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)


def on_terminal(tmp_path, *words, argv0=None):
    master, slave = pty.openpty()
    process = subprocess.Popen([argv0 or run.BYRE, *words], cwd=tmp_path, stdout=slave, stderr=slave)
    os.close(slave)
    out = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        out += chunk
    os.close(master)
    assert process.wait(20) == 0
    return out.decode()


def test_bar_on_a_terminal(tmp_path):
    """FEATURES 5.005: rate and time left on a terminal"""
    text = on_terminal(tmp_path, "convert", "-p", "-r", "8M", *source(tmp_path), "r", "x")
    assert re.search(r"\[[#.]{30}\] +\d+\.\d\d %  [\d.]+ [KMG]iB/s  \d\d:\d\d, left (\d\d:\d\d|--:--)", text)
    assert "[" + "#" * 30 + "] 100.00 %" in text


def test_peer_form_on_a_terminal(tmp_path):
    """FEATURES 5.005: called as qemu-img the plain lines stay plain"""
    link = tmp_path / "bin"
    link.mkdir()
    (link / "qemu-img").symlink_to(run.BYRE)
    text = on_terminal(tmp_path, "convert", "-p", *source(tmp_path), "r", "x", argv0=str(link / "qemu-img"))
    assert "(100.00/100%)" in text and "#" not in text


def test_sigusr1(tmp_path):
    """FEATURES 5.005: SIGUSR1 prints progress without -p, a line each time; the command goes on"""
    process = subprocess.Popen([run.BYRE, "convert", "-r", "100k", *source(tmp_path), "r", "x"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        wait.catches(process, signal.SIGUSR1)
        for _ in range(2):
            process.send_signal(signal.SIGUSR1)
            assert re.fullmatch(r"    \(\d+\.\d\d/100%\)\n", process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM and "%" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
