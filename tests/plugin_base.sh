#!/bin/bash
# Prints the directory of a Debian root file system with what the managed plugin needs (build_plugin.sh --base); makes it
# by debootstrap the first time, which takes a minute or two. As root.
#
# Environment: PLUGIN_BASE  such a directory that is there already, instead
#              VM_CACHE=/var/cache/docker-graph-driver-tests  where it is kept
set -euo pipefail

packages=python3-minimal,ceph-common,rbd-nbd,xfsprogs,e2fsprogs,mount
# shellcheck source=/dev/null
release=$(source /etc/os-release && echo "$VERSION_CODENAME")
cache=${VM_CACHE:-/var/cache/docker-graph-driver-tests}
base=${PLUGIN_BASE:-$cache/plugin-base-$release}

if [[ ! -d $base ]]; then
    mkdir -p "$cache"
    exec {lock}>"$cache/plugin-base.lock"
    flock "$lock"
fi
if [[ ! -d $base ]]; then
    rm -rf --one-file-system "$base.new"
    echo "making $base by debootstrap" >&2
    if ! debootstrap --variant=minbase --include=$packages "$release" "$base.new" >"$cache/plugin-base.log" 2>&1; then
        tail -n 5 "$cache/plugin-base.log" >&2
        exit 1
    fi
    rm -rf "$base.new"/var/cache/apt/archives/*.deb
    mv "$base.new" "$base"
fi
echo "$base"
