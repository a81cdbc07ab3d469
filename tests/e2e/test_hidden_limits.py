"""Upstreams whose limit is lower than the configured one: the filter finds it, and stays there."""

import threading
import time

import pytest

from harness import report
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.shipped import Options

WINDOW_S = 2
CONFIGURED_RPM = 1200
HIDDEN_RPM = 600
HIDDEN = HIDDEN_RPM * WINDOW_S // 60
WINDOWS = 14
# In these the filter learns.
FIRST = 4
CLIENTS = 16


@pytest.fixture(scope="module")
def gate():
    names = ["token-bucket", "fixed-window", "sliding-window", "model"]
    limits = [limit(name, rate_rpm=CONFIGURED_RPM, window_s=WINDOW_S) for name in names]
    with running_gate(Options(plugin=configuration(*limits), concurrency=4)) as gate:
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


@pytest.mark.parametrize("kind", ["token-bucket", "fixed-window", "sliding-window"])
def test_hidden_limit_is_found_and_kept_to(gate: Gate, kind: str):
    gate.fake.configure(limiter=kind, rpm=HIDDEN_RPM, window_s=WINDOW_S, burst=4)
    press(gate, kind, time.monotonic() + WINDOWS * WINDOW_S)
    records = gate.fake.requests(f"{kind}/m")
    learned_us = records[0].at_us + FIRST * WINDOW_S * 1_000_000
    later = [record for record in records if record.at_us >= learned_us]
    refused = sum(record.status == 429 for record in later)
    span_s = (later[-1].at_us - later[0].at_us) / 1e6
    used = (len(later) - refused) / (span_s * HIDDEN_RPM / 60)
    at_first = sum(record.status == 429 for record in records) - refused
    report.note(
        f"hidden {kind}: {used:.1%} of the limit used, {refused / len(later):.2%} of {len(later)}"
        f" refused, {at_first} in the first {FIRST} windows"
    )
    # Without a retreat every second request would be refused.
    assert refused / len(later) < 0.15
    assert used > 0.5
    assert at_first <= HIDDEN
    assert gate.envoy.metric("nimgate_effective_rpm", limit=kind) < CONFIGURED_RPM * 0.9


def test_limit_that_is_gone_is_noticed(gate: Gate):
    kind = "sliding-window"
    gate.fake.configure(limiter=kind, rpm=HIDDEN_RPM, window_s=WINDOW_S)
    press(gate, kind, time.monotonic() + 3 * WINDOW_S)
    assert gate.envoy.metric("nimgate_effective_rpm", limit=kind) < CONFIGURED_RPM
    gate.fake.configure(limiter="none")
    began = time.monotonic()
    while gate.envoy.metric("nimgate_effective_rpm", limit=kind) < CONFIGURED_RPM:
        press(gate, kind, time.monotonic() + WINDOW_S)
        assert time.monotonic() < began + 60 * WINDOW_S, "still slowed"
    report.note(f"back at full speed {(time.monotonic() - began) / WINDOW_S:.1f} windows after")
