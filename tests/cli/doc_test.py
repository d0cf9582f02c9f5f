# SPDX-License-Identifier: MIT
"""What is documented is what there is: man pages, help, completion, all from the option tables."""
import json
import pathlib
import re
import subprocess

import pytest

from lib import peers, prhelper, run

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
        ends = ["--blockdev", "driver=none"] if option == "--daemonize" else []     # nothing goes on in the background
        done = run.byre(command, option, *ends, code=None, stdin="", timeout=20)
        assert "unknown option" not in done.err, done


@pytest.mark.parametrize("command", COMMANDS)
def test_synopsis(command):
    page = (BUILD / f"byre-{command}.1").read_text()
    summary = re.search(r"^\.Nd (.*)$", page, re.M).group(1)
    assert summary and f".Dt BYRE-{command.upper()} 1" in page and "@" not in page.replace("FDE@", "")


def test_pages_are_clean():
    """mandoc -Tlint has nothing to say, but that our own pages are not installed yet"""
    peers.need("mandoc")
    pages = sorted(BUILD.glob("byre*.[17]"))
    assert len(pages) == len(COMMANDS) + 2
    have = {p.stem for p in pages}
    for page in pages:
        for line in run.run("mandoc", "-Tlint", page, code=None).out.splitlines():
            m = re.search(r"referenced manual not found: Xr (\S+) [17]", line)
            assert m and m.group(1) in have, line


def test_main_page_lists_the_commands():
    page = (BUILD / "byre.1").read_text()
    assert re.findall(r"^\.It Xr byre-(\w+) 1$", page, re.M) == COMMANDS


def test_io_page_lists_the_io_commands():
    page = (BUILD / "byre-io.1").read_text()
    names = re.findall(r"^\.It Ic (\w+)", page, re.M)
    listed = [line.split()[0] for line in run.byre("io", "-c", "help").out.splitlines() if " -- " in line]
    assert names == listed


def names_in(section):
    """What the page of the control socket describes in one of its sections."""
    page = (BUILD / "byre-qmp.7").read_text().replace("\\-", "-")
    text = page[page.index(f"\n.Sh {section}\n") + 1:]
    return re.findall(r"^\.It Ic (\S+)$", text[:text.index("\n.Sh ", 1)], re.M)


def test_qmp_page_lists_the_control_commands(tmp_path, byre_serve):
    """FEATURES 8.009"""
    run.byre("create", "-q", "-f", "qcow2", tmp_path / "a", "1M")
    server = byre_serve(tmp_path / "a")
    have = [c["name"] for c in run.byre("ctl", server.control, "query-commands").json]
    assert names_in("COMMANDS") == have == sorted(have)


def test_qmp_page_lists_the_events():
    """Events are named where they are sent, as a string in capitals in front of their data"""
    sent = set()
    for path in (TOP / "src").glob("*/*.c"):
        sent |= set(re.findall(r'ctl_send_event\([^"\n]*"([A-Z_]+)"', path.read_text()))
    assert names_in("EVENTS") == sorted(sent)


def test_create_page_lists_the_keys():
    page = (BUILD / "byre-create.1").read_text()
    for line in run.byre("create", "-f", "qcow2", "-o", "help", "x").out.splitlines()[1:]:
        assert f"\n{line.split('=')[0].strip()}=" in page.replace("\\-", "-")


NODE = {"driver": "qcow2", "node-name": "a", "file.filename": "x", "file.driver": "file", "file.node-name": "b", "read-only": "off",
        "active": "on", "auto-read-only": "on", "force-share": "off", "cache.direct": "off", "cache.no-flush": "off", "discard": "unmap", "detect-zeroes": "on",
        "file.locking": "auto", "file.aio": "threads", "file.drop-cache": "on", "file.x-check-cache-dropped": "off", "file.pr-manager": "p", "offset": "512", "size": "1M", "backing": None, "data-file.filename": "d",
        "data-file.driver": "file", "data-file.node-name": "c", "cache-size": "1M", "l2-cache-size": "1M", "refcount-cache-size": "256k",
        "l2-cache-entry-size": "4k", "cache-clean-interval": "60", "lazy-refcounts": "off", "pass-discard-request": "on",
        "pass-discard-snapshot": "on", "pass-discard-other": "on", "discard-no-unref": "off", "overlap-check": "all", "encrypt.format": "luks",
        "encrypt.key-secret": "s", "key-secret": "s", "header.filename": "h", "header.driver": "file", "header.node-name": "k"}


def test_node_options_are_taken(tmp_path, request):
    """FEATURES 3.021: each option of a node that the page lists, with a value of its kind; and no other is taken"""
    page = (BUILD / "byre.1").read_text()
    section = page[page.index(".Sh NODE OPTIONS"):page.index(".Sh NBD SERVERS")].replace("\\-", "-")
    listed = sum((line[len(".It Cm "):].split(" , ") for line in section.splitlines() if line.startswith(".It Cm ")), [])
    assert sorted(listed) == sorted(NODE)
    run.byre("create", "-q", "-f", "qcow2", "x", "4M", cwd=tmp_path)
    run.byre("create", "-q", "-f", "raw", "r", "4M", cwd=tmp_path)
    run.byre("create", "-q", "-f", "qcow2", "-o", "data_file=d", "y", "4M", cwd=tmp_path)
    secret = ["--object", "secret,id=s,data=a"]
    run.byre("create", "-q", *secret, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "e", "4M", cwd=tmp_path)
    run.byre("create", "-q", *secret, "-f", "luks", "-o", "key-secret=s,iter-time=10", "l", "4M", cwd=tmp_path)
    run.byre("create", "-q", *secret, "-f", "luks", "-o", "key-secret=s,iter-time=10,detached-header=on", "h", cwd=tmp_path)
    needs = {"offset": {"driver": "raw", "file.filename": "r"}, "key-secret": {"driver": "luks", "file.filename": "l"},
             "data-file.driver": {"data-file.filename": "d", "file.filename": "y"}, "data-file.filename": {"file.filename": "y"},
             "data-file.node-name": {"file.filename": "y"}, "encrypt.key-secret": {"file.filename": "e"},
             "encrypt.format": {"file.filename": "e", "encrypt.key-secret": "s"}}
    needs["size"] = needs["offset"]
    for key in ("filename", "driver", "node-name"):
        needs[f"header.{key}"] = {"driver": "luks", "key-secret": "s", "header.filename": "h", "file.filename": "r"}
    helper = prhelper.Helper().start()
    request.addfinalizer(helper.close)
    for key in listed:
        objects = [*secret, *(["--object", f"pr-manager-helper,id=p,path={helper.path}"] if key == "file.pr-manager" else [])]
        opts = {"driver": "qcow2", "file.driver": "file", "file.filename": "x", key: NODE[key], **needs.get(key, {})}
        done = run.byre("io", *objects, "-c", "read 0 512", f"json:{json.dumps(opts)}", cwd=tmp_path)
        assert "read 512/512" in done.out, key
    assert "'bogus' is not supported" in run.byre("io", "-c", "length", 'json:{"driver":"raw","file.filename":"r","bogus":"1"}', cwd=tmp_path, code=1).err


IO_SPELLINGS = re.compile(r"-(\w+)")


def test_io_commands_say_what_they_take():
    """Help of each command of the io shell: the line of its arguments names the options that its list explains"""
    names = [line.split()[0] for line in run.byre("io", "-c", "help").out.splitlines() if " -- " in line]
    for name in names:
        first, *rest = run.byre("io", "-c", f"help {name}").out.splitlines()
        usage = first.split(" -- ")[0]
        said = {c for group in IO_SPELLINGS.findall(usage) for c in group}
        explained = {m.group(1) for m in (re.match(r"  -(\w)\b(?!.*not supported yet)", line) for line in rest) if m}
        assert said == explained, (usage, rest)


def test_pages_name_only_options_that_are():
    """Options in the text of a page, outside its generated list, are options of this command, or of one named beside them"""
    known = {c: options_of_help(c) for c in COMMANDS}
    for line in run.byre("io", "-c", "help").out.splitlines():
        known["io"] |= {f"-{c}" for group in IO_SPELLINGS.findall(line.split(" -- ")[0]) for c in group}
    for command in COMMANDS:
        text = (BUILD / f"byre-{command}.1").read_text()
        text = text[:text.index(".Sh OPTIONS")] + text[text.index(".El", text.index(".Sh OPTIONS")):]
        lines = text.splitlines()
        for i, line in enumerate(lines):
            near = [command] + re.findall(r"byre-(\w+) 1", " ".join(lines[max(0, i - 3):i + 4]))
            for word in [] if line.startswith(".It Fl") else re.findall(r"\bFl (Fl [\w-]+|\w)\b", line):
                spelling = f"--{word[3:]}" if word.startswith("Fl ") else f"-{word}"
                assert any(spelling in known.get(c, ()) for c in near), (command, line)


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
    assert set(complete("byre", "convert", "-O", "")) == {"raw", "qcow2", "luks", "qed"}
    assert "writeback" in complete("byre", "convert", "-t", "w")
    assert complete("byre", "info", "--output", "=", "j") == ["json"]


def test_no_page_tells_of_a_machine():
    for page in (TOP / "docs/man").glob("*.in"):
        assert not re.search(r"/work|/root|session|agent", page.read_text())
