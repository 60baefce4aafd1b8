#!/bin/bash
# Prints the directory of a Debian root file system with what the managed plugin needs (build_plugin.sh --base); makes it
# as plugin/README.md says the first time, which takes a minute or two. As root.
#
# Environment: PLUGIN_BASE  such a directory that is there already, instead
#              VM_CACHE=/var/cache/docker-graph-driver-tests  where it is kept
set -euo pipefail

# shellcheck source=lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/lib.bash"

cache=${VM_CACHE:-$test_cache}
base=${PLUGIN_BASE:-$cache/plugin-base}

# shellcheck disable=SC2154 # made: of made_once
make_base() {
    local work=${made%/*}
    TYPED_IN=$work typed 'debootstrap --variant=minbase --include=python3-minimal,ceph-common,rbd-nbd,xfsprogs,e2fsprogs,mount bookworm base' &&
        rm -rf "$work"/base/var/cache/apt/archives/*.deb &&
        mv "$work/base" "$made"
}

made_once "$base" 1200 make_base
echo "$base"
