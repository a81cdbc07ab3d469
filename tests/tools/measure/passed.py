"""What a request costs that nimgate lets pass: CPU of the Envoy process and latency, beside plain Envoy, Envoy's buffer
filter, a Wasm filter that does nothing, one that reads and does nothing with it, and what Envoy has of its own to limit
by a model.

All Envoys run at once and take turns, many rounds of a fraction of a second each, so that other work on the machine
meets all alike. A ratio is made within each round, and the median of the rounds counts; the quartiles beside it say how
much a single one is moved. `scripts/bench passed` starts it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))

import wrk
from harness.envoy import Envoy
from harness.waiting import wait_until
from table import table, write
from variants import NAMES, envoy, upstream

KIB = 1024
SIZES = (1 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB)
WORKERS = (1, 2)
# A model of someone else's, so that every request passes.
MODEL = "gpt-4o-mini"
# What a passed request may cost at most, against the no-op filter.
TARGETS = {1 * KIB: 1.10, 16 * KIB: 1.10, 64 * KIB: 1.25, 256 * KIB: 1.25, 1024 * KIB: 1.5}
ALL_CORES = os.sched_getaffinity(0)
# How long one has the load in each round: long enough for hundreds of small requests and several large ones.
TURN_S = 0.15
# Load before anything is measured, so that connections are there and V8 has made the module fast.
WARM_S = 1.0
LATENCY_ROUNDS = 2


# By workers, size and variant: CPU seconds for each request, in each round.
Cpu = dict[tuple[int, int, str], list[float]]
# The same keys: the median and the 99th percentile of the time that a client waits, in seconds, in each round.
Latency = dict[tuple[int, int, str], list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--connections", type=int, default=4, help="for each of Envoy's workers")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    asked = parser.parse_args()
    before = os.getloadavg()[0]
    cpu, latency = measure(asked)
    about = f"Medians of {asked.rounds} rounds, and quartiles; {os.cpu_count()} cores, load average before the run"
    tables = {
        "passed, CPU": f"{about} {before:.1f}.\n\n{plain_table(cpu)}",
        "passed, no-op": noop_table(cpu),
        "passed, latency": latency_table(latency),
    }
    for name, text in tables.items():
        print(f"{text}\n")
        if asked.write:
            write(name, text)


def measure(asked: argparse.Namespace) -> tuple[Cpu, Latency]:
    cpu: Cpu = {}
    latency: Latency = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimgate-bench-")))
        bodies = {
            (size, first): wrk.write_body(directory, wrk.chat(MODEL, size, first))
            for size in SIZES
            for first in (True, False)
        }
        back = upstream()
        stack.callback(back.kill_quietly)
        for workers in WORKERS:
            with ExitStack() as these:
                os.sched_setaffinity(0, ALL_CORES)
                envoys = {}
                for name in NAMES:
                    envoys[name] = envoy(name, workers, back.ports.data)
                    these.callback(envoys[name].kill_quietly)
                keep_apart([running.pid for running in envoys.values()], back.pid, workers)
                for size in SIZES:
                    # Where the model stands in the body makes no difference, unless something is wrong.
                    for first in (True, False):
                        took = in_turns(envoys, bodies[size, first], workers * asked.connections, asked.rounds // 2)
                        for name, values in took.items():
                            cpu.setdefault((workers, size, name), []).extend(values)
                    for _ in range(LATENCY_ROUNDS):
                        for name, running in envoys.items():
                            latency.setdefault((workers, size, name), []).append(alone(running, bodies[size, True]))
                    print(progress(cpu, workers, size), file=sys.stderr)
                for running in envoys.values():
                    running.stop()
    return cpu, latency


def keep_apart(envoys: list[int], back: int, workers: int) -> None:
    """Gives the Envoys a core for each of their workers, and what is around them the others, if there are so many. What
    a request costs depends much on whether an Envoy shares its core with the load, and the scheduler moves them about.
    """
    cores = sorted(ALL_CORES)
    here, around = set(cores[:workers]), set(cores[workers:])
    if not around:
        here = around = ALL_CORES
    for pid in envoys:
        pin(pid, here)
    pin(back, around)
    # What is started from here keeps to it too.
    os.sched_setaffinity(0, around)


def pin(pid: int, cores: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def in_turns(envoys: dict[str, Envoy], body: Path, connections: int, rounds: int) -> dict[str, list[float]]:
    """CPU for each request by variant and round. All have their load, and one at a time may have it come."""
    took: dict[str, list[float]] = {name: [] for name in envoys}
    with ExitStack() as stack:
        loads = {}
        for name, running in envoys.items():
            loads[name] = wrk.Load(running.ports.data, body, connections)
            stack.callback(loads[name].end)
        for name in envoys:
            warm(envoys[name], loads[name])
        for round_ in range(rounds):
            # There and back again, so that none always comes after the same.
            for name in list(envoys) if round_ % 2 == 0 else reversed(envoys):
                took[name].append(turn(envoys[name], loads[name]))
    return took


def turn(running: Envoy, load: wrk.Load) -> float:
    requests, used = answered(running), running.workers_cpu_nanoseconds()
    load.go()
    time.sleep(TURN_S)
    load.hold()
    # Those that are under way come to their end.
    now = -1
    while now != (now := answered(running)):
        time.sleep(0.02)
    if now == requests:
        # On a machine that does much else it may have got nothing done.
        return turn(running, load)
    return (running.workers_cpu_nanoseconds() - used) / 1e9 / (now - requests)


def warm(running: Envoy, load: wrk.Load) -> None:
    until = answered(running) + 1
    load.go()
    time.sleep(WARM_S)
    wait_until(lambda: answered(running) >= until, "the first requests are answered")
    load.hold()


def answered(running: Envoy) -> int:
    """How many requests the upstream has answered. All must have been answered well."""
    bad = sum(running.stats(r"http\..*\.downstream_rq_[45]xx$").values())
    if bad:
        raise SystemExit(f"{bad} requests failed, so nothing was measured")
    return sum(running.stats(r"^cluster\.[^.]*\.upstream_rq_completed$").values())


def alone(running: Envoy, body: Path) -> tuple[float, float]:
    seen = wrk.run(running.ports.data, body, 1, 1)
    if seen.refused or seen.broken or not seen.requests:
        raise SystemExit(f"requests failed, so nothing was measured: {seen}")
    return seen.p50, seen.p99


def ratio(cpu: Cpu, key: tuple[int, int], of: str, to: str) -> tuple[float, float, float]:
    """The median over the rounds of one variant's CPU against another's in the same round, and the quartiles."""
    ratios = [this / that for this, that in zip(cpu[*key, of], cpu[*key, to], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def shown(of: tuple[float, float, float]) -> str:
    return f"{of[0]:.2f} × ({of[1]:.2f}–{of[2]:.2f})"


HEADS = {
    "plain": "plain Envoy",
    "buffer": "buffer filter",
    "noop": "no-op Wasm",
    "reader": "Wasm that only reads",
    "nimgate": "nimgate",
    "json_to_metadata": "json_to_metadata + local_ratelimit",
}
OTHERS = tuple(name for name in NAMES if name != "plain")


def keys() -> Iterator[tuple[tuple[int, int], str]]:
    for workers in WORKERS:
        for size in SIZES:
            yield (workers, size), f"{workers}, {size_name(size)}"


def size_name(size: int) -> str:
    return f"{size // KIB} KB" if size < 1024 * KIB else f"{size // KIB // 1024} MB"


def progress(cpu: Cpu, workers: int, size: int) -> str:
    ratios = ", ".join(f"{name} {shown(ratio(cpu, (workers, size), name, 'noop'))}" for name in NAMES)
    return f"{workers} workers, {size_name(size)}, against no-op: {ratios}"


def plain_table(cpu: Cpu) -> str:
    rows = []
    for key, label in keys():
        plain = statistics.median(cpu[*key, "plain"])
        rows.append([label, f"{plain * 1e6:.0f} µs", *(shown(ratio(cpu, key, name, "plain")) for name in OTHERS)])
    return table(["workers, body", "plain Envoy", *(HEADS[name] for name in OTHERS)], rows)


def noop_table(cpu: Cpu) -> str:
    rows = []
    for key, label in keys():
        against = [shown(ratio(cpu, key, "nimgate", other)) for other in ("noop", "reader", "json_to_metadata")]
        rows.append([label, *against, f"{TARGETS[key[1]]:.2f} ×"])
    head = ["nimgate / no-op Wasm", "nimgate / Wasm that only reads", "nimgate / json_to_metadata"]
    return table(["workers, body", *head, "should reach, of no-op"], rows)


def latency_table(latency: Latency) -> str:
    rows = []
    for key, label in keys():
        middle = {
            name: [statistics.median(times) * 1e6 for times in zip(*latency[*key, name], strict=True)] for name in NAMES
        }
        p50, p99 = middle["plain"]
        row = [f"{middle[name][0] - p50:+.0f}, {middle[name][1] - p99:+.0f}" for name in OTHERS]
        rows.append([label, f"{p50:.0f}, {p99:.0f} µs", *row])
    return table(["workers, body", *(HEADS[name] for name in NAMES)], rows)


if __name__ == "__main__":
    main()
