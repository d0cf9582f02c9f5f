# SPDX-License-Identifier: MIT
"""Each lint can fail: small trees with one fault each, and a clean one that passes."""
import json
import pathlib
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
LAYERS = "base -\nrt base\nstor base rt\nmeta base rt stor\nlib base rt stor meta\nbin base lib\nsim *\n"
SPDX = "/* SPDX-License-Identifier: MIT */\n"
ORDERING = "| # | rule | obeyed in |\n| Q1 | first | `src/meta/meta.c` |\n"
MUTANTS = '#define ROWS(X) \\\n    X(DROP_FIRST, "Q1", "drops")\n'
BARRIERS = SPDX + '#define META_BARRIER_ROWS(X) \\\n    X(FIRST, "Q1", "a") \\\n    X(SECOND, "Q1 Q2", "b")\n'
MODULE = "/* SPDX-License-Identifier: MIT\n *\n * x.c: x.\n *\n * Purpose     a\n * Invariants  %s\n * Order       None.\n * Tests       %s\n */\n"


def tree(root, **changes):
    """A clean little project; keyword arguments are not paths, so changes come as a dict in `files`."""
    content = {
        "LAYERS": LAYERS,
        "src/base/err.h": SPDX + "int err_set(int x);\n",
        "src/rt/co.h": SPDX + '#include "base/err.h"\n',
        "src/rt/co.c": SPDX + '#include "rt/co.h"\nint co_go(void)\n{\n    return 0;\n}\n',
        "src/meta/meta.c": SPDX + '#include "rt/co.h"\nint stor_flush(int);\nint m(void)\n{\n    return stor_flush(1);\n}\n',
        "include/byre/error.h": SPDX,
        "README.md": "# Title\n\nSee [here](#title) and `src/rt/co.c`.\n",
    }
    content.update(changes.get("files", {}))
    for path, text in content.items():
        if text is None:
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def lint(name, root):
    done = subprocess.run(["/usr/bin/python3", "-B", str(TOP / "tools/lint" / f"{name}.py"), "--root", str(root)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", ["layers", "banned", "funclen", "spdx", "words", "doclinks", "refs", "shared"])
def test_clean_tree_passes(tmp_path, name):
    code, text = lint(name, tree(tmp_path))
    assert code == 0, text


FAULTS = {
    "layers-upward": ("layers", {"src/rt/up.c": SPDX + '#include "meta/meta.h"\n', "src/meta/meta.h": SPDX}, "layer 'rt' may not use 'meta'"),
    "layers-public": ("layers", {"src/meta/x.c": SPDX + '#include "byre/image.h"\n', "include/byre/image.h": SPDX}, "may not use 'lib'"),
    "layers-unlisted": ("layers", {"src/odd/x.c": SPDX}, "folder src/odd is not listed"),
    "layers-order": ("layers", {"LAYERS": "base rt\nrt base\nstor -\nmeta rt\nlib -\nbin -\n"}, "not listed before it"),
    "layers-private": ("layers", {"src/meta/x.c": SPDX + '#include "rt/co_priv.h"\n', "src/rt/co_priv.h": SPDX}, "is private to src/rt"),
    "layers-missing": ("layers", {"src/meta/x.c": SPDX + '#include "rt/none.h"\n'}, "does not exist"),
    "layers-cycle": ("layers", {"src/rt/a.h": SPDX + '#include "rt/b.h"\n', "src/rt/b.h": SPDX + '#include "rt/a.h"\n'}, "include cycle"),
    "layers-pure": ("layers", {"src/base/t.c": SPDX + "#include <pthread.h>\n"}, "no I/O, threads, clock"),
    "layers-sim-in-product": ("layers", {"src/meta/x.c": SPDX + '#include "sim/sim.h"\n', "src/sim/sim.h": SPDX}, "may not use 'sim'"),
    "layers-example": ("layers", {"examples/x.c": SPDX + '#include "rt/co.h"\n'}, "public headers only"),
    "banned-strcpy": ("banned", {"src/bin/x.c": SPDX + "void f(char *a, char *b)\n{\n    strcpy(a, b);\n}\n"}, "strcpy: "),
    "banned-alloca": ("banned", {"tests/x.c": SPDX + "void *f(void)\n{\n    return alloca(3);\n}\n"}, "alloca: "),
    "banned-assert": ("banned", {"src/rt/x.c": SPDX + "#include <assert.h>\n"}, "use base/assert.h"),
    "banned-print": ("banned", {"src/stor/x.c": SPDX + 'void f(void)\n{\n    printf("x");\n}\n'}, "libraries never print"),
    "banned-stderr": ("banned", {"src/stor/x.c": SPDX + 'void f(void)\n{\n    fputs("x", stderr);\n}\n'}, "libraries never print"),
    "banned-exit": ("banned", {"src/stor/x.c": SPDX + "void f(void)\n{\n    exit (1);\n}\n"}, "never end the process"),
    "banned-flush": ("banned", {"src/graph/x.c": SPDX + "int f(void)\n{\n    return stor_flush(1);\n}\n"}, "issues barriers"),
    "banned-flush-copy": ("banned", {"src/copy/x.c": SPDX + "int f(void)\n{\n    return stor_flush(1);\n}\n"}, "issues barriers"),
    "banned-unused-exception": ("banned", {"tools/lint/allow.txt": "banned src/rt/co.c:exit because\n"}, "no longer needed"),
    "banned-no-reason": ("banned", {"tools/lint/allow.txt": "banned src/rt/co.c:exit\n"}, "needs a reason"),
    "funclen-long": ("funclen", {"src/rt/x.c": SPDX + "int f(void)\n{\n" + "    g();\n" * 140 + "}\n"}, "f has 142 lines"),
    "funclen-file": ("funclen", {"src/rt/x.c": SPDX + "int a;\n" * 1501}, "a file may have"),
    "spdx-none": ("spdx", {"src/rt/x.c": "int a;\n"}, "no SPDX"),
    "spdx-other": ("spdx", {"tools/x.py": "# SPDX-License-Identifier: " + "GPL-2.0-only\n"}, "byre is MIT"),
    "spdx-script": ("spdx", {"tools/run": "#!/bin/sh\n"}, "no SPDX"),
    "shared-folder": ("shared", {"src/rt/x_test.c": SPDX + 'int f(void)\n{\n    return open("/tmp/x", 0);\n}\n'}, "a name that every run has"),
    "shared-made": ("shared", {"tests/a/x_test.py": "def f(n):\n    open('x')\n    return \"/dev/shm/x\"\n"}, "a name that every run has"),
    "shared-port": ("shared", {"tests/a/x_test.py": 'def f(s):\n    s.bind(("127.0.0.1", 10809))\n'}, "port 10809"),
    "shared-here": ("shared", {"src/rt/x_test.c": SPDX + 'int f(void)\n{\n    return mkdir("sub", 0700);\n}\n'}, "a folder of its own"),
    "words-path": ("words", {"docs/x.md": "see /" + "work/main/src\n"}, "a path of one machine"),
    "words-helper": ("words", {"src/rt/x.c": SPDX + "/* left to the sub" + "agent */\n"}, "how the work was organised"),
    "words-host": ("words", {"tools/x.sh": "curl https://pypi-pro" + "xy.example.com/simple\n"}, "a host of one place"),
    "doclinks-file": ("doclinks", {"docs/x.md": "[a](../src/none.c)\n"}, "no such file"),
    "doclinks-anchor": ("doclinks", {"docs/x.md": "[a](../README.md#none)\n"}, "no such heading"),
    "refs-file": ("refs", {"src/rt/x.c": SPDX + "/* see gone.c */\n"}, "'gone.c' does not exist"),
    "refs-folder": ("refs", {"src/rt/x.c": SPDX + "/* see meta/co.c */\n"}, "'meta/co.c' does not exist"),
    "refs-function": ("refs", {"src/rt/x.c": SPDX + "/* waits like co_gone() */\n"}, "'co_gone' occurs in no code"),
    "refs-tests": ("refs", {"src/rt/x.c": MODULE % ("", "all of them")}, "names no test that exists"),
    "refs-tests-file": ("refs", {"src/rt/x.c": MODULE % ("", "co.c")}, "names no test that exists"),
    "refs-document": ("refs", {"ARCHITECTURE.md": "It is in `gone.c`.\n"}, "'gone.c' does not exist"),
    "refs-rule": ("refs", {"docs/internals/ordering.md": ORDERING, "src/meta/x.c": SPDX + "/* Q7 */\n"}, "Q7 is not in"),
    "refs-rule-of-qed": ("refs", {"docs/internals/ordering.md": ORDERING + "| E1 | first | `src/meta/meta.c` |\n",
                                  "src/meta/x.c": SPDX + "/* as E5. */\n"}, "E5 is not in"),
    "refs-rule-of-qed-not-quoted": ("refs", {"docs/internals/ordering.md": ORDERING.replace("meta.c", "co.c").replace("meta/", "rt/").replace("Q1", "E1")},
                                    "does not quote E1"),
    "refs-invariant-of-qed": ("refs", {"src/rt/x.c": MODULE % ("E3  a", "tests/rt")}, "numbers of the whole project"),
    "refs-rule-not-quoted": ("refs", {"docs/internals/ordering.md": ORDERING.replace("meta.c", "co.c").replace("meta/", "rt/")}, "does not quote Q1"),
    "refs-goal": ("refs", {"docs/internals/goals.md": "| RG1 | a |\n", "src/rt/x.c": SPDX + "/* RG9 */\n"}, "RG9 is not in"),
    "refs-decision": ("refs", {"ARCHITECTURE.md": "- **D1 A.** b\n", "src/rt/x.c": SPDX + "/* DESIGN D2 */\n"}, "DESIGN names no decision"),
    "refs-no-decision": ("refs", {"src/rt/x.c": SPDX + "/* DESIGN 2.1 */\n"}, "DESIGN names no decision"),
    "refs-absent-document": ("refs", {"src/rt/x.c": SPDX + "/* RELIA" + "BILITY 3.1 */\n"}, "is no document of this tree"),
    "refs-style": ("refs", {"src/rt/x.c": SPDX + "/* STYLE A" + ".3 */\n"}, "no numbered sections"),
    "refs-mutant": ("refs", {"src/base/mutant.h": SPDX + MUTANTS, "src/rt/x.c": SPDX + "/* mutant DROP_NONE */\n"}, "no mutant DROP_NONE"),
    "refs-mutants": ("refs", {"src/base/mutant.h": SPDX + MUTANTS, "src/rt/x.c": SPDX + "/* MUT_KEEP_* */\n"}, "no mutant KEEP_*"),
    "refs-barrier-rule": ("refs", {"docs/internals/ordering.md": "## Barriers\n\n| `FIRST` | pass | Q1 |\n| `SECOND` | pass | Q1 |\n", "src/meta/meta.h": BARRIERS},
                          "says that `SECOND` serves Q1 Q2"),
    "refs-barrier-lacking": ("refs", {"docs/internals/ordering.md": "## Barriers\n\n| `FIRST` | pass | Q1 |\n", "src/meta/meta.h": BARRIERS}, "lacks SECOND"),
    "refs-barrier-gone": ("refs", {"docs/internals/ordering.md": "## Barriers\n\n| `FIRST`, `SECOND` | pass | Q1, Q2 |\n| `THIRD` | pass | Q1 |\n",
                                   "src/meta/meta.h": BARRIERS}, "no barrier THIRD"),
    "refs-barrier-mutant": ("refs", {"src/meta/meta.h": BARRIERS, "docs/internals/ordering.md": "## Barriers\n\n| `FIRST`, `SECOND` | pass | Q1, Q2 |\n",
                                     "src/base/mutant.h": SPDX + MUTANTS, "src/rt/x.c": SPDX + "/* mutant BARRIER_THIRD */\n"}, "no mutant BARRIER_THIRD"),
    "refs-invariant": ("refs", {"src/rt/x.c": MODULE % ("I1  a", "co_test.c"), "src/rt/y.c": SPDX + "/* I1 */\n"}, "I1 is defined neither here"),
    "refs-invariant-letter": ("refs", {"src/rt/x.c": MODULE % ("U3  a", "co_test.c"), "src/rt/y.c": SPDX + "/* as ever (U3) */\n"}, "U3 is defined neither here"),
    "refs-lock": ("refs", {"docs/internals/concurrency.md": "| 1 | `one_mx`, `src/rt/co.c` | a |\n", "src/meta/x.h": SPDX + "struct x { struct co_mutex one_mx; };\n"},
                  "the lock 'one_mx' of src/meta/x.h has no row"),
    "refs-invariant-twice": ("refs", {"src/rt/x.c": MODULE % ("I1  a\n *             I1  b", "tests/rt")}, "defines I1 twice"),
    "refs-invariant-global": ("refs", {"src/rt/x.c": MODULE % ("D3  a", "tests/rt")}, "numbers of the whole project"),
    "doclinks-named": ("doclinks", {"docs/x.md": "Look at `src/rt/gone.c`.\n"}, "'src/rt/gone.c' does not exist"),
}


@pytest.mark.parametrize("case", sorted(FAULTS))
def test_fault_is_found(tmp_path, case):
    name, files, expected = FAULTS[case]
    code, text = lint(name, tree(tmp_path, files=files))
    assert code == 1, text
    assert expected in text


@pytest.mark.parametrize("text", [
    '/* strcpy(a, b); */\n', '// exit(1);\n', 'const char *s = "printf(";\n', "int my_exit(int);\n",
    "void f(struct x *p)\n{\n    p->exit(1);\n}\n", 'void f(FILE *memory)\n{\n    fprintf(memory, "x");\n}\n'])
def test_banned_ignores_what_is_no_call(tmp_path, text):
    code, out = lint("banned", tree(tmp_path, files={"src/stor/x.c": SPDX + text}))
    assert code == 0, out


def test_exception_is_honoured(tmp_path):
    files = {"src/rt/x.c": SPDX + "int f(void)\n{\n    exit(1);\n}\n", "tools/lint/allow.txt": "banned src/rt/x.c:exit it must\n"}
    code, out = lint("banned", tree(tmp_path, files=files))
    assert code == 0, out


def test_tests_may_include_sim(tmp_path):
    files = {"src/meta/meta_test.c": SPDX + '#include "sim/sim.h"\n', "src/sim/sim.h": SPDX}
    code, out = lint("layers", tree(tmp_path, files=files))
    assert code == 0, out


@pytest.mark.parametrize("text", [
    '/* cmd_NAME.c, *_ondisk.h, <sys/stat.h>, err.h, rt/co.c, ../base/err.h, co_go(), co_* */\n',
    'const char *s = "see gone.c, co_gone()";\n', "/* MUT_DROP_FIRST, the mutants MUT_DROP_*, Q1, DESIGN D1, I2 of co.c, co.c I2, U3 of co.c, the L1 table, [IPV6] */\n",
    MODULE % ("I1  a", "tests/rt, co_test.c") + "/* I1 */\n", MODULE % ("I1 a; I2 b", "crash explorer") + "/* I2 */\n"])
def test_refs_that_are_right(tmp_path, text):
    files = {"src/rt/x.c": text if text.startswith("/* SPDX") else SPDX + text, "src/base/mutant.h": SPDX + MUTANTS,
             "docs/internals/ordering.md": ORDERING, "ARCHITECTURE.md": "- **D1 A.** b\n", "src/rt/co_test.c": SPDX,
             "src/meta/meta.c": SPDX + "/* Q1 */\n"}
    code, out = lint("refs", tree(tmp_path, files=files))
    assert code == 0, out


def test_function_lengths_are_counted_right(tmp_path):
    body = ("struct s { int a; };\nstatic const int t[] = {\n" + "    1,\n" * 200 + "};\n"
            "#define M(x) do { \\\n" + "    f(x); \\\n" * 200 + "} while (0)\n"
            "extern \"C\" {\n__attribute__((noinline)) int g(int a, int (*cb)(void))\n{\n" + "    f();\n" * 100 + "}\n}\n")
    code, out = lint("funclen", tree(tmp_path, files={"src/rt/x.c": SPDX + body}))
    assert code == 0 and "g has 102 lines" in out and out.count("has ") == 1, out


HEAD = "/* x.c\n *\n * Purpose  a\n * Owns  a\n * Invariants  a\n * Concurrency  b\n * Failure  c\n%s */\n"


@pytest.mark.parametrize("text, sources, expected", [
    (HEAD % " * Tests  d\n", ["src/rt/x.c"], None), (HEAD % "", ["src/rt/x.c"], "lacks Tests"),
    ("int a;\n" + HEAD % "", ["src/rt/x.c"], "lacks Purpose"),
    ((HEAD % " * Tests  d\n").replace(" * Invariants  a\n", ""), ["src/rt/x.c"], "lacks Invariants"), (HEAD % " * Tests  d\n", [], "no target")])
def test_shape(tmp_path, text, sources, expected):
    (tmp_path / "src/rt").mkdir(parents=True)
    (tmp_path / "src/rt/x.c").write_text(text)
    (tmp_path / "build/meson-info").mkdir(parents=True)
    targets = [{"target_sources": [{"sources": [str(tmp_path / s) for s in sources]}]}]
    (tmp_path / "build/meson-info/intro-targets.json").write_text(json.dumps(targets))
    done = subprocess.run(["/usr/bin/python3", "-B", str(TOP / "tools/lint/shape.py"), "--root", str(tmp_path), "--build",
                           str(tmp_path / "build")], stdout=subprocess.PIPE, text=True)
    assert (done.returncode == 1 and expected in done.stdout) if expected else done.returncode == 0, done.stdout


@pytest.mark.parametrize("head, lines, found", [("/* x.h */\n", 120, True), ("/* x.h\n *\n * Concurrency  any loop\n */\n", 120, False), ("/* x.h */\n", 60, False)])
def test_long_header_says_which_loop(tmp_path, head, lines, found):
    code, out = lint("shape", tree(tmp_path, files={"src/rt/x.h": head + "int co_wait(struct co *co);\n" * lines, "src/rt/co.c": None, "src/meta/meta.c": None}))
    assert ("does not say on which loop" in out) == found == bool(code), out


def build_archive(root, layer, text):
    folder = root / "build/src" / layer
    folder.mkdir(parents=True)
    (folder / "x.c").write_text(text)
    subprocess.run(["gcc", "-c", "x.c", "-o", "x.o"], cwd=folder, check=True)
    subprocess.run(["ar", "rcs", f"lib{layer}.a", "x.o"], cwd=folder, check=True)


@pytest.mark.parametrize("rt, expected", [
    ("int co_go(void) { return 0; }", None),
    ("int meta_x(void); int co_go(void) { return meta_x(); }", "needs 'meta_x' of layer meta"),
    ("int co_go(void) { static int n; return n++; }", "mutable global"),
    ("int table = 3;", "mutable global 'table'"),
    ("__attribute__((visibility(\"hidden\"))) int table;", "mutable global 'table'"),
    ("int co_go(void); static int (*const t[])(void) = { co_go }; int co_go(void) { return t[0] != 0; }", None)])
def test_symbols(tmp_path, rt, expected):
    tree(tmp_path)
    build_archive(tmp_path, "rt", rt)
    build_archive(tmp_path, "meta", "int co_go(void); int meta_x(void) { return co_go(); }")
    code, out = lint("symbols", tmp_path)
    assert (code == 1 and expected in out) if expected else code == 0, out


def test_upward_call_does_not_link(tmp_path):
    """The rule behind tests/lint/meson.build, with the linker alone."""
    build_archive(tmp_path, "rt", "int meta_x(void); int co_go(void) { return meta_x(); }")
    build_archive(tmp_path, "base", "int b(void) { return 0; }")
    done = subprocess.run(["gcc", str(TOP / "tests/lint/empty_main.c"), "-o", str(tmp_path / "x"), "-Wl,--whole-archive",
                           str(tmp_path / "build/src/rt/librt.a"), "-Wl,--no-whole-archive",
                           str(tmp_path / "build/src/base/libbase.a")], stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0 and "undefined reference to `meta_x'" in done.stderr
