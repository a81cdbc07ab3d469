"""Shadow mode: nothing is held or refused, and the figures say what would have been."""

import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until


@pytest.fixture(params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        one_token("nvidia", mode="shadow", queue_max_size=3, low_priority_timeout_s=1),
        limit("real"),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate
        # Who would still wait is not anybody who waits.
        assert gate.envoy.reload(configuration(limit("nvidia"), limit("real")))
        assert gate.client.chat(gate.model("nvidia")).status == 200


def shadows(gate: Gate, **labels: str) -> int:
    return gate.envoy.metric("nimgate_shadow_total", limit="nvidia", **labels)


def test_nothing_is_held_or_refused(gate: Gate):
    answers = [gate.client.chat(gate.model("nvidia")) for _ in range(10)]
    assert {answer.status for answer in answers} == {200}
    assert {answer.header("x-nimgate-queue-ms") for answer in answers} == {"0"}
    assert gate.envoy.requests_total("nvidia", outcome="forwarded") == 10
    # One had its token, three would wait, and six would have been refused.
    assert shadows(gate, outcome="forwarded") == 1
    assert shadows(gate, outcome="queue_full") == 6
    assert gate.envoy.queue_length("nvidia") == 3


def test_status_tells_the_same(gate: Gate):
    for _ in range(10):
        assert gate.client.chat(gate.model("nvidia")).status == 200
    limits = gate.console.send("GET", "/status").json()["limits"]
    told = {one["name"]: one for one in limits}
    assert told["nvidia"]["shadow"] == {"forwarded": 1, "rate_limited": 0, "queue_full": 6}
    assert told["nvidia"]["rules"]["in_force"]["mode"] == "shadow"
    assert told["nvidia"]["queue"]["size"] == 3
    assert told["real"]["shadow"] == {"forwarded": 0, "rate_limited": 0, "queue_full": 0}


def test_what_would_have_given_up_is_told(gate: Gate):
    for priority in ("normal", "low"):
        headers = {"x-priority": priority}
        assert gate.client.chat(gate.model("nvidia"), headers=headers).status == 200
    wait_until(
        lambda: shadows(gate, outcome="rate_limited", priority="low") == 1,
        "low would have given up after a second",
    )
    assert gate.envoy.queue_length("nvidia") == 0


def test_switching_it_off_holds_again(gate: Gate):
    for _ in range(3):
        assert gate.client.chat(gate.model("nvidia")).status == 200
    assert gate.envoy.reload(configuration(one_token("nvidia"), limit("real")))
    gate.wait_for_queue("nvidia", 0)
    with gate.holding("nvidia", 1):
        assert len(gate.fake.requests()) == 3
