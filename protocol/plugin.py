"""The graph driver plugin: what each protocol call carries, and the driver behind it.

A call is a JSON object in, a JSON object out (moby, daemon/graphdriver/proxy.go); the two that carry an
archive are `diff` and `apply_diff`. Requests omit empty fields. Init comes once for each start of
dockerd and not when only the plugin starts again, so it is kept in a state file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from archive import transfer
from graph.driver import Driver, DriverError
from host import deadline
from host.gate import Gate, GateTimeout
from images import options
from images.base_image import FORMAT

log = logging.getLogger("plugin")

# How long a new daemon's Init waits for the requests of the one before it.
INIT_WAIT_SECONDS = 30.0


class BadRequest(Exception):
    """The caller's fault: one line that says what was wrong and what was expected."""


class UnknownMethod(Exception):
    """No such call."""


class Request:
    """The fields of one call, read with their types. Every reader raises BadRequest."""

    def __init__(self, method: str, body: bytes) -> None:
        self.method = method
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{method}: the body is not JSON ({error})") from None
        if not isinstance(said, dict):
            raise BadRequest(f"{method}: the body is not a JSON object")
        self._fields: dict[str, Any] = said

    def text(self, name: str, *, needed: bool = False) -> str:
        """Return a string field; an absent or null one is "", unless it is needed."""
        value = self._fields.get(name)
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or (needed and not value):
            raise BadRequest(f"{self.method}: {name} is missing or not a string")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of strings; an absent or null one is empty."""
        value = self._fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadRequest(f"{self.method}: {name} is not a list of strings")
        return value

    def pairs(self, name: str) -> Mapping[str, str] | None:
        """Return an object of strings, or None."""
        value = self._fields.get(name)
        if value is not None and not (
            isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        ):
            raise BadRequest(f"{self.method}: {name} is not an object of strings")
        return value

    def kept(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the named fields as they came."""
        return {name: self._fields.get(name) for name in names}

    def id_ranges(self, name: str) -> tuple[transfer.IdRange, ...]:
        """Return one of Init's id maps."""
        keys = ("container_id", "host_id", "size")
        value = self._fields.get(name) or []
        if not isinstance(value, list) or not all(
            isinstance(item, dict) and all(type(item.get(key)) is int for key in keys) for item in value
        ):
            raise BadRequest(f"{self.method}: {name} is not a list of objects with {', '.join(keys)}")
        return tuple(transfer.IdRange(*(item[key] for key in keys)) for item in value)


class Plugin:
    """Answers the calls of the protocol. Safe to use from many threads."""

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
            "Cleanup": lambda _: self.driver.cleanup(),
            "Changes": self._changes,
            "DiffSize": lambda request: {"Size": self.driver.diff_size(_id(request), request.text("Parent"))},
        }

    @property
    def driver(self) -> Driver:
        """The driver of the daemon that called Init. Raises DriverError before that."""
        if self._driver is None:
            raise DriverError("Init was never called, and there is no state of an earlier start: restart dockerd")
        return self._driver

    # -- calls -------------------------------------------------------------------------------

    def call(self, method: str, body: bytes) -> dict[str, Any]:
        """Answer a call that carries no archive. Raises UnknownMethod, BadRequest, and what the driver raises."""
        if method == "Init":
            return self._init(Request(method, body))
        if method not in self._calls:
            known = ", ".join(["Init", *self._calls, "Diff", "ApplyDiff"])
            raise UnknownMethod(f"unknown method GraphDriver.{method[:80]}; known are {known}")
        with self._inside(), self._request():
            return self._calls[method](Request(method, body)) or {}

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Be at work with the driver; while a daemon's Init makes another one, wait for it. Raises DriverError."""
        # An Init has as long as any other request; before that it waits for others, and for what is done behind them.
        timeout = (self._driver or self._defaults).timeout
        seconds = INIT_WAIT_SECONDS + 2 * timeout + _pause_seconds(timeout)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._gate.shared(seconds))
            except GateTimeout:
                raise DriverError(f"a daemon's Init has been at work for {seconds:g} s; try again") from None
            yield

    def _request(self) -> contextlib.AbstractContextManager[None]:
        """The driver's bounds of a call; some calls are answered without a driver."""
        return self._driver.request() if self._driver else contextlib.nullcontext()

    def diff(self, body: bytes) -> Generator[bytes, None, None]:
        """Yield the archive of a Diff call; close it to end early."""
        request = Request("Diff", body)
        with self._inside(), self.driver.explaining():
            yield from self.driver.diff(_id(request), request.text("Parent"))

    def apply_diff(self, layer: str, stream: transfer.Readable) -> dict[str, Any]:
        """Lay an archive down in a layer."""
        with self._inside(), self.driver.explaining():
            return {"Size": self.driver.apply_diff(layer, stream)}

    def abandon(self, layer: str) -> None:
        """Remove a layer whose archive was cut off by the caller's end."""
        log.warning("removing layer %s: its archive was cut off", layer)
        with self._inside(), self._request():
            self.driver.remove(layer)

    def _create(self, request: Request) -> None:
        self.driver.create(_id(request), request.text("Parent"), request.pairs("StorageOpt"))

    def _changes(self, request: Request) -> dict[str, Any]:
        found = self.driver.changes(_id(request), request.text("Parent"))
        # JSON is text: bytes that are no UTF-8 become U+FFFD, as they do in Go's encoder.
        return {"Changes": [{"Path": path.decode("utf-8", "replace"), "Kind": int(kind)} for path, kind in found]}

    # -- Init and its state ------------------------------------------------------------------

    def _init(self, request: Request) -> dict[str, Any]:
        driver = self._make_driver(request)
        try:
            # It may wait, and the requests of containers that run need not.
            driver.claim()
            with self._gate.alone(INIT_WAIT_SECONDS), driver.request():
                driver.prepare()
                self._take_over(driver, request)
        except GateTimeout:
            raise DriverError(f"Init: requests of the former daemon still run after {INIT_WAIT_SECONDS:g} s") from None
        finally:
            if self._driver is not driver:
                driver.end()
        return {}

    def _take_over(self, driver: Driver, request: Request) -> None:
        """Let a driver that is ready serve in the place of the former one, which goes on as before if that fails."""
        former = self._driver
        if former:
            former.pause(_pause_seconds(former.timeout))
        try:
            driver.learn()
            self._save(request)
            driver.settle()
        except BaseException:
            if former:
                former.resume()
            raise
        self._driver = driver
        if former:
            former.end()
        driver.start()

    def _make_driver(self, request: Request) -> Driver:
        """Make the driver that an Init asks for; it has touched nothing yet."""
        return Driver(*_settings(request, self._defaults))

    def _save(self, request: Request) -> None:
        """Keep what Init said for a start without Init; written whole or not at all."""
        with open(self._state_file + ".new", "w", encoding="utf-8") as target:
            json.dump({"Format": FORMAT, **request.kept(("Home", "Opts", "UIDMaps", "GIDMaps"))}, target)
        os.replace(self._state_file + ".new", self._state_file)

    def restore(self) -> None:
        """Go on where an earlier life of this process ended. Without its state file, nothing happens.

        Needs no cluster: the plugin must serve, and say what is wrong, also when Ceph is away. Nor does a
        state file that is damaged, or from another version, keep it from serving: the next Init writes it anew.
        """
        try:
            settings = read_state(self._state_file, self._defaults)
        except FileNotFoundError:
            return
        except (BadRequest, options.OptionError) as error:
            log.error("%s is of no use, restart dockerd: %s", self._state_file, error)
            return
        driver = Driver(*settings)
        driver.learn()
        driver.start()
        self._driver = driver
        log.info("took over the layers below %s from before", settings[0])

    def check(self) -> None:
        """Raise readiness.NotReady if what the driver needs is not there; without an Init, by the defaults."""
        driver = self._driver or Driver("/nonexistent", self._defaults, transfer.IdMaps())
        driver.check()

    def finish(self, timeout: float) -> bool:
        """Wait for the running requests and for the trash, `timeout` seconds at the most; tell whether all was done."""
        until = time.monotonic() + timeout
        try:
            with self._gate.alone(timeout):
                if self._driver:
                    return self._driver.finish(max(0.0, until - time.monotonic()))
        except GateTimeout:
            return False
        return True


def _pause_seconds(timeout: float) -> float:
    """Return how long what a driver does in the background may take to end: one layer that hangs, its own time."""
    return max(INIT_WAIT_SECONDS, timeout + 2 * deadline.GRACE_SECONDS)


def read_state(state_file: str, defaults: options.Options) -> tuple[str, options.Options, transfer.IdMaps]:
    """Return what Init said last: home, options and id maps. Raises FileNotFoundError, BadRequest, OptionError."""
    with open(state_file, "rb") as source:
        said = Request("Init", source.read())
    if said.text("Format") != FORMAT:
        # What such a driver had mounted is none of what we could tell.
        raise BadRequest("it was written by version 1 of this driver, whose layers this version cannot read")
    return _settings(said, defaults)


def _settings(request: Request, defaults: options.Options) -> tuple[str, options.Options, transfer.IdMaps]:
    home = request.text("Home", needed=True)
    if not os.path.isabs(home):
        raise BadRequest(f"Init: Home {home[:80]!r} is not an absolute path")
    ids = transfer.IdMaps(request.id_ranges("UIDMaps"), request.id_ranges("GIDMaps"))
    return os.path.normpath(home), options.parse(request.texts("Opts"), defaults), ids


def _id(request: Request) -> str:
    return request.text("ID", needed=True)
