"""The request of one call of the plugin protocol. It is a JSON object; its fields are read with their types.

Requests omit empty fields (moby, daemon/graphdriver/proxy.go).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from archive import transfer
from host.failure import Failure


class BadRequest(Failure):
    """A request is wrong. The text is one line: what was wrong and what was expected."""

    is_refusal = True


class UnknownMethod(Failure):
    """The protocol has no such call."""

    is_refusal = True


class Request:
    """The fields of one call. Every method that reads a field raises BadRequest if it has another type.

    So does the constructor if the body is no JSON object.
    """

    def __init__(self, method: str, body: bytes) -> None:
        self.method = method
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{method}: the body is not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise BadRequest(f"{method}: the body is not a JSON object")
        self._fields: dict[str, Any] = fields

    def text(self, name: str, *, needed: bool = False) -> str:
        """Return a string. An absent or null field is ""; if it is `needed`, it must be there and not empty."""
        value = self._fields.get(name)
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or (needed and not value):
            raise BadRequest(f"{self.method}: {name} is missing or not a string")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of strings. An absent or null field is an empty list."""
        value = self._fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadRequest(f"{self.method}: {name} is not a list of strings")
        return value

    def pairs(self, name: str) -> Mapping[str, str] | None:
        """Return an object of strings. An absent or null field is None."""
        value = self._fields.get(name)
        if value is not None and not (
            isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        ):
            raise BadRequest(f"{self.method}: {name} is not an object of strings")
        return value

    def kept(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the named fields as they came; None for an absent one. Raises nothing."""
        return {name: self._fields.get(name) for name in names}

    def id_ranges(self, name: str) -> tuple[transfer.IdRange, ...]:
        """Return one of Init's id maps. An absent or null field is an empty map."""
        keys = ("container_id", "host_id", "size")
        value = self._fields.get(name) or []
        if not isinstance(value, list) or not all(
            isinstance(item, dict) and all(type(item.get(key)) is int for key in keys) for item in value
        ):
            raise BadRequest(f"{self.method}: {name} is not a list of objects with {', '.join(keys)}")
        return tuple(transfer.IdRange(*(item[key] for key in keys)) for item in value)
