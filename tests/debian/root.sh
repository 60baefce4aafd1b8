#!/bin/bash
# Another Debian on this machine: a root file system of it, and commands that run in there. As root.
#
#   tests/debian/root.sh make SUITE PACKAGE...   prints the directory of one with these packages: minbase by debootstrap,
#                                                then apt-get. Made once for this machine, whole or not at all
#   tests/debian/root.sh run ROOT COMMAND...     runs a command in there and ends with its exit status
#
# SUITE is bullseye, bookworm, trixie, sid. A command gets a view of ROOT of its own, which is thrown away: ROOT stays as it
# was made. It has mount and pid namespaces of its own, all that it has started ends with it, and no mount is left. It
# shares with this machine: the kernel, /dev, the network, certificates, the project's directory (but .venv, which belongs to
# one Python, is empty there), the cache of the tests and the locks in /run/lock. What it finds in /tmp, /var/tmp, /var/lib/docker
# and /var/lib/containerd is on a real file system, where overlayfs takes its layers from; the rest is on an overlay.
# It works in the project's directory.
#
# Environment: ROOT_SECONDS=1200  how long a root may take to be made
set -euo pipefail

# shellcheck source=../lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/../lib.bash"

self=$repo/tests/debian/root.sh

# -- make ------------------------------------------------------------------------------------------

# make SUITE PACKAGE...
make() {
    local suite=$1 root
    shift
    # A root of another recipe is another root.
    root=$test_cache/root-$suite-$({ declare -f build && printf '%s\n' "$@" | sort --unique; } | sha256sum | cut -c -12)
    made_once "$root" "${ROOT_SECONDS:-1200}" build_alone "$suite" "$@" || die "a Debian $suite could not be made ($?)"
    echo "$root"
}

# build_alone SUITE PACKAGE...: what debootstrap mounts and starts ends with it.
# shellcheck disable=SC2154 # made: of made_once
build_alone() {
    timeout --kill-after 10 "${ROOT_SECONDS:-1200}" unshare --mount --pid --fork --kill-child --mount-proc \
        "$self" build "$made" "$@"
}

# build ROOT SUITE PACKAGE...: from nothing, in namespaces of its own.
build() {
    local root=$1 suite=$2 mirror
    shift 2
    mirror=$(debian_mirror)
    debootstrap --variant=minbase "$suite" "$root" "$mirror"
    # No service starts, and nothing is written for the case that the machine stops.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 0755 "$root/usr/sbin/policy-rc.d"
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
    echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/50tests"
    # How this machine reaches its packages.
    apt-config dump | grep --extended-regexp '^Acquire::(http|https|Check-Valid-Until|Check-Date)\b' \
        >>"$root/etc/apt/apt.conf.d/50tests" || true
    mount --types proc proc "$root/proc"
    DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" sh -euc '
        apt-get --quiet --option Acquire::Retries=3 update
        apt-get --quiet --option Acquire::Retries=3 --yes --no-install-recommends install "$@"
        apt-get clean' - "$@"
    umount "$root/proc"
}

# -- run -------------------------------------------------------------------------------------------

# run ROOT COMMAND...
run() {
    local root child status=0
    root=$(realpath --canonicalize-existing "$1")
    shift
    work=$(mktemp --directory /var/tmp/debian-root.XXXXXX)
    # A process in there that was killed a moment ago may still write. What ends us may end our children with us (timeout).
    trap 'trap "" TERM INT; until_true 10 rm --recursive --force --one-file-system "$work"' EXIT
    # What is on standard input is for the command; a child in the background would not get it. A session of its own: a
    # signal for all of us (timeout's, the terminal's) is for us, who look first for what would stay.
    setsid unshare --mount --pid --fork --kill-child --mount-proc "$self" inside "$work" "$root" "$@" <&0 &
    child=$!
    trap 'trap "" TERM INT; interrupted "$child"; exit 143' TERM
    trap 'trap "" TERM INT; interrupted "$child"; exit 130' INT
    wait "$child" || status=$?
    exit "$status"
}

# unshare takes no other signal while it waits; the first process in there goes with it, and so all of them. A loop device
# of a file that one of them served would stay for ever, and not tell any more whose it is.
interrupted() {
    local unshare=$1 loops
    # There is none if it has ended by itself.
    loops=$(loops_served_for "$(pgrep --parent "$unshare" || true)")
    kill -KILL "$unshare"
    wait "$unshare" 2>/dev/null || true
    detach_loops "$loops"
}

# inside WORK ROOT COMMAND...: the first process of the namespaces. It stays, to reap what others leave to it.
inside() {
    local work=$1 lower=$2 root=$1/root place
    shift 2
    mkdir "$root" "$work"/{upper,overlay,tmp,var-tmp,docker,containerd,venv}
    chmod 1777 "$work"/{tmp,var-tmp}
    # The data directory of a dockerd.
    chmod 0711 "$work"/{docker,containerd}
    mount --types overlay --options "lowerdir=$lower,upperdir=$work/upper,workdir=$work/overlay" overlay "$root"
    mount --types proc proc "$root/proc"
    for place in /sys /dev; do
        mount --rbind "$place" "$root$place"
    done
    mount --types tmpfs --options mode=0755 tmpfs "$root/run"
    share "$work/tmp" /tmp
    share "$work/var-tmp" /var/tmp
    share "$work/docker" /var/lib/docker
    share "$work/containerd" /var/lib/containerd
    share /run/lock /run/lock
    share "$test_cache" "$test_cache"
    share "$repo" "$repo"
    mkdir --parents "$repo/.venv"
    share "$work/venv" "$repo/.venv"
    # Who this machine trusts, when it gets Python's packages.
    [[ ! -d /etc/ssl/certs ]] || share /etc/ssl/certs /etc/ssl/certs
    [[ ! -d /lib/modules ]] || share /lib/modules /lib/modules
    cat /etc/resolv.conf >"$root/etc/resolv.conf"
    cat /etc/hosts >"$root/etc/hosts"
    # Not a chroot: mounts of this machine would be held by this namespace, and runc wants / to be a mount point.
    cd "$root"
    pivot_root . .
    umount --lazy .
    cd "$repo"
    unset TMPDIR CEPH_CONF
    HOME=/root PATH=$login_path "$@"
}

# share DIRECTORY PLACE: the directory is seen at that place of the root.
share() {
    mkdir --parents "$root$2"
    mount --bind "$1" "$root$2"
}

(($# >= 3)) || usage
[[ $(id -u) == 0 ]] || die "must run as root"
case $1 in
make | run | build | inside) "$@" ;;
*) usage ;;
esac
