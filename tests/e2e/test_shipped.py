"""The shipped configuration as it stands, with nothing changed but ports and paths."""

import pytest

from harness import shipped
from harness.gate import Gate, running_gate
from harness.nimgate import chat, encode
from harness.shipped import Options


@pytest.fixture(scope="module")
def listeners() -> dict:
    return shipped.load("listeners.yaml")


@pytest.fixture(scope="module")
def gate(listeners: dict):
    (plugin,) = (one for one in shipped.wasm_plugins(listeners) if not shipped.is_console(one))
    with running_gate(Options(plugin=plugin["configuration"]["value"])) as gate:
        yield gate


@pytest.mark.parametrize("model", ["nvidia/nemotron", "meta/llama-3.1-8b-instruct", "qwen/qwen3"])
def test_models_of_the_catalogue_are_metered(gate: Gate, model: str):
    answer = gate.client.chat(model)
    assert answer.status == 200
    assert answer.header("x-ratelimit-limit-requests") == "40"


def test_other_models_pass(gate: Gate):
    assert gate.client.chat("gpt-5").header("x-nimgate-queue-ms") is None


@pytest.mark.parametrize("host", [b"Host: localhost\r\n", b""], ids=["host", "no host"])
@pytest.mark.parametrize("model", ["gpt-5", "meta/llama"])
def test_clients_of_http_1_0_are_served(gate: Gate, model: str, host: bytes):
    body = encode(chat(model))
    with gate.raw() as connection:
        connection.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            + host
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        )
        answer = connection.answer()
    assert answer.status == 200
    assert (answer.waited_ms is not None) == (model == "meta/llama")


@pytest.mark.parametrize("path", ["/v1/files/a%2Fb", "/v1/files/a%2fb%5Cc"])
def test_escaped_slashes_of_a_path_go_through_untouched(gate: Gate, path: str):
    gate.fake.reset()
    assert gate.client.send("GET", path).status == 200
    assert [record.path for record in gate.fake.requests()] == [path]


def test_body_of_15_megabytes_goes_through(gate: Gate):
    body = encode(chat("gpt-5", pad="x" * 15_000_000))
    assert gate.client.post(body).status == 200


def test_shipped_listener_bounds_slow_clients(listeners: dict):
    """T17: who never ends a body must not hold a connection for ever."""
    manager = shipped.connection_manager(listeners)
    assert manager.get("request_timeout")
    assert manager.get("stream_idle_timeout")
    assert manager.get("request_headers_timeout")


def test_shipped_filter_reloads_after_a_failure(listeners: dict):
    """A filter that fails open would let NVIDIA requests through unmetered."""
    for plugin in shipped.wasm_plugins(listeners):
        assert plugin["failure_policy"] == "FAIL_RELOAD"
        assert plugin["allow_on_headers_stop_iteration"] is True


def test_every_shipped_port_is_on_loopback():
    for name in ("envoy.yaml", "listeners.yaml", "clusters-fake.yaml"):
        for node in shipped.walk(shipped.load(name)):
            if "port_value" in node:
                assert node["address"] in ("127.0.0.1", "::1"), (name, node)


def test_nothing_but_metered_requests_and_the_list_of_models_goes_to_nvidia(listeners: dict):
    """A model that nimgate's patterns miss must not reach NVIDIA unmetered."""
    clusters = {one["name"]: one for one in shipped.load("clusters.yaml")["resources"]}
    assert "endpoints" not in clusters["default_upstream"]["load_assignment"]
    to_nvidia = [
        route["match"]
        for host in shipped.virtual_hosts(listeners)
        for route in host["routes"]
        if route["route"]["cluster"] != "default_upstream"
    ]
    metered, models = to_nvidia
    assert metered["headers"][0]["name"] == "x-nimgate-limit"
    assert models["path"] == "/v1/models"


def test_nvidia_cluster_checks_whom_it_talks_to():
    contexts = [
        node
        for node in shipped.walk(shipped.load("clusters.yaml"))
        if node.get("@type", "").endswith("tls.v3.UpstreamTlsContext")
    ]
    assert contexts
    for tls in contexts:
        assert tls["sni"] == "integrate.api.nvidia.com"
        context = tls["common_tls_context"]["validation_context"]
        assert "system_root_certs" in context or "trusted_ca" in context
        names = [m["matcher"]["exact"] for m in context["match_typed_subject_alt_names"]]
        assert names == [tls["sni"]]
