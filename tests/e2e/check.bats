#!/usr/bin/env bats
# check and gc beside a real dockerd: nothing is found where all is well, and what crashes leave is found and goes.

load helpers

setup_file() {
    new_site
    start_ceph_plugin
    start_ceph_dockerd
    docker load --input "$E2E/small.tar"
}

# A failed test may have left either of them dead.
setup() {
    runs plugin || start_ceph_plugin
    runs docker || start_ceph_dockerd
}

# finds KIND...: check finds one thing of each of these kinds, and nothing else.
finds() {
    all_is_removed
    run operator check
    echo "check: $status: $output"
    [[ $status == $(($# > 0)) ]]
    [[ $(cut -d ' ' -f 1 <<<"$output" | sort | xargs) == "$*" ]]
}

# collects KIND...: that's what gc says, and then does.
collects() {
    finds "$@"
    run -1 operator gc
    [[ $(cut -d ' ' -f 3 <<<"$output" | sort | xargs) == "$*" ]]
    run -0 operator gc --yes
    finds
}

unmapped() { [[ $(rbd device list --format json) == "[]" ]]; }

# bats test_tags=debian13
@test "nothing is found: an image, a container, one that runs, what docker build has cached" {
    start_sleeper running
    docker create --name stopped small true
    mkdir -p "$SITE/context"
    printf 'FROM small\nRUN echo built >/built\nRUN echo again >/again\n' >"$SITE/context/Dockerfile"
    DOCKER_BUILDKIT=1 docker build --network none --tag built "$SITE/context"
    DOCKER_BUILDKIT=0 docker build --network none --tag classic "$SITE/context"
    docker rmi built classic
    eventually mounted_once running
    finds
    run -0 operator gc --yes
    [[ -z $output ]]
    docker run --rm small cat /last
    DOCKER_BUILDKIT=1 docker build --network none --tag built "$SITE/context"
    docker run --rm built cat /again
    docker rmi built
}

@test "both are killed during an import: its layer is found, and goes" {
    mkfifo "$SITE/archive"
    (head -c 500000 "$E2E/busybox.tar" && eventually test -e "$SITE/go-on") >"$SITE/archive" 2>/dev/null 3>&- &
    docker import - half <"$SITE/archive" >"$SITE/import.log" 2>&1 3>&- &
    eventually is_mounted
    end plugin KILL
    end docker KILL
    touch "$SITE/go-on"
    wait
    rm "$SITE/go-on" "$SITE/archive"
    start_ceph_plugin
    start_ceph_dockerd
    collects orphan-image
    docker run --rm small cat /last
}

is_mounted() { [[ -n $(mounts_below "$SITE/data/$GRAPH") ]]; }

@test "docker rm --force without a plugin forgets a container and keeps its layers: they are found, and go" {
    start_sleeper gone
    end plugin
    docker rm --force gone # after 15 s, and says that all went well
    start_ceph_plugin
    run -1 operator check
    [[ $output == *"orphan-image"*"until dockerd starts anew"* ]]
    end docker
    start_ceph_dockerd
    collects orphan-image orphan-image
    # What they were clones of can go too.
    end docker
    start_ceph_dockerd
    docker run --rm small cat /last
}

@test "a mapping whose directory is gone is found, and unmapped" {
    local layer
    docker create --name stopped small true
    layer=$(data_of stopped Image)
    eventually unmapped
    rbd device map --options noudev "rbd/$layer"
    collects stale-mapping
    unmapped
    docker start --attach stopped
}

# bats test_tags=debian13
@test "nothing is left" {
    nothing_is_left
}
