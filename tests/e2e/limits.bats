#!/usr/bin/env bats
# What is larger than the base image, and what no file system of Linux stores.

load helpers

setup_file() {
    new_site
    start_ceph_plugin
    # The suite's pool has a base image already, and that its size.
    rbd namespace create rbd/limits
    start_ceph_dockerd --storage-opt ceph.namespace=limits --storage-opt ceph.basesize=512M
    docker load --input "$E2E/small.tar"
}

# sum_in IMAGE: the checksum of /big as a container has it.
sum_in() { docker run --rm "$1" md5sum /big | cut --delimiter ' ' --fields 1; }

@test "size=: what a container with more space wrote can be committed" {
    local sum
    # shellcheck disable=SC2016 # the container's shell expands it
    docker run --name writer --storage-opt size=2G small sh -c '
        dd if=/dev/urandom of=/piece bs=1M count=1
        for number in $(seq 500); do { echo "$number" && cat /piece; } >>/big || exit; done
        rm /piece && md5sum /big >/sum'
    sum=$(docker cp writer:/sum - | tar --extract --to-stdout | cut --delimiter ' ' --fields 1)
    docker commit writer written
    [[ $(sum_in written) == "$sum" ]]
    # A child of what has grown.
    docker run --name again written sh -c 'echo more >/more'
    docker commit again more
    [[ $(sum_in more) == "$sum" ]]
    # What a container needs is for what it writes itself.
    run -0 docker run --rm --storage-opt size=512M written md5sum /big
    [[ $output == "$sum "* ]]
}

@test "import: an archive that is larger than the base image" {
    local sum
    mkdir "$SITE/root"
    tar --extract --file "$E2E/busybox.tar" --directory "$SITE/root"
    head --bytes 500M /dev/urandom >"$SITE/root/big"
    sum=$(md5sum <"$SITE/root/big" | cut --delimiter ' ' --fields 1)
    tar --create --directory "$SITE/root" . | docker import --change 'CMD sh' - imported
    rm -r "$SITE/root"
    [[ $(sum_in imported) == "$sum" ]]
}

@test "load: an image with attributes of another system runs, and the log says what is left out" {
    "$BATS_TEST_DIRNAME/../make_image.py" --base "$E2E/busybox.tar" --layers 3 --attribute com.apple.quarantine foreign:latest \
        "$SITE/foreign.tar"
    docker load --input "$SITE/foreign.tar"
    run -0 docker run --rm foreign cat /layers/1 /last
    [[ $output == $'1\n2' ]]
    run -0 grep --count "left out: 'com.apple.quarantine' of 3, first 'layers/[12]'" "$SITE/plugin.log"
    [[ $output == 2 ]]
}

@test "nothing is left" {
    nothing_is_left docker_image limits
}
