"""Envoy's access log says of each request what nimgate did with it."""

import json

import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        limit("roomy"),
        one_token("patient", 2),
        one_token("brief", request_timeout_s=1),
        one_token("closed", queue_max_size=0),
        on_unclassifiable="reject",
    )
    with running_gate(Options(plugin=plugin, concurrency=2)) as gate:
        yield gate


def lines(gate: Gate, path: str) -> list[dict]:
    found = [
        line for line in gate.envoy.log().splitlines() if line.startswith("{") and path in line
    ]
    return [line for line in map(json.loads, found) if line["path"] == path]


def logged(gate: Gate, path: str) -> dict:
    """The only line of a path that one request has used; logs are flushed some time after."""
    wait_until(lambda: lines(gate, path), f"the access log has a line for {path}")
    (line,) = lines(gate, path)
    return {key: line[key] for key in ("limit", "priority", "outcome", "queue_ms", "status")}


def send(gate: Gate, path: str, model: str, **headers: str) -> None:
    gate.client.post(encode(chat(model)), f"{path}?key=hunter2", **headers)


def test_request_that_went_at_once(gate: Gate):
    send(gate, "/v1/at-once", "roomy/m", x_priority="high")
    assert logged(gate, "/v1/at-once") == {
        "limit": "roomy",
        "priority": "high",
        "outcome": "forwarded",
        "queue_ms": "0",
        "status": 200,
    }
    assert "hunter2" not in gate.envoy.log()


def test_request_that_waited(gate: Gate):
    gate.empty_bucket("patient")
    send(gate, "/v1/waited", "patient/m")
    line = logged(gate, "/v1/waited")
    assert (line["outcome"], line["priority"]) == ("forwarded", "normal")
    assert int(line["queue_ms"]) > 0


def test_request_that_was_refused(gate: Gate):
    gate.empty_bucket("brief")
    send(gate, "/v1/too-late", "brief/m")
    line = logged(gate, "/v1/too-late")
    assert (line["outcome"], line["status"]) == ("rate_limited", 429)
    assert int(line["queue_ms"]) >= 1000
    assert gate.client.chat("closed/first").status == 200
    send(gate, "/v1/full", "closed/m")
    assert logged(gate, "/v1/full")["outcome"] == "queue_full"
    gate.client.post(b'{"model": ', "/v1/broken")
    assert logged(gate, "/v1/broken")["outcome"] == "unreadable"


def test_client_that_left(gate: Gate):
    gate.empty_bucket("patient")
    with gate.raw() as connection:
        connection.request(encode(chat("patient/m")), path="/v1/left")
        gate.wait_for_queue("patient", 1)
    line = logged(gate, "/v1/left")
    assert (line["outcome"], line["limit"]) == ("client_left", "patient")


def test_request_that_passed(gate: Gate):
    send(gate, "/v1/passed", "other/m")
    line = logged(gate, "/v1/passed")
    assert [line[key] for key in ("limit", "priority", "outcome", "queue_ms")] == [None] * 4
