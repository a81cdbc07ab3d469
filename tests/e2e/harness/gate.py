"""One running set of programs for tests: a fake upstream, an Envoy before it, a client.

A `Gate` is started once for many tests. What keeps them apart is the limit: each test takes one of
its own, matched by models `<limit>/*`, so that neither tokens nor queues nor counters are shared.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from . import nimgate
from .client import Client, RawConnection
from .envoy import Envoy
from .fake import Fake
from .shipped import Options
from .waiting import wait_for_equal, wait_until

_numbers = itertools.count(1)


class Gate:
    """Fake upstream, Envoy and client of a test."""

    def __init__(self, fake: Fake, envoy: Envoy) -> None:
        self.fake = fake
        self.envoy = envoy
        self.client = Client(envoy.ports.data)
        # The way past Envoy, to learn what the upstream says by itself.
        self.direct = Client(fake.port)
        self.metrics = Client(envoy.ports.metrics)
        self.console = Client(envoy.ports.console)
        # How many requests have passed through, where tests keep count of all of them.
        self.passed = 0

    def raw(self) -> RawConnection:
        return RawConnection(self.envoy.ports.data)

    def model(self, limit: str) -> str:
        """A model name that nothing else in this run uses, so that records can be distinguished."""
        return f"{limit}/m{next(_numbers)}"

    # Steps that many tests share.

    def empty_bucket(self, limit: str) -> None:
        """Spends the only token of a bucket, if it is there; who would have to wait leaves."""
        model = self.model(limit)
        with self.raw() as connection:
            connection.request(nimgate.encode(nimgate.chat(model)))
            wait_until(
                lambda: self.fake.requests(model) or self.envoy.queue_length(limit),
                "the request is served or waits",
            )
            if self.fake.requests(model):
                answer = connection.answer()
                assert answer.status == 200, answer
        self.wait_for_queue(limit, 0)

    def check_passed(self) -> None:
        """They are counted together, up to a second after they came."""
        wait_for_equal(
            lambda: self.envoy.metric("nimgate_passthrough_total"), self.passed, "requests passed"
        )

    def wait_for_queue(self, limit: str, length: int) -> None:
        wait_for_equal(
            lambda: self.envoy.queue_length(limit), length, f"length of the queue of {limit}"
        )

    @contextmanager
    def holding(
        self, limit: str, count: int = 1, priority: str = "normal"
    ) -> Iterator[list[RawConnection]]:
        """Requests that wait in the queue; those not answered by then leave at the end."""
        before = self.envoy.queue_length(limit)
        with ExitStack() as stack:
            held = [stack.enter_context(self.raw()) for _ in range(count)]
            for connection in held:
                body = nimgate.encode(nimgate.chat(self.model(limit)))
                connection.request(body, [("X-Priority", priority)])
            self.wait_for_queue(limit, before + count)
            yield held
        # Whoever comes next must not find the places of those who left still taken.
        self.wait_for_queue(limit, before)

    def close(self) -> None:
        """Stops everything, and checks that no queue still counts anyone."""
        try:
            wait_for_equal(self._busy_gauges, {}, "gauges of queues at rest")
            if self.passed:
                self.check_passed()
            self._close_clients()
        finally:
            try:
                self.envoy.stop()
            finally:
                self.fake.stop()

    def abandon(self) -> None:
        """Stops everything without any check."""
        self.envoy.kill_quietly()
        self.fake.stop()
        self._close_clients()

    def _close_clients(self) -> None:
        self.client.close()
        self.direct.close()
        self.metrics.close()
        self.console.close()

    def _busy_gauges(self) -> dict[str, int]:
        stats = self.envoy.stats("wasmcustom.*nimgate_(queue|fallback)_length$")
        return {name: value for name, value in stats.items() if value}


@contextmanager
def running_gate(
    options: Options | None = None, finish: Callable[[Options, Fake], None] | None = None
) -> Iterator[Gate]:
    """Starts everything, and at the end checks that Envoy was healthy and every queue is empty.

    `finish` may complete the options once the fake's port is known.
    """
    options = options or Options()
    fake = Fake().start()
    try:
        if finish:
            finish(options, fake)
        envoy = Envoy(fake.port, options)
        try:
            envoy.start()
        except BaseException:
            envoy.kill_quietly()
            raise
    except BaseException:
        fake.stop()
        raise
    gate = Gate(fake, envoy)
    try:
        yield gate
    except BaseException:
        # The test has failed already; what it left would only hide why.
        gate.abandon()
        raise
    gate.close()
