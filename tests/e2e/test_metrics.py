"""The numbers: what /metrics says is what the clients and the upstream saw."""

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token
from harness.scrape import Series, scrape, value
from harness.shipped import Options
from harness.waiting import wait_for_equal, wait_until


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        limit("open", bucket_capacity=200),
        one_token("tight", low_priority_timeout_s=1, queue_max_size=2),
        one_token("gauges"),
        one_token("shown"),
        one_token("timed", 1.0),
        limit("errors"),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate


def test_outcomes_equal_what_clients_and_upstream_saw(gate: Gate):
    before = scrape(gate)
    seen_before = len(gate.fake.requests())
    answers = results(
        gate.client.start_chat(gate.model("open"), priority=priority)
        for priority in ("urgent", "high", "normal", "low", "low")
        for _ in range(6)
    )
    passed = results(gate.client.start_chat("gpt-5") for _ in range(7))
    assert {answer.status for answer in answers + passed} == {200}

    assert gate.client.chat(gate.model("tight")).status == 200
    with gate.holding("tight", 2):
        full = results(gate.client.start_chat(gate.model("tight")) for _ in range(3))
    gate.wait_for_queue("tight", 0)
    late = gate.client.chat(gate.model("tight"), priority="low")
    assert [answer.status for answer in [*full, late]] == [503, 503, 503, 429]

    reset = gate.client.chat(gate.model("errors"), headers={"x-fake-behaviour": "reset"})
    assert reset.status == 502

    def grown(name: str, **labels: str) -> float:
        return value(scrape(gate), name, **labels) - value(before, name, **labels)

    total = "nimgate_requests_total"
    wait_for_equal(
        lambda: grown(total, limit="tight", outcome="client_left"), 2.0, "two clients left"
    )
    for priority, count in (("urgent", 6), ("high", 6), ("normal", 6), ("low", 12)):
        assert grown(total, limit="open", priority=priority, outcome="forwarded") == count
    assert grown(total, limit="open") == 30
    assert grown(total, limit="tight", outcome="forwarded", priority="normal") == 1
    assert grown(total, limit="tight", outcome="queue_full") == 3
    assert grown(total, limit="tight", outcome="rate_limited", priority="low") == 1
    assert grown(total, limit="tight") == 7
    assert grown(total, limit="errors", outcome="upstream_unreachable") == 1
    assert grown(total, limit="errors") == 1
    wait_for_equal(lambda: grown("nimgate_passthrough_total"), 7, "requests passed")
    assert grown("nimgate_upstream_responses_total", limit="open", **{"class": "2xx"}) == 30
    # Every forwarded request reached the upstream, and so did those that passed and the reset one.
    assert len(gate.fake.requests()) - seen_before == 30 + 7 + 1 + 1


@pytest.mark.parametrize(
    ("status", "kind"), [("202", "2xx"), ("302", "3xx"), ("404", "4xx"), ("500", "5xx")]
)
def test_upstream_answers_are_counted_by_class(gate: Gate, status: str, kind: str):
    name = "nimgate_upstream_responses_total"
    before = value(scrape(gate), name, limit="errors", **{"class": kind})
    answer = gate.client.chat(gate.model("errors"), headers={"x-fake-status": status})
    assert answer.status == int(status)
    assert value(scrape(gate), name, limit="errors", **{"class": kind}) == before + 1


def test_gauges_show_who_waits_and_are_zero_at_rest(gate: Gate):
    gate.empty_bucket("gauges")
    with gate.holding("gauges", 1, priority="urgent"), gate.holding("gauges", 1, priority="low"):
        series = scrape(gate)
        assert value(series, "nimgate_queue_length", limit="gauges", priority="urgent") == 1
        assert value(series, "nimgate_queue_length", limit="gauges", priority="low") == 1
        assert value(series, "nimgate_queue_length", limit="gauges") == 2
    wait_for_equal(lambda: value(scrape(gate), "nimgate_queue_length"), 0.0, "nobody waits")
    assert value(scrape(gate), "nimgate_fallback_length") == 0


def test_tokens_and_rates_are_shown(gate: Gate):
    gate.empty_bucket("shown")
    series = scrape(gate)
    assert value(series, "nimgate_token_capacity", limit="shown") == 1
    assert value(series, "nimgate_tokens_available", limit="shown") <= 1
    assert value(series, "nimgate_effective_rpm", limit="shown") == 1
    assert value(series, "nimgate_retreat_state", limit="shown") == 0
    assert value(series, "nimgate_token_capacity", limit="open") == 200


def test_rules_in_force_are_shown(gate: Gate):
    series = scrape(gate)
    assert value(series, "nimgate_configured_rpm", limit="open") == 6000
    assert value(series, "nimgate_queue_capacity", limit="tight") == 2
    assert value(series, "nimgate_queue_capacity", limit="open") == 1000
    assert value(series, "nimgate_shadow_mode", limit="open") == 0
    before = gate.envoy.options.plugin
    changed = configuration(
        *(one for one in before["limits"] if one["name"] != "shown"),
        limit("shown", rate_rpm=77, queue_max_size=5, mode="shadow"),
    )
    # Not the very same again: Envoy would take up the old one without asking.
    back = {**before, "log_level": "info"}
    for plugin, rpm, places, shadow in ((changed, 77, 5, 1), (back, 1, 1000, 0)):
        epoch = value(scrape(gate), "nimgate_configuration_epoch", limit="shown")
        assert gate.envoy.reload(plugin)
        shown = scrape(gate)
        assert value(shown, "nimgate_configured_rpm", limit="shown") == rpm
        assert value(shown, "nimgate_queue_capacity", limit="shown") == places
        assert value(shown, "nimgate_shadow_mode", limit="shown") == shadow
        assert value(shown, "nimgate_configuration_epoch", limit="shown") == epoch + 1


def test_refused_configurations_are_counted(gate: Gate):
    name = "nimgate_configuration_refused_total"
    before = value(scrape(gate), name)
    assert not gate.envoy.reload({"limits": [{"name": "a", "rate_rpm": 0}]})
    assert not gate.envoy.reload({"limit": []})
    assert value(scrape(gate), name) == before + 2


def test_health_is_what_readiness_says(gate: Gate):
    answer = gate.console.send("GET", "/health/ready")
    assert answer.status == 200
    assert value(scrape(gate), "nimgate_health") == 1


def test_counters_are_there_before_the_first_request(gate: Gate):
    series = scrape(gate)
    for outcome in ("forwarded", "rate_limited", "queue_full", "client_left"):
        labels = {"limit": "gauges", "priority": "low", "outcome": outcome}
        assert ("nimgate_requests_total", frozenset(labels.items())) in series, outcome


def test_queue_time_is_a_histogram_by_priority(gate: Gate):
    assert gate.client.chat(gate.model("timed")).status == 200
    answer = gate.client.chat(gate.model("timed"), priority="high")
    assert answer.status == 200
    labels = {"limit": "timed", "priority": "high"}

    def recorded() -> Series | None:
        series = scrape(gate)
        found = value(series, "nimgate_queue_time_milliseconds_count", **labels)
        return series if found == 1 else None

    series = wait_until(recorded, "the histogram shows the wait")
    assert value(series, "nimgate_queue_time_milliseconds_bucket", le="+Inf", **labels) == 1
    waited = int(answer.header("x-nimgate-queue-ms") or "-1")
    total = value(series, "nimgate_queue_time_milliseconds_sum", **labels)
    # Envoy's histograms keep two digits of a value.
    assert total == pytest.approx(waited, rel=0.11, abs=1)


def test_metrics_listener_shows_what_the_admin_interface_shows(gate: Gate):
    assert gate.client.chat(gate.model("open")).status == 200
    series = scrape(gate)
    assert value(series, "nimgate_requests_total") == gate.envoy.metric("nimgate_requests_total")


def test_ledger_is_in_order(gate: Gate):
    assert gate.envoy.metric("nimgate_ledger_corrupt_total") == 0
