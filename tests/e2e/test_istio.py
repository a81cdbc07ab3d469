"""The manifests of `envoy/istio/`, as the Envoy configuration that Istio makes of them.

`harness/istio.py` says how that is known. The filter is found by extension config discovery, has no
`vm_id` unless an EnvoyFilter sets one, and runs in Istio's listener for a gateway or a sidecar.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from harness import istio, shipped
from harness.client import Answer, results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, encode
from harness.programs import wasm_module
from harness.shipped import Options, Tree, plain_cluster
from harness.waiting import wait_until

BY_HOST = ["wasmplugin", "trafficextension", "sidecar"]
BY_MODEL = ["envoyfilter", "wasmplugin-and-buffer"]
NVIDIA = "integrate.api.nvidia.com"
KEY = "nvapi-of-the-secret"
# What rate_rpm: 40 lets go at once.
BURST = 4
# At 40 requests a minute.
TOKEN_S = 1.5


class Discovery:
    """The file from which Envoy takes extension configurations, in istiod's place."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ecds.yaml"

    def write(self, *resources: Tree) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(yaml.safe_dump({"resources": list(resources)}))
        new.rename(self.path)


@contextmanager
def mesh(way: str, *arguments: str, without: str | None = None) -> Iterator[Gate]:
    """An Envoy as Istio configures it, before the fake upstream in NVIDIA's place."""
    tree = istio.translate(istio.documents(way))
    with tempfile.TemporaryDirectory(prefix="nimgate-e2e-istio-") as directory:
        discovery = Discovery(Path(directory))
        tree = istio.for_envoy(tree, discovery.path, wasm_module())
        if without:
            for one in tree["extension_configs"]:
                one["typed_config"]["config"][without] = {}
        discovery.write(*tree["extension_configs"])

        def in_place_of_ours(listeners: Tree) -> None:
            ours = listeners["resources"][0]
            listeners["resources"][0] = {**tree["listener"], "address": ours["address"]}

        def finish(options: Options, fake) -> None:
            options.clusters += [plain_cluster(name, fake.port) for name in tree["clusters"]]

        options = Options(
            listeners=[in_place_of_ours],
            environment={"NVIDIA_API_KEY": KEY},
            arguments=list(arguments),
        )
        with running_gate(options, finish) as gate:
            gate.discovery = discovery
            gate.configs = tree["extension_configs"]
            gate.way = way
            yield gate


def ask(gate: Gate, model: str, **fields) -> Answer:
    return gate.client.chat(model, headers=host(gate), **fields)


def host(gate: Gate) -> dict[str, str]:
    """A sidecar knows services by their names; the gateway takes any."""
    return {"host": NVIDIA} if gate.way == "sidecar" else {}


@pytest.fixture(scope="module", params=[*BY_HOST, *BY_MODEL])
def gate(request):
    with mesh(request.param) as gate:
        yield gate
        assert gate.envoy.metric("nimgate_pause_ignored_total") == 0
        for event in ("headers_not_held", "host_refused", "key_missing"):
            assert event not in gate.envoy.log()


@pytest.mark.parametrize("way", istio.WAYS)
def test_written_configuration_is_what_istio_makes_of_the_manifests(way: str):
    written = yaml.safe_load((istio.WRITTEN / f"{way}.yaml").read_text())
    assert written == istio.translate(istio.documents(way)), (
        "run python -m harness.istio in tests/e2e"
    )


@pytest.mark.parametrize("way", istio.WAYS)
def test_configuration_is_on_its_own_where_istio_has_no_field_for_it(way: str):
    """Istio names no VM, so all plugins of a proxy share one space; only an EnvoyFilter can."""
    (config,) = istio.translate(istio.documents(way))["extension_configs"]
    plugin = config["typed_config"]["config"]
    is_own = way == "envoyfilter"
    assert ("vm_id" in plugin["vm_config"]) is is_own
    assert ("allow_on_headers_stop_iteration" in plugin) is is_own
    assert plugin["failure_policy"] == "FAIL_RELOAD"


def test_burst_goes_at_once_and_the_next_waits_for_a_token(gate: Gate):
    """All from the manifests: 40 requests a minute, four at once. The first test of its gate."""
    models = [gate.model("nvidia") for _ in range(BURST + 1)]
    answers = results([gate.client.start_chat(model, headers=host(gate)) for model in models])
    assert [answer.status for answer in answers] == [200] * len(models)
    burst = sorted(answers, key=lambda answer: answer.waited_ms)[:BURST]
    assert all(answer.went_at_once(TOKEN_S) for answer in burst)
    # The bucket was full until the first of them came.
    began, ended = min(one.started for one in answers), max(one.finished for one in answers)
    assert ended - began >= TOKEN_S
    for model in models:
        record = gate.fake.only(model)
        assert record.header("x-nimgate-limit") is None
        assert record.header("host") == NVIDIA
        if gate.way in ("wasmplugin", "trafficextension", "envoyfilter"):
            assert record.header("authorization") == f"Bearer {KEY}"
    wait_until(
        lambda: gate.envoy.requests_total("nvidia", outcome="forwarded") == len(models),
        "all are counted",
    )


def test_large_body_arrives_whole(gate: Gate):
    model = gate.model("nvidia")
    body = encode(chat(model, pad="x" * 3_000_000))
    answer = gate.client.post(body, **host(gate))
    assert answer.status == 200
    assert answer.header("x-nimgate-queue-ms") is not None
    assert gate.fake.only(model).body_sha256 == hashlib.sha256(body).hexdigest()


def test_other_models_pass_where_the_model_counts(gate: Gate):
    model = gate.model("gpt")
    answer = ask(gate, model)
    assert answer.status == 200
    is_metered = answer.header("x-nimgate-queue-ms") is not None
    assert is_metered is (gate.way in BY_HOST)
    # The key is for NVIDIA's requests alone.
    key = gate.fake.only(model).header("authorization")
    assert (key == f"Bearer {KEY}") is (gate.way in ("wasmplugin", "trafficextension"))


def test_urgent_goes_first_and_who_leaves_is_forgotten(gate: Gate):
    """More at once than there are tokens, whatever the tests before left of them."""
    before = gate.envoy.queue_length("nvidia")
    assert before == 0
    count = BURST + 4
    spent = [gate.client.start_chat(gate.model("nvidia"), headers=host(gate)) for _ in range(count)]
    wait_until(lambda: gate.envoy.queue_length("nvidia"), "one of them has to wait")
    with gate.raw() as leaves:
        name = host(gate).get("host", "localhost")
        leaves.request(encode(chat(gate.model("nvidia"))), [("X-Priority", "low")], host=name)
        wait_until(
            lambda: gate.envoy.queue_length("nvidia", priority="low") == 1, "the last one waits"
        )
    wait_until(
        lambda: gate.envoy.queue_length("nvidia", priority="low") == 0, "it has left the queue"
    )
    low, urgent = gate.model("nvidia"), gate.model("nvidia")
    late = [
        gate.client.start_chat(model, priority, headers=host(gate))
        for model, priority in ((low, "low"), (urgent, "urgent"))
    ]
    assert [answer.status for answer in results(late)] == [200, 200]
    assert gate.fake.only(urgent).seq < gate.fake.only(low).seq
    assert {answer.status for answer in results(spent)} == {200}


def test_sidecar_serves_no_other_host():
    with mesh("sidecar") as gate:
        assert gate.client.chat("nvidia/x", headers={"host": "elsewhere.test"}).status == 404
        assert gate.fake.requests() == []


def test_new_configuration_keeps_who_waits_even_past_the_drain_time():
    """Discovery of the filter's configuration changes no listener, so nothing is drained or cut."""
    with mesh("wasmplugin", "--drain-time-s", "1") as gate:
        spent = [gate.client.start_chat(gate.model("nvidia")) for _ in range(BURST)]
        results(spent)
        slow = set_configuration(gate.configs, {"name": "nvidia", "hosts": ["*"], "models": []}, 1)
        gate.discovery.write(*slow)
        # The rules are one for all: also who came before goes by them.
        gate.envoy.wait_for_log('"rate_rpm":1,')
        waiting = gate.client.start_chat(gate.model("nvidia"))
        gate.wait_for_queue("nvidia", 1)
        since = time.monotonic()
        wait_until(lambda: time.monotonic() > since + 3, "the drain time is over three times")
        fast = set_configuration(
            gate.configs, {"name": "nvidia", "hosts": ["*"], "models": [], "window_s": 0}, 600
        )
        gate.discovery.write(*fast)
        assert waiting.result().status == 200
        assert gate.client.chat(gate.model("nvidia")).status == 200


def set_configuration(configs: list[Tree], limit: Tree, rate: int) -> list[Tree]:
    """Other limits in the same extension configuration."""
    changed = json.loads(json.dumps(configs))
    for one in changed:
        limits = {"limits": [{**limit, "rate_rpm": rate}]}
        shipped.set_plugin_configuration(one["typed_config"]["config"], json.dumps(limits))
    return changed


def test_refused_configuration_leaves_the_old_one_in_force():
    with mesh("wasmplugin") as gate:
        assert gate.client.chat(gate.model("nvidia")).status == 200
        gate.discovery.write(*set_configuration(gate.configs, {"name": "bad", "models": []}, 5))
        gate.envoy.wait_for_log("configuration_refused")
        answer = gate.client.chat(gate.model("nvidia"))
        assert answer.status == 200
        assert answer.went_at_once(TOKEN_S)


def test_unset_plugin_config_means_the_defaults():
    """Istio then sends an empty configuration: by model, which nimgate can't read here."""
    with mesh("wasmplugin", without="configuration") as gate:
        assert gate.client.send("GET", "/v1/models").header("x-nimgate-queue-ms") is None
        assert gate.client.chat(gate.model("nvidia")).header("x-nimgate-queue-ms") is not None
        gate.envoy.wait_for_log("allow_on_headers_stop_iteration")
        gate.envoy.wait_for_log(r'"limits":\["nvidia"\]')


def test_image_that_can_not_be_had_lets_nothing_through_until_it_can():
    """Istio's agent puts a filter that refuses all in the place of one whose image it can't get."""
    with mesh("wasmplugin") as gate:
        deny = {
            "@type": istio.RBAC_FILTER,
            "rules": {},
            "rules_stat_prefix": "wasm-default-deny",
        }
        for one in gate.configs:
            gate.discovery.write({**one, "typed_config": deny})
        wait_until(lambda: gate.client.chat("nvidia/x").status == 403, "all is refused")
        assert gate.client.chat("gpt-5").status == 403
        gate.discovery.write(*gate.configs)
        wait_until(lambda: gate.client.chat("nvidia/x").status == 200, "nimgate is back")
