# What the end-to-end tests of the snapshotter share.
# shellcheck shell=bash
#
# A site (../site.bash) is a host: `at DIR COMMAND...` means another one than that of the file. Each file loads this, makes
# its site in setup_file, and ends with a test that calls `nothing_is_left`. What has the tag debian13 runs in a Debian 13 too.
#
# Environment: SNAPSHOTTER=overlayfs             containerd's own one instead of ours, and no Ceph: shows that a test is right
#              E2E_LOGS=DIR                      keeps what snapshotter, containerd and dockerd said there
#              LAB_OPTIONS="devicetype=nbd ..."  options of our snapshotter

bats_require_minimum_version 1.5.0

# shellcheck source=../lib.bash
source "$BATS_TEST_DIRNAME/../lib.bash"
# shellcheck source=../site.bash
source "$BATS_TEST_DIRNAME/../site.bash"

export SNAPSHOTTER=${SNAPSHOTTER:-ceph}

# The image of setup_suite, as `ctr image import` names it.
export SMALL=docker.io/library/small:latest

# -- a site ------------------------------------------------------------------------------------

# new_site: makes the site of this file, and a registry for it.
new_site() {
    SITE=$E2E/$(basename "$BATS_TEST_FILENAME" .bats)
    export SITE RBD_STAND_IN_DIR=$SITE/mapped
    mkdir -p "$SITE"
    search_for_leaks snapshot
    # All sites are this machine. Without a machine-id, as in a container, their names tell hosts apart.
    [[ ! -e /etc/machine-id ]] || mount --bind /dev/null /etc/machine-id
    start_registry
}

# at DIR COMMAND...: the command at another site, whose mappings are its own.
at() { SITE=$1 RBD_STAND_IN_DIR=$1/mapped "${@:2}"; }

# operator COMMAND...: check or gc on this host, as if all had been made more than an hour ago.
operator() {
    local host=${SITE##*/}
    # shellcheck disable=SC2016 # it is for the inner shell
    unshare --uts sh -c 'hostname "$0" && exec "$@"' "host-${host//_/-}" "$system_python" "$repo/docker_graph_driver.py" \
        "$1" --root "$SITE/snapshotter" --min-age 0 "${@:2}"
}

# end DAEMON [SIGNAL]: snapshotter, containerd or docker; fails if it's not gone within a minute.
end() {
    local pid
    [[ $1 != snapshotter ]] || ours || return 0
    pid=$(<"$SITE/$1.pid")
    kill -s "${2:-TERM}" "$pid"
    until_true 60 process_gone "$pid"
    rm -f "$SITE/$1.pid"
}

# restart_snapshotter [SIGNAL]: containerd comes back to it by itself, within some seconds.
restart_snapshotter() {
    end snapshotter "${1:-TERM}"
    start_snapshotter
    eventually snapshots_can_be_made
}

restart_containerd() {
    end containerd "${1:-TERM}"
    start_containerd
}

# end_site: ends what still runs of a site, whatever state a failed test has left it in.
end_site() {
    local place
    [[ -z ${E2E_LOGS:-} ]] || for place in "$SITE"/*.log; do
        mkdir -p "$E2E_LOGS" && cp "$place" "$E2E_LOGS/${SITE##*/}-${place##*/}"
    done
    end_recorded "$SITE/docker.pid" "$SITE"
    end_containers "$SITE"
    end_recorded "$SITE/containerd.pid" "$SITE"
    unmount_below "$SITE"
    end_recorded "$SITE/snapshotter.pid" "$SITE"
    unmount_below "$SITE"
}

teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_logs
    remove_containers
}

# A file of which all is skipped has no site.
teardown_file() {
    if [[ -n ${SITE:-} ]]; then
        end_site
        end_file
    fi
}

# end_file: ends what `new_site` has made, when the sites have ended.
end_file() {
    end_recorded "$SITE/registry.pid" registry.py
    ! mountpoint --quiet /etc/machine-id || umount /etc/machine-id
    search_for_leaks compare
}

# search_for_leaks snapshot|compare: what is on the machine. A base image stays in its pool.
search_for_leaks() {
    LEAKS_IGNORE="^image: .*_base_image|${LEAKS_IGNORE:-^$}" "$repo/tests/leaks.sh" "$1" "$SITE/before" ${CEPH_CONF:+"$CEPH_CONF"}
}

show_logs() {
    ! ours || {
        echo "--- the snapshotter's last lines"
        tail -n 30 "$SITE/snapshotter.log" | sed --regexp-extended 's/ --(conf|id|client-mount-timeout) [^ ]+//g' | cut -c -500
    }
    echo "--- containerd's last lines"
    grep --extended-regexp 'level=(warning|error|fatal)' "$SITE/containerd.log" | tail -n 8 | cut -c -500
    [[ ! -e $SITE/dockerd.log ]] || {
        echo "--- dockerd's last lines"
        grep --extended-regexp 'level=(warning|error|fatal)|failed to start' "$SITE/dockerd.log" | tail -n 8 | cut -c -500
    }
}

# -- clients -----------------------------------------------------------------------------------

# in_namespace NAME COMMAND...: one of containerd's, which are "default", Kubernetes' k8s.io and Docker's moby.
in_namespace() { CONTAINERD_NAMESPACE=$1 "${@:2}"; }

k8s() { in_namespace k8s.io "$@"; }

# pull IMAGE [OPTION...]: as ctr does it without an option. Since 2.0 containerd itself fetches and unpacks then, and asks for
# layers that are there.
pull() { ctr image pull --plain-http --snapshotter "$SNAPSHOTTER" "${@:2}" "$1" >/dev/null; }

# pull_by_ctr IMAGE: ctr fetches and unpacks itself, and asks for no layer.
pull_by_ctr() {
    if is_containerd_2; then
        pull "$1" --local
    else
        pull "$1"
    fi
}

import_small() { ctr image import --snapshotter "$SNAPSHOTTER" "$E2E/small.tar" >/dev/null; }

# run_in IMAGE COMMAND...: in a new container, which is removed after it.
run_in() { with_output run --rm --snapshotter "$SNAPSHOTTER" "$1" "once-$RANDOM-$RANDOM" "${@:2}"; }

# start_sleeper NAME [IMAGE]: a container that runs until it is ended. (What runc remembers of all, it would have in one place
# of this machine.)
start_sleeper() {
    ctr run --detach --null-io --runc-root "$SITE/runc" --snapshotter "$SNAPSHOTTER" "${2:-$SMALL}" "$1" sleep 1000
}

# in_container NAME COMMAND...: a second process in one that runs.
in_container() { with_output "task exec" --exec-id "exec-$RANDOM-$RANDOM" "$@"; }

# stop_container NAME: its process ends; the container is kept.
stop_container() {
    ctr task kill --signal KILL "$1"
    eventually task_is_stopped "$1"
    eventually task_is_deleted "$1"
}

# A delete may fail on a busy machine; its exit status is that of the process.
task_is_deleted() {
    ctr task delete "$1" || true
    ctr task list >"$SITE/tasks" && ! awk -v name="$1" '$1 == name { print }' "$SITE/tasks" | grep --quiet .
}

task_is_stopped() { [[ $(ctr task list | awk -v name="$1" '$1 == name { print $3 }') == STOPPED ]]; }

start_again() { ctr task start --detach --null-io "$1"; }

# keys [KIND]: the snapshots' names.
keys() { snapshots list | awk -v kind="${1:-}" 'NR > 1 && (kind == "" || $NF == kind) { print $1 }'; }

# cri ...: a call of the kubelet (cri.py).
cri() { "$repo/.venv/bin/python" "$repo/tests/snapshotter/cri.py" --address "$SITE/containerd.sock" "$@"; }

docker() { DOCKER_SECONDS=$((120 * ${LAB_SLOWNESS:-1})) docker_cli "$SITE" "$@"; }

# -- the registry ------------------------------------------------------------------------------

# publish NAME: pushes the image of setup_suite into the registry.
publish() { push "$E2E/small.tar" "$SMALL" "$1"; }

# count_fetches: `layers_fetched` counts from now on.
count_fetches() { : >"$REGISTRY_DIR/fetched"; }

# layers_fetched NAME: how many blobs of this image's layers were fetched from the registry.
layers_fetched() {
    jq --raw-output '.layers[].digest' "$REGISTRY_DIR/${1//[:\/]/_}" |
        { grep --count --fixed-strings --file - "$REGISTRY_DIR/fetched" || true; }
}

# -- what is there -----------------------------------------------------------------------------

namespaces() { ctr namespaces list --quiet; }

# remove_containers: those of all namespaces. A test may have left no containerd that could be asked.
remove_containers() {
    local namespace name
    runs containerd || return 0
    for namespace in $(namespaces); do
        for name in $(in_namespace "$namespace" ctr containers list --quiet); do
            in_namespace "$namespace" ctr task delete --force "$name" >/dev/null 2>&1 || true # it may have none
            in_namespace "$namespace" ctr containers delete "$name" || true
        done
    done
}

# remove_everything: containers, images, and snapshots that somebody has made by hand, the last ones first.
remove_everything() {
    local namespace images key
    remove_containers
    for namespace in $(namespaces); do
        images=$(in_namespace "$namespace" ctr image list --quiet)
        # shellcheck disable=SC2086 # a list of names
        [[ -z $images ]] || in_namespace "$namespace" ctr image rm --sync $images >/dev/null
        for key in $(in_namespace "$namespace" keys | tac); do
            in_namespace "$namespace" snapshots delete "$key" || true # containerd's collector was faster
        done
        in_namespace "$namespace" ctr content prune references >/dev/null
    done
}

# nothing_is_left: no snapshot, blob, layer, trash, mapping or mount after everything was removed.
nothing_is_left() {
    eventually containerd_is_empty || { what_is_left && return 1; }
    nothing_is_used
    ! ours || {
        eventually only_base_is_left || { rbd ls rbd && return 1; }
        eventually trash_is_empty || { rbd trash ls --all rbd && return 1; }
        run -1 grep --extended-regexp 'Traceback|a defect of the driver|is left behind' "$SITE/snapshotter.log"
    }
}

containerd_is_empty() {
    remove_everything
    [[ -z $(what_is_left) ]]
}

what_is_left() {
    local namespace
    for namespace in $(namespaces); do
        in_namespace "$namespace" snapshots list | sed "1d; s|^|$namespace: |"
        in_namespace "$namespace" ctr content list --quiet | sed "s|^|$namespace: |"
    done
    # What the reference keeps of its own.
    ls "$SITE/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots" 2>/dev/null || true
}

# nothing_is_used: no container's file system is mounted, and in the end no image is mapped.
nothing_is_used() {
    eventually nothing_is_mounted || { mounts_below "$SITE" && return 1; }
    eventually no_device_is_listed || { rbd device list && return 1; }
}

# dockerd binds its data directory to itself.
nothing_is_mounted() {
    ! mounts_below "$SITE" | grep --quiet --invert-match --line-regexp --fixed-strings "$SITE/data"
}

no_device_is_listed() {
    local type
    ours || return 0
    for type in krbd nbd; do
        [[ $(rbd device list --device-type $type --format json) == "[]" ]] || return 1
    done
}

# only_base_is_left: no layer is in the pool.
only_base_is_left() {
    local names
    names=$(rbd ls rbd) && [[ $names == ?(*_base_image) && $names != *$'\n'* ]]
}

trash_is_empty() {
    local names
    names=$(rbd trash ls --all rbd) && [[ -z $names ]]
}
