"""Many clients from one thread: connections that each wait for an answer and then send the next request.

Written on bare sockets, because the client shares its cores with what it measures.
"""

import heapq
import random
import selectors
import socket
import time
from dataclasses import dataclass, field

PRIORITIES = ("urgent", "high", "normal", "low")
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    "x-priority: {priority}\r\ncontent-length: {length}\r\n\r\n{body}"
)


@dataclass
class Sent:
    """One request, as its client saw it. Times are monotonic, in seconds."""

    model: str
    priority: int
    sent: float
    left: float | None = None
    answered: float | None = None
    status: int = 0
    # How long the filter says that it waited.
    queued: float = 0.0


@dataclass
class Connection:
    sock: socket.socket
    request: Sent | None = None
    received: bytearray = field(default_factory=bytearray)


class Load:
    """So many connections on one port, with requests of mixed priorities; some clients leave while they wait."""

    def __init__(self, port: int, connections: int, leave: float, seed: int) -> None:
        self.port, self.leave = port, leave
        self.requests: list[Sent] = []
        self._chance = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._departures: list[tuple[float, int, Connection, Sent]] = []
        self._open = [self._connect() for _ in range(connections)]

    def run(self, seconds: float) -> None:
        """Keeps every connection busy for so long; then those who still wait leave."""
        end = time.monotonic() + seconds
        for connection in self._open:
            self._send(connection)
        while (now := time.monotonic()) < end:
            for key, _ in self._selector.select(timeout=0.005):
                self._receive(key.data)
            while self._departures and self._departures[0][0] <= now:
                _, _, connection, request = heapq.heappop(self._departures)
                if connection.request is request:
                    self._depart(connection)
        for key in list(self._selector.get_map().values()):
            self._drop(key.data)

    def _connect(self) -> Connection:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        return connection

    def _send(self, connection: Connection) -> None:
        model = f"nvidia/load-{len(self.requests)}"
        priority = self._chance.randrange(len(PRIORITIES))
        body = f'{{"model":"{model}","messages":[]}}'
        text = HEAD.format(priority=PRIORITIES[priority], length=len(body), body=body)
        request = Sent(model, priority, time.monotonic())
        connection.sock.sendall(text.encode())
        connection.request = request
        connection.received.clear()
        self.requests.append(request)
        if self._chance.random() < self.leave:
            at = request.sent + self._chance.uniform(0, 2)
            heapq.heappush(self._departures, (at, len(self.requests), connection, request))

    def _receive(self, connection: Connection) -> None:
        data = connection.sock.recv(65536)
        if not data:
            raise ConnectionError("Envoy closed a connection in the middle of the measurement")
        connection.received += data
        head, separator, body = bytes(connection.received).partition(b"\r\n\r\n")
        if not separator:
            return
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers[b"content-length"]):
            return
        connection.request.queued = int(headers[b"x-nimgate-queue-ms"]) / 1000
        connection.request.answered = time.monotonic()
        connection.request.status = int(head.split(b" ")[1])
        self._send(connection)

    def _depart(self, connection: Connection) -> None:
        connection.request.left = time.monotonic()
        self._drop(connection)
        self._send(self._connect())

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection.sock)
        connection.sock.close()
