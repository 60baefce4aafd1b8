"""The bounds of a request: how long it may take, which daemon it works for, and what its errors say of the cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cluster import diagnosis
from host import command, deadline
from mapped.home import Home


class Bounds:
    """The bounds of the requests to one home. It adds words to their errors; Home decides the deadline."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Bound a request, which is the `with` block, in time and in words.

        An archive has no deadline as long as it makes progress: its request is bound by `explaining` alone.
        """
        with self.explaining(), self._home.bounds():
            yield

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Let an error of a request, the `with` block, say what is wrong with the cluster, if that may be the cause.

        A command.CommandError or deadline.Overdue is raised again, with these words added.
        """
        try:
            with self._home.daemon.asking():
                yield
        except command.CommandError as error:
            raise diagnosis.explain(self._home.pool, error) from None
        except deadline.Overdue as error:
            raise deadline.Overdue(f"{error}; {diagnosis.why(self._home.pool)}") from None
