"""What Docker calls images and containers, as its data root tells it, whole or not."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from docker_tree import DockerTree

from maintenance.docker_database import DockerDatabase
from overview.contents import Container, Names


def new_id() -> str:
    return uuid.uuid4().hex * 2


@pytest.fixture
def docker(tmp_path: Path) -> DockerTree:
    """A Docker that has nothing yet."""
    return DockerTree(str(tmp_path), "ceph")


def names(docker: DockerTree) -> Names:
    return DockerDatabase(docker.root, "ceph").names()


def container(docker: DockerTree, **config: Any) -> str:
    """A container with this configuration; its layer."""
    name, layer = new_id(), new_id()
    docker.container(name, layer)
    path = os.path.join(docker.containers, name, "config.v2.json")
    Path(path).write_text(json.dumps({"Driver": "ceph", **config}), encoding="utf-8")
    return layer


def test_an_image_is_called_at_its_top_layer(docker: DockerTree) -> None:
    low, high = new_id(), new_id()
    docker.layer(high, docker.layer(low))
    docker.image("shop", low, high)
    assert names(docker).images == {high: ("shop:latest",)}


def repositories(docker: DockerTree, **found: object) -> None:
    Path(docker.names).write_text(json.dumps({"Repositories": found}), encoding="utf-8")


def test_all_tags_of_an_image_and_no_digest_beside_them(docker: DockerTree) -> None:
    docker.layer(layer := new_id())
    image = f"sha256:{docker.image('shop', layer)}"
    repositories(docker, shop={"shop:1": image, "shop:2": image, "shop@sha256:0": image}, other="damaged")
    assert names(docker).images == {layer: ("shop:1", "shop:2")}
    repositories(docker, shop={"shop@sha256:0": image})
    assert names(docker).images == {layer: ("shop@sha256:0",)}


def test_an_image_without_a_name_is_called_by_its_id(docker: DockerTree) -> None:
    docker.layer(layer := new_id())
    image = docker.image("shop", layer)
    os.unlink(docker.names)
    assert names(docker).images == {layer: (f"image {image[:12]}",)}


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"Running": True, "StartedAt": "2026-01-01T00:00:00Z"}, "running"),
        ({"Running": True, "Paused": True}, "paused"),
        ({"Running": True, "Restarting": True}, "restarting"),
        ({"Dead": True}, "dead"),
        ({"Running": False, "StartedAt": "0001-01-01T00:00:00Z"}, "created"),
        ({"Running": False, "StartedAt": "2026-01-01T00:00:00Z"}, "stopped"),
        (None, "unknown"),
        ("running", "unknown"),
    ],
)
def test_the_state_of_a_container(docker: DockerTree, state: object, word: str) -> None:
    layer = container(docker, Name="/web", State=state)
    assert names(docker).containers == {layer: Container("web", word)}


def test_a_container_that_is_gone_has_a_record_still(docker: DockerTree) -> None:
    docker.container(name := new_id(), layer := new_id())
    docker.removed(name)
    assert names(docker).containers == {layer: Container(name[:12], "gone")}


def test_what_is_damaged_has_no_name_and_is_no_failure(docker: DockerTree) -> None:
    docker.layer(whole := new_id())
    docker.image("whole", whole)
    names_of = Path(docker.names).read_text(encoding="utf-8")
    Path(docker.images, new_id()).write_text("{", encoding="ascii")
    Path(docker.images, new_id()).write_text("{}", encoding="ascii")
    layer = container(docker)
    [record] = os.listdir(docker.containers)
    Path(docker.containers, record, "config.v2.json").write_text("[", encoding="ascii")
    assert names(docker) == Names({whole: ("whole:latest",)}, {layer: Container(record[:12], "gone")})
    for damaged in ("", "[]", '{"Repositories": 3}', names_of[:-3]):
        Path(docker.names).write_text(damaged, encoding="utf-8")
        assert whole in names(docker).images


def test_names_cannot_command_a_terminal(docker: DockerTree) -> None:
    layer = container(docker, Name="/\033[1m", State={"Running": True})
    assert names(docker).containers[layer].name == "\\x1b[1m"


def test_where_there_is_no_docker_it_is_said(tmp_path: Path) -> None:
    found = DockerDatabase(str(tmp_path / "none"), "ceph").names()
    assert (found.images, found.containers) == ({}, {})
    assert found.missing.startswith(f"{tmp_path}/none/image/ceph/layerdb does not exist")


def test_where_it_cannot_be_read_it_is_said(docker: DockerTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refused)
    assert "Permission denied" in names(docker).missing


def test_what_goes_while_it_is_read_has_no_name(docker: DockerTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker removes images and containers meanwhile."""
    docker.layer(layer := new_id())
    docker.image("shop", layer)
    container(docker, Name="/web")
    really = os.listdir

    def listed(path: str) -> list[str]:
        found = really(path)
        for name in found:
            there = os.path.join(path, name)
            shutil.rmtree(there) if os.path.isdir(there) else os.unlink(there)
        return found

    monkeypatch.setattr(os, "listdir", listed)
    assert names(docker) == Names()
