#!/bin/bash
# Makes the managed plugin: a root file system with the driver and what it needs, and plugin/config.json.
#
#   ./build_plugin.sh [--name NAME] [--base BASE] [--ceph-key DIR] [--enable]
#
# --name NAME      of the plugin (ceph)
# --base BASE      where Ceph, the file system tools and Python come from (debian:12-slim):
#                    an image, such as quay.io/ceph/ceph:v18: `docker build` with Dockerfile
#                    a directory, or a tar of one, such as debootstrap makes (README.md): no `docker build`, no
#                    registry; as root, because its Python is run in it
# --ceph-key DIR   where to look for ceph.conf and ceph.client.NAME.keyring, which become settings of the plugin
#                  (ceph-key). Without them, the plugin uses the host's /etc/ceph
# --enable         enable it, without a limit for the time that a layer may take
#
# The daemon is the one of DOCKER_HOST, the client `docker` or what DOCKER says. A plugin with that name must not be
# there yet: see plugin/README.md for going from one build to the next.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
docker=${DOCKER:-docker}
name=ceph
base=debian:12-slim
keys=$here/ceph-key
enable=
line=
# The client's default of 30 s counts for every request, and a large layer takes longer.
timeout_seconds=$((24 * 60 * 60))

die() {
    echo "build_plugin.sh: $*" >&2
    exit 1
}

# doing WHAT: what is done from now on. At a terminal a line tells it, with the time, after the first two
# seconds; it is gone at the end.
doing() {
    done_with_it
    [[ -t 2 && ${TERM:-dumb} != dumb && -z ${CI:-} ]] || return 0
    show_line "$1" &
    line=$!
}

done_with_it() {
    [[ -n $line ]] || return 0
    kill "$line" || true
    wait "$line" 2>/dev/null || true
    line=
    # A terminal that was closed keeps nobody from working.
    printf '\r\033[K' >&2 || true
}

# show_line WHAT: again and again, until it is killed. Nobody writes to its pipe: a `read` that gives up is a `sleep` that
# leaves no process.
show_line() {
    local nobody
    exec {nobody}<> <(:)
    # As long as the script is there, however it ends.
    while kill -0 $$ 2>/dev/null; do
        ((SECONDS < 2)) || printf '\r\033[Kbuild_plugin.sh: %d s, %s' "$SECONDS" "$1" >&2
        read -rt 0.5 -u "$nobody" || true
    done
}

usage() {
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

read_arguments() {
    while (($#)); do
        case $1 in
        --enable) enable=1 ;;
        --name | --base | --ceph-key)
            (($# > 1)) || usage
            case $1 in
            --name) name=$2 ;;
            --base) base=$2 ;;
            --ceph-key) keys=$2 ;;
            esac
            shift
            ;;
        *) usage ;;
        esac
        shift
    done
    # The archive is made in another directory.
    [[ ! -e $base ]] || base=$(realpath "$base")
}

# rootfs_of_image IMAGE: Dockerfile does it all.
rootfs_of_image() {
    local image container
    "$docker" build --file "$here/Dockerfile" --build-arg "BASE=$1" --iidfile "$work/image" "$here"
    image=$(<"$work/image")
    doing "taking the files of the image"
    # Nothing is run: the command is never looked for.
    container=$("$docker" create "$image" none)
    "$docker" export "$container" | tar --extract --directory "$work/plugin/rootfs"
    "$docker" rm "$container" >/dev/null
    "$docker" rmi "$image" >/dev/null
}

# rootfs_of_directory DIR: what Dockerfile does, without Docker. DIR stays as it is.
rootfs_of_directory() {
    local program=$work/plugin/rootfs/opt/docker-graph-driver
    [[ $(id -u) == 0 ]] || die "must run as root: the Python of $1 is run in it"
    [[ -x $1/usr/bin/python3 ]] || die "$1 is not a root file system with a Python"
    doing "looking for what the driver needs of $base"
    chroot "$1" /usr/bin/python3 - <"$here/plugin/closure.py" >"$work/files" || die "$1 cannot be the base"
    doing "copying $(wc -l <"$work/files") files and directories"
    tar --create --directory "$1" --no-recursion --files-from "$work/files" 2>"$work/tar.log" |
        tar --extract --directory "$work/plugin/rootfs" || die "$(tail -n 1 "$work/tar.log")"
    mkdir -p "$program"
    (cd "$here" && for package in */__init__.py; do
        cp --parents "${package%/*}"/*.py "$program" || exit 1
    done && cp --parents ./*.py plugin/*.py "$program")
}

make_rootfs() {
    mkdir -p "$work/plugin/rootfs"
    if [[ -d $base ]]; then
        rootfs_of_directory "$base"
    elif [[ -f $base ]]; then
        mkdir "$work/base"
        doing "unpacking $base"
        tar --extract --directory "$work/base" --file "$base"
        rootfs_of_directory "$work/base"
    else
        rootfs_of_image "$base"
    fi
    # The places of mounts.
    mkdir -p "$work"/plugin/rootfs/{dev,etc/ceph,graph,proc,run/ceph,sys,tmp}
}

# Hands ceph.conf and keyring over as settings: they are kept by dockerd, readable for root, and in no layer.
hand_over_keys() {
    local settings=() keyrings=("$keys"/ceph.client.*.keyring) client
    [[ ! -e $keys/ceph.conf ]] || settings+=("CONFIG=$(<"$keys/ceph.conf")")
    if [[ -e ${keyrings[0]} ]]; then
        ((${#keyrings[@]} == 1)) || die "$keys has ${#keyrings[@]} keyrings: ${keyrings[*]##*/}"
        client=${keyrings[0]##*/ceph.client.}
        settings+=("CLIENT=${client%.keyring}" "KEYRING=$(<"${keyrings[0]}")")
    fi
    ((${#settings[@]})) || return 0
    "$docker" plugin set "$name" "${settings[@]}"
    echo "settings from $keys: ${settings[*]%%=*}"
}

enable() {
    doing "enabling it"
    "$docker" plugin enable --timeout "$timeout_seconds" "$name"
}

main() {
    read_arguments "$@"
    ! "$docker" plugin inspect "$name" >/dev/null 2>&1 || die "the plugin $name is there already; see plugin/README.md"
    work=$(mktemp --directory --tmpdir=/var/tmp docker-graph-driver.XXXXXX)
    trap 'rm -rf --one-file-system "$work"; done_with_it' EXIT
    make_rootfs
    cp "$here/plugin/config.json" "$work/plugin"
    doing "handing it to Docker"
    "$docker" plugin create "$name" "$work/plugin" >/dev/null
    done_with_it
    hand_over_keys
    echo "plugin $name: $(du --summarize --block-size=1M "$work/plugin/rootfs" | cut -f 1) MiB"
    [[ -z $enable ]] || enable
}

main "$@"
