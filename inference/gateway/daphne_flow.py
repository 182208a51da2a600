"""What daphne lacks at the wire: a line for many who come at once, push-back on slow readers, a bound on bodies,
JSON in place of HTML errors, a stop that lets requests finish.

daphne's ``send()`` returns at once however much lies unsent, so an application that awaits it learns nothing
of a client that does not read. ``install()`` replaces a few methods of daphne's classes, so that the stock
command ``daphne mmserve.asgi:application`` has all this.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import daphne.server
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import defer, reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.tcp import Connection as TcpConnection
from twisted.web.http import RESPONSES, HTTPChannel

from inference.gateway.chunks import encode
from inference.gateway.door import Door, Waiting
from inference.gateway.runtime import GatewayRuntime
from inference.gateway.stopping import stop_of
from mmserve.errors import InvalidRequest, MmserveError, PayloadTooLarge, Unavailable

log = logging.getLogger(__name__)

HIGH_WATER_BYTES = 256 * 1024
LOW_WATER_BYTES = 64 * 1024
STALLED_S = 60.0
FIRST_LOOK_S, LONGEST_LOOK_S = 0.005, 0.25
# How long a refused body is still read and thrown away: to close at once would reset the connection, and the
# client might never see the answer.
LINGER_S = 5.0
MAX_UNREAD_FRAMES = 256
BACKLOG = 2048  # connections that are not yet accepted; the kernel may allow fewer (net.core.somaxconn)
JSON_PATHS = (b"/v1", b"/ws", b"/healthz", b"/readyz")


def unsent_bytes(transport: Any) -> int:
    """What Twisted holds of a connection because the socket takes no more."""
    buffer = getattr(transport, "dataBuffer", None)
    if buffer is None:
        return 0  # TLS: its own layer has the buffer; behind a TLS proxy this is a plain socket
    unsent: int = len(buffer) - transport.offset + transport._tempDataLen
    return unsent


async def drained(protocol: Any, transport: Any, connections: dict[Any, Any]) -> None:
    """Wait until a slow reader has read; cut it off when it takes nothing for STALLED_S."""
    unsent = unsent_bytes(transport)
    moved_at = time.monotonic()
    wait_s = FIRST_LOOK_S
    while unsent > LOW_WATER_BYTES and "disconnected" not in connections.get(protocol, {"disconnected": 0}):
        await asyncio.sleep(wait_s)
        wait_s = min(LONGEST_LOOK_S, wait_s * 2)
        before, unsent = unsent, unsent_bytes(transport)
        if unsent < before:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > STALLED_S:
            log.warning("a client read nothing for %.0f s: cut off", STALLED_S)
            transport.abortConnection()
            return


_stock_handle_reply = daphne.server.Server.handle_reply


async def handle_reply(server: Any, protocol: Any, message: dict[str, Any]) -> None:
    """daphne's ``send()``, which then waits while too much lies unsent."""
    await _stock_handle_reply(server, protocol, message)
    channel = getattr(protocol, "channel", protocol)  # a WebSocket protocol is its own channel
    transport = getattr(channel, "transport", None)
    if transport is not None and unsent_bytes(transport) > HIGH_WATER_BYTES:
        await drained(protocol, transport, server.connections)


class BoundedRequest(WebRequest):
    """Refuses a body that is too large before it is read, and speaks JSON where clients expect it."""

    max_body_bytes = 4 * 2**20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Twisted would parse forms, and every content-type with the email package: a third of a request's whole
        # cost. Neither daphne nor Django looks at what it finds.
        self._parsePOSTFormSubmission = False
        self._body_bytes = 0
        self._refused = False

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > self.max_body_bytes and self._speaks_json(self.channel._path):
            self._refuse_body()
            length = 0  # nothing of it will be kept
        super().gotLength(length)

    def handleContentChunk(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if (
            not self._refused
            and self._body_bytes > self.max_body_bytes
            and self._speaks_json(self.channel._path)
        ):
            self._refuse_body()
        if not self._refused:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        if self._response_started:
            # A second response on the same connection would be read as the rest of the first.
            self.loseConnection()
        elif self._speaks_json(self.uri):
            kind = InvalidRequest if status < 500 else Unavailable if status == 503 else MmserveError
            content = encode(kind(body).envelope())
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
            self.handle_reply({"type": "http.response.start", "status": status, "headers": headers})
            self.handle_reply({"type": "http.response.body", "body": content})
        else:
            super().basic_error(status, status_text, body)

    @staticmethod
    def _speaks_json(path: bytes) -> bool:
        return path.startswith(JSON_PATHS)

    def _refuse_body(self) -> None:
        self._refused = True
        error = PayloadTooLarge(f"The body is larger than {self.max_body_bytes} bytes.")
        transport = self.channel.transport
        transport.write(raw_response(b"413 Content Too Large", error))
        reactor.callLater(LINGER_S, transport.loseConnection)


class BoundedSocket(WebSocketProtocol):
    """Closes a socket whose client sends frames faster than they are taken, or one that is far too large.

    What is a little too large arrives, and is told so in a frame.
    """

    max_message_bytes = 0

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.application_queue.qsize() >= MAX_UNREAD_FRAMES:
            self.sendClose(code=4429, reason="too many unread messages")
        else:
            super().onMessage(payload, isBinary)

    def onOpen(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.failByDrop = False
        self.maxMessagePayloadSize = self.maxFramePayloadSize = 4 * self.max_message_bytes
        super().onOpen()


class BoundedFactory(HTTPFactory):
    """daphne's factory, making BoundedRequests."""

    def buildProtocol(self, addr: Any) -> Any:
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = BoundedRequest
        return protocol

    def log(self, request: Any) -> None:
        """Twisted's access log goes nowhere here, and each of its lines would be made all the same."""


def bad_request(channel: HTTPChannel) -> None:
    """What Twisted cannot parse as HTTP, answered with the envelope in place of an empty 400."""
    channel.transport.write(
        raw_response(b"400 Bad Request", InvalidRequest("This is not a valid HTTP request."))
    )
    channel.loseConnection()


def line_too_long(channel: HTTPChannel, line: bytes) -> None:
    """A request line or header beyond Twisted's bound: it would hang up without a word."""
    error = InvalidRequest(
        f"The URL or a header is longer than {channel.MAX_LENGTH} bytes.", code="uri_too_long"
    )
    channel.transport.write(raw_response(b"414 URI Too Long", error))
    channel.loseConnection()


def raw_response(status: bytes, error: MmserveError) -> bytes:
    """A whole HTTP response, for where daphne has no request to answer yet."""
    body = encode(error.envelope())
    return (
        b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
        % (status, len(body), body)
    )


class Connection:
    """A connection as the door sees it."""

    __slots__ = ("_channel", "waiting")

    def __init__(self, channel: HTTPChannel) -> None:
        self._channel = channel
        self.waiting: Waiting | None = None  # its place in the line

    def take_up(self, data: bytes) -> None:
        self.waiting = None
        _stock_data_received(self._channel, data)

    def tell(self, answer: bytes) -> None:
        self.waiting = None
        self._channel.resetTimeout()
        transport = self._channel.transport
        if isinstance(transport, TcpConnection) and not unsent_bytes(transport):
            # At once, rather than when the reactor has seen that the socket can be written to.
            sent = transport.writeSomeData(answer)
            if not isinstance(sent, int):
                transport.loseConnection()
                return
            answer = answer[sent:]
        if answer:
            transport.write(answer)

    def is_gone(self) -> bool:
        return bool(getattr(self._channel.transport, "disconnected", False))


_stock_data_received = HTTPChannel.dataReceived


def data_received_by(door: Door) -> Callable[[HTTPChannel, bytes], None]:
    """HTTPChannel's ``dataReceived``, which lets the door see requests as they begin."""

    def data_received(channel: HTTPChannel, data: bytes) -> None:
        connection: Connection | None = getattr(channel, "_connection", None)
        if connection is None:
            connection = channel._connection = Connection(channel)
        if connection.waiting is not None:
            door.more(connection.waiting, data)
        elif channel.line_mode and not channel.requests and not channel._buffer:
            connection.waiting = door.came(connection, data)
        else:
            _stock_data_received(channel, data)

    return data_received


def set_aside_what_stays() -> None:
    """Spare the garbage collector what was imported: all answers would wait while it looks through Django's heap."""
    gc.collect()
    gc.freeze()


def listen(reactor: Any, description: str) -> Any:
    """An endpoint on which many clients may come at once: Twisted lets 50 wait to be let in, and resets who is late."""
    tcp = description.startswith("tcp:") and "backlog=" not in description
    return serverFromString(reactor, f"{description}:backlog={BACKLOG}" if tcp else description)


def install(runtime: GatewayRuntime) -> None:
    """Put all this in daphne's place, and let its reactor start and stop the runtime.

    Called while daphne imports the application, before its server is built.
    """
    reactor.callLater(0, runtime.start)
    reactor.callLater(0, set_aside_what_stays)
    # After the applications have ended ("before"): they need the runtime to withdraw their jobs.
    reactor.addSystemEventTrigger(
        "during", "shutdown", lambda: defer.Deferred.fromFuture(asyncio.ensure_future(runtime.stop()))
    )
    BoundedRequest.max_body_bytes = runtime.config.max_body_bytes
    BoundedSocket.max_message_bytes = runtime.config.max_socket_message_bytes
    daphne.server.Server.handle_reply = handle_reply
    daphne.server.Server.kill_all_applications = stop_of(runtime)
    daphne.server.HTTPFactory = BoundedFactory
    daphne.server.serverFromString = listen
    daphne.server.WebSocketFactory.protocol = BoundedSocket
    for status in HTTPStatus:
        # What Twisted does not know, it calls "429 Unknown Status".
        RESPONSES.setdefault(status.value, status.phrase.encode())
    HTTPChannel.dataReceived = data_received_by(Door(runtime))
    HTTPChannel.lineLengthExceeded = line_too_long
    HTTPChannel._respondToBadRequestAndDisconnect = bad_request
