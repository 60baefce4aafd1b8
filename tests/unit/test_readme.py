"""What the documents tell their readers to type is run by a suite, as it stands there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from readme import DOCUMENTS, REPO, block, commands, every_command

# `typed 'LINE'` or `typed "LINE"` of tests/lib.bash, or `typed("LINE")` of tests/lab.py, in a suite.
_TYPED = re.compile(r"""\btyped[ (](?:'([^'\n]*)'|"([^"\n]*)")""")
# `code` within a sentence that is a command of ours to type.
_INLINE = re.compile(r"`((?:\./|python3 |systemctl )[^`\n]*)`")


def typed_by_suites() -> set[str]:
    suites = [path for kind in ("bats", "bash", "sh") for path in Path(REPO, "tests").rglob(f"*.{kind}")]
    suites += Path(REPO, "tests", "integration").glob("*.py")
    return {single or double for path in suites for single, double in _TYPED.findall(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("line", every_command())
def test_a_suite_runs_it(line: str) -> None:
    if line == "./test.sh":
        # Continuous integration is that very command.
        assert f"exec {line} " in Path(REPO, ".ci", "run").read_text(encoding="utf-8")
    else:
        assert line in typed_by_suites()


def test_no_suite_types_what_no_document_tells() -> None:
    assert typed_by_suites() <= set(every_command())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_sentence_tells_nothing_to_type_that_no_block_has(document: str) -> None:
    told = _INLINE.findall(Path(REPO, document).read_text(encoding="utf-8"))
    assert set(told) <= set(every_command())


def test_a_line_that_goes_on_is_one_and_comments_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (
        "```sh\nfirst --a \\\n    --b   # why\n# nothing\n```\n\n  ```sh\n  second\n  ```\n```json some.json\n{}\n```\n"
    )
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr("readme.REPO", os.fspath(tmp_path))
    monkeypatch.setattr("readme.DOCUMENTS", ("README.md",))
    assert commands("README.md") == ["first --a --b", "second"]
    assert block("some.json") == "{}\n"
    with pytest.raises(ValueError, match="0 blocks are named other"):
        block("other")
