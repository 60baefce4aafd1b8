#!/usr/bin/env bats
# demo.sh as the README tells to type it: to its end, kept and used and taken down, interrupted, where something fails, on
# a busy machine, and beside a Docker that runs already.

bats_require_minimum_version 1.5.0

# shellcheck source=lib.bash
source "$BATS_TEST_DIRNAME/lib.bash"

demo=/var/tmp/ceph-demo
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
    # Base image, two images, a container and its init layer; the container that was run with --rm is not among them.
    [[ $output == *$'\nLayers: 4\r\nMapped Devices: 0'* || $output == *$'\nLayers: 4\nMapped Devices: 0'* ]]
    [[ $(grep --count '^docker_image_' <<<"${output#*What Ceph says}") -ge 5 ]]
    tree=${output#*what stands on what}
    [[ $(grep --only-matching 'docker_image_[^ ]*' <<<"$tree" | wc -l) == "${1:-5}" ]]
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
    run --separate-stderr "$repo/demo.sh"
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

# interrupt SIGNAL WHOM HEADING: begins a demo and sends it a signal when it shows a heading; WHOM is - for the process
# group, as a terminal does, or nothing for the script alone.
interrupt() {
    local status=0
    # bats has us ignore SIGINT in the background.
    env --default-signal=INT,TERM setsid "$repo/demo.sh" >"$WORK/out" 2>&1 3>&- </dev/null &
    running=$!
    eventually shows "$3"
    kill -s "$1" -- "$2$running"
    eventually process_gone "$running"
    wait "$running" || status=$?
    running=
    cat "$WORK/out"
    [[ $status == $((128 + $(kill -l "$1"))) ]]
    grep 'demo.sh: interrupted at "' "$WORK/out"
    demo_is_gone
}

shows() { process_gone "$running" || grep --quiet "$1" "$WORK/out"; }

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
    # What the demo says, in a terminal.
    sed -n '/in a shell of root/,$s/^  //p' "$WORK/out" >"$WORK/lines"
    cat "$WORK/lines"
    run -0 script --quiet --return --command "bash -e $WORK/lines" /dev/null <<<$'cat /hello\nexit\n'
    echo "$output"
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

@test "in a terminal, where an image goes while it looks; taken down after its daemons were killed" {
    # Of all that is listed the driver itself is told the truth.
    # shellcheck disable=SC2016 # it is for the script
    fake rbd '[[ $1 != image-meta || $* == *--conf* || $* != *-init* ]] || { echo "rbd: error opening image" >&2; exit 2; }
        PATH=${PATH#*'"$BATS_TEST_TMPDIR"':} exec rbd "$@"'
    run -0 env TERM=xterm script --quiet --return --command "'$repo/demo.sh' --keep" /dev/null
    ends_well 4
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
    interrupt INT - 'Starting a Ceph cluster'
}

@test "interrupted while the Docker daemon starts" {
    interrupt TERM '' 'Starting a Docker daemon'
}

@test "interrupted while it takes itself down, by Ctrl-C" {
    local status=0
    env --default-signal=INT setsid "$repo/demo.sh" >"$WORK/out" 2>&1 3>&- </dev/null &
    running=$!
    eventually shows 'Everything goes away'
    kill -INT -- "-$running"
    wait "$running" || status=$?
    running=
    cat "$WORK/out"
    # It was at its end either way.
    [[ $status == 0 || $status == 130 ]]
    demo_is_gone
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

@test "nothing is left" {
    "$repo/tests/leaks.sh" compare "$WORK/before"
}
