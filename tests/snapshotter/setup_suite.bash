#!/bin/bash
# Once for all files of a run: a cluster, and the archive of an image.
# Environment: LAB_DIR=DIR  a cluster that is up already

setup_suite() {
    # shellcheck source=../lib.bash
    source "$BATS_TEST_DIRNAME/../lib.bash"
    # Short: a path of a socket has at most 107 bytes.
    E2E=$(mktemp -d /var/tmp/dgd-snap.XXXXXX)
    export E2E LAB_FAST_SNAPSHOTS=1
    if [[ ${SNAPSHOTTER:-ceph} == ceph ]]; then
        [[ -n ${LAB_DIR:-} ]] || "$repo/tests/cluster.sh" up "$E2E/ceph" 3>&-
        eval "$("$repo/tests/cluster.sh" env "${LAB_DIR:-$E2E/ceph}")"
    fi
    busybox_image >"$E2E/busybox.tar"
    "$repo/tests/make_image.py" --base "$E2E/busybox.tar" --layers 3 small:latest "$E2E/small.tar"
}

teardown_suite() {
    [[ -n ${LAB_DIR:-} || ! -d $E2E/ceph ]] || "$repo/tests/cluster.sh" down "$E2E/ceph"
    rm -rf --one-file-system "$E2E"
}
