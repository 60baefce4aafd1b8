"""What Prometheus itself says of metrics and rules: its own parser, and its own checker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import needs

# Debian has it in the package `prometheus` (tests/packages).
PROMTOOL = shutil.which("promtool")
needs_promtool = needs.needs(PROMTOOL is not None, "promtool")


def check_metrics(text: str) -> None:
    """Let it check a text that is to be scraped."""
    _run(["check", "metrics"], text)


def check_rules(path: str | os.PathLike[str]) -> None:
    """Let it check a file of rules."""
    _run(["check", "rules", os.fspath(path)])


def firing(
    directory: Path, rules: str, series: Sequence[tuple[str, str]], *, minutes: int, of: str = "alertname"
) -> set[str]:
    """The alerts of a file of rules that fire after so many minutes of these series, in promtool's short notation.

    Of each this label is returned.
    """
    given = [{"series": name, "values": values} for name, values in series]
    # It tells what fires only where nothing was expected.
    asked = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{minutes}m", "exp_samples": []}
    test: dict[str, Any] = {"interval": "1m", "input_series": given, "promql_expr_test": [asked]}
    path = directory / "test.yml"
    # YAML takes JSON.
    path.write_text(json.dumps({"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]}), encoding="utf-8")
    done = _promtool(["test", "rules", str(path)])
    found = set(re.findall(rf'{of}="(\w+)"', done.stdout + done.stderr))
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return found


def _run(words: Sequence[str], text: str = "") -> None:
    done = _promtool(words, text)
    assert done.returncode == 0, done.stdout + done.stderr


def _promtool(words: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    assert PROMTOOL
    return subprocess.run([PROMTOOL, *words], input=text, capture_output=True, text=True, timeout=60, check=False)
