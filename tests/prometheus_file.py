"""The file of figures that the driver and the snapshotter keep, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import needs

try:
    from prometheus_client import parser
except ImportError:
    needs.requires(False, "prometheus_client")


def figures(path: str, socket: str) -> Mapping[str, float]:
    """Each sample by its name, with the values of its labels but the socket's; none as long as there is no file.

    `socket` is that of the process that keeps the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("socket") == socket
            name = sample.name.replace("docker_graph_driver_", "", 1)
            found[" ".join([name, *(labels[label] for label in sorted(labels))])] = sample.value
    return found
