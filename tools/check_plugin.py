# SPDX-License-Identifier: MIT
"""The pytest side of tools/check.py: lists tests, runs a chosen set, and reports each as one JSON line.

Loaded with `-p check_plugin`. Environment:
  CHECK_REPORT   file that receives the JSON lines (required)
  CHECK_LIST     when set: only list the tests found
  CHECK_NODES    file with the node ids to run, one per line (all when unset)
  CHECK_TIMEOUT  seconds a test may take unless @pytest.mark.timeout(n) says otherwise

Lines: {"found": id, "serial": bool, "soak": bool, "timeout": s, "sanitize": [...]} | {"broken": file, "text": s}
       {"start": id, "timeout": s} | {"done": id, "result": passed|failed|skipped, "seconds": s, "text": s}
"""
import json
import os
import signal

import pytest

_report = None


def _emit(**row):
    global _report
    if _report is None:
        _report = open(os.environ["CHECK_REPORT"], "a", buffering=1, encoding="utf-8")
    _report.write(json.dumps(row) + "\n")


def _limit(item):
    mark = item.get_closest_marker("timeout")
    factor = float(os.environ.get("CHECK_TIMEOUT_FACTOR", "1"))
    return factor * float(mark.args[0] if mark else os.environ.get("CHECK_TIMEOUT", "120"))


def pytest_collectreport(report):
    if report.failed:
        _emit(broken=report.nodeid, text=str(report.longrepr))


def pytest_collection_modifyitems(config, items):
    if os.environ.get("CHECK_LIST"):
        for item in items:
            _emit(found=item.nodeid, serial=item.get_closest_marker("serial") is not None,
                  soak=item.get_closest_marker("soak") is not None, timeout=_limit(item),
                  sanitize=[n for n in ("asan", "tsan") if item.get_closest_marker(n)])
        return
    if os.environ.get("CHECK_NODES"):
        with open(os.environ["CHECK_NODES"], encoding="utf-8") as f:
            want = set(f.read().splitlines())
        items[:] = [i for i in items if i.nodeid in want]


class _Timeout(BaseException):
    """Not an Exception, so that a test's own `except Exception` does not swallow it."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    _emit(start=item.nodeid, timeout=_limit(item))
    item._check = {"result": "passed", "seconds": 0.0, "text": ""}
    yield
    _emit(done=item.nodeid, **item._check)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    limit = _limit(item)

    def too_long(signum, frame):
        raise _Timeout()

    old = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, limit)
    outcome = yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
    if outcome.excinfo and issubclass(outcome.excinfo[0], _Timeout):
        try:
            pytest.fail(f"took longer than {limit:g} s")
        except pytest.fail.Exception as e:
            outcome._excinfo = (type(e), e.with_traceback(outcome.excinfo[2]), outcome.excinfo[2])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    row = item._check
    row["seconds"] += report.duration
    if report.failed:
        row["result"] = "failed"
        parts = [str(report.longrepr)] + [f"--- {name}\n{text}" for name, text in report.sections]
        row["text"] += "\n".join(parts)[-20000:]
    elif report.skipped and row["result"] == "passed":
        row["result"] = "skipped"
        row["text"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
