# SPDX-License-Identifier: MIT
"""rows: the families of rows, one module each or a few that belong together.

    from rows import family

    @family("chain", "what it measures, in one sentence")
    def chain(b):                       # b: harness.Bench
        ...
        b.row("name of the row", "unit", higher_is_better, b.vs(lambda tool: figure))

A module in this folder is found by itself. bench/README.md says what each family means; a test sees to it.
"""
import importlib
import pkgutil

FAMILIES = {}           # name -> (function, one sentence)


def family(name, what):
    def add(fn):
        if name in FAMILIES:
            raise ValueError("two families are called %s" % name)
        FAMILIES[name] = (fn, what)
        return fn
    return add


def load():
    for m in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        importlib.import_module("rows." + m.name)
    return FAMILIES
