"""What gc makes of what was found: in which order it goes, and what is kept after all. The pool is a fake."""

from __future__ import annotations

import pytest
from unit.inspected import PREFIX, Host, family, host, no_pause

from host import deadline
from maintenance import inspection, knowledge

pytestmark = pytest.mark.usefixtures("no_pause")
__all__ = ["host", "no_pause"]


def test_dead_layers_are_removed_children_first(host: Host) -> None:
    """A parent's image must not go before them: what it brought is theirs, too."""
    first, second, third = family(host)
    look = host.look()
    found = [finding for finding in look.findings() if finding.dead]
    assert [finding.id for finding in found] == [third, second, first]
    assert all(outcome.removed for outcome in host.collect(look, found).values())
    assert host.pool.images == {}


def test_what_is_kept_after_all_keeps_what_it_stands_on(host: Host) -> None:
    """Somebody has mapped it since it was found dead, to rescue what is in it."""
    first, second, third = family(host)
    look = host.look()
    found = [finding for finding in look.findings() if finding.dead]
    host.pool.images[f"{PREFIX}_{third}"].watchers.append("10.0.0.2:0/9")
    outcomes = host.collect(look, found)
    assert not any(outcome.removed for outcome in outcomes.values())
    assert sorted(host.pool.images) == sorted(f"{PREFIX}_{layer}" for layer in (first, second, third))


@pytest.mark.parametrize("error", [knowledge.DatabaseMissing("not mounted"), deadline.Overdue("no answer")])
def test_what_cannot_be_looked_at_any_more_keeps_nothing_from_being_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    first, second = host.image(), host.image()
    look = host.look()
    found = look.findings()
    failures = iter([error])

    def still_dead(finding: inspection.Finding) -> bool:
        for failure in failures:
            raise failure
        return True

    monkeypatch.setattr(look, "still_dead", still_dead)
    outcomes = host.collect(look, found)
    assert sorted((outcomes[layer].removed, outcomes[layer].why) for layer in (first, second)) == [
        (False, str(error)),
        (True, ""),
    ]


def test_an_orphan_that_went_by_itself_is_no_failure(host: Host) -> None:
    layer = host.image()
    look = host.look()
    [finding] = look.findings()
    host.pool.images.clear()
    assert host.collect(look, [finding])[layer].removed
