"""The module of version 1 and the present one side by side, as during an upgrade and a rollback.

Envoy keeps the VMs of the old module until its connections are gone, and starts those of the new
one beside them. Both must draw on one bucket and one window, and keep one order.

Nothing of when the filter decided is seen from outside, but it is bounded: a request was granted no
sooner than it was sent plus the time that the filter says it waited, and no later than it arrived
upstream. Only what is certain by these bounds is judged, so a busy machine makes the test blind and
never red.
"""

import random
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import report, shipped
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit
from harness.programs import REPOSITORY, wasm_module
from harness.shipped import Options
from harness.waiting import HANG_GUARD_S, wait_until

VERSION_1 = REPOSITORY / "tests/data/version-1/nimgate.wasm"
LIMIT = "nvidia"
PRIORITIES = ("urgent", "high", "normal", "low")
# Of each generation of connections.
CONNECTIONS = 24
# How long a request may be passed by a lower one because its worker was busy: GRACE in
# limit/ledger.rs.
GRACE_S = 0.030
# After how long without a write of version 1 the ledger leaves it.
QUIET_S = 2
BEFORE_S, TOGETHER_S, AFTER_S = 3.0, 6.0, 3.0


@dataclass
class Sent:
    """One request; times are monotonic, in seconds."""

    model: str
    level: int
    generation: str
    sent: float
    status: int = 0
    queued: float = 0.0
    arrived: float = 0.0

    @property
    def granted_from(self) -> float:
        return self.sent + self.queued

    @property
    def entered_by(self) -> float:
        return self.arrived - self.queued


@dataclass
class Connection:
    generation: str
    sock: socket.socket
    request: Sent | None = None
    received: bytearray = field(default_factory=bytearray)


class Clients:
    """Connections that each wait for an answer and then send the next request, from one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._chance = random.Random(1)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._ending: set[str] = set()
        self.requests: list[Sent] = []
        self.problems: list[str] = []
        self.open: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def add(self, generation: str, count: int = CONNECTIONS) -> None:
        """Opens connections, which send at once and stay on the VMs that they came to."""
        with self._lock:
            self.open[generation] = count
            for _ in range(count):
                self._connect(generation)

    def end(self, generation: str) -> None:
        """These send no more; their connections close after the answer they wait for."""
        with self._lock:
            self._ending.add(generation)

    def finish(self) -> None:
        """Waits until every request is answered."""
        deadline = time.monotonic() + HANG_GUARD_S
        for generation in list(self.open):
            self.end(generation)
        while any(self.open.values()) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._stop.set()
        self._thread.join()
        assert not any(self.open.values()), f"not answered: {self.open}"

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(timeout=0.005):
                with self._lock:
                    self._receive(key.data)

    def _connect(self, generation: str) -> None:
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(generation, sock)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        level = self._chance.randrange(len(PRIORITIES))
        model = f"{LIMIT}/{connection.generation}-{len(self.requests)}"
        body = encode(chat(model))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            "content-type: application/json\r\n"
            f"x-priority: {PRIORITIES[level]}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.received.clear()
        connection.request = Sent(model, level, connection.generation, time.monotonic())
        connection.sock.sendall(head.encode() + body)
        self.requests.append(connection.request)

    def _receive(self, connection: Connection) -> None:
        data = connection.sock.recv(65536)
        request = connection.request
        if not data:
            self.problems.append(f"closed without an answer: {request}")
            self._close(connection)
            return
        connection.received += data
        head, separator, body = bytes(connection.received).partition(b"\r\n\r\n")
        if not separator:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers[b"content-length"]):
            return
        request.status = int(head.split(b" ")[1])
        request.queued = int(headers.get(b"x-nimgate-queue-ms", b"0")) / 1000
        if request.status != 200:
            self.problems.append(f"{request}: {body[:200]!r}")
        if connection.generation in self._ending or headers.get(b"connection") == b"close":
            self._close(connection)
        else:
            self._send(connection)

    def _close(self, connection: Connection) -> None:
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self.open[connection.generation] -= 1


def clock_offset(gate: Gate) -> tuple[float, float]:
    """What to add to the fake's times to get this process's, and how wrong that may be."""
    best = (float("inf"), 0.0)
    for number in range(40):
        model = f"clock/{number}"
        before = time.monotonic()
        gate.direct.chat(model)
        after = time.monotonic()
        at = gate.fake.only(model).at_us / 1e6
        best = min(best, ((after - before) / 2, (before + after) / 2 - at))
    return best[1], best[0]


@dataclass
class Verdict:
    """What is certain of a run."""

    requests: int
    excess: float
    window_excess: int
    overtaken: int
    longest: float

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, tokens over the bucket's {self.excess:+.2f}, over the "
            f"window's {self.window_excess:+d}, grants before a higher priority that had surely "
            f"waited longer than the grace: {self.overtaken}, by at most "
            f"{1000 * self.longest:.0f} ms"
        )


def judge(requests: list[Sent], capacity: int, rate: float, window: float, error: float) -> Verdict:
    # Counted from the first request on, when the bucket was full at most: lateness lowers this.
    began = min(request.sent for request in requests)
    arrivals = sorted(request.arrived for request in requests)
    excess = max(
        number - capacity - rate * (at + error - began)
        for number, at in enumerate(arrivals, start=1)
    )
    window_excess = -1
    if window:
        # All that were surely granted within one window's length.
        quota = int(window * rate)
        spans = sorted((request.arrived + error, request.granted_from) for request in requests)
        for start in sorted(request.granted_from for request in requests):
            inside = sum(1 for to, since in spans if since >= start and to <= start + window)
            window_excess = max(window_excess, inside - quota)
    overtaken, longest = 0, 0.0
    for lower in requests:
        waited = [
            lower.granted_from - higher.entered_by - error
            for higher in requests
            if higher.level < lower.level
            and higher.entered_by + error + GRACE_S < lower.granted_from
            and higher.granted_from > lower.arrived + error
        ]
        if waited:
            overtaken += 1
            longest = max(longest, *waited)
    return Verdict(len(requests), excess, window_excess, overtaken, longest)


def play(
    gate: Gate,
    then: Callable[[Gate, Clients], None],
    capacity: int,
    rpm: int,
    window: int,
    what: str,
) -> Verdict:
    offset, error = clock_offset(gate)
    clients = Clients(gate.envoy.ports.data)
    clients.start()
    try:
        then(gate, clients)
    finally:
        clients.finish()
    assert clients.problems == []
    arrived: dict[str, float] = {}
    for record in gate.fake.requests():
        if record.model.startswith(f"{LIMIT}/"):
            assert record.model not in arrived, f"{record.model} came twice"
            arrived[record.model] = record.at_us / 1e6 + offset
    for request in clients.requests:
        request.arrived = arrived.pop(request.model)
    assert arrived == {}
    verdict = judge(clients.requests, capacity, rpm / 60, window, error)
    report.note(f"two versions, {what}: {verdict}")
    return verdict


def switch(module: Path | None) -> Callable[[Gate, Clients], None]:
    """Old connections go on in the old module's VMs while new ones come to the new module's."""

    def steps(gate: Gate, clients: Clients) -> None:
        clients.add("old")
        time.sleep(BEFORE_S)
        assert gate.envoy.reload(module=module)
        clients.add("new")
        time.sleep(TOGETHER_S)
        clients.end("old")
        time.sleep(AFTER_S)

    return steps


def there_and_back(gate: Gate, clients: Clients) -> None:
    """An upgrade that is over, so that the ledger moves; then a rollback, and the same once more.

    The clients of version 1 fall silent for longer than QUIET_S in between.
    """
    for turn in range(2):
        clients.add(f"old-{turn}")
        time.sleep(BEFORE_S)
        assert gate.envoy.reload(module=None)
        clients.add(f"new-{turn}")
        time.sleep(BEFORE_S)
        clients.end(f"old-{turn}")
        wait_until(lambda: clients.open[f"old-{turn}"] == 0, "version 1 has nobody left")  # noqa: B023
        time.sleep(QUIET_S + 2 * BEFORE_S)
        assert gate.envoy.reload(module=VERSION_1)
        clients.add(f"back-{turn}")
        time.sleep(BEFORE_S)
        clients.end(f"new-{turn}")
        clients.end(f"back-{turn}")


def quiet_s(tree: dict) -> None:
    """Lets the module read how soon version 1 counts as gone."""
    for plugin in shipped.wasm_plugins(tree):
        variables = plugin["vm_config"].setdefault("environment_variables", {})
        variables.setdefault("key_values", {})["NIMGATE_VERSION_1_QUIET_S"] = str(QUIET_S)


@contextmanager
def gate_with(module: Path | None, plugin: dict) -> Iterator[Gate]:
    options = Options(plugin=plugin, concurrency=2, module=module, listeners=[quiet_s])
    with running_gate(options) as gate:
        yield gate


ORDERS = {
    "version 1, then the present one": (VERSION_1, None),
    "the present one, then version 1": (None, VERSION_1),
}


CAPACITY, RPM = 5, 600


def plugin_with(window: int) -> dict:
    entry = limit(
        LIMIT,
        rate_rpm=RPM,
        bucket_capacity=CAPACITY,
        window_s=window,
        queue_max_size=1000,
        request_timeout_s=120,
        low_priority_timeout_s=120,
    )
    # Version 1 knows no such field.
    entry.pop("window_margin_ms", None)
    return configuration(entry)


def hold(verdict: Verdict) -> None:
    assert verdict.excess <= 0
    assert verdict.window_excess <= 0
    assert verdict.overtaken <= verdict.requests // 20


every_window = pytest.mark.parametrize("window", [0, 4], ids="window of {} s".format)


@pytest.mark.parametrize("order", ORDERS)
@every_window
def test_two_versions_share_one_bucket_and_one_order(order: str, window: int):
    first, second = ORDERS[order]
    assert VERSION_1.read_bytes() != wasm_module().read_bytes()
    with gate_with(first, plugin_with(window)) as gate:
        what = f"{order}, window {window}"
        hold(play(gate, switch(second), CAPACITY, RPM, window, what))


@every_window
def test_the_ledger_moves_there_and_back(window: int):
    with gate_with(VERSION_1, plugin_with(window)) as gate:
        what = f"there and back twice, window {window}"
        hold(play(gate, there_and_back, CAPACITY, RPM, window, what))
        moves = re.findall(r'"nimgate":"ledger_moved".*"version":(\d)', gate.envoy.log())
        assert moves == ["2", "1", "2", "1"]
