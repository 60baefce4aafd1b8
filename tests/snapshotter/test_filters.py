"""List's filters, as containerd's `filters` package reads them; the suite's own ten are in test_suite.py."""

from __future__ import annotations

import itertools

import pytest
from client import INVALID_ARGUMENT, Refused, Snapshots
from services import MALFORMED_FILTER
from work import refused

# Name -> parent and labels. "p" and "q" are committed, "v" is a view, all others are active.
MADE: dict[str, tuple[str, dict[str, str]]] = {
    "p": ("", {"l": "1", "containerd.io/snapshot.ref": "sha256:aa"}),
    "q": ("p", {"l": "2", "a.b.c": "dots"}),
    "v": ("q", {"l": "1", "odd": 'a "quoted", ä'}),
    "key with blanks": ("p", {"empty": "", "long": "x" * 200}),
    "default/1/x sha256:ab": ("", {}),
}
FILTERS: dict[str, str] = {
    # Values: bare up to a blank or a comma, or quoted as Go has it.
    "name==p": "p",
    'name=="p"': "p",
    "name==`p`": "",
    'name=="key with blanks"': "key with blanks",
    'name=="default/1/x sha256:ab"': "default/1/x sha256:ab",
    r'labels.odd=="a \"quoted\", ä"': "v",
    r'labels.odd=="a \x22quoted\x22, \u00e4"': "v",
    'name==""': "",
    "labels.l==1": "p|v",
    "labels.l==1,kind==view": "v",
    "labels.l==1,labels.l==2": "",
    "kind==committed": "p|q",
    "kind!=committed": "v|key with blanks|default/1/x sha256:ab",
    "kind==nothing": "",
    # A quoted part of a field holds dots; without quotes the rest of the path is joined with them.
    'labels."containerd.io/snapshot.ref"==sha256:aa': "p",
    'labels."containerd.io/snapshot.ref"=="sha256:aa",parent==""': "p",
    "labels.a.b.c==dots": "q",
    'labels."a.b.c"==dots': "q",
    'labels.a."b.c"==dots': "q",
    # Present or not: a label that is absent is never equal, and always unequal; a parent is always there.
    "labels.l": "p|q|v",
    "labels.missing": "",
    "labels.l!=1": "q|key with blanks|default/1/x sha256:ab",
    "labels.missing==x": "",
    "labels.missing!=x": "p|q|v|key with blanks|default/1/x sha256:ab",
    'labels.missing==""': "",
    "labels": "",
    "labels.empty": "",
    "parent": "p|q|v|key with blanks|default/1/x sha256:ab",
    'parent==""': "p|default/1/x sha256:ab",
    'parent!=""': "q|v|key with blanks",
    "parent==p": "q|key with blanks",
    "name": "p|q|v|key with blanks|default/1/x sha256:ab",
    "kind": "p|q|v|key with blanks|default/1/x sha256:ab",
    # Fields that there are not.
    "size": "",
    "size==1": "",
    "size!=1": "p|q|v|key with blanks|default/1/x sha256:ab",
    "created": "",
    "name.x": "p|q|v|key with blanks|default/1/x sha256:ab",
    # Regular expressions of Go, not anchored; with quotes of their own.
    "name~=^.$": "p|q|v",
    "name~=sha256": "default/1/x sha256:ab",
    'name~="^[a-l].* "': "key with blanks|default/1/x sha256:ab",
    "name~=/^default/": "default/1/x sha256:ab",
    r"name~=/^default\/1\//": "default/1/x sha256:ab",
    "name~=|^default/1|": "default/1/x sha256:ab",
    "labels.l~=[12]": "p|q|v",
    "labels.long~=^x{200}$": "key with blanks",
    "labels.odd~=(?i)QUOTED": "v",
    # What is absent is an empty text here, and only here.
    'labels.missing~=".*"': "p|q|v|key with blanks|default/1/x sha256:ab",
    "labels.missing~=^$": "p|q|v|key with blanks|default/1/x sha256:ab",
    "labels.missing~=x": "",
    "parent~=^$": "p|default/1/x sha256:ab",
    # Blanks around a comma are no part of a value.
    "name==p, kind==committed": "p",
    "": "p|q|v|key with blanks|default/1/x sha256:ab",
}
MALFORMED = [
    "name==p,",
    ",name==p",
    "name==",
    "==p",
    "name=p",
    "name===p",
    "name<p",
    "name==p q",
    'name=="p',
    r'name=="\q"',
    'labels."l==1',
    "labels.",
    "labels..l",
    ".name",
    "name~=.*",
    "name~=/x",
    "name!p",
    "name ~ p",
    "name==p\0",
]


@pytest.fixture
def population(snapshots: Snapshots) -> Snapshots:
    for name, (parent, labels) in MADE.items():
        if name == "v":
            snapshots.view(name, parent, labels)
        elif name in ("p", "q"):
            snapshots.prepare(f"{name} key", parent)
            snapshots.commit(name, f"{name} key", labels)
        else:
            snapshots.prepare(name, parent, labels)
    return snapshots


def names(snapshots: Snapshots, *filters: str) -> set[str]:
    found = [info.name for info in snapshots.list(*filters)]
    assert len(set(found)) == len(found)
    return set(found)


def test_each_filter(population: Snapshots) -> None:
    for text, expected in FILTERS.items():
        assert names(population, text) == set(filter(None, expected.split("|"))), text


def test_several_filters_are_alternatives(population: Snapshots) -> None:
    single = {text: names(population, text) for text in ("name==p", "kind==view", "labels.l==2", "name==nobody")}
    for one, other in itertools.product(single, single):
        assert names(population, one, other) == single[one] | single[other]
    assert names(population) == set(MADE)


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_filter_is_refused(population: Snapshots, text: str) -> None:
    """Also as one of several: a filter that was not understood must not look like one that matches nothing."""
    code = MALFORMED_FILTER[population.snapshotter]
    refused(code, lambda: list(population.list(text)))
    refused(code, lambda: list(population.list("name==p", text)))


@pytest.mark.parametrize("text", ["name~=[", "name~=(?=x)", "name~=x**"])
def test_what_is_no_regular_expression_matches_nothing(population: Snapshots, text: str) -> None:
    """To containerd that is no error of the filter's syntax. An error is as good: only a match would be wrong."""
    try:
        assert names(population, text) == set()
    except Refused as error:
        assert error.code == INVALID_ARGUMENT
