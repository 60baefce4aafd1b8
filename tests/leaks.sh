#!/bin/bash
# What a test left behind: loop devices, mounts, mappings, images and snapshots and trash of the pool, processes.
#
#   tests/leaks.sh snapshot FILE [CONF]   writes down what is there
#   tests/leaks.sh compare FILE [CONF]    prints what has come since; exits 1 if that is still there after 5 s
#
# CONF is a cluster's ceph.conf. With it, what belongs to other clusters on this machine doesn't count.
# Environment: LEAKS_IGNORE  an extended regular expression: lines that match it don't count
#              LEAKS_GRACE   seconds to wait for what is still on its way out (5)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=${RBD_STAND_IN_DIR:-/run/rbd-stand-in}

rbd_cli() { timeout --kill-after=5 20 "$here/bin/rbd" ${conf:+--conf "$conf"} "$@" 2>/dev/null; }

fsid() { sed -n 's/^ *fsid *= *//p' "$conf"; }

# The loop devices of other clusters' mappings, as a pattern for grep that matches nothing when there are none.
foreign_loops() {
    local meta
    [[ -n $conf ]] || { echo '^$' && return; }
    for meta in "$run"/*/m-*/meta; do
        [[ ! -e $meta || $meta == "$run/$(fsid)/"* ]] || grep -o '/dev/loop[0-9]*' "$meta" || true
    done | sed 's/.*/&( |$)/' | paste -sd '|' | sed 's/^$/^$/'
}

# With a cluster's configuration: those of its mappings, and those of files that lie beside it.
loops() {
    losetup --list --noheadings --raw --output NAME,BACK-FILE |
        awk -v all="${conf:+no}" -v own="$run/$([[ -z $conf ]] || fsid)/" -v beside="$(dirname "$(dirname "$conf")")/" \
            'all == "" || index($2, own) == 1 || index($2, beside) == 1 { print "loop device: " $0 }'
}

mounts() {
    findmnt --raw --noheadings --output SOURCE,TARGET,FSTYPE | grep -Ev "$(foreign_loops)" |
        awk -v run="$run/" -v own="$run/$([[ -z $conf ]] || fsid)" \
            'index($2, run) != 1 || index($2, own) == 1 { print "mount: " $0 }' || true
}

processes() {
    local directory=''
    [[ -z $conf ]] || directory=$(dirname "$conf")
    # Zombies are for their parent to reap, and have no arguments left. The pid is left out: a restart is no leak.
    ps -e --no-headers --format stat,comm,args --cols 300 | awk -v dir="$directory" -v run="$run/$([[ -z $conf ]] || fsid)/" '
        $1 ~ /^Z/ { next }
        { line = $0; sub(/^[^ ]+ +[^ ]+ +/, "", line) }
        $2 ~ /^qemu-storage/ && (dir == "" || index(line, run)) { print "process: " line }
        $2 ~ /^ceph-(mon|mgr|osd)$/ && (dir == "" || index(line, dir "/")) { print "process: " line }
        $2 ~ /^(dockerd|containerd)/ { print "process: " line }
        $2 ~ /^python/ && line ~ /docker_graph_driver\.py/ { print "process: " line }'
}

mappings() {
    local kind
    for kind in krbd nbd; do
        { rbd_cli device list --device-type $kind --format json || true; } |
            { grep -o '{[^}]*}' || true; } | sed "s/^/$kind mapping: /"
    done
}

# images POOL: its images and their snapshots. (`rbd ls --long` would fail if one goes meanwhile, or is damaged.)
images() {
    local image
    for image in $(rbd_cli ls "$1"); do
        echo "$image"
        { rbd_cli snap ls "$1/$image" || true; } | awk -v image="$image" 'NR > 1 { print image "@" $2 }'
    done
}

pool() {
    local space
    rbd_cli ls rbd >/dev/null || {
        echo "cluster: $conf does not answer"
        return 0
    }
    for space in '' $(rbd_cli namespace ls rbd --format json | grep -o '"name":"[^"]*"' | cut -d '"' -f 4); do
        images "rbd${space:+/$space}" | sed "s|^|image: ${space:+$space/}|"
        rbd_cli trash ls --all "rbd${space:+/$space}" | sed "s|^|trash: ${space:+$space/}|"
    done
}

all() {
    {
        loops
        mounts
        processes
        [[ -z $conf ]] || mappings
        [[ -z $conf ]] || pool
    } | { grep -Ev "${LEAKS_IGNORE:-^$}" || true; } | LC_ALL=C sort
}

compare() {
    local new deadline=$((SECONDS + ${LEAKS_GRACE:-5}))
    while new=$(LC_ALL=C comm -13 "$1" <(all)) && [[ -n $new ]]; do
        if ((SECONDS >= deadline)); then
            printf 'leaked:\n%s\n' "$new"
            return 1
        fi
        sleep 0.5
    done
}

usage() {
    echo "usage: $0 snapshot FILE [CONF] | compare FILE [CONF]" >&2
    exit 2
}

(($# == 2 || $# == 3)) || usage
conf=${3:-}
[[ -z $conf ]] || conf=$(realpath "$conf")
case $1 in
snapshot) all >"$2" ;;
compare) compare "$2" ;;
*) usage ;;
esac
