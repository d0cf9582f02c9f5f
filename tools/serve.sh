#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# serve.sh [IMAGE]: serves IMAGE with build/byre, or a demo disk (demo/disk.qcow2) when no image is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=${1:-}
if [[ -z $image ]]; then
    image=demo/disk.qcow2
    if [[ ! -e $image ]]; then
        mkdir -p demo
        build/byre create -f qcow2 "$image" 1G
    fi
fi
exec build/byre serve "$image"
