"""A cleartext HTTP/2 client on which a test controls every frame."""

import socket

import h2.config
import h2.connection
import h2.events

from .client import CHAT
from .waiting import HANG_GUARD_S

_FRAME_OF_ONE_BYTE = b"\x00\x00\x01\x00\x00"
_SEND_AT_ONCE = 4096
_FRAME_BYTES = 16_384
_FRAME_HEAD_BYTES = 9
_GOAWAY = 7


class Http2:
    """One connection with prior knowledge of HTTP/2."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=HANG_GUARD_S)
        self._state = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._statuses: dict[int, int] = {}
        self._ended: set[int] = set()
        self._bodies: dict[int, bytes] = {}
        self._received = b""
        self.is_closed = False
        self._state.initiate_connection()
        self._flush()

    def __enter__(self) -> "Http2":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self,
        body: bytes = b"",
        headers: list[tuple[str, str]] | None = None,
        body_follows: bool = False,
        path: str = CHAT,
        content_type: str | None = "application/json",
        host: str = "localhost",
        method: str = "POST",
    ) -> int:
        """Sends the headers and body of one request, and returns its stream."""
        stream = self._state.get_next_available_stream_id()
        self._state.send_headers(
            stream,
            [
                (":method", method),
                (":scheme", "http"),
                (":authority", host),
                (":path", path),
                *([("content-type", content_type)] if content_type else []),
                *(headers or []),
            ],
            end_stream=not body and not body_follows,
        )
        if body:
            self._flush()
            for at in range(0, len(body), _FRAME_BYTES):
                piece = body[at : at + _FRAME_BYTES]
                is_last = at + len(piece) == len(body)
                self.send_piece(stream, piece, is_last=is_last and not body_follows)
        self._flush()
        return stream

    def send_piece(self, stream: int, data: bytes, is_last: bool = False) -> None:
        """Sends one frame of a body that follows."""
        while self._window(stream) < len(data):
            self._receive()
        self._state.send_data(stream, data, end_stream=is_last)
        self._flush()

    def send_trailers(self, stream: int) -> None:
        self._state.send_headers(stream, [("x-trailer", "1")], end_stream=True)
        self._flush()

    def reset(self, stream: int) -> None:
        self._state.reset_stream(stream, error_code=8)
        self._flush()

    def send_in_frames_of_one_byte(self, stream: int, body: bytes) -> None:
        """Sends the body as the most frames it can be cut into, and ends the stream.

        The frames are written by hand: the library would take longer than Envoy does.
        """
        while self._window(stream) < len(body):
            self._receive()
        identifier = stream.to_bytes(4, "big")
        prefix = _FRAME_OF_ONE_BYTE + identifier
        for start in range(0, len(body), _SEND_AT_ONCE):
            piece = body[start : start + _SEND_AT_ONCE]
            self._sock.sendall(b"".join(prefix + bytes([byte]) for byte in piece))
        self._sock.sendall(b"\x00\x00\x00\x00\x01" + identifier)

    def status(self, stream: int) -> int | None:
        """Reads to the end of a stream; its status, or None if it was reset or cut off."""
        while stream not in self._ended and not self.is_closed:
            self._receive()
        return self._statuses.get(stream)

    def body(self, stream: int, at_least: int) -> bytes:
        """Reads until so much of an answer's body has come, or it is over; what came of it."""
        while (
            len(self._bodies.get(stream, b"")) < at_least
            and stream not in self._ended
            and not self.is_closed
        ):
            self._receive()
        return self._bodies.get(stream, b"")

    def close(self) -> None:
        self._sock.close()

    def _window(self, stream: int) -> int:
        return self._state.local_flow_control_window(stream)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.is_closed = True
            return
        for event in self._state.receive_data(self._without_goaway(data)):
            if isinstance(event, h2.events.ResponseReceived):
                headers = dict(event.headers)
                self._statuses[event.stream_id] = int(headers[":status"])
            elif isinstance(event, h2.events.DataReceived):
                before = self._bodies.get(event.stream_id, b"")
                self._bodies[event.stream_id] = before + event.data
                self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self._ended.add(event.stream_id)
        self._flush()

    def _without_goaway(self, data: bytes) -> bytes:
        """The whole frames received so far. An Envoy that drains says GOAWAY first and serves what
        still comes; the library would take nothing more from that frame on."""
        self._received += data
        kept = b""
        while len(self._received) >= _FRAME_HEAD_BYTES:
            size = _FRAME_HEAD_BYTES + int.from_bytes(self._received[:3], "big")
            if len(self._received) < size:
                break
            frame, self._received = self._received[:size], self._received[size:]
            if frame[3] != _GOAWAY:
                kept += frame
        return kept

    def _flush(self) -> None:
        data = self._state.data_to_send()
        if data:
            self._sock.sendall(data)
