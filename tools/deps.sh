#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# deps.sh [--list-missing]: installs the packages of tools/packages.txt that this machine lacks.
#
# With everything in place it asks dpkg once and does nothing. Without dpkg it trusts the user and says so.
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
if [[ ${1:-} == --list-missing ]]; then
    printf '%s\n' ${missing[@]+"${missing[@]}"}
    exit 0
fi
if ((${#missing[@]} == 0)); then exit 0; fi

as_root=()
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "deps: missing: ${missing[*]}" >&2
        echo "deps: not root and no sudo here; as root, run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
install_missing() {
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}"
}
echo "deps: installing ${missing[*]}" >&2
# Package lists may be absent (a fresh machine) or stale (a package has moved on): refresh them then.
if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || ! install_missing >&2; then
    ${as_root[@]+"${as_root[@]}"} apt-get update -q >&2
    install_missing >&2
fi
