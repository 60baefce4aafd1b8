# Pieces of shell that test.sh, demo.sh and the bats suites share. Source it; it does nothing by itself.
# shellcheck shell=bash

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The python3 of Debian: another one may come first on PATH, and be slow to start or have no venv.
system_python=/usr/bin/python3

# What is made once for this machine, and kept.
test_cache=/var/cache/docker-graph-driver-tests

# Where a login of root on Debian looks for programs.
# shellcheck disable=SC2034 # for those who source this
login_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# die WORDS: what is wrong, in one line that begins with the name of the running script, and its end.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# head_of_script: what the comment at the head of the running script says.
head_of_script() { awk 'NR == 1 { next } !/^#/ || /^# shellcheck / { exit } { sub(/^# ?/, ""); print }' "$0"; }

# usage: that, and the end of a script that was called in a wrong way.
usage() {
    head_of_script >&2
    exit 2
}

# made_once PLACE SECONDS COMMAND...: makes a file or a directory that is kept, unless it is there: whole or not at all, by
# one at a time, for which another one waits so long. The command makes $made, in a directory for its work; what it says is
# shown if it fails. It is called in a condition, where its own commands need && between them.
made_once() {
    local place=$1 seconds=$2 lock work made status=0
    shift 2
    [[ ! -e $place ]] || return 0
    mkdir --parents "${place%/*}"
    exec {lock}>"$place.lock"
    flock --wait "$seconds" "$lock" || { echo "another one has been making $place for too long" >&2 && return 1; }
    if [[ ! -e $place ]]; then
        echo "making $place" >&2
        # Of one that was killed.
        rm --recursive --force --one-file-system "$place".??????
        work=$(mktemp --directory "$place.XXXXXX")
        made=$work/made
        { "$@" >"$work/log" 2>&1 3>&- </dev/null && mv "$made" "$place"; } || status=$?
        ((status == 0)) || tail --lines 20 "$work/log" >&2
        rm --recursive --force --one-file-system "$work"
    fi
    exec {lock}>&-
    return "$status"
}

# debian_version: the number of this machine's Debian; its next one, which has none yet, is newer than all.
debian_version() {
    # shellcheck source=/dev/null
    (source /etc/os-release && echo "${VERSION_ID:-99}")
}

# packages FOR...: the packages of tests/packages that are for one of these, for Debian $DEBIAN_VERSION (this machine's).
packages() {
    local package for since wanted version=${DEBIAN_VERSION:-$(debian_version)}
    while read -r package for since; do
        [[ -n $package && $package != \#* ]] || continue
        ((version >= ${since:-0})) || continue
        for wanted; do
            [[ $for != "$wanted" ]] || echo "$package"
        done
    done <"$repo/tests/packages" | sort --unique
}

# missing_packages FOR...: those of them that are not installed.
missing_packages() {
    local package
    for package in $(packages "$@"); do
        ! there_already "$package" || continue
        dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep --quiet '^installed$' ||
            echo "$package"
    done
}

# A Docker or containerd from elsewhere, which Debian's packages would replace. A program: the callers have functions of these names.
there_already() {
    case $1 in
    docker.io) type -P dockerd ;;
    docker-cli) type -P docker ;;
    containerd | runc) type -P "$1" ;;
    docker-buildx) command docker buildx version ;;
    *) return 1 ;;
    esac >/dev/null 2>&1
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

# typed LINE: runs a command line that a document tells its reader to type, as it stands there, in the project's directory
# (or in $TYPED_IN), by $TYPED_BY if it is another machine's shell that he types it into. Fails if no document has it any
# more; tests/unit/test_readme.py, if no suite runs one.
typed() {
    "$system_python" "$repo/tests/readme.py" has "$1" || return 1
    if [[ $1 == @(export|unset)\ * ]]; then
        eval "$1"
    else
        (cd "${TYPED_IN:-$repo}" && ${TYPED_BY:-} bash -c "$1")
    fi
}

# versions: what the tests run on, in one line.
versions() {
    (
        # shellcheck source=/dev/null
        source /etc/os-release
        printf '%s: Docker %s, containerd %s, Ceph %s, Python %s, Linux %s\n' "${PRETTY_NAME% (*}" "$(version_of dockerd)" \
            "$(version_of containerd)" "$(version_of rbd)" "$(version_of "$system_python")" "$(uname --kernel-release)"
    )
}

# version_of PROGRAM: the first number of what it says.
version_of() {
    command -v "$1" >/dev/null || { echo none && return; }
    timeout 20 "$1" --version | grep --only-matching --max-count 1 --extended-regexp '[0-9]+(\.[0-9]+)+' | head -n 1
}

# tests_in LOG STATUS: how many tests passed and failed there, by the closing line of a part that counts by itself, or else
# by what pytest and bats (formatter tap) say; by the exit status, if none of them failed and yet something did.
tests_in() {
    awk -v status="$2" '
        /^[0-9]+ passed, [0-9]+ failed$/ { own = 1; passed = $1; failed = $3 }
        own { next }
        /^ok [0-9]+ / { passed++ }
        /^not ok [0-9]+ / { failed++ }
        / in [0-9.]+s/ && /[0-9]+ (passed|failed|error)/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^(failed|error)/) failed += $(i - 1)
            }
        }
        END { print passed + 0, (status && !failed) ? 1 : failed + 0 }' "$1"
}

# make_venv: a Python environment in .venv with tests/requirements.txt.
make_venv() {
    cmp --silent "$repo/tests/requirements.txt" "$repo/.venv/requirements.txt" && return
    echo "installing into .venv: $(tr '\n' ' ' <"$repo/tests/requirements.txt")"
    [[ -x $repo/.venv/bin/python ]] || "$system_python" -m venv "$repo/.venv" || return 1
    "$repo/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$repo/tests/requirements.txt" &&
        cp "$repo/tests/requirements.txt" "$repo/.venv/requirements.txt"
}

# requires WHAT COMMAND...: what a test of bats needs of the machine beyond the packages, and a command that succeeds where
# that is there. It is the one place where one is skipped; with NO_SKIPS=1 (.ci/run) the test fails instead, unless
# tests/may_be_missing names it. tests/needs.py does the same for pytest.
requires() {
    local what=$1
    shift
    ! "$@" >/dev/null 2>&1 || return 0
    if [[ ${NO_SKIPS:-} == 1 ]] && ! grep --quiet "^$what: " "$repo/tests/may_be_missing"; then
        echo "needs $what, and NO_SKIPS=1 forbids to skip"
        return 1
    fi
    skip "needs $what"
}

# until_true SECONDS COMMAND...: repeats the command until it succeeds; fails after that many seconds, or times
# LAB_SLOWNESS as many where everything is slower (tests/kernel).
until_true() {
    local deadline=$((SECONDS + $1 * ${LAB_SLOWNESS:-1})) asked pause
    shift
    while asked=${EPOCHREALTIME/[.,]/} && ! "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        # To ask Docker or the cluster takes a processor from what is waited for: so it is asked less often. Microseconds.
        pause=$((2 * (${EPOCHREALTIME/[.,]/} - asked)))
        pause=$((pause < 100000 ? 100000 : pause > 1000000 ? 1000000 : pause))
        sleep "$(printf '%d.%06d' $((pause / 1000000)) $((pause % 1000000)))"
    done
}

# eventually COMMAND...: waits so for a state that must come, with one limit for all: four times the longest that the driver
# may wait before it tries again (behind.RETRY_SECONDS), like `wait_until` of the tests in Python.
eventually() { until_true 120 "$@"; }

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

# loops_served_for PID: the loop devices of files in FUSE file systems that the process sees mounted, each with its file:
# those that the stand-in mapped for it, or beside it. Whoever kills the programs that serve them lets `detach_loops` have
# the list afterwards: the devices would stay for ever, and not tell any more whose they are.
loops_served_for() {
    local number loop
    losetup --list --noheadings --output BACK-MAJ:MIN,NAME | while read -r number loop; do
        ! grep --quiet --extended-regexp "^[0-9]+ [0-9]+ $number .* - fuse" "/proc/$1/mountinfo" ||
            echo "$loop,$(file_of "$loop")"
    done
}

# detach_loops LOOPS: those of the list that are still what they were. The driver, which was about to end, may have unmapped
# some meanwhile. Somebody else may have such a device by now, on a file system of the same number: the kernel gives both
# numbers anew at once. A device that is held open stays what it is between our look and the detaching.
detach_loops() {
    local loop file
    for loop in $1; do
        file=${loop#*,} loop=${loop%%,*}
        # shellcheck disable=SC2094 # nothing is read from it
        { ! is_loop_on "$loop" "$file" || losetup --detach "$loop"; } <"$loop" || ! is_loop_on "$loop" "$file"
    done
}

# is_loop_on LOOP FILE: also when nothing of the file is left but the device. The file was a mount point of its own; when it
# is unmounted, as with the last process that saw it, the device tells "/" of it. No device that anybody can use does.
is_loop_on() { [[ $(file_of "$1") == @("$2"|/) ]]; }

# file_of LOOP: the path of its file; nothing if the device is attached to none.
file_of() { cat "/sys/block/${1#/dev/}/loop/backing_file" 2>/dev/null || true; }

# start_plugin LOG SOCKET [OPTION...]: starts the driver in the background; its pid is in $plugin_pid.
start_plugin() {
    local log=$1 socket=$2
    shift 2
    # A session of its own, here and below: the terminal's Ctrl-C is for us, and we end them in their order.
    setsid "$system_python" "$repo/docker_graph_driver.py" --socket "$socket" "$@" >>"$log" 2>&1 3>&- 4>&- </dev/null &
    plugin_pid=$!
    eventually started "$plugin_pid" "$socket" && ! process_gone "$plugin_pid"
}

started() { process_gone "$1" || [[ -S $2 ]]; }

# start_dockerd DIR DRIVER [OPTION...]: a dockerd and a containerd of their own, everything of them below DIR, without a
# network to set up; their pids are in $dockerd_pid and $containerd_pid, what they say in DIR/dockerd.log and
# DIR/containerd.log. The containerd outlives a dockerd that is killed, and a machine's own one stays out of it.
start_dockerd() {
    local dir=$1 driver=$2
    shift 2
    mkdir -p "$dir/run"
    if [[ ! -S $dir/containerd.sock ]]; then
        # Version 1 of the file is understood from containerd 1.0 to 1.7, and 2.x converts it.
        echo 'disabled_plugins = ["cri"]' >"$dir/containerd.toml"
        setsid containerd --config "$dir/containerd.toml" --root "$dir/containerd" --state "$dir/run/containerd" \
            --address "$dir/containerd.sock" >>"$dir/containerd.log" 2>&1 3>&- 4>&- </dev/null &
        containerd_pid=$!
        echo "$containerd_pid" >"$dir/containerd.pid"
        eventually started "$containerd_pid" "$dir/containerd.sock" && ! process_gone "$containerd_pid" || return 1
    fi
    # 27.x wants the variable before it loads a graph driver plugin, others ignore it.
    DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1 setsid dockerd --experimental --storage-driver "$driver" \
        --data-root "$dir/data" --exec-root "$dir/run" --host "unix://$dir/docker.sock" --pidfile "$dir/docker.pid" \
        --containerd "$dir/containerd.sock" --bridge none --iptables=false --ip6tables=false "$@" \
        >>"$dir/dockerd.log" 2>&1 3>&- 4>&- </dev/null &
    dockerd_pid=$!
    eventually dockerd_up "$dockerd_pid" "$dir" && ! process_gone "$dockerd_pid"
}

dockerd_up() { process_gone "$1" || docker_cli "$2" version; }

# docker_cli DIR ...: Docker's client for the daemon in DIR, at most 10 minutes.
docker_cli() {
    local dir=$1
    shift
    DOCKER_CONFIG="$dir/client" timeout --foreground --kill-after 5 "${DOCKER_SECONDS:-600}" \
        "$(docker_client)" --host "unix://$dir/docker.sock" "$@"
}

# docker_client: prints the name of Docker's client. Debian's: another may come first on PATH.
docker_client() {
    if [[ -x /usr/bin/docker ]]; then
        echo /usr/bin/docker
    else
        echo docker
    fi
}

# remove_all_containers DIR: those of the daemon in DIR, running or not, also while some of them go by themselves.
remove_all_containers() { eventually no_container_is_left "$1"; }

no_container_is_left() {
    local ids
    ids=$(docker_cli "$1" ps --all --quiet) || return 1
    [[ -n $ids ]] || return 0
    # One may have gone by itself since, or be about to: what is there next time tells.
    # shellcheck disable=SC2086 # a list of ids
    docker_cli "$1" rm --force --volumes $ids
    return 1
}

# end_containers DIR: those that a dockerd has left which runs no more, by the containerd in DIR, or as processes if that
# is gone too.
end_containers() {
    local task pid
    if recorded "$1/containerd.pid" "$1" >/dev/null; then
        for task in $(tasks "$1" list --quiet); do
            tasks "$1" delete --force "$task" || true # it may have ended by itself
        done
    fi
    for pid in $(processes_with " -address $1/containerd.sock"); do
        # First what it has started, which it would leave to init.
        # shellcheck disable=SC2046 # a list of pids
        kill -KILL $(cat /proc/"$pid"/task/*/children 2>/dev/null) "$pid" 2>/dev/null || true
        until_true 60 process_gone "$pid"
    done
}

# tasks DIR WORD...: asks the containerd in DIR, or tells it, something of the processes of containers.
tasks() { timeout 20 ctr --address "$1/containerd.sock" --namespace moby tasks "${@:2}"; }

# end_recorded FILE WORD: ends the process whose pid is in FILE, if that is still the one whose arguments hold WORD.
end_recorded() {
    local pid
    ! pid=$(recorded "$1" "$2") || end_process "$pid" 30
    rm -f "$1"
}

# recorded FILE WORD: prints the pid in FILE, if that is still the one whose arguments hold WORD.
recorded() {
    local pid
    pid=$(cat "$1" 2>/dev/null) &&
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep --quiet --fixed-strings -- "$2" && echo "$pid"
}

# end_processes WORDS: ends the processes whose command lines hold these words.
end_processes() {
    local pid
    for pid in $(processes_with "$1"); do
        end_process "$pid" 30
    done
}

# processes_with WORDS: the pids of the processes whose command lines hold these words.
processes_with() {
    local file args
    for file in /proc/[0-9]*/cmdline; do
        # It may have ended since.
        { mapfile -d '' -t args <"$file"; } 2>/dev/null || continue
        [[ "${args[*]}" != *"$1"* ]] || { file=${file%/cmdline} && echo "${file#/proc/}"; }
    done
}

# mounts_below DIR: the mount points below a directory, in the order in which they were mounted, as the kernel writes them.
mounts_below() { awk -v prefix="$1/" 'index($5, prefix) == 1 { print $5 }' /proc/self/mountinfo; }

# unmount_below DIR: unmounts what is mounted below a directory, from everybody's sight what is in use.
unmount_below() {
    local place
    # Without a name it would be the whole machine.
    [[ $1 == /?* ]] || { echo "unmount_below: '$1' is no directory to empty" >&2 && return 1; }
    for place in $(mounts_below "$1" | tac); do
        # A blank is \040.
        printf -v place '%b' "$place"
        umount "$place" || umount --lazy "$place" || true # it may have gone with another one
    done
}

# busybox_image: a root file system with nothing but busybox-static in it, as a tar on stdout.
busybox_image() {
    local root applet
    root=$(mktemp -d)
    mkdir "$root"/{bin,etc,tmp,root}
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    tar --create --directory "$root" --numeric-owner --owner 0 --group 0 .
    rm -r "$root"
}

# debian_mirror: prints where this machine gets its own packages from; all suites are there.
debian_mirror() {
    local release mirror
    # shellcheck source=/dev/null
    release=$(source /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # it is apt's
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $release" "Created-By: Packages" | head -n 1)
    [[ -n $mirror ]] || { echo "apt has no lists of Debian $release: apt-get update" >&2 && return 1; }
    echo "$mirror"
}

# debian_image: prints the path of Debian's minbase with python3 as a tar, which is made once for this machine.
debian_image() {
    local release
    # shellcheck source=/dev/null
    release=$(source /etc/os-release && echo "$VERSION_CODENAME")
    made_once "$test_cache/debian-$release.tar" 1200 make_debian_image "$release" && echo "$test_cache/debian-$release.tar"
}

# shellcheck disable=SC2154 # made: of made_once
make_debian_image() {
    local root=${made%/*}/root mirror
    mirror=$(debian_mirror) &&
        timeout 600 debootstrap --variant=minbase --include=python3-minimal "$1" "$root" "$mirror" &&
        # A layer does not need the archives of the packages that it holds.
        rm -f "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*_* &&
        tar --create --file "$made" --numeric-owner --xattrs --directory "$root" .
}
