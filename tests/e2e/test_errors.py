"""Every failure as the client sees it.

Failures of metered requests come as JSON in OpenAI's shape, those of passed requests as Envoy makes
them, and what the upstream itself answers comes as it is.
"""

import contextlib
import socket

import pytest

from harness.client import Answer
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import (
    Options,
    body_limit,
    idle_timeout,
    plain_cluster,
    route_by_header,
    route_timeout,
)

BODY_LIMIT = 65_536
TIMEOUT_S = 1
BY_HOST = "nim.test"
DEAD = {"x-test-cluster": "dead"}


@pytest.fixture(scope="module")
def closed_port():
    """A port on which connections are refused: bound, so that nobody else gets it, but deaf."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(scope="module")
def gate(closed_port):
    options = Options(
        plugin=configuration(
            limit("nvidia"),
            limit("own-errors"),
            limit("throttled"),
            limit("by-host", models=[], hosts=[BY_HOST], methods=["GET", "HEAD", "POST"]),
        ),
        listeners=[
            route_timeout(TIMEOUT_S),
            body_limit(BODY_LIMIT),
            route_by_header("x-test-cluster", "dead", "dead"),
        ],
        clusters=[plain_cluster("dead", closed_port)],
    )
    with running_gate(options) as gate:
        yield gate


@pytest.fixture(scope="module")
def impatient_gate():
    """Its Envoy ends what is silent for a second, as a wait in the queue is."""
    options = Options(plugin=configuration(one_token("waits")), listeners=[idle_timeout(1)])
    with running_gate(options) as gate:
        yield gate


@pytest.fixture(scope="module")
def rejecting_gate():
    plugin = configuration(limit("nvidia"), on_unclassifiable="reject")
    with running_gate(Options(plugin=plugin)) as gate:
        yield gate


@pytest.fixture(scope="module")
def passing_gate():
    plugin = configuration(limit("nvidia"), on_unclassifiable="pass")
    with running_gate(Options(plugin=plugin)) as gate:
        yield gate


def assert_error(answer: Answer, status: int, kind: str, code: str) -> None:
    assert answer.status == status, answer
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, None, code)
    assert isinstance(error["message"], str)
    assert error["message"]


def test_upstream_that_does_not_answer_is_504(gate: Gate):
    before = gate.envoy.requests_total("nvidia", outcome="upstream_timeout")
    answer = gate.client.chat("nvidia/a", headers={"x-fake-behaviour": "hang"})
    assert_error(answer, 504, "TimeoutException", "upstream_timeout")
    assert answer.waited_ms is not None
    assert answer.header("x-ratelimit-limit-requests")
    assert gate.envoy.requests_total("nvidia", outcome="upstream_timeout") == before + 1


@pytest.mark.parametrize("behaviour", ["reset", "close-before-headers"])
def test_upstream_that_breaks_off_before_headers_is_502(gate: Gate, behaviour: str):
    before = gate.envoy.requests_total("nvidia", outcome="upstream_unreachable")
    answer = gate.client.chat("nvidia/a", headers={"x-fake-behaviour": behaviour})
    assert_error(answer, 502, "ConnectError", "upstream_unreachable")
    assert gate.envoy.requests_total("nvidia", outcome="upstream_unreachable") == before + 1


def test_upstream_that_refuses_connections_is_502(gate: Gate):
    answer = gate.client.chat("nvidia/a", headers=DEAD)
    assert_error(answer, 502, "ConnectError", "upstream_unreachable")


def test_error_says_nothing_of_addresses(gate: Gate):
    answer = gate.client.chat("nvidia/a", headers=DEAD)
    assert b"127.0.0.1" not in answer.body


def test_failure_of_a_request_for_headers_alone(gate: Gate):
    """HEAD: the status tells, and no body may follow."""
    with gate.raw() as connection:
        connection.head([("X-Test-Cluster", "dead")], method="HEAD", host=BY_HOST)
        answer = connection.answer("HEAD")
        assert (answer.status, answer.body) == (502, b"")


def test_wait_that_envoy_itself_ends_is_429(impatient_gate: Gate):
    gate = impatient_gate
    gate.empty_bucket("waits")
    answer = gate.client.chat(gate.model("waits"))
    assert_error(answer, 429, "RateLimitedError", "rate_limited")
    assert int(answer.header("retry-after") or 0) >= 1
    gate.wait_for_queue("waits", 0)


@pytest.mark.parametrize("model", ["nvidia/a", "gpt-5"])
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_body_over_the_buffer_limit_is_413(gate: Gate, model: str, chunked: bool):
    """It is refused before anyone knows its model, so this holds for passed requests, too."""
    gate.fake.reset()
    body = encode(chat(model, pad="x" * BODY_LIMIT * 8))
    with gate.raw() as connection:
        # Envoy may close before it has read everything; its answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if chunked:
                connection.head(
                    [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
                )
                connection.chunk(body).send(b"0\r\n\r\n")
            else:
                connection.request(body)
        answer = connection.answer()
    assert_error(answer, 413, "PayloadTooLarge", "payload_too_large")
    assert gate.fake.requests() == []
    assert gate.envoy.queue_length("nvidia") == 0


def test_body_below_the_buffer_limit_is_not(gate: Gate):
    body = encode(chat("nvidia/a", pad="x" * (BODY_LIMIT - 200)))
    assert gate.client.post(body).status == 200


def test_body_that_is_not_held_has_no_limit(gate: Gate):
    answer = gate.client.post(b"\0" * BODY_LIMIT * 8, content_type="application/octet-stream")
    assert answer.status == 200


# Whether a request is passed or metered must not matter to what Envoy does by itself.


def test_timeout_of_a_passed_request_stays_envoys_own(gate: Gate):
    answer = gate.client.chat("gpt-5", headers={"x-fake-behaviour": "hang"})
    assert answer.status == 504
    assert answer.header("content-type") == "text/plain"
    assert answer.body == b"upstream request timeout"


def test_connection_failure_of_a_passed_request_stays_envoys_own(gate: Gate):
    for headers in (DEAD, {"x-fake-behaviour": "close-before-headers"}):
        answer = gate.client.chat("gpt-5", headers=headers)
        assert answer.status == 503
        assert answer.header("content-type") == "text/plain"
        assert answer.body.startswith(b"upstream connect error")


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 429, 500, 502, 503, 504])
def test_what_the_upstream_answers_goes_to_the_client_as_it_is(gate: Gate, status: int):
    name = "throttled" if status == 429 else "own-errors"
    headers = {"x-fake-status": str(status)}
    direct = gate.direct.chat(f"{name}/a", headers=headers)
    passed = gate.client.chat("gpt-5", headers=headers)
    metered = gate.client.chat(f"{name}/a", headers=headers)
    for answer in (passed, metered):
        assert (answer.status, answer.body) == (status, direct.body)
        assert answer.header("content-type") == direct.header("content-type")
        assert answer.header("retry-after") is None


def test_accepted_202_is_a_success(gate: Gate):
    answer = gate.client.chat(
        "nvidia/a", headers={"x-fake-status": "202", "x-fake-header": "nvcf-reqid: abc"}
    )
    assert answer.status == 202
    assert answer.header("nvcf-reqid") == "abc"


@pytest.mark.parametrize(
    "body", [b'{"model":"nvidia/a"', b"[", b'{"model":"\\ud800"}', b'{"model":"nvidia/a"}x']
)
def test_unreadable_body_under_policy_reject_is_400(rejecting_gate: Gate, body: bytes):
    gate = rejecting_gate
    gate.fake.reset()
    answer = gate.client.post(body)
    assert_error(answer, 400, "InvalidRequestError", "unreadable")
    assert gate.fake.requests() == []


def test_policy_reject_refuses_nothing_else(rejecting_gate: Gate):
    assert rejecting_gate.client.chat("nvidia/a").status == 200
    assert rejecting_gate.client.chat("gpt-5").status == 200
    assert rejecting_gate.client.post(b"words", content_type="text/plain").status == 200
    for body in (b"[]", b'{"model":1}'):
        assert rejecting_gate.client.post(body).status == 200
    compressed = rejecting_gate.client.post(b"\x1f\x8b", content_encoding="gzip")
    assert_error(compressed, 400, "InvalidRequestError", "unreadable")


@pytest.mark.parametrize("body", [b'{"model":"gpt"', b"[", b'{"model":"\\ud800"}'])
def test_unreadable_body_under_policy_pass_passes_untouched(passing_gate: Gate, body: bytes):
    gate = passing_gate
    gate.fake.reset()
    answer = gate.client.post(body)
    (record,) = gate.fake.requests()
    assert answer.status == 200
    assert answer.header("x-nimgate-queue-ms") is None
    assert record.body == body
    assert record.header("authorization") is None
    gate.passed += 1
    gate.check_passed()


@pytest.mark.parametrize("body", [b'{"model":"nvidia/a"', b'{"model":"nvidia/a"}x'])
def test_policy_pass_still_meters_a_model_that_was_legible(passing_gate: Gate, body: bytes):
    """No malformed input may produce an unmetered NVIDIA request."""
    assert passing_gate.client.post(body).waited_ms is not None


def test_policy_pass_still_meters_what_it_can_read(passing_gate: Gate):
    assert passing_gate.client.chat("nvidia/a").waited_ms is not None
