"""go_syntax.py: which patterns are Go's, and what is said of others (regexp/syntax/parse_test.go)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshots.go_syntax import MOST_CHARACTERS, MOST_GROUPS, BadPattern, parse

# Those of Go's own list of what it refuses that do not depend on a limit of its own, and what its documents exclude.
REFUSED = (
    *("(", ")", "(a", "a)", "(a))", "(a|b|", "a|b|)", "(a|b|))", "(a|b", "a|b)", "(a|b))", "[a-z", "([a-z)", "[a-z)"),
    *("([a-z]))", "x{1001}", "x{9876543210}", "x{2,1}", "x{1,9876543210}", "(?P<name>a", "(?P<name>", "(?P<name"),
    *("(?P<x y>a)", "(?P<>a)", "(?<name>a", "(?<>a)", "[a-Z]", "(?i)[a-Z]", r"\Q\E*", "a{100000}", "a{100000,}", "**"),
    *(
        "a**",
        "a*+",
        r"\x",
        r"\xv",
        r"\x{}",
        r"\x{110000}",
        "(?P<n>a)(?P<n>b)",
        "(?s",
        "(?-)",
        "(?i-)",
        "(?z)",
        "*",
        "+a",
    ),
    *(
        "a|*",
        "(*)",
        "(?i)*",
        r"\1",
        r"(a)\1",
        r"\8",
        r"\Z",
        r"\C",
        r"\y",
        r"\é",
        "\\",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!a)",
    ),
    *("(?>a)", "(?#a)", "a{2}{3}", "a?+", "[", "[]", "[^]", "[a", "[[:nosuch:]]", r"\p", r"\pX", r"\p{Xx}"),
    *(r"[\p{L]", r"\p{Greek}", r"[\d-", "\ud800", r"[\Z]", "[b-a]", "[b-\n]"),
)
TAKEN = (
    *(
        "",
        "a",
        "a|",
        "|",
        "()",
        "(|a)*",
        "a{,2}",
        "a{x}",
        "{",
        "}",
        "]",
        "a{1,2}?",
        "a*?",
        "^*",
        "(?i)a(?-i)b",
        "(?ims-U:a)",
    ),
    *(
        "(?)a",
        "(?:)",
        "[]a]",
        "[^]a]",
        "[a-]",
        "[-a]",
        "[a-b-c]",
        r"[\d-z]",
        "[[:word:]]",
        "[[:^alpha:]x]",
        r"\_",
        r"\-",
    ),
    *(r"\Qa(\E+", r"\Q", r"\pL\PL\p{Lu}\p{^Lu}\P{^Lu}\p{Any}", r"\07\123\x7f\x{10FFFF}", r"\a\f\t\n\r\v", r"\A\z\b\B"),
    *("x{1000}", "(?P<n>a)(?<m>b)", "a{0}"),
)


@pytest.mark.parametrize("pattern", REFUSED)
def test_it_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern) as caught:
        parse(pattern)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", TAKEN)
def test_it_is_taken(pattern: str) -> None:
    parse(pattern)


def test_limits_are_told() -> None:
    parse("a" * MOST_CHARACTERS)
    parse("(" * MOST_GROUPS + ")" * MOST_GROUPS)
    with pytest.raises(BadPattern, match="1001 characters, more than 1000"):
        parse("a" * (MOST_CHARACTERS + 1))
    with pytest.raises(BadPattern, match="more than 100 groups"):
        parse("(" * 101 + ")" * 101)


def test_the_place_is_told() -> None:
    with pytest.raises(BadPattern, match=r"invalid nested repetition operator \*\* \(character 2 of 'a\*\*'\)"):
        parse("a**")


@given(st.text("ab()[]{}|*+?.^$\\-,1:PQEdDpLixU<>=!~\n"))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        parse(text)
    except BadPattern as error:
        assert "\n" not in str(error)
