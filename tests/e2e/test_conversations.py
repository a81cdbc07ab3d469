"""Requests whose body has no end that could be waited for: upgrades, gRPC, open uploads.

Each goes on when it has its token, in both directions, and loses nothing on Envoys with the bug
envoy#46841. What bounds a body decides what is read of it: a POST with `Upgrade` that brings a JSON
body is metered by its model, and one that brings none is a conversation.
"""

import time

import pytest

from harness.client import results
from harness.conversation import Switching, Talking, running
from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.shipped import Options, Tree, connection_manager, plain_cluster, route_by_header
from harness.waiting import wait_until

TOKEN_S = 1.0
SWITCHING, TALKING = "switching.test", "talking.test"
PROTOCOLS = ["websocket", "SPDY/3.1", "tcp"]
# Between two pieces, so that most of them come to Envoy by themselves. Nothing depends on it.
PAUSE_S = 0.02


def allow_upgrades(tree: Tree) -> None:
    connection_manager(tree)["upgrade_configs"] = [{"upgrade_type": name} for name in PROTOCOLS]


def speak_http2(tree: Tree) -> None:
    kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}
    (cluster,) = [one for one in tree["resources"] if one["name"] == "talking"]
    cluster["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
    }


@pytest.fixture(scope="module", params=["with the flag", "without the flag"])
def gate(request):
    with running(Switching()) as switching, running(Talking()) as talking:
        plugin = configuration(
            one_token("switching", TOKEN_S, models=[], hosts=[SWITCHING]),
            one_token("talking", TOKEN_S, models=[], hosts=[TALKING]),
            limit("nvidia"),
        )
        options = Options(
            plugin=plugin,
            stop_iteration_flag=request.param == "with the flag",
            listeners=[
                allow_upgrades,
                route_by_header(":authority", SWITCHING, "switching"),
                route_by_header(":authority", TALKING, "talking"),
                route_by_header("x-to", "switching", "switching"),
            ],
            clusters=[
                plain_cluster("switching", switching.port),
                plain_cluster("talking", talking.port),
                speak_http2,
            ],
        )
        with running_gate(options) as gate:
            gate.switching, gate.talking = switching, talking
            gate.has_flag = request.param == "with the flag"
            # Each worker has seen a body that was shown, as it has after its first request.
            first = [gate.client.start_chat(gate.model("nvidia")) for _ in range(30)]
            assert {answer.status for answer in results(first)} == {200}
            yield gate


def spend_token(gate: Gate, host: str) -> None:
    """Leaves the limit of a host without a token, so that the next request has to wait."""
    gate.client.send("GET", "/", headers={"host": host})


def handshake(gate: Gate, early: bytes = b"", **line: str):
    client = gate.raw()
    client.head([("Connection", "Upgrade"), ("Upgrade", "websocket")], method="GET", **line)
    return client.send(early) if early else client


def read_until(sock, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        data = sock.recv(65536)
        assert data, received
        received += data
    return received


@pytest.mark.parametrize("early", [b"", b"first words"])
def test_upgrade_that_had_to_wait_gets_its_answer_and_every_byte(gate: Gate, early: bytes):
    spend_token(gate, SWITCHING)
    with handshake(gate, early, host=SWITCHING) as client:
        received = read_until(client.sock, b"\r\n\r\n" + early)
        assert received.startswith(b"HTTP/1.1 101"), received
        assert int(dict_of(received)[b"x-nimgate-queue-ms"]) > 0
        for number in range(10):
            said = b"piece %d" % number
            client.send(said)
            assert read_until(client.sock, said) == said
            time.sleep(PAUSE_S if number % 2 else 0)


def partition(line: bytes) -> tuple[bytes, bytes, bytes]:
    return line.partition(b":")


def dict_of(head: bytes) -> dict[bytes, bytes]:
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in map(partition, lines)}


def test_grpc_conversation_that_had_to_wait_goes_on_message_by_message(gate: Gate):
    with Http2(gate.envoy.ports.data) as connection:
        first = connection.start(
            host=TALKING,
            content_type="application/grpc",
            path="/a.B/C",
            headers=[("te", "trailers")],
        )
        assert connection.status(first) == 200
        stream = connection.start(
            b"\0\0\0\0\x05hello",
            body_follows=True,
            host=TALKING,
            content_type="application/grpc",
            path="/a.B/C",
            headers=[("te", "trailers")],
        )
        said = b"\0\0\0\0\x05hello"
        assert connection.body(stream, len(said)) == said
        for number in range(10):
            message = b"\0\0\0\0\x05say %d" % number
            connection.send_piece(stream, message)
            said += message
            assert connection.body(stream, len(said)) == said
            time.sleep(PAUSE_S if number % 2 else 0)
        connection.send_piece(stream, b"", is_last=True)
        assert connection.status(stream) == 200


def test_uploads_that_last_go_one_token_apart(gate: Gate):
    """Not all at once, when the first of their bodies ends, with the tokens that were saved up."""
    spend_token(gate, SWITCHING)
    before = len(gate.switching.heads)
    clients = [gate.raw() for _ in range(3)]
    for client in clients:
        client.head([("Transfer-Encoding", "chunked")], host=SWITCHING)
        client.chunk(b"the first piece")
    wait_until(lambda: len(gate.switching.heads) == before + 3, "all have gone on")
    times = [at for at, _ in gate.switching.heads[before:]]
    assert all(later - at > TOKEN_S / 2 for at, later in zip(times, times[1:], strict=False)), times
    for client in clients:
        client.close()


def test_heads_whose_bodies_do_not_come_take_no_token(gate: Gate):
    if not gate.has_flag:
        pytest.skip("without the flag Envoy shows no body of a request that is held")
    time.sleep(TOKEN_S * 1.5)
    clients = [gate.raw() for _ in range(6)]
    for client in clients:
        client.head([("Content-Length", "100")], host=SWITCHING)
    answer = gate.client.send("POST", "/", b"whole", {"host": SWITCHING})
    assert answer.status == 200
    assert answer.went_at_once(TOKEN_S)
    for client in clients:
        client.close()


def upgrade_post(gate: Gate, protocol: str, body: bytes | None, *headers: tuple[str, str]):
    client = gate.raw()
    length = [] if body is None else [("Content-Length", str(len(body)))]
    client.head(
        [
            ("Connection", "Upgrade"),
            ("Upgrade", protocol),
            ("x-to", "switching"),
            *length,
            *headers,
        ]
    )
    return client.send(body) if body else client


@pytest.mark.parametrize("body", [b"", encode({"Detach": False, "Tty": True})])
def test_post_that_upgrades_goes_on_when_its_body_is_read(gate: Gate, body: bytes):
    """As kubectl exec and docker exec send it: with an empty body, and with one of JSON."""
    if not gate.has_flag:
        pytest.skip("without the flag no request is decided about by its body")
    with upgrade_post(gate, "tcp", body, ("Content-Type", "application/json")) as client:
        received = read_until(client.sock, b"\r\n\r\n" + body)
        assert received.startswith(b"HTTP/1.1 101"), received
        assert b"x-nimgate-queue-ms" not in dict_of(received)
        for number in range(5):
            client.send(b"more %d" % number)
            assert read_until(client.sock, b"more %d" % number) == b"more %d" % number
    gate.passed += 1


def test_post_that_upgrades_is_metered_by_its_model(gate: Gate):
    before = gate.envoy.requests_total("nvidia")
    body = encode(chat(gate.model("nvidia")))
    with upgrade_post(gate, "websocket", body, ("Content-Type", "application/json")) as client:
        received = read_until(client.sock, body)
        assert b"x-nimgate-queue-ms" in dict_of(received), received
    wait_until(lambda: gate.envoy.requests_total("nvidia") == before + 1, "it is metered")


def test_post_that_upgrades_with_a_body_of_unknown_length_is_metered(gate: Gate):
    # The first limit by model takes what can't be read.
    before = gate.envoy.requests_total("nvidia")
    with upgrade_post(gate, "websocket", None, ("Transfer-Encoding", "chunked")) as client:
        body = encode(chat(gate.model("nvidia")))
        client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        received = read_until(client.sock, b"0\r\n\r\n")
        assert b"x-nimgate-queue-ms" in dict_of(received), received
    wait_until(lambda: gate.envoy.requests_total("nvidia") == before + 1, "it is metered")
