"""The bounds of a request: how long it may take, for which daemon it works, and what its errors say of the cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cluster import diagnosis
from host import command, deadline
from mapped.home import Home


class Bounds:
    """The bounds of the requests to one home."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Bound a request, the `with` block; not that of an archive, which lasts as long as it has something to say."""
        with self.explaining(), self._home.bounds():
            yield

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Let an error of the `with` block, a request, say what is wrong with the cluster, if that may be the cause."""
        try:
            with self._home.daemon.asking():
                yield
        except command.CommandError as error:
            raise diagnosis.explain(self._home.pool, error) from None
        except deadline.Overdue as error:
            raise deadline.Overdue(f"{error}; {diagnosis.why(self._home.pool)}") from None
