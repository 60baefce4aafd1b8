#!/bin/bash
# A Debian that systemd has booted on this machine, beside whatever runs here: a view of a root (root.sh) with namespaces
# for everything, a network (loopback only) and a cgroup of its own. As root.
#
#   tests/debian/machine.sh up DIR ROOT            makes it; DIR is for what this script has to remember. It is not booted
#   tests/debian/machine.sh boot DIR               starts systemd in it, and waits until all that starts at boot has started
#                                                  or failed; says "running" then, or "degraded"
#   tests/debian/machine.sh halt DIR               lets systemd stop everything, as at a shutdown; its files stay
#   tests/debian/machine.sh cut DIR                ends everything in it at once, as a power cut does; its files stay
#   tests/debian/machine.sh run DIR COMMAND...     runs a command in it, in the project's directory
#   tests/debian/machine.sh network DIR COMMAND... runs a command of this machine in its network
#   tests/debian/machine.sh down DIR               nothing of it is left
#
# Its kernel is this machine's, so it has: loop devices, FUSE. It has no bus of the kernel's rbd, whose devices
# would not appear in its /dev; it can set nothing in /proc/sys but net, has no console and not the kernel's log.
set -euo pipefail

# shellcheck source=../lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/../lib.bash"

self=$repo/tests/debian/machine.sh

# -- outside ---------------------------------------------------------------------------------------

# up DIR ROOT
up() {
    dir=$1
    mkdir --parents "$dir"
    unshare --net "$repo/tests/debian/root.sh" run "$2" "$self" hold >"$dir/hold" 2>"$dir/log" 3>&- </dev/null &
    echo $! >"$dir/keeper"
    eventually grep --quiet held "$dir/hold" || {
        cat "$dir/log" >&2
        down "$dir"
        die "there is no view of $2"
    }
    # root.sh waits for unshare, and that for the first process of the view.
    pgrep --parent "$(pgrep --parent "$(<"$dir/keeper")")" >"$dir/view"
}

# boot DIR
boot() {
    local starter
    dir=$1
    nsenter --target "$(<"$dir/view")" --mount --pid --net --root --wdns="$repo" -- \
        "$self" first >>"$dir/log" 2>&1 3>&- </dev/null &
    starter=$!
    # nsenter waits for unshare, and that for systemd.
    eventually systemd_of "$starter" || die "systemd did not start: $(tail --lines 5 "$dir/log")"
    systemd_of "$starter" >"$dir/systemd"
    eventually takes_commands || die "systemd takes no commands"
    inside "$(<"$dir/systemd")" timeout 300 systemctl is-system-running --wait || true
}

systemd_of() {
    local pid
    pid=$(pgrep --parent "$(pgrep --parent "$1")" --exact systemd) && echo "$pid"
}

takes_commands() { inside "$(<"$dir/systemd")" timeout 10 systemctl list-units; }

# halt DIR: what SIGRTMIN+4 asks for, systemctl poweroff does.
halt() { end_systemd "$1" RTMIN+4; }

# cut DIR
cut() { end_systemd "$1" KILL; }

# A loop device outlives what served it: the power cut ends that, and so does a shutdown, with what is still mapped.
end_systemd() {
    local pid loops
    dir=$1
    [[ -e $dir/systemd ]] || return 0
    pid=$(<"$dir/systemd")
    loops=$(loops_served_for "$pid")
    kill -s "$2" "$pid" 2>/dev/null || true
    until_true 240 process_gone "$pid" || die "systemd does not end"
    rm "$dir/systemd"
    detach_loops "$loops"
}

# run DIR COMMAND...
run() {
    local dir=$1 pid
    shift
    pid=$(cat "$dir/systemd" 2>/dev/null) || pid=$(<"$dir/view")
    inside "$pid" "$@"
}

# inside PID COMMAND...: the command in all namespaces of a process, with the environment of a login.
inside() {
    local pid=$1
    shift
    nsenter --target "$pid" --mount --uts --ipc --net --pid --cgroup --root --wdns="$repo" -- \
        env --ignore-environment HOME=/root LC_ALL=C.UTF-8 PATH="$login_path" "$@"
}

# network DIR COMMAND...
network() {
    local dir=$1
    shift
    nsenter --target "$(<"$dir/view")" --net -- "$@"
}

# down DIR
down() {
    dir=$1
    cut "$dir"
    if [[ -e $dir/view ]]; then
        eventually run "$dir" "$self" remove_cgroup || die "its cgroup is still in use"
    fi
    [[ ! -e $dir/keeper ]] || end_process "$(<"$dir/keeper")"
    rm -f "$dir"/{hold,log,keeper,view}
}

# -- inside ----------------------------------------------------------------------------------------

# hold: keeps the view, whose mounts and files outlive each boot.
hold() {
    ip link set lo up
    # Whatever hierarchies this machine has mounted, and where: systemd gets one of version 2, with what controllers it has.
    mkdir /run/cgroup
    mount --types cgroup2 cgroup2 /run/cgroup
    echo held
    exec sleep infinity
}

remove_cgroup() {
    local place
    for place in /run/cgroup/docker-graph-driver-machine.*; do
        [[ ! -e $place ]] || find "$place" -depth -type d -exec rmdir {} +
    done
}

# first: becomes systemd.
first() {
    local group=/run/cgroup/docker-graph-driver-machine.$BASHPID-$EPOCHREALTIME
    mkdir "$group"
    echo $BASHPID >"$group/cgroup.procs"
    exec unshare --mount --uts --ipc --cgroup --pid --fork --kill-child "$self" init
}

init() {
    local place
    # What the view has from this machine.
    for place in /sys /dev /run /proc; do
        umount --recursive --lazy "$place"
    done
    mount --types proc proc /proc
    # Settings of the kernel are this machine's, but those of the network.
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount --options remount,bind,ro /proc/sys
    mount --types sysfs sysfs /sys
    mount --types tmpfs tmpfs /sys/bus
    mount --types cgroup2 cgroup2 /sys/fs/cgroup
    make_devices
    mount --types tmpfs --options mode=0755 tmpfs /run
    # This tells systemd that devices, the clock and file systems are not its business.
    exec env --ignore-environment container=other PATH="$login_path" \
        /lib/systemd/systemd
}

# make_devices: a /dev of its own, since systemd changes what it finds there. Loop devices do not come by themselves.
make_devices() {
    local name major minor
    mount --types tmpfs --options mode=0755 tmpfs /dev
    while read -r name major minor; do
        mknod --mode=0666 "/dev/$name" c "$major" "$minor"
    done <<<$'null 1 3\nzero 1 5\nfull 1 7\nrandom 1 8\nurandom 1 9\ntty 5 0\nfuse 10 229\nloop-control 10 237'
    for ((minor = 0; minor < 256; minor++)); do
        mknod --mode=0600 "/dev/loop$minor" b 7 "$minor"
    done
    mkdir /dev/pts /dev/shm
    mount --types devpts --options newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts
    ln --symbolic pts/ptmx /dev/ptmx
    ln --symbolic /proc/self/fd /dev/fd
}

(($# >= 1)) || usage
[[ $(id -u) == 0 ]] || die "must run as root"
case $1 in
up | boot | halt | cut | run | network | down) (($# >= 2)) || usage && "$@" ;;
hold | first | init | remove_cgroup) "$@" ;;
*) usage ;;
esac
