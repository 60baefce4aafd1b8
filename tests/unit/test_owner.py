"""owner.py and claim.py: who is who, and what it takes to be two."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import owner
from cluster.owner import Owner

M, N = "1" * 32, "2" * 32


@pytest.mark.parametrize(
    "text", ["vm /home", f"vm/{M} /home", f"vm/{M} /home with/spaces", "a/b /home", "vm /home/" + M, " "]
)
def test_what_is_written_is_read(text: str) -> None:
    assert str(Owner.parse(text)) == text


def test_the_parts() -> None:
    assert Owner.parse(f"vm/{M} /home") == Owner("vm", M, "/home")
    assert Owner.parse("vm /home") == Owner("vm", "", "/home")
    assert Owner.parse("") == Owner("", "", "")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("vm /home", "vm /home", True),
        ("vm /home", "other /home", False),
        # By an older version, or in a container.
        ("vm /home", f"vm/{M} /home", True),
        # Two machines with one name; a machine with a new name.
        (f"vm/{N} /home", f"vm/{M} /home", False),
        (f"new/{M} /home", f"vm/{M} /home", True),
        (f"new/{M} /home", "vm /home", False),
    ],
)
def test_the_machine_decides_if_both_tell_it(one: str, other: str, same: bool) -> None:
    first, second = Owner.parse(one), Owner.parse(other)
    assert first.is_same(second) is second.is_same(first) is same
    assert not first.is_same(Owner(second.host, second.machine, "/another"))
    assert (first.object("p") == second.object("p")) is (one == other)


@pytest.mark.parametrize(
    ("written", "machine"),
    [(f"{M}\n", M), (M, M), ("uninitialized\n", ""), ("", ""), ("0" * 32, ""), (f"{M}1", ""), ("\xff", ""), (None, "")],
)
def test_a_machine_id_that_is_none(
    written: str | None, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written is not None:
        (tmp_path / "machine-id").write_text(written, encoding="latin-1")
    monkeypatch.setattr(owner, "MACHINE_FILE", str(tmp_path / "machine-id"))
    monkeypatch.setattr("socket.gethostname", lambda: "vm")
    assert str(Owner.here("/home")) == (f"vm/{machine} /home" if machine else "vm /home")


def test_a_boot_has_an_id() -> None:
    assert len(owner.boot_id()) == 36


@pytest.mark.parametrize(
    ("reader", "named"), [("vm", f"vm/{M}"), (f"vm/{N}", f"vm/{M}"), (f"vm/{M}", "vm"), (f"other/{N}", "vm")]
)
def test_a_host_is_named_so_that_it_is_not_the_readers(reader: str, named: str) -> None:
    assert Owner.parse(f"vm/{M} /home").seen_from(Owner.parse(f"{reader} /home")) == named
