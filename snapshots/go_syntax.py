r"""The syntax of Go's regular expressions (RE2): a pattern is read into its parts, which go_regexp.py looks for.

What differs from Go's regexp/syntax (https://golang.org/s/re2syntax):

    \p{Greek} and other scripts   are refused; \pL, \p{Lu} and all general categories are known
    (?i)                          knows the other case of a letter; Go also knows a few letters with three forms
    limits                        MOST_CHARACTERS and MOST_GROUPS; Go has others (MOST_COUNT is Go's)

What Go refuses is refused: groups that look ahead or behind, what refers back to a group, `a**`, \Z, \C. Nobody asks
where a match stands, or which one is the shortest. So `*?` is `*`, and a group has no number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple, Union

from host.logs import printable

MOST_CHARACTERS = 1000
MOST_GROUPS = 100
MOST_COUNT = 1000

_COUNT = re.compile(r"\{([0-9]+)(,([0-9]+)?)?\}")
_FLAGS = re.compile(r"\?(?:P?<(\w+)>|([imsU]*)(?:-([imsU]+))?([:)]))", re.ASCII)
_HEX = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,8})\})")
_OCTAL = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{1,2}")
_CATEGORY = re.compile(r"([pP])(?:([A-Z])|\{(\^?)(\w+)\})")
_POSIX = re.compile(r"\[:(\^?)(\w+):\]")
_SIMPLE = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_PERL = {"d": ("09",), "s": ("\t\n", "\f\r", "  "), "w": ("09", "AZ", "__", "az")}
_NAMED = {
    "alnum": ("09", "AZ", "az"),
    "alpha": ("AZ", "az"),
    "ascii": ("\0\x7f",),
    "blank": ("\t\t", "  "),
    "cntrl": ("\0\x1f", "\x7f\x7f"),
    "digit": _PERL["d"],
    "graph": ("!~",),
    "lower": ("az",),
    "print": (" ~",),
    "punct": ("!/", ":@", "[`", "{~"),
    "space": ("\t\r", "  "),
    "upper": ("AZ",),
    "word": _PERL["w"],
    "xdigit": ("09", "AF", "af"),
}
# What `unicodedata.category` gives, and the first letters.
_CATEGORIES = re.compile("C[cfos]?|L[ulmto]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?")


class BadPattern(Exception):
    """A pattern is no regular expression of Go's, or is refused here. `str()` says what is wrong, and where."""


class Chars(NamedTuple):
    """One character out of a set. Each range is a text of its first and its last character."""

    ranges: tuple[str, ...] = ()
    sets: tuple[Chars, ...] = ()
    category: str = ""
    negated: bool = False
    fold: bool = False

    def have(self, char: str) -> bool:
        """Tell whether a character is one of them."""
        # The other case of some characters is two characters: of none in the set.
        forms = [form for form in (char, char.lower(), char.upper()) if len(form) == 1] if self.fold else (char,)
        return self.negated != any(
            any(one[0] <= form <= one[1] for one in self.ranges)
            or any(other.have(form) for other in self.sets)
            or (self.category != "" and unicodedata.category(form).startswith(self.category))
            for form in forms
        )


class Assert(NamedTuple):
    """A place between two characters, "" where the text begins or ends, that is as the function says."""

    holds: Callable[[str, str], bool]


class Sequence(NamedTuple):
    parts: tuple[Node, ...]


class Choice(NamedTuple):
    branches: tuple[Node, ...]


class Repeat(NamedTuple):
    """`most` of -1 has no end."""

    node: Node
    least: int
    most: int


Node = Union[Chars, Assert, Sequence, Choice, Repeat]


def is_word(char: str) -> bool:
    """Tell whether `\\b` takes a character for a part of a word. "" is none."""
    return char.isascii() and (char.isalnum() or char == "_")


_TEXT_BEGINS = Assert(lambda before, _: before == "")
_TEXT_ENDS = Assert(lambda _, after: after == "")
_LINE_BEGINS = Assert(lambda before, _: before in ("", "\n"))
_LINE_ENDS = Assert(lambda _, after: after in ("", "\n"))
_ESCAPED = {
    "A": _TEXT_BEGINS,
    "z": _TEXT_ENDS,
    "b": Assert(lambda before, after: is_word(before) != is_word(after)),
    "B": Assert(lambda before, after: is_word(before) == is_word(after)),
}


# What stands for another thing with a flag.
_BY_FLAG: dict[str, tuple[str, Node, Node]] = {
    ".": ("s", Chars(("\0\U0010ffff",)), Chars(("\0\t", "\v\U0010ffff"))),
    "^": ("m", _LINE_BEGINS, _TEXT_BEGINS),
    "$": ("m", _LINE_ENDS, _TEXT_ENDS),
}


def parse(pattern: str) -> Node:
    """Return the parts of a pattern. Raises BadPattern."""
    return _Parser(pattern).all()


class _Parser:
    """Reads a pattern from the left to the right (regexp/syntax/parse.go)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._flags = frozenset[str]()
        self._names: set[str] = set()
        self._depth = 0

    def all(self) -> Node:
        if len(self._text) > MOST_CHARACTERS:
            raise BadPattern(f"the pattern has {len(self._text)} characters, more than {MOST_CHARACTERS}")
        if re.search("[\ud800-\udfff]", self._text):
            raise BadPattern("the pattern is not UTF-8")
        node = self._choice()
        if self._at < len(self._text):
            raise self._wrong("unexpected )", self._at)
        return node

    def _choice(self) -> Node:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            begin = self._at
            if self._take("(?") or self._take("\\Q"):
                self._at = begin
                special = self._quoted() if self._take("\\Q") else self._flagged()
                parts += special[:-1]
                if not special:
                    continue
                node = special[-1]
            else:
                node = self._atom()
            parts.append(self._repeated(node))
        return Sequence(tuple(parts))

    def _repeated(self, node: Node) -> Node:
        begin = self._at
        count = self._repetition()
        if count is None:
            return node
        self._take("?")
        end = self._at
        if self._repetition() is not None:
            raise self._wrong(f"invalid nested repetition operator {self._text[begin : self._at]}", begin)
        self._at = end
        return Repeat(node, *count)

    def _repetition(self) -> tuple[int, int] | None:
        """Read how often something is repeated, None if nothing of that stands here: `{,2}` is text."""
        for sign, count in (("*", (0, -1)), ("+", (1, -1)), ("?", (0, 1))):
            if self._take(sign):
                return count
        found = _COUNT.match(self._text, self._at)
        if not found:
            return None
        least = int(found[1])
        most = int(found[3]) if found[3] else -1 if found[2] else least
        if max(least, most) > MOST_COUNT or 0 <= most < least:
            raise self._wrong(f"invalid repeat count {found[0]}", self._at)
        self._at = found.end()
        return least, most

    def _quoted(self) -> list[Node]:
        """Read all up to \\E as text."""
        text, end, _ = self._text[self._at :].partition("\\E")
        self._at += len(text) + len(end)
        return [self._literal(char) for char in text]

    def _flagged(self) -> list[Node]:
        """Read what begins with `(?`: a group, or flags for the rest of the group that is around."""
        begin = self._at
        found = _FLAGS.match(self._text, begin + 1)
        if not found:
            raise self._wrong("invalid or unsupported Perl syntax", begin)
        self._at = found.end()
        if found[1]:
            if found[1] in self._names:
                raise self._wrong(f"duplicate capture group name {found[1]}", begin)
            self._names.add(found[1])
            return [self._group(begin, self._flags)]
        flags = (self._flags | set(found[2])) - set(found[3] or "")
        if found[4] == ":":
            return [self._group(begin, flags)]
        self._flags = flags
        if self._repetition() is not None:
            raise self._wrong("missing argument to repetition operator", found.end())
        return []

    def _group(self, begin: int, flags: frozenset[str]) -> Node:
        """Read the rest of a group, whose head was read. Its flags end with it."""
        outer, self._flags = self._flags, flags
        self._depth += 1
        if self._depth > MOST_GROUPS:
            raise self._wrong(f"more than {MOST_GROUPS} groups in each other", begin)
        node = self._choice()
        if not self._take(")"):
            raise self._wrong("missing closing )", begin)
        self._depth -= 1
        self._flags = outer
        return node

    def _atom(self) -> Node:
        begin, char = self._at, self._text[self._at]
        if self._repetition() is not None:
            raise self._wrong("missing argument to repetition operator", begin)
        self._at += 1
        if char == "(":
            return self._group(begin, self._flags)
        if char == "[":
            return self._class(begin)
        if char in _BY_FLAG:
            flag, with_it, without = _BY_FLAG[char]
            return with_it if flag in self._flags else without
        if char != "\\":
            return self._literal(char)
        if self._text[self._at : self._at + 1] in tuple(_ESCAPED):
            self._at += 1
            return _ESCAPED[self._text[self._at - 1]]
        return self._set(begin) or self._literal(self._escaped(begin))

    def _literal(self, char: str) -> Chars:
        return self._folded((char * 2,))

    def _folded(self, ranges: tuple[str, ...], sets: tuple[Chars, ...] = (), *, negated: bool = False) -> Chars:
        fold = "i" in self._flags
        if fold:
            ranges += tuple(form * 2 for one in ranges if one[0] == one[1] for form in (one[0].lower(), one[0].upper()))
        return Chars(tuple(one for one in ranges if len(one) == 2), sets, "", negated, fold)

    def _set(self, begin: int) -> Chars | None:
        """Read the rest of an escape that stands for a set of characters: \\d or \\pL. None if it is another one."""
        name = self._text[self._at : self._at + 1]
        if name.lower() in _PERL:
            self._at += 1
            return Chars(_PERL[name.lower()], negated=name.isupper())
        if name not in ("p", "P"):
            return None
        found = _CATEGORY.match(self._text, self._at)
        if not found:
            raise self._wrong("invalid character class range", begin)
        self._at = found.end()
        category = found[2] or found[4]
        negated = (found[1] == "P") != bool(found[3])
        if category == "Any":
            return Chars(("\0\U0010ffff",), negated=negated)
        if not _CATEGORIES.fullmatch(category):
            raise self._wrong(f"unknown category {category} (scripts are not known here)", begin)
        return Chars(category=category, negated=negated, fold="i" in self._flags)

    def _escaped(self, begin: int) -> str:
        """Read the rest of an escape that stands for one character."""
        char = self._text[self._at : self._at + 1]
        number = _HEX.match(self._text, self._at) or _OCTAL.match(self._text, self._at)
        if number:
            self._at = number.end()
            code = int(number[1] or number[2], 16) if char == "x" else int(number[0], 8)
            if code > 0x10FFFF:
                raise self._wrong("invalid escape sequence", begin)
            return chr(code)
        self._at += 1
        if char in _SIMPLE:
            return _SIMPLE[char]
        if not char:
            raise self._wrong("trailing backslash at end of expression", begin)
        if not char.isascii() or char.isalnum():
            raise self._wrong(f"invalid escape sequence \\{char}", begin)
        return char

    def _class(self, begin: int) -> Chars:
        """Read the rest of a class: `[a-z_]`. A `]` that comes first is a character of it."""
        negated = self._take("^")
        ranges: list[str] = []
        sets: list[Chars] = []
        first = True
        while first or not self._take("]"):
            first = False
            if self._at >= len(self._text):
                raise self._wrong("missing closing ]", begin)
            found = self._class_set()
            if found:
                sets.append(found)
            else:
                ranges.append(self._class_range(begin))
        return self._folded(tuple(ranges), tuple(sets), negated=negated)

    def _class_set(self) -> Chars | None:
        begin = self._at
        posix = _POSIX.match(self._text, begin)
        if posix:
            if posix[2] not in _NAMED:
                raise self._wrong(f"invalid character class range {posix[0]}", begin)
            self._at = posix.end()
            return Chars(_NAMED[posix[2]], negated=bool(posix[1]))
        found = self._set(begin) if self._take("\\") else None
        if not found:
            self._at = begin
        return found

    def _class_range(self, begin: int) -> str:
        at = self._at
        first = last = self._class_char(begin)
        if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
            self._at += 1
            last = self._class_char(begin)
        if last < first:
            raise self._wrong(f"invalid character class range {self._text[at : self._at]}", at)
        return first + last

    def _class_char(self, begin: int) -> str:
        if self._at >= len(self._text):
            raise self._wrong("missing closing ]", begin)
        if self._take("\\"):
            return self._escaped(self._at - 1)
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _wrong(self, what: str, at: int) -> BadPattern:
        return BadPattern(f"regular expression: {printable(what)} (character {at + 1} of {self._text!r})")
