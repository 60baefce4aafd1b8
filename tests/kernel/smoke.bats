#!/usr/bin/env bats
# Proves the virtual machine itself: krbd and rbd-nbd in it work on the host's cluster; commands and their results come through. Images are made here, natively, and mapped in the guest.
#
# Needs root and the packages of `vm.sh packages` and of tests/cluster.sh. Takes about a minute.

bats_require_minimum_version 1.5.0

setup_file() {
    BATS_TEST_DIRNAME=$(cd "$BATS_TEST_DIRNAME" && pwd)
    LAB=$(mktemp -d /var/tmp/kernel-smoke.XXXXXX)
    export LAB VM=$BATS_TEST_DIRNAME/vm.sh CLUSTER=$BATS_TEST_DIRNAME/../cluster.sh CEPH_CONF=$LAB/ceph/ceph.conf
    LAB_FAST_SNAPSHOTS=1 "$CLUSTER" up "$LAB/ceph" >&3
    VM_LIFE=900 "$VM" up "$LAB/vm" "$LAB/ceph" >&3
}

teardown_file() {
    "$VM" down "$LAB/vm"
    "$CLUSTER" down "$LAB/ceph"
    rmdir "$LAB"
}

guest() { "$VM" run "$LAB/vm" --seconds 120 "$@"; }

# write_and_read_back TYPE [OPTION...]: a file system made, written, unmapped, mapped again and read; the options are for
# map and unmap.
write_and_read_back() {
    rbd create --size 512M "$1"
    # shellcheck disable=SC2016 # the guest's shell expands it
    guest sh -euxc '
        type=$1; shift
        mkdir -p /mnt/smoke
        device=$(rbd device map --device-type "$type" "$@" "$type")
        mkfs.xfs -q -K "$device"
        mount "$device" /mnt/smoke
        cp /etc/passwd /mnt/smoke/
        umount /mnt/smoke
        rbd device unmap --device-type "$type" "$@" "$device"
        device=$(rbd device map --device-type "$type" "$@" "$type")
        mount -o noatime "$device" /mnt/smoke
        cmp /etc/passwd /mnt/smoke/passwd
        umount /mnt/smoke
        rbd device unmap --device-type "$type" "$@" "$device"
        test "$(rbd device list --device-type "$type" --format json)" = "[]"
    ' smoke "$@"
}

@test "the kernel maps the image features that the driver makes" {
    run -0 --separate-stderr guest cat /sys/bus/rbd/supported_features
    # layering, exclusive-lock, object-map, fast-diff, deep-flatten; operations (parents of format-2 clones)
    (((output & 0x13d) == 0x13d))
}

@test "krbd: xfs keeps what was written, over unmap and map" {
    write_and_read_back krbd --options noudev
}

@test "rbd-nbd: xfs keeps what was written, over unmap and map" {
    write_and_read_back nbd
}

@test "a command's output, error output and exit status come back apart" {
    run -7 --separate-stderr guest sh -c 'echo out; echo err >&2; exit 7'
    # shellcheck disable=SC2154 # bats sets it
    [[ $output == out && $stderr == err ]]
    run -127 guest no-such-program
    run -143 guest sh -c 'kill $$'
}

@test "a command ends at its deadline, with all that it started; one that leaves a daemon does not wait for it" {
    # shellcheck disable=SC2016 # the guest's shell expands it
    run -124 "$VM" run "$LAB/vm" --seconds 2 sh -c 'sleep 600 & echo $!; wait'
    guest test ! -e "/proc/$output"
    SECONDS=0
    # shellcheck disable=SC2016
    run -0 guest sh -c 'setsid sleep 600 & echo $!'
    ((SECONDS < 30))
    guest kill "$output"
}

@test "what the guest writes stays in the guest, and the host's tree, which it sees, it cannot write" {
    local how name
    echo host >"$LAB/seen"
    guest sh -c 'echo guest >/etc/kernel-smoke && cat /etc/kernel-smoke'
    [[ ! -e /etc/kernel-smoke ]]
    for how in ro rw; do
        # The guest's root may make it writable for itself; it is still not the host's word.
        guest mount -o "remount,$how" /host
        run -0 guest cat "/host$LAB/seen"
        [[ $output == host ]]
        for name in seen new; do
            run ! guest sh -c "echo guest >/host$LAB/$name"
            [[ $output == *"Read-only file system"* ]]
        done
    done
    [[ $(<"$LAB/seen") == host && ! -e $LAB/new ]]
    rm "$LAB/seen"
}

@test "the guest reaches the cluster and nothing else" {
    run ! guest timeout 5 bash -c 'echo >/dev/tcp/192.0.2.1/80'
    [[ $output == *unreachable* ]]
}

@test "a wrong token runs nothing" {
    mkdir "$LAB/stranger"
    cp "$LAB/vm/port" "$LAB/stranger/"
    echo wrong >"$LAB/stranger/token"
    run -125 "$VM" run "$LAB/stranger" true
    cp "$LAB/vm/token" "$LAB/stranger/"
    run -0 "$VM" run "$LAB/stranger" true
    rm -r "$LAB/stranger"
}
