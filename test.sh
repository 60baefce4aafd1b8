#!/bin/bash
# Runs the tests; as root, because they install packages, mount file systems and start daemons.
#
#   ./test.sh                 lint, unit, integration, faults, lab, e2e: all but kernel
#   ./test.sh PART...         some of it: lint unit integration faults lab e2e kernel
#
# lint         ruff, mypy, vermin, shellcheck, shfmt
# unit         pytest without root and without Ceph, seconds
# integration  pytest: the driver at its socket on a real Ceph cluster
# faults       pytest: the driver killed at every step, without power, on a sick cluster, and called by anybody
# lab          bats: the throw-away cluster itself
# e2e          bats: dockerd and docker on the driver
# kernel       the driver with krbd and rbd-nbd of a real kernel, in a virtual machine
#
# What is missing is installed first: Debian packages (tests/packages) and, into .venv, Python tools
# (tests/requirements.txt). After each part that needs root the machine is searched for what the part left behind; on a
# machine where others work too, LEAKS_IGNORE (see tests/leaks.sh) says what is theirs.
# shellcheck disable=SC2317 # functions are called by name, through check and without_leaks
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# shellcheck source=tests/lib.bash
source tests/lib.bash

all=(lint unit integration faults lab e2e)
summary=()
failed=0

python=.venv/bin/python

make_venv() {
    cmp --silent tests/requirements.txt .venv/requirements.txt && return
    echo "installing into .venv: $(tr '\n' ' ' <tests/requirements.txt)"
    [[ -x $python ]] || "$system_python" -m venv .venv || return 1
    "$python" -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt &&
        cp tests/requirements.txt .venv/requirements.txt
}

# Every file of shell and of bats, found by its first line or its name.
shell_files() { shfmt --find . | grep --invert-match '^\.venv/'; }

# The driver and its tests, whose modules are named from tests/ on (two directories of tests may have modules of the same
# name); then the tools, each of which finds its neighbours beside it.
type_check() {
    local directory tools status=0
    # The benchmark of archive.py has its name: a neighbour of its own could not import the driver's.
    MYPYPATH=.:tests:tests/faults "$python" -m mypy --explicit-package-bases ./*.py tests/*.py tests/unit/*.py tests/integration/*.py \
        tests/faults/*.py tests/bench/archive.py || status=1
    for directory in plugin tests/bench tests/bin tests/kernel; do
        mapfile -t tools < <(find "$directory" -name '*.py' ! -path tests/bench/archive.py)
        MYPYPATH=.:tests:$directory "$python" -m mypy --explicit-package-bases "${tools[@]}" || status=1
    done
    return "$status"
}

# The modules that are installed with the driver; tests may use newer things.
oldest_python() { .venv/bin/vermin --target=3.9- --violations --no-tips --quiet ./*.py; }

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
    [[ -e $1 ]] || { echo "there is no $1" && return 1; }
    bats --print-output-on-failure --formatter tap --timing "$1"
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
        integration | faults | lab) needs+=(test driver lab) ;;
        e2e) needs+=(test driver lab docker demo) ;;
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
    lint) lint ;;
    unit) "$python" -m pytest tests/unit ;;
    integration) without_leaks "$python" -m pytest tests/integration ;;
    faults) without_leaks "$python" -m pytest tests/faults ;;
    lab) without_leaks bats_on tests/lab.bats ;;
    e2e) without_leaks bats_on tests/e2e ;;
    kernel) without_leaks tests/kernel/run.sh ;;
    esac || result=FAILED
    [[ $result == passed ]] || failed=1
    summary+=("$(printf '%-12s %-7s %4d s' "$part" "$result" $((SECONDS - begin)))")
}

parts=("$@")
((${#parts[@]})) || parts=("${all[@]}")
for part in "${parts[@]}"; do
    [[ $part == @(lint|unit|integration|faults|lab|e2e|kernel) ]] || {
        sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
        exit 2
    }
done
begin=$SECONDS
prepare "${parts[@]}" || {
    echo "test.sh: what the tests need could not be installed" >&2
    exit 1
}
summary+=("$(printf '%-12s %-7s %4d s' "preparing" "done" $((SECONDS - begin)))")
for part in "${parts[@]}"; do
    run_part "$part"
done
printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
exit $failed
