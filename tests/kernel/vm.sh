#!/bin/bash
# A virtual machine with Debian's cloud kernel over this host's own file tree, for tests that need the real krbd, rbd-nbd
# and a dockerd on top of them. Emulated (TCG): it runs anywhere, needs no /dev/kvm, and is 10 to 100 times slower than
# the host: for "does it work", never for timings.
#
#   tests/kernel/vm.sh up DIR CLUSTER_DIR                     boot; CLUSTER_DIR is a running cluster of tests/cluster.sh
#   tests/kernel/vm.sh run DIR [--seconds N] COMMAND [ARG...] run COMMAND inside: its output, its exit status
#   tests/kernel/vm.sh down DIR [--keep-files]                end it (also when half up, also twice), remove DIR
#   tests/kernel/vm.sh packages                               what to install first, one line for apt-get
#
# How it works, from the outside in:
# - The kernel is the package behind linux-image-cloud-amd64, fetched by apt-get and unpacked below the cache directory;
#   nothing is installed. The initramfs is busybox, a few modules and guest-init: PID 1 of the guest, to be read top down.
# - virtiofsd (serve-host) gives the guest this host's / read-only. The guest lays an overlay over it whose writable half
#   is DIR/scratch.img (ext4, sparse, gone with the VM). So every program, test and directory of the host is in the
#   guest under the same path, and nothing that the guest writes reaches the host.
#   The guest remembers what it has read: make and change what a test needs before `up`. (/host, the tree without the
#   overlay, is no fresher.) Results come back as output of `run`.
# - The guest has no route to anywhere but 10.0.2.2, which QEMU's user network connects to this host's loopback. iptables
#   in the guest turns 127.0.0.1:PORT, for the cluster's ports, into 10.0.2.2:PORT, so that the addresses which the
#   monitor advertises work there too, for programs and for the kernel's own client.
# - agent.py in the guest, behind a forwarded port of 127.0.0.1, runs what `run` asks for. Who can read DIR/token may ask.
#   CEPH_CONF is set for every command; it starts in the caller's directory, has no stdin, and is not given to a shell
#   (`sh -c '...'` where one is wanted). Exit status 124 after N seconds (300), 125 when the VM does not answer, 127 for an
#   unknown program. What a command leaves in the background lives on, as on any machine.
# - There is no udevd: `rbd device map` and `unmap` of krbd need `--options noudev`. Cgroups are v2.
# - The VM ends by itself after VM_LIFE seconds, and virtiofsd with it, whatever became of the caller.
#
# In DIR: console.log (the serial console, with the kernel's messages), qemu.log, virtiofsd.log, apt.log.
# Environment: VM_LIFE=3600  VM_MEMORY=3G  VM_CACHE=/var/cache/docker-graph-driver-tests
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
packages=(qemu-system-x86 qemu-system-common busybox-static iptables kmod e2fsprogs xfsprogs ceph-common rbd-nbd python3)
cache=${VM_CACHE:-/var/cache/docker-graph-driver-tests}
life=${VM_LIFE:-3600}
memory=${VM_MEMORY:-3G}
boot_seconds=180

# What it takes to reach the host's tree; every other module comes from there.
early_modules=(virtio_pci virtio_blk virtiofs overlay)

step="starting"
dir=

say() { printf 'vm: %s\n' "$*"; }

die() {
    printf 'vm: %s\n' "$*" >&2
    exit 1
}

seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

need_programs() {
    local program missing=
    for program in qemu-system-x86_64 /usr/lib/qemu/virtiofsd busybox iptables-restore modprobe mkfs.ext4 rbd-nbd python3; do
        command -v "$program" >/dev/null || missing+=" $program"
    done
    [[ -z $missing ]] || die "missing:$missing; apt-get install --no-install-recommends ${packages[*]}"
}

# The package that Debian's meta package stands for today, if apt's lists have it.
newest_kernel() {
    apt-cache depends linux-image-cloud-amd64 2>>"$dir/apt.log" | awk '/Depends: linux-image-/ { print $2; exit }' | grep .
}

# fetch_kernel PACKAGE: unpacks it into the cache, unless it is there.
fetch_kernel() {
    local new=$cache/new status=0
    [[ -n $1 ]] || return 1
    [[ ! -d $cache/$1 ]] || return 0
    rm -rf "$new"
    mkdir "$new"
    (cd "$new" && apt-get --quiet --option APT::Sandbox::User=root download "$1") >>"$dir/apt.log" 2>&1 &&
        dpkg-deb --extract "$new"/linux-image-*.deb "$new/tree" &&
        depmod --basedir "$new/tree" "${1#linux-image-}" &&
        mv "$new/tree" "$cache/$1" ||
        status=1
    rm -rf "$new"
    return $status
}

# Prints the package whose tree is in the cache: the newest there is, else (no network) the newest that was fetched.
kernel_in_cache() {
    local package lock
    mkdir -p "$cache"
    exec {lock}>"$cache/lock"
    flock "$lock"
    package=$(newest_kernel) || package=
    if ! fetch_kernel "$package"; then
        # Lists that are missing, or so old that the archive has dropped what they name.
        apt-get --quiet update >>"$dir/apt.log" 2>&1 || true
        package=$(newest_kernel) && fetch_kernel "$package" || package=
    fi
    [[ -n $package ]] || package=$(find "$cache" -maxdepth 1 -name 'linux-image-*' -printf '%f\n' | sort --version-sort | tail -n 1)
    [[ -n $package ]] && echo "$package"
}

# make_initramfs MODULES: guest-init, busybox, and the early modules in the order in which they load.
make_initramfs() {
    local tree=$dir/initramfs module
    mkdir -p "$tree"/bin "$tree"/modules
    cp "$(command -v busybox)" "$tree/bin/busybox"
    install "$here/guest-init" "$tree/init"
    while read -r _ module; do
        [[ -e $tree/modules/${module##*/} ]] || echo "${module##*/}" >>"$tree/modules/order"
        cp "$module" "$tree/modules/"
    done < <(modprobe --set-version "${1##*/}" --dirname "${1%/lib/modules/*}" --show-depends --all "${early_modules[@]}" | grep '^insmod ')
    {
        printf 'modules=%q\nports=%q\n' "$1" "$(awk -F= '$1 == "all" { print $2 }' "$cluster/ports")"
        printf 'agent=%q\ntoken=%q\nceph_conf=%q\n' "$here/agent.py" "$dir/token" "$cluster/ceph.conf"
    } >"$tree/settings"
    (cd "$tree" && find . | busybox cpio -o -H newc) >"$dir/initramfs.img" 2>/dev/null
    rm -rf "$tree"
}

make_scratch() {
    truncate --size 64G "$dir/scratch.img" && mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$dir/scratch.img"
}

# Every mount point that holds something which the guest is to see.
host_mounts() {
    local path
    for path in / /usr /etc /var /opt /srv /home /root "$here" "$dir" "$cluster" "$cache"; do
        [[ ! -e $path ]] || findmnt --noheadings --output TARGET --target "$path"
    done | sort --unique
}

start_virtiofsd() {
    local mounts
    mapfile -t mounts < <(host_mounts)
    mkdir "$dir/root"
    # It ends when qemu does.
    setsid "$here/serve-host" "$dir/virtiofsd.sock" "$dir/root" "${mounts[@]}" </dev/null >"$dir/virtiofsd.log" 2>&1 &
    echo $! >"$dir/virtiofsd.pid"
    until [[ -S $dir/virtiofsd.sock ]]; do
        kill -0 $! 2>/dev/null || return 1
        sleep 0.05
    done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start_qemu() {
    local port arguments
    port=$(free_port)
    echo "$port" >"$dir/port"
    # shellcheck disable=SC2054 # commas are QEMU's
    arguments=(
        -nodefaults -no-user-config -display none -no-reboot
        -machine q35,memory-backend=memory -accel tcg,thread=multi -cpu max -smp 2 -m "$memory"
        -object "memory-backend-memfd,id=memory,size=$memory,share=on" # virtiofsd reads and writes it
        -kernel "$1" -initrd "$dir/initramfs.img"
        # A kernel that panics ends the VM. Mitigations cost time and protect nobody here; so does zeroing of memory. With
        # programs at the same addresses in every life, QEMU need not translate them anew: a command takes half the time.
        -append "console=ttyS0 panic=-1 loglevel=5 mitigations=off apparmor=0 init_on_alloc=0 norandmaps"
        -serial "file:$dir/console.log"
        -chardev "socket,id=host,path=$dir/virtiofsd.sock" -device vhost-user-fs-pci,chardev=host,tag=host,queue-size=1024
        -drive "file=$dir/scratch.img,format=raw,if=none,id=scratch,cache=unsafe,discard=unmap" -device virtio-blk-pci,drive=scratch
        -netdev "user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:$port-:1" -device virtio-net-pci,netdev=net
        -pidfile "$dir/qemu.pid"
    )
    setsid timeout --kill-after=5 "$life" qemu-system-x86_64 "${arguments[@]}" </dev/null >"$dir/qemu.log" 2>&1 &
    echo $! >"$dir/timeout.pid"
    until [[ -s $dir/qemu.pid ]]; do
        kill -0 $! 2>/dev/null || return 1
        sleep 0.05
    done
}

wait_for_agent() {
    local deadline=$((SECONDS + boot_seconds))
    until "$here/agent.py" call --directory "$dir" --seconds 10 true 2>/dev/null; do
        ((SECONDS < deadline)) && alive qemu || return 1
        sleep 0.5
    done
}

# alive NAME: whether the process of DIR/NAME.pid is there and ours (a number can belong to somebody else by now).
alive() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [[ -n $pid ]] &&
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep --quiet --fixed-strings -- "$dir/"
}

# end NAME: SIGTERM, up to five seconds, SIGKILL.
end() {
    local signal pid deadline
    for signal in TERM KILL; do
        deadline=$((SECONDS + 5))
        alive "$1" || return 0
        pid=$(cat "$dir/$1.pid")
        kill -s "$signal" "$pid" 2>/dev/null || true
        while alive "$1" && ((SECONDS < deadline)); do
            sleep 0.05
        done
    done
    ! alive "$1" || die "$1 ($pid) does not end"
}

# One line for the step, then the tails that tell why; then nothing of this VM is left.
up_failed() {
    trap - EXIT INT TERM
    local log
    printf 'vm: FAILED while %s (%s)\n' "$step" "$dir" >&2
    for log in "$dir"/{apt,virtiofsd,qemu,console}.log; do
        [[ ! -s $log ]] || printf -- '--- %s\n%s\n' "${log##*/}" "$(tail -n 15 "$log" | tr -d '\r')" >&2
    done
    down || true
    exit 1
}

up() {
    local cluster=$1 package version begin=$EPOCHREALTIME
    [[ $(id -u) == 0 ]] || die "must run as root"
    [[ ! -d $dir || -z $(ls -A "$dir") ]] || die "$dir is not empty; if it holds a VM: $0 down $dir"
    [[ -s $cluster/ports && -s $cluster/ceph.conf ]] || die "no cluster in $cluster: tests/cluster.sh up $cluster"
    ((${#dir} <= 85)) || die "the path of the directory is too long for sockets: $dir"
    need_programs
    mkdir -p "$dir"
    chmod 0700 "$dir"
    echo "made by tests/kernel/vm.sh; its down removes this directory" >"$dir/vm"
    (umask 077 && head -c 16 /proc/sys/kernel/random/uuid >"$dir/token")
    trap up_failed EXIT INT TERM
    step="fetching the kernel"
    package=$(kernel_in_cache)
    version=${package#linux-image-}
    step="making the initramfs"
    make_initramfs "$cache/$package/lib/modules/$version"
    step="making the scratch disk"
    make_scratch
    step="starting virtiofsd"
    start_virtiofsd
    step="starting qemu"
    start_qemu "$cache/$package/boot/vmlinuz-$version"
    step="waiting for the agent in the guest"
    wait_for_agent
    trap - EXIT INT TERM
    say "up in $(seconds_since "$begin") s: Linux $version, ends by itself after $life s"
}

down() {
    local keep=${1:-}
    [[ -z $keep || $keep == --keep-files ]] || usage
    [[ -d $dir ]] || return 0
    if [[ ! -e $dir/vm ]]; then
        [[ -z $(ls -A "$dir") ]] || die "$dir is not a directory of this script: nothing done"
    fi
    end qemu
    end timeout
    end virtiofsd
    # virtiofsd's own note of its socket, outside of our directory and never removed by itself.
    rm -f "/var/run/virtiofsd/$(tr / . <<<"${dir#/}/virtiofsd.sock").pid"
    rm -f "$dir"/{scratch,initramfs}.img
    [[ $keep == --keep-files ]] || rm -rf "$dir"
}

usage() {
    echo "usage: $0 up DIR CLUSTER_DIR | run DIR [--seconds N] COMMAND [ARG...] | down DIR [--keep-files] | packages" >&2
    exit 2
}

main() {
    if [[ $* == packages ]]; then
        echo "${packages[*]}"
        exit
    fi
    (($# >= 2)) || usage
    local verb=$1
    dir=$(realpath --canonicalize-missing -- "$2")
    shift 2
    case $verb in
    up)
        (($# == 1)) || usage
        close_inherited
        up "$(realpath --canonicalize-missing -- "$1")"
        ;;
    run)
        (($# >= 1)) || usage
        exec "$here/agent.py" call --directory "$dir" "$@"
        ;;
    down) down "$@" ;;
    *) usage ;;
    esac
}

# What is started here inherits whatever is open; a test runner that waits for the end of its own pipe (bats, on 3) would hang.
close_inherited() {
    local fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        ((fd <= 2 || fd == 255)) || eval "exec $fd>&-"
    done
}

main "$@"
