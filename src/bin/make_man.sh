#!/bin/sh
# SPDX-License-Identifier: MIT
# make_man.sh BYRE PAGE.1.in PAGE.1 (or .7): fills the parts of a page that come from the option tables.
#   @OPTIONS@     options of the command that the page is named after
#   @IO@          commands of byre io
#   @KEYS-FMT@    creation options of a format
#   @QMP@         commands and events of the control socket
#   @COMMANDS@    list of the commands
set -eu
byre=$1
in=$2
out=$3
command=$(basename "$in" .1.in)
command=${command#byre-}
while IFS= read -r line; do
    case $line in
        @OPTIONS@) "$byre" help --man-options "$command" ;;
        @QMP@) "$byre" help --man-qmp ;;
        @IO@) "$byre" help --man-io ;;
        @KEYS-*@) fmt=${line#@KEYS-} && "$byre" help --man-keys "${fmt%@}" | sed 's/\\/\\e/g; s/^  //; s/-/\\-/g' ;;
        @COMMANDS@) "$byre" help --list | while read -r name text; do printf '.It Xr byre-%s 1\n%s\n' "$name" "$text"; done ;;
        *) printf '%s\n' "$line" ;;
    esac
done <"$in" >"$out.part"
mv "$out.part" "$out"
