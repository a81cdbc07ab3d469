"""What is counted by model: errors and latency, whatever clients call their models."""

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.scrape import labels, scrape, value
from harness.shipped import Options, route_timeout
from harness.waiting import wait_for_equal

ERRORS = "nimgate_upstream_errors_total"
LATENCY = "nimgate_upstream_latency_milliseconds"
# See filter/core/src/model_names.rs.
NAMES_MAX = 64


@pytest.fixture(params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(limit("any", bucket_capacity=600), limit("host", [], hosts=["h.test"]))
    options = Options(plugin=plugin, concurrency=request.param, listeners=[route_timeout(5)])
    with running_gate(options) as gate:
        yield gate


def ask(gate: Gate, model: str, status: int = 200, **headers: str) -> int:
    return gate.client.chat(model, headers={"x-fake-status": str(status), **headers}).status


def counted(gate: Gate, model: str) -> float:
    """How many answers without error are counted for a model."""
    return value(scrape(gate), f"{LATENCY}_count", model=model)


def test_errors_and_latencies_equal_what_the_upstream_answered(gate: Gate):
    plan = {
        "any/llama-3.1-8b": [200, 500, 200, 404, 429, 429, 503],
        "any/retired": [410, 410],
        "any/busy": [200, 529, 418],
    }
    for model, statuses in plan.items():
        for status in statuses:
            assert ask(gate, model, status) == status
    series = scrape(gate)
    for model in plan:
        answered = [request.status for request in gate.fake.requests(model)]
        assert sorted(answered) == sorted(plan[model])
        for status in {code for code in answered if code >= 400}:
            label = {529: "5xx", 418: "4xx"}.get(status, str(status))
            got = value(series, ERRORS, limit="any", model=model, error=label)
            assert got == answered.count(status), (model, status)
        wait_for_equal(
            lambda model=model: counted(gate, model),
            float(sum(code < 400 for code in answered)),
            "answers with a latency",
        )
    total = sum(code >= 400 for codes in plan.values() for code in codes)
    assert value(series, ERRORS) == total


def test_upstream_that_does_not_answer_is_an_error_of_the_model(gate: Gate):
    assert ask(gate, "any/m") == 200
    assert value(scrape(gate), "nimgate_upstream_up", limit="any") == 1
    assert ask(gate, "any/m", **{"x-fake-behaviour": "reset"}) == 502
    series = scrape(gate)
    assert value(series, ERRORS, model="any/m", error="unreachable") == 1
    assert value(series, "nimgate_upstream_up", limit="any") == 0
    assert ask(gate, "any/m", **{"x-fake-latency-ms": "60000"}) == 504
    assert value(scrape(gate), ERRORS, model="any/m", error="timeout") == 1
    assert ask(gate, "any/m", 500) == 500
    assert value(scrape(gate), "nimgate_upstream_up", limit="any") == 1


def test_latency_is_the_upstreams(gate: Gate):
    for _ in range(3):
        assert ask(gate, "any/slow", **{"x-fake-latency-ms": "300"}) == 200
    wait_for_equal(lambda: counted(gate, "any/slow"), 3.0, "three latencies")
    series = scrape(gate)
    assert value(series, f"{LATENCY}_bucket", model="any/slow", le="250") == 0
    # Envoy's histograms keep two digits of a value.
    assert value(series, f"{LATENCY}_sum", model="any/slow") >= 3 * 300 * 0.9


def test_request_that_is_metered_by_its_host_has_no_model(gate: Gate):
    headers = {"host": "h.test", "x-fake-status": "500"}
    assert gate.client.send("GET", "/v1/models", headers=headers).status == 500
    assert value(scrape(gate), ERRORS, limit="host", model="none", error="500") == 1
    # Where the body was read all the same, for another limit's sake, it has the one that was read.
    assert gate.client.chat("whatever", headers=headers).status == 500
    assert value(scrape(gate), ERRORS, limit="host", model="whatever", error="500") == 1


@pytest.mark.parametrize("status", [404, 401, 422, 429])
def test_name_that_the_upstream_does_not_know_has_no_label(gate: Gate, status: int):
    answers = [ask(gate, f"any/invented-{number}", status) for number in range(5)]
    assert set(answers) == {status}
    series = scrape(gate)
    assert value(series, ERRORS, model="other", error=str(status)) == 5
    assert value(series, ERRORS) == 5


HOSTILE = {
    'any/a"} 1\nnimgate_forged_total 1': "any/a___1_nimgate_forged_total_1",
    "any/x;.;limit=.=forged;.;": "any/x_._limit_._forged_._",
    "any/\u202ebig\u0000": "any/_big_",
    "ANY/Upper.Case:v1@2+3": "any/upper.case:v1@2+3",
    "any/" + "l" * 200: "other",
}


def test_hostile_names_are_harmless(gate: Gate):
    for model in HOSTILE:
        assert ask(gate, model, 503) == 503
    series = scrape(gate)
    for label in HOSTILE.values():
        assert value(series, ERRORS, model=label, limit="any", error="503") == 1, label
    assert value(series, ERRORS) == len(HOSTILE)
    assert not [name for name, _ in series if "forged" in name]
    assert {found["limit"] for found in labels(series, ERRORS)} == {"any"}


def test_number_of_names_is_bounded_over_all_workers(gate: Gate):
    answers = results(
        gate.client.start_chat(f"any/n{number}", headers={"x-fake-status": "500"})
        for number in range(2 * NAMES_MAX)
    )
    assert {answer.status for answer in answers} == {500}
    series = scrape(gate)
    names = {found["model"] for found in labels(series, ERRORS)}
    assert len(names) == NAMES_MAX + 1
    assert value(series, ERRORS, model="other") == NAMES_MAX
    assert value(series, ERRORS) == 2 * NAMES_MAX
    # A place once taken stays; whoever comes late is among the others.
    known = next(iter(names - {"other"}))
    assert ask(gate, known, 404) == 404
    assert value(scrape(gate), ERRORS, model=known, error="404") == 1
