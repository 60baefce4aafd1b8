#!/bin/bash
# The demo and end-to-end tests in a Debian 13 on this machine (root.sh): newer Docker, containerd, Ceph and Python, the
# same kernel. As root.
#
#   tests/debian/debian13.sh [--all]
#
# Without an option the demo, and the end-to-end tests that have the tag debian13: what a Docker or a Ceph could do in another
# way. With --all, all of the unit, integration and end-to-end tests. The last line says how many tests passed and failed; the exit status is 1 if one
# failed, or if something is left behind.
#
# Environment: E2E_LOGS=DIR  keeps what plugin, dockerd and containerd said there
set -uo pipefail

# shellcheck source=../lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/../lib.bash"

self=$repo/tests/debian/debian13.sh
needs=(test driver lab docker build demo)
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

chosen_tests() { bats_run --filter-tags debian13 "$repo/tests/e2e"; }

all_tests() {
    check "the tools of the tests are installed" make_venv
    pytest_run "$repo/tests/unit"
    pytest_run "$repo/tests/integration"
    bats_run "$repo/tests/e2e"
}

# inside WHAT
inside() {
    log=/tmp/log
    versions
    "$repo/tests/leaks.sh" snapshot /tmp/before
    check "nothing is missing" nothing_is_missing
    check "demo.sh" timeout --kill-after 60 300 "$repo/demo.sh"
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
    local what=chosen root begin=$SECONDS
    case $* in
    '') ;;
    --all) what=all ;;
    "inside chosen" | "inside all")
        inside "$2"
        return
        ;;
    *) usage ;;
    esac
    # shellcheck disable=SC2046 # a list of packages
    root=$("$repo/tests/debian/root.sh" make trixie $(DEBIAN_VERSION=13 packages "${needs[@]}")) || exit 1
    say "the root is there after $((SECONDS - begin)) s"
    exec timeout --kill-after 60 $deadline "$repo/tests/debian/root.sh" run "$root" "$self" inside "$what"
}

main "$@"
