"""The window guard: however the window lies, the upstream sees no more than the quota in it."""

import threading

import pytest

from harness import report
from harness.client import Answer
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.shipped import Options
from harness.waiting import wait_until

WINDOW_S = 4
QUOTA = 20
RPM = QUOTA * 60 // WINDOW_S
REQUESTS = 3 * QUOTA


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        limit("guarded", rate_rpm=RPM, bucket_capacity=QUOTA, window_s=WINDOW_S),
        limit("narrow", rate_rpm=30, bucket_capacity=10, window_s=2),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate


def test_no_window_holds_more_than_the_quota(gate: Gate):
    answers: dict[str, Answer] = {}

    def send() -> None:
        for _ in range(REQUESTS // QUOTA):
            model = gate.model("guarded")
            answers[model] = gate.client.chat(model)

    threads = [threading.Thread(target=send) for _ in range(QUOTA)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers.values()] == [200] * REQUESTS
    records = [record for record in gate.fake.requests() if record.model in answers]
    arrivals = [record.at_us / 1e6 for record in records]
    assert arrivals == sorted(arrivals)
    gaps = [arrivals[at + QUOTA] - arrivals[at] for at in range(REQUESTS - QUOTA)]
    # The guard counts grants. The first of a window may have reached the upstream later than it
    # was granted, by no more than it was under way outside the queue.
    for record, gap in zip(records, gaps, strict=False):
        late_s = answers[record.model].outside_queue_s
        assert gap > WINDOW_S - late_s, f"{QUOTA + 1} in {gap:.3f} s, the first {late_s:.3f} s late"
    least = (REQUESTS // QUOTA - 1) * WINDOW_S
    report.note(
        f"window guard: {QUOTA} per {WINDOW_S} s; {QUOTA + 1} arrivals in {min(gaps):.3f} s;"
        f" {REQUESTS} took {arrivals[-1] - arrivals[0]:.2f} s, at least {least} s"
    )


def test_burst_is_no_larger_than_the_quota(gate: Gate):
    """A bucket of ten, but one request for each window of two seconds."""
    assert gate.client.chat(gate.model("narrow")).status == 200
    assert gate.envoy.metric("nimgate_tokens_available", limit="narrow") == 0
    wait_until(
        lambda: gate.envoy.metric("nimgate_tokens_available", limit="narrow") == 1,
        "the window opens again, and the gauge says so without a further request",
    )
    assert gate.client.chat(gate.model("narrow")).status == 200
