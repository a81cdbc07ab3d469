"""Upstreams that talk while the request's body is still open, as no HTTP client library expects.

They keep what arrives, byte by byte, and when each request's head came.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import h2.config
import h2.connection
import h2.events

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n"
SERVED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


class Upstream:
    """Accepts connections and serves each in a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.heads: list[tuple[float, bytes]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.converse(connection)
        except OSError:
            pass
        finally:
            connection.close()

    def converse(self, connection: socket.socket) -> None:
        raise NotImplementedError


class Switching(Upstream):
    """HTTP/1.1: switches protocols where asked to, and sends every byte back after that. What asks
    for nothing is answered as soon as its head has come."""

    def converse(self, connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, rest = received.partition(b"\r\n\r\n")
        self.heads.append((time.monotonic(), head))
        fields = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        asked = [value.strip() for name, _, value in fields if name.lower() == b"upgrade"]
        if not asked:
            connection.sendall(SERVED)
            return
        connection.sendall(SWITCHED % asked[0] + rest)
        while data := connection.recv(65536):
            connection.sendall(data)


class Talking(Upstream):
    """HTTP/2: answers at once, and sends every piece of a body back as it comes."""

    def converse(self, connection: socket.socket) -> None:
        state = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.heads.append((time.monotonic(), repr(event.headers).encode()))
                    kind = dict(event.headers).get("content-type", "application/grpc")
                    state.send_headers(
                        event.stream_id, [(":status", "200"), ("content-type", kind)]
                    )
                elif isinstance(event, h2.events.DataReceived):
                    state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    state.send_data(event.stream_id, event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    state.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
            connection.sendall(state.data_to_send())


@contextmanager
def running(upstream: Upstream) -> Iterator[Upstream]:
    try:
        yield upstream
    finally:
        upstream.close()
