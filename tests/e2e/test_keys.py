"""Keys: put into metered requests, kept from all others, and shown to nobody."""

import secrets

import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token, secret
from harness.shipped import Options, walk
from harness.waiting import wait_for_equal

CONFIGURED = secret("nvapi-configured")
FROM_ENVIRONMENT = secret("nvapi-environment")
VARIABLE = "NIMGATE_E2E_KEY"


def pass_variable_to_the_vm(tree: dict) -> None:
    for node in walk(tree):
        if "vm_config" in node:
            variables = node["vm_config"].setdefault("environment_variables", {})
            variables.setdefault("host_env_keys", []).append(VARIABLE)


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        limit("configured", upstream_api_key=CONFIGURED),
        limit("environment", upstream_api_key_env=VARIABLE),
        limit("unset", upstream_api_key_env="NIMGATE_E2E_KEY_THAT_NOBODY_SET"),
        limit("none"),
        one_token("held", upstream_api_key=CONFIGURED, low_priority_timeout_s=1),
        log_level="debug",
    )
    options = Options(
        plugin=plugin,
        environment={VARIABLE: FROM_ENVIRONMENT},
        listeners=[pass_variable_to_the_vm],
        arguments=["--component-log-level", "wasm:debug"],
    )
    with running_gate(options) as gate:
        yield gate


def authorization_seen(gate: Gate, name: str, sent: str | None) -> list[str]:
    model = gate.model(name)
    answer = gate.client.chat(model, headers={"Authorization": sent} if sent else {})
    assert answer.status == 200
    return gate.fake.only(model).header_values("authorization")


@pytest.mark.parametrize("sent", [None, "Bearer theirs", "Basic dTpw", ""])
@pytest.mark.parametrize(
    ("name", "key"), [("configured", CONFIGURED), ("environment", FROM_ENVIRONMENT)]
)
def test_configured_key_replaces_what_the_client_sent(
    gate: Gate, name: str, key: str, sent: str | None
):
    assert authorization_seen(gate, name, sent) == [f"Bearer {key}"]


def test_configured_key_replaces_repeated_authorization_headers(gate: Gate):
    model = gate.model("configured")
    headers = [("authorization", "Bearer one"), ("authorization", "Bearer two")]
    assert gate.client.chat(model, headers=headers).status == 200
    assert gate.fake.only(model).header_values("authorization") == [f"Bearer {CONFIGURED}"]


@pytest.mark.parametrize("name", ["none", "unset"])
def test_without_a_key_the_clients_own_is_kept(gate: Gate, name: str):
    assert authorization_seen(gate, name, "Bearer theirs") == ["Bearer theirs"]


@pytest.mark.parametrize("name", ["none", "unset"])
def test_without_any_key_the_placeholder_is_sent(gate: Gate, name: str):
    assert authorization_seen(gate, name, None) == ["Bearer nvidia"]


def test_passed_requests_never_carry_our_key(gate: Gate):
    gate.fake.reset()
    assert gate.client.chat("gpt-5").status == 200
    assert gate.client.chat("gpt-5", headers={"Authorization": "Bearer theirs"}).status == 200
    assert gate.client.send("GET", "/v1/models").status == 200
    octets = gate.client.post(b"{}", content_type="application/octet-stream")
    assert octets.status == 200
    seen = [record.header("authorization") for record in gate.fake.requests()]
    assert seen == [None, "Bearer theirs", None, None]


def test_held_request_gets_its_key_too(gate: Gate):
    gate.empty_bucket("held")
    model = gate.model("held")
    with gate.raw() as connection:
        connection.request(encode(chat(model)), [("Authorization", "Bearer theirs")])
        gate.wait_for_queue("held", 1)
        faster = dict(gate.envoy.options.plugin)
        faster["limits"] = [
            {**entry, "rate_rpm": 6000} if entry["name"] == "held" else entry
            for entry in faster["limits"]
        ]
        assert gate.envoy.reload(faster)
        assert connection.answer().status == 200
    assert gate.fake.only(model).header_values("authorization") == [f"Bearer {CONFIGURED}"]


def test_no_secret_appears_in_any_output():
    """A unique token in every place where a client or the operator puts secrets (T24)."""
    planted = {name: f"planted{secrets.token_hex(12)}" for name in ("auth", "api", "cookie")}
    planted |= {name: f"planted{secrets.token_hex(12)}" for name in ("query", "prompt", "key")}
    planted["slip"] = f"nvapi-planted-{secrets.token_hex(12)}"
    headers = {
        "Authorization": f"Bearer {planted['auth']}",
        "X-API-Key": planted["api"],
        "Cookie": f"session={planted['cookie']}",
    }
    plugin = configuration(
        one_token(
            "secret",
            upstream_api_key=planted["key"],
            low_priority_timeout_s=1,
            queue_max_size=1,
        ),
        limit("open", upstream_api_key=planted["key"]),
        on_unclassifiable="reject",
        log_level="debug",
    )
    options = Options(plugin=plugin, arguments=["--component-log-level", "wasm:debug"])
    with running_gate(options) as gate:
        path = f"/v1/chat/completions?token={planted['query']}"
        outputs = []

        def send(model: str, **extra: str) -> int:
            answer = gate.client.chat(
                model, path=path, headers={**headers, **extra}, prompt=planted["prompt"]
            )
            outputs.append(repr(answer))
            return answer.status

        # One of each outcome, since each has its own words.
        assert send("secret/first") == 200
        assert send("gpt-5") == 200
        assert send("secret/late", **{"x-priority": "low"}) == 429
        with gate.holding("secret", 1):
            assert send("secret/full") == 503
        assert send("open/reset", **{"x-fake-behaviour": "reset"}) == 502
        assert send("open/throttled", **{"x-fake-status": "429"}) == 429
        assert send("open/failing", **{"x-fake-status": "404"}) == 404
        unreadable = gate.client.post(
            f'{{"model":"{planted["prompt"]}'.encode(), path, **_keywords(headers)
        )
        assert unreadable.status == 400
        outputs.append(repr(unreadable))

        # A refused configuration is quoted by its path, never by its value.
        bad = configuration(limit("secret", upstream_api_key=planted["key"], rate_rpm=0))
        assert not gate.envoy.reload(bad)
        bad = configuration(limit("secret", upstream_api_key=[planted["key"]]))
        assert not gate.envoy.reload(bad)
        bad = configuration(limit("secret", upstream_api_key=planted["key"] + "\n"))
        assert not gate.envoy.reload(bad)
        # The key itself where the name of a variable belongs is an easy slip.
        gate.envoy.reload(configuration(limit("secret", upstream_api_key_env=planted["slip"])))

        outputs += [gate.envoy.admin("/stats"), gate.envoy.admin("/stats/prometheus")]
        outputs.append(gate.envoy.log())
    everything = "\n".join(outputs)
    assert [name for name, token in planted.items() if token in everything] == []


def test_missing_variable_is_said_once_in_the_log(gate: Gate):
    wait_for_equal(
        lambda: "NIMGATE_E2E_KEY_THAT_NOBODY_SET" in gate.envoy.log(), True, "the log names it"
    )


def _keywords(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in headers.items()}
