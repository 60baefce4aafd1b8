# What the tests with a systemd of their own share: a machine, and a cluster that it reaches.
# shellcheck shell=bash
#
# The machine (tests/debian/machine.sh) and the cluster share a network of their own. What is not as on a user's host: rbd is
# the stand-in for the kernel's, first on the driver's PATH by a drop-in. Each file sets $driver, the name of the unit that
# it tests, and $daemon, that of whom it serves; sources this; and has a function `find_container` that prints the pid of a
# container that counts in /count.
#
# Environment: MACHINE_DEBIAN=12  the Debian of the machine: 12 or 13
# shellcheck disable=SC2154 # repo, login_path: of lib.bash; driver, daemon: of the file

bats_require_minimum_version 1.5.0

# shellcheck source=lib.bash
source "$BATS_TEST_DIRNAME/lib.bash"

drop_ins=/etc/systemd/system/$driver.service.d

# make_machine: boots it beside a cluster, of which it has the key of an administrator.
make_machine() {
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
    # Programs find a keyring below /etc/ceph by its name.
    sed '/^\[client\]/,$d' "$SITE/ceph/ceph.conf" | on tee /etc/ceph/ceph.conf
    on tee /etc/ceph/ceph.client.admin.keyring <"$SITE/ceph/ceph.client.admin.keyring" >/dev/null
    drop_in stand-in.conf "[Service]" "Environment=PATH=$repo/tests/bin:$login_path"
}

# make_pool: what the README says of a pool and a key, and of this directory.
make_pool() {
    typed 'ceph osd pool create docker 32'
    typed 'rbd pool init docker'
    typed "ceph auth get-or-create client.docker mon 'profile rbd' osd 'profile rbd pool=docker' mgr 'profile rbd pool=docker' -o /etc/ceph/ceph.client.docker.keyring"
    # The Docker host needs no more than that key.
    on rm /etc/ceph/ceph.client.admin.keyring
    is_nearly_ready
    typed 'cp --recursive . /opt/docker-graph-driver'
}

# is_nearly_ready: before the first start nothing is broken but what Docker has not been told yet; the key was tried.
is_nearly_ready() {
    TYPED_BY="on env PATH=$repo/tests/bin:$login_path" \
        run -2 typed 'python3 docker_graph_driver.py doctor --option ceph.datapool=docker --option ceph.client=docker'
    echo "$output"
    [[ $output == *"remove: ok: client.docker may remove images; the trial left nothing"* ]]
    [[ $(grep --only-matching --extended-regexp '^.*: broken: ' <<<"$output") == "docker configuration: broken: " ]]
}

# is_ready FRONT: what is installed is well, as far as this machine, with its stand-in, goes.
is_ready() {
    run on env PATH="$repo/tests/bin:$login_path" python3 /opt/docker-graph-driver/docker_graph_driver.py doctor
    echo "$output"
    [[ $status -lt 2 && $output == *"front end: ok: $1 "* && $output == *"systemd unit: ok"*"control group: ok: process "*"/$driver.service"* ]]
}

teardown_file() {
    machine down
    "$repo/tests/cluster.sh" down "$SITE/ceph"
    rm --recursive --force --one-file-system "$SITE"
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

# What systemd and the daemon have now, to be compared by `runs_on`.
remember() {
    daemon_pid=$(pid_of "$daemon")
    # shellcheck disable=SC2034 # for the files
    driver_pid=$(pid_of "$driver")
    running_pid=$(find_container)
    running_process=$(container_process "$running_pid")
}

# runs_on: the daemon and the container are the processes of before, and the container writes.
runs_on() {
    local before
    [[ $(pid_of "$daemon") == "$daemon_pid" ]]
    [[ $(container_process "$running_pid") == "$running_process" ]]
    before=$(count)
    eventually counted_on "$before"
}

# The container's process, when it was started included; what is no more has none.
container_process() { on cut --delimiter ' ' --fields 1,22 "/proc/$1/stat"; }

# What the container wrote last; between a write and the next there is always one.
count() { on cat "/proc/$running_pid/root/count"; }

counted_on() { (($(count) > $1)); }

another_driver_listens() {
    local pid
    pid=$(pid_of "$driver")
    [[ $pid != 0 && $pid != "$1" ]] && is "$driver" active
}

show_journal() {
    on journalctl --boot --no-pager --output short-monotonic --unit "$driver" --unit "$daemon" |
        grep --invert-match level=info | tail -n 40 | cut -c -300
}

images() { machine network rbd --conf "$SITE/ceph/ceph.conf" --pool docker "$@"; }

nothing_is_mapped() { [[ $(on "$repo/tests/bin/rbd" --id docker device list --format json) == "[]" ]]; }
