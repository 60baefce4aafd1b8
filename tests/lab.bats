#!/usr/bin/env bats
# The lab itself: tests/cluster.sh, the stand-in for krbd and tests/leaks.sh, on a real cluster.

bats_require_minimum_version 1.5.0

# shellcheck source=lib.bash
source "$BATS_TEST_DIRNAME/lib.bash"

setup_file() {
    export TESTS
    TESTS=$(cd "$BATS_TEST_DIRNAME" && pwd)
    LAB=$(mktemp -d /tmp/lab.XXXXXX)
    export LAB
    export LAB_FAST_SNAPSHOTS=1 LAB_OSD_SIZE=8G
    # A cluster that is slow for a moment is no defect of the stand-in.
    export RBD_STAND_IN_CLOSE_SECONDS=60
    # Both at once, as two suites would.
    "$TESTS/cluster.sh" up "$LAB/one" >"$LAB/one.out" 3>&- &
    local first=$!
    "$TESTS/cluster.sh" up "$LAB/two" >"$LAB/two.out" 3>&-
    wait "$first"
    eval "$("$TESTS/cluster.sh" env "$LAB/one")"
    "$TESTS/leaks.sh" snapshot "$LAB/before" "$LAB/one/ceph.conf"
}

teardown_file() {
    "$TESTS/cluster.sh" down "$LAB/one"
    "$TESTS/cluster.sh" down "$LAB/two"
    rm -rf "$LAB"
}

setup() {
    image="t$BATS_TEST_NUMBER"
    mnt="$LAB/mnt"
    mkdir -p "$mnt"
    # Nothing here starts these; somebody beside us may.
    ours_not='dockerd|containerd|docker_graph_driver|^mount: .*(docker|dgd-|/data )|^loop device: .*\.img'
}

# Whatever a test leaves on failure: its mount, its mappings, its image.
teardown() {
    umount "$mnt" 2>/dev/null || true
    local kind device
    for kind in krbd nbd; do
        for device in $(rbd device list --device-type $kind --format json | grep -o '/dev/[a-z]*[0-9]*'); do
            rbd device unmap --device-type $kind --options noudev,force "$device" || true
        done
    done
    if rbd info "$image" >/dev/null 2>&1; then
        rbd snap purge --no-progress "$image"
        rbd rm --no-progress "$image"
    fi
}

fails_with() {
    local expected=$1
    shift
    run "$@"
    echo "expected $expected, got $status: $output"
    [[ $status == "$expected" ]]
}

# A killed client stays a watcher for 30 s; on a blocklist it does not.
forget_watchers() {
    local address
    for address in $(rbd status --format json "$1" | grep -o '"address":"[^"]*"' | cut -d '"' -f 4); do
        ceph osd blocklist add "$address"
    done
}

# The type has to be a kernel's own where the test is about how the stand-in does it.
only_stand_in() { requires "a kernel without rbd" test ! -d /sys/bus/rbd; }

mapped() { rbd device list --format json; }

new_image() { rbd create --size 1G "${1:-$image}"; }

# server_of IMAGE: the pid of the stand-in's daemon that serves it.
server_of() {
    local pid
    cat /run/rbd-stand-in/*/m-*/pid | while read -r pid; do
        ! grep -qs "$1" "/proc/$pid/cmdline" || echo "$pid"
    done
}

# Whether a list of devices has found nothing more of the image to end. What a killed map has started may live a moment longer.
cleaned() {
    [[ $(mapped) == "[]" ]] && ! grep --quiet --no-messages "$image" /run/rbd-stand-in/*/m-*/meta &&
        [[ $(rbd status --format json "$image") == *'"watchers":[]'* ]]
}

healthy() { [[ $(ceph --conf "$1" health) == HEALTH_OK* ]]; }

@test "two clusters at once are healthy, apart, and say how images are mapped" {
    grep -E '^map: (krbd|stand-in)' "$LAB/one.out"
    eventually healthy "$LAB/two/ceph.conf"
    [[ $(ceph --conf "$LAB/one/ceph.conf" fsid) != $(ceph --conf "$LAB/two/ceph.conf" fsid) ]]
    run ! diff "$LAB/one/ports" "$LAB/two/ports"
    rbd --conf "$LAB/two/ceph.conf" --id admin ls
}

@test "listening sockets are on loopback and within the ports file" {
    local first last address
    # shellcheck disable=SC2034
    IFS='=:' read -r _ first last < <(grep ^all= "$LAB/one/ports")
    for address in $(ss --no-header -tlnp | grep -F "pid=$(<"$LAB/one/run/osd.0.pid")," | awk '{print $4}'); do
        [[ $address == 127.0.0.1:* ]]
        ((${address##*:} >= first && ${address##*:} <= last))
    done
}

@test "up refuses a directory that holds something, down one that isn't its own" {
    mkdir "$LAB/full" && touch "$LAB/full/precious"
    fails_with 1 "$TESTS/cluster.sh" up "$LAB/full"
    fails_with 1 "$TESTS/cluster.sh" down "$LAB/full"
    [[ -e $LAB/full/precious ]]
    fails_with 1 "$TESTS/cluster.sh" up "$LAB/one"
}

@test "a failed up says the step and leaves nothing" {
    mkdir "$LAB/fake"
    printf '#!/bin/sh\necho broken osd; exit 1\n' >"$LAB/fake/ceph-osd"
    chmod +x "$LAB/fake/ceph-osd"
    PATH="$LAB/fake:$PATH" fails_with 1 "$TESTS/cluster.sh" up "$LAB/three"
    [[ $output == *"FAILED while making the store of osd.0"* && $output == *"broken osd"* ]]
    [[ ! -e $LAB/three ]]
    run processes_with "$LAB/three/ceph.conf"
    [[ -z $output ]]
    # So they would be seen.
    run processes_with "$LAB/one/ceph.conf"
    [[ -n $output ]]
}

@test "up killed in the middle: down cleans, twice" {
    "$TESTS/cluster.sh" up "$LAB/killed" 3>&- >/dev/null 2>&1 &
    local up=$!
    until [[ -e $LAB/killed/run/mon.a.pid ]]; do sleep 0.1; done
    kill -KILL "$up"
    "$TESTS/cluster.sh" down "$LAB/killed"
    "$TESTS/cluster.sh" down "$LAB/killed"
    [[ ! -e $LAB/killed ]]
}

@test "a missing package is named" {
    mkdir -p "$LAB/bare"
    local tool
    for tool in bash dirname realpath id ls ss flock ceph rbd monmaptool ceph-authtool ceph-mon ceph-mgr; do
        ln -sf "$(command -v $tool)" "$LAB/bare/$tool"
    done
    PATH="$LAB/bare" fails_with 1 "$TESTS/cluster.sh" up "$LAB/four"
    [[ $output == *"missing packages"*" ceph-osd"* && $output != *ceph-mon* ]]
}

@test "map, mkfs, write, unmap: the data is in the cluster" {
    new_image
    local device sum
    device=$(rbd device map --device-type krbd --exclusive --options noudev "rbd/$image")
    [[ -b $device ]]
    mkfs.xfs -q -K "$device"
    mount "$device" "$mnt"
    dd if=/dev/urandom of="$mnt/file" bs=1M count=20 status=none
    sum=$(sha256sum <"$mnt/file")
    umount "$mnt"
    rbd device unmap --options noudev "$device"
    [[ $(mapped) == "[]" ]]
    # Another client's view, so that no cache of the first can help.
    device=$(rbd device map --read-only --options noudev "$image")
    mount -o ro,norecovery "$device" "$mnt"
    [[ $(sha256sum <"$mnt/file") == "$sum" ]]
}

@test "writes in parallel arrive as they were" {
    new_image
    local device n pids=()
    device=$(rbd map --exclusive --options noudev "$image")
    dd if=/dev/urandom of="$LAB/random" bs=1M count=64 status=none
    for n in {0..7}; do
        # Small and large, direct and through the page cache.
        dd if="$LAB/random" of="$device" bs=$((n % 2 ? 4 : 256))k skip=$((n * 8))M seek=$((n * 8))M count=8M \
            iflag=skip_bytes,count_bytes oflag=seek_bytes"$( ((n < 4)) && echo ,direct)" conv=notrunc status=none 3>&- &
        pids+=($!)
    done
    for n in "${pids[@]}"; do wait "$n"; done
    rbd unmap --options noudev "$device"
    rbd export --no-progress "$image" - | cmp --bytes $((64 << 20)) - "$LAB/random"
    rm "$LAB/random"
}

@test "an image is free as soon as it is unmapped: no watcher, no lock, snapshot and removal work" {
    new_image
    local device
    device=$(rbd device map --exclusive --options noudev "$image")
    dd if=/dev/zero of="$device" bs=1M count=1 oflag=direct status=none
    rbd device unmap --options noudev "$device"
    [[ $(rbd status --format json "$image") == *'"watchers":[]'* ]]
    [[ -z $(rbd lock ls "$image") ]]
    rbd snap create --no-progress "$image@s"
    rbd snap rm --no-progress "$image@s"
    rbd rm --no-progress "$image"
}

@test "unmap of a mounted device is 16, also when mounted in another namespace" {
    new_image
    local device
    device=$(rbd device map --exclusive --options noudev "$image")
    mkfs.xfs -q -K "$device"
    mount "$device" "$mnt"
    fails_with 16 rbd device unmap --options noudev "$device"
    unshare --mount --propagation private sleep 60 3>&- &
    local other=$!
    until [[ $(readlink /proc/$other/ns/mnt) != $(readlink /proc/self/ns/mnt) ]]; do sleep 0.05; done
    umount "$mnt"
    fails_with 16 rbd device unmap --options noudev "$device"
    kill "$other"
    wait "$other" || true
    rbd device unmap --options noudev "$device"
}

@test "unmap of an open device is 16 and leaves it usable" {
    new_image
    local device
    device=$(rbd device map --options noudev "$image")
    exec 7<"$device"
    fails_with 16 rbd device unmap --options noudev "$device"
    exec 7<&-
    [[ $(mapped) == *"$device"* ]]
    rbd device unmap --options noudev "$device"
}

@test "unmap twice is 22, map of a missing image 2, an unknown option 22" {
    new_image
    local device
    device=$(rbd device map --options noudev "$image")
    rbd unmap "$device"
    fails_with 22 rbd unmap "$device"
    fails_with 22 rbd unmap "$image"
    fails_with 2 rbd map --options noudev no-such-image
    fails_with 22 rbd map --options noudev,no-such-option "$image"
    [[ $(mapped) == "[]" ]]
}

@test "list is a JSON list in the shape of each type" {
    new_image
    local device
    [[ $(mapped) == "[]" && $(rbd device list --device-type nbd --format json) == "[]" ]]
    device=$(rbd map --options noudev "$image")
    mapped | python3 -c "
import json, sys
[row] = json.load(sys.stdin)
assert row.pop('id').isdigit()
assert row == dict(pool='rbd', namespace='', name='$image', snap='-', device='$device'), row"
    only_stand_in
    device=$(rbd device map --device-type nbd "$image")
    rbd device list --device-type nbd --format json | python3 -c "
import json, sys
[row] = json.load(sys.stdin)
assert isinstance(row.pop('id'), int)
assert row == dict(pool='rbd', namespace='', image='$image', snap='', device='$device', cookie=''), row"
}

@test "a second client can't map what is mapped exclusively: 30; read-only it can" {
    new_image
    rbd map --exclusive --options noudev "$image"
    fails_with 30 rbd map --exclusive --options noudev "$image"
    fails_with 30 rbd map --options noudev "$image"
    only_stand_in
    RBD_STAND_IN_DIR="$LAB/other-host" fails_with 30 rbd map --exclusive "$image"
    rbd map --read-only --options noudev "$image"
}

@test "verbs that the kernel refuses on an exclusively mapped image" {
    new_image
    rbd map --exclusive --options noudev "$image"
    fails_with 30 rbd snap create --no-progress "$image@s"
    fails_with 30 rbd resize --no-progress --size 2G "$image"
    fails_with 16 rbd trash mv "$image"
    fails_with 16 rbd rm --no-progress "$image"
    rbd info "$image"
}

@test "a device sees its image grow, unless that is mapped exclusively" {
    only_stand_in
    new_image
    local device
    device=$(rbd map --options noudev "$image")
    rbd resize --no-progress --size 2G "$image"
    [[ $(blockdev --getsize64 "$device") == $((2 << 30)) ]]
    dd if=/dev/urandom of="$device" bs=1M count=1 seek=2000 oflag=direct
    rbd resize --no-progress "$image" --size 3G
    [[ $(blockdev --getsize64 "$device") == $((3 << 30)) ]]
}

@test "a plain second map warns and gives a second device" {
    new_image
    local first second
    first=$(rbd map --options noudev "$image")
    second=$(rbd map --options noudev "$image" 2>"$LAB/warning")
    [[ $second != "$first" ]]
    grep "already mapped as $first" "$LAB/warning"
}

@test "read-only maps and snapshots are read-only devices and take no lock" {
    new_image
    rbd snap create --no-progress "$image@s"
    local device
    for device in $(rbd map --read-only --options noudev "$image") $(rbd map --options noudev "rbd/$image@s"); do
        [[ $(blockdev --getro "$device") == 1 ]]
        run ! dd if=/dev/zero of="$device" bs=4k count=1 oflag=direct
    done
    [[ -z $(rbd lock ls "$image") ]]
    mapped | grep '"snap":"s"'
    rbd unmap "rbd/$image@s"
}

@test "an image in a namespace, by spec and by options" {
    rbd namespace ls --format json | grep -q '"hosts"' || rbd namespace create rbd/hosts
    new_image "rbd/hosts/$image"
    rbd map --options noudev "rbd/hosts/$image"
    mapped | grep '"namespace":"hosts"'
    rbd unmap "rbd/hosts/$image"
    rbd map --pool rbd --namespace hosts --image "$image" --options noudev
    rbd unmap --pool rbd --namespace hosts --image "$image"
    rbd rm --no-progress "rbd/hosts/$image"
    rbd namespace rm rbd/hosts
}

@test "unmap by force drops what was not written, and the device with its last user" {
    new_image
    local device
    device=$(rbd map --exclusive --options noudev "$image")
    mkfs.xfs -q -K "$device"
    mount "$device" "$mnt"
    echo lost >"$mnt/file"
    rbd unmap --options noudev,force "$device"
    run ! sync --file-system "$mnt"
    umount "$mnt"
    [[ $(mapped) == "[]" ]]
    device=$(rbd map --exclusive --options noudev "$image")
    mount "$device" "$mnt"
    [[ ! -s $mnt/file ]]
}

@test "a killed storage daemon is found, and its leavings are cleaned" {
    only_stand_in
    new_image
    local pid device
    device=$(rbd map --read-only "$image")
    pid=$(server_of "$image")
    kill -KILL "$pid"
    until ! grep -qs qemu "/proc/$pid/cmdline"; do sleep 0.05; done
    [[ $(mapped) == "[]" ]]
    # Its number may be another test's by now. A device whose file was unmounted does not tell more than "/".
    run ! grep -sE "stand-in/$(ceph fsid)|^/$" "/sys/block/${device#/dev/}/loop/backing_file"
    fails_with 22 rbd unmap "$device"
    forget_watchers "$image"
}

@test "a list of devices serves to detach them when their daemons have ended, with their mounts and without" {
    only_stand_in
    new_image
    local loop loops with_mount
    for with_mount in yes no; do
        loop=$(rbd map --read-only "$image")
        loops=$(loops_served_for $$ | grep "^$loop,")
        kill -KILL "$(server_of "$image")"
        [[ $with_mount == yes ]] || umount --lazy "${loops#*,}"
        detach_loops "$loops"
        [[ ! -e /sys/block/${loop#/dev/}/loop ]]
        [[ $(mapped) == "[]" ]]
    done
    forget_watchers "$image"
}

@test "a list of devices from before does no harm to a device that has the number of one now" {
    only_stand_in
    new_image
    local loop
    loop=$(rbd map --read-only "$image")
    detach_loops "$loop,/run/rbd-stand-in/of-before/m-00000000/export"
    [[ $(mapped) == *"$loop"* && $(file_of "$loop") == */export ]]
    dd if="$loop" of=/dev/null bs=1M count=1 iflag=direct status=none
}

@test "a map killed while its device is being attached is left alone until it has it, and then ends" {
    only_stand_in
    new_image
    local map
    mkdir "$LAB/slow"
    cat >"$LAB/slow/losetup" <<EOF
#!/bin/sh
touch "$LAB/slow/begun"
while [ ! -e "$LAB/slow/go" ]; do sleep 0.05; done
$(command -v losetup) "\$@"
touch "$LAB/slow/ended"
EOF
    chmod +x "$LAB/slow/losetup"
    PATH=$LAB/slow:$PATH rbd map --options noudev "$image" >"$LAB/slow/log" 2>&1 3>&- &
    map=$!
    eventually test -e "$LAB/slow/begun"
    kill -KILL "$map"
    [[ $(mapped) == "[]" ]]
    grep -qs "$image" /run/rbd-stand-in/*/m-*/meta
    touch "$LAB/slow/go"
    eventually test -e "$LAB/slow/ended"
    eventually cleaned
    run ! grep -s "stand-in/$(ceph fsid)" /sys/block/loop*/loop/backing_file
}

@test "a map killed at any moment leaves nothing that the next call doesn't clean" {
    only_stand_in
    new_image
    local delay
    for delay in 0.01 0.02 0.03 0.04 0.05 0.06 0.08 0.1; do
        timeout --signal=KILL "$delay" rbd map --exclusive "$image" || true
        while rbd unmap "$image" 2>/dev/null; do :; done
        eventually cleaned
        rbd map --exclusive "$image" && rbd unmap "$image"
    done
    # It ends with 2 if one of them goes meanwhile, whatever it has found.
    run grep -sH "stand-in/$(ceph fsid)" /sys/block/loop*/loop/backing_file
    [[ -z $output ]]
}

@test "ten maps and unmaps at once" {
    new_image
    rbd snap create --no-progress "$image@s"
    local n pids=()
    for n in {1..10}; do
        (
            device=$(rbd map --options noudev "$image@s") &&
                dd if="$device" of=/dev/null bs=1M count=1 status=none &&
                rbd unmap --options noudev "$device"
        ) 3>&- 2>"$LAB/many.$n" &
        pids+=($!)
    done
    for n in "${pids[@]}"; do wait "$n"; done
    [[ $(mapped) == "[]" ]]
}

@test "leaks.sh tells what is new, and nothing else" {
    LEAKS_IGNORE=$ours_not "$TESTS/leaks.sh" compare "$LAB/before" "$LAB/one/ceph.conf"
    new_image
    rbd map --options noudev "$image"
    mount -t tmpfs none "$mnt"
    LEAKS_GRACE=0 fails_with 1 "$TESTS/leaks.sh" compare "$LAB/before" "$LAB/one/ceph.conf"
    [[ $output == *"image: $image"* && $output == *"krbd mapping: "* && $output == *"mount: none $mnt"* ]]
}

@test "leaks.sh takes a cluster that does not answer for no empty one" {
    # Nothing listens on the discard port.
    sed 's/^mon_host = .*/mon_host = 127.0.0.1:9/' "$LAB/one/ceph.conf" >"$LAB/one/dead.conf"
    LEAKS_IGNORE=$ours_not LEAKS_GRACE=0 fails_with 1 "$TESTS/leaks.sh" compare "$LAB/before" "$LAB/one/dead.conf"
    [[ $output == *"cluster: $LAB/one/dead.conf does not answer"* ]]
    rm "$LAB/one/dead.conf"
}

@test "leaks.sh tells it also while other images come and go" {
    local n going failed=0
    new_image
    rbd snap create --no-progress "$image@s"
    new_image "$image-trashed"
    rbd trash mv "$image-trashed"
    for n in 1 2 3; do
        (
            until [[ -e $LAB/enough ]]; do
                rbd create --size 1M "zzz$n"
                rbd rm --no-progress "zzz$n"
            done
        ) 3>&- >/dev/null 2>&1 &
        going+=" $!"
    done
    export LEAKS_IGNORE="^image: zzz|$ours_not" LEAKS_GRACE=0
    for n in {1..5}; do
        "$TESTS/leaks.sh" snapshot "$LAB/now" "$LAB/one/ceph.conf" && grep --line-regexp "image: $image@s" "$LAB/now" &&
            grep "trash: .* $image-trashed" "$LAB/now" || failed=1
        run "$TESTS/leaks.sh" compare "$LAB/before" "$LAB/one/ceph.conf"
        [[ $status == 1 && $output == *"image: $image@s"* && $output == *"$image-trashed"* ]] || failed=1
    done
    touch "$LAB/enough"
    # shellcheck disable=SC2086 # a list of pids
    wait $going
    rbd trash rm --no-progress "$(rbd trash ls | awk '{ print $1 }')"
    ((failed == 0))
}

@test "unmap by a device's name while another cluster goes" {
    only_stand_in
    local n going failed=0
    export RBD_STAND_IN_DIR="$LAB/other-host"
    mkdir -p "$RBD_STAND_IN_DIR"
    (
        until [[ -e $LAB/enough-of-it ]]; do
            mkdir -p "$RBD_STAND_IN_DIR/gone/exclusive"
            rm -rf "$RBD_STAND_IN_DIR/gone" || true # something may be made in it
        done
    ) 3>&- 2>/dev/null &
    going=$!
    for n in {1..40}; do
        run rbd unmap /dev/loop999
        [[ $status == 22 ]] || { failed=1 && echo "$status: $output"; }
    done
    touch "$LAB/enough-of-it"
    wait "$going"
    rm -rf "$RBD_STAND_IN_DIR"
    ((failed == 0))
}

@test "down drops what is still mapped, and nothing is left" {
    # The other cluster: this file's own is needed for teardown.
    CEPH_CONF=$LAB/two/ceph.conf new_image
    local device
    device=$(CEPH_CONF=$LAB/two/ceph.conf rbd map --options noudev "$image")
    mkfs.xfs -q -K "$device"
    mount "$device" "$mnt"
    run "$TESTS/cluster.sh" down "$LAB/two"
    [[ $status == 0 && $output == *"dropped: $device"* && ! -e $LAB/two ]]
    umount "$mnt"
    LEAKS_IGNORE=$ours_not "$TESTS/leaks.sh" compare "$LAB/before" "$LAB/one/ceph.conf"
}
