#!/usr/bin/env bats
# Two hosts of one pool, and images that a kubelet's calls bring: what one host has, the other need not fetch.
# bats file_tags=debian13

load helpers

setup_file() {
    new_site
    export OTHER=$SITE-b
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
    end_file
}

# b COMMAND...: on the second host.
b() { at "$OTHER" "$@"; }

# all_are_offered: the pool knows all layers of the image by what is in them. A host offers them behind a pull.
all_are_offered() { ! ours || [[ $(rados --pool rbd listomapkeys docker_image_chains | wc -l) == 3 ]]; }

layers_without_sharing() { if ours; then echo 0; else echo 3; fi; }

@test "the first host pulls an image, and knows what a kubelet asks" {
    local name
    run -1 cri status "$IMAGE"
    count_fetches
    run -0 cri pull "$IMAGE"
    name=$output
    [[ $(layers_fetched small:latest) == 3 ]]
    run -0 cri status "$IMAGE"
    [[ $(jq --raw-output .id <<<"$output") == "$name" ]]
    [[ $(jq --raw-output '.repo_tags[]' <<<"$output") == "$IMAGE" ]]
    (($(jq --raw-output '.size | tonumber' <<<"$output") > 100000))
    [[ $(cri list) == "$output" ]]
    run -0 k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
}

# A kubelet reports errors for a directory that does not exist.
@test "the file system of images is a directory, and its use is told" {
    eventually images_take_space
    run -0 cri fs-info
    [[ -d $(jq --raw-output .fs_id.mountpoint <<<"$output") ]]
}

# It looks every ten seconds.
images_take_space() { (($(cri fs-info | jq --raw-output '.used_bytes.value // 0') > 0)); }

@test "the second host has it without fetching a layer" {
    eventually all_are_offered
    count_fetches
    run -0 b cri pull "$IMAGE"
    [[ $(layers_fetched small:latest) == "$(layers_without_sharing)" ]]
    [[ $(b k8s keys Committed) == "$(k8s keys Committed)" ]]
    # shellcheck disable=SC2016 # the container's shell expands it
    run -0 b k8s run_in "$IMAGE" sh -c 'cat /last; echo /only-in-*; ls /layers'
    [[ ${lines[*]} == "2 /only-in-2 1 2" ]]
}

# A container's cgroup has its name, and newer runcs refuse one that is in use.
@test "containers of both write to what is theirs" {
    k8s start_sleeper first "$IMAGE"
    b k8s start_sleeper second "$IMAGE"
    k8s in_container first sh -c 'echo a >/who; rm /last'
    b k8s in_container second sh -c 'test ! -e /who; echo b >/who'
    [[ $(k8s in_container first cat /who) == a ]]
    [[ $(b k8s in_container second cat /who /last) == $'b\n2' ]]
    k8s stop_container first
    b k8s stop_container second
    nothing_is_used
    b nothing_is_used
}

@test "content fetch: the second host can have the layers as well, and export the image" {
    b k8s ctr content fetch --plain-http "$IMAGE" >/dev/null
    b k8s ctr image export "$SITE/exported.tar" "$IMAGE"
    [[ $(tar --list --file "$SITE/exported.tar" | grep --count '^blobs/sha256/.') == 5 ]]
}

@test "the first host removes it: the second one has it still" {
    cri remove "$IMAGE"
    run -1 cri status "$IMAGE"
    [[ $(k8s keys) == "" ]]
    run -0 b k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
    # And the first one finds it there.
    count_fetches
    cri pull "$IMAGE"
    [[ $(layers_fetched small:latest) == "$(layers_without_sharing)" ]]
    run -0 k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
}

@test "removed by both, a pull fetches it anew" {
    cri remove "$IMAGE"
    b cri remove "$IMAGE"
    # An image that was removed twice is removed.
    b cri remove "$IMAGE"
    [[ $(k8s keys) == "" && $(b k8s keys) == "" ]]
    ! ours || eventually only_base_is_left
    count_fetches
    b cri pull "$IMAGE"
    [[ $(layers_fetched small:latest) == 3 ]]
    run -0 b k8s run_in "$IMAGE" cat /last
    [[ $output == 2 ]]
    b cri remove "$IMAGE"
}

@test "both pull at the same moment" {
    local round other
    for round in 1 2 3; do
        cri pull "$IMAGE" 3>&- &
        other=$!
        b cri pull "$IMAGE"
        wait "$other"
        [[ $(k8s keys Committed | wc -l) == 3 && $(b k8s keys Committed | wc -l) == 3 ]]
        [[ $(k8s run_in "$IMAGE" cat /last) == 2 ]]
        [[ $(b k8s run_in "$IMAGE" cat /last) == 2 ]]
        # Which one has it first, and which one lets it go first, changes.
        if ((round % 2)); then
            cri remove "$IMAGE"
            [[ $(b k8s run_in "$IMAGE" cat /last) == 2 ]]
            b cri remove "$IMAGE"
        else
            b cri remove "$IMAGE"
            [[ $(k8s run_in "$IMAGE" cat /last) == 2 ]]
            cri remove "$IMAGE"
        fi
    done
}

# As long as its containerd is 1.x, ctr pulls so.
@test "a pull by ctr alone beside one that shares: each has its own" {
    cri pull "$IMAGE"
    count_fetches
    b pull_by_ctr "$IMAGE"
    [[ $(layers_fetched small:latest) == 3 ]]
    [[ $(b run_in "$IMAGE" cat /last) == 2 ]]
    b ctr image rm --sync "$IMAGE"
    [[ $(k8s run_in "$IMAGE" cat /last) == 2 ]]
    cri remove "$IMAGE"
}

@test "ctr image pull: containerd 2.x shares what it brings, and what others have brought" {
    local fetched=3
    ! is_containerd_2 || fetched=$(layers_without_sharing)
    ! ours || eventually only_base_is_left
    pull "$IMAGE"
    ! is_containerd_2 || eventually all_are_offered
    count_fetches
    b pull "$IMAGE"
    [[ $(layers_fetched small:latest) == "$fetched" ]]
    [[ $(b run_in "$IMAGE" cat /last) == 2 ]]
    ctr image rm --sync "$IMAGE"
    [[ $(b run_in "$IMAGE" cat /last) == 2 ]]
    b ctr image rm --sync "$IMAGE"
}

@test "nothing is left" {
    b nothing_is_left
    nothing_is_left
}
