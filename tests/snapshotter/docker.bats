#!/usr/bin/env bats
# Docker with containerd's image store: images and containers are snapshots, and dockerd mounts what it needs itself.
# bats file_tags=debian13

load helpers

setup_file() {
    keeps_images_in_containerd || return 0
    new_site
    start_site
    start_docker
    docker load --input "$E2E/small.tar"
    docker tag small "$REGISTRY/small"
}

keeps_images_in_containerd() { (($(version_of dockerd | cut --delimiter . --fields 1) >= 24)); }

setup() { requires "a Docker that can keep its images in containerd (24 or newer)" keeps_images_in_containerd; }

# A test may have left no dockerd that could be asked.
teardown() {
    keeps_images_in_containerd || return 0
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_logs
    ! docker version >/dev/null 2>&1 || remove_all_containers "$SITE"
}

# start_docker [OPTION...]: a dockerd on the containerd of the site.
start_docker() {
    printf '{"features": {"containerd-snapshotter": true}}\n' >"$SITE/daemon.json"
    start_dockerd "$SITE" "$SNAPSHOTTER" --config-file "$SITE/daemon.json" "$@"
}

moby() { in_namespace moby "$@"; }

# The pid of a dockerd is in a file of its own.
restart_docker() {
    end docker "$1"
    start_docker "${@:2}"
}

# sleeper NAME [OPTION...]: a container that runs until it is stopped, and stops at once.
sleeper() { docker run --detach --name "$1" --stop-signal KILL "${@:2}" small sleep 1000 >/dev/null; }

state_of() { docker inspect --format '{{.State.Status}}' "$1"; }

# make_context BUILDER: a build in two stages.
make_context() {
    mkdir -p "$SITE/context/tree"
    echo from-context >"$SITE/context/tree/file"
    cat >"$SITE/context/Dockerfile" <<END
FROM small AS work
WORKDIR /work
COPY tree /work/tree
RUN echo made-in-work >made && rm /last && echo $1 >by
FROM small
COPY --from=work /work /copied
RUN rm -r /layers && test "\$(cat /copied/made)" = made-in-work && echo done >/done
CMD ["sh", "-c", "cat /copied/tree/file /copied/by /done /last && test ! -e /layers"]
END
}

# build BUILDER OPTION...
build() { DOCKER_BUILDKIT=$1 docker build --network none "${@:2}" "$SITE/context"; }

# check_built BUILDER: what was built can be run, also when it was saved and has come back.
check_built() {
    run -0 docker run --rm built
    [[ ${lines[*]} == "from-context $1 done 2" ]]
    docker save --output "$SITE/built.tar" built
    docker rmi built
    docker load --input "$SITE/built.tar"
    run -0 docker run --rm built
    [[ ${lines[*]} == "from-context $1 done 2" ]]
    docker rmi built
}

@test "info, load: the storage driver is the snapshotter, and each layer is a snapshot" {
    run -0 docker info
    [[ $output == *"Storage Driver: $SNAPSHOTTER"* ]]
    [[ $output == *"io.containerd.snapshotter.v1"* ]]
    [[ $(docker image list --format '{{.Repository}}:{{.Tag}}') == *small:latest* ]]
    run -0 docker run --rm small true
    [[ $(moby keys Committed | wc -l) == 3 ]]
}

@test "run: a container sees its image's additions, changes and deletions, and gives its exit status" {
    # shellcheck disable=SC2016 # the container's shell expands it
    run -3 docker run --rm small sh -c 'cat /last; echo /only-in-*; exit 3'
    [[ ${lines[*]} == "2 /only-in-2" ]]
}

@test "exec, stop, start: a container keeps its files; stopped, nothing is mounted" {
    sleeper keeper
    run -0 docker exec keeper sh -c 'mkdir /kept && echo precious >/kept/file && rm /etc/passwd'
    docker stop keeper
    nothing_is_used
    docker start keeper
    run -0 docker exec keeper sh -c 'cat /kept/file; test ! -e /etc/passwd'
    [[ $output == precious ]]
    docker restart --time 0 keeper
    run -0 docker exec keeper cat /kept/file
    [[ $output == precious ]]
}

@test "diff: what was added, changed and deleted" {
    docker run --name differ small sh -c 'mkdir /new; echo 1 >/new/file; echo x >>/etc/passwd; rm /last'
    run -0 docker diff differ
    [[ $(sort <<<"$output") == $'A /new\nA /new/file\nC /etc\nC /etc/passwd\nD /last' ]]
    nothing_is_used
}

@test "commit: the new image holds the changes, also those of a running container" {
    sleeper committed
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
    sleeper copier
    for state in running exited; do
        [[ $state == running ]] || docker stop copier
        [[ $(state_of copier) == "$state" ]]
        docker cp "$SITE/in" "copier:/$state"
        docker cp "copier:/$state" "$SITE/out-$state"
        diff --recursive --no-dereference "$SITE/in" "$SITE/out-$state"
    done
    nothing_is_used
    docker start copier
    run -0 docker exec copier cat /running/sub/link /exited/sub/link
    [[ ${lines[*]} == "copied copied" ]]
}

@test "ps -s, system df: what a container and an image take" {
    sleeper sized
    run -0 docker exec sized sh -c 'dd if=/dev/urandom of=/root/data bs=1000 count=3000; sync'
    run -0 docker ps --size --format '{{.Size}}'
    # A file system counts what it has less of.
    [[ $output =~ ^(2\.9[0-9]*|3|3\.0[0-9]*)MB\ \(virtual\  ]]
    run -0 docker system df --format '{{.Type}} {{.Size}}'
    [[ $output =~ Images\ [0-9.]+MB ]]
}

@test "push, pull: the image is the same again, and runs" {
    local digest
    docker push "$REGISTRY/small"
    digest=$(docker image inspect --format '{{.Id}}' small)
    docker rmi small "$REGISTRY/small"
    [[ $(docker image list --quiet) == "" ]]
    docker pull "$REGISTRY/small"
    [[ $(docker image inspect --format '{{.Id}}' "$REGISTRY/small") == "$digest" ]]
    docker tag "$REGISTRY/small" small
    run -0 docker run --rm small cat /last
    [[ $output == 2 ]]
}

@test "save, load: the image is the same again" {
    docker commit "$(docker create small)" derived
    docker save --output "$SITE/saved.tar" derived
    docker rm "$(docker ps --all --quiet)"
    docker rmi derived
    docker load --input "$SITE/saved.tar"
    run -0 docker run --rm derived cat /last
    [[ $output == 2 ]]
    docker rmi derived
}

@test "classic builder: stages, COPY, RUN, and the cache" {
    make_context classic
    build 0 --tag built
    run -0 build 0 --tag built
    [[ $(grep --count 'Using cache' <<<"$output") -ge 5 ]]
    nothing_is_used
    check_built classic
}

@test "BuildKit: stages, COPY, RUN, and the cache" {
    make_context buildkit
    build 1 --tag built --progress plain
    run -0 build 1 --tag built --progress plain
    [[ $(grep --count 'CACHED$' <<<"$output") -ge 4 ]]
    check_built buildkit
    docker builder prune --all --force
}

# still_whole NAME: a running container's file system can be read and written.
still_whole() {
    [[ $(docker exec "$1" cat /last /written) == $'2\nbefore' ]]
    [[ $(docker exec "$1" sh -c 'echo more >>/later; tail -n 1 /later') == more ]]
}

starts_again() {
    docker restart --time 0 "$1"
    still_whole "$1"
    docker stop "$1"
}

@test "dockerd is restarted and killed: containers are started again, with what they have" {
    local signal
    sleeper kept
    docker exec kept sh -c 'echo before >/written; sync'
    for signal in TERM KILL; do
        restart_docker "$signal"
        docker start kept
        still_whole kept
    done
    starts_again kept
}

@test "live-restore: containers run on without dockerd, and it knows them again" {
    local signal pid
    restart_docker TERM --live-restore
    sleeper live
    docker exec live sh -c 'echo before >/written'
    pid=$(docker inspect --format '{{.State.Pid}}' live)
    for signal in TERM KILL; do
        restart_docker "$signal" --live-restore
        [[ $(docker inspect --format '{{.State.Pid}}' live) == "$pid" ]]
        still_whole live
    done
    starts_again live
    docker rm live
    restart_docker TERM
}

@test "the snapshotter is restarted, and killed, under Docker's containers" {
    local signal
    sleeper survivor
    docker exec survivor sh -c 'echo before >/written; sync'
    for signal in TERM KILL; do
        restart_snapshotter "$signal"
        still_whole survivor
    done
    run -0 docker run --rm small cat /last
    [[ $output == 2 ]]
    starts_again survivor
}

@test "ten containers at once" {
    local n pids=()
    for n in {0..9}; do
        docker run --detach --name "many$n" --stop-signal KILL small sh -c "echo $n >/mine; sleep 1000" 3>&- &
        pids+=($!)
    done
    wait "${pids[@]}"
    for n in {0..9}; do
        run -0 docker exec "many$n" cat /mine
        [[ $output == "$n" ]]
    done
    # shellcheck disable=SC2046 # a list of names
    docker stop $(printf 'many%d ' {0..9})
}

@test "prune: images and snapshots go once nobody needs them" {
    docker run --name pruned small touch /file
    docker commit pruned top
    docker container prune --force
    docker rmi top
    run -0 docker run --rm small cat /last
    docker system prune --all --force
    eventually no_snapshot_of_docker
    ! ours || eventually only_base_is_left
    docker load --input "$E2E/small.tar"
    run -0 docker run --rm small cat /last
    [[ $output == 2 ]]
}

no_snapshot_of_docker() { [[ $(moby keys) == "" ]]; }

@test "nothing is left" {
    docker system prune --all --force
    end docker
    forget_history
    nothing_is_left
}

# BuildKit remembers its builds, in a namespace of its own, and `prune` of Docker 26 leaves that there.
forget_history() {
    local leases
    leases=$(in_namespace moby_history ctr leases list --quiet)
    # shellcheck disable=SC2086 # a list of names
    [[ -z $leases ]] || in_namespace moby_history ctr leases delete --sync $leases
}
