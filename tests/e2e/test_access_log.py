"""Envoy's access log says of each request what nimgate did with it."""

import json

import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until

# On a slow machine a token has come before the request that should wait for it.
SECONDS_PER_TOKEN = (2, 10, 50)


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        limit("roomy", rate_rpm=1, bucket_capacity=2),
        *[one_token(f"slow-{seconds}", seconds) for seconds in SECONDS_PER_TOKEN],
        one_token("leaving"),
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
    line = logged(gate, "/v1/at-once")
    # A token takes a minute.
    assert int(line.pop("queue_ms")) < 30_000
    assert line == {"limit": "roomy", "priority": "high", "outcome": "forwarded", "status": 200}
    assert "hunter2" not in gate.envoy.log()


def test_request_that_waited(gate: Gate):
    for seconds in SECONDS_PER_TOKEN:
        gate.empty_bucket(f"slow-{seconds}")
        send(gate, f"/v1/waited-{seconds}-", f"slow-{seconds}/m")
        line = logged(gate, f"/v1/waited-{seconds}-")
        assert (line["outcome"], line["priority"]) == ("forwarded", "normal")
        if int(line["queue_ms"]) > 0:
            return
    raise AssertionError("nobody waited")


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
    gate.empty_bucket("leaving")
    with gate.raw() as connection:
        connection.request(encode(chat("leaving/m")), path="/v1/left")
        gate.wait_for_queue("leaving", 1)
    line = logged(gate, "/v1/left")
    assert (line["outcome"], line["limit"]) == ("client_left", "leaving")


def test_request_that_passed(gate: Gate):
    send(gate, "/v1/passed", "other/m")
    line = logged(gate, "/v1/passed")
    assert [line[key] for key in ("limit", "priority", "outcome", "queue_ms")] == [None] * 4
