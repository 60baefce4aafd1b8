# A host of containerd, for the end-to-end tests of the snapshotter and for the demo of it.
# shellcheck shell=bash
#
# A site is a directory ($SITE) with a snapshotter and a containerd of its own, and a host name of its own: two sites are
# two hosts of one pool. Source it after lib.bash; it does nothing by itself.
#
# Environment: SNAPSHOTTER=overlayfs             containerd's own one instead of ours, and no Ceph
#              LAB_OPTIONS="devicetype=nbd ..."  options of our snapshotter
#              CTR_SECONDS=120                   how long a command of ctr may take
#              KEEP_JOBS=1                       daemons stay jobs of this shell, which then tells when one was killed
# shellcheck disable=SC2154 # repo, system_python: of lib.bash

# ours: the snapshotter of this run is ours.
ours() { [[ $SNAPSHOTTER == ceph ]]; }

# -- its daemons -------------------------------------------------------------------------------

# start_site: a snapshotter and a containerd on it.
start_site() {
    mkdir -p "$SITE" && start_snapshotter && start_containerd && eventually snapshots_can_be_made
}

# Ours refuses them until its cluster has answered for the first time.
snapshots_can_be_made() {
    snapshots prepare probe && snapshots delete probe
}

# start NAME COMMAND...: starts a daemon of the site, on its host; what it says is in $SITE/NAME.log, its pid in
# $SITE/NAME.pid.
start() {
    local name=$1 host=${SITE##*/}
    shift
    # A session of its own: the terminal's Ctrl-C is for us, and we end them in their order.
    # shellcheck disable=SC2016 # it is for the inner shell
    setsid unshare --uts sh -c 'hostname "$0" && exec "$@"' "host-${host//_/-}" "$@" \
        >>"$SITE/$name.log" 2>&1 3>&- 4>&- </dev/null &
    echo $! >"$SITE/$name.pid"
    [[ -n ${KEEP_JOBS:-} ]] || disown $!
}

# start_snapshotter: ours; containerd's own one is there with it.
start_snapshotter() {
    local options=() option
    ours || return 0
    for option in "configfile=$CEPH_CONF" ${LAB_OPTIONS:-}; do
        options+=(--option "ceph.$option")
    done
    start snapshotter "$system_python" "$repo/docker_graph_driver.py" snapshotter --address "$SITE/snapshotter.sock" \
        --root "$SITE/snapshotter" "${options[@]}" --log-level debug
    eventually ended_or snapshotter takes_connections && runs snapshotter
}

start_containerd() {
    # What a kubelet is told of as the file system of images. From 1.7.16 on it is exports.root; before, it is this directory,
    # which nobody makes.
    mkdir -p "$SITE/containerd/io.containerd.snapshotter.v1.ceph"
    write_config >"$SITE/containerd.toml"
    start containerd containerd --config "$SITE/containerd.toml"
    # One that finds no snapshotter at its start looks for it at the next call.
    eventually ended_or containerd snapshots && runs containerd
}

# write_config: version 2 is understood by containerd 1.3 to 1.7, version 3 from 2.0 on.
write_config() {
    local version=2
    ! is_containerd_2 || version=3
    cat <<END
version = $version
root = "$SITE/containerd"
state = "$SITE/run/containerd"

[grpc]
  address = "$SITE/containerd.sock"

[ttrpc]
  address = "$SITE/containerd.sock.ttrpc"

[proxy_plugins.ceph]
  type = "snapshot"
  address = "$SITE/snapshotter.sock"

[proxy_plugins.ceph.exports]
  root = "$SITE/snapshotter"

[plugins."io.containerd.internal.v1.opt"]
  path = "$SITE/opt"

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
END
    write_clients_config_$version
}

write_clients_config_2() {
    cat <<END

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "$SNAPSHOTTER"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$SITE/cni/bin"
  conf_dir = "$SITE/cni/conf"
END
}

write_clients_config_3() {
    cat <<END

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "$SNAPSHOTTER"
  disable_snapshot_annotations = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["$SITE/cni/bin"]
  conf_dir = "$SITE/cni/conf"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "$SNAPSHOTTER"
END
}

is_containerd_2() { (($(version_of containerd | cut --delimiter . --fields 1) >= 2)); }

takes_connections() {
    "$system_python" -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$SITE/snapshotter.sock"
}

ended_or() { ! runs "$1" || "${@:2}"; }

runs() { [[ -e $SITE/$1.pid ]] && ! process_gone "$(<"$SITE/$1.pid")"; }

# -- its clients -------------------------------------------------------------------------------

# ctr ...: at most two minutes, or $CTR_SECONDS.
ctr() {
    timeout --foreground --kill-after 5 $((${CTR_SECONDS:-120} * ${LAB_SLOWNESS:-1})) \
        "$(type -P ctr)" --address "$SITE/containerd.sock" "$@"
}

# with_output WORDS ...: a command of ctr, and then what the container has said. ctr's own pipes lose what a process said that
# has ended before they are open (seen on a busy machine; Cancel in containerd's task.go).
with_output() {
    local log status=0
    log=$(mktemp "$SITE/said.XXXXXX")
    # shellcheck disable=SC2086 # words
    ctr $1 --log-uri "file://$log" "${@:2}" || status=$?
    cat "$log"
    rm "$log"
    return "$status"
}

# snapshots [COMMAND...]: of this snapshotter; without a command, the list of them.
snapshots() { ctr snapshots --snapshotter "$SNAPSHOTTER" "${@:-list}"; }

# -- the registry ------------------------------------------------------------------------------

# start_registry: its address is in $REGISTRY, what it keeps in $REGISTRY_DIR.
start_registry() {
    export REGISTRY_DIR=$SITE/registry
    mkdir "$REGISTRY_DIR" || return 1
    "$system_python" "$repo/tests/registry.py" "$REGISTRY_DIR" >"$SITE/registry.log" 2>&1 3>&- 4>&- </dev/null &
    echo $! >"$SITE/registry.pid"
    [[ -n ${KEEP_JOBS:-} ]] || disown $!
    eventually test -e "$REGISTRY_DIR/port" || return 1
    REGISTRY=127.0.0.1:$(<"$REGISTRY_DIR/port")
    export REGISTRY
}

# push ARCHIVE IMAGE NAME: pushes an image of an archive into the registry; the containerd does not keep it.
push() {
    ctr image import --no-unpack --compress-blobs "$1" >/dev/null &&
        ctr image push --plain-http "$REGISTRY/$3" "$2" >/dev/null &&
        ctr image rm --sync "$2" >/dev/null
}
