"""The manifests of `envoy/gateway/`, as the Envoy configuration that Envoy Gateway makes of them.

`harness/envoy_gateway.py` says how that is known.
"""

import hashlib

import pytest

from harness import envoy_gateway
from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, encode
from harness.programs import wasm_module
from harness.scrape import scrape, value
from harness.shipped import Options, Tree, plain_cluster
from harness.waiting import wait_until

KEY = "nvapi-of-the-secret"
# What rate_rpm: 40 lets go at once.
BURST = 4
# At 40 requests a minute.
TOKEN_S = 1.5


@pytest.fixture(scope="module", params=envoy_gateway.WAYS)
def gate(request):
    resources = envoy_gateway.documents(request.param)
    tree = envoy_gateway.translate(resources, wasm_module())

    def in_place_of_ours(listeners: Tree) -> None:
        ours = listeners["resources"][0]
        listeners["resources"][0] = {**tree["listener"], "address": ours["address"]}

    def with_their_tags(bootstrap: Tree) -> None:
        bootstrap["stats_config"] = {
            "use_all_default_tags": True,
            "stats_tags": envoy_gateway.stats_tags(resources),
        }

    def finish(options: Options, fake) -> None:
        options.clusters += [plain_cluster(name, fake.port) for name in tree["clusters"]]

    options = Options(
        listeners=[in_place_of_ours],
        bootstrap=[with_their_tags],
        environment={"NVIDIA_API_KEY": KEY},
    )
    with running_gate(options, finish) as gate:
        gate.way = request.param
        yield gate
        assert gate.envoy.metric("nimgate_pause_ignored_total") == 0
        for event in ("headers_not_held", "host_refused", "key_missing"):
            assert event not in gate.envoy.log()


def test_burst_goes_at_once_and_the_next_waits_for_a_token(gate: Gate):
    """All from the manifests: 40 requests a minute, four at once. The first test of its gate."""
    models = [gate.model("nvidia") for _ in range(BURST + 1)]
    answers = results([gate.client.start_chat(model) for model in models])
    assert [answer.status for answer in answers] == [200] * len(models)
    burst = sorted(answers, key=lambda answer: answer.waited_ms)[:BURST]
    assert all(answer.went_at_once(TOKEN_S) for answer in burst)
    # The bucket was full until the first of them came.
    began, ended = min(one.started for one in answers), max(one.finished for one in answers)
    assert ended - began >= TOKEN_S
    for model in models:
        record = gate.fake.only(model)
        assert record.header("x-nimgate-limit") is None
        assert record.header("host") == "integrate.api.nvidia.com"
        key = record.header("authorization")
        assert (key == f"Bearer {KEY}") is (gate.way != "by-model-with-buffer")
    wait_until(
        lambda: gate.envoy.requests_total("nvidia", outcome="forwarded") == len(models),
        "all are counted",
    )


def test_metrics_have_labels(gate: Gate):
    gate.client.chat(gate.model("nvidia"))
    wait_until(
        lambda: value(scrape(gate), "nimgate_requests_total", limit="nvidia", outcome="forwarded"),
        "the metric has its labels",
    )


def test_large_body_arrives_whole(gate: Gate):
    """Far above the 32 KiB that Envoy Gateway lets a connection buffer by itself."""
    model = gate.model("nvidia")
    body = encode(chat(model, pad="x" * 3_000_000))
    answer = gate.client.post(body)
    assert answer.status == 200
    assert answer.header("x-nimgate-queue-ms") is not None
    assert gate.fake.only(model).body_sha256 == hashlib.sha256(body).hexdigest()


def test_other_models_pass_where_the_model_counts(gate: Gate):
    model = gate.model("gpt")
    answer = gate.client.chat(model)
    assert answer.status == 200
    is_metered = answer.header("x-nimgate-queue-ms") is not None
    assert is_metered is (gate.way == "by-host")
    key = gate.fake.only(model).header("authorization")
    assert (key == f"Bearer {KEY}") is (gate.way == "by-host")
