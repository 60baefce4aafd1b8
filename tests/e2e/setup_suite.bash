#!/bin/bash
# Once for all files of a run: a cluster, and the archives of which images are made.

setup_suite() {
    # shellcheck source=../lib.bash
    source "$BATS_TEST_DIRNAME/../lib.bash"
    E2E=$(mktemp -d /var/tmp/dgd-e2e.XXXXXX)
    export E2E LAB_FAST_SNAPSHOTS=1
    "$repo/tests/cluster.sh" up "$E2E/ceph" 3>&-
    eval "$("$repo/tests/cluster.sh" env "$E2E/ceph")"
    busybox_image >"$E2E/busybox.tar"
    "$repo/tests/make_image.py" --base "$E2E/busybox.tar" --layers 3 small:latest "$E2E/small.tar"
}

teardown_suite() {
    "$repo/tests/cluster.sh" down "$E2E/ceph"
    rm -rf --one-file-system "$E2E"
}
