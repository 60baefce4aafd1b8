"""What an operator gets from check and gc: lines, JSON and exit codes. The pool is a fake, the Docker a directory."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.fakes import failed, recorded
from unit.inspected import HOUR, Host, new_id
from unit.told_progress import ToldProgress

import rbdcli
from host.subcommands import named
from maintenance import commands, inspection
from snapshots.store import FILE, Store
from snapshotter import settings

Run = Callable[..., int]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a Docker that knows nothing."""
    return Host(tmp_path)


def typed(name: str, *words: str) -> int:
    """Run a command with these words; its exit code."""
    subcommand = named(name)
    assert subcommand
    return subcommand.main(words)


@pytest.fixture
def run(host: Host, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command for its home; its exit code."""
    monkeypatch.setattr(inspection, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(commands, "pool_of", lambda options: host.pool.as_pool())

    def main(*words: str) -> int:
        socket = str(host.directory / "no.sock")
        return typed(words[0], "--socket", socket, "--home", host.home, *words[1:])

    return main


def test_nothing_is_found(run: Run, capsys: Said) -> None:
    assert run("check") == run("gc") == run("gc", "--yes") == commands.NOTHING
    assert capsys.readouterr() == ("", "")


def test_what_is_dead_is_told_and_goes_when_it_is_wished(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image(age=26 * HOUR + 60)
    assert run("check") == commands.FOUND
    assert capsys.readouterr().out.startswith(f"orphan-image {layer} age 1d2h size 0: ")
    for words in ((), ("--dry-run",)):
        assert run("gc", *words) == commands.FOUND
        assert capsys.readouterr().out.startswith(f"would remove: orphan-image {layer} ")
    assert len(host.pool.images) == 1
    assert run("gc", "--yes") == commands.NOTHING
    assert capsys.readouterr().out.startswith(f"removing: orphan-image {layer} ")
    assert host.pool.images == {}


def test_no_name_in_the_pool_commands_a_terminal(run: Run, host: Host, capsys: Said) -> None:
    host.image("\x1b[2J")
    assert run("check", "--all") == commands.FOUND
    said = capsys.readouterr().out
    assert "orphan-image \\x1b[2J age" in said
    assert "\x1b" not in said


def test_what_is_young_is_shown_when_it_is_wished_and_is_no_finding(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image(age=60)
    assert run("check") == commands.NOTHING
    assert capsys.readouterr().out == ""
    assert run("check", "--all") == commands.NOTHING
    assert layer in capsys.readouterr().out
    assert run("check", "--min-age", "0") == commands.FOUND


def test_what_cannot_be_removed_is_told_and_stays(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image()
    host.pool.fails["remove"] = [failed(rbdcli.RbdError, 5, "Input/output error")] * 3
    assert run("gc", "--yes", "--json") == commands.FOUND
    [told] = json.loads(capsys.readouterr().out)["dead"]
    assert (told["id"], told["removed"], "Input/output error" in told["reason"]) == (layer, False, True)
    assert len(host.pool.images) == 1


def test_json_says_the_same(run: Run, host: Host, capsys: Said) -> None:
    layer = host.image()
    assert run("check", "--json") == commands.FOUND
    assert [finding["id"] for finding in json.loads(capsys.readouterr().out)["findings"]] == [layer]
    assert run("gc", "--json") == commands.FOUND
    said = json.loads(capsys.readouterr().out)
    assert (said["dry_run"], [finding["id"] for finding in said["dead"]]) == (True, [layer])


def test_a_terminal_is_told_how_far_it_is(run: Run, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[ToldProgress] = []

    def progress(name: str) -> ToldProgress:
        shown.append(ToldProgress(name))
        return shown[-1]

    monkeypatch.setattr(commands, "Progress", progress)
    for _ in range(3):
        host.image()
    assert run("check") == commands.FOUND
    assert ("looking at images that have no name here", 3, 0) in shown[-1].told
    assert shown[-1].steps == {"looking at images that have no name here": 3}
    assert run("gc", "--yes") == commands.NOTHING
    assert ("removing what is dead", 3, 0) in shown[-1].told
    assert shown[-1].steps == {"removing what is dead": 3}


def test_an_answer_of_another_shape_is_one_line(run: Run, host: Host, capsys: Said) -> None:
    host.pool.fails["list"] = [TypeError("'NoneType' object\x1b[2J")]
    assert run("check") == commands.FAILED
    assert capsys.readouterr().err == "check: TypeError: 'NoneType' object\\x1b[2J\n"


def test_a_cluster_that_does_not_answer_is_one_line(run: Run, host: Host, capsys: Said) -> None:
    host.pool.fails["list"] = [failed(rbdcli.RbdError, 110, "it failed\nin two lines")]
    assert run("check") == commands.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("check: ")
    assert said.err.count("\n") == 1


def test_no_driver_of_this_socket(tmp_path: Path, capsys: Said) -> None:
    assert typed("check", "--socket", str(tmp_path / "no.sock")) == commands.FAILED
    assert f"{tmp_path}/no.sock.state does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "inf", "nan", "soon"])
def test_an_age_that_is_none(run: Run, capsys: Said, seconds: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("check", "--min-age", seconds)
    assert ended.value.code == commands.FAILED
    assert "--min-age" in capsys.readouterr().err


# -- of a snapshotter ----------------------------------------------------------------------------------


@pytest.fixture
def root(host: Host) -> Iterator[str]:
    """The root of a snapshotter that was started with an option, and has no snapshots."""
    settings.save(host.home, ["ceph.basesize=20G"])
    store = Store(host.home)
    store.restore([])
    yield host.home
    store.close()


@pytest.fixture
def operate(run: Run) -> Run:
    """Run a command with these words, and no home."""
    return typed


def test_a_snapshotter_is_found_by_its_root(operate: Run, host: Host, root: str, capsys: Said) -> None:
    assert operate("check", "--root", root) == operate("gc", "--yes", "--root", root) == commands.NOTHING
    layer = host.image("0123456789abcdefghij")
    assert operate("check", "--root", root) == commands.FOUND
    assert "the snapshotter knows no such layer; gc removes it" in capsys.readouterr().out
    assert operate("gc", "--yes", "--root", root) == commands.NOTHING
    assert capsys.readouterr().out.startswith(f"removing: orphan-image {layer} ")
    assert host.pool.images == {}


@pytest.mark.parametrize("command", [["check"], ["gc", "--yes"], ["takeover", "--host", "dead"]])
@pytest.mark.parametrize("what", ["no settings", "damaged settings", "another root", "no database", "no option"])
def test_a_root_that_cannot_be_read_is_one_line(
    operate: Run, host: Host, root: str, capsys: Said, command: list[str], what: str
) -> None:
    host.image("0123456789abcdefghij")
    place = Path(root)
    path = place / settings.FILE
    if what == "no settings":
        path.unlink()
    elif what == "damaged settings":
        path.write_bytes(path.read_bytes()[:20])
    elif what == "another root":
        path.write_text(path.read_text(encoding="utf-8").replace(root, "/elsewhere"), encoding="utf-8")
    elif what == "no option":
        settings.save(root, ["ceph.nothing=1"])
    else:
        (place / FILE).unlink()
    assert operate(*command, "--root", root) == commands.FAILED
    said = capsys.readouterr()
    words = {"another root": "--root /elsewhere", "no option": "ceph.nothing"}.get(what, f"{root}/")
    assert (said.out, said.err.count("\n"), words in said.err) == ("", 1, True), said.err
    assert len(host.pool.images) == 1


@pytest.mark.parametrize("word", ["--socket", "--state", "--home", "--data-root"])
def test_a_root_is_no_driver_of_docker_s(operate: Run, root: str, capsys: Said, word: str) -> None:
    assert operate("check", "--root", root, word, "/somewhere") == commands.FAILED
    assert f"{word} is of a driver for Docker" in capsys.readouterr().err


def test_the_home_of_a_host_that_died_is_none_of_ours(operate: Run, host: Host, root: str, capsys: Said) -> None:
    for home in ("/its root", "/its docker"):
        host.pool.add(f"{host.layers.image(home[5:] * 5)}", metadata=recorded(f"dead {home}"))
    assert operate("takeover", "--root", root, "--host", "dead", "--home", "/its root") == commands.NOTHING
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 layers of dead are now of ")
    assert operate("takeover", "--root", root, "--host", "dead", "--own-home", "/x") == commands.FAILED
    assert "--own-home is of a driver for Docker" in capsys.readouterr().err


def test_a_takeover_for_a_snapshotter_says_which_layers_nobody_can_use(
    operate: Run, host: Host, root: str, capsys: Said
) -> None:
    layer = "0123456789abcdefghij"
    host.pool.add(host.layers.image(layer), metadata=recorded("dead /root"), created=0.0)
    assert operate("takeover", "--root", root, "--host", "dead") == commands.NOTHING
    assert "1 of them are of no snapshot here" in capsys.readouterr().out
    assert operate("gc", "--yes", "--root", root) == commands.NOTHING
    assert host.pool.images == {}


# -- tree ----------------------------------------------------------------------------------------------


def shown(host: Host) -> str:
    """A container on an image of Docker's; the image's layer."""
    layer = host.image()
    host.docker.image("busybox", layer)
    host.docker.container(new_id(), container := host.image(parents=[layer]), host.docker.layer(layer))
    host.image(f"{container}-init", parents=[layer])
    return layer


def test_tree_shows_what_is_there(run: Run, host: Host, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    layer = shown(host)
    assert run("tree") == commands.NOTHING
    said = capsys.readouterr()
    assert said.err == ""
    assert f"└─ layer {layer[:12]} " in said.out
    assert "\nbusybox:latest " in said.out
    assert "1 image, 1 container, 3 layers" in said.out


def test_tree_draws_it_and_tells_it_to_programs(run: Run, host: Host, tmp_path: Path, capsys: Said) -> None:
    layer = shown(host)
    host.pool.images[f"docker_image_{layer}"].used = 7 << 20
    path = tmp_path / "pool.svg"
    assert run("tree", "--json", "--svg", str(path)) == commands.NOTHING
    said = json.loads(capsys.readouterr().out)
    assert [image["names"] for image in said["images"]] == [["busybox:latest"]]
    assert "busybox:latest" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_tree_of_a_cluster_that_does_not_answer_is_one_line(
    run: Run, host: Host, tmp_path: Path, capsys: Said, words: tuple[str, ...]
) -> None:
    path = tmp_path / "pool.svg"
    host.pool.fails["list"] = [failed(rbdcli.RbdError, 110, "it failed\nin two lines")]
    assert run("tree", "--svg", str(path), *words) == commands.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tree: ")
    assert said.err.count("\n") == 1
    assert not path.exists()


def test_tree_that_cannot_write_its_picture_is_one_line(run: Run, host: Host, tmp_path: Path, capsys: Said) -> None:
    assert run("tree", "--svg", str(tmp_path / "none" / "pool.svg")) == commands.FAILED
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_tree_without_docker_says_so_and_shows_the_pool(run: Run, host: Host, capsys: Said) -> None:
    layer = shown(host)
    assert run("tree", "--data-root", str(host.directory / "none")) == commands.NOTHING
    said = capsys.readouterr().out
    assert layer[:12] in said
    assert "none/image/ceph/layerdb does not exist" in " ".join(said.split())


def test_who_reads_the_tree_may_have_seen_enough(run: Run, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(host)
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", encoding="utf-8")
    monkeypatch.setattr("sys.stdout", stream)
    assert run("tree") == commands.NOTHING
    stream.close()


def test_tree_of_a_snapshotter(host: Host, root: str, run: Run, capsys: Said) -> None:
    host.image("layer")
    assert typed("tree", "--root", root) == commands.NOTHING
    assert "layer layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("check",), ("gc",), ("gc", "--yes", "--json"), ("tree",), ("takeover", "--host", "b")]
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_with_one_line_when_it_is_interrupted(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: Said, words: tuple[str, ...], number: int, status: int
) -> None:
    def interrupted(_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(commands, "pool_of", interrupted)
    home = "--own-home" if words[0] == "takeover" else "--home"
    socket = str(host.directory / "no.sock")
    assert typed(*words, home, host.home, "--socket", socket) == status
    assert capsys.readouterr() == ("", f"{words[0]}: interrupted\n")
