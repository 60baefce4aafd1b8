# The root file system of the managed plugin; build_plugin.sh makes a plugin of it.
#
# BASE is a Ceph image (quay.io/ceph/ceph:v18), or a Debian, which gets the packages from its own repositories. Only
# the programs that the driver uses, their libraries and Python are taken from it.
ARG BASE=debian:12-slim

FROM ${BASE} AS system
RUN set -eu; \
    missing=; \
    for program in python3 rbd rados mkfs.xfs xfs_growfs mkfs.ext4 e2fsck resize2fs mount umount; do \
        command -v "$program" >/dev/null || missing=1; \
    done; \
    if [ -z "$missing" ]; then \
        :; \
    elif command -v apt-get >/dev/null; then \
        apt-get update; \
        apt-get install --yes --no-install-recommends \
            python3-minimal ceph-common rbd-nbd xfsprogs e2fsprogs mount; \
    else \
        dnf install --assumeyes --setopt=install_weak_deps=False \
            python3 ceph-common rbd-nbd xfsprogs e2fsprogs util-linux; \
    fi
COPY plugin/closure.py /closure.py
RUN set -eu; \
    mkdir /small; \
    python3 /closure.py >/closure.list; \
    tar --create --directory / --no-recursion --files-from /closure.list --file /closure.tar; \
    tar --extract --directory /small --file /closure.tar

FROM scratch
COPY --from=system /small/ /
COPY . /opt/docker-graph-driver/
