#!/bin/bash
# The oldest Python that the driver is for, run for real: the unit tests, and the driver at its socket. As root.
#
#   tests/debian/python39.sh               all of it; what it needs is made once for this machine
#   tests/debian/python39.sh COMMAND...    a command with that Python in its place, such as `python3.9`
#
# It is Debian 11's, in the place where Debian has it: an overlay puts the files of its packages over /usr, in a mount
# namespace of our own. So its libraries are found by whatever the driver starts, without a word in the environment. Tests
# and driver run in it; the programs of the cluster are this machine's, with their own Python.
set -euo pipefail

# shellcheck source=../lib.bash
source "$(dirname "${BASH_SOURCE[0]}")/../lib.bash"

packages=(python3.9-minimal libpython3.9-minimal libpython3.9-stdlib libffi7 libmpdec3 libssl1.1)
requirements=$repo/tests/debian/python39.txt
# What was made from other lists is another one.
place=$test_cache/python3.9-$({ printf '%s\n' "${packages[@]}" && cat "$requirements"; } | sha256sum | cut -c -12)

# apt_of_bullseye DIR COMMAND...: apt-get that knows nothing but Debian 11, and keeps all that it writes in DIR.
apt_of_bullseye() {
    local dir=$1
    shift
    timeout 300 apt-get --quiet --option Acquire::Retries=3 --option "Dir::State=$dir" --option Dir::State::status=/dev/null --option "Dir::Cache=$dir" \
        --option "Dir::Etc::SourceList=$dir/sources.list" --option Dir::Etc::SourceParts=- \
        --option Acquire::Languages=none "$@" </dev/null
}

# download: the packages, unpacked in $made/root, and the tests' tools in $made/site.
# shellcheck disable=SC2154 # made: of made_once
download() {
    local work=${made%/*} package
    mkdir --parents "$made/root" "$work/deb" "$work/apt/lists/partial" "$work/apt/archives/partial" &&
        echo "deb $(debian_mirror) bullseye main" >"$work/apt/sources.list" &&
        apt_of_bullseye "$work/apt" update &&
        (cd "$work/deb" && apt_of_bullseye "$work/apt" --option APT::Sandbox::User=root download "${packages[@]}") || return 1
    for package in "$work"/deb/*.deb; do
        dpkg --extract "$package" "$made/root" || return 1
    done
    # This Python's own pip needs more of Debian 11; the wheels are the same for all.
    timeout 300 "$repo/.venv/bin/python" -m pip install --disable-pip-version-check --no-compile --target "$made/site" \
        --no-deps --only-binary :all: --python-version 3.9 --requirement "$requirements"
}

# in_place COMMAND...: a child: as the first process of a namespace, the tests would inherit what others leave.
in_place() {
    # shellcheck disable=SC2016 # it is for the inner shell
    PYTHONPATH=$place/site DRIVER_PYTHON=/usr/bin/python3.9 unshare --mount --propagation slave bash -c '
        mount --types overlay --options "lowerdir=$1:/usr" overlay /usr && shift && exec "$@"' - "$place/root/usr" "$@"
}

[[ $(id -u) == 0 ]] || die "must run as root"
made_once "$place" 900 download || die "a Python 3.9 could not be had"
if (($#)); then
    in_place "$@"
    exit
fi
cd "$repo"
in_place python3.9 -c 'import ctypes, sys; print("Python", sys.version)'
# Of the ways to start it, those that have to do with Python itself.
in_place python3.9 -m pytest -p no:cacheprovider tests/unit tests/integration/test_conformance.py \
    tests/integration/test_callers_world.py -k 'not whole_life or told or python or UTF'
