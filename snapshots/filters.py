"""containerd's filters of snapshots: `kind==active,labels."containerd.io/gc.root"`.

A filter is one or more selectors with commas between them, and all must hold. Of several filters, one must hold. A
selector is a field, alone (it is present) or with an operator and a value:

    selector   FIELD  or  FIELD OPERATOR VALUE
    FIELD      names with dots between them; a name is [A-Za-z0-9_]+ or "quoted as Go does"
    OPERATOR   ==  !=  ~= (a regular expression of Go's, found anywhere in the value: go_regexp.py)
    VALUE      "quoted", or all up to a blank or a comma; after ~= also /quoted/ or |quoted|

The fields are name, parent, kind (active, view, committed) and labels.KEY. KEY is the rest of the names, joined with
dots. Any other field is absent. An absent field is "" for != and ~=. Source: filters/parser.go, scanner.go,
quote.go (in 2.x below pkg/), and adaptSnapshot of snapshots/storage/metastore.go.

It differs from containerd in one thing: a regular expression that is wrong is an error here, and selects nothing there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from host.logs import printable
from snapshots import go_regexp
from snapshots.errors import InvalidArgument
from snapshots.go_syntax import BadPattern
from snapshots.info import Info, Kind

Filter = Callable[[Info], bool]

_OPERATORS = ("==", "!=", "~=")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_QUOTES = '"/|'
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
# What stands behind a backslash for a number, and how many digits at the least: scanner.go and quote.go scanDigits.
_NUMBERS = (
    re.compile(r"x([0-9A-Fa-f]{2})"),
    re.compile(r"u([0-9A-Fa-f]{4})"),
    re.compile(r"U([0-9A-Fa-f]{8})"),
    re.compile(r"([0-7]{3})"),
)


class _Selector(NamedTuple):
    path: tuple[str, ...]
    operator: str
    value: str
    pattern: go_regexp.Pattern | None

    def holds(self, info: Info) -> bool:
        found = _field(info, self.path)
        if self.operator == "":
            return found is not None
        if self.operator == "==":
            return found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        assert self.pattern is not None
        return self.pattern.found_in(found or "")


def parse(filters: Sequence[str]) -> Filter:
    """Return what tells whether one of the filters selects a snapshot. No filter, or an empty one, selects all.

    Raises InvalidArgument if one of them is wrong. Its text shows the place between `>|` and `|<`, as containerd's.
    """
    if not filters or "" in filters:
        for text in filter(None, filters):
            _Parser(text).selectors()
        return lambda info: True
    parsed = [_Parser(text).selectors() for text in filters]
    return lambda info: any(all(selector.holds(info) for selector in selectors) for selectors in parsed)


def _field(info: Info, path: tuple[str, ...]) -> str | None:
    """Return the value of a field, None if it is absent. Only labels have names below them; others ignore those."""
    if path[0] == "name":
        return info.name
    if path[0] == "parent":
        return info.parent
    if path[0] == "kind":
        return Kind(info.kind).name.lower()
    if path[0] == "labels":
        return info.labels.get(".".join(path[1:]))
    return None


class _Parser:
    """Reads one filter from the left to the right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> list[_Selector]:
        found = [self._selector()]
        while self._at < len(self._text):
            if self._next() != ",":
                raise self._wrong(self._at, f"unexpected input: {self._next()}")
            self._at += 1
            found.append(self._selector())
        return found

    def _selector(self) -> _Selector:
        path = self._path()
        if self._next() in ("", ","):
            return _Selector(path, "", "", None)
        operator = self._operator()
        self._skip_blanks()
        begin = self._at
        value = self._value(operator)
        try:
            pattern = go_regexp.compile(value) if operator == "~=" else None
        except BadPattern as error:
            raise self._wrong(begin, str(error)) from None
        return _Selector(path, operator, value, pattern)

    def _path(self) -> tuple[str, ...]:
        names = [self._name()]
        while self._next() == ".":
            self._at += 1
            names.append(self._name())
        return tuple(names)

    def _name(self) -> str:
        self._skip_blanks()
        if self._next() and self._next() in _QUOTES:
            return self._quoted(('"',))
        name = _NAME.match(self._text, self._at)
        if not name:
            raise self._wrong(self._at, "expected field or quoted")
        self._at = name.end()
        return name[0]

    def _operator(self) -> str:
        self._skip_blanks()
        begin = self._at
        if self._next() and self._next() in _QUOTES:
            # If the quote has no end, containerd says that first.
            self._quoted(_QUOTES)
        operator = _OPERATOR.match(self._text, self._at)
        if not operator or self._at > begin:
            raise self._wrong(begin, 'expected an operator ("=="|"!="|"~=")')
        if operator[0] not in _OPERATORS:
            raise self._wrong(self._at, f'unsupported operator "{operator[0]}"')
        self._at = operator.end()
        return operator[0]

    def _value(self, operator: str) -> str:
        if self._next() in ("", ",", ".", "=", "!", "~"):
            raise self._wrong(self._at, "expected value or quoted")
        if self._next() in _QUOTES:
            return self._quoted(_QUOTES if operator == "~=" else ('"',))
        begin = self._at
        # The first character is part of the value, whatever it is.
        self._at += 1
        while self._next() and _is_value(self._next()):
            self._at += 1
        return self._text[begin : self._at]

    def _quoted(self, allowed: Sequence[str]) -> str:
        """Read a quoted string. Bytes that are no text stay apart from all text, as they are none in a label."""
        begin, quote = self._at, self._next()
        value = bytearray()
        self._at += 1
        while self._next() != quote:
            if self._next() in ("", "\n"):
                raise self._wrong(begin, "quoted literal not terminated")
            value += self._character(begin, quote)
        self._at += 1
        if quote not in allowed:
            raise self._wrong(begin, "invalid quote encountered")
        return value.decode("utf-8", "surrogateescape")

    def _character(self, begin: int, quote: str) -> bytes:
        """Read one character of a quoted string. Numbers of two or three digits are bytes, longer ones characters."""
        char = self._next()
        self._at += 1
        if char != "\\":
            return char.encode("utf-8", "surrogatepass")
        char = self._next()
        if char and char in f"{quote}\\":
            self._at += 1
            return char.encode()
        if char in _SIMPLE:
            self._at += 1
            return bytes((_SIMPLE[char],))
        number = next(filter(None, (form.match(self._text, self._at) for form in _NUMBERS)), None)
        if not number:
            raise self._wrong(begin, "illegal escape sequence")
        self._at = number.end()
        code = int(number[1], 8 if char in "01234567" else 16)
        if code > (0x10FFFF if char in "uU" else 0xFF):
            raise self._wrong(begin, "unquoting failed: quote syntax error")
        if char not in "uU":
            return bytes((code,))
        return ("\ufffd" if 0xD800 <= code < 0xE000 else chr(code)).encode()

    def _next(self) -> str:
        """Return the next character, "" at the end. No filter has a null in it (scanner.go)."""
        char = self._text[self._at : self._at + 1]
        if char == "\0":
            raise self._wrong(self._at, "unexpected null")
        return char

    def _skip_blanks(self) -> None:
        while self._next() and _is_blank(self._next()):
            self._at += 1

    def _wrong(self, at: int, what: str) -> InvalidArgument:
        text = self._text
        place = f"{text[:at]} >|{text[at]}|< {text[at + 1 :]}" if at < len(text) else text
        return InvalidArgument(printable(f"filters: parse error: [{place}]: {what}"))


def _is_blank(char: str) -> bool:
    """Tell whether Go takes a character for white space. Python takes four separators for it as well."""
    return char.isspace() and not "\x1c" <= char <= "\x1f"


def _is_value(char: str) -> bool:
    """Tell whether a value without quotes goes on with a character (scanner.go isValueRune)."""
    return char != "," and not _is_blank(char) and unicodedata.category(char)[0] in "LMNPS"
