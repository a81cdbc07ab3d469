"""Bodies that come piece by piece arrive whole, whatever nimgate does in between.

Envoys before a fix of August 2026 (envoy#46841; the fix came to 1.36 to 1.39 in later patch
versions) lose a piece of a body if a filter kept back a piece, was resumed before the body's end,
and then lets the next one pass. So nimgate pauses that piece too, and resumes once more. These are
all the ways in which nimgate holds and lets go, each with
pieces before and after.
"""

import hashlib
import time

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options, Tree, connection_manager
from harness.waiting import wait_until

HOST = "nim.test"
SLOW_HOST = "slow.test"
PIECES = 12
# Between two pieces, so that most of them come to Envoy by themselves. Nothing depends on it.
PAUSE_S = 0.03


def buffer_behind(tree: Tree) -> None:
    filters = connection_manager(tree)["http_filters"]
    kind = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"
    buffer = {"@type": kind, "max_request_bytes": 8_000_000}
    filters.insert(len(filters) - 1, {"name": "envoy.filters.http.buffer", "typed_config": buffer})


HELD_AT_THE_BODY = "held at the body"
WAYS = ["with the flag", "without the flag", HELD_AT_THE_BODY]


@pytest.fixture(scope="module", params=WAYS)
def gate(request):
    plugin = configuration(
        limit("by-host", models=[], hosts=[HOST]),
        one_token("slow", 1.0, models=[], hosts=[SLOW_HOST]),
        limit("nvidia"),
        hold_at="body" if request.param == HELD_AT_THE_BODY else "headers",
    )
    options = Options(
        plugin=plugin,
        stop_iteration_flag=request.param == "with the flag",
        listeners=[buffer_behind] if request.param == HELD_AT_THE_BODY else [],
    )
    with running_gate(options) as gate:
        gate.way = request.param
        yield gate


# What decides about a request, and so when it goes on: by its host, at once or when a token comes;
# by its body, metered or not; and by its content type.
REQUESTS = {
    "by host, at once": (HOST, "application/json", "whatever"),
    "by host, waits": (SLOW_HOST, "application/json", "whatever"),
    "by model": ("localhost", "application/json", "nvidia"),
    "other model": ("localhost", "application/json", "gpt"),
    "no json": ("localhost", "application/octet-stream", "whatever"),
}


@pytest.mark.parametrize("size", [200, 60_000])
@pytest.mark.parametrize("kind", REQUESTS)
def test_body_in_pieces_arrives_whole(gate: Gate, kind: str, size: int):
    host, content_type, model = REQUESTS[kind]
    pieces = body_in_pieces(gate.model(model), size)
    gate.fake.reset()
    with gate.raw() as client:
        headers = [("Content-Type", content_type), ("Transfer-Encoding", "chunked")]
        client.head(headers, host=host)
        for piece in pieces:
            client.chunk(piece)
            time.sleep(PAUSE_S)
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
    assert_arrived(gate, pieces)


@pytest.mark.parametrize("kind", ["by model", "other model"])
def test_body_in_frames_arrives_whole(gate: Gate, kind: str):
    """Over HTTP/2, where the first piece names the model and the rest comes when Envoy has it."""
    _, content_type, model = REQUESTS[kind]
    pieces = body_in_pieces(gate.model(model), 2000)
    gate.fake.reset()
    with Http2(gate.envoy.ports.data) as connection:
        stream = connection.start(pieces[0], body_follows=True, content_type=content_type)
        for piece in pieces[1:-1]:
            connection.send_piece(stream, piece)
            time.sleep(PAUSE_S)
        connection.send_piece(stream, pieces[-1], is_last=True)
        assert connection.status(stream) == 200
    assert_arrived(gate, pieces)


def test_request_let_go_in_the_middle_of_its_body(gate: Gate):
    """The very course of the bug: held, let go before its end, and then more of the body."""
    pieces = body_in_pieces(gate.model("whatever"), 5000)
    gate.client.post(encode(chat("whatever")), host=SLOW_HOST)
    gate.fake.reset()
    with gate.raw() as client:
        headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
        client.head(headers, host=SLOW_HOST)
        half = len(pieces) // 2
        for piece in pieces[:half]:
            client.chunk(piece)
        wait_until(lambda: has_its_token(gate), "it has its token")
        for piece in pieces[half:]:
            client.chunk(piece)
            time.sleep(PAUSE_S)
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
    assert_arrived(gate, pieces)


def test_trailers_end_a_body_too(gate: Gate):
    """The same, where no piece is the last: the trailers let the request go on."""
    pieces = body_in_pieces(gate.model("whatever"), 2000)
    gate.client.post(encode(chat("whatever")), host=SLOW_HOST)
    gate.fake.reset()
    with Http2(gate.envoy.ports.data) as connection:
        stream = connection.start(pieces[0], body_follows=True, host=SLOW_HOST)
        connection.send_piece(stream, pieces[1])
        wait_until(lambda: has_its_token(gate), "it has its token")
        for piece in pieces[2:]:
            connection.send_piece(stream, piece)
            time.sleep(PAUSE_S)
        connection.send_trailers(stream)
        assert connection.status(stream) == 200
    assert_arrived(gate, pieces)


def has_its_token(gate: Gate) -> bool:
    """Whether the only request has come to Envoy and does not wait, at once or any more."""
    active = gate.envoy.stats("http.data.downstream_rq_active")
    return sum(active.values()) == 1 and gate.envoy.queue_length("slow") == 0


def body_in_pieces(model: str, size: int) -> list[bytes]:
    """A JSON body whose pieces all differ; the first ends after the model's name."""
    body = encode(chat(model, pad="".join(f"{number:08d}" for number in range(size * PIECES // 8))))
    first = body.index(model.encode()) + len(model) + 1
    rest = body[first:]
    step = len(rest) // PIECES + 1
    return [body[:first], *(rest[at : at + step] for at in range(0, len(rest), step))]


def assert_arrived(gate: Gate, pieces: list[bytes]) -> None:
    (record,) = gate.fake.requests()
    body = b"".join(pieces)
    assert (record.body_len, record.body_sha256) == (len(body), hashlib.sha256(body).hexdigest())
