"""filters.py: what containerd's filters select, and what is said of a wrong one (pkg/filters/filter_test.go)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshots import filters
from snapshots.errors import InvalidArgument
from snapshots.info import Info, Kind


def info(name: str, labels: dict[str, str] | None = None, *, parent: str = "", kind: Kind = Kind.ACTIVE) -> Info:
    return Info(name, parent, kind, 1, 1, labels or {})


# As containerd's own test has it; but its field `other` is a label here.
CORPUS = [
    info("foo", {"foo": "true"}),
    info("bar"),
    info("foo", {"foo": "present", "more complex label": "present"}),
    info("bar", {"bar": "true"}),
    info("fooer", {'more complex label with \\ and "': "present"}),
    info("fooer", {'more complex label with \\ and ".post': "present"}),
    info("baz", {"other": "too complex, yo"}),
    info("bazo", {"other": "abc"}),
    info("compound", {"foo": "omg_asdf.asdf-qwer"}),
]
ALL = list(range(len(CORPUS)))


def selected(*wanted: str) -> list[int]:
    chosen = filters.parse(wanted)
    return [at for at, one in enumerate(CORPUS) if chosen(one)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ALL),
        ("name", ALL),
        ("labels.foo", [0, 2, 8]),
        ("labels.foo,name", [0, 2, 8]),
        ("labels.foo==true", [0]),
        ("labels.foo==omg_asdf.asdf-qwer", [8]),
        ("name==bar", [1, 3]),
        ("name!=bar", [0, 2, 4, 5, 6, 7, 8]),
        ("name==bar,labels.bar", [3]),
        ('labels.other=="too complex, yo"', [6]),
        ("labels.other~=[abc]+,name!=foo", [6, 7]),
        ("labels.other~=/[abc]+/,name!=foo", [6, 7]),
        ("labels.other~=/[abc]{1,2}/,name!=foo", [6, 7]),
        ("labels.other~=|[abc]+|,name!=foo", [6, 7]),
        ('labels.other~=/[abc]{0,1}"\\//,name!=foo', []),
        ("name==bar,labels.bar==true", [3]),
        ("name==bar,labels.bar==wrong", []),
        ('name==foo,labels."more complex label"', [2]),
        (r'labels."more complex label with \\ and \""==present', [4]),
        (r'labels."more complex label with \\ and \"".post==present', [5]),
    ],
)
def test_containerds_own_cases(text: str, wanted: list[int]) -> None:
    assert selected(text) == wanted


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("labels.|foo|==omg_asdf.asdf-qwer", "[labels. >|||< foo|==omg_asdf.asdf-qwer]: invalid quote encountered"),
        (
            r'labels.?"more complex label with \\ and \"".post==present',
            r'[labels. >|?|< "more complex label with \\ and \"".post==present]: expected field or quoted',
        ),
        ("name==foo,", "[name==foo,]: expected field or quoted"),
        ("labels.", "[labels.]: expected field or quoted"),
        ("image~=,id?=?fbaq", "[image~= >|,|< id?=?fbaq]: expected value or quoted"),
        ("labels.ns/key==value", "[labels.ns >|/|< key==value]: quoted literal not terminated"),
        ("labels.key==/value", "[labels.key== >|/|< value]: quoted literal not terminated"),
        # The rest is not in containerd's test, but follows from its parser.
        ("name=x", '[name >|=|< x]: unsupported operator "="'),
        ("name===x", '[name >|=|< ==x]: unsupported operator "==="'),
        ("name==", "[name==]: expected value or quoted"),
        ("name~=.", "[name~= >|.|< ]: expected value or quoted"),
        ("name==a ,kind", "[name==a >| |< ,kind]: unexpected input:  "),
        ("name ", '[name ]: expected an operator ("=="|"!="|"~=")'),
        ("labels.a-b==x", '[labels.a >|-|< b==x]: expected an operator ("=="|"!="|"~=")'),
        ("labels/a/==x", '[labels >|/|< a/==x]: expected an operator ("=="|"!="|"~=")'),
        ("name==x y", "[name==x >| |< y]: unexpected input:  "),
        ('name=="x"y', '[name=="x" >|y|< ]: unexpected input: y'),
        ("name==/x/", "[name== >|/|< x/]: invalid quote encountered"),
        (r'name=="\d"', r'[name== >|"|< \d"]: illegal escape sequence'),
        (r'name=="\777"', r'[name== >|"|< \777"]: unquoting failed: quote syntax error'),
        ("==x", "[ >|=|< =x]: expected field or quoted"),
        (",", "[ >|,|< ]: expected field or quoted"),
        ("name\0", r"[name >|\x00|< ]: unexpected null"),
        ("name==x\ny", r"[name==x >|\n|< y]: unexpected input: \n"),
        ("name~=a(b", "[name~= >|a|< (b]: regular expression: missing closing ) (character 2 of 'a(b')"),
    ],
)
def test_a_wrong_filter_is_refused_with_the_place(text: str, error: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filters.parse(["name==right", text])
    assert str(caught.value) == f"filters: parse error: {error}"


def test_an_empty_filter_does_not_hide_a_wrong_one() -> None:
    with pytest.raises(InvalidArgument):
        filters.parse(["", "name="])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name", "avc"),
        ("parent", "avc"),
        ("kind", "avc"),
        ("labels", ""),
        ("created", ""),
        ("labels.l", "c"),
        ('parent==""', "ac"),
        ('parent!=""', "v"),
        ("kind==view", "v"),
        ("kind!=view", "ac"),
        ("kind~=^(active|committed)$", "ac"),
        ("kind==VIEW", ""),
        ("name.whatever==a", "a"),
        ('"name"==a', "a"),
        ('labels."a.b/c"==x', "c"),
        ('labels.a."b/c"==x', "c"),
        (" name == a, kind == active", "a"),
        ("labels.l!=2", "av"),
        ("labels.l!=1", "avc"),
        ('labels.absent==""', ""),
        ('labels.absent!=""', ""),
        ("labels.absent~=^$", "avc"),
        ("labels.absent~=/./", ""),
        (r'name=="\x61"', "a"),
        (r'name=="\141"', "a"),
        (r'name=="\u0061"', "a"),
        (r'name=="\U00000061"', "a"),
        (r'name=="\xff"', ""),
        (r'name!="\ud800"', "avc"),
        ("labels.q==a==b", "v"),
    ],
)
def test_fields_of_a_snapshot(text: str, wanted: str) -> None:
    three = [
        info("a"),
        info("v", {"q": "a==b"}, parent="c", kind=Kind.VIEW),
        info("c", {"l": "2", "a.b/c": "x"}, kind=Kind.COMMITTED),
    ]
    chosen = filters.parse([text])
    assert "".join(one.name for one in three if chosen(one)) == wanted


def test_several_filters_are_alternatives() -> None:
    assert selected("name==baz", "labels.bar", "labels.foo==true") == [0, 3, 6]
    assert selected() == ALL
    assert selected("name==baz", "") == ALL


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Cc"])))
def test_any_text_can_be_quoted(text: str) -> None:
    quoted = json.dumps(text, ensure_ascii=False)
    chosen = filters.parse([f"name=={quoted},labels.{quoted}=={quoted}"])
    assert chosen(info(text, {text: text}))
    assert not chosen(info(text, {text: text + "x"}))


@given(st.lists(st.text('nam"/|\\=!~.,x1 \n\0é[](*'), max_size=3))
def test_any_filter_is_understood_or_refused(texts: list[str]) -> None:
    try:
        chosen = filters.parse(texts)
    except InvalidArgument as error:
        assert str(error).startswith("filters: parse error: ")
        assert str(error).isprintable()
    else:
        assert chosen(info("a")) in (True, False)
