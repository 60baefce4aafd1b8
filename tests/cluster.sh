#!/bin/bash
# A throw-away Ceph for tests and the demo: one mon, one mgr, one osd or more on loopback, cephx on, every file below one directory.
#
#   tests/cluster.sh up DIR                    start it, make the pool "rbd", wait for HEALTH_OK
#   tests/cluster.sh down DIR [--keep-files]   end its daemons (also when half up, also twice), remove DIR
#   tests/cluster.sh env DIR                   shell lines for: eval "$(tests/cluster.sh env DIR)"
#
# Several may run at once: each claims a block of ports of its own, written to DIR/ports.
# Environment: LAB_FAST_SNAPSHOTS=1  the monitor decides at once, a snapshot takes 0.1 instead of 1 s: for tests of
#                                    behaviour, never for timings that somebody will read
#              LAB_OSD_SIZE=20G      size of the store (a sparse file)
#              LAB_OSDS=1            up to 3; an erasure-coded pool needs them
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Below the kernel's ephemeral ports, so that no outgoing connection of this machine sits on one of ours.
first_port=20000
last_port=31999
block=32 # 2 for the mon, 2 for the mgr, 8 for each osd (an endpoint takes a v2 and a v1 port), the rest for restarts

step="starting"
dir=

say() { printf 'cluster: %s\n' "$*"; }

die() {
    printf 'cluster: %s\n' "$*" >&2
    exit 1
}

# run SECONDS COMMAND...: a command with a deadline; what it says goes to DIR/log/up.log.
run() {
    local seconds=$1
    shift
    printf '+ %s\n' "$*" >>"$dir/log/up.log"
    timeout --kill-after=5 "$seconds" "$@" >>"$dir/log/up.log" 2>&1
}

ceph_cli() { run 30 ceph --conf "$dir/ceph.conf" --connect-timeout 20 "$@"; }

need_programs() {
    local pair missing=
    for pair in ceph-mon:ceph-mon ceph-mgr:ceph-mgr ceph-osd:ceph-osd ceph:ceph-common rbd:ceph-common \
        monmaptool:ceph-base ceph-authtool:ceph-common ss:iproute2 flock:util-linux; do
        if ! command -v "${pair%%:*}" >/dev/null && [[ " $missing " != *" ${pair#*:} "* ]]; then
            missing+=" ${pair#*:}"
        fi
    done
    [[ -z $missing ]] || die "missing packages: apt-get install --no-install-recommends$missing"
}

kernel_has_rbd() {
    [[ -d /sys/bus/rbd ]] || { modprobe --quiet rbd 2>/dev/null && [[ -d /sys/bus/rbd ]]; }
}

how_mapped() {
    if kernel_has_rbd; then
        echo "map: krbd (kernel)"
    else
        echo "map: stand-in (no rbd in this kernel)"
    fi
}

# Claims the first block of ports where nobody listens and no other cluster.sh is just starting. The claim is a lock on
# a file which this script and then its daemons hold open: it lasts as long as they do and can't be left behind.
claim_ports() {
    local port start listening claims=/run/lock/ceph-lab
    mkdir -p "$claims"
    for ((start = $1; start + block - 1 <= last_port; start += block)); do
        exec {claim_fd}>>"$claims/$start"
        if flock --nonblock "$claim_fd"; then
            listening=" $(ss --no-header --tcp --listening --numeric | awk '{ sub(/.*:/, "", $4); print $4 }' | tr '\n' ' ')"
            for ((port = start; port < start + block; port++)); do
                [[ $listening != *" $port "* ]] || break
            done
            if ((port == start + block)); then
                base=$start
                return 0
            fi
        fi
        exec {claim_fd}>&-
    done
    return 1
}

write_conf() {
    local propose=1
    [[ ${LAB_FAST_SNAPSHOTS:-0} != 1 ]] || propose=0.1
    printf 'mon=%d:%d\nmgr_osd=%d:%d\nall=%d:%d\n' "$base" $((base + 1)) $((base + 2)) $((base + block - 1)) \
        "$base" $((base + block - 1)) >"$dir/ports"
    cat >"$dir/ceph.conf" <<END
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$base,v1:127.0.0.1:$((base + 1))]
public_network = 127.0.0.0/8
ms_bind_port_min = $((base + 2))
ms_bind_port_max = $((base + block - 1))
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
run_dir = $dir/run
crash_dir = $dir/crash
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0

[mon]
mon_data = $dir/mon
keyring = $dir/mon/keyring
mon_cluster_log_file = $dir/log/cluster.log
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
# The disk belongs to others, who may have filled most of it; the default is to complain at 30 % and to stop at 5 %.
mon_data_avail_warn = 2
mon_data_avail_crit = 1
paxos_propose_interval = $propose

[mgr]
mgr_data = $dir/mgr
keyring = $dir/mgr/keyring
mgr_initial_modules =
mgr_stats_period = 1

[osd]
osd_data = $dir/osd/\$id
keyring = $dir/osd/\$id/keyring
osd_objectstore = bluestore
bluestore_block_size = $osd_bytes
osd_memory_target = 1073741824
# An OSD that stood still for longer than its lease (16 s by default) answers no read until another one renews it, and
# there is no other (seen on 16.2.15): 30 times the 20 s of a heartbeat's grace.
osd_pool_default_read_lease_ratio = 30
# Nothing lives long enough here to be worth scrubbing.
osd_scrub_min_interval = 315360000
osd_scrub_max_interval = 315360000
osd_deep_scrub_interval = 315360000

[client]
keyring = $dir/ceph.\$name.keyring
END
    local who
    for who in mon mgr osd; do
        sed -i "/^\[$who\]/a log_file = $dir/log/\$name.log\npid_file = $dir/run/\$name.pid\nadmin_socket = $dir/run/\$name.asok" \
            "$dir/ceph.conf"
    done
}

# Every key goes into the mon's first keyring, which spares a call to the cluster for each.
write_keys() {
    local all=$dir/mon-initial.keyring name file id files=(client.admin:ceph.client.admin.keyring mgr.x:mgr/keyring)
    run 30 ceph-authtool --create-keyring "$all" --gen-key --name mon. --cap mon 'allow *' &&
        run 30 ceph-authtool "$all" --gen-key --name client.admin \
            --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' --cap mds 'allow *' &&
        run 30 ceph-authtool "$all" --gen-key --name mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *' --cap mds 'allow *' ||
        return 1
    for ((id = 0; id < osds; id++)); do
        run 30 ceph-authtool "$all" --gen-key --name "osd.$id" \
            --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *' ||
            return 1
        files+=("osd.$id:osd/$id/keyring")
    done
    chmod 0600 "$all"
    for name in "${files[@]}"; do
        file=$dir/${name#*:}
        name=${name%%:*}
        (umask 077 && printf '[%s]\n\tkey = %s\n' "$name" "$(ceph-authtool "$all" --print-key --name "$name")" >"$file")
    done
}

# Called in a condition, where set -e is off: every line says by itself whether it worked.
start_mon() {
    step="making the monitor's store"
    mkdir -p "$dir/mon" &&
        write_keys &&
        run 30 monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$base,v1:127.0.0.1:$((base + 1))]" "$dir/monmap" &&
        run 30 ceph-mon --conf "$dir/ceph.conf" --mkfs --id a --monmap "$dir/monmap" --keyring "$dir/mon-initial.keyring" ||
        return 1
    rm "$dir/mon-initial.keyring"
    step="starting the monitor"
    run 30 ceph-mon --conf "$dir/ceph.conf" --id a
}

start_mgr() {
    step="starting the manager"
    # It would make a pool of its own for disk statistics, and a test that lists pools would see it come.
    ceph_cli config set mgr mgr/devicehealth/enable_monitoring false --force
    run 30 ceph-mgr --conf "$dir/ceph.conf" --id x
}

# start_osd ID
start_osd() {
    step="making the store of osd.$1"
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph_cli osd new "$uuid" "$1"
    run 60 ceph-osd --conf "$dir/ceph.conf" --id "$1" --mkfs --osd-uuid "$uuid"
    step="starting osd.$1"
    run 60 ceph-osd --conf "$dir/ceph.conf" --id "$1"
}

make_pool() {
    step="making the pool"
    ceph_cli osd pool create rbd 16
    run 60 rbd --conf "$dir/ceph.conf" pool init rbd
}

# HEALTH_OK comes before the first statistics do; who asks for the free space of the pool wants them too.
# The manager of Debian 13 (Ceph 18.2.7, Python 3.13) loads none of its modules, and warns of that for ever: the bcrypt that
# they import works in one interpreter only. Nothing here needs them.
wait_healthy() {
    step="waiting for HEALTH_OK"
    local status='' deadline=$((SECONDS + 60))
    # Ceph 20 has a pool with one placement group of its own.
    until [[ $status == *HEALTH_OK* && $status =~ pgs:\ +1[67]\ active\+clean ]]; do
        ((SECONDS < deadline)) || {
            printf '%s\n' "$status" >>"$dir/log/up.log"
            return 1
        }
        sleep 0.2
        status=$(timeout 10 ceph --conf "$dir/ceph.conf" status 2>&1) || true
        [[ ! $status =~ \ failed\ dependenc || $status == *muted* ]] || ceph_cli health mute MGR_MODULE_DEPENDENCY --sticky
    done
}

# One line for the step, then the tails that tell why; then nothing of this cluster is left.
up_failed() {
    trap - EXIT INT TERM
    local log
    printf 'cluster: FAILED while %s (%s)\n' "$step" "$dir" >&2
    for log in "$dir"/log/up.log "$dir"/log/*.[ax0].log; do
        [[ ! -s $log ]] || printf -- '--- %s\n%s\n' "${log##*/}" "$(tail -n 8 "$log")" >&2
    done
    down || true
    exit 1
}

# True when the failure was that somebody else took a port between our look and the daemon's bind.
port_was_taken() { grep --quiet --no-messages --ignore-case 'address already in use' "$dir"/log/*.log; }

start_daemons() {
    local start=$first_port attempt
    for attempt in 1 2 3 4 5; do
        step="looking for free ports"
        claim_ports "$start" || return 1
        write_conf
        if start_mon; then
            return 0
        fi
        port_was_taken || return 1
        say "ports $base to $((base + block - 1)) were taken meanwhile (attempt $attempt)"
        end_daemons
        exec {claim_fd}>&-
        start=$((base + block))
        rm -rf "$dir/mon" "$dir"/log/mon.a.log
    done
    return 1
}

up() {
    [[ $(id -u) == 0 ]] || die "must run as root"
    [[ ! -e $dir/lab ]] || die "$dir holds a cluster already: $0 down $dir"
    [[ ! -d $dir || -z $(ls -A "$dir") ]] || die "$dir is not empty"
    # Unix socket paths end at 107 bytes.
    ((${#dir} <= 85)) || die "the path of the directory is too long for sockets: $dir"
    need_programs
    local osd_bytes osds=${LAB_OSDS:-1} id fsid base claim_fd begin=$EPOCHREALTIME
    [[ $osds == [123] ]] || die "LAB_OSDS: not 1, 2 or 3: $osds"
    osd_bytes=$(numfmt --from=iec "${LAB_OSD_SIZE:-20G}") || die "LAB_OSD_SIZE: not a size: $LAB_OSD_SIZE"
    fsid=$(cat /proc/sys/kernel/random/uuid)
    mkdir -p "$dir"
    echo "made by tests/cluster.sh; its down removes this directory" >"$dir/lab"
    mkdir "$dir"/{run,log,mgr,osd,crash}
    for ((id = 0; id < osds; id++)); do
        mkdir "$dir/osd/$id"
    done
    # Where an init starts daemons. The OSD of Debian 13 looks for its classes in lib/... below it.
    cd /
    trap up_failed EXIT INT TERM
    start_daemons
    start_mgr
    for ((id = 0; id < osds; id++)); do
        start_osd "$id"
    done
    make_pool
    wait_healthy
    trap - EXIT INT TERM
    say "up in $(seconds_since "$begin") s: $dir/ceph.conf, ports $base to $((base + block - 1))"
    how_mapped
}

seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

# daemon_pids KIND: the pids of this cluster's daemons of a kind. Found by their command lines, which name this
# directory: a pid file can be missing (killed while starting) and its number can belong to somebody else by now.
daemon_pids() {
    local file args
    for file in /proc/[0-9]*/cmdline; do
        mapfile -d '' -t args 2>/dev/null <"$file" || continue
        if [[ ${args[0]:-} == @($1|*/$1) && " ${args[*]} " == *" --conf $dir/ceph.conf "* ]]; then
            file=${file%/cmdline}
            echo "${file#/proc/}"
        fi
    done
}

# SIGTERM, up to ten seconds, SIGKILL. The monitor last: an osd wants to tell it that it goes, and waits 5 s if it can't.
end_daemons() {
    local kind signal deadline pids
    for kind in ceph-mgr ceph-osd ceph-mon; do
        for signal in TERM KILL; do
            deadline=$((SECONDS + 10))
            pids=$(daemon_pids $kind)
            # shellcheck disable=SC2086 # a list of numbers
            [[ -z $pids ]] || kill -s $signal $pids 2>/dev/null || true
            while [[ -n $pids ]] && ((SECONDS < deadline)); do
                sleep 0.1
                pids=$(daemon_pids $kind)
            done
        done
        [[ -z $pids ]] || die "$kind outlives SIGKILL: $pids"
    done
}

# Whoever maps an image of a cluster that is gone waits for ever, and so does a umount: drop what is still mapped.
drop_mappings() {
    local fsid device entry
    fsid=$(sed -n 's/^fsid = //p' "$dir/ceph.conf" 2>/dev/null) || return 0
    if kernel_has_rbd; then
        for entry in /sys/bus/rbd/devices/*/cluster_fsid; do
            [[ -e $entry && $(<"$entry") == "$fsid" ]] || continue
            entry=${entry%/cluster_fsid}
            drop "/dev/rbd${entry##*/}" krbd
        done
        return 0
    fi
    local run=${RBD_STAND_IN_DIR:-/run/rbd-stand-in}/$fsid kind
    for kind in krbd nbd; do
        for device in $(stand_in list --device-type $kind 2>/dev/null | grep -o '/dev/loop[0-9]*'); do
            drop "$device" $kind
        done
    done
    rm -f "$run/lock"
    rmdir "$run/exclusive" "$run" 2>/dev/null || true
}

stand_in() { timeout --kill-after=5 60 "$here/bin/rbd" --conf "$dir/ceph.conf" device "$@"; }

drop() {
    say "still mapped, dropped: $1"
    stand_in unmap --device-type "$2" --options noudev,force "$1" || say "could not drop $1"
}

down() {
    local keep=${1:-}
    [[ -z $keep || $keep == --keep-files ]] || usage
    if [[ -d $dir && ! -e $dir/lab ]]; then
        [[ -z $(ls -A "$dir") ]] || die "$dir is not a directory of this script: nothing done"
    fi
    [[ ! -e $dir/ceph.conf ]] || drop_mappings
    end_daemons
    [[ $keep == --keep-files ]] || rm -rf "$dir"
}

env_lines() {
    [[ -e $dir/ceph.conf ]] || die "no cluster in $dir"
    printf 'export CEPH_CONF=%q\n' "$dir/ceph.conf"
    # shellcheck disable=SC2016 # the user's shell expands it
    kernel_has_rbd || printf 'export PATH=%q:"$PATH"\n' "$here/bin"
}

usage() {
    echo "usage: $0 up DIR | down DIR [--keep-files] | env DIR" >&2
    exit 2
}

main() {
    (($# >= 2)) || usage
    local verb=$1
    dir=$(realpath --canonicalize-missing -- "$2")
    shift 2
    case $verb in
    up)
        (($# == 0)) || usage
        close_inherited
        up
        ;;
    down) down "$@" ;;
    env) env_lines ;;
    *) usage ;;
    esac
}

# Daemons inherit whatever is open here; a test runner that waits for the end of its own pipe (bats, on 3) would hang.
close_inherited() {
    local fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        ((fd <= 2 || fd == 255)) || eval "exec $fd>&-"
    done
}

main "$@"
