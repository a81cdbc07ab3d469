"""What is not NVIDIA's passes as if the filter were not there.

The yardstick is an Envoy with the same configuration but without the filter: the upstream has to
receive the same bytes and headers from both, in the same order.
"""

import os
import re

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options, connection_manager
from harness.waiting import wait_until

HOST = "provider.test"
BOUNDARY = "frontier"

# What Envoy makes up for each request or answer, filter or not.
CHANGING_REQUEST_HEADERS = {"x-request-id"}
CHANGING_ANSWER_HEADERS = {"date", "x-envoy-upstream-service-time"}


def allow_upgrades(tree: dict) -> None:
    connection_manager(tree)["upgrade_configs"] = [{"upgrade_type": "websocket"}]


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(one_token("nvidia"), limit("meta"))
    with running_gate(Options(plugin=plugin, listeners=[allow_upgrades])) as gate:
        yield gate


@pytest.fixture(scope="module")
def plain():
    """The same Envoy without the filter."""
    with running_gate(Options(with_filter=False, listeners=[allow_upgrades])) as gate:
        yield gate


def _multipart(content: bytes) -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.json"\r\n'
        "Content-Type: application/json\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


JSON = {"content-type": "application/json"}
THREE_MB = encode(chat("gpt-5", pad="x" * 3_000_000))
REQUESTS = {
    "another model": ("POST", "/v1/chat/completions", encode(chat("gpt-5")), JSON),
    "json without a model": ("POST", "/v1/things", b'{"name": "nvidia/x"}', JSON),
    "odd but valid json": ("POST", "/v1/things", b' \n{ "model" : "gpt" ,"a":[ ] }\t', JSON),
    "a null in a name that only looks alike": ("POST", "/v1/x", b'{"models":null}', JSON),
    "3 MB of json": (
        "POST",
        "/v1/chat/completions",
        encode(chat("gpt", pad="x" * 3_000_000)),
        JSON,
    ),
    "no body": ("POST", "/v1/chat/completions", None, JSON),
    "an empty body": ("POST", "/v1/chat/completions", b"", {}),
    "GET /v1/models": ("GET", "/v1/models", None, {}),
    "GET with a query": ("GET", "/v1/files?after=nvidia%2Fx&limit=2", None, {}),
    "DELETE": ("DELETE", "/v1/files/1", None, {}),
    "PUT of octets": (
        "PUT",
        "/upload",
        os.urandom(70_000),
        {"content-type": "application/octet-stream"},
    ),
    "octets that read like json": (
        "POST",
        "/upload",
        encode(chat("nvidia/x")),
        {"content-type": "application/octet-stream"},
    ),
    "multipart": (
        "POST",
        "/v1/files",
        _multipart(encode(chat("nvidia/x"))),
        {"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    ),
    "plain text": ("POST", "/v1/notes", b"nvidia/x, please", {"content-type": "text/plain"}),
    "many headers": (
        "POST",
        "/v1/chat/completions",
        encode(chat("gpt-5")),
        {
            **JSON,
            "authorization": "Bearer of-another-provider",
            "x-priority": "urgent",
            "x-api-key": "k",
            "cookie": "a=b; c=d",
            "accept-language": "de",
        },
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_upstream_receives_the_same_bytes_and_headers_as_without_the_filter(
    gate: Gate, plain: Gate, name: str
):
    method, path, body, headers = REQUESTS[name]
    records, answers = [], []
    metered_before = gate.envoy.metric("nimgate_requests_total")
    for through in (gate, plain):
        through.fake.reset()
        answer = through.client.send(method, path, body, {"host": HOST, **headers})
        assert answer.status == 200, answer
        (record,) = through.fake.requests()
        records.append(record)
        answers.append(answer)

    filtered, unfiltered = records
    assert (filtered.method, filtered.path) == (method, path)
    assert filtered.body_len == len(body or b"")
    assert filtered.body_sha256 == unfiltered.body_sha256
    assert _stable(filtered.headers, CHANGING_REQUEST_HEADERS) == _stable(
        unfiltered.headers, CHANGING_REQUEST_HEADERS
    )
    assert _without_id(answers[0].body) == _without_id(answers[1].body)
    assert _stable(answers[0].headers, CHANGING_ANSWER_HEADERS) == _stable(
        answers[1].headers, CHANGING_ANSWER_HEADERS
    )
    gate.passed += 1
    gate.check_passed()
    assert gate.envoy.metric("nimgate_requests_total") == metered_before


def test_chunked_body_of_another_model_arrives_whole(gate: Gate):
    gate.fake.reset()
    body = encode(chat("gpt-5", pad="y" * 100_000))
    pieces = (body[start : start + 997] for start in range(0, len(body), 997))
    answer = gate.client.post(pieces)
    (record,) = gate.fake.requests()
    assert answer.status == 200
    assert record.body_len == len(body)
    assert record.model == "gpt-5"
    gate.passed += 1


@pytest.mark.parametrize("content_type", [b"application/json", b"text/plain"])
def test_empty_chunked_body_is_no_body(gate: Gate, content_type: bytes):
    with gate.raw() as connection:
        connection.head([("Content-Type", content_type), ("Transfer-Encoding", "chunked")])
        assert connection.send(b"0\r\n\r\n").answer().status == 200
    gate.passed += 1
    gate.check_passed()


def test_conversation_is_not_waited_for(gate: Gate):
    """gRPC: the upstream may have to speak first, so the request goes on before any body came."""

    def at_upstream() -> int:
        return sum(gate.envoy.stats(r"^cluster\..*\.upstream_rq_active$").values())

    before = at_upstream()
    with Http2(gate.envoy.ports.data) as connection:
        connection.start(body_follows=True, path="/a.B/C", content_type="application/grpc+proto")
        wait_until(lambda: at_upstream() > before, "the request is at the upstream")
    wait_until(lambda: at_upstream() == before, "it is over")
    gate.passed += 1


def test_upgrade_is_not_waited_for(gate: Gate):
    with gate.raw() as connection:
        connection.head([("Connection", "Upgrade"), ("Upgrade", "websocket")], "GET", "/v1/socket")
        assert connection.answer("GET").status
    gate.passed += 1
    gate.check_passed()


def test_metered_body_is_not_changed_either(gate: Gate, plain: Gate):
    body = b'{ "MODEL":"meta/a",\r\n "\\u006dodel" : "meta\\/a", "x":[1.0e+2,NaN] }\n'
    for through in (gate, plain):
        through.fake.reset()
        assert through.client.post(body).status == 200
    (metered,), (unfiltered,) = gate.fake.requests(), plain.fake.requests()
    assert metered.body == body
    assert metered.body_sha256 == unfiltered.body_sha256


def test_passed_requests_spend_no_token_and_do_not_queue(gate: Gate):
    for _ in range(5):
        assert gate.client.chat("gpt-5").status == 200
    answer = gate.client.chat(gate.model("nvidia"))
    assert answer.went_at_once(60)
    # The only token is gone now; requests for other models go on all the same.
    with gate.holding("nvidia", 2):
        assert gate.client.chat("gpt-5").status == 200
        assert gate.envoy.queue_length("nvidia") == 2
    gate.passed += 6


@pytest.mark.parametrize("authorization", [None, "Bearer theirs", "Basic dTpw"])
def test_authorization_of_a_passed_request_is_left_alone(gate: Gate, authorization: str | None):
    gate.fake.reset()
    headers = {"authorization": authorization} if authorization else {}
    assert gate.client.chat("gpt-5", headers=headers).status == 200
    assert gate.client.send("GET", "/v1/models", headers=headers).status == 200
    for record in gate.fake.requests():
        assert record.header("authorization") == authorization
    gate.passed += 2


def test_passed_answer_carries_none_of_our_headers(gate: Gate):
    answer = gate.client.chat("gpt-5")
    gate.passed += 1
    names = [name.lower() for name, _ in answer.headers]
    assert not [name for name in names if name.startswith(("x-nimgate", "x-ratelimit"))]


def test_spoofed_internal_headers_of_a_passed_request_are_removed(gate: Gate):
    gate.fake.reset()
    spoofed = {"x-nimgate-limit": "nvidia", "X-Nimgate-Anything": "1", "x-nimgate-queue-ms": "0"}
    assert gate.client.chat("gpt-5", headers=spoofed).status == 200
    assert gate.client.send("GET", "/v1/models", headers=spoofed).status == 200
    records = gate.fake.requests()
    assert len(records) == 2
    for record in records:
        assert not [name for name, _ in record.headers if name.startswith("x-nimgate")]
    gate.passed += 2


def _without_id(body: bytes) -> bytes:
    """The fake upstream numbers its answers."""
    return re.sub(rb'"id":"[^"]*"', b'"id":"*"', body)


def _stable(headers: list[tuple[str, str]], changing: set[str]) -> list[tuple[str, str]]:
    """Headers with the values that differ from one request to the next blotted out."""
    return [(name, "*" if name.lower() in changing else value) for name, value in headers]
