"""What is held of bodies is bounded, for a worker and for a connection; who holds least goes on."""

import contextlib

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options
from harness.waiting import wait_until

WORKER_MAX, CONNECTION_MAX = 1_000_000, 270_000
UPLOADS, PIECE = 8, 60_000


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        one_token("slow"),
        limit("nvidia"),
        bodies={"worker_max_bytes": WORKER_MAX, "connection_max_bytes": CONNECTION_MAX},
    )
    with running_gate(Options(plugin=plugin, concurrency=1)) as gate:
        gate.empty_bucket("slow")
        yield gate


def refused(gate: Gate) -> int:
    return gate.envoy.metric("nimgate_requests_total", outcome="queue_full")


def test_uploads_that_never_end_are_refused_before_small_requests(gate: Gate):
    """They would take as much memory as their clients like, and cost them nothing."""
    before = refused(gate)
    clients = [gate.raw() for _ in range(UPLOADS)]
    size = WORKER_MAX // UPLOADS * 2
    for client in clients:
        client.head([("Content-Type", "application/json"), ("Content-Length", str(size))])
    for _ in range(size // PIECE):
        for client in clients:
            # Some are refused on the way, and closed by Envoy.
            with contextlib.suppress(OSError):
                client.send(b" " * PIECE)
    wait_until(
        lambda: refused(gate) - before >= UPLOADS // 2,
        "half of them have been refused",
    )
    answers = results([gate.client.start_chat(gate.model("nvidia")) for _ in range(5)])
    assert [answer.status for answer in answers] == [200] * 5
    for client in clients:
        client.close()


def test_body_that_is_too_large_by_itself_is_refused_with_the_setting(gate: Gate):
    answer = gate.client.chat(gate.model("nvidia"), pad="x" * (WORKER_MAX + 1))
    assert answer.status == 413
    assert answer.error["type"] == "PayloadTooLarge"
    assert f"bodies.worker_max_bytes: {WORKER_MAX}" in answer.error["message"]
    assert gate.client.chat(gate.model("nvidia")).status == 200


def test_held_bodies_leave_others_on_the_connection_room(gate: Gate):
    body = encode(chat(gate.model("slow"), pad="x" * 65_000))
    with Http2(gate.envoy.ports.data) as connection:
        held = [connection.start(body) for _ in range(4)]
        gate.wait_for_queue("slow", len(held))
        assert connection.status(connection.start(body)) == 503
        passing = connection.start(encode(chat(gate.model("gpt"), pad="x" * 65_000)))
        assert connection.status(passing) == 200
        gate.passed += 1
        for stream in held:
            connection.reset(stream)
    gate.wait_for_queue("slow", 0)


def test_other_connections_are_not_refused_for_it(gate: Gate):
    size = CONNECTION_MAX + 50_000
    with gate.raw() as first, gate.raw() as second:
        for client in (first, second):
            client.request(encode(chat(gate.model("slow"), pad="x" * size)))
        gate.wait_for_queue("slow", 2)
    gate.wait_for_queue("slow", 0)
