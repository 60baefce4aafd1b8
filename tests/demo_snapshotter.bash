# The steps of `./demo.sh snapshotter`: two hosts on one machine, each with a snapshotter and a containerd, and a registry.
# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # demo, settle_seconds: of demo.sh, which uses logs

# shellcheck source=site.bash
source "$repo/tests/site.bash"

export SNAPSHOTTER=ceph LAB_OPTIONS='' KEEP_JOBS=1 CTR_SECONDS=60
hosts=(one two)

# on HOST COMMAND...: the command on one of the hosts, in the namespace of containerd in which a kubelet's images are.
on() { SITE=$demo/$1 CONTAINERD_NAMESPACE=${CONTAINERD_NAMESPACE:-k8s.io} "${@:2}"; }

# tool FILE WORD...: a tool of the demo in Python, which answers Ctrl-C with no traceback.
tool() {
    "$system_python" -c 'import runpy, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")' "$repo/tests/$1" "${@:2}"
}

# -- its steps -----------------------------------------------------------------------------------

prepare_snapshotter_demo() {
    local program
    install_packages driver lab demo snapshotter || give_up "packages could not be installed; what apt-get said is above"
    for program in containerd ctr runc; do
        type -P "$program" >/dev/null || give_up "there is no $program; Debian has it in the packages containerd and runc"
    done
    printf '%s\n' "$(containerd --version)" "$(rbd --version)"
    logs=("$demo"/{one,two}/{snapshotter,containerd}.log)
}

start_snapshotter_demo() {
    local host
    for host in "${hosts[@]}"; do
        heading "Starting the host \"host-$host\": a snapshotter, and a containerd that keeps its snapshots there"
        printf '$ %s ...\n' "$(bold 1 "docker_graph_driver.py snapshotter --address $demo/$host/snapshotter.sock")"
        on "$host" start_site || give_up "the snapshotter or the containerd of host-$host did not start; the ends of their logs are below" \
            "$demo/$host/containerd.log" "$demo/$host/snapshotter.log"
    done
    heading "Starting a registry, and pushing an image of three layers there"
    SITE=$demo start_registry || give_up "the registry did not start; what it said is below" "$demo/registry.log"
    image=$REGISTRY/busybox:latest
    TMPDIR=$demo busybox_image >"$demo/busybox.tar"
    "$system_python" "$repo/tests/make_image.py" --base "$demo/busybox.tar" --layers 3 busybox:latest "$demo/image.tar"
    CONTAINERD_NAMESPACE=demo on one push "$demo/image.tar" docker.io/library/busybox:latest busybox:latest || give_up "the image could not be pushed" "${logs[@]}"
    echo "It is $image."
}

use_snapshotter_demo() {
    heading "The first host pulls the image, as a kubelet does"
    on one pull
    until_true "$settle_seconds" all_are_offered || give_up "after $settle_seconds s the first host has not offered its layers to others" "${logs[@]}"
    heading "The second host pulls the same image"
    on two pull
    heading "Both run it, each in a container that writes to what is its own"
    on one run_container first 'echo "of the first host" >/own; ls /; cat /own'
    on two run_container second 'test -e /own || echo "what the other one wrote is not here"; echo "of the second host" >/own; cat /own'
}

# pull: says how much of the image was fetched.
pull() {
    prompt tests/pull.py "$image"
    tool pull.py --address "$SITE/containerd.sock" --registry "$demo/registry" "$image" ||
        give_up "the image could not be pulled" "${logs[@]}"
}

# run_container NAME SCRIPT: a container that is kept when its process has ended.
run_container() {
    local words=(--snapshotter ceph "$image" "$1" sh -c "$2")
    prompt ctr run "${words[@]}"
    # What runc remembers of all, it would have in one place of this machine.
    with_output "run --runc-root $demo/runc" "${words[@]}" || give_up "the container failed ($?)" "${logs[@]}"
}

# The pool knows all layers of the image by what is in them.
all_are_offered() { [[ $(rados --pool rbd listomapkeys docker_image_chains | wc -l) == 3 ]]; }

settle_snapshotter_demo() {
    heading "Waiting until the snapshotters have unmapped what nobody uses"
    until_true "$settle_seconds" nothing_is_mapped || give_up "after $settle_seconds s something is still mapped; \
the ends of the logs are below" "${logs[@]}"
    echo "Nothing is mapped."
}

nothing_is_mapped() { [[ -z $(mounts_below "$demo") && -z $(rbd device list) ]]; }

look_snapshotter_demo() {
    local host
    heading "What the hosts say"
    for host in "${hosts[@]}"; do
        on "$host" show ctr snapshots --snapshotter ceph tree
    done
    heading "What Ceph says"
    show rbd list
}

# The first host sees what the second one has, too.
tree_snapshotter_demo() {
    local words=("$system_python" "$repo/docker_graph_driver.py" tree --root "$demo/one/snapshotter")
    on one prompt "${words[@]}"
    # shellcheck disable=SC2016 # it is for the inner shell
    unshare --uts sh -c 'hostname host-one && exec "$@"' - "${words[@]}" || give_up "the pool could not be shown ($?)" "${logs[@]}"
}

how_to_use_snapshotter_demo() {
    cat <<TEXT
  export CONTAINERD_ADDRESS=$demo/two/containerd.sock CONTAINERD_NAMESPACE=k8s.io
  ctr run --rm --tty --snapshotter ceph $image third sh
  export CEPH_CONF=$demo/ceph/ceph.conf
  rbd list
The logs of the hosts are in $demo/one and $demo/two.
TEXT
}

# -- its end -------------------------------------------------------------------------------------

down_snapshotter_demo() {
    local host SITE
    local -x CONTAINERD_NAMESPACE=k8s.io
    for host in "${hosts[@]}"; do
        SITE=$demo/$host
        # Both must live for that. It spares Ceph a device that nobody would unmap.
        ! recorded "$SITE/snapshotter.pid" "$SITE" >/dev/null || ! recorded "$SITE/containerd.pid" "$SITE" >/dev/null ||
            remove_all || echo "host-$host does not remove its containers and images: they are ended without it"
        end_containers "$SITE"
        end_processes "--config $SITE/containerd.toml"
        end_processes "--address $SITE/snapshotter.sock"
    done
    end_processes "registry.py $demo/registry"
}

# remove_all: the containers and images of a host.
remove_all() {
    local container images
    for container in $(ctr containers list --quiet); do
        ctr task delete --force "$container" >/dev/null 2>&1 || true # it may have none
        ctr containers delete "$container" || return 1
    done
    images=$(ctr image list --quiet) || return 1
    # shellcheck disable=SC2086 # a list of names
    [[ -z $images ]] || ctr image rm --sync $images >/dev/null
}
