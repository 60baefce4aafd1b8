"""The server's side of one HTTP/2 connection, with prior knowledge (RFC 9113): what each frame does to it.

One thread reads, and answers by itself to what is no request. Each request has a thread of its own, which begins once
the request is whole. What a peer may ask at the most stands here at the top, in `calm` and in `outgoing`. A peer that
asks for more gets GOAWAY or RST_STREAM. So a peer can only harm its own connection.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from host import logs
from wire import frames, hpack, request_head
from wire.calm import Calm
from wire.frames import END_HEADERS, END_STREAM, PROTOCOL_ERROR, BadConnection, BadStream, Frame, FrameReader
from wire.outgoing import FIRST_WINDOW, WRITE_SECONDS, Outgoing, StreamGone
from wire.stream import Stream

# The requests of one connection at one time; each has a thread.
MOST_STREAMS = 128
# The octets of one header block before it is decoded.
BLOCK_LIMIT = 2 * hpack.LIST_SIZE
# The body of one request, and the bodies of all requests that a server holds. A message of gRPC may have 16 MiB. Small
# bodies are taken in any case: who sends large ones keeps nobody else from asking.
BODY_LIMIT = (16 << 20) + 5
HELD_LIMIT = 2 * BODY_LIMIT
SMALL_BODY = 4096
# Streams that we ended while the peer still sends on them.
MOST_LEFT_OPEN = 1000
PREFACE_SECONDS = 10.0

log = logging.getLogger("http2")


class Connection:
    """One peer. `answer` is called for each request, in its thread; it must end the answer, and may raise anything.

    `held_by_all` tells how many bytes of bodies all connections of the server hold.
    """

    def __init__(self, peer: socket.socket, answer: Callable[[Stream], None], held_by_all: Callable[[], int]) -> None:
        self._peer = peer
        self._answer = answer
        self._held_by_all = held_by_all
        self._calm = Calm()
        self._outgoing = Outgoing(peer, self._calm)
        self._frames = FrameReader(peer)
        self._decoder = hpack.Decoder()
        # It guards what is known of the streams: those that count, the last one that was begun, and those that we ended
        # while the peer may still send on them.
        self._state = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._left_open: set[int] = set()
        self._stopping = False
        # Of the reader alone.
        self._window = FIRST_WINDOW
        self._block: tuple[Frame, bytearray] | None = None
        self._of_connection: dict[int, Callable[[Frame], None]] = {
            frames.SETTINGS: self._on_settings,
            frames.PING: self._on_ping,
            frames.GOAWAY: lambda _: self._calm.spend("GOAWAY"),
        }
        self._of_stream = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_rst_stream,
            frames.CONTINUATION: self._on_continuation,
        }

    # -- its life ----------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve the peer until one side ends the connection, and close the socket. It raises nothing."""
        try:
            self._peer.settimeout(PREFACE_SECONDS)
            self._greet()
            if self._frames.preface():
                self._peer.settimeout(WRITE_SECONDS)
                self._read()
        except BadConnection as error:
            log.warning("a connection is ended: %s", error)
            self._say_goaway(error.code, str(error))
        except (StreamGone, OSError) as error:
            log.debug("a connection broke: %s", error)
        except Exception:
            log.exception("a connection is ended: a defect of the driver")
            self._say_goaway(frames.INTERNAL_ERROR, "a defect")
        finally:
            self._outgoing.end()
            self._outgoing.close()

    def stop(self) -> None:
        """Take no new streams: say GOAWAY, and end once those that were begun are answered (RFC 9113 section 6.8)."""
        with self._state:
            self._stopping = True
        self._say_goaway(frames.NO_ERROR, "the server stops")
        self._end_if_done()

    def end(self) -> None:
        """End the connection at once; `serve` returns. Work that goes on has nobody to answer to."""
        self._outgoing.end()

    def _greet(self) -> None:
        # Clients wait for it before their first request (RFC 9113 section 3.4).
        self._outgoing.write(
            frames.settings({frames.MAX_CONCURRENT_STREAMS: MOST_STREAMS, frames.MAX_HEADER_LIST_SIZE: hpack.LIST_SIZE})
        )

    def _say_goaway(self, code: int, text: str) -> None:
        try:
            self._outgoing.write(frames.goaway(self._last, code, text))
        except StreamGone as error:
            log.debug("no GOAWAY: %s", error)

    def _end_if_done(self) -> None:
        with self._state:
            done = self._stopping and not self._streams
        if done:
            self._outgoing.end()

    # -- frames ------------------------------------------------------------------------------

    def _read(self) -> None:
        frame = self._frames.next()
        if frame is not None and (frame.kind != frames.SETTINGS or frame.flags & frames.ACK):
            raise BadConnection(PROTOCOL_ERROR, "the first frame is not SETTINGS (RFC 9113 section 3.4)")
        while frame is not None:
            try:
                self._take(frame)
            except BadStream as error:
                self._calm.spend("a frame that is wrong for its stream")
                self._reset(frame.stream, error)
            frame = self._frames.next()

    def _take(self, frame: Frame) -> None:
        if self._block and (frame.kind != frames.CONTINUATION or frame.stream != self._block[0].stream):
            raise BadConnection(PROTOCOL_ERROR, "a header block is not continued (RFC 9113 section 6.10)")
        if frame.kind == frames.WINDOW_UPDATE:
            self._on_window_update(frame)
        elif frame.kind in self._of_connection:
            if frame.stream:
                raise BadConnection(PROTOCOL_ERROR, f"a frame of type {frame.kind} is on stream {frame.stream}")
            self._of_connection[frame.kind](frame)
        elif frame.kind in self._of_stream:
            # A client's streams have odd numbers (RFC 9113 section 5.1.1); it is pushed none.
            if not frame.stream % 2:
                raise BadConnection(PROTOCOL_ERROR, f"a frame of type {frame.kind} is on stream {frame.stream}")
            self._of_stream[frame.kind](frame)
        elif frame.kind == frames.PUSH_PROMISE:
            raise BadConnection(PROTOCOL_ERROR, "a client must not push (RFC 9113 section 8.4)")
        else:
            self._calm.spend(f"a frame of the unknown type {frame.kind}")

    def _on_settings(self, frame: Frame) -> None:
        self._calm.spend("SETTINGS")
        if frame.flags & frames.ACK:
            if frame.payload:
                raise BadConnection(frames.FRAME_SIZE_ERROR, "the ACK of SETTINGS is not empty")
            return
        values = frames.read_settings(frame)
        # The others: we send frames that are allowed always, use no table of headers and push nothing.
        if frames.INITIAL_WINDOW_SIZE in values:
            self._outgoing.resize(values[frames.INITIAL_WINDOW_SIZE])
        self._outgoing.write(frames.write(frames.SETTINGS, frames.ACK, 0))

    def _on_ping(self, frame: Frame) -> None:
        self._calm.spend("PING")
        if len(frame.payload) != 8:
            raise BadConnection(frames.FRAME_SIZE_ERROR, f"PING holds {len(frame.payload)} bytes and not 8")
        if not frame.flags & frames.ACK:
            self._outgoing.write(frames.write(frames.PING, frames.ACK, 0, frame.payload))

    def _on_window_update(self, frame: Frame) -> None:
        self._calm.spend("WINDOW_UPDATE")
        size = frames.number(frame)
        self._check_begun(frame)
        self._outgoing.grow(frame.stream, size)

    def _on_priority(self, frame: Frame) -> None:
        self._calm.spend("PRIORITY")
        if len(frame.payload) != 5:
            raise BadStream(frames.FRAME_SIZE_ERROR, f"PRIORITY holds {len(frame.payload)} bytes and not 5")

    def _on_rst_stream(self, frame: Frame) -> None:
        self._calm.spend("RST_STREAM")
        frames.number(frame)
        self._check_begun(frame)
        self._left_open.discard(frame.stream)
        with self._state:
            stream = self._streams.get(frame.stream)
        if stream is not None:
            self._drop(stream)

    def _check_begun(self, frame: Frame) -> None:
        """Refuse a frame of a stream that was never begun (RFC 9113 section 5.1). After GOAWAY that is unknown."""
        if frame.stream > self._last and not self._stopping:
            raise BadConnection(PROTOCOL_ERROR, f"a frame of type {frame.kind} is on the idle stream {frame.stream}")

    # -- requests ----------------------------------------------------------------------------

    def _on_headers(self, frame: Frame) -> None:
        block = bytearray(frames.content(frame))
        if frame.flags & END_HEADERS:
            self._on_block(frame, block)
        else:
            self._block = frame, block

    def _on_continuation(self, frame: Frame) -> None:
        self._calm.spend("CONTINUATION")
        if not self._block:
            raise BadConnection(PROTOCOL_ERROR, "CONTINUATION of nothing (RFC 9113 section 6.10)")
        first, block = self._block
        block += frame.payload
        if len(block) > BLOCK_LIMIT:
            raise BadConnection(frames.ENHANCE_YOUR_CALM, f"a header block of more than {BLOCK_LIMIT} bytes")
        if frame.flags & END_HEADERS:
            self._block = None
            self._on_block(first, block)

    def _on_block(self, frame: Frame, block: bytearray) -> None:
        """Begin a request, or end one by trailers. Each block is decoded: all of them change the table."""
        try:
            listed = self._decoder.decode(bytes(block))
        except hpack.BadBlock as error:
            raise BadConnection(frames.COMPRESSION_ERROR, str(error)) from error
        ends = bool(frame.flags & END_STREAM)
        stream = self._streams.get(frame.stream)
        if stream is not None:
            self._on_trailers(stream, listed, ends=ends)
        elif frame.stream > self._last:
            self._begin(frame.stream, listed, ends=ends)
        elif frame.stream in self._left_open:
            self._late(frame.stream, ends=ends)
        else:
            raise BadConnection(frames.STREAM_CLOSED, f"HEADERS are on stream {frame.stream}, which has ended")

    def _on_trailers(self, stream: Stream, listed: hpack.HeaderList, *, ends: bool) -> None:
        if stream.whole:
            raise BadStream(frames.STREAM_CLOSED, "HEADERS follow the end of a request")
        if not ends:
            raise BadStream(PROTOCOL_ERROR, "trailers do not end the request (RFC 9113 section 8.1)")
        request_head.check_trailers(listed.fields)
        self._end_request(stream)

    def _begin(self, number: int, listed: hpack.HeaderList, *, ends: bool) -> None:
        with self._state:
            if self._stopping:
                # GOAWAY tells the client to send it elsewhere.
                return
            self._last = number
            waiting = sum(not stream.answered for stream in self._streams.values())
            full = waiting >= MOST_STREAMS or len(self._streams) >= 2 * MOST_STREAMS
            stream = Stream(number, listed.fields, self._outgoing)
            stream.whole = ends
            self._streams[number] = stream
            self._outgoing.open(number)
        if full:
            raise BadStream(frames.REFUSED_STREAM, f"more than {MOST_STREAMS} requests at one time")
        request_head.check(listed.fields)
        if not listed.whole:
            stream.refused = f"the header fields are larger than {hpack.LIST_SIZE} bytes"
        if ends or stream.refused:
            self._start(stream)

    def _on_data(self, frame: Frame) -> None:
        self._window = self._received(0, self._window, len(frame.payload))
        ends = bool(frame.flags & END_STREAM)
        data = frames.content(frame)
        if not data and not ends:
            self._calm.spend("an empty DATA")
        self._check_begun(frame)
        stream = self._streams.get(frame.stream)
        if stream is None:
            self._late(frame.stream, ends=ends)
            return
        if stream.whole:
            raise BadStream(frames.STREAM_CLOSED, "DATA follows the end of a request")
        if not stream.refused:
            self._hold(stream, data)
        if ends:
            self._end_request(stream)
        else:
            stream.window = self._received(stream.number, stream.window, len(frame.payload))

    def _received(self, stream: int, window: int, size: int) -> int:
        """Count data against a window of the peer's. Return the new one: what was taken in is given back by halves."""
        window -= size
        if window < 0:
            raise BadConnection(frames.FLOW_CONTROL_ERROR, f"stream {stream}: the peer sends more than its window")
        if window < FIRST_WINDOW // 2:
            self._outgoing.write(frames.window_update(stream, FIRST_WINDOW - window))
            return FIRST_WINDOW
        return window

    def _hold(self, stream: Stream, data: bytes) -> None:
        """Keep a piece of a body. If it is too much, the body is dropped, and the answer is to say so."""
        size = len(stream.body) + len(data)
        if size <= SMALL_BODY or (size <= BODY_LIMIT and self._held_by_all() + len(data) <= HELD_LIMIT):
            stream.body += data
            return
        stream.body.clear()
        stream.refused = f"the request is larger than {BODY_LIMIT} bytes, or all requests than {HELD_LIMIT}"
        self._start(stream)

    def _late(self, number: int, *, ends: bool) -> None:
        """Take a frame of a stream that we ended, or that stands above the last one of our GOAWAY: it is dropped."""
        if number > self._last:
            return
        if number not in self._left_open:
            raise BadStream(frames.STREAM_CLOSED, f"stream {number} has ended")
        if ends:
            self._left_open.discard(number)

    def _end_request(self, stream: Stream) -> None:
        stream.whole = True
        if not stream.begun:
            self._start(stream)

    def held(self) -> int:
        """Return how many bytes of bodies it holds."""
        with self._state:
            return sum(len(stream.body) for stream in self._streams.values())

    # -- answers -----------------------------------------------------------------------------

    def _start(self, stream: Stream) -> None:
        stream.begun = True
        thread = threading.Thread(target=self._work, args=(stream,), name=f"stream {stream.number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            stream.begun = False
            raise BadStream(frames.REFUSED_STREAM, f"no thread for a request: {error}") from error

    def _work(self, stream: Stream) -> None:
        """Answer one request. A thread of its own does it."""
        code = frames.INTERNAL_ERROR
        try:
            self._answer(stream)
            code = frames.NO_ERROR
        except BadStream as error:
            log.warning("an answer is broken off: %s", error)
            code = error.code
        except StreamGone as error:
            log.debug("an answer is dropped: %s", error)
        except Exception:
            log.exception("stream %d: a defect of the driver", stream.number)
        if code == frames.NO_ERROR and not stream.answered:
            code = frames.INTERNAL_ERROR
        self._finish(stream, code)

    def _finish(self, stream: Stream, code: int) -> None:
        """Forget a stream that is answered or never will be. RST_STREAM tells a peer that still sends, or waits."""
        told = self._outgoing.is_open(stream.number) and (code != frames.NO_ERROR or not stream.whole)
        with self._state:
            if told and not stream.whole:
                self._left_open.add(stream.number)
            self._streams.pop(stream.number, None)
        self._outgoing.forget(stream.number)
        if told:
            self._try_reset(stream.number, code)
        self._end_if_done()

    def _reset(self, number: int, error: BadStream) -> None:
        """End a stream whose peer did something wrong on it."""
        log.info("stream %d is reset: %s", number, logs.printable(str(error)))
        with self._state:
            stream = self._streams.get(number)
        if stream is not None:
            if not stream.whole:
                self._left_open.add(number)
            self._drop(stream)
        if len(self._left_open) > MOST_LEFT_OPEN:
            raise BadConnection(frames.ENHANCE_YOUR_CALM, f"{MOST_LEFT_OPEN} requests were refused and never ended")
        self._try_reset(number, error.code)

    def _drop(self, stream: Stream) -> None:
        """Let nobody wait for an answer. If a thread is at work with it, the stream counts until that has ended."""
        self._outgoing.forget(stream.number)
        if not stream.begun:
            with self._state:
                self._streams.pop(stream.number, None)
            self._end_if_done()

    def _try_reset(self, number: int, code: int) -> None:
        try:
            self._outgoing.write(frames.rst_stream(number, code))
        except StreamGone as error:
            log.debug("no RST_STREAM: %s", error)
