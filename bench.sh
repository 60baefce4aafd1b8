#!/bin/bash
# Measures the driver against overlay2 on the same machine in the same run; as root, on a cluster of its own.
#
#   ./bench.sh [--quick] [--check] [--readme] [--only ROWS] [--json FILE] [--svg FILE]
#                                   every row (20 min), or few and small ones (5 min)
#   ./bench.sh scale [--check]      2,000 layers and 200 containers in one pool, at the driver's socket
#   ./bench.sh snapshotter [--quick] [--check] [--json FILE]
#                                   the snapshotter against containerd's overlayfs: ten hosts, one image
#   ./bench.sh profile ROW          where the time of a row goes: requests, their commands, the rest
#   ./bench.sh profile --log FILE   the same of any log of the driver's (--log-level debug)
#   ./bench.sh show A.json          the table of a run again; also: plot A.json, readme A.json, check A.json
#   ./bench.sh compare A.json B.json
#
# What is missing is installed first, as by test.sh. --help of each says more; tests/bench/rows.py has the rows,
# tests/bench/goals.py what they must reach.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=tests/lib.bash
source tests/lib.bash

case ${1:-} in
show | plot | readme | check | compare | -h | --help) ;;
*)
    [[ $(id -u) == 0 ]] || {
        echo "bench.sh: must run as root" >&2
        exit 1
    }
    install_packages driver lab docker demo test
    ;;
esac
python=$system_python
if [[ ${1:-} == snapshotter ]]; then
    # It asks containerd what a kubelet asks, by gRPC.
    make_venv
    python=.venv/bin/python
fi
PYTHONPATH=.:tests:tests/snapshotter exec "$python" tests/bench/bench.py "$@"
