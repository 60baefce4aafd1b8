#!/usr/bin/env bats
# The unit file as the README installs it, in a Debian that a real systemd has booted, with Debian's own docker.service.
#
# The machine (tests/debian/machine.sh) and a cluster share a network of their own. What is not as on a user's host: rbd is the
# stand-in for the kernel's, first on the driver's PATH by a drop-in.
#
# Environment: MACHINE_DEBIAN=12  the Debian of the machine: 12 or 13
# shellcheck disable=SC2154 # repo, login_path: of lib.bash

bats_require_minimum_version 1.5.0

# shellcheck source=lib.bash
source "$BATS_TEST_DIRNAME/lib.bash"

driver=docker-graph-driver
drop_ins=/etc/systemd/system/$driver.service.d

setup_file() {
    local suites=([12]=bookworm [13]=trixie) version=${MACHINE_DEBIAN:-12} root package packages=()
    SITE=$(mktemp -d /var/tmp/dgd-systemd.XXXXXX)
    # What is typed is typed into the machine.
    export SITE TYPED_BY=on LAB_FAST_SNAPSHOTS=1
    while read -r package; do packages+=("$package"); done < <(DEBIAN_VERSION=$version packages driver docker machine)
    root=$("$repo/tests/debian/root.sh" make "${suites[version]}" "${packages[@]}" 3>&-)
    machine up "$root"
    machine network "$repo/tests/cluster.sh" up "$SITE/ceph" 3>&-
    # A client that died is known to be dead after 30 s otherwise.
    machine network ceph --conf "$SITE/ceph/ceph.conf" config set osd osd_client_watch_timeout 8
    machine boot
    busybox_image >"$SITE/busybox.tar"
    # Programs find a keyring below /etc/ceph by its name.
    sed '/^\[client\]/,$d' "$SITE/ceph/ceph.conf" | on tee /etc/ceph/ceph.conf
    on tee /etc/ceph/ceph.client.admin.keyring <"$SITE/ceph/ceph.client.admin.keyring" >/dev/null
    drop_in stand-in.conf "[Service]" "Environment=PATH=$repo/tests/bin:$login_path"
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

teardown_file() {
    machine down
    "$repo/tests/cluster.sh" down "$SITE/ceph"
    rm --recursive --force --one-file-system "$SITE"
}

show_journal() {
    on journalctl --boot --no-pager --output short-monotonic --unit "$driver" --unit docker |
        grep --invert-match level=info | tail -n 40 | cut -c -300
}

machine() { "$repo/tests/debian/machine.sh" "$1" "$SITE/machine" "${@:2}" 3>&-; }

# on COMMAND...: a command in the machine, at most two minutes.
on() { machine run timeout --kill-after 5 120 "$@"; }

# drop_in NAME LINE...: a file that adds these lines to the unit. teardown takes test.conf away.
drop_in() {
    on mkdir --parents "$drop_ins"
    printf '%s\n' "${@:2}" | on tee "$drop_ins/$1" >/dev/null
    on systemctl daemon-reload
}

property() { on systemctl show --value --property "$2" "$1"; }

pid_of() { property "$1" MainPID; }

# is UNIT STATE
is() { [[ $(property "$1" ActiveState) == "$2" ]]; }

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

# The container's process, when it was started included; what is no more has none.
container_process() { on cut --delimiter ' ' --fields 1,22 "/proc/$1/stat"; }

# What systemd and Docker have now, to be compared by `runs_on`.
remember() {
    docker_pid=$(pid_of docker)
    driver_pid=$(pid_of "$driver")
    running_pid=$(on docker inspect --format '{{.State.Pid}}' running)
    running_process=$(container_process "$running_pid")
}

# runs_on: dockerd and the container are the processes of before, and the container writes.
runs_on() {
    local before
    [[ $(pid_of docker) == "$docker_pid" ]]
    [[ $(container_process "$running_pid") == "$running_process" ]]
    before=$(count)
    eventually counted_on "$before"
}

# What the container wrote last; between a write and the next there is always one.
count() { on cat "/proc/$running_pid/root/count"; }

counted_on() { (($(count) > $1)); }

# Docker does to the container what it did before.
is_served() {
    run -0 on docker exec running sh -c 'echo more >/more && cat /kept /more'
    [[ $output == $'precious\nmore' ]]
    [[ $(on docker inspect --format '{{.State.Pid}}' running) == "$running_pid" ]]
}

new_containers_start() {
    run -0 on docker run --rm small echo started
    [[ $output == started ]]
}

another_driver_listens() {
    local pid
    pid=$(pid_of "$driver")
    [[ $pid != 0 && $pid != "$1" ]] && is "$driver" active
}

@test "systemd has nothing to say about the unit" {
    run -0 on systemd-analyze verify "$repo/systemd/$driver.service"
    [[ -z $output ]]
}

@test "installed as the README says: Docker is on Ceph, and containers run" {
    typed 'ceph osd pool create docker 32'
    typed 'rbd pool init docker'
    typed "ceph auth get-or-create client.docker mon 'profile rbd' osd 'profile rbd pool=docker' mgr 'profile rbd pool=docker' -o /etc/ceph/ceph.client.docker.keyring"
    # The Docker host needs no more than that key.
    on rm /etc/ceph/ceph.client.admin.keyring
    typed 'cp --recursive . /opt/docker-graph-driver'
    typed 'cp systemd/docker-graph-driver.service /etc/systemd/system/'
    typed 'systemctl enable --now docker-graph-driver'
    is "$driver" active
    "$repo/tests/readme.py" block daemon.json | on tee /etc/docker/daemon.json
    typed 'systemctl restart docker'
    run -0 typed "docker info --format '{{.Driver}}: {{.DriverStatus}}'"
    [[ $output == "ceph: "*docker* ]]
    on docker import - small <"$SITE/busybox.tar"
    new_containers_start
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
    [[ $output == *"listening on "* ]]
    # In the words of host/command.py: nothing took too long.
    [[ $output != *Traceback* && $output != *"a defect of the driver"* && $output != *"no answer within "* ]]
}

only_base_is_left() {
    local trash
    [[ $(images ls) == docker_image_base_image ]] && trash=$(images trash ls --all) && [[ -z $trash ]]
}

images() { machine network rbd --conf "$SITE/ceph/ceph.conf" --pool docker "$@"; }

# A machine that is down does not tell.
nothing_is_mounted() { on sh -c '! grep /var/lib/docker/ceph /proc/mounts'; }

nothing_is_mapped() { [[ $(on "$repo/tests/bin/rbd" --id docker device list --format json) == "[]" ]]; }
