"""The directory monitoring/: dashboard and alerts speak of what the driver writes, and Prometheus takes them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_client import REPO
from unit import promtool

from host import metrics

ALERTS = Path(REPO, "monitoring", "alerts.yml")
DASHBOARD = Path(REPO, "monitoring", "dashboard.json")
# What the two front ends load; a family is there once its module is.
FRONT_ENDS = "docker_graph_driver", "snapshotter.front"
# Labels that every sample has: by the collector, by Prometheus, by us; and the bound of a bucket.
EVERYWHERE = {"instance", "job", "socket", "le"}

_NAME = re.compile(r"\bdocker_graph_driver_\w+")


@pytest.fixture(scope="module")
def written() -> dict[str, set[str]]:
    """The name of each sample that may be written, with its labels."""
    for module in FRONT_ENDS:
        importlib.import_module(module)
    found: dict[str, set[str]] = {}
    for family in metrics._families:
        ends = ("_bucket", "_sum", "_count") if family.type == "histogram" else ("",)
        found.update({family.name + end: {*family.labels, *EVERYWHERE} for end in ends})
    return {name: labels for name, labels in found.items() if name.startswith("docker_graph_driver_")}


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def expressions(dashboard: Any) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def labels(text: str) -> Iterator[str]:
    """The labels that an expression asks for."""
    for names in re.findall(r"by \(([^)]*)\)", text):
        yield from re.findall(r"\w+", names)
    for chosen in re.findall(r"{([^}]*)}", text):
        yield from re.findall(r"(\w+)(?:=~|!=|=)", chosen)


def test_the_dashboard_shows_all_that_is_written_and_nothing_else(dashboard: Any, written: dict[str, set[str]]) -> None:
    named = {name for text in expressions(dashboard) for name in _NAME.findall(text)}
    assert sorted(named - written.keys()) == []
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert sorted({re.sub(r"_(bucket|sum|count)$", "", name) for name in written} - shown) == []


def test_alerts_speak_of_what_is_written(written: dict[str, set[str]]) -> None:
    named = set(_NAME.findall(ALERTS.read_text(encoding="utf-8")))
    assert sorted(named - written.keys()) == []


def test_labels_are_those_that_are_written(dashboard: Any, written: dict[str, set[str]]) -> None:
    rules = re.split(r"- alert:", ALERTS.read_text(encoding="utf-8"))[1:]
    for text in [*expressions(dashboard), *(rule.partition("for:")[0].partition("expr:")[2] for rule in rules)]:
        known = set().union(*(written[name] for name in _NAME.findall(text)))
        assert set(labels(text)) <= known, text


def test_commands_that_alerts_name_are_counted_so() -> None:
    from host.command_log import name_of

    for command in re.findall(r'command="([^"]+)"', ALERTS.read_text(encoding="utf-8")):
        assert name_of(command.split()) == command


def test_the_dashboard_can_be_imported(dashboard: Any) -> None:
    """Its data source is chosen when it is looked at; nothing of the Grafana where it was made is in it."""
    assert dashboard["id"] is None
    [source] = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    asking = [*dashboard["panels"], *(one for panel in dashboard["panels"] for one in panel.get("targets", ()))]
    asking += [one for one in dashboard["templating"]["list"] if one["type"] == "query"]
    for one in asking:
        assert one["type" if "type" in one else "refId"] == "row" or one["datasource"]["uid"] == "${datasource}"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))


def test_no_two_panels_lie_on_each_other(dashboard: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@promtool.needs_promtool
def test_prometheus_takes_the_alerts() -> None:
    promtool.check_rules(ALERTS)


@promtool.needs_promtool
def test_prometheus_takes_what_the_dashboard_asks(dashboard: Any, tmp_path: Path) -> None:
    rules = [
        {"record": f"test:panel{at}", "expr": re.sub(r"\$__rate_interval", "5m", text).replace("$", "")}
        for at, text in enumerate(expressions(dashboard))
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool.check_rules(path)


# -- when alerts fire --------------------------------------------------------------------------------

AT = 'instance="h",socket="s"'
# Series of a process that serves, in a cluster in order, by the minute. The clock of the tests begins at 0.
WELL = {
    f"docker_graph_driver_up{{{AT}}}": "1x600",
    f"docker_graph_driver_written_timestamp_seconds{{{AT}}}": "0+60x600",
    f'docker_graph_driver_requests_total{{{AT},method="Get",result="ok"}}': "0+100x600",
    f'docker_graph_driver_requests_total{{{AT},method="Get",result="failed"}}': "0+1x600",
    f'docker_graph_driver_requests_total{{{AT},method="Stat",result="refused"}}': "0+500x600",
    f'docker_graph_driver_command_duration_seconds_bucket{{{AT},command="rbd device map",le="0.1"}}': "0+10x600",
    f'docker_graph_driver_command_duration_seconds_bucket{{{AT},command="rbd device map",le="10.0"}}': "0+10x600",
    f'docker_graph_driver_command_duration_seconds_bucket{{{AT},command="rbd device map",le="+Inf"}}': "0+10x600",
    f'docker_graph_driver_background_oldest_seconds{{{AT},work="removing layer"}}': "30x600",
    f'docker_graph_driver_pool_used_ratio{{{AT},pool="docker"}}': "0.5x600",
}
UP, WRITTEN, DONE, FAILED, REFUSED, QUICK, _SLOW, _ALL, OLDEST, USED = WELL


@promtool.needs_promtool
@pytest.mark.parametrize(
    ("other", "alert"),
    [
        ({}, None),
        ({UP: "1x10 0x600"}, "Down"),
        ({WRITTEN: "0+60x20 1200x600"}, "Down"),
        ({FAILED: "0+90x600"}, "RequestsFail"),
        # Five out of five, minutes apart, on a host where nothing else is asked for.
        ({DONE: "0x600", REFUSED: "0x600", FAILED: "0x380 1x5 2x5 3x3 4x3 5x600"}, None),
        ({DONE: "0x600", REFUSED: "0x600", FAILED: "0x370 1+1x600"}, "RequestsFail"),
        ({QUICK: "0+1x600"}, "ClusterSlow"),
        ({OLDEST: "0+60x600"}, "BackgroundStuck"),
        ({USED: "0.93x600"}, "PoolFull"),
        # What a process has left that is gone says nothing of now: it ended in order, or it did not.
        ({UP: "1x10 0x600", USED: "0.93x600", OLDEST: "86400x600"}, "Down"),
        ({WRITTEN: "0+60x20 1200x600", USED: "0.93x600", OLDEST: "86400x600"}, "Down"),
    ],
)
def test_an_alert_fires_when_it_shall(tmp_path: Path, other: dict[str, str], alert: str | None) -> None:
    found = promtool.firing(tmp_path, str(ALERTS), list({**WELL, **other}.items()), minutes=400)
    assert found == ({f"DockerGraphDriver{alert}"} if alert else set())


@promtool.needs_promtool
def test_each_host_tells_of_its_pool(tmp_path: Path) -> None:
    """Another cluster has a pool of that name, too: of two hosts, one of each, the one with room is not named."""
    other = [(name.replace('instance="h"', 'instance="other"'), values) for name, values in WELL.items()]
    found = promtool.firing(
        tmp_path, str(ALERTS), [*{**WELL, USED: "0.93x600"}.items(), *other], minutes=400, of="instance"
    )
    assert found == {"h"}
