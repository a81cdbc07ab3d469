"""What nimgate can't be sure about: metered where it may be NVIDIA's, and never given our key or a
new route; what belongs to others passes. Over HTTP/1.1 and HTTP/2, with and without the flag that
shows bodies of requests that are held at their headers.
"""

import copy
import gzip
import hashlib
import json

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit, secret
from harness.shipped import (
    Options,
    keep_limit_header,
    set_plugin_configuration,
    walk,
    wasm_plugins,
)
from harness.waiting import wait_for_equal, wait_until

KEY = secret("nvapi-unrecognised")
THEIRS = "Bearer theirs"

# What a client may send that claims to be JSON and can't be read.
UNREADABLE = {
    "truncated": (b'{"model":"gpt-4o","messages":[', {}),
    "two documents": (b'{"model":"gpt-4o"} {"model":"gpt-4o"}', {}),
    "half an array": (b'[{"model":"gpt-4o"}', {}),
    "coding nobody knows": (encode(chat("gpt-4o")), {"content-encoding": "made-up"}),
    "coding that is not decoded": (b"\x28\xb5\x2f\xfd", {"content-encoding": "zstd"}),
    "half a gzip": (gzip.compress(encode(chat("gpt-4o")))[:-9], {"content-encoding": "gzip"}),
    "utf-16": (json.dumps(chat("gpt-4o")).encode("utf-16"), {}),
}

# What is somebody else's by its type, or was read and names no model.
OTHERS = {
    "gzip telemetry": (b"\n\x05hello", "application/x-protobuf", "gzip"),
    "gzip git": (b"0032want 0123\n", "application/x-git-upload-pack-request", "gzip"),
    "protobuf that begins like a brace": (b"{\x05model", "application/protobuf", None),
    "gzip telemetry in JSON": (b'{"resourceSpans":[]}', "application/json", "gzip"),
    "gzip of another model": (encode(chat("gpt-4o")), "application/json", "gzip"),
    "JSON lines": (b'{"model":"nvidia/a"}\n{"model":"nvidia/a"}\n', "application/x-ndjson", None),
    "JSON Patch": (b'[{"op":"add","path":"/model"}]', "application/json-patch+json", None),
    "JSON-RPC batch": (b'[{"jsonrpc":"2.0","id":1,"method":"model"}]', "application/json", None),
    "GraphQL": (b"{ model }", "application/graphql", None),
    "a character set as coding": (encode(chat("gpt-4o")), "application/json", "UTF-8"),
    "a number": (b"7", "application/json", None),
    "a model that is no text": (b'{"model":7}', "application/json", None),
}


@pytest.fixture(scope="module", params=[True, False], ids=["flag", "no flag"])
def flag(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def gate(flag: bool):
    plugin = configuration(
        limit("nvidia", upstream_api_key=KEY),
        limit("cluster", models=[], clusters=["default_upstream"], paths=["/by-cluster/*"]),
    )
    options = Options(plugin=plugin, stop_iteration_flag=flag, listeners=[keep_limit_header])
    with running_gate(options) as gate:
        yield gate


def send(gate: Gate, protocol: str, body: bytes, path: str, headers: dict[str, str]) -> int | None:
    headers = {"content-type": "application/json", "authorization": THEIRS, **headers}
    if protocol == "HTTP/1.1":
        return gate.client.send("POST", path, body, headers).status
    content_type = headers.pop("content-type")
    with Http2(gate.envoy.ports.data) as connection:
        stream = connection.start(body, list(headers.items()), path=path, content_type=content_type)
        return connection.status(stream)


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_request_is_metered_and_keeps_its_route_and_credentials(
    gate: Gate, protocol: str, name: str
):
    body, headers = UNREADABLE[name]
    gate.fake.reset()
    before = gate.envoy.requests_total("nvidia")
    assert send(gate, protocol, body, "/v1/echo", headers) == 200
    (record,) = gate.fake.requests()
    assert record.header_values("authorization") == [THEIRS]
    assert record.header("x-nimgate-limit") is None
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()
    wait_for_equal(lambda: gate.envoy.requests_total("nvidia"), before + 1, "it is metered")


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", OTHERS)
def test_requests_of_others_pass_untouched(gate: Gate, flag: bool, protocol: str, name: str):
    content, content_type, coding = OTHERS[name]
    body = gzip.compress(content) if coding == "gzip" else content
    headers = {"content-type": content_type} | ({"content-encoding": coding} if coding else {})
    gate.fake.reset()
    metered = gate.envoy.requests_total("nvidia")
    assert send(gate, protocol, body, "/v1/echo", headers) == 200
    (record,) = gate.fake.requests()
    assert record.header_values("authorization") == [THEIRS]
    assert record.header("x-nimgate-limit") is None
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()
    if flag or content_type != "application/json":
        gate.passed += 1
        gate.check_passed()
    else:
        # What would have to be read can't be without the flag.
        metered += 1
    wait_for_equal(lambda: gate.envoy.requests_total("nvidia"), metered, "metered requests")


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", ["x-nimgate-limit", "x-nimgate-anything"])
def test_spoofed_header_does_not_choose_the_route_that_decides(
    gate: Gate, protocol: str, name: str
):
    """A client's `x-nimgate-limit: nvidia` has Envoy choose the cluster `nvidia`, which no limit of
    this configuration names; without that header the request goes to the one that is limited."""
    gate.fake.reset()
    before = gate.envoy.requests_total("cluster")
    for number in range(6):
        headers = {name: "nvidia", "content-type": "application/octet-stream"}
        assert send(gate, protocol, b"x" * number, "/by-cluster/a", headers) == 200
    records = gate.fake.requests()
    assert len(records) == 6
    for record in records:
        assert record.header_values("authorization") == [THEIRS]
        assert record.header(name) is None
    wait_for_equal(lambda: gate.envoy.requests_total("cluster"), before + 6, "all are metered")


def test_cluster_that_the_client_did_not_choose_is_believed(gate: Gate):
    gate.fake.reset()
    before = gate.envoy.requests_total("cluster")
    headers = {"content-type": "application/octet-stream"}
    assert send(gate, "HTTP/1.1", b"x", "/by-cluster/b", headers) == 200
    (record,) = gate.fake.requests()
    assert record.header("x-nimgate-limit") == "cluster"
    wait_for_equal(lambda: gate.envoy.requests_total("cluster"), before + 1, "it is metered")


def keep_bodies_before_it(tree: dict) -> None:
    """Puts another filter before nimgate that keeps each body until it is whole: nimgate itself,
    with `hold_at: body`, in a VM of its own."""
    for node in walk(tree):
        filters = node.get("http_filters", [])
        if filters and filters[0]["name"] == "nimgate":
            before = copy.deepcopy(filters[0])
            before["name"] = "before"
            (plugin,) = wasm_plugins({"filter": before})
            plugin["name"] = plugin["root_id"] = "before"
            plugin["vm_config"]["vm_id"] = "before"
            before_config = {"hold_at": "body", "limits": [limit("before")]}
            set_plugin_configuration(plugin, before_config)
            filters.insert(0, before)


def test_belief_that_bodies_are_hidden_is_given_up_when_one_is_shown():
    """One slow upload, kept back by another filter, looks as if this host showed no bodies."""
    plugin = configuration(limit("nvidia", upstream_api_key=KEY))
    listeners = [keep_limit_header, keep_bodies_before_it]
    with running_gate(Options(plugin=plugin, concurrency=1, listeners=listeners)) as gate:
        body = encode(chat("gpt-4o", pad="x" * 1_000))
        with gate.raw() as connection:
            connection.head(
                [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            )
            connection.send(body[:500])
            gate.envoy.wait_for_log("pause_ignored")
            connection.send(body[500:])
            assert connection.answer().status == 200

        def passes() -> bool:
            gate.fake.reset()
            answer = gate.client.chat("gpt-4o", headers={"authorization": THEIRS})
            assert answer.status == 200
            (record,) = gate.fake.requests()
            assert record.header_values("authorization") == [THEIRS], "no key, whatever is believed"
            assert record.header("x-nimgate-limit") is None
            return answer.waited_ms is None

        wait_until(passes, "the host is believed to show bodies again")
        model = gate.model("nvidia")
        assert gate.client.chat(model).status == 200
        assert gate.fake.only(model).header_values("authorization") == [f"Bearer {KEY}"]
