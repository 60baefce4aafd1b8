#!/bin/bash
# Runs the tests; as root, because they install packages, mount file systems and start daemons.
#
#   ./test.sh                 all parts, side by side: what a commit's turn is of them (RUN_ALL=1: all)
#   ./test.sh PART...         some of it, one after the other: lint unit integration faults lab demo e2e snapshotter systemd
#                             python39 debian13 soak kernel
#   ./test.sh soak --minutes 10       options are for that part; also: soak --seed S
#   ./test.sh debian13 --all          all of the end-to-end tests there, and not a choice; also: debian13 --sid
#   ./test.sh kernel --all            the whole of integration and e2e, in the virtual machine; also: kernel --plugin
#
# lint         ruff, mypy, vermin, shellcheck, shfmt
# unit         pytest without root and without Ceph, seconds
# integration  pytest: the driver at its socket on a real Ceph cluster
# faults       pytest: the driver killed at every step, without power, on a sick cluster, and called by anybody
# lab          bats: the throw-away cluster itself
# demo         bats: demo.sh, in all the ways that the README tells
# e2e          bats: dockerd and docker on the driver
# snapshotter  containerd's own suite for snapshotters (pytest), and its clients: ctr, a kubelet's calls, Docker (bats)
# systemd      bats: the unit files, in a Debian that systemd has booted, with Docker and with containerd
# python39     the unit tests, and a whole life at the socket, with a Python 3.9
# debian13     the demo and end-to-end tests in a Debian 13: newer Docker, containerd, Ceph and Python
# soak         random Docker operations, while everything is killed, against a model of what must be there (3 min)
# kernel       the driver with krbd and rbd-nbd of a real kernel, in a virtual machine
#
# What is missing is installed first: Debian packages (tests/packages) and, into .venv, Python tools
# (tests/requirements.txt). After each part that needs root the machine is searched for what the part left behind; on a
# machine where others work too, LEAKS_IGNORE (see tests/leaks.sh) says what is theirs. With NO_SKIPS=1 what the machine
# lacks for a test is a failure, and no skip.
# shellcheck disable=SC2317 # functions are called by name, through check and without_leaks
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# shellcheck source=tests/lib.bash
source tests/lib.bash

# The longest first: the end is then not one part that runs alone.
all=(kernel integration faults e2e debian13 snapshotter soak systemd demo python39 lab unit lint)
summary=()
failed=0

python=.venv/bin/python

# Every file of shell and of bats, found by its first line or its name.
shell_files() { shfmt --find . | grep --invert-match '^\.venv/'; }

# The driver: modules, and packages of modules.
driver_files() {
    local package
    printf '%s\n' ./*.py
    for package in */__init__.py; do
        printf '%s\n' "${package%/*}"/*.py
    done
}

# The driver and its tests, whose modules are named from tests/ on (two directories of tests may have modules of the same
# name); then the tools, and the tests of the snapshotter, each of which finds its neighbours beside it.
type_check() {
    local directory tools status=0
    local path=.:manual:tests:tests/faults:tests/bench:tests/snapshotter
    # shellcheck disable=SC2046 # no spaces in our file names
    MYPYPATH=$path "$python" -m mypy --explicit-package-bases $(driver_files) tests/*.py tests/unit/*.py \
        tests/integration/*.py tests/faults/*.py || status=1
    for directory in manual plugin tests/bench tests/bin tests/kernel tests/snapshotter tests/soak; do
        mapfile -t tools < <(find "$directory" -name '*.py')
        MYPYPATH=.:tests:$directory:tests/snapshotter "$python" -m mypy --explicit-package-bases "${tools[@]}" || status=1
    done
    return "$status"
}

# The modules that are installed with the driver; tests may use newer things.
# shellcheck disable=SC2046 # no spaces in our file names
oldest_python() { .venv/bin/vermin --target=3.9- --violations --no-tips --quiet $(driver_files); }

check() {
    echo "--- $1"
    shift
    "$@" || { status=1 && echo "--- failed: $*"; }
}

lint() {
    local status=0
    check "ruff check" "$python" -m ruff check --quiet .
    check "ruff format" "$python" -m ruff format --check --quiet .
    check "mypy" type_check
    check "vermin: Python 3.9" oldest_python
    # shellcheck disable=SC2046 # no spaces in our file names
    check "shellcheck" shellcheck --external-sources --source-path=SCRIPTDIR $(shell_files)
    # shellcheck disable=SC2046
    check "shfmt" shfmt --indent 4 --diff $(shell_files)
    return "$status"
}

bats_on() {
    local file
    (($#)) || { echo "there is no file of tests" && return 1; }
    for file; do
        [[ -e $file ]] || { echo "there is no $file" && return 1; }
    done
    bats --print-output-on-failure --formatter tap --timing "$@"
}

# bats_on_share FILE...: those that this commit runs; all of them if SHARE is not set.
bats_on_share() {
    local mine
    mine=$(tests/turns.py share "$@") || return 1
    # shellcheck disable=SC2086 # no spaces in our file names
    bats_on $mine
}

# Its calls, and then its clients.
snapshotter() {
    local status=0
    "$python" -m pytest tests/snapshotter || status=1
    bats_on_share tests/snapshotter/*.bats || status=1
    return "$status"
}

# Runs a command, then fails also if it left something on this machine.
without_leaks() {
    local before status=0
    before=$(mktemp)
    tests/leaks.sh snapshot "$before"
    "$@" || status=$?
    tests/leaks.sh compare "$before" || status=1
    rm "$before"
    return "$status"
}

prepare() {
    local needs=() part
    for part; do
        case $part in
        lint) needs+=(test) ;;
        unit) needs+=(test driver) ;;
        integration | lab) needs+=(test driver lab) ;;
        faults) needs+=(test driver lab faults) ;;
        e2e | soak | snapshotter) needs+=(test driver lab docker build demo) ;;
        demo) needs+=(test driver lab docker build demo snapshotter) ;;
        systemd | python39 | debian13) needs+=(test driver lab docker demo) ;;
        kernel) needs+=(test driver lab docker kernel) ;;
        esac
        [[ $part == @(lint|unit) || $(id -u) == 0 ]] || {
            echo "test.sh: $part must run as root" >&2
            return 1
        }
    done
    install_packages "${needs[@]}" && make_venv
}

run_part() {
    local part=$1 begin=$SECONDS result=passed
    printf '\n=== %s\n' "$part"
    case $part in
    integration | faults | demo | e2e | snapshotter | systemd | python39 | debian13 | kernel) tests/turns.py ;;
    esac
    case $part in
    lint) lint ;;
    unit) "$python" -m pytest tests/unit ;;
    integration) without_leaks "$python" -m pytest tests/integration ;;
    faults) without_leaks "$python" -m pytest tests/faults ;;
    lab) without_leaks bats_on tests/lab.bats ;;
    demo) without_leaks bats_on tests/demo.bats ;;
    e2e) without_leaks bats_on_share tests/e2e/*.bats ;;
    snapshotter) without_leaks snapshotter ;;
    systemd) without_leaks bats_on_share tests/systemd*.bats ;; # the unit of each front end
    python39) without_leaks tests/debian/python39.sh ;;
    debian13) without_leaks tests/debian/debian13.sh "${options[@]}" ;;
    soak) PYTHONPATH=tests without_leaks "$system_python" tests/soak/soak.py "${options[@]}" ;;
    kernel) without_leaks tests/kernel/run.sh "${options[@]}" ;;
    esac || result=FAILED
    [[ $result == passed ]] || failed=1
    summary+=("$(printf '%-12s %-7s %4d s' "$part" "$result" $((SECONDS - begin)))")
}

# Becomes a command that sees only its own mounts, processes and places below /run: alone on the machine for its search
# for leaks, and for dockerd, which looks for plugins in one place. All processes in there end with it.
alone() {
    # shellcheck disable=SC2016 # it is for the inner shell
    exec unshare --mount --pid --fork --kill-child --mount-proc bash -c '
        for place in /run/docker /run/rbd-stand-in; do
            mkdir --parents "$place" && mount -t tmpfs -o mode=0755 tmpfs "$place" || exit 1
        done
        exec "$@"' - "$@"
}

# failures_in LOG: the lines that tell of it, and its end. A log of all parts is long, and often only its end is at hand.
failures_in() {
    grep --extended-regexp '^(not ok |FAILED |ERROR |E   |#.* failed$|[a-z0-9]+: FAILED|--- failed)' "$1" | head -n 40
    echo ...
    tail -n 15 "$1"
}

# failed_tests LOG: their names, for the summary: often nothing but the end of a long output is shown.
failed_tests() { grep --extended-regexp '^(not ok |FAILED |ERROR |--- failed)' "$1" | cut --characters=-160 | head -n 20; }

# How many tenths of a processor each part keeps busy; the others wait for commands about half of their time. (Measured by
# control groups: processor time by the time that it takes.)
declare -A busy=([kernel]=10 [faults]=10 [unit]=10 [lint]=10 [python39]=9)
half_busy=5
# These go first where the processors are wanted by all. In a virtual machine that falls behind tests run into their limits; a
# cluster that is sick must be explained within the driver's deadlines.
urgent=" kernel faults "

# next_part RUNNING...: the place in $queue of the first part that fits beside these; nothing if none does. What a part needs
# must be there: the virtual machine of kernel waits for nothing, and faults sees to it that requests end in time.
next_part() {
    local at part room=$(($(nproc) * 10 + 2))
    for part; do room=$((room - ${busy[$part]:-$half_busy})); done
    for at in "${!queue[@]}"; do
        (($# && room < ${busy[${queue[at]}]:-$half_busy})) || { echo "$at" && return; }
    done
}

# side_by_side PART...: some at a time; what each says is shown when it has ended, and why one failed once more at the end.
# Loop devices are the kernel's, so all parts see those of all: they are looked for at the end.
side_by_side() {
    local queue=("$@") broken_parts=() names=() logs pid part at niceness result status good bad passed=0 broken=0
    local -A running=() began=()
    logs=$(mktemp --directory)
    tests/leaks.sh snapshot "$logs/before"
    # unshare takes no other signal while it waits.
    trap 'kill -KILL "${!running[@]}"; exit 130' INT TERM
    while ((${#queue[@]} || ${#running[@]})); do
        at=$(next_part "${running[@]}")
        if [[ -n $at ]]; then
            part=${queue[at]} niceness=0
            queue=("${queue[@]:0:at}" "${queue[@]:at+1}")
            [[ $urgent != *" $part "* ]] || niceness=-5
            LEAKS_IGNORE="^loop device: ${LEAKS_IGNORE:+|$LEAKS_IGNORE}" alone nice --adjustment="$niceness" \
                ./test.sh "$part" >"$logs/$part" 2>&1 &
            running[$!]=$part began[$!]=$SECONDS
            continue
        fi
        result=passed status=0
        wait -n -p pid "${!running[@]}" || status=$? result=FAILED failed=1
        part=${running[$pid]}
        cat "$logs/$part"
        read -r good bad < <(tests_in "$logs/$part" $status)
        passed=$((passed + good)) broken=$((broken + bad))
        summary+=("$(printf '%-12s %-7s %4d s %6d passed, %d failed' "$part" "$result" $((SECONDS - began[$pid])) "$good" "$bad")")
        unset "running[$pid]"
        [[ $result == passed ]] || broken_parts+=("$part")
    done
    for part in "${broken_parts[@]}"; do
        printf '\n=== why %s failed\n' "$part"
        failures_in "$logs/$part"
        mapfile -t -O "${#names[@]}" names < <(failed_tests "$logs/$part" | sed "s/^/$part: /")
    done
    ((failed == 0)) || df --human-readable --output=target,size,used,avail / /tmp /var/tmp
    tests/leaks.sh compare "$logs/before" || failed=1
    rm -r "$logs"
    summary+=("$(printf '%-12s %-7s %4d s' "all" "" "$SECONDS")" "" "${names[@]}" "$passed passed, $broken failed")
}

# not_this_turn: the parts that this commit does not run. They run much of unit or e2e again on another platform: in turn one
# of them does.
not_this_turn() {
    case $(tests/turns.py 3) in
    0) echo python39 debian13 ;;
    1) echo python39 kernel ;;
    2) echo debian13 kernel ;;
    esac
}

parts=()
while (($#)) && [[ $1 != -* ]]; do
    [[ " ${all[*]} " == *" $1 "* ]] || usage
    parts+=("$1")
    shift
done
options=("$@")
((${#options[@]} == 0)) || [[ ${parts[*]} == @(soak|kernel|debian13) ]] || usage
wanted=("${parts[@]}")
((${#wanted[@]})) || wanted=("${all[@]}")
begin=$SECONDS
prepare "${wanted[@]}" || {
    echo "test.sh: what the tests need could not be installed" >&2
    exit 1
}
summary+=("$(printf '%-12s %-7s %4d s' "preparing" "done" $((SECONDS - begin)))")
if ((${#parts[@]})); then
    for part in "${parts[@]}"; do
        run_part "$part"
    done
else
    versions
    # All tests of all parts take two hours and more where processors are slow, and CI has an hour and a half.
    export SHARE=2
    left_out=$(not_this_turn)
    for at in "${!wanted[@]}"; do
        [[ " $left_out " != *" ${wanted[at]} "* ]] || unset "wanted[at]"
    done
    side_by_side "${wanted[@]}"
    [[ -z $left_out ]] || summary+=("another commit's turn: $left_out, and half of the large suites (RUN_ALL=1 runs all)")
fi
printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
exit $failed
