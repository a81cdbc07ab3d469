"""How 429s of the upstream slow the filter down, and what does not.

Entering the retreat and obeying Retry-After are tested here; how limits are found and followed, in
`test_hidden_limits.py`. Windows are short, since all spans of the retreat are parts of one.
"""

import socket

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import FAST_RPM, configuration, limit, one_token
from harness.shipped import Options, plain_cluster, route_by_header
from harness.waiting import wait_until

NORMAL = 0
HOSTILE_VALUES = {
    "negative": "-1",
    "zero": "0",
    "float": "1e9",
    "huge": "1000000000",
    "forty digits": "9" * 40,
    "past date": "Wed, 21 Oct 2015 07:28:00 GMT",
    "far date": "Fri, 31 Dec 9999 23:59:59 GMT",
    "nonsense": "soon",
    "empty": "",
    "duplicate": "1000000000|2000000000",
    "duplicate with nonsense": "soon|1000000000",
}
CAP_S = 1
WINDOW_S = 1
RETREAT = 1
FLOOR_RPM = FAST_RPM * 99 // 100
# After a cut the rate is held for a quarter of a window: long enough to read it.
FLOOR_WINDOW_S = 60


@pytest.fixture(scope="module")
def dead_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def gate(request, dead_port):
    hostile = [
        limit(f"hostile-{index}", retreat={"retry_after_max_s": CAP_S})
        for index in range(len(HOSTILE_VALUES))
    ]
    plugin = configuration(
        limit("storm", window_s=WINDOW_S),
        limit("beside"),
        limit("obeys"),
        limit("disabled", retreat={"enabled": False}),
        # Just below the configured rate, so that the first cut would go past it.
        limit("floored", window_s=FLOOR_WINDOW_S, retreat={"floor_rpm": FLOOR_RPM}),
        limit("floorless", window_s=FLOOR_WINDOW_S),
        limit("obeys-503", retreat={"obey_503": True, "retry_after_max_s": CAP_S}),
        limit("models", window_s=WINDOW_S),
        one_token("own-429", low_priority_timeout_s=1, retreat={"retry_after_max_s": CAP_S}),
        one_token("own-503", queue_max_size=1),
        limit("local-503"),
        limit("other-errors"),
        limit("worker-pool"),
        *hostile,
    )
    options = Options(
        plugin=plugin,
        concurrency=request.param,
        listeners=[route_by_header("x-test-cluster", "dead", "dead")],
        clusters=[plain_cluster("dead", dead_port)],
    )
    with running_gate(options) as gate:
        yield gate


def state(gate: Gate, name: str) -> int:
    return gate.envoy.metric("nimgate_retreat_state", limit=name)


def effective_rpm(gate: Gate, name: str) -> int:
    return gate.envoy.metric("nimgate_effective_rpm", limit=name)


def storm(gate: Gate, name: str, count: int = 20) -> None:
    """Many requests at once, each of which the upstream answers with 429."""
    throttled = {"x-fake-status": "429"}
    futures = [gate.client.start_chat(gate.model(name), headers=throttled) for _ in range(count)]
    assert {answer.status for answer in results(futures)} == {429}


def test_storm_of_429s_cuts_the_rate_of_that_limit_only(gate: Gate):
    assert gate.client.chat(gate.model("beside")).status == 200
    storm(gate, "storm")
    wait_until(lambda: state(gate, "storm") != NORMAL, "the limit retreats")
    assert 1 <= effective_rpm(gate, "storm") < FAST_RPM
    assert state(gate, "beside") == NORMAL
    assert effective_rpm(gate, "beside") == FAST_RPM
    line = gate.envoy.wait_for_log('"limit":"storm".*"nimgate":"retreat"')
    assert "429" in line
    # It slows down; it does not stop.
    assert gate.client.chat(gate.model("storm")).status == 200


def test_retry_after_is_obeyed(gate: Gate):
    """Whoever is throttled tells when to come back; until then the upstream sees nobody."""
    first, second = gate.model("obeys"), gate.model("obeys")
    headers = {"x-fake-status": "429", "x-fake-retry-after": "3"}
    throttled = gate.client.chat(first, headers=headers)
    assert throttled.status == 429
    assert throttled.header("retry-after") == "3"
    assert gate.client.chat(second).status == 200
    waited_us = gate.fake.only(second).at_us - gate.fake.only(first).at_us
    assert waited_us >= 3_000_000 - 2_000


@pytest.mark.parametrize("name", HOSTILE_VALUES)
def test_hostile_retry_after_stops_nobody_for_long(gate: Gate, name: str):
    """T28: the cap is one second here, and most of the values would stop the limit for years."""
    limit_name = f"hostile-{list(HOSTILE_VALUES).index(name)}"
    headers = {"x-fake-status": "429", "x-fake-retry-after": HOSTILE_VALUES[name]}
    assert gate.client.chat(gate.model(limit_name), headers=headers).status == 429
    assert gate.client.chat(gate.model(limit_name)).status == 200
    assert effective_rpm(gate, limit_name) >= 1


def test_rate_never_falls_below_the_floor(gate: Gate):
    """The same refusals bring a limit without a floor below that of the other."""
    for name in ("floorless", "floored"):
        # A single one, of a limit that is hardly used, says too little.
        for _ in range(2):
            refused = gate.client.chat(gate.model(name), headers={"x-fake-status": "429"})
            assert refused.status == 429
        wait_until(lambda: state(gate, name) != NORMAL, "the limit retreats")  # noqa: B023
    assert effective_rpm(gate, "floorless") < FLOOR_RPM <= effective_rpm(gate, "floored") < FAST_RPM
    # Another one makes it single requests at first, still not fewer by the minute.
    assert gate.client.chat(gate.model("floored"), headers={"x-fake-status": "429"}).status == 429
    assert gate.client.chat(gate.model("floored")).status == 200
    assert FLOOR_RPM <= effective_rpm(gate, "floored") <= FAST_RPM


def test_503_with_retry_after_is_throttling_only_if_configured(gate: Gate):
    headers = {"x-fake-status": "503", "x-fake-retry-after": "1"}
    assert gate.client.chat(gate.model("worker-pool"), headers=headers).status == 503
    assert state(gate, "worker-pool") == NORMAL
    assert gate.client.chat(gate.model("obeys-503"), headers=headers).status == 503
    assert state(gate, "obeys-503") == RETREAT


@pytest.mark.parametrize("status", ["429", "503"])
def test_model_that_is_refused_alone_is_slowed_alone(gate: Gate, status: str):
    """NVIDIA's 503 means that one model's workers are full; some models' limits are far lower."""
    weak, other = gate.model("models"), gate.model("models")
    # Only beside others that are served can a refusal tell anything of the model.
    for _ in range(6):
        assert gate.client.chat(other).status == 200
    for _ in range(4):
        refused = gate.client.chat(weak, headers={"x-fake-status": status})
        assert refused.status == int(status)
        assert gate.client.chat(other).status == 200
    line = gate.envoy.wait_for_log(f'"model":"{weak}"')
    assert "models" in line
    wait_until(lambda: state(gate, "models") == NORMAL, "the account is as fast as ever")
    held = gate.client.chat(weak)
    assert held.status == 200
    # Whoever is stopped after a refusal is so for a second or more.
    assert gate.client.chat(other).went_at_once(2)


def test_disabled_retreat_does_not_slow_down(gate: Gate):
    storm(gate, "disabled")
    assert effective_rpm(gate, "disabled") == FAST_RPM
    assert state(gate, "disabled") == NORMAL
    assert gate.client.chat(gate.model("disabled")).went_at_once(2)


def test_our_own_refusals_are_no_signal(gate: Gate):
    """T31: a reply made here must never make the filter slower still."""
    gate.empty_bucket("own-429")
    late = [gate.client.start_chat(gate.model("own-429"), priority="low") for _ in range(20)]
    assert {answer.status for answer in results(late)} == {429}
    assert state(gate, "own-429") == NORMAL
    assert effective_rpm(gate, "own-429") == 1

    gate.empty_bucket("own-503")
    with gate.holding("own-503", 1):
        full = [gate.client.start_chat(gate.model("own-503")) for _ in range(20)]
        assert {answer.status for answer in results(full)} == {503}
    assert state(gate, "own-503") == NORMAL


def test_our_refusals_ask_clients_to_come_back_at_different_times(gate: Gate):
    """T31: a jitter keeps clients that were refused together from coming back together."""
    gate.empty_bucket("own-503")
    with gate.holding("own-503", 1):
        refused = results(gate.client.start_chat(gate.model("own-503")) for _ in range(30))
    values = {int(answer.header("retry-after")) for answer in refused}
    assert min(values) >= 1
    assert len(values) > 1


def test_local_replies_of_envoy_are_no_signal(gate: Gate):
    headers = {"x-test-cluster": "dead"}
    futures = [gate.client.start_chat(gate.model("local-503"), headers=headers) for _ in range(20)]
    assert {answer.status for answer in results(futures)} == {502}
    assert state(gate, "local-503") == NORMAL
    assert effective_rpm(gate, "local-503") == FAST_RPM


@pytest.mark.parametrize("status", ["500", "503", "404"])
def test_other_errors_of_the_upstream_do_not_slow_the_limit_down(gate: Gate, status: str):
    headers = {"x-fake-status": status}
    futures = [
        gate.client.start_chat(gate.model("other-errors"), headers=headers) for _ in range(20)
    ]
    assert {answer.status for answer in results(futures)} == {int(status)}
    assert state(gate, "other-errors") == NORMAL
    assert effective_rpm(gate, "other-errors") == FAST_RPM
