#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# deps.sh [--list-missing]: installs the packages of tools/packages.txt that this machine lacks.
#
# With everything in place it asks dpkg once and does nothing. Without dpkg it trusts the user and says so.
#
# A line "#unpack PACKAGE" of the list is a package that is not installed, because its installation would change how this
# machine starts: what it depends on that lies in the archive under its name is unpacked into
# ${BYRE_UNPACKED:-${XDG_CACHE_HOME:-~/.cache}/byre/unpacked}/PACKAGE. Failing to is a warning: one test needs it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
list=${BYRE_PACKAGES:-$here/packages.txt}

mapfile -t want < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$list")
if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "deps: not a Debian system; please see that these are installed: ${want[*]}" >&2
    exit 0
fi
declare -A have=()
while read -r status name; do
    if [[ $status == installed ]]; then have[$name]=1; fi
done < <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${want[@]}" 2>/dev/null || true)
missing=()
for name in "${want[@]}"; do
    if [[ -z ${have[$name]:-} ]]; then missing+=("$name"); fi
done

unpacked=${BYRE_UNPACKED:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/byre/unpacked}
not_unpacked=()
while read -r name; do
    if [[ ! -e $unpacked/$name/.complete ]]; then not_unpacked+=("$name"); fi
done < <(sed -n 's/^#unpack[[:space:]]\+\([^[:space:]]\+\).*/\1/p' "$list")
if [[ ${1:-} == --list-missing ]]; then
    printf '%s\n' ${missing[@]+"${missing[@]}"} ${not_unpacked[@]+"${not_unpacked[@]}"}
    exit 0
fi
if ((${#missing[@]} + ${#not_unpacked[@]} == 0)); then exit 0; fi

as_root=()
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null 2>&1; then
        if ((${#missing[@]})); then
            echo "deps: missing: ${missing[*]}" >&2
            echo "deps: not root and no sudo here; as root, run: apt-get install ${missing[*]}" >&2
            exit 1
        fi
    else
        as_root=(sudo)
    fi
fi
install_missing() {
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}"
}
lists_are_there() { compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; }
update_lists() { ${as_root[@]+"${as_root[@]}"} apt-get update -q >&2; }
# Package lists may be absent (a fresh machine) or stale (a package has moved on): refresh them then.
if ((${#missing[@]})); then
    echo "deps: installing ${missing[*]}" >&2
    if ! lists_are_there || ! install_missing >&2; then
        update_lists
        install_missing >&2
    fi
fi

# The file of the package, or of the one that it stands for: linux-image-cloud-amd64 depends on one with a version in its name.
download() {
    local real
    real=$(apt-cache depends --important "$1" | sed -n "s/^ *Depends: \(${1%%-*}-[^ ]*[0-9][^ ]*\)$/\1/p" | head -n 1)
    apt-get download -q "${real:-$1}"
}
unpack() {
    local into=$unpacked/$1 new
    mkdir -p "$unpacked"
    new=$(mktemp -d "$unpacked/.new.XXXXXX") || return
    if (cd "$new" && { { lists_are_there && download "$1"; } || { update_lists && download "$1"; }; } && dpkg-deb -x ./*.deb . && rm ./*.deb && touch .complete) >&2 2>&1 &&
        rm -rf "$into" && mv "$new" "$into"; then
        return 0
    fi
    rm -rf "$new"
    return 1
}
for name in ${not_unpacked[@]+"${not_unpacked[@]}"}; do
    echo "deps: unpacking $name into $unpacked (not installed)" >&2
    unpack "$name" || echo "deps: $name could not be unpacked; the test of a real guest needs it" >&2
done
