#!/usr/bin/env python3
"""What the documentation tells its readers to type: the lines of the blocks that are fenced as ```sh.

    tests/readme.py list             every command line, one a line
    tests/readme.py has LINE         exits 0 if a document has that command line, 1 with a word otherwise
    tests/readme.py block NAME       prints the block that is fenced as ```json NAME (```ini NAME, ...)

A line that ends with a backslash goes on in the next one; what follows a blank and a # is a comment. A suite runs such
a line by `typed` of lib.bash, which fails when no document has the line any more; test_readme.py fails when
no suite runs one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCUMENTS = ("README.md", "plugin/README.md", "ceph-key/README.md")

_BLOCK = re.compile(r"^ *```(?P<words>.+)\n(?P<text>(?:.*\n)*?) *```$", re.MULTILINE)


def blocks(document: str) -> Iterator[tuple[str, str]]:
    """Yield the fenced blocks of a document of the project: the words after the fence, and the text."""
    with open(os.path.join(REPO, document), encoding="utf-8") as source:
        for found in _BLOCK.finditer(source.read()):
            yield found["words"].strip(), found["text"]


def commands(document: str) -> list[str]:
    """Return the command lines of a document, in its order, each in one line and without its comment."""
    found = []
    for words, text in blocks(document):
        if words == "sh":
            lines = re.sub(r"\\\n\s*", "", text).splitlines()
            found += [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


def every_command() -> list[str]:
    """Return the command lines of all documents, each once."""
    return list(dict.fromkeys(line for document in DOCUMENTS for line in commands(document)))


def block(name: str) -> str:
    """Return the text of the one block of all documents whose fence ends with this name. Raises ValueError."""
    found = [text for document in DOCUMENTS for words, text in blocks(document) if words.split()[1:] == [name]]
    if len(found) != 1:
        raise ValueError(f"{len(found)} blocks are named {name}; expected one")
    return found[0]


def main(argv: Sequence[str]) -> int:
    """Do what the module's docstring says."""
    verb, *words = argv
    if verb == "list" and not words:
        print("\n".join(every_command()))
        return 0
    if verb == "block" and len(words) == 1:
        print(block(words[0]), end="")
        return 0
    if verb == "has" and len(words) == 1:
        if words[0] in every_command():
            return 0
        print(f"no document tells to type: {words[0]}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
