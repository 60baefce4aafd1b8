#!/bin/bash
# Shows the driver at work: a Ceph cluster, the driver, a Docker daemon on it, an image, a container, a commit.
#
#   ./demo.sh                do it and take everything down again
#   ./demo.sh snapshotter    the same for containerd: two hosts of one cluster, and an image that is fetched once
#   ./demo.sh ... --keep     leave it up, say how to use it
#   ./demo.sh --down         take down what --keep has left
#
# As root, on Debian 12 or 13. Installs the packages that it misses. Everything else is below one directory, but for the
# driver's socket, which Docker looks for in /run/docker/plugins. A Docker or containerd that is there already is left alone.
set -Eeuo pipefail

# shellcheck source=tests/lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/tests/lib.bash"
# shellcheck source=tests/demo_snapshotter.bash
source "$repo/tests/demo_snapshotter.bash"

# What the caller has set for other clusters and daemons is not for these.
unset "${!CEPH_@}" "${!DOCKER_@}" "${!CONTAINERD_@}" SITE
# For one docker command; the longest takes seconds.
export DOCKER_SECONDS=120
# The driver removes and unmaps within seconds, on a busy machine within some more.
settle_seconds=120

# No function of lib.bash or site.bash has variables of these names: one that is interrupted would have us take down its own.
demo=/var/tmp/ceph-demo
of=docker
name=cephdemo
demo_socket=/run/docker/plugins/$name.sock
cluster=$repo/tests/cluster.sh
step="starting"
failed_command=
terminals=
# Whose ends tell why a command failed.
logs=("$demo/plugin.log" "$demo/docker/dockerd.log")

main() {
    find_terminals
    [[ ${1:-} != snapshotter ]] || { of=$1 && shift; }
    (($# <= 1)) || usage
    case ${1:-} in
    '' | --keep | --down) ;;
    -h | --help) head_of_script && return ;;
    *) usage ;;
    esac
    [[ $(id -u) == 0 ]] || die "this must run as root: it starts daemons and mounts file systems"
    if [[ ${1:-} == --down ]]; then
        [[ -d $demo ]] || { echo "No demo is up." && return; }
        down
        return
    fi
    # For who ends it, who may have been interrupted while it waits for something in silence (until_true). No daemon has them.
    exec 3>&1 4>&2
    # Made first, and not looked for first: of two demos that start at once only one makes it.
    mkdir "$demo" 2>/dev/null || die "a demo is up already, or was killed ($demo is there); take it down: $repo/demo.sh --down"
    trap 'failed_command=$BASH_COMMAND' ERR
    trap 'end $?' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM
    heading "Installing what is missing"
    "prepare_${of}_demo"
    heading "Starting a Ceph cluster in $demo/ceph: one monitor, one manager, one OSD"
    "$cluster" up "$demo/ceph" 2>"$demo/cluster.log" ||
        give_up "the Ceph cluster did not come up; what it said is below" "$demo/cluster.log"
    eval "$("$cluster" env "$demo/ceph")"
    "start_${of}_demo"
    "use_${of}_demo"
    "settle_${of}_demo"
    "look_${of}_demo"
    heading "The same as a tree: images, their layers, and the containers on them"
    "tree_${of}_demo"
    if [[ ${1:-} == --keep ]]; then
        heading "It is up; in a shell of root:"
        "how_to_use_${of}_demo"
        echo "Take it down with: $repo/demo.sh --down"
        trap - EXIT
    else
        heading "Everything goes away again"
    fi
}

# -- what is seen --------------------------------------------------------------------------------

# find_terminals: which of standard output and standard error are terminals that can show text bold.
find_terminals() {
    local fd
    [[ ${TERM:-dumb} != dumb && -z ${NO_COLOR:-} ]] || return 0
    for fd in 1 2; do
        [[ ! -t $fd ]] || terminals+=" $fd "
    done
}

# bold FD TEXT: prints the text, bold if that one is such a terminal.
bold() {
    if [[ $terminals == *" $1 "* ]]; then
        printf '\033[1m%s\033[0m' "$2"
    else
        printf '%s' "$2"
    fi
}

heading() {
    step=$1
    printf '\n%s\n' "$(bold 1 "== $1")"
}

# as_typed WORD...: a command line that a shell would read as these words.
as_typed() {
    local word line=
    for word; do
        [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]] || word="'$word'"
        line+=" $word"
    done
    printf '%s' "${line# }"
}

# prompt WORD...: what the viewer could type, on the host of $SITE if there are several.
prompt() { printf '%s$ %s\n' "${SITE:+host-${SITE##*/}}" "$(bold 1 "$(as_typed "$@")")"; }

# show COMMAND...: that, and what comes of it.
show() {
    local status=0
    prompt "$@"
    "$@" || status=$?
    ((status == 0)) || give_up "this command failed (exit $status): $(as_typed "$@")" "${logs[@]}"
}

# With the demo's socket and cluster, which are in the environment here.
docker() { docker_cli "$demo/docker" "$@"; }

# -- its steps -----------------------------------------------------------------------------------

prepare_docker_demo() {
    local version
    install_packages driver lab docker demo || give_up "packages could not be installed; what apt-get said is above"
    version=$(dockerd --version) || give_up "dockerd does not even tell its version; is it installed?"
    [[ $version =~ ^Docker\ version\ ([0-9]+)\. ]] || give_up "this is no version of Docker that is known here: $version"
    ((BASH_REMATCH[1] < 28)) || give_up "this is Docker ${BASH_REMATCH[1]}, which has no graph driver plugins any more; \
27.5 is the last that has them, and the docker.io of Debian 12 and 13 does"
    type -P "$(docker_client)" >/dev/null || give_up "there is a dockerd, but no docker: install Docker's client, on Debian 13 the package docker-cli"
    printf '%s\n' "$version" "$(rbd --version)"
}

start_docker_demo() {
    heading "Starting the driver on $demo_socket"
    start_plugin "$demo/plugin.log" "$demo_socket" || give_up "the driver did not start; the end of its log is below" "$demo/plugin.log"
    echo "$plugin_pid" >"$demo/plugin.pid"
    heading "Starting a Docker daemon whose storage driver is our plugin"
    local options=(--storage-driver "$name" --storage-opt "ceph.configfile=$demo/ceph/ceph.conf")
    printf '$ %s ...\n' "$(bold 1 "dockerd --experimental ${options[*]}")"
    start_dockerd "$demo/docker" "$name" "${options[@]:2}" || give_up "the Docker daemon did not come up; the end of its log is below" \
        "$demo/docker/containerd.log" "$demo/plugin.log" "$demo/docker/dockerd.log"
}

use_docker_demo() {
    heading "Making an image from Debian's busybox-static: no registry is needed"
    TMPDIR=$demo busybox_image >"$demo/busybox.tar"
    show docker import "$demo/busybox.tar" busybox
    heading "Running a container on Ceph and writing a file in it"
    show docker run --network none --name first busybox sh -c 'echo "kept in Ceph" >/hello; df -h /; cat /hello'
    show docker diff first
    heading "Committing it as an image and running that"
    show docker commit first second
    show docker run --network none --rm second cat /hello
}

# Docker is done with what it has removed and stopped before the driver is: what is shown next must not be on its way out.
settle_docker_demo() {
    heading "Waiting until the driver has removed and unmapped what Docker is done with"
    until_true $settle_seconds settled || give_up "after $settle_seconds s the pool still holds what Docker has removed, \
or something is still mapped; the end of the driver's log is below" "$demo/plugin.log"
    echo "The pool holds what Docker has, and nothing is mapped."
}

# The pool holds the layers of Docker's two images and one container, nothing is in its trash, and the driver agrees.
settled() {
    local expected images trash status
    expected=$(what_is_docker_demo | cut --delimiter ' ' --fields 1 | sort) && images=$(rbd list --pool rbd | sort) &&
        trash=$(rbd trash list --pool rbd) && status=$(driver_status '{{index . 0}}={{index . 1}} ') &&
        [[ $images == "$expected" && -z $trash ]] &&
        [[ $status == *" Layers=$(($(wc -l <<<"$images") - 1)) Mapped Devices=0 "* ]]
}

# what_is_docker_demo: the images that the pool holds for what Docker has, one a line, each with what it is.
what_is_docker_demo() {
    local image
    echo "docker_image_base_image an empty file system, made once for a pool"
    for image in busybox second; do
        docker image inspect --format "{{.GraphDriver.Data.Image}} the image \"$image\"" "$image" || return 1
    done
    image=$(docker container inspect --format '{{.GraphDriver.Data.Image}}' first) || return 1
    printf '%s\n' "$image the container \"first\"" "$image-init the same, as Docker has prepared it"
}

driver_status() { docker info --format "{{range .DriverStatus}}$1{{end}}"; }

look_docker_demo() {
    heading "What Docker says"
    show docker images
    show docker ps --all
    show docker info --format '{{range .DriverStatus}}{{index . 0}}: {{index . 1}}{{"\n"}}{{end}}'
    heading "What Ceph says"
    show rbd list
}

tree_docker_demo() { show "$system_python" "$repo/docker_graph_driver.py" tree --socket "$demo_socket"; }

how_to_use_docker_demo() {
    cat <<TEXT
  export DOCKER_HOST=unix://$demo/docker/docker.sock
  $(docker_client) run --network none --rm -it second sh
  $system_python $repo/docker_graph_driver.py tree --socket $demo_socket
  export CEPH_CONF=$demo/ceph/ceph.conf
  rbd list
The driver's log is $demo/plugin.log, Docker's $demo/docker/dockerd.log.
TEXT
}

# -- its end -------------------------------------------------------------------------------------

# give_up WORDS [LOG...]: what failed and what to look at; then the ends of these logs; then nothing of the demo is left.
give_up() {
    local log
    {
        printf '\n%s\n' "$(bold 2 "demo.sh: FAILED at \"$step\": $1")"
        for log in "${@:2}"; do
            [[ ! -s $log ]] || printf -- '--- the end of %s\n%s\n' "$log" "$(tail -n 15 "$log" | cut --bytes -400)"
        done
    } >&2 || true
    failed_command=
    exit 1
}

# end STATUS: whatever has ended the demo, wherever it was, nothing of it is left. Nobody can interrupt that.
end() {
    local status=$1
    trap - EXIT ERR
    trap '' HUP INT PIPE TERM
    exec >&3 2>&4
    # The terminal, or who reads what we say, has gone: to write there would fail.
    ((status != 129 && status != 141)) || exec >/dev/null 2>&1
    if ((status > 128)); then
        printf '\n%s\n' "$(bold 2 "demo.sh: interrupted at \"$step\"")" >&2
    elif ((status)) && [[ -n $failed_command ]]; then
        printf '\n%s\n' "$(bold 2 "demo.sh: FAILED at \"$step\": this ended with $status: $failed_command")" >&2
    fi
    if ((status)); then
        down >&2 || true
        exit "$status"
    fi
    down
}

# Works however far the start came, of whichever of the two, and also when something of it has died since.
down() {
    local left pid
    trap '' HUP INT PIPE TERM
    if recorded "$demo/docker/docker.pid" "$demo/docker" >/dev/null; then
        remove_all_containers "$demo/docker" || echo "Docker does not answer: its containers are ended without it"
    fi
    # By what they were called with: who was interrupted in a start has written no pid down.
    end_processes "--pidfile $demo/docker/docker.pid"
    end_containers "$demo/docker"
    end_processes "--address $demo/docker/containerd.sock"
    end_processes "docker_graph_driver.py --socket $demo_socket"
    down_snapshotter_demo
    # And who had been started so lately that he was still called like this script.
    for pid in $(jobs -p); do
        end_process "$pid"
    done
    rm -f "$demo_socket" "$demo_socket.lock" "$demo_socket.state"
    unmount_below "$demo"
    "$cluster" down "$demo/ceph"
    left=$(mounts_below "$demo")
    [[ -z $left ]] || die "still mounted, so that $demo stays: $left"
    rm -rf --one-file-system "$demo"
    echo "Nothing of the demo is left."
}

main "$@"
