#!/usr/bin/env bats
# What dockerd --storage-opt ceph.X=Y does, and what dockerd prints when a value is refused.

load helpers

# One dockerd with many options, for the tests of what they do.
setup_file() {
    new_site
    rbd namespace create rbd/tests
    start_ceph_plugin
    start_ceph_dockerd --storage-opt ceph.namespace=tests --storage-opt ceph.imageprefix=other \
        --storage-opt ceph.fs=ext4 --storage-opt ceph.mkfsarg="-b 1024" --storage-opt ceph.mkfsarg="-m 0" \
        --storage-opt ceph.basesize=1G --storage-opt ceph.mountopt=noatime --storage-opt ceph.mountopt=lazytime \
        --storage-opt ceph.timeout=30
    docker load --input "$E2E/small.tar"
}

# refused OPTION...: a dockerd with these options ends; what it says of it is in $output.
refused() {
    local other=$SITE/refused
    run ! at "$other" start_ceph_dockerd "$@"
    at "$other" end_site
    run -0 grep 'Failed to GetDriver graph' "$other/dockerd.log"
    rm -rf "$other"
}

@test "namespace, imageprefix: the images are where and what they were told to be" {
    start_sleeper placed
    run -0 rbd ls rbd/tests
    [[ $(grep --count --invert-match '^other_' <<<"$output") == 0 ]]
    [[ ${lines[*]} == *other_base_image* && ${lines[*]} == *"$(data_of placed Image)"* ]]
    run -0 rbd ls rbd
    [[ $output != *other_* ]]
    run -0 docker info
    [[ $output == *" Namespace: tests"* && $output == *" Image Prefix: other"* ]]
    [[ $(data_of placed Pool) == rbd/tests ]]
}

@test "fs=ext4, mkfsarg, mountopt, basesize: what a container gets" {
    local options
    start_sleeper shaped
    run -0 docker exec shaped sh -c "grep ' / ' /proc/mounts; stat -f -c '%S %b' /"
    [[ ${lines[0]} == *" / overlay "*,noatime,* ]]
    options=$(findmnt --noheadings --output FSTYPE,OPTIONS "$(dirname "$(data_of shaped MountPoint)")/layer")
    [[ ,$options, == ,ext4\ *,noatime,* && ,$options, == *,lazytime,* ]]
    [[ ${lines[1]} =~ ^1024\ ([0-9]+)$ ]]
    ((BASH_REMATCH[1] > 950000 && BASH_REMATCH[1] < 1048576))
    run -0 docker info
    [[ $output == *" Base Size: 1G"* && $output == *" Backing Filesystem: ext4"* ]]
}

# names_in ARCHIVE: those of all layers of the one image that it holds.
names_in() {
    local file
    tar --extract --to-stdout --file "$1" manifest.json | jq --raw-output '.[0].Layers[]' | while read -r file; do
        tar --extract --to-stdout --file "$1" "$file" | tar --list
    done
}

@test "fs=ext4: a container's root has no lost+found, and a commit has none" {
    run -0 docker run --name rooted small ls -A /
    [[ ${lines[*]} == ".dockerenv bin dev etc last layers only-in-2 proc root sys tmp" ]]
    docker commit rooted committed
    docker save --output "$SITE/committed.tar" committed
    run -0 names_in "$SITE/committed.tar"
    [[ $output == *bin/busybox* && $output != *lost+found* ]]
}

@test "fs=ext4: diff, stop, start, and a container with more space" {
    start_sleeper lived
    run -0 docker exec lived sh -c 'echo kept >/kept; rm /last'
    docker restart lived
    run -0 docker exec lived cat /kept
    [[ $output == kept ]]
    run -0 docker diff lived
    [[ $(sort <<<"$output") == $'A /kept\nD /last' ]]
    run -0 docker run --rm --storage-opt size=3G small stat -f -c '%b' /
    ((output > 2900000))
    run -125 docker run --rm --storage-opt size=512M small true
    [[ $output == *"size 512M is smaller than 1G"* ]]
}

@test "an unknown option: dockerd ends and prints it with those that are valid" {
    refused --storage-opt ceph.colour=red
    [[ $output == *"unknown storage option 'ceph.colour'; valid are ceph.basesize, ceph.datapool, "* ]]
    [[ $output == *"ceph.timeout"* ]]
}

@test "bad values: dockerd ends and prints the option, the value and what is expected" {
    local case
    for case in "basesize=lots|'lots' is not a size" "basesize=1M|too small for a file system" "fs=zfs|xfs, ext4" \
        "devicetype=scsi|krbd, nbd" "timeout=0|seconds from 1 to 3600" "imageprefix=a/b|is not a name"; do
        refused --storage-opt "ceph.${case%%|*}"
        [[ $output == *"storage option ceph.${case%%=*}: "*"${case#*|}"* ]]
    done
}

@test "what is missing in the cluster: dockerd ends and prints how to make it" {
    refused --storage-opt ceph.datapool=nowhere
    [[ $output == *"pool nowhere does not exist; make it with: ceph osd pool create nowhere"* ]]
    refused --storage-opt ceph.namespace=nowhere
    [[ $output == *"rbd namespace create rbd/nowhere"* ]]
    refused --storage-opt ceph.client=nobody
    [[ $output == *"no Ceph cluster answers client.nobody"* ]]
    refused --storage-opt ceph.configfile=/nowhere/ceph.conf
    [[ $output == *"/nowhere/ceph.conf does not exist"* ]]
    refused --storage-opt ceph.namespace=tests --storage-opt ceph.imageprefix=other
    [[ $output == *"ceph.fs=xfs, but other_base_image in pool rbd holds ext4"* ]]
}

@test "a cluster that does not answer: dockerd ends within the timeout" {
    local start=$SECONDS
    # Nothing listens on the discard port.
    sed 's/^mon_host = .*/mon_host = 127.0.0.1:9/' "$CEPH_CONF" >"$SITE/dead.conf"
    refused --storage-opt "ceph.configfile=$SITE/dead.conf" --storage-opt ceph.timeout=3
    [[ $output == *"no Ceph cluster answers"*"$SITE/dead.conf"* ]]
    ((SECONDS - start < 15))
}

@test "nothing is left" {
    nothing_is_left other tests
}
