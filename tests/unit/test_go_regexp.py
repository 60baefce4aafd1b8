"""go_regexp.py: patterns are found as Go finds them, and none takes for ever."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshots import go_regexp
from snapshots.go_syntax import BadPattern


@pytest.mark.parametrize(
    ("pattern", "texts", "others"),
    [
        ("", ("", "a"), ()),
        ("b", ("abc",), ("", "ac", "B")),
        ("^ab$", ("ab",), ("ab\n", "xab", "\nab")),
        ("(?m)^b$", ("a\nb\nc", "b"), ("ab",)),
        (r"\Ab\z", ("b",), ("b\n",)),
        (r"(?m)\Ab", ("b",), ("a\nb",)),
        ("a.b", ("axb", "a\rb", "a\U0001f600b"), ("a\nb", "ab")),
        ("(?s)a.b", ("a\nb",), ("ab",)),
        ("(?s:a.)b.c", ("a\nbxc",), ("a\nb\nc",)),
        ("[^a]", ("\n", "b"), ("a", "")),
        ("[]a]", ("]", "a"), ("[",)),
        (r"[\d-z]", ("5", "-", "z"), ("y",)),
        (r"[^\D5]", ("4",), ("5", "x")),
        ("[[:^alpha:]x]", ("1", "x"), ("y",)),
        (r"\w\W", ("a-", "_é"), ("ab", "éé")),
        (r"\s", ("\t", "\n", "\f", "\r", " "), ("\v", "\u00a0")),
        ("[[:space:]]", ("\v",), ("\u00a0",)),
        (r"\d", ("5",), ("\u0665",)),
        (r"\bb", ("a b", "b", "éb"), ("ab",)),
        (r"\Bb", ("ab",), ("a b", "b")),
        (r"\pL", ("é", "a", "ж"), ("1", "")),
        (r"\p{Lu}", ("A", "Ж"), ("a",)),
        (r"^\PL$", ("1",), ("a",)),
        ("(?i)straße", ("STRAßE", "Straße"), ("STRASSE",)),
        ("(?i)[a-c]x", ("BX", "bX"), ("dx",)),
        ("(?i)[^a]", ("b",), ("A", "a")),
        ("(?i)[s-z]", (), ("ß",)),
        ("a(?i)b(?-i)c", ("aBc", "abc"), ("ABc", "aBC")),
        ("a(?i:b)c", ("aBc",), ("aBC",)),
        ("a(b(?i)c)d", ("abCd",), ("abCD",)),
        (r"\Qa.b\E+c", ("a.bbc",), ("axbc",)),
        (r"\Q(", ("(",), ()),
        (r"\x41\x{42}\103", ("ABC",), ()),
        ("^a{2,3}$", ("aa", "aaa"), ("a", "aaaa")),
        ("^a{2,}$", ("aa", "aaaaa"), ("a",)),
        ("^a{2}$", ("aa",), ("a", "aaa")),
        ("^a{,2}$", ("a{,2}",), ("aa",)),
        ("^a{0}$", ("",), ("a",)),
        ("^(a|bc)*?d??$", ("", "abcad", "bc"), ("b", "dd")),
        ("^(|a)+$", ("", "aaa"), ("b",)),
        ("^(?P<n>a+)(?<m>b)$", ("aab",), ("b",)),
        ("(?U)a+", ("a",), ("b",)),
        ("^(^a|b$)$", ("a", "b"), ("ab",)),
    ],
)
def test_what_is_found(pattern: str, texts: tuple[str, ...], others: tuple[str, ...]) -> None:
    compiled = go_regexp.compile(pattern)
    assert [text for text in texts if not compiled.found_in(text)] == []
    assert [text for text in others if compiled.found_in(text)] == []


# Of these, Python's `re` and Go's syntax mean the same, with re.ASCII.
ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\w", r"\W", r"\b", r"\B", "^", r"\A", "", r"\n", "(?:)", "(?i:A)"]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda below: st.one_of(
        st.lists(below, max_size=4).map("".join),
        st.lists(below, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(below, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])).map(
            lambda it: f"(?:{it[0]}){it[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.lists(st.text("ab \n", max_size=8), max_size=5))
def test_it_finds_what_python_finds(pattern: str, texts: list[str]) -> None:
    compiled, other = go_regexp.compile(pattern), re.compile(pattern, re.ASCII)
    for text in texts:
        if text == "" and r"\B" in pattern:
            continue  # before version 3.14, Python's \B is not found in an empty text
        assert compiled.found_in(text) == (other.search(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "(a*)*b", "a?" * 200 + "a" * 200 + "b", ".*a.*a.*a.*b", "(.*)*b", "(a|aa)+$b", "([a-z]+)*1"],
)
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    """A label has 4096 bytes at the most (containerd, labels/validate.go)."""
    compiled, begin = go_regexp.compile(pattern), time.monotonic()
    assert not compiled.found_in("a" * 4096)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("pattern", ["(a{100}){100}", "((((a{9}){9}){9}){9})", "[a-z]{1000}" * 3])
def test_a_pattern_that_grows_too_much_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern, match="more than 2000 places"):
        go_regexp.compile(pattern)


def test_nothing_may_be_repeated_often() -> None:
    assert go_regexp.compile("((((){1000}){1000}){1000}){1000}a").found_in("a")


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_regexp, "MOST_REMEMBERED", 50)
    compiled = go_regexp.compile("^(a|b)*a(a|b){6}$")
    for number in range(200):
        text = f"{number:08b}".replace("0", "a").replace("1", "b")
        assert compiled.found_in(text) == (text[-7] == "a")
        assert compiled._size <= 50 + len(compiled._places)


def test_threads_may_share_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_regexp, "MOST_REMEMBERED", 100)
    compiled, together = go_regexp.compile("^(a|b)*a(a|b){6}$"), threading.Barrier(8)

    def work(_: int) -> bool:
        together.wait(20)
        texts = (f"{number:09b}".replace("0", "a").replace("1", "b") for number in range(512))
        return all(compiled.found_in(text) == (text[-7] == "a") for text in texts)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
