"""A new configuration loses nothing: no request, no token, nobody's place in the queue."""

import contextlib
import itertools
import threading
import time

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import FAST_RPM, chat, configuration, encode, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until

RELOADS = 20
SENDERS = 8


every_concurrency = pytest.mark.parametrize(
    "gate", [1, 2, 4], ids="{} workers".format, indirect=True
)


@pytest.fixture
def gate(request):
    """A fresh Envoy for each test, since reloads leave traces."""
    workers = getattr(request, "param", 2)
    plugin = configuration(one_token("nvidia"), limit("roomy"))
    options = Options(plugin=plugin, concurrency=workers)
    with running_gate(options) as gate:
        yield gate


@pytest.fixture
def fast(gate: Gate):
    assert gate.envoy.reload(configuration(limit("nvidia", rate_rpm=6000)))
    return gate


@every_concurrency
def test_twenty_reloads_under_load_lose_nothing(fast: Gate):
    gate = fast
    stop = threading.Event()
    answers: list[tuple[str, int]] = []

    def send() -> None:
        while not stop.is_set():
            model = gate.model("nvidia")
            answers.append((model, gate.client.chat(model).status))

    threads = [threading.Thread(target=send) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    try:
        for number in range(RELOADS):
            # Each differs from the one before, or Envoy would see nothing to do.
            entry = limit("nvidia", rate_rpm=FAST_RPM - number, request_timeout_s=100 + number)
            assert gate.envoy.reload(configuration(entry))
            seen = len(answers)
            wait_until(lambda: len(answers) >= seen + SENDERS, "requests go on")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert [entry for entry in answers if entry[1] != 200] == []
    received = [record.model for record in gate.fake.requests()]
    assert sorted(received) == sorted(model for model, _ in answers)
    assert gate.envoy.requests_total("nvidia", outcome="forwarded") == len(answers)


@every_concurrency
def test_twenty_reloads_keep_those_who_wait(gate: Gate):
    gate.empty_bucket("nvidia")
    with gate.holding("nvidia", 6) as held:
        for number in range(RELOADS):
            assert gate.envoy.reload(
                configuration(one_token("nvidia", request_timeout_s=100 + number))
            )
        assert gate.envoy.queue_length("nvidia") == 6
        assert gate.envoy.reload(configuration(limit("nvidia")))
        assert [connection.answer().status for connection in held] == [200] * 6
    gate.wait_for_queue("nvidia", 0)
    assert len(gate.fake.requests()) == 7


def test_waiting_request_gets_the_new_shorter_deadline(gate: Gate):
    gate.empty_bucket("nvidia")
    with gate.holding("nvidia", 2) as held:
        assert gate.envoy.reload(configuration(one_token("nvidia", request_timeout_s=1)))
        for connection in held:
            answer = connection.answer()
            assert answer.status == 429
            assert answer.error["type"] == "RateLimitedError"


def test_waiting_request_gets_the_new_longer_deadline(gate: Gate):
    # On a slow machine the old deadline is there before the reload; the test then tries again.
    for old_s in (4, 20):
        assert gate.envoy.reload(configuration(one_token("nvidia", request_timeout_s=old_s)))
        gate.empty_bucket("nvidia")
        began = time.monotonic()
        with gate.holding("nvidia", 1) as (connection,):
            started = time.monotonic()
            assert gate.envoy.reload(configuration(one_token("nvidia", request_timeout_s=100)))
            if time.monotonic() > began + old_s:
                continue
            wait_until(lambda: time.monotonic() > started + old_s + 0.5, "the old deadline passes")  # noqa: B023
            assert gate.envoy.queue_length("nvidia") == 1
            assert gate.envoy.reload(configuration(limit("nvidia")))
            assert connection.answer().status == 200
            return
    raise AssertionError("no reload was quicker than the deadline")


def test_bucket_is_not_filled_by_a_reload(gate: Gate):
    gate.empty_bucket("nvidia")
    for number in range(3):
        entry = one_token("nvidia", request_timeout_s=100 + number)
        assert gate.envoy.reload(configuration(entry))
    with gate.holding("nvidia", 1):
        assert len(gate.fake.requests()) == 1


def test_a_larger_bucket_starts_with_the_tokens_there_were(gate: Gate):
    gate.empty_bucket("nvidia")
    assert gate.envoy.reload(configuration(one_token("nvidia", bucket_capacity=10)))
    with gate.holding("nvidia", 2):
        assert len(gate.fake.requests()) == 1


def test_retreat_outlives_a_reload(gate: Gate):
    throttled = {"x-fake-status": "429"}
    futures = [gate.client.start_chat(gate.model("roomy"), headers=throttled) for _ in range(2)]
    assert {future.result().status for future in futures} == {429}
    wait_until(lambda: gate.envoy.metric("nimgate_retreat_state", limit="roomy"), "it retreats")
    assert gate.envoy.metric("nimgate_effective_rpm", limit="roomy") < FAST_RPM
    assert gate.envoy.reload(configuration(limit("roomy", request_timeout_s=99)))
    assert gate.client.chat(gate.model("roomy")).status == 200
    assert gate.envoy.metric("nimgate_effective_rpm", limit="roomy") < FAST_RPM


def test_request_of_a_limit_that_is_gone_is_answered(gate: Gate):
    """Its rules are gone; it must not be."""
    assert gate.envoy.reload(configuration(one_token("nvidia", request_timeout_s=5)))
    gate.empty_bucket("nvidia")
    with gate.holding("nvidia", 2) as held:
        assert gate.envoy.reload(configuration(limit("another")))
        assert {connection.answer().status for connection in held} <= {200, 429}
    wait_until(lambda: gate.envoy.queue_length("nvidia") == 0, "nobody waits")


def test_new_limit_takes_over_at_once(gate: Gate):
    for number in itertools.count():
        name = f"limit-{number}"
        assert gate.envoy.reload(configuration(one_token("nvidia"), limit(name)))
        assert gate.client.chat(gate.model(name)).status == 200
        wait_until(lambda: gate.envoy.requests_total(name) == 1, "it is metered")  # noqa: B023
        if number == 2:
            return


def capacity_in_force(gate: Gate, limit_name: str) -> int:
    """What a request on a new connection finds."""
    with gate.raw() as connection:
        connection.request(encode(chat(gate.model(limit_name))))
        assert connection.answer().status == 200
    return gate.envoy.metric("nimgate_token_capacity", limit=limit_name)


def test_going_back_to_an_earlier_configuration_takes_effect(gate: Gate):
    """Envoy would reuse the first one's contexts without a call; `revision` makes it a new one."""
    for revision, capacity in enumerate((50, 60, 50, 60)):
        entry = limit("nvidia", bucket_capacity=capacity)
        assert gate.envoy.reload(configuration(entry, revision=revision))
        wait_until(
            lambda: capacity_in_force(gate, "nvidia") == capacity,  # noqa: B023
            "the configuration is active",
        )


def test_idle_connections_from_before_a_reload_bring_no_old_rules_back(gate: Gate):
    """A client's pool: opened before the change, with the first request after it."""
    assert gate.envoy.reload(configuration(limit("nvidia", bucket_capacity=50)))
    assert gate.client.chat(gate.model("nvidia")).status == 200
    with contextlib.ExitStack() as pool:
        idle = [pool.enter_context(gate.raw()) for _ in range(6)]
        assert gate.envoy.reload(configuration(limit("nvidia", bucket_capacity=60)))
        wait_until(lambda: capacity_in_force(gate, "nvidia") == 60, "the new rules are active")
        for connection in idle:
            connection.request(encode(chat(gate.model("nvidia"))))
            assert connection.answer().status == 200
            time.sleep(1.1)
        assert gate.envoy.metric("nimgate_token_capacity", limit="nvidia") == 60


def test_requests_on_an_old_connection_come_under_the_new_rules(gate: Gate):
    assert gate.envoy.reload(configuration(limit("nvidia", bucket_capacity=50)))
    with Http2(gate.envoy.ports.data) as connection:
        for reload in (False, True):
            if reload:
                assert gate.envoy.reload(configuration(limit("nvidia", bucket_capacity=60)))
            assert connection.status(connection.start(encode(chat(gate.model("nvidia"))))) == 200
    assert gate.envoy.metric("nimgate_token_capacity", limit="nvidia") == 60


def test_every_configuration_may_go_and_the_last_takes_the_vms_along():
    """The first has the timer and the wake-up queue, which the others go on needing."""
    options = Options(
        plugin=configuration(one_token("nvidia")),
        concurrency=4,
        arguments=["--drain-time-s", "1", "--drain-strategy", "immediate"],
    )
    with running_gate(options) as gate:
        vms = gate.envoy.stats("wasm.envoy.wasm.runtime.v8.active")
        gate.empty_bucket("nvidia")
        for seconds in (100, 101):
            gate.envoy.reload(configuration(one_token("nvidia", request_timeout_s=seconds)))
            wait_for_drain(gate)
        with gate.holding("nvidia", 12) as held:
            assert gate.envoy.reload(configuration(limit("nvidia")))
            assert [connection.answer().status for connection in held] == [200] * 12
        wait_for_drain(gate)
        assert gate.client.chat(gate.model("nvidia")).status == 200
        assert gate.envoy.reload(with_filter=False)
        wait_until(
            lambda: sum(gate.envoy.stats("wasm.envoy.wasm.runtime.v8.active").values()) == 0,
            "all VMs are gone",
        )
        assert sum(vms.values()) > 4


def wait_for_drain(gate: Gate) -> None:
    pattern = "listener_manager.total_(filter_chains|listeners)_draining"
    wait_until(lambda: not any(gate.envoy.stats(pattern).values()), "old configurations drained")
