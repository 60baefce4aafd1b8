#!/usr/bin/env bats
# dockerd --userns-remap: the root of a container is nobody on the host, and its files are that nobody's.

load helpers

setup_file() {
    local candidate
    new_site
    export PLAIN=$SITE/plain REMAPPED FIRST=1650000000 LENGTH=65536
    # dockerd reads the ranges from these files only. An account that has none yet gets one, for as long as the tests run.
    for candidate in nobody daemon bin; do
        ! grep --quiet --no-messages "^$candidate:" /etc/subuid /etc/subgid || continue
        REMAPPED=$candidate
        break
    done
    has_userns || return 0
    [[ -n ${REMAPPED:-} ]] || { echo "no account without ranges" && return 1; }
    copy_accounts "$SITE/accounts.before"
    echo "$REMAPPED:$FIRST:$LENGTH" | tee -a /etc/subuid >>/etc/subgid
    chmod 0711 "$E2E" # the container's root must get through to its files
    start_ceph_plugin
    start_ceph_dockerd --userns-remap "$REMAPPED:$(id --group --name "$REMAPPED")"
    start_dockerd "$PLAIN" overlay2
    docker load --input "$E2E/small.tar"
}

setup() {
    requires "a kernel that makes user namespaces (unshare --user)" has_userns
}

teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} || -n ${BATS_TEST_SKIPPED:-} ]] || show_logs
    ! has_userns || remove_containers
}

teardown_file() {
    has_userns || return 0
    at "$PLAIN" end_site
    end_site
    if [[ -e $SITE/accounts.before ]]; then
        give_back /etc/subuid
        give_back /etc/subgid
        copy_accounts "$SITE/accounts.after"
        diff "$SITE/accounts.before" "$SITE/accounts.after"
    fi
    search_for_leaks
}

plain() { at "$PLAIN" "$@"; }

has_userns() { unshare --user --map-root-user true 2>/dev/null; }

copy_accounts() { head --lines=-0 --verbose /etc/passwd /etc/group /etc/subuid /etc/subgid >"$1" 2>&1 || true; }

# give_back FILE: our line out of it; the file too, if we made it.
give_back() {
    local rest
    rest=$(grep --invert-match "^$REMAPPED:$FIRST:$LENGTH$" "$1" && echo .) || rest=
    if [[ -n $rest ]]; then
        printf '%s' "${rest%.}" >"$1" # in place: its owner and mode stay
    elif grep --quiet "^==> $1 <==" "$SITE/accounts.before"; then
        : >"$1"
    else
        rm "$1"
    fi
}

# root_of CONTAINER: where this host sees its root.
root_of() { data_of "$1" MountPoint; }

# owner_of NAME: of a file of the container `mapped`, as this host sees it, from the first id of the range on.
owner_of() {
    local uid gid
    read -r uid gid < <(stat --format '%u %g' "$(root_of mapped)$1")
    echo "$((uid - FIRST)):$((gid - FIRST))"
}

# make_files CONTAINER: files of several owners.
make_files() {
    # shellcheck disable=SC2016 # the container's shell expands it
    run -0 docker exec "$1" sh -c '
        mkdir /new && echo root >/new/root && echo other >/new/other && chown 5:7 /new/other && chmod 4755 /new/other
        echo last >/new/last && chown 65535:65535 /new/last && ln -s root /new/link && ln /new/root /new/hard
        mkfifo /new/fifo && echo x >>/etc/passwd && rm /last'
}

@test "run: the container's root is an unprivileged user of the host, who owns / and the files of the image" {
    local pid
    start_sleeper mapped
    pid=$(docker inspect --format '{{.State.Pid}}' mapped)
    run -0 docker exec mapped sh -c 'id -u; stat -c %u:%g / /bin/busybox /last'
    [[ ${lines[*]} == "0 0:0 0:0 0:0" ]]
    [[ $(stat --format %u "/proc/$pid") == "$FIRST" ]]
    run -0 cat "/proc/$pid/uid_map"
    [[ $output =~ ^\ +0\ +$FIRST\ +$LENGTH$ ]]
    for name in "" /bin /bin/busybox /etc/passwd /last /proc /etc/hosts; do
        echo "owner of $name"
        [[ $(owner_of "$name") == 0:0 ]]
    done
    [[ $(root_of mapped) == "$SITE/data/$FIRST.$FIRST/$GRAPH/"* ]]
}

@test "exec: what the container writes belongs to the mapped users, and there is no way to others" {
    start_sleeper mapped
    make_files mapped
    run -0 docker exec mapped sh -c 'cd /new && stat -c "%n %u:%g %a" *'
    [[ ${lines[*]} == "fifo 0:0 644 hard 0:0 644 last 65535:65535 644 link 0:0 777 other 5:7 4755 root 0:0 644" ]]
    [[ "$(owner_of /new) $(owner_of /new/root) $(owner_of /new/other)" == "0:0 0:0 5:7" ]]
    [[ "$(owner_of /new/last) $(owner_of /new/link)" == "65535:65535 0:0" ]]
    run -1 docker exec mapped chown 65536 /new/root
    run -1 docker exec mapped mknod /new/device b 7 0
}

@test "cp: what goes in belongs to the container's root" {
    mkdir "$SITE/in"
    echo copied >"$SITE/in/file"
    start_sleeper mapped
    docker cp "$SITE/in" mapped:/in
    run -0 docker exec mapped sh -c 'stat -c %u:%g /in /in/file; cat /in/file; echo more >>/in/file'
    [[ ${lines[*]} == "0:0 0:0 copied" ]]
    [[ $(owner_of /in/file) == 0:0 ]]
    docker stop mapped
    docker cp mapped:/in "$SITE/out"
    [[ $(cat "$SITE/out/file") == $'copied\nmore' ]]
}

@test "diff, commit: the list and the layer have the container's ids" {
    start_sleeper mapped
    make_files mapped
    run -0 docker diff mapped
    [[ $(sort <<<"$output") == "A /new
A /new/fifo
A /new/hard
A /new/last
A /new/link
A /new/other
A /new/root
C /etc
C /etc/passwd
D /last" ]]
    docker commit mapped derived
    run -0 docker run --rm derived sh -c 'cd /new && stat -c "%n %u:%g %a" * && test ! -e /last && cat other hard'
    [[ ${lines[*]} == "fifo 0:0 644 hard 0:0 644 last 65535:65535 644 link 0:0 777 other 5:7 4755 root 0:0 644 other root" ]]
    docker rm --force mapped
    docker run --detach --name mapped --stop-signal KILL derived sleep 1000
    [[ "$(owner_of "") $(owner_of /new) $(owner_of /new/other) $(owner_of /etc/passwd)" == "0:0 0:0 5:7 0:0" ]]
}

@test "save: an image made here is the same image on a daemon without --userns-remap" {
    local id
    start_sleeper mapped
    make_files mapped
    # What setcap of a container writes: revision 3, which holds for this namespace alone.
    run -0 /usr/bin/python3 -c '
import os, struct, sys
value = struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, int(sys.argv[2]))
os.setxattr(sys.argv[1] + "/new/other", "security.capability", value)' "$(root_of mapped)" "$FIRST"
    docker commit mapped derived
    docker save --output "$SITE/derived.tar" derived
    "$BATS_TEST_DIRNAME/../tree.py" --layer "$SITE/derived.tar" >"$SITE/layer"
    run -0 jq --raw-output '"\(.name) \(.owner[0]):\(.owner[1])"' "$SITE/layer"
    diff - <(echo "$output") <<<"etc/ 0:0
etc/passwd 0:0
.wh.last 0:0
new/ 0:0
new/fifo 0:0
new/hard 0:0
new/last 65535:65535
new/link 0:0
new/other 5:7
new/root 0:0"
    run -0 jq --raw-output '.records["SCHILY.xattr.security.capability"] // empty' "$SITE/layer"
    [[ $output == 0100000200200000000000000000000000000000 ]]
    plain docker load --input "$SITE/derived.tar"
    id=$(docker image inspect --format '{{.Id}}' derived)
    [[ $(plain docker image inspect --format '{{.Id}}' derived) == "$id" ]]
    run -0 plain docker run --rm derived sh -c 'cd /new && stat -c "%u:%g" . * && cat other'
    [[ ${lines[*]} == "0:0 0:0 0:0 65535:65535 0:0 5:7 0:0 other" ]]
}

@test "load: an owner outside of the range is an error that names the entry, and nothing stays" {
    mkdir -p "$SITE/images"
    "$BATS_TEST_DIRNAME/../odd_images.py" --base "$E2E/busybox.tar" --guarded "$SITE/images" "$SITE/images"
    run -1 docker load --input "$SITE/images/odd.tar"
    [[ $output == *"'owners/biggest-octal': user id 2097151 is not mapped to the host"* ]]
    run -0 docker images --quiet odd
    [[ -z $output ]]
    docker run --rm small true
}

@test "nothing is left" {
    plain remove_everything
    eventually only_base_is_left rbd docker_image_base_image
    eventually trash_is_empty rbd
    nothing_is_mapped
    run -0 mounts_below "$SITE/data/$FIRST.$FIRST/$GRAPH"
    [[ -z $output ]]
    run -0 ls -A "$SITE/data/$FIRST.$FIRST/$GRAPH/mnt"
    [[ -z $output ]]
}
