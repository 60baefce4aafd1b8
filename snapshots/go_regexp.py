"""Regular expressions of Go, found anywhere in a text, in a time that grows with its length only.

Python's `re` goes back and tries again: `(a+)+b`, and even `.*a.*b`, may take hours in a long label, and no other
thread runs meanwhile. No list tells all patterns that do so. So a pattern is made into an automaton, as Go does. It is
in many places of the pattern at once, and remembers where each character leads (RE2's "lazy DFA").

What differs from Go's syntax: go_syntax.py.
"""

from __future__ import annotations

from snapshots.go_syntax import Assert, BadPattern, Chars, Choice, Node, Sequence, is_word, parse

# A pattern that is longer once its counts are written out is refused.
MOST_PLACES = 2000
# So many places of the pattern are remembered, for all characters that were met; then the automaton begins anew.
MOST_REMEMBERED = 200_000


def compile(pattern: str) -> Pattern:
    """Return a pattern that texts can be asked for. Raises BadPattern."""
    return Pattern(parse(pattern))


class _State:
    """The places where an automaton may be before a character, and where each character that was met leads."""

    def __init__(self, places: frozenset[int], before: str) -> None:
        self.places = places
        self.before = before
        self.next: dict[str, _State] = {}


class Pattern:
    """A pattern as an automaton. Threads may use it at the same time: they remember the same things."""

    def __init__(self, node: Node) -> None:
        # The places of the pattern: a set of characters or an assertion with the next place, or a fork into several.
        self._places: list[tuple[Chars | Assert | None, tuple[int, ...]]] = [(None, ())]
        self._begin = self._build(node, 0)
        self._found = _State(frozenset(), "")
        self._forget()

    def found_in(self, text: str) -> bool:
        """Tell whether the pattern is found anywhere in a text."""
        state = self._first
        for char in text:
            state = state.next.get(char) or self._step(state, char)
            if state is self._found:
                return True
        return (state.next.get("") or self._step(state, "")) is self._found

    def _forget(self) -> None:
        self._first = _State(frozenset((self._begin,)), "")
        self._size = 0
        self._states: dict[tuple[frozenset[int], str], _State] = {}

    def _build(self, node: Node, then: int) -> int:
        """Add the places of a part of the pattern, which is followed by the place `then`; return the first of them."""
        if isinstance(node, (Chars, Assert)):
            return self._place(node, then)
        if isinstance(node, Sequence):
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if isinstance(node, Choice):
            return self._place(None, *(self._build(branch, then) for branch in node.branches))
        if node.most < 0:
            loop = self._place(None)
            self._places[loop] = (None, (self._build(node.node, loop), then))
            then = loop
        end = then
        for _ in range(node.most - node.least):
            then = self._place(None, self._build(node.node, then), end)
        for _ in range(node.least):
            end, then = then, self._build(node.node, then)
            if then == end:
                break  # it is empty, however often
        return then

    def _place(self, what: Chars | Assert | None, *then: int) -> int:
        if len(self._places) >= MOST_PLACES:
            raise BadPattern(f"regular expression: it repeats too much: more than {MOST_PLACES} places")
        self._places.append((what, then))
        return len(self._places) - 1

    def _step(self, state: _State, char: str) -> _State:
        """Return where a character leads, "" at the end of the text, and remember it."""
        after: set[int] = set()
        seen = set(state.places)
        waiting = list(seen)
        following = self._found
        while waiting:
            place = waiting.pop()
            what, then = self._places[place]
            if place == 0:
                break
            if isinstance(what, Chars):
                if char and what.have(char):
                    after.update(then)
            elif what is None or what.holds(state.before, char):
                waiting += [one for one in then if one not in seen]
                seen.update(then)
        else:
            following = self._state(frozenset((*after, self._begin)), char)
        state.next[char] = following
        return following

    def _state(self, places: frozenset[int], before: str) -> _State:
        """Return the one state of these places. Of the character before it counts only what an assertion may ask."""
        before = "a" if is_word(before) else before if before in ("", "\n") else "."
        self._size += len(places)
        if self._size > MOST_REMEMBERED:
            self._forget()
        return self._states.setdefault((places, before), _State(places, before))
