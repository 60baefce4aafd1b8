#!/usr/bin/env bats
# What the documents tell an operator to type, as it stands there: with the socket that is the default.
#
# The demo's lines are typed by tests/demo.bats, those of an installation by tests/systemd.bats, the managed plugin's by
# managed_plugin.bats.
# shellcheck disable=SC2154 # repo, system_python, plugins: of helpers

load helpers

setup_file() {
    new_site
    # The name that the README gives, and so the default of every subcommand.
    GRAPH=ceph
    [[ ! -S $plugins/$GRAPH.sock ]] || { echo "$plugins/$GRAPH.sock is somebody's: ./test.sh runs this alone" && return 1; }
    mkdir "$SITE/typed"
    # A host that died is known to be dead after 30 s otherwise.
    ceph config set osd osd_client_watch_timeout 8
}

teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || cat "$SITE"/*.log
}

teardown_file() {
    # The driver's command line, as typed, does not tell end_site that it is ours.
    ! runs docker || end docker
    ! runs plugin || end plugin
    end_site
    ceph config rm osd osd_client_watch_timeout
    ceph osd blocklist clear
    ceph auth rm client.docker
    ceph auth rm client.docker-ci
    ceph config set mon mon_allow_pool_delete true
    ceph osd pool rm docker docker --yes-i-really-really-mean-it
    search_for_leaks
}

@test "the front door says what it is and what it takes" {
    run -0 typed 'python3 docker_graph_driver.py --version'
    [[ $output =~ ^docker-graph-driver\ [0-9]+\.[0-9]+\.[0-9]+$ ]]
    run -0 typed 'python3 docker_graph_driver.py --help'
    [[ $output == *--socket*--state*--default*--log-level* ]]
    run -0 typed 'python3 docker_graph_driver.py check --help'
    [[ $output == *--json* ]]
    run -0 typed 'man --local-file manual/docker_graph_driver.8'
    [[ $output == *TAKEOVER*--host* ]]
    run -0 typed '. manual/docker_graph_driver.bash'
    [[ -z $output ]]
}

@test "without systemd: the driver, and then Docker on it" {
    typed 'python3 docker_graph_driver.py' >"$SITE/plugin.log" 2>&1 3>&- </dev/null &
    eventually plugin_answers
    python_below $! >"$SITE/plugin.pid"
    start_ceph_dockerd
    docker load --input "$E2E/small.tar"
    run -0 docker run --rm small cat /last
    [[ $output == 2 ]]
    run -0 docker info --format '{{.Driver}}'
    [[ $output == ceph ]]
}

@test "check and gc: nothing belongs to nobody, then a layer that Docker does not know" {
    all_is_removed
    run -0 typed 'python3 docker_graph_driver.py check'
    [[ -z $output ]]
    run -0 typed 'python3 docker_graph_driver.py gc'
    [[ -z $output ]]
    call Create '{"ID": "orphan"}'
    # Too young to be dead: it may be about to be used.
    run -0 typed 'python3 docker_graph_driver.py check'
    run -0 typed 'python3 docker_graph_driver.py check --all'
    [[ $output == *orphan-image*orphan* ]]
    run -0 typed 'python3 docker_graph_driver.py gc --yes'
    run -0 rbd info rbd/docker_image_orphan
    call Remove '{"ID": "orphan"}'
}

@test "tree: what is in the pool, in lines, for programs, and as a picture" {
    docker create --name shown small true
    run -0 typed 'python3 docker_graph_driver.py tree'
    [[ $output == *small:latest*"container shown  created"* ]]
    run -0 typed 'python3 docker_graph_driver.py tree --json'
    [[ $output == *'"small:latest"'*'"name": "shown"'* ]]
    rm -f /tmp/pool.svg
    run -0 typed 'python3 docker_graph_driver.py tree --svg /tmp/pool.svg'
    grep --quiet '<title>container shown' /tmp/pool.svg
    rm /tmp/pool.svg
    docker rm shown
}

# python_below PID: the Python at the end of a line of shells that wait for each other.
python_below() {
    local pid=$1
    until [[ $(ps --no-headers --format comm --pid "$pid") == python3* ]]; do
        pid=$(pgrep --parent "$pid" --oldest) || return 1
    done
    echo "$pid"
}

# call METHOD BODY [SOCKET]
call() {
    curl --silent --fail-with-body --max-time 60 --unix-socket "${3:-$plugins/$GRAPH.sock}" --data "$2" \
        "http://plugin/GraphDriver.$1"
}

@test "takeover: the layers of a host that died" {
    local socket=$SITE/node1.sock pid
    unshare --uts sh -c 'hostname node1 && exec "$@"' - "$system_python" "$repo/docker_graph_driver.py" \
        --socket "$socket" >"$SITE/node1.log" 2>&1 3>&- </dev/null &
    pid=$!
    eventually test -S "$socket"
    call Init "{\"Home\": \"$SITE/node1\", \"Opts\": [\"ceph.configfile=$CEPH_CONF\"]}" "$socket"
    call Create '{"ID": "precious"}' "$socket"
    run -2 typed 'python3 docker_graph_driver.py takeover --host node1'
    [[ $output == *"node1 lives"* ]]
    kill -KILL "$pid"
    eventually taken
    run -0 call Get '{"ID": "precious"}'
    call Put '{"ID": "precious"}'
    call Remove '{"ID": "precious"}'
}

taken() { typed 'python3 docker_graph_driver.py takeover --host node1'; }

@test "keys: of a pool, and of a namespace in it, and the driver needs no more" {
    export TYPED_IN=$SITE/typed
    typed 'ceph osd pool create docker 32'
    typed 'rbd pool init docker'
    typed "ceph auth get-or-create client.docker mon 'profile rbd' osd 'profile rbd pool=docker' mgr 'profile rbd pool=docker' -o ceph.client.docker.keyring"
    typed 'rbd namespace create docker/ci'
    typed "ceph auth get-or-create client.docker-ci mon 'profile rbd' osd 'profile rbd pool=docker namespace=ci' mgr 'profile rbd pool=docker namespace=ci' -o ceph.client.docker-ci.keyring"
    works_with ceph.client=docker
    works_with ceph.client=docker-ci '"ceph.namespace=ci"'
}

# works_with CLIENT [OPTION]: a layer's life with a key that lies beside the configuration.
works_with() {
    local client=${1#ceph.client=} socket=$SITE/key.sock
    (
        printf '[global]\n'
        sed -n '/^mon_host/p' "$CEPH_CONF"
        printf 'keyring = %s\n' "$SITE/typed/ceph.client.$client.keyring"
    ) >"$SITE/$client.conf"
    start_plugin "$SITE/key.log" "$socket"
    call Init "{\"Home\": \"$SITE/$client\", \"Opts\": [\"ceph.configfile=$SITE/$client.conf\", \"ceph.datapool=docker\", \"$1\"${2:+, $2}]}" "$socket"
    call Create '{"ID": "parent"}' "$socket"
    call CreateReadWrite '{"ID": "child", "Parent": "parent"}' "$socket"
    call Get '{"ID": "child"}' "$socket"
    call Put '{"ID": "child"}' "$socket"
    call Remove '{"ID": "child"}' "$socket"
    call Remove '{"ID": "parent"}' "$socket"
    end_process "$plugin_pid" 60
}

@test "nothing is left behind" {
    nothing_is_left
}
