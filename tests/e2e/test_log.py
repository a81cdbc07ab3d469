"""nimgate's own log lines: one JSON object for each event of docs/logs.md, none for requests."""

import json
import re

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, encode, limit, one_token, secret
from harness.programs import REPOSITORY
from harness.shipped import Options
from harness.waiting import wait_until

TOKEN = secret("nimgate-admin")
PAGE = (REPOSITORY / "docs/logs.md").read_text()
LISTED = {
    name: (level, {"nimgate", *members.split(", ")})
    for name, level, members in re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \|", PAGE, re.MULTILINE
    )
}
LEVELS = {"info": "info", "warn": "warning", "error": "error"}


def plugin(**fields) -> dict:
    return configuration(
        limit("plain", upstream_api_key_env="NIMGATE_E2E_NOT_SET"),
        one_token("tight", queue_max_size=1, low_priority_timeout_s=1),
        limit("storm", window_s=1),
        limit("overridden", **fields),
        on_unclassifiable="reject",
    )


@pytest.fixture(scope="module")
def gate():
    options = Options(plugin=plugin(), concurrency=4, environment={"NIMGATE_ADMIN_TOKEN": TOKEN})
    with running_gate(options) as gate:
        yield gate


def lines(gate: Gate) -> list[tuple[str, dict]]:
    """Level and object of each of nimgate's lines."""
    found = re.findall(
        r"\]\[(\w+)\]\[wasm\].* wasm log [^:]*: (.*)$", gate.envoy.log(), re.MULTILINE
    )
    return [(level, json.loads(line)) for level, line in found]


def events(gate: Gate, name: str) -> list[dict]:
    return [line for _, line in lines(gate) if line["nimgate"] == name]


def change(gate: Gate, token: str, **fields) -> int:
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    return gate.console.send("POST", "/config", encode(fields), headers).status


def test_start_is_said_once_for_all_workers(gate: Gate):
    # Every worker has taken up its configuration once it has served.
    answers = results(gate.client.start_chat("plain/m") for _ in range(40))
    assert {answer.status for answer in answers} == {200}
    (configured,) = events(gate, "configured")
    assert configured["limits"] == ["plain", "tight", "storm", "overridden"]
    assert len(events(gate, "console_configured")) == 1
    (missing,) = events(gate, "key_missing")
    assert (missing["limit"], missing["variable"]) == ("plain", "NIMGATE_E2E_NOT_SET")
    in_force = {line["limit"]: line for line in events(gate, "rules_in_force")}
    assert set(in_force) == set(configured["limits"])
    assert in_force["tight"]["epoch"] == 1
    assert in_force["tight"]["rules"]["queue_max_size"] == 1


def test_requests_leave_no_line(gate: Gate):
    before = len(lines(gate))
    asked = [
        gate.client.start_chat("plain/m", headers={"x-fake-status": status})
        for status in ("200", "404", "500")
        for _ in range(20)
    ]
    asked += [gate.client.start_chat("tight/m", priority="low") for _ in range(20)]
    asked += [gate.client.start_chat("gpt-5") for _ in range(20)]
    asked += [gate.client.start("POST", "/v1/x", b'{"model"', {"content-type": "application/json"})]
    statuses = {answer.status for answer in results(asked)}
    assert {200, 404, 500, 429, 503, 400} <= statuses
    assert lines(gate)[before:] == []


def test_every_line_is_as_the_page_says(gate: Gate):
    for _ in range(5):
        gate.client.chat("storm/m", headers={"x-fake-status": "429"})
    assert change(gate, TOKEN, limit="overridden", rate_rpm=4000) == 200
    assert change(gate, "wrong", limit="overridden", rate_rpm=1) == 401
    assert gate.envoy.reload(plugin(rate_rpm=3000))
    assert not gate.envoy.reload(plugin(rate_rpm=-1))
    expected = {"retreat", "rules_changed", "console_refused", "configuration_refused"}
    wait_until(lambda: all(events(gate, name) for name in expected), "all of these are said")
    for level, line in lines(gate):
        listed_level, members = LISTED[line["nimgate"]]
        assert (level, set(line)) == (LEVELS[listed_level], members), line
    (refused,) = events(gate, "configuration_refused")
    assert "limits[3].rate_rpm" in refused["problem"]
    (changed,) = events(gate, "rules_changed")
    assert (changed["before"]["rate_rpm"], changed["after"]["rate_rpm"]) == (6000, 4000)
    latest = [line for line in events(gate, "rules_in_force") if line["limit"] == "overridden"][-1]
    assert (latest["epoch"], latest["rules"]["rate_rpm"]) == (3, 3000)
    assert all(line["reason"] for line in events(gate, "retreat"))
    # Log, status and metric agree on the active rules.
    limits = gate.console.send("GET", "/status").json()["limits"]
    (overridden,) = [one for one in limits if one["name"] == "overridden"]
    assert overridden["rules"]["epoch"] == 3
    assert gate.envoy.metric("nimgate_configuration_epoch", limit="overridden") == 3
    assert TOKEN not in gate.envoy.log()
