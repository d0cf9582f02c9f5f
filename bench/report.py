# SPDX-License-Identifier: MIT
"""report.py: what a run leaves behind: report.json, report.md and plots, and how runs are put together."""
import json
import os
import platform
import re
import shutil
import subprocess

import plot
from harness import PLAIN, run, version_of


def first(pattern, path):
    try:
        with open(path) as f:
            found = re.search(pattern, f.read())
    except OSError:
        found = None
    return found.group(1).strip() if found else "?"


def machine(bench, root):
    """What a figure depends on. No name of the machine and no path of it."""
    git = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    dirty = subprocess.run(["git", "-C", root, "status", "--porcelain", "-uno"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    peers = [t.name for t in bench.tools[1:]] + ["%s %s" % (p, version_of([p, "--version"])) for p in ("nbdkit", "fio") if shutil.which(p)]
    return {"commit": (git or "?") + ("+" if dirty else ""), "processor": first(r"model name\s*:\s*(.*)", "/proc/cpuinfo"), "cores": os.cpu_count(),
            "memory": "%d GiB" % round(int(first(r"MemTotal:\s*(\d+)", "/proc/meminfo")) / (1 << 20)), "kernel": platform.release().split("-")[0],
            "file system": run(["stat", "-f", "-c", "%T", bench.dir]).strip(), "compiler": "gcc " + version_of(["gcc", "-dumpfullversion"]),
            "peers": ", ".join(peers), "runs": bench.n, "seconds of a server row": bench.seconds}


def merge(old, new):
    """Rows of an earlier run that were not measured again stay, at their place; each tells of which commit it is."""
    rows = {(r["family"], r["row"]): r for r in old}
    for r in new:
        key = (r["family"], r["row"])
        if "not_measured" not in r or key not in rows:
            rows[key] = r
    return list(rows.values())


def more_of(r):
    """Further figures of a contestant, without those that have a column."""
    return ", ".join("%s %.3g" % (k.replace("_", " "), v) for k, v in r.items() if k not in PLAIN + ("cpu_s_per_M", "peak_MiB"))


def cell(r, key, form="%.3g"):
    return form % r[key] if key in r else ""


def number(x):
    return "%.3g" % x if abs(x) < 100 else "%.0f" % x


def lines_of(res):
    if "not_measured" in res:
        yield "| %s | | not measured: %s | | | | | | | |" % (res["row"], res["not_measured"])
        return
    for i, (c, r) in enumerate(res["results"].items()):
        name = res["row"] + (" †" if res.get("note") else "") if i == 0 else ""
        if "median" not in r:
            yield "| %s | %s | failed %d times | | | | | | | |" % (name, c, r["failed"])
            continue
        ratio = "**%.2fx**" % r["byre_ratio"] if "byre_ratio" in r else ""
        yield "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |" % (
            name, c, number(r["median"]), number(r["min"]), number(r["max"]), res["unit"], ratio, cell(r, "cpu_s_per_M"), cell(r, "peak_MiB"), more_of(r))


def section(name, mine, families, plots):
    """One family: what it is, its plots, its table."""
    out = ["## %s" % name, "", (families[name][1][0].upper() + families[name][1][1:] + ".") if name in families else "", ""]
    if any(plot.ratios(r) for r in mine):
        out += ["![ratios of %s](%s/%s.svg)" % (name, plots, name), ""]
    for s in dict.fromkeys(r["scale"]["plot"] for r in mine if "scale" in r):
        if len(plot.points(mine, s)) > 1:
            out += ["![%s](%s/scale-%s.svg)" % (s, plots, plot.slug(s)), ""]
    out += ["| row | who | median | min | max | unit | byre is | CPU | MiB | more |", "|---|---|---:|---:|---:|---|---:|---:|---:|---|"]
    for r in mine:
        out += lines_of(r)
    return out + [""]


def body(report, families, plots):
    m = report["machine"]
    out = ["; ".join("%s: %s" % kv for kv in m.items()) + ".", "",
           "\"byre is\" is byre's ratio to that contestant by the medians: above 1, byre is better. CPU: processor seconds per million requests, of the server",
           "alone where there is one. MiB: peak memory of the same process. A value is the median of %d interleaved runs." % m["runs"], ""]
    notes = sorted({r["note"] for r in report["rows"] if r.get("note")})
    out += [*("† " + n for n in notes), ""] if notes else []
    measured = {r["family"] for r in report["rows"] if "not_measured" not in r}
    for name in dict.fromkeys(r["family"] for r in report["rows"]):
        out += section(name, [r for r in report["rows"] if r["family"] == name], families, plots)
    missing = [n for n in families if n not in measured]
    if missing:
        out += ["## Not measured in this run", ""] + ["- %s: %s" % (n, families[n][1]) for n in missing] + [""]
    return "\n".join(out)


def markdown(report, families):
    return "# Benchmark\n\n" + body(report, families, "plots")


MARK = "<!-- What follows is written by bench/run.py --publish. -->"


def publish(report, families, path):
    """The figures into a document, behind its mark; what stands before is written by people. Plots lie in a folder of its name."""
    with open(path) as f:
        text = f.read()
    if MARK not in text:
        raise ValueError("%s: the line '%s' is missing" % (path, MARK))
    folder = os.path.splitext(path)[0]
    write_plots(report, folder)
    with open(path, "w") as f:
        f.write(text[:text.index(MARK)] + MARK + "\n\n" + body(report, families, os.path.basename(folder)))


def write_plots(report, folder):
    os.makedirs(folder, exist_ok=True)
    for old in os.listdir(folder):
        if old.endswith(".svg"):
            os.unlink(os.path.join(folder, old))
    for name, svg in plot.all_plots(report["rows"]).items():
        with open(os.path.join(folder, name + ".svg"), "w") as f:
            f.write(svg)


def write(report, families, out_dir):
    os.makedirs(out_dir, exist_ok=True)
    write_plots(report, os.path.join(out_dir, "plots"))
    with open(os.path.join(out_dir, "report.json"), "w") as f:
        json.dump(report, f, indent=1)
        f.write("\n")
    with open(os.path.join(out_dir, "report.md"), "w") as f:
        f.write(markdown(report, families))


def read(out_dir):
    path = os.path.join(out_dir, "report.json")
    if not os.path.exists(path):
        return {"rows": []}
    with open(path) as f:
        return json.load(f)
