"""A saturated hour in a minute: forty requests a minute, sped up sixty times, on a real Envoy with four workers.

Prints, and writes into docs/performance.md, what became of the tokens and of the order. Nothing here
decides a test: a busy machine makes the figures worse, so they are to be read with the load that is
printed beside them.
"""

import argparse
import os
import select
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))

from harness.envoy import Envoy
from harness.fake import Fake
from harness.nimgate import configuration, limit
from harness.programs import REPOSITORY
from harness.shipped import Options
from harness.waiting import wait_until
from load import PRIORITIES, Load, Sent

# Of the bucket.
CAPACITY = 5
# Written into the document between these lines.
BEGIN, END = "<!-- saturate -->", "<!-- /saturate -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rpm", type=int, default=2400)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--leave", type=float, default=0.1, help="share of clients that leave while they wait")
    parser.add_argument("--window", type=int, default=0, help="window_s; 0 measures the bucket alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    asked = parser.parse_args()
    rows = measure(asked)
    table = "\n".join(["| what | figure |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
    print(table)
    if asked.write:
        document = REPOSITORY / "docs/performance.md"
        before, _, rest = document.read_text().partition(BEGIN)
        document.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def measure(asked: argparse.Namespace) -> list[tuple[str, str]]:
    plugin = configuration(
        # A bucketful goes at once and says nothing of the queue, so it is small.
        limit(
            "nvidia",
            rate_rpm=asked.rpm,
            bucket_capacity=CAPACITY,
            window_s=asked.window,
            low_priority_timeout_s=600,
            request_timeout_s=280,
        )
    )
    fake = Fake().start()
    envoy = Envoy(fake.port, Options(plugin=plugin, concurrency=asked.workers))
    try:
        envoy.start()
        idle = idle_cpu(envoy)
        offset = clock_offset(fake)
        fake.reset()
        load = Load(envoy.ports.data, asked.connections, asked.leave, seed=1)
        before = envoy.cpu_seconds()
        load.run(asked.seconds)
        used = envoy.cpu_seconds() - before
        wait_until(lambda: envoy.queue_length("nvidia") == 0, "nobody waits any more")
        records = fake.requests()
        arrivals = {record.model: record.at_us / 1e6 + offset for record in records}
        twice = len(records) - len(arrivals)
        contended = envoy.metric("nimgate_ledger_contended_total")
        envoy.stop()
        bare = Envoy(fake.port, Options(with_filter=False, concurrency=asked.workers))
        try:
            bare.start()
            plain = idle_cpu(bare)
        finally:
            bare.kill_quietly()
    finally:
        envoy.kill_quietly()
        fake.stop()
    return report(asked, load.requests, arrivals, twice, (idle, plain), used, contended)


def clock_offset(fake: Fake) -> float:
    """What to add to the fake's times to get this process's; the tightest of some exchanges counts."""
    from harness.client import Client

    client, best = Client(fake.port), (float("inf"), 0.0)
    for number in range(50):
        fake.reset()
        before = time.monotonic()
        client.chat(f"clock-{number}")
        after = time.monotonic()
        (record,) = fake.requests()
        best = min(best, (after - before, (before + after) / 2 - record.at_us / 1e6))
    client.close()
    return best[1]


def idle_cpu(envoy: Envoy) -> float:
    """CPU milliseconds per second of an Envoy that has served a request and now has nothing to do."""
    from harness.client import Client

    client = Client(envoy.ports.data)
    client.chat("nvidia/warm-up")
    client.close()
    wait_until(
        lambda: envoy.metric("nimgate_tokens_available") == envoy.metric("nimgate_token_capacity"),
        "at rest",
    )
    before, began = envoy.cpu_nanoseconds(), time.monotonic()
    time.sleep(20)
    return (envoy.cpu_nanoseconds() - before) / 1e6 / (time.monotonic() - began)


def timer_lateness() -> list[float]:
    """How late this machine wakes a sleeper, sorted: no timer of Envoy's can be better."""
    late = []
    with select.epoll() as poll:
        for _ in range(300):
            began = time.monotonic()
            poll.poll(0.007)
            late.append(time.monotonic() - began - 0.007)
    return sorted(late)


def report(
    asked: argparse.Namespace,
    requests: list[Sent],
    arrivals: dict[str, float],
    twice: int,
    idle: tuple[float, float],
    used: float,
    contended: int,
) -> list[tuple[str, str]]:
    interval = 60 / asked.rpm
    # The first bucketful goes at once; what is measured is the time after it.
    times = sorted(arrivals.values())[2 * CAPACITY :]
    # Each token's time, if none is ever lost: the latest such grid that no arrival is ahead of.
    phase = min(at - number * interval for number, at in enumerate(times))
    late = sorted(at - phase - number * interval for number, at in enumerate(times))
    quantile = lambda values, share: values[min(len(values) - 1, int(share * len(values)))]  # noqa: E731
    utilisation = (len(times) - 1) * interval / (times[-1] - times[0])
    higher, earlier = inversions(requests, arrivals)
    timers = timer_lateness()
    waits = {
        name: sorted(arrivals[r.model] - r.sent for r in requests if r.model in arrivals and r.priority == level)
        for level, name in enumerate(PRIORITIES)
    }
    left = sum(r.left is not None for r in requests)
    refused = sum(r.status not in (0, 200) for r in requests)
    ms = lambda seconds: f"{1000 * seconds:.1f} ms"  # noqa: E731
    spread = lambda values: f"{len(values)}, {ms(max(values, default=0))}"  # noqa: E731
    return [
        (
            "Envoy's workers, connections, rate",
            f"{asked.workers}, {asked.connections}, {asked.rpm} rpm",
        ),
        (
            "length, load average of the machine",
            f"{asked.seconds:.0f} s, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        ),
        (
            "requests granted, left while waiting, refused, sent twice",
            f"{len(arrivals)}, {left}, {refused}, {twice}",
        ),
        ("tokens used", f"{100 * utilisation:.2f} %"),
        (
            "a token's time to the request's arrival upstream: p50, p90, p99, longest",
            ", ".join(
                ms(value)
                for value in (
                    quantile(late, 0.5),
                    quantile(late, 0.9),
                    quantile(late, 0.99),
                    late[-1],
                )
            ),
        ),
        (
            "the same of a bare timer on this machine: p50, p90, p99, longest",
            ", ".join(
                ms(value)
                for value in (
                    quantile(timers, 0.5),
                    quantile(timers, 0.9),
                    quantile(timers, 0.99),
                    timers[-1],
                )
            ),
        ),
        (
            "pairs in which a lower priority was surely granted before a higher one; longest wait",
            spread(higher),
        ),
        (
            "pairs of one priority in which the later was surely granted first; by how much it came later",
            spread(earlier),
        ),
        (
            "median wait of urgent, high, normal, low",
            ", ".join(f"{quantile(w, 0.5):.2f} s" if w else "none served" for w in waits.values()),
        ),
        ("decisions put off for too many lost swaps", str(contended)),
        ("Envoy's CPU per granted request", ms(used / max(1, len(arrivals)))),
        (
            "CPU of an Envoy with nothing to do, with nimgate and without",
            f"{idle[0]:.2f}, {idle[1]:.2f} ms per second",
        ),
    ]


def inversions(requests: list[Sent], arrivals: dict[str, float]) -> tuple[list[float], list[float]]:
    """Grants that another request should surely have had: how long that one had waited at least if its priority was
    higher, and by how much at least it had come earlier if it was the same.

    When the filter decided is not seen from outside, but bounded: a request was in the filter before
    it arrived upstream by as long as the filter says that it waited, and was granted no sooner than
    that long after its client sent it. Of two requests the order is certain if the bounds are apart.
    """
    served = [r for r in requests if r.model in arrivals and r.answered]
    seen = [(r.priority, r.sent, arrivals[r.model] - r.queued, r.sent + r.queued, arrivals[r.model]) for r in served]
    higher, earlier = [], []
    for level, sent, _, granted, arrived in seen:
        for other_level, _, entered, other_granted, _ in seen:
            if other_level > level or entered >= granted or other_granted <= arrived:
                continue
            if other_level < level:
                higher.append(granted - entered)
            elif entered < sent:
                earlier.append(sent - entered)
    return higher, earlier


if __name__ == "__main__":
    main()
