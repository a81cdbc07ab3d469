"""Which limit meters a request: by model, host, cluster and path; the first match wins."""

from functools import partial

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit
from harness.shipped import Options, keep_limit_header, route_by_header
from harness.waiting import wait_for_equal

HOST = "nim.example.test"
UNREADABLE = "unreadable"


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        limit("big", ["*/big", "BIG-*-x"]),
        limit("host", models=[], hosts=[HOST, "*.wild.test"]),
        limit("cluster", models=[], clusters=["nvidia"]),
        limit("paths", ["*"], paths=["/v1/only/*"]),
        limit("host-path", models=[], hosts=["narrow.test"], paths=["/v1/narrow"]),
        limit("nvidia"),
        limit("shadowed", ["nvidia/*", "last/*"]),
    )
    options = Options(
        plugin=plugin,
        # The cluster that routes would choose without the filter is named by a header of the test.
        listeners=[keep_limit_header, route_by_header("x-test-cluster", "nvidia", "nvidia")],
    )
    with running_gate(options) as gate:
        yield gate


def limit_taken(
    gate: Gate, model: str, path: str = "/v1/chat/completions", **headers: str
) -> str | None:
    gate.fake.reset()
    answer = gate.client.post(encode(chat(model)), path, **headers)
    assert answer.status == 200, answer
    (record,) = gate.fake.requests()
    taken = record.header("x-nimgate-limit")
    return UNREADABLE if taken is None and answer.waited_ms is not None else taken


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nvidia/a", "nvidia"),
        ("nvidia/a/b", "nvidia"),
        ("last/a", "shadowed"),
        ("any/big", "big"),
        ("nvidia/big", "big"),
        ("big-1-x", "big"),
        ("big-1", None),
        ("NVIDIA/A", "nvidia"),
        ("gpt", None),
        ("nvidia/" + "a" * 500, "nvidia"),
        ("any/" + "*" * 500, None),
        # Too long to be any real model: unreadable, and so metered on its own route.
        ("nvidia/" + "a" * 10_000, UNREADABLE),
    ],
    ids=lambda value: str(value)[:16],
)
def test_first_limit_whose_pattern_matches_wins(gate: Gate, model: str, expected: str | None):
    assert limit_taken(gate, model) == expected


def test_duplicate_models_take_the_first_limit_of_all(gate: Gate):
    gate.fake.reset()
    assert gate.client.post(b'{"model":"last/a","model":"any/big","model":"gpt"}').status == 200
    (record,) = gate.fake.requests()
    assert record.header("x-nimgate-limit") == "big"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (HOST, "host"),
        (HOST.upper(), "host"),
        (f"{HOST}:8443", "host"),
        (f"{HOST}.", "host"),
        ("a.wild.test", "host"),
        ("a.b.wild.test:80", "host"),
        ("wild.test", None),
        (f"{HOST}.evil.test", None),
        (f"evil-{HOST}", None),
    ],
)
def test_limit_matches_by_host_whatever_the_body(gate: Gate, host: str, expected: str | None):
    assert limit_taken(gate, "gpt", host=host) == expected


@pytest.mark.parametrize(
    ("method", "body", "content_type"),
    [
        ("GET", None, None),
        ("POST", None, "application/json"),
        ("POST", b"{broken", "application/json"),
        ("POST", b"\0\1\2", "application/octet-stream"),
        ("POST", b"--x--\r\n", "multipart/form-data; boundary=x"),
        ("DELETE", None, None),
    ],
)
@pytest.mark.parametrize("way", ["host", "cluster"])
def test_match_by_host_or_cluster_needs_no_readable_body(
    gate: Gate, way: str, method: str, body: bytes | None, content_type: str | None
):
    gate.fake.reset()
    headers = {"host": HOST} if way == "host" else {"x-test-cluster": "nvidia"}
    if content_type:
        headers["content-type"] = content_type
    answer = gate.client.send(method, "/v1/anything", body, headers)
    assert answer.status == 200
    assert answer.waited_ms is not None
    (record,) = gate.fake.requests()
    assert record.header("x-nimgate-limit") == way
    assert record.body_len == len(body or b"")


def test_limit_matches_by_the_cluster_that_the_routes_chose(gate: Gate):
    assert limit_taken(gate, "gpt", x_test_cluster="nvidia") == "cluster"
    assert limit_taken(gate, "gpt") is None


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
def test_preflights_and_what_asks_for_headers_alone_cost_no_token(gate: Gate, protocol: str):
    before = gate.envoy.requests_total("host")
    for method, metered in (("OPTIONS", 0), ("HEAD", 0), ("GET", 1)):
        if protocol == "HTTP/1.1":
            gate.client.send(method, "/v1/models", None, {"host": HOST})
        else:
            with Http2(gate.envoy.ports.data) as connection:
                connection.status(connection.start(path="/v1/models", host=HOST, method=method))
        expected = before + metered
        wait_for_equal(partial(gate.envoy.requests_total, "host"), expected, f"after {method}")


def test_earlier_limit_by_model_wins_over_a_later_one_by_host(gate: Gate):
    assert limit_taken(gate, "any/big", host=HOST) == "big"
    assert limit_taken(gate, "nvidia/a", host=HOST) == "host"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/only/this", "paths"),
        ("/v1/only/this?query", "paths"),
        ("/v1//only/this", "paths"),
        ("/v1/x/../only/this", "paths"),
        ("/v1/onl%79/this", "paths"),
        ("/v1/other", None),
        ("/v1/other?/v1/only/this", None),
    ],
)
def test_path_narrows_a_limit_and_no_spelling_dodges_it(
    gate: Gate, path: str, expected: str | None
):
    with gate.raw() as connection:
        # By hand, since an HTTP library would tidy the path up.
        gate.fake.reset()
        connection.request(encode(chat("gpt")), path=path)
        assert connection.answer().status == 200
    (record,) = gate.fake.requests()
    assert record.header("x-nimgate-limit") == expected


def test_path_narrows_a_match_by_host_too(gate: Gate):
    assert limit_taken(gate, "gpt", "/v1/narrow", host="narrow.test") == "host-path"
    assert limit_taken(gate, "gpt", "/v1/wide", host="narrow.test") is None
