#!/usr/bin/env bats
# The unit file of the snapshotter as the README installs it, in a Debian that a real systemd has booted, with Debian's own
# containerd.service, and with ctr.
#
# Environment: MACHINE_DEBIAN=12  the Debian of the machine: 12 or 13 (systemd.bash)
# shellcheck disable=SC2154 # repo: of lib.bash; drop_ins, driver_pid, running_pid: of systemd.bash

bats_require_minimum_version 1.5.0

driver=docker-graph-driver-snapshotter
daemon=containerd

# shellcheck source=systemd.bash
source "$BATS_TEST_DIRNAME/systemd.bash"

image=docker.io/library/small:latest
# The machine may have no controller for shares of the processor (machine.sh), of which ctr gives 1024 otherwise.
on_ceph=(--snapshotter ceph --cpu-shares 0)

setup_file() {
    make_machine
    # Docker's own containers are not what is tested here.
    on systemctl disable --now docker.socket docker
    busybox_image >"$SITE/busybox.tar"
    "$repo/tests/make_image.py" --base "$SITE/busybox.tar" --layers 3 small:latest "$SITE/small.tar"
}

# A test that failed may have left anything: what it set, and what does not run.
teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_journal
    [[ -e $SITE/machine/systemd ]] || machine boot
    on systemctl --quiet is-enabled "$driver" || return 0
    on rm --force "$drop_ins/test.conf"
    on systemctl daemon-reload
    on systemctl reset-failed
    on systemctl start "$driver" containerd
    remove_containers
}

ctr() { on ctr "$@"; }

remove_containers() {
    local name
    for name in $(ctr containers list --quiet); do
        ctr task delete --force "$name" >/dev/null 2>&1 || true # it may have none
        ctr containers delete "$name"
    done
}

# start_running: a container that counts in a file as long as it lives, with a file to be kept. It ends when it is told to,
# as the machine's shutdown does.
start_running() {
    # shellcheck disable=SC2016 # for the container's shell
    ctr run --detach --null-io "${on_ceph[@]}" "$image" running sh -c 'trap exit TERM
        echo precious >>/kept; sync -f /kept; n=0; while echo $((n += 1)) >/count.new; do mv /count.new /count; usleep 50000; done'
    counts
}

counts() {
    running_pid=$(find_container)
    eventually on test -s "/proc/$running_pid/root/count"
}

find_container() { ctr task list | awk '$1 == "running" && $3 == "RUNNING" { print $2 }'; }

# said COMMAND...: what a process in a container says, whose arguments of ctr these are. (ctr's own pipes lose what one said
# that has ended before they are open: snapshotter/helpers.bash.)
said() {
    # shellcheck disable=SC2016 # for the shell in the machine
    on sh -c 'ctr "$@" --log-uri file:///root/said '"$(printf '%q ' "${rest[@]}")"'; status=$?
        cat /root/said; rm /root/said; exit $status' - "$@"
}

# in_running COMMAND...: a second process in the container.
in_running() {
    local rest=(--exec-id "exec-$RANDOM" running "$@")
    said task exec
}

is_served() {
    run -0 in_running sh -c 'echo more >/more && cat /kept /more'
    [[ $output == $'precious\nmore' ]]
    [[ $(find_container) == "$running_pid" ]]
}

new_containers_start() {
    local rest=(--rm "${on_ceph[@]}" "$image" "once-$RANDOM" echo started)
    run -0 said run
    [[ $output == started ]]
}

@test "systemd has nothing to say about the unit" {
    run -0 on systemd-analyze verify "$repo/systemd/$driver.service"
    [[ -z $output ]]
}

@test "installed as the README says: containers run on Ceph" {
    make_pool
    typed 'cp systemd/docker-graph-driver-snapshotter.service /etc/systemd/system/'
    "$repo/tests/readme.py" block "$driver.service.d/options.conf" | on tee "$drop_ins/options.conf"
    typed 'systemctl enable --now docker-graph-driver-snapshotter'
    is "$driver" active
    # Debian's own file has no such table.
    "$repo/tests/readme.py" block config.toml | on tee --append /etc/containerd/config.toml
    typed 'systemctl restart containerd'
    eventually snapshots_can_be_made
    ctr image import --snapshotter ceph - <"$SITE/small.tar"
    new_containers_start
    # The base image and three layers, when the container has gone.
    eventually pool_has 4
    is_ready snapshotter
    [[ $(property containerd Wants) == *" $driver.service"* || $(property containerd Wants) == "$driver.service"* ]]
}

pool_has() { [[ $(images ls | wc -l) == "$1" ]]; }

# Before its cluster has answered, it refuses them in words.
snapshots_can_be_made() {
    ctr snapshots --snapshotter ceph prepare probe && ctr snapshots --snapshotter ceph delete probe
}

@test "the snapshotter is restarted: containerd and its containers run on" {
    start_running
    remember
    on systemctl restart "$driver"
    another_driver_listens "$driver_pid"
    runs_on
    is_served
    eventually snapshots_can_be_made
    new_containers_start
    [[ $(property "$driver" StatusText) == "listening on /run/docker-graph-driver/snapshotter.sock" ]]
}

@test "the snapshotter is killed: it comes back by itself, containerd and its containers run on" {
    start_running
    remember
    on systemctl kill --kill-who main --signal KILL "$driver"
    eventually another_driver_listens "$driver_pid"
    runs_on
    is_served
    eventually snapshots_can_be_made
    new_containers_start
}

@test "the snapshotter is stopped: containers run on, and a new one is refused" {
    start_running
    remember
    on systemctl stop "$driver"
    is "$driver" inactive
    [[ $(property "$driver" Result) == success && $(property "$driver" ExecMainStatus) == 0 ]]
    runs_on
    is_served
    run ! ctr run --rm "${on_ceph[@]}" "$image" refused true
    echo "$output"
    # containerd tells of the socket, or of the end of the connection that it had.
    [[ $output == *"/run/docker-graph-driver/snapshotter.sock"* || $output == *unavailable* ]]
    runs_on
    on systemctl start "$driver"
    runs_on
    is_served
    eventually snapshots_can_be_made
    new_containers_start
}

# noted COMMAND...: runs it in the machine with the stand-in, and notes its pid there.
noted() {
    # shellcheck disable=SC2016 # for the shell in the machine
    on env PATH="$repo/tests/bin:$login_path" sh -c 'echo $$ >/run/typed.pid && exec "$@"' - "$@"
}

@test "typed as the README says, without its unit: it serves" {
    on systemctl stop "$driver"
    TYPED_BY=noted typed 'python3 docker_graph_driver.py snapshotter --option ceph.datapool=docker --option ceph.client=docker' \
        >"$SITE/typed.log" 2>&1 3>&- </dev/null &
    eventually snapshots_can_be_made
    new_containers_start
    # shellcheck disable=SC2016 # for the shell in the machine
    on sh -c 'kill "$(cat /run/typed.pid)"'
    wait $!
    on systemctl start "$driver"
    eventually snapshots_can_be_made
}

@test "both are stopped and started: containers run on" {
    start_running
    remember
    on systemctl stop containerd "$driver"
    is containerd inactive
    is "$driver" inactive
    # containerd brings the snapshotter.
    on systemctl start containerd
    is "$driver" active
    daemon_pid=$(pid_of containerd)
    runs_on
    is_served
    eventually snapshots_can_be_made
    new_containers_start
}

@test "containerd starts when the snapshotter listens, and not when it was only started" {
    on systemctl stop containerd "$driver"
    drop_in test.conf "[Service]" "ExecStart=" \
        "ExecStart=/bin/sh -c 'touch /run/begun; until [ -e /run/go ]; do sleep 0.1; done; exec /usr/bin/python3 /opt/docker-graph-driver/docker_graph_driver.py snapshotter --option ceph.datapool=docker --option ceph.client=docker'"
    on rm --force /run/begun /run/go
    on systemctl start --no-block containerd
    eventually on test -e /run/begun
    is "$driver" activating
    is containerd inactive
    on touch /run/go
    eventually is containerd active
    (($(property containerd ExecMainStartTimestampMonotonic) >= $(property "$driver" ActiveEnterTimestampMonotonic)))
    eventually snapshots_can_be_made
    new_containers_start
}

@test "a boot brings both up, after a shutdown and after a power cut: a container that was there starts again with its file" {
    local ending
    start_running
    for ending in halt cut; do
        machine "$ending"
        machine boot
        on systemctl is-active multi-user.target containerd "$driver"
        [[ $(ctr containers list --quiet) == running ]]
        eventually snapshots_can_be_made
        ctr task start --detach --null-io running
        counts
        run -0 in_running head -n 1 /kept
        [[ $output == precious ]]
        new_containers_start
    done
}

@test "nothing is left" {
    remove_containers
    ctr image rm --sync "$image"
    eventually only_base_is_left
    eventually nothing_is_mounted
    on systemctl stop containerd "$driver"
    eventually nothing_is_mapped
    run -0 on journalctl --no-pager --unit "$driver"
    # The driver knows that it writes to the journal: no time of its own, and no priority that is left in the text.
    local line=']: \[[0-9]+ MainThread] listening on '
    [[ $output =~ $line ]]
    [[ $output != *Traceback* && $output != *"a defect of the driver"* && $output != *"no answer within "* ]]
}

only_base_is_left() {
    local trash
    [[ $(images ls) == docker_image_base_image ]] && trash=$(images trash ls --all) && [[ -z $trash ]]
}

# A machine that is down does not tell.
nothing_is_mounted() { on sh -c '! grep /var/lib/docker-graph-driver /proc/mounts'; }
