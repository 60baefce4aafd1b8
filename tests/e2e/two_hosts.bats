#!/usr/bin/env bats
# Two hosts, each with a driver and a dockerd, on one pool; then one dies, and its containers are used on the other.
# bats file_tags=debian13

load helpers

setup_file() {
    new_site
    export LIVING=$SITE-b RBD_STAND_IN_DIR=$SITE/mapped
    mkdir -p "$LIVING"
    # Both are this machine. Without a machine-id, as in a container, their names tell them apart.
    [[ ! -e /etc/machine-id ]] || mount --bind /dev/null /etc/machine-id
    # A host that died is known to be dead after 30 s otherwise.
    ceph config set osd osd_client_watch_timeout 8
    on host-a start_ceph_plugin
    b on host-b start_ceph_plugin
    start_ceph_dockerd &
    local other=$!
    b start_ceph_dockerd
    wait "$other"
}

teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_logs
}

teardown_file() {
    rbd device list # ends what the dead one had mapped
    b end_site
    end_site
    ceph config rm osd osd_client_watch_timeout
    ceph osd blocklist clear
    ! mountpoint --quiet /etc/machine-id || umount /etc/machine-id
    search_for_leaks
}

# b COMMAND...: the command on the second host: a site of its own, a driver of its own, and mappings of its own.
b() { SITE=$LIVING GRAPH=${GRAPH}b RBD_STAND_IN_DIR=$LIVING/mapped "$@"; }

# on HOST COMMAND...: the command, whose driver believes to be on a host of that name.
on() {
    local host=$1 system_python=$SITE/python
    shift
    cat >"$system_python" <<END
#!/bin/sh
exec unshare --uts sh -c 'hostname $host && exec /usr/bin/python3 "\$@"' - "\$@"
END
    chmod +x "$system_python"
    "$@"
}

operator() {
    "$SITE/python" "$BATS_TEST_DIRNAME/../../docker_graph_driver.py" "$1" --socket "/run/docker/plugins/$GRAPH.sock" "${@:2}"
}

work() {
    docker load --input "$E2E/small.tar"
    docker run --name work small sh -c "echo $1 >/who; cat /who"
    docker commit work "work:$1"
    docker rm work
    [[ $(docker run --rm "work:$1" cat /who) == "$1" ]]
    docker rmi "work:$1"
}

@test "both work at once: one base image, and each removes only its own" {
    work a 3>&- &
    local other=$!
    b work b
    wait "$other"
    [[ $(rbd ls rbd | grep --count ^docker_image_base_image) == 1 ]]
    # What the one has, to the other belongs to somebody.
    eventually nothing_is_to_be_removed "$LIVING/data/${GRAPH}b"
    all_is_removed
    run -0 operator check --min-age 0
    run -0 b operator check --min-age 0
    [[ $(docker run --rm small cat /last) == 2 ]]
    docker rmi small
    [[ $(b docker run --rm small cat /last) == 2 ]]
    docker load --input "$E2E/small.tar"
}

@test "one dies: its containers are refused to the other, then taken over and used" {
    # It does not write the file itself: started again, it would write what was lost. `sync -f` is for its own file system,
    # not all of the machine's: one that hangs would keep the container from its end.
    docker run --detach --name precious small sleep 1000 >/dev/null
    docker exec precious sh -c 'echo kept >/kept && sync -f /kept'
    run -2 b operator takeover --host host-a
    [[ $output == *"host-a lives"* ]]
    host_dies

    # Its disk is put into the other one: the same data root, and a driver for it there.
    export RBD_STAND_IN_DIR=$LIVING/mapped
    on host-b start_ceph_plugin
    start_ceph_dockerd
    run docker start precious
    echo "$output"
    [[ $output == *"belongs to host host-a"*"takeover --host host-a"* ]]
    eventually taken || { cat "$SITE/takeover.log" && false; }
    docker start precious
    run -0 docker exec precious cat /kept
    [[ $output == kept ]]
    docker rm --force precious
    eventually home_is_empty
    eventually trash_is_empty rbd
    run -0 operator check --min-age 0
    [[ $(docker run --rm small cat /last) == 2 ]]
    docker rmi small
    [[ $(b docker run --rm small cat /last) == 2 ]]
    b docker rmi small
    eventually pool_holds docker_image_base_image
    eventually trash_is_empty rbd
}

taken() { operator takeover --host host-a >"$SITE/takeover.log" 2>&1; }

# What is left when the power of the first host fails: nothing but its disk. Its containers end first, since their
# processes would hold what is mounted.
host_dies() {
    local place
    end docker KILL
    end_containers "$SITE"
    end containerd KILL
    end plugin KILL
    cat "$SITE"/mapped/*/m-*/pid | xargs --no-run-if-empty kill -KILL
    for place in $(mounts_below "$SITE/data" | sort --reverse); do
        umount --lazy "$place"
    done
    rm -f "$SITE/containerd.sock"
}
