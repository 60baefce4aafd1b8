"""The bsdtar processes of an archive, seen from the server: how they fail, and that none is left."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from unit.archives import (
    MANY,
    apply,
    at_once,
    children,
    file,
    hardlink,
    layer,
    needs_root,
    program,
)

from archive import bsdtar, transfer
from host import environment

pytestmark = [needs_root, pytest.mark.usefixtures("at_once")]
__all__ = ["at_once", "layer", "program"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("cat >/dev/null; exit 3", "bsdtar ended with status 3"),
        ("exit 3", "bsdtar ended with status 3"),
        ("exit 0", "bsdtar ended before the archive did"),
        ("cat >/dev/null; kill -KILL $$", "bsdtar was ended by SIGKILL"),
        ("cat >/dev/null; echo some words >&2; exit 0", "bsdtar: some words"),
        ("printf 'a\\033[2J\\377b\\nc\\n' >&2; exec sleep 100", r"bsdtar: a?[2J\xffb"),
        ("exec >&-; exec 2>&-; cat >/dev/null; exit 4", "bsdtar ended with status 4"),
    ],
)
def test_a_failing_bsdtar_is_an_error(program: Path, layer: Path, script: str, message: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(transfer.ArchiveError) as caught:
        apply(layer, *MANY * 2)
    assert str(caught.value) == message
    assert children() == []


def test_a_bsdtar_that_does_not_start(program: Path, layer: Path) -> None:
    program.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(transfer.ArchiveError, match=f"cannot start {program}: "):
        apply(layer, *MANY)


def test_an_error_of_ours_ends_bsdtar(program: Path, layer: Path) -> None:
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    with pytest.raises(transfer.ArchiveError, match="'x': "):
        apply(layer, file(b"a"), hardlink(b"x", b"nowhere"))
    assert children() == []


def test_a_bsdtar_that_is_just_being_started_is_ended_too(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    asked, ending, start = threading.Event(), threading.Event(), subprocess.Popen
    pipe = os.pipe()

    def slowly(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        asked.set()
        assert ending.wait(60)
        return start(*arguments, **more)

    with bsdtar.Bsdtar(str(program), str(tmp_path)) as beside:
        control, join = beside.control.dup(), beside._thread.join

        def join_later(seconds: float) -> None:
            ending.set()
            join(seconds)

        beside.serve()
        monkeypatch.setattr(beside._thread, "join", join_later)
        monkeypatch.setattr(subprocess, "Popen", slowly)
        socket.send_fds(control, [b"+"], [pipe[0]])
        assert asked.wait(60)
        control.close()
    assert children() == []
    os.close(pipe[0])
    os.close(pipe[1])


def test_without_bsdtar(layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert transfer.extractor().startswith("/")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(environment, "PLACES", ())
    assert transfer.extractor() == "Python alone: bsdtar is not installed"
    assert apply(layer, *MANY) == 900_000
    assert (layer / "d/f299").stat().st_size == 3000
