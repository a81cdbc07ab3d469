"""The queue: its bound over all workers, what a full one does, deadlines, leaving clients."""

import re
from contextlib import ExitStack

import pytest

from harness.client import Answer, results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, one_token
from harness.order import is_order
from harness.shipped import Options
from harness.waiting import wait_for_equal, wait_until

WAIT_TIERS = (1.0, 5.0, 20.0)
# On a slow machine a token has come before all requests are queued; the test then tries again.
SECONDS_PER_TOKEN = (3, 15)


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        one_token("bounded", queue_max_size=3),
        one_token("outside", **outside(queue_max_size=2)),
        one_token("outside-deadline", **outside(queue_max_size=1, low_priority_timeout_s=1)),
        *[
            one_token(f"after-{index}", seconds, **outside(queue_max_size=1))
            for index, seconds in enumerate(WAIT_TIERS)
        ],
        one_token("deadline", low_priority_timeout_s=1, request_timeout_s=2),
        one_token("only-low", low_priority_timeout_s=1, request_timeout_s=100),
        one_token("leaving"),
        *[one_token(f"unspent-{seconds}", seconds) for seconds in SECONDS_PER_TOKEN],
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate


def outside(**fields) -> dict:
    return {"queue_full_policy": "passthrough", **fields}


def assert_refused(answer: Answer, status: int, kind: str, code: str) -> None:
    """The shape that every refusal with a time to come back has."""
    assert answer.status == status, answer
    error = answer.error
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)
    assert isinstance(error["message"], str)
    assert error["message"]
    (retry_after,) = answer.header_values("retry-after")
    assert re.fullmatch(r"[1-9]\d*", retry_after)
    # A refusal tells the state of the limit like any other answer to a metered request.
    for name in ("x-nimgate-queue-ms", "x-ratelimit-limit-requests"):
        assert re.fullmatch(r"\d+", answer.header(name) or ""), answer


def test_queue_is_bounded_over_all_workers(gate: Gate):
    gate.empty_bucket("bounded")
    with gate.holding("bounded", 3):
        refused = results(gate.client.start_chat(gate.model("bounded")) for _ in range(12))
        for answer in refused:
            assert_refused(answer, 503, "QueueFullError", "queue_full")
        # A higher priority does not push anyone out.
        urgent = gate.client.chat(gate.model("bounded"), priority="urgent")
        assert_refused(urgent, 503, "QueueFullError", "queue_full")
        assert gate.envoy.queue_length("bounded") == 3
        assert gate.envoy.requests_total("bounded", outcome="queue_full") == 13
    gate.wait_for_queue("bounded", 0)
    # A place that became free can be taken again.
    with gate.holding("bounded", 1):
        pass


def test_passthrough_policy_waits_outside_the_queue_within_a_bound_of_its_own(gate: Gate):
    gate.empty_bucket("outside")
    with gate.holding("outside", 2), ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(gate.raw())
            connection.request(encode(chat(gate.model("outside"))))
        wait_for_equal(lambda: _outside(gate, "outside"), 2, "both wait outside the queue")
        refused = results(gate.client.start_chat(gate.model("outside")) for _ in range(6))
        for answer in refused:
            assert_refused(answer, 503, "QueueFullError", "queue_full")
        assert gate.envoy.queue_length("outside") == 2
        assert _outside(gate, "outside") == 2
        assert gate.envoy.metric("nimgate_fallback_total", limit="outside") == 2
    # They leave like those in the queue.
    wait_for_equal(lambda: _outside(gate, "outside"), 0, "nobody waits outside")


def test_request_outside_the_queue_gets_429_at_its_deadline(gate: Gate):
    gate.empty_bucket("outside-deadline")
    with gate.holding("outside-deadline", 1):
        answer = gate.client.chat(gate.model("outside-deadline"), priority="low")
        assert_refused(answer, 429, "RateLimitedError", "rate_limited")
        assert answer.finished - answer.started >= 1
        assert gate.envoy.metric("nimgate_fallback_total", limit="outside-deadline") == 1
        assert _outside(gate, "outside-deadline") == 0
        assert gate.envoy.queue_length("outside-deadline") == 1


def test_request_outside_the_queue_goes_behind_everything_queued(gate: Gate):
    for index, seconds_per_token in enumerate(WAIT_TIERS):
        name = f"after-{index}"
        first, queued, outside_queue = (gate.model(name) for _ in range(3))
        # It takes the only token.
        answers = {first: gate.client.chat(first)}
        inside = gate.client.start_chat(queued, priority="low")
        wait_until(lambda: gate.envoy.queue_length(name) or inside.done(), "it is queued")  # noqa: B023
        out = gate.client.start_chat(outside_queue, priority="urgent")
        wait_until(
            lambda: gate.envoy.metric("nimgate_fallback_total", limit=name) or out.done(),  # noqa: B023
            "the other waits outside",
        )
        in_place = not gate.fake.requests(queued) and not out.done()
        answers |= {queued: inside.result(), outside_queue: out.result()}
        assert [answer.status for answer in answers.values()] == [200] * 3
        arrived = [record for record in gate.fake.requests() if record.model in answers]
        if in_place and is_order(arrived, list(answers), answers, seconds_per_token):
            return
        # Only a worker that stalled may have been passed over, and not in round after round.
        assert not in_place or gate.envoy.options.concurrency > 1, arrived
    raise AssertionError("not once were both in place and served in the right order")


@pytest.mark.parametrize(
    ("priority", "deadline_s"), [("low", 1), ("normal", 2), ("high", 2), ("urgent", 2)]
)
def test_no_token_before_the_deadline_is_429(gate: Gate, priority: str, deadline_s: int):
    gate.empty_bucket("deadline")
    answer = gate.client.chat(gate.model("deadline"), priority=priority)
    assert_refused(answer, 429, "RateLimitedError", "rate_limited")
    assert answer.finished - answer.started >= deadline_s


def test_deadline_of_low_priority_concerns_no_other(gate: Gate):
    gate.empty_bucket("only-low")
    with gate.holding("only-low", 1, priority="normal"), gate.holding("only-low", 1, "high"):
        low = gate.client.chat(gate.model("only-low"), priority="low")
        assert_refused(low, 429, "RateLimitedError", "rate_limited")
        assert gate.envoy.queue_length("only-low") == 2


def test_refused_request_never_reaches_the_upstream(gate: Gate):
    gate.empty_bucket("deadline")
    model = gate.model("deadline")
    assert gate.client.chat(model, priority="low").status == 429
    assert gate.fake.requests(model) == []


@pytest.mark.parametrize("way", ["close", "abort", "half_close"])
def test_client_that_leaves_is_taken_out_at_once(gate: Gate, way: str):
    gate.empty_bucket("leaving")
    left = gate.envoy.requests_total("leaving", outcome="client_left")
    seen = len(gate.fake.requests())
    connections = [gate.raw() for _ in range(8)]
    for number, connection in enumerate(connections):
        priority = ("urgent", "high", "normal", "low")[number % 4]
        body = encode(chat(gate.model("leaving")))
        connection.request(body, [("X-Priority", priority)])
    gate.wait_for_queue("leaving", 8)
    for connection in connections:
        getattr(connection, way)()
    gate.wait_for_queue("leaving", 0)
    wait_for_equal(
        lambda: gate.envoy.requests_total("leaving", outcome="client_left"), left + 8, "all left"
    )
    assert len(gate.fake.requests()) == seen
    for connection in connections:
        connection.close()


def test_client_that_left_spent_no_token(gate: Gate):
    """Six leave; had each spent a token, the next would wait for seven times as long."""
    for seconds in SECONDS_PER_TOKEN:
        name = f"unspent-{seconds}"
        first, last = gate.model(name), gate.model(name)
        assert gate.client.chat(first).status == 200
        models = [gate.model(name) for _ in range(6)]
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(gate.raw()).request(encode(chat(model)))
            wait_until(
                lambda: gate.envoy.queue_length(name) + served(gate, models) >= 6,  # noqa: B023
                "all have come",
            )
        gate.wait_for_queue(name, 0)
        if served(gate, models):
            continue
        answer = gate.client.chat(last)
        assert answer.status == 200
        # A token's time at most, and what a busy machine adds to it.
        assert answer.waited_ms < 3 * seconds * 1000
        return
    raise AssertionError("the requests could not be queued before a token came")


def served(gate: Gate, models: list[str]) -> int:
    return sum(record.model in models for record in gate.fake.requests())


def _outside(gate: Gate, name: str) -> int:
    return gate.envoy.metric("nimgate_fallback_length", limit=name)
