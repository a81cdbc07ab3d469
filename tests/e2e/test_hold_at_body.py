"""`hold_at: body`: classified by model on hosts without `allow_on_headers_stop_iteration` too.

The headers go on as they came; Envoy's buffer filter after nimgate keeps them from the upstream
until the body follows. No header can be set any more when the model is known.
"""

import hashlib

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options, Tree, connection_manager, keep_limit_header
from harness.waiting import wait_until

BUFFER_BYTES = 4_000_000
HOST = "nim.test"


def buffer_behind(tree: Tree) -> None:
    """Puts Envoy's buffer filter between nimgate and the router."""
    filters = connection_manager(tree)["http_filters"]
    kind = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"
    buffer = {"@type": kind, "max_request_bytes": BUFFER_BYTES}
    filters.insert(len(filters) - 1, {"name": "envoy.filters.http.buffer", "typed_config": buffer})


# On a slow machine a token has come before all requests are queued; the test then tries again.
SECONDS_PER_TOKEN = (2, 10)


def options(with_buffer: bool = True) -> Options:
    plugin = configuration(
        limit("by-host", models=[], hosts=[HOST], upstream_api_key="secret-of-the-host"),
        limit("nvidia"),
        *[one_token(f"held-{seconds}", seconds) for seconds in SECONDS_PER_TOKEN],
        one_token("leaving"),
        one_token("slow", 60.0, request_timeout_s=0.5, low_priority_timeout_s=0.5),
        hold_at="body",
    )
    patches = [keep_limit_header, *([buffer_behind] if with_buffer else [])]
    return Options(plugin=plugin, stop_iteration_flag=False, listeners=patches)


@pytest.fixture(scope="module")
def gate():
    with running_gate(options()) as gate:
        yield gate
        # Neither did nimgate wait in vain for bodies, nor did headers go before them.
        assert gate.envoy.metric("nimgate_pause_ignored_total") == 0
        assert "headers_not_held" not in gate.envoy.log()
        assert "host_refused" not in gate.envoy.log()


@pytest.mark.parametrize("size", [10, 40_000, 3_000_000])
def test_model_is_metered_and_the_body_arrives_whole(gate: Gate, size: int):
    model = gate.model("nvidia")
    body = encode(chat(model, pad="x" * size))
    before = gate.envoy.requests_total("nvidia")
    answer = gate.client.post(body)
    record = gate.fake.only(model)
    assert answer.status == 200
    assert answer.waited_ms is not None
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()
    wait_until(lambda: gate.envoy.requests_total("nvidia") == before + 1, "it is counted")


def test_headers_arrive_as_the_client_sent_them(gate: Gate):
    model = gate.model("nvidia")
    assert gate.client.chat(model, headers={"x-nimgate-limit": "forged"}).status == 200
    record = gate.fake.only(model)
    assert record.header("x-nimgate-limit") is None
    assert record.header("authorization") is None
    model = gate.model("nvidia")
    gate.client.chat(model, headers={"authorization": "Bearer mine"})
    assert gate.fake.only(model).header("authorization") == "Bearer mine"


def test_requests_wait_and_go_by_priority(gate: Gate):
    for seconds in SECONDS_PER_TOKEN:
        name = f"held-{seconds}"
        gate.empty_bucket(name)
        waiting = []
        for number, priority in enumerate(("low", "normal", "high", "urgent")):
            model = f"{name}/order-{number}"
            waiting.append(gate.client.start_chat(model, priority, pad="y" * 100_000))
            wait_until(
                lambda: gate.envoy.queue_length(name) + len(served(gate, name)) > number,  # noqa: B023
                "it is queued",
            )
        none_served = not served(gate, name)
        answers = results(waiting)
        assert [answer.status for answer in answers] == [200] * 4
        if none_served:
            assert served(gate, name) == [f"{name}/order-{number}" for number in (3, 2, 1, 0)]
            assert answers[0].waited_ms > 0
            return
    raise AssertionError("the requests could not be queued before the first was served")


def served(gate: Gate, name: str) -> list[str]:
    prefix = f"{name}/order-"
    return [one.model for one in gate.fake.requests() if (one.model or "").startswith(prefix)]


def test_no_token_before_the_deadline_is_429_and_the_upstream_sees_nothing(gate: Gate):
    gate.empty_bucket("slow")
    model = gate.model("slow")
    answer = gate.client.chat(model)
    assert (answer.status, answer.error["type"]) == (429, "RateLimitedError")
    assert gate.fake.requests(model) == []


def test_client_that_leaves_is_forgotten(gate: Gate):
    gate.empty_bucket("leaving")
    with gate.holding("leaving", 3):
        pass
    assert gate.client.chat(gate.model("nvidia")).status == 200


def test_other_requests_pass(gate: Gate):
    model = gate.model("gpt")
    assert gate.client.chat(model).header("x-nimgate-queue-ms") is None
    assert gate.fake.only(model).body_len > 0
    octets = gate.client.post(b"\0" * 100_000, content_type="application/octet-stream")
    assert (octets.status, octets.header("x-nimgate-queue-ms")) == (200, None)
    text = gate.client.post(b"words " * 10_000, content_type="text/plain")
    assert (text.status, text.header("x-nimgate-queue-ms")) == (200, None)
    assert gate.client.send("GET", "/v1/models").status == 200


def test_body_over_the_buffer_is_413(gate: Gate):
    model = gate.model("nvidia")
    answer = gate.client.chat(model, pad="z" * (2 * BUFFER_BYTES))
    assert (answer.status, answer.error["type"]) == (413, "PayloadTooLarge")
    assert gate.fake.requests(model) == []


def test_limit_matched_by_host_is_held_at_its_headers_and_can_set_them(gate: Gate):
    gate.fake.reset()
    answer = gate.client.post(encode(chat("whatever")), host=HOST)
    (record,) = gate.fake.requests()
    assert answer.waited_ms is not None
    assert record.header("x-nimgate-limit") == "by-host"
    assert record.header("authorization") == "Bearer secret-of-the-host"


def test_operator_is_told_if_nothing_holds_the_headers():
    with running_gate(options(with_buffer=False)) as gate:
        name = f"held-{SECONDS_PER_TOKEN[-1]}"
        gate.empty_bucket(name)
        assert gate.client.chat(gate.model(name)).status == 200
        gate.envoy.wait_for_log("headers_not_held")
