# SPDX-License-Identifier: MIT
"""The benchmark itself: that every row runs, that figures come out as they went in, and that a failure shows. No time is judged."""
import json
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from lib import peers, run

BENCH = pathlib.Path(__file__).resolve().parent.parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import harness  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402

FAMILIES = rows.load()
MEASURE = os.path.join(os.environ.get("BYRE_BUILD", str(BENCH.parent / "build")), "bench", "measure")
PARTS = [  # together all of them: in parts, since one test must not take long
    [f for f in FAMILIES if f.startswith("first-writes")] + ["random", "check", "snapshot", "bitmap"],
    ["convert", "compress", "chain", "tables"],
    ["nbd", "open"],
]
PARTS.append([f for f in FAMILIES if not any(f in p for p in PARTS)])


def bench_command(folder, *args):
    return ["/usr/bin/python3", str(BENCH / "run.py"), "--tiny", "--runs", "1", "--dir", str(folder / "d"), "--out", str(folder / "out"),
            "--byre", run.BYRE, "--measure", MEASURE, *args]


def bench(folder, *args):
    return subprocess.run(bench_command(folder, *args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)


@pytest.mark.parametrize("families", PARTS, ids=lambda p: p[0])
@pytest.mark.timeout(240)
def test_every_row_runs(tmp_path, families):
    peers.need("qemu-img", "qemu-nbd", "qemu-io", "fio")
    peers.need_module("nbd")
    done = bench(tmp_path, "--rows", ",".join(families))
    assert done.returncode == 0, done.stdout
    with open(tmp_path / "out" / "report.json", encoding="utf-8") as f:
        got = json.load(f)
    assert {r["family"] for r in got["rows"]} == set(families)
    for r in got["rows"]:
        assert "byre" in r["results"] and len(r["results"]) > 1, r
        for who, v in r["results"].items():
            assert v["min"] <= v["median"] <= v["max"] and v["max"] >= 0 and len(v["runs"]) == 1, (r["row"], who, v)
    assert {"commit", "processor", "cores", "kernel", "peers"} <= set(got["machine"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((plots/[^)]+)\)", text):
        ET.parse(tmp_path / "out" / link)
    assert all(r["row"] in text for r in got["rows"])
    assert os.listdir(tmp_path / "d") in ([], ["measured"]), "what a row makes it takes away"


def test_families_are_explained():
    text = (BENCH / "README.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| ([a-z-]+) \| ", text, re.M)) - {"family", "variable"}
    assert explained == set(FAMILIES)


def two(figures_of):
    """A bench with two contestants whose figures are given, run interleaved."""
    order = []
    b = harness.Bench("/nonexistent", [harness.Tool("byre", "byre", "b"), harness.Tool("other", "qemu", "o")], runs=3)
    b.family = "f"

    def one(tool):
        order.append(tool.name)
        return figures_of[tool.name].pop(0)
    return b, one, order


def test_ratio_and_order():
    b, one, order = two({"byre": [2.0, 9.0, 4.0], "other": [8.0, 2.0, 10.0]})
    b.row("less is better", "s", False, b.vs(one), harness.Scale("p", "x", 3))
    assert order == ["byre", "other", "other", "byre", "byre", "other"]
    r = b.rows[0]["results"]
    assert (r["byre"]["median"], r["byre"]["min"], r["byre"]["max"]) == (4.0, 2.0, 9.0)
    assert r["other"]["byre_ratio"] == 2.0
    b, one, _ = two({"byre": [30, 30, 30], "other": [10, 10, 10]})
    b.row("more is better", "k/s", True, b.vs(one))
    assert b.rows[0]["results"]["other"]["byre_ratio"] == 3.0


def test_a_failure_is_no_figure():
    b, _, _ = two({})

    def one(tool):
        if tool.name == "other":
            raise harness.Fail("it fell over")
        return 1.0
    b.row("r", "s", False, b.vs(one))
    assert b.rows[0]["results"]["other"] == {"failed": 3} and "byre_ratio" not in b.rows[0]["results"]["byre"]
    text = report.markdown({"machine": {"runs": 3}, "rows": b.rows}, FAMILIES)
    assert "failed 3 times" in text


def test_a_program_that_fails_ends_with_an_error(tmp_path):
    broken = tmp_path / "byre"
    broken.write_text("#!/bin/sh\nexit 3\n", encoding="ascii")
    broken.chmod(0o755)
    done = bench(tmp_path, "--rows", "check", "--byre", str(broken))
    assert done.returncode == 1 and "exit 3" in done.stdout, done.stdout


def test_a_relative_folder(tmp_path, monkeypatch):
    peers.need("qemu-img", "qemu-nbd")
    peers.need_module("nbd")
    monkeypatch.chdir(tmp_path)
    done = bench(tmp_path, "--rows", "memory", "--only", "of a server", "--dir", "d")
    assert done.returncode == 0, done.stdout


def test_unknown_row(tmp_path):
    done = bench(tmp_path, "--rows", "no-such")
    assert done.returncode == 1 and "no-such" in done.stdout


def test_budget_names_what_is_left():
    b, one, order = two({"byre": [1.0] * 3, "other": [1.0] * 3})
    b.until = 0.0
    b.row("r", "s", False, b.vs(one))
    assert order == [] and "not_measured" in b.rows[0]
    assert "not measured" in report.markdown({"machine": {"runs": 3}, "rows": b.rows}, FAMILIES)


def test_reports_are_put_together():
    old = [{"family": "f", "row": "a", "results": {"byre": {"median": 1}}}, {"family": "f", "row": "b", "results": {"byre": {"median": 2}}}]
    new = [{"family": "f", "row": "b", "results": {"byre": {"median": 3}}}, {"family": "f", "row": "a", "results": {}, "not_measured": "x"}]
    got = {r["row"]: r["results"]["byre"]["median"] for r in report.merge(old, new)}
    assert got == {"a": 1, "b": 3}


def test_an_interrupted_run_keeps_what_it_has(tmp_path):
    peers.need("qemu-img", "qemu-nbd")
    cmd = bench_command(tmp_path, "--rows", "check", "--runs", "1000")
    p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert "commit" in p.stdout.readline()
    p.terminate()
    p.communicate(timeout=60)
    assert p.returncode == 1 and report.read(str(tmp_path / "out"))["rows"] == []


def test_publish_writes_behind_the_mark_only(tmp_path):
    b, one, _ = two({"byre": [1.0] * 3, "other": [4.0] * 3})
    b.row("r", "s", False, b.vs(one))
    doc = tmp_path / "performance.md"
    doc.write_text("By hand.\n\n" + report.MARK + "\nof last time\n", encoding="utf-8")
    report.publish({"machine": {"runs": 3}, "rows": b.rows}, FAMILIES, str(doc))
    text = doc.read_text(encoding="utf-8")
    assert text.startswith("By hand.\n\n" + report.MARK) and "of last time" not in text and "**4.00x**" in text
    assert all("- " + f in text for f in FAMILIES), "what was not measured is named"
    assert "(performance/f.svg)" in text and (tmp_path / "performance" / "f.svg").exists()
    doc.write_text("no mark", encoding="utf-8")
    with pytest.raises(ValueError):
        report.publish({"machine": {"runs": 3}, "rows": b.rows}, FAMILIES, str(doc))


def test_plots_show_the_figures():
    b, one, _ = two({"byre": [1.0, 1.0, 1.0, 2.0, 2.0, 2.0], "other": [4.0, 4.0, 4.0, 4.0, 4.0, 4.0]})
    b.row("at <1>", "s", False, b.vs(one), harness.Scale("the plot", "depth", 1))
    b.row("at 8", "s", False, b.vs(one), harness.Scale("the plot", "depth", 8))
    plots = plot.all_plots(b.rows)
    assert set(plots) == {"f", "scale-the-plot"}
    words = {n: [t.text for t in ET.fromstring(s).iter("{http://www.w3.org/2000/svg}text")] for n, s in plots.items()}
    assert {"4.00x", "2.00x", "at <1>", "other"} <= set(words["f"])
    assert {"1", "8", "depth", "byre", "other"} <= set(words["scale-the-plot"])


def test_measure_tells_what_a_command_cost(tmp_path):
    out = tmp_path / "m"
    code = "b = bytearray(64 << 20); import sys; sys.exit(7)"
    done = subprocess.run([MEASURE, str(out), "/usr/bin/python3", "-c", code], check=False)
    status, wall, cpu, kib = out.read_text(encoding="ascii").split()
    assert done.returncode == 7 and status == "7"
    assert float(wall) > 0 and float(cpu) >= 0 and 64 << 10 < int(kib) < 160 << 10
    small = subprocess.run([MEASURE, str(out), "/bin/true"], check=False)
    assert small.returncode == 0 and int(out.read_text(encoding="ascii").split()[3]) < 8 << 10, "nothing of the one who started it"
