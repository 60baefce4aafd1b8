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

is_mounted() { [[ -n $(views) ]]; }

# left_of NAME: removes a container while the driver is away, and prints what Docker's layer store keeps of it.
left_of() {
    local id
    id=$(docker inspect --format '{{.Id}}' "$1")
    end plugin
    docker rm --force "$1" >/dev/null # after 15 s, and says that all went well
    start_ceph_plugin
    echo "$SITE/data/image/$GRAPH/layerdb/mounts/$id"
}

@test "docker rm --force without a plugin forgets a container and keeps its layers: they are found, and go" {
    local record
    start_sleeper gone
    record=$(left_of gone)
    run -1 operator check
    [[ $output == *"orphan-image"*"until dockerd starts anew"* ]]
    # The dockerd that has removed it proves that it is gone; a later one could not.
    [[ $output == *"stale-record ${record##*/}"* ]]
    run -0 operator gc --yes
    [[ ! -e $record ]]
    end docker
    start_ceph_dockerd
    # Its init layer, which nobody had mounted, has gone already.
    collects orphan-image
    # What they were clones of can go too.
    end docker
    start_ceph_dockerd
    docker run --rm small cat /last
}

@test "a container that an earlier dockerd lost: nothing is looked at, until what is told is done" {
    local record
    start_sleeper gone
    record=$(left_of gone)
    end docker
    start_ceph_dockerd
    run -2 operator gc --yes
    [[ $output == *"rm -r $record" ]]
    collect
    [[ ! -e $record ]]
    finds
    end docker
    start_ceph_dockerd
}

# bats test_tags=debian13
@test "a stopped container is kept while Docker's containers are not mounted, by a dockerd that does not see it either" {
    local containers=$SITE/data/containers
    docker create --name waiting small true
    end docker
    mv "$containers" "$containers.away"
    start_ceph_dockerd
    docker create --name panic small true
    run -2 operator gc --yes
    [[ $output == *"has layers but is not in $containers"* ]]
    docker rm panic
    end docker
    rmdir "$containers"
    mv "$containers.away" "$containers"
    start_ceph_dockerd
    finds
    docker start --attach waiting
    docker rm waiting
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
