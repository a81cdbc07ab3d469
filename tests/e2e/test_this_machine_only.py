"""The shipped listener lends the operator's key to this machine alone: not to a web page that a
browser here shows, nor to one whose name resolves to this machine.
"""

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, one_token
from harness.shipped import Options

REFUSED = {
    "another name": {"host": "evil.test"},
    "a name that begins like ours": {"host": "localhost.evil.test"},
    "another page": {"origin": "https://evil.test", "content-type": "text/plain"},
    "a page without a name": {"origin": "null", "content-type": "text/plain"},
    "a page whose name begins like ours": {"origin": "http://localhost.evil.test"},
    "what the browser calls cross-site": {"sec-fetch-site": "cross-site"},
}

SERVED = {
    "no page": {},
    "a page of this machine": {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
    "this machine's name": {"host": "LOCALHOST:10000"},
    "this machine's address": {"host": "[::1]:10000"},
}


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(one_token("nvidia"), one_token("served", 0.01))
    with running_gate(Options(plugin=plugin, this_machine_only=True)) as gate:
        yield gate


def status(gate: Gate, protocol: str, model: str, headers: dict[str, str]) -> int | None:
    body = encode(chat(model))
    sent = {"content-type": "application/json", **headers}
    if protocol == "HTTP/1.1":
        return gate.client.send("POST", "/v1/chat/completions", body, sent).status
    content_type, host = sent.pop("content-type"), sent.pop("host", "127.0.0.1")
    with Http2(gate.envoy.ports.data) as connection:
        stream = connection.start(body, list(sent.items()), content_type=content_type, host=host)
        return connection.status(stream)


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", REFUSED)
def test_foreign_request_is_refused_and_costs_no_token(gate: Gate, protocol: str, name: str):
    model = gate.model("nvidia")
    before = gate.envoy.requests_total("nvidia")
    assert status(gate, protocol, model, REFUSED[name]) == 403
    assert gate.fake.requests(model) == []
    assert gate.envoy.requests_total("nvidia") == before


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("name", SERVED)
def test_request_of_this_machine_is_served(gate: Gate, protocol: str, name: str):
    model = gate.model("served")
    assert status(gate, protocol, model, SERVED[name]) == 200
    gate.fake.only(model)
