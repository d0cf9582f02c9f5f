# SPDX-License-Identifier: MIT
"""The how-to documents: each command in docs/howto does what the text says. FEATURES 3.032, 3.073, 3.074, 9.020, 9.042, 9.043, 9.054, 10.024, G.028.

In an indented block a line that begins with "$ " is a command, and lines below it are what it prints: each of them must come, in this order; "..." stands for
anything. A command without such lines prints nothing that is looked at. Every command ends with exit code 0.
"""
import fnmatch
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from lib import run

HOWTO = run.TOP / "docs/howto"
MARK = "@@ command"


def commands(path):
    """[(command, [expected line])]"""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
        elif line.startswith("    ") and found:
            found[-1][1].append(line.strip())
    return found


def matches(line, pattern):
    return fnmatch.fnmatchcase(line, "*".join(re.sub(r"([*?\[])", r"[\1]", part) for part in pattern.split("...")))


def said(lines, expected):
    at = 0
    for pattern in expected:
        if pattern == "...":
            continue
        while at < len(lines) and not matches(lines[at], pattern):
            at += 1
        if at == len(lines):
            return pattern
        at += 1
    return None


@pytest.mark.parametrize("name", sorted(p.name for p in HOWTO.glob("*.md")))
def test_howto(tmp_path, name):
    todo = commands(HOWTO / name)
    assert len(todo) >= 5, "no commands"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "byre").symlink_to(run.BYRE)
    (tmp_path / "w").mkdir()
    script = ["set -e -o pipefail"]
    for i, (command, _) in enumerate(todo):
        script.append(f"echo '{MARK} {i}'")
        script.append(command)
        if command.endswith("&"):
            script.append("for i in $(seq 200); do [ -S c.sock ] && [ -S n.sock ] && break; sleep 0.05; done")
    script.append(f"echo '{MARK} {len(todo)}'")
    out = tmp_path / "out"
    with open(out, "wb") as f:
        shell = subprocess.Popen([shutil.which("bash"), "-c", "\n".join(script)], cwd=tmp_path / "w", stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                 env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, start_new_session=True)
        try:
            code = shell.wait(90)
        finally:
            try:
                os.killpg(shell.pid, 9)
            except ProcessLookupError:
                pass
            shell.wait()
    parts = re.split(rf"^{MARK} \d+\n", out.read_text(errors="replace"), flags=re.M)[1:]
    assert code == 0 and len(parts) == len(todo) + 1, f"exit code {code} at: {todo[len(parts) - 1][0]}\n{parts[-1]}"
    for (command, expected), text in zip(todo, parts):
        missing = said([line.strip() for line in text.splitlines()], expected)
        assert missing is None, f"$ {command}\n{text}\nexpected: {missing}"
