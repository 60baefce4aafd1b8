#!/usr/bin/env bats
# demo.sh as the README tells to type it, with Docker and with containerd (`of`): to its end, kept and used and taken down,
# interrupted and killed, where something fails, on a busy machine, and beside a Docker that runs already.

bats_require_minimum_version 1.5.0

# shellcheck source=lib.bash
source "$BATS_TEST_DIRNAME/lib.bash"

demo=/var/tmp/ceph-demo
# What is shown: "" is Docker.
of=
plugins=/run/docker/plugins

setup_file() {
    WORK=$(mktemp --directory /var/tmp/dgd-demo.XXXXXX)
    export WORK
    # Some machines have none of these.
    mkdir -p $plugins
    "$repo/tests/leaks.sh" snapshot "$WORK/before"
}

teardown_file() {
    "$repo/demo.sh" --down || true
    end_recorded "$WORK/docker/docker.pid" "$WORK/docker"
    end_containers "$WORK/docker"
    end_recorded "$WORK/docker/containerd.pid" "$WORK/docker"
    unmount_below "$WORK"
    rm -rf --one-file-system "$WORK"
}

teardown() {
    [[ -z ${load:-} ]] || kill -KILL "${load[@]}"
    [[ -z ${running:-} ]] || end_process "$running" 60
    rm -f "$plugins/neighbour.sock"
    # Of a test that failed; the next one begins without it.
    "$repo/demo.sh" --down
}

# ends_well: what `run` ran showed all there is to be seen, and nothing that was about to go.
ends_well() {
    echo "$output"
    [[ $status == 0 && $output != *FAILED* && $output != *interrupted* ]]
    if [[ $of == snapshotter ]]; then
        one_pull_is_enough
        return
    fi
    # Base image, two images, a container and its init layer; the container that was run with --rm is not among them.
    [[ $output == *$'\nLayers: 4\r\nMapped Devices: 0'* || $output == *$'\nLayers: 4\nMapped Devices: 0'* ]]
    [[ $(grep --count '^docker_image_' <<<"${output#*What Ceph says}") -ge 5 ]]
    find_tree
    [[ $tree == *"2 images, 1 container, 4 layers; "* ]]
    [[ $tree == *busybox:latest*"container first  stopped"*second:latest*"on 1 layer of busybox:latest"* ]]
    [[ $(grep --count ' layer [0-9a-f]\{12\} ' <<<"$tree") == 2 ]]
}

# find_tree: what the driver showed of the pool is in $tree, as it is without colours.
find_tree() { tree=$(printf '%s\n' "${output#*"as a tree"}" | sed 's/\x1b\[[0-9;]*[mK]//g'); }

# one_pull_is_enough: the first host has fetched all layers, the second one none, and each has a container of its own.
one_pull_is_enough() {
    [[ $(grep --count ': 3 of 3 layers fetched, [1-9][0-9,]* bytes' <<<"$output") == 1 ]]
    [[ ${output#*The second host pulls} == *": 0 of 3 layers fetched, 0 bytes"* ]]
    [[ $output == *$'\nof the first host\n'*$'\nwhat the other one wrote is not here\nof the second host\n'* ]]
    find_tree
    [[ $tree == *"1 image, 2 containers, 5 layers; "* ]]
    [[ $(grep --count ' layer [0-9a-z]\{12\}  shared, used by host-one and host-two ' <<<"$tree") == 3 ]]
    [[ $(grep --count ' container \(first\|second\) ' <<<"$tree") == 2 ]]
    [[ $tree == *"container second  of host-two"* ]]
}

demo_is_gone() {
    local left
    [[ ! -e $demo ]] || { find $demo -ls && false; }
    run -1 compgen -G "$plugins/cephdemo.*"
    left=$(
        processes_with "$demo/"
        processes_with "$plugins/cephdemo"
        mounts_below "$demo"
    )
    echo "left: $left"
    [[ -z $left ]]
}

# demo_fails WORDS: it says so first, with words that tell what to look at; then nothing of it is left.
demo_fails() {
    run --separate-stderr "$repo/demo.sh" ${of:+"$of"}
    # shellcheck disable=SC2154 # it is what run gathers
    echo "$status: $stderr"
    [[ $status == 1 ]]
    [[ $(grep --max-count 1 . <<<"$stderr") == "demo.sh: FAILED at "*"$1"* ]]
    demo_is_gone
}

# fake NAME SCRIPT: a program that comes first on PATH.
fake() {
    printf '#!/bin/bash\n%s\n' "$2" >"$BATS_TEST_TMPDIR/$1"
    chmod +x "$BATS_TEST_TMPDIR/$1"
    PATH=$BATS_TEST_TMPDIR:$PATH
}

# begin: a demo in the background; its pid is in $running, what it says in $WORK/out.
begin() {
    # bats has us ignore SIGINT in the background.
    env --default-signal=INT,TERM setsid "$repo/demo.sh" ${of:+"$of"} >"$WORK/out" 2>&1 3>&- </dev/null &
    running=$!
}

# ended: waits for its end; its exit status is in $status.
ended() {
    status=0
    eventually process_gone "$running"
    wait "$running" || status=$?
    running=
    cat "$WORK/out"
}

# interrupt SIGNAL WHOM HEADING: begins a demo and sends it a signal when it shows a heading; WHOM is `group` for the
# process group, as a terminal does, or `script`.
interrupt() {
    local whom=
    begin
    until_true 600 shows "$3"
    [[ $2 == script ]] || whom=-
    kill -s "$1" -- "$whom$running"
    ended
    [[ $status == $((128 + $(kill -l "$1"))) ]]
    grep 'demo.sh: interrupted at "' "$WORK/out"
    demo_is_gone
}

shows() { process_gone "$running" || grep --quiet --fixed-strings "$1" "$WORK/out"; }

# interrupt_its_end: by Ctrl-C. It is at its end either way.
interrupt_its_end() {
    begin
    until_true 600 shows 'Everything goes away'
    kill -INT -- "-$running"
    ended
    [[ $status == 0 || $status == 130 ]]
    demo_is_gone
}

# kill_and_take_down HEADING: the demo cannot do anything any more at that step; --down can.
kill_and_take_down() {
    begin
    until_true 600 shows "$1"
    # While that step is done.
    sleep 1
    kill -KILL -- "-$running"
    ended
    run -1 "$repo/demo.sh" ${of:+"$of"}
    [[ $output == *"was killed"* ]]
    run -0 "$repo/demo.sh" --down
    [[ $output == *"Nothing of the demo is left." ]]
    demo_is_gone
}

# use_in_a_terminal COMMAND: what a kept demo says (in $WORK/out), and the command in the container that it has one run.
use_in_a_terminal() {
    sed -n '/in a shell of root/,$s/^  //p' "$WORK/out" >"$WORK/lines"
    cat "$WORK/lines"
    run -0 script --quiet --return --command "bash -e $WORK/lines" /dev/null <<<"$1"$'\nexit\n'
    echo "$output"
}

@test "beside a Docker that runs already, which is left alone" {
    busybox_image >"$WORK/busybox.tar"
    start_dockerd "$WORK/docker" vfs
    docker_cli "$WORK/docker" import "$WORK/busybox.tar" busybox
    docker_cli "$WORK/docker" run --detach --network none --name neighbour busybox sleep 1000
    touch "$plugins/neighbour.sock"
    neighbour() {
        docker_cli "$WORK/docker" inspect --format '{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}}' neighbour &&
            docker_cli "$WORK/docker" images --quiet && cat "$WORK/docker/docker.pid" && ls -l --time-style full-iso $plugins
    }
    neighbour >"$WORK/neighbour"
    run typed './demo.sh'
    ends_well
    [[ $output != *$'\033'* ]] # this is no terminal
    diff "$WORK/neighbour" <(neighbour)
    demo_is_gone
    # Some go by themselves while all are removed.
    for n in 1 2 3 4; do
        docker_cli "$WORK/docker" run --detach --rm --network none busybox sleep "0.$n"
    done
    remove_all_containers "$WORK/docker"
    run -0 docker_cli "$WORK/docker" ps --all --quiet
    [[ -z $output ]]
    end_recorded "$WORK/docker/docker.pid" "$WORK/docker"
    end_recorded "$WORK/docker/containerd.pid" "$WORK/docker"
    unmount_below "$WORK"
}

@test "beside four busy processes" {
    load=() # for teardown
    for n in {1..4}; do
        sh -c 'while :; do :; done' 3>&- &
        load+=($!)
    done
    run "$repo/demo.sh"
    kill "${load[@]}"
    load=()
    ends_well
    demo_is_gone
}

use_as_told() (
    typed 'export DOCKER_HOST=unix:///var/tmp/ceph-demo/docker/docker.sock'
    typed 'docker run --network none --rm second cat /hello'
    typed 'export CEPH_CONF=/var/tmp/ceph-demo/ceph/ceph.conf'
    typed 'rbd list'
    typed 'unset DOCKER_HOST CEPH_CONF'
    [[ ! -v DOCKER_HOST && ! -v CEPH_CONF ]]
)

@test "kept, used as it says, taken down" {
    typed './demo.sh --keep' >"$WORK/out" 2>&1 3>&-
    run cat "$WORK/out"
    ends_well
    # What the README says, in a shell for itself.
    run -0 use_as_told
    echo "$output"
    [[ $output == *"kept in Ceph"* && $output == *docker_image_base_image* ]]
    use_in_a_terminal 'cat /hello'
    [[ $output == *"kept in Ceph"* && $output == *docker_image_base_image* ]]
    # Another one is refused, and this one stays.
    for option in '' --keep; do
        run --separate-stderr -1 "$repo/demo.sh" $option
        [[ $stderr == "demo.sh: a demo is up already"*"demo.sh --down" ]]
    done
    run -2 "$repo/demo.sh" --kept
    run -2 "$repo/demo.sh" --down --keep
    # A user's container may run when it is taken down.
    docker_cli $demo/docker run --detach --network none second sleep 1000
    run -0 typed './demo.sh --down'
    [[ $output == "Nothing of the demo is left." ]]
    demo_is_gone
    run -0 "$repo/demo.sh" --down
    [[ $output == "No demo is up." ]]
}

@test "in a terminal; taken down after its daemons were killed" {
    run -0 env TERM=xterm script --quiet --return --command "'$repo/demo.sh' --keep" /dev/null
    ends_well
    [[ $output == *$'\033[1m== Running'* ]]
    docker_cli $demo/docker run --detach --network none second sleep 1000
    local daemon
    for daemon in "docker_graph_driver.py --socket $plugins/cephdemo" "--pidfile $demo" "--config $demo"; do
        kill -KILL "$(processes_with "$daemon" | head -n 1)"
    done
    run -0 "$repo/demo.sh" --down
    demo_is_gone
}

@test "interrupted while the cluster starts, by Ctrl-C" {
    interrupt INT group 'Starting a Ceph cluster'
}

@test "interrupted while the Docker daemon starts" {
    interrupt TERM script 'Starting a Docker daemon'
}

@test "interrupted while it takes itself down, by Ctrl-C" {
    interrupt_its_end
    of=snapshotter
    interrupt_its_end
}

@test "the reader goes away" {
    run bash -c "'$repo/demo.sh' | head -n 5"
    demo_is_gone
}

@test "the cluster does not come up: the first line says so, then what it said" {
    # shellcheck disable=SC2016
    fake ceph-mon 'echo "the monitor has no wish to run"; exit 1'
    demo_fails "the Ceph cluster did not come up"
    [[ $stderr == *"the monitor has no wish to run"* ]]
}

@test "dockerd does not come up: the first line says so, then the end of its log" {
    # shellcheck disable=SC2016
    fake dockerd 'PATH=${PATH#*:}; [[ $1 != --version ]] || exec dockerd "$@"; echo "dockerd has no wish to run" >&2; exit 1'
    demo_fails "the Docker daemon did not come up"
    [[ $stderr == *"docker/dockerd.log"*"dockerd has no wish to run"* ]]
}

@test "a Docker without graph driver plugins is refused before anything is started" {
    fake dockerd 'echo "Docker version 28.5.2, build 1234567"'
    demo_fails "this is Docker 28, which has no graph driver plugins any more"
    [[ $stderr == 'demo.sh: FAILED at "Installing what is missing"'* ]]
}

@test "of the snapshotter: one pull is enough for two hosts; of two demos at once one is refused" {
    local n pids=() statuses=() refused
    of=snapshotter
    for n in 1 2; do
        typed './demo.sh snapshotter' >"$WORK/out.$n" 2>&1 3>&- </dev/null &
        pids+=($!)
    done
    for n in "${pids[@]}"; do
        status=0
        wait "$n" || status=$?
        statuses+=("$status")
    done
    cat "$WORK"/out.?
    # Either may be it.
    [[ "${statuses[*]}" == @("0 1"|"1 0") ]]
    [[ ${statuses[0]} == 1 ]] && refused=1 || refused=2
    grep 'demo.sh: a demo is up already' "$WORK/out.$refused"
    run cat "$WORK/out.$((3 - refused))"
    ends_well
    demo_is_gone
    grep '^== ' "$WORK/out.$((3 - refused))" >"$WORK/headings"
}

@test "of the snapshotter: interrupted at each step (a commit: at every third), by Ctrl-C or not" {
    local heading whom=group turn at=0
    of=snapshotter
    (($(wc -l <"$WORK/headings") > 10))
    turn=$("$repo/tests/turns.py" 3)
    while read -r heading; do
        case $heading in
        # interrupt_its_end is for its end, and this one has had a step that only looks.
        *"What Ceph says" | *"as a tree"* | *"Everything goes away"*) continue ;;
        esac
        [[ $turn == all || $((at++ % 3)) == "$turn" ]] || continue
        if [[ $whom == group ]]; then
            interrupt INT group "$heading"
            whom=script
        else
            interrupt TERM script "$heading"
            whom=group
        fi
    done <"$WORK/headings"
}

@test "of the snapshotter: killed while it starts, while it pulls and while it runs; taken down" {
    of=snapshotter
    kill_and_take_down 'Starting the host "host-two"'
    kill_and_take_down 'The second host pulls'
    kill_and_take_down 'Both run it'
}

@test "of the snapshotter: kept, used as it says, taken down after daemons were killed" {
    of=snapshotter
    "$repo/demo.sh" snapshotter --keep >"$WORK/out" 2>&1 3>&- </dev/null
    run cat "$WORK/out"
    ends_well
    use_in_a_terminal 'cat /last; test -e /own || echo nothing of others'
    [[ $output == *"nothing of others"* && $output == *docker_image_base_image* ]]
    run -1 "$repo/demo.sh" snapshotter
    run -2 "$repo/demo.sh" --keep snapshotter
    kill -KILL "$(<$demo/one/snapshotter.pid)" "$(<$demo/two/containerd.pid)"
    run -0 "$repo/demo.sh" snapshotter --down
    [[ $output == *"Nothing of the demo is left." ]]
    demo_is_gone
}

@test "of the snapshotter: containerd does not come up: the first line says so, then the end of its log" {
    of=snapshotter
    # shellcheck disable=SC2016
    fake containerd 'PATH=${PATH#*:}; [[ $1 != --version ]] || exec containerd "$@"; echo "containerd has no wish to run" >&2; exit 1'
    demo_fails "the snapshotter or the containerd of host-one did not start"
    [[ $stderr == *"one/containerd.log"*"containerd has no wish to run"* ]]
}

@test "nothing is left" {
    "$repo/tests/leaks.sh" compare "$WORK/before"
}
