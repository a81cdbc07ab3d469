"""Streams of server-sent events flow through as they come."""

import http.client
import json

import httpx
import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until

SLOW = {"x-fake-behaviour": "slow-stream", "x-fake-chunks": "10", "x-fake-gap-ms": "2000"}
QUICK = {"x-fake-behaviour": "slow-stream", "x-fake-chunks": "10", "x-fake-gap-ms": "30"}


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(limit("nvidia"), one_token("single"))
    with running_gate(Options(plugin=plugin)) as gate:
        yield gate


def events(body: bytes) -> list[str]:
    return [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("name", ["nvidia", "other"], ids=["metered", "passed"])
def test_first_event_arrives_before_the_last_is_sent(gate: Gate, name: str):
    """The client leaves after the first event; the upstream then says that it was not done."""
    model = gate.model(name)
    with gate.client.stream(model, SLOW) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        first = next(answer.iter_raw())
        assert first.startswith(b"data: ")
        assert b"[DONE]" not in first
    wait_until(lambda: gate.fake.only(model).aborted, "the upstream notices that the client left")


def test_whole_stream_arrives_unchanged(gate: Gate):
    body = encode(chat("nvidia/a", stream=True))
    direct = gate.direct.send("POST", "/v1/chat/completions", body, QUICK)
    through = gate.client.send("POST", "/v1/chat/completions", body, QUICK)
    got = events(through.body)
    assert got[-1] == "[DONE]"
    assert len(got) == len(events(direct.body))
    assert [_content(event) for event in got] == [_content(event) for event in events(direct.body)]
    assert through.waited_ms is not None


def test_many_streams_at_once(gate: Gate):
    futures = [
        gate.client.start_chat(gate.model("nvidia"), stream=True, headers=QUICK) for _ in range(20)
    ]
    assert all(events(future.result().body)[-1] == "[DONE]" for future in futures)


def test_stream_that_had_to_wait_still_flows(gate: Gate):
    """The first of two takes the token; the second is held and then streams like any other."""
    gate.empty_bucket("single")
    body = encode(chat(gate.model("single"), stream=True))
    with gate.raw() as connection:
        connection.request(body, list(SLOW.items()))
        gate.wait_for_queue("single", 1)
        assert gate.envoy.reload(configuration(limit("nvidia"), limit("single")))
        response = http.client.HTTPResponse(connection.sock, method="POST")
        response.begin()
        assert response.status == 200
        assert response.read1(5) == b"data:"


def test_break_in_mid_stream_reaches_the_client_as_a_break(gate: Gate):
    model = gate.model("nvidia")
    received = b""
    with gate.client.stream(model, {"x-fake-behaviour": "reset-mid-stream"}) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_raw()
        broke = False
        while not broke:
            try:
                received += next(pieces)
            except httpx.RemoteProtocolError:
                broke = True
    # What had come before the break is passed on, and nothing is made up after it.
    assert received.startswith(b"data: ")
    assert b"[DONE]" not in received
    assert b"nimgate" not in received
    assert gate.client.chat(gate.model("nvidia")).status == 200


def test_client_that_leaves_in_mid_stream_harms_nobody(gate: Gate):
    model = gate.model("nvidia")
    with gate.client.stream(model, SLOW) as answer:
        next(answer.iter_raw())
    assert gate.client.chat(gate.model("nvidia")).status == 200


def _content(event: str) -> object:
    """What an event says, without what differs between two answers."""
    if event == "[DONE]":
        return event
    return [choice["delta"] for choice in json.loads(event)["choices"]]
