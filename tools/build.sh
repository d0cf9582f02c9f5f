#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# build.sh KIND [DIR] [-- NINJA-TARGET...]: configures (once, or when the settings changed) and builds.
#
# KIND   plain | asan | tsan | clang | cov
# DIR    build, build-asan, build-tsan, build-clang, build-cov unless given
# CI=true turns warnings into errors. JOBS limits the parallel compilers. WERROR=1 does it for one build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=${1:?usage: build.sh KIND [DIR] [-- TARGET...]}
shift
dir=
if [[ $# -gt 0 && $1 != -- ]]; then dir=$1; shift; fi
if [[ $# -gt 0 && $1 == -- ]]; then shift; fi

werror=false
if [[ ${CI:-} == true || ${WERROR:-} == 1 ]]; then werror=true; fi
compiler=gcc
opts=()
case $kind in
    plain) dir=${dir:-build} ;;
    asan)
        dir=${dir:-build-asan} compiler=clang werror=true
        opts+=("-Db_sanitize=address,undefined" "-Dc_args=-fno-sanitize-recover=all -fno-omit-frame-pointer") ;;
    tsan)
        dir=${dir:-build-tsan} compiler=clang
        opts+=(-Db_sanitize=thread "-Dc_args=-fno-omit-frame-pointer") ;;
    clang) dir=${dir:-build-clang} compiler=clang werror=true ;;
    cov) dir=${dir:-build-cov}; opts+=(-Db_coverage=true -Dbuildtype=debug) ;;
    *) echo "build.sh: unknown kind '$kind'" >&2; exit 2 ;;
esac
opts+=("-Dwerror_ci=$werror")
if [[ -n ${PREFIX:-} ]]; then opts+=("-Dprefix=$PREFIX"); fi
[[ $dir == /* ]] || dir=$PWD/$dir

settings="CC=$compiler ${opts[*]}"
stamp=$dir/.byre-settings
if [[ ! -f $dir/build.ninja || ! -f $stamp || $(<"$stamp") != "$settings" ]]; then
    again=()
    if [[ -f $dir/build.ninja ]]; then again=(--reconfigure); fi
    if ! CC=$compiler meson setup "$dir" "${opts[@]}" ${again[@]+"${again[@]}"} >"$dir.log" 2>&1; then
        cat "$dir.log" >&2
        exit 1
    fi
    mv "$dir.log" "$dir/setup.log"
    printf '%s\n' "$settings" >"$stamp"
fi
exec ninja -C "$dir" --quiet "-j${JOBS:-$(nproc)}" "$@"
