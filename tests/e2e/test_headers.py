"""Headers that nimgate sets, removes and trusts nobody else to set."""

import re

import pytest

from harness.fake import Fake
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token
from harness.shipped import Options, keep_limit_header, plain_cluster, route_by_header

# OpenAI writes durations like `8.64s`, `6m0s`, `1h2m3s` and `17ms`.
DURATION = re.compile(r"(?=.)(\d+h)?(\d+m(?!s))?(\d+(\.\d+)?s)?(\d+ms)?")


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        limit("nvidia", rate_rpm=40),
        limit("limits", rate_rpm=6, bucket_capacity=3),
        limit("tokens", rate_rpm=120, bucket_capacity=20),
        one_token("waiting", 2.0),
    )
    with running_gate(Options(plugin=plugin)) as gate:
        yield gate


@pytest.fixture(scope="module")
def routed():
    """Two upstreams; the limit `alpha` has a cluster of its own."""
    with Fake() as alpha:
        options = Options(
            plugin=configuration(limit("alpha"), limit("beta")),
            listeners=[keep_limit_header, route_by_header("x-nimgate-limit", "alpha", "alpha")],
            clusters=[plain_cluster("alpha", alpha.port)],
        )
        with running_gate(options) as gate:
            yield gate, alpha


def test_limit_chooses_the_route(routed: tuple[Gate, Fake]):
    gate, alpha = routed
    to_alpha, to_beta, passed = gate.model("alpha"), gate.model("beta"), gate.model("other")
    for model in (to_alpha, to_beta, passed):
        assert gate.client.chat(model).status == 200
    assert alpha.only(to_alpha).header_values("x-nimgate-limit") == ["alpha"]
    assert gate.fake.only(to_beta).header_values("x-nimgate-limit") == ["beta"]
    assert gate.fake.only(passed).header_values("x-nimgate-limit") == []
    assert alpha.requests(to_beta) == alpha.requests(passed) == []


@pytest.mark.parametrize("name", ["beta", "other"])
def test_client_can_not_choose_the_route_itself(routed: tuple[Gate, Fake], name: str):
    gate, alpha = routed
    model = gate.model(name)
    spoofed = [("x-nimgate-limit", "alpha"), ("X-Nimgate-Limit", "alpha")]
    assert gate.client.chat(model, headers=spoofed).status == 200
    assert alpha.requests(model) == []
    expected = ["beta"] if name == "beta" else []
    assert gate.fake.only(model).header_values("x-nimgate-limit") == expected


def test_spoofed_headers_without_a_body_are_removed(routed: tuple[Gate, Fake]):
    gate, alpha = routed
    gate.fake.reset()
    spoofed = {"x-nimgate-limit": "alpha", "x-nimgate-x": "1"}
    assert gate.client.send("GET", "/v1/models", headers=spoofed).status == 200
    (record,) = gate.fake.requests(path="/v1/models")
    assert not [name for name, _ in record.headers if name.startswith("x-nimgate")]
    assert alpha.requests(path="/v1/models") == []


def test_upstream_sees_none_of_our_headers_through_the_shipped_routes(gate: Gate):
    model = gate.model("nvidia")
    assert gate.client.chat(model, headers={"x-nimgate-spoof": "1"}).status == 200
    names = [name for name, _ in gate.fake.only(model).headers]
    assert not [name for name in names if name.startswith("x-nimgate")]


def test_metered_answer_carries_the_state_of_the_bucket(gate: Gate):
    remaining = []
    for _ in range(3):
        answer = gate.client.chat(gate.model("limits"))
        assert answer.header("x-ratelimit-limit-requests") == "6"
        remaining.append(int(answer.header("x-ratelimit-remaining-requests") or "-1"))
        reset = answer.header("x-ratelimit-reset-requests") or ""
        assert DURATION.fullmatch(reset), reset
        assert answer.went_at_once(10)
    # A token comes back every ten seconds; meanwhile each request takes one.
    assert all(0 <= value <= 2 for value in remaining)
    assert remaining[0] == 2


def test_remaining_requests_fall_with_each_request(gate: Gate):
    first = gate.client.chat(gate.model("tokens"))
    second = gate.client.chat(gate.model("tokens"))
    assert 0 < int(first.header("x-ratelimit-remaining-requests")) <= 19
    assert 0 < int(second.header("x-ratelimit-remaining-requests")) <= 19


def test_wait_in_the_queue_is_told_in_whole_milliseconds(gate: Gate):
    gate.empty_bucket("waiting")
    answers = [gate.client.start_chat(gate.model("waiting")) for _ in range(2)]
    waits = sorted(int(future.result().header("x-nimgate-queue-ms")) for future in answers)
    # Two tokens at one in two seconds: whoever came second waited for at least one whole token
    # more than whoever came first did, less the time between their arrivals.
    longest = max(future.result().finished - future.result().started for future in answers)
    assert 0 <= waits[0] <= waits[1] <= longest * 1000


def test_rate_limit_headers_of_the_upstream_are_kept(gate: Gate):
    headers = [
        ("x-fake-header", "x-ratelimit-limit-requests: 7777"),
        ("x-fake-header", "x-ratelimit-remaining-requests: 6666"),
        ("x-fake-header", "x-ratelimit-reset-requests: 5m55s"),
    ]
    answer = gate.client.chat(gate.model("nvidia"), headers=headers)
    assert answer.header_values("x-ratelimit-limit-requests") == ["7777"]
    assert answer.header_values("x-ratelimit-remaining-requests") == ["6666"]
    assert answer.header_values("x-ratelimit-reset-requests") == ["5m55s"]


def test_internal_headers_that_the_upstream_forges_are_removed(gate: Gate):
    """T29. What passes through is left alone instead: nothing after it reads these headers."""
    headers = [
        ("x-fake-header", "x-nimgate-queue-ms: 99999"),
        ("x-fake-header", "X-Nimgate-Limit: other"),
        ("x-fake-header", "x-nimgate-anything: 1"),
        ("x-fake-header", "x-other: kept"),
    ]
    answer = gate.client.chat(gate.model("nvidia"), headers=headers)
    assert answer.header("x-other") == "kept"
    ours = {key.lower(): value for key, value in answer.headers if "nimgate" in key.lower()}
    assert set(ours) == {"x-nimgate-queue-ms"}
    assert answer.went_at_once(1.5)
    passed = gate.client.chat(gate.model("other"), headers=headers)
    assert passed.header("x-nimgate-queue-ms") == "99999"


@pytest.mark.parametrize("status", [202, 404])
def test_headers_of_the_upstream_arrive_as_they_were(gate: Gate, status: int):
    """They are put in place all at once: none may get lost, change, or change its place."""
    headers = [
        ("x-fake-status", str(status)),
        ("x-fake-header", "set-cookie: a=1; Path=/"),
        ("x-fake-header", "set-cookie: b=2, c"),
        ("x-fake-header", "x-empty:"),
        ("x-fake-header", "x-several: one"),
        ("x-fake-header", "x-several: two"),
        ("x-fake-header", f"x-long: {'x' * 4000}"),
        ("x-fake-header", "nvcf-reqid: 5e3c"),
    ]
    metered, passed = (
        gate.client.chat(gate.model(name), headers=headers) for name in ("nvidia", "other")
    )
    assert metered.status == passed.status == status
    varies = ("date", "x-envoy-upstream-service-time", "x-nimgate-queue-ms", "x-ratelimit-")

    def theirs(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [header for header in headers if not header[0].lower().startswith(varies)]

    assert theirs(metered.headers) == theirs(passed.headers)
    assert metered.header_values("set-cookie") == ["a=1; Path=/", "b=2, c"]
    assert len(metered.header_values("date")) == 1
    assert metered.header("x-nimgate-queue-ms") is not None


def test_refusals_carry_the_rate_limit_headers_too(gate: Gate):
    """OpenAI sends them with its own 429; clients read them to slow down."""
    answer = gate.client.chat(gate.model("nvidia"), headers={"x-fake-status": "404"})
    assert answer.status == 404
    assert answer.header("x-ratelimit-limit-requests") == "40"
