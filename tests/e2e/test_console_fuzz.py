"""The console against its own description: hundreds of good and bad requests made up from it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from harness.gate import Gate, running_gate
from harness.nimgate import configuration, one_token, secret
from harness.programs import REPOSITORY
from harness.report import note
from harness.shipped import Options

TOKEN = secret("nimgate-admin")
EXAMPLES = 400

schema = schemathesis.openapi.from_path(REPOSITORY / "envoy/console-openapi.yaml")
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
sent: dict[int, int] = {}


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(one_token("nvidia"), one_token("other"))
    options = Options(plugin=plugin, environment={"NIMGATE_ADMIN_TOKEN": TOKEN})
    with running_gate(options) as gate:
        yield gate
    counts = ", ".join(f"{count} with {status}" for status, count in sorted(sent.items()))
    note(f"console fuzzed with {sum(sent.values())} requests, answered: {counts}")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_console_does_what_its_description_says(gate: Gate, case: Case):
    # The true token in place of a made-up one, so that what follows is reached; but none
    # where its absence or a wrong one is what is tried.
    header = case.meta.components.get(ParameterLocation.HEADER) if case.meta else None
    made_wrong = header is not None and header.mode.is_negative
    if case.operation.path == "/config" and not made_wrong:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {TOKEN}"}
    # A limit that is there, and the active epoch, where it made up good ones.
    body = case.meta.components.get(ParameterLocation.BODY) if case.meta else None
    if body is not None and body.mode.is_positive and isinstance(case.body, dict):
        case.body = {**case.body, "limit": "nvidia", "epoch": None}
    response = case.call_and_validate(
        base_url=f"http://127.0.0.1:{gate.envoy.ports.console}",
        # It sends methods that Envoy's parser refuses by itself; test_console has those that
        # come through. And it can't know that fields may forbid each other.
        excluded_checks=[unsupported_method, positive_data_acceptance],
    )
    sent[response.status_code] = sent.get(response.status_code, 0) + 1
    assert response.status_code < 500 or case.operation.path == "/health/ready", response.text


def test_console_is_well_after_that(gate: Gate):
    assert gate.console.send("GET", "/status").status == 200
    assert gate.envoy.stats("wasm.*vm_reload") == dict.fromkeys(
        gate.envoy.stats("wasm.*vm_reload"), 0
    )
