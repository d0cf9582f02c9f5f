# SPDX-License-Identifier: MIT
"""plot.py: two kinds of SVG, drawn by hand: bars of ratios, and figures over depth, threads, chain length or size.

Nothing but text is made here, so a test can read it again. Colours hold on white and on dark ground.
"""
import html
import math
import re

COLOURS = ["#2a7fb8", "#d9822b", "#7a5fa8", "#3f9b5a", "#b0455f", "#7d7d7d"]
TEXT = "#8a8a8a"
FONT = 'font-family="sans-serif" font-size="11"'


def slug(s):
    return re.sub(r"[^a-z0-9]+", "-", s.lower()).strip("-")


def ratios(row):
    """(contestant, byre's ratio to it) of a row."""
    return [(c, r["byre_ratio"]) for c, r in row.get("results", {}).items() if "byre_ratio" in r]


def text(x, y, s, anchor="start", fill=TEXT, more=""):
    return '<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" %s %s>%s</text>' % (x, y, anchor, fill, FONT, more, html.escape(s))


def line(x1, y1, x2, y2, colour=TEXT, width=1, dash=""):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%g"%s/>' % (
        x1, y1, x2, y2, colour, width, ' stroke-dasharray="%s"' % dash if dash else "")


def svg(w, h, parts):
    return '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">\n%s\n</svg>\n' % (w, h, w, h, "\n".join(parts))


def legend(names, colour, x, y):
    parts = []
    for n in names:
        parts.append('<rect x="%d" y="%d" width="10" height="10" fill="%s"/>' % (x, y - 9, colour[n]))
        parts.append(text(x + 14, y, n))
        x += 30 + 7 * len(n)
    return parts


def bars(title, rows):
    """One bar for each ratio, on a logarithmic scale around 1: to the right byre is better."""
    who = list(dict.fromkeys(c for r in rows for c, _ in ratios(r)))
    colour = {c: COLOURS[i % len(COLOURS)] for i, c in enumerate(who)}
    span = max([1.0] + [abs(math.log2(x)) for r in rows for _, x in ratios(r)])
    span = min(math.ceil(span), 10)
    left, width, y = 440, 420, 50
    at = lambda x: left + width * (max(-span, min(span, math.log2(x))) + span) / (2 * span)     # noqa: E731
    parts = [text(10, 18, title, more='font-weight="bold"')] + legend(who, colour, 10, 36)
    body = []
    for r in rows:
        body.append(text(left - 8, y + 9 + 6 * (len(ratios(r)) - 1), r["row"], "end"))
        for c, x in ratios(r):
            lo, hi = sorted((at(1), at(x)))
            body.append('<rect x="%.1f" y="%d" width="%.1f" height="10" fill="%s"/>' % (lo, y, max(hi - lo, 1), colour[c]))
            body.append(text(hi + 4, y + 9, "%.2fx" % x))
            y += 12
        y += 8
    step = max(1, span // 4)
    for k in range(-span, span + 1, step):
        parts.append(line(at(2.0 ** k), 44, at(2.0 ** k), y, width=1.5 if k == 0 else 0.5, dash="" if k == 0 else "2 3"))
        parts.append(text(at(2.0 ** k), y + 14, "%gx" % 2.0 ** k, "middle"))
    return svg(left + width + 60, y + 24, parts + body)


def points(rows, plot):
    """{x: row} of the rows that belong to a plot and were measured."""
    return {r["scale"]["x"]: r for r in rows if r.get("scale", {}).get("plot") == plot and any("median" in v for v in r["results"].values())}


def nice_top(v):
    """The next of 1, 2, 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(v)) if v > 0 else 1.0
    return next(k * unit for k in (1, 2, 5, 10) if k * unit >= v)


def scale(title, by_x):
    xs = sorted(by_x)
    any_row = by_x[xs[0]]
    who = list(dict.fromkeys(c for x in xs for c in by_x[x]["results"]))
    colour = {c: COLOURS[i % len(COLOURS)] for i, c in enumerate(who)}
    got = {c: [(x, by_x[x]["results"][c]) for x in xs if "median" in by_x[x]["results"].get(c, {})] for c in who}
    top = nice_top(max(r["max"] for v in got.values() for _, r in v))
    left, width, height, head = 60, 420, 220, 50
    px = lambda x: left + (width * xs.index(x) / (len(xs) - 1) if len(xs) > 1 else 0)       # noqa: E731
    py = lambda v: head + height * (1 - v / top)                                            # noqa: E731
    parts = [text(10, 18, "%s (%s, %s is better)" % (title, any_row["unit"], "more" if any_row["higher_is_better"] else "less"), more='font-weight="bold"')]
    parts += legend(who, colour, 10, 36)
    for i in range(5):
        v = top * i / 4
        parts += [line(left, py(v), left + width, py(v), width=0.5, dash="2 3"), text(left - 6, py(v) + 4, "%.4g" % v, "end")]
    for x in xs:
        parts.append(text(px(x), head + height + 16, "%g" % x, "middle"))
    parts.append(text(left + width / 2, head + height + 32, any_row["scale"]["axis"], "middle"))
    for c, pts in got.items():
        parts.append('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (colour[c], " ".join("%.1f,%.1f" % (px(x), py(r["median"])) for x, r in pts)))
        for x, r in pts:
            parts.append('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (px(x), py(r["median"]), colour[c]))
            parts.append(line(px(x), py(r["min"]), px(x), py(r["max"]), colour[c]))
    return svg(left + width + 40, head + height + 44, parts)


def all_plots(rows):
    """{file name without .svg: text}"""
    out = {}
    for f in dict.fromkeys(r["family"] for r in rows):
        mine = [r for r in rows if r["family"] == f and ratios(r)]
        if mine:
            out[f] = bars("%s: byre against the others" % f, mine)
    for s in dict.fromkeys(r["scale"]["plot"] for r in rows if "scale" in r):
        by_x = points(rows, s)
        if len(by_x) > 1:
            out["scale-" + slug(s)] = scale(s, by_x)
    return out
