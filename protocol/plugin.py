"""The graph driver plugin: what each protocol call carries, and the driver behind it.

A call takes a JSON object and returns one (moby, daemon/graphdriver/proxy.go). Two calls carry an archive: `diff` and
`apply_diff`. Init makes the driver, and its request is kept in a file (init_state.py).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from archive import transfer
from graph.driver import Driver
from host import deadline
from host.failure import Failure
from host.locks import Gate, GateTimeout
from images import options
from protocol import init_state
from protocol.request import Request, UnknownMethod

log = logging.getLogger("plugin")

# How long a new daemon's Init waits for the requests of the former daemon.
INIT_WAIT_SECONDS = 30.0


class NotServing(Failure):
    """There is no driver that could answer a call now. The text is one line: what to do.

    It is no refusal, though Init is the caller's to send: where the kept state is lost under a dockerd that runs, all
    its calls end so until somebody restarts it, and an operator must hear of that.
    """


class Plugin:
    """Answers the calls of the protocol, from many threads. It decides which driver serves.

    `state_file` is the path of the kept Init request; `defaults` are options for an Init that does not name them.
    """

    def __init__(self, state_file: str, defaults: options.Options = options.DEFAULTS) -> None:
        self._state_file = state_file
        self._defaults = defaults
        self._driver: Driver | None = None
        self._gate = Gate()
        self._calls: dict[str, Callable[[Request], dict[str, Any] | None]] = {
            "Capabilities": lambda _: {"Capabilities": {"ReproducesExactDiffs": False}},
            "Create": self._create,
            "CreateReadWrite": self._create,
            "Remove": lambda request: self.driver.remove(_id(request)),
            "Get": lambda request: {"Dir": self.driver.get(_id(request), request.text("MountLabel"))},
            "Put": lambda request: self.driver.put(_id(request)),
            "Exists": lambda request: {"Exists": self.driver.exists(_id(request))},
            "Status": lambda _: {"Status": self.driver.status()},
            "GetMetadata": lambda request: {"Metadata": self.driver.metadata(_id(request))},
            "Cleanup": lambda _: self.driver.lifetime.cleanup(),
            "Changes": self._changes,
            "DiffSize": lambda request: {"Size": self.driver.diff_size(_id(request), request.text("Parent"))},
        }

    @property
    def driver(self) -> Driver:
        """The driver of the daemon that called Init last. Raises NotServing if none did."""
        if self._driver is None:
            raise NotServing("Init was never called, and there is no state of an earlier start: restart dockerd")
        return self._driver

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of all calls."""
        return ("Init", *self._calls, "Diff", "ApplyDiff")

    # -- calls -------------------------------------------------------------------------------

    def call(self, method: str, body: bytes) -> dict[str, Any]:
        """Answer a call that carries no archive. Raises UnknownMethod, BadRequest, NotServing; what Driver raises."""
        if method == "Init":
            return self._init(Request(method, body))
        if method not in self._calls:
            raise UnknownMethod(f"unknown method GraphDriver.{method[:80]}; known are {', '.join(self.methods)}")
        with self._inside(), self._request():
            return self._calls[method](Request(method, body)) or {}

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Be at work with the driver in the `with` block. First wait while an Init makes another. Raises NotServing."""
        # An Init waits for other requests, and for work in the background. Then it has the time of any other request.
        timeout = self._driver.lifetime.timeout if self._driver else self._defaults.timeout
        seconds = INIT_WAIT_SECONDS + 2 * timeout + _pause_seconds(timeout)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._gate.shared(seconds))
            except GateTimeout:
                raise NotServing(f"a daemon's Init has been at work for {seconds:g} s; try again") from None
            yield

    def _request(self) -> contextlib.AbstractContextManager[None]:
        """Return the driver's bounds of a call. Without a driver there are none: some calls need no driver."""
        return self._driver.bounds.request() if self._driver else contextlib.nullcontext()

    def diff(self, body: bytes) -> Generator[bytes, None, None]:
        """Yield the archive of a Diff call. Close it to end early.

        Raises BadRequest, NotServing, and what Driver.diff raises.
        """
        request = Request("Diff", body)
        with self._inside(), self.driver.bounds.explaining():
            yield from self.driver.diff(_id(request), request.text("Parent"))

    def apply_diff(self, layer: str, stream: transfer.Readable) -> dict[str, Any]:
        """Lay an archive down in a layer. Raises NotServing, and what Driver.apply_diff raises."""
        with self._inside(), self.driver.bounds.explaining():
            return {"Size": self.driver.apply_diff(layer, stream)}

    def abandon(self, layer: str) -> None:
        """Remove a layer whose archive was cut off by its client. Raises NotServing, and what Driver.remove raises."""
        log.warning("removing layer %s: its archive was cut off", layer)
        with self._inside(), self._request():
            self.driver.remove(layer)

    def _create(self, request: Request) -> None:
        self.driver.create(_id(request), request.text("Parent"), request.pairs("StorageOpt"))

    def _changes(self, request: Request) -> dict[str, Any]:
        found = self.driver.changes(_id(request), request.text("Parent"))
        # JSON is text. Bytes that are no UTF-8 become U+FFFD, as in Go's encoder.
        return {"Changes": [{"Path": path.decode("utf-8", "replace"), "Kind": int(kind)} for path, kind in found]}

    # -- Init and its state ------------------------------------------------------------------

    def _init(self, request: Request) -> dict[str, Any]:
        driver = Driver(*init_state.settings(request, self._defaults))
        try:
            # The claim may wait. So it comes before the gate: other requests go on meanwhile.
            driver.lifetime.claim()
            with self._gate.alone(INIT_WAIT_SECONDS), driver.bounds.request():
                driver.lifetime.prepare()
                self._take_over(driver, request)
        except GateTimeout:
            raise NotServing(f"Init: requests of the former daemon still run after {INIT_WAIT_SECONDS:g} s") from None
        finally:
            if self._driver is not driver:
                driver.lifetime.end()
        return {}

    def _take_over(self, driver: Driver, request: Request) -> None:
        """Let a driver that is ready replace the former driver. If that fails, the former driver goes on as before."""
        former = self._driver.lifetime if self._driver else None
        if former:
            former.pause(_pause_seconds(former.timeout))
        try:
            driver.lifetime.learn()
            init_state.save(self._state_file, request)
            driver.lifetime.settle()
        except BaseException:
            if former:
                former.resume()
            raise
        self._driver = driver
        if former:
            former.end()
        driver.lifetime.start()

    def restore(self) -> None:
        """Go on where an earlier life of this process ended. Do nothing without its state file.

        The plugin must serve, and say what is wrong, also when Ceph is away. So the cluster is asked for nothing. Only
        the file systems of mounted layers are read, for LEARN_SECONDS each (from_before.py). If the state file is
        damaged, or from another version, the plugin serves all the same: the next Init writes the file anew.

        Raises command.CommandError if `rbd` does not tell what this host has mapped, OSError.
        """
        try:
            settings = init_state.read_kept(self._state_file, self._defaults)
        except FileNotFoundError:
            return
        except init_state.NoUse as error:
            log.error("%s", error)
            return
        driver = Driver(*settings)
        driver.lifetime.learn()
        driver.lifetime.start()
        self._driver = driver
        log.info("took over the layers below %s from before", settings.home)

    def check(self) -> None:
        """Do what Lifetime.check does, and raise what it raises. Before an Init this goes by the defaults."""
        driver = self._driver or Driver("/nonexistent", self._defaults, transfer.IdMaps())
        driver.lifetime.check()

    def fill_figures(self, serving: bool) -> None:
        """Do what Figures.fill does. Before an Init there is nothing."""
        if self._driver:
            self._driver.figures.fill(serving)

    def drain(self, timeout: float) -> bool:
        """Wait for running requests and empty the trash, for up to `timeout` seconds. Tell whether all was done."""
        until = time.monotonic() + timeout
        try:
            with self._gate.alone(timeout):
                if self._driver:
                    return self._driver.lifetime.drain(max(0.0, until - time.monotonic()))
        except GateTimeout:
            return False
        return True


def _pause_seconds(timeout: float) -> float:
    """Return how many seconds a driver's work in the background may take to end, even if a layer hangs."""
    return max(INIT_WAIT_SECONDS, timeout + 2 * deadline.GRACE_SECONDS)


def _id(request: Request) -> str:
    return request.text("ID", needed=True)
