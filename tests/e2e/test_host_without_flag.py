"""A host that lacks `allow_on_headers_stop_iteration`: nobody hangs, and the log says so.

Without the flag Envoy never shows the body of a request that is paused at its headers. What is
metered whatever its body says is held at the headers and needs no flag. What would have to be
classified by its body can't be, and follows `on_unclassifiable`.
"""

import hashlib
import time

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options, keep_limit_header
from harness.waiting import wait_until

HOST = "nim.test"
BIG_BODY = encode(chat("whatever", pad="b" * 3_000_000))

# Longer than the filter waits before it believes that the host lacks the flag.
SLOW_CLIENT_S = 5.0


def start(policy: str, flag: bool = False) -> Options:
    plugin = configuration(
        limit("first"),
        limit("nvidia"),
        limit("by-host", models=[], hosts=[HOST]),
        one_token("held-by-host", 1.0, models=[], hosts=["held.test"]),
        on_unclassifiable=policy,
    )
    return Options(plugin=plugin, stop_iteration_flag=flag, listeners=[keep_limit_header])


@pytest.fixture(scope="module")
def meter():
    with running_gate(start("meter")) as gate:
        yield gate


@pytest.fixture(scope="module")
def flagged():
    with running_gate(start("meter", flag=True)) as gate:
        yield gate


@pytest.mark.parametrize("fixture", ["meter", "flagged"])
def test_limit_matched_by_host_sends_a_big_body_through(
    fixture: str, request: pytest.FixtureRequest
):
    gate: Gate = request.getfixturevalue(fixture)
    gate.fake.reset()
    answer = gate.client.post(BIG_BODY, host=HOST)
    (record,) = gate.fake.requests()
    assert answer.status == 200
    assert answer.waited_ms is not None
    assert record.header("x-nimgate-limit") == "by-host"
    assert record.header("authorization") == "Bearer nvidia"
    assert record.body_sha256 == hashlib.sha256(BIG_BODY).hexdigest()


@pytest.mark.parametrize("fixture", ["meter", "flagged"])
def test_limit_matched_by_host_holds_a_big_body(fixture: str, request: pytest.FixtureRequest):
    gate: Gate = request.getfixturevalue(fixture)
    gate.fake.reset()
    futures = [
        gate.client.start(
            "POST",
            "/v1/chat/completions",
            BIG_BODY,
            {"host": "held.test", "content-type": "application/json"},
        )
        for _ in range(3)
    ]
    answers = results(futures)
    assert [answer.status for answer in answers] == [200] * 3
    # One had its token, and the others had to wait for one each.
    began, ended = min(one.started for one in answers), max(one.finished for one in answers)
    assert ended - began >= 2
    records = gate.fake.requests()
    assert {record.body_sha256 for record in records} == {hashlib.sha256(BIG_BODY).hexdigest()}
    assert {record.header("x-nimgate-limit") for record in records} == {"held-by-host"}


def test_request_without_a_body_needs_no_flag(meter: Gate):
    assert meter.client.send("GET", "/v1/models").header("x-nimgate-queue-ms") is None
    octets = meter.client.post(b"\0" * 100_000, content_type="application/octet-stream")
    assert (octets.status, octets.header("x-nimgate-queue-ms")) == (200, None)


def test_unreadable_host_under_policy_meter_meters_everything_under_the_first_limit(meter: Gate):
    gate = meter
    before = gate.envoy.requests_total("first")
    for model in ("nvidia/a", "gpt-5"):
        gate.fake.reset()
        answer = gate.client.chat(model, pad="x" * 200_000)
        (record,) = gate.fake.requests()
        assert answer.status == 200
        assert answer.waited_ms is not None
        assert record.header("x-nimgate-limit") is None, "it keeps its own route"
        assert record.header("authorization") is None, "and its own credentials"
        assert record.model == model
    wait_until(lambda: gate.envoy.requests_total("first") == before + 2, "they are metered")
    assert_operator_is_told(gate)


def test_unreadable_host_under_policy_reject_refuses():
    with running_gate(start("reject")) as gate:
        answer = gate.client.chat("nvidia/a")
        assert answer.status == 400
        assert answer.error["type"] == "InvalidRequestError"
        assert gate.fake.requests() == []
        assert gate.client.post(BIG_BODY, host=HOST).status == 200
        assert_operator_is_told(gate)


def test_unreadable_host_under_policy_pass_passes():
    with running_gate(start("pass")) as gate:
        answer = gate.client.chat("nvidia/a")
        assert answer.status == 200
        (record,) = gate.fake.requests()
        assert record.header("x-nimgate-limit") is None
        assert record.header("authorization") is None
        assert_operator_is_told(gate)


def test_many_requests_at_once_do_not_hang(meter: Gate):
    futures = [meter.client.start_chat(meter.model("nvidia")) for _ in range(30)]
    assert [answer.status for answer in results(futures)] == [200] * 30


def test_client_that_leaves_such_a_host_is_forgotten(meter: Gate):
    with meter.raw() as connection:
        connection.request(encode(chat("nvidia/leaves")))
    meter.wait_for_queue("first", 0)
    assert meter.client.chat("nvidia/stays").status == 200


def test_slow_client_is_not_mistaken_for_such_a_host():
    """The very first request of an Envoy is the hard one: it has seen no body yet."""
    with running_gate(start("meter", flag=True)) as gate:
        body = encode(chat("nvidia/slow"))
        with gate.raw() as connection:
            connection.head(
                [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            )
            started = time.monotonic()
            wait_until(lambda: time.monotonic() > started + SLOW_CLIENT_S, "the client is slow")
            assert gate.fake.requests() == []
            connection.send(body[:10])
            started = time.monotonic()
            wait_until(lambda: time.monotonic() > started + 1, "and slow again")
            assert gate.fake.requests() == []
            connection.send(body[10:])
            assert connection.answer().status == 200
        assert gate.fake.only("nvidia/slow").header("x-nimgate-limit") == "nvidia"
        assert gate.envoy.metric("nimgate_pause_ignored_total") == 0
        assert "allow_on_headers_stop_iteration" not in gate.envoy.log()


def assert_operator_is_told(gate: Gate) -> None:
    gate.envoy.wait_for_log("allow_on_headers_stop_iteration")
    assert gate.envoy.metric("nimgate_pause_ignored_total") >= 1
