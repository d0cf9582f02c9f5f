# SPDX-License-Identifier: MIT
"""What is documented is what there is: man pages, help, completion, all from the option tables (DESIGN 7)."""
import pathlib
import re
import subprocess

import pytest

from lib import peers, run

TOP = run.TOP
BUILD = pathlib.Path(run.BYRE).resolve().parent / "src" / "bin"
COMMANDS = [line.split()[0] for line in run.byre("help", "--list").out.splitlines()]


def options_of_help(command):
    """Spellings of --help."""
    found = set()
    for line in run.byre(command, "--help").out.splitlines():
        if line.startswith("  -") or line.startswith("      --"):
            found |= set(re.findall(r"--[\w-]+|-\w\b", line.strip().split("  ")[0]))
    return found


def options_of_page(command):
    page = (BUILD / f"byre-{command}.1").read_text()
    section = page[page.index(".Sh OPTIONS"):]
    section = section[:section.index(".El")]
    found = set()
    for line in section.splitlines():
        if line.startswith(".It"):
            found |= {f"-{x}" for x in re.findall(r"(?<!Fl )Fl (\w)\b", line)}
            found |= {f"--{x}" for x in re.findall(r"Fl Fl ([\w-]+)", line)}
    return found


def options_of_completion(command):
    script = run.byre("completion").out
    block = script[script.index(f"\n    {command})\n"):]
    return set(re.search(r"opts='([^']*)'", block).group(1).split())


def test_every_command_has_a_page():
    pages = {p.name[len("byre-"):-len(".1.in")] for p in (TOP / "docs/man").glob("byre-*.1.in")}
    assert pages == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_page_and_completion_agree(command):
    helped = options_of_help(command)
    assert "--help" in helped and options_of_page(command) == helped == options_of_completion(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_option_is_parsed(command):
    """An option that is documented is never unknown"""
    for option in options_of_help(command):
        done = run.byre(command, option, code=None, stdin="", timeout=20)
        assert "unknown option" not in done.err, done


@pytest.mark.parametrize("command", COMMANDS)
def test_synopsis(command):
    page = (BUILD / f"byre-{command}.1").read_text()
    summary = re.search(r"^\.Nd (.*)$", page, re.M).group(1)
    assert summary and f".Dt BYRE-{command.upper()} 1" in page and "@" not in page.replace("FDE@", "")


def test_pages_are_clean():
    """mandoc -Tlint has nothing to say, but that our own pages are not installed yet"""
    peers.need("mandoc")
    pages = sorted(BUILD.glob("byre*.1"))
    assert len(pages) == len(COMMANDS) + 1
    have = {p.stem for p in pages}
    for page in pages:
        for line in run.run("mandoc", "-Tlint", page, code=None).out.splitlines():
            m = re.search(r"referenced manual not found: Xr (\S+) 1", line)
            assert m and m.group(1) in have, line


def test_main_page_lists_the_commands():
    page = (BUILD / "byre.1").read_text()
    assert re.findall(r"^\.It Xr byre-(\w+) 1$", page, re.M) == COMMANDS


def test_io_page_lists_the_io_commands():
    page = (BUILD / "byre-io.1").read_text()
    names = re.findall(r"^\.It Ic (\w+)", page, re.M)
    listed = [line.split()[0] for line in run.byre("io", "-c", "help").out.splitlines() if " -- " in line]
    assert names == listed


def test_create_page_lists_the_keys():
    page = (BUILD / "byre-create.1").read_text()
    for line in run.byre("create", "-f", "qcow2", "-o", "help", "x").out.splitlines()[1:]:
        assert f"\n{line.split('=')[0].strip()}=" in page.replace("\\-", "-")


def complete(*words):
    """What bash offers for the last word."""
    script = run.byre("completion").out
    quoted = " ".join(f"'{w}'" for w in words)
    text = f"{script}\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words) - 1}\n_byre\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    done = subprocess.run(["bash", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_completion_works():
    """The script in a real bash"""
    assert complete("byre", "con") == ["convert"]
    assert set(complete("byre", "")) >= set(COMMANDS)
    assert complete("byre", "convert", "--targ") == ["--target-image-opts", "--target-format", "--target-is-zero"]
    assert set(complete("byre", "convert", "-O", "")) == {"raw", "qcow2", "luks"}
    assert "writeback" in complete("byre", "convert", "-t", "w")
    assert complete("byre", "info", "--output", "=", "j") == ["json"]


def test_no_page_tells_of_a_machine():
    for page in (TOP / "docs/man").glob("*.in"):
        assert not re.search(r"/work|/root|session|agent", page.read_text())
