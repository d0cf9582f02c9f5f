# SPDX-License-Identifier: MIT
"""The public headers compile alone, in strict C and in C++, without a warning."""
import shutil

import pytest

from lib import peers, run

HEADERS = sorted(p.name for p in (run.TOP / "include/byre").glob("*.h"))
C = ["-std=c99", "-std=c11", "-std=gnu17"]
CXX = ["-std=c++11", "-std=c++20"]
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]

USE = """
int main(void)
{
    struct byre_ctx_opts a = byre_ctx_opts_init();
    struct byre_open_opts b = byre_open_opts_init();
    struct byre_queue_opts c = byre_queue_opts_init();
    struct byre_convert_opts d = byre_convert_opts_init();
    struct byre_create_opts e = byre_create_opts_init();
    struct byre_check_opts f = byre_check_opts_init();
    struct byre_nbd_opts g = byre_nbd_opts_init();
    struct byre_extent h = byre_extent_init();
    struct byre_amend_opts i = byre_amend_opts_init();
    struct byre_snapshot_opts j = byre_snapshot_opts_init();
    struct byre_snapshot_pick k = byre_snapshot_pick_init();
    return i.struct_size && j.struct_size && k.struct_size && a.struct_size && b.struct_size && c.struct_size && d.struct_size && e.struct_size && f.struct_size && g.struct_size && h.struct_size &&
           BYRE_VERSION_MAJOR >= 0 ? 0 : 1;
}
"""


def compile_text(tmp_path, compiler, standard, text, suffix):
    peers.need(compiler)
    source = tmp_path / f"t{suffix}"
    source.write_text(text)
    run.run(compiler, standard, *STRICT, "-I", run.TOP / "include", source)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", C)
def test_c(tmp_path, compiler, standard):
    for header in HEADERS:
        compile_text(tmp_path, compiler, standard, f"#include <byre/{header}>\n#include <byre/{header}>\nint unused;\n", ".c")
    compile_text(tmp_path, compiler, standard, "#include <byre/byre.h>\n" + USE, ".c")


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("standard", CXX)
def test_cxx(tmp_path, compiler, standard):
    if not shutil.which(compiler):
        peers.missing(compiler)
    for header in HEADERS:
        compile_text(tmp_path, compiler, standard, f"#include <byre/{header}>\n#include <byre/{header}>\nint unused;\n", ".cc")
    compile_text(tmp_path, compiler, standard, "#include <byre/byre.h>\n" + USE, ".cc")
