# Pieces of shell that test.sh, demo.sh and the bats suites share. Source it; it does nothing by itself.
# shellcheck shell=bash

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The python3 of Debian: another one may come first on PATH, and be slow to start or have no venv.
system_python=/usr/bin/python3

# packages FOR...: the packages of tests/packages that are for one of these.
packages() {
    local package for wanted
    while read -r package for; do
        [[ -n $package && $package != \#* ]] || continue
        for wanted; do
            [[ $for != "$wanted" ]] || echo "$package"
        done
    done <"$repo/tests/packages" | sort --unique
}

# missing_packages FOR...: those of them that are not installed.
missing_packages() {
    local package
    for package in $(packages "$@"); do
        [[ $package != docker.io ]] || ! command -v dockerd >/dev/null || continue
        dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep --quiet '^installed$' ||
            echo "$package"
    done
}

# install_packages FOR...: installs what is missing of them with apt; says what, and on failure why.
install_packages() {
    local missing log
    missing=$(missing_packages "$@" | tr '\n' ' ')
    [[ -n ${missing// /} ]] || return 0
    echo "installing with apt-get: $missing"
    [[ $(id -u) == 0 ]] || {
        echo "that needs root: sudo apt-get install --no-install-recommends $missing" >&2
        return 1
    }
    log=$(mktemp)
    # shellcheck disable=SC2086 # a list of packages
    if ! { apt_get update && apt_get install --yes --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm "$log"
        return 1
    fi
    rm "$log"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get --quiet --option DPkg::Lock::Timeout=300 --option Acquire::Retries=3 "$@" </dev/null
}

# until_true SECONDS COMMAND...: repeats the command until it succeeds; fails after that many seconds.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# end_process PID [SECONDS]: SIGTERM, and SIGKILL if it is still there after that many seconds (20).
end_process() {
    local pid=$1
    kill "$pid" 2>/dev/null || return 0
    until_true "${2:-20}" process_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# A zombie is gone: it only waits for its parent.
process_gone() {
    local state
    state=$(sed -n 's/^State:\s*//p' "/proc/$1/status" 2>/dev/null) || return 0
    [[ -z $state || $state == [ZX]* ]]
}

# start_plugin LOG SOCKET [OPTION...]: starts the driver in the background; its pid is in $plugin_pid.
start_plugin() {
    local log=$1 socket=$2
    shift 2
    "$system_python" "$repo/docker_graph_driver.py" --socket "$socket" "$@" >>"$log" 2>&1 3>&- </dev/null &
    plugin_pid=$!
    until_true 15 plugin_up "$plugin_pid" "$socket" && ! process_gone "$plugin_pid"
}

plugin_up() { process_gone "$1" || [[ -S $2 ]]; }

# start_dockerd DIR DRIVER [OPTION...]: a dockerd of its own, everything of it below DIR; its pid is in $dockerd_pid, what
# it says in DIR/dockerd.log. It has no network to set up, and finds its own containerd.
start_dockerd() {
    local dir=$1 driver=$2
    shift 2
    mkdir -p "$dir"
    # 27.x wants the variable before it loads a graph driver plugin, others ignore it.
    DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1 dockerd --experimental --storage-driver "$driver" \
        --data-root "$dir/data" --exec-root "$dir/run" --host "unix://$dir/docker.sock" --pidfile "$dir/docker.pid" \
        --config-file "$dir/no-config.json" --bridge none --iptables=false --ip6tables=false "$@" \
        >>"$dir/dockerd.log" 2>&1 3>&- </dev/null &
    dockerd_pid=$!
    until_true 60 dockerd_up "$dockerd_pid" "$dir" && ! process_gone "$dockerd_pid"
}

dockerd_up() { process_gone "$1" || docker_cli "$2" version; }

# docker_cli DIR ...: Docker's client for the daemon in DIR. Debian's: another one may come first on PATH.
docker_cli() {
    local dir=$1 client=/usr/bin/docker
    shift
    [[ -x $client ]] || client=docker
    DOCKER_CONFIG="$dir/client" "$client" --host "unix://$dir/docker.sock" "$@"
}
