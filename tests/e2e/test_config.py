"""Configurations that are refused, with their reason, while the old one goes on working."""

import json

import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.shipped import Options

HUGE = 10**400
GOOD = configuration(limit("nvidia"))


@pytest.fixture(scope="module")
def gate():
    with running_gate(Options(plugin=GOOD)) as gate:
        yield gate


@pytest.fixture(scope="module")
def empty_gate():
    """An Envoy whose filter has no configuration at all."""
    with running_gate(Options(plugin=None)) as gate:
        yield gate


def only(**fields) -> dict:
    """A configuration of one limit with these fields."""
    return configuration({"name": "nvidia", **fields})


# Configuration, and what the sentence in the log has to name.
REFUSED: dict[str, tuple[object, str]] = {
    "rate zero": (only(rate_rpm=0), "limits[0].rate_rpm: must be at least 1, got 0"),
    "rate negative": (only(rate_rpm=-5), "limits[0].rate_rpm"),
    "rate a float": (only(rate_rpm=1.5), "limits[0].rate_rpm"),
    "rate a string": (only(rate_rpm="40"), "limits[0].rate_rpm"),
    "rate beyond any number": (only(rate_rpm=HUGE), "rate_rpm"),
    "rate 1e308": ('{"limits":[{"name":"a","rate_rpm":1e308}]}', "limits[0].rate_rpm"),
    "rate NaN": ('{"limits":[{"name":"a","rate_rpm":NaN}]}', ""),
    "rate a boolean": (only(rate_rpm=True), "limits[0].rate_rpm"),
    "rate of the second limit": (
        configuration(limit("a"), limit("b", rate_rpm=0)),
        "limits[1].rate_rpm",
    ),
    "capacity zero": (only(bucket_capacity=0), "limits[0].bucket_capacity"),
    "queue size negative": (only(queue_max_size=-1), "limits[0].queue_max_size"),
    "unknown policy": (only(queue_full_policy="drop"), "limits[0].queue_full_policy"),
    "timeout zero": (only(request_timeout_s=0), "limits[0].request_timeout_s"),
    "low timeout negative": (only(low_priority_timeout_s=-1), "limits[0].low_priority_timeout_s"),
    "aging negative": (only(aging_s=-1), "limits[0].aging_s"),
    "models no list": (only(models="nvidia/*"), "limits[0].models"),
    "model no string": (only(models=["a", 5]), "limits[0].models[1]"),
    "hosts no list": (only(hosts="a"), "limits[0].hosts"),
    "name missing": ({"limits": [{"rate_rpm": 40}]}, "limits[0].name"),
    "name empty": ({"limits": [{"name": ""}]}, "limits[0].name"),
    "name no string": ({"limits": [{"name": 5}]}, "limits[0].name"),
    "name twice": (configuration(limit("a"), limit("a")), "limits[1].name"),
    "name that breaks labels": ({"limits": [{"name": "a;.b=c"}]}, "limits[0].name"),
    "name that breaks headers": ({"limits": [{"name": "a\r\nx: y"}]}, "limits[0].name"),
    "both kinds of key": (
        only(upstream_api_key="k", upstream_api_key_env="K"),
        "limits[0].upstream_api_key",
    ),
    "key that breaks headers": (only(upstream_api_key="a\r\nx: y"), "limits[0].upstream_api_key"),
    "unknown field of a limit": (only(rate_rps=1), "limits[0].rate_rps"),
    "unknown field at the top": ({"limit": []}, "limit"),
    "unknown field of the retreat": (only(retreat={"flor": 1}), "limits[0].retreat.flor"),
    "retreat floor zero": (only(retreat={"floor_rpm": 0}), "limits[0].retreat.floor_rpm"),
    "retreat floor above the rate": (
        only(rate_rpm=10, retreat={"floor_rpm": 11}),
        "limits[0].retreat.floor_rpm",
    ),
    "retreat no object": (only(retreat=True), "limits[0].retreat"),
    "limits no list": ({"limits": {}}, "limits"),
    "limit no object": ({"limits": ["nvidia"]}, "limits[0]"),
    "unknown priority": ({"priority": {"default": "highest"}}, "priority.default"),
    "unknown ceiling": ({"priority": {"ceiling": 1}}, "priority.ceiling"),
    "header name impossible": ({"priority": {"header": "x priority"}}, "priority.header"),
    "unknown field of priority": ({"priority": {"max": "low"}}, "priority.max"),
    "unknown unclassifiable": ({"on_unclassifiable": "drop"}, "on_unclassifiable"),
    "unknown log level": ({"log_level": "loud"}, "log_level"),
    "duplicate field": ('{"log_level":"info","log_level":"debug"}', "log_level"),
    "no json": ("limits: []", ""),
    "cut off": ('{"limits":[', ""),
    "a list": ("[]", ""),
    "trailing text": ("{} {}", ""),
    "a window that holds no request": (only(rate_rpm=1, window_s=30), "limits[0].window_s"),
    "a negative window": (only(window_s=-1), "limits[0].window_s"),
    "unknown mode": (only(mode="dark"), "limits[0].mode"),
    "console beside limits": (only() | {"console": {}}, "console"),
    "console no object": ({"console": True}, "console"),
    "unknown field of the console": ({"console": {"port": 1}}, "console.port"),
    "admin token too short": ({"console": {"admin_token": "guess me"}}, "console.admin_token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_configuration_is_refused_with_its_reason(gate: Gate, name: str):
    value, reason = REFUSED[name]
    text = value if isinstance(value, str) else json.dumps(value)
    read_before = len(gate.envoy.log())
    if gate.envoy.reload(text):
        gate.envoy.reload(GOOD)
        pytest.fail("Envoy took a configuration that it had to refuse")
    said = gate.envoy.log()[read_before:]
    sentences = [line for line in said.splitlines() if "wasm log" in line]
    assert sentences, said
    assert any(reason in line for line in sentences), sentences
    # The old configuration goes on working.
    answer = gate.client.chat(gate.model("nvidia"))
    assert answer.status == 200
    assert answer.header("x-nimgate-queue-ms") is not None


def test_enormous_configuration_harms_nobody(gate: Gate):
    text = json.dumps(only(models=["x" * 5_000_000]))
    gate.envoy.reload(text)
    gate.envoy.reload(GOOD)
    assert gate.client.chat(gate.model("nvidia")).status == 200


def test_good_configuration_is_taken_after_a_bad_one(gate: Gate):
    assert not gate.envoy.reload("{")
    assert gate.envoy.reload(configuration(limit("nvidia"), limit("added")))
    model = gate.model("added")
    assert gate.client.chat(model).header("x-nimgate-queue-ms") is not None
    assert gate.envoy.requests_total("added") == 1


@pytest.mark.parametrize("text", ["{}", " {} \n", '{"limits":[]}'], ids=repr)
def test_configuration_without_limits_is_the_default_one(gate: Gate, text: str):
    accepted = gate.envoy.reload(text)
    assert accepted == (text != '{"limits":[]}')
    assert gate.envoy.reload(GOOD)


def test_empty_configuration_means_one_limit_with_the_defaults(empty_gate: Gate):
    gate = empty_gate
    for model in ("nvidia/nemotron", "nvidia_nim/meta/llama"):
        answer = gate.client.chat(model)
        assert answer.header("x-ratelimit-limit-requests") == "40"
    assert gate.client.chat("meta/llama").header("x-nimgate-queue-ms") is None
    assert gate.envoy.requests_total("nvidia", outcome="forwarded") == 2
    assert gate.envoy.metric("nimgate_token_capacity", limit="nvidia") == 4
    assert gate.envoy.metric("nimgate_effective_rpm", limit="nvidia") == 40


@pytest.mark.parametrize(
    "value",
    [
        {"log_level": "debug"},
        {"on_unclassifiable": "pass"},
        {"priority": {}},
        {"priority": {"header": "X-P", "default": "LOW".lower(), "ceiling": "normal"}},
        only(models=["*"]),
        only(models=["nvidia/*", "*-nim", "a?c"]),
        only(hosts=["integrate.api.nvidia.com"], clusters=["nvidia"], paths=["/v1/*"]),
        only(rate_rpm=1, bucket_capacity=1, queue_max_size=1),
        only(queue_full_policy="passthrough", aging_s=10, retreat={"enabled": False}),
        only(retreat={"floor_rpm": 2, "retry_after_max_s": 10}),
    ],
    ids=json.dumps,
)
def test_good_configuration_is_taken(gate: Gate, value: dict):
    assert gate.envoy.reload(value), gate.envoy.log_tail(5)
    assert gate.envoy.reload(GOOD)
