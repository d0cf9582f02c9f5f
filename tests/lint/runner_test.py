# SPDX-License-Identifier: MIT
"""The test runner itself: what fails is counted, named with a command that repeats it, and decides the exit code."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
MESON = """project('byre', 'c', default_options: ['b_lundef=false'])
test('good', executable('good', 'good.c'), suite: 'unit')
%s
"""
GOOD = "int main(void);\nint main(void) { return 0; }\n"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("check.py", "check_plugin.py", "build.sh"):
        shutil.copy(TOP / "tools" / name, tmp_path / "tools")
    (tmp_path / "meson_options.txt").write_text("option('werror_ci', type: 'boolean', value: false)\n")
    (tmp_path / "good.c").write_text(GOOD)
    (tmp_path / "tests/demo").mkdir(parents=True)
    shutil.copy(TOP / "tests/pytest.ini", tmp_path / "tests")
    return tmp_path


def check(project, *args, meson="", ci=None):
    (project / "meson.build").write_text(MESON % meson)
    env = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("CHECK_")}
    env["CHECK_GRACE"] = "2"
    if ci:
        env["CI"] = "true"
    done = subprocess.run(["/usr/bin/python3", "-B", "tools/check.py", "--no-extra-builds", *args], cwd=project, env=env,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    last = done.stdout.rstrip().splitlines()[-1]
    assert re.fullmatch(r"\d+ passed, \d+ failed(, \d+ skipped)?", last), done.stdout
    return done.returncode, last, done.stdout


def test_all_pass(project):
    (project / "tests/demo/a_test.py").write_text("def test_one(): pass\n")
    assert check(project)[:2] == (0, "2 passed, 0 failed")


def test_selection(project):
    (project / "tests/demo/a_test.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    assert check(project, "--suite", "unit")[:2] == (0, "1 passed, 0 failed")
    assert check(project, "--suite", "demo", "--test", "two")[:2] == (0, "1 passed, 0 failed")
    code, last, text = check(project, "--suite", "nonesuch")
    assert (code, last) == (1, "0 passed, 0 failed") and "nothing was proven" in text


def test_failures_are_told_with_a_command_that_repeats_them(project):
    (project / "bad.c").write_text(GOOD.replace("return 0", "return 3"))
    (project / "tests/demo/a_test.py").write_text("def test_bad():\n    assert 1 == 2\n")
    code, last, text = check(project, meson="test('bad', executable('bad', 'bad.c'), suite: 'unit')")
    assert (code, last) == (1, "1 passed, 2 failed")
    assert "exit code 3" in text and "assert 1 == 2" in text
    for command in re.findall(r"repeat: (.*)", text):
        assert subprocess.run(command, shell=True, cwd=project, stdout=subprocess.DEVNULL).returncode != 0, command
    assert len(re.findall(r"repeat: ", text)) == 2


def test_skips(project):
    (project / "skip.c").write_text(GOOD.replace("return 0", "return 77"))
    (project / "tests/demo/a_test.py").write_text("import pytest\ndef test_no(): pytest.skip('reason')\n")
    meson = "test('skip', executable('skip', 'skip.c'), suite: 'unit')"
    code, last, text = check(project, meson=meson)
    assert (code, last) == (0, "1 passed, 0 failed, 2 skipped") and "reason" in text
    assert check(project, meson=meson, ci=True)[:2] == (1, "1 passed, 1 failed, 1 skipped")


def test_a_build_that_fails(project):
    (project / "bad.c").write_text("int main(void) { return }\n")
    code, last, text = check(project, meson="executable('bad', 'bad.c')")
    assert (code, last) == (1, "0 passed, 1 failed") and "bad.c:1" in text


def test_hung_killed_and_broken_files(project):
    (project / "tests/demo/a_test.py").write_text(
        "import os, pytest, signal, time\n"
        "@pytest.mark.timeout(1)\ndef test_hangs(): time.sleep(60)\n"
        "def test_dies(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def test_goes_on(): pass\n"
        "@pytest.mark.serial\ndef test_alone(): pass\n"
        "@pytest.mark.soak\ndef test_long(): assert False\n")
    (project / "tests/demo/b_test.py").write_text("import nonesuch\n")
    code, last, text = check(project)
    assert (code, last) == (1, "3 passed, 3 failed"), text
    assert "took longer than 1 s" in text and "code -9" in text and "nonesuch" in text


def test_a_test_in_the_way_of_its_time_limit(project):
    """Code that swallows the signal's exception is ended by the runner."""
    (project / "tests/demo/a_test.py").write_text(
        "import pytest, signal, time\n"
        "@pytest.mark.timeout(0.1)\ndef test_stubborn():\n    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n    time.sleep(300)\n"
        "def test_after(): pass\n")
    code, last, text = check(project, "--suite", "demo")
    assert (code, last) == (1, "1 passed, 1 failed") and "killed" in text


def test_missing_peer(tmp_path):
    """lib.peers.need skips here and fails in CI."""
    test = tmp_path / "x_test.py"
    test.write_text(f"import sys; sys.path.insert(0, {str(TOP / 'tests')!r})\n"
                    "from lib import peers\ndef test_x(): peers.need('no-such-program-here')\n")
    for ci, expected in (("", "1 skipped"), ("true", "1 failed")):
        done = subprocess.run(["/usr/bin/python3", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)], cwd=tmp_path,
                              env={**os.environ, "CI": ci}, stdout=subprocess.PIPE, text=True)
        assert expected in done.stdout
