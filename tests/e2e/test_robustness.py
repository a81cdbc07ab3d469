"""Clients and upstreams that break off, dawdle or lie: no slot, token or worker is lost to them."""

import contextlib
import socket

import pytest

from harness.client import Client, results
from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options, body_limit
from harness.waiting import wait_for_equal, wait_until

BODY_LIMIT = 65_536


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        limit("open"),
        *[one_token(name) for name in ("truncated", "slow", "large", "many", "rapid", "mixed")],
        one_token("killed"),
        one_token("pipelined", 1.0),
        one_token("trailed", 1.0),
        one_token("refused", low_priority_timeout_s=1),
    )
    options = Options(plugin=plugin, concurrency=request.param, listeners=[body_limit(BODY_LIMIT)])
    with running_gate(options) as gate:
        yield gate


def active_requests(gate: Gate) -> int:
    """Requests that Envoy's data listener has begun to read and not finished."""
    stats = gate.envoy.stats(r"http\..*downstream_rq_active")
    return sum(value for name, value in stats.items() if ".admin." not in name)


def assert_token_is_there(gate: Gate, name: str) -> None:
    """The bucket's one token, which takes a minute to come back, was not spent by anyone."""
    answer = gate.client.chat(gate.model(name))
    assert answer.status == 200
    assert answer.went_at_once(60)


def test_truncated_body_takes_no_slot_and_no_token(gate: Gate):
    """T12: the client promises more than it sends, or breaks a chunk off."""
    body = encode(chat("truncated/never"))
    idle = active_requests(gate)
    for headers, sent in (
        ([("Content-Length", str(len(body) + 50))], body),
        ([("Transfer-Encoding", "chunked")], b"%x\r\n%s" % (len(body) + 50, body)),
    ):
        for way in ("close", "abort", "half_close"):
            with gate.raw() as connection:
                connection.head([("Content-Type", "application/json"), *headers]).send(sent)
                wait_until(lambda: active_requests(gate) > idle, "Envoy reads the request")
                assert gate.envoy.queue_length("truncated") == 0
                getattr(connection, way)()
                wait_for_equal(lambda: active_requests(gate), idle, "Envoy lets go of it")
    assert gate.fake.requests("truncated/never") == []
    assert_token_is_there(gate, "truncated")


def test_body_longer_than_promised_is_not_read_on(gate: Gate):
    """T12 the other way round: what follows the promised length is no part of the request."""
    model = gate.model("open")
    body = encode(chat(model))
    with gate.raw() as connection:
        connection.request(body + b"{}", [("Content-Length", str(len(body)))])
        # Two lengths that differ: Envoy refuses the request as a whole.
        assert connection.answer().status == 400
    assert gate.fake.requests(model) == []


def test_incomplete_body_holds_no_slot_and_no_token(gate: Gate):
    """T17: only a request that is complete can wait."""
    body = encode(chat("slow/slow"))
    idle = active_requests(gate)
    connections = [gate.raw() for _ in range(10)]
    for connection in connections:
        connection.head(
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        ).send(body[:-1])
    wait_for_equal(lambda: active_requests(gate), idle + 10, "Envoy reads all of them")
    assert gate.envoy.queue_length("slow") == 0
    # The one token goes to the one whose request is whole, though it came last.
    assert_token_is_there(gate, "slow")
    # One of the slow ones ends its body and now waits like anyone else.
    connections[0].send(body[-1:])
    gate.wait_for_queue("slow", 1)
    for connection in connections:
        connection.close()
    gate.wait_for_queue("slow", 0)
    wait_for_equal(lambda: active_requests(gate), idle, "all are gone")
    assert gate.fake.requests("slow/slow") == []


@pytest.mark.parametrize("excess", [1, BODY_LIMIT, BODY_LIMIT * 100])
def test_too_large_a_body_is_refused_once_and_costs_nothing(gate: Gate, excess: int):
    """T16: one 413, no token, no slot; the connection's worker goes on."""
    model = gate.model("large")
    frame = len(encode(chat(model, pad="")))
    # Envoy refuses somewhat above the limit, so that a body just over it may still go through.
    body = encode(chat(model, pad="x" * (BODY_LIMIT * 2 + excess - frame)))
    with gate.raw() as connection:
        # Envoy may close before it has read everything; its answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(body)
        answer = connection.answer()
        assert answer.status == 413
        assert answer.error["type"] == "PayloadTooLarge"
    assert gate.fake.requests(model) == []
    assert gate.envoy.queue_length("large") == 0
    if excess == BODY_LIMIT * 100:
        assert_token_is_there(gate, "large")


def test_upstream_killed_with_requests_waiting(gate: Gate):
    """Each waits for its token all the same, and then hears that nobody is there."""
    gate.empty_bucket("killed")
    plugin = gate.envoy.options.plugin
    others = [one for one in plugin["limits"] if one["name"] != "killed"]
    with gate.holding("killed", 3) as held:
        gate.fake.stop()
        try:
            # Now there are tokens for all of them.
            assert gate.envoy.reload({**plugin, "limits": [*others, limit("killed")]})
            answers = [connection.answer() for connection in held]
        finally:
            gate.fake.restart()
    assert [answer.status for answer in answers] == [502] * 3
    assert {answer.error["type"] for answer in answers} == {"ConnectError"}
    gate.wait_for_queue("killed", 0)
    assert gate.client.chat(gate.model("killed")).status == 200


def test_http2_connection_closed_with_many_streams_waiting(gate: Gate):
    gate.empty_bucket("many")
    with Http2(gate.envoy.ports.data) as connection:
        for _ in range(100):
            connection.start(encode(chat("many/h2")))
        gate.wait_for_queue("many", 100)
    gate.wait_for_queue("many", 0)
    assert gate.fake.requests("many/h2") == []


def test_http2_streams_reset_while_waiting(gate: Gate):
    gate.empty_bucket("rapid")
    with Http2(gate.envoy.ports.data) as connection:
        streams = [connection.start(encode(chat("rapid/h2"))) for _ in range(100)]
        gate.wait_for_queue("rapid", 100)
        for stream in streams[:-1]:
            connection.reset(stream)
        gate.wait_for_queue("rapid", 1)
    gate.wait_for_queue("rapid", 0)
    assert gate.fake.requests("rapid/h2") == []


def test_rapid_reset_leaves_nobody_behind(gate: Gate):
    """T30: streams opened and reset at once, until Envoy has had enough or all are through."""
    gate.empty_bucket("mixed")
    with Http2(gate.envoy.ports.data) as connection:
        try:
            for _ in range(1000):
                connection.reset(connection.start(encode(chat("mixed/h2"))))
        except (BrokenPipeError, ConnectionResetError):
            pass
    gate.wait_for_queue("mixed", 0)
    assert gate.fake.requests("mixed/h2") == []
    assert gate.client.chat(gate.model("open")).status == 200


SMUGGLED = encode(chat("smuggled/never"))
SMUGGLING = {
    "length and chunked": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}  ",
    "length with a sign": b"Content-Length: +2\r\n\r\n{}",
    "unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "NUL in a header": b"X-Priority: ur\x00gent\r\nContent-Length: 2\r\n\r\n{}",
    "space before the colon": b"Content-Length : 2\r\n\r\n{}",
    "bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_is_refused_by_envoy_and_leaves_nothing(gate: Gate, name: str):
    """T30: Envoy's part; the filter must merely stay in order."""
    gate.fake.reset()
    with gate.raw() as connection:
        connection.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n" + SMUGGLING[name]
        )
        connection.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(SMUGGLED), SMUGGLED)
        )
        assert connection.answer().status in (400, 501)
    assert gate.fake.requests("smuggled/never") == []
    wait_for_equal(lambda: active_requests(gate), 0, "nothing is left")


@pytest.mark.parametrize("value", ["low,\r\n urgent", "low\rX-Priority: urgent", "low\tX: urgent"])
def test_folded_or_smuggled_priority_is_never_the_highest(gate: Gate, value: str):
    """T30: whether Envoy refuses such a header or mends it, it asks for nothing."""
    before = gate.envoy.requests_total("open", priority="urgent")
    for name in ("X-Priority", "X-Other"):
        with gate.raw() as connection:
            connection.request(encode(chat(gate.model("open"))), [(name, value)])
            assert connection.answer().status in (200, 400)
    assert gate.envoy.requests_total("open", priority="urgent") == before


def test_pipelined_requests_are_served_one_after_the_other(gate: Gate):
    models = [gate.model("pipelined") for _ in range(3)]
    with gate.raw() as connection:
        for model in models:
            connection.request(encode(chat(model)))
        assert [connection.answer().status for _ in models] == [200] * 3
    assert [r.model for r in gate.fake.requests() if r.model in models] == models


def test_thousand_clients_that_come_and_go(gate: Gate):
    """Leaving at any moment, before, at and after the grant, costs nobody else anything."""
    for round_number in range(20):
        connections = [gate.raw() for _ in range(50)]
        for number, connection in enumerate(connections):
            connection.request(encode(chat(gate.model("open"))))
            if (number + round_number) % 3 == 0:
                connection.abort()
        for connection in connections:
            connection.close()
    futures = [gate.client.start_chat(gate.model("open")) for _ in range(20)]
    assert [answer.status for answer in results(futures)] == [200] * 20
    gate.wait_for_queue("open", 0)


@pytest.mark.parametrize("name", ["open", "trailed"])
def test_body_that_ends_with_trailers_is_complete(gate: Gate, name: str):
    """At once, and after a wait."""
    if name == "trailed":
        assert gate.client.chat(gate.model(name)).status == 200
    model = gate.model(name)
    body = encode(chat(model))
    with Http2(gate.envoy.ports.data) as connection:
        stream = connection.start(body, body_follows=True)
        connection.send_trailers(stream)
        assert connection.status(stream) == 200
    assert gate.fake.only(model).body == body


def test_client_that_asks_before_it_sends_its_body(gate: Gate):
    model = gate.model("open")
    body = encode(chat(model))
    with gate.raw() as connection:
        connection.head(
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Expect", "100-continue"),
            ]
        )
        assert connection.sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.send(body).answer().status == 200
    assert gate.fake.only(model).body == body


def test_http2_client_is_served_and_refused_like_any_other(gate: Gate):
    gate.empty_bucket("refused")
    # Not httpx: many threads on one of its connections can wait for each other for ever.
    with Http2(gate.envoy.ports.data) as connection:
        streams = [connection.start(encode(chat(gate.model("open")))) for _ in range(20)]
        assert [connection.status(stream) for stream in streams] == [200] * 20
    client = Client(gate.envoy.ports.data, http1=False, http2=True)
    try:
        refused = client.chat(gate.model("refused"), priority="low")
        assert (refused.status, refused.error["type"]) == (429, "RateLimitedError")
    finally:
        client.close()


def test_ten_kilobyte_headers_harm_nobody(gate: Gate):
    noise = [("X-Priority", "urgent" * 1700), ("Authorization", "B" * 10_000)]
    with gate.raw() as connection:
        connection.request(encode(chat(gate.model("open"))), noise)
        assert connection.answer().status == 200


def test_port_scanner_harms_nobody(gate: Gate):
    for noise in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET /\r\n\r\n", b"\x00" * 100):
        with socket.create_connection(("127.0.0.1", gate.envoy.ports.data)) as sock:
            sock.sendall(noise)
    assert gate.client.chat(gate.model("open")).status == 200
