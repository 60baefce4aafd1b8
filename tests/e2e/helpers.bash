# What the end-to-end tests share.
# shellcheck shell=bash
#
# A site is a directory ($SITE) with a dockerd and a containerd of its own. A file of tests has one for all its tests,
# with a plugin and on Ceph; `at DIR docker ...` means another one. Each file loads this, makes its site in setup_file,
# and ends with a test that calls `nothing_is_left`. What has the tag debian13 runs in a Debian 13 too (tests/debian).
#
# Environment: E2E_LOGS=DIR                     keeps what plugin, dockerd and containerd said there
#              LAB_OPTIONS="devicetype=nbd ..."  what the plugin takes where dockerd gives no storage option (tests/kernel)

bats_require_minimum_version 1.5.0

# shellcheck source=../lib.bash
source "$BATS_TEST_DIRNAME/../lib.bash"

# Where dockerd looks for plugins, whatever its own directories are.
plugins=/run/docker/plugins

# -- daemons -----------------------------------------------------------------------------------

# new_site: makes the site of this file; its driver has a name of its own, since plugins of other runs have the same home.
new_site() {
    SITE=$E2E/$(basename "$BATS_TEST_FILENAME" .bats)
    GRAPH=ceph$$
    export SITE GRAPH
    mkdir -p "$SITE"
    "$repo/tests/leaks.sh" snapshot "$SITE/before" "$CEPH_CONF"
}

# at DIR COMMAND...: the command with another site.
at() { SITE=$1 "${@:2}"; }

docker() { DOCKER_SECONDS=$((120 * ${LAB_SLOWNESS:-1})) docker_cli "$SITE" "$@"; }

start_ceph_plugin() {
    local options=() option
    for option in ${LAB_OPTIONS:-}; do
        options+=(--default "ceph.$option")
    done
    start_plugin "$SITE/plugin.log" "$plugins/$GRAPH.sock" --log-level debug "${options[@]}"
    echo "$plugin_pid" >"$SITE/plugin.pid"
    disown "$plugin_pid" # bash need not tell that it was killed
    # The socket alone may be an older one's.
    eventually plugin_answers
}

plugin_answers() {
    curl --silent --fail --max-time 5 --unix-socket "$plugins/$GRAPH.sock" --data '' http://plugin/Plugin.Activate
}

# start_ceph_dockerd [OPTION...]: dockerd on the plugin. Fails if it ends or is not ready within two minutes.
start_ceph_dockerd() {
    start_dockerd "$SITE" "$GRAPH" --storage-opt "ceph.configfile=$CEPH_CONF" "$@"
}

# end DAEMON [SIGNAL]: plugin, docker or containerd; fails if it's not gone within a minute.
end() {
    local pid
    pid=$(<"$SITE/$1.pid")
    kill -s "${2:-TERM}" "$pid"
    until_true 60 process_gone "$pid"
    rm -f "$SITE/$1.pid"
}

runs() { [[ -e $SITE/$1.pid ]] && ! process_gone "$(<"$SITE/$1.pid")"; }

# end_site: ends what still runs of a site, whatever state a failed test has left it in.
end_site() {
    local place
    [[ -z ${E2E_LOGS:-} ]] || for place in "$SITE"/*.log; do
        mkdir -p "$E2E_LOGS" && cp "$place" "$E2E_LOGS/${SITE##*/}-${place##*/}"
    done
    end_recorded "$SITE/docker.pid" "$SITE"
    end_containers "$SITE"
    end_recorded "$SITE/containerd.pid" "$SITE"
    if [[ -e $SITE/plugin.pid ]]; then
        end_recorded "$SITE/plugin.pid" "$plugins/$GRAPH.sock"
        rm -f "$plugins/$GRAPH".sock*
    fi
    for place in $(mounts_below "$SITE" | sort --reverse); do
        # A dockerd that fails at its start leaves its data root bound to itself.
        [[ $place == "$SITE/data" ]] || echo "still mounted: $place" >&2
        umount "$place" || true
    done
}

teardown() {
    [[ -n ${BATS_TEST_COMPLETED:-} ]] || show_logs
    remove_containers
}

teardown_file() {
    end_site
    search_for_leaks
}

# The machine is as it was before `new_site`. A base image stays in its pool.
search_for_leaks() {
    LEAKS_IGNORE="^image: .*_base_image|${LEAKS_IGNORE:-^$}" "$repo/tests/leaks.sh" compare "$SITE/before" "$CEPH_CONF"
}

show_logs() {
    echo "--- the plugin's last lines"
    grep --invert-match ' DEBUG "POST ' "$SITE/plugin.log" | tail -n 30 |
        sed --regexp-extended 's/ --(conf|id|client-mount-timeout) [^ ]+//g' | cut -c -500
    echo "--- dockerd's last lines"
    grep --extended-regexp 'level=(warning|error|fatal)|failed to start' "$SITE/dockerd.log" | tail -n 8 | cut -c -500
}

# -- what is there -----------------------------------------------------------------------------

# A test may have left no dockerd that could be asked.
remove_containers() { ! docker version >/dev/null 2>&1 || remove_all_containers "$SITE"; }

remove_everything() {
    remove_containers
    docker builder prune --all --force >/dev/null
    docker image prune --all --force >/dev/null
}

# forget_exports [OPTION...]: Docker 25 and 26 never let go of a container that they have exported, whatever the storage driver
# (https://github.com/moby/moby/issues/48516): it is mounted until they end. When it was removed meanwhile, what it was made
# of is there after that too, for gc, and Docker's own count of what is in use is right after one more start.
forget_exports() {
    [[ $(docker_major) == @(25|26) ]] || return 0
    remove_containers
    end docker
    start_ceph_dockerd "$@"
    all_is_removed
    collect
    end docker
    start_ceph_dockerd "$@"
}

# collect: gc removes what is dead; of containers that a dockerd has lost which has ended, it is told that they are gone.
collect() {
    local said
    until said=$(operator gc --yes 2>&1); do
        echo "$said"
        [[ $said == *": rm -r "* ]] || return 1
        eval "rm -r ${said##*: rm -r }"
    done
}

# docker_major: 20 of 20.10.24.
docker_major() { docker version --format '{{.Server.Version}}' | cut --delimiter . --fields 1; }

# operator COMMAND...: check or gc for this site, as if all had been made more than an hour ago.
operator() {
    "$system_python" "$repo/docker_graph_driver.py" "$1" --socket "$plugins/$GRAPH.sock" --min-age 0 "${@:2}"
}

# Told to look at what is no second old, check would find what the driver is about to remove.
all_is_removed() {
    eventually nothing_is_to_be_removed "$SITE/data/$GRAPH"
    eventually trash_is_empty rbd
}

# nothing_is_left [PREFIX [NAMESPACE]]: no layer, trash, mapping, mount or directory after everything was removed.
nothing_is_left() {
    local prefix=${1:-docker_image} pool=rbd${2:+/$2}
    # BuildKit lets go of what it used a moment after the build.
    eventually only_base_is_left "$pool" "${prefix}_base_image" || {
        rbd ls "$pool"
        docker system df --verbose
        return 1
    }
    eventually trash_is_empty "$pool" || { rbd trash ls --all "$pool" && false; }
    nothing_is_mapped
    eventually home_is_empty
    run -1 grep --extended-regexp 'Traceback|a defect of the driver|is left behind' "$SITE/plugin.log"
}

# nothing_is_to_be_removed HOME: the driver has no note of a layer whose image has yet to go.
nothing_is_to_be_removed() { ! compgen -G "$1/mnt/*/removed"; }

home_is_empty() {
    local names
    names=$(ls -A "$SITE/data/$GRAPH/mnt") && [[ -z $names ]]
}

only_base_is_left() {
    remove_everything
    [[ $(rbd ls "$1") == "$2" ]]
}

# pool_holds NAMES: these images and no others.
pool_holds() { [[ $(rbd ls rbd) == "$1" ]]; }

# new_in_pool NAMES: the images of the pool which are none of these.
new_in_pool() {
    local now
    now=$(rbd ls rbd) && comm -13 <(sort <<<"$1") <(sort <<<"$now")
}

# pool_holds_no_more NAMES: no other images than these. The driver removes images behind what Docker has removed, so that
# some of those that were there before a test may go while it runs.
pool_holds_no_more() {
    local names
    names=$(new_in_pool "$1") && [[ -z $names ]]
}

trash_is_empty() {
    local names
    names=$(rbd trash ls --all "$1") && [[ -z $names ]]
}

# pool_lacks POOL NAME: a pool that does not answer lacks nothing.
pool_lacks() {
    local names
    names=$(rbd ls "$1") && [[ $names != *"$2"* ]]
}

# The driver unmounts and unmaps some seconds after Docker has put a layer.
nothing_is_mapped() {
    eventually nothing_is_mounted || {
        mounts_below "$SITE/data/$GRAPH"
        return 1
    }
    eventually no_device_is_listed || {
        rbd device list
        return 1
    }
}

nothing_is_mounted() { [[ -z $(mounts_below "$SITE/data/$GRAPH") ]]; }

no_device_is_listed() {
    local type
    for type in krbd nbd; do
        [[ $(rbd device list --device-type $type --format json) == "[]" ]] || return 1
    done
}

# mounted_once CONTAINER: it is the only one that runs. It has one view on this host, and each of its layers one device.
mounted_once() {
    # Whoever calls it in a condition hears of the first one, too.
    [[ $(views) == "$(data_of "$1" MountPoint)" ]] &&
        eventually only_devices_are "$(layers_of "$1")"
}

# Where Docker has something mounted; beside it are the layers' own file systems.
views() { mounts_below "$SITE/data/$GRAPH" | grep -v '/layer$' || true; }

# layers_of CONTAINER: its image, and those of all layers below it.
layers_of() {
    local image
    image=$(data_of "$1" Image)
    echo "$image"
    rbd image-meta get "rbd/$image" docker_graph_driver.layer | jq --raw-output '"docker_image_" + .parents[]'
}

only_devices_are() {
    [[ $(rbd device list --format json | jq --raw-output '.[].name' | sort) == "$(sort <<<"$1")" ]]
}

# data_of CONTAINER_OR_IMAGE KEY: a value of its GraphDriver.Data.
data_of() { docker inspect --format "{{.GraphDriver.Data.$2}}" "$1"; }

# start_sleeper NAME [OPTION...]: a container that runs until it is stopped, and stops at once.
start_sleeper() {
    docker run --detach --name "$1" --stop-signal KILL "${@:2}" small sleep 1000 >/dev/null
}

state_of() { docker inspect --format '{{.State.Status}}' "$1"; }
