#!/usr/bin/env bats
# The life of images, snapshots and containers, as a user of containerd's own client sees it.

load helpers

setup_file() {
    new_site
    start_site
    publish small:latest
    import_small
}

# bats test_tags=debian13
@test "import: each layer is a committed snapshot on the one below it" {
    local chain=()
    mapfile -t chain < <(keys Committed)
    [[ ${#chain[@]} == 3 ]]
    # Each below its parent, and further to the right.
    run -0 snapshots tree
    [[ $(grep --count '^ *\\_ sha256:' <<<"$output") == 2 ]]
    run -0 ctr image check --snapshotter "$SNAPSHOTTER" "name==$SMALL"
    [[ ${lines[1]} == *"complete (4/4)"*"true"* ]]
}

# bats test_tags=debian13
@test "pull, run: a container sees its image's additions, changes and deletions, and gives its exit status" {
    local before
    before=$(keys Committed)
    count_fetches
    pull_by_ctr "$REGISTRY/small:latest"
    [[ $(layers_fetched small:latest) == 3 ]]
    # The same layers: no second snapshot of them.
    [[ $(keys Committed) == "$before" ]]
    # shellcheck disable=SC2016 # the container's shell expands it
    run -3 run_in "$REGISTRY/small:latest" sh -c 'cat /last; echo /only-in-*; exit 3'
    [[ ${lines[*]} == "2 /only-in-2" ]]
    ctr image rm "$REGISTRY/small:latest"
    nothing_is_used
}

@test "the root of a container holds nothing but its image" {
    run -0 run_in "$SMALL" ls -A /
    # proc, sys, dev and run are the runtime's.
    [[ ${lines[*]} == "bin dev etc last layers only-in-2 proc root run sys tmp" ]]
    run -0 run_in "$SMALL" stat -c '%u %g %a' /
    [[ $output == "0 0 755" ]]
}

@test "a container keeps its changes from one start to the next" {
    run -0 with_output run --snapshotter "$SNAPSHOTTER" "$SMALL" keeper \
        sh -c 'test -e /etc/passwd && rm /etc/passwd && echo first >/kept || echo second >>/kept; cat /kept'
    [[ $output == first ]]
    run -0 with_output "task start" keeper
    [[ ${lines[*]} == "first second" ]]
    nothing_is_used
}

@test "containers of one image do not see each other's changes" {
    local n pids=()
    for n in {0..4}; do
        ctr run --detach --null-io --snapshotter "$SNAPSHOTTER" "$SMALL" "many$n" sh -c "echo $n >/mine; sleep 1000" 3>&- &
        pids+=($!)
    done
    wait "${pids[@]}"
    for n in {0..4}; do
        eventually in_container "many$n" test -s /mine
        run -0 in_container "many$n" cat /mine
        [[ $output == "$n" ]]
    done
    run -0 run_in "$SMALL" test ! -e /mine
    for n in {0..4}; do
        stop_container "many$n"
    done
}

# bats test_tags=debian13
@test "snapshots info, usage, diff: what a container has changed" {
    local top
    start_sleeper changed
    run -0 in_container changed sh -c 'dd if=/dev/urandom of=/data bs=1000 count=3000 2>&1; rm /last; echo x >>/etc/passwd; sync'
    run -0 snapshots info changed
    [[ $(jq --raw-output .Kind <<<"$output") == Active ]]
    top=$(jq --raw-output .Parent <<<"$output")
    [[ $top == sha256:* ]]
    [[ $(keys Committed) == *"$top"* ]]
    run -0 snapshots usage -b changed
    read -r _ size inodes <<<"${lines[1]}"
    ((size >= 3000000 && size < 3500000 && inodes >= 4 && inodes < 20))
    snapshots diff changed >"$SITE/diff.tar"
    run -0 tar --list --file "$SITE/diff.tar"
    # What else is there, runc has made to mount on it.
    [[ $(grep --invert-match --extended-regexp '^(dev|proc|run|sys)/$' <<<"$output" | sort) == $'.wh.last\ndata\netc/\netc/passwd' ]]
    # Looking has changed nothing, and left nothing.
    [[ $(in_container changed stat -c %s /data) == 3000000 ]]
    [[ $(keys View) == "" ]]
    stop_container changed
    snapshots diff changed >"$SITE/again.tar"
    [[ $(tar --list --file "$SITE/again.tar" | sort) == "$(sort <<<"$output")" ]]
    nothing_is_used
}

# mounted_by KEY COMMAND...: the command, while a snapshot is mounted as `ctr snapshots mounts` tells it, at $SITE/mnt.
mounted_by() {
    local said key=$1 status=0
    shift
    mkdir -p "$SITE/mnt"
    said=$(snapshots mounts "$SITE/mnt" "$key")
    [[ $said == "mount -t "* ]]
    # As containerd mounts it: by the newer calls, which mount(8) prefers, an option has 255 bytes at the most.
    export LIBMOUNT_FORCE_MOUNT2=always
    eval "$said"
    "$@" || status=$?
    umount "$SITE/mnt"
    return "$status"
}

@test "snapshots prepare, commit, view: an image's file system changed without a container" {
    local top
    top=$(top_of_small)
    snapshots prepare mine "$top"
    mounted_by mine sh -c "cat $SITE/mnt/last && echo mine >$SITE/mnt/file && rm $SITE/mnt/only-in-2"
    snapshots commit committed mine
    run -1 snapshots info mine
    [[ $output == *"not found"* ]]
    [[ $(snapshots info committed | jq --raw-output .Parent) == "$top" ]]
    snapshots view look committed
    run -0 mounted_by look sh -c "cat $SITE/mnt/file; ls $SITE/mnt; ! touch $SITE/mnt/other"
    [[ $output == mine* && $output != *only-in-2* && $output == *"Read-only"* ]]
    # What others stand on stays.
    run -1 snapshots delete committed
    snapshots delete look
    snapshots delete committed
    run -1 snapshots info committed
}

# bats test_tags=debian13
@test "run --remap-labels: in a user namespace root's files are its root's, and what it writes is another's on the host" {
    requires "a snapshotter outside of containerd" ours
    # runc looks for the root as a user of the namespace.
    chmod 0711 "$E2E"
    run -0 with_output run --snapshotter "$SNAPSHOTTER" --remap-labels --uidmap 0:100000:65536 --gidmap 0:100000:65536 \
        "$SMALL" remapped sh -c 'stat -c "%u %g" / /bin /etc/passwd && rm -f /last && echo x >>/etc/passwd && touch /mine && cat /proc/self/uid_map'
    [[ ${lines[*]:0:3} == "0 0 0 0 0 0" ]]
    read -r inside outside size <<<"${lines[3]}"
    [[ "$inside $outside $size" == "0 100000 65536" ]]
    run -0 mounted_by remapped stat -c "%u %g" "$SITE/mnt" "$SITE/mnt/mine" "$SITE/mnt/etc/passwd" "$SITE/mnt/bin"
    [[ $(sort --unique <<<"$output") == "100000 100000" ]]
    # To all others they are root's still.
    run -0 run_in "$SMALL" stat -c "%u %g" /last /etc/passwd
    [[ ${lines[*]} == "0 0 0 0" ]]
    # Starts again, also after the snapshotter has.
    restart_snapshotter KILL
    run -0 with_output "task start" remapped
    [[ ${lines[0]} == "0 0" ]]
    ctr containers delete remapped
    # Nothing is left of it on this host.
    eventually nothing_is_mounted
    [[ $(ls "$SITE/snapshotter/idmapped") == "" ]]
    nothing_is_used
}

# top_of_small: the snapshot of the last layer of the image.
top_of_small() {
    local name parents
    parents=$(for name in $(keys Committed); do snapshots info "$name" | jq --raw-output '.Parent // empty'; done)
    grep --invert-match --line-regexp --fixed-strings "$parents" <<<"$(keys Committed)"
}

@test "image mount: a look into an image" {
    mkdir -p "$SITE/look"
    run -0 ctr image mount --snapshotter "$SNAPSHOTTER" "$SMALL" "$SITE/look"
    [[ $(cat "$SITE/look/last") == 2 ]]
    run -0 ctr image unmount --rm --snapshotter "$SNAPSHOTTER" "$SITE/look"
    [[ $(keys View) == "" ]]
    nothing_is_used
}

# bats test_tags=debian13
@test "export: an image is the same again when it comes back" {
    local digest
    digest=$(digest_of "$SMALL")
    ctr image export "$SITE/small.tar" "$SMALL"
    [[ $(tar --extract --to-stdout --file "$SITE/small.tar" index.json | jq --raw-output '.manifests[0].digest') == "$digest" ]]
    ctr image rm --sync "$SMALL"
    [[ $(keys) == "" ]]
    ctr image import --snapshotter "$SNAPSHOTTER" "$SITE/small.tar"
    [[ $(digest_of "$SMALL") == "$digest" ]]
    run -0 run_in "$SMALL" cat /last
    [[ $output == 2 ]]
}

digest_of() { ctr image list "name==$1" | awk 'NR == 2 { print $3 }'; }

@test "a second namespace has its own names for what is there" {
    local before
    before=$(keys Committed)
    in_namespace other import_small
    [[ $(in_namespace other keys Committed) == "$before" ]]
    in_namespace other ctr image rm --sync "$SMALL"
    [[ $(in_namespace other keys) == "" ]]
    run -0 run_in "$SMALL" cat /last
    [[ $output == 2 ]]
}

# still_whole NAME: a running container's file system can be read and written.
still_whole() {
    [[ $(in_container "$1" cat /last /written) == $'2\nbefore' ]]
    [[ $(in_container "$1" sh -c 'echo more >>/later; tail -n 1 /later') == more ]]
}

# starts_again NAME: stopped, it can be started, and has what it had.
starts_again() {
    stop_container "$1"
    start_again "$1"
    still_whole "$1"
    stop_container "$1"
}

# bats test_tags=debian13
@test "the snapshotter is restarted, and killed, under a running container" {
    local signal
    start_sleeper survivor
    in_container survivor sh -c 'echo before >/written'
    for signal in TERM KILL; do
        restart_snapshotter "$signal"
        still_whole survivor
    done
    # Others can be made beside it.
    run -0 run_in "$SMALL" cat /last
    starts_again survivor
}

@test "the snapshotter is restarted, and killed, while a container is stopped" {
    local signal
    start_sleeper stopped
    in_container stopped sh -c 'echo before >/written; sync'
    for signal in TERM KILL; do
        stop_container stopped
        restart_snapshotter "$signal"
        start_again stopped
        still_whole stopped
    done
    starts_again stopped
    nothing_is_used
}

@test "containerd is restarted, and killed, under a running container" {
    local signal
    start_sleeper survivor
    in_container survivor sh -c 'echo before >/written'
    for signal in TERM KILL; do
        restart_containerd "$signal"
        still_whole survivor
    done
    starts_again survivor
}

@test "both are killed under a running container" {
    start_sleeper survivor
    in_container survivor sh -c 'echo before >/written'
    end containerd KILL
    end snapshotter KILL
    start_site
    still_whole survivor
    run -0 run_in "$SMALL" cat /last
    starts_again survivor
}

@test "without a snapshotter containers run on, and new ones are refused until it is there" {
    requires "a snapshotter outside of containerd" ours
    start_sleeper survivor
    in_container survivor sh -c 'echo before >/written'
    end snapshotter
    still_whole survivor
    run -1 run_in "$SMALL" true
    # containerd 2.x leaves out the name of the error.
    [[ $output == *"unavailable"* || $output == *"Error while dialing"* ]]
    start_snapshotter
    eventually snapshots_can_be_made
    run -0 run_in "$SMALL" cat /last
    starts_again survivor
}

# bats test_tags=debian13
@test "image rm --sync, content prune: snapshots go with the last image that needs them" {
    pull "$REGISTRY/small:latest"
    ctr image rm --sync "$SMALL"
    run -0 run_in "$REGISTRY/small:latest" cat /last
    [[ $output == 2 ]]
    [[ $(keys | wc -l) == 3 ]]
    ctr image rm --sync "$REGISTRY/small:latest"
    [[ $(keys) == "" ]]
    [[ $(ctr content list --quiet) == "" ]]
    ! ours || eventually only_base_is_left
    # And can be there again.
    import_small
    run -0 run_in "$SMALL" cat /last
    [[ $output == 2 ]]
}

# bats test_tags=debian13
@test "nothing is left" {
    nothing_is_left
}
