"""All checks of a doctor, in the order in which they are told: this host, the cluster, the trial, who uses us."""

from __future__ import annotations

import rbdcli
from cluster.claim import REBOOT_SECONDS, Claim
from cluster.owner import Owner
from doctor import endpoint, target
from doctor.cluster_state import ClusterState
from doctor.control_group import ControlGroup
from doctor.endpoint import Endpoint
from doctor.kernel import Kernel
from doctor.propagation import Propagation
from doctor.systemd_unit import SystemdUnit
from doctor.target import SNAPSHOTTER, Target
from doctor.tools import Tools
from doctor.trial import Trial
from graph.preconditions import Check, Preconditions
from images.base_image import BaseImage
from images.layers import Layers

UNITS = {target.DOCKER: "docker-graph-driver.service", SNAPSHOTTER: "docker-graph-driver-snapshotter.service"}


def checks(found: Target, pool: rbdcli.Pool, trial: Trial) -> list[Check]:
    """Return all checks. None changes anything but `trial`, which its caller closes."""
    tools = Tools(pool, found.options)
    user, *of_programs = tools.checks()
    *of_kernel, features = Kernel(found.options).checks()
    return [
        Check("front end", lambda: str(found)),
        user,
        *Preconditions(pool, found.options).checks(),
        *of_programs,
        *of_kernel,
        *ClusterState(pool, found.options).checks(),
        *_of_layers(found, pool),
        *trial.checks(),
        # A module that was not loaded tells what it can do once something was mapped.
        features,
        *_of_front(found),
    ]


def _of_layers(found: Target, pool: rbdcli.Pool) -> list[Check]:
    """Return what an Init looks at beside its preconditions: this host's name, and the base image of the pool."""
    prefix, needs = found.options.imageprefix, ("pool init", "namespace")

    def name() -> str:
        # As gc does it: the driver may serve, and its watch is ours.
        owner = Owner.here(found.home)
        Claim(pool, prefix, owner).wait_single()
        return f"no other machine lives as host {owner.host}"

    def base_image() -> str:
        base = BaseImage(Layers(pool, found.options, found.home), found.options, found.home)
        return "it fits the options" if base.is_there() else "there is none yet: the first start makes it"

    return [
        Check("host name", name, needs, REBOOT_SECONDS + 20),
        # It is looked at for where the objects are.
        Check("base image", base_image, (*needs, "object pool")),
    ]


def _of_front(found: Target) -> list[Check]:
    """Return what is looked at on the side of who uses the driver."""

    def server() -> int | None:
        try:
            peer = endpoint.served_by(found.socket)
        except OSError:
            return None
        return peer.pid or None if peer else None

    if found.front == SNAPSHOTTER:
        engine = [*found.containerd.checks(), *found.docker.checks_for_snapshotter()]
    else:
        engine = found.docker.checks_for_driver()
    return [
        *Endpoint(found.socket, found.state, found.settings).checks(),
        *SystemdUnit(UNITS[found.front]).checks(),
        *ControlGroup(UNITS[found.front], server).checks(),
        *Propagation(found.home, server, lambda: target.user(found)).checks(),
        *engine,
    ]
