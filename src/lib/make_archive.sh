#!/bin/sh
# SPDX-License-Identifier: MIT
# make_archive.sh OUT MAP ARCHIVE...: one archive out of several, with every symbol local that MAP does not name.
set -eu
out=$1
map=$2
shift 2
work=$(mktemp -d "${TMPDIR:-/tmp}/byre-ar.XXXXXX")
trap 'rm -rf "$work"' EXIT
sed -n 's/^ *\(byre_[a-z0-9_]*\);$/\1/p' "$map" >"$work/names"
ld -r -o "$work/libbyre.o" --whole-archive "$@"
objcopy --keep-global-symbols="$work/names" "$work/libbyre.o"
rm -f "$out"
ar rcs "$out" "$work/libbyre.o"
