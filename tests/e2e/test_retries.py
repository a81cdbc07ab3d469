"""Retries by Envoy's router, as the shipped routes make them: each is charged to the bucket."""

import itertools

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.shipped import Options, Tree, all_routes


def quickly(tree: Tree) -> None:
    """The shipped intervals are made for minutes; a test has seconds."""
    found = [
        route["route"]["retry_policy"]
        for route in all_routes(tree)
        if "retry_policy" in route["route"]
    ]
    assert found, "the shipped routes retry nothing"
    for policy in found:
        policy["retry_back_off"] = {"base_interval": "0.05s", "max_interval": "0.2s"}


@pytest.fixture
def gate():
    plugin = configuration(limit("nvidia", rate_rpm=6, bucket_capacity=6, window_s=60))
    with running_gate(Options(plugin=plugin, router_retries=True, listeners=[quickly])) as gate:
        yield gate


def tokens(gate: Gate) -> int:
    return gate.envoy.metric("nimgate_tokens_available", limit="nvidia")


def test_client_does_not_see_a_429_that_a_retry_mends(gate: Gate):
    model = gate.model("nvidia")
    gate.fake.configure(throttle_next=2)
    answer = gate.client.chat(model)
    assert answer.status == 200
    assert [record.status for record in gate.fake.requests(model)] == [429, 429, 200]
    assert answer.header("x-envoy-attempt-count") == "3"
    # One token was taken, and two were charged.
    assert tokens(gate) == 3
    assert gate.envoy.metric("nimgate_upstream_retries_total", limit="nvidia") == 2
    assert [gate.client.chat(gate.model("nvidia")).status for _ in range(3)] == [200] * 3
    with gate.holding("nvidia"):
        assert len(gate.fake.requests()) == 6


def test_last_429_goes_to_the_client_as_it_is(gate: Gate):
    model = gate.model("nvidia")
    answer = gate.client.chat(model, headers={"x-fake-status": "429"})
    assert answer.status == 429
    assert answer.json()["title"] == "Too Many Requests"
    assert [record.status for record in gate.fake.requests(model)] == [429] * 3
    assert tokens(gate) == 3


def test_router_waits_as_long_as_retry_after_says(gate: Gate):
    model = gate.model("nvidia")
    throttled = {"x-fake-status": "429", "x-fake-retry-after": "1"}
    assert gate.client.chat(model, headers=throttled).status == 429
    arrivals = [record.at_us for record in gate.fake.requests(model)]
    assert len(arrivals) == 3
    assert all(later - earlier >= 1e6 for earlier, later in itertools.pairwise(arrivals))


def test_many_that_are_refused_at_once_are_all_retried():
    """Envoy lets three retries of a cluster go on at once by default."""
    plugin = configuration(limit("nvidia", retreat={"enabled": False}))
    with running_gate(Options(plugin=plugin, router_retries=True)) as gate:
        # Each waits as long as its Retry-After says, so all wait for their retries together.
        gate.fake.configure(throttle_next=12, retry_after=1)
        asked = [gate.client.start_chat(gate.model("nvidia")) for _ in range(12)]
        answers = results(asked)
        assert [answer.status for answer in answers] == [200] * 12
        statuses = [record.status for record in gate.fake.requests()]
        assert (statuses.count(429), statuses.count(200)) == (12, 12)


def test_client_does_not_see_that_the_workers_were_full_for_a_moment(gate: Gate):
    model = gate.model("nvidia")
    gate.fake.configure(error_burst={"count": 1, "status": 503})
    assert gate.client.chat(model).status == 200
    assert [record.status for record in gate.fake.requests(model)] == [503, 200]


def test_what_passes_is_not_retried(gate: Gate):
    answer = gate.client.chat(gate.model("other"), headers={"x-fake-status": "429"})
    assert answer.status == 429
    assert len(gate.fake.requests()) == 1
