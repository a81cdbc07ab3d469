"""One token bucket per limit for the whole Envoy, however many workers there are."""

import threading
from contextlib import ExitStack

import pytest

from harness import report
from harness.fake import Received
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until

FLOOD_RPM = 600
FLOOD_BURST = 5
FLOOD_REQUESTS = 40
FLOOD_CONNECTIONS = 12


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        limit("flood", rate_rpm=FLOOD_RPM, bucket_capacity=FLOOD_BURST),
        limit("three", rate_rpm=1, bucket_capacity=3),
        one_token("empty"),
        one_token("full"),
        limit("tenth", rate_rpm=40),
        limit("tiny", rate_rpm=9),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate


def test_upstream_never_sees_more_than_burst_and_rate_allow(gate: Gate):
    # A request of our own to the upstream gives the upstream's clock before the first grant.
    gate.fake.reset()
    assert gate.direct.chat("start").status == 200

    def send(count: int) -> None:
        for _ in range(count):
            statuses.append(gate.client.chat(gate.model("flood")).status)

    statuses: list[int] = []
    share, rest = divmod(FLOOD_REQUESTS, FLOOD_CONNECTIONS)
    threads = [
        threading.Thread(target=send, args=(share + (number < rest),))
        for number in range(FLOOD_CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * FLOOD_REQUESTS
    (start,) = gate.fake.requests("start")
    arrivals = [(record.at_us - start.at_us) / 1e6 for record in _seen(gate, "flood")]
    assert len(arrivals) == FLOOD_REQUESTS
    # By the time a request arrives, at most this many can have been granted since the start.
    for count, at in enumerate(sorted(arrivals), start=1):
        allowed = FLOOD_BURST + at * FLOOD_RPM / 60
        assert count <= allowed, f"{count} requests after {at:.3f} s, {allowed:.2f} allowed"
    report.note(
        f"highest burst at the upstream with {gate.envoy.options.concurrency} workers: "
        f"{report.burst(arrivals, FLOOD_RPM / 60):.2f} of {FLOOD_BURST} "
        "(requests beyond rate × time, over all windows between two arrivals)"
    )


def test_all_workers_draw_on_one_bucket(gate: Gate):
    with ExitStack() as stack:
        for _ in range(12):
            connection = stack.enter_context(gate.raw())
            connection.request(encode(chat(gate.model("three"))))
        gate.wait_for_queue("three", 9)
        wait_until(lambda: len(_seen(gate, "three")) >= 3, "three are served")
        assert len(_seen(gate, "three")) == 3
    gate.wait_for_queue("three", 0)


def test_request_goes_at_once_when_a_token_is_there(gate: Gate):
    answer = gate.client.chat(gate.model("full"))
    assert answer.status == 200
    assert answer.went_at_once(60)


def test_an_empty_bucket_does_not_hold_up_another_limit(gate: Gate):
    gate.empty_bucket("empty")
    with gate.holding("empty", 2):
        answer = gate.client.chat(gate.model("tenth"))
        assert answer.went_at_once(1.5)
        assert gate.envoy.queue_length("empty") == 2


@pytest.mark.parametrize(("name", "capacity"), [("tenth", 4), ("tiny", 1)])
def test_capacity_is_a_tenth_of_the_rate_and_at_least_one(gate: Gate, name: str, capacity: int):
    assert gate.client.chat(gate.model(name)).status == 200
    assert gate.envoy.metric("nimgate_token_capacity", limit=name) == capacity


def test_waiting_request_says_how_long_it_waited(gate: Gate):
    for _ in range(FLOOD_BURST * 4):
        answer = gate.client.chat(gate.model("flood"))
        assert 0 <= answer.waited_ms <= (answer.finished - answer.started) * 1000


def _seen(gate: Gate, limit: str) -> list[Received]:
    """What the upstream received for a limit."""
    return [
        record for record in gate.fake.requests() if (record.model or "").startswith(f"{limit}/")
    ]
