"""One call of gRPC on a stream of HTTP/2: its message, its handler, and what its errors become for the caller.

grpc/doc/PROTOCOL-HTTP2.md. Messages are not compressed: no encoding is announced, so clients send none.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import NamedTuple, TypeVar

from host import logs, served
from wire import grpc_status as grpc
from wire.grpc_status import Refusal, Status
from wire.hpack import Field
from wire.outgoing import StreamGone
from wire.protobuf import MalformedMessage, Message
from wire.stream import Stream

MESSAGE_LIMIT = 16 << 20
# Answers with which a caller reckons.
_ORDINARY = grpc.NOT_FOUND, grpc.ALREADY_EXISTS
# The name by which calls of no method of ours are counted.
OTHER = "other"
_PREFIX = struct.Struct(">BL")
_TYPES = b"application/grpc", b"application/grpc+proto"
_HEAD: list[Field] = [(b":status", b"200"), (b"content-type", _TYPES[0])]

log = logging.getLogger("grpc")

_Request = TypeVar("_Request", bound=Message)


class Call:
    """What a handler may know of its caller.

    `deadline`: until when the caller waits, by time.monotonic(); infinity if it did not say.
    `metadata`: the other header fields.
    """

    def __init__(self, stream: Stream, deadline: float) -> None:
        self._stream = stream
        self.deadline = deadline
        self.metadata: Mapping[bytes, bytes] = dict(stream.fields)

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone: work that was begun is still finished or undone as a whole."""
        return self._stream.cancelled


class Method(NamedTuple):
    """A method of a service: from the octets of its request to those of its answers, one or a stream.

    `level`: at which a call that went well is logged.
    """

    answers: Callable[[bytes, Call], Generator[bytes, None, None]]
    streams: bool
    level: int = logging.INFO


def unary(request: type[_Request], handler: Callable[[_Request, Call], Message], level: int = logging.INFO) -> Method:
    """Return a method with one answer. Its handler may raise Status, or any error."""

    def answers(data: bytes, call: Call) -> Generator[bytes, None, None]:
        yield handler(_decoded(request, data), call).encode()

    return Method(answers, streams=False, level=level)


def streaming(
    request: type[_Request], handler: Callable[[_Request, Call], Iterable[Message]], level: int = logging.INFO
) -> Method:
    """Return a method with a stream of answers. A generator is closed when nobody reads them any more."""

    def answers(data: bytes, call: Call) -> Generator[bytes, None, None]:
        found = handler(_decoded(request, data), call)
        try:
            for one in found:
                yield one.encode()
        finally:
            if isinstance(found, Generator):
                found.close()

    return Method(answers, streams=True, level=level)


class Dispatcher:
    """Answers calls by a table of methods, each by its path: `/package.Service/Method`."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}

    def answer(self, stream: Stream) -> None:
        """Answer one call, and log it in one line. Raises only what tells that the caller cannot be answered."""
        with served.request() as request:
            self._answer(stream, request)

    def _answer(self, stream: Stream, request: served.Served) -> None:
        level, error = logging.WARNING, ""
        path = dict(stream.fields).get(b":path", b"")
        reply = _Reply(stream)
        try:
            if not _is_grpc(stream):
                reply.refuse(b"415")
                error = "this is no call of gRPC"
                request.failed(served.REFUSED, Refusal(grpc.UNIMPLEMENTED, error))
            else:
                level, error = self._call(stream, path, reply, request)
        except StreamGone as gone:
            error = f"the client went away: {gone}"
            request.failed(served.GONE, gone)
            raise
        finally:
            text = logs.printable(path.decode("utf-8", "replace")[-130:].rpartition("/")[2])
            request.end(log, level, text if path in self._methods else OTHER, text, error)

    def _call(self, stream: Stream, path: bytes, reply: _Reply, request: served.Served) -> tuple[int, str]:
        """Return the level at which the call is logged, and the line that the caller was told if it failed."""
        deadline = float("inf")
        try:
            deadline = grpc.deadline_of(dict(stream.fields).get(b"grpc-timeout"))
            self._run(stream, path, deadline, reply)
        except Status as status:
            level = logging.INFO if status.code in _ORDINARY else logging.WARNING
            request.failed(served.result_of(status), status)
            return level, self._fail(reply, deadline, status.code, str(status))
        except StreamGone:
            raise
        except Exception as failure:
            result, code = served.result_of(failure), grpc.UNKNOWN
            if result == served.DEFECT:
                log.exception("%r: a defect of the driver", path)
                code = grpc.INTERNAL
            request.failed(result, failure)
            return logging.WARNING, self._fail(reply, deadline, code, _one_line(failure))
        return self._methods[path].level, ""

    def _run(self, stream: Stream, path: bytes, deadline: float, reply: _Reply) -> None:
        if stream.refused:
            raise Refusal(grpc.RESOURCE_EXHAUSTED, stream.refused)
        method = self._methods.get(path)
        if method is None:
            raise Refusal(grpc.UNIMPLEMENTED, f"unknown method {path[:200].decode('utf-8', 'replace')}")
        if time.monotonic() >= deadline:
            raise Refusal(grpc.DEADLINE_EXCEEDED, "the deadline was over before the call began")
        data = _one_message(stream.body)
        stream.body.clear()
        with contextlib.closing(method.answers(data, Call(stream, deadline))) as answers:
            for one in answers:
                reply.message(one, last=not method.streams)
        reply.end(grpc.OK)

    def _fail(self, reply: _Reply, deadline: float, code: int, text: str) -> str:
        if time.monotonic() >= deadline:
            code = grpc.DEADLINE_EXCEEDED
        reply.end(code, text)
        return _one_line(text)


class _Reply:
    """What is sent of an answer, in its order: the head comes with the first message, or with the trailers alone."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._head: list[Field] | None = _HEAD

    def message(self, data: bytes, *, last: bool) -> None:
        """Send a message; if it is the last one, the end of the call with it. Raises Status if it is too large."""
        if len(data) > MESSAGE_LIMIT:
            raise Status(grpc.RESOURCE_EXHAUSTED, f"an answer of {len(data)} bytes, {MESSAGE_LIMIT} are allowed")
        head, self._head = self._head, None
        trailers = grpc.trailers(grpc.OK) if last else None
        self._stream.send(head=head, data=_PREFIX.pack(0, len(data)) + data, trailers=trailers)

    def end(self, code: int, text: str = "") -> None:
        """End the call, unless it has ended. If nothing was sent yet, the head is in the trailers ("Trailers-Only")."""
        if not self._stream.answered:
            self._stream.send(trailers=[*(self._head or []), *grpc.trailers(code, text)])

    def refuse(self, status: bytes) -> None:
        """End what is no call, in the words of HTTP."""
        self._stream.send(trailers=[(b":status", status)])


def _decoded(request: type[_Request], data: bytes) -> _Request:
    try:
        return request.decode(data)
    except MalformedMessage as error:
        raise Refusal(grpc.INTERNAL, f"the request is malformed: {error}") from error


def _one_message(body: bytearray) -> bytes:
    """Return the message of a request, which holds exactly one. Raises Status."""
    if len(body) < _PREFIX.size:
        raise Refusal(grpc.INTERNAL, "the request holds no message")
    compressed, size = _PREFIX.unpack_from(body)
    if compressed:
        raise Refusal(grpc.UNIMPLEMENTED, "the message is compressed, and no encoding was announced")
    if size > MESSAGE_LIMIT:
        raise Refusal(grpc.RESOURCE_EXHAUSTED, f"a message of {size} bytes, {MESSAGE_LIMIT} are allowed")
    if size != len(body) - _PREFIX.size:
        raise Refusal(grpc.INTERNAL, f"the request says {size} bytes, and holds {len(body) - _PREFIX.size}")
    return bytes(memoryview(body)[_PREFIX.size :])


def _is_grpc(stream: Stream) -> bool:
    # Header fields that were cut are answered all the same, with why.
    fields = dict(stream.fields)
    kind = fields.get(b"content-type", _TYPES[0] if stream.refused else b"")
    return fields.get(b":method") == b"POST" and kind.partition(b";")[0] in _TYPES


def _one_line(failure: Exception | str) -> str:
    return logs.printable(" ".join(str(failure).split())) or type(failure).__name__
