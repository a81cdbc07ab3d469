"""Clients: httpx for ordinary requests, a raw socket for those that no HTTP library would send.

Every request of `Client` opens a connection of its own, because Envoy gives a whole connection to
one worker: only many connections spread over the workers.
"""

import http.client
import json
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from . import nimgate
from .waiting import HANG_GUARD_S

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """What a client got, and when by its own clock."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    started: float = 0.0
    finished: float = 0.0

    def header(self, name: str) -> str | None:
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def waited_ms(self) -> int | None:
        """How long it says that it waited in the queue; None if nimgate did not meter it."""
        value = self.header("x-nimgate-queue-ms")
        return None if value is None else int(value)

    def went_at_once(self, token_s: float) -> bool:
        """Whether it was granted without waiting for a token, of which one comes every `token_s`.

        Not whether it says 0 ms: a busy machine may stop a worker between a request's arrival and
        its grant. Who finds an empty bucket waits for what is left of a token's time; a test that
        takes less than half of it sees the difference.
        """
        return self.waited_ms is not None and self.waited_ms < token_s * 500

    @property
    def outside_queue_s(self) -> float:
        """How long it took, less the time in the queue: the most by which it can have reached the
        upstream later than it was granted. The time in the queue is given in whole milliseconds."""
        waited_ms = self.header("x-nimgate-queue-ms")
        assert waited_ms is not None, self
        return self.finished - self.started - int(waited_ms) / 1000

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of an answer in OpenAI's shape; fails with the whole answer if not."""
        assert self.header("content-type") == "application/json", self
        document = self.json()
        assert set(document) == {"error"}, self
        return document["error"]


class Client:
    """Sends requests to one address, each on its own connection, in the background if asked."""

    def __init__(self, port: int, **options: Any) -> None:
        self.port = port
        self._options = {
            "base_url": f"http://127.0.0.1:{port}",
            "timeout": HANG_GUARD_S * 2,
            "trust_env": False,
            # There is no TLS here, and reading certificates takes longer than all the rest.
            "verify": False,
            **options,
        }
        # HTTP/2 shares a connection. Over HTTP/1.1 nothing is shared, not even a pool: threads that
        # close idle connections of each other's requests would fail in the client.
        self._shared = httpx.Client(**self._options) if options.get("http2") else None
        self._threads = ThreadPoolExecutor(max_workers=300)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._shared:
            self._shared.close()

    @contextmanager
    def _http(self) -> Iterator[httpx.Client]:
        if self._shared:
            yield self._shared
        else:
            with httpx.Client(**self._options) as client:
                yield client

    def send(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
    ) -> Answer:
        started = time.monotonic()
        with self._http() as http:
            answer = http.request(method, path, content=body, headers=headers)
        return Answer(
            answer.status_code,
            [(key.decode(), value.decode("latin-1")) for key, value in answer.headers.raw],
            answer.content,
            started,
            time.monotonic(),
        )

    def post(
        self, body: bytes | Iterable[bytes], path: str = CHAT, **headers: str | None
    ) -> Answer:
        """POSTs raw bytes; headers are keywords (`content_type=...`), None leaves one out."""
        named = {"content_type": "application/json", **headers}
        sent = {name.replace("_", "-"): value for name, value in named.items() if value is not None}
        return self.send("POST", path, body, sent)

    def chat(
        self,
        model: str,
        priority: str | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        path: str = CHAT,
        **fields: Any,
    ) -> Answer:
        """A chat completion request for `model`; further keywords go into its body."""
        pairs = [("content-type", "application/json")]
        if priority is not None:
            pairs.append(("x-priority", priority))
        pairs.extend(headers.items() if isinstance(headers, dict) else headers or [])
        return self.send("POST", path, nimgate.encode(nimgate.chat(model, **fields)), pairs)

    def start_chat(self, *arguments: Any, **keywords: Any) -> "Future[Answer]":
        """The same in the background."""
        return self._threads.submit(self.chat, *arguments, **keywords)

    def start(self, *arguments: Any, **keywords: Any) -> "Future[Answer]":
        """`send` in the background."""
        return self._threads.submit(self.send, *arguments, **keywords)

    @contextmanager
    def stream(self, model: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """A streamed chat completion, read by the caller as it comes."""
        body = nimgate.encode(nimgate.chat(model, stream=True))
        all_headers = {"content-type": "application/json", **(headers or {})}
        with (
            self._http() as http,
            http.stream("POST", CHAT, content=body, headers=all_headers) as answer,
        ):
            yield answer


def results(futures: Iterable["Future[Answer]"]) -> list[Answer]:
    """Waits for all of them. All are sent before the first is waited for."""
    return [future.result(timeout=HANG_GUARD_S * 2) for future in list(futures)]


@dataclass
class RawConnection:
    """One TCP connection on which a test writes HTTP/1.1 by hand."""

    port: int
    sock: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=HANG_GUARD_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> "RawConnection":
        self.sock.sendall(data)
        return self

    def head(
        self,
        headers: Iterable[tuple[str, str | bytes]],
        method: str = "POST",
        path: str = CHAT,
        host: str = "localhost",
    ) -> "RawConnection":
        """Sends a request line and headers exactly as given, `Host` first."""
        lines = [f"{method} {path} HTTP/1.1".encode(), f"Host: {host}".encode()]
        for name, value in headers:
            lines.append(
                name.encode() + b": " + (value if isinstance(value, bytes) else value.encode())
            )
        return self.send(b"\r\n".join(lines) + b"\r\n\r\n")

    def request(
        self, body: bytes, headers: Iterable[tuple[str, str | bytes]] = (), **line: str
    ) -> "RawConnection":
        """Sends a whole JSON request with a content length."""
        self.head(
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                *headers,
            ],
            **line,
        )
        return self.send(body)

    def chunk(self, data: bytes) -> "RawConnection":
        return self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self, method: str = "POST") -> Answer:
        """Reads one response to its end."""
        response = http.client.HTTPResponse(self.sock, method=method)
        response.begin()
        return Answer(response.status, response.getheaders(), response.read())

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def abort(self) -> None:
        """Closes with a TCP reset instead of the usual goodbye."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()
