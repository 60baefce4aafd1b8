#!/usr/bin/env bats
# Every way in which dockerd and the plugin end and start again while containers run.

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

# A container that counts in a file as long as it lives, and one that has stopped; both with a file to be kept. Neither writes
# it itself: started again, it would write again what was lost, and a reader in that moment finds the file empty.
start_pair() {
    docker run --detach --name running --stop-signal KILL small \
        sh -c 'n=0; while echo $((n += 1)) >/count.new; do mv /count.new /count; usleep 50000; done'
    docker exec running sh -c 'echo precious >/kept'
    docker run --name stopped small true
    echo precious >"$SITE/precious"
    docker cp "$SITE/precious" stopped:/kept
    eventually docker exec running test -s /count
}

# It still counts: its file system can be written, and what it writes is seen.
still_runs() {
    local before
    [[ $(state_of running) == running ]]
    before=$(docker exec running cat /count)
    eventually counted_on "$before"
    run -0 docker exec running cat /kept
    [[ $output == precious ]]
    mounted_once running
}

counted_on() { (($(docker exec running cat /count) > $1)); }

# import_half: an import whose archive stops in the middle, after its layer was made; wait_for_import lets it end.
import_half() {
    nothing_is_mapped
    mkfifo "$SITE/archive"
    (head -c 500000 "$E2E/busybox.tar" && eventually test -e "$SITE/go-on" && tail -c +500001 "$E2E/busybox.tar") \
        >"$SITE/archive" 2>/dev/null 3>&- &
    docker import - half <"$SITE/archive" >"$SITE/import.log" 2>&1 3>&- &
    import_pid=$!
    eventually views_are 1
}

views_are() { [[ $(views | wc -l) == "$1" ]]; }

wait_for_import() {
    touch "$SITE/go-on"
    if wait "$import_pid"; then
        echo "half an archive was imported"
        return 1
    fi
    rm "$SITE/go-on" "$SITE/archive"
}

# Everything that a user does to both still works, and at the end nothing is mounted or mapped.
work_as_before() {
    local name
    for name in running stopped; do
        docker start "$name"
        docker cp "$name:/kept" "$SITE/kept"
        run -0 cat "$SITE/kept"
        echo "$name has kept '$output'"
        [[ $output == precious ]]
        echo more >"$SITE/more"
        docker cp "$SITE/more" "$name:/more"
    done
    run -0 docker exec running cat /more
    [[ $output == more ]]
    mounted_once running
    run -0 docker diff running
    [[ $output == *"A /kept"* && $output == *"A /more"* ]]
    docker stop running
    nothing_is_mapped
    docker start running
    still_runs
    docker rm --force running stopped
    nothing_is_mapped
}

@test "dockerd stops and starts" {
    start_pair
    end docker
    nothing_is_mapped
    start_ceph_dockerd
    [[ $(state_of running) == exited ]]
    nothing_is_mapped
    work_as_before
}

# bats test_tags=debian13
@test "dockerd is killed and starts" {
    start_pair
    end docker KILL
    start_ceph_dockerd
    [[ $(state_of running) == exited ]]
    nothing_is_mapped
    work_as_before
}

@test "dockerd is killed during an import" {
    local before
    before=$(rbd ls rbd)
    import_half
    end docker KILL
    wait_for_import
    start_ceph_dockerd
    nothing_is_mapped
    eventually pool_holds_no_more "$before"
    run -0 docker import "$E2E/busybox.tar" whole
    docker rmi whole
}

@test "dockerd is killed during a RUN of a build" {
    local building pid
    printf 'FROM small\nRUN exec sleep 98765\n' >"$SITE/Dockerfile.sleep"
    DOCKER_BUILDKIT=1 docker build --network none - <"$SITE/Dockerfile.sleep" >"$SITE/build.log" 2>&1 3>&- &
    building=$!
    eventually build_sleeps || { cat "$SITE/build.log" && false; }
    end docker KILL
    wait "$building" || true
    # What dockerd would have ended.
    for pid in $(processes_with "sleep 98765"); do
        kill -KILL "$pid"
    done
    start_ceph_dockerd
    nothing_is_mapped
    printf 'FROM small\nRUN echo built >/x\n' | DOCKER_BUILDKIT=1 docker build --network none --tag built -
    [[ $(docker run --rm built cat /x) == built ]]
    docker rmi built
}

build_sleeps() { [[ -n $(processes_with "sleep 98765") ]]; }

@test "live-restore: dockerd stops and starts, is killed and starts, with a container running on" {
    local signal
    end docker
    start_ceph_dockerd --live-restore
    start_pair
    for signal in TERM KILL TERM; do
        end docker "$signal"
        start_ceph_dockerd --live-restore
        still_runs
    done
    docker stop running
    nothing_is_mapped
    work_as_before
    end docker
    start_ceph_dockerd
}

# bats test_tags=debian13
@test "the plugin is killed and starts, under a running container" {
    start_pair
    end plugin KILL
    start_ceph_plugin
    still_runs
    work_as_before
}

@test "the plugin is killed twice, once between the start of an export and its end" {
    start_pair
    end plugin KILL
    start_ceph_plugin
    docker export running >/dev/null
    end plugin KILL
    start_ceph_plugin
    still_runs
    docker stop running
    nothing_is_mapped
    work_as_before
    forget_exports
}

@test "the plugin ends by SIGTERM and starts, under a running container" {
    start_pair
    end plugin TERM
    [[ ! -e /run/docker/plugins/$GRAPH.sock ]]
    views_are 1
    start_ceph_plugin
    still_runs
    work_as_before
}

@test "a docker run waits for a plugin that is about to start" {
    local client
    end plugin TERM
    docker run --rm small cat /last >"$SITE/waited" 3>&- &
    client=$!
    # Its first try has failed.
    eventually grep 'Unable to connect to plugin' "$SITE/dockerd.log"
    start_ceph_plugin
    wait "$client"
    [[ $(<"$SITE/waited") == 2 ]]
}

@test "the plugin is killed during an import: it fails, and the next one works" {
    local before
    before=$(rbd ls rbd)
    import_half
    end plugin KILL
    start_ceph_plugin
    wait_for_import
    nothing_is_mapped
    eventually pool_holds_no_more "$before"
    run -0 docker import "$E2E/busybox.tar" whole
    docker rmi whole
}

@test "both are killed and start" {
    start_pair
    end docker KILL
    end plugin KILL
    start_ceph_plugin
    start_ceph_dockerd
    [[ $(state_of running) == exited ]]
    nothing_is_mapped
    work_as_before
}

# bats test_tags=debian13
@test "live-restore: both are killed and start, with a container running on" {
    end docker
    start_ceph_dockerd --live-restore
    start_pair
    end docker KILL
    end plugin KILL
    start_ceph_plugin
    start_ceph_dockerd --live-restore
    still_runs
    work_as_before
    end docker
    start_ceph_dockerd
}

@test "a second plugin on the same socket is refused, and disturbs nobody" {
    start_pair
    run -1 timeout 20 python3 "$BATS_TEST_DIRNAME/../../docker_graph_driver.py" --socket "/run/docker/plugins/$GRAPH.sock"
    [[ $output == *"another instance serves /run/docker/plugins/$GRAPH.sock"* ]]
    still_runs
}

# bats test_tags=debian13
@test "nothing is left" {
    nothing_is_left
}
