#!/usr/bin/env bats
# The driver as a managed plugin: how it is built and set, and its life in a Docker daemon that keeps its layers with it.
#
# Where the kernel has no rbd, the plugin's `rbd device` goes to the stand-in outside of it (tests/bin/rbd_over_socket.py):
# as with krbd, what is mapped outlives the plugin's processes.
# shellcheck disable=SC2154 # repo, system_python: of tests/lib.bash, which helpers loads

load helpers

pool=managed

setup_file() {
    new_site
    export DOCKER=/usr/bin/docker DOCKER_HOST=unix://$SITE/docker.sock DOCKER_CONFIG=$SITE/client
    [[ -x $DOCKER ]] || export DOCKER=docker
    BASE=$("$repo/tests/plugin_base.sh")
    export BASE
    make_pool
    start_stand_in
    start_dockerd "$SITE" vfs
    make_plugin "$GRAPH" "ceph.source=$SITE/ceph" LOG_LEVEL=debug
    "$DOCKER" plugin enable --timeout 3600 "$GRAPH"
    restart_dockerd "$GRAPH"
    docker load --input "$E2E/small.tar"
}

teardown_file() {
    # What a failed test left; a managed plugin keeps nothing else.
    docker plugin disable --force "$GRAPH" || true
    end_recorded "$SITE/registry.pid" registry.py
    end_site
    # Docker's own: its root must be a mount for plugins with mounts, and is not always unmounted at its end.
    until_true 5 umount "$SITE/data" || true
    end_recorded "$SITE/stand-in.pid" rbd_over_socket.py
    LEAKS_IGNORE="^image: .*_base_image|${LEAKS_IGNORE:-^$}" "$repo/tests/leaks.sh" compare "$SITE/before" "$CEPH_CONF"
}

# Pool, key, and a directory as a host's /etc/ceph: the key may do nothing but use the pool.
make_pool() {
    mkdir "$SITE/ceph" "$SITE/empty"
    make_key $pool
    sed -n '/^\[global\]/p; /^mon_host/p' "$CEPH_CONF" >"$SITE/ceph/ceph.conf"
}

# make_key POOL: a pool, and a key of its name that may use it and nothing else.
make_key() {
    local key
    timeout 30 ceph osd pool create "$1" 8
    timeout 30 rbd pool init "$1"
    key=$(timeout 30 ceph auth get-or-create "client.$1" mon 'profile rbd' osd "profile rbd pool=$1" \
        mgr "profile rbd pool=$1")
    (umask 077 && echo "$key" >"$SITE/ceph/ceph.client.$1.keyring")
    cp "$SITE/ceph/ceph.client.$1.keyring" "$(dirname "$CEPH_CONF")"
}

start_stand_in() {
    [[ ! -d /sys/bus/rbd ]] || return 0
    "$system_python" "$repo/tests/bin/rbd_over_socket.py" serve "$GRAPH-rbd" "$CEPH_CONF" \
        >"$SITE/stand-in.log" 2>&1 3>&- </dev/null &
    echo $! >"$SITE/stand-in.pid"
}

# make_plugin NAME [SETTING...]: builds it, not enabled.
make_plugin() {
    "$repo/build_plugin.sh" --name "$1" --base "$BASE" --ceph-key "$SITE/empty"
    docker plugin set "$1" DATAPOOL=$pool CLIENT=$pool "${@:2}"
    give_stand_in "$1"
}

give_stand_in() {
    [[ -d /sys/bus/rbd ]] ||
        "$system_python" "$repo/tests/bin/rbd_over_socket.py" install "$GRAPH-rbd" "$(directory_of "$1")/rootfs"
}

id_of() { docker plugin inspect --format '{{.ID}}' "$1"; }

directory_of() { echo "$SITE/data/plugins/$(id_of "$1")"; }

# restart_dockerd DRIVER [OPTION...]: ends the daemon if it runs and starts it with this storage driver.
restart_dockerd() {
    [[ ! -e $SITE/docker.pid ]] || end docker
    start_dockerd "$SITE" "$@"
}

show_logs() {
    echo "--- dockerd's last lines, the plugin's among them"
    grep --extended-regexp 'plugin=|level=(warning|error|fatal)|failed to start' "$SITE/dockerd.log" |
        grep --invert-match ' DEBUG ' | tail -n 30 | cut -c -400
}

# as_it_was CONTAINER: its root has what an earlier test step wrote, and takes more.
as_it_was() {
    run -0 docker exec "$1" sh -c 'cat /kept && echo more >/more && cat /more'
    [[ ${lines[*]} == "kept more" ]]
}

# A keeper's layers are mounted where `nothing_of_layers_is_mounted` looks.
start_keeper() {
    start_sleeper "$1"
    docker exec "$1" sh -c 'echo kept >/kept'
    run ! no_layer_is_mounted
}

# The driver unmounts and unmaps some seconds after Docker has put a layer.
nothing_of_layers_is_mounted() {
    eventually no_layer_is_mounted && eventually no_device_is_listed
}

no_layer_is_mounted() { [[ -z $(mounts_below "$(directory_of "$GRAPH")/propagated-mount/$GRAPH") ]]; }

# plugin_pid ID: the driver's in a plugin. Another plugin's looks the same but for its mounts.
plugin_pid() {
    local pid
    for pid in $(pgrep --full '/docker_graph_driver.py --socket /run/docker/plugins/ceph.sock --state /graph/.init'); do
        ! grep --quiet "/$1/" "/proc/$pid/mountinfo" || { echo "$pid" && return; }
    done
    return 1
}

@test "build: programs, libraries and Python, and nothing else" {
    local root name
    root=$(directory_of "$GRAPH")/rootfs
    [[ -x $root/usr/bin/rbd && -e $root/opt/docker-graph-driver/graph/driver.py ]]
    for name in sh bash perl dpkg apt-get gcc radosgw-admin '*.deb' '*.keyring' '*.1.gz' changelog\* locale; do
        run -0 find "$root" -name "$name" ! -path '*/python3*/*' ! -path '*/usr/local/bin/*'
        echo "$name: $output"
        [[ -z $output ]]
    done
    (($(du --summarize --block-size=1M "$root" | cut -f 1) < 120))
    # Nobody waits at a terminal here.
    run -1 "$repo/build_plugin.sh" --name "$GRAPH" --base "$BASE"
    [[ $output != *$'\r'* ]]
    [[ $output == *"the plugin $GRAPH is there already"* ]]
    run -1 "$repo/build_plugin.sh" --name other --base "$SITE/empty"
    [[ $output == *"not a root file system with a Python"* ]]
}

@test "privileges: three capabilities beyond a container's, the host's processes, and only the pool's key" {
    local pid
    run -0 docker plugin inspect --format '{{json .Config.Linux.Capabilities}} {{.Config.PidHost}} {{.Config.IpcHost}}' "$GRAPH"
    [[ $output == '["CAP_SYS_ADMIN","CAP_SYS_PTRACE","CAP_SYSLOG"] true false' ]]
    pid=$(plugin_pid "$(id_of "$GRAPH")")
    # CAP_SYS_PTRACE is bit 19, CAP_SYS_ADMIN 21, CAP_SYSLOG 34; the other fourteen are what every container has.
    run -0 sed -n 's/^CapEff:\t//p' "/proc/$pid/status"
    [[ $output == 00000004a82c25fb ]]
    # Its log says as whom it talks to Ceph; it sees no other key.
    grep --quiet -- "--id $pool " "$SITE/dockerd.log"
    run -1 grep -- '--id admin ' "$SITE/dockerd.log"
    run -0 find "/proc/$pid/root/" "/proc/$pid/root/etc/ceph" -xdev -name '*.keyring'
    [[ $(sort --unique <<<"$output") == "/proc/$pid/root/etc/ceph/ceph.client.$pool.keyring" ]]
}

# holds_of_set NAMES: these images have the prefix of the settings.
holds_of_set() { [[ $(rbd --pool "$pool" ls | grep '^set_') == "$1" ]]; }

@test "images and containers: load, run, diff, commit, cp, save, rm" {
    run -0 docker run --name first small sh -c 'cat /last; mkdir /new; echo 1 >/new/file; rm /bin/wget'
    [[ $output == 2 ]]
    run -0 docker diff first
    [[ $(sort <<<"$output") == $'A /new\nA /new/file\nC /bin\nD /bin/wget' ]]
    docker commit first second
    run -0 docker run --rm second sh -c 'cat /new/file; test ! -e /bin/wget'
    [[ $output == 1 ]]
    docker cp first:/new "$SITE/out"
    [[ $(<"$SITE/out/file") == 1 ]]
    docker save --output "$SITE/second.tar" second
    docker rm first
    docker rmi second
    docker load --input "$SITE/second.tar"
    run -0 docker run --rm --storage-opt size=11G second sh -c 'cat /new/file; df -m /'
    [[ ${lines[0]} == 1 && ${lines[-1]} =~ ^[^\ ]+\ +1[01][0-9]{3}\  ]]
    docker rmi second
    nothing_of_layers_is_mounted
    run -0 docker info --format '{{range .DriverStatus}}{{index . 0}}={{index . 1}} {{end}}'
    [[ $output == "Pool=$pool "* ]]
    # Where everything is slower (tests/kernel), the cluster's rows are not told within their 5 s.
    [[ -n ${LAB_SLOWNESS:-} || ($output == *"Ceph Health=HEALTH_OK "* && $output != *unknown*) ]]
}

@test "dockerd restarted: without live-restore containers are stopped, with it they run on" {
    start_keeper keeper
    restart_dockerd "$GRAPH" --live-restore
    [[ $(state_of keeper) == exited ]]
    nothing_of_layers_is_mounted
    docker start keeper
    as_it_was keeper
    restart_dockerd "$GRAPH" --live-restore
    [[ $(state_of keeper) == running ]]
    as_it_was keeper
    docker stop keeper
    nothing_of_layers_is_mounted
    docker start keeper
    as_it_was keeper
    docker rm --force keeper
    nothing_of_layers_is_mounted
}

@test "disable --force, enable: containers run on, old ones start, without an Init" {
    local init
    start_keeper runs
    start_keeper stopped
    docker stop stopped
    init=$(grep --count ' INFO Init ' "$SITE/dockerd.log")
    run -1 docker plugin disable "$GRAPH"
    [[ $output == *"is in use"* ]]
    docker plugin disable --force "$GRAPH"
    docker plugin set "$GRAPH" LOG_LEVEL=info
    docker plugin enable --timeout 3600 "$GRAPH"
    [[ $(grep --count ' INFO Init ' "$SITE/dockerd.log") == "$init" ]]
    [[ $(state_of runs) == running ]]
    as_it_was runs
    docker start stopped
    as_it_was stopped
    docker stop runs
    docker start runs
    as_it_was runs
    docker stop runs stopped
    nothing_of_layers_is_mounted
}

@test "the driver killed: Docker starts it again, containers run on" {
    local pid id
    id=$(id_of "$GRAPH")
    start_keeper keeper
    pid=$(plugin_pid "$id")
    kill -KILL "$pid"
    eventually process_gone "$pid"
    eventually plugin_pid "$id"
    as_it_was keeper
    docker restart --time 0 keeper
    as_it_was keeper
    docker stop keeper
    nothing_of_layers_is_mounted
}

# hang_beside PID FILE: says its own pid in FILE and hangs, as a command of the plugin whose process PID is would.
hang_beside() {
    local path
    while IFS=: read -r _ _ path; do
        [[ $path != / ]] || continue
        find /sys/fs/cgroup -path "*$path/cgroup.procs" -exec sh -c 'echo "$1" >"$2"' - $BASHPID {} \;
    done <"/proc/$1/cgroup"
    echo $BASHPID >"$2"
    exec sleep 1000
}

@test "the driver killed: a command that it left hanging ends with it" {
    local pid id hanging
    id=$(id_of "$GRAPH")
    # An `rbd rm` that is killed keeps its image busy for half a minute.
    eventually nothing_is_to_be_removed "$(directory_of "$GRAPH")/propagated-mount/$GRAPH"
    pid=$(plugin_pid "$id")
    hang_beside "$pid" "$SITE/hanging" 3>&- &
    eventually test -s "$SITE/hanging"
    hanging=$(<"$SITE/hanging")
    kill -KILL "$pid"
    until_true 30 process_gone "$hanging" || { kill "$hanging" && return 1; }
    eventually plugin_pid "$id"
    run -0 docker run --rm small cat /last
    [[ $output == 2 ]]
}

@test "upgrade from a registry: settings, images and a running container stay" {
    local remote before
    mkdir "$SITE/registry"
    "$system_python" "$repo/tests/registry.py" "$SITE/registry" >"$SITE/registry.log" 2>&1 3>&- </dev/null &
    echo $! >"$SITE/registry.pid"
    eventually test -e "$SITE/registry/port"
    remote=localhost:$(<"$SITE/registry/port")/managed:next
    "$repo/build_plugin.sh" --name "$remote" --base "$BASE" --ceph-key "$SITE/empty"
    docker plugin push "$remote"
    docker plugin rm "$remote"
    start_keeper keeper
    before=$(directory_of "$GRAPH")
    docker plugin disable --force "$GRAPH"
    docker plugin upgrade --grant-all-permissions --skip-remote-check "$GRAPH" "$remote"
    # Docker carries everything else over.
    docker plugin set "$GRAPH" "ceph.source=$SITE/ceph"
    give_stand_in "$GRAPH"
    docker plugin enable --timeout 3600 "$GRAPH"
    [[ $(docker plugin inspect --format '{{.PluginReference}}' "$GRAPH") == "$remote" ]]
    [[ $(directory_of "$GRAPH") == "$before" ]]
    as_it_was keeper
    docker restart --time 0 keeper
    as_it_was keeper
    run -0 docker run --rm small cat /last
    [[ $output == 2 ]]
}

@test "upgrade without a registry: removed, made anew, dockerd restarted; containers are kept" {
    start_keeper keeper
    docker stop keeper
    # Docker kills a plugin that does not end within 10 s, and its notes of what is still to be removed go with it.
    eventually nothing_is_to_be_removed "$(directory_of "$GRAPH")/propagated-mount/$GRAPH"
    docker plugin disable --force "$GRAPH"
    docker plugin rm --force "$GRAPH"
    make_plugin "$GRAPH" "ceph.source=$SITE/ceph"
    docker plugin enable --timeout 3600 "$GRAPH"
    restart_dockerd "$GRAPH"
    docker start keeper
    as_it_was keeper
    docker rm --force keeper
    nothing_of_layers_is_mounted
}

@test "a name with a colon; configuration, key and options in the settings; a bad one is told in the log" {
    local name=$GRAPH-set:v1 root
    # At a terminal it tells how far it is.
    run -0 env --unset CI TERM=xterm script --quiet --return --command \
        "'$repo/build_plugin.sh' --name '$name' --base '$BASE' --ceph-key '$SITE/ceph'" /dev/null </dev/null
    [[ $output == *"build_plugin.sh: "[2-9]" s, "* ]]
    [[ $(docker plugin inspect --format '{{.Settings.Env}}' "$name") == *"CLIENT=$pool"* ]]
    docker plugin set "$name" DATAPOOL=$pool IMAGEPREFIX=set "ceph.source=$SITE/empty" OPTIONS=ceph.colour=red
    give_stand_in "$name"
    run -1 docker plugin enable "$name"
    grep "unknown storage option 'ceph.colour'; valid are ceph.basesize, " "$SITE/dockerd.log"
    docker plugin set "$name" "OPTIONS=ceph.basesize=1G ceph.mountopt=discard"
    docker plugin enable --timeout 3600 "$name"
    root=$(directory_of "$name")/rootfs
    restart_dockerd "$name" --storage-opt ceph.basesize=2G
    docker load --input "$E2E/small.tar"
    # dockerd's word before the plugin's setting, the setting before the default.
    run -0 docker run --name first small sh -c 'df -m / | tail -n 1; echo new >/new'
    [[ $output =~ ^[^\ ]+\ +(19|20)[0-9]{2}\  ]]
    run -0 docker diff first
    [[ $output == "A /new" ]]
    docker commit first second
    run -0 docker run --rm second cat /new
    [[ $output == new ]]
    run -0 rbd --pool $pool ls
    [[ $output == *set_base_image* ]]
    # Neither in a layer nor on the disk of the plugin.
    run -1 grep --recursive --files-with-matches "$(sed -n 's/.*key = //p' "$SITE/ceph/ceph.client.$pool.keyring")" \
        "$root" "$SITE/data/plugins/storage"
    docker rm first
    docker rmi second small
    eventually holds_of_set set_base_image
    restart_dockerd "$GRAPH"
    docker plugin disable "$name"
    docker plugin rm "$name"
}

@test "as the documents say: built from an image, or from a directory; set, enabled and used" {
    export TYPED_IN=$SITE/project
    mkdir "$TYPED_IN"
    tar --create --directory "$repo" --exclude ./.venv --exclude ./.git --exclude ./build . | tar --extract --directory "$TYPED_IN"
    ln --symbolic "$BASE" "$TYPED_IN/base"
    make_key docker
    # A copy of the base for each step of the build would take its time.
    restart_dockerd overlay2
    # There is no registry here to have Ceph's own from.
    tar --create --directory "$BASE" . | docker import - quay.io/ceph/ceph:v18
    typed './build_plugin.sh --name ceph --base quay.io/ceph/ceph:v18'
    use_plugin
    docker plugin rm ceph
    typed './build_plugin.sh --name ceph --base ./base'
    use_plugin
    docker plugin rm ceph
    docker rmi quay.io/ceph/ceph:v18
    restart_dockerd "$GRAPH"
}

# use_plugin: sets and enables the plugin that was just built, and runs a container on it; it is disabled again then.
use_plugin() {
    docker plugin set ceph "ceph.source=$SITE/ceph"
    give_stand_in ceph
    typed 'docker plugin set ceph DATAPOOL=docker CLIENT=docker'
    typed 'docker plugin enable --timeout 86400 ceph'
    restart_dockerd ceph
    docker load --input "$E2E/small.tar"
    [[ $(docker run --rm small cat /last) == 2 ]]
    docker rmi small
    eventually only_base_is_in docker
    restart_dockerd overlay2
    docker plugin disable ceph
}

only_base_is_in() { [[ $(rbd --pool "$1" ls) == docker_image_base_image ]] && trash_is_empty "$1"; }

holds_of_docker() { [[ $(rbd --pool "$pool" ls | grep --invert-match '^set_') == "$1" ]]; }

@test "removal: nothing is left on the host, nor in the pool" {
    local id
    remove_everything
    eventually holds_of_docker docker_image_base_image
    eventually trash_is_empty $pool
    nothing_of_layers_is_mounted
    id=$(id_of "$GRAPH")
    restart_dockerd vfs
    docker plugin disable "$GRAPH"
    docker plugin rm "$GRAPH"
    run -1 plugin_pid "$id"
    [[ ! -e $SITE/data/plugins/$id && ! -e /run/docker/plugins/$id && ! -e $SITE/data/$GRAPH ]]
    run -0 mounts_below "$SITE/data/plugins"
    [[ -z $output ]]
    run -1 grep --extended-regexp 'Traceback|a defect of the driver' "$SITE/dockerd.log"
}
