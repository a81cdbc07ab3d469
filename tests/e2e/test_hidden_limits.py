"""Upstreams whose limit is lower than the configured one: the filter finds it, and stays there."""

import threading
import time

import pytest

from harness import report
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.shipped import Options

CONFIGURED_RPM = 1200
HIDDEN_RPM = 600
# A machine that stalls bunches requests on their way, and a few of those the upstream refuses. The
# test then tries again with a longer window, of which a stall is a smaller part: as many requests
# in each window, but further apart.
TIERS = ((2, HIDDEN_RPM), (6, HIDDEN_RPM // 3))
# Requests in a window. Learning costs no more than that.
HIDDEN = TIERS[0][0] * HIDDEN_RPM // 60
WINDOWS = 20
# In these the filter learns: by then it has met the limit where it was some times in a row.
FIRST = 6
CLIENTS = 16
# `probe_windows` is five: the next try to go faster is as many windows later, and costs one refusal
# or two in that time, of some hundred requests.
REFUSED_MOST = 0.02
USED_LEAST = 0.85


@pytest.fixture(scope="module")
def gate():
    kinds = ["token-bucket", "fixed-window", "sliding-window"]
    limits = [
        limit(f"{kind}-{window_s}", rate_rpm=2 * rpm, window_s=window_s)
        for kind in kinds
        for window_s, rpm in TIERS
    ]
    gone = limit("gone", rate_rpm=CONFIGURED_RPM, window_s=TIERS[0][0])
    with running_gate(Options(plugin=configuration(*limits, gone), concurrency=4)) as gate:
        yield gate
        gate.fake.configure(limiter="none")


def press(gate: Gate, name: str, until: float) -> None:
    """Clients that ask again as soon as they are answered, all of them for one model."""

    def ask() -> None:
        while time.monotonic() < until:
            gate.client.chat(f"{name}/m")

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["token-bucket", "fixed-window", "sliding-window"])
def test_hidden_limit_is_found_and_kept_to(gate: Gate, kind: str):
    shares = []
    for window_s, rpm in TIERS:
        at_first, refused, used = shares_once_learned(gate, kind, window_s, rpm)
        shares.append(f"{at_first} refused at first, then {refused:.2%}; {used:.1%} used")
        if at_first <= HIDDEN and refused <= REFUSED_MOST and used >= USED_LEAST:
            return
    raise AssertionError(f"neither in short windows nor in long ones: {shares}")


def shares_once_learned(gate: Gate, kind: str, window_s: int, rpm: int) -> tuple[int, float, float]:
    """How many requests are refused while the filter learns; after that, the share of requests that
    is refused, and the share of the limit that is used."""
    name = f"{kind}-{window_s}"
    gate.fake.configure(limiter=kind, rpm=rpm, window_s=window_s, burst=4)
    press(gate, name, time.monotonic() + WINDOWS * window_s)
    records = gate.fake.requests(f"{name}/m")
    learned_us = records[0].at_us + FIRST * window_s * 1_000_000
    later = [record for record in records if record.at_us >= learned_us]
    refused = sum(record.status == 429 for record in later)
    span_s = (later[-1].at_us - later[0].at_us) / 1e6
    used = (len(later) - refused) / (span_s * rpm / 60)
    at_first = sum(record.status == 429 for record in records) - refused
    report.note(
        f"hidden {kind}, {window_s} s: {used:.1%} of the limit used, {refused / len(later):.2%} of"
        f" {len(later)} refused, {at_first} in the first {FIRST} windows"
    )
    assert gate.envoy.metric("nimgate_effective_rpm", limit=name) < 2 * rpm * 0.9
    return at_first, refused / len(later), used


def test_limit_that_is_gone_is_noticed(gate: Gate):
    window_s = TIERS[0][0]
    gate.fake.configure(limiter="sliding-window", rpm=HIDDEN_RPM, window_s=window_s)
    press(gate, "gone", time.monotonic() + 3 * window_s)
    assert gate.envoy.metric("nimgate_effective_rpm", limit="gone") < CONFIGURED_RPM
    gate.fake.configure(limiter="none")
    began = time.monotonic()
    while gate.envoy.metric("nimgate_effective_rpm", limit="gone") < CONFIGURED_RPM:
        press(gate, "gone", time.monotonic() + window_s)
        assert time.monotonic() < began + 60 * window_s, "still slowed"
    report.note(f"back at full speed {(time.monotonic() - began) / window_s:.1f} windows after")
