"""Who goes first: the four priorities, how a client asks for one, and ageing."""

import time

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, one_token
from harness.order import is_order
from harness.shipped import Options
from harness.waiting import wait_until

# Tests of order need all requests in the queue before the first is let go. On a slow machine a
# quick limit has begun to serve by then; the test then tries again on the next, slower one.
SECONDS_PER_TOKEN = (0.4, 2.0, 10.0)

# A machine that stalls may disturb the order among workers; see `harness.order`.
ROUNDS_WITH_SEVERAL_WORKERS = 5


def tiers(name: str, **fields) -> list[dict]:
    return [
        one_token(f"{name}-{index}", seconds, **fields)
        for index, seconds in enumerate(SECONDS_PER_TOKEN)
    ]


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        *tiers("mixed"),
        *tiers("fifo"),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate


@pytest.fixture(scope="module")
def levels_gate():
    with running_gate(Options(plugin=configuration(one_token("levels")))) as gate:
        yield gate


@pytest.fixture(scope="module")
def settings_gate():
    """Another header, default and ceiling than the usual ones."""
    plugin = configuration(
        one_token("levels"),
        priority={"header": "X-Class", "default": "low", "ceiling": "high"},
    )
    with running_gate(Options(plugin=plugin)) as gate:
        yield gate


@pytest.fixture(scope="module")
def aging_gate():
    plugin = configuration(
        *[
            one_token(f"aging-{index}", seconds, aging_s=1)
            for index, seconds in enumerate((5.0, 20.0))
        ],
    )
    # One worker: what a stalled one may do to the order is another subject.
    with running_gate(Options(plugin=plugin, concurrency=1)) as gate:
        yield gate


def order_of_service(gate: Gate, name: str, priorities: list[str], expected: list[int]) -> bool:
    """Queues requests one after the other and says whether the upstream saw them in that order."""
    for index, seconds_per_token in enumerate(SECONDS_PER_TOKEN):
        limit = f"{name}-{index}"
        first = gate.model(limit)
        # It takes the only token.
        answers = {first: gate.client.chat(first)}
        models = [gate.model(limit) for _ in priorities]
        futures = []
        for model, priority in zip(models, priorities, strict=True):
            futures.append(gate.client.start_chat(model, priority=priority))
            # Each is in the queue before the next one comes, so that the order of arrival is known.
            wait_until(
                lambda: _queued_or_served(gate, limit, models) >= len(futures),  # noqa: B023
                "the request is queued",
            )
        none_served = not _served(gate, models)
        answers |= zip(models, results(futures), strict=True)
        assert {answer.status for answer in answers.values()} == {200}
        if none_served:
            arrived = [record for record in gate.fake.requests() if record.model in answers]
            in_order = [first, *(models[number] for number in expected)]
            return is_order(arrived, in_order, answers, seconds_per_token)
    raise AssertionError("the requests could not be queued before the first was served")


def _served(gate: Gate, models: list[str]) -> list[str]:
    return [record.model for record in gate.fake.requests() if record.model in models]


def _queued_or_served(gate: Gate, limit: str, models: list[str]) -> int:
    return gate.envoy.queue_length(limit) + len(_served(gate, models))


def assert_order_of_service(
    gate: Gate, name: str, priorities: list[str], expected: list[int]
) -> None:
    rounds = ROUNDS_WITH_SEVERAL_WORKERS if gate.envoy.options.concurrency > 1 else 1
    in_order = any(order_of_service(gate, name, priorities, expected) for _ in range(rounds))
    assert in_order, f"not served in the order {expected}; workers were stalled in each round"


def test_higher_priority_is_served_first(gate: Gate):
    priorities = ["low", "normal", "high", "urgent", "low", "urgent"]
    assert_order_of_service(gate, "mixed", priorities, [3, 5, 2, 1, 0, 4])


def test_within_a_priority_who_came_first_is_served_first(gate: Gate):
    assert_order_of_service(gate, "fifo", ["high"] * 5, [0, 1, 2, 3, 4])


def priority_of(gate: Gate, headers: list[tuple[str, str | bytes]], **body) -> str:
    """The priority under which a request with these headers waits."""
    while True:
        model = gate.model("levels")
        with gate.raw() as connection:
            connection.request(encode(chat(model, **body)), headers)
            wait_until(lambda: _queued_or_served(gate, "levels", [model]), "it waits or is served")  # noqa: B023
            if _served(gate, [model]):
                # It took the token that was there; the next one has to wait.
                continue
            waiting = [
                priority
                for priority in ("urgent", "high", "normal", "low")
                if gate.envoy.queue_length("levels", priority=priority) == 1
            ]
        gate.wait_for_queue("levels", 0)
        (priority,) = waiting
        return priority


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("urgent", "urgent"),
        ("high", "high"),
        ("normal", "normal"),
        ("low", "low"),
        ("URGENT", "urgent"),
        ("High", "high"),
        ("lOW", "low"),
        ("  urgent  ", "urgent"),
        ("\thigh\t", "high"),
        # T18: what is not one known word asks for nothing.
        ("", "normal"),
        ("critical", "normal"),
        ("0", "normal"),
        ("urgent, low", "normal"),
        ("urgent,urgent", "normal"),
        ("urgent;q=1", "normal"),
        ("urgent" * 1700, "normal"),
        (b"urgent\xff", "normal"),
        (b"\xf0\x9f\x9a\x80", "normal"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_priority_header(levels_gate: Gate, value: str | bytes, expected: str):
    assert priority_of(levels_gate, [("X-Priority", value)]) == expected


@pytest.mark.parametrize(
    "values", [["urgent", "urgent"], ["low", "urgent"], ["urgent", "low"], ["", "urgent"]]
)
def test_repeated_priority_header_asks_for_nothing(levels_gate: Gate, values: list[str]):
    assert priority_of(levels_gate, [("X-Priority", value) for value in values]) == "normal"


def test_no_priority_header_is_normal(levels_gate: Gate):
    assert priority_of(levels_gate, []) == "normal"


def test_priority_inside_the_body_is_not_ours(levels_gate: Gate):
    """T19: other systems' hints are data."""
    hints = {"priority": "urgent", "nvext": {"agent_hints": {"priority": 100}}, "x-priority": "low"}
    assert priority_of(levels_gate, [], **hints) == "normal"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "low"),
        ([("X-Class", "urgent")], "high"),
        ([("x-class", "HIGH")], "high"),
        ([("X-Class", "normal")], "normal"),
        ([("X-Class", "unknown")], "low"),
        ([("X-Class", "urgent"), ("X-Class", "urgent")], "low"),
        ([("X-Priority", "urgent")], "low"),
    ],
    ids=str,
)
def test_header_default_and_ceiling_are_configurable(
    settings_gate: Gate, headers: list[tuple[str, str]], expected: str
):
    assert priority_of(settings_gate, headers) == expected


def test_aged_request_overtakes_a_higher_priority_that_came_later(aging_gate: Gate):
    gate = aging_gate
    for limit in ("aging-0", "aging-1"):
        gate.empty_bucket(limit)
        old, fresh = gate.model(limit), gate.model(limit)
        started = time.monotonic()
        with gate.raw() as low, gate.raw() as high:
            low.request(encode(chat(old)), [("X-Priority", "low")])
            gate.wait_for_queue(limit, 1)
            # Two steps of ageing make it `high`, and it came first.
            wait_until(lambda: time.monotonic() - started > 2.5, "two steps of ageing pass")  # noqa: B023
            high.request(encode(chat(fresh)), [("X-Priority", "high")])
            gate.wait_for_queue(limit, 2)
            if _served(gate, [old, fresh]):
                continue
            assert low.answer().status == 200
            assert _served(gate, [old, fresh])[0] == old
            return
    raise AssertionError("the requests could not be queued before the first was served")
