"""Which snapshots may be shared."""

from __future__ import annotations

import pytest

from snapshotter import chains
from snapshotter.id_labels import GID_LABEL, UID_LABEL

CHAIN = "sha256:" + "0123456789abcdef" * 4
OTHER = "sha256:" + "f" * 64
KEY = f"default/7/extract-753446252-d9g0 {CHAIN}"
NAME = f"default/8/{CHAIN}"
REF = {chains.REF_LABEL: CHAIN}


@pytest.mark.parametrize(
    ("key", "labels", "chain"),
    [
        (KEY, REF, CHAIN),
        (f"extract-1-a {CHAIN}", REF, CHAIN),
        (f"a/b/1/extract-1-a {CHAIN}", REF, CHAIN),
        (KEY, {}, ""),
        (KEY, {chains.REF_LABEL: OTHER}, ""),
        (KEY, {**REF, UID_LABEL: "0:1:1"}, ""),
        (NAME, REF, ""),
        ("default/9/container", REF, ""),
        (f"default/7/extract-753446252-d9g0 {CHAIN} ", REF, ""),
        (f"default/7/not-extract-753446252-d9g0 {CHAIN}", REF, ""),
        ("default/7/extract-1-a sha256:12", {chains.REF_LABEL: "sha256:12"}, ""),
        ("default/7/extract-1-a sha512:" + "0" * 64, {chains.REF_LABEL: "sha512:" + "0" * 64}, ""),
    ],
)
def test_wanted(key: str, labels: dict[str, str], chain: str) -> None:
    assert chains.chain_wanted(key, labels) == chain


@pytest.mark.parametrize(
    ("key", "name", "before", "labels", "chain"),
    [
        (KEY, NAME, REF, REF, CHAIN),
        (KEY, CHAIN, REF, REF, CHAIN),
        (KEY, f"default/8/{OTHER}", REF, REF, ""),
        (KEY, NAME, {}, REF, ""),
        (KEY, NAME, REF, {}, ""),
        (KEY, NAME, REF, {chains.REF_LABEL: OTHER}, ""),
        ("moby/1/ID-init-key", NAME, REF, REF, ""),
        # What is laid down for a user namespace has other owners than the archive.
        (KEY, NAME, {**REF, UID_LABEL: "0:1:1", GID_LABEL: "0:1:1"}, REF, ""),
        (KEY, NAME, {**REF, GID_LABEL: "wrong"}, REF, ""),
        (KEY, NAME, REF, {**REF, UID_LABEL: "0:1:1"}, ""),
    ],
)
def test_made(key: str, name: str, before: dict[str, str], labels: dict[str, str], chain: str) -> None:
    assert chains.chain_made(key, name, before, labels) == chain


def test_what_is_unpacked() -> None:
    assert chains.is_unpacked(KEY)
    assert not chains.is_unpacked(NAME)
    assert not chains.is_unpacked("default/1/extract-me")
