"""A real Prometheus before a real Envoy.

Every panel of the dashboard shows something, every rule is evaluated, and the page on metrics is
true of what is scraped.
"""

import json
import math
import re
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token
from harness.programs import REPOSITORY
from harness.prometheus import Prometheus
from harness.scrape import labels, scrape
from harness.shipped import Options
from harness.waiting import wait_for_equal, wait_until

sys.path.insert(0, str(REPOSITORY / "scripts/lib"))
import check_observability as shipped

PAGE = (REPOSITORY / "docs/metrics.md").read_text()
ROW = r"^\| `(nimgate_\w+)` \| (\w+) \| ([\w, ]*) ?\| ([^|]+) \| ([^|]+) \|$"


def plugin(**fields) -> dict:
    return configuration(
        limit("open", **fields),
        one_token("full", queue_max_size=0),
        one_token("trial", mode="shadow", queue_max_size=1, request_timeout_s=1),
        limit("errors"),
    )


@pytest.fixture(scope="module")
def gate():
    with running_gate(Options(plugin=plugin())) as gate:
        some_of_everything(gate)
        yield gate


def some_of_everything(gate: Gate) -> None:
    """One round of requests that touches every metric there is."""
    asked = [
        gate.client.start_chat("open/m", priority=priority)
        for priority in ("urgent", "high", "normal", "low")
    ]
    for status in (500, 429, 503):
        asked.append(gate.client.start_chat("errors/m", headers={"x-fake-status": str(status)}))
    for model in ("full/m", "full/m", "trial/m", "trial/m", "trial/m", "gpt-5"):
        asked.append(gate.client.start_chat(model))
    results(asked)
    gate.client.post(b'{"model": "open/m", "model": "open/n"}')
    gate.client.post(b'{"model": ')
    gate.console.send("GET", "/health/ready")


def listed() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of each metric, as the page says."""
    found = {
        name: (kind, frozenset(names.replace(" ", "").split(",")) - {""})
        for name, kind, names, _, _ in re.findall(ROW, PAGE, re.MULTILINE)
    }
    assert len(found) > 25
    return found


def test_page_on_metrics_is_what_is_scraped(gate: Gate):
    wait_until(
        lambda: labels(scrape(gate), "nimgate_queue_time_milliseconds_bucket"), "histograms come"
    )
    text = gate.metrics.send("GET", "/metrics").body.decode()
    scraped: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser takes `_total` off a counter's name.
            name = sample.name if family.type == "counter" else family.name
            found = (family.type, frozenset(sample.labels) - {"le"})
            assert scraped.setdefault(name, found) == found, sample
    assert scraped == listed()


def test_every_expression_gives_something_on_a_live_envoy(gate: Gate):
    missing = shipped.expressions(json.loads(shipped.DASHBOARD.read_text()))
    missing |= shipped.page_expressions()
    with Prometheus(gate.envoy.ports.metrics) as prometheus:
        wait_until(lambda: prometheus.query("nimgate_configuration_epoch"), "a first scrape")
        assert gate.envoy.reload(plugin(rate_rpm=5000))

        def all_answered() -> bool:
            some_of_everything(gate)
            for where, expression in list(missing.items()):
                expression = expression.replace("[5m]", "[1m]")
                if any(math.isfinite(value) for _, value in prometheus.query(expression)):
                    del missing[where]
            return not missing

        try:
            wait_until(all_answered, "every expression has a value")
        except AssertionError as error:
            raise AssertionError(f"these give nothing: {missing}") from error

        (target,) = prometheus.targets()
        assert (target["health"], target["lastError"]) == ("up", "")
        wait_until(
            lambda: all(rule["health"] == "ok" for rule in prometheus.rules()),
            "every rule is evaluated",
        )
        assert [rule["name"] for rule in prometheus.rules() if rule.get("lastError")] == []
        # What nothing is wrong with raises no alarm.
        raised = {series["alertname"] for series, _ in prometheus.query("ALERTS")}
        assert not raised & {"NimgateTokensUnused", "NimgateUpstreamDown", "NimgateLedgerCorrupt"}


def test_recorded_values_are_what_was_sent(gate: Gate):
    with Prometheus(gate.envoy.ports.metrics) as prometheus:
        total = 'sum(nimgate_requests_total{limit="open",outcome="forwarded"})'
        wait_until(lambda: prometheus.query(total), "a first scrape")
        ((_, before),) = prometheus.query(total)
        answers = results(gate.client.start_chat("open/m") for _ in range(20))
        assert {answer.status for answer in answers} == {200}
        wait_for_equal(lambda: prometheus.query(total), [({}, before + 20)], "all are counted")
