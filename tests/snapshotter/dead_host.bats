#!/usr/bin/env bats
# Two hosts of one pool; one has brought an image there, and dies: its processes, its mappings and its disk are gone.

load helpers

setup_file() {
    new_site
    export LIVING=$SITE-b
    # A host that died is known to be dead after 30 s otherwise.
    ! ours || ceph config set osd osd_client_watch_timeout 8
    start_site
    b start_site
    publish small:latest
    IMAGE=$REGISTRY/small:latest
    export IMAGE
}

teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || { show_logs && b show_logs; }
    remove_containers
    b remove_containers
}

teardown_file() {
    b end_site
    end_site
    ! ours || {
        rbd device list # ends what the dead one had mapped
        ceph config rm osd osd_client_watch_timeout
        ceph osd blocklist clear
    }
    end_file
}

# b COMMAND...: on the host that lives.
b() { at "$LIVING" "$@"; }

# host_dies: what is left when a machine is lost: nothing but what is in Ceph. Its containers end first, since their
# processes would hold what is mounted.
host_dies() {
    local loops place
    loops=$(loops_of_site)
    end containerd KILL
    end_containers "$SITE"
    end snapshotter KILL
    cat "$SITE"/mapped/*/m-*/pid 2>/dev/null | xargs --no-run-if-empty kill -KILL
    for place in $(mounts_below "$SITE" | tac); do
        umount --lazy "$place"
    done
    detach_loops "$loops"
    rm -rf "$SITE"/{containerd,run,runc,snapshotter}
}

# loops_of_site: the loop devices of this host's mappings, and not of the other's.
loops_of_site() {
    local loop
    for loop in $(loops_served_for $$); do
        ! losetup --list --noheadings --output BACK-FILE "${loop%,*}" | grep --quiet --fixed-strings "$SITE/mapped/" || echo "$loop"
    done
}

@test "one host pulls an image and dies: the other one's containers run on, and new ones run" {
    cri pull "$IMAGE"
    k8s start_sleeper lost "$IMAGE"
    k8s in_container lost sh -c 'echo lost >/lost; sync'
    b cri pull "$IMAGE"
    b k8s start_sleeper survivor "$IMAGE"
    host_dies
    run -0 b k8s in_container survivor sh -c 'cat /last; echo written >/new; cat /new'
    [[ ${lines[*]} == "2 written" ]]
    run -0 b k8s run_in "$IMAGE" cat /last /layers/1
    [[ ${lines[*]} == "2 1" ]]
    b k8s stop_container survivor
    b restart_snapshotter
    b k8s start_again survivor
    [[ $(b k8s in_container survivor cat /new) == written ]]
    b k8s stop_container survivor
    b nothing_is_used
}

@test "the other one removes the image and pulls it again" {
    b cri remove "$IMAGE"
    [[ $(b k8s keys) == "" ]]
    b cri pull "$IMAGE"
    run -0 b k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
}

@test "the dead host comes back with an empty disk: it pulls, and both run the image" {
    start_site
    [[ $(k8s keys) == "" ]]
    cri pull "$IMAGE"
    run -0 k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
    cri remove "$IMAGE"
    run -0 b k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
    ours || return 0
    # The container that was lost is found in the pool. Its containerd knows nothing of it, and so has it removed.
    eventually operator check
}

@test "nothing is left" {
    b nothing_is_left
    nothing_is_left
}
