#!/usr/bin/env bats
# The unit file as the README installs it, in a Debian that a real systemd has booted, with Debian's own docker.service.
#
# Environment: MACHINE_DEBIAN=12  the Debian of the machine: 12 or 13 (systemd.bash)
# shellcheck disable=SC2154 # repo: of lib.bash; drop_ins, driver_pid, running_pid: of systemd.bash

bats_require_minimum_version 1.5.0

driver=docker-graph-driver
daemon=docker

# shellcheck source=systemd.bash
source "$BATS_TEST_DIRNAME/systemd.bash"

setup_file() {
    make_machine
    busybox_image >"$SITE/busybox.tar"
}

# A test that failed may have left anything: what it set, and what does not run. Docker forgets what it removes while the
# driver is away.
teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_journal
    [[ -e $SITE/machine/systemd ]] || machine boot
    on systemctl --quiet is-enabled "$driver" || return 0
    on rm --force "$drop_ins/test.conf"
    on systemctl daemon-reload
    on systemctl reset-failed
    on systemctl start "$driver" docker
    remove_containers
}

remove_containers() {
    # shellcheck disable=SC2016 # for the shell in the machine
    on sh -c 'docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes' >/dev/null
}

# start_running [OPTION...]: a container that counts in a file as long as it lives, with a file to be kept. It writes out
# its own file system, not all of the machine's: one that hangs would keep it from its end.
start_running() {
    # shellcheck disable=SC2016 # for the container's shell
    on docker run --detach --name running --stop-signal KILL "$@" small \
        sh -c 'echo precious >>/kept; sync -f /kept; n=0; while echo $((n += 1)) >/count.new; do mv /count.new /count; usleep 50000; done'
    eventually on docker exec running test -s /count
}

find_container() { on docker inspect --format '{{.State.Pid}}' running; }

# Docker does to the container what it did before.
is_served() {
    run -0 on docker exec running sh -c 'echo more >/more && cat /kept /more'
    [[ $output == $'precious\nmore' ]]
    [[ $(find_container) == "$running_pid" ]]
}

new_containers_start() {
    run -0 on docker run --rm small echo started
    [[ $output == started ]]
}

@test "systemd has nothing to say about the unit" {
    run -0 on systemd-analyze verify "$repo/systemd/$driver.service"
    [[ -z $output ]]
}

@test "installed as the README says: Docker is on Ceph, and containers run" {
    make_pool
    typed 'cp systemd/docker-graph-driver.service /etc/systemd/system/'
    typed 'systemctl enable --now docker-graph-driver'
    is "$driver" active
    "$repo/tests/readme.py" block daemon.json | on tee /etc/docker/daemon.json
    typed 'systemctl restart docker'
    run -0 typed "docker info --format '{{.Driver}}: {{.DriverStatus}}'"
    [[ $output == "ceph: "*docker* ]]
    on docker import - small <"$SITE/busybox.tar"
    new_containers_start
    is_ready docker
}

@test "the unit file of before is replaced: what required the driver wants it now" {
    on sh -c "sed 's/^WantedBy=docker.service.*/WantedBy=multi-user.target\nRequiredBy=docker.service/' \
        $repo/systemd/$driver.service >/etc/systemd/system/$driver.service"
    typed 'systemctl daemon-reload'
    typed 'systemctl reenable docker-graph-driver'
    [[ " $(property docker Requires) " == *" $driver.service "* ]]
    typed 'cp systemd/docker-graph-driver.service /etc/systemd/system/'
    typed 'systemctl daemon-reload'
    typed 'systemctl reenable docker-graph-driver'
    [[ " $(property docker Requires) " != *" $driver.service "* && " $(property docker Wants) " == *" $driver.service "* ]]
}

@test "the driver is restarted: Docker and its containers run on" {
    start_running
    remember
    typed 'systemctl restart docker-graph-driver'
    another_driver_listens "$driver_pid"
    runs_on
    is_served
    new_containers_start
    on docker stop running
    on docker start running
    run -0 on docker exec running cat /kept
    [[ $output == $'precious\nprecious' ]]
    [[ $(property "$driver" StatusText) == "listening on /run/docker/plugins/ceph.sock" ]]
}

@test "with the drop-in of the README it writes figures for node_exporter" {
    local figures=/var/lib/prometheus/node-exporter/docker-graph-driver.prom
    # Debian's package of the exporter brings the directory.
    on mkdir --parents "$drop_ins" "${figures%/*}"
    # By a name that teardown takes away.
    "$repo/tests/readme.py" block "$driver.service.d/metrics.conf" | on tee "$drop_ins/test.conf"
    on systemctl daemon-reload
    typed 'systemctl restart docker-graph-driver'
    eventually on grep --quiet '^docker_graph_driver_up{socket="/run/docker/plugins/ceph.sock"} 1$' "$figures"
    new_containers_start
    on systemctl stop "$driver"
    on grep --quiet '^docker_graph_driver_up{socket="/run/docker/plugins/ceph.sock"} 0$' "$figures"
}

@test "the driver is killed: it comes back by itself, Docker and its containers run on" {
    start_running
    remember
    on systemctl kill --kill-who main --signal KILL "$driver"
    eventually another_driver_listens "$driver_pid"
    runs_on
    is_served
    new_containers_start
}

@test "the driver is stopped: containers run on, and a new one is refused in words" {
    start_running
    remember
    on systemctl stop "$driver"
    is "$driver" inactive
    [[ $(property "$driver" Result) == success && $(property "$driver" ExecMainStatus) == 0 ]]
    runs_on
    # dockerd tries for a while.
    run ! on docker run --rm small echo started
    [[ $output == *"/run/docker/plugins/ceph.sock"* ]]
    runs_on
    on systemctl start "$driver"
    runs_on
    is_served
    new_containers_start
}

@test "both are stopped and started" {
    start_running
    run ! nothing_is_mounted
    on systemctl stop docker.socket docker "$driver"
    is docker inactive
    is "$driver" inactive
    nothing_is_mounted
    # Docker brings the driver.
    on systemctl start docker
    is "$driver" active
    new_containers_start
    on docker start running
    run -0 on docker exec running head -n 1 /kept
    [[ $output == precious ]]
}

@test "Docker starts when the driver listens, and not when it was only started" {
    on systemctl stop docker.socket docker "$driver"
    drop_in test.conf "[Service]" "ExecStart=" \
        "ExecStart=/bin/sh -c 'touch /run/begun; until [ -e /run/go ]; do sleep 0.1; done; exec /usr/bin/python3 /opt/docker-graph-driver/docker_graph_driver.py'"
    on rm --force /run/begun /run/go
    on systemctl start --no-block docker
    eventually on test -e /run/begun
    is "$driver" activating
    is docker inactive
    on touch /run/go
    eventually is docker active
    (($(property docker ExecMainStartTimestampMonotonic) >= $(property "$driver" ActiveEnterTimestampMonotonic)))
    new_containers_start
}

@test "a boot brings Docker up on Ceph, after a shutdown and after a power cut" {
    local ending
    start_running --restart always
    for ending in halt cut; do
        machine "$ending"
        machine boot
        on systemctl is-active multi-user.target docker "$driver"
        run -0 on docker info --format '{{.Driver}}'
        [[ $output == ceph ]]
        eventually on docker exec running test -s /count
        run -0 on docker exec running head -n 1 /kept
        [[ $output == precious ]]
        new_containers_start
    done
}

@test "a driver that fails at every start holds up no boot, and Docker says what is missing; repaired, both are there" {
    local begin
    drop_in test.conf "[Service]" "ExecStart=" "ExecStart=/bin/false"
    machine halt
    begin=$SECONDS
    machine boot
    # Docker looks for the driver for 15 s.
    ((SECONDS - begin < 120))
    on systemctl is-active multi-user.target
    run -0 on journalctl --boot --no-pager --unit docker
    [[ $output == *'plugin \"ceph\" not found'* ]]
    # It was tried more often than systemd allows by default, and is tried on.
    eventually tried_often
    on rm "$drop_ins/test.conf"
    on systemctl daemon-reload
    eventually is "$driver" active
    typed 'systemctl reset-failed docker'
    typed 'systemctl start docker'
    new_containers_start
}

tried_often() { (($(property "$driver" NRestarts) > 6)); }

@test "a clone of the machine becomes a host of its own" {
    local id image owned=0
    remove_containers
    on docker rmi small
    eventually only_base_is_left
    typed 'rm -f /etc/machine-id /var/lib/dbus/machine-id'
    typed 'systemd-machine-id-setup'
    typed 'hostnamectl set-hostname node2'
    typed 'systemctl restart docker-graph-driver'
    typed 'systemctl restart docker'
    id=$(on cat /etc/machine-id)
    on docker import - small <"$SITE/busybox.tar"
    new_containers_start
    for image in $(images ls | grep --invert-match base_image); do
        # What was removed a moment ago goes in the background.
        run images image-meta get "$image" docker_graph_driver.layer
        if ((status == 2)); then
            run -2 images info "$image"
            continue
        fi
        ((status == 0))
        [[ $(jq --raw-output .owner <<<"$output") == "node2/$id /var/lib/docker/ceph" ]]
        owned=$((owned + 1))
    done
    ((owned > 0))
}

@test "nothing is left" {
    remove_containers
    on docker rmi small
    eventually only_base_is_left
    eventually nothing_is_mounted
    on systemctl stop docker.socket docker "$driver"
    eventually nothing_is_mapped
    # Of all machines that this one has been: a journal belongs to a machine-id.
    run -0 on journalctl --merge --no-pager --unit "$driver"
    # The driver knows that it writes to the journal: no time of its own, and no priority that is left in the text.
    local line=']: \[[0-9]+ MainThread] listening on '
    [[ $output =~ $line ]]
    # In the words of host/command.py: nothing took too long.
    [[ $output != *Traceback* && $output != *"a defect of the driver"* && $output != *"no answer within "* ]]
}

only_base_is_left() {
    local trash
    [[ $(images ls) == docker_image_base_image ]] && trash=$(images trash ls --all) && [[ -z $trash ]]
}

# A machine that is down does not tell.
nothing_is_mounted() { on sh -c '! grep /var/lib/docker/ceph /proc/mounts'; }
