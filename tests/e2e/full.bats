#!/usr/bin/env bats
# A pool that takes no more: Docker's own commands make room in it, and its quota is not touched meanwhile.

load helpers

setup_file() {
    new_site
    ceph osd pool create full 8
    rbd pool init full
    start_ceph_plugin
    start_ceph_dockerd --storage-opt ceph.datapool=full --storage-opt ceph.timeout=20
    docker load --input "$E2E/small.tar"
}

teardown_file() {
    ceph osd pool set-quota full max_bytes 0
    end_site
    ceph config set mon mon_allow_pool_delete true
    ceph osd pool rm full full --yes-i-really-really-mean-it
    search_for_leaks
}

pool_is_full() { ceph health detail | grep --quiet "pool 'full' is full"; }

pool_has_room() { ! pool_is_full; }

# fill_pool MEGABYTES: a quota that is reached.
fill_pool() {
    ceph osd pool set-quota full max_bytes $(($1 << 20))
    eventually pool_is_full
}

# written CONTAINER FILE MEGABYTES: so much, that nothing can compress, is in the cluster.
written() { docker exec "$1" dd if=/dev/urandom of="$2" bs=1M count="$3" conv=fsync; }

@test "docker rm and rmi: what they remove leaves the pool" {
    local container image
    start_sleeper big
    written big /file 64
    docker stop big
    docker commit big bigger
    container=$(data_of big Image)
    image=$(data_of bigger Image)
    fill_pool 48
    docker rm big
    docker rmi bigger
    eventually pool_lacks full "$container"
    eventually pool_lacks full "$image"
    eventually pool_has_room
    docker run --rm small true
    ceph osd pool set-quota full max_bytes 0
}

@test "docker rm --force of the running container that filled it" {
    start_sleeper filler
    written filler /file 64
    fill_pool 48
    # The kernel has to write what is in its memory; nothing takes it.
    docker exec filler dd if=/dev/urandom of=/more bs=1M count=8
    docker rm --force filler
    eventually pool_has_room
    docker run --rm small true
    ceph osd pool set-quota full max_bytes 0
    eventually only_devices_are ""
}

# The driver has tried in the background to let go of a container whose device takes nothing.
was_tried() { grep --quiet "unmapping layer $1: again in 1 to 30 s" "$SITE/plugin.log"; }

@test "docker stop and then rm of a container whose writes the pool does not take" {
    local mount
    start_sleeper stopped
    written stopped /file 64
    mount=$(basename "$(dirname "$(data_of stopped MountPoint)")")
    fill_pool 48
    docker exec stopped dd if=/dev/urandom of=/more bs=1M count=8
    docker stop stopped
    eventually was_tried "$mount"
    docker rm stopped
    eventually pool_has_room
    docker run --rm small true
    ceph osd pool set-quota full max_bytes 0
    eventually only_devices_are ""
}

@test "nothing is left" {
    eventually nothing_is_to_be_removed "$SITE/data/$GRAPH"
    remove_everything
    eventually nothing_is_mapped
    eventually home_is_empty
    run -1 grep --extended-regexp 'Traceback|a defect of the driver|is left behind' "$SITE/plugin.log"
}
