#!/bin/bash
# The demo and end-to-end tests in a Debian 13 on this machine (root.sh): newer Docker, containerd, Ceph and Python, the
# same kernel. As root.
#
#   tests/debian/debian13.sh [--all | --sid]
#
# Without an option the demo of one front end, and those of its end-to-end tests that have the tag debian13: what a Docker or a
# Ceph could do in another way. The commit chooses the front end (turns.py). With --all, all of the unit, integration and
# end-to-end tests. With --sid, what there is of the snapshotter's tests with clients, in Debian's unstable suite: the newest
# containerd and Docker. It changes every day, so CI does not run it. The last line says how many tests passed and failed; the
# exit status is 1 if one failed, or if something is left behind.
#
# Environment: E2E_LOGS=DIR  keeps what plugin, dockerd and containerd said there
set -uo pipefail

# shellcheck source=../lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/../lib.bash"

self=$repo/tests/debian/debian13.sh
needs=(test driver lab docker build demo snapshotter)
passed=0
failed=0
# Seconds for one tool, and for all.
patience=2400
deadline=3600

say() { printf 'debian13: %s\n' "$*"; }

count() {
    passed=$((passed + $1))
    failed=$((failed + $2))
}

# check NAME COMMAND...: counts a test of our own, at most $patience seconds.
check() {
    local name=$1 begin=$SECONDS
    shift
    if "$@"; then
        count 1 0
        say "ok: $name in $((SECONDS - begin)) s"
    else
        count 0 1
        say "FAILED: $name in $((SECONDS - begin)) s"
    fi
}

# -- in there ----------------------------------------------------------------------------------------

bats_run() {
    timeout --kill-after 60 $patience bats --print-output-on-failure --formatter tap --timing "$@" 2>&1 | tee "$log"
    # shellcheck disable=SC2046 # two numbers
    count $(tests_in "$log" "${PIPESTATUS[0]}")
}

pytest_run() {
    timeout --kill-after 60 $patience "$repo/.venv/bin/python" -m pytest --color no -p no:cacheprovider "$@" 2>&1 | tee "$log"
    # shellcheck disable=SC2046 # two numbers
    count $(tests_in "$log" "${PIPESTATUS[0]}")
}

# One front end for each commit, in turn: each takes ten minutes.
driver_tests() {
    driver_demo
    bats_run --filter-tags debian13 "$repo/tests/e2e"
}

snapshotter_tests() {
    snapshotter_demo
    # cri.bats needs one.
    check "the tools of the tests are installed" make_venv
    bats_run --filter-tags debian13 "$repo/tests/snapshotter"
}

both_tests() {
    driver_tests
    snapshotter_tests
}

all_tests() {
    driver_demo
    snapshotter_demo
    check "the tools of the tests are installed" make_venv
    pytest_run "$repo/tests/unit"
    pytest_run "$repo/tests/integration"
    bats_run "$repo/tests/e2e"
    bats_run "$repo/tests/snapshotter"
}

# Docker 28 and newer has no storage driver plugins.
sid_tests() {
    snapshotter_demo
    check "the tools of the tests are installed" make_venv
    bats_run "$repo/tests/snapshotter"
}

driver_demo() { check "demo.sh" timeout --kill-after 60 300 "$repo/demo.sh"; }

snapshotter_demo() { check "demo.sh snapshotter" timeout --kill-after 60 300 "$repo/demo.sh" snapshotter; }

# inside WHAT
inside() {
    log=/tmp/log
    versions
    "$repo/tests/leaks.sh" snapshot /tmp/before
    check "nothing is missing" nothing_is_missing
    "$1_tests"
    check "nothing is left behind" "$repo/tests/leaks.sh" compare /tmp/before
    printf '%d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0))
}

nothing_is_missing() {
    local missing
    missing=$(missing_packages "${needs[@]}")
    [[ -z $missing ]] || { echo "$missing" && return 1; }
}

# -- on this machine -----------------------------------------------------------------------------------

main() {
    local what suite=trixie version=13 root begin=$SECONDS
    case $* in
    '')
        case $("$repo/tests/turns.py" 2) in
        0) what=driver ;;
        1) what=snapshotter ;;
        *) what=both ;;
        esac
        ;;
    --all) what=all ;;
    # Newer than all that have a number.
    --sid) what=sid suite=sid version=99 ;;
    inside\ *)
        inside "$2"
        return
        ;;
    *) usage ;;
    esac
    # shellcheck disable=SC2046 # a list of packages
    root=$("$repo/tests/debian/root.sh" make "$suite" $(DEBIAN_VERSION=$version packages "${needs[@]}")) || exit 1
    say "the root is there after $((SECONDS - begin)) s"
    exec timeout --kill-after 60 $deadline "$repo/tests/debian/root.sh" run "$root" "$self" inside "$what"
}

main "$@"
