#!/usr/bin/env bats
# Images between Ceph and another storage driver, images of many layers, an image of real size.

load helpers

setup_file() {
    new_site
    export PLAIN=$SITE/plain
    start_ceph_plugin
    start_ceph_dockerd
    start_dockerd "$PLAIN" overlay2
    docker load --input "$E2E/small.tar"
}

teardown_file() {
    at "$PLAIN" end_site
    end_site
    search_for_leaks
}

plain() { at "$PLAIN" "$@"; }

id_of() { docker image inspect --format '{{.Id}} {{json .RootFS.Layers}}' "$1"; }

# digests_in ARCHIVE: those of the config and of the layers of the one image that it holds. Docker 25 and newer saves an OCI
# layout, in which more than the image stands.
digests_in() {
    local file
    tar --extract --to-stdout --file "$1" manifest.json | jq --raw-output '.[0] | .Config, .Layers[]' | while read -r file; do
        tar --extract --to-stdout --file "$1" "$file" | sha256sum
    done
}

# change_image NAME: from `small`, an image with whatever a layer can hold.
change_image() {
    # shellcheck disable=SC2016 # the container's shell expands it
    docker run --name changer small sh -c '
        echo "$(hostname)" >/unique
        mkdir -p "/odd/with space" && printf x >"/odd/with space/umlaut ä"
        ln /bin/busybox /odd/hard && ln -s ../bin /odd/soft && ln -s /nowhere /odd/dangling
        touch /odd/set && chmod 4755 /odd/set && chown 12345:54321 /odd/set
        mknod /odd/device c 1 3 && mkfifo /odd/fifo
        dd if=/dev/zero of=/odd/sparse bs=1 count=1 seek=1000000
        rm -r /layers && mkdir /layers && touch /layers/opaque'
    docker commit changer "$1"
    docker rm changer
}

# look_at NAME: every file of an image as a container sees it. The sizes of directories are the file system's.
look_at() {
    # shellcheck disable=SC2016 # the container's shell expands it
    docker run --rm "$1" sh -c '
        set -ef -o pipefail
        docker="-path /.dockerenv -o -path /proc -o -path /sys -o -path /dev -o -path /etc/host* -o -path /etc/mtab -o -path /etc/resolv.conf"
        find / \( $docker \) -prune -o -type d ! -path / -exec stat -c "%n %A %u %g" {} + | sort
        find / \( $docker \) -prune -o ! -type d -exec stat -c "%N %A %u %g %s %h %t %T %Y" {} + | sort
        find / \( $docker \) -prune -o -type f -exec md5sum {} + | sort'
}

# bats test_tags=debian13
@test "save: an image made on Ceph is the same image on overlay2" {
    change_image travelled
    docker save --output "$SITE/travelled.tar" travelled
    plain docker load --input "$SITE/travelled.tar"
    [[ $(id_of travelled) == "$(plain id_of travelled)" ]]
    look_at travelled >"$SITE/here"
    plain look_at travelled >"$SITE/there"
    run -0 diff "$SITE/here" "$SITE/there"
    run -0 grep --count /odd/ "$SITE/here"
    ((output >= 12))
}

# bats test_tags=debian13
@test "load: an image made on overlay2 is the same image on Ceph, and is saved as it came" {
    plain docker load --input "$E2E/small.tar"
    plain change_image arrived
    plain docker save --output "$SITE/arrived.tar" arrived
    docker load --input "$SITE/arrived.tar"
    [[ $(id_of arrived) == "$(plain id_of arrived)" ]]
    look_at arrived >"$SITE/here"
    plain look_at arrived >"$SITE/there"
    [[ -s $SITE/here ]]
    run -0 diff "$SITE/here" "$SITE/there"
    docker save --output "$SITE/again.tar" arrived
    run -0 digests_in "$SITE/arrived.tar"
    # The config, and a layer more than `small` has.
    [[ $(sort --unique <<<"$output" | wc -l) == 5 ]]
    [[ $output == "$(digests_in "$SITE/again.tar")" ]]
}

# bats test_tags=debian13
@test "import of an export: one layer with everything" {
    docker run --name exported small sh -c 'echo flat >/flat'
    docker export exported | docker import - flattened
    # shellcheck disable=SC2016 # the container's shell expands it
    run -0 docker run --rm flattened sh -c 'cat /flat /last; echo /only-in-*'
    [[ ${lines[*]} == "flat 2 /only-in-2" ]]
    forget_exports
}

@test "the deepest image that Docker allows: 124 layers load and run, and one more can be put on them" {
    # moby layer/layer_store.go, maxLayerDepth: 125.
    "$BATS_TEST_DIRNAME/../make_image.py" --base "$E2E/busybox.tar" --layers 124 deep:latest "$SITE/deep.tar"
    # A second each where the machine is busy.
    DOCKER_SECONDS=600 docker_cli "$SITE" load --input "$SITE/deep.tar"
    # shellcheck disable=SC2016 # the container's shell expands it
    run -0 docker run --name deeper deep sh -c 'cat /last; ls /layers | wc -l; echo /only-in-*; echo 124 >/last'
    [[ ${lines[*]} == "123 123 /only-in-123" ]]
    run -0 docker diff deeper
    [[ $output == "C /last" ]]
    docker commit deeper deepest
    run -0 docker run --rm deepest cat /last
    [[ $output == 124 ]]
    docker rm deeper
    docker rmi deepest deep
}

@test "Debian with python3: every file as its package has it, and python3 runs" {
    docker import "$(debian_image)" debian
    run -0 docker run --rm debian python3 -c 'import sys; print(sum(range(10)), sys.prefix)'
    [[ $output == "45 /usr" ]]
    # Compares each file with the checksum that came with its package.
    run -0 docker run --rm debian dpkg --verify
    [[ -z $output ]]
    run docker run --rm debian sh -c 'echo >>/usr/bin/ldd && dpkg --verify'
    [[ $output == *" /usr/bin/ldd" ]]
    docker run --name installer debian sh -c 'rm -rf /var/lib/apt/lists/* && useradd --create-home somebody'
    docker commit installer derived
    run -0 docker run --rm --user somebody derived sh -c 'id -un; stat -c %U ~'
    [[ ${lines[*]} == "somebody somebody" ]]
}

# bats test_tags=debian13
@test "nothing is left" {
    plain remove_everything
    nothing_is_left
}
