#!/usr/bin/env bats
# The life of images and containers, as a user of Docker sees it.
# bats file_tags=debian13

load helpers

setup_file() {
    new_site
    start_ceph_plugin
    start_ceph_dockerd
    docker load --input "$E2E/small.tar"
}

@test "load: every layer of an image is an image of the pool" {
    run -0 rbd ls rbd
    [[ $output == *docker_image_base_image* ]]
    [[ $(grep --count '^docker_image_[0-9a-f]\{64\}$' <<<"$output") == 3 ]]
    grep --fixed-strings --line-regexp "$(data_of small Image)" <<<"$output"
    nothing_is_mapped
}

@test "run: a container sees its image's additions, changes and deletions, and gives its exit status" {
    # shellcheck disable=SC2016 # the container's shell expands it
    run -3 docker run --rm small sh -c 'cat /last; echo /only-in-*; exit 3'
    [[ ${lines[*]} == "2 /only-in-2" ]]
    nothing_is_mapped
}

@test "exec, stop, start: a container keeps its files; stopped, nothing is mounted" {
    start_sleeper keeper
    run -0 docker exec keeper sh -c 'mkdir /kept && echo precious >/kept/file && rm /etc/passwd'
    mounted_once keeper
    docker stop keeper
    nothing_is_mapped
    docker start keeper
    run -0 docker exec keeper sh -c 'cat /kept/file; test ! -e /etc/passwd'
    [[ $output == precious ]]
    docker restart --time 0 keeper
    run -0 docker exec keeper cat /kept/file
    [[ $output == precious ]]
    mounted_once keeper
}

@test "rm: the container's images leave the pool" {
    local image
    start_sleeper goner
    image=$(data_of goner Image)
    run -0 rbd ls rbd
    [[ $output == *"$image"* ]]
    docker rm --force goner
    eventually pool_lacks rbd "$image"
    nothing_is_mapped
}

@test "diff: what was added, changed and deleted" {
    docker run --name differ small sh -c 'mkdir /new; echo 1 >/new/file; echo x >>/etc/passwd; rm /last'
    run -0 docker diff differ
    [[ $(sort <<<"$output") == $'A /new\nA /new/file\nC /etc\nC /etc/passwd\nD /last' ]]
}

@test "commit: the new image holds the changes, also those of a running container" {
    start_sleeper committed
    run -0 docker exec committed sh -c 'echo in-image >/etc/issue; rm -r /layers; mkdir /layers; touch /layers/new'
    docker commit committed derived
    run -0 docker exec committed sh -c 'echo later >/etc/issue'
    run -0 docker run --rm derived sh -c 'cat /etc/issue; ls /layers'
    [[ ${lines[*]} == "in-image new" ]]
    docker rmi derived
}

@test "cp: in both directions, running and stopped" {
    local state
    mkdir -p "$SITE/in/sub"
    echo copied >"$SITE/in/sub/file"
    ln -s file "$SITE/in/sub/link"
    start_sleeper copier
    for state in running exited; do
        [[ $state == running ]] || docker stop copier
        [[ $(state_of copier) == "$state" ]]
        docker cp "$SITE/in" "copier:/$state"
        docker cp "copier:/$state" "$SITE/out-$state"
        diff --recursive --no-dereference "$SITE/in" "$SITE/out-$state"
    done
    nothing_is_mapped
    docker start copier
    run -0 docker exec copier cat /running/sub/link /exited/sub/link
    [[ ${lines[*]} == "copied copied" ]]
}

@test "export: the whole file system of a running and of a stopped container" {
    start_sleeper exported
    run -0 docker exec exported sh -c 'echo exported >/root/file'
    docker export --output "$SITE/running.tar" exported
    docker stop exported
    docker export --output "$SITE/stopped.tar" exported
    run -0 tar --extract --to-stdout --file "$SITE/running.tar" root/file last
    [[ $(sort <<<"$output") == $'2\nexported' ]]
    run -0 diff <(tar --list --file "$SITE/running.tar") <(tar --list --file "$SITE/stopped.tar")
    forget_exports
    nothing_is_mapped
}

@test "inspect: where a container's files are" {
    local key
    start_sleeper inspected
    [[ $(data_of inspected Pool) == rbd ]]
    [[ $(data_of inspected Filesystem) == xfs ]]
    [[ $(data_of inspected Size) == 10737418240 ]]
    [[ $(data_of inspected Parent) == "$(layers_of inspected | sed -n 2p)" ]]
    [[ $(data_of inspected Depth) -ge 1 ]]
    # The container's own view of its root agrees.
    # shellcheck disable=SC2016 # it is awk's
    run -0 docker exec inspected awk '$2 == "/" { print $1, $3 }' /proc/mounts
    [[ $output == ceph-?????????????" overlay" ]]
    [[ $(readlink "$SITE/data/$GRAPH/l/${output:5:13}") == *"/$(basename "$(dirname "$(data_of inspected MountPoint)")")/"* ]]
    mounted_once inspected
    docker stop inspected
    for key in Device MountPoint; do
        [[ -z $(data_of inspected $key) ]]
    done
    [[ $(docker image inspect --format '{{.GraphDriver.Name}} {{.GraphDriver.Data.Pool}}' small) == "$GRAPH rbd" ]]
}

info_tells() { [[ $(docker info) == *" $1"* ]]; }

@test "info: pool, options, cluster" {
    local row
    start_sleeper shown
    # Its own, and those of the three layers of its image; init layers are unmapped some seconds after Docker has put them.
    eventually info_tells "Mapped Devices: 4"
    run -0 docker info
    for row in "Storage Driver: $GRAPH" "Pool: rbd" "Namespace: " "Image Prefix: docker_image" "Device Type: krbd" \
        "Base Size: 10G" "Backing Filesystem: xfs" "Pool Used: " "Pool Available: " "Ceph Health: HEALTH_OK" \
        "Ceph Client: " "Ceph Cluster: " "Layers: 5" "Mapped Devices: 4"; do
        echo "expecting $row"
        [[ $output == *" $row"* ]]
    done
    [[ $output != *unknown* ]]
}

@test "ps -s, system df: what a container and an image take" {
    start_sleeper sized
    run -0 docker exec sized dd if=/dev/urandom of=/root/data bs=1000 count=3000
    run -0 docker ps --size --format '{{.Size}}'
    [[ $output == "3MB (virtual "* ]]
    run -0 docker system df --format '{{.Type}} {{.Size}}'
    [[ $output == *"Containers 3MB"* ]]
    [[ $output =~ Images\ [12]\.[0-9]+MB ]]
}

@test "--storage-opt size: the container sees the space it asked for" {
    run -0 docker run --rm --storage-opt size=12G small df -m /
    [[ ${lines[-1]} =~ ^[^\ ]+\ +(1[12][0-9]{3})\  ]]
    ((BASH_REMATCH[1] > 11 * 1024))
    run -0 docker run --rm small df -m /
    [[ ${lines[-1]} =~ ^[^\ ]+\ +([0-9]+)\  ]]
    ((BASH_REMATCH[1] > 9 * 1024 && BASH_REMATCH[1] <= 10 * 1024))
}

@test "--storage-opt size: less than the image has, nonsense and unknown options are refused" {
    local before
    before=$(rbd ls rbd)
    run -125 docker run --rm --storage-opt size=1G small true
    [[ $output == *"size 1G is smaller than 10G"* ]]
    run -125 docker run --rm --storage-opt size=big small true
    [[ $output == *"'big' is not a size"* ]]
    run -125 docker run --rm --storage-opt color=red small true
    [[ $output == *"unknown storage option 'color' for a container; valid is size"* ]]
    eventually pool_holds_no_more "$before"
}

@test "the root of a container holds nothing but its image" {
    # proc, sys and dev are the runtime's, .dockerenv is Docker's own.
    run -0 docker run --rm small ls -A /
    [[ ${lines[*]} == ".dockerenv bin dev etc last layers only-in-2 proc root sys tmp" ]]
}

@test "ten containers at once" {
    local n pids=()
    for n in {0..9}; do
        docker run --detach --name "many$n" --stop-signal KILL small sh -c "echo $n >/mine; sleep 1000" 3>&- &
        pids+=($!)
    done
    wait "${pids[@]}"
    for n in {0..9}; do
        # A container that has just started need not have written it yet.
        eventually docker exec "many$n" test -s /mine
        run -0 docker exec "many$n" cat /mine
        [[ $output == "$n" ]]
    done
    [[ $(views | wc -l) == 10 ]]
    # shellcheck disable=SC2046 # a list of names
    docker stop $(printf 'many%d ' {0..9})
    nothing_is_mapped
}

pool_holds_images() { [[ $(rbd ls rbd | wc -l) == "$1" ]]; }

@test "rmi, prune: images go once nobody needs them" {
    docker run --name pruned small touch /file
    docker commit pruned top
    run -1 docker rmi small:latest
    [[ $output == *"must force"* ]]
    docker container prune --force
    run -0 docker rmi top
    eventually pool_holds_images 4
    docker tag small other
    docker rmi other
    run -0 docker run --rm small cat /last
    docker system prune --all --force
    eventually pool_holds docker_image_base_image
    docker load --input "$E2E/small.tar"
    run -0 docker run --rm small cat /last
}

@test "nothing is left" {
    nothing_is_left
}
