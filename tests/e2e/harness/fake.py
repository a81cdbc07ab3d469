"""Starts the fake NVIDIA upstream and reads what it recorded."""

import base64
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import httpx

from .programs import fake_nvidia
from .waiting import HANG_GUARD_S, wait_until


@dataclass(frozen=True)
class Received:
    """One request as the upstream saw it."""

    seq: int
    at_us: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body_len: int
    body_sha256: str
    body: bytes | None
    model: str | None
    status: int
    aborted: bool

    def header(self, name: str) -> str | None:
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]


class Fake:
    """A running `fake-nvidia`. It limits nothing unless a test says so."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        self._arguments = ["--limiter", "none", "--latency-ms", "0", *arguments]
        self._wanted_port = port
        self.port = 0

    def start(self) -> "Fake":
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [str(fake_nvidia()), "--listen", f"127.0.0.1:{self._wanted_port}", *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        assert line.startswith("fake-nvidia listening on 127.0.0.1:"), (
            f"fake-nvidia did not start: {line!r} {self._stderr()}"
        )
        self.port = int(line.rsplit(":", 1)[1])
        self._control = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/_fake", timeout=HANG_GUARD_S, trust_env=False
        )
        return self

    def __enter__(self) -> "Fake":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process at once, as a crash would; safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._control.close()

    def restart(self) -> None:
        """Starts again on the port it had, with an empty record."""
        self._wanted_port = self.port
        self.start()

    def requests(self, model: str | None = None, path: str | None = None) -> list[Received]:
        """What it received, in order of arrival, narrowed to a model or a path."""
        answer = self._control.get("/requests")
        answer.raise_for_status()
        received = [_parse(entry) for entry in answer.json()["requests"]]
        return [
            request
            for request in received
            if (model is None or request.model == model) and (path is None or request.path == path)
        ]

    def wait_for_requests(self, count: int, model: str | None = None) -> list[Received]:
        """Waits until at least `count` requests have arrived, and returns them."""

        def enough() -> list[Received] | None:
            received = self.requests(model)
            return received if len(received) >= count else None

        return wait_until(enough, f"the upstream receives {count} requests for {model}")

    def only(self, model: str) -> Received:
        """The one request for that model; anything but exactly one is a failure."""
        received = self.requests(model)
        assert len(received) == 1, f"expected one request for {model}, got {received}"
        return received[0]

    def reset(self) -> None:
        self._control.delete("/requests").raise_for_status()

    def configure(self, **fields: Any) -> None:
        self._control.put("/config", json=fields).raise_for_status()

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")


def _parse(entry: dict[str, Any]) -> Received:
    encoded = entry.get("body_base64")
    return Received(
        seq=entry["seq"],
        at_us=entry["at_us"],
        method=entry["method"],
        path=entry["path"],
        headers=[(name, value) for name, value in entry["headers"]],
        body_len=entry["body_len"],
        body_sha256=entry["body_sha256"],
        body=None if encoded is None else base64.b64decode(encoded),
        model=entry["model"],
        status=entry["status"],
        aborted=entry["aborted"],
    )
