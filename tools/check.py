#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""check.py: builds byre, runs its tests, and ends with one line: `N passed, N failed[, N skipped]`.

A unit is one executable that meson lists as a test, one pytest test, or one build. Its name is
`suite/name`; a suite is meson's suite of the test, or the folder under tests/ of a pytest file.
Special suites build in folders of their own:
  asan         the unit, sim, faults and fuzz-replay tests, and pytest tests marked `asan`, under AddressSanitizer and
               UBSan (build-asan/: everything but the copies with mutants)
  tsan         the unit and threads tests, and pytest tests marked `tsan`, under ThreadSanitizer (build-tsan/: only those)
  build-clang  everything compiles with clang and -Werror (build-clang/); when asked for, since asan's build shows the same but for mutants
  soak         long runs; only when asked for

A run without --suite takes a share of the states of the crash explorer and, under the sanitizers, of the loops over faults and seeds (WHOLE_RUN),
and runs each group of unit tests there on one of both backends (ONE_BACKEND); the suites `asan`, `tsan`, `crash` and `soak`, asked for by name,
take all that is theirs.

--suite takes several, separated by commas or spaces; --test selects by a part of the unit's name.
A test that exits with 77, or calls pytest.skip, is skipped; with CI=true the former is a failure.
No test at all is a failure.
"""
import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
IN_CI = os.environ.get("CI") == "true"
TIMEOUT = 120.0                       # seconds, for tests that name none
SLOWER = {"asan": 4.0, "tsan": 8.0}   # sanitizers take longer
SANITIZED = {"asan": {"unit", "sim", "faults", "fuzz-replay"}, "tsan": {"unit", "threads"}}
SANITIZER_OPTIONS = {
    "asan": {"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"},
    "tsan": {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1", "BYRE_TEST_SHARE": "7"},
}
WHOLE_RUN = {"asan": {"BYRE_TEST_SHARE": "3"}, "tsan": {"BYRE_TEST_SHARE": "13"}, "crash": {"BYRE_SIM_FLOORS": "75"}}    # percent
ONE_BACKEND = {"BYRE_TEST_BACKENDS": "one"}    # which, a group's name decides; the byte stores, which speak to the kernel, take both
ONLY_WHEN_ASKED = {"soak"}
GRACE = float(os.environ.get("CHECK_GRACE", "60"))    # beyond that the process is killed
TEXT_MAX = 12000                      # bytes of output shown for one failure


@dataclasses.dataclass
class Unit:
    name: str                        # suite/name
    suites: set
    serial: bool
    timeout: float
    repeat: str                      # the command that runs it again
    command: list = None             # an executable
    env: dict = None
    workdir: str = None
    node: str = None                 # a pytest test
    label: str = None                # the sanitizer suite it runs in


@dataclasses.dataclass
class Result:
    name: str
    result: str                      # passed | failed | skipped
    seconds: float
    text: str
    repeat: str


class Report:
    """Collects results and prints failures as they happen. Safe to call from several threads."""

    def __init__(self, verbose):
        self.results, self.verbose, self.lock = [], verbose, threading.Lock()
        self.phases = []             # (name, seconds) of builds and of the two halves of the tests

    def add(self, name, result, seconds, text="", repeat=""):
        with self.lock:
            self.results.append(Result(name, result, seconds, text, repeat))
            if result == "failed":
                print(f"FAIL {name} ({seconds:.1f} s)")
                tail = text.rstrip()
                if len(tail) > TEXT_MAX:
                    tail = f"[... {len(tail) - TEXT_MAX} characters before this ...]\n" + tail[-TEXT_MAX:]
                for line in tail.splitlines():
                    print(f"     {line}")
                print(f"     repeat: {repeat}", flush=True)
            elif result == "skipped":
                last = text.strip().splitlines()[-1] if text.strip() else ""
                print(f"skip {name}: {last}", flush=True)
            elif self.verbose:
                print(f"ok   {name} ({seconds:.1f} s)", flush=True)

    def finish(self):
        count = collections.Counter(r.result for r in self.results)
        slow = sorted(self.results, key=lambda r: -r.seconds)[:15]
        if slow:
            print("slowest: " + ", ".join(f"{r.name} {r.seconds:.1f} s" for r in slow))
        print("time: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.phases))
        failed = [r for r in self.results if r.result == "failed"]
        if failed:
            print("failed:")
            for r in failed:
                print(f"  {r.name}\n      {r.repeat}")
        if not count["passed"] and not failed:
            print("no test ran: nothing was proven")
        line = f"{count['passed']} passed, {count['failed']} failed"
        if count["skipped"]:
            line += f", {count['skipped']} skipped"
        print(line, flush=True)
        return 0 if count["passed"] and not failed else 1


def run_process(command, env, workdir, timeout):
    """Runs a command in a process group of its own; returns (exit code or None on timeout, output)."""
    with tempfile.TemporaryFile() as out:
        proc = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                env=env, cwd=workdir, start_new_session=True)
        try:
            code = proc.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        kill_group(proc)
        out.seek(0)
        return code, out.read().decode("utf-8", "replace")


def kill_group(proc):
    """Ends a process and what it left behind in its group."""
    try:
        os.killpg(proc.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    proc.wait()


def sanitized_targets(folder, kind):
    """What ninja is to make of a configured folder: for asan everything but the copies with mutants, for tsan the tests that run, and byre."""
    def rows(name):
        with open(folder / "meson-info" / name, encoding="utf-8") as f:
            return json.load(f)

    made = {t["filename"][0]: t["name"] for t in rows("intro-targets.json") if t["build_by_default"]}
    if kind == "asan":
        chosen = {path for path, name in made.items() if not name.endswith("-mutants") and not name.startswith("mut-")}
    else:
        tests = [t for t in rows("intro-tests.json") if {s.split(":", 1)[-1] for s in t["suite"]} & SANITIZED[kind]]
        chosen = {word for t in tests for word in t["cmd"] if word in made} | {str(folder / "byre")}
    return sorted(os.path.relpath(path, folder) for path in chosen)


def run_build(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=TOP, check=False)


def build(kind, folder, report, name):
    """Builds; a failure is a failed unit. The main build is a unit only when it fails."""
    begin = time.monotonic()
    command = [str(TOP / "tools/build.sh"), kind, str(folder)]
    done = run_build(command + (["--", "build.ninja"] if kind in SANITIZED else []))
    if kind in SANITIZED and done.returncode == 0:           # configured, so that its targets are known
        done = run_build(command + ["--", *sanitized_targets(folder, kind)])
    text, ok = done.stdout.decode("utf-8", "replace"), done.returncode == 0
    took = time.monotonic() - begin
    report.phases.append((f"build {kind}", took))
    if not ok:
        report.add(name, "failed", took, text, shlex.join(["tools/build.sh", kind, str(folder)]))
    elif kind not in ("plain", "cov"):
        report.add(name, "passed", took)
    return ok


def no_randomised_addresses():
    """A prefix that switches address randomisation off, where allowed: the sanitizers of Debian 12 cannot map
    their shadow under kernels that randomise more bits than they know."""
    prefix = ["setarch", "-R"]
    if shutil.which("setarch") and subprocess.run(prefix + ["true"], stderr=subprocess.DEVNULL).returncode == 0:
        return prefix
    return []


def meson_units(folder, label, whole, keep_suites=None):
    """The tests that meson knows in a build folder. label: None, or the name of a sanitizer suite. whole: a run of everything."""
    with open(folder / "meson-info/intro-tests.json", encoding="utf-8") as f:
        tests = json.load(f)
    prefix = no_randomised_addresses() if label else []
    factor = SLOWER.get(label, 1.0) * float(os.environ.get("CHECK_TIMEOUT_FACTOR", "1"))
    units = []
    for t in tests:
        named = [s.split(":", 1)[-1] for s in t["suite"]]
        named = [s for s in named if s not in ("byre", "")] or ["other"]
        suites = set(named)
        if keep_suites is not None and not suites & keep_suites:
            continue
        if label and suites & ONLY_WHEN_ASKED:
            continue
        first = label or named[0]
        more = {**t["env"], **(WHOLE_RUN.get(first, {}) if whole else {}),
                **(ONE_BACKEND if whole and label and not t["name"].startswith("stor-") else {})}
        env = {**SANITIZER_OPTIONS.get(label, {}), **more}
        shown = [f"{k}={shlex.quote(v)}" for k, v in more.items()]
        units.append(Unit(name=f"{first}/{t['name']}", suites={label} if label else suites,
                          serial=not t.get("is_parallel", True), timeout=factor * (t.get("timeout") or 30) * 2,
                          repeat=" ".join(shown + [shlex.join(prefix + t["cmd"])]),
                          command=prefix + t["cmd"], env=env, workdir=t.get("workdir") or str(folder)))
    return units


def pytest_env(build_dir, extra):
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(TOP / "tools")] + env.get("PYTHONPATH", "").split(os.pathsep)).strip(os.pathsep)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env.setdefault("BYRE", str(build_dir / "byre"))
    env.setdefault("BYRE_BUILD", str(build_dir))
    env["CHECK_TIMEOUT"] = str(TIMEOUT)
    env.update(extra)
    return env


def pytest_command(*args):
    return [PYTHON, "-m", "pytest", "-p", "check_plugin", "-p", "no:cacheprovider", "-q", *args]


def read_rows(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


def pytest_units(build_dir, report, scratch, roots):
    """Collects the pytest tests, those for a sanitizer twice; a file that cannot be collected is a failed unit."""
    found_at = os.path.join(scratch, "found")
    env = pytest_env(build_dir, {"CHECK_REPORT": found_at, "CHECK_LIST": "1"})
    code, text = run_process(pytest_command("--collect-only", *roots), env, str(TOP), 300)
    units = []
    for row in read_rows(found_at):
        if "broken" in row:
            report.add(pytest_name(row["broken"]), "failed", 0, row["text"], f"{PYTHON} -m pytest {full_node(row['broken'])}")
            continue
        name = pytest_name(row["found"])
        suites = {name.split("/")[0]} | ({"soak"} if row["soak"] else set())
        repeat = f"{PYTHON} -m pytest {shlex.quote(full_node(row['found']))}"
        units.append(Unit(name=name, suites=suites, serial=row["serial"], timeout=row["timeout"], repeat=repeat, node=row["found"]))
        if row["soak"]:
            continue
        for label in row["sanitize"]:
            units.append(Unit(name=f"{label}/{name}", suites={label}, serial=row["serial"], timeout=row["timeout"], node=row["found"],
                              label=label, repeat=f"BYRE={build_dir}-{label}/byre {repeat}"))
    if not units and code not in (0, 5):
        report.add("pytest/collect", "failed", 0, text, shlex.join(pytest_command("--collect-only", "tests")))
    return units


def full_node(node):
    """pytest prints node ids relative to the folder of its ini file, which is tests/."""
    return node if node.startswith("tests/") else "tests/" + node


def pytest_name(node):
    path = full_node(node)[len("tests/"):]
    return path if "/" in path.split("::")[0] else "tests/" + path


def run_meson_unit(unit, report, build_dir):
    env = dict(os.environ)
    env.setdefault("BYRE", str(build_dir / "byre"))
    env.update(unit.env or {})
    begin = time.monotonic()
    try:
        code, text = run_process(unit.command, env, unit.workdir, unit.timeout)
    except OSError as e:
        code, text = -1, f"cannot run: {e}"
    took = time.monotonic() - begin
    if code == 0:
        result = "passed"
    elif code == 77:
        result = "failed" if IN_CI else "skipped"
        text += "\nskipped itself (exit 77)" + (", which CI=true does not allow" if IN_CI else "")
    else:
        result = "failed"
        text += "\n" + (f"took longer than {unit.timeout:g} s" if code is None else
                        f"ended by signal {-code}" if code < 0 else f"exit code {code}")
    report.add(unit.name, result, took, text, unit.repeat)


def run_pytest_file(units, report, build_dir, scratch):
    """Runs tests of one file in one process; a hung or dead process costs the test it was in, the rest go on."""
    left = {u.node: u for u in units}
    label = units[0].label
    extra_env, setarch = {}, []
    if label:
        build_dir, setarch = build_dir.with_name(f"{build_dir.name}-{label}"), no_randomised_addresses()
        extra_env = {**SANITIZER_OPTIONS[label], "BYRE": str(build_dir / "byre"), "BYRE_BUILD": str(build_dir),
                     "CHECK_TIMEOUT_FACTOR": str(SLOWER[label])}
    while left:
        work = tempfile.mkdtemp(dir=scratch)
        nodes, rows_at, out_at = (os.path.join(work, n) for n in ("nodes", "rows", "out"))
        with open(nodes, "w", encoding="utf-8") as f:
            f.write("\n".join(left))
        env = pytest_env(build_dir, {"CHECK_REPORT": rows_at, "CHECK_NODES": nodes, "TMPDIR": work, **extra_env})
        path = full_node(next(iter(left))).split("::")[0]
        with open(out_at, "wb") as out:
            proc = subprocess.Popen(setarch + pytest_command(f"--basetemp={work}/t", path), stdin=subprocess.DEVNULL, stdout=out,
                                    stderr=subprocess.STDOUT, env=env, cwd=TOP, start_new_session=True)
            why = watch(proc, rows_at, left, report)
        with open(out_at, encoding="utf-8", errors="replace") as f:
            text = f.read()
        started = [r["start"] for r in read_rows(rows_at) if "start" in r]
        shutil.rmtree(work, ignore_errors=True)
        if not left:
            return
        stuck = next((n for n in reversed(started) if n in left), None)
        for node in [stuck] if stuck else list(left):    # not even one started: none ever will
            unit = left.pop(node)
            report.add(unit.name, "failed", 0, f"{text}\n{why}", unit.repeat)


def watch(proc, rows_at, left, report):
    """Moves finished tests out of `left` until the process ends; kills it when a test ignores its time limit."""
    seen, current, since = 0, None, time.monotonic()
    while True:
        ended = proc.poll() is not None
        rows = read_rows(rows_at)
        for row in rows[seen:]:
            since = time.monotonic()
            if "start" in row:
                current = row
            if "done" in row and row["done"] in left:
                unit = left.pop(row["done"])
                report.add(unit.name, row["result"], row["seconds"], row["text"], unit.repeat)
        seen = len(rows)
        if ended:
            kill_group(proc)
            return f"the test process ended with code {proc.returncode}"
        limit = (current["timeout"] if current else 120) * 1.5 + GRACE
        if time.monotonic() - since > limit:
            kill_group(proc)
            return f"no answer for {limit:g} s: killed"
        time.sleep(0.05)


def wanted(unit, suites, test):
    if test and test not in unit.name:
        return False
    if suites:
        return bool(unit.suites & suites)
    return not unit.suites & ONLY_WHEN_ASKED


def run_units(units, report, build_dir, scratch, jobs):
    """Parallel tests first, several at a time; then those that need the machine for themselves."""
    for serial in (False, True):
        begin = time.monotonic()
        chosen = [u for u in units if u.serial == serial]
        files = collections.defaultdict(list)
        work = []
        for u in chosen:
            if u.node:
                files[u.node.split("::")[0], u.label].append(u)
            else:
                work.append((u.timeout / 10, run_meson_unit, (u, report, build_dir)))    # the long ones first
        for group in files.values():
            work.append((len(group), run_pytest_file, (group, report, build_dir, scratch)))
        work.sort(key=lambda w: -w[0])
        with concurrent.futures.ThreadPoolExecutor(max_workers=1 if serial else jobs) as pool:
            for future in [pool.submit(fn, *args) for _, fn, args in work]:
                future.result()
        report.phases.append(("tests alone" if serial else f"tests, {jobs} at a time", time.monotonic() - begin))


def test_roots():
    tests = TOP / "tests"
    return [str(tests)] if tests.is_dir() else []


def gather(args, suites, report, scratch):
    """Builds what the chosen suites need and lists their units."""
    main = pathlib.Path(args.build).resolve()
    folder = {label: main.with_name(f"{main.name}-{label}") for label in ("asan", "tsan", "clang")}
    extra = not args.no_extra_builds and not (args.test and not suites)      # TEST= alone asks for a quick answer
    units, built = [], {None}
    if not suites or suites - {"asan", "tsan", "build-clang"}:
        if not args.no_build and not build(args.kind, main, report, "build/" + args.kind):
            return units
        units += meson_units(main, None, not suites)
    for label, keep in SANITIZED.items():
        if extra and (not suites or label in suites) and build(label, folder[label], report, f"{label}/build"):
            units += meson_units(folder[label], label, not suites, keep)
            built.add(label)
    units += [u for u in pytest_units(main, report, scratch, test_roots()) if u.label in built]
    if extra and "build-clang" in suites and args.test in "build-clang/build":
        build("clang", folder["clang"], report, "build-clang/build")
    return units


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--suite", default="", help="run only these suites")
    p.add_argument("--test", default="", help="run only units whose name contains this")
    p.add_argument("--build", default=str(TOP / "build"), help="build folder")
    p.add_argument("--kind", default="plain", help="kind of the main build (tools/build.sh)")
    p.add_argument("--no-build", action="store_true", help="test the main build as it stands")
    p.add_argument("--no-extra-builds", action="store_true", help="leave out asan, tsan and build-clang")
    p.add_argument("--jobs", type=int, default=int(os.environ.get("JOBS") or os.cpu_count()))
    p.add_argument("--list", action="store_true", help="print the units' names and run nothing")
    p.add_argument("-v", "--verbose", action="store_true", default=IN_CI, help="print passed units too")
    return p.parse_args(argv)


def main(argv):
    args = parse(argv)
    suites = set(args.suite.replace(",", " ").split())
    report = Report(args.verbose)
    with tempfile.TemporaryDirectory(prefix="byre-check-") as scratch:
        units = [u for u in gather(args, suites, report, scratch) if wanted(u, suites, args.test)]
        if args.list:
            print("\n".join(sorted(u.name for u in units)))
            return 0
        run_units(units, report, pathlib.Path(args.build).resolve(), scratch, args.jobs)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
