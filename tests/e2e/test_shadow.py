"""Shadow mode: nothing is held or refused, and the figures say what would have been."""

import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import FAST_RPM, configuration, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until

RETREAT = 1


@pytest.fixture(params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        one_token("nvidia", mode="shadow", queue_max_size=3, low_priority_timeout_s=1),
        limit("refused", mode="shadow", retreat={"retry_after_max_s": 60}),
        limit("real"),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate
        # Who would still wait is not anybody who waits.
        plugin = configuration(limit("nvidia"), limit("refused"), limit("real"))
        assert gate.envoy.reload(plugin)
        assert gate.client.chat(gate.model("nvidia")).status == 200


def shadows(gate: Gate, **labels: str) -> int:
    return gate.envoy.metric("nimgate_shadow_total", limit="nvidia", **labels)


def test_nothing_is_held_or_refused(gate: Gate):
    answers = [gate.client.chat(gate.model("nvidia")) for _ in range(10)]
    assert {answer.status for answer in answers} == {200}
    assert all(answer.went_at_once(60) for answer in answers)
    assert gate.envoy.requests_total("nvidia", outcome="forwarded") == 10
    # One had its token, three would wait, and six would have been refused.
    assert shadows(gate, outcome="forwarded") == 1
    assert shadows(gate, outcome="queue_full") == 6
    assert gate.envoy.queue_length("nvidia") == 3


def test_status_tells_the_same(gate: Gate):
    for _ in range(10):
        assert gate.client.chat(gate.model("nvidia")).status == 200
    limits = gate.console.send("GET", "/status").json()["limits"]
    by_name = {one["name"]: one for one in limits}
    assert by_name["nvidia"]["shadow"] == {"forwarded": 1, "rate_limited": 0, "queue_full": 6}
    assert by_name["nvidia"]["rules"]["in_force"]["mode"] == "shadow"
    assert by_name["nvidia"]["queue"]["size"] == 3
    assert by_name["real"]["shadow"] == {"forwarded": 0, "rate_limited": 0, "queue_full": 0}


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


def test_refusals_of_the_upstream_slow_it_down_all_the_same(gate: Gate):
    """Nothing is held, but what would be is what a limit that retreats would hold."""
    headers = {"x-fake-status": "429", "x-fake-retry-after": "60"}
    assert gate.client.chat(gate.model("refused"), headers=headers).status == 429
    assert gate.envoy.metric("nimgate_retreat_state", limit="refused") == RETREAT
    assert 1 <= gate.envoy.metric("nimgate_effective_rpm", limit="refused") < FAST_RPM
    # Were it served, that would end the pause.
    answer = gate.client.chat(gate.model("refused"), headers=headers)
    assert (answer.status, answer.header("x-nimgate-queue-ms")) == (429, "0")
    assert gate.envoy.queue_length("refused") == 1
