#!/usr/bin/env bats
# The same archives and the same changes on Docker's own drivers and on ours: what comes out is the same.
#
# vfs is moby's naive driver, whose rules ours follows; but it copies a layer for each child, and copies no attributes
# but capabilities and no hard links but those of files. overlay2 keeps those.

load helpers

setup_file() {
    new_site
    export VFS=$SITE/vfs OVERLAY=$SITE/overlay2 IMAGES=$SITE/images GUARDED=$SITE/guarded
    BEGIN=$(date +%s)
    export BEGIN
    mkdir -p "$IMAGES" "$GUARDED/directory"
    echo secret | tee "$GUARDED/secret" >"$GUARDED/directory/secret"
    "$BATS_TEST_DIRNAME/../odd_images.py" --base "$E2E/busybox.tar" --guarded "$GUARDED" "$IMAGES"
    start_ceph_plugin
    start_ceph_dockerd
    start_dockerd "$VFS" vfs
    start_dockerd "$OVERLAY" overlay2 || true # where the file system below cannot
    docker load --input "$E2E/small.tar"
}

teardown() {
    local peer
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_logs
    remove_containers
    for peer in "$VFS" "$OVERLAY"; do
        at "$peer" remove_containers || true # none, where the file system below cannot
    done
}

teardown_file() {
    at "$VFS" end_site
    at "$OVERLAY" end_site
    end_site
    search_for_leaks
}

vfs() { at "$VFS" "$@"; }

overlay() { at "$OVERLAY" "$@"; }

# load_image NAME: from an archive of odd_images.py.
load_image() { docker load --quiet --input "$IMAGES/$1.tar"; }

# start_image NAME: a container of that image and of that name, which is mounted as long as it runs.
start_image() {
    docker run --detach --name "$1" --stop-signal KILL --network none "$1" sleep 1000 >/dev/null
}

# root_of NAME: where this host sees the root of that container.
root_of() {
    local mount
    case $SITE in
    "$VFS")
        mount=$(<"$SITE/data/image/vfs/layerdb/mounts/$(docker inspect --format '{{.Id}}' "$1")/mount-id")
        echo "$SITE/data/vfs/dir/$mount"
        ;;
    "$OVERLAY") data_of "$1" MergedDir ;;
    *) data_of "$1" MountPoint ;;
    esac
}

# tree_of NAME FILE: describes all that a container of an image has from the image. Times since the tests began, which
# are those of what has no entry of its own or of what changed in a directory afterwards, come as "now".
tree_of() {
    start_image "$1"
    "$BATS_TEST_DIRNAME/../tree.py" --since "$BEGIN" \
        --leave-out '^/(dev|proc|sys|\.dockerenv|etc/(hostname|hosts|mtab|resolv\.conf))' "$(root_of "$1")" >"$2"
    [[ $(wc -l <"$2") -gt 270 ]] # the root file system alone has as many
}

# as_on_vfs FILE: what vfs can show of a description. Before 23.0 a directory without an entry was made with mode 0600
# (moby#42022), since then with 0755 as ours.
as_on_vfs() {
    jq --compact-output '
        if .type == "directory" then .mode |= sub("600$"; "755") else . end |
        if .type != "file" then del(.names, .first) else . end |
        if .xattrs then .xattrs |= with_entries(select(.key == "security.capability")) else . end |
        if .xattrs == {} then del(.xattrs) else . end' "$1"
}

# same_as_on_vfs DIFF-OPTION... OURS THEIRS
same_as_on_vfs() { diff --unified=0 <(as_on_vfs "$1") <(as_on_vfs "$2"); }

@test "load: every kind of entry gives the tree that vfs makes of it" {
    load_image odd
    vfs load_image odd
    tree_of odd "$SITE/odd"
    vfs tree_of odd "$SITE/odd.vfs"
    same_as_on_vfs "$SITE/odd" "$SITE/odd.vfs"
    run -0 grep --count '"/names/' "$SITE/odd"
    ((output > 90))
}

@test "load: every kind of entry gives the tree that overlay2 makes of it, attributes and hard links of all types" {
    requires "a file system on which overlay2 can be" overlay docker version
    load_image odd
    overlay load_image odd
    tree_of odd "$SITE/odd"
    overlay tree_of odd "$SITE/odd.overlay2"
    # overlay2 shows the root of the container's own layer, before 23.0 with an owner and a mode of its own.
    sed --in-place '/"name": "\/"/d' "$SITE/odd" "$SITE/odd.overlay2"
    # Before 24.0 Docker lost an attribute without a value.
    run -0 grep --fixed-strings '"user.empty": ""' "$SITE/odd"
    (($(docker_major) >= 24)) || sed --in-place 's/"user.empty": "", //' "$SITE/odd"
    diff --unified=0 "$SITE/odd" "$SITE/odd.overlay2"
    run -0 grep --count xattrs "$SITE/odd"
    ((output > 7))
}

@test "load: hard links to lower layers, through symlinks, sparse files: as vfs, where overlay2 fails" {
    load_image naive
    vfs load_image naive
    tree_of naive "$SITE/naive"
    vfs tree_of naive "$SITE/naive.vfs"
    same_as_on_vfs "$SITE/naive" "$SITE/naive.vfs"
    run -0 grep --count --fixed-strings '"first": "/lower/file"' "$SITE/naive"
    [[ $output == 3 ]]
}

@test "load: what differs from vfs on purpose differs in that only" {
    load_image chosen
    vfs load_image chosen
    tree_of chosen "$SITE/chosen"
    vfs tree_of chosen "$SITE/chosen.vfs"
    run -1 same_as_on_vfs "$SITE/chosen.vfs" "$SITE/chosen"
    # An opaque whiteout spares a directory that holds something of its layer, as the OCI image spec wants it. What aufs
    # kept for itself leaves nothing, its parent directory neither, a global header needs no directory, and a device that
    # overlayfs would take for a whiteout is none.
    diff - <(grep '^[-+]{' <<<"$output" | cut --delimiter '"' --fields 1,4) <<<'-{"/.wh..wh.plnk
-{"/global
+{"/opaque/holding
+{"/opaque/holding/new
-{"/zero'
    # Nothing is done for a directory that a later entry of its layer took away.
    run -1 vfs load_image chosen-gone
    [[ $output == *"chtimes /gone: no such file or directory"* ]]
    load_image chosen-gone
    # A whiteout of nothing removes nothing, not even what it lies in.
    vfs load_image chosen-whiteout-of-nothing
    vfs start_image chosen-whiteout-of-nothing
    [[ ! -e $(vfs root_of chosen-whiteout-of-nothing)/directory ]]
    run -1 load_image chosen-whiteout-of-nothing
    [[ $output == *"'directory/.wh.': a whiteout of nothing"* ]]
}

@test "diff, commit, save: the same changes give the same list and the same layer as vfs" {
    local place
    load_image odd
    vfs load_image odd
    for place in "$SITE" "$VFS"; do
        at "$place" start_image odd
        "$BATS_TEST_DIRNAME/../odd_changes.py" "$(at "$place" root_of odd)"
        at "$place" docker diff odd | sort >"$SITE/changes.${place##*/}"
        at "$place" docker commit odd derived
        at "$place" docker save --output "$SITE/derived.tar" derived
        "$BATS_TEST_DIRNAME/../tree.py" --layer "$SITE/derived.tar" >"$SITE/layer.${place##*/}"
        rm "$SITE/derived.tar"
        at "$place" tree_of derived "$SITE/derived.${place##*/}"
    done
    diff --unified=0 "$SITE/changes.parity" "$SITE/changes.vfs"
    [[ $(wc -l <"$SITE/changes.vfs") -gt 80 ]]
    same_as_on_vfs "$SITE/layer.parity" "$SITE/layer.vfs"
    [[ $(wc -l <"$SITE/layer.vfs") -gt 80 ]]
    same_as_on_vfs "$SITE/derived.parity" "$SITE/derived.vfs"
}

# load_in_background NAME: what it says, and "exit N" if it fails, goes to a file of that name.
load_in_background() {
    (load_image "$1" >"$SITE/$1" 2>&1 || echo "exit $?" >>"$SITE/$1") 3>&- &
}

@test "load: what vfs refuses is refused, hostile images touch nothing outside, and the daemon serves on" {
    local archive name
    "$BATS_TEST_DIRNAME/../tree.py" "$GUARDED" >"$SITE/guarded.before"
    # All at once: dockerd tries again for 15 s when it cannot read an archive itself.
    for archive in "$IMAGES"/refused-*.tar "$IMAGES"/hostile-*.tar; do
        load_in_background "$(basename "$archive" .tar)"
    done
    for archive in "$IMAGES"/refused-*.tar; do
        run -1 vfs load_image "$(basename "$archive" .tar)"
    done
    wait
    tail -n 1 "$SITE"/refused-* "$SITE"/hostile-*
    for archive in "$IMAGES"/refused-*.tar; do
        name=$(basename "$archive" .tar)
        [[ $(tail -n 1 "$SITE/$name") == "exit 1" ]]
    done
    run -0 docker images --quiet "refused-*"
    [[ -z $output ]]
    # The hostile ones are laid down harmlessly, as Docker would, or refused: some of both.
    for archive in "$IMAGES"/hostile-*.tar; do
        name=$(basename "$archive" .tar)
        [[ $(tail -n 1 "$SITE/$name") == "exit 1" || $(tail -n 1 "$SITE/$name") == "Loaded image: $name:latest" ]]
    done
    run -0 grep --files-with-matches "^Loaded image: " "$SITE"/hostile-*
    diff "$SITE/guarded.before" <("$BATS_TEST_DIRNAME/../tree.py" "$GUARDED")
    nothing_is_mapped
    docker run --rm small true
    runs plugin
}

@test "nothing is left" {
    vfs remove_everything
    nothing_is_left
}
