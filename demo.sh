#!/bin/bash
# Shows the driver at work: a Ceph cluster, the driver, a Docker daemon on it, an image, a container, a commit.
#
#   ./demo.sh           do it and take everything down again
#   ./demo.sh --keep    leave it up, say how to use it
#   ./demo.sh --down    take down what --keep has left
#
# As root, on Debian 12. Installs the packages that it misses. Everything else is below one directory, but for the
# driver's socket, which Docker looks for in /run/docker/plugins. A Docker that is there already is left alone.
set -euo pipefail

# shellcheck source=tests/lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/tests/lib.bash"

dir=/var/tmp/ceph-demo
name=cephdemo
socket=/run/docker/plugins/$name.sock
cluster=$repo/tests/cluster.sh
current="starting"

step() {
    current=$1
    printf '\n\033[1m== %s\033[0m\n' "$1"
}

# Shows a command and runs it.
show() {
    printf '$ %s\n' "$*"
    "$@"
}

# What the viewer could type: with the demo's socket and cluster, which are in the environment here.
docker() { docker_cli "$dir/docker" "$@"; }

main() {
    [[ $(id -u) == 0 ]] || die "must run as root"
    case ${1:-} in
    '') ;;
    --keep) ;;
    --down)
        [[ -e $dir ]] || die "nothing is up"
        down
        return
        ;;
    *)
        sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
    esac
    [[ ! -e $dir ]] || die "$dir is there already, from a demo that was kept: $0 --down"
    trap failed EXIT
    trap 'exit 130' INT TERM
    prepare
    start
    use
    look
    if [[ ${1:-} == --keep ]]; then
        trap - EXIT
        how_to_use
    else
        step "Everything goes away again"
        trap - EXIT
        down
    fi
}

die() {
    echo "demo.sh: $*" >&2
    exit 1
}

prepare() {
    step "Installing what is missing"
    install_packages driver lab docker demo
    local major
    major=$(dockerd --version | sed -n 's/^Docker version \([0-9]*\).*/\1/p')
    echo "$(dockerd --version), $(rbd --version)"
    ((major < 28)) || die "Docker $major has no graph driver plugins any more; 27.5 is the last that has"
    mkdir -p "$dir"
}

start() {
    step "Starting a Ceph cluster in $dir/ceph: one monitor, one manager, one OSD"
    "$cluster" up "$dir/ceph"
    eval "$("$cluster" env "$dir/ceph")"
    step "Starting the driver on $socket"
    start_plugin "$dir/plugin.log" "$socket"
    echo "$plugin_pid" >"$dir/plugin.pid"
    step "Starting a Docker daemon whose storage driver is our plugin"
    echo "$ dockerd --experimental --storage-driver $name --storage-opt ceph.configfile=$dir/ceph/ceph.conf ..."
    start_dockerd "$dir/docker" "$name" --storage-opt "ceph.configfile=$dir/ceph/ceph.conf"
}

use() {
    step "Making an image from Debian's busybox-static: no registry is needed"
    busybox_image | docker import - busybox
    step "Running a container on Ceph and writing a file in it"
    show docker run --network none --name first busybox sh -c 'echo "kept in Ceph" >/hello; df -h /; cat /hello'
    show docker diff first
    step "Committing it as an image and running that"
    show docker commit first second
    show docker run --network none --rm second cat /hello
}

look() {
    step "What Docker says"
    show docker images
    show docker info --format '{{range .DriverStatus}}{{index . 0}}: {{index . 1}}{{"\n"}}{{end}}'
    step "What Ceph says"
    show rbd list --long --pool rbd
    step "The layers as a tree of clones"
    tree
}

# tree: every image of the pool below the one that it is a clone of.
tree() {
    local image parent
    local -A parent_of=()
    for image in $(rbd list --pool rbd); do
        parent=$(rbd info --pool rbd --image "$image" | sed -n 's/^\tparent: rbd\/\(.*\)@.*/\1/p')
        parent_of[$image]=$parent
    done
    branch ''
}

branch() {
    local image
    for image in $(printf '%s\n' "${!parent_of[@]}" | sort); do
        if [[ ${parent_of[$image]} == "$1" ]]; then
            printf '%s%s\n' "${2:-}" "$image"
            branch "$image" "${2:-}    "
        fi
    done
}

how_to_use() {
    cat <<TEXT

It is up. In a shell of root:
  export DOCKER_HOST=unix://$dir/docker/docker.sock
  /usr/bin/docker run --network none --rm -it second sh
  export CEPH_CONF=$dir/ceph/ceph.conf
  rbd list
The driver's log is $dir/plugin.log, Docker's $dir/docker/dockerd.log.
Take it down with: $repo/demo.sh --down
TEXT
}

# The end of a demo that did not come to its end: where, why, and then nothing of it is left.
failed() {
    local status=$? log
    trap - EXIT
    {
        printf '\ndemo.sh: FAILED (%d) at: %s\n' "$status" "$current"
        for log in "$dir"/plugin.log "$dir"/docker/dockerd.log; do
            [[ ! -s $log ]] || printf -- '--- the end of %s\n%s\n' "$log" "$(tail -n 10 "$log")"
        done
    } >&2
    down || true
    exit $((status ? status : 1))
}

# Works however far the start came, and also when something of it has died since.
down() {
    local containers mounted
    [[ -d $dir ]] || return 0
    if [[ -S $dir/docker/docker.sock ]] && containers=$(DOCKER_SECONDS=20 docker ps --all --quiet 2>/dev/null); then
        # shellcheck disable=SC2086 # a list of ids
        [[ -z $containers ]] || DOCKER_SECONDS=60 docker rm --force $containers >/dev/null || true
    fi
    end_recorded "$dir/docker/docker.pid" "$dir/docker"
    end_recorded "$dir/docker/containerd.pid" "$dir/docker"
    end_recorded "$dir/plugin.pid" "$socket"
    rm -f "$socket" "$socket.lock" "$socket.state"
    while mounted=$(awk -v d="$dir/" 'index($5, d) == 1 { last = $5 } END { print last }' /proc/self/mountinfo) && [[ -n $mounted ]]; do
        umount "$mounted" || umount --lazy "$mounted"
    done
    "$cluster" down "$dir/ceph"
    rm -rf "$dir"
    echo "Nothing of the demo is left."
}

main "$@"
